//! Carrying an organization to another server while it is written to.
//!
//! The schema is built on the other server and filled from a snapshot of the original; everybody goes on
//! working. Then what changed since is carried after it, again and again until that is little. Then the
//! organization is paused: whoever wants to begin a transaction in it waits, and the mover locks all tables
//! against reading and writing. What changed since the last time is carried over, both are compared, and in
//! one commit the copy becomes the living one and the original gets another name. That is the end of the
//! pause; it takes much less than a second for what a small team has. Its foreign keys hold for all that is
//! written from then on; that they hold for what was copied is checked after it, while everybody works.
//!
//! *What has changed* is told by Postgres itself. Each version of a row carries the number of the
//! transaction that wrote it (`xmin`), and a snapshot the number below which every transaction was over when
//! it was taken. What a later snapshot sees and an earlier one did not was written by a transaction that was
//! not over then, so its number is not below: `age(xmin) <= age(<number>)`. Ages are distances from now, so
//! this holds when the numbers begin anew. It may take rows twice (of transactions that ended shortly
//! before, or where a long one held the number back), never too few. Rows that are gone leave nothing to
//! find, but they are counted: a table whose unchanged rows are fewer than what the copy holds beside the
//! changed ones has lost some, and only then keys are compared.
//!
//! *Nothing is lost, nothing is there twice.* The tables are locked until the commit, so the original cannot
//! get another row after the last one was carried over. Who waited for the locks finds no table under the
//! old name and begins anew at the right place. A pause ends by itself: should the mover be stuck or dead,
//! everybody goes on with the original, and what was copied is dropped.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::join;
use serde_json::json;
use uuid::Uuid;

use super::{
    copy::{self, Table},
    operation::{Operation, Progress, Step},
    stock::{self, State},
    transfer, verify,
};
use crate::{
    app::App,
    audit::Changes,
    db::{
        Place, Server, TenantTx, Tx,
        migrations::{Set, all_sets},
    },
    error::{Code, Error, Result},
    tenancy::{Tenant, databases},
};

/// How often what has changed is carried after, at most, before the pause.
const PASSES: u32 = 5;
/// So few rows are carried over within the pause.
const FEW: u64 = 500;
/// How often the pause is tried: somebody may hold the tables for too long.
const TRIES: u32 = 5;
/// Tables of so many rows are compared once more in the pause. Larger ones were compared before it, and in
/// it only what has changed is carried over, and counted.
const COMPARED_IN_THE_PAUSE: i64 = 20_000;

/// What a move is about, before it is made.
pub struct Plan {
    /// The names of both servers.
    pub from: String,
    pub to: String,
    /// Modules of its schema, with their versions.
    pub modules: Vec<(String, i64)>,
    pub tables: usize,
    pub rows: i64,
    pub bytes: i64,
    /// Whether it is there already.
    pub is_there: bool,
}

/// What was moved.
#[derive(Clone, Debug)]
pub struct Moved {
    pub tables: usize,
    pub rows: i64,
    /// For how long nobody could write, in all tries together.
    pub paused: Duration,
    pub tries: u32,
}

/// What would be moved.
pub async fn plan(app: &App, tenant: &Tenant, database: &str) -> Result<Plan> {
    let to = databases::find(app, database).await?;
    let from = transfer::living(app, tenant.id()).await?;
    let tx = app.db.begin().await?;
    let modules = modules(&tx, from.schema.id()).await?;
    drop(tx);
    let tx = app.directory.door.begin_snapshot(&from, tenant.id()).await?;
    copy::prepare(&tx).await?;
    let tables = copy::tables(&tx).await?;
    let mut rows = 0;
    for table in &tables {
        rows += count(&tx, table, None).await?;
    }
    let bytes = tx
        .query_once(
            "select coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint from pg_catalog.pg_class c \
             join pg_catalog.pg_namespace n on n.oid = c.relnamespace where n.nspname = $1 and c.relkind = 'r'",
            &[&from.schema.to_string()],
        )
        .await?;
    let names = databases::list(app).await?;
    let name = names.into_iter().find(|database| database.id == from.server.id()).map(|found| found.name);
    Ok(Plan {
        from: name.unwrap_or_default(),
        to: to.name,
        modules: modules.into_iter().map(|module| (module.name, module.version)).collect(),
        tables: tables.len(),
        rows,
        bytes: bytes.first().map_or(Ok(0), |row| row.try_get(0))?,
        is_there: from.server.id() == to.id,
    })
}

