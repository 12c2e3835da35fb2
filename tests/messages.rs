//! /projects/{project_id}/messages, /messages and /me/unread.

use futures_util::future::join_all;
use reqwest::Method;
use rowhouse::auth::Role;
use serde_json::{Value, json};

use crate::support::{Answer, Client, Team, TestApp, within};

fn id(object: &Value) -> &str {
    object["id"].as_str().unwrap()
}

fn of(project: &Value) -> String {
    format!("/projects/{}/messages", id(project))
}

fn path(message: &Value) -> String {
    format!("/messages/{}", id(message))
}

async fn say(client: &Client, project: &Value, body: &str) -> Value {
    client.post(&of(project), json!({"body": body})).await.expect(201)
}

async fn reply(client: &Client, project: &Value, to: &Value, body: &str) -> Value {
    client.post(&of(project), json!({"body": body, "parent_id": to["id"]})).await.expect(201)
}

async fn read(client: &Client, project: &Value, up_to: &Value) -> Answer {
    let path = format!("{}/read", of(project));
    Answer::of(client.request(Method::PUT, &path).json(&json!({"up_to": up_to["id"]}))).await
}

/// What somebody has to read in a project: messages and mentions.
async fn unread(client: &Client, project: &Value) -> (i64, i64) {
    let all = client.get("/me/unread").await.expect(200);
    let here = all["data"].as_array().unwrap().iter().find(|one| one["project_id"] == project["id"]);
    here.map_or((0, 0), |one| (one["unread"].as_i64().unwrap(), one["mentions"].as_i64().unwrap()))
}

async fn bodies(client: &Client, path: &str) -> Vec<String> {
    let page = client.get(path).await.expect(200);
    let messages = page["data"].as_array().unwrap().iter();
    messages.map(|one| one["body"].as_str().unwrap_or("-").to_owned()).collect()
}

/// A project with two members beside its owner.
async fn talk(team: &Team) -> (Value, Client, Client) {
    let (one, two) = (team.join(Role::Member).await, team.join(Role::Member).await);
    let new = json!({"name": "Talk", "member_ids": [one.id, two.id]});
    let project = team.owner.post("/projects", new).await.expect(201);
    (project, one.client, two.client)
}

#[tokio::test]
async fn messages_are_in_threads() {
    let app = TestApp::shared();
    let team = app.team().await;
    let (project, one, two) = talk(&team).await;
    let first = say(&one, &project, "First").await;
    let second = say(&two, &project, "Second").await;
    let answer = reply(&two, &project, &first, "Answer").await;
    assert_eq!((&first["number"], &second["number"], &answer["number"]), (&json!(1), &json!(2), &json!(3)));
    reply(&one, &project, &first, "Thanks").await;
    assert_eq!(bodies(&one, &of(&project)).await, ["Second", "First"]);
    let everything = format!("{}?replies=true", of(&project));
    assert_eq!(bodies(&one, &everything).await, ["Thanks", "Answer", "Second", "First"]);
    assert_eq!(bodies(&one, &format!("{}/replies", path(&first))).await, ["Thanks", "Answer"]);
    let now = one.get(&path(&first)).await.expect(200);
    assert_eq!(now["reply_count"], 2);
    assert!(now["last_reply_at"].as_str() >= answer["created_at"].as_str());
    assert_eq!(one.get(&path(&answer)).await.expect(200), answer);
}

#[tokio::test]
async fn a_project_s_messages_are_walked_through_by_cursor() {
    let app = TestApp::shared();
    let team = app.team().await;
    let project = team.project("Long").await;
    for n in 1..=7 {
        say(&team.owner, &project, &n.to_string()).await;
    }
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = team.owner.get(&format!("{}?limit=3{cursor}", of(&project))).await.expect(200);
        seen.extend(page["data"].as_array().unwrap().iter().map(|one| one["number"].as_i64().unwrap()));
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(seen, [7, 6, 5, 4, 3, 2, 1]);
    let foreign = format!("{}?cursor=AZC2oXwecACAAAAAAAAAAQ", of(&project));
    team.owner.get(&foreign).await.refused(400, "VALIDATION_ERROR");
}

#[tokio::test]
async fn messages_sent_at_once_are_numbered_without_gaps() {
    let app = TestApp::shared();
    let team = app.team().await;
    let (project, one, two) = talk(&team).await;
    let sent = (0..30).map(|n| {
        let (client, project) = (if n % 2 == 0 { &one } else { &two }, &project);
        async move { say(client, project, "Now").await["number"].as_i64().unwrap() }
    });
    let mut numbers = join_all(sent).await;
    numbers.sort();
    assert_eq!(numbers, Vec::from_iter(1..=30));
}

