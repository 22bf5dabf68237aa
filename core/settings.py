"""The only reader of ``os.environ``.

| variable | meaning | default |
|---|---|---|
| ``DATABASE_URL`` | where the application connects; unset: the embedded server | unset |
| ``DATABASE_OWNER_URL`` | where migrations and key commands connect, as the owner of the schema | ``DATABASE_URL`` |
| ``CHARTHOLD_HOME`` | where the embedded server and a development key live | ``~/.charthold`` |
| ``CHARTHOLD_MASTER_KEY`` | the key-encrypting key: 32 bytes, base64; required with ``DATABASE_URL`` | made on first use |
| ``CHARTHOLD_RETIRED_MASTER_KEYS`` | earlier master keys, comma-separated, still able to unwrap | none |
| ``CHARTHOLD_RETIRED_SEAL_KEYS`` | public keys of seals made under master keys that are gone, comma-separated | none |
| ``CHARTHOLD_TOKEN_GENERATION`` | a number to raise for a new key that signs scopes, under the same master key | 1 |
| ``CHARTHOLD_ROLE_PREFIX`` | put before ``app_runtime`` and ``app_auditor``; one cluster, several databases | none |
| ``CHARTHOLD_SCOPE_SECONDS`` | how long a scope lives, 164.312(a)(2)(iii) | 900 |
| ``CHARTHOLD_BIND_BACKEND`` | ``off``: tokens are not bound to a backend (transaction poolers) | ``on`` |
| ``CHARTHOLD_POOL_SIZE`` | the most connections one process opens; from 4 on, one or two are for group commit | 10 |
| ``CHARTHOLD_POOL_SECONDS`` | how long a statement waits for a connection | 10 |
| ``CHARTHOLD_KEY_CACHE_SECONDS`` | how long an unwrapped tenant key is kept | 300 |
| ``CHARTHOLD_READ_RECORDS`` | ``durable``, or ``relaxed``: read records survive a crash only if written 0.6 s before | ``durable`` |
| ``CHARTHOLD_SHRED_DAYS`` | how long a tenant must wait between a request to shred its keys and the deed | 30 |
| ``CHARTHOLD_LOCK_TIMEOUT`` | migrations: seconds to wait for a table lock | 5 |
| ``CHARTHOLD_STATEMENT_TIMEOUT`` | migrations: seconds a statement may run, 0 for ever | 0 |
| ``CHARTHOLD_ALLOW_UNSAFE`` | migrations: unsafe kinds that may run, comma-separated (``core/schema/unsafe.py``) | none |
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path

from core.crypto.derive import forgetful
from core.errors import ConfigurationError

__all__ = ["MOST_SECONDS", "UNSAFE", "Settings", "settings"]

# What begins with CHARTHOLD_ and is none of these is a mistake: a setting that nobody reads protects nobody.
VARIABLES = (
    "CHARTHOLD_HOME",
    "CHARTHOLD_MASTER_KEY",
    "CHARTHOLD_RETIRED_MASTER_KEYS",
    "CHARTHOLD_RETIRED_SEAL_KEYS",
    "CHARTHOLD_TOKEN_GENERATION",
    "CHARTHOLD_ROLE_PREFIX",
    "CHARTHOLD_SCOPE_SECONDS",
    "CHARTHOLD_BIND_BACKEND",
    "CHARTHOLD_POOL_SIZE",
    "CHARTHOLD_POOL_SECONDS",
    "CHARTHOLD_KEY_CACHE_SECONDS",
    "CHARTHOLD_READ_RECORDS",
    "CHARTHOLD_SHRED_DAYS",
    "CHARTHOLD_LOCK_TIMEOUT",
    "CHARTHOLD_STATEMENT_TIMEOUT",
    "CHARTHOLD_ALLOW_UNSAFE",
)
# The kinds of unsafe step that core/schema/unsafe.py describes.
UNSAFE = (
    "blocking_index",
    "domain_check",
    "drop_populated",
    "not_null",
    "refresh",
    "reindex",
    "rewrite",
    "sealed_column",
    "sealed_drop",
    "sealed_rename",
    "sealed_type",
    "type_change",
    "unchecked_constraint",
    "unread",
    "volatile_default",
)
# Eleven days, which is for ever to a connection, a key or a lock, and fits wherever PostgreSQL counts milliseconds.
MOST_SECONDS = 1_000_000
MAKE_A_KEY = "python3 -c 'import base64, os; print(base64.b64encode(os.urandom(32)).decode())'"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the environment said, checked once. Keys are kept out of ``repr``."""

    database_url: str | None = field(default=None, repr=False)
    owner_url: str | None = field(default=None, repr=False)
    home: Path = field(default_factory=lambda: Path.home() / ".charthold")
    master_key: bytes | None = field(default=None, repr=False)
    retired_master_keys: tuple[bytes, ...] = field(default=(), repr=False)
    retired_seal_keys: tuple[bytes, ...] = ()
    token_generation: int = 1
    role_prefix: str = ""
    scope_seconds: int = 900
    bind_backend: bool = True
    pool_size: int = 10
    pool_seconds: float = 10.0
    key_cache_seconds: float = 300.0
    durable_reads: bool = True
    shred_days: int = 30
    lock_timeout: float = 5.0
    statement_timeout: float = 0.0
    allow_unsafe: frozenset[str] = frozenset()

    @property
    def embedded(self) -> bool:
        """True when no server was named, and ours is started instead."""
        return self.database_url is None

    @property
    def named_by(self) -> str | None:
        """The variable that says where the application connects; None for the embedded server."""
        return None if self.embedded else "DATABASE_URL"

    @property
    def owner_named_by(self) -> str | None:
        """The same for the owner of the schema."""
        return "DATABASE_OWNER_URL" if self.owner_url != self.database_url else self.named_by

    @classmethod
    @forgetful
    def from_environ(cls, environ: Mapping[str, str]) -> Settings:
        """Read and check every variable; raises ``ConfigurationError`` naming the first that is wrong."""
        _refuse_the_unknown(environ)
        database_url = environ.get("DATABASE_URL") or None
        master_key = environ.get("CHARTHOLD_MASTER_KEY") or None
        if database_url and not master_key:
            raise ConfigurationError(
                "CHARTHOLD_MASTER_KEY is not set, and a configured server needs a configured key. "
                f"Make one with {MAKE_A_KEY} and keep it where your secrets live: without it no PHI opens again."
            )
        prefix = environ.get("CHARTHOLD_ROLE_PREFIX", "")
        if not re.fullmatch(r"([a-z][a-z0-9_]{0,30})?", prefix):
            raise ConfigurationError("CHARTHOLD_ROLE_PREFIX must match [a-z][a-z0-9_]{0,30}.")
        return cls(
            database_url=database_url,
            owner_url=environ.get("DATABASE_OWNER_URL") or database_url,
            home=_home(environ.get("CHARTHOLD_HOME") or "~/.charthold"),
            master_key=_key("CHARTHOLD_MASTER_KEY", master_key) if master_key else None,
            retired_master_keys=tuple(
                _key("CHARTHOLD_RETIRED_MASTER_KEYS", key) for key in _listed(environ, "CHARTHOLD_RETIRED_MASTER_KEYS")
            ),
            retired_seal_keys=tuple(map(_seal_key, _listed(environ, "CHARTHOLD_RETIRED_SEAL_KEYS"))),
            token_generation=_whole(
                environ, "CHARTHOLD_TOKEN_GENERATION", cls.token_generation, least=1, most=1_000_000
            ),
            role_prefix=prefix,
            scope_seconds=_whole(environ, "CHARTHOLD_SCOPE_SECONDS", cls.scope_seconds, least=1, most=86_400),
            bind_backend=_choice(environ, "CHARTHOLD_BIND_BACKEND", ("on", "off")) == "on",
            pool_size=_whole(environ, "CHARTHOLD_POOL_SIZE", cls.pool_size, least=1, most=10_000),
            pool_seconds=_number(environ, "CHARTHOLD_POOL_SECONDS", cls.pool_seconds, least=0.001),
            key_cache_seconds=_number(environ, "CHARTHOLD_KEY_CACHE_SECONDS", cls.key_cache_seconds, least=0),
            durable_reads=_choice(environ, "CHARTHOLD_READ_RECORDS", ("durable", "relaxed")) == "durable",
            shred_days=_whole(environ, "CHARTHOLD_SHRED_DAYS", cls.shred_days, least=0, most=36_500),
            lock_timeout=_number(environ, "CHARTHOLD_LOCK_TIMEOUT", cls.lock_timeout, least=0),
            statement_timeout=_number(environ, "CHARTHOLD_STATEMENT_TIMEOUT", cls.statement_timeout, least=0),
            allow_unsafe=_unsafe(environ.get("CHARTHOLD_ALLOW_UNSAFE", "")),
        )


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The process's settings, read once. Tests call ``settings.cache_clear()``."""
    return Settings.from_environ(os.environ)


