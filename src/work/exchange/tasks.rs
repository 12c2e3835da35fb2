//! Tasks by the line.

mod told;
mod written;

use std::{
    collections::{BTreeSet, HashMap},
    hash::{BuildHasher, RandomState},
};

use chrono::{DateTime, Utc};
use futures_util::future::BoxFuture;
use poem_openapi::types::MaybeUndefined::{self, Null, Undefined, Value as Given};
use uuid::Uuid;

use self::{
    told::TaskExporter,
    written::{insert, update, update_progress},
};
use super::{Filters, People, by, called, everybody, kept, new_name};
use crate::{
    audit::Changes,
    auth::Permission,
    db::TenantTx,
    error::Result,
    events::{self, EventType},
    exchange::{Field, Importer, Kind, Line, LineError, Maker, Outcome, Reading},
    types::id_at,
    work::{
        ExternalId, Priority,
        projects::{self, Standing},
        tasks::{self, Beside, Draft, Reach, Task, TaskChange, TaskStatus},
        tree,
    },
};

pub const TASKS: Kind = Kind {
    name: "tasks",
    fields: FIELDS,
    read: Permission::TasksRead,
    write: Permission::TasksWrite,
    importer: |maker| Box::new(TaskImporter::new(maker)),
    exporter: |filters| Ok(Box::new(TaskExporter::new(Filters::of(filters)?))),
};

const FIELDS: &[Field] = &[
    Field::one("id"),
    Field::one("external_id"),
    Field::one("project"),
    Field::one("parent"),
    Field::one("title"),
    Field::one("description"),
    Field::one("status"),
    Field::one("priority"),
    Field::many("assignees"),
    Field::one("due_date"),
    Field::one("estimated_hours"),
    Field::one("actual_hours"),
    Field::one("impact"),
    Field::told("completed_at"),
    Field::told("created_at"),
    Field::told("updated_at"),
];

// Their places.
const ID: usize = 0;
const EXTERNAL_ID: usize = 1;
const PROJECT: usize = 2;
const PARENT: usize = 3;
const TITLE: usize = 4;
const DESCRIPTION: usize = 5;
const STATUS: usize = 6;
const PRIORITY: usize = 7;
const ASSIGNEES: usize = 8;
const DUE_DATE: usize = 9;
const ESTIMATED_HOURS: usize = 10;
const ACTUAL_HOURS: usize = 11;
const IMPACT: usize = 12;

/// What a line says.
struct Wanted<'a> {
    line: &'a Line,
    id: Option<&'a str>,
    external_id: Option<ExternalId>,
    project: Option<&'a str>,
    parent: MaybeUndefined<&'a str>,
    assignees: Option<Vec<String>>,
    change: TaskChange,
}

/// What becomes of some lines.
#[derive(Default)]
struct Plan {
    new: Vec<Task>,
    changed: Vec<Draft>,
    unchanged: i64,
    errors: Vec<LineError>,
}

/// A task that an earlier line names. Small: there may be a million of them.
#[derive(Clone, Copy)]
struct Seen {
    line: u32,
    /// The place of its tree in `trees`; none of a task that was there before.
    tree: Option<u32>,
    level: u8,
}

/// Tasks under a task of the top, itself included.
struct Tree {
    project: Uuid,
    size: u32,
}

struct TaskImporter {
    maker: Maker,
    /// What the lines so far name, by a hash of it. A pass that writes finds what it wrote in the database, and
    /// forgets after each batch.
    seen: HashMap<u64, Seen>,
    trees: Vec<Tree>,
    /// Trees that were there before, by the id of their top.
    tops: HashMap<Uuid, u32>,
    /// Tasks that the lines so far turned.
    done: HashMap<Uuid, bool>,
    hashes: RandomState,
}

/// Tasks that lines name.
#[derive(Default)]
struct Known {
    by_external: HashMap<String, Uuid>,
    by_id: BTreeSet<Uuid>,
}

