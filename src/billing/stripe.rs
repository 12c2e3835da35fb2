//! Stripe, as far as it is used here: in our words, with our money.
//!
//! Requests are retried with one idempotency key for all attempts of a call, so what got through is not
//! done twice. A call that fails for good may still have been carried out ([`Failure::Unavailable`]):
//! callers look again before they say that nothing happened.

use std::{collections::HashMap, time::Duration};

use ::stripe::{Client, ClientBuilder, RequestStrategy, StripeError, StripeRequest};
use anyhow::{Context, bail};
use chrono::{DateTime, Utc};
use secrecy::ExposeSecret;
use serde_json::json;
use stripe_billing::{
    Invoice as StripeInvoice, Subscription as StripeSubscription, SubscriptionStatus,
    billing_portal_session::CreateBillingPortalSession,
    invoice::{ListInvoice, RetrieveInvoice},
    subscription::{
        CancelSubscription, ListSubscription, ListSubscriptionStatus, RetrieveSubscription,
        UpdateSubscription, UpdateSubscriptionItems, UpdateSubscriptionPaymentBehavior,
        UpdateSubscriptionProrationBehavior, UpdateSubscriptionTrialEnd,
    },
};
use stripe_checkout::{
    CheckoutSessionMode, CheckoutSessionStatus,
    checkout_session::{
        CreateCheckoutSession, CreateCheckoutSessionLineItems, CreateCheckoutSessionSubscriptionData,
        ExpireCheckoutSession, RetrieveCheckoutSession,
    },
};
use stripe_core::{
    charge::RetrieveCharge,
    customer::{CreateCustomer, ListCustomer, RetrieveCustomer, RetrieveCustomerReturned},
    dispute::RetrieveDispute,
};
use stripe_product::{
    price::{CreatePrice, CreatePriceRecurring, CreatePriceRecurringInterval, ListPrice, RetrievePrice},
    product::{CreateProduct, RetrieveProduct},
};
use stripe_types::{Currency, RangeQueryTs};
use uuid::Uuid;

use super::{
    Plan,
    money::{from_minor, to_minor},
    state::Status,
};
use crate::{
    config::StripeConfig,
    error::{Code, Error, Result},
    types::Money,
};

/// How often a request is tried, 1 and 2 s apart.
const ATTEMPTS: u32 = 3;
/// How many entries of a list are asked for at once; Stripe gives no more.
const PAGE: i64 = 100;
/// Names the organization in what we make at Stripe.
const ORGANIZATION: &str = "organization_id";

/// The way to Stripe.
pub struct Stripe {
    client: Client,
    prices: Vec<(Plan, String)>,
    is_live: bool,
}

/// Why Stripe did not do what it was asked.
#[derive(Debug)]
pub enum Failure {
    /// It does not answer, or cannot now. It may have done it.
    Unavailable(String),
    /// The payment was refused; the text is for whoever pays.
    Declined(String),
    /// There is no such thing at Stripe.
    Missing,
    /// Anything else: our fault, or the configuration's.
    Refused(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unavailable(told) => write!(f, "Stripe is not available: {told}"),
            Self::Declined(told) => write!(f, "the payment was declined: {told}"),
            Self::Missing => write!(f, "Stripe does not know it"),
            Self::Refused(told) => write!(f, "Stripe refused: {told}"),
        }
    }
}

impl std::error::Error for Failure {}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match &failure {
            Failure::Unavailable(_) => {
                Error::unavailable("Stripe does not answer now. Try again in a moment.", 10)
                    .caused_by(failure)
            }
            Failure::Declined(told) => Error::new(
                Code::PaymentRequired,
                format!("The payment did not go through: {told} Choose another way to pay and try again."),
            )
            .with_details(json!({"portal": "/api/v1/subscriptions/portal"})),
            Failure::Missing | Failure::Refused(_) => Error::unavailable(
                "Stripe did not accept this. Whoever runs this service finds why in its log.",
                60,
            )
            .caused_by(failure),
        }
    }
}

