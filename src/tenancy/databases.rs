//! The servers that tenant schemas are on: rows of `platform.databases`.
//!
//! The first of them holds `platform` and has no address here. A database that was added carries its id in
//! a comment on its schema `extensions`, so that it cannot be added twice, under another name or by another
//! installation, and an address cannot be changed to one of another database.

use chrono::{DateTime, Utc};
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;
use uuid::Uuid;

use super::directory::all_changed;
use crate::{
    app::App,
    audit::{self, Actor, Changes},
    auth::sealing::Sealer,
    db::{PlatformTx, Row, Server, Tx},
    error::{Error, Result},
    types::Slug,
};

/// How many schemas a server is meant for where nothing else is said: with about so many full ones its
/// catalog begins to weigh.
pub const CAPACITY: u32 = 1_500;

/// A server as it is listed.
pub struct Database {
    pub id: Uuid,
    pub name: String,
    /// `None` for the one that holds `platform`.
    pub url: Option<SecretString>,
    pub capacity: i32,
    /// Whether new organizations go there.
    pub accepts: bool,
    pub created_at: DateTime<Utc>,
    pub organizations: i64,
    pub spares: i64,
    /// Retired schemas, and those that are being built.
    pub others: i64,
}

/// What is to be changed of a server.
#[derive(Default)]
pub struct Change {
    pub capacity: Option<u32>,
    pub accepts: Option<bool>,
    /// Another address of the same database.
    pub url: Option<SecretString>,
}

/// What a server says of itself.
pub struct Condition {
    /// Such as 15.
    pub version: i32,
    pub max_connections: i32,
    pub connections: i64,
    /// How many transactions can be prepared for a commit on two servers; 0 is none.
    pub max_prepared: i32,
    /// How many are.
    pub prepared: i64,
    /// Schemas of tenants that are there.
    pub schemas: i64,
    encoding: String,
    may_create: bool,
    holds_platform: bool,
    mark: Option<String>,
}

const COLUMNS: &str = "d.id, d.name, d.sealed_url, d.capacity, d.accepts, d.created_at, \
     (select count(*) from platform.tenant_schemas s where s.database_id = d.id and s.state = 'taken') as organizations, \
     (select count(*) from platform.tenant_schemas s where s.database_id = d.id and s.state = 'spare') as spares, \
     (select count(*) from platform.tenant_schemas s where s.database_id = d.id \
       and s.state in ('building', 'retired')) as others";

fn from_row(row: &Row, sealer: &Sealer) -> Result<Database> {
    let id = row.try_get("id")?;
    let sealed: Option<Vec<u8>> = row.try_get("sealed_url")?;
    Ok(Database {
        id,
        name: row.try_get("name")?,
        url: sealed.map(|sealed| open(sealer, id, &sealed)).transpose()?,
        capacity: row.try_get("capacity")?,
        accepts: row.try_get("accepts")?,
        created_at: row.try_get("created_at")?,
        organizations: row.try_get("organizations")?,
        spares: row.try_get("spares")?,
        others: row.try_get("others")?,
    })
}

/// What an address is sealed for: that of one database is not that of another.
fn purpose(id: Uuid) -> String {
    format!("address of database {id}")
}

fn open(sealer: &Sealer, id: Uuid, sealed: &[u8]) -> Result<SecretString> {
    let plain = sealer.open(&purpose(id), sealed)?;
    Ok(String::from_utf8(plain).map_err(Error::internal)?.into())
}

/// The address of a server other than the one that holds `platform`.
pub(super) async fn url(tx: &Tx, sealer: &Sealer, id: Uuid) -> Result<SecretString> {
    let row = tx.query_opt("select sealed_url from platform.databases where id = $1", &[&id]).await?;
    let sealed: Option<Vec<u8>> = match &row {
        Some(row) => row.try_get("sealed_url")?,
        None => None,
    };
    open(sealer, id, &sealed.ok_or_else(|| Error::internal(format!("no address of a database {id}")))?)
}

/// All servers, the one that holds `platform` first.
pub async fn list(app: &App) -> Result<Vec<Database>> {
    let tx = app.db.begin().await?;
    let sql = format!("select {COLUMNS} from platform.databases d order by d.sealed_url is not null, d.name");
    tx.query(&sql, &[]).await?.iter().map(|row| from_row(row, &app.sealer)).collect()
}

/// The server of this name.
pub async fn find(app: &App, name: &str) -> Result<Database> {
    let tx = app.db.begin().await?;
    find_in(&tx, app, name).await
}

