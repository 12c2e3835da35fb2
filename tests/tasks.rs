//! /tasks, and the progress that they make.

use rowhouse::auth::Role;
use serde_json::{Value, json};

use crate::support::{Team, TestApp};

fn path(task: &Value) -> String {
    format!("/tasks/{}", task["id"].as_str().unwrap())
}

async fn progress(team: &Team, project: &Value) -> f64 {
    let path = format!("/projects/{}", project["id"].as_str().unwrap());
    team.owner.get(&path).await.expect(200)["progress"].as_f64().unwrap()
}

#[tokio::test]
async fn a_task_keeps_everything_it_was_made_with() {
    let app = TestApp::shared();
    let team = app.team().await;
    let (one, two) = (team.join(Role::Member).await, team.join(Role::Viewer).await);
    let project = team.project("Home").await;
    let mut assignees = [one.id.clone(), two.id.clone()];
    assignees.sort();
    let new = json!({"project_id": project["id"], "title": "Write", "description": "All of it", "status": "review",
        "priority": "high", "assignee_ids": assignees, "due_date": "2026-12-01", "estimated_hours": 6.5,
        "actual_hours": 2.25, "impact": 12.5});
    let made = team.owner.post("/tasks", new.clone()).await.expect(201);
    for (field, value) in new.as_object().unwrap() {
        assert_eq!(&made[field], value);
    }
    assert_eq!(made["completed_at"], json!(null));
    assert_eq!(team.owner.get(&path(&made)).await.expect(200), made);
}

#[tokio::test]
async fn completion_and_progress_follow_the_tasks() {
    let app = TestApp::shared();
    let team = app.team().await;
    let project = team.project("Progress").await;
    let mut tasks = Vec::new();
    for impact in [30.0, 50.5, 40.0] {
        let body = json!({"project_id": project["id"], "title": "Step", "impact": impact});
        tasks.push(team.owner.post("/tasks", body).await.expect(201));
    }
    let done = team.owner.patch(&path(&tasks[0]), json!({"status": "done"})).await.expect(200);
    assert!(done["completed_at"].is_string());
    assert_eq!(progress(&team, &project).await, 30.0);
    team.owner.patch(&path(&tasks[1]), json!({"status": "done"})).await.expect(200);
    assert_eq!(progress(&team, &project).await, 80.5);
    team.owner.patch(&path(&tasks[2]), json!({"status": "done"})).await.expect(200);
    assert_eq!(progress(&team, &project).await, 100.0);
    let reopened = team.owner.patch(&path(&tasks[0]), json!({"status": "todo"})).await.expect(200);
    assert_eq!(reopened["completed_at"], json!(null));
    assert_eq!(progress(&team, &project).await, 90.5);
    team.owner.patch(&path(&tasks[1]), json!({"impact": 10})).await.expect(200);
    assert_eq!(progress(&team, &project).await, 50.0);
    team.owner.delete(&path(&tasks[2])).await.expect(204);
    assert_eq!(progress(&team, &project).await, 10.0);
    // Done from the start counts too, and editing a done task keeps its time.
    let body = json!({"project_id": project["id"], "title": "Was done", "impact": 5, "status": "done"});
    let made = team.owner.post("/tasks", body).await.expect(201);
    assert_eq!(progress(&team, &project).await, 15.0);
    let edited = team.owner.patch(&path(&made), json!({"title": "Was done before"})).await.expect(200);
    assert_eq!(edited["completed_at"], made["completed_at"]);
}

#[tokio::test]
async fn progress_is_right_after_concurrent_edits() {
    let app = TestApp::shared();
    let team = app.team().await;
    let project = team.project("Busy").await;
    let mut tasks = Vec::new();
    for _ in 0..25 {
        let body = json!({"project_id": project["id"], "title": "One", "impact": 3});
        tasks.push(team.owner.post("/tasks", body).await.expect(201));
    }
    let owner = &team.owner;
    let edits = tasks
        .iter()
        .map(|task| async move { owner.patch(&path(task), json!({"status": "done"})).await.expect(200) });
    futures_util::future::join_all(edits).await;
    assert_eq!(progress(&team, &project).await, 75.0);
    let edits = tasks.iter().take(10).map(|task| async move { owner.delete(&path(task)).await.expect(204) });
    futures_util::future::join_all(edits).await;
    assert_eq!(progress(&team, &project).await, 45.0);
}

