//! What is known of an organization's subscription: one row, written in one place.

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use super::{
    Plan,
    limits::{self, page},
    state::{SubscriptionState, read_only_from},
    trials,
};
use crate::{
    app::App,
    audit::{Actor, Changes},
    db::{Row, TenantTx, Tx},
    error::{Code, Error, Result},
    events::{self, EventType},
    jobs::{self, Running, Terms, Work},
    organizations,
    tenancy::{self, Tenant},
    types::{Amount, Money, text_enum},
};

/// What is known of a subscription.
#[derive(Clone, Debug)]
pub struct Record {
    pub organization: Uuid,
    pub state: SubscriptionState,
    /// What it entitles to; free where there is none.
    pub plan: Plan,
    /// Given by staff; wins.
    pub plan_override: Option<Plan>,
    /// At Stripe.
    pub customer: Option<String>,
    /// At Stripe; none for a trial without it.
    pub subscription: Option<String>,
    pub amount: Option<Money>,
    pub period_start: Option<DateTime<Utc>>,
    pub period_end: Option<DateTime<Utc>>,
    pub trial_started_at: Option<DateTime<Utc>>,
    pub trial_ends_at: Option<DateTime<Utc>>,
    pub trial_reminded_at: Option<DateTime<Utc>>,
    /// It ends with the period.
    pub cancels: bool,
    pub past_due_since: Option<DateTime<Utc>>,
    pub read_only_from: Option<DateTime<Utc>>,
    /// The page on which somebody may be paying now, and for what.
    pub checkout: Option<(String, Plan)>,
    pub look_applied: i64,
    pub version: i64,
}

impl Record {
    pub fn none(organization: Uuid) -> Self {
        Self {
            organization,
            state: SubscriptionState::Free,
            plan: Plan::Free,
            plan_override: None,
            customer: None,
            subscription: None,
            amount: None,
            period_start: None,
            period_end: None,
            trial_started_at: None,
            trial_ends_at: None,
            trial_reminded_at: None,
            cancels: false,
            past_due_since: None,
            read_only_from: None,
            checkout: None,
            look_applied: 0,
            version: 0,
        }
    }

    /// The plan in force.
    pub fn plan_in_force(&self) -> Plan {
        self.plan_override.unwrap_or(self.plan)
    }

    /// Leaves what a subscription that is over leaves.
    pub fn end(&mut self) {
        *self = Self {
            plan_override: self.plan_override,
            customer: self.customer.clone(),
            trial_started_at: self.trial_started_at,
            trial_ends_at: self.trial_ends_at,
            checkout: self.checkout.clone(),
            look_applied: self.look_applied,
            version: self.version,
            ..Self::none(self.organization)
        };
    }

    /// Whether everything that Stripe decides is the same.
    pub fn is_as(&self, other: &Self) -> bool {
        let parts = |record: &Self| {
            let Self { state, plan, amount, period_start, period_end, cancels, subscription, .. } =
                record.clone();
            (state, plan, amount, period_start, period_end, cancels, subscription, record.trial_ends_at)
        };
        parts(self) == parts(other)
    }

    /// In a few words, for reports.
    pub fn summary(&self) -> String {
        let ends = if self.cancels { ", ending" } else { "" };
        match self.period_end {
            Some(end) => format!("{} on {} to {}{ends}", self.state, self.plan, end.date_naive()),
            None => format!("{} on {}{ends}", self.state, self.plan),
        }
    }

    /// As the organization reads it.
    pub fn told(&self, now: DateTime<Utc>) -> Told {
        Told {
            state: self.state,
            plan: self.plan_in_force(),
            access: match self.read_only_from {
                Some(from) if from <= now => Access::ReadOnly,
                _ => Access::Full,
            },
            price: self.amount.clone(),
            period_start: self.period_start,
            period_end: self.period_end,
            trial_started_at: self.trial_started_at,
            trial_ends_at: self.trial_ends_at.filter(|_| self.state == SubscriptionState::Trialing),
            cancel_at_period_end: self.cancels,
            past_due_since: self.past_due_since,
            read_only_from: self.read_only_from,
        }
    }
}

text_enum! {
    /// What the organization's members can do.
    Access {
        /// What their roles allow.
        Full = "full",
        /// Read, and mend the payment.
        ReadOnly = "read_only",
    }
}

/// What is told of a subscription, in events too.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Told {
    pub state: SubscriptionState,
    pub plan: Plan,
    pub access: Access,
    pub price: Option<Money>,
    pub period_start: Option<DateTime<Utc>>,
    pub period_end: Option<DateTime<Utc>>,
    pub trial_started_at: Option<DateTime<Utc>>,
    pub trial_ends_at: Option<DateTime<Utc>>,
    pub cancel_at_period_end: bool,
    pub past_due_since: Option<DateTime<Utc>>,
    pub read_only_from: Option<DateTime<Utc>>,
}

