-- Refuses a value that our side could not read back: a time before the year 1 or after 9999, a blind index that is no hash
-- of its length. Called where a tenant's id would stand.
--
-- Threat: who may write one row writes it so that each list in which it stands fails, for everybody; or writes a name in
-- plain text where a hash belongs.
create function charthold.refuse_unreadable() returns uuid
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception using errcode = 'CH017',
        message = 'a time lies in the years 1 to 9999, and a blind index has the length of its hashes';
end
$$
