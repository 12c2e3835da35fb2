//! The audit log: complete, told right, and tamper-evident.

use std::process::Command;

use rowhouse::{audit, auth::Role, tenancy::fleet};
use serde_json::{Value, json};

use crate::support::{Team, TestApp, within};

async fn entries(team: &Team, query: &str) -> Vec<Value> {
    let log = team.owner.get(&format!("/audit-log?limit=100{query}")).await.expect(200);
    log["data"].as_array().unwrap().clone()
}

/// Runs a statement in the organization's schema, as somebody with full rights on the database could.
async fn tamper(team: &Team, sql: &str) {
    let schema = team
        .app
        .texts(&format!(
            "select 'tenant_' || replace(schema_id::text, '-', '') from platform.organizations where id = '{}'",
            team.id
        ))
        .await;
    team.app.sql(&sql.replace("audit_log", &format!("{}.audit_log", schema[0]))).await;
}

async fn problems(team: &Team) -> Vec<String> {
    let app = &team.app.app;
    let tenant = fleet::tenant(&app.directory, &team.slug).await.unwrap().unwrap();
    audit::verify(app, &tenant).await.unwrap().problems
}

async fn all_sealed(team: &Team) {
    within(10, "everything is sealed", || async {
        entries(team, "").await.iter().all(|entry| entry["sequence"].is_i64())
    })
    .await;
}

