//! How people come into an organization, take it over, and leave.

use chrono::TimeDelta;
use rowhouse::auth::Role;
use serde_json::{Value, json};

use crate::support::{Client, PASSWORD, Team, TestApp, smtp, unique_email, within};

async fn invite(client: &Client, team: &Team, email: &str, role: &str) -> Value {
    client.post(&team.path("/invitations"), json!({"email": email, "role": role})).await.expect(201)
}

fn path(team: &Team, invitation: &Value) -> String {
    team.path(&format!("/invitations/{}", invitation["id"].as_str().unwrap()))
}

#[tokio::test]
async fn somebody_new_registers_with_the_invitation() {
    let app = TestApp::shared();
    let team = app.team().await;
    let email = unique_email();
    let made = invite(&team.owner, &team, &email, "manager").await;
    assert_eq!(made["state"], "pending");
    let mail = app.mail(&email, "invites you to Test Team").await;
    let token = mail.token();
    let preview = app.anonymous().post("/invitations/preview", json!({"token": token})).await.expect(200);
    assert_eq!(preview["organization"], "Test Team");
    assert_eq!((&preview["role"], &preview["has_account"]), (&json!("manager"), &json!(false)));
    // Another address cannot use it, and makes no account by trying.
    let thief = unique_email();
    let body = json!({"email": thief, "password": PASSWORD, "invitation_token": token});
    app.anonymous().post("/auth/register", body).await.refused(403, "PERMISSION_DENIED");
    let login = json!({"email": thief, "password": PASSWORD});
    app.anonymous().post("/auth/login", login).await.refused(401, "AUTH_FAILED");
    let body = json!({"email": email, "password": PASSWORD, "invitation_token": token});
    let joined = app.anonymous().post("/auth/register", body).await.expect(201);
    assert_eq!(
        (&joined["organization"]["id"], &joined["organization"]["role"]),
        (&json!(team.id), &json!("manager"))
    );
    assert_eq!(joined["user"]["email_verified"], true);
    let client = app.anonymous().with_token(joined["access_token"].as_str().unwrap()).within(&team.id);
    client.get("/projects").await.expect(200);
    app.anonymous().post("/invitations/preview", json!({"token": token})).await.refused(404, "NOT_FOUND");
    let accepted = team.owner.get(&team.path("/invitations?state=accepted")).await.expect(200);
    assert_eq!(accepted["total"], 1);
    let log = team.owner.get("/audit-log?action=member.joined").await.expect(200);
    assert_eq!(log["data"][0]["changes"]["email"]["after"], email.as_str());
}

#[tokio::test]
async fn somebody_with_an_account_accepts_with_it_once() {
    let app = TestApp::shared();
    let team = app.team().await;
    let (person, other) = (app.person().await, app.person().await);
    invite(&team.owner, &team, &person.email, "viewer").await;
    let token = json!({"token": app.mail(&person.email, "invites you").await.token()});
    other.client.post("/invitations/accept", token.clone()).await.refused(403, "PERMISSION_DENIED");
    app.anonymous().post("/invitations/accept", token.clone()).await.refused(401, "AUTH_FAILED");
    let both =
        [&person.client, &person.client].map(|client| client.post("/invitations/accept", token.clone()));
    let statuses: Vec<u16> =
        futures_util::future::join_all(both).await.iter().map(|answer| answer.status.as_u16()).collect();
    assert!(statuses.contains(&200) && statuses.contains(&404), "{statuses:?}");
    person.client.within(&team.id).get("/projects").await.expect(200);
    let members = team.owner.get(&team.path("/members")).await.expect(200);
    assert_eq!(members["total"], 2);
    let again = json!({"email": person.email, "role": "viewer"});
    team.owner.post(&team.path("/invitations"), again).await.refused(409, "CONFLICT");
}

