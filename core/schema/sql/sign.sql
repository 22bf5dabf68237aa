-- A token for this backend and the next minute, for the functions that act before a scope can exist.
--
-- Threat: whoever can call this is everybody. No role but the owner may; break_glass_by, provision_tenant,
-- record_late and set_tenant_status do, and end with charthold.forget_scope(), also when they fail.
--
-- Threat: a cancel reaches the handler that forgets, too. The settings are taken back with the failed block, but not what the
-- session remembers of them (charthold.scope()), and whoever knows what was answered writes it back. So behind the reason, in
-- the fifth place, which no token of the application's has, stands something that nobody can guess.
create function charthold.sign(tenant uuid, actor uuid, reason text) returns text
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    k record;
    payload text;
begin
    select * into k from charthold.token_key where retired_at is null order by created_at desc, id limit 1;
    if not found then
        raise exception using errcode = 'CH002', message = 'there is no token key';
    end if;
    payload := k.id
        || lpad((extract(epoch from clock_timestamp())::bigint + 60)::text, 10, '0')
        || lpad(pg_backend_pid()::text, 10, '0')
        || tenant || actor || chr(31) || chr(31) || reason || chr(31) || chr(31) || gen_random_uuid();
    return charthold.hmac(k.inner_pad, k.outer_pad, convert_to(payload, 'UTF8')) || payload;
end
$$
