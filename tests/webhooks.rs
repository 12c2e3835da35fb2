//! Webhooks: what a receiver gets, when, and what becomes of one that does not take it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use rowhouse::{auth::Role, config::Config};
use rustls::pki_types::PrivatePkcs8KeyDer;
use serde_json::{Value, json};
use standardwebhooks::Webhook;
use uuid::Uuid;

use crate::support::{
    Client, Team, TestApp, dns,
    receiver::{Received, Receiver, Reply, failing},
    within,
};

async fn subscribe(client: &Client, url: &str, events: &[&str]) -> Value {
    let new = json!({"name": "Test", "url": url, "events": events});
    client.post("/webhooks", new).await.expect(201)
}

fn path(webhook: &Value) -> String {
    format!("/webhooks/{}", webhook["id"].as_str().unwrap())
}

fn secret(webhook: &Value) -> &str {
    webhook["secret"].as_str().unwrap()
}

/// Deliveries of a webhook, newest first.
async fn deliveries(team: &Team, webhook: &Value, query: &str) -> Vec<Value> {
    let list = team.owner.get(&format!("{}/deliveries?limit=100{query}", path(webhook))).await.expect(200);
    list["data"].as_array().unwrap().clone()
}

/// The newest delivery with its attempts, once there are so many of them and this is how it stands. There
/// may be more: after the first one it waits for some seconds only.
async fn attempted(team: &Team, webhook: &Value, attempts: u64, status: &str) -> Value {
    let what = format!("{status} after {attempts} attempts");
    within(10, &what, || async {
        let all = deliveries(team, webhook, "").await;
        all.first()
            .is_some_and(|newest| newest["attempts"].as_u64() >= Some(attempts) && newest["status"] == status)
    })
    .await;
    let newest = deliveries(team, webhook, "").await.remove(0);
    detail(team, webhook, &newest).await
}

async fn detail(team: &Team, webhook: &Value, delivery: &Value) -> Value {
    let path = format!("{}/deliveries/{}", path(webhook), delivery["id"].as_str().unwrap());
    team.owner.get(&path).await.expect(200)
}

fn positions(received: &[Received]) -> Vec<i64> {
    received.iter().map(|request| request.json()["position"].as_i64().unwrap()).collect()
}

fn in_order(positions: &[i64]) -> bool {
    positions.windows(2).all(|pair| pair[0] < pair[1])
}

fn kinds(received: &[Received]) -> Vec<String> {
    received.iter().map(|request| request.json()["type"].as_str().unwrap().to_owned()).collect()
}

fn time(value: &Value) -> DateTime<Utc> {
    value.as_str().unwrap().parse().unwrap()
}

