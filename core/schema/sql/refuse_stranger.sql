-- Refuses a change of a row that belongs to another tenant than the scope. Called where a tenant's id would stand.
create function charthold.refuse_stranger() returns uuid
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception using errcode = 'CH015', message = 'the row belongs to another tenant than the scope';
end
$$
