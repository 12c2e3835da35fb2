//! The end of access: one function takes everything away that somebody held.
//!
//! Gates ask the database at every request, so what is withdrawn here is worth nothing from the
//! commit on, on every instance.

use serde_json::json;
use uuid::Uuid;

use super::{Origin, standing};
use crate::{
    accounts::security_events::{self, About, SecurityEventType},
    app::App,
    db::Tx,
    error::Result,
    tenancy,
};

/// What ends.
#[derive(Clone, Copy, Debug)]
pub enum Access {
    /// A user's sessions, all or all but one.
    Sessions { user: Uuid, but: Option<Uuid> },
    /// A user's account: sessions, half-done logins, what was mailed, and in every organization the
    /// keys they made and the invitations they sent.
    Account { user: Uuid },
    /// A user's part in one organization: the keys they made and the invitations they sent there.
    Membership { organization: Uuid, user: Uuid },
    /// A whole organization, suspended or deleted: it is closed to all its members and keys, and
    /// nothing of theirs is destroyed, as it may be opened again.
    Organization { organization: Uuid },
}

/// Takes it away, in the transaction that says why.
pub async fn withdraw(tx: &Tx, app: &App, what: Access, because: &str) -> Result<()> {
    let now = app.clock.now();
    let (user, but, everything, organization) = match what {
        Access::Organization { organization } => return tenancy::changed(tx, organization).await,
        Access::Sessions { user, but } => (user, but, false, None),
        Access::Account { user } => (user, None, true, None),
        Access::Membership { organization, user } => (user, None, false, Some(organization)),
    };
    if organization.is_none() {
        tx.execute(
            "update platform.sessions set revoked_at = $2, revoked_because = $3 \
             where user_id = $1 and revoked_at is null and id is distinct from $4",
            &[&user, &now, &because, &but],
        )
        .await?;
        tx.execute("delete from platform.login_challenges where user_id = $1", &[&user]).await?;
    }
    if everything || organization.is_some() {
        let keys = tx
            .query(
                "update platform.api_keys set revoked_at = $2, revoked_because = $3, version = version + 1 \
                 where created_by = $1 and revoked_at is null and ($4::uuid is null or organization_id = $4) \
                 returning id, organization_id",
                &[&user, &now, &because, &organization],
            )
            .await?;
        for key in &keys {
            let about = About { user: Some(user), organization: key.try_get("organization_id")? };
            let details = json!({"api_key_id": key.try_get::<_, Uuid>("id")?, "because": because});
            let kind = SecurityEventType::ApiKeyRevoked;
            security_events::record(tx, app, kind, about, &Origin::default(), details).await?;
        }
        // Whom they invited is not let in by somebody who has left.
        tx.execute(
            "update platform.invitations set revoked_at = $2, version = version + 1 where invited_by = $1 \
             and accepted_at is null and revoked_at is null and ($3::uuid is null or organization_id = $3)",
            &[&user, &now, &organization],
        )
        .await?;
    }
    standing::changed(tx, user).await?;
    if everything {
        tx.execute("delete from platform.email_tokens where user_id = $1 and used_at is null", &[&user])
            .await?;
    }
    Ok(())
}
