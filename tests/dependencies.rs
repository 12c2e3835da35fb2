//! /tasks/{task_id}/dependencies: what must be done before what.

use futures_util::{future::join_all, join};
use reqwest::Method;
use rowhouse::auth::Role;
use serde_json::{Value, json};

use crate::support::{Answer, Client, Team, TestApp};

fn path(task: &Value) -> String {
    format!("/tasks/{}", task["id"].as_str().unwrap())
}

fn edge(task: &Value, other: &Value) -> String {
    format!("{}/dependencies/{}", path(task), other["id"].as_str().unwrap())
}

async fn wait_for(client: &Client, task: &Value, other: &Value) -> Answer {
    Answer::of(client.request(Method::PUT, &edge(task, other))).await
}

async fn set(team: &Team, task: &Value, status: &str) -> Answer {
    team.owner.patch(&path(task), json!({"status": status})).await
}

async fn status(team: &Team, task: &Value) -> String {
    team.owner.get(&path(task)).await.expect(200)["status"].as_str().unwrap().to_owned()
}

async fn tasks(team: &Team, many: usize) -> Vec<Value> {
    let project = team.project("Order").await;
    let mut made = Vec::new();
    for n in 0..many {
        made.push(team.task(&project, &format!("Task {n}")).await);
    }
    made
}

#[tokio::test]
async fn a_task_tells_what_it_waits_for_and_what_waits_for_it() {
    let app = TestApp::shared();
    let team = app.team().await;
    let all = tasks(&team, 3).await;
    let answer = wait_for(&team.owner, &all[1], &all[0]).await.expect(200);
    assert_eq!(answer["waits_for"], json!([{"id": all[0]["id"], "title": "Task 0", "status": "todo"}]));
    wait_for(&team.owner, &all[2], &all[1]).await.expect(200);
    let seen = team.owner.get(&format!("{}/dependencies", path(&all[1]))).await.expect(200);
    assert_eq!(seen["waits_for"][0]["id"], all[0]["id"]);
    assert_eq!(seen["blocks"], json!([{"id": all[2]["id"], "title": "Task 2", "status": "todo"}]));
    let one = team.owner.get(&path(&all[1])).await.expect(200);
    assert_eq!(one["waits_for"], json!([all[0]["id"]]));
    let summary = team.owner.get(&format!("{}/summary", path(&all[1]))).await.expect(200);
    assert_eq!(summary["blocked_by"][0]["id"], all[0]["id"]);
    // Once more changes nothing, not even the version.
    let before = team.owner.get(&path(&all[1])).await.header("etag").to_owned();
    wait_for(&team.owner, &all[1], &all[0]).await.expect(200);
    assert_eq!(team.owner.get(&path(&all[1])).await.header("etag"), before);
    team.owner.delete(&edge(&all[1], &all[0])).await.expect(204);
    team.owner.delete(&edge(&all[1], &all[0])).await.refused(404, "NOT_FOUND");
    assert_eq!(team.owner.get(&path(&all[1])).await.expect(200)["waits_for"], json!([]));
    // What is deleted is waited for no longer.
    team.owner.delete(&path(&all[1])).await.expect(204);
    assert_eq!(team.owner.get(&path(&all[2])).await.expect(200)["waits_for"], json!([]));
}

#[tokio::test]
async fn a_task_is_done_only_after_what_it_waits_for() {
    let app = TestApp::shared();
    let team = app.team().await;
    let all = tasks(&team, 2).await;
    wait_for(&team.owner, &all[1], &all[0]).await.expect(200);
    let error = set(&team, &all[1], "done").await.refused(409, "CONFLICT");
    assert!(error["message"].as_str().unwrap().contains("Task 0"), "{error}");
    assert_eq!(error["details"]["waits_for"][0]["id"], all[0]["id"]);
    // Every other way is closed too.
    let to = json!({"status": "done"});
    team.owner.post(&format!("{}/move", path(&all[1])), to.clone()).await.refused(409, "CONFLICT");
    let bulk = json!({"ids": [all[1]["id"]], "change": to});
    let error = team.owner.post("/tasks/bulk", bulk).await.refused(409, "CONFLICT");
    assert_eq!(error["fields"][0]["field"], "ids[0]");
    // Anything else about it can change.
    set(&team, &all[1], "review").await.expect(200);
    set(&team, &all[0], "done").await.expect(200);
    set(&team, &all[1], "done").await.expect(200);
    // And what a done task waited for stays done.
    let error = set(&team, &all[0], "todo").await.refused(409, "CONFLICT");
    assert_eq!(error["details"]["blocks"][0]["id"], all[1]["id"]);
    set(&team, &all[1], "todo").await.expect(200);
    set(&team, &all[0], "todo").await.expect(200);
}

#[tokio::test]
async fn what_waits_for_one_another_is_done_and_opened_together() {
    let app = TestApp::shared();
    let team = app.team().await;
    let all = tasks(&team, 2).await;
    wait_for(&team.owner, &all[1], &all[0]).await.expect(200);
    for status in ["done", "todo"] {
        let bulk = json!({"ids": [all[1]["id"], all[0]["id"]], "change": {"status": status}});
        let changed = team.owner.post("/tasks/bulk", bulk).await.expect(200);
        assert!(changed["data"].as_array().unwrap().iter().all(|task| task["status"] == status), "{changed}");
    }
}