impl Known {
    fn find(&self, text: &str) -> Option<Uuid> {
        let by_id = || text.parse::<Uuid>().ok().filter(|id| self.by_id.contains(id));
        self.by_external.get(text).copied().or_else(by_id)
    }
}

/// What tasks that lines put others under are under themselves: the place of the tree, and the level.
type Levels = HashMap<Uuid, (u32, u8)>;

impl TaskImporter {
    fn new(maker: Maker) -> Self {
        Self {
            maker,
            seen: HashMap::new(),
            trees: Vec::new(),
            tops: HashMap::new(),
            done: HashMap::new(),
            hashes: RandomState::new(),
        }
    }

    fn forget(&mut self) {
        self.seen.clear();
        self.trees.clear();
        self.tops.clear();
        self.done.clear();
    }

    fn hash(&self, text: &str) -> u64 {
        self.hashes.hash_one(text)
    }

    /// Decides about some lines, each after those before it. Whoever `writes` holds what it looks at.
    async fn plan(&mut self, tx: &TenantTx, lines: &[Line], writes: bool) -> Result<Plan> {
        let mut plan = Plan::default();
        let wanted: Vec<Wanted<'_>> = lines.iter().filter_map(|line| read(line, &mut plan.errors)).collect();
        if writes && wanted.iter().any(|one| matches!(one.parent, Given(_))) {
            tree::hold(tx).await?;
        }
        let known = known(tx, &wanted).await?;
        let ids: BTreeSet<Uuid> = wanted.iter().filter_map(|one| named(one, &known)).collect();
        let ids: Vec<Uuid> = ids.into_iter().collect();
        let homes = homes(tx, &wanted).await?;
        let by = by(&self.maker);
        if writes {
            let parents: Vec<Uuid> = wanted
                .iter()
                .filter_map(|one| match one.parent {
                    Given(given) => known.find(given),
                    _ => None,
                })
                .collect();
            let projects: Vec<Uuid> = homes.values().copied().collect();
            // Some may be done by this.
            let reach = Reach { completes: true, moves: false };
            tasks::hold_with(tx, &by, &ids, reach, Beside { tasks: &parents, projects: &projects }).await?;
        }
        let there: HashMap<Uuid, Task> = match ids.is_empty() {
            true => HashMap::new(),
            false => tasks::several(tx, &ids).await?.into_iter().map(|task| (task.id, task)).collect(),
        };
        let all: BTreeSet<Uuid> =
            homes.values().copied().chain(there.values().map(|task| task.project_id)).collect();
        let all: Vec<Uuid> = all.into_iter().collect();
        let standings = projects::hold_open(tx, &by, &all).await?;
        let standings: HashMap<Uuid, Standing> =
            standings.into_iter().map(|project| (project.id, project)).collect();
        let mut names: BTreeSet<String> = BTreeSet::new();
        for one in &wanted {
            names.extend(one.assignees.iter().flatten().map(|name| called(name)));
        }
        let people = People::of(tx, names).await?;
        let levels = self.levels(tx, &wanted, &known).await?;
        let now = self.maker.app.clock.now();
        let around =
            Around { known: &known, homes: &homes, standings: &standings, people: &people, levels: &levels };
        let mut new_ids = HashMap::new();
        let mut turned = Vec::new();
        for one in wanted {
            let number = one.line.number;
            let mut said = Reading::new(one.line, FIELDS, &mut plan.errors);
            match named(&one, &known).and_then(|id| there.get(&id)) {
                Some(task) => {
                    let Some(after) = self.changed(&mut said, one, task, &around) else { continue };
                    match after == *task {
                        true => plan.unchanged += 1,
                        false => turned.push((number, Draft { before: task.clone(), after })),
                    }
                }
                None => {
                    let n = plan.new.len();
                    plan.new.extend(self.made(&mut said, one, &around, now, n, &mut new_ids));
                }
            }
        }
        self.in_order(tx, turned, &mut plan).await?;
        for (n, Draft { before, after }) in plan.changed.iter_mut().enumerate() {
            if after.status != before.status {
                after.position = tasks::end(now, n);
            }
            after.completed_at = match after.status {
                TaskStatus::Done => after.completed_at.or(Some(now)),
                _ => None,
            };
            after.updated_at = now;
            after.version += 1;
        }
        Ok(plan)
    }

