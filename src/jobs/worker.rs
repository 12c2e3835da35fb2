//! The worker: claims jobs, does them side by side, and settles what became of them.
//!
//! *Fair.* Jobs of a kind are taken from one lane after the other, going round, so that a lane with
//! ten thousand waiting gets its turn and no more; and one lane never holds more than its share of
//! the slots. The lanes are found by walking an index from one to the next: what a claim costs
//! depends on how many lanes it takes from, not on how many jobs wait.
//!
//! *Safe.* A claimed job carries its worker. A worker says every few seconds that it lives, by the
//! database's clock; when one has not for a while, its jobs go back to the others. Whoever comes to
//! settle a job that is not theirs any more finds nothing to settle.
//!
//! *Cheap.* Claims and settlements are made for many jobs in one statement. An idle worker waits for
//! word, and looks once a second for what came due or got lost.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use futures_util::FutureExt;
use tokio::{sync::mpsc, task::JoinSet};
use uuid::Uuid;

use super::{Kind, Kinds, Policy, Running, purpose, with_jitter};
use crate::{
    app::App,
    db::{Heard, JOBS},
    error::Result,
};

const LOOK_EVERY: Duration = Duration::from_secs(1);
const SAY_ALIVE_EVERY: Duration = Duration::from_secs(3);
const COUNT_EVERY: Duration = Duration::from_secs(15);
/// A worker that has not been seen for so long is dead.
const DEAD_AFTER_SECONDS: f64 = 15.0;
/// When the service stops, jobs under way may take so long to finish.
const FINISH_WITHIN: Duration = Duration::from_secs(10);
/// Jobs settled in one transaction at most.
const SETTLED_AT_ONCE: usize = 256;

/// Does jobs until the service stops; then finishes those under way and gives back the rest.
pub async fn work(app: Arc<App>, kinds: Arc<Kinds>) {
    let (finished, settle) = mpsc::channel(4 * SETTLED_AT_ONCE);
    let id = Uuid::now_v7();
    let (pulse, held) = (Pulse::default(), Held::default());
    let worker = Worker { id, app: app.clone(), finished, kinds: kinds.clone(), pulse: &pulse, held: &held };
    tokio::select! {
        ((), ()) = async { tokio::join!(worker.run(), settle_all(&app, id, &held, settle)) } => {}
        () = pulse.beat(&app, id) => {}
        () = keep_counting(&app, &kinds) => {}
    }
    if let Err(error) = leave(&app, id).await {
        tracing::warn!(%error, "unfinished jobs could not be given back; they are taken over in a while");
    }
}

/// The kind, lane and organization of a job that came to its end.
type Done = (&'static str, Uuid, Option<Uuid>);

/// What one kind is doing.
#[derive(Default)]
struct Hands {
    /// Jobs under way, by lane and by organization.
    busy: HashMap<Uuid, usize>,
    organizations: HashMap<Uuid, usize>,
    /// The lane that was served last.
    last: Uuid,
    /// How many lanes the last round met.
    lanes: usize,
}

impl Hands {
    fn count(&self) -> usize {
        self.busy.values().sum()
    }

    fn begins(&mut self, lane: Uuid, organization: Option<Uuid>) {
        *self.busy.entry(lane).or_default() += 1;
        *self.organizations.entry(organization.unwrap_or_default()).or_default() += 1;
    }

    fn ends(&mut self, lane: Uuid, organization: Option<Uuid>) {
        for (counts, key) in
            [(&mut self.busy, lane), (&mut self.organizations, organization.unwrap_or_default())]
        {
            if let Some(count) = counts.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(&key);
                }
            }
        }
    }
}

struct Worker<'a> {
    id: Uuid,
    app: Arc<App>,
    kinds: Arc<Kinds>,
    finished: mpsc::Sender<Finished>,
    pulse: &'a Pulse,
    held: &'a Held,
}

/// The jobs that a worker has claimed and not settled.
#[derive(Default)]
struct Held(Mutex<HashSet<Uuid>>);

