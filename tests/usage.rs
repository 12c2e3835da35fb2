//! Usage: everything that is asked for is counted once, and what programs ask for has its limit.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use chrono::{DateTime, Datelike, Days, Months, NaiveDate, TimeDelta, Utc};
use futures_util::future::join_all;
use rowhouse::{app::App, auth::Role, error::Result, usage};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{Client, PASSWORD, Team, TestApp, on_the_servers_runtime, unique_email, within};

/// A new API key: its id, and a client that sends it.
async fn program(team: &Team, scopes: &[&str]) -> (String, Client) {
    let made = team.owner.post("/api-keys", json!({"name": "Program", "scopes": scopes})).await.expect(201);
    let client = team.app.anonymous().header("x-api-key", made["key"].as_str().unwrap());
    (made["id"].as_str().unwrap().to_owned(), client)
}

async fn used(client: &Client, query: &str) -> Value {
    client.get(&format!("/analytics/usage?{query}")).await.expect(200)
}

async fn total(client: &Client, query: &str) -> i64 {
    used(client, query).await["total"].as_i64().unwrap()
}

/// The values of an answer added up by one of its fields.
fn by(answer: &Value, field: &str) -> BTreeMap<String, i64> {
    let mut sums = BTreeMap::new();
    for point in answer["data"].as_array().unwrap() {
        let name = point[field].as_str().unwrap_or("none").to_owned();
        *sums.entry(name).or_default() += point["value"].as_i64().unwrap();
    }
    sums
}

/// Writes what a server has counted, without waiting for its time.
fn flush(app: &Arc<App>) -> Result<()> {
    let app = app.clone();
    on_the_servers_runtime(async move { app.meter.flush(&app).await })
}

/// Another instance over the same database in which nothing runs by itself.
fn quiet(app: &TestApp) -> Arc<App> {
    App::new(app.app.config.clone(), app.app.clock.clone()).unwrap()
}

fn roll_up(app: &TestApp) {
    let app = app.app.clone();
    on_the_servers_runtime(async move {
        usage::begin_roll_up(&app).await.unwrap();
        let waiting = "select count(*) from platform.jobs where kind in ('roll_up_usage', 'measure_usage')";
        within(10, "the roll-up is done", || async {
            let tx = app.db.begin().await.unwrap();
            tx.query_one(waiting, &[]).await.unwrap().try_get::<_, i64>(0).unwrap() == 0
        })
        .await;
    });
}

/// To the middle of the next month, so that no month ends while a test counts in it; and what falls due
/// by the jump is waited for.
async fn to_mid_month(app: &TestApp) {
    let now = app.app.clock.now();
    let first = now.date_naive().with_day(1).unwrap();
    let noon = (first + Months::new(1) + Days::new(14)).and_hms_opt(12, 0, 0).unwrap().and_utc();
    app.app.clock.advance(noon - now);
    let rolled_up = format!(
        "select count(*) from platform.schedules where name = 'usage-roll-up' and next_run_at > '{noon}' \
         and (last_run_at is null or last_finished_at >= last_run_at)"
    );
    let measuring = "select count(*) from platform.jobs where kind in ('roll_up_usage', 'measure_usage')";
    within(10, "the roll-up is done", || async {
        app.number(&rolled_up).await == 1 && app.number(measuring).await == 0
    })
    .await;
}

/// Another instance over the same database whose clock shows the same.
fn at_the_same_time(app: &TestApp) -> TestApp {
    let beside = app.beside();
    beside.app.clock.advance(app.app.clock.now() - beside.app.clock.now());
    beside
}

/// Whom a jump of the clock has logged out.
async fn log_in(team: &Team) -> Client {
    let body = json!({"email": team.founder.email, "password": PASSWORD});
    let answer = team.app.anonymous().post("/auth/login", body).await.expect(200);
    team.app.anonymous().with_token(answer["access_token"].as_str().unwrap()).within(&team.id)
}

/// What a plan allows from now on.
async fn allow(app: &TestApp, plan: &str, calls: i64) {
    app.sql(&format!("update platform.plans set api_calls = {calls} where name = '{plan}'")).await;
    app.sql("select pg_notify('rowhouse_directory', '*')").await;
}

async fn stored_calls(team: &Team) -> i64 {
    let of_team = format!("where organization_id = '{}'", team.id);
    let sql = format!("select coalesce(sum(calls), 0)::bigint from platform.api_call_months {of_team}");
    team.app.number(&sql).await
}

