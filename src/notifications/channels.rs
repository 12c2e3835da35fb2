//! The ways to somebody who is not looking: mail, SMS by Twilio, and Web Push.
//!
//! A channel that is not configured is not offered: nothing is sent by it, whatever members prefer.

use std::str::FromStr;

use anyhow::{Context, anyhow, bail};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::BoxFuture;
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use url::Url;
use uuid::Uuid;
use web_push_native::{
    Auth, encrypt,
    p256::{PublicKey, SecretKey, elliptic_curve::sec1::ToEncodedPoint},
};

use super::{
    notices::NoticeKind,
    people::{self, Person},
};
use crate::{
    app::App,
    config::NotificationsConfig,
    error::Result,
    limits::Ask,
    mail::Letter,
    tenancy::Tenant,
    types::{string_schema, text, text_enum, text_serialize},
};

text_enum! {
    /// A way to a member.
    ChannelKind {
        /// The list in the application.
        InApp = "in_app",
        Email = "email",
        Sms = "sms",
        /// Browsers and telephones that subscribed.
        Push = "push",
    }
}

/// A telephone number as E.164 has it: `+` and up to fifteen digits, the country's first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PhoneNumber(String);

impl FromStr for PhoneNumber {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.strip_prefix('+').unwrap_or_default();
        let ok = (8..=15).contains(&digits.len())
            && digits.bytes().all(|b| b.is_ascii_digit())
            && !digits.starts_with('0');
        if ok {
            Ok(Self(text.to_owned()))
        } else {
            Err("must be a number with its country such as +6581234567".into())
        }
    }
}

impl AsRef<str> for PhoneNumber {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

text!([] PhoneNumber, string_schema(None, Some(r"^\+[1-9][0-9]{7,14}$"), 9, 16));
text_serialize!([] PhoneNumber);

/// `N` bytes in base64url.
#[derive(Clone, Debug)]
pub struct Base64Url<const N: usize>(String, [u8; N]);

impl<const N: usize> Base64Url<N> {
    pub fn bytes(&self) -> [u8; N] {
        self.1
    }
}

impl<const N: usize> FromStr for Base64Url<N> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim_end_matches('=');
        let bytes = URL_SAFE_NO_PAD.decode(text).ok().and_then(|bytes| bytes.try_into().ok());
        match bytes {
            Some(bytes) => Ok(Self(text.to_owned(), bytes)),
            None => Err(format!("must be {N} bytes in base64url")),
        }
    }
}

impl<const N: usize> AsRef<str> for Base64Url<N> {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

text!([const N: usize] Base64Url<N>, string_schema(Some("byte"), None, N * 4 / 3, N * 4 / 3 + 3));
text_serialize!([const N: usize] Base64Url<N>);

/// Whether these bytes are a key that can be encrypted to.
pub fn is_public_key(point: &[u8]) -> bool {
    PublicKey::from_sec1_bytes(point).is_ok()
}

/// Who is to get it, and where.
pub struct Recipient {
    pub tenant: Tenant,
    pub person: Person,
    pub sms_number: Option<PhoneNumber>,
    /// For push: which of the person's browsers.
    pub browser: Option<Uuid>,
}

/// One notification.
pub struct Message {
    pub id: Uuid,
    pub kind: NoticeKind,
    pub organization: String,
    pub title: String,
    pub body: String,
    /// A path of the web application, and the whole address.
    pub path: String,
    pub url: String,
}

/// What became of a message.
#[derive(Debug, PartialEq, Eq)]
pub enum Sent {
    Done,
    /// It was refused, and would be again.
    GivenUp(String),
}

/// A way to somebody.
pub trait Channel: Send + Sync {
    /// Sends a message. After an error it is tried again.
    fn send<'a>(
        &'a self,
        app: &'a App,
        to: &'a Recipient,
        message: &'a Message,
    ) -> BoxFuture<'a, anyhow::Result<Sent>>;
}

