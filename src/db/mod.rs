//! The database ground: the only room that holds connections.
//!
//! Code gets a [`TenantTx`] or a [`PlatformTx`]; there is no third way to run a statement.
//!
//! - A connection carries no schema: `search_path` is empty on it. A transaction sets the path
//!   *locally*, in the same flush as its first statement, so nothing can leak to the next user and
//!   a pooler in transaction mode works (docs/decisions.md says what it needs).
//! - [`TenantDoor`] is the right to open a tenant's schema. There is one, made with the [`Db`], and
//!   `tenancy` keeps it to itself: no other room can turn an id or a string into a transaction.
//! - `platform.*` is reached by qualified name from both kinds of transaction.

mod desk;
mod fresh;
mod listen;
pub mod migrations;
mod pool;
mod select;
mod two_phase;
mod tx;

use std::{
    fmt,
    str::FromStr,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::Context;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::broadcast;
use tokio_postgres::{config::SslMode, error::SqlState};
use uuid::Uuid;

pub use fresh::{Fresh, Mark};
pub use listen::{ACCESS, DIRECTORY, EVENTS, Heard, JOBS, Listener, OUTBOX};
pub use select::Select;
pub use tokio_postgres::{Row, types::ToSql};
pub use tx::{COMMIT_NOTE, PlatformTx, TenantTx, Tx};
use tx::{Companion, Mode};

use self::migrations::Index;
use crate::{config::DatabaseConfig, error::Result, outbound};

/// The name of a tenant's schema: `tenant_` and 32 hexadecimal digits of an id of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Schema(Uuid);

impl Schema {
    pub fn new(id: Uuid) -> Self {
        Self(id)
    }

    pub fn id(self) -> Uuid {
        self.0
    }

    /// What it is called once another schema has taken its place: whoever still thinks that it is the living
    /// one finds nothing.
    pub fn retired_name(self) -> String {
        format!("retired_{}", self.0.simple())
    }
}

impl fmt::Display for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tenant_{}", self.0.simple())
    }
}

impl FromStr for Schema {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.strip_prefix("tenant_")
            .filter(|hex| hex.len() == 32)
            .and_then(|hex| Uuid::try_parse(hex).ok())
            .map(Self)
            .filter(|schema| schema.to_string() == text)
            .ok_or_else(|| format!("{text:?} is not the name of a tenant schema"))
    }
}

/// A database server that holds tenant schemas.
#[derive(Clone)]
pub struct Server {
    id: Uuid,
    pool: Arc<pool::Pool>,
}

impl Server {
    /// Its id in `platform.databases`; nil is the one that holds `platform`.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// Whether it is the one that holds `platform`.
    pub fn is_primary(&self) -> bool {
        self.id.is_nil()
    }

    /// How many transactions can be open on it at the same time.
    pub fn connections(&self) -> usize {
        self.pool.size()
    }

    async fn begin(&self) -> Result<PlatformTx> {
        Ok(PlatformTx::new(self.pool.get(Uuid::nil()).await?, None))
    }
}

/// Where a tenant's data is.
#[derive(Clone)]
pub struct Place {
    pub server: Server,
    pub schema: Schema,
}

/// The database, shared by everything that runs in the process.
#[derive(Clone)]
pub struct Db {
    primary: Server,
    config: Arc<DatabaseConfig>,
    /// Where to listen: past a pooler, which hands notices to nobody.
    listen: tokio_postgres::Config,
    hub: Arc<Mutex<broadcast::WeakSender<Heard>>>,
}

impl Db {
    /// Prepares the pool; nothing is connected before the first transaction.
    pub fn new(config: &DatabaseConfig) -> anyhow::Result<(Self, TenantDoor)> {
        let direct = config.listen_url.as_ref().unwrap_or(&config.url);
        let pool = pool::Pool::new(connection_config(&config.url)?, tls(config)?, config, Arc::default());
        let primary = Server { id: Uuid::nil(), pool: Arc::new(pool) };
        let nobody = broadcast::channel(1).0.downgrade();
        let mut listen = connection_config(direct)?;
        listen.application_name("rowhouse listening");
        let hub = Arc::new(Mutex::new(nobody));
        let db = Self { primary, config: Arc::new(config.clone()), listen, hub };
        Ok((db.clone(), TenantDoor { db }))
    }