#[tokio::test]
async fn requests_are_counted_by_key_and_group_and_seen_within_a_flush() {
    let app = TestApp::shared();
    let team = app.team().await;
    let (first, one) = program(&team, &["projects:read", "tasks:read"]).await;
    let (second, other) = program(&team, &["projects:read"]).await;
    for _ in 0..3 {
        one.get("/projects").await.expect(200);
    }
    one.get("/tasks").await.expect(200);
    for _ in 0..2 {
        other.get("/projects").await.expect(200);
    }
    // Who is not let in does not count.
    other.get("/tasks").await.refused(403, "PERMISSION_DENIED");
    app.anonymous().within(&team.id).get("/projects").await.refused(401, "AUTH_FAILED");
    for _ in 0..4 {
        team.owner.get("/projects").await.expect(200);
    }
    // Of a project that there is not, the request is one all the same.
    team.owner.get(&format!("/projects/{}", Uuid::now_v7())).await.refused(404, "NOT_FOUND");
    within(5, "the calls are seen", || async { total(&team.owner, "metric=api_calls").await == 6 }).await;
    flush(&app.app).unwrap();
    let by_key = by(&used(&team.owner, "metric=api_calls&by=key").await, "key_id");
    assert_eq!(by_key, BTreeMap::from([(first, 4), (second, 2)]));
    let by_group = by(&used(&team.owner, "metric=api_calls&by=group").await, "group");
    assert_eq!(by_group, BTreeMap::from([("projects".into(), 5), ("tasks".into(), 1)]));
    // People's are told apart from programs'.
    let by_group = by(&used(&team.owner, "metric=requests&by=group").await, "group");
    assert_eq!((by_group["projects"], by_group["api-keys"]), (5, 2));
    let hours = used(&team.owner, "metric=api_calls&grain=hour").await;
    let days = used(&team.owner, "metric=api_calls").await;
    let months = used(&team.owner, "metric=api_calls&grain=month").await;
    for (answer, least, unit) in [(&hours, 6 * 24 + 1, "hour"), (&days, 30, "day"), (&months, 12, "month")] {
        assert!(answer["data"].as_array().unwrap().len() >= least, "{answer}");
        assert_eq!((&answer["total"], &answer["unit"]), (&json!(6), &json!("calls")), "{answer}");
        assert_eq!(answer["grain"], unit);
        let sum: i64 = by(answer, "at").values().sum();
        assert_eq!(sum, 6, "what is not there is 0: {answer}");
    }
}

#[tokio::test]
async fn two_instances_over_one_database_add_up() {
    let app = TestApp::with(|_| {});
    let beside = app.beside();
    let team = app.team().await;
    let (_, program) = program(&team, &["projects:read"]).await;
    for _ in 0..3 {
        program.get("/projects").await.expect(200);
    }
    for _ in 0..2 {
        program.at(&beside).get("/projects").await.expect(200);
    }
    within(6, "all of them are there", || async {
        total(&team.owner, "metric=api_calls").await == 5 && stored_calls(&team).await == 5
    })
    .await;
    // Each knows what the other has counted as soon as it writes again.
    program.get("/projects").await.expect(200);
    flush(&app.app).unwrap();
    let organization = team.id.parse().unwrap();
    assert_eq!(app.app.meter.calls(organization, app.app.clock.now()), Some(6));
}

/// Wherever a flush comes to its end, the next one does all of it, once.
#[tokio::test]
async fn what_a_failed_flush_could_not_write_is_kept_and_counts_once() {
    let app = TestApp::with(|_| {});
    to_mid_month(&app).await;
    let team = app.team().await;
    let (quiet, key, now) = (quiet(&app), Uuid::now_v7(), app.app.clock.now());
    let organization: Uuid = team.id.parse().unwrap();
    let count = |times: usize| {
        (0..times).for_each(|_| quiet.meter.count(organization, Some(key), "projects", now));
    };
    count(1);
    assert_eq!(quiet.meter.calls(organization, now), None, "nobody knows before the first flush");
    flush(&quiet).unwrap();
    assert_eq!(quiet.meter.calls(organization, now), Some(1));
    let mut expected = 1;
    for table in ["usage_batches", "usage_records", "api_call_months"] {
        count(2);
        app.sql(&format!("alter table platform.{table} rename to away")).await;
        assert!(flush(&quiet).is_err(), "{table}");
        count(1);
        assert!(flush(&quiet).is_err(), "{table}");
        expected += 3;
        assert_eq!(quiet.meter.calls(organization, now), Some(expected), "{table}");
        app.sql(&format!("alter table platform.away rename to {table}")).await;
        flush(&quiet).unwrap();
        flush(&quiet).unwrap();
        assert_eq!(quiet.meter.calls(organization, now), Some(expected), "{table}");
        assert_eq!(stored_calls(&team).await, expected, "{table}");
        assert_eq!(total(&team.owner, "metric=api_calls").await, expected, "{table}");
    }
}