impl Held {
    fn ids(&self) -> MutexGuard<'_, HashSet<Uuid>> {
        self.0.lock().expect("nothing panics with the lock held")
    }

    /// After a claim whose answer was lost: gives back what was claimed without anybody knowing.
    async fn give_back_the_rest(&self, app: &App, worker: Uuid) -> Result<()> {
        let known: Vec<Uuid> = self.ids().iter().copied().collect();
        give_back(app, worker, &known).await
    }
}

/// How a worker says that it lives, beside its claims and jobs.
#[derive(Default)]
struct Pulse(Mutex<Option<Lived>>);

/// A time without a gap in which a worker said that it lives.
#[derive(Clone, Copy)]
struct Lived {
    from: Instant,
    to: Instant,
}

impl Pulse {
    /// Whether others know that this worker lives. Without that, what it claims would be taken for a
    /// dead one's.
    fn is_known(&self) -> bool {
        self.0
            .lock()
            .expect("nothing panics with the lock held")
            .is_some_and(|lived| lived.to.elapsed().as_secs_f64() < DEAD_AFTER_SECONDS / 2.0)
    }

    /// Says so every few seconds, and takes over what dead workers left.
    async fn beat(&self, app: &App, worker: Uuid) {
        loop {
            let asked = Instant::now();
            match say_alive(app, worker).await {
                Ok(()) => {
                    let mut lived = self.0.lock().expect("nothing panics with the lock held");
                    let unbroken =
                        lived.filter(|lived| (asked - lived.to).as_secs_f64() < DEAD_AFTER_SECONDS / 2.0);
                    *lived = Some(Lived { from: unbroken.map_or(asked, |lived| lived.from), to: asked });
                }
                Err(error) => tracing::warn!(%error, "the worker could not say that it lives"),
            }
            // After a time without the database everybody looks dead until they have said a word: only
            // who was there all the time, and was answered at once, can tell.
            let lived = *self.0.lock().expect("nothing panics with the lock held");
            let can_tell = lived.is_some_and(|lived| {
                lived.to == asked
                    && (lived.to - lived.from).as_secs_f64() > DEAD_AFTER_SECONDS
                    && asked.elapsed() < SAY_ALIVE_EVERY
            });
            if can_tell && let Err(error) = rescue(app).await {
                tracing::warn!(%error, "jobs of dead workers could not be taken over");
            }
            tokio::time::sleep(SAY_ALIVE_EVERY).await;
        }
    }
}

/// Says that a worker lives.
async fn say_alive(app: &App, worker: Uuid) -> Result<()> {
    let tx = app.db.begin().await?;
    tx.execute(
        "insert into platform.workers (id, seen_at) values ($1, now()) \
         on conflict (id) do update set seen_at = excluded.seen_at",
        &[&worker],
    )
    .await?;
    tx.commit().await
}

/// Gives what dead workers left to the others. A job that was left once before waits a little, each
/// for a time of its own: the one that ends its workers is then alone.
async fn rescue(app: &App) -> Result<()> {
    let tx = app.db.begin().await?;
    let rescued = tx
        .execute(
            "with gone as (select j.id from platform.jobs j where j.state = 'running' and not exists ( \
               select 1 from platform.workers w where w.id = j.worker_id \
               and w.seen_at > now() - $1 * interval '1 second') order by j.id limit 1000 for update skip locked), \
             ranked as (select j.id, j.kind, j.unique_key, row_number() over ( \
               partition by j.kind, coalesce(j.unique_key, j.id::text) order by j.id) as place \
               from platform.jobs j join gone on gone.id = j.id), \
             extra as (delete from platform.jobs j using ranked r where j.id = r.id and (r.place > 1 or exists ( \
               select 1 from platform.jobs o where o.kind = r.kind and o.unique_key = r.unique_key \
               and o.state in ('waiting', 'ready'))) returning j.id) \
             update platform.jobs j set worker_id = null, last_error = 'its worker died', \
             state = case when j.attempts > 1 then 'waiting' else 'ready' end, \
             run_at = case when j.attempts > 1 then $2::timestamptz + least(j.attempts, 3) * random() * interval '10 seconds' \
               else j.run_at end \
             from gone where j.id = gone.id and gone.id not in (select id from extra)",
            &[&DEAD_AFTER_SECONDS, &app.clock.now()],
        )
        .await?;
    tx.execute("delete from platform.workers where seen_at < now() - interval '1 hour'", &[]).await?;
    if rescued > 0 {
        tx.announce(JOBS);
    }
    tx.commit().await?;
    if rescued > 0 {
        tracing::warn!(rescued, "jobs of a worker that died were taken over");
    }
    Ok(())
}

