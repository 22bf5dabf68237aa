-- HMAC-SHA-256 (RFC 2104), in hexadecimal digits, under a key that is given as its two padded blocks.
-- Every name is qualified instead of pinning search_path, so that the planner inlines it.
create function charthold.hmac(inner_pad bytea, outer_pad bytea, message bytea) returns text
    language sql stable parallel safe
as $$
    select pg_catalog.encode(pg_catalog.sha256(outer_pad operator(pg_catalog.||) pg_catalog.sha256(
        inner_pad operator(pg_catalog.||) message
    )), 'hex')
$$