/// A time as it stands in a query.
fn stamp(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// For tests that move the clock by days: nobody has to log in again.
fn patient(config: &mut Config) {
    config.auth.access_token_minutes = 60 * 24 * 60;
}

/// Moves the clock to a moment.
fn wait_until(app: &TestApp, at: DateTime<Utc>) {
    let clock = &app.app.clock;
    clock.advance(at - clock.now() + TimeDelta::milliseconds(10));
}

/// Time in which something would have come that must not.
async fn a_while() {
    tokio::time::sleep(Duration::from_millis(1500)).await;
}

#[tokio::test]
async fn a_delivery_is_the_event_signed_as_standard_webhooks_says() {
    let app = TestApp::shared();
    let team = app.team().await;
    let receiver = Receiver::start().await;
    let webhook = subscribe(&team.owner, &receiver.at("/in?from=rowhouse"), &["project.created"]).await;
    let project = team.project("Signed").await;
    let request = receiver.wait_for(1).await.remove(0);
    let judge = Webhook::new(secret(&webhook)).unwrap();
    judge.verify(&request.body, &request.headers).unwrap();
    assert!(judge.verify(&[&request.body[..], b" "].concat(), &request.headers).is_err());
    let stranger = Webhook::new(&format!("whsec_{}", STANDARD.encode([7_u8; 32]))).unwrap();
    assert!(stranger.verify(&request.body, &request.headers).is_err());
    assert_eq!(
        (request.path.as_str(), request.header("content-type")),
        ("/in?from=rowhouse", "application/json")
    );
    let event = request.json();
    assert_eq!(event["id"], request.header("webhook-id"));
    assert_eq!((&event["type"], &event["data"]), (&json!("project.created"), &project));
    assert_eq!(event["organization_id"], team.id.as_str());
    assert!(event["position"].as_i64().unwrap() > 0);
    let told = team.owner.get("/events?type=project.created").await.expect(200);
    assert_eq!(told["data"][0], event, "the log tells the same");
    let delivered = attempted(&team, &webhook, 1, "delivered").await;
    assert_eq!((&delivered["event_id"], &delivered["response_status"]), (&event["id"], &json!(200)));
}

#[tokio::test]
async fn everybody_gets_what_they_asked_for_in_its_order_and_nothing_of_others() {
    let app = TestApp::shared();
    let (team, rival) = (app.team().await, app.team().await);
    let (all, projects, tasks, theirs) =
        (Receiver::start().await, Receiver::start().await, Receiver::start().await, Receiver::start().await);
    subscribe(&team.owner, &all.url(), &["*"]).await;
    subscribe(&team.owner, &projects.url(), &["project.created"]).await;
    subscribe(&team.owner, &tasks.url(), &["task.created", "task.deleted"]).await;
    subscribe(&rival.owner, &theirs.url(), &["*"]).await;
    let names: Vec<String> = (0..30).map(|n| format!("Project {n}")).collect();
    let made = futures_util::future::join_all(names.iter().map(|name| team.project(name))).await;
    for project in &made {
        team.task(project, "Begin").await;
    }
    let got = projects.wait_for(30).await;
    assert!(in_order(&positions(&got)), "{:?}", positions(&got));
    let got = tasks.wait_for(30).await;
    assert!(in_order(&positions(&got)), "{:?}", positions(&got));
    within(10, "all of it", || async {
        all.look(kinds).iter().filter(|kind| *kind == "task.created").count() == 30
    })
    .await;
    a_while().await;
    assert!(projects.look(kinds).iter().all(|kind| kind == "project.created") && projects.count() == 30);
    assert!(tasks.look(kinds).iter().all(|kind| kind == "task.created") && tasks.count() == 30);
    let got = all.received();
    assert!(in_order(&positions(&got)), "{:?}", positions(&got));
    assert!(kinds(&got).iter().any(|kind| kind == "webhook.created"), "* is everything: {:?}", kinds(&got));
    assert!(theirs.received().iter().all(|request| request.json()["organization_id"] == rival.id.as_str()));
}

#[tokio::test]
async fn a_secret_is_shown_once_and_replaced_with_an_overlap() {
    let app = TestApp::with(patient);
    let team = app.team().await;
    let receiver = Receiver::start().await;
    let webhook = subscribe(&team.owner, &receiver.url(), &["project.created"]).await;
    let rotate = format!("{}/rotate-secret", path(&webhook));
    team.owner.post(&rotate, json!({"overlap_hours": 169})).await.refused(400, "VALIDATION_ERROR");
    let rotated = team.owner.post(&rotate, json!({})).await.expect(200);
    assert_ne!(secret(&webhook), secret(&rotated));
    for place in [path(&webhook).as_str(), "/webhooks", "/events", "/audit-log"] {
        assert!(!team.owner.get(place).await.text.contains("whsec_"), "{place}");
    }
    let [old, new] = [&webhook, &rotated].map(|shown| Webhook::new(secret(shown)).unwrap());
    // The time in the request may be that of a clock which was moved, so this does not look at it.
    let signed = |judge: &Webhook, request: &Received| {
        let timestamp = request.header("webhook-timestamp").parse().unwrap();
        let expected = judge.sign(request.header("webhook-id"), timestamp, &request.body).unwrap();
        request.header("webhook-signature").split(' ').any(|signature| signature == expected)
    };
    team.project("While both are good").await;
    let request = receiver.wait_for(1).await.remove(0);
    assert_eq!(request.header("webhook-signature").split(' ').count(), 2);
    assert!(
        old.verify(&request.body, &request.headers).is_ok()
            && new.verify(&request.body, &request.headers).is_ok()
    );
    app.app.clock.advance(TimeDelta::hours(25));
    team.project("When one is").await;
    let request = receiver.wait_for(2).await.remove(1);
    assert_eq!(request.header("webhook-signature").split(' ').count(), 1);
    assert!(signed(&new, &request) && !signed(&old, &request));
    // Without an overlap the old one ends at once.
    let at_once = team.owner.post(&rotate, json!({"overlap_hours": 0})).await.expect(200);
    team.project("When another is").await;
    let request = receiver.wait_for(3).await.remove(2);
    assert!(signed(&Webhook::new(secret(&at_once)).unwrap(), &request) && !signed(&new, &request));
}

#[tokio::test]
async fn a_secret_of_one_s_own_is_taken_if_it_is_one() {
    let app = TestApp::shared();
    let team = app.team().await;
    let receiver = Receiver::start().await;
    let new = |secret: &str| json!({"name": "Own", "url": receiver.url(), "events": ["project.created"], "secret": secret});
    let encoded = |length: usize| format!("whsec_{}", STANDARD.encode(vec![9_u8; length]));
    for bad in ["", "whsec_", "whsec_not base64", &STANDARD.encode([9_u8; 32]), &encoded(23), &encoded(65)] {
        let error = team.owner.post("/webhooks", new(bad)).await.refused(400, "VALIDATION_ERROR");
        assert_eq!(error["fields"][0]["field"], "secret", "{bad}");
    }
    let webhook = team.owner.post("/webhooks", new(&encoded(24))).await.expect(201);
    assert_eq!(secret(&webhook), encoded(24));
    team.project("Signed").await;
    let request = receiver.wait_for(1).await.remove(0);
    Webhook::new(&encoded(24)).unwrap().verify(&request.body, &request.headers).unwrap();
}

#[tokio::test]
async fn what_is_refused_is_tried_again_for_a_day_while_later_events_go_on() {
    let app = TestApp::with(patient);
    let team = app.team().await;
    let receiver = Receiver::answering(|request| match request.mentions("Unwelcome") {
        true => Reply::status(500).saying("out of order"),
        false => Reply::status(200),
    })
    .await;
    let webhook = subscribe(&team.owner, &receiver.url(), &["project.created"]).await;
    team.project("Unwelcome").await;
    let first = attempted(&team, &webhook, 1, "pending").await;
    team.project("Welcome").await;
    attempted(&team, &webhook, 1, "delivered").await;
    let mut seen = first.clone();
    for (n, wait) in [5, 300, 1800, 7200, 18_000, 36_000, 36_000].into_iter().enumerate() {
        within(10, &format!("attempt {}", n + 1), || async {
            detail(&team, &webhook, &first).await["attempts"].as_u64() > Some(n as u64)
        })
        .await;
        seen = detail(&team, &webhook, &first).await;
        assert_eq!(seen["status"], "pending");
        // The first wait is short: on a busy machine it may be over.
        if seen["attempts"] != n + 1 {
            continue;
        }
        let next = time(&seen["next_attempt_at"]);
        let waits = (next - time(&seen["history"][n]["attempted_at"])).as_seconds_f64();
        let wait = f64::from(wait);
        assert!(waits >= wait && waits < wait * 1.1 + 60.0, "{waits} s after attempt {}", n + 1);
        wait_until(&app, next);
    }
    within(10, "given up", || async { detail(&team, &webhook, &first).await["status"] == "failed" }).await;
    let seen_last = detail(&team, &webhook, &first).await;
    assert_eq!((&seen_last["attempts"], &seen_last["next_attempt_at"]), (&json!(8), &json!(null)));
    let history = seen_last["history"].as_array().unwrap();
    assert_eq!(history.len(), 8);
    assert_eq!(&history[..7], seen["history"].as_array().unwrap());
    for attempt in history {
        assert_eq!(
            (&attempt["response_status"], &attempt["response_body"]),
            (&json!(500), &json!("out of order"))
        );
        assert_eq!(attempt["error"], "answered 500");
    }
    let ids: Vec<String> = receiver
        .received()
        .iter()
        .filter(|r| r.mentions("Unwelcome"))
        .map(|r| r.header("webhook-id").into())
        .collect();
    assert!(ids.len() == 8 && ids.iter().all(|id| *id == ids[0]), "one id, however often: {ids:?}");
    let webhook = team.owner.get(&path(&webhook)).await.expect(200);
    let counted = ["total_deliveries", "successful_deliveries", "failed_deliveries"]
        .map(|field| webhook[field].clone());
    assert_eq!(counted, [2, 1, 1]);
    assert_eq!((&webhook["is_active"], webhook["failing_since"].is_string()), (&json!(true), true));
}

#[tokio::test]
async fn a_receiver_that_recovers_gets_what_it_missed() {
    let app = TestApp::with(patient);
    let team = app.team().await;
    let receiver = Receiver::answering(failing(2)).await;
    let webhook = subscribe(&team.owner, &receiver.url(), &["project.created"]).await;
    team.project("Missed").await;
    within(10, "it is delivered", || async {
        app.app.clock.advance(TimeDelta::minutes(1));
        deliveries(&team, &webhook, "&status=delivered").await.len() == 1
    })
    .await;
    let seen = attempted(&team, &webhook, 3, "delivered").await;
    assert_eq!((&seen["error"], &seen["response_status"]), (&json!(null), &json!(200)));
    assert_eq!(team.owner.get(&path(&webhook)).await.expect(200)["failing_since"], json!(null));
}

#[tokio::test]
async fn a_receiver_may_say_when_to_come_back() {
    let app = TestApp::shared();
    let team = app.team().await;
    let receiver = Receiver::answering(|_| Reply::status(503).with("retry-after", "7200")).await;
    let webhook = subscribe(&team.owner, &receiver.url(), &["project.created"]).await;
    team.project("Later").await;
    let seen = attempted(&team, &webhook, 1, "pending").await;
    let wait = time(&seen["next_attempt_at"]) - time(&seen["history"][0]["attempted_at"]);
    assert!((TimeDelta::hours(2)..TimeDelta::hours(3)).contains(&wait), "{wait}");
}

#[tokio::test]
async fn a_receiver_that_is_gone_is_left_alone_at_once() {
    let app = TestApp::shared();
    let team = app.team().await;
    let (gone, other) = (
        Receiver::answering(|_| Reply::status(410).after(Duration::from_secs(10))).await,
        Receiver::start().await,
    );
    let webhook = subscribe(&team.owner, &gone.url(), &["project.created"]).await;
    subscribe(&team.owner, &other.url(), &["webhook.disabled"]).await;
    for name in ["One", "Two", "Three"] {
        team.project(name).await;
    }
    let told = other.wait_for(1).await[0].json();
    assert_eq!((&told["resource_id"], &told["actor_kind"]), (&webhook["id"], &json!("system")));
    assert_eq!(
        (&told["data"]["is_active"], &told["changes"]["is_active"]["before"]),
        (&json!(false), &json!(true))
    );
    let seen = team.owner.get(&path(&webhook)).await.expect(200);
    assert_eq!(seen["is_active"], false);
    assert!(seen["disabled_because"].as_str().unwrap().contains("410"), "{seen}");
    let all = deliveries(&team, &webhook, "&status=failed").await;
    assert_eq!(all.len(), 3, "what waited is given up");
    assert!(all[0]["error"].as_str().unwrap().contains("switched off"), "{}", all[0]);
    assert_eq!((&seen["total_deliveries"], &seen["failed_deliveries"]), (&json!(3), &json!(3)));
    a_while().await;
    assert_eq!(gone.count(), 1);
}

#[tokio::test]
async fn a_receiver_that_fails_for_five_days_is_switched_off() {
    let app = TestApp::with(patient);
    let team = app.team().await;
    let receiver = Receiver::answering(|_| Reply::status(500)).await;
    let webhook = subscribe(&team.owner, &receiver.url(), &["project.created"]).await;
    team.project("Never").await;
    let first = attempted(&team, &webhook, 1, "pending").await;
    let seen = || async { team.owner.get(&path(&webhook)).await.expect(200) };
    assert_eq!(seen().await["failing_since"], first["history"][0]["attempted_at"]);
    app.app.clock.advance(TimeDelta::hours(5 * 24 - 1));
    attempted(&team, &webhook, 2, "pending").await;
    assert_eq!(seen().await["is_active"], true);
    app.app.clock.advance(TimeDelta::hours(2));
    within(10, "it is switched off", || async { seen().await["is_active"] == false }).await;
    let off = seen().await;
    assert!(off["disabled_because"].as_str().unwrap().contains("5 days"), "{off}");
    assert!(deliveries(&team, &webhook, "&status=pending").await.is_empty());
    let told = team.owner.get("/events?type=webhook.disabled").await.expect(200);
    assert_eq!(told["data"][0]["resource_id"], webhook["id"]);
    // Switched on again it begins anew.
    receiver.answer(|_| Reply::status(200));
    let on = team.owner.patch(&path(&webhook), json!({"is_active": true})).await.expect(200);
    assert_eq!((&on["disabled_because"], &on["failing_since"]), (&json!(null), &json!(null)));
    team.project("Back").await;
    attempted(&team, &webhook, 1, "delivered").await;
}

#[tokio::test]
async fn receivers_that_hang_or_drip_hold_up_nobody_else() {
    let app = TestApp::shared();
    let (slow, quick) = (app.team().await, app.team().await);
    let bad = Receiver::answering(|request| match request.path.as_str() {
        "/drip" => Reply::drip(),
        _ => Reply::hang(),
    })
    .await;
    for path in ["/hang", "/drip", "/hang", "/drip", "/hang"] {
        subscribe(&slow.owner, &bad.at(path), &["project.created"]).await;
    }
    let (beside, elsewhere) = (Receiver::start().await, Receiver::start().await);
    subscribe(&slow.owner, &beside.url(), &["project.created"]).await;
    subscribe(&quick.owner, &elsewhere.url(), &["project.created"]).await;
    let start = Instant::now();
    slow.project("Stuck").await;
    quick.project("Begins").await;
    bad.wait_for(5).await;
    beside.wait_for(1).await;
    elsewhere.wait_for(1).await;
    for n in 2..5 {
        for (team, receiver) in [(&slow, &beside), (&quick, &elsewhere)] {
            let began = Instant::now();
            team.project("Quick").await;
            let arrived = receiver.wait_for(n).await.last().unwrap().at;
            // Those who hang are given up after thirty seconds.
            assert!(arrived - began < Duration::from_secs(20), "{:?}", arrived - began);
        }
    }
    if start.elapsed() < Duration::from_secs(28) {
        assert_eq!(bad.count(), 5, "one at a time");
    }
}

#[tokio::test]
async fn an_answer_that_never_ends_is_given_up_after_half_a_minute() {
    let app = TestApp::shared();
    let team = app.team().await;
    let receiver = Receiver::answering(|request| match request.path.as_str() {
        "/drip" => Reply::drip(),
        _ => Reply::hang(),
    })
    .await;
    let hanging = subscribe(&team.owner, &receiver.at("/hang"), &["project.created"]).await;
    let dripping = subscribe(&team.owner, &receiver.at("/drip"), &["project.created"]).await;
    team.project("Stuck").await;
    receiver.wait_for(2).await;
    tokio::time::sleep(Duration::from_secs(29)).await;
    for webhook in [&hanging, &dripping] {
        let seen = attempted(&team, webhook, 1, "pending").await;
        assert!(seen["error"].is_string() && seen["response_status"].is_null(), "{seen}");
        assert!((29_000..60_000).contains(&seen["duration_ms"].as_i64().unwrap()), "{seen}");
    }
}

#[tokio::test]
async fn of_a_huge_answer_the_beginning_is_read_and_kept() {
    let app = TestApp::shared();
    let team = app.team().await;
    let receiver = Receiver::answering(|_| Reply::huge()).await;
    let webhook = subscribe(&team.owner, &receiver.url(), &["project.created"]).await;
    team.project("Much said").await;
    let seen = attempted(&team, &webhook, 1, "delivered").await;
    let kept = seen["history"][0]["response_body"].as_str().unwrap();
    assert!(kept.len() == 16 * 1024 && kept.starts_with("xxx"), "{}", kept.len());
    assert!(seen["duration_ms"].as_i64().unwrap() < 25_000, "{}", seen["duration_ms"]);
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let app = TestApp::shared();
    let team = app.team().await;
    let inside = Receiver::start().await;
    let target = inside.at("/secret");
    let receiver = Receiver::answering(move |request| match request.path.as_str() {
        "/loop" => Reply::status(307).with("location", "/loop"),
        _ => Reply::status(302).with("location", &target),
    })
    .await;
    for path in ["/loop", "/elsewhere"] {
        let webhook = subscribe(&team.owner, &receiver.at(path), &["project.created"]).await;
        team.project("Sent on").await;
        let seen = attempted(&team, &webhook, 1, "pending").await;
        assert!(seen["error"].as_str().unwrap().contains("redirects are not followed"), "{seen}");
        team.owner.delete(&self::path(&webhook)).await.expect(204);
    }
    // Each once; or twice, as the wait after a first attempt is short.
    assert!((2..=4).contains(&receiver.count()) && inside.count() == 0);
}

#[tokio::test]
async fn addresses_that_lead_inside_are_refused() {
    let app = TestApp::shared();
    let strict = TestApp::with(|config| config.webhooks.allow_loopback = false);
    let inside = [
        "http://10.0.0.1/",
        "http://169.254.169.254/latest/meta-data",
        "http://[::ffff:10.0.0.1]/",
        "http://[fd00::1]/",
        "http://0x0a000001/",
        "http://user:pw@127.0.0.1/",
        "ftp://127.0.0.1/",
        "127.0.0.1",
    ];
    let this_machine = [
        "http://127.0.0.1/",
        "https://127.0.0.1/",
        "https://[::1]/",
        "https://2130706433/",
        "http://example.com/",
    ];
    for (app, addresses) in [(&app, &inside[..]), (&strict, &inside[..]), (&strict, &this_machine[..])] {
        let team = app.team().await;
        for url in addresses {
            let new = json!({"name": "Inside", "url": url, "events": ["project.created"]});
            let error = team.owner.post("/webhooks", new).await.refused(400, "VALIDATION_ERROR");
            assert_eq!(error["fields"][0]["field"], "url", "{url}: {error}");
        }
        let webhook = subscribe(&team.owner, "https://hooks.example.com/in", &["project.created"]).await;
        for url in addresses {
            let changed = team.owner.patch(&path(&webhook), json!({"url": url})).await;
            changed.refused(400, "VALIDATION_ERROR");
        }
    }
}

#[tokio::test]
async fn names_that_lead_inside_are_refused_when_they_do() {
    let app = TestApp::shared();
    let team = app.team().await;
    let receiver = Receiver::answering(|_| Reply::status(200).with("connection", "close")).await;
    let name = |what: &str| format!("{what}-{}.example.com", Uuid::now_v7().simple());
    let named = |name: &str| format!("http://{name}:{}/", receiver.port());
    for answers in [&["10.0.0.1"][..], &["127.0.0.1", "169.254.169.254"], &[]] {
        let name = name("inside");
        dns::set_addresses(&name, &[answers]);
        let webhook = subscribe(&team.owner, &named(&name), &["project.created"]).await;
        team.project("To a name").await;
        let seen = attempted(&team, &webhook, 1, "pending").await;
        let error = seen["error"].as_str().unwrap();
        assert!(error.contains("not a public address") || error.contains("not found in the DNS"), "{error}");
        team.owner.delete(&path(&webhook)).await.expect(204);
    }
    assert_eq!(receiver.count(), 0);
    // Good at first, something else a moment later.
    let name = name("rebound");
    dns::set_addresses(&name, &[&["127.0.0.1"], &["10.0.0.1"]]);
    let webhook = subscribe(&team.owner, &named(&name), &["project.created"]).await;
    team.project("First").await;
    attempted(&team, &webhook, 1, "delivered").await;
    team.project("Second").await;
    let seen = attempted(&team, &webhook, 1, "pending").await;
    assert!(seen["error"].as_str().unwrap().contains("leads to 10.0.0.1"), "{seen}");
    assert_eq!(receiver.count(), 1);
}

/// A TLS server whose certificate nobody vouches for.
fn unvouched() -> String {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let config = rustls::ServerConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .unwrap();
    let config = Arc::new(config);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}/", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut connection = rustls::ServerConnection::new(config.clone()).unwrap();
            let _ = connection.complete_io(&mut stream);
        }
    });
    url
}

