//! /tasks/{task_id}/move: the order within a column, and the way to another.

use futures_util::future::join_all;
use rowhouse::auth::Role;
use serde_json::{Value, json};

use crate::support::{Team, TestApp};

fn id(thing: &Value) -> &str {
    thing["id"].as_str().unwrap()
}

async fn go(team: &Team, task: &Value, to: Value) -> Value {
    team.owner.post(&format!("/tasks/{}/move", id(task)), to).await.expect(200)
}

/// The titles of a column from the top.
async fn column(team: &Team, project: &Value, status: &str) -> Vec<String> {
    let path = format!("/tasks?project_id={}&status={status}&sort=position&page_size=100", id(project));
    let page = team.owner.get(&path).await.expect(200);
    page["data"].as_array().unwrap().iter().map(|task| task["title"].as_str().unwrap().to_owned()).collect()
}

async fn board(team: &Team, titles: &[&str]) -> (Value, Vec<Value>) {
    let project = team.project("Board").await;
    let mut tasks = Vec::new();
    for title in titles {
        tasks.push(team.task(&project, title).await);
    }
    (project, tasks)
}

#[tokio::test]
async fn tasks_stand_where_they_are_put() {
    let app = TestApp::shared();
    let team = app.team().await;
    let (project, tasks) = board(&team, &["A", "B", "C", "D"]).await;
    assert_eq!(column(&team, &project, "todo").await, ["A", "B", "C", "D"]);
    go(&team, &tasks[3], json!({"after_id": id(&tasks[0])})).await;
    assert_eq!(column(&team, &project, "todo").await, ["A", "D", "B", "C"]);
    go(&team, &tasks[2], json!({"before_id": id(&tasks[0])})).await;
    assert_eq!(column(&team, &project, "todo").await, ["C", "A", "D", "B"]);
    go(&team, &tasks[0], json!({})).await;
    assert_eq!(column(&team, &project, "todo").await, ["C", "D", "B", "A"]);
    go(&team, &tasks[2], json!({"after_id": id(&tasks[0])})).await;
    assert_eq!(column(&team, &project, "todo").await, ["D", "B", "A", "C"]);
    team.task(&project, "E").await;
    assert_eq!(column(&team, &project, "todo").await, ["D", "B", "A", "C", "E"]);
}

#[tokio::test]
async fn a_move_to_another_column_changes_the_status_and_what_follows_from_it() {
    let app = TestApp::shared();
    let team = app.team().await;
    let (project, tasks) = board(&team, &["A", "B", "C"]).await;
    go(&team, &tasks[0], json!({"status": "review"})).await;
    go(&team, &tasks[1], json!({"status": "review", "before_id": id(&tasks[0])})).await;
    // Changed without a place, it comes to the end.
    team.owner.patch(&format!("/tasks/{}", id(&tasks[2])), json!({"status": "review"})).await.expect(200);
    assert_eq!(column(&team, &project, "review").await, ["B", "A", "C"]);
    let done = go(&team, &tasks[0], json!({"status": "done"})).await;
    assert!(done["completed_at"].is_string());
    let again = go(&team, &tasks[0], json!({})).await;
    assert_eq!(again["completed_at"], done["completed_at"]);
    assert_eq!(go(&team, &tasks[0], json!({"status": "todo"})).await["completed_at"], json!(null));
}

#[tokio::test]
async fn a_place_that_has_become_too_narrow_is_made_wider() {
    let app = TestApp::shared();
    let team = app.team().await;
    let (project, tasks) = board(&team, &["A", "B", "C", "D"]).await;
    // Each goes between the other and the first: the gap halves with every move.
    for n in 0..60 {
        let (moved, stays) = (&tasks[2 + n % 2], &tasks[2 + (n + 1) % 2]);
        go(&team, moved, json!({"after_id": id(&tasks[0])})).await;
        let expected = ["A", moved["title"].as_str().unwrap(), stays["title"].as_str().unwrap(), "B"];
        if n > 0 {
            assert_eq!(column(&team, &project, "todo").await, expected, "after {n} moves");
        }
    }
    for task in &tasks {
        let position = team.owner.get(&format!("/tasks/{}", id(task))).await.expect(200)["position"].clone();
        assert!(position.as_str().unwrap().len() < 40, "{position}");
    }
}

