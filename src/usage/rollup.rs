//! Every night: hours become days, what is not counted is measured, and what has had its time goes.
//!
//! All of it may be done again, by a job that is tried once more or by hand: sums come to the same, and what
//! was measured at the end of a day stays.

use std::time::Duration;

use chrono::{DateTime, Days, Months, NaiveDate, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Metric, partitions, start_of};
use crate::{
    app::App,
    billing::limits::{self, first_of},
    db::Tx,
    error::Result,
    jobs::{self, Policy, Running, Terms, Work},
};

/// Hours are kept for so many days.
pub(super) const HOURS_KEPT: Days = Days::new(35);
/// The days that ended last are summed again: what could not be written in time is in them then. Who
/// reads them sums their hours.
pub(super) const SUMMED_AGAIN: Days = Days::new(3);
/// Partitions are made for so many months to come.
const MONTHS_AHEAD: u32 = 2;

/// Begins what is done when a day has ended.
pub async fn begin_roll_up(app: &App) -> anyhow::Result<()> {
    let tx = app.db.begin().await?;
    let terms = Terms { unique: Some("usage".into()), ..Terms::default() };
    jobs::enqueue_on(&tx, app, &RollUpUsage, terms).await?;
    Ok(tx.commit().await?)
}

/// Sums the days that have ended, has organizations measured, and removes what has had its time.
#[derive(Serialize, Deserialize)]
pub struct RollUpUsage;

impl Work for RollUpUsage {
    const KIND: &'static str = "roll_up_usage";
    const POLICY: Policy = Policy { limit: Duration::from_secs(3600), exclusive: true, ..Policy::DEFAULT };

    async fn run(self, job: &Running) -> anyhow::Result<()> {
        let app = &*job.app;
        let today = app.clock.now().date_naive();
        partitions::ensure(app, first_of(today - Days::new(1))).await?;
        for ahead in 0..=MONTHS_AHEAD {
            partitions::ensure(app, first_of(today) + Months::new(ahead)).await?;
        }
        jobs::enqueue_everywhere(app, None, &MeasureUsage).await?;
        roll_up(app, today).await?;
        Ok(forget(app, today).await?)
    }
}

/// Sums the hours of days that have ended: of the last few, and of all that are not summed yet.
async fn roll_up(app: &App, today: NaiveDate) -> Result<()> {
    let again = today - SUMMED_AGAIN;
    // The hours of a day that was summed long ago may be gone in part, so it is left as it is.
    let tx = app.db.begin().await?;
    let last = last_summed(&tx).await?;
    drop(tx);
    let mut from = last.map_or(NaiveDate::default(), |last| again.min(last + Days::new(1)));
    while let Some(day) = next_with_hours(app, from, today).await? {
        sum(app, day).await?;
        from = day + Days::new(1);
    }
    Ok(())
}

/// The last day that was summed, of whomever.
pub(super) async fn last_summed(tx: &Tx) -> Result<Option<NaiveDate>> {
    let sql = "select max(bucket) from platform.usage_records where grain = 'day' \
         and metric in ('api_calls', 'requests')";
    let last: Option<DateTime<Utc>> = tx.query_one(sql, &[]).await?.try_get(0)?;
    Ok(last.map(|last| last.date_naive()))
}

/// The first day with hours, from one until before another.
async fn next_with_hours(app: &App, from: NaiveDate, until: NaiveDate) -> Result<Option<NaiveDate>> {
    let tx = app.db.begin().await?;
    let sql = "select min(bucket) from platform.usage_records where grain = 'hour' and bucket >= $1 and bucket < $2";
    let row = tx.query_one(sql, &[&start_of(from), &start_of(until)]).await?;
    let first: Option<DateTime<Utc>> = row.try_get(0)?;
    Ok(first.map(|first| first.date_naive()))
}

async fn sum(app: &App, day: NaiveDate) -> Result<()> {
    let tx = app.db.begin().await?;
    tx.command("set local statement_timeout to '4min'").await?;
    tx.execute(
        "insert into platform.usage_records as known (organization_id, metric, grain, bucket, key_id, route_group, \
         quantity) select h.organization_id, h.metric, 'day', $1::timestamptz, h.key_id, h.route_group, \
         sum(h.quantity)::bigint from platform.usage_records h \
         where h.grain = 'hour' and h.bucket >= $1::timestamptz and h.bucket < $2::timestamptz \
         group by h.organization_id, h.metric, h.key_id, h.route_group \
         order by h.organization_id, h.metric, h.key_id, h.route_group \
         on conflict (organization_id, metric, grain, bucket, key_id, route_group) \
         do update set quantity = excluded.quantity where known.quantity <> excluded.quantity",
        &[&start_of(day), &start_of(day + Days::new(1))],
    )
    .await?;
    tx.commit().await
}

/// Removes what has had its time.
async fn forget(app: &App, today: NaiveDate) -> Result<()> {
    let before = start_of(today - HOURS_KEPT);
    loop {
        let tx = app.db.begin().await?;
        // An hour at a time: what locks no more than that holds nobody up.
        let removed = tx
            .execute(
                "delete from platform.usage_records where grain = 'hour' and bucket = ( \
                 select min(bucket) from platform.usage_records where grain = 'hour' and bucket < $1)",
                &[&before],
            )
            .await?;
        tx.commit().await?;
        if removed == 0 {
            break;
        }
    }
    let oldest = first_of(today) - Months::new(app.config.retention.usage_months);
    let tx = app.db.begin().await?;
    tx.execute("delete from platform.api_call_months where month < $1", &[&oldest]).await?;
    tx.commit().await?;
    partitions::drop_before(app, oldest).await
}

/// Measures what an organization has of what is not counted, for the day that has ended. A day that was
/// measured stays as it was.
#[derive(Serialize, Deserialize)]
pub struct MeasureUsage;

impl Work for MeasureUsage {
    const KIND: &'static str = "measure_usage";

    async fn run(self, job: &Running) -> anyhow::Result<()> {
        let Some(tenant) = job.tenant().await?.filter(|tenant| !tenant.is_deleted()) else { return Ok(()) };
        let ended = job.app.clock.now().date_naive() - Days::new(1);
        let tx = tenant.begin().await?;
        let (mut metrics, mut values) = (Vec::new(), Vec::new());
        for there in limits::ask_all(&tx, &job.app).await? {
            let metric = Metric::ALL.iter().find(|metric| metric.resource() == Some(there.resource));
            if let Some(metric) = metric {
                metrics.push(*metric);
                values.push(there.used);
            }
        }
        tx.execute(
            "insert into platform.usage_records (organization_id, metric, grain, bucket, key_id, route_group, quantity) \
             select $1::uuid, new.metric, 'day', $2::timestamptz, $3::uuid, '', new.quantity \
             from unnest($4::text[], $5::bigint[]) as new (metric, quantity) \
             on conflict (organization_id, metric, grain, bucket, key_id, route_group) do nothing",
            &[&tenant.id(), &start_of(ended), &Uuid::nil(), &metrics, &values],
        )
        .await?;
        Ok(tx.commit().await?)
    }
}