/// A job that was claimed.
struct Claimed {
    id: Uuid,
    lane: Uuid,
    organization: Option<Uuid>,
    attempt: i32,
    sealed: Vec<u8>,
}

/// A job that was done, or tried.
struct Finished {
    id: Uuid,
    kind: &'static str,
    policy: Policy,
    attempt: i32,
    outcome: anyhow::Result<()>,
}

impl Worker<'_> {
    async fn run(self) {
        let mut stopping = self.app.stopping();
        let mut heard = self.app.db.listen();
        let mut hands: HashMap<&'static str, Hands> = HashMap::new();
        let mut under_way: JoinSet<Done> = JoinSet::new();
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // A claim may have been committed and its answer lost.
        let mut doubt = false;
        // Kinds that may have more than was taken.
        let mut more: BTreeSet<&'static str> = BTreeSet::new();
        loop {
            let mut changed = false;
            tokio::select! {
                () = stopping.requested() => break,
                _ = look.tick() => {
                    changed = true;
                }
                heard = heard.next() => {
                    changed = match heard {
                        Heard::Notice { channel, .. } => channel == JOBS,
                        Heard::Connected => true,
                        Heard::Lost => false,
                    };
                }
                Some(done) = under_way.join_next() => {
                    // Those that finish in the same moment make room for one claim.
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    let mut done = Some(done);
                    while let Some(one) = done {
                        if let Ok((kind, lane, organization)) = one {
                            hands.entry(kind).or_default().ends(lane, organization);
                        }
                        done = under_way.try_join_next();
                    }
                }
            }
            if !self.pulse.is_known() {
                continue;
            }
            if changed {
                match self.ready().await {
                    Ok(ready) => more.extend(ready),
                    Err(error) => tracing::warn!(%error, "jobs could not be looked for; trying again"),
                }
            }
            if doubt {
                match self.held.give_back_the_rest(&self.app, self.id).await {
                    Ok(()) => doubt = false,
                    Err(_) => continue,
                }
            }
            for name in more.clone() {
                let Some(kind) = self.kinds.0.get(name) else { continue };
                let hands = hands.entry(name).or_default();
                match self.claim(name, kind, hands, &mut under_way).await {
                    Ok(true) => {}
                    Ok(false) => {
                        more.remove(name);
                    }
                    Err(error) => {
                        doubt = true;
                        tracing::warn!(%error, kind = name, "jobs could not be claimed; trying again");
                    }
                }
            }
        }
        let finishing = async { while under_way.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(FINISH_WITHIN, finishing).await;
    }

    /// The kinds that have something ready, after whatever came due was made so.
    async fn ready(&self) -> Result<Vec<&'static str>> {
        let now = self.app.clock.now();
        let tx = self.app.db.begin().await?;
        tx.execute(
            "update platform.jobs set state = 'ready' where id in ( \
               select id from platform.jobs where state = 'waiting' and run_at <= $1 \
               order by run_at limit 1000 for update skip locked)",
            &[&now],
        )
        .await?;
        let rows = tx
            .query(
                "with recursive kinds as ( \
                   (select kind from platform.jobs where state = 'ready' order by kind limit 1) \
                   union all \
                   select (select j.kind from platform.jobs j where j.state = 'ready' and j.kind > kinds.kind \
                     order by j.kind limit 1) from kinds where kinds.kind is not null) \
                 select kind from kinds where kind is not null",
                &[],
            )
            .await?;
        tx.commit().await?;
        let mut known = Vec::new();
        for row in &rows {
            let kind: &str = row.try_get("kind")?;
            // What only another version of the service knows is left to it.
            known.extend(self.kinds.0.get_key_value(kind).map(|(name, _)| *name));
        }
        Ok(known)
    }

    /// Takes what there is room for, and begins it. Says whether there may be more.
    async fn claim(
        &self,
        name: &'static str,
        kind: &Kind,
        hands: &mut Hands,
        under_way: &mut JoinSet<Done>,
    ) -> Result<bool> {
        loop {
            let room = kind.policy.slots.saturating_sub(hands.count());
            if room == 0 {
                return Ok(true);
            }
            let from_the_first = hands.last.is_nil();
            let (taken, kept_from) = self.claim_round(name, kind.policy, room, hands, under_way).await?;
            if taken == 0 && from_the_first {
                // Lanes that have their share may have more: looked at when one of theirs is done.
                return Ok(kept_from > 0);
            }
        }
    }

    /// One round over the lanes from the last one on. Says how many were taken, and from how many
    /// lanes none could be, as they have their share already.
    async fn claim_round(
        &self,
        name: &'static str,
        policy: Policy,
        room: usize,
        hands: &mut Hands,
        under_way: &mut JoinSet<Done>,
    ) -> Result<(usize, usize)> {
        // Where few lanes wait, each may fill more of the room.
        let each = (room / hands.lanes.max(1)).clamp(1, policy.per_lane.div_ceil(2));
        let full: Vec<Uuid> = hands
            .busy
            .iter()
            .filter(|(_, busy)| **busy + each > policy.per_lane)
            .map(|(lane, _)| *lane)
            .collect();
        // Where lanes are smaller than organizations, none of these gets more than its share either.
        let shared = policy.per_lane < policy.per_organization;
        let named = hands.organizations.iter().filter(|(id, _)| shared && !id.is_nil());
        let (crowded, others): (Vec<_>, Vec<_>) =
            named.partition(|(_, busy)| **busy >= policy.per_organization);
        let crowded: Vec<Uuid> = crowded.into_iter().map(|(id, _)| *id).collect();
        let most = others.into_iter().map(|(_, busy)| *busy).max().unwrap_or_default();
        let room = if shared { room.min(policy.per_organization - most) } else { room };
        let tx = self.app.db.begin().await?;
        let rows = tx
            .query(
                CLAIM,
                &[
                    &name,
                    &hands.last,
                    &full,
                    &(room as i64),
                    &(each as i64),
                    &self.id,
                    &policy.exclusive,
                    &crowded,
                ],
            )
            .await?;
        tx.commit().await?;
        let mut claimed = Vec::new();
        for row in &rows {
            claimed.push(Claimed {
                id: row.try_get("id")?,
                lane: row.try_get("lane")?,
                organization: row.try_get("organization_id")?,
                attempt: row.try_get("attempts")?,
                sealed: row.try_get("sealed_payload")?,
            });
        }
        let lanes: BTreeSet<Uuid> = claimed.iter().map(|job| job.lane).collect();
        hands.lanes = lanes.len();
        hands.last = match lanes.last() {
            Some(last) if claimed.len() == room => *last,
            _ => Uuid::nil(),
        };
        let taken = claimed.len();
        for job in claimed {
            hands.begins(job.lane, job.organization);
            self.held.ids().insert(job.id);
            self.begin(name, policy, job, under_way);
        }
        Ok((taken, full.len() + crowded.len()))
    }

    fn begin(&self, name: &'static str, policy: Policy, job: Claimed, under_way: &mut JoinSet<Done>) {
        let (app, kinds, finished) = (self.app.clone(), self.kinds.clone(), self.finished.clone());
        under_way.spawn(async move {
            let Claimed { id, lane, organization, attempt, sealed } = job;
            let started = Instant::now();
            let outcome = if attempt > policy.attempts {
                // It ended its worker each time.
                Err(anyhow::anyhow!("its worker died at it, {} times", policy.attempts))
            } else {
                let work = async {
                    let plain = app.sealer.open(&purpose(id), &sealed)?;
                    let job = Running { app: app.clone(), id, attempt, organization };
                    (kinds.0[name].run)(job, plain).await
                };
                let guarded = AssertUnwindSafe(tokio::time::timeout(policy.limit, work)).catch_unwind();
                match guarded.await {
                    Ok(Ok(outcome)) => outcome,
                    Ok(Err(_)) => Err(anyhow::anyhow!("took longer than {} s", policy.limit.as_secs())),
                    Err(_) => Err(anyhow::anyhow!("panicked")),
                }
            };
            metrics::histogram!("rowhouse_job_seconds", "kind" => name).record(started.elapsed());
            let result = if outcome.is_ok() { "done" } else { "failed" };
            metrics::counter!("rowhouse_jobs_total", "kind" => name, "result" => result).increment(1);
            let done = Finished { id, kind: name, policy, attempt, outcome };
            // The receiver is there for as long as the worker.
            let _ = finished.send(done).await;
            (name, lane, organization)
        });
    }
}

