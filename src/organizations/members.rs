//! Who belongs to an organization, as what, and with which permissions of their own.

use chrono::{DateTime, Utc};
use poem_openapi::{
    Object, OpenApi,
    param::{Path, Query},
    types::{Example, MaybeUndefined},
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    api::Tag,
    audit::Changes,
    auth::{
        self, Access, Can, Permission, PermissionSet, Role,
        permissions::{MembersManage, MembersRead, known},
        standing, withdraw,
    },
    db::{Row, Select, Tx},
    error::{Error, Result},
    events::{self, EventType},
    http::{Body, IfMatch, Json, NoContent, Single, Versioned},
    page::{ListCursor, Order, Page, Paging},
    types::{EXAMPLE_ID, Email, Text, Username, change, example, example_time},
};

/// A member of an organization.
#[derive(Clone, Debug, Serialize, Object)]
#[oai(rename = "Member", example)]
pub struct MemberView {
    pub user_id: Uuid,
    pub email: Email,
    pub username: Option<Username>,
    pub first_name: String,
    pub last_name: String,
    pub display_name: Option<Text<1, 255>>,
    pub role: Role,
    /// Permissions beside those of the role.
    pub grants: Vec<Permission>,
    /// Permissions of the role that the member does not have.
    pub denials: Vec<Permission>,
    /// What the member may do: the role's permissions and the grants, without the denials.
    pub permissions: Vec<Permission>,
    /// A member who is not active cannot use the organization.
    pub is_active: bool,
    pub joined_at: DateTime<Utc>,
    #[serde(skip)]
    #[oai(skip)]
    pub version: i64,
}

impl Versioned for MemberView {
    fn version(&self) -> i64 {
        self.version
    }
}

impl Example for MemberView {
    fn example() -> Self {
        Self {
            user_id: EXAMPLE_ID,
            email: example("ana@example.com"),
            username: None,
            first_name: "Ana".into(),
            last_name: "Tan".into(),
            display_name: None,
            role: Role::Viewer,
            grants: vec![Permission::TasksWriteOwn],
            denials: Vec::new(),
            permissions: vec![Permission::ProjectsRead, Permission::TasksRead, Permission::TasksWriteOwn],
            is_active: true,
            joined_at: example_time(),
            version: 1,
        }
    }
}

/// What changes; what is absent stays.
#[derive(Debug, Default, Deserialize, Object)]
#[serde(deny_unknown_fields, default)]
#[oai(deny_unknown_fields, example)]
pub struct MemberChange {
    pub role: MaybeUndefined<Role>,
    pub grants: MaybeUndefined<Vec<Permission>>,
    pub denials: MaybeUndefined<Vec<Permission>>,
    pub is_active: MaybeUndefined<bool>,
}

impl Example for MemberChange {
    fn example() -> Self {
        Self { role: MaybeUndefined::Value(Role::Manager), ..Self::default() }
    }
}

pub struct MembersApi;

#[OpenApi(tag = "Tag::Members")]
impl MembersApi {
    /// List members.
    #[oai(path = "/organizations/:organization_id/members", method = "get", operation_id = "list_members")]
    #[allow(clippy::too_many_arguments)]
    async fn list(
        &self,
        who: Can<MembersRead>,
        #[oai(name = "organization_id")] _id: Path<Uuid>,
        page: Query<Option<u32>>,
        page_size: Query<Option<u32>>,
        cursor: Query<Option<ListCursor>>,
        role: Query<Option<Role>>,
        is_active: Query<Option<bool>>,
    ) -> Result<Json<Page<MemberView>>> {
        let paging = Paging::new(page.0, page_size.0, cursor.0)?;
        let organization = who.tenant.id();
        let tx = who.begin().await?;
        let page = Select::new(COLUMNS, FROM)
            .and("m.organization_id = ?", &organization)
            .and_if("m.role = ?", &role.0)
            .and_if("m.is_active = ?", &is_active.0)
            .page(&tx, &Order::up("m.joined_at", "timestamptz", "m.user_id"), &paging, from_row)
            .await?;
        Ok(Json(page))
    }

