//! What happened to an account, for its owner to see.

use chrono::{DateTime, Utc};
use poem_openapi::{Object, OpenApi, param::Query, types::Example};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::HashMap;
use tokio_postgres::types::Json as Jsonb;
use uuid::Uuid;

use crate::{
    api::Tag,
    app::App,
    auth::{Origin, User},
    db::{Row, Select, Tx},
    error::Result,
    http::Json,
    page::{Cursor, CursorPage, Stretch},
    types::{EXAMPLE_ID, example_time, text_enum},
};

text_enum! {
    /// What can happen to an account.
    SecurityEventType {
        LoginSuccess = "login_success",
        LoginFailed = "login_failed",
        Logout = "logout",
        PasswordChange = "password_change",
        PasswordResetRequest = "password_reset_request",
        PasswordReset = "password_reset",
        RateLimit = "rate_limit",
        Registration = "registration",
        MfaEnabled = "mfa_enabled",
        MfaDisabled = "mfa_disabled",
        ApiKeyCreated = "api_key_created",
        ApiKeyRevoked = "api_key_revoked",
        SessionRevoked = "session_revoked",
        TokenReuse = "token_reuse",
        AccountLocked = "account_locked",
        Other = "other",
    }
}

/// Something that happened to one's account.
#[derive(Debug, Serialize, Object)]
#[oai(example)]
pub struct SecurityEvent {
    pub id: Uuid,
    #[serde(rename = "type")]
    #[oai(rename = "type")]
    pub kind: SecurityEventType,
    pub occurred_at: DateTime<Utc>,
    /// The organization that it is about, if it is about one.
    pub organization_id: Option<Uuid>,
    pub address: Option<String>,
    pub user_agent: Option<String>,
    pub request_id: Option<String>,
    pub details: HashMap<String, Value>,
}

impl Example for SecurityEvent {
    fn example() -> Self {
        Self {
            id: EXAMPLE_ID,
            kind: SecurityEventType::LoginSuccess,
            occurred_at: example_time(),
            organization_id: None,
            address: Some("203.0.113.7".into()),
            user_agent: Some("Mozilla/5.0 (X11; Linux x86_64) Firefox/140.0".into()),
            request_id: Some("0190b6a1-7c1e-7000-8000-0000000000aa".into()),
            details: HashMap::from([("mfa".into(), json!(true))]),
        }
    }
}

pub struct SecurityEventsApi;

#[OpenApi(tag = "Tag::Accounts")]
impl SecurityEventsApi {
    /// List what happened to one's account, newest first.
    #[oai(path = "/auth/security-events", method = "get", operation_id = "list_security_events")]
    async fn list(
        &self,
        who: User,
        #[oai(name = "type")] kind: Query<Option<SecurityEventType>>,
        /// Not before this time.
        from: Query<Option<DateTime<Utc>>>,
        /// Before this time.
        to: Query<Option<DateTime<Utc>>>,
        cursor: Query<Option<Cursor>>,
        limit: Query<Option<u32>>,
    ) -> Result<Json<CursorPage<SecurityEvent>>> {
        let stretch = Stretch::new(cursor.0, limit.0)?;
        let tx = who.app.db.begin().await?;
        let rows = Select::new(
            "id, kind, occurred_at, organization_id, address, user_agent, request_id, details",
            "platform.security_events",
        )
        .and("user_id = ?", &who.id)
        .and_if("kind = ?", &kind.0)
        .and_if("occurred_at >= ?", &from.0)
        .and_if("occurred_at < ?", &to.0)
        .newest(&tx, &stretch)
        .await?;
        Ok(Json(stretch.answer(rows.iter().map(from_row).collect::<Result<_>>()?, |event| event.id)))
    }
}

fn from_row(row: &Row) -> Result<SecurityEvent> {
    Ok(SecurityEvent {
        id: row.try_get("id")?,
        kind: row.try_get("kind")?,
        occurred_at: row.try_get("occurred_at")?,
        organization_id: row.try_get("organization_id")?,
        address: row.try_get("address")?,
        user_agent: row.try_get("user_agent")?,
        request_id: row.try_get("request_id")?,
        details: row.try_get::<_, Jsonb<_>>("details")?.0,
    })
}

/// Whom an event is about.
#[derive(Clone, Copy, Debug, Default)]
pub struct About {
    /// Nobody that there is, where a login was tried under a made-up name.
    pub user: Option<Uuid>,
    pub organization: Option<Uuid>,
}

impl About {
    pub fn user(id: Uuid) -> Self {
        Self { user: Some(id), organization: None }
    }
}

/// Records an event.
pub async fn record(
    tx: &Tx,
    app: &App,
    kind: SecurityEventType,
    about: About,
    origin: &Origin,
    details: Value,
) -> Result<()> {
    tx.execute(
        "insert into platform.security_events (id, user_id, organization_id, kind, occurred_at, address, \
         user_agent, request_id, details) values ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        &[
            &Uuid::now_v7(),
            &about.user,
            &about.organization,
            &kind,
            &app.clock.now(),
            &origin.address_text(),
            &origin.agent,
            &origin.request_id,
            &details,
        ],
    )
    .await?;
    Ok(())
}
