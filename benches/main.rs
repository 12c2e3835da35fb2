//! Benchmarks, on a Postgres of their own: `make bench` measures the fleet and then jobs, in less
//! than 15 minutes; `make bench ARGS=jobs` one thing.

mod fleet;
mod jobs;
mod lists;
mod load;
mod metering;
mod peer;
mod pgbench;
mod report;
mod search;
mod service;
mod sockets;
mod tenants;

use std::{path::PathBuf, sync::Arc};

use rowhouse::{
    app::App,
    cli::postgres::{Keeping, PrivatePostgres},
    clock::Clock,
    config::Config,
    db::{Db, migrations::migrate_shared},
};
use secrecy::ExposeSecret;

/// What is measured where nothing is named.
const USUAL: [&str; 2] = ["fleet", "jobs"];
const ALL: [&str; 7] = ["fleet", "jobs", "lists", "search", "fairness", "metering", "sockets"];

/// A database server for the time of the benchmarks.
pub struct Ground {
    postgres: PrivatePostgres,
    pub place: PathBuf,
}

impl Ground {
    async fn start() -> anyhow::Result<Self> {
        let place = std::env::temp_dir().join(format!("rowhouse-bench-{}", std::process::id()));
        // As a server is that keeps what it is given: every commit waits for the disk.
        Ok(Self { postgres: PrivatePostgres::start(&place, Keeping::Data).await?, place })
    }

    pub fn url(&self, database: &str) -> String {
        self.postgres.url(database).expose_secret().to_owned()
    }

    /// A configuration for a database of this name.
    fn config(&self, database: &str) -> anyhow::Result<Config> {
        use confique::Config as _;
        let text = format!(
            "[database]\nurl = {:?}\n[auth]\nsecret_key = \"{SECRET}\"\naccess_token_minutes = 600\n\
             [limits]\nanonymous = \"off\"\nuser = \"off\"\n\
             organization = \"off\"\norganization_enterprise = \"off\"\nregister = \"off\"\nlogin = \"off\"\n[mail]\nfolder = {:?}\n",
            self.url(database),
            self.place.join("mail")
        );
        Ok(Config::builder().preloaded(toml::from_str(&text)?).load()?)
    }

    /// An application over a new database.
    pub async fn app(&self, database: &str) -> anyhow::Result<Arc<App>> {
        let config = self.config(database)?;
        Db::create_database_if_missing(&config.database).await?;
        let app = App::new(config, Clock::default())?;
        migrate_shared(&app.db).await.map_err(|error| anyhow::anyhow!("{error}"))?;
        Ok(app)
    }

    /// A connection past the service.
    pub async fn client(&self, database: &str) -> anyhow::Result<tokio_postgres::Client> {
        let (client, connection) =
            tokio_postgres::connect(&self.url(database), tokio_postgres::NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// Stops the server and removes its files.
    fn end(self) -> anyhow::Result<()> {
        self.postgres.stop();
        std::fs::remove_dir_all(self.place)?;
        Ok(())
    }
}

pub const SECRET: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    // cargo adds --bench.
    let mut wanted: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    if let Some(unknown) = wanted.iter().find(|name| !ALL.contains(&name.as_str())) {
        anyhow::bail!("there is no benchmark {unknown}; there are {}", ALL.join(", "));
    }
    if wanted.is_empty() {
        wanted = USUAL.map(str::to_owned).to_vec();
    }
    let ground = Ground::start().await?;
    let measured = measure(&ground, &wanted).await;
    ground.end()?;
    measured
}

async fn measure(ground: &Ground, wanted: &[String]) -> anyhow::Result<()> {
    for name in ALL.iter().filter(|name| wanted.iter().any(|wanted| wanted == *name)) {
        match *name {
            "fleet" => fleet::run(ground).await?,
            "jobs" => jobs::throughput(ground).await?,
            "fairness" => jobs::fairness(ground).await?,
            "metering" => metering::share(ground).await?,
            "lists" => lists::run(ground).await?,
            "search" => search::run(ground).await?,
            _ => sockets::idle(ground).await?,
        }
    }
    Ok(())
}
