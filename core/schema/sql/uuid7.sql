-- UUIDv7 (RFC 9562, section 5.7) for records that the database makes itself; PostgreSQL has its own only from version 18.
-- An id must be unique, not secret, so it comes from a hash of what no two records share, the moment in microseconds, the
-- backend and the backend's generator, instead of from the kernel's: a system call a record costs as much as an index.
-- Every name is qualified instead of pinning search_path, so that the planner inlines it: it runs once a record.
create function charthold.uuid7() returns uuid
    language sql volatile parallel restricted
as $$
    select pg_catalog.overlay(pg_catalog.overlay(
        pg_catalog.encode(pg_catalog.substr(pg_catalog.sha256(
            pg_catalog.float8send(pg_catalog.random())
                operator(pg_catalog.||) pg_catalog.timestamptz_send(pg_catalog.clock_timestamp())
                operator(pg_catalog.||) pg_catalog.int4send(pg_catalog.pg_backend_pid())
        ), 1, 16), 'hex'),
        pg_catalog.lpad(pg_catalog.to_hex(
            (pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()) operator(pg_catalog.*) 1000)::pg_catalog.int8
        ), 12, '0') operator(pg_catalog.||) '7', 1, 13),
        'a', 17, 1
    )::pg_catalog.uuid
$$
