-- A token for a user of the tenant, as charthold.sign_as() says.
create function charthold.sign(tenant uuid, actor uuid, reason text) returns text
    language sql volatile parallel unsafe
as $$
    select charthold.sign_as(tenant, actor::text, reason)
$$
