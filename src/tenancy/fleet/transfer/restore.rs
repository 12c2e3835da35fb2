//! Restoring: what an organization was takes the place of what it is.
//!
//! It is made ready beside the living schema. What of that goes on is brought over twice: nearly all
//! of it while everybody works, and the rest with the living schema locked.

use std::{path::PathBuf, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use uuid::Uuid;

use super::super::{
    archive::{self, Checked, Ids},
    backups,
    copy::{self, Table},
    operation::{Operation, Progress, Step},
    stock::{self, State},
};
use super::{
    COLLECTED, break_off, bring_up_to_date, bring_up_to_date_in, living, lock_all, pause, resume, stands,
    swap,
};
use crate::{
    app::App,
    audit::{self, Actor, Changes},
    db::{Place, TenantTx},
    error::{Error, Result},
    exchange, files,
    tenancy::Tenant,
};

/// How long an organization waits at most while one schema takes another's place.
const PAUSE: Duration = Duration::from_secs(8);
/// Logs that go on when an organization is put back: what was written is not unwritten. With the
/// column that gives each entry its place, and the one that proves that two are the same.
const LOGS: [(&str, &str, &str); 2] = [("audit_log", "sequence", "seal"), ("events", "position", "id")];
/// Tables that say what was done or is to be done outside, which putting back does not change.
const LIVING: [&str; 2] = ["push_subscriptions", "limit_warnings"];

/// What an organization is put back to.
#[derive(Clone, Debug)]
pub enum Back {
    Archive(PathBuf),
    /// The newest backup at or before a time.
    Time(DateTime<Utc>),
    /// What it was before the last time it was put back or moved.
    Previous,
}

/// Puts an organization back. What it is now is kept for some days; its logs go on.
pub async fn restore(
    app: &Arc<App>,
    tenant: &Tenant,
    to: Back,
    unsealed: bool,
    progress: Progress<'_>,
) -> Result<String> {
    let archive = match to {
        Back::Previous => None,
        Back::Archive(file) => Some(file),
        Back::Time(at) => Some(backups::before(app, tenant.id(), at)?),
    };
    let about = json!({"to": archive.as_ref().map_or("previous".into(), |file| file.display().to_string())});
    let operation = Operation::begin(app, "restore", Some(tenant.id()), about.clone()).await?;
    let outcome = match archive {
        None => restore_previous(app, &operation, tenant.id()).await,
        Some(file) => {
            progress(Step { what: "checking the archive", done: 0, of: None });
            match archive::check(app, &file, unsealed).await {
                Ok(archive) => restore_archive(app, &operation, tenant.id(), archive, progress).await,
                Err(error) => Err(error),
            }
        }
    };
    app.directory.forget(tenant.id());
    operation.end(outcome).await
}

async fn restore_archive(
    app: &Arc<App>,
    operation: &Operation,
    id: Uuid,
    archive: Checked,
    progress: Progress<'_>,
) -> Result<String> {
    if archive.manifest.organization != id {
        return Err(Error::conflict(format!(
            "The archive is of another organization ({}, {}); `rowhouse tenant import` makes a new one of it.",
            archive.organization.slug, archive.manifest.organization
        )));
    }
    let old = living(app, id).await?;
    let new =
        stock::build(&app.directory, &old.server, &archive.sets()?, State::Building(operation.id)).await?;
    let tx = app.directory.door.begin(&new, id).await?;
    archive::load(&tx, &archive, &Ids::default(), progress).await?;
    tx.commit().await?;
    bring_up_to_date(app, &new).await?;
    let tx = app.directory.door.begin(&new, id).await?;
    copy::prepare(&tx).await?;
    tx.command(COLLECTED).await?;
    break_off(app, &tx).await?;
    let recorded = archive::recorded_files(&tx).await?;
    tx.commit().await?;
    if stands(app, &old).await?.is_some() {
        let tx = app.directory.door.begin(&old, id).await?;
        archive::agree(&archive::recorded_files(&tx).await?, &recorded)?;
    }
    // Before anybody can ask for them. Those that are there already are the same.
    let brought = archive::put_files(app, &archive, id, &recorded, progress).await?;
    let told = json!({"archive": archive.manifest.taken_at, "rows": archive.rows(), "sealed_here": archive.is_own,
            "files": brought.files, "missing": brought.missing});
    put(app, operation, id, &old, &new, archive.is_own, &told).await?;
    let tx = app.directory.door.begin(&new, id).await?;
    files::make_pending_thumbnails(&tx, app).await?;
    exchange::end_what_was_open(&tx, app).await?;
    tx.commit().await?;
    let without = brought.missing.iter().map(|missing| format!("\n  without {missing}")).collect::<String>();
    Ok(format!("as it was at {}{without}", archive.manifest.taken_at.to_rfc3339()))
}

/// The schema that was there before gets its name back, and comes in its place again.
async fn restore_previous(app: &Arc<App>, operation: &Operation, id: Uuid) -> Result<String> {
    let tx = app.db.begin().await?;
    let row = tx
        .query_opt(
            "select id, retired_at from platform.tenant_schemas where state = 'retired' and retired_from = $1 \
             order by retired_at desc limit 1",
            &[&id],
        )
        .await?;
    drop(tx);
    let nothing = || {
        let days = app.config.tenancy.retired_days;
        Error::conflict(format!("There is no previous state; what is replaced is kept for {days} days."))
    };
    let row = row.ok_or_else(nothing)?;
    let (schema, since): (Uuid, DateTime<Utc>) = (row.try_get("id")?, row.try_get("retired_at")?);
    let (old, new) = (living(app, id).await?, app.directory.place(schema).await?);
    let name = stands(app, &new).await?.ok_or_else(nothing)?;
    let tx = app.directory.door.begin(&new, id).await?;
    if name != new.schema.to_string() {
        tx.command(&format!("alter schema {name} rename to {}", new.schema)).await?;
    }
    bring_up_to_date_in(&tx, &new).await?;
    tx.commit().await?;
    put(app, operation, id, &old, &new, true, &json!({"previous": since})).await?;
    Ok(format!("as it was before {}", since.to_rfc3339()))
}

/// Puts a schema that is ready in the place of the living one. Nearly all of the logs is brought over
/// before anybody has to wait; all of it, unless what is there of it was `written_here`.
async fn put(
    app: &Arc<App>,
    operation: &Operation,
    id: Uuid,
    old: &Place,
    new: &Place,
    written_here: bool,
    told: &Value,
) -> Result<()> {
    if stands(app, old).await?.is_none() {
        return replace_what_is_gone(app, operation, id, old, new, told).await;
    }
    record_beginning(app, id, old, told).await?;
    let from = app.directory.door.begin_snapshot(old, id).await?;
    copy::prepare(&from).await?;
    let to = app.directory.door.begin(new, id).await?;
    copy::prepare(&to).await?;
    if !written_here {
        for (name, ..) in LOGS {
            to.command(&format!("delete from {name}")).await?;
        }
    }
    carry_logs(&from, &to).await?;
    to.commit().await?;
    drop(from);
    pause(app, id, PAUSE).await?;
    let taken = take_over(app, operation, id, old, new, told).await;
    if let Err(error) = resume(app, id).await {
        tracing::warn!(%error, organization = %id, "a pause could not be ended; it ends by itself");
    }
    taken
}

/// The living schema is still there: the last of its logs is brought over with it locked.
async fn take_over(
    app: &Arc<App>,
    operation: &Operation,
    id: Uuid,
    old: &Place,
    new: &Place,
    told: &Value,
) -> Result<()> {
    // Whoever waits is let in again then, and there must be nobody in the way.
    let carried = tokio::time::timeout(PAUSE, lock_and_carry(app, id, old, new)).await;
    let from = carried.unwrap_or_else(|_| {
        Err(Error::conflict(
            "What goes on could not be brought over in the time that requests may wait; nothing was changed. Try \
             again when fewer deliveries of webhooks are pending.",
        ))
    })?;
    swap(&from, id, old, new).await?;
    operation.done(&from, &Changes::created(told)).await?;
    from.commit().await
}

/// Answers the transaction that has the living schema locked.
async fn lock_and_carry(app: &App, id: Uuid, old: &Place, new: &Place) -> Result<TenantTx> {
    let from = lock_all(app, old, id).await?;
    let to = app.directory.door.begin(new, id).await?;
    copy::prepare(&to).await?;
    carry(app, &from, &to).await?;
    to.commit().await?;
    Ok(from)
}

/// Somebody dropped the living schema: what the archive has of its logs is all there is.
async fn replace_what_is_gone(
    app: &Arc<App>,
    operation: &Operation,
    id: Uuid,
    old: &Place,
    new: &Place,
    told: &Value,
) -> Result<()> {
    let tx = app.directory.door.begin(new, id).await?;
    copy::prepare(&tx).await?;
    tx.command_everywhere(copy::UNHURRIED).await?;
    audit::reseal(app, &tx).await?;
    let changes = Changes::created(told).about("the_living_schema_was", "gone");
    audit::record(&tx, app, &Actor::system(), "organization.restore_begun", id, &changes).await?;
    tell_again(&tx).await?;
    swap(&tx, id, old, new).await?;
    operation.done(&tx, &changes).await?;
    tx.commit().await
}

/// Says in the organization's own log what is about to be done; it goes on in what comes after.
async fn record_beginning(app: &App, id: Uuid, place: &Place, told: &Value) -> Result<()> {
    let tx = app.directory.door.begin(place, id).await?;
    let changes = Changes::created(told);
    audit::record(&tx, app, &Actor::system(), "organization.restore_begun", id, &changes).await?;
    tx.commit().await
}

/// Brings to a schema what the living one has that is not put back: the rest of its logs, what waits to
/// be sent, and what was agreed with browsers.
async fn carry(app: &App, from: &TenantTx, to: &TenantTx) -> Result<()> {
    carry_logs(from, to).await?;
    carry_logo(app, from, to).await?;
    for name in LIVING {
        to.command(&format!("delete from {name}")).await?;
        copy_rows(from, to, name, None).await?;
    }
    // The archive's were sent, or given up, or are among the living ones.
    to.command("delete from webhook_deliveries where status = 'pending'").await?;
    copy_rows(from, to, "webhook_deliveries", Some("t.status = 'pending'")).await?;
    to.execute(
        "update webhook_deliveries set status = 'failed', next_attempt_at = null, finished_at = $1, \
         error = 'the webhook was not there any more' where status = 'pending' \
         and webhook_id not in (select id from webhooks where is_active)",
        &[&app.clock.now()],
    )
    .await?;
    Ok(())
}

async fn carry_logs(from: &TenantTx, to: &TenantTx) -> Result<()> {
    for (name, place, proof) in LOGS {
        // What has no place yet has got one since.
        to.command(&format!("delete from {name} where {place} is null")).await?;
        let sql = format!(
            "select {proof}::text as proof, {place} as place from {name} where {place} is not null \
             order by {place} desc limit 1"
        );
        let mut after: i64 = 0;
        if let Some(last) = to.query_once(&sql, &[]).await?.first() {
            let (seen, there): (Option<String>, i64) = (last.try_get("proof")?, last.try_get("place")?);
            let sql = format!(
                "select {proof}::text is not distinct from $2 as same from {name} where {place} = $1"
            );
            let same = match from.query_once(&sql, &[&there, &seen]).await?.first() {
                Some(row) => row.try_get("same")?,
                // Events are removed after some time; nothing is from the audit log.
                None => name == "events",
            };
            match same {
                true => after = there,
                false => to.command(&format!("delete from {name}")).await?,
            }
        }
        copy_rows(from, to, name, Some(&format!("t.{place} is null or t.{place} > {after}"))).await?;
    }
    Ok(())
}

/// The logo is named in `platform`, where nothing is put back: its file comes along, and what was the logo then
/// is nobody's.
async fn carry_logo(app: &App, from: &TenantTx, to: &TenantTx) -> Result<()> {
    let sql = "select logo_file_id from platform.organizations where id = $1";
    let logo: Option<Uuid> = match from.query_once(sql, &[&from.organization()]).await?.first() {
        Some(row) => row.try_get("logo_file_id")?,
        None => None,
    };
    let sql = "update files set expires_at = $2 where purpose = 'logo' and expires_at is null \
         and id is distinct from $1";
    to.execute(sql, &[&logo, &app.clock.now()]).await?;
    let Some(logo) = logo else { return Ok(()) };
    // It may have been an upload then that nothing named yet.
    let named = "update files set purpose = 'logo', expires_at = null where id = $1";
    if to.execute(named, &[&logo]).await? == 1 {
        return Ok(());
    }
    copy_rows(from, to, "files", Some(&format!("t.id = '{logo}'"))).await?;
    to.execute(
        "insert into usage_counters as known (resource, used) select 'storage', size from files where id = $1 \
         on conflict (resource) do update set used = known.used + excluded.used",
        &[&logo],
    )
    .await?;
    Ok(())
}

/// Copies rows of a table as far as both schemas have its columns.
async fn copy_rows(from: &TenantTx, to: &TenantTx, name: &str, only: Option<&str>) -> Result<()> {
    let of = |tables: Vec<Table>| tables.into_iter().find(|table| table.name == name);
    let (Some(mut table), Some(here)) = (of(copy::tables(from).await?), of(copy::tables(to).await?)) else {
        return Ok(());
    };
    table.columns.retain(|column| here.columns.iter().any(|known| known.name == column.name));
    let mut rows = copy::read(from, &table, only).await?;
    while let Some(batch) = rows.next().await? {
        copy::upsert(to, &table, &batch).await?;
    }
    Ok(())
}

/// Has events told that nobody waits for any more, as they came back with an archive.
async fn tell_again(tx: &TenantTx) -> Result<()> {
    let rows = tx.query_once("select id from events where position is null order by id", &[]).await?;
    let ids = rows.iter().map(|row| Ok(row.try_get("id")?)).collect::<Result<Vec<Uuid>>>()?;
    tx.execute(
        "insert into platform.outbox (organization_id, event_id) select $1, pending.id \
         from unnest($2::uuid[]) as pending (id) where not exists (select 1 from platform.outbox o \
         where o.organization_id = $1 and o.event_id = pending.id)",
        &[&tx.organization(), &ids],
    )
    .await?;
    Ok(())
}
