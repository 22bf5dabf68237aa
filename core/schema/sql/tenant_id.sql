-- The tenant of the open scope. Policies call it as (select charthold.tenant_id()): once a statement, not once a row.
create function charthold.tenant_id() returns uuid
    language sql stable parallel unsafe
as $$
    select pg_catalog.substr(charthold.scope(), 18, 36)::pg_catalog.uuid
$$
