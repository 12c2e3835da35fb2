//! The job that sends one notification by one channel.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    channels::{ChannelKind, Message, Recipient, Sent},
    open_tenant,
    people::{self, Wishes},
};
use crate::{
    billing::Feature,
    jobs::{self, Policy, Running, Terms, Work},
};

/// Sends a notification, unless it was read meanwhile or is not wanted any more. In quiet hours it
/// waits for their end.
#[derive(Serialize, Deserialize)]
pub struct DeliverNotification {
    pub notification: Uuid,
    pub channel: ChannelKind,
    /// For push: each browser has a job of its own, so that one that fails repeats nothing elsewhere.
    pub browser: Option<Uuid>,
}

impl Work for DeliverNotification {
    const KIND: &'static str = "deliver_notification";
    const POLICY: Policy = Policy { attempts: 6, limit: Duration::from_secs(120), ..Policy::DEFAULT };

    async fn run(self, job: &Running) -> anyhow::Result<()> {
        let app = &*job.app;
        let Some(tenant) = open_tenant(job).await? else { return Ok(()) };
        let tx = tenant.begin().await?;
        let row = tx
            .query_opt(
                "select user_id, kind, title, body, path from notifications where id = $1 and read_at is null",
                &[&self.notification],
            )
            .await?;
        let Some(row) = row else { return Ok(()) };
        let user: Uuid = row.try_get("user_id")?;
        let Some(person) = people::find(&tx, Some(&[user])).await?.pop() else { return Ok(()) };
        let kind = row.try_get("kind")?;
        let wishes = Wishes::of(&tx, &[user]).await?;
        let Some(channel) = app.channels.of(self.channel) else { return Ok(()) };
        let paid_for = self.channel != ChannelKind::Sms || tenant.has(Feature::Sms);
        if !paid_for || !wishes.reaches(app, &person, kind, self.channel) {
            return Ok(());
        }
        if let Some(end) = wishes.quiet_until(&person, app.clock.now()) {
            let browser = self.browser.unwrap_or_default();
            let unique = Some(format!("{} {} {browser}", self.notification, self.channel));
            jobs::enqueue_on(&tx, app, &self, Terms { at: Some(end), unique, ..Terms::default() }).await?;
            return Ok(tx.commit().await?);
        }
        let path: String = row.try_get("path")?;
        let message = Message {
            id: self.notification,
            kind,
            organization: people::organization(&tx).await?,
            title: row.try_get("title")?,
            body: row.try_get("body")?,
            url: format!("{}{path}", app.config.mail.app_url.trim_end_matches('/')),
            path,
        };
        // No connection is held while others answer.
        drop(tx);
        let sms_number = wishes.sms_number(user).cloned();
        let to = Recipient { tenant, person, sms_number, browser: self.browser };
        let sent = channel.send(app, &to, &message).await;
        let result = match &sent {
            Ok(Sent::Done) => "sent",
            Ok(Sent::GivenUp(_)) => "given_up",
            Err(_) => "failed",
        };
        let name = self.channel.name();
        metrics::counter!("rowhouse_notifications_total", "channel" => name, "result" => result).increment(1);
        if let Sent::GivenUp(why) = sent? {
            tracing::warn!(channel = name, notification = %self.notification, why, "a notification was given up");
        }
        Ok(())
    }
}
