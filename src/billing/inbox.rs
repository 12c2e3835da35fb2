//! What Stripe tells us: checked, written down, answered; then handled by a job.
//!
//! An event only says where to look ([`super::sync`]). It is written down once, by its id, and its job
//! may run any number of times.

use chrono::{DateTime, TimeDelta, Utc};
use poem::{
    handler,
    http::{HeaderMap, StatusCode},
    web::Data,
};
use ring::hmac;
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::sync::Arc;
use tokio_postgres::types::Json as Jsonb;
use uuid::Uuid;

use super::{
    Stripe, invoices,
    record::{self, organization_of},
    sync::look,
    trials,
};
use crate::{
    app::App,
    audit::Actor,
    db::Tx,
    error::{Code, Error, Result},
    http::payload,
    jobs::{self, Policy, Running, Terms, Work},
    tenancy::{Tenant, fleet},
    types::text_enum,
};

/// How far the time of a signature may be from ours.
const TOLERANCE: TimeDelta = TimeDelta::minutes(5);
/// Signatures in one header that are looked at; Stripe sends one for each secret.
const MOST: usize = 4;

text_enum! {
    /// What became of an event.
    EventState { Received = "received", Handled = "handled", Ignored = "ignored" }
}

/// What an event is about, and so where to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Topic {
    Customer,
    Checkout,
    Subscription,
    TrialEnding,
    Invoice,
    InvoiceFailed,
    Refund,
    /// Of a refund: what had gone back may not have.
    RefundChanged,
    Dispute,
}

/// The types that are handled; all others are kept and ignored.
fn topic(kind: &str) -> Option<Topic> {
    Some(match kind {
        "checkout.session.completed" => Topic::Checkout,
        "customer.subscription.created"
        | "customer.subscription.updated"
        | "customer.subscription.deleted"
        | "customer.subscription.paused"
        | "customer.subscription.resumed" => Topic::Subscription,
        "customer.subscription.trial_will_end" => Topic::TrialEnding,
        "invoice.finalized" | "invoice.paid" | "invoice.voided" | "invoice.marked_uncollectible" => {
            Topic::Invoice
        }
        "invoice.payment_failed" => Topic::InvoiceFailed,
        "customer.updated" | "customer.deleted" => Topic::Customer,
        "charge.refunded" => Topic::Refund,
        "refund.updated" | "refund.failed" => Topic::RefundChanged,
        "charge.dispute.created" | "charge.dispute.updated" | "charge.dispute.closed" => Topic::Dispute,
        _ => return None,
    })
}

/// The part of an event that is read here.
#[derive(Deserialize)]
struct Told {
    id: String,
    #[serde(rename = "type")]
    kind: String,
    created: i64,
    livemode: bool,
    account: Option<String>,
    data: Inside,
}

#[derive(Deserialize)]
struct Inside {
    object: Value,
}

/// Takes an event from Stripe: `POST /webhooks/stripe`.
#[handler]
pub async fn receive(
    Data(app): Data<&Arc<App>>,
    headers: &HeaderMap,
    body: poem::Body,
) -> Result<StatusCode> {
    let stripe = app.stripe()?;
    let secrets = app.config.stripe.webhook_secret.as_ref().ok_or_else(|| {
        Error::unavailable("Webhooks of Stripe are not set up here: STRIPE_WEBHOOK_SECRET is missing.", 3600)
    })?;
    let now = app.clock.now();
    let body = payload::read(body, app.config.http.body_limit).await?;
    let header = headers.get("stripe-signature").and_then(|value| value.to_str().ok());
    let header = header.ok_or_else(|| refused("The header Stripe-Signature is missing."))?;
    let secrets = secrets.expose_secret().split(',').map(str::trim).filter(|secret| !secret.is_empty());
    verify(&body, header, secrets, now)?;
    let mut payload: Value = serde_json::from_slice(&body).map_err(|_| refused("The body is not JSON."))?;
    strip_nul(&mut payload);
    let told =
        Told::deserialize(&payload).map_err(|error| refused(&format!("This is no event: {error}.")))?;
    if !told.data.object.is_object() || told.id.is_empty() || told.id.len() > 255 {
        return Err(refused("This is no event."));
    }
    let created = DateTime::from_timestamp(told.created, 0).ok_or_else(|| refused("This is no event."))?;
    let ignored = why_ignored(stripe, &told.kind, told.livemode, told.account.as_deref());
    let state = if ignored.is_some() { EventState::Ignored } else { EventState::Received };
    let handled_at = ignored.as_ref().map(|_| now);
    let tx = app.db.begin().await?;
    let first = tx
        .execute(
            "insert into platform.stripe_events (id, type, created_at, livemode, account, payload, state, note, received_at, \
             handled_at) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) on conflict (id) do nothing",
            &[
                &told.id,
                &told.kind,
                &created,
                &told.livemode,
                &told.account,
                &Jsonb(&payload),
                &state,
                &ignored,
                &now,
                &handled_at,
            ],
        )
        .await?;
    if first == 1 && state == EventState::Received {
        enqueue(&tx, app, &told.id).await?;
    }
    tx.commit().await?;
    metrics::counter!("rowhouse_stripe_events_total", "new" => if first == 1 { "yes" } else { "no" })
        .increment(1);
    Ok(StatusCode::OK)
}

