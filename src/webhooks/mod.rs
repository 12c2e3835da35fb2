//! Outgoing webhooks: an organization's events, sent to the servers that it names.
//!
//! The dispatcher turns an event into a delivery for each webhook that wants it ([`hand_on`]). A job
//! for each webhook then sends what is due, one after the other in the order of the events
//! ([`deliver`]); requests are signed as Standard Webhooks describes ([`signature`]).

mod api;
mod clear;
mod deliver;
mod quiet;
mod signature;

use chrono::{DateTime, Utc};
use poem_openapi::{Object, registry::MetaSchema, types::Example};
use serde::Serialize;
use url::Url;
use uuid::Uuid;

pub use api::WebhooksApi;
pub use clear::ClearWebhook;
pub use deliver::Deliver;
pub use quiet::quiet;

use crate::{
    app::App,
    db::{Row, TenantTx},
    error::{Error, Result},
    events::{Event, EventType},
    http::Versioned,
    jobs::{self, Terms},
    types::{EXAMPLE_ID, Name, WebUrl, example, example_time, text, text_enum, text_serialize},
};

/// A type of event, or `*` for all.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wanted(String);

impl std::str::FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "*" || text.parse::<EventType>().is_ok_and(|kind| kind != EventType::WebhookTest) {
            return Ok(Self(text.into()));
        }
        Err(format!("there is no event {text:?}; GET /webhook-events lists them, * is all of them"))
    }
}

impl AsRef<str> for Wanted {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

text!([] Wanted, MetaSchema {
    enum_items: std::iter::once("*".into())
        .chain(EventType::ALL.iter().filter(|kind| **kind != EventType::WebhookTest).map(|kind| kind.name().into()))
        .collect(),
    ..MetaSchema::new("string")
});
text_serialize!([] Wanted);

/// A server that is told of events.
#[derive(Clone, Debug, Serialize, Object)]
#[oai(example)]
pub struct Webhook {
    pub id: Uuid,
    pub name: Name,
    pub url: WebUrl,
    /// Types of events, or `*` for all.
    pub events: Vec<Wanted>,
    pub is_active: bool,
    /// Why the service switched it off.
    pub disabled_because: Option<String>,
    /// Since when every attempt has failed. After 5 days it is switched off.
    pub failing_since: Option<DateTime<Utc>>,
    pub total_deliveries: i64,
    pub successful_deliveries: i64,
    pub failed_deliveries: i64,
    pub last_triggered_at: Option<DateTime<Utc>>,
    /// Until then requests are signed with the secret before the last rotation too.
    pub previous_secret_until: Option<DateTime<Utc>>,
    pub created_by: Uuid,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
    #[serde(skip)]
    #[oai(skip)]
    pub version: i64,
}

impl Versioned for Webhook {
    fn version(&self) -> i64 {
        self.version
    }
}

impl Example for Webhook {
    fn example() -> Self {
        Self {
            id: EXAMPLE_ID,
            name: example("Our shop"),
            url: example("https://hooks.example.com/rowhouse"),
            events: vec![example("project.created"), example("task.completed")],
            is_active: true,
            disabled_because: None,
            failing_since: None,
            total_deliveries: 120,
            successful_deliveries: 119,
            failed_deliveries: 1,
            last_triggered_at: Some(example_time()),
            previous_secret_until: None,
            created_by: EXAMPLE_ID,
            created_at: example_time(),
            updated_at: example_time(),
            version: 1,
        }
    }
}

text_enum! {
    /// Where a delivery stands.
    DeliveryStatus { Pending = "pending", Delivered = "delivered", Failed = "failed" }
}

const COLUMNS: &str = "id, name, url, events, is_active, disabled_because, failing_since, total_deliveries, \
     successful_deliveries, failed_deliveries, last_triggered_at, previous_secret_until, created_by, created_at, \
     updated_at, version";

fn from_row(row: &Row) -> Result<Webhook> {
    let events: Vec<String> = row.try_get("events")?;
    Ok(Webhook {
        id: row.try_get("id")?,
        name: row.try_get("name")?,
        url: row.try_get("url")?,
        // A type that this version does not know (any more) is not sent by it either.
        events: events.iter().filter_map(|name| name.parse().ok()).collect(),
        is_active: row.try_get("is_active")?,
        disabled_because: row.try_get("disabled_because")?,
        failing_since: row.try_get("failing_since")?,
        total_deliveries: row.try_get("total_deliveries")?,
        successful_deliveries: row.try_get("successful_deliveries")?,
        failed_deliveries: row.try_get("failed_deliveries")?,
        last_triggered_at: row.try_get("last_triggered_at")?,
        previous_secret_until: row.try_get("previous_secret_until")?,
        created_by: row.try_get("created_by")?,
        created_at: row.try_get("created_at")?,
        updated_at: row.try_get("updated_at")?,
        version: row.try_get("version")?,
    })
}

/// A webhook that must be there, locked where it is about to change.
async fn find(tx: &TenantTx, id: Uuid, to_change: bool) -> Result<Webhook> {
    let lock = if to_change { " for update" } else { "" };
    let sql = format!("select {COLUMNS} from webhooks where id = $1{lock}");
    from_row(&tx.query_opt(&sql, &[&id]).await?.ok_or_else(|| Error::not_found("webhook"))?)
}

/// What is told of a webhook in events: not all of its address, which often is a secret.
#[derive(Serialize)]
struct Told<'a> {
    id: Uuid,
    name: &'a Name,
    url: String,
    events: &'a [Wanted],
    is_active: bool,
    disabled_because: Option<&'a str>,
}

