//! The streams. Each carries frames `{"type", "id", "payload"}`; whoever reconnects says which id they
//! saw last and is told what came after it.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::{
    SinkExt, Stream, StreamExt,
    stream::{self, SplitSink, SplitStream},
};
use poem::web::websocket::{
    BoxWebSocketUpgraded, CloseCode, Message, WebSocket, WebSocketConfig, WebSocketStream,
};
use poem_openapi::{
    Object, OpenApi,
    param::{Header, Path, Query},
    types::Example,
};
use serde::Serialize;
use serde_json::json;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use uuid::Uuid;

use super::hub::{BATCH, Frame, Hub, Known, Seat, Topic, before, read_events};
use crate::{
    api::Tag,
    app::Stopping,
    auth::{
        Can, Member, PermissionSet, Watching,
        permissions::{NotificationsRead, OrganizationRead},
        standing::{self, Standing},
        tickets,
    },
    error::{Error, Result},
    http::{EventStream, Json},
    notifications,
    types::example_time,
};

/// A quiet connection is tried this often.
const PING_EVERY: Duration = Duration::from_secs(30);
/// Who has not answered for so long is gone.
const SILENCE: Duration = Duration::from_secs(75);
/// One frame may take so long to leave.
const SEND_WITHIN: Duration = Duration::from_secs(10);
/// Who was away for more than this reads the lists anew.
const MOST_CAUGHT_UP: i64 = 1_000;
const MOST_CAUGHT_UP_BYTES: usize = 1024 * 1024;

/// What a browser opens a stream with: `?ticket=...`.
#[derive(Debug, Serialize, Object)]
#[oai(example)]
pub struct Ticket {
    /// Good once.
    pub ticket: String,
    pub expires_at: DateTime<Utc>,
}

impl Example for Ticket {
    fn example() -> Self {
        Self { ticket: "rht_4fQzExampleExampleExampleEx".into(), expires_at: example_time() }
    }
}

pub struct RealtimeApi;

#[OpenApi(tag = "Tag::Realtime")]
impl RealtimeApi {
    /// Get a ticket to open one stream with.
    ///
    /// Browsers cannot send a token with a WebSocket or an EventSource. A ticket is good once, for 30 s.
    #[oai(path = "/realtime/tickets", method = "post", operation_id = "create_realtime_ticket")]
    async fn ticket(&self, who: Can<NotificationsRead>) -> Result<Json<Ticket>> {
        let expires_at = who.app.clock.now() + tickets::LIFETIME;
        Ok(Json(Ticket { ticket: tickets::issue(&who).await?, expires_at }))
    }

    /// One's own notifications, as a WebSocket.
    #[oai(path = "/ws/notifications", method = "get", operation_id = "ws_notifications")]
    async fn notifications(
        &self,
        who: Watching<NotificationsRead>,
        /// Instead of a token in the header.
        #[oai(name = "ticket")]
        _ticket: Query<Option<String>>,
        /// The id of the last frame that was seen.
        last_event_id: Query<Option<String>>,
        socket: WebSocket,
    ) -> Result<BoxWebSocketUpgraded> {
        let (seat, first) = open(&who, Topic::Notifications, last_event_id.0).await?;
        Ok(upgrade(&who, seat, first, socket))
    }

    /// What happens in an organization, as a WebSocket.
    ///
    /// Events of the types that the caller may see.
    #[oai(path = "/ws/dashboard/:organization_id", method = "get", operation_id = "ws_dashboard")]
    async fn dashboard(
        &self,
        who: Watching<OrganizationRead>,
        #[oai(name = "organization_id")] _id: Path<Uuid>,
        /// Instead of a token in the header.
        #[oai(name = "ticket")]
        _ticket: Query<Option<String>>,
        /// The id of the last frame that was seen.
        last_event_id: Query<Option<String>>,
        socket: WebSocket,
    ) -> Result<BoxWebSocketUpgraded> {
        let (seat, first) = open(&who, Topic::Dashboard, last_event_id.0).await?;
        Ok(upgrade(&who, seat, first, socket))
    }

    /// One's own notifications, as server-sent events.
    #[oai(path = "/sse/notifications", method = "get", operation_id = "sse_notifications")]
    async fn notifications_sse(
        &self,
        who: Watching<NotificationsRead>,
        #[oai(name = "ticket")] _ticket: Query<Option<String>>,
        last_event_id: Query<Option<String>>,
        /// What browsers send when they reconnect.
        #[oai(name = "Last-Event-ID")]
        resumed: Header<Option<String>>,
    ) -> Result<EventStream> {
        let (seat, first) = open(&who, Topic::Notifications, resumed.0.or(last_event_id.0)).await?;
        Ok(EventStream::new(lines(&who, seat, first)))
    }