/// Takes out the one character that the database cannot hold.
fn strip_nul(value: &mut Value) {
    match value {
        Value::String(text) => text.retain(|c| c != '\0'),
        Value::Array(list) => list.iter_mut().for_each(strip_nul),
        Value::Object(fields) => fields.values_mut().for_each(strip_nul),
        _ => {}
    }
}

fn refused(why: &str) -> Error {
    Error::new(Code::Validation, why)
}

fn why_ignored(stripe: &Stripe, kind: &str, livemode: bool, account: Option<&str>) -> Option<String> {
    let mode = |live: bool| if live { "live" } else { "test" };
    if livemode != stripe.is_live() {
        let (its, ours) = (mode(livemode), mode(stripe.is_live()));
        return Some(format!("of {its} mode, and this service is in {ours} mode"));
    }
    if let Some(account) = account {
        return Some(format!("of another account: {account}"));
    }
    topic(kind).is_none().then(|| "of a type that is not used".into())
}

/// Checks a signature: `t=<seconds>,v1=<HMAC-SHA256 of "<t>.<body>" in hex>`, possibly several of `v1`.
///
/// <https://docs.stripe.com/webhooks#verify-manually>
fn verify<'a>(
    body: &[u8],
    header: &str,
    mut secrets: impl Iterator<Item = &'a str>,
    now: DateTime<Utc>,
) -> Result<()> {
    let parts = || header.split(',').filter_map(|part| part.trim().split_once('='));
    let time = parts().find(|(name, _)| *name == "t").map(|(_, time)| time);
    let time: i64 = time
        .and_then(|time| time.parse().ok())
        .ok_or_else(|| refused("The header Stripe-Signature has no time."))?;
    let sent = DateTime::from_timestamp(time, 0).ok_or_else(|| refused("The signature's time is none."))?;
    if (now - sent).abs() > TOLERANCE {
        return Err(refused("The signature is too old, or a clock is wrong."));
    }
    // Each costs a reading of the body, and anybody can send as many as they like.
    let signatures = parts().filter(|(name, _)| *name == "v1").filter_map(|(_, hex)| unhex(hex));
    let signatures: Vec<Vec<u8>> = signatures.filter(|signature| signature.len() == 32).take(MOST).collect();
    let signed = [format!("{time}.").as_bytes(), body].concat();
    let fits = |secret: &str| {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        signatures.iter().any(|signature| hmac::verify(&key, &signed, signature).is_ok())
    };
    if !secrets.any(fits) {
        return Err(refused("The signature is not Stripe's: check STRIPE_WEBHOOK_SECRET."));
    }
    Ok(())
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.bytes().all(|byte| byte.is_ascii_hexdigit()) || !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok()).collect()
}

/// Has an event handled (again).
pub async fn enqueue(tx: &Tx, app: &App, id: &str) -> Result<()> {
    let terms = Terms { unique: Some(id.to_owned()), ..Terms::default() };
    jobs::enqueue_on(tx, app, &HandleStripeEvent { id: id.to_owned() }, terms).await
}

