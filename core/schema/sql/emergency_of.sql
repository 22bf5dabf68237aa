-- The emergency that a token names, if it does: in the place of the user stands the emergency, and behind the reason the
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
$$
