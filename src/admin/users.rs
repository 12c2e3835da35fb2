//! Accounts, as platform staff see them.

use chrono::{DateTime, Utc};
use poem_openapi::{
    Object, OpenApi,
    param::{Path, Query},
    types::{Example, MaybeUndefined},
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use crate::{
    accounts::{
        avatar, lockout, mfa,
        security_events::{self, About, SecurityEventType},
    },
    api::Tag,
    audit::{self, Changes, PlatformAuditEntry},
    auth::{Access, Superuser, withdraw},
    db::{Row, Select, Tx},
    error::{Code, Error, Result},
    http::{Body, IfMatch, Json, NoContent, Single, Versioned},
    page::{Cursor, CursorPage, ListCursor, Order, Page, Paging, Stretch},
    types::{EXAMPLE_ID, Email, Username, change, example, example_time},
};

/// An account.
#[derive(Clone, Debug, Serialize, Object)]
#[oai(example)]
pub struct AdminUser {
    pub id: Uuid,
    pub email: Email,
    pub username: Option<Username>,
    pub first_name: String,
    pub last_name: String,
    pub is_active: bool,
    pub is_superuser: bool,
    pub email_verified: bool,
    pub mfa_enabled: bool,
    /// Organizations that it belongs to.
    pub organizations: i64,
    pub last_login_at: Option<DateTime<Utc>>,
    pub created_at: DateTime<Utc>,
    #[serde(skip)]
    #[oai(skip)]
    pub version: i64,
}

impl Versioned for AdminUser {
    fn version(&self) -> i64 {
        self.version
    }
}

impl Example for AdminUser {
    fn example() -> Self {
        Self {
            id: EXAMPLE_ID,
            email: example("ana@example.com"),
            username: None,
            first_name: "Ana".into(),
            last_name: "Tan".into(),
            is_active: true,
            is_superuser: false,
            email_verified: true,
            mfa_enabled: true,
            organizations: 2,
            last_login_at: Some(example_time()),
            created_at: example_time(),
            version: 1,
        }
    }
}

/// What changes; what is absent stays.
#[derive(Debug, Default, Deserialize, Object)]
#[serde(deny_unknown_fields, default)]
#[oai(deny_unknown_fields, example)]
pub struct AdminUserChange {
    /// An account that is not active is out at once, with its sessions and keys.
    pub is_active: MaybeUndefined<bool>,
    pub is_superuser: MaybeUndefined<bool>,
}

impl Example for AdminUserChange {
    fn example() -> Self {
        Self { is_active: MaybeUndefined::Value(false), ..Self::default() }
    }
}

pub struct AdminUsersApi;

#[OpenApi(tag = "Tag::Admin")]
impl AdminUsersApi {
    /// List accounts.
    #[oai(path = "/admin/users", method = "get", operation_id = "admin_list_users")]
    #[allow(clippy::too_many_arguments)]
    async fn list(
        &self,
        who: Superuser,
        page: Query<Option<u32>>,
        page_size: Query<Option<u32>>,
        cursor: Query<Option<ListCursor>>,
        /// The beginning of an address or user name.
        search: Query<Option<String>>,
        is_active: Query<Option<bool>>,
        is_superuser: Query<Option<bool>>,
    ) -> Result<Json<Page<AdminUser>>> {
        let paging = Paging::new(page.0, page_size.0, cursor.0)?;
        let search = search.0.map(|text| text.to_lowercase());
        let tx = who.0.app.db.begin().await?;
        let page = Select::new(COLUMNS, "platform.users u")
            .only("u.deleted_at is null")
            .and_if("(starts_with(u.email, ?) or starts_with(lower(u.username), ?))", &search)
            .and_if("u.is_active = ?", &is_active.0)
            .and_if("u.is_superuser = ?", &is_superuser.0)
            .page(&tx, &Order::down("u.created_at", "timestamptz", "u.id"), &paging, from_row)
            .await?;
        Ok(Json(page))
    }

    /// See an account.
    #[oai(path = "/admin/users/:user_id", method = "get", operation_id = "admin_get_user")]
    async fn get(&self, who: Superuser, user_id: Path<Uuid>) -> Result<Single<AdminUser>> {
        let tx = who.0.app.db.begin().await?;
        Ok(Single(find(&tx, user_id.0).await?))
    }

    /// Activate, deactivate or promote an account.
    #[oai(path = "/admin/users/:user_id", method = "patch", operation_id = "admin_update_user")]
    async fn update(
        &self,
        who: Superuser,
        user_id: Path<Uuid>,
        expected: IfMatch,
        to: Body<AdminUserChange>,
    ) -> Result<Single<AdminUser>> {
        let app = &*who.0.app;
        let tx = app.db.begin().await?;
        let mut user = find_to_change(&tx, &who, user_id.0).await?;
        expected.check(user.version)?;
        let before = user.clone();
        change(&mut user.is_active, "is_active", to.0.is_active)?;
        change(&mut user.is_superuser, "is_superuser", to.0.is_superuser)?;
        user.version += 1;
        tx.execute(
            "update platform.users set is_active = $2, is_superuser = $3, version = $4, updated_at = $5 where id = $1",
            &[&user.id, &user.is_active, &user.is_superuser, &user.version, &app.clock.now()],
        )
        .await?;
        if before.is_active && !user.is_active {
            withdraw(&tx, app, Access::Account { user: user.id }, "deactivated").await?;
        }
        let changes = Changes::between(&before, &user);
        audit::record_platform(&tx, app, &who, "user.updated", Some(user.id), None, &changes).await?;
        tx.commit().await?;
        Ok(Single(user))
    }

    /// Delete an account.
    ///
    /// Its address stays taken, its picture is deleted. An account that alone owns an organization stays until somebody else
    /// owns it too.
    #[oai(path = "/admin/users/:user_id", method = "delete", operation_id = "admin_delete_user")]
    async fn delete(&self, who: Superuser, user_id: Path<Uuid>, expected: IfMatch) -> Result<NoContent> {
        let app = &*who.0.app;
        let tx = app.db.begin().await?;
        let user = find_to_change(&tx, &who, user_id.0).await?;
        expected.check(user.version)?;
        // Whoever leaves or hands over at this moment waits for the outcome.
        tx.query(
            "select user_id from platform.organization_members where role = 'owner' and organization_id in ( \
               select organization_id from platform.organization_members where user_id = $1 and role = 'owner') \
             order by organization_id, user_id for update",
            &[&user.id],
        )
        .await?;
        let alone = tx
            .query(
                "select o.slug from platform.organization_members m join platform.organizations o \
                 on o.id = m.organization_id and o.deleted_at is null \
                 where m.user_id = $1 and m.role = 'owner' and not exists ( \
                   select 1 from platform.organization_members x join platform.users u on u.id = x.user_id \
                   where x.organization_id = m.organization_id and x.role = 'owner' and x.is_active \
                   and u.is_active and x.user_id <> $1) order by o.slug limit 20",
                &[&user.id],
            )
            .await?;
        if !alone.is_empty() {
            let slugs = alone.iter().map(|row| Ok(row.try_get("slug")?)).collect::<Result<Vec<String>>>()?;
            return Err(Error::conflict(format!("This account alone owns: {}.", slugs.join(", "))));
        }
        tx.execute(
            "update platform.users set is_active = false, deleted_at = $2, avatar_url = null, \
             version = version + 1, updated_at = $2 where id = $1",
            &[&user.id, &app.clock.now()],
        )
        .await?;
        avatar::give_up(&tx, app, user.id).await?;
        withdraw(&tx, app, Access::Account { user: user.id }, "deleted").await?;
        tx.execute("delete from platform.organization_members where user_id = $1", &[&user.id]).await?;
        let changes = Changes::deleted(&user);
        audit::record_platform(&tx, app, &who, "user.deleted", Some(user.id), None, &changes).await?;
        tx.commit().await?;
        Ok(NoContent)
    }

    /// End the lock on an account.
    #[oai(path = "/admin/users/:user_id/unlock", method = "post", operation_id = "admin_unlock_user")]
    async fn unlock(&self, who: Superuser, user_id: Path<Uuid>) -> Result<NoContent> {
        let app = &*who.0.app;
        let tx = app.db.begin().await?;
        let user = find(&tx, user_id.0).await?;
        lockout::forget(&tx, user.id).await?;
        audit::record_platform(&tx, app, &who, "user.unlocked", Some(user.id), None, &Changes::none(&user))
            .await?;
        tx.commit().await?;
        Ok(NoContent)
    }

    /// Remove the second factor of somebody who has lost it, and end their sessions.
    #[oai(path = "/admin/users/:user_id/reset-mfa", method = "post", operation_id = "admin_reset_mfa")]
    async fn reset_mfa(&self, who: Superuser, user_id: Path<Uuid>) -> Result<NoContent> {
        let app = &*who.0.app;
        let tx = app.db.begin().await?;
        let user = find_to_change(&tx, &who, user_id.0).await?;
        mfa::remove(&tx, user.id).await?;
        withdraw(&tx, app, Access::Sessions { user: user.id, but: None }, "mfa_reset").await?;
        let (kind, details) = (SecurityEventType::MfaDisabled, json!({"by": "staff"}));
        let about = About::user(user.id);
        security_events::record(&tx, app, kind, about, &who.0.origin, details).await?;
        let changes = Changes::none(&user);
        audit::record_platform(&tx, app, &who, "user.mfa_reset", Some(user.id), None, &changes).await?;
        tx.commit().await?;
        Ok(NoContent)
    }

    /// List what staff and operators did, newest first.
    #[oai(path = "/admin/audit-log", method = "get", operation_id = "admin_list_audit_log")]
    #[allow(clippy::too_many_arguments)]
    async fn audit(
        &self,
        who: Superuser,
        actor_id: Query<Option<Uuid>>,
        organization_id: Query<Option<Uuid>>,
        resource_id: Query<Option<Uuid>>,
        /// `organization.suspended`, or `organization` for everything about organizations.
        action: Query<Option<String>>,
        cursor: Query<Option<Cursor>>,
        limit: Query<Option<u32>>,
    ) -> Result<Json<CursorPage<PlatformAuditEntry>>> {
        let stretch = Stretch::new(cursor.0, limit.0)?;
        let tx = who.0.app.db.begin().await?;
        let rows = Select::new(PlatformAuditEntry::COLUMNS, "platform.platform_audit")
            .and_if("actor_id = ?", &actor_id.0)
            .and_if("organization_id = ?", &organization_id.0)
            .and_if("resource_id = ?", &resource_id.0)
            .and_if("(action = ? or starts_with(action, ? || '.'))", &action.0)
            .newest(&tx, &stretch)
            .await?;
        let entries = rows.iter().map(PlatformAuditEntry::from_row).collect::<Result<_>>()?;
        Ok(Json(stretch.answer(entries, |entry| entry.id)))
    }
}

const COLUMNS: &str = "u.id, u.email, u.username, u.first_name, u.last_name, u.is_active, u.is_superuser, \
     u.email_verified_at is not null as email_verified, u.mfa_enabled_at is not null as mfa_enabled, \
     (select count(*) from platform.organization_members m where m.user_id = u.id) as organizations, \
     u.last_login_at, u.created_at, u.version";

fn from_row(row: &Row) -> Result<AdminUser> {
    Ok(AdminUser {
        id: row.try_get("id")?,
        email: row.try_get("email")?,
        username: row.try_get("username")?,
        first_name: row.try_get("first_name")?,
        last_name: row.try_get("last_name")?,
        is_active: row.try_get("is_active")?,
        is_superuser: row.try_get("is_superuser")?,
        email_verified: row.try_get("email_verified")?,
        mfa_enabled: row.try_get("mfa_enabled")?,
        organizations: row.try_get("organizations")?,
        last_login_at: row.try_get("last_login_at")?,
        created_at: row.try_get("created_at")?,
        version: row.try_get("version")?,
    })
}

async fn find(tx: &Tx, id: Uuid) -> Result<AdminUser> {
    let sql = format!("select {COLUMNS} from platform.users u where u.id = $1 and u.deleted_at is null");
    let row = tx.query_opt(&sql, &[&id]).await?;
    from_row(&row.ok_or_else(|| Error::new(Code::NotFound, "There is no such account."))?)
}

/// An account that is not the caller's own: staff do not lock themselves out by mistake.
async fn find_to_change(tx: &Tx, who: &Superuser, id: Uuid) -> Result<AdminUser> {
    tx.query("select id from platform.users where id = $1 for update", &[&id]).await?;
    let user = find(tx, id).await?;
    if user.id == who.0.id {
        return Err(Error::conflict("This is your own account; let somebody else do that."));
    }
    Ok(user)
}
