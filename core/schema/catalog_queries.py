"""The queries behind ``catalog.snapshot``, one a kind of object.

Each returns a name and a value. ``$1`` is the schemas, ``$2`` the tables that are left out.
"""

from __future__ import annotations

__all__ = ["QUERIES", "ROLES"]

# What each query selects from: our relations, without the ignored ones and those that extensions brought.
RELATIONS = """
with relation as (
    select c.*, c.oid as id, c.oid::regclass::text as called, n.nspname,
        -- A partition's copies of its parent's objects come and go with it.
        c.relispartition as part
    from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
    where n.nspname = any($1)
        and not exists (
            select from pg_depend as d where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e'
        )
        and coalesce((
            select i.indrelid from pg_index as i where i.indexrelid = c.oid
        ), (
            select d.refobjid from pg_depend as d
            where d.classid = 'pg_class'::regclass and d.objid = c.oid and c.relkind = 'S'
                and d.refclassid = 'pg_class'::regclass and d.deptype in ('a', 'i') limit 1
        ), c.oid) <> all (select to_regclass(ignored)::oid from unnest($2::text[]) as ignored
            where to_regclass(ignored) is not null)
)
"""

# Whose privileges they are: the owner goes by that name, because databases have different owners.
ACL = """
select {name} as name, jsonb_build_object(
    'object', {object},
    'to', case a.grantee when {owner} then 'owner' when 0 then 'public'
        else quote_ident(pg_get_userbyid(a.grantee)) end,
    'privilege', lower(a.privilege_type), 'columns', {columns}, 'grantable', a.is_grantable, 'part', {part}
) as value
"""

