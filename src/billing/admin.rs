//! What staff see of the exchange with Stripe.

use chrono::{DateTime, Utc};
use poem_openapi::{
    Object, OpenApi,
    param::{Path, Query},
    types::Example,
};
use serde::Serialize;
use serde_json::{Value, json};
use tokio_postgres::types::Json as Jsonb;
use uuid::Uuid;

use super::{
    inbox::{self, EventState},
    reconcile,
};
use crate::{
    api::Tag,
    audit::{self, Changes},
    auth::Superuser,
    db::{Row, Select},
    error::{Code, Error, Result},
    http::{Accepted, Json},
    page::{ListCursor, Order, Page, Paging},
    types::{EXAMPLE_ID, example_time},
};

/// Something that Stripe told.
#[derive(Debug, Serialize, Object)]
#[oai(example)]
pub struct StripeEvent {
    pub id: String,
    /// As Stripe calls it: `invoice.paid`.
    #[serde(rename = "type")]
    #[oai(rename = "type")]
    pub kind: String,
    pub state: EventState,
    /// Why it was ignored.
    pub note: Option<String>,
    pub organization_id: Option<Uuid>,
    pub created_at: DateTime<Utc>,
    pub received_at: DateTime<Utc>,
    pub handled_at: Option<DateTime<Utc>>,
}

impl Example for StripeEvent {
    fn example() -> Self {
        Self {
            id: "evt_1".into(),
            kind: "invoice.paid".into(),
            state: EventState::Handled,
            note: None,
            organization_id: Some(EXAMPLE_ID),
            created_at: example_time(),
            received_at: example_time(),
            handled_at: Some(example_time()),
        }
    }
}

/// A comparison with Stripe.
#[derive(Debug, Serialize, Object)]
#[oai(example)]
pub struct Reconciliation {
    pub id: Uuid,
    pub started_at: DateTime<Utc>,
    pub finished_at: Option<DateTime<Utc>>,
    /// Subscriptions that were compared.
    pub checked: i64,
    /// Those that were not as at Stripe, and are now.
    pub repaired: i64,
    /// What was repaired, and what somebody should look at.
    pub findings: Vec<Finding>,
    /// Why it came to no end.
    pub error: Option<String>,
}

/// Something that a comparison found.
#[derive(Debug, Serialize, Object)]
pub struct Finding {
    pub organization_id: Option<Uuid>,
    pub what: String,
}

impl Example for Reconciliation {
    fn example() -> Self {
        Self {
            id: EXAMPLE_ID,
            started_at: example_time(),
            finished_at: Some(example_time()),
            checked: 212,
            repaired: 1,
            findings: vec![Finding {
                organization_id: Some(EXAMPLE_ID),
                what: "was active on starter, is past_due on starter now".into(),
            }],
            error: None,
        }
    }
}

pub struct AdminBillingApi;

