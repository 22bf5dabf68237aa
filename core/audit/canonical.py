"""The canonical bytes of one audit record, version 1: what is hashed (``docs/audit-log.md``).

Threat: two records with the same bytes could be exchanged unseen. So each field carries its type and its length, NULL
is not an empty text, and the order is fixed.

The form is the one that PostgreSQL itself gives a row in its binary protocol (``record_send``): to let the server write
it is ten times faster than to write it here, column by column, and it has not changed since version 9.4. It may change:
this module defines the form without PostgreSQL, and the sealer and the verifier first compare one record (``PROBE``); a
server that writes anything else is asked for the columns instead.
"""

from __future__ import annotations

import ipaddress
import json
import struct
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from core.errors import ChartholdError

__all__ = [
    "COLUMNS",
    "COLUMNS_SQL",
    "PROBE",
    "PROBE_SQL",
    "RECORD_SQL",
    "VERSION",
    "decode",
    "encode",
    "jsonb_text",
    "parse_jsonb",
    "write_jsonb",
]

VERSION = 1

# The record's columns, in order, with their types. A new column of the log asks for a new version of the form.
COLUMNS: dict[str, str] = {
    "id": "uuid",
    "tenant_id": "uuid",
    "occurred_at": "timestamptz",
    "user_id": "uuid",
    "action_type": "text",
    "table_name": "text",
    "record_id": "uuid",
    "old_values": "jsonb",
    "new_values": "jsonb",
    "changed_columns": "text[]",
    "reason": "text",
    "request_id": "text",
    "source_ip": "inet",
    "transaction_id": "int8",
}
# The types' numbers, which PostgreSQL never changes.
TYPES = {"uuid": 2950, "timestamptz": 1184, "text": 25, "jsonb": 3802, "text[]": 1009, "inet": 869, "int8": 20}

COLUMNS_SQL = ", ".join(COLUMNS)
RECORD_SQL = f"pg_catalog.record_send(row({COLUMNS_SQL}))"

EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
NULL = b"\xff\xff\xff\xff"
HEADER = struct.Struct("!Ii")
SCALAR = json.JSONEncoder(ensure_ascii=False)
PARSER = json.JSONDecoder(parse_float=Decimal, parse_int=Decimal)

# A proof says in words what every JSON parser reads. RFC 8259, section 9: each may limit depth and numbers.
LEVELS = 100
LARGEST = 307  # as a power of ten: beyond it a double ends