#[tokio::test]
async fn the_first_message_of_a_thread_stays_for_its_replies() {
    let app = TestApp::shared();
    let team = app.team().await;
    let (project, one, two) = talk(&team).await;
    let root = say(&one, &project, "Question").await;
    let answer = reply(&two, &project, &root, "Answer").await;
    two.delete(&path(&root)).await.refused(403, "PERMISSION_DENIED");
    one.delete(&path(&root)).await.expect(204);
    let left = two.get(&path(&root)).await.expect(200);
    assert_eq!((&left["body"], &left["reply_count"]), (&Value::Null, &json!(1)));
    assert!(left["deleted_at"].is_string());
    one.delete(&path(&root)).await.refused(409, "CONFLICT");
    one.patch(&path(&root), json!({"body": "Again"})).await.refused(409, "CONFLICT");
    let late = json!({"body": "Late", "parent_id": root["id"]});
    two.post(&of(&project), late).await.refused(400, "VALIDATION_ERROR");
    // A manager may remove what others said; with the last reply the rest goes too.
    team.owner.delete(&path(&answer)).await.expect(204);
    for gone in [&root, &answer] {
        one.get(&path(gone)).await.refused(404, "NOT_FOUND");
    }
    assert!(bodies(&one, &format!("{}?replies=true", of(&project))).await.is_empty());
    let next = say(&one, &project, "Next").await;
    assert_eq!(next["number"], 3, "a number is given once");
}

#[tokio::test]
async fn only_its_author_edits_a_message_and_what_it_said_is_kept() {
    let app = TestApp::shared();
    let team = app.team().await;
    let (project, one, two) = talk(&team).await;
    let made = say(&one, &project, "Tuesday").await;
    for other in [&two, &team.owner] {
        other.patch(&path(&made), json!({"body": "Never"})).await.refused(403, "PERMISSION_DENIED");
    }
    let same = one.patch(&path(&made), json!({"body": "Tuesday"})).await.expect(200);
    assert_eq!(same["edited_at"], Value::Null);
    one.patch(&path(&made), json!({"body": "Wednesday"})).await.expect(200);
    assert_eq!(bodies(&two, &format!("{}/edits", path(&made))).await, ["Tuesday"]);
    assert_eq!(two.get(&path(&made)).await.expect(200)["body"], "Wednesday");
}

#[tokio::test]
async fn the_marker_never_goes_back_and_tells_who_has_read() {
    let app = TestApp::shared();
    let team = app.team().await;
    let (project, one, two) = talk(&team).await;
    let mut sent = Vec::new();
    for n in 1..=3 {
        sent.push(say(&one, &project, &n.to_string()).await);
    }
    let marker = || async { two.get(&format!("{}/read", of(&project))).await.expect(200) };
    assert_eq!(marker().await["number"], 0);
    assert_eq!(unread(&two, &project).await, (3, 0));
    assert_eq!(unread(&one, &project).await, (0, 0), "one's own are not to be read");
    assert_eq!(read(&two, &project, &sent[1]).await.expect(200)["number"], 2);
    assert_eq!(unread(&two, &project).await, (1, 0));
    let before = marker().await;
    assert_eq!(read(&two, &project, &sent[0]).await.expect(200), before);
    let readers = |message: &Value| {
        let (client, path) = (one.clone(), format!("{}/reads", path(message)));
        async move { client.get(&path).await.expect(200)["data"].as_array().unwrap().len() }
    };
    assert_eq!((readers(&sent[1]).await, readers(&sent[2]).await), (1, 0));
    read(&two, &project, &sent[2]).await.expect(200);
    assert_eq!(readers(&sent[2]).await, 1);
    assert_eq!(unread(&two, &project).await, (0, 0));
    // Whoever is up to date stays so by what they say; whoever is not has still to read.
    say(&two, &project, "4").await;
    assert_eq!(marker().await["number"], 4);
    say(&one, &project, "5").await;
    say(&two, &project, "6").await;
    assert_eq!(marker().await["number"], 4);
    assert_eq!(unread(&two, &project).await, (1, 0));
    assert_eq!(unread(&team.owner, &project).await, (6, 0));
}

#[tokio::test]
async fn markers_set_at_once_end_at_the_last_message() {
    let app = TestApp::shared();
    let team = app.team().await;
    let (project, one, two) = talk(&team).await;
    let mut sent = Vec::new();
    for n in 0..10 {
        sent.push(say(&one, &project, &n.to_string()).await);
    }
    join_all(sent.iter().map(|message| read(&two, &project, message))).await;
    let marker = two.get(&format!("{}/read", of(&project))).await.expect(200);
    assert_eq!(marker["number"], 10);
}

#[tokio::test]
async fn unread_messages_and_mentions_are_counted_for_each_project() {
    let app = TestApp::shared();
    let team = app.team().await;
    let (project, one, _) = talk(&team).await;
    let other = team.project("Not theirs").await;
    let me = one.get("/auth/user").await.expect(200);
    let body = json!({"body": "You there", "mention_ids": [me["id"]]});
    let named = team.owner.post(&of(&project), body).await.expect(201);
    let last = say(&team.owner, &project, "All").await;
    let deleted = say(&team.owner, &project, "Oops").await;
    team.owner.delete(&path(&deleted)).await.expect(204);
    say(&team.owner, &other, "Elsewhere").await;
    assert_eq!(unread(&one, &project).await, (2, 1));
    assert_eq!(unread(&one, &other).await, (0, 0), "not in the project");
    let all = one.get("/me/unread?all=true").await.expect(200);
    assert_eq!((all["unread"].as_i64(), all["data"].as_array().unwrap().len()), (Some(3), 2));
    read(&one, &project, &named).await.expect(200);
    assert_eq!(unread(&one, &project).await, (1, 0));
    let mentions = one.get("/me/mentions?unread=true").await.expect(200);
    assert_eq!(mentions["data"], json!([]), "read with the message");
    read(&one, &project, &last).await.expect(200);
    assert_eq!(one.get("/me/unread").await.expect(200), json!({"data": [], "unread": 0}));
}

