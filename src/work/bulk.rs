//! The same change of many tasks: all of it or nothing.

use std::collections::{BTreeSet, HashMap};

use chrono::NaiveDate;
use poem_openapi::{
    Object, OpenApi,
    types::{Example, MaybeUndefined},
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    By, Priority, projects,
    tasks::{self, Beside, Draft, MOST_ASSIGNEES, Reach, Task, TaskChange, TaskStatus},
    tree,
};
use crate::{
    api::Tag,
    auth::{Can, permissions::TasksWriteOwn},
    db::TenantTx,
    error::{Code, Error, Result},
    http::{Body, Json},
    types::EXAMPLE_ID,
};

/// Tasks that one request changes.
const MOST: usize = 100;

/// Tasks, and what changes of all of them.
#[derive(Debug, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(deny_unknown_fields, example)]
pub struct BulkChange {
    /// 1 to 100 tasks, each once.
    pub ids: Vec<Uuid>,
    pub change: TasksChange,
}

impl Example for BulkChange {
    fn example() -> Self {
        let change =
            TasksChange { priority: MaybeUndefined::Value(Priority::High), ..TasksChange::default() };
        Self { ids: vec![EXAMPLE_ID], change }
    }
}

/// What changes of all of them; what is absent stays, null empties.
#[derive(Debug, Default, Deserialize, Object)]
#[serde(deny_unknown_fields, default)]
#[oai(deny_unknown_fields)]
pub struct TasksChange {
    pub status: MaybeUndefined<TaskStatus>,
    pub priority: MaybeUndefined<Priority>,
    /// In place of those that they have.
    pub assignee_ids: MaybeUndefined<Vec<Uuid>>,
    /// Beside those that they have.
    pub add_assignee_ids: Option<Vec<Uuid>>,
    pub remove_assignee_ids: Option<Vec<Uuid>>,
    pub due_date: MaybeUndefined<NaiveDate>,
    /// The project that they move to, with all that is under them.
    pub project_id: MaybeUndefined<Uuid>,
}

impl TasksChange {
    fn check(&self) -> Result<()> {
        let [add, remove] = [&self.add_assignee_ids, &self.remove_assignee_ids];
        if !self.assignee_ids.is_undefined() && (add.is_some() || remove.is_some()) {
            let told = "give assignee_ids, or those to add and to remove, not both";
            return Err(Error::invalid("change.assignee_ids", told));
        }
        for (field, ids) in [("change.add_assignee_ids", add), ("change.remove_assignee_ids", remove)] {
            if ids.as_ref().is_some_and(|ids| ids.len() > MOST_ASSIGNEES) {
                return Err(Error::invalid(field, format!("may name at most {MOST_ASSIGNEES} members")));
            }
        }
        let nothing = self.status.is_undefined()
            && self.priority.is_undefined()
            && self.assignee_ids.is_undefined()
            && self.due_date.is_undefined()
            && self.project_id.is_undefined()
            && add.is_none()
            && remove.is_none();
        match nothing {
            true => Err(Error::invalid("change", "says nothing that is to change")),
            false => Ok(()),
        }
    }

    /// What it is for one of them.
    fn of(&self, task: &Task) -> TaskChange {
        let mut assignee_ids = self.assignee_ids.clone();
        if self.add_assignee_ids.is_some() || self.remove_assignee_ids.is_some() {
            let mut ids = task.assignee_ids.clone();
            ids.extend(self.add_assignee_ids.iter().flatten());
            ids.retain(|id| !self.remove_assignee_ids.iter().flatten().any(|gone| gone == id));
            ids.sort();
            ids.dedup();
            assignee_ids = MaybeUndefined::Value(ids);
        }
        TaskChange {
            status: self.status,
            priority: self.priority,
            assignee_ids,
            due_date: self.due_date,
            project_id: self.project_id,
            ..TaskChange::default()
        }
    }
}

