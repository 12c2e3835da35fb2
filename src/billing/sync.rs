//! Looking at Stripe, and making what we know agree with what is there.
//!
//! Nothing that an event says about a subscription is believed: whatever happened, all of the customer's
//! subscriptions are fetched and the one that counts is written down. So events may come in any order
//! and any number of times.
//!
//! Looks are numbered when they begin. What an older look found does not overwrite what a newer one
//! found; should it have been the better one, then because something changed at Stripe after the newer
//! one had begun, and the event of that change brings the next look.

use std::cmp::Reverse;

use chrono::TimeDelta;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    Plan, Stripe,
    record::{self, Record},
    state::{Signal, Status, SubscriptionState, next},
    stripe::{Failure, Seen},
};
use crate::{
    app::App,
    audit::Actor,
    db::{PlatformTx, TenantTx, Tx},
    error::{Error, Result},
    jobs::{self, Policy, Running, Terms, Work},
    tenancy::{self, Tenant},
};

/// What came of a look.
pub struct Look {
    /// What is known after it.
    pub record: Record,
    /// Something that is told of the subscription was not as it is at Stripe.
    pub changed: bool,
    /// Something goes on to be charged.
    pub charged: bool,
}

/// Looks at an organization's subscriptions and writes down what is there. What goes on to be paid for an
/// organization that was deleted is stopped.
pub async fn look(app: &App, tenant: &Tenant, who: &Actor) -> Result<Look> {
    let look = look_only(app, tenant, who).await?;
    if tenant.is_deleted() && look.charged {
        let tx = tenant.begin().await?;
        enqueue_stop(&tx, app).await?;
        tx.commit_aside().await?;
    }
    Ok(look)
}

async fn look_only(app: &App, tenant: &Tenant, who: &Actor) -> Result<Look> {
    let stripe = app.stripe()?;
    let (number, customer) = begin(app, tenant.id()).await?;
    let Some(customer) = customer else {
        let tx = app.db.begin().await?;
        let record = record::find(&tx, tenant.id()).await?;
        return Ok(Look { record, changed: false, charged: false });
    };
    let seen = match stripe.subscriptions_of(&customer).await {
        // The customer was deleted, with all subscriptions.
        Err(Failure::Missing) => Vec::new(),
        seen => seen?,
    };
    // Nobody is unlinked because Stripe does not know them: it may be the wrong account that was asked.
    let gone = seen.iter().all(|seen| !is_open(seen)) && stripe.was_deleted(&customer).await?;
    let tx = tenant.begin().await?;
    let mut before = record::lock(&tx, tenant.id()).await?;
    // A link that was changed while we looked.
    if before.customer.as_deref() != Some(customer.as_str()) || before.look_applied > number {
        return Ok(Look { record: before, changed: false, charged: charged(&seen).next().is_some() });
    }
    before.look_applied = number;
    let mut after = agree(app, stripe, &before, &seen);
    if gone {
        (after.customer, after.checkout) = (None, None);
    }
    let record = record::save(&tx, app, who, &before, after).await?;
    let changed = record.version != before.version;
    // Not the change that the request is about: that was made at Stripe, or was not.
    tx.commit_aside().await?;
    app.directory.forget(tenant.id());
    for told in findings(stripe, &seen) {
        tracing::error!(customer, "a customer at Stripe {told}");
    }
    Ok(Look { record, changed, charged: charged(&seen).next().is_some() })
}

/// Numbers a look, and tells whom to look for.
async fn begin(app: &App, organization: Uuid) -> Result<(i64, Option<String>)> {
    let tx: PlatformTx = app.db.begin().await?;
    let row = tx
        .query_opt(
            "update platform.subscriptions set looks = looks + 1 where organization_id = $1 \
             returning looks, stripe_customer_id",
            &[&organization],
        )
        .await?;
    tx.commit_aside().await?;
    match row {
        Some(row) => Ok((row.try_get("looks")?, row.try_get("stripe_customer_id")?)),
        None => Ok((0, None)),
    }
}

fn is_open(seen: &Seen) -> bool {
    !matches!(seen.status, Status::Ended | Status::Incomplete)
}

