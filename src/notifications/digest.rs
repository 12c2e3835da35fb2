//! Digests: one mail for what came together in a day or a week.
//!
//! A notification that waits for a digest says so in its row. Every hour a job looks in each
//! organization for members whose time it is, and another sends one member's mail. The mail is
//! enqueued in the transaction that ends the waiting of what it lists.

use std::collections::HashMap;

use chrono::{DateTime, Timelike, Utc};
use chrono_tz::TZ_VARIANTS;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    channels::ChannelKind,
    hours::next_digest,
    open_tenant,
    people::{self, Wishes},
    settings::Digest,
};
use crate::{
    app::App,
    jobs::{self, Running, Terms, Work},
    mail::{self, Letter},
};

/// So many are listed; the rest is counted.
const LISTED: usize = 50;

/// Looks for digests that are due, where members have their morning. Until noon, so that an outage at
/// eight costs nobody the mail of a day.
pub async fn collect_digests(app: &App) -> anyhow::Result<()> {
    let now = app.clock.now();
    let morning = TZ_VARIANTS.iter().filter(|zone| (8..12).contains(&now.with_timezone(*zone).hour()));
    let zones: Vec<&str> = morning.map(|zone| zone.name()).collect();
    Ok(jobs::enqueue_everywhere(app, Some(&zones), &CollectDigests {}).await?)
}

/// Finds out whose digest is due in an organization.
#[derive(Serialize, Deserialize)]
pub struct CollectDigests {}

impl Work for CollectDigests {
    const KIND: &'static str = "collect_digests";

    async fn run(self, job: &Running) -> anyhow::Result<()> {
        let app = &*job.app;
        let Some(tenant) = open_tenant(job).await? else { return Ok(()) };
        let now = app.clock.now();
        let tx = tenant.begin().await?;
        let sql = "select user_id, min(created_at) as since from notifications where awaits_digest group by user_id";
        let mut waiting: HashMap<Uuid, DateTime<Utc>> = HashMap::new();
        for row in &tx.query(sql, &[]).await? {
            waiting.insert(row.try_get("user_id")?, row.try_get("since")?);
        }
        if waiting.is_empty() {
            return Ok(());
        }
        let users: Vec<Uuid> = waiting.keys().copied().collect();
        let people = people::find(&tx, Some(&users)).await?;
        let wishes = Wishes::of(&tx, &users).await?;
        for person in &people {
            let weekly = wishes.digest(person.id) == Digest::Weekly;
            let Some(since) = waiting.remove(&person.id) else { continue };
            let morning = (8..12).contains(&now.with_timezone(&person.zone).hour());
            if morning && next_digest(since, person.zone, weekly) <= now {
                let terms = Terms {
                    at: wishes.quiet_until(person, now),
                    unique: Some(person.id.to_string()),
                    ..Terms::default()
                };
                jobs::enqueue_on(&tx, app, &SendDigest { user: person.id }, terms).await?;
            }
        }
        // Who is left is no member any more.
        let gone: Vec<Uuid> = waiting.into_keys().collect();
        if !gone.is_empty() {
            tx.execute(
                "update notifications set awaits_digest = false where awaits_digest and user_id = any ($1)",
                &[&gone],
            )
            .await?;
        }
        Ok(tx.commit().await?)
    }
}

/// Mails one member what waits for the digest and was not read meanwhile.
#[derive(Serialize, Deserialize)]
pub struct SendDigest {
    user: Uuid,
}

impl Work for SendDigest {
    const KIND: &'static str = "send_digest";

    async fn run(self, job: &Running) -> anyhow::Result<()> {
        let app = &*job.app;
        let Some(tenant) = open_tenant(job).await? else { return Ok(()) };
        let tx = tenant.begin().await?;
        let rows = tx
            .query(
                "select id, kind, title, read_at is null as unread from notifications \
                 where user_id = $1 and awaits_digest order by id for update",
                &[&self.user],
            )
            .await?;
        let Some(person) = people::find(&tx, Some(&[self.user])).await?.pop() else { return Ok(()) };
        let wishes = Wishes::of(&tx, &[self.user]).await?;
        let (mut ids, mut titles): (Vec<Uuid>, Vec<String>) = (Vec::new(), Vec::new());
        for row in &rows {
            ids.push(row.try_get("id")?);
            let wanted = wishes.reaches(app, &person, row.try_get("kind")?, ChannelKind::Email);
            if wanted && row.try_get("unread")? {
                titles.push(row.try_get("title")?);
            }
        }
        if !titles.is_empty() {
            let count = titles.len();
            let mut lines: Vec<String> =
                titles.into_iter().take(LISTED).map(|title| format!("• {title}")).collect();
            if count > LISTED {
                lines.push(format!("… and {} more.", count - LISTED));
            }
            let organization = people::organization(&tx).await?;
            let count = count.to_string();
            let fields = [
                ("name", person.name.as_str()),
                ("organization", organization.as_str()),
                ("count", count.as_str()),
            ];
            let letter = Letter::new(&person.email, "notification_digest", &fields).with_lines(&lines);
            mail::post(&tx, app, letter).await?;
        }
        tx.execute("update notifications set awaits_digest = false where id = any ($1)", &[&ids]).await?;
        Ok(tx.commit().await?)
    }
}