#[tokio::test]
async fn tasks_are_filtered_searched_and_sorted() {
    let app = TestApp::shared();
    let team = app.team().await;
    let member = team.join(Role::Member).await;
    let (one, two) = (team.project("One").await, team.project("Two").await);
    for (project, title, status, due, who) in [
        (&one, "Paint the fence", "todo", Some("2026-03-01"), Some(&member.id)),
        (&one, "Buy paint", "done", Some("2026-02-01"), None),
        (&two, "Call the painter", "todo", None, Some(&team.founder.id)),
    ] {
        let assignees: Vec<_> = who.into_iter().collect();
        let body = json!({"project_id": project["id"], "title": title, "status": status, "due_date": due, "assignee_ids": assignees});
        team.owner.post("/tasks", body).await.expect(201);
    }
    let list = |query: String| {
        let client = team.owner.clone();
        async move {
            let page = client.get(&format!("/tasks?{query}")).await.expect(200);
            let titles: Vec<String> = page["data"]
                .as_array()
                .unwrap()
                .iter()
                .map(|task| task["title"].as_str().unwrap().to_owned())
                .collect();
            assert_eq!(page["total"], titles.len());
            titles
        }
    };
    let id = |project: &Value| project["id"].as_str().unwrap().to_owned();
    assert_eq!(list(format!("project_id={}&sort=title", id(&one))).await, ["Buy paint", "Paint the fence"]);
    assert_eq!(list(format!("assigned_to={}", member.id)).await, ["Paint the fence"]);
    assert_eq!(list("status=done".into()).await, ["Buy paint"]);
    assert_eq!(list("due_before=2026-02-15".into()).await, ["Buy paint"]);
    assert_eq!(list("due_after=2026-02-15".into()).await, ["Paint the fence"]);
    assert_eq!(list("search=painter".into()).await, ["Call the painter"]);
    assert_eq!(
        list("search=paint&sort=due_date".into()).await,
        ["Buy paint", "Paint the fence", "Call the painter"]
    );
    assert_eq!(list("sort=-due_date".into()).await, ["Paint the fence", "Buy paint", "Call the painter"]);
    for bad in ["status=open", "project_id=1", "due_before=tomorrow", "sort=priority_", "assigned_to=me"] {
        team.owner.get(&format!("/tasks?{bad}")).await.refused(400, "VALIDATION_ERROR");
    }
}

#[tokio::test]
async fn bad_tasks_are_refused() {
    let app = TestApp::shared();
    let team = app.team().await;
    let stranger = app.person().await;
    let rival = app.team().await;
    let (project, foreign) = (team.project("P").await, rival.project("F").await);
    let id = &project["id"];
    for (body, field) in [
        (json!({"title": "x"}), "project_id"),
        (json!({"project_id": id}), "title"),
        (json!({"project_id": foreign["id"], "title": "x"}), "project_id"),
        (json!({"project_id": id, "title": "x".repeat(201)}), "title"),
        (json!({"project_id": id, "title": "x", "status": "open"}), "status"),
        (json!({"project_id": id, "title": "x", "impact": 101}), "impact"),
        (json!({"project_id": id, "title": "x", "impact": -1}), "impact"),
        (json!({"project_id": id, "title": "x", "impact": "5"}), "impact"),
        (json!({"project_id": id, "title": "x", "estimated_hours": -0.5}), "estimated_hours"),
        (json!({"project_id": id, "title": "x", "actual_hours": 1e9}), "actual_hours"),
        (json!({"project_id": id, "title": "x", "assignee_ids": [stranger.id]}), "assignee_ids"),
        (json!({"project_id": id, "title": "x", "assignee_ids": ["me"]}), "assignee_ids[0]"),
        (json!({"project_id": id, "title": "x", "due_date": "soon"}), "due_date"),
        (json!({"project_id": id, "title": "x", "completed_at": "2026-01-01T00:00:00Z"}), "completed_at"),
    ] {
        let error = team.owner.post("/tasks", body.clone()).await.refused(400, "VALIDATION_ERROR");
        assert_eq!(error["fields"][0]["field"], field, "{body}: {error}");
    }
    assert_eq!(team.owner.get("/tasks").await.expect(200)["total"], 0);
}

