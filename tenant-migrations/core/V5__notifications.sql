-- What members are told; once for each event, member and kind.
create table notifications (
    id uuid primary key,
    user_id uuid not null,
    kind text not null,
    -- What caused it; for what no event causes, an id that is the same at each attempt.
    event_id uuid not null,
    title text not null,
    body text not null,
    path text not null,
    -- To be mailed together with others.
    awaits_digest boolean not null,
    created_at timestamptz not null,
    read_at timestamptz,
    constraint notifications_once_key unique (event_id, user_id, kind)
);

create index notifications_user on notifications (user_id, id desc);
create index notifications_unread on notifications (user_id) where read_at is null;
create index notifications_digest on notifications (user_id) where awaits_digest;

-- What members want otherwise than it is by default. Kinds and channels come with versions of the
-- service, so no rule lists them here.
create table notification_preferences (
    user_id uuid not null,
    kind text not null,
    channel text not null,
    enabled boolean not null,
    primary key (user_id, kind, channel)
);

create table notification_settings (
    user_id uuid primary key,
    -- By the clock of the member's time zone.
    quiet_from time,
    quiet_to time,
    digest text not null,
    sms_number text,
    -- A number that is not proved yet, and what proves it.
    sms_new_number text,
    sms_code_mac bytea,
    sms_code_tries integer not null default 0,
    sms_code_expires_at timestamptz,
    version bigint not null,
    updated_at timestamptz not null,
    constraint notification_settings_digest check (digest in ('off', 'daily', 'weekly')),
    constraint notification_settings_quiet check ((quiet_from is null) = (quiet_to is null))
);

-- Browsers and telephones that take Web Push, as long as the session lives that subscribed them. An
-- endpoint belongs to whoever subscribed last.
create table push_subscriptions (
    id uuid primary key,
    user_id uuid not null,
    endpoint text not null,
    p256dh text not null,
    auth text not null,
    user_agent text,
    session_id uuid,
    -- Since when it takes nothing.
    failing_since timestamptz,
    version bigint not null default 1,
    created_at timestamptz not null,
    constraint push_subscriptions_endpoint_key unique (endpoint)
);

create index push_subscriptions_user on push_subscriptions (user_id);
