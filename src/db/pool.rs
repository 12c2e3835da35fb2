//! The pool: a fixed number of slots, and each tenant keeps meeting the same few of them.
//!
//! A connection that has served a tenant holds its statements and its catalog entries, so a tenant
//! is sent to the free slot that rendezvous hashing ranks first for it; when that one is busy, to
//! the next. A general-purpose pool hands out whichever connection is free, which makes Postgres
//! plan anew nearly every time (docs/decisions.md has the figures).
//!
//! A connection is retired by age and by the number of schemas it has served, because a backend
//! never gives back the memory of a catalog that it has seen.

use std::{
    collections::HashSet,
    num::NonZeroUsize,
    ops::Deref,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use lru::LruCache;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_postgres::{Client, Statement};
use tokio_postgres_rustls::MakeRustlsConnect;
use uuid::Uuid;

use super::listen::Announcer;
use crate::{
    config::DatabaseConfig,
    error::{Error, Result},
};

/// How many tenants' statements one connection keeps, and how many for each of them.
const TENANTS_CACHED: NonZeroUsize = NonZeroUsize::new(64).expect("not zero");
const STATEMENTS_CACHED: NonZeroUsize = NonZeroUsize::new(64).expect("not zero");
/// After so many distinct schemas, or this long, a connection is replaced.
const MAX_SCHEMAS_SERVED: usize = 500;
const MAX_AGE: Duration = Duration::from_secs(30 * 60);

const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// Sets what a transaction needs, locally to it: path, time limit, organization.
pub(super) const ENTER: &str = "select set_config('search_path', $1, true), \
     set_config('statement_timeout', $2, true), set_config('rowhouse.organization_id', $3, true)";

pub(super) struct Pool {
    config: tokio_postgres::Config,
    tls: MakeRustlsConnect,
    wait: Duration,
    size: usize,
    permits: Arc<Semaphore>,
    /// Says what transactions on these connections committed.
    pub announcer: Arc<Announcer>,
    /// One entry for each slot that nobody uses now: its number, and its connection if it has one.
    idle: Mutex<Vec<(usize, Option<Connection>)>>,
}

type Statements = LruCache<Uuid, LruCache<Box<str>, Statement>>;

/// One connection and what is known about it.
pub(super) struct Connection {
    pub client: Client,
    /// Sets path, time limit and organization; prepared when the connection was made.
    pub enter: Statement,
    /// Locked for moments only, never across an await.
    statements: Mutex<Statements>,
    served: HashSet<Uuid>,
    made: Instant,
}

impl Connection {
    /// The statement prepared for this tenant (nil: the platform), if it still is.
    pub fn cached(&self, tenant: Uuid, sql: &str) -> Option<Statement> {
        self.statements().get_mut(&tenant)?.get(sql).cloned()
    }

    pub fn cache(&self, tenant: Uuid, sql: &str, statement: Statement) {
        self.statements()
            .get_or_insert_mut(tenant, || LruCache::new(STATEMENTS_CACHED))
            .put(sql.into(), statement);
    }

    /// Forgets what was prepared for a tenant, after its schema has changed shape.
    pub fn forget(&self, tenant: Uuid) {
        self.statements().pop(&tenant);
    }

    fn statements(&self) -> MutexGuard<'_, Statements> {
        self.statements.lock().expect("nothing panics with the lock held")
    }

    fn worn_out(&self) -> bool {
        self.client.is_closed() || self.served.len() >= MAX_SCHEMAS_SERVED || self.made.elapsed() > MAX_AGE
    }
}

impl Pool {
    pub fn new(config: tokio_postgres::Config, tls: MakeRustlsConnect, settings: &DatabaseConfig) -> Self {
        let size = settings.pool_size.max(1);
        Self {
            config,
            tls,
            wait: Duration::from_secs(settings.pool_wait_seconds),
            size,
            announcer: Arc::default(),
            permits: Arc::new(Semaphore::new(size)),
            idle: Mutex::new((0..size).map(|slot| (slot, None)).collect()),
        }
    }

    pub fn size(&self) -> usize {
        self.size
    }

    pub fn tls(&self) -> &MakeRustlsConnect {
        &self.tls
    }

