//! Jobs: done once in the ordinary case, never lost, and shared out fairly.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, Mutex},
    time::{Duration, Instant},
};

use chrono::TimeDelta;
use rowhouse::{
    app::{App, Part},
    clock::Clock,
    jobs::{self, Kinds, Policy, Running, Terms, Work, schedules},
    tenancy::fleet,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use crate::support::{Team, TestApp, on_the_servers_runtime, within};

/// What jobs did, by the name that a test gives its own: label and time.
type Notes = HashMap<String, Vec<(String, Instant)>>;

static DONE: LazyLock<Mutex<Notes>> = LazyLock::new(Default::default);

fn done(test: &str) -> Vec<(String, Instant)> {
    DONE.lock().unwrap().get(test).cloned().unwrap_or_default()
}

fn labels(test: &str) -> Vec<String> {
    done(test).into_iter().map(|(label, _)| label).collect()
}

/// Of jobs that take so long, no more were under way at once.
fn never_more_than(test: &str, most: usize, each: Duration) {
    let begun: Vec<Instant> = done(test).into_iter().map(|(_, at)| at).collect();
    assert!(begun.windows(most + 1).all(|some| some[most] - some[0] >= each), "{begun:?}");
}

/// A job that says that it was done, and how.
#[derive(Serialize, Deserialize)]
struct Note {
    test: String,
    label: String,
    behaviour: Behaviour,
}

#[derive(Serialize, Deserialize, Clone, Copy)]
enum Behaviour {
    Succeed,
    Fail,
    Panic,
    Take(u64),
}

impl Work for Note {
    const KIND: &'static str = "note";
    const POLICY: Policy =
        Policy { slots: 16, per_lane: 8, limit: Duration::from_secs(3), ..Policy::DEFAULT };

    async fn run(self, job: &Running) -> anyhow::Result<()> {
        let label = format!("{}#{}", self.label, job.attempt);
        DONE.lock().unwrap().entry(self.test).or_default().push((label, Instant::now()));
        match self.behaviour {
            Behaviour::Succeed => Ok(()),
            Behaviour::Fail => anyhow::bail!("it would not"),
            Behaviour::Panic => panic!("it panicked"),
            Behaviour::Take(milliseconds) => {
                tokio::time::sleep(Duration::from_millis(milliseconds)).await;
                Ok(())
            }
        }
    }
}

/// One of a lane at a time.
#[derive(Serialize, Deserialize)]
struct Alone {
    test: String,
}

impl Work for Alone {
    const KIND: &'static str = "alone";
    const POLICY: Policy = Policy { per_lane: 1, exclusive: true, ..Policy::DEFAULT };

    async fn run(self, _job: &Running) -> anyhow::Result<()> {
        let note = |label: &str| {
            DONE.lock().unwrap().entry(self.test.clone()).or_default().push((label.into(), Instant::now()));
        };
        note("begin");
        tokio::time::sleep(Duration::from_millis(100)).await;
        note("end");
        Ok(())
    }
}

/// Starts a worker for these kinds; it ends with the result.
fn worker(app: &Arc<App>) -> Ends {
    let kinds = Arc::new(Kinds::default().with::<Note>().with::<Alone>());
    let app = app.clone();
    Ends(on_the_servers_runtime(async move { tokio::spawn(jobs::work(app, kinds)).abort_handle() }))
}

struct Ends(tokio::task::AbortHandle);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn enqueue(app: &TestApp, team: Option<&Team>, notes: Vec<(Note, Terms)>) {
    let app = app.app.clone();
    let slug = team.map(|team| team.slug.clone());
    on_the_servers_runtime(async move {
        match slug {
            Some(slug) => {
                let tenant = fleet::tenant(&app.directory, &slug).await.unwrap().unwrap();
                let tx = tenant.begin().await.unwrap();
                for (note, terms) in notes {
                    jobs::enqueue_on(&tx, &app, &note, terms).await.unwrap();
                }
                tx.commit().await.unwrap();
            }
            None => {
                let tx = app.db.begin().await.unwrap();
                for (note, terms) in notes {
                    jobs::enqueue_on(&tx, &app, &note, terms).await.unwrap();
                }
                tx.commit().await.unwrap();
            }
        }
    });
}

fn note(test: &str, label: &str, behaviour: Behaviour) -> (Note, Terms) {
    (Note { test: test.into(), label: label.into(), behaviour }, Terms::default())
}

/// A server that leaves these tests' jobs to their own worker.
async fn ground() -> TestApp {
    TestApp::with(|config| config.database.pool_size = 6)
}

#[tokio::test]
async fn what_fails_is_tried_three_times_more_and_then_kept_with_its_error() {
    let app = ground().await;
    let _worker = worker(&app.app);
    enqueue(&app, None, vec![note("fails", "a", Behaviour::Fail), note("fails", "b", Behaviour::Panic)]);
    for (attempt, seconds) in [(1, 16), (2, 61), (3, 241)] {
        within(5, "an attempt", || async {
            let tried = format!("state = 'waiting' and attempts = {attempt}");
            app.number(&format!("select count(*) from platform.jobs where {tried}")).await == 2
        })
        .await;
        app.app.clock.advance(TimeDelta::seconds(seconds));
    }
    within(5, "both are dead", || async {
        app.number("select count(*) from platform.jobs where state = 'dead'").await == 2
    })
    .await;
    let mut attempts = labels("fails");
    attempts.sort();
    assert_eq!(attempts, ["a#1", "a#2", "a#3", "a#4", "b#1", "b#2", "b#3", "b#4"]);
    let staff = app.superuser().await;
    let dead = staff.client.get("/admin/jobs?state=dead").await.expect(200);
    let errors: Vec<&str> =
        dead["data"].as_array().unwrap().iter().map(|job| job["last_error"].as_str().unwrap()).collect();
    assert!(errors.contains(&"it would not") && errors.contains(&"panicked"), "{errors:?}");
    let ids: Vec<&str> =
        dead["data"].as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap()).collect();
    // Staff try one again and discard the other.
    staff.client.post(&format!("/admin/jobs/{}/retry", ids[0]), json!({})).await.expect(200);
    staff.client.delete(&format!("/admin/jobs/{}", ids[1])).await.expect(204);
    staff.client.get(&format!("/admin/jobs/{}", ids[1])).await.refused(404, "NOT_FOUND");
    staff.client.post(&format!("/admin/jobs/{}/retry", ids[0]), json!({})).await.refused(409, "CONFLICT");
    within(5, "another attempt", || async { labels("fails").len() == 9 }).await;
}

