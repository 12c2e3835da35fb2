//! What every request passes: errors, headers, limits, conditional requests, idempotency, shutdown.

use std::time::Duration;

use chrono::TimeDelta;
use reqwest::Method;
use rowhouse::{app::App, auth::Role, clock::Clock, http, tenancy::fleet};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::oneshot};

use crate::support::{Answer, BUSY, PASSWORD, TestApp, configuration, unique_email, within};

#[tokio::test]
async fn every_answer_carries_a_request_id_and_security_headers() {
    let app = TestApp::shared();
    let answer = app.anonymous().header("x-request-id", "from-the-caller.1").get("/health").await;
    assert_eq!(answer.header("x-request-id"), "from-the-caller.1");
    for (name, value) in [
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
        ("referrer-policy", "no-referrer"),
        ("strict-transport-security", "max-age=31536000; includeSubDomains"),
        ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
    ] {
        assert_eq!(answer.header(name), value);
    }
    let answer = app.anonymous().header("x-request-id", "has spaces and \"quotes\"").get("/nowhere").await;
    assert!(uuid::Uuid::try_parse(answer.header("x-request-id")).is_ok());
    assert_eq!(answer.header("cache-control"), "no-cache, private");
    answer.refused(404, "NOT_FOUND");
}

#[tokio::test]
async fn the_framework_s_errors_have_the_one_shape() {
    let app = TestApp::shared();
    let team = app.team().await;
    let client = &team.owner;
    client.get("/nowhere").await.refused(404, "NOT_FOUND");
    let answer = client.request(Method::PUT, "/projects").send().await.unwrap();
    assert_eq!(answer.headers()["allow"], "GET, HEAD, POST");
    Answer::of(client.request(Method::PUT, "/projects")).await.refused(405, "METHOD_NOT_ALLOWED");
    client.raw(Method::POST, "/projects", "text/plain", "{}").await.refused(415, "UNSUPPORTED_MEDIA_TYPE");
    Answer::of(client.request(Method::POST, "/projects").body("{}"))
        .await
        .refused(415, "UNSUPPORTED_MEDIA_TYPE");
    client.get("/projects/not-a-uuid").await.refused(400, "VALIDATION_ERROR");
    client.get("/organizations/not-a-uuid").await.refused(400, "VALIDATION_ERROR");
    let zipped = client.header("content-encoding", "gzip").post("/projects", json!({"name": "x"})).await;
    zipped.refused(415, "UNSUPPORTED_MEDIA_TYPE");
}

#[tokio::test]
async fn bodies_over_a_mebibyte_are_refused_with_and_without_a_length() {
    let app = TestApp::shared();
    let team = app.team().await;
    let big = format!("{{\"name\": \"{}\"}}", "x".repeat(1_100_000));
    let with_length = team.owner.raw(Method::POST, "/projects", "application/json", big.clone()).await;
    with_length.refused(413, "PAYLOAD_TOO_LARGE");
    let pieces: Vec<Result<Vec<u8>, std::io::Error>> =
        big.into_bytes().chunks(60_000).map(|c| Ok(c.to_vec())).collect();
    let stream = reqwest::Body::wrap_stream(futures_util::stream::iter(pieces));
    let chunked = team.owner.raw(Method::POST, "/projects", "application/json", stream).await;
    chunked.refused(413, "PAYLOAD_TOO_LARGE");
    let just_fits = json!({"name": "x", "description": "y".repeat(20_000)});
    team.owner.post("/projects", just_fits).await.expect(201);
}

#[tokio::test]
async fn long_answers_are_compressed_for_those_who_ask() {
    let app = TestApp::shared();
    let plain = app.anonymous().get("/openapi.json").await;
    assert_eq!(plain.header("content-encoding"), "");
    assert!(plain.header("vary").contains("Accept-Encoding"));
    let request =
        app.http.get(format!("{}/openapi.json", app.base)).header("accept-encoding", "br;q=0, gzip");
    let response = request.send().await.unwrap();
    assert_eq!(response.headers()["content-encoding"], "gzip");
    let bytes = response.bytes().await.unwrap();
    assert!(bytes.starts_with(&[0x1f, 0x8b]) && bytes.len() * 3 < plain.text.len());
    let short = app.anonymous().header("accept-encoding", "gzip").get("/health").await;
    assert_eq!(short.header("content-encoding"), "");
}

