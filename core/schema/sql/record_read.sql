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
    written bigint;
begin
    if ids is null then
        return 0;
    end if;
    s := charthold.scope();
    insert into public.user_action_audit_log (
        tenant_id, user_id, action_type, table_name, record_id, changed_columns, request_id, source_ip, reason
    )
    select substr(s, 11, 36)::uuid, substr(s, 47, 36)::uuid, 'read', shown, row_id, opened,
        nullif(split_part(substr(s, 83), chr(31), 2), ''),
        nullif(split_part(substr(s, 83), chr(31), 3), '')::inet,
        split_part(substr(s, 83), chr(31), 4)
    from unnest(ids) as row_id
    where row_id is not null;
    get diagnostics written = row_count;
    return written;
end
$$
