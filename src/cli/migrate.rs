//! `rowhouse migrate`.

use std::{io::IsTerminal, time::Instant};

use super::plain;
use crate::{app::App, clock::Clock, config::Config, db::migrations, tenancy::fleet};

/// Both steps can be repeated and interrupted at any time; what is current is skipped.
#[derive(clap::Args)]
pub struct Args {
    /// Tenant schemas at the same time.
    #[arg(long, default_value_t = 4)]
    jobs: usize,
    /// Stop after so many tenant schemas failed.
    #[arg(long, default_value_t = 5)]
    max_failures: usize,
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    let app = App::new(Config::load()?, Clock::default())?;
    migrate(&app, args.jobs, args.max_failures).await
}

/// Platform first, then the fleet; says on standard output what it did.
pub async fn migrate(app: &App, jobs: usize, max_failures: usize) -> anyhow::Result<()> {
    let shared = migrations::migrate_shared(&app.db).await.map_err(plain)?;
    match shared.from == shared.to {
        true => println!("platform: current at version {}", shared.to),
        false => println!("platform: from version {} to {}", shared.from, shared.to),
    }
    let started = Instant::now();
    let terminal = std::io::stderr().is_terminal();
    let progress = |done: usize, total: usize| {
        if terminal {
            eprint!("\rtenants: {done} of {total}");
            if done == total {
                eprintln!();
            }
        } else if done == total || done.is_multiple_of(100) {
            eprintln!("tenants: {done} of {total}");
        }
    };
    let report =
        fleet::migrate(&app.db, &app.directory, jobs, max_failures, progress).await.map_err(plain)?;
    println!(
        "tenants: {} migrated, {} current, {} failed, in {:.1} s",
        report.migrated,
        report.current,
        report.failed.len(),
        started.elapsed().as_secs_f64()
    );
    for (schema, error) in &report.failed {
        eprintln!("{schema}: {error}");
    }
    anyhow::ensure!(
        report.failed.is_empty(),
        "some schemas failed; mend the cause and run `rowhouse migrate` again"
    );
    Ok(())
}
