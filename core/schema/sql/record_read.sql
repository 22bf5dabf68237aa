-- Records that rows of a table were shown, one record a row, and returns how many. The statement that shows them calls
-- this; when it fails the statement fails, so nothing is shown that is not recorded.
--
-- Threat: it writes to the log as its owner. It writes one kind of record, about the caller and the caller's tenant.
create function charthold.record_read(shown text, ids uuid[], opened text[]) returns bigint
    language plpgsql volatile parallel unsafe security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    s text;
    tenant uuid;
    actor uuid;
    request text;
    source inet;
    why text;
    xid bigint;
    written bigint;
    -- One dimension, counted from 1, as the canonical form has it.
    columns constant text[] := array(select c from unnest(opened) as c);
begin
    if ids is null then
        return 0;
    end if;
    s := charthold.scope();
    tenant := substr(s, 11, 36);
    actor := substr(s, 47, 36);
    s := substr(s, 83);
    request := nullif(split_part(s, chr(31), 2), '');
    source := nullif(split_part(s, chr(31), 3), '');
    why := split_part(s, chr(31), 4);
    -- Once a statement; as the default of the column it would be worked out for each row.
    xid := pg_current_xact_id()::text;
    insert into public.user_action_audit_log (
        tenant_id, user_id, action_type, table_name, record_id, changed_columns, request_id, source_ip, reason,
        transaction_id
    )
    select tenant, actor, 'read', shown, row_id, columns, request, source, why, xid
    from unnest(ids) as row_id
    where row_id is not null;
    get diagnostics written = row_count;
    return written;
end
$$
