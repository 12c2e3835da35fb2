//! What is done to one organization as a whole: out into an archive, in from one, back to one, and a
//! copy to play with.
//!
//! All that make a schema do it in the same way: it is built and filled beside everything else as
//! *building*, and one last transaction makes it somebody's. Whoever dies before that has changed
//! nothing; the worker clears away what was built.

mod import;
mod play;
mod restore;

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use serde_json::json;
use uuid::Uuid;

pub use import::{Import, Imported, import};
pub use play::clone;
pub use restore::{Back, restore};

use super::{
    archive::{self, Exported, Target},
    copy,
    operation::{Operation, Progress},
    stock,
};
use crate::{
    app::App,
    audit::Changes,
    db::{
        Place, Server, TenantTx, Tx,
        migrations::{self, Set, all_sets},
    },
    error::{Code, Error, Result},
    files,
    tenancy::{self, Tenant},
    types::Slug,
};

/// Milliseconds between attempts to lock an organization's tables, each of which waits for a second at most.
const PATIENCE: [u64; 6] = [50, 100, 200, 400, 800, 0];

/// What an archive has of notifications that wait to be mailed together was mailed since.
const COLLECTED: &str = "update notifications set awaits_digest = false where awaits_digest";

/// Writes an archive of an organization, with what its files hold or without.
pub async fn export(
    app: &Arc<App>,
    tenant: &Tenant,
    target: Target,
    with_files: bool,
    progress: Progress<'_>,
) -> Result<Exported> {
    let to = match &target {
        Target::File(path) => path.display().to_string(),
        Target::Stdout => "standard output".into(),
    };
    let operation = Operation::begin(app, "export", Some(tenant.id()), json!({"to": to})).await?;
    let outcome = export_as(app, &operation, tenant, target, with_files, progress).await;
    operation.end(outcome).await
}

async fn export_as(
    app: &Arc<App>,
    operation: &Operation,
    tenant: &Tenant,
    target: Target,
    with_files: bool,
    progress: Progress<'_>,
) -> Result<Exported> {
    let place = living(app, tenant.id()).await?;
    let exported = archive::export(app, tenant, &place, target, with_files, progress).await?;
    let tx = app.db.begin().await?;
    operation.done(&tx, &Changes::created(&exported)).await?;
    tx.commit().await?;
    Ok(exported)
}

/// Whether the organization of an id is there; that its slug is not somebody's is seen to as well.
async fn is_there(app: &App, id: Uuid, slug: &Slug) -> Result<bool> {
    let tx = app.db.begin().await?;
    let rows = tx
        .query("select id, slug from platform.organizations where id = $1 or slug = $2", &[&id, slug])
        .await?;
    for row in &rows {
        if row.try_get::<_, Slug>("slug")? == *slug {
            return Err(Error::conflict(format!("The slug {slug} is taken. Give another one with --slug.")));
        }
    }
    Ok(!rows.is_empty())
}

/// Imports and exports that were under way have nobody who goes on with them.
async fn break_off(app: &App, tx: &TenantTx) -> Result<()> {
    for table in ["imports", "exports"] {
        let sql = format!(
            "update {table} set state = 'failed', message = $1, finished_at = $2, updated_at = $2, \
             version = version + 1 where finished_at is null"
        );
        let told = "It was under way when the organization was saved or copied. Begin it again.";
        tx.execute(&sql, &[&told, &app.clock.now()]).await?;
    }
    Ok(())
}

/// Removes the files that were brought for an organization that did not come about.
async fn forget_files(app: &App, organization: Uuid) {
    let removal = async {
        let tx = app.db.begin().await?;
        let sql = "select 1 from platform.organizations where id = $1";
        let is_there = tx.query_opt(sql, &[&organization]).await?.is_some();
        drop(tx);
        match app.files.is_there() && !is_there {
            true => app.files.delete_all(&files::folder(organization)).await.map(drop),
            false => Ok(()),
        }
    };
    if let Err(error) = removal.await {
        tracing::warn!(%error, %organization, "files of an organization that is not there stay until they are collected");
    }
}

