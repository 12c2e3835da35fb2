//! Bringing every schema up to date, while the service goes on answering on old and new ones.
//!
//! What is recorded of schemas says which are behind, so a run begins with one statement and what is
//! current is never opened. Canaries go first and alone; then the rest, many at a time. A schema's
//! module is brought along in one transaction, in three flushes: its row is locked and read, its
//! statements run and what was done is recorded, and that commits. So a run that was killed goes on
//! where it was, and of two at once one waits for the other schema by schema.
//!
//! A statement waits a second for a table that a tenant uses, as everybody who comes after it waits
//! behind it. Then it gives way, and the schema goes to the back of the queue, five times. The schemas of a
//! server that does not answer are left, and those of the others go on.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque, btree_map::Entry},
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use chrono::{DateTime, Utc};
use futures_util::{StreamExt, join, stream::FuturesUnordered};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, sleep_until};
use uuid::Uuid;

use super::bring::{Outcome, Task, attempt};
use crate::{
    app::App,
    db::{
        Place, Row, Schema, Server, Tx,
        migrations::{Set, all_sets},
    },
    error::{Code, Error, Result},
    jobs::with_jitter,
};

/// The first pause of a schema that was in the way of somebody; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// How often a run says that it lives.
const BEAT: Duration = Duration::from_secs(5);

/// What a run of [`migrate`] is to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// Schemas at the same time; as many as there are connections, less one, at most.
    pub jobs: usize,
    /// Organizations that go first; should one fail, nobody else is touched. By slug or id.
    pub canaries: Vec<String>,
    /// Where not empty, these organizations and the canaries are all.
    pub only: Vec<String>,
    /// So many schemas that fail end the run.
    pub max_failures: usize,
    /// Only look what there is to do.
    pub dry_run: bool,
    /// How long one schema's module may take.
    pub timeout: Option<Duration>,
    /// Only those whose last attempt failed.
    pub failed_only: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            jobs: 4,
            canaries: Vec::new(),
            only: Vec::new(),
            max_failures: 5,
            dry_run: false,
            timeout: None,
            failed_only: false,
        }
    }
}

/// How far a run is, in schemas that need something.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    pub total: usize,
    pub pending: usize,
    pub failed: usize,
}

impl Progress {
    pub fn done(self) -> usize {
        self.total - self.pending
    }
}

/// What became of the schemas in one run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub started_at: DateTime<Utc>,
    pub finished_at: DateTime<Utc>,
    /// Where each module is to be.
    pub versions: BTreeMap<&'static str, i64>,
    /// Schemas that were looked at.
    pub total: usize,
    pub current: usize,
    pub migrated: usize,
    pub failed: usize,
    /// Ahead of this program; left alone.
    pub newer: usize,
    /// Beside those that failed, on servers that do not answer.
    pub unreached: usize,
    /// Behind and not tried, as the run ended before.
    pub pending: usize,
    pub failures: Vec<FailedSchema>,
    /// Why the run ended before its end.
    pub stopped_because: Option<String>,
    /// What a run would do; of a dry run only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub planned: Vec<PlannedStep>,
    #[serde(skip)]
    interrupted: bool,
}

/// A schema that could not be brought up to date.
#[derive(Clone, Debug, Serialize)]
pub struct FailedSchema {
    pub schema: String,
    /// The slug; absent for a spare.
    pub organization: Option<String>,
    pub module: &'static str,
    pub tries: u32,
    pub error: String,
}

/// What a run would do with one module of a schema.
#[derive(Clone, Debug, Serialize)]
pub struct PlannedStep {
    pub schema: String,
    pub organization: Option<String>,
    pub module: &'static str,
    pub from: i64,
    pub to: i64,
    /// Why it would be refused.
    pub objection: Option<String>,
}