/// The subscription that counts: one for a plan before any other, what is paid before what is owed, the
/// larger plan before the smaller, and of equals the oldest. What is for no plan counts for nothing, unless
/// it counted before its price was forgotten.
fn choose<'a>(stripe: &Stripe, before: &Record, seen: &'a [Seen]) -> Option<&'a Seen> {
    let worth = |status: Status| match status {
        Status::Active | Status::Trialing => 4,
        Status::PastDue => 3,
        Status::Unpaid => 2,
        Status::Paused => 1,
        Status::Incomplete | Status::Ended => 0,
    };
    let plan = |seen: &Seen| stripe.plan_of(&seen.price);
    let ours = |seen: &&Seen| plan(seen).is_some() || before.subscription.as_ref() == Some(&seen.id);
    seen.iter().filter(|seen| is_open(seen)).filter(ours).min_by_key(|seen| {
        (Reverse(plan(seen).is_some()), Reverse((worth(seen.status), plan(seen))), seen.created, &seen.id)
    })
}

/// What is not as it should be, and not ours to mend.
pub fn findings(stripe: &Stripe, seen: &[Seen]) -> Vec<String> {
    let open: Vec<&Seen> = seen.iter().filter(|seen| is_open(seen)).collect();
    let mut findings = Vec::new();
    if open.len() > 1 {
        let ids: Vec<&str> = open.iter().map(|seen| seen.id.as_str()).collect();
        findings.push(format!("pays for {} subscriptions: {}", open.len(), ids.join(", ")));
    }
    for seen in open.iter().filter(|seen| stripe.plan_of(&seen.price).is_none()) {
        findings.push(format!("pays {} for the price {}, which is no plan's", seen.id, seen.price));
    }
    findings
}

/// Those that go on to be charged, be it for what is owed.
pub fn charged(seen: &[Seen]) -> impl Iterator<Item = &Seen> {
    let owes = |seen: &Seen| matches!(seen.status, Status::PastDue | Status::Unpaid);
    seen.iter().filter(move |seen| is_open(seen) && (!seen.cancels || owes(seen)))
}

/// What is known, made to agree with what was seen.
pub fn agree(app: &App, stripe: &Stripe, before: &Record, seen: &[Seen]) -> Record {
    let mut after = before.clone();
    let seen = choose(stripe, before, seen);
    let status = match seen {
        Some(seen) => seen.status,
        // A trial without Stripe goes on while there is nothing at Stripe.
        None if before.subscription.is_none() => return after,
        None => Status::Ended,
    };
    let Some(state) = next(before.state, Signal::Seen(status)) else { return after };
    after.state = state;
    let Some(seen) = seen.filter(|_| state != SubscriptionState::Free) else {
        after.end();
        return after;
    };
    after.subscription = Some(seen.id.clone());
    // Of a price that nobody knows any more, what was paid for goes on.
    after.plan = stripe.plan_of(&seen.price).unwrap_or(before.plan.max(Plan::Starter));
    after.amount = seen.amount.clone();
    (after.period_start, after.period_end) = seen.period.unzip();
    after.cancels = seen.cancels;
    if let Some((start, end)) = seen.trial {
        after.trial_started_at = Some(before.trial_started_at.unwrap_or(start));
        after.trial_ends_at = Some(end);
        // One that was put off is told of again.
        let moved = before.trial_ends_at.is_none_or(|known| (known - end).abs() > TimeDelta::minutes(1));
        after.trial_reminded_at = before.trial_reminded_at.filter(|_| !moved);
    }
    after.past_due_since = match state {
        SubscriptionState::PastDue => Some(before.past_due_since.unwrap_or_else(|| app.clock.now())),
        // It is owed all the same, should it go on.
        SubscriptionState::Paused => before.past_due_since,
        _ => None,
    };
    after.checkout = None;
    after
}

/// Looks at one organization's subscriptions.
#[derive(Serialize, Deserialize)]
pub struct SyncSubscription;

impl Work for SyncSubscription {
    const KIND: &'static str = "sync_subscription";
    const POLICY: Policy = Policy { attempts: 8, ..Policy::DEFAULT };

    async fn run(self, job: &Running) -> anyhow::Result<()> {
        let Some(tenant) = job.tenant().await? else { return Ok(()) };
        look(&job.app, &tenant, &Actor::system()).await?;
        Ok(())
    }
}

/// Sees to it that nobody goes on paying for an organization that was deleted: what is paid is used up,
/// and nothing is charged after that. Whoever restores it can take that back.
#[derive(Serialize, Deserialize)]
pub struct StopBilling;

impl Work for StopBilling {
    const KIND: &'static str = "stop_billing";
    const POLICY: Policy = Policy { attempts: 8, ..Policy::DEFAULT };

    async fn run(self, job: &Running) -> anyhow::Result<()> {
        let Some(tenant) = job.tenant().await? else { return Ok(()) };
        end_payments(&job.app, &tenant, false).await?;
        Ok(())
    }
}

