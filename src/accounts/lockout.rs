//! Lockout: after some failed attempts an account takes no more for a while, each time for longer.
//!
//! Attempts are counted before the password is looked at, so that many at once get no further than
//! one after the other; a success takes the count back. A name that is nobody's is locked like an
//! account, so a lock tells nothing.

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use super::{
    profile,
    security_events::{self, About, SecurityEventType},
};
use crate::{
    app::App,
    auth::{
        Origin,
        sealing::{hex, sha256},
    },
    db::Tx,
    error::{Code, Error, Result},
    jobs::{self, Running, Work},
    mail::{self, Letter},
};

/// What attempts are counted by.
pub struct Subject {
    /// The account, if the name is one's.
    user: Option<Uuid>,
    hash: Vec<u8>,
}

impl Subject {
    pub fn new(user: Option<Uuid>, typed: &str) -> Self {
        let hash = match user {
            Some(id) => sha256(format!("user {id}").as_bytes()),
            None => sha256(format!("name {}", typed.to_lowercase()).as_bytes()),
        };
        Self { user, hash }
    }

    /// The key of the rate limit on logins.
    pub fn key(&self) -> String {
        hex(&self.hash[..16])
    }
}

/// Counts an attempt that is about to be made; refuses while the account is locked.
pub async fn attempt(tx: &Tx, app: &App, subject: &Subject) -> Result<()> {
    let now = app.clock.now();
    let window = now - TimeDelta::minutes(app.config.auth.lockout_minutes.into());
    let most = app.config.auth.lockout_attempts;
    let row = tx
        .query_opt(
            "insert into platform.login_failures as f (subject, failures, first_failure_at, updated_at) \
             values ($1, 1, $2, $2) on conflict (subject) do update set \
             failures = case when f.first_failure_at < $3 then 1 else f.failures + 1 end, \
             first_failure_at = case when f.first_failure_at < $3 then excluded.first_failure_at \
               else f.first_failure_at end, \
             updated_at = excluded.updated_at \
             where (f.locked_until is null or f.locked_until <= $2) \
             and (f.failures < $4 or f.first_failure_at < $3) returning failures",
            &[&subject.hash, &now, &window, &most],
        )
        .await?;
    if row.is_some() {
        return Ok(());
    }
    let row = tx
        .query_opt("select locked_until from platform.login_failures where subject = $1", &[&subject.hash])
        .await?;
    let until: Option<DateTime<Utc>> = row.map(|row| row.try_get("locked_until")).transpose()?.flatten();
    // Without a lock yet, as many attempts are under way as may fail.
    let seconds = until.map_or(1, |until| (until - now).num_seconds().max(1));
    Err(Error::new(
        Code::AccountLocked,
        format!("Too many failed attempts. Try again in {seconds} s, or set a new password."),
    )
    .retry_after(seconds as u32))
}

/// The attempt failed; the last one that is allowed locks.
pub async fn failed(tx: &Tx, app: &App, subject: &Subject, origin: &Origin) -> Result<()> {
    let now = app.clock.now();
    let about = About { user: subject.user, organization: None };
    security_events::record(tx, app, SecurityEventType::LoginFailed, about, origin, json!({})).await?;
    let first = i64::from(app.config.auth.lockout_minutes) * 60;
    let row = tx
        .query_opt(
            "update platform.login_failures set locks = locks + 1, failures = 0, \
             locked_until = $2::timestamptz + least(86400, $3::float8 * power(2::float8, least(locks, 20)::float8)) * interval '1 second' \
             where subject = $1 and failures >= $4 returning locked_until",
            &[&subject.hash, &now, &(first as f64), &app.config.auth.lockout_attempts],
        )
        .await?;
    if let Some(row) = row {
        // For a made-up name too, so that both take as long.
        security_events::record(tx, app, SecurityEventType::AccountLocked, about, origin, json!({})).await?;
        let notice = LockNotice { user: subject.user, until: row.try_get("locked_until")? };
        jobs::enqueue(tx, app, &notice).await?;
    }
    Ok(())
}

/// The attempt was neither a failure nor a success yet.
pub async fn undo(tx: &Tx, subject: &Subject) -> Result<()> {
    let sql = "update platform.login_failures set failures = greatest(failures - 1, 0) where subject = $1";
    tx.execute(sql, &[&subject.hash]).await?;
    Ok(())
}

/// Somebody proved to be the account's owner: what failed before is forgotten.
pub async fn forget(tx: &Tx, user: Uuid) -> Result<()> {
    let subject = Subject::new(Some(user), "");
    tx.execute("delete from platform.login_failures where subject = $1", &[&subject.hash]).await?;
    Ok(())
}

/// Tells somebody that their account is locked.
#[derive(Debug, Serialize, Deserialize)]
pub struct LockNotice {
    user: Option<Uuid>,
    until: DateTime<Utc>,
}

impl Work for LockNotice {
    const KIND: &'static str = "tell_of_lock";

    async fn run(self, job: &Running) -> anyhow::Result<()> {
        let app = &*job.app;
        let Some(user) = self.user else { return Ok(()) };
        let tx = app.db.begin().await?;
        let profile = profile::find(&tx, user).await?;
        let time = self.until.format("%Y-%m-%d %H:%M UTC").to_string();
        let fields = [("name", profile.first_name.as_ref()), ("time", &time)];
        mail::post(&tx, app, Letter::new(&profile.email, "account_locked", &fields)).await?;
        Ok(tx.commit().await?)
    }
}
