//! Events: what happened in an organization, told once it is true, in an order without gaps.

use rowhouse::{
    audit::{Actor, Changes},
    auth::Role,
    events::{self, EventType},
    tenancy::{Tenant, fleet},
};
use serde_json::{Value, json};
use std::time::Duration;
use uuid::Uuid;

use crate::support::{
    Client, Team, TestApp, on_the_servers_runtime, receiver::Receiver, within, within_a_second,
};

/// What was told and this client may see, oldest first.
async fn told(client: &Client) -> Vec<Value> {
    let page = client.get("/events?after=0&limit=100").await.expect(200);
    page["data"].as_array().unwrap().clone()
}

/// The same, once there is so much of it.
async fn told_all(client: &Client, count: usize) -> Vec<Value> {
    within(5, &format!("{count} events"), || async { told(client).await.len() >= count }).await;
    told(client).await
}

fn kinds(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["type"].as_str().unwrap()).collect()
}

fn positions(events: &[Value]) -> Vec<i64> {
    events.iter().map(|event| event["position"].as_i64().unwrap()).collect()
}

fn path(kind: &str, object: &Value) -> String {
    format!("/{kind}/{}", object["id"].as_str().unwrap())
}

/// To be called on the servers' runtime, where its connections live.
async fn tenant(team: &Team) -> Tenant {
    fleet::tenant(&team.app.app.directory, &team.slug).await.unwrap().unwrap()
}

#[tokio::test]
async fn each_change_is_told_with_who_did_it_and_what_became_of_it() {
    let app = TestApp::shared();
    let team = app.team().await;
    let project = team.project("Old").await;
    let renamed = team.owner.patch(&path("projects", &project), json!({"name": "New"})).await.expect(200);
    let task = team.task(&project, "Begin").await;
    team.owner.patch(&path("tasks", &task), json!({"title": "Go on"})).await.expect(200);
    let done = team.owner.patch(&path("tasks", &task), json!({"status": "done"})).await.expect(200);
    team.owner.delete(&path("tasks", &task)).await.expect(204);
    team.owner.delete(&path("projects", &project)).await.expect(204);
    let events = told_all(&team.owner, 9).await;
    assert_eq!(
        kinds(&events),
        [
            "organization.created",
            "project.created",
            "project.updated",
            "task.created",
            "task.updated",
            "task.completed",
            "task.updated",
            "task.deleted",
            "project.deleted"
        ]
    );
    assert_eq!(positions(&events), (1..=9).collect::<Vec<i64>>());
    for event in &events {
        assert_eq!(event["organization_id"], team.id.as_str());
        assert_eq!((&event["actor_kind"], &event["api_key_id"]), (&json!("user"), &json!(null)));
        assert_eq!(event["actor_id"], team.founder.id.as_str());
    }
    for (place, object) in [(1, &project), (2, &renamed), (3, &task), (5, &done), (6, &done)] {
        assert_eq!((&events[place]["data"], &events[place]["resource_id"]), (object, &object["id"]));
    }
    assert_eq!(events[2]["changes"], json!({"name": {"before": "Old", "after": "New"}}));
    assert_eq!(events[4]["changes"], json!({"title": {"before": "Begin", "after": "Go on"}}));
    assert_eq!(events[5]["changes"], json!({}));
    assert_eq!(events[6]["changes"]["status"], json!({"before": "todo", "after": "done"}));
    assert_eq!((&events[7]["data"]["title"], &events[8]["data"]["name"]), (&json!("Go on"), &json!("New")));
}

#[tokio::test]
async fn a_program_acts_under_its_key() {
    let app = TestApp::shared();
    let team = app.team().await;
    let new = json!({"name": "Program", "scopes": ["projects:write"]});
    let key = team.owner.post("/api-keys", new).await.expect(201);
    let program = app.anonymous().header("x-api-key", key["key"].as_str().unwrap());
    program.post("/projects", json!({"name": "By a program"})).await.expect(201);
    let events = told_all(&team.owner, 3).await;
    assert_eq!(kinds(&events), ["organization.created", "api_key.created", "project.created"]);
    assert_eq!((&events[2]["actor_kind"], &events[2]["api_key_id"]), (&json!("api_key"), &key["id"]));
    assert_eq!(events[2]["actor_id"], team.founder.id.as_str(), "whoever made the key");
    assert!(!json!(events).to_string().contains(key["key"].as_str().unwrap()));
}

