//! Files at tasks, comments and messages.

use reqwest::Method;
use rowhouse::auth::Role;
use serde_json::{Value, json};

use crate::support::{Client, Team, TestApp, within};

fn id(object: &Value) -> &str {
    object["id"].as_str().unwrap()
}

/// Uploads a small text; each is another one.
async fn upload(client: &Client, name: &str) -> Value {
    let path = format!("/files?name={name}");
    client.raw(Method::POST, &path, "text/plain", format!("This is {name}.")).await.expect(201)
}

async fn attach(client: &Client, task: &Value, file: &Value) -> Value {
    let body = json!({"file_id": file["id"]});
    client.post(&format!("/tasks/{}/attachments", id(task)), body).await.expect(201)
}

/// Whether a file is gone, with its bytes.
async fn is_gone(team: &Team, file: &Value) -> bool {
    let folder = team.app.app.config.files.folder.clone().unwrap();
    let object = folder.join("organizations").join(&team.id).join(id(file));
    team.owner.get(&format!("/files/{}", id(file))).await.status == 404 && !object.exists()
}

#[tokio::test]
async fn a_file_is_attached_described_and_goes_with_its_attachment() {
    let app = TestApp::shared();
    let team = app.team().await;
    let task = team.task(&team.project("Home").await, "Paint").await;
    let file = upload(&team.owner, "wall.txt").await;
    let path = format!("/tasks/{}/attachments", id(&task));
    let body = json!({"file_id": file["id"], "description": "The wall", "is_proof_of_completion": true});
    let made = team.owner.post(&path, body).await.expect(201);
    assert_eq!(made["file"]["id"], file["id"]);
    assert_eq!(made["file"]["expires_at"], Value::Null, "it is in use");
    assert_eq!((&made["task_id"], &made["project_id"]), (&task["id"], &task["project_id"]));
    assert_eq!((&made["comment_id"], &made["message_id"]), (&Value::Null, &Value::Null));
    assert_eq!((&made["description"], &made["is_proof_of_completion"]), (&json!("The wall"), &json!(true)));
    let one = format!("/attachments/{}", id(&made));
    assert_eq!(team.owner.get(&one).await.expect(200), made);
    let second = attach(&team.owner, &task, &upload(&team.owner, "door.txt").await).await;
    let listed = team.owner.get(&path).await.expect(200);
    assert_eq!(listed["data"], json!([second, made]), "the newest first");

    let change = json!({"description": null, "is_proof_of_completion": false});
    let changed = team.owner.patch(&one, change).await.expect(200);
    assert_eq!((&changed["description"], &changed["is_proof_of_completion"]), (&Value::Null, &json!(false)));
    let stale = team.owner.header("if-match", "\"v1\"");
    stale.delete(&one).await.refused(412, "PRECONDITION_FAILED");
    team.owner.delete(&one).await.expect(204);
    team.owner.get(&one).await.refused(404, "NOT_FOUND");
    within(10, "the file is deleted", || is_gone(&team, &file)).await;
    assert!(!is_gone(&team, &second["file"]).await);
}

#[tokio::test]
async fn a_file_is_attached_once_and_by_whoever_uploaded_it() {
    let app = TestApp::shared();
    let (team, rival) = (app.team().await, app.team().await);
    let project = team.project("Home").await;
    let task = team.task(&project, "Paint").await;
    let path = format!("/tasks/{}/attachments", id(&task));
    let file = upload(&team.owner, "once.txt").await;
    attach(&team.owner, &task, &file).await;
    let again = team.owner.post(&path, json!({"file_id": file["id"]})).await;
    assert_eq!(again.refused(400, "VALIDATION_ERROR")["fields"][0]["field"], "file_id");
    team.owner.delete(&format!("/files/{}", id(&file))).await.refused(409, "CONFLICT");
    // Somebody else's upload, unless one may write all files.
    let (one, two) = (team.join(Role::Member).await, team.join(Role::Member).await);
    let body = json!({"member_ids": [one.id, two.id]});
    team.owner.patch(&format!("/projects/{}", id(&project)), body).await.expect(200);
    let theirs = upload(&one.client, "theirs.txt").await;
    let refused = two.client.post(&path, json!({"file_id": theirs["id"]})).await;
    assert_eq!(refused.refused(400, "VALIDATION_ERROR")["fields"][0]["field"], "file_id");
    attach(&team.owner, &task, &theirs).await;
    // Another organization's, one that is not there, and what is no id.
    let foreign = upload(&rival.owner, "foreign.txt").await;
    for file in [foreign["id"].clone(), json!("01890000-0000-7000-8000-000000000000"), json!("../../etc")] {
        let refused = team.owner.post(&path, json!({"file_id": file})).await;
        assert_eq!(refused.refused(400, "VALIDATION_ERROR")["fields"][0]["field"], "file_id");
    }
    team.owner.post(&path, json!({})).await.refused(400, "VALIDATION_ERROR");
    let nothing = "/tasks/01890000-0000-7000-8000-000000000000/attachments";
    team.owner.post(nothing, json!({"file_id": foreign["id"]})).await.refused(404, "NOT_FOUND");
    team.owner.get(nothing).await.refused(404, "NOT_FOUND");
    rival.owner.post(&path, json!({"file_id": foreign["id"]})).await.refused(404, "NOT_FOUND");
    rival.owner.get(&path).await.refused(404, "NOT_FOUND");
}