#[tokio::test]
async fn browsers_may_call_from_the_base_domain_and_configured_origins_only() {
    let app = TestApp::with(|config| config.http.cors_origins = vec!["https://app.partner.test".into()]);
    let preflight = |origin: &'static str| {
        let request = app
            .http
            .request(Method::OPTIONS, format!("{}/api/v1/projects", app.base))
            .header("origin", origin)
            .header("access-control-request-method", "PATCH")
            .header("access-control-request-headers", "authorization, if-match, idempotency-key");
        async move { Answer::of(request).await }
    };
    for origin in ["http://acme.localhost:3000", "http://localhost:3000", "https://app.partner.test"] {
        let answer = preflight(origin).await;
        assert_eq!(answer.header("access-control-allow-origin"), origin);
        assert!(answer.header("access-control-allow-methods").contains("PATCH"));
        assert!(answer.header("access-control-allow-headers").contains("idempotency-key"));
        // An error can be read by the page that caused it.
        let error = app.anonymous().header("origin", origin).get("/auth/user").await;
        assert_eq!(error.header("access-control-allow-origin"), origin);
        error.refused(401, "AUTH_FAILED");
    }
    for origin in
        ["https://evil.test", "http://acme.localhost.evil.test", "https://app.partner.test.evil.test"]
    {
        assert_eq!(preflight(origin).await.header("access-control-allow-origin"), "");
        app.anonymous().header("origin", origin).get("/auth/user").await.refused(403, "PERMISSION_DENIED");
    }
}

#[tokio::test]
async fn versions_guard_against_lost_updates() {
    let app = TestApp::shared();
    let team = app.team().await;
    let project = team.project("Guarded").await;
    let path = format!("/projects/{}", project["id"].as_str().unwrap());
    let read = team.owner.get(&path).await;
    let tag = read.header("etag").to_owned();
    let unchanged = team.owner.header("if-none-match", &tag).get(&path).await;
    assert_eq!((unchanged.status.as_u16(), unchanged.text.as_str()), (304, ""));
    let changed = team.owner.header("if-match", &tag).patch(&path, json!({"name": "Second"})).await;
    assert_ne!(changed.header("etag"), tag);
    team.owner.header("if-none-match", &tag).get(&path).await.expect(200);
    team.owner
        .header("if-match", &tag)
        .patch(&path, json!({"name": "Lost"}))
        .await
        .refused(412, "PRECONDITION_FAILED");
    team.owner.header("if-match", &tag).delete(&path).await.refused(412, "PRECONDITION_FAILED");
    assert_eq!(team.owner.get(&path).await.expect(200)["name"], "Second");
    let several = format!("\"other\", {}", changed.header("etag"));
    team.owner.header("if-match", &several).patch(&path, json!({"name": "Third"})).await.expect(200);
    team.owner.header("if-match", "*").delete(&path).await.expect(204);
}

#[tokio::test]
async fn of_many_guarded_changes_at_once_one_wins() {
    let app = TestApp::shared();
    let team = app.team().await;
    let project = team.project("Contested").await;
    let path = format!("/projects/{}", project["id"].as_str().unwrap());
    let client = team.owner.header("if-match", "\"v1\"");
    let changes = (0..10).map(|n| client.patch(&path, json!({"name": format!("Writer {n}")})));
    let answers = futures_util::future::join_all(changes).await;
    assert_eq!(answers.iter().filter(|answer| answer.status == 200).count(), 1);
    assert_eq!(answers.iter().filter(|answer| answer.status == 412).count(), 9);
}

#[tokio::test]
async fn a_repeated_post_gets_the_first_answer() {
    let app = TestApp::shared();
    let team = app.team().await;
    let client = team.owner.header("idempotency-key", "once");
    let first = client.post("/projects", json!({"name": "Once"})).await;
    let second = client.post("/projects", json!({"name": "Once"})).await;
    assert_eq!(second.header("idempotent-replayed"), "true");
    for header in ["location", "etag", "content-type"] {
        assert_eq!(first.header(header), second.header(header));
    }
    assert_eq!(first.expect(201), second.expect(201));
    assert_eq!(team.owner.get("/projects").await.expect(200)["total"], 1);
    client.post("/projects", json!({"name": "Other"})).await.refused(409, "IDEMPOTENCY_CONFLICT");
    client.post("/tasks", json!({"name": "Once"})).await.refused(409, "IDEMPOTENCY_CONFLICT");
    // The key belongs to its user and to the organization of its request.
    let rival = app.team().await;
    rival
        .owner
        .header("idempotency-key", "once")
        .post("/projects", json!({"name": "Once"}))
        .await
        .expect(201);
    // An error that repeating cannot mend is an answer too.
    let client = team.owner.header("idempotency-key", "bad");
    let first = client.post("/projects", json!({"name": ""})).await;
    assert_eq!(client.post("/projects", json!({"name": ""})).await.text, first.text);
    let odd =
        team.owner.header("idempotency-key", "has spaces").post("/projects", json!({"name": "x"})).await;
    odd.refused(400, "VALIDATION_ERROR");
}