/// Brings every schema up to these sets. Says after each schema how far it is.
pub async fn migrate(
    app: &App,
    sets: &[Set],
    options: &Options,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Report> {
    for set in sets {
        set.is_whole()?;
    }
    if !options.dry_run {
        settle(app, sets).await?;
    }
    let (tasks, report) = plan(app, sets, options).await?;
    if options.dry_run {
        return Ok(report);
    }
    let run = begin_run(app, options, &report).await?;
    let board = Board { total: tasks.len(), report: Mutex::new(report), progress };
    tokio::select! {
        () = rings(app, tasks, options, &board) => {}
        () = beat(app, run, &board) => {}
    }
    let mut report = board.report().clone();
    report.finished_at = app.clock.now();
    if report.pending == 0 {
        report.stopped_because = None;
    }
    if let Err(error) = write_run(app, run, &report, Some(outcome(&report))).await {
        tracing::warn!(%error, "a migration could not say that it is at its end");
    }
    Ok(report)
}

/// How many modules of schemas are behind this version of the service.
pub async fn behind(tx: &Tx) -> Result<i64> {
    let sql = format!("select count(*) from {LIVING_MODULES} and coalesce(m.version, 0) < wanted.version");
    tx.query_one(&sql, &[&wanted(&all_sets())]).await?.try_get(0).map_err(Error::from)
}

/// Every module that a schema in use or in stock holds or should hold, beside where `$1` wants it.
pub(super) const LIVING_MODULES: &str = "platform.tenant_schemas s \
     cross join jsonb_to_recordset($1) as wanted \
       (place integer, module text, version bigint, checksum text, optional boolean) \
     left join platform.tenant_schema_modules m on m.schema_id = s.id and m.module = wanted.module \
     where s.state in ('spare', 'taken') and (m.module is not null or not wanted.optional)";

/// Where sets want schemas to be, for [`LIVING_MODULES`].
pub(super) fn wanted(sets: &[Set]) -> Value {
    let one = |(place, set): (usize, &Set)| {
        let (version, checksum) = (set.latest(), set.checksum(set.latest()));
        json!({
            "place": place, "module": set.module, "version": version, "checksum": checksum, "optional": set.optional,
        })
    };
    Value::Array(sets.iter().enumerate().map(one).collect())
}

/// Notes the checksums of schemas from before these were kept, and forgets failures of what is as it
/// should be: an edited file was put back.
async fn settle(app: &App, sets: &[Set]) -> Result<()> {
    let tx = app.db.begin().await?;
    tx.execute(
        "update platform.tenant_schema_modules m set checksum = wanted.checksum, last_error = null, attempts = 0, \
         failed_at = null from jsonb_to_recordset($1) as wanted (module text, version bigint, checksum text) \
         where m.module = wanted.module and m.version = wanted.version \
         and (m.checksum is null or m.checksum = wanted.checksum and m.failed_at is not null)",
        &[&wanted(sets)],
    )
    .await?;
    tx.commit().await
}

/// What there is to do, and a report on nothing done yet.
async fn plan<'a>(app: &App, sets: &'a [Set], options: &Options) -> Result<(Vec<Task<'a>>, Report)> {
    let tx = app.db.begin().await?;
    let canaries = schemas_of(&tx, &options.canaries).await?;
    let mut only = schemas_of(&tx, &options.only).await?;
    if !only.is_empty() {
        only.extend(&canaries);
    }
    let concerned = |id: &Uuid| only.is_empty() || only.contains(id);
    let sql = format!(
        "select s.id, s.database_id, wanted.place, coalesce(m.version, 0) as version, m.checksum, \
         m.failed_at is not null as has_failed, \
         (select o.slug from platform.organizations o where o.schema_id = s.id) as slug from {LIVING_MODULES} \
         and (coalesce(m.version, 0) <> wanted.version or m.checksum <> wanted.checksum) order by s.id, wanted.place"
    );
    let living = "select count(*) from platform.tenant_schemas where state in ('spare', 'taken')";
    let wanted = wanted(sets);
    let (rows, living) = join!(async { tx.query(&sql, &[&wanted]).await }, tx.query_one(living, &[]));
    let (rows, living): (_, i64) = (rows?, living?.try_get(0)?);
    drop(tx);
    let servers = app.directory.servers().await?;

    let (mut tasks, mut newer, mut failed) =
        (BTreeMap::<Uuid, Task<'a>>::new(), HashSet::new(), HashSet::new());
    let mut planned = Vec::new();
    for row in &rows {
        let id: Uuid = row.try_get("id")?;
        if !concerned(&id) {
            continue;
        }
        let set = &sets[row.try_get::<_, i32>("place")? as usize];
        if row.try_get::<_, i64>("version")? > set.latest() {
            newer.insert(id);
            continue;
        }
        let step = planned_step(row, set)?;
        let task = match tasks.entry(id) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(Task {
                place: Place { server: server_of(row, &servers)?, schema: Schema::new(id) },
                slug: step.organization.clone(),
                modules: VecDeque::new(),
                canary: canaries.contains(&id),
                tries: 0,
                not_before: Instant::now(),
            }),
        };
        task.modules.push_back(set);
        if row.try_get("has_failed")? {
            failed.insert(id);
        }
        planned.push((id, step));
    }
    if options.failed_only {
        tasks.retain(|id, _| failed.contains(id));
        planned.retain(|(id, _)| failed.contains(id));
    }
    newer.retain(|id| !tasks.contains_key(id));
    let total = match (options.failed_only, only.is_empty()) {
        (true, _) => tasks.len() + newer.len(),
        (false, true) => living as usize,
        (false, false) => only.len(),
    };
    let now = app.clock.now();
    let report = Report {
        started_at: now,
        finished_at: now,
        versions: sets.iter().map(|set| (set.module, set.latest())).collect(),
        total,
        current: total.saturating_sub(tasks.len() + newer.len()),
        migrated: 0,
        failed: 0,
        newer: newer.len(),
        unreached: 0,
        pending: tasks.len(),
        failures: Vec::new(),
        stopped_because: None,
        planned: match options.dry_run {
            true => planned.into_iter().map(|(_, step)| step).collect(),
            false => Vec::new(),
        },
        interrupted: false,
    };
    Ok((tasks.into_values().collect(), report))
}

