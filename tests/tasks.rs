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

#[tokio::test]
async fn progress_is_right_after_fifty_edits_of_every_kind_at_once() {
    let app = TestApp::shared();
    let team = app.team().await;
    let (project, other) = (team.project("Busy").await, team.project("Other").await);
    let mut tasks = Vec::new();
    for n in 0..25 {
        let status = if n % 2 == 0 { "todo" } else { "done" };
        let body = json!({"project_id": project["id"], "title": "One", "impact": 3, "status": status});
        tasks.push(team.owner.post("/tasks", body).await.expect(201));
    }
    let edits = (0..50).map(|n| {
        let (owner, task) = (team.owner.clone(), path(&tasks[n * 7 % 25]));
        let (home, away) = (project["id"].clone(), other["id"].clone());
        async move {
            match n % 8 {
                0 => owner.patch(&task, json!({"status": "done"})).await,
                1 => owner.patch(&task, json!({"impact": 7.25})).await,
                2 => owner.patch(&task, json!({"status": "review"})).await,
                3 => owner.patch(&task, json!({"project_id": away})).await,
                4 => owner.delete(&task).await,
                5 => owner.post(&format!("{task}/move"), json!({"status": "done"})).await,
                6 => {
                    let new = json!({"project_id": home, "title": "New", "status": "done", "impact": 1.5});
                    owner.post("/tasks", new).await
                }
                _ => {
                    let ids: Vec<&str> = task.rsplit('/').take(1).collect();
                    owner.post("/tasks/bulk", json!({"ids": ids, "change": {"project_id": home}})).await
                }
            }
        }
    });
    for answer in futures_util::future::join_all(edits).await {
        // One that was deleted meanwhile is not there.
        assert!([200, 201, 204, 400, 404].contains(&answer.status.as_u16()), "{}", answer.text);
    }
    for project in [&project, &other] {
        let path = format!("/tasks?project_id={}&status=done&page_size=100", project["id"].as_str().unwrap());
        let done = team.owner.get(&path).await.expect(200);
        let sum: f64 =
            done["data"].as_array().unwrap().iter().map(|task| task["impact"].as_f64().unwrap()).sum();
        assert_eq!(progress(&team, project).await, sum.min(100.0));
    }
}

#[tokio::test]
async fn subtasks_are_under_their_parent_and_go_with_it() {
    let app = TestApp::shared();
    let team = app.team().await;
    let project = team.project("Tree").await;
    let top = team.task(&project, "Top").await;
    let under = |parent: &Value, title: &str| json!({"project_id": project["id"], "title": title, "parent_id": parent["id"]});
    let one = team.owner.post("/tasks", under(&top, "One")).await.expect(201);
    let two = team.owner.post("/tasks", under(&top, "Two")).await.expect(201);
    let leaf = team.owner.post("/tasks", under(&one, "Leaf")).await.expect(201);
    team.owner.patch(&path(&two), json!({"status": "done"})).await.expect(200);
    let list = format!("/tasks?parent_id={}&sort=title", top["id"].as_str().unwrap());
    let page = team.owner.get(&list).await.expect(200);
    assert_eq!((&page["data"][0]["title"], &page["data"][1]["title"]), (&json!("One"), &json!("Two")));
    assert_eq!(page["total"], 2);
    let summary = team.owner.get(&format!("{}/summary", path(&top))).await.expect(200);
    assert_eq!((&summary["subtasks"], &summary["done_subtasks"]), (&json!(2), &json!(1)));
    assert_eq!((&summary["comments"], &summary["attachments"]), (&json!(0), &json!(0)));
    // It leaves its parent, and comes back.
    let free = team.owner.patch(&path(&leaf), json!({"parent_id": null})).await.expect(200);
    assert_eq!(free["parent_id"], json!(null));
    team.owner.patch(&path(&leaf), json!({"parent_id": one["id"]})).await.expect(200);
    team.owner.delete(&path(&top)).await.expect(204);
    for task in [&top, &one, &two, &leaf] {
        team.owner.get(&path(task)).await.refused(404, "NOT_FOUND");
    }
    let told = team.owner.get("/events?type=task.deleted").await.expect(200);
    assert_eq!(told["data"].as_array().unwrap().len(), 4);
    assert_eq!(told["data"][0]["resource_id"], top["id"], "what was asked for is told last");
}

