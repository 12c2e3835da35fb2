//! Changes of tasks: who may make them, what must hold, and what follows from them.
//!
//! Locks are taken in one order by everybody: the tree, where its shape changes ([`tree::hold`]), then all tasks
//! in one statement by id, then all projects in one statement by id. Whoever locked in two steps could wait for
//! somebody who waits for the first.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    iter::successors,
};

use poem_openapi::types::MaybeUndefined;
use uuid::Uuid;

use super::{
    NewTask, Task, TaskChange, TaskStatus,
    store::{self, counts, end},
};
use crate::{
    audit::Changes,
    auth::Permission,
    db::{Row, TenantTx},
    error::{Error, Result},
    events::{self, EventType},
    organizations::members,
    types::{change as set, change_optional, check_year, id_at},
    work::{
        By, Priority,
        attachments::{self, Under},
        dependencies, projects, tree,
    },
};

/// Assignees that a task may have.
pub const MOST_ASSIGNEES: usize = 50;
/// Tasks that one request may move to another project, those that are taken along included.
const MOST_MOVED: usize = 1_000;
/// Tasks that one statement deletes: it has half a minute.
const DELETED_AT_ONCE: usize = 5_000;
/// Tasks that are told of together.
const TOLD_AT_ONCE: usize = 500;

/// What a change needs beside the tasks that it names.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reach {
    /// Some of them are done by it: what they wait for must stay as it is.
    pub completes: bool,
    /// Some of them leave their project by it, and take along what is under them.
    pub moves: bool,
}

/// What else a change locks, in the same statements.
#[derive(Clone, Copy, Debug, Default)]
pub struct Beside<'a> {
    /// Tasks that it refers to or puts elsewhere, such as a new parent; those that there are.
    pub tasks: &'a [Uuid],
    /// Projects that tasks come to; those that there are.
    pub projects: &'a [Uuid],
}

/// Tasks with their rows locked, and their projects, which stay as open as they are.
pub struct Held {
    tasks: HashMap<Uuid, Task>,
    projects: HashMap<Uuid, projects::Standing>,
}

/// Locks tasks and what a change of them touches. Where it moves, the tree is held already.
pub async fn hold(tx: &TenantTx, by: &By<'_>, ids: &[Uuid], reach: Reach) -> Result<Held> {
    hold_with(tx, by, ids, reach, Beside::default()).await
}

/// The same, with what the change touches beside them.
pub async fn hold_with(
    tx: &TenantTx,
    by: &By<'_>,
    ids: &[Uuid],
    reach: Reach,
    beside: Beside<'_>,
) -> Result<Held> {
    let mut wanted = ids.to_vec();
    if reach.moves {
        wanted.extend(tree::below(tx, ids).await?);
        if wanted.len() > MOST_MOVED {
            let told = format!(
                "With what is under them these are {} tasks; at most {MOST_MOVED} move at once. Name fewer.",
                wanted.len()
            );
            return Err(Error::invalid("ids", told));
        }
    }
    wanted.extend(beside.tasks);
    let which = match reach.completes {
        true => {
            "id in (select unnest($1::uuid[]) union select d.waits_for from task_dependencies d \
             where d.task_id = any ($1))"
        }
        false => "id = any ($1)",
    };
    let sql = format!("select id from tasks where {which} order by id for no key update");
    tx.query(&sql, &[&wanted]).await?;
    let tasks = store::several(tx, ids).await?;
    let homes = tasks.iter().map(|task| task.project_id).chain(beside.projects.iter().copied());
    let homes: Vec<Uuid> = homes.collect::<BTreeSet<Uuid>>().into_iter().collect();
    let projects = projects::hold_open(tx, by, &homes).await?;
    Ok(Held {
        tasks: tasks.into_iter().map(|task| (task.id, task)).collect(),
        projects: projects.into_iter().map(|project| (project.id, project)).collect(),
    })
}

impl Held {
    /// One of them, for a caller who may write it.
    pub fn task(&self, by: &By<'_>, id: Uuid) -> Result<Task> {
        let missing = || Error::not_found("task");
        let task = self.tasks.get(&id).ok_or_else(missing)?;
        let home = self.projects.get(&task.project_id).ok_or_else(missing)?;
        may_write(by, task, home)?;
        home.must_be_open()?;
        Ok(task.clone())
    }
}

/// Whoever may write all tasks may write this one, and whom it concerns.
pub fn may_write(by: &By<'_>, task: &Task, home: &projects::Standing) -> Result<()> {
    let own = task.created_by == by.user || task.assignee_ids.contains(&by.user) || home.is_owner;
    match own || by.may(Permission::TasksWrite) {
        true => Ok(()),
        false => Err(Error::denied(
            "This is not your task: you did not make it, are not assigned to it and do not own its project.",
        )),
    }
}