#[tokio::test]
async fn a_certificate_that_nobody_vouches_for_is_not_trusted() {
    let app = TestApp::shared();
    let team = app.team().await;
    let webhook = subscribe(&team.owner, &unvouched(), &["project.created"]).await;
    team.project("Not told").await;
    let seen = attempted(&team, &webhook, 1, "pending").await;
    assert!(seen["error"].as_str().unwrap().contains("certificate"), "{seen}");
}

#[tokio::test]
async fn bad_webhooks_are_refused() {
    let app = TestApp::shared();
    let team = app.team().await;
    let url = "https://hooks.example.com/in";
    for (body, field) in [
        (json!({"url": url, "events": ["*"]}), "name"),
        (json!({"name": "x", "events": ["*"]}), "url"),
        (json!({"name": "x", "url": url}), "events"),
        (json!({"name": "x", "url": url, "events": []}), "events"),
        (json!({"name": "x", "url": url, "events": ["*", "project.exploded"]}), "events[1]"),
        (json!({"name": "x", "url": url, "events": ["webhook.test"]}), "events[0]"),
        (json!({"name": "x", "url": url, "events": ["*"], "colour": "red"}), "colour"),
    ] {
        let error = team.owner.post("/webhooks", body.clone()).await.refused(400, "VALIDATION_ERROR");
        assert_eq!(error["fields"][0]["field"], field, "{body}: {error}");
    }
    let webhook = subscribe(&team.owner, url, &["task.created", "project.created", "task.created"]).await;
    assert_eq!(webhook["events"], json!(["project.created", "task.created"]));
    for change in [json!({"events": []}), json!({"events": ["project.exploded"]}), json!({"url": null})] {
        team.owner.patch(&path(&webhook), change).await.refused(400, "VALIDATION_ERROR");
    }
    for _ in 1..50 {
        subscribe(&team.owner, url, &["domain.added"]).await;
    }
    let one_more = json!({"name": "x", "url": url, "events": ["*"]});
    team.owner.post("/webhooks", one_more).await.refused(409, "CONFLICT");
    assert_eq!(team.owner.get("/webhooks").await.expect(200)["total"], 50);
}

