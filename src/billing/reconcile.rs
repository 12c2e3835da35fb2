//! The hourly comparison with Stripe: what got lost on the way is made good, and told.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio_postgres::types::Json as Jsonb;
use uuid::Uuid;

use super::{
    inbox, invoices,
    record::{self, Record},
    state::SubscriptionState,
    stripe::{Bill, Seen},
    sync,
};
use crate::{
    app::App,
    audit::Actor,
    db::Tx,
    error::Result,
    jobs::{self, Policy, Running, Terms, Work},
    tenancy::{Tenant, fleet},
};

/// How long an event may wait for its job before it is given another.
const OVERDUE: TimeDelta = TimeDelta::minutes(30);
/// How long an event is tried.
const HOPELESS: TimeDelta = TimeDelta::days(3);
/// How old invoices are at most that are compared.
const LATELY: TimeDelta = TimeDelta::days(8);
/// How many subscriptions are read at once.
const PAGE: i64 = 1_000;

/// Begins a comparison, unless one waits already.
pub async fn begin_reconciliation(app: &App) -> anyhow::Result<()> {
    if app.stripe.is_none() {
        return Ok(());
    }
    let tx = app.db.begin().await?;
    start(&tx, app).await?;
    Ok(tx.commit().await?)
}

/// The same in a transaction.
pub async fn start(tx: &Tx, app: &App) -> Result<()> {
    let terms = Terms { unique: Some("stripe".into()), ..Terms::default() };
    jobs::enqueue_on(tx, app, &Reconcile, terms).await
}

/// Compares every subscription with Stripe.
#[derive(Serialize, Deserialize)]
pub struct Reconcile;

impl Work for Reconcile {
    const KIND: &'static str = "reconcile_stripe";
    const POLICY: Policy = Policy {
        attempts: 2,
        limit: std::time::Duration::from_secs(1800),
        exclusive: true,
        ..Policy::DEFAULT
    };

    async fn run(self, job: &Running) -> anyhow::Result<()> {
        let app = &*job.app;
        let id = Uuid::now_v7();
        let tx = app.db.begin().await?;
        tx.execute(
            "insert into platform.reconciliations (id, started_at) values ($1, $2)",
            &[&id, &app.clock.now()],
        )
        .await?;
        tx.commit().await?;
        let mut report = Report::default();
        let outcome = compare(app, &mut report).await;
        let error = outcome.as_ref().err().map(ToString::to_string);
        let tx = app.db.begin().await?;
        tx.execute(
            "update platform.reconciliations set finished_at = $2, checked = $3, repaired = $4, findings = $5, error = $6 \
             where id = $1",
            &[&id, &app.clock.now(), &report.checked, &report.repaired, &Jsonb(&report.findings), &error],
        )
        .await?;
        tx.commit().await?;
        metrics::counter!("rowhouse_stripe_repaired_total").increment(report.repaired.unsigned_abs());
        Ok(outcome?)
    }
}

/// What a comparison found.
#[derive(Default)]
struct Report {
    checked: i64,
    repaired: i64,
    findings: Vec<Value>,
}

impl Report {
    fn note(&mut self, organization: Option<Uuid>, what: &str) {
        tracing::warn!(
            organization = organization.map(tracing::field::display),
            what,
            "Stripe was not as known"
        );
        self.findings.push(json!({"organization_id": organization, "what": what}));
    }
}

/// Its parts do not depend on each other: one that fails must not keep the others from their work.
async fn compare(app: &App, report: &mut Report) -> Result<()> {
    let compared = subscriptions(app, report).await;
    let billed = invoices(app, report).await;
    retry_events(app, report).await?;
    compared.and(billed)
}

async fn subscriptions(app: &App, report: &mut Report) -> Result<()> {
    let mut open: HashMap<String, Vec<Seen>> = HashMap::new();
    let mut unreadable = HashSet::new();
    for (customer, seen) in app.stripe()?.open_subscriptions().await? {
        match seen {
            Ok(seen) => open.entry(customer).or_default().push(seen),
            Err(failure) => {
                report.note(None, &format!("a subscription of {customer} cannot be read: {failure}"));
                unreadable.insert(customer);
            }
        }
    }
    let mut after = Uuid::nil();
    loop {
        let tx = app.db.begin().await?;
        let records = record::linked(&tx, after, PAGE).await?;
        drop(tx);
        let Some(last) = records.last() else { break };
        after = last.organization;
        for record in &records {
            let Some(customer) = record.customer.as_ref().filter(|known| !unreadable.contains(*known)) else {
                continue;
            };
            let seen = open.remove(customer).unwrap_or_default();
            report.checked += 1;
            if let Err(error) = repair(app, record, &seen, report).await {
                report.note(Some(record.organization), &format!("could not be repaired: {error}"));
            }
        }
    }
    // Paid for by somebody whose number was not written down, or whom nobody here knows.
    let mut strangers = Vec::new();
    for (customer, seen) in open {
        // What we make at Stripe has our mark.
        if seen.iter().all(|seen| seen.organization.is_none()) {
            strangers.extend(seen.into_iter().map(|seen| seen.id));
        } else if let Err(error) = take_in(app, &customer, &seen, report).await {
            report.note(None, &format!("{customer} could not be looked at: {error}"));
        }
    }
    if !strangers.is_empty() {
        let (many, some) = (strangers.len(), strangers[..strangers.len().min(5)].join(", "));
        report.note(None, &format!("{many} subscriptions belong to no organization here: {some}"));
    }
    Ok(())
}