    /// What happens in an organization, as server-sent events.
    #[oai(path = "/sse/dashboard/:organization_id", method = "get", operation_id = "sse_dashboard")]
    async fn dashboard_sse(
        &self,
        who: Watching<OrganizationRead>,
        #[oai(name = "organization_id")] _id: Path<Uuid>,
        #[oai(name = "ticket")] _ticket: Query<Option<String>>,
        last_event_id: Query<Option<String>>,
        #[oai(name = "Last-Event-ID")] resumed: Header<Option<String>>,
    ) -> Result<EventStream> {
        let (seat, first) = open(&who, Topic::Dashboard, resumed.0.or(last_event_id.0)).await?;
        Ok(EventStream::new(lines(&who, seat, first)))
    }
}

/// Takes a seat, and finds what the caller missed.
async fn open(who: &Member, topic: Topic, last: Option<String>) -> Result<(Seat, Vec<Arc<Frame>>)> {
    let standing = Standing {
        user: who.user_id,
        organization: who.tenant.id(),
        session: who.session,
        key: who.key.map(|key| key.id),
        address: who.origin.address,
    };
    let seat = Hub::join(&who.app, standing, who.permissions, topic).await?;
    // Access may have ended between the gate and the seat, from which on the hub hears of it.
    let now = standing::now(&who.app, &[standing]).await?.pop().flatten();
    let Some(permissions) = now.filter(|permissions| permissions.contains(topic.permission())) else {
        return Err(Error::denied("You may not see this any more."));
    };
    seat.may(permissions);
    let missed = match topic {
        Topic::Dashboard => missed_events(who, &seat, permissions, last).await?,
        Topic::Notifications => missed_notifications(who, &seat, last).await?,
    };
    Ok((seat, missed.into_iter().map(Arc::new).collect()))
}

async fn missed_events(
    who: &Member,
    seat: &Seat,
    permissions: PermissionSet,
    last: Option<String>,
) -> Result<Vec<Frame>> {
    let head = Some(seat.from.to_string());
    let ready = Frame::new("stream.ready", head.clone(), &json!({"position": seat.from}));
    let Some(last) = last else { return Ok(vec![ready]) };
    let wrong = || Error::invalid("last_event_id", "must be the id of a frame of this stream");
    let mut at: i64 = last.parse().ok().filter(|at| *at >= 0).ok_or_else(wrong)?;
    let too_far = at > seat.from || seat.from - at > MOST_CAUGHT_UP;
    let (mut frames, mut size) = (Vec::new(), 0);
    while at < seat.from && !too_far {
        let events = read_events(&who.app, who.tenant.id(), at, 50).await?;
        // The log was trimmed since.
        let follows = events.first().is_some_and(|event| event.position == Some(at + 1));
        if !follows || size > MOST_CAUGHT_UP_BYTES {
            break;
        }
        for event in events.iter().filter(|event| event.position <= Some(seat.from)) {
            at = event.position.unwrap_or(at);
            if event.is_visible(permissions) {
                let frame = Frame::of_event(event);
                size += frame.text.len();
                frames.push(frame);
            }
        }
    }
    if at != seat.from {
        frames = vec![Frame::reset(head)];
    }
    frames.push(ready);
    Ok(frames)
}

async fn missed_notifications(who: &Member, seat: &Seat, last: Option<String>) -> Result<Vec<Frame>> {
    let wrong = |_| Error::invalid("last_event_id", "must be the id of a frame of this stream");
    let last: Option<Uuid> = last.map(|last| last.parse().map_err(wrong)).transpose()?;
    let tx = who.begin().await?;
    let newest = notifications::newest(&tx, who.user_id, BATCH).await?;
    let missed = match last {
        // One with an older id may have been committed after it; whoever keeps ids can tell.
        Some(last) => {
            let from = before(last, Duration::from_secs(60));
            notifications::after(&tx, who.user_id, from, BATCH + 1).await?
        }
        None => Vec::new(),
    };
    let unread = notifications::unread(&tx, who.user_id).await?;
    drop(tx);
    seat.knows(Known::of(&newest)).await?;
    let mut frames: Vec<Frame> = match missed.len() as i64 > BATCH {
        true => vec![Frame::reset(None)],
        false => missed.iter().filter(|one| Some(one.id) != last).map(Frame::of_notification).collect(),
    };
    frames.push(Frame::new("notifications.unread", None, &json!({"unread": unread})));
    Ok(frames)
}

