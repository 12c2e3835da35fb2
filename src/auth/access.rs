//! The end of access: one function takes everything away that somebody held.
//!
//! Gates ask the database at every request, so what is withdrawn here is worth nothing from the
//! commit on, on every instance.

use uuid::Uuid;

use crate::{app::App, db::Tx, error::Result, tenancy};

/// What ends.
#[derive(Clone, Copy, Debug)]
pub enum Access {
    /// A user's sessions, all or all but one.
    Sessions { user: Uuid, but: Option<Uuid> },
    /// A user's account: sessions, keys in every organization, what was mailed, half-done logins.
    Account { user: Uuid },
    /// A user's part in one organization: the keys they made there.
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
        tx.execute(
            "update platform.api_keys set revoked_at = $2, revoked_because = $3, version = version + 1 \
             where created_by = $1 and revoked_at is null and ($4::uuid is null or organization_id = $4)",
            &[&user, &now, &because, &organization],
        )
        .await?;
    }
    if everything {
        tx.execute(
            "update platform.email_tokens set used_at = $2 where user_id = $1 and used_at is null",
            &[&user, &now],
        )
        .await?;
    }
    Ok(())
}
