//! Webhooks of an organization that is a copy: nothing is sent from it until somebody wants it.

use uuid::Uuid;

use super::{sealed_for, signature::Secret};
use crate::{app::App, db::TenantTx, error::Result};

/// Switches every webhook off and gives up what is pending. A secret that another installation sealed
/// cannot be read here; it gives way to a new one, which a rotation shows.
pub async fn quiet(app: &App, tx: &TenantTx, because: &str) -> Result<()> {
    let now = app.clock.now();
    for row in &tx.query("select id, sealed_secret from webhooks order by id", &[]).await? {
        let (webhook, sealed): (Uuid, Vec<u8>) = (row.try_get("id")?, row.try_get("sealed_secret")?);
        if app.sealer.open(&sealed_for(webhook), &sealed).is_err() {
            let secret = app.sealer.seal(&sealed_for(webhook), Secret::generate()?.bytes())?;
            tx.execute(
                "update webhooks set sealed_secret = $2, sealed_previous_secret = null, previous_secret_until = null \
                 where id = $1",
                &[&webhook, &secret],
            )
            .await?;
        }
    }
    tx.execute(
        "update webhooks set is_active = false, disabled_because = $1, failing_since = null, failures = 0, \
         paused_until = null, updated_at = $2, version = version + 1",
        &[&because, &now],
    )
    .await?;
    tx.execute(
        "update webhook_deliveries set status = 'failed', next_attempt_at = null, finished_at = $2, error = $1 \
         where status = 'pending'",
        &[&because, &now],
    )
    .await?;
    Ok(())
}
