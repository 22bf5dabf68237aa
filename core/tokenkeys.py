"""The keys that sign scopes, where the database verifies them."""

from __future__ import annotations

from core.engine import engine

__all__ = ["install_token_key"]


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