/// Nobody hears the answer to a commit that was carried out: the batch is written again, and is known.
#[tokio::test]
async fn a_batch_whose_commit_was_not_answered_counts_once() {
    let app = TestApp::with(|_| {});
    to_mid_month(&app).await;
    let team = app.team().await;
    let (quiet, key, now) = (quiet(&app), Uuid::now_v7(), app.app.clock.now());
    let organization: Uuid = team.id.parse().unwrap();
    let count = |times: usize| {
        (0..times).for_each(|_| quiet.meter.count(organization, Some(key), "projects", now));
    };
    count(1);
    flush(&quiet).unwrap();
    for sql in [
        "create function platform.take_long() returns trigger language plpgsql as \
         'begin perform pg_sleep(1.5); return null; end'",
        "create constraint trigger take_long after insert on platform.usage_batches \
         deferrable initially deferred for each row execute function platform.take_long()",
    ] {
        app.sql(sql).await;
    }
    count(3);
    let give_up = || {
        let inner = quiet.clone();
        on_the_servers_runtime(async move {
            tokio::time::timeout(Duration::from_millis(700), inner.meter.flush(&inner)).await.is_err()
        })
    };
    assert!(give_up(), "the commit takes longer than that");
    // On a busy machine it may have been given up before there was a commit.
    within(5, "it was committed all the same", || async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        let stored = stored_calls(&team).await == 4;
        if !stored {
            give_up();
        }
        stored
    })
    .await;
    assert_eq!(quiet.meter.calls(organization, now), Some(4));
    app.sql("drop trigger take_long on platform.usage_batches").await;
    count(2);
    assert_eq!(quiet.meter.calls(organization, now), Some(6));
    flush(&quiet).unwrap();
    assert_eq!(quiet.meter.calls(organization, now), Some(6));
    assert_eq!(stored_calls(&team).await, 6);
    assert_eq!(total(&team.owner, "metric=api_calls").await, 6);
}

#[tokio::test]
async fn programs_stop_at_the_limit_of_calls_people_go_on_and_the_next_month_is_new() {
    let app = TestApp::with(|_| {});
    to_mid_month(&app).await;
    let team = app.team().await;
    allow(&app, "starter", 5).await;
    team.plan("starter").await;
    let (_, program) = program(&team, &["projects:read"]).await;
    for _ in 0..3 {
        program.get("/projects").await.expect(200);
    }
    flush(&app.app).unwrap();
    // From then on every call is known here as it comes.
    for _ in 0..2 {
        program.get("/projects").await.expect(200);
    }
    for _ in 0..3 {
        let refused = program.get("/projects").await.refused(402, "PLAN_LIMIT_REACHED");
        let details = &refused["details"];
        assert_eq!((&details["resource"], &details["limit"]), (&json!("api_calls"), &json!(5)));
        assert_eq!((&details["used"], &details["plan"]), (&json!(5), &json!("starter")));
        assert_eq!(details["upgrade"], "professional");
    }
    team.owner.get("/projects").await.expect(200);
    flush(&app.app).unwrap();
    // What was refused is not counted.
    assert_eq!(stored_calls(&team).await, 5);
    // A larger plan opens at once, and a smaller one closes.
    team.plan("professional").await;
    within(3, "the plan is known", || async { program.get("/projects").await.status == 200 }).await;
    team.plan("starter").await;
    within(3, "the plan is known", || async { program.get("/projects").await.status == 402 }).await;
    let now = app.app.clock.now();
    let next = (now.date_naive().with_day(1).unwrap() + Months::new(1)).and_hms_opt(1, 0, 0).unwrap();
    app.app.clock.advance(next.and_utc() - now);
    program.get("/projects").await.expect(200);
    flush(&app.app).unwrap();
    roll_up(&app);
    let owner = log_in(&team).await;
    let months = used(&owner, "metric=api_calls&grain=month").await;
    let values: Vec<i64> =
        months["data"].as_array().unwrap().iter().map(|point| point["value"].as_i64().unwrap()).collect();
    assert_eq!(values[11], 1);
    assert!(values[10] > 5, "{values:?}");
}

