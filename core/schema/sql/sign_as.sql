-- A token for this backend and the next minute, for the functions that act before a scope can exist, or beyond the caller's.
-- who: a user's id, or four letters and 32 digits of one, as charthold.other_scope() reads them.
--
-- Threat: whoever can call this can act as anybody. No role but the owner may. Those of its callers that others may call
-- (break_glass_by, provision_tenant, record_late) end with charthold.forget_scope(), also when they fail; the rest act in a
-- transaction of the owner's own.
--
-- Threat: a cancel can interrupt the handler that forgets. The settings are undone with the failed block, but not what the
-- session remembers. So charthold.scope() remembers nothing of such a token, which alone has a fifth place behind the reason;
-- and what stands there nobody can guess.
--
-- Threat: PostgreSQL prints the plans of the statements within these functions, with the token in them, to whoever asks
-- (debug_print_plan, client_min_messages). So those callers switch it off for as long as they run.
create function charthold.sign_as(tenant uuid, who text, reason text) returns text
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
        || tenant || who || chr(31) || chr(31) || reason || chr(31) || chr(31) || gen_random_uuid();
    return charthold.hmac(k.inner_pad, k.outer_pad, convert_to(payload, 'UTF8')) || payload;
end
$$
