//! The end of an organization: nothing of it is left but a certificate that says so.
//!
//! It is closed first, then payments end, and backups and what its files held go; all that can be done again. Then one transaction
//! drops the schema, removes every row and writes the certificate. Whoever dies before that leaves a
//! deleted organization, and the same command goes on.

use std::{collections::BTreeMap, io, path, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio_postgres::types::Json as Jsonb;
use uuid::Uuid;

use super::{
    backups,
    copy::{self, quoted},
    operation::{Operation, Progress, Step},
    tenant_by_id, transfer,
};
use crate::{
    app::App,
    audit::{self, Actor, Changes},
    auth::{Access, sealing::hex, withdraw},
    billing,
    db::{TenantTx, Tx},
    error::{Error, Result},
    files as stored,
    jobs::{self, Policy, Running, Terms, Work},
    organizations::RESTORABLE,
    tenancy::{self, Tenant},
};

/// Where rows of organizations are, and the statement that removes those of one, in an order in which none
/// is in another's way.
pub const REMOVED: &[(&str, &str)] = &[
    (
        "idempotency_keys",
        "delete from platform.idempotency_keys where caller in \
         (select 'key ' || id::text from platform.api_keys where organization_id = $1)",
    ),
    ("outbox", "delete from platform.outbox where organization_id = $1"),
    ("event_heads", "delete from platform.event_heads where organization_id = $1"),
    ("audit_unsealed", "delete from platform.audit_unsealed where organization_id = $1"),
    ("audit_heads", "delete from platform.audit_heads where organization_id = $1"),
    ("jobs", "delete from platform.jobs where organization_id = $1"),
    ("realtime_tickets", "delete from platform.realtime_tickets where organization_id = $1"),
    ("security_events", "delete from platform.security_events where organization_id = $1"),
    ("usage_records", "delete from platform.usage_records where organization_id = $1"),
    ("api_call_months", "delete from platform.api_call_months where organization_id = $1"),
    (
        "stripe_events",
        "delete from platform.stripe_events where organization_id = $1 \
         or strpos(payload::text, $1::uuid::text) > 0 \
         or strpos(payload::text, (select stripe_customer_id from platform.subscriptions where organization_id = $1)) > 0",
    ),
    ("invoices", "delete from platform.invoices where organization_id = $1"),
    ("billing_adjustments", "delete from platform.billing_adjustments where organization_id = $1"),
    ("subscriptions", "delete from platform.subscriptions where organization_id = $1"),
    (
        "reconciliations",
        "update platform.reconciliations set findings = (select coalesce(jsonb_agg(f), '[]') \
         from jsonb_array_elements(findings) as f where f ->> 'organization_id' is distinct from $1::uuid::text) \
         where strpos(findings::text, $1::uuid::text) > 0",
    ),
    (
        "feature_flags",
        "update platform.feature_flags set organizations = array_remove(organizations, $1::uuid) \
         where $1::uuid = any (organizations)",
    ),
    ("api_keys", "delete from platform.api_keys where organization_id = $1"),
    ("invitations", "delete from platform.invitations where organization_id = $1"),
    ("organization_domains", "delete from platform.organization_domains where organization_id = $1"),
    ("organization_modules", "delete from platform.organization_modules where organization_id = $1"),
    ("organization_members", "delete from platform.organization_members where organization_id = $1"),
    ("organizations", "delete from platform.organizations where id = $1"),
];

/// What names an organization for good, and why.
pub const KEPT: &[(&str, &str)] = &[
    ("platform_audit", "what operators and staff did stays provable"),
    ("fleet_operations", "that and when it was erased"),
    ("erasures", "this certificate"),
];

/// What is not the organization's.
const OTHERS: &[(&str, &str)] = &[
    ("accounts", "they belong to people, who may be in other organizations"),
    ("answers to requests of people", "sealed, for repeated requests; they go within a day"),
    ("copies elsewhere", "archives and backups that were taken out of this installation are not known to it"),
    (
        "Stripe",
        "invoices and payments are kept there, as the law asks; what it tells from now on goes after 90 days",
    ),
];

/// Requests that were counted are written so often; what is counted last must be there to be removed.
const COUNTED_WITHIN: Duration = Duration::from_secs(3);

/// Erases an organization and answers the certificate.
pub async fn erase(app: &Arc<App>, tenant: &Tenant, progress: Progress<'_>) -> Result<Value> {
    let operation = Operation::begin(app, "erase", Some(tenant.id()), json!({})).await?;
    let outcome = match erase_as(app, &operation, tenant.id(), progress).await {
        Err(error) => Err(unerased(app, tenant.id(), error).await),
        erased => erased,
    };
    app.directory.forget(tenant.id());
    operation.end(outcome).await
}

/// Says how an organization is that could not be erased.
async fn unerased(app: &App, id: Uuid, error: Error) -> Error {
    let closed = match app.db.begin().await {
        Ok(tx) => tenancy::is_deleted(&tx, id).await,
        Err(error) => Err(error),
    };
    match closed {
        Ok(true) => Error::conflict(format!(
            "It is not erased, but closed: {error}. Repeat this to go on; to open it again, one of its owners \
             restores it (POST /organizations/{id}/restore)."
        )),
        _ => error,
    }
}

fn reopened() -> Error {
    Error::conflict("The organization was restored meanwhile; it is not erased.")
}

async fn erase_as(app: &Arc<App>, operation: &Operation, id: Uuid, progress: Progress<'_>) -> Result<Value> {
    let step = |what| progress(Step { what, done: 0, of: None });
    step("closing the organization");
    close(app, operation, id).await?;
    step("ending payments");
    let tenant = tenant_by_id(&app.directory, id).await?.ok_or_else(tenancy::unknown)?;
    let ended = billing::end_payments(app, &tenant, true).await;
    if !ended.map_err(|error| Error::conflict(format!("the payments could not be ended: {error:#}")))? {
        return Err(reopened());
    }
    step("removing files");
    let files = remove_files(app, id).await?;
    let objects = match app.files.is_there() {
        true => Some(app.files.delete_all(&stored::folder(id)).await?),
        false => None,
    };
    tokio::time::sleep(COUNTED_WITHIN).await;
    step("removing replaced schemas");
    let mut schemas = remove_schemas(app, id).await?;
    step("removing everything");
    let place = transfer::living(app, id).await?;
    let tx = app.directory.door.begin(&place, id).await?;
    copy::prepare(&tx).await?;
    tx.command_everywhere(copy::UNHURRIED).await?;
    // Whoever was let in before it was closed has finished by then.
    tx.command("set local lock_timeout to '60s'").await?;
    let sql = "select slug from platform.organizations where id = $1 and deleted_at is not null for update";
    let slug: String = tx.query_opt(sql, &[&id]).await?.ok_or_else(reopened)?.try_get("slug")?;
    let tables = count_rows(&tx).await?;
    schemas.push(json!({"schema": place.schema.to_string(), "server": place.server.id(), "rows": tables}));
    tx.command(&format!("drop schema if exists {} cascade", place.schema)).await?;
    let certificate = json!({
        "certificate": operation.id,
        "organization": {"id": id, "slug": slug},
        "erased_at": app.clock.now(),
        "schemas": schemas,
        "rows": remove_rows(&tx, operation, id, &place.schema.id()).await?,
        "files": files,
        "objects": objects,
        "copies": copies(&tx, id).await?,
        "kept": kept(&tx, id).await?,
    });
    let certificate = sealed(app, certificate);
    tx.execute(
        "insert into platform.erasures (id, organization_id, erased_at, certificate) values ($1, $2, $3, $4)",
        &[&operation.id, &id, &app.clock.now(), &Jsonb(&certificate)],
    )
    .await?;
    tenancy::changed(&tx, id).await?;
    let told = json!({"slug": slug, "certificate": operation.id});
    operation.done(&tx, &Changes::deleted(&told)).await?;
    tx.commit().await?;
    Ok(certificate)
}

/// Nobody gets in any more.
async fn close(app: &App, operation: &Operation, id: Uuid) -> Result<()> {
    let tx = app.db.begin().await?;
    tx.execute(
        "update platform.organizations set deleted_at = coalesce(deleted_at, $2), version = version + 1 where id = $1",
        &[&id, &app.clock.now()],
    )
    .await?;
    withdraw(&tx, app, Access::Organization { organization: id }, "erased").await?;
    let (action, changes) = ("tenant.erase_begun", Changes::none(&json!({})));
    audit::record_platform(&tx, app, Actor::system(), action, Some(operation.id), Some(id), &changes).await?;
    tx.commit().await?;
    app.directory.forget(id);
    Ok(())
}

/// Removes what was saved of it: backups, and what removed modules held. Says where that was, if it can be
/// anywhere, and how many files and folders were there.
async fn remove_files(app: &App, id: Uuid) -> Result<Value> {
    let Some(folder) = backups::folder_of(app, id) else {
        return Ok(json!({"looked_in": null, "removed": 0}));
    };
    let unremoved =
        |error: io::Error| Error::conflict(format!("{} could not be removed: {error}", folder.display()));
    let looked_in = path::absolute(&folder).map_err(unremoved)?.display().to_string();
    let mut entries = match tokio::fs::read_dir(&folder).await {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(json!({"looked_in": looked_in, "removed": 0}));
        }
        entries => entries.map_err(unremoved)?,
    };
    let mut removed = 0;
    while entries.next_entry().await.map_err(unremoved)?.is_some() {
        removed += 1;
    }
    tokio::fs::remove_dir_all(&folder).await.map_err(unremoved)?;
    Ok(json!({"looked_in": looked_in, "removed": removed}))
}

