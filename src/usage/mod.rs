//! Usage: how much organizations use of the service, counted and measured.
//!
//! Requests are counted in memory by the gate and written every two seconds ([`meter`]): by
//! organization, API key, part of the API and hour. Every night hours become days, what is not counted
//! (members, storage) is measured, and what has had its time goes ([`rollup`]). [`api`] answers how much
//! was used, [`figures`] how an organization is doing.
//!
//! What counts against a plan is what programs ask for, by API key. People are counted too, but never
//! locked out of the page where they would upgrade.

mod api;
mod figures;
pub mod meter;
mod partitions;
mod rollup;

use std::sync::Arc;

use chrono::{DateTime, NaiveDate, NaiveTime, Utc};

pub use api::UsageApi;
pub use figures::{AnalyticsApi, FigureCache, ModuleFigures};
pub use meter::{Meter, WarnApiCalls};
pub use rollup::{MeasureUsage, RollUpUsage, begin_roll_up};

use crate::{app::App, billing::Resource, types::text_enum};

text_enum! {
    /// What of an organization's usage is known.
    Metric {
        /// Requests with API keys: what plans limit.
        ApiCalls = "api_calls",
        /// Requests of people.
        Requests = "requests",
        /// Members and open invitations.
        Users = "users",
        Projects = "projects",
        /// Bytes.
        Storage = "storage",
        Workflows = "workflows",
    }
}

impl Metric {
    /// What tells how much there is of it now; `None` for what is counted as it happens.
    fn resource(self) -> Option<Resource> {
        match self {
            Self::ApiCalls | Self::Requests => None,
            Self::Users => Some(Resource::Users),
            Self::Projects => Some(Resource::Projects),
            Self::Storage => Some(Resource::Storage),
            Self::Workflows => Some(Resource::Workflows),
        }
    }

    /// What one of it is.
    fn unit(self) -> &'static str {
        match self {
            Self::ApiCalls => "calls",
            Self::Storage => "bytes",
            other => other.name(),
        }
    }
}

/// Writes what was counted until the service stops.
pub async fn keep(app: Arc<App>) {
    let mut stopping = app.stopping();
    loop {
        let stop = stopping.requested_within(meter::EVERY).await;
        flush(&app).await;
        if stop {
            return;
        }
    }
}

/// Writes what was counted; what could not be written is told in the log and kept.
pub async fn flush(app: &App) {
    if let Err(error) = app.meter.flush(app).await {
        tracing::warn!(%error, "what was counted could not be written; it is kept for the next time");
    }
}

/// When a day begins.
fn start_of(day: NaiveDate) -> DateTime<Utc> {
    day.and_time(NaiveTime::MIN).and_utc()
}
