-- UUIDv7 (RFC 9562, section 5.7) for rows that the database makes itself; PostgreSQL has its own only from version 18.
-- Every name is qualified instead of pinning search_path, so that the planner inlines it: it runs once a record.
create function charthold.uuid7() returns uuid
    language sql volatile parallel safe
as $$
    select pg_catalog.encode(
        pg_catalog.set_bit(pg_catalog.set_bit(pg_catalog.overlay(
            pg_catalog.uuid_send(pg_catalog.gen_random_uuid()),
            pg_catalog.substr(pg_catalog.int8send(
                (pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()) operator(pg_catalog.*) 1000)::pg_catalog.int8
            ), 3),
            1, 6
        ), 52, 1), 53, 1),
        'hex'
    )::pg_catalog.uuid
$$
