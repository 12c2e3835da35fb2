//! What was billed, and what of it went back: written down as Stripe has it.

use chrono::{DateTime, TimeDelta, Utc};
use poem_openapi::{Object, types::Example};
use rust_decimal::Decimal;
use serde::Serialize;
use serde_json::{Value, json};

use super::stripe::{Bill, Contested, Refunded};
use crate::{
    app::App,
    audit::{Actor, Changes},
    db::{Row, Select, TenantTx},
    error::{Error, Result},
    events::{self, EventType},
    page::{Order, Page, Paging},
    tenancy::Tenant,
    types::{Amount, Currency, Money, example, example_time, text_enum},
};

/// An invoice.
#[derive(Clone, Debug, Serialize, Object)]
#[oai(example)]
pub struct Invoice {
    pub id: String,
    /// As it stands on the paper; a draft has none.
    pub number: Option<String>,
    /// `draft`, `open`, `paid`, `void` or `uncollectible`.
    pub status: String,
    pub total: Money,
    pub amount_paid: Money,
    pub amount_due: Money,
    pub period_start: DateTime<Utc>,
    pub period_end: DateTime<Utc>,
    pub paid_at: Option<DateTime<Utc>>,
    /// A page that shows it, on which an open one can be paid.
    pub hosted_url: Option<String>,
    /// The paper to download.
    pub pdf_url: Option<String>,
    pub created_at: DateTime<Utc>,
}

impl Example for Invoice {
    fn example() -> Self {
        let money = |amount: &str| Money { amount: example(amount), currency: example("SGD") };
        Self {
            id: "in_1".into(),
            number: Some("ACME-0007".into()),
            status: "paid".into(),
            total: money("49.00"),
            amount_paid: money("49.00"),
            amount_due: money("49.00"),
            period_start: example_time(),
            period_end: example_time() + TimeDelta::days(31),
            paid_at: Some(example_time()),
            hosted_url: Some("https://invoice.stripe.com/i/in_1".into()),
            pdf_url: Some("https://pay.stripe.com/invoice/in_1/pdf".into()),
            created_at: example_time(),
        }
    }
}

text_enum! {
    /// Why money that was paid is not there.
    AdjustmentKind {
        /// It went back.
        Refund = "refund",
        /// Whoever paid it contests it with their bank.
        Dispute = "dispute",
    }
}

/// Money that went back or is contested.
#[derive(Clone, Debug, Serialize, Object)]
#[oai(example)]
pub struct Adjustment {
    pub id: String,
    pub kind: AdjustmentKind,
    /// Of a charge that went back in parts, all of them together.
    pub amount: Money,
    /// Of a dispute, as the bank calls it.
    pub reason: Option<String>,
    /// `partial`, `full` or `failed` for a refund; for a dispute as Stripe calls it: `needs_response`, `won`, `lost`, …
    pub status: String,
    pub occurred_at: DateTime<Utc>,
}

impl Example for Adjustment {
    fn example() -> Self {
        Self {
            id: "ch_1".into(),
            kind: AdjustmentKind::Refund,
            amount: Money { amount: example("49.00"), currency: example("SGD") },
            reason: None,
            status: "full".into(),
            occurred_at: example_time(),
        }
    }
}

const COLUMNS: &str = "id, number, status, total, amount_paid, amount_due, currency, period_start, period_end, paid_at, \
     hosted_url, pdf_url, created_at";

fn from_row(row: &Row) -> Result<Invoice> {
    let currency: Currency = row.try_get("currency")?;
    let money = |column: &str| -> Result<Money> {
        let amount: Decimal = row.try_get(column)?;
        Ok(Money { amount: Amount::from(amount), currency: currency.clone() })
    };
    Ok(Invoice {
        id: row.try_get("id")?,
        number: row.try_get("number")?,
        status: row.try_get("status")?,
        total: money("total")?,
        amount_paid: money("amount_paid")?,
        amount_due: money("amount_due")?,
        period_start: row.try_get("period_start")?,
        period_end: row.try_get("period_end")?,
        paid_at: row.try_get("paid_at")?,
        hosted_url: row.try_get("hosted_url")?,
        pdf_url: row.try_get("pdf_url")?,
        created_at: row.try_get("created_at")?,
    })
}

/// The invoices of the transaction's organization.
pub async fn list(tx: &TenantTx, paging: &Paging) -> Result<Page<Invoice>> {
    Select::new(COLUMNS, "platform.invoices")
        .and("organization_id = ?", &tx.organization())
        .page(tx, &Order::down("created_at", "timestamptz", "id").with_text_id(), paging, from_row)
        .await
}

