//! Managing webhooks, and seeing what became of deliveries.

use chrono::{DateTime, Utc};
use poem_openapi::{
    Object, OpenApi,
    param::{Path, Query},
    types::{Example, MaybeUndefined},
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use url::Url;
use uuid::Uuid;

use super::{
    COLUMNS, DeliveryStatus, Sent, Told, Wanted, Webhook, clear, find, from_row, sealed_for, send,
    signature::Secret, wake,
};
use crate::{
    api::Tag,
    app::App,
    audit::Changes,
    auth::{Can, Member, permissions::WebhooksManage},
    db::{Row, Select, TenantTx},
    error::{Error, Result},
    events::{self, EventType},
    http::{Body, Created, IfMatch, Json, NoContent, Queued, Single, Versioned},
    page::{Cursor, CursorPage, ListCursor, Order, Page, Paging, Stretch},
    types::{EXAMPLE_ID, Name, WebUrl, change, example, example_time},
};

/// An organization can have so many.
const MOST: i64 = 50;
/// So many events are replayed by one request.
const MOST_REPLAYED: i64 = 10_000;

/// A webhook to be made.
#[derive(Debug, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(deny_unknown_fields, example)]
pub struct NewWebhook {
    pub name: Name,
    pub url: WebUrl,
    /// Types of events, or `*` for all. The caller must be allowed to see each of them.
    pub events: Vec<Wanted>,
    /// `whsec_` and 24 to 64 bytes in base64; made where it is absent.
    pub secret: Option<String>,
    /// True where it is absent.
    pub is_active: Option<bool>,
}

impl Example for NewWebhook {
    fn example() -> Self {
        Self {
            name: example("Our shop"),
            url: example("https://hooks.example.com/rowhouse"),
            events: vec![example("project.created"), example("task.completed")],
            secret: None,
            is_active: None,
        }
    }
}

/// What changes; what is absent stays.
#[derive(Debug, Default, Deserialize, Object)]
#[serde(deny_unknown_fields, default)]
#[oai(deny_unknown_fields, example)]
pub struct WebhookChange {
    pub name: MaybeUndefined<Name>,
    pub url: MaybeUndefined<WebUrl>,
    pub events: MaybeUndefined<Vec<Wanted>>,
    /// False gives up what is pending; true begins anew.
    pub is_active: MaybeUndefined<bool>,
}

impl Example for WebhookChange {
    fn example() -> Self {
        Self { events: MaybeUndefined::Value(vec![example("*")]), ..Self::default() }
    }
}

/// A webhook with its secret, which is not shown again.
#[derive(Debug, Serialize, Object)]
#[oai(example)]
pub struct WebhookWithSecret {
    pub secret: String,
    #[serde(flatten)]
    #[oai(flatten)]
    pub about: Webhook,
}

impl Versioned for WebhookWithSecret {
    fn version(&self) -> i64 {
        self.about.version
    }
}

impl Example for WebhookWithSecret {
    fn example() -> Self {
        Self { secret: "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".into(), about: Webhook::example() }
    }
}

/// How a secret is replaced.
#[derive(Debug, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(deny_unknown_fields, example)]
pub struct SecretRotation {
    /// Hours for which requests are signed with both secrets, 0 to 168; 24 where it is absent.
    pub overlap_hours: Option<u32>,
}

impl Example for SecretRotation {
    fn example() -> Self {
        Self { overlap_hours: Some(24) }
    }
}

/// Which events are sent again.
#[derive(Debug, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(deny_unknown_fields, example)]
pub struct Replay {
    /// Events from this time on...
    pub from: DateTime<Utc>,
    /// ... and before this one.
    pub to: DateTime<Utc>,
    /// Also those that were delivered; false where it is absent.
    pub delivered_too: Option<bool>,
    /// Only events after this position; for going on.
    pub after: Option<i64>,
}

impl Example for Replay {
    fn example() -> Self {
        Self {
            from: example_time(),
            to: example_time() + chrono::TimeDelta::hours(6),
            delivered_too: None,
            after: None,
        }
    }
}

/// What a replay began.
#[derive(Debug, Serialize, Object)]
#[oai(example)]
pub struct Replayed {
    /// Deliveries that were made.
    pub deliveries: i64,
    /// Where there are more in that time: replay the same with `after`.
    pub next_after: Option<i64>,
}

impl Example for Replayed {
    fn example() -> Self {
        Self { deliveries: 12, next_after: None }
    }
}

/// An event on its way to a webhook.
#[derive(Debug, Serialize, Object)]
#[oai(example)]
pub struct Delivery {
    pub id: Uuid,
    pub webhook_id: Uuid,
    /// Also the `webhook-id` of the request.
    pub event_id: Uuid,
    pub event_type: String,
    pub status: DeliveryStatus,
    pub attempts: i32,
    pub next_attempt_at: Option<DateTime<Utc>>,
    /// Of the last attempt.
    pub response_status: Option<i32>,
    /// What the last attempt failed with.
    pub error: Option<String>,
    /// Of the last attempt.
    pub duration_ms: Option<i32>,
    pub created_at: DateTime<Utc>,
    pub finished_at: Option<DateTime<Utc>>,
}

impl Example for Delivery {
    fn example() -> Self {
        Self {
            id: EXAMPLE_ID,
            webhook_id: EXAMPLE_ID,
            event_id: EXAMPLE_ID,
            event_type: "project.created".into(),
            status: DeliveryStatus::Delivered,
            attempts: 1,
            next_attempt_at: None,
            response_status: Some(200),
            error: None,
            duration_ms: Some(84),
            created_at: example_time(),
            finished_at: Some(example_time()),
        }
    }
}

/// One try to deliver.
#[derive(Debug, Serialize, Object)]
#[oai(example)]
pub struct DeliveryAttempt {
    pub attempted_at: DateTime<Utc>,
    pub duration_ms: i32,
    pub response_status: Option<i32>,
    /// The beginning of the answer, up to 16 KiB.
    pub response_body: Option<String>,
    pub error: Option<String>,
}

impl Example for DeliveryAttempt {
    fn example() -> Self {
        Self {
            attempted_at: example_time(),
            duration_ms: 84,
            response_status: Some(200),
            response_body: Some("thanks".into()),
            error: None,
        }
    }
}

/// A delivery with every attempt.
#[derive(Debug, Serialize, Object)]
#[oai(example)]
pub struct DeliveryDetail {
    #[serde(flatten)]
    #[oai(flatten)]
    pub about: Delivery,
    pub history: Vec<DeliveryAttempt>,
}

impl Example for DeliveryDetail {
    fn example() -> Self {
        Self { about: Delivery::example(), history: vec![DeliveryAttempt::example()] }
    }
}

pub struct WebhooksApi;

#[OpenApi(tag = "Tag::Webhooks")]
impl WebhooksApi {
    /// List webhooks, the newest first.
    #[oai(path = "/webhooks", method = "get", operation_id = "list_webhooks")]
    async fn list(
        &self,
        who: Can<WebhooksManage>,
        page: Query<Option<u32>>,
        page_size: Query<Option<u32>>,
        cursor: Query<Option<ListCursor>>,
        is_active: Query<Option<bool>>,
    ) -> Result<Json<Page<Webhook>>> {
        let paging = Paging::new(page.0, page_size.0, cursor.0)?;
        let tx = who.begin().await?;
        let page = Select::new(COLUMNS, "webhooks")
            .and_if("is_active = ?", &is_active.0)
            .page(&tx, &Order::down("created_at", "timestamptz", "id"), &paging, from_row)
            .await?;
        Ok(Json(page))
    }

    /// Make a webhook.
    ///
    /// Events are posted to it in their order, signed as Standard Webhooks describes. The secret is in
    /// the answer and nowhere else.
    #[oai(path = "/webhooks", method = "post", operation_id = "create_webhook")]
    async fn create(
        &self,
        who: Can<WebhooksManage>,
        new: Body<NewWebhook>,
    ) -> Result<Created<WebhookWithSecret>> {
        let app = &*who.app;
        let new = new.0;
        let secret = match &new.secret {
            Some(text) => text.parse().map_err(|why: String| Error::invalid("secret", why))?,
            None => Secret::generate()?,
        };
        let now = app.clock.now();
        let mut about = Webhook {
            id: Uuid::now_v7(),
            name: new.name,
            url: new.url,
            events: new.events,
            is_active: new.is_active.unwrap_or(true),
            disabled_because: None,
            failing_since: None,
            total_deliveries: 0,
            successful_deliveries: 0,
            failed_deliveries: 0,
            last_triggered_at: None,
            previous_secret_until: None,
            created_by: who.user_id,
            created_at: now,
            updated_at: now,
            version: 1,
        };
        check(app, &who, &mut about)?;
        let tx = who.begin().await?;
        // Two at once must not both be the last.
        tx.query("select id from settings where id = 1 for update", &[]).await?;
        let row = tx.query_one("select count(*) from webhooks", &[]).await?;
        if row.try_get::<_, i64>(0)? >= MOST {
            return Err(Error::conflict(format!("An organization can have {MOST} webhooks.")));
        }
        tx.execute(
            "insert into webhooks (id, name, url, events, sealed_secret, is_active, created_by, created_at, updated_at) \
             values ($1, $2, $3, $4, $5, $6, $7, $8, $8)",
            &[
                &about.id,
                &about.name,
                &about.url,
                &names(&about.events),
                &app.sealer.seal(&sealed_for(about.id), secret.bytes())?,
                &about.is_active,
                &about.created_by,
                &now,
            ],
        )
        .await?;
        let changes = Changes::created(&Told::from(&about));
        events::record(&tx, app, &*who, EventType::WebhookCreated, about.id, changes).await?;
        tx.commit().await?;
        let location = format!("/api/v1/webhooks/{}", about.id);
        Ok(Created { location, value: WebhookWithSecret { secret: secret.text(), about } })
    }

    /// See a webhook.
    #[oai(path = "/webhooks/:webhook_id", method = "get", operation_id = "get_webhook")]
    async fn get(&self, who: Can<WebhooksManage>, webhook_id: Path<Uuid>) -> Result<Single<Webhook>> {
        let tx = who.begin().await?;
        Ok(Single(find(&tx, webhook_id.0, false).await?))
    }

    /// Change a webhook.
    #[oai(path = "/webhooks/:webhook_id", method = "patch", operation_id = "update_webhook")]
    async fn update(
        &self,
        who: Can<WebhooksManage>,
        webhook_id: Path<Uuid>,
        expected: IfMatch,
        to: Body<WebhookChange>,
    ) -> Result<Single<Webhook>> {
        let app = &*who.app;
        let tx = who.begin().await?;
        let mut webhook = find(&tx, webhook_id.0, true).await?;
        expected.check(webhook.version)?;
        let before = webhook.clone();
        change(&mut webhook.name, "name", to.0.name)?;
        change(&mut webhook.url, "url", to.0.url)?;
        change(&mut webhook.events, "events", to.0.events)?;
        change(&mut webhook.is_active, "is_active", to.0.is_active)?;
        // Whoever may not see its events may still rename it or switch it off.
        let moved = webhook.url != before.url;
        if moved || webhook.events != before.events || (webhook.is_active && !before.is_active) {
            check(app, &who, &mut webhook)?;
        }
        if before.is_active && !webhook.is_active {
            clear::give_up(app, &tx, webhook.id).await?;
        }
        if webhook.is_active && !before.is_active {
            webhook.disabled_because = None;
        }
        // Another address, or another try, begins without the failures and pauses of the last.
        let afresh = moved || !before.is_active;
        if afresh {
            webhook.failing_since = None;
        }
        webhook.updated_at = app.clock.now();
        webhook.version += 1;
        tx.execute(
            "update webhooks set name = $2, url = $3, events = coalesce($4, events), is_active = $5, \
             disabled_because = $6, failing_since = $7, updated_at = $8, version = $9, \
             failures = case when $10 then 0 else failures end, \
             paused_until = case when $10 then null else paused_until end where id = $1",
            &[
                &webhook.id,
                &webhook.name,
                &webhook.url,
                // Those that only another version of the service knows stay as long as nobody changes the list.
                &(webhook.events != before.events).then(|| names(&webhook.events)),
                &webhook.is_active,
                &webhook.disabled_because,
                &webhook.failing_since,
                &webhook.updated_at,
                &webhook.version,
                &afresh,
            ],
        )
        .await?;
        if afresh && webhook.is_active {
            wake(app, &tx, webhook.id, None).await?;
        }
        let changes = Changes::between(&Told::from(&before), &Told::from(&webhook));
        events::record(&tx, app, &*who, EventType::WebhookUpdated, webhook.id, changes).await?;
        tx.commit().await?;
        Ok(Single(webhook))
    }

    /// Remove a webhook with its deliveries.
    #[oai(path = "/webhooks/:webhook_id", method = "delete", operation_id = "delete_webhook")]
    async fn delete(
        &self,
        who: Can<WebhooksManage>,
        webhook_id: Path<Uuid>,
        expected: IfMatch,
    ) -> Result<NoContent> {
        let tx = who.begin().await?;
        let webhook = find(&tx, webhook_id.0, true).await?;
        expected.check(webhook.version)?;
        tx.execute("delete from webhooks where id = $1", &[&webhook.id]).await?;
        clear::forget(&who.app, &tx, webhook.id).await?;
        let changes = Changes::deleted(&Told::from(&webhook));
        events::record(&tx, &who.app, &*who, EventType::WebhookDeleted, webhook.id, changes).await?;
        tx.commit().await?;
        Ok(NoContent)
    }

    /// Replace the secret of a webhook.
    ///
    /// For a while requests are signed with both, so that the receiver can change over. The new secret
    /// is in the answer and nowhere else.
    #[oai(
        path = "/webhooks/:webhook_id/rotate-secret",
        method = "post",
        operation_id = "rotate_webhook_secret"
    )]
    async fn rotate(
        &self,
        who: Can<WebhooksManage>,
        webhook_id: Path<Uuid>,
        how: Body<SecretRotation>,
    ) -> Result<Single<WebhookWithSecret>> {
        let app = &*who.app;
        let hours = how.0.overlap_hours.unwrap_or(24);
        if hours > 168 {
            return Err(Error::invalid("overlap_hours", "must be from 0 to 168"));
        }
        let now = app.clock.now();
        let secret = Secret::generate()?;
        let tx = who.begin().await?;
        let before = find(&tx, webhook_id.0, true).await?;
        tx.execute(
            "update webhooks set sealed_previous_secret = sealed_secret, previous_secret_until = $2, sealed_secret = $3, \
             updated_at = $4, version = version + 1 where id = $1",
            &[
                &before.id,
                &(now + chrono::TimeDelta::hours(hours.into())),
                &app.sealer.seal(&sealed_for(before.id), secret.bytes())?,
                &now,
            ],
        )
        .await?;
        let about = find(&tx, before.id, false).await?;
        let changes = Changes::none(&Told::from(&about)).about("secret", "rotated");
        events::record(&tx, app, &*who, EventType::WebhookUpdated, about.id, changes).await?;
        tx.commit().await?;
        Ok(Single(WebhookWithSecret { secret: secret.text(), about }))
    }

    /// Send a test event to a webhook.
    #[oai(path = "/webhooks/:webhook_id/test", method = "post", operation_id = "test_webhook")]
    async fn test(&self, who: Can<WebhooksManage>, webhook_id: Path<Uuid>) -> Result<Queued<Delivery>> {
        let app = &*who.app;
        let tx = who.begin().await?;
        let webhook = active(&tx, webhook_id.0).await?;
        let about = Changes::none(&json!({"webhook_id": webhook.id}));
        let event = events::record(&tx, app, &*who, EventType::WebhookTest, webhook.id, about).await?;
        queue(app, tx, webhook.id, Sent { event, kind: EventType::WebhookTest.name().into(), position: 0 })
            .await
    }

    /// Send events of a time again.
    ///
    /// Makes a delivery for each event of that time that the webhook wants and that was not delivered
    /// to it, also those from before it was made or while it was switched off; at most 10,000 at once.
    #[oai(path = "/webhooks/:webhook_id/replay", method = "post", operation_id = "replay_webhook")]
    async fn replay(
        &self,
        who: Can<WebhooksManage>,
        webhook_id: Path<Uuid>,
        which: Body<Replay>,
    ) -> Result<Json<Replayed>> {
        let app = &*who.app;
        let Replay { from, to, delivered_too, after } = which.0;
        if from >= to {
            return Err(Error::invalid("to", "must be after from"));
        }
        let tx = who.begin().await?;
        let webhook = active(&tx, webhook_id.0).await?;
        let rows = tx
            .query(
                "select e.id, e.type, e.position from events e \
                 where e.occurred_at >= $2 and e.occurred_at < $3 and e.position > $7 and e.type <> 'webhook.test' \
                 and ('*' = any ($4::text[]) or e.type = any ($4)) \
                 and not exists (select 1 from webhook_deliveries d where d.event_id = e.id and d.webhook_id = $1 \
                   and (d.status = 'pending' or (d.status = 'delivered' and not $5))) \
                 order by e.position limit $6",
                &[
                    &webhook.id,
                    &from,
                    &to,
                    &names(&webhook.events),
                    &delivered_too.unwrap_or(false),
                    &MOST_REPLAYED,
                    &after.unwrap_or(0),
                ],
            )
            .await?;
        let mut chosen = Vec::new();
        for row in &rows {
            chosen.push(Sent {
                event: row.try_get("id")?,
                kind: row.try_get("type")?,
                position: row.try_get("position")?,
            });
        }
        if !chosen.is_empty() {
            send(app, &tx, webhook.id, &chosen, None).await?;
        }
        let deliveries = chosen.len() as i64;
        let next_after =
            chosen.last().map(|last: &Sent| last.position).filter(|_| deliveries == MOST_REPLAYED);
        let changes = Changes::none(&json!({"deliveries": deliveries}));
        events::record(&tx, app, &*who, EventType::WebhookReplayed, webhook.id, changes).await?;
        tx.commit().await?;
        Ok(Json(Replayed { deliveries, next_after }))
    }

    /// List deliveries of a webhook, the newest first.
    #[oai(
        path = "/webhooks/:webhook_id/deliveries",
        method = "get",
        operation_id = "list_webhook_deliveries"
    )]
    #[allow(clippy::too_many_arguments)]
    async fn deliveries(
        &self,
        who: Can<WebhooksManage>,
        webhook_id: Path<Uuid>,
        status: Query<Option<DeliveryStatus>>,
        event_type: Query<Option<EventType>>,
        event_id: Query<Option<Uuid>>,
        /// Made at this time or later.
        from: Query<Option<DateTime<Utc>>>,
        /// Made before this time.
        to: Query<Option<DateTime<Utc>>>,
        cursor: Query<Option<Cursor>>,
        limit: Query<Option<u32>>,
    ) -> Result<Json<CursorPage<Delivery>>> {
        let stretch = Stretch::new(cursor.0, limit.0)?;
        let tx = who.begin().await?;
        let webhook = find(&tx, webhook_id.0, false).await?;
        let rows = Select::new(DELIVERY_COLUMNS, "webhook_deliveries")
            .and("webhook_id = ?", &webhook.id)
            .and_if("status = ?", &status.0)
            .and_if("event_type = ?", &event_type.0)
            .and_if("event_id = ?", &event_id.0)
            .and_if("created_at >= ?", &from.0)
            .and_if("created_at < ?", &to.0)
            .newest(&tx, &stretch)
            .await?;
        let deliveries = rows.iter().map(delivery_from_row).collect::<Result<_>>()?;
        Ok(Json(stretch.answer(deliveries, |delivery| delivery.id)))
    }

    /// See a delivery with every attempt.
    #[oai(
        path = "/webhooks/:webhook_id/deliveries/:delivery_id",
        method = "get",
        operation_id = "get_webhook_delivery"
    )]
    async fn delivery(
        &self,
        who: Can<WebhooksManage>,
        webhook_id: Path<Uuid>,
        delivery_id: Path<Uuid>,
    ) -> Result<Json<DeliveryDetail>> {
        let tx = who.begin().await?;
        let about = find_delivery(&tx, webhook_id.0, delivery_id.0).await?;
        let rows = tx
            .query(
                "select attempted_at, duration_ms, response_status, response_body, error from webhook_attempts \
                 where delivery_id = $1 order by id",
                &[&about.id],
            )
            .await?;
        let attempt = |row: &Row| {
            Ok(DeliveryAttempt {
                attempted_at: row.try_get("attempted_at")?,
                duration_ms: row.try_get("duration_ms")?,
                response_status: row.try_get("response_status")?,
                response_body: row.try_get("response_body")?,
                error: row.try_get("error")?,
            })
        };
        Ok(Json(DeliveryDetail { about, history: rows.iter().map(attempt).collect::<Result<_>>()? }))
    }

    /// Send the event of a delivery again.
    #[oai(
        path = "/webhooks/:webhook_id/deliveries/:delivery_id/replay",
        method = "post",
        operation_id = "replay_webhook_delivery"
    )]
    async fn replay_one(
        &self,
        who: Can<WebhooksManage>,
        webhook_id: Path<Uuid>,
        delivery_id: Path<Uuid>,
    ) -> Result<Queued<Delivery>> {
        let app = &*who.app;
        let tx = who.begin().await?;
        let webhook = active(&tx, webhook_id.0).await?;
        let delivery = find_delivery(&tx, webhook.id, delivery_id.0).await?;
        if delivery.status == DeliveryStatus::Pending {
            return Err(Error::conflict("The delivery is on its way already."));
        }
        let row = tx
            .query_opt("select type, position from events where id = $1", &[&delivery.event_id])
            .await?
            .ok_or_else(|| Error::conflict("The event is not in the log any more."))?;
        let position: Option<i64> = row.try_get("position")?;
        let (event, kind) = (delivery.event_id, row.try_get("type")?);
        let changes = Changes::none(&json!({"deliveries": 1}));
        events::record(&tx, app, &*who, EventType::WebhookReplayed, webhook.id, changes).await?;
        queue(app, tx, webhook.id, Sent { event, kind, position: position.unwrap_or_default() }).await
    }
}

