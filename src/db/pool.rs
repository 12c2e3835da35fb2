//! The pool: a fixed number of slots, and each tenant keeps meeting the same few of them.
//!
//! A connection that has served a tenant holds its statements and its catalog entries, so a tenant
//! is sent to the free slot that rendezvous hashing ranks first for it; when that one is busy, to
//! the next. A general-purpose pool hands out whichever connection is free, which makes Postgres
//! plan anew nearly every time (docs/decisions.md has the figures).
//!
//! A connection is retired by age and by the number of schemas it has served, because a backend
//! never gives back the memory of a catalog that it has seen. What it keeps prepared is bounded by a
//! list of the statements used last, each under its tenant and its text.
//!
//! Who waits for a slot is told by the [`Desk`], which is fair among tenants: see [`desk`](super::desk).

use std::{
    borrow::Borrow,
    collections::HashSet,
    hash::{Hash, Hasher},
    num::NonZeroUsize,
    ops::Deref,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use lru::LruCache;
use tokio::sync::oneshot;
use tokio_postgres::{Client, Statement};
use tokio_postgres_rustls::MakeRustlsConnect;
use uuid::Uuid;

use super::{desk::Desk, listen::Announcer};
use crate::{
    config::DatabaseConfig,
    error::{Error, Result},
};

const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// Sets what a transaction needs, locally to it: path, time limit, organization.
pub(super) const ENTER: &str = "select set_config('search_path', $1, true), \
     set_config('statement_timeout', $2, true), set_config('rowhouse.organization_id', $3, true)";

pub(super) struct Pool {
    config: tokio_postgres::Config,
    tls: MakeRustlsConnect,
    settings: Settings,
    /// Says what transactions on these connections committed.
    pub announcer: Arc<Announcer>,
    desk: Mutex<Desk<Connection, Handover>>,
}

/// What a slot's connection goes to its next user by.
type Handover = oneshot::Sender<Lease>;

/// What is configured of a pool.
struct Settings {
    size: usize,
    wait: Duration,
    statements: NonZeroUsize,
    schemas: usize,
    age: Duration,
    /// Time that one tenant may have connections in a minute, added up.
    allowed: Option<Duration>,
}

/// One connection and what is known about it.
pub(super) struct Connection {
    pub client: Client,
    /// Sets path, time limit and organization; prepared when the connection was made.
    pub enter: Statement,
    /// Locked for moments only, never across an await.
    statements: Mutex<LruCache<Named, Statement>>,
    served: HashSet<Uuid>,
    made: Instant,
}

impl Connection {
    /// The statement prepared for this tenant (nil: the platform), if it still is.
    pub fn cached(&self, tenant: Uuid, sql: &str) -> Option<Statement> {
        self.statements().get(&(tenant, sql) as &dyn Name).cloned()
    }

    pub fn cache(&self, tenant: Uuid, sql: &str, statement: Statement) {
        self.statements().put(Named { tenant, sql: sql.into() }, statement);
    }

    /// Forgets what was prepared for a tenant, after its schema has changed shape.
    pub fn forget(&self, tenant: Uuid) {
        let mut statements = self.statements();
        let its = statements.iter().map(|(name, _)| name).filter(|name| name.tenant == tenant);
        for name in its.cloned().collect::<Vec<_>>() {
            statements.pop(&name);
        }
    }

    fn statements(&self) -> MutexGuard<'_, LruCache<Named, Statement>> {
        self.statements.lock().expect("nothing panics with the lock held")
    }

    fn worn_out(&self, settings: &Settings) -> bool {
        self.client.is_closed() || self.served.len() >= settings.schemas || self.made.elapsed() > settings.age
    }
}

/// What a prepared statement is kept under.
#[derive(Clone, PartialEq, Eq)]
struct Named {
    tenant: Uuid,
    sql: Arc<str>,
}

/// The same, looked up without making a copy of the text.
trait Name {
    fn parts(&self) -> (Uuid, &str);
}

impl Name for Named {
    fn parts(&self) -> (Uuid, &str) {
        (self.tenant, &self.sql)
    }
}

impl Name for (Uuid, &str) {
    fn parts(&self) -> (Uuid, &str) {
        *self
    }
}

impl<'a> Borrow<dyn Name + 'a> for Named {
    fn borrow(&self) -> &(dyn Name + 'a) {
        self
    }
}

impl Hash for Named {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.parts().hash(state);
    }
}

impl Hash for dyn Name + '_ {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.parts().hash(state);
    }
}

impl PartialEq for dyn Name + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.parts() == other.parts()
    }
}

impl Eq for dyn Name + '_ {}

impl Pool {
    pub fn new(
        config: tokio_postgres::Config,
        tls: MakeRustlsConnect,
        settings: &DatabaseConfig,
        announcer: Arc<Announcer>,
    ) -> Self {
        let size = settings.pool_size.max(1);
        let allowed =
            (settings.seconds_per_minute > 0).then(|| Duration::from_secs(settings.seconds_per_minute));
        let forgiven = allowed.map_or(f64::from(u32::MAX), |allowed| allowed.as_secs_f64() / 60.0);
        let statements = NonZeroUsize::new(settings.statements_per_connection).unwrap_or(NonZeroUsize::MIN);
        Self {
            config,
            tls,
            settings: Settings {
                size,
                wait: Duration::from_secs(settings.pool_wait_seconds),
                statements,
                schemas: settings.schemas_per_connection.max(1),
                age: Duration::from_secs(settings.connection_minutes * 60),
                allowed,
            },
            announcer,
            desk: Mutex::new(Desk::new(size, forgiven)),
        }
    }