def _refuse_the_unknown(environ: Mapping[str, str]) -> None:
    for name in environ:
        if name.startswith("CHARTHOLD_") and name not in VARIABLES:
            words = [known.removeprefix("CHARTHOLD_") for known in VARIABLES]
            meant = get_close_matches(name.removeprefix("CHARTHOLD_"), words, n=1)
            advice = f"Did you mean CHARTHOLD_{meant[0]}?" if meant else f"There are {', '.join(VARIABLES)}."
            raise ConfigurationError(f"{name} is set, and there is no such setting. {advice}")


def _unsafe(text: str) -> frozenset[str]:
    kinds = frozenset(name.strip() for name in text.split(",") if name.strip())
    for kind in sorted(kinds.difference(UNSAFE)):
        meant = get_close_matches(kind, UNSAFE, n=1)
        advice = f"Did you mean {meant[0]}?" if meant else f"There are {', '.join(UNSAFE)}."
        raise ConfigurationError(f"CHARTHOLD_ALLOW_UNSAFE names {kind}, and there is no such kind of step. {advice}")
    return kinds


def _home(text: str) -> Path:
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:
        raise ConfigurationError(
            f"CHARTHOLD_HOME is {text}, and this machine knows no such home. Set CHARTHOLD_HOME to a folder's full path."
        ) from None


