-- The tenant of the open scope, for a user who sees all of it; null for one who is bound to facilities.
create function charthold.tenant_everywhere() returns uuid
    language sql stable parallel unsafe
as $$
    select nullif(pg_catalog.rtrim(pg_catalog.substr(charthold.scope(), 99, 36)), '')::pg_catalog.uuid
$$
