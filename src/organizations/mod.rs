//! Organizations: the tenants, who belongs to them, and how they want things.

pub mod api_keys;
pub mod domains;
pub mod invitations;
pub mod logo;
pub mod members;
pub mod modules;
pub mod ownership;
pub mod settings;

use std::sync::LazyLock;

use chrono::{DateTime, TimeDelta, Utc};
use poem_openapi::{
    Object, OpenApi,
    param::{Path, Query},
    types::{Example, MaybeUndefined},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    accounts::profile,
    api::Tag,
    app::App,
    audit::{Actor, Changes},
    auth::{
        Access, Can, Role, User,
        permissions::{OrganizationDelete, OrganizationRead, SettingsManage},
        sealing::{hex, random},
        withdraw,
    },
    billing::{Plan, stop_billing},
    db::{Row, Select, TenantTx, Tx},
    error::{Code, Error, OnConstraint, Result},
    events::{self, EventType},
    http::{Body, Created, IfMatch, Json, NoContent, Single, Versioned},
    page::{ListCursor, Order, Page, Paging},
    tenancy::{self, RESERVED, fleet},
    types::{
        Country, EXAMPLE_ID, Name, Prose, Slug, Text, Timezone, WebUrl, change, change_optional, example,
        example_time, text_enum,
    },
};

/// For so long a deleted organization can be restored.
pub const RESTORABLE: TimeDelta = TimeDelta::days(30);

static DEFAULT_TIMEZONE: LazyLock<Timezone> = LazyLock::new(|| example("Asia/Singapore"));

text_enum! {
    /// Whether an organization may be used.
    OrganizationStatus { Active = "active", Suspended = "suspended" }
}

/// An organization, as one of its members sees it.
#[derive(Clone, Debug, Serialize, Object)]
#[oai(example)]
pub struct Organization {
    pub id: Uuid,
    /// Its subdomain.
    pub slug: Slug,
    pub name: Name,
    pub description: Option<Prose>,
    pub industry: Option<Text<1, 100>>,
    pub size_range: Option<Text<1, 50>>,
    pub country_code: Option<Country>,
    pub timezone: Timezone,
    /// Where everybody can see its logo.
    pub logo_url: Option<WebUrl>,
    pub plan: Plan,
    /// Whether members need a second factor.
    pub require_mfa: bool,
    pub status: OrganizationStatus,
    /// What the caller is in it.
    pub role: Role,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
    /// Since when it is deleted; it can be restored for 30 days.
    pub deleted_at: Option<DateTime<Utc>>,
    #[serde(skip)]
    #[oai(skip)]
    pub version: i64,
}

impl Versioned for Organization {
    fn version(&self) -> i64 {
        self.version
    }
}

impl Example for Organization {
    fn example() -> Self {
        Self {
            id: EXAMPLE_ID,
            slug: example("acme"),
            name: example("Acme Pte. Ltd."),
            description: None,
            industry: Some(example("Manufacturing")),
            size_range: Some(example("11-50")),
            country_code: Some(example("SG")),
            timezone: example("Asia/Singapore"),
            logo_url: None,
            plan: Plan::Free,
            require_mfa: false,
            status: OrganizationStatus::Active,
            role: Role::Owner,
            created_at: example_time(),
            updated_at: example_time(),
            deleted_at: None,
            version: 1,
        }
    }
}

/// An organization to be made.
#[derive(Debug, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(deny_unknown_fields, example)]
pub struct NewOrganization {
    pub name: Name,
    /// Made from the name where it is absent.
    pub slug: Option<Slug>,
    pub description: Option<Prose>,
    pub industry: Option<Text<1, 100>>,
    pub size_range: Option<Text<1, 50>>,
    pub country_code: Option<Country>,
    pub timezone: Option<Timezone>,
}

impl NewOrganization {
    /// One that has only a name yet.
    pub fn named(name: Name) -> Self {
        Self {
            name,
            slug: None,
            description: None,
            industry: None,
            size_range: None,
            country_code: None,
            timezone: None,
        }
    }
}

impl Example for NewOrganization {
    fn example() -> Self {
        Self { country_code: Some(example("SG")), ..Self::named(example("Acme Pte. Ltd.")) }
    }
}