/// Looks where an event says that something happened.
#[derive(Serialize, Deserialize)]
pub struct HandleStripeEvent {
    id: String,
}

impl Work for HandleStripeEvent {
    const KIND: &'static str = "handle_stripe_event";
    /// Over almost four hours; the hourly comparison takes up what is left.
    const POLICY: Policy = Policy { attempts: 7, ..Policy::DEFAULT };

    async fn run(self, job: &Running) -> anyhow::Result<()> {
        let app = &*job.app;
        let tx = app.db.begin().await?;
        let sql = "select type, created_at, livemode, account, payload from platform.stripe_events \
             where id = $1 and state = 'received'";
        let Some(row) = tx.query_opt(sql, &[&self.id]).await? else { return Ok(()) };
        drop(tx);
        let kind: String = row.try_get("type")?;
        let payload: Value = row.try_get::<_, Jsonb<_>>("payload")?.0;
        let account: Option<String> = row.try_get("account")?;
        let ignored = why_ignored(app.stripe()?, &kind, row.try_get("livemode")?, account.as_deref());
        let outcome = match ignored {
            Some(why) => Outcome::Ignored(why),
            None => handle(app, &kind, row.try_get("created_at")?, &payload["data"]["object"]).await?,
        };
        let (state, note, organization) = match outcome {
            Outcome::Handled(organization) => (EventState::Handled, None, Some(organization)),
            Outcome::Ignored(why) => (EventState::Ignored, Some(why), None),
        };
        let tx = app.db.begin().await?;
        tx.execute(
            "update platform.stripe_events set state = $2, note = $3, organization_id = $4, handled_at = $5 where id = $1",
            &[&self.id, &state, &note, &organization, &app.clock.now()],
        )
        .await?;
        Ok(tx.commit().await?)
    }
}

enum Outcome {
    /// For this organization.
    Handled(Uuid),
    Ignored(String),
}

async fn handle(app: &App, kind: &str, at: DateTime<Utc>, object: &Value) -> Result<Outcome> {
    let stripe = app.stripe()?;
    let ignored = |why: &str| Ok(Outcome::Ignored(why.into()));
    let Some(topic) = topic(kind) else { return ignored("of a type that is not used") };
    let id = text(object, "id");
    let charge = reference(object, "charge");
    if charge.is_empty() && matches!(topic, Topic::Dispute | Topic::RefundChanged) {
        return ignored("of no charge");
    }
    let customer = match topic {
        Topic::Customer => Some(id.to_owned()),
        Topic::Dispute | Topic::RefundChanged => {
            stripe.refunded(charge).await?.and_then(|charge| charge.customer)
        }
        _ => Some(reference(object, "customer").to_owned()).filter(|customer| !customer.is_empty()),
    };
    let Some(customer) = customer else { return ignored("of nobody that is a customer") };
    let Some(tenant) = tenant_of(app, &customer).await? else {
        return ignored("of a customer that is not an organization here");
    };
    match topic {
        Topic::Customer | Topic::Checkout | Topic::Subscription => {}
        Topic::TrialEnding => trials::remind(app, &tenant).await?,
        Topic::Invoice | Topic::InvoiceFailed => {
            if let Some(bill) =
                stripe.invoice(id).await?.filter(|bill| bill.customer.as_deref() == Some(&customer))
            {
                let tx = tenant.begin().await?;
                invoices::record(&tx, app, &bill, topic == Topic::InvoiceFailed).await?;
                tx.commit().await?;
            }
        }
        Topic::Refund | Topic::RefundChanged => {
            let (charge, may_shrink) = match topic {
                Topic::RefundChanged => (charge, true),
                _ => (id, false),
            };
            let Some(refunded) = stripe.refunded(charge).await? else {
                return ignored("of a charge that is no more");
            };
            let tx = tenant.begin().await?;
            invoices::record_refund(&tx, app, charge, &refunded, at, may_shrink).await?;
            tx.commit().await?;
        }
        Topic::Dispute => {
            let Some(contested) = stripe.dispute(id).await? else {
                return ignored("of a dispute that is no more");
            };
            let tx = tenant.begin().await?;
            invoices::record_dispute(&tx, app, id, &contested).await?;
            tx.commit().await?;
        }
    }
    look(app, &tenant, &Actor::system()).await?;
    Ok(Outcome::Handled(tenant.id()))
}

