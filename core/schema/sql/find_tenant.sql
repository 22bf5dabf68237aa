-- The id and status of the tenant with that slug: what a login page needs before a scope can exist, and no more.
create function charthold.find_tenant(wanted text) returns table (tenant_id uuid, status text)
    language plpgsql stable security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    return query select d.tenant_id, d.status from charthold.tenant_directory as d where d.slug = wanted;
end
$$
