//! Reading the audit log.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use futures_util::stream;
use poem_openapi::{Object, OpenApi, param::Query, types::Example};
use serde::Serialize;
use serde_json::{Value, json};
use tokio_postgres::types::Json as Jsonb;
use uuid::Uuid;

use super::ActorKind;
use crate::{
    api::Tag,
    auth::{Can, permissions::AuditRead},
    billing::{Feature, plans},
    db::{Row, Select},
    error::Result,
    http::{Json, JsonLines},
    page::{Cursor, CursorPage, Stretch},
    tenancy::Tenant,
    types::{EXAMPLE_ID, example_time},
};

/// Something that somebody did in the organization.
#[derive(Debug, Serialize, Object)]
#[oai(example)]
pub struct AuditEntry {
    pub id: Uuid,
    pub occurred_at: DateTime<Utc>,
    pub actor_id: Option<Uuid>,
    pub actor_kind: ActorKind,
    pub api_key_id: Option<Uuid>,
    /// `resource.what_happened`: `project.updated`.
    pub action: String,
    pub resource_id: Option<Uuid>,
    /// The changed fields, each with `before` and `after`; secrets are masked.
    pub changes: HashMap<String, Value>,
    pub request_id: Option<String>,
    pub address: Option<String>,
    pub user_agent: Option<String>,
    /// Its place in the sealed chain; absent for the moment until it is sealed.
    pub sequence: Option<i64>,
}

impl Example for AuditEntry {
    fn example() -> Self {
        Self {
            id: EXAMPLE_ID,
            occurred_at: example_time(),
            actor_id: Some(EXAMPLE_ID),
            actor_kind: ActorKind::User,
            api_key_id: None,
            action: "project.updated".into(),
            resource_id: Some(EXAMPLE_ID),
            changes: HashMap::from([("status".into(), json!({"before": "planning", "after": "active"}))]),
            request_id: Some("0190b6a1-7c1e-7000-8000-0000000000aa".into()),
            address: Some("203.0.113.7".into()),
            user_agent: Some("curl/8.1".into()),
            sequence: Some(42),
        }
    }
}

/// Something that platform staff did.
#[derive(Debug, Serialize, Object)]
#[oai(example)]
pub struct PlatformAuditEntry {
    pub id: Uuid,
    pub occurred_at: DateTime<Utc>,
    pub actor_id: Option<Uuid>,
    pub action: String,
    pub resource_id: Option<Uuid>,
    pub organization_id: Option<Uuid>,
    pub changes: HashMap<String, Value>,
    pub request_id: Option<String>,
    pub address: Option<String>,
    pub user_agent: Option<String>,
}

impl Example for PlatformAuditEntry {
    fn example() -> Self {
        let AuditEntry { id, occurred_at, actor_id, request_id, address, user_agent, .. } =
            AuditEntry::example();
        Self {
            id,
            occurred_at,
            actor_id,
            action: "organization.suspended".into(),
            resource_id: Some(EXAMPLE_ID),
            organization_id: Some(EXAMPLE_ID),
            changes: HashMap::new(),
            request_id,
            address,
            user_agent,
        }
    }
}

impl PlatformAuditEntry {
    pub const COLUMNS: &str = "id, occurred_at, actor_id, action, resource_id, organization_id, changes, request_id, \
         address, user_agent";

    pub fn from_row(row: &Row) -> Result<Self> {
        Ok(Self {
            id: row.try_get("id")?,
            occurred_at: row.try_get("occurred_at")?,
            actor_id: row.try_get("actor_id")?,
            action: row.try_get("action")?,
            resource_id: row.try_get("resource_id")?,
            organization_id: row.try_get("organization_id")?,
            changes: row.try_get::<_, Jsonb<_>>("changes")?.0,
            request_id: row.try_get("request_id")?,
            address: row.try_get("address")?,
            user_agent: row.try_get("user_agent")?,
        })
    }
}

pub const ENTRY_COLUMNS: &str = "id, occurred_at, actor_id, actor_kind, api_key_id, action, resource_id, changes, \
     request_id, address, user_agent, sequence";

