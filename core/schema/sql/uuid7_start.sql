-- The first 26 of the 32 hexadecimal digits of UUIDv7s (RFC 9562, section 5.7) that one statement makes; the rest numbers
-- its rows. An id must be unique, not secret: the millisecond and 1/4096ths of it (section 6.2, method 3), the backend,
-- which no other is at that moment, and twelve random bits, instead of the kernel's random bytes: a system call a record
-- costs as much as an index. One reading of the clock, so that later ids are greater. Every name is qualified instead of
-- pinning search_path, so that the planner inlines it.
create function charthold.uuid7_start() returns text
    language sql volatile parallel restricted
as $$
    select pg_catalog.overlay(pg_catalog.lpad(pg_catalog.to_hex(pg_catalog.floor(
            pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()) operator(pg_catalog.*) 4096000
        )::pg_catalog.int8), 15, '0'), '7', 13, 0)
        operator(pg_catalog.||) 'a'
        operator(pg_catalog.||) pg_catalog.lpad(pg_catalog.to_hex(pg_catalog.pg_backend_pid()), 6, '0')
        operator(pg_catalog.||) pg_catalog.lpad(pg_catalog.to_hex(
            (pg_catalog.random() operator(pg_catalog.*) 4095)::pg_catalog.int4
        ), 3, '0')
$$