/// Where an organization lives, by the database and not by what the directory remembers.
pub(super) async fn living(app: &App, organization: Uuid) -> Result<Place> {
    let tx = app.db.begin().await?;
    let row =
        tx.query_opt("select schema_id from platform.organizations where id = $1", &[&organization]).await?;
    drop(tx);
    app.directory.place(row.ok_or_else(tenancy::unknown)?.try_get("schema_id")?).await
}

/// The server that an organization is to go to.
async fn server(app: &App, name: Option<&str>) -> Result<Server> {
    let Some(name) = name else { return stock::emptiest(&app.db, &app.directory, &[]).await };
    let tx = app.db.begin().await?;
    let row = tx.query_opt("select id from platform.databases where name = $1", &[&name]).await?;
    drop(tx);
    let unknown =
        || Error::conflict(format!("There is no database {name:?}; `rowhouse database list` shows all."));
    app.directory.server(row.ok_or_else(unknown)?.try_get("id")?).await
}

/// The modules of a schema as they are there.
pub(super) async fn sets_of(app: &App, place: &Place) -> Result<Vec<Set>> {
    let tx = app.db.begin().await?;
    let sql = "select module, version from platform.tenant_schema_modules where schema_id = $1";
    let rows = tx.query(sql, &[&place.schema.id()]).await?;
    let mut there = std::collections::HashMap::new();
    for row in &rows {
        there.insert(row.try_get::<_, String>("module")?, row.try_get::<_, i64>("version")?);
    }
    let sets =
        all_sets().into_iter().filter_map(|set| there.remove(set.module).map(|version| (set, version)));
    let sets: Vec<(Set, i64)> = sets.collect();
    let newer = sets.iter().find(|(set, version)| *version > set.latest()).map(|(set, _)| set.module);
    if let Some(module) = newer.map(str::to_owned).or_else(|| there.into_keys().next()) {
        return Err(Error::conflict(format!("Only a newer program knows module {module} as it is there.")));
    }
    Ok(sets.into_iter().map(|(set, version)| set.upto(version)).collect())
}

/// Brings a schema that nobody lives in yet to the versions of this program.
async fn bring_up_to_date(app: &App, place: &Place) -> Result<()> {
    let tx = app.directory.door.begin(place, Uuid::nil()).await?;
    bring_up_to_date_in(&tx, place).await?;
    tx.commit().await
}

async fn bring_up_to_date_in(tx: &TenantTx, place: &Place) -> Result<()> {
    tx.command("set local statement_timeout to 0").await?;
    let sql = "select module, version from platform.tenant_schema_modules where schema_id = $1 for update";
    for row in &tx.query_once(sql, &[&place.schema.id()]).await? {
        let (module, version): (String, i64) = (row.try_get("module")?, row.try_get("version")?);
        if let Some(set) = all_sets().into_iter().find(|set| set.module == module && set.latest() > version) {
            set.apply(tx, version).await?;
            migrations::record(tx, place.schema.id(), &set).await?;
        }
    }
    Ok(())
}

/// A schema that was built has somebody who lives in it.
async fn inhabit(tx: &TenantTx, place: &Place) -> Result<()> {
    let taken = tx
        .execute(
            "update platform.tenant_schemas set state = 'taken', operation_id = null where id = $1",
            &[&place.schema.id()],
        )
        .await?;
    if taken != 1 {
        return Err(Error::conflict(
            "This took so long that what was built has been cleared away. Try again.",
        ));
    }
    tenancy::changed(tx, tx.organization()).await
}

/// Has everybody wait who wants something of an organization, for so long at most.
pub(super) async fn pause(app: &App, organization: Uuid, most: Duration) -> Result<()> {
    let until = Utc::now() + chrono::TimeDelta::from_std(most).map_err(Error::internal)?;
    set_pause(app, organization, Some(until)).await?;
    // Others hear of it in a moment; until then they only wait for locks.
    tokio::time::sleep(Duration::from_millis(50)).await;
    Ok(())
}

/// The end of it; nothing where it has ended.
pub(super) async fn resume(app: &App, organization: Uuid) -> Result<()> {
    set_pause(app, organization, None).await
}

