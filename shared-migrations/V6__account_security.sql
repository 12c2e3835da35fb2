-- What proves who somebody is, beside the password.
alter table platform.users add column email_verified_at timestamptz;
alter table platform.users add column password_changed_at timestamptz;
alter table platform.users add column deleted_at timestamptz;
alter table platform.users add column mfa_enabled_at timestamptz;
alter table platform.users add column sealed_totp_secret bytea;
-- The 30-second step of the last accepted code: no code is good twice.
alter table platform.users add column totp_last_step bigint not null default 0;
alter table platform.sessions add column last_seen_at timestamptz;
alter table platform.sessions add column last_address text;

-- Tokens that were mailed: one purpose, one use, one hour or day.
create table platform.email_tokens (
    hash bytea primary key,
    purpose text not null,
    user_id uuid not null references platform.users (id) on delete cascade,
    email text not null,
    -- Joins the two halves of a change of address.
    change_id uuid,
    created_at timestamptz not null,
    expires_at timestamptz not null,
    used_at timestamptz,
    constraint email_tokens_purpose check (purpose in ('verify_email', 'reset_password', 'change_email_old', 'change_email_new'))
);

create index email_tokens_user on platform.email_tokens (user_id, purpose);
create index email_tokens_expiry on platform.email_tokens (expires_at);

create table platform.recovery_codes (
    user_id uuid not null references platform.users (id) on delete cascade,
    hash bytea not null,
    used_at timestamptz,
    primary key (user_id, hash)
);

-- The pause between a right password and its code.
create table platform.login_challenges (
    hash bytea primary key,
    user_id uuid not null references platform.users (id) on delete cascade,
    expires_at timestamptz not null
);

create index login_challenges_expiry on platform.login_challenges (expires_at);

-- Failed logins, by account or by a name that is no account's: both are locked alike.
create table platform.login_failures (
    subject bytea primary key,
    failures integer not null,
    first_failure_at timestamptz not null,
    locks integer not null default 0,
    locked_until timestamptz,
    updated_at timestamptz not null
);

create index login_failures_updated on platform.login_failures (updated_at);

create table platform.security_events (
    id uuid primary key,
    user_id uuid references platform.users (id) on delete cascade,
    organization_id uuid,
    kind text not null,
    occurred_at timestamptz not null,
    address text,
    user_agent text,
    request_id text,
    details jsonb not null default '{}'
);

create index security_events_user on platform.security_events (user_id, id desc);
create index security_events_time on platform.security_events (occurred_at);