impl From<StripeError> for Failure {
    fn from(error: StripeError) -> Self {
        match error {
            StripeError::Stripe(told, status) => {
                let code = told.code.as_ref().map_or("", |code| code.as_str());
                let message = told.message.clone().unwrap_or_default();
                match status {
                    402 if code == "subscription_payment_intent_requires_action" => Self::Declined(
                        "the bank wants it confirmed by whoever owns the card, which cannot be done here."
                            .into(),
                    ),
                    402 => Self::Declined(message),
                    404 => Self::Missing,
                    409 | 424 | 429 | 500.. => Self::Unavailable(format!("{status} {code} {message}")),
                    _ if code == "resource_missing" => Self::Missing,
                    _ => Self::Refused(format!("{status} {code} {message}")),
                }
            }
            StripeError::ConfigError(told) => Self::Refused(told),
            // Also answers that cannot be read: what was asked was done, or not.
            other => Self::Unavailable(other.to_string()),
        }
    }
}

/// A subscription as Stripe shows it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub id: String,
    /// What we wrote on it when it was made.
    pub organization: Option<Uuid>,
    pub status: Status,
    pub price: String,
    /// The place of the price in the subscription.
    item: String,
    pub amount: Option<Money>,
    pub period: Option<(DateTime<Utc>, DateTime<Utc>)>,
    pub trial: Option<(DateTime<Utc>, DateTime<Utc>)>,
    /// It ends with the period, and is not charged again.
    pub cancels: bool,
    pub created: DateTime<Utc>,
}

#[cfg(test)]
impl Seen {
    pub fn for_test(id: &str, price: &str, status: Status, created: DateTime<Utc>) -> Self {
        Self {
            id: id.into(),
            organization: None,
            status,
            price: price.into(),
            item: "si_1".into(),
            amount: None,
            period: None,
            trial: None,
            cancels: false,
            created,
        }
    }
}

/// A customer at Stripe.
pub struct Customer {
    pub id: String,
    pub organization: Option<Uuid>,
}

/// A page on which somebody can pay.
#[derive(Debug)]
pub struct Page {
    pub id: String,
    pub url: Option<String>,
    pub expires_at: DateTime<Utc>,
    /// Nobody has paid on it yet, and somebody still can.
    pub is_open: bool,
}

/// An invoice as Stripe shows it.
#[derive(Clone, Debug)]
pub struct Bill {
    pub id: String,
    pub customer: Option<String>,
    pub number: Option<String>,
    pub status: String,
    pub total: Money,
    pub paid: Money,
    pub due: Money,
    pub period: (DateTime<Utc>, DateTime<Utc>),
    /// How often its payment was tried.
    pub attempts: i64,
    pub paid_at: Option<DateTime<Utc>>,
    pub hosted_url: Option<String>,
    pub pdf_url: Option<String>,
    pub created: DateTime<Utc>,
}

/// What of a charge went back.
pub struct Refunded {
    pub customer: Option<String>,
    /// All parts of it together.
    pub amount: Money,
    pub whole: bool,
}

/// A charge that whoever paid it contests.
pub struct Contested {
    pub charge: String,
    pub amount: Money,
    pub reason: String,
    pub status: String,
    pub created: DateTime<Utc>,
}

/// A price at Stripe.
pub struct Price {
    pub id: String,
    pub active: bool,
    pub monthly: bool,
    pub amount: Option<Money>,
}

/// What a checkout is for.
pub struct Checkout<'a> {
    pub organization: Uuid,
    pub customer: &'a str,
    pub price: &'a str,
    pub trial: Trial,
    /// Where the browser goes afterwards, and where if nobody pays.
    pub success_url: &'a str,
    pub cancel_url: &'a str,
}

/// Whether payment begins at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trial {
    None,
    Days(u32),
    Until(DateTime<Utc>),
}

impl Stripe {
    /// `None` without a key.
    pub fn new(config: &StripeConfig) -> anyhow::Result<Option<Self>> {
        let Some(key) = &config.secret_key else { return Ok(None) };
        let key = key.expose_secret().trim();
        let mode = |mode: &str| ["sk_", "rk_"].iter().any(|kind| key.starts_with(&format!("{kind}{mode}_")));
        if !mode("live") && !mode("test") {
            bail!(
                "stripe.secret_key (STRIPE_SECRET_KEY) must begin with sk_live_, sk_test_, rk_live_ or rk_test_"
            );
        }
        if config.timeout_seconds == 0 {
            bail!("stripe.timeout_seconds (STRIPE_TIMEOUT_SECONDS) is 0; 6 is a good start");
        }
        let mut base = config.base_url.clone();
        if !base.ends_with('/') {
            base.push('/');
        }
        let client = ClientBuilder::new(key)
            .url(base)
            .timeout(Duration::from_secs(config.timeout_seconds))
            .request_strategy(RequestStrategy::ExponentialBackoff(ATTEMPTS))
            .build()
            .context("stripe.base_url (STRIPE_BASE_URL) or the key cannot be used")?;
        let prices = [
            (Plan::Starter, &config.price_starter),
            (Plan::Professional, &config.price_professional),
            (Plan::Enterprise, &config.price_enterprise),
        ];
        let prices = prices.into_iter().filter_map(|(plan, ids)| Some((plan, ids.as_ref()?.split(','))));
        let prices = prices.flat_map(|(plan, ids)| ids.map(move |id| (plan, id.trim().to_owned())));
        let prices = prices.filter(|(_, id)| !id.is_empty()).collect();
        Ok(Some(Self { client, prices, is_live: mode("live") }))
    }

