-- The tenant of the open scope, for a user who sees all of it; null for one who is bound to facilities. A policy that asks
-- this first answers for the common case with one check.
create function charthold.tenant_everywhere() returns uuid
    language plpgsql stable parallel restricted
    set search_path = pg_catalog, pg_temp
as $$
declare
    s constant text := charthold.scope();
begin
    return case when substr(s, 10, 1) = ' ' then substr(s, 11, 36)::uuid end;
end
$$
