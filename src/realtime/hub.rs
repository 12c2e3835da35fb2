//! The hub: who is connected to this process, and what each is told.
//!
//! The dispatcher says on a channel of the database that an organization has new events; each process
//! that has listeners for it reads them from the organization's log, once for all of them, and puts
//! the same text into each listener's queue. Nothing but the word travels between processes, so a word
//! that got lost costs nothing: the next one, or the look that follows a reconnection, reads on from
//! where the process stands.
//!
//! A listener's queue is short. Who does not take what is sent is dropped, and resumes from the last
//! id that it has seen.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt, stream};
use serde::Serialize;
use serde_json::json;
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use crate::{
    app::App,
    auth::{
        Permission,
        permissions::PermissionSet,
        standing::{self, Standing},
    },
    db::{ACCESS, DIRECTORY, EVENTS, Heard},
    error::{Code, Error, Result},
    events::Event,
    notifications::{self, Notification},
    tenancy::fleet,
};

/// Frames that may wait for one listener: more than one pass of the dispatcher brings.
const QUEUE: usize = 1024;
/// Events, or notifications, that are read at once; more notifications than that are left to the list.
pub const BATCH: i64 = 200;
/// Ids are made before they are committed, so an older one may come later, by this much.
const OVERLAP: Duration = Duration::from_secs(600);
/// Everybody is looked at again this often, should a word of a change have been lost.
const CHECK_EVERY: Duration = Duration::from_secs(120);
/// After the database could not be asked.
const TRY_AGAIN: Duration = Duration::from_millis(200);
/// Standings that are asked for in one statement.
const CHECKED_AT_ONCE: usize = 500;

/// What a listener is told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic {
    /// Everything that happens in the organization and that the listener may see.
    Dashboard,
    /// The listener's own notifications.
    Notifications,
}

impl Topic {
    /// What a listener must hold for as long as they are connected.
    pub fn permission(self) -> Permission {
        match self {
            Self::Dashboard => Permission::OrganizationRead,
            Self::Notifications => Permission::NotificationsRead,
        }
    }
}

/// One thing that is told: `{"type", "id", "payload"}`.
#[derive(Debug)]
pub struct Frame {
    /// For resuming; what is not resumed from has none.
    pub id: Option<String>,
    /// All of it as JSON.
    pub text: String,
}

impl Frame {
    pub fn new(kind: &str, id: Option<String>, payload: &impl Serialize) -> Self {
        let payload = serde_json::to_string(payload).unwrap_or_else(|_| "null".into());
        let text = format!("{{\"type\":{},\"id\":{},\"payload\":{payload}}}", json!(kind), json!(id));
        Self { id, text }
    }

    pub fn of_notification(notification: &Notification) -> Self {
        Self::new("notification.created", Some(notification.id.to_string()), notification)
    }

    /// Too much was missed.
    pub fn reset(id: Option<String>) -> Self {
        Self::new("stream.reset", id, &json!({"reason": "Too much was missed. Read the lists anew."}))
    }

    pub fn of_event(event: &Event) -> Self {
        Self::new(&event.kind, event.position.map(|position| position.to_string()), event)
    }
}

/// Everybody who is connected to this process.
#[derive(Default)]
pub struct Hub {
    listeners: Mutex<HashMap<Uuid, Organization>>,
    numbers: AtomicU64,
}

/// The listeners of one organization.
struct Organization {
    /// The position of the last event that they were told of.
    told: i64,
    listeners: HashMap<u64, Listener>,
}

impl Organization {
    fn wants_events(&self) -> bool {
        self.listeners.values().any(|one| one.topic == Topic::Dashboard)
    }
}

struct Listener {
    topic: Topic,
    standing: Standing,
    permissions: PermissionSet,
    queue: mpsc::Sender<Arc<Frame>>,
    /// Turns true when the listener may not be here any more.
    refused: watch::Sender<bool>,
    /// Events up to this position are not told.
    after: i64,
    /// What of notifications is known; nothing is told before that.
    known: Option<Known>,
    /// Something was not told for that reason.
    skipped: bool,
}

/// The notifications that a listener was told of, as far back as another may still turn up.
pub struct Known {
    pub floor: Uuid,
    pub ids: HashSet<Uuid>,
}

impl Known {
    /// From the newest notifications.
    pub fn of(newest: &[Notification]) -> Self {
        let ids = || newest.iter().map(|one| one.id);
        let mut floor = ids().max().map_or(Uuid::nil(), |id| before(id, OVERLAP));
        if newest.len() as i64 >= BATCH {
            // Of more than can be told at once, the older ones are left to the lists.
            floor = floor.max(ids().min().unwrap_or_default());
        }
        Self { floor, ids: newest.iter().map(|one| one.id).filter(|id| *id > floor).collect() }
    }
}

