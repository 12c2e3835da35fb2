//! Sessions: families of refresh tokens. Each token is good once and makes the next one; one that
//! comes back a second time was stolen from somebody, so the whole family ends.

use chrono::TimeDelta;
use poem_openapi::{Object, types::Example};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    app::App,
    auth::{Origin, keys::opaque_token, sealing::sha256},
    db::Tx,
    error::{Code, Error, Result},
};

/// What a client needs to call the API.
#[derive(Debug, Serialize, Deserialize, Object)]
#[oai(example)]
pub struct Tokens {
    /// For `Authorization: Bearer`.
    pub access_token: String,
    /// For `POST /auth/refresh`, once.
    pub refresh_token: String,
    /// Always `Bearer`.
    pub token_type: String,
    /// Seconds until the access token expires.
    pub expires_in: i64,
}

impl Example for Tokens {
    fn example() -> Self {
        Self {
            access_token: "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiIwMTkwYjZhMSJ9.c2lnbmF0dXJl".into(),
            refresh_token: "rhr_c29tZXRoaW5nIHRoYXQgbm9ib2R5IGNhbiBndWVzcyE".into(),
            token_type: "Bearer".into(),
            expires_in: 900,
        }
    }
}

/// Begins a session for somebody whose credentials were checked.
pub async fn begin(tx: &Tx, app: &App, user: Uuid, origin: Origin) -> Result<Tokens> {
    let now = app.clock.now();
    let session = Uuid::now_v7();
    tx.execute(
        "insert into platform.sessions (id, user_id, user_agent, address, created_at, last_used_at, expires_at) \
         values ($1, $2, $3, $4, $5, $5, $6)",
        &[&session, &user, &origin.agent, &origin.address, &now, &(now + lifetime(app))],
    )
    .await?;
    issue(tx, app, user, session).await
}

async fn issue(tx: &Tx, app: &App, user: Uuid, session: Uuid) -> Result<Tokens> {
    let now = app.clock.now();
    let (refresh_token, hash) = opaque_token("rhr")?;
    tx.execute(
        "insert into platform.refresh_tokens (hash, session_id, expires_at) values ($1, $2, $3)",
        &[&hash, &session, &(now + lifetime(app))],
    )
    .await?;
    let (access_token, expires_in) = app.keys.issue(user, session, now)?;
    Ok(Tokens { access_token, refresh_token, token_type: "Bearer".into(), expires_in })
}

fn lifetime(app: &App) -> TimeDelta {
    TimeDelta::days(app.config.auth.refresh_token_days.into())
}

/// Exchanges a refresh token for new tokens.
pub async fn refresh(app: &App, token: &str) -> Result<Tokens> {
    let refused = || Error::new(Code::AuthFailed, "The refresh token is not valid any more. Log in again.");
    let now = app.clock.now();
    let hash = sha256(token.as_bytes());
    let tx = app.db.begin().await?;
    // Of two uses at once, one sets the mark and the other finds it.
    let fresh = tx
        .query_opt(
            "update platform.refresh_tokens set used_at = $2 \
             where hash = $1 and used_at is null and expires_at > $2 returning session_id",
            &[&hash, &now],
        )
        .await?;
    let Some(fresh) = fresh else {
        let reused = tx
            .execute(
                "update platform.sessions s set revoked_at = $2, revoked_because = 'token_reuse' \
                 from platform.refresh_tokens t where t.hash = $1 and t.used_at is not null \
                 and s.id = t.session_id and s.revoked_at is null",
                &[&hash, &now],
            )
            .await?;
        tx.commit_aside().await?;
        if reused > 0 {
            tracing::warn!("a refresh token was used twice; its session is revoked");
        }
        return Err(refused());
    };
    let session: Uuid = fresh.try_get("session_id")?;
    let live = tx
        .query_opt(
            "update platform.sessions s set last_used_at = $2, expires_at = $3 from platform.users u \
             where s.id = $1 and s.revoked_at is null and u.id = s.user_id and u.is_active returning s.user_id",
            &[&session, &now, &(now + lifetime(app))],
        )
        .await?;
    let user = live.ok_or_else(refused)?.try_get("user_id")?;
    let tokens = issue(&tx, app, user, session).await?;
    tx.commit().await?;
    Ok(tokens)
}

/// Ends a session: its refresh tokens and its access tokens are worth nothing from the commit on.
pub async fn revoke(tx: &Tx, app: &App, session: Uuid, because: &str) -> Result<()> {
    tx.execute(
        "update platform.sessions set revoked_at = $2, revoked_because = $3 where id = $1 and revoked_at is null",
        &[&session, &app.clock.now(), &because],
    )
    .await?;
    Ok(())
}
