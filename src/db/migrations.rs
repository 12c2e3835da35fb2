//! Migrations: one shared set, one set for each module of a tenant schema.
//!
//! Files are in refinery's format (`V<n>__name.sql`) and compiled in. Each statement travels as a
//! message of its own, all of one set in one transaction. What has been applied is recorded in
//! `platform`: for the shared set in `platform.shared_migrations`, for tenants in
//! `platform.tenant_schema_modules`, so a tenant schema holds no history table.

use refinery::Migration;
use uuid::Uuid;

use super::Tx;
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

/// The migrations of one module, oldest first.
pub struct Set {
    pub module: &'static str,
    migrations: Vec<Migration>,
}

impl Set {
    fn new(module: &'static str, mut migrations: Vec<Migration>) -> Self {
        migrations.sort_by_key(Migration::version);
        Self { module, migrations }
    }

    /// The version that the newest migration leads to.
    pub fn latest(&self) -> i64 {
        self.migrations.last().map_or(0, Migration::version)
    }

    /// Statements after `version`, oldest first, for a transaction that has the right path.
    pub async fn apply(&self, tx: &Tx, version: i64) -> Result<()> {
        for migration in self.migrations.iter().filter(|m| m.version() > version) {
            for statement in statements(migration.sql().unwrap_or_default()) {
                tx.command(&statement).await.map_err(|error| {
                    let cause = error.cause().unwrap_or_else(|| error.to_string());
                    Error::internal(format!("migration {} {migration}: {cause}: {statement}", self.module))
                })?;
            }
        }
        Ok(())
    }
}

/// The set for `platform`.
pub fn shared_set() -> Set {
    Set::new("shared", shared::migrations::runner().get_migrations().clone())
}

/// The sets that a tenant schema holds from the start, in the order they are applied.
pub fn tenant_sets() -> Vec<Set> {
    vec![
        Set::new("core", core_module::migrations::runner().get_migrations().clone()),
        Set::new("work", work_module::migrations::runner().get_migrations().clone()),
    ]
}

/// Brings `platform` up to date. Two at once are safe: the second waits for the first.
pub async fn migrate_shared(db: &super::Db) -> Result<SharedReport> {
    let tx = db.begin().await?;
    tx.command("set local citus.enable_schema_based_sharding to off").await?;
    tx.command("set local statement_timeout to 0").await?;
    tx.command("select pg_advisory_xact_lock(726568)").await?;
    tx.command("create schema if not exists platform").await?;
    tx.command("create schema if not exists extensions").await?;
    tx.command(
        "create table if not exists platform.shared_migrations (version bigint primary key, name text not null, \
         checksum text not null, applied_at timestamptz not null default now())",
    )
    .await?;
    let set = shared_set();
    let applied =
        tx.query("select version, checksum from platform.shared_migrations order by version", &[]).await?;
    let mut from = 0;
    for row in &applied {
        let (version, checksum): (i64, String) = (row.try_get("version")?, row.try_get("checksum")?);
        from = from.max(version);
        let ours = set.migrations.iter().find(|m| m.version() == version);
        if ours.is_some_and(|ours| format!("{:016x}", ours.checksum()) != checksum) {
            return Err(Error::internal(format!(
                "shared migration {version} was changed after it had been applied; add a new one instead"
            )));
        }
    }
    set.apply(&tx, from).await?;
    for migration in set.migrations.iter().filter(|m| m.version() > from) {
        tx.execute(
            "insert into platform.shared_migrations (version, name, checksum) values ($1, $2, $3)",
            &[&migration.version(), &migration.name(), &format!("{:016x}", migration.checksum())],
        )
        .await?;
    }
    tx.commit().await?;
    Ok(SharedReport { from, to: set.latest().max(from) })
}

/// What `migrate_shared` did.
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
    tx.execute(
        "insert into platform.tenant_schema_modules (schema_id, module, version, last_error) \
         values ($1, $2, $3, null) on conflict (schema_id, module) \
         do update set version = greatest(tenant_schema_modules.version, excluded.version), last_error = null, \
         updated_at = excluded.updated_at",
        &[&schema, &set.module, &set.latest()],
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
        for set in tenant_sets().into_iter().chain([shared_set()]) {
            let versions: Vec<i64> = set.migrations.iter().map(Migration::version).collect();
            assert_eq!(versions, (1..=set.latest()).collect::<Vec<_>>(), "{}", set.module);
        }
    }
}
