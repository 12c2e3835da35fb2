//! `rowhouse schedule ...`.

use super::{app, plain};
use crate::jobs::schedules;

#[derive(clap::Subcommand)]
pub enum Command {
    /// List what is done by the clock (UTC): when next, and how it went last.
    List,
}

pub async fn run(command: Command) -> anyhow::Result<()> {
    let Command::List = command;
    let app = app().await?;
    let time = "%Y-%m-%d %H:%M:%S";
    println!("{:<20} {:<14} {:<20} {:<20} {:<7} ABOUT", "NAME", "CRON", "NEXT (UTC)", "LAST (UTC)", "RESULT");
    for standing in schedules::list(&app).await.map_err(plain)? {
        let about = app.schedules().iter().find(|schedule| schedule.name == standing.name);
        println!(
            "{:<20} {:<14} {:<20} {:<20} {:<7} {}",
            standing.name,
            standing.cron,
            standing.next_run_at.format(time),
            standing.last_run_at.map_or("never".into(), |at| at.format(time).to_string()),
            standing.last_result.as_deref().unwrap_or("-"),
            about.map_or("(of another version)", |schedule| schedule.about),
        );
        if let Some(error) = standing.last_error {
            println!("{:<20} failed with: {error}", "");
        }
    }
    Ok(())
}
