-- Files whose lines become projects, tasks and the like. Each is checked as a whole before its first line is
-- written, and goes on after a crash where it was: what is done of it is counted in the transactions that do it.
create table imports (
    id uuid primary key,
    resource text not null,
    format text not null,
    file_id uuid not null,
    dry_run boolean not null,
    -- Which field a column of the file stands for, where its name does not say it.
    columns jsonb not null,
    state text not null,
    lines_total bigint,
    lines_done bigint not null default 0,
    created bigint not null default 0,
    updated bigint not null default 0,
    unchanged bigint not null default 0,
    failed bigint not null default 0,
    -- The first of them.
    errors jsonb not null,
    error_report_id uuid,
    message text,
    requested_by uuid not null,
    api_key_id uuid,
    -- Of those who work on it only the one whose turn it is writes: each turn has a number of its own.
    turn bigint not null default 0,
    -- Turns that began since the last one that got on.
    tries integer not null default 0,
    version bigint not null default 1,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    finished_at timestamptz,
    constraint imports_state check (state in ('queued', 'checking', 'importing', 'done', 'failed', 'canceled'))
);

create index imports_open on imports (id) where finished_at is null;
create index imports_file on imports (file_id);

create table exports (
    id uuid primary key,
    resource text not null,
    format text not null,
    filters jsonb not null,
    state text not null,
    rows_total bigint,
    rows_done bigint not null default 0,
    file_id uuid,
    message text,
    requested_by uuid not null,
    api_key_id uuid,
    -- How often it was begun; whoever began it last completes it.
    tries integer not null default 0,
    version bigint not null default 1,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    finished_at timestamptz,
    constraint exports_state check (state in ('queued', 'exporting', 'done', 'failed'))
);

create index exports_open on exports (id) where finished_at is null;
create index exports_requested_by on exports (requested_by, resource, id);
create index exports_file on exports (file_id);
create index imports_report on imports (error_report_id);
