"""PHI coverage: every column is encrypted, no PHI, or waived with a reason; and a sample of raw values confirms it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import asyncpg
from piccolo.columns import Column
from piccolo.table import Table

from core.audit.canonical import parse_jsonb, write_jsonb
from core.columns import BlindIndex, CreatedAt, Encrypted, Inet, TenantForeignKey
from core.doctor.check import Notes, check
from core.doctor.identifiers import IDENTIFIERS, looks_like, shapes_in
from core.doctor.live import LOG, Live
from core.plural import plural
from core.schema.quoting import qualified, quote_ident

__all__ = ["Classified", "classify"]

Class = Literal["encrypted", "blind index", "not PHI", "waived", "unclassified"]

SAMPLE = 200  # values a column
ENVELOPE = re.compile(r"\\x01[0-9a-f]+")
TEXTS = ("text", "character varying", "json", "jsonb", "text[]", "inet")
# A document can hold anything, whatever it is called.
DOCUMENTS = ("json", "jsonb")
CODES = ("uuid", "uuid[]", "boolean", "charthold.envelope")


@dataclass(frozen=True)
class Classified:
    """One column: what it is, why, and which identifier it holds or looks like."""

    table: str
    column: str
    type: str
    kind: Class
    identifier: str | None
    reason: str


def classify(name: str, table: type[Table], types: Mapping[str, str]) -> Iterator[Classified]:
    """Every column of a registered table: the declared ones, and those that only the database has."""
    waived: Mapping[str, str] = getattr(table, "waived", {})
    declared = {column._meta.db_column_name: column for column in table._meta.columns}
    about_people = any(isinstance(column, Encrypted | TenantForeignKey) for column in declared.values())
    for column in [*declared, *(c for c in types if c not in declared)]:
        kind = types.get(column, "missing")
        identifier, why = _identifier(column, declared.get(column), kind, about_people=about_people)
        said: Class = "unclassified" if identifier else "not PHI"
        if isinstance(of := declared.get(column), Encrypted):
            said, identifier, why = "encrypted", of.identifier or None, "sealed with the tenant's key"
        elif isinstance(of, BlindIndex):
            said, identifier, why = "blind index", None, f"a keyed hash of {', '.join(of.of)}, {of.spec.kind}"
        elif waived.get(column, "").strip():
            said, why = "waived", waived[column]
        yield Classified(name, column, kind, said, identifier, why)


def _identifier(column: str, declared: Column | None, kind: str, *, about_people: bool) -> tuple[str | None, str]:
    """What the column looks like, by its type and by its name; and why."""
    if kind in CODES or isinstance(declared, CreatedAt):
        return None, "made by Charthold, not out of the person" if kind != "boolean" else "yes or no"
    if kind == "inet" or isinstance(declared, Inet):
        return "ip", "its type holds IP addresses"
    if kind in DOCUMENTS:
        return looks_like(column) or "other", "a document can hold anything"
    if kind == "date":
        return "date", "its type holds dates"
    if kind.startswith("timestamp"):
        # The hour at which a person was seen is a date of the person; that at which a program ran is nobody's.
        of_person = about_people or looks_like(column) == "date"
        return ("date", "a time in a table about people") if of_person else (None, "a time, of a program or a user")
    if identifier := looks_like(column):
        return identifier, f"its name suggests: {IDENTIFIERS[identifier].title.lower()}"
    return None, f"{kind}, and its name suggests none of the eighteen"


@check("164.312(a)(2)(iv)")
async def phi_columns(live: Live, notes: Notes) -> None:
    """Every column of every registered table against the eighteen identifiers of 164.514(b)(2)."""
    found: list[Classified] = []
    for name, table in live.declared().items():
        info = live.relations.get(name)
        if info is None:
            continue
        found += classify(name, table, info.type_of)
        names = {*info.columns, *(column._meta.db_column_name for column in table._meta.columns)}
        for column, reason in getattr(table, "waived", {}).items():
            if column not in names or not reason.strip():
                why = "without a reason" if column in names else "which it does not have"
                notes.fail(
                    f"{table.__name__} waives {column}, {why}.",
                    subject=f"waiver {name}.{column}",
                    mend=f'{table.__name__}.waived = {{"{column}": "..."}}: say why it is no PHI, or take it out.',
                )
    live.shown["phi"] = found
    for item in found:
        if item.kind == "encrypted" and item.identifier not in IDENTIFIERS:
            notes.warn(
                f"{item.table}.{item.column} is encrypted, and does not say which identifier it holds.",
                subject=f"column {item.table}.{item.column}",
                mend=f"Give it identifier=..., one of {', '.join(IDENTIFIERS)}.",
            )
        if item.kind == "unclassified":
            assert item.identifier is not None
            identifier = IDENTIFIERS[item.identifier]
            notes.fail(
                f"{item.table}.{item.column} looks like 164.514(b)(2)(i)({identifier.letter}), "
                f"{identifier.title.lower()}: {item.reason}. It is stored in plaintext.",
                subject=f"column {item.table}.{item.column}",
                mend=f'Make it Encrypted(identifier="{item.identifier}"), or say on the table why it is no PHI: '
                f'waived = {{"{item.column}": "reason"}}.',
            )
    counts = Counter(item.kind for item in found)
    notes.seen(
        f"{plural(len(found), 'column')} of {plural(len({i.table for i in found}), 'table')}: {counts['encrypted']} "
        f"encrypted, {counts['blind index']} blind indexes of these, {counts['not PHI']} no PHI by name and type, "
        f"{counts['waived']} waived with a reason."
    )


@check("164.312(a)(2)(iv)")
async def raw_values(live: Live, notes: Notes) -> None:
    """Threat: a number in a field for codes. A sample is searched for the shapes of SSN, e-mail, telephone and date."""
    classes = {
        (name, item.column): item
        for name, table in live.declared().items()
        if name in live.relations
        for item in classify(name, table, live.relations[name].type_of)
    }
    looked, values = 0, 0
    slow: list[str] = []
    for (name, column), item in classes.items():
        if item.type not in TEXTS or item.kind in ("encrypted", "blind index") or (name, column) in COPIES:
            continue
        try:
            rows = await _sample(live, name, column)
        except asyncpg.QueryCanceledError:
            slow.append(f"{name}.{column}")
            continue
        looked, values = looked + 1, values + len(rows)
        shapes = Counter(shape for text in rows for shape in shapes_in(text) - _own(item))
        for shape, count in sorted(shapes.items()):
            notes.fail(
                f"The shape of {IDENTIFIERS[shape].title.lower()}: {count} of {plural(len(rows), 'sampled value')} in "
                f"{name}.{column}.",
                subject=f"column {name}.{column}",
                mend="Look at them as the owner, move them into an encrypted column, and rotate nothing: "
                "the plaintext stays in backups until they expire.",
            )
    records = await _log_values(live, classes, notes)
    if slow:
        notes.incomplete(f"The sample of {', '.join(slow[:3])}{f' and {len(slow) - 3} more' if slow[3:] else ''}")
    seen = [f"{plural(values, 'value')} in {plural(looked, 'plain column')}"] if looked else []
    seen += [] if records is None else [f"the values in {plural(records, 'record')} of the log"]
    if seen:
        notes.end(
            f"{', and '.join(seen)}: none has the shape of an identifier that its column does not declare"
            f"{live.unseen()}."
        )


COPIES = {(LOG, "old_values"), (LOG, "new_values")}


def _own(item: Classified) -> set[str]:
    """The shapes that a column may hold, because somebody waived just that."""
    return {item.identifier} if item.kind == "waived" and item.identifier else set()


async def _sample(live: Live, table: str, column: str) -> list[str]:
    place, info = qualified(table), live.relations[table]
    # Of a big table some pages are enough, and all that time allows.
    some = f"tablesample system ({max(0.01, 100 * SAMPLE * 4 / info.estimate):.4f})" if info.estimate > 50_000 else ""
    what = quote_ident(column)
    pinned = "id" if table == "public.tenant" else "tenant_id"
    bound = f"($1::uuid is null or {pinned} = $1)" if pinned in info.columns else "($1::uuid is null or true)"
    rows = await live.ask(
        f"select {what}::text as value from {place} {some} where {bound} and {what} is not null limit {SAMPLE}"
    )
    return [row["value"] for row in rows][: SAMPLE * 5]


LATEST = """select table_name, old_values::text as old, new_values::text as new
from public.user_action_audit_log
where ($1::uuid is null or tenant_id = $1) and occurred_at > now() - interval '31 days'
    and action_type in ('insert', 'update', 'delete') order by occurred_at desc limit 500"""


async def _log_values(live: Live, classes: Mapping[tuple[str, str], Classified], notes: Notes) -> int | None:
    """The log's copies: of an encrypted column an envelope, of any other what the column itself may hold."""
    rows = await live.ask_or_warn(notes, "The sample of the log", LATEST)
    if rows is None:
        return None
    bad: Counter[tuple[str, str, str]] = Counter()
    for row in rows:
        for side in (row["old"], row["new"]):
            for column, value in (parse_jsonb(side) if side else {}).items():
                item = classes.get((f"public.{row['table_name']}", column))
                if item is None or value is None or item.type not in (*TEXTS, "charthold.envelope"):
                    continue
                text = value if isinstance(value, str) else write_jsonb(value)
                if item.kind == "encrypted":
                    if not ENVELOPE.fullmatch(text):
                        bad[row["table_name"], column, "plaintext"] += 1
                    continue
                for shape in shapes_in(text) - _own(item):
                    bad[row["table_name"], column, IDENTIFIERS[shape].title.lower()] += 1
    for (table, column, what), count in sorted(bad.items()):
        notes.fail(
            f"The log holds {what} for {table}.{column}: {count} of {plural(len(rows), 'sampled record')}.",
            subject=f"column {LOG} {table}.{column}",
            mend="The log is never rewritten: find out what wrote it, and who may read it until it is archived.",
        )
    return len(rows)