    #[cfg(test)]
    pub fn for_test(prices: &[(Plan, &str)]) -> Self {
        // For clients that do not name their own.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let prices = prices.iter().map(|(plan, price)| (*plan, (*price).to_owned())).collect();
        Self { client: Client::new("sk_test_x"), prices, is_live: false }
    }

    /// Whether the money is real.
    pub fn is_live(&self) -> bool {
        self.is_live
    }

    /// The price at which a plan is sold: the first of its prices.
    pub fn price_of(&self, plan: Plan) -> Option<&str> {
        self.prices.iter().find(|(known, _)| *known == plan).map(|(_, price)| price.as_str())
    }

    /// The plan that a price is for, also one that is not sold any more.
    pub fn plan_of(&self, price: &str) -> Option<Plan> {
        self.prices.iter().find(|(_, known)| known == price).map(|(plan, _)| *plan)
    }

    /// A customer; `None` if Stripe does not have it (any more).
    pub async fn customer(&self, id: &str) -> Result<Option<Customer>, Failure> {
        Ok(match unless_missing(RetrieveCustomer::new(id).send(&self.client).await)? {
            Some(RetrieveCustomerReturned::Customer(found)) => Some(customer(found)),
            Some(RetrieveCustomerReturned::DeletedCustomer(_)) | None => None,
        })
    }

    /// Whether a customer that there was has been deleted. One that Stripe has never heard of is an error.
    pub async fn was_deleted(&self, id: &str) -> Result<bool, Failure> {
        match unless_missing(RetrieveCustomer::new(id).send(&self.client).await)? {
            Some(RetrieveCustomerReturned::Customer(_)) => Ok(false),
            Some(RetrieveCustomerReturned::DeletedCustomer(_)) => Ok(true),
            None => Err(Failure::Refused(format!(
                "there is no customer {id}: is STRIPE_SECRET_KEY of the right account and mode?"
            ))),
        }
    }

    /// The customer that stands for an organization, found or made.
    ///
    /// One that was made by a call whose answer got lost is found by what we wrote on it.
    pub async fn customer_for(&self, organization: Uuid, name: &str, email: &str) -> Result<String, Failure> {
        let known = ListCustomer::new().email(email).limit(PAGE).send(&self.client).await?;
        let ours =
            known.data.into_iter().map(customer).find(|found| found.organization == Some(organization));
        if let Some(ours) = ours {
            return Ok(ours.id);
        }
        let made = CreateCustomer::new()
            .name(name)
            .email(email)
            .metadata(marked(organization))
            .send(&self.client)
            .await?;
        Ok(made.id.to_string())
    }

    /// A new page on which a subscription can be paid.
    pub async fn open_checkout(&self, wanted: &Checkout<'_>) -> Result<Page, Failure> {
        let mut subscription = CreateCheckoutSessionSubscriptionData::new();
        subscription.metadata = Some(marked(wanted.organization));
        match wanted.trial {
            Trial::None => {}
            Trial::Days(days) => subscription.trial_period_days = Some(days),
            Trial::Until(end) => subscription.trial_end = Some(end.timestamp()),
        }
        let mut line = CreateCheckoutSessionLineItems::new();
        (line.price, line.quantity) = (Some(wanted.price.into()), Some(1));
        let session = CreateCheckoutSession::new()
            .mode(CheckoutSessionMode::Subscription)
            .customer(wanted.customer)
            .client_reference_id(wanted.organization.to_string())
            .line_items(vec![line])
            .subscription_data(subscription)
            .success_url(wanted.success_url)
            .cancel_url(wanted.cancel_url)
            .send(&self.client)
            .await?;
        page(session)
    }

