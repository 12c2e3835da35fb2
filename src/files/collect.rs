//! What is removed in the background: bytes of files that were removed, files that nothing names, and objects
//! that no row tells of.

use std::{collections::HashSet, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Purpose, Store, UNNAMED, folder, make_pending_thumbnails, remove, store::DELETED_AT_ONCE};
use crate::{
    app::App,
    billing::Resource,
    db::TenantTx,
    error::Result,
    jobs::{self, Policy, Running, Terms, Work},
    tenancy::Tenant,
};

/// Objects that are compared with rows in one statement.
const COMPARED_AT_ONCE: usize = 1_000;
/// Files that are removed in one transaction.
const REMOVED_AT_ONCE: i64 = 200;
/// How long an upload that was killed may lie there.
const UNFINISHED: Duration = Duration::from_secs(24 * 3600);

/// Deletes objects of files that were removed.
#[derive(Serialize, Deserialize)]
pub struct RemoveObjects {
    pub paths: Vec<String>,
}

impl Work for RemoveObjects {
    const KIND: &'static str = "remove_objects";
    const POLICY: Policy = Policy { attempts: 8, slots: 4, per_lane: 2, ..Policy::DEFAULT };

    async fn run(self, job: &Running) -> anyhow::Result<()> {
        let mut paths = self.paths;
        // Pictures of people belong to no organization.
        if paths.iter().any(|path| path.starts_with("organizations/"))
            && let Some(tenant) = job.tenant().await?
        {
            if is_wanted_elsewhere(&job.app, tenant.id()).await? {
                return Ok(());
            }
            let ids: Vec<Uuid> = paths.iter().filter_map(|path| id_of(path)).collect();
            let tx = tenant.begin().await?;
            let there = present(&tx.query("select id from files where id = any ($1)", &[&ids]).await?)?;
            paths.retain(|path| id_of(path).is_none_or(|id| !there.contains(&id)));
        }
        Ok(delete(&job.app.files, paths).await?)
    }
}

/// Whether somebody else may tell of an organization's objects: a schema that was replaced and can be put back, or
/// what is being made of an archive now. They are left to the collection then, which comes every night.
async fn is_wanted_elsewhere(app: &App, organization: Uuid) -> Result<bool> {
    let tx = app.db.begin().await?;
    let row = tx
        .query_one(
            "select exists (select 1 from platform.tenant_schemas where state = 'retired' and retired_from = $1) \
             or exists (select 1 from platform.fleet_operations where organization_id = $1 and state = 'running' \
               and beat_at > now() - interval '1 minute') \
             as wanted",
            &[&organization],
        )
        .await?;
    Ok(row.try_get("wanted")?)
}

async fn delete(store: &Store, paths: Vec<String>) -> Result<()> {
    let deletions = stream::iter(paths).map(|path| {
        let store = store.clone();
        async move { store.delete(&path).await }
    });
    deletions.buffer_unordered(DELETED_AT_ONCE).try_collect::<Vec<()>>().await?;
    Ok(())
}

/// Begins the nightly collection.
pub async fn begin_collecting(app: &App) -> anyhow::Result<()> {
    jobs::enqueue_everywhere(app, None, &CollectFiles {}).await?;
    if app.files.is_there() {
        let tx = app.db.begin().await?;
        let terms = Terms { unique: Some("all".into()), ..Terms::default() };
        jobs::enqueue_on(&tx, app, &CollectStrays {}, terms).await?;
        tx.commit().await?;
    }
    Ok(())
}

/// Removes what belongs to no organization that is there: uploads that were killed, objects of organizations that
/// are gone, pictures of people that were replaced.
#[derive(Serialize, Deserialize)]
pub struct CollectStrays {}

impl Work for CollectStrays {
    const KIND: &'static str = "collect_strays";
    const POLICY: Policy =
        Policy { limit: Duration::from_secs(4 * 3600), slots: 1, exclusive: true, ..Policy::DEFAULT };

    async fn run(self, job: &Running) -> anyhow::Result<()> {
        job.app.files.remove_unfinished(UNFINISHED).await?;
        collect_strays(&job.app).await?;
        collect_avatars(&job.app).await?;
        Ok(())
    }
}

/// Removes an organization's files that have had their time, and objects without a row.
#[derive(Serialize, Deserialize)]
pub struct CollectFiles {}

impl Work for CollectFiles {
    const KIND: &'static str = "collect_files";
    const POLICY: Policy =
        Policy { limit: Duration::from_secs(3600), slots: 2, per_lane: 1, ..Policy::DEFAULT };

    async fn run(self, job: &Running) -> anyhow::Result<()> {
        let app = &job.app;
        let Some(tenant) = job.tenant().await?.filter(|tenant| !tenant.is_deleted()) else { return Ok(()) };
        remove_expired(app, &tenant).await?;
        let tx = tenant.begin().await?;
        count_anew(&tx).await?;
        // Those that were not made in a day will not be; the jobs of the others may have been lost.
        let sql = "update files set thumbnail = 'refused' where thumbnail = 'pending' and created_at < $1";
        tx.execute(sql, &[&(app.clock.now() - UNNAMED)]).await?;
        make_pending_thumbnails(&tx, app).await?;
        tx.commit().await?;
        if app.files.is_there() && !is_wanted_elsewhere(app, tenant.id()).await? {
            collect_objects(app, &tenant).await?;
        }
        Ok(())
    }
}

