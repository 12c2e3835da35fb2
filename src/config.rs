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

use crate::limits::Rate;

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
    pub limits: LimitsConfig,
    #[config(nested)]
    pub mail: MailConfig,
    #[config(nested)]
    pub redis: RedisConfig,
    #[config(nested)]
    pub tenancy: TenancyConfig,
    #[config(nested)]
    pub webhooks: WebhooksConfig,
    #[config(nested)]
    pub notifications: NotificationsConfig,
    #[config(nested)]
    pub realtime: RealtimeConfig,
    #[config(nested)]
    pub stripe: StripeConfig,
    #[config(nested)]
    pub retention: RetentionConfig,
    #[config(nested)]
    pub backups: BackupsConfig,
    #[config(nested)]
    pub files: FilesConfig,
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
    /// Prepared statements that each connection keeps; each takes about 32 kB of the server's memory.
    #[config(env = "DATABASE_STATEMENTS_PER_CONNECTION", default = 800)]
    pub statements_per_connection: usize,
    /// A connection that has served so many organizations is replaced, as the server's process never gives back
    /// the memory of what it has seen, about 40 kB for each.
    #[config(env = "DATABASE_SCHEMAS_PER_CONNECTION", default = 800)]
    pub schemas_per_connection: usize,
    /// Minutes after which a connection is replaced.
    #[config(env = "DATABASE_CONNECTION_MINUTES", default = 30)]
    pub connection_minutes: u64,
    /// Seconds of connections that one organization may take in a minute, at each instance and server; then its
    /// requests are answered with 429. 0 is no limit.
    #[config(env = "DATABASE_SECONDS_PER_MINUTE", default = 120)]
    pub seconds_per_minute: u64,
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
    /// Networks of the proxies in front of the service, such as 10.0.0.0/8. Only what comes from them
    /// may say in X-Forwarded-For where a request was sent from.
    #[config(env = "TRUSTED_PROXIES", default = [], parse_env = confique::env::parse::list_by_comma)]
    pub trusted_proxies: Vec<ipnet::IpNet>,
    /// The largest request body in bytes.
    #[config(env = "HTTP_BODY_LIMIT", default = 1048576)]
    pub body_limit: usize,
    /// Seconds that one request may take.
    #[config(env = "HTTP_REQUEST_TIMEOUT_SECONDS", default = 40)]
    pub request_timeout_seconds: u64,
    /// Seconds that requests under way may take to finish when the service stops.
    #[config(env = "HTTP_SHUTDOWN_SECONDS", default = 30)]
    pub shutdown_seconds: u64,
    /// Where this service is reached from outside, for the addresses of pictures: https://api.example.com.
    /// The web application's address (mail.app_url) where it is absent.
    #[config(env = "HTTP_PUBLIC_URL")]
    pub public_url: Option<String>,
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
    /// Failed logins within lockout_minutes that lock an account.
    #[config(env = "AUTH_LOCKOUT_ATTEMPTS", default = 5)]
    pub lockout_attempts: i32,
    /// Minutes of the first lock; each further one is twice as long, up to a day.
    #[config(env = "AUTH_LOCKOUT_MINUTES", default = 5)]
    pub lockout_minutes: u32,
}

