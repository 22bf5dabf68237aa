-- The role of a user who is not bound to facilities. A bound user's ends in an asterisk and equals no role, so a policy
-- that asks this first answers for the common case with one check.
create function charthold.actor_role_everywhere() returns text
    language sql stable parallel restricted
as $$
    select pg_catalog.rtrim(pg_catalog.substr(charthold.scope(), 1, 10))
$$
