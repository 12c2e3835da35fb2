//! Browsers and telephones that subscribed to Web Push.

use chrono::{DateTime, Utc};
use poem_openapi::{Object, OpenApi, param::Path, types::Example};
use serde::{Deserialize, Serialize};
use serde_json::json;
use url::Url;
use uuid::Uuid;

use super::channels::{Base64Url, is_public_key};
use crate::{
    accounts::{
        profile,
        security_events::{self, About, SecurityEventType},
    },
    api::Tag,
    app::App,
    auth::{Can, permissions::NotificationsRead},
    db::Row,
    error::{Error, Result},
    http::{Body, Created, IfMatch, Json, NoContent, Versioned},
    types::{EXAMPLE_ID, WebUrl, example, example_time},
};

/// So many of one member.
const MOST: i64 = 10;

/// The key that a browser subscribes with, as `applicationServerKey`.
#[derive(Debug, Serialize, Object)]
#[oai(example)]
pub struct PushKey {
    pub public_key: String,
}

impl Example for PushKey {
    fn example() -> Self {
        Self { public_key: EXAMPLE_POINT.into() }
    }
}

/// The example of RFC 8291.
const EXAMPLE_POINT: &str =
    "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4";

/// What encrypts to one browser.
#[derive(Debug, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(deny_unknown_fields)]
pub struct PushKeys {
    pub p256dh: Base64Url<65>,
    pub auth: Base64Url<16>,
}

/// What `PushSubscription.toJSON()` gives in a browser.
#[derive(Debug, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(deny_unknown_fields, example)]
pub struct NewPushSubscription {
    /// An https address.
    pub endpoint: WebUrl,
    pub keys: PushKeys,
    /// Browsers send it; it is of no use here.
    #[serde(rename = "expirationTime")]
    #[oai(rename = "expirationTime")]
    pub expiration_time: Option<f64>,
}

impl Example for NewPushSubscription {
    fn example() -> Self {
        Self {
            endpoint: example("https://push.example.com/send/JzLQ3raZJfFBR0aqvOMsLrt54w4rJUsV"),
            keys: PushKeys { p256dh: example(EXAMPLE_POINT), auth: example("BTBZMqHH6r4Tts7J_aSIgg") },
            expiration_time: None,
        }
    }
}

/// A browser or telephone that takes notifications.
#[derive(Debug, Serialize, Object)]
#[oai(example)]
pub struct PushSubscription {
    pub id: Uuid,
    pub endpoint: WebUrl,
    /// What the browser called itself.
    pub user_agent: Option<String>,
    pub created_at: DateTime<Utc>,
    #[serde(skip)]
    #[oai(skip)]
    pub version: i64,
}

impl Versioned for PushSubscription {
    fn version(&self) -> i64 {
        self.version
    }
}

impl Example for PushSubscription {
    fn example() -> Self {
        Self {
            id: EXAMPLE_ID,
            endpoint: example("https://push.example.com/send/JzLQ3raZJfFBR0aqvOMsLrt54w4rJUsV"),
            user_agent: Some("Mozilla/5.0".into()),
            created_at: example_time(),
            version: 1,
        }
    }
}

/// One's browsers and telephones.
#[derive(Debug, Serialize, Object)]
#[oai(example)]
pub struct PushSubscriptions {
    pub data: Vec<PushSubscription>,
}

impl Example for PushSubscriptions {
    fn example() -> Self {
        Self { data: vec![PushSubscription::example()] }
    }
}

pub struct PushApi;

#[OpenApi(tag = "Tag::Notifications")]
impl PushApi {
    /// See the key that browsers subscribe with.
    #[oai(path = "/notifications/push-key", method = "get", operation_id = "get_push_key")]
    async fn push_key(&self, who: Can<NotificationsRead>) -> Result<Json<PushKey>> {
        Ok(Json(PushKey { public_key: public_key(&who.app)?.to_owned() }))
    }