    /// A connection for this tenant (nil: the platform), waiting a bounded time for a free one.
    pub async fn get(self: &Arc<Self>, tenant: Uuid) -> Result<Lease> {
        let permit = tokio::time::timeout(self.wait, self.permits.clone().acquire_owned())
            .await
            .map_err(|_| Error::unavailable("All database connections are busy. Try again in a moment.", 1))?
            .map_err(Error::internal)?;
        let (slot, connection) = {
            let mut idle = self.idle.lock().expect("nothing panics with the lock held");
            let best = (0..idle.len())
                .max_by_key(|&i| rank(tenant, idle[i].0))
                .ok_or_else(|| Error::internal("a permit without a free slot"))?;
            idle.swap_remove(best)
        };
        // The lease exists before anything can fail, so the slot always comes back.
        let mut lease =
            Lease { pool: self.clone(), slot, connection, broken: AtomicBool::new(false), _permit: permit };
        if lease.connection.as_ref().is_none_or(Connection::worn_out) {
            lease.connection = None;
            lease.connection = Some(self.connect().await?);
        }
        if !tenant.is_nil() {
            lease.connection.as_mut().expect("just connected").served.insert(tenant);
        }
        Ok(lease)
    }

    async fn connect(&self) -> Result<Connection> {
        let refused = |error: tokio_postgres::Error| {
            Error::unavailable("The database cannot be reached. Try again in a moment.", 2).caused_by(error)
        };
        let connecting = async {
            let (client, connection) = self.config.connect(self.tls.clone()).await?;
            tokio::spawn(async move {
                if let Err(error) = connection.await {
                    tracing::warn!(%error, "a database connection broke");
                }
            });
            let enter = client.prepare(ENTER).await?;
            Ok((client, enter))
        };
        // The driver's own limit ends with the TCP handshake; a server may accept and stay silent.
        let (client, enter) = tokio::time::timeout(CONNECT_WITHIN, connecting)
            .await
            .map_err(|_| Error::unavailable("The database does not answer. Try again in a moment.", 2))?
            .map_err(refused)?;
        Ok(Connection {
            client,
            enter,
            statements: Mutex::new(LruCache::new(TENANTS_CACHED)),
            served: HashSet::new(),
            made: Instant::now(),
        })
    }
}

/// Rendezvous hashing: how much a tenant wants a slot. Any good mixer does; this is splitmix64.
fn rank(tenant: Uuid, slot: usize) -> u64 {
    let (high, low) = tenant.as_u64_pair();
    let mut x = high ^ low.rotate_left(32) ^ (slot as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// A connection on loan. It goes back to its slot when dropped, or is closed if marked broken.
pub(super) struct Lease {
    pool: Arc<Pool>,
    slot: usize,
    connection: Option<Connection>,
    broken: AtomicBool,
    _permit: OwnedSemaphorePermit,
}

impl Lease {
    pub fn announce(&self, channels: u8) {
        self.pool.announcer.say(channels);
    }

    /// The connection's state is not known: close it instead of keeping it.
    pub fn mark_broken(&self) {
        self.broken.store(true, Ordering::Relaxed);
    }

    /// Ends what the backend is doing and then the connection.
    pub async fn cancel_and_close(self) {
        self.mark_broken();
        let cancel = self.client.cancel_token();
        let _ =
            tokio::time::timeout(Duration::from_secs(5), cancel.cancel_query(self.pool.tls.clone())).await;
    }
}

impl Deref for Lease {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.connection.as_ref().expect("a lease holds a connection until it is dropped")
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let keep = self.connection.take().filter(|_| !self.broken.load(Ordering::Relaxed));
        if let Ok(mut idle) = self.pool.idle.lock() {
            idle.push((self.slot, keep));
        }
        // The permit is released after this, so whoever gets it finds the slot.
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_ranks_slots_the_same_way_every_time_and_tenants_spread() {
        let favourite = |tenant| (0..8).max_by_key(|&slot| rank(tenant, slot)).unwrap();
        let mut hits = [0; 8];
        for _ in 0..800 {
            let tenant = Uuid::now_v7();
            assert_eq!(favourite(tenant), favourite(tenant));
            hits[favourite(tenant)] += 1;
        }
        assert!(hits.iter().all(|&n| n > 40), "{hits:?}");
    }
}