async fn find(tx: &TenantTx, id: &str) -> Result<Option<Invoice>> {
    let sql = format!("select {COLUMNS} from platform.invoices where id = $1 and organization_id = $2");
    tx.query_opt(&sql, &[&id, &tx.organization()]).await?.as_ref().map(from_row).transpose()
}

/// Fetches an invoice of an organization anew.
pub async fn refresh(app: &App, tenant: &Tenant, id: &str) -> Result<Invoice> {
    let missing = || Error::not_found("invoice");
    let tx = tenant.begin().await?;
    find(&tx, id).await?.ok_or_else(missing)?;
    drop(tx);
    let bill = app.stripe()?.invoice(id).await?.ok_or_else(missing)?;
    let tx = tenant.begin().await?;
    record(&tx, app, &bill, false).await?;
    let invoice = find(&tx, id).await?.ok_or_else(missing)?;
    tx.commit_aside().await?;
    Ok(invoice)
}

/// How far an invoice has come: it never goes back.
fn stage(status: &str) -> i32 {
    match status {
        "draft" => 0,
        "open" => 1,
        "uncollectible" => 2,
        _ => 3,
    }
}

/// Writes an invoice down and tells what became of it. One that was fetched before what is known already
/// changes nothing. With `failed`, Stripe says that a payment failed, which the number of attempts alone does
/// not: some take days. Answers whether its status was another.
pub async fn record(tx: &TenantTx, app: &App, bill: &Bill, failed: bool) -> Result<bool> {
    let (organization, now) = (tx.organization(), app.clock.now());
    // Two that write the same one down come one after the other, also the first two.
    tx.query("select pg_advisory_xact_lock(hashtextextended($1, 0))", &[&format!("invoice {}", bill.id)])
        .await?;
    let row = tx
        .query_opt(
            "select status, attempts, failures_told from platform.invoices where id = $1 and organization_id = $2",
            &[&bill.id, &organization],
        )
        .await?;
    let known: Option<(String, i64)> = match &row {
        Some(row) => Some((row.try_get("status")?, row.try_get("attempts")?)),
        None => None,
    };
    let failures_told: i64 = row.map_or(Ok(0), |row| row.try_get("failures_told"))?;
    let failed_again = failed && bill.status == "open" && bill.attempts > failures_told;
    let failures_told = if failed_again { bill.attempts } else { failures_told };
    if let Some((status, attempts)) = &known
        && (stage(&bill.status), bill.attempts) < (stage(status), *attempts)
    {
        return Ok(false);
    }
    tx.execute(
        "insert into platform.invoices (id, organization_id, number, status, total, amount_paid, amount_due, currency, \
         period_start, period_end, attempts, paid_at, hosted_url, pdf_url, created_at, updated_at, \
         failures_told) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17) \
         on conflict (id) do update set number = excluded.number, status = excluded.status, total = excluded.total, \
         amount_paid = excluded.amount_paid, amount_due = excluded.amount_due, attempts = excluded.attempts, \
         paid_at = excluded.paid_at, hosted_url = excluded.hosted_url, pdf_url = excluded.pdf_url, \
         updated_at = excluded.updated_at, failures_told = excluded.failures_told \
         where invoices.organization_id = excluded.organization_id",
        &[
            &bill.id,
            &organization,
            &bill.number,
            &bill.status,
            &bill.total.amount.decimal(),
            &bill.paid.amount.decimal(),
            &bill.due.amount.decimal(),
            &bill.total.currency,
            &bill.period.0,
            &bill.period.1,
            &bill.attempts,
            &bill.paid_at,
            &bill.hosted_url,
            &bill.pdf_url,
            &bill.created,
            &now,
            &failures_told,
        ],
    )
    .await?;
    let stage_before = known.as_ref().map_or(0, |(status, _)| stage(status));
    let mut told = Vec::new();
    if stage_before == 0 && stage(&bill.status) > 0 {
        told.push(EventType::InvoiceFinalized);
    }
    if failed_again {
        told.push(EventType::InvoicePaymentFailed);
    }
    if bill.status == "paid" && known.as_ref().is_none_or(|(status, _)| status != "paid") {
        told.push(EventType::InvoicePaid);
    }
    for what in told {
        let changes = Changes::none(&told_of(bill));
        events::record(tx, app, Actor::system(), what, organization, changes).await?;
    }
    Ok(known.is_none_or(|(status, _)| status != bill.status))
}

/// What events say of an invoice: nothing by which somebody could open it.
fn told_of(bill: &Bill) -> Value {
    json!({"invoice_id": bill.id, "number": bill.number, "status": bill.status, "total": bill.total,
        "amount_paid": bill.paid, "amount_due": bill.due, "attempts": bill.attempts})
}

