-- Whether the open scope's user sees the whole tenant, and is not bound to facilities.
create function charthold.actor_everywhere() returns boolean
    language sql stable parallel unsafe
as $$
    select pg_catalog.substr(charthold.scope(), 146, 1) operator(pg_catalog.=) ' '
$$
