-- Suspends, closes or reopens a tenant. In a suspended tenant nobody writes but those who seal and review the log
-- (charthold.standing()), so only the owner can reopen it.
--
-- Threat: the only admin is bound to facilities, or locked, so that nobody could suspend the tenant. So whichever active
-- user the owner names acts as the system while this lasts.
create function charthold.set_tenant_status(tenant uuid, actor uuid, new_status text, reason text) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
    set debug_print_parse = off
    set debug_print_rewritten = off
    set debug_print_plan = off
as $$
declare
    was charthold.principal;
begin
    -- First of all, as in follow_user(): whoever is made active meanwhile waits.
    perform from charthold.tenant_directory as d where d.tenant_id = tenant for update;
    select * into was from charthold.principal as p where p.tenant_id = tenant and p.user_id = actor;
    if not found then
        raise exception using errcode = 'CH005', message = 'the tenant has no such user, or one who is not active';
    end if;
    update charthold.principal as p
    set role = 'system', facility_scope = null, locked_until = null, tenant_open = true
    where p.tenant_id = tenant and p.user_id = actor;
    perform set_config('charthold.scope', charthold.sign(tenant, actor, reason), true);
    update public.tenant as t set status = new_status where t.id = set_tenant_status.tenant;
    perform charthold.forget_scope();
    -- The trigger on public.tenant opened or closed the principals.
    update charthold.principal as p
    set role = was.role, facility_scope = was.facility_scope, locked_until = was.locked_until,
        tenant_open = new_status in ('trial', 'active')
    where p.tenant_id = tenant and p.user_id = actor;
exception when query_canceled or assert_failure or others then
    -- What a session remembers is not undone with the rows.
    perform charthold.forget_scope();
    raise;
end
$$
