//! The hourly comparison with Stripe: what got lost on the way is made good, and told.

use std::collections::HashMap;

use chrono::TimeDelta;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio_postgres::types::Json as Jsonb;
use uuid::Uuid;

use super::{
    inbox, invoices,
    stripe::{Bill, Seen},
    subscriptions::{self, Record},
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

async fn compare(app: &App, report: &mut Report) -> Result<()> {
    let stripe = app.stripe()?;
    let mut open: HashMap<String, Vec<Seen>> = HashMap::new();
    for seen in stripe.open_subscriptions().await? {
        open.entry(seen.customer.clone()).or_default().push(seen);
    }
    let mut after = Uuid::nil();
    loop {
        let tx = app.db.begin().await?;
        let records = subscriptions::linked(&tx, after, PAGE).await?;
        drop(tx);
        let Some(last) = records.last() else { break };
        after = last.organization;
        for record in &records {
            let seen =
                record.customer.as_ref().and_then(|customer| open.remove(customer)).unwrap_or_default();
            report.checked += 1;
            // One that cannot be repaired must not keep the others from it.
            if let Err(error) = repair(app, record, &seen, report).await {
                report.note(Some(record.organization), &format!("could not be repaired: {error}"));
            }
        }
    }
    // Paid for by somebody whose number was not written down, or whom nobody here knows.
    for (customer, seen) in open {
        if let Err(error) = take_in(app, &customer, &seen, report).await {
            report.note(None, &format!("{customer} could not be looked at: {error}"));
        }
    }
    invoices(app, report).await?;
    retry_events(app, report).await
}

/// Links a customer whose number was not written down.
async fn take_in(app: &App, customer: &str, seen: &[Seen], report: &mut Report) -> Result<()> {
    let Some(tenant) = inbox::tenant_of(app, customer).await? else {
        for seen in seen {
            let what = format!("{} of {customer} belongs to no organization here", seen.id);
            report.note(seen.organization, &what);
        }
        return Ok(());
    };
    let tx = app.db.begin().await?;
    let record = subscriptions::find(&tx, tenant.id()).await?;
    drop(tx);
    repair(app, &record, seen, report).await
}

/// Makes one subscription agree, if it does not.
async fn repair(app: &App, record: &Record, seen: &[Seen], report: &mut Report) -> Result<()> {
    let stripe = app.stripe()?;
    for finding in sync::findings(stripe, seen) {
        report.note(Some(record.organization), &finding);
    }
    let agreed = sync::agree(app, stripe, record, sync::choose(seen));
    let Some(tenant) = fleet::tenant_by_id(&app.directory, record.organization).await? else { return Ok(()) };
    // What goes on to be paid for an organization that was deleted is looked at until it ends.
    let charged = tenant.is_deleted() && agreed.subscription.is_some() && !agreed.cancels;
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
    for bill in app.stripe()?.invoices_since(app.clock.now() - LATELY).await? {
        let Some(customer) = &bill.customer else { continue };
        let tx = app.db.begin().await?;
        let organization = subscriptions::organization_of(&tx, customer).await?;
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

async fn write_down(app: &App, tenant: &Tenant, bill: &Bill) -> Result<bool> {
    let tx = tenant.begin().await?;
    let news = invoices::record(&tx, app, bill).await?;
    tx.commit().await?;
    Ok(news)
}

/// Gives events whose jobs gave up another try.
async fn retry_events(app: &App, report: &mut Report) -> Result<()> {
    let tx = app.db.begin().await?;
    let overdue = app.clock.now() - OVERDUE;
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
