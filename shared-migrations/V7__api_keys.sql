-- Keys for programs. Only a hash is stored; the start of the key is kept to recognise it by.
create table platform.api_keys (
    id uuid primary key,
    organization_id uuid not null references platform.organizations (id) on delete cascade,
    created_by uuid not null references platform.users (id) on delete cascade,
    name text not null,
    description text,
    environment text not null,
    hint text not null,
    hash bytea not null,
    scopes text[] not null,
    rate_per_hour integer not null,
    allowed_ips text[] not null default '{}',
    expires_at timestamptz,
    last_used_at timestamptz,
    last_used_address text,
    -- A rotated key works beside its successor until then.
    successor_id uuid references platform.api_keys (id) on delete set null,
    revoked_at timestamptz,
    revoked_because text,
    version bigint not null default 1,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    constraint api_keys_hash_key unique (hash),
    constraint api_keys_environment check (environment in ('live', 'test'))
);

create index api_keys_organization on platform.api_keys (organization_id, created_at);
create index api_keys_creator on platform.api_keys (created_by) where revoked_at is null;
