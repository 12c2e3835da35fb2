//! `rowhouse stripe ...`.

use super::app;
use crate::billing::setup;

#[derive(clap::Subcommand)]
pub enum Command {
    /// Make the products and monthly prices of the plans at Stripe, and print the settings that name them.
    ///
    /// What is there already is found again, so it can be repeated; after a price was changed, it makes
    /// the new one.
    Setup,
    /// Say whether what Stripe charges is what the plans show.
    Check,
}

pub async fn run(command: Command) -> anyhow::Result<()> {
    let app = app().await?;
    match command {
        Command::Setup => {
            for (plan, price, amount) in setup::prices(&app).await? {
                println!(
                    "STRIPE_PRICE_{}={price}  # {} {} a month",
                    plan.name().to_uppercase(),
                    amount.currency,
                    amount.amount
                );
            }
            Ok(())
        }
        Command::Check => {
            anyhow::ensure!(app.stripe.is_some(), "STRIPE_SECRET_KEY is not set: nobody can pay");
            let complaints = setup::complaints(&app).await?;
            complaints.iter().for_each(|complaint| println!("{complaint}"));
            anyhow::ensure!(complaints.is_empty(), "{} problem(s)", complaints.len());
            println!("Stripe charges what the plans show.");
            Ok(())
        }
    }
}
