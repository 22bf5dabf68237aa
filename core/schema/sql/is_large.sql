-- Whether a document is too long for a record of the log, or a long text of few bytes.
--
-- Threat: a record that nobody can read back whole, because its text is too long for PostgreSQL: it could not be sealed. Or
-- one of few bytes that takes a second to seal: JSON keeps a number of 131,072 digits in ten. What writes to the log asks,
-- and not a CHECK of the log: PostgreSQL reads a table's checks anew in each statement, which cost more than a record.
create function charthold.is_large(document jsonb) returns boolean
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select octet_length(document::text) > least(64000000, 200000 + 300 * pg_column_size(document)::bigint)
$$
