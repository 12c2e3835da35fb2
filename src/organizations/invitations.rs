//! Invitations: how people come into an organization.

use chrono::{DateTime, TimeDelta, Utc};
use poem_openapi::{
    Object, OpenApi,
    param::{Path, Query},
    types::Example,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Organization, members};
use crate::{
    accounts::profile,
    api::Tag,
    app::App,
    audit::{Actor, Changes},
    auth::{
        Can, Member, Permission, Public, Role, User, keys::opaque_token, permissions::MembersInvite,
        sealing::sha256,
    },
    billing::{Resource, check_writable, limits},
    db::{PlatformTx, Row, Select, TenantTx, Tx},
    error::{Code, Error, OnConstraint, Result},
    events::{self, EventType},
    http::{Body, Created, IfMatch, Json, NoContent, Versioned},
    limits::Ask,
    mail::{self, Letter},
    page::{ListCursor, Order, Page, Paging},
    tenancy::{Tenant, fleet},
    types::{EXAMPLE_ID, Email, Name, example, example_time, text_enum},
};

const LIFETIME: TimeDelta = TimeDelta::days(7);

text_enum! {
    /// What became of an invitation.
    InvitationState { Pending = "pending", Accepted = "accepted", Expired = "expired", Revoked = "revoked" }
}

/// An invitation to an organization.
#[derive(Clone, Debug, Serialize, Object)]
#[oai(example)]
pub struct Invitation {
    pub id: Uuid,
    pub email: Email,
    pub role: Role,
    pub state: InvitationState,
    pub invited_by: Uuid,
    pub created_at: DateTime<Utc>,
    /// When it was mailed last.
    pub sent_at: DateTime<Utc>,
    pub expires_at: DateTime<Utc>,
    #[serde(skip)]
    #[oai(skip)]
    pub version: i64,
}

impl Versioned for Invitation {
    fn version(&self) -> i64 {
        self.version
    }
}

impl Example for Invitation {
    fn example() -> Self {
        Self {
            id: EXAMPLE_ID,
            email: example("ben@example.com"),
            role: Role::Member,
            state: InvitationState::Pending,
            invited_by: EXAMPLE_ID,
            created_at: example_time(),
            sent_at: example_time(),
            expires_at: example_time() + LIFETIME,
            version: 1,
        }
    }
}

/// Whom to invite, as what.
#[derive(Debug, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(deny_unknown_fields, example)]
pub struct NewInvitation {
    pub email: Email,
    pub role: Role,
}

impl Example for NewInvitation {
    fn example() -> Self {
        Self { email: example("ben@example.com"), role: Role::Member }
    }
}

/// The token from the mail.
#[derive(Debug, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(deny_unknown_fields, example)]
pub struct InvitationToken {
    pub token: String,
}

impl Example for InvitationToken {
    fn example() -> Self {
        Self { token: "rhi_c29tZXRoaW5nIHRoYXQgbm9ib2R5IGNhbiBndWVzcyE".into() }
    }
}

/// What somebody is invited to.
#[derive(Debug, Serialize, Object)]
#[oai(example)]
pub struct InvitationPreview {
    pub organization: Name,
    /// Who invites.
    pub inviter: String,
    pub role: Role,
    /// The address that it was sent to; it must be the account's.
    pub email: Email,
    pub expires_at: DateTime<Utc>,
    /// Whether to log in or to register with the token.
    pub has_account: bool,
}

impl Example for InvitationPreview {
    fn example() -> Self {
        Self {
            organization: example("Acme Pte. Ltd."),
            inviter: "Ana Tan".into(),
            role: Role::Member,
            email: example("ben@example.com"),
            expires_at: example_time() + LIFETIME,
            has_account: false,
        }
    }
}

pub struct InvitationsApi;

