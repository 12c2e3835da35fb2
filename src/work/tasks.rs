//! Tasks: what there is to do for a project.

use chrono::{DateTime, NaiveDate, Utc};
use poem_openapi::{
    Object, OpenApi,
    param::{Path, Query},
    types::{Example, MaybeUndefined},
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Priority, projects};
use crate::{
    api::Tag,
    audit::{Actor, Changes},
    auth::{
        Can, Member, Permission,
        permissions::{TasksRead, TasksWriteOwn},
    },
    db::{Row, Select, TenantTx},
    error::{Code, Error, Result},
    events::{self, EventType},
    http::{Body, Created, IfMatch, Json, NoContent, Single, Versioned},
    organizations::members,
    page::{Page, Paging, Sort, SortKey, SortKeys, key, nullable_key, search_query},
    types::{EXAMPLE_ID, Prose, Text, change, change_optional, check_year, example, example_time, text_enum},
};

text_enum! {
    /// Where a task stands.
    TaskStatus { Todo = "todo", InProgress = "in_progress", Review = "review", Done = "done" }
}

type Title = Text<1, 200>;

/// A task.
#[derive(Clone, Debug, Serialize, Object)]
#[oai(example)]
pub struct Task {
    pub id: Uuid,
    pub project_id: Uuid,
    pub title: Title,
    pub description: Option<Prose>,
    pub status: TaskStatus,
    pub priority: Priority,
    pub assignee_ids: Vec<Uuid>,
    pub created_by: Uuid,
    pub due_date: Option<NaiveDate>,
    pub estimated_hours: Option<f64>,
    pub actual_hours: Option<f64>,
    /// What the task adds to its project's progress once it is done, 0 to 100.
    pub impact: f64,
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
            title: example("Write the landing page"),
            description: None,
            status: TaskStatus::InProgress,
            priority: Priority::Medium,
            assignee_ids: vec![EXAMPLE_ID],
            created_by: EXAMPLE_ID,
            due_date: NaiveDate::from_ymd_opt(2026, 2, 14),
            estimated_hours: Some(6.5),
            actual_hours: None,
            impact: 20.0,
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
        key("created_at"),
        key("updated_at"),
        key("title"),
        key("status"),
        key("impact"),
        nullable_key("due_date"),
        nullable_key("completed_at"),
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
        project_id: Query<Option<Uuid>>,
        status: Query<Option<TaskStatus>>,
        priority: Query<Option<Priority>>,
        /// The tasks of one member.
        assigned_to: Query<Option<Uuid>>,
        /// Due on this day or before.
        due_before: Query<Option<NaiveDate>>,
        /// Due on this day or after.
        due_after: Query<Option<NaiveDate>>,
        /// Words in title or description; each may be the beginning of one.
        search: Query<Option<String>>,
        /// `-created_at` by default.
        sort: Query<Option<Sort<TaskKeys>>>,
    ) -> Result<Json<Page<Task>>> {
        let paging = Paging::new(page.0, page_size.0)?;
        let search = search.0.as_deref().map(search_query).transpose()?;
        let order = sort.0.as_ref().map_or("created_at desc, id desc", Sort::order);
        let tx = who.begin().await?;
        let (rows, total) = Select::new(COLUMNS, "tasks")
            .and_if("project_id = ?", &project_id.0)
            .and_if("status = ?", &status.0)
            .and_if("priority = ?", &priority.0)
            .and_if("id in (select a.task_id from task_assignees a where a.user_id = ?)", &assigned_to.0)
            .and_if("due_date <= ?", &due_before.0)
            .and_if("due_date >= ?", &due_after.0)
            .and_if("search @@ to_tsquery('simple', ?)", &search)
            .page(&tx, order, paging)
            .await?;
        Ok(Json(paging.answer(rows.iter().map(from_row).collect::<Result<_>>()?, total)))
    }

    /// Create a task.
    ///
    /// A member may add tasks to the projects they own or are a member of.
    #[oai(path = "/tasks", method = "post", operation_id = "create_task")]
    async fn create(&self, who: Can<TasksWriteOwn>, new: Body<NewTask>) -> Result<Created<Task>> {
        let tx = who.begin().await?;
        let task = insert(&tx, &who, new.0).await?;
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
    /// A member may change the tasks they made, are assigned to, or whose project they own.
    #[oai(path = "/tasks/:task_id", method = "patch", operation_id = "update_task")]
    async fn update(
        &self,
        who: Can<TasksWriteOwn>,
        task_id: Path<Uuid>,
        expected: IfMatch,
        to: Body<TaskChange>,
    ) -> Result<Single<Task>> {
        let tx = who.begin().await?;
        let mut task = find_to_change(&tx, &who, task_id.0).await?;
        expected.check(task.version)?;
        let counted = counts(&task);
        let now = who.app.clock.now();
        let before = task.clone();
        apply(&mut task, to.0, now)?;
        check(&tx, &mut task, &before.assignee_ids).await?;
        task.updated_at = now;
        task.version += 1;
        store(&tx, &task).await?;
        if counts(&task) != counted {
            projects::update_progress(&tx, task.project_id, now).await?;
        }
        let changes = Changes::between(&before, &task);
        if task.status == TaskStatus::Done && before.status != TaskStatus::Done {
            let done = Changes::none(&task);
            events::emit(&tx, &who.app, &Actor::from(&*who), EventType::TaskCompleted, task.id, &done)
                .await?;
        }
        events::record(&tx, &who.app, &*who, EventType::TaskUpdated, task.id, changes).await?;
        tx.commit().await?;
        Ok(Single(task))
    }

    /// Delete a task.
    #[oai(path = "/tasks/:task_id", method = "delete", operation_id = "delete_task")]
    async fn delete(
        &self,
        who: Can<TasksWriteOwn>,
        task_id: Path<Uuid>,
        expected: IfMatch,
    ) -> Result<NoContent> {
        let tx = who.begin().await?;
        let task = find_to_change(&tx, &who, task_id.0).await?;
        expected.check(task.version)?;
        tx.execute("delete from tasks where id = $1", &[&task.id]).await?;
        if counts(&task) != 0.0 {
            projects::update_progress(&tx, task.project_id, who.app.clock.now()).await?;
        }
        events::record(&tx, &who.app, &*who, EventType::TaskDeleted, task.id, Changes::deleted(&task))
            .await?;
        tx.commit().await?;
        Ok(NoContent)
    }
}

