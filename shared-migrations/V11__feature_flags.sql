create table platform.feature_flags (
    key text primary key,
    description text,
    enabled boolean not null,
    -- Share of organizations, in percent.
    rollout double precision not null,
    -- Empty lists set no condition.
    plans text[] not null default '{}',
    roles text[] not null default '{}',
    countries text[] not null default '{}',
    -- On for these whatever else is said.
    organizations uuid[] not null default '{}',
    version bigint not null default 1,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    constraint feature_flags_rollout check (rollout between 0 and 100)
);
