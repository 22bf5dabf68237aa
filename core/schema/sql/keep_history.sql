-- A user with history is deactivated, never deleted: the log must go on naming somebody who can be found.
--
-- A trigger and not a foreign key of the log: every record, of a read too, would look the user up and lock the row.
-- That the user exists when a record is written is known already: charthold.scope() verified it in the same statement.
--
-- Threat: the user acts while somebody deletes the user, and neither sees the other. Who never was active never acted, and
-- the log, which records that a user was made active, is the witness.
create function charthold.keep_history() returns trigger
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    -- Threat: who may not read the log sees no history.
    if charthold.tenant_everywhere() is distinct from old.tenant_id then
        raise exception using errcode = 'insufficient_privilege', message = 'delete a user';
    end if;
    if old.status = 'active' or exists (
        select from public.user_action_audit_log as l where l.tenant_id = old.tenant_id and l.user_id = old.id
    ) or exists (
        select from public.user_action_audit_log as l
        where l.tenant_id = old.tenant_id and l.record_id = old.id and l.table_name = 'app_user'
            and l.new_values ->> 'status' = 'active'
    ) then
        raise exception using errcode = 'restrict_violation',
            constraint = 'app_user_keeps_history', table = 'app_user',
            message = 'a user who was active or whose actions are recorded cannot be deleted; deactivate the user';
    end if;
    return old;
end
$$