/// What the task adds to its project's progress now.
fn counts(task: &Task) -> f64 {
    if task.status == TaskStatus::Done { task.impact } else { 0.0 }
}

const COLUMNS: &str = "id, project_id, title, description, status, priority, created_by, due_date, \
     estimated_hours::float8 as estimated_hours, actual_hours::float8 as actual_hours, impact::float8 as impact, \
     completed_at, version, created_at, updated_at, \
     array(select a.user_id from task_assignees a where a.task_id = tasks.id order by a.user_id) as assignee_ids";

fn from_row(row: &Row) -> Result<Task> {
    Ok(Task {
        id: row.try_get("id")?,
        project_id: row.try_get("project_id")?,
        title: row.try_get("title")?,
        description: row.try_get("description")?,
        status: row.try_get("status")?,
        priority: row.try_get("priority")?,
        assignee_ids: row.try_get("assignee_ids")?,
        created_by: row.try_get("created_by")?,
        due_date: row.try_get("due_date")?,
        estimated_hours: row.try_get("estimated_hours")?,
        actual_hours: row.try_get("actual_hours")?,
        impact: row.try_get("impact")?,
        completed_at: row.try_get("completed_at")?,
        version: row.try_get("version")?,
        created_at: row.try_get("created_at")?,
        updated_at: row.try_get("updated_at")?,
    })
}

async fn find(tx: &TenantTx, id: Uuid) -> Result<Task> {
    let sql = format!("select {COLUMNS} from tasks where id = $1");
    from_row(&tx.query_opt(&sql, &[&id]).await?.ok_or_else(|| Error::not_found("task"))?)
}

/// A task that the caller may write, with its row locked.
async fn find_to_change(tx: &TenantTx, who: &Member, id: Uuid) -> Result<Task> {
    tx.query("select id from tasks where id = $1 for update", &[&id]).await?;
    let task = find(tx, id).await?;
    let own = task.created_by == who.user_id || task.assignee_ids.contains(&who.user_id);
    if who.may(Permission::TasksWrite)
        || own
        || projects::find(tx, task.project_id).await?.owner_id == who.user_id
    {
        return Ok(task);
    }
    Err(Error::denied(
        "This is not your task: you did not make it, are not assigned to it and do not own its project.",
    ))
}

