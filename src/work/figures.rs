//! How a team gets on with its work, in figures.

use chrono::{DateTime, Datelike, Days, NaiveTime, TimeDelta, Utc};
use futures_util::future::BoxFuture;
use serde_json::{Map, Value, json};

use super::projects::ProjectStatus;
use crate::{db::TenantTx, error::Result};

/// Weeks that are told of, the present one included.
const WEEKS: u64 = 8;

/// Projects by status; tasks, how many are done, how fast, and when. Days and weeks are those of UTC, and
/// weeks begin on Monday.
pub fn figures(tx: &TenantTx, now: DateTime<Utc>) -> BoxFuture<'_, Result<Value>> {
    Box::pin(async move {
        let projects = projects(tx).await?;
        let tasks = tasks(tx, now).await?;
        Ok(json!({"projects": projects, "tasks": tasks}))
    })
}

async fn projects(tx: &TenantTx) -> Result<Value> {
    let rows = tx.query("select status, count(*) as many from projects group by status", &[]).await?;
    let mut by_status: Map<String, Value> =
        ProjectStatus::ALL.iter().map(|status| (status.to_string(), 0.into())).collect();
    let mut total = 0;
    for row in &rows {
        let (status, many): (String, i64) = (row.try_get("status")?, row.try_get("many")?);
        by_status.insert(status, many.into());
        total += many;
    }
    Ok(json!({"total": total, "by_status": by_status}))
}

async fn tasks(tx: &TenantTx, now: DateTime<Utc>) -> Result<Value> {
    let row = tx
        .query_one(
            "select count(*) as total, count(*) filter (where status = 'done') as done, \
             count(*) filter (where status <> 'done' and due_date < $1) as overdue, \
             (avg(extract(epoch from completed_at - created_at)) filter (where completed_at >= $2) / 86400)::float8 \
             as days from tasks",
            &[&now.date_naive(), &(now - TimeDelta::days(30))],
        )
        .await?;
    let (total, done): (i64, i64) = (row.try_get("total")?, row.try_get("done")?);
    let days: Option<f64> = row.try_get("days")?;
    Ok(json!({
        "total": total,
        "open": total - done,
        "done": done,
        "overdue": row.try_get::<_, i64>("overdue")?,
        // Percent; there is none of nothing.
        "completion_rate": (total > 0).then(|| rounded(done as f64 * 100.0 / total as f64)),
        // Of what was completed in the last 30 days.
        "average_days_to_complete": days.map(rounded),
        "completed_by_week": completed_by_week(tx, now).await?,
    }))
}

async fn completed_by_week(tx: &TenantTx, now: DateTime<Utc>) -> Result<Vec<Value>> {
    let today = now.date_naive();
    let this_week = today - Days::new(today.weekday().num_days_from_monday().into());
    let first = this_week - Days::new(7 * (WEEKS - 1));
    let rows = tx
        .query(
            "select date_trunc('week', completed_at, 'UTC') as week, count(*) as completed from tasks \
             where completed_at >= $1 group by 1",
            &[&first.and_time(NaiveTime::MIN).and_utc()],
        )
        .await?;
    let mut weeks: Vec<_> = (0..WEEKS).map(|n| (first + Days::new(7 * n), 0)).collect();
    for row in &rows {
        let week = row.try_get::<_, DateTime<Utc>>("week")?.date_naive();
        let completed: i64 = row.try_get("completed")?;
        weeks.iter_mut().filter(|(known, _)| *known == week).for_each(|(_, count)| *count = completed);
    }
    Ok(weeks.into_iter().map(|(week, completed)| json!({"week": week, "completed": completed})).collect())
}

/// To one place after the point.
fn rounded(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}
