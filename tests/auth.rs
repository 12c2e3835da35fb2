//! /auth: register, log in, refresh, log out, one's own account.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::TimeDelta;
use serde_json::json;

use crate::support::{PASSWORD, TestApp, unique_email, within_a_second};

#[tokio::test]
async fn registering_with_an_organization_gives_everything_at_once() {
    let app = TestApp::shared();
    let email = unique_email();
    let body = json!({"email": email.to_uppercase(), "password": PASSWORD, "first_name": "Ana",
        "last_name": "Tan", "username": null, "organization_name": "Straße & Co."});
    let answer = app.anonymous().post("/auth/register", body).await;
    assert_eq!(answer.header("location"), "/api/v1/auth/user");
    let body = answer.expect(201);
    assert_eq!(body["user"]["email"], email);
    assert_eq!(body["organization"]["role"], "owner");
    assert_eq!(body["organization"]["plan"], "free");
    assert_eq!(body["expires_in"], 900);
    let owner = app.anonymous().with_token(body["access_token"].as_str().unwrap());
    let id = body["organization"]["id"].as_str().unwrap();
    owner.within(id).post("/projects", json!({"name": "First"})).await.expect(201);
}

#[tokio::test]
async fn registering_without_an_organization_makes_only_the_account() {
    let app = TestApp::shared();
    let person = app.person().await;
    assert_eq!(person.organization, json!(null));
    assert_eq!(person.client.get("/organizations").await.expect(200)["total"], 0);
    assert_eq!(person.client.get("/auth/user").await.expect(200)["id"], person.id);
}

#[tokio::test]
async fn of_two_registrations_of_one_address_at_once_one_wins_and_nothing_is_left_of_the_other() {
    let app = TestApp::with(|_| {});
    for round in 0..5 {
        let email = unique_email();
        let body =
            json!({"email": email, "password": PASSWORD, "organization_name": format!("Twin {round}")});
        let client = app.anonymous();
        let (one, two) =
            tokio::join!(client.post("/auth/register", body.clone()), client.post("/auth/register", body));
        let (won, lost) = if one.status == 201 { (one, two) } else { (two, one) };
        won.expect(201);
        let error = lost.refused(409, "CONFLICT");
        assert_eq!(error["fields"][0]["field"], "email");
        assert_eq!(error["fields"][0]["code"], "taken");
    }
    assert_eq!(app.number("select count(*) from platform.organizations").await, 5);
    assert_eq!(app.number("select count(*) from platform.tenant_schemas where state = 'taken'").await, 5);
}

#[tokio::test]
async fn weak_passwords_are_refused_with_a_reason() {
    let app = TestApp::shared();
    for (password, reason) in [
        ("short1!A", "12 characters"),
        ("alllowercase1!", "upper-case"),
        ("Password123!!", "common"),
        ("Anastasia-2024", "your own data"),
    ] {
        let body = json!({"email": "anastasia@example.com", "password": password});
        let error = app.anonymous().post("/auth/register", body).await.refused(400, "VALIDATION_ERROR");
        assert_eq!(error["fields"][0]["field"], "password");
        assert!(error["message"].as_str().unwrap().contains(reason), "{error}");
    }
}

#[tokio::test]
async fn logging_in_works_by_address_and_by_user_name_without_case() {
    let app = TestApp::shared();
    let email = unique_email();
    let name = format!("Ana_{}", email.split('@').next().unwrap().replace('-', "_"));
    let body = json!({"email": email, "password": PASSWORD, "username": name});
    app.anonymous().post("/auth/register", body).await.expect(201);
    for credentials in [
        json!({"email": email.to_uppercase(), "password": PASSWORD}),
        json!({"username": name.to_lowercase(), "password": PASSWORD}),
    ] {
        let body = app.anonymous().post("/auth/login", credentials).await.expect(200);
        let client = app.anonymous().with_token(body["access_token"].as_str().unwrap());
        assert_eq!(client.get("/auth/user").await.expect(200)["email"], email);
    }
}

#[tokio::test]
async fn a_wrong_password_and_an_unknown_account_are_answered_alike() {
    let app = TestApp::shared();
    let person = app.person().await;
    let wrong = json!({"email": person.email, "password": "Wrong-Horse-7-Battery"});
    let unknown = json!({"email": unique_email(), "password": PASSWORD});
    let wrong = app.anonymous().post("/auth/login", wrong).await.refused(401, "AUTH_FAILED");
    let unknown = app.anonymous().post("/auth/login", unknown).await.refused(401, "AUTH_FAILED");
    assert_eq!(wrong["message"], unknown["message"]);
}