/// The organization that a customer stands for. One whose number we did not get to write down is known by
/// what we wrote on it.
pub async fn tenant_of(app: &App, customer: &str) -> Result<Option<Tenant>> {
    let tx = app.db.begin().await?;
    let known = organization_of(&tx, customer).await?;
    drop(tx);
    if let Some(organization) = known {
        return fleet::tenant_by_id(&app.directory, organization).await;
    }
    let Some(organization) = app.stripe()?.customer(customer).await?.and_then(|found| found.organization)
    else {
        return Ok(None);
    };
    let Some(tenant) = fleet::tenant_by_id(&app.directory, organization).await? else { return Ok(None) };
    let tx = tenant.begin().await?;
    let record = record::lock(&tx, organization).await?;
    if record.customer.is_some() {
        // Another event may have been faster with the same one.
        return Ok(Some(tenant).filter(|_| record.customer.as_deref() == Some(customer)));
    }
    tx.execute(
        "update platform.subscriptions set stripe_customer_id = $2 where organization_id = $1",
        &[&organization, &customer],
    )
    .await?;
    tx.commit().await?;
    Ok(Some(tenant))
}

fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object[field].as_str().unwrap_or_default()
}

/// The id in a field that holds an id or the whole object.
fn reference<'a>(object: &'a Value, field: &str) -> &'a str {
    object[field].as_str().or_else(|| object[field]["id"].as_str()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Stripe's own library for Python makes of this body, secret and time.
    const BODY: &[u8] = br#"{"id":"evt_1","object":"event"}"#;
    const SECRET: &str = "whsec_test";

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(seconds, 0).unwrap()
    }

    #[test]
    fn signatures_are_those_of_stripes_own_library() {
        let header = "t=1700000000,v1=4c15fb2a43f93ef61eaa3e0893866d57cad9cad4223242cfb96f362480cb4021";
        let verify = |header: &str, secrets: &[&'static str], now| {
            verify(BODY, header, secrets.iter().copied(), at(now))
        };
        assert!(verify(header, &[SECRET], 1_700_000_299).is_ok());
        assert!(verify(header, &["whsec_new", SECRET], 1_699_999_701).is_ok(), "while a secret is replaced");
        assert!(verify(&format!("{header},v1=00,v0=11"), &[SECRET], 1_700_000_000).is_ok());
        assert!(verify(header, &[SECRET], 1_700_000_301).is_err(), "stale");
        assert!(verify(header, &[SECRET], 1_699_999_699).is_err(), "from the future");
        assert!(verify(header, &["whsec_other"], 1_700_000_000).is_err());
        assert!(verify(&header.replace("1700000000", "1700000001"), &[SECRET], 1_700_000_001).is_err());
        let other = "{\"id\":\"evt_ünï\",\"object\":\"event\"}\n".as_bytes();
        let header = "t=1700000000,v1=88a042ed565fe939f208917d38c5da9b037e0fba8bad65cd9745e1637b927ddd";
        assert!(super::verify(other, header, [SECRET].into_iter(), at(1_700_000_000)).is_ok());
    }

    #[test]
    fn a_header_that_is_none_is_refused() {
        for header in
            ["", "t", "t=", "t=x,v1=00", "v1=00", "t=1700000000", "t=1700000000,v1=zz", "t=1700000000,v0=00"]
        {
            assert!(verify(BODY, header, [SECRET].into_iter(), at(1_700_000_000)).is_err(), "{header}");
        }
    }

    #[test]
    fn hex_is_read_or_not() {
        assert_eq!(unhex("00ff"), Some(vec![0, 255]));
        assert!(
            unhex("0").is_none() && unhex("é0").is_none() && unhex("0g").is_none() && unhex("+1").is_none()
        );
    }
}