/// Links a customer whose number was not written down.
async fn take_in(app: &App, customer: &str, seen: &[Seen], report: &mut Report) -> Result<()> {
    let Some(tenant) = inbox::tenant_of(app, customer).await? else {
        let ids: Vec<&str> = seen.iter().map(|seen| seen.id.as_str()).collect();
        let what = format!("{} of {customer} belongs to no organization here", ids.join(", "));
        report.note(seen.first().and_then(|seen| seen.organization), &what);
        return Ok(());
    };
    let tx = app.db.begin().await?;
    let record = record::find(&tx, tenant.id()).await?;
    drop(tx);
    repair(app, &record, seen, report).await
}

/// Makes one subscription agree, if it does not.
async fn repair(app: &App, record: &Record, seen: &[Seen], report: &mut Report) -> Result<()> {
    let stripe = app.stripe()?;
    for finding in sync::findings(stripe, seen) {
        report.note(Some(record.organization), &finding);
    }
    let agreed = sync::agree(app, stripe, record, seen);
    let Some(tenant) = fleet::tenant_by_id(&app.directory, record.organization).await? else { return Ok(()) };
    // What goes on to be paid for an organization that was deleted is looked at until it ends.
    let charged = tenant.is_deleted() && sync::charged(seen).next().is_some();
    if agreed.is_as(record) && !charged {
        return Ok(());
    }
    let look = sync::look(app, &tenant, &Actor::system()).await?;
    if !look.changed {
        // An event was faster.
        return Ok(());
    }
    report.repaired += 1;
    let (was, is) = (record.summary(), look.record.summary());
    report.note(Some(record.organization), &format!("was {was}, is {is} now"));
    Ok(())
}

/// Writes down what was billed lately and is not known, or not as it is.
async fn invoices(app: &App, report: &mut Report) -> Result<()> {
    let now = app.clock.now();
    let mut bills = app.stripe()?.invoices_since(now - LATELY).await?;
    // Of those that were made a moment ago the event is on its way; drafts are nobody's yet.
    bills.retain(|bill| bill.created < now - OVERDUE && bill.status != "draft");
    bills.extend(still_open(app, now - LATELY, report).await?);
    for bill in bills {
        let Some(customer) = &bill.customer else { continue };
        let tx = app.db.begin().await?;
        let organization = record::organization_of(&tx, customer).await?;
        drop(tx);
        let Some(organization) = organization else { continue };
        let Some(tenant) = fleet::tenant_by_id(&app.directory, organization).await? else { continue };
        match write_down(app, &tenant, &bill).await {
            Ok(false) => {}
            Ok(true) => {
                let what = format!("the invoice {} was not known as {}", bill.id, bill.status);
                report.note(Some(organization), &what);
                report.repaired += 1;
            }
            Err(error) => {
                report.note(Some(organization), &format!("{} could not be written down: {error}", bill.id));
            }
        }
    }
    Ok(())
}

/// What we know as open and was made before: those that were looked at longest ago.
async fn still_open(app: &App, before: DateTime<Utc>, report: &mut Report) -> Result<Vec<Bill>> {
    let tx = app.db.begin().await?;
    let rows = tx
        .query(
            "update platform.invoices set updated_at = $2 where id in ( \
               select id from platform.invoices where status = 'open' and created_at < $1 \
               order by updated_at limit 200) returning id",
            &[&before, &app.clock.now()],
        )
        .await?;
    tx.commit().await?;
    let mut bills = Vec::new();
    for row in &rows {
        let id: &str = row.try_get("id")?;
        match app.stripe()?.invoice(id).await {
            Ok(bill) => bills.extend(bill),
            Err(failure) => report.note(None, &format!("the invoice {id} cannot be read: {failure}")),
        }
    }
    Ok(bills)
}

async fn write_down(app: &App, tenant: &Tenant, bill: &Bill) -> Result<bool> {
    let tx = tenant.begin().await?;
    // Of a subscription that owes, an open invoice is one whose payment failed.
    let owes = record::find(&tx, tenant.id()).await?.state == SubscriptionState::PastDue;
    let news = invoices::record(&tx, app, bill, owes).await?;
    tx.commit().await?;
    Ok(news)
}

/// Gives events whose jobs gave up another try.
async fn retry_events(app: &App, report: &mut Report) -> Result<()> {
    let tx = app.db.begin().await?;
    let (overdue, hopeless) = (app.clock.now() - OVERDUE, app.clock.now() - HOPELESS);
    let given_up = tx
        .execute(
            "update platform.stripe_events set state = 'ignored', note = 'could not be handled for three days', \
             handled_at = $2 where state = 'received' and received_at < $1",
            &[&hopeless, &app.clock.now()],
        )
        .await?;
    if given_up > 0 {
        report
            .note(None, &format!("{given_up} events could not be handled for three days and were given up"));
    }
    let sql = "select id from platform.stripe_events where state = 'received' and received_at < $1 \
         order by received_at limit 1000";
    let rows = tx.query(sql, &[&overdue]).await?;
    for row in &rows {
        inbox::enqueue(&tx, app, &row.try_get::<_, String>("id")?).await?;
    }
    tx.commit().await?;
    if !rows.is_empty() {
        report.note(None, &format!("{} events waited for more than 30 minutes; tried again", rows.len()));
    }
    Ok(())
}
