//! Migrations: one shared set, one set for each module of a tenant schema.
//!
//! Files are in refinery's format (`V<n>__name.sql`) and compiled in. Each statement travels as a
//! message of its own, all of one set in one transaction. What has been applied is recorded in
//! `platform`: for the shared set in `platform.shared_migrations`, for tenants in
//! `platform.tenant_schema_modules`, so a tenant schema holds no history table.
//!
//! An index of tables that may be large is written as `create index concurrently`, in a migration that holds
//! nothing else: where such a table is large, it is built while people write to it, after what is before it
//! is committed ([`Set::aside`]). Everywhere else it is a `create index` like others, in the transaction.
//!
//! A migration that ran is never edited: what is written of a schema says which ones led to its
//! version, and one that was led there by others is not touched any more ([`Set::objection`]).

use std::{collections::HashMap, fmt, time::Duration};

use futures_util::future::join_all;
use refinery::Migration;
use serde::Serialize;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::{Place, Schema, TenantDoor, Tx};
use crate::error::{Error, Result};

mod shared {
    refinery::embed_migrations!("shared-migrations");
}
mod core_module {
    refinery::embed_migrations!("tenant-migrations/core");
}
mod work_module {
    refinery::embed_migrations!("tenant-migrations/work");
}
mod operations_module {
    refinery::embed_migrations!("tenant-migrations/operations");
}

/// What a checksum has in place of a migration that there is not.
const NONE_THERE: &str = "--------";
/// Statements that are sent before the first of them is answered.
const IN_ONE_FLUSH: usize = 25;
/// How long a shared migration is tried again that somebody is in the way of, and the longest pause between.
const SHARED_PATIENCE: Duration = Duration::from_secs(60);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);
/// The bytes from which on nobody should wait for an index of a table: below, it takes some ten milliseconds.
const LARGE: i64 = 8 * 1024 * 1024;

/// The migrations of one module, oldest first.
#[derive(Clone, Debug)]
pub struct Set {
    pub module: &'static str,
    /// Whether a schema holds it only where its organization asked for it.
    pub optional: bool,
    migrations: Vec<Migration>,
}

impl Set {
    fn new(module: &'static str, optional: bool, mut migrations: Vec<Migration>) -> Self {
        migrations.sort_by_key(Migration::version);
        Self { module, optional, migrations }
    }

    /// The version that the newest migration leads to.
    pub fn latest(&self) -> i64 {
        self.migrations.last().map_or(0, Migration::version)
    }

    /// The set as it was at a version.
    pub fn upto(&self, version: i64) -> Self {
        let before = self.migrations.iter().filter(|m| m.version() <= version).cloned().collect();
        Self { migrations: before, ..*self }
    }

    /// The set with one more migration, in place of the one of this version where there is one.
    pub fn with(mut self, version: i64, name: &str, sql: &str) -> Self {
        let migration = Migration::unapplied(&format!("V{version}__{name}"), sql)
            .expect("a name of letters, digits and underscores");
        self.migrations.retain(|m| m.version() != version);
        self.migrations.push(migration);
        Self::new(self.module, self.optional, self.migrations)
    }

    /// An error where a number below the latest version is no migration's.
    pub fn is_whole(&self) -> Result<()> {
        let gap = (1..=self.latest()).find(|version| self.migration(*version).is_none());
        gap.map_or(Ok(()), |gap| {
            let told = format!("migration {gap} of module {} is missing; nothing was done", self.module);
            Err(Error::internal(told))
        })
    }

    /// What the migrations up to a version are: eight digits for each, so that it can be told which
    /// one is another.
    pub fn checksum(&self, version: i64) -> String {
        let shown = |migration: &Migration| format!("{:08x}", migration.checksum() & 0xffff_ffff);
        (1..=version).map(|n| self.migration(n).map_or(NONE_THERE.into(), shown)).collect()
    }

