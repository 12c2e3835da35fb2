//! /projects.

use reqwest::Method;
use rowhouse::auth::Role;
use serde_json::{Value, json};

use crate::support::{Answer, Client, TestApp};

fn names(page: &Value) -> Vec<&str> {
    page["data"].as_array().unwrap().iter().map(|project| project["name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_project_keeps_everything_it_was_made_with() {
    let app = TestApp::shared();
    let team = app.team().await;
    let member = team.join(Role::Member).await;
    let new = json!({"name": "Website relaunch", "slug": "relaunch", "description": "New look", "status": "active",
        "priority": "urgent", "owner_id": member.id, "member_ids": [member.id], "start_date": "2026-01-05",
        "end_date": "2026-06-30", "budget": {"amount": "25000.5", "currency": "SGD"}});
    let answer = team.owner.post("/projects", new.clone()).await;
    assert!(answer.header("etag").starts_with("\"v1-"));
    let location = answer.header("location").strip_prefix("/api/v1").unwrap().to_owned();
    let made = answer.expect(201);
    for (field, value) in new.as_object().unwrap().iter().filter(|(field, _)| *field != "budget") {
        assert_eq!(&made[field], value);
    }
    assert_eq!(made["budget"], json!({"amount": "25000.50", "currency": "SGD"}));
    assert_eq!(made["progress"], 0.0);
    assert_eq!(made["created_by"], team.founder.id);
    assert_eq!(team.owner.get(&location).await.expect(200), made);
}

#[tokio::test]
async fn a_project_changes_field_by_field_and_null_empties() {
    let app = TestApp::shared();
    let team = app.team().await;
    let made = team.owner.post("/projects", json!({"name": "Plain", "description": "Old"})).await.expect(201);
    assert_eq!((&made["status"], &made["priority"]), (&json!("planning"), &json!("medium")));
    let path = format!("/projects/{}", made["id"].as_str().unwrap());
    let change = json!({"name": "Fancy", "status": "completed", "description": null,
        "budget": {"amount": "1.00", "currency": "USD"}});
    let changed = team.owner.patch(&path, change).await.expect(200);
    assert_eq!((&changed["name"], &changed["description"]), (&json!("Fancy"), &json!(null)));
    assert_eq!(changed["budget"]["amount"], "1.00");
    assert_ne!(changed["updated_at"], made["updated_at"]);
    team.owner.delete(&path).await.expect(204);
    team.owner.get(&path).await.refused(404, "NOT_FOUND");
    team.owner.delete(&path).await.refused(404, "NOT_FOUND");
}

#[tokio::test]
async fn projects_are_filtered_searched_sorted_and_paged() {
    let app = TestApp::shared();
    let team = app.team().await;
    for (name, status, priority) in [
        ("Alpha design", "active", "high"),
        ("Beta build", "planning", "high"),
        ("Gamma design review", "active", "low"),
        ("Delta", "archived", "medium"),
    ] {
        let body = json!({"name": name, "status": status, "priority": priority, "description": format!("About {name}")});
        team.owner.post("/projects", body).await.expect(201);
    }
    let list = |query: &str| {
        let (client, path) = (team.owner.clone(), format!("/projects?{query}"));
        async move { client.get(&path).await.expect(200) }
    };
    assert_eq!(names(&list("").await), ["Delta", "Gamma design review", "Beta build", "Alpha design"]);
    assert_eq!(names(&list("status=active&sort=name").await), ["Alpha design", "Gamma design review"]);
    assert_eq!(names(&list("priority=high&sort=-name").await), ["Beta build", "Alpha design"]);
    assert_eq!(names(&list("search=DESI&sort=created_at").await), ["Alpha design", "Gamma design review"]);
    assert_eq!(names(&list("search=review%20gam").await), ["Gamma design review"]);
    assert_eq!(names(&list("search=nothing").await), Vec::<&str>::new());
    let second = list("page=2&page_size=3&sort=name").await;
    assert_eq!(names(&second), ["Gamma design review"]);
    assert_eq!((&second["total"], &second["page"], &second["page_size"]), (&json!(4), &json!(2), &json!(3)));
    assert_eq!(list("page=9").await["total"], 4);
    assert_eq!(list(&format!("owner_id={}", team.founder.id)).await["total"], 4);
    for bad in [
        "status=done",
        "priority=1",
        "sort=budget",
        "sort=name;drop",
        "page=0",
        "page=x",
        "page_size=101",
        "page_size=0",
        "owner_id=me",
        "search=%20",
        "search=!!",
    ] {
        team.owner.get(&format!("/projects?{bad}")).await.refused(400, "VALIDATION_ERROR");
    }
}

#[tokio::test]
async fn bad_projects_are_refused_and_nothing_is_made() {
    let app = TestApp::shared();
    let team = app.team().await;
    let stranger = app.person().await;
    for (body, field) in [
        (json!({}), "name"),
        (json!({"name": ""}), "name"),
        (json!({"name": "  "}), "name"),
        (json!({"name": "x".repeat(256)}), "name"),
        (json!({"name": 7}), "name"),
        (json!({"name": "x", "colour": "red"}), "colour"),
        (json!({"name": "x", "status": "done"}), "status"),
        (json!({"name": "x", "owner_id": "me"}), "owner_id"),
        (json!({"name": "x", "owner_id": stranger.id}), "owner_id"),
        (json!({"name": "x", "member_ids": [stranger.id]}), "member_ids"),
        (json!({"name": "x", "start_date": "2026-02-30"}), "start_date"),
        (json!({"name": "x", "start_date": "2026-02-02", "end_date": "2026-02-01"}), "end_date"),
        (json!({"name": "x", "budget": {"amount": 12.5, "currency": "SGD"}}), "budget.amount"),
        (json!({"name": "x", "budget": {"amount": "-1.00", "currency": "SGD"}}), "budget.amount"),
        (json!({"name": "x", "budget": {"amount": "1.00", "currency": "sgd"}}), "budget.currency"),
        (json!({"name": "x", "budget": {"amount": "1.00"}}), "budget.currency"),
        (json!({"name": "x", "slug": "Not a slug"}), "slug"),
        (json!({"name": "nul\u{0}"}), "name"),
    ] {
        let error = team.owner.post("/projects", body.clone()).await.refused(400, "VALIDATION_ERROR");
        assert_eq!(error["fields"][0]["field"], field, "{body}: {error}");
    }
    assert_eq!(team.owner.get("/projects").await.expect(200)["total"], 0);
}

#[tokio::test]
async fn a_slug_is_unique_within_its_organization_only() {
    let app = TestApp::shared();
    let (team, rival) = (app.team().await, app.team().await);
    let body = json!({"name": "Same", "slug": "same"});
    team.owner.post("/projects", body.clone()).await.expect(201);
    rival.owner.post("/projects", body.clone()).await.expect(201);
    let error = team.owner.post("/projects", body).await.refused(409, "CONFLICT");
    assert_eq!(error["fields"][0]["field"], "slug");
    // A slug that was not asked for gives way.
    let derived = team.owner.post("/projects", json!({"name": "Same"})).await.expect(201);
    assert!(derived["slug"].as_str().unwrap().starts_with("same-"));
    let path = format!("/projects/{}", derived["id"].as_str().unwrap());
    team.owner.patch(&path, json!({"slug": "same"})).await.refused(409, "CONFLICT");
}

#[tokio::test]
async fn a_member_writes_the_projects_they_own_and_a_viewer_none() {
    let app = TestApp::shared();
    let team = app.team().await;
    let (member, viewer) = (team.join(Role::Member).await, team.join(Role::Viewer).await);
    let theirs = member.client.post("/projects", json!({"name": "Mine"})).await.expect(201);
    let others = team.project("Not mine").await;
    let path = |project: &Value| format!("/projects/{}", project["id"].as_str().unwrap());
    member.client.patch(&path(&theirs), json!({"name": "Still mine"})).await.expect(200);
    member.client.get(&path(&others)).await.expect(200);
    member.client.patch(&path(&others), json!({"name": "Taken"})).await.refused(403, "PERMISSION_DENIED");
    member.client.delete(&path(&others)).await.refused(403, "PERMISSION_DENIED");
    let for_another = json!({"name": "Gift", "owner_id": team.founder.id});
    member.client.post("/projects", for_another).await.refused(403, "PERMISSION_DENIED");
    viewer.client.get(&path(&theirs)).await.expect(200);
    viewer.client.patch(&path(&theirs), json!({"name": "No"})).await.refused(403, "PERMISSION_DENIED");
    member.client.delete(&path(&theirs)).await.expect(204);
}

#[tokio::test]
async fn a_member_cannot_make_somebody_else_the_owner() {
    let app = TestApp::shared();
    let team = app.team().await;
    let (one, two) = (team.join(Role::Member).await, team.join(Role::Member).await);
    let project = one.client.post("/projects", json!({"name": "Mine"})).await.expect(201);
    let path = format!("/projects/{}", project["id"].as_str().unwrap());
    one.client.patch(&path, json!({"owner_id": two.id})).await.refused(403, "PERMISSION_DENIED");
    team.owner.patch(&path, json!({"owner_id": two.id})).await.expect(200);
}

fn path(project: &Value) -> String {
    format!("/projects/{}", project["id"].as_str().unwrap())
}

async fn put(client: &Client, path: &str) -> Answer {
    Answer::of(client.request(Method::PUT, path)).await
}

#[tokio::test]
async fn members_come_and_go_one_by_one() {
    let app = TestApp::shared();
    let team = app.team().await;
    let (ben, mia) = (team.join(Role::Member).await, team.join(Role::Viewer).await);
    let stranger = app.person().await;
    let project = team.project("Crew").await;
    let of = |id: &str| format!("{}/members/{id}", path(&project));
    let with_ben = put(&team.owner, &of(&ben.id)).await.expect(200);
    assert_eq!(with_ben["member_ids"], json!([ben.id]));
    // Once more changes nothing.
    let again = put(&team.owner, &of(&ben.id)).await;
    assert!(again.header("etag").starts_with("\"v2-"), "{}", again.header("etag"));
    put(&team.owner, &of(&mia.id)).await.expect(200);
    let task = json!({"project_id": project["id"], "title": "T", "assignee_ids": [ben.id]});
    team.owner.post("/tasks", task.clone()).await.expect(201);
    let made = team.owner.post("/tasks", task).await.expect(201);
    let done = format!("/tasks/{}", made["id"].as_str().unwrap());
    team.owner.patch(&done, json!({"status": "done"})).await.expect(200);
    let people = team.owner.get(&format!("{}/members", path(&project))).await.expect(200);
    let people = people["data"].as_array().unwrap();
    assert_eq!(people.len(), 3, "the owner too");
    assert_eq!((&people[0]["user_id"], &people[0]["is_owner"]), (&json!(team.founder.id), &json!(true)));
    let ben_there = people.iter().find(|person| person["user_id"] == ben.id).unwrap();
    assert_eq!((&ben_there["open_tasks"], &ben_there["done_tasks"]), (&json!(1), &json!(1)));
    assert_eq!((&ben_there["role"], &ben_there["name"]), (&json!("member"), &json!(ben.email)));
    put(&team.owner, &of(&stranger.id)).await.refused(404, "NOT_FOUND");
    put(&team.owner, &of("me")).await.refused(400, "VALIDATION_ERROR");
    put(&ben.client, &of(&ben.id)).await.refused(403, "PERMISSION_DENIED");
    put(&mia.client, &of(&mia.id)).await.refused(403, "PERMISSION_DENIED");
    team.owner.delete(&of(&ben.id)).await.expect(204);
    team.owner.delete(&of(&ben.id)).await.refused(404, "NOT_FOUND");
    let told = team.owner.get("/events?type=project.updated").await.expect(200);
    let last = &told["data"][0]["changes"]["member_ids"];
    let mut before = [ben.id.clone(), mia.id.clone()];
    before.sort();
    assert_eq!(last, &json!({"before": before, "after": [mia.id]}));
    assert_eq!(told["data"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn many_who_are_added_at_once_are_all_there() {
    let app = TestApp::shared();
    let team = app.team().await;
    let project = team.project("Crowd").await;
    let mut people = Vec::new();
    for _ in 0..8 {
        people.push(team.join(Role::Member).await);
    }
    let adding = people.iter().map(|person| {
        let (owner, path) = (team.owner.clone(), format!("{}/members/{}", path(&project), person.id));
        async move { put(&owner, &path).await.expect(200) }
    });
    futures_util::future::join_all(adding).await;
    let there = team.owner.get(&path(&project)).await.expect(200);
    assert_eq!(there["member_ids"].as_array().unwrap().len(), 8);
}

#[tokio::test]
async fn an_archived_project_is_for_reading() {
    let app = TestApp::shared();
    let team = app.team().await;
    let project = team.project("Past").await;
    let task = team.task(&project, "Was").await;
    let task_path = format!("/tasks/{}", task["id"].as_str().unwrap());
    let archive = format!("{}/archive", path(&project));
    assert_eq!(team.owner.post(&archive, json!({})).await.expect(200)["status"], "archived");
    let once = team.owner.get(&path(&project)).await.header("etag").to_owned();
    team.owner.post(&archive, json!({})).await.expect(200);
    assert_eq!(team.owner.get(&path(&project)).await.header("etag"), once, "it is archived already");
    team.owner.get(&task_path).await.expect(200);
    let new = json!({"project_id": project["id"], "title": "Late"});
    team.owner.post("/tasks", new.clone()).await.refused(409, "CONFLICT");
    team.owner.patch(&task_path, json!({"status": "done"})).await.refused(409, "CONFLICT");
    team.owner.delete(&task_path).await.refused(409, "CONFLICT");
    team.owner.post(&format!("{task_path}/move"), json!({})).await.refused(409, "CONFLICT");
    let bulk = json!({"ids": [task["id"]], "change": {"priority": "low"}});
    team.owner.post("/tasks/bulk", bulk).await.refused(409, "CONFLICT");
    let member = team.join(Role::Member).await;
    member.client.post(&archive, json!({})).await.refused(403, "PERMISSION_DENIED");
    let back = team.owner.post(&format!("{}/unarchive", path(&project)), json!({})).await.expect(200);
    assert_eq!(back["status"], "active");
    team.owner.post("/tasks", new.clone()).await.expect(201);
    // A change of the status does the same.
    team.owner.patch(&path(&project), json!({"status": "archived"})).await.expect(200);
    team.owner.post("/tasks", new.clone()).await.refused(409, "CONFLICT");
    team.owner.patch(&path(&project), json!({"status": "planning"})).await.expect(200);
    team.owner.post("/tasks", new).await.expect(201);
}

#[tokio::test]
async fn what_is_added_while_a_project_is_archived_came_before_it() {
    let app = TestApp::shared();
    let team = app.team().await;
    for _ in 0..5 {
        let project = team.project("Closing").await;
        let adding = (0..6).map(|n| {
            let new = json!({"project_id": project["id"], "title": format!("T{n}")});
            let owner = team.owner.clone();
            async move { owner.post("/tasks", new).await.status.as_u16() }
        });
        let closing = async {
            team.owner.post(&format!("{}/archive", path(&project)), json!({})).await.expect(200);
            let list = format!("/tasks?project_id={}", project["id"].as_str().unwrap());
            team.owner.get(&list).await.expect(200)["total"].as_u64().unwrap()
        };
        let (added, when_closed) = futures_util::join!(futures_util::future::join_all(adding), closing);
        let made = added.iter().filter(|status| **status == 201).count() as u64;
        assert_eq!(made, when_closed, "{added:?}");
        assert!(added.iter().all(|status| [201, 409].contains(status)), "{added:?}");
    }
}

#[tokio::test]
async fn a_project_tells_how_it_stands() {
    let app = TestApp::shared();
    let team = app.team().await;
    let member = team.join(Role::Member).await;
    let project =
        team.owner.post("/projects", json!({"name": "Sum", "member_ids": [member.id]})).await.expect(201);
    for (status, due, estimated, actual) in [
        ("todo", Some("2020-01-01"), Some(2.5), None),
        ("todo", None, None, Some(1.25)),
        ("review", Some("2999-01-01"), Some(1.0), Some(1.0)),
        ("done", Some("2020-01-01"), Some(4.0), Some(5.0)),
    ] {
        let task = json!({"project_id": project["id"], "title": "T", "status": status, "due_date": due,
            "estimated_hours": estimated, "actual_hours": actual});
        team.owner.post("/tasks", task).await.expect(201);
    }
    let summary = team.owner.get(&format!("{}/summary", path(&project))).await.expect(200);
    assert_eq!(summary["project"]["id"], project["id"]);
    assert_eq!(
        summary["tasks"],
        json!({"total": 4, "todo": 2, "in_progress": 0, "review": 1, "done": 1, "overdue": 1,
            "estimated_hours": 7.5, "actual_hours": 7.25})
    );
    assert_eq!(summary["members"].as_array().unwrap().len(), 2);
    let latest = summary["latest"].as_array().unwrap();
    assert_eq!(latest.len(), 5, "{latest:?}");
    assert_eq!((&latest[0]["type"], &latest[4]["type"]), (&json!("task.created"), &json!("project.created")));
    let nobody = "/projects/0190b6a1-7c1e-7000-8000-000000000001/summary";
    team.owner.get(nobody).await.refused(404, "NOT_FOUND");
}

#[tokio::test]
async fn an_external_id_is_unique_among_projects_and_finds_one() {
    let app = TestApp::shared();
    let team = app.team().await;
    let body = json!({"name": "Known", "external_id": "crm/7"});
    let made = team.owner.post("/projects", body.clone()).await.expect(201);
    let error = team.owner.post("/projects", body).await.refused(409, "CONFLICT");
    assert_eq!(
        (&error["fields"][0]["field"], &error["fields"][0]["code"]),
        (&json!("external_id"), &json!("taken"))
    );
    let found = team.owner.get("/projects?external_id=crm/7").await.expect(200);
    assert_eq!((&found["total"], &found["data"][0]["id"]), (&json!(1), &made["id"]));
    let other = team.project("Other").await;
    team.owner.patch(&path(&other), json!({"external_id": "crm/7"})).await.refused(409, "CONFLICT");
    team.owner.patch(&path(&made), json!({"external_id": null})).await.expect(200);
    team.owner.patch(&path(&other), json!({"external_id": "crm/7"})).await.expect(200);
}

#[tokio::test]
async fn a_project_gets_another_slug_while_its_tasks_are_completed() {
    let app = TestApp::shared();
    let team = app.team().await;
    let project = team.project("Busy").await;
    for round in 0..4 {
        let writes = (0..12).map(|n| {
            let (owner, path) = (team.owner.clone(), path(&project));
            let task = json!({"project_id": project["id"], "title": "T", "status": "done", "impact": 1});
            async move {
                match n % 3 {
                    0 => owner.patch(&path, json!({"slug": format!("busy-{round}-{n}")})).await,
                    _ => owner.post("/tasks", task).await,
                }
            }
        });
        for answer in futures_util::future::join_all(writes).await {
            assert!([200, 201].contains(&answer.status.as_u16()), "{}", answer.text);
        }
    }
    assert_eq!(team.owner.get(&path(&project)).await.expect(200)["progress"], 32.0);
}

#[tokio::test]
async fn what_was_said_in_an_archived_project_is_not_changed_but_can_be_deleted() {
    let app = TestApp::shared();
    let team = app.team().await;
    let project = team.project("Past").await;
    let task = team.task(&project, "Was").await;
    let comments = format!("/tasks/{}/comments", task["id"].as_str().unwrap());
    let comment = team.owner.post(&comments, json!({"body": "Said"})).await.expect(201);
    let messages = format!("{}/messages", path(&project));
    let message = team.owner.post(&messages, json!({"body": "Said"})).await.expect(201);
    team.owner.post(&format!("{}/archive", path(&project)), json!({})).await.expect(200);
    for said in [
        format!("/comments/{}", comment["id"].as_str().unwrap()),
        format!("/messages/{}", message["id"].as_str().unwrap()),
    ] {
        let change = json!({"mention_ids": [team.founder.id]});
        team.owner.patch(&said, change).await.refused(409, "CONFLICT");
        team.owner.delete(&said).await.expect(204);
    }
}
