"""The trigger functions that write the audit log, generated from a table's columns.

Threat: what only Python records, raw SQL does not. So the database writes the records, in the statement that they are
about. Inserts and deletes are captured once a statement, from its transition table; updates once a row: a few columns
are compared together, and one by one only when any of them changed, which is many times cheaper than comparing two
JSON documents. PHI is recorded as the envelope that it is.

Threat: the scope of another tenant is set between a policy and the trigger, and the record names a stranger. So a
change of a row of another tenant than the scope's is refused. The table of tenants is not asked: its rows are made by
the schema's owner, perhaps several at once.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType

from core.schema import Function, Trigger
from core.schema.quoting import quote_ident

__all__ = ["capture_function", "capture_triggers"]

# Who, in which request, from where, why and in which transaction: out of what charthold.scope() returned. It stands in
# the INSERT, not in variables: each expression of a function is prepared anew in each transaction.
WHO_COLUMNS = "user_id, request_id, source_ip, reason, transaction_id"
WHO = """substr(s, 54, 36)::uuid, nullif(split_part(s, chr(31), 2), ''),
            nullif(split_part(s, chr(31), 3), '')::inet, split_part(s, chr(31), 4),
            pg_current_xact_id()::text::bigint"""
# The same, once a statement and not once a row.
WHO_ONCE = """(
            select substr(s, 18, 36)::uuid as tenant, substr(s, 54, 36)::uuid as actor,
                nullif(split_part(s, chr(31), 2), '') as request,
                nullif(split_part(s, chr(31), 3), '')::inet as source,
                split_part(s, chr(31), 4) as why, pg_current_xact_id()::text::bigint as xid
            offset 0
        ) as who"""

TOGETHER = 5  # columns that are compared at once, before one by one: few change at a time
# A collation may call "Li" and "LI" equal; this one calls equal what has the same bytes.
BYTES = ' collate "C"'
CHUNK = 40  # a function call takes at most 100 arguments


def capture_function(
    table: str,
    columns: Sequence[str],
    *,
    tenant: str = "tenant_id",
    loose: Collection[str] = (),
    texts: Collection[str] = (),
    indexes: Mapping[str, Sequence[str]] = MappingProxyType({}),
    lengths: Mapping[str, int] = MappingProxyType({}),
    times: Mapping[str, str] = MappingProxyType({}),
) -> Function:
    """The function ``charthold.capture_<table>``; ``columns`` are those whose values are recorded.

    ``loose``: those of them whose types call values equal that are not the same, as JSON does 1 and 1.0, and an
    interval a month and 30 days. ``texts``: those that may have a collation of which the same is true.
    ``indexes``: the blind indexes, and what each is made of. Their hashes are not recorded, so none may change by
    itself, and the record of an update names those that changed. ``lengths``: how many bytes each has. ``times``: the
    columns that are dates or timestamps, with their types.
    """
    name, written = f"charthold.capture_{table}", f"charthold.{quote_ident(f'capture_{table}')}"
    if re.fullmatch(r"[a-z_][a-z0-9_]*", table):
        written = name
    chunks = [columns[start : start + TOGETHER] for start in range(0, len(columns), TOGETHER)]
    read_as = dict.fromkeys(texts, BYTES) | dict.fromkeys(loose, f"::text{BYTES}")
    changes = "\n".join(_changed(chunk, read_as, loose) for chunk in chunks)
    # These are kept by triggers once the row is there.
    moving = {column: kind for column, kind in times.items() if column not in ("created_at", "updated_at")}
    if indexes or moving:
        changes += "\n" + _guarded(indexes, lengths, moving)

    unreadable = " or ".join(filter(None, (_unreadable("r", lengths, times), _swollen("r", loose))))

    def pinned(row: str, scoped: str, *, large: str, unreadable: str = "") -> str:
        key = f"{row}.{quote_ident(tenant)}"
        cases = f"when {unreadable} then charthold.refuse_unreadable() " if unreadable else ""
        cases += f"when {large} then charthold.refuse_large() "
        if tenant == "id":
            return f"case {cases}else {key} end"
        return f"case {cases}when {key} = {scoped} then {key} else charthold.refuse_stranger() end"

    # No text is made of what is small in memory: 8,000 bytes of a document are two megabytes of text at most. A row on
    # disk may be compressed, and has columns that are not recorded: so it is the document that is asked.
    both = " or ".join(f"pg_column_size({d}) > 8000 and charthold.is_large({d})" for d in ("before", "after"))
    whole = "pg_column_size(d.whole) > 8000 and charthold.is_large(d.whole)"
    document = f"lateral (select {_document('r', columns)} as whole offset 0) as d"

    source = f"""-- Records what happens to public.{table}. See core/audit/capture.py.
create function {written}() returns trigger
    language plpgsql security definer
    -- How bytes and numbers are written must not be the caller's choice: the log could not be read back.
    set bytea_output = hex
    set extra_float_digits = 1
    set search_path = pg_catalog, pg_temp
as $$
declare
    s constant text := charthold.scope();
    before jsonb := '{{}}';
    after jsonb := '{{}}';
    changed text[] := '{{}}';
begin
    if tg_op = 'INSERT' then
        insert into public.user_action_audit_log
            (tenant_id, action_type, table_name, record_id, new_values, {WHO_COLUMNS})
        select {pinned("r", "who.tenant", large=whole, unreadable=unreadable)}, 'insert', '{table}', r.id,
            d.whole, who.actor, who.request, who.source, who.why, who.xid
        from {WHO_ONCE}, new_rows as r, {document};
    elsif tg_op = 'DELETE' then
        insert into public.user_action_audit_log
            (tenant_id, action_type, table_name, record_id, old_values, {WHO_COLUMNS})
        select {pinned("r", "who.tenant", large=whole)}, 'delete', '{table}', r.id,
            d.whole, who.actor, who.request, who.source, who.why, who.xid
        from {WHO_ONCE}, old_rows as r, {document};
    else
{changes}
        if changed = '{{}}' then
            return null;
        end if;
        insert into public.user_action_audit_log
            (tenant_id, action_type, table_name, record_id, old_values, new_values, changed_columns, {WHO_COLUMNS})
        values (
            {pinned("new", "substr(s, 18, 36)::uuid", large=both)}, 'update', '{table}', new.id,
            before, after, changed,
            {WHO}
        );
    end if;
    return null;