/// The tasks as they are now, in the order of the request.
#[derive(Debug, Serialize, Object)]
#[oai(example)]
pub struct ChangedTasks {
    pub data: Vec<Task>,
}

impl Example for ChangedTasks {
    fn example() -> Self {
        Self { data: vec![Task::example()] }
    }
}

pub struct BulkApi;

#[OpenApi(tag = "Tag::Tasks")]
impl BulkApi {
    /// Change many tasks at once.
    ///
    /// All of them or none: an error names the first that cannot be changed as `ids[3]`, the first being
    /// `ids[0]`. At most 1,000 move to another project, those under them included. The same rules hold as for a change of each; of two that wait for one another, both can be done
    /// together. Of a task that is already as it is to be, nothing is told.
    #[oai(path = "/tasks/bulk", method = "post", operation_id = "bulk_update_tasks")]
    async fn change(&self, who: Can<TasksWriteOwn>, to: Body<BulkChange>) -> Result<Json<ChangedTasks>> {
        let tx = who.begin().await?;
        let data = change_all(&tx, &By::from(&*who), &to.0).await?;
        tx.commit().await?;
        Ok(Json(ChangedTasks { data }))
    }
}

async fn change_all(tx: &TenantTx, by: &By<'_>, wanted: &BulkChange) -> Result<Vec<Task>> {
    let BulkChange { ids, change } = wanted;
    if !(1..=MOST).contains(&ids.len()) {
        return Err(Error::invalid("ids", format!("must name 1 to {MOST} tasks")));
    }
    let mut places: HashMap<Uuid, usize> = HashMap::new();
    for (n, id) in ids.iter().enumerate() {
        if let Some(first) = places.insert(*id, n) {
            return Err(Error::invalid(format!("ids[{n}]"), format!("is the same as ids[{first}]")));
        }
    }
    change.check()?;
    let reach = Reach {
        completes: matches!(change.status, MaybeUndefined::Value(TaskStatus::Done)),
        moves: matches!(change.project_id, MaybeUndefined::Value(_)),
    };
    if reach.moves {
        tree::hold(tx).await?;
    }
    if let MaybeUndefined::Value(project) = change.project_id {
        projects::find(tx, project).await.map_err(|error| match error.code() {
            Code::NotFound => {
                Error::invalid("change.project_id", "There is no such project in this organization.")
            }
            _ => error,
        })?;
    }
    let target = Vec::from_iter(change.project_id.take());
    let beside = Beside { projects: &target, ..Beside::default() };
    let held = tasks::hold_with(tx, by, ids, reach, beside).await?;
    let (mut drafts, mut now, mut assigned) = (Vec::new(), HashMap::new(), BTreeSet::new());
    for (n, id) in ids.iter().enumerate() {
        let before = held.task(by, *id).map_err(|error| match error.code() {
            Code::NotFound => {
                Error::invalid(format!("ids[{n}]"), "There is no such task in this organization.")
            }
            _ => error.about(&format!("ids[{n}]")),
        })?;
        let mut after = before.clone();
        tasks::apply(&mut after, change.of(&before)).map_err(within)?;
        tasks::check_values(&mut after).map_err(within)?;
        assigned.extend(after.assignee_ids.iter().filter(|id| !before.assignee_ids.contains(id)).copied());
        match after == before {
            true => now.insert(*id, before),
            false => {
                drafts.push(Draft { before, after });
                None
            }
        };
    }
    let assigned: Vec<Uuid> = assigned.into_iter().collect();
    tasks::must_be_active(tx, &assigned).await.map_err(within)?;
    let place = |id: Uuid| places.get(&id).map(|n| format!("ids[{n}]"));
    for task in tasks::carry_out(tx, by, drafts, &place).await? {
        now.insert(task.id, task);
    }
    Ok(ids.iter().filter_map(|id| now.remove(id)).collect())
}

/// The same error, in what is to change.
fn within(error: Error) -> Error {
    error.below("change")
}
