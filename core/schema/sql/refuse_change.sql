-- The audit log is append-only, for its owner too.
create function charthold.refuse_change() returns trigger
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception using errcode = 'CH012', message = format('%I is append-only', tg_table_name);
end
$$
