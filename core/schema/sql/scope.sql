-- The verified context of this transaction, or an error.
--
-- Threat: anybody who can run SQL can set "charthold.scope". So nothing of it is believed before its HMAC holds under
-- a key which only the owner of this function can read. The hashes of both codes are compared, not the codes, so that
-- the time of the comparison tells nothing about the right one. The role is looked up, not carried: a user who was
-- locked a moment ago is out now, whatever was signed before.
--
-- A statement asks several times, once for each policy and trigger that it meets, and the answer is worked out once: it
-- stands in "charthold.granted", and 128 bits of its SHA-256 in two sequences.
-- Threat: "charthold.granted" can be set by anybody too. What a session reads back from a sequence (currval) cannot: only
-- this function's owner may write it. The answer begins with the moment at which the statement began, so it is good for
-- this statement and no other; and for a second, so that a statement that runs for an hour does not outlive the lock of its
-- user or the end of its scope. It holds nothing of the token's code. Of a token that a function signed for itself nothing
-- is remembered: whoever knows an answer that was given in this statement can put it back (charthold.sign_as()).
--
-- Threat: whoever holds two tokens of one backend swaps them within a statement, and is asked for the role under the one
-- and for the facilities under the other, or changes under the one what is recorded under the other. So two more sequences
-- hold hashes of the moment and of the user who was last verified, with the role, and no statement has two users; only
-- functions that sign for themselves may change who acts. Left open: in a read-only transaction nothing can be remembered;
-- and a cursor is fetched from in several statements, so what its policies ask at its first row and at a later one may be
-- asked of two.
--
-- Returns that moment (17 characters) || tenant (36) || actor (36) || role (9) || the tenant again, or spaces for who is
-- bound to facilities (36) || facilities, request id, source ip and reason, with a unit separator (U+001F) between them, and
-- in an emergency the client.
-- Errors: those of charthold.refuse_scope(), and CH009 for a second user in one statement.
create function charthold.scope() returns text
    language plpgsql stable parallel unsafe security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    -- As bytes, of which the n-th is found at once; of text in UTF-8 it is counted for.
    token constant bytea := convert_to(current_setting('charthold.scope', true), 'UTF8');
    granted text := current_setting('charthold.granted', true);
    seal text;
    kept boolean;
begin
    -- Worked out in this statement, a moment ago, for whom the token names? An expression behind the first IF is prepared
    -- only where it is reached.
    if granted <> '' then
        if left(granted, 89) = extract(epoch from statement_timestamp())::text || encode(substr(token, 93, 72), 'escape')
            and clock_timestamp() - statement_timestamp() between interval '0' and interval '1 second'
        then
            seal := encode(sha256(convert_to(granted, 'UTF8')), 'hex');
            if currval('charthold.granted_1') = hashtextextended(seal, 1)
                and currval('charthold.granted_2') = hashtextextended(seal, 2)
            then
                return granted;
            end if;
        end if;
    end if;

    -- One look-up for everything: each costs more than all that is computed. Nothing is cast, because what is not signed
    -- may be anything.
    select extract(epoch from statement_timestamp())::text || p.standing || chr(31)
        || convert_from(substr(token, 165), 'UTF8')
    into granted
    from charthold.token_key as k
    join charthold.principal as p
        on (p.tenant_id::text || p.user_id::text) collate "C" = encode(substr(token, 93, 72), 'escape')
    where k.id = encode(substr(token, 65, 8), 'escape') and (k.retired_at is null or k.retired_at > clock_timestamp())
        and sha256(substr(token, 1, 64))
            = sha256(convert_to(charthold.hmac(k.inner_pad, k.outer_pad, substr(token, 65)), 'UTF8'))
        and encode(substr(token, 73, 10), 'escape') > extract(epoch from clock_timestamp())::text
        and encode(substr(token, 83, 10), 'escape') in ('0000000000', lpad(pg_backend_pid()::text, 10, '0'))
        and (p.locked_until is null or p.locked_until <= clock_timestamp())
        -- A cursor, or a transaction of another isolation level, looks at the past. The row that it sees says so itself.
        and (p.xmax = '0'::xid or p.xmax = p.xmin or not charthold.was_replaced(p.xmin, p.xmax))
        and (k.xmax = '0'::xid or k.xmax = k.xmin or not charthold.was_replaced(k.xmin, k.xmax));
    if granted is null then
        -- An emergency, or what a function of ours does beyond its caller's rights. Worked out each time it is asked for.
        return charthold.other_scope(current_setting('charthold.scope', true));
    end if;

    -- Nothing is remembered in a transaction that may write nothing, nor of what signs for itself.
    seal := encode(sha256(convert_to(granted, 'UTF8')), 'hex');
    kept := case
        when split_part(granted, chr(31), 6) <> '' then true
        when current_setting('charthold.remembers', true) is not distinct from 'yes'
            and currval('charthold.granted_3') = hashtextextended(left(granted, 17), 3)
            and currval('charthold.granted_4') <> hashtextextended(substr(granted, 18, 81), 4)
        then false
        when current_setting('charthold.remembers', true) is distinct from 'yes' and charthold.met_another(granted) then false
        when current_setting('transaction_read_only') = 'on' then true
        else setval('charthold.granted_1', hashtextextended(seal, 1)) is not null
            and setval('charthold.granted_2', hashtextextended(seal, 2)) is not null
            and setval('charthold.granted_3', hashtextextended(left(granted, 17), 3)) is not null
            and setval('charthold.granted_4', hashtextextended(substr(granted, 18, 81), 4)) is not null
            and set_config('charthold.granted', granted, true) is not null
    end;
    if not kept then
        raise exception using errcode = 'CH009', message = 'another user acts in this statement';
    end if;
    return granted;
end
$$