/// The channels that are configured.
pub struct Channels {
    sms: Option<Sms>,
    push: Option<Push>,
}

impl Channels {
    pub fn new(config: &NotificationsConfig) -> anyhow::Result<Self> {
        let sms = match &config.twilio_account_sid {
            Some(account) => Some(Sms {
                url: format!(
                    "{}/2010-04-01/Accounts/{account}/Messages.json",
                    config.twilio_base_url.trim_end_matches('/')
                ),
                account: account.clone(),
                token: config
                    .twilio_auth_token
                    .clone()
                    .context("notifications.twilio_auth_token (TWILIO_AUTH_TOKEN) is missing")?,
                from: config
                    .twilio_from
                    .clone()
                    .context("notifications.twilio_from (TWILIO_FROM) is missing")?,
            }),
            None => None,
        };
        let push = match &config.vapid_private_key {
            Some(key) => Some(Push::new(
                key,
                config
                    .vapid_subject
                    .clone()
                    .context("notifications.vapid_subject (VAPID_SUBJECT) is missing")?,
            )?),
            None => None,
        };
        Ok(Self { sms, push })
    }

    /// A channel, where it is offered. The list in the application needs none.
    pub fn of(&self, kind: ChannelKind) -> Option<&dyn Channel> {
        match kind {
            ChannelKind::InApp => None,
            ChannelKind::Email => Some(&Mail),
            ChannelKind::Sms => self.sms.as_ref().map(|channel| channel as &dyn Channel),
            ChannelKind::Push => self.push.as_ref().map(|channel| channel as &dyn Channel),
        }
    }

    pub fn sms(&self) -> Option<&Sms> {
        self.sms.as_ref()
    }

    /// The public key that browsers subscribe with.
    pub fn push_key(&self) -> Option<&str> {
        self.push.as_ref().map(|push| push.public_key.as_str())
    }
}

/// What an answer means to whoever sent the request.
fn judge(whose: &str, status: u16) -> anyhow::Result<Sent> {
    match status {
        200..300 => Ok(Sent::Done),
        429 | 500..=u16::MAX => bail!("{whose} answered {status}"),
        _ => Ok(Sent::GivenUp(format!("{whose} answered {status}"))),
    }
}

fn cut(text: &str, characters: usize) -> String {
    text.chars().take(characters).collect()
}

struct Mail;

impl Channel for Mail {
    fn send<'a>(
        &'a self,
        app: &'a App,
        to: &'a Recipient,
        message: &'a Message,
    ) -> BoxFuture<'a, anyhow::Result<Sent>> {
        Box::pin(async move {
            let fields = [
                ("title", message.title.as_str()),
                ("body", message.body.as_str()),
                ("path", message.path.trim_start_matches('/')),
                ("organization", message.organization.as_str()),
            ];
            app.mailer.send(Letter::new(&to.person.email, "notification", &fields)).await?;
            Ok(Sent::Done)
        })
    }
}

/// Twilio, <https://www.twilio.com/docs/messaging/api/message-resource>.
pub struct Sms {
    url: String,
    account: String,
    token: SecretString,
    from: String,
}

impl Sms {
    /// Sends a text to a number.
    pub async fn text(&self, app: &App, to: &PhoneNumber, body: &str) -> anyhow::Result<Sent> {
        let form = [("To", to.0.as_str()), ("From", self.from.as_str()), ("Body", body)];
        let request = app
            .outbound
            .trusted()
            .post(&self.url)
            .basic_auth(&self.account, Some(self.token.expose_secret()))
            .form(&form);
        let answer = app.outbound.send(request).await.map_err(anyhow::Error::msg)?;
        judge("Twilio", answer.status)
    }
}