    /// A page that was opened; `None` if Stripe does not know it.
    pub async fn checkout(&self, id: &str) -> Result<Option<Page>, Failure> {
        unless_missing(RetrieveCheckoutSession::new(id).send(&self.client).await)?.map(page).transpose()
    }

    /// Closes a page, so that nobody pays on it any more.
    pub async fn close_checkout(&self, id: &str) -> Result<(), Failure> {
        ExpireCheckoutSession::new(id).send(&self.client).await?;
        Ok(())
    }

    /// The address of a page on which a customer sees invoices and chooses how to pay.
    pub async fn open_portal(&self, customer: &str, return_url: &str) -> Result<String, Failure> {
        let portal = CreateBillingPortalSession::new().customer(customer).return_url(return_url);
        Ok(portal.send(&self.client).await?.url)
    }

    /// Every subscription of a customer, also those that ended.
    pub async fn subscriptions_of(&self, customer: &str) -> Result<Vec<Seen>, Failure> {
        let all = ListSubscription::new().customer(customer).status(ListSubscriptionStatus::All);
        self.subscriptions(all).await?.into_iter().map(|(_, seen)| seen).collect()
    }

    /// Every subscription that has not ended, by its customer. One that cannot be read is no reason not to
    /// read the others.
    pub async fn open_subscriptions(&self) -> Result<Vec<(String, Result<Seen, Failure>)>, Failure> {
        self.subscriptions(ListSubscription::new()).await
    }

    async fn subscriptions(
        &self,
        list: ListSubscription,
    ) -> Result<Vec<(String, Result<Seen, Failure>)>, Failure> {
        let mut all = Vec::new();
        let mut request = list.limit(PAGE);
        loop {
            let found = request.send(&self.client).await?;
            let last = found.data.last().map(|subscription| subscription.id.to_string());
            for subscription in found.data {
                all.push((subscription.customer.id().to_string(), self.seen(subscription)));
            }
            match last.filter(|_| found.has_more) {
                Some(last) => request = request.starting_after(last),
                None => return Ok(all),
            }
        }
    }

    /// A subscription; `None` if Stripe does not know it.
    pub async fn subscription(&self, id: &str) -> Result<Option<Seen>, Failure> {
        unless_missing(RetrieveSubscription::new(id).send(&self.client).await)?
            .map(|found| self.seen(found))
            .transpose()
    }

    /// Puts a subscription on another price. With `at_once` the difference is charged now, and nothing
    /// changes if that fails; otherwise it is settled with the next invoice. With `end_trial` it is paid
    /// from now on.
    pub async fn change_price(
        &self,
        of: &Seen,
        price: &str,
        at_once: bool,
        end_trial: bool,
    ) -> Result<(), Failure> {
        let mut item = UpdateSubscriptionItems::new();
        (item.id, item.price) = (Some(of.item.clone()), Some(price.into()));
        let mut update = UpdateSubscription::new(of.id.as_str()).items(vec![item]);
        update = if at_once {
            update
                .proration_behavior(UpdateSubscriptionProrationBehavior::AlwaysInvoice)
                .payment_behavior(UpdateSubscriptionPaymentBehavior::ErrorIfIncomplete)
        } else {
            update.proration_behavior(UpdateSubscriptionProrationBehavior::CreateProrations)
        };
        if end_trial {
            update = update.trial_end(UpdateSubscriptionTrialEnd::Now);
        }
        update.send(&self.client).await?;
        Ok(())
    }

    /// Ends a subscription when what is paid is used up.
    pub async fn cancel_at_period_end(&self, id: &str) -> Result<(), Failure> {
        UpdateSubscription::new(id).cancel_at_period_end(true).send(&self.client).await?;
        Ok(())
    }

    /// Takes back that a subscription is to end, whichever way that was said.
    pub async fn go_on(&self, id: &str) -> Result<(), Failure> {
        let found = RetrieveSubscription::new(id).send(&self.client).await?;
        if found.cancel_at_period_end {
            UpdateSubscription::new(id).cancel_at_period_end(false).send(&self.client).await?;
            return Ok(());
        }
        // The portal gives a time instead. The builder knows no way to take it away, which is to leave it
        // empty.
        let mut request = UpdateSubscription::new(id).build();
        request.body = Some("cancel_at=".into());
        request.customize::<StripeSubscription>().send(&self.client).await?;
        Ok(())
    }

