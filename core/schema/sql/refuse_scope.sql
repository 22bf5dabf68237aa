-- Says why charthold.scope() does not believe a token.
-- Errors: CH001 no scope, CH002 not signed by us, CH003 expired, CH004 another backend's, CH005 actor not active,
-- CH006 an old snapshot, CH008 an emergency that has ended.
--
-- Threat: an oracle for the code of a token. So of a token whose code is wrong it says only that.
create function charthold.refuse_scope(token text) returns void
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    if coalesce(token, '') = '' then
        raise exception using errcode = 'CH001', message = 'no scope is open in this transaction';
    end if;
    if not charthold.token_signed(token) then
        raise exception using errcode = 'CH002', message = 'the scope is not signed by a current key';
    end if;
    if substr(token, 73, 10) <= extract(epoch from clock_timestamp())::text then
        raise exception using errcode = 'CH003', message = 'the scope has expired';
    end if;
    if substr(token, 83, 10) not in ('0000000000', lpad(pg_backend_pid()::text, 10, '0')) then
        raise exception using errcode = 'CH004', message = 'the scope belongs to another connection';
    end if;
    if exists (
        select from charthold.principal as p
        where (
            (p.tenant_id::text || p.user_id::text) collate "C" = substr(token, 93, 72)
            or p.user_id = (select e.user_id from charthold.emergency_of(token) as e)
        ) and charthold.was_replaced(p.xmin, p.xmax)
    ) or exists (
        select from charthold.token_key as k where k.id = substr(token, 65, 8) and charthold.was_replaced(k.xmin, k.xmax)
    ) then
        raise exception using errcode = 'CH006', message = 'the actor or the key was changed since this statement began';
    end if;
    if (select e.until from charthold.emergency_of(token) as e) <= clock_timestamp() then
        raise exception using errcode = 'CH008', message = 'the emergency has ended';
    end if;
    raise exception using errcode = 'CH005', message = 'the actor is not an active user of an open tenant, or is locked';
end
$$
