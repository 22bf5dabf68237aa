-- What charthold.scope() answers to a token that has something else in the user's place; for any other token it says why it
-- is not believed. The role is "emergency", which changes nothing. Nothing of it is remembered.
--
-- "emer" and an emergency (charthold.emergency_of()): the client stands behind the reason, which says that the glass was
-- broken. A user who is locked, or no longer a clinician, has no emergency either.
--
-- "find" and "late" and a user, of charthold.sign_as(): to look for a client in all of the tenant, and to record what was
-- shown to a user who may be locked by now.
create function charthold.other_scope(token text) returns text
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    said constant text := substr(token, 165);
    kind constant text := substr(token, 129, 4);
    granted text;
begin
    if kind = 'emer' then
        select extract(epoch from statement_timestamp())::text || p.tenant_id || p.user_id || 'emergency' || repeat(' ', 36)
            || chr(31) || split_part(said, chr(31), 1) || chr(31) || split_part(said, chr(31), 2)
            || chr(31) || 'break-glass: ' || split_part(said, chr(31), 3) || chr(31) || e.client_id
        into granted
        from charthold.emergency_of(token) as e
        join charthold.principal as p on p.tenant_id::text = substr(token, 93, 36) and p.user_id = e.user_id
        where e.until > clock_timestamp() and charthold.token_holds(token)
            and p.tenant_open and p.role in ('admin', 'clinician')
            and (p.locked_until is null or p.locked_until <= clock_timestamp())
            -- An old snapshot shows the user as they were; the row itself says whether it was replaced since.
            and (p.xmax = '0'::xid or p.xmax = p.xmin or not charthold.was_replaced(p.xmin, p.xmax));
    elsif kind in ('find', 'late') and split_part(said, chr(31), 5) <> '' and charthold.token_holds(token) then
        return extract(epoch from statement_timestamp())::text || substr(token, 93, 36) || substr(token, 133, 32)::uuid
            || 'emergency' || substr(token, 93, 36) || chr(31) || said;
    end if;
    if granted is null then
        perform charthold.refuse_scope(token);
    end if;
    if charthold.met_another(granted) then
        raise exception using errcode = 'CH009', message = 'another user acts in this statement';
    end if;
    if current_setting('transaction_read_only') = 'off' then
        perform setval('charthold.granted_3', hashtextextended(left(granted, 17), 3)),
            setval('charthold.granted_4', hashtextextended(substr(granted, 18), 4));
    end if;
    return granted;
end
$$
