-- Refuses a value that Python could not read back: a time before the year 1 or after 9999, a hash that has not the length of
-- its blind index, or a document of a few bytes that is many megabytes of digits. Called where a tenant's id would stand.
--
-- Threat: whoever may write a row writes it so that every list with it fails, for everybody; or so that sealing all tenants'
-- logs takes an hour; or writes a name in plain text where a hash belongs.
create function charthold.refuse_unreadable() returns uuid
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception using errcode = 'CH017',
        message =
        'a time lies in the years 1 to 9999, a blind index has the length of its hashes, no number has 100,000 digits';
end
$$