    /// Whether a line names what an earlier one does; it is kept in mind otherwise.
    fn is_named_again(
        &mut self,
        said: &mut Reading<'_, '_>,
        field: &str,
        names: &[&str],
        seen: Seen,
    ) -> bool {
        let hashes: Vec<u64> = names.iter().map(|name| self.hash(name)).collect();
        if let Some(earlier) = hashes.iter().find_map(|hash| self.seen.get(hash)) {
            said.fail(field, "taken", format!("The same task stands on line {}.", earlier.line));
            return true;
        }
        self.seen.extend(hashes.into_iter().map(|hash| (hash, seen)));
        false
    }

    /// A known task as the line wants it.
    fn changed(
        &mut self,
        said: &mut Reading<'_, '_>,
        one: Wanted<'_>,
        task: &Task,
        around: &Around<'_>,
    ) -> Option<Task> {
        let id = task.id.to_string();
        let key = one.external_id.as_ref().map(AsRef::as_ref).or(one.id);
        let mut names = vec![id.as_str()];
        names.extend(key.filter(|key| *key != id));
        let seen = Seen { line: one.line.number as u32, tree: None, level: 0 };
        if self.is_named_again(said, FIELDS[ID].name, &names, seen) {
            return None;
        }
        if let Some(given) = one.project {
            match around.homes.get(given) {
                None => said.fail("project", "unknown", "There is no such project in this organization."),
                Some(home) if *home != task.project_id => {
                    said.fail("project", "invalid", "The task is in another project. Move it there first.");
                }
                Some(_) => {}
            }
        }
        let same_parent = match one.parent {
            // None is named where the filters of an export left it out.
            Undefined | Null => true,
            Given(given) => task.parent_id.is_some() && around.known.find(given) == task.parent_id,
        };
        if !same_parent {
            said.fail("parent", "invalid", "The task has another parent. An import does not change that.");
        }
        let mut change = one.change;
        // Nothing and an empty text look the same in a file.
        if matches!(change.description, Null)
            && task.description.as_ref().is_some_and(|text| text.as_ref().is_empty())
        {
            change.description = Undefined;
        }
        if let Some(external_id) = one.external_id {
            change.external_id = Given(external_id);
        }
        let mut after = task.clone();
        if let Some(names) = one.assignees {
            after.assignee_ids = everybody(said, "assignees", &names, &task.assignee_ids, around.people);
        }
        if let Err(error) = tasks::apply(&mut after, change).and_then(|()| tasks::check_values(&mut after)) {
            said.refuse(&error);
        }
        if after != *task
            && let Some(Err(error)) = around.standings.get(&task.project_id).map(Standing::must_be_open)
        {
            said.refuse(&error);
        }
        said.is_sound().then_some(after)
    }

