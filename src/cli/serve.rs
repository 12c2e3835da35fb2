//! `rowhouse serve` and `rowhouse worker`.

use anyhow::Context;
use tokio::net::TcpListener;

use super::{app, stop_requested};
use crate::{app::Part, config::LogConfig, http};

#[derive(clap::Args)]
pub struct Args {
    /// Answer requests only; jobs, events and schedules are left to `rowhouse worker`.
    #[arg(long)]
    web_only: bool,
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    let part = if args.web_only { Part::Web } else { Part::All };
    let app = app().await?;
    log_to_stderr(&app.config.log)?;
    let listen = &app.config.http.listen;
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("cannot listen on {listen}; set HTTP_LISTEN to a free address"))?;
    let background = app.start(part).await?;
    http::serve(app, listener, stop_requested()).await?;
    background.stop().await;
    Ok(())
}

/// Does jobs, tells of events and keeps the schedules until it is asked to stop.
pub async fn work() -> anyhow::Result<()> {
    let app = app().await?;
    log_to_stderr(&app.config.log)?;
    let background = app.start(Part::Worker).await?;
    tracing::info!("working; stop with SIGTERM or Ctrl-C");
    stop_requested().await;
    background.stop().await;
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
