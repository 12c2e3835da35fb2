//! /projects.

use rowhouse::auth::Role;
use serde_json::{Value, json};

use crate::support::TestApp;

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
