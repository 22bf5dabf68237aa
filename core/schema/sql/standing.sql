-- What charthold.scope() answers about a user: tenant (36) || user (36) || role (9) || the tenant again, or spaces for who is
-- bound to facilities (36) || those facilities. In a suspended or closed tenant admins and auditors read, seal and review, as
-- auditors, and nobody else does anything: null.
create function charthold.standing(
    tenant uuid, user_id uuid, role text, facility_scope uuid[], tenant_open boolean
) returns text
    language sql stable parallel safe
as $$
    select tenant::text || user_id::text
        || pg_catalog.rpad(case when tenant_open then role when role in ('admin', 'auditor') then 'auditor' end, 9)
        || pg_catalog.rpad(case when facility_scope is null then tenant::text else '' end, 36)
        || coalesce(facility_scope::text, '')
$$