#[tokio::test]
async fn a_tree_has_five_levels_and_no_circle() {
    let app = TestApp::shared();
    let team = app.team().await;
    let (project, other) = (team.project("Tree").await, team.project("Other").await);
    let mut branch = vec![team.task(&project, "Level 1").await];
    for level in 2..=5 {
        let parent = &branch[level - 2]["id"];
        let new =
            json!({"project_id": project["id"], "title": format!("Level {level}"), "parent_id": parent});
        branch.push(team.owner.post("/tasks", new).await.expect(201));
    }
    let top = team.task(&project, "Another top").await;
    let foreign = team.task(&other, "Elsewhere").await;
    let new = |parent: &Value| json!({"project_id": project["id"], "title": "x", "parent_id": parent["id"]});
    let nobody = json!({"id": "0190b6a1-7c1e-7000-8000-000000000001"});
    for parent in [&branch[4], &foreign, &nobody] {
        let error = team.owner.post("/tasks", new(parent)).await.refused(400, "VALIDATION_ERROR");
        assert_eq!(error["fields"][0]["field"], "parent_id", "{error}");
    }
    for (task, parent) in [
        (&branch[0], &branch[0]),
        (&branch[0], &branch[4]),
        (&branch[1], &branch[2]),
        (&branch[0], &top),
        (&top, &branch[4]),
        (&top, &foreign),
        (&top, &nobody),
    ] {
        let to = json!({"parent_id": parent["id"]});
        let error = team.owner.patch(&path(task), to).await.refused(400, "VALIDATION_ERROR");
        assert_eq!(error["fields"][0]["field"], "parent_id", "{error}");
    }
    team.owner.patch(&path(&branch[1]), json!({"parent_id": top["id"]})).await.expect(200);
    // With another parent it can go to another project in one step.
    let to = json!({"project_id": other["id"], "parent_id": foreign["id"]});
    let moved = team.owner.patch(&path(&branch[1]), to).await.expect(200);
    assert_eq!((&moved["project_id"], &moved["parent_id"]), (&other["id"], &foreign["id"]));
}

#[tokio::test]
async fn two_who_put_tasks_under_one_another_at_once_do_not_both_succeed() {
    let app = TestApp::shared();
    let team = app.team().await;
    let project = team.project("Tree").await;
    for _ in 0..10 {
        let (one, two) = (team.task(&project, "One").await, team.task(&project, "Two").await);
        let (first_path, second_path) = (path(&one), path(&two));
        let (first, second) = futures_util::join!(
            team.owner.patch(&first_path, json!({"parent_id": two["id"]})),
            team.owner.patch(&second_path, json!({"parent_id": one["id"]})),
        );
        let mut statuses = [first.status.as_u16(), second.status.as_u16()];
        statuses.sort();
        assert_eq!(statuses, [200, 400]);
    }
}

#[tokio::test]
async fn an_external_id_is_unique_among_tasks_and_finds_one() {
    let app = TestApp::shared();
    let (team, rival) = (app.team().await, app.team().await);
    let project = team.project("Import").await;
    let new = json!({"project_id": project["id"], "title": "Known", "external_id": "JIRA-7"});
    let made = team.owner.post("/tasks", new.clone()).await.expect(201);
    let error = team.owner.post("/tasks", new).await.refused(409, "CONFLICT");
    assert_eq!(
        (&error["fields"][0]["field"], &error["fields"][0]["code"]),
        (&json!("external_id"), &json!("taken"))
    );
    let found = team.owner.get("/tasks?external_id=JIRA-7").await.expect(200);
    assert_eq!(found["data"][0]["id"], made["id"]);
    let other = team.task(&project, "Other").await;
    team.owner.patch(&path(&other), json!({"external_id": "JIRA-7"})).await.refused(409, "CONFLICT");
    team.owner.patch(&path(&made), json!({"external_id": null})).await.expect(200);
    team.owner.patch(&path(&other), json!({"external_id": "JIRA-7"})).await.expect(200);
    let theirs = rival.project("Import").await;
    let new = json!({"project_id": theirs["id"], "title": "Known", "external_id": "JIRA-7"});
    rival.owner.post("/tasks", new).await.expect(201);
    for bad in [json!(""), json!("x".repeat(201)), json!(7)] {
        let change = json!({"external_id": bad});
        team.owner.patch(&path(&made), change).await.refused(400, "VALIDATION_ERROR");
    }
}

