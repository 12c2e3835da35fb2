//! Notifications: what members are told of what happens.
//!
//! The dispatcher hands events on ([`hand_on`]). A job asks the rules who is to be told what ([`Rule`])
//! and writes it into each member's list. What a member wants beside the list is sent by a job for
//! each notification and channel ([`DeliverNotification`]), or collected into one mail
//! ([`SendDigest`]).

mod api;
mod browsers;
mod channels;
mod delivery;
mod digest;
mod hours;
mod notices;
mod numbers;
mod people;
mod reports;
pub mod rules;
mod settings;

use std::collections::{BTreeSet, HashMap};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use api::{Notification, NotificationsApi, after, newest, unread};
pub use browsers::PushApi;
pub use channels::{ChannelKind, Channels};
pub use delivery::DeliverNotification;
pub use digest::{CollectDigests, SendDigest, collect_digests};
pub use notices::{Audience, Notice, NoticeKind, Rule, added, ids, text_of};
pub use numbers::{NotificationNumbersApi, SendSmsCode};
pub use people::names;
pub use reports::{WeeklyReport, begin_weekly_reports};
pub use settings::NotificationSettingsApi;

use self::{
    notices::{Written, write},
    people::{Person, Wishes},
    settings::Digest,
};
use crate::{
    app::App,
    audit::ActorKind,
    db::{EVENTS, TenantTx},
    error::Result,
    events::Event,
    jobs::{self, Running, Work},
    tenancy::Tenant,
};

/// Has events told to whom they concern, in the dispatcher's transaction.
pub async fn hand_on(app: &App, tx: &TenantTx, events: &[Event]) -> Result<()> {
    let concerns = |event: &&Event| app.notice_rules().iter().any(|rule| !rule(event).is_empty());
    let events: Vec<Uuid> = events.iter().filter(concerns).map(|event| event.id).collect();
    if events.is_empty() {
        return Ok(());
    }
    jobs::enqueue(tx, app, &Notify { events }).await
}

/// Makes notifications of events.
#[derive(Serialize, Deserialize)]
pub struct Notify {
    events: Vec<Uuid>,
}

impl Work for Notify {
    const KIND: &'static str = "notify";

    async fn run(self, job: &Running) -> anyhow::Result<()> {
        // A suspended organization finds in its lists what happened meanwhile; nothing is sent before.
        let Some(tenant) = job.tenant().await?.filter(|tenant| !tenant.is_deleted()) else { return Ok(()) };
        let tx = tenant.begin().await?;
        let sql = format!("select {} from events where id = any ($1) order by position", Event::COLUMNS);
        let rows = tx.query(&sql, &[&self.events]).await?;
        let events: Vec<Event> =
            rows.iter().map(|row| Event::from_row(row, tx.organization())).collect::<Result<_>>()?;
        tell(&job.app, &tx, &events).await?;
        Ok(tx.commit().await?)
    }
}

/// The organization of a job. One that is deleted or suspended, or a copy to play with, tells nobody
/// anything.
async fn open_tenant(job: &Running) -> Result<Option<Tenant>> {
    let open = |tenant: &Tenant| !tenant.is_deleted() && !tenant.is_suspended() && !tenant.is_sandbox();
    Ok(job.tenant().await?.filter(open))
}

/// Writes down what the rules say about events. What was written before is left as it is.
async fn tell(app: &App, tx: &TenantTx, events: &[Event]) -> Result<()> {
    let mut notices = Vec::new();
    for event in events {
        notices.extend(app.notice_rules().iter().flat_map(|rule| rule(event)).map(|notice| (event, notice)));
    }
    let (mut named, mut everybody) = (Vec::new(), false);
    for (_, notice) in &notices {
        match &notice.to {
            Audience::Users(users) => named.extend_from_slice(users),
            Audience::Holding(_) => everybody = true,
        }
    }
    let people = people::find(tx, (!everybody).then_some(&named[..])).await?;
    let users: Vec<Uuid> = people.iter().map(|person| person.id).collect();
    let wishes = Wishes::of(tx, &users).await?;
    let actors: Vec<Uuid> = events.iter().filter_map(|event| event.actor_id).collect();
    let actors = people::names(tx, &actors).await?;
    let organization = people::organization(tx).await?;
    for (event, mut notice) in notices {
        let to: Vec<&Person> = people.iter().filter(|person| concerns(event, &notice.to, person)).collect();
        notice = notice.with("actor", actor(event, &actors)).with("organization", &organization);
        // One that cannot be written must not keep the others from it.
        match write(notice.kind, &notice.fields) {
            Ok(text) => insert(app, tx, &wishes, &to, notice.kind, event.id, &text).await?,
            Err(error) => {
                let kind = notice.kind.name();
                tracing::error!(%error, kind, event = %event.id, "a notification could not be written");
            }
        }
    }
    Ok(())
}