#[tokio::test]
async fn a_test_goes_to_one_webhook_only() {
    let app = TestApp::shared();
    let team = app.team().await;
    let (tried, other) = (Receiver::start().await, Receiver::start().await);
    let webhook = subscribe(&team.owner, &tried.url(), &["domain.added"]).await;
    subscribe(&team.owner, &other.url(), &["*"]).await;
    let test = format!("{}/test", path(&webhook));
    let answer = team.owner.post(&test, json!(null)).await;
    let location = answer.header("location").to_owned();
    let queued = answer.expect(202);
    assert_eq!((&queued["event_type"], &queued["status"]), (&json!("webhook.test"), &json!("pending")));
    let request = tried.wait_for(1).await.remove(0);
    let event = request.json();
    assert_eq!(
        (&event["type"], &event["data"]),
        (&json!("webhook.test"), &json!({"webhook_id": webhook["id"]}))
    );
    assert_eq!(event["id"], queued["event_id"]);
    Webhook::new(secret(&webhook)).unwrap().verify(&request.body, &request.headers).unwrap();
    attempted(&team, &webhook, 1, "delivered").await;
    let place = location.strip_prefix("/api/v1").unwrap();
    assert_eq!(team.owner.get(place).await.expect(200)["status"], "delivered");
    a_while().await;
    assert!(!other.look(kinds).contains(&"webhook.test".to_owned()), "{:?}", other.look(kinds));
    assert_eq!(tried.count(), 1);
    team.owner.patch(&path(&webhook), json!({"is_active": false})).await.expect(200);
    team.owner.post(&test, json!(null)).await.refused(409, "CONFLICT");
}

