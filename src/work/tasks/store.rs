//! Tasks in the database.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{Task, TaskStatus};
use crate::{
    db::{Row, TenantTx},
    error::{Error, OnConstraint, Result},
    work::ExternalId,
};

// What is shown otherwise than it is kept has a name of its own: lists are sorted by what is kept.
pub const COLUMNS: &str = "id, project_id, parent_id, external_id, title, description, status, priority, created_by, \
     due_date, estimated_hours::float8 as hours_estimated, actual_hours::float8 as hours_actual, \
     impact::float8 as points, position::text as place, completed_at, version, created_at, updated_at, \
     array(select a.user_id from task_assignees a where a.task_id = tasks.id order by a.user_id) as assignee_ids, \
     array(select d.waits_for from task_dependencies d where d.task_id = tasks.id order by d.waits_for) as waits_for";

pub fn from_row(row: &Row) -> Result<Task> {
    Ok(Task {
        id: row.try_get("id")?,
        project_id: row.try_get("project_id")?,
        parent_id: row.try_get("parent_id")?,
        external_id: row.try_get("external_id")?,
        title: row.try_get("title")?,
        description: row.try_get("description")?,
        status: row.try_get("status")?,
        priority: row.try_get("priority")?,
        assignee_ids: row.try_get("assignee_ids")?,
        waits_for: row.try_get("waits_for")?,
        created_by: row.try_get("created_by")?,
        due_date: row.try_get("due_date")?,
        estimated_hours: row.try_get("hours_estimated")?,
        actual_hours: row.try_get("hours_actual")?,
        impact: row.try_get("points")?,
        position: row.try_get("place")?,
        completed_at: row.try_get("completed_at")?,
        version: row.try_get("version")?,
        created_at: row.try_get("created_at")?,
        updated_at: row.try_get("updated_at")?,
    })
}

/// A task that must be there.
pub async fn find(tx: &TenantTx, id: Uuid) -> Result<Task> {
    let sql = format!("select {COLUMNS} from tasks where id = $1");
    from_row(&tx.query_opt(&sql, &[&id]).await?.ok_or_else(|| Error::not_found("task"))?)
}

/// Those of these tasks that there are, by id.
pub async fn several(tx: &TenantTx, ids: &[Uuid]) -> Result<Vec<Task>> {
    let sql = format!("select {COLUMNS} from tasks where id = any ($1) order by id");
    tx.query(&sql, &[&ids]).await?.iter().map(from_row).collect()
}

/// The end of every column now: later is further down. `n` keeps what is put there at once in order.
pub fn end(now: DateTime<Utc>, n: usize) -> String {
    (now.timestamp_micros() + n as i64).to_string()
}

/// What the task adds to its project's progress now.
pub fn counts(task: &Task) -> f64 {
    if task.status == TaskStatus::Done { task.impact } else { 0.0 }
}

fn external_id_taken(id: &Option<ExternalId>) -> Error {
    let id = id.as_ref().map_or("", AsRef::as_ref);
    Error::taken("external_id", format!("Another task has the external id {id}. Change that one instead."))
}

pub async fn insert(tx: &TenantTx, task: &Task) -> Result<()> {
    tx.execute(
        "insert into tasks (id, project_id, parent_id, external_id, title, description, status, priority, created_by, \
         due_date, estimated_hours, actual_hours, impact, position, completed_at, created_at, updated_at) \
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11::float8::numeric, $12::float8::numeric, \
         $13::float8::numeric, $14::text::numeric, $15, $16, $16)",
        &[
            &task.id,
            &task.project_id,
            &task.parent_id,
            &task.external_id,
            &task.title,
            &task.description,
            &task.status,
            &task.priority,
            &task.created_by,
            &task.due_date,
            &task.estimated_hours,
            &task.actual_hours,
            &task.impact,
            &task.position,
            &task.completed_at,
            &task.created_at,
        ],
    )
    .await
    .on_constraint("tasks_external_id_key", || external_id_taken(&task.external_id))?;
    store_assignees(tx, task).await
}

pub async fn update(tx: &TenantTx, task: &Task) -> Result<()> {
    tx.execute(
        "update tasks set project_id = $2, parent_id = $3, external_id = $4, title = $5, description = $6, \
         status = $7, priority = $8, due_date = $9, estimated_hours = $10::float8::numeric, \
         actual_hours = $11::float8::numeric, impact = $12::float8::numeric, position = $13::text::numeric, \
         completed_at = $14, version = $15, updated_at = $16 where id = $1",
        &[
            &task.id,
            &task.project_id,
            &task.parent_id,
            &task.external_id,
            &task.title,
            &task.description,
            &task.status,
            &task.priority,
            &task.due_date,
            &task.estimated_hours,
            &task.actual_hours,
            &task.impact,
            &task.position,
            &task.completed_at,
            &task.version,
            &task.updated_at,
        ],
    )
    .await
    .on_constraint("tasks_external_id_key", || external_id_taken(&task.external_id))?;
    store_assignees(tx, task).await
}

/// Writes what changes of tasks that are taken along to another project.
pub async fn update_homes<'a>(tx: &TenantTx, tasks: impl Iterator<Item = &'a Task>) -> Result<()> {
    let (mut ids, mut projects, mut places) = (Vec::new(), Vec::new(), Vec::new());
    let (mut versions, mut times) = (Vec::new(), Vec::new());
    for task in tasks {
        ids.push(task.id);
        projects.push(task.project_id);
        places.push(&*task.position);
        versions.push(task.version);
        times.push(task.updated_at);
    }
    if ids.is_empty() {
        return Ok(());
    }
    tx.execute(
        "with n as (select u.id, u.project_id, u.place::numeric as place, u.version, u.updated_at \
           from unnest($1::uuid[], $2::uuid[], $3::text[], $4::bigint[], $5::timestamptz[]) \
           as u (id, project_id, place, version, updated_at)) \
         update tasks set project_id = n.project_id, position = n.place, version = n.version, \
         updated_at = n.updated_at from n where tasks.id = n.id",
        &[&ids, &projects, &places, &versions, &times],
    )
    .await?;
    Ok(())
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
