-- How much organizations use. API calls and requests are counted by the hour and summed by the day;
-- everything else is measured at the end of each day. Organizations are not referred to: what is left
-- of one that was erased must not stand in the way of the others' counts, and goes with its month.
create table platform.usage_records (
    organization_id uuid not null,
    metric text not null,
    grain text not null,
    -- When the hour or the day begins, in UTC.
    bucket timestamptz not null,
    -- Nil: people, or no matter.
    key_id uuid not null,
    -- The part of the API that was asked; empty where it is no matter.
    route_group text not null,
    quantity bigint not null,
    constraint usage_records_pkey
        primary key (organization_id, metric, grain, bucket, key_id, route_group),
    constraint usage_records_grain check (grain in ('hour', 'day')),
    constraint usage_records_quantity check (quantity >= 0)
) partition by range (bucket);

-- Finds the hours of a day over all organizations, to sum them and to remove them.
create index usage_records_bucket on platform.usage_records (grain, bucket);

-- Calls with API keys in each calendar month (UTC): what plans limit.
create table platform.api_call_months (
    organization_id uuid not null,
    month date not null,
    calls bigint not null,
    primary key (organization_id, month)
) with (fillfactor = 50);

-- Batches of counts that were written. One whose commit was not answered is written again, and counts once.
create table platform.usage_batches (
    id uuid primary key,
    written_at timestamptz not null
);

create index usage_batches_written on platform.usage_batches (written_at);