#[tokio::test]
async fn a_delivery_is_sent_again_at_one_s_wish() {
    let app = TestApp::shared();
    let team = app.team().await;
    let receiver = Receiver::start().await;
    let webhook = subscribe(&team.owner, &receiver.url(), &["project.created"]).await;
    team.project("Twice").await;
    let first = attempted(&team, &webhook, 1, "delivered").await;
    let replay = |delivery: &Value| {
        format!("{}/deliveries/{}/replay", path(&webhook), delivery["id"].as_str().unwrap())
    };
    let answer = team.owner.post(&replay(&first), json!(null)).await;
    assert!(answer.header("location").starts_with("/api/v1/webhooks/"));
    let second = answer.expect(202);
    assert_ne!(second["id"], first["id"]);
    let both = receiver.wait_for(2).await;
    assert_eq!(both[0].header("webhook-id"), both[1].header("webhook-id"));
    assert_eq!(both[0].body, both[1].body);
    receiver.answer(|_| Reply::status(500));
    team.project("On its way").await;
    let pending = attempted(&team, &webhook, 1, "pending").await;
    team.owner.post(&replay(&pending), json!(null)).await.refused(409, "CONFLICT");
    let replayed = team.owner.get("/events?type=webhook.replayed").await.expect(200);
    assert_eq!(
        (replayed["data"].as_array().unwrap().len(), &replayed["data"][0]["data"]),
        (1, &json!({"deliveries": 1}))
    );
}

