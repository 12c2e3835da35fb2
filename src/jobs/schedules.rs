//! Schedules: what is done by the clock, in UTC, once for each tick however many instances run.
//!
//! A tick is claimed by moving the schedule on, in the transaction that enqueues its job: whoever
//! comes second finds nothing due. After a time in which nothing ran, what was missed is done once.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use croner::Cron;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use super::{Running, Terms, Work, enqueue_on};
use crate::{
    app::App,
    db::Tx,
    error::{Error, Result},
};

/// Something that is done by the clock.
pub struct Schedule {
    pub name: &'static str,
    /// Minute, hour, day of the month, month, day of the week; in UTC.
    pub cron: &'static str,
    pub about: &'static str,
    pub run: fn(Arc<App>) -> BoxFuture<'static, anyhow::Result<()>>,
}

impl Schedule {
    /// The first tick after a time.
    fn next(&self, after: DateTime<Utc>) -> Result<DateTime<Utc>> {
        let cron: Cron = self.cron.parse().map_err(Error::internal)?;
        cron.find_next_occurrence(&after, false).map_err(Error::internal)
    }
}

/// How far a schedule may wait past its tick.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Enqueues what is due, until it is dropped.
pub async fn keep(app: Arc<App>) {
    loop {
        if let Err(error) = run_due(&app).await {
            tracing::warn!(%error, "schedules could not be looked at; trying again");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Enqueues every schedule that is due, and says how many were.
pub async fn run_due(app: &App) -> Result<usize> {
    let now = app.clock.now();
    let mut due = 0;
    let tx = app.db.begin().await?;
    let rows = tx
        .query(
            "select name from platform.schedules where next_run_at <= $1 order by name for update skip locked",
            &[&now],
        )
        .await?;
    for row in &rows {
        let name: String = row.try_get("name")?;
        let Some(schedule) = app.schedules().iter().find(|schedule| schedule.name == name) else { continue };
        let terms = Terms { unique: Some(name.clone()), ..Terms::default() };
        enqueue_on(&tx, app, &Scheduled { name }, terms).await?;
        tx.execute(
            "update platform.schedules set last_run_at = $2, next_run_at = $3 where name = $1",
            &[&schedule.name, &now, &schedule.next(now)?],
        )
        .await?;
        due += 1;
    }
    settle_in(&tx, app, now).await?;
    tx.commit().await?;
    Ok(due)
}

/// Writes down schedules that are new or were changed; looks first, as there is nearly never one.
async fn settle_in(tx: &Tx, app: &App, now: DateTime<Utc>) -> Result<()> {
    let known = tx.query("select name, cron from platform.schedules", &[]).await?;
    for schedule in app.schedules() {
        let same = known.iter().any(|row| {
            row.try_get::<_, &str>("name").is_ok_and(|name| name == schedule.name)
                && row.try_get::<_, &str>("cron").is_ok_and(|cron| cron == schedule.cron)
        });
        if same {
            continue;
        }
        tx.execute(
            "insert into platform.schedules (name, cron, next_run_at) values ($1, $2, $3) \
             on conflict (name) do update set cron = excluded.cron, \
             next_run_at = least(schedules.next_run_at, excluded.next_run_at)",
            &[&schedule.name, &schedule.cron, &schedule.next(now)?],
        )
        .await?;
    }
    Ok(())
}

/// The job of one tick.
#[derive(Serialize, Deserialize)]
pub struct Scheduled {
    name: String,
}

impl Work for Scheduled {
    const KIND: &'static str = "scheduled";

    async fn run(self, job: &Running) -> anyhow::Result<()> {
        let app = &job.app;
        // An older version's schedule that is no more.
        let Some(schedule) = app.schedules().iter().find(|schedule| schedule.name == self.name) else {
            return Ok(());
        };
        let outcome = (schedule.run)(app.clone()).await;
        let told = outcome.as_ref().err().map(|error| format!("{error:#}").replace('\0', ""));
        let result = if told.is_none() { "ok" } else { "failed" };
        let tx = app.db.begin().await?;
        tx.execute(
            "update platform.schedules set last_finished_at = $2, last_result = $3, last_error = $4 where name = $1",
            &[&self.name, &app.clock.now(), &result, &told],
        )
        .await?;
        tx.commit().await?;
        outcome
    }
}

/// How a schedule stands.
pub struct Standing {
    pub name: String,
    pub cron: String,
    pub next_run_at: DateTime<Utc>,
    pub last_run_at: Option<DateTime<Utc>>,
    pub last_result: Option<String>,
    pub last_error: Option<String>,
}

/// Every schedule, the next one first.
pub async fn list(app: &App) -> Result<Vec<Standing>> {
    let tx = app.db.begin().await?;
    settle_in(&tx, app, app.clock.now()).await?;
    let rows = tx
        .query(
            "select name, cron, next_run_at, last_run_at, last_result, last_error from platform.schedules \
             order by next_run_at, name",
            &[],
        )
        .await?;
    tx.commit().await?;
    rows.iter()
        .map(|row| {
            Ok(Standing {
                name: row.try_get("name")?,
                cron: row.try_get("cron")?,
                next_run_at: row.try_get("next_run_at")?,
                last_run_at: row.try_get("last_run_at")?,
                last_result: row.try_get("last_result")?,
                last_error: row.try_get("last_error")?,
            })
        })
        .collect()
}
