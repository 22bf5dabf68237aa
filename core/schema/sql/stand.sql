-- Keeps ready, in charthold.principal, what charthold.scope() answers about a user.
create function charthold.stand() returns trigger
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
begin
    new.standing := charthold.standing(new.tenant_id, new.user_id, new.role, new.facility_scope, new.tenant_open);
    return new;
end
$$