    /// Opens a transaction that sees `platform` by qualified name and no tenant's schema.
    pub async fn begin(&self) -> Result<PlatformTx> {
        self.primary.begin().await
    }

    /// How many transactions can be open at the same time.
    pub fn connections(&self) -> usize {
        self.primary.connections()
    }

    /// The server that holds `platform`.
    pub fn primary(&self) -> Server {
        self.primary.clone()
    }

    /// Whose access has changed, as far as it is known here.
    pub fn access(&self) -> &Fresh {
        &self.primary.pool.announcer.access
    }

    /// Another server for tenant schemas; nothing is connected yet.
    pub fn open_server(&self, id: Uuid, url: &SecretString) -> anyhow::Result<Server> {
        let announcer = self.primary.pool.announcer.clone();
        let pool = pool::Pool::new(connection_config(url)?, tls(&self.config)?, &self.config, announcer);
        Ok(Server { id, pool: Arc::new(pool) })
    }

    /// Ends transactions over two servers that were left in the middle of their commit on this one.
    pub async fn settle(&self, server: &Server) -> Result<usize> {
        two_phase::settle(&self.primary, server).await
    }

    /// Hears what is said on the channels of the database. All listeners of the process share one
    /// connection, which is opened again whenever it breaks; whoever begins to listen later should
    /// assume to have missed something.
    pub fn listen(&self) -> Listener {
        let mut hub = self.hub.lock().expect("nothing panics with the lock held");
        if let Some(said) = hub.upgrade() {
            return Listener::new(said.subscribe());
        }
        let (said, heard) = broadcast::channel(1024);
        *hub = said.downgrade();
        let pool = &self.primary.pool;
        tokio::spawn(listen::listen(self.listen.clone(), pool.tls().clone(), said, pool.announcer.clone()));
        Listener::new(heard)
    }

    /// Creates the database that the configuration names, where the server lacks it.
    pub async fn create_database_if_missing(config: &DatabaseConfig) -> anyhow::Result<()> {
        let wanted = connection_config(&config.url)?;
        let name = wanted.get_dbname().context("database.url names no database")?.to_owned();
        let mut admin = wanted.clone();
        admin.dbname("postgres");
        let (client, connection) =
            admin.connect(tls(config)?).await.context("connecting to database postgres")?;
        tokio::spawn(connection);
        let found = client.query_opt("select 1 from pg_database where datname = $1", &[&name]).await?;
        if found.is_none() {
            client.batch_execute(&format!("create database \"{}\"", name.replace('"', "\"\""))).await?;
        }
        Ok(())
    }
}

/// The account that the desk keeps for background work of a tenant, beside that for its requests. It ranks
/// slots as the tenant does.
fn background(schema: Schema) -> Uuid {
    Uuid::from_u128(!schema.id().as_u128())
}

/// The right to open tenant schemas. Made once, with the [`Db`]; `tenancy` keeps it.
pub struct TenantDoor {
    db: Db,
}

impl TenantDoor {
    /// Opens a transaction in which unqualified names are this schema's.
    pub async fn begin(&self, place: &Place, organization: Uuid) -> Result<TenantTx> {
        self.open(place, organization, Mode::Usual, place.schema.id()).await
    }

    /// The same for work that nobody waits for: its time is not taken off what requests may have.
    pub async fn begin_in_background(&self, place: &Place, organization: Uuid) -> Result<TenantTx> {
        self.open(place, organization, Mode::Usual, background(place.schema)).await
    }

    /// The same for reading only; all statements see one moment.
    pub async fn begin_snapshot(&self, place: &Place, organization: Uuid) -> Result<TenantTx> {
        self.open(place, organization, Mode::Snapshot, background(place.schema)).await
    }

    /// Opens a transaction on a server in no schema of it.
    pub async fn begin_outside(&self, server: &Server) -> Result<PlatformTx> {
        Ok(PlatformTx::new(server.pool.get(Uuid::nil()).await?, self.companion(server)))
    }

    /// Takes a transaction on into a tenant's schema.
    pub async fn enter(&self, tx: PlatformTx, place: &Place, organization: Uuid) -> Result<TenantTx> {
        match place.server.is_primary() {
            true => tx.enter(place.schema, organization).await,
            false => {
                let lease = place.server.pool.get(place.schema.id()).await?;
                Ok(tx.accompany(lease, place.server.id, place.schema, organization))
            }
        }
    }

