//! Sessions: families of refresh tokens. Each token is good once and makes the next one; one that
//! comes back a second time was stolen from somebody, so the whole family ends.

use chrono::{DateTime, TimeDelta, Utc};
use poem_openapi::{
    Object, OpenApi,
    param::{Path, Query},
    types::Example,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use super::security_events::{self, About, SecurityEventType};
use crate::{
    api::Tag,
    app::App,
    auth::{Access, Origin, User, keys::opaque_token, sealing::sha256, standing, withdraw},
    db::{Row, Select, Tx},
    error::{Code, Error, Result},
    http::{IfMatch, Json, NoContent},
    limits::Ask,
    page::{ListCursor, Order, Page, Paging},
    types::{EXAMPLE_ID, example_time},
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
pub async fn begin(tx: &Tx, app: &App, user: Uuid, origin: &Origin) -> Result<Tokens> {
    let now = app.clock.now();
    let session = Uuid::now_v7();
    tx.execute(
        "insert into platform.sessions (id, user_id, user_agent, address, created_at, last_used_at, expires_at) \
         values ($1, $2, $3, $4, $5, $5, $6)",
        &[&session, &user, &origin.agent, &origin.address_text(), &now, &(now + lifetime(app))],
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
pub async fn refresh(app: &App, token: &str, origin: &Origin) -> Result<Tokens> {
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
        origin.limit_stranger(app).await?;
        let reused = tx
            .query_opt(
                "update platform.sessions s set revoked_at = $2, revoked_because = 'token_reuse' \
                 from platform.refresh_tokens t where t.hash = $1 and t.used_at is not null \
                 and s.id = t.session_id and s.revoked_at is null returning s.user_id",
                &[&hash, &now],
            )
            .await?;
        if let Some(reused) = reused {
            standing::changed(&tx, reused.try_get("user_id")?).await?;
            let about = About::user(reused.try_get("user_id")?);
            security_events::record(&tx, app, SecurityEventType::TokenReuse, about, origin, json!({}))
                .await?;
        }
        tx.commit_aside().await?;
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
    let user: Uuid = live.ok_or_else(refused)?.try_get("user_id")?;
    origin.limit(app, &[Ask { policy: "user", key: user.to_string(), rate: app.config.limits.user }]).await?;
    let tokens = issue(&tx, app, user, session).await?;
    tx.commit().await?;
    Ok(tokens)
}

/// Ends a session: its refresh tokens and its access tokens are worth nothing from the commit on.
pub async fn revoke(tx: &Tx, app: &App, session: Uuid, because: &str) -> Result<()> {
    standing::changed(tx, session).await?;
    tx.execute(
        "update platform.sessions set revoked_at = $2, revoked_because = $3 where id = $1 and revoked_at is null",
        &[&session, &app.clock.now(), &because],
    )
    .await?;
    Ok(())
}

/// Somewhere that one is logged in.
#[derive(Debug, Serialize, Object)]
#[oai(example)]
pub struct Session {
    pub id: Uuid,
    /// Browser and system, as far as they can be told.
    pub device: String,
    pub user_agent: Option<String>,
    /// Where it was used from last.
    pub address: Option<String>,
    pub created_at: DateTime<Utc>,
    /// To within some seconds.
    pub last_active_at: DateTime<Utc>,
    pub expires_at: DateTime<Utc>,
    /// Whether it is the one that asks.
    pub current: bool,
}

impl Example for Session {
    fn example() -> Self {
        Self {
            id: EXAMPLE_ID,
            device: "Firefox on Linux".into(),
            user_agent: Some("Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0".into()),
            address: Some("203.0.113.7".into()),
            created_at: example_time(),
            last_active_at: example_time(),
            expires_at: example_time() + TimeDelta::days(7),
            current: true,
        }
    }
}

pub struct SessionsApi;

#[OpenApi(tag = "Tag::Accounts")]
impl SessionsApi {
    /// List where one is logged in.
    #[oai(path = "/auth/sessions", method = "get", operation_id = "list_sessions")]
    async fn list(
        &self,
        who: User,
        page: Query<Option<u32>>,
        page_size: Query<Option<u32>>,
        cursor: Query<Option<ListCursor>>,
    ) -> Result<Json<Page<Session>>> {
        let paging = Paging::new(page.0, page_size.0, cursor.0)?;
        let now = who.app.clock.now();
        let tx = who.app.db.begin().await?;
        let page = Select::new(
            "id, user_agent, coalesce(last_address, address) as address, created_at, \
             greatest(last_used_at, last_seen_at) as last_active_at, expires_at",
            "platform.sessions",
        )
        .and("user_id = ?", &who.id)
        .and("expires_at > ?", &now)
        .only("revoked_at is null")
        .page(&tx, &Order::down("created_at", "timestamptz", "id"), &paging, |row| from_row(row, who.session))
        .await?;
        Ok(Json(page))
    }

    /// End a session.
    #[oai(path = "/auth/sessions/:session_id", method = "delete", operation_id = "revoke_session")]
    async fn revoke(&self, who: User, session_id: Path<Uuid>, expected: IfMatch) -> Result<NoContent> {
        // A session has one version: it is there or not.
        expected.check(1)?;
        let tx = who.app.db.begin().await?;
        let ended = tx
            .execute(
                "update platform.sessions set revoked_at = $3, revoked_because = 'revoked' \
                 where id = $1 and user_id = $2 and revoked_at is null",
                &[&session_id.0, &who.id, &who.app.clock.now()],
            )
            .await?;
        if ended == 0 {
            return Err(Error::new(Code::NotFound, "You have no such session."));
        }
        standing::changed(&tx, session_id.0).await?;
        let details = json!({"session_id": session_id.0});
        let kind = SecurityEventType::SessionRevoked;
        security_events::record(&tx, &who.app, kind, About::user(who.id), &who.origin, details).await?;
        tx.commit().await?;
        Ok(NoContent)
    }

    /// End all other sessions.
    #[oai(path = "/auth/sessions/revoke-others", method = "post", operation_id = "revoke_other_sessions")]
    async fn revoke_others(&self, who: User) -> Result<NoContent> {
        end(&who, Some(who.session)).await
    }

    /// Log out everywhere.
    #[oai(path = "/auth/logout-all", method = "post", operation_id = "logout_everywhere")]
    async fn logout_everywhere(&self, who: User) -> Result<NoContent> {
        end(&who, None).await
    }
}

async fn end(who: &User, but: Option<Uuid>) -> Result<NoContent> {
    let tx = who.app.db.begin().await?;
    withdraw(&tx, &who.app, Access::Sessions { user: who.id, but }, "revoked").await?;
    let (kind, details) = (SecurityEventType::SessionRevoked, json!({"all_but_this": but.is_some()}));
    security_events::record(&tx, &who.app, kind, About::user(who.id), &who.origin, details).await?;
    tx.commit().await?;
    Ok(NoContent)
}

fn from_row(row: &Row, current: Uuid) -> Result<Session> {
    let (id, user_agent): (Uuid, Option<String>) = (row.try_get("id")?, row.try_get("user_agent")?);
    Ok(Session {
        id,
        device: device(user_agent.as_deref().unwrap_or_default()),
        user_agent,
        address: row.try_get("address")?,
        created_at: row.try_get("created_at")?,
        last_active_at: row.try_get("last_active_at")?,
        expires_at: row.try_get("expires_at")?,
        current: id == current,
    })
}

/// Browser and system from a `User-Agent`: enough to recognise one's own. Each name comes before
/// those that pretend to be it.
fn device(agent: &str) -> String {
    let first =
        |names: &[(&str, &'static str)]| names.iter().find(|(mark, _)| agent.contains(mark)).map(|n| n.1);
    let program = first(&[
        ("Edg/", "Edge"),
        ("OPR/", "Opera"),
        ("Firefox/", "Firefox"),
        ("Chrome/", "Chrome"),
        ("Safari/", "Safari"),
        ("curl/", "curl"),
    ]);
    let system = first(&[
        ("iPhone", "iPhone"),
        ("iPad", "iPad"),
        ("Android", "Android"),
        ("Windows", "Windows"),
        ("Mac OS X", "macOS"),
        ("Linux", "Linux"),
    ]);
    match (program, system) {
        (Some(program), Some(system)) => format!("{program} on {system}"),
        (Some(one), None) | (None, Some(one)) => one.into(),
        (None, None) => {
            agent.split(['/', ' ']).next().filter(|name| !name.is_empty()).unwrap_or("Unknown").into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::device;

    #[test]
    fn devices_are_named() {
        let chrome =
            "Mozilla/5.0 (Windows NT 10.0) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0 Safari/537.36";
        assert_eq!(device(chrome), "Chrome on Windows");
        assert_eq!(device("curl/8.1"), "curl");
        assert_eq!(device("python-requests/2.3"), "python-requests");
        assert_eq!(device(""), "Unknown");
    }
}