#[tokio::test]
async fn an_entry_tells_who_did_what_from_where() {
    let app = TestApp::shared();
    let team = app.team().await;
    let client = team.owner.header("user-agent", "Test/1").header("x-request-id", "audit-me");
    let project = client.post("/projects", json!({"name": "Old", "description": "Same"})).await.expect(201);
    let path = format!("/projects/{}", project["id"].as_str().unwrap());
    client.patch(&path, json!({"name": "New", "status": "active"})).await.expect(200);
    client.delete(&path).await.expect(204);
    let log = entries(&team, &format!("&resource_id={}", project["id"].as_str().unwrap())).await;
    let actions: Vec<&str> = log.iter().map(|entry| entry["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["project.deleted", "project.updated", "project.created"]);
    let updated = &log[1];
    assert_eq!(
        updated["changes"],
        json!({"name": {"before": "Old", "after": "New"}, "status": {"before": "planning", "after": "active"}})
    );
    assert_eq!(updated["actor_id"], team.founder.id.as_str());
    assert_eq!((&updated["actor_kind"], &updated["request_id"]), (&json!("user"), &json!("audit-me")));
    assert_eq!((&updated["address"], &updated["user_agent"]), (&json!("127.0.0.1"), &json!("Test/1")));
    // A key acts as a key, and what was refused or undone leaves nothing.
    let key = json!({"name": "Program", "scopes": ["projects:write"]});
    let key = team.owner.post("/api-keys", key).await.expect(201);
    let program = app.anonymous().header("x-api-key", key["key"].as_str().unwrap());
    program.post("/projects", json!({"name": "By a program"})).await.expect(201);
    team.owner.post("/projects", json!({"name": ""})).await.refused(400, "VALIDATION_ERROR");
    let log = entries(&team, "&action=project").await;
    assert_eq!((&log[0]["actor_kind"], &log[0]["api_key_id"]), (&json!("api_key"), &key["id"]));
    assert_eq!(log.len(), 4);
    assert!(
        !entries(&team, "&action=api_key.created").await[0]
            .to_string()
            .contains(key["key"].as_str().unwrap())
    );
}

/// Every operation that changes an organization is in its log; the probe of operations knows them all.
#[tokio::test]
async fn the_log_is_filtered_paged_and_exported() {
    let app = TestApp::shared();
    let team = app.team().await;
    let admin = team.join(Role::Admin).await;
    for n in 0..25 {
        team.owner.post("/projects", json!({"name": format!("P{n}")})).await.expect(201);
    }
    admin.client.post("/projects", json!({"name": "Other"})).await.expect(201);
    assert_eq!(entries(&team, &format!("&actor_id={}", admin.id)).await.len(), 1);
    let mut seen = Vec::new();
    let mut cursor = String::new();
    loop {
        let page =
            team.owner.get(&format!("/audit-log?limit=10&action=project.created{cursor}")).await.expect(200);
        seen.extend(page["data"].as_array().unwrap().iter().map(|entry| entry["id"].clone()));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(seen.len(), 26);
    let from = entries(&team, "&action=project.created").await[3]["occurred_at"].as_str().unwrap().to_owned();
    assert!(entries(&team, &format!("&from={from}&action=project.created")).await.len() >= 4);
    let export = admin.client.get("/audit-log/export?action=project").await;
    assert_eq!(export.header("content-type"), "application/x-ndjson");
    let lines: Vec<Value> = export.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.iter().map(|line| line["id"].clone()).collect::<Vec<_>>(), seen);
    for role in [Role::Manager, Role::Member, Role::Viewer] {
        let person = team.join(role).await;
        person.client.get("/audit-log").await.refused(403, "PERMISSION_DENIED");
        person.client.get("/audit-log/export").await.refused(403, "PERMISSION_DENIED");
    }
    let rival = app.team().await;
    assert!(entries(&rival, "").await.iter().all(|entry| entry["action"] == "organization.created"));
}

#[tokio::test]
async fn a_changed_a_removed_and_a_cut_entry_are_found() {
    let app = TestApp::with(|_| {});
    let of = async |sql: &str| {
        let team = app.team().await;
        for n in 0..6 {
            team.owner.post("/projects", json!({"name": format!("P{n}")})).await.expect(201);
        }
        all_sealed(&team).await;
        assert_eq!(problems(&team).await, Vec::<String>::new());
        tamper(&team, sql).await;
        problems(&team).await.join("; ")
    };
    let changed = of("update audit_log set changes = '{}' where sequence = 3").await;
    assert!(changed.contains("entry 3") && changed.contains("not what was sealed"), "{changed}");
    let blamed = of("update audit_log set actor_id = gen_random_uuid() where sequence = 2").await;
    assert!(blamed.contains("entry 2"), "{blamed}");
    let backdated =
        of("update audit_log set occurred_at = occurred_at - interval '1 day' where sequence = 5").await;
    assert!(backdated.contains("entry 5"), "{backdated}");
    let removed = of("delete from audit_log where sequence = 4").await;
    assert!(removed.contains("entries 4 to 4 are missing"), "{removed}");
    let cut = of("delete from audit_log where sequence > 4").await;
    assert!(cut.contains("missing at the end"), "{cut}");
    let slipped_in = of("insert into audit_log (id, occurred_at, actor_kind, action, changes) \
         values (gen_random_uuid(), now(), 'system', 'nothing.happened', '{}')")
    .await;
    assert!(slipped_in.contains("without a seal"), "{slipped_in}");
    let unsealed = of("update audit_log set seal = null, sequence = null where sequence = 7").await;
    assert!(unsealed.contains("missing at the end"), "{unsealed}");
    let emptied =
        of("with gone as (delete from platform.audit_heads), cut as (delete from audit_log returning id) \
         select 1")
        .await;
    assert!(emptied.contains("empty"), "{emptied}");
    let rewritten = of("with a as (select seal from audit_log where sequence = 1) \
         update audit_log set seal = a.seal, changes = '{}' from a where sequence = 2")
    .await;
    assert!(rewritten.contains("entry 2"), "{rewritten}");
}

/// The service does not go on after an end that is not its own, which would make it look right.
#[tokio::test]
async fn a_cut_tail_is_not_laundered_by_what_is_written_later() {
    let app = TestApp::with(|_| {});
    let team = app.team().await;
    for n in 0..4 {
        team.owner.post("/projects", json!({"name": format!("P{n}")})).await.expect(201);
    }
    all_sealed(&team).await;
    tamper(&team, "delete from audit_log where sequence > 3").await;
    app.sql("update platform.audit_heads set sequence = 3").await;
    team.project("Later").await;
    tokio::time::sleep(std::time::Duration::from_millis(2500)).await;
    let told = problems(&team).await.join("; ");
    assert!(told.contains("the end of the chain"), "{told}");
}

#[tokio::test]
async fn an_operator_verifies_the_log_from_the_command_line() {
    let app = TestApp::with(|_| {});
    let team = app.team().await;
    team.project("Seen").await;
    all_sealed(&team).await;
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rowhouse"));
        command.args(["tenant", "audit-verify"]).args(arguments).env("DATABASE_URL", app.database());
        command.env("ROWHOUSE_SECRET_KEY", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=");
        command.output().unwrap()
    };
    let good = run(&[&team.slug]);
    assert!(good.status.success(), "{}", String::from_utf8_lossy(&good.stderr));
    assert!(String::from_utf8_lossy(&good.stdout).contains("2 entries"));
    tamper(&team, "delete from audit_log where sequence = 1").await;
    let bad = run(&[]);
    assert!(!bad.status.success());
    assert!(String::from_utf8_lossy(&bad.stdout).contains("entries 1 to 1 are missing"));
}

/// Two writers of one organization never wait for each other, also while entries are being sealed.
#[tokio::test]
async fn many_writers_at_once_make_one_unbroken_chain() {
    let app = TestApp::with(|config| config.database.pool_size = 8);
    let there = app.beside();
    let team = app.team().await;
    let writers = (0..8).map(|writer| {
        let client = if writer % 2 == 0 { team.owner.clone() } else { team.owner.at(&there) };
        async move {
            for n in 0..20 {
                client.post("/projects", json!({"name": format!("W{writer}-{n}")})).await.expect(201);
            }
        }
    });
    futures_util::future::join_all(writers).await;
    within(20, "everything is sealed", || async {
        app.number("select count(*) from platform.audit_unsealed").await == 0
    })
    .await;
    assert_eq!(problems(&team).await, Vec::<String>::new());
    let tenant = fleet::tenant(&app.app.directory, &team.slug).await.unwrap().unwrap();
    assert_eq!(audit::verify(&app.app, &tenant).await.unwrap().sealed, 161);
}
