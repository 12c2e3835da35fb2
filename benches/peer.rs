//! The same two endpoints on django-tenants, as a measure of what is usual: see `benches/peers/django`.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use serde::Deserialize;
use serde_json::json;
use tokio::time::sleep;

use crate::{
    Ground,
    load::{self, NUMBER, Request},
    service::free_address,
    tenants::PROJECTS,
};

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers/django");
const DATABASE: &str = "django";

/// The peer, while it serves.
pub struct Peer {
    server: Child,
    pub address: SocketAddr,
    tenants: Vec<Tenant>,
}

/// What `manage.py build` prints of each.
#[derive(Deserialize)]
struct Tenant {
    host: String,
    token: String,
}

impl Tenant {
    fn head(&self) -> String {
        format!("authorization: Bearer {}\r\n", self.token)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It ends its workers.
        let script = format!("kill -s TERM {}", self.server.id());
        let _ = Command::new("sh").args(["-c", &script]).status();
        let _ = self.server.wait();
    }
}

impl Peer {
    /// Installs it where that was not done yet, fills a database for it and starts it.
    pub async fn start(ground: &Ground, tenants: usize) -> anyhow::Result<Self> {
        let environment = install().context("installing it with python3, its venv and pip")?;
        ground.client("postgres").await?.batch_execute(&format!("create database {DATABASE}")).await?;
        let command = |program: &str| {
            let mut command = Command::new(environment.join("bin").join(program));
            command
                .env("DATABASE_URL", ground.url(DATABASE))
                .env("PYTHONPYCACHEPREFIX", environment.join("cache"))
                .current_dir(SOURCE)
                .stdin(Stdio::null());
            command
        };
        let manage = |arguments: &[&str]| finish(command("python").arg("manage.py").args(arguments));
        manage(&["migrate_schemas", "--shared", "--verbosity=0"])?;
        let (tenants, projects) = (tenants.to_string(), PROJECTS.to_string());
        let built = manage(&["build", "--tenants", &tenants, "--projects", &projects])?;
        let lines = built.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let tenants = lines.map(serde_json::from_slice).collect::<Result<Vec<Tenant>, _>>()?;
        let address = free_address()?;
        // The fastest of what was tried on two cores: 2 or 4 processes with 1, 2 or 4 threads.
        let server = command("gunicorn")
            .args(["wsgi", "--worker-class=gthread", "--workers=2", "--threads=2", "--keep-alive=120"])
            .args(["--no-control-socket", "--log-level=error", "--bind"])
            .arg(address.to_string())
            .spawn()?;
        let peer = Self { server, address, tenants };
        peer.wait_until_ready().await?;
        Ok(peer)
    }

    async fn wait_until_ready(&self) -> anyhow::Result<()> {
        let (started, list) = (Instant::now(), self.lists());
        let first = list.first().context("no tenants")?;
        while !matches!(load::status(self.address, first).await, Ok(200)) {
            ensure!(started.elapsed() < Duration::from_secs(20), "it does not answer");
            sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    pub fn lists(&self) -> Vec<Request> {
        self.tenants.iter().map(|tenant| Request::get(&tenant.host, "/projects", &tenant.head())).collect()
    }

    pub fn creates(&self) -> Vec<Request> {
        let new = json!({"name": format!("Made {NUMBER}"), "description": "One of many"});
        let create = |tenant: &Tenant| Request::post(&tenant.host, "/projects", &tenant.head(), &new);
        self.tenants.iter().map(create).collect()
    }
}

/// The folder of the virtual environment, made where it is missing.
fn install() -> anyhow::Result<PathBuf> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().context("no target folder")?;
    let environment = target.join("peers").join("django");
    finish(Command::new(format!("{SOURCE}/install.sh")).arg(&environment).stdin(Stdio::null()))?;
    Ok(environment)
}

/// Runs a command to its end, which must be a good one.
fn finish(command: &mut Command) -> anyhow::Result<Output> {
    let output = command.output()?;
    if !output.status.success() {
        bail!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    }
    Ok(output)
}