#[tokio::test]
async fn invitations_are_resent_revoked_and_expire() {
    let app = TestApp::with(|config| config.auth.access_token_minutes = 60 * 24 * 30);
    let team = app.team().await;
    let email = unique_email();
    let made = invite(&team.owner, &team, &email, "member").await;
    let first = app.mail(&email, "invites you").await.token();
    let twice = json!({"email": email, "role": "member"});
    team.owner.post(&team.path("/invitations"), twice.clone()).await.refused(409, "CONFLICT");
    let resend = format!("{}/resend", path(&team, &made));
    team.owner.post(&resend, json!(null)).await.refused(429, "RATE_LIMIT");
    app.app.clock.advance(TimeDelta::minutes(2));
    team.owner.post(&resend, json!(null)).await.expect(200);
    within(5, "the second mail", || async { smtp::sent_to(&email).len() == 2 }).await;
    app.anonymous().post("/invitations/preview", json!({"token": first})).await.refused(404, "NOT_FOUND");
    let second = app.mail(&email, "invites you").await.token();
    app.anonymous().post("/invitations/preview", json!({"token": second})).await.expect(200);
    app.app.clock.advance(TimeDelta::days(7));
    app.anonymous().post("/invitations/preview", json!({"token": second})).await.refused(404, "NOT_FOUND");
    let expired = team.owner.get(&team.path("/invitations?state=expired")).await.expect(200);
    assert_eq!(expired["total"], 1);
    // It makes room for a new one, or lives again when it is sent again.
    team.owner.post(&resend, json!(null)).await.expect(200);
    team.owner.delete(&path(&team, &made)).await.expect(204);
    let third = app.mail(&email, "invites you").await.token();
    let body = json!({"email": email, "password": PASSWORD, "invitation_token": third});
    app.anonymous().post("/auth/register", body).await.refused(404, "NOT_FOUND");
    invite(&team.owner, &team, &email, "member").await;
    team.owner.delete(&path(&team, &made)).await.refused(409, "CONFLICT");
}

#[tokio::test]
async fn nobody_invites_above_themselves_or_unverified() {
    let app = TestApp::shared();
    let team = app.team().await;
    let (admin, manager, member) =
        (team.join(Role::Admin).await, team.join(Role::Manager).await, team.join(Role::Member).await);
    team.plan("enterprise").await;
    let body = |role: &str| json!({"email": unique_email(), "role": role});
    for (client, role, status) in [
        (&team.owner, "owner", 201),
        (&admin.client, "owner", 403),
        (&admin.client, "admin", 201),
        (&manager.client, "manager", 403),
        (&manager.client, "member", 201),
        (&manager.client, "viewer", 201),
        (&member.client, "viewer", 403),
    ] {
        assert_eq!(client.post(&team.path("/invitations"), body(role)).await.status, status, "{role}");
    }
    app.sql(&format!("update platform.users set email_verified_at = null where id = '{}'", admin.id)).await;
    let refused = admin.client.post(&team.path("/invitations"), body("viewer")).await;
    refused.refused(403, "EMAIL_NOT_VERIFIED");
    // A key invites to nothing that it could not do, whoever made it; nor does an admin without all of it.
    let scopes = json!(["members:invite", "members:manage", "projects:read"]);
    let key = team.owner.post("/api-keys", json!({"name": "Inviter", "scopes": scopes})).await.expect(201);
    let program = app.anonymous().header("x-api-key", key["key"].as_str().unwrap());
    for (role, status) in [("owner", 403), ("admin", 403), ("manager", 403), ("viewer", 201)] {
        assert_eq!(
            program.post(&team.path("/invitations"), body(role)).await.status,
            status,
            "{role} by a key"
        );
    }
    let limited = team.join(Role::Admin).await;
    let denial = json!({"denials": ["api_keys:manage"]});
    team.owner.patch(&team.path(&format!("/members/{}", limited.id)), denial).await.expect(200);
    limited.client.post(&team.path("/invitations"), body("admin")).await.refused(403, "PERMISSION_DENIED");
    limited.client.post(&team.path("/invitations"), body("manager")).await.expect(201);
    // A manager does not touch an invitation to a role that is not theirs to give.
    let made = invite(&team.owner, &team, &unique_email(), "admin").await;
    manager.client.delete(&path(&team, &made)).await.refused(403, "PERMISSION_DENIED");
}

#[tokio::test]
async fn open_invitations_count_against_the_plan_exactly() {
    let app = TestApp::shared();
    let team = app.team().await;
    team.plan("free").await;
    team.join(Role::Viewer).await;
    // Five places on the free plan: two are taken.
    let invitations = (0..10).map(|_| {
        let body = json!({"email": unique_email(), "role": "viewer"});
        let (client, path) = (team.owner.clone(), team.path("/invitations"));
        async move { client.post(&path, body).await }
    });
    let answers = futures_util::future::join_all(invitations).await;
    assert_eq!(answers.iter().filter(|answer| answer.status == 201).count(), 3);
    for answer in answers.into_iter().filter(|answer| answer.status != 201) {
        let error = answer.refused(402, "PLAN_LIMIT_REACHED");
        assert_eq!((&error["details"]["limit"], &error["details"]["used"]), (&json!(5), &json!(5)));
        assert_eq!(
            (&error["details"]["plan"], &error["details"]["upgrade"]),
            (&json!("free"), &json!("starter"))
        );
    }
    let open = team.owner.get(&team.path("/invitations")).await.expect(200);
    team.owner.delete(&path(&team, &open["data"][0])).await.expect(204);
    invite(&team.owner, &team, &unique_email(), "viewer").await;
    // Accepting takes the place that was kept.
    let token = app.mail(open["data"][1]["email"].as_str().unwrap(), "invites you").await.token();
    let body = json!({"email": open["data"][1]["email"], "password": PASSWORD, "invitation_token": token});
    app.anonymous().post("/auth/register", body).await.expect(201);
}

