//! Where the fleet stands: for operators, for staff, for metrics.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::join;
use poem_openapi::{Object, types::Example};
use serde::Serialize;
use uuid::Uuid;

use super::migrate::{LIVING_MODULES, wanted};
use crate::{
    app::App,
    db::{
        Row, Tx,
        migrations::{self, all_sets},
    },
    error::Result,
    types::{EXAMPLE_ID, example_time, text_enum},
};

/// A run of migrations that was silent for so long has died.
const SILENT: TimeDelta = TimeDelta::seconds(30);
const GAUGES_EVERY: Duration = Duration::from_secs(60);

/// Where the schemas of all organizations stand.
#[derive(Debug, Serialize, Object)]
#[oai(example)]
pub struct FleetStanding {
    /// Of the schema that organizations share.
    pub platform_version: i64,
    pub modules: Vec<FleetModule>,
    pub databases: Vec<FleetDatabase>,
    /// Schemas of which a module is behind this version of the service.
    pub behind: i64,
    /// Schemas whose last migration failed.
    pub failed: i64,
    /// The last run of `rowhouse migrate`; null before the first.
    pub last_run: Option<MigrationRun>,
}

/// A module, in all schemas that hold it.
#[derive(Debug, Serialize, Object)]
pub struct FleetModule {
    pub module: String,
    /// Where this version of the service wants it.
    pub latest: i64,
    /// Whether organizations have it only where they ask for it.
    pub optional: bool,
    /// Where it is; the newest first.
    pub versions: Vec<FleetVersion>,
}

/// How many schemas are at a version of a module.
#[derive(Debug, Serialize, Object)]
pub struct FleetVersion {
    pub version: i64,
    pub schemas: i64,
}

/// A server, with its schemas by what they are.
#[derive(Debug, Serialize, Object)]
pub struct FleetDatabase {
    pub id: Uuid,
    pub name: String,
    /// Schemas that it is meant for at most.
    pub capacity: i32,
    /// Whether new organizations go there.
    pub accepts: bool,
    /// Of organizations.
    pub taken: i64,
    /// Kept ready for organizations to come.
    pub spare: i64,
    /// Being filled.
    pub building: i64,
    /// Replaced by others, and kept for some days.
    pub retired: i64,
}

text_enum! {
    /// What became of a run.
    RunState {
        Running = "running",
        /// It said nothing for 30 seconds; the next one goes on where it was.
        Died = "died",
        Done = "done",
        /// Some schemas failed.
        Failed = "failed",
        /// By whoever began it.
        Stopped = "stopped",
    }
}

/// A run of `rowhouse migrate`, in schemas.
#[derive(Debug, Serialize, Object)]
pub struct MigrationRun {
    pub id: Uuid,
    pub state: RunState,
    pub total: i32,
    pub migrated: i32,
    /// There was nothing to do for them.
    pub current: i32,
    pub failed: i32,
    pub started_at: DateTime<Utc>,
    /// Its last sign of life.
    pub beat_at: DateTime<Utc>,
    pub finished_at: Option<DateTime<Utc>>,
}

impl Example for FleetStanding {
    fn example() -> Self {
        Self {
            platform_version: 17,
            modules: vec![FleetModule {
                module: "work".into(),
                latest: 2,
                optional: false,
                versions: vec![FleetVersion { version: 2, schemas: 1003 }],
            }],
            databases: vec![FleetDatabase {
                id: Uuid::nil(),
                name: "primary".into(),
                capacity: 1500,
                accepts: true,
                taken: 998,
                spare: 5,
                building: 0,
                retired: 1,
            }],
            behind: 0,
            failed: 0,
            last_run: Some(MigrationRun {
                id: EXAMPLE_ID,
                state: RunState::Done,
                total: 1003,
                migrated: 1003,
                current: 0,
                failed: 0,
                started_at: example_time(),
                beat_at: example_time(),
                finished_at: Some(example_time()),
            }),
        }
    }
}

/// A schema whose last migration failed.
#[derive(Debug, Serialize)]
pub struct Failing {
    pub schema: String,
    /// The slug; absent for a spare.
    pub organization: Option<String>,
    pub module: String,
    pub version: i64,
    pub attempts: i32,
    pub error: String,
    pub failed_at: DateTime<Utc>,
}

/// Where the fleet stands.
pub async fn standing(app: &App) -> Result<FleetStanding> {
    let tx = app.db.begin().await?;
    let (behind, failed) = lagging(&tx).await?;
    Ok(FleetStanding {
        platform_version: migrations::shared_version(&tx).await?,
        modules: modules(&tx).await?,
        databases: databases(&tx).await?,
        behind,
        failed,
        last_run: last_run(&tx, app.clock.now()).await?,
    })
}

/// Schemas whose last migration failed, the latest first.
pub async fn failing(app: &App, limit: i64) -> Result<Vec<Failing>> {
    let tx = app.db.begin().await?;
    let rows = tx
        .query(
            "select 'tenant_' || replace(s.id::text, '-', '') as schema, o.slug, m.module, m.version, m.attempts, \
             m.last_error, m.failed_at from platform.tenant_schema_modules m \
             join platform.tenant_schemas s on s.id = m.schema_id \
             left join platform.organizations o on o.schema_id = s.id \
             where m.failed_at is not null and s.state in ('spare', 'taken') order by m.failed_at desc, s.id limit $1",
            &[&limit],
        )
        .await?;
    rows.iter().map(failing_from_row).collect()
}

