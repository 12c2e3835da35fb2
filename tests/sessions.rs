//! Sessions, lockout, and what is told of them.

use std::time::{Duration, Instant};

use chrono::TimeDelta;
use serde_json::{Value, json};

use crate::support::{Client, PASSWORD, Person, TestApp, unique_email, within, within_a_second};

/// Other instances hear of an end in milliseconds, and later on a busy machine.
async fn is_out(client: &Client) {
    within_a_second("the end is known", || async { client.get("/auth/user").await.status == 401 }).await;
    client.get("/auth/user").await.refused(401, "AUTH_FAILED");
}

async fn log_in(app: &TestApp, person: &Person, agent: &str) -> Client {
    let body = json!({"email": person.email, "password": PASSWORD});
    let answer = app.anonymous().header("user-agent", agent).post("/auth/login", body).await.expect(200);
    app.anonymous().with_token(answer["access_token"].as_str().unwrap())
}

#[tokio::test]
async fn sessions_are_listed_with_device_address_and_activity() {
    let app = TestApp::with(|config| config.http.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()]);
    let person = app.person().await;
    let firefox = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0";
    let body = json!({"email": person.email, "password": PASSWORD});
    let client = app.anonymous().header("user-agent", firefox).header("x-forwarded-for", "198.51.100.7");
    client.post("/auth/login", body).await.expect(200);
    let sessions = person.client.get("/auth/sessions").await.expect(200);
    assert_eq!(sessions["total"], 2);
    let (newest, first) = (&sessions["data"][0], &sessions["data"][1]);
    assert_eq!(newest["device"], "Firefox on Linux");
    assert_eq!(newest["address"], "198.51.100.7");
    assert_eq!((&newest["current"], &first["current"]), (&json!(false), &json!(true)));
    // Being used moves the activity, in batches.
    let before = first["last_active_at"].as_str().unwrap().to_owned();
    app.app.clock.advance(TimeDelta::minutes(2));
    person.client.header("x-forwarded-for", "203.0.113.9").get("/auth/user").await.expect(200);
    within(10, "the activity is written", || async {
        let sessions =
            person.client.header("x-forwarded-for", "203.0.113.9").get("/auth/sessions").await.expect(200);
        let own = &sessions["data"][1];
        own["last_active_at"].as_str().unwrap() > before.as_str() && own["address"] == "203.0.113.9"
    })
    .await;
}

#[tokio::test]
async fn ending_a_session_is_in_force_at_once_on_every_instance() {
    let app = TestApp::shared();
    let there = app.beside();
    let person = app.person().await;
    let (one, two) = (log_in(&app, &person, "one").await, log_in(&app, &person, "two").await);
    let of = async |client: &Client| -> Value {
        let sessions = client.get("/auth/sessions").await.expect(200);
        sessions["data"].as_array().unwrap().iter().find(|s| s["current"] == true).unwrap()["id"].clone()
    };
    let path = format!("/auth/sessions/{}", of(&one).await.as_str().unwrap());
    person.client.delete(&path).await.expect(204);
    is_out(&one.at(&there)).await;
    two.at(&there).get("/auth/user").await.expect(200);
    person.client.delete(&path).await.refused(404, "NOT_FOUND");
    let stranger = app.person().await;
    let foreign = format!("/auth/sessions/{}", of(&two).await.as_str().unwrap());
    stranger.client.delete(&foreign).await.refused(404, "NOT_FOUND");
    person.client.post("/auth/sessions/revoke-others", json!(null)).await.expect(204);
    is_out(&two.at(&there)).await;
    person.client.at(&there).get("/auth/user").await.expect(200);
    person.client.post("/auth/logout-all", json!(null)).await.expect(204);
    is_out(&person.client.at(&there)).await;
}