/// Queues one delivery, commits, and answers it.
async fn queue(app: &App, tx: TenantTx, webhook: Uuid, sent: Sent) -> Result<Queued<Delivery>> {
    let id = send(app, &tx, webhook, &[sent], None).await?.into_iter().next();
    let id = id.ok_or_else(|| Error::internal("a delivery that was not made"))?;
    let delivery = find_delivery(&tx, webhook, id).await?;
    tx.commit().await?;
    Ok(Queued { location: format!("/api/v1/webhooks/{webhook}/deliveries/{id}"), value: delivery })
}

/// A webhook that can be sent to.
async fn active(tx: &TenantTx, id: Uuid) -> Result<Webhook> {
    let webhook = find(tx, id, true).await?;
    match webhook.is_active {
        true => Ok(webhook),
        false => Err(Error::conflict("The webhook is switched off. Switch it on first.")),
    }
}

/// What must hold whoever writes; also puts the types of events into order.
fn check(app: &App, who: &Member, webhook: &mut Webhook) -> Result<()> {
    let url: Url = webhook
        .url
        .as_ref()
        .parse()
        .map_err(|error| Error::invalid("url", format!("is no address: {error}")))?;
    app.outbound.check(&url).map_err(|why| Error::invalid("url", why))?;
    webhook.events.sort();
    webhook.events.dedup();
    if webhook.events.is_empty() {
        return Err(Error::invalid("events", "must name at least one type, or *"));
    }
    // Whoever may manage webhooks must not see by them what they may not see otherwise.
    let wants = |kind: &EventType| {
        webhook.events.iter().any(|wanted| wanted.as_ref() == "*" || wanted.as_ref() == kind.name())
    };
    for kind in EventType::ALL.iter().copied().filter(wants) {
        if !who.may(kind.permission()) {
            return Err(Error::denied(format!(
                "Events of the type {kind} take the permission {}, which you do not have.",
                kind.permission()
            )));
        }
    }
    Ok(())
}