#[tokio::test]
async fn what_takes_too_long_is_stopped_and_counted_as_a_failure() {
    let app = ground().await;
    let _worker = worker(&app.app);
    enqueue(&app, None, vec![note("slow", "a", Behaviour::Take(60_000))]);
    within(8, "it is stopped", || async {
        app.texts("select last_error from platform.jobs where last_error is not null").await
            == ["took longer than 3 s"]
    })
    .await;
}

#[tokio::test]
async fn a_job_for_later_waits_for_its_time() {
    let app = ground().await;
    let _worker = worker(&app.app);
    let at = Some(app.app.clock.now() + TimeDelta::hours(2));
    let (later, _) = note("later", "a", Behaviour::Succeed);
    enqueue(&app, None, vec![(later, Terms { at, ..Terms::default() })]);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(labels("later").is_empty());
    app.app.clock.advance(TimeDelta::hours(2));
    within(3, "it is done", || async { labels("later") == ["a#1"] }).await;
}

#[tokio::test]
async fn of_two_with_the_same_key_that_wait_there_is_one_at_the_earlier_time() {
    let app = ground().await;
    let now = app.app.clock.now();
    let keyed = |label: &str, hours: i64, organization: Option<Uuid>| {
        let at = Some(now + TimeDelta::hours(hours));
        let terms = Terms { at, unique: Some("k".into()), lane: None, organization };
        (note("keyed", label, Behaviour::Succeed).0, terms)
    };
    let all = vec![keyed("first", 3, None), keyed("second", 2, None), keyed("third", 5, None)];
    enqueue(&app, None, all);
    assert_eq!(app.number("select count(*) from platform.jobs").await, 1);
    // A copy of an organization has things with the same ids; its jobs are its own.
    let (one, copy) = (Some(Uuid::now_v7()), Some(Uuid::now_v7()));
    enqueue(&app, None, vec![keyed("one", 9, one), keyed("copy", 9, copy), keyed("again", 10, copy)]);
    assert_eq!(app.number("select count(*) from platform.jobs").await, 3);
    let _worker = worker(&app.app);
    app.app.clock.advance(TimeDelta::minutes(125));
    within(3, "the one is done", || async { labels("keyed") == ["first#1"] }).await;
    enqueue(&app, None, vec![keyed("fourth", 0, None)]);
    within(3, "the next is done", || async { labels("keyed") == ["first#1", "fourth#1"] }).await;
}

