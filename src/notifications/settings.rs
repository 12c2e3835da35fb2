//! How a member wants to be told: quiet hours, digest, kinds and channels.

use std::{collections::HashMap, str::FromStr};

use chrono::{DateTime, NaiveTime, Utc};
use poem_openapi::{
    Object, OpenApi,
    types::{Example, MaybeUndefined},
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    channels::{ChannelKind, PhoneNumber},
    hours::Quiet,
    notices::NoticeKind,
    people::{said, wants},
};
use crate::{
    api::Tag,
    auth::{Can, Member, permissions::NotificationsRead},
    db::{Row, TenantTx},
    error::{Error, Result},
    http::{Body, IfMatch, Single, Versioned},
    types::{change, example, string_schema, text, text_enum, text_serialize},
};

text_enum! {
    /// Whether mail comes for each notification, or once a day or a week for all of them: at eight in
    /// the morning, and on Mondays where it is weekly.
    #[derive(Default)]
    Digest {
        #[default]
        Off = "off",
        Daily = "daily",
        Weekly = "weekly",
    }
}

/// A time of the day such as `22:00`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClockTime(String, NaiveTime);

impl From<NaiveTime> for ClockTime {
    fn from(time: NaiveTime) -> Self {
        Self(time.format("%H:%M").to_string(), time)
    }
}

impl FromStr for ClockTime {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // Of one length: chrono would also take a blank for a digit.
        let plain = text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit() || b == b':');
        match NaiveTime::parse_from_str(text, "%H:%M") {
            Ok(time) if plain => Ok(time.into()),
            _ => Err("must be a time such as 22:00".into()),
        }
    }
}

impl AsRef<str> for ClockTime {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

text!([] ClockTime, string_schema(None, Some("^([01][0-9]|2[0-3]):[0-5][0-9]$"), 5, 5));
text_serialize!([] ClockTime);

/// Hours in which nothing is sent, in the time zone of the account; they may go over midnight.
#[derive(Clone, Debug, Serialize, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(deny_unknown_fields)]
pub struct QuietHours {
    pub from: ClockTime,
    pub to: ClockTime,
}

impl From<Quiet> for QuietHours {
    fn from(quiet: Quiet) -> Self {
        Self { from: quiet.from.into(), to: quiet.to.into() }
    }
}

impl QuietHours {
    fn checked(&self) -> Result<Quiet> {
        if self.from == self.to {
            return Err(Error::invalid("quiet_hours.to", "must be another time than `from`"));
        }
        Ok(Quiet { from: self.from.1, to: self.to.1 })
    }
}

/// Whether one kind of notification comes by one channel.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(deny_unknown_fields)]
pub struct NotificationPreference {
    pub kind: NoticeKind,
    pub channel: ChannelKind,
    pub enabled: bool,
}

impl NotificationPreference {
    fn one() -> Self {
        Self { kind: NoticeKind::TaskAssigned, channel: ChannelKind::Email, enabled: false }
    }
}

/// How somebody wants to be told.
#[derive(Debug, Serialize, Object)]
#[oai(example)]
pub struct NotificationSettings {
    pub quiet_hours: Option<QuietHours>,
    pub digest: Digest,
    /// Where SMS go.
    pub sms_number: Option<PhoneNumber>,
    /// A number that waits for its code to be confirmed.
    pub sms_number_to_confirm: Option<PhoneNumber>,
    /// What is in effect, for every kind and channel.
    pub preferences: Vec<NotificationPreference>,
    #[serde(skip)]
    #[oai(skip)]
    pub version: i64,
}

impl Versioned for NotificationSettings {
    fn version(&self) -> i64 {
        self.version
    }
}

impl Example for NotificationSettings {
    fn example() -> Self {
        Self {
            quiet_hours: Some(QuietHours { from: example("22:00"), to: example("07:00") }),
            digest: Digest::Off,
            sms_number: Some(example("+6581234567")),
            sms_number_to_confirm: None,
            preferences: vec![NotificationPreference::one()],
            version: 1,
        }
    }
}

/// What changes; what is absent stays.
#[derive(Debug, Default, Deserialize, Object)]
#[serde(deny_unknown_fields, default)]
#[oai(deny_unknown_fields, example)]
pub struct NotificationSettingsChange {
    /// Null ends them.
    pub quiet_hours: MaybeUndefined<QuietHours>,
    pub digest: MaybeUndefined<Digest>,
}

impl Example for NotificationSettingsChange {
    fn example() -> Self {
        Self { digest: MaybeUndefined::Value(Digest::Daily), ..Self::default() }
    }
}

/// Preferences to be set; those that are not named stay.
#[derive(Debug, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(deny_unknown_fields, example)]
pub struct NotificationPreferences {
    /// At most 200.
    pub preferences: Vec<NotificationPreference>,
}

impl Example for NotificationPreferences {
    fn example() -> Self {
        Self { preferences: vec![NotificationPreference::one()] }
    }
}

pub struct NotificationSettingsApi;

#[OpenApi(tag = "Tag::Notifications")]
impl NotificationSettingsApi {
    /// See how one is told.
    #[oai(path = "/notifications/settings", method = "get", operation_id = "get_notification_settings")]
    async fn get(&self, who: Can<NotificationsRead>) -> Result<Single<NotificationSettings>> {
        let tx = who.begin().await?;
        let kept = of(&tx, &[who.user_id]).await?.remove(&who.user_id).unwrap_or_default();
        Ok(Single(view(&tx, who.user_id, kept).await?))
    }

