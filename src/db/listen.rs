//! Hearing what other instances say: `listen` on a connection of its own, one for the process.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt, stream};
use tokio::{
    sync::{Notify, broadcast, mpsc},
    task::JoinSet,
};
use tokio_postgres::AsyncMessage;
use tokio_postgres_rustls::MakeRustlsConnect;
use uuid::Uuid;

use super::Fresh;
use crate::error::{Error, Result};

/// What is said, and who listens: `directory` drops what it holds, workers look for jobs, the
/// dispatcher for events, and realtime for what the dispatcher told and for whose access changed.
pub const DIRECTORY: &str = "rowhouse_directory";
pub const JOBS: &str = "rowhouse_jobs";
pub const OUTBOX: &str = "rowhouse_outbox";
pub const EVENTS: &str = "rowhouse_events";
pub const ACCESS: &str = "rowhouse_access";
const CHANNELS: [&str; 5] = [DIRECTORY, JOBS, OUTBOX, EVENTS, ACCESS];

/// Says on a channel, without a payload, that something was committed.
///
/// `notify` in the transaction of a change would make every commit of the database wait for one
/// lock. So the change only remembers to say it; the listening connection does, for many at once.
/// Should the process die in between, whoever listens also looks now and then.
#[derive(Default)]
pub(super) struct Announcer {
    channels: AtomicU8,
    anything: Notify,
    /// Whose access has changed.
    pub access: Fresh,
}

impl Announcer {
    pub fn say(&self, channels: u8, touched: &[Uuid]) {
        touched.iter().for_each(|id| self.access.changed(*id));
        if channels != 0 {
            self.channels.fetch_or(channels, Ordering::Relaxed);
            self.anything.notify_one();
        }
    }

    /// The bit of a channel.
    pub fn bit(channel: &str) -> u8 {
        CHANNELS.iter().position(|known| *known == channel).map_or(0, |place| 1 << place)
    }

    /// Waits until there is something to say, and a moment for more to come.
    async fn collect(&self) -> String {
        loop {
            // Whoever gave up waiting here may have taken the word of it along.
            if self.channels.load(Ordering::Relaxed) == 0 {
                self.anything.notified().await;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
            let bits = self.channels.swap(0, Ordering::Relaxed);
            let said = CHANNELS.iter().enumerate().filter(|(place, _)| bits & (1 << place) != 0);
            let commands: String = said.map(|(_, channel)| format!("notify {channel};")).collect();
            if !commands.is_empty() {
                return commands;
            }
        }
    }
}

/// What a listener hears.
#[derive(Clone, Debug)]
pub enum Heard {
    /// Listening has begun, or begun again: whatever was said before may have been missed.
    Connected,
    /// The connection broke: from now on things may be missed.
    Lost,
    /// Somebody said something on a channel.
    Notice { channel: String, payload: String },
}

/// Hears everything; each part of the service picks what is for it.
pub struct Listener(broadcast::Receiver<Heard>);

impl Listener {
    pub(super) fn new(heard: broadcast::Receiver<Heard>) -> Self {
        Self(heard)
    }

    /// The next thing, if there is one already.
    pub fn next_now(&mut self) -> Option<Heard> {
        match self.0.try_recv() {
            Ok(heard) => Some(heard),
            Err(broadcast::error::TryRecvError::Lagged(_)) => Some(Heard::Connected),
            Err(_) => None,
        }
    }

    /// The next thing; waits for it.
    pub async fn next(&mut self) -> Heard {
        match self.0.recv().await {
            Ok(heard) => heard,
            // This listener was too slow for what is kept for it.
            Err(broadcast::error::RecvError::Lagged(_)) => Heard::Connected,
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}

/// Listens for as long as somebody wants to hear, connecting again after each break.
pub(super) async fn listen(
    config: tokio_postgres::Config,
    tls: MakeRustlsConnect,
    said: broadcast::Sender<Heard>,
    announcer: Arc<Announcer>,
) {
    let listening = async {
        loop {
            if let Err(error) = session(&config, &tls, &said, &announcer).await {
                tracing::warn!(%error, "listening to the database was interrupted; connecting again");
            }
            announcer.access.set_hearing(false);
            let _ = said.send(Heard::Lost);
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    tokio::select! {
        () = listening => {}
        () = said.closed() => announcer.access.set_hearing(false),
    }
}

/// A connection that dies without a word is noticed within twice this time.
const PING_EVERY: Duration = Duration::from_millis(500);

async fn session(
    config: &tokio_postgres::Config,
    tls: &MakeRustlsConnect,
    said: &broadcast::Sender<Heard>,
    announcer: &Announcer,
) -> Result<()> {
    let lost = || Error::unavailable("the listening connection does not answer", 1);
    let connecting = tokio::time::timeout(Duration::from_secs(5), config.connect(tls.clone()));
    let (client, mut connection) = connecting.await.map_err(|_| lost())??;
    // The connection moves while its messages are read; the set ends that with this function.
    let (forward, mut notices) = mpsc::unbounded_channel();
    let mut reader = JoinSet::new();
    reader.spawn(async move {
        let mut messages = stream::poll_fn(move |context| connection.poll_message(context));
        while let Some(Ok(message)) = messages.next().await {
            if let AsyncMessage::Notification(notice) = message
                && forward.send(notice).is_err()
            {
                return;
            }
        }
    });
    let commands: String = CHANNELS.iter().map(|channel| format!("listen {channel};")).collect();
    tokio::time::timeout(Duration::from_secs(5), client.batch_execute(&commands))
        .await
        .map_err(|_| lost())??;
    announcer.access.set_hearing(true);
    let _ = said.send(Heard::Connected);
    let mut ping = tokio::time::interval(PING_EVERY);
    // Goes on where it was when something else came first.
    let mut collected = pin!(announcer.collect());
    loop {
        tokio::select! {
            notice = notices.recv() => {
                let notice = notice.ok_or_else(lost)?;
                if notice.channel() == ACCESS {
                    notice.payload().parse().map_or_else(|_| announcer.access.all_changed(), |id| announcer.access.changed(id));
                }
                let heard = Heard::Notice { channel: notice.channel().into(), payload: notice.payload().into() };
                let _ = said.send(heard);
            }
            commands = &mut collected => {
                collected.set(announcer.collect());
                tokio::time::timeout(PING_EVERY, client.batch_execute(&commands)).await.map_err(|_| lost())??;
            }
            _ = ping.tick() => {
                tokio::time::timeout(PING_EVERY, client.batch_execute("")).await.map_err(|_| lost())??;
            }
        }
    }
}