QUERIES: dict[str, str] = {
    "schema": """
        select quote_ident(nspname) as name, jsonb_build_object('ident', quote_ident(nspname)) as value
        from pg_namespace where nspname = any($1)
    """,
    "table": RELATIONS
    + """
        select called as name, jsonb_build_object(
            'kind', relkind, 'persistence', relpersistence, 'part', part,
            'partition_by', pg_get_partkeydef(id), 'bound', pg_get_expr(relpartbound, id),
            'parents', array(select inhparent::regclass::text from pg_inherits where inhrelid = id order by 1),
            'replica_identity', relreplident,
            'access_method', (select amname from pg_am where pg_am.oid = relam)
        ) as value
        from relation where relkind in ('r', 'p', 'f')
    """,
    "row_security": RELATIONS
    + """
        select called as name, jsonb_build_object('on', called, 'forced', relforcerowsecurity, 'part', part) as value
        from relation where relrowsecurity
        union all
        -- FORCE without ENABLE protects nothing, and still is a difference.
        select called, jsonb_build_object('on', called, 'forced', true, 'enabled', false, 'part', part)
        from relation where relforcerowsecurity and not relrowsecurity
    """,
    "storage_parameters": RELATIONS
    + """
        select called || ' ' || split_part(option, '=', 1) as name, jsonb_build_object(
            'on', called, 'kind', relkind, 'option', split_part(option, '=', 1),
            'value', substr(option, strpos(option, '=') + 1), 'part', part
        ) as value
        from relation, unnest(reloptions) as option
    """,
    "column": RELATIONS
    + """
        select called || '.' || quote_ident(attname) as name, jsonb_build_object(
            'on', called, 'ident', quote_ident(attname), 'type', format_type(atttypid, atttypmod),
            'not_null', attnotnull, 'default',
            -- NULL, of whatever type, is what there is without a default.
            case when pg_get_expr(adbin, adrelid) !~ '^NULL(::[^()]+)?$' then pg_get_expr(adbin, adrelid) end,
            'identity', attidentity, 'generated', attgenerated, 'part', part,
            'storage', attstorage, 'compression', attcompression, 'statistics', nullif(attstattarget, -1),
            'options', attoptions,
            'collation', (select collname from pg_collation where pg_collation.oid = attcollation)
        ) as value
        from relation
        join pg_attribute on attrelid = id and attnum > 0 and not attisdropped
        left join pg_attrdef on adrelid = attrelid and adnum = attnum
        where relkind in ('r', 'p', 'f', 'v', 'm', 'c')
    """,
    "constraint": RELATIONS
    + """
        select quote_ident(conname) || ' on ' || called as name, jsonb_build_object(
            'on', called, 'ident', quote_ident(conname), 'type', contype,
            'definition', replace(pg_get_constraintdef(k.oid), ' NOT VALID', ''), 'validated', convalidated,
            'part', part, 'inherited', coninhcount > 0 or conparentid <> 0
        ) as value
        from relation join pg_constraint as k on k.conrelid = id
        -- NOT NULL is told with its column; since version 18 it has a row here, under a name that nobody chose.
        where contype <> 'n'
    """,
    "index": RELATIONS
    + """
        select called as name, jsonb_build_object(
            'ident', called, 'on', indrelid::regclass::text, 'definition', pg_get_indexdef(id),
            'valid', indisvalid, 'ready', indisready, 'clustered', indisclustered, 'replica_identity', indisreplident,
            'of_constraint', exists (select from pg_constraint where conindid = id and contype in ('p', 'u', 'x')),
            'part', (select owner.relispartition from pg_class as owner where owner.oid = indrelid),
            'inherited', exists (select from pg_inherits where inhrelid = id)
        ) as value
        from relation join pg_index on indexrelid = id
    """,
    "policy": RELATIONS
    + """
        select quote_ident(polname) || ' on ' || called as name, jsonb_build_object(
            'on', called, 'ident', quote_ident(polname), 'restrictive', not polpermissive, 'part', part,
            'command', case polcmd when '*' then 'all' when 'r' then 'select' when 'a' then 'insert'
                when 'w' then 'update' else 'delete' end,
            'to', (select array_agg(role order by role) from (
                select case member when 0 then 'public' else quote_ident(pg_get_userbyid(member)) end as role
                from unnest(polroles) as member) as roles),
            'using', pg_get_expr(polqual, polrelid), 'check', pg_get_expr(polwithcheck, polrelid)
        ) as value
        from relation join pg_policy on polrelid = id
    """,
    "trigger": RELATIONS
    + """
        select quote_ident(tgname) || ' on ' || called as name, jsonb_build_object(
            'on', called, 'ident', quote_ident(tgname), 'definition', pg_get_triggerdef(t.oid), 'enabled', tgenabled,
            'part', part, 'inherited', tgparentid <> 0
        ) as value
        from relation join pg_trigger as t on tgrelid = id where not tgisinternal
    """,
    "rule": RELATIONS
    + """
        select quote_ident(rulename) || ' on ' || called as name, jsonb_build_object(
            'on', called, 'ident', quote_ident(rulename), 'definition', pg_get_ruledef(r.oid), 'enabled', ev_enabled,
            'part', part
        ) as value
        from relation join pg_rewrite as r on ev_class = id where rulename <> '_RETURN'
    """,
    "view": RELATIONS
    + """
        select called as name, jsonb_build_object(
            'ident', called, 'materialized', relkind = 'm', 'definition', pg_get_viewdef(id)
        ) as value
        from relation where relkind in ('v', 'm')
    """,
    "sequence": RELATIONS
    + """
        select called as name, jsonb_build_object(
            'ident', called, 'type', format_type(seqtypid, null), 'start', seqstart, 'increment', seqincrement,
            'max', seqmax, 'min', seqmin, 'cache', seqcache, 'cycle', seqcycle, 'persistence', relpersistence,
            'owned_by', (
                select refobjid::regclass::text || '.' || refobjsubid from pg_depend
                where classid = 'pg_class'::regclass and objid = id and deptype in ('a', 'i')
                    and refclassid = 'pg_class'::regclass limit 1
            )
        ) as value
        from relation join pg_sequence on seqrelid = id
    """,
    "statistics": RELATIONS
    + """
        select s.stxnamespace::regnamespace::text || '.' || quote_ident(stxname) as name, jsonb_build_object(
            'ident', s.stxnamespace::regnamespace::text || '.' || quote_ident(stxname),
            'definition', pg_get_statisticsobjdef(s.oid)
        ) as value
        from relation join pg_statistic_ext as s on stxrelid = id
    """,
    "function": """
        select p.oid::regprocedure::text as name, jsonb_build_object(
            'ident', p.oid::regprocedure::text, 'kind', prokind,
            'definition', case when prokind = 'a' then null else pg_get_functiondef(p.oid) end
        ) as value
        from pg_proc as p join pg_namespace as n on n.oid = pronamespace
        where nspname = any($1) and not exists (
            select from pg_depend as d where d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e')
    """,
    "domain": """
        select t.oid::regtype::text as name, jsonb_build_object(
            'ident', t.oid::regtype::text, 'type', format_type(typbasetype, typtypmod), 'not_null', typnotnull,
            'default', typdefault,
            'checks', (select jsonb_object_agg(quote_ident(conname), pg_get_constraintdef(k.oid))
                from pg_constraint as k where contypid = t.oid and contype = 'c')
        ) as value
        from pg_type as t join pg_namespace as n on n.oid = typnamespace
        where typtype = 'd' and nspname = any($1) and not exists (
            select from pg_depend as d where d.classid = 'pg_type'::regclass and d.objid = t.oid and d.deptype = 'e')
    """,
    "type": """
        select t.oid::regtype::text as name, jsonb_build_object(
            'ident', t.oid::regtype::text, 'kind', typtype,
            'labels', (select array_agg(enumlabel order by enumsortorder) from pg_enum where enumtypid = t.oid),
            'subtype', (select format_type(rngsubtype, null) from pg_range where rngtypid = t.oid)
        ) as value
        from pg_type as t join pg_namespace as n on n.oid = typnamespace
        where nspname = any($1) and not exists (
            select from pg_depend as d where d.classid = 'pg_type'::regclass and d.objid = t.oid and d.deptype = 'e')
            and (typtype in ('e', 'r') or typtype = 'c'
                and (select relkind from pg_class where pg_class.oid = typrelid) = 'c')
    """,
    "comment": """
        select i.type || ' ' || i.identity as name, jsonb_build_object(
            'type', i.type, 'ident', i.identity, 'text', description,
            'on', case when classoid = 'pg_class'::regclass then objoid::regclass::text
                else substring(i.identity from ' on (.*)$') end
        ) as value
        from (
            select distinct classoid, objoid, objsubid, description from pg_description where objoid >= 16384
        ) as d, pg_identify_object(classoid, objoid, objsubid) as i
        where (i.schema = any($1) or exists (
                select from unnest($1::text[]) as s where i.identity like '% on ' || quote_ident(s) || '.%'
                    or i.identity = quote_ident(s)))
    """,
    "grant": RELATIONS
    + ACL.format(
        name="case relkind when 'S' then 'sequence ' else '' end || called || ' ' || lower(privilege_type) || ' to '"
        " || case a.grantee when 0 then 'public' when relowner then 'owner' else pg_get_userbyid(a.grantee) end",
        object="case relkind when 'S' then 'sequence ' else 'table ' end || called",
        owner="relowner",
        columns="null::text",
        part="part",
    )
    + """
        from relation, aclexplode(
            coalesce(relacl, acldefault(case relkind when 'S' then 's' else 'r' end::"char", relowner))) as a
        where relkind in ('r', 'p', 'v', 'm', 'f', 'S')
    """,
    "column_grant": RELATIONS
    + ACL.format(
        name="called || '.' || quote_ident(attname) || ' ' || lower(privilege_type) || ' to '"
        " || case a.grantee when 0 then 'public' else pg_get_userbyid(a.grantee) end",
        object="'table ' || called",
        owner="relowner",
        columns="quote_ident(attname)",
        part="part",
    )
    + " from relation join pg_attribute on attrelid = id and not attisdropped, aclexplode(attacl) as a",
    "function_grant": ACL.format(
        name="p.oid::regprocedure::text || ' to '"
        " || case a.grantee when 0 then 'public' when proowner then 'owner' else pg_get_userbyid(a.grantee) end",
        object="'function ' || p.oid::regprocedure::text",
        owner="proowner",
        columns="null::text",
        part="false",
    )
    + """
        from pg_proc as p join pg_namespace as n on n.oid = pronamespace,
            aclexplode(coalesce(proacl, acldefault('f', proowner))) as a
        where nspname = any($1) and not exists (
            select from pg_depend as d where d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e')
    """,
    "schema_grant": ACL.format(
        name="quote_ident(nspname) || ' ' || lower(privilege_type) || ' to '"
        " || case a.grantee when 0 then 'public' when nspowner then 'owner' else pg_get_userbyid(a.grantee) end",
        object="'schema ' || quote_ident(nspname)",
        owner="nspowner",
        columns="null::text",
        part="false",
    )
    + """
        from pg_namespace, aclexplode(coalesce(nspacl, acldefault('n', nspowner))) as a
        where nspname = any($1)
    """,
    "type_grant": ACL.format(
        name="t.oid::regtype::text || ' to '"
        " || case a.grantee when 0 then 'public' when typowner then 'owner' else pg_get_userbyid(a.grantee) end",
        object="'type ' || t.oid::regtype::text",
        owner="typowner",
        columns="null::text",
        part="false",
    )
    + """
        from pg_type as t join pg_namespace as n on n.oid = typnamespace,
            aclexplode(coalesce(typacl, acldefault('T', typowner))) as a
        where nspname = any($1) and typtype in ('d', 'e', 'r')
    """,
    # Who may connect is the deployment's business; who may make objects is ours.
    "database_grant": ACL.format(
        name="lower(privilege_type) || ' to '"
        " || case a.grantee when 0 then 'public' when datdba then 'owner' else pg_get_userbyid(a.grantee) end",
        object="'database'",
        owner="datdba",
        columns="null::text",
        part="false",
    )
    + """
        from pg_database, aclexplode(coalesce(datacl, acldefault('d', datdba))) as a
        where datname = current_database() and privilege_type <> 'CONNECT'
    """,
    "default_privileges": """
        select concat_ws(' ', nullif(d.defaclnamespace, 0)::regnamespace, defaclobjtype, lower(privilege_type), 'to',
                case a.grantee when 0 then 'public' else pg_get_userbyid(a.grantee) end) as name,
            jsonb_build_object(
                'role', quote_ident(pg_get_userbyid(defaclrole)),
                'schema', nullif(d.defaclnamespace, 0)::regnamespace::text,
                'objects', case defaclobjtype when 'r' then 'tables' when 'S' then 'sequences' when 'f' then 'functions'
                    when 'T' then 'types' else 'schemas' end,
                'privilege', lower(privilege_type),
                'to', case a.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end
            ) as value
        from pg_default_acl as d, aclexplode(defaclacl) as a
        where a.grantee <> defaclrole
            and (defaclnamespace = 0 or defaclnamespace::regnamespace::text = any($1))
    """,
    "event_trigger": """
        select quote_ident(evtname) as name, jsonb_build_object(
            'ident', quote_ident(evtname), 'event', evtevent, 'function', evtfoid::regprocedure::text, 'tags', evttags,
            'enabled', evtenabled
        ) as value
        from pg_event_trigger
    """,
}

ROLES = """
select rolname as name, jsonb_build_object(
    'ident', quote_ident(rolname), 'superuser', rolsuper, 'inherit', rolinherit, 'create_role', rolcreaterole,
    'create_db', rolcreatedb, 'login', rolcanlogin, 'replication', rolreplication, 'bypass_rls', rolbypassrls,
    'member_of', array(select distinct rolname from pg_auth_members as m join pg_roles as g on g.oid = m.roleid
        where member = r.oid order by 1),
    -- Who acts as the role. From PostgreSQL 16 on whoever makes a role may add members, and acts as it only then.
    'members', array(select distinct rolname from pg_auth_members as m join pg_roles as g on g.oid = m.member
        where roleid = r.oid and (to_jsonb(m) ->> 'set_option' is distinct from 'false'
            or to_jsonb(m) ->> 'inherit_option' = 'true') order by 1)
) as value
from pg_roles as r where rolname = any($1)
"""
