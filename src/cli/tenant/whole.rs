//! What is done to an organization as a whole.

use std::{
    fs,
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::Context;
use chrono::{DateTime, NaiveDate, NaiveTime, Utc};
use serde_json::{Value, json};
use uuid::Uuid;

use super::super::{plain, stop_requested};
use crate::{
    app::App,
    audit::{self, Actor, Changes},
    auth::{Access, withdraw},
    events::{self, EventType},
    organizations::{self, OrganizationStatus},
    tenancy::{
        Tenant,
        fleet::{
            self,
            archive::Target,
            erase,
            operation::Step,
            transfer::{self, Back, Import},
        },
    },
    types::{Email, Name, Slug},
};

#[derive(clap::Args)]
pub struct ExportArgs {
    /// Slug or id.
    organization: String,
    /// The file; `-` is standard output. <slug>-<time>.tar.gz in this folder where it is absent.
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
    /// Replace the file if there is one.
    #[arg(long)]
    force: bool,
    /// Leave out what its files hold: attachments, logo and the like. Whoever restores it has those that are
    /// still in the store.
    #[arg(long)]
    without_files: bool,
}

#[derive(clap::Args)]
pub struct ImportArgs {
    /// The archive.
    file: PathBuf,
    /// Its subdomain; the one that it had where it is absent.
    #[arg(long)]
    slug: Option<Slug>,
    /// Its name; the one that it had where it is absent.
    #[arg(long)]
    name: Option<Name>,
    /// Address of an account that becomes an owner, whoever else is one.
    #[arg(long)]
    owner: Option<Email>,
    /// The database server that it goes to; the emptiest where it is absent.
    #[arg(long, value_name = "NAME")]
    database: Option<String>,
    /// Take an archive that this installation did not seal. It is checked all the same, but whoever made it could
    /// have put anything into it.
    #[arg(long)]
    unsealed: bool,
}

#[derive(clap::Args)]
pub struct RestoreArgs {
    /// Slug or id.
    organization: String,
    /// An archive, a time such as 2026-01-05T09:00:00Z or 2026-01-05 (the newest backup at or before it), or
    /// `previous`: what was there before the last restore or move.
    #[arg(long, value_name = "TIME|FILE|previous")]
    to: String,
    /// Take an archive that this installation did not seal.
    #[arg(long)]
    unsealed: bool,
}

#[derive(clap::Args)]
pub struct CloneArgs {
    /// Slug or id.
    organization: String,
    /// The copy's subdomain.
    #[arg(long)]
    slug: Slug,
}

#[derive(clap::Args)]
pub struct EraseArgs {
    /// Slug or id.
    organization: String,
    /// The same once more, so that nobody is erased by mistake.
    #[arg(long, value_name = "SLUG")]
    confirm: String,
    /// Where the certificate is written, as JSON; it is printed where this is absent.
    #[arg(long, value_name = "FILE")]
    certificate: Option<PathBuf>,
}

#[derive(clap::Args)]
pub struct SuspendArgs {
    /// Slug or id.
    organization: String,
    /// Why, for staff; the organization is not told.
    #[arg(long, value_name = "TEXT")]
    because: Option<String>,
}

#[derive(clap::Args)]
pub struct ResumeArgs {
    /// Slug or id.
    organization: String,
}

pub async fn export(app: &Arc<App>, args: ExportArgs) -> anyhow::Result<()> {
    let tenant = super::find(app, &args.organization).await?;
    let target = match args.to {
        Some(path) if path == Path::new("-") => Target::Stdout,
        Some(path) => Target::File(path),
        None => {
            let slug = slug_of(app, &tenant).await?;
            Target::File(format!("{slug}-{}.tar.gz", app.clock.now().format("%Y%m%dT%H%M%SZ")).into())
        }
    };
    if let Target::File(path) = &target
        && !args.force
        && path.symlink_metadata().is_ok()
    {
        anyhow::bail!("{} is there already; --force replaces it", path.display());
    }
    let teller = Teller::default();
    let told = |step: Step<'_>| teller.tell(step);
    let exporting = transfer::export(app, &tenant, target, !args.without_files, &told);
    let exported = unless_stopped(exporting).await?;
    teller.end();
    let file = exported.file.as_ref().map_or("standard output".into(), |file| file.display().to_string());
    // Standard output may be the archive.
    let (rows, files, bytes) = (exported.rows, exported.files, exported.bytes);
    eprintln!("wrote {rows} rows and {files} files, {bytes} bytes, to {file}");
    eprintln!("sha256 {}", exported.sha256);
    for missing in &exported.missing {
        eprintln!("without {missing}");
    }
    for problem in &exported.audit_problems {
        eprintln!("the audit log is not what was written: {problem}");
    }
    Ok(())
}

pub async fn import(app: &Arc<App>, args: ImportArgs) -> anyhow::Result<()> {
    let ImportArgs { file, slug, name, owner, database, unsealed } = args;
    let import = Import { file, slug, name, owner, database, unsealed };
    let teller = Teller::default();
    let made = unless_stopped(transfer::import(app, import, &|step| teller.tell(step))).await?;
    teller.end();
    println!("made {} ({}) of {} rows", made.slug, made.organization, made.rows);
    for note in &made.notes {
        println!("  note  {note}");
    }
    Ok(())
}

pub async fn restore(app: &Arc<App>, args: RestoreArgs) -> anyhow::Result<()> {
    let tenant = super::find(app, &args.organization).await?;
    let to = match args.to.as_str() {
        "previous" => Back::Previous,
        text => match time(text, app.clock.now())? {
            Some(at) => Back::Time(at),
            None => Back::Archive(text.into()),
        },
    };
    let teller = Teller::default();
    let told = |step: Step<'_>| teller.tell(step);
    let restoring = transfer::restore(app, &tenant, to, args.unsealed, &told);
    let became = unless_stopped(restoring).await?;
    teller.end();
    println!("{} is {became}", args.organization);
    let days = app.config.tenancy.retired_days;
    println!(
        "what it was is kept for {days} days: `rowhouse tenant restore {} --to previous`",
        args.organization
    );
    Ok(())
}

/// A moment, or the end of a day in UTC as far as it has passed; nothing where the text names a file.
fn time(text: &str, now: DateTime<Utc>) -> anyhow::Result<Option<DateTime<Utc>>> {
    let moment = DateTime::parse_from_rfc3339(text).ok().map(|at| at.to_utc());
    let day = text.parse::<NaiveDate>().ok().map(|day| day.and_time(NaiveTime::MIN).and_utc());
    let begins = moment.or(day);
    if begins.is_none() && text.starts_with(|first: char| first.is_ascii_digit()) && !Path::new(text).exists()
    {
        anyhow::bail!(
            "{text:?} is no file, and no time: those look like 2026-01-05T09:00:00Z, 2026-01-05T17:00:00+08:00 or \
             2026-01-05 (the end of that day in UTC)"
        );
    }
    anyhow::ensure!(begins.is_none_or(|begins| begins <= now), "{text} has not come yet");
    let ends = day.map(|day| now.min(day + chrono::TimeDelta::seconds(86_399)));
    Ok(moment.or(ends))
}

pub async fn clone(app: &Arc<App>, args: CloneArgs) -> anyhow::Result<()> {
    let tenant = super::find(app, &args.organization).await?;
    let teller = Teller::default();
    let told = |step: Step<'_>| teller.tell(step);
    let cloning = transfer::clone(app, &tenant, args.slug.clone(), &told);
    let id = unless_stopped(cloning).await?;
    teller.end();
    println!("made {} ({id}), a copy of {} from which nothing goes out", args.slug, args.organization);
    Ok(())
}

pub async fn erase(app: &Arc<App>, args: EraseArgs) -> anyhow::Result<()> {
    anyhow::ensure!(
        args.confirm == args.organization,
        "--confirm names {:?}, not {:?}; nothing was erased",
        args.confirm,
        args.organization
    );
    let known = erase::certificate(app, &args.organization).await.map_err(plain)?;
    let certificate = match fleet::tenant(&app.directory, &args.organization).await.map_err(plain)? {
        // It may be somebody else who has the name now.
        Some(tenant) if known.is_some() && args.organization.parse::<Uuid>().is_err() => anyhow::bail!(
            "an organization {0:?} was erased already, and one has that name now ({1}); nothing was erased. Name the \
             one that is meant by its id",
            args.organization,
            tenant.id()
        ),
        Some(tenant) => {
            let teller = Teller::default();
            let told = |step: Step<'_>| teller.tell(step);
            let erasing = erase::erase(app, &tenant, &told);
            let certificate = unless_stopped(erasing).await?;
            teller.end();
            certificate
        }
        // It was done, and whoever did it was killed before they said so.
        None => {
            let (certificate, is_right) = known.with_context(|| {
                format!("there is no organization {:?}; `rowhouse tenant list` shows all", args.organization)
            })?;
            if !is_right {
                eprintln!(
                    "the certificate's seal is wrong: it was changed, or ROWHOUSE_SECRET_KEY is another now"
                );
            }
            certificate
        }
    };
    eprintln!("{} was erased at {}", args.organization, certificate["erased_at"].as_str().unwrap_or("?"));
    if certificate["files"]["looked_in"].is_null() {
        eprintln!("no folder of backups is set here (backups.folder): if there are any, remove them by hand");
    }
    if certificate["objects"].is_null() {
        eprintln!("no place for files is set here (files.folder): if it had files, remove them by hand");
    }
    for copy in certificate["copies"].as_array().into_iter().flatten() {
        let text = |field: &str| copy[field].as_str().unwrap_or("?").to_owned();
        eprintln!(
            "a copy of it lives on: {} ({}); erase it as well if it is to go",
            text("slug"),
            text("id")
        );
    }
    match args.certificate {
        None => println!("{}", serde_json::to_string_pretty(&certificate)?),
        Some(file) => write_whole(&file, &certificate)
            .with_context(|| format!("{} cannot be written; repeat the command", file.display()))?,
    }
    Ok(())
}

fn write_whole(path: &Path, value: &Value) -> anyhow::Result<()> {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let mut file = fs::File::create(&part)?;
    writeln!(file, "{}", serde_json::to_string_pretty(value)?)?;
    file.sync_all()?;
    Ok(fs::rename(part, path)?)
}

pub async fn suspend(app: &Arc<App>, args: SuspendArgs) -> anyhow::Result<()> {
    set_status(app, &args.organization, OrganizationStatus::Suspended, args.because).await
}

pub async fn resume(app: &Arc<App>, args: ResumeArgs) -> anyhow::Result<()> {
    set_status(app, &args.organization, OrganizationStatus::Active, None).await
}

async fn set_status(
    app: &App,
    name: &str,
    status: OrganizationStatus,
    because: Option<String>,
) -> anyhow::Result<()> {
    let tenant = super::find(app, name).await?;
    let changed = change_status(app, &tenant, status, because).await.map_err(plain)?;
    app.directory.forget(tenant.id());
    match changed {
        true => println!("{name} is {status} now"),
        false => println!("{name} was {status} already"),
    }
    Ok(())
}

async fn change_status(
    app: &App,
    tenant: &Tenant,
    status: OrganizationStatus,
    because: Option<String>,
) -> crate::error::Result<bool> {
    let (id, organization) = (tenant.id(), Some(tenant.id()));
    let tx = tenant.begin().await?;
    organizations::lock(&tx, id).await?;
    let row = tx.query_one("select plan, status from platform.organizations where id = $1", &[&id]).await?;
    let (plan, before): (String, OrganizationStatus) = (row.try_get("plan")?, row.try_get("status")?);
    if before == status {
        return Ok(false);
    }
    tx.execute(
        "update platform.organizations set status = $2, suspended_because = $3, version = version + 1, \
         updated_at = $4 where id = $1",
        &[&id, &status, &because, &app.clock.now()],
    )
    .await?;
    let what = match status {
        OrganizationStatus::Suspended => EventType::OrganizationSuspended,
        OrganizationStatus::Active => EventType::OrganizationResumed,
    };
    let shown = |status: OrganizationStatus| json!({"plan": plan, "status": status});
    let changes = Changes::between(&shown(before), &shown(status));
    events::record(&tx, app, Actor::system(), what, id, changes).await?;
    let told = |status: OrganizationStatus, because: Option<&str>| json!({"status": status, "suspended_because": because});
    let changes = Changes::between(&told(before, None), &told(status, because.as_deref()));
    audit::record_platform(&tx, app, Actor::system(), what.name(), organization, organization, &changes)
        .await?;
    withdraw(&tx, app, Access::Organization { organization: id }, what.name()).await?;
    tx.commit().await?;
    Ok(true)
}

async fn slug_of(app: &App, tenant: &Tenant) -> anyhow::Result<String> {
    let tx = app.db.begin().await.map_err(plain)?;
    let row = tx.query_one("select slug from platform.organizations where id = $1", &[&tenant.id()]).await;
    Ok(row.map_err(plain)?.try_get("slug")?)
}

/// Does something until it is done or somebody wants it to stop; what it has begun is undone then.
pub async fn unless_stopped<T>(work: impl Future<Output = crate::error::Result<T>>) -> anyhow::Result<T> {
    tokio::select! {
        outcome = work => outcome.map_err(plain),
        () = stop_requested() => {
            // Time to write down that it was interrupted.
            tokio::time::sleep(Duration::from_millis(300)).await;
            anyhow::bail!("stopped before it was done; the same command begins again")
        }
    }
}

/// Tells how far something is: one line on a terminal, a line now and then in a log.
#[derive(Default)]
pub struct Teller(Mutex<Option<(String, Instant)>>);

impl Teller {
    pub fn tell(&self, step: Step<'_>) {
        let line = match (step.done, step.of) {
            (0, _) => step.what.to_owned(),
            (done, None) => format!("{}: {done}", step.what),
            (done, Some(of)) => format!("{}: {done} of {of}", step.what),
        };
        let mut last = self.0.lock().expect("nothing panics with the lock held");
        let same = last.as_ref().is_some_and(|(what, _)| what == step.what);
        let (terminal, wait) = match io::stderr().is_terminal() {
            true => (true, Duration::from_millis(100)),
            false => (false, Duration::from_secs(5)),
        };
        if same && last.as_ref().is_some_and(|(_, said)| said.elapsed() < wait) {
            return;
        }
        *last = Some((step.what.to_owned(), Instant::now()));
        match terminal {
            true => eprint!("\r\x1b[2K{line}"),
            false => eprintln!("{line}"),
        }
    }

    /// Makes room for what is said next.
    pub fn end(&self) {
        if io::stderr().is_terminal() {
            eprint!("\r\x1b[2K");
        }
    }
}
