//! Jobs: work that is done after a commit, at least once.
//!
//! A job is put into `platform.jobs` in the transaction of the change that it follows, and a worker
//! removes it when it is done ([`worker`]). What fails is tried again, later each time, and then kept
//! with its error until staff retry or discard it ([`admin`]). What is due by the clock is put there
//! by [`schedules`].
//!
//! A kind of job is a type that is [`Work`]. Its payload is sealed: it may hold tokens that are
//! stored nowhere else.

pub mod admin;
pub mod schedules;
mod worker;

use std::{collections::HashMap, future::Future, sync::Arc, time::Duration};

use anyhow::Context as _;
use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::BoxFuture;
use serde::{Serialize, de::DeserializeOwned};
use uuid::Uuid;

pub use worker::work;

use crate::{
    app::App,
    auth::sealing::random,
    db::{JOBS, Tx},
    error::{Error, Result},
    tenancy::{Tenant, fleet},
};

/// Something to be done after a commit. It may be done more than once: a worker can die after the
/// work and before it says so.
pub trait Work: Serialize + DeserializeOwned + Send + 'static {
    /// Its name in the table and in metrics.
    const KIND: &'static str;
    const POLICY: Policy = Policy::DEFAULT;

    fn run(self, job: &Running) -> impl Future<Output = anyhow::Result<()>> + Send;
}

/// How a kind of job is done.
#[derive(Clone, Copy)]
pub struct Policy {
    /// How often it is tried in all.
    pub attempts: i32,
    /// The wait after a failed attempt; half as much again at random is added to it.
    pub wait: fn(attempt: i32) -> Duration,
    /// How long one attempt may take.
    pub limit: Duration,
    /// How many are done at the same time by one worker...
    pub slots: usize,
    /// ... and how many of those for one lane.
    pub per_lane: usize,
    /// ... and for one organization, where its lanes are smaller than it.
    pub per_organization: usize,
    /// One of a lane at a time over all workers. Its jobs need a unique key for each lane.
    pub exclusive: bool,
}

impl Policy {
    /// Once and three times more, after 10, 40 and 160 s.
    pub const DEFAULT: Self = Self {
        attempts: 4,
        wait: |attempt| Duration::from_secs(10 * 4_u64.pow(attempt.clamp(1, 6) as u32 - 1)),
        limit: Duration::from_secs(300),
        slots: 64,
        per_lane: 32,
        per_organization: 32,
        exclusive: false,
    };
}

/// A job that is being done.
pub struct Running {
    pub app: Arc<App>,
    pub id: Uuid,
    /// 1 at first.
    pub attempt: i32,
    organization: Option<Uuid>,
}

impl Running {
    /// The organization that the job belongs to; `None` if it is gone for good.
    pub async fn tenant(&self) -> Result<Option<Tenant>> {
        let id = self.organization.ok_or_else(|| Error::internal("a job without its organization"))?;
        fleet::tenant_by_id(&self.app.directory, id).await
    }
}

/// When and among whom a job is done.
#[derive(Default)]
pub struct Terms {
    /// At once where it is absent.
    pub at: Option<DateTime<Utc>>,
    /// Where one of this kind, organization and key waits already, that one stays, at the earlier time of both.
    pub unique: Option<String>,
    /// The organization where it is absent.
    pub lane: Option<Uuid>,
    /// Whose job it is; that of the transaction where it is absent.
    pub organization: Option<Uuid>,
}

/// The key of a job of which one is enough for an organization.
pub const ONE: &str = "one";

/// Adds a job that starts after this transaction's commit.
pub async fn enqueue<W: Work>(tx: &Tx, app: &App, work: &W) -> Result<()> {
    enqueue_on(tx, app, work, Terms::default()).await
}