const COLUMNS: &str = "organization_id, state, plan, plan_override, stripe_customer_id, stripe_subscription_id, amount, \
     currency, period_start, period_end, trial_started_at, trial_ends_at, trial_reminded_at, cancel_at_period_end, \
     past_due_since, read_only_from, checkout_session_id, checkout_plan, look_applied, version";

fn from_row(row: &Row) -> Result<Record> {
    let amount: Option<Decimal> = row.try_get("amount")?;
    let amount = match amount {
        Some(amount) => Some(Money { amount: Amount::from(amount), currency: row.try_get("currency")? }),
        None => None,
    };
    let (session, of): (Option<String>, Option<Plan>) =
        (row.try_get("checkout_session_id")?, row.try_get("checkout_plan")?);
    Ok(Record {
        organization: row.try_get("organization_id")?,
        state: row.try_get("state")?,
        plan: row.try_get("plan")?,
        plan_override: row.try_get("plan_override")?,
        customer: row.try_get("stripe_customer_id")?,
        subscription: row.try_get("stripe_subscription_id")?,
        amount,
        period_start: row.try_get("period_start")?,
        period_end: row.try_get("period_end")?,
        trial_started_at: row.try_get("trial_started_at")?,
        trial_ends_at: row.try_get("trial_ends_at")?,
        trial_reminded_at: row.try_get("trial_reminded_at")?,
        cancels: row.try_get("cancel_at_period_end")?,
        past_due_since: row.try_get("past_due_since")?,
        read_only_from: row.try_get("read_only_from")?,
        checkout: session.zip(of),
        look_applied: row.try_get("look_applied")?,
        version: row.try_get("version")?,
    })
}

/// What is known of an organization's subscription.
pub async fn find(tx: &Tx, organization: Uuid) -> Result<Record> {
    let sql = format!("select {COLUMNS} from platform.subscriptions where organization_id = $1");
    match tx.query_opt(&sql, &[&organization]).await? {
        Some(row) => from_row(&row),
        None => Ok(Record::none(organization)),
    }
}

/// The same to be changed: with its row, made where there is none, and the organization's locked.
pub async fn lock(tx: &Tx, organization: Uuid) -> Result<Record> {
    organizations::lock(tx, organization).await?;
    tx.execute(
        "insert into platform.subscriptions (organization_id, updated_at) values ($1, now()) on conflict do nothing",
        &[&organization],
    )
    .await?;
    find(tx, organization).await
}

/// The subscriptions of customers at Stripe, after an organization, so many at most.
pub async fn linked(tx: &Tx, after: Uuid, most: i64) -> Result<Vec<Record>> {
    let sql = format!(
        "select {COLUMNS} from platform.subscriptions where stripe_customer_id is not null \
         and organization_id > $1 order by organization_id limit $2"
    );
    tx.query(&sql, &[&after, &most]).await?.iter().map(from_row).collect()
}

/// The organization that a customer at Stripe stands for.
pub async fn organization_of(tx: &Tx, customer: &str) -> Result<Option<Uuid>> {
    let sql = "select organization_id from platform.subscriptions where stripe_customer_id = $1";
    tx.query_opt(sql, &[&customer]).await?.map(|row| Ok(row.try_get("organization_id")?)).transpose()
}

/// Writes a subscription down if it is not as it was, puts its plan in force and tells of both.
pub async fn save(
    tx: &TenantTx,
    app: &App,
    who: &Actor,
    before: &Record,
    mut after: Record,
) -> Result<Record> {
    let (organization, now) = (tx.organization(), app.clock.now());
    let still_paused = after.state == SubscriptionState::Paused && before.state == after.state;
    after.read_only_from = match after.plan_override {
        // What staff give does not depend on what is paid.
        Some(_) => None,
        None if still_paused && before.read_only_from.is_some() => before.read_only_from,
        None => read_only_from(after.state, after.past_due_since, now),
    };
    let (was, is) = (before.told(now), after.told(now));
    // What is written but not told.
    let linked = (&before.customer, &before.subscription) == (&after.customer, &after.subscription);
    if was != is || before.plan != after.plan || !linked {
        after.version += 1;
    }
    store(tx, &after, now).await?;
    // What begins now is told with the change below.
    if let Some(from) =
        after.read_only_from.filter(|from| *from > now && before.read_only_from != Some(*from))
    {
        let unique = Some(format!("{organization} {}", from.timestamp_micros()));
        let terms = Terms { at: Some(from), unique, ..Terms::default() };
        jobs::enqueue_on(tx, app, &TellReadOnly { from }, terms).await?;
    }
    if (before.state, before.trial_ends_at) != (after.state, after.trial_ends_at) {
        trials::watch(tx, app, &after).await?;
    }
    if before.plan_in_force() != after.plan_in_force() {
        put_plan(tx, app, who, after.plan_in_force()).await?;
    }
    if was != is {
        tenancy::changed(tx, organization).await?;
        let changes = Changes::between(&was, &is);
        events::record(tx, app, who.clone(), EventType::SubscriptionUpdated, organization, changes).await?;
    }
    Ok(after)
}