impl Channel for Sms {
    fn send<'a>(
        &'a self,
        app: &'a App,
        to: &'a Recipient,
        message: &'a Message,
    ) -> BoxFuture<'a, anyhow::Result<Sent>> {
        Box::pin(async move {
            let Some(number) = &to.sms_number else {
                return Ok(Sent::GivenUp("there is no number".into()));
            };
            // Each one costs money, and anybody can cause notifications.
            let limits = &app.config.limits;
            let asks = [
                Ask { policy: "sms", key: to.person.id.to_string(), rate: limits.sms },
                Ask {
                    policy: "sms_organization",
                    key: to.tenant.id().to_string(),
                    rate: limits.sms_organization,
                },
            ];
            if app.limits.take(&asks).await.iter().any(|verdict| verdict.retry_after.is_some()) {
                return Ok(Sent::GivenUp("there were too many already".into()));
            }
            let told = cut(&format!("{}: {}", message.title, message.body), 300);
            self.text(app, number, &format!("{told} {}", message.url)).await
        })
    }
}

/// How long a push service keeps a message for a browser that is not there.
const TTL_SECONDS: u32 = 24 * 3600;

/// Web Push (RFC 8030), encrypted to each browser (RFC 8291) and signed with our key (VAPID, RFC 8292).
struct Push {
    key: EcdsaKeyPair,
    /// The point, in base64url.
    public_key: String,
    subject: String,
}

/// A browser that subscribed.
struct Subscription {
    id: Uuid,
    endpoint: String,
    p256dh: Base64Url<65>,
    auth: Base64Url<16>,
}

impl Push {
    fn new(private_key: &SecretString, subject: String) -> anyhow::Result<Self> {
        let wrong = || {
            anyhow!(
                "notifications.vapid_private_key (VAPID_PRIVATE_KEY) must be a private key of P-256, 32 bytes in \
                 base64url; `rowhouse config --template` shows how to make one"
            )
        };
        if !["mailto:", "https:"].iter().any(|scheme| subject.starts_with(scheme)) {
            bail!("notifications.vapid_subject (VAPID_SUBJECT) is {subject:?}; it takes mailto:… or https:…");
        }
        let text = private_key.expose_secret().trim().trim_end_matches('=');
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| wrong())?;
        let point = SecretKey::from_slice(&bytes).map_err(|_| wrong())?.public_key().to_encoded_point(false);
        let key = EcdsaKeyPair::from_private_key_and_public_key(
            &ECDSA_P256_SHA256_FIXED_SIGNING,
            &bytes,
            point.as_bytes(),
            &SystemRandom::new(),
        )
        .map_err(|_| wrong())?;
        Ok(Self { key, public_key: URL_SAFE_NO_PAD.encode(point.as_bytes()), subject })
    }

    /// The `Authorization` for a push service (RFC 8292, sections 2 and 3).
    fn vapid(&self, endpoint: &Url, now: DateTime<Utc>) -> Result<String, String> {
        let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let header = part(json!({"typ": "JWT", "alg": "ES256"}));
        let claims = part(json!({
            "aud": endpoint.origin().ascii_serialization(),
            "exp": (now + TimeDelta::hours(12)).timestamp(),
            "sub": self.subject,
        }));
        let signed = format!("{header}.{claims}");
        let signature = self
            .key
            .sign(&SystemRandom::new(), signed.as_bytes())
            .map_err(|_| "signing failed".to_owned())?;
        let signature = URL_SAFE_NO_PAD.encode(signature.as_ref());
        Ok(format!("vapid t={signed}.{signature}, k={}", self.public_key))
    }

    /// Sends one message to one browser, and says what its push service answered: 410 too where nothing
    /// can be sent to what it gave.
    async fn push(&self, app: &App, to: &Subscription, message: &Message) -> Result<u16, String> {
        const UNUSABLE: u16 = 410;
        let Ok(endpoint) = Url::parse(&to.endpoint) else { return Ok(UNUSABLE) };
        if app.outbound.check(&endpoint).is_err() {
            return Ok(UNUSABLE);
        }
        // A push service takes 4096 bytes at most, encrypted.
        let payload = json!({
            "id": message.id,
            "kind": message.kind,
            "title": cut(&message.title, 200),
            "body": cut(&message.body, 400),
            "url": message.url,
        });
        let Ok(key) = PublicKey::from_sec1_bytes(&to.p256dh.bytes()) else { return Ok(UNUSABLE) };
        let sealed = encrypt(payload.to_string().into_bytes(), &key, &Auth::from(to.auth.bytes()))
            .map_err(|error| error.to_string())?;
        let request = app
            .outbound
            .client()
            .post(endpoint.clone())
            .header("ttl", TTL_SECONDS)
            .header("urgency", "normal")
            // What still waits for a browser that is not there is replaced by a second attempt.
            .header("topic", message.id.simple().to_string())
            .header("content-type", "application/octet-stream")
            .header("content-encoding", "aes128gcm")
            .header("authorization", self.vapid(&endpoint, app.clock.now())?)
            .body(sealed);
        Ok(app.outbound.send(request).await?.status)
    }
}

