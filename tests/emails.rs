//! What is proved by mail: verification, password reset and change, change of address.

use chrono::TimeDelta;
use serde_json::json;

use rowhouse::app::Part;

use crate::support::{PASSWORD, TestApp, smtp, unique_email};

const NEW: &str = "Purple-Kettle-42-Rain";

#[tokio::test]
async fn an_address_is_verified_by_the_link_that_is_mailed_to_it() {
    let app = TestApp::shared();
    let person = app.person().await;
    assert_eq!(person.client.get("/auth/user").await.expect(200)["email_verified"], false);
    let mail = app.mail(&person.email, "Confirm your address").await;
    let html = mail.html.replace("&#x2f;", "/").replace("&#x3d;", "=");
    assert!(html.contains(&format!("/verify-email?token={}", mail.token())), "{html}");
    let token = json!({"token": mail.token()});
    app.anonymous().post("/auth/verify-email", token.clone()).await.expect(204);
    assert_eq!(person.client.get("/auth/user").await.expect(200)["email_verified"], true);
    app.anonymous().post("/auth/verify-email", token).await.refused(401, "AUTH_FAILED");
}

#[tokio::test]
async fn a_verification_is_sent_again_and_replaces_the_first() {
    let app = TestApp::shared();
    let person = app.person().await;
    let first = app.mail(&person.email, "Confirm").await;
    person.client.post("/auth/verify-email/resend", json!(null)).await.expect(202);
    crate::support::within(5, "the second mail", || async { smtp::sent_to(&person.email).len() == 2 }).await;
    let stale = json!({"token": first.token()});
    app.anonymous().post("/auth/verify-email", stale).await.refused(401, "AUTH_FAILED");
    let second = app.mail(&person.email, "Confirm").await;
    app.anonymous().post("/auth/verify-email", json!({"token": second.token()})).await.expect(204);
    // Once it is done there is nothing left to send.
    person.client.post("/auth/verify-email/resend", json!(null)).await.expect(202);
}

#[tokio::test]
async fn a_forgotten_password_is_replaced_and_every_session_ends() {
    let app = TestApp::shared();
    let person = app.person().await;
    app.anonymous().post("/auth/password/reset", json!({"email": person.email})).await.expect(202);
    let token = app.mail(&person.email, "Set a new password").await.token();
    let weak = json!({"token": token, "password": "password"});
    app.anonymous().post("/auth/password/reset/confirm", weak).await.refused(400, "VALIDATION_ERROR");
    let reset = json!({"token": token, "password": NEW});
    app.anonymous().post("/auth/password/reset/confirm", reset.clone()).await.expect(204);
    person.client.get("/auth/user").await.refused(401, "AUTH_FAILED");
    let refresh = json!({"refresh_token": person.refresh_token});
    app.anonymous().post("/auth/refresh", refresh).await.refused(401, "AUTH_FAILED");
    let old = json!({"email": person.email, "password": PASSWORD});
    app.anonymous().post("/auth/login", old).await.refused(401, "AUTH_FAILED");
    let login = json!({"email": person.email, "password": NEW});
    let user = app.anonymous().post("/auth/login", login).await.expect(200)["user"].clone();
    assert_eq!(user["email_verified"], true, "who reads the mail owns the address");
    app.anonymous().post("/auth/password/reset/confirm", reset).await.refused(401, "AUTH_FAILED");
    app.mail(&person.email, "Your password was changed").await;
}

#[tokio::test]
async fn of_two_resets_at_once_one_counts() {
    let app = TestApp::shared();
    let person = app.person().await;
    app.anonymous().post("/auth/password/reset", json!({"email": person.email})).await.expect(202);
    let token = app.mail(&person.email, "Set a new password").await.token();
    let (one, two) = (format!("{NEW}-one"), format!("{NEW}-two"));
    let anybody = app.anonymous();
    let resets = [&one, &two].map(|password| {
        anybody.post("/auth/password/reset/confirm", json!({"token": token, "password": password}))
    });
    let statuses: Vec<u16> =
        futures_util::future::join_all(resets).await.iter().map(|answer| answer.status.as_u16()).collect();
    assert!(statuses == [204, 401] || statuses == [401, 204], "{statuses:?}");
    let winner = if statuses[0] == 204 { one } else { two };
    app.anonymous().post("/auth/login", json!({"email": person.email, "password": winner})).await.expect(200);
}

