//! `rowhouse doctor`: looks at everything the service needs and says how to mend what is wrong.

use std::net::TcpListener;

use super::postgres;
use crate::{
    app::App,
    billing::setup,
    clock::Clock,
    config::Config,
    db,
    db::migrations,
    tenancy::{databases, fleet},
};

/// What was found, in order.
#[derive(Default)]
struct Findings {
    problems: usize,
}

impl Findings {
    fn good(&self, text: impl AsRef<str>) {
        println!("  ok    {}", text.as_ref());
    }

    fn note(&self, text: impl AsRef<str>) {
        println!("  note  {}", text.as_ref());
    }

    fn problem(&mut self, what: impl AsRef<str>, mend: impl AsRef<str>) {
        self.problems += 1;
        println!("  FAIL  {}\n        -> {}", what.as_ref(), mend.as_ref());
    }
}

pub async fn run() -> anyhow::Result<()> {
    let mut findings = Findings::default();
    match postgres::find_binaries() {
        Ok(found) => findings.good(format!("Postgres {} binaries in {}", found.major, found.dir.display())),
        Err(error) => findings.note(format!("`rowhouse dev` will not work: {error:#}")),
    }
    match Config::load() {
        Err(error) => {
            findings.problem(format!("configuration: {error:#}"), "see `rowhouse config --template`")
        }
        Ok(config) => {
            findings.good("configuration is complete");
            look(&mut findings, config).await;
        }
    }
    match findings.problems {
        0 => println!("Everything is in order."),
        n => anyhow::bail!("{n} problem(s); the arrows say how to mend them"),
    }
    Ok(())
}

async fn look(findings: &mut Findings, config: Config) {
    let listen = config.http.listen.clone();
    match TcpListener::bind(&listen) {
        Ok(_) => findings.good(format!("{listen} is free to listen on")),
        Err(error) => {
            findings.note(format!("{listen} cannot be listened on ({error}); fine if the service is running"))
        }
    }
    let place = db::describe(&config.database.url);
    let (redis, smtp) = (config.redis.url.is_some(), config.mail.smtp_url.is_some());
    let app = match App::new(config, Clock::default()) {
        Ok(app) => app,
        Err(error) => return findings.problem(format!("{error:#}"), "mend the configuration"),
    };
    match (redis, app.limits.is_shared().await) {
        (false, _) => findings.note("no REDIS_URL: with several instances each limits rates by itself"),
        (true, true) => findings.good("Redis answers"),
        (true, false) => findings.problem(
            "Redis does not answer; the service would go on, each instance limiting rates by itself",
            "check REDIS_URL, and that Redis runs there",
        ),
    }
    match (smtp, app.mailer.reaches_a_server().await) {
        (false, _) => findings.note("no SMTP_URL: mail is written to MAIL_FOLDER and reaches nobody"),
        (true, Ok(())) => findings.good("the mail server answers"),
        (true, Err(error)) => {
            findings.problem(format!("mail cannot be sent: {error:#}"), "check SMTP_URL and its password")
        }
    }
    match (app.files.is_there(), app.files.check().await) {
        (false, _) => findings.note("no FILES_FOLDER and no FILES_S3_BUCKET: nothing can be uploaded"),
        (true, Ok(())) => findings.good("files can be written, read and deleted"),
        (true, Err(error)) => findings.problem(
            format!("files cannot be stored: {error}"),
            "check the folder and its owner, or bucket, endpoint, region, keys and the bucket's policy",
        ),
    }
    if let Err(error) = look_at_database(findings, &app, &place).await {
        findings.problem(
            format!("database {place}: {error}"),
            "check that Postgres runs there and that DATABASE_URL has the right user and password",
        );
    }
}

