//! Tickets: what a browser shows where it cannot send a token, good once and for half a minute.

use chrono::TimeDelta;
use uuid::Uuid;

use super::{Member, keys::opaque_token, sealing::sha256};
use crate::{
    app::App,
    error::{Code, Error, Result},
};

pub const LIFETIME: TimeDelta = TimeDelta::seconds(30);

/// Who a ticket was made for.
pub(super) struct Holder {
    pub user: Uuid,
    pub session: Uuid,
    pub organization: Uuid,
}

/// Makes a ticket for the organization that the member is in.
pub async fn issue(who: &Member) -> Result<String> {
    let Some(session) = who.session else {
        return Err(Error::denied("A program connects with its key in the header X-API-Key."));
    };
    let (ticket, hash) = opaque_token("rht")?;
    let now = who.app.clock.now();
    let tx = who.app.db.begin().await?;
    tx.execute("delete from platform.realtime_tickets where expires_at < $1", &[&now]).await?;
    tx.execute(
        "insert into platform.realtime_tickets (hash, user_id, session_id, organization_id, expires_at) \
         values ($1, $2, $3, $4, $5)",
        &[&hash, &who.user_id, &session, &who.tenant.id(), &(now + LIFETIME)],
    )
    .await?;
    tx.commit().await?;
    Ok(ticket)
}

/// Takes a ticket; the second time it is worth nothing.
pub(super) async fn redeem(app: &App, ticket: &str) -> Result<Holder> {
    let tx = app.db.begin().await?;
    let row = tx
        .query_opt(
            "delete from platform.realtime_tickets where hash = $1 and expires_at > $2 \
             returning user_id, session_id, organization_id",
            &[&sha256(ticket.as_bytes()), &app.clock.now()],
        )
        .await?;
    tx.commit_aside().await?;
    let row = row.ok_or_else(|| {
        Error::new(
            Code::AuthFailed,
            "This ticket was used or has expired. Get another at POST /api/v1/realtime/tickets.",
        )
    })?;
    Ok(Holder {
        user: row.try_get("user_id")?,
        session: row.try_get("session_id")?,
        organization: row.try_get("organization_id")?,
    })
}
