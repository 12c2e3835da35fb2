//! Setting Stripe up, and looking whether it is set up as the plans say.

use serde_json::json;

use super::{Plan, plans, record};
use crate::{
    app::App,
    audit::{self, Actor, Changes},
    error::Result,
    tenancy::Tenant,
    types::Money,
};

/// Makes products and prices at Stripe for the plans that have a price, and answers the lines of
/// configuration that name them. What is there already is found again.
pub async fn prices(app: &App) -> anyhow::Result<Vec<(Plan, String, Money)>> {
    let stripe = app.stripe().map_err(|_| anyhow::anyhow!("STRIPE_SECRET_KEY is not set"))?;
    let tx = app.db.begin().await?;
    let offers = plans::all(&tx).await?;
    drop(tx);
    let mut made = Vec::new();
    for offer in offers.into_iter().filter(|offer| offer.name != Plan::Free) {
        let Some(price) = offer.price else { continue };
        let found = stripe.price_for(offer.name, offer.title.as_ref(), &price).await?;
        made.push((offer.name, found.id, price));
    }
    Ok(made)
}

/// What is wrong with the prices that are configured; nothing where Stripe is not set up.
pub async fn complaints(app: &App) -> anyhow::Result<Vec<String>> {
    let Ok(stripe) = app.stripe() else { return Ok(Vec::new()) };
    let tx = app.db.begin().await?;
    let offers = plans::all(&tx).await?;
    drop(tx);
    let mut wrong = Vec::new();
    if app.config.stripe.webhook_secret.is_none() {
        wrong.push(
            "STRIPE_WEBHOOK_SECRET is missing: what happens at Stripe is only seen once an hour".into(),
        );
    }
    for offer in offers.iter().filter(|offer| offer.name != Plan::Free) {
        let plan = offer.name;
        let variable = format!("STRIPE_PRICE_{}", plan.name().to_uppercase());
        let Some(id) = stripe.price_of(plan) else {
            if offer.price.is_some() {
                wrong.push(format!(
                    "{variable} is missing: nobody can buy {plan}; see `rowhouse stripe setup`"
                ));
            }
            continue;
        };
        match stripe.price(id).await? {
            None => wrong.push(format!("{variable}: Stripe does not know the price {id}")),
            Some(price) if !price.active => wrong.push(format!("{variable}: the price {id} is not active")),
            Some(price) if !price.monthly => {
                wrong.push(format!("{variable}: the price {id} is not for a month"));
            }
            Some(price) if offer.price.is_some() && price.amount != offer.price => {
                let text = |money: &Option<Money>| match money {
                    Some(money) => format!("{} {}", money.currency, money.amount),
                    None => "no fixed sum".into(),
                };
                let (theirs, ours) = (text(&price.amount), text(&offer.price));
                wrong.push(format!("{variable}: Stripe charges {theirs} for {plan}, the plan shows {ours}"));
            }
            Some(_) => {}
        }
    }
    Ok(wrong)
}

/// Forgets which customer an organization is, and answers which it was.
pub async fn unlink(app: &App, tenant: &Tenant) -> Result<Option<String>> {
    let who = Actor::system();
    let tx = tenant.begin().await?;
    let before = record::lock(&tx, tenant.id()).await?;
    let Some(customer) = before.customer.clone() else { return Ok(None) };
    let mut after = before.clone();
    if before.subscription.is_some() {
        after.end();
    }
    (after.customer, after.checkout) = (None, None);
    record::save(&tx, app, &who, &before, after).await?;
    let (organization, changes) =
        (Some(tenant.id()), Changes::deleted(&json!({"stripe_customer": customer})));
    audit::record_platform(&tx, app, who, "stripe_customer.unlinked", organization, organization, &changes)
        .await?;
    tx.commit().await?;
    app.directory.forget(tenant.id());
    Ok(Some(customer))
}
