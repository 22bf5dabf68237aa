-- The verified context of this transaction, or an error.
--
-- Threat: anybody who can run SQL can set "charthold.scope". So nothing of it is believed before its HMAC holds under
-- a key which only the owner of this function can read. The hashes of both codes are compared, not the codes, so that
-- the time of the comparison tells nothing about the right one. The role is looked up, not carried: a user who is
-- locked a moment ago is out now, whatever was signed before.
--
-- Returns role (9 characters) || '*' if bound to facilities, else ' ' || tenant (36) || actor (36) || facilities,
-- request id, source ip and reason, each behind a unit separator (U+001F), which is in none of them.
-- Errors: CH001 no scope, CH002 not signed by us, CH003 expired, CH004 another backend's, CH005 actor not active.
--
-- It runs once for each policy that a statement meets, so it is short: two look-ups and expressions, 9 microseconds. The
-- tenant and the actor are taken out of the token once, not once for each row that a look-up compares, and a look-up
-- goes by the index even where the planner thinks a small table is read faster whole.
create function charthold.scope() returns text
    language plpgsql stable parallel restricted security definer
    set enable_seqscan = off
    set search_path = pg_catalog, pg_temp
as $$
declare
    token constant text := current_setting('charthold.scope', true);
    payload constant text := substr(token, 65);
    tenant uuid;
    actor uuid;
    inner_pad bytea;
    outer_pad bytea;
    answer text;
begin
    if token is null or token = '' then
        raise exception using errcode = 'CH001', message = 'no scope is open in this transaction';
    end if;

    -- The key that the token names. Without one the hashes below are null, and null is refused.
    select k.inner_pad, k.outer_pad into inner_pad, outer_pad
    from charthold.token_key as k
    where k.id = substr(payload, 1, 8) and (k.retired_at is null or k.retired_at > clock_timestamp());
    if (
        sha256(convert_to(substr(token, 1, 64), 'UTF8'))
        = sha256(convert_to(encode(sha256(outer_pad || sha256(inner_pad || convert_to(payload, 'UTF8'))), 'hex'), 'UTF8'))
    ) is not true then
        raise exception using errcode = 'CH002', message = 'the scope is not signed by a current key';
    end if;
    if substr(payload, 9, 10)::bigint <= date_part('epoch', clock_timestamp()) then
        raise exception using errcode = 'CH003', message = 'the scope has expired';
    end if;
    if substr(payload, 19, 10)::int not in (0, pg_backend_pid()) then
        raise exception using errcode = 'CH004', message = 'the scope belongs to another connection';
    end if;

    tenant := substr(payload, 29, 36);
    actor := substr(payload, 65, 36);
    -- What the actor may do now: in a suspended or closed tenant admins and auditors read, nobody else does anything.
    select rpad(case when p.tenant_open then p.role when p.role in ('admin', 'auditor') then 'auditor' end, 9)
            || case when p.facility_scope is null then ' ' else '*' end
            || substr(payload, 29, 72) || coalesce(p.facility_scope::text, '') || chr(31) || substr(payload, 101)
        into answer
    from charthold.principal as p
    where p.tenant_id = tenant and p.user_id = actor;
    if answer is null then
        raise exception using errcode = 'CH005', message = 'the actor is not an active user of an open tenant';
    end if;
    return answer;
end
$$