fn server_of(row: &Row, servers: &[Server]) -> Result<Server> {
    let id: Uuid = row.try_get("database_id")?;
    let found = servers.iter().find(|server| server.id() == id).cloned();
    found.ok_or_else(|| Error::internal(format!("there is no database {id}")))
}

fn planned_step(row: &Row, set: &Set) -> Result<PlannedStep> {
    let (from, checksum): (i64, Option<String>) = (row.try_get("version")?, row.try_get("checksum")?);
    Ok(PlannedStep {
        schema: Schema::new(row.try_get("id")?).to_string(),
        organization: row.try_get("slug")?,
        module: set.module,
        from,
        to: set.latest(),
        objection: set.objection(from, checksum.as_deref()),
    })
}

/// The schemas of organizations named by slug or id, all of which there must be.
pub(super) async fn schemas_of(tx: &Tx, names: &[String]) -> Result<HashSet<Uuid>> {
    let mut schemas = HashSet::new();
    for name in names {
        let sql = "select schema_id from platform.organizations where slug = $1 or id::text = $1";
        let row = tx.query_opt(sql, &[name]).await?.ok_or_else(|| {
            Error::new(
                Code::NotFound,
                format!("there is no organization {name:?}; `rowhouse tenant list` shows all"),
            )
        })?;
        schemas.insert(row.try_get(0)?);
    }
    Ok(schemas)
}

/// Where a run notes what became of schemas.
struct Board<'a> {
    total: usize,
    report: Mutex<Report>,
    progress: &'a (dyn Fn(Progress) + Sync),
}

impl Board<'_> {
    fn report(&self) -> MutexGuard<'_, Report> {
        self.report.lock().expect("nothing panics with the lock held")
    }

    fn stop(&self, because: String) {
        self.report().stopped_because.get_or_insert(because);
    }

    fn is_stopped(&self) -> bool {
        self.report().stopped_because.is_some()
    }

    fn note(&self, change: impl FnOnce(&mut Report)) {
        {
            let mut report = self.report();
            report.pending -= 1;
            change(&mut report);
        }
        self.tell();
    }

    fn tell(&self) {
        let now = {
            let report = self.report();
            Progress { total: self.total, pending: report.pending, failed: report.failed }
        };
        (self.progress)(now);
    }
}

/// Canaries first; where all of them are well, the rest.
async fn rings(app: &App, tasks: Vec<Task<'_>>, options: &Options, board: &Board<'_>) {
    let (canaries, rest): (Vec<_>, Vec<_>) = tasks.into_iter().partition(|task| task.canary);
    for (ring, may_fail) in [(canaries, 1), (rest, options.max_failures.max(1))] {
        work_through(app, ring, options, may_fail, board).await;
        if board.is_stopped() {
            return;
        }
    }
}

