-- The role of the open scope's user, as it is now.
create function charthold.actor_role() returns text
    language sql stable parallel unsafe
as $$
    select pg_catalog.rtrim(pg_catalog.substr(charthold.scope(), 90, 9))
$$
