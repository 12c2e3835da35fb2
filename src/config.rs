//! Configuration: read once, from the environment and an optional TOML file.
//!
//! The environment wins over the file (`ROWHOUSE_CONFIG`, else `rowhouse.toml` where it exists),
//! where neither is given, what `rowhouse dev` left in `.rowhouse/rowhouse.toml` is used.
//! `rowhouse config` prints what is in force, and from where each value can be set.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use base64::{Engine, engine::general_purpose::STANDARD};
use confique::{Config as Confique, meta::FieldKind};
use secrecy::{ExposeSecret, SecretString};

/// Where `rowhouse dev` leaves its settings, so that other commands find its database.
pub const DEV_FILE: &str = ".rowhouse/rowhouse.toml";

/// Everything that can be configured.
#[derive(Clone, Debug, Confique)]
pub struct Config {
    #[config(nested)]
    pub database: DatabaseConfig,
    #[config(nested)]
    pub http: HttpConfig,
    #[config(nested)]
    pub auth: AuthConfig,
    #[config(nested)]
    pub tenancy: TenancyConfig,
    #[config(nested)]
    pub log: LogConfig,
}

/// Where the data is.
#[derive(Clone, Debug, Confique)]
pub struct DatabaseConfig {
    /// Address of the Postgres database, 15 or newer: postgres://user:password@host:port/name
    #[config(env = "DATABASE_URL")]
    pub url: SecretString,
    /// Where to hear of changes, if url leads to a pooler in transaction mode: the server itself.
    #[config(env = "DATABASE_LISTEN_URL")]
    pub listen_url: Option<SecretString>,
    /// Certificates (PEM) to trust besides the public authorities, for sslmode=require.
    #[config(env = "DATABASE_CA_FILE")]
    pub ca_file: Option<PathBuf>,
    /// Connections at most; 4 to 8 for each core of the database server is plenty.
    #[config(env = "DATABASE_POOL_SIZE", default = 8)]
    pub pool_size: usize,
    /// Seconds to wait for a free connection before a request is answered with 503.
    #[config(env = "DATABASE_POOL_WAIT_SECONDS", default = 5)]
    pub pool_wait_seconds: u64,
}

/// How the service is reached.
#[derive(Clone, Debug, Confique)]
pub struct HttpConfig {
    /// Address to listen on.
    #[config(env = "HTTP_LISTEN", default = "127.0.0.1:8080")]
    pub listen: String,
    /// Organizations are subdomains of this name.
    #[config(env = "BASE_DOMAIN", default = "localhost")]
    pub base_domain: String,
    /// Origins that browsers may call from, besides the base domain and its subdomains.
    #[config(env = "CORS_ORIGINS", default = [], parse_env = confique::env::parse::list_by_comma)]
    pub cors_origins: Vec<String>,
    /// The largest request body in bytes.
    #[config(env = "HTTP_BODY_LIMIT", default = 1048576)]
    pub body_limit: usize,
    /// Seconds that one request may take.
    #[config(env = "HTTP_REQUEST_TIMEOUT_SECONDS", default = 40)]
    pub request_timeout_seconds: u64,
    /// Seconds that requests under way may take to finish when the service stops.
    #[config(env = "HTTP_SHUTDOWN_SECONDS", default = 30)]
    pub shutdown_seconds: u64,
}

/// Passwords, tokens and the key that seals what must not be read from a backup.
#[derive(Clone, Debug, Confique)]
pub struct AuthConfig {
    /// 32 random bytes in base64 (openssl rand -base64 32). Losing it makes sealed data unreadable.
    #[config(env = "ROWHOUSE_SECRET_KEY")]
    pub secret_key: SecretString,
    /// Who signs access tokens: the `iss` in them.
    #[config(env = "AUTH_ISSUER", default = "rowhouse")]
    pub issuer: String,
    /// Minutes that an access token is good for.
    #[config(env = "AUTH_ACCESS_TOKEN_MINUTES", default = 15)]
    pub access_token_minutes: u32,
    /// Days that a refresh token is good for.
    #[config(env = "AUTH_REFRESH_TOKEN_DAYS", default = 7)]
    pub refresh_token_days: u32,
    /// Passwords hashed at the same time; each takes 19 MiB and a core for about 15 ms.
    #[config(env = "AUTH_PASSWORD_HASHES", default = 2)]
    pub password_hashes: usize,
}

/// Organizations and their schemas.
#[derive(Clone, Debug, Confique)]
pub struct TenancyConfig {
    /// Schemas kept ready for organizations to come.
    #[config(env = "TENANCY_SPARE_SCHEMAS", default = 5)]
    pub spare_schemas: u32,
}

/// What is written to standard error.
#[derive(Clone, Debug, Confique)]
pub struct LogConfig {
    /// Levels by module, as in RUST_LOG: info, or rowhouse=debug,info
    #[config(env = "LOG_LEVEL", default = "info")]
    pub level: String,
    /// json for machines, text for people.
    #[config(env = "LOG_FORMAT", default = "json")]
    pub format: String,
}

