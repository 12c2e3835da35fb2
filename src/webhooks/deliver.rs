//! The job of one webhook: sends what is due, one after the other.
//!
//! One at a time keeps the events in order as long as the receiver takes them, and a slow receiver
//! takes one place among many and nobody's connection to the database. What failed is tried again by
//! its own schedule while later events go on.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;
use url::Url;
use uuid::Uuid;

use super::{
    Told, Webhook, clear, find, sealed_for,
    signature::{self, Secret},
    wake,
};
use crate::{
    app::App,
    audit::{Actor, Changes},
    db::{Row, TenantTx},
    error::{Code, Error, Result},
    events::{self, Event, EventType},
    jobs::{Policy, Running, Work, with_jitter},
    outbound::Answer,
    tenancy::Tenant,
};

/// The waits after a failed attempt; after the last one the delivery has failed. About 28 hours.
const WAITS: [Duration; 7] = [
    Duration::from_secs(5),
    Duration::from_secs(5 * 60),
    Duration::from_secs(30 * 60),
    Duration::from_secs(2 * 3600),
    Duration::from_secs(5 * 3600),
    Duration::from_secs(10 * 3600),
    Duration::from_secs(10 * 3600),
];
/// A receiver may ask for a longer wait, up to this.
const LONGEST_WAIT: TimeDelta = TimeDelta::hours(24);
/// A webhook that has failed for so long is switched off.
const PATIENCE: TimeDelta = TimeDelta::days(5);
/// One turn of the job; then others that wait for a place get it.
const TURN: Duration = Duration::from_secs(60);
/// After so many failures in a row nothing is sent for a while, twice as long after each further one.
const FAILURES_BEFORE_A_PAUSE: i32 = 3;
const SHORTEST_PAUSE: TimeDelta = TimeDelta::seconds(15);
const LONGEST_PAUSE: TimeDelta = TimeDelta::minutes(5);
/// Deliveries that are looked up at once.
const LOOKED_UP: i64 = 20;

/// Sends what is due to one webhook.
#[derive(Serialize, Deserialize)]
pub struct Deliver {
    pub webhook: Uuid,
}

impl Work for Deliver {
    const KIND: &'static str = "deliver_webhooks";
    // What fails here is the database or the worker, never the receiver: deliveries have a schedule of
    // their own, and must not be left lying.
    const POLICY: Policy = Policy {
        attempts: 50,
        wait: |attempt| Duration::from_secs(attempt.clamp(1, 60) as u64 * 5),
        slots: 256,
        // One organization's receivers that all hang leave places for the others'.
        per_organization: 16,
        per_lane: 1,
        exclusive: true,
        ..Policy::DEFAULT
    };

    async fn run(self, job: &Running) -> anyhow::Result<()> {
        let app = &*job.app;
        let started = Instant::now();
        let gap = Duration::from_secs(1) / app.config.webhooks.per_second.max(1);
        let mut looked_up = VecDeque::new();
        loop {
            // An organization that is deleted or suspended tells nobody anything; what waits goes on
            // when it is opened again.
            let Some(tenant) = job
                .tenant()
                .await?
                .filter(|tenant| !tenant.is_deleted() && !tenant.is_suspended() && !tenant.is_sandbox())
            else {
                return Ok(());
            };
            if looked_up.is_empty() {
                looked_up = due(app, &tenant, self.webhook).await?;
            }
            let next = looked_up.pop_front().filter(|_| started.elapsed() < TURN);
            let Some(next) = next else { return Ok(wake_for_the_rest(app, &tenant, self.webhook).await?) };
            let Some((due, secrets)) = prepare(app, &tenant, self.webhook, next).await? else {
                looked_up.clear();
                continue;
            };
            let began = Instant::now();
            let attempt = attempt(app, &due, &secrets).await;
            let outcome = if attempt.is_success() { "delivered" } else { "failed" };
            metrics::counter!("rowhouse_webhook_attempts_total", "result" => outcome).increment(1);
            settle(app, &tenant, &due, attempt).await?;
            tokio::time::sleep(gap.saturating_sub(began.elapsed())).await;
        }
    }
}

/// What is to be sent now.
struct Due {
    delivery: Uuid,
    webhook: Webhook,
    attempts: i32,
    event: Event,
}

/// A delivery that is due: its id, its event's, and how often it was tried.
type Looked = (Uuid, Uuid, i32);

