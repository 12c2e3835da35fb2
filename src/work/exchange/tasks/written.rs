//! Many tasks in one statement for each table.

use std::collections::BTreeMap;

use chrono::{DateTime, NaiveDate, Utc};
use uuid::Uuid;

use super::{Plan, is_done};
use crate::{
    db::{TenantTx, ToSql},
    error::Result,
    work::{
        Priority, projects,
        tasks::{Draft, Task, TaskStatus},
    },
};

/// What the task adds to its project's progress.
fn counts(task: &Task) -> f64 {
    if is_done(task) { task.impact } else { 0.0 }
}

/// Makes tasks.
pub(super) async fn insert(tx: &TenantTx, new: &[Task]) -> Result<()> {
    if new.is_empty() {
        return Ok(());
    }
    let columns = Columns::of(new.iter());
    let by: Vec<Uuid> = new.iter().map(|task| task.created_by).collect();
    let made: Vec<DateTime<Utc>> = new.iter().map(|task| task.created_at).collect();
    let parents: Vec<Option<Uuid>> = new.iter().map(|task| task.parent_id).collect();
    let projects: Vec<Uuid> = new.iter().map(|task| task.project_id).collect();
    let mut values = columns.values();
    values.extend([&by as &(dyn ToSql + Sync), &made, &parents, &projects]);
    tx.execute(
        "insert into tasks (id, external_id, title, description, status, priority, due_date, estimated_hours, \
         actual_hours, impact, position, completed_at, created_by, created_at, updated_at, parent_id, project_id) \
         select n.id, n.external_id, n.title, n.description, n.status, n.priority, n.due_date, \
         n.estimated_hours::numeric, n.actual_hours::numeric, n.impact::numeric, n.position::numeric, n.completed_at, \
         n.created_by, n.created_at, n.created_at, n.parent_id, n.project_id \
         from unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::date[], \
         $8::float8[], $9::float8[], $10::float8[], $11::text[], $12::timestamptz[], $13::uuid[], $14::timestamptz[], \
         $15::uuid[], $16::uuid[]) as n (id, external_id, title, description, status, priority, due_date, \
         estimated_hours, actual_hours, impact, position, completed_at, created_by, created_at, parent_id, project_id)",
        &values,
    )
    .await?;
    let all: Vec<&Task> = new.iter().collect();
    assign(tx, &all).await
}

/// Writes tasks whose rows are locked as they are to be.
pub(super) async fn update(tx: &TenantTx, changed: &[Draft]) -> Result<()> {
    if changed.is_empty() {
        return Ok(());
    }
    let columns = Columns::of(changed.iter().map(|draft| &draft.after));
    let versions: Vec<i64> = changed.iter().map(|draft| draft.after.version).collect();
    let times: Vec<DateTime<Utc>> = changed.iter().map(|draft| draft.after.updated_at).collect();
    let mut values = columns.values();
    values.extend([&versions as &(dyn ToSql + Sync), &times]);
    tx.execute(
        "with n as (select u.id, u.external_id, u.title, u.description, u.status, u.priority, u.due_date, \
           u.estimated_hours::numeric as estimated_hours, u.actual_hours::numeric as actual_hours, \
           u.impact::numeric as impact, u.place::numeric as place, u.completed_at, u.version, u.updated_at \
           from unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::date[], \
           $8::float8[], $9::float8[], $10::float8[], $11::text[], $12::timestamptz[], $13::bigint[], \
           $14::timestamptz[]) as u (id, external_id, title, description, status, priority, due_date, \
           estimated_hours, actual_hours, impact, place, completed_at, version, updated_at)) \
         update tasks set external_id = n.external_id, title = n.title, description = n.description, \
         status = n.status, priority = n.priority, due_date = n.due_date, estimated_hours = n.estimated_hours, \
         actual_hours = n.actual_hours, impact = n.impact, position = n.place, completed_at = n.completed_at, \
         version = n.version, updated_at = n.updated_at from n where tasks.id = n.id",
        &values,
    )
    .await?;
    let assigned: Vec<&Draft> =
        changed.iter().filter(|draft| draft.before.assignee_ids != draft.after.assignee_ids).collect();
    if assigned.is_empty() {
        return Ok(());
    }
    let ids: Vec<Uuid> = assigned.iter().map(|draft| draft.after.id).collect();
    tx.execute("delete from task_assignees where task_id = any ($1)", &[&ids]).await?;
    let all: Vec<&Task> = assigned.iter().map(|draft| &draft.after).collect();
    assign(tx, &all).await
}