async fn find_in(tx: &Tx, app: &App, name: &str) -> Result<Database> {
    let sql = format!("select {COLUMNS} from platform.databases d where d.name = $1");
    let row = tx.query_opt(&sql, &[&name]).await?;
    let unknown =
        || Error::conflict(format!("There is no database {name:?}; `rowhouse database list` shows all."));
    from_row(&row.ok_or_else(unknown)?, &app.sealer)
}

/// Adds a server, once it is sure that it can be worked with. What it needs is made there: the schema
/// `extensions`, and nothing for everybody in `public`. One that was interrupted can be repeated.
pub async fn add(app: &App, name: &Slug, url: &SecretString, capacity: u32) -> Result<Uuid> {
    let (id, name): (Uuid, &str) = (id_of(name, &app.sealer)?, name.as_ref());
    let capacity = whole(capacity)?;
    let tx = app.db.begin().await?;
    let there = tx.query_opt("select id from platform.databases where name = $1", &[&name]).await?;
    if there.is_some() {
        return Err(Error::taken("name", format!("There is a database {name} already.")));
    }
    if condition(&tx).await?.max_prepared == 0 {
        return Err(Error::conflict(without_prepared("The server that holds platform")));
    }
    prepare(app, &server_at(app, id, url)?).await?;
    let sealed = app.sealer.seal(&purpose(id), url.expose_secret().as_bytes())?;
    tx.execute(
        "insert into platform.databases (id, name, sealed_url, capacity, accepts, created_at) \
         values ($1, $2, $3, $4, true, $5)",
        &[&id, &name, &sealed, &capacity, &app.clock.now()],
    )
    .await?;
    let changes = Changes::created(&json!({"name": name, "capacity": capacity}));
    audit::record_platform(&tx, app, Actor::system(), "database.added", Some(id), None, &changes).await?;
    all_changed(&tx).await?;
    tx.commit().await?;
    app.directory.forget_all();
    Ok(id)
}

/// The same for a name each time, so that a database that was prepared for it is known again.
fn id_of(name: &Slug, sealer: &Sealer) -> Result<Uuid> {
    let mac = sealer.mac("id of a database", name.as_ref().as_bytes());
    let bytes = mac.first_chunk::<16>().ok_or_else(|| Error::internal("a short code"))?;
    Ok(uuid::Builder::from_random_bytes(*bytes).into_uuid())
}

/// Makes what a database needs, unless it is somebody's.
async fn prepare(app: &App, server: &Server) -> Result<()> {
    let tx = begin_on(app, server).await?;
    let found = condition(&tx).await?;
    found.is_fit(false).map_err(Error::conflict)?;
    if found.holds_platform {
        return Err(Error::conflict(
            "That database holds a schema platform: it is the first server, or another's.",
        ));
    }
    if let Some(other) = found.mark.filter(|there| *there != mark(server.id())) {
        return Err(Error::conflict(format!(
            "That is {other} already, of this installation or of another one. If that one is gone for good: drop \
             its schemas, extensions too, and try again."
        )));
    }
    tx.command("create schema if not exists extensions").await?;
    tx.command(&format!("comment on schema extensions is '{}'", mark(server.id()))).await?;
    // As on the first server: a name that is not found must be an error.
    tx.command("revoke all on schema public from public").await?;
    tx.commit().await
}

/// Changes what is known of a server; another address must lead to the same database.
pub async fn change(app: &App, name: &str, change: &Change) -> Result<Database> {
    let tx = app.db.begin().await?;
    let before = find_in(&tx, app, name).await?;
    let (capacity, mut sealed) = (change.capacity.map(whole).transpose()?.unwrap_or(before.capacity), None);
    if let Some(url) = &change.url {
        if before.url.is_none() {
            return Err(Error::conflict(
                "The address of the first server is DATABASE_URL in the configuration.",
            ));
        }
        let tx = begin_on(app, &server_at(app, before.id, url)?).await?;
        let found = condition(&tx).await?;
        drop(tx);
        found.is_fit(false).map_err(Error::conflict)?;
        if found.mark.as_deref() != Some(mark(before.id).as_str()) {
            return Err(Error::conflict(
                "That address leads to another database; move the organizations instead.",
            ));
        }
        sealed = Some(app.sealer.seal(&purpose(before.id), url.expose_secret().as_bytes())?);
    }
    let accepts = change.accepts.unwrap_or(before.accepts);
    tx.execute(
        "update platform.databases set capacity = $2, accepts = $3, sealed_url = coalesce($4, sealed_url) \
         where id = $1",
        &[&before.id, &capacity, &accepts, &sealed],
    )
    .await?;
    let was = json!({"capacity": before.capacity, "accepts": before.accepts, "address": "as before"});
    let address = if sealed.is_some() { "another" } else { "as before" };
    let is = json!({"capacity": capacity, "accepts": accepts, "address": address});
    let (action, id, changes) = ("database.changed", Some(before.id), Changes::between(&was, &is));
    audit::record_platform(&tx, app, Actor::system(), action, id, None, &changes).await?;
    all_changed(&tx).await?;
    tx.commit().await?;
    app.directory.forget_all();
    Ok(Database { capacity, accepts, ..before })
}

