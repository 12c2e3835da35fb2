//! Hearing what other instances say: `listen` on a connection of its own.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_postgres::AsyncMessage;
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::error::{Error, Result};

/// What a listener hears.
#[derive(Debug)]
pub enum Heard {
    /// Listening has begun, or begun again: whatever was said before may have been missed.
    Connected,
    /// The connection broke: from now on things may be missed.
    Lost,
    /// Somebody said something on a channel.
    Notice { channel: String, payload: String },
}

pub type Listener = mpsc::UnboundedReceiver<Heard>;

/// Listens until the receiver is dropped, connecting again after each break.
pub(super) fn listen(
    config: tokio_postgres::Config,
    tls: MakeRustlsConnect,
    channels: &'static [&'static str],
) -> Listener {
    let (said, heard) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while !said.is_closed() {
            if let Err(error) = session(&config, &tls, channels, &said).await {
                tracing::warn!(%error, "listening to the database was interrupted; connecting again");
            }
            if said.send(Heard::Lost).is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    });
    heard
}

/// A connection that dies without a word is noticed within twice this time.
const PING_EVERY: Duration = Duration::from_millis(500);

async fn session(
    config: &tokio_postgres::Config,
    tls: &MakeRustlsConnect,
    channels: &[&str],
    said: &mpsc::UnboundedSender<Heard>,
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
    let commands: String = channels.iter().map(|channel| format!("listen {channel};")).collect();
    tokio::time::timeout(Duration::from_secs(5), client.batch_execute(&commands))
        .await
        .map_err(|_| lost())??;
    if said.send(Heard::Connected).is_err() {
        return Ok(());
    }
    let mut ping = tokio::time::interval(PING_EVERY);
    loop {
        tokio::select! {
            notice = notices.recv() => {
                let notice = notice.ok_or_else(lost)?;
                let heard = Heard::Notice { channel: notice.channel().into(), payload: notice.payload().into() };
                if said.send(heard).is_err() {
                    return Ok(());
                }
            }
            _ = ping.tick() => {
                tokio::time::timeout(PING_EVERY, client.batch_execute("")).await.map_err(|_| lost())??;
            }
            () = said.closed() => return Ok(()),
        }
    }
}
