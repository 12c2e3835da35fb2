//! Organizations and their keys, as platform staff see them.

use chrono::{DateTime, Utc};
use poem_openapi::{
    Object, OpenApi,
    param::{Path, Query},
    types::Example,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use crate::{
    accounts::security_events::{self, About, SecurityEventType},
    api::Tag,
    audit::{self, Actor, Changes},
    auth::{Access, Permission, Superuser, permissions::known, withdraw},
    billing::{Plan, override_plan},
    db::{Row, Select, TenantTx, Tx},
    error::{Error, Result},
    events::{self, EventType},
    http::{Body, IfMatch, Json, NoContent, Single, Versioned},
    organizations::{self, OrganizationStatus, api_keys},
    page::{ListCursor, Order, Page, Paging},
    tenancy::{self, Tenant, fleet},
    types::{EXAMPLE_ID, Name, Slug, Text, example, example_time},
};

/// An organization.
#[derive(Clone, Debug, Serialize, Object)]
#[oai(example)]
pub struct AdminOrganization {
    pub id: Uuid,
    pub slug: Slug,
    pub name: Name,
    pub plan: Plan,
    pub status: OrganizationStatus,
    pub suspended_because: Option<String>,
    pub members: i64,
    pub created_at: DateTime<Utc>,
    pub deleted_at: Option<DateTime<Utc>>,
    #[serde(skip)]
    #[oai(skip)]
    pub version: i64,
}

impl Versioned for AdminOrganization {
    fn version(&self) -> i64 {
        self.version
    }
}

impl Example for AdminOrganization {
    fn example() -> Self {
        Self {
            id: EXAMPLE_ID,
            slug: example("acme"),
            name: example("Acme Pte. Ltd."),
            plan: Plan::Starter,
            status: OrganizationStatus::Active,
            suspended_because: None,
            members: 7,
            created_at: example_time(),
            deleted_at: None,
            version: 1,
        }
    }
}

/// Why an organization is suspended; for the records.
#[derive(Debug, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(deny_unknown_fields, example)]
pub struct Suspension {
    pub reason: Text<1, 1000>,
}

impl Example for Suspension {
    fn example() -> Self {
        Self { reason: example("Sends spam; ticket 4711") }
    }
}

/// The plan to be, whatever is paid for; null gives back the one that is.
#[derive(Debug, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(deny_unknown_fields, example)]
pub struct PlanOverride {
    pub plan: Option<Plan>,
}

impl Example for PlanOverride {
    fn example() -> Self {
        Self { plan: Some(Plan::Enterprise) }
    }
}

/// An API key of some organization.
#[derive(Clone, Debug, Serialize, Object)]
#[oai(example)]
pub struct AdminApiKey {
    pub id: Uuid,
    pub organization_id: Uuid,
    pub name: Name,
    pub hint: String,
    pub scopes: Vec<Permission>,
    pub created_by: Uuid,
    pub created_at: DateTime<Utc>,
    pub expires_at: Option<DateTime<Utc>>,
    pub last_used_at: Option<DateTime<Utc>>,
    #[serde(skip)]
    #[oai(skip)]
    pub version: i64,
}

impl Example for AdminApiKey {
    fn example() -> Self {
        Self {
            id: EXAMPLE_ID,
            organization_id: EXAMPLE_ID,
            name: example("Import from the shop"),
            hint: "rh_live_4fQz".into(),
            scopes: vec![Permission::ProjectsRead],
            created_by: EXAMPLE_ID,
            created_at: example_time(),
            expires_at: None,
            last_used_at: Some(example_time()),
            version: 1,
        }
    }
}

pub struct AdminOrganizationsApi;

#[OpenApi(tag = "Tag::Admin")]
impl AdminOrganizationsApi {
    /// List organizations.
    #[oai(path = "/admin/organizations", method = "get", operation_id = "admin_list_organizations")]
    #[allow(clippy::too_many_arguments)]
    async fn list(
        &self,
        who: Superuser,
        page: Query<Option<u32>>,
        page_size: Query<Option<u32>>,
        cursor: Query<Option<ListCursor>>,
        /// The beginning of a slug.
        search: Query<Option<String>>,
        plan: Query<Option<Plan>>,
        status: Query<Option<OrganizationStatus>>,
    ) -> Result<Json<Page<AdminOrganization>>> {
        let paging = Paging::new(page.0, page_size.0, cursor.0)?;
        let tx = who.0.app.db.begin().await?;
        let page = Select::new(COLUMNS, "platform.organizations o")
            .and_if("starts_with(o.slug, ?)", &search.0)
            .and_if("o.plan = ?", &plan.0)
            .and_if("o.status = ?", &status.0)
            .page(&tx, &Order::down("o.created_at", "timestamptz", "o.id"), &paging, from_row)
            .await?;
        Ok(Json(page))
    }

    /// See an organization.
    #[oai(
        path = "/admin/organizations/:organization_id",
        method = "get",
        operation_id = "admin_get_organization"
    )]
    async fn get(&self, who: Superuser, organization_id: Path<Uuid>) -> Result<Single<AdminOrganization>> {
        let tx = who.0.app.db.begin().await?;
        Ok(Single(find(&tx, organization_id.0).await?))
    }

    /// Suspend an organization: nobody gets in, and nothing is lost.
    #[oai(
        path = "/admin/organizations/:organization_id/suspend",
        method = "post",
        operation_id = "admin_suspend_organization"
    )]
    async fn suspend(
        &self,
        who: Superuser,
        organization_id: Path<Uuid>,
        why: Body<Suspension>,
    ) -> Result<Single<AdminOrganization>> {
        let reason = Some(why.0.reason.to_string());
        set_status(&who, organization_id.0, OrganizationStatus::Suspended, reason).await
    }

    /// Let a suspended organization in again.
    #[oai(
        path = "/admin/organizations/:organization_id/resume",
        method = "post",
        operation_id = "admin_resume_organization"
    )]
    async fn resume(&self, who: Superuser, organization_id: Path<Uuid>) -> Result<Single<AdminOrganization>> {
        set_status(&who, organization_id.0, OrganizationStatus::Active, None).await
    }

    /// Give an organization another plan.
    #[oai(
        path = "/admin/organizations/:organization_id/plan",
        method = "put",
        operation_id = "admin_set_plan"
    )]
    async fn set_plan(
        &self,
        who: Superuser,
        organization_id: Path<Uuid>,
        expected: IfMatch,
        to: Body<PlanOverride>,
    ) -> Result<Single<AdminOrganization>> {
        let house = House::open(&who, organization_id.0).await?;
        expected.check(house.before.version)?;
        override_plan(&house.tx, &who.0.app, &Actor::from(&who), to.0.plan).await?;
        house.close(&who, "organization.plan_set", None).await
    }

    /// List API keys that work, of all organizations or of one.
    #[oai(path = "/admin/api-keys", method = "get", operation_id = "admin_list_api_keys")]
    #[allow(clippy::too_many_arguments)]
    async fn keys(
        &self,
        who: Superuser,
        page: Query<Option<u32>>,
        page_size: Query<Option<u32>>,
        cursor: Query<Option<ListCursor>>,
        organization_id: Query<Option<Uuid>>,
        created_by: Query<Option<Uuid>>,
    ) -> Result<Json<Page<AdminApiKey>>> {
        let paging = Paging::new(page.0, page_size.0, cursor.0)?;
        let now = who.0.app.clock.now();
        let tx = who.0.app.db.begin().await?;
        let page = Select::new(KEY_COLUMNS, "platform.api_keys")
            .and("revoked_at is null and (expires_at is null or expires_at > ?)", &now)
            .and_if("organization_id = ?", &organization_id.0)
            .and_if("created_by = ?", &created_by.0)
            .page(&tx, &Order::down("created_at", "timestamptz", "id"), &paging, key_from_row)
            .await?;
        Ok(Json(page))
    }

    /// Revoke an API key.
    #[oai(path = "/admin/api-keys/:key_id", method = "delete", operation_id = "admin_revoke_api_key")]
    async fn revoke_key(&self, who: Superuser, key_id: Path<Uuid>, expected: IfMatch) -> Result<NoContent> {
        let app = &*who.0.app;
        let missing = || Error::new(crate::error::Code::NotFound, "There is no such key that works.");
        let tx = app.db.begin().await?;
        let sql = format!("select {KEY_COLUMNS} from platform.api_keys where id = $1 and revoked_at is null");
        let key = key_from_row(&tx.query_opt(&sql, &[&key_id.0]).await?.ok_or_else(missing)?)?;
        drop(tx);
        expected.check(key.version)?;
        let tx = tenant(&who, key.organization_id).await?.begin().await?;
        if api_keys::end(&tx, app, key.id, "revoked by staff").await? == 0 {
            return Err(missing());
        }
        let ended = api_keys::find(&tx, key.id, app.clock.now()).await?;
        let (organization, changes) = (Some(key.organization_id), Changes::deleted(&key));
        audit::record_platform(&tx, app, &who, "api_key.revoked", Some(key.id), organization, &changes)
            .await?;
        events::record(&tx, app, &who, EventType::ApiKeyRevoked, key.id, Changes::none(&ended)).await?;
        let about = About { user: Some(key.created_by), organization };
        let details = json!({"api_key_id": key.id, "because": "revoked by staff"});
        let kind = SecurityEventType::ApiKeyRevoked;
        security_events::record(&tx, app, kind, about, &who.0.origin, details).await?;
        tx.commit().await?;
        Ok(NoContent)
    }
}

