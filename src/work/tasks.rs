//! Tasks: what there is to do for a project.

mod store;
mod write;

use chrono::{DateTime, NaiveDate, Utc};
use poem_openapi::{
    Object, OpenApi,
    param::{Path, Query},
    types::{Example, MaybeUndefined},
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use store::{COLUMNS, end, find, from_row, several};
pub use write::{
    Beside, Draft, Going, MOST_ASSIGNEES, Reach, apply, carry_out, change, check_values, delete, hold,
    hold_with, insert, may_write, must_be_active,
};

use super::{By, ExternalId, Priority};
use crate::{
    api::Tag,
    auth::{
        Can,
        permissions::{TasksRead, TasksWriteOwn},
    },
    db::Select,
    error::Result,
    http::{Body, Created, IfMatch, Json, NoContent, Single, Versioned},
    page::{ListCursor, Page, Paging, Sort, SortKey, SortKeys, id_key, key, nullable_key, search_query},
    types::{EXAMPLE_ID, Prose, Text, example, example_time, text_enum},
};

text_enum! {
    /// Where a task stands.
    TaskStatus { Todo = "todo", InProgress = "in_progress", Review = "review", Done = "done" }
}

pub type Title = Text<1, 200>;

/// A task.
#[derive(Clone, Debug, PartialEq, Serialize, Object)]
#[oai(example)]
pub struct Task {
    pub id: Uuid,
    pub project_id: Uuid,
    /// The task that this one is a part of; in the same project.
    pub parent_id: Option<Uuid>,
    /// What it is called where it came from; unique in the organization.
    pub external_id: Option<ExternalId>,
    pub title: Title,
    pub description: Option<Prose>,
    pub status: TaskStatus,
    pub priority: Priority,
    pub assignee_ids: Vec<Uuid>,
    /// The tasks that must be done before this one.
    pub waits_for: Vec<Uuid>,
    pub created_by: Uuid,
    pub due_date: Option<NaiveDate>,
    pub estimated_hours: Option<f64>,
    pub actual_hours: Option<f64>,
    /// What the task adds to its project's progress once it is done, 0 to 100.
    pub impact: f64,
    /// Where it stands among the tasks of its project with the same status: a decimal as text, further down
    /// the greater it is. It may become another one without the order being another.
    pub position: String,
    /// Since when it is done.
    pub completed_at: Option<DateTime<Utc>>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
    #[serde(skip)]
    #[oai(skip)]
    pub version: i64,
}

impl Versioned for Task {
    fn version(&self) -> i64 {
        self.version
    }
}

impl Example for Task {
    fn example() -> Self {
        Self {
            id: EXAMPLE_ID,
            project_id: EXAMPLE_ID,
            parent_id: None,
            external_id: None,
            title: example("Write the landing page"),
            description: None,
            status: TaskStatus::InProgress,
            priority: Priority::Medium,
            assignee_ids: vec![EXAMPLE_ID],
            waits_for: Vec::new(),
            created_by: EXAMPLE_ID,
            due_date: NaiveDate::from_ymd_opt(2026, 2, 14),
            estimated_hours: Some(6.5),
            actual_hours: None,
            impact: 20.0,
            position: "1767225600000000".into(),
            completed_at: None,
            created_at: example_time(),
            updated_at: example_time(),
            version: 1,
        }
    }
}

/// A task to be made.
#[derive(Debug, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(deny_unknown_fields, example)]
pub struct NewTask {
    pub project_id: Uuid,
    /// A task of the same project that this one is a part of; tasks go five levels deep.
    pub parent_id: Option<Uuid>,
    /// What it is called where it comes from; unique in the organization.
    pub external_id: Option<ExternalId>,
    pub title: Title,
    pub description: Option<Prose>,
    /// `todo` where it is absent.
    pub status: Option<TaskStatus>,
    /// `medium` where it is absent.
    pub priority: Option<Priority>,
    /// Active members of the organization.
    pub assignee_ids: Option<Vec<Uuid>>,
    pub due_date: Option<NaiveDate>,
    pub estimated_hours: Option<f64>,
    pub actual_hours: Option<f64>,
    /// 0 where it is absent.
    pub impact: Option<f64>,
}

impl Example for NewTask {
    fn example() -> Self {
        Self {
            project_id: EXAMPLE_ID,
            parent_id: None,
            external_id: None,
            title: example("Write the landing page"),
            description: None,
            status: None,
            priority: Some(Priority::Medium),
            assignee_ids: None,
            due_date: NaiveDate::from_ymd_opt(2026, 2, 14),
            estimated_hours: Some(6.5),
            actual_hours: None,
            impact: Some(20.0),
        }
    }
}

/// What changes; what is absent stays, null empties.
#[derive(Debug, Default, Deserialize, Object)]
#[serde(deny_unknown_fields, default)]
#[oai(deny_unknown_fields, example)]
pub struct TaskChange {
    /// The project that it moves to, with all that is under it and to the end of its column.
    pub project_id: MaybeUndefined<Uuid>,
    /// A task of the same project that it becomes a part of.
    pub parent_id: MaybeUndefined<Uuid>,
    pub external_id: MaybeUndefined<ExternalId>,
    pub title: MaybeUndefined<Title>,
    pub description: MaybeUndefined<Prose>,
    pub status: MaybeUndefined<TaskStatus>,
    pub priority: MaybeUndefined<Priority>,
    pub assignee_ids: MaybeUndefined<Vec<Uuid>>,
    pub due_date: MaybeUndefined<NaiveDate>,
    pub estimated_hours: MaybeUndefined<f64>,
    pub actual_hours: MaybeUndefined<f64>,
    pub impact: MaybeUndefined<f64>,
}

impl Example for TaskChange {
    fn example() -> Self {
        Self { status: MaybeUndefined::Value(TaskStatus::Done), ..Self::default() }
    }
}

/// What tasks can be sorted by.
#[derive(Clone, Debug)]
pub struct TaskKeys;

impl SortKeys for TaskKeys {
    const KEYS: &[SortKey] = &[
        id_key("created_at"),
        key("updated_at", "timestamptz"),
        key("title", "text"),
        key("status", "text"),
        key("impact", "numeric"),
        key("position", "numeric"),
        nullable_key("due_date", "date"),
        nullable_key("completed_at", "timestamptz"),
    ];
}

pub struct TasksApi;

#[OpenApi(tag = "Tag::Tasks")]
impl TasksApi {
    /// List tasks.
    #[oai(path = "/tasks", method = "get", operation_id = "list_tasks")]
    #[allow(clippy::too_many_arguments)]
    async fn list(
        &self,
        who: Can<TasksRead>,
        page: Query<Option<u32>>,
        page_size: Query<Option<u32>>,
        /// `next_cursor` of the page before, in place of `page`.
        cursor: Query<Option<ListCursor>>,
        project_id: Query<Option<Uuid>>,
        /// The subtasks of one task.
        parent_id: Query<Option<Uuid>>,
        external_id: Query<Option<ExternalId>>,
        status: Query<Option<TaskStatus>>,
        priority: Query<Option<Priority>>,
        /// The tasks of one member.
        assigned_to: Query<Option<Uuid>>,
        created_by: Query<Option<Uuid>>,
        /// Due on this day or before.
        due_before: Query<Option<NaiveDate>>,
        /// Due on this day or after.
        due_after: Query<Option<NaiveDate>>,
        /// Words in title or description; each may be the beginning of one.
        search: Query<Option<String>>,
        /// `-created_at` by default; `position` is the order of a board's column.
        sort: Query<Option<Sort<TaskKeys>>>,
    ) -> Result<Json<Page<Task>>> {
        let paging = Paging::new(page.0, page_size.0, cursor.0)?;
        let search = search.0.as_deref().map(search_query).transpose()?;
        let order = Sort::or(sort.0, "-created_at");
        let tx = who.begin().await?;
        let page = Select::new(COLUMNS, "tasks")
            .and_if("project_id = ?", &project_id.0)
            .and_if("parent_id = ?", &parent_id.0)
            .and_if("external_id = ?", &external_id.0)
            .and_if("status = ?", &status.0)
            .and_if("priority = ?", &priority.0)
            .among_if("id", "select a.task_id from task_assignees a where a.user_id = ?", &assigned_to.0)
            .and_if("created_by = ?", &created_by.0)
            .and_if("due_date <= ?", &due_before.0)
            .and_if("due_date >= ?", &due_after.0)
            .and_if("search @@ to_tsquery('simple', ?)", &search)
            .spread_over("due_date", &["updated_at", "status", "position", "completed_at"])
            .knowing("completed_at", status.0.map(|status| status == TaskStatus::Done))
            .page(&tx, &order, &paging, from_row)
            .await?;
        Ok(Json(page))
    }

    /// Create a task.
    ///
    /// A member may add tasks to the projects they own or are a member of. It stands at the end of its column.
    #[oai(path = "/tasks", method = "post", operation_id = "create_task")]
    async fn create(&self, who: Can<TasksWriteOwn>, new: Body<NewTask>) -> Result<Created<Task>> {
        let tx = who.begin().await?;
        let task = insert(&tx, &By::from(&*who), new.0).await?;
        tx.commit().await?;
        Ok(Created { location: format!("/api/v1/tasks/{}", task.id), value: task })
    }

    /// See a task.
    #[oai(path = "/tasks/:task_id", method = "get", operation_id = "get_task")]
    async fn get(&self, who: Can<TasksRead>, task_id: Path<Uuid>) -> Result<Single<Task>> {
        let tx = who.begin().await?;
        Ok(Single(find(&tx, task_id.0).await?))
    }

    /// Change a task.
    ///
    /// A member may change the tasks they made, are assigned to, or whose project they own. A task that waits
    /// for one that is not done cannot be done, and one that a done task waits for cannot be opened again: 409.
    #[oai(path = "/tasks/:task_id", method = "patch", operation_id = "update_task")]
    async fn update(
        &self,
        who: Can<TasksWriteOwn>,
        task_id: Path<Uuid>,
        expected: IfMatch,
        to: Body<TaskChange>,
    ) -> Result<Single<Task>> {
        let tx = who.begin().await?;
        let task = change(&tx, &By::from(&*who), task_id.0, |version| expected.check(version), to.0).await?;
        tx.commit().await?;
        Ok(Single(task))
    }

    /// Delete a task and all under it.
    ///
    /// Whoever may change a task may delete it with its subtasks, comments and attachments, those of others too.
    /// What waited for one of them waits no longer.
    #[oai(path = "/tasks/:task_id", method = "delete", operation_id = "delete_task")]
    async fn delete(
        &self,
        who: Can<TasksWriteOwn>,
        task_id: Path<Uuid>,
        expected: IfMatch,
    ) -> Result<NoContent> {
        let tx = who.begin().await?;
        delete(&tx, &By::from(&*who), task_id.0, |version| expected.check(version)).await?;
        tx.commit().await?;
        Ok(NoContent)
    }
}
