-- Whether the version of a row that this transaction looks at has been replaced or deleted since: its xmax committed.
--
-- Threat: in REPEATABLE READ a transaction goes on seeing what its first statement saw, and a cursor what it saw when it was
-- declared, and with it a user who was locked since. The old version of the row says so itself. Its xmax has 32 bits; the
-- nearest 64-bit id is meant. Of a row that an upsert wrote it is the lock of its own writer, and equal to its xmin; nobody
-- else locks the rows that this is asked of.
create function charthold.was_replaced(written_by xid, replaced_by xid) returns boolean
    language sql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
    select replaced_by <> '0'::xid and replaced_by <> written_by and pg_xact_status((
        near + ((replaced_by::text::bigint - near % 4294967296 + 2147483648 + 4294967296) % 4294967296) - 2147483648
    )::text::xid8) = 'committed'
    from (select pg_snapshot_xmax(pg_current_snapshot())::text::bigint as near) as s
$$