/// The first deliveries that are due, in the order of their events; none in a pause. What was never
/// tried is due whatever the clock says: it may have been written by a machine whose clock is ahead.
async fn due(app: &App, tenant: &Tenant, webhook: Uuid) -> Result<VecDeque<Looked>> {
    let tx = tenant.begin().await?;
    let rows = tx
        .query(
            "select d.id, d.event_id, d.attempts from webhook_deliveries d join webhooks w on w.id = d.webhook_id \
             where d.webhook_id = $1 and d.status = 'pending' and (d.attempts = 0 or d.next_attempt_at <= $2) \
             and w.is_active and (w.paused_until is null or w.paused_until <= $2) \
             order by d.position, d.id limit $3",
            &[&webhook, &app.clock.now(), &LOOKED_UP],
        )
        .await?;
    rows.iter()
        .map(|row| Ok((row.try_get("id")?, row.try_get("event_id")?, row.try_get("attempts")?)))
        .collect()
}

/// What is to be sent, and the secrets to sign it with; `None` where that has changed since it was
/// looked up.
async fn prepare(
    app: &App,
    tenant: &Tenant,
    webhook: Uuid,
    (delivery, event_id, attempts): Looked,
) -> Result<Option<(Due, Vec<Secret>)>> {
    let now = app.clock.now();
    let tx = tenant.begin().await?;
    let Some(webhook) = found(find(&tx, webhook, false).await)?.filter(|webhook| webhook.is_active) else {
        return Ok(None);
    };
    let sealed = tx
        .query_opt(
            "select w.sealed_secret, w.sealed_previous_secret, w.previous_secret_until from webhook_deliveries d \
             join webhooks w on w.id = d.webhook_id where d.id = $1 and d.status = 'pending' \
             and (w.paused_until is null or w.paused_until <= $2)",
            &[&delivery, &now],
        )
        .await?;
    let Some(sealed) = sealed else { return Ok(None) };
    let sql = format!("select {} from events where id = $1", Event::COLUMNS);
    let Some(event) = tx.query_opt(&sql, &[&event_id]).await? else {
        // The log is kept longer than deliveries take; it was trimmed by hand.
        find(&tx, webhook.id, true).await?;
        let sql = "update webhook_deliveries set status = 'failed', next_attempt_at = null, finished_at = $2, \
             error = 'the event is not in the log any more' where id = $1 and status = 'pending'";
        let failed = tx.execute(sql, &[&delivery, &now]).await? as i64;
        let sql = "update webhooks set total_deliveries = total_deliveries + $2::bigint, \
             failed_deliveries = failed_deliveries + $2::bigint where id = $1";
        tx.execute(sql, &[&webhook.id, &failed]).await?;
        tx.commit().await?;
        return Ok(None);
    };
    let event = Event::from_row(&event, tx.organization())?;
    let secrets = secrets(app, webhook.id, &sealed)?;
    Ok(Some((Due { delivery, webhook, attempts, event }, secrets)))
}

/// A webhook may have been deleted since its job began.
fn found(webhook: Result<Webhook>) -> Result<Option<Webhook>> {
    match webhook {
        Err(error) if error.code() == Code::NotFound => Ok(None),
        other => other.map(Some),
    }
}

/// The secret, and the one before it while that is good.
fn secrets(app: &App, webhook: Uuid, row: &Row) -> Result<Vec<Secret>> {
    let open =
        |sealed: Vec<u8>| Ok::<_, Error>(Secret::from_bytes(app.sealer.open(&sealed_for(webhook), &sealed)?));
    let mut secrets = vec![open(row.try_get("sealed_secret")?)?];
    let until: Option<DateTime<Utc>> = row.try_get("previous_secret_until")?;
    if let (Some(sealed), Some(until)) = (row.try_get("sealed_previous_secret")?, until)
        && app.clock.now() < until
    {
        secrets.push(open(sealed)?);
    }
    Ok(secrets)
}

/// How an attempt went.
struct Attempt {
    at: DateTime<Utc>,
    took: Duration,
    answer: Result<Answer, String>,
}

impl Attempt {
    fn is_success(&self) -> bool {
        self.answer.as_ref().is_ok_and(|answer| (200..300).contains(&answer.status))
    }

    fn status(&self) -> Option<i32> {
        self.answer.as_ref().ok().map(|answer| answer.status.into())
    }

