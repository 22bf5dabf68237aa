-- The tenant that the token names, not verified: for a policy that only finds the index, beside one that verifies. Without
-- a token charthold.scope() says so.
create function charthold.claimed_tenant() returns uuid
    language sql stable parallel restricted
as $$
    select coalesce(
        nullif(pg_catalog.substr(pg_catalog.current_setting('charthold.scope', true), 93, 36), '')::pg_catalog.uuid,
        charthold.tenant_id()
    )
$$
