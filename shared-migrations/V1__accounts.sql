-- Who exists before any organization is known.
create table platform.users (
    id uuid primary key,
    email text not null,
    username text,
    password_hash text not null,
    first_name text not null default '',
    last_name text not null default '',
    display_name text,
    bio text,
    location text,
    phone text,
    company text,
    avatar_url text,
    locale text not null default 'en',
    timezone text not null default 'Asia/Singapore',
    preferences jsonb not null default '{}',
    is_active boolean not null default true,
    is_superuser boolean not null default false,
    last_login_at timestamptz,
    version bigint not null default 1,
    created_at timestamptz not null,
    updated_at timestamptz not null
);

-- Addresses are stored in lower case; user names keep their case and are unique without it.
create unique index users_email_key on platform.users (email);
create unique index users_username_key on platform.users (lower(username));

-- A session is a family of refresh tokens: each use of one makes the next.
create table platform.sessions (
    id uuid primary key,
    user_id uuid not null references platform.users (id) on delete cascade,
    user_agent text,
    address text,
    created_at timestamptz not null,
    last_used_at timestamptz not null,
    expires_at timestamptz not null,
    revoked_at timestamptz,
    revoked_because text
);

create index sessions_user on platform.sessions (user_id);
create index sessions_expiry on platform.sessions (expires_at);

create table platform.refresh_tokens (
    hash bytea primary key,
    session_id uuid not null references platform.sessions (id) on delete cascade,
    expires_at timestamptz not null,
    used_at timestamptz
);

create index refresh_tokens_session on platform.refresh_tokens (session_id);

-- Ed25519 keys for access tokens; the private half is sealed under the configured key.
create table platform.signing_keys (
    kid text primary key,
    sealed_private_key bytea not null,
    created_at timestamptz not null
);
