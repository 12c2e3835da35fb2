-- What is used of that which is not counted where it lies: kept by whoever adds and removes it.
create table usage_counters (
    resource text primary key,
    used bigint not null,
    constraint usage_counters_used check (used >= 0)
);

-- Which warnings of a plan's limits were given, so that each is given once a month.
create table limit_warnings (
    resource text not null,
    threshold integer not null,
    month date not null,
    "limit" bigint not null,
    primary key (resource, threshold, month, "limit")
);