/// Drops the schemas that it lived in before, and those that somebody began to fill with its data and left.
async fn remove_schemas(app: &App, id: Uuid) -> Result<Vec<Value>> {
    let tx = app.db.begin().await?;
    let rows = tx
        .query(
            "select id, state from platform.tenant_schemas where state = 'retired' and retired_from = $1 \
             or state = 'building' and operation_id in \
             (select id from platform.fleet_operations where organization_id = $1)",
            &[&id],
        )
        .await?;
    drop(tx);
    let mut removed = Vec::new();
    for row in &rows {
        let state: String = row.try_get("state")?;
        let place = app.directory.place(row.try_get("id")?).await?;
        super::stock::drop_schema(&app.directory, &place).await?;
        let name = if state == "retired" { place.schema.retired_name() } else { place.schema.to_string() };
        removed.push(json!({"schema": name, "server": place.server.id(), "state": state}));
    }
    Ok(removed)
}

/// Organizations that were made of it, by cloning or importing, and live on.
async fn copies(tx: &Tx, id: Uuid) -> Result<Vec<Value>> {
    let rows = tx
        .query(
            "with recursive made (source, copy) as ( \
               select organization_id::text, changes -> 'clone' ->> 'after' from platform.platform_audit \
               where action = 'tenant.clone' union select changes -> 'archive_of' ->> 'after', organization_id::text \
               from platform.platform_audit where action = 'tenant.import'), \
             copies (id) as (select copy from made where source = $1::uuid::text \
               union select made.copy from made join copies on made.source = copies.id) \
             select o.id, o.slug from platform.organizations o join copies on copies.id = o.id::text \
             where o.id <> $1 order by o.slug",
            &[&id],
        )
        .await?;
    rows.iter()
        .map(|row| {
            Ok(json!({"id": row.try_get::<_, Uuid>("id")?, "slug": row.try_get::<_, String>("slug")?}))
        })
        .collect()
}