    /// The task that a line makes.
    fn made(
        &mut self,
        said: &mut Reading<'_, '_>,
        one: Wanted<'_>,
        around: &Around<'_>,
        now: DateTime<Utc>,
        n: usize,
        new_ids: &mut HashMap<u64, Uuid>,
    ) -> Option<Task> {
        let external_id = new_name(said, one.external_id, one.id);
        let project = match one.project {
            None => {
                said.fail("project", "required", "A new task needs a project: its external id, slug or id.");
                None
            }
            Some(given) => {
                let home = around.homes.get(given).copied();
                if home.is_none() {
                    said.fail("project", "unknown", "There is no such project in this organization.");
                }
                home
            }
        };
        if let Some(Err(error)) = project.and_then(|id| around.standings.get(&id)).map(Standing::must_be_open)
        {
            said.refuse(&error);
        }
        if matches!(one.change.title, Undefined) {
            said.fail("title", "required", "A new task needs a title.");
        }
        let project = project?;
        let place = match one.parent {
            Given(given) => self.place(said, given, project, around.known, around.levels)?,
            Undefined | Null => (None, None, 0),
        };
        let Given(title) = &one.change.title else { return None };
        let id = id_at(now, n);
        let status = given(&one.change.status).unwrap_or(TaskStatus::Todo);
        let mut task = Task {
            id,
            project_id: project,
            parent_id: place.0.map(|parent| parent.unwrap_or_else(|seen| *new_ids.entry(seen).or_insert(id))),
            external_id,
            title: title.clone(),
            description: given(&one.change.description),
            status,
            priority: given(&one.change.priority).unwrap_or(Priority::Medium),
            assignee_ids: everybody(
                said,
                "assignees",
                one.assignees.as_deref().unwrap_or_default(),
                &[],
                around.people,
            ),
            waits_for: Vec::new(),
            created_by: self.maker.user,
            due_date: given(&one.change.due_date),
            estimated_hours: given(&one.change.estimated_hours),
            actual_hours: given(&one.change.actual_hours),
            impact: given(&one.change.impact).unwrap_or(0.0),
            position: tasks::end(now, n),
            completed_at: (status == TaskStatus::Done).then_some(now),
            created_at: now,
            updated_at: now,
            version: 1,
        };
        if let Err(error) = tasks::check_values(&mut task) {
            said.refuse(&error);
        }
        if !said.is_sound() {
            return None;
        }
        let (_, tree, level) = place;
        if let Some(name) = &task.external_id {
            let name: &str = name.as_ref();
            let next = self.trees.len() as u32;
            let seen = Seen { line: one.line.number as u32, tree: Some(tree.unwrap_or(next)), level };
            if self.is_named_again(said, "external_id", &[name], seen) {
                return None;
            }
            new_ids.insert(self.hash(name), id);
        }
        match tree {
            Some(tree) => self.trees[tree as usize].size += 1,
            // One without a name is nobody's parent, and needs no tree.
            None if task.external_id.is_some() => self.trees.push(Tree { project, size: 1 }),
            None => {}
        }
        Some(task)
    }

    /// Where under its parent a new task is: the parent, known or by the hash of its name, the place of the
    /// tree, and the level.
    #[allow(clippy::type_complexity)]
    fn place(
        &self,
        said: &mut Reading<'_, '_>,
        given: &str,
        project: Uuid,
        known: &Known,
        levels: &Levels,
    ) -> Option<(Option<Result<Uuid, u64>>, Option<u32>, u8)> {
        let hash = self.hash(given);
        let found = match self.seen.get(&hash) {
            Some(Seen { tree: Some(tree), level, .. }) => Some((Err(hash), *tree, *level)),
            _ => {
                known.find(given).and_then(|id| levels.get(&id).map(|(tree, level)| (Ok(id), *tree, *level)))
            }
        };
        let Some((parent, tree, level)) = found else {
            let told = "There is no such task, neither here nor on an earlier line.";
            said.fail("parent", "unknown", told);
            return None;
        };
        let top = &self.trees[tree as usize];
        if top.project != project {
            said.fail(
                "parent",
                "invalid",
                "A subtask is in the project of its parent; this parent is in another.",
            );
            return None;
        }
        if i32::from(level) + 2 > tree::MOST_LEVELS {
            let told =
                format!("Tasks go {} levels deep at most; choose a parent further up.", tree::MOST_LEVELS);
            said.fail("parent", "invalid", told);
            return None;
        }
        if i64::from(top.size) + 1 > tree::MOST_TASKS {
            let told =
                format!("A task has at most {} under it, subtasks of subtasks included.", tree::MOST_TASKS);
            said.fail("parent", "limit", told);
            return None;
        }
        Some((Some(parent), Some(tree), level + 1))
    }