/// Whether somebody is to be told: they are meant, did not do it themselves, and may see it.
fn concerns(event: &Event, to: &Audience, person: &Person) -> bool {
    let meant = match to {
        Audience::Users(users) => users.contains(&person.id),
        Audience::Holding(permission) => person.permissions.contains(*permission),
    };
    let did_it = event.actor_kind == ActorKind::User && event.actor_id == Some(person.id);
    meant && !did_it && event.is_visible(person.permissions)
}

/// Who did it, for people.
fn actor<'a>(event: &Event, names: &'a HashMap<Uuid, String>) -> &'a str {
    match event.actor_kind {
        ActorKind::User => event.actor_id.and_then(|id| names.get(&id)).map_or("Somebody", String::as_str),
        ActorKind::ApiKey => "An API key",
        ActorKind::Superuser => "The platform's staff",
        ActorKind::System => "The service",
    }
}

/// Puts a notification into the lists of these people, and has it sent as they wish. Whoever has it
/// already does not get it again; `cause` tells.
async fn insert(
    app: &App,
    tx: &TenantTx,
    wishes: &Wishes,
    to: &[&Person],
    kind: NoticeKind,
    cause: Uuid,
    text: &Written,
) -> Result<()> {
    if to.is_empty() {
        return Ok(());
    }
    let collected = |person: &Person| {
        wishes.digest(person.id) != Digest::Off && wishes.reaches(app, person, kind, ChannelKind::Email)
    };
    let ids: Vec<Uuid> = to.iter().map(|_| Uuid::now_v7()).collect();
    let users: Vec<Uuid> = to.iter().map(|person| person.id).collect();
    let awaits_digest: Vec<bool> = to.iter().map(|person| collected(person)).collect();
    let rows = tx
        .query(
            "insert into notifications (id, user_id, kind, event_id, title, body, path, awaits_digest, created_at) \
             select new.id, new.user_id, $4::text, $5::uuid, $6::text, $7::text, $8::text, new.awaits_digest, \
             $9::timestamptz from unnest($1::uuid[], $2::uuid[], $3::boolean[]) as new (id, user_id, awaits_digest) \
             on conflict on constraint notifications_once_key do nothing returning id, user_id",
            &[
                &ids,
                &users,
                &awaits_digest,
                &kind,
                &cause,
                &text.title,
                &text.body,
                &text.path,
                &app.clock.now(),
            ],
        )
        .await?;
    let mut told = BTreeSet::new();
    for row in &rows {
        let (notification, user): (Uuid, Uuid) = (row.try_get("id")?, row.try_get("user_id")?);
        told.insert(user);
        let Some(person) = to.iter().find(|person| person.id == user) else { continue };
        for channel in [ChannelKind::Email, ChannelKind::Sms, ChannelKind::Push] {
            let later = channel == ChannelKind::Email && collected(person);
            if later || !wishes.reaches(app, person, kind, channel) {
                continue;
            }
            let browsers: Vec<Option<Uuid>> = match channel {
                ChannelKind::Push => wishes.browsers(user).iter().copied().map(Some).collect(),
                _ => vec![None],
            };
            for browser in browsers {
                jobs::enqueue(tx, app, &DeliverNotification { notification, channel, browser }).await?;
            }
        }
    }
    changed(tx, &Vec::from_iter(told)).await
}

/// So many users are named one by one; of more it is said that all of them may be meant.
const MOST_NAMED: usize = 100;

/// Says, once this is committed, whose notifications changed.
async fn changed(tx: &TenantTx, users: &[Uuid]) -> Result<()> {
    let organization = tx.organization();
    let told: Vec<String> = match users.len() > MOST_NAMED {
        true => vec![format!("{organization}:*")],
        false => users.iter().map(|user| format!("{organization}:{user}")).collect(),
    };
    tx.notify(EVENTS, told).await
}