    /// See a member.
    #[oai(
        path = "/organizations/:organization_id/members/:user_id",
        method = "get",
        operation_id = "get_member"
    )]
    async fn get(
        &self,
        who: Can<MembersRead>,
        #[oai(name = "organization_id")] _id: Path<Uuid>,
        user_id: Path<Uuid>,
    ) -> Result<Single<MemberView>> {
        let tx = who.begin().await?;
        Ok(Single(find(&tx, who.tenant.id(), user_id.0).await?))
    }

    /// Change a member's role or permissions, or deactivate a member.
    ///
    /// Nobody can give what they do not have, only an owner can make or unmake an owner, and the
    /// last owner stays.
    #[oai(
        path = "/organizations/:organization_id/members/:user_id",
        method = "patch",
        operation_id = "update_member"
    )]
    async fn update(
        &self,
        who: Can<MembersManage>,
        #[oai(name = "organization_id")] _id: Path<Uuid>,
        user_id: Path<Uuid>,
        expected: IfMatch,
        to: Body<MemberChange>,
    ) -> Result<Single<MemberView>> {
        let tx = who.begin().await?;
        let owners = lock_owners(&tx, &who).await?;
        let mut member = find(&tx, who.tenant.id(), user_id.0).await?;
        expected.check(member.version)?;
        let before = member.clone();
        let held = PermissionSet::effective(member.role, &member.grants, &member.denials);
        change(&mut member.role, "role", to.0.role)?;
        change(&mut member.grants, "grants", to.0.grants)?;
        change(&mut member.denials, "denials", to.0.denials)?;
        change(&mut member.is_active, "is_active", to.0.is_active)?;
        for list in [&mut member.grants, &mut member.denials] {
            list.sort();
            list.dedup();
        }
        may_change(&who, before.role)?;
        may_change(&who, member.role)?;
        let now_held = PermissionSet::effective(member.role, &member.grants, &member.denials);
        if let Some(more) = now_held.iter().find(|p| !held.contains(*p) && !who.may(*p)) {
            return Err(Error::denied(format!(
                "You cannot give the permission {more}, which you do not have."
            )));
        }
        if member.role == Role::Owner && !member.denials.is_empty() {
            return Err(Error::conflict("An owner may do everything; denials need another role."));
        }
        if member.role != Role::Owner || !member.is_active {
            somebody_owns(&owners, member.user_id)?;
        }
        member.permissions = now_held.iter().collect();
        member.version += 1;
        let organization = who.tenant.id();
        store(&tx, organization, &member, who.app.clock.now()).await?;
        if before.is_active && !member.is_active {
            let lost = Access::Membership { organization, user: member.user_id };
            withdraw(&tx, &who.app, lost, "deactivated").await?;
        }
        let changes = Changes::between(&before, &member);
        events::record(&tx, &who.app, &*who, EventType::MemberUpdated, member.user_id, changes).await?;
        tx.commit().await?;
        Ok(Single(member))
    }

    /// Remove a member.
    #[oai(
        path = "/organizations/:organization_id/members/:user_id",
        method = "delete",
        operation_id = "remove_member"
    )]
    async fn remove(
        &self,
        who: Can<MembersManage>,
        #[oai(name = "organization_id")] _id: Path<Uuid>,
        user_id: Path<Uuid>,
        expected: IfMatch,
    ) -> Result<NoContent> {
        let tx = who.begin().await?;
        let owners = lock_owners(&tx, &who).await?;
        let member = find(&tx, who.tenant.id(), user_id.0).await?;
        expected.check(member.version)?;
        may_change(&who, member.role)?;
        somebody_owns(&owners, member.user_id)?;
        let (organization, user) = (who.tenant.id(), member.user_id);
        delete(&tx, organization, user).await?;
        withdraw(&tx, &who.app, Access::Membership { organization, user }, "removed").await?;
        events::record(&tx, &who.app, &*who, EventType::MemberRemoved, user, Changes::deleted(&member))
            .await?;
        tx.commit().await?;
        Ok(NoContent)
    }
}

fn may_change(who: &auth::Member, role: Role) -> Result<()> {
    if who.role.rules(role) {
        return Ok(());
    }
    Err(Error::denied(format!("As {} you cannot change who is {role}.", who.role)))
}

/// Refuses what would leave the organization without an active owner.
pub(super) fn somebody_owns(owners: &[Uuid], without: Uuid) -> Result<()> {
    if owners.iter().any(|owner| *owner != without) {
        return Ok(());
    }
    Err(Error::conflict("An organization needs an owner. Make somebody else an owner first."))
}