    /// Why a schema cannot be brought further that is at a version of this set by migrations with
    /// this checksum, where it cannot. Before checksums were kept there was none.
    pub fn objection(&self, version: i64, checksum: Option<&str>) -> Option<String> {
        let (ours, theirs) = (self.checksum(version), checksum?);
        if ours == theirs {
            return None;
        }
        let n = (1..=version as usize).find(|n| digits(&ours, *n) != digits(theirs, *n))?;
        let (ours, theirs, module) = (digits(&ours, n), digits(theirs, n), self.module);
        Some(if ours == NONE_THERE {
            format!("migration {n} of module {module} ran, and this program lacks it; put the file back")
        } else if theirs == NONE_THERE {
            format!(
                "migration {n} of module {module} came later than version {version}, where the schema is; \
                 give it a number of its own above all others"
            )
        } else {
            format!(
                "migration {n} of module {module} was edited after it ran; put the file back as it was and add \
                 a new migration"
            )
        })
    }

    /// The tables that the migrations leave behind, in the order in which they are made.
    pub fn tables(&self) -> Vec<String> {
        let mut tables: Vec<String> = Vec::new();
        for (_, statement) in self.after(0) {
            let statement = statement.to_lowercase();
            let mut words = statement
                .split(|c: char| c.is_whitespace() || "(,".contains(c))
                .filter(|word| !["", "if", "not", "exists"].contains(word));
            match (words.next(), words.next()) {
                (Some("create"), Some("table")) => tables.extend(words.next().map(str::to_owned)),
                (Some("drop"), Some("table")) => {
                    let dropped: Vec<&str> = words.collect();
                    tables.retain(|table| !dropped.contains(&table.as_str()));
                }
                (Some("alter"), Some("table")) => {
                    if let [old, "rename", "to", new] = words.collect::<Vec<_>>()[..]
                        && let Some(table) = tables.iter_mut().find(|table| *table == old)
                    {
                        *table = new.to_owned();
                    }
                }
                _ => {}
            }
        }
        tables
    }

    /// Runs the statements after `version`, oldest first, in a transaction that has the right path.
    /// They leave many at a time; the first that fails is the error.
    pub async fn apply(&self, tx: &Tx, version: i64) -> Result<(), Failure> {
        let statements: Vec<(&Migration, String)> = self.after(version).collect();
        for together in statements.chunks(IN_ONE_FLUSH) {
            let outcomes = join_all(together.iter().map(|(_, statement)| tx.command(statement))).await;
            for ((migration, statement), outcome) in together.iter().zip(outcomes) {
                outcome.map_err(|error| Failure {
                    migration: format!("{migration} of module {}", self.module),
                    statement: statement.clone(),
                    error,
                })?;
            }
        }
        Ok(())
    }

    /// The first migration after `version` whose indexes are to be built aside: of a table that is large now, or
    /// begun by an attempt before.
    pub async fn aside(&self, tx: &Tx, schema: Schema, version: i64) -> Result<Option<Aside<'_>>> {
        for migration in self.migrations.iter().filter(|migration| migration.version() > version) {
            let statements = statements(migration.sql().unwrap_or_default());
            let indexes: Vec<Index> = statements.iter().filter_map(|sql| Index::of(sql)).collect();
            if indexes.is_empty() {
                continue;
            }
            let named = |name: &String| format!("{schema}.{name}");
            let tables: Vec<String> = indexes.iter().map(|index| named(&index.table)).collect();
            let names: Vec<String> = indexes.iter().map(|index| named(&index.name)).collect();
            let row = tx
                .query_one(
                    "select coalesce(bool_or(pg_relation_size(to_regclass(w.of)) >= $3), false) as large, \
                     count(to_regclass(w.name)) > 0 as begun, bool_and(coalesce(i.indisvalid, false)) as built \
                     from unnest($1::text[], $2::text[]) as w (of, name) \
                     left join pg_catalog.pg_index i on i.indexrelid = to_regclass(w.name)",
                    &[&tables, &names, &LARGE],
                )
                .await?;
            if row.try_get("large")? || row.try_get("begun")? {
                let is_built = row.try_get("built")?;
                return Ok(Some(Aside { module: self.module, migration, indexes, is_built }));
            }
        }
        Ok(None)
    }

    /// The statements as they run in a transaction.
    fn after(&self, version: i64) -> impl Iterator<Item = (&Migration, String)> {
        let later = self.migrations.iter().filter(move |migration| migration.version() > version);
        later.flat_map(|migration| {
            let statements = statements(migration.sql().unwrap_or_default());
            statements
                .into_iter()
                .map(move |sql| (migration, sql.replacen("index concurrently ", "index ", 1)))
        })
    }

    fn migration(&self, version: i64) -> Option<&Migration> {
        self.migrations.iter().find(|migration| migration.version() == version)
    }
}

