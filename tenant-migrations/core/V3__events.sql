-- What happened. Written in the transaction of the change; the dispatcher adds the position, which
-- grows without gaps in the order in which events are told.
create table events (
    id uuid primary key,
    position bigint,
    occurred_at timestamptz not null,
    type text not null,
    schema_version integer not null,
    actor_kind text not null,
    actor_id uuid,
    api_key_id uuid,
    resource_id uuid not null,
    data jsonb not null,
    changes jsonb not null,
    constraint events_position_key unique (position),
    constraint events_actor_kind check (actor_kind in ('user', 'api_key', 'superuser', 'system'))
);

-- The log grows by time, so the smallest of indexes finds one.
create index events_occurred_at on events using brin (occurred_at);