#[tokio::test]
async fn of_many_who_want_one_file_one_gets_it() {
    let app = TestApp::shared();
    let team = app.team().await;
    let project = team.project("Home").await;
    let file = upload(&team.owner, "wanted.txt").await;
    let mut tasks = Vec::new();
    for _ in 0..8 {
        tasks.push(team.task(&project, "Mine").await);
    }
    let tries = tasks.iter().map(|task| {
        let (owner, body) = (team.owner.clone(), json!({"file_id": file["id"]}));
        async move { owner.post(&format!("/tasks/{}/attachments", id(task)), body).await.status.as_u16() }
    });
    let mut outcomes = futures_util::future::join_all(tries).await;
    outcomes.sort_unstable();
    assert_eq!(outcomes, [201, 400, 400, 400, 400, 400, 400, 400]);
}

#[tokio::test]
async fn who_works_on_a_task_attaches_and_others_do_not() {
    let app = TestApp::shared();
    let team = app.team().await;
    let project = team.project("Home").await;
    let (inside, assigned, outside, viewer) = (
        team.join(Role::Member).await,
        team.join(Role::Member).await,
        team.join(Role::Member).await,
        team.join(Role::Viewer).await,
    );
    let body = json!({"member_ids": [inside.id]});
    team.owner.patch(&format!("/projects/{}", id(&project)), body).await.expect(200);
    let body = json!({"project_id": project["id"], "title": "Paint", "assignee_ids": [assigned.id]});
    let task = team.owner.post("/tasks", body).await.expect(201);
    let path = format!("/tasks/{}/attachments", id(&task));
    let made = attach(&inside.client, &task, &upload(&inside.client, "inside.txt").await).await;
    let proof = attach(&assigned.client, &task, &upload(&assigned.client, "assigned.txt").await).await;
    let file = upload(&outside.client, "outside.txt").await;
    let refused = outside.client.post(&path, json!({"file_id": file["id"]})).await;
    refused.refused(403, "PERMISSION_DENIED");
    viewer.client.post(&path, json!({"file_id": file["id"]})).await.refused(403, "PERMISSION_DENIED");
    assert_eq!(viewer.client.get(&path).await.expect(200)["data"].as_array().unwrap().len(), 2);
    // One's own, and those of tasks that one may write.
    let (made, proof) = (format!("/attachments/{}", id(&made)), format!("/attachments/{}", id(&proof)));
    outside.client.delete(&made).await.refused(403, "PERMISSION_DENIED");
    outside.client.patch(&made, json!({"description": "No"})).await.refused(403, "PERMISSION_DENIED");
    inside.client.delete(&proof).await.refused(403, "PERMISSION_DENIED");
    inside.client.patch(&made, json!({"description": "Mine"})).await.expect(200);
    assigned.client.delete(&made).await.expect(204);
    team.owner.delete(&proof).await.expect(204);
}

