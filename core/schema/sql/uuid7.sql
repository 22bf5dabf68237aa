-- One UUIDv7 for what the database makes itself, a row at a time; PostgreSQL has its own only from version 18.
create function charthold.uuid7() returns uuid
    language sql volatile parallel restricted
as $$
    select (charthold.uuid7_start() operator(pg_catalog.||) pg_catalog.lpad(pg_catalog.to_hex(
        (pg_catalog.random() operator(pg_catalog.*) 16777215)::pg_catalog.int4
    ), 6, '0'))::pg_catalog.uuid
$$