/// What changes; what is absent stays, null empties.
#[derive(Debug, Default, Deserialize, Object)]
#[serde(deny_unknown_fields, default)]
#[oai(deny_unknown_fields, example)]
pub struct OrganizationChange {
    pub name: MaybeUndefined<Name>,
    pub slug: MaybeUndefined<Slug>,
    pub description: MaybeUndefined<Prose>,
    pub industry: MaybeUndefined<Text<1, 100>>,
    pub size_range: MaybeUndefined<Text<1, 50>>,
    pub country_code: MaybeUndefined<Country>,
    pub timezone: MaybeUndefined<Timezone>,
    /// Members without a second factor can then do nothing but set one up.
    pub require_mfa: MaybeUndefined<bool>,
}

impl Example for OrganizationChange {
    fn example() -> Self {
        Self { industry: MaybeUndefined::Value(example("Logistics")), ..Self::default() }
    }
}

pub struct OrganizationsApi;

#[OpenApi(tag = "Tag::Organizations")]
impl OrganizationsApi {
    /// Create an organization.
    ///
    /// It gets a schema of its own at once, and the caller is its owner.
    #[oai(path = "/organizations", method = "post", operation_id = "create_organization")]
    async fn create(&self, who: User, new: Body<NewOrganization>) -> Result<Created<Organization>> {
        let (tx, _) = fleet::begin_new_tenant(&who.app.db, &who.app.directory).await?;
        let organization = insert(&tx, &who.app, &Actor::from(&who), new.0).await?;
        tx.commit().await?;
        who.app.directory.forget(organization.id);
        Ok(Created { location: format!("/api/v1/organizations/{}", organization.id), value: organization })
    }

    /// List one's organizations.
    #[oai(path = "/organizations", method = "get", operation_id = "list_organizations")]
    async fn list(
        &self,
        who: User,
        page: Query<Option<u32>>,
        page_size: Query<Option<u32>>,
        cursor: Query<Option<ListCursor>>,
        /// Those that one deleted and can still restore, instead of those in use.
        deleted: Query<Option<bool>>,
    ) -> Result<Json<Page<Organization>>> {
        let paging = Paging::new(page.0, page_size.0, cursor.0)?;
        let since = who.app.clock.now() - RESTORABLE;
        let tx = who.app.db.begin().await?;
        let select = Select::new(COLUMNS, FROM).and("m.user_id = ? and m.is_active", &who.id);
        let select = match deleted.0 {
            Some(true) => select.and("m.role = 'owner' and o.deleted_at > ?", &since),
            _ => select.only("o.deleted_at is null"),
        };
        let page = select.page(&tx, &Order::up("o.name", "text", "o.id"), &paging, from_row).await?;
        Ok(Json(page))
    }

    /// See an organization.
    #[oai(path = "/organizations/:organization_id", method = "get", operation_id = "get_organization")]
    async fn get(
        &self,
        who: Can<OrganizationRead>,
        #[oai(name = "organization_id")] _id: Path<Uuid>,
    ) -> Result<Single<Organization>> {
        let tx = who.begin().await?;
        Ok(Single(find(&tx, who.tenant.id(), who.user_id).await?))
    }

    /// Change an organization.
    #[oai(path = "/organizations/:organization_id", method = "patch", operation_id = "update_organization")]
    async fn update(
        &self,
        who: Can<SettingsManage>,
        #[oai(name = "organization_id")] _id: Path<Uuid>,
        expected: IfMatch,
        to: Body<OrganizationChange>,
    ) -> Result<Single<Organization>> {
        let tx = who.begin().await?;
        lock(&tx, who.tenant.id()).await?;
        let mut organization = find(&tx, who.tenant.id(), who.user_id).await?;
        expected.check(organization.version)?;
        let before = organization.clone();
        apply(&mut organization, to.0)?;
        if organization.require_mfa
            && !before.require_mfa
            && !profile::find(&tx, who.user_id).await?.mfa_enabled
        {
            return Err(Error::conflict(
                "Set up a second factor of your own first, or you would be locked out.",
            ));
        }
        organization.updated_at = who.app.clock.now();
        organization.version += 1;
        store(&tx, &organization).await?;
        tenancy::changed(&tx, organization.id).await?;
        let changes = Changes::between(&told(&before), &told(&organization));
        events::record(&tx, &who.app, &*who, EventType::OrganizationUpdated, organization.id, changes)
            .await?;
        tx.commit().await?;
        who.app.directory.forget(organization.id);
        Ok(Single(organization))
    }

