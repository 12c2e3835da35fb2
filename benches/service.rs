//! The service as a process of its own, as it is deployed: the release binary and its environment.

use std::{
    net::SocketAddr,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{bail, ensure};
use tokio::time::sleep;

use crate::{
    Ground, SECRET,
    load::{self, Request},
};

/// Ends with this.
pub struct Service {
    process: Child,
    pub address: SocketAddr,
    /// From its start to its first answer.
    pub ready_in: Duration,
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Service {
    /// Starts it over a database that is there, without limits on requests, and waits for it.
    pub async fn start(
        ground: &Ground,
        database: &str,
        arguments: &[&str],
        settings: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let address = free_address()?;
        let limits = [
            "ANONYMOUS",
            "USER",
            "ORGANIZATION",
            "ORGANIZATION_PROFESSIONAL",
            "ORGANIZATION_ENTERPRISE",
            "REGISTER",
            "LOGIN",
        ];
        let mut command = Command::new(env!("CARGO_BIN_EXE_rowhouse"));
        command
            .arg("serve")
            .args(arguments)
            .env_clear()
            .env("DATABASE_URL", ground.url(database))
            .env("DATABASE_POOL_SIZE", "8")
            .env("ROWHOUSE_SECRET_KEY", SECRET)
            .env("HTTP_LISTEN", address.to_string())
            .env("MAIL_FOLDER", ground.place.join("mail"))
            .env("LOG_LEVEL", "warn")
            .envs(limits.map(|limit| (format!("LIMIT_{limit}"), "off")))
            .envs(settings.iter().copied())
            .current_dir(&ground.place)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let started = Instant::now();
        let mut process = command.spawn()?;
        let health = Request::get(&address.to_string(), "/health", "");
        while !matches!(load::status(address, &health).await, Ok(200)) {
            if let Some(status) = process.try_wait()? {
                bail!("the service ended at its start: {status}");
            }
            ensure!(started.elapsed() < Duration::from_secs(20), "the service does not start");
            sleep(Duration::from_millis(1)).await;
        }
        Ok(Self { process, address, ready_in: started.elapsed() })
    }

    /// Megabytes that the process holds in memory.
    pub fn memory(&self) -> f64 {
        megabytes(self.process.id(), "VmRSS:")
    }
}

/// A line of a process' status, in megabytes; 0 where there is no such thing.
pub fn megabytes(process: u32, line: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find(|found| found.starts_with(line)).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kb| kb.parse::<f64>().ok()).unwrap_or_default() / 1024.0
}

/// An address of this machine that nobody listens on yet.
pub fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}
