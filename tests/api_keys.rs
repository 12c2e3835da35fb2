//! API keys: what they open, for how long, and how they end.

use chrono::{TimeDelta, Utc};
use rowhouse::{
    app::App,
    auth::{Role, api_keys},
    clock::Clock,
    http,
};
use serde_json::{Value, json};

use crate::support::{Client, Team, TestApp, within, within_a_second};

async fn make(client: &Client, more: Value) -> Value {
    let mut body = json!({"name": "Program", "scopes": ["projects:read"]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    client.post("/api-keys", body).await.expect(201)
}

fn program(team: &Team, key: &Value) -> Client {
    team.app.anonymous().header("x-api-key", key["key"].as_str().unwrap())
}

fn path(key: &Value) -> String {
    format!("/api-keys/{}", key["id"].as_str().unwrap())
}

#[tokio::test]
async fn a_key_is_shown_once_and_names_its_organization() {
    let app = TestApp::shared();
    let team = app.team().await;
    let made = make(&team.owner, json!({"environment": "test", "description": "For the shop"})).await;
    let key = made["key"].as_str().unwrap();
    assert!(
        key.starts_with("rh_test_") && key.len() == 44 && key.starts_with(made["hint"].as_str().unwrap())
    );
    let seen = team.owner.get(&path(&made)).await;
    assert!(!seen.text.contains(key));
    let stored = format!("select count(*) from platform.api_keys k where k::text like '%{}%'", &key[14..]);
    assert_eq!(app.number(&stored).await, 0);
    let program = program(&team, &made);
    program.get("/projects").await.expect(200);
    program.within(&team.id).get("/projects").await.expect(200);
    let rival = app.team().await;
    program.within(&rival.id).get("/projects").await.refused(400, "TENANT_MISMATCH");
    program.within("no-such-team").get("/projects").await.refused(400, "TENANT_MISMATCH");
    let me = program.get("/api-keys/whoami").await.expect(200);
    assert_eq!((&me["organization_id"], &me["permissions"]), (&json!(team.id), &json!(["projects:read"])));
    team.owner.get("/api-keys/whoami").await.refused(401, "AUTH_FAILED");
    program.get("/auth/user").await.refused(401, "AUTH_FAILED");
    program.post("/projects", json!({"name": "x"})).await.refused(403, "PERMISSION_DENIED");
    program.get("/api-keys").await.refused(403, "PERMISSION_DENIED");
    let both = program.with_token(&team.founder.access_token);
    both.get("/projects").await.refused(401, "AUTH_FAILED");
}

#[tokio::test]
async fn bad_keys_are_refused_without_asking_the_database() {
    let app = TestApp::shared();
    let team = app.team().await;
    let made = make(&team.owner, json!({})).await;
    let key = made["key"].as_str().unwrap().to_owned();
    let mistyped = format!("{}{}", &key[..43], if key.ends_with('a') { 'b' } else { 'a' });
    for wrong in [mistyped.as_str(), "rh_live_", "nonsense", &key.replace("rh_live", "rh_test"), &key[..40]] {
        app.anonymous().header("x-api-key", wrong).get("/projects").await.refused(401, "AUTH_FAILED");
        assert_eq!(api_keys::hash(wrong), None);
    }
    // With the database away: a bad key is refused all the same, a good one has to wait for it.
    let mut config = crate::support::configuration("nowhere");
    config.database.url = "postgres://nobody@127.0.0.1:1/nowhere".to_owned().into();
    let nowhere = App::new(config, Clock::default()).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(http::serve(nowhere, listener, std::future::pending()));
    let away = TestApp { base, ..app.clone() }.anonymous();
    away.header("x-api-key", &mistyped).get("/projects").await.refused(401, "AUTH_FAILED");
    away.header("x-api-key", &key).get("/projects").await.refused(503, "SERVICE_UNAVAILABLE");
    server.abort();
    // Well formed, and nobody's.
    let (unknown, _) = api_keys::generate(api_keys::Environment::Live).unwrap();
    app.anonymous().header("x-api-key", &unknown).get("/projects").await.refused(401, "AUTH_FAILED");
}

#[tokio::test]
async fn a_key_never_does_more_than_its_maker_may() {
    let app = TestApp::shared();
    let team = app.team().await;
    let admin = team.join(Role::Admin).await;
    let wide = json!({"scopes": ["projects:read", "projects:write", "settings:manage"]});
    let key = make(&admin.client, wide.clone()).await;
    let program = program(&team, &key);
    let project = program.post("/projects", json!({"name": "By a program"})).await.expect(201);
    assert_eq!(project["created_by"], admin.id.as_str());
    // Nobody gives what they do not have, and some things take a person.
    let billing = json!({"name": "x", "scopes": ["billing:manage"]});
    admin.client.post("/api-keys", billing).await.refused(403, "PERMISSION_DENIED");
    for scopes in [json!(["api_keys:manage"]), json!(["organization:delete"]), json!([]), json!(["no:such"])]
    {
        let body = json!({"name": "x", "scopes": scopes});
        team.owner.post("/api-keys", body).await.refused(400, "VALIDATION_ERROR");
    }
    let manager = team.join(Role::Manager).await;
    manager
        .client
        .post("/api-keys", json!({"name": "x", "scopes": ["projects:read"]}))
        .await
        .refused(403, "PERMISSION_DENIED");
    // The maker's role changes, and with it what the key may do.
    let member = team.path(&format!("/members/{}", admin.id));
    team.owner.patch(&member, json!({"role": "viewer"})).await.expect(200);
    program.get("/projects").await.expect(200);
    program.post("/projects", json!({"name": "y"})).await.refused(403, "PERMISSION_DENIED");
    assert_eq!(program.get("/api-keys/whoami").await.expect(200)["permissions"], json!(["projects:read"]));
    team.owner.delete(&member).await.expect(204);
    program.get("/projects").await.refused(401, "AUTH_FAILED");
}

#[tokio::test]
async fn a_key_has_its_own_limit_its_addresses_and_its_end() {
    let app = TestApp::with(|config| config.http.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()]);
    let team = app.team().await;
    let slow = program(&team, &make(&team.owner, json!({"rate_per_hour": 3})).await);
    for _ in 0..3 {
        slow.get("/projects").await.expect(200);
    }
    let refused = slow.get("/projects").await;
    assert!(refused.header("ratelimit-policy").starts_with("\"api_key\";q=3;w=3600"));
    refused.refused(429, "RATE_LIMIT");
    let made = make(&team.owner, json!({"allowed_ips": ["203.0.113.0/24", "2001:db8::7"]})).await;
    assert_eq!(made["allowed_ips"], json!(["203.0.113.0/24", "2001:db8::7/128"]));
    let near = program(&team, &made);
    for (from, status) in
        [("203.0.113.99", 200), ("203.0.114.1", 403), ("2001:db8::7", 200), ("2001:db8::8", 403)]
    {
        assert_eq!(near.header("x-forwarded-for", from).get("/projects").await.status, status, "{from}");
    }
    let soon = Utc::now() + TimeDelta::hours(2);
    let made = make(&team.owner, json!({"expires_at": soon})).await;
    let short = program(&team, &made);
    short.get("/projects").await.expect(200);
    app.app.clock.advance(TimeDelta::hours(3));
    short.get("/projects").await.refused(401, "AUTH_FAILED");
    for bad in [
        json!({"rate_per_hour": 0}),
        json!({"allowed_ips": ["everywhere"]}),
        json!({"expires_at": "2020-01-01T00:00:00Z"}),
        json!({"environment": "staging"}),
    ] {
        let mut body = json!({"name": "x", "scopes": ["projects:read"]});
        body.as_object_mut().unwrap().extend(bad.as_object().unwrap().clone());
        // The owner's own token has expired by now.
        let owner = app.team().await.owner;
        owner.post("/api-keys", body).await.refused(400, "VALIDATION_ERROR");
    }
}

#[tokio::test]
async fn a_key_is_changed_revoked_and_seen_to_be_used() {
    let app = TestApp::shared();
    let there = app.beside();
    let team = app.team().await;
    let made = make(&team.owner, json!({})).await;
    let program = program(&team, &made);
    program.get("/tasks").await.refused(403, "PERMISSION_DENIED");
    let change = json!({"scopes": ["projects:read", "tasks:read"], "name": "Reader"});
    team.owner.patch(&path(&made), change).await.expect(200);
    program.at(&there).get("/tasks").await.expect(200);
    within(10, "its use is written", || async {
        team.owner.get(&path(&made)).await.expect(200)["last_used_at"].is_string()
    })
    .await;
    assert_eq!(team.owner.get("/api-keys").await.expect(200)["total"], 1);
    team.owner.delete(&path(&made)).await.expect(204);
    program.get("/tasks").await.refused(401, "AUTH_FAILED");
    within_a_second("known elsewhere", || async { program.at(&there).get("/tasks").await.status == 401 })
        .await;
    assert_eq!(team.owner.get("/api-keys").await.expect(200)["total"], 0);
    let ended = team.owner.get("/api-keys?ended=true").await.expect(200);
    assert_eq!(ended["data"][0]["state"], "revoked");
    team.owner.patch(&path(&made), json!({"name": "x"})).await.refused(409, "CONFLICT");
    let rival = app.team().await;
    rival.owner.get(&path(&made)).await.refused(404, "NOT_FOUND");
}

#[tokio::test]
async fn a_rotated_key_works_beside_its_successor_for_a_while() {
    let app = TestApp::with(|config| config.auth.access_token_minutes = 60 * 24 * 2);
    let team = app.team().await;
    let old = make(&team.owner, json!({"scopes": ["projects:read", "projects:write"]})).await;
    let new =
        team.owner.post(&format!("{}/rotate", path(&old)), json!({"overlap_hours": 2})).await.expect(201);
    assert_eq!(new["scopes"], old["scopes"]);
    let (before, after) = (program(&team, &old), program(&team, &new));
    before.get("/projects").await.expect(200);
    after.get("/projects").await.expect(200);
    let again = team.owner.post(&format!("{}/rotate", path(&old)), json!({})).await;
    again.refused(409, "CONFLICT");
    app.app.clock.advance(TimeDelta::minutes(121));
    before.get("/projects").await.refused(401, "AUTH_FAILED");
    after.get("/projects").await.expect(200);
    let long = team.owner.post(&format!("{}/rotate", path(&new)), json!({"overlap_hours": 169})).await;
    long.refused(400, "VALIDATION_ERROR");
}

#[tokio::test]
async fn a_leaked_key_is_revoked_and_its_owner_told() {
    let app = TestApp::shared();
    let team = app.team().await;
    let made = make(&team.owner, json!({})).await;
    let report = json!({"key": made["key"], "source": "https://code.example.com/config.py"});
    app.anonymous().post("/leaked-keys", report.clone()).await.expect(204);
    program(&team, &made).get("/projects").await.refused(401, "AUTH_FAILED");
    let mail = app.mail(&team.founder.email, "was found in public").await;
    assert!(mail.text.contains(made["hint"].as_str().unwrap()) && mail.text.contains("code.example.com"));
    assert!(!mail.text.contains(made["key"].as_str().unwrap()));
    let seen = team.owner.get(&path(&made)).await.expect(200);
    assert_eq!(seen["revoked_because"], "leaked");
    // A second report, and one of a key that is nobody's, are answered alike.
    app.anonymous().post("/leaked-keys", report).await.expect(204);
    let (unknown, _) = api_keys::generate(api_keys::Environment::Live).unwrap();
    app.anonymous().post("/leaked-keys", json!({"key": unknown})).await.expect(204);
    app.anonymous()
        .post("/leaked-keys", json!({"key": "rh_live_nonsense"}))
        .await
        .refused(400, "VALIDATION_ERROR");
    let log = team.owner.get("/audit-log?action=api_key.leaked").await.expect(200);
    assert_eq!(log["data"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_program_repeats_safely_under_its_key() {
    let app = TestApp::shared();
    let team = app.team().await;
    let key = make(&team.owner, json!({"scopes": ["projects:read", "projects:write"]})).await;
    let client = program(&team, &key).header("idempotency-key", "import-1");
    let first = client.post("/projects", json!({"name": "Imported"})).await.expect(201);
    assert_eq!(client.post("/projects", json!({"name": "Imported"})).await.expect(201), first);
    team.owner.delete(&path(&key)).await.expect(204);
    client.post("/projects", json!({"name": "Imported"})).await.refused(401, "AUTH_FAILED");
}
