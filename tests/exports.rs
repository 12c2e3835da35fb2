//! /projects/exports, /tasks/exports: what is kept as files.

use rowhouse::auth::Role;
use serde_json::{Value, json};

use crate::{
    imports::{finished, import},
    support::{Client, Team, TestApp},
};

fn id(object: &Value) -> &str {
    object["id"].as_str().unwrap()
}

/// Exports something and reads the file.
async fn export(client: &Client, resource: &str, body: Value) -> String {
    let answer = client.post(&format!("/{resource}/exports"), body).await;
    let place = answer.header("location").trim_start_matches("/api/v1").to_owned();
    assert_eq!(place, format!("/exports/{}", id(&answer.expect(202))));
    let done = finished(client, &place, 60).await;
    assert_eq!(done["state"], "done", "{done}");
    assert_eq!(done["rows_done"], done["rows_total"]);
    client.get(&format!("/files/{}/content", done["file_id"].as_str().unwrap())).await.text
}

async fn tasks(team: &Team) -> Vec<Value> {
    team.owner.get("/tasks?page_size=100&sort=created_at").await.expect(200)["data"]
        .as_array()
        .unwrap()
        .clone()
}

#[tokio::test]
async fn what_is_exported_can_be_imported_elsewhere_and_again() {
    let app = TestApp::shared();
    let (team, other) = (app.team().await, app.team().await);
    let ben = team.join(Role::Member).await;
    other.add(&ben, Role::Member).await;
    other.add(&team.founder, Role::Admin).await;
    let budget = json!({"amount": "12.50", "currency": "SGD"});
    let new = json!({"name": "Home, \"sweet\"\nhome", "status": "active", "member_ids": [ben.id], "budget": budget});
    let project = team.owner.post("/projects", new).await.expect(201);
    let new = json!({"project_id": project["id"], "title": "=1+1", "description": "'-a, \"b\"\r\nc", "status": "done",
        "impact": 12.5, "assignee_ids": [ben.id, team.founder.id], "external_id": "A-1", "due_date": "2026-05-05"});
    let parent = team.owner.post("/tasks", new).await.expect(201);
    let new = json!({"project_id": project["id"], "title": "-5", "parent_id": parent["id"], "estimated_hours": 2.25});
    team.owner.post("/tasks", new).await.expect(201);
    for format in ["csv", "json"] {
        let name = format!("f.{format}");
        let projects = export(&team.owner, "projects", json!({"format": format})).await;
        let lines = export(&team.owner, "tasks", json!({"format": format})).await;
        // Here nothing changes.
        for (resource, content, many) in [("projects", &projects, 1), ("tasks", &lines, 2)] {
            let done = import(&team, resource, &name, content.clone()).await;
            assert_eq!((done["state"].as_str(), &done["unchanged"]), (Some("done"), &json!(many)), "{done}");
        }
        // Elsewhere it is made once.
        for turn in 0..2 {
            for (resource, content, many) in [("projects", &projects, 1), ("tasks", &lines, 2)] {
                let done = import(&other, resource, &name, content.clone()).await;
                let made = if turn == 0 && format == "csv" { "created" } else { "unchanged" };
                assert_eq!((done["state"].as_str(), &done[made]), (Some("done"), &json!(many)), "{done}");
            }
        }
    }
    let (here, there) = (tasks(&team).await, tasks(&other).await);
    assert_eq!(there.len(), 2);
    for (here, there) in here.iter().zip(&there) {
        for field in
            ["title", "description", "status", "impact", "assignee_ids", "due_date", "estimated_hours"]
        {
            assert_eq!(here[field], there[field], "{field}");
        }
    }
    assert_eq!(there[1]["parent_id"], there[0]["id"]);
}

#[tokio::test]
async fn a_spreadsheet_finds_no_formulas() {
    let app = TestApp::shared();
    let team = app.team().await;
    let project = team.project("Home").await;
    for title in ["=cmd|' /C calc'!A0", "+1 234", "-x", "@sum(1)", "-5", "plain = fine"] {
        team.task(&project, title).await;
    }
    let text = export(&team.owner, "tasks", json!({"format": "csv"})).await;
    for shown in [",'=cmd|' /C calc'!A0,", ",'+1 234,", ",'-x,", ",'@sum(1),", ",-5,", ",plain = fine,"] {
        assert!(text.contains(shown), "{shown} in {text}");
    }
    let text = export(&team.owner, "tasks", json!({"format": "json"})).await;
    let all: Vec<Value> = serde_json::from_str(&text).unwrap();
    assert_eq!(all[0]["title"], "=cmd|' /C calc'!A0");
}

#[tokio::test]
async fn exports_are_filtered_and_hold_nothing_of_others() {
    let app = TestApp::shared();
    let (team, rival) = (app.team().await, app.team().await);
    let (one, two) = (team.project("One").await, team.project("Two").await);
    let theirs = rival.project("Theirs").await;
    rival.task(&theirs, "Secret").await;
    team.task(&one, "In one").await;
    let new = json!({"project_id": two["id"], "title": "In two", "status": "done"});
    team.owner.post("/tasks", new).await.expect(201);
    let titles = |text: String| -> Vec<String> {
        let all: Vec<Value> = serde_json::from_str(&text).unwrap();
        all.iter().map(|task| task["title"].as_str().unwrap().to_owned()).collect()
    };
    let all = export(&team.owner, "tasks", json!({"format": "json"})).await;
    assert_eq!(titles(all), ["In one", "In two"]);
    let of_one = export(&team.owner, "tasks", json!({"format": "json", "project_id": one["id"]})).await;
    assert_eq!(titles(of_one), ["In one"]);
    let done = export(&team.owner, "tasks", json!({"format": "json", "status": "done"})).await;
    assert_eq!(titles(done), ["In two"]);
    let none = export(&team.owner, "projects", json!({"format": "csv", "status": "archived"})).await;
    assert_eq!(none.lines().count(), 1, "{none}");
    for bad in [
        json!({"format": "xml"}),
        json!({"format": "csv", "project_id": theirs["id"]}),
        json!({"format": "csv", "status": "someday"}),
        json!({"format": "csv", "owner": "me"}),
    ] {
        team.owner.post("/tasks/exports", bad).await.refused(400, "VALIDATION_ERROR");
    }
}

