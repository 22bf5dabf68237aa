-- Whether a token is signed with a key of ours, has not expired, and names this backend or none. Whether its user may act is
-- another question, which charthold.scope() asks.
create function charthold.token_holds(token text) returns boolean
    language plpgsql stable parallel unsafe
    set search_path = pg_catalog, pg_temp
as $$
begin
    return exists (
        select from charthold.token_key as k
        where k.id = substr(token, 65, 8) and (k.retired_at is null or k.retired_at > clock_timestamp())
            and sha256(convert_to(left(token, 64), 'UTF8')) = sha256(
                convert_to(charthold.hmac(k.inner_pad, k.outer_pad, convert_to(substr(token, 65), 'UTF8')), 'UTF8')
            )
            and substr(token, 73, 10) > extract(epoch from clock_timestamp())::text
            and substr(token, 83, 10) in ('0000000000', lpad(pg_backend_pid()::text, 10, '0'))
            -- In an old snapshot the key is as it was; the row itself says whether it was retired since.
            and not charthold.was_replaced(k.xmin, k.xmax)
    );
end
$$