#[tokio::test]
async fn the_log_is_followed_by_position_and_filtered() {
    let app = TestApp::shared();
    let team = app.team().await;
    let (one, two) = (team.project("One").await, team.project("Two").await);
    team.owner.patch(&path("projects", &one), json!({"name": "Uno"})).await.expect(200);
    assert_eq!(told_all(&team.owner, 4).await.len(), 4);
    let list = async |query: &str| {
        let page = team.owner.get(&format!("/events?{query}")).await.expect(200);
        page["data"].as_array().unwrap().clone()
    };
    assert_eq!(positions(&list("after=2").await), [3, 4]);
    assert_eq!(positions(&list("after=1&limit=2").await), [2, 3]);
    assert!(list("after=4").await.is_empty());
    assert_eq!(positions(&list("").await), [4, 3, 2, 1], "newest first");
    assert_eq!(positions(&list("type=project.created").await), [3, 2]);
    assert_eq!(positions(&list("type=project.created&after=2").await), [3]);
    let of_one = format!("resource_id={}", one["id"].as_str().unwrap());
    assert_eq!(positions(&list(&of_one).await), [4, 2]);
    let first = team.owner.get("/events?limit=3").await.expect(200);
    let cursor = first["next_cursor"].as_str().unwrap();
    assert_eq!(positions(&list(&format!("limit=3&cursor={cursor}")).await), [1]);
    let both = format!("/events?after=1&cursor={cursor}");
    for bad in [both.as_str(), "/events?type=project.exploded", "/events?after=soon", "/events?limit=0"] {
        team.owner.get(bad).await.refused(400, "VALIDATION_ERROR");
    }
    let rival = app.team().await;
    let theirs = told_all(&rival.owner, 1).await;
    assert_eq!(kinds(&theirs), ["organization.created"]);
    let of_two = format!("/events?resource_id={}", two["id"].as_str().unwrap());
    assert_eq!(rival.owner.get(&of_two).await.expect(200)["data"], json!([]));
}

#[tokio::test]
async fn nobody_is_told_of_what_they_may_not_see() {
    let app = TestApp::shared();
    let team = app.team().await;
    let viewer = team.join(Role::Viewer).await.client;
    team.owner.post("/api-keys", json!({"name": "P", "scopes": ["projects:read"]})).await.expect(201);
    let new = json!({"name": "W", "url": "https://hooks.example.com/", "events": ["*"], "is_active": false});
    team.owner.post("/webhooks", new).await.expect(201);
    team.project("Seen by all").await;
    let all = told_all(&team.owner, 4).await;
    assert_eq!(
        kinds(&all),
        ["organization.created", "api_key.created", "webhook.created", "project.created"]
    );
    let seen = told(&viewer).await;
    assert_eq!(kinds(&seen), ["organization.created", "project.created"]);
    assert_eq!(seen[1], all[3], "the same position for everybody");
    for kind in ["api_key.created", "webhook.created"] {
        let page = viewer.get(&format!("/events?type={kind}")).await.expect(200);
        assert_eq!(page["data"], json!([]), "{kind}");
    }
    app.anonymous().within(&team.id).get("/events").await.refused(401, "AUTH_FAILED");
}

#[tokio::test]
async fn what_was_undone_never_happened() {
    let app = TestApp::shared();
    let team = app.team().await;
    let new = |name: &str| json!({"name": name, "slug": "taken"});
    team.owner.post("/projects", new("First")).await.expect(201);
    team.owner.post("/projects", new("Second")).await.refused(409, "CONFLICT");
    let undone = Uuid::now_v7();
    on_the_servers_runtime(async {
        let tx = tenant(&team).await.begin().await.unwrap();
        let changes = Changes::created(&json!({"name": "Undone"}));
        let what = EventType::ProjectCreated;
        events::record(&tx, &app.app, Actor::system(), what, undone, changes).await.unwrap();
        drop(tx);
    });
    team.project("Third").await;
    let events = told_all(&team.owner, 3).await;
    assert_eq!(kinds(&events), ["organization.created", "project.created", "project.created"]);
    assert_eq!(positions(&events), [1, 2, 3]);
    assert_eq!((&events[1]["data"]["name"], &events[2]["data"]["name"]), (&json!("First"), &json!("Third")));
    for list in ["events", "audit-log"] {
        let page = team.owner.get(&format!("/{list}?resource_id={undone}")).await.expect(200);
        assert_eq!(page["data"], json!([]), "{list}");
    }
}

