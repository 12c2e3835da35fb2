//! One commit on two servers: of a tenant's schema, and of `platform`.
//!
//! Both parts are prepared: from then on each server can commit its part whatever happens. Then a row in
//! `platform.decisions` is written: that is the decision. Then the parts are committed, the tenant's
//! first, so that whoever finds an event or a job in `platform` finds what it is about.
//!
//! Whoever dies in between leaves prepared transactions, which [`settle`] finds. It tries to write the
//! opposite decision under the same key. If that works, nobody decided, and nobody can any more: the
//! parts are rolled back. If it does not, they are committed.

use std::time::Duration;

use chrono::TimeDelta;
use futures_util::join;
use uuid::Uuid;

use super::{
    Server,
    listen::{ACCESS, DIRECTORY},
    tx::Tx,
};
use crate::error::{Error, Result};

/// Decisions are removed some time after this.
const DECISIONS_KEPT: TimeDelta = TimeDelta::days(28);
/// Those that commit now are left to themselves.
const LEFT_ALONE: Duration = Duration::from_secs(5);

/// The two parts of a transaction.
#[derive(Clone, Copy)]
enum Part {
    Tenant,
    Platform,
}

/// What a part is prepared under: it says which server the tenant's part is on. The parts have names of
/// their own, as both may be in one Postgres, in two databases.
fn name(id: Uuid, server: Uuid, part: Part) -> String {
    format!("rowhouse {id} {}", suffix(server, part))
}

fn suffix(server: Uuid, part: Part) -> String {
    match part {
        Part::Tenant => format!("{server} tenant"),
        Part::Platform => format!("{server} platform"),
    }
}

fn id_in(name: &str, server: Uuid, part: Part) -> Option<Uuid> {
    name.strip_prefix("rowhouse ")?.strip_suffix(&format!(" {}", suffix(server, part)))?.parse().ok()
}

/// Commits both or none. What could not be committed after the decision will be by [`settle`].
pub(super) async fn commit(tenant: Tx, platform: Tx, server: Uuid) -> Result<()> {
    tenant.is_sound()?;
    platform.is_sound()?;
    let id = Uuid::now_v7();
    let (there, here) = (name(id, server, Part::Tenant), name(id, server, Part::Platform));
    let (prepare_there, prepare_here) =
        (format!("prepare transaction '{there}'"), format!("prepare transaction '{here}'"));
    let prepared = join!(tenant.end(&prepare_there), platform.end(&prepare_here));
    if let (Err(error), _) | (_, Err(error)) = prepared {
        let (there, here) = (format!("rollback prepared '{there}'"), format!("rollback prepared '{here}'"));
        let _ = join!(tenant.afterwards(&there), platform.afterwards(&here));
        return Err(error);
    }
    let decision =
        format!("insert into platform.decisions (id, commits, decided_at) values ('{id}', true, now())");
    // Where this fails, nobody here knows whether it was decided: `settle` finds out.
    platform.afterwards(&decision).await?;
    let there = tenant.afterwards(&format!("commit prepared '{there}'")).await;
    let here = platform.afterwards(&format!("commit prepared '{here}'")).await;
    match there.and(here) {
        Ok(()) => tenant.say_with(&platform).await,
        Err(error) => tracing::warn!(%error, %id, "what was decided could not be committed yet; it will be"),
    }
    Ok(())
}

/// Ends what somebody prepared for this server and left; says how many there were.
pub(super) async fn settle(primary: &Server, server: &Server) -> Result<usize> {
    let mut settled = 0;
    // Its server first; while that is down, its organizations are, and nobody looks for what is decided.
    let there = left(server, server.id, Part::Tenant).await.unwrap_or_else(|error| {
        tracing::warn!(%error, server = %server.id, "a server does not tell what is prepared on it");
        Vec::new()
    });
    for id in there {
        settled += finish_or_warn(primary, server, name(id, server.id, Part::Tenant), id).await;
    }
    for id in left(primary, server.id, Part::Platform).await? {
        settled += finish_or_warn(primary, primary, name(id, server.id, Part::Platform), id).await;
    }
    if settled > 0 {
        // Whatever it was about, those who did it could not say so.
        let tx = primary.begin().await?;
        tx.notify(DIRECTORY, vec!["*".into()]).await?;
        tx.notify(ACCESS, vec!["*".into()]).await?;
        tx.commit().await?;
    }
    Ok(settled)
}

/// One that cannot be ended now does not keep others from it.
async fn finish_or_warn(primary: &Server, on: &Server, name: String, id: Uuid) -> usize {
    match finish(primary, on, &name, id).await {
        Ok(()) => 1,
        Err(error) => {
            tracing::warn!(%error, %id, server = %on.id, "a prepared transaction could not be ended");
            0
        }
    }
}

/// Which of these parts, of tenants on a server, have been prepared for some time.
async fn left(on: &Server, tenants: Uuid, part: Part) -> Result<Vec<Uuid>> {
    let lease = on.pool.get(Uuid::nil()).await?;
    let rows = lease
        .client
        .query(
            "select gid from pg_catalog.pg_prepared_xacts where database = current_database() \
             and gid like 'rowhouse %' and prepared <= now() - $1 * interval '1 second'",
            &[&LEFT_ALONE.as_secs_f64()],
        )
        .await?;
    let names = rows.iter().map(|row| row.try_get::<_, &str>(0)).collect::<Result<Vec<_>, _>>()?;
    Ok(names.into_iter().filter_map(|name| id_in(name, tenants, part)).collect())
}

/// Ends one part as it was decided; where nothing was decided, nothing will be done.
async fn finish(primary: &Server, on: &Server, name: &str, id: Uuid) -> Result<()> {
    let commits = decision(primary, id).await?;
    let verb = if commits { "commit" } else { "rollback" };
    let command = format!("{verb} prepared '{name}'");
    on.pool.get(Uuid::nil()).await?.client.batch_execute(&command).await?;
    tracing::info!(%id, commits, server = %on.id, "a transaction over two servers was settled");
    Ok(())
}

/// The decision on a transaction; whoever is about to write it is waited for.
async fn decision(primary: &Server, id: Uuid) -> Result<bool> {
    let begun = id.get_timestamp().map_or(0, |time| time.to_unix().0);
    let age = chrono::Utc::now().timestamp().saturating_sub(begun as i64);
    if age > DECISIONS_KEPT.num_seconds() {
        let told = "its decision is not kept any more: compare both servers, then end it by hand";
        return Err(Error::internal(told));
    }
    let tx = primary.begin().await?;
    tx.execute(
        "insert into platform.decisions (id, commits, decided_at) values ($1, false, now()) \
         on conflict (id) do nothing",
        &[&id],
    )
    .await?;
    let commits = tx.query_one("select commits from platform.decisions where id = $1", &[&id]).await?;
    let commits = commits.try_get("commits")?;
    tx.commit().await?;
    Ok(commits)
}
