//! /organizations/{id}/members: roles, grants, denials, and the last owner.

use rowhouse::auth::Role;
use serde_json::json;

use crate::support::TestApp;

#[tokio::test]
async fn members_are_listed_with_what_they_may_do() {
    let app = TestApp::shared();
    let team = app.team().await;
    let viewer = team.join(Role::Viewer).await;
    let listed = viewer.client.get(&team.path("/members")).await.expect(200);
    assert_eq!(listed["total"], 2);
    assert_eq!(listed["data"][0]["role"], "owner");
    assert_eq!(listed["data"][1]["user_id"], viewer.id);
    let viewers = viewer.client.get(&team.path("/members?role=viewer")).await.expect(200);
    assert_eq!(viewers["total"], 1);
    let permissions = viewers["data"][0]["permissions"].as_array().unwrap();
    assert!(
        permissions
            .iter()
            .all(|name| name.as_str().unwrap().ends_with(":read") || name == "organization:leave")
    );
    viewer.client.get(&team.path("/members?role=king")).await.refused(400, "VALIDATION_ERROR");
}

#[tokio::test]
async fn a_changed_role_is_in_force_with_the_next_request() {
    let app = TestApp::shared();
    let team = app.team().await;
    let person = team.join(Role::Viewer).await;
    let path = team.path(&format!("/members/{}", person.id));
    person.client.post("/projects", json!({"name": "No"})).await.refused(403, "PERMISSION_DENIED");
    team.owner.patch(&path, json!({"role": "manager"})).await.expect(200);
    person.client.post("/projects", json!({"name": "Yes"})).await.expect(201);
    team.owner.patch(&path, json!({"is_active": false})).await.expect(200);
    person.client.get("/projects").await.refused(403, "PERMISSION_DENIED");
    team.owner.patch(&path, json!({"is_active": true})).await.expect(200);
    person.client.get("/projects").await.expect(200);
    team.owner.delete(&path).await.expect(204);
    person.client.get("/projects").await.refused(404, "TENANT_NOT_FOUND");
    team.owner.get(&path).await.refused(404, "NOT_FOUND");
}

#[tokio::test]
async fn grants_and_denials_stand_beside_the_role() {
    let app = TestApp::shared();
    let team = app.team().await;
    let person = team.join(Role::Viewer).await;
    let path = team.path(&format!("/members/{}", person.id));
    team.owner.patch(&path, json!({"grants": ["projects:write"]})).await.expect(200);
    person.client.post("/projects", json!({"name": "Granted"})).await.expect(201);
    let denied = json!({"role": "manager", "grants": [], "denials": ["projects:write"]});
    let changed = team.owner.patch(&path, denied).await.expect(200);
    assert!(!changed["permissions"].as_array().unwrap().contains(&json!("projects:write_own")));
    person.client.post("/projects", json!({"name": "Denied"})).await.refused(403, "PERMISSION_DENIED");
    let error = team.owner.patch(&path, json!({"grants": ["fly"]})).await.refused(400, "VALIDATION_ERROR");
    assert_eq!(error["fields"][0]["field"], "grants[0]");
}

#[tokio::test]
async fn nobody_gives_what_they_do_not_have() {
    let app = TestApp::shared();
    let team = app.team().await;
    let admin = team.join(Role::Admin).await;
    let other = team.join(Role::Member).await;
    let (mine, theirs) =
        (team.path(&format!("/members/{}", admin.id)), team.path(&format!("/members/{}", other.id)));
    let owner = team.path(&format!("/members/{}", team.founder.id));
    for (path, change) in [
        (&mine, json!({"role": "owner"})),
        (&theirs, json!({"role": "owner"})),
        (&theirs, json!({"grants": ["billing:manage"]})),
        (&mine, json!({"grants": ["organization:delete"]})),
        (&owner, json!({"role": "viewer"})),
        (&owner, json!({"is_active": false})),
    ] {
        admin.client.patch(path, change).await.refused(403, "PERMISSION_DENIED");
    }
    admin.client.delete(&owner).await.refused(403, "PERMISSION_DENIED");
    admin.client.patch(&theirs, json!({"role": "manager"})).await.expect(200);
    // A denial set by the owner cannot be lifted by the one it is meant for.
    team.owner.patch(&mine, json!({"denials": ["settings:manage"]})).await.expect(200);
    admin.client.patch(&mine, json!({"denials": []})).await.refused(403, "PERMISSION_DENIED");
    // One who may only manage members rules over nobody higher.
    let clerk = team.join(Role::Member).await;
    team.owner
        .patch(&team.path(&format!("/members/{}", clerk.id)), json!({"grants": ["members:manage"]}))
        .await
        .expect(200);
    clerk.client.patch(&mine, json!({"role": "viewer"})).await.refused(403, "PERMISSION_DENIED");
}

#[tokio::test]
async fn the_last_owner_stays() {
    let app = TestApp::shared();
    let team = app.team().await;
    let owner = team.path(&format!("/members/{}", team.founder.id));
    for change in [json!({"role": "admin"}), json!({"is_active": false})] {
        team.owner.patch(&owner, change).await.refused(409, "CONFLICT");
    }
    team.owner.delete(&owner).await.refused(409, "CONFLICT");
    team.owner.patch(&owner, json!({"denials": ["billing:manage"]})).await.refused(409, "CONFLICT");
    let second = team.join(Role::Admin).await;
    team.owner
        .patch(&team.path(&format!("/members/{}", second.id)), json!({"role": "owner"}))
        .await
        .expect(200);
    team.owner.patch(&owner, json!({"role": "viewer"})).await.expect(200);
}

#[tokio::test]
async fn of_two_owners_who_leave_at_once_one_stays() {
    let app = TestApp::shared();
    for _ in 0..5 {
        let team = app.team().await;
        let second = team.join(Role::Owner).await;
        let (one, two) = (
            team.path(&format!("/members/{}", team.founder.id)),
            team.path(&format!("/members/{}", second.id)),
        );
        let (a, b) = tokio::join!(team.owner.delete(&one), second.client.delete(&two));
        let mut statuses = [a.status.as_u16(), b.status.as_u16()];
        statuses.sort();
        assert_eq!(statuses, [204, 409]);
    }
}
