//! Second factors, and what they are good for.

use chrono::TimeDelta;
use rowhouse::auth::Role;
use serde_json::{Value, json};
use totp_rs::{Builder, Secret};

use crate::support::{PASSWORD, Person, TestApp};

/// What an authenticator shows.
fn code(app: &TestApp, secret: &str, ahead: i64) -> String {
    let totp = Builder::new().with_secret(Secret::try_from_base32(secret).unwrap()).build().unwrap();
    totp.generate((app.app.clock.now().timestamp() + ahead) as u64).to_string()
}

/// Sets up a second factor; answers the secret and the recovery codes.
async fn enrol(app: &TestApp, person: &Person) -> (String, Vec<String>) {
    let enrolment = person.client.post("/auth/mfa/totp", json!({"password": PASSWORD})).await.expect(200);
    let secret = enrolment["secret"].as_str().unwrap().to_owned();
    let confirm = json!({"code": code(app, &secret, 0)});
    let codes = person.client.post("/auth/mfa/totp/confirm", confirm).await.expect(200);
    let codes = codes["recovery_codes"].as_array().unwrap().iter().map(|code| code.as_str().unwrap().into());
    (secret, codes.collect())
}

fn login(person: &Person, code: Option<&str>) -> Value {
    json!({"email": person.email, "password": PASSWORD, "mfa_code": code})
}

#[tokio::test]
async fn a_second_factor_counts_once_it_is_confirmed() {
    let app = TestApp::with(|_| {});
    let person = app.person().await;
    let other = app.anonymous().post("/auth/login", login(&person, None)).await.expect(200);
    let other = app.anonymous().with_token(other["access_token"].as_str().unwrap());
    let stolen = person.client.post("/auth/mfa/totp", json!({"password": "Wrong-Horse-7-Battery"})).await;
    stolen.refused(400, "VALIDATION_ERROR");
    let enrolment = person.client.post("/auth/mfa/totp", json!({"password": PASSWORD})).await.expect(200);
    let secret = enrolment["secret"].as_str().unwrap();
    let uri = enrolment["otpauth_uri"].as_str().unwrap();
    assert!(uri.starts_with("otpauth://totp/Rowhouse:") && uri.contains(secret), "{uri}");
    assert!(enrolment["qr_svg"].as_str().unwrap().contains("<svg"));
    // Not yet: logging in goes on as before.
    app.anonymous().post("/auth/login", login(&person, None)).await.expect(200);
    let wrong = json!({"code": "000000"});
    person.client.post("/auth/mfa/totp/confirm", wrong).await.refused(400, "VALIDATION_ERROR");
    let confirm = json!({"code": code(&app, secret, 0)});
    let codes = person.client.post("/auth/mfa/totp/confirm", confirm).await.expect(200);
    assert_eq!(codes["recovery_codes"].as_array().unwrap().len(), 10);
    other.get("/auth/user").await.refused(401, "AUTH_FAILED");
    let state = person.client.get("/auth/mfa").await.expect(200);
    assert_eq!((&state["enabled"], &state["recovery_codes_left"]), (&json!(true), &json!(10)));
    person.client.post("/auth/mfa/totp", json!({"password": PASSWORD})).await.refused(409, "CONFLICT");
    let sealed = format!(
        "select count(*) from platform.users where position('{secret}'::bytea in sealed_totp_secret) > 0"
    );
    assert_eq!(app.number(&sealed).await, 0);
}

#[tokio::test]
async fn logging_in_takes_a_code_in_one_step_or_two() {
    let app = TestApp::with(|_| {});
    let person = app.person().await;
    let (secret, _) = enrol(&app, &person).await;
    app.app.clock.advance(TimeDelta::seconds(30));
    let now = code(&app, &secret, 0);
    app.anonymous().post("/auth/login", login(&person, Some(&now))).await.expect(200);
    let wanted = app.anonymous().post("/auth/login", login(&person, None)).await.refused(401, "MFA_REQUIRED");
    let challenge = wanted["details"]["challenge"].as_str().unwrap().to_owned();
    assert_eq!(wanted["details"]["expires_in"], 300);
    let step = |code: &str| json!({"challenge": challenge, "code": code});
    // The code was used already.
    app.anonymous().post("/auth/login/mfa", step(&now)).await.refused(401, "AUTH_FAILED");
    app.app.clock.advance(TimeDelta::seconds(30));
    let next = code(&app, &secret, 0);
    let done = app.anonymous().post("/auth/login/mfa", step(&next)).await.expect(200);
    assert_eq!(done["user"]["mfa_enabled"], true);
    app.app.clock.advance(TimeDelta::seconds(30));
    let later = code(&app, &secret, 0);
    app.anonymous().post("/auth/login/mfa", step(&later)).await.refused(401, "AUTH_FAILED");
    // A wrong password is answered alike, with and without a code.
    let wrong = json!({"email": person.email, "password": "Wrong-Horse-7-Battery"});
    app.anonymous().post("/auth/login", wrong).await.refused(401, "AUTH_FAILED");
}

