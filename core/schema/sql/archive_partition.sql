-- Detaches one month of the audit log, so that it can be dumped and kept elsewhere, 164.316(b)(2)(i).
--
-- Threat: evidence is "archived" to make it disappear. So a month leaves only when its youngest record is older than the
-- longest retention among the tenants in it, six years at least, and only when every record in it was sealed as long ago:
-- the seals stay, and a month that was altered on the way to the archive does not fit them. Which seals are signed only
-- the caller can tell: it gives the horizon of each tenant's last one that is so old, below which every record is sealed.
create function charthold.archive_partition(part text, tenants uuid[], horizons bigint[]) returns bigint
    language plpgsql
    set search_path = pg_catalog, pg_temp
    -- Threat: somebody's open transaction holds the log, and whoever comes behind this waits with it: all tenants.
    set lock_timeout = '5s'
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

    -- The owner is bound by the policies too; it looks past them here, while nobody else can use the table.
    execute format('alter table public.%I no force row level security', part);
    execute format(
        'select count(*), max(l.occurred_at), max(d.retention_years), count(*) filter ('
        '    where l.transaction_id >= coalesce(s.horizon, 0))'
        ' from public.%I as l left join charthold.tenant_directory as d on d.tenant_id = l.tenant_id'
        ' left join unnest($1, $2) as s (tenant_id, horizon) on s.tenant_id = l.tenant_id', part
    ) into kept, youngest, longest, unsealed using tenants, horizons;
    execute format('alter table public.%I force row level security', part);

    if youngest > clock_timestamp() - make_interval(years => greatest(coalesce(longest, 6), 6)) then
        raise exception using errcode = 'CH021', message = format(
            '%I holds records that must be kept for %s years', part, greatest(coalesce(longest, 6), 6)
        );
    end if;
    if unsealed > 0 then
        raise exception using errcode = 'CH022', message = format(
            '%I holds %s records that are not sealed, or not for the years that they must be kept', part, unsealed
        );
    end if;
    execute format('alter table public.user_action_audit_log detach partition public.%I', part);
    return kept;
end
$$
