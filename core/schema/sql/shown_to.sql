-- Whether the role of the open scope's user is one of these, to whom something is shown; for any other it raises.
create function charthold.shown_to(what text, roles text[]) returns boolean
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    if charthold.actor_role() = any (roles) then
        return true;
    end if;
    raise exception using errcode = 'CH024', message = format('%s: for %s', what, array_to_string(roles, ', '));
end
$$
