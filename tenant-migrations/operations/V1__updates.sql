-- Announcements to everybody in the organization.
create table updates (
    id uuid primary key,
    title text not null,
    body text not null,
    type text not null,
    priority text not null,
    author_id uuid not null,
    -- From when and until when it is current.
    published_at timestamptz not null,
    expires_at timestamptz,
    version bigint not null default 1,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    constraint updates_type check (type in ('info', 'success', 'warning', 'urgent')),
    constraint updates_priority check (priority in ('low', 'medium', 'high', 'urgent')),
    constraint updates_times check (expires_at > published_at)
);

create index updates_newest on updates (published_at desc, id desc);