async fn count_rows(tx: &TenantTx) -> Result<BTreeMap<String, i64>> {
    let mut counts = BTreeMap::new();
    for table in copy::tables(tx).await? {
        let rows = tx.query_once(&format!("select count(*) from {}", quoted(&table.name)), &[]).await?;
        let rows = rows.first().map(|row| row.try_get(0)).transpose()?;
        counts.insert(table.name, rows.unwrap_or_default());
    }
    Ok(counts)
}

async fn remove_rows(
    tx: &Tx,
    operation: &Operation,
    id: Uuid,
    schema: &Uuid,
) -> Result<BTreeMap<&'static str, u64>> {
    let mut removed = BTreeMap::new();
    for (table, sql) in REMOVED {
        removed.insert(*table, tx.execute(sql, &[&id]).await?);
    }
    let earlier = "delete from platform.fleet_operations where organization_id = $1 and id <> $2";
    removed.insert("fleet_operations", tx.execute(earlier, &[&id, &operation.id]).await?);
    let schemas = "delete from platform.tenant_schemas where id = $1";
    removed.insert("tenant_schemas", tx.execute(schemas, &[schema]).await?);
    removed.retain(|_, rows| *rows > 0);
    Ok(removed)
}

async fn kept(tx: &Tx, id: Uuid) -> Result<Vec<Value>> {
    let sql = "select count(*) from platform.platform_audit where organization_id = $1";
    let entries: i64 = tx.query_one(sql, &[&id]).await?.try_get(0)?;
    let kept = KEPT.iter().chain(OTHERS).map(|(what, why)| match *what {
        "platform_audit" => json!({"what": what, "why": why, "rows": entries + 1}),
        _ => json!({"what": what, "why": why}),
    });
    Ok(kept.collect())
}

