//! What must be done before what.
//!
//! Tasks that wait for one another never go in a circle: whoever adds a dependency holds the tree, so that one
//! is added at a time. Whoever completes a task locks what it waits for; whoever opens one again has it locked
//! and looks at what waits for it. So of two who would break the rule together the later sees the earlier.

use std::collections::{BTreeMap, HashMap};

use poem_openapi::{Object, OpenApi, param::Path, types::Example};
use serde::Serialize;
use serde_json::json;
use uuid::Uuid;

use super::{
    By,
    tasks::{self, Draft, Reach, Task, TaskStatus, Title},
    tree,
};
use crate::{
    api::Tag,
    audit::Changes,
    auth::{
        Can,
        permissions::{TasksRead, TasksWriteOwn},
    },
    db::{Row, TenantTx},
    error::{Code, Error, Result},
    events::{self, EventType},
    http::{IfMatch, Json, NoContent},
    types::{EXAMPLE_ID, example},
};

/// Tasks that one task may wait for.
const MOST: usize = 50;
/// How many of the tasks that wait for one are shown.
const SHOWN: i64 = 1000;

/// Another task, as much as is needed to show it.
#[derive(Clone, Debug, Serialize, Object)]
#[oai(example)]
pub struct TaskRef {
    pub id: Uuid,
    pub title: Title,
    pub status: TaskStatus,
}

impl Example for TaskRef {
    fn example() -> Self {
        Self { id: EXAMPLE_ID, title: example("Choose the colours"), status: TaskStatus::Review }
    }
}

impl TaskRef {
    pub fn from_row(row: &Row) -> Result<Self> {
        Ok(Self { id: row.try_get("id")?, title: row.try_get("title")?, status: row.try_get("status")? })
    }
}

/// What a task waits for and what waits for it.
#[derive(Clone, Debug, Serialize, Object)]
#[oai(example)]
pub struct Dependencies {
    /// What must be done before it, at most 50.
    pub waits_for: Vec<TaskRef>,
    /// What can be done only after it; the first 1,000.
    pub blocks: Vec<TaskRef>,
}

impl Example for Dependencies {
    fn example() -> Self {
        Self { waits_for: vec![TaskRef::example()], blocks: Vec::new() }
    }
}

pub struct DependenciesApi;

#[OpenApi(tag = "Tag::Tasks")]
impl DependenciesApi {
    /// See what a task waits for and what waits for it.
    #[oai(path = "/tasks/:task_id/dependencies", method = "get", operation_id = "list_task_dependencies")]
    async fn list(&self, who: Can<TasksRead>, task_id: Path<Uuid>) -> Result<Json<Dependencies>> {
        let tx = who.begin().await?;
        tasks::find(&tx, task_id.0).await?;
        Ok(Json(read(&tx, task_id.0).await?))
    }

    /// Let a task wait for another.
    ///
    /// The other may be in another project. Refused with 409: a circle, and a done task that would wait for one
    /// that is not done. What it waits for already stays as it is.
    #[oai(
        path = "/tasks/:task_id/dependencies/:other_task_id",
        method = "put",
        operation_id = "add_task_dependency"
    )]
    async fn add(
        &self,
        who: Can<TasksWriteOwn>,
        task_id: Path<Uuid>,
        other_task_id: Path<Uuid>,
        expected: IfMatch,
    ) -> Result<Json<Dependencies>> {
        let by = By::from(&*who);
        let tx = who.begin().await?;
        add(&tx, &by, task_id.0, other_task_id.0, |version| expected.check(version)).await?;
        let now = read(&tx, task_id.0).await?;
        tx.commit().await?;
        Ok(Json(now))
    }

    /// Let a task wait for another no longer.
    #[oai(
        path = "/tasks/:task_id/dependencies/:other_task_id",
        method = "delete",
        operation_id = "remove_task_dependency"
    )]
    async fn remove(
        &self,
        who: Can<TasksWriteOwn>,
        task_id: Path<Uuid>,
        other_task_id: Path<Uuid>,
        expected: IfMatch,
    ) -> Result<NoContent> {
        let by = By::from(&*who);
        let tx = who.begin().await?;
        let task = tasks::hold(&tx, &by, &[task_id.0], Reach::default()).await?.task(&by, task_id.0)?;
        expected.check(task.version)?;
        let gone = tx
            .execute(
                "delete from task_dependencies where task_id = $1 and waits_for = $2",
                &[&task.id, &other_task_id.0],
            )
            .await?;
        if gone == 0 {
            return Err(Error::not_found("dependency"));
        }
        tell(&tx, &by, &[task]).await?;
        tx.commit().await?;
        Ok(NoContent)
    }
}

