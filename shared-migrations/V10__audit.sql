-- What platform staff did, in whichever organization.
create table platform.platform_audit (
    id uuid primary key,
    occurred_at timestamptz not null,
    actor_id uuid,
    action text not null,
    resource_id uuid,
    organization_id uuid,
    changes jsonb not null,
    request_id text,
    address text,
    user_agent text
);

-- Entries of tenants' audit logs that are not sealed yet. Written with them; writers never wait for
-- each other here.
create table platform.audit_unsealed (
    entry_id uuid primary key,
    organization_id uuid not null
);

create index audit_unsealed_organization on platform.audit_unsealed (organization_id);

-- The end of each organization's chain, authenticated, so that a cut tail is seen.
create table platform.audit_heads (
    organization_id uuid primary key,
    sequence bigint not null,
    seal bytea not null
);

alter table platform.organizations add column require_mfa boolean not null default false;
alter table platform.organizations add column suspended_because text;