    /// The trees of known tasks that lines put others under.
    async fn levels(&mut self, tx: &TenantTx, wanted: &[Wanted<'_>], known: &Known) -> Result<Levels> {
        let parents: BTreeSet<Uuid> = wanted
            .iter()
            .filter_map(|one| match one.parent {
                Given(given) => known.find(given),
                _ => None,
            })
            .collect();
        let mut levels = Levels::new();
        if parents.is_empty() {
            return Ok(levels);
        }
        let parents: Vec<Uuid> = parents.into_iter().collect();
        let rows = tx
            .query(
                "with recursive above (start, id, parent_id, project_id, level) as ( \
                   select id, id, parent_id, project_id, 0 from tasks where id = any ($1) \
                   union all select a.start, t.id, t.parent_id, t.project_id, a.level + 1 from tasks t \
                   join above a on t.id = a.parent_id) \
                 select start, id as top, project_id, level from above where parent_id is null",
                &[&parents],
            )
            .await?;
        let mut new = Vec::new();
        for row in &rows {
            let (start, top): (Uuid, Uuid) = (row.try_get("start")?, row.try_get("top")?);
            let next = self.trees.len() as u32;
            let tree = *self.tops.entry(top).or_insert(next);
            if tree == next {
                self.trees.push(Tree { project: row.try_get("project_id")?, size: 1 });
                new.push(top);
            }
            levels.insert(start, (tree, row.try_get::<_, i32>("level")? as u8));
        }
        let rows = tx
            .query(
                "with recursive below (top, id) as ( \
                   select id, id from tasks where id = any ($1) \
                   union all select b.top, t.id from tasks t join below b on t.parent_id = b.id) \
                 select top, count(*) as many from below group by top",
                &[&new],
            )
            .await?;
        for row in &rows {
            let tree = self.tops[&row.try_get::<_, Uuid>("top")?];
            self.trees[tree as usize].size = row.try_get::<_, i64>("many")? as u32;
        }
        Ok(levels)
    }

    /// Lets through what does not finish a task before what it waits for, nor opens one that a finished one
    /// waited for, as if the lines were carried out one after another.
    async fn in_order(&mut self, tx: &TenantTx, drafts: Vec<(i64, Draft)>, plan: &mut Plan) -> Result<()> {
        let turns = |draft: &Draft| is_done(&draft.before) != is_done(&draft.after);
        let ids: Vec<Uuid> =
            drafts.iter().filter(|(_, draft)| turns(draft)).map(|(_, draft)| draft.after.id).collect();
        let mut ahead: HashMap<Uuid, Vec<Other>> = HashMap::new();
        let mut behind: HashMap<Uuid, Vec<Other>> = HashMap::new();
        if !ids.is_empty() {
            let rows = tx
                .query(
                    "select d.task_id, d.waits_for, t.title, t.status = 'done' as done, w.title as first_title, \
                     w.status = 'done' as first_done from task_dependencies d join tasks t on t.id = d.task_id \
                     join tasks w on w.id = d.waits_for where d.task_id = any ($1) or d.waits_for = any ($1)",
                    &[&ids],
                )
                .await?;
            for row in &rows {
                let (task, first): (Uuid, Uuid) = (row.try_get("task_id")?, row.try_get("waits_for")?);
                let other =
                    Other { id: first, title: row.try_get("first_title")?, done: row.try_get("first_done")? };
                ahead.entry(task).or_default().push(other);
                let other = Other { id: task, title: row.try_get("title")?, done: row.try_get("done")? };
                behind.entry(first).or_default().push(other);
            }
        }
        for (number, draft) in drafts {
            if turns(&draft) {
                let (id, finishes) = (draft.after.id, is_done(&draft.after));
                let others = if finishes { ahead.get(&id) } else { behind.get(&id) };
                let stands =
                    |other: &&Other| self.done.get(&other.id).copied().unwrap_or(other.done) != finishes;
                if let Some(other) = others.into_iter().flatten().find(stands) {
                    let told = match finishes {
                        true => format!(
                            "The task waits for {:?}, which is not done. Finish that first.",
                            other.title
                        ),
                        false => format!(
                            "{:?} waited for the task and is done. Open that again first.",
                            other.title
                        ),
                    };
                    plan.errors.push(LineError::of(number, "status", "invalid", told));
                    continue;
                }
                self.done.insert(id, finishes);
            }
            plan.changed.push(draft);
        }
        Ok(())
    }
}

/// A task at the other end of a dependency.
struct Other {
    id: Uuid,
    title: String,
    done: bool,
}

/// What is known of what lines name.
struct Around<'a> {
    known: &'a Known,
    homes: &'a HashMap<String, Uuid>,
    standings: &'a HashMap<Uuid, Standing>,
    people: &'a People,
    levels: &'a Levels,
}

