-- Makes the audit log's partitions for this month and the months ahead, and returns the names of the new ones.
--
-- A month without a partition may have records in the default partition. They move into the new one, all of them, while
-- both stand apart from the log: a partition that is attached is append-only, and shows its rows to nobody.
create function charthold.ensure_partitions(ahead integer) returns setof text
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    starts date;
    part text;
    first_moment timestamptz;
    next_moment timestamptz;
    stray boolean;
begin
    for starts in
        select m::date from generate_series(
            date_trunc('month', clock_timestamp() at time zone 'UTC'),
            date_trunc('month', clock_timestamp() at time zone 'UTC') + make_interval(months => ahead),
            interval '1 month'
        ) as m
    loop
        part := 'user_action_audit_log_' || to_char(starts, 'YYYY_MM');
        continue when to_regclass('public.' || quote_ident(part)) is not null;
        first_moment := starts::timestamp at time zone 'UTC';
        next_moment := (starts + interval '1 month') at time zone 'UTC';

        execute format(
            'create table public.%I (like public.user_action_audit_log including defaults including constraints)', part
        );
        -- Writers wait while rows move; without rows to move nobody waits.
        alter table public.user_action_audit_log_default no force row level security;
        select exists (
            select from public.user_action_audit_log_default
            where occurred_at >= first_moment and occurred_at < next_moment
        ) into stray;
        if stray then
            alter table public.user_action_audit_log detach partition public.user_action_audit_log_default;
            execute format(
                'with moved as (delete from public.user_action_audit_log_default'
                ' where occurred_at >= $1 and occurred_at < $2 returning *)'
                ' insert into public.%I select * from moved', part
            ) using first_moment, next_moment;
        end if;
        -- What the planner does not sample in the log it does not sample in the month either: LIKE leaves that out.
        execute (
            select format('alter table public.%I ', part)
                || string_agg(format('alter column %I set statistics 0', attname), ', ')
            from pg_attribute
            where attrelid = 'public.user_action_audit_log'::regclass and attnum > 0 and attstattarget = 0
        );
        execute format('alter table public.%I enable row level security', part);
        execute format('alter table public.%I force row level security', part);
        execute format(
            'alter table public.user_action_audit_log attach partition public.%I for values from (%L) to (%L)',
            part, first_moment, next_moment
        );
        if stray then
            alter table public.user_action_audit_log attach partition public.user_action_audit_log_default default;
        end if;
        alter table public.user_action_audit_log_default force row level security;
        return next part;
    end loop;
end
$$