async fn read(tx: &TenantTx, task: Uuid) -> Result<Dependencies> {
    let waits_for = tx
        .query(
            "select t.id, t.title, t.status from task_dependencies d join tasks t on t.id = d.waits_for \
             where d.task_id = $1 order by t.id",
            &[&task],
        )
        .await?;
    let blocks = tx
        .query(
            "select t.id, t.title, t.status from task_dependencies d join tasks t on t.id = d.task_id \
             where d.waits_for = $1 order by t.id limit $2",
            &[&task, &SHOWN],
        )
        .await?;
    Ok(Dependencies {
        waits_for: waits_for.iter().map(TaskRef::from_row).collect::<Result<_>>()?,
        blocks: blocks.iter().map(TaskRef::from_row).collect::<Result<_>>()?,
    })
}

/// Lets a task wait for another, for a caller who may write the task.
pub async fn add(
    tx: &TenantTx,
    by: &By<'_>,
    task: Uuid,
    other: Uuid,
    expected: impl FnOnce(i64) -> Result<()>,
) -> Result<()> {
    tree::hold(tx).await?;
    tx.query(
        "select id from tasks where id = any ($1) order by id for no key update",
        &[&[task, other].as_slice()],
    )
    .await?;
    let task = tasks::hold(tx, by, &[task], Reach::default()).await?.task(by, task)?;
    expected(task.version)?;
    let other = tasks::find(tx, other).await?;
    if task.id == other.id {
        return Err(Error::conflict("A task cannot wait for itself."));
    }
    if task.waits_for.contains(&other.id) {
        return Ok(());
    }
    if task.waits_for.len() >= MOST {
        return Err(Error::conflict(format!("A task waits for at most {MOST} others. Remove one first.")));
    }
    if task.status == TaskStatus::Done && other.status != TaskStatus::Done {
        return Err(Error::conflict(format!(
            "The task is done and {:?} is not. Open it again first, or finish the other.",
            other.title.as_ref()
        )));
    }
    let circle = tx
        .query_opt(
            "with recursive ahead (id) as ( \
               select waits_for from task_dependencies where task_id = $1 \
               union select d.waits_for from task_dependencies d join ahead a on d.task_id = a.id) \
             select id from ahead where id = $2",
            &[&other.id, &task.id],
        )
        .await?;
    if circle.is_some() {
        return Err(Error::conflict(format!(
            "This would go in a circle: {:?} waits for this task already, maybe by way of others.",
            other.title.as_ref()
        )));
    }
    tx.execute(
        "insert into task_dependencies (task_id, waits_for, created_at) values ($1, $2, $3)",
        &[&task.id, &other.id, &by.app.clock.now()],
    )
    .await?;
    tell(tx, by, &[task]).await
}

/// Tells that tasks, whose rows are locked, wait for others than before.
pub async fn tell(tx: &TenantTx, by: &By<'_>, before: &[Task]) -> Result<()> {
    let ids: Vec<Uuid> = before.iter().map(|task| task.id).collect();
    tx.execute(
        "update tasks set version = version + 1, updated_at = $2 where id = any ($1)",
        &[&ids, &by.app.clock.now()],
    )
    .await?;
    let before: HashMap<Uuid, &Task> = before.iter().map(|task| (task.id, task)).collect();
    let after = tasks::several(tx, &ids).await?;
    let told = after.iter().filter_map(|after| {
        let changes = Changes::between(*before.get(&after.id)?, after);
        Some((EventType::TaskUpdated, after.id, changes))
    });
    events::record_many(tx, by.app, &by.actor, &told.collect::<Vec<_>>()).await
}