    /// Delete an organization.
    ///
    /// Nobody can reach it any more, and nothing more is charged for it. Its owner can restore it for 30 days.
    #[oai(path = "/organizations/:organization_id", method = "delete", operation_id = "delete_organization")]
    async fn delete(
        &self,
        who: Can<OrganizationDelete>,
        #[oai(name = "organization_id")] _id: Path<Uuid>,
        expected: IfMatch,
    ) -> Result<NoContent> {
        let tx = who.begin().await?;
        lock(&tx, who.tenant.id()).await?;
        let organization = find(&tx, who.tenant.id(), who.user_id).await?;
        if organization.deleted_at.is_some() {
            return Err(tenancy::unknown());
        }
        expected.check(organization.version)?;
        set_deleted(&tx, &who.app, organization.id, Some(who.app.clock.now())).await?;
        domains::release(&tx).await?;
        withdraw(&tx, &who.app, Access::Organization { organization: organization.id }, "deleted").await?;
        stop_billing(&tx, &who.app).await?;
        events::record(
            &tx,
            &who.app,
            &*who,
            EventType::OrganizationDeleted,
            organization.id,
            Changes::none(&told(&organization)),
        )
        .await?;
        tx.commit().await?;
        who.app.directory.forget(organization.id);
        Ok(NoContent)
    }

    /// Restore a deleted organization.
    #[oai(
        path = "/organizations/:organization_id/restore",
        method = "post",
        operation_id = "restore_organization"
    )]
    async fn restore(
        &self,
        who: Can<OrganizationDelete, true>,
        #[oai(name = "organization_id")] _id: Path<Uuid>,
    ) -> Result<Json<Organization>> {
        let tx = who.begin().await?;
        lock(&tx, who.tenant.id()).await?;
        let organization = find(&tx, who.tenant.id(), who.user_id).await?;
        let Some(deleted_at) = organization.deleted_at else {
            return Err(Error::conflict("The organization is not deleted."));
        };
        if fleet::operation::current(&tx, organization.id).await?.as_deref() == Some("erase") {
            return Err(Error::conflict("The organization is being erased."));
        }
        if who.app.clock.now() - deleted_at > RESTORABLE {
            return Err(tenancy::unknown());
        }
        set_deleted(&tx, &who.app, organization.id, None).await?;
        tenancy::changed(&tx, organization.id).await?;
        events::record(
            &tx,
            &who.app,
            &*who,
            EventType::OrganizationRestored,
            organization.id,
            Changes::none(&told(&organization)),
        )
        .await?;
        let organization = find(&tx, organization.id, who.user_id).await?;
        tx.commit().await?;
        who.app.directory.forget(organization.id);
        Ok(Json(organization))
    }
}

const COLUMNS: &str = "o.id, o.slug, o.name, o.description, o.industry, o.size_range, o.country_code, o.timezone, \
     o.logo_url, o.plan, o.require_mfa, o.status, m.role, o.version, o.created_at, o.updated_at, o.deleted_at";
const FROM: &str =
    "platform.organizations o join platform.organization_members m on m.organization_id = o.id";

fn from_row(row: &Row) -> Result<Organization> {
    Ok(Organization {
        id: row.try_get("id")?,
        slug: row.try_get("slug")?,
        name: row.try_get("name")?,
        description: row.try_get("description")?,
        industry: row.try_get("industry")?,
        size_range: row.try_get("size_range")?,
        country_code: row.try_get("country_code")?,
        timezone: row.try_get("timezone")?,
        logo_url: row.try_get("logo_url")?,
        plan: row.try_get("plan")?,
        require_mfa: row.try_get("require_mfa")?,
        status: row.try_get("status")?,
        role: row.try_get("role")?,
        version: row.try_get("version")?,
        created_at: row.try_get("created_at")?,
        updated_at: row.try_get("updated_at")?,
        deleted_at: row.try_get("deleted_at")?,
    })
}

async fn find(tx: &Tx, id: Uuid, user: Uuid) -> Result<Organization> {
    let sql = format!("select {COLUMNS} from {FROM} where o.id = $1 and m.user_id = $2");
    from_row(&tx.query_opt(&sql, &[&id, &user]).await?.ok_or_else(tenancy::unknown)?)
}

/// Locks an organization's row; what counts or changes what it has comes one after the other.
pub async fn lock(tx: &Tx, id: Uuid) -> Result<()> {
    tx.query("select id from platform.organizations where id = $1 for no key update", &[&id]).await?;
    Ok(())
}