#[tokio::test]
async fn an_organization_is_handed_over() {
    let app = TestApp::shared();
    let team = app.team().await;
    let (heir, stranger) = (team.join(Role::Viewer).await, app.person().await);
    let transfer = |to: &str| json!({"user_id": to});
    heir.client.post(&team.path("/transfer"), transfer(&heir.id)).await.refused(403, "PERMISSION_DENIED");
    team.owner.post(&team.path("/transfer"), transfer(&stranger.id)).await.refused(400, "VALIDATION_ERROR");
    let seen = team.owner.post(&team.path("/transfer"), transfer(&heir.id)).await.expect(200);
    assert_eq!(seen["role"], "admin");
    assert_eq!(heir.client.get(&team.path("")).await.expect(200)["role"], "owner");
    team.owner.post(&team.path("/transfer"), transfer(&heir.id)).await.refused(403, "PERMISSION_DENIED");
}

#[tokio::test]
async fn nothing_is_kept_back_when_an_organization_is_handed_over() {
    let app = TestApp::shared();
    let team = app.team().await;
    let (heir, other) = (team.join(Role::Viewer).await, team.join(Role::Viewer).await);
    let member = |id: &str| team.path(&format!("/members/{id}"));
    let transfer = |to: &str| json!({"user_id": to});
    let grants = json!({"grants": ["organization:transfer", "organization:delete"]});
    team.owner.patch(&member(&team.founder.id), grants.clone()).await.expect(200);
    team.owner
        .post(&team.path("/transfer"), transfer(&team.founder.id))
        .await
        .refused(400, "VALIDATION_ERROR");
    team.owner.post(&team.path("/transfer"), transfer(&heir.id)).await.expect(200);
    team.owner
        .post(&team.path("/transfer"), transfer(&team.founder.id))
        .await
        .refused(403, "PERMISSION_DENIED");
    team.owner.delete(&team.path("")).await.refused(403, "PERMISSION_DENIED");
    // The permission alone does not make an owner of somebody.
    heir.client.patch(&member(&other.id), grants).await.expect(200);
    other.client.post(&team.path("/transfer"), transfer(&other.id)).await.refused(403, "PERMISSION_DENIED");
    assert_eq!(heir.client.get(&member(&other.id)).await.expect(200)["role"], "viewer");
}

/// Somebody who is on the way out could invite themselves under another address.
#[tokio::test]
async fn an_invitation_is_worth_what_its_sender_is_now() {
    let app = TestApp::shared();
    let team = app.team().await;
    team.plan("enterprise").await;
    for way in ["removed", "demoted", "deactivated"] {
        let admin = team.join(Role::Admin).await;
        let alias = app.person().await;
        invite(&admin.client, &team, &alias.email, "admin").await;
        let token = json!({"token": app.mail(&alias.email, "invites you").await.token()});
        let member = team.path(&format!("/members/{}", admin.id));
        match way {
            "removed" => team.owner.delete(&member).await.expect(204),
            "demoted" => team.owner.patch(&member, json!({"role": "manager"})).await.expect(200),
            _ => team.owner.patch(&member, json!({"is_active": false})).await.expect(200),
        };
        alias.client.post("/invitations/accept", token).await.refused(404, "NOT_FOUND");
        alias.client.within(&team.id).get("/projects").await.refused(404, "TENANT_NOT_FOUND");
    }
}

#[tokio::test]
async fn members_leave_and_the_last_owner_stays() {
    let app = TestApp::shared();
    let team = app.team().await;
    let member = team.join(Role::Member).await;
    member.client.post(&team.path("/leave"), json!(null)).await.expect(204);
    member.client.get("/projects").await.refused(404, "TENANT_NOT_FOUND");
    team.owner.post(&team.path("/leave"), json!(null)).await.refused(409, "CONFLICT");
    // Of two owners who leave at once, one stays.
    let second = team.join(Role::Owner).await;
    let (one, two) = (team.owner.clone(), second.client.clone());
    let path = team.path("/leave");
    let (a, b) = tokio::join!(one.post(&path, json!(null)), two.post(&path, json!(null)));
    let mut statuses = [a.status.as_u16(), b.status.as_u16()];
    statuses.sort();
    assert_eq!(statuses, [204, 409]);
}
