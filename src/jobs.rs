//! Jobs: work that is done after a commit, at least once.
//!
//! A job is put into `platform.jobs` in the transaction of the change that it follows. A worker
//! claims due ones with `skip locked` for as long as a job may take, and removes them when they are
//! done; a worker that dies leaves its jobs to the others when that time is over. What fails is tried
//! again three times, later each time, and then kept with its error.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use anyhow::Context;
use chrono::TimeDelta;
use futures_util::{FutureExt, StreamExt, stream};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    accounts::{emails::ResetRequest, lockout::LockNotice},
    app::App,
    auth::sealing::random,
    db::{Heard, JOBS, Tx},
    error::{Error, Result},
    mail::Letter,
};

/// Something to be done.
#[derive(Debug, Serialize, Deserialize)]
pub enum Job {
    SendMail(Letter),
    ResetPassword(ResetRequest),
    TellOfLock(LockNotice),
}

impl Job {
    fn kind(&self) -> &'static str {
        match self {
            Job::SendMail(_) => "send_mail",
            Job::ResetPassword(_) => "reset_password",
            Job::TellOfLock(_) => "tell_of_lock",
        }
    }

    async fn run(self, app: &App) -> anyhow::Result<()> {
        match self {
            Job::SendMail(letter) => app.mailer.send(letter).await,
            Job::ResetPassword(request) => Ok(request.run(app).await?),
            Job::TellOfLock(notice) => Ok(notice.run(app).await?),
        }
    }
}

/// So many are claimed at once, and done side by side: none waits while its claim runs out.
const BATCH: i64 = 8;
const LIMIT: Duration = Duration::from_secs(300);
/// A claim lasts longer than its job may, so that nobody else begins it in between.
const CLAIM: TimeDelta = TimeDelta::seconds(360);
const ATTEMPTS: i32 = 4;
/// Due jobs are looked for at least this often; otherwise whoever enqueues one says so.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Adds a job that starts after this transaction's commit.
pub async fn enqueue(tx: &Tx, app: &App, job: &Job) -> Result<()> {
    let (id, now) = (Uuid::now_v7(), app.clock.now());
    let plain = serde_json::to_vec(job).map_err(Error::internal)?;
    let sealed = app.sealer.seal(&purpose(id), &plain)?;
    tx.execute(
        "insert into platform.jobs (id, kind, sealed_payload, run_at, created_at) values ($1, $2, $3, $4, $4)",
        &[&id, &job.kind(), &sealed, &now],
    )
    .await?;
    tx.query("select pg_notify($1, '')", &[&JOBS]).await?;
    Ok(())
}

fn purpose(id: Uuid) -> String {
    format!("job {id}")
}

/// Does jobs until it is dropped.
pub async fn work(app: Arc<App>) {
    let mut heard = app.db.listen();
    loop {
        match run_due(&app).await {
            // There may be more where these came from.
            Ok(done) if done == BATCH as usize => continue,
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "jobs could not be claimed; trying again"),
        }
        let _ = tokio::time::timeout(LOOK_EVERY, async {
            loop {
                match heard.next().await {
                    Heard::Notice { channel, .. } if channel == JOBS => return,
                    Heard::Connected => return,
                    Heard::Notice { .. } | Heard::Lost => {}
                }
            }
        })
        .await;
    }
}

/// Does one batch of due jobs, and says how many there were.
pub async fn run_due(app: &App) -> Result<usize> {
    let now = app.clock.now();
    let until = now + CLAIM;
    let tx = app.db.begin().await?;
    // A job that ends its worker each time is not given to the next for ever.
    tx.execute(
        "update platform.jobs set failed_at = $1, locked_until = null, last_error = 'the worker died at it' \
         where failed_at is null and attempts >= $2 and locked_until < $1",
        &[&now, &ATTEMPTS],
    )
    .await?;
    let rows = tx
        .query(
            "update platform.jobs set locked_until = $2, attempts = attempts + 1 where id in ( \
               select id from platform.jobs where failed_at is null and run_at <= $1 \
               and (locked_until is null or locked_until < $1) \
               order by run_at, id limit $3 for update skip locked) \
             returning id, kind, sealed_payload, attempts",
            &[&now, &until, &BATCH],
        )
        .await?;
    tx.commit().await?;
    let claimed = rows
        .iter()
        .map(|row| {
            Ok((
                row.try_get("id")?,
                row.try_get("kind")?,
                row.try_get("sealed_payload")?,
                row.try_get("attempts")?,
            ))
        })
        .collect::<Result<Vec<(Uuid, String, Vec<u8>, i32)>>>()?;
    let count = claimed.len();
    stream::iter(claimed)
        .for_each_concurrent(None, |(id, kind, sealed, attempt)| async move {
            let work =
                AssertUnwindSafe(tokio::time::timeout(LIMIT, run_one(app, id, &sealed))).catch_unwind();
            let outcome = match work.await {
                Ok(Ok(outcome)) => outcome,
                Ok(Err(_)) => Err(anyhow::anyhow!("took longer than 5 minutes")),
                Err(_) => Err(anyhow::anyhow!("panicked")),
            };
            let result = if outcome.is_ok() { "done" } else { "failed" };
            metrics::counter!("rowhouse_jobs_total", "kind" => kind.clone(), "result" => result).increment(1);
            if let Err(error) = settle(app, id, &kind, attempt, outcome).await {
                tracing::warn!(%error, kind, "the end of a job could not be recorded; it will run again");
            }
        })
        .await;
    Ok(count)
}

async fn run_one(app: &App, id: Uuid, sealed: &[u8]) -> anyhow::Result<()> {
    let plain = app.sealer.open(&purpose(id), sealed)?;
    serde_json::from_slice::<Job>(&plain).context("this version does not know the job")?.run(app).await
}

async fn settle(app: &App, id: Uuid, kind: &str, attempt: i32, outcome: anyhow::Result<()>) -> Result<()> {
    let tx = app.db.begin().await?;
    match outcome {
        Ok(()) => {
            tx.execute("delete from platform.jobs where id = $1 and attempts = $2", &[&id, &attempt]).await?;
        }
        Err(error) => {
            let told = format!("{error:#}");
            let for_good = attempt >= ATTEMPTS;
            tracing::warn!(kind, attempt, for_good, error = told, "a job failed");
            let now = app.clock.now();
            let again = now + backoff(attempt);
            tx.execute(
                "update platform.jobs set locked_until = null, last_error = $2, run_at = $3, failed_at = $4 \
                 where id = $1 and attempts = $5",
                &[&id, &told, &again, &for_good.then_some(now), &attempt],
            )
            .await?;
        }
    }
    tx.commit().await
}

/// 10 s, 40 s, 160 s, each up to half as long again, so that what failed together does not come back
/// together.
fn backoff(attempt: i32) -> TimeDelta {
    let base = 10_000 * 4_i64.pow(attempt.clamp(1, 6) as u32 - 1);
    let jitter = random::<2>().map_or(0, |bytes| i64::from(u16::from_le_bytes(bytes)));
    TimeDelta::milliseconds(base + base / 2 * jitter / i64::from(u16::MAX))
}
