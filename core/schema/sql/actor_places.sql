-- The facilities that the open scope's user is bound to, each behind its tenant: two tenants may have facilities of one id.
-- Null for a user who sees the whole tenant.
create function charthold.actor_places() returns text[]
    language plpgsql stable parallel restricted
    set search_path = pg_catalog, pg_temp
as $$
declare
    s constant text := charthold.scope();
    facilities constant uuid[] := nullif(split_part(substr(s, 83), chr(31), 1), '');
begin
    return (select array_agg(substr(s, 11, 36) || facility::text) from unnest(facilities) as facility);
end
$$