/// A task as it was and as it is to be.
pub struct Draft {
    pub before: Task,
    pub after: Task,
}

impl Draft {
    fn moves(&self) -> bool {
        self.before.project_id != self.after.project_id
    }
}

/// Makes a task for a caller who may.
pub async fn insert(tx: &TenantTx, by: &By<'_>, new: NewTask) -> Result<Task> {
    let now = by.app.clock.now();
    let status = new.status.unwrap_or(TaskStatus::Todo);
    let mut task = Task {
        id: id_at(now, 0),
        project_id: new.project_id,
        parent_id: new.parent_id,
        external_id: new.external_id,
        title: new.title,
        description: new.description,
        status,
        priority: new.priority.unwrap_or(Priority::Medium),
        assignee_ids: new.assignee_ids.unwrap_or_default(),
        waits_for: Vec::new(),
        created_by: by.user,
        due_date: new.due_date,
        estimated_hours: new.estimated_hours,
        actual_hours: new.actual_hours,
        impact: new.impact.unwrap_or(0.0),
        position: end(now, 0),
        completed_at: (status == TaskStatus::Done).then_some(now),
        created_at: now,
        updated_at: now,
        version: 1,
    };
    if let Some(parent) = task.parent_id {
        tree::hold(tx).await?;
        // Before the project: tasks are locked first. Of a project that is not there, it has none.
        let project = tx.query_opt("select id from projects where id = $1", &[&task.project_id]).await?;
        project.ok_or_else(no_such_project)?;
        tree::check(tx, None, parent, task.project_id).await?;
    }
    let project = projects::hold_open(tx, by, &[task.project_id]).await?.pop().ok_or_else(no_such_project)?;
    project.must_take_from(by)?;
    project.must_be_open()?;
    check(tx, &mut task, &[]).await?;
    store::insert(tx, &task).await?;
    if counts(&task) != 0.0 {
        projects::update_progress(tx, task.project_id, now).await?;
    }
    let changes = Changes::created(&task);
    events::record(tx, by.app, by.actor.clone(), EventType::TaskCreated, task.id, changes).await?;
    Ok(task)
}

fn no_such_project() -> Error {
    Error::invalid("project_id", "There is no such project in this organization.")
}

/// Changes one task, for a caller who may; `expected` looks at its version first.
pub async fn change(
    tx: &TenantTx,
    by: &By<'_>,
    id: Uuid,
    expected: impl FnOnce(i64) -> Result<()>,
    to: TaskChange,
) -> Result<Task> {
    let reach = Reach {
        completes: matches!(to.status, MaybeUndefined::Value(TaskStatus::Done)),
        moves: matches!(to.project_id, MaybeUndefined::Value(_)),
    };
    if reach.moves || matches!(to.parent_id, MaybeUndefined::Value(_)) {
        tree::hold(tx).await?;
    }
    let named = |id: MaybeUndefined<Uuid>| Vec::from_iter(id.take());
    let (parent, target) = (named(to.parent_id), named(to.project_id));
    let beside = Beside { tasks: &parent, projects: &target };
    let before = hold_with(tx, by, &[id], reach, beside).await?.task(by, id)?;
    expected(before.version)?;
    let mut after = before.clone();
    apply(&mut after, to)?;
    check(tx, &mut after, &before.assignee_ids).await?;
    if let Some(parent) = after.parent_id.filter(|_| after.parent_id != before.parent_id) {
        tree::check(tx, Some(id), parent, after.project_id).await?;
    }
    let done = carry_out(tx, by, vec![Draft { before, after }], &|_| None).await?;
    done.into_iter().next().ok_or_else(|| Error::internal("a change without a task"))
}

