"""The keys that sign scopes, where the database verifies them."""

from __future__ import annotations

from core.crypto.kms import master_key
from core.engine import engine
from core.errors import ConfigurationError
from core.token import TokenKey

__all__ = ["install_token_key", "settle_token_key"]

GENERATIONS = 20  # how many before the one in use are tried


async def settle_token_key() -> None:
    """Put this process's token key there, after the steps of the schema.

    Threat: whoever migrates with another CHARTHOLD_MASTER_KEY by mistake would leave a key that signs scopes for ever.
    So a database that has keys gets ours only where one of them is of this master key, or of a retired one. Raises
    ``ConfigurationError`` where none is.
    """
    async with engine().as_owner() as connection:
        rows = await connection.fetch("select id from charthold.token_key")
    known = {row["id"] for row in rows}
    if known and known.isdisjoint(_ours()):
        raise ConfigurationError(
            "CHARTHOLD_MASTER_KEY is not the one that the database knows, so no token key was installed. Set the one "
            "that the application has; if it was changed on purpose, run: piccolo core install_token_key"
        )
    await install_token_key()


def _ours() -> set[str]:
    """The ids of the token keys that follow from our master keys, of this generation and of those before."""
    configured = engine().settings
    newest = configured.token_generation
    return {
        TokenKey.derive(master, generation).id
        for master in (master_key(configured), *configured.retired_master_keys)
        for generation in range(max(1, newest - GENERATIONS), newest + 1)
    }


async def install_token_key(*, retire_others_after: float | None = None) -> bool:
    """Put this process's token key where ``charthold.scope()`` reads it, as the schema's owner; True if it was new.

    The key follows from CHARTHOLD_MASTER_KEY and CHARTHOLD_TOKEN_GENERATION, so this is run after a change
    of either; other keys stay valid for ``retire_others_after`` seconds (for ever when None): nobody is interrupted.
    """
    key = engine().token_key
    async with engine().as_owner() as connection, connection.transaction():
        # In two statements: ON CONFLICT DO UPDATE would lock the row of a key that is there, and charthold.scope()
        # could not tell that lock from a change.
        added = await connection.fetchval(
            "insert into charthold.token_key (id, inner_pad, outer_pad) values ($1, $2, $3)"
            " on conflict (id) do nothing returning id",
            key.id,
            key.inner_pad,
            key.outer_pad,
        ) or await connection.fetchval(
            "update charthold.token_key set retired_at = null where id = $1 and retired_at is not null returning id",
            key.id,
        )
        if retire_others_after is not None:
            await connection.execute(
                "update charthold.token_key set retired_at = clock_timestamp() + make_interval(secs => $2)"
                " where id <> $1 and retired_at is null",
                key.id,
                retire_others_after,
            )
    return added is not None
