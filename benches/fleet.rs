//! The whole service on a growing fleet: what it answers in a second and how soon, beside `pgbench`
//! and a peer in the same run; migrations, sign-ups, memory, fairness. The goals are those of the
//! table that this prints.
//!
//! Whatever is compared is measured in turn, several rounds of it, and the medians count: the machine
//! is the same for all of them.

use std::{
    pin::pin,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use futures_util::future::try_join_all;
use rowhouse::{
    db::migrations::{Set, all_sets},
    tenancy::fleet::{self, migrate::Options},
};
use serde_json::json;
use tokio::time::sleep;

use crate::{
    Ground,
    load::{Load, NUMBER, Outcome, Request, Until, median},
    peer::Peer,
    pgbench::{Pgbench, Way},
    report::{
        Bound::{AtLeast, AtMost},
        Point, Report,
    },
    service::{Service, megabytes},
    tenants::{PASSWORD, Tenant, grow, settle},
};

const FLEET: &str = "fleet";
/// Apart, as what is made in a comparison would change what the fleet's curve is measured on.
const COMPARISON: &str = "comparison";
const SIGN_UPS: &str = "sign_ups";
/// How many there are when lists are measured; the fleet grows from one to the next.
const SIZES: [usize; 6] = [10, 100, 200, 500, 1000, 2000];
/// So many there are where everything is compared.
const COMPARED: usize = 200;
/// With so many the fleet is migrated.
const MIGRATED: usize = 1000;
const ROUNDS: usize = 3;
const ROUND: Until = Until::Elapsed(Duration::from_secs(4));
/// Plans are kept once a statement was used some times on each connection, for each tenant.
const WARMING: Until = Until::Elapsed(Duration::from_secs(3));
/// No schemas are built beside what is measured.
const NO_STOCK: [(&str, &str); 2] = [("TENANCY_SPARE_SCHEMAS", "0"), ("TENANCY_SPARE_SCHEMAS_LOW", "0")];
/// Nor is anybody kept from taking all there is, which is measured here.
const NO_LIMITS: [(&str, &str); 4] =
    [NO_STOCK[0], NO_STOCK[1], ("DATABASE_SECONDS_PER_MINUTE", "0"), ("LIMIT_CONCURRENT", "0")];

/// Measures everything and tells it.
pub async fn run(ground: &Ground) -> anyhow::Result<()> {
    let mut report = Report::new();
    start_ups(ground, &mut report).await?;
    sign_ups(ground, &mut report).await?;
    report.now(&format!("making {COMPARED} tenants"));
    let mut tenants = Vec::new();
    grow(ground, COMPARISON, &mut tenants, COMPARED).await?;
    compare(ground, &mut report, &tenants).await?;
    let mut tenants = Vec::new();
    for size in SIZES {
        report.now(&format!("growing to {size} tenants"));
        let before = tenants.len();
        let took = grow(ground, FLEET, &mut tenants, size).await?;
        if size == MIGRATED {
            let each = took.as_secs_f64() * 1000.0 / (size - before) as f64;
            report.value("provisioning", "one organization of many, 4 at a time", each, "ms");
        }
        curve(ground, &mut report, &tenants).await?;
        if size == MIGRATED {
            migrations(ground, &mut report).await?;
            backend_memory(ground, &mut report, &tenants).await?;
        }
    }
    report.finish()
}

/// The time to the first answer, and the memory with nothing to do.
async fn start_ups(ground: &Ground, report: &mut Report) -> anyhow::Result<()> {
    report.now("start-up");
    drop(ground.app(SIGN_UPS).await?);
    // The first one makes keys.
    drop(Service::start(ground, SIGN_UPS, &[], &NO_STOCK).await?);
    let mut ready = Vec::new();
    for _ in 0..7 {
        let service = Service::start(ground, SIGN_UPS, &[], &NO_STOCK).await?;
        ready.push(service.ready_in.as_secs_f64() * 1000.0);
    }
    let service = Service::start(ground, SIGN_UPS, &[], &NO_STOCK).await?;
    sleep(Duration::from_secs(5)).await;
    let (idle, ready) = (service.memory(), median(ready));
    report.value("start", "first answer", ready, "ms");
    report.value("start", "memory, idle", idle, "MB");
    report.goal("first answer after the start", AtMost, 30.0, "ms", Some(ready));
    report.goal("idle memory", AtMost, 20.0, "MB", Some(idle));
    Ok(())
}

/// New organizations one after the other, with schemas in stock and without.
async fn sign_ups(ground: &Ground, report: &mut Report) -> anyhow::Result<()> {
    const ALONE: usize = 20;
    const WARM: usize = 10;
    const STOCKED: usize = 200;
    const UNSTOCKED: usize = 60;
    report.now("sign-ups");
    let app = ground.app(SIGN_UPS).await?;
    let primary = app.db.primary();
    let mut alone = Vec::new();
    for _ in 0..ALONE {
        let started = Instant::now();
        fleet::stock_up(&app, &primary, 1).await?;
        alone.push(started.elapsed().as_secs_f64() * 1000.0);
    }
    let rest = WARM + STOCKED - ALONE;
    try_join_all((0..4).map(|n| fleet::stock_up(&app, &primary, (rest + n) / 4))).await?;
    drop(app);
    report.value("provisioning", "one schema, built alone", median(alone), "ms");
    let service = Service::start(ground, SIGN_UPS, &[], &NO_STOCK).await?;
    let new = json!({"email": format!("owner{NUMBER}@example.com"), "password": PASSWORD,
        "organization_name": format!("Company {NUMBER}")});
    let request = Request::post("localhost", "/api/v1/auth/register", "", &new);
    let load = Load::new(service.address, vec![request], 1, Until::Answers(WARM));
    load.run().await?;
    let stocked = load.until(Until::Answers(STOCKED)).run().await?;
    let unstocked = load.until(Until::Answers(UNSTOCKED)).run().await?;
    report.load("provisioning", "sign-up, with a schema in stock, 1 connection", &stocked);
    report.load("provisioning", "sign-up, schema built on the spot, 1 connection", &unstocked);
    report.goal("sign-up with its schema, p99", AtMost, 50.0, "ms", Some(stocked.p99));
    Ok(())
}

/// Lists of all tenants, and what memory that leaves.
async fn curve(ground: &Ground, report: &mut Report, tenants: &[Tenant]) -> anyhow::Result<()> {
    report.now(&format!("lists of {} tenants", tenants.len()));
    let since = Utc::now();
    let service = Service::start(ground, FLEET, &[], &NO_LIMITS).await?;
    settle(ground, FLEET).await?;
    let load = Load::new(service.address, tenants.iter().map(Tenant::list).collect(), 32, WARMING);
    load.run().await?;
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        rounds.push(load.until(ROUND).run().await?);
    }
    let Outcome { per_second, p50: p50_ms, p99: p99_ms, .. } = Outcome::median(&rounds);
    let backends_mb = backends(ground, since).await?.iter().sum();
    let (tenants, service_mb) = (tenants.len(), service.memory());
    report.point(Point { tenants, per_second, p50_ms, p99_ms, service_mb, backends_mb });
    Ok(())
}