/// Ends what is paid for an organization that was deleted: when it is used up, or `at_once`. False where it
/// is not deleted any more; then nothing ends.
pub async fn end_payments(app: &App, tenant: &Tenant, at_once: bool) -> anyhow::Result<bool> {
    let tx = tenant.begin().await?;
    // It may have been restored, and the directory may not have heard yet.
    let deleted = tenancy::is_deleted(&tx, tenant.id()).await?;
    let record = record::find(&tx, tenant.id()).await?;
    drop(tx);
    let (true, Some(customer)) = (deleted, record.customer) else { return Ok(deleted) };
    let stripe = app.stripe()?;
    // A page on which somebody could still pay.
    if let Some((page, _)) = record.checkout
        && stripe.checkout(&page).await?.is_some_and(|page| page.is_open)
    {
        stripe.close_checkout(&page).await?;
    }
    let seen = match stripe.subscriptions_of(&customer).await {
        // Nobody is left to be charged.
        Err(Failure::Missing) => return Ok(true),
        seen => seen?,
    };
    let all = seen.iter().filter(|seen| at_once && seen.status != Status::Ended);
    for seen in all.chain(charged(&seen).filter(|_| !at_once)) {
        match seen.status {
            Status::Active | Status::Trialing if !at_once => stripe.cancel_at_period_end(&seen.id).await?,
            // What is owed is not collected any more.
            _ => stripe.cancel(&seen.id).await?,
        };
    }
    look_only(app, tenant, &Actor::system()).await?;
    Ok(true)
}

/// Has the payments of the transaction's organization end, if there are any.
pub async fn stop_billing(tx: &TenantTx, app: &App) -> Result<()> {
    let record = record::find(tx, tx.organization()).await?;
    match record.customer {
        Some(_) => enqueue_stop(tx, app).await,
        None => Ok(()),
    }
}

async fn enqueue_stop(tx: &TenantTx, app: &App) -> Result<()> {
    let terms = Terms { unique: Some(jobs::ONE.into()), ..Terms::default() };
    jobs::enqueue_on(tx, app, &StopBilling, terms).await
}

/// Has somebody look after a while, whatever becomes of what is under way now.
pub async fn look_later(tx: &Tx, app: &App, organization: Uuid, after: TimeDelta) -> Result<()> {
    // Not a unique one: of two it would keep the earlier, and the later is meant.
    let terms = Terms {
        at: Some(app.clock.now() + after),
        unique: None,
        organization: Some(organization),
        lane: Some(organization),
    };
    jobs::enqueue_on(tx, app, &SyncSubscription, terms).await
}

impl App {
    /// The way to Stripe, where it is set up.
    pub fn stripe(&self) -> Result<&Stripe> {
        self.stripe.as_ref().ok_or_else(|| {
            Error::unavailable(
                "Payments are not set up here. Whoever runs this service does so with STRIPE_SECRET_KEY \
                 (docs/billing.md).",
                3600,
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use chrono::Utc;

    use super::*;

    #[test]
    fn the_subscription_that_counts_is_the_best_for_a_plan() {
        let stripe = Stripe::for_test(&[(Plan::Starter, "s"), (Plan::Professional, "p")]);
        let now = Utc::now();
        let seen =
            |id: &str, price, status, age| Seen::for_test(id, price, status, now - TimeDelta::days(age));
        let mut before = Record::none(Uuid::nil());
        let all = [
            seen("ended", "p", Status::Ended, 9),
            seen("other", "x", Status::Active, 8),
            seen("due", "p", Status::PastDue, 7),
            seen("small", "s", Status::Active, 6),
            seen("old", "p", Status::Active, 2),
            seen("new", "p", Status::Trialing, 1),
        ];
        let chosen = |before: &Record, all: &[Seen]| choose(&stripe, before, all).map(|seen| seen.id.clone());
        assert_eq!(chosen(&before, &all).as_deref(), Some("old"));
        assert_eq!(chosen(&before, &all[..4]).as_deref(), Some("small"));
        assert_eq!(chosen(&before, &all[..3]).as_deref(), Some("due"));
        assert_eq!(chosen(&before, &all[..2]), None, "what is for no plan buys none");
        before.subscription = Some("other".into());
        assert_eq!(chosen(&before, &all[..2]).as_deref(), Some("other"), "unless it did before");
        assert_eq!(chosen(&before, &[seen("unpaid yet", "p", Status::Incomplete, 0)]), None);
    }
}
