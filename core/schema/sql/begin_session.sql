-- What a session of the application begins with. A direct connection brings it along (core/wire/session.py);
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
end