    /// Ends a subscription now.
    pub async fn cancel(&self, id: &str) -> Result<(), Failure> {
        CancelSubscription::new(id).send(&self.client).await?;
        Ok(())
    }

    /// An invoice; `None` if Stripe does not know it.
    pub async fn invoice(&self, id: &str) -> Result<Option<Bill>, Failure> {
        unless_missing(RetrieveInvoice::new(id).send(&self.client).await)?.map(bill).transpose()
    }

    /// Every invoice that was made since then; those that cannot be read are left out.
    pub async fn invoices_since(&self, since: DateTime<Utc>) -> Result<Vec<Bill>, Failure> {
        let mut all = Vec::new();
        let mut request = ListInvoice::new().created(RangeQueryTs::gte(since.timestamp())).limit(PAGE);
        loop {
            let found = request.send(&self.client).await?;
            let last = found.data.last().and_then(|invoice| invoice.id.as_ref().map(ToString::to_string));
            all.extend(found.data.into_iter().filter_map(|invoice| bill(invoice).ok()));
            match last.filter(|_| found.has_more) {
                Some(last) => request = request.starting_after(last),
                None => return Ok(all),
            }
        }
    }

    /// What of a charge went back; `None` if Stripe does not know it.
    pub async fn refunded(&self, charge: &str) -> Result<Option<Refunded>, Failure> {
        let Some(charge) = unless_missing(RetrieveCharge::new(charge).send(&self.client).await)? else {
            return Ok(None);
        };
        Ok(Some(Refunded {
            customer: charge.customer.map(|customer| customer.id().to_string()),
            amount: money(charge.amount_refunded, &charge.currency)?,
            whole: charge.refunded,
        }))
    }

    /// A dispute; `None` if Stripe does not know it.
    pub async fn dispute(&self, id: &str) -> Result<Option<Contested>, Failure> {
        let Some(dispute) = unless_missing(RetrieveDispute::new(id).send(&self.client).await)? else {
            return Ok(None);
        };
        Ok(Some(Contested {
            charge: dispute.charge.id().to_string(),
            amount: money(dispute.amount, &dispute.currency)?,
            status: dispute.status.as_str().to_owned(),
            reason: dispute.reason,
            created: time(dispute.created)?,
        }))
    }

    /// A price; `None` if Stripe does not know it.
    pub async fn price(&self, id: &str) -> Result<Option<Price>, Failure> {
        unless_missing(RetrievePrice::new(id).send(&self.client).await)?.map(price).transpose()
    }

    /// The product and the monthly price of a plan, found or made.
    pub async fn price_for(&self, plan: Plan, title: &str, amount: &Money) -> Result<Price, Failure> {
        let product = format!("rowhouse_{plan}");
        if unless_missing(RetrieveProduct::new(product.as_str()).send(&self.client).await)?.is_none() {
            CreateProduct::new(title).id(product.as_str()).send(&self.client).await?;
        }
        let units =
            to_minor(amount).ok_or_else(|| Failure::Refused("an amount that cannot be paid".into()))?;
        let currency = amount.currency.as_ref().to_ascii_lowercase();
        // Prices do not change at Stripe: another amount is another price.
        let name = format!("rowhouse_{plan}_{units}_{currency}");
        let known = ListPrice::new().lookup_keys(vec![name.clone()]).send(&self.client).await?;
        if let Some(found) = known.data.into_iter().find(|price| price.active) {
            return price(found);
        }
        let Ok(currency) = currency.parse::<Currency>();
        let made = CreatePrice::new(currency)
            .product(product)
            .unit_amount(units)
            .recurring(CreatePriceRecurring::new(CreatePriceRecurringInterval::Month))
            .lookup_key(name)
            .transfer_lookup_key(true)
            .send(&self.client)
            .await?;
        price(made)
    }