#[OpenApi(tag = "Tag::Admin")]
impl AdminBillingApi {
    /// List what Stripe told, the newest first.
    #[oai(path = "/admin/billing/events", method = "get", operation_id = "admin_list_stripe_events")]
    #[allow(clippy::too_many_arguments)]
    async fn events(
        &self,
        who: Superuser,
        page: Query<Option<u32>>,
        page_size: Query<Option<u32>>,
        cursor: Query<Option<ListCursor>>,
        state: Query<Option<EventState>>,
        r#type: Query<Option<String>>,
        organization_id: Query<Option<Uuid>>,
    ) -> Result<Json<Page<StripeEvent>>> {
        let paging = Paging::new(page.0, page_size.0, cursor.0)?;
        let tx = who.0.app.db.begin().await?;
        let columns = "id, type, state, note, organization_id, created_at, received_at, handled_at";
        let page = Select::new(columns, "platform.stripe_events")
            .and_if("state = ?", &state.0)
            .and_if("type = ?", &r#type.0)
            .and_if("organization_id = ?", &organization_id.0)
            .page(&tx, &Order::down("received_at", "timestamptz", "id").with_text_id(), &paging, event)
            .await?;
        Ok(Json(page))
    }

    /// Handle an event again.
    #[oai(
        path = "/admin/billing/events/:event_id/retry",
        method = "post",
        operation_id = "admin_retry_stripe_event"
    )]
    async fn retry(&self, who: Superuser, event_id: Path<String>) -> Result<Accepted> {
        let app = &*who.0.app;
        app.stripe()?;
        let tx = app.db.begin().await?;
        let found = tx
            .execute(
                // As if it had come now: it has its time again.
                "update platform.stripe_events set state = 'received', note = null, handled_at = null, \
                 received_at = $2 where id = $1",
                &[&event_id.0, &app.clock.now()],
            )
            .await?;
        if found == 0 {
            return Err(Error::new(Code::NotFound, "Stripe has not told of such an event."));
        }
        inbox::enqueue(&tx, app, &event_id.0).await?;
        let changes = Changes::created(&json!({"event_id": event_id.0}));
        audit::record_platform(&tx, app, &who, "stripe_event.retried", None, None, &changes).await?;
        tx.commit().await?;
        Ok(Accepted)
    }

    /// List comparisons with Stripe, the newest first.
    #[oai(
        path = "/admin/billing/reconciliations",
        method = "get",
        operation_id = "admin_list_reconciliations"
    )]
    async fn reconciliations(
        &self,
        who: Superuser,
        page: Query<Option<u32>>,
        page_size: Query<Option<u32>>,
        cursor: Query<Option<ListCursor>>,
    ) -> Result<Json<Page<Reconciliation>>> {
        let paging = Paging::new(page.0, page_size.0, cursor.0)?;
        let tx = who.0.app.db.begin().await?;
        let columns = "id, started_at, finished_at, checked, repaired, findings, error";
        let page = Select::new(columns, "platform.reconciliations")
            .page(&tx, &Order::down("started_at", "timestamptz", "id"), &paging, reconciliation)
            .await?;
        Ok(Json(page))
    }

    /// Compare with Stripe now.
    #[oai(
        path = "/admin/billing/reconciliations",
        method = "post",
        operation_id = "admin_start_reconciliation"
    )]
    async fn reconcile(&self, who: Superuser) -> Result<Accepted> {
        let app = &*who.0.app;
        app.stripe()?;
        let tx = app.db.begin().await?;
        reconcile::start(&tx, app).await?;
        let changes = Changes::created(&json!({}));
        audit::record_platform(&tx, app, &who, "reconciliation.started", None, None, &changes).await?;
        tx.commit().await?;
        Ok(Accepted)
    }
}

fn event(row: &Row) -> Result<StripeEvent> {
    Ok(StripeEvent {
        id: row.try_get("id")?,
        kind: row.try_get("type")?,
        state: row.try_get("state")?,
        note: row.try_get("note")?,
        organization_id: row.try_get("organization_id")?,
        created_at: row.try_get("created_at")?,
        received_at: row.try_get("received_at")?,
        handled_at: row.try_get("handled_at")?,
    })
}

fn reconciliation(row: &Row) -> Result<Reconciliation> {
    let findings: Value = row.try_get::<_, Jsonb<_>>("findings")?.0;
    let finding = |found: &Value| Finding {
        organization_id: found["organization_id"].as_str().and_then(|id| id.parse().ok()),
        what: found["what"].as_str().unwrap_or_default().into(),
    };
    Ok(Reconciliation {
        id: row.try_get("id")?,
        started_at: row.try_get("started_at")?,
        finished_at: row.try_get("finished_at")?,
        checked: row.try_get("checked")?,
        repaired: row.try_get("repaired")?,
        findings: findings.as_array().into_iter().flatten().map(finding).collect(),
        error: row.try_get("error")?,
    })
}