    /// Change quiet hours and digest.
    #[oai(path = "/notifications/settings", method = "patch", operation_id = "update_notification_settings")]
    async fn update(
        &self,
        who: Can<NotificationsRead>,
        expected: IfMatch,
        to: Body<NotificationSettingsChange>,
    ) -> Result<Single<NotificationSettings>> {
        let tx = who.begin().await?;
        let mut kept = find_to_change(&tx, &who).await?;
        expected.check(kept.version)?;
        change(&mut kept.digest, "digest", to.0.digest)?;
        match to.0.quiet_hours {
            MaybeUndefined::Undefined => {}
            MaybeUndefined::Null => kept.quiet = None,
            MaybeUndefined::Value(hours) => kept.quiet = Some(hours.checked()?),
        }
        store(&tx, &who, &mut kept).await?;
        let settings = view(&tx, who.user_id, kept).await?;
        tx.commit().await?;
        Ok(Single(settings))
    }

    /// Choose what comes by which channel.
    ///
    /// The list in the application is always on. Preferences for a channel that is not set up count once
    /// it is.
    #[oai(path = "/notifications/preferences", method = "put", operation_id = "set_notification_preferences")]
    async fn prefer(
        &self,
        who: Can<NotificationsRead>,
        expected: IfMatch,
        to: Body<NotificationPreferences>,
    ) -> Result<Single<NotificationSettings>> {
        if to.0.preferences.len() > 200 {
            return Err(Error::invalid("preferences", "may name at most 200"));
        }
        // Whoever says something twice means it the second time.
        let mut chosen: HashMap<(NoticeKind, ChannelKind), bool> = HashMap::new();
        for (place, preference) in to.0.preferences.iter().enumerate() {
            let NotificationPreference { kind, channel, enabled } = *preference;
            match channel {
                ChannelKind::InApp if enabled => {}
                ChannelKind::InApp => {
                    let field = format!("preferences[{place}].enabled");
                    return Err(Error::invalid(field, "The list in the application cannot be switched off."));
                }
                _ => {
                    chosen.insert((kind, channel), enabled);
                }
            }
        }
        let kinds: Vec<&str> = chosen.keys().map(|(kind, _)| kind.name()).collect();
        let channels: Vec<&str> = chosen.keys().map(|(_, channel)| channel.name()).collect();
        let enabled: Vec<bool> = chosen.values().copied().collect();
        let tx = who.begin().await?;
        let mut kept = find_to_change(&tx, &who).await?;
        expected.check(kept.version)?;
        tx.execute(
            "insert into notification_preferences (user_id, kind, channel, enabled) \
             select $1::uuid, new.kind, new.channel, new.enabled \
             from unnest($2::text[], $3::text[], $4::boolean[]) as new (kind, channel, enabled) \
             on conflict (user_id, kind, channel) do update set enabled = excluded.enabled",
            &[&who.user_id, &kinds, &channels, &enabled],
        )
        .await?;
        store(&tx, &who, &mut kept).await?;
        let settings = view(&tx, who.user_id, kept).await?;
        tx.commit().await?;
        Ok(Single(settings))
    }
}

/// The settings of one member as they are stored.
#[derive(Default)]
pub struct Kept {
    pub quiet: Option<Quiet>,
    pub digest: Digest,
    pub sms_number: Option<PhoneNumber>,
    pub code: Option<Code>,
    pub version: i64,
}

/// A code that was sent to a number.
pub struct Code {
    pub number: PhoneNumber,
    pub mac: Vec<u8>,
    pub tries: i32,
    pub expires_at: DateTime<Utc>,
}

const COLUMNS: &str = "user_id, quiet_from, quiet_to, digest, sms_number, sms_new_number, sms_code_mac, \
     sms_code_tries, sms_code_expires_at, version";

fn from_row(row: &Row) -> Result<Kept> {
    let (from, to): (Option<NaiveTime>, Option<NaiveTime>) =
        (row.try_get("quiet_from")?, row.try_get("quiet_to")?);
    let number: Option<PhoneNumber> = row.try_get("sms_new_number")?;
    let code = match number {
        Some(number) => Some(Code {
            number,
            mac: row.try_get("sms_code_mac")?,
            tries: row.try_get("sms_code_tries")?,
            expires_at: row.try_get("sms_code_expires_at")?,
        }),
        None => None,
    };
    Ok(Kept {
        quiet: from.zip(to).map(|(from, to)| Quiet { from, to }),
        digest: row.try_get("digest")?,
        sms_number: row.try_get("sms_number")?,
        code,
        version: row.try_get("version")?,
    })
}

/// The settings of members; who has never set anything is not there.
pub async fn of(tx: &TenantTx, users: &[Uuid]) -> Result<HashMap<Uuid, Kept>> {
    let sql = format!("select {COLUMNS} from notification_settings where user_id = any ($1)");
    let rows = tx.query(&sql, &[&users]).await?;
    rows.iter().map(|row| Ok((row.try_get("user_id")?, from_row(row)?))).collect()
}

/// One's own settings, with their row made where there is none, and locked.
pub async fn find_to_change(tx: &TenantTx, who: &Member) -> Result<Kept> {
    tx.execute(
        "insert into notification_settings (user_id, digest, version, updated_at) values ($1, 'off', 0, $2) \
         on conflict (user_id) do nothing",
        &[&who.user_id, &who.app.clock.now()],
    )
    .await?;
    let sql = format!("select {COLUMNS} from notification_settings where user_id = $1 for update");
    from_row(&tx.query_one(&sql, &[&who.user_id]).await?)
}

pub async fn store(tx: &TenantTx, who: &Member, kept: &mut Kept) -> Result<()> {
    kept.version += 1;
    let code = kept.code.as_ref();
    tx.execute(
        "update notification_settings set quiet_from = $2, quiet_to = $3, digest = $4, sms_number = $5, \
         sms_new_number = $6, sms_code_mac = $7, sms_code_tries = $8, sms_code_expires_at = $9, version = $10, \
         updated_at = $11 where user_id = $1",
        &[
            &who.user_id,
            &kept.quiet.map(|quiet| quiet.from),
            &kept.quiet.map(|quiet| quiet.to),
            &kept.digest,
            &kept.sms_number,
            &code.map(|code| &code.number),
            &code.map(|code| &code.mac),
            &code.map_or(0, |code| code.tries),
            &code.map(|code| code.expires_at),
            &kept.version,
            &who.app.clock.now(),
        ],
    )
    .await?;
    Ok(())
}

/// What a member sees of their settings.
async fn view(tx: &TenantTx, user: Uuid, kept: Kept) -> Result<NotificationSettings> {
    let said = said(tx, &[user]).await?;
    let every =
        NoticeKind::ALL.iter().flat_map(|kind| ChannelKind::ALL.iter().map(move |channel| (*kind, *channel)));
    Ok(NotificationSettings {
        quiet_hours: kept.quiet.map(QuietHours::from),
        digest: kept.digest,
        sms_number: kept.sms_number,
        sms_number_to_confirm: kept.code.map(|code| code.number),
        preferences: every
            .map(|(kind, channel)| NotificationPreference {
                kind,
                channel,
                enabled: wants(&said, user, kind, channel),
            })
            .collect(),
        version: kept.version,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_the_day_are_read() {
        let time: ClockTime = "07:05".parse().unwrap();
        assert_eq!((time.as_ref(), ClockTime::from(time.1)), ("07:05", time.clone()));
        for bad in ["", "7:05", "24:00", "12:60", "12:00:00", " 7:05", "noon", "1２:00"] {
            assert!(bad.parse::<ClockTime>().is_err(), "{bad}");
        }
        let hours = QuietHours { from: time.clone(), to: time };
        assert!(hours.checked().is_err());
    }
}
