//! Hearing what other instances say: `listen` on a connection of its own.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::sync::mpsc;
use tokio_postgres::AsyncMessage;
use tokio_postgres_rustls::MakeRustlsConnect;

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

async fn session(
    config: &tokio_postgres::Config,
    tls: &MakeRustlsConnect,
    channels: &[&str],
    said: &mpsc::UnboundedSender<Heard>,
) -> Result<(), tokio_postgres::Error> {
    let (client, mut connection) = config.connect(tls.clone()).await?;
    let mut messages = stream::poll_fn(move |context| connection.poll_message(context));
    let commands: String = channels.iter().map(|channel| format!("listen {channel};")).collect();
    // The connection only moves while its messages are read, so both are driven together.
    let mut listening = Box::pin(client.batch_execute(&commands));
    let mut ready = false;
    loop {
        tokio::select! {
            result = &mut listening, if !ready => {
                result?;
                ready = true;
                if said.send(Heard::Connected).is_err() {
                    return Ok(());
                }
            }
            message = messages.next() => match message {
                Some(Ok(AsyncMessage::Notification(notice))) => {
                    let heard = Heard::Notice { channel: notice.channel().into(), payload: notice.payload().into() };
                    if said.send(heard).is_err() {
                        return Ok(());
                    }
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error),
                None => return Ok(()),
            },
            () = said.closed() => return Ok(()),
        }
    }
}
