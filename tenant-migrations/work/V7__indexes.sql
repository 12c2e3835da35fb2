-- Lists of a million tasks. An order that can be asked for has an index that ends with the id, which serves
-- both directions and cursors. A filter has one by which its rows are found, and counted up to 10,000
-- without a look at the tasks; what it includes lets it count them together with another filter too. The
-- usual order, by created_at, is that of the ids, which are made of it: each index of a filter has it.

-- sort=updated_at
create index concurrently tasks_updated on tasks (updated_at, id);
-- sort=title
create index concurrently tasks_title on tasks (title, id);
-- sort=impact, with the filters that no index has in this order
create index concurrently tasks_impact on tasks (impact, id)
    include (status, priority, created_by, project_id, due_date);
-- sort=position of all projects together
create index concurrently tasks_position on tasks (position, id);
-- sort=completed_at; the others are read by id
create index concurrently tasks_completed on tasks (completed_at, id) where completed_at is not null;
-- sort=status, status=
create index concurrently tasks_status on tasks (status, id) include (priority, created_by, project_id, due_date);
-- priority=
create index concurrently tasks_priority on tasks (priority, id) include (status, created_by, project_id, due_date);
-- created_by=
create index concurrently tasks_creator on tasks (created_by, id) include (status, priority, project_id, due_date);
-- sort=due_date, due_before=, due_after=, in the usual order day by day; tasks without a day are read by id
create index concurrently tasks_due on tasks (due_date, id)
    include (status, priority, created_by, project_id, completed_at, impact) where due_date is not null;
-- due_before= and due_after= in the orders that days say much about: day by day too
create index concurrently tasks_due_updated on tasks (due_date, updated_at, id) where due_date is not null;
create index concurrently tasks_due_status on tasks (due_date, status, id) where due_date is not null;
create index concurrently tasks_due_position on tasks (due_date, position, id) where due_date is not null;
create index concurrently tasks_due_completed on tasks (due_date, completed_at, id)
    where due_date is not null and completed_at is not null;
-- project_id=
create index concurrently tasks_project_newest on tasks (project_id, id)
    include (status, priority, created_by, due_date);
-- project_id= and status= by position: a column of the board. It also does what the index it replaces did.
create index concurrently tasks_board on tasks (project_id, status, position, id);
-- assigned_to= without a look at the assignment
create index concurrently task_assignees_tasks on task_assignees (user_id, task_id);
-- What the tasks of an assignment are filtered, counted and sorted by, here and in GET /me/tasks
create index concurrently tasks_plate on tasks (id)
    include (status, priority, created_by, project_id, due_date, impact, position, completed_at, updated_at);

-- Words of names and titles by themselves, as what is named so comes before what only speaks of it.
create index concurrently projects_named on projects using gin
    (to_tsvector('simple'::regconfig, translate(name,
        '!"#$%&''()*+,-./:;<=>?@[\]^_`{|}~', repeat(' ', 32)))) with (gin_pending_list_limit = 64);
create index concurrently tasks_named on tasks using gin
    (to_tsvector('simple'::regconfig, translate(title,
        '!"#$%&''()*+,-./:;<=>?@[\]^_`{|}~', repeat(' ', 32)))) with (gin_pending_list_limit = 64);
