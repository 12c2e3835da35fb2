//! What can be searched of the work: projects and tasks by name and description, comments and messages by what
//! they say.

use crate::{auth::Permission, search::Source};

pub const PROJECTS: Source = Source {
    kind: "project",
    permission: Permission::ProjectsRead,
    table: "projects",
    title: Some("name"),
    text: "name || ' ' || coalesce(description, '')",
    project: "id = ?",
    newest: Some("id desc"),
    shown: "select id, name as title, description as body, id as project_id, name as project_name, updated_at \
                from projects where id = any ($1)",
    title_permission: Permission::ProjectsRead,
    project_permission: Permission::ProjectsRead,
    path: "/api/v1/projects/",
};

pub const TASKS: Source = Source {
    kind: "task",
    permission: Permission::TasksRead,
    table: "tasks",
    title: Some("title"),
    text: "title || ' ' || coalesce(description, '')",
    project: "project_id = ?",
    newest: Some("id desc"),
    shown: "select t.id, t.title, t.description as body, t.project_id, p.name as project_name, t.updated_at \
                from tasks t join projects p on p.id = t.project_id where t.id = any ($1)",
    title_permission: Permission::TasksRead,
    project_permission: Permission::ProjectsRead,
    path: "/api/v1/tasks/",
};

pub const COMMENTS: Source = Source {
    kind: "comment",
    permission: Permission::CommentsRead,
    table: "comments",
    title: None,
    text: "body",
    project: "task_id in (select t.id from tasks t where t.project_id = ?)",
    newest: None,
    shown: "select c.id, t.title, c.body, t.project_id, p.name as project_name, c.updated_at \
                from comments c join tasks t on t.id = c.task_id join projects p on p.id = t.project_id \
                where c.id = any ($1)",
    title_permission: Permission::TasksRead,
    project_permission: Permission::ProjectsRead,
    path: "/api/v1/comments/",
};

pub const MESSAGES: Source = Source {
    kind: "message",
    permission: Permission::MessagesRead,
    table: "messages",
    title: None,
    // Null once it is deleted.
    text: "coalesce(body, '')",
    project: "project_id = ?",
    newest: Some("number desc"),
    shown: "select m.id, p.name as title, m.body, m.project_id, p.name as project_name, m.updated_at \
                from messages m join projects p on p.id = m.project_id where m.id = any ($1) and m.body is not null",
    title_permission: Permission::ProjectsRead,
    project_permission: Permission::ProjectsRead,
    path: "/api/v1/messages/",
};