#[tokio::test]
async fn a_rush_for_the_last_calls_of_a_month_is_over_with_the_next_flush() {
    let app = TestApp::with(|_| {});
    to_mid_month(&app).await;
    let beside = at_the_same_time(&app);
    let team = app.team().await;
    allow(&app, "starter", 20).await;
    team.plan("starter").await;
    let (_, program) = program(&team, &["projects:read"]).await;
    for (server, calls) in [(&app, 7), (&beside, 7), (&app, 1)] {
        for _ in 0..calls {
            program.at(server).get("/projects").await.expect(200);
        }
        flush(&server.app).unwrap();
    }
    assert_eq!(stored_calls(&team).await, 15);
    // One of them knows of 15 calls, the other of 14; neither hears of the other before it writes.
    let rush = (0..50).map(|n| {
        let program = program.at(if n % 2 == 0 { &app } else { &beside });
        async move { program.get("/projects").await.status.as_u16() }
    });
    let answers = join_all(rush).await;
    let let_in = answers.iter().filter(|status| **status == 200).count();
    assert!(answers.iter().all(|status| [200, 402].contains(status)), "{answers:?}");
    assert!((5..=15).contains(&let_in), "{let_in} were let in");
    for server in [&app, &beside] {
        flush(&server.app).unwrap();
    }
    assert_eq!(stored_calls(&team).await, 15 + let_in as i64);
    for server in [&app, &beside] {
        program.at(server).get("/projects").await.refused(402, "PLAN_LIMIT_REACHED");
    }
    team.owner.get("/projects").await.expect(200);
}

#[tokio::test]
async fn that_calls_run_out_is_told_once_at_four_fifths_and_once_at_the_end() {
    let app = TestApp::with(|_| {});
    to_mid_month(&app).await;
    let team = app.team().await;
    allow(&app, "starter", 5).await;
    team.plan("starter").await;
    let (_, program) = program(&team, &["projects:read"]).await;
    let told = |kind: &'static str, notice: &'static str| {
        let owner = team.owner.clone();
        async move {
            let events = owner.get(&format!("/events?type={kind}")).await.expect(200);
            let notices = owner.get(&format!("/notifications?kind={notice}")).await.expect(200);
            let count = |list: &Value| list["data"].as_array().unwrap().len();
            (count(&events), count(&notices))
        }
    };
    let approached = || told("limit.approached", "limit_approached");
    let reached = || told("limit.reached", "limit_reached");
    for _ in 0..3 {
        program.get("/projects").await.expect(200);
    }
    flush(&app.app).unwrap();
    assert_eq!((approached().await, reached().await), ((0, 0), (0, 0)));
    program.get("/projects").await.expect(200);
    flush(&app.app).unwrap();
    within(10, "four fifths are told", || async { approached().await == (1, 1) }).await;
    let events = team.owner.get("/events?type=limit.approached").await.expect(200);
    let expected = json!({"resource": "api_calls", "used": 4, "limit": 5, "plan": "starter", "percent": 80});
    assert_eq!(events["data"][0]["data"], expected);
    program.get("/projects").await.expect(200);
    flush(&app.app).unwrap();
    within(10, "the end is told", || async { reached().await == (1, 1) }).await;
    // Another instance, which does not know yet, lets one more through: nothing is told of it.
    let beside = at_the_same_time(&app);
    program.at(&beside).get("/projects").await.expect(200);
    flush(&beside.app).unwrap();
    program.at(&beside).get("/projects").await.refused(402, "PLAN_LIMIT_REACHED");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!((approached().await, reached().await), ((1, 1), (1, 1)));
}

/// The days of a metric as the table has them.
async fn stored_days(app: &TestApp, metric: &str) -> Vec<String> {
    app.texts(&format!(
        "select to_char(bucket at time zone 'UTC', 'YYYY-MM-DD') || ' ' || quantity from platform.usage_records \
         where grain = 'day' and metric = '{metric}' order by bucket"
    ))
    .await
}

