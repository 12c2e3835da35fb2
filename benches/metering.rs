//! What metering costs: a count, a flush, and their share of the time that a list request takes.

use std::{
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use chrono::Utc;
use futures_util::future::try_join_all;
use rowhouse::{
    app::App,
    http,
    usage::{self, Meter, meter::EVERY},
};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use uuid::Uuid;

use crate::Ground;

const ORGANIZATIONS: [usize; 3] = [1, 100, 10_000];
const GROUPS: [&str; 4] = ["projects", "tasks", "members", "events"];
const COUNTS: usize = 4_000_000;
/// Requests that are under way at the same time.
const AT_ONCE: usize = 16;
/// Rounds with flushes, and as many without, in turn.
const ROUNDS: usize = 12;
/// How long one takes: long enough for a flush.
const ROUND: Duration = Duration::from_millis(2_500);

pub async fn share(ground: &Ground) -> anyhow::Result<()> {
    println!("{:<44} {:>10} {:>12}", "metering", "1 thread", "8 threads");
    let mut count = 0.0_f64;
    for organizations in ORGANIZATIONS {
        let [one, eight] = [1, 8].map(|threads| nanoseconds(organizations, threads));
        println!(
            "{:<44} {one:>7.0} ns {eight:>9.0} ns",
            format!("a count, of {organizations} organizations")
        );
        count = count.max(one).max(eight);
    }
    let app = ground.app("metering").await?;
    let mut flushes = Vec::new();
    for organizations in ORGANIZATIONS {
        let took = flush(&app, organizations).await?;
        let what = format!("a flush, of {organizations} organizations");
        println!("{what:<44} {:>7.1} ms", took.as_secs_f64() * 1000.0);
        flushes.push((organizations, took));
    }
    let (without, with, less) = lists(&app).await?;
    println!("{:<44} {:>10}", "GET /projects, 20 of them", "a second");
    println!("{:<44} {without:>10.0}", "without flushes");
    println!("{:<44} {with:>10.0}", "with flushes");
    println!("{:<44} {:>9.2} %", "less, the median of the pairs", less * 100.0);
    // As though nothing else went on while a count or a flush does.
    println!("{:<44} {:>10}", "share of the time of a list", "at most");
    let request = 1e9 / with;
    println!("{:<44} {:>9.3} %", "the slowest of the counts", count / request * 100.0);
    for (organizations, took) in flushes {
        let calls = with * EVERY.as_secs_f64();
        let flush = took.as_nanos() as f64 / calls;
        println!(
            "{:<44} {:>9.3} %",
            format!("with a flush of {organizations} organizations"),
            (count + flush) / request * 100.0
        );
    }
    Ok(())
}

/// What one count takes of a core, when all counts have been seen before.
fn nanoseconds(organizations: usize, threads: usize) -> f64 {
    let (meter, now) = (Meter::default(), Utc::now());
    let callers: Vec<(Uuid, Uuid)> = (0..organizations).map(|_| (Uuid::now_v7(), Uuid::now_v7())).collect();
    let count = |n: usize| {
        let (organization, key) = callers[n % organizations];
        // As the gate does: it asks before it counts.
        black_box(meter.calls(organization, now));
        meter.count(organization, Some(key), GROUPS[n / organizations % GROUPS.len()], now);
    };
    (0..organizations * GROUPS.len()).for_each(count);
    let started = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let count = &count;
            scope.spawn(move || (0..COUNTS / threads).for_each(|n| count(n * threads + thread)));
        }
    });
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    started.elapsed().as_nanos() as f64 * threads.min(cores) as f64 / COUNTS as f64
}

/// The median of flushes with one line for each organization.
async fn flush(app: &App, organizations: usize) -> anyhow::Result<Duration> {
    let callers: Vec<(Uuid, Uuid)> = (0..organizations).map(|_| (Uuid::now_v7(), Uuid::now_v7())).collect();
    let mut took = Vec::new();
    for _ in 0..7 {
        for (organization, key) in &callers {
            app.meter.count(*organization, Some(*key), "projects", app.clock.now());
        }
        let started = Instant::now();
        app.meter.flush(app).await?;
        took.push(started.elapsed());
    }
    took.sort();
    Ok(took[took.len() / 2])
}