/// Everything that is compared with something else.
async fn compare(ground: &Ground, report: &mut Report, tenants: &[Tenant]) -> anyhow::Result<()> {
    report.now("preparing pgbench and the Django peer");
    let pgbench = Pgbench::prepare(ground, COMPARISON, tenants);
    let pgbench = pgbench.inspect_err(|error| eprintln!("no comparison with pgbench: {error:#}")).ok();
    let peer = Peer::start(ground, tenants.len()).await;
    let peer = peer.inspect_err(|error| eprintln!("no comparison with Django: {error:#}")).ok();
    lists(ground, report, tenants, pgbench.as_ref(), peer.as_ref()).await?;
    // Before anything is made.
    fairness(ground, report, tenants).await?;
    creates(ground, report, tenants, peer.as_ref()).await
}

async fn lists(
    ground: &Ground,
    report: &mut Report,
    tenants: &[Tenant],
    pgbench: Option<&Pgbench>,
    peer: Option<&Peer>,
) -> anyhow::Result<()> {
    let service = Service::start(ground, COMPARISON, &[], &NO_LIMITS).await?;
    settle(ground, COMPARISON).await?;
    let load = |request: fn(&Tenant) -> Request, connections| {
        Load::new(service.address, tenants.iter().map(request).collect(), connections, ROUND)
    };
    let (list, get, log_in) = (load(Tenant::list, 32), load(Tenant::get, 32), load(Tenant::log_in, 8));
    let theirs = peer.map(|peer| Load::new(peer.address, peer.lists(), 32, ROUND));
    for load in [Some(&list), Some(&get), theirs.as_ref()].into_iter().flatten() {
        load.until(WARMING).run().await?;
    }
    let (mut at_32, mut at_8, mut gets, mut log_ins) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut qualified, mut path, mut django) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        report.now(&format!("lists, gets and logins, round {round} of {ROUNDS}"));
        at_32.push(list.run().await?);
        if let Some(pgbench) = pgbench {
            qualified.push(pgbench.run(Way::Qualified).await?);
        }
        at_8.push(list.over(8).run().await?);
        if let Some(pgbench) = pgbench {
            path.push(pgbench.run(Way::Path).await?);
        }
        gets.push(get.run().await?);
        if let Some(theirs) = &theirs {
            django.push(theirs.run().await?);
        }
        log_ins.push(log_in.run().await?);
    }
    let (at_32, at_8, django) = (Outcome::median(&at_32), Outcome::median(&at_8), Outcome::median(&django));
    report.load("requests, 200 tenants", "list, 32 connections", &at_32);
    report.load("requests, 200 tenants", "list, 8 connections", &at_8);
    report.load("requests, 200 tenants", "get, 32 connections", &Outcome::median(&gets));
    report.load("requests, 200 tenants", "login, 8 connections", &Outcome::median(&log_ins));
    let beside_qualified = pgbench.map(|_| {
        let (qualified, path) = (median(qualified), median(path));
        report.value("beside", "pgbench: list, schema in its name, 8 connections", qualified, "/s");
        report.value("beside", "pgbench: list, path set, 8 connections", path, "/s");
        report.value(
            "beside",
            "share of pgbench with the schema in its name",
            at_32.per_second / qualified,
            "",
        );
        report.value("beside", "share of pgbench with the path set", at_32.per_second / path, "");
        at_32.per_second / qualified
    });
    let beside_django = peer.map(|_| {
        report.load("beside", "django-tenants: list, 32 connections", &django);
        at_32.per_second / django.per_second
    });
    report.goal("list, share of pgbench at equal backends", AtLeast, 0.60, "", beside_qualified);
    report.goal("list, ratio to django-tenants", AtLeast, 40.0, "", beside_django);
    report.goal("list p99 at 32 connections", AtMost, 3.0, "ms", Some(at_32.p99));
    Ok(())
}