#[tokio::test]
async fn a_time_is_sent_again_also_that_before_the_webhook() {
    let app = TestApp::shared();
    let team = app.team().await;
    let receiver = Receiver::start().await;
    let before = Utc::now() - TimeDelta::seconds(1);
    for name in ["One", "Two", "Three"] {
        let project = team.project(name).await;
        team.task(&project, "Not asked for").await;
    }
    within(10, "all is told", || async {
        team.owner.get("/events?type=task.created").await.expect(200)["data"]
            .as_array()
            .is_some_and(|told| told.len() == 3 && told.iter().all(|event| event["position"].is_i64()))
    })
    .await;
    let webhook = subscribe(&team.owner, &receiver.url(), &["project.created"]).await;
    let replay = format!("{}/replay", path(&webhook));
    let (from, to) = (before, Utc::now() + TimeDelta::minutes(1));
    let backwards =
        team.owner.post(&replay, json!({"from": to, "to": from})).await.refused(400, "VALIDATION_ERROR");
    assert_eq!(backwards["fields"][0]["field"], "to");
    let begun = team.owner.post(&replay, json!({"from": from, "to": to})).await.expect(200);
    assert_eq!(begun, json!({"deliveries": 3, "next_after": null}));
    let got = receiver.wait_for(3).await;
    assert!(in_order(&positions(&got)) && kinds(&got).iter().all(|kind| kind == "project.created"));
    let done = || async { deliveries(&team, &webhook, "&status=delivered").await.len() };
    within(10, "all is delivered", || async { done().await == 3 }).await;
    // What was delivered is sent again only to whoever says so.
    let again = team.owner.post(&replay, json!({"from": from, "to": to})).await.expect(200);
    assert_eq!(again["deliveries"], 0);
    let body = json!({"from": from, "to": to, "delivered_too": true});
    assert_eq!(team.owner.post(&replay, body).await.expect(200)["deliveries"], 3);
    receiver.wait_for(6).await;
    within(10, "all is delivered again", || async { done().await == 6 }).await;
    let none = json!({"from": from - TimeDelta::hours(1), "to": from});
    assert_eq!(team.owner.post(&replay, none).await.expect(200)["deliveries"], 0);
    team.owner.patch(&path(&webhook), json!({"is_active": false})).await.expect(200);
    team.owner.post(&replay, json!({"from": from, "to": to})).await.refused(409, "CONFLICT");
}