/// The first id of so long a time before another; ids begin with their time.
pub fn before(id: Uuid, by: Duration) -> Uuid {
    let made = (id.as_u128() >> 80).saturating_sub(by.as_millis());
    Uuid::from_u128(made << 80)
}

/// A place in the hub; it is given up when this is dropped.
pub struct Seat {
    app: Arc<App>,
    organization: Uuid,
    number: u64,
    /// The position from which on events come through the queue.
    pub from: i64,
    pub queue: mpsc::Receiver<Arc<Frame>>,
    /// True once the listener may not be here any more.
    pub refused: watch::Receiver<bool>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut organizations = self.app.hub.lock();
        if let Some(organization) = organizations.get_mut(&self.organization) {
            organization.listeners.remove(&self.number);
            if organization.listeners.is_empty() {
                organizations.remove(&self.organization);
            }
        }
        drop(organizations);
        metrics::gauge!("rowhouse_realtime_connections").decrement(1.0);
    }
}

impl Hub {
    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, Organization>> {
        self.listeners.lock().expect("nothing panics with the lock held")
    }

    /// Takes a seat.
    pub async fn join(
        app: &Arc<App>,
        standing: Standing,
        permissions: PermissionSet,
        topic: Topic,
    ) -> Result<Seat> {
        let most = app.config.realtime.connections_per_user;
        let (sender, queue) = mpsc::channel(QUEUE);
        let (refuse, refused) = watch::channel(false);
        let id = standing.organization;
        let tx = app.db.begin().await?;
        let head = tx
            .query_opt("select position from platform.event_heads where organization_id = $1", &[&id])
            .await?;
        drop(tx);
        let head: i64 = head.map(|row| row.try_get("position")).transpose()?.unwrap_or_default();
        let number = app.hub.numbers.fetch_add(1, Ordering::Relaxed);
        let (from, is_first) = {
            let mut organizations = app.hub.lock();
            let organization = organizations
                .entry(id)
                .or_insert_with(|| Organization { told: head, listeners: HashMap::new() });
            let theirs = organization.listeners.values().filter(|one| one.standing.user == standing.user);
            if theirs.count() >= most {
                if organization.listeners.is_empty() {
                    organizations.remove(&id);
                }
                return Err(Error::new(
                    Code::RateLimit,
                    format!("You have {most} connections to this organization already. Close one."),
                )
                .retry_after(10));
            }
            // Events are read as long as somebody listens to them: whoever begins, begins at the head.
            let is_first = topic == Topic::Dashboard && !organization.wants_events();
            if is_first {
                organization.told = organization.told.max(head);
            }
            // This process may be a moment behind what was told elsewhere, and the listener may not.
            let after = organization.told.max(head);
            let listener = Listener {
                topic,
                standing,
                permissions,
                queue: sender,
                refused: refuse,
                after,
                known: None,
                skipped: false,
            };
            organization.listeners.insert(number, listener);
            (after, is_first)
        };
        metrics::gauge!("rowhouse_realtime_connections").increment(1.0);
        let seat = Seat { app: app.clone(), organization: id, number, from, queue, refused };
        if is_first {
            // What was told between the look at the head and now.
            tell_events(app, id).await?;
        }
        Ok(seat)
    }

    fn organizations(&self) -> HashSet<Uuid> {
        self.lock().keys().copied().collect()
    }

    /// Everybody whom a change of access concerns; all of them without one.
    fn concerned(&self, id: Option<Uuid>) -> Vec<(u64, Standing, Topic)> {
        let organizations = self.lock();
        let all = organizations.values().flat_map(|organization| &organization.listeners);
        all.filter(|(_, listener)| id.is_none_or(|id| listener.standing.concerns(id)))
            .map(|(number, listener)| (*number, listener.standing, listener.topic))
            .collect()
    }

    /// Puts something into listeners' queues; whose queue is full is shown out.
    fn tell(organization: &mut Organization, wanted: impl Fn(&Listener) -> bool, frame: &Arc<Frame>) {
        organization
            .listeners
            .retain(|_, listener| !wanted(listener) || listener.queue.try_send(frame.clone()).is_ok());
    }
}

/// Tells everybody who is connected what there is to tell, until it is dropped.
pub async fn keep(app: Arc<App>) {
    let mut heard = app.db.listen();
    let mut check = tokio::time::interval(CHECK_EVERY);
    let mut work = Work::default();
    loop {
        tokio::select! {
            first = heard.next() => {
                work.add(&app, first);
                // What came meanwhile is done with it.
                while let Some(more) = heard.next_now() {
                    work.add(&app, more);
                }
            }
            _ = check.tick() => work.check_all = true,
            () = tokio::time::sleep(TRY_AGAIN), if work.is_left_over() => {}
        }
        work.run(&app).await;
    }
}

