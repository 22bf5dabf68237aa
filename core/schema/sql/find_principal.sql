-- An active user of the tenant with that role, for commands that name no actor; preferably one who sees the whole tenant.
--
-- Threat: it answers before a scope exists, so it would tell a stranger who works at a clinic. Only the owner may call it.
create function charthold.find_principal(tenant uuid, wanted text) returns uuid
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select p.user_id from charthold.principal as p
        where p.tenant_id = tenant and p.role = wanted
            and (p.locked_until is null or p.locked_until <= clock_timestamp())
        order by p.facility_scope is not null, p.user_id limit 1
    );
end
$$
