-- Records that rows of a table were shown, one record a row, and returns how many. The statement that shows them calls
-- this; when it fails the statement fails, so nothing is shown that is not recorded.
--
-- Threat: it writes to the log as its owner. It writes one kind of record, about the caller and the caller's tenant.
--
-- One statement does nearly all: each expression of a function is prepared anew in each transaction, which costs more
-- than to evaluate it.
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
        id, tenant_id, user_id, action_type, table_name, record_id, changed_columns, request_id, source_ip, reason,
        transaction_id
    )
    select
        (made || lpad(to_hex(n), 6, '0'))::uuid, tenant, actor, 'read', shown, row_id, columns, request, source, why, xid
    from (
        select
            case when octet_length(shown) > 200 or pg_column_size(opened) > 100000
                then charthold.refuse_large() else substr(s, 18, 36)::uuid
            end as tenant,
            substr(s, 54, 36)::uuid as actor,
            nullif(split_part(s, chr(31), 2), '') as request,
            nullif(split_part(s, chr(31), 3), '')::inet as source,
            split_part(s, chr(31), 4) as why,
            pg_current_xact_id()::text::bigint as xid,
            -- One dimension, counted from 1, as the canonical form has it.
            string_to_array(array_to_string(opened, ','), ',') as columns,
            charthold.uuid7_start() as made
        offset 0  -- once, not for each row
    ) as who, unnest(ids) with ordinality as rows (row_id, n)
    where row_id is not null;
    get diagnostics written = row_count;
    return written;
end
$$
