-- As charthold.touch, for the tables of tenants: a row cannot move to another tenant either.
--
-- Threat: a statement that runs calls itself read-only, so that charthold.scope() remembers nobody, and then has two users.
create function charthold.touch_tenant_row() returns trigger
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
begin
    if (new.tenant_id, new.id, new.created_at) is distinct from (old.tenant_id, old.id, old.created_at) then
        raise exception using errcode = 'CH010',
            message = format('tenant_id, id and created_at of %I cannot be updated', tg_table_name);
    end if;
    if current_setting('transaction_read_only') = 'on' then
        raise exception using errcode = 'CH009', message = 'a transaction that may write nothing writes';
    end if;
    new.updated_at := clock_timestamp();
    return new;
end
$$
