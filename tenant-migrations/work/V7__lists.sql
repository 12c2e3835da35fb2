-- Lists of a million tasks. An order that can be asked for has an index that ends with the id, which serves
-- both directions and cursors. A filter has one by which its rows are found, and counted up to 10,000
-- without a look at the tasks; what it includes lets it count them together with another filter too. The
-- usual order, by created_at, is that of the ids, which are made of it: each index of a filter has it.

-- sort=updated_at
create index tasks_updated on tasks (updated_at, id);
-- sort=title
create index tasks_title on tasks (title, id);
-- sort=impact
create index tasks_impact on tasks (impact, id);
-- sort=position of all projects together
create index tasks_position on tasks (position, id);
-- sort=completed_at; the others are read by id
create index tasks_completed on tasks (completed_at, id) where completed_at is not null;
-- sort=status, status=
create index tasks_status on tasks (status, id) include (priority, created_by, project_id, due_date);
-- priority=
create index tasks_priority on tasks (priority, id) include (status, created_by, project_id, due_date);
-- created_by=
create index tasks_creator on tasks (created_by, id) include (status, priority, project_id, due_date);
-- sort=due_date, due_before=, due_after=, in the usual order day by day; tasks without a day are read by id
create index tasks_due on tasks (due_date, id) include (status, priority, created_by, project_id)
    where due_date is not null;
-- project_id=
create index tasks_project_newest on tasks (project_id, id)
    include (status, priority, created_by, due_date);
-- project_id= and status= by position: a column of the board. It also does what the index it replaces did.
create index tasks_board on tasks (project_id, status, position, id);
drop index tasks_project;
-- assigned_to= without a look at the assignment
drop index task_assignees_user;
create index task_assignees_user on task_assignees (user_id, task_id);
