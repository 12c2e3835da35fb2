//! `rowhouse migrate`.

use std::{
    fs,
    io::IsTerminal,
    path::PathBuf,
    sync::Mutex,
    time::{Duration, Instant},
};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::{plain, stop_requested};
use crate::{
    app::App,
    clock::Clock,
    config::Config,
    db::migrations::{self, Failure, SharedReport, all_sets, shared_set},
    tenancy::fleet::{self, Options, Progress, Report},
};

/// Lines in a log come after so many schemas, or so long.
const LINE_EVERY: usize = 100;
const LINE_AFTER: Duration = Duration::from_secs(5);
/// Failures that are printed in full; the report has all.
const SHOWN: usize = 20;

/// Both steps can be repeated and interrupted at any time, and the service goes on meanwhile. What is
/// current is skipped, a schema that fails is noted and left as it was, and the next run tries it again.
/// The exit code is 0 if everything is up to date, or can be brought there by what --dry-run tells; 1 if
/// something failed, or would be refused.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: Run,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Show where the schemas are, what failed, and how the last run went.
    Status {
        /// For programs.
        #[arg(long)]
        json: bool,
    },
    /// Try those again whose last attempt failed.
    Retry(Run),
    /// Compare schemas with what their migrations make, and print what differs.
    Verify {
        /// Slug or id; all schemas where absent.
        organizations: Vec<String>,
        /// For programs.
        #[arg(long)]
        json: bool,
    },
}

#[derive(clap::Args)]
struct Run {
    /// Tenant schemas at the same time; one less than DATABASE_POOL_SIZE at most.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..))]
    jobs: u16,
    /// Slug or id of an organization that goes first; should it fail, nobody else is touched. Can be given
    /// several times.
    #[arg(long, value_name = "SLUG")]
    canary: Vec<String>,
    /// Slug or id of an organization that alone is brought along, after the canaries. Can be given several
    /// times.
    #[arg(long, value_name = "SLUG")]
    only: Vec<String>,
    /// Stop after so many tenant schemas failed.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    max_failures: u32,
    /// Print what there is to do, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// How long one module of a schema may take.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    timeout: Option<u64>,
    /// Write what was done, as JSON.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

impl Run {
    fn options(&self, failed_only: bool) -> Options {
        Options {
            jobs: self.jobs.into(),
            canaries: self.canary.clone(),
            only: self.only.clone(),
            max_failures: self.max_failures as usize,
            dry_run: self.dry_run,
            timeout: self.timeout.map(Duration::from_secs),
            failed_only,
        }
    }
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        None => begin(args.run, false).await,
        Some(Command::Retry(run)) => begin(run, true).await,
        Some(Command::Status { json }) => status(json).await,
        Some(Command::Verify { organizations, json }) => verify(organizations, json).await,
    }
}

async fn begin(run: Run, failed_only: bool) -> anyhow::Result<()> {
    let app = App::new(Config::load()?, Clock::default())?;
    let unfinished = run.report.as_ref().map(|path| path.with_added_extension("part"));
    if let Some(path) = &unfinished {
        // Whoever waits for hours should not learn at the end that the file cannot be written.
        fs::write(path, "").with_context(|| format!("--report: cannot write {}", path.display()))?;
    }
    let asked = tokio::spawn({
        let app = app.clone();
        async move {
            stop_requested().await;
            app.request_stop();
        }
    });
    let done = bring_up(&app, &run.options(failed_only)).await;
    asked.abort();
    if let (Some(path), Some(unfinished)) = (&run.report, &unfinished) {
        match &done {
            Ok(done) => {
                fs::write(unfinished, serde_json::to_string_pretty(done)? + "\n")?;
                fs::rename(unfinished, path)?;
            }
            Err(_) => {
                let _ = fs::remove_file(unfinished);
            }
        }
    }
    judge(&done?)
}

/// Platform first, then the fleet; says on standard output what it did, and fails where some failed.
pub async fn migrate(app: &App, options: &Options) -> anyhow::Result<()> {
    judge(&bring_up(app, options).await?)
}

/// What was done, or what a dry run would do.
#[derive(Serialize)]
struct Done {
    platform: SharedReport,
    /// None where a dry run cannot look at tenants yet.
    #[serde(flatten)]
    tenants: Option<Report>,
}