#[OpenApi(tag = "Tag::Members")]
impl InvitationsApi {
    /// List invitations, the newest first.
    #[oai(
        path = "/organizations/:organization_id/invitations",
        method = "get",
        operation_id = "list_invitations"
    )]
    async fn list(
        &self,
        who: Can<MembersInvite>,
        #[oai(name = "organization_id")] _id: Path<Uuid>,
        page: Query<Option<u32>>,
        page_size: Query<Option<u32>>,
        cursor: Query<Option<ListCursor>>,
        /// `pending` where it is absent.
        state: Query<Option<InvitationState>>,
    ) -> Result<Json<Page<Invitation>>> {
        let paging = Paging::new(page.0, page_size.0, cursor.0)?;
        let (now, organization) = (who.app.clock.now(), who.tenant.id());
        let tx = who.begin().await?;
        let select = Select::new(COLUMNS, "platform.invitations").and("organization_id = ?", &organization);
        let open = "accepted_at is null and revoked_at is null";
        let select = match state.0.unwrap_or(InvitationState::Pending) {
            InvitationState::Pending => select.only(open).and("expires_at > ?", &now),
            InvitationState::Expired => select.only(open).and("expires_at <= ?", &now),
            InvitationState::Accepted => select.only("accepted_at is not null"),
            InvitationState::Revoked => select.only("revoked_at is not null"),
        };
        let page = select
            .page(&tx, &Order::down("created_at", "timestamptz", "id"), &paging, |row| from_row(row, now))
            .await?;
        Ok(Json(page))
    }

    /// Invite somebody.
    ///
    /// They get a mail with a link that is good for seven days. A manager can invite members and
    /// viewers; nobody can invite to a higher role than their own.
    #[oai(
        path = "/organizations/:organization_id/invitations",
        method = "post",
        operation_id = "create_invitation"
    )]
    async fn create(
        &self,
        who: Can<MembersInvite>,
        #[oai(name = "organization_id")] _id: Path<Uuid>,
        new: Body<NewInvitation>,
    ) -> Result<Created<Invitation>> {
        let NewInvitation { email, role } = new.0;
        may_invite(&who, role)?;
        let app = &*who.app;
        let now = app.clock.now();
        let organization = who.tenant.id();
        limit(&who, &email).await?;
        let tx = who.begin().await?;
        must_be_verified(&tx, who.user_id).await?;
        // Two invitations come one after the other, also on a plan without a limit.
        super::lock(&tx, organization).await?;
        let there = tx
            .query_opt(
                "select 1 from platform.organization_members m join platform.users u on u.id = m.user_id \
                 where m.organization_id = $1 and u.email = $2",
                &[&organization, &email],
            )
            .await?;
        if there.is_some() {
            return Err(Error::taken("email", "This person is a member already."));
        }
        // One that has expired makes room for a new one.
        tx.execute(
            "update platform.invitations set revoked_at = $3 where organization_id = $1 and email = $2 \
             and accepted_at is null and revoked_at is null and expires_at <= $3",
            &[&organization, &email, &now],
        )
        .await?;
        limits::reserve(&tx, app, Resource::Users, 1).await?;
        let (token, hash) = opaque_token("rhi")?;
        let invitation = Invitation {
            id: Uuid::now_v7(),
            email,
            role,
            state: InvitationState::Pending,
            invited_by: who.user_id,
            created_at: now,
            sent_at: now,
            expires_at: now + LIFETIME,
            version: 1,
        };
        tx.execute(
            "insert into platform.invitations (id, organization_id, email, role, token_hash, invited_by, created_at, \
             sent_at, expires_at) values ($1, $2, $3, $4, $5, $6, $7, $7, $8)",
            &[
                &invitation.id,
                &organization,
                &invitation.email,
                &invitation.role,
                &hash,
                &who.user_id,
                &now,
                &invitation.expires_at,
            ],
        )
        .await
        .on_constraint("invitations_open_key", || {
            Error::taken("email", "This person is invited already; send the invitation again instead.")
        })?;
        post(&tx, &who, &invitation, &token).await?;
        let changes = Changes::created(&invitation);
        events::record(&tx, app, &*who, EventType::MemberInvited, invitation.id, changes).await?;
        tx.commit().await?;
        let location = format!("/api/v1/organizations/{organization}/invitations/{}", invitation.id);
        Ok(Created { location, value: invitation })
    }

    /// Send an invitation again.
    ///
    /// With a new link; the earlier one is worth nothing any more, and the seven days begin anew.
    #[oai(
        path = "/organizations/:organization_id/invitations/:invitation_id/resend",
        method = "post",
        operation_id = "resend_invitation"
    )]
    async fn resend(
        &self,
        who: Can<MembersInvite>,
        #[oai(name = "organization_id")] _id: Path<Uuid>,
        invitation_id: Path<Uuid>,
    ) -> Result<Json<Invitation>> {
        let app = &*who.app;
        let now = app.clock.now();
        let tx = who.begin().await?;
        must_be_verified(&tx, who.user_id).await?;
        // In the order of those who invite: the organization first.
        super::lock(&tx, who.tenant.id()).await?;
        let mut invitation = find_open(&tx, &who, invitation_id.0).await?;
        if invitation.state == InvitationState::Expired {
            limits::reserve(&tx, app, Resource::Users, 1).await?;
        }
        if now - invitation.sent_at < TimeDelta::minutes(1) {
            return Err(Error::new(Code::RateLimit, "It was sent less than a minute ago.").retry_after(60));
        }
        let (token, hash) = opaque_token("rhi")?;
        (invitation.sent_at, invitation.expires_at) = (now, now + LIFETIME);
        invitation.state = InvitationState::Pending;
        invitation.version += 1;
        tx.execute(
            "update platform.invitations set token_hash = $2, sent_at = $3, expires_at = $4, version = $5 where id = $1",
            &[&invitation.id, &hash, &now, &invitation.expires_at, &invitation.version],
        )
        .await?;
        post(&tx, &who, &invitation, &token).await?;
        events::record(
            &tx,
            app,
            &*who,
            EventType::InvitationResent,
            invitation.id,
            Changes::none(&invitation),
        )
        .await?;
        tx.commit().await?;
        Ok(Json(invitation))
    }

    /// Revoke an invitation.
    #[oai(
        path = "/organizations/:organization_id/invitations/:invitation_id",
        method = "delete",
        operation_id = "revoke_invitation"
    )]
    async fn revoke(
        &self,
        who: Can<MembersInvite>,
        #[oai(name = "organization_id")] _id: Path<Uuid>,
        invitation_id: Path<Uuid>,
        expected: IfMatch,
    ) -> Result<NoContent> {
        let tx = who.begin().await?;
        let invitation = find_open(&tx, &who, invitation_id.0).await?;
        expected.check(invitation.version)?;
        tx.execute(
            "update platform.invitations set revoked_at = $2, version = version + 1 where id = $1",
            &[&invitation.id, &who.app.clock.now()],
        )
        .await?;
        events::record(
            &tx,
            &who.app,
            &*who,
            EventType::InvitationRevoked,
            invitation.id,
            Changes::none(&invitation),
        )
        .await?;
        tx.commit().await?;
        Ok(NoContent)
    }

    /// See what an invitation is to.
    #[oai(path = "/invitations/preview", method = "post", operation_id = "preview_invitation")]
    async fn preview(
        &self,
        anybody: Public,
        given: Body<InvitationToken>,
    ) -> Result<Json<InvitationPreview>> {
        let tx = anybody.app.db.begin().await?;
        let row = tx
            .query_opt(
                "select o.name, o.status, o.deleted_at, i.role, i.email, i.expires_at, u.first_name, u.last_name, \
                 u.email as inviter, exists (select 1 from platform.users a where a.email = i.email) as has_account \
                 from platform.invitations i join platform.organizations o on o.id = i.organization_id \
                 join platform.users u on u.id = i.invited_by \
                 where i.token_hash = $1 and i.accepted_at is null and i.revoked_at is null and i.expires_at > $2 \
                 and o.deleted_at is null and o.status = 'active'",
                &[&sha256(given.0.token.as_bytes()), &anybody.app.clock.now()],
            )
            .await?
            .ok_or_else(worthless)?;
        let name =
            format!("{} {}", row.try_get::<_, &str>("first_name")?, row.try_get::<_, &str>("last_name")?);
        let inviter = if name.trim().is_empty() { row.try_get("inviter")? } else { name.trim().to_owned() };
        Ok(Json(InvitationPreview {
            organization: row.try_get("name")?,
            inviter,
            role: row.try_get("role")?,
            email: row.try_get("email")?,
            expires_at: row.try_get("expires_at")?,
            has_account: row.try_get("has_account")?,
        }))
    }

    /// Accept an invitation.
    ///
    /// With the account of the address that it was sent to. Who has none registers with
    /// `invitation_token`.
    #[oai(path = "/invitations/accept", method = "post", operation_id = "accept_invitation")]
    async fn accept(&self, who: User, given: Body<InvitationToken>) -> Result<Json<Organization>> {
        let tenant = destination(&who.app, &given.0.token).await?;
        let tx = who.app.db.begin().await?;
        let (tx, organization) = accept(tx, &who.app, &Actor::from(&who), &given.0.token, &tenant).await?;
        tx.commit().await?;
        Ok(Json(organization))
    }
}