impl<'a> From<&'a Webhook> for Told<'a> {
    fn from(webhook: &'a Webhook) -> Self {
        let Webhook { id, name, url, events, is_active, disabled_because, .. } = webhook;
        let disabled_because = disabled_because.as_deref();
        let parsed: Option<Url> = url.as_ref().parse().ok();
        let url = parsed.map_or_else(String::new, |url| format!("{}/…", url.origin().ascii_serialization()));
        Self { id: *id, name, url, events, is_active: *is_active, disabled_because }
    }
}

/// Makes deliveries of events for the webhooks that want them, in the dispatcher's transaction.
pub async fn hand_on(app: &App, tx: &TenantTx, events: &[Event]) -> Result<()> {
    // Shared locks, so that nobody switches one off while deliveries are made for it.
    let sql = "select id, events, paused_until from webhooks where is_active order by id for key share";
    let rows = tx.query(sql, &[]).await?;
    // What waited while the organization was closed goes on.
    let opened = [EventType::OrganizationResumed, EventType::OrganizationRestored];
    let opened = events.iter().any(|event| event.known().is_some_and(|kind| opened.contains(&kind)));
    for row in &rows {
        let (webhook, wanted): (Uuid, Vec<String>) = (row.try_get("id")?, row.try_get("events")?);
        if opened {
            wake(app, tx, webhook, None).await?;
        }
        let paused: Option<DateTime<Utc>> = row.try_get("paused_until")?;
        // A test goes to the webhook that it is of, which has its delivery already.
        let wants = |event: &&Event| {
            event.known() != Some(EventType::WebhookTest)
                && wanted.iter().any(|name| name == "*" || *name == event.kind)
        };
        let chosen: Vec<Sent> = events.iter().filter(wants).map(Sent::from).collect();
        if !chosen.is_empty() {
            send(app, tx, webhook, &chosen, paused).await?;
        }
    }
    Ok(())
}

/// An event, as far as a delivery knows it.
struct Sent {
    event: Uuid,
    kind: String,
    position: i64,
}

impl From<&Event> for Sent {
    fn from(event: &Event) -> Self {
        Self { event: event.id, kind: event.kind.clone(), position: event.position.unwrap_or_default() }
    }
}

/// Makes deliveries of these events and wakes the webhook's job, at once or when its pause is over.
/// Answers their ids.
async fn send(
    app: &App,
    tx: &TenantTx,
    webhook: Uuid,
    events: &[Sent],
    paused_until: Option<DateTime<Utc>>,
) -> Result<Vec<Uuid>> {
    let now = app.clock.now();
    let ids: Vec<Uuid> = events.iter().map(|_| Uuid::now_v7()).collect();
    let event_ids: Vec<Uuid> = events.iter().map(|sent| sent.event).collect();
    let kinds: Vec<&str> = events.iter().map(|sent| sent.kind.as_str()).collect();
    let positions: Vec<i64> = events.iter().map(|sent| sent.position).collect();
    tx.execute(
        "insert into webhook_deliveries (id, webhook_id, event_id, event_type, position, status, next_attempt_at, \
         created_at) select new.id, $1, new.event_id, new.event_type, new.position, 'pending', $6, $6 \
         from unnest($2::uuid[], $3::uuid[], $4::text[], $5::bigint[]) as new (id, event_id, event_type, position)",
        &[&webhook, &ids, &event_ids, &kinds, &positions, &now],
    )
    .await?;
    wake(app, tx, webhook, paused_until).await?;
    Ok(ids)
}

/// Has the webhook's job look at what is due, now or at a time.
async fn wake(app: &App, tx: &TenantTx, webhook: Uuid, at: Option<DateTime<Utc>>) -> Result<()> {
    // A copy of an organization has webhooks with the same ids: a lane is of both.
    let lane = Uuid::from_u128(tx.organization().as_u128() ^ webhook.as_u128());
    let terms = Terms { at, unique: Some(webhook.to_string()), lane: Some(lane), organization: None };
    jobs::enqueue_on(tx, app, &Deliver { webhook }, terms).await
}

/// The purpose under which a webhook's secret is sealed.
fn sealed_for(webhook: Uuid) -> String {
    format!("webhook {webhook}")
}