async fn bring_up(app: &App, options: &Options) -> anyhow::Result<Done> {
    let platform;
    if options.dry_run {
        let tx = app.db.begin().await.map_err(plain)?;
        let (version, latest) =
            (migrations::shared_version(&tx).await.map_err(plain)?, shared_set().latest());
        platform = SharedReport { from: version, to: latest.max(version) };
        if version < latest {
            println!(
                "platform: would go from version {version} to {latest}; tenants can be looked at after that"
            );
            return Ok(Done { platform, tenants: None });
        }
        println!("platform: current at version {version}");
    } else {
        let told = |failure: &Failure| eprintln!("platform: somebody is in the way, trying again: {failure}");
        platform = migrations::migrate_shared_to(&app.db, &shared_set(), &told).await.map_err(plain)?;
        match platform.from == platform.to {
            true => println!("platform: current at version {}", platform.to),
            false => println!("platform: from version {} to {}", platform.from, platform.to),
        }
    }
    let started = Instant::now();
    let teller = Teller::new("tenants");
    let told = |progress: Progress| teller.tell(progress.done(), progress.total, progress.failed);
    let report = fleet::migrate(app, &all_sets(), options, &told).await.map_err(plain)?;
    teller.end();
    match options.dry_run {
        true => print_plan(&report),
        false => print_report(&report, started.elapsed()),
    }
    Ok(Done { platform, tenants: Some(report) })
}

fn print_plan(report: &Report) {
    for step in report.planned.iter().filter(|step| step.objection.is_none()) {
        let organization = step.organization.as_deref().unwrap_or("spare");
        println!(
            "{} ({organization}): {} from version {} to {}",
            step.schema, step.module, step.from, step.to
        );
    }
    for step in &report.planned {
        if let Some(objection) = &step.objection {
            println!("{} would be refused: {objection}", step.schema);
        }
    }
    println!("tenants: {} to migrate, {} current; nothing was changed", report.pending, report.current);
    print_newer(report);
}

fn print_report(report: &Report, took: Duration) {
    println!(
        "tenants: {} migrated, {} current, {} failed, in {:.1} s",
        report.migrated,
        report.current,
        report.failed,
        took.as_secs_f64()
    );
    print_newer(report);
    for failure in report.failures.iter().take(SHOWN) {
        let organization = failure.organization.as_deref().unwrap_or("spare");
        eprintln!("{} ({organization}): {}", failure.schema, failure.error);
    }
    if report.failures.len() > SHOWN {
        eprintln!("... and {} more; `rowhouse migrate status` shows them", report.failures.len() - SHOWN);
    }
    if report.unreached > 0 {
        eprintln!("{} more are on servers that do not answer, and were not tried", report.unreached);
    }
    if let Some(because) = &report.stopped_because {
        eprintln!("stopped, as {because}; {} were not tried", report.pending);
    }
}

fn print_newer(report: &Report) {
    if report.newer > 0 {
        println!("tenants: {} are ahead of this program, and left alone", report.newer);
    }
}

fn judge(done: &Done) -> anyhow::Result<()> {
    let Some(report) = &done.tenants else { return Ok(()) };
    let refused = report.planned.iter().filter(|step| step.objection.is_some()).count();
    anyhow::ensure!(refused == 0, "{refused} would be refused");
    anyhow::ensure!(
        report.failed == 0,
        "some schemas failed; mend the cause and run `rowhouse migrate retry`, or `rowhouse migrate` for all"
    );
    let ended = report.stopped_because.is_none();
    anyhow::ensure!(ended, "stopped before the end; `rowhouse migrate` goes on where it was");
    Ok(())
}