    /// List one's browsers and telephones.
    #[oai(
        path = "/notifications/push-subscriptions",
        method = "get",
        operation_id = "list_push_subscriptions"
    )]
    async fn subscriptions(&self, who: Can<NotificationsRead>) -> Result<Json<PushSubscriptions>> {
        let tx = who.begin().await?;
        let sql = format!("select {SUBSCRIPTION} from push_subscriptions where user_id = $1 order by id");
        let rows = tx.query(&sql, &[&who.user_id]).await?;
        Ok(Json(PushSubscriptions { data: rows.iter().map(subscription).collect::<Result<_>>()? }))
    }

    /// Subscribe a browser or telephone.
    ///
    /// Takes what `PushSubscription.toJSON()` gives. One that is known already gets its new keys. It ends with
    /// the session that subscribed it.
    #[oai(
        path = "/notifications/push-subscriptions",
        method = "post",
        operation_id = "create_push_subscription"
    )]
    async fn subscribe(
        &self,
        who: Can<NotificationsRead>,
        new: Body<NewPushSubscription>,
    ) -> Result<Created<PushSubscription>> {
        let app = &*who.app;
        let NewPushSubscription { endpoint, keys, .. } = new.0;
        public_key(app)?;
        let url =
            Url::parse(endpoint.as_ref()).map_err(|error| Error::invalid("endpoint", error.to_string()))?;
        app.outbound.check(&url).map_err(|why| Error::invalid("endpoint", why))?;
        if !is_public_key(&keys.p256dh.bytes()) {
            return Err(Error::invalid("keys.p256dh", "must be a point of the curve P-256"));
        }
        let tx = who.begin().await?;
        // Two at once must not both be the last.
        profile::lock(&tx, who.user_id).await?;
        let sql = "select count(*) from push_subscriptions where user_id = $1 and endpoint <> $2";
        let others: i64 = tx.query_one(sql, &[&who.user_id, &endpoint]).await?.try_get(0)?;
        if others >= MOST {
            return Err(Error::conflict(format!(
                "You have {MOST} subscriptions. Remove one that you do not use any more."
            )));
        }
        let sql = format!(
            "insert into push_subscriptions as known (id, user_id, endpoint, p256dh, auth, user_agent, session_id, created_at) \
             values ($1, $2, $3, $4, $5, $6, $7, $8) on conflict on constraint push_subscriptions_endpoint_key \
             do update set user_id = excluded.user_id, p256dh = excluded.p256dh, auth = excluded.auth, \
             user_agent = excluded.user_agent, session_id = excluded.session_id, failing_since = null, created_at = excluded.created_at, version = known.version + 1 \
             returning {SUBSCRIPTION}"
        );
        let row = tx
            .query_one(
                &sql,
                &[
                    &Uuid::now_v7(),
                    &who.user_id,
                    &endpoint,
                    &keys.p256dh,
                    &keys.auth,
                    &who.origin.agent,
                    &who.session,
                    &app.clock.now(),
                ],
            )
            .await?;
        let made = subscription(&row)?;
        let about = About { user: Some(who.user_id), organization: Some(who.tenant.id()) };
        let details = json!({"what": "push_subscription_added", "subscription_id": made.id});
        security_events::record(&tx, app, SecurityEventType::Other, about, &who.origin, details).await?;
        tx.commit().await?;
        Ok(Created { location: format!("/api/v1/notifications/push-subscriptions/{}", made.id), value: made })
    }

    /// Remove a browser or telephone.
    #[oai(
        path = "/notifications/push-subscriptions/:subscription_id",
        method = "delete",
        operation_id = "delete_push_subscription"
    )]
    async fn unsubscribe(
        &self,
        who: Can<NotificationsRead>,
        subscription_id: Path<Uuid>,
        expected: IfMatch,
    ) -> Result<NoContent> {
        let tx = who.begin().await?;
        let sql = "select version from push_subscriptions where id = $1 and user_id = $2 for update";
        let row = tx.query_opt(sql, &[&subscription_id.0, &who.user_id]).await?;
        expected.check(row.ok_or_else(|| Error::not_found("subscription"))?.try_get("version")?)?;
        tx.execute("delete from push_subscriptions where id = $1", &[&subscription_id.0]).await?;
        tx.commit().await?;
        Ok(NoContent)
    }
}

fn public_key(app: &App) -> Result<&str> {
    app.channels.push_key().ok_or_else(|| Error::unavailable("Push is not set up on this service.", 3600))
}

const SUBSCRIPTION: &str = "id, endpoint, user_agent, created_at, version";

fn subscription(row: &Row) -> Result<PushSubscription> {
    Ok(PushSubscription {
        id: row.try_get("id")?,
        endpoint: row.try_get("endpoint")?,
        user_agent: row.try_get("user_agent")?,
        created_at: row.try_get("created_at")?,
        version: row.try_get("version")?,
    })
}
