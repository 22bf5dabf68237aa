-- Whether a token is signed, has not expired, and names this backend or none. Whether its user may act is another question,
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
$$
