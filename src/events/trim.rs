//! The end of logs: what has had its time is removed, organization by organization.

use chrono::TimeDelta;
use serde::{Deserialize, Serialize};

use crate::{
    app::App,
    error::Result,
    jobs::{self, Running, Work},
};

/// Rows in one statement at most.
const BATCH: i64 = 5_000;

/// Enqueues the work in every organization.
pub async fn begin_trimming(app: &App) -> anyhow::Result<()> {
    Ok(jobs::enqueue_everywhere(app, None, &TrimLogs {}).await?)
}

/// Removes what has had its time from one organization's logs.
#[derive(Serialize, Deserialize)]
pub struct TrimLogs {}

impl Work for TrimLogs {
    const KIND: &'static str = "trim_logs";

    async fn run(self, job: &Running) -> anyhow::Result<()> {
        let days = &job.app.config.retention;
        for (sql, days) in [
            (
                "delete from webhook_deliveries where id in (select id from webhook_deliveries \
                 where status <> 'pending' and created_at < $1 limit $2)",
                days.deliveries_days,
            ),
            (
                "delete from events where id in (select e.id from events e where e.occurred_at < $1 \
                 and e.position is not null and not exists (select 1 from webhook_deliveries d \
                 where d.event_id = e.id and d.status = 'pending') limit $2)",
                days.events_days,
            ),
            (
                "delete from notifications where id in (select id from notifications where created_at < $1 limit $2)",
                days.notifications_days,
            ),
        ] {
            while trim(job, sql, days).await? == BATCH as u64 {}
        }
        Ok(())
    }
}

async fn trim(job: &Running, sql: &str, days: u32) -> Result<u64> {
    let Some(tenant) = job.tenant().await? else { return Ok(0) };
    let before = job.app.clock.now() - TimeDelta::days(days.into());
    let tx = tenant.begin().await?;
    let removed = tx.execute(sql, &[&before, &BATCH]).await?;
    tx.commit().await?;
    Ok(removed)
}