/// Moves an organization to the server of this name. Nothing is changed where it fails.
pub async fn relocate(
    app: &Arc<App>,
    tenant: &Tenant,
    database: &str,
    pause: Duration,
    progress: Progress<'_>,
) -> Result<Moved> {
    let to = databases::find(app, database).await?;
    let about = json!({"database": to.name});
    let operation = Operation::begin(app, "move", Some(tenant.id()), about).await?;
    let server = app.directory.server(to.id).await;
    let outcome = match server {
        Ok(server) => set_out(app, &operation, tenant.id(), &server, pause, progress).await,
        Err(error) => Err(error),
    };
    operation.end(outcome).await
}

async fn set_out(
    app: &App,
    operation: &Operation,
    organization: Uuid,
    server: &Server,
    pause: Duration,
    progress: Progress<'_>,
) -> Result<Moved> {
    let from = transfer::living(app, organization).await?;
    if from.server.id() == server.id() {
        return Err(Error::conflict("It is on that server already."));
    }
    let tx = app.db.begin().await?;
    let modules = modules(&tx, from.schema.id()).await?;
    drop(tx);
    let to = stock::build(&app.directory, server, &sets(&modules)?, State::Building(operation.id)).await?;
    let journey = Journey { app, operation, organization, from, to, modules, pause, progress };
    let outcome = journey.go().await;
    // Where the answer to the commit was lost, it may have been made all the same.
    if outcome.is_err()
        && transfer::living(app, organization).await.is_ok_and(|now| now.schema != journey.to.schema)
    {
        // Refused by the database should it become the living one after all.
        if let Err(error) = stock::drop_schema(&app.directory, &journey.to).await {
            tracing::warn!(%error, schema = %journey.to.schema, "a copy is left to the worker to drop");
        }
    }
    outcome
}

/// A module of a schema as its row tells of it.
#[derive(Debug, PartialEq, Eq)]
struct Module {
    name: String,
    version: i64,
    checksum: Option<String>,
}

async fn modules(tx: &Tx, schema: Uuid) -> Result<Vec<Module>> {
    let rows = tx
        .query(
            "select module, version, checksum from platform.tenant_schema_modules where schema_id = $1 order by module",
            &[&schema],
        )
        .await?;
    rows.iter()
        .map(|row| {
            Ok(Module {
                name: row.try_get("module")?,
                version: row.try_get("version")?,
                checksum: row.try_get("checksum")?,
            })
        })
        .collect()
}

/// The migrations that lead to a schema with these modules.
fn sets(modules: &[Module]) -> Result<Vec<Set>> {
    let known = all_sets();
    if let Some(unknown) = modules.iter().find(|module| known.iter().all(|set| set.module != module.name)) {
        return Err(Error::conflict(format!("This program does not know the module {}.", unknown.name)));
    }
    let mut sets = Vec::new();
    for set in &known {
        let Some(module) = modules.iter().find(|module| module.name == set.module) else { continue };
        let (set, version) = (set.upto(module.version), module.version);
        if set.latest() != version {
            return Err(Error::conflict(format!(
                "The module {} is at version {version}, which this program does not know.",
                module.name
            )));
        }
        if let Some(objection) = set.objection(version, module.checksum.as_deref()) {
            return Err(Error::conflict(objection));
        }
        sets.push(set);
    }
    Ok(sets)
}