async fn status(json: bool) -> anyhow::Result<()> {
    let app = super::app().await?;
    let standing = fleet::standing(&app).await.map_err(plain)?;
    let failing = fleet::failing(&app, 1000).await.map_err(plain)?;
    if json {
        let all = serde_json::json!({"standing": standing, "failing": failing});
        println!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(());
    }
    println!("platform at version {}", standing.platform_version);
    for module in &standing.modules {
        println!(
            "{} at version {}{}",
            module.module,
            module.latest,
            if module.optional { ", optional" } else { "" }
        );
        for at in &module.versions {
            let note = match at.version.cmp(&module.latest) {
                std::cmp::Ordering::Less => ", behind",
                std::cmp::Ordering::Equal => "",
                std::cmp::Ordering::Greater => ", ahead of this program",
            };
            println!("  {:>6} schemas at version {}{note}", at.schemas, at.version);
        }
    }
    println!(
        "{:<20} {:>8} {:>8} {:>8} {:>8} {:>8}",
        "DATABASE", "CAPACITY", "TAKEN", "SPARE", "BUILDING", "RETIRED"
    );
    for on in &standing.databases {
        println!(
            "{:<20} {:>8} {:>8} {:>8} {:>8} {:>8}{}",
            on.name,
            on.capacity,
            on.taken,
            on.spare,
            on.building,
            on.retired,
            if on.accepts { "" } else { "  (takes no new organizations)" }
        );
    }
    if let Some(run) = &standing.last_run {
        println!(
            "last run {}: {}, {} of {} migrated, {} current, {} failed",
            run.started_at.format("%Y-%m-%d %H:%M:%S"),
            run.state,
            run.migrated,
            run.total,
            run.current,
            run.failed
        );
    }
    for failing in failing.iter().take(SHOWN) {
        println!(
            "  FAIL  {} ({}), {} at version {}, {} run(s): {}",
            failing.schema,
            failing.organization.as_deref().unwrap_or("spare"),
            failing.module,
            failing.version,
            failing.attempts,
            failing.error
        );
    }
    println!("{} schemas behind, {} failed", standing.behind, standing.failed);
    Ok(())
}

async fn verify(organizations: Vec<String>, json: bool) -> anyhow::Result<()> {
    let app = super::app().await?;
    let teller = Teller::new("schemas");
    let told = |done, total| teller.tell(done, total, 0);
    let found = fleet::verify(&app, &all_sets(), &organizations, &told).await.map_err(plain)?;
    teller.end();
    if json {
        println!("{}", serde_json::to_string_pretty(&found)?);
    } else {
        print_verification(&found);
    }
    anyhow::ensure!(found.is_clean(), "the schemas are not what their migrations make");
    let left = found.unverified.len();
    anyhow::ensure!(left == 0, "{left} schemas could not be compared");
    Ok(())
}

fn print_verification(found: &fleet::Verification) {
    let shown =
        |of: &fleet::SchemaName| format!("{} ({})", of.schema, of.organization.as_deref().unwrap_or("spare"));
    for drift in &found.drifted {
        println!("{}", shown(&drift.of));
        drift.lines.iter().for_each(|line| println!("  {line}"));
    }
    for missing in &found.missing {
        println!("{} is gone: somebody dropped it", shown(missing));
    }
    for extra in &found.extra {
        println!("{} on database {} belongs to nobody", extra.schema, extra.database_id);
    }
    for unverified in &found.unverified {
        println!("{} was not compared: {}", shown(&unverified.of), unverified.because);
    }
    println!(
        "{} compared, {} differ, {} gone, {} unknown, {} not compared",
        found.checked,
        found.drifted.len(),
        found.missing.len(),
        found.extra.len(),
        found.unverified.len()
    );
}

/// Tells how far something is: a bar on a terminal, lines in a log.
struct Teller {
    what: &'static str,
    bar: Option<ProgressBar>,
    last_line: Mutex<Instant>,
}

impl Teller {
    fn new(what: &'static str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::no_length();
            let shape = "{prefix} {bar:30} {pos}/{len}, {per_sec}, {eta} left{msg}";
            bar.set_style(
                ProgressStyle::with_template(shape).unwrap_or_else(|_| ProgressStyle::default_bar()),
            );
            bar.set_prefix(what);
            // The time goes on also while no schema is done.
            bar.enable_steady_tick(Duration::from_millis(500));
            bar
        });
        Self { what, bar, last_line: Mutex::new(Instant::now()) }
    }

    fn tell(&self, done: usize, total: usize, failed: usize) {
        let failures = if failed > 0 { format!(", {failed} failed") } else { String::new() };
        if let Some(bar) = &self.bar {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
            bar.set_message(failures);
            return;
        }
        let mut last = self.last_line.lock().expect("nothing panics with the lock held");
        if done == total || done.is_multiple_of(LINE_EVERY) || last.elapsed() >= LINE_AFTER {
            eprintln!("{}: {done} of {total}{failures}", self.what);
            *last = Instant::now();
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
