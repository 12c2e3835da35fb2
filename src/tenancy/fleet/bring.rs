//! One schema on its way: each of its modules in one transaction, or what is in the way.

use std::{collections::VecDeque, time::Duration};

use futures_util::join;
use tokio::time::Instant;
use uuid::Uuid;

use super::migrate::FailedSchema;
use crate::{
    app::App,
    db::{
        Place, Row, Schema,
        migrations::{self, Set},
    },
    error::{Code, Error, Result},
};

/// How often a schema is tried whose tables are in use.
const TRIES: u32 = 5;
/// How long a statement waits for a table, and with it everybody who comes after.
const LOCK_WAIT_MS: u32 = 1000;

/// A schema that is to be brought along.
pub(super) struct Task<'a> {
    pub place: Place,
    /// The organization's slug; a spare has none.
    pub slug: Option<String>,
    /// What is not as it should be, in the order of the sets.
    pub modules: VecDeque<&'a Set>,
    pub canary: bool,
    pub tries: u32,
    pub not_before: Instant,
}

/// What became of a schema that was tried.
pub(super) enum Outcome {
    Migrated,
    /// Another run did it, or there was nothing to do any more.
    Current,
    /// It is nobody's any more, or its module was removed.
    NotConcerned,
    /// Somebody works with its tables; to be tried again.
    InTheWay,
    Failed(FailedSchema),
    /// Its server does not answer; nothing can be done there.
    Away(FailedSchema),
}

/// Tries once to bring a schema along, and notes it where that fails for good.
pub(super) async fn attempt<'a>(
    app: &App,
    mut task: Task<'a>,
    timeout: Option<Duration>,
) -> (Task<'a>, Outcome) {
    task.tries += 1;
    let mut outcome = Outcome::NotConcerned;
    while let Some(&set) = task.modules.front() {
        match bring(app, &task, set, timeout).await {
            Ok(Brought::Further) => continue,
            // Which takes as long as it takes.
            Ok(Brought::Busy) => {
                task.tries -= 1;
                return (task, Outcome::InTheWay);
            }
            Ok(Brought::Up) => outcome = Outcome::Migrated,
            Ok(Brought::WasThere) => outcome = outcome.or_current(),
            Ok(Brought::NotConcerned) => {}
            Err(trouble) if trouble.away => {
                let failure = task.failure(set, trouble);
                return (task, Outcome::Away(failure));
            }
            Err(trouble) if trouble.passes && task.tries < TRIES => return (task, Outcome::InTheWay),
            Err(trouble) => {
                if failed(app, &task, set, &trouble).await {
                    let failure = task.failure(set, trouble);
                    return (task, Outcome::Failed(failure));
                }
                outcome = outcome.or_current();
            }
        }
        task.modules.pop_front();
    }
    (task, outcome)
}

impl Outcome {
    /// The same, of a schema that one more module is well of.
    fn or_current(self) -> Self {
        match self {
            Self::NotConcerned => Self::Current,
            known => known,
        }
    }
}

impl Task<'_> {
    fn failure(&self, set: &Set, trouble: Trouble) -> FailedSchema {
        FailedSchema {
            schema: self.place.schema.to_string(),
            organization: self.slug.clone(),
            module: set.module,
            tries: self.tries,
            error: trouble.told,
        }
    }
}

/// Notes a failure, and says whether it is one: another run may have done it meanwhile.
async fn failed(app: &App, task: &Task<'_>, set: &Set, trouble: &Trouble) -> bool {
    match note_failure(app, task.place.schema, set, &trouble.told).await {
        Ok(noted) => noted,
        Err(error) => {
            tracing::warn!(%error, schema = %task.place.schema, "a failed migration could not be noted");
            true
        }
    }
}

/// What there is to say of a schema's module that could not be brought along.
struct Trouble {
    told: String,
    /// Somebody else was in the way, or a connection broke.
    passes: bool,
    /// A server other than the first does not answer.
    away: bool,
}

impl Trouble {
    fn away(error: &Error) -> Self {
        let told = format!("its server does not answer, see `rowhouse database check`: {error}");
        Self { told, passes: false, away: true }
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        let told = error.cause().unwrap_or_else(|| error.to_string());
        Self { told, passes: passes(&error), away: false }
    }
}

impl From<migrations::Failure> for Trouble {
    fn from(failure: migrations::Failure) -> Self {
        Self { told: failure.to_string(), passes: passes(&failure.error), away: false }
    }
}

impl From<String> for Trouble {
    fn from(told: String) -> Self {
        Self { told, passes: false, away: false }
    }
}

/// A lock that was not to be had, a deadlock, a connection that broke; but not what took too long.
fn passes(error: &Error) -> bool {
    error.code() == Code::Unavailable && error.sql_state() != Some("57014")
}

enum Brought {
    Up,
    /// Not as far as it should be.
    Further,
    /// Somebody else builds its indexes.
    Busy,
    /// By another run, or by a newer program.
    WasThere,
    NotConcerned,
}

/// Locks the row of a schema's module and says where it is; of a schema that is in use or in stock.
/// Whoever wants to change the schema as a whole waits until the end of the transaction.
const LOCK: &str = "with living as ( \
       select id from platform.tenant_schemas where id = $1 and state in ('spare', 'taken') for share) \
     insert into platform.tenant_schema_modules (schema_id, module, version) select id, $2::text, 0 from living \
     on conflict (schema_id, module) do update set updated_at = excluded.updated_at returning version, checksum";

