-- The activity of one project or task: what happened inside it, and what happened to it.
create index concurrently events_project on events ((data ->> 'project_id'), id)
    where data ->> 'project_id' is not null;
create index concurrently events_task on events ((data ->> 'task_id'), id) where data ->> 'task_id' is not null;
create index concurrently events_resource on events (resource_id, id);

-- What one member did, and one type of events, also where that is rare.
create index concurrently events_actor on events (actor_id, id) where actor_id is not null;
create index concurrently events_type on events (type, id);
