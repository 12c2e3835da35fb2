//! What one running service consists of, made once and shared by every request.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt;
use tokio::{sync::watch, task::JoinSet};

use crate::{
    accounts::{emails::ResetRequest, lockout::LockNotice},
    audit,
    auth::{
        activity::{self, Activity},
        crowd::Crowd,
        keys::KeyRing,
        known::Known,
        passwords::Passwords,
        sealing::Sealer,
    },
    billing::{
        self, HandleStripeEvent, LookAtTrial, Reconcile, Resource, StopBilling, Stripe, SyncSubscription,
        TellReadOnly, begin_reconciliation,
    },
    clock::Clock,
    config::Config,
    db::Db,
    events::{self, TrimLogs},
    exchange::{self, RunExport, RunImports, TrimExchange},
    files::{self, CollectFiles, CollectStrays, MakeThumbnail, RemoveObjects, Store},
    jobs::{
        self, Kinds,
        schedules::{self, Schedule, Scheduled},
    },
    limits::Limits,
    mail::{Mailer, SendMail},
    notifications::{
        self, Channels, CollectDigests, DeliverNotification, Notify, Rule, SendDigest, SendSmsCode,
        WeeklyReport,
    },
    observability,
    organizations::modules::ChangeModule,
    outbound::Outbound,
    realtime::{self, Hub},
    search::Source,
    tenancy::{
        Directory,
        fleet::{self, backups::BackUp, erase::EraseOrganization},
    },
    usage::{self, FigureCache, MeasureUsage, Meter, ModuleFigures, RollUpUsage, WarnApiCalls},
    webhooks::{ClearWebhook, Deliver},
    work,
};

/// Every kind of job.
fn kinds() -> Kinds {
    Kinds::default()
        .with::<SendMail>()
        .with::<ResetRequest>()
        .with::<LockNotice>()
        .with::<Scheduled>()
        .with::<Deliver>()
        .with::<ClearWebhook>()
        .with::<Notify>()
        .with::<DeliverNotification>()
        .with::<CollectDigests>()
        .with::<SendDigest>()
        .with::<WeeklyReport>()
        .with::<SendSmsCode>()
        .with::<TrimLogs>()
        .with::<SyncSubscription>()
        .with::<StopBilling>()
        .with::<TellReadOnly>()
        .with::<HandleStripeEvent>()
        .with::<Reconcile>()
        .with::<LookAtTrial>()
        .with::<RollUpUsage>()
        .with::<MeasureUsage>()
        .with::<WarnApiCalls>()
        .with::<BackUp>()
        .with::<EraseOrganization>()
        .with::<ChangeModule>()
        .with::<RemoveObjects>()
        .with::<MakeThumbnail>()
        .with::<CollectFiles>()
        .with::<CollectStrays>()
        .with::<RunImports>()
        .with::<RunExport>()
        .with::<TrimExchange>()
}

/// What members are told of events: the platform's rules and each module's.
const NOTICE_RULES: &[Rule] = &[notifications::rules::notices, work::notices::notices];

/// What can be searched, by module.
const SEARCHES: &[Source] =
    &[work::search::PROJECTS, work::search::TASKS, work::search::COMMENTS, work::search::MESSAGES];

/// What can be imported and exported.
const EXCHANGES: &[exchange::Kind] = &[work::exchange::PROJECTS, work::exchange::TASKS];

/// What modules have of that which plans limit, as expressions that count it in an organization's schema.
const COUNTS: &[(Resource, &str)] = &[(Resource::Projects, work::projects::COUNT)];

/// What each module knows of an organization in figures.
const MODULE_FIGURES: &[ModuleFigures] = &[ModuleFigures { module: "work", read: work::figures::figures }];