#[tokio::test]
async fn tokens_expire_and_are_good_for_their_purpose_only() {
    let app = TestApp::with(|_| {});
    let person = app.person().await;
    let verification = app.mail(&person.email, "Confirm").await.token();
    app.anonymous().post("/auth/password/reset", json!({"email": person.email})).await.expect(202);
    let reset = app.mail(&person.email, "Set a new password").await.token();
    // Swapped, truncated, made up.
    for token in [&reset, &verification[..20], "", "rht_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"] {
        let body = json!({"token": token});
        app.anonymous().post("/auth/verify-email", body.clone()).await.refused(401, "AUTH_FAILED");
        app.anonymous().post("/auth/email/confirm", body).await.refused(401, "AUTH_FAILED");
    }
    let swapped = json!({"token": verification, "password": NEW});
    app.anonymous().post("/auth/password/reset/confirm", swapped).await.refused(401, "AUTH_FAILED");
    let as_refresh = json!({"refresh_token": reset});
    app.anonymous().post("/auth/refresh", as_refresh).await.refused(401, "AUTH_FAILED");
    app.app.clock.advance(TimeDelta::minutes(61));
    let late = json!({"token": reset, "password": NEW});
    app.anonymous().post("/auth/password/reset/confirm", late).await.refused(401, "AUTH_FAILED");
    app.app.clock.advance(TimeDelta::hours(24));
    app.anonymous()
        .post("/auth/verify-email", json!({"token": verification}))
        .await
        .refused(401, "AUTH_FAILED");
}

#[tokio::test]
async fn nobody_learns_whose_address_it_is() {
    let app = TestApp::shared();
    let person = app.person().await;
    let known = app.anonymous().post("/auth/password/reset", json!({"email": person.email})).await;
    let unknown = app.anonymous().post("/auth/password/reset", json!({"email": unique_email()})).await;
    assert_eq!((known.status, &known.text), (unknown.status, &unknown.text));
    // A change to somebody else's address looks like any other; its owner is told.
    let other = app.person().await;
    let change = json!({"new_email": other.email, "password": PASSWORD});
    person.client.post("/auth/email/change", change).await.expect(202);
    app.mail(&other.email, "You already have an account").await;
    let token = app.mail(&person.email, "Confirm the change").await.token();
    let told = app.anonymous().post("/auth/email/confirm", json!({"token": token})).await.expect(200);
    assert_eq!(told["state"], "waiting");
}

#[tokio::test]
async fn changing_the_password_ends_the_other_sessions() {
    let app = TestApp::shared();
    let person = app.person().await;
    let login = json!({"email": person.email, "password": PASSWORD});
    let other = app.anonymous().post("/auth/login", login).await.expect(200);
    let other = app.anonymous().with_token(other["access_token"].as_str().unwrap());
    let change = |current: &str, new: &str| json!({"current_password": current, "new_password": new});
    for (body, field) in [
        (change("Wrong-Horse-7-Battery", NEW), "current_password"),
        (change(PASSWORD, "short"), "new_password"),
        (change(PASSWORD, PASSWORD), "new_password"),
        (change(PASSWORD, &person.email), "new_password"),
    ] {
        let error = person.client.post("/auth/password/change", body).await.refused(400, "VALIDATION_ERROR");
        assert_eq!(error["fields"][0]["field"], field);
    }
    other.get("/auth/user").await.expect(200);
    person.client.post("/auth/password/change", change(PASSWORD, NEW)).await.expect(204);
    other.get("/auth/user").await.refused(401, "AUTH_FAILED");
    person.client.get("/auth/user").await.expect(200);
}