async fn tenant(who: &Superuser, id: Uuid) -> Result<Tenant> {
    fleet::tenant_by_id(&who.0.app.directory, id).await?.ok_or_else(tenancy::unknown)
}

/// An organization that staff are changing: a transaction in its schema, with its row locked.
struct House {
    tx: TenantTx,
    before: AdminOrganization,
}

impl House {
    async fn open(who: &Superuser, id: Uuid) -> Result<Self> {
        let tx = tenant(who, id).await?.begin().await?;
        organizations::lock(&tx, id).await?;
        let before = find(&tx, id).await?;
        Ok(Self { tx, before })
    }

    /// Records what was done in both logs, and commits. Without an `event` the organization was told
    /// already.
    async fn close(
        self,
        who: &Superuser,
        what: &str,
        event: Option<EventType>,
    ) -> Result<Single<AdminOrganization>> {
        let Self { tx, before } = self;
        let app = &*who.0.app;
        let after = find(&tx, before.id).await?;
        let organization = Some(after.id);
        let changes = Changes::between(&before, &after);
        audit::record_platform(&tx, app, who, what, organization, organization, &changes).await?;
        // The organization reads its own log; why it was suspended is for staff.
        let shown = |seen: &AdminOrganization| json!({"plan": seen.plan, "status": seen.status});
        if let Some(event) = event {
            let changes = Changes::between(&shown(&before), &shown(&after));
            events::record(&tx, app, who, event, after.id, changes).await?;
        }
        withdraw(&tx, app, Access::Organization { organization: after.id }, what).await?;
        tx.commit().await?;
        app.directory.forget(after.id);
        Ok(Single(after))
    }
}

