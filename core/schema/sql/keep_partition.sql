-- Guards a table that is about to be a partition of the audit log as the log itself is: the planner samples no column that it
-- does not sample in the log, whoever names the partition directly is shown nothing, and it cannot be emptied, which no
-- trigger of the log would notice.
create function charthold.keep_partition(part text) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
begin
    -- LIKE leaves this out.
    execute (
        select format('alter table public.%I ', part)
            || string_agg(format('alter column %I set statistics 0', attname), ', ')
        from pg_attribute
        where attrelid = 'public.user_action_audit_log'::regclass and attnum > 0 and attstattarget = 0
    );
    execute format('alter table public.%I enable row level security', part);
    execute format('alter table public.%I force row level security', part);
    execute format(
        'create or replace trigger append_only_truncate before truncate on public.%I'
        ' for each statement execute function charthold.refuse_change()', part
    );
end
$$