#[tokio::test]
async fn circles_and_nonsense_are_refused() {
    let app = TestApp::shared();
    let (team, rival) = (app.team().await, app.team().await);
    let all = tasks(&team, 3).await;
    wait_for(&team.owner, &all[0], &all[0]).await.refused(409, "CONFLICT");
    wait_for(&team.owner, &all[1], &all[0]).await.expect(200);
    wait_for(&team.owner, &all[2], &all[1]).await.expect(200);
    let error = wait_for(&team.owner, &all[0], &all[2]).await.refused(409, "CONFLICT");
    assert!(error["message"].as_str().unwrap().contains("circle"), "{error}");
    wait_for(&team.owner, &all[0], &all[1]).await.refused(409, "CONFLICT");
    let foreign = tasks(&rival, 1).await.remove(0);
    wait_for(&team.owner, &all[0], &foreign).await.refused(404, "NOT_FOUND");
    wait_for(&team.owner, &foreign, &all[0]).await.refused(404, "NOT_FOUND");
    let viewer = team.join(Role::Viewer).await;
    wait_for(&viewer.client, &all[2], &all[0]).await.refused(403, "PERMISSION_DENIED");
    let member = team.join(Role::Member).await;
    wait_for(&member.client, &all[2], &all[0]).await.refused(403, "PERMISSION_DENIED");
    let outdated = team.owner.header("if-match", "\"v77\"");
    wait_for(&outdated, &all[2], &all[0]).await.refused(412, "PRECONDITION_FAILED");
    // A done task cannot wait for one that is not.
    let [done, open] = [tasks(&team, 1).await.remove(0), tasks(&team, 1).await.remove(0)];
    set(&team, &done, "done").await.expect(200);
    wait_for(&team.owner, &done, &open).await.refused(409, "CONFLICT");
}

#[tokio::test]
async fn a_task_waits_for_fifty_others_at_most() {
    let app = TestApp::shared();
    let team = app.team().await;
    let all = tasks(&team, 52).await;
    for other in &all[1..51] {
        wait_for(&team.owner, &all[0], other).await.expect(200);
    }
    wait_for(&team.owner, &all[0], &all[51]).await.refused(409, "CONFLICT");
}

#[tokio::test]
async fn two_who_close_a_circle_at_once_do_not_both_succeed() {
    let app = TestApp::shared();
    let team = app.team().await;
    for _ in 0..10 {
        let all = tasks(&team, 3).await;
        wait_for(&team.owner, &all[1], &all[0]).await.expect(200);
        let (one, two) =
            join!(wait_for(&team.owner, &all[2], &all[1]), wait_for(&team.owner, &all[0], &all[2]));
        let mut statuses = [one.status.as_u16(), two.status.as_u16()];
        statuses.sort();
        assert_eq!(statuses, [200, 409]);
    }
}

#[tokio::test]
async fn nothing_is_done_before_what_it_waits_for_however_they_race() {
    let app = TestApp::shared();
    let team = app.team().await;
    for _ in 0..10 {
        let all = tasks(&team, 2).await;
        wait_for(&team.owner, &all[1], &all[0]).await.expect(200);
        set(&team, &all[0], "done").await.expect(200);
        let (reopened, done) = join!(set(&team, &all[0], "todo"), set(&team, &all[1], "done"));
        let mut statuses = [reopened.status.as_u16(), done.status.as_u16()];
        statuses.sort();
        assert_eq!(statuses, [200, 409], "{} {}", reopened.text, done.text);
        let both = (status(&team, &all[0]).await, status(&team, &all[1]).await);
        assert!(both.0 == "done" || both.1 != "done", "{both:?}");
    }
}

#[tokio::test]
async fn a_dependency_and_a_completion_that_race_do_not_break_the_rule() {
    let app = TestApp::shared();
    let team = app.team().await;
    for _ in 0..10 {
        let all = tasks(&team, 2).await;
        let (added, done) = join!(wait_for(&team.owner, &all[1], &all[0]), set(&team, &all[1], "done"));
        let mut statuses = [added.status.as_u16(), done.status.as_u16()];
        statuses.sort();
        assert_eq!(statuses, [200, 409], "{} {}", added.text, done.text);
    }
}

#[tokio::test]
async fn many_complete_a_chain_at_once_without_standing_in_each_others_way() {
    let app = TestApp::shared();
    let team = app.team().await;
    let all = tasks(&team, 8).await;
    for pair in all.windows(2) {
        wait_for(&team.owner, &pair[1], &pair[0]).await.expect(200);
    }
    // Each round completes at least the next one.
    for _ in 0..all.len() {
        let answers = join_all(all.iter().rev().map(|task| set(&team, task, "done"))).await;
        for answer in answers {
            assert!([200, 409].contains(&answer.status.as_u16()), "{}", answer.text);
        }
    }
    for task in &all {
        assert_eq!(status(&team, task).await, "done");
    }
}

#[tokio::test]
async fn what_waited_for_a_deleted_task_is_told_of() {
    let app = TestApp::shared();
    let team = app.team().await;
    let [first, second] = [tasks(&team, 1).await.remove(0), tasks(&team, 1).await.remove(0)];
    let waiting = tasks(&team, 1).await.remove(0);
    wait_for(&team.owner, &waiting, &first).await.expect(200);
    wait_for(&team.owner, &waiting, &second).await.expect(200);
    let project = format!("/projects/{}", second["project_id"].as_str().unwrap());
    for (gone, left) in [(path(&first), json!([second["id"]])), (project, json!([]))] {
        let before = team.owner.get(&path(&waiting)).await.header("etag").to_owned();
        let before = before.split('-').next().unwrap().to_owned();
        team.owner.delete(&gone).await.expect(204);
        let now = team.owner.get(&path(&waiting)).await;
        assert!(!now.header("etag").starts_with(&format!("{before}-")), "{before}");
        assert_eq!(now.expect(200)["waits_for"], left);
        let told = team.owner.get("/events?type=task.updated").await.expect(200);
        assert_eq!(told["data"][0]["resource_id"], waiting["id"]);
        assert_eq!(told["data"][0]["changes"]["waits_for"]["after"], left);
    }
}
