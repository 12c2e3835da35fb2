-- What others do as well: the key of tasks, whose ids grow with created_at, tasks_board, task_assignees_tasks.
drop index tasks_newest;
drop index tasks_project;
drop index task_assignees_user;
