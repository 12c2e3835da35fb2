//! Backups: every night an archive of each organization, in a folder, for some days.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use chrono::{DateTime, NaiveDateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{archive::Target, transfer};
use crate::{
    app::App,
    error::{Error, Result},
    jobs::{self, Policy, Running, Terms, Work},
};

/// How a backup is called: by its moment.
const NAME: &str = "%Y%m%dT%H%M%SZ.tar.gz";
/// What nobody has written to for so long is left from somebody who died: no job takes as long.
const ABANDONED_AFTER: Duration = Duration::from_secs(6 * 3600);
/// How many organizations are given a job in one transaction.
const PAGE: i64 = 500;

/// Has every organization saved that is not deleted, where there is a folder for it.
pub async fn begin(app: &App) -> anyhow::Result<()> {
    if app.config.backups.folder.is_none() {
        return Ok(());
    }
    let sql =
        "select id from platform.organizations where id > $1 and deleted_at is null order by id limit $2";
    let mut after = Uuid::nil();
    loop {
        let tx = app.db.begin().await?;
        let rows = tx.query(sql, &[&after, &PAGE]).await?;
        for row in &rows {
            after = row.try_get("id")?;
            let unique = Some(jobs::ONE.into());
            let terms = Terms { unique, lane: Some(after), organization: Some(after), at: None };
            jobs::enqueue_on(&tx, app, &BackUp {}, terms).await?;
        }
        tx.commit().await?;
        if rows.len() < PAGE as usize {
            return Ok(());
        }
    }
}

/// Saves one organization, and removes what has had its time.
#[derive(Serialize, Deserialize)]
pub struct BackUp {}

impl Work for BackUp {
    const KIND: &'static str = "back_up_organization";
    const POLICY: Policy =
        Policy { limit: Duration::from_secs(4 * 3600), slots: 2, per_lane: 1, ..Policy::DEFAULT };

    async fn run(self, job: &Running) -> anyhow::Result<()> {
        let app = &job.app;
        let Some(tenant) = job.tenant().await?.filter(|tenant| !tenant.is_deleted()) else { return Ok(()) };
        let Some(folder) = folder_of(app, tenant.id()) else { return Ok(()) };
        tokio::fs::create_dir_all(&folder).await?;
        // First, as the disk may be full of them.
        remove_abandoned(&folder)?;
        remove_old(app, &folder)?;
        let file = folder.join(app.clock.now().format(NAME).to_string());
        let with_files = app.config.backups.files;
        let exported = transfer::export(app, &tenant, Target::File(file), with_files, &|_| {}).await?;
        for missing in exported.missing.iter().filter(|_| with_files) {
            tracing::warn!(organization = %tenant.id(), missing, "a backup is without something");
        }
        for problem in &exported.audit_problems {
            tracing::error!(organization = %tenant.id(), problem, "an audit log is not what was written");
        }
        Ok(remove_old(app, &folder)?)
    }
}

/// Removes backups that have had their time, but never the newest.
fn remove_old(app: &App, folder: &Path) -> io::Result<()> {
    let before = app.clock.now() - TimeDelta::days(app.config.backups.keep_days.into());
    for (moment, file) in list(folder)?.into_iter().rev().skip(1) {
        if moment < before {
            fs::remove_file(file)?;
        }
    }
    Ok(())
}

/// Removes halves of archives whose writers were killed.
fn remove_abandoned(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let written = entry.metadata()?.modified()?;
        let is_old = SystemTime::now().duration_since(written).is_ok_and(|since| since > ABANDONED_AFTER);
        if is_old && entry.path().extension().is_some_and(|ending| ending == "part") {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// The newest backup of an organization at or before a time.
pub(super) fn before(app: &App, organization: Uuid, at: DateTime<Utc>) -> Result<PathBuf> {
    let folder = folder_of(app, organization).ok_or_else(|| {
        Error::conflict("There are no backups: backups.folder (BACKUPS_FOLDER) is not set. Name an archive.")
    })?;
    let unreadable =
        |error: io::Error| Error::conflict(format!("{} cannot be read: {error}", folder.display()));
    let found = list(&folder).map_err(unreadable)?;
    let oldest = found.first().map(|(moment, _)| *moment);
    found.into_iter().rfind(|(moment, _)| *moment <= at).map(|(_, file)| file).ok_or_else(|| {
        Error::conflict(match oldest {
            Some(oldest) => format!("There is no backup of {at} or before; the oldest is of {oldest}."),
            None => format!("There is no backup in {}.", folder.display()),
        })
    })
}

/// The folder, for what cannot be done without.
pub fn required(app: &App) -> Result<&Path> {
    app.config.backups.folder.as_deref().ok_or_else(|| {
        Error::conflict(
            "There is no folder here for what is exported before it is removed. Whoever runs this service sets \
             backups.folder (BACKUPS_FOLDER).",
        )
    })
}

/// Where everything is that was saved of an organization.
pub fn folder_of(app: &App, organization: Uuid) -> Option<PathBuf> {
    app.config.backups.folder.as_ref().map(|folder| folder.join(organization.to_string()))
}

/// The backups in a folder, the oldest first.
fn list(folder: &Path) -> io::Result<Vec<(DateTime<Utc>, PathBuf)>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let moment = name.to_str().and_then(|name| NaiveDateTime::parse_from_str(name, NAME).ok());
        found.extend(moment.map(|moment| (moment.and_utc(), entry.path())));
    }
    found.sort();
    Ok(found)
}
