//! An organization's subscription: what is known of it, and what its owner can do about it.

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use poem_openapi::{
    Object, OpenApi,
    param::{Path, Query},
    types::Example,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use super::{
    Plan, Use, invoices,
    limits::{self, page},
    record::{Access, Record, find, lock, save},
    state::{Signal, SubscriptionState, TRIAL, next},
    stripe::{Checkout, Failure, Trial},
    sync::{look, look_later},
};
use crate::{
    accounts::profile,
    api::Tag,
    app::App,
    audit::Actor,
    auth::{
        Can, Member,
        permissions::{BillingManage, BillingRead},
    },
    db::TenantTx,
    error::{Error, Result},
    http::{Body, Json},
    page::{ListCursor, Page, Paging},
    tenancy,
    types::{Money, example, example_time},
};

/// How long one change at Stripe may take before others think that it is over.
const CLAIM: TimeDelta = TimeDelta::minutes(1);
/// Stripe takes no end of a trial that is nearer than this; one hour to spare.
const NEAREST_TRIAL_END: TimeDelta = TimeDelta::hours(49);

/// An organization's subscription.
#[derive(Clone, Debug, Serialize, Object)]
#[oai(example)]
pub struct Subscription {
    /// The plan in force, whether paid, tried or given.
    pub plan: Plan,
    pub state: SubscriptionState,
    pub access: Access,
    /// What is paid for a month.
    pub price: Option<Money>,
    /// What the last payment is for.
    pub period_start: Option<DateTime<Utc>>,
    pub period_end: Option<DateTime<Utc>>,
    pub trial_started_at: Option<DateTime<Utc>>,
    /// While it is tried.
    pub trial_ends_at: Option<DateTime<Utc>>,
    /// Whether a trial can begin now.
    pub can_start_trial: bool,
    /// It ends with the period, and the organization is on the plan free then.
    pub cancel_at_period_end: bool,
    /// Since when a payment is owed.
    pub past_due_since: Option<DateTime<Utc>>,
    /// From when on writes are refused unless it is paid.
    pub read_only_from: Option<DateTime<Utc>>,
    /// What is used of what the plan allows.
    pub limits: Vec<Use>,
}

impl Example for Subscription {
    fn example() -> Self {
        Self {
            plan: Plan::Starter,
            state: SubscriptionState::Active,
            access: Access::Full,
            price: Some(Money { amount: example("49.00"), currency: example("SGD") }),
            period_start: Some(example_time()),
            period_end: Some(example_time() + TimeDelta::days(31)),
            trial_started_at: None,
            trial_ends_at: None,
            can_start_trial: false,
            cancel_at_period_end: false,
            past_due_since: None,
            read_only_from: None,
            limits: vec![Use { resource: limits::Resource::Users, used: 7, limit: Some(10) }],
        }
    }
}

/// The plan that somebody wants.
#[derive(Debug, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(deny_unknown_fields, example)]
pub struct PlanChoice {
    pub plan: Plan,
}

impl Example for PlanChoice {
    fn example() -> Self {
        Self { plan: Plan::Professional }
    }
}

/// When a subscription is to end.
#[derive(Debug, Default, Deserialize, Object)]
#[serde(deny_unknown_fields, default)]
#[oai(deny_unknown_fields, example)]
pub struct Cancellation {
    /// Now, without money back; otherwise with the period that is paid.
    #[oai(default)]
    pub immediately: bool,
}

impl Example for Cancellation {
    fn example() -> Self {
        Self { immediately: false }
    }
}

/// A page at Stripe on which somebody can pay.
#[derive(Debug, Serialize, Object)]
#[oai(example)]
pub struct CheckoutPage {
    /// To send the browser to.
    pub url: String,
    pub expires_at: DateTime<Utc>,
}

impl Example for CheckoutPage {
    fn example() -> Self {
        Self { url: "https://checkout.stripe.com/c/pay/cs_1".into(), expires_at: example_time() }
    }
}

/// A page at Stripe with invoices and ways to pay.
#[derive(Debug, Serialize, Object)]
#[oai(example)]
pub struct PortalPage {
    /// To send the browser to, within minutes.
    pub url: String,
}

impl Example for PortalPage {
    fn example() -> Self {
        Self { url: "https://billing.stripe.com/p/session/bps_1".into() }
    }
}

pub struct SubscriptionsApi;

#[OpenApi(tag = "Tag::Billing")]
impl SubscriptionsApi {
    /// See the subscription, and what is used of each limit.
    #[oai(path = "/subscriptions/current", method = "get", operation_id = "get_subscription")]
    async fn current(&self, who: Can<BillingRead>) -> Result<Json<Subscription>> {
        let tx = who.begin().await?;
        let record = find(&tx, who.tenant.id()).await?;
        Ok(Json(shown(&tx, &who.app, &record).await?))
    }

    /// Try a plan for 14 days.
    ///
    /// Once for an organization, of an owner's one at a time, and without anything to pay with. At its end the organization is on the
    /// plan free unless it has begun to pay.
    #[oai(path = "/subscriptions/trial", method = "post", operation_id = "start_trial")]
    async fn trial(&self, who: Can<BillingManage>, to: Body<PlanChoice>) -> Result<Json<Subscription>> {
        if !to.0.plan.has_trial() {
            return Err(Error::invalid("plan", "must be starter or professional"));
        }
        not_in_play(&who)?;
        let now = who.app.clock.now();
        let tx = who.begin().await?;
        let before = lock(&tx, who.tenant.id()).await?;
        if before.trial_started_at.is_some() {
            return Err(Error::conflict("The organization has had its trial."));
        }
        if tries_another(&tx, who.user_id).await? {
            return Err(Error::conflict("You are trying a plan in another organization; one at a time."));
        }
        let state = next(before.state, Signal::TrialBegun)
            .ok_or_else(|| Error::conflict("There is a subscription already; upgrade or downgrade it."))?;
        let mut after = before.clone();
        (after.state, after.plan) = (state, to.0.plan);
        // In whole seconds, as Stripe counts.
        let now = now.trunc_subsecs(0);
        (after.trial_started_at, after.trial_ends_at) = (Some(now), Some(now + TRIAL));
        let record = save(&tx, &who.app, &Actor::from(&*who), &before, after).await?;
        let shown = shown(&tx, &who.app, &record).await?;
        tx.commit().await?;
        who.app.directory.forget(who.tenant.id());
        Ok(Json(shown))
    }

    /// Begin to pay.
    ///
    /// Answers the address of a page at Stripe; the plan is in force once somebody has paid there. A
    /// trial that is under way goes on to its end, unless that is nearer than two days; who has not had one
    /// begins with one.
    #[oai(path = "/subscriptions/checkout", method = "post", operation_id = "start_checkout")]
    async fn checkout(&self, who: Can<BillingManage>, to: Body<PlanChoice>) -> Result<Json<CheckoutPage>> {
        not_in_play(&who)?;
        alone(&who, open_checkout(&who, to.0.plan)).await.map(Json)
    }

    /// Open the customer portal.
    ///
    /// Answers the address of a page at Stripe with invoices, receipts and ways to pay.
    #[oai(path = "/subscriptions/portal", method = "post", operation_id = "open_billing_portal")]
    async fn portal(&self, who: Can<BillingManage>) -> Result<Json<PortalPage>> {
        let stripe = who.app.stripe()?;
        let tx = who.begin().await?;
        let record = find(&tx, who.tenant.id()).await?;
        drop(tx);
        let customer = record
            .customer
            .ok_or_else(|| Error::conflict("Nothing was ever paid here; begin with a checkout."))?;
        match stripe.open_portal(&customer, &page(&who.app)).await {
            Ok(url) => Ok(Json(PortalPage { url })),
            Err(Failure::Missing) => {
                Err(Error::conflict("Stripe does not know this customer any more; begin with a checkout."))
            }
            Err(failure) => Err(failure.into()),
        }
    }

    /// Go to a larger plan.
    ///
    /// The difference for the rest of the period is charged at once; if that fails nothing changes.
    #[oai(path = "/subscriptions/upgrade", method = "post", operation_id = "upgrade_subscription")]
    async fn upgrade(&self, who: Can<BillingManage>, to: Body<PlanChoice>) -> Result<Json<Subscription>> {
        alone(&who, change_plan(&who, to.0.plan, true)).await.map(Json)
    }

    /// Go to a smaller plan.
    ///
    /// In force at once; what is paid too much is taken off the next invoice. Refused with 409 while more
    /// is used than the smaller plan allows: `details.over` lists it.
    #[oai(path = "/subscriptions/downgrade", method = "post", operation_id = "downgrade_subscription")]
    async fn downgrade(&self, who: Can<BillingManage>, to: Body<PlanChoice>) -> Result<Json<Subscription>> {
        alone(&who, change_plan(&who, to.0.plan, false)).await.map(Json)
    }

    /// Cancel the subscription.
    #[oai(path = "/subscriptions/cancel", method = "post", operation_id = "cancel_subscription")]
    async fn cancel(&self, who: Can<BillingManage>, when: Body<Cancellation>) -> Result<Json<Subscription>> {
        alone(&who, cancel(&who, when.0.immediately)).await.map(Json)
    }

    /// Take a cancellation back, while the period that is paid lasts.
    #[oai(path = "/subscriptions/reactivate", method = "post", operation_id = "reactivate_subscription")]
    async fn reactivate(&self, who: Can<BillingManage>) -> Result<Json<Subscription>> {
        alone(&who, reactivate(&who)).await.map(Json)
    }

    /// List invoices, the newest first.
    #[oai(path = "/subscriptions/invoices", method = "get", operation_id = "list_invoices")]
    async fn invoices(
        &self,
        who: Can<BillingRead>,
        page: Query<Option<u32>>,
        page_size: Query<Option<u32>>,
        cursor: Query<Option<ListCursor>>,
    ) -> Result<Json<Page<invoices::Invoice>>> {
        let paging = Paging::new(page.0, page_size.0, cursor.0)?;
        let tx = who.begin().await?;
        Ok(Json(invoices::list(&tx, &paging).await?))
    }

    /// See an invoice, with links that work now.
    ///
    /// Stripe's links end after a while; here they are fetched anew.
    #[oai(path = "/subscriptions/invoices/:invoice_id", method = "get", operation_id = "get_invoice")]
    async fn invoice(
        &self,
        who: Can<BillingRead>,
        invoice_id: Path<String>,
    ) -> Result<Json<invoices::Invoice>> {
        Ok(Json(invoices::refresh(&who.app, &who.tenant, &invoice_id.0).await?))
    }

    /// List what of payments went back or is contested, the newest first.
    #[oai(path = "/subscriptions/adjustments", method = "get", operation_id = "list_adjustments")]
    async fn adjustments(
        &self,
        who: Can<BillingRead>,
        page: Query<Option<u32>>,
        page_size: Query<Option<u32>>,
        cursor: Query<Option<ListCursor>>,
    ) -> Result<Json<Page<invoices::Adjustment>>> {
        let paging = Paging::new(page.0, page_size.0, cursor.0)?;
        let tx = who.begin().await?;
        Ok(Json(invoices::adjustments(&tx, &paging).await?))
    }
}

/// Whether an owner has another organization on a trial that nobody pays for.
async fn tries_another(tx: &TenantTx, owner: Uuid) -> Result<bool> {
    // Two at once come one after the other.
    tx.query("select id from platform.users where id = $1 for no key update", &[&owner]).await?;
    let sql = "select 1 from platform.subscriptions s join platform.organization_members m \
         on m.organization_id = s.organization_id and m.user_id = $2 and m.role = 'owner' \
         join platform.organizations o on o.id = s.organization_id and o.deleted_at is null \
         where s.organization_id <> $1 and s.state = 'trialing' and s.stripe_subscription_id is null limit 1";
    Ok(tx.query_opt(sql, &[&tx.organization(), &owner]).await?.is_some())
}

/// Does something that nobody else may do to the same subscription at the same time.
async fn alone<T>(who: &Member, work: impl Future<Output = Result<T>>) -> Result<T> {
    let claim = Claim::take(who).await?;
    let done = work.await;
    claim.release(&who.app).await;
    done
}

/// The right to change a subscription at Stripe: one at a time has it.
struct Claim {
    id: Uuid,
    organization: Uuid,
}

impl Claim {
    /// Whatever becomes of the change, somebody looks at Stripe when it must be over.
    async fn take(who: &Member) -> Result<Self> {
        let (app, organization) = (&*who.app, who.tenant.id());
        let (id, now) = (Uuid::now_v7(), app.clock.now());
        let tx = who.begin().await?;
        let record = lock(&tx, organization).await?;
        let claimed = tx
            .execute(
                "update platform.subscriptions set claim = $2, claimed_until = $3 \
                 where organization_id = $1 and (claim is null or claimed_until < $4)",
                &[&organization, &id, &(now + CLAIM), &now],
            )
            .await?;
        if claimed == 0 {
            return Err(Error::conflict(
                "Another change of the subscription is under way. Try again in a moment.",
            ));
        }
        if app.stripe.is_some() && record.customer.is_some() {
            look_later(&tx, app, organization, CLAIM).await?;
        }
        tx.commit_aside().await?;
        Ok(Self { id, organization })
    }

    /// Lets others. Where that fails, they wait until its time is over.
    async fn release(self, app: &App) {
        let released = async {
            let tx = app.db.begin().await?;
            tx.execute(
                "update platform.subscriptions set claim = null, claimed_until = null \
                 where organization_id = $1 and claim = $2",
                &[&self.organization, &self.id],
            )
            .await?;
            tx.commit_aside().await
        };
        if let Err(error) = released.await {
            tracing::warn!(%error, "the right to change a subscription could not be given back");
        }
    }
}

/// A page to pay on: the one that is open, if it is for the same plan, or a new one.
async fn open_checkout(who: &Member, plan: Plan) -> Result<CheckoutPage> {
    let (app, tenant) = (&*who.app, &who.tenant);
    let stripe = app.stripe()?;
    let price = price_of(app, plan)?;
    // Somebody may have paid a moment ago, and nobody must pay twice.
    let unpaid = || async {
        let record = look(app, tenant, &Actor::system()).await?.record;
        match record.subscription {
            Some(_) => Err(Error::conflict("There is a subscription already; upgrade or downgrade it.")),
            None => Ok(record),
        }
    };
    let mut record = unpaid().await?;
    if let Some((id, of)) = record.checkout.clone()
        && let Some(known) = stripe.checkout(&id).await?
    {
        let open = known.is_open;
        if let Some(url) = known.url.filter(|_| open && of == plan) {
            return Ok(CheckoutPage { url, expires_at: known.expires_at });
        }
        let closed = if open { stripe.close_checkout(&id).await } else { Ok(()) };
        // Between the look and this somebody may have paid on it.
        record = unpaid().await?;
        closed?;
    }
    let customer = match record.customer {
        Some(customer) => customer,
        None => {
            let customer = link_customer(who).await?;
            // It may be one of before, and pay already.
            record = unpaid().await?;
            customer
        }
    };
    let now = app.clock.now();
    let trial = match record.trial_ends_at.filter(|_| record.state == SubscriptionState::Trialing) {
        Some(end) if end > now + NEAREST_TRIAL_END && plan.has_trial() => Trial::Until(end),
        Some(_) => Trial::None,
        None if record.trial_started_at.is_none() && plan.has_trial() => {
            Trial::Days(TRIAL.num_days().unsigned_abs() as u32)
        }
        None => Trial::None,
    };
    let back = page(app);
    let opened = stripe
        .open_checkout(&Checkout {
            organization: tenant.id(),
            customer: &customer,
            price,
            trial,
            success_url: &format!("{back}?checkout=done"),
            cancel_url: &back,
        })
        .await?;
    let tx = who.begin().await?;
    lock(&tx, tenant.id()).await?;
    if tenancy::is_deleted(&tx, tenant.id()).await? {
        // Nobody waits for the lock while Stripe answers.
        drop(tx);
        stripe.close_checkout(&opened.id).await?;
        return Err(tenancy::unknown());
    }
    tx.execute(
        "update platform.subscriptions set checkout_session_id = $2, checkout_plan = $3 where organization_id = $1",
        &[&tenant.id(), &opened.id, &plan],
    )
    .await?;
    tx.commit().await?;
    let url = opened.url.ok_or_else(|| Error::internal("a checkout without an address"))?;
    Ok(CheckoutPage { url, expires_at: opened.expires_at })
}

/// Makes the organization known at Stripe.
async fn link_customer(who: &Member) -> Result<String> {
    let tenant = &who.tenant;
    let tx = who.begin().await?;
    let email = profile::find(&tx, who.user_id).await?.email;
    let sql = "select name from platform.organizations where id = $1";
    let name: String = tx.query_one(sql, &[&tenant.id()]).await?.try_get("name")?;
    drop(tx);
    let customer = who.app.stripe()?.customer_for(tenant.id(), &name, email.as_ref()).await?;
    let tx = who.begin().await?;
    lock(&tx, tenant.id()).await?;
    tx.execute(
        "update platform.subscriptions set stripe_customer_id = $2 where organization_id = $1",
        &[&tenant.id(), &customer],
    )
    .await?;
    tx.commit_aside().await?;
    Ok(customer)
}

/// The price of a plan that one can buy here.
fn price_of(app: &App, plan: Plan) -> Result<&str> {
    if plan == Plan::Free {
        return Err(Error::invalid("plan", "costs nothing; cancel the subscription to go back to it"));
    }
    app.stripe()?.price_of(plan).ok_or_else(|| {
        Error::conflict(format!("The plan {plan} is agreed with each customer. Write to us for an offer."))
    })
}

/// Goes to a larger or a smaller plan.
async fn change_plan(who: &Member, plan: Plan, larger: bool) -> Result<Subscription> {
    let (app, organization) = (&*who.app, who.tenant.id());
    let tx = who.begin().await?;
    let before = lock(&tx, organization).await?;
    if before.state == SubscriptionState::Free {
        return Err(Error::conflict("There is no subscription yet; begin with a trial or a checkout."));
    }
    if plan == before.plan {
        return Err(Error::conflict(format!("The organization is on the plan {plan} already.")));
    }
    if plan == Plan::Free {
        return Err(Error::invalid("plan", "costs nothing; cancel the subscription to go back to it"));
    }
    if (plan > before.plan) != larger {
        let (is, does) = if larger { ("smaller", "downgrade") } else { ("larger", "upgrade") };
        return Err(Error::invalid("plan", format!("is {is} than {}; {does} to it", before.plan)));
    }
    if !larger {
        let over = limits::over(&tx, app, plan).await?;
        if !over.is_empty() {
            let what: Vec<&str> = over.iter().map(|over| over.resource.name()).collect();
            let told = format!("The plan {plan} allows less than is used of: {}.", what.join(", "));
            return Err(Error::conflict(told).with_details(json!({"plan": plan, "over": over})));
        }
    }
    let Some(id) = before.subscription.clone() else {
        // A trial without Stripe: nothing is paid for it.
        if !plan.has_trial() {
            return Err(Error::conflict(format!("The plan {plan} has no trial; begin with a checkout.")));
        }
        let mut after = before.clone();
        after.plan = plan;
        let record = save(&tx, app, &Actor::from(who), &before, after).await?;
        let shown = shown(&tx, app, &record).await?;
        tx.commit().await?;
        app.directory.forget(organization);
        return Ok(shown);
    };
    if matches!(before.state, SubscriptionState::PastDue | SubscriptionState::Paused) {
        return Err(Error::conflict("A payment is owed. Make it in the customer portal first."));
    }
    drop(tx);
    let (stripe, price) = (app.stripe()?, price_of(app, plan)?);
    let there = stripe.subscription(&id).await?;
    let changed = match &there {
        Some(there) if there.price != price => {
            // What has no trial is paid from now on.
            let end_trial = before.state == SubscriptionState::Trialing && !plan.has_trial();
            stripe.change_price(there, price, larger, end_trial).await
        }
        _ => Ok(()),
    };
    conclude(who, changed, |record| record.plan == plan).await
}

/// Ends the subscription, now or with the period.
async fn cancel(who: &Member, immediately: bool) -> Result<Subscription> {
    let app = &*who.app;
    let tx = who.begin().await?;
    let before = lock(&tx, who.tenant.id()).await?;
    if before.state == SubscriptionState::Free {
        return Err(Error::conflict("There is no subscription to cancel."));
    }
    let Some(id) = before.subscription.clone() else {
        let mut after = before.clone();
        after.state = next(before.state, Signal::TrialOver)
            .ok_or_else(|| Error::internal("a subscription that is neither at Stripe nor a trial"))?;
        after.end();
        let record = save(&tx, app, &Actor::from(who), &before, after).await?;
        let shown = shown(&tx, app, &record).await?;
        tx.commit().await?;
        app.directory.forget(who.tenant.id());
        return Ok(shown);
    };
    if before.cancels && !immediately {
        return Err(Error::conflict("It is canceled already, and ends with the period."));
    }
    drop(tx);
    let stripe = app.stripe()?;
    let canceled = match immediately {
        true => stripe.cancel(&id).await,
        false => stripe.cancel_at_period_end(&id).await,
    };
    let done = |record: &Record| match immediately {
        true => record.subscription.as_ref() != Some(&id),
        false => record.cancels || record.subscription.as_ref() != Some(&id),
    };
    conclude(who, canceled, done).await
}

/// Takes a cancellation back.
async fn reactivate(who: &Member) -> Result<Subscription> {
    let tx = who.begin().await?;
    let before = lock(&tx, who.tenant.id()).await?;
    drop(tx);
    let Some(id) = before.subscription.filter(|_| before.cancels) else {
        return Err(Error::conflict(match before.state {
            SubscriptionState::Free => "There is no subscription to go on with; begin with a checkout.",
            _ => "The subscription is not canceled.",
        }));
    };
    let reactivated = who.app.stripe()?.go_on(&id).await;
    let done = |record: &Record| record.subscription.as_ref() == Some(&id) && !record.cancels;
    conclude(who, reactivated, done).await
}

/// Looks at what came of a change at Stripe. What was answered with an error may have been carried out.
async fn conclude(
    who: &Member,
    outcome: Result<(), Failure>,
    done: impl Fn(&Record) -> bool,
) -> Result<Subscription> {
    let looked = look(&who.app, &who.tenant, &Actor::from(who)).await;
    let record = match (looked, outcome) {
        (Ok(look), _) if done(&look.record) => look.record,
        (_, Err(failure @ (Failure::Declined(_) | Failure::Unavailable(_)))) => return Err(failure.into()),
        (Err(error), _) => return Err(error),
        // What is there cannot be changed like that.
        (Ok(_), _) => {
            return Err(Error::conflict(
                "At Stripe the subscription is not as it was here. Look at it again, or open the customer portal.",
            ));
        }
    };
    let tx = who.begin().await?;
    shown(&tx, &who.app, &record).await
}

/// As its owner sees it.
async fn shown(tx: &TenantTx, app: &App, record: &Record) -> Result<Subscription> {
    let told = record.told(app.clock.now());
    Ok(Subscription {
        plan: told.plan,
        state: told.state,
        access: told.access,
        price: told.price,
        period_start: told.period_start,
        period_end: told.period_end,
        trial_started_at: told.trial_started_at,
        trial_ends_at: told.trial_ends_at,
        can_start_trial: record.trial_started_at.is_none() && record.state == SubscriptionState::Free,
        cancel_at_period_end: told.cancel_at_period_end,
        past_due_since: told.past_due_since,
        read_only_from: told.read_only_from,
        limits: limits::ask_all(tx, app).await?,
    })
}

/// Nothing is paid for a copy to play with.
fn not_in_play(who: &Member) -> Result<()> {
    match who.tenant.is_sandbox() {
        true => Err(Error::conflict("This is a copy to play with: nothing is paid for it.")),
        false => Ok(()),
    }
}