# One record with everything that could be written in another way.
PROBE: dict[str, Any] = {
    "id": UUID(int=0x0198C0DE_0000_7000_8000_000000000001),
    "tenant_id": UUID(int=0x0198C0DE_0000_7000_8000_000000000002),
    "occurred_at": datetime(2031, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
    "user_id": UUID(int=0),
    "action_type": "update",
    "table_name": "",
    "record_id": None,
    "old_values": '{"bb": [1.50, -0.001, true, null, {}, []],'
    ' "a": "\\"\\\\\\b\\f\\n\\r\\t\\u0001\\u007f/é\\ud83d\\ude00"}',
    "new_values": '{"é": 1e3, "zz": -12345678901234567890.120, "": 0}',
    "changed_columns": ["", "NULL", 'a"b\\c,{}', "é"],
    "reason": "é\t'",
    "request_id": None,
    "source_ip": ipaddress.ip_interface("2001:db8::1/64"),
    "transaction_id": (1 << 40) + 1,
}
PROBE_SQL = (
    "select pg_catalog.record_send(row("
    + ", ".join(f"${place}::{kind}" for place, kind in enumerate(COLUMNS.values(), 1))
    + "))"
)


def encode(record: Mapping[str, Any]) -> bytes:
    """The canonical bytes of a record: columns by name, as asyncpg gives them (JSON as its text)."""
    parts = [struct.pack("!I", len(COLUMNS))]
    for column, kind in COLUMNS.items():
        value = record[column]
        number = struct.pack("!I", TYPES[kind])
        if value is None:
            parts += (number, NULL)
        else:
            data = _WRITERS[kind](value)
            parts += (number, struct.pack("!i", len(data)), data)
    return b"".join(parts)


def decode(data: bytes) -> dict[str, Any]:
    """What the bytes say, column by column, in types that JSON has. Raises ``ChartholdError`` for any other bytes."""
    values: dict[str, Any] = {}
    try:
        good = struct.unpack_from("!I", data) == (len(COLUMNS),)
        at = 4
        for column, kind in COLUMNS.items():
            number, length = HEADER.unpack_from(data, at)
            at += HEADER.size
            field = None if length < 0 else data[at : at + length]
            good = good and number == TYPES[kind] and (field is None or len(field) == length)
            values[column] = None if field is None else _READERS[kind](field)
            at += max(length, 0)
    except (ValueError, struct.error):
        good = False
    if not good or at != len(data):
        raise ChartholdError("These bytes are not a record in canonical form, version 1.")
    return values


def jsonb_text(document: str) -> str:
    r"""A JSON document in canonical form: keys by length in UTF-8 and then by bytes, `, ` and `: ` between, numbers in
    plain decimals with the digits that they were given with, and the seven short escapes and ``\u00xx`` below space.
    """
    return write_jsonb(parse_jsonb(document))


def parse_jsonb(document: str) -> Any:
    """A JSON document as Python values, numbers as ``Decimal``. Raises ``ValueError`` when it is none.

    Threat: whoever may write a row nests a document as deep as PostgreSQL allows, which is deeper than Python's parser
    goes, and nobody seals or reads the log again. So no depth is too deep here and in ``write_jsonb``.
    """
    try:
        return PARSER.decode(document)
    except RecursionError:
        return _parse_deep(document)


def write_jsonb(value: Any) -> str:
    """The canonical text of what ``parse_jsonb`` returns."""
    parts: list[str] = []
    # A stack of our own, of what is still to be written of each open value and how it ends.
    opened: list[tuple[Iterator[tuple[str, Any]], str]] = [(iter([("", value)]), "")]
    while opened:
        items, end = opened[-1]
        for before, item in items:
            if isinstance(item, dict):
                parts += (before, "{")
                opened.append((_members(item), "}"))
                break
            if isinstance(item, list):
                parts += (before, "[")
                opened.append((_elements(item), "]"))
                break
            parts += (before, _scalar(item))
        else:
            parts.append(end)
            opened.pop()
    return "".join(parts)


def _members(value: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    comma = ""
    # PostgreSQL keeps an object's keys in this order, which spares a comparison when the lengths differ.
    for key in sorted(value, key=lambda key: (len(key.encode()), key.encode())):
        yield f"{comma}{_scalar(key)}: ", value[key]
        comma = ", "


def _elements(value: list[Any]) -> Iterator[tuple[str, Any]]:
    comma = ""
    for item in value:
        yield comma, item
        comma = ", "


def _scalar(value: Any) -> str:
    if isinstance(value, Decimal):
        return f"{abs(value) if value.is_zero() else value:f}"
    return SCALAR.encode(value)


def _parse_deep(document: str) -> Any:
    """What ``PARSER.decode`` does, slower and with a stack of its own."""
    opened: list[tuple[Any, str]] = []  # the objects and arrays around this place, and the key that each is at
    at = _behind_space(document, 0)
    while True:
        # Here a value begins.
        if (first := document[at : at + 1]) in ("{", "["):
            value: Any = {} if first == "{" else []
            at = _behind_space(document, at + 1)
            if document[at : at + 1] != ("}" if first == "{" else "]"):
                key, at = _key(document, at) if first == "{" else ("", at)
                opened.append((value, key))
                continue
            at += 1
        else:
            value, at = PARSER.raw_decode(document, at)
        # Here it ended, and perhaps others with it.
        at = _behind_space(document, at)
        while opened:
            holder, key = opened.pop()
            is_object = isinstance(holder, dict)
            if is_object:
                holder[key] = value
            else:
                holder.append(value)
            mark, at = document[at : at + 1], _behind_space(document, at + 1)
            if mark == ",":
                key, at = _key(document, at) if is_object else ("", at)
                opened.append((holder, key))
                break
            if mark != ("}" if is_object else "]"):
                raise ValueError("This is not a JSON document.")
            value = holder
        else:
            if at < len(document):
                raise ValueError("This is not a JSON document.")
            return value


def _key(document: str, at: int) -> tuple[str, int]:
    """The key at this place, and where its value begins."""
    if document[at : at + 1] != '"':
        raise ValueError("This is not a JSON document.")
    key, at = PARSER.raw_decode(document, at)
    at = _behind_space(document, at)
    if document[at : at + 1] != ":":
        raise ValueError("This is not a JSON document.")
    return key, _behind_space(document, at + 1)


def _behind_space(document: str, at: int) -> int:
    while at < len(document) and document[at] in " \t\n\r":
        at += 1
    return at


def _write_inet(value: Any) -> bytes:
    address = ipaddress.ip_interface(value)
    family = 2 if address.version == 4 else 3
    return bytes((family, address.network.prefixlen, 0, len(address.packed))) + address.packed


def _write_array(values: list[str | None]) -> bytes:
    if not values:
        return struct.pack("!IiI", 0, 0, TYPES["text"])
    parts = [struct.pack("!IiIii", 1, None in values, TYPES["text"], len(values), 1)]
    for value in values:
        data = None if value is None else value.encode()
        parts.append(NULL if data is None else struct.pack("!i", len(data)) + data)
    return b"".join(parts)


def _read_jsonb(data: bytes) -> Any:
    """The document, or its text when some JSON parsers would not read it: a proof must be readable by any."""
    text = data[1:].decode()
    return json.loads(text) if _is_common(parse_jsonb(text)) else text


def _is_common(value: Any) -> bool:
    items = [value]
    for _ in range(LEVELS + 1):
        if any(isinstance(item, Decimal) and item.adjusted() > LARGEST for item in items):
            return False
        holders = [item for item in items if isinstance(item, dict | list)]
        items = [item for holder in holders for item in (holder.values() if isinstance(holder, dict) else holder)]
        if not holders:
            return True
    return False


def _read_inet(data: bytes) -> str:
    address = ipaddress.ip_address(data[4:])
    return str(address) if data[1] == address.max_prefixlen else f"{address}/{data[1]}"


def _read_array(data: bytes) -> list[str | None]:
    if data[:4] == b"\0\0\0\0":
        return []
    values: list[str | None] = []
    (count,) = struct.unpack_from("!i", data, 12)
    at = 20
    for _ in range(count):
        (length,) = struct.unpack_from("!i", data, at)
        at += 4 + max(length, 0)
        values.append(None if length < 0 else data[at - length : at].decode())
    return values


_WRITERS: dict[str, Any] = {
    "uuid": lambda value: value.bytes,
    "timestamptz": lambda value: struct.pack("!q", (value - EPOCH) // MICROSECOND),
    "text": str.encode,
    "jsonb": lambda value: b"\x01" + jsonb_text(value).encode(),
    "text[]": _write_array,
    "inet": _write_inet,
    "int8": lambda value: struct.pack("!q", value),
}
_READERS: dict[str, Any] = {
    "uuid": lambda data: str(UUID(bytes=data)),
    "timestamptz": lambda data: (EPOCH + struct.unpack("!q", data)[0] * MICROSECOND).isoformat(),
    "text": bytes.decode,
    "jsonb": _read_jsonb,
    "text[]": _read_array,
    "inet": _read_inet,
    "int8": lambda data: struct.unpack("!q", data)[0],
}