/// One organization's ten thousand do not make another's one wait.
#[tokio::test]
async fn jobs_are_shared_out_fairly_among_organizations() {
    let app = ground().await;
    let (heavy, light) = (app.team().await, app.team().await);
    let many = (0..10_000).map(|_| note("heavy", "h", Behaviour::Take(20))).collect();
    enqueue(&app, Some(&heavy), many);
    let _worker = worker(&app.app);
    within(5, "the heavy ones are under way", || async { labels("heavy").len() > 50 }).await;
    for n in 0..5 {
        enqueue(&app, Some(&light), vec![note("light", &format!("l{n}"), Behaviour::Succeed)]);
        let asked = Instant::now();
        within(5, "the light one is done", || async { labels("light").len() == n + 1 }).await;
        let end = done("light")[n].1;
        let passed = done("heavy").iter().filter(|(_, at)| (asked..end).contains(at)).count();
        assert!(passed < 1_000, "{passed} of somebody else's went first");
    }
    assert!(labels("heavy").len() < 10_000, "the heavy ones were still waiting");
}

/// Long jobs of one organization leave room for another's.
#[tokio::test]
async fn one_organization_never_holds_every_slot() {
    let app = ground().await;
    let (heavy, light) = (app.team().await, app.team().await);
    enqueue(&app, Some(&heavy), (0..40).map(|_| note("holds", "h", Behaviour::Take(2_500))).collect());
    let _worker = worker(&app.app);
    within(5, "the slots are taken", || async { labels("holds").len() >= 8 }).await;
    enqueue(&app, Some(&light), vec![note("finds", "l", Behaviour::Succeed)]);
    within(1, "there is room", || async { labels("finds") == ["l#1"] }).await;
    never_more_than("holds", 8, Duration::from_millis(2_500));
}

