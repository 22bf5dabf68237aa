-- Makes the audit log's partitions for this month and the months ahead, and returns the names of the new ones.
--
-- A month without a partition has its records in the default partition, and gets one, also when it is past: nothing leaves
-- the default partition otherwise. They move into the new one, all of them, while both stand apart from the log: a partition
-- that is attached is append-only, and shows its rows to nobody. A month that was detached is attached again.
create function charthold.ensure_partitions(ahead integer) returns setof text
    language plpgsql
    set search_path = pg_catalog, pg_temp
    -- Threat: somebody's open transaction holds the log, and whoever comes behind this waits with it: all tenants.
    set lock_timeout = '5s'
as $$
declare
    months date[];
    starts date;
    part text;
    first_moment timestamptz;
    next_moment timestamptz;
    stray boolean;
    there boolean;
begin
    -- Should somebody have dropped it: a record of an unforeseen month would be refused, and its work with it.
    if to_regclass('public.user_action_audit_log_default') is null then
        create table public.user_action_audit_log_default (
            like public.user_action_audit_log including defaults including constraints
        );
        perform charthold.keep_partition('user_action_audit_log_default');
        alter table public.user_action_audit_log attach partition public.user_action_audit_log_default default;
    end if;
    months := array(
        select m::date from generate_series(
            date_trunc('month', clock_timestamp() at time zone 'UTC'),
            date_trunc('month', clock_timestamp() at time zone 'UTC') + make_interval(months => ahead),
            interval '1 month'
        ) as m
    );
    -- To look into it takes its lock, so what is surely empty is not looked into. The log's own lock comes first, as with
    -- everybody: who holds the one and waits for the other deadlocks with whoever wrote, and goes on.
    if pg_relation_size('public.user_action_audit_log_default') > 0 then
        lock table only public.user_action_audit_log in access exclusive mode;
        alter table public.user_action_audit_log_default no force row level security;
        months := array(
            select unnest(months)
            union
            select date_trunc('month', occurred_at at time zone 'UTC')::date from public.user_action_audit_log_default
            order by 1
        );
        alter table public.user_action_audit_log_default force row level security;
    end if;
    foreach starts in array months loop
        part := 'user_action_audit_log_' || to_char(starts, 'YYYY_MM');
        there := to_regclass('public.' || quote_ident(part)) is not null;
        continue when there and exists (
            select from pg_inherits
            where inhrelid = to_regclass('public.' || quote_ident(part))
                and inhparent = 'public.user_action_audit_log'::regclass
        );
        first_moment := starts::timestamp at time zone 'UTC';
        next_moment := (starts + interval '1 month') at time zone 'UTC';

        if not there then
            execute format(
                'create table public.%I (like public.user_action_audit_log including defaults including constraints)',
                part
            );
        else
            -- It was detached, and is guarded still: the records that came meanwhile would not get in.
            execute format('alter table public.%I no force row level security', part);
        end if;
        -- Writers wait while rows move; without rows to move nobody waits. In a month that has begun they may come yet.
        if first_moment <= clock_timestamp() then
            lock table only public.user_action_audit_log in access exclusive mode;
        end if;
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
        perform charthold.keep_partition(part);
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