#[tokio::test]
async fn whoever_began_a_thread_is_told_of_replies() {
    let app = TestApp::shared();
    let team = app.team().await;
    let (project, one, two) = talk(&team).await;
    let root = say(&one, &project, "Question").await;
    reply(&two, &project, &root, "Answer").await;
    reply(&one, &project, &root, "Thanks").await;
    let told = |kind: &'static str| {
        let client = one.clone();
        async move {
            let page = client.get(&format!("/notifications?kind={kind}")).await.expect(200);
            page["data"].as_array().unwrap().clone()
        }
    };
    within(5, "a notification", || async { !told("message_replied").await.is_empty() }).await;
    let notices = told("message_replied").await;
    assert_eq!(notices[0]["title"], "New reply in Talk");
    assert_eq!(notices[0]["path"], format!("/projects/{}/messages", id(&project)));
    let me = one.get("/auth/user").await.expect(200);
    let body = json!({"body": "And you", "mention_ids": [me["id"]], "parent_id": root["id"]});
    two.post(&of(&project), body).await.expect(201);
    within(5, "a mention", || async { !told("mentioned_in_message").await.is_empty() }).await;
    assert_eq!(told("message_replied").await.len(), 1, "one's own reply, and the mention, are not told of");
}

#[tokio::test]
async fn bad_messages_are_refused() {
    let app = TestApp::shared();
    let (team, rival) = (app.team().await, app.team().await);
    let (project, other, foreign) =
        (team.project("One").await, team.project("Two").await, rival.project("Three").await);
    let root = say(&team.owner, &project, "Root").await;
    let answer = reply(&team.owner, &project, &root, "Reply").await;
    let elsewhere = say(&team.owner, &other, "Elsewhere").await;
    let theirs = say(&rival.owner, &foreign, "Theirs").await;
    let stranger = app.person().await;
    for (body, field) in [
        (json!({}), "body"),
        (json!({"body": ""}), "body"),
        (json!({"body": "x".repeat(20_001)}), "body"),
        (json!({"body": "x", "parent_id": answer["id"]}), "parent_id"),
        (json!({"body": "x", "parent_id": elsewhere["id"]}), "parent_id"),
        (json!({"body": "x", "parent_id": theirs["id"]}), "parent_id"),
        (json!({"body": "x", "mention_ids": [stranger.id]}), "mention_ids"),
        (json!({"body": "x", "number": 7}), "number"),
    ] {
        let error = team.owner.post(&of(&project), body).await.refused(400, "VALIDATION_ERROR");
        assert_eq!(error["fields"][0]["field"], field, "{error}");
    }
    for message in [&elsewhere, &theirs] {
        let error = read(&team.owner, &project, message).await.refused(400, "VALIDATION_ERROR");
        assert_eq!(error["fields"][0]["field"], "up_to");
    }
    team.owner.get(&of(&foreign)).await.refused(404, "NOT_FOUND");
    team.owner.post(&of(&foreign), json!({"body": "x"})).await.refused(404, "NOT_FOUND");
    team.owner.get(&path(&theirs)).await.refused(404, "NOT_FOUND");
    // What was refused took no number.
    assert_eq!(say(&team.owner, &project, "Next").await["number"], 3);
}

#[tokio::test]
async fn strangers_to_a_project_and_viewers_only_read() {
    let app = TestApp::shared();
    let team = app.team().await;
    let (stranger, viewer) = (team.join(Role::Member).await, team.join(Role::Viewer).await);
    let project = team.project("Closed").await;
    let made = say(&team.owner, &project, "Hello").await;
    for client in [&stranger.client, &viewer.client] {
        client.post(&of(&project), json!({"body": "Hi"})).await.refused(403, "PERMISSION_DENIED");
        assert_eq!(bodies(client, &of(&project)).await, ["Hello"]);
        read(client, &project, &made).await.expect(200);
    }
    let path = format!("/projects/{}", id(&project));
    team.owner.patch(&path, json!({"status": "archived"})).await.expect(200);
    team.owner.post(&of(&project), json!({"body": "Late"})).await.refused(409, "CONFLICT");
    team.owner.post(&format!("{path}/unarchive"), json!({})).await.expect(200);
    team.owner.delete(&path).await.expect(204);
    team.owner.get(&format!("/messages/{}", id(&made))).await.refused(404, "NOT_FOUND");
}