    /// Builds an index in a schema while its table is in use, outside of every transaction. What is there already
    /// stays; what an attempt before left half built goes first. False: somebody else is at it.
    ///
    /// Nothing may be held meanwhile: the build waits for everybody whose transaction is older, also for those
    /// who wait for whoever asks for it, and Postgres would see no deadlock in that.
    pub async fn build_index(&self, place: &Place, index: &Index, timeout: Option<Duration>) -> Result<bool> {
        let (client, schema) = (place.server.pool.alone(timeout).await?, place.schema);
        let (name, table) = (format!("{schema}.{}", index.name), format!("{schema}.{}", index.table));
        let sql = "select i.indisvalid, exists (select from pg_catalog.pg_stat_progress_create_index p \
                     where p.relid = to_regclass($1::text)) as building \
                   from (select) as one left join pg_catalog.pg_index i on i.indexrelid = to_regclass($2::text)";
        let row = client.query_one(sql, &[&table, &name]).await?;
        match row.try_get("indisvalid")? {
            Some(true) => return Ok(true),
            _ if row.try_get("building")? => return Ok(false),
            Some(false) => client.batch_execute(&format!("drop index concurrently if exists {name}")).await?,
            None => {}
        }
        match client.batch_execute(&index.statement(schema)).await {
            Err(error) if error.code() == Some(&SqlState::DUPLICATE_TABLE) => Ok(false),
            built => Ok(built.map(|()| true)?),
        }
    }

    /// For how long an organization has to wait until it has had no more of a server's time than allowed.
    pub fn overdrawn(&self, place: &Place) -> Option<Duration> {
        place.server.pool.overdrawn(place.schema.id())
    }

    async fn open(&self, place: &Place, organization: Uuid, mode: Mode, account: Uuid) -> Result<TenantTx> {
        let lease = place.server.pool.get(account).await?;
        Ok(TenantTx::new(lease, place.schema, organization, mode, self.companion(&place.server)))
    }

    /// For transactions on other servers than that of `platform`.
    fn companion(&self, server: &Server) -> Option<Companion> {
        (!server.is_primary()).then(|| Companion::on(&self.db.primary.pool, server.id))
    }
}

fn connection_config(url: &SecretString) -> anyhow::Result<tokio_postgres::Config> {
    let mut postgres: tokio_postgres::Config =
        url.expose_secret().parse().context("database.url (DATABASE_URL) is not a Postgres address")?;
    postgres
        .application_name("rowhouse")
        .connect_timeout(Duration::from_secs(5))
        .keepalives_idle(Duration::from_secs(30))
        .keepalives_interval(Duration::from_secs(5))
        .keepalives_retries(3)
        .tcp_user_timeout(Duration::from_secs(30))
        .options(
            "-c search_path= -c statement_timeout=30s -c idle_in_transaction_session_timeout=60s \
                  -c client_connection_check_interval=1s",
        );
    Ok(postgres)
}

fn tls(config: &DatabaseConfig) -> anyhow::Result<tokio_postgres_rustls::MakeRustlsConnect> {
    let mut certificates = Vec::new();
    if let Some(path) = &config.ca_file {
        for certificate in CertificateDer::pem_file_iter(path)
            .with_context(|| format!("database.ca_file (DATABASE_CA_FILE): cannot read {}", path.display()))?
        {
            certificates.push(certificate?);
        }
    }
    Ok(tokio_postgres_rustls::MakeRustlsConnect::new(outbound::tls(certificates)?))
}

/// The address without its password, for people.
pub fn describe(url: &SecretString) -> String {
    let Ok(config) = url.expose_secret().parse::<tokio_postgres::Config>() else {
        return "(not a Postgres address)".into();
    };
    let hosts: Vec<String> = config
        .get_hosts()
        .iter()
        .map(|host| match host {
            tokio_postgres::config::Host::Tcp(name) => name.clone(),
            tokio_postgres::config::Host::Unix(path) => path.display().to_string(),
        })
        .collect();
    let port = config.get_ports().first().copied().unwrap_or(5432);
    let tls = if config.get_ssl_mode() == SslMode::Require { ", TLS required" } else { "" };
    format!(
        "{}:{port}/{} as {}{tls}",
        hosts.join(","),
        config.get_dbname().unwrap_or("?"),
        config.get_user().unwrap_or("?")
    )
}