/// Makes the organization that `fleet::begin_new_tenant` has begun.
pub async fn insert(tx: &TenantTx, app: &App, owner: &Actor, new: NewOrganization) -> Result<Organization> {
    let id = tx.organization();
    let who = owner;
    let owner = who.id.ok_or_else(|| Error::internal("an organization is made for a user"))?;
    let now = app.clock.now();
    let given = new.slug.is_some();
    let mut slug = match new.slug {
        Some(slug) if RESERVED.contains(&slug.as_ref()) => {
            return Err(reserved(&slug));
        }
        Some(slug) => slug,
        None => match Slug::from_name(new.name.as_ref()) {
            Some(slug) if !RESERVED.contains(&slug.as_ref()) => slug,
            Some(slug) => slug.with_suffix(&suffix()?),
            None => {
                Slug::from_name(&format!("org {}", suffix()?)).ok_or_else(|| Error::internal("no slug"))?
            }
        },
    };
    let timezone = new.timezone.unwrap_or_else(|| DEFAULT_TIMEZONE.clone());
    loop {
        let inserted = tx
            .execute(
                "insert into platform.organizations (id, slug, name, description, industry, size_range, \
                 country_code, timezone, schema_id, created_by, created_at, updated_at) \
                 values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $11) \
                 on conflict on constraint organizations_slug_key do nothing",
                &[
                    &id,
                    &slug,
                    &new.name,
                    &new.description,
                    &new.industry,
                    &new.size_range,
                    &new.country_code,
                    &timezone,
                    &tx.schema().id(),
                    &owner,
                    &now,
                ],
            )
            .await?;
        if inserted == 1 {
            break;
        }
        if given {
            return Err(Error::taken("slug", format!("The slug {slug} is taken. Choose another.")));
        }
        slug = slug.with_suffix(&suffix()?);
    }
    members::insert(tx, id, owner, Role::Owner, now).await?;
    tenancy::changed(tx, id).await?;
    let organization = find(tx, id, owner).await?;
    let changes = Changes::created(&told(&organization));
    events::record(tx, app, who.clone(), EventType::OrganizationCreated, id, changes).await?;
    Ok(organization)
}

fn reserved(slug: &Slug) -> Error {
    Error::field(
        Code::Validation,
        "slug",
        "reserved",
        format!("The name {slug} is reserved. Choose another."),
    )
}

/// Six random characters that make a taken slug free.
fn suffix() -> Result<String> {
    Ok(hex(&random::<3>()?))
}

fn apply(organization: &mut Organization, to: OrganizationChange) -> Result<()> {
    if let MaybeUndefined::Value(slug) = &to.slug
        && RESERVED.contains(&slug.as_ref())
    {
        return Err(reserved(slug));
    }
    change(&mut organization.name, "name", to.name)?;
    change(&mut organization.slug, "slug", to.slug)?;
    change(&mut organization.timezone, "timezone", to.timezone)?;
    change(&mut organization.require_mfa, "require_mfa", to.require_mfa)?;
    change_optional(&mut organization.description, to.description);
    change_optional(&mut organization.industry, to.industry);
    change_optional(&mut organization.size_range, to.size_range);
    change_optional(&mut organization.country_code, to.country_code);
    Ok(())
}

async fn store(tx: &Tx, organization: &Organization) -> Result<()> {
    tx.execute(
        "update platform.organizations set slug = $2, name = $3, description = $4, industry = $5, size_range = $6, \
         country_code = $7, timezone = $8, require_mfa = $9, version = $10, updated_at = $11 where id = $1",
        &[
            &organization.id,
            &organization.slug,
            &organization.name,
            &organization.description,
            &organization.industry,
            &organization.size_range,
            &organization.country_code,
            &organization.timezone,
            &organization.require_mfa,
            &organization.version,
            &organization.updated_at,
        ],
    )
    .await
    .on_constraint("organizations_slug_key", || {
        Error::taken("slug", format!("The slug {} is taken. Choose another.", organization.slug))
    })?;
    Ok(())
}

async fn set_deleted(tx: &Tx, app: &App, id: Uuid, at: Option<DateTime<Utc>>) -> Result<()> {
    tx.execute(
        "update platform.organizations set deleted_at = $2, version = version + 1, updated_at = $3 where id = $1",
        &[&id, &at, &app.clock.now()],
    )
    .await?;
    Ok(())
}

/// What is told of an organization: nothing of what the caller is in it.
fn told(organization: &Organization) -> Value {
    let mut told = json!(organization);
    if let Some(fields) = told.as_object_mut() {
        fields.remove("role");
    }
    told
}