/// Walks the lanes that wait, from the one after the last, and takes some of each.
///
/// Of an exclusive kind it skips lanes of which one is running. Two workers cannot both begin one:
/// with a unique key a second job of a lane is only written once the first one is seen to run.
const CLAIM: &str = "with recursive lanes as ( \
       (select lane from platform.jobs where kind = $1 and state = 'ready' and lane >= $2 \
         and ($2 = '00000000-0000-0000-0000-000000000000' or lane > $2) order by lane limit 1) \
       union all \
       select (select j.lane from platform.jobs j where j.kind = $1 and j.state = 'ready' and j.lane > lanes.lane \
         order by j.lane limit 1) from lanes where lanes.lane is not null), \
     turns as (select lane from lanes where lane is not null and lane <> all ($3) and not ($7 and exists ( \
       select 1 from platform.jobs b where b.kind = $1 and b.lane = lanes.lane and b.state = 'running')) and ($8::uuid[] = '{}' or not exists ( \
       select 1 from platform.jobs f where f.kind = $1 and f.lane = lanes.lane and f.state = 'ready' \
       and f.organization_id = any ($8))) limit $4), \
     picked as (select ready.id from turns cross join lateral ( \
       select id from platform.jobs where kind = $1 and state = 'ready' and lane = turns.lane \
       order by run_at, id limit $5 for update skip locked) as ready limit $4) \
     update platform.jobs set state = 'running', worker_id = $6, attempts = attempts + 1 \
     where id = any (array(select id from picked)) returning id, lane, organization_id, attempts, sealed_payload";

