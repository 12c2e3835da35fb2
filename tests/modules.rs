//! /organizations/{id}/modules, and /updates, which comes with one of them.

use std::{fs, io::Read, path::PathBuf};

use reqwest::Method;
use rowhouse::auth::{
    Role,
    sealing::{hex, sha256},
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{Answer, Client, Team, TestApp, within};

/// What is in place of a folder for backups.
fn folder() -> PathBuf {
    std::env::temp_dir().join(format!("rowhouse-test-modules-{}", Uuid::now_v7().simple()))
}

async fn put(client: &Client, path: &str) -> Answer {
    Answer::of(client.request(Method::PUT, path)).await
}

fn operations(team: &Team) -> String {
    team.path("/modules/operations")
}

async fn state(team: &Team) -> String {
    team.owner.get(&operations(team)).await.expect(200)["state"].as_str().unwrap().to_owned()
}

async fn becomes(team: &Team, wanted: &str) {
    within(30, wanted, || async { state(team).await == wanted }).await;
    // Whoever did the job has told everybody by and by.
    team.app.app.directory.forget(team.id.parse().unwrap());
}

async fn schema(team: &Team) -> String {
    let sql = format!(
        "select 'tenant_' || replace(schema_id::text, '-', '') from platform.organizations where id = '{}'",
        team.id
    );
    team.app.texts(&sql).await.remove(0)
}

/// The organization's events of this type, oldest first.
async fn told(team: &Team, kind: &str) -> Vec<Value> {
    let schema = schema(team).await;
    let sql = format!("select data::text from {schema}.events where type = '{kind}' order by id");
    team.app.texts(&sql).await.iter().map(|text| serde_json::from_str(text).unwrap()).collect()
}

/// A row as if somebody had asked and the job had been lost.
async fn asked(team: &Team, state: &str) {
    team.app
        .sql(&format!(
            "insert into platform.organization_modules (organization_id, module, state, requested_by, created_at, \
             updated_at) values ('{}', 'operations', '{state}', '{}', now(), now()) \
             on conflict (organization_id, module) do update set state = excluded.state",
            team.id, team.founder.id
        ))
        .await;
}

async fn announce(team: &Team, title: &str) -> Value {
    team.owner.post("/updates", json!({"title": title, "body": "Please read."})).await.expect(201)
}

#[tokio::test]
async fn modules_are_listed_with_what_they_hold_and_how_they_stand() {
    let app = TestApp::shared();
    let team = app.team().await;
    let viewer = team.join(Role::Viewer).await;
    let listed = viewer.client.get(&team.path("/modules")).await.expect(200);
    let modules = listed["data"].as_array().unwrap();
    let row = |module: &Value| (module["name"].clone(), module["state"].clone(), module["optional"].clone());
    assert_eq!(
        modules.iter().map(row).collect::<Vec<_>>(),
        [
            (json!("core"), json!("enabled"), json!(false)),
            (json!("work"), json!("enabled"), json!(false)),
            (json!("operations"), json!("disabled"), json!(true)),
        ]
    );
    assert_eq!(modules[2]["tables"], json!(["updates"]));
    let second = viewer.client.get(&team.path("/modules?page=2&page_size=2")).await.expect(200);
    assert_eq!((&second["total"], &second["data"][0]["name"]), (&json!(3), &json!("operations")));
    assert_eq!(viewer.client.get(&operations(&team)).await.expect(200), modules[2]);
}

#[tokio::test]
async fn what_a_module_brings_is_there_once_it_is_enabled_and_in_that_organization_only() {
    let app = TestApp::shared();
    let there = app.beside();
    let (team, rival) = (app.team().await, app.team().await);
    let refusal = team.owner.get("/updates").await.refused(403, "MODULE_NOT_ENABLED");
    assert_eq!(refusal["details"]["module"], "operations");
    let enable = refusal["details"]["enable"].as_str().unwrap().strip_prefix("/api/v1").unwrap().to_owned();
    assert_eq!(enable, operations(&team));
    team.owner.at(&there).get("/updates").await.refused(403, "MODULE_NOT_ENABLED");
    let answer = put(&team.owner, &enable).await;
    assert_eq!(answer.header("location"), format!("/api/v1{enable}"));
    let queued = answer.expect(202);
    assert_eq!(queued["requested_by"], team.founder.id);
    becomes(&team, "enabled").await;
    announce(&team, "We have announcements").await;
    within(1, "known everywhere", || async { team.owner.at(&there).get("/updates").await.status == 200 })
        .await;
    rival.owner.get("/updates").await.refused(403, "MODULE_NOT_ENABLED");
    assert_eq!(state(&rival).await, "disabled");
    let (requested, enabled) = (told(&team, "module.requested").await, told(&team, "module.enabled").await);
    assert_eq!((requested.len(), enabled.len()), (1, 1));
    assert_eq!((&requested[0]["state"], &enabled[0]["state"]), (&json!("enabling"), &json!("enabled")));
}

#[tokio::test]
async fn enabling_again_or_twice_at_once_is_enabling_once() {
    let app = TestApp::shared();
    let team = app.team().await;
    let path = operations(&team);
    let (one, two) = tokio::join!(put(&team.owner, &path), put(&team.owner, &path));
    one.expect(202);
    two.expect(202);
    becomes(&team, "enabled").await;
    announce(&team, "Still here").await;
    let again = put(&team.owner, &path).await.expect(202);
    assert_eq!(again["state"], "enabled");
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    assert_eq!(team.owner.get("/updates").await.expect(200)["total"], 1);
    assert_eq!(told(&team, "module.requested").await.len(), 1);
    assert_eq!(told(&team, "module.enabled").await.len(), 1);
}

#[tokio::test]
async fn a_module_that_is_being_enabled_is_not_open_yet_and_not_removed() {
    let app = TestApp::shared();
    let team = app.team().await;
    asked(&team, "enabling").await;
    assert_eq!(state(&team).await, "enabling");
    team.owner.get("/updates").await.refused(403, "MODULE_NOT_ENABLED");
    team.owner.delete(&operations(&team)).await.refused(409, "CONFLICT");
    // Asking again makes up for a job that was lost.
    put(&team.owner, &operations(&team)).await.expect(202);
    becomes(&team, "enabled").await;
    team.owner.get("/updates").await.expect(200);
}

#[tokio::test]
async fn a_module_that_is_being_removed_is_not_enabled_before_it_is_gone() {
    let app = TestApp::with(|config| config.backups.folder = Some(folder()));
    let team = app.team().await;
    team.enable("operations").await;
    asked(&team, "removing").await;
    put(&team.owner, &operations(&team)).await.refused(409, "CONFLICT");
    let path = operations(&team);
    let (one, two) = tokio::join!(team.owner.delete(&path), team.owner.delete(&path));
    assert!([one.status.as_u16(), two.status.as_u16()].iter().all(|status| [202, 404].contains(status)));
    becomes(&team, "disabled").await;
    assert_eq!(told(&team, "module.removed").await.len(), 1);
    put(&team.owner, &operations(&team)).await.expect(202);
    becomes(&team, "enabled").await;
}

#[tokio::test]
async fn what_was_asked_for_long_ago_and_forgotten_is_not_in_the_way() {
    let app = TestApp::with(|config| config.backups.folder = Some(folder()));
    let team = app.team().await;
    team.enable("operations").await;
    let jobs = format!(
        "select count(*) from platform.jobs where kind = 'change_module' and organization_id = '{}'",
        team.id
    );
    let settled = || within(10, "the job is settled", || async { app.number(&jobs).await == 0 });
    settled().await;
    let forgotten = format!(
        "update platform.organization_modules set updated_at = now() - interval '11 minutes' where organization_id = '{}'",
        team.id
    );
    asked(&team, "removing").await;
    put(&team.owner, &operations(&team)).await.refused(409, "CONFLICT");
    app.sql(&forgotten).await;
    put(&team.owner, &operations(&team)).await.expect(202);
    becomes(&team, "enabled").await;
    settled().await;
    asked(&team, "enabling").await;
    app.sql(&forgotten).await;
    team.owner.delete(&operations(&team)).await.expect(202);
    becomes(&team, "disabled").await;
}

#[tokio::test]
async fn nothing_is_removed_where_there_is_no_folder_for_it() {
    let app = TestApp::with(|config| config.backups.folder = None);
    let team = app.team().await;
    team.enable("operations").await;
    let told = team.owner.delete(&operations(&team)).await.refused(409, "CONFLICT");
    assert!(told["message"].as_str().unwrap().contains("BACKUPS_FOLDER"), "{told}");
    assert_eq!(state(&team).await, "enabled");
}

#[tokio::test]
async fn a_module_is_exported_and_removed_and_comes_back_empty() {
    let backups = folder();
    let place = backups.clone();
    let app = TestApp::with(move |config| config.backups.folder = Some(place));
    let (team, rival) = (app.team().await, app.team().await);
    for side in [&team, &rival] {
        side.enable("operations").await;
    }
    announce(&team, "The canteen is closed").await;
    announce(&rival, "Nobody else's business").await;
    let answer = team.owner.delete(&operations(&team)).await.expect(202);
    assert_eq!((&answer["state"], &answer["tables"]), (&json!("removing"), &json!(["updates"])));
    let file = answer["archive"]["file"].as_str().unwrap().to_owned();
    assert!(file.starts_with(&format!("{}/modules/operations-", team.id)), "{file}");
    becomes(&team, "disabled").await;
    team.owner.get("/updates").await.refused(403, "MODULE_NOT_ENABLED");
    let schema = schema(&team).await;
    let left = format!(
        "select count(*) from pg_class where relnamespace = '{schema}'::regnamespace and relname like 'updates%'"
    );
    assert_eq!(app.number(&left).await, 0);
    // What was there is in the archive, and the event says which file that is.
    let removed = told(&team, "module.removed").await.remove(0);
    assert_eq!((&removed["state"], &removed["archive"]["file"]), (&json!("disabled"), &json!(file)));
    let bytes = fs::read(backups.join(&file)).unwrap();
    assert_eq!(removed["archive"]["sha256"], hex(&sha256(&bytes)));
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(&bytes[..]).read_to_end(&mut plain).unwrap();
    let plain = String::from_utf8_lossy(&plain).into_owned();
    assert!(plain.contains("The canteen is closed") && !plain.contains("Nobody else's business"));
    team.owner.delete(&operations(&team)).await.refused(404, "NOT_FOUND");
    team.enable("operations").await;
    assert_eq!(team.owner.get("/updates").await.expect(200)["total"], 0);
    assert_eq!(rival.owner.get("/updates").await.expect(200)["total"], 1);
    fs::remove_dir_all(&backups).unwrap();
}

#[tokio::test]
async fn what_cannot_be_exported_is_not_removed() {
    // A file where the folder should be.
    let backups = folder();
    fs::write(&backups, "").unwrap();
    let place = backups.clone();
    let app = TestApp::with(move |config| config.backups.folder = Some(place));
    let team = app.team().await;
    team.enable("operations").await;
    announce(&team, "Keep me").await;
    team.owner.delete(&operations(&team)).await.expect(202);
    becomes(&team, "failed").await;
    let module = team.owner.get(&operations(&team)).await.expect(200);
    let told = module["error"].as_str().unwrap();
    assert!(told.contains("Ask for it again") && !told.contains(backups.to_str().unwrap()), "{told}");
    assert_eq!(team.owner.get("/updates").await.expect(200)["total"], 1);
    // Either way goes on from here.
    put(&team.owner, &operations(&team)).await.expect(202);
    becomes(&team, "enabled").await;
    fs::remove_file(&backups).unwrap();
    team.owner.delete(&operations(&team)).await.expect(202);
    becomes(&team, "disabled").await;
    fs::remove_dir_all(&backups).unwrap();
}

#[tokio::test]
async fn what_could_not_be_enabled_says_so_and_can_be_asked_for_again() {
    let app = TestApp::shared();
    let team = app.team().await;
    let schema = schema(&team).await;
    app.sql(&format!("create table {schema}.updates (id uuid primary key)")).await;
    put(&team.owner, &operations(&team)).await.expect(202);
    within(30, "a first failure", || async {
        team.owner.get(&operations(&team)).await.expect(200)["error"].is_string()
    })
    .await;
    becomes(&team, "failed").await;
    let told = team.owner.get(&operations(&team)).await.expect(200)["error"].to_string();
    assert!(told.contains("job") && !told.contains("updates"), "{told}");
    team.owner.get("/updates").await.refused(403, "MODULE_NOT_ENABLED");
    app.sql(&format!("drop table {schema}.updates")).await;
    put(&team.owner, &operations(&team)).await.expect(202);
    becomes(&team, "enabled").await;
    assert_eq!(team.owner.get(&operations(&team)).await.expect(200)["error"], json!(null));
    team.owner.get("/updates").await.expect(200);
}

#[tokio::test]
async fn a_module_that_failed_to_come_can_be_taken_back() {
    let app = TestApp::shared();
    let team = app.team().await;
    asked(&team, "failed").await;
    team.owner.delete(&operations(&team)).await.expect(202);
    becomes(&team, "disabled").await;
    assert_eq!(told(&team, "module.removed").await[0]["archive"], json!(null));
}

#[tokio::test]
async fn a_schema_that_holds_the_module_already_keeps_what_is_in_it() {
    let app = TestApp::shared();
    let team = app.team().await;
    team.enable("operations").await;
    announce(&team, "From before").await;
    // As after a restore: the schema has it, and nobody asked.
    let rows = format!("delete from platform.organization_modules where organization_id = '{}'", team.id);
    app.sql(&rows).await;
    assert_eq!(state(&team).await, "enabled");
    assert_eq!(put(&team.owner, &operations(&team)).await.expect(202)["state"], "enabled");
    // Also where it was asked for while that went on.
    asked(&team, "enabling").await;
    put(&team.owner, &operations(&team)).await.expect(202);
    becomes(&team, "enabled").await;
    assert_eq!(team.owner.get("/updates").await.expect(200)["data"][0]["title"], "From before");
}

#[tokio::test]
async fn a_module_waits_for_what_is_done_to_the_organization_as_a_whole() {
    let app = TestApp::shared();
    let team = app.team().await;
    let operation = Uuid::now_v7();
    app.sql(&format!(
        "insert into platform.fleet_operations (id, kind, organization_id, state, about, started_at, beat_at) \
         values ('{operation}', 'move', '{}', 'running', '{{}}', now(), now() + interval '1 minute')",
        team.id
    ))
    .await;
    put(&team.owner, &operations(&team)).await.expect(202);
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    assert_eq!(state(&team).await, "enabling");
    app.sql(&format!("update platform.fleet_operations set state = 'done' where id = '{operation}'")).await;
    becomes(&team, "enabled").await;
}

#[tokio::test]
async fn what_was_asked_for_is_done_also_when_the_organization_is_deleted_and_restored_meanwhile() {
    let app = TestApp::shared();
    let team = app.team().await;
    put(&team.owner, &operations(&team)).await.expect(202);
    team.owner.delete(&team.path("")).await.expect(204);
    team.owner.get(&operations(&team)).await.refused(404, "TENANT_NOT_FOUND");
    team.owner.post(&team.path("/restore"), json!({})).await.expect(200);
    becomes(&team, "enabled").await;
}

#[tokio::test]
async fn what_every_organization_has_stays_and_what_does_not_exist_is_not_found() {
    let app = TestApp::shared();
    let team = app.team().await;
    for module in ["core", "work"] {
        let path = team.path(&format!("/modules/{module}"));
        let told = team.owner.delete(&path).await.refused(409, "CONFLICT");
        assert!(told["message"].as_str().unwrap().contains(module), "{told}");
        assert_eq!(put(&team.owner, &path).await.expect(202)["state"], "enabled");
    }
    for nothing in ["trade2", "Operations", "shared", "%00", "operations%20"] {
        let path = team.path(&format!("/modules/{nothing}"));
        team.owner.get(&path).await.refused(404, "NOT_FOUND");
        put(&team.owner, &path).await.refused(404, "NOT_FOUND");
        team.owner.delete(&path).await.refused(404, "NOT_FOUND");
    }
    team.owner.delete(&operations(&team)).await.refused(404, "NOT_FOUND");
}

#[tokio::test]
async fn only_who_manages_settings_enables_and_removes() {
    let app = TestApp::shared();
    let (team, rival) = (app.team().await, app.team().await);
    for role in [Role::Viewer, Role::Member, Role::Manager] {
        let person = team.join(role).await;
        put(&person.client, &operations(&team)).await.refused(403, "PERMISSION_DENIED");
        person.client.delete(&operations(&team)).await.refused(403, "PERMISSION_DENIED");
        person.client.get(&operations(&team)).await.expect(200);
    }
    put(&rival.founder.client, &operations(&team)).await.refused(404, "TENANT_NOT_FOUND");
    put(&rival.owner, &operations(&team)).await.refused(400, "TENANT_MISMATCH");
    let admin = team.join(Role::Admin).await;
    put(&admin.client, &operations(&team)).await.expect(202);
    becomes(&team, "enabled").await;
}

#[tokio::test]
async fn a_module_is_changed_as_it_was_seen_or_not_at_all() {
    let app = TestApp::shared();
    let team = app.team().await;
    let path = operations(&team);
    let seen = |tag: &str| team.owner.header("if-match", tag);
    let before = team.owner.get(&path).await.header("etag").to_owned();
    put(&seen("\"v7\""), &path).await.refused(412, "PRECONDITION_FAILED");
    put(&seen(&before), &path).await.expect(202);
    becomes(&team, "enabled").await;
    seen(&before).delete(&path).await.refused(412, "PRECONDITION_FAILED");
}

#[tokio::test]
async fn an_update_keeps_everything_it_was_made_with() {
    let app = TestApp::shared();
    let team = app.team().await;
    team.enable("operations").await;
    let new = json!({"title": "Line 3 stands still", "body": "It is serviced.", "type": "warning",
        "priority": "high", "published_at": "2026-01-05T08:00:00Z", "expires_at": "2026-01-05T12:00:00Z"});
    let answer = team.owner.post("/updates", new.clone()).await;
    let location = answer.header("location").strip_prefix("/api/v1").unwrap().to_owned();
    let made = answer.expect(201);
    for (field, value) in new.as_object().unwrap() {
        assert_eq!(&made[field], value);
    }
    assert_eq!(made["author_id"], team.founder.id);
    assert_eq!(team.owner.get(&location).await.expect(200), made);
    let plain = announce(&team, "Plain").await;
    assert_eq!((&plain["type"], &plain["priority"]), (&json!("info"), &json!("medium")));
    assert_eq!((&plain["published_at"], &plain["expires_at"]), (&plain["created_at"], &json!(null)));
}

#[tokio::test]
async fn an_update_changes_field_by_field_and_null_empties() {
    let app = TestApp::shared();
    let team = app.team().await;
    team.enable("operations").await;
    let new = json!({"title": "Old", "body": "Old", "expires_at": "2999-01-01T00:00:00Z"});
    let made = team.owner.post("/updates", new).await.expect(201);
    let path = format!("/updates/{}", made["id"].as_str().unwrap());
    let change = json!({"title": "New", "type": "success", "expires_at": null});
    let changed = team.owner.patch(&path, change).await.expect(200);
    assert_eq!((&changed["title"], &changed["body"]), (&json!("New"), &json!("Old")));
    assert_eq!((&changed["type"], &changed["expires_at"]), (&json!("success"), &json!(null)));
    let stale = team.owner.header("if-match", "\"v1\"");
    stale.patch(&path, json!({"title": "Lost"})).await.refused(412, "PRECONDITION_FAILED");
    team.owner.patch(&path, json!({"body": null})).await.refused(400, "VALIDATION_ERROR");
    team.owner.delete(&path).await.expect(204);
    team.owner.get(&path).await.refused(404, "NOT_FOUND");
    team.owner.delete(&path).await.refused(404, "NOT_FOUND");
    for (kind, title) in [("created", "Old"), ("updated", "New"), ("deleted", "New")] {
        assert_eq!(told(&team, &format!("update.{kind}")).await[0]["title"], title, "{kind}");
    }
}

#[tokio::test]
async fn updates_are_filtered_sorted_and_paged() {
    let app = TestApp::shared();
    let team = app.team().await;
    team.enable("operations").await;
    for (title, kind, published, expires) in [
        ("Past", "info", "2020-01-01T00:00:00Z", json!("2020-02-01T00:00:00Z")),
        ("Now", "urgent", "2021-01-01T00:00:00Z", json!("2999-01-01T00:00:00Z")),
        ("For good", "info", "2022-01-01T00:00:00Z", json!(null)),
        ("Future", "info", "2998-01-01T00:00:00Z", json!(null)),
    ] {
        let new = json!({"title": title, "body": "x", "type": kind, "published_at": published, "expires_at": expires});
        team.owner.post("/updates", new).await.expect(201);
    }
    let titles = |query: &str| {
        let (client, path) = (team.owner.clone(), format!("/updates?{query}"));
        async move {
            let page = client.get(&path).await.expect(200);
            let all = page["data"].as_array().unwrap().iter();
            all.map(|update| update["title"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        }
    };
    assert_eq!(titles("").await, ["Future", "For good", "Now", "Past"]);
    assert_eq!(titles("state=current").await, ["For good", "Now"]);
    assert_eq!(titles("state=scheduled").await, ["Future"]);
    assert_eq!(titles("state=expired").await, ["Past"]);
    assert_eq!(titles("type=info&state=current").await, ["For good"]);
    assert_eq!(titles("priority=medium&sort=title&page=2&page_size=3").await, ["Past"]);
    for bad in ["state=draft", "type=news", "priority=1", "sort=body", "page=0", "kind=info"] {
        team.owner.get(&format!("/updates?{bad}")).await.refused(400, "VALIDATION_ERROR");
    }
}

#[tokio::test]
async fn bad_updates_are_refused_and_nothing_is_made() {
    let app = TestApp::shared();
    let team = app.team().await;
    team.enable("operations").await;
    for (body, field) in [
        (json!({"body": "x"}), "title"),
        (json!({"title": "x"}), "body"),
        (json!({"title": " ", "body": "x"}), "title"),
        (json!({"title": "x".repeat(201), "body": "x"}), "title"),
        (json!({"title": "x", "body": ""}), "body"),
        (json!({"title": "x", "body": "x", "type": "news"}), "type"),
        (json!({"title": "x", "body": "x", "kind": "info"}), "kind"),
        (json!({"title": "x", "body": "x", "published_at": "soon"}), "published_at"),
        (json!({"title": "x", "body": "x", "expires_at": "2001-01-01T00:00:00Z"}), "expires_at"),
        (json!({"title": "x", "body": "x", "published_at": "+12345-01-01T00:00:00Z"}), "published_at"),
        (json!({"title": "nul\u{0}", "body": "x"}), "title"),
    ] {
        let error = team.owner.post("/updates", body.clone()).await.refused(400, "VALIDATION_ERROR");
        assert_eq!(error["fields"][0]["field"], field, "{body}: {error}");
    }
    assert_eq!(team.owner.get("/updates").await.expect(200)["total"], 0);
}

#[tokio::test]
async fn everybody_reads_updates_and_managers_write_them() {
    let app = TestApp::shared();
    let team = app.team().await;
    team.enable("operations").await;
    let made = announce(&team, "To all").await;
    let path = format!("/updates/{}", made["id"].as_str().unwrap());
    for role in [Role::Viewer, Role::Member] {
        let person = team.join(role).await;
        person.client.get(&path).await.expect(200);
        let new = json!({"title": "Mine", "body": "x"});
        person.client.post("/updates", new).await.refused(403, "PERMISSION_DENIED");
        person.client.patch(&path, json!({"title": "Mine"})).await.refused(403, "PERMISSION_DENIED");
        person.client.delete(&path).await.refused(403, "PERMISSION_DENIED");
    }
    let manager = team.join(Role::Manager).await;
    manager.client.patch(&path, json!({"title": "To all of you"})).await.expect(200);
    manager.client.delete(&path).await.expect(204);
}

#[tokio::test]
async fn another_organization_cannot_read_an_update() {
    let app = TestApp::shared();
    let (team, rival) = (app.team().await, app.team().await);
    team.enable("operations").await;
    rival.enable("operations").await;
    let made = announce(&team, "Ours").await;
    let path = format!("/updates/{}", made["id"].as_str().unwrap());
    rival.owner.get(&path).await.refused(404, "NOT_FOUND");
    rival.owner.patch(&path, json!({"title": "Theirs"})).await.refused(404, "NOT_FOUND");
    rival.owner.delete(&path).await.refused(404, "NOT_FOUND");
    assert_eq!(rival.owner.get("/updates").await.expect(200)["total"], 0);
    team.owner.get(&path).await.expect(200);
}