/// How many lists are answered in a second by a server that counts: without flushes, and with them.
/// The last is how much less that is, by the median of rounds that followed each other.
async fn lists(app: &Arc<App>) -> anyhow::Result<(f64, f64, f64)> {
    // What a server needs beside its endpoint; nothing else is to run.
    app.keys.load(app.clock.now()).await?;
    let listening = app.clone();
    let listening = tokio::spawn(async move { listening.directory.listen().await });
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let base = format!("http://{}/api/v1", listener.local_addr()?);
    let server = tokio::spawn(http::serve(app.clone(), listener, std::future::pending()));
    let lister = Lister::prepare(app, &base).await?;
    lister.a_round().await?;
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for round in 0..2 * ROUNDS {
        // Now the one comes first, now the other.
        if matches!(round % 4, 0 | 3) {
            without.push(lister.a_round().await?);
        } else {
            let flushing = tokio::spawn(usage::keep(app.clone()));
            with.push(lister.a_round().await?);
            flushing.abort();
            app.meter.flush(app).await?;
        }
    }
    server.abort();
    listening.abort();
    let median = |mut rounds: Vec<f64>| {
        rounds.sort_by(f64::total_cmp);
        rounds[rounds.len() / 2]
    };
    let less = without.iter().zip(&with).map(|(without, with)| 1.0 - with / without).collect();
    Ok((median(without), median(with), median(less)))
}

/// Somebody who lists projects.
struct Lister {
    http: reqwest::Client,
    url: String,
    token: String,
    organization: String,
    key: String,
}

impl Lister {
    /// A new organization with twenty projects.
    async fn prepare(app: &App, base: &str) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder().no_proxy().build()?;
        let account = json!({"email": "bench@example.com", "password": "Correct-Horse-7-Battery",
            "organization_name": "Bench"});
        let account = http.post(format!("{base}/auth/register")).json(&account).send().await?;
        let account: Value = account.error_for_status()?.json().await?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (token, organization) = (text(&account["access_token"]), text(&account["organization"]["id"]));
        let tx = app.db.begin().await?;
        tx.execute("update platform.organizations set plan = 'enterprise'", &[]).await?;
        tx.commit().await?;
        app.directory.forget(organization.parse()?);
        let lister = Self { http, url: format!("{base}/projects"), token, organization, key: String::new() };
        for n in 0..20 {
            let project = json!({"name": format!("Project {n}"), "description": "One of twenty"});
            let made = lister.as_owner(lister.http.post(&lister.url)).json(&project).send().await?;
            made.error_for_status()?;
        }
        lister.with_key(app, base).await
    }

    fn as_owner(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        request.bearer_auth(&self.token).header("x-organization-id", &self.organization)
    }

    /// A program's key, whose calls count, with a limit that is never reached.
    async fn with_key(mut self, app: &App, base: &str) -> anyhow::Result<Self> {
        let new = json!({"name": "Bench", "scopes": ["projects:read"]});
        let made = self.as_owner(self.http.post(format!("{base}/api-keys"))).json(&new).send().await?;
        let made: Value = made.error_for_status()?.json().await?;
        self.key = made["key"].as_str().unwrap_or_default().to_owned();
        let tx = app.db.begin().await?;
        tx.execute("update platform.api_keys set rate_per_hour = 2000000000", &[]).await?;
        tx.execute("update platform.plans set api_calls = 1000000000000", &[]).await?;
        tx.commit().await?;
        app.directory.forget_all();
        Ok(self)
    }

    /// Lists for the time of a round.
    async fn a_round(&self) -> anyhow::Result<f64> {
        let (started, done) = (Instant::now(), AtomicUsize::new(0));
        let listing = (0..AT_ONCE).map(|_| async {
            while started.elapsed() < ROUND {
                let answer = self.http.get(&self.url).header("x-api-key", &self.key).send().await?;
                answer.error_for_status()?.bytes().await?;
                done.fetch_add(1, Ordering::Relaxed);
            }
            anyhow::Ok(())
        });
        try_join_all(listing).await?;
        Ok(done.load(Ordering::Relaxed) as f64 / started.elapsed().as_secs_f64())
    }
}
