//! Handing an organization over, and leaving it.

use poem_openapi::{Object, OpenApi, param::Path, types::Example};
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use super::{
    Organization,
    members::{self, lock_owners, somebody_owns},
};
use crate::{
    api::Tag,
    audit::Changes,
    auth::{
        Access, Can, Role,
        permissions::{OrganizationLeave, OrganizationTransfer},
        standing, withdraw,
    },
    error::{Error, Result},
    events::{self, EventType},
    http::{Body, Json, NoContent},
    types::EXAMPLE_ID,
};

/// Who is to own the organization.
#[derive(Debug, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(deny_unknown_fields, example)]
pub struct OwnershipTransfer {
    /// An active member.
    pub user_id: Uuid,
}

impl Example for OwnershipTransfer {
    fn example() -> Self {
        Self { user_id: EXAMPLE_ID }
    }
}

pub struct OwnershipApi;

#[OpenApi(tag = "Tag::Members")]
impl OwnershipApi {
    /// Hand the organization over.
    ///
    /// The member becomes an owner, and the caller an admin.
    #[oai(
        path = "/organizations/:organization_id/transfer",
        method = "post",
        operation_id = "transfer_organization"
    )]
    async fn transfer(
        &self,
        who: Can<OrganizationTransfer>,
        #[oai(name = "organization_id")] _id: Path<Uuid>,
        to: Body<OwnershipTransfer>,
    ) -> Result<Json<Organization>> {
        let organization = who.tenant.id();
        let heir = to.0.user_id;
        // The permission can be granted to others, but only an owner has something to hand over.
        if who.role != Role::Owner {
            return Err(Error::denied("Only an owner can hand the organization over."));
        }
        if heir == who.user_id {
            return Err(Error::invalid("user_id", "You own the organization already."));
        }
        let tx = who.begin().await?;
        lock_owners(&tx, &who).await?;
        members::must_be_active(&tx, organization, &[heir], "user_id").await?;
        for (user, role) in [(who.user_id, Role::Admin), (heir, Role::Owner)] {
            standing::changed(&tx, user).await?;
            let before = members::find(&tx, organization, user).await?;
            tx.execute(
                "update platform.organization_members set role = $3, grants = '{}', denials = '{}', version = version + 1, \
                 updated_at = $4 where organization_id = $1 and user_id = $2",
                &[&organization, &user, &role, &who.app.clock.now()],
            )
            .await?;
            let after = members::find(&tx, organization, user).await?;
            let changes = Changes::between(&before, &after);
            events::record(&tx, &who.app, &*who, EventType::MemberUpdated, user, changes).await?;
        }
        let changes = Changes::between(&json!({"owner": who.user_id}), &json!({"owner": heir}));
        events::record(&tx, &who.app, &*who, EventType::OrganizationTransferred, organization, changes)
            .await?;
        let seen = super::find(&tx, organization, who.user_id).await?;
        tx.commit().await?;
        Ok(Json(seen))
    }

    /// Leave the organization.
    ///
    /// The last owner stays until somebody else is one.
    #[oai(
        path = "/organizations/:organization_id/leave",
        method = "post",
        operation_id = "leave_organization"
    )]
    async fn leave(
        &self,
        who: Can<OrganizationLeave>,
        #[oai(name = "organization_id")] _id: Path<Uuid>,
    ) -> Result<NoContent> {
        let (organization, user) = (who.tenant.id(), who.user_id);
        let tx = who.begin().await?;
        let owners = lock_owners(&tx, &who).await?;
        somebody_owns(&owners, user)?;
        members::delete(&tx, organization, user).await?;
        withdraw(&tx, &who.app, Access::Membership { organization, user }, "left").await?;
        events::record(
            &tx,
            &who.app,
            &*who,
            EventType::MemberLeft,
            user,
            Changes::none(&json!({"user_id": user})),
        )
        .await?;
        tx.commit().await?;
        Ok(NoContent)
    }
}
