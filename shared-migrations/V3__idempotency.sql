-- First answers to POST requests that carried an Idempotency-Key, kept for 24 hours.
create table platform.idempotency_keys (
    id uuid primary key,
    caller text not null,
    key text not null,
    request_hash bytea not null,
    claimed_at timestamptz not null,
    -- Set in the same commit as the request's change.
    committed boolean not null default false,
    status smallint,
    headers jsonb,
    sealed_body bytea,
    constraint idempotency_keys_caller_key unique (caller, key)
);

create index idempotency_keys_claimed on platform.idempotency_keys (claimed_at);