impl Config {
    /// Reads the environment and the file, and says by name what is missing or wrong.
    pub fn load() -> anyhow::Result<Self> {
        let file = match std::env::var_os("ROWHOUSE_CONFIG") {
            Some(path) => {
                let path = PathBuf::from(path);
                if !path.is_file() {
                    bail!("ROWHOUSE_CONFIG names {}, which is no file", path.display());
                }
                path
            }
            None => PathBuf::from("rowhouse.toml"),
        };
        // All of the development settings or none: a real database must not meet the key of another.
        let own = file.is_file()
            || ["DATABASE_URL", "ROWHOUSE_SECRET_KEY"].iter().any(|name| std::env::var_os(name).is_some());
        let sources = Self::builder().env().file(file);
        Self::finish(if own { sources } else { sources.file(DEV_FILE) })
    }

    /// What `rowhouse dev` runs on: the file that it wrote wins over the environment, which may be
    /// meant for another installation.
    pub fn load_dev(file: &Path) -> anyhow::Result<Self> {
        Self::finish(Self::builder().file(file).env())
    }

    fn finish(sources: confique::Builder<Self>) -> anyhow::Result<Self> {
        let mut config = sources
            .load()
            .map_err(|error| anyhow::anyhow!("{}", with_variable(&error.to_string())))
            .context("the configuration is incomplete; `rowhouse config --template` shows every setting")?;
        config.http.base_domain = config.http.base_domain.to_lowercase();
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> anyhow::Result<()> {
        if self.database.pool_size == 0 {
            bail!("database.pool_size (DATABASE_POOL_SIZE) is 0; 8 is a good start");
        }
        if self.auth.password_hashes == 0 {
            bail!("auth.password_hashes (AUTH_PASSWORD_HASHES) is 0; 2 is a good start");
        }
        if !["json", "text"].contains(&self.log.format.as_str()) {
            bail!("log.format (LOG_FORMAT) is {:?}; it takes json or text", self.log.format);
        }
        if self.http.base_domain.contains([':', '/']) || self.http.base_domain.is_empty() {
            bail!(
                "http.base_domain (BASE_DOMAIN) is {:?}; it takes a bare name such as example.com",
                self.http.base_domain
            );
        }
        self.auth.secret_key_bytes()?;
        Ok(())
    }

    /// A TOML file with every setting, its meaning and its default.
    pub fn template() -> String {
        confique::toml::template::<Self>(confique::toml::FormatOptions::default())
    }

    /// What is in force, as TOML with secrets masked.
    pub fn masked(&self) -> String {
        let Self { database, http, auth, tenancy, log } = self;
        format!(
            "[database]\nurl = {:?}  # {}\nlisten_url = {:?}\nca_file = {:?}\npool_size = {}\npool_wait_seconds = {}\n\n\
             [http]\nlisten = {:?}\nbase_domain = {:?}\ncors_origins = {:?}\nbody_limit = {}\n\
             request_timeout_seconds = {}\nshutdown_seconds = {}\n\n\
             [auth]\nsecret_key = \"********\"\nissuer = {:?}\naccess_token_minutes = {}\n\
             refresh_token_days = {}\npassword_hashes = {}\n\n\
             [tenancy]\nspare_schemas = {}\n\n[log]\nlevel = {:?}\nformat = {:?}\n",
            "********",
            crate::db::describe(&database.url),
            database.listen_url.as_ref().map(crate::db::describe).unwrap_or_default(),
            database.ca_file.as_deref().unwrap_or(Path::new("")),
            database.pool_size,
            database.pool_wait_seconds,
            http.listen,
            http.base_domain,
            http.cors_origins,
            http.body_limit,
            http.request_timeout_seconds,
            http.shutdown_seconds,
            auth.issuer,
            auth.access_token_minutes,
            auth.refresh_token_days,
            auth.password_hashes,
            tenancy.spare_schemas,
            log.level,
            log.format,
        )
    }
}

/// confique names a missing value by its place in the file; most people set it in the environment.
fn with_variable(told: &str) -> String {
    let path = told.split('\'').nth(1).unwrap_or_default();
    let variable = path.split_once('.').and_then(|(section, name)| {
        let section = Config::META.fields.iter().find(|field| field.name == section)?;
        let FieldKind::Nested { meta } = section.kind else { return None };
        match meta.fields.iter().find(|field| field.name == name)?.kind {
            FieldKind::Leaf { env, .. } => env,
            FieldKind::Nested { .. } => None,
        }
    });
    match variable {
        Some(variable) => format!("{told} (set {variable}, or {path} in the file)"),
        None => told.to_owned(),
    }
}

impl AuthConfig {
    /// The sealing key as bytes.
    pub fn secret_key_bytes(&self) -> anyhow::Result<[u8; 32]> {
        STANDARD
            .decode(self.secret_key.expose_secret().trim())
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .context(
                "auth.secret_key (ROWHOUSE_SECRET_KEY) must be 32 bytes in base64; \
                 make one with: openssl rand -base64 32",
            )
    }
}
