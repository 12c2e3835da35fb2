//! Which organization a request is for, and the schemas that organizations live in.
//!
//! [`Tenant`] is proof that the directory knows an organization; only this room makes one, because
//! only this room holds the [`TenantDoor`].

mod directory;
pub mod fleet;
mod resolve;

use std::sync::Arc;

use chrono::{DateTime, Utc};
use uuid::Uuid;

pub use directory::{Directory, all_changed, changed};
pub use resolve::{RESERVED, is_domain, resolve};

use crate::{
    billing::{Feature, Plan},
    db::{PlatformTx, Schema, TenantDoor, TenantTx, Tx},
    error::{Code, Error, Result},
};

/// An organization that exists, and the way into its schema.
#[derive(Clone)]
pub struct Tenant {
    entry: Arc<Entry>,
    door: Arc<TenantDoor>,
}

/// What the directory knows of an organization.
#[derive(Debug)]
struct Entry {
    id: Uuid,
    schema: Schema,
    plan: Plan,
    features: Vec<Feature>,
    api_calls: Option<i64>,
    read_only_from: Option<DateTime<Utc>>,
    requires_mfa: bool,
    suspended: bool,
    deleted: bool,
}

impl Tenant {
    pub fn id(&self) -> Uuid {
        self.entry.id
    }

    pub fn plan(&self) -> Plan {
        self.entry.plan
    }

    /// Whether the plan brings a feature.
    pub fn has(&self, feature: Feature) -> bool {
        self.entry.features.contains(&feature)
    }

    /// What the plan brings beside its limits.
    pub fn features(&self) -> &[Feature] {
        &self.entry.features
    }

    /// Requests with API keys that the plan allows in a month; `None` is no limit.
    pub fn api_calls(&self) -> Option<i64> {
        self.entry.api_calls
    }

    /// From when on only reading is allowed, as a payment is owed.
    pub fn read_only_from(&self) -> Option<DateTime<Utc>> {
        self.entry.read_only_from
    }

    /// Whether members need a second factor.
    pub fn requires_mfa(&self) -> bool {
        self.entry.requires_mfa
    }

    pub fn is_suspended(&self) -> bool {
        self.entry.suspended
    }

    pub fn is_deleted(&self) -> bool {
        self.entry.deleted
    }

    /// Takes a transaction on into the organization's schema.
    pub async fn enter(&self, tx: PlatformTx) -> Result<TenantTx> {
        self.door.enter(tx, self.entry.schema, self.entry.id).await
    }

    /// Opens a transaction in the organization's schema.
    pub async fn begin(&self) -> Result<TenantTx> {
        self.door.begin(self.entry.schema, self.entry.id).await
    }
}

/// Whether an organization was deleted, by the database and not by what the directory remembers.
pub async fn is_deleted(tx: &Tx, organization: Uuid) -> Result<bool> {
    let sql = "select deleted_at is not null from platform.organizations where id = $1";
    Ok(tx.query_one(sql, &[&organization]).await?.try_get(0)?)
}

/// The answer for an organization that there is not, or that the caller has no business with.
pub fn unknown() -> Error {
    Error::new(Code::TenantNotFound, "There is no such organization, or you are not a member of it.")
}