/// One organization on its way.
struct Journey<'a> {
    app: &'a App,
    operation: &'a Operation,
    organization: Uuid,
    from: Place,
    to: Place,
    /// Those that the copy was built with.
    modules: Vec<Module>,
    pause: Duration,
    progress: Progress<'a>,
}

/// What of the original is in the copy.
struct Copied {
    tables: Vec<Table>,
    /// What puts the copy's foreign keys back; without them rows come in any order.
    foreign_keys: Vec<String>,
    /// A condition on `t`: whether a row was written since. Empty before anything was copied.
    changed: Option<String>,
}

/// What is to be committed.
struct Ready {
    source: TenantTx,
    target: TenantTx,
    rows: i64,
}

impl Journey<'_> {
    async fn go(&self) -> Result<Moved> {
        let mut copied = self.begin().await?;
        let (mut tries, mut paused) = (0, Duration::ZERO);
        loop {
            self.catch_up(&mut copied).await?;
            tries += 1;
            let began = Instant::now();
            let outcome = match self.exchange(&copied, began).await {
                Ok(ready) => self.complete(ready).await,
                Err(error) if error.code() == Code::Unavailable && tries < TRIES => {
                    transfer::resume(self.app, self.organization).await?;
                    paused += began.elapsed();
                    tracing::info!(%error, organization = %self.organization, "a move is put off for a moment");
                    tokio::time::sleep(Duration::from_millis(250) * tries).await;
                    continue;
                }
                Err(error) => Err(error),
            };
            paused += began.elapsed();
            return match outcome {
                Ok(rows) => {
                    self.check_foreign_keys(&copied).await;
                    Ok(Moved { tables: copied.tables.len(), rows, paused, tries })
                }
                Err(error) => {
                    // It would end by itself; nobody has to wait for that.
                    let _ = transfer::resume(self.app, self.organization).await;
                    Err(error)
                }
            };
        }
    }

    /// Looks at the original, and makes the copy ready to be filled.
    async fn begin(&self) -> Result<Copied> {
        let (source, target) = self.open().await?;
        let tables = copy::tables(&source).await?;
        let (here, there) =
            both(verify::catalog(&source, self.from.schema), verify::catalog(&target, self.to.schema))
                .await?;
        let differences = verify::differences(&there, &here);
        if !differences.is_empty() {
            return Err(Error::conflict(format!(
                "The schema is not as its migrations would make it, so its copy would not be the same; see \
                 `rowhouse migrate verify`: {}",
                differences.join("; ")
            )));
        }
        let foreign_keys = copy::without_foreign_keys(&target).await?;
        copy::clear(&target, &tables).await?;
        target.commit_aside().await?;
        Ok(Copied { tables, foreign_keys, changed: None })
    }

    /// A snapshot of the original, and the copy.
    async fn open(&self) -> Result<(TenantTx, TenantTx)> {
        let door = &self.app.directory.door;
        let source = door.begin_snapshot(&self.from, self.organization).await?;
        let target = door.begin(&self.to, self.organization).await?;
        both(copy::prepare(&source), copy::prepare(&target)).await?;
        Ok((source, target))
    }

    /// Carries over what has changed until that is little, and makes sure that the copy is right.
    async fn catch_up(&self, copied: &mut Copied) -> Result<()> {
        for _ in 0..PASSES {
            if self.follow(copied, false).await? <= FEW {
                break;
            }
        }
        // Comparing takes its time, in which more is written.
        self.follow(copied, true).await?;
        self.follow(copied, false).await?;
        Ok(())
    }

    /// Brings the copy to what a snapshot of now sees, and says how many rows that took.
    async fn follow(&self, copied: &mut Copied, compare: bool) -> Result<u64> {
        let (source, target) = self.open().await?;
        let now = changed_since(&source).await?;
        let (rows, held) = self.carry(copied, &source, &target).await?;
        if compare {
            self.compare(copied, &source, &target, &held, i64::MAX).await?;
            let names: Vec<String> = copied.tables.iter().map(|table| copy::quoted(&table.name)).collect();
            target.command(&format!("analyze {}", names.join(", "))).await?;
            self.tell("compared", held.iter().sum::<i64>() as u64);
        }
        target.commit_aside().await?;
        if copied.changed.replace(now).is_some() {
            self.tell("written meanwhile", rows);
        }
        Ok(rows)
    }

    /// Carries over what the transaction on the original sees and the copy lacks. Answers how many rows that
    /// were, and how many each table has then, here as there.
    async fn carry(&self, copied: &Copied, source: &TenantTx, target: &TenantTx) -> Result<(u64, Vec<i64>)> {
        let (mut written, mut held) = (0, Vec::new());
        for table in &copied.tables {
            let (before, mut stay) = (written, 0);
            // All that is outdated goes first: what is new may be called what something else was called.
            if let Some(changed) = &copied.changed {
                let mut keys = copy::read(source, &table.keys(), Some(changed)).await?;
                while let Some(keys) = keys.next().await? {
                    copy::delete(target, table, &keys).await?;
                }
                stay = remove_gone(source, target, table, changed).await?;
            }
            let mut rows = copy::read(source, table, copied.changed.as_deref()).await?;
            while let Some(rows) = rows.next().await? {
                written += copy::insert(target, table, &rows).await?;
            }
            if copied.changed.is_none() {
                self.tell(&table.name, written);
            }
            held.push(stay + (written - before) as i64);
        }
        Ok((written, held))
    }

    /// Makes sure that the copy holds what the transaction on the original sees, in tables of `at_most` so many
    /// rows.
    async fn compare(
        &self,
        copied: &Copied,
        source: &TenantTx,
        target: &TenantTx,
        held: &[i64],
        at_most: i64,
    ) -> Result<()> {
        for (table, _) in copied.tables.iter().zip(held).filter(|(_, rows)| **rows <= at_most) {
            let (here, there) =
                both(copy::fingerprint(source, table), copy::fingerprint(target, table)).await?;
            if here != there {
                let told = format!(
                    "the copy of {} is not what it should be: {} rows, {} there",
                    table.name, here.0, there.0
                );
                return Err(Error::internal(told));
            }
        }
        Ok(())
    }

    /// Stops everybody, carries the rest over, and makes ready to have the copy take the original's place.
    async fn exchange(&self, copied: &Copied, began: Instant) -> Result<Ready> {
        transfer::pause(self.app, self.organization, self.pause).await?;
        let all = async {
            let door = &self.app.directory.door;
            let source = door.begin(&self.from, self.organization).await?;
            let target = door.begin(&self.to, self.organization).await?;
            both(copy::prepare(&source), copy::prepare(&target)).await?;
            // Should this process stand still, its locks are not held for longer than the pause.
            let limit =
                format!("set local idle_in_transaction_session_timeout to {}", self.pause.as_millis());
            source.command_everywhere(&limit).await?;
            self.hold(&source, copied, began).await?;
            let (_, held) = self.carry(copied, &source, &target).await?;
            for statement in &copied.foreign_keys {
                target.command(&format!("{statement} not valid")).await?;
            }
            self.compare(copied, &source, &target, &held, COMPARED_IN_THE_PAUSE).await?;
            transfer::swap(&source, self.organization, &self.from, &self.to).await?;
            let changes = Changes::between(&self.told(&self.from), &self.told(&self.to));
            self.operation.done(&source, &changes).await?;
            Ok(Ready { source, target, rows: held.iter().sum() })
        };
        tokio::time::timeout(self.pause.saturating_sub(began.elapsed()), all).await.map_err(|_| {
            Error::conflict(format!(
                "What is left to do takes longer than the pause of {} s. Allow a longer one, or wait for a quieter time.",
                self.pause.as_secs()
            ))
        })?
    }

    /// The copy is finished first: until the other commit, nobody knows of it.
    async fn complete(&self, ready: Ready) -> Result<i64> {
        ready.target.commit_aside().await?;
        let committed = ready.source.commit_aside().await;
        self.app.directory.forget(self.organization);
        match committed {
            // The answer may be lost and the commit made all the same.
            Err(error) if transfer::living(self.app, self.organization).await?.schema != self.to.schema => {
                Err(error)
            }
            _ => Ok(ready.rows),
        }
    }

    /// Has the foreign keys checked for what was copied. It was compared with what they held for, so this
    /// finds nothing; without it Postgres would not know.
    async fn check_foreign_keys(&self, copied: &Copied) {
        for statement in copied.foreign_keys.iter().filter_map(|statement| check_of(statement)) {
            if let Err(error) = self.run_there(&statement).await {
                tracing::warn!(%error, statement, "a foreign key of a moved organization was not checked");
            }
        }
    }

    async fn run_there(&self, statement: &str) -> Result<()> {
        let tx = self.app.directory.door.begin(&self.to, self.organization).await?;
        copy::prepare(&tx).await?;
        tx.command(statement).await?;
        tx.commit_aside().await
    }

    fn tell(&self, what: &str, rows: u64) {
        (self.progress)(Step { what, done: rows, of: None });
    }

    fn told(&self, place: &Place) -> serde_json::Value {
        json!({"database_id": place.server.id(), "schema_id": place.schema.id()})
    }

    /// Locks everything that the swap changes, first what is in `platform`: others lock in this order too, and
    /// between two servers nobody would notice that two wait for each other. So nothing is waited for there
    /// but in small steps.
    async fn hold(&self, source: &TenantTx, copied: &Copied, began: Instant) -> Result<()> {
        let schemas = [self.from.schema.id(), self.to.schema.id()];
        while !self.try_rows(source, &schemas).await? {
            if began.elapsed() > self.pause / 2 {
                return Err(Error::unavailable("Somebody is changing the organization. Try again.", 1));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // Nobody can change these now.
        let there = modules(source, self.from.schema.id()).await?;
        let of_copy = modules(source, self.to.schema.id()).await?;
        let versions = |modules: &[Module]| -> Vec<(String, i64)> {
            modules.iter().map(|module| (module.name.clone(), module.version)).collect()
        };
        if there != self.modules || versions(&of_copy) != versions(&self.modules) {
            return Err(Error::conflict("Its modules were changed or migrated meanwhile; move it again."));
        }
        let tables: Vec<String> = copied.tables.iter().map(|table| copy::quoted(&table.name)).collect();
        source.command("set local lock_timeout to '1s'").await?;
        source.command(&format!("lock table {} in access exclusive mode", tables.join(", "))).await?;
        if copy::shapes(&copy::tables(source).await?) != copy::shapes(&copied.tables) {
            return Err(Error::conflict("Its tables were changed meanwhile; move it again."));
        }
        Ok(())
    }

    /// Locks the rows in `platform` that say where the organization is and what its schemas hold, unless
    /// somebody else has one of them.
    async fn try_rows(&self, source: &TenantTx, schemas: &[Uuid]) -> Result<bool> {
        let organization = source
            .query_once(
                "select id from platform.organizations where id = $1 for update skip locked",
                &[&self.organization],
            )
            .await?;
        if organization.is_empty() {
            return Ok(false);
        }
        let of_schemas = source
            .query_once(
                "select id from platform.tenant_schemas where id = any ($1) for update skip locked",
                &[&schemas],
            )
            .await?;
        let of_modules = source
            .query_once(
                "select module from platform.tenant_schema_modules where schema_id = any ($1) for update skip locked",
                &[&schemas],
            )
            .await?;
        Ok(of_schemas.len() == schemas.len() && of_modules.len() >= self.modules.len() * 2)
    }
}

/// A condition on rows `t`: whether one was written by a transaction that was not over at this moment.
async fn changed_since(tx: &TenantTx) -> Result<String> {
    let rows = tx.query_once("select pg_snapshot_xmin(pg_current_snapshot())::text", &[]).await?;
    let row = rows.first().ok_or_else(|| Error::internal("no snapshot"))?;
    let number: u64 = row.try_get::<_, String>(0)?.parse().map_err(Error::internal)?;
    Ok(format!("age(t.xmin) <= age('{number}'::xid8::xid)"))
}

/// The check of a foreign key that this puts back, unless it was not checked in the original.
fn check_of(statement: &str) -> Option<String> {
    let (named, definition) = statement.split_once(" FOREIGN KEY ")?;
    let checked = !definition.ends_with("NOT VALID");
    checked.then(|| named.replacen(" add constraint ", " validate constraint ", 1))
}

/// Removes from the copy what is in the original no more, and says how many rows are left, here as there. The
/// copy has none of the rows that have changed.
async fn remove_gone(source: &TenantTx, target: &TenantTx, table: &Table, changed: &str) -> Result<i64> {
    let unchanged = format!("not ({changed})");
    let (left, there) = both(count(source, table, Some(&unchanged)), count(target, table, None)).await?;
    if left == there {
        return Ok(left);
    }
    // Only keys of those heaps are compared whose number differs.
    let (here, there) = both(heaps(source, table, Some(&unchanged)), heaps(target, table, None)).await?;
    let differing: Vec<String> =
        (0..HEAPS).filter(|heap| here[*heap] != there[*heap]).map(|n| n.to_string()).collect();
    let only = format!("{} in ({})", heap(table), differing.join(", "));
    let keys = table.keys();
    let (mut stay, mut rows) = (HashSet::new(), copy::read(source, &keys, Some(&only)).await?);
    while let Some(rows) = rows.next().await? {
        stay.extend(rows);
    }
    let mut rows = copy::read(target, &keys, Some(&only)).await?;
    while let Some(mut rows) = rows.next().await? {
        rows.retain(|key| !stay.contains(key));
        copy::delete(target, table, &rows).await?;
    }
    let there = count(target, table, None).await?;
    if left != there {
        let told = format!("the copy of {} should have {left} old rows, and has {there}", table.name);
        return Err(Error::internal(told));
    }
    Ok(left)
}

const HEAPS: usize = 256;

/// An expression for the heap that a row `t` belongs to, by its key.
fn heap(table: &Table) -> String {
    let key: Vec<String> = table.key.iter().map(|column| format!("t.{}", copy::quoted(column))).collect();
    format!("hashtextextended(row({})::text, 0) & {}", key.join(", "), HEAPS - 1)
}

/// How many rows of a table are in each heap.
async fn heaps(tx: &TenantTx, table: &Table, only: Option<&str>) -> Result<[i64; HEAPS]> {
    let sql = format!(
        "select ({})::int4 as heap, count(*) as rows from {} as t where {} group by 1",
        heap(table),
        copy::quoted(&table.name),
        only.unwrap_or("true")
    );
    let mut heaps = [0; HEAPS];
    for row in &tx.query_once(&sql, &[]).await? {
        heaps[row.try_get::<_, i32>("heap")? as usize] = row.try_get("rows")?;
    }
    Ok(heaps)
}

/// How many rows of a table there are, or those of them on which a condition holds.
async fn count(tx: &TenantTx, table: &Table, only: Option<&str>) -> Result<i64> {
    let (name, only) = (copy::quoted(&table.name), only.unwrap_or("true"));
    let rows = tx.query_once(&format!("select count(*) from {name} as t where {only}"), &[]).await?;
    Ok(rows.first().map_or(Ok(0), |row| row.try_get(0))?)
}

/// Does two things on two servers at the same time.
async fn both<A, B>(
    a: impl Future<Output = Result<A>>,
    b: impl Future<Output = Result<B>>,
) -> Result<(A, B)> {
    let (a, b) = join!(a, b);
    Ok((a?, b?))
}
