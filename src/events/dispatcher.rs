//! The dispatcher: gives events their positions and hands them on.
//!
//! Sequence numbers of the outbox are taken before commit, so a smaller one can appear after a larger
//! one. That does no harm here: a pass takes the rows that it can see and removes just these, so a
//! late one is found by the next pass; it was committed side by side with those before it, so nobody
//! can have seen it first. What others see is the position, which is given here, after the commit,
//! by whoever holds the organization's row in `platform.event_heads`.
//!
//! One pass over an organization is one transaction: positions, deliveries of webhooks, jobs, the
//! removal from the outbox and the word to streams are committed together, so a process may end
//! anywhere. Organizations go side by side; a long transaction of one holds up nobody.

use std::{
    collections::{HashMap, HashSet},
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::Event;
use crate::{
    app::App,
    db::{EVENTS, Heard, OUTBOX, TenantTx},
    error::Result,
    notifications,
    tenancy::{Tenant, fleet},
    webhooks,
};

/// Events of one organization in one transaction at most.
const BATCH: i64 = 200;
/// Organizations that are told of at the same time.
const SIDE_BY_SIDE: usize = 4;
/// The outbox is looked at when somebody says so, and this often.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// An organization that cannot be told of now is left alone for so long.
const REST: Duration = Duration::from_millis(250);

/// Tells of events until the service stops.
pub async fn dispatch(app: Arc<App>) {
    let mut heard = app.db.listen();
    let mut stopping = app.stopping();
    let mut at_work: JoinSet<(Uuid, bool)> = JoinSet::new();
    let mut busy: HashSet<Uuid> = HashSet::new();
    let mut resting: HashMap<Uuid, Instant> = HashMap::new();
    let mut last = Uuid::nil();
    loop {
        resting.retain(|_, since| since.elapsed() < REST);
        let room = SIDE_BY_SIDE - busy.len();
        let but: Vec<Uuid> = busy.iter().chain(resting.keys()).copied().collect();
        match waiting(&app, &but, room, last).await {
            Ok(found) => {
                if let Some(id) = found.last() {
                    last = *id;
                }
                for organization in found {
                    busy.insert(organization);
                    let app = app.clone();
                    at_work.spawn(async move {
                        let work = AssertUnwindSafe(dispatch_one(&app, organization)).catch_unwind();
                        (organization, work.await.unwrap_or(false))
                    });
                }
            }
            Err(error) => tracing::warn!(%error, "the outbox could not be looked at; trying again"),
        }
        let word = async {
            loop {
                match heard.next().await {
                    Heard::Notice { channel, .. } if channel == OUTBOX => return,
                    Heard::Connected => return,
                    Heard::Notice { .. } | Heard::Lost => {}
                }
            }
        };
        let patience = if resting.is_empty() { LOOK_EVERY } else { REST };
        tokio::select! {
            _ = tokio::time::timeout(patience, word) => {}
            Some(Ok((organization, told))) = at_work.join_next() => {
                busy.remove(&organization);
                if !told {
                    resting.insert(organization, Instant::now());
                }
            }
            () = stopping.requested() => break,
        }
    }
    while at_work.join_next().await.is_some() {}
}

/// Organizations that have events to be told, going round from the last one, without some.
async fn waiting(app: &App, but: &[Uuid], most: usize, last: Uuid) -> Result<Vec<Uuid>> {
    if most == 0 {
        return Ok(Vec::new());
    }
    let tx = app.db.begin().await?;
    for after in [last, Uuid::nil()] {
        let rows = tx
            .query(
                "with recursive waiting as ( \
                   (select organization_id from platform.outbox where organization_id > $1 \
                     order by organization_id limit 1) \
                   union all \
                   select (select o.organization_id from platform.outbox o \
                     where o.organization_id > waiting.organization_id order by o.organization_id limit 1) \
                   from waiting where waiting.organization_id is not null) \
                 select organization_id from waiting where organization_id is not null \
                 and organization_id <> all ($2) limit $3",
                &[&after, &but, &(most as i64)],
            )
            .await?;
        if !rows.is_empty() || after.is_nil() {
            return rows.iter().map(|row| Ok(row.try_get("organization_id")?)).collect();
        }
    }
    Ok(Vec::new())
}

/// Tells of one organization's events, and says whether that could be done now. Whoever has more than
/// a batch gets its next turn after the others.
async fn dispatch_one(app: &Arc<App>, organization: Uuid) -> bool {
    let work = async {
        match fleet::tenant_by_id(&app.directory, organization).await? {
            Some(tenant) => dispatch_batch(app, &tenant).await,
            None => {
                // The organization is gone for good, and its log with it.
                let tx = app.db.begin().await?;
                tx.execute("delete from platform.outbox where organization_id = $1", &[&organization])
                    .await?;
                tx.commit().await.map(|()| true)
            }
        }
    };
    work.await.unwrap_or_else(|error| {
        tracing::warn!(%error, %organization, "the events of an organization could not be told; trying again");
        false
    })
}

/// One transaction's worth of an organization's events. False if somebody else is at it.
async fn dispatch_batch(app: &Arc<App>, tenant: &Tenant) -> Result<bool> {
    let organization = tenant.id();
    let tx = tenant.begin().await?;
    // Behind a migration or a large deletion it is better to come back.
    tx.command("set local lock_timeout to '500ms'").await?;
    tx.execute(
        "insert into platform.event_heads (organization_id, position) values ($1, 0) \
         on conflict (organization_id) do nothing",
        &[&organization],
    )
    .await?;
    let head = tx
        .query_opt(
            "select position from platform.event_heads where organization_id = $1 for update skip locked",
            &[&organization],
        )
        .await?;
    let Some(head) = head else { return Ok(false) };
    let mut position: i64 = head.try_get("position")?;
    let pending = tx
        .query(
            "select sequence, event_id from platform.outbox where organization_id = $1 order by sequence limit $2",
            &[&organization, &BATCH],
        )
        .await?;
    if pending.is_empty() {
        return Ok(true);
    }
    let (mut sequences, mut ids, mut positions) = (Vec::new(), Vec::new(), Vec::new());
    for row in &pending {
        position += 1;
        sequences.push(row.try_get::<_, i64>("sequence")?);
        ids.push(row.try_get::<_, Uuid>("event_id")?);
        positions.push(position);
    }
    let events = place(&tx, &ids, &positions).await?;
    if !tenant.is_sandbox() {
        webhooks::hand_on(app, &tx, &events).await?;
    }
    notifications::hand_on(app, &tx, &events).await?;
    tx.execute("delete from platform.outbox where sequence = any ($1)", &[&sequences]).await?;
    tx.execute(
        "update platform.event_heads set position = $2 where organization_id = $1",
        &[&organization, &position],
    )
    .await?;
    tx.notify(EVENTS, vec![organization.to_string()]).await?;
    tx.commit().await?;
    metrics::counter!("rowhouse_events_total").increment(events.len() as u64);
    Ok(true)
}

/// Writes the positions, and answers the events in their order.
async fn place(tx: &TenantTx, ids: &[Uuid], positions: &[i64]) -> Result<Vec<Event>> {
    let sql = format!(
        "update events set position = placed.place from unnest($1::uuid[], $2::bigint[]) as placed (event_id, place) \
         where events.id = placed.event_id returning {}",
        Event::COLUMNS
    );
    let rows = tx.query(&sql, &[&ids, &positions]).await?;
    let mut events: Vec<Event> =
        rows.iter().map(|row| Event::from_row(row, tx.organization())).collect::<Result<_>>()?;
    events.sort_by_key(|event| event.position);
    Ok(events)
}