#[tokio::test]
async fn an_account_is_locked_after_five_failures_and_longer_each_time() {
    let app = TestApp::with(|config| config.auth.lockout_attempts = 5);
    let person = app.person().await;
    let right = json!({"email": person.email, "password": PASSWORD});
    let wrong = json!({"email": person.email, "password": "Wrong-Horse-7-Battery"});
    let anybody = app.anonymous();
    for (round, minutes) in [5, 10, 20].into_iter().enumerate() {
        for _ in 0..5 {
            anybody.post("/auth/login", wrong.clone()).await.refused(401, "AUTH_FAILED");
        }
        // The right password does not help now.
        let locked = anybody.post("/auth/login", right.clone()).await;
        let seconds: i64 = locked.header("retry-after").parse().unwrap();
        assert!((minutes * 60 - 10..=minutes * 60).contains(&seconds), "round {round}: {seconds}");
        locked.refused(423, "ACCOUNT_LOCKED");
        app.app.clock.advance(TimeDelta::minutes(minutes));
    }
    app.mail(&person.email, "Your account is locked").await;
    anybody.post("/auth/login", right.clone()).await.expect(200);
    // A success takes the count back, and so does time.
    for _ in 0..4 {
        anybody.post("/auth/login", wrong.clone()).await.refused(401, "AUTH_FAILED");
    }
    anybody.post("/auth/login", right.clone()).await.expect(200);
    for _ in 0..4 {
        anybody.post("/auth/login", wrong.clone()).await.refused(401, "AUTH_FAILED");
    }
    app.app.clock.advance(TimeDelta::minutes(6));
    for _ in 0..4 {
        anybody.post("/auth/login", wrong.clone()).await.refused(401, "AUTH_FAILED");
    }
    anybody.post("/auth/login", right).await.expect(200);
}

#[tokio::test]
async fn a_made_up_account_is_locked_like_a_real_one() {
    let app = TestApp::with(|config| config.auth.lockout_attempts = 5);
    let nobody = json!({"email": unique_email(), "password": "Wrong-Horse-7-Battery"});
    for _ in 0..5 {
        app.anonymous().post("/auth/login", nobody.clone()).await.refused(401, "AUTH_FAILED");
    }
    app.anonymous().post("/auth/login", nobody).await.refused(423, "ACCOUNT_LOCKED");
}

/// Many at once get no further than one after the other.
#[tokio::test]
async fn simultaneous_guesses_do_not_slip_past_the_lock() {
    let app = TestApp::with(|config| config.auth.lockout_attempts = 5);
    let person = app.person().await;
    let anybody = app.anonymous();
    let guesses = (0..20).map(|n| {
        let guess = json!({"email": person.email, "password": format!("Wrong-Horse-{n}-Battery")});
        anybody.post("/auth/login", guess)
    });
    let answers = futures_util::future::join_all(guesses).await;
    let looked_at = answers.iter().filter(|answer| answer.status == 401).count();
    assert_eq!(looked_at, 5, "passwords that were compared");
    assert!(answers.iter().all(|answer| [401, 423].contains(&answer.status.as_u16())));
}

#[tokio::test]
async fn a_new_password_ends_a_lock() {
    let app = TestApp::with(|config| config.auth.lockout_attempts = 5);
    let person = app.person().await;
    let wrong = json!({"email": person.email, "password": "Wrong-Horse-7-Battery"});
    for _ in 0..5 {
        app.anonymous().post("/auth/login", wrong.clone()).await.refused(401, "AUTH_FAILED");
    }
    app.anonymous().post("/auth/password/reset", json!({"email": person.email})).await.expect(202);
    let token = app.mail(&person.email, "Set a new password").await.token();
    let reset = json!({"token": token, "password": "Purple-Kettle-42-Rain"});
    app.anonymous().post("/auth/password/reset/confirm", reset).await.expect(204);
    let login = json!({"email": person.email, "password": "Purple-Kettle-42-Rain"});
    app.anonymous().post("/auth/login", login).await.expect(200);
}