/// How many requests are answered: a number and a time such as 100/h or 5/5m, or off.
#[derive(Clone, Debug, Confique)]
pub struct LimitsConfig {
    /// Requests without credentials, for each address.
    #[config(env = "LIMIT_ANONYMOUS", default = "100/h")]
    pub anonymous: Rate,
    /// Requests of one user.
    #[config(env = "LIMIT_USER", default = "1000/h")]
    pub user: Rate,
    /// Requests of one organization on the plans free and starter.
    #[config(env = "LIMIT_ORGANIZATION", default = "1000/h")]
    pub organization: Rate,
    /// ... on the plan professional.
    #[config(env = "LIMIT_ORGANIZATION_PROFESSIONAL", default = "5000/h")]
    pub organization_professional: Rate,
    /// ... on the plan enterprise.
    #[config(env = "LIMIT_ORGANIZATION_ENTERPRISE", default = "10000/h")]
    pub organization_enterprise: Rate,
    /// Requests of one organization that are under way at the same time, at each instance; 0 is no limit.
    #[config(env = "LIMIT_CONCURRENT", default = 100)]
    pub concurrent: usize,
    /// Registrations from one address.
    #[config(env = "LIMIT_REGISTER", default = "5/h")]
    pub register: Rate,
    /// Logins to one account.
    #[config(env = "LIMIT_LOGIN", default = "5/5m")]
    pub login: Rate,
    /// Changes of one user's password.
    #[config(env = "LIMIT_CHANGE_PASSWORD", default = "5/h")]
    pub change_password: Rate,
    /// Requests for a password reset or another mail, from one address.
    #[config(env = "LIMIT_PASSWORD_RESET", default = "3/h")]
    pub password_reset: Rate,
    /// Invitations of one organization.
    #[config(env = "LIMIT_INVITATIONS", default = "50/h")]
    pub invitations: Rate,
    /// Mail to one address that others can cause: invitations, password resets.
    #[config(env = "LIMIT_MAIL", default = "5/h")]
    pub mail: Rate,
    /// Codes by SMS that one user asks for, and that are sent to one number.
    #[config(env = "LIMIT_SMS_CODES", default = "5/h")]
    pub sms_codes: Rate,
    /// Notifications by SMS to one user.
    #[config(env = "LIMIT_SMS", default = "20/h")]
    pub sms: Rate,
    /// SMS of one organization, codes included.
    #[config(env = "LIMIT_SMS_ORGANIZATION", default = "200/d")]
    pub sms_organization: Rate,
}

/// How mail is sent.
#[derive(Clone, Debug, Confique)]
pub struct MailConfig {
    /// Address of the SMTP server: smtps://user:password@host, or smtp://host:25 in the same network.
    /// Without it, mail is written to the folder and the log tells where.
    #[config(env = "SMTP_URL")]
    pub smtp_url: Option<SecretString>,
    /// Folder for mail that is not sent.
    #[config(env = "MAIL_FOLDER", default = ".rowhouse/mail")]
    pub folder: PathBuf,
    /// Whom mail is from.
    #[config(env = "MAIL_FROM", default = "Rowhouse <no-reply@localhost.localdomain>")]
    pub from: String,
    /// Where the links in mail lead: the address of the web application.
    #[config(env = "APP_URL", default = "http://localhost:8080")]
    pub app_url: String,
}

/// Redis or Valkey, shared by all instances. Without it each counts for itself.
#[derive(Clone, Debug, Confique)]
pub struct RedisConfig {
    /// redis://user:password@host:6379 or rediss://...; several, separated by commas, are a cluster.
    #[config(env = "REDIS_URL")]
    pub url: Option<SecretString>,
}

/// Organizations and their schemas.
#[derive(Clone, Debug, Confique)]
pub struct TenancyConfig {
    /// Schemas kept ready for organizations to come, on each server that takes new ones.
    #[config(env = "TENANCY_SPARE_SCHEMAS", default = 5)]
    pub spare_schemas: u32,
    /// When there are fewer than so many of them, the stock is filled up again.
    #[config(env = "TENANCY_SPARE_SCHEMAS_LOW", default = 3)]
    pub spare_schemas_low: u32,
    /// Days that a schema is kept after another one has taken its place.
    #[config(env = "TENANCY_RETIRED_DAYS", default = 7)]
    pub retired_days: u32,
    /// DNS server for the proofs of custom domains, such as 9.9.9.9:53; the system's where absent.
    #[config(env = "TENANCY_DNS_SERVER")]
    pub dns_server: Option<std::net::SocketAddr>,
}

/// Events that are sent to servers of customers.
#[derive(Clone, Debug, Confique)]
pub struct WebhooksConfig {
    /// Requests a second to one webhook at most.
    #[config(env = "WEBHOOKS_PER_SECOND", default = 50)]
    pub per_second: u32,
    /// Whether webhooks and push services may be on this machine and without TLS: for development only.
    #[config(env = "WEBHOOKS_ALLOW_LOOPBACK", default = false)]
    pub allow_loopback: bool,
}

