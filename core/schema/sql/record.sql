-- Records an action that no trigger sees: a login, an export, a key rotation. The kinds that triggers and reads write
-- are refused, so that nobody can forge one.
create function charthold.record(
    action text, about_table text, about_record uuid, old_values jsonb, new_values jsonb
) returns uuid
    language plpgsql volatile parallel unsafe security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    s constant text := charthold.scope();
    made constant uuid := charthold.uuid7();
begin
    if action in ('insert', 'update', 'delete', 'read', 'break_glass') then
        raise exception using errcode = 'CH014', message = 'that kind of record is written by the database alone';
    end if;
    -- As in ACTION_TYPES of core/tables.py.
    if action not in (
        'export', 'login', 'login_failed', 'logout', 'search', 'key_rotation', 'key_shredding',
        'tenant_change', 'audit_read', 'seal'
    ) or action is null then
        raise exception using errcode = 'check_violation', constraint = 'user_action_audit_log_action_known',
            table = 'user_action_audit_log', message = 'there is no such kind of record';
    end if;
    if charthold.is_large(old_values) or charthold.is_large(new_values) or octet_length(about_table) > 200 then
        perform charthold.refuse_large();
    end if;
    -- Threat: anybody declares that a key is gone. (What a verification found is signed.)
    if action in ('key_rotation', 'key_shredding', 'tenant_change') and charthold.actor_role() not in ('admin', 'system')
        or action in ('audit_read', 'seal') and charthold.actor_role() not in ('admin', 'auditor', 'system')
    then
        raise exception using errcode = 'insufficient_privilege', message = format('a record of %s', action);
    end if;
    insert into public.user_action_audit_log (
        id, tenant_id, user_id, action_type, table_name, record_id, old_values, new_values, request_id, source_ip, reason
    )
    values (
        made, substr(s, 18, 36)::uuid, substr(s, 54, 36)::uuid, action, about_table, about_record,
        old_values, new_values,
        nullif(split_part(s, chr(31), 2), ''),
        nullif(split_part(s, chr(31), 3), '')::inet,
        split_part(s, chr(31), 4)
    );
    return made;
end
$$