fn worthless() -> Error {
    Error::new(
        Code::NotFound,
        "This invitation was used already, was revoked or has expired. Ask for a new one.",
    )
}

/// Whether somebody of this role, who may so much, may invite to that role.
///
/// Members and viewers are invited by whoever may invite. A higher role is given only by those who
/// manage members and have all that it brings: a key, or an admin to whom something is denied, must
/// not make somebody who may more than they.
fn invites(inviter: Role, may: impl Fn(Permission) -> bool, role: Role) -> bool {
    may(Permission::MembersInvite)
        && match role {
            Role::Member | Role::Viewer => true,
            _ => may(Permission::MembersManage) && inviter.rules(role) && role.permissions().iter().all(&may),
        }
}

fn may_invite(who: &Member, role: Role) -> Result<()> {
    if invites(who.role, |permission| who.may(permission), role) {
        return Ok(());
    }
    Err(Error::denied(format!("As {} you cannot invite somebody as {role}.", who.role)))
}

/// Invitations are mail to strangers: so many for an organization, and fewer to one address.
async fn limit(who: &Member, email: &Email) -> Result<()> {
    if who.tenant.is_sandbox() {
        return Err(Error::conflict("This is a copy to play with: it sends no mail, so it invites nobody."));
    }
    let limits = &who.app.config.limits;
    let asks = [
        Ask { policy: "invitations", key: who.tenant.id().to_string(), rate: limits.invitations },
        Ask { policy: "mail", key: email.to_string(), rate: limits.mail },
    ];
    who.origin.limit(&who.app, &asks).await
}

