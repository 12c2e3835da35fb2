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

use super::{Entry, Tenant, databases};
use crate::{
    auth::sealing::Sealer,
    billing::{Feature, plans},
    db::{DIRECTORY, Db, Heard, Place, Schema, Server, TenantDoor, Tx},
    error::{Error, Result},
};

/// A notice that got lost all the same is made good after this long.
const MAX_AGE: Duration = Duration::from_secs(60);
/// A server that did not answer gets no new organizations for so long.
const AVOIDED_FOR: Duration = Duration::from_secs(30);
const MAX_ENTRIES: usize = 50_000;
/// Names that do not exist are remembered too, apart: making them up must not push out the others.
const MAX_UNKNOWN: usize = 5_000;

/// Tells every instance that something about an organization has changed; heard after commit.
pub async fn changed(tx: &Tx, organization: Uuid) -> Result<()> {
    tx.notify(DIRECTORY, vec![organization.to_string()]).await
}

/// The same of all organizations.
pub async fn all_changed(tx: &Tx) -> Result<()> {
    tx.notify(DIRECTORY, vec!["*".into()]).await
}

/// How an organization can be named.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Key {
    Id(Uuid),
    Slug(String),
    Domain(String),
}

/// Finds organizations, and the servers that they are on. Clones share what they know.
#[derive(Clone)]
pub struct Directory {
    db: Db,
    sealer: Sealer,
    pub(super) door: Arc<TenantDoor>,
    cache: Arc<Cache>,
    /// Other servers than that of `platform`, once they were needed.
    servers: Arc<RwLock<HashMap<Uuid, Server>>>,
    /// Servers that did not answer, and when that was.
    down: Arc<RwLock<HashMap<Uuid, Instant>>>,
    /// Wakes the keeper of the stock of spare schemas.
    pub(super) spare_taken: Arc<Notify>,
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
    pub fn new(db: Db, door: TenantDoor, sealer: Sealer) -> Self {
        let (cache, servers, down, spare_taken) = Default::default();
        Self { db, sealer, door: Arc::new(door), cache, servers, down, spare_taken }
    }

    /// The server of this id.
    pub async fn server(&self, id: Uuid) -> Result<Server> {
        if id.is_nil() {
            return Ok(self.db.primary());
        }
        let known = self.servers.read().expect("nothing panics with the lock held").get(&id).cloned();
        if let Some(known) = known {
            return Ok(known);
        }
        let drops = self.cache.drops.load(Ordering::SeqCst);
        let tx = self.db.begin().await?;
        let url = databases::url(&tx, &self.sealer, id).await?;
        drop(tx);
        let opened = self.db.open_server(id, &url).map_err(Error::internal)?;
        let mut servers = self.servers.write().expect("nothing panics with the lock held");
        // Its address may have been changed since it was read.
        if self.cache.drops.load(Ordering::SeqCst) != drops {
            return Ok(opened);
        }
        Ok(servers.entry(id).or_insert(opened).clone())
    }

    /// A server did not answer: for a while no new organization is sent there.
    pub(super) fn note_down(&self, server: Uuid) {
        self.down.write().expect("nothing panics with the lock held").insert(server, Instant::now());
    }

    /// Servers that did not answer lately.
    pub(super) fn lately_down(&self) -> Vec<Uuid> {
        let down = self.down.read().expect("nothing panics with the lock held");
        down.iter().filter(|(_, since)| since.elapsed() < AVOIDED_FOR).map(|(id, _)| *id).collect()
    }

    /// All servers, that of `platform` first.
    pub async fn servers(&self) -> Result<Vec<Server>> {
        let tx = self.db.begin().await?;
        let rows = tx.query("select id from platform.databases order by id", &[]).await?;
        drop(tx);
        let mut servers = Vec::new();
        for row in &rows {
            servers.push(self.server(row.try_get("id")?).await?);
        }
        Ok(servers)
    }

    /// Where a schema is.
    pub async fn place(&self, schema: Uuid) -> Result<Place> {
        let tx = self.db.begin().await?;
        let row =
            tx.query_one("select database_id from platform.tenant_schemas where id = $1", &[&schema]).await?;
        drop(tx);
        Ok(Place { server: self.server(row.try_get("database_id")?).await?, schema: Schema::new(schema) })
    }