async fn set_status(
    who: &Superuser,
    id: Uuid,
    status: OrganizationStatus,
    reason: Option<String>,
) -> Result<Single<AdminOrganization>> {
    let house = House::open(who, id).await?;
    if house.before.status == status {
        return Err(Error::conflict(format!("The organization is {status} already.")));
    }
    house
        .tx
        .execute(
            "update platform.organizations set status = $2, suspended_because = $3, version = version + 1, \
             updated_at = $4 where id = $1",
            &[&id, &status, &reason, &who.0.app.clock.now()],
        )
        .await?;
    let what = match status {
        OrganizationStatus::Suspended => EventType::OrganizationSuspended,
        OrganizationStatus::Active => EventType::OrganizationResumed,
    };
    house.close(who, what.name(), Some(what)).await
}

const COLUMNS: &str = "o.id, o.slug, o.name, o.plan, o.status, o.suspended_because, \
     (select count(*) from platform.organization_members m where m.organization_id = o.id) as members, \
     o.created_at, o.deleted_at, o.version";

fn from_row(row: &Row) -> Result<AdminOrganization> {
    Ok(AdminOrganization {
        id: row.try_get("id")?,
        slug: row.try_get("slug")?,
        name: row.try_get("name")?,
        plan: row.try_get("plan")?,
        status: row.try_get("status")?,
        suspended_because: row.try_get("suspended_because")?,
        members: row.try_get("members")?,
        created_at: row.try_get("created_at")?,
        deleted_at: row.try_get("deleted_at")?,
        version: row.try_get("version")?,
    })
}

async fn find(tx: &Tx, id: Uuid) -> Result<AdminOrganization> {
    let sql = format!("select {COLUMNS} from platform.organizations o where o.id = $1");
    from_row(&tx.query_opt(&sql, &[&id]).await?.ok_or_else(tenancy::unknown)?)
}

const KEY_COLUMNS: &str = "id, organization_id, name, hint, scopes, created_by, created_at, expires_at, last_used_at, \
     version";

fn key_from_row(row: &Row) -> Result<AdminApiKey> {
    let scopes: Vec<String> = row.try_get("scopes")?;
    Ok(AdminApiKey {
        id: row.try_get("id")?,
        organization_id: row.try_get("organization_id")?,
        name: row.try_get("name")?,
        hint: row.try_get("hint")?,
        scopes: known(&scopes),
        created_by: row.try_get("created_by")?,
        created_at: row.try_get("created_at")?,
        expires_at: row.try_get("expires_at")?,
        last_used_at: row.try_get("last_used_at")?,
        version: row.try_get("version")?,
    })
}
