//! Plans and what they allow.

use serde_json::json;
use uuid::Uuid;

use crate::{
    config::LimitsConfig,
    db::Tx,
    error::{Code, Error, Result},
    limits::Rate,
    types::text_enum,
};

text_enum! {
    /// What an organization has bound itself to.
    Plan { Free = "free", Starter = "starter", Professional = "professional", Enterprise = "enterprise" }
}

impl Plan {
    /// Members and open invitations at most; `None` is no limit.
    pub fn users(self) -> Option<i64> {
        match self {
            Plan::Free => Some(5),
            Plan::Starter => Some(10),
            Plan::Professional => Some(50),
            Plan::Enterprise => None,
        }
    }

    /// Requests that all members and keys together may send.
    pub fn rate(self, limits: &LimitsConfig) -> Rate {
        match self {
            Plan::Free | Plan::Starter => limits.organization,
            Plan::Professional => limits.organization_professional,
            Plan::Enterprise => limits.organization_enterprise,
        }
    }
}

/// Refuses if one more user would be more than the organization's plan allows. Locks the
/// organization's row: of many who want the last place, one gets it.
pub async fn reserve_user(tx: &Tx, organization: Uuid, now: chrono::DateTime<chrono::Utc>) -> Result<()> {
    let row = tx
        .query_one(
            "select plan from platform.organizations where id = $1 for no key update",
            &[&organization],
        )
        .await?;
    let plan: Plan = row.try_get("plan")?;
    let Some(limit) = plan.users() else { return Ok(()) };
    let row = tx
        .query_one(
            "select (select count(*) from platform.organization_members where organization_id = $1) \
             + (select count(*) from platform.invitations where organization_id = $1 and accepted_at is null \
                and revoked_at is null and expires_at > $2)",
            &[&organization, &now],
        )
        .await?;
    let used: i64 = row.try_get(0)?;
    if used < limit {
        return Ok(());
    }
    // The next plan that allows more of it.
    let upgrade = Plan::ALL.iter().find(|more| more.users().is_none_or(|allowed| allowed > limit));
    Err(Error::new(
        Code::PlanLimit,
        format!("The plan {plan} allows {limit} users, open invitations included. Upgrade to invite more."),
    )
    .with_details(
        json!({"limit": limit, "used": used, "plan": plan, "resource": "users", "upgrade": upgrade}),
    ))
}
