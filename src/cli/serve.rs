//! `rowhouse serve`.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use tokio::net::TcpListener;

use super::{app, stop_requested};
use crate::{app::App, config::LogConfig, http, tenancy::fleet};

pub async fn run() -> anyhow::Result<()> {
    let app = app().await?;
    log_to_stderr(&app.config.log)?;
    let listen = &app.config.http.listen;
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("cannot listen on {listen}; set HTTP_LISTEN to a free address"))?;
    let background = start(&app).await?;
    http::serve(app, listener, stop_requested()).await?;
    drop(background);
    Ok(())
}

/// Starts what runs beside the requests; it ends when the result is dropped.
pub async fn start(app: &Arc<App>) -> anyhow::Result<tokio::task::JoinSet<()>> {
    app.keys.load(app.clock.now()).await?;
    let mut background = tokio::task::JoinSet::new();
    let listening = app.clone();
    background.spawn(async move { listening.directory.listen().await });
    background.spawn(fleet::keep_spares(app.clone()));
    background.spawn(sweep(app.clone()));
    Ok(background)
}

/// Once an hour removes what has had its time: idempotency keys, and sessions a month after their end.
async fn sweep(app: Arc<App>) {
    loop {
        let now = app.clock.now();
        let (day, month) = (now - chrono::TimeDelta::hours(24), now - chrono::TimeDelta::days(30));
        let swept = async {
            let tx = app.db.begin().await?;
            tx.execute("delete from platform.idempotency_keys where claimed_at < $1", &[&day]).await?;
            tx.execute("delete from platform.sessions where expires_at < $1", &[&month]).await?;
            tx.execute("delete from platform.refresh_tokens where expires_at < $1", &[&now]).await?;
            tx.commit().await
        };
        if let Err(error) = swept.await {
            tracing::warn!(%error, "sweeping failed; trying again in an hour");
        }
        tokio::time::sleep(Duration::from_secs(3600)).await;
    }
}

/// Sends the log to standard error, as JSON lines or as text.
pub fn log_to_stderr(config: &LogConfig) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(&config.level).with_context(|| {
        format!("log.level (LOG_LEVEL) is {:?}; it takes levels such as info", config.level)
    })?;
    // At `debug` it writes the parameters of statements.
    let filter = filter.add_directive("tokio_postgres=info".parse()?);
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match config.format.as_str() {
        "json" => builder.json().flatten_event(true).with_current_span(true).with_span_list(false).try_init(),
        _ => builder.try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("{error}"))
}
