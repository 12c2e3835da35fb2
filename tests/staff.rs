//! What platform staff do, what features are on, and who is out at once.

use reqwest::Method;
use rowhouse::auth::Role;
use serde_json::{Value, json};

use crate::support::{Answer, Client, PASSWORD, TestApp, within_a_second};

async fn put(client: &Client, path: &str, body: Value) -> Answer {
    Answer::of(client.request(Method::PUT, path).json(&body)).await
}

#[tokio::test]
async fn a_suspended_organization_is_closed_to_people_and_programs_and_opens_again() {
    let app = TestApp::shared();
    let there = app.beside();
    let staff = app.superuser().await;
    let team = app.team().await;
    let key =
        team.owner.post("/api-keys", json!({"name": "P", "scopes": ["projects:read"]})).await.expect(201);
    let program = app.anonymous().header("x-api-key", key["key"].as_str().unwrap());
    let organization = format!("/admin/organizations/{}", team.id);
    let suspend = json!({"reason": "Sends spam"});
    let seen = staff.client.post(&format!("{organization}/suspend"), suspend.clone()).await.expect(200);
    assert_eq!((&seen["status"], &seen["suspended_because"]), (&json!("suspended"), &json!("Sends spam")));
    team.owner.get("/projects").await.refused(403, "TENANT_SUSPENDED");
    program.get("/projects").await.refused(403, "TENANT_SUSPENDED");
    within_a_second("everywhere", || async { team.owner.at(&there).get("/projects").await.status == 403 })
        .await;
    staff.client.post(&format!("{organization}/suspend"), suspend).await.refused(409, "CONFLICT");
    staff.client.post(&format!("{organization}/resume"), json!(null)).await.expect(200);
    team.owner.get("/projects").await.expect(200);
    program.get("/projects").await.expect(200);
    // In the organization's own log, and in the platform's.
    let own = team.owner.get("/audit-log?action=organization").await.expect(200);
    let actions: Vec<&str> =
        own["data"].as_array().unwrap().iter().map(|entry| entry["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["organization.resumed", "organization.suspended", "organization.created"]);
    assert_eq!(own["data"][1]["actor_kind"], "superuser");
    assert!(!own.to_string().contains("Sends spam"), "why is for staff");
    let platform =
        staff.client.get(&format!("/admin/audit-log?organization_id={}", team.id)).await.expect(200);
    assert_eq!(platform["data"].as_array().unwrap().len(), 2);
    let looked = format!("/admin/audit-log?actor_id={}&action=staff.looked", staff.id);
    let looks = staff.client.get(&looked).await.expect(200);
    assert!(!looks["data"].as_array().unwrap().is_empty(), "what staff look at is recorded");
    assert_eq!(platform["data"][0]["actor_id"], staff.id.as_str());
}

#[tokio::test]
async fn staff_see_and_change_accounts() {
    let app = TestApp::shared();
    let staff = app.superuser().await;
    let person = app.person().await;
    let user = format!("/admin/users/{}", person.id);
    let found = staff.client.get(&format!("/admin/users?search={}", &person.email[..12])).await.expect(200);
    assert!(found["data"].as_array().unwrap().iter().any(|user| user["id"] == person.id.as_str()));
    staff.client.patch(&user, json!({"is_active": false})).await.expect(200);
    person.client.get("/auth/user").await.refused(401, "AUTH_FAILED");
    staff.client.patch(&user, json!({"is_active": true})).await.expect(200);
    // What was taken away stays away: they log in again.
    person.client.get("/auth/user").await.refused(401, "AUTH_FAILED");
    let login = json!({"email": person.email, "password": PASSWORD});
    app.anonymous().post("/auth/login", login).await.expect(200);
    staff
        .client
        .patch(&format!("/admin/users/{}", staff.id), json!({"is_active": false}))
        .await
        .refused(409, "CONFLICT");
    let team = app.team().await;
    let owner = format!("/admin/users/{}", team.founder.id);
    let told = staff.client.delete(&owner).await.refused(409, "CONFLICT");
    assert!(told["message"].as_str().unwrap().contains(&team.slug));
    staff.client.delete(&user).await.expect(204);
    staff.client.get(&user).await.refused(404, "NOT_FOUND");
}

#[tokio::test]
async fn staff_end_a_lock_and_revoke_a_key() {
    let app = TestApp::with(|config| config.auth.lockout_attempts = 2);
    let staff = app.superuser().await;
    let team = app.team().await;
    let wrong = json!({"email": team.founder.email, "password": "Wrong-Horse-7-Battery"});
    for _ in 0..2 {
        app.anonymous().post("/auth/login", wrong.clone()).await.refused(401, "AUTH_FAILED");
    }
    let right = json!({"email": team.founder.email, "password": PASSWORD});
    app.anonymous().post("/auth/login", right.clone()).await.refused(423, "ACCOUNT_LOCKED");
    staff.client.post(&format!("/admin/users/{}/unlock", team.founder.id), json!(null)).await.expect(204);
    app.anonymous().post("/auth/login", right).await.expect(200);
    let key =
        team.owner.post("/api-keys", json!({"name": "P", "scopes": ["projects:read"]})).await.expect(201);
    let keys = staff.client.get(&format!("/admin/api-keys?organization_id={}", team.id)).await.expect(200);
    assert_eq!(keys["total"], 1);
    staff.client.delete(&format!("/admin/api-keys/{}", key["id"].as_str().unwrap())).await.expect(204);
    let program = app.anonymous().header("x-api-key", key["key"].as_str().unwrap());
    program.get("/projects").await.refused(401, "AUTH_FAILED");
}

#[tokio::test]
async fn features_are_on_for_whom_staff_say() {
    let app = TestApp::shared();
    let staff = app.superuser().await;
    let (team, rival) = (app.team().await, app.team().await);
    let viewer = team.join(Role::Viewer).await;
    let key = format!("board-{}", uuid::Uuid::now_v7().simple());
    let flag = format!("/admin/flags/{key}");
    let on = async |client: &Client| client.get("/features").await.expect(200)["features"][&key].clone();
    assert_eq!(on(&team.owner).await, json!(null));
    put(&staff.client, &flag, json!({"enabled": true, "rollout": 0, "organizations": [team.id]}))
        .await
        .expect(200);
    assert_eq!((on(&team.owner).await, on(&rival.owner).await), (json!(true), json!(false)));
    put(&staff.client, &flag, json!({"enabled": true, "roles": ["viewer"]})).await.expect(200);
    assert_eq!((on(&team.owner).await, on(&viewer.client).await), (json!(false), json!(true)));
    put(&staff.client, &flag, json!({"enabled": true, "plans": ["professional"]})).await.expect(200);
    assert_eq!(on(&team.owner).await, json!(false));
    rival.plan("professional").await;
    within_a_second("the plan is known", || async { on(&rival.owner).await == json!(true) }).await;
    let seen = put(&staff.client, &flag, json!({"enabled": false})).await;
    let stale = staff.client.header("if-match", "\"v1\"");
    put(&stale, &flag, json!({"enabled": true})).await.refused(412, "PRECONDITION_FAILED");
    assert_eq!(seen.expect(200)["enabled"], false);
    for bad in
        [json!({}), json!({"enabled": true, "rollout": 101}), json!({"enabled": true, "plans": ["gold"]})]
    {
        put(&staff.client, &flag, bad).await.refused(400, "VALIDATION_ERROR");
    }
    staff.client.delete(&flag).await.expect(204);
    assert_eq!(on(&team.owner).await, json!(null));
}

/// One function takes everything away; here is each way to it, and each thing that is lost.
#[tokio::test]
async fn whoever_is_out_is_out_with_everything_at_once_and_everywhere() {
    let app = TestApp::shared();
    let there = app.beside();
    let staff = app.superuser().await;
    for way in ["removed", "deactivated member", "left", "deactivated account", "deleted account"] {
        let team = app.team().await;
        let person = team.join(Role::Admin).await;
        let key = json!({"name": "P", "scopes": ["projects:read"]});
        let key = person.client.post("/api-keys", key).await.expect(201);
        let program = app.anonymous().header("x-api-key", key["key"].as_str().unwrap()).at(&there);
        let session = person.client.at(&there);
        session.get("/projects").await.expect(200);
        program.get("/projects").await.expect(200);
        let member = team.path(&format!("/members/{}", person.id));
        let account = format!("/admin/users/{}", person.id);
        let of_account = way.ends_with("account");
        match way {
            "removed" => team.owner.delete(&member).await.expect(204),
            "deactivated member" => team.owner.patch(&member, json!({"is_active": false})).await.expect(200),
            "left" => person.client.post(&team.path("/leave"), json!(null)).await.expect(204),
            "deactivated account" => {
                staff.client.patch(&account, json!({"is_active": false})).await.expect(200)
            }
            _ => staff.client.delete(&account).await.expect(204),
        };
        // Here with the answer; at the other instance when it has heard, which takes milliseconds.
        program.at(&app).get("/projects").await.refused(401, "AUTH_FAILED");
        assert!(person.client.get("/projects").await.status.is_client_error(), "{way}");
        within_a_second("the key is worth nothing elsewhere", || async {
            program.get("/projects").await.status == 401
        })
        .await;
        within_a_second("nor is the session", || async {
            [401, 403, 404].contains(&session.get("/projects").await.status.as_u16())
        })
        .await;
        let refresh =
            app.anonymous().post("/auth/refresh", json!({"refresh_token": person.refresh_token})).await;
        let login = json!({"email": person.email, "password": PASSWORD});
        let login = app.anonymous().post("/auth/login", login).await;
        if of_account {
            session.get("/auth/user").await.refused(401, "AUTH_FAILED");
            refresh.refused(401, "AUTH_FAILED");
            login.refused(401, "AUTH_FAILED");
        } else {
            // Their account is their own.
            session.get("/auth/user").await.expect(200);
            refresh.expect(200);
        }
        // Coming back does not bring the key back.
        if way == "deactivated member" {
            team.owner.patch(&member, json!({"is_active": true})).await.expect(200);
            program.get("/projects").await.refused(401, "AUTH_FAILED");
        }
    }
}
