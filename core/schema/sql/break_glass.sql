-- Lets a clinician who is bound to facilities read one client's chart wherever it is, for some minutes, 164.312(a)(2)(ii).
-- Returns the emergency: it stands in a token in the user's place (charthold.emergency_of()).
--
-- Threat: whoever may break the glass breaks it for everybody, for ever, or unseen. It is one client, named by id, for four
-- hours at most; it changes nothing; what it shows is recorded as any reading is, with a reason that says so; and the
-- emergency itself stands in the log of the client and in a table that nobody can write, to be reviewed.
create function charthold.break_glass(client uuid, why text, minutes integer, out id uuid, out until timestamptz)
    language plpgsql volatile parallel unsafe security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    s constant text := charthold.scope();
    tenant constant uuid := substr(s, 18, 36);
    actor constant uuid := substr(s, 54, 36);
    began constant timestamptz := clock_timestamp();
    broken text;
begin
    perform charthold.check_emergency(s, minutes);
    id := charthold.uuid7();
    until := began + make_interval(mins => minutes);
    begin
        insert into public.emergency_access (id, tenant_id, user_id, client_id, reason, until, created_at)
        values (id, tenant, actor, client, why, until, began);
    exception when foreign_key_violation then
        -- Where there are policies PostgreSQL does not say which id it was, and a detail would be shown. The caller gave it;
        -- Python records it, from a field that nobody prints.
        get stacked diagnostics broken = constraint_name;
        raise exception using errcode = 'foreign_key_violation', message = sqlerrm, constraint = broken, column = client;
    end;
    insert into charthold.emergency (id, tenant_id, user_id, client_id, until) values (id, tenant, actor, client, until);
    insert into public.user_action_audit_log (
        id, tenant_id, user_id, action_type, table_name, record_id, new_values, request_id, source_ip, reason
    )
    values (
        charthold.uuid7(), tenant, actor, 'break_glass', 'client', client,
        jsonb_build_object('emergency', id, 'until', until),
        nullif(split_part(s, chr(31), 2), ''), nullif(split_part(s, chr(31), 3), '')::inet, why
    );
end
$$