#[tokio::test]
async fn deliveries_are_filtered_and_paged() {
    let app = TestApp::shared();
    let team = app.team().await;
    let receiver = Receiver::answering(|request| {
        Reply::status(if request.mentions("\"task.created\"") { 500 } else { 200 })
    })
    .await;
    let webhook = subscribe(&team.owner, &receiver.url(), &["project.created", "task.created"]).await;
    let project = team.project("One").await;
    team.project("Two").await;
    let list = |query: String| {
        let (team, webhook) = (&team, &webhook);
        async move { deliveries(team, webhook, &query).await }
    };
    within(10, "two deliveries", || async { list("&status=delivered".into()).await.len() == 2 }).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    let middle = stamp(Utc::now());
    team.project("Three").await;
    within(10, "three deliveries", || async { list("&status=delivered".into()).await.len() == 3 }).await;
    team.task(&project, "Refused").await;
    within(10, "a refusal", || async {
        list("&status=pending".into()).await.iter().any(|delivery| delivery["attempts"].as_u64() >= Some(1))
    })
    .await;
    let all = list(String::new()).await;
    assert_eq!(all.len(), 4);
    assert!(all.windows(2).all(|pair| pair[0]["id"].as_str() > pair[1]["id"].as_str()), "newest first");
    let refused = &all[0];
    assert_eq!((&refused["event_type"], &refused["error"]), (&json!("task.created"), &json!("answered 500")));
    for (query, count) in [
        ("&status=pending".to_owned(), 1),
        ("&status=failed".to_owned(), 0),
        ("&event_type=task.created".to_owned(), 1),
        ("&event_type=project.created".to_owned(), 3),
        ("&event_type=project.created&status=pending".to_owned(), 0),
        (format!("&event_id={}", all[1]["event_id"].as_str().unwrap()), 1),
        (format!("&from={middle}"), 2),
        (format!("&to={middle}"), 2),
        (format!("&from={middle}&to={middle}"), 0),
    ] {
        assert_eq!(list(query.clone()).await.len(), count, "{query}");
    }
    let first = team.owner.get(&format!("{}/deliveries?limit=3", path(&webhook))).await.expect(200);
    let cursor = first["next_cursor"].as_str().unwrap();
    let rest =
        team.owner.get(&format!("{}/deliveries?limit=3&cursor={cursor}", path(&webhook))).await.expect(200);
    assert_eq!((&first["data"][2], &rest["data"][0]), (&all[2], &all[3]));
    assert_eq!((rest["data"].as_array().unwrap().len(), &rest["next_cursor"]), (1, &json!(null)));
    for bad in ["status=lost", "event_type=project.exploded", "event_id=1", "from=yesterday", "limit=101"] {
        let answer = team.owner.get(&format!("{}/deliveries?{bad}", path(&webhook))).await;
        answer.refused(400, "VALIDATION_ERROR");
    }
}

#[tokio::test]
async fn owners_and_admins_manage_webhooks_and_nobody_else() {
    let app = TestApp::shared();
    let team = app.team().await;
    let admin = team.join(Role::Admin).await;
    let webhook = subscribe(&admin.client, "https://hooks.example.com/in", &["*"]).await;
    assert_eq!(webhook["created_by"], admin.id.as_str());
    team.owner.get(&path(&webhook)).await.expect(200);
    for role in [Role::Manager, Role::Member, Role::Viewer] {
        let client = team.join(role).await.client;
        let new = json!({"name": "x", "url": "https://hooks.example.com/in", "events": ["project.created"]});
        client.post("/webhooks", new).await.refused(403, "PERMISSION_DENIED");
        for path in ["/webhooks".to_owned(), path(&webhook), format!("{}/deliveries", path(&webhook))] {
            client.get(&path).await.refused(403, "PERMISSION_DENIED");
        }
        client.patch(&path(&webhook), json!({"name": "Mine"})).await.refused(403, "PERMISSION_DENIED");
        client.delete(&path(&webhook)).await.refused(403, "PERMISSION_DENIED");
    }
}

/// Whoever may manage webhooks does not see by them what they may not see otherwise.
#[tokio::test]
async fn a_key_subscribes_only_to_what_it_may_see() {
    let app = TestApp::shared();
    let team = app.team().await;
    let url = "https://hooks.example.com/in";
    let key = async |scopes: &[&str]| {
        let key = team.owner.post("/api-keys", json!({"name": "P", "scopes": scopes})).await.expect(201);
        app.anonymous().header("x-api-key", key["key"].as_str().unwrap())
    };
    let narrow = key(&["webhooks:manage"]).await;
    let new = |kind: &str| json!({"name": "x", "url": url, "events": [kind]});
    for kind in ["project.created", "task.updated", "api_key.created", "*"] {
        narrow.post("/webhooks", new(kind)).await.refused(403, "PERMISSION_DENIED");
    }
    narrow.post("/webhooks", new("webhook.created")).await.expect(201);
    let existing = subscribe(&team.owner, url, &["project.created"]).await;
    let elsewhere = json!({"url": "https://thief.example.com/in"});
    narrow.patch(&path(&existing), elsewhere.clone()).await.refused(403, "PERMISSION_DENIED");
    assert_eq!(team.owner.get(&path(&existing)).await.expect(200)["url"], url);
    let wide = key(&["webhooks:manage", "projects:read"]).await;
    wide.post("/webhooks", new("project.created")).await.expect(201);
    wide.patch(&path(&existing), elsewhere).await.expect(200);
    wide.post("/webhooks", new("task.created")).await.refused(403, "PERMISSION_DENIED");
}