async fn remove_expired(app: &App, tenant: &Tenant) -> Result<()> {
    loop {
        let tx = tenant.begin().await?;
        let sql = "select id from files where expires_at <= $1 order by id limit $2 for update skip locked";
        let rows = tx.query(sql, &[&app.clock.now(), &REMOVED_AT_ONCE]).await?;
        let ids = rows.iter().map(|row| row.try_get("id")).collect::<Result<Vec<Uuid>, _>>()?;
        remove(&tx, app, &ids).await?;
        tx.commit().await?;
        if ids.len() < REMOVED_AT_ONCE as usize {
            return Ok(());
        }
    }
}

/// What is kept as used storage is what the files have. Whoever adds one holds the counter's row until both
/// are there.
async fn count_anew(tx: &TenantTx) -> Result<()> {
    let resource = Resource::Storage;
    tx.execute(
        "insert into usage_counters (resource, used) values ($1, 0) on conflict (resource) do nothing",
        &[&resource],
    )
    .await?;
    tx.query("select used from usage_counters where resource = $1 for update", &[&resource]).await?;
    let counted: Vec<Purpose> = Purpose::ALL.iter().copied().filter(|purpose| purpose.counts()).collect();
    let sql = "select coalesce(sum(size), 0)::bigint as used from files where purpose = any ($1)";
    let row = tx.query_one(sql, &[&counted]).await?;
    let used: i64 = row.try_get("used")?;
    let sql = "update usage_counters set used = $2 where resource = $1 and used <> $2";
    tx.execute(sql, &[&resource, &used]).await?;
    Ok(())
}

/// Objects that are younger may belong to something: to an upload that is not committed yet, or to a schema
/// that was replaced and may be put back.
fn old(app: &App) -> DateTime<Utc> {
    let replaced = TimeDelta::days(app.config.tenancy.retired_days.into());
    app.clock.now() - replaced.max(UNNAMED)
}

async fn collect_objects(app: &App, tenant: &Tenant) -> Result<()> {
    let before = old(app);
    let mut batches = app.files.list(&folder(tenant.id()))?.chunks(COMPARED_AT_ONCE);
    while let Some(batch) = batches.next().await {
        let mut known = Vec::new();
        for object in batch {
            let object = object?;
            let id = id_of(&object.path).filter(|_| object.written_at < before);
            known.extend(id.map(|id| (id, object.path)));
        }
        let ids: Vec<Uuid> = known.iter().map(|(id, _)| *id).collect();
        let tx = tenant.begin().await?;
        let there = present(&tx.query("select id from files where id = any ($1)", &[&ids]).await?)?;
        drop(tx);
        delete_unnamed(&app.files, known, &there).await?;
    }
    Ok(())
}

/// Organizations that are gone for good, and whose objects came after that.
async fn collect_strays(app: &App) -> Result<()> {
    let before = old(app);
    let folders = app.files.folders("organizations").await?;
    for names in folders.chunks(COMPARED_AT_ONCE) {
        let ids: Vec<Uuid> = names.iter().filter_map(|name| name.parse().ok()).collect();
        let tx = app.db.begin().await?;
        let sql = "select id from platform.organizations where id = any ($1)";
        let there = present(&tx.query(sql, &[&ids]).await?)?;
        drop(tx);
        for id in ids.into_iter().filter(|id| !there.contains(id)) {
            let mut objects = app.files.list(&folder(id))?;
            while let Some(object) = objects.try_next().await? {
                if object.written_at < before {
                    app.files.delete(&object.path).await?;
                }
            }
        }
    }
    Ok(())
}

/// Pictures of people that were replaced while nobody could delete them.
async fn collect_avatars(app: &App) -> Result<()> {
    let before = old(app);
    let mut batches = app.files.list("users")?.chunks(COMPARED_AT_ONCE);
    while let Some(batch) = batches.next().await {
        let mut known = Vec::new();
        for object in batch {
            let object = object?;
            let id = id_of(&object.path).filter(|_| object.written_at < before);
            known.extend(id.map(|id| (id, object.path)));
        }
        let ids: Vec<Uuid> = known.iter().map(|(id, _)| *id).collect();
        let tx = app.db.begin().await?;
        let sql = "select avatar_id as id from platform.users where avatar_id = any ($1)";
        let there = present(&tx.query(sql, &[&ids]).await?)?;
        drop(tx);
        delete_unnamed(&app.files, known, &there).await?;
    }
    Ok(())
}

fn present(rows: &[crate::db::Row]) -> Result<HashSet<Uuid>> {
    Ok(rows.iter().map(|row| row.try_get("id")).collect::<Result<_, _>>()?)
}

async fn delete_unnamed(store: &Store, known: Vec<(Uuid, String)>, there: &HashSet<Uuid>) -> Result<()> {
    let unnamed = known.into_iter().filter(|(id, _)| !there.contains(id));
    delete(store, unnamed.map(|(_, path)| path).collect()).await
}

/// The file that an object belongs to; `None` for what was not put there by us.
fn id_of(path: &str) -> Option<Uuid> {
    path.rsplit('/').next()?.split('.').next()?.parse().ok()
}
