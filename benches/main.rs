//! Benchmarks of jobs, metering and streams, on a Postgres of their own: `make bench`, or
//! `cargo bench -- jobs` for one of them.

mod jobs;
mod metering;
mod sockets;

use std::{path::PathBuf, sync::Arc};

use rowhouse::{
    app::App,
    cli::postgres::{Keeping, PrivatePostgres},
    clock::Clock,
    config::Config,
    db::{Db, migrations::migrate_shared},
};
use secrecy::ExposeSecret;

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
            "[database]\nurl = {:?}\n[auth]\nsecret_key = \"{SECRET}\"\n[limits]\nanonymous = \"off\"\nuser = \"off\"\n\
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
}

pub const SECRET: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let wants = |name: &str| wanted.is_empty() || wanted.iter().any(|given| given == name);
    let ground = Ground::start().await?;
    if wants("jobs") {
        jobs::throughput(&ground).await?;
    }
    if wants("fairness") {
        jobs::fairness(&ground).await?;
    }
    if wants("metering") {
        metering::share(&ground).await?;
    }
    if wants("sockets") {
        sockets::idle(&ground).await?;
    }
    let Ground { postgres, place } = ground;
    postgres.stop();
    std::fs::remove_dir_all(place)?;
    Ok(())
}