/// Mail in somebody's name is sent for those who have shown that they can be reached themselves.
async fn must_be_verified(tx: &Tx, user: Uuid) -> Result<()> {
    if profile::find(tx, user).await?.email_verified {
        return Ok(());
    }
    Err(Error::new(
        Code::EmailNotVerified,
        "Verify your own address first; POST /api/v1/auth/verify-email/resend sends the mail again.",
    ))
}

async fn post(tx: &TenantTx, who: &Member, invitation: &Invitation, token: &str) -> Result<()> {
    let row =
        tx.query_one("select name from platform.organizations where id = $1", &[&tx.organization()]).await?;
    let inviter = profile::find(tx, who.user_id).await?;
    let name = format!("{} {}", inviter.first_name, inviter.last_name);
    let name = if name.trim().is_empty() { inviter.email.to_string() } else { name.trim().to_owned() };
    let fields = [
        ("organization", row.try_get::<_, &str>("name")?),
        ("inviter", &name),
        ("role", invitation.role.name()),
        ("token", token),
    ];
    mail::post(tx, &who.app, Letter::new(&invitation.email, "invitation", &fields)).await
}

const COLUMNS: &str =
    "id, email, role, invited_by, created_at, sent_at, expires_at, accepted_at, revoked_at, version";

fn from_row(row: &Row, now: DateTime<Utc>) -> Result<Invitation> {
    let expires_at: DateTime<Utc> = row.try_get("expires_at")?;
    let accepted: Option<DateTime<Utc>> = row.try_get("accepted_at")?;
    let revoked: Option<DateTime<Utc>> = row.try_get("revoked_at")?;
    let state = match (accepted, revoked) {
        (Some(_), _) => InvitationState::Accepted,
        (_, Some(_)) => InvitationState::Revoked,
        _ if expires_at <= now => InvitationState::Expired,
        _ => InvitationState::Pending,
    };
    Ok(Invitation {
        id: row.try_get("id")?,
        email: row.try_get("email")?,
        role: row.try_get("role")?,
        state,
        invited_by: row.try_get("invited_by")?,
        created_at: row.try_get("created_at")?,
        sent_at: row.try_get("sent_at")?,
        expires_at,
        version: row.try_get("version")?,
    })
}

