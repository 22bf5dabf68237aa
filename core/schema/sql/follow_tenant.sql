-- Keeps charthold.tenant_directory, where scope() and find_tenant() look, in step with public.tenant.
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
    insert into charthold.tenant_directory (tenant_id, slug, status) values (new.id, new.slug, new.status)
    on conflict (tenant_id) do update set slug = excluded.slug, status = excluded.status;
    return null;
end
$$
