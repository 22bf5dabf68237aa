-- TRUNCATE fires no row trigger, so it would remove rows without a record.
create function charthold.refuse_truncate() returns trigger
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception using errcode = 'CH011',
        message = format('%I is audited and cannot be truncated; delete its rows instead', tg_table_name);
end
$$
