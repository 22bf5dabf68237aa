-- The facilities that the open scope's user is bound to, each behind its tenant, as tenant_as() says why.
-- Null for a user who sees the whole tenant.
create function charthold.actor_places() returns text[]
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    s constant text := charthold.scope();
    facilities constant uuid[] := nullif(split_part(substr(s, 135), chr(31), 1), '');
begin
    return (select array_agg(substr(s, 18, 36) || facility::text) from unnest(facilities) as facility);
end
$$