/// An invitation that was neither accepted nor revoked, with its row locked.
async fn find_open(tx: &TenantTx, who: &Member, id: Uuid) -> Result<Invitation> {
    let sql = format!(
        "select {COLUMNS} from platform.invitations where id = $1 and organization_id = $2 for no key update"
    );
    let row = tx.query_opt(&sql, &[&id, &tx.organization()]).await?;
    let invitation = from_row(&row.ok_or_else(|| Error::not_found("invitation"))?, who.app.clock.now())?;
    may_invite(who, invitation.role)?;
    match invitation.state {
        InvitationState::Pending | InvitationState::Expired => Ok(invitation),
        state => Err(Error::conflict(format!("The invitation is {state}."))),
    }
}

/// Which organization a token leads to. Looked up before the transaction that uses it begins, as the
/// directory may need a connection of its own.
pub async fn destination(app: &App, token: &str) -> Result<Tenant> {
    let tx = app.db.begin().await?;
    let sql = "select organization_id from platform.invitations where token_hash = $1";
    let row = tx.query_opt(sql, &[&sha256(token.as_bytes())]).await?;
    drop(tx);
    fleet::tenant_by_id(&app.directory, row.ok_or_else(worthless)?.try_get("organization_id")?)
        .await?
        .filter(|tenant| !tenant.is_deleted() && !tenant.is_suspended())
        .ok_or_else(worthless)
}

/// Makes somebody a member by the token that was mailed to their address. Of two uses at once, one
/// gets in. Goes on in the organization's schema.
pub async fn accept(
    tx: PlatformTx,
    app: &App,
    who: &Actor,
    token: &str,
    tenant: &Tenant,
) -> Result<(TenantTx, Organization)> {
    let now = app.clock.now();
    let user = who.id.ok_or_else(|| Error::internal("an invitation is accepted by a user"))?;
    let hash = sha256(token.as_bytes());
    // In the order of those who invite: the organization first.
    super::lock(&tx, tenant.id()).await?;
    let row = tx
        .query_opt(
            "update platform.invitations set accepted_at = $2, accepted_by = $3, version = version + 1 \
             where token_hash = $1 and accepted_at is null and revoked_at is null and expires_at > $2 \
             and organization_id = $4 returning id, email, role, invited_by",
            &[&hash, &now, &user, &tenant.id()],
        )
        .await?
        .ok_or_else(worthless)?;
    let (id, email, role): (Uuid, Email, Role) =
        (row.try_get("id")?, row.try_get("email")?, row.try_get("role")?);
    if profile::find(&tx, user).await?.email != email {
        return Err(Error::denied("The invitation was sent to another address than your account's."));
    }
    if !inviter_may_still(&tx, tenant.id(), row.try_get("invited_by")?, role).await? {
        return Err(worthless());
    }
    check_writable(app, tenant)?;
    // The invitation holds a place already; its guest takes it over.
    members::insert(&tx, tenant.id(), user, role, now)
        .await
        .on_constraint("organization_members_pkey", || Error::conflict("You are a member already."))?;
    // Who has the mail owns the address.
    tx.execute(
        "update platform.users set email_verified_at = coalesce(email_verified_at, $2) where id = $1",
        &[&user, &now],
    )
    .await?;
    let tx = tenant.enter(tx).await?;
    let changes = Changes::created(&serde_json::json!({"email": email, "role": role, "invitation_id": id}));
    events::record(&tx, app, who.clone(), EventType::MemberJoined, user, changes).await?;
    let organization = super::find(&tx, tenant.id(), user).await?;
    Ok((tx, organization))
}

/// Whether whoever invited could do so now: they may have left since, or be less than they were.
async fn inviter_may_still(tx: &Tx, organization: Uuid, inviter: Uuid, role: Role) -> Result<bool> {
    match members::find(tx, organization, inviter).await {
        Ok(member) => {
            let may = |permission| member.permissions.contains(&permission);
            Ok(member.is_active && invites(member.role, may, role))
        }
        Err(error) if error.code() == Code::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