#[tokio::test]
async fn a_refresh_token_is_good_once_and_a_second_use_ends_the_session() {
    let app = TestApp::shared();
    let person = app.person().await;
    let refresh = |token: &str| {
        let client = app.anonymous();
        let body = json!({"refresh_token": token});
        async move { client.post("/auth/refresh", body).await }
    };
    let second = refresh(&person.refresh_token).await.expect(200);
    let newer = app.anonymous().with_token(second["access_token"].as_str().unwrap());
    newer.get("/auth/user").await.expect(200);
    refresh(&person.refresh_token).await.refused(401, "AUTH_FAILED");
    // The whole family is gone: the newest refresh token and both access tokens.
    refresh(second["refresh_token"].as_str().unwrap()).await.refused(401, "AUTH_FAILED");
    newer.get("/auth/user").await.refused(401, "AUTH_FAILED");
    person.client.get("/auth/user").await.refused(401, "AUTH_FAILED");
}

#[tokio::test]
async fn of_many_uses_of_a_refresh_token_at_once_at_most_one_wins() {
    let app = TestApp::shared();
    let person = app.person().await;
    let body = json!({"refresh_token": person.refresh_token});
    let client = app.anonymous();
    let answers =
        futures_util::future::join_all((0..8).map(|_| client.post("/auth/refresh", body.clone()))).await;
    assert_eq!(answers.iter().filter(|answer| answer.status == 200).count(), 1);
    person.client.get("/auth/user").await.refused(401, "AUTH_FAILED");
}

#[tokio::test]
async fn logging_out_takes_effect_at_once_on_every_instance() {
    let app = TestApp::shared();
    let other = app.beside();
    let person = app.person().await;
    let elsewhere = person.client.at(&other);
    elsewhere.get("/auth/user").await.expect(200);
    person.client.post("/auth/logout", json!(null)).await.expect(204);
    person.client.get("/auth/user").await.refused(401, "AUTH_FAILED");
    within_a_second("known elsewhere", || async { elsewhere.get("/auth/user").await.status == 401 }).await;
    let body = json!({"refresh_token": person.refresh_token});
    app.anonymous().post("/auth/refresh", body).await.refused(401, "AUTH_FAILED");
    // Other sessions of the same person go on.
    let body = json!({"email": person.email, "password": PASSWORD});
    let again = app.anonymous().post("/auth/login", body).await.expect(200);
    app.anonymous().with_token(again["access_token"].as_str().unwrap()).get("/auth/user").await.expect(200);
}

#[tokio::test]
async fn an_access_token_expires_after_15_minutes_and_a_refresh_token_after_7_days() {
    let app = TestApp::with(|_| {});
    let person = app.person().await;
    app.app.clock.advance(TimeDelta::minutes(14));
    person.client.get("/auth/user").await.expect(200);
    app.app.clock.advance(TimeDelta::minutes(2));
    person.client.get("/auth/user").await.refused(401, "TOKEN_EXPIRED");
    let body = json!({"refresh_token": person.refresh_token});
    let renewed = app.anonymous().post("/auth/refresh", body).await.expect(200);
    app.app.clock.advance(TimeDelta::days(8));
    let body = json!({"refresh_token": renewed["refresh_token"]});
    app.anonymous().post("/auth/refresh", body).await.refused(401, "AUTH_FAILED");
}

#[tokio::test]
async fn forged_tokens_are_refused() {
    let app = TestApp::shared();
    let person = app.person().await;
    let parts: Vec<&str> = person.access_token.split('.').collect();
    let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none","typ":"JWT"}"#);
    let header = String::from_utf8(URL_SAFE_NO_PAD.decode(parts[0]).unwrap()).unwrap();
    let hs256 = URL_SAFE_NO_PAD.encode(header.replace("EdDSA", "HS256"));
    let claims = String::from_utf8(URL_SAFE_NO_PAD.decode(parts[1]).unwrap()).unwrap();
    let longer = URL_SAFE_NO_PAD.encode(claims.replace("\"exp\":1", "\"exp\":9"));
    let stranger = TestApp::with(|config| config.auth.issuer = "elsewhere".into());
    let foreign = stranger.person().await.access_token;
    for forged in [
        format!("{none}.{}.", parts[1]),
        format!("{none}.{}.{}", parts[1], parts[2]),
        format!("{hs256}.{}.{}", parts[1], parts[2]),
        format!("{}.{longer}.{}", parts[0], parts[2]),
        format!("{}.{}.", parts[0], parts[1]),
        format!("{}.{}", parts[0], parts[1]),
        foreign,
        "nonsense".into(),
        "".into(),
    ] {
        app.anonymous().with_token(&forged).get("/auth/user").await.refused(401, "AUTH_FAILED");
    }
    person.client.get("/auth/user").await.expect(200);
}

