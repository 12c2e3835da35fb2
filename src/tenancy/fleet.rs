//! The fleet: building tenant schemas ahead of time, and bringing all of them up to date.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, stream};
use uuid::Uuid;

use super::{Directory, Entry, Tenant, directory::Key};
use crate::{
    app::App,
    billing::Plan,
    db::{
        Db, PlatformTx, Schema, TenantTx, Tx,
        migrations::{self, Set, tenant_sets},
    },
    error::{Error, Result},
};

/// Takes a spare schema for a new organization, in the transaction that makes the organization.
/// `None` when there is no current one in stock: build one and begin again.
async fn take_spare(tx: &Tx, sets: &[Set]) -> Result<Option<Schema>> {
    let modules: Vec<&str> = sets.iter().map(|set| set.module).collect();
    let versions: Vec<i64> = sets.iter().map(Set::latest).collect();
    let row = tx
        .query_opt(
            "update platform.tenant_schemas set state = 'taken' where id = ( \
               select s.id from platform.tenant_schemas s where s.state = 'spare' and not exists ( \
                 select 1 from unnest($1::text[], $2::bigint[]) as wanted (module, version) \
                 left join platform.tenant_schema_modules m on m.schema_id = s.id and m.module = wanted.module \
                 where m.version is distinct from wanted.version) \
               order by s.id limit 1 for update of s skip locked) returning id",
            &[&modules, &versions],
        )
        .await?;
    row.map(|row| Ok(Schema::new(row.try_get("id")?))).transpose()
}

/// A transaction in the schema of an organization that is about to be made, and the organization to
/// be: its id is chosen here, its row is the caller's to insert. The schema is a spare, or built on
/// the spot.
pub async fn begin_new_tenant(db: &Db, directory: &Directory) -> Result<(TenantTx, Tenant)> {
    let id = Uuid::now_v7();
    let (tx, schema) = begin_with_schema(db, directory).await?;
    let tx = directory.door.enter(tx, schema, id).await?;
    let entry = Entry {
        id,
        schema,
        plan: Plan::Free,
        features: Vec::new(),
        api_calls: None,
        read_only_from: None,
        requires_mfa: false,
        suspended: false,
        deleted: false,
    };
    Ok((tx, Tenant { entry: Arc::new(entry), door: directory.door.clone() }))
}

async fn begin_with_schema(db: &Db, directory: &Directory) -> Result<(PlatformTx, Schema)> {
    let sets = tenant_sets();
    // Whoever finds none builds one, so there are at least as many as takers; the bound is for the
    // case that something else is wrong.
    for _ in 0..20 {
        let tx = db.begin().await?;
        if let Some(schema) = take_spare(&tx, &sets).await? {
            return Ok((tx, schema));
        }
        drop(tx);
        build_spare(directory, &sets).await?;
    }
    Err(Error::unavailable("No schema could be prepared for the organization. Try again in a moment.", 2))
}

/// Builds one schema with the modules that every organization starts with.
async fn build_spare(directory: &Directory, sets: &[Set]) -> Result<Schema> {
    let schema = Schema::new(Uuid::now_v7());
    let tx = directory.door.begin(schema, Uuid::nil()).await?;
    tx.execute("insert into platform.tenant_schemas (id, state) values ($1, 'spare')", &[&schema.id()])
        .await?;
    tx.command(&format!("create schema {schema}")).await?;
    for set in sets {
        set.apply(&tx, 0).await?;
        migrations::record(&tx, schema.id(), set).await?;
    }
    tx.commit_aside().await?;
    Ok(schema)
}

/// The organization of this id, for work that is not done for a request.
pub async fn tenant_by_id(directory: &Directory, id: Uuid) -> Result<Option<Tenant>> {
    directory.find(&Key::Id(id)).await
}

/// Keeps spare schemas in stock until the process ends: looks when one was taken, and once a minute.
pub async fn keep_spares(app: Arc<App>) {
    let wanted = app.config.tenancy.spare_schemas.into();
    loop {
        if let Err(error) = fill_stock(&app.db, &app.directory, wanted).await {
            tracing::warn!(%error, "spare schemas could not be built; trying again in a minute");
        }
        let _ = tokio::time::timeout(Duration::from_secs(60), app.directory.spare_taken.notified()).await;
    }
}

/// Builds spares until there are `wanted`. Instances that do it at once may build a few too many.
pub async fn fill_stock(db: &Db, directory: &Directory, wanted: i64) -> Result<u32> {
    let sets = tenant_sets();
    let mut built = 0;
    loop {
        let tx = db.begin().await?;
        let row =
            tx.query_one("select count(*) from platform.tenant_schemas where state = 'spare'", &[]).await?;
        drop(tx);
        if row.try_get::<_, i64>(0)? >= wanted {
            return Ok(built);
        }
        build_spare(directory, &sets).await?;
        built += 1;
    }
}

/// What became of the schemas in one run of [`migrate`].
#[derive(Debug, Default)]
pub struct Report {
    pub current: usize,
    pub migrated: usize,
    pub failed: Vec<(Schema, String)>,
}