fn failing_from_row(row: &Row) -> Result<Failing> {
    Ok(Failing {
        schema: row.try_get("schema")?,
        organization: row.try_get("slug")?,
        module: row.try_get("module")?,
        version: row.try_get("version")?,
        attempts: row.try_get("attempts")?,
        error: row.try_get::<_, Option<String>>("last_error")?.unwrap_or_default(),
        failed_at: row.try_get("failed_at")?,
    })
}

/// How many schemas are behind this version of the service, and how many failed.
async fn lagging(tx: &Tx) -> Result<(i64, i64)> {
    let sql = format!(
        "select count(distinct s.id) filter (where coalesce(m.version, 0) < wanted.version) as behind, \
         count(distinct s.id) filter (where m.failed_at is not null) as failed from {LIVING_MODULES}"
    );
    let row = tx.query_one(&sql, &[&wanted(&all_sets())]).await?;
    Ok((row.try_get("behind")?, row.try_get("failed")?))
}

async fn modules(tx: &Tx) -> Result<Vec<FleetModule>> {
    let rows = tx
        .query(
            "select m.module, m.version, count(*) as schemas from platform.tenant_schema_modules m \
             join platform.tenant_schemas s on s.id = m.schema_id where s.state in ('spare', 'taken') \
             group by m.module, m.version order by m.module, m.version desc",
            &[],
        )
        .await?;
    let mut modules: Vec<FleetModule> = all_sets()
        .iter()
        .map(|set| FleetModule {
            module: set.module.into(),
            latest: set.latest(),
            optional: set.optional,
            versions: Vec::new(),
        })
        .collect();
    for row in &rows {
        let name: String = row.try_get("module")?;
        // Of a module that only a newer version of the service knows there is nothing to say.
        if let Some(module) = modules.iter_mut().find(|module| module.module == name) {
            let version = FleetVersion { version: row.try_get("version")?, schemas: row.try_get("schemas")? };
            module.versions.push(version);
        }
    }
    Ok(modules)
}

async fn databases(tx: &Tx) -> Result<Vec<FleetDatabase>> {
    let rows = tx
        .query(
            "select d.id, d.name, d.capacity, d.accepts, count(*) filter (where s.state = 'taken') as taken, \
             count(*) filter (where s.state = 'spare') as spare, \
             count(*) filter (where s.state = 'building') as building, \
             count(*) filter (where s.state = 'retired') as retired \
             from platform.databases d left join platform.tenant_schemas s on s.database_id = d.id \
             group by d.id order by d.id",
            &[],
        )
        .await?;
    rows.iter()
        .map(|row| {
            Ok(FleetDatabase {
                id: row.try_get("id")?,
                name: row.try_get("name")?,
                capacity: row.try_get("capacity")?,
                accepts: row.try_get("accepts")?,
                taken: row.try_get("taken")?,
                spare: row.try_get("spare")?,
                building: row.try_get("building")?,
                retired: row.try_get("retired")?,
            })
        })
        .collect()
}

/// The run that is under way, or else the last.
async fn last_run(tx: &Tx, now: DateTime<Utc>) -> Result<Option<MigrationRun>> {
    let row = tx
        .query_opt(
            "select id, outcome, total, migrated, current, failed, started_at, beat_at, finished_at \
             from platform.migration_runs order by (outcome is null and beat_at > $1) desc, id desc limit 1",
            &[&(now - SILENT)],
        )
        .await?;
    row.map(|row| {
        let beat_at: DateTime<Utc> = row.try_get("beat_at")?;
        let state = match row.try_get::<_, Option<RunState>>("outcome")? {
            Some(outcome) => outcome,
            None if now - beat_at > SILENT => RunState::Died,
            None => RunState::Running,
        };
        Ok(MigrationRun {
            id: row.try_get("id")?,
            state,
            total: row.try_get("total")?,
            migrated: row.try_get("migrated")?,
            current: row.try_get("current")?,
            failed: row.try_get("failed")?,
            started_at: row.try_get("started_at")?,
            beat_at,
            finished_at: row.try_get("finished_at")?,
        })
    })
    .transpose()
}

/// Shows in the metrics where the fleet stands, until the process ends.
pub async fn keep_gauges(app: Arc<App>) {
    loop {
        if let Err(error) = show_gauges(&app).await {
            tracing::warn!(%error, "the fleet could not be counted");
        }
        tokio::time::sleep(GAUGES_EVERY).await;
    }
}

async fn show_gauges(app: &App) -> Result<()> {
    let tx = app.db.begin().await?;
    let (lagging, databases) = join!(lagging(&tx), databases(&tx));
    let ((behind, failed), databases) = (lagging?, databases?);
    drop(tx);
    metrics::gauge!("rowhouse_schemas_behind").set(behind as f64);
    metrics::gauge!("rowhouse_schemas_failed").set(failed as f64);
    for (state, count) in [
        ("taken", databases.iter().map(|database| database.taken).sum::<i64>()),
        ("spare", databases.iter().map(|database| database.spare).sum()),
        ("building", databases.iter().map(|database| database.building).sum()),
        ("retired", databases.iter().map(|database| database.retired).sum()),
    ] {
        metrics::gauge!("rowhouse_schemas", "state" => state).set(count as f64);
    }
    for database in databases {
        metrics::gauge!("rowhouse_spare_schemas", "database" => database.name).set(database.spare as f64);
    }
    Ok(())
}