#[tokio::test]
async fn many_tasks_change_at_once_and_each_is_told_of() {
    let app = TestApp::shared();
    let team = app.team().await;
    let member = team.join(Role::Member).await;
    let project = team.project("Many").await;
    let mut tasks = Vec::new();
    for n in 0..5 {
        let status = if n == 4 { "done" } else { "todo" };
        let body =
            json!({"project_id": project["id"], "title": format!("T{n}"), "impact": 10, "status": status});
        tasks.push(team.owner.post("/tasks", body).await.expect(201));
    }
    let ids: Vec<&Value> = tasks.iter().rev().map(|task| &task["id"]).collect();
    let bulk = json!({"ids": ids, "change": {"status": "done"}});
    let changed = team.owner.post("/tasks/bulk", bulk).await.expect(200);
    let answered: Vec<&Value> = changed["data"].as_array().unwrap().iter().map(|task| &task["id"]).collect();
    assert_eq!(answered, ids, "in the order of the request");
    assert_eq!(progress(&team, &project).await, 50.0);
    // The one that was done already is not told of.
    for (kind, many) in [("task.updated", 4), ("task.completed", 4)] {
        let told = team.owner.get(&format!("/events?type={kind}")).await.expect(200);
        assert_eq!(told["data"].as_array().unwrap().len(), many, "{kind}");
    }
    assert_eq!(changed["data"][0]["completed_at"], tasks[4]["completed_at"]);
    let change = json!({"add_assignee_ids": [member.id], "priority": "urgent", "due_date": "2026-12-24"});
    let changed = team.owner.post("/tasks/bulk", json!({"ids": ids, "change": change})).await.expect(200);
    for task in changed["data"].as_array().unwrap() {
        assert_eq!(task["assignee_ids"], json!([member.id]));
        assert_eq!((&task["priority"], &task["due_date"]), (&json!("urgent"), &json!("2026-12-24")));
    }
    let change = json!({"remove_assignee_ids": [member.id], "due_date": null});
    let changed = team.owner.post("/tasks/bulk", json!({"ids": ids, "change": change})).await.expect(200);
    assert!(changed["data"].as_array().unwrap().iter().all(|task| task["assignee_ids"] == json!([])));
}

#[tokio::test]
async fn a_change_of_many_that_cannot_be_made_of_one_is_made_of_none() {
    let app = TestApp::shared();
    let (team, rival) = (app.team().await, app.team().await);
    let stranger = app.person().await;
    let project = team.project("All or none").await;
    let (one, two) = (team.task(&project, "One").await, team.task(&project, "Two").await);
    let foreign = rival.task(&rival.project("F").await, "Foreign").await;
    let done = json!({"status": "done"});
    let hundred: Vec<Value> = (0..101).map(|_| one["id"].clone()).collect();
    for (body, field) in [
        (json!({"ids": [one["id"], foreign["id"]], "change": done}), "ids[1]"),
        (json!({"ids": [one["id"], two["id"], one["id"]], "change": done}), "ids[2]"),
        (json!({"ids": [], "change": done}), "ids"),
        (json!({"ids": hundred, "change": done}), "ids"),
        (json!({"ids": ["x"], "change": done}), "ids[0]"),
        (json!({"ids": [one["id"]], "change": {}}), "change"),
        (json!({"ids": [one["id"]]}), "change"),
        (json!({"ids": [one["id"]], "change": {"status": "open"}}), "change.status"),
        (json!({"ids": [one["id"]], "change": {"status": null}}), "change.status"),
        (json!({"ids": [one["id"]], "change": {"title": "Same"}}), "change.title"),
        (json!({"ids": [one["id"]], "change": {"due_date": "-9999-01-01"}}), "change.due_date"),
        (json!({"ids": [one["id"]], "change": {"project_id": foreign["project_id"]}}), "change.project_id"),
        (json!({"ids": [one["id"]], "change": {"assignee_ids": [stranger.id]}}), "change.assignee_ids"),
        (
            json!({"ids": [one["id"]], "change": {"assignee_ids": [], "add_assignee_ids": []}}),
            "change.assignee_ids",
        ),
    ] {
        let error = team.owner.post("/tasks/bulk", body.clone()).await.refused(400, "VALIDATION_ERROR");
        assert_eq!(error["fields"][0]["field"], field, "{body}: {error}");
    }
    let member = team.join(Role::Member).await;
    let own = json!({"project_id": project["id"], "title": "Own", "assignee_ids": [member.id]});
    let own = team.owner.post("/tasks", own).await.expect(201);
    let bulk = json!({"ids": [own["id"], two["id"]], "change": done});
    let error = member.client.post("/tasks/bulk", bulk).await.refused(403, "PERMISSION_DENIED");
    assert_eq!(error["fields"][0]["field"], "ids[1]");
    for task in [&one, &two, &own] {
        assert_eq!(team.owner.get(&path(task)).await.expect(200)["status"], "todo");
    }
}