#[tokio::test]
async fn an_address_changes_when_both_have_confirmed() {
    let app = TestApp::shared();
    for old_first in [true, false] {
        let person = app.person().await;
        let new_email = unique_email();
        let wrong = json!({"new_email": new_email, "password": "Wrong-Horse-7-Battery"});
        person.client.post("/auth/email/change", wrong).await.refused(400, "VALIDATION_ERROR");
        let change = json!({"new_email": new_email, "password": PASSWORD});
        person.client.post("/auth/email/change", change).await.expect(202);
        let old = app.mail(&person.email, "Confirm the change").await;
        assert!(old.text.contains(&new_email));
        let new = app.mail(&new_email, "Confirm your new address").await;
        let (first, second) = if old_first { (old, new) } else { (new, old) };
        let told = app.anonymous().post("/auth/email/confirm", json!({"token": first.token()})).await;
        assert_eq!(told.expect(200)["state"], "waiting");
        assert_eq!(person.client.get("/auth/user").await.expect(200)["email"], person.email.as_str());
        let told = app.anonymous().post("/auth/email/confirm", json!({"token": second.token()})).await;
        assert_eq!(told.expect(200)["state"], "changed");
        let user = person.client.get("/auth/user").await.expect(200);
        assert_eq!((&user["email"], &user["email_verified"]), (&json!(new_email), &json!(true)));
        app.anonymous()
            .post("/auth/email/confirm", json!({"token": second.token()}))
            .await
            .refused(401, "AUTH_FAILED");
        let login = json!({"email": new_email, "password": PASSWORD});
        app.anonymous().post("/auth/login", login).await.expect(200);
    }
}

#[tokio::test]
async fn names_cannot_write_headers_or_markup() {
    let app = TestApp::shared();
    let email = unique_email();
    let body = json!({"email": email, "password": PASSWORD,
        "first_name": "Ana\r\nBcc: everybody@example.com\r\n\r\n<script>alert(1)</script>"});
    app.anonymous().post("/auth/register", body).await.expect(201);
    let mail = app.mail(&email, "Confirm").await;
    let headers = mail.raw.split("\r\n\r\n").next().unwrap();
    assert!(!headers.to_lowercase().contains("bcc:"), "{headers}");
    assert!(!mail.html.contains("<script>"), "{}", mail.html);
    for confusable in
        ["аna@example.com", "ana@exаmple.com", "ana@example.com\r\nbcc: x@example.com", "ana＠example.com"]
    {
        let body = json!({"email": confusable, "password": PASSWORD});
        app.anonymous().post("/auth/register", body).await.refused(400, "VALIDATION_ERROR");
    }
    let long = json!({"email": unique_email(), "password": "x".repeat(1_000_000)});
    app.anonymous().post("/auth/register", long).await.refused(400, "VALIDATION_ERROR");
}

/// Mail is sent by a job after the commit, and again when the server was away.
#[tokio::test]
async fn mail_that_cannot_be_sent_is_sent_later() {
    let app = TestApp::with(|config| {
        config.mail.smtp_url = Some("smtp://127.0.0.1:1".to_owned().into());
    });
    let person = app.person().await;
    let waiting = "select count(*) from platform.jobs where attempts = 1 and last_error is not null";
    crate::support::within(5, "the first attempt", || async { app.number(waiting).await == 1 }).await;
    assert!(smtp::sent_to(&person.email).is_empty());
    // Another instance that reaches a server does what this one could not.
    let mut config = app.app.config.clone();
    config.mail.smtp_url = crate::support::configuration("x").mail.smtp_url;
    // The first instance may be quicker with an attempt, or with several: none of them shall be the last.
    let other = rowhouse::app::App::new(config, app.app.clock.clone()).unwrap();
    let _worker = crate::support::on_the_servers_runtime(other.start(Part::Worker)).unwrap();
    crate::support::within(10, "another attempt", || async {
        app.sql("update platform.jobs set attempts = 1 where attempts > 1").await;
        app.app.clock.advance(TimeDelta::seconds(15));
        !smtp::sent_to(&person.email).is_empty()
    })
    .await;
    let readable =
        "select count(*) from platform.jobs where position('verify' in encode(sealed_payload, 'escape')) > 0";
    assert_eq!(app.number(readable).await, 0, "tokens in jobs are sealed");
}

