-- The verified context of this transaction, or an error.
--
-- Threat: anybody who can run SQL can set "charthold.scope". So nothing of it is believed before its HMAC holds under
-- a key which only the owner of this function can read. The hashes of both codes are compared, not the codes, so that
-- the time of the comparison tells nothing about the right one. The role is looked up, not carried: a user who is
-- locked a moment ago is out now, whatever was signed before.
--
-- A statement asks several times, once for each policy and trigger that it meets, and the answer is worked out once: it
-- stands in "charthold.granted", and 128 bits of its SHA-256 in two sequences.
-- Threat: "charthold.granted" can be set by anybody too. What a session reads back from a sequence (currval) cannot: only
-- this function's owner may write it. The answer begins with the moment at which the statement began, so it is good for
-- this statement and no other; and for a second, so that a statement that runs for an hour does not outlive the lock of
-- its user or the end of its scope. It holds nothing of the token's code.
--
-- Returns that moment (17 characters) || tenant (36) || actor (36) || role (9) || the tenant again, or spaces for who is
-- bound to facilities (36) || facilities, request id, source ip and reason, with a unit separator (U+001F) between them.
-- Errors: CH001 no scope, CH002 not signed by us, CH003 expired, CH004 another backend's, CH005 actor not active.
create function charthold.scope() returns text
    language plpgsql stable parallel unsafe security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    token constant text := current_setting('charthold.scope', true);
    granted text := current_setting('charthold.granted', true);
    seal text;
    signed boolean;
    in_time boolean;
    here boolean;
begin
    -- Worked out in this statement, a moment ago, for whom the token names?
    if left(granted, 89) = extract(epoch from statement_timestamp())::text || substr(token, 93, 72)
        and clock_timestamp() - statement_timestamp() between interval '0' and interval '1 second'
    then
        seal := encode(sha256(convert_to(granted, 'UTF8')), 'hex');
        if currval('charthold.granted_1') = hashtextextended(seal, 1)
            and currval('charthold.granted_2') = hashtextextended(seal, 2)
        then
            return granted;
        end if;
    end if;

    -- One look-up for everything: each costs more than all that is computed. Nothing is cast, because what is not signed
    -- may be anything. What the actor may do now: in a suspended or closed tenant admins and auditors read, nobody else
    -- does anything.
    select
        sha256(convert_to(left(token, 64), 'UTF8')) = sha256(convert_to(encode(
            sha256(k.outer_pad || sha256(k.inner_pad || convert_to(substr(token, 65), 'UTF8'))), 'hex'), 'UTF8')),
        substr(token, 73, 10) > extract(epoch from clock_timestamp())::text,
        substr(token, 83, 10) in ('0000000000', lpad(pg_backend_pid()::text, 10, '0')),
        extract(epoch from statement_timestamp())::text || substr(token, 93, 72)
            || rpad(case when p.tenant_open then p.role when p.role in ('admin', 'auditor') then 'auditor' end, 9)
            || rpad(case when p.facility_scope is null then substr(token, 93, 36) else '' end, 36)
            || coalesce(p.facility_scope::text, '') || chr(31) || substr(token, 165)
    into signed, in_time, here, granted
    from charthold.token_key as k
    left join charthold.principal as p
        on (p.tenant_id::text || p.user_id::text) collate "C" = substr(token, 93, 72)
    where k.id = substr(token, 65, 8) and (k.retired_at is null or k.retired_at > clock_timestamp());

    if signed and in_time and here and granted is not null then
        seal := encode(sha256(convert_to(granted, 'UTF8')), 'hex');
        -- Nothing is remembered in a transaction that may write nothing, nor when the second is over.
        signed := current_setting('transaction_read_only') = 'on'
            or clock_timestamp() - statement_timestamp() > interval '1 second' or (
            setval('charthold.granted_1', hashtextextended(seal, 1)) is not null
            and setval('charthold.granted_2', hashtextextended(seal, 2)) is not null
            and set_config('charthold.granted', granted, true) is not null
        );
        return granted;
    end if;
    case
        when token is null or token = '' then
            raise exception using errcode = 'CH001', message = 'no scope is open in this transaction';
        when signed is not true then
            raise exception using errcode = 'CH002', message = 'the scope is not signed by a current key';
        when in_time is not true then
            raise exception using errcode = 'CH003', message = 'the scope has expired';
        when here is not true then
            raise exception using errcode = 'CH004', message = 'the scope belongs to another connection';
        else
            raise exception using errcode = 'CH005', message = 'the actor is not an active user of an open tenant';
    end case;
end
$$