    /// Why it failed, for people.
    fn error(&self) -> Option<String> {
        match &self.answer {
            Err(error) => Some(error.clone()),
            Ok(_) if self.is_success() => None,
            Ok(answer) if (300..400).contains(&answer.status) => {
                Some(format!("answered {}; redirects are not followed", answer.status))
            }
            Ok(answer) => Some(format!("answered {}", answer.status)),
        }
    }
}

async fn attempt(app: &App, due: &Due, secrets: &[Secret]) -> Attempt {
    let (at, started) = (app.clock.now(), Instant::now());
    let work = async {
        let url: Url = due.webhook.url.as_ref().parse().map_err(|error| format!("{error}"))?;
        // The rules may be stricter than when the address was given.
        app.outbound.check(&url).map_err(|why| format!("the address {why}"))?;
        let body = serde_json::to_vec(&due.event).map_err(|error| error.to_string())?;
        let (id, timestamp) = (due.event.id.to_string(), at.timestamp());
        let signature = signature::sign(secrets, &id, timestamp, &body);
        let request = app
            .outbound
            .client()
            .post(url)
            .header("content-type", "application/json")
            .header("webhook-id", id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", signature)
            .body(body);
        app.outbound.send(request).await
    };
    let answer = work.await;
    Attempt { at, took: started.elapsed(), answer }
}

/// Writes down how an attempt went, and what follows from it.
async fn settle(app: &App, tenant: &Tenant, due: &Due, attempt: Attempt) -> Result<()> {
    let now = app.clock.now();
    let tx = tenant.begin().await?;
    let Some(webhook) = found(find(&tx, due.webhook.id, true).await)? else { return Ok(()) };
    let attempts = due.attempts + 1;
    let duration_ms = attempt.took.as_millis().min(i32::MAX as u128) as i32;
    let (status_code, error) = (attempt.status(), attempt.error());
    let body = attempt.answer.as_ref().ok().map(|answer| answer.body.as_str());
    let gone = status_code == Some(410);
    let again = match attempt.is_success() || gone {
        true => None,
        false => WAITS
            .get(due.attempts as usize)
            .map(|wait| now + with_jitter(*wait, 0.1).max(asked_to_wait(&attempt))),
    };
    let status = match (attempt.is_success(), again) {
        (true, _) => "delivered",
        (false, Some(_)) => "pending",
        (false, None) => "failed",
    };
    let finished = again.is_none().then_some(now);
    let updated = tx
        .execute(
            "update webhook_deliveries set status = $2, attempts = $3, next_attempt_at = $4, response_status = $5, \
             error = $6, duration_ms = $7, finished_at = $8 where id = $1 and status = 'pending'",
            &[&due.delivery, &status, &attempts, &again, &status_code, &error, &duration_ms, &finished],
        )
        .await?;
    if updated == 1 {
        tx.execute(
            "insert into webhook_attempts (id, delivery_id, attempted_at, duration_ms, response_status, response_body, \
             error) values ($1, $2, $3, $4, $5, $6, $7)",
            &[&Uuid::now_v7(), &due.delivery, &attempt.at, &duration_ms, &status_code, &body, &error],
        )
        .await?;
    }
    // What an address did that was given up meanwhile does not count against the new one.
    let same = webhook.url == due.webhook.url;
    let failing_since = match attempt.is_success() {
        true => None,
        false if same => Some(webhook.failing_since.unwrap_or(attempt.at)),
        false => webhook.failing_since,
    };
    let busy = matches!(status_code, Some(429 | 503));
    let asked = if busy { asked_to_wait(&attempt) } else { TimeDelta::zero() };
    let count = |is: bool| i64::from(is && updated == 1);
    tx.execute(
        "update webhooks set failing_since = $2, last_triggered_at = $3, total_deliveries = total_deliveries + $4::bigint, \
         successful_deliveries = successful_deliveries + $5::bigint, failed_deliveries = failed_deliveries + $6::bigint \
         where id = $1",
        &[
            &webhook.id,
            &failing_since,
            &attempt.at,
            &count(finished.is_some()),
            &count(status == "delivered"),
            &count(status == "failed"),
        ],
    )
    .await?;
    if same {
        pause(&tx, webhook.id, attempt.is_success(), now, asked).await?;
    }
    if gone && same {
        disable(app, &tx, webhook, "the receiver answered 410 Gone").await?;
    } else if same && failing_since.is_some_and(|since| now - since >= PATIENCE) {
        disable(app, &tx, webhook, "every attempt failed for 5 days").await?;
    }
    tx.commit().await
}

/// Counts failures in a row, and lets nothing be sent for a while after some of them, or for as long as
/// a busy receiver asks.
async fn pause(
    tx: &TenantTx,
    webhook: Uuid,
    success: bool,
    now: DateTime<Utc>,
    asked: TimeDelta,
) -> Result<()> {
    if success {
        let sql = "update webhooks set failures = 0, paused_until = null where id = $1 and failures > 0";
        tx.execute(sql, &[&webhook]).await?;
        return Ok(());
    }
    let row =
        tx.query_one("select failures + 1 as failures from webhooks where id = $1", &[&webhook]).await?;
    let failures: i32 = row.try_get("failures")?;
    let pause = match failures - FAILURES_BEFORE_A_PAUSE {
        ..0 => TimeDelta::zero(),
        more => (SHORTEST_PAUSE * 2_i32.pow(more.min(10) as u32)).min(LONGEST_PAUSE),
    };
    let pause = pause.max(asked);
    let until = (pause > TimeDelta::zero()).then(|| now + pause);
    let sql = "update webhooks set failures = $2, paused_until = $3 where id = $1";
    tx.execute(sql, &[&webhook, &failures, &until]).await?;
    Ok(())
}

/// What the receiver asks for in `Retry-After`: seconds or a time.
fn asked_to_wait(attempt: &Attempt) -> TimeDelta {
    let asked = attempt.answer.as_ref().ok().and_then(|answer| answer.retry_after.as_deref());
    let wait = asked.and_then(|text| match text.trim().parse::<u32>() {
        Ok(seconds) => Some(TimeDelta::seconds(seconds.into())),
        Err(_) => DateTime::parse_from_rfc2822(text).ok().map(|at| at.to_utc() - attempt.at),
    });
    wait.unwrap_or_default().clamp(TimeDelta::zero(), LONGEST_WAIT)
}

/// Switches a webhook off, and says so.
async fn disable(app: &App, tx: &TenantTx, before: Webhook, why: &str) -> Result<()> {
    if !before.is_active {
        return Ok(());
    }
    clear::give_up(app, tx, before.id).await?;
    tx.execute(
        "update webhooks set is_active = false, disabled_because = $2, updated_at = $3, version = version + 1 \
         where id = $1",
        &[&before.id, &why, &app.clock.now()],
    )
    .await?;
    let after = Webhook { is_active: false, disabled_because: Some(why.into()), ..before.clone() };
    let changes = Changes::between(&json!(Told::from(&before)), &json!(Told::from(&after)));
    events::record(tx, app, Actor::system(), EventType::WebhookDisabled, after.id, changes).await?;
    Ok(())
}

/// Has the job come back for what is pending, when that is due and no pause is in force.
async fn wake_for_the_rest(app: &App, tenant: &Tenant, webhook: Uuid) -> Result<()> {
    let tx = tenant.begin().await?;
    let row = tx
        .query_one(
            "select min(case when d.attempts = 0 then $2::timestamptz else d.next_attempt_at end) as at, \
             max(w.paused_until) as paused from webhook_deliveries d join webhooks w on w.id = d.webhook_id \
             where d.webhook_id = $1 and d.status = 'pending' and w.is_active",
            &[&webhook, &app.clock.now()],
        )
        .await?;
    let paused: Option<DateTime<Utc>> = row.try_get("paused")?;
    if let Some(at) = row.try_get::<_, Option<DateTime<Utc>>>("at")? {
        wake(app, &tx, webhook, Some(paused.map_or(at, |paused| at.max(paused)))).await?;
    }
    tx.commit().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receiver_may_ask_for_a_longer_wait() {
        let at = DateTime::parse_from_rfc3339("2026-01-05T09:00:00Z").unwrap().to_utc();
        let asked = |text: &str| {
            let answer = Answer { status: 503, body: String::new(), retry_after: Some(text.into()) };
            asked_to_wait(&Attempt { at, took: Duration::ZERO, answer: Ok(answer) })
        };
        assert_eq!(asked("120"), TimeDelta::seconds(120));
        assert_eq!(asked("Mon, 05 Jan 2026 09:10:00 GMT"), TimeDelta::minutes(10));
        assert_eq!(asked("Mon, 05 Jan 2026 08:10:00 GMT"), TimeDelta::zero());
        assert_eq!(asked("999999999"), LONGEST_WAIT);
        assert_eq!(asked("soon"), TimeDelta::zero());
    }
}