/// The same on other terms.
pub async fn enqueue_on<W: Work>(tx: &Tx, app: &App, work: &W, terms: Terms) -> Result<()> {
    let (id, now) = (Uuid::now_v7(), app.clock.now());
    let plain = serde_json::to_vec(work).map_err(Error::internal)?;
    let sealed = app.sealer.seal(&purpose(id), &plain)?;
    let organization = terms.organization.or(tx.organization_id());
    let lane = terms.lane.or(organization).unwrap_or_default();
    // What is to be done at once is ready whatever the clocks of two machines say.
    let state = if terms.at.is_none_or(|at| at <= now) { "ready" } else { "waiting" };
    let run_at = terms.at.unwrap_or(now);
    let unique = terms.unique.map(|key| unique_key(organization, &key));
    let sql = match unique {
        None => INSERT,
        Some(_) => INSERT_UNIQUE,
    };
    tx.execute(sql, &[&id, &W::KIND, &organization, &lane, &unique, &sealed, &state, &run_at, &now]).await?;
    if state == "ready" {
        tx.announce(JOBS);
    }
    Ok(())
}

/// The key of [`Terms::unique`] as it is kept. It carries the organization: a copy of one has things with the same
/// ids, and neither is to wait for the other's job.
pub fn unique_key(organization: Option<Uuid>, key: &str) -> String {
    match organization {
        Some(organization) => format!("{organization} {key}"),
        None => key.into(),
    }
}

const INSERT: &str = "insert into platform.jobs (id, kind, organization_id, lane, unique_key, sealed_payload, state, \
     run_at, created_at) values ($1, $2, $3, $4, $5, $6, $7, $8, $9)";

const INSERT_UNIQUE: &str = "insert into platform.jobs as known (id, kind, organization_id, lane, unique_key, \
     sealed_payload, state, run_at, created_at) values ($1, $2, $3, $4, $5, $6, $7, $8, $9) \
     on conflict (kind, unique_key) where unique_key is not null and state in ('waiting', 'ready') \
     do update set run_at = least(known.run_at, excluded.run_at), \
     state = case when excluded.state = 'ready' then 'ready' else known.state end \
     where known.state = 'waiting'";

/// How many organizations are given a job in one transaction.
const PAGE: i64 = 500;

/// Enqueues a job in every organization that is open; with `zones`, in those that have a member in one
/// of them. Where one like it waits already, that one will do.
pub async fn enqueue_everywhere<W: Work + Sync>(app: &App, zones: Option<&[&str]>, work: &W) -> Result<()> {
    let mut after = Uuid::nil();
    loop {
        let tx = app.db.begin().await?;
        let rows = tx
            .query(
                "select o.id from platform.organizations o \
                 where o.id > $1 and o.deleted_at is null and o.status = 'active' and ($2::text[] is null or exists ( \
                   select 1 from platform.organization_members m join platform.users u on u.id = m.user_id \
                   where m.organization_id = o.id and m.is_active and u.is_active and u.timezone = any ($2))) \
                 order by o.id limit $3",
                &[&after, &zones, &PAGE],
            )
            .await?;
        for row in &rows {
            after = row.try_get("id")?;
            let unique = Some(ONE.into());
            let terms = Terms { unique, lane: Some(after), organization: Some(after), at: None };
            enqueue_on(&tx, app, work, terms).await?;
        }
        tx.commit().await?;
        if rows.len() < PAGE as usize {
            return Ok(());
        }
    }
}

fn purpose(id: Uuid) -> String {
    format!("job {id}")
}

type Runner = Box<dyn Fn(Running, Vec<u8>) -> BoxFuture<'static, anyhow::Result<()>> + Send + Sync>;

/// The kinds of jobs that workers do.
#[derive(Default)]
pub struct Kinds(HashMap<&'static str, Kind>);

struct Kind {
    policy: Policy,
    run: Runner,
}

impl Kinds {
    /// Adds a kind.
    pub fn with<W: Work>(mut self) -> Self {
        let run: Runner = Box::new(|job, plain| {
            Box::pin(async move {
                let work: W =
                    serde_json::from_slice(&plain).context("this version cannot read the payload")?;
                work.run(&job).await
            })
        });
        let known = self.0.insert(W::KIND, Kind { policy: W::POLICY, run });
        debug_assert!(known.is_none(), "two kinds of job are called {}", W::KIND);
        self
    }
}

/// A wait and at random up to this share of it more, so that what failed together does not come back
/// together.
pub fn with_jitter(wait: Duration, most: f64) -> TimeDelta {
    let share = random::<2>().map_or(0, u16::from_le_bytes);
    let wait = wait.mul_f64(1.0 + most * f64::from(share) / f64::from(u16::MAX));
    TimeDelta::from_std(wait).unwrap_or(TimeDelta::MAX)
}