/// Brings every schema up to date, `jobs` at a time, one transaction for each schema and module.
/// What is current is skipped without opening it; what fails is recorded and stops the run once
/// `max_failures` are reached. A run that was interrupted goes on where it stopped.
pub async fn migrate(
    db: &Db,
    directory: &Directory,
    jobs: usize,
    max_failures: usize,
    progress: impl Fn(usize, usize),
) -> Result<Report> {
    let sets = tenant_sets();
    let tx = db.begin().await?;
    let schemas: Vec<Schema> = tx
        .query("select id from platform.tenant_schemas order by id", &[])
        .await?
        .iter()
        .map(|row| Ok(Schema::new(row.try_get("id")?)))
        .collect::<Result<_>>()?;
    let mut stale = Vec::new();
    for set in &sets {
        let rows = tx
            .query(
                "select s.id from platform.tenant_schemas s left join platform.tenant_schema_modules m \
                 on m.schema_id = s.id and m.module = $1 where coalesce(m.version, 0) < $2 order by s.id",
                &[&set.module, &set.latest()],
            )
            .await?;
        for row in &rows {
            stale.push((Schema::new(row.try_get("id")?), set));
        }
    }
    drop(tx);
    let behind: std::collections::HashSet<Schema> = stale.iter().map(|(schema, _)| *schema).collect();
    let mut report = Report { current: schemas.len() - behind.len(), ..Report::default() };
    // Modules of one schema stay in order, schemas go side by side.
    let mut by_schema: std::collections::BTreeMap<Uuid, Vec<&Set>> = Default::default();
    for (schema, set) in stale {
        by_schema.entry(schema.id()).or_default().push(set);
    }
    let total = by_schema.len();
    let mut outcomes = stream::iter(by_schema)
        .map(|(id, sets)| async move {
            let schema = Schema::new(id);
            for set in sets {
                if let Err(error) = migrate_one(directory, schema, set).await {
                    let told = error.cause().unwrap_or_else(|| error.to_string());
                    note_failure(db, schema, set, &told).await?;
                    return Ok::<_, Error>((schema, Some(told)));
                }
            }
            Ok((schema, None))
        })
        .buffer_unordered(jobs.clamp(1, db.connections()));
    let mut done = 0;
    while let Some(outcome) = outcomes.next().await {
        done += 1;
        match outcome? {
            (_, None) => report.migrated += 1,
            (schema, Some(error)) => {
                report.failed.push((schema, error));
                if report.failed.len() >= max_failures {
                    break;
                }
            }
        }
        progress(done, total);
    }
    Ok(report)
}

async fn migrate_one(directory: &Directory, schema: Schema, set: &Set) -> Result<()> {
    let tx = directory.door.begin(schema, Uuid::nil()).await?;
    tx.command("set local statement_timeout to 0").await?;
    tx.execute(
        "insert into platform.tenant_schema_modules (schema_id, module, version) values ($1, $2, 0) \
         on conflict (schema_id, module) do nothing",
        &[&schema.id(), &set.module],
    )
    .await?;
    // Another run that is at it is waited for.
    let row = tx
        .query_one(
            "select version from platform.tenant_schema_modules where schema_id = $1 and module = $2 for update",
            &[&schema.id(), &set.module],
        )
        .await?;
    let version: i64 = row.try_get("version")?;
    if version < set.latest() {
        // A tenant that is being used is not made to wait behind a migration that waits for it.
        tx.command("set local lock_timeout to '3s'").await?;
        set.apply(&tx, version).await?;
        migrations::record(&tx, schema.id(), set).await?;
    }
    tx.commit().await
}

async fn note_failure(db: &Db, schema: Schema, set: &Set, error: &str) -> Result<()> {
    let tx = db.begin().await?;
    tx.execute(
        "insert into platform.tenant_schema_modules (schema_id, module, version, last_error) \
         values ($1, $2, 0, $3) on conflict (schema_id, module) do update set last_error = excluded.last_error",
        &[&schema.id(), &set.module, &error],
    )
    .await?;
    tx.commit().await
}

/// How many schemas are behind this version of the service.
pub async fn behind(tx: &Tx) -> Result<i64> {
    let sets = tenant_sets();
    let modules: Vec<&str> = sets.iter().map(|set| set.module).collect();
    let versions: Vec<i64> = sets.iter().map(Set::latest).collect();
    let row = tx
        .query_one(
            "select count(*) from platform.tenant_schemas s \
             cross join unnest($1::text[], $2::bigint[]) as wanted (module, version) \
             left join platform.tenant_schema_modules m on m.schema_id = s.id and m.module = wanted.module \
             where coalesce(m.version, 0) < wanted.version",
            &[&modules, &versions],
        )
        .await?;
    Ok(row.try_get(0)?)
}

/// An organization by slug or id, for commands.
pub async fn tenant(directory: &Directory, name: &str) -> Result<Option<Tenant>> {
    let key = match name.parse() {
        Ok(id) => Key::Id(id),
        Err(_) => Key::Slug(name.to_owned()),
    };
    directory.find(&key).await
}
