//! /activity, of an organization, a project and a task.

use rowhouse::auth::Role;
use serde_json::{Value, json};

use crate::support::{Client, TestApp};

fn id(object: &Value) -> &str {
    object["id"].as_str().unwrap()
}

async fn kinds(client: &Client, path: &str) -> Vec<String> {
    let page = client.get(path).await.expect(200);
    page["data"].as_array().unwrap().iter().map(|one| one["type"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_project_and_a_task_tell_what_happened_in_them() {
    let app = TestApp::shared();
    let team = app.team().await;
    let (project, other) = (team.project("Ours").await, team.project("Other").await);
    let task = team.task(&project, "Write it").await;
    team.task(&other, "Not here").await;
    let task_path = format!("/tasks/{}", id(&task));
    team.owner.patch(&task_path, json!({"status": "done"})).await.expect(200);
    team.owner.post(&format!("{task_path}/comments"), json!({"body": "Well done"})).await.expect(201);
    let of_project = format!("/projects/{}/activity", id(&project));
    let expected = ["comment.created", "task.updated", "task.completed", "task.created", "project.created"];
    assert_eq!(kinds(&team.owner, &of_project).await, expected);
    let messages = format!("/projects/{}/messages", id(&project));
    team.owner.post(&messages, json!({"body": "It is written"})).await.expect(201);
    assert_eq!(kinds(&team.owner, &of_project).await[0], "message.created");
    assert_eq!(kinds(&team.owner, &format!("{task_path}/activity")).await, expected[..4]);
    let page = team.owner.get(&format!("{of_project}?type=task.updated")).await.expect(200);
    let changed = &page["data"][0];
    assert_eq!(page["data"].as_array().unwrap().len(), 1);
    assert_eq!(changed["title"], "Write it");
    assert_eq!(changed["resource_id"], task["id"]);
    assert_eq!(changed["actor_id"], team.founder.id);
    let name = changed["actor_name"].as_str().unwrap();
    assert_eq!(changed["summary"], format!("{name} updated the task ‘Write it’."));
    let status = json!({"field": "status", "before": "todo", "after": "done"});
    assert!(changed["changed"].as_array().unwrap().contains(&status));
}

#[tokio::test]
async fn the_organizations_activity_is_read_in_stretches_and_filtered() {
    let app = TestApp::shared();
    let team = app.team().await;
    let member = team.join(Role::Manager).await;
    let project = team.project("Long").await;
    for n in 0..5 {
        team.task(&project, &format!("Task {n}")).await;
    }
    member.client.patch(&format!("/projects/{}", id(&project)), json!({"name": "Longer"})).await.expect(200);
    let theirs = format!("/activity?actor_id={}", member.id);
    assert_eq!(kinds(&team.owner, &theirs).await, ["project.updated"]);
    assert_eq!(kinds(&team.owner, "/activity?type=task.created").await.len(), 5);
    for path in ["/activity?limit=2".to_owned(), format!("/projects/{}/activity?limit=2", id(&project))] {
        let all = kinds(&team.owner, &path.replace("limit=2", "limit=100")).await;
        let (mut read, mut next) = (Vec::new(), path.clone());
        loop {
            let page = team.owner.get(&next).await.expect(200);
            let data = page["data"].as_array().unwrap();
            read.extend(data.iter().map(|one| one["type"].as_str().unwrap().to_owned()));
            let Some(cursor) = page["next_cursor"].as_str() else { break };
            next = format!("{path}&cursor={cursor}");
        }
        assert_eq!(read, all);
    }
    team.owner.get("/activity?cursor=forged").await.refused(400, "VALIDATION_ERROR");
    team.owner.get("/activity?limit=101").await.refused(400, "VALIDATION_ERROR");
    team.owner.get("/activity?type=no.such").await.refused(400, "VALIDATION_ERROR");
}

#[tokio::test]
async fn activity_shows_nobody_what_they_may_not_see() {
    let app = TestApp::shared();
    let (team, rival) = (app.team().await, app.team().await);
    let project = team.project("Secret").await;
    let task = team.task(&project, "Hidden").await;
    let person = team.join(Role::Viewer).await;
    let denied = json!({"denials": ["tasks:read"]});
    team.owner.patch(&team.path(&format!("/members/{}", person.id)), denied).await.expect(200);
    let of_project = format!("/projects/{}/activity", id(&project));
    assert_eq!(kinds(&person.client, &of_project).await, ["project.created"]);
    assert!(kinds(&person.client, "/activity?type=task.created").await.is_empty());
    let of_task = format!("/tasks/{}/activity", id(&task));
    person.client.get(&of_task).await.refused(403, "PERMISSION_DENIED");
    rival.owner.get(&of_project).await.refused(404, "NOT_FOUND");
    rival.owner.get(&of_task).await.refused(404, "NOT_FOUND");
    team.owner.delete(&format!("/projects/{}", id(&project))).await.expect(204);
    team.owner.get(&of_project).await.refused(404, "NOT_FOUND");
    team.owner.get(&of_task).await.refused(404, "NOT_FOUND");
    assert_eq!(kinds(&team.owner, "/activity?type=project.deleted").await, ["project.deleted"]);
}
