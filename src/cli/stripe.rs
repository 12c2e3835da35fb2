//! `rowhouse stripe ...`.

use anyhow::Context;

use super::{app, plain};
use crate::{billing::setup, tenancy::fleet};

#[derive(clap::Subcommand)]
pub enum Command {
    /// Make the products and monthly prices of the plans at Stripe, and print the settings that name them.
    ///
    /// What is there already is found again, so it can be repeated; after a price was changed, it makes
    /// the new one.
    Setup,
    /// Forget which customer at Stripe an organization is, and what it paid for there.
    ///
    /// For one that Stripe does not know, as after a change of the account: nothing is told to Stripe, and
    /// whoever still pays there goes on to.
    Unlink {
        /// Its slug or id.
        organization: String,
    },
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
        Command::Unlink { organization } => {
            let tenant = fleet::tenant(&app.directory, &organization).await.map_err(plain)?;
            let tenant = tenant.with_context(|| format!("there is no organization {organization}"))?;
            match setup::unlink(&app, &tenant).await.map_err(plain)? {
                Some(customer) => println!("{organization} is not {customer} any more."),
                None => println!("{organization} is no customer at Stripe."),
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
