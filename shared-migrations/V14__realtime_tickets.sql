-- For browsers, which cannot send a token with a WebSocket: good once, for half a minute.
create table platform.realtime_tickets (
    hash bytea primary key,
    user_id uuid not null,
    session_id uuid not null,
    organization_id uuid not null,
    expires_at timestamptz not null
);
