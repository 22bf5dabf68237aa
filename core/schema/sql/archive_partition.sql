-- Detaches one month of the audit log, so that it can be dumped and kept elsewhere, 164.316(b)(2)(i).
--
-- Threat: evidence is "archived" to make it disappear. So a month leaves only when its youngest record is older than the
-- longest retention among the tenants in it, six years at least, and only when every record in it is sealed: the seals
-- stay, and a month that was altered on the way to the archive does not fit them.
create function charthold.archive_partition(part text) returns bigint
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    kept bigint;
    youngest timestamptz;
    longest int;
    unsealed bigint;
begin
    if part !~ '^user_action_audit_log_[0-9]{4}_[0-9]{2}$' or not exists (
        select from pg_inherits
        where inhrelid = to_regclass('public.' || quote_ident(part))
            and inhparent = 'public.user_action_audit_log'::regclass
    ) then
        raise exception using errcode = 'CH020', message = format('%I is not a month of the audit log', part);
    end if;

    -- The owner is bound by the policies too; it looks past them here, while nobody else can use the two tables.
    execute format('alter table public.%I no force row level security', part);
    alter table public.audit_seal no force row level security;
    execute format(
        'select count(*), max(l.occurred_at), max(d.retention_years), count(*) filter ('
        '    where l.transaction_id >= coalesce(('
        '        select s.horizon from public.audit_seal as s where s.tenant_id = l.tenant_id'
        '        order by s.tree_size desc limit 1), 0))'
        ' from public.%I as l left join charthold.tenant_directory as d on d.tenant_id = l.tenant_id', part
    ) into kept, youngest, longest, unsealed;
    alter table public.audit_seal force row level security;
    execute format('alter table public.%I force row level security', part);

    if youngest > clock_timestamp() - make_interval(years => greatest(coalesce(longest, 6), 6)) then
        raise exception using errcode = 'CH021', message = format(
            '%I holds records that must be kept for %s years', part, greatest(coalesce(longest, 6), 6)
        );
    end if;
    if unsealed > 0 then
        raise exception using errcode = 'CH022', message = format('%I holds %s records that are not sealed', part, unsealed);
    end if;
    execute format('alter table public.user_action_audit_log detach partition public.%I', part);
    return kept;
end
$$