/// Why the service ends a stream.
#[derive(Clone, Copy)]
struct End(CloseCode, &'static str);

const REFUSED: End = End(CloseCode::Policy, "You may not see this any more.");
const TOO_SLOW: End = End(CloseCode::Again, "You are too slow. Resume from the last id.");
const STOPPING: End = End(CloseCode::Away, "The service stops. Connect again.");
const TALKATIVE: End = End(CloseCode::Policy, "Nothing is read here.");

/// Ready when the stream has to end, whatever is being sent.
async fn ended(refused: &mut watch::Receiver<bool>, stopping: &mut Stopping) -> End {
    let gone = async {
        if refused.wait_for(|refused| *refused).await.is_err() {
            // The hub showed the listener out for another reason, which its queue tells.
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = gone => REFUSED,
        () = stopping.requested() => STOPPING,
    }
}

fn upgrade(who: &Member, seat: Seat, first: Vec<Arc<Frame>>, socket: WebSocket) -> BoxWebSocketUpgraded {
    let stopping = who.app.stopping();
    // Nobody sends us anything but answers to pings, and what we send is written at once.
    let config = WebSocketConfig::default()
        .read_buffer_size(1024)
        .write_buffer_size(0)
        .max_write_buffer_size(1024 * 1024)
        .max_message_size(Some(4096))
        .max_frame_size(Some(4096));
    socket
        .config(config)
        .on_upgrade(move |socket| async move {
            // A connection that breaks has nobody to tell.
            let _ = converse(seat, socket, first, stopping).await;
        })
        .boxed()
}

/// Sends what is told until one side ends it.
async fn converse(
    mut seat: Seat,
    socket: WebSocketStream,
    first: Vec<Arc<Frame>>,
    mut stopping: Stopping,
) -> Option<()> {
    let (mut sink, mut messages) = socket.split();
    let mut refused = seat.refused.clone();
    let End(code, why) = tokio::select! {
        biased;
        end = ended(&mut refused, &mut stopping) => end,
        end = talk(&mut seat, &mut sink, &mut messages, first) => end?,
    };
    drop(seat);
    let close = Message::Close(Some((code, why.into())));
    timeout(SEND_WITHIN, sink.send(close)).await.ok()?.ok()?;
    // Closed with something unread, the goodbye might not arrive.
    let goodbye = async { while messages.next().await.is_some_and(|message| message.is_ok()) {} };
    timeout(Duration::from_secs(1), goodbye).await.ok()
}

/// The frames and pings; `None` where the client is gone.
async fn talk(
    seat: &mut Seat,
    sink: &mut SplitSink<WebSocketStream, Message>,
    messages: &mut SplitStream<WebSocketStream>,
    first: Vec<Arc<Frame>>,
) -> Option<End> {
    for frame in first {
        timeout(SEND_WITHIN, sink.send(Message::Text(frame.text.clone()))).await.ok()?.ok()?;
    }
    let mut ping = interval(PING_EVERY);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ping.reset();
    let mut heard = Instant::now();
    loop {
        tokio::select! {
            told = seat.queue.recv() => match told {
                Some(frame) => {
                    timeout(SEND_WITHIN, sink.send(Message::Text(frame.text.clone()))).await.ok()?.ok()?;
                }
                None => return Some(TOO_SLOW),
            },
            message = messages.next() => match message {
                Some(Ok(Message::Close(_))) => {
                    // Answers the goodbye.
                    timeout(SEND_WITHIN, sink.close()).await.ok()?.ok()?;
                    return None;
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => heard = Instant::now(),
                Some(Ok(_)) => return Some(TALKATIVE),
                Some(Err(_)) | None => return None,
            },
            _ = ping.tick() => {
                if heard.elapsed() > SILENCE {
                    return None;
                }
                timeout(SEND_WITHIN, sink.send(Message::Ping(Vec::new()))).await.ok()?.ok()?;
            }
        }
    }
}

/// The same as server-sent events. A task of its own feeds the answer, so that a client that does not
/// read holds nothing but what is on its way.
fn lines(
    who: &Member,
    seat: Seat,
    first: Vec<Arc<Frame>>,
) -> impl Stream<Item = std::io::Result<Bytes>> + Send + 'static {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(feed(seat, first, who.app.stopping(), sender));
    stream::unfold(receiver, |mut receiver| async move { Some((Ok(receiver.recv().await?), receiver)) })
}

async fn feed(mut seat: Seat, first: Vec<Arc<Frame>>, mut stopping: Stopping, lines: mpsc::Sender<Bytes>) {
    let mut refused = seat.refused.clone();
    let telling = async {
        for frame in first {
            timeout(SEND_WITHIN, lines.send(event(&frame))).await.ok()?.ok()?;
        }
        loop {
            let line = tokio::select! {
                told = seat.queue.recv() => match told {
                    Some(frame) => event(&frame),
                    None => return Some(TOO_SLOW),
                },
                () = tokio::time::sleep(PING_EVERY) => Bytes::from_static(b": ping\n\n"),
                () = lines.closed() => return None,
            };
            timeout(SEND_WITHIN, lines.send(line)).await.ok()?.ok()?;
        }
    };
    let end = tokio::select! {
        biased;
        end = ended(&mut refused, &mut stopping) => Some(end),
        end = telling => end,
    };
    if let Some(End(_, why)) = end {
        let line = format!("event: end\ndata: {}\n\n", json!({"reason": why}));
        let _ = timeout(Duration::from_secs(1), lines.send(line.into())).await;
    }
}

fn event(frame: &Frame) -> Bytes {
    match &frame.id {
        Some(id) => format!("id: {id}\ndata: {}\n\n", frame.text).into(),
        None => format!("data: {}\n\n", frame.text).into(),
    }
}
