//! The stock: schemas that were built ahead of time, on the servers that take new organizations.
//!
//! A new organization takes a spare one in the transaction that makes it, on the emptiest server; with
//! none left, one is built at once. The worker fills the stock up when it is low, with pauses in
//! between, and clears away what nobody lives in any more.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::TimeDelta;
use uuid::Uuid;

use super::super::{Directory, Entry, Tenant};
use crate::{
    app::App,
    db::{
        Db, Place, Schema, Server, TenantTx, Tx,
        migrations::{self, Set, base_sets},
    },
    error::{Code, Error, Result},
};

/// A half that nobody works on is left alone for so long.
const ABANDONED_AFTER: Duration = Duration::from_secs(60);

/// Servers that take new organizations, the emptiest first: how full each is, up to 1.
const EMPTIEST: &str = "select d.id, count(h.id)::float8 / d.capacity as filled from platform.databases d \
     left join platform.tenant_schemas h on h.database_id = d.id and h.state in ('taken', 'building') \
     where d.accepts and d.id <> all ($1) group by d.id";

/// Takes a spare schema for a new organization, in the transaction that makes the organization.
/// `None` when there is no current one in stock: build one and begin again.
async fn take_spare(tx: &Tx, sets: &[Set], avoided: &[Uuid]) -> Result<Option<(Schema, Uuid)>> {
    let modules: Vec<&str> = sets.iter().map(|set| set.module).collect();
    let versions: Vec<i64> = sets.iter().map(Set::latest).collect();
    let sql = format!(
        "with servers as ({EMPTIEST}) \
         update platform.tenant_schemas set state = 'taken' where id = ( \
           select s.id from platform.tenant_schemas s join servers on servers.id = s.database_id \
           where s.state = 'spare' and not exists ( \
             select 1 from unnest($2::text[], $3::bigint[]) as wanted (module, version) \
             left join platform.tenant_schema_modules m on m.schema_id = s.id and m.module = wanted.module \
             where m.version is distinct from wanted.version) \
           order by servers.filled, s.id limit 1 for update of s skip locked) returning id, database_id"
    );
    let row = tx.query_opt(&sql, &[&avoided, &modules, &versions]).await?;
    row.map(|row| Ok((Schema::new(row.try_get("id")?), row.try_get("database_id")?))).transpose()
}

/// The server that a new schema goes to.
pub(super) async fn emptiest(db: &Db, directory: &Directory, avoided: &[Uuid]) -> Result<Server> {
    let tx = db.begin().await?;
    let row = tx.query_opt(&format!("{EMPTIEST} order by filled, d.id limit 1"), &[&avoided]).await?;
    drop(tx);
    let row = row.ok_or_else(|| Error::unavailable("No server takes new organizations at present.", 60))?;
    directory.server(row.try_get("id")?).await
}

/// A transaction in the schema of an organization that is about to be made, and the organization to
/// be: its id is chosen here, its row is the caller's to insert. The schema is a spare, or built on
/// the spot.
pub async fn begin_new_tenant(db: &Db, directory: &Directory) -> Result<(TenantTx, Tenant)> {
    let (id, sets) = (Uuid::now_v7(), base_sets());
    let mut avoided = directory.lately_down();
    // Known before a transaction is open: nobody holds one connection while waiting for another of the same.
    let servers = directory.servers().await?;
    // Whoever finds none builds one, so there are at least as many as takers; the bound is for the
    // case that something else is wrong.
    for _ in 0..20 {
        let tx = db.begin().await?;
        let Some((schema, server)) = take_spare(&tx, &sets, &avoided).await? else {
            drop(tx);
            let server = emptiest(db, directory, &avoided).await?;
            match build(directory, &server, &sets, State::Spare).await {
                Err(error) if is_down(&server, &error) => {
                    directory.note_down(server.id());
                    avoided.push(server.id());
                }
                built => drop(built?),
            }
            continue;
        };
        let Some(there) = servers.iter().find(|there| there.id() == server).cloned() else {
            continue;
        };
        let place = Place { server: there, schema };
        match directory.door.enter(tx, &place, id).await {
            Err(error) if is_down(&place.server, &error) => {
                directory.note_down(server);
                avoided.push(server);
            }
            entered => {
                let modules = sets.iter().map(|set| set.module.to_owned()).collect();
                let entry = Arc::new(Entry::new(id, place.clone(), modules));
                return Ok((entered?, Tenant { entry, directory: directory.clone(), in_background: false }));
            }
        }
    }
    Err(Error::unavailable("No schema could be prepared for the organization. Try again in a moment.", 2))
}

/// Whether there is another server to go to.
fn is_down(server: &Server, error: &Error) -> bool {
    !server.is_primary() && error.code() == Code::Unavailable
}

/// What a new schema is for.
#[derive(Clone, Copy, Debug)]
pub(super) enum State {
    Spare,
    /// To be filled by an operation.
    Building(Uuid),
}