    fn seen(&self, found: StripeSubscription) -> Result<Seen, Failure> {
        // Somebody may have added others at Stripe: ours is the one whose price we know.
        let items = &found.items.data;
        let ours = items.iter().find(|item| self.plan_of(item.price.id.as_str()).is_some());
        let item =
            ours.or(items.first()).ok_or_else(|| Failure::Refused("a subscription to nothing".into()))?;
        let units = item
            .price
            .unit_amount
            .and_then(|units| units.checked_mul(i64::try_from(item.quantity.unwrap_or(1)).ok()?));
        let amount = units.map(|units| money(units, &item.price.currency)).transpose()?;
        let trial = match (found.trial_start, found.trial_end) {
            (Some(start), Some(end)) => Some((time(start)?, time(end)?)),
            _ => None,
        };
        Ok(Seen {
            id: found.id.to_string(),
            organization: organization(Some(&found.metadata)),
            status: status(&found.status),
            price: item.price.id.to_string(),
            item: item.id.to_string(),
            amount,
            period: Some((time(item.current_period_start)?, time(item.current_period_end)?)),
            trial,
            cancels: found.cancel_at_period_end
                || found.cancel_at.is_some_and(|end| end <= item.current_period_end),
            created: time(found.created)?,
        })
    }
}

/// What was asked for; `None` if Stripe does not know it.
fn unless_missing<T>(answer: Result<T, StripeError>) -> Result<Option<T>, Failure> {
    match answer.map_err(Failure::from) {
        Ok(found) => Ok(Some(found)),
        Err(Failure::Missing) => Ok(None),
        Err(failure) => Err(failure),
    }
}

fn status(status: &SubscriptionStatus) -> Status {
    match status {
        SubscriptionStatus::Active => Status::Active,
        SubscriptionStatus::Trialing => Status::Trialing,
        SubscriptionStatus::PastDue => Status::PastDue,
        SubscriptionStatus::Unpaid => Status::Unpaid,
        SubscriptionStatus::Paused => Status::Paused,
        SubscriptionStatus::Canceled | SubscriptionStatus::IncompleteExpired => Status::Ended,
        // Of a state that we do not know, nothing is given.
        _ => Status::Incomplete,
    }
}

fn customer(found: stripe_core::Customer) -> Customer {
    Customer { id: found.id.to_string(), organization: organization(found.metadata.as_ref()) }
}

fn page(session: stripe_checkout::CheckoutSession) -> Result<Page, Failure> {
    Ok(Page {
        id: session.id.to_string(),
        url: session.url,
        expires_at: time(session.expires_at)?,
        is_open: session.status == Some(CheckoutSessionStatus::Open),
    })
}

fn bill(found: StripeInvoice) -> Result<Bill, Failure> {
    let currency = &found.currency;
    Ok(Bill {
        id: found.id.as_ref().map(ToString::to_string).unwrap_or_default(),
        customer: found.customer.as_ref().map(|customer| customer.id().to_string()),
        status: found.status.as_ref().map_or("draft", |status| status.as_str()).to_owned(),
        total: money(found.total, currency)?,
        paid: money(found.amount_paid, currency)?,
        due: money(found.amount_due, currency)?,
        period: (time(found.period_start)?, time(found.period_end)?),
        attempts: found.attempt_count.try_into().unwrap_or(i64::MAX),
        paid_at: found.status_transitions.paid_at.map(time).transpose()?,
        created: time(found.created)?,
        number: found.number,
        hosted_url: found.hosted_invoice_url,
        pdf_url: found.invoice_pdf,
    })
}

fn price(found: stripe_product::Price) -> Result<Price, Failure> {
    let monthly = found.recurring.as_ref().is_some_and(|recurring| {
        recurring.interval == stripe_product::RecurringInterval::Month && recurring.interval_count == 1
    });
    let amount = found.unit_amount.map(|units| money(units, &found.currency)).transpose()?;
    Ok(Price { id: found.id.to_string(), active: found.active, monthly, amount })
}

fn marked(organization: Uuid) -> HashMap<String, String> {
    HashMap::from([(ORGANIZATION.into(), organization.to_string())])
}

fn organization(metadata: Option<&HashMap<String, String>>) -> Option<Uuid> {
    metadata?.get(ORGANIZATION)?.parse().ok()
}

fn money(units: i64, currency: &Currency) -> Result<Money, Failure> {
    from_minor(units, &currency.to_string())
        .map_err(|error| Failure::Refused(format!("a sum that makes no sense: {error}")))
}

fn time(seconds: i64) -> Result<DateTime<Utc>, Failure> {
    DateTime::from_timestamp(seconds, 0).ok_or_else(|| Failure::Refused(format!("no time: {seconds}")))
}