#[tokio::test]
async fn nobody_who_writes_in_a_tree_waits_in_a_circle_with_who_deletes_it() {
    let app = TestApp::shared();
    let team = app.team().await;
    for _ in 0..6 {
        let (project, other) = (team.project("Wood").await, team.project("Other").await);
        let mut tasks = Vec::new();
        for title in ["Leaf", "Branch", "Free", "Top", "Root"] {
            let body = json!({"project_id": project["id"], "title": title, "impact": 5, "status": "done"});
            tasks.push(team.owner.post("/tasks", body).await.expect(201));
        }
        let [leaf, branch, free, top, root] = &tasks[..] else { unreachable!() };
        // A parent is younger than what is under it: by id the tree is upside down.
        for (task, parent) in [(top, root), (branch, top), (leaf, branch)] {
            team.owner.patch(&path(task), json!({"parent_id": parent["id"]})).await.expect(200);
        }
        let writes = (0..14).map(|n| {
            let owner = team.owner.clone();
            let ids = json!([leaf["id"], free["id"], branch["id"], top["id"]]);
            let (leaf, branch, free, top, root) =
                (path(leaf), path(branch), path(free), path(top), path(root));
            let (away, top_id) = (other["id"].clone(), tasks[3]["id"].clone());
            let home = format!("/projects/{}", project["id"].as_str().unwrap());
            async move {
                match n % 7 {
                    0 => owner.post("/tasks/bulk", json!({"ids": ids, "change": {"status": "todo"}})).await,
                    1 => owner.patch(&free, json!({"parent_id": top_id})).await,
                    2 => owner.patch(&branch, json!({"project_id": away})).await,
                    3 => owner.post(&format!("{leaf}/move"), json!({"status": "done"})).await,
                    4 if n > 7 => owner.delete(&home).await,
                    4 => owner.patch(&home, json!({"slug": format!("wood-{}", uuid::Uuid::now_v7())})).await,
                    5 => owner.delete(&top).await,
                    _ => owner.delete(&root).await,
                }
            }
        });
        for answer in futures_util::future::join_all(writes).await {
            // What was deleted meanwhile is not there.
            assert!([200, 204, 400, 404].contains(&answer.status.as_u16()), "{}", answer.text);
        }
    }
}

#[tokio::test]
async fn a_move_of_very_many_tasks_is_refused() {
    let app = TestApp::shared();
    let team = app.team().await;
    let (from, to) = (team.project("From").await, team.project("To").await);
    let tops =
        [team.task(&from, "One").await, team.task(&from, "Two").await, team.task(&from, "Three").await];
    let schema = team.schema().await;
    for (top, many) in tops.iter().zip([499, 499, 2]) {
        app.sql(&format!(
            "insert into {schema}.tasks (id, project_id, parent_id, title, status, priority, created_by, created_at, \
             updated_at) select gen_random_uuid(), t.project_id, t.id, 'Below', 'todo', 'low', t.created_by, now(), \
             now() from {schema}.tasks t, generate_series(1, {many}) where t.id = '{}'",
            top["id"].as_str().unwrap()
        ))
        .await;
    }
    let bulk = |tops: &[Value]| {
        let ids: Vec<Value> = tops.iter().map(|top| top["id"].clone()).collect();
        json!({"ids": ids, "change": {"project_id": to["id"]}})
    };
    let error = team.owner.post("/tasks/bulk", bulk(&tops)).await.refused(400, "VALIDATION_ERROR");
    assert_eq!(error["fields"][0]["field"], "ids");
    team.owner.post("/tasks/bulk", bulk(&tops[..2])).await.expect(200);
    let there = format!("/tasks?project_id={}", to["id"].as_str().unwrap());
    assert_eq!(team.owner.get(&there).await.expect(200)["total"], 1000);
    // And a deletion takes all of them.
    team.owner.delete(&path(&tops[0])).await.expect(204);
    assert_eq!(team.owner.get(&there).await.expect(200)["total"], 500);
}
