-- Refuses what does not fit into one record of the log, as charthold.is_large() says. Called where a tenant's id would stand.
create function charthold.refuse_large() returns uuid
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception using errcode = 'CH025', message = 'the change does not fit into one record of the log';
end
$$
