-- The user of the open scope.
create function charthold.actor_id() returns uuid
    language sql stable parallel unsafe
as $$
    select pg_catalog.substr(charthold.scope(), 54, 36)::pg_catalog.uuid
$$