/// Carries out changes of tasks that the caller may write, whose rows are locked and whose values were checked.
/// `place` is where the request names a task, for errors that are about one.
pub async fn carry_out(
    tx: &TenantTx,
    by: &By<'_>,
    mut drafts: Vec<Draft>,
    place: &(dyn Fn(Uuid) -> Option<String> + Sync),
) -> Result<Vec<Task>> {
    let (now, asked) = (by.app.clock.now(), drafts.len());
    enter(tx, by, &drafts).await?;
    take_along(tx, &mut drafts).await?;
    for (n, Draft { before, after }) in drafts.iter_mut().enumerate() {
        let stays = (before.project_id, before.status) == (after.project_id, after.status);
        if !stays && after.position == before.position {
            after.position = end(now, n);
        }
        after.completed_at = match after.status {
            TaskStatus::Done => after.completed_at.or(Some(now)),
            _ => None,
        };
        after.updated_at = now;
        after.version += 1;
    }
    dependencies::check_order(tx, &drafts, place).await?;
    let (named, along) = drafts.split_at(asked);
    for Draft { after, .. } in named {
        store::update(tx, after).await?;
    }
    store::update_homes(tx, along.iter().map(|draft| &draft.after)).await?;
    let mut touched = BTreeSet::new();
    for Draft { before, after } in &drafts {
        let (then, now) = (counts(before), counts(after));
        if before.project_id != after.project_id {
            touched.extend((then != 0.0).then_some(before.project_id));
            touched.extend((now != 0.0).then_some(after.project_id));
        } else if then != now {
            touched.insert(after.project_id);
        }
    }
    for project in touched {
        projects::update_progress(tx, project, now).await?;
    }
    let finished = drafts.iter().filter(|Draft { before, after }| {
        after.status == TaskStatus::Done && before.status != TaskStatus::Done
    });
    let finished: Vec<_> = finished
        .map(|Draft { after, .. }| (EventType::TaskCompleted, after.id, Changes::none(after)))
        .collect();
    events::emit_many(tx, by.app, &by.actor, &finished).await?;
    for drafts in drafts.chunks(TOLD_AT_ONCE) {
        let told = drafts.iter().map(|Draft { before, after }| {
            (EventType::TaskUpdated, after.id, Changes::between(before, after))
        });
        events::record_many(tx, by.app, &by.actor, &told.collect::<Vec<_>>()).await?;
    }
    Ok(drafts.into_iter().take(asked).map(|draft| draft.after).collect())
}

/// Whether the projects that tasks are moved to take them from the caller.
async fn enter(tx: &TenantTx, by: &By<'_>, drafts: &[Draft]) -> Result<()> {
    let moved = drafts.iter().filter(|draft| draft.moves());
    let targets: BTreeSet<Uuid> = moved.map(|draft| draft.after.project_id).collect();
    if targets.is_empty() {
        return Ok(());
    }
    let targets: Vec<Uuid> = targets.into_iter().collect();
    let there = projects::hold_open(tx, by, &targets).await?;
    if there.len() < targets.len() {
        return Err(no_such_project());
    }
    for project in &there {
        project.must_take_from(by)?;
        project.must_be_open()?;
    }
    Ok(())
}

/// What is under a task goes with it to another project; a task that goes without its parent leaves it.
async fn take_along(tx: &TenantTx, drafts: &mut Vec<Draft>) -> Result<()> {
    let targets: HashMap<Uuid, Uuid> =
        drafts.iter().map(|draft| (draft.before.id, draft.after.project_id)).collect();
    let mut moved: BTreeMap<Uuid, Vec<Uuid>> = BTreeMap::new();
    for draft in drafts.iter().filter(|draft| draft.moves()) {
        moved.entry(draft.after.project_id).or_default().push(draft.before.id);
    }
    let mut followers: HashMap<Uuid, Uuid> = HashMap::new();
    for (target, ids) in moved {
        followers.extend(tree::below(tx, &ids).await?.into_iter().map(|id| (id, target)));
    }
    for Draft { before, after } in drafts.iter_mut().filter(|draft| draft.moves()) {
        // One under a task that goes too keeps its parent, and so does one that is given another.
        let goes = |parent: Uuid| targets.get(&parent).or_else(|| followers.get(&parent));
        let kept = after.parent_id.is_some_and(|parent| goes(parent) == Some(&after.project_id));
        if !kept && after.parent_id == before.parent_id {
            after.parent_id = None;
        }
    }
    followers.retain(|id, _| !targets.contains_key(id));
    if followers.is_empty() {
        return Ok(());
    }
    let ids: Vec<Uuid> = followers.keys().copied().collect();
    for before in store::several(tx, &ids).await? {
        let mut after = before.clone();
        after.project_id = followers[&before.id];
        drafts.push(Draft { before, after });
    }
    Ok(())
}

/// Tasks that are to be deleted, locked, with those that wait for one of them.
pub struct Going {
    pub ids: Vec<Uuid>,
    waiting: Vec<Uuid>,
}

impl Going {
    /// A task and all under it. The tree is held: so nothing is put under one of them, and nothing more waits.
    async fn of_task(tx: &TenantTx, id: Uuid) -> Result<Self> {
        let mut ids = tree::below(tx, &[id]).await?;
        ids.push(id);
        let rows = tx
            .query(
                "select id, id = any ($1) as goes from tasks where id in (select unnest($1::uuid[]) \
                 union select d.task_id from task_dependencies d where d.waits_for = any ($1)) \
                 order by id for update",
                &[&ids],
            )
            .await?;
        Self::from_rows(&rows)
    }