fn is_done(task: &Task) -> bool {
    task.status == TaskStatus::Done
}

fn given<T: Clone>(value: &MaybeUndefined<T>) -> Option<T> {
    match value {
        Given(value) => Some(value.clone()),
        _ => None,
    }
}

/// What a line says, where all of it can be read.
fn read<'a>(line: &'a Line, errors: &mut Vec<LineError>) -> Option<Wanted<'a>> {
    let mut said = Reading::new(line, FIELDS, errors);
    let text = |value: MaybeUndefined<&'a str>| match value {
        Given(text) => Some(text.trim()),
        _ => None,
    };
    let title = said.value(TITLE);
    if matches!(title, Null) {
        said.fail("title", "required", "must not be empty");
    }
    let wanted = Wanted {
        line,
        id: text(said.text(ID)),
        external_id: given(&said.value::<ExternalId>(EXTERNAL_ID)),
        project: text(said.text(PROJECT)),
        parent: match said.text(PARENT) {
            Given(text) => Given(text.trim()),
            other => other,
        },
        assignees: said.many(ASSIGNEES, tasks::MOST_ASSIGNEES),
        change: TaskChange {
            title,
            description: said.value(DESCRIPTION),
            status: kept(said.word(STATUS)),
            priority: kept(said.word(PRIORITY)),
            due_date: said.date(DUE_DATE),
            estimated_hours: said.number(ESTIMATED_HOURS),
            actual_hours: said.number(ACTUAL_HOURS),
            impact: kept(said.number(IMPACT)),
            ..TaskChange::default()
        },
    };
    said.is_sound().then_some(wanted)
}

/// The known task that a line is about.
fn named(one: &Wanted<'_>, known: &Known) -> Option<Uuid> {
    let external = one.external_id.as_ref().and_then(|id| known.by_external.get(id.as_ref()).copied());
    external.or_else(|| one.id.and_then(|id| known.find(id)))
}