/// Whether tasks may become done and others open again as it is planned; 409 names what is in the way. Rows of
/// the planned tasks are locked.
pub async fn check_order(
    tx: &TenantTx,
    drafts: &[Draft],
    place: &(dyn Fn(Uuid) -> Option<String> + Sync),
) -> Result<()> {
    let is_done = |task: &Task| task.status == TaskStatus::Done;
    let planned: HashMap<Uuid, bool> =
        drafts.iter().map(|draft| (draft.after.id, is_done(&draft.after))).collect();
    let turned = |to_done: bool| -> Vec<Uuid> {
        drafts
            .iter()
            .filter(|draft| is_done(&draft.before) != to_done && is_done(&draft.after) == to_done)
            .map(|draft| draft.after.id)
            .collect()
    };
    let (completed, opened) = (turned(true), turned(false));
    if !completed.is_empty() {
        let ahead = tx
            .query(
                "select d.task_id as whose, t.id, t.title, t.status from task_dependencies d \
                 join tasks t on t.id = d.waits_for where d.task_id = any ($1) order by t.id for share of t",
                &[&completed],
            )
            .await?;
        let in_the_way = others(&ahead, |other| {
            !planned.get(&other.id).copied().unwrap_or(other.status == TaskStatus::Done)
        })?;
        if let Some((task, open)) = in_the_way.into_iter().next() {
            let told = format!("This waits for {}. Finish what it waits for first.", named(&open));
            return Err(obstacle(place(task), told, "waits_for", &open));
        }
    }
    if !opened.is_empty() {
        let left: Vec<Uuid> = planned.iter().filter(|(_, done)| !**done).map(|(id, _)| *id).collect();
        let behind = tx
            .query(
                "select d.waits_for as whose, t.id, t.title, t.status from task_dependencies d \
                 join tasks t on t.id = d.task_id where d.waits_for = any ($1) and t.status = 'done' \
                 and t.id <> all ($2) order by t.id limit $3",
                &[&opened, &left, &SHOWN],
            )
            .await?;
        let in_the_way = others(&behind, |_| true)?;
        if let Some((task, done)) = in_the_way.into_iter().next() {
            let told = format!("{} waited for this and is done. Open that again first.", named(&done));
            return Err(obstacle(place(task), told, "blocks", &done));
        }
    }
    Ok(())
}

/// By task, the others that are in its way.
fn others(rows: &[Row], stands: impl Fn(&TaskRef) -> bool) -> Result<BTreeMap<Uuid, Vec<TaskRef>>> {
    let mut found: BTreeMap<Uuid, Vec<TaskRef>> = BTreeMap::new();
    for row in rows {
        let other = TaskRef::from_row(row)?;
        if stands(&other) {
            found.entry(row.try_get("whose")?).or_default().push(other);
        }
    }
    Ok(found)
}

/// The first few of them, by title.
fn named(tasks: &[TaskRef]) -> String {
    let titles: Vec<String> = tasks.iter().take(3).map(|task| format!("{:?}", task.title.as_ref())).collect();
    match tasks.len().saturating_sub(titles.len()) {
        0 => titles.join(", "),
        more => format!("{} and {more} more", titles.join(", ")),
    }
}

fn obstacle(place: Option<String>, told: String, what: &str, tasks: &[TaskRef]) -> Error {
    let error = match place {
        Some(field) => Error::field(Code::Conflict, field, "invalid", told),
        None => Error::conflict(told),
    };
    error.with_details(json!({what: tasks}))
}
