//! The fleet of schemas, as platform staff see it.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use poem_openapi::{Object, OpenApi, param::Query, types::Example};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio_postgres::types::Json as Jsonb;
use uuid::Uuid;

use crate::{
    api::Tag,
    auth::Superuser,
    db::{
        Row, Select,
        migrations::{Set, all_sets},
    },
    error::Result,
    http::Json,
    page::{ListCursor, Order, Page, Paging},
    tenancy::fleet::{self, FleetStanding},
    types::{EXAMPLE_ID, Slug, example, example_time, text_enum},
};

text_enum! {
    /// How a schema is.
    FleetSchemaState {
        /// All its modules are where this version of the service wants them, or further.
        Current = "current",
        Behind = "behind",
        /// Its last migration failed.
        Failed = "failed",
        /// Being filled by an operation.
        Building = "building",
        /// Another one has taken its place.
        Retired = "retired",
    }
}

/// A schema.
#[derive(Debug, Serialize, Object)]
#[oai(example)]
pub struct FleetSchema {
    pub id: Uuid,
    /// Its name on the server.
    pub name: String,
    pub state: FleetSchemaState,
    /// Whose it is, or was; null for one that is kept ready.
    pub organization_id: Option<Uuid>,
    pub slug: Option<Slug>,
    /// The name of the server.
    pub database: String,
    pub modules: Vec<FleetSchemaModule>,
    pub created_at: DateTime<Utc>,
}

/// A module of a schema.
#[derive(Debug, Serialize, Deserialize, Object)]
pub struct FleetSchemaModule {
    pub module: String,
    pub version: i64,
    /// Runs that failed since the last one that did not.
    pub attempts: i32,
    pub last_error: Option<String>,
    pub failed_at: Option<DateTime<Utc>>,
}

impl Example for FleetSchema {
    fn example() -> Self {
        Self {
            id: EXAMPLE_ID,
            name: format!("tenant_{}", EXAMPLE_ID.simple()),
            state: FleetSchemaState::Failed,
            organization_id: Some(EXAMPLE_ID),
            slug: Some(example("acme")),
            database: "primary".into(),
            modules: vec![FleetSchemaModule {
                module: "work".into(),
                version: 1,
                attempts: 1,
                last_error: Some("canceling statement due to lock timeout".into()),
                failed_at: Some(example_time()),
            }],
            created_at: example_time(),
        }
    }
}

text_enum! {
    /// What became of an operation.
    FleetOperationState {
        Running = "running",
        Done = "done",
        Failed = "failed",
    }
}

/// Something that was done to an organization as a whole: export, restore, move.
#[derive(Debug, Serialize, Object)]
#[oai(example)]
pub struct FleetOperation {
    pub id: Uuid,
    pub kind: String,
    pub organization_id: Option<Uuid>,
    pub state: FleetOperationState,
    pub about: BTreeMap<String, Value>,
    pub error: Option<String>,
    pub started_at: DateTime<Utc>,
    /// Its last sign of life; one that runs gives one every few seconds.
    pub beat_at: DateTime<Utc>,
    pub finished_at: Option<DateTime<Utc>>,
}

impl Example for FleetOperation {
    fn example() -> Self {
        Self {
            id: EXAMPLE_ID,
            kind: "export".into(),
            organization_id: Some(EXAMPLE_ID),
            state: FleetOperationState::Done,
            about: BTreeMap::from([("to".into(), json!("acme.tar.gz"))]),
            error: None,
            started_at: example_time(),
            beat_at: example_time(),
            finished_at: Some(example_time()),
        }
    }
}

pub struct AdminFleetApi;

#[OpenApi(tag = "Tag::Admin")]
impl AdminFleetApi {
    /// See where all schemas stand: versions, servers, the last migration.
    #[oai(path = "/admin/fleet", method = "get", operation_id = "admin_get_fleet")]
    async fn standing(&self, who: Superuser) -> Result<Json<FleetStanding>> {
        Ok(Json(fleet::standing(&who.0.app).await?))
    }

    /// List schemas.
    #[oai(path = "/admin/fleet/schemas", method = "get", operation_id = "admin_list_schemas")]
    async fn schemas(
        &self,
        who: Superuser,
        page: Query<Option<u32>>,
        page_size: Query<Option<u32>>,
        cursor: Query<Option<ListCursor>>,
        state: Query<Option<FleetSchemaState>>,
        organization_id: Query<Option<Uuid>>,
    ) -> Result<Json<Page<FleetSchema>>> {
        let paging = Paging::new(page.0, page_size.0, cursor.0)?;
        let sets = all_sets();
        let wanted: Value = sets
            .iter()
            .map(|set| json!({"module": set.module, "version": set.latest(), "optional": set.optional}))
            .collect();
        let tx = who.0.app.db.begin().await?;
        let select = Select::new(SCHEMA_COLUMNS, SCHEMAS)
            .and_if("coalesce(o.id, s.retired_from) = ?", &organization_id.0);
        let select = match state.0 {
            None => select,
            Some(FleetSchemaState::Building) => select.only("s.state = 'building'"),
            Some(FleetSchemaState::Retired) => select.only("s.state = 'retired'"),
            Some(FleetSchemaState::Failed) => select.only(LIVING).only(FAILED),
            Some(FleetSchemaState::Behind) => {
                select.only(LIVING).only(&format!("not {FAILED}")).and(BEHIND, &wanted)
            }
            Some(FleetSchemaState::Current) => {
                select.only(LIVING).only(&format!("not {FAILED}")).and(&format!("not {BEHIND}"), &wanted)
            }
        };
        let order = Order::up("s.id", "uuid", "s.id");
        Ok(Json(select.page(&tx, &order, &paging, |row| schema_from_row(row, &sets)).await?))
    }

