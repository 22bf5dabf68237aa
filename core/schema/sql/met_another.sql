-- Whether this statement has verified another user, or another emergency, than this answer names, by what the session
-- remembers. A session that remembers nothing yet is given something to remember.
--
-- Threat: charthold.scope() calls this when a setting is missing, and anybody can take the setting away, even in the middle
-- of a statement. So what the session remembers already is left as it is.
create function charthold.met_another(granted text) returns boolean
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    moment bigint;
    who bigint;
begin
    begin
        moment := currval('charthold.granted_3');
        who := currval('charthold.granted_4');
    exception when object_not_in_prerequisite_state then
        if current_setting('transaction_read_only') = 'on' then
            return false;
        end if;
        moment := setval('charthold.granted_3', 0);
        who := setval('charthold.granted_4', 0);
    end;
    perform set_config('charthold.remembers', 'yes', false);
    return moment = hashtextextended(left(granted, 17), 3) and who <> hashtextextended(
        case when substr(granted, 90, 9) = 'emergency' then substr(granted, 18) else substr(granted, 18, 81) end, 4
    );
end
$$
