-- Suspends, closes or reopens a tenant. In a suspended tenant nobody may write, so only the owner can reopen it.
create function charthold.set_tenant_status(tenant uuid, actor uuid, new_status text, reason text) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
begin
    update charthold.principal set tenant_open = true where tenant_id = tenant;
    perform set_config('charthold.scope', charthold.sign(tenant, actor, reason), true);
    update public.tenant as t set status = new_status where t.id = set_tenant_status.tenant;
    -- The trigger on public.tenant has closed the principals again, if that is the new status.
    perform charthold.forget_scope();
exception when query_canceled or assert_failure or others then
    -- What a session remembers is not undone with the rows.
    perform charthold.forget_scope();
    raise;
end
$$
