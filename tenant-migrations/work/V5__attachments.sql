-- Files at tasks, comments and messages.
create table attachments (
    id uuid primary key,
    task_id uuid references tasks (id) on delete cascade,
    comment_id uuid references comments (id) on delete cascade,
    message_id uuid references messages (id) on delete cascade,
    file_id uuid not null references files (id),
    description text,
    is_proof_of_completion boolean not null default false,
    created_by uuid not null,
    version bigint not null default 1,
    created_at timestamptz not null,
    constraint attachments_place check (num_nonnulls(task_id, comment_id, message_id) = 1),
    constraint attachments_file_id_key unique (file_id)
);

create index attachments_task on attachments (task_id, id desc) where task_id is not null;
create index attachments_comment on attachments (comment_id) where comment_id is not null;
create index attachments_message on attachments (message_id) where message_id is not null;
