from core.schema.migration import MigrationManager

ID = "2026-01-01T00:00:00:000001"
VERSION = "1.38.0"
DESCRIPTION = "foundation"


async def forwards() -> MigrationManager:
    manager = MigrationManager(
        migration_id=ID, app_name="core", description=DESCRIPTION
    )

    manager.add_role(name="app_runtime")

    manager.add_role(name="app_auditor", application=False)

    manager.add_namespace(name="charthold")

    manager.add_schema_grant(schema="public", to="app_runtime")

    manager.add_schema_grant(schema="public", to="app_auditor")

    manager.add_schema_grant(schema="charthold", to="app_runtime")

    manager.add_schema_grant(schema="charthold", to="app_auditor")

    manager.add_domain(
        name="charthold.envelope",
        type="bytea",
        check=r"""value >= '\x0100'::bytea and value < '\x0180'::bytea and octet_length(value) >= 49
    and (octet_length(value) - 33) % case
        when octet_length(value) <= 97 then 16
        when octet_length(value) <= 1057 then 64
        else 1024
    end = 0""",
    )

    manager.add_function(
        name="charthold.actor_id",
        source="""-- The user of the open scope.
create function charthold.actor_id() returns uuid
    language sql stable parallel unsafe
as $$
    select pg_catalog.substr(charthold.scope(), 54, 36)::pg_catalog.uuid
$$""",
        execute_to=("app_runtime", "app_auditor"),
    )

    manager.add_function(
        name="charthold.actor_places",
        source="""-- The facilities that the open scope's user is bound to, each behind its tenant, as tenant_as() says why.
-- Null for a user who sees the whole tenant.
create function charthold.actor_places() returns text[]
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    s constant text := charthold.scope();
    facilities constant uuid[] := nullif(split_part(substr(s, 135), chr(31), 1), '');
begin
    return (select array_agg(substr(s, 18, 36) || facility::text) from unnest(facilities) as facility);
end
$$""",
        execute_to=("app_runtime", "app_auditor"),
    )

    manager.add_function(
        name="charthold.actor_role",
        source="""-- The role of the open scope's user, as it is now.
create function charthold.actor_role() returns text
    language sql stable parallel unsafe
as $$
    select pg_catalog.rtrim(pg_catalog.substr(charthold.scope(), 90, 9))
$$""",
        execute_to=("app_runtime", "app_auditor"),
    )

    manager.add_function(
        name="charthold.archive_partition",
        signature="(text, uuid[], bigint[])",
        source="""-- Detaches one month of the audit log, so that it can be dumped and kept elsewhere, 164.316(b)(2)(i).
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
$$""",
    )

    manager.add_function(
        name="charthold.begin_session",
        source="""-- What a session of the application begins with. A direct connection brings it along (core/wire/session.py);
-- a transaction pooler connects for us, and lets each of its sessions call this, at first and after each transaction.
-- Whoever runs SQL may call it as well: it sets what it finds set. No search_path can be pinned, because the old one would
-- be back at the end; the body is bound to what its names mean when it is made.
create function charthold.begin_session() returns void
    language sql volatile parallel unsafe
begin atomic
    select pg_catalog.set_config('search_path', 'public, pg_catalog, pg_temp', false),
        pg_catalog.set_config('plan_cache_mode', 'force_generic_plan', false),
        pg_catalog.set_config('jit', 'off', false),
        pg_catalog.set_config('random_page_cost', '0.1', false),
        pg_catalog.set_config('seq_page_cost', '0.1', false),
        pg_catalog.set_config('timezone', 'UTC', false),
        pg_catalog.set_config('intervalstyle', 'postgres', false),
        pg_catalog.set_config('row_security', 'on', false),
        pg_catalog.set_config('bytea_output', 'hex', false),
        pg_catalog.set_config('transform_null_equals', 'off', false),
        pg_catalog.set_config('default_transaction_read_only', 'off', false),
        pg_catalog.set_config('default_transaction_isolation', 'read committed', false),
        pg_catalog.set_config('synchronous_commit', 'on', false),
        pg_catalog.set_config('standard_conforming_strings', 'on', false),
        pg_catalog.set_config('log_parameter_max_length_on_error', '0', false),
        pg_catalog.set_config('debug_print_parse', 'off', false),
        pg_catalog.set_config('debug_print_rewritten', 'off', false),
        pg_catalog.set_config('debug_print_plan', 'off', false),
        pg_catalog.set_config('charthold.scope', '', false),
        pg_catalog.set_config('charthold.granted', '', false),
        pg_catalog.set_config('charthold.remembers', '', false);
end""",
        execute_to=("app_runtime",),
    )

    manager.add_function(
        name="charthold.break_glass",
        signature="(uuid, text, integer)",
        source="""-- Lets a clinician who is bound to facilities read one client's chart wherever it is, for some minutes, 164.312(a)(2)(ii).
-- Returns the emergency: it stands in a token in the user's place (charthold.emergency_of()).
--
-- Threat: whoever may break the glass breaks it for everybody, for ever, or unseen. It is one client, named by id, for four
-- hours at most; it changes nothing; what it shows is recorded as any reading is, with a reason that says so; and the
-- emergency itself stands in the log of the client and in a table that nobody can write, to be reviewed.
create function charthold.break_glass(client uuid, why text, minutes integer, out id uuid, out until timestamptz)
    language plpgsql volatile parallel unsafe security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    s constant text := charthold.scope();
    tenant constant uuid := substr(s, 18, 36);
    actor constant uuid := substr(s, 54, 36);
    began constant timestamptz := clock_timestamp();
    broken text;
begin
    perform charthold.check_emergency(s, minutes);
    id := charthold.uuid7();
    until := began + make_interval(mins => minutes);
    begin
        insert into public.emergency_access (id, tenant_id, user_id, client_id, reason, until, created_at)
        values (id, tenant, actor, client, why, until, began);
    exception when foreign_key_violation then
        -- Where there are policies PostgreSQL does not say which id it was, and a detail would be shown. The caller gave it;
        -- Python records it, from a field that nobody prints.
        get stacked diagnostics broken = constraint_name;
        raise exception using errcode = 'foreign_key_violation', message = sqlerrm, constraint = broken, column = client;
    end;
    insert into charthold.emergency (id, tenant_id, user_id, client_id, until) values (id, tenant, actor, client, until);
    insert into public.user_action_audit_log (
        id, tenant_id, user_id, action_type, table_name, record_id, new_values, request_id, source_ip, reason
    )
    values (
        charthold.uuid7(), tenant, actor, 'break_glass', 'client', client,
        jsonb_build_object('emergency', id, 'until', until),
        nullif(split_part(s, chr(31), 2), ''), nullif(split_part(s, chr(31), 3), '')::inet, why
    );
end
$$""",
        execute_to=("app_runtime",),
    )

    manager.add_function(
        name="charthold.break_glass_by",
        signature="(text[], text[], text, integer)",
        source="""-- Breaks the glass for the one client whose blind indexes hold these hashes: hashes[n] is an array of those that are looked
-- for in indexes[n], written as text. Returns the emergency, or else how many clients there are, 2 for several.
--
-- Threat: whoever may look for clients of the whole tenant finds out who is one. So looking is breaking the glass: it is for
-- the same users, each search is recorded, even one that finds nobody, and an id is told only with an emergency. Python
-- records the search again when a rollback takes the record away; SQL of one's own, which must know the hashes, need not.
-- At most ten values of a column are looked for, as spellings of a name are: not everybody who might be a patient.
--
-- Threat: this looks beyond the rights of the user, who sees no client elsewhere. Nothing of that may be left, whatever fails.
create function charthold.break_glass_by(
    indexes text[], hashes text[], why text, minutes integer,
    out id uuid, out until timestamptz, out client uuid, out clients integer
)
    language plpgsql volatile parallel unsafe security definer
    set search_path = pg_catalog, pg_temp
    set debug_print_parse = off
    set debug_print_rewritten = off
    set debug_print_plan = off
as $$
declare
    before constant text := current_setting('charthold.scope', true);
    s constant text := charthold.scope();
    tenant constant uuid := substr(s, 18, 36);
    conditions text := '';
    found uuid[];
begin
    perform charthold.check_emergency(s, minutes);
    if coalesce(cardinality(indexes), 0) not between 1 and 10 or cardinality(hashes) is distinct from cardinality(indexes)
        or array_position(hashes, null) > 0
    then
        raise exception using errcode = 'invalid_parameter_value', message = 'a client is looked for by 1 to 10 indexes';
    end if;
    for n in 1 .. cardinality(indexes) loop
        if cardinality(hashes[n]::bytea[]) > 20 then  -- ten values, under the key in use and the next
            raise exception using errcode = 'invalid_parameter_value', message = 'a client is looked for by a few values';
        end if;
        -- A name of no column is quoted and not found; %L is cast, so only hashes are compared.
        conditions := conditions || format(' and c.%I = any (%L::bytea[])', indexes[n], hashes[n]);
    end loop;
    perform set_config(
        'charthold.scope', charthold.sign_as(tenant, 'find' || replace(substr(s, 54, 36), '-', ''), 'find a client'), true
    );
    execute 'select array(select c.id from public.client as c where c.tenant_id = $1' || conditions || ' limit 2)'
    into found using tenant;
    perform charthold.forget_scope(), set_config('charthold.scope', before, true);

    clients := cardinality(found);
    perform charthold.record(
        'search', 'client', null, null, jsonb_build_object('emergency', true, 'indexes', indexes, 'rows', clients)
    );
    if clients = 1 then
        client := found[1];
        select e.id, e.until into id, until from charthold.break_glass(client, why, minutes) as e;
    end if;
exception when query_canceled or assert_failure or others then
    -- What a session remembers is not undone with the rows.
    perform charthold.forget_scope();
    raise;
end
$$""",
        execute_to=("app_runtime",),
    )

    manager.add_function(
        name="charthold.check_emergency",
        signature="(text, integer)",
        source="""-- Whether the user of that scope may break the glass for so many minutes; else why not.
create function charthold.check_emergency(scope text, minutes integer) returns void
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    if rtrim(substr(scope, 90, 9)) not in ('admin', 'clinician') then
        raise exception using errcode = 'insufficient_privilege', message = 'break the glass';
    end if;
    if rtrim(substr(scope, 99, 36)) <> '' then
        raise exception using errcode = 'CH018', message = 'the user sees the whole tenant';
    end if;
    if minutes is null or minutes not between 1 and 240 then
        raise exception using errcode = 'CH019', message = 'an emergency lasts 1 to 240 minutes';
    end if;
end
$$""",
    )

    manager.add_function(
        name="charthold.emergency_client",
        source="""-- The client whose chart the open scope's user reads in an emergency, behind its tenant, as tenant_as() says why. Else null.
create function charthold.emergency_client() returns text
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    s constant text := charthold.scope();
begin
    return case when substr(s, 90, 9) = 'emergency' then substr(s, 18, 36) || split_part(substr(s, 135), chr(31), 5) end;
end
$$""",
        execute_to=("app_runtime", "app_auditor"),
    )

    manager.add_function(
        name="charthold.emergency_of",
        signature="(text)",
        source="""-- The emergency that a token names, if it does: in the place of the user stands the emergency, and behind the reason the
-- user. Whether the token holds, and whether the emergency has ended, are other questions.
--
-- Threat: an application takes the emergency's id from a request, and it is somebody else's, or a user's. So both are in the
-- token, and must belong together; and an emergency is written as no user is: "emer" and 32 hex digits.
create function charthold.emergency_of(token text, out user_id uuid, out client_id uuid, out until timestamptz)
    language sql stable parallel unsafe
as $$
    select e.user_id, e.client_id, e.until from charthold.emergency as e
    where (e.tenant_id::text || 'emer' || pg_catalog.replace(e.id::text, '-', '')) collate "C" = pg_catalog.substr(token, 93, 72)
        and e.user_id::text = pg_catalog.split_part(pg_catalog.substr(token, 165), pg_catalog.chr(31), 4)
$$""",
    )

    manager.add_function(
        name="charthold.ensure_partitions",
        signature="(integer)",
        source="""-- Makes the audit log's partitions for this month and the months ahead, and returns the names of the new ones.
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
$$""",
    )

    manager.add_function(
        name="charthold.find_principal",
        signature="(uuid, text)",
        source="""-- An active user of the tenant with that role, for commands that name no actor; preferably one who sees the whole tenant.
--
-- Threat: it answers before a scope exists, so it would tell a stranger who works at a clinic. Only the owner may call it.
create function charthold.find_principal(tenant uuid, wanted text) returns uuid
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select p.user_id from charthold.principal as p
        where p.tenant_id = tenant and p.role = wanted
            and (p.locked_until is null or p.locked_until <= clock_timestamp())
        order by p.facility_scope is not null, p.user_id limit 1
    );
end
$$""",
    )

    manager.add_function(
        name="charthold.find_tenant",
        signature="(text)",
        source="""-- The id and status of the tenant with that slug: what a login page needs before a scope can exist, and no more.
create function charthold.find_tenant(wanted text) returns table (tenant_id uuid, status text)
    language plpgsql stable security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    return query select d.tenant_id, d.status from charthold.tenant_directory as d where d.slug = wanted;
end
$$""",
        execute_to=("app_runtime",),
    )

    manager.add_function(
        name="charthold.follow_tenant",
        source="""-- Keeps charthold.tenant_directory, where find_tenant() looks, and charthold.principal in step with public.tenant.
-- They cannot read public.tenant itself: its policies call scope().
create function charthold.follow_tenant() returns trigger
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    if tg_op = 'DELETE' then
        delete from charthold.tenant_directory where tenant_id = old.id;
        return null;
    end if;
    -- Most changes of a tenant, such as of its settings, change nothing there; and follow_user() may hold that row.
    if tg_op = 'UPDATE' and (new.slug, new.status, new.retention_years)
        is not distinct from (old.slug, old.status, old.retention_years)
    then
        return null;
    end if;
    insert into charthold.tenant_directory (tenant_id, slug, status, retention_years)
    values (new.id, new.slug, new.status, new.retention_years)
    on conflict (tenant_id) do update
    set slug = excluded.slug, status = excluded.status, retention_years = excluded.retention_years;
    -- The users of a tenant that closes, or opens again, follow at once.
    update charthold.principal set tenant_open = new.status in ('trial', 'active')
    where tenant_id = new.id and tenant_open is distinct from (new.status in ('trial', 'active'));
    return null;
end
$$""",
    )

    manager.add_function(
        name="charthold.follow_user",
        source="""-- Keeps charthold.principal, where scope() looks, in step with public.app_user: only active users are principals.
create function charthold.follow_user() returns trigger
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    -- Most changes of a user, such as a login, leave what the user may do as it is.
    if tg_op = 'UPDATE' and (new.tenant_id, new.id, new.status, new.role, new.facility_scope, new.locked_until)
        is not distinct from (old.tenant_id, old.id, old.status, old.role, old.facility_scope, old.locked_until)
    then
        return null;
    end if;
    -- Threat: somebody is made active while the tenant is closed, and stays in. Whichever comes first, the other waits for it.
    perform from charthold.tenant_directory as d where d.tenant_id = coalesce(new.tenant_id, old.tenant_id) for share;
    if tg_op <> 'INSERT' then
        delete from charthold.principal where tenant_id = old.tenant_id and user_id = old.id;
    end if;
    if tg_op <> 'DELETE' and new.status = 'active' then
        insert into charthold.principal (tenant_id, user_id, role, facility_scope, locked_until, tenant_open)
        select new.tenant_id, new.id, new.role, new.facility_scope, new.locked_until, d.status in ('trial', 'active')
        from charthold.tenant_directory as d where d.tenant_id = new.tenant_id
        on conflict (tenant_id, user_id) do update
        set role = excluded.role, facility_scope = excluded.facility_scope, locked_until = excluded.locked_until,
            tenant_open = excluded.tenant_open;
    end if;
    return null;
end
$$""",
    )

    manager.add_function(
        name="charthold.forget_scope",
        source="""-- Ends the scope that a definer function signed for itself, and what the session remembers of it. Otherwise the caller, who
-- knows what the answer is made of, could have it believed to the end of the statement.
create function charthold.forget_scope() returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    perform set_config('charthold.scope', '', true), set_config('charthold.granted', '', true),
        setval('charthold.granted_1', 0), setval('charthold.granted_2', 0);
end
$$""",
    )

    manager.add_function(
        name="charthold.hmac",
        signature="(bytea, bytea, bytea)",
        source="""-- HMAC-SHA-256 (RFC 2104), in hexadecimal digits, under a key that is given as its two padded blocks.
-- Every name is qualified instead of pinning search_path, so that the planner inlines it.
create function charthold.hmac(inner_pad bytea, outer_pad bytea, message bytea) returns text
    language sql stable parallel safe
as $$
    select pg_catalog.encode(pg_catalog.sha256(outer_pad operator(pg_catalog.||) pg_catalog.sha256(
        inner_pad operator(pg_catalog.||) message
    )), 'hex')
$$""",
    )

    manager.add_function(
        name="charthold.is_large",
        signature="(jsonb)",
        source="""-- Whether a document is too long for a record of the log, or a long text of few bytes.
--
-- Threat: a record that nobody can read back whole, because its text is too long for PostgreSQL: it could not be sealed. Or
-- one of few bytes that takes a second to seal: JSON keeps a number of 131,072 digits in ten. What writes to the log asks,
-- and not a CHECK of the log: PostgreSQL reads a table's checks anew in each statement, which cost more than a record.
create function charthold.is_large(document jsonb) returns boolean
    language sql stable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select octet_length(document::text) > least(64000000, 200000 + 300 * pg_column_size(document)::bigint)
$$""",
    )

    manager.add_function(
        name="charthold.keep_history",
        source="""-- A user with history is deactivated, never deleted: the log must go on naming somebody who can be found.
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
$$""",
    )

    manager.add_function(
        name="charthold.keep_partition",
        signature="(text)",
        source="""-- Guards a table that is about to be a partition of the audit log as the log itself is: the planner samples no column that it
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
$$""",
    )

    manager.add_function(
        name="charthold.met_another",
        signature="(text)",
        source="""-- Whether this statement has verified another user, or another emergency, than this answer names, by what the session
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
$$""",
    )

    manager.add_function(
        name="charthold.npi_is_valid",
        signature="(text)",
        source="""-- A National Provider Identifier: ten digits whose Luhn sum, after the prefix 80840, is right (45 CFR 162.406).
-- The prefix adds 24; the second, fourth ... digit from the right is doubled and its digits added.
create function charthold.npi_is_valid(npi text) returns boolean
    language sql immutable strict parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select case when npi ~ '^[0-9]{10}$' then (
        24
        + (get_byte(npi::bytea, 0) - 48) * 2 / 10 + (get_byte(npi::bytea, 0) - 48) * 2 % 10 + get_byte(npi::bytea, 1) - 48
        + (get_byte(npi::bytea, 2) - 48) * 2 / 10 + (get_byte(npi::bytea, 2) - 48) * 2 % 10 + get_byte(npi::bytea, 3) - 48
        + (get_byte(npi::bytea, 4) - 48) * 2 / 10 + (get_byte(npi::bytea, 4) - 48) * 2 % 10 + get_byte(npi::bytea, 5) - 48
        + (get_byte(npi::bytea, 6) - 48) * 2 / 10 + (get_byte(npi::bytea, 6) - 48) * 2 % 10 + get_byte(npi::bytea, 7) - 48
        + (get_byte(npi::bytea, 8) - 48) * 2 / 10 + (get_byte(npi::bytea, 8) - 48) * 2 % 10 + get_byte(npi::bytea, 9) - 48
    ) % 10 = 0 else false end
$$""",
        execute_to=("app_runtime",),
    )

    manager.add_function(
        name="charthold.other_scope",
        signature="(text)",
        source="""-- What charthold.scope() answers to a token that has something else in the user's place; for any other token it says why it
-- is not believed. The role is "emergency", which changes nothing. Nothing of it is remembered.
--
-- "emer" and an emergency (charthold.emergency_of()): the client stands behind the reason, which says that the glass was
-- broken. A user who is locked, or no longer a clinician, has no emergency either.
--
-- "find" and "late" and a user, of charthold.sign_as(): to look for a client in all of the tenant, and to record what was
-- shown to a user who may be locked by now.
create function charthold.other_scope(token text) returns text
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    said constant text := substr(token, 165);
    kind constant text := substr(token, 129, 4);
    granted text;
begin
    if kind = 'emer' then
        select extract(epoch from statement_timestamp())::text || p.tenant_id || p.user_id || 'emergency' || repeat(' ', 36)
            || chr(31) || split_part(said, chr(31), 1) || chr(31) || split_part(said, chr(31), 2)
            || chr(31) || 'break-glass: ' || split_part(said, chr(31), 3) || chr(31) || e.client_id
        into granted
        from charthold.emergency_of(token) as e
        join charthold.principal as p on p.tenant_id::text = substr(token, 93, 36) and p.user_id = e.user_id
        where e.until > clock_timestamp() and charthold.token_holds(token)
            and p.tenant_open and p.role in ('admin', 'clinician')
            and (p.locked_until is null or p.locked_until <= clock_timestamp())
            -- An old snapshot shows the user as they were; the row itself says whether it was replaced since.
            and (p.xmax = '0'::xid or p.xmax = p.xmin or not charthold.was_replaced(p.xmin, p.xmax));
    elsif kind in ('find', 'late') and split_part(said, chr(31), 5) <> '' and charthold.token_holds(token) then
        return extract(epoch from statement_timestamp())::text || substr(token, 93, 36) || substr(token, 133, 32)::uuid
            || 'emergency' || substr(token, 93, 36) || chr(31) || said;
    end if;
    if granted is null then
        perform charthold.refuse_scope(token);
    end if;
    if charthold.met_another(granted) then
        raise exception using errcode = 'CH009', message = 'another user acts in this statement';
    end if;
    if current_setting('transaction_read_only') = 'off' then
        perform setval('charthold.granted_3', hashtextextended(left(granted, 17), 3)),
            setval('charthold.granted_4', hashtextextended(substr(granted, 18), 4));
    end if;
    return granted;
end
$$""",
    )

    manager.add_function(
        name="charthold.provision_tenant",
        signature="(text, uuid, text, text, text, integer, boolean, uuid, text, text, uuid, bytea, text)",
        source="""-- Makes a tenant, its first data key and its first admin, who is recorded as the actor of all three.
--
-- Threat: it writes before a scope exists, so it does exactly this and only for ids that are new: an id that exists
-- is refused before anything is signed for it.
--
-- Threat: whoever runs SQL fills the database with tenants of their own. So it wants a token for that tenant and that admin,
-- which only a program with the application's key signs.
--
-- Threat: a program with another master key than the application's wraps the tenant's key under it, and the application can
-- never open the tenant. The key that signs the token follows from the same master key, so it must be known.
create function charthold.provision_tenant(
    token text, tenant uuid, slug text, name text, time_zone text, retention_years int, trial boolean,
    admin uuid, admin_email text, admin_name text, key_row uuid, wrapped_key bytea, kek text
) returns void
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
    set debug_print_parse = off
    set debug_print_rewritten = off
    set debug_print_plan = off
as $$
begin
    -- The scope of the caller, if there is one, must not be swapped for another in the middle of a transaction.
    if coalesce(current_setting('charthold.scope', true), '') <> '' then
        raise exception using errcode = 'CH013', message = 'a tenant is provisioned outside of every scope';
    end if;

    if not exists (
        select from charthold.token_key as k
        where k.id = substr(token, 65, 8) and (k.retired_at is null or k.retired_at > clock_timestamp())
    ) then
        raise exception using errcode = 'CH007', message = 'the master key is not the one that the database knows';
    end if;

    if not charthold.token_holds(token) or substr(token, 93, 72) <> tenant::text || admin::text then
        raise exception using errcode = 'CH002', message = 'no token of ours is for that tenant and that admin';
    end if;

    -- A new tenant appears in the directory first, because follow_user() looks there. An id or a slug that is taken fails.
    insert into charthold.tenant_directory (tenant_id, slug, status, retention_years)
    values (tenant, slug, 'trial', retention_years);
    insert into charthold.principal (tenant_id, user_id, role, tenant_open) values (tenant, admin, 'system', true);
    perform set_config('charthold.scope', charthold.sign(tenant, admin, 'provision'), true);

    insert into public.tenant (id, slug, name, status, settings, branding, time_zone, retention_years)
    values (
        tenant, slug, name, case when trial then 'trial' else 'active' end, '{}', '{}', time_zone, retention_years
    );
    insert into public.app_user (id, tenant_id, email, full_name, role, status, mfa_enrolled, failed_logins)
    values (admin, tenant, admin_email, admin_name, 'admin', 'active', false, 0);
    -- From here the trigger on app_user has made the principal an admin.
    insert into public.tenant_key (id, tenant_id, version, wrapped, kek, status)
    values (key_row, tenant, 1, wrapped_key, kek, 'current');
    perform charthold.forget_scope();
exception when query_canceled or assert_failure or others then
    -- What a session remembers is not undone with the rows.
    perform charthold.forget_scope();
    raise;
end
$$""",
        execute_to=("app_runtime",),
    )

    manager.add_function(
        name="charthold.record",
        signature="(text, text, uuid, jsonb, jsonb)",
        source="""-- Records an action that no trigger sees: a login, an export, a key rotation. The kinds that triggers and reads write
-- are refused, so that nobody can forge one.
create function charthold.record(
    action text, about_table text, about_record uuid, old_values jsonb, new_values jsonb
) returns uuid
    language plpgsql volatile parallel unsafe security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    s constant text := charthold.scope();
    made constant uuid := charthold.uuid7();
begin
    if action in ('insert', 'update', 'delete', 'read', 'break_glass') then
        raise exception using errcode = 'CH014', message = 'that kind of record is written by the database alone';
    end if;
    -- As in ACTION_TYPES of core/tables.py.
    if action not in (
        'export', 'login', 'login_failed', 'logout', 'search', 'key_rotation', 'key_shredding',
        'tenant_change', 'audit_read', 'seal'
    ) or action is null then
        raise exception using errcode = 'check_violation', constraint = 'user_action_audit_log_action_known',
            table = 'user_action_audit_log', message = 'there is no such kind of record';
    end if;
    if charthold.is_large(old_values) or charthold.is_large(new_values) or octet_length(about_table) > 200 then
        perform charthold.refuse_large();
    end if;
    -- Threat: anybody declares that a key is gone. (What a verification found is signed.)
    if action in ('key_rotation', 'key_shredding', 'tenant_change') and charthold.actor_role() not in ('admin', 'system')
        or action in ('audit_read', 'seal') and charthold.actor_role() not in ('admin', 'auditor', 'system')
    then
        raise exception using errcode = 'insufficient_privilege', message = format('a record of %s', action);
    end if;
    insert into public.user_action_audit_log (
        id, tenant_id, user_id, action_type, table_name, record_id, old_values, new_values, request_id, source_ip, reason
    )
    values (
        made, substr(s, 18, 36)::uuid, substr(s, 54, 36)::uuid, action, about_table, about_record,
        old_values, new_values,
        nullif(split_part(s, chr(31), 2), ''),
        nullif(split_part(s, chr(31), 3), '')::inet,
        split_part(s, chr(31), 4)
    );
    return made;
end
$$""",
        execute_to=("app_runtime", "app_auditor"),
    )

    manager.add_function(
        name="charthold.record_late",
        signature="(text, text, text, uuid[], text[], jsonb)",
        source="""-- Records, for a token that was signed for it, what its user was shown, or took away, in a transaction that was rolled back,
-- even if the user was locked meanwhile, or the tenant suspended, which may be why it was rolled back. And that somebody
-- failed to log in as that user, who may be locked for it.
--
-- Threat: a user who will soon be locked reads in a transaction and lets it fail. So no scope is asked for, only that the
-- token holds; and what is written is about that user alone, whatever role the user has by now. The log's own policies want
-- a scope all the same: one that changes nothing (charthold.other_scope()), of which nothing may be left, whatever fails.
create function charthold.record_late(
    token text, action text, about_table text, ids uuid[], opened text[], said jsonb
) returns bigint
    language plpgsql volatile parallel unsafe security definer
    set search_path = pg_catalog, pg_temp
    set debug_print_parse = off
    set debug_print_rewritten = off
    set debug_print_plan = off
as $$
declare
    said_by_scope constant text := substr(token, 165);
    tenant uuid;
    actor uuid;
    hurried uuid;
    written bigint;
begin
    if action is null or action not in ('read', 'search', 'audit_read', 'export', 'login_failed')
        or action <> 'read' and cardinality(ids) is distinct from 1
        or action in ('read', 'login_failed') and said is not null
    then
        raise exception using errcode = 'CH014', message = 'that kind of record is not written late';
    end if;
    if charthold.is_large(said) or pg_column_size(opened) > 100000 or octet_length(about_table) > 200 then
        perform charthold.refuse_large();
    end if;
    -- In an emergency the token names that in the user's place.
    hurried := (select e.user_id from charthold.emergency_of(token) as e);
    if not charthold.token_holds(token) or hurried is null and substr(token, 129, 4) = 'emer' then
        perform charthold.refuse_scope(token);
    end if;
    tenant := substr(token, 93, 36);
    actor := coalesce(hurried, substr(token, 129, 36)::uuid);
    perform set_config(
        'charthold.scope', charthold.sign_as(tenant, 'late' || replace(actor::text, '-', ''), 'record late'), true
    );
    -- Only of a failed login it is not known yet that there is such a user. And whoever may lock app_user could hold up the
    -- record: so no statement names that table that is run for another kind of record.
    if action = 'login_failed' then
        if not exists (select from public.app_user as u where u.tenant_id = tenant and u.id = actor) then
            raise exception using errcode = 'CH023', message = 'the tenant has no such user';
        end if;
    end if;
    insert into public.user_action_audit_log (
        id, tenant_id, user_id, action_type, table_name, record_id, new_values, changed_columns,
        request_id, source_ip, reason
    )
    select charthold.uuid7(), tenant, actor, action, about_table, row_id, said,
        -- One dimension, counted from 1, as the canonical form has it.
        string_to_array(array_to_string(opened, ','), ','),
        nullif(split_part(said_by_scope, chr(31), 1), ''), nullif(split_part(said_by_scope, chr(31), 2), '')::inet,
        case when hurried is not null then 'break-glass: ' else '' end || split_part(said_by_scope, chr(31), 3)
    from unnest(ids) as row_id
    where row_id is not null or action <> 'read';
    get diagnostics written = row_count;
    perform charthold.forget_scope();
    return written;
exception when query_canceled or assert_failure or others then
    -- What a session remembers is not undone with the rows.
    perform charthold.forget_scope();
    raise;
end
$$""",
        execute_to=("app_runtime", "app_auditor"),
    )

    manager.add_function(
        name="charthold.record_read",
        signature="(text, uuid[], text[])",
        source="""-- Records that rows of a table were shown, one record a row, and returns how many. The statement that shows them calls
-- this; when it fails the statement fails, so nothing is shown that is not recorded.
--
-- Threat: it writes to the log as its owner. It writes one kind of record, about the caller and the caller's tenant.
--
-- One statement does nearly all: each expression of a function is prepared anew in each transaction, which costs more
-- than to evaluate it.
create function charthold.record_read(shown text, ids uuid[], opened text[]) returns bigint
    language plpgsql volatile parallel unsafe security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    s text;
    written bigint;
begin
    if ids is null then
        return 0;
    end if;
    s := charthold.scope();
    insert into public.user_action_audit_log (
        id, tenant_id, user_id, action_type, table_name, record_id, changed_columns, request_id, source_ip, reason,
        transaction_id
    )
    select
        (made || lpad(to_hex(n), 6, '0'))::uuid, tenant, actor, 'read', shown, row_id, columns, request, source, why, xid
    from (
        select
            case when octet_length(shown) > 200 or pg_column_size(opened) > 100000
                then charthold.refuse_large() else substr(s, 18, 36)::uuid
            end as tenant,
            substr(s, 54, 36)::uuid as actor,
            nullif(split_part(s, chr(31), 2), '') as request,
            nullif(split_part(s, chr(31), 3), '')::inet as source,
            split_part(s, chr(31), 4) as why,
            pg_current_xact_id()::text::bigint as xid,
            -- One dimension, counted from 1, as the canonical form has it.
            string_to_array(array_to_string(opened, ','), ',') as columns,
            charthold.uuid7_start() as made
        offset 0  -- once, not for each row
    ) as who, unnest(ids) with ordinality as rows (row_id, n)
    where row_id is not null;
    get diagnostics written = row_count;
    return written;
end
$$""",
        execute_to=("app_runtime", "app_auditor"),
    )

    manager.add_function(
        name="charthold.refuse_change",
        source="""-- The audit log is append-only, for its owner too.
create function charthold.refuse_change() returns trigger
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception using errcode = 'CH012', message = format('%I is append-only', tg_table_name);
end
$$""",
    )

    manager.add_function(
        name="charthold.refuse_large",
        source="""-- Refuses what does not fit into one record of the log, as charthold.is_large() says. Called where a tenant's id would stand.
create function charthold.refuse_large() returns uuid
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception using errcode = 'CH025', message = 'the change does not fit into one record of the log';
end
$$""",
    )

    manager.add_function(
        name="charthold.refuse_scope",
        signature="(text)",
        source="""-- Says why charthold.scope() does not believe a token.
-- Errors: CH001 no scope, CH002 not signed by us, CH003 expired, CH004 another backend's, CH005 actor not active,
-- CH006 an old snapshot, CH008 an emergency that has ended.
--
-- Threat: an oracle for the code of a token. So of a token whose code is wrong it says only that.
create function charthold.refuse_scope(token text) returns void
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    if coalesce(token, '') = '' then
        raise exception using errcode = 'CH001', message = 'no scope is open in this transaction';
    end if;
    if not charthold.token_signed(token) then
        raise exception using errcode = 'CH002', message = 'the scope is not signed by a current key';
    end if;
    if substr(token, 73, 10) <= extract(epoch from clock_timestamp())::text then
        raise exception using errcode = 'CH003', message = 'the scope has expired';
    end if;
    if substr(token, 83, 10) not in ('0000000000', lpad(pg_backend_pid()::text, 10, '0')) then
        raise exception using errcode = 'CH004', message = 'the scope belongs to another connection';
    end if;
    if exists (
        select from charthold.principal as p
        where (
            (p.tenant_id::text || p.user_id::text) collate "C" = substr(token, 93, 72)
            or p.user_id = (select e.user_id from charthold.emergency_of(token) as e)
        ) and charthold.was_replaced(p.xmin, p.xmax)
    ) or exists (
        select from charthold.token_key as k where k.id = substr(token, 65, 8) and charthold.was_replaced(k.xmin, k.xmax)
    ) then
        raise exception using errcode = 'CH006', message = 'the actor or the key was changed since this statement began';
    end if;
    if (select e.until from charthold.emergency_of(token) as e) <= clock_timestamp() then
        raise exception using errcode = 'CH008', message = 'the emergency has ended';
    end if;
    raise exception using errcode = 'CH005', message = 'the actor is not an active user of an open tenant, or is locked';
end
$$""",
    )

    manager.add_function(
        name="charthold.refuse_stranger",
        source="""-- Refuses a change of a row that belongs to another tenant than the scope. Called where a tenant's id would stand.
create function charthold.refuse_stranger() returns uuid
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception using errcode = 'CH015', message = 'the row belongs to another tenant than the scope';
end
$$""",
    )

    manager.add_function(
        name="charthold.refuse_truncate",
        source="""-- TRUNCATE fires no row trigger, so it would remove rows without a record.
create function charthold.refuse_truncate() returns trigger
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception using errcode = 'CH011',
        message = format('%I is audited and cannot be truncated; delete its rows instead', tg_table_name);
end
$$""",
    )

    manager.add_function(
        name="charthold.refuse_unreadable",
        source="""-- Refuses a value that Python could not read back: a time before the year 1 or after 9999, a hash that has not the length of
-- its blind index, or a document of a few bytes that is many megabytes of digits. Called where a tenant's id would stand.
--
-- Threat: whoever may write a row writes it so that every list with it fails, for everybody; or so that sealing all tenants'
-- logs takes an hour; or writes a name in plain text where a hash belongs.
create function charthold.refuse_unreadable() returns uuid
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception using errcode = 'CH017',
        message =
        'a time lies in the years 1 to 9999, a blind index has the length of its hashes, no number has 100,000 digits';
end
$$""",
    )

    manager.add_function(
        name="charthold.scope",
        source="""-- The verified context of this transaction, or an error.
--
-- Threat: anybody who can run SQL can set "charthold.scope". So nothing of it is believed before its HMAC holds under
-- a key which only the owner of this function can read. The hashes of both codes are compared, not the codes, so that
-- the time of the comparison tells nothing about the right one. The role is looked up, not carried: a user who was
-- locked a moment ago is out now, whatever was signed before.
--
-- A statement asks several times, once for each policy and trigger that it meets, and the answer is worked out once: it
-- stands in "charthold.granted", and 128 bits of its SHA-256 in two sequences.
-- Threat: "charthold.granted" can be set by anybody too. What a session reads back from a sequence (currval) cannot: only
-- this function's owner may write it. The answer begins with the moment at which the statement began, so it is good for
-- this statement and no other; and for a second, so that a statement that runs for an hour does not outlive the lock of its
-- user or the end of its scope. It holds nothing of the token's code. Of a token that a function signed for itself nothing
-- is remembered: whoever knows an answer that was given in this statement can put it back (charthold.sign_as()).
--
-- Threat: whoever holds two tokens of one backend swaps them within a statement, and is asked for the role under the one
-- and for the facilities under the other, or changes under the one what is recorded under the other. So two more sequences
-- hold hashes of the moment and of the user who was last verified, with the role, and no statement has two users; only
-- functions that sign for themselves may change who acts. Left open: in a read-only transaction nothing can be remembered;
-- and a cursor is fetched from in several statements, so what its policies ask at its first row and at a later one may be
-- asked of two.
--
-- Returns that moment (17 characters) || tenant (36) || actor (36) || role (9) || the tenant again, or spaces for who is
-- bound to facilities (36) || facilities, request id, source ip and reason, with a unit separator (U+001F) between them, and
-- in an emergency the client.
-- Errors: those of charthold.refuse_scope(), and CH009 for a second user in one statement.
create function charthold.scope() returns text
    language plpgsql stable parallel unsafe security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    -- As bytes, of which the n-th is found at once; of text in UTF-8 it is counted for.
    token constant bytea := convert_to(current_setting('charthold.scope', true), 'UTF8');
    granted text := current_setting('charthold.granted', true);
    seal text;
    kept boolean;
begin
    -- Worked out in this statement, a moment ago, for whom the token names? An expression behind the first IF is prepared
    -- only where it is reached.
    if granted <> '' then
        if left(granted, 89) = extract(epoch from statement_timestamp())::text || encode(substr(token, 93, 72), 'escape')
            and clock_timestamp() - statement_timestamp() between interval '0' and interval '1 second'
        then
            seal := encode(sha256(convert_to(granted, 'UTF8')), 'hex');
            if currval('charthold.granted_1') = hashtextextended(seal, 1)
                and currval('charthold.granted_2') = hashtextextended(seal, 2)
            then
                return granted;
            end if;
        end if;
    end if;

    -- One look-up for everything: each costs more than all that is computed. Nothing is cast, because what is not signed
    -- may be anything.
    select extract(epoch from statement_timestamp())::text || p.standing || chr(31)
        || convert_from(substr(token, 165), 'UTF8')
    into granted
    from charthold.token_key as k
    join charthold.principal as p
        on (p.tenant_id::text || p.user_id::text) collate "C" = encode(substr(token, 93, 72), 'escape')
    where k.id = encode(substr(token, 65, 8), 'escape') and (k.retired_at is null or k.retired_at > clock_timestamp())
        and sha256(substr(token, 1, 64))
            = sha256(convert_to(charthold.hmac(k.inner_pad, k.outer_pad, substr(token, 65)), 'UTF8'))
        and encode(substr(token, 73, 10), 'escape') > extract(epoch from clock_timestamp())::text
        and encode(substr(token, 83, 10), 'escape') in ('0000000000', lpad(pg_backend_pid()::text, 10, '0'))
        and (p.locked_until is null or p.locked_until <= clock_timestamp())
        -- A cursor, or a transaction of another isolation level, looks at the past. The row that it sees says so itself.
        and (p.xmax = '0'::xid or p.xmax = p.xmin or not charthold.was_replaced(p.xmin, p.xmax))
        and (k.xmax = '0'::xid or k.xmax = k.xmin or not charthold.was_replaced(k.xmin, k.xmax));
    if granted is null then
        -- An emergency, or what a function of ours does beyond its caller's rights. Worked out each time it is asked for.
        return charthold.other_scope(current_setting('charthold.scope', true));
    end if;

    -- Nothing is remembered in a transaction that may write nothing, nor of what signs for itself.
    seal := encode(sha256(convert_to(granted, 'UTF8')), 'hex');
    kept := case
        when split_part(granted, chr(31), 6) <> '' then true
        when current_setting('charthold.remembers', true) is not distinct from 'yes'
            and currval('charthold.granted_3') = hashtextextended(left(granted, 17), 3)
            and currval('charthold.granted_4') <> hashtextextended(substr(granted, 18, 81), 4)
        then false
        when current_setting('charthold.remembers', true) is distinct from 'yes' and charthold.met_another(granted) then false
        when current_setting('transaction_read_only') = 'on' then true
        else setval('charthold.granted_1', hashtextextended(seal, 1)) is not null
            and setval('charthold.granted_2', hashtextextended(seal, 2)) is not null
            and setval('charthold.granted_3', hashtextextended(left(granted, 17), 3)) is not null
            and setval('charthold.granted_4', hashtextextended(substr(granted, 18, 81), 4)) is not null
            and set_config('charthold.granted', granted, true) is not null
    end;
    if not kept then
        raise exception using errcode = 'CH009', message = 'another user acts in this statement';
    end if;
    return granted;
end
$$""",
        execute_to=("app_runtime", "app_auditor"),
    )

    manager.add_function(
        name="charthold.set_tenant_status",
        signature="(uuid, uuid, text, text)",
        source="""-- Suspends, closes or reopens a tenant. In a suspended tenant nobody writes but those who seal and review the log
-- (charthold.standing()), so only the owner can reopen it.
--
-- Threat: the only admin is bound to facilities, or locked, so that nobody could suspend the tenant. So whichever active
-- user the owner names acts as the system while this lasts.
create function charthold.set_tenant_status(tenant uuid, actor uuid, new_status text, reason text) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
    set debug_print_parse = off
    set debug_print_rewritten = off
    set debug_print_plan = off
as $$
declare
    was charthold.principal;
begin
    -- First of all, as in follow_user(): whoever is made active meanwhile waits.
    perform from charthold.tenant_directory as d where d.tenant_id = tenant for update;
    select * into was from charthold.principal as p where p.tenant_id = tenant and p.user_id = actor;
    if not found then
        raise exception using errcode = 'CH005', message = 'the tenant has no such user, or one who is not active';
    end if;
    update charthold.principal as p
    set role = 'system', facility_scope = null, locked_until = null, tenant_open = true
    where p.tenant_id = tenant and p.user_id = actor;
    perform set_config('charthold.scope', charthold.sign(tenant, actor, reason), true);
    update public.tenant as t set status = new_status where t.id = set_tenant_status.tenant;
    perform charthold.forget_scope();
    -- The trigger on public.tenant opened or closed the principals.
    update charthold.principal as p
    set role = was.role, facility_scope = was.facility_scope, locked_until = was.locked_until,
        tenant_open = new_status in ('trial', 'active')
    where p.tenant_id = tenant and p.user_id = actor;
exception when query_canceled or assert_failure or others then
    -- What a session remembers is not undone with the rows.
    perform charthold.forget_scope();
    raise;
end
$$""",
    )

    manager.add_function(
        name="charthold.shown_to",
        signature="(text, text[])",
        source="""-- Whether the role of the open scope's user is one of these, to whom something is shown; for any other it raises.
create function charthold.shown_to(what text, roles text[]) returns boolean
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    if charthold.actor_role() = any (roles) then
        return true;
    end if;
    raise exception using errcode = 'CH024', message = format('%s: for %s', what, array_to_string(roles, ', '));
end
$$""",
        execute_to=("app_runtime", "app_auditor"),
    )

    manager.add_function(
        name="charthold.sign",
        signature="(uuid, uuid, text)",
        source="""-- A token for a user of the tenant, as charthold.sign_as() says.
create function charthold.sign(tenant uuid, actor uuid, reason text) returns text
    language sql volatile parallel unsafe
as $$
    select charthold.sign_as(tenant, actor::text, reason)
$$""",
    )

    manager.add_function(
        name="charthold.sign_as",
        signature="(uuid, text, text)",
        source="""-- A token for this backend and the next minute, for the functions that act before a scope can exist, or beyond the caller's.
-- who: a user's id, or four letters and 32 digits of one, as charthold.other_scope() reads them.
--
-- Threat: whoever can call this can act as anybody. No role but the owner may. Those of its callers that others may call
-- (break_glass_by, provision_tenant, record_late) end with charthold.forget_scope(), also when they fail; the rest act in a
-- transaction of the owner's own.
--
-- Threat: a cancel can interrupt the handler that forgets. The settings are undone with the failed block, but not what the
-- session remembers. So charthold.scope() remembers nothing of such a token, which alone has a fifth place behind the reason;
-- and what stands there nobody can guess.
--
-- Threat: PostgreSQL prints the plans of the statements within these functions, with the token in them, to whoever asks
-- (debug_print_plan, client_min_messages). So those callers switch it off for as long as they run.
create function charthold.sign_as(tenant uuid, who text, reason text) returns text
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    k record;
    payload text;
begin
    select * into k from charthold.token_key where retired_at is null order by created_at desc, id limit 1;
    if not found then
        raise exception using errcode = 'CH002', message = 'there is no token key';
    end if;
    payload := k.id
        || lpad((extract(epoch from clock_timestamp())::bigint + 60)::text, 10, '0')
        || lpad(pg_backend_pid()::text, 10, '0')
        || tenant || who || chr(31) || chr(31) || reason || chr(31) || chr(31) || gen_random_uuid();
    return charthold.hmac(k.inner_pad, k.outer_pad, convert_to(payload, 'UTF8')) || payload;
end
$$""",
    )

    manager.add_function(
        name="charthold.stand",
        source="""-- Keeps ready, in charthold.principal, what charthold.scope() answers about a user.
create function charthold.stand() returns trigger
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
begin
    new.standing := charthold.standing(new.tenant_id, new.user_id, new.role, new.facility_scope, new.tenant_open);
    return new;
end
$$""",
    )

    manager.add_function(
        name="charthold.standing",
        signature="(uuid, uuid, text, uuid[], boolean)",
        source="""-- What charthold.scope() answers about a user: tenant (36) || user (36) || role (9) || the tenant again, or spaces for who is
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
$$""",
    )

    manager.add_function(
        name="charthold.tenant_as",
        signature="(text[])",
        source="""-- The tenant of the open scope, if its user has one of these roles; else null.
--
-- Threat: whoever holds two tokens of one backend swaps them within a statement, and is asked for the tenant under the one
-- and for the role under the other. So whatever a policy asks it asks together with the tenant.
create function charthold.tenant_as(variadic roles text[]) returns uuid
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
declare
    s constant text := charthold.scope();
begin
    return case when rtrim(substr(s, 90, 9)) = any (roles) then substr(s, 18, 36)::uuid end;
end
$$""",
        execute_to=("app_runtime", "app_auditor"),
    )

    manager.add_function(
        name="charthold.tenant_everywhere",
        source="""-- The tenant of the open scope, for a user who sees all of it; null for one who is bound to facilities.
create function charthold.tenant_everywhere() returns uuid
    language sql stable parallel unsafe
as $$
    select nullif(pg_catalog.rtrim(pg_catalog.substr(charthold.scope(), 99, 36)), '')::pg_catalog.uuid
$$""",
        execute_to=("app_runtime", "app_auditor"),
    )

    manager.add_function(
        name="charthold.tenant_id",
        source="""-- The tenant of the open scope. Policies call it as (select charthold.tenant_id()): once a statement, not once a row.
create function charthold.tenant_id() returns uuid
    language sql stable parallel unsafe
as $$
    select pg_catalog.substr(charthold.scope(), 18, 36)::pg_catalog.uuid
$$""",
        execute_to=("app_runtime", "app_auditor"),
    )

    manager.add_function(
        name="charthold.token_holds",
        signature="(text)",
        source="""-- Whether a token is signed, has not expired, and names this backend or none. Whether its user may act is another question,
-- which charthold.scope() asks.
create function charthold.token_holds(token text) returns boolean
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    return charthold.token_signed(token)
        and substr(token, 73, 10) > extract(epoch from clock_timestamp())::text
        and substr(token, 83, 10) in ('0000000000', lpad(pg_backend_pid()::text, 10, '0'))
        -- In an old snapshot the key is as it was; the row itself says whether it was retired since.
        and not exists (
            select from charthold.token_key as k
            where k.id = substr(token, 65, 8) and charthold.was_replaced(k.xmin, k.xmax)
        );
end
$$""",
    )

    manager.add_function(
        name="charthold.token_signed",
        signature="(text)",
        source="""-- Whether a token's code is right, under a key that is not retired. charthold.scope() asks the same within its one look-up.
create function charthold.token_signed(token text) returns boolean
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    -- The hashes are compared and not the codes, so that the time of it tells nothing about the right one.
    return exists (
        select from charthold.token_key as k
        where k.id = substr(token, 65, 8) and (k.retired_at is null or k.retired_at > clock_timestamp())
            and sha256(convert_to(left(token, 64), 'UTF8')) = sha256(
                convert_to(charthold.hmac(k.inner_pad, k.outer_pad, convert_to(substr(token, 65), 'UTF8')), 'UTF8')
            )
    );
end
$$""",
    )

    manager.add_function(
        name="charthold.touch",
        source="""-- Moves updated_at, and keeps what a row is: its id, its tenant and its birth cannot be updated.
create function charthold.touch() returns trigger
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
begin
    if new.id is distinct from old.id or new.created_at is distinct from old.created_at then
        raise exception using errcode = 'CH010', message = format('id and created_at of %I cannot be updated', tg_table_name);
    end if;
    new.updated_at := clock_timestamp();
    return new;
end
$$""",
    )

    manager.add_function(
        name="charthold.touch_tenant_row",
        source="""-- As charthold.touch, for the tables of tenants: a row cannot move to another tenant either.
--
-- Threat: a statement that runs calls itself read-only, so that charthold.scope() remembers nobody, and then has two users.
create function charthold.touch_tenant_row() returns trigger
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
begin
    if (new.tenant_id, new.id, new.created_at) is distinct from (old.tenant_id, old.id, old.created_at) then
        raise exception using errcode = 'CH010',
            message = format('tenant_id, id and created_at of %I cannot be updated', tg_table_name);
    end if;
    if current_setting('transaction_read_only') = 'on' then
        raise exception using errcode = 'CH009', message = 'a transaction that may write nothing writes';
    end if;
    new.updated_at := clock_timestamp();
    return new;
end
$$""",
    )

    manager.add_function(
        name="charthold.uuid7",
        source="""-- One UUIDv7 for what the database makes itself, a row at a time; PostgreSQL has its own only from version 18.
create function charthold.uuid7() returns uuid
    language sql volatile parallel restricted
as $$
    select (charthold.uuid7_start() operator(pg_catalog.||) pg_catalog.lpad(pg_catalog.to_hex(
        (pg_catalog.random() operator(pg_catalog.*) 16777215)::pg_catalog.int4
    ), 6, '0'))::pg_catalog.uuid
$$""",
        execute_to=("app_runtime",),
    )

    manager.add_function(
        name="charthold.uuid7_start",
        source="""-- The first 26 of the 32 hexadecimal digits of UUIDv7s (RFC 9562, section 5.7) that one statement makes; the rest numbers
-- its rows. An id must be unique, not secret: the millisecond and 1/4096ths of it (section 6.2, method 3), the backend,
-- which no other is at that moment, and twelve random bits, instead of the kernel's random bytes: a system call a record
-- costs as much as an index. One reading of the clock, so that later ids are greater. Every name is qualified instead of
-- pinning search_path, so that the planner inlines it.
create function charthold.uuid7_start() returns text
    language sql volatile parallel restricted
as $$
    select pg_catalog.overlay(pg_catalog.lpad(pg_catalog.to_hex(pg_catalog.floor(
            pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()) operator(pg_catalog.*) 4096000
        )::pg_catalog.int8), 15, '0'), '7', 13, 0)
        operator(pg_catalog.||) 'a'
        operator(pg_catalog.||) pg_catalog.lpad(pg_catalog.to_hex(pg_catalog.pg_backend_pid()), 6, '0')
        operator(pg_catalog.||) pg_catalog.lpad(pg_catalog.to_hex(
            (pg_catalog.random() operator(pg_catalog.*) 4095)::pg_catalog.int4
        ), 3, '0')
$$""",
        execute_to=("app_runtime",),
    )

    manager.add_function(
        name="charthold.was_replaced",
        signature="(xid, xid)",
        source="""-- Whether the version of a row that this transaction looks at has been replaced or deleted since: its xmax committed.
--
-- Threat: in REPEATABLE READ a transaction goes on seeing what its first statement saw, and a cursor what it saw when it was
-- declared, and with it a user who was locked since. The old version of the row says so itself. Its xmax has 32 bits; the
-- nearest 64-bit id is meant. Of a row that an upsert wrote it is the lock of its own writer, and equal to its xmin; nobody
-- else locks the rows that this is asked of.
create function charthold.was_replaced(written_by xid, replaced_by xid) returns boolean
    language sql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
    select replaced_by <> '0'::xid and replaced_by <> written_by and pg_xact_status((
        near + ((replaced_by::text::bigint - near % 4294967296 + 2147483648 + 4294967296) % 4294967296) - 2147483648
    )::text::xid8) = 'committed'
    from (select pg_snapshot_xmax(pg_current_snapshot())::text::bigint as near) as s
$$""",
    )

    manager.add_statement(
        name="public keeps no temporary tables",
        forwards="""do $$
begin
    execute format('revoke temporary on database %I from public', current_database());
end
$$""",
        backwards="""do $$
begin
    execute format('grant temporary on database %I to public', current_database());
end
$$""",
        declared=True,
    )

    manager.add_statement(
        name="public keeps no schema",
        forwards="revoke all on schema public from public",
        backwards="grant usage on schema public to public",
        declared=True,
    )

    manager.add_statement(
        name="a session remembers what it was granted, 1",
        forwards="create unlogged sequence charthold.granted_1 minvalue -9223372036854775808",
        backwards="drop sequence charthold.granted_1",
        declared=True,
    )

    manager.add_statement(
        name="a session remembers what it was granted, 2",
        forwards="create unlogged sequence charthold.granted_2 minvalue -9223372036854775808",
        backwards="drop sequence charthold.granted_2",
        declared=True,
    )

    manager.add_statement(
        name="a session remembers what it was granted, 3",
        forwards="create unlogged sequence charthold.granted_3 minvalue -9223372036854775808",
        backwards="drop sequence charthold.granted_3",
        declared=True,
    )

    manager.add_statement(
        name="a session remembers what it was granted, 4",
        forwards="create unlogged sequence charthold.granted_4 minvalue -9223372036854775808",
        backwards="drop sequence charthold.granted_4",
        declared=True,
    )

    return manager
