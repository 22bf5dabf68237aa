-- Ends the scope that a definer function signed for itself, and what the session remembers of it. Otherwise the caller, who
-- knows what the answer is made of, could have it believed to the end of the statement.
create function charthold.forget_scope() returns void
    language plpgsql volatile parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    perform set_config('charthold.scope', '', true), set_config('charthold.granted', '', true),
        setval('charthold.granted_1', 0), setval('charthold.granted_2', 0);
end
$$
