create table platform.invitations (
    id uuid primary key,
    organization_id uuid not null references platform.organizations (id) on delete cascade,
    email text not null,
    role text not null,
    token_hash bytea not null,
    invited_by uuid not null references platform.users (id) on delete cascade,
    accepted_by uuid,
    created_at timestamptz not null,
    sent_at timestamptz not null,
    expires_at timestamptz not null,
    accepted_at timestamptz,
    revoked_at timestamptz,
    version bigint not null default 1,
    constraint invitations_token_key unique (token_hash),
    constraint invitations_role check (role in ('owner', 'admin', 'manager', 'member', 'viewer'))
);

-- One open invitation for each address and organization.
create unique index invitations_open_key on platform.invitations (organization_id, email)
    where accepted_at is null and revoked_at is null;
create index invitations_organization on platform.invitations (organization_id, created_at);
