//! The states of a subscription, and what leads from one to another.
//!
//! ```text
//!                  trial begun                  trial over
//!            ┌─────────────────────┐      ┌──────────────────────┐
//!            │                     ▼      │                      ▼
//!        ┌──────┐             ┌──────────────┐               ┌──────┐
//!        │ free │             │   trialing   │               │ free │
//!        └──────┘             └──────────────┘               └──────┘
//!
//!   seen at Stripe, from any state:
//!     trialing ─────────────▶ trialing
//!     active ───────────────▶ active
//!     past due, unpaid ─────▶ past due ── 7 days after the first failure: reads only
//!     paused ───────────────▶ paused   ── reads only
//!     ended ────────────────▶ free
//!     incomplete ───────────▶ (no change: nothing was paid yet)
//! ```
//!
//! What Stripe shows ([`Signal::Seen`]) is the truth wherever we stood before: events get lost and come
//! late, so every state takes every one of them. Only what we decide ourselves, trials without Stripe,
//! depends on the state.

use chrono::{DateTime, TimeDelta, Utc};

use crate::types::text_enum;

/// How long somebody whose payment failed can go on as before.
pub const GRACE: TimeDelta = TimeDelta::days(7);
/// How long a trial is.
pub const TRIAL: TimeDelta = TimeDelta::days(14);

text_enum! {
    /// How a subscription stands.
    SubscriptionState {
        /// Nothing is paid, and nothing is owed.
        Free = "free",
        /// A paid plan to try, until `trial_ends_at`.
        Trialing = "trialing",
        /// Paid.
        Active = "active",
        /// A payment failed. After 7 days of grace writes are refused until it is made.
        PastDue = "past_due",
        /// Stripe has stopped to bill it; writes are refused until it goes on.
        Paused = "paused",
    }
}

text_enum! {
    /// What a subscription is at Stripe, as far as it matters here.
    Status {
        Trialing = "trialing",
        Active = "active",
        PastDue = "past_due",
        Unpaid = "unpaid",
        Paused = "paused",
        /// The first payment is still to be made: nothing is given for it.
        Incomplete = "incomplete",
        /// Canceled, or never begun in time.
        Ended = "ended",
    }
}

/// What can move a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Somebody begins a trial without Stripe.
    TrialBegun,
    /// The time of a trial without Stripe is over, or somebody ends it.
    TrialOver,
    /// What Stripe shows.
    Seen(Status),
}

/// The state after a signal; `None` where the signal makes no sense.
pub fn next(state: SubscriptionState, signal: Signal) -> Option<SubscriptionState> {
    use SubscriptionState::{Active, Free, PastDue, Paused, Trialing};
    match (state, signal) {
        (Free, Signal::TrialBegun) => Some(Trialing),
        (_, Signal::TrialBegun) => None,
        (Trialing, Signal::TrialOver) => Some(Free),
        (_, Signal::TrialOver) => None,
        (_, Signal::Seen(Status::Trialing)) => Some(Trialing),
        (_, Signal::Seen(Status::Active)) => Some(Active),
        (_, Signal::Seen(Status::PastDue | Status::Unpaid)) => Some(PastDue),
        (_, Signal::Seen(Status::Paused)) => Some(Paused),
        (_, Signal::Seen(Status::Ended)) => Some(Free),
        (_, Signal::Seen(Status::Incomplete)) => None,
    }
}

/// From when on writes are refused in a state; `None`: not at all.
pub fn read_only_from(
    state: SubscriptionState,
    past_due_since: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
) -> Option<DateTime<Utc>> {
    match state {
        SubscriptionState::PastDue => Some(past_due_since.unwrap_or(now) + GRACE),
        SubscriptionState::Paused => Some(now),
        SubscriptionState::Free | SubscriptionState::Trialing | SubscriptionState::Active => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stripe_shows_counts_wherever_one_stood() {
        for status in Status::ALL {
            let reached: Vec<_> =
                SubscriptionState::ALL.iter().map(|state| next(*state, Signal::Seen(*status))).collect();
            assert!(reached.windows(2).all(|pair| pair[0] == pair[1]), "{status}: {reached:?}");
        }
    }

    #[test]
    fn a_trial_begins_from_free_and_ends_in_free_only() {
        use SubscriptionState::{Free, Trialing};
        for state in SubscriptionState::ALL {
            let begun = next(*state, Signal::TrialBegun);
            assert_eq!(begun, (*state == Free).then_some(Trialing), "{state}");
            let over = next(*state, Signal::TrialOver);
            assert_eq!(over, (*state == Trialing).then_some(Free), "{state}");
        }
    }

    #[test]
    fn grace_is_counted_from_the_failed_payment() {
        let now = Utc::now();
        let since = now - TimeDelta::days(2);
        let from = read_only_from(SubscriptionState::PastDue, Some(since), now);
        assert_eq!(from, Some(now + TimeDelta::days(5)));
        assert_eq!(read_only_from(SubscriptionState::Active, Some(since), now), None);
        assert_eq!(read_only_from(SubscriptionState::Paused, None, now), Some(now));
    }
}