pub fn entry_from_row(row: &Row) -> Result<AuditEntry> {
    Ok(AuditEntry {
        id: row.try_get("id")?,
        occurred_at: row.try_get("occurred_at")?,
        actor_id: row.try_get("actor_id")?,
        actor_kind: row.try_get("actor_kind")?,
        api_key_id: row.try_get("api_key_id")?,
        action: row.try_get("action")?,
        resource_id: row.try_get("resource_id")?,
        changes: row.try_get::<_, Jsonb<_>>("changes")?.0,
        request_id: row.try_get("request_id")?,
        address: row.try_get("address")?,
        user_agent: row.try_get("user_agent")?,
        sequence: row.try_get("sequence")?,
    })
}

pub struct AuditApi;

/// What entries a reader asks for.
#[derive(Clone)]
struct Filter {
    actor: Option<Uuid>,
    action: Option<String>,
    resource: Option<Uuid>,
    from: Option<DateTime<Utc>>,
    to: Option<DateTime<Utc>>,
}

impl Filter {
    async fn read(&self, tenant: &Tenant, stretch: &Stretch) -> Result<Vec<AuditEntry>> {
        let tx = tenant.begin().await?;
        let rows = Select::new(ENTRY_COLUMNS, "audit_log")
            .and_if("actor_id = ?", &self.actor)
            // `project` finds `project.created` and all others of projects.
            .and_if("(action = ? or starts_with(action, ? || '.'))", &self.action)
            .and_if("resource_id = ?", &self.resource)
            .and_if("occurred_at >= ?", &self.from)
            .and_if("occurred_at < ?", &self.to)
            .newest(&tx, stretch)
            .await?;
        rows.iter().map(entry_from_row).collect()
    }
}

#[OpenApi(tag = "Tag::Audit")]
impl AuditApi {
    /// List what was done in the organization, newest first.
    #[oai(path = "/audit-log", method = "get", operation_id = "list_audit_log")]
    #[allow(clippy::too_many_arguments)]
    async fn list(
        &self,
        who: Can<AuditRead>,
        actor_id: Query<Option<Uuid>>,
        /// `project.updated`, or `project` for everything about projects.
        action: Query<Option<String>>,
        resource_id: Query<Option<Uuid>>,
        /// Not before this time.
        from: Query<Option<DateTime<Utc>>>,
        /// Before this time.
        to: Query<Option<DateTime<Utc>>>,
        cursor: Query<Option<Cursor>>,
        limit: Query<Option<u32>>,
    ) -> Result<Json<CursorPage<AuditEntry>>> {
        let stretch = Stretch::new(cursor.0, limit.0)?;
        let filter =
            Filter { actor: actor_id.0, action: action.0, resource: resource_id.0, from: from.0, to: to.0 };
        Ok(Json(stretch.answer(filter.read(&who.tenant, &stretch).await?, |entry| entry.id)))
    }

    /// Export the log as JSON lines, newest first.
    #[oai(path = "/audit-log/export", method = "get", operation_id = "export_audit_log")]
    #[allow(clippy::too_many_arguments)]
    async fn export(
        &self,
        who: Can<AuditRead>,
        actor_id: Query<Option<Uuid>>,
        action: Query<Option<String>>,
        resource_id: Query<Option<Uuid>>,
        from: Query<Option<DateTime<Utc>>>,
        to: Query<Option<DateTime<Utc>>>,
    ) -> Result<JsonLines<AuditEntry>> {
        plans::require(&who, Feature::AuditExport).await?;
        let filter =
            Filter { actor: actor_id.0, action: action.0, resource: resource_id.0, from: from.0, to: to.0 };
        // The request is under way until its last line is sent.
        let (tenant, inside) = (who.tenant.clone(), who.inside.clone());
        // Stretch by stretch: no transaction stays open for as long as a client takes to read.
        let stretches = stream::try_unfold(Some(Stretch::first(1000)), move |stretch| {
            let (filter, tenant, inside) = (filter.clone(), tenant.clone(), inside.clone());
            async move {
                let _under_way = inside;
                let Some(stretch) = stretch else { return Ok(None) };
                let page = stretch.answer(filter.read(&tenant, &stretch).await?, |entry| entry.id);
                let next = page.next_cursor.map(|cursor| Stretch::after(cursor, 1000));
                Ok(Some((page.data, next)))
            }
        });
        Ok(JsonLines::new(stretches))
    }
}