/// Notifications by SMS and by push. A channel that is not set up here is not offered.
#[derive(Clone, Debug, Confique)]
pub struct NotificationsConfig {
    /// Where Twilio's API is.
    #[config(env = "TWILIO_BASE_URL", default = "https://api.twilio.com")]
    pub twilio_base_url: String,
    /// The account that sends SMS, AC and 32 digits; without it there are no SMS.
    #[config(env = "TWILIO_ACCOUNT_SID")]
    pub twilio_account_sid: Option<String>,
    /// The account's token.
    #[config(env = "TWILIO_AUTH_TOKEN")]
    pub twilio_auth_token: Option<SecretString>,
    /// The number, or the name, that SMS are from.
    #[config(env = "TWILIO_FROM")]
    pub twilio_from: Option<String>,
    /// The private key of Web Push (VAPID), 32 bytes of P-256 in base64url; without it there is no push. Make one
    /// with: openssl ecparam -genkey -name prime256v1 -noout -outform DER | tail -c +8 | head -c 32 | base64 | tr '+/' '-_' | tr -d '='
    #[config(env = "VAPID_PRIVATE_KEY")]
    pub vapid_private_key: Option<SecretString>,
    /// Whom push services write to when something is wrong: mailto:ops@example.com
    #[config(env = "VAPID_SUBJECT")]
    pub vapid_subject: Option<String>,
}

/// WebSockets and streams of server-sent events.
#[derive(Clone, Debug, Confique)]
pub struct RealtimeConfig {
    /// Connections that one user may have to one organization, at each instance.
    #[config(env = "REALTIME_CONNECTIONS_PER_USER", default = 20)]
    pub connections_per_user: usize,
}

/// Payments by Stripe. Without a key nobody can pay, and everything else works.
#[derive(Clone, Debug, Confique)]
pub struct StripeConfig {
    /// The key of the account: sk_live_…, sk_test_… or a restricted rk_….
    #[config(env = "STRIPE_SECRET_KEY")]
    pub secret_key: Option<SecretString>,
    /// What Stripe signs its webhooks to /webhooks/stripe with: whsec_…; several, separated by commas, while one
    /// is replaced by another.
    #[config(env = "STRIPE_WEBHOOK_SECRET")]
    pub webhook_secret: Option<SecretString>,
    /// Where Stripe's API is.
    #[config(env = "STRIPE_BASE_URL", default = "https://api.stripe.com/")]
    pub base_url: String,
    /// Seconds to wait for an answer; a request is tried three times.
    #[config(env = "STRIPE_TIMEOUT_SECONDS", default = 6)]
    pub timeout_seconds: u64,
    /// Ids of the monthly prices of the plans: price_…; `rowhouse stripe setup` makes them. After a change of a
    /// price the new one stands first, and behind it, after a comma, those that customers still pay.
    #[config(env = "STRIPE_PRICE_STARTER")]
    pub price_starter: Option<String>,
    #[config(env = "STRIPE_PRICE_PROFESSIONAL")]
    pub price_professional: Option<String>,
    /// Without one, the plan is agreed with each customer and given by staff.
    #[config(env = "STRIPE_PRICE_ENTERPRISE")]
    pub price_enterprise: Option<String>,
}

/// How long what an organization does not delete itself is kept. The audit log is kept for good.
#[derive(Clone, Debug, Confique)]
pub struct RetentionConfig {
    /// Days that events can be listed, replayed and resumed from.
    #[config(env = "RETENTION_EVENTS_DAYS", default = 90)]
    pub events_days: u32,
    /// Days that finished deliveries of webhooks are kept.
    #[config(env = "RETENTION_DELIVERIES_DAYS", default = 30)]
    pub deliveries_days: u32,
    /// Days that notifications are kept, read or not.
    #[config(env = "RETENTION_NOTIFICATIONS_DAYS", default = 180)]
    pub notifications_days: u32,
    /// Months that usage can be looked up, the present one not counted.
    #[config(env = "RETENTION_USAGE_MONTHS", default = 25)]
    pub usage_months: u32,
}

/// An archive of every organization, each night, for `rowhouse tenant restore --to TIME`.
#[derive(Clone, Debug, Confique)]
pub struct BackupsConfig {
    /// Folder that all workers share; without it there are no backups.
    #[config(env = "BACKUPS_FOLDER")]
    pub folder: Option<PathBuf>,
    /// Days that they are kept.
    #[config(env = "BACKUPS_KEEP_DAYS", default = 30)]
    pub keep_days: u32,
    /// Whether they hold what files hold: attachments and the like. Every night all of it is written anew; versions
    /// of the bucket are the better tool.
    #[config(env = "BACKUPS_FILES", default = false)]
    pub files: bool,
}