#[tokio::test]
async fn hours_become_days_as_often_as_one_likes_and_old_hours_go() {
    let app = TestApp::with(|_| {});
    to_mid_month(&app).await;
    let team = app.team().await;
    let (quiet, key) = (quiet(&app), Uuid::now_v7());
    let organization: Uuid = team.id.parse().unwrap();
    let today = app.app.clock.now().date_naive();
    let day = |ago: u64| today - Days::new(ago);
    let count = |ago: u64, hour: u32, times: usize| {
        let at = day(ago).and_hms_opt(hour, 30, 0).unwrap().and_utc();
        (0..times).for_each(|_| quiet.meter.count(organization, Some(key), "projects", at));
    };
    count(40, 5, 2);
    count(34, 6, 3);
    count(2, 7, 4);
    count(2, 23, 1);
    count(0, 1, 6);
    flush(&quiet).unwrap();
    for _ in 0..2 {
        roll_up(&app);
        let line = |ago: u64, calls: i64| format!("{} {calls}", day(ago));
        assert_eq!(stored_days(&app, "api_calls").await, [line(40, 2), line(34, 3), line(2, 5)]);
        let hours =
            "select count(*) from platform.usage_records where grain = 'hour' and metric = 'api_calls'";
        assert_eq!(app.number(hours).await, 4, "those of 40 days ago are gone");
    }
    let since = format!("metric=api_calls&from={}", day(45));
    for query in [since.clone(), format!("{since}&grain=month"), format!("{since}&by=key")] {
        assert_eq!(total(&team.owner, &query).await, 16, "{query}");
    }
    let one = |ago: u64| format!("metric=api_calls&from={}&to={}", day(ago), day(ago));
    let of_hours = used(&team.owner, &format!("{}&grain=hour", one(2))).await;
    let of_hours = of_hours["data"].as_array().unwrap();
    assert_eq!((of_hours.len(), &of_hours[7]["value"], &of_hours[23]["value"]), (24, &json!(4), &json!(1)));
    // What comes late is seen at once, and is in the day when it is summed again.
    count(2, 9, 1);
    flush(&quiet).unwrap();
    assert_eq!(total(&team.owner, &one(2)).await, 6);
    roll_up(&app);
    assert_eq!(stored_days(&app, "api_calls").await.last().unwrap(), &format!("{} 6", day(2)));
    assert_eq!((total(&team.owner, &one(2)).await, total(&team.owner, &one(40)).await), (6, 2));
}

#[tokio::test]
async fn what_is_not_counted_is_measured_when_a_day_ends_and_asked_for_now() {
    let app = TestApp::with(|_| {});
    to_mid_month(&app).await;
    let team = app.team().await;
    team.plan("enterprise").await;
    team.project("One").await;
    team.join(Role::Member).await;
    roll_up(&app);
    let yesterday = app.app.clock.now().date_naive() - Days::new(1);
    let measured = |metric: &str| format!("metric={metric}&from={yesterday}&to={yesterday}");
    for (metric, value) in [("users", 2), ("projects", 1), ("storage", 0), ("workflows", 0)] {
        within(10, metric, || async {
            let answer = used(&team.owner, &measured(metric)).await;
            answer["data"].as_array().unwrap().len() == 1 && answer["data"][0]["value"] == value
        })
        .await;
    }
    // Once more, after it has changed: the day that is over stays as it was.
    team.project("Two").await;
    let now = used(&team.owner, "metric=projects").await;
    let values: Vec<&Value> = now["data"].as_array().unwrap().iter().map(|point| &point["value"]).collect();
    assert_eq!((values, &now["total"]), (vec![&json!(1), &json!(2)], &Value::Null));
    roll_up(&app);
    let again = used(&team.owner, &measured("projects")).await;
    assert_eq!((again["data"].as_array().unwrap().len(), &again["data"][0]["value"]), (1, &json!(1)));
    let month = used(&team.owner, "metric=projects&grain=month").await;
    assert_eq!(month["data"].as_array().unwrap().len(), 1);
    team.project("Three").await;
    assert_eq!(used(&team.owner, "metric=projects&grain=month").await["data"][0]["value"], 3);
    assert_eq!(used(&team.owner, "metric=storage").await["unit"], "bytes");
}