#[tokio::test]
async fn a_member_writes_what_they_made_are_assigned_to_or_own_the_project_of() {
    let app = TestApp::shared();
    let team = app.team().await;
    let (member, other) = (team.join(Role::Member).await, team.join(Role::Member).await);
    let joined =
        team.owner.post("/projects", json!({"name": "Joined", "member_ids": [member.id]})).await.expect(201);
    let closed = team.project("Closed").await;
    let owned = member.client.post("/projects", json!({"name": "Owned"})).await.expect(201);
    let new = |project: &Value| json!({"project_id": project["id"], "title": "Task"});
    let made = member.client.post("/tasks", new(&joined)).await.expect(201);
    member.client.post("/tasks", new(&closed)).await.refused(403, "PERMISSION_DENIED");
    member.client.post("/tasks", new(&owned)).await.expect(201);
    member.client.patch(&path(&made), json!({"status": "done"})).await.expect(200);
    other.client.patch(&path(&made), json!({"status": "todo"})).await.refused(403, "PERMISSION_DENIED");
    let assigned = json!({"project_id": closed["id"], "title": "Given", "assignee_ids": [other.id]});
    let assigned = team.owner.post("/tasks", assigned).await.expect(201);
    other.client.patch(&path(&assigned), json!({"actual_hours": 3})).await.expect(200);
    member.client.delete(&path(&assigned)).await.refused(403, "PERMISSION_DENIED");
    let in_owned = team.owner.post("/tasks", new(&owned)).await.expect(201);
    member.client.delete(&path(&in_owned)).await.expect(204);
}

#[tokio::test]
async fn deleting_a_project_deletes_its_tasks_and_no_others() {
    let app = TestApp::shared();
    let team = app.team().await;
    let (one, two) = (team.project("One").await, team.project("Two").await);
    let (gone, kept) = (team.task(&one, "Gone").await, team.task(&two, "Kept").await);
    team.owner.delete(&format!("/projects/{}", one["id"].as_str().unwrap())).await.expect(204);
    team.owner.get(&path(&gone)).await.refused(404, "NOT_FOUND");
    team.owner.get(&path(&kept)).await.expect(200);
}

#[tokio::test]
async fn work_goes_on_after_somebody_has_left() {
    let app = TestApp::shared();
    let team = app.team().await;
    let (leaver, newcomer) = (team.join(Role::Member).await, team.join(Role::Member).await);
    let body = json!({"name": "Handed over", "owner_id": leaver.id, "member_ids": [leaver.id]});
    let project = team.owner.post("/projects", body).await.expect(201);
    let body = json!({"project_id": project["id"], "title": "Orphan", "assignee_ids": [leaver.id]});
    let task = team.owner.post("/tasks", body).await.expect(201);
    team.owner.delete(&team.path(&format!("/members/{}", leaver.id))).await.expect(204);
    let done = team.owner.patch(&path(&task), json!({"status": "done"})).await.expect(200);
    assert_eq!(done["assignee_ids"], json!([leaver.id]));
    let project_path = format!("/projects/{}", project["id"].as_str().unwrap());
    team.owner.patch(&project_path, json!({"name": "Renamed"})).await.expect(200);
    let mut both = [leaver.id.clone(), newcomer.id.clone()];
    both.sort();
    team.owner.patch(&path(&task), json!({"assignee_ids": both})).await.expect(200);
    // Once out, they cannot be put back in.
    team.owner.patch(&path(&task), json!({"assignee_ids": [newcomer.id]})).await.expect(200);
    let back = team.owner.patch(&path(&task), json!({"assignee_ids": both})).await;
    back.refused(400, "VALIDATION_ERROR");
}

#[tokio::test]
async fn signs_do_not_hide_words_from_a_search() {
    let app = TestApp::shared();
    let team = app.team().await;
    let project = team.project("Moving").await;
    team.task(&project, "Sign the lease for unit 04-12").await;
    team.task(&project, "Relaunch acme.com/shop, write to ana@acme.com").await;
    for (typed, hits) in
        [("04-12", 1), ("acme.com", 1), ("shop", 1), ("ana", 1), ("lease%20unit", 1), ("12-04x", 0)]
    {
        let found = team.owner.get(&format!("/tasks?search={typed}")).await.expect(200);
        assert_eq!(found["total"], hits, "{typed}");
    }
}

#[tokio::test]
async fn dates_that_no_calendar_has_are_refused() {
    let app = TestApp::shared();
    let team = app.team().await;
    let project = team.project("Ancient").await;
    let body = json!({"project_id": project["id"], "title": "Old", "due_date": "-9999-01-01"});
    team.owner.post("/tasks", body).await.refused(400, "VALIDATION_ERROR");
    let body = json!({"name": "Far", "end_date": "+262142-12-31"});
    team.owner.post("/projects", body).await.refused(400, "VALIDATION_ERROR");
    team.owner.get("/tasks?due_before=-9999-01-01").await.refused(400, "VALIDATION_ERROR");
}