fn names(events: &[Wanted]) -> Vec<&str> {
    events.iter().map(AsRef::as_ref).collect()
}

const DELIVERY_COLUMNS: &str = "id, webhook_id, event_id, event_type, status, attempts, next_attempt_at, \
     response_status, error, duration_ms, created_at, finished_at";

fn delivery_from_row(row: &Row) -> Result<Delivery> {
    Ok(Delivery {
        id: row.try_get("id")?,
        webhook_id: row.try_get("webhook_id")?,
        event_id: row.try_get("event_id")?,
        event_type: row.try_get("event_type")?,
        status: row.try_get("status")?,
        attempts: row.try_get("attempts")?,
        next_attempt_at: row.try_get("next_attempt_at")?,
        response_status: row.try_get("response_status")?,
        error: row.try_get("error")?,
        duration_ms: row.try_get("duration_ms")?,
        created_at: row.try_get("created_at")?,
        finished_at: row.try_get("finished_at")?,
    })
}

async fn find_delivery(tx: &TenantTx, webhook: Uuid, id: Uuid) -> Result<Delivery> {
    let sql = format!("select {DELIVERY_COLUMNS} from webhook_deliveries where id = $1 and webhook_id = $2");
    let row = tx.query_opt(&sql, &[&id, &webhook]).await?;
    delivery_from_row(&row.ok_or_else(|| Error::not_found("delivery"))?)
}