    /// All tasks of a project. The tree is held.
    pub async fn of_project(tx: &TenantTx, project: Uuid) -> Result<Self> {
        let rows = tx
            .query(
                "select id, project_id = $1 as goes from tasks where id in ( \
                   select t.id from tasks t where t.project_id = $1 \
                   union select d.task_id from tasks t join task_dependencies d on d.waits_for = t.id \
                   where t.project_id = $1) order by id for update",
                &[&project],
            )
            .await?;
        Self::from_rows(&rows)
    }

    fn from_rows(rows: &[Row]) -> Result<Self> {
        let (mut ids, mut waiting) = (Vec::new(), Vec::new());
        for row in rows {
            let list = if row.try_get("goes")? { &mut ids } else { &mut waiting };
            list.push(row.try_get("id")?);
        }
        Ok(Self { ids, waiting })
    }

    /// Deletes them. What waited for one waits no longer, and that is told.
    pub async fn delete(&self, tx: &TenantTx, by: &By<'_>) -> Result<()> {
        let waited = store::several(tx, &self.waiting).await?;
        for ids in self.ids.chunks(DELETED_AT_ONCE) {
            tx.execute("delete from tasks where id = any ($1)", &[&ids]).await?;
        }
        for before in waited.chunks(TOLD_AT_ONCE) {
            dependencies::tell(tx, by, before).await?;
        }
        Ok(())
    }
}

/// Deletes a task with all under it, for a caller who may write it.
pub async fn delete(
    tx: &TenantTx,
    by: &By<'_>,
    id: Uuid,
    expected: impl FnOnce(i64) -> Result<()>,
) -> Result<()> {
    tree::hold(tx).await?;
    let going = Going::of_task(tx, id).await?;
    expected(hold(tx, by, &[id], Reach::default()).await?.task(by, id)?.version)?;
    let mut tasks = store::several(tx, &going.ids).await?;
    // What is told last is what was asked for.
    let parents: HashMap<Uuid, Option<Uuid>> = tasks.iter().map(|task| (task.id, task.parent_id)).collect();
    let above = |id: Uuid| parents.get(&id).copied().flatten();
    tasks.sort_by_key(|task| Reverse(successors(Some(task.id), |id| above(*id)).count()));
    attachments::remove_under(tx, by.app, Under::Tasks(&going.ids)).await?;
    going.delete(tx, by).await?;
    let touched: BTreeSet<Uuid> =
        tasks.iter().filter(|task| counts(task) != 0.0).map(|task| task.project_id).collect();
    for project in touched {
        projects::update_progress(tx, project, by.app.clock.now()).await?;
    }
    for tasks in tasks.chunks(TOLD_AT_ONCE) {
        let told = tasks.iter().map(|task| (EventType::TaskDeleted, task.id, Changes::deleted(task)));
        events::record_many(tx, by.app, &by.actor, &told.collect::<Vec<_>>()).await?;
    }
    Ok(())
}

/// Brings what is asked for into a task; what must hold is checked after it.
pub fn apply(task: &mut Task, to: TaskChange) -> Result<()> {
    set(&mut task.project_id, "project_id", to.project_id)?;
    set(&mut task.title, "title", to.title)?;
    set(&mut task.status, "status", to.status)?;
    set(&mut task.priority, "priority", to.priority)?;
    set(&mut task.assignee_ids, "assignee_ids", to.assignee_ids)?;
    set(&mut task.impact, "impact", to.impact)?;
    change_optional(&mut task.parent_id, to.parent_id);
    change_optional(&mut task.external_id, to.external_id);
    change_optional(&mut task.description, to.description);
    change_optional(&mut task.due_date, to.due_date);
    change_optional(&mut task.estimated_hours, to.estimated_hours);
    change_optional(&mut task.actual_hours, to.actual_hours);
    Ok(())
}

/// What must hold whoever writes; also rounds to the two places that are kept. Who was assigned
/// before may stay, also after leaving the organization.
async fn check(tx: &TenantTx, task: &mut Task, before: &[Uuid]) -> Result<()> {
    check_values(task)?;
    let new: Vec<Uuid> = task.assignee_ids.iter().filter(|id| !before.contains(id)).copied().collect();
    must_be_active(tx, &new).await
}

/// Whether these can be assigned.
pub async fn must_be_active(tx: &TenantTx, users: &[Uuid]) -> Result<()> {
    members::must_be_active(tx, tx.organization(), users, "assignee_ids").await
}

/// The part of it that takes no look at the database.
pub fn check_values(task: &mut Task) -> Result<()> {
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
    if task.assignee_ids.len() > MOST_ASSIGNEES {
        return Err(Error::invalid("assignee_ids", format!("may name at most {MOST_ASSIGNEES} members")));
    }
    task.assignee_ids.sort();
    task.assignee_ids.dedup();
    Ok(())
}