/// Makes a task for a caller who may.
pub async fn insert(tx: &TenantTx, who: &Member, new: NewTask) -> Result<Task> {
    let now = who.app.clock.now();
    let status = new.status.unwrap_or(TaskStatus::Todo);
    let mut task = Task {
        id: Uuid::now_v7(),
        project_id: new.project_id,
        title: new.title,
        description: new.description,
        status,
        priority: new.priority.unwrap_or(Priority::Medium),
        assignee_ids: new.assignee_ids.unwrap_or_default(),
        created_by: who.user_id,
        due_date: new.due_date,
        estimated_hours: new.estimated_hours,
        actual_hours: new.actual_hours,
        impact: new.impact.unwrap_or(0.0),
        completed_at: (status == TaskStatus::Done).then_some(now),
        created_at: now,
        updated_at: now,
        version: 1,
    };
    let project = projects::find(tx, task.project_id).await.map_err(|error| match error.code() {
        Code::NotFound => Error::invalid("project_id", "There is no such project in this organization."),
        _ => error,
    })?;
    let own = project.owner_id == who.user_id || project.member_ids.contains(&who.user_id);
    if !who.may(Permission::TasksWrite) && !own {
        return Err(Error::denied("You are not in this project. Ask its owner to add you."));
    }
    check(tx, &mut task, &[]).await?;
    tx.execute(
        "insert into tasks (id, project_id, title, description, status, priority, created_by, due_date, \
         estimated_hours, actual_hours, impact, completed_at, created_at, updated_at) \
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9::float8::numeric, $10::float8::numeric, \
         $11::float8::numeric, $12, $13, $13)",
        &[
            &task.id,
            &task.project_id,
            &task.title,
            &task.description,
            &task.status,
            &task.priority,
            &task.created_by,
            &task.due_date,
            &task.estimated_hours,
            &task.actual_hours,
            &task.impact,
            &task.completed_at,
            &now,
        ],
    )
    .await?;
    store_assignees(tx, &task).await?;
    if counts(&task) != 0.0 {
        projects::update_progress(tx, task.project_id, now).await?;
    }
    events::record(tx, &who.app, who, EventType::TaskCreated, task.id, Changes::created(&task)).await?;
    Ok(task)
}

fn apply(task: &mut Task, to: TaskChange, now: DateTime<Utc>) -> Result<()> {
    change(&mut task.title, "title", to.title)?;
    change(&mut task.status, "status", to.status)?;
    change(&mut task.priority, "priority", to.priority)?;
    change(&mut task.assignee_ids, "assignee_ids", to.assignee_ids)?;
    change(&mut task.impact, "impact", to.impact)?;
    change_optional(&mut task.description, to.description);
    change_optional(&mut task.due_date, to.due_date);
    change_optional(&mut task.estimated_hours, to.estimated_hours);
    change_optional(&mut task.actual_hours, to.actual_hours);
    task.completed_at = match task.status {
        TaskStatus::Done => task.completed_at.or(Some(now)),
        _ => None,
    };
    Ok(())
}

/// What must hold whoever writes; also rounds to the two places that are kept. Who was assigned
/// before may stay, also after leaving the organization.
async fn check(tx: &TenantTx, task: &mut Task, before: &[Uuid]) -> Result<()> {
    let in_range = |field: &str, value: f64, most: f64| {
        let rounded = (value * 100.0).round() / 100.0;
        if (0.0..=most).contains(&rounded) {
            Ok(rounded)
        } else {
            Err(Error::invalid(field, format!("must be from 0 to {most}")))
        }
    };
    check_year("due_date", task.due_date)?;
    task.impact = in_range("impact", task.impact, 100.0)?;
    task.estimated_hours =
        task.estimated_hours.map(|hours| in_range("estimated_hours", hours, 100_000.0)).transpose()?;
    task.actual_hours =
        task.actual_hours.map(|hours| in_range("actual_hours", hours, 100_000.0)).transpose()?;
    if task.assignee_ids.len() > 50 {
        return Err(Error::invalid("assignee_ids", "may name at most 50 members"));
    }
    task.assignee_ids.sort();
    task.assignee_ids.dedup();
    let new: Vec<Uuid> = task.assignee_ids.iter().filter(|id| !before.contains(id)).copied().collect();
    members::must_be_active(tx, tx.organization(), &new, "assignee_ids").await
}

async fn store(tx: &TenantTx, task: &Task) -> Result<()> {
    tx.execute(
        "update tasks set title = $2, description = $3, status = $4, priority = $5, due_date = $6, \
         estimated_hours = $7::float8::numeric, actual_hours = $8::float8::numeric, impact = $9::float8::numeric, \
         completed_at = $10, version = $11, updated_at = $12 where id = $1",
        &[
            &task.id,
            &task.title,
            &task.description,
            &task.status,
            &task.priority,
            &task.due_date,
            &task.estimated_hours,
            &task.actual_hours,
            &task.impact,
            &task.completed_at,
            &task.version,
            &task.updated_at,
        ],
    )
    .await?;
    store_assignees(tx, task).await
}

async fn store_assignees(tx: &TenantTx, task: &Task) -> Result<()> {
    tx.execute(
        "delete from task_assignees where task_id = $1 and user_id <> all ($2)",
        &[&task.id, &task.assignee_ids],
    )
    .await?;
    tx.execute(
        "insert into task_assignees (task_id, user_id) select $1, unnest($2::uuid[]) \
         on conflict (task_id, user_id) do nothing",
        &[&task.id, &task.assignee_ids],
    )
    .await?;
    Ok(())
}