/// Brings one module of a schema up to its set, in one transaction; or, where the set has indexes for large
/// tables, so far that they come next, or through the migration that has them.
async fn bring(app: &App, task: &Task<'_>, set: &Set, timeout: Option<Duration>) -> Result<Brought, Trouble> {
    let schema = task.place.schema;
    let tx = match app.directory.door.begin(&task.place, Uuid::nil()).await {
        Err(error) if !task.place.server.is_primary() => return Err(Trouble::away(&error)),
        begun => begun?,
    };
    // Another run that is at it is waited for; the part on the first server waits for the one in the schema.
    let unlimited = tx.command_everywhere(
        "select set_config('statement_timeout', '0', true), \
         set_config('idle_in_transaction_session_timeout', '0', true)",
    );
    let locked = async { tx.query_once(LOCK, &[&schema.id(), &set.module]).await };
    let (unlimited, rows) = join!(unlimited, locked);
    unlimited?;
    let Some(row) = rows?.into_iter().next() else { return Ok(Brought::NotConcerned) };
    let (version, checksum): (i64, Option<String>) = position(&row)?;
    // Nothing led there: the module was removed while this was on its way.
    if set.optional && version == 0 {
        return Ok(Brought::NotConcerned);
    }
    if version > set.latest() {
        return Ok(Brought::WasThere);
    }
    if let Some(objection) = set.objection(version, checksum.as_deref()) {
        return Err(objection.into());
    }
    let latest = set.latest();
    if version == latest {
        return Ok(Brought::WasThere);
    }
    // Nobody works with a schema that has no version yet.
    let aside = match version {
        0 => None,
        version => set.aside(&tx, schema, version).await?,
    };
    let upto = match &aside {
        Some(aside) if aside.version() > version + 1 => aside.version() - 1,
        Some(aside) if aside.is_built => aside.version(),
        Some(aside) => {
            drop(tx);
            let built = aside.build(&app.directory.door, &task.place, timeout).await?;
            return Ok(if built { Brought::Further } else { Brought::Busy });
        }
        None => latest,
    };
    let is_built = aside.is_some_and(|aside| aside.is_built && aside.version() == upto);
    let (set, from) = (&set.upto(upto), if is_built { upto } else { version });
    let brought = if upto == latest { Brought::Up } else { Brought::Further };
    let limits = format!(
        "select set_config('statement_timeout', '{}', true), set_config('lock_timeout', '{LOCK_WAIT_MS}', true)",
        timeout.map_or(0, |limit| limit.as_millis().max(1)),
    );
    // Without its schema, a table would be made in the next one of the path.
    let there = format!("select '{schema}'::regnamespace");
    let changes = async {
        join!(
            tx.command(&limits),
            tx.command(&there),
            set.apply(&tx, from),
            migrations::record(&tx, schema.id(), set),
        )
    };
    let (limited, there, applied, recorded) = match timeout {
        None => changes.await,
        Some(limit) => tokio::time::timeout(limit, changes)
            .await
            .map_err(|_| format!("module {} took longer than {} s", set.module, limit.as_secs()))?,
    };
    limited?;
    match there {
        Err(error) if error.sql_state() == Some("3F000") => {
            drop(tx);
            return gone(app, task).await;
        }
        there => there?,
    }
    applied?;
    recorded?;
    tx.commit_aside().await?;
    Ok(brought)
}

fn position(row: &Row) -> Result<(i64, Option<String>)> {
    Ok((row.try_get("version")?, row.try_get("checksum")?))
}

/// Somebody dropped the schema. A spare is taken off the list, so that nobody is given it.
async fn gone(app: &App, task: &Task<'_>) -> Result<Brought, Trouble> {
    let schema = task.place.schema;
    if let Some(slug) = &task.slug {
        let told = format!(
            "schema {schema} is gone: somebody dropped it; restore it with `rowhouse tenant restore {slug} --to TIME`"
        );
        return Err(told.into());
    }
    let tx = app.db.begin().await?;
    let spare = "delete from platform.tenant_schemas where id = $1 and state = 'spare'";
    tx.execute(spare, &[&schema.id()]).await?;
    tx.commit().await?;
    tracing::warn!(%schema, "a spare schema was dropped by hand; it is off the list");
    Ok(Brought::NotConcerned)
}

/// Writes what a schema's module failed with, unless it is as it should be by now.
async fn note_failure(app: &App, schema: Schema, set: &Set, told: &str) -> Result<bool> {
    let tx = app.db.begin().await?;
    let noted = tx
        .execute(
            "insert into platform.tenant_schema_modules (schema_id, module, version, last_error, attempts, failed_at) \
             select s.id, $2::text, 0, $3::text, 1, $4::timestamptz from platform.tenant_schemas s where s.id = $1 \
             and (not $5::boolean or exists (select 1 from platform.tenant_schema_modules m \
               where m.schema_id = s.id and m.module = $2)) \
             on conflict (schema_id, module) do update set last_error = excluded.last_error, \
             attempts = tenant_schema_modules.attempts + 1, failed_at = excluded.failed_at \
             where (tenant_schema_modules.version, tenant_schema_modules.checksum) \
             is distinct from ($6::bigint, $7::text)",
            &[
                &schema.id(),
                &set.module,
                &told,
                &app.clock.now(),
                &set.optional,
                &set.latest(),
                &set.checksum(set.latest()),
            ],
        )
        .await?;
    tx.commit().await?;
    Ok(noted == 1)
}