/// Everything that is done by the clock, in UTC.
const SCHEDULES: &[Schedule] = &[
    Schedule {
        name: "usage-roll-up",
        cron: "0 0 * * *",
        about: "Measure the day that ended, sum its hours, remove usage that has had its time",
        run: |app| Box::pin(async move { usage::begin_roll_up(&app).await }),
    },
    Schedule {
        name: "trial-expirations",
        cron: "0 9 * * *",
        about: "Remind of trials that end soon, and end those that are over",
        run: |app| Box::pin(async move { billing::look_at_trials(&app).await }),
    },
    Schedule {
        name: "stripe-reconciliation",
        cron: "15 * * * *",
        about: "Compare subscriptions with Stripe, and repair what differs",
        run: |app| Box::pin(async move { begin_reconciliation(&app).await }),
    },
    Schedule {
        name: "expired-sessions",
        cron: "0 2 * * *",
        about: "Remove sessions, tokens and security events that have had their time",
        run: |app| Box::pin(async move { sweep(&app, EXPIRED_SESSIONS).await }),
    },
    Schedule {
        name: "sweep",
        cron: "30 * * * *",
        about: "Remove dead jobs, idempotency keys and half-done logins that have had their time",
        run: |app| Box::pin(async move { sweep(&app, SWEEPS).await }),
    },
    Schedule {
        name: "trim-logs",
        cron: "0 3 * * *",
        about: "Remove events, deliveries and notifications that have had their time",
        run: |app| Box::pin(async move { events::begin_trimming(&app).await }),
    },
    Schedule {
        name: "collect-files",
        cron: "30 2 * * *",
        about: "Remove files that nothing names, and objects that no file tells of",
        run: |app| Box::pin(async move { files::begin_collecting(&app).await }),
    },
    Schedule {
        name: "trim-exchange",
        cron: "40 3 * * *",
        about: "Forget imports and exports of more than 90 days ago",
        run: |app| Box::pin(async move { exchange::begin_trimming(&app).await }),
    },
    Schedule {
        name: "tenant-backups",
        cron: "0 1 * * *",
        about: "Write an archive of each organization, where there is a folder for them",
        run: |app| Box::pin(async move { fleet::backups::begin(&app).await }),
    },
    Schedule {
        name: "erase-organizations",
        cron: "30 4 * * *",
        about: "Erase organizations that were deleted 30 days ago",
        run: |app| Box::pin(async move { fleet::erase::begin(&app).await }),
    },
    Schedule {
        name: "notification-digest",
        cron: "0 * * * *",
        about: "Mail digests of notifications to members who have their morning",
        run: |app| Box::pin(async move { notifications::collect_digests(&app).await }),
    },
    Schedule {
        name: "weekly-reports",
        cron: "0 8 * * 1",
        about: "Report the week to owners and admins of each organization",
        run: |app| Box::pin(async move { notifications::begin_weekly_reports(&app).await }),
    },
];

/// The parts that requests, jobs and commands share.
pub struct App {
    pub config: Config,
    pub clock: Clock,
    pub db: Db,
    pub directory: Directory,
    pub sealer: Sealer,
    pub keys: KeyRing,
    pub known: Known,
    pub crowd: Crowd,
    pub passwords: Passwords,
    pub limits: Limits,
    pub mailer: Mailer,
    pub activity: Activity,
    pub outbound: Outbound,
    pub files: Store,
    pub channels: Channels,
    pub hub: Hub,
    pub meter: Meter,
    pub figure_cache: FigureCache,
    /// `None` where nobody can pay.
    pub stripe: Option<Stripe>,
    stop: watch::Sender<bool>,
}

/// What of the service runs in a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Requests and jobs.
    All,
    /// Requests only; jobs are done by workers elsewhere.
    Web,
    /// Jobs only.
    Worker,
}

impl App {
    /// Prepares everything; connects to nothing yet.
    pub fn new(config: Config, clock: Clock) -> anyhow::Result<Arc<Self>> {
        observability::install();
        // For clients that do not name their own; the second time it is there already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (db, door) = Db::new(&config.database)?;
        let sealer = Sealer::new(&config.auth.secret_key_bytes()?);
        Ok(Arc::new(Self {
            directory: Directory::new(db.clone(), door, sealer.clone()),
            keys: KeyRing::new(db.clone(), sealer.clone(), &config.auth),
            known: Known::default(),
            crowd: Crowd::default(),
            passwords: Passwords::new(config.auth.password_hashes),
            limits: Limits::new(config.redis.url.as_ref(), clock.clone())?,
            mailer: Mailer::new(&config.mail)?,
            activity: Activity::default(),
            outbound: Outbound::new(config.tenancy.dns_server, config.webhooks.allow_loopback)?,
            files: Store::new(&config.files)?,
            channels: Channels::new(&config.notifications)?,
            hub: Hub::default(),
            meter: Meter::default(),
            figure_cache: FigureCache::default(),
            stripe: Stripe::new(&config.stripe)?,
            stop: watch::Sender::new(false),
            sealer,
            db,
            clock,
            config,
        }))
    }

    pub fn schedules(&self) -> &'static [Schedule] {
        SCHEDULES
    }

    pub fn notice_rules(&self) -> &'static [Rule] {
        NOTICE_RULES
    }

    pub fn searches(&self) -> &'static [Source] {
        SEARCHES
    }

    /// What modules import and export.
    pub fn exchanges(&self) -> &'static [exchange::Kind] {
        EXCHANGES
    }

    /// How a module counts what plans limit; `None` where none does.
    pub fn count_of(&self, resource: Resource) -> Option<&'static str> {
        COUNTS.iter().find(|(counted, _)| *counted == resource).map(|(_, count)| *count)
    }

    pub fn module_figures(&self) -> &'static [ModuleFigures] {
        MODULE_FIGURES
    }

    /// Starts what runs beside the requests; it ends when the result is dropped, or, in good order,
    /// by [`Background::stop`].
    pub async fn start(self: &Arc<Self>, part: Part) -> anyhow::Result<Background> {
        self.keys.load(self.clock.now()).await?;
        let (mut finishing, mut others) = (JoinSet::new(), JoinSet::new());
        keep(&mut others, self, "directory", |app| async move { app.directory.listen().await });
        keep(&mut finishing, self, "activity", keep_activity);
        if part != Part::Worker {
            keep(&mut finishing, self, "usage", usage::keep);
            keep(&mut others, self, "realtime", realtime::keep);
        }
        if part != Part::Web {
            let kinds = Arc::new(kinds());
            keep(&mut finishing, self, "jobs", move |app| jobs::work(app, kinds.clone()));
            keep(&mut others, self, "schedules", schedules::keep);
            keep(&mut finishing, self, "events", events::dispatch);
            keep(&mut others, self, "stock of schemas", fleet::keep_stock);
            keep(&mut others, self, "commits on two servers", fleet::keep_settled);
            keep(&mut others, self, "fleet gauges", fleet::keep_gauges);
            keep(&mut others, self, "audit seals", audit::keep_sealing);
        }
        Ok(Background { app: self.clone(), finishing, others })
    }

    /// Asks everything that runs or streams to come to its end.
    pub fn request_stop(&self) {
        self.stop.send_replace(true);
    }

    /// Tells of the wish to stop.
    pub fn stopping(&self) -> Stopping {
        Stopping(self.stop.subscribe())
    }
}

