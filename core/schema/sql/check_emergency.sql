-- Whether the user of that scope may break the glass for so many minutes; else why not.
create function charthold.check_emergency(scope text, minutes integer) returns void
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    if rtrim(substr(scope, 90, 9)) not in ('admin', 'clinician') then
        raise exception using errcode = 'insufficient_privilege', message = 'break the glass';
    end if;
    if rtrim(substr(scope, 99, 36)) <> '' then
        raise exception using errcode = 'CH018', message = 'the user sees the whole tenant';
    end if;
    if minutes is null or minutes not between 1 and 240 then
        raise exception using errcode = 'CH019', message = 'an emergency lasts 1 to 240 minutes';
    end if;
end
$$