/// The active owners, locked: two of them cannot leave at the same time. Whoever was waited for may
/// have changed what the caller is, so that is looked at again.
pub(super) async fn lock_owners(tx: &Tx, who: &auth::Member) -> Result<Vec<Uuid>> {
    let rows = tx
        .query(
            "select m.user_id from platform.organization_members m join platform.users u on u.id = m.user_id \
             where m.organization_id = $1 and m.role = 'owner' and m.is_active and u.is_active \
             order by m.user_id for update of m",
            &[&who.tenant.id()],
        )
        .await?;
    let still = tx
        .query_opt(
            "select 1 from platform.organization_members \
             where organization_id = $1 and user_id = $2 and role = $3 and is_active",
            &[&who.tenant.id(), &who.user_id, &who.role],
        )
        .await?;
    still.ok_or_else(|| Error::denied("Your own role was changed while you did this."))?;
    rows.iter().map(|row| Ok(row.try_get("user_id")?)).collect()
}

const COLUMNS: &str = "m.user_id, u.email, u.username, u.first_name, u.last_name, u.display_name, m.role, m.grants, \
     m.denials, m.is_active, m.joined_at, m.version";
const FROM: &str = "platform.organization_members m join platform.users u on u.id = m.user_id";

fn from_row(row: &Row) -> Result<MemberView> {
    let role: Role = row.try_get("role")?;
    let listed = |column: &str| Ok::<_, Error>(known(&row.try_get::<_, Vec<String>>(column)?));
    let (grants, denials) = (listed("grants")?, listed("denials")?);
    Ok(MemberView {
        user_id: row.try_get("user_id")?,
        email: row.try_get("email")?,
        username: row.try_get("username")?,
        first_name: row.try_get("first_name")?,
        last_name: row.try_get("last_name")?,
        display_name: row.try_get("display_name")?,
        role,
        permissions: PermissionSet::effective(role, &grants, &denials).iter().collect(),
        grants,
        denials,
        is_active: row.try_get("is_active")?,
        joined_at: row.try_get("joined_at")?,
        version: row.try_get("version")?,
    })
}

pub(super) async fn find(tx: &Tx, organization: Uuid, user: Uuid) -> Result<MemberView> {
    let sql = format!("select {COLUMNS} from {FROM} where m.organization_id = $1 and m.user_id = $2");
    let row = tx.query_opt(&sql, &[&organization, &user]).await?;
    from_row(&row.ok_or_else(|| Error::not_found("member"))?)
}

/// Makes somebody a member.
pub async fn insert(tx: &Tx, organization: Uuid, user: Uuid, role: Role, now: DateTime<Utc>) -> Result<()> {
    tx.execute(
        "insert into platform.organization_members (organization_id, user_id, role, joined_at, updated_at) \
         values ($1, $2, $3, $4, $4)",
        &[&organization, &user, &role, &now],
    )
    .await?;
    Ok(())
}

/// Ends a membership.
pub(super) async fn delete(tx: &Tx, organization: Uuid, user: Uuid) -> Result<()> {
    tx.execute(
        "delete from platform.organization_members where organization_id = $1 and user_id = $2",
        &[&organization, &user],
    )
    .await?;
    Ok(())
}

async fn store(tx: &Tx, organization: Uuid, member: &MemberView, now: DateTime<Utc>) -> Result<()> {
    standing::changed(tx, member.user_id).await?;
    let names = |list: &[Permission]| -> Vec<&'static str> {
        list.iter().map(|permission| permission.name()).collect()
    };
    tx.execute(
        "update platform.organization_members set role = $3, grants = $4, denials = $5, is_active = $6, \
         version = $7, updated_at = $8 where organization_id = $1 and user_id = $2",
        &[
            &organization,
            &member.user_id,
            &member.role,
            &names(&member.grants),
            &names(&member.denials),
            &member.is_active,
            &member.version,
            &now,
        ],
    )
    .await?;
    Ok(())
}

/// Refuses users who are not active members; `field` is what the caller sent them in.
pub async fn must_be_active(tx: &Tx, organization: Uuid, users: &[Uuid], field: &str) -> Result<()> {
    if users.is_empty() {
        return Ok(());
    }
    let stranger = tx
        .query_opt(
            "select wanted.id from unnest($2::uuid[]) as wanted (id) where not exists ( \
               select 1 from platform.organization_members m join platform.users u on u.id = m.user_id \
               where m.organization_id = $1 and m.user_id = wanted.id and m.is_active and u.is_active) limit 1",
            &[&organization, &users],
        )
        .await?;
    match stranger {
        None => Ok(()),
        Some(row) => {
            let id: Uuid = row.try_get("id")?;
            Err(Error::invalid(field, format!("The user {id} is not an active member of this organization.")))
        }
    }
}
