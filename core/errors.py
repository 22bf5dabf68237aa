"""Errors are instructions: what happened and what to do. Never a value of PHI, never a key."""

from __future__ import annotations

__all__ = [
    "ChartholdError",
    "ConfigurationError",
    "KeyProviderError",
    "MigrationError",
    "PoolExhaustedError",
    "ProtectedQueryError",
    "ScopeError",
    "SealedValueError",
    "UnreachableError",
]


class ChartholdError(Exception):
    """The base of every error that Charthold raises on purpose. Its message is one sentence with a remedy."""

    # What PostgreSQL said, where it is an error of its.
    sqlstate: str | None = None


class ConfigurationError(ChartholdError):
    """A setting is missing or malformed; the message names it and says how to make a good one."""


class UnreachableError(ConfigurationError):
    """Nobody answers where the database is said to be."""


class ScopeError(ChartholdError):
    """A tenant query ran without a scope, or the scope was refused, expired, nested or foreign."""


class ProtectedQueryError(ChartholdError):
    """A query asks of an encrypted or isolated column what it cannot do; the message says what to write instead."""


class SealedValueError(ChartholdError):
    """An envelope is malformed, was moved, was altered, or was sealed under a key that is not there."""


class KeyProviderError(ChartholdError):
    """The provider of key-encrypting keys failed or refused; nothing was opened."""


class MigrationError(ChartholdError):
    """A migration is unsafe, irreversible or inconsistent; the message names the step and the safe form."""


class PoolExhaustedError(ChartholdError):
    """Every connection was busy for longer than the pool's time-out."""
