-- Keeps charthold.tenant_directory, where find_tenant() looks, and charthold.principal in step with public.tenant.
-- They cannot read public.tenant itself: its policies call scope().
create function charthold.follow_tenant() returns trigger
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    if tg_op = 'DELETE' then
        delete from charthold.tenant_directory where tenant_id = old.id;
        return null;
    end if;
    -- Most changes of a tenant, such as of its settings, change nothing there; and follow_user() may hold that row.
    if tg_op = 'UPDATE' and (new.slug, new.status, new.retention_years)
        is not distinct from (old.slug, old.status, old.retention_years)
    then
        return null;
    end if;
    insert into charthold.tenant_directory (tenant_id, slug, status, retention_years)
    values (new.id, new.slug, new.status, new.retention_years)
    on conflict (tenant_id) do update
    set slug = excluded.slug, status = excluded.status, retention_years = excluded.retention_years;
    -- The users of a tenant that closes, or opens again, follow at once.
    update charthold.principal set tenant_open = new.status in ('trial', 'active')
    where tenant_id = new.id and tenant_open is distinct from (new.status in ('trial', 'active'));
    return null;
end
$$
