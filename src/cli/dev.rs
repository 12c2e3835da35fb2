//! `rowhouse dev`: everything on this machine, with nothing to set up.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use base64::{Engine, engine::general_purpose::STANDARD};
use secrecy::ExposeSecret;
use tokio::net::TcpListener;

use super::{
    demo, migrate,
    postgres::{self, Keeping, PrivatePostgres, write_private},
    serve, stop_requested,
};
use crate::{
    app::{App, Part},
    auth::sealing::random,
    clock::Clock,
    config::Config,
    db::Db,
    http,
    tenancy::fleet::Options,
};

/// The data stays in .rowhouse/ and is there again at the next start.
#[derive(clap::Args)]
pub struct Args {
    /// Throw the data away and start over.
    #[arg(long)]
    reset: bool,
    /// Port of the service; the next free one is taken where it is in use.
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Folder for the data.
    #[arg(long, default_value = ".rowhouse")]
    home: PathBuf,
    /// Show the log of every request.
    #[arg(long)]
    verbose: bool,
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    fs::create_dir_all(&args.home).with_context(|| format!("making {}", args.home.display()))?;
    let home = args.home.canonicalize()?;
    let lock = fs::File::create(home.join("lock"))?;
    if lock.try_lock().is_err() {
        bail!(
            "`rowhouse dev` already runs in {}; stop it, or use another folder with --home",
            home.display()
        );
    }
    let place = PrivatePostgres::place(&home)?;
    if args.reset {
        reset(&home, &place).await?;
    }
    println!("Starting a private Postgres …");
    let postgres = PrivatePostgres::start(&place, Keeping::Data).await?;
    // Whatever happens below, the server is stopped before the process ends.
    let outcome = run_on(&postgres, &home, &args).await;
    println!("Stopping Postgres …");
    postgres.stop();
    println!("Stopped. The data is kept; `--reset` starts over.");
    outcome
}

async fn run_on(postgres: &PrivatePostgres, home: &Path, args: &Args) -> anyhow::Result<()> {
    let listener = free_listener(args.port).await?;
    let address = listener.local_addr()?;
    let config = write_config(postgres, home, &address.to_string())?;
    serve::log_to_stderr(&crate::config::LogConfig {
        level: if args.verbose { "info".into() } else { config.log.level.replace("info", "warn") },
        format: "text".into(),
    })?;
    Db::create_database_if_missing(&config.database).await?;
    let app = App::new(config, Clock::default())?;
    migrate::migrate(&app, &Options { max_failures: 1, ..Options::default() }).await?;
    let background = app.start(Part::All).await?;
    if demo::load(&app).await? {
        println!("demo data: loaded");
    }
    print_table(address.port(), postgres.port(), home);
    http::serve(app.clone(), listener, stop_requested()).await?;
    background.stop().await;
    Ok(())
}

/// Removes the data, after waiting for the end of a server that may still hold it.
async fn reset(home: &Path, place: &Path) -> anyhow::Result<()> {
    postgres::end_earlier_run(place).await?;
    for path in [place.to_owned(), home.join("rowhouse.toml"), home.join("backups"), home.join("files")] {
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        if let Err(error) = removed
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(error).with_context(|| format!("removing {}", path.display()));
        }
    }
    println!("Removed the earlier data.");
    Ok(())
}

async fn free_listener(first: u16) -> anyhow::Result<TcpListener> {
    for port in first..first.saturating_add(100) {
        match TcpListener::bind(("127.0.0.1", port)).await {
            Ok(listener) => return Ok(listener),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(error).with_context(|| format!("listening on port {port}")),
        }
    }
    bail!("no free port from {first} on; choose another with --port")
}

/// Writes the settings where the other commands look, keeping the sealing key of earlier runs.
fn write_config(postgres: &PrivatePostgres, home: &Path, listen: &str) -> anyhow::Result<Config> {
    let key_file = PrivatePostgres::place(home)?.join("secret_key");
    if !key_file.is_file() {
        write_private(&key_file, &STANDARD.encode(random::<32>()?))?;
    }
    let key = fs::read_to_string(&key_file)?;
    let file = home.join("rowhouse.toml");
    let text = format!(
        "# Written by `rowhouse dev` at each start.\n[database]\nurl = \"{}\"\n\n[http]\nlisten = \"{listen}\"\n\
         base_domain = \"localhost\"\n\n[auth]\nsecret_key = \"{}\"\n\n\
         # On one's own machine everybody comes from the same address.\n[limits]\nanonymous = \"10000/h\"\n\
         register = \"1000/h\"\npassword_reset = \"100/h\"\n\n[mail]\nfolder = {:?}\n\
         app_url = \"http://{listen}\"\n\n[webhooks]\nallow_loopback = true\n\n\
         [backups]\nfolder = {:?}\n\n[files]\nfolder = {:?}\n",
        postgres.url("rowhouse").expose_secret(),
        key.trim(),
        home.join("mail"),
        home.join("backups"),
        home.join("files"),
    );
    write_private(&file, &text)?;
    Config::load_dev(&file)
}

fn print_table(port: u16, postgres: u16, home: &Path) {
    let line = "─".repeat(74);
    println!("\n{line}\n  Rowhouse is ready.\n");
    println!("  API              http://localhost:{port}/api/v1");
    println!("  Documentation    http://localhost:{port}/docs");
    for organization in demo::ORGANIZATIONS {
        println!("  {:<16} http://{}.localhost:{port}", organization.name, organization.slug);
    }
    println!("  Postgres         127.0.0.1:{postgres}, settings in {}", home.join("rowhouse.toml").display());
    println!("  Mail             written to {}", home.join("mail").display());
    println!("\n  Logins, all with the password {}", demo::PASSWORD);
    for organization in demo::ORGANIZATIONS {
        for person in organization.people {
            println!("    {:<9} {}", person.role.name(), demo::email(organization, person));
        }
    }
    println!("\n  Ctrl-C stops everything; the data stays.\n{line}");
}
