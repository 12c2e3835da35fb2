//! What a webhook leaves when it is switched off or deleted: very many deliveries, perhaps.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    app::App,
    db::TenantTx,
    error::Result,
    jobs::{self, Running, Work},
};

/// Deliveries in one statement at most.
const BATCH: i64 = 5_000;

/// Goes on where a request stopped.
#[derive(Serialize, Deserialize)]
pub struct ClearWebhook {
    webhook: Uuid,
    /// Since then it is deleted, or was switched off.
    since: DateTime<Utc>,
    deleted: bool,
}

impl Work for ClearWebhook {
    const KIND: &'static str = "clear_webhook";

    async fn run(self, job: &Running) -> anyhow::Result<()> {
        loop {
            let Some(tenant) = job.tenant().await? else { return Ok(()) };
            let tx = tenant.begin().await?;
            let cleared = match self.deleted {
                true => remove(&tx, self.webhook).await?,
                false => fail(&tx, self.webhook, self.since).await?,
            };
            tx.commit().await?;
            if cleared < BATCH as u64 {
                return Ok(());
            }
        }
    }
}

/// Gives up what is pending, as the webhook is switched off.
pub(super) async fn give_up(app: &App, tx: &TenantTx, webhook: Uuid) -> Result<()> {
    let since = app.clock.now();
    if fail(tx, webhook, since).await? == BATCH as u64 {
        jobs::enqueue(tx, app, &ClearWebhook { webhook, since, deleted: false }).await?;
    }
    Ok(())
}

/// Removes what is left of a webhook that was deleted.
pub(super) async fn forget(app: &App, tx: &TenantTx, webhook: Uuid) -> Result<()> {
    if remove(tx, webhook).await? == BATCH as u64 {
        jobs::enqueue(tx, app, &ClearWebhook { webhook, since: app.clock.now(), deleted: true }).await?;
    }
    Ok(())
}

async fn fail(tx: &TenantTx, webhook: Uuid, since: DateTime<Utc>) -> Result<u64> {
    let failed = tx
        .execute(
            "update webhook_deliveries set status = 'failed', next_attempt_at = null, finished_at = $2, \
             error = 'the webhook was switched off' where id in (select id from webhook_deliveries \
             where webhook_id = $1 and status = 'pending' and created_at <= $2 limit $3)",
            &[&webhook, &since, &BATCH],
        )
        .await?;
    tx.execute(
        "update webhooks set total_deliveries = total_deliveries + $2::bigint, \
         failed_deliveries = failed_deliveries + $2::bigint where id = $1",
        &[&webhook, &(failed as i64)],
    )
    .await?;
    Ok(failed)
}

async fn remove(tx: &TenantTx, webhook: Uuid) -> Result<u64> {
    let sql = "delete from webhook_deliveries where id in (select id from webhook_deliveries \
         where webhook_id = $1 limit $2)";
    tx.execute(sql, &[&webhook, &BATCH]).await
}