/// Two workers, many words: the jobs of one lane come one after the other.
#[tokio::test]
async fn an_exclusive_lane_is_worked_by_one_at_a_time() {
    let app = ground().await;
    let other =
        on_the_servers_runtime(async { App::new(app.app.config.clone(), app.app.clock.clone()).unwrap() });
    let _workers = (worker(&app.app), worker(&other));
    let began = Instant::now();
    while labels("alone").len() < 8 {
        assert!(began.elapsed() < Duration::from_secs(60), "{:?}", labels("alone"));
        let inner = app.app.clone();
        on_the_servers_runtime(async move {
            let tx = inner.db.begin().await.unwrap();
            let terms = Terms {
                unique: Some("lane".into()),
                lane: Some(Uuid::from_u128(7)),
                at: None,
                organization: None,
            };
            jobs::enqueue_on(&tx, &inner, &Alone { test: "alone".into() }, terms).await.unwrap();
            tx.commit().await.unwrap();
        });
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    let left = "select count(*) from platform.jobs where kind = 'alone'";
    within(5, "all is done", || async { app.number(left).await == 0 }).await;
    let told = labels("alone");
    assert!(told.chunks(2).all(|pair| pair == ["begin", "end"]), "{told:?}");
}

/// A worker that is gone without a word leaves its jobs to the others.
#[tokio::test]
async fn the_jobs_of_a_dead_worker_are_taken_over() {
    let app = ground().await;
    let dead = Uuid::now_v7();
    enqueue(&app, None, vec![note("orphan", "a", Behaviour::Succeed)]);
    app.sql(&format!(
        "with w as (insert into platform.workers (id, seen_at) \
         values ('{dead}', now()) returning id) \
         update platform.jobs set state = 'running', attempts = 1, worker_id = '{dead}'"
    ))
    .await;
    let _worker = worker(&app.app);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(labels("orphan").is_empty(), "it may be alive yet");
    within(40, "it is taken over", || async { labels("orphan") == ["a#2"] }).await;
}

/// A worker that stops finishes what it began, and gives back what it cannot finish.
#[tokio::test]
async fn a_worker_that_stops_leaves_nothing_claimed() {
    let app = ground().await;
    let other = App::new(app.app.config.clone(), Clock::default()).unwrap();
    let background = on_the_servers_runtime(other.start(Part::Worker)).unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    on_the_servers_runtime(background.stop());
    within(3, "its name is taken from the list", || async {
        app.number("select count(*) from platform.workers").await == 1
    })
    .await;
}

#[tokio::test]
async fn a_schedule_runs_once_for_each_tick_and_missed_ticks_are_made_up_once() {
    let app = ground().await;
    let runs = || async {
        app.number("select count(*) from platform.schedules where name = 'sweep' and last_result = 'ok'")
            .await
    };
    let next = "select next_run_at::text from platform.schedules where name = 'sweep'";
    within(3, "the schedules are written down", || async { app.texts(next).await.len() == 1 }).await;
    assert_eq!(runs().await, 0);
    // Ten hours in which nothing ran, and then two instances that look at the same time.
    app.sql("update platform.schedules set next_run_at = now() - interval '10 hours' where name = 'sweep'")
        .await;
    let inner = app.app.clone();
    let due = on_the_servers_runtime(async move {
        let looks = (0..8).map(|_| schedules::run_due(&inner));
        futures_util::future::join_all(looks).await.into_iter().map(|due| due.unwrap()).sum::<usize>()
    });
    assert!(due <= 1, "{due} instances ran the same tick");
    within(5, "it is done", || async { runs().await == 1 }).await;
    let later = app.number(
        "select count(*) from platform.schedules where name = 'sweep' and next_run_at > now() \
         and next_run_at <= now() + interval '1 hour'",
    );
    assert_eq!(later.await, 1);
}

/// Instances whose clocks disagree do each other's jobs at once.
#[tokio::test]
async fn a_clock_that_is_ahead_does_not_hold_jobs_back() {
    let app = ground().await;
    let ahead = Clock::default();
    ahead.advance(TimeDelta::minutes(10));
    let other = App::new(app.app.config.clone(), ahead).unwrap();
    let _worker = worker(&app.app);
    on_the_servers_runtime(async move {
        let tx = other.db.begin().await.unwrap();
        let (note, _) = note("skew", "a", Behaviour::Succeed);
        jobs::enqueue(&tx, &other, &note).await.unwrap();
        tx.commit().await.unwrap();
    });
    within(3, "it is done", || async { labels("skew") == ["a#1"] }).await;
}

/// Two of one key were under way when their worker died; the others go on all the same.
#[tokio::test]
async fn twins_of_a_dead_worker_stop_nobody() {
    let app = ground().await;
    let dead = Uuid::now_v7();
    for label in ["a", "b"] {
        let (one, _) = note("twins", label, Behaviour::Succeed);
        enqueue(&app, None, vec![(one, Terms { unique: Some("twin".into()), ..Terms::default() })]);
        app.sql(&format!(
            "update platform.jobs set state = 'running', attempts = 1, worker_id = '{dead}' where state = 'ready'"
        ))
        .await;
    }
    assert_eq!(app.number("select count(*) from platform.jobs where state = 'running'").await, 2);
    let _worker = worker(&app.app);
    within(40, "one of them is done", || async { labels("twins").len() == 1 }).await;
    enqueue(&app, None, vec![note("twins", "c", Behaviour::Succeed)]);
    within(3, "and whatever comes later", || async { labels("twins").contains(&"c#1".into()) }).await;
    within(3, "nothing is left", || async {
        app.number("select count(*) from platform.jobs where kind = 'note'").await == 0
    })
    .await;
}

/// A job that outlasts a stop is given back, and has lost none of its attempts.
#[derive(Serialize, Deserialize)]
struct Long;

impl Work for Long {
    const KIND: &'static str = "long";

    async fn run(self, _job: &Running) -> anyhow::Result<()> {
        tokio::time::sleep(Duration::from_secs(200)).await;
        Ok(())
    }
}

#[tokio::test]
async fn a_job_that_outlasts_a_stop_is_given_back() {
    let app = ground().await;
    let other = App::new(app.app.config.clone(), Clock::default()).unwrap();
    let (inner, kinds) = (other.clone(), Arc::new(Kinds::default().with::<Long>()));
    let done = on_the_servers_runtime(async move { tokio::spawn(jobs::work(inner, kinds)).abort_handle() });
    let inner = app.app.clone();
    on_the_servers_runtime(async move {
        let tx = inner.db.begin().await.unwrap();
        jobs::enqueue(&tx, &inner, &Long).await.unwrap();
        tx.commit().await.unwrap();
    });
    let stands = |state: &str| format!("select count(*) from platform.jobs where kind = 'long' and {state}");
    let running = stands("state = 'running'");
    within(5, "it is under way", || async { app.number(&running).await == 1 }).await;
    other.request_stop();
    within(15, "the worker ends", || async { done.is_finished() }).await;
    assert_eq!(app.number(&stands("state = 'ready' and attempts = 0 and worker_id is null")).await, 1);
}

#[tokio::test]
async fn a_service_with_nothing_under_way_stops_at_once() {
    let app = ground().await;
    let idle = App::new(app.app.config.clone(), Clock::default()).unwrap();
    let background = on_the_servers_runtime(idle.start(Part::All)).unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let started = Instant::now();
    on_the_servers_runtime(background.stop());
    // Who waits for something that is under way waits for ten seconds.
    assert!(started.elapsed() < Duration::from_secs(9), "{:?}", started.elapsed());
}

/// One of many lanes of an organization.
#[derive(Serialize, Deserialize)]
struct Piece {
    test: String,
}

impl Work for Piece {
    const KIND: &'static str = "piece";
    const POLICY: Policy = Policy { slots: 16, per_lane: 1, per_organization: 4, ..Policy::DEFAULT };

    async fn run(self, _job: &Running) -> anyhow::Result<()> {
        DONE.lock().unwrap().entry(self.test).or_default().push(("piece".into(), Instant::now()));
        tokio::time::sleep(Duration::from_secs(3)).await;
        Ok(())
    }
}

/// However many lanes an organization has, it has its share of the slots.
#[tokio::test]
async fn an_organization_of_many_lanes_has_one_share() {
    let app = ground().await;
    let (heavy, light) = (app.team().await, app.team().await);
    let add = |team: &Team, test: &'static str, count: usize| {
        let (inner, slug) = (app.app.clone(), team.slug.clone());
        on_the_servers_runtime(async move {
            let tenant = fleet::tenant(&inner.directory, &slug).await.unwrap().unwrap();
            let tx = tenant.begin().await.unwrap();
            for _ in 0..count {
                let terms = Terms { lane: Some(Uuid::now_v7()), ..Terms::default() };
                jobs::enqueue_on(&tx, &inner, &Piece { test: test.into() }, terms).await.unwrap();
            }
            tx.commit().await.unwrap();
        });
    };
    add(&heavy, "many lanes", 30);
    let (inner, kinds) = (app.app.clone(), Arc::new(Kinds::default().with::<Piece>()));
    let worker = on_the_servers_runtime(async move { tokio::spawn(jobs::work(inner, kinds)).abort_handle() });
    let _worker = Ends(worker);
    within(5, "its share is under way", || async { labels("many lanes").len() >= 4 }).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    add(&light, "one lane", 1);
    within(1, "there is room for another", || async { labels("one lane").len() == 1 }).await;
    never_more_than("many lanes", 4, Duration::from_secs(3));
}
