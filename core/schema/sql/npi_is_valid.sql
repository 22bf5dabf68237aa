-- A National Provider Identifier: ten digits whose Luhn sum, after the prefix 80840, is right (45 CFR 162.406).
-- The prefix adds 24; the second, fourth ... digit from the right is doubled and its digits added.
create function charthold.npi_is_valid(npi text) returns boolean
    language sql immutable strict parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select case when npi ~ '^[0-9]{10}$' then (
        24
        + (get_byte(npi::bytea, 0) - 48) * 2 / 10 + (get_byte(npi::bytea, 0) - 48) * 2 % 10 + get_byte(npi::bytea, 1) - 48
        + (get_byte(npi::bytea, 2) - 48) * 2 / 10 + (get_byte(npi::bytea, 2) - 48) * 2 % 10 + get_byte(npi::bytea, 3) - 48
        + (get_byte(npi::bytea, 4) - 48) * 2 / 10 + (get_byte(npi::bytea, 4) - 48) * 2 % 10 + get_byte(npi::bytea, 5) - 48
        + (get_byte(npi::bytea, 6) - 48) * 2 / 10 + (get_byte(npi::bytea, 6) - 48) * 2 % 10 + get_byte(npi::bytea, 7) - 48
        + (get_byte(npi::bytea, 8) - 48) * 2 / 10 + (get_byte(npi::bytea, 8) - 48) * 2 % 10 + get_byte(npi::bytea, 9) - 48
    ) % 10 = 0 else false end
$$