/// What was heard and is to be done.
#[derive(Default)]
struct Work {
    /// Organizations with new events.
    events: HashSet<Uuid>,
    /// Users with changed notifications, by organization.
    notifications: HashSet<(Uuid, Uuid)>,
    /// Whose access may have changed.
    changed: HashSet<Uuid>,
    check_all: bool,
}

impl Work {
    fn add(&mut self, app: &App, heard: Heard) {
        match heard {
            Heard::Connected => {
                self.events = app.hub.organizations();
                let all = app.hub.concerned(None);
                let personal = all.iter().filter(|(_, _, topic)| *topic == Topic::Notifications);
                self.notifications = personal.map(|(_, one, _)| (one.organization, one.user)).collect();
                self.check_all = true;
            }
            Heard::Lost => {}
            Heard::Notice { channel, payload } if channel == EVENTS => match payload.split_once(':') {
                None => self.events.extend(payload.parse::<Uuid>()),
                Some((organization, "*")) => {
                    let all = organization.parse().map(|id: Uuid| app.hub.concerned(Some(id)));
                    let all = all.unwrap_or_default();
                    let personal = all.iter().filter(|(_, _, topic)| *topic == Topic::Notifications);
                    self.notifications.extend(personal.map(|(_, one, _)| (one.organization, one.user)));
                }
                Some((organization, user)) => {
                    self.notifications.extend(organization.parse().ok().zip(user.parse().ok()));
                }
            },
            Heard::Notice { channel, payload } if channel == ACCESS || channel == DIRECTORY => {
                if let Ok(id) = payload.parse() {
                    if channel == DIRECTORY {
                        // The directory hears the same word, perhaps a moment later.
                        app.directory.forget(id);
                    }
                    self.changed.insert(id);
                }
            }
            Heard::Notice { .. } => {}
        }
    }

    fn is_left_over(&self) -> bool {
        self.check_all
            || !(self.changed.is_empty() && self.events.is_empty() && self.notifications.is_empty())
    }

    /// Does it; what cannot be done now stays.
    async fn run(&mut self, app: &Arc<App>) {
        // Before anything is told, so that nobody hears what they may not.
        if let Err(error) = self.check(app).await {
            tracing::warn!(%error, "who may listen could not be asked; nobody is told anything meanwhile");
            return;
        }
        let here = app.hub.organizations();
        let events: Vec<Uuid> = self.events.drain().filter(|id| here.contains(id)).collect();
        let failed: Vec<Uuid> = stream::iter(events)
            .map(|id| async move { tell_events(app, id).await.inspect_err(warn).err().map(|_| id) })
            .buffer_unordered(4)
            .filter_map(std::future::ready)
            .collect()
            .await;
        self.events.extend(failed);
        let users: Vec<(Uuid, Uuid)> =
            self.notifications.drain().filter(|(id, _)| here.contains(id)).collect();
        let failed: Vec<(Uuid, Uuid)> = stream::iter(users)
            .map(|(id, user)| async move {
                tell_notifications(app, id, user).await.inspect_err(warn).err().map(|_| (id, user))
            })
            .buffer_unordered(4)
            .filter_map(std::future::ready)
            .collect()
            .await;
        self.notifications.extend(failed);
    }

    async fn check(&mut self, app: &Arc<App>) -> Result<()> {
        if self.check_all {
            check(app, None).await?;
            self.check_all = false;
            self.changed.clear();
        }
        for id in self.changed.clone() {
            check(app, Some(id)).await?;
            self.changed.remove(&id);
        }
        Ok(())
    }
}

fn warn(error: &Error) {
    tracing::warn!(%error, "listeners could not be told; trying again");
}

/// Looks whether those whom it concerns may still be here, and shows the others out.
async fn check(app: &Arc<App>, id: Option<Uuid>) -> Result<()> {
    let concerned = app.hub.concerned(id);
    for some in concerned.chunks(CHECKED_AT_ONCE) {
        let asked: Vec<Standing> = some.iter().map(|(_, standing, _)| *standing).collect();
        let answers = standing::now(app, &asked).await?;
        let mut organizations = app.hub.lock();
        for ((number, standing, topic), answer) in some.iter().zip(answers) {
            let Some(organization) = organizations.get_mut(&standing.organization) else { continue };
            match answer.filter(|permissions| permissions.contains(topic.permission())) {
                Some(permissions) => {
                    if let Some(listener) = organization.listeners.get_mut(number) {
                        listener.permissions = permissions;
                    }
                }
                None => {
                    if let Some(listener) = organization.listeners.remove(number) {
                        listener.refused.send_replace(true);
                    }
                }
            }
        }
    }
    Ok(())
}