/// The refunds and disputes of the transaction's organization.
pub async fn adjustments(tx: &TenantTx, paging: &Paging) -> Result<Page<Adjustment>> {
    let columns = "id, kind, amount, currency, reason, status, occurred_at";
    let adjustment = |row: &Row| -> Result<Adjustment> {
        let amount: Decimal = row.try_get("amount")?;
        Ok(Adjustment {
            id: row.try_get("id")?,
            kind: row.try_get("kind")?,
            amount: Money { amount: Amount::from(amount), currency: row.try_get("currency")? },
            reason: row.try_get("reason")?,
            status: row.try_get("status")?,
            occurred_at: row.try_get("occurred_at")?,
        })
    };
    Select::new(columns, "platform.billing_adjustments")
        .and("organization_id = ?", &tx.organization())
        .page(tx, &Order::down("occurred_at", "timestamptz", "id").with_text_id(), paging, adjustment)
        .await
}

/// Writes down what of a charge went back and when that was, and tells of it where it is more than was
/// known; with `may_shrink` also where it is less.
pub async fn record_refund(
    tx: &TenantTx,
    app: &App,
    charge: &str,
    refunded: &Refunded,
    at: DateTime<Utc>,
    may_shrink: bool,
) -> Result<()> {
    let adjustment = Adjustment {
        id: charge.to_owned(),
        kind: AdjustmentKind::Refund,
        amount: refunded.amount.clone(),
        reason: None,
        status: match refunded {
            Refunded { whole: true, .. } => "full",
            // What had gone back has not.
            Refunded { amount, .. } if amount.amount.decimal().is_zero() => "failed",
            Refunded { .. } => "partial",
        }
        .into(),
        occurred_at: at,
    };
    adjust(tx, app, charge, &adjustment, may_shrink, EventType::PaymentRefunded).await
}

/// Writes a dispute down, and tells of it where it is new or came further.
pub async fn record_dispute(tx: &TenantTx, app: &App, id: &str, contested: &Contested) -> Result<()> {
    let adjustment = Adjustment {
        id: id.to_owned(),
        kind: AdjustmentKind::Dispute,
        amount: contested.amount.clone(),
        reason: Some(contested.reason.clone()),
        status: contested.status.clone(),
        occurred_at: contested.created,
    };
    adjust(tx, app, &contested.charge, &adjustment, false, EventType::PaymentDisputed).await
}

/// How far a refund or a dispute has come. An inquiry of a bank (`warning_…`) can become a dispute.
fn settled(status: &str) -> i32 {
    match status {
        "partial" | "warning_needs_response" => 0,
        "full" | "warning_under_review" => 1,
        "warning_closed" => 2,
        "needs_response" => 3,
        "under_review" => 4,
        _ => 5,
    }
}

async fn adjust(
    tx: &TenantTx,
    app: &App,
    charge: &str,
    to: &Adjustment,
    may_shrink: bool,
    what: EventType,
) -> Result<()> {
    let organization = tx.organization();
    tx.query("select pg_advisory_xact_lock(hashtextextended($1, 0))", &[&format!("adjustment {}", to.id)])
        .await?;
    let amount = to.amount.amount.decimal();
    let sql =
        "select amount, status from platform.billing_adjustments where id = $1 and organization_id = $2";
    let known = tx.query_opt(sql, &[&to.id, &organization]).await?;
    if known.is_none() && amount.is_zero() {
        return Ok(());
    }
    if let Some(row) = known {
        let (known, status): (Decimal, String) = (row.try_get("amount")?, row.try_get("status")?);
        let older = (settled(&to.status), amount) < (settled(&status), known);
        if (older && !may_shrink) || (known == amount && status == to.status) {
            return Ok(());
        }
    }
    tx.execute(
        "insert into platform.billing_adjustments as known (id, organization_id, kind, charge_id, amount, currency, \
         reason, status, occurred_at, updated_at) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) \
         on conflict (id) do update set amount = excluded.amount, status = excluded.status, \
         reason = excluded.reason, updated_at = excluded.updated_at, occurred_at = case \
         when excluded.amount > known.amount then excluded.occurred_at else known.occurred_at end \
         where known.organization_id = excluded.organization_id",
        &[
            &to.id,
            &organization,
            &to.kind,
            &charge,
            &amount,
            &to.amount.currency,
            &to.reason,
            &to.status,
            &to.occurred_at,
            &app.clock.now(),
        ],
    )
    .await?;
    let told = json!({"id": to.id, "charge_id": charge, "amount": to.amount, "reason": to.reason, "status": to.status});
    events::record(tx, app, Actor::system(), what, organization, Changes::none(&told)).await?;
    Ok(())
}