async fn look_at_database(findings: &mut Findings, app: &App, place: &str) -> crate::error::Result<()> {
    let tx = app.db.begin().await?;
    let now = || chrono::Utc::now().timestamp_millis() as f64 / 1000.0;
    let asked = now();
    let row = tx
        .query_one(
            "select current_setting('server_version_num')::int4 as version, \
             has_database_privilege(current_database(), 'create') as may_create, \
             current_setting('server_encoding') as encoding, \
             (select count(*) from pg_catalog.pg_tables where schemaname = 'public') as in_public, \
             extract(epoch from clock_timestamp())::float8 as time, \
             current_setting('max_connections')::int4 as max_connections",
            &[],
        )
        .await?;
    let told = now();
    let version: i32 = row.try_get("version")?;
    match version >= 150_000 {
        true => findings.good(format!("database {place}: Postgres {}", version / 10_000)),
        false => findings
            .problem(format!("database {place}: Postgres {}", version / 10_000), "upgrade to 15 or newer"),
    }
    if !row.try_get::<_, bool>("may_create")? {
        findings.problem(
            "the database user may not create schemas",
            "grant create on database <name> to <user>, or make the user its owner",
        );
    }
    let encoding: String = row.try_get("encoding")?;
    if encoding != "UTF8" {
        findings.problem(format!("the database is encoded in {encoding}"), "create it with encoding 'UTF8'");
    }
    if row.try_get::<_, i64>("in_public")? > 0 {
        findings
            .note("schema public holds tables that are not Rowhouse's; give Rowhouse a database of its own");
    }
    // It was that time there at some moment between asking and being told.
    let there: f64 = row.try_get("time")?;
    let skew = (there - told).max(0.0) + (there - asked).min(0.0);
    match skew.abs() < 2.0 {
        true => findings.good("the clocks of this machine and the database agree"),
        false => findings.problem(format!("the clocks differ by {skew:.1} s"), "run NTP on both machines"),
    }
    let max: i32 = row.try_get("max_connections")?;
    let ours = app.config.database.pool_size + 1;
    if ours as i64 > i64::from(max) - 3 {
        findings.problem(
            format!("this instance may open {ours} connections, the server allows {max}"),
            "lower DATABASE_POOL_SIZE or raise max_connections",
        );
    }
    let (have, want) = (migrations::shared_version(&tx).await?, migrations::shared_set().latest());
    if have < want {
        findings
            .problem(format!("platform schema at version {have}, needs {want}"), "run `rowhouse migrate`");
        return Ok(());
    }
    findings.good(format!("platform schema at version {have}"));
    match fleet::behind(&tx).await? {
        0 => findings.good("every tenant schema is current"),
        n => findings.problem(
            format!("{n} modules of tenant schemas are behind"),
            "run `rowhouse migrate`; `rowhouse migrate status` shows which",
        ),
    }
    drop(tx);
    let servers = databases::list(app).await?;
    for server in &servers {
        match databases::check(app, server, servers.len() == 1).await {
            Ok((_, wrong)) if wrong.is_empty() => {
                findings.good(format!("server {} is in order", server.name))
            }
            Ok((_, wrong)) => wrong.iter().for_each(|wrong| {
                findings.problem(format!("server {}: {wrong}", server.name), "see docs/servers.md")
            }),
            Err(error) => findings.problem(
                format!("server {}: {error}", server.name),
                "check that it runs, and `rowhouse database set <name> --url …`",
            ),
        }
    }
    match (&app.stripe, setup::complaints(app).await) {
        (None, _) => findings.note("no STRIPE_SECRET_KEY: nobody can pay for a plan"),
        (Some(_), Ok(complaints)) if complaints.is_empty() => {
            findings.good("Stripe answers, and charges what the plans show");
        }
        (Some(_), Ok(complaints)) => complaints.iter().for_each(|complaint| {
            findings.problem(complaint, "see `rowhouse stripe setup` and docs/billing.md")
        }),
        (Some(_), Err(error)) => {
            findings.problem(format!("Stripe: {error:#}"), "check STRIPE_SECRET_KEY and the way to Stripe");
        }
    }
    match app.keys.read().await {
        Ok(0) => findings.good("no signing key yet; the first start makes one"),
        Ok(_) => findings.good("signing keys can be opened"),
        Err(error) => findings.problem(
            format!("{error:#}"),
            "start with the ROWHOUSE_SECRET_KEY that the keys were made under",
        ),
    }
    Ok(())
}