/// Sequence numbers are taken before the commit. Whoever commits late has a smaller one than others
/// who were told already.
#[tokio::test]
async fn a_late_commit_is_neither_skipped_nor_waited_for() {
    let app = TestApp::shared();
    let team = app.team().await;
    let receiver = Receiver::start().await;
    let new = json!({"name": "All", "url": receiver.url(), "events": ["*"]});
    team.owner.post("/webhooks", new).await.expect(201);
    told_all(&team.owner, 2).await;
    let (late, id) = on_the_servers_runtime(async {
        let tx = tenant(&team).await.begin().await.unwrap();
        let changes = Changes::none(&json!({"name": "Late"}));
        let (what, resource) = (EventType::ProjectUpdated, Uuid::now_v7());
        let id = events::record(&tx, &app.app, Actor::system(), what, resource, changes).await.unwrap();
        (tx, id.to_string())
    });
    for n in 0..5 {
        team.project(&format!("Prompt {n}")).await;
    }
    within_a_second("the others are told", || async { told(&team.owner).await.len() == 7 }).await;
    on_the_servers_runtime(async { late.commit().await.unwrap() });
    within_a_second("the late one is told", || async { told(&team.owner).await.len() == 8 }).await;
    let events = told(&team.owner).await;
    assert_eq!(positions(&events), (1..=8).collect::<Vec<i64>>());
    assert_eq!((&events[7]["id"], &events[7]["actor_kind"]), (&json!(id), &json!("system")));
    let arrived = || receiver.received().iter().map(|request| request.json()).collect::<Vec<_>>();
    within_a_second("the receiver has it", || async {
        arrived().last().is_some_and(|last| last["id"] == id)
    })
    .await;
    let arrived = positions(&arrived());
    assert!(arrived.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{arrived:?}");
}

#[tokio::test]
async fn the_catalogue_lists_every_type_with_an_example() {
    let app = TestApp::shared();
    let catalogue = app.anonymous().get("/webhook-events").await.expect(200);
    let listed = catalogue["data"].as_array().unwrap();
    let names: Vec<&str> = EventType::ALL.iter().map(|kind| kind.name()).collect();
    assert_eq!(kinds(listed), names);
    for kind in listed {
        let (name, example) = (kind["type"].as_str().unwrap(), &kind["payload_example"]);
        for field in ["display_name", "description", "permission"] {
            assert!(kind[field].as_str().is_some_and(|text| !text.is_empty()), "{name} has no {field}");
        }
        assert_eq!((&example["type"], &example["schema_version"]), (&kind["type"], &kind["schema_version"]));
        assert!(example["data"].as_object().is_some_and(|data| !data.is_empty()), "{name} shows no data");
        assert!(example["position"].is_i64() && example["id"].is_string(), "{name}");
    }
}

/// The database goes away for a moment, again and again, while things happen.
#[tokio::test]
async fn a_database_that_restarts_in_the_middle_loses_nothing() {
    let app = TestApp::with(|_| {});
    let team = app.team().await;
    let receiver = Receiver::start().await;
    let webhook = json!({"name": "All", "url": receiver.url(), "events": ["project.created"]});
    team.owner.post("/webhooks", webhook).await.expect(201);
    // As a restart does: every connection ends at once.
    let other = TestApp::with(|_| {});
    let end_all = "select pg_terminate_backend(pid) from pg_stat_activity where datname = ";
    let name = app.database().rsplit('/').next().unwrap().split('?').next().unwrap().to_owned();
    for n in 0..60 {
        if n % 10 == 5 {
            other.sql(&format!("{end_all} '{name}'")).await;
        }
        let client = team.owner.header("idempotency-key", &format!("restart-{n}"));
        for _ in 0..50 {
            let answer = client.post("/projects", json!({"name": format!("P{n}")})).await;
            if answer.status == 201 {
                break;
            }
            if answer.text.contains("was carried out") {
                break;
            }
            assert!(answer.status.is_server_error() || answer.status == 409, "{}", answer.text);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    let made: Vec<String> = (0..60).map(|n| format!("P{n}")).collect();
    let told = || -> Vec<String> {
        let all = receiver.received();
        all.iter().map(|one| one.json()["data"]["name"].as_str().unwrap().to_owned()).collect()
    };
    within(40, "everything is told", || async {
        let told = told();
        made.iter().all(|name| told.contains(name))
    })
    .await;
    let mut first = told();
    let mut seen = std::collections::HashSet::new();
    first.retain(|id| seen.insert(id.clone()));
    assert_eq!(first, made);
}

async fn schema(app: &TestApp, team: &Team) -> String {
    let sql = "select 'tenant_' || replace(schema_id::text, '-', '') from platform.organizations where id";
    app.texts(&format!("{sql} = '{}'", team.id)).await.remove(0)
}

/// A newer version of the service told of something; this one must not stand still before it.
#[tokio::test]
async fn a_type_that_only_another_version_knows_stands_in_nobody_s_way() {
    let app = TestApp::shared();
    let team = app.team().await;
    let receiver = Receiver::start().await;
    let webhook = json!({"name": "All", "url": receiver.url(), "events": ["*"]});
    team.owner.post("/webhooks", webhook).await.expect(201);
    let (schema, id) = (schema(&app, &team).await, Uuid::now_v7());
    app.sql(&format!(
        "with e as (insert into {schema}.events (id, occurred_at, type, schema_version, actor_kind, resource_id, data, \
         changes) values ('{id}', now(), 'invoice.created', 1, 'system', '{id}', '{{}}', '{{}}') returning id) \
         insert into platform.outbox (organization_id, event_id) select '{}', id from e",
        team.id
    ))
    .await;
    team.project("After it").await;
    within(5, "what comes after it is told", || async {
        receiver.received().iter().any(|one| one.json()["type"] == "project.created")
    })
    .await;
    let seen = told(&team.owner).await;
    assert!(
        kinds(&seen).contains(&"project.created") && !kinds(&seen).contains(&"invoice.created"),
        "{seen:?}"
    );
}

/// One organization's tables are locked for a while; the others hear of theirs at once.
#[tokio::test]
async fn an_organization_that_is_locked_holds_up_no_other() {
    let app = TestApp::with(|config| config.database.pool_size = 8);
    let mut locked = Vec::new();
    for _ in 0..9 {
        locked.push(app.team().await);
    }
    let free = app.team().await;
    let mut schemas = Vec::new();
    for team in &locked {
        schemas.push(schema(&app, team).await);
    }
    let inner = app.app.clone();
    let (release, released) = tokio::sync::oneshot::channel::<()>();
    on_the_servers_runtime(async move {
        let tx = inner.db.begin().await.unwrap();
        for schema in &schemas {
            tx.command(&format!("lock table {schema}.webhooks in access exclusive mode")).await.unwrap();
        }
        tokio::spawn(async move {
            let _ = released.await;
            drop(tx);
        });
    });
    for team in &locked {
        team.project("Waits").await;
    }
    for n in 0..5 {
        free.project(&format!("Free {n}")).await;
        within(2, "the free one is told", || async {
            told(&free.owner).await.iter().any(|event| event["data"]["name"] == format!("Free {n}"))
        })
        .await;
    }
    for team in &locked {
        assert!(!kinds(&told(&team.owner).await).contains(&"project.created"));
    }
    release.send(()).unwrap();
    for team in &locked {
        within(5, "the others are told too", || async {
            kinds(&told(&team.owner).await).contains(&"project.created")
        })
        .await;
    }
}

/// A machine whose clock is ahead tells of something; the others send it at once all the same.
#[tokio::test]
async fn a_clock_that_is_ahead_delays_no_webhook() {
    let app = TestApp::with(|_| {});
    let team = app.team().await;
    let receiver = Receiver::start().await;
    let webhook = json!({"name": "All", "url": receiver.url(), "events": ["project.created"]});
    team.owner.post("/webhooks", webhook).await.expect(201);
    let (schema, now) = (schema(&app, &team).await, "now() + interval '10 minutes'");
    let project = team.project("Now").await;
    within(5, "it is sent", || async { receiver.count() == 1 }).await;
    // What a dispatcher that is ten minutes ahead would have written.
    let id = Uuid::now_v7();
    app.sql(&format!(
        "insert into {schema}.webhook_deliveries (id, webhook_id, event_id, event_type, position, status, \
         next_attempt_at, created_at) select '{id}', w.id, e.id, e.type, e.position, 'pending', {now}, {now} \
         from {schema}.webhooks w, {schema}.events e where e.resource_id = '{}'",
        project["id"].as_str().unwrap()
    ))
    .await;
    team.project("Next").await;
    within(5, "both are sent", || async { receiver.count() == 3 }).await;
}