/// Looks at a server, and says what is wrong with it where something is; `alone` where there is no other.
pub async fn check(app: &App, database: &Database, alone: bool) -> Result<(Condition, Vec<String>)> {
    let server = app.directory.server(database.id).await?;
    let tx = begin_on(app, &server).await?;
    let found = condition(&tx).await?;
    drop(tx);
    let mut wrong: Vec<String> = found.is_fit(alone).err().into_iter().collect();
    if database.url.is_some() && found.mark.as_deref() != Some(mark(database.id).as_str()) {
        wrong.push("its schema extensions does not say that it is this database".into());
    }
    let (schemas, expected) = (found.schemas, database.organizations + database.spares + database.others);
    if schemas < expected {
        wrong.push(format!("it holds {schemas} schemas of tenants, {expected} should be there"));
    }
    Ok((found, wrong))
}

fn server_at(app: &App, id: Uuid, url: &SecretString) -> Result<Server> {
    app.db.open_server(id, url).map_err(|error| Error::invalid("url", format!("{error:#}")))
}

/// A transaction on a server, in no schema of it.
async fn begin_on(app: &App, server: &Server) -> Result<PlatformTx> {
    app.directory.door.begin_outside(server).await
}

async fn condition(tx: &Tx) -> Result<Condition> {
    let rows = tx
        .query_once(
            "select current_setting('server_version_num')::int4 / 10000 as version, \
             current_setting('max_connections')::int4 as max_connections, \
             (select count(*) from pg_catalog.pg_stat_activity where backend_type = 'client backend') as connections, \
             current_setting('max_prepared_transactions')::int4 as max_prepared, \
             (select count(*) from pg_catalog.pg_prepared_xacts where database = current_database()) as prepared, \
             (select count(*) from pg_catalog.pg_namespace where nspname ~ '^(tenant|retired)_[0-9a-f]{32}$') as schemas, \
             current_setting('server_encoding') as encoding, \
             has_database_privilege(current_database(), 'create') as may_create, \
             exists (select 1 from pg_catalog.pg_namespace where nspname = 'platform') as holds_platform, \
             (select obj_description(oid, 'pg_namespace') from pg_catalog.pg_namespace where nspname = 'extensions') as mark",
            &[],
        )
        .await?;
    let row = rows.first().ok_or_else(|| Error::internal("a server says nothing of itself"))?;
    Ok(Condition {
        version: row.try_get("version")?,
        max_connections: row.try_get("max_connections")?,
        connections: row.try_get("connections")?,
        max_prepared: row.try_get("max_prepared")?,
        prepared: row.try_get("prepared")?,
        schemas: row.try_get("schemas")?,
        encoding: row.try_get("encoding")?,
        may_create: row.try_get("may_create")?,
        holds_platform: row.try_get("holds_platform")?,
        mark: row.try_get::<_, Option<String>>("mark")?.filter(|mark| mark.starts_with(MARK)),
    })
}

const MARK: &str = "rowhouse database ";

fn mark(id: Uuid) -> String {
    format!("{MARK}{id}")
}

impl Condition {
    /// Whether tenant schemas can be on it. A server that is `alone` has nothing to prepare.
    fn is_fit(&self, alone: bool) -> Result<(), String> {
        match self {
            Self { version: ..15, .. } => {
                Err(format!("Postgres {} is too old; it takes 15 or newer.", self.version))
            }
            Self { encoding, .. } if encoding != "UTF8" => {
                Err(format!("The database is encoded in {encoding}; make one with encoding 'UTF8'."))
            }
            Self { may_create: false, .. } => {
                Err("The user may not create schemas there: `grant create on database <name> to <user>`."
                    .into())
            }
            Self { max_prepared: 0, .. } if !alone => Err(without_prepared("That server")),
            _ => Ok(()),
        }
    }
}

/// Without it there is no commit on two servers.
fn without_prepared(which: &str) -> String {
    format!(
        "{which} cannot prepare transactions, which a commit on two servers needs. Set max_prepared_transactions \
         (in postgresql.conf, or by `alter system set max_prepared_transactions = 200`) to about as many as there \
         are connections of all instances, and restart it."
    )
}

fn whole(capacity: u32) -> Result<i32> {
    let fits = i32::try_from(capacity).ok().filter(|capacity| *capacity > 0);
    fits.ok_or_else(|| Error::invalid("capacity", "must be between 1 and 2147483647"))
}