#[tokio::test]
async fn tasks_from_before_there_were_places_can_be_moved_too() {
    let app = TestApp::shared();
    let team = app.team().await;
    let (project, tasks) = board(&team, &["A", "B", "C"]).await;
    let schema = app
        .texts(&format!(
            "select 'tenant_' || replace(schema_id::text, '-', '') from platform.organizations where id = '{}'",
            team.id
        ))
        .await
        .remove(0);
    app.sql(&format!("update {schema}.tasks set position = 0")).await;
    assert_eq!(column(&team, &project, "todo").await, ["A", "B", "C"]);
    go(&team, &tasks[2], json!({"after_id": id(&tasks[0])})).await;
    assert_eq!(column(&team, &project, "todo").await, ["A", "C", "B"]);
}

#[tokio::test]
async fn a_place_beside_what_is_not_there_is_refused() {
    let app = TestApp::shared();
    let team = app.team().await;
    let (_, tasks) = board(&team, &["A", "B"]).await;
    let (_, others) = board(&team, &["C"]).await;
    let path = format!("/tasks/{}/move", id(&tasks[0]));
    for (body, field) in [
        (json!({"after_id": id(&others[0])}), "after_id"),
        (json!({"before_id": id(&others[0])}), "before_id"),
        (json!({"after_id": id(&tasks[0])}), "after_id"),
        (json!({"after_id": "0190b6a1-7c1e-7000-8000-000000000001"}), "after_id"),
        (json!({"status": "done", "after_id": id(&tasks[1])}), "after_id"),
        (json!({"after_id": id(&tasks[1]), "before_id": id(&tasks[1])}), "before_id"),
        (json!({"status": "open"}), "status"),
        (json!({"position": 3}), "position"),
        (json!({"project_id": "0190b6a1-7c1e-7000-8000-000000000001"}), "project_id"),
    ] {
        let error = team.owner.post(&path, body.clone()).await.refused(400, "VALIDATION_ERROR");
        assert_eq!(error["fields"][0]["field"], field, "{body}: {error}");
    }
    let member = team.join(Role::Member).await;
    member.client.post(&path, json!({})).await.refused(403, "PERMISSION_DENIED");
}

#[tokio::test]
async fn many_who_move_at_once_lose_no_task_and_no_order() {
    let app = TestApp::shared();
    let team = app.team().await;
    let titles: Vec<String> = (0..12).map(|n| format!("T{n:02}")).collect();
    let (project, tasks) = board(&team, &titles.iter().map(String::as_str).collect::<Vec<_>>()).await;
    for round in 0..4 {
        let moves = (1..tasks.len()).map(|n| {
            let beside = &tasks[(n + round) % n];
            let to =
                if n % 2 == 0 { json!({"after_id": id(beside)}) } else { json!({"before_id": id(beside)}) };
            let path = format!("/tasks/{}/move", id(&tasks[n]));
            let owner = team.owner.clone();
            async move { owner.post(&path, to).await }
        });
        for answer in join_all(moves).await {
            assert_eq!(answer.status, 200, "{}", answer.text);
        }
    }
    let mut there = column(&team, &project, "todo").await;
    assert_eq!(there, column(&team, &project, "todo").await, "the order is one");
    there.sort();
    assert_eq!(there, titles);
}

#[tokio::test]
async fn a_task_moves_to_another_project_with_all_that_is_under_it() {
    let app = TestApp::shared();
    let team = app.team().await;
    let (from, to) = (team.project("From").await, team.project("To").await);
    let done = json!({"project_id": from["id"], "title": "Top", "status": "done", "impact": 30});
    let top = team.owner.post("/tasks", done).await.expect(201);
    let below = json!({"project_id": from["id"], "title": "Below", "status": "done", "impact": 20, "parent_id": top["id"]});
    let below = team.owner.post("/tasks", below).await.expect(201);
    let leaf = json!({"project_id": from["id"], "title": "Leaf", "parent_id": below["id"]});
    let leaf = team.owner.post("/tasks", leaf).await.expect(201);
    let progress = async |project: &Value| {
        team.owner.get(&format!("/projects/{}", id(project))).await.expect(200)["progress"].as_f64().unwrap()
    };
    assert_eq!((progress(&from).await, progress(&to).await), (50.0, 0.0));
    go(&team, &top, json!({"project_id": id(&to)})).await;
    assert_eq!((progress(&from).await, progress(&to).await), (0.0, 50.0));
    for task in [&below, &leaf] {
        let now = team.owner.get(&format!("/tasks/{}", id(task))).await.expect(200);
        assert_eq!((&now["project_id"], &now["parent_id"]), (&to["id"], &task["parent_id"]));
    }
    // Without its parent it leaves it; and by a change it works as well.
    let path = format!("/tasks/{}", id(&below));
    let moved = team.owner.patch(&path, json!({"project_id": id(&from)})).await.expect(200);
    assert_eq!((&moved["project_id"], &moved["parent_id"]), (&from["id"], &json!(null)));
    assert_eq!((progress(&from).await, progress(&to).await), (20.0, 30.0));
    let now = team.owner.get(&format!("/tasks/{}", id(&leaf))).await.expect(200);
    assert_eq!((&now["project_id"], &now["parent_id"]), (&from["id"], &below["id"]));
}

