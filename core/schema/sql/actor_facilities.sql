-- The facilities that the open scope's user is bound to; null for one who sees the whole tenant.
create function charthold.actor_facilities() returns uuid[]
    language sql stable parallel unsafe
as $$
    select nullif(pg_catalog.split_part(pg_catalog.substr(charthold.scope(), 147), pg_catalog.chr(31), 1), '')::pg_catalog.uuid[]
$$
