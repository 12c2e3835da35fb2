//! Events: what happened in an organization, told to everyone who waits for it.
//!
//! [`record`] writes the audit entry, the event and its place in the outbox in the transaction of the
//! change, so that all of it is true or none. After the commit the dispatcher ([`dispatch`]) gives each
//! event its position and hands it to webhooks, notifications and streams: at least once, in the
//! order of the positions.

pub mod activity;
mod api;
mod catalogue;
mod dispatcher;
mod trim;

use chrono::{DateTime, Utc};
use futures_util::join;
use poem_openapi::{Object, types::Example};
use serde::Serialize;
use serde_json::{Value, json};
use tokio_postgres::types::Json as Jsonb;
use uuid::Uuid;

pub use activity::ActivityApi;
pub use api::{EventsApi, page};
pub use catalogue::EventType;
pub use dispatcher::dispatch;
pub use trim::{TrimLogs, begin_trimming};

use crate::{
    app::App,
    audit::{self, Actor, ActorKind, Changes},
    auth::PermissionSet,
    db::{OUTBOX, Row, TenantTx, ToSql},
    error::Result,
    types::{EXAMPLE_ID, example_time},
};

/// Something that happened in an organization. Webhooks and streams carry it in this form.
#[derive(Clone, Debug, Serialize, Object)]
#[oai(example)]
pub struct Event {
    pub id: Uuid,
    /// One of `GET /webhook-events`.
    #[serde(rename = "type")]
    #[oai(rename = "type")]
    pub kind: String,
    /// How `data` is laid out.
    pub schema_version: i32,
    pub timestamp: DateTime<Utc>,
    pub organization_id: Uuid,
    /// Grows by one from event to event of an organization; absent for the moment until the event is told.
    pub position: Option<i64>,
    pub actor_kind: ActorKind,
    pub actor_id: Option<Uuid>,
    pub api_key_id: Option<Uuid>,
    /// What it happened to.
    pub resource_id: Uuid,
    /// The resource as it is now, or was last.
    pub data: Value,
    /// The changed fields, each with `before` and `after`.
    pub changes: Value,
}

impl Example for Event {
    fn example() -> Self {
        Self::of_type(EventType::ProjectCreated)
    }
}

impl Event {
    /// An example of a type.
    pub fn of_type(kind: EventType) -> Self {
        Self {
            id: EXAMPLE_ID,
            kind: kind.name().into(),
            schema_version: kind.schema_version(),
            timestamp: example_time(),
            organization_id: EXAMPLE_ID,
            position: Some(1041),
            actor_kind: ActorKind::User,
            actor_id: Some(EXAMPLE_ID),
            api_key_id: None,
            resource_id: EXAMPLE_ID,
            data: kind.example(),
            changes: json!({}),
        }
    }

    /// Its type; `None` for one that only another version of the service knows, which must not stand in
    /// the way of the others.
    pub fn known(&self) -> Option<EventType> {
        self.kind.parse().ok()
    }

    /// Whether somebody with these permissions may see it.
    pub fn is_visible(&self, permissions: PermissionSet) -> bool {
        self.known().is_some_and(|kind| permissions.contains(kind.permission()))
    }

    pub const COLUMNS: &str = "id, position, occurred_at, type, schema_version, actor_kind, actor_id, api_key_id, \
         resource_id, data, changes";

    pub fn from_row(row: &Row, organization: Uuid) -> Result<Self> {
        Ok(Self {
            id: row.try_get("id")?,
            kind: row.try_get("type")?,
            schema_version: row.try_get("schema_version")?,
            timestamp: row.try_get("occurred_at")?,
            organization_id: organization,
            position: row.try_get("position")?,
            actor_kind: row.try_get("actor_kind")?,
            actor_id: row.try_get("actor_id")?,
            api_key_id: row.try_get("api_key_id")?,
            resource_id: row.try_get("resource_id")?,
            data: row.try_get::<_, Jsonb<_>>("data")?.0,
            changes: row.try_get::<_, Jsonb<_>>("changes")?.0,
        })
    }
}

