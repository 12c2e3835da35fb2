//! `rowhouse database …`.

use std::io::Read;

use anyhow::Context;
use secrecy::SecretString;

use super::{app, plain};
use crate::{
    app::App,
    db,
    tenancy::databases::{self, CAPACITY, Change, Database},
    types::Slug,
};

/// An organization's schema is on one of several Postgres servers; what is shared stays on the first,
/// which DATABASE_URL names.
#[derive(clap::Subcommand)]
pub enum Command {
    /// List the servers, and how full they are.
    List,
    /// Add a server. New organizations go to the emptiest from then on.
    ///
    /// It takes Postgres 15 or newer with max_prepared_transactions above 0, there and on the first server, and an
    /// empty database in UTF8 whose user may create schemas.
    Add {
        /// What it is called here.
        name: Slug,
        /// Its address: postgres://user:password@host:port/database. `-` reads it from standard input, where no
        /// list of processes shows it.
        #[arg(long)]
        url: String,
        /// How many organizations it is meant for.
        #[arg(long, default_value_t = CAPACITY)]
        capacity: u32,
    },
    /// Change a server: whether new organizations go there, how many, where the same database is found now.
    Set {
        name: String,
        /// `true` or `false`.
        #[arg(long)]
        accepts: Option<bool>,
        /// How many organizations it is meant for.
        #[arg(long)]
        capacity: Option<u32>,
        /// Another address of the same database, as after a change of the password; `-` for standard input.
        #[arg(long)]
        url: Option<String>,
    },
    /// Look at every server, and say what is wrong.
    Check,
}

pub async fn run(command: Command) -> anyhow::Result<()> {
    let app = app().await?;
    match command {
        Command::List => list(&app).await,
        Command::Add { name, url, capacity } => {
            let url = address(&url)?;
            let id = databases::add(&app, &name, &url, capacity).await.map_err(plain)?;
            println!("added {name} ({id}), {}", db::describe(&url));
            println!(
                "new organizations go to the emptiest server; `rowhouse tenant move` brings others there"
            );
            Ok(())
        }
        Command::Set { name, accepts, capacity, url } => {
            anyhow::ensure!(
                accepts.is_some() || capacity.is_some() || url.is_some(),
                "nothing to change: give --accepts, --capacity or --url"
            );
            let change = Change { accepts, capacity, url: url.as_deref().map(address).transpose()? };
            let now = databases::change(&app, &name, &change).await.map_err(plain)?;
            let takes = if now.accepts { "takes new organizations" } else { "takes no new organizations" };
            println!("{name} {takes}, and is meant for {}", now.capacity);
            Ok(())
        }
        Command::Check => check(&app).await,
    }
}

fn address(text: &str) -> anyhow::Result<SecretString> {
    if text != "-" {
        return Ok(text.into());
    }
    let mut read = String::new();
    std::io::stdin().read_to_string(&mut read)?;
    let line = read.lines().next().map(str::trim).filter(|line| !line.is_empty());
    Ok(line.context("no address on standard input")?.into())
}

async fn list(app: &App) -> anyhow::Result<()> {
    println!(
        "{:<16} {:>13} {:>6} {:>6} {:>8}  {:<7} ADDRESS",
        "NAME", "ORGANIZATIONS", "SPARES", "OTHERS", "CAPACITY", "ACCEPTS"
    );
    for found in databases::list(app).await.map_err(plain)? {
        println!(
            "{:<16} {:>13} {:>6} {:>6} {:>8}  {:<7} {}",
            found.name,
            found.organizations,
            found.spares,
            found.others,
            found.capacity,
            if found.accepts { "yes" } else { "no" },
            place(app, &found),
        );
    }
    Ok(())
}

fn place(app: &App, database: &Database) -> String {
    db::describe(database.url.as_ref().unwrap_or(&app.config.database.url))
}

async fn check(app: &App) -> anyhow::Result<()> {
    let all = databases::list(app).await.map_err(plain)?;
    let mut problems = 0;
    for database in &all {
        let name = &database.name;
        let (found, wrong) = match databases::check(app, database, all.len() == 1).await {
            Ok(found) => found,
            Err(error) => {
                problems += 1;
                println!("  FAIL  {name}, {}: {error}", place(app, database));
                continue;
            }
        };
        println!(
            "  {}  {name}: Postgres {}, {} of {} connections, {} of {} prepared transactions, {} schemas",
            if wrong.is_empty() { "ok  " } else { "FAIL" },
            found.version,
            found.connections,
            found.max_connections,
            found.prepared,
            found.max_prepared,
            found.schemas,
        );
        problems += wrong.len();
        wrong.iter().for_each(|wrong| println!("        -> {wrong}"));
    }
    anyhow::ensure!(problems == 0, "{problems} problem(s)");
    Ok(())
}