#[tokio::test]
async fn an_export_is_its_maker_s() {
    let app = TestApp::shared();
    let team = app.team().await;
    let (viewer, member) = (team.join(Role::Viewer).await, team.join(Role::Member).await);
    team.project("Home").await;
    let queued = viewer.client.post("/projects/exports", json!({"format": "csv"})).await.expect(202);
    let place = format!("/exports/{}", id(&queued));
    let done = finished(&viewer.client, &place, 30).await;
    member.client.get(&place).await.refused(404, "NOT_FOUND");
    team.owner.get(&place).await.expect(200);
    assert_eq!(member.client.get("/exports").await.expect(200)["data"], json!([]));
    let file = viewer.client.get(&format!("/files/{}", done["file_id"].as_str().unwrap())).await.expect(200);
    assert_eq!((&file["purpose"], &file["uploaded_by"]), (&json!("export"), &json!(viewer.id)));
    assert!(file["expires_at"].is_string(), "{file}");
    let rival = app.team().await;
    rival.owner.get(&place).await.refused(404, "NOT_FOUND");
    // Who may not read tasks cannot have them exported.
    let path = team.path(&format!("/members/{}", member.id));
    team.owner.patch(&path, json!({"denials": ["tasks:read"]})).await.expect(200);
    let body = json!({"format": "csv"});
    member.client.post("/tasks/exports", body).await.refused(403, "PERMISSION_DENIED");
}

#[tokio::test]
async fn many_rows_leave_in_order_and_none_twice() {
    let app = TestApp::shared();
    let team = app.team().await;
    team.project("Large").await;
    let mut file = "external_id,project,title\n".to_owned();
    (0..5_500).for_each(|n| file.push_str(&format!("E{n},large,Task {n}\n")));
    import(&team, "tasks", "t.csv", file).await;
    let text = export(&team.owner, "tasks", json!({"format": "json"})).await;
    let all: Vec<Value> = serde_json::from_str(&text).unwrap();
    let names: Vec<&str> = all.iter().map(|task| task["external_id"].as_str().unwrap()).collect();
    let expected: Vec<String> = (0..5_500).map(|n| format!("E{n}")).collect();
    assert_eq!(names, expected);
}

#[tokio::test]
async fn tasks_under_younger_ones_and_without_their_parents_can_be_imported_elsewhere() {
    let app = TestApp::shared();
    let team = app.team().await;
    let project = team.project("Home").await;
    let mut all = Vec::new();
    for title in ["A", "B", "C"] {
        all.push(team.task(&project, title).await);
    }
    // A is under B, and B under C, which is done.
    for (n, parent) in [(1, 2), (0, 1)] {
        let path = format!("/tasks/{}", id(&all[n]));
        team.owner.patch(&path, json!({"parent_id": all[parent]["id"]})).await.expect(200);
    }
    team.owner.patch(&format!("/tasks/{}", id(&all[2])), json!({"status": "done"})).await.expect(200);
    for (filter, many) in [(json!({"format": "csv"}), 3), (json!({"format": "csv", "status": "todo"}), 2)] {
        let other = app.team().await;
        other.project("Home").await;
        let text = export(&team.owner, "tasks", filter).await;
        for (organization, what) in [(&team, "unchanged"), (&other, "created"), (&other, "unchanged")] {
            let done = import(organization, "tasks", "t.csv", text.clone()).await;
            assert_eq!((done["state"].as_str(), &done[what]), (Some("done"), &json!(many)), "{done}");
        }
        let made = tasks(&other).await;
        let by = |title: &str| made.iter().find(|task| task["title"] == title).unwrap().clone();
        assert_eq!(by("A")["parent_id"], by("B")["id"]);
        assert_eq!(by("B")["parent_id"].is_null(), many == 2);
    }
}

#[tokio::test]
async fn who_may_not_read_tasks_sees_no_export_of_them() {
    let app = TestApp::shared();
    let team = app.team().await;
    let queued = team.owner.post("/tasks/exports", json!({"format": "csv"})).await.expect(202);
    let place = format!("/exports/{}", id(&queued));
    let done = finished(&team.owner, &place, 30).await;
    let file = format!("/files/{}/content", done["file_id"].as_str().unwrap());
    for (scopes, sees) in [(json!(["files:read"]), false), (json!(["files:read", "tasks:read"]), true)] {
        let key =
            team.owner.post("/api-keys", json!({"name": "Program", "scopes": scopes})).await.expect(201);
        let program = app.anonymous().header("x-api-key", key["key"].as_str().unwrap());
        let listed = program.get("/exports").await.expect(200);
        assert_eq!(listed["data"].as_array().unwrap().len(), usize::from(sees));
        let status = if sees { 200 } else { 404 };
        assert_eq!(program.get(&place).await.status, status);
        assert_eq!(program.get(&file).await.status, status);
    }
}
