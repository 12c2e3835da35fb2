//! `rowhouse openapi`.

use std::{fs, path::PathBuf};

use anyhow::{Context, bail};

use crate::api::DOCUMENT;

#[derive(clap::Args)]
pub struct Args {
    /// Only compare the files with the code; fail where they differ.
    #[arg(long)]
    check: bool,
    /// Folder of openapi.json and openapi.yaml.
    #[arg(long, default_value = "openapi")]
    dir: PathBuf,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    for (name, current) in [("openapi.json", &DOCUMENT.json), ("openapi.yaml", &DOCUMENT.yaml)] {
        let path = args.dir.join(name);
        if !args.check {
            fs::create_dir_all(&args.dir)?;
            fs::write(&path, current).with_context(|| format!("writing {}", path.display()))?;
            println!("wrote {}", path.display());
            continue;
        }
        let committed = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let differing = committed.lines().zip(current.lines()).position(|(a, b)| a != b);
        if committed != *current {
            let line = differing.unwrap_or(committed.lines().count().min(current.lines().count())) + 1;
            bail!(
                "{} differs from the code at line {line}; run `rowhouse openapi` and commit the result",
                path.display()
            );
        }
        println!("{} is current", path.display());
    }
    Ok(())
}
