"""Column types: what a tenant's table is made of, and where Piccolo's values meet the envelope.

An ``Encrypted`` column holds an envelope of type ``charthold.envelope``; on the instance it is the plain Python value.
A ``BlindIndex`` column stands beside it and holds keyed hashes, so that equality can be asked of the database.
"""

from __future__ import annotations

from core.columns.blind import DIGESTED, BlindIndex
from core.columns.encrypted import (
    Encrypted,
    EncryptedDate,
    EncryptedDecimal,
    EncryptedInteger,
    EncryptedJSON,
    EncryptedText,
    EndsWith,
    InMonth,
    InYear,
    StartsWith,
)
from core.columns.kept import ActorId, CreatedAt, LogId, RowId, TenantId, TransactionId, UpdatedAt
from core.columns.plain import Inet, TenantForeignKey

__all__ = [
    "DIGESTED",
    "FIXED",
    "ActorId",
    "BlindIndex",
    "CreatedAt",
    "Encrypted",
    "EncryptedDate",
    "EncryptedDecimal",
    "EncryptedInteger",
    "EncryptedJSON",
    "EncryptedText",
    "EndsWith",
    "InMonth",
    "InYear",
    "Inet",
    "LogId",
    "RowId",
    "StartsWith",
    "TenantForeignKey",
    "TenantId",
    "TransactionId",
    "UpdatedAt",
]

# What a row is, rather than what it holds: nobody sets it but Charthold, and no record holds it.
FIXED = (RowId, TenantId, ActorId, CreatedAt, BlindIndex)

# Where a generated step imports a column's class from. In which file of the package it stands is nobody's business.
for _kind in [kind for name in __all__ if isinstance(kind := globals()[name], type)]:
    _kind.__module__ = __name__