/// The tasks that lines name, as themselves or as parents.
async fn known(tx: &TenantTx, wanted: &[Wanted<'_>]) -> Result<Known> {
    let mut names: BTreeSet<&str> = BTreeSet::new();
    for one in wanted {
        if let Some(id) = &one.external_id {
            names.insert(id.as_ref());
        }
        if let Some(id) = one.id {
            names.insert(id);
        }
        if let Given(parent) = one.parent {
            names.insert(parent);
        }
    }
    let mut known = Known::default();
    if names.is_empty() {
        return Ok(known);
    }
    let ids: Vec<Uuid> = names.iter().filter_map(|name| name.parse().ok()).collect();
    let names: Vec<&str> = names.into_iter().collect();
    let rows = tx
        .query(
            "select id, external_id from tasks where external_id = any ($1) or id = any ($2)",
            &[&names, &ids],
        )
        .await?;
    for row in &rows {
        let id: Uuid = row.try_get("id")?;
        if let Some(external) = row.try_get::<_, Option<String>>("external_id")? {
            known.by_external.insert(external, id);
        }
        known.by_id.insert(id);
    }
    Ok(known)
}

/// The projects that lines name: by external id, by slug, by id.
async fn homes(tx: &TenantTx, wanted: &[Wanted<'_>]) -> Result<HashMap<String, Uuid>> {
    let names: BTreeSet<&str> = wanted.iter().filter_map(|one| one.project).collect();
    if names.is_empty() {
        return Ok(HashMap::new());
    }
    let ids: Vec<Uuid> = names.iter().filter_map(|name| name.parse().ok()).collect();
    let texts: Vec<&str> = names.iter().copied().collect();
    let rows = tx
        .query(
            "select id, slug, external_id from projects where external_id = any ($1) or slug = any ($1) \
             or id = any ($2)",
            &[&texts, &ids],
        )
        .await?;
    let (mut by_external, mut others) = (HashMap::new(), HashMap::new());
    for row in &rows {
        let id: Uuid = row.try_get("id")?;
        if let Some(external) = row.try_get::<_, Option<String>>("external_id")? {
            by_external.insert(external, id);
        }
        others.insert(row.try_get::<_, String>("slug")?, id);
        others.insert(id.to_string(), id);
    }
    let find = |name: &str| {
        let plain = || name.parse::<Uuid>().map_or_else(|_| name.to_owned(), |id| id.to_string());
        by_external.get(name).or_else(|| others.get(&plain())).copied()
    };
    Ok(names.into_iter().filter_map(|name| Some((name.to_owned(), find(name)?))).collect())
}

impl Importer for TaskImporter {
    fn check<'a>(&'a mut self, tx: &'a TenantTx, lines: &'a [Line]) -> BoxFuture<'a, Result<Outcome>> {
        Box::pin(async move { Ok(self.plan(tx, lines, false).await?.outcome()) })
    }

    fn write<'a>(&'a mut self, tx: &'a TenantTx, lines: &'a [Line]) -> BoxFuture<'a, Result<Outcome>> {
        Box::pin(async move {
            let plan = self.plan(tx, lines, true).await?;
            self.forget();
            insert(tx, &plan.new).await?;
            update(tx, &plan.changed).await?;
            let now = self.maker.app.clock.now();
            update_progress(tx, &plan, now).await?;
            let done = plan.changed.iter().filter(|draft| is_done(&draft.after) && !is_done(&draft.before));
            let done: Vec<_> = done
                .map(|draft| (EventType::TaskCompleted, draft.after.id, Changes::none(&draft.after)))
                .collect();
            let made = plan.new.iter().map(|task| (EventType::TaskCreated, task.id, Changes::created(task)));
            let changed = plan.changed.iter().map(|Draft { before, after }| {
                (EventType::TaskUpdated, after.id, Changes::between(before, after))
            });
            let all: Vec<_> = made.chain(changed).collect();
            events::emit_many(tx, &self.maker.app, &self.maker.actor, &done).await?;
            events::record_many(tx, &self.maker.app, &self.maker.actor, &all).await?;
            Ok(plan.outcome())
        })
    }
}

impl Plan {
    fn outcome(self) -> Outcome {
        Outcome {
            created: self.new.len() as i64,
            updated: self.changed.len() as i64,
            unchanged: self.unchanged,
            errors: self.errors,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_those_of_the_fields() {
        let named = [
            (ID, "id"),
            (EXTERNAL_ID, "external_id"),
            (PROJECT, "project"),
            (PARENT, "parent"),
            (TITLE, "title"),
            (DESCRIPTION, "description"),
            (STATUS, "status"),
            (PRIORITY, "priority"),
            (ASSIGNEES, "assignees"),
            (DUE_DATE, "due_date"),
            (ESTIMATED_HOURS, "estimated_hours"),
            (ACTUAL_HOURS, "actual_hours"),
            (IMPACT, "impact"),
        ];
        for (place, name) in named {
            assert_eq!(FIELDS[place].name, name);
        }
    }
}