/// Puts a plan in force.
async fn put_plan(tx: &TenantTx, app: &App, who: &Actor, plan: Plan) -> Result<()> {
    let organization = tx.organization();
    let sql = "select plan, status from platform.organizations where id = $1";
    let row = tx.query_one(sql, &[&organization]).await?;
    let (was, status): (Plan, String) = (row.try_get("plan")?, row.try_get("status")?);
    if was == plan {
        return Ok(());
    }
    tx.execute(
        "update platform.organizations set plan = $2, version = version + 1, updated_at = $3 where id = $1",
        &[&organization, &plan, &app.clock.now()],
    )
    .await?;
    tenancy::changed(tx, organization).await?;
    let told = |plan: Plan| json!({"plan": plan, "status": status});
    let changes = Changes::between(&told(was), &told(plan));
    events::record(tx, app, who.clone(), EventType::OrganizationPlanChanged, organization, changes).await?;
    if plan < was {
        limits::warn_of_all(tx, app).await?;
    }
    Ok(())
}

/// Gives an organization a plan whatever is paid for, or takes that back.
pub async fn override_plan(tx: &TenantTx, app: &App, who: &Actor, plan: Option<Plan>) -> Result<()> {
    let before = lock(tx, tx.organization()).await?;
    let mut after = before.clone();
    after.plan_override = plan;
    save(tx, app, who, &before, after).await?;
    Ok(())
}

async fn store(tx: &Tx, record: &Record, now: DateTime<Utc>) -> Result<()> {
    let (session, of) = record.checkout.clone().unzip();
    tx.execute(
        "update platform.subscriptions set state = $2, plan = $3, plan_override = $4, stripe_customer_id = $5, \
         stripe_subscription_id = $6, amount = $7, currency = $8, period_start = $9, period_end = $10, \
         trial_started_at = $11, trial_ends_at = $12, trial_reminded_at = $13, cancel_at_period_end = $14, \
         past_due_since = $15, read_only_from = $16, checkout_session_id = $17, checkout_plan = $18, version = $19, \
         updated_at = case when version = $19 then updated_at else $20 end, look_applied = $21 \
         where organization_id = $1",
        &[
            &record.organization,
            &record.state,
            &record.plan,
            &record.plan_override,
            &record.customer,
            &record.subscription,
            &record.amount.as_ref().map(|money| money.amount.decimal()),
            &record.amount.as_ref().map(|money| money.currency.to_string()),
            &record.period_start,
            &record.period_end,
            &record.trial_started_at,
            &record.trial_ends_at,
            &record.trial_reminded_at,
            &record.cancels,
            &record.past_due_since,
            &record.read_only_from,
            &session,
            &of,
            &record.version,
            &now,
            &record.look_applied,
        ],
    )
    .await?;
    Ok(())
}

/// Tells that only reading is allowed from now on, unless it was paid meanwhile.
#[derive(Serialize, Deserialize)]
pub struct TellReadOnly {
    from: DateTime<Utc>,
}

impl Work for TellReadOnly {
    const KIND: &'static str = "tell_read_only";

    async fn run(self, job: &Running) -> anyhow::Result<()> {
        let app = &*job.app;
        let Some(tenant) = job.tenant().await?.filter(|tenant| !tenant.is_deleted()) else { return Ok(()) };
        let tx = tenant.begin().await?;
        let record = lock(&tx, tenant.id()).await?;
        if record.read_only_from != Some(self.from) {
            return Ok(());
        }
        let (before, now) = (self.from - chrono::TimeDelta::seconds(1), self.from.max(app.clock.now()));
        let changes = Changes::between(&record.told(before), &record.told(now));
        let (who, what) = (Actor::system(), EventType::SubscriptionUpdated);
        events::record(&tx, app, who, what, tenant.id(), changes).await?;
        Ok(tx.commit().await?)
    }
}

/// Refuses where writes are refused because a payment is owed.
pub fn check_writable(app: &App, tenant: &Tenant) -> Result<()> {
    match tenant.read_only_from() {
        Some(from) if from <= app.clock.now() => Err(owed(app, from)),
        _ => Ok(()),
    }
}

fn owed(app: &App, since: DateTime<Utc>) -> Error {
    Error::new(
        Code::PaymentRequired,
        "A payment is owed: everything can be read, nothing can be changed until it is made.",
    )
    .with_details(
        json!({"read_only_from": since, "pay_at": page(app), "portal": "/api/v1/subscriptions/portal"}),
    )
}
