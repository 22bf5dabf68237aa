-- Moves updated_at, and keeps what a row is: its id, its tenant and its birth cannot be updated.
create function charthold.touch() returns trigger
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
begin
    if new.id is distinct from old.id or new.created_at is distinct from old.created_at then
        raise exception using errcode = 'CH010', message = format('id and created_at of %I cannot be updated', tg_table_name);
    end if;
    new.updated_at := clock_timestamp();
    return new;
end
$$