#[tokio::test]
async fn simultaneous_posts_with_one_key_do_it_once() {
    let app = TestApp::shared();
    let other = app.beside();
    let team = app.team().await;
    for round in 0..5 {
        let here = team.owner.header("idempotency-key", &format!("race-{round}"));
        let there = here.at(&other);
        let body = json!({"name": format!("Race {round}")});
        let posts = [&here, &there, &here, &there].map(|client| client.post("/projects", body.clone()));
        let answers = futures_util::future::join_all(posts).await;
        let texts: Vec<Value> = answers.into_iter().map(|answer| answer.expect(201)).collect();
        assert!(texts.windows(2).all(|pair| pair[0] == pair[1]));
    }
    assert_eq!(team.owner.get("/projects").await.expect(200)["total"], 5);
}

#[tokio::test]
async fn a_key_is_free_again_after_a_day_and_after_a_crash_before_the_change() {
    let app = TestApp::with(|config| config.auth.access_token_minutes = 60 * 24 * 60);
    let team = app.team().await;
    let client = team.owner.header("idempotency-key", "again");
    client.post("/projects", json!({"name": "Today"})).await.expect(201);
    app.app.clock.advance(TimeDelta::hours(25));
    client.post("/projects", json!({"name": "Tomorrow"})).await.expect(201);
    // As a crash leaves it: claimed, nothing done, nobody working on it.
    let crash = "update platform.idempotency_keys set status = null, sealed_body = null, committed";
    app.sql(&format!("{crash} = false")).await;
    app.app.clock.advance(TimeDelta::minutes(10));
    client.post("/projects", json!({"name": "After the crash"})).await.expect(201);
    // A crash between the commit and the stored answer: never done twice.
    app.sql(&format!("{crash} = true")).await;
    app.app.clock.advance(TimeDelta::minutes(10));
    client.post("/projects", json!({"name": "After the crash"})).await.refused(409, "IDEMPOTENCY_CONFLICT");
    assert_eq!(team.owner.get("/projects").await.expect(200)["total"], 3);
}

#[tokio::test]
async fn a_change_and_the_mark_on_its_key_are_committed_together() {
    let app = TestApp::with(|_| {});
    let team = app.team().await;
    team.owner.header("idempotency-key", "marked").post("/projects", json!({"name": "x"})).await.expect(201);
    team.owner
        .header("idempotency-key", "refused")
        .post("/projects", json!({}))
        .await
        .refused(400, "VALIDATION_ERROR");
    let marks = "select count(*) from platform.idempotency_keys where committed and key =";
    assert_eq!(app.number(&format!("{marks} 'marked'")).await, 1);
    assert_eq!(app.number(&format!("{marks} 'refused'")).await, 0);
}

#[tokio::test]
async fn registering_twice_with_one_key_makes_one_account_and_stores_no_readable_token() {
    let app = TestApp::with(|_| {});
    let client = app.anonymous().header("idempotency-key", "register-1");
    let body = json!({"email": unique_email(), "password": PASSWORD});
    let first = client.post("/auth/register", body.clone()).await.expect(201);
    assert_eq!(client.post("/auth/register", body).await.expect(201), first);
    let token = first["refresh_token"].as_str().unwrap();
    let readable = format!(
        "select count(*) from platform.idempotency_keys where position('{token}'::bytea in sealed_body) > 0"
    );
    assert_eq!(app.number(&readable).await, 0);
    assert_eq!(
        app.number("select count(*) from platform.idempotency_keys where sealed_body is not null").await,
        1
    );
}

#[tokio::test]
async fn a_request_that_takes_too_long_is_answered_and_undone() {
    let app = TestApp::with(|_| {});
    let hasty = app.beside_with(|config| config.http.request_timeout_seconds = 1);
    let team = app.team().await;
    let project = team.project("Held").await;
    let path = format!("/projects/{}", project["id"].as_str().unwrap());
    let holder = fleet::tenant(&app.app.directory, &team.slug).await.unwrap().unwrap();
    let tx = holder.begin().await.unwrap();
    tx.query("select id from projects for update", &[]).await.unwrap();
    let answer = team.owner.at(&hasty).patch(&path, json!({"name": "Late"})).await;
    assert_eq!(answer.header("retry-after"), "5");
    answer.refused(503, "SERVICE_UNAVAILABLE");
    drop(tx);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(team.owner.get(&path).await.expect(200)["name"], "Held");
}