#[tokio::test]
async fn a_challenge_expires_and_a_code_is_good_about_now() {
    let app = TestApp::with(|_| {});
    let person = app.person().await;
    let (secret, _) = enrol(&app, &person).await;
    app.app.clock.advance(TimeDelta::minutes(2));
    for ahead in [-120, 120] {
        let stale = code(&app, &secret, ahead);
        app.anonymous().post("/auth/login", login(&person, Some(&stale))).await.refused(401, "AUTH_FAILED");
    }
    // Clocks may differ by a step.
    let early = code(&app, &secret, 30);
    app.anonymous().post("/auth/login", login(&person, Some(&early))).await.expect(200);
    let before = code(&app, &secret, 0);
    app.anonymous().post("/auth/login", login(&person, Some(&before))).await.refused(401, "AUTH_FAILED");
    let wanted = app.anonymous().post("/auth/login", login(&person, None)).await.refused(401, "MFA_REQUIRED");
    app.app.clock.advance(TimeDelta::seconds(301));
    let step = json!({"challenge": wanted["details"]["challenge"], "code": code(&app, &secret, 0)});
    app.anonymous().post("/auth/login/mfa", step).await.refused(401, "AUTH_FAILED");
}

#[tokio::test]
async fn of_two_uses_of_a_code_at_once_one_counts() {
    let app = TestApp::with(|_| {});
    let person = app.person().await;
    let (secret, recovery) = enrol(&app, &person).await;
    app.app.clock.advance(TimeDelta::seconds(30));
    for used in [code(&app, &secret, 0), recovery[0].clone()] {
        let anybody = app.anonymous();
        let logins = (0..4).map(|_| anybody.post("/auth/login", login(&person, Some(&used))));
        let answers = futures_util::future::join_all(logins).await;
        assert_eq!(answers.iter().filter(|answer| answer.status == 200).count(), 1);
    }
}

#[tokio::test]
async fn a_recovery_code_opens_once() {
    let app = TestApp::with(|_| {});
    let person = app.person().await;
    let (secret, recovery) = enrol(&app, &person).await;
    let typed = recovery[3].to_uppercase().replace('-', " ");
    app.anonymous().post("/auth/login", login(&person, Some(&typed))).await.expect(200);
    app.anonymous().post("/auth/login", login(&person, Some(&recovery[3]))).await.refused(401, "AUTH_FAILED");
    assert_eq!(person.client.get("/auth/mfa").await.expect(200)["recovery_codes_left"], 9);
    app.app.clock.advance(TimeDelta::seconds(30));
    let proof = json!({"password": PASSWORD, "code": code(&app, &secret, 0)});
    let renewed = person.client.post("/auth/mfa/recovery-codes", proof).await.expect(200);
    assert_eq!(renewed["recovery_codes"].as_array().unwrap().len(), 10);
    app.anonymous().post("/auth/login", login(&person, Some(&recovery[4]))).await.refused(401, "AUTH_FAILED");
}

#[tokio::test]
async fn disabling_takes_password_and_code() {
    let app = TestApp::with(|_| {});
    let person = app.person().await;
    let (secret, recovery) = enrol(&app, &person).await;
    app.app.clock.advance(TimeDelta::seconds(30));
    let good = code(&app, &secret, 0);
    for (password, code) in [("Wrong-Horse-7-Battery", good.as_str()), (PASSWORD, "000000")] {
        let proof = json!({"password": password, "code": code});
        person.client.post("/auth/mfa/disable", proof).await.refused(400, "VALIDATION_ERROR");
    }
    person.client.post("/auth/mfa/disable", json!({"password": PASSWORD, "code": good})).await.expect(204);
    app.anonymous().post("/auth/login", login(&person, None)).await.expect(200);
    assert_eq!(person.client.get("/auth/mfa").await.expect(200)["enabled"], false);
    let kinds = person.client.get("/auth/security-events").await.expect(200);
    let kinds: Vec<&str> =
        kinds["data"].as_array().unwrap().iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert!(kinds.contains(&"mfa_enabled") && kinds.contains(&"mfa_disabled"), "{kinds:?}");
    drop(recovery);
}

#[tokio::test]
async fn an_organization_may_require_a_second_factor() {
    let app = TestApp::with(|_| {});
    let team = app.team().await;
    let member = team.join(Role::Admin).await;
    let key = json!({"name": "Old key", "scopes": ["projects:read"]});
    let key = member.client.post("/api-keys", key).await.expect(201)["key"].as_str().unwrap().to_owned();
    let program = app.anonymous().header("x-api-key", &key);
    // Whoever has none would lock themselves out.
    team.owner.patch(&team.path(""), json!({"require_mfa": true})).await.refused(409, "CONFLICT");
    enrol(&app, &team.founder).await;
    let changed = team.owner.patch(&team.path(""), json!({"require_mfa": true})).await.expect(200);
    assert_eq!(changed["require_mfa"], true);
    team.owner.get("/projects").await.expect(200);
    let told = member.client.get("/projects").await.refused(401, "MFA_REQUIRED");
    assert_eq!(told["details"]["enroll"], "/api/v1/auth/mfa/totp");
    program.get("/projects").await.refused(401, "MFA_REQUIRED");
    // What it takes to enrol is open.
    enrol(&app, &member).await;
    member.client.get("/projects").await.expect(200);
    program.get("/projects").await.expect(200);
}

#[tokio::test]
async fn staff_help_somebody_who_has_lost_everything() {
    let app = TestApp::with(|_| {});
    let (staff, person) = (app.superuser().await, app.person().await);
    enrol(&app, &person).await;
    staff.client.post(&format!("/admin/users/{}/reset-mfa", person.id), json!(null)).await.expect(204);
    person.client.get("/auth/user").await.refused(401, "AUTH_FAILED");
    app.anonymous().post("/auth/login", login(&person, None)).await.expect(200);
}