/// Reads what is new in an organization's log and tells those who may see it.
async fn tell_events(app: &Arc<App>, id: Uuid) -> Result<()> {
    loop {
        let told = |organization: &Organization| organization.wants_events().then_some(organization.told);
        let Some(after) = app.hub.lock().get(&id).and_then(told) else { return Ok(()) };
        let events = read_events(app, id, after, BATCH).await?;
        if events.is_empty() {
            return Ok(());
        }
        let count = events.len();
        let frames: Vec<(&Event, Arc<Frame>)> =
            events.iter().map(|event| (event, Arc::new(Frame::of_event(event)))).collect();
        for (event, frame) in &frames {
            let Some(position) = event.position else { continue };
            // For one event at a time: others join and leave in between.
            let mut organizations = app.hub.lock();
            let Some(organization) = organizations.get_mut(&id) else { return Ok(()) };
            if position <= organization.told {
                continue;
            }
            let wants = |one: &Listener| {
                one.topic == Topic::Dashboard && position > one.after && event.is_visible(one.permissions)
            };
            Hub::tell(organization, wants, frame);
            organization.told = position;
        }
        if count < BATCH as usize {
            return Ok(());
        }
    }
}

/// Events of an organization after a position, in order.
pub async fn read_events(app: &App, organization: Uuid, after: i64, most: i64) -> Result<Vec<Event>> {
    let Some(tenant) = fleet::tenant_by_id(&app.directory, organization).await? else {
        return Ok(Vec::new());
    };
    let tx = tenant.begin().await?;
    let sql = format!("select {} from events where position > $1 order by position limit $2", Event::COLUMNS);
    let rows = tx.query(&sql, &[&after, &most]).await?;
    rows.iter().map(|row| Event::from_row(row, organization)).collect()
}

/// Tells a user's listeners of new notifications, and how many are unread.
async fn tell_notifications(app: &Arc<App>, id: Uuid, user: Uuid) -> Result<()> {
    let mine = |one: &Listener| one.topic == Topic::Notifications && one.standing.user == user;
    let floor = {
        let mut organizations = app.hub.lock();
        let Some(organization) = organizations.get_mut(&id) else { return Ok(()) };
        let mut floor = None;
        for listener in organization.listeners.values_mut().filter(|one| mine(one)) {
            match &listener.known {
                Some(known) => floor = Some(floor.map_or(known.floor, |floor: Uuid| floor.min(known.floor))),
                None => listener.skipped = true,
            }
        }
        floor
    };
    let tenant = fleet::tenant_by_id(&app.directory, id).await?;
    let (Some(tenant), Some(floor)) = (tenant, floor) else { return Ok(()) };
    let tx = tenant.begin().await?;
    let found = notifications::after(&tx, user, floor, BATCH + 1).await?;
    let newest = notifications::newest(&tx, user, BATCH).await?;
    let unread = notifications::unread(&tx, user).await?;
    drop(tx);
    let counted = Arc::new(Frame::new("notifications.unread", None, &json!({"unread": unread})));
    let too_many = found.len() > BATCH as usize;
    let frames: Vec<(Uuid, Arc<Frame>)> = match too_many {
        true => vec![(Uuid::nil(), Arc::new(Frame::reset(None)))],
        false => found.iter().map(|one| (one.id, Arc::new(Frame::of_notification(one)))).collect(),
    };
    let mut organizations = app.hub.lock();
    let Some(organization) = organizations.get_mut(&id) else { return Ok(()) };
    organization.listeners.retain(|_, listener| {
        if !mine(listener) {
            return true;
        }
        let Some(known) = &mut listener.known else { return true };
        let mut told = Vec::new();
        for (id, frame) in &frames {
            if id.is_nil() || (*id > known.floor && known.ids.insert(*id)) {
                told.push(frame);
            }
        }
        *known = Known::of(&newest);
        told.into_iter().chain([&counted]).all(|frame| listener.queue.try_send(frame.clone()).is_ok())
    });
    Ok(())
}

impl Seat {
    /// From now on notifications are told that are not known.
    pub async fn knows(&self, known: Known) -> Result<()> {
        let missed = self.listener(|listener| {
            listener.known = Some(known);
            std::mem::take(&mut listener.skipped).then_some(listener.standing.user)
        });
        match missed.flatten() {
            Some(user) => tell_notifications(&self.app, self.organization, user).await,
            None => Ok(()),
        }
    }

    /// What the listener may do now, noted for what comes.
    pub fn may(&self, permissions: PermissionSet) {
        // The hub may have heard of less meanwhile.
        self.listener(|listener| listener.permissions = listener.permissions.intersection(permissions));
    }

    /// Changes something about whoever sits here, unless they were shown out.
    fn listener<T>(&self, change: impl FnOnce(&mut Listener) -> T) -> Option<T> {
        let mut organizations = self.app.hub.lock();
        Some(change(organizations.get_mut(&self.organization)?.listeners.get_mut(&self.number)?))
    }
}