    /// Hears of changes, which makes caching safe, until it is dropped.
    pub async fn listen(&self) {
        let mut heard = self.db.listen();
        loop {
            match heard.next().await {
                Heard::Connected => {
                    self.forget_all();
                    self.cache.listening.store(true, Ordering::SeqCst);
                }
                Heard::Lost => {
                    self.cache.listening.store(false, Ordering::SeqCst);
                    self.cache.clear();
                }
                Heard::Notice { channel, .. } if channel != DIRECTORY => {}
                Heard::Notice { payload, .. } => match payload.parse() {
                    Ok(organization) => self.cache.forget(organization),
                    Err(_) => self.forget_all(),
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
        self.servers.write().expect("nothing panics with the lock held").clear();
        self.cache.clear();
    }

    /// Whether a name is somebody's, as far as that can be told without asking the database.
    pub(super) fn remembered(&self, key: &Key) -> Option<bool> {
        self.cache.get(key).map(|entry| entry.is_some())
    }

    pub(super) async fn find(&self, key: &Key) -> Result<Option<Tenant>> {
        Ok(self.look_up(key).await?.map(|entry| Tenant {
            entry,
            directory: self.clone(),
            in_background: false,
        }))
    }

    pub(super) async fn look_up(&self, key: &Key) -> Result<Option<Arc<Entry>>> {
        if let Some(entry) = self.cache.get(key) {
            return Ok(entry);
        }
        let drops = self.cache.drops.load(Ordering::SeqCst);
        let entry = self.load(key).await?.map(Arc::new);
        if !self.cache.put(key.clone(), entry.clone(), drops)
            && let Some(entry) = &entry
        {
            // Nobody would tell whoever holds it of a change.
            entry.outdated.store(true, Ordering::SeqCst);
        }
        Ok(entry)
    }

    async fn load(&self, key: &Key) -> Result<Option<Entry>> {
        const ENTRY: &str = "select o.id, o.schema_id, h.database_id, o.plan, p.features, p.api_calls, s.read_only_from, \
             o.require_mfa, o.status = 'suspended' as suspended, o.deleted_at is not null as deleted, o.sandbox, \
             o.paused_until, array(select m.module from platform.tenant_schema_modules m where m.schema_id = h.id) as modules \
             from platform.organizations o join platform.tenant_schemas h on h.id = o.schema_id \
             join platform.plans p on p.name = o.plan left join platform.subscriptions s on s.organization_id = o.id";
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
        drop(tx);
        let Some(row) = row else { return Ok(None) };
        let server = self.server(row.try_get("database_id")?).await?;
        let place = Place { server, schema: Schema::new(row.try_get("schema_id")?) };
        let entry = || {
            Ok(Entry {
                id: row.try_get("id")?,
                place,
                modules: row.try_get("modules")?,
                plan: row.try_get("plan")?,
                features: plans::features(&row.try_get::<_, Vec<String>>("features")?),
                api_calls: row.try_get("api_calls")?,
                read_only_from: row.try_get("read_only_from")?,
                requires_mfa: row.try_get("require_mfa")?,
                suspended: row.try_get("suspended")?,
                deleted: row.try_get("deleted")?,
                sandbox: row.try_get("sandbox")?,
                paused_until: row.try_get("paused_until")?,
                outdated: AtomicBool::new(false),
            })
        };
        entry().map(Some)
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

    /// Keeps it if nothing has changed since it was looked up, and says whether it does.
    fn put(&self, key: Key, entry: Option<Arc<Entry>>, drops_before: u64) -> bool {
        let mut entries = self.entries.write().expect("nothing panics with the lock held");
        let mut unknown = self.unknown.write().expect("nothing panics with the lock held");
        let unchanged = self.drops.load(Ordering::SeqCst) == drops_before;
        if !self.listening.load(Ordering::SeqCst) || !unchanged {
            return false;
        }
        let since = Instant::now();
        match entry {
            Some(entry) => {
                if entries.len() >= MAX_ENTRIES {
                    drop_all(&mut entries);
                }
                if let Some(old) = entries.insert(key, Cached { since, entry }) {
                    old.entry.outdated.store(true, Ordering::SeqCst);
                }
            }
            None => {
                if unknown.len() >= MAX_UNKNOWN {
                    unknown.clear();
                }
                unknown.insert(key, since);
            }
        }
        true
    }

    /// Also what was not found: it may be what just came to be.
    fn forget(&self, organization: Uuid) {
        let mut entries = self.entries.write().expect("nothing panics with the lock held");
        self.drops.fetch_add(1, Ordering::SeqCst);
        entries.retain(|_, cached| {
            let other = cached.entry.id != organization;
            cached.entry.outdated.fetch_or(!other, Ordering::SeqCst);
            other
        });
        self.unknown.write().expect("nothing panics with the lock held").clear();
    }

    fn clear(&self) {
        let mut entries = self.entries.write().expect("nothing panics with the lock held");
        self.drops.fetch_add(1, Ordering::SeqCst);
        drop_all(&mut entries);
        self.unknown.write().expect("nothing panics with the lock held").clear();
    }
}

/// Tells everybody who holds one of them that it may have changed.
fn drop_all(entries: &mut HashMap<Key, Cached>) {
    for (_, cached) in entries.drain() {
        cached.entry.outdated.store(true, Ordering::SeqCst);
    }
}
