//! Numbers for SMS: a number counts once the code that was sent to it came back.

use chrono::TimeDelta;
use poem_openapi::{Object, OpenApi, types::Example};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    channels::{PhoneNumber, Sent, Sms},
    settings::{Code, find_to_change, store},
};
use crate::{
    accounts::security_events::{self, About, SecurityEventType},
    api::Tag,
    app::App,
    auth::{Can, Member, permissions::NotificationsRead, sealing::random},
    billing::{Feature, check_writable, plans},
    error::{Error, Result},
    http::{Accepted, Body, IfMatch, NoContent},
    jobs::{self, Running, Work},
    limits::Ask,
    types::example,
};

/// How long a code is good for, and how often it may be mistyped.
const CODE_LIFE: TimeDelta = TimeDelta::minutes(10);
const TRIES: i32 = 5;

/// A number for SMS.
#[derive(Debug, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(deny_unknown_fields, example)]
pub struct SmsNumber {
    pub number: PhoneNumber,
}

impl Example for SmsNumber {
    fn example() -> Self {
        Self { number: example("+6581234567") }
    }
}

/// The six digits of an SMS.
#[derive(Debug, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(deny_unknown_fields, example)]
pub struct SmsCode {
    pub code: String,
}

impl Example for SmsCode {
    fn example() -> Self {
        Self { code: "123456".into() }
    }
}

pub struct NotificationNumbersApi;

#[OpenApi(tag = "Tag::Notifications")]
impl NotificationNumbersApi {
    /// Give a number for SMS.
    ///
    /// A code is sent to it. The number before it is used until the new one is confirmed.
    #[oai(path = "/notifications/sms-number", method = "post", operation_id = "set_sms_number")]
    async fn set_number(&self, who: Can<NotificationsRead>, new: Body<SmsNumber>) -> Result<Accepted> {
        let app = &*who.app;
        sms(app)?;
        plans::require(&who, Feature::Sms).await?;
        check_writable(app, &who.tenant)?;
        let (number, rate) = (new.0.number, app.config.limits.sms_codes);
        // By number too: many accounts together must not pester one telephone.
        let asks = [who.user_id.to_string(), number.to_string()];
        let [user, telephone] = asks.map(|key| Ask { policy: "sms_codes", key, rate });
        let organization = Ask {
            policy: "sms_organization",
            key: who.tenant.id().to_string(),
            rate: app.config.limits.sms_organization,
        };
        who.origin.limit_quietly(app, &[user, telephone, organization]).await?;
        let code = format!("{:06}", u32::from_le_bytes(random()?) % 1_000_000);
        let tx = who.begin().await?;
        let mut kept = find_to_change(&tx, &who).await?;
        kept.code = Some(Code {
            mac: mac(&who, &number, &code),
            tries: 0,
            expires_at: app.clock.now() + CODE_LIFE,
            number: number.clone(),
        });
        store(&tx, &who, &mut kept).await?;
        jobs::enqueue(&tx, app, &SendSmsCode { number, code }).await?;
        tx.commit().await?;
        Ok(Accepted)
    }

    /// Confirm the number with the code.
    ///
    /// A code is good for ten minutes and five attempts.
    #[oai(path = "/notifications/sms-number/confirm", method = "post", operation_id = "confirm_sms_number")]
    async fn confirm_number(&self, who: Can<NotificationsRead>, given: Body<SmsCode>) -> Result<NoContent> {
        let wrong =
            || Error::invalid("code", "This is not the code, or it is good no more. Have another one sent.");
        let tx = who.begin().await?;
        let mut kept = find_to_change(&tx, &who).await?;
        let code = kept.code.take().ok_or_else(wrong)?;
        if code.tries >= TRIES || code.expires_at <= who.app.clock.now() {
            return Err(wrong());
        }
        if !same(&mac(&who, &code.number, given.0.code.trim()), &code.mac) {
            let sql = "update notification_settings set sms_code_tries = $2 where user_id = $1";
            tx.execute(sql, &[&who.user_id, &(code.tries + 1)]).await?;
            tx.commit_aside().await?;
            return Err(wrong());
        }
        kept.sms_number = Some(code.number);
        store(&tx, &who, &mut kept).await?;
        let about = About { user: Some(who.user_id), organization: Some(who.tenant.id()) };
        let details = json!({"what": "sms_number_confirmed"});
        let kind = SecurityEventType::Other;
        security_events::record(&tx, &who.app, kind, about, &who.origin, details).await?;
        tx.commit().await?;
        Ok(NoContent)
    }

    /// Take the number for SMS back.
    #[oai(path = "/notifications/sms-number", method = "delete", operation_id = "remove_sms_number")]
    async fn remove_number(&self, who: Can<NotificationsRead>, expected: IfMatch) -> Result<NoContent> {
        let tx = who.begin().await?;
        let mut kept = find_to_change(&tx, &who).await?;
        expected.check(kept.version)?;
        (kept.sms_number, kept.code) = (None, None);
        store(&tx, &who, &mut kept).await?;
        tx.commit().await?;
        Ok(NoContent)
    }
}

fn sms(app: &App) -> Result<&Sms> {
    app.channels.sms().ok_or_else(|| Error::unavailable("SMS is not set up on this service.", 3600))
}

/// Sends the code that proves a number.
#[derive(Serialize, Deserialize)]
pub struct SendSmsCode {
    number: PhoneNumber,
    code: String,
}

impl Work for SendSmsCode {
    const KIND: &'static str = "send_sms_code";

    async fn run(self, job: &Running) -> anyhow::Result<()> {
        if job.tenant().await?.is_some_and(|tenant| tenant.is_sandbox()) {
            return Ok(());
        }
        let Some(sms) = job.app.channels.sms() else { return Ok(()) };
        let text = format!("{} is your Rowhouse code. It is good for 10 minutes.", self.code);
        if let Sent::GivenUp(why) = sms.text(&job.app, &self.number, &text).await? {
            tracing::warn!(why, "a code could not be sent");
        }
        Ok(())
    }
}

/// What is stored of a code: nobody who reads a backup can try the million there are.
fn mac(who: &Member, number: &PhoneNumber, code: &str) -> Vec<u8> {
    let purpose = format!("sms code {} {}", who.tenant.id(), who.user_id);
    who.app.sealer.mac(&purpose, format!("{number} {code}").as_bytes())
}

/// Compares in a time that does not tell where they differ.
fn same(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_compared_as_a_whole() {
        assert!(same(b"abc", b"abc") && !same(b"abc", b"abd") && !same(b"abc", b"ab"));
    }
}