end
$$
"""
    return Function(name=name, signature="()", source=source)


def _guarded(indexes: Mapping[str, Sequence[str]], lengths: Mapping[str, int], times: Mapping[str, str]) -> str:
    """Refuses what nobody could read back, and a blind index that changes while what it is made of does not.

    Threat: whoever writes SQL moves a patient's hashes to another row. Searches then find the wrong patient, and the
    log, which does not hold hashes, says nothing. So they change with their value only; and which of them changed is
    recorded, for a value that is sealed anew under the same key keeps its hashes.
    """
    watched = [*indexes, *times]
    statements = ""
    if indexes:
        each = " or ".join(
            f"({_row('old', [index])}) is distinct from ({_row('new', [index])})"
            f" and ({_row('old', of)}) is not distinct from ({_row('new', of)})"
            for index, of in indexes.items()
        )
        statements += (
            f"            if {each} then\n"
            "                raise exception using errcode = 'CH016',"
            " message = 'a blind index changes with its value only';\n"
            "            end if;\n"
        )
    statements += (
        f"            if {_unreadable('new', lengths, times)} then\n"
        "                perform charthold.refuse_unreadable();\n"
        "            end if;\n"
    )
    if indexes:
        names = ", ".join(
            f"case when {_row('old', [i])} is distinct from {_row('new', [i])} then '{i}' end" for i in indexes
        )
        statements += f"            changed := changed || array_remove(array[{names}]::text[], null);\n"
    return (
        f"        if ({_row('old', watched)}) is distinct from ({_row('new', watched)}) then\n"
        f"{statements}        end if;"
    )


def _unreadable(row: str, lengths: Mapping[str, int], times: Mapping[str, str]) -> str:
    """The condition that a row holds a time beyond Python's, or a hash that has not its index's length."""
    clock = {"date": ("", ""), "timestamp": (" 00:00:00", " 23:59:59.999999")}
    clock["timestamptz"] = " 00:00:00+00", " 23:59:59.999999+00"
    found = [
        f"{row}.{quote_ident(c)} not between {kind} '0001-01-01{clock[kind][0]}'"
        f" and {kind} '9999-12-31{clock[kind][1]}' and isfinite({row}.{quote_ident(c)})"
        for c, kind in times.items()
    ]
    return " or ".join([*found, *(f"octet_length({row}.{quote_ident(c)}) <> {n}" for c, n in lengths.items())])


def _swollen(row: str, documents: Iterable[str]) -> str:
    """The condition that a document of a few bytes is a long text: of the number 1e131071 PostgreSQL keeps ten."""
    cells = [f"{row}.{quote_ident(c)}" for c in documents]
    return " or ".join(
        f"octet_length(to_jsonb({cell})::text) > 200000 + 300 * pg_column_size({cell})::bigint" for cell in cells
    )


def _row(row: str, columns: Iterable[str], read_as: Mapping[str, str] = MappingProxyType({})) -> str:
    return ", ".join(f"{row}.{quote_ident(c)}{read_as.get(c, '')}" for c in columns)


def _changed(columns: Sequence[str], read_as: Mapping[str, str], loose: Collection[str]) -> str:
    """The statements that look for changes among a few columns."""
    rows = [_row(row, columns, read_as) for row in ("old", "new")]
    each = "\n".join(
        f"            if {_row('old', [c], read_as)} is distinct from {_row('new', [c], read_as)} then\n"
        f"                before := before || jsonb_build_object('{c}', old.{quote_ident(c)});\n"
        f"                after := after || jsonb_build_object('{c}', new.{quote_ident(c)});\n"
        f"                changed := changed || '{c}'::text;\n"
        + (
            f"                if {_swollen('new', [c])} then\n"
            "                    perform charthold.refuse_unreadable();\n"
            "                end if;\n"
            if c in loose
            else ""
        )
        + "            end if;"
        for c in columns
    )
    return f"        if ({rows[0]}) is distinct from ({rows[1]}) then\n{each}\n        end if;"


def capture_triggers(table: str) -> tuple[Trigger, ...]:
    """The triggers that call it, and the one that refuses TRUNCATE, which would leave no record."""
    function = f"charthold.capture_{table}"
    return (
        Trigger(
            name="audit_insert",
            timing="after",
            events=("insert",),
            level="statement",
            function=function,
            new_table="new_rows",
        ),
        Trigger(name="audit_update", timing="after", events=("update",), level="row", function=function),
        Trigger(
            name="audit_delete",
            timing="after",
            events=("delete",),
            level="statement",
            function=function,
            old_table="old_rows",
        ),
        Trigger(
            name="audit_truncate",
            timing="before",
            events=("truncate",),
            level="statement",
            function="charthold.refuse_truncate",
        ),
    )


def _document(row: str, columns: Sequence[str]) -> str:
    """A row as JSON, without the columns that are not recorded."""
    chunks = [columns[start : start + CHUNK] for start in range(0, len(columns), CHUNK)] or [()]
    return " || ".join(
        "jsonb_build_object(" + ", ".join(f"'{c}', {row}.{quote_ident(c)}" for c in chunk) + ")" for chunk in chunks
    )