/// What is made is audited and to be told of. That is done by the worker, which a deployment may have
/// elsewhere: first without one, as the peer has none, then with one in the same process.
async fn creates(
    ground: &Ground,
    report: &mut Report,
    tenants: &[Tenant],
    peer: Option<&Peer>,
) -> anyhow::Result<()> {
    let load = |service: &Service| {
        Load::new(service.address, tenants.iter().map(Tenant::create).collect(), 32, ROUND)
    };
    let service = Service::start(ground, COMPARISON, &["--web-only"], &NO_LIMITS).await?;
    let create = load(&service);
    let theirs = peer.map(|peer| Load::new(peer.address, peer.creates(), 32, ROUND));
    for load in [Some(&create), theirs.as_ref()].into_iter().flatten() {
        load.until(WARMING).run().await?;
    }
    let client = ground.client(COMPARISON).await?;
    // Nobody pays for writing down what others have made.
    let afresh = async |load: &Load| {
        client.batch_execute("checkpoint").await?;
        load.run().await
    };
    let (mut at_32, mut at_8, mut django) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        report.now(&format!("creates, round {round} of {ROUNDS}"));
        at_32.push(afresh(&create).await?);
        if let Some(theirs) = &theirs {
            django.push(afresh(theirs).await?);
        }
        at_8.push(afresh(&create.over(8)).await?);
    }
    drop(service);
    // What was made so far is not to be told of meanwhile.
    client.batch_execute("truncate platform.outbox, platform.audit_unsealed").await?;
    let service = Service::start(ground, COMPARISON, &[], &NO_LIMITS).await?;
    let create = load(&service);
    create.until(WARMING).run().await?;
    let mut with_worker = Vec::new();
    for round in 1..=ROUNDS {
        report.now(&format!("creates with the worker, round {round} of {ROUNDS}"));
        with_worker.push(afresh(&create).await?);
    }
    let (at_32, with_worker) = (Outcome::median(&at_32), Outcome::median(&with_worker));
    report.load("requests, 200 tenants", "create, worker elsewhere, 32 connections", &at_32);
    report.load("requests, 200 tenants", "create, worker elsewhere, 8 connections", &Outcome::median(&at_8));
    report.load("requests, 200 tenants", "create, worker in the process, 32 connections", &with_worker);
    let ratio = peer.map(|_| {
        let django = Outcome::median(&django);
        report.load("beside", "django-tenants: create, 32 connections", &django);
        let ratio = with_worker.per_second / django.per_second;
        report.value("beside", "create with the worker, ratio to django-tenants", ratio, "");
        at_32.per_second / django.per_second
    });
    report.goal("create, worker elsewhere, ratio to django-tenants", AtLeast, 15.0, "", ratio);
    Ok(())
}

