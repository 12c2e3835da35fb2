//! Who can be told something, and how they want it.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use futures_util::join;
use uuid::Uuid;

use super::{
    channels::{ChannelKind, PhoneNumber},
    hours,
    notices::{NoticeKind, is_on_by_default},
    settings::{self, Digest, Kept},
};
use crate::{
    app::App,
    auth::{PermissionSet, Role, permissions::known},
    db::{Row, TenantTx, Tx},
    error::Result,
    types::Email,
};

/// An active member with an active account.
pub struct Person {
    pub id: Uuid,
    pub email: Email,
    /// Nothing is mailed to an address that nobody has proved to be theirs.
    pub email_verified: bool,
    pub name: String,
    pub role: Role,
    pub permissions: PermissionSet,
    pub zone: Tz,
}

/// The members of the organization, or those of them who are listed.
pub async fn find(tx: &TenantTx, only: Option<&[Uuid]>) -> Result<Vec<Person>> {
    let rows = tx
        .query(
            "select u.id, u.email, u.display_name, u.first_name, u.last_name, u.timezone, \
             u.email_verified_at is not null as email_verified, m.role, m.grants, m.denials \
             from platform.organization_members m join platform.users u on u.id = m.user_id \
             where m.organization_id = $1 and m.is_active and u.is_active \
             and ($2::uuid[] is null or m.user_id = any ($2)) order by u.id",
            &[&tx.organization(), &only],
        )
        .await?;
    rows.iter().map(person).collect()
}

fn person(row: &Row) -> Result<Person> {
    let grants = known(&row.try_get::<_, Vec<String>>("grants")?);
    let denials = known(&row.try_get::<_, Vec<String>>("denials")?);
    let role = row.try_get("role")?;
    Ok(Person {
        id: row.try_get("id")?,
        email: row.try_get("email")?,
        email_verified: row.try_get("email_verified")?,
        name: name(row)?,
        role,
        permissions: PermissionSet::effective(role, &grants, &denials),
        zone: row.try_get::<_, String>("timezone")?.parse().unwrap_or(Tz::UTC),
    })
}

/// What somebody is called.
fn name(row: &Row) -> Result<String> {
    if let Some(name) = row.try_get::<_, Option<String>>("display_name")? {
        return Ok(name);
    }
    let (first, last): (String, String) = (row.try_get("first_name")?, row.try_get("last_name")?);
    let name = format!("{first} {last}");
    Ok(match name.trim() {
        "" => row.try_get("email")?,
        name => name.to_owned(),
    })
}

/// What users are called, members or not.
pub async fn names(tx: &Tx, users: &[Uuid]) -> Result<HashMap<Uuid, String>> {
    let rows = tx
        .query(
            "select id, email, display_name, first_name, last_name from platform.users where id = any ($1)",
            &[&users],
        )
        .await?;
    rows.iter().map(|row| Ok((row.try_get("id")?, name(row)?))).collect()
}

/// What the organization is called.
pub async fn organization(tx: &TenantTx) -> Result<String> {
    let sql = "select name from platform.organizations where id = $1";
    Ok(tx.query_one(sql, &[&tx.organization()]).await?.try_get("name")?)
}

/// What members said about a kind and a channel.
pub type Said = HashMap<(Uuid, NoticeKind, ChannelKind), bool>;

pub async fn said(tx: &TenantTx, users: &[Uuid]) -> Result<Said> {
    let rows = tx
        .query(
            "select user_id, kind, channel, enabled from notification_preferences where user_id = any ($1)",
            &[&users],
        )
        .await?;
    let mut said = Said::new();
    for row in &rows {
        let (kind, channel): (String, String) = (row.try_get("kind")?, row.try_get("channel")?);
        // What only another version of the service knows does not matter to this one.
        if let (Ok(kind), Ok(channel)) = (kind.parse::<NoticeKind>(), channel.parse::<ChannelKind>()) {
            said.insert((row.try_get("user_id")?, kind, channel), row.try_get("enabled")?);
        }
    }
    Ok(said)
}

/// Whether a member wants a kind by a channel.
pub fn wants(said: &Said, user: Uuid, kind: NoticeKind, channel: ChannelKind) -> bool {
    let asked = said.get(&(user, kind, channel)).copied();
    channel == ChannelKind::InApp || asked.unwrap_or_else(|| is_on_by_default(kind, channel))
}

/// The browsers of some members, as long as the sessions live that subscribed them.
async fn browsers(tx: &TenantTx, users: &[Uuid]) -> Result<HashMap<Uuid, Vec<Uuid>>> {
    let rows = tx
        .query(
            "select user_id, id, session_id from push_subscriptions \
             where user_id = any ($1) and session_id is not null",
            &[&users],
        )
        .await?;
    let sessions = rows.iter().map(|row| row.try_get("session_id")).collect::<Result<Vec<Uuid>, _>>()?;
    let live = live_sessions(tx, &sessions).await?;
    let mut browsers: HashMap<Uuid, Vec<Uuid>> = HashMap::new();
    for row in rows.iter().zip(sessions).filter(|(_, session)| live.contains(session)).map(|(row, _)| row) {
        browsers.entry(row.try_get("user_id")?).or_default().push(row.try_get("id")?);
    }
    Ok(browsers)
}

/// Those of these sessions that were not ended.
pub async fn live_sessions(tx: &Tx, sessions: &[Uuid]) -> Result<HashSet<Uuid>> {
    if sessions.is_empty() {
        return Ok(HashSet::new());
    }
    let sql = "select id from platform.sessions where id = any ($1) and revoked_at is null";
    tx.query(sql, &[&sessions]).await?.iter().map(|row| Ok(row.try_get("id")?)).collect()
}

/// How some members want to be told.
pub struct Wishes {
    said: Said,
    kept: HashMap<Uuid, Kept>,
    /// The browsers that subscribed, by member.
    browsers: HashMap<Uuid, Vec<Uuid>>,
}

impl Wishes {
    pub async fn of(tx: &TenantTx, users: &[Uuid]) -> Result<Self> {
        let (said, kept, browsers) = join!(said(tx, users), settings::of(tx, users), browsers(tx, users));
        Ok(Self { said: said?, kept: kept?, browsers: browsers? })
    }

    /// Whether a channel is offered, leads to somebody, and is wanted for this kind by somebody who may
    /// still see what it is about.
    pub fn reaches(&self, app: &App, person: &Person, kind: NoticeKind, channel: ChannelKind) -> bool {
        let leads_there = match channel {
            ChannelKind::InApp => false,
            ChannelKind::Email => person.email_verified,
            ChannelKind::Sms => self.sms_number(person.id).is_some(),
            ChannelKind::Push => !self.browsers(person.id).is_empty(),
        };
        let may_see = person.permissions.contains(kind.permission());
        leads_there
            && may_see
            && app.channels.of(channel).is_some()
            && wants(&self.said, person.id, kind, channel)
    }

    pub fn browsers(&self, user: Uuid) -> &[Uuid] {
        self.browsers.get(&user).map_or(&[], Vec::as_slice)
    }

    pub fn sms_number(&self, user: Uuid) -> Option<&PhoneNumber> {
        self.kept.get(&user)?.sms_number.as_ref()
    }

    pub fn digest(&self, user: Uuid) -> Digest {
        self.kept.get(&user).map_or(Digest::Off, |kept| kept.digest)
    }

    /// The end of the quiet hours that somebody has now.
    pub fn quiet_until(&self, person: &Person, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        hours::quiet_until(now, person.zone, self.kept.get(&person.id)?.quiet?)
    }
}
