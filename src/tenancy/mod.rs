//! Which organization a request is for, and the schemas that organizations live in.
//!
//! [`Tenant`] is proof that the directory knows an organization; only this room makes one, because
//! only this room holds the [`TenantDoor`].

pub mod databases;
mod directory;
pub mod fleet;
mod resolve;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use directory::Key;
pub use directory::{Directory, all_changed, changed};
pub use resolve::{RESERVED, is_domain, resolve};

use crate::{
    billing::{Feature, Plan},
    db::{Place, PlatformTx, TenantTx, Tx},
    error::{Code, Error, Result},
};

/// An organization that exists, and the way into its schema.
#[derive(Clone)]
pub struct Tenant {
    entry: Arc<Entry>,
    directory: Directory,
    /// Whether what is done with it is not done for a request.
    in_background: bool,
}

/// How long somebody waits for an organization that is changing places.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the directory knows of an organization.
struct Entry {
    id: Uuid,
    place: Place,
    /// Those that its schema holds.
    modules: Vec<String>,
    plan: Plan,
    features: Vec<Feature>,
    api_calls: Option<i64>,
    read_only_from: Option<DateTime<Utc>>,
    requires_mfa: bool,
    suspended: bool,
    deleted: bool,
    sandbox: bool,
    /// Until when it may not be touched, as it is changing places.
    paused_until: Option<DateTime<Utc>>,
    /// The directory has heard that something of this has changed.
    outdated: AtomicBool,
}

impl Entry {
    fn is_paused(&self) -> bool {
        self.paused_until.is_some_and(|until| until > Utc::now())
    }

    /// An organization that is being made.
    fn new(id: Uuid, place: Place, modules: Vec<String>) -> Self {
        Self {
            id,
            place,
            modules,
            plan: Plan::Free,
            features: Vec::new(),
            api_calls: None,
            read_only_from: None,
            requires_mfa: false,
            suspended: false,
            deleted: false,
            sandbox: false,
            paused_until: None,
            outdated: AtomicBool::new(false),
        }
    }
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

    /// Whether its schema holds a module.
    pub fn has_module(&self, module: &str) -> bool {
        self.entry.modules.iter().any(|there| there == module)
    }

    /// Whether it is a copy to play with: nothing of it goes out.
    pub fn is_sandbox(&self) -> bool {
        self.entry.sandbox
    }

    /// Whether its callers wait, as it is changing places.
    pub fn is_paused(&self) -> bool {
        self.entry.is_paused()
    }

    /// For how long its requests have to wait, as they have had more of the database's time than allowed.
    pub fn overdrawn(&self) -> Option<Duration> {
        self.directory.door.overdrawn(&self.entry.place)
    }

    /// Takes a transaction on into the organization's schema. What it holds may be in the way of whoever
    /// carries the organization to another place, so it does not wait for that.
    pub async fn enter(&self, tx: PlatformTx) -> Result<TenantTx> {
        if self.entry.is_paused() {
            return Err(changing_places());
        }
        self.directory.door.enter(tx, &self.entry.place, self.entry.id).await
    }

    /// Opens a transaction in the organization's schema.
    pub async fn begin(&self) -> Result<TenantTx> {
        let entry = self.settled().await?;
        match self.in_background {
            true => self.directory.door.begin_in_background(&entry.place, entry.id).await,
            false => self.directory.door.begin(&entry.place, entry.id).await,
        }
    }

    /// What the directory knows now, once the organization is in its place: while it changes places,
    /// everybody waits, which takes less than a second.
    async fn settled(&self) -> Result<Arc<Entry>> {
        let (mut entry, began) = (self.entry.clone(), Instant::now());
        loop {
            if entry.outdated.load(Ordering::SeqCst) {
                entry = self.directory.look_up(&Key::Id(entry.id)).await?.ok_or_else(unknown)?;
            }
            if !entry.is_paused() {
                return Ok(entry);
            }
            if began.elapsed() > PATIENCE {
                return Err(changing_places());
            }
            // One that could not be kept is looked up again by everybody who waits.
            let pause = if entry.outdated.load(Ordering::SeqCst) { 100 } else { 20 };
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
    }
}

fn changing_places() -> Error {
    Error::unavailable("The organization is changing places. Try again in a moment.", 1)
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
