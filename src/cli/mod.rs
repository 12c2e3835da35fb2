//! The command line: one binary, a command for each thing an operator or developer does.

mod config;
mod database;
mod demo;
mod dev;
mod doctor;
mod migrate;
mod openapi;
pub mod postgres;
mod schedule;
mod serve;
mod stripe;
mod tenant;
mod user;

use std::sync::Arc;

use anyhow::Context;
use clap::{Parser, Subcommand};

use crate::{app::App, clock::Clock, config::Config};

/// Rowhouse: many organizations in one service, each in a Postgres schema of its own.
///
/// New here? `rowhouse dev` starts everything with a database and demo data of its own. For a real
/// installation set DATABASE_URL and ROWHOUSE_SECRET_KEY, then run `rowhouse migrate` and
/// `rowhouse serve`. `rowhouse doctor` says what is wrong and how to mend it.
#[derive(Parser)]
#[command(version, about, long_about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the API, and do the jobs, until SIGTERM or Ctrl-C.
    Serve(serve::Args),
    /// Do jobs, tell of events and keep the schedules, beside `serve --web-only`.
    Worker,
    /// See what is done by the clock.
    #[command(subcommand)]
    Schedule(schedule::Command),
    /// Set up payments.
    #[command(subcommand)]
    Stripe(stripe::Command),
    /// Start a private Postgres, migrations, demo data and the service, for development.
    Dev(dev::Args),
    /// Bring the platform schema, then every tenant schema, up to this version.
    Migrate(migrate::Args),
    /// See and make organizations; save, restore, copy, move, close and erase them.
    #[command(subcommand)]
    Tenant(tenant::Command),
    /// See and add the database servers that organizations are on.
    #[command(subcommand)]
    Database(database::Command),
    /// Manage accounts that the API cannot make.
    #[command(subcommand)]
    User(user::Command),
    /// Write the API document to openapi/, or check that it is current.
    Openapi(openapi::Args),
    /// Say what is wrong with the environment, and how to mend it.
    Doctor,
    /// Print the configuration in force, with secrets masked.
    Config(config::Args),
}

/// Runs the command that the arguments name.
pub fn run() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(async {
        match cli.command {
            Command::Serve(args) => serve::run(args).await,
            Command::Worker => serve::work().await,
            Command::Schedule(command) => schedule::run(command).await,
            Command::Stripe(command) => stripe::run(command).await,
            Command::Dev(args) => dev::run(args).await,
            Command::Migrate(args) => migrate::run(args).await,
            Command::Tenant(command) => tenant::run(command).await,
            Command::Database(command) => database::run(command).await,
            Command::User(command) => user::run(command).await,
            Command::Openapi(args) => openapi::run(args),
            Command::Doctor => doctor::run().await,
            Command::Config(args) => config::run(args),
        }
    });
    // A hash or a name look-up under way must not hold up the exit.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    outcome
}

/// The application for a command that works on the configured database.
async fn app() -> anyhow::Result<Arc<App>> {
    let app = App::new(Config::load()?, Clock::default())?;
    let tx = app.db.begin().await.map_err(plain)?;
    let version = crate::db::migrations::shared_version(&tx).await.map_err(plain).with_context(|| {
        format!("the database {} does not answer", crate::db::describe(&app.config.database.url))
    })?;
    let wanted = crate::db::migrations::shared_set().latest();
    anyhow::ensure!(
        version >= wanted,
        "the platform schema is at version {version}, this program needs {wanted}: run `rowhouse migrate` first"
    );
    Ok(app)
}

/// An error of the service as a command prints it: with its cause.
fn plain(error: crate::error::Error) -> anyhow::Error {
    anyhow::anyhow!("{error}")
}

/// Ready when the process is asked to stop.
async fn stop_requested() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut hangup)) = (signal(SignalKind::terminate()), signal(SignalKind::hangup()))
    else {
        let _ = tokio::signal::ctrl_c().await;
        return;
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
}
