//! How a project and a task stand, with what belongs to them.

use poem_openapi::{Object, OpenApi, param::Path, types::Example};
use serde::Serialize;
use uuid::Uuid;

use super::{
    dependencies::TaskRef,
    members::{self, ProjectMember},
    projects::{self, Project},
    tasks::{self, Task},
};
use crate::{
    api::Tag,
    auth::{
        Can,
        permissions::{ProjectsRead, TasksRead},
    },
    error::Result,
    events::activity::{self, Activity},
    http::Json,
};

/// Entries of the activity that a summary shows.
const LATEST: i64 = 10;

/// The tasks of a project, counted.
#[derive(Clone, Debug, Serialize, Object)]
#[oai(example)]
pub struct ProjectTasks {
    pub total: i64,
    pub todo: i64,
    pub in_progress: i64,
    pub review: i64,
    pub done: i64,
    /// Not done, and due before today (UTC).
    pub overdue: i64,
    /// Added up over all of them.
    pub estimated_hours: f64,
    /// Added up over all of them.
    pub actual_hours: f64,
}

impl Example for ProjectTasks {
    fn example() -> Self {
        Self {
            total: 12,
            todo: 4,
            in_progress: 2,
            review: 1,
            done: 5,
            overdue: 1,
            estimated_hours: 96.5,
            actual_hours: 51.25,
        }
    }
}

/// A project with what belongs to it.
#[derive(Debug, Serialize, Object)]
#[oai(example)]
pub struct ProjectSummary {
    pub project: Project,
    pub tasks: ProjectTasks,
    /// The owner first.
    pub members: Vec<ProjectMember>,
    /// The last ten things that happened in it, the newest first; of what the caller may see.
    pub latest: Vec<Activity>,
}

impl Example for ProjectSummary {
    fn example() -> Self {
        Self {
            project: Project::example(),
            tasks: ProjectTasks::example(),
            members: vec![ProjectMember::example()],
            latest: Vec::new(),
        }
    }
}

/// A task with what belongs to it.
#[derive(Debug, Serialize, Object)]
#[oai(example)]
pub struct TaskSummary {
    pub task: Task,
    /// Right under it.
    pub subtasks: i64,
    pub done_subtasks: i64,
    pub comments: i64,
    /// Of the task itself, not of its comments.
    pub attachments: i64,
    /// What it waits for that is not done.
    pub blocked_by: Vec<TaskRef>,
}

impl Example for TaskSummary {
    fn example() -> Self {
        Self {
            task: Task::example(),
            subtasks: 3,
            done_subtasks: 1,
            comments: 4,
            attachments: 0,
            blocked_by: vec![TaskRef::example()],
        }
    }
}

pub struct SummaryApi;

#[OpenApi]
impl SummaryApi {
    /// See how a project stands.
    #[oai(
        path = "/projects/:project_id/summary",
        method = "get",
        operation_id = "get_project_summary",
        tag = "Tag::Projects"
    )]
    async fn project(&self, who: Can<ProjectsRead>, project_id: Path<Uuid>) -> Result<Json<ProjectSummary>> {
        let tx = who.begin().await?;
        let project = projects::find(&tx, project_id.0).await?;
        let row = tx
            .query_one(
                "select count(*) as total, count(*) filter (where status = 'todo') as todo, \
                 count(*) filter (where status = 'in_progress') as in_progress, \
                 count(*) filter (where status = 'review') as review, count(*) filter (where status = 'done') as done, \
                 count(*) filter (where status <> 'done' and due_date < $2) as overdue, \
                 coalesce(sum(estimated_hours), 0)::float8 as estimated, \
                 coalesce(sum(actual_hours), 0)::float8 as actual from tasks where project_id = $1",
                &[&project.id, &who.app.clock.now().date_naive()],
            )
            .await?;
        let tasks = ProjectTasks {
            total: row.try_get("total")?,
            todo: row.try_get("todo")?,
            in_progress: row.try_get("in_progress")?,
            review: row.try_get("review")?,
            done: row.try_get("done")?,
            overdue: row.try_get("overdue")?,
            estimated_hours: row.try_get("estimated")?,
            actual_hours: row.try_get("actual")?,
        };
        let members = members::people(&tx, project.id).await?;
        let latest = activity::latest(&tx, &who, project.id, LATEST).await?;
        Ok(Json(ProjectSummary { project, tasks, members, latest }))
    }

    /// See how a task stands.
    #[oai(
        path = "/tasks/:task_id/summary",
        method = "get",
        operation_id = "get_task_summary",
        tag = "Tag::Tasks"
    )]
    async fn task(&self, who: Can<TasksRead>, task_id: Path<Uuid>) -> Result<Json<TaskSummary>> {
        let tx = who.begin().await?;
        let task = tasks::find(&tx, task_id.0).await?;
        let row = tx
            .query_one(
                "select (select count(*) from tasks t where t.parent_id = $1) as subtasks, \
                 (select count(*) from tasks t where t.parent_id = $1 and t.status = 'done') as done_subtasks, \
                 (select count(*) from comments c where c.task_id = $1) as comments, \
                 (select count(*) from attachments a where a.task_id = $1) as attachments",
                &[&task.id],
            )
            .await?;
        let blocked_by = tx
            .query(
                "select t.id, t.title, t.status from task_dependencies d join tasks t on t.id = d.waits_for \
                 where d.task_id = $1 and t.status <> 'done' order by t.id",
                &[&task.id],
            )
            .await?;
        Ok(Json(TaskSummary {
            task,
            subtasks: row.try_get("subtasks")?,
            done_subtasks: row.try_get("done_subtasks")?,
            comments: row.try_get("comments")?,
            attachments: row.try_get("attachments")?,
            blocked_by: blocked_by.iter().map(TaskRef::from_row).collect::<Result<_>>()?,
        }))
    }
}