#[tokio::test]
async fn months_have_their_tables_ahead_of_time_and_lose_them_in_time() {
    let app = TestApp::with(|config| config.retention.usage_months = 2);
    to_mid_month(&app).await;
    let team = app.team().await;
    let (quiet, now) = (quiet(&app), app.app.clock.now());
    let organization: Uuid = team.id.parse().unwrap();
    quiet.meter.count(organization, Some(Uuid::now_v7()), "projects", now - TimeDelta::days(100));
    quiet.meter.count(organization, Some(Uuid::now_v7()), "projects", now);
    flush(&quiet).unwrap();
    let tables = || {
        app.texts(
            "select c.relname::text from pg_inherits i join pg_class c on c.oid = i.inhrelid \
             where i.inhparent = 'platform.usage_records'::regclass order by 1",
        )
    };
    let name = |day: NaiveDate| format!("usage_records_{:04}_{:02}", day.year(), day.month());
    let old = name((now - TimeDelta::days(100)).date_naive());
    assert!(tables().await.contains(&old));
    assert_eq!(stored_calls(&team).await, 2);
    for _ in 0..2 {
        roll_up(&app);
        let there = tables().await;
        assert!(!there.contains(&old), "{there:?}");
        for ahead in 0..=2 {
            let month = name(now.date_naive().with_day(1).unwrap() + Months::new(ahead));
            assert!(there.contains(&month), "{month} is not in {there:?}");
        }
    }
    assert_eq!(stored_calls(&team).await, 1);
    // One that is asked for again is made again.
    quiet.meter.count(organization, None, "projects", now - TimeDelta::days(100));
    flush(&quiet).unwrap_err();
    flush(&quiet).unwrap();
    assert!(tables().await.contains(&old));
}

#[tokio::test]
async fn questions_about_usage_that_make_no_sense_are_refused_by_field() {
    let app = TestApp::shared();
    let team = app.team().await;
    let today = app.app.clock.now().date_naive();
    let ago = |days: u64| today - Days::new(days);
    for (query, field) in [
        (String::new(), "metric"),
        ("metric=clicks".into(), "metric"),
        ("metric=api_calls&grain=week".into(), "grain"),
        ("metric=users&grain=hour".into(), "grain"),
        ("metric=api_calls&by=person".into(), "by"),
        ("metric=storage&by=key".into(), "by"),
        ("metric=api_calls&from=2026-02-30".into(), "from"),
        ("metric=api_calls&from=yesterday".into(), "from"),
        (format!("metric=api_calls&from={}&to={}", ago(1), ago(2)), "from"),
        (format!("metric=api_calls&from={}", ago(400)), "from"),
        (format!("metric=api_calls&grain=hour&from={}", ago(7)), "from"),
        (format!("metric=api_calls&grain=hour&from={}&to={}", ago(36), ago(33)), "from"),
        ("metric=api_calls&grain=month&from=2001-01-01".into(), "from"),
        (format!("metric=api_calls&to={}", today + Days::new(3)), "to"),
        ("metric=api_calls&to=9999-12-31".into(), "to"),
        ("metric=api_calls&since=2026-01-01".into(), "since"),
    ] {
        let answer = team.owner.get(&format!("/analytics/usage?{query}")).await;
        let error = answer.refused(400, "VALIDATION_ERROR");
        assert_eq!(error["fields"][0]["field"], field, "{query}: {error}");
    }
    // Where somebody is it may be tomorrow already.
    let tomorrow = format!("metric=api_calls&to={}", today + Days::new(1));
    used(&team.owner, &tomorrow).await;
}

#[tokio::test]
async fn who_may_read_analytics_sees_usage_and_only_their_own_organization_s() {
    let app = TestApp::shared();
    let (team, rival) = (app.team().await, app.team().await);
    let (id, seeing) = program(&team, &["analytics:read"]).await;
    let (_, blind) = program(&team, &["projects:read"]).await;
    blind.get("/projects").await.expect(200);
    seeing.get("/analytics/usage?metric=api_calls").await.expect(200);
    within(5, "both calls are seen", || async { total(&team.owner, "metric=api_calls").await == 2 }).await;
    let by_key = by(&used(&team.owner, "metric=api_calls&by=key").await, "key_id");
    assert_eq!(by_key[&id], 1);
    seeing.get(&team.path("/analytics")).await.expect(200);
    blind.get("/analytics/usage?metric=api_calls").await.refused(403, "PERMISSION_DENIED");
    blind.get(&team.path("/analytics")).await.refused(403, "PERMISSION_DENIED");
    let viewer = team.join(Role::Viewer).await.client;
    viewer.get("/analytics/usage?metric=api_calls").await.refused(403, "PERMISSION_DENIED");
    // The others have had no calls, whoever asks in whatever way.
    assert_eq!(total(&rival.owner, "metric=api_calls").await, 0);
    let by_key = used(&rival.owner, "metric=api_calls&by=key").await;
    assert_eq!(by_key["data"], json!([]));
    let inside = rival.founder.client.within(&team.id);
    inside.get("/analytics/usage?metric=api_calls").await.refused(404, "TENANT_NOT_FOUND");
    rival.founder.client.get(&team.path("/analytics")).await.refused(404, "TENANT_NOT_FOUND");
    rival.owner.get(&team.path("/analytics")).await.refused(400, "TENANT_MISMATCH");
    seeing.get(&rival.path("/analytics")).await.refused(400, "TENANT_MISMATCH");
}