/// Ready once the service is asked to stop.
#[derive(Clone)]
pub struct Stopping(watch::Receiver<bool>);

impl Stopping {
    pub async fn requested(&mut self) {
        if self.0.wait_for(|stop| *stop).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Waits for so long, or until the service is asked to stop, and says whether it was.
    pub async fn requested_within(&mut self, wait: Duration) -> bool {
        tokio::time::timeout(wait, self.requested()).await.is_ok()
    }
}

/// What runs beside the requests.
pub struct Background {
    app: Arc<App>,
    /// What has something to bring to an end when the service stops.
    finishing: JoinSet<()>,
    /// What has not.
    others: JoinSet<()>,
}

impl Background {
    /// Runs until it is dropped.
    pub async fn forever(self) {
        tokio::join!(self.finishing.join_all(), self.others.join_all());
    }

    /// Lets what is under way finish, within bounds, and ends the rest.
    pub async fn stop(mut self) {
        self.app.request_stop();
        let finished = async { while self.finishing.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(Duration::from_secs(15), finished).await;
        // What requests counted that were still under way when the stop was asked for.
        let _ = tokio::time::timeout(Duration::from_secs(5), usage::flush(&self.app)).await;
    }
}

/// Runs something until the service stops; begins it again should it panic.
fn keep<F, Fut>(tasks: &mut JoinSet<()>, app: &Arc<App>, what: &'static str, work: F)
where
    F: Fn(Arc<App>) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send,
{
    let app = app.clone();
    tasks.spawn(async move {
        while AssertUnwindSafe(work(app.clone())).catch_unwind().await.is_err() {
            tracing::error!(what, "something in the background panicked; it begins again");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
}

async fn keep_activity(app: Arc<App>) {
    let mut stopping = app.stopping();
    loop {
        let stop = stopping.requested_within(activity::EVERY).await;
        if let Err(error) = app.activity.flush(&app).await {
            tracing::warn!(%error, "when sessions and keys were used could not be written");
        }
        if stop {
            return;
        }
    }
}

/// A table, when its rows have had their time, and how many days after that they are removed.
type Sweep = (&'static str, &'static str, i64);

const EXPIRED_SESSIONS: &[Sweep] = &[
    ("platform.refresh_tokens", "expires_at", 0),
    ("platform.sessions", "expires_at", 30),
    ("platform.security_events", "occurred_at", 400),
];

const SWEEPS: &[Sweep] = &[
    ("platform.jobs", "failed_at", 30),
    ("platform.idempotency_keys", "claimed_at", 1),
    ("platform.email_tokens", "expires_at", 7),
    ("platform.login_challenges", "expires_at", 0),
    ("platform.login_failures", "updated_at", 1),
    ("platform.realtime_tickets", "expires_at", 0),
    ("platform.usage_batches", "written_at", 1),
    ("platform.stripe_events", "handled_at", 90),
    ("platform.reconciliations", "started_at", 90),
    ("platform.migration_runs", "started_at", 90),
    ("platform.decisions", "decided_at", 30),
    ("platform.fleet_operations", "finished_at", 400),
];

/// Rows that are removed in one transaction at most.
const SWEPT_AT_ONCE: i64 = 5_000;

async fn sweep(app: &App, sweeps: &[Sweep]) -> anyhow::Result<()> {
    for (table, column, days) in sweeps {
        let before = app.clock.now() - chrono::TimeDelta::days(*days);
        let sql = format!(
            "delete from {table} where ctid = any (array(select ctid from {table} where {column} < $1 limit $2))"
        );
        loop {
            let tx = app.db.begin().await?;
            let removed = tx.execute(&sql, &[&before, &SWEPT_AT_ONCE]).await?;
            tx.commit().await?;
            if removed < SWEPT_AT_ONCE as u64 {
                break;
            }
        }
    }
    Ok(())
}