#[tokio::test]
async fn without_a_mail_server_letters_are_put_into_a_folder() {
    let folder = std::env::temp_dir().join(format!("rowhouse-folder-{}", uuid::Uuid::now_v7().simple()));
    let app = TestApp::with(|config| {
        config.mail.smtp_url = None;
        config.mail.folder = folder.clone();
    });
    let person = app.person().await;
    let letters = || std::fs::read_dir(&folder).map_or(0, |files| files.count());
    crate::support::within(5, "a letter in the folder", || async { letters() == 1 }).await;
    let file = std::fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
    assert!(std::fs::read_to_string(file).unwrap().contains(&person.email));
    std::fs::remove_dir_all(folder).unwrap();
}

/// Two requests at once leave at most one change that can be confirmed, and only by both addresses.
#[tokio::test]
async fn an_address_is_never_taken_without_its_own_word() {
    let app = TestApp::shared();
    let person = app.person().await;
    let targets = [unique_email(), unique_email()];
    let changes = targets.iter().map(|email| {
        person.client.post("/auth/email/change", json!({"new_email": email, "password": PASSWORD}))
    });
    for answer in futures_util::future::join_all(changes).await {
        answer.expect(202);
    }
    let asked = || {
        let mails = smtp::sent_to(&person.email);
        mails.into_iter().filter(|mail| mail.subject.contains("Confirm the change")).collect::<Vec<_>>()
    };
    crate::support::within(5, "both mails", || async { asked().len() == 2 }).await;
    for mail in asked() {
        let answer = app.anonymous().post("/auth/email/confirm", json!({"token": mail.token()})).await;
        assert!(answer.status == 401 || answer.json()["state"] == "waiting", "{}", answer.text);
    }
    assert_eq!(person.client.get("/auth/user").await.expect(200)["email"], person.email.as_str());
}

#[tokio::test]
async fn a_link_to_the_old_address_is_worth_nothing_after_the_change() {
    let app = TestApp::shared();
    let person = app.person().await;
    let new_email = unique_email();
    let change = json!({"new_email": new_email, "password": PASSWORD});
    person.client.post("/auth/email/change", change).await.expect(202);
    app.anonymous().post("/auth/password/reset", json!({"email": person.email})).await.expect(202);
    let reset = app.mail(&person.email, "Set a new password").await.token();
    for (to, subject) in [(&person.email, "Confirm the change"), (&new_email, "Confirm your new address")] {
        let token = app.mail(to, subject).await.token();
        app.anonymous().post("/auth/email/confirm", json!({"token": token})).await.expect(200);
    }
    let body = json!({"token": reset, "password": NEW});
    app.anonymous().post("/auth/password/reset/confirm", body).await.refused(401, "AUTH_FAILED");
    app.mail(&person.email, "Something about your account").await;
}

/// Whoever asks from many addresses does not fill one mailbox.
#[tokio::test]
async fn one_address_gets_so_much_mail_and_no_more() {
    let app = TestApp::with(|config| config.limits.mail = "2/h".parse().unwrap());
    let person = app.person().await;
    for _ in 0..5 {
        app.anonymous().post("/auth/password/reset", json!({"email": person.email})).await.expect(202);
    }
    crate::support::within(5, "every job is done", || async {
        app.number("select count(*) from platform.jobs").await == 0
    })
    .await;
    let mails = smtp::sent_to(&person.email);
    assert_eq!(mails.iter().filter(|mail| mail.subject.contains("Set a new password")).count(), 2);
    let team = app.team().await;
    let body = json!({"email": person.email, "role": "viewer"});
    team.owner.post(&team.path("/invitations"), body).await.refused(429, "RATE_LIMIT");
}
