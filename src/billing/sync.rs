//! Looking at Stripe, and making what we know agree with what is there.
//!
//! Nothing that an event says about a subscription is believed: whatever happened, all of the customer's
//! subscriptions are fetched and the one that counts is written down. So events may come in any order
//! and any number of times.
//!
//! Looks are numbered when they begin. What an older look found does not overwrite what a newer one
//! found; should it have been the better one, then because something changed at Stripe after the newer
//! one had begun, and the event of that change brings the next look.

use chrono::TimeDelta;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    Plan, Stripe,
    state::{Signal, Status, SubscriptionState, next},
    stripe::{Failure, Seen},
    subscriptions::{self, Record},
};
use crate::{
    app::App,
    audit::Actor,
    db::{PlatformTx, TenantTx, Tx},
    error::{Error, Result},
    jobs::{self, Policy, Running, Terms, Work},
    tenancy::Tenant,
};

/// What came of a look.
pub struct Look {
    /// What is known after it.
    pub record: Record,
    /// Something that is told of the subscription was not as it is at Stripe.
    pub changed: bool,
}

/// Looks at an organization's subscriptions and writes down what is there.
pub async fn look(app: &App, tenant: &Tenant, who: &Actor) -> Result<Look> {
    let stripe = app.stripe()?;
    let (number, customer) = begin(app, tenant.id()).await?;
    let Some(customer) = customer else {
        let tx = app.db.begin().await?;
        let record = subscriptions::find(&tx, tenant.id()).await?;
        return Ok(Look { record, changed: false });
    };
    let (seen, gone) = match stripe.subscriptions_of(&customer).await {
        Ok(seen) => (seen, false),
        // The customer was deleted, with all subscriptions.
        Err(Failure::Missing) => (Vec::new(), true),
        Err(failure) => return Err(failure.into()),
    };
    // Ended subscriptions outlive their customer.
    let gone = gone || (choose(&seen).is_none() && stripe.customer(&customer).await?.is_none());
    findings(stripe, &seen);
    let tx = tenant.begin().await?;
    let mut before = subscriptions::lock(&tx, tenant.id()).await?;
    // A link that was changed while we looked.
    if before.customer.as_deref() != Some(customer.as_str()) || before.look_applied > number {
        return Ok(Look { record: before, changed: false });
    }
    before.look_applied = number;
    let mut after = agree(app, stripe, &before, choose(&seen));
    if gone {
        (after.customer, after.checkout) = (None, None);
    }
    let record = subscriptions::save(&tx, app, who, &before, after).await?;
    if tenant.is_deleted() && record.subscription.is_some() && !record.cancels {
        enqueue_stop(&tx, app).await?;
    }
    let changed = record.version != before.version;
    mark(&tx, app, tenant.id(), number).await?;
    tx.commit().await?;
    app.directory.forget(tenant.id());
    Ok(Look { record, changed })
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

async fn mark(tx: &TenantTx, app: &App, organization: Uuid, number: i64) -> Result<()> {
    tx.execute(
        "update platform.subscriptions set look_applied = $2, synced_at = $3 where organization_id = $1",
        &[&organization, &number, &app.clock.now()],
    )
    .await?;
    Ok(())
}

/// The subscription that counts: the best of those that have not ended, of equals the oldest.
pub fn choose(seen: &[Seen]) -> Option<&Seen> {
    let worth = |status: Status| match status {
        Status::Active | Status::Trialing => 4,
        Status::PastDue => 3,
        Status::Unpaid => 2,
        Status::Paused => 1,
        Status::Incomplete | Status::Ended => 0,
    };
    let open = seen.iter().filter(|seen| worth(seen.status) > 0);
    open.min_by_key(|seen| (-worth(seen.status), seen.created, seen.id.clone()))
}

/// What is not as it should be, and not ours to mend.
pub fn findings(stripe: &Stripe, seen: &[Seen]) -> Vec<String> {
    let open: Vec<&Seen> =
        seen.iter().filter(|seen| !matches!(seen.status, Status::Ended | Status::Incomplete)).collect();
    let mut findings = Vec::new();
    if open.len() > 1 {
        let ids: Vec<&str> = open.iter().map(|seen| seen.id.as_str()).collect();
        findings.push(format!("pays for {} subscriptions: {}", open.len(), ids.join(", ")));
    }
    for seen in open.iter().filter(|seen| stripe.plan_of(&seen.price).is_none()) {
        findings.push(format!("{} is for the price {}, which is no plan's", seen.id, seen.price));
    }
    for told in &findings {
        tracing::error!(customer = open.first().map(|seen| seen.customer.as_str()), "a customer {told}");
    }
    findings
}

/// What is known, made to agree with what was seen.
pub fn agree(app: &App, stripe: &Stripe, before: &Record, seen: Option<&Seen>) -> Record {
    let mut after = before.clone();
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
        let app = &*job.app;
        let Some(tenant) = job.tenant().await?.filter(Tenant::is_deleted) else { return Ok(()) };
        let record = look(app, &tenant, &Actor::system()).await?.record;
        let Some(id) = record.subscription else {
            // A page on which somebody could still pay.
            if let Some((page, _)) = record.checkout
                && app.stripe()?.checkout(&page).await?.is_some_and(|page| page.is_open)
            {
                app.stripe()?.close_checkout(&page).await?;
            }
            return Ok(());
        };
        match record.state {
            // What is owed is not collected any more.
            SubscriptionState::PastDue | SubscriptionState::Paused => app.stripe()?.cancel(&id).await?,
            _ if record.cancels => return Ok(()),
            _ => app.stripe()?.cancel_at_period_end(&id, true).await?,
        };
        look(app, &tenant, &Actor::system()).await?;
        Ok(())
    }
}

/// Has the payments of the transaction's organization end, if there are any.
pub async fn stop_billing(tx: &TenantTx, app: &App) -> Result<()> {
    let record = subscriptions::find(tx, tx.organization()).await?;
    match record.customer {
        Some(_) => enqueue_stop(tx, app).await,
        None => Ok(()),
    }
}

async fn enqueue_stop(tx: &TenantTx, app: &App) -> Result<()> {
    let terms = Terms { unique: Some(tx.organization().to_string()), ..Terms::default() };
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
    fn the_best_subscription_counts_and_of_equals_the_oldest() {
        let now = Utc::now();
        let seen = |id: &str, status, age| Seen::for_test(id, status, now - TimeDelta::days(age));
        let chosen = |all: &[Seen]| choose(all).map(|seen| seen.id.clone());
        let all = [
            seen("ended", Status::Ended, 9),
            seen("due", Status::PastDue, 8),
            seen("new", Status::Active, 1),
            seen("old", Status::Active, 2),
        ];
        assert_eq!(chosen(&all).as_deref(), Some("old"));
        assert_eq!(chosen(&all[..2]).as_deref(), Some("due"));
        assert_eq!(chosen(&all[..1]), None);
        assert_eq!(chosen(&[seen("unpaid yet", Status::Incomplete, 0)]), None);
    }
}