def _key(name: str, value: str) -> bytes:
    try:
        key = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != 32:
        raise ConfigurationError(f"{name} must be 32 bytes in base64. Make one with {MAKE_A_KEY}")
    return key


def _seal_key(text: str) -> bytes:
    if not re.fullmatch(r"[0-9a-f]{64}", text, re.ASCII):
        raise ConfigurationError(
            "CHARTHOLD_RETIRED_SEAL_KEYS takes public keys of 64 hexadecimal digits, as seal_audit --json prints them."
        )
    return bytes.fromhex(text)


def _listed(environ: Mapping[str, str], name: str) -> list[str]:
    return [item.strip() for item in environ.get(name, "").split(",") if item.strip()]


def _number(environ: Mapping[str, str], name: str, default: float, *, least: float, most: int = MOST_SECONDS) -> float:
    text = environ.get(name) or str(default)
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not least <= number <= most:
        raise ConfigurationError(f"{name} must be a number from {least:g} to {most:,}, not {text!r}.")
    return number


def _whole(environ: Mapping[str, str], name: str, default: int, *, least: int, most: int) -> int:
    text = environ.get(name) or str(default)
    if not re.fullmatch(r"[0-9]{1,9}", text, re.ASCII) or not least <= int(text) <= most:
        raise ConfigurationError(f"{name} must be a whole number from {least} to {most:,}, not {text!r}.")
    return int(text)


def _choice(environ: Mapping[str, str], name: str, choices: tuple[str, ...]) -> str:
    value = environ.get(name) or choices[0]
    if value not in choices:
        raise ConfigurationError(f"{name} must be one of {', '.join(choices)}, not {value!r}.")
    return value