#[tokio::test]
async fn what_hangs_on_a_task_comment_or_message_goes_with_it() {
    let app = TestApp::shared();
    let team = app.team().await;
    let project = team.project("Home").await;
    let (task, kept) = (team.task(&project, "Goes").await, team.task(&project, "Stays").await);
    let comment = |task: &Value, file: &Value| {
        let (owner, path) = (team.owner.clone(), format!("/tasks/{}/comments", id(task)));
        let body = json!({"body": "Look", "file_ids": [file["id"]]});
        async move { owner.post(&path, body).await.expect(201) }
    };
    let mut files = Vec::new();
    for name in ["task.txt", "comment.txt", "other.txt", "message.txt", "removed.txt"] {
        files.push(upload(&team.owner, name).await);
    }
    attach(&team.owner, &task, &files[0]).await;
    let said = comment(&task, &files[1]).await;
    assert_eq!(said["attachments"][0]["file"]["id"], files[1]["id"]);
    assert_eq!(said["attachments"][0]["project_id"], project["id"]);
    let removed = comment(&kept, &files[4]).await;
    attach(&team.owner, &kept, &files[2]).await;
    let path = format!("/projects/{}/messages", id(&project));
    let body = json!({"body": "See this", "file_ids": [files[3]["id"]]});
    let message = team.owner.post(&path, body).await.expect(201);
    assert_eq!(message["attachments"][0]["message_id"], message["id"]);
    // Of a task's own attachments those of its comments are none.
    let own = team.owner.get(&format!("/tasks/{}/attachments", id(&task))).await.expect(200);
    assert_eq!(own["data"].as_array().unwrap().len(), 1);

    team.owner.delete(&format!("/comments/{}", id(&removed))).await.expect(204);
    team.owner.delete(&format!("/tasks/{}", id(&task))).await.expect(204);
    for gone in [&files[0], &files[1], &files[4]] {
        within(10, "what hung on it goes", || is_gone(&team, gone)).await;
    }
    for there in [&files[2], &files[3]] {
        assert!(!is_gone(&team, there).await);
    }
    team.owner.delete(&format!("/projects/{}", id(&project))).await.expect(204);
    for gone in &files {
        within(10, "everything goes with the project", || is_gone(&team, gone)).await;
    }
    let schema = format!(
        "select 'tenant_' || replace(schema_id::text, '-', '') from platform.organizations where id = '{}'",
        team.id
    );
    let schema = app.texts(&schema).await.remove(0);
    assert_eq!(app.number(&format!("select count(*) from {schema}.attachments")).await, 0);
    assert_eq!(app.number(&format!("select count(*) from {schema}.files")).await, 0);
    let storage = format!(
        "select coalesce(sum(used), 0)::bigint from {schema}.usage_counters where resource = 'storage'"
    );
    assert_eq!(app.number(&storage).await, 0, "the storage is given back");
}

#[tokio::test]
async fn a_comment_takes_all_of_its_files_or_none() {
    let app = TestApp::shared();
    let team = app.team().await;
    let task = team.task(&team.project("Home").await, "Paint").await;
    let file = upload(&team.owner, "one.txt").await;
    let path = format!("/tasks/{}/comments", id(&task));
    for second in [file["id"].clone(), json!("01890000-0000-7000-8000-000000000000")] {
        let body = json!({"body": "Look", "file_ids": [file["id"], second]});
        let error = team.owner.post(&path, body).await.refused(400, "VALIDATION_ERROR");
        assert_eq!(error["fields"][0]["field"], "file_ids[1]");
    }
    // The first one was not used up by that.
    attach(&team.owner, &task, &file).await;
}

#[tokio::test]
async fn a_task_has_at_most_a_hundred_attachments_also_when_many_come_at_once() {
    let app = TestApp::shared();
    let team = app.team().await;
    let task = team.task(&team.project("Home").await, "Full").await;
    let schema = format!(
        "select 'tenant_' || replace(schema_id::text, '-', '') from platform.organizations where id = '{}'",
        team.id
    );
    let schema = app.texts(&schema).await.remove(0);
    app.sql(&format!(
        "with made as (insert into {schema}.files (id, name, size, sha256, content_type, kind, purpose, uploaded_by, \
         thumbnail, created_at) select gen_random_uuid(), 'f', 1, repeat('0', 64), 'text/plain', 'document', 'upload', '{user}', \
         'none', now() from generate_series(1, 98) returning id) \
         insert into {schema}.attachments (id, task_id, file_id, created_by, created_at) \
         select gen_random_uuid(), '{task}', id, '{user}', now() from made",
        user = team.founder.id,
        task = id(&task)
    ))
    .await;
    let mut files = Vec::new();
    for n in 0..5 {
        files.push(upload(&team.owner, &format!("{n}.txt")).await);
    }
    let tries = files.iter().map(|file| {
        let (owner, path) = (team.owner.clone(), format!("/tasks/{}/attachments", id(&task)));
        async move { owner.post(&path, json!({"file_id": file["id"]})).await.status.as_u16() }
    });
    let mut outcomes = futures_util::future::join_all(tries).await;
    outcomes.sort_unstable();
    assert_eq!(outcomes, [201, 201, 409, 409, 409]);
}

#[tokio::test]
async fn an_archived_project_takes_no_attachments() {
    let app = TestApp::shared();
    let team = app.team().await;
    let project = team.project("Old").await;
    let task = team.task(&project, "Done").await;
    let file = upload(&team.owner, "late.txt").await;
    let archive = json!({"status": "archived"});
    team.owner.patch(&format!("/projects/{}", id(&project)), archive).await.expect(200);
    let path = format!("/tasks/{}/attachments", id(&task));
    team.owner.post(&path, json!({"file_id": file["id"]})).await.refused(409, "CONFLICT");
}