/// Brings these schemas along until it is done with all of them, or has to stop; then what is under
/// way is brought to its end.
async fn work_through<'a>(
    app: &App,
    tasks: Vec<Task<'a>>,
    options: &Options,
    may_fail: usize,
    board: &Board<'_>,
) {
    let mut stopping = app.stopping();
    let mut queue = VecDeque::from(tasks);
    let mut running = FuturesUnordered::new();
    let mut on_server: HashMap<Uuid, usize> = HashMap::new();
    // One connection is left for notes; every transaction has a part on the first server.
    let jobs = options.jobs.clamp(1, app.db.connections().saturating_sub(1).max(1));
    let (mut failures, mut away) = (0, HashSet::new());
    loop {
        let now = Instant::now();
        while !board.is_stopped()
            && running.len() < jobs
            && let Some(task) = take_next(&mut queue, &on_server, now)
        {
            *on_server.entry(task.place.server.id()).or_default() += 1;
            running.push(attempt(app, task, options.timeout));
        }
        if running.is_empty() && (queue.is_empty() || board.is_stopped()) {
            return;
        }
        let (mut task, outcome) = tokio::select! {
            Some(ended) = running.next() => ended,
            () = somebody_has_waited(&queue, now), if running.len() < jobs => continue,
            () = stopping.requested() => {
                board.stop("it was interrupted".into());
                board.report().interrupted = true;
                // What is under way is dropped with this, and so rolled back.
                return;
            }
        };
        let server = task.place.server.id();
        on_server.entry(server).and_modify(|count| *count -= 1);
        if let Outcome::Away(_) = outcome {
            let queued = queue.len();
            queue.retain(|other| other.place.server.id() != server);
            (queue.len()..queued).for_each(|_| board.note(|report| report.unreached += 1));
            // One failure stands for all of a server.
            if !away.insert(server) {
                board.note(|report| report.unreached += 1);
                continue;
            }
        }
        match outcome {
            Outcome::Migrated => board.note(|report| report.migrated += 1),
            Outcome::Current => board.note(|report| report.current += 1),
            Outcome::NotConcerned => board.note(|report| report.total -= 1),
            Outcome::InTheWay => {
                let pause = with_jitter(FIRST_PAUSE * 2u32.pow(task.tries.saturating_sub(1)), 0.5);
                task.not_before = Instant::now() + pause.to_std().unwrap_or(FIRST_PAUSE);
                queue.push_back(task);
            }
            Outcome::Failed(failure) | Outcome::Away(failure) => {
                failures += 1;
                if failures >= may_fail {
                    board.stop(match task.canary {
                        true => format!("canary {} failed", task.slug.as_deref().unwrap_or_default()),
                        false => format!("{failures} failed"),
                    });
                }
                board.note(|report| {
                    report.failed += 1;
                    report.failures.push(failure);
                });
            }
        }
    }
}

/// The first whose time has come and whose server has room.
fn take_next<'a>(
    queue: &mut VecDeque<Task<'a>>,
    on_server: &HashMap<Uuid, usize>,
    now: Instant,
) -> Option<Task<'a>> {
    let fits = |task: &Task<'_>| {
        let server = &task.place.server;
        task.not_before <= now && on_server.get(&server.id()).is_none_or(|busy| *busy < server.connections())
    };
    let index = queue.iter().position(fits)?;
    queue.remove(index)
}

/// Ready when the next of those who were in the way is to be tried again.
async fn somebody_has_waited(queue: &VecDeque<Task<'_>>, now: Instant) {
    match queue.iter().map(|task| task.not_before).filter(|time| *time > now).min() {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

async fn begin_run(app: &App, options: &Options, report: &Report) -> Result<Uuid> {
    let id = Uuid::now_v7();
    let about = json!({
        "jobs": options.jobs,
        "canaries": options.canaries,
        "only": options.only,
        "max_failures": options.max_failures,
        "timeout_seconds": options.timeout.map(|limit| limit.as_secs()),
        "failed_only": options.failed_only,
        "versions": report.versions,
    });
    let tx = app.db.begin().await?;
    tx.execute(
        "insert into platform.migration_runs (id, options, total, migrated, current, failed, started_at, beat_at) \
         values ($1, $2, $3, 0, $4, 0, $5, $5)",
        &[&id, &about, &(report.total as i32), &(report.current as i32), &report.started_at],
    )
    .await?;
    tx.commit().await?;
    Ok(id)
}

/// Says now and then that the run lives, and how far it is, in the database and to whoever looks on.
async fn beat(app: &App, run: Uuid, board: &Board<'_>) {
    loop {
        sleep(BEAT).await;
        board.tell();
        let report = board.report().clone();
        if let Err(error) = write_run(app, run, &report, None).await {
            tracing::warn!(%error, "a migration could not say that it is under way");
        }
    }
}

async fn write_run(app: &App, run: Uuid, report: &Report, outcome: Option<&str>) -> Result<()> {
    let tx = app.db.begin().await?;
    tx.execute(
        "update platform.migration_runs set total = $2, migrated = $3, failed = $4, beat_at = $5::timestamptz, outcome = $6::text, \
         finished_at = case when $6::text is null then null else $5::timestamptz end, current = $7 where id = $1",
        &[
            &run,
            &(report.total as i32),
            &(report.migrated as i32),
            &(report.failed as i32),
            &app.clock.now(),
            &outcome,
            &(report.current as i32),
        ],
    )
    .await?;
    tx.commit().await
}

fn outcome(report: &Report) -> &'static str {
    match (report.interrupted, report.failed) {
        (true, _) => "stopped",
        (false, 0) => "done",
        (false, _) => "failed",
    }
}