/// Records a change: what is told of it, and the entry in the audit log. Answers the event's id.
pub async fn record(
    tx: &TenantTx,
    app: &App,
    who: impl Into<Actor>,
    what: EventType,
    resource: Uuid,
    changes: Changes,
) -> Result<Uuid> {
    let who = who.into();
    let (logged, told) = join!(
        audit::record(tx, app, &who, what.name(), resource, &changes),
        emit(tx, app, &who, what, resource, &changes)
    );
    logged?;
    told
}

/// Records many changes at once: of each what is told of it, and its entry in the audit log. Those of a batch have
/// one statement together for each table.
pub async fn record_many(
    tx: &TenantTx,
    app: &App,
    who: &Actor,
    what: &[(EventType, Uuid, Changes)],
) -> Result<()> {
    let (logged, told) = join!(audit::record_many(tx, app, who, what), emit_many(tx, app, who, what));
    logged.and(told)
}

/// Records many events beside those that their changes have in the audit log.
pub async fn emit_many(
    tx: &TenantTx,
    app: &App,
    who: &Actor,
    what: &[(EventType, Uuid, Changes)],
) -> Result<()> {
    if what.is_empty() {
        return Ok(());
    }
    let (organization, now) = (tx.organization(), app.clock.now());
    let ids: Vec<Uuid> = what.iter().map(|_| Uuid::now_v7()).collect();
    let kinds: Vec<EventType> = what.iter().map(|(kind, _, _)| *kind).collect();
    let versions: Vec<i32> = what.iter().map(|(kind, _, _)| kind.schema_version()).collect();
    let resources: Vec<Uuid> = what.iter().map(|(_, resource, _)| *resource).collect();
    let objects: Vec<&Value> = what.iter().map(|(_, _, changes)| changes.object()).collect();
    let fields: Vec<&Value> = what.iter().map(|(_, _, changes)| changes.fields()).collect();
    let events: [&(dyn ToSql + Sync); 10] =
        [&ids, &now, &kinds, &versions, &who.kind, &who.id, &who.key, &resources, &objects, &fields];
    let pending: [&(dyn ToSql + Sync); 2] = [&organization, &ids];
    let (events, pending) = join!(
        tx.execute(
            "insert into events (id, occurred_at, type, schema_version, actor_kind, actor_id, api_key_id, resource_id, \
             data, changes) select e.id, $2::timestamptz, e.type, e.version, $5::text, $6::uuid, $7::uuid, e.resource, \
             e.data, e.changes from unnest($1::uuid[], $3::text[], $4::integer[], $8::uuid[], $9::jsonb[], \
             $10::jsonb[]) as e (id, type, version, resource, data, changes)",
            &events,
        ),
        tx.execute(
            "insert into platform.outbox (organization_id, event_id) select $1::uuid, e.id \
             from unnest($2::uuid[]) with ordinality as e (id, place) order by e.place",
            &pending,
        ),
    );
    events.and(pending)?;
    tx.announce(OUTBOX);
    Ok(())
}

/// Records an event beside the one that its change has in the audit log.
pub async fn emit(
    tx: &TenantTx,
    app: &App,
    who: &Actor,
    what: EventType,
    resource: Uuid,
    changes: &Changes,
) -> Result<Uuid> {
    let (id, organization, now) = (Uuid::now_v7(), tx.organization(), app.clock.now());
    let version = what.schema_version();
    let event: [&(dyn ToSql + Sync); 10] = [
        &id,
        &now,
        &what,
        &version,
        &who.kind,
        &who.id,
        &who.key,
        &resource,
        changes.object(),
        changes.fields(),
    ];
    let pending: [&(dyn ToSql + Sync); 2] = [&organization, &id];
    let (event, pending) = join!(
        tx.execute(
            "insert into events (id, occurred_at, type, schema_version, actor_kind, actor_id, api_key_id, resource_id, \
             data, changes) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
            &event,
        ),
        tx.execute("insert into platform.outbox (organization_id, event_id) values ($1, $2)", &pending),
    );
    event.and(pending)?;
    tx.announce(OUTBOX);
    Ok(id)
}
