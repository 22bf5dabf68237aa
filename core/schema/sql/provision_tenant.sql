-- Makes a tenant, its first data key and its first admin, who is recorded as the actor of all three.
--
-- Threat: it writes before a scope exists, so it does exactly this and only for ids that are new: an id that exists
-- is refused before anything is signed for it.
--
-- Threat: whoever runs SQL fills the database with tenants of their own. So it wants a token for that tenant and that admin,
-- which only a program with the application's key signs.
--
-- Threat: a program with another master key than the application's wraps the tenant's key under it, and the application can
-- never open the tenant. The key that signs the token follows from the same master key, so it must be known.
create function charthold.provision_tenant(
    token text, tenant uuid, slug text, name text, time_zone text, retention_years int, trial boolean,
    admin uuid, admin_email text, admin_name text, key_row uuid, wrapped_key bytea, kek text
) returns void
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
    set debug_print_parse = off
    set debug_print_rewritten = off
    set debug_print_plan = off
as $$
begin
    -- The scope of the caller, if there is one, must not be swapped for another in the middle of a transaction.
    if coalesce(current_setting('charthold.scope', true), '') <> '' then
        raise exception using errcode = 'CH013', message = 'a tenant is provisioned outside of every scope';
    end if;

    if not exists (
        select from charthold.token_key as k
        where k.id = substr(token, 65, 8) and (k.retired_at is null or k.retired_at > clock_timestamp())
    ) then
        raise exception using errcode = 'CH007', message = 'the master key is not the one that the database knows';
    end if;

    if not charthold.token_holds(token) or substr(token, 93, 72) <> tenant::text || admin::text then
        raise exception using errcode = 'CH002', message = 'no token of ours is for that tenant and that admin';
    end if;

    -- A new tenant appears in the directory first, because follow_user() looks there. An id or a slug that is taken fails.
    insert into charthold.tenant_directory (tenant_id, slug, status, retention_years)
    values (tenant, slug, 'trial', retention_years);
    insert into charthold.principal (tenant_id, user_id, role, tenant_open) values (tenant, admin, 'system', true);
    perform set_config('charthold.scope', charthold.sign(tenant, admin, 'provision'), true);

    insert into public.tenant (id, slug, name, status, settings, branding, time_zone, retention_years)
    values (
        tenant, slug, name, case when trial then 'trial' else 'active' end, '{}', '{}', time_zone, retention_years
    );
    insert into public.app_user (id, tenant_id, email, full_name, role, status, mfa_enrolled, failed_logins)
    values (admin, tenant, admin_email, admin_name, 'admin', 'active', false, 0);
    -- From here the trigger on app_user has made the principal an admin.
    insert into public.tenant_key (id, tenant_id, version, wrapped, kek, status)
    values (key_row, tenant, 1, wrapped_key, kek, 'current');
    perform charthold.forget_scope();
exception when query_canceled or assert_failure or others then
    -- What a session remembers is not undone with the rows.
    perform charthold.forget_scope();
    raise;
end
$$
