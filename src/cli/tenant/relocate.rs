//! `rowhouse tenant move`.

use std::{sync::Arc, time::Duration};

use super::{
    super::plain,
    whole::{Teller, unless_stopped},
};
use crate::{
    app::App,
    tenancy::fleet::{operation::Step, relocate},
};

#[derive(clap::Args)]
pub struct Move {
    /// Slug or id.
    organization: String,
    /// The server that it goes to; `rowhouse database list` shows all.
    #[arg(long, value_name = "NAME")]
    database: String,
    /// For how many seconds it may be paused at most; much less is taken where little is left to do.
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=60))]
    pause: u64,
    /// Only say what would be moved.
    #[arg(long)]
    dry_run: bool,
}

pub async fn relocate(app: &Arc<App>, args: Move) -> anyhow::Result<()> {
    let Move { organization: name, database, pause, dry_run } = args;
    let tenant = super::find(app, &name).await?;
    let plan = relocate::plan(app, &tenant, &database).await.map_err(plain)?;
    if plan.is_there {
        println!("{name} is on {} already", plan.to);
        return Ok(());
    }
    let megabytes = plan.bytes as f64 / 1e6;
    println!(
        "{name}: {} tables, {} rows, {megabytes:.1} MB, from {} to {}",
        plan.tables, plan.rows, plan.from, plan.to
    );
    if dry_run {
        for (module, version) in &plan.modules {
            println!("  module {module} at version {version}");
        }
        println!("nothing was done, as --dry-run was given");
        return Ok(());
    }
    let (teller, pause) = (Teller::default(), Duration::from_secs(pause));
    let tell = |step: Step<'_>| teller.tell(step);
    let moved = unless_stopped(relocate::relocate(app, &tenant, &database, pause, &tell)).await;
    teller.end();
    let moved = moved?;
    println!(
        "{name} is on {} now: {} tables, {} rows; it was paused for {} ms (tries: {})",
        plan.to,
        moved.tables,
        moved.rows,
        moved.paused.as_millis(),
        moved.tries
    );
    Ok(())
}
