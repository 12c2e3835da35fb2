//! `pgbench` with the statements that the service sends for a list, over as many connections: how
//! much of what Postgres can do is left when a service is in between.

use std::{fs, path::PathBuf, process::Stdio};

use anyhow::{Context, ensure};
use rowhouse::cli::postgres::find_binaries;
use tokio::process::Command;

use crate::{Ground, tenants::Tenant};

/// What `GET /projects` reads, as `src/work/projects.rs` and `src/db/select.rs` write it.
const COLUMNS: &str = "id, name, slug, description, status, priority, owner_id, created_by, start_date, end_date, \
     budget_amount, budget_currency, progress::float8 as progress, version, created_at, updated_at";
/// Connections, as many as the service's pool has.
const CLIENTS: &str = "8";
/// Postgres plans a prepared statement anew five times before it keeps a plan, in each connection and
/// for each tenant; so long nothing is counted.
const WARMING: usize = 3;
const COUNTED: usize = 4;
/// `pgbench` takes 128 at most, so each is for several tenants.
const SCRIPTS: usize = 100;

/// How a statement finds its tenant.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// By the schema's name in it, in a transaction of its own.
    Qualified,
    /// By a path that is set in the transaction, as the service does it.
    Path,
}

/// The scripts, and where to run them.
pub struct Pgbench {
    program: PathBuf,
    url: String,
    qualified: Vec<PathBuf>,
    path: Vec<PathBuf>,
}

impl Pgbench {
    /// Writes scripts for these tenants.
    pub fn prepare(ground: &Ground, database: &str, tenants: &[Tenant]) -> anyhow::Result<Self> {
        let program = find_binaries()?.dir.join("pgbench");
        ensure!(program.is_file(), "there is no {}", program.display());
        let write = |way: Way, name: &str| {
            let folder = ground.place.join(name);
            fs::create_dir_all(&folder)?;
            let scripts = tenants.chunks(tenants.len().div_ceil(SCRIPTS).max(1)).enumerate();
            let written = scripts.map(|(n, few)| {
                let file = folder.join(format!("{n}.sql"));
                fs::write(&file, script(way, few)).map(|()| file)
            });
            written.collect::<std::io::Result<Vec<_>>>()
        };
        let first = tenants.first().context("no tenants")?;
        Ok(Self {
            program,
            // Statements are prepared before the path is set for the first time; then they are planned anew.
            url: format!("{}&options=-csearch_path%3D{}", ground.url(database), first.schema),
            qualified: write(Way::Qualified, "pgbench-qualified")?,
            path: write(Way::Path, "pgbench-path")?,
        })
    }

    /// Lists a second.
    pub async fn run(&self, way: Way) -> anyhow::Result<f64> {
        let scripts = if way == Way::Qualified { &self.qualified } else { &self.path };
        let mut command = Command::new(&self.program);
        let time = (WARMING + COUNTED).to_string();
        command.args(["--no-vacuum", "--protocol=prepared", "--jobs=2", "--progress=1"]);
        command.args(["--client", CLIENTS, "--time", &time]);
        for script in scripts {
            command.arg("--file").arg(script);
        }
        let output = command.arg(&self.url).stdin(Stdio::null()).output().await?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "pgbench failed: {said}");
        // progress: 4.0 s, 9378.3 tps, lat 0.816 ms stddev 0.311, 0 failed
        let seconds: Vec<f64> = said
            .lines()
            .filter_map(|line| line.strip_prefix("progress: ")?.split_once(" s, ")?.1.split_once(" tps"))
            .filter_map(|(figure, _)| figure.parse().ok())
            .skip(WARMING)
            .collect();
        ensure!(!seconds.is_empty(), "pgbench says nothing of its progress: {said}");
        Ok(seconds.iter().sum::<f64>() / seconds.len() as f64)
    }
}

/// Lists the projects of one of these tenants, whichever.
fn script(way: Way, tenants: &[Tenant]) -> String {
    let mut text = format!("\\set limit 20\n\\set offset 0\n\\set chosen random(1, {})\n", tenants.len());
    for (n, tenant) in tenants.iter().enumerate() {
        let word = if n == 0 { "if" } else { "elif" };
        text += &format!("\\{word} :chosen = {}\n\\startpipeline\n", n + 1);
        let (rows, count) = list(if way == Way::Qualified { tenant.schema.as_str() } else { "" });
        text += &match way {
            Way::Qualified => format!("{rows};\n{count};\n"),
            Way::Path => format!("begin;\n{};\n{rows};\n{count};\nrollback;\n", enter(tenant)),
        };
        text += "\\endpipeline\n";
    }
    text + "\\endif\n"
}

/// The two statements of a list.
fn list(schema: &str) -> (String, String) {
    let dot = if schema.is_empty() { "" } else { "." };
    let rows = format!(
        "select {COLUMNS}, array(select m.user_id from {schema}{dot}project_members m \
         where m.project_id = projects.id order by m.user_id) as member_ids \
         from {schema}{dot}projects order by created_at desc, id desc limit :limit offset :offset"
    );
    (rows, format!("select count(*) from {schema}{dot}projects"))
}

/// What a transaction begins with, as `src/db/pool.rs` has it.
fn enter(tenant: &Tenant) -> String {
    format!(
        "select set_config('search_path', '{}, extensions', true), set_config('statement_timeout', '30s', true), \
         set_config('rowhouse.organization_id', '{}', true)",
        tenant.schema, tenant.organization
    )
}
