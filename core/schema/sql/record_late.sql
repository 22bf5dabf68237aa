-- Records, for a token that was signed for it, what its user was shown, or took away, in a transaction that was rolled back,
-- even if the user was locked meanwhile, or the tenant suspended, which may be why it was rolled back. And that somebody
-- failed to log in as that user, who may be locked for it.
--
-- Threat: a user who will soon be locked reads in a transaction and lets it fail. So no scope is asked for, only that the
-- token holds; and what is written is about that user alone, whatever role the user has by now. The log's own policies want
-- a scope all the same: one that changes nothing (charthold.other_scope()), of which nothing may be left, whatever fails.
create function charthold.record_late(
    token text, action text, about_table text, ids uuid[], opened text[], said jsonb
) returns bigint
    language plpgsql volatile parallel unsafe security definer
    set search_path = pg_catalog, pg_temp
    set debug_print_parse = off
    set debug_print_rewritten = off
    set debug_print_plan = off
as $$
declare
    said_by_scope constant text := substr(token, 165);
    tenant uuid;
    actor uuid;
    hurried uuid;
    written bigint;
begin
    if action is null or action not in ('read', 'search', 'audit_read', 'export', 'login_failed')
        or action <> 'read' and cardinality(ids) is distinct from 1
        or action in ('read', 'login_failed') and said is not null
    then
        raise exception using errcode = 'CH014', message = 'that kind of record is not written late';
    end if;
    if charthold.is_large(said) or pg_column_size(opened) > 100000 or octet_length(about_table) > 200 then
        perform charthold.refuse_large();
    end if;
    -- In an emergency the token names that in the user's place.
    hurried := (select e.user_id from charthold.emergency_of(token) as e);
    if not charthold.token_holds(token) or hurried is null and substr(token, 129, 4) = 'emer' then
        perform charthold.refuse_scope(token);
    end if;
    tenant := substr(token, 93, 36);
    actor := coalesce(hurried, substr(token, 129, 36)::uuid);
    perform set_config(
        'charthold.scope', charthold.sign_as(tenant, 'late' || replace(actor::text, '-', ''), 'record late'), true
    );
    -- Only of a failed login it is not known yet that there is such a user. And whoever may lock app_user could hold up the
    -- record: so no statement names that table that is run for another kind of record.
    if action = 'login_failed' then
        if not exists (select from public.app_user as u where u.tenant_id = tenant and u.id = actor) then
            raise exception using errcode = 'CH023', message = 'the tenant has no such user';
        end if;
    end if;
    insert into public.user_action_audit_log (
        id, tenant_id, user_id, action_type, table_name, record_id, new_values, changed_columns,
        request_id, source_ip, reason
    )
    select charthold.uuid7(), tenant, actor, action, about_table, row_id, said,
        -- One dimension, counted from 1, as the canonical form has it.
        string_to_array(array_to_string(opened, ','), ','),
        nullif(split_part(said_by_scope, chr(31), 1), ''), nullif(split_part(said_by_scope, chr(31), 2), '')::inet,
        case when hurried is not null then 'break-glass: ' else '' end || split_part(said_by_scope, chr(31), 3)
    from unnest(ids) as row_id
    where row_id is not null or action <> 'read';
    get diagnostics written = row_count;
    perform charthold.forget_scope();
    return written;
exception when query_canceled or assert_failure or others then
    -- What a session remembers is not undone with the rows.
    perform charthold.forget_scope();
    raise;
end
$$