/// Builds a schema that holds these modules.
pub(super) async fn build(
    directory: &Directory,
    server: &Server,
    sets: &[Set],
    state: State,
) -> Result<Place> {
    let place = Place { server: server.clone(), schema: Schema::new(Uuid::now_v7()) };
    let (name, operation) = match state {
        State::Spare => ("spare", None),
        State::Building(operation) => ("building", Some(operation)),
    };
    let tx = directory.door.begin(&place, Uuid::nil()).await?;
    tx.execute(
        "insert into platform.tenant_schemas (id, state, database_id, operation_id) values ($1, $2, $3, $4)",
        &[&place.schema.id(), &name, &server.id(), &operation],
    )
    .await?;
    tx.command(&format!("create schema {}", place.schema)).await?;
    for set in sets {
        set.apply(&tx, 0).await?;
        migrations::record(&tx, place.schema.id(), set).await?;
    }
    tx.commit_aside().await?;
    Ok(place)
}

/// Drops a schema that nobody lives in, and what `platform` knows of it.
pub(super) async fn drop_schema(directory: &Directory, place: &Place) -> Result<()> {
    let tx = directory.door.begin_outside(&place.server).await?;
    tx.command("set local lock_timeout to '5s'").await?;
    tx.execute("delete from platform.tenant_schemas where id = $1", &[&place.schema.id()]).await?;
    tx.command(&format!("drop schema if exists {} cascade", place.schema)).await?;
    tx.command(&format!("drop schema if exists {} cascade", place.schema.retired_name())).await?;
    tx.commit_aside().await
}

/// Keeps the stock, and clears away what is abandoned, until the process ends.
pub async fn keep_stock(app: Arc<App>) {
    let mut next = Instant::now();
    loop {
        if let Err(error) = keep_once(&app, next <= Instant::now()).await {
            tracing::warn!(%error, "the stock of schemas could not be looked after; trying again in a minute");
        }
        if next <= Instant::now() {
            next = Instant::now() + Duration::from_secs(60);
        }
        let _ = tokio::time::timeout(Duration::from_secs(5), app.directory.spare_taken.notified()).await;
    }
}

async fn keep_once(app: &App, thorough: bool) -> Result<()> {
    let (low, high) = (app.config.tenancy.spare_schemas_low, app.config.tenancy.spare_schemas);
    for server in app.directory.servers().await? {
        if spares(&app.db, server.id()).await?.is_some_and(|there| there < low.min(high).into())
            && let Err(error) = fill(app, &server, high.into()).await
        {
            tracing::warn!(%error, server = %server.id(), "spare schemas could not be built");
        }
    }
    if thorough {
        clear_away(app).await?;
    }
    Ok(())
}

/// Spare schemas of a server; `None` if it takes no new organizations.
async fn spares(db: &Db, server: Uuid) -> Result<Option<i64>> {
    let tx = db.begin().await?;
    let sql = "select (select count(*) from platform.tenant_schemas where database_id = d.id and state = 'spare') \
         from platform.databases d where d.id = $1 and d.accepts";
    tx.query_opt(sql, &[&server]).await?.map(|row| Ok(row.try_get(0)?)).transpose()
}

/// Builds spares until there are `wanted`, each after a pause as long as its building took: sign-ups and
/// requests come first. Instances that do it at once may build a few too many.
async fn fill(app: &App, server: &Server, wanted: i64) -> Result<()> {
    let sets = base_sets();
    while spares(&app.db, server.id()).await?.is_some_and(|there| there < wanted) {
        let began = Instant::now();
        build(&app.directory, server, &sets, State::Spare).await?;
        tokio::time::sleep(began.elapsed().min(Duration::from_secs(1))).await;
    }
    Ok(())
}

/// Builds so many spares at once, for installations that expect many sign-ups.
pub async fn stock_up(app: &App, server: &Server, many: usize) -> Result<()> {
    let sets = base_sets();
    for _ in 0..many {
        build(&app.directory, server, &sets, State::Spare).await?;
    }
    Ok(())
}

/// Drops schemas that were replaced some days ago, and halves that whoever built them has left.
pub async fn clear_away(app: &App) -> Result<usize> {
    let retired = app.clock.now() - TimeDelta::days(app.config.tenancy.retired_days.into());
    let tx = app.db.begin().await?;
    let rows = tx
        .query(
            "select s.id from platform.tenant_schemas s where s.state = 'retired' and s.retired_at < $1 \
             or s.state = 'building' and s.created_at < now() - $2 * interval '1 second' and not exists ( \
               select 1 from platform.fleet_operations o where o.id = s.operation_id and o.state = 'running' \
               and o.beat_at > now() - $2 * interval '1 second')",
            &[&retired, &ABANDONED_AFTER.as_secs_f64()],
        )
        .await?;
    drop(tx);
    for row in &rows {
        let place = app.directory.place(row.try_get("id")?).await?;
        match drop_schema(&app.directory, &place).await {
            Ok(()) => {
                tracing::info!(schema = %place.schema, "a schema that nobody lives in any more was dropped")
            }
            Err(error) => tracing::warn!(%error, schema = %place.schema, "a schema could not be dropped"),
        }
    }
    Ok(rows.len())
}

/// Ends what was left in the middle of a commit over two servers, until the process ends.
pub async fn keep_settled(app: Arc<App>) {
    loop {
        if let Err(error) = settle(&app).await {
            tracing::warn!(%error, "transactions over two servers could not be settled; trying again");
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
}

async fn settle(app: &App) -> Result<()> {
    for server in app.directory.servers().await?.iter().filter(|server| !server.is_primary()) {
        if let Err(error) = app.db.settle(server).await {
            tracing::warn!(%error, server = %server.id(), "transactions over two servers could not be settled");
        }
    }
    Ok(())
}
