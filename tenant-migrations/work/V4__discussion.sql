create table comments (
    id uuid primary key,
    task_id uuid not null references tasks (id) on delete cascade,
    author_id uuid not null,
    body text not null,
    version bigint not null default 1,
    edited_at timestamptz,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    search tsvector generated always as
        (to_tsvector('simple'::regconfig, translate(body,
            '!"#$%&''()*+,-./:;<=>?@[\]^_`{|}~', repeat(' ', 32)))) stored
);

create index comments_task on comments (task_id, id desc);

-- Numbers the messages of a project in the order in which they are committed: whoever posts holds the row
-- until then.
create table project_channels (
    project_id uuid primary key references projects (id) on delete cascade,
    last_number bigint not null,
    last_message_at timestamptz not null
);

create table messages (
    id uuid primary key,
    project_id uuid not null references projects (id) on delete cascade,
    -- The first message of the thread; null in that message itself.
    parent_id uuid references messages (id) on delete cascade,
    number bigint not null,
    author_id uuid not null,
    -- Null once it is deleted; it stays for as long as it has replies.
    body text,
    version bigint not null default 1,
    edited_at timestamptz,
    deleted_at timestamptz,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    search tsvector generated always as
        (to_tsvector('simple'::regconfig, translate(coalesce(body, ''),
            '!"#$%&''()*+,-./:;<=>?@[\]^_`{|}~', repeat(' ', 32)))) stored,
    constraint messages_number_key unique (project_id, number),
    constraint messages_deleted check ((body is null) = (deleted_at is not null))
);

create index messages_roots on messages (project_id, number desc) where parent_id is null;
create index messages_thread on messages (parent_id, number) where parent_id is not null;

-- What comments and messages said before they were edited.
create table edits (
    id uuid primary key,
    comment_id uuid references comments (id) on delete cascade,
    message_id uuid references messages (id) on delete cascade,
    body text not null,
    written_by uuid not null,
    written_at timestamptz not null,
    replaced_at timestamptz not null,
    constraint edits_place check (num_nonnulls(comment_id, message_id) = 1)
);

create index edits_comment on edits (comment_id, id desc) where comment_id is not null;
create index edits_message on edits (message_id, id desc) where message_id is not null;

create table mentions (
    id uuid primary key,
    user_id uuid not null,
    comment_id uuid references comments (id) on delete cascade,
    message_id uuid references messages (id) on delete cascade,
    -- An edit took it back; the row stays, so that nobody is told a second time.
    withdrawn boolean not null default false,
    created_at timestamptz not null,
    read_at timestamptz,
    constraint mentions_place check (num_nonnulls(comment_id, message_id) = 1),
    constraint mentions_comment_key unique (comment_id, user_id),
    constraint mentions_message_key unique (message_id, user_id)
);

create index mentions_user on mentions (user_id, id desc) where not withdrawn;
create index mentions_unread on mentions (user_id) where read_at is null and not withdrawn;

-- Up to which message of a project somebody has read.
create table message_reads (
    project_id uuid not null references projects (id) on delete cascade,
    user_id uuid not null,
    number bigint not null,
    read_at timestamptz not null,
    primary key (project_id, user_id)
);
