-- Keeps charthold.principal, where scope() looks, in step with public.app_user: only active users are principals.
create function charthold.follow_user() returns trigger
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    -- Most changes of a user, such as a login, leave what the user may do as it is.
    if tg_op = 'UPDATE' and (new.tenant_id, new.id, new.status, new.role, new.facility_scope, new.locked_until)
        is not distinct from (old.tenant_id, old.id, old.status, old.role, old.facility_scope, old.locked_until)
    then
        return null;
    end if;
    -- Threat: somebody is made active while the tenant is closed, and stays in. Whichever comes first, the other waits for it.
    perform from charthold.tenant_directory as d where d.tenant_id = coalesce(new.tenant_id, old.tenant_id) for share;
    if tg_op <> 'INSERT' then
        delete from charthold.principal where tenant_id = old.tenant_id and user_id = old.id;
    end if;
    if tg_op <> 'DELETE' and new.status = 'active' then
        insert into charthold.principal (tenant_id, user_id, role, facility_scope, locked_until, tenant_open)
        select new.tenant_id, new.id, new.role, new.facility_scope, new.locked_until, d.status in ('trial', 'active')
        from charthold.tenant_directory as d where d.tenant_id = new.tenant_id
        on conflict (tenant_id, user_id) do update
        set role = excluded.role, facility_scope = excluded.facility_scope, locked_until = excluded.locked_until,
            tenant_open = excluded.tenant_open;
    end if;
    return null;
end
$$