fn time(value: &Value) -> DateTime<Utc> {
    value.as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn an_organization_s_figures_are_right_its_own_and_five_minutes_old_at_most() {
    let app = TestApp::with(|_| {});
    to_mid_month(&app).await;
    let (team, rival) = (app.team().await, app.team().await);
    team.plan("enterprise").await;
    let (_, program) = program(&team, &["projects:read"]).await;
    for _ in 0..2 {
        program.get("/projects").await.expect(200);
    }
    flush(&app.app).unwrap();
    team.join(Role::Member).await;
    let invitation = json!({"email": unique_email(), "role": "viewer"});
    team.owner.post(&team.path("/invitations"), invitation).await.expect(201);
    let project = team.project("One").await;
    let active = json!({"name": "Two", "status": "active"});
    team.owner.post("/projects", active).await.expect(201);
    let yesterday = app.app.clock.now().date_naive() - Days::new(1);
    let late = json!({"project_id": project["id"], "title": "Late", "due_date": yesterday});
    team.owner.post("/tasks", late).await.expect(201);
    team.task(&project, "Open").await;
    let done = team.task(&project, "Done").await;
    let path = format!("/tasks/{}", done["id"].as_str().unwrap());
    team.owner.patch(&path, json!({"status": "done"})).await.expect(200);

    let first = team.owner.get(&team.path("/analytics")).await.expect(200);
    let members = json!({"active": 2, "active_last_7_days": 1, "pending_invitations": 1});
    assert_eq!(first["members"], members);
    let usage = json!({"api_calls_this_month": 2, "api_calls_last_month": 0, "storage_bytes": 0});
    assert_eq!(first["usage"], usage);
    let projects = json!({"total": 2,
        "by_status": {"planning": 1, "active": 1, "completed": 0, "archived": 0}});
    let work = &first["modules"]["work"];
    assert_eq!(work["projects"], projects);
    let tasks = &work["tasks"];
    let counts: Vec<&Value> = ["total", "open", "done", "overdue"].iter().map(|name| &tasks[*name]).collect();
    assert_eq!(counts, [3, 2, 1, 1]);
    assert_eq!((&tasks["completion_rate"], &tasks["average_days_to_complete"]), (&json!(33.3), &json!(0.0)));
    let weeks = tasks["completed_by_week"].as_array().unwrap();
    let completed: Vec<&Value> = weeks.iter().map(|week| &week["completed"]).collect();
    assert_eq!(completed, [0, 0, 0, 0, 0, 0, 0, 1]);

    // Somebody else's are others, also right after.
    let others = rival.owner.get(&rival.path("/analytics")).await.expect(200);
    let members = json!({"active": 1, "active_last_7_days": 1, "pending_invitations": 0});
    assert_eq!(others["members"], members);
    assert_eq!(others["usage"]["api_calls_this_month"], 0);
    assert_eq!(others["modules"]["work"]["projects"]["total"], 0);
    assert_eq!(others["modules"]["work"]["tasks"]["completion_rate"], Value::Null);

    team.project("Three").await;
    app.app.clock.advance(TimeDelta::minutes(4));
    assert_eq!(team.owner.get(&team.path("/analytics")).await.expect(200), first);
    app.app.clock.advance(TimeDelta::minutes(1));
    let later = team.owner.get(&team.path("/analytics")).await.expect(200);
    assert_eq!(later["modules"]["work"]["projects"]["total"], 3);
    assert!(time(&later["computed_at"]) - time(&first["computed_at"]) >= TimeDelta::minutes(5));
    let again = rival.owner.get(&rival.path("/analytics")).await.expect(200);
    assert_eq!(again["modules"]["work"]["projects"]["total"], 0);
}
