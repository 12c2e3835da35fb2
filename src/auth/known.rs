//! Who was let in lately, so that the database need not be asked at each request.
//!
//! What is kept of a session or a key is good until something about its user, or itself, changes:
//! whatever ends or changes access says so in its transaction ([`Tx::access_changed`]), which counts at
//! once in this process and in a moment in the others ([`Fresh`]). Only who was let in is kept, never a
//! refusal. Times (the end of a key) and the caller's address are judged at each use.
//!
//! [`Tx::access_changed`]: crate::db::Tx::access_changed
//! [`Fresh`]: crate::db::Fresh

use std::{
    num::NonZeroUsize,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use lru::LruCache;
use uuid::Uuid;

use super::{
    gate::Key,
    permissions::{PermissionSet, Role},
};
use crate::{
    db::{Fresh, Mark},
    limits::Rate,
};

const KEPT: NonZeroUsize = NonZeroUsize::new(20_000).expect("not zero");
/// A notice that got lost all the same is made good after this long.
const MAX_AGE: Duration = Duration::from_secs(60);

/// By what somebody is known.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum By {
    /// A session, in an organization or (nil) in none.
    Session { session: Uuid, user: Uuid, organization: Uuid },
    /// The hash of an API key.
    Key(Vec<u8>),
}

/// Somebody as the database has them, before it is decided what they may do now.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub user: Uuid,
    pub session: Option<Uuid>,
    pub key: Option<KeyFacts>,
    /// In the organization; `None` for somebody who is no member.
    pub role: Option<Role>,
    pub is_active: bool,
    pub has_mfa: bool,
    /// By role, grants and denials.
    pub permissions: PermissionSet,
}

/// What there is to know of a key.
#[derive(Clone, Debug)]
pub(super) struct KeyFacts {
    pub key: Key,
    pub rate: Rate,
    pub organization: Uuid,
    pub scopes: PermissionSet,
    pub allowed_ips: Vec<String>,
    pub expires_at: Option<DateTime<Utc>>,
}

impl Facts {
    /// The ids whose changes concern this.
    fn ids(&self) -> (Uuid, Uuid) {
        let own = self.session.or(self.key.as_ref().map(|key| key.key.id));
        (self.user, own.unwrap_or_default())
    }

    fn is_worth_keeping(&self, by: &By) -> bool {
        let member = self.role.is_some() && self.is_active;
        member || matches!(by, By::Session { organization, .. } if organization.is_nil())
    }
}

/// Those who were let in lately.
pub struct Known(Mutex<LruCache<By, Entry>>);

struct Entry {
    facts: Arc<Facts>,
    mark: Mark,
    since: Instant,
}

impl Default for Known {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(KEPT)))
    }
}

impl Known {
    pub(super) fn get(&self, by: &By, access: &Fresh) -> Option<Arc<Facts>> {
        let mut known = self.0.lock().expect("nothing panics with the lock held");
        let entry = known.get(by)?;
        let (first, second) = entry.facts.ids();
        if entry.since.elapsed() < MAX_AGE && access.is_good(entry.mark, first, second) {
            return Some(entry.facts.clone());
        }
        known.pop(by);
        None
    }

    /// Keeps what was read, if nobody's access has changed since there were so many `changes`.
    pub(super) fn put(&self, by: By, facts: &Arc<Facts>, access: &Fresh, changes: u64) {
        let (first, second) = facts.ids();
        let mark = access.mark(first, second);
        if facts.is_worth_keeping(&by) && access.changes() == changes {
            let entry = Entry { facts: facts.clone(), mark, since: Instant::now() };
            self.0.lock().expect("nothing panics with the lock held").put(by, entry);
        }
    }
}
