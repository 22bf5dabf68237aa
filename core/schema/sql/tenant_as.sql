-- The tenant of the open scope, if its user has one of these roles; else null.
--
-- Threat: whoever holds two tokens of one backend swaps them within a statement, and is asked for the tenant under the one
-- and for the role under the other. So whatever a policy asks it asks together with the tenant.
create function charthold.tenant_as(variadic roles text[]) returns uuid
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    s constant text := charthold.scope();
begin
    return case when rtrim(substr(s, 90, 9)) = any (roles) then substr(s, 18, 36)::uuid end;
end
$$