/// With a code that only this installation can make.
fn sealed(app: &App, mut certificate: Value) -> Value {
    certificate["seal"] = seal(app, &certificate).into();
    certificate
}

fn seal(app: &App, certificate: &Value) -> String {
    hex(&app.sealer.mac("certificate of erasure", certificate.to_string().as_bytes()))
}

/// The certificate of an organization that was erased, by its id or the slug that it had, and whether it
/// is as it was written.
pub async fn certificate(app: &App, name: &str) -> Result<Option<(Value, bool)>> {
    let tx = app.db.begin().await?;
    let row = tx
        .query_opt(
            "select certificate from platform.erasures where organization_id::text = $1 \
             or certificate -> 'organization' ->> 'slug' = $1 order by erased_at desc limit 1",
            &[&name],
        )
        .await?;
    let Some(row) = row else { return Ok(None) };
    let Jsonb(certificate): Jsonb<Value> = row.try_get("certificate")?;
    let mut unsealed = certificate.clone();
    let told = unsealed.as_object_mut().and_then(|fields| fields.remove("seal"));
    let is_right = told == Some(seal(app, &unsealed).into());
    Ok(Some((certificate, is_right)))
}

/// Has organizations erased that can not be restored any more.
pub async fn begin(app: &App) -> anyhow::Result<()> {
    let tx = app.db.begin().await?;
    let sql = "select id from platform.organizations where deleted_at < $1 order by deleted_at limit 1000";
    for row in &tx.query(sql, &[&(app.clock.now() - RESTORABLE)]).await? {
        let organization: Uuid = row.try_get("id")?;
        // Not the organization's own: its jobs go with it.
        let terms = Terms { unique: Some(organization.to_string()), ..Terms::default() };
        jobs::enqueue_on(&tx, app, &EraseOrganization { organization }, terms).await?;
    }
    Ok(tx.commit().await?)
}

/// Erases an organization that was deleted long ago.
#[derive(Serialize, Deserialize)]
pub struct EraseOrganization {
    organization: Uuid,
}

impl Work for EraseOrganization {
    const KIND: &'static str = "erase_organization";
    const POLICY: Policy = Policy { limit: Duration::from_secs(3600), slots: 1, ..Policy::DEFAULT };

    async fn run(self, job: &Running) -> anyhow::Result<()> {
        let app = &job.app;
        let tx = app.db.begin().await?;
        // It may have been restored by staff meanwhile, and the directory may not have heard yet.
        let sql = "select 1 from platform.organizations where id = $1 and deleted_at < $2";
        let due = tx.query_opt(sql, &[&self.organization, &(app.clock.now() - RESTORABLE)]).await?;
        drop(tx);
        if due.is_none() {
            return Ok(());
        }
        let Some(tenant) = tenant_by_id(&app.directory, self.organization).await? else { return Ok(()) };
        erase(app, &tenant, &|_| {}).await?;
        Ok(())
    }
}