#[tokio::test]
async fn a_member_moves_tasks_only_into_projects_they_are_in() {
    let app = TestApp::shared();
    let team = app.team().await;
    let member = team.join(Role::Member).await;
    let mine = member.client.post("/projects", json!({"name": "Mine"})).await.expect(201);
    let (closed, archived) = (team.project("Closed").await, team.project("Archived").await);
    let task = json!({"project_id": mine["id"], "title": "Task"});
    let task = member.client.post("/tasks", task).await.expect(201);
    team.owner.post(&format!("/projects/{}/archive", id(&archived)), json!({})).await.expect(200);
    let path = format!("/tasks/{}", id(&task));
    member.client.patch(&path, json!({"project_id": id(&closed)})).await.refused(403, "PERMISSION_DENIED");
    team.owner.patch(&path, json!({"project_id": id(&archived)})).await.refused(409, "CONFLICT");
    let bulk = json!({"ids": [id(&task)], "change": {"project_id": id(&closed)}});
    member.client.post("/tasks/bulk", bulk).await.refused(403, "PERMISSION_DENIED");
    assert_eq!(team.owner.get(&path).await.expect(200)["project_id"], mine["id"]);
}

#[tokio::test]
async fn only_a_part_of_a_long_column_is_laid_out_anew() {
    let app = TestApp::shared();
    let team = app.team().await;
    let (project, tasks) = board(&team, &["M0", "First"]).await;
    let (schema, home) = (team.schema().await, id(&project));
    let first = id(&tasks[1]);
    app.sql(&format!(
        "insert into {schema}.tasks (id, project_id, title, status, priority, created_by, created_at, updated_at, position) \
         select gen_random_uuid(), '{home}', 'T' || n, 'todo', 'low', '{}', now(), now(), n * 1000 \
         from generate_series(1, 500) as n",
        team.founder.id
    ))
    .await;
    // At the place of another there is no room.
    app.sql(&format!("update {schema}.tasks set position = 1000, title = 'T0' where id = '{first}'")).await;
    app.sql(&format!("update {schema}.tasks set position = 1000.00000000000001 where title = 'T1'")).await;
    go(&team, &tasks[0], json!({"after_id": first})).await;
    let top = column(&team, &project, "todo").await;
    let expected: Vec<String> = (1..99).map(|n| format!("T{n}")).collect();
    assert_eq!((&*top[0], &*top[1], &top[2..]), ("T0", "M0", &expected[..]));
    let count = async |condition: &str| {
        app.number(&format!(
            "select count(*) from {schema}.tasks where project_id = '{home}' and {condition}"
        ))
        .await
    };
    assert!(count("title like 'T%' and position = substr(title, 2)::numeric * 1000").await >= 299);
    let out_of_order = "title like 'T%' and exists (select 1 from {schema}.tasks o where o.project_id = tasks.project_id \
         and o.title like 'T%' and substr(o.title, 2)::int > substr(tasks.title, 2)::int \
         and o.position <= tasks.position)";
    assert_eq!(count(&out_of_order.replace("{schema}", &schema)).await, 0);
}

#[tokio::test]
async fn two_who_put_tasks_at_one_place_get_two_places() {
    let app = TestApp::shared();
    let team = app.team().await;
    let titles: Vec<String> = (0..10).map(|n| format!("T{n}")).collect();
    let (project, tasks) = board(&team, &titles.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let moves = tasks[2..].iter().map(|task| {
        let (owner, path) = (team.owner.clone(), format!("/tasks/{}/move", id(task)));
        let to = json!({"after_id": id(&tasks[0])});
        async move { owner.post(&path, to).await.expect(200) }
    });
    join_all(moves).await;
    let list = format!("/tasks?project_id={}&page_size=100", id(&project));
    let page = team.owner.get(&list).await.expect(200);
    let mut places: Vec<&str> =
        page["data"].as_array().unwrap().iter().map(|task| task["position"].as_str().unwrap()).collect();
    places.sort();
    places.dedup();
    assert_eq!(places.len(), tasks.len());
    let there = column(&team, &project, "todo").await;
    assert_eq!((&*there[0], &*there[9]), ("T0", "T1"));
}