#[tokio::test]
async fn switching_off_gives_up_what_waits_and_deleting_removes_all_of_it() {
    let app = TestApp::shared();
    let team = app.team().await;
    let receiver = Receiver::answering(|_| Reply::status(500)).await;
    let webhook = subscribe(&team.owner, &receiver.url(), &["project.created"]).await;
    team.project("Waits").await;
    let waiting = attempted(&team, &webhook, 1, "pending").await;
    team.owner.patch(&path(&webhook), json!({"is_active": false})).await.expect(200);
    receiver.answer(|_| Reply::status(200));
    let given_up = detail(&team, &webhook, &waiting).await;
    assert_eq!((&given_up["status"], &given_up["next_attempt_at"]), (&json!("failed"), &json!(null)));
    assert!(given_up["error"].as_str().unwrap().contains("switched off"), "{given_up}");
    // What was on its way arrives.
    a_while().await;
    let before = receiver.count();
    team.project("While it is off").await;
    // Longer than the wait after the first attempt.
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert_eq!((receiver.count(), deliveries(&team, &webhook, "").await.len()), (before, 1));
    team.owner.patch(&path(&webhook), json!({"is_active": true})).await.expect(200);
    team.project("On again").await;
    attempted(&team, &webhook, 1, "delivered").await;
    team.owner.delete(&path(&webhook)).await.expect(204);
    team.owner.get(&path(&webhook)).await.refused(404, "NOT_FOUND");
    team.owner.get(&format!("{}/deliveries", path(&webhook))).await.refused(404, "NOT_FOUND");
    team.project("Nobody is told").await;
    a_while().await;
    assert_eq!(receiver.count(), before + 1);
}

#[tokio::test]
async fn a_change_of_what_was_not_read_last_is_refused() {
    let app = TestApp::shared();
    let team = app.team().await;
    let webhook = subscribe(&team.owner, "https://hooks.example.com/in", &["project.created"]).await;
    let path = path(&webhook);
    let first = team.owner.get(&path).await.header("etag").to_owned();
    let client = team.owner.header("if-match", &first);
    let renamed = client.patch(&path, json!({"name": "Renamed"})).await;
    assert_ne!(renamed.header("etag"), first);
    assert_eq!(renamed.expect(200)["name"], "Renamed");
    client.patch(&path, json!({"name": "Too late"})).await.refused(412, "PRECONDITION_FAILED");
    client.delete(&path).await.refused(412, "PRECONDITION_FAILED");
    assert_eq!(team.owner.get(&path).await.expect(200)["name"], "Renamed");
    let now = team.owner.get(&path).await.header("etag").to_owned();
    team.owner.header("if-match", &now).delete(&path).await.expect(204);
}

#[tokio::test]
async fn a_webhook_of_another_organization_does_not_exist() {
    let app = TestApp::shared();
    let (team, rival) = (app.team().await, app.team().await);
    let receiver = Receiver::start().await;
    let webhook = subscribe(&team.owner, &receiver.url(), &["project.created"]).await;
    team.project("Ours").await;
    let delivery = attempted(&team, &webhook, 1, "delivered").await;
    let (path, id) = (path(&webhook), delivery["id"].as_str().unwrap());
    for inner in [String::new(), "/deliveries".into(), format!("/deliveries/{id}")] {
        rival.owner.get(&format!("{path}{inner}")).await.refused(404, "NOT_FOUND");
    }
    let times = json!({"from": "2026-01-01T00:00:00Z", "to": "2036-01-01T00:00:00Z"});
    for (inner, body) in [
        ("/rotate-secret".to_owned(), json!({})),
        ("/test".to_owned(), json!(null)),
        ("/replay".to_owned(), times),
        (format!("/deliveries/{id}/replay"), json!(null)),
    ] {
        rival.owner.post(&format!("{path}{inner}"), body).await.refused(404, "NOT_FOUND");
    }
    rival.owner.patch(&path, json!({"name": "Ours now"})).await.refused(404, "NOT_FOUND");
    rival.owner.delete(&path).await.refused(404, "NOT_FOUND");
    // Nor is a delivery of one webhook found under another.
    let other = subscribe(&team.owner, &receiver.url(), &["project.created"]).await;
    team.owner.get(&format!("{}/deliveries/{id}", self::path(&other))).await.refused(404, "NOT_FOUND");
    assert_eq!(team.owner.get(&path).await.expect(200)["name"], "Test");
}

/// A receiver that says when to come back is left alone until then, whatever happens meanwhile.
#[tokio::test]
async fn a_busy_receiver_is_not_asked_again_before_its_time() {
    let app = TestApp::with(|config| config.auth.access_token_minutes = 100_000);
    let team = app.team().await;
    let receiver = Receiver::answering(|_| Reply::status(429).with("retry-after", "3600")).await;
    let webhook = json!({"name": "Busy", "url": receiver.url(), "events": ["project.created"]});
    team.owner.post("/webhooks", webhook).await.expect(201);
    team.project("First").await;
    within(5, "the first attempt", || async { receiver.count() == 1 }).await;
    for n in 0..5 {
        team.project(&format!("Later {n}")).await;
    }
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    assert_eq!(receiver.count(), 1);
    receiver.answer(|_| Reply::status(200));
    app.app.clock.advance(chrono::TimeDelta::seconds(3700));
    within(5, "all of it after the time", || async { receiver.count() == 7 }).await;
}

/// A dead receiver with a steady stream of events is tried less and less.
#[tokio::test]
async fn a_dead_receiver_is_tried_less_and_less() {
    let app = TestApp::shared();
    let team = app.team().await;
    let receiver = Receiver::answering(|_| Reply::status(500)).await;
    let webhook = json!({"name": "Dead", "url": receiver.url(), "events": ["project.created"]});
    team.owner.post("/webhooks", webhook).await.expect(201);
    let began = Instant::now();
    for n in 0..15 {
        team.project(&format!("P{n}")).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    within(5, "three tries", || async { receiver.count() >= 3 }).await;
    // After these the waits are of fifteen seconds and more.
    let (tries, most) = (receiver.count(), 4 + began.elapsed().as_secs() as usize / 15);
    assert!(tries <= most, "{tries}");
}
