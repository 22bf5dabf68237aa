-- The client whose chart the open scope's user reads in an emergency, behind its tenant, as tenant_as() says why. Else null.
create function charthold.emergency_client() returns text
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    s constant text := charthold.scope();
begin
    return case when substr(s, 90, 9) = 'emergency' then substr(s, 18, 36) || split_part(substr(s, 135), chr(31), 5) end;
end
$$
