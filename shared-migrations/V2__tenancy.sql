-- The fleet: every tenant schema, spare or taken.
create table platform.tenant_schemas (
    id uuid primary key,
    state text not null,
    created_at timestamptz not null default now(),
    constraint tenant_schemas_state check (state in ('spare', 'taken'))
);

create index tenant_schemas_spare on platform.tenant_schemas (id) where state = 'spare';

-- At which migration each module of each schema is, and what the last attempt said.
create table platform.tenant_schema_modules (
    schema_id uuid not null references platform.tenant_schemas (id) on delete cascade,
    module text not null,
    version bigint not null,
    last_error text,
    updated_at timestamptz not null default now(),
    primary key (schema_id, module)
);

create table platform.organizations (
    id uuid primary key,
    slug text not null,
    name text not null,
    description text,
    industry text,
    size_range text,
    country_code text,
    timezone text not null default 'Asia/Singapore',
    logo_url text,
    plan text not null default 'free',
    status text not null default 'active',
    schema_id uuid not null references platform.tenant_schemas (id),
    created_by uuid not null,
    deleted_at timestamptz,
    version bigint not null default 1,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    constraint organizations_slug_key unique (slug),
    constraint organizations_schema_key unique (schema_id),
    constraint organizations_status check (status in ('active', 'suspended'))
);

-- Hosts of their own that organizations have proved to be theirs.
create table platform.organization_domains (
    id uuid primary key,
    organization_id uuid not null references platform.organizations (id) on delete cascade,
    domain text not null,
    verified_at timestamptz,
    created_at timestamptz not null default now()
);

create unique index organization_domains_verified_key on platform.organization_domains (domain)
    where verified_at is not null;

create table platform.organization_members (
    organization_id uuid not null references platform.organizations (id) on delete cascade,
    user_id uuid not null references platform.users (id) on delete cascade,
    role text not null,
    grants text[] not null default '{}',
    denials text[] not null default '{}',
    is_active boolean not null default true,
    invited_by uuid,
    version bigint not null default 1,
    joined_at timestamptz not null,
    updated_at timestamptz not null,
    primary key (organization_id, user_id),
    constraint organization_members_role check (role in ('owner', 'admin', 'manager', 'member', 'viewer'))
);

create index organization_members_user on platform.organization_members (user_id);
