-- Where this organization's events are sent.
create table webhooks (
    id uuid primary key,
    name text not null,
    url text not null,
    -- Types of events, or '*' for all.
    events text[] not null,
    sealed_secret bytea not null,
    -- After a rotation both sign for a while.
    sealed_previous_secret bytea,
    previous_secret_until timestamptz,
    is_active boolean not null,
    disabled_because text,
    failing_since timestamptz,
    -- Attempts that failed in a row; after some of them nothing is sent for a while.
    failures integer not null default 0,
    paused_until timestamptz,
    total_deliveries bigint not null default 0,
    successful_deliveries bigint not null default 0,
    failed_deliveries bigint not null default 0,
    last_triggered_at timestamptz,
    created_by uuid not null,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    version bigint not null default 1
);

-- One event for one webhook, until it is delivered or given up. No foreign key: there may be very many,
-- and a job removes those of a webhook that was deleted.
create table webhook_deliveries (
    id uuid primary key,
    webhook_id uuid not null,
    event_id uuid not null,
    event_type text not null,
    -- The event's, which is the order of delivery.
    position bigint not null,
    status text not null,
    attempts integer not null default 0,
    -- While it is pending.
    next_attempt_at timestamptz,
    response_status integer,
    error text,
    duration_ms integer,
    created_at timestamptz not null,
    finished_at timestamptz,
    constraint webhook_deliveries_status check (status in ('pending', 'delivered', 'failed')),
    constraint webhook_deliveries_pending check ((status = 'pending') = (next_attempt_at is not null))
);

create index webhook_deliveries_newest on webhook_deliveries (webhook_id, id desc);
create index webhook_deliveries_due on webhook_deliveries (webhook_id, position, id)
    include (next_attempt_at, attempts) where status = 'pending';
create index webhook_deliveries_event on webhook_deliveries (event_id);

create table webhook_attempts (
    id uuid primary key,
    delivery_id uuid not null references webhook_deliveries (id) on delete cascade,
    attempted_at timestamptz not null,
    duration_ms integer not null,
    response_status integer,
    -- The beginning of it.
    response_body text,
    error text
);

create index webhook_attempts_delivery on webhook_attempts (delivery_id, id);
