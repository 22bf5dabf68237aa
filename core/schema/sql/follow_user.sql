-- Keeps charthold.principal, where scope() looks, in step with public.app_user: only active users are principals.
create function charthold.follow_user() returns trigger
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    if tg_op <> 'INSERT' then
        delete from charthold.principal where tenant_id = old.tenant_id and user_id = old.id;
    end if;
    if tg_op <> 'DELETE' and new.status = 'active' then
        insert into charthold.principal (tenant_id, user_id, role, facility_scope, tenant_open)
        select new.tenant_id, new.id, new.role, new.facility_scope, d.status in ('trial', 'active')
        from charthold.tenant_directory as d where d.tenant_id = new.tenant_id
        on conflict (tenant_id, user_id) do update
        set role = excluded.role, facility_scope = excluded.facility_scope, tenant_open = excluded.tenant_open;
    end if;
    return null;
end
$$