/// How one tenant fares while another asks for as much as it can, under the limits that are the default.
async fn fairness(ground: &Ground, report: &mut Report, tenants: &[Tenant]) -> anyhow::Result<()> {
    let service = Service::start(ground, COMPARISON, &[], &NO_STOCK).await?;
    let load = |tenant: &Tenant, connections| {
        Load::new(service.address, vec![tenant.list()], connections, ROUND).may_be_refused()
    };
    let light = load(&tenants[0], 1).with_pause(Duration::from_millis(5));
    // It begins before the other, and ends after it.
    let heavy = load(&tenants[1], 32).until(Until::Elapsed(Duration::from_secs(6)));
    light.run().await?;
    let (mut alone, mut beside, mut full) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        report.now(&format!("fairness, round {round} of {ROUNDS}"));
        alone.push(light.run().await?);
        let later = async {
            sleep(Duration::from_secs(1)).await;
            light.run().await
        };
        let (heavy, light) = tokio::join!(heavy.run(), later);
        full.push(heavy?);
        beside.push(light?);
    }
    let (alone, beside, full) = (Outcome::median(&alone), Outcome::median(&beside), Outcome::median(&full));
    report.load("fairness", "a light tenant, alone", &alone);
    report.load("fairness", "a light tenant, beside one at full load", &beside);
    report.load("fairness", "the one at full load, 32 connections", &full);
    report.value("fairness", "of its requests were refused", full.refused as f64, "");
    report.value("fairness", "of the light tenant's were refused", beside.refused as f64, "");
    let times = beside.p99 / alone.p99;
    report.goal("p99 of a tenant beside one at full load, times", AtMost, 2.0, "", Some(times));
    Ok(())
}

/// One more column in every schema, and then nothing.
async fn migrations(ground: &Ground, report: &mut Report) -> anyhow::Result<()> {
    report.now("migrations");
    let app = ground.app(FLEET).await?;
    let add = |set: Set| match set.module {
        "work" => {
            let next = set.latest() + 1;
            set.with(next, "bench", "alter table projects add column bench text;")
        }
        _ => set,
    };
    let sets: Vec<Set> = all_sets().into_iter().map(add).collect();
    let options = Options { jobs: 8, ..Options::default() };
    let started = Instant::now();
    let done = fleet::migrate(&app, &sets, &options, &|_| {}).await?;
    let took = started.elapsed().as_secs_f64();
    anyhow::ensure!(done.migrated == MIGRATED && done.failed == 0, "not all were migrated: {done:?}");
    let mut nothing = Vec::new();
    for _ in 0..5 {
        let started = Instant::now();
        let done = fleet::migrate(&app, &sets, &options, &|_| {}).await?;
        nothing.push(started.elapsed().as_secs_f64() * 1000.0);
        anyhow::ensure!(done.migrated == 0, "what was current was migrated: {done:?}");
    }
    let nothing = median(nothing);
    report.value("migrations, 1,000 schemas", "one added column", took, "s");
    report.value("migrations, 1,000 schemas", "nothing to do", nothing, "ms");
    report.goal("1,000 schemas, one added column", AtMost, 10.0, "s", Some(took));
    report.goal("1,000 current schemas, nothing to do", AtMost, 100.0, "ms", Some(nothing));
    Ok(())
}

/// The most that one process of Postgres holds while it alone serves all tenants, reading and writing.
async fn backend_memory(ground: &Ground, report: &mut Report, tenants: &[Tenant]) -> anyhow::Result<()> {
    report.now("memory of a backend");
    let since = Utc::now();
    let alone = [&NO_LIMITS[..], &[("DATABASE_POOL_SIZE", "1")]].concat();
    let service = Service::start(ground, FLEET, &["--web-only"], &alone).await?;
    let requests: Vec<Request> = tenants.iter().flat_map(|tenant| [tenant.list(), tenant.create()]).collect();
    let all = Until::Answers(requests.len());
    let load = Load::new(service.address, requests, 1, all).in_turn();
    let mut serving = pin!(load.run());
    let (mut peak, mut serves) = (0.0, true);
    while serves {
        tokio::select! {
            served = &mut serving => {
                served?;
                serves = false;
            }
            () = sleep(Duration::from_millis(100)) => {}
        }
        peak = backends(ground, since).await?.into_iter().fold(peak, f64::max);
    }
    report.value("memory", "one backend for 1,000 tenants, at most", peak, "MB");
    report.goal("a backend's memory after serving 1,000 tenants", AtMost, 100.0, "MB", Some(peak));
    Ok(())
}

/// Megabytes that each of the service's backends has for itself, of those that were begun since then.
async fn backends(ground: &Ground, since: DateTime<Utc>) -> anyhow::Result<Vec<f64>> {
    let client = ground.client(FLEET).await?;
    let sql = "select pid from pg_stat_activity where datname = current_database() \
         and application_name = 'rowhouse' and backend_start >= $1";
    let rows = client.query(sql, &[&since]).await?;
    rows.iter().map(|row| Ok(megabytes(row.try_get::<_, i32>(0)?.unsigned_abs(), "RssAnon:"))).collect()
}
