//! `rowhouse config`.

use crate::config::Config;

#[derive(clap::Args)]
pub struct Args {
    /// Print a commented TOML file with every setting and its default instead.
    #[arg(long)]
    template: bool,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let text = if args.template { Config::template() } else { Config::load()?.masked() };
    print!("{text}");
    Ok(())
}
