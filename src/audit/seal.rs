//! Sealing: each entry's place in the chain, and the check that nothing was changed since.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures_util::join;
use serde_json::{Value, json};
use uuid::Uuid;

use super::api::{AuditEntry, ENTRY_COLUMNS, entry_from_row};
use crate::{
    app::App,
    auth::sealing::{Sealer, hex},
    db::{Row, TenantTx, ToSql},
    error::Result,
    tenancy::{Tenant, fleet},
};

/// Entries sealed in one transaction.
const BATCH: i64 = 500;

/// Seals what is written, until it is dropped.
pub async fn keep_sealing(app: Arc<App>) {
    loop {
        if let Err(error) = seal_pending(&app).await {
            tracing::warn!(%error, "audit entries could not be sealed; trying again");
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Seals every entry that is not yet.
pub async fn seal_pending(app: &App) -> Result<()> {
    let tx = app.db.begin().await?;
    let rows =
        tx.query("select distinct organization_id from platform.audit_unsealed limit 1000", &[]).await?;
    drop(tx);
    for row in &rows {
        let organization: Uuid = row.try_get("organization_id")?;
        // One that cannot be sealed must not keep the others from it.
        if let Err(error) = seal_one(app, organization).await {
            tracing::error!(%error, %organization, "the audit log of an organization could not be sealed");
        }
    }
    Ok(())
}

async fn seal_one(app: &App, organization: Uuid) -> Result<()> {
    match fleet::tenant_by_id(&app.directory, organization).await? {
        Some(tenant) => while seal_batch(app, &tenant).await? == BATCH as usize {},
        None => forget(app, organization).await?,
    }
    Ok(())
}

/// The organization is gone for good, and its log with it.
async fn forget(app: &App, organization: Uuid) -> Result<()> {
    let tx = app.db.begin().await?;
    tx.execute("delete from platform.audit_unsealed where organization_id = $1", &[&organization]).await?;
    tx.commit().await
}

/// One transaction's worth of an organization's entries; says how many there were.
async fn seal_batch(app: &App, tenant: &Tenant) -> Result<usize> {
    let organization = tenant.id();
    let tx = tenant.begin().await?;
    tx.execute(
        "insert into platform.audit_heads (organization_id, sequence, seal) values ($1, 0, $2) \
         on conflict (organization_id) do nothing",
        &[&organization, &head_seal(&app.sealer, organization, 0, &[])],
    )
    .await?;
    let head = tx
        .query_opt(
            "select sequence, seal from platform.audit_heads where organization_id = $1 for update skip locked",
            &[&organization],
        )
        .await?;
    // Another instance is at it.
    let Some(head) = head else { return Ok(0) };
    let mut sequence: i64 = head.try_get("sequence")?;
    let mut last = last_seal(&tx, sequence).await?;
    // Going on after an end that is not ours would make it look like one.
    if head_seal(&app.sealer, organization, sequence, &last) != head.try_get::<_, Vec<u8>>("seal")? {
        tracing::error!(%organization, sequence, "the audit chain was tampered with; it is not continued");
        return Ok(0);
    }
    let pending: Vec<Uuid> = tx
        .query(
            "select entry_id from platform.audit_unsealed where organization_id = $1 order by entry_id limit $2",
            &[&organization, &BATCH],
        )
        .await?
        .iter()
        .map(|row| Ok(row.try_get("entry_id")?))
        .collect::<Result<_>>()?;
    let sql =
        format!("select {ENTRY_COLUMNS} from audit_log where id = any ($1) and seal is null order by id");
    let rows = tx.query(&sql, &[&pending]).await?;
    if rows.len() < pending.len() {
        tracing::error!(%organization, missing = pending.len() - rows.len(), "audit entries vanished before they were sealed");
    }
    if rows.is_empty() {
        return Ok(0);
    }
    let (mut ids, mut places, mut seals) = (Vec::new(), Vec::new(), Vec::new());
    for row in &rows {
        let entry = entry_from_row(row)?;
        sequence += 1;
        last = entry_seal(&app.sealer, organization, sequence, &last, &entry);
        ids.push(entry.id);
        places.push(sequence);
        seals.push(last.clone());
    }
    tx.execute(
        "update audit_log set sequence = sealed.sequence, seal = sealed.seal \
         from unnest($1::uuid[], $2::bigint[], $3::bytea[]) as sealed (id, sequence, seal) \
         where audit_log.id = sealed.id",
        &[&ids, &places, &seals],
    )
    .await?;
    // What vanished before it was sealed stays listed, so that `verify` goes on telling of it.
    tx.execute("delete from platform.audit_unsealed where entry_id = any ($1)", &[&ids]).await?;
    tx.execute(
        "update platform.audit_heads set sequence = $2, seal = $3 where organization_id = $1",
        &[&organization, &sequence, &head_seal(&app.sealer, organization, sequence, &last)],
    )
    .await?;
    tx.commit().await?;
    // Kept elsewhere, this shows a database that was put back to an earlier state.
    tracing::info!(%organization, sequence, head = beginning(&last), "audit entries were sealed");
    Ok(ids.len())
}

async fn last_seal(tx: &TenantTx, sequence: i64) -> Result<Vec<u8>> {
    if sequence == 0 {
        return Ok(Vec::new());
    }
    let row = tx.query_opt("select seal from audit_log where sequence = $1", &[&sequence]).await?;
    Ok(row.map(|row| row.try_get("seal")).transpose()?.unwrap_or_default())
}

/// Over the seal before, the place and everything that the entry says.
pub(super) fn entry_seal(
    sealer: &Sealer,
    organization: Uuid,
    sequence: i64,
    before: &[u8],
    entry: &AuditEntry,
) -> Vec<u8> {
    let told = json!([
        organization,
        sequence,
        entry.id,
        entry.occurred_at.timestamp_micros(),
        entry.actor_id,
        entry.actor_kind,
        entry.api_key_id,
        entry.action,
        entry.resource_id,
        sorted(&entry.changes),
        entry.request_id,
        entry.address,
        entry.user_agent,
    ]);
    let mut text = before.to_vec();
    text.extend_from_slice(told.to_string().as_bytes());
    sealer.mac("audit entry", &text)
}

fn sorted(changes: &std::collections::HashMap<String, Value>) -> std::collections::BTreeMap<&String, &Value> {
    changes.iter().collect()
}

/// Over how long the chain is and how it ends.
pub(super) fn head_seal(sealer: &Sealer, organization: Uuid, sequence: i64, last: &[u8]) -> Vec<u8> {
    let mut text = format!("{organization} {sequence} ").into_bytes();
    text.extend_from_slice(last);
    sealer.mac("audit head", &text)
}

/// How a seal is told in logs: enough to compare two by.
fn beginning(seal: &[u8]) -> String {
    hex(&seal[..seal.len().min(8)])
}

/// What a look at an organization's chain found.
#[derive(Debug)]
pub struct Verdict {
    /// Entries in the chain.
    pub sealed: i64,
    /// Entries that wait for their seal.
    pub unsealed: i64,
    /// The beginning of the last seal; the service logs it whenever it seals.
    pub head: String,
    /// What is wrong, in the chain's order; empty where nothing is.
    pub problems: Vec<String>,
}

/// Goes through an organization's chain from its beginning. Finds entries that were changed or
/// removed, at the end too.
pub async fn verify(app: &App, tenant: &Tenant) -> Result<Verdict> {
    let organization = tenant.id();
    let tx = tenant.begin().await?;
    // Of two servers one is silent while the other reads.
    tx.command_everywhere("set local idle_in_transaction_session_timeout to '15min'").await?;
    let head = tx
        .query_opt(
            "select sequence, seal from platform.audit_heads where organization_id = $1 for share",
            &[&organization],
        )
        .await?;
    let mut problems = Vec::new();
    let (length, head): (i64, Vec<u8>) = match head {
        Some(head) => (head.try_get("sequence")?, head.try_get("seal")?),
        None => (0, head_seal(&app.sealer, organization, 0, &[])),
    };
    let (mut expected, mut last, mut sealed) = (1, Vec::new(), 0);
    let sql = format!(
        "select {ENTRY_COLUMNS}, sequence, seal from audit_log where sequence >= $1 order by sequence limit 1000"
    );
    loop {
        let rows = tx.query(&sql, &[&expected]).await?;
        for row in &rows {
            let (sequence, seal): (i64, Vec<u8>) = (row.try_get("sequence")?, row.try_get("seal")?);
            let entry = entry_from_row(row)?;
            if sequence != expected {
                problems.push(format!("entries {expected} to {} are missing", sequence - 1));
            } else if entry_seal(&app.sealer, organization, sequence, &last, &entry) != seal {
                problems.push(format!(
                    "entry {sequence} ({}, {}, {}) is not what was sealed",
                    entry.id, entry.action, entry.occurred_at
                ));
            }
            // Going on from what is stored tells each break once.
            (expected, last) = (sequence + 1, seal);
            sealed += 1;
        }
        if rows.len() < 1000 {
            break;
        }
    }
    if expected <= length {
        problems.push(format!("entries {expected} to {length} are missing at the end"));
    } else if head_seal(&app.sealer, organization, expected - 1, &last) != head && problems.is_empty() {
        problems.push("the end of the chain is not the one that was sealed".into());
    }
    let mut found = unsealed(&tx).await?;
    let strays = found.strays();
    if !strays.is_empty() {
        // On a living system more is written between two statements: what is wrong stays so.
        tokio::time::sleep(COMMITS_WITHIN).await;
        found = unsealed(&tx).await?;
        if !strays.is_disjoint(&found.strays()) {
            let (unsealed, waiting) = (found.entries.len(), found.waiting.len());
            problems.push(format!("{unsealed} entries are without a seal, {waiting} wait for one"));
        }
    }
    // Every log begins with the making of the organization.
    if length == 0 && found.waiting.is_empty() {
        problems.push("the log is empty".into());
    }
    Ok(Verdict { sealed, unsealed: found.entries.len() as i64, head: beginning(&last), problems })
}

/// For so long it may last until what is committed is seen on every server.
const COMMITS_WITHIN: Duration = Duration::from_secs(1);

/// Entries without a seal, and those that are listed as waiting for one.
struct Unsealed {
    entries: BTreeSet<Uuid>,
    waiting: BTreeSet<Uuid>,
}

impl Unsealed {
    /// What is in one of the two only.
    fn strays(&self) -> BTreeSet<Uuid> {
        &self.entries ^ &self.waiting
    }
}

async fn unsealed(tx: &TenantTx) -> Result<Unsealed> {
    let organization = tx.organization();
    let of: [&(dyn ToSql + Sync); 1] = [&organization];
    let (entries, waiting) = join!(
        tx.query("select id from audit_log where sequence is null", &[]),
        tx.query("select entry_id from platform.audit_unsealed where organization_id = $1", &of),
    );
    let ids = |rows: Vec<Row>| rows.iter().map(|row| Ok(row.try_get(0)?)).collect::<Result<BTreeSet<Uuid>>>();
    Ok(Unsealed { entries: ids(entries?)?, waiting: ids(waiting?)? })
}
