//! `rowhouse serve`.

use anyhow::Context;
use tokio::net::TcpListener;

use super::{app, stop_requested};
use crate::{config::LogConfig, http};

pub async fn run() -> anyhow::Result<()> {
    let app = app().await?;
    log_to_stderr(&app.config.log)?;
    let listen = &app.config.http.listen;
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("cannot listen on {listen}; set HTTP_LISTEN to a free address"))?;
    let background = app.start().await?;
    http::serve(app, listener, stop_requested()).await?;
    drop(background);
    Ok(())
}

/// Sends the log to standard error, as JSON lines or as text.
pub fn log_to_stderr(config: &LogConfig) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(&config.level).with_context(|| {
        format!("log.level (LOG_LEVEL) is {:?}; it takes levels such as info", config.level)
    })?;
    // At `debug` it writes the parameters of statements.
    let filter = filter.add_directive("tokio_postgres=warn".parse()?);
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match config.format.as_str() {
        "json" => builder.json().flatten_event(true).with_current_span(true).with_span_list(false).try_init(),
        _ => builder.try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("{error}"))
}
