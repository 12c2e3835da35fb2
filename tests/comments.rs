//! /tasks/{task_id}/comments, /comments and /me/mentions.

use reqwest::Method;
use rowhouse::auth::Role;
use serde_json::{Value, json};

use crate::support::{Client, Team, TestApp};

fn id(object: &Value) -> &str {
    object["id"].as_str().unwrap()
}

fn path(comment: &Value) -> String {
    format!("/comments/{}", id(comment))
}

fn of_task(task: &Value) -> String {
    format!("/tasks/{}/comments", id(task))
}

async fn comment(client: &Client, task: &Value, body: &str) -> Value {
    client.post(&of_task(task), json!({"body": body})).await.expect(201)
}

async fn task(team: &Team) -> Value {
    let project = team.project("Home").await;
    team.task(&project, "Paint the fence").await
}

/// The titles of somebody's notifications of this kind.
async fn told(client: &Client, kind: &str) -> Vec<String> {
    let page = client.get(&format!("/notifications?kind={kind}")).await.expect(200);
    let notifications = page["data"].as_array().unwrap().iter();
    notifications.map(|one| one["title"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_comment_keeps_what_was_said_and_to_whom() {
    let app = TestApp::shared();
    let team = app.team().await;
    let member = team.join(Role::Member).await;
    let task = task(&team).await;
    let body = json!({"body": "  Which colour?  ", "mention_ids": [member.id, member.id]});
    let made = team.owner.post(&of_task(&task), body).await.expect(201);
    assert_eq!(made["body"], "Which colour?");
    assert_eq!(made["mention_ids"], json!([member.id]));
    assert_eq!((&made["task_id"], &made["project_id"]), (&task["id"], &task["project_id"]));
    assert_eq!((&made["author_id"], &made["edited_at"]), (&json!(team.founder.id), &Value::Null));
    assert_eq!(member.client.get(&path(&made)).await.expect(200), made);
    let listed = member.client.get(&of_task(&task)).await.expect(200);
    assert_eq!(listed["data"], json!([made]));
}

#[tokio::test]
async fn comments_are_listed_newest_first_by_cursor() {
    let app = TestApp::shared();
    let team = app.team().await;
    let member = team.join(Role::Manager).await;
    let (task, other) = (task(&team).await, task(&team).await);
    for n in 0..5 {
        comment(if n == 2 { &member.client } else { &team.owner }, &task, &format!("Number {n}")).await;
    }
    comment(&team.owner, &other, "Elsewhere").await;
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = team.owner.get(&format!("{}?limit=2{cursor}", of_task(&task))).await.expect(200);
        let bodies =
            page["data"].as_array().unwrap().iter().map(|one| one["body"].as_str().unwrap().to_owned());
        seen.extend(bodies);
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(seen, ["Number 4", "Number 3", "Number 2", "Number 1", "Number 0"]);
    let own = team.owner.get(&format!("{}?author_id={}", of_task(&task), member.id)).await.expect(200);
    assert_eq!(own["data"].as_array().unwrap().len(), 1);
    team.owner.get(&format!("{}?cursor=nonsense", of_task(&task))).await.refused(400, "VALIDATION_ERROR");
}

#[tokio::test]
async fn edits_are_kept_and_only_the_author_makes_them() {
    let app = TestApp::shared();
    let team = app.team().await;
    let admin = team.join(Role::Admin).await;
    let task = task(&team).await;
    let made = comment(&team.owner, &task, "Red").await;
    let change = |body: &str| json!({"body": body});
    admin.client.patch(&path(&made), change("Blue")).await.refused(403, "PERMISSION_DENIED");
    let same = team.owner.patch(&path(&made), change("Red")).await.expect(200);
    assert_eq!(same, made, "nothing was edited");
    let green = team.owner.patch(&path(&made), change("Green")).await.expect(200);
    assert!(green["edited_at"].is_string());
    team.owner.patch(&path(&made), change("Grey")).await.expect(200);
    let edits = admin.client.get(&format!("{}/edits", path(&made))).await.expect(200);
    let earlier: Vec<&Value> = edits["data"].as_array().unwrap().iter().map(|one| &one["body"]).collect();
    assert_eq!(earlier, ["Green", "Red"]);
    let (last, first) = (&edits["data"][0], &edits["data"][1]);
    assert_eq!(first["author_id"], json!(team.founder.id));
    assert_eq!(first["written_at"], made["created_at"]);
    assert_eq!((&last["written_at"], &first["replaced_at"]), (&green["edited_at"], &green["edited_at"]));
    team.owner.patch(&path(&made), json!({"body": null})).await.refused(400, "VALIDATION_ERROR");
}

#[tokio::test]
async fn its_author_or_a_manager_deletes_a_comment() {
    let app = TestApp::shared();
    let team = app.team().await;
    let (one, two) = (team.join(Role::Member).await, team.join(Role::Member).await);
    let new = json!({"name": "Ours", "member_ids": [one.id, two.id]});
    let project = team.owner.post("/projects", new).await.expect(201);
    let task = team.task(&project, "Paint").await;
    let (first, second) = (comment(&one.client, &task, "1").await, comment(&one.client, &task, "2").await);
    two.client.delete(&path(&first)).await.refused(403, "PERMISSION_DENIED");
    one.client.delete(&path(&first)).await.expect(204);
    team.owner.delete(&path(&second)).await.expect(204);
    one.client.get(&path(&second)).await.refused(404, "NOT_FOUND");
    assert_eq!(one.client.get(&of_task(&task)).await.expect(200)["data"], json!([]));
}

#[tokio::test]
async fn whom_a_task_concerns_may_comment_on_it_and_strangers_to_the_project_may_not() {
    let app = TestApp::shared();
    let team = app.team().await;
    let (assigned, stranger) = (team.join(Role::Member).await, team.join(Role::Member).await);
    let viewer = team.join(Role::Viewer).await;
    let project = team.project("Closed").await;
    let new = json!({"project_id": project["id"], "title": "Given", "assignee_ids": [assigned.id]});
    let task = team.owner.post("/tasks", new).await.expect(201);
    comment(&assigned.client, &task, "On it").await;
    let body = json!({"body": "Me too"});
    stranger.client.post(&of_task(&task), body.clone()).await.refused(403, "PERMISSION_DENIED");
    viewer.client.post(&of_task(&task), body.clone()).await.refused(403, "PERMISSION_DENIED");
    let project = format!("/projects/{}", id(&project));
    team.owner.patch(&project, json!({"status": "archived"})).await.expect(200);
    for client in [&assigned.client, &team.owner] {
        client.post(&of_task(&task), body.clone()).await.refused(409, "CONFLICT");
    }
}

#[tokio::test]
async fn bad_comments_are_refused() {
    let app = TestApp::shared();
    let (team, rival) = (app.team().await, app.team().await);
    let (task, foreign) = (task(&team).await, task(&rival).await);
    let stranger = app.person().await;
    let leaver = team.join(Role::Member).await;
    team.owner.delete(&team.path(&format!("/members/{}", leaver.id))).await.expect(204);
    let many: Vec<String> = (0..51).map(|_| uuid::Uuid::now_v7().to_string()).collect();
    for (body, field) in [
        (json!({}), "body"),
        (json!({"body": "  "}), "body"),
        (json!({"body": "x".repeat(20_001)}), "body"),
        (json!({"body": "x", "mention_ids": [stranger.id]}), "mention_ids"),
        (json!({"body": "x", "mention_ids": [rival.founder.id]}), "mention_ids"),
        (json!({"body": "x", "mention_ids": [leaver.id]}), "mention_ids"),
        (json!({"body": "x", "mention_ids": many}), "mention_ids"),
        (json!({"body": "x", "mention_ids": ["everybody"]}), "mention_ids[0]"),
        (json!({"body": "x", "file_ids": many}), "file_ids"),
        (json!({"body": "x", "file_ids": [many[0]]}), "file_ids[0]"),
        (json!({"body": "x", "author_id": team.founder.id}), "author_id"),
    ] {
        let error = team.owner.post(&of_task(&task), body).await.refused(400, "VALIDATION_ERROR");
        assert_eq!(error["fields"][0]["field"], field, "{error}");
    }
    team.owner.post(&of_task(&foreign), json!({"body": "x"})).await.refused(404, "NOT_FOUND");
    team.owner.get(&of_task(&foreign)).await.refused(404, "NOT_FOUND");
    assert_eq!(team.owner.get(&of_task(&task)).await.expect(200)["data"], json!([]));
}

#[tokio::test]
async fn whoever_is_mentioned_or_concerned_is_told_once() {
    let app = TestApp::shared();
    let team = app.team().await;
    let (named, assigned, later) =
        (team.join(Role::Member).await, team.join(Role::Member).await, team.join(Role::Viewer).await);
    let project = team.project("Home").await;
    let new = json!({"project_id": project["id"], "title": "Paint", "assignee_ids": [assigned.id, named.id]});
    let task = team.owner.post("/tasks", new).await.expect(201);
    let body = json!({"body": "Look", "mention_ids": [named.id, team.founder.id]});
    let made = team.owner.post(&of_task(&task), body).await.expect(201);
    team.settled().await;
    assert_eq!(told(&named.client, "mentioned_in_comment").await, ["You were mentioned: Paint"]);
    assert_eq!(told(&named.client, "task_commented").await.len(), 0, "the mention is enough");
    assert_eq!(told(&assigned.client, "task_commented").await, ["New comment: Paint"]);
    assert_eq!(told(&team.owner, "mentioned_in_comment").await.len(), 0, "nobody tells themselves");
    // Out and in again, and somebody new.
    for mentions in [json!([]), json!([named.id]), json!([named.id, later.id])] {
        team.owner.patch(&path(&made), json!({"mention_ids": mentions})).await.expect(200);
    }
    team.settled().await;
    assert_eq!(told(&named.client, "mentioned_in_comment").await.len(), 1);
    assert_eq!(told(&later.client, "mentioned_in_comment").await.len(), 1);
}

#[tokio::test]
async fn mentions_are_found_in_one_list_and_marked_as_read() {
    let app = TestApp::shared();
    let team = app.team().await;
    let member = team.join(Role::Member).await;
    let task = task(&team).await;
    let mentioning = json!({"body": "Look here", "mention_ids": [member.id]});
    let first = team.owner.post(&of_task(&task), mentioning.clone()).await.expect(201);
    let messages = format!("/projects/{}/messages", task["project_id"].as_str().unwrap());
    let second = team.owner.post(&messages, mentioning.clone()).await.expect(201);
    let list = |query: &'static str| {
        let client = member.client.clone();
        async move { client.get(&format!("/me/mentions{query}")).await.expect(200)["data"].clone() }
    };
    let all = list("").await;
    assert_eq!(all.as_array().unwrap().len(), 2);
    assert_eq!((&all[0]["kind"], &all[0]["message_id"]), (&json!("message"), &second["id"]));
    assert_eq!((&all[1]["kind"], &all[1]["comment_id"]), (&json!("comment"), &first["id"]));
    assert_eq!((&all[1]["task_id"], &all[1]["task_title"]), (&task["id"], &task["title"]));
    assert_eq!((&all[1]["excerpt"], &all[1]["author_id"]), (&json!("Look here"), &json!(team.founder.id)));
    assert_eq!(all[1]["project_name"], "Home");
    let one = format!("/me/mentions/{}/read", id(&all[1]));
    team.owner.post(&one, json!({})).await.refused(404, "NOT_FOUND");
    assert!(member.client.post(&one, json!({})).await.expect(200)["read_at"].is_string());
    assert_eq!(list("?unread=true").await.as_array().unwrap().len(), 1);
    assert_eq!(list("?unread=false").await[0]["id"], all[1]["id"]);
    member.client.post("/me/mentions/read-all", json!({})).await.expect(204);
    assert_eq!(list("?unread=true").await, json!([]));
    // What was taken back, or is gone, is not in it.
    team.owner.patch(&path(&first), json!({"mention_ids": []})).await.expect(200);
    team.owner.delete(&format!("/messages/{}", id(&second))).await.expect(204);
    assert_eq!(list("").await, json!([]));
    assert_eq!(team.owner.get("/me/mentions").await.expect(200)["data"], json!([]));
}

#[tokio::test]
async fn files_hang_on_a_comment_and_go_with_it() {
    let app = TestApp::shared();
    let team = app.team().await;
    let task = task(&team).await;
    let file = team.owner.raw(Method::POST, "/files?name=colours.txt", "text/plain", "red").await.expect(201);
    let body = json!({"body": "The colours", "file_ids": [file["id"]]});
    let made = team.owner.post(&of_task(&task), body.clone()).await.expect(201);
    assert_eq!(made["attachments"][0]["file"]["id"], file["id"]);
    assert_eq!(team.owner.get(&of_task(&task)).await.expect(200)["data"][0], made);
    // A file hangs in one place.
    team.owner.post(&of_task(&task), body).await.refused(400, "VALIDATION_ERROR");
    team.owner.delete(&path(&made)).await.expect(204);
    team.owner.get(&format!("/files/{}", id(&file))).await.refused(404, "NOT_FOUND");
}

#[tokio::test]
async fn comments_go_with_their_task() {
    let app = TestApp::shared();
    let team = app.team().await;
    let task = task(&team).await;
    let made = comment(&team.owner, &task, "Going").await;
    team.owner.patch(&path(&made), json!({"body": "Gone"})).await.expect(200);
    team.owner.delete(&format!("/tasks/{}", id(&task))).await.expect(204);
    team.owner.get(&path(&made)).await.refused(404, "NOT_FOUND");
    team.owner.get(&format!("{}/edits", path(&made))).await.refused(404, "NOT_FOUND");
}
