//! The directory: id, slug or host to organization, cached in process.
//!
//! A change says so on a channel of the database in its own transaction, and every instance drops
//! what it holds of that organization when it hears it, within milliseconds. While an instance is
//! not listening (start, broken connection) it caches nothing.

use std::{
    collections::HashMap,
    sync::{
        Arc, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::Notify;
use uuid::Uuid;

use super::{Entry, Tenant};
use crate::{
    billing::{Feature, plans},
    db::{DIRECTORY, Db, Heard, Schema, TenantDoor, Tx},
    error::Result,
};

/// A notice that got lost all the same is made good after this long.
const MAX_AGE: Duration = Duration::from_secs(60);
const MAX_ENTRIES: usize = 50_000;
/// Names that do not exist are remembered too, apart: making them up must not push out the others.
const MAX_UNKNOWN: usize = 5_000;

/// Tells every instance that something about an organization has changed; heard after commit.
pub async fn changed(tx: &Tx, organization: Uuid) -> Result<()> {
    tx.query("select pg_notify($1, $2)", &[&DIRECTORY, &organization.to_string()]).await?;
    Ok(())
}

/// The same of all organizations.
pub async fn all_changed(tx: &Tx) -> Result<()> {
    tx.query("select pg_notify($1, '*')", &[&DIRECTORY]).await?;
    Ok(())
}

/// How an organization can be named.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Key {
    Id(Uuid),
    Slug(String),
    Domain(String),
}

/// Finds organizations.
pub struct Directory {
    db: Db,
    pub(super) door: Arc<TenantDoor>,
    cache: Cache,
    /// Wakes the keeper of the stock of spare schemas.
    pub(super) spare_taken: Notify,
}

#[derive(Default)]
struct Cache {
    listening: AtomicBool,
    /// Counts the drops: what was being loaded during one is not kept.
    drops: AtomicU64,
    entries: RwLock<HashMap<Key, Cached>>,
    unknown: RwLock<HashMap<Key, Instant>>,
}

struct Cached {
    since: Instant,
    entry: Arc<Entry>,
}

impl Directory {
    pub fn new(db: Db, door: TenantDoor) -> Self {
        Self { db, door: Arc::new(door), cache: Cache::default(), spare_taken: Notify::new() }
    }

    /// Hears of changes, which makes caching safe, until it is dropped.
    pub async fn listen(&self) {
        let mut heard = self.db.listen();
        loop {
            match heard.next().await {
                Heard::Connected => {
                    self.cache.clear();
                    self.cache.listening.store(true, Ordering::SeqCst);
                }
                Heard::Lost => {
                    self.cache.listening.store(false, Ordering::SeqCst);
                    self.cache.clear();
                }
                Heard::Notice { channel, .. } if channel != DIRECTORY => {}
                Heard::Notice { payload, .. } => match payload.parse() {
                    Ok(organization) => self.cache.forget(organization),
                    Err(_) => self.cache.clear(),
                },
            }
        }
    }

    /// To be called when a change of an organization has been committed here. This instance drops
    /// what it holds of it, as the caller's next request should not have to wait for the notice, and
    /// looks at its stock of spare schemas, as the organization may be new.
    pub fn forget(&self, organization: Uuid) {
        self.cache.forget(organization);
        self.spare_taken.notify_one();
    }

    /// The same when something about all organizations has changed.
    pub fn forget_all(&self) {
        self.cache.clear();
    }

    /// Whether a name is somebody's, as far as that can be told without asking the database.
    pub(super) fn remembered(&self, key: &Key) -> Option<bool> {
        self.cache.get(key).map(|entry| entry.is_some())
    }

    pub(super) async fn find(&self, key: &Key) -> Result<Option<Tenant>> {
        if let Some(entry) = self.cache.get(key) {
            return Ok(entry.map(|entry| self.tenant(entry)));
        }
        let drops = self.cache.drops.load(Ordering::SeqCst);
        let entry = self.load(key).await?.map(Arc::new);
        self.cache.put(key.clone(), entry.clone(), drops);
        Ok(entry.map(|entry| self.tenant(entry)))
    }

    fn tenant(&self, entry: Arc<Entry>) -> Tenant {
        Tenant { entry, door: self.door.clone() }
    }

    async fn load(&self, key: &Key) -> Result<Option<Entry>> {
        const ENTRY: &str = "select o.id, o.schema_id, o.plan, p.features, p.api_calls, s.read_only_from, \
             o.require_mfa, o.status = 'suspended' as suspended, o.deleted_at is not null as deleted \
             from platform.organizations o join platform.plans p on p.name = o.plan \
             left join platform.subscriptions s on s.organization_id = o.id";
        let tx = self.db.begin().await?;
        let row = match key {
            Key::Id(id) => tx.query_opt(&format!("{ENTRY} where o.id = $1"), &[id]).await?,
            Key::Slug(slug) => tx.query_opt(&format!("{ENTRY} where o.slug = $1"), &[slug]).await?,
            Key::Domain(domain) => {
                let by_domain = format!(
                    "{ENTRY} join platform.organization_domains d on d.organization_id = o.id \
                     where d.domain = $1 and d.verified_at is not null and $2 = any (p.features)"
                );
                tx.query_opt(&by_domain, &[domain, &Feature::CustomDomains]).await?
            }
        };
        row.map(|row| {
            Ok(Entry {
                id: row.try_get("id")?,
                schema: Schema::new(row.try_get("schema_id")?),
                plan: row.try_get("plan")?,
                features: plans::features(&row.try_get::<_, Vec<String>>("features")?),
                api_calls: row.try_get("api_calls")?,
                read_only_from: row.try_get("read_only_from")?,
                requires_mfa: row.try_get("require_mfa")?,
                suspended: row.try_get("suspended")?,
                deleted: row.try_get("deleted")?,
            })
        })
        .transpose()
    }
}

impl Cache {
    fn get(&self, key: &Key) -> Option<Option<Arc<Entry>>> {
        let entries = self.entries.read().expect("nothing panics with the lock held");
        if let Some(known) = entries.get(key).filter(|cached| cached.since.elapsed() < MAX_AGE) {
            return Some(Some(known.entry.clone()));
        }
        let unknown = self.unknown.read().expect("nothing panics with the lock held");
        unknown.get(key).filter(|since| since.elapsed() < MAX_AGE).map(|_| None)
    }

    fn put(&self, key: Key, entry: Option<Arc<Entry>>, drops_before: u64) {
        let mut entries = self.entries.write().expect("nothing panics with the lock held");
        let mut unknown = self.unknown.write().expect("nothing panics with the lock held");
        let unchanged = self.drops.load(Ordering::SeqCst) == drops_before;
        if !self.listening.load(Ordering::SeqCst) || !unchanged {
            return;
        }
        let since = Instant::now();
        match entry {
            Some(entry) => {
                if entries.len() >= MAX_ENTRIES {
                    entries.clear();
                }
                entries.insert(key, Cached { since, entry });
            }
            None => {
                if unknown.len() >= MAX_UNKNOWN {
                    unknown.clear();
                }
                unknown.insert(key, since);
            }
        }
    }

    /// Also what was not found: it may be what just came to be.
    fn forget(&self, organization: Uuid) {
        let mut entries = self.entries.write().expect("nothing panics with the lock held");
        self.drops.fetch_add(1, Ordering::SeqCst);
        entries.retain(|_, cached| cached.entry.id != organization);
        self.unknown.write().expect("nothing panics with the lock held").clear();
    }

    fn clear(&self) {
        let mut entries = self.entries.write().expect("nothing panics with the lock held");
        self.drops.fetch_add(1, Ordering::SeqCst);
        entries.clear();
        self.unknown.write().expect("nothing panics with the lock held").clear();
    }
}