/// A hundred tries each, taken in turns, so that the machine's mood reaches both alike. What is
/// compared is the fastest tenth's slowest: other work on the machine only ever adds.
#[tokio::test]
async fn a_login_takes_as_long_for_an_account_as_for_none() {
    let app = TestApp::with(|_| {});
    let person = app.person().await;
    let mut times: [Vec<Duration>; 2] = Default::default();
    for round in 0..101 {
        // First the one, then the other.
        for which in [round % 2, (round + 1) % 2] {
            let email = if which == 0 { person.email.clone() } else { unique_email() };
            let body = json!({"email": email, "password": "Wrong-Horse-7-Battery"});
            let started = Instant::now();
            app.anonymous().post("/auth/login", body).await.refused(401, "AUTH_FAILED");
            // The first round makes the decoy.
            if round > 0 {
                times[which].push(started.elapsed());
            }
        }
    }
    let [known, unknown] = times.map(|mut all| {
        all.sort();
        all[all.len() / 10].as_secs_f64()
    });
    println!("login, tenth of 100: known {:.1} ms, unknown {:.1} ms", known * 1e3, unknown * 1e3);
    // Without the decoy it is a factor of ten.
    assert!((0.5..2.0).contains(&(known / unknown)), "known {known} s, unknown {unknown} s");
}

#[tokio::test]
async fn security_events_are_listed_and_filtered() {
    let app = TestApp::with(|config| config.auth.access_token_minutes = 120);
    let person = app.person().await;
    let wrong = json!({"email": person.email, "password": "Wrong-Horse-7-Battery"});
    app.anonymous().post("/auth/login", wrong).await.refused(401, "AUTH_FAILED");
    app.app.clock.advance(TimeDelta::hours(1));
    let second = log_in(&app, &person, "second").await;
    second.post("/auth/logout", json!(null)).await.expect(204);
    let all = person.client.get("/auth/security-events").await.expect(200);
    let kinds: Vec<&str> =
        all["data"].as_array().unwrap().iter().map(|e| e["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["logout", "login_success", "login_failed", "login_success", "registration"]);
    assert_eq!(all["data"][1]["user_agent"], "second");
    let failed = person.client.get("/auth/security-events?type=login_failed").await.expect(200);
    assert_eq!(failed["data"].as_array().unwrap().len(), 1);
    let from = all["data"][1]["occurred_at"].as_str().unwrap();
    let recent = person.client.get(&format!("/auth/security-events?from={from}")).await.expect(200);
    assert_eq!(recent["data"].as_array().unwrap().len(), 2);
    let page = person.client.get("/auth/security-events?limit=2").await.expect(200);
    let cursor = page["next_cursor"].as_str().unwrap();
    let rest =
        person.client.get(&format!("/auth/security-events?limit=100&cursor={cursor}")).await.expect(200);
    assert_eq!((rest["data"].as_array().unwrap().len(), &rest["next_cursor"]), (3, &json!(null)));
    for bad in ["type=nothing", "cursor=nonsense", "limit=0", "limit=101", "from=yesterday"] {
        person.client.get(&format!("/auth/security-events?{bad}")).await.refused(400, "VALIDATION_ERROR");
    }
    let stranger = app.person().await;
    let own = stranger.client.get("/auth/security-events").await.expect(200);
    assert_eq!(own["data"].as_array().unwrap().len(), 2, "nobody sees another's");
}

/// A login that was under way when the password was replaced must not end in a session.
#[tokio::test]
async fn a_login_does_not_outlive_the_password_that_it_was_made_with() {
    let app = TestApp::with(|config| config.auth.password_hashes = 1);
    for _ in 0..5 {
        let person = app.person().await;
        app.anonymous().post("/auth/password/reset", json!({"email": person.email})).await.expect(202);
        let token = app.mail(&person.email, "Set a new password").await.token();
        let anybody = app.anonymous();
        let body = json!({"token": token, "password": "Purple-Kettle-42-Rain"});
        let reset = anybody.post("/auth/password/reset/confirm", body);
        let old = json!({"email": person.email, "password": PASSWORD});
        let logins = (0..6).map(|_| anybody.post("/auth/login", old.clone()));
        let (reset, logins) = tokio::join!(reset, futures_util::future::join_all(logins));
        reset.expect(204);
        // Whichever came first: nobody who knew only the old password is in now.
        for login in logins {
            if login.status == 200 {
                let token = login.json()["access_token"].as_str().unwrap().to_owned();
                anybody.with_token(&token).get("/auth/user").await.refused(401, "AUTH_FAILED");
            }
        }
    }
}
