//! What one running service consists of, made once and shared by every request.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt;
use tokio::task::JoinSet;

use crate::{
    audit,
    auth::{
        activity::{self, Activity},
        keys::KeyRing,
        passwords::Passwords,
        sealing::Sealer,
    },
    clock::Clock,
    config::Config,
    db::Db,
    jobs,
    limits::Limits,
    mail::Mailer,
    observability,
    tenancy::{Directory, fleet},
};

/// The parts that requests, jobs and commands share.
pub struct App {
    pub config: Config,
    pub clock: Clock,
    pub db: Db,
    pub directory: Directory,
    pub sealer: Sealer,
    pub keys: KeyRing,
    pub passwords: Passwords,
    pub limits: Limits,
    pub mailer: Mailer,
    pub activity: Activity,
}

impl App {
    /// Prepares everything; connects to nothing yet.
    pub fn new(config: Config, clock: Clock) -> anyhow::Result<Arc<Self>> {
        observability::install();
        let (db, door) = Db::new(&config.database)?;
        let sealer = Sealer::new(&config.auth.secret_key_bytes()?);
        Ok(Arc::new(Self {
            directory: Directory::new(db.clone(), door),
            keys: KeyRing::new(db.clone(), sealer.clone(), &config.auth),
            passwords: Passwords::new(config.auth.password_hashes),
            limits: Limits::new(config.redis.url.as_ref(), clock.clone())?,
            mailer: Mailer::new(&config.mail)?,
            activity: Activity::default(),
            sealer,
            db,
            clock,
            config,
        }))
    }

    /// Starts what runs beside the requests; it ends when the result is dropped.
    pub async fn start(self: &Arc<Self>) -> anyhow::Result<JoinSet<()>> {
        self.keys.load(self.clock.now()).await?;
        let mut background = JoinSet::new();
        keep(&mut background, self, "directory", |app| async move { app.directory.listen().await });
        keep(&mut background, self, "spare schemas", fleet::keep_spares);
        keep(&mut background, self, "jobs", jobs::work);
        keep(&mut background, self, "audit seals", audit::keep_sealing);
        keep(&mut background, self, "activity", keep_activity);
        keep(&mut background, self, "sweeping", sweep);
        Ok(background)
    }
}

/// Runs something that never ends; begins it again should it panic.
fn keep<F, Fut>(background: &mut JoinSet<()>, app: &Arc<App>, what: &'static str, work: F)
where
    F: Fn(Arc<App>) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send,
{
    let app = app.clone();
    background.spawn(async move {
        while AssertUnwindSafe(work(app.clone())).catch_unwind().await.is_err() {
            tracing::error!(what, "something in the background panicked; it begins again");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
}

async fn keep_activity(app: Arc<App>) {
    loop {
        tokio::time::sleep(activity::EVERY).await;
        if let Err(error) = app.activity.flush(&app).await {
            tracing::warn!(%error, "when sessions and keys were used could not be written");
        }
    }
}

/// Once an hour removes what has had its time.
async fn sweep(app: Arc<App>) {
    const SWEEPS: [(&str, i64); 8] = [
        ("delete from platform.jobs where failed_at < $1", 30),
        ("delete from platform.idempotency_keys where claimed_at < $1", 1),
        ("delete from platform.refresh_tokens where expires_at < $1", 0),
        ("delete from platform.sessions where expires_at < $1", 30),
        ("delete from platform.email_tokens where expires_at < $1", 7),
        ("delete from platform.login_challenges where expires_at < $1", 0),
        ("delete from platform.login_failures where updated_at < $1", 1),
        ("delete from platform.security_events where occurred_at < $1", 400),
    ];
    loop {
        let swept = async {
            let tx = app.db.begin().await?;
            for (sql, days) in SWEEPS {
                tx.execute(sql, &[&(app.clock.now() - chrono::TimeDelta::days(days))]).await?;
            }
            tx.commit().await
        };
        if let Err(error) = swept.await {
            tracing::warn!(%error, "sweeping failed; trying again in an hour");
        }
        tokio::time::sleep(Duration::from_secs(3600)).await;
    }
}