/// Where uploaded and exported files lie: in a folder or in S3. Without either nothing can be uploaded.
#[derive(Clone, Debug, Confique)]
pub struct FilesConfig {
    /// Folder that all instances and workers share.
    #[config(env = "FILES_FOLDER")]
    pub folder: Option<PathBuf>,
    /// Bucket, instead of a folder.
    #[config(env = "FILES_S3_BUCKET")]
    pub s3_bucket: Option<String>,
    /// Where S3 is, if it is not Amazon's: https://s3.example.com
    #[config(env = "FILES_S3_ENDPOINT")]
    pub s3_endpoint: Option<String>,
    /// The bucket's region.
    #[config(env = "FILES_S3_REGION", default = "us-east-1")]
    pub s3_region: String,
    /// Key and secret; without them, the role of the machine or of the pod.
    #[config(env = "FILES_S3_ACCESS_KEY")]
    pub s3_access_key: Option<String>,
    #[config(env = "FILES_S3_SECRET_KEY")]
    pub s3_secret_key: Option<SecretString>,
    /// What all paths in the bucket begin with.
    #[config(env = "FILES_S3_PREFIX", default = "")]
    pub s3_prefix: String,
    /// Whether the bucket is named in the path; otherwise it is in the host, and in s3_endpoint too.
    #[config(env = "FILES_S3_PATH_STYLE", default = true)]
    pub s3_path_style: bool,
    /// The largest file in bytes.
    #[config(env = "FILES_MAX_BYTES", default = 5368709120u64)]
    pub max_bytes: u64,
    /// Uploads that one process takes at the same time, each with up to 18 MiB of memory; an organization has a quarter
    /// of them at most.
    #[config(env = "FILES_UPLOADS_AT_ONCE", default = 32)]
    pub uploads_at_once: usize,
    /// Minutes that a link to a file is good for, where nobody asks for another time.
    #[config(env = "FILES_LINK_MINUTES", default = 15)]
    pub link_minutes: u32,
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
        self.mail.from.parse::<lettre::message::Mailbox>().with_context(|| {
            format!("mail.from (MAIL_FROM) is {:?}; it takes Name <address>", self.mail.from)
        })?;
        if !["json", "text"].contains(&self.log.format.as_str()) {
            bail!("log.format (LOG_FORMAT) is {:?}; it takes json or text", self.log.format);
        }
        if self.http.base_domain.contains([':', '/']) || self.http.base_domain.is_empty() {
            bail!(
                "http.base_domain (BASE_DOMAIN) is {:?}; it takes a bare name such as example.com",
                self.http.base_domain
            );
        }
        if self.realtime.connections_per_user == 0 {
            bail!("realtime.connections_per_user (REALTIME_CONNECTIONS_PER_USER) is 0; 20 is a good start");
        }
        if !(2..=1200).contains(&self.retention.usage_months) {
            bail!(
                "retention.usage_months (RETENTION_USAGE_MONTHS) is {}; it takes 2 to 1200",
                self.retention.usage_months
            );
        }
        self.files.check()?;
        self.auth.secret_key_bytes()?;
        Ok(())
    }

    /// A TOML file with every setting, its meaning and its default.
    pub fn template() -> String {
        confique::toml::template::<Self>(confique::toml::FormatOptions::default())
    }

    /// What is in force, as TOML with secrets masked.
    pub fn masked(&self) -> String {
        let Self {
            database,
            http,
            auth,
            limits,
            mail,
            redis,
            tenancy,
            webhooks,
            notifications,
            realtime,
            stripe,
            retention,
            backups,
            files,
            log,
        } = self;
        let secret = |set: bool| if set { "********" } else { "" };
        let mut text = String::new();
        let mut section = |name: &str, lines: &[(&str, String)]| {
            text += &format!("[{name}]\n");
            for (key, value) in lines {
                text += &format!("{key} = {value}\n");
            }
            text += "\n";
        };
        let quoted = |value: &dyn std::fmt::Display| format!("{:?}", value.to_string());
        let list = |values: Vec<String>| format!("{values:?}");
        section(
            "database",
            &[
                ("url", format!("\"********\"  # {}", crate::db::describe(&database.url))),
                ("listen_url", quoted(&secret(database.listen_url.is_some()))),
                ("ca_file", quoted(&database.ca_file.as_deref().unwrap_or(Path::new("")).display())),
                ("pool_size", database.pool_size.to_string()),
                ("pool_wait_seconds", database.pool_wait_seconds.to_string()),
                ("statements_per_connection", database.statements_per_connection.to_string()),
                ("schemas_per_connection", database.schemas_per_connection.to_string()),
                ("connection_minutes", database.connection_minutes.to_string()),
                ("seconds_per_minute", database.seconds_per_minute.to_string()),
            ],
        );
        section(
            "http",
            &[
                ("listen", quoted(&http.listen)),
                ("base_domain", quoted(&http.base_domain)),
                ("cors_origins", list(http.cors_origins.clone())),
                ("trusted_proxies", list(http.trusted_proxies.iter().map(ToString::to_string).collect())),
                ("body_limit", http.body_limit.to_string()),
                ("request_timeout_seconds", http.request_timeout_seconds.to_string()),
                ("shutdown_seconds", http.shutdown_seconds.to_string()),
                ("public_url", quoted(&http.public_url.as_deref().unwrap_or_default())),
            ],
        );
        section(
            "auth",
            &[
                ("secret_key", quoted(&secret(true))),
                ("issuer", quoted(&auth.issuer)),
                ("access_token_minutes", auth.access_token_minutes.to_string()),
                ("refresh_token_days", auth.refresh_token_days.to_string()),
                ("password_hashes", auth.password_hashes.to_string()),
                ("lockout_attempts", auth.lockout_attempts.to_string()),
                ("lockout_minutes", auth.lockout_minutes.to_string()),
            ],
        );
        section(
            "limits",
            &[
                ("anonymous", quoted(&limits.anonymous)),
                ("user", quoted(&limits.user)),
                ("organization", quoted(&limits.organization)),
                ("organization_professional", quoted(&limits.organization_professional)),
                ("organization_enterprise", quoted(&limits.organization_enterprise)),
                ("concurrent", limits.concurrent.to_string()),
                ("register", quoted(&limits.register)),
                ("login", quoted(&limits.login)),
                ("change_password", quoted(&limits.change_password)),
                ("password_reset", quoted(&limits.password_reset)),
                ("invitations", quoted(&limits.invitations)),
                ("mail", quoted(&limits.mail)),
                ("sms_codes", quoted(&limits.sms_codes)),
                ("sms", quoted(&limits.sms)),
                ("sms_organization", quoted(&limits.sms_organization)),
            ],
        );
        section(
            "mail",
            &[
                ("smtp_url", quoted(&secret(mail.smtp_url.is_some()))),
                ("folder", quoted(&mail.folder.display())),
                ("from", quoted(&mail.from)),
                ("app_url", quoted(&mail.app_url)),
            ],
        );
        section("redis", &[("url", quoted(&secret(redis.url.is_some())))]);
        section(
            "tenancy",
            &[
                ("spare_schemas", tenancy.spare_schemas.to_string()),
                ("spare_schemas_low", tenancy.spare_schemas_low.to_string()),
                ("retired_days", tenancy.retired_days.to_string()),
                ("dns_server", quoted(&tenancy.dns_server.map(|at| at.to_string()).unwrap_or_default())),
            ],
        );
        section(
            "webhooks",
            &[
                ("per_second", webhooks.per_second.to_string()),
                ("allow_loopback", webhooks.allow_loopback.to_string()),
            ],
        );
        section(
            "notifications",
            &[
                ("twilio_base_url", quoted(&notifications.twilio_base_url)),
                (
                    "twilio_account_sid",
                    quoted(&notifications.twilio_account_sid.as_deref().unwrap_or_default()),
                ),
                ("twilio_auth_token", quoted(&secret(notifications.twilio_auth_token.is_some()))),
                ("twilio_from", quoted(&notifications.twilio_from.as_deref().unwrap_or_default())),
                ("vapid_private_key", quoted(&secret(notifications.vapid_private_key.is_some()))),
                ("vapid_subject", quoted(&notifications.vapid_subject.as_deref().unwrap_or_default())),
            ],
        );
        section("realtime", &[("connections_per_user", realtime.connections_per_user.to_string())]);
        section(
            "stripe",
            &[
                ("secret_key", quoted(&secret(stripe.secret_key.is_some()))),
                ("webhook_secret", quoted(&secret(stripe.webhook_secret.is_some()))),
                ("base_url", quoted(&stripe.base_url)),
                ("timeout_seconds", stripe.timeout_seconds.to_string()),
                ("price_starter", quoted(&stripe.price_starter.as_deref().unwrap_or_default())),
                ("price_professional", quoted(&stripe.price_professional.as_deref().unwrap_or_default())),
                ("price_enterprise", quoted(&stripe.price_enterprise.as_deref().unwrap_or_default())),
            ],
        );
        section(
            "retention",
            &[
                ("events_days", retention.events_days.to_string()),
                ("deliveries_days", retention.deliveries_days.to_string()),
                ("notifications_days", retention.notifications_days.to_string()),
                ("usage_months", retention.usage_months.to_string()),
            ],
        );
        section(
            "backups",
            &[
                ("folder", quoted(&backups.folder.as_deref().unwrap_or(Path::new("")).display())),
                ("keep_days", backups.keep_days.to_string()),
                ("files", backups.files.to_string()),
            ],
        );
        section(
            "files",
            &[
                ("folder", quoted(&files.folder.as_deref().unwrap_or(Path::new("")).display())),
                ("s3_bucket", quoted(&files.s3_bucket.as_deref().unwrap_or_default())),
                ("s3_endpoint", quoted(&files.s3_endpoint.as_deref().unwrap_or_default())),
                ("s3_region", quoted(&files.s3_region)),
                ("s3_access_key", quoted(&files.s3_access_key.as_deref().unwrap_or_default())),
                ("s3_secret_key", quoted(&secret(files.s3_secret_key.is_some()))),
                ("s3_prefix", quoted(&files.s3_prefix)),
                ("s3_path_style", files.s3_path_style.to_string()),
                ("max_bytes", files.max_bytes.to_string()),
                ("link_minutes", files.link_minutes.to_string()),
            ],
        );
        section("log", &[("level", quoted(&log.level)), ("format", quoted(&log.format))]);
        text.trim_end().to_owned() + "\n"
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

impl FilesConfig {
    fn check(&self) -> anyhow::Result<()> {
        if self.folder.is_some() && self.s3_bucket.is_some() {
            bail!(
                "files.folder (FILES_FOLDER) and files.s3_bucket (FILES_S3_BUCKET) are both set; choose one"
            );
        }
        if self.s3_access_key.is_some() != self.s3_secret_key.is_some() {
            bail!(
                "files.s3_access_key (FILES_S3_ACCESS_KEY) and files.s3_secret_key (FILES_S3_SECRET_KEY) are given \
                 together or not at all"
            );
        }
        if let Some(endpoint) = &self.s3_endpoint
            && !["http://", "https://"].iter().any(|scheme| endpoint.starts_with(scheme))
        {
            bail!("files.s3_endpoint (FILES_S3_ENDPOINT) is {endpoint:?}; it takes https://host");
        }
        // What is larger S3 does not copy in one go, and a clone of an organization copies its files.
        let most: u64 = if self.s3_bucket.is_some() { 5 << 30 } else { 50_000_000_000 };
        if !(1..=most).contains(&self.max_bytes) {
            bail!("files.max_bytes (FILES_MAX_BYTES) is {}; it takes 1 to {most}", self.max_bytes);
        }
        if !(1..=10_000).contains(&self.uploads_at_once) {
            bail!(
                "files.uploads_at_once (FILES_UPLOADS_AT_ONCE) is {}; it takes 1 to 10000",
                self.uploads_at_once
            );
        }
        if !(1..=10_080).contains(&self.link_minutes) {
            bail!("files.link_minutes (FILES_LINK_MINUTES) is {}; it takes 1 to 10080", self.link_minutes);
        }
        Ok(())
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
