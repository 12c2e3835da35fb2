create table tasks (
    id uuid primary key,
    project_id uuid not null references projects (id) on delete cascade,
    title text not null,
    description text,
    status text not null,
    priority text not null,
    created_by uuid not null,
    due_date date,
    estimated_hours numeric(8, 2),
    actual_hours numeric(8, 2),
    impact numeric(5, 2) not null default 0,
    completed_at timestamptz,
    version bigint not null default 1,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    search tsvector generated always as
        (to_tsvector('simple'::regconfig, translate(title || ' ' || coalesce(description, ''),
            '!"#$%&''()*+,-./:;<=>?@[\]^_`{|}~', repeat(' ', 32)))) stored,
    constraint tasks_status check (status in ('todo', 'in_progress', 'review', 'done')),
    constraint tasks_priority check (priority in ('low', 'medium', 'high', 'urgent')),
    constraint tasks_impact check (impact between 0 and 100),
    constraint tasks_estimated_hours check (estimated_hours >= 0),
    constraint tasks_actual_hours check (actual_hours >= 0),
    constraint tasks_completed check ((status = 'done') = (completed_at is not null))
);

create index tasks_project on tasks (project_id, status);
create index tasks_newest on tasks (created_at desc, id desc);
create index tasks_search on tasks using gin (search);

create table task_assignees (
    task_id uuid not null references tasks (id) on delete cascade,
    user_id uuid not null,
    primary key (task_id, user_id)
);

create index task_assignees_user on task_assignees (user_id);
