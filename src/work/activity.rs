//! What happened to a project or a task, and in it.

use poem_openapi::{
    OpenApi,
    param::{Path, Query},
};
use uuid::Uuid;

use crate::{
    api::Tag,
    auth::{
        Can,
        permissions::{ProjectsRead, TasksRead},
    },
    error::{Error, Result},
    events::{
        EventType,
        activity::{self, Activity, Only, Place},
    },
    http::Json,
    page::{Cursor, CursorPage, Stretch},
};

pub struct WorkActivityApi;

#[OpenApi]
impl WorkActivityApi {
    /// List what happened to a project and in it, newest first.
    ///
    /// Its tasks, comments and messages are in it. Shows the types of events that the caller may see, of the last
    /// 90 days.
    #[oai(
        path = "/projects/:project_id/activity",
        method = "get",
        operation_id = "list_project_activity",
        tag = "Tag::Projects"
    )]
    #[allow(clippy::too_many_arguments)]
    async fn of_project(
        &self,
        who: Can<ProjectsRead>,
        project_id: Path<Uuid>,
        #[oai(name = "type")] kind: Query<Option<EventType>>,
        /// What one member did.
        actor_id: Query<Option<Uuid>>,
        cursor: Query<Option<Cursor>>,
        limit: Query<Option<u32>>,
    ) -> Result<Json<CursorPage<Activity>>> {
        let stretch = Stretch::new(cursor.0, limit.0)?;
        let tx = who.begin().await?;
        tx.query_opt("select id from projects where id = $1", &[&project_id.0])
            .await?
            .ok_or_else(|| Error::not_found("project"))?;
        let only = Only { kind: kind.0, actor: actor_id.0 };
        Ok(Json(activity::list(&tx, &who, Place::Project(project_id.0), &only, &stretch).await?))
    }

    /// List what happened to a task and in it, newest first.
    ///
    /// Its comments are in it. Shows the types of events that the caller may see, of the last 90 days.
    #[oai(
        path = "/tasks/:task_id/activity",
        method = "get",
        operation_id = "list_task_activity",
        tag = "Tag::Tasks"
    )]
    #[allow(clippy::too_many_arguments)]
    async fn of_task(
        &self,
        who: Can<TasksRead>,
        task_id: Path<Uuid>,
        #[oai(name = "type")] kind: Query<Option<EventType>>,
        /// What one member did.
        actor_id: Query<Option<Uuid>>,
        cursor: Query<Option<Cursor>>,
        limit: Query<Option<u32>>,
    ) -> Result<Json<CursorPage<Activity>>> {
        let stretch = Stretch::new(cursor.0, limit.0)?;
        let tx = who.begin().await?;
        tx.query_opt("select id from tasks where id = $1", &[&task_id.0])
            .await?
            .ok_or_else(|| Error::not_found("task"))?;
        let only = Only { kind: kind.0, actor: actor_id.0 };
        Ok(Json(activity::list(&tx, &who, Place::Task(task_id.0), &only, &stretch).await?))
    }
}