impl Channel for Push {
    fn send<'a>(
        &'a self,
        app: &'a App,
        to: &'a Recipient,
        message: &'a Message,
    ) -> BoxFuture<'a, anyhow::Result<Sent>> {
        Box::pin(async move {
            let Some(subscription) = subscription(to).await? else { return Ok(Sent::Done) };
            let answer = self.push(app, &subscription, message).await;
            let sent = match &answer {
                Ok(404 | 410) => Ok(Sent::GivenUp("the browser is there no more".into())),
                Ok(status) => judge("the push service", *status),
                Err(why) => Err(anyhow!("{why}")),
            };
            let gone = matches!(answer, Ok(404 | 410));
            note(app, to, subscription.id, matches!(sent, Ok(Sent::Done)), gone).await?;
            sent
        })
    }
}

/// A browser that took nothing for so long does not come back.
const PATIENCE: TimeDelta = TimeDelta::days(5);

/// Notes whether a browser takes messages, and forgets one that will take none any more.
async fn note(app: &App, to: &Recipient, subscription: Uuid, took: bool, gone: bool) -> Result<()> {
    let now = app.clock.now();
    let tx = to.tenant.begin().await?;
    let sql = "update push_subscriptions set failing_since = case when $2 then null \
         else coalesce(failing_since, $3) end where id = $1";
    tx.execute(sql, &[&subscription, &took, &now]).await?;
    let sql = "delete from push_subscriptions where id = $1 and ($2 or failing_since < $3)";
    tx.execute(sql, &[&subscription, &gone, &(now - PATIENCE)]).await?;
    tx.commit().await
}

/// The browser that is meant, as long as the session lives that subscribed it.
async fn subscription(to: &Recipient) -> Result<Option<Subscription>> {
    let tx = to.tenant.begin().await?;
    let row = tx
        .query_opt(
            "select id, endpoint, p256dh, auth, session_id from push_subscriptions \
             where id = $1 and user_id = $2 and session_id is not null",
            &[&to.browser, &to.person.id],
        )
        .await?;
    let Some(row) = row else { return Ok(None) };
    let session = row.try_get("session_id")?;
    if !people::live_sessions(&tx, &[session]).await?.contains(&session) {
        return Ok(None);
    }
    Ok(Some(Subscription {
        id: row.try_get("id")?,
        endpoint: row.try_get("endpoint")?,
        p256dh: row.try_get("p256dh")?,
        auth: row.try_get("auth")?,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_e_164() {
        assert!("+6581234567".parse::<PhoneNumber>().is_ok());
        for bad in ["", "+", "6581234567", "+06581234567", "+65 8123 4567", "+1234567", "+1234567890123456"] {
            assert!(bad.parse::<PhoneNumber>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_answer_says_whether_to_try_again() {
        assert_eq!(judge("x", 201).unwrap(), Sent::Done);
        assert!(matches!(judge("x", 400).unwrap(), Sent::GivenUp(_)));
        assert!(judge("x", 429).is_err() && judge("x", 503).is_err());
    }
}