#[tokio::test]
async fn the_published_keys_verify_the_tokens() {
    let app = TestApp::shared();
    let person = app.person().await;
    let keys = app.anonymous().get("/.well-known/jwks.json").await.expect(200);
    let header: Vec<u8> = URL_SAFE_NO_PAD.decode(person.access_token.split('.').next().unwrap()).unwrap();
    let header: serde_json::Value = serde_json::from_slice(&header).unwrap();
    assert_eq!(header["alg"], "EdDSA");
    let key = keys["keys"].as_array().unwrap().iter().find(|key| key["kid"] == header["kid"]).unwrap();
    assert_eq!((&key["kty"], &key["crv"]), (&json!("OKP"), &json!("Ed25519")));
    assert!(key.get("d").is_none(), "the private half is never published");
    let public = URL_SAFE_NO_PAD.decode(key["x"].as_str().unwrap()).unwrap();
    let (message, signature) = person.access_token.rsplit_once('.').unwrap();
    ring::signature::UnparsedPublicKey::new(&ring::signature::ED25519, public)
        .verify(message.as_bytes(), &URL_SAFE_NO_PAD.decode(signature).unwrap())
        .unwrap();
}

#[tokio::test]
async fn every_instance_signs_with_keys_that_survive_a_restart() {
    let app = TestApp::with(|_| {});
    let person = app.person().await;
    person.client.at(&app.beside()).get("/auth/user").await.expect(200);
    assert_eq!(app.number("select count(*) from platform.signing_keys").await, 1);
}

#[tokio::test]
async fn nothing_secret_is_stored_as_it_is() {
    let app = TestApp::with(|_| {});
    let person = app.person().await;
    let hashes = app.number(
        "select count(*) from platform.users where password_hash like '$argon2id$v=19$m=19456,t=2,p=1$%'",
    );
    assert_eq!(hashes.await, 1);
    let token = &person.refresh_token;
    let plain =
        format!("select count(*) from platform.refresh_tokens where position('{token}'::bytea in hash) > 0");
    assert_eq!(app.number(&plain).await, 0);
}

#[tokio::test]
async fn a_profile_is_changed_field_by_field() {
    let app = TestApp::shared();
    let person = app.person().await;
    let change = json!({"display_name": "Ana T.", "bio": "Likes rows", "locale": "zh-Hans", "timezone": "Asia/Tokyo",
        "phone": "+65 8123 4567", "company": "Acme", "location": "Singapore", "preferences": {"theme": "dark"}});
    let changed = person.client.patch("/auth/user", change.clone()).await.expect(200);
    for (field, value) in change.as_object().unwrap() {
        assert_eq!(&changed[field], value);
    }
    let emptied = person.client.patch("/auth/user", json!({"bio": null})).await.expect(200);
    assert_eq!((&emptied["bio"], &emptied["display_name"]), (&json!(null), &json!("Ana T.")));
    for bad in [
        json!({"timezone": "Mars/Phobos"}),
        json!({"locale": "xx"}),
        json!({"locale": null}),
        json!({"avatar_url": "javascript:alert(1)"}),
        json!({"email": "other@example.com"}),
        json!({"is_superuser": true}),
        json!({"preferences": {"big": "x".repeat(20_000)}}),
        json!({"bio": "a\u{0}b"}),
        json!({"preferences": {"a": "b\u{0}"}}),
    ] {
        person.client.patch("/auth/user", bad).await.refused(400, "VALIDATION_ERROR");
    }
    assert_eq!(person.client.get("/auth/user").await.expect(200), emptied);
}

#[tokio::test]
async fn a_deactivated_account_is_out_at_once() {
    let app = TestApp::shared();
    let person = app.person().await;
    app.sql(&format!("update platform.users set is_active = false where id = '{}'", person.id)).await;
    person.client.get("/auth/user").await.refused(401, "AUTH_FAILED");
    let body = json!({"email": person.email, "password": PASSWORD});
    app.anonymous().post("/auth/login", body).await.refused(401, "AUTH_FAILED");
}

#[tokio::test]
async fn of_two_uses_of_a_refresh_token_at_once_one_counts_and_the_session_ends() {
    let app = TestApp::shared();
    let person = app.person().await;
    let anybody = app.anonymous();
    let body = json!({"refresh_token": person.refresh_token});
    let uses = (0..4).map(|_| anybody.post("/auth/refresh", body.clone()));
    let answers = futures_util::future::join_all(uses).await;
    let won: Vec<_> = answers.iter().filter(|answer| answer.status == 200).collect();
    assert_eq!(won.len(), 1);
    let next = json!({"refresh_token": won[0].json()["refresh_token"]});
    anybody.post("/auth/refresh", next).await.refused(401, "AUTH_FAILED");
    person.client.get("/auth/user").await.refused(401, "AUTH_FAILED");
}
