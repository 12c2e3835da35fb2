alter table projects add column external_id text;
alter table projects add constraint projects_external_id_key unique (external_id);

alter table tasks add column external_id text;
alter table tasks add constraint tasks_external_id_key unique (external_id);

alter table tasks add column parent_id uuid;
alter table tasks add constraint tasks_parent foreign key (parent_id) references tasks (id) on delete cascade;
alter table tasks add constraint tasks_parent_other check (parent_id <> id);

-- The subtasks of a task, and what goes with it.
create index tasks_parent on tasks (parent_id) where parent_id is not null;

-- Where a task stands in its column of the board: at first, the microsecond in which it was made. Ids break ties.
alter table tasks add column position numeric not null default 0;
with placed as (select id, round(extract(epoch from created_at) * 1000000) as place from tasks)
update tasks set position = placed.place from placed where tasks.id = placed.id;

create table task_dependencies (
    task_id uuid not null references tasks (id) on delete cascade,
    -- What must be done before.
    waits_for uuid not null references tasks (id) on delete cascade,
    created_at timestamptz not null,
    primary key (task_id, waits_for),
    constraint task_dependencies_other check (task_id <> waits_for)
);

-- What waits for a task that is opened again or goes.
create index task_dependencies_waits_for on task_dependencies (waits_for);
