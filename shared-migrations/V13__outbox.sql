-- Events that were committed and not yet told. Written with the change; the dispatcher removes them.
create table platform.outbox (
    sequence bigint generated always as identity primary key,
    organization_id uuid not null,
    event_id uuid not null
);

create index outbox_organization on platform.outbox (organization_id, sequence);

-- The position of the last event that was told, for each organization. Whoever tells holds the row.
create table platform.event_heads (
    organization_id uuid primary key,
    position bigint not null
);
