-- The servers that tenant schemas are on. Everything in `platform` is on the first.
create table platform.databases (
    id uuid primary key,
    name text not null,
    -- Null for the one that holds `platform`.
    sealed_url bytea,
    -- Schemas that it is meant for at most.
    capacity integer not null,
    -- Whether new organizations go there.
    accepts boolean not null,
    created_at timestamptz not null,
    constraint databases_name_key unique (name),
    constraint databases_capacity check (capacity > 0),
    constraint databases_primary check ((sealed_url is null) = (id = '00000000-0000-0000-0000-000000000000'))
);

insert into platform.databases (id, name, sealed_url, capacity, accepts, created_at)
values ('00000000-0000-0000-0000-000000000000', 'primary', null, 1500, true, now());

-- What commits on two servers is decided here; see src/db/two_phase.rs.
create table platform.decisions (
    id uuid primary key,
    commits boolean not null,
    decided_at timestamptz not null
);

create index decisions_decided_at on platform.decisions (decided_at);

alter table platform.tenant_schemas add column database_id uuid not null
    default '00000000-0000-0000-0000-000000000000';
alter table platform.tenant_schemas add constraint tenant_schemas_database
    foreign key (database_id) references platform.databases (id);
-- What fills a schema that is being built, and from when and by whose it is not the living one any more.
alter table platform.tenant_schemas add column operation_id uuid;
alter table platform.tenant_schemas add column retired_at timestamptz;
alter table platform.tenant_schemas add column retired_from uuid;
alter table platform.tenant_schemas drop constraint tenant_schemas_state;
alter table platform.tenant_schemas add constraint tenant_schemas_state
    check (state in ('building', 'spare', 'taken', 'retired'));
alter table platform.tenant_schemas add constraint tenant_schemas_retired
    check ((state = 'retired') = (retired_at is not null));

create index tenant_schemas_database on platform.tenant_schemas (database_id, state);

-- What the migrations were that led to the version, and what became of the last attempts.
alter table platform.tenant_schema_modules add column checksum text;
alter table platform.tenant_schema_modules add column attempts integer not null default 0;
alter table platform.tenant_schema_modules add column failed_at timestamptz;

-- While an organization changes places, whoever wants something of it waits until then.
alter table platform.organizations add column paused_until timestamptz;
-- A copy to play with: nothing of it goes out.
alter table platform.organizations add column sandbox boolean not null default false;

-- Modules beyond those that every organization has, and what was asked of them.
create table platform.organization_modules (
    organization_id uuid not null references platform.organizations (id) on delete cascade,
    module text not null,
    state text not null,
    error text,
    -- The file with what a removed module held, while it is being removed.
    archive text,
    requested_by uuid not null,
    version bigint not null default 1,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    primary key (organization_id, module),
    constraint organization_modules_state check (state in ('enabling', 'enabled', 'removing', 'failed'))
);

-- What is done to an organization as a whole, one thing at a time.
create table platform.fleet_operations (
    id uuid primary key,
    kind text not null,
    organization_id uuid,
    state text not null,
    about jsonb not null,
    error text,
    started_at timestamptz not null,
    -- A sign of life of whoever does it.
    beat_at timestamptz not null,
    finished_at timestamptz,
    constraint fleet_operations_state check (state in ('running', 'done', 'failed'))
);

create unique index fleet_operations_running_key on platform.fleet_operations (organization_id) where state = 'running';

create table platform.migration_runs (
    id uuid primary key,
    options jsonb not null,
    total integer not null,
    migrated integer not null,
    current integer not null,
    failed integer not null,
    -- Null while it goes on.
    outcome text,
    started_at timestamptz not null,
    beat_at timestamptz not null,
    finished_at timestamptz,
    constraint migration_runs_outcome check (outcome in ('done', 'failed', 'stopped'))
);

-- What is left of an organization that was erased.
create table platform.erasures (
    id uuid primary key,
    organization_id uuid not null,
    erased_at timestamptz not null,
    certificate jsonb not null
);
