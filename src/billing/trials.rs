//! Trials: a word three days before they end, and their end.
//!
//! A trial without Stripe ends by a job at its hour; one at Stripe ends there. Once a day all of them are
//! looked at, in case that a job or an event got lost.

use chrono::TimeDelta;
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use super::{
    record::{self, Record},
    state::{Signal, SubscriptionState, next},
    sync,
};
use crate::{
    app::App,
    audit::{Actor, Changes},
    db::{TenantTx, Tx},
    error::Result,
    events::{self, EventType},
    jobs::{self, Running, Terms, Work},
    tenancy::Tenant,
};

/// How long before its end a trial is told to end.
const NOTICE: TimeDelta = TimeDelta::days(3);

/// Has a trial looked at when there will be something to do: to remind, and to end it.
pub async fn watch(tx: &Tx, app: &App, record: &Record) -> Result<()> {
    let Some(end) = record.trial_ends_at.filter(|_| record.state == SubscriptionState::Trialing) else {
        return Ok(());
    };
    let at = if record.trial_reminded_at.is_none() { end - NOTICE } else { end };
    let organization = record.organization;
    let terms = Terms {
        at: Some(at),
        unique: Some(at.timestamp().to_string()),
        organization: Some(organization),
        lane: Some(organization),
    };
    jobs::enqueue_on(tx, app, &LookAtTrial, terms).await
}

/// Looks at every trial that ends soon or should have ended.
pub async fn look_at_trials(app: &App) -> anyhow::Result<()> {
    let soon = app.clock.now() + NOTICE;
    let tx = app.db.begin().await?;
    let rows = tx
        .query(
            "select organization_id from platform.subscriptions where state = 'trialing' and trial_ends_at <= $1",
            &[&soon],
        )
        .await?;
    for row in &rows {
        let organization: Uuid = row.try_get("organization_id")?;
        let unique = Some(jobs::ONE.into());
        let terms = Terms { unique, lane: Some(organization), organization: Some(organization), at: None };
        jobs::enqueue_on(&tx, app, &LookAtTrial, terms).await?;
    }
    Ok(tx.commit().await?)
}

/// Does what is to be done about an organization's trial now.
#[derive(Serialize, Deserialize)]
pub struct LookAtTrial;

impl Work for LookAtTrial {
    const KIND: &'static str = "look_at_trial";

    async fn run(self, job: &Running) -> anyhow::Result<()> {
        let app = &*job.app;
        let Some(tenant) = job.tenant().await? else { return Ok(()) };
        let tx = tenant.begin().await?;
        let before = record::lock(&tx, tenant.id()).await?;
        let over = before.trial_ends_at.is_some_and(|end| end <= app.clock.now());
        if before.state != SubscriptionState::Trialing {
            return Ok(());
        }
        if !over {
            remind_within(&tx, app, &before).await?;
            return Ok(tx.commit().await?);
        }
        if before.subscription.is_some() {
            // Ended, or paid, at Stripe: its event has not come.
            drop(tx);
            if app.stripe.is_some() {
                sync::look(app, &tenant, &Actor::system()).await?;
            }
            return Ok(());
        }
        let mut after = before.clone();
        if let Some(state) = next(before.state, Signal::TrialOver) {
            after.state = state;
            after.end();
        }
        record::save(&tx, app, &Actor::system(), &before, after).await?;
        tx.commit().await?;
        app.directory.forget(tenant.id());
        Ok(())
    }
}

/// Tells that a trial ends soon, once.
pub async fn remind(app: &App, tenant: &Tenant) -> Result<()> {
    let tx = tenant.begin().await?;
    let record = record::lock(&tx, tenant.id()).await?;
    remind_within(&tx, app, &record).await?;
    tx.commit().await
}

async fn remind_within(tx: &TenantTx, app: &App, record: &Record) -> Result<()> {
    let now = app.clock.now();
    let soon = record.trial_ends_at.is_some_and(|end| end <= now + NOTICE && end > now);
    if !soon || record.state != SubscriptionState::Trialing || record.trial_reminded_at.is_some() {
        return watch(tx, app, record).await;
    }
    let mut reminded = record.clone();
    reminded.trial_reminded_at = Some(now);
    record::save(tx, app, &Actor::system(), record, reminded.clone()).await?;
    let goes_on = record.subscription.is_some() && !record.cancels;
    let told =
        json!({"plan": record.plan_in_force(), "trial_ends_at": record.trial_ends_at, "goes_on": goes_on});
    let what = EventType::SubscriptionTrialEnding;
    events::emit(tx, app, &Actor::system(), what, record.organization, &Changes::none(&told)).await?;
    watch(tx, app, &reminded).await
}
