//! How many small jobs are done in a second, and how long one organization's job waits behind ten
//! thousand of another's.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use rowhouse::{
    app::App,
    jobs::{self, Kinds, Running, Terms, Work},
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::Ground;

static DONE: AtomicUsize = AtomicUsize::new(0);
static LIGHT: Mutex<Option<Instant>> = Mutex::new(None);

/// As small as a job can be.
#[derive(Serialize, Deserialize)]
struct Small;

impl Work for Small {
    const KIND: &'static str = "small";

    async fn run(self, _job: &Running) -> anyhow::Result<()> {
        DONE.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

async fn enqueue<W: Work>(app: &App, work: &W, count: usize, lanes: usize) -> anyhow::Result<()> {
    let mut left = count;
    while left > 0 {
        let batch = left.min(500);
        let tx = app.db.begin().await?;
        let adding = (0..batch).map(|n| {
            let lane = Some(Uuid::from_u128((n % lanes) as u128 + 1));
            jobs::enqueue_on(&tx, app, work, Terms { lane, ..Terms::default() })
        });
        futures_util::future::try_join_all(adding).await?;
        tx.commit().await?;
        left -= batch;
    }
    Ok(())
}

async fn drained(count: usize) -> Duration {
    let started = Instant::now();
    while DONE.load(Ordering::Relaxed) < count {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    started.elapsed()
}

pub async fn throughput(ground: &Ground) -> anyhow::Result<()> {
    println!("{:<44} {:>10} {:>12}", "jobs", "count", "a second");
    let app = ground.app("jobs").await?;
    for (what, lanes) in [("small, of 1 organization", 1), ("small, of 100 organizations", 100)] {
        const COUNT: usize = 20_000;
        DONE.store(0, Ordering::Relaxed);
        let started = Instant::now();
        enqueue(&app, &Small, COUNT, lanes).await?;
        let took = started.elapsed();
        println!(
            "{:<44} {COUNT:>10} {:>12.0}",
            format!("{what}: enqueued"),
            COUNT as f64 / took.as_secs_f64()
        );
        let kinds = Arc::new(Kinds::default().with::<Small>());
        let worker = tokio::spawn(jobs::work(app.clone(), kinds));
        let took = drained(COUNT).await;
        worker.abort();
        println!("{:<44} {COUNT:>10} {:>12.0}", format!("{what}: done"), COUNT as f64 / took.as_secs_f64());
        settle(&app).await?;
    }
    // Both at the same time, as in life.
    const COUNT: usize = 20_000;
    DONE.store(0, Ordering::Relaxed);
    let worker = tokio::spawn(jobs::work(app.clone(), Arc::new(Kinds::default().with::<Small>())));
    let started = Instant::now();
    enqueue(&app, &Small, COUNT, 100).await?;
    drained(COUNT).await;
    let took = started.elapsed();
    worker.abort();
    println!(
        "{:<44} {COUNT:>10} {:>12.0}",
        "small: enqueued and done side by side",
        COUNT as f64 / took.as_secs_f64()
    );
    Ok(())
}

/// What an aborted worker had not written down yet is removed.
async fn settle(app: &App) -> anyhow::Result<()> {
    let tx = app.db.begin().await?;
    tx.execute("delete from platform.jobs", &[]).await?;
    tx.commit().await?;
    Ok(())
}

/// The one job of an organization that has no other.
#[derive(Serialize, Deserialize)]
struct Lonely {
    heavy: bool,
}

impl Work for Lonely {
    const KIND: &'static str = "shared";

    async fn run(self, _job: &Running) -> anyhow::Result<()> {
        if self.heavy {
            tokio::time::sleep(Duration::from_millis(20)).await;
        } else {
            *LIGHT.lock().unwrap() = Some(Instant::now());
        }
        Ok(())
    }
}

pub async fn fairness(ground: &Ground) -> anyhow::Result<()> {
    let app = ground.app("fairness").await?;
    let worker = tokio::spawn(jobs::work(app.clone(), Arc::new(Kinds::default().with::<Lonely>())));
    println!("{:<44} {:>10} {:>12}", "one job of another organization", "median ms", "longest ms");
    for (what, heavy) in [("with nothing else to do", 0), ("behind 10,000 of 20 ms each", 10_000)] {
        enqueue(&app, &Lonely { heavy: true }, heavy, 1).await?;
        let mut waits = Vec::new();
        for _ in 0..100 {
            *LIGHT.lock().unwrap() = None;
            let asked = Instant::now();
            let tx = app.db.begin().await?;
            let terms = Terms { lane: Some(Uuid::from_u128(999)), ..Terms::default() };
            jobs::enqueue_on(&tx, &app, &Lonely { heavy: false }, terms).await?;
            tx.commit().await?;
            let at = loop {
                if let Some(at) = *LIGHT.lock().unwrap() {
                    break at;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            };
            waits.push(at.saturating_duration_since(asked));
        }
        waits.sort();
        let ms = |wait: Duration| wait.as_secs_f64() * 1000.0;
        println!("{what:<44} {:>10.1} {:>12.1}", ms(waits[50]), ms(waits[99]));
    }
    worker.abort();
    Ok(())
}
