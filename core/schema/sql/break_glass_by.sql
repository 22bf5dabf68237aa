-- Breaks the glass for the one client whose blind indexes hold these hashes: hashes[n] is an array of those that are looked
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
$$