#[tokio::test]
async fn without_a_database_the_service_lives_but_is_not_ready() {
    let mut config = configuration("nowhere");
    config.database.url = "postgres://nobody:secret-word@127.0.0.1:1/nowhere".to_owned().into();
    let app = App::new(config, Clock::default()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(http::serve(app, listener, std::future::pending()));
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    assert_eq!(Answer::of(client.get(format!("{base}/health"))).await.expect(200), json!({"status": "ok"}));
    let answer = Answer::of(client.get(format!("{base}/ready"))).await;
    assert!(answer.headers.contains_key("retry-after"));
    assert!(!answer.text.contains("secret-word") && !answer.text.contains("127.0.0.1"));
    answer.refused(503, "SERVICE_UNAVAILABLE");
    server.abort();
}

#[tokio::test]
async fn ready_tells_versions_and_health_needs_nothing() {
    let app = TestApp::shared();
    let ready = app.anonymous().get("/ready").await.expect(200);
    assert_eq!((&ready["status"], &ready["tenant_modules_behind"]), (&json!("ok"), &json!(0)));
    app.anonymous().get("/health").await.expect(200);
}

#[tokio::test]
async fn stopping_finishes_what_is_under_way() {
    let app = TestApp::with(|_| {});
    let team = app.team().await;
    let project = team.project("Under way").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let second = TestApp { base: format!("http://{}", listener.local_addr().unwrap()), ..app.clone() };
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(http::serve(app.app.clone(), listener, async move {
        let _ = stopped.await;
    }));
    let holder = fleet::tenant(&app.app.directory, &team.slug).await.unwrap().unwrap();
    let tx = holder.begin().await.unwrap();
    tx.query("select id from projects for update", &[]).await.unwrap();
    let client = team.owner.at(&second);
    let path = format!("/projects/{}", project["id"].as_str().unwrap());
    let under_way = tokio::spawn(async move { client.patch(&path, json!({"name": "Finished"})).await });
    app.held_up(1).await;
    stop.send(()).unwrap();
    let address = second.base.trim_start_matches("http://");
    within(2, "nobody is let in", || async { tokio::net::TcpStream::connect(address).await.is_err() }).await;
    assert!(!server.is_finished(), "the server waits for the request");
    drop(tx);
    assert_eq!(under_way.await.unwrap().expect(200)["name"], "Finished");
    tokio::time::timeout(BUSY * Duration::from_secs(5), server)
        .await
        .expect("the server ends")
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn the_documentation_can_be_browsed() {
    let app = TestApp::shared();
    let json = app.anonymous().get("/openapi.json").await;
    assert_eq!(json.header("content-type"), "application/json");
    let document = json.expect(200);
    let yaml = app.anonymous().get("/openapi.yaml").await;
    assert_eq!(yaml.status, 200);
    assert_eq!(serde_yaml::from_str::<Value>(&yaml.text).unwrap(), document);
    let page = app.anonymous().get("/docs").await;
    assert!(page.header("content-type").starts_with("text/html"));
    assert!(page.header("content-security-policy").contains("script-src 'unsafe-inline'"));
    assert!(page.text.contains("create_project") && page.text.contains("x-permission"));
}

/// A browser's cache holds one answer for a path, whoever is logged in.
#[tokio::test]
async fn one_person_s_answer_is_never_confirmed_to_another() {
    let app = TestApp::shared();
    let team = app.team().await;
    let other = app.person().await;
    let seen = team.founder.client.get("/auth/user").await;
    assert!(seen.header("vary").contains("Authorization"));
    let asked = other.client.header("if-none-match", seen.header("etag")).get("/auth/user").await;
    assert_eq!(asked.expect(200)["email"], other.email.as_str());
    // The caller's role is in the answer too.
    let (member, path) = (team.join(Role::Admin).await, team.path(""));
    let as_admin = member.client.get(&path).await;
    let change = json!({"role": "viewer"});
    team.owner.patch(&team.path(&format!("/members/{}", member.id)), change).await.expect(200);
    let asked = member.client.header("if-none-match", as_admin.header("etag")).get(&path).await;
    assert_eq!(asked.expect(200)["role"], "viewer");
}

#[tokio::test]
async fn a_stored_answer_is_not_told_to_somebody_who_was_shut_out() {
    let app = TestApp::shared();
    let team = app.team().await;
    let person = team.join(Role::Manager).await;
    let client = person.client.header("idempotency-key", "before");
    client.post("/projects", json!({"name": "Before"})).await.expect(201);
    team.owner.delete(&team.path(&format!("/members/{}", person.id))).await.expect(204);
    client.post("/projects", json!({"name": "Before"})).await.refused(404, "TENANT_NOT_FOUND");
    let client = team.owner.header("idempotency-key", "logout");
    client.post("/projects", json!({"name": "Logout"})).await.expect(201);
    team.owner.post("/auth/logout", json!(null)).await.expect(204);
    client.post("/projects", json!({"name": "Logout"})).await.refused(401, "AUTH_FAILED");
}

/// A client may send its old token with every request.
#[tokio::test]
async fn public_posts_honour_keys_whatever_credentials_come_along() {
    let app = TestApp::shared();
    let person = app.person().await;
    let client = person.client.with_token("expired.or.nonsense").header("idempotency-key", "refresh");
    let body = json!({"refresh_token": person.refresh_token});
    let first = client.post("/auth/refresh", body.clone()).await.expect(200);
    assert_eq!(client.post("/auth/refresh", body).await.expect(200), first);
    person.client.get("/auth/user").await.expect(200);
}

/// A schema that is built on the spot is committed before the organization is.
#[tokio::test]
async fn a_key_is_not_spent_on_what_was_only_prepared() {
    let app = TestApp::with(|config| config.tenancy.spare_schemas = 0);
    let team = app.team().await;
    let client = team.founder.client.header("idempotency-key", "prepared");
    let taken = json!({"name": "Prepared", "slug": team.slug});
    client.post("/organizations", taken).await.refused(409, "CONFLICT");
    let marked = "select count(*) from platform.idempotency_keys where key = 'prepared' and committed";
    assert_eq!(app.number(marked).await, 0);
    // The same for a refresh token that comes back: its session's end is not what was asked for.
    let body = json!({"refresh_token": team.founder.refresh_token});
    let anybody = app.anonymous();
    anybody.post("/auth/refresh", body.clone()).await.expect(200);
    let client = anybody.header("idempotency-key", "reused");
    client.post("/auth/refresh", body.clone()).await.refused(401, "AUTH_FAILED");
    client.post("/auth/refresh", body).await.refused(401, "AUTH_FAILED");
}

#[tokio::test]
async fn a_page_can_read_every_error_and_may_call_its_own_host() {
    let app = TestApp::shared();
    let origin = "http://acme.localhost:3000";
    let page = app.anonymous().header("origin", origin);
    let big = page.raw(Method::POST, "/auth/login", "application/json", "x".repeat(1_100_000)).await;
    assert_eq!(big.header("access-control-allow-origin"), origin);
    big.refused(413, "PAYLOAD_TOO_LARGE");
    let zipped = page.header("content-encoding", "gzip").post("/auth/login", json!({})).await;
    assert_eq!(zipped.header("access-control-allow-origin"), origin);
    zipped.refused(415, "UNSUPPORTED_MEDIA_TYPE");
    // Browsers name the origin with every write, also to the page's own host.
    let own = app.base.clone();
    app.anonymous()
        .header("origin", &own)
        .post("/auth/login", json!({}))
        .await
        .refused(400, "VALIDATION_ERROR");
}

/// Permission is asked when the body is there, not when the request began.
#[tokio::test]
async fn a_slow_body_does_not_keep_a_lost_role_alive() {
    let app = TestApp::shared();
    let team = app.team().await;
    let (admin, accomplice) = (team.join(Role::Admin).await, team.join(Role::Viewer).await);
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel::<Result<Vec<u8>, std::io::Error>>();
    let pieces = futures_util::stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|piece| (piece, receiver))
    });
    sender.send(Ok(b"{\"role\":".to_vec())).unwrap();
    let (client, path) = (admin.client.clone(), team.path(&format!("/members/{}", accomplice.id)));
    let slow = tokio::spawn(async move {
        client
            .raw(Method::PATCH, &path, "application/json", reqwest::Body::wrap_stream(Box::pin(pieces)))
            .await
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let demotion = json!({"role": "viewer"});
    team.owner.patch(&team.path(&format!("/members/{}", admin.id)), demotion).await.expect(200);
    sender.send(Ok(b" \"admin\"}".to_vec())).unwrap();
    drop(sender);
    slow.await.unwrap().refused(403, "PERMISSION_DENIED");
}