    /// List what was done to organizations as a whole, newest first.
    #[oai(path = "/admin/fleet/operations", method = "get", operation_id = "admin_list_operations")]
    #[allow(clippy::too_many_arguments)]
    async fn operations(
        &self,
        who: Superuser,
        page: Query<Option<u32>>,
        page_size: Query<Option<u32>>,
        cursor: Query<Option<ListCursor>>,
        state: Query<Option<FleetOperationState>>,
        kind: Query<Option<String>>,
        organization_id: Query<Option<Uuid>>,
    ) -> Result<Json<Page<FleetOperation>>> {
        let paging = Paging::new(page.0, page_size.0, cursor.0)?;
        let tx = who.0.app.db.begin().await?;
        let page = Select::new(OPERATION_COLUMNS, "platform.fleet_operations")
            .and_if("state = ?", &state.0)
            .and_if("kind = ?", &kind.0)
            .and_if("organization_id = ?", &organization_id.0)
            .page(&tx, &Order::down("started_at", "timestamptz", "id"), &paging, operation_from_row)
            .await?;
        Ok(Json(page))
    }
}

const SCHEMA_COLUMNS: &str = "s.id, s.state, coalesce(o.id, s.retired_from) as organization_id, o.slug, \
     d.name as database, s.created_at, \
     case s.state when 'retired' then 'retired_' else 'tenant_' end || replace(s.id::text, '-', '') as name, \
     (select coalesce(jsonb_agg(jsonb_build_object('module', m.module, 'version', m.version, \
       'attempts', m.attempts, 'last_error', m.last_error, 'failed_at', m.failed_at) order by m.module), '[]') \
      from platform.tenant_schema_modules m where m.schema_id = s.id) as modules";

const SCHEMAS: &str = "platform.tenant_schemas s join platform.databases d on d.id = s.database_id \
     left join platform.organizations o on o.schema_id = s.id";

const LIVING: &str = "s.state in ('spare', 'taken')";

const FAILED: &str = "exists (select 1 from platform.tenant_schema_modules m \
     where m.schema_id = s.id and m.failed_at is not null)";

const BEHIND: &str = "exists (select 1 from jsonb_to_recordset(?) as wanted (module text, version bigint, optional boolean) \
     left join platform.tenant_schema_modules m on m.schema_id = s.id and m.module = wanted.module \
     where (m.module is not null or not wanted.optional) and coalesce(m.version, 0) < wanted.version)";

fn schema_from_row(row: &Row, sets: &[Set]) -> Result<FleetSchema> {
    let modules = row.try_get::<_, Jsonb<Vec<FleetSchemaModule>>>("modules")?.0;
    let state = match row.try_get("state")? {
        "building" => FleetSchemaState::Building,
        "retired" => FleetSchemaState::Retired,
        _ if modules.iter().any(|module| module.failed_at.is_some()) => FleetSchemaState::Failed,
        _ if sets.iter().any(|set| is_behind(&modules, set)) => FleetSchemaState::Behind,
        _ => FleetSchemaState::Current,
    };
    Ok(FleetSchema {
        id: row.try_get("id")?,
        name: row.try_get("name")?,
        state,
        organization_id: row.try_get("organization_id")?,
        slug: row.try_get("slug")?,
        database: row.try_get("database")?,
        modules,
        created_at: row.try_get("created_at")?,
    })
}

fn is_behind(modules: &[FleetSchemaModule], set: &Set) -> bool {
    match modules.iter().find(|module| module.module == set.module) {
        Some(module) => module.version < set.latest(),
        None => !set.optional,
    }
}

const OPERATION_COLUMNS: &str =
    "id, kind, organization_id, state, about, error, started_at, beat_at, finished_at";

fn operation_from_row(row: &Row) -> Result<FleetOperation> {
    Ok(FleetOperation {
        id: row.try_get("id")?,
        kind: row.try_get("kind")?,
        organization_id: row.try_get("organization_id")?,
        state: row.try_get("state")?,
        about: row.try_get::<_, Jsonb<_>>("about")?.0,
        error: row.try_get("error")?,
        started_at: row.try_get("started_at")?,
        beat_at: row.try_get("beat_at")?,
        finished_at: row.try_get("finished_at")?,
    })
}