    pub fn size(&self) -> usize {
        self.settings.size
    }

    pub fn tls(&self) -> &MakeRustlsConnect {
        &self.tls
    }

    /// For how long a tenant has to wait until it has had no more time of late than it is allowed.
    pub fn overdrawn(&self, tenant: Uuid) -> Option<Duration> {
        let allowed = self.settings.allowed?;
        let debt = self.desk().debt(tenant, Instant::now());
        debt.checked_sub(allowed)
            .filter(|over| !over.is_zero())
            .map(|over| over.mul_f64(60.0 / allowed.as_secs_f64()))
    }

    /// A connection for this tenant (nil: the platform), waiting a bounded time for its turn.
    pub async fn get(self: &Arc<Self>, tenant: Uuid) -> Result<Lease> {
        let waiting = {
            let (handover, waiting) = oneshot::channel();
            let mut desk = self.desk();
            desk.wait(tenant, handover, Instant::now());
            self.serve(&mut desk);
            waiting
        };
        let mut lease = tokio::time::timeout(self.settings.wait, waiting)
            .await
            .map_err(|_| Error::unavailable("All database connections are busy. Try again in a moment.", 1))?
            .map_err(Error::internal)?;
        if lease.connection.as_ref().is_none_or(|connection| connection.worn_out(&self.settings)) {
            lease.connection = None;
            let connected = self.connect().await;
            // What the server was slow at is on nobody's account.
            lease.since = Instant::now();
            lease.connection = Some(connected?);
        }
        if !tenant.is_nil() {
            lease.connection.as_mut().expect("just connected").served.insert(tenant);
        }
        Ok(lease)
    }

    /// Hands free slots to those who wait.
    fn serve(self: &Arc<Self>, desk: &mut Desk<Connection, Handover>) {
        while let Some(turn) = desk.next(Instant::now()) {
            let lease = Lease {
                pool: self.clone(),
                tenant: turn.tenant,
                slot: turn.slot,
                since: Instant::now(),
                connection: turn.connection,
                broken: AtomicBool::new(false),
                handed_back: false,
            };
            // Whoever gave up waiting takes nothing.
            if let Err(mut lease) = turn.to.send(lease) {
                lease.handed_back = true;
                desk.put_back(
                    lease.tenant,
                    lease.slot,
                    lease.connection.take(),
                    Duration::ZERO,
                    Instant::now(),
                );
            }
        }
    }

    fn desk(&self) -> MutexGuard<'_, Desk<Connection, Handover>> {
        self.desk.lock().expect("nothing panics with the lock held")
    }

    async fn connect(&self) -> Result<Connection> {
        let client = self.open(&self.config).await?;
        let entering = tokio::time::timeout(CONNECT_WITHIN, client.prepare(ENTER)).await;
        let enter = entering.map_err(|_| silent())?.map_err(unreachable)?;
        Ok(Connection {
            client,
            enter,
            statements: Mutex::new(LruCache::new(self.settings.statements)),
            served: HashSet::new(),
            made: Instant::now(),
        })
    }

    /// A connection that is in no slot, for statements that cannot be in a transaction and may each take so long.
    pub async fn alone(&self, timeout: Option<Duration>) -> Result<Client> {
        let limit = timeout.map_or(0, |limit| limit.as_millis().max(1));
        let mut config = self.config.clone();
        config.options(format!(
            "-c search_path=extensions -c statement_timeout={limit} -c client_connection_check_interval=1s"
        ));
        self.open(&config).await
    }

    async fn open(&self, config: &tokio_postgres::Config) -> Result<Client> {
        let connecting = async {
            let (client, connection) = config.connect(self.tls.clone()).await?;
            tokio::spawn(async move {
                if let Err(error) = connection.await {
                    tracing::warn!(%error, "a database connection broke");
                }
            });
            Ok(client)
        };
        // The driver's own limit ends with the TCP handshake; a server may accept and stay silent.
        let connected = tokio::time::timeout(CONNECT_WITHIN, connecting).await;
        connected.map_err(|_| silent())?.map_err(unreachable)
    }
}

fn silent() -> Error {
    Error::unavailable("The database does not answer. Try again in a moment.", 2)
}

fn unreachable(error: tokio_postgres::Error) -> Error {
    Error::unavailable("The database cannot be reached. Try again in a moment.", 2).caused_by(error)
}

/// A connection on loan. It goes back to its slot when dropped, or is closed if marked broken.
pub(super) struct Lease {
    pool: Arc<Pool>,
    tenant: Uuid,
    slot: usize,
    since: Instant,
    connection: Option<Connection>,
    broken: AtomicBool,
    handed_back: bool,
}

impl Lease {
    /// Says what was committed on this connection; heard by every instance in a moment.
    pub fn announce(&self, channels: u8, touched: &[Uuid]) {
        self.pool.announcer.say(channels, touched);
    }

    /// The pool that it is from.
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Keeps the next user from getting this connection.
    pub fn mark_broken(&self) {
        self.broken.store(true, Ordering::Relaxed);
    }

    /// Stops what the server is doing on it and closes it. The connection is not used again: a
    /// cancel request that arrives late must not hit somebody else's statement.
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
        if self.handed_back {
            return;
        }
        let keep = self.connection.take().filter(|_| !self.broken.load(Ordering::Relaxed));
        let pool = self.pool.clone();
        if let Ok(mut desk) = pool.desk.lock() {
            desk.put_back(self.tenant, self.slot, keep, self.since.elapsed(), Instant::now());
            pool.serve(&mut desk);
        }
    }
}