async fn set_pause(app: &App, organization: Uuid, until: Option<DateTime<Utc>>) -> Result<()> {
    let tx = app.db.begin().await?;
    let sql = "update platform.organizations set paused_until = $2 where id = $1";
    tx.execute(sql, &[&organization, &until]).await?;
    tenancy::changed(&tx, organization).await?;
    tx.commit().await?;
    app.directory.forget(organization);
    Ok(())
}

/// A transaction in a schema in which nobody else reads or writes. Whoever is at it now may finish, and is
/// not made to wait for long behind somebody who takes their time.
pub(super) async fn lock_all(app: &App, place: &Place, organization: Uuid) -> Result<TenantTx> {
    let mut busy = None;
    for wait in PATIENCE {
        let tx = app.directory.door.begin(place, organization).await?;
        match lock(&tx).await {
            Ok(()) => return Ok(tx),
            Err(error) if error.code() == Code::Unavailable => busy = Some(error),
            Err(error) => return Err(error),
        }
        drop(tx);
        tokio::time::sleep(Duration::from_millis(wait)).await;
    }
    let busy = busy.map(|error| error.to_string()).unwrap_or_default();
    Err(Error::unavailable("Somebody holds on to the organization's tables. Try again in a moment.", 2)
        .caused_by(busy))
}

async fn lock(tx: &TenantTx) -> Result<()> {
    tx.command("set local lock_timeout to '1s'").await?;
    // First the row, which changes at the end: nobody who refers to it may wait for the tables meanwhile.
    let sql = "select id from platform.organizations where id = $1 for update nowait";
    tx.query_once(sql, &[&tx.organization()]).await?;
    let tables: Vec<String> = copy::tables(tx).await?.iter().map(|table| copy::quoted(&table.name)).collect();
    if !tables.is_empty() {
        tx.command(&format!("lock table {} in access exclusive mode", tables.join(", "))).await?;
    }
    tx.command("set local lock_timeout to 0").await?;
    copy::prepare(tx).await
}

/// In a transaction that has the old schema locked: the new one takes its place.
pub(super) async fn swap(tx: &TenantTx, organization: Uuid, old: &Place, new: &Place) -> Result<()> {
    retire(tx, old).await?;
    trade(tx, organization, old, new).await
}

/// Gives a schema that somebody lived in another name, so that nobody can go on writing to it.
async fn retire(tx: &TenantTx, old: &Place) -> Result<()> {
    let name = old.schema.to_string();
    if stands_in(tx, old).await? == Some(name.clone()) {
        tx.command(&format!("alter schema {name} rename to {}", old.schema.retired_name())).await?;
    }
    Ok(())
}

/// The new schema is the organization's from now on.
async fn trade(tx: &TenantTx, organization: Uuid, old: &Place, new: &Place) -> Result<()> {
    let taken = tx
        .execute(
            "update platform.tenant_schemas set state = 'taken', operation_id = null, retired_at = null, \
             retired_from = null where id = $1",
            &[&new.schema.id()],
        )
        .await?;
    let moved = tx
        .execute(
            "update platform.organizations set schema_id = $3, paused_until = null where id = $1 and schema_id = $2",
            &[&organization, &old.schema.id(), &new.schema.id()],
        )
        .await?;
    if (taken, moved) != (1, 1) {
        return Err(Error::conflict("Something else took the organization's place meanwhile. Try again."));
    }
    tx.execute(
        "update platform.tenant_schemas set state = 'retired', retired_at = now(), retired_from = $2 where id = $1",
        &[&old.schema.id(), &organization],
    )
    .await?;
    tenancy::changed(tx, organization).await
}

/// The name under which a schema is on its server now, if it is.
async fn stands(app: &App, place: &Place) -> Result<Option<String>> {
    let tx = app.directory.door.begin_outside(&place.server).await?;
    stands_in(&tx, place).await
}

async fn stands_in(tx: &Tx, place: &Place) -> Result<Option<String>> {
    let Place { schema, .. } = place;
    let names = [schema.to_string(), schema.retired_name()];
    let sql = "select nspname::text from pg_catalog.pg_namespace where nspname::text = any ($1) order by nspname desc";
    let rows = tx.query_once(sql, &[&names.as_slice()]).await?;
    rows.first().map(|row| Ok(row.try_get(0)?)).transpose()
}