/// Writes down what became of jobs, many at a time.
async fn settle_all(app: &App, worker: Uuid, held: &Held, mut finished: mpsc::Receiver<Finished>) {
    let mut batch = Vec::new();
    while finished.recv_many(&mut batch, SETTLED_AT_ONCE).await > 0 {
        // What cannot be written now stays claimed; should this worker end before it is, another
        // one does the jobs once more.
        while let Err(error) = settle(app, worker, &batch).await {
            tracing::warn!(%error, "what became of jobs could not be written; trying again");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        let mut held = held.ids();
        for job in batch.drain(..) {
            held.remove(&job.id);
        }
    }
}

async fn settle(app: &App, worker: Uuid, batch: &[Finished]) -> Result<()> {
    let done: Vec<Uuid> = batch.iter().filter(|job| job.outcome.is_ok()).map(|job| job.id).collect();
    let tx = app.db.begin().await?;
    if !done.is_empty() {
        tx.execute(
            "delete from platform.jobs where id = any ($1) and state = 'running' and worker_id = $2",
            &[&done, &worker],
        )
        .await?;
    }
    if batch.iter().any(|job| job.policy.exclusive) {
        // Whatever waits in their lanes could not be begun before.
        tx.announce(JOBS);
    }
    for job in batch {
        let Err(error) = &job.outcome else { continue };
        let told: String = format!("{error:#}").replace('\0', "").chars().take(2000).collect();
        let (now, for_good) = (app.clock.now(), job.attempt >= job.policy.attempts);
        tracing::warn!(kind = job.kind, job = %job.id, attempt = job.attempt, for_good, error = told, "a job failed");
        let again = now + with_jitter((job.policy.wait)(job.attempt), 0.5);
        let (state, failed_at) =
            if for_good { ("dead", Some(now)) } else { ("waiting", None::<DateTime<Utc>>) };
        // Where a newer one of the same key waits, that one will do it.
        tx.execute(
            "with extra as (delete from platform.jobs j where j.id = $1 and j.worker_id = $6 and $3 = 'waiting' \
               and exists (select 1 from platform.jobs o where o.kind = j.kind and o.unique_key = j.unique_key \
               and o.state in ('waiting', 'ready')) returning j.id) \
             update platform.jobs set state = $3, worker_id = null, last_error = $2, run_at = $4, failed_at = $5 \
             where id = $1 and state = 'running' and worker_id = $6 and id not in (select id from extra)",
            &[&job.id, &told, &state, &again, &failed_at, &worker],
        )
        .await?;
    }
    tx.commit().await
}

/// Gives back everything that was claimed and not finished, and says goodbye.
async fn leave(app: &App, worker: Uuid) -> Result<()> {
    give_back(app, worker, &[]).await?;
    let tx = app.db.begin().await?;
    tx.execute("delete from platform.workers where id = $1", &[&worker]).await?;
    tx.commit().await
}

/// Gives back what a worker has claimed, but for some. One whose like waits already is taken over by
/// others once this worker is not seen any more.
async fn give_back(app: &App, worker: Uuid, but: &[Uuid]) -> Result<()> {
    let tx = app.db.begin().await?;
    tx.execute(
        "update platform.jobs j set state = 'ready', worker_id = null, attempts = attempts - 1 \
         where worker_id = $1 and state = 'running' and id <> all ($2) and not exists (select 1 from platform.jobs o \
         where o.kind = j.kind and o.unique_key = j.unique_key and o.id <> j.id \
         and (o.state in ('waiting', 'ready') or o.worker_id = j.worker_id))",
        &[&worker, &but],
    )
    .await?;
    tx.announce(JOBS);
    tx.commit().await
}

/// Counts, now and then, until it is dropped.
async fn keep_counting(app: &App, kinds: &Kinds) {
    loop {
        tokio::time::sleep(COUNT_EVERY).await;
        if let Err(error) = count(app, kinds).await {
            tracing::warn!(%error, "waiting jobs could not be counted");
        }
    }
}

/// How many jobs there are, and how long the first one has been ready.
async fn count(app: &App, kinds: &Kinds) -> Result<()> {
    let tx = app.db.begin().await?;
    let rows = tx
        .query(
            "select kind, state, count(*) as jobs, \
             coalesce(extract(epoch from $1 - min(run_at)), 0)::float8 as age from platform.jobs group by kind, state",
            &[&app.clock.now()],
        )
        .await?;
    for kind in kinds.0.keys() {
        metrics::gauge!("rowhouse_job_age_seconds", "kind" => *kind).set(0.0);
        for state in ["waiting", "ready", "running", "dead"] {
            metrics::gauge!("rowhouse_jobs", "kind" => *kind, "state" => state).set(0.0);
        }
    }
    for row in &rows {
        let (kind, state): (String, String) = (row.try_get("kind")?, row.try_get("state")?);
        let (jobs, age): (i64, f64) = (row.try_get("jobs")?, row.try_get("age")?);
        if state == "ready" {
            metrics::gauge!("rowhouse_job_age_seconds", "kind" => kind.clone()).set(age.max(0.0));
        }
        metrics::gauge!("rowhouse_jobs", "kind" => kind, "state" => state).set(jobs as f64);
    }
    Ok(())
}
