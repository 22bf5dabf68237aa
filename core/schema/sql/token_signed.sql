-- Whether a token's code is right, under a key that is not retired. charthold.scope() asks the same within its one look-up.
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
$$