/// What a checksum says of one migration.
fn digits(checksum: &str, version: usize) -> &str {
    checksum.get((version - 1) * 8..version * 8).unwrap_or(NONE_THERE)
}

/// A migration whose indexes are built while their tables are in use.
pub struct Aside<'a> {
    module: &'static str,
    migration: &'a Migration,
    indexes: Vec<Index>,
    /// All of them are there.
    pub is_built: bool,
}

impl Aside<'_> {
    /// The version that it leads to.
    pub fn version(&self) -> i64 {
        self.migration.version()
    }

    /// Builds the indexes that are not there yet; false: somebody else is at it.
    pub async fn build(
        &self,
        door: &TenantDoor,
        place: &Place,
        timeout: Option<Duration>,
    ) -> Result<bool, Failure> {
        for index in &self.indexes {
            let built = door.build_index(place, index, timeout).await.map_err(|error| Failure {
                migration: format!("{} of module {}", self.migration, self.module),
                statement: index.statement(place.schema),
                error,
            })?;
            if !built {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// A `create index concurrently`.
pub struct Index {
    /// The words before the name.
    create: String,
    pub name: String,
    pub table: String,
    rest: String,
}

impl Index {
    fn of(statement: &str) -> Option<Self> {
        let (create, after) = statement.split_once("index concurrently ")?;
        let (name, after) = after.split_once(" on ")?;
        let (table, rest) = after.split_once(char::is_whitespace)?;
        let create = format!("{create}index concurrently");
        Some(Self { create, name: name.trim().into(), table: table.into(), rest: rest.into() })
    }

    /// The statement outside of every transaction, where no schema is on the path.
    pub fn statement(&self, schema: Schema) -> String {
        format!("{} {} on {schema}.{} {}", self.create, self.name, self.table, self.rest)
    }
}

/// A statement of a migration that failed.
#[derive(Debug)]
pub struct Failure {
    migration: String,
    statement: String,
    pub error: Error,
}

impl Failure {
    /// Whether somebody holds what it needs.
    fn is_in_the_way(&self) -> bool {
        ["55P03", "40P01"].map(Some).contains(&self.error.sql_state())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cause = self.error.cause().unwrap_or_else(|| self.error.to_string());
        let statement: String = self.statement.chars().take(300).collect();
        write!(f, "migration {}: {cause}: {statement}", self.migration)
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self::internal(failure.to_string())
    }
}

/// The set for `platform`.
pub fn shared_set() -> Set {
    Set::new("shared", false, shared::migrations::runner().get_migrations().clone())
}

/// The sets that every tenant schema holds, in the order they are applied.
pub fn base_sets() -> Vec<Set> {
    vec![
        Set::new("core", false, core_module::migrations::runner().get_migrations().clone()),
        Set::new("work", false, work_module::migrations::runner().get_migrations().clone()),
    ]
}

/// The sets that a tenant schema holds where its organization asked for the module.
pub fn optional_sets() -> Vec<Set> {
    vec![Set::new("operations", true, operations_module::migrations::runner().get_migrations().clone())]
}

/// Everything that a tenant schema can hold.
pub fn all_sets() -> Vec<Set> {
    base_sets().into_iter().chain(optional_sets()).collect()
}

/// Brings `platform` up to date. Two at once are safe: the second waits for the first.
pub async fn migrate_shared(db: &super::Db) -> Result<SharedReport> {
    let told = |failure: &Failure| tracing::warn!(%failure, "somebody is in the way of a shared migration");
    migrate_shared_to(db, &shared_set(), &told).await
}

/// Brings `platform` up to this set. A statement waits a second for a table that somebody uses, as everybody
/// who comes after it waits behind it; then all is undone, `told` hears of it, and it is tried again.
pub async fn migrate_shared_to(
    db: &super::Db,
    set: &Set,
    told: &(dyn Fn(&Failure) + Sync),
) -> Result<SharedReport> {
    set.is_whole()?;
    let (began, mut pause) = (Instant::now(), Duration::from_millis(500));
    loop {
        let failure = match try_shared(db, set).await? {
            Ok(report) => return Ok(report),
            Err(failure) => failure,
        };
        if !failure.is_in_the_way() {
            return Err(failure.into());
        }
        if began.elapsed() > SHARED_PATIENCE {
            return Err(Error::internal(format!(
                "{failure}; somebody has held on to it for a minute, as an export does: see pg_stat_activity, and \
                 try again when they are done"
            )));
        }
        told(&failure);
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// One attempt, which does all or nothing; the inner error is that of a migration.
async fn try_shared(db: &super::Db, set: &Set) -> Result<Result<SharedReport, Failure>> {
    let tx = db.begin().await?;
    tx.command("set local citus.enable_schema_based_sharding to off").await?;
    tx.command("set local statement_timeout to 0").await?;
    tx.command("select pg_advisory_xact_lock(726568)").await?;
    tx.command("set local lock_timeout to '1s'").await?;
    tx.command("create schema if not exists platform").await?;
    tx.command("create schema if not exists extensions").await?;
    tx.command(
        "create table if not exists platform.shared_migrations (version bigint primary key, name text not null, \
         checksum text not null, applied_at timestamptz not null default now())",
    )
    .await?;
    let mut applied: HashMap<i64, String> = HashMap::new();
    for row in &tx.query("select version, right(checksum, 8) from platform.shared_migrations", &[]).await? {
        applied.insert(row.try_get(0)?, row.try_get(1)?);
    }
    let from = applied.keys().copied().max().unwrap_or(0);
    // What a newer program did is not for this one to judge.
    let known = from.min(set.latest());
    let ran: String = (1..=known).map(|n| applied.get(&n).map_or(NONE_THERE, String::as_str)).collect();
    if let Some(objection) = set.objection(known, Some(&ran)) {
        return Err(Error::internal(objection));
    }
    if let Err(failure) = set.apply(&tx, from).await {
        return Ok(Err(failure));
    }
    for migration in set.migrations.iter().filter(|m| m.version() > from) {
        tx.execute(
            "insert into platform.shared_migrations (version, name, checksum) values ($1, $2, $3)",
            &[&migration.version(), &migration.name(), &format!("{:016x}", migration.checksum())],
        )
        .await?;
    }
    tx.commit().await?;
    Ok(Ok(SharedReport { from, to: set.latest().max(from) }))
}

/// What `migrate_shared` did.
#[derive(Debug, Serialize)]
pub struct SharedReport {
    pub from: i64,
    pub to: i64,
}

/// The version of `platform` now; 0 before the first migration.
pub async fn shared_version(tx: &Tx) -> Result<i64> {
    let there = tx.query_one("select to_regclass('platform.shared_migrations') is not null", &[]).await?;
    if !there.try_get::<_, bool>(0)? {
        return Ok(0);
    }
    let row = tx.query_one("select coalesce(max(version), 0) from platform.shared_migrations", &[]).await?;
    Ok(row.try_get(0)?)
}

/// Records where a module of a schema stands; in the transaction that brought it there.
pub async fn record(tx: &Tx, schema: Uuid, set: &Set) -> Result<()> {
    tx.query_once(
        "insert into platform.tenant_schema_modules (schema_id, module, version, checksum) values ($1, $2, $3, $4) \
         on conflict (schema_id, module) do update set version = excluded.version, checksum = excluded.checksum, \
         last_error = null, attempts = 0, failed_at = null, updated_at = excluded.updated_at",
        &[&schema, &set.module, &set.latest(), &set.checksum(set.latest())],
    )
    .await?;
    Ok(())
}

/// Cuts a file into its statements. A statement ends with a semicolon at the end of a line; the
/// guard tests refuse files that would need more than that (function bodies).
pub fn statements(file: &str) -> Vec<String> {
    let mut statements = Vec::new();
    let mut current = String::new();
    for line in file.lines().filter(|line| !line.trim_start().starts_with("--")) {
        current.push_str(line);
        current.push('\n');
        if line.trim_end().ends_with(';') {
            statements.push(current.trim().trim_end_matches(';').to_owned());
            current.clear();
        }
    }
    if !current.trim().is_empty() {
        statements.push(current.trim().to_owned());
    }
    statements
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_cut_at_the_semicolons_that_end_lines() {
        let cut = statements(
            "-- why\ncreate table a (\n  b text default ';x'\n);\n\ncreate index c on a (b);\nselect 1",
        );
        assert_eq!(
            cut,
            ["create table a (\n  b text default ';x'\n)", "create index c on a (b)", "select 1"]
        );
    }

    #[test]
    fn every_set_is_numbered_without_gaps() {
        for set in all_sets().into_iter().chain([shared_set()]) {
            let versions: Vec<i64> = set.migrations.iter().map(Migration::version).collect();
            assert_eq!(versions, (1..=set.latest()).collect::<Vec<_>>(), "{}", set.module);
            set.is_whole().unwrap();
        }
    }

    fn set() -> Set {
        Set::new("demo", false, Vec::new())
            .with(
                1,
                "first",
                "create table a (id uuid primary key);\ncreate table if not exists b (\n  id int\n);",
            )
            .with(
                2,
                "second",
                "drop table if exists a;\nalter table b rename to c;\ncreate index d on c (id);",
            )
    }

    #[test]
    fn an_index_is_told_by_its_name_its_table_and_the_rest() {
        let index = Index::of("create unique index concurrently d\n on c using gin\n (id)").unwrap();
        let schema = Schema::new(Uuid::nil());
        assert_eq!((index.name.as_str(), index.table.as_str()), ("d", "c"));
        assert_eq!(
            index.statement(schema),
            format!("create unique index concurrently d on {schema}.c using gin\n (id)")
        );
        assert!(Index::of("create index d on c (id)").is_none());
        let set = set().with(3, "third", "create index concurrently e on c (id);");
        assert_eq!(set.after(2).map(|(_, sql)| sql).collect::<Vec<_>>(), ["create index e on c (id)"]);
    }

    #[test]
    fn a_set_knows_the_tables_that_it_leaves_behind() {
        assert_eq!(set().tables(), ["c"]);
        assert_eq!(set().upto(1).tables(), ["a", "b"]);
        assert_eq!(set().upto(0).latest(), 0);
    }

    #[test]
    fn what_ran_is_known_by_its_checksum() {
        let ran = set().checksum(2);
        assert!(ran.starts_with(&set().checksum(1)) && ran.len() == 16);
        assert_eq!(set().objection(2, Some(&ran)), None);
        assert_eq!(set().with(3, "third", "select 1;").objection(2, Some(&ran)), None);
        assert_eq!(set().objection(2, None), None, "nothing was kept at that time");
        let told = |set: Set, version| set.objection(version, Some(&ran)).unwrap();
        assert!(
            told(set().with(1, "first", "select 1;"), 2).starts_with("migration 1 of module demo was edited")
        );
        let lacking = Set::new("demo", false, Vec::new()).with(2, "second", "select 1;");
        assert!(
            lacking.is_whole().unwrap_err().to_string().contains("migration 1 of module demo is missing")
        );
        assert!(told(lacking, 2).contains("this program lacks it"));
        let late = set().with(4, "fourth", "select 1;");
        let without_third = late.checksum(4);
        let told = late.with(3, "third", "select 1;").objection(4, Some(&without_third)).unwrap();
        assert!(told.starts_with("migration 3 of module demo came later"), "{told}");
    }
}
