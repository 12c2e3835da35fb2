//! Plans, what they allow, and who pays for them.
//!
//! [`limits`] holds what a plan allows, [`plans`] is the table of plans, [`state`] the states of a
//! subscription with their diagram. Money changes hands at Stripe and nowhere else ([`stripe`]): what
//! we know of a subscription is what was last seen there ([`sync`]), looked at again whenever Stripe
//! tells that something happened ([`inbox`]) and every hour ([`reconcile`]). docs/billing.md tells it
//! to operators.

mod admin;
mod inbox;
mod invoices;
pub mod limits;
mod money;
pub mod plans;
mod reconcile;
mod record;
pub mod setup;
pub mod state;
pub mod stripe;
mod subscriptions;
mod sync;
mod trials;

pub use admin::AdminBillingApi;
pub use inbox::{HandleStripeEvent, receive};
pub use limits::{Resource, Use};
pub use plans::{AdminPlansApi, Feature, Plan, PlansApi};
pub use reconcile::{Reconcile, begin_reconciliation};
pub use record::{TellReadOnly, check_writable, override_plan};
pub use stripe::Stripe;
pub use subscriptions::SubscriptionsApi;
pub use sync::{StopBilling, SyncSubscription, end_payments, stop_billing};
pub use trials::{LookAtTrial, look_at_trials};