async fn assign(tx: &TenantTx, tasks: &[&Task]) -> Result<()> {
    let pairs = tasks.iter().flat_map(|task| task.assignee_ids.iter().map(|user| (task.id, *user)));
    let (ids, users): (Vec<Uuid>, Vec<Uuid>) = pairs.unzip();
    if ids.is_empty() {
        return Ok(());
    }
    let sql = "insert into task_assignees (task_id, user_id) select a.task_id, a.user_id \
         from unnest($1::uuid[], $2::uuid[]) as a (task_id, user_id)";
    tx.execute(sql, &[&ids, &users]).await?;
    Ok(())
}

/// Tasks by the column.
#[derive(Default)]
struct Columns<'a> {
    ids: Vec<Uuid>,
    external_ids: Vec<Option<&'a str>>,
    titles: Vec<&'a str>,
    descriptions: Vec<Option<&'a str>>,
    statuses: Vec<TaskStatus>,
    priorities: Vec<Priority>,
    due_dates: Vec<Option<NaiveDate>>,
    estimated: Vec<Option<f64>>,
    actual: Vec<Option<f64>>,
    impacts: Vec<f64>,
    positions: Vec<&'a str>,
    completed: Vec<Option<DateTime<Utc>>>,
}

impl<'a> Columns<'a> {
    fn of(tasks: impl Iterator<Item = &'a Task>) -> Self {
        let mut columns = Self::default();
        for task in tasks {
            columns.ids.push(task.id);
            columns.external_ids.push(task.external_id.as_ref().map(AsRef::as_ref));
            columns.titles.push(task.title.as_ref());
            columns.descriptions.push(task.description.as_ref().map(AsRef::as_ref));
            columns.statuses.push(task.status);
            columns.priorities.push(task.priority);
            columns.due_dates.push(task.due_date);
            columns.estimated.push(task.estimated_hours);
            columns.actual.push(task.actual_hours);
            columns.impacts.push(task.impact);
            columns.positions.push(&task.position);
            columns.completed.push(task.completed_at);
        }
        columns
    }

    fn values(&self) -> Vec<&(dyn ToSql + Sync)> {
        vec![
            &self.ids,
            &self.external_ids,
            &self.titles,
            &self.descriptions,
            &self.statuses,
            &self.priorities,
            &self.due_dates,
            &self.estimated,
            &self.actual,
            &self.impacts,
            &self.positions,
            &self.completed,
        ]
    }
}

/// Brings the progress of the projects up to date that these changes touch. What is not complete is the sum itself,
/// so that the difference is added; only where something complete gets less all of it is added up.
pub(super) async fn update_progress(tx: &TenantTx, plan: &Plan, now: DateTime<Utc>) -> Result<()> {
    let made = plan.new.iter().map(|task| (task.project_id, counts(task)));
    let changed = plan
        .changed
        .iter()
        .map(|draft| (draft.after.project_id, counts(&draft.after) - counts(&draft.before)));
    let mut less: BTreeMap<Uuid, bool> = BTreeMap::new();
    let (mut ids, mut more): (Vec<Uuid>, Vec<f64>) = (Vec::new(), Vec::new());
    for (project, change) in made.chain(changed).filter(|(_, change)| *change != 0.0) {
        *less.entry(project).or_default() |= change < 0.0;
        ids.push(project);
        more.push(change);
    }
    if ids.is_empty() {
        return Ok(());
    }
    let (mut sums, mut all): (Vec<Uuid>, Vec<Uuid>) = (Vec::new(), Vec::new());
    let sql = "select id, progress >= 100 as complete from projects where id = any ($1) order by id \
         for no key update";
    for row in tx.query(sql, &[&less.keys().copied().collect::<Vec<Uuid>>()]).await? {
        let id: Uuid = row.try_get("id")?;
        match row.try_get::<_, bool>("complete")? {
            false => sums.push(id),
            true if less[&id] => all.push(id),
            true => {}
        }
    }
    if !sums.is_empty() {
        tx.execute(
            "with more as (select m.id, sum(round(m.more::numeric, 2)) as more \
               from unnest($1::uuid[], $2::float8[]) as m (id, more) where m.id = any ($3) group by m.id) \
             update projects set progress = least(100, progress + more.more), version = version + 1, \
             updated_at = $4 from more where projects.id = more.id and more.more <> 0",
            &[&ids, &more, &sums, &now],
        )
        .await?;
    }
    for project in all {
        projects::update_progress(tx, project, now).await?;
    }
    Ok(())
}
