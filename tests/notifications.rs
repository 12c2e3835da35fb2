//! /notifications, and what is sent beside the list.

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use chrono::{Datelike, TimeDelta, Timelike, Weekday};
use reqwest::Method;
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use rowhouse::auth::Role;
use serde_json::{Value, json};
use uuid::Uuid;
use web_push_native::{
    Auth, decrypt,
    p256::{SecretKey, elliptic_curve::sec1::ToEncodedPoint},
};

use crate::support::{Answer, Client, Person, Team, TestApp, smtp, stand_in, within};

async fn put(client: &Client, path: &str, body: Value) -> Answer {
    Answer::of(client.request(Method::PUT, path).json(&body)).await
}

async fn list(client: &Client, query: &str) -> Vec<Value> {
    let page = client.get(&format!("/notifications{query}")).await.expect(200);
    page["data"].as_array().unwrap().clone()
}

/// The newest notification of this kind, waiting for it.
async fn notified(client: &Client, kind: &str) -> Value {
    let query = format!("?kind={kind}");
    within(5, kind, || async { !list(client, &query).await.is_empty() }).await;
    list(client, &query).await.remove(0)
}

async fn assign(team: &Team, title: &str, to: &[&str]) -> Value {
    let project = team.project("Home").await;
    let task = json!({"project_id": project["id"], "title": title, "assignee_ids": to});
    team.owner.post("/tasks", task).await.expect(201)
}

async fn complete(team: &Team, task: &Value) {
    let path = format!("/tasks/{}", task["id"].as_str().unwrap());
    team.owner.patch(&path, json!({"status": "done"})).await.expect(200);
}

fn mails(to: &Person, subject: &str) -> usize {
    smtp::sent_to(&to.email).iter().filter(|mail| mail.subject.contains(subject)).count()
}

/// A server of its own, whose clock can be moved without anybody's session ending.
fn with_a_clock() -> TestApp {
    TestApp::with(|config| config.auth.access_token_minutes = 100_000)
}

async fn live_in_utc(person: &Person) {
    person.client.patch("/auth/user", json!({"timezone": "UTC"})).await.expect(200);
}

#[tokio::test]
async fn whoever_is_assigned_is_told_and_whoever_assigns_is_not() {
    let app = TestApp::shared();
    let team = app.team().await;
    let member = team.join(Role::Member).await;
    let task = assign(&team, "Paint the fence", &[&member.id, &team.founder.id]).await;
    let told = notified(&member.client, "task_assigned").await;
    assert_eq!(told["title"], "New task: Paint the fence");
    assert_eq!(told["path"], format!("/tasks/{}", task["id"].as_str().unwrap()));
    assert!(told["body"].as_str().unwrap().contains("Test Team"));
    let mail = app.mail(&member.email, "New task: Paint the fence").await;
    assert!(mail.text.contains(told["path"].as_str().unwrap()), "{}", mail.text);
    team.settled().await;
    assert_eq!(list(&member.client, "").await.len(), 1);
    assert!(list(&team.owner, "").await.is_empty());
    assert_eq!(mails(&team.founder, "New task"), 0);
    // Who is assigned already is not told again.
    let path = format!("/tasks/{}", task["id"].as_str().unwrap());
    team.owner.patch(&path, json!({"title": "Paint it twice"})).await.expect(200);
    team.settled().await;
    assert_eq!(list(&member.client, "").await.len(), 1);
}

#[tokio::test]
async fn each_kind_reaches_those_whom_it_concerns() {
    let app = TestApp::shared();
    let team = app.team().await;
    let (admin, member) = (team.join(Role::Admin).await, team.join(Role::Member).await);
    let project = json!({"name": "Fence", "member_ids": [member.id]});
    let project = team.owner.post("/projects", project).await.expect(201);
    assert_eq!(notified(&member.client, "project_added").await["title"], "You are in the project Fence");
    let task = json!({"project_id": project["id"], "title": "Paint"});
    let task = member.client.post("/tasks", task).await.expect(201);
    complete(&team, &task).await;
    assert_eq!(notified(&member.client, "task_completed").await["title"], "Done: Paint");
    team.owner
        .patch(&team.path(&format!("/members/{}", member.id)), json!({"role": "manager"}))
        .await
        .expect(200);
    let told = notified(&member.client, "member_updated").await;
    assert!(told["body"].as_str().unwrap().ends_with("made you manager."), "{told}");
    let newcomer = app.person().await;
    app.verify(&newcomer).await;
    let invitation = json!({"email": newcomer.email, "role": "viewer"});
    team.owner.post(&team.path("/invitations"), invitation).await.expect(201);
    let token = app.mail(&newcomer.email, "invites you").await.token();
    newcomer.client.post("/invitations/accept", json!({"token": token})).await.expect(200);
    for client in [&team.owner, &admin.client] {
        let title = format!("{} joined Test Team", newcomer.email);
        assert_eq!(notified(client, "member_joined").await["title"], title);
    }
    team.settled().await;
    // Those who do not manage members are not told who joins.
    assert!(list(&member.client, "?kind=member_joined").await.is_empty());
    let newcomer = newcomer.client.within(&team.id);
    assert!(list(&newcomer, "").await.is_empty());
}

#[tokio::test]
async fn notifications_are_counted_read_and_deleted() {
    let app = TestApp::shared();
    let team = app.team().await;
    let member = team.join(Role::Member).await;
    let client = &member.client;
    for title in ["One", "Two", "Three"] {
        assign(&team, title, &[&member.id]).await;
    }
    team.settled().await;
    let unread = || async { client.get("/notifications/unread-count").await.expect(200)["unread"].clone() };
    assert_eq!(unread().await, 3);
    let all = list(client, "").await;
    let path = |one: &Value| format!("/notifications/{}", one["id"].as_str().unwrap());
    let read = client.post(&format!("{}/read", path(&all[0])), json!(null)).await.expect(200);
    assert!(read["read_at"].is_string());
    let again = client.post(&format!("{}/read", path(&all[0])), json!(null)).await.expect(200);
    assert_eq!(again["read_at"], read["read_at"]);
    assert_eq!(unread().await, 2);
    assert_eq!(list(client, "?unread=true").await.len(), 2);
    assert_eq!(list(client, "?unread=false").await.len(), 1);
    let page = client.get("/notifications?limit=2").await.expect(200);
    let next = page["next_cursor"].as_str().unwrap();
    assert_eq!(list(client, &format!("?limit=2&cursor={next}")).await.len(), 1);
    let stale = client.header("if-match", "\"v1\"").delete(&path(&all[0])).await;
    stale.refused(412, "PRECONDITION_FAILED");
    client.delete(&path(&all[0])).await.expect(204);
    client.delete(&path(&all[0])).await.refused(404, "NOT_FOUND");
    client.post("/notifications/read-all", json!(null)).await.expect(204);
    assert_eq!(unread().await, 0);
    assert_eq!(list(client, "").await.len(), 2);
    client.get("/notifications?kind=gossip").await.refused(400, "VALIDATION_ERROR");
}

#[tokio::test]
async fn nobody_sees_somebody_else_s_notifications() {
    let app = TestApp::shared();
    let (team, rival) = (app.team().await, app.team().await);
    let member = team.join(Role::Member).await;
    // The same person in two organizations has a list in each.
    rival.add(&member, Role::Admin).await;
    assign(&team, "Secret", &[&member.id]).await;
    let told = notified(&member.client, "task_assigned").await;
    let path = format!("/notifications/{}", told["id"].as_str().unwrap());
    for client in [&team.owner, &rival.owner, &member.client.within(&rival.id)] {
        client.delete(&path).await.refused(404, "NOT_FOUND");
        client.post(&format!("{path}/read"), json!(null)).await.refused(404, "NOT_FOUND");
        assert!(list(client, "").await.is_empty());
        client.post("/notifications/read-all", json!(null)).await.expect(204);
    }
    assert_eq!(list(&member.client, "?unread=true").await.len(), 1);
}

#[tokio::test]
async fn a_channel_can_be_switched_off_but_not_the_list() {
    let app = TestApp::shared();
    let team = app.team().await;
    let member = team.join(Role::Member).await;
    let settings = member.client.get("/notifications/settings").await.expect(200);
    assert_eq!((&settings["digest"], &settings["quiet_hours"]), (&json!("off"), &json!(null)));
    let enabled = |settings: &Value, kind: &str, channel: &str| {
        let all = settings["preferences"].as_array().unwrap();
        all.iter().find(|one| one["kind"] == kind && one["channel"] == channel).unwrap()["enabled"].clone()
    };
    assert_eq!(enabled(&settings, "task_assigned", "email"), true);
    assert_eq!(enabled(&settings, "task_assigned", "sms"), false);
    assert_eq!(enabled(&settings, "webhook_disabled", "email"), true);
    assert_eq!(enabled(&settings, "weekly_report", "in_app"), true);
    let prefer = |kind: &str, channel: &str, enabled: bool| json!({"preferences": [{"kind": kind, "channel": channel, "enabled": enabled}]});
    let path = "/notifications/preferences";
    put(&member.client, path, prefer("task_assigned", "in_app", false))
        .await
        .refused(400, "VALIDATION_ERROR");
    put(&member.client, path, prefer("gossip", "email", false)).await.refused(400, "VALIDATION_ERROR");
    put(&member.client, path, prefer("task_assigned", "smoke", false)).await.refused(400, "VALIDATION_ERROR");
    let answer = put(&member.client, path, prefer("task_assigned", "email", false)).await;
    let version = answer.header("etag").split('-').next().unwrap().to_owned() + "\"";
    assert_eq!(enabled(&answer.expect(200), "task_assigned", "email"), false);
    // What is not named stays.
    let matching = member.client.header("if-match", &version);
    let settings = put(&matching, path, prefer("task_completed", "email", true)).await.expect(200);
    assert_eq!(enabled(&settings, "task_assigned", "email"), false);
    put(&matching, path, prefer("task_completed", "email", false)).await.refused(412, "PRECONDITION_FAILED");
    let task = assign(&team, "Silence", &[&member.id]).await;
    complete(&team, &task).await;
    app.mail(&member.email, "Done: Silence").await;
    team.settled().await;
    assert_eq!(list(&member.client, "").await.len(), 2);
    assert_eq!(mails(&member, "New task"), 0);
}

#[tokio::test]
async fn quiet_hours_hold_back_until_they_end() {
    let app = with_a_clock();
    let team = app.team().await;
    let member = team.join(Role::Member).await;
    live_in_utc(&member).await;
    let now = app.app.clock.now();
    let time = |hours: i64| (now + TimeDelta::hours(hours)).format("%H:%M").to_string();
    for bad in [
        json!({"from": "22:00", "to": "22:00"}),
        json!({"from": "22:00"}),
        json!({"from": "25:00", "to": "07:00"}),
    ] {
        let body = json!({"quiet_hours": bad});
        member.client.patch("/notifications/settings", body).await.refused(400, "VALIDATION_ERROR");
    }
    let quiet = json!({"quiet_hours": {"from": time(-1), "to": time(2)}});
    let settings = member.client.patch("/notifications/settings", quiet.clone()).await.expect(200);
    assert_eq!(settings["quiet_hours"], quiet["quiet_hours"]);
    assign(&team, "Whisper", &[&member.id]).await;
    notified(&member.client, "task_assigned").await;
    team.settled().await;
    assert_eq!(mails(&member, "Whisper"), 0);
    app.app.clock.advance(TimeDelta::minutes(121));
    app.mail(&member.email, "Whisper").await;
    team.settled().await;
    assert_eq!(mails(&member, "Whisper"), 1);
    let none = member.client.patch("/notifications/settings", json!({"quiet_hours": null})).await.expect(200);
    assert_eq!(none["quiet_hours"], json!(null));
}

#[tokio::test]
async fn a_digest_is_one_mail_for_all_that_was_not_read() {
    let app = with_a_clock();
    let team = app.team().await;
    let member = team.join(Role::Member).await;
    live_in_utc(&member).await;
    member.client.patch("/notifications/settings", json!({"digest": "daily"})).await.expect(200);
    for title in ["Wash", "Dry", "Fold"] {
        assign(&team, title, &[&member.id]).await;
    }
    team.settled().await;
    let all = list(&member.client, "").await;
    let dry = all.iter().find(|one| one["title"] == "New task: Dry").unwrap();
    let path = format!("/notifications/{}/read", dry["id"].as_str().unwrap());
    member.client.post(&path, json!(null)).await.expect(200);
    assert_eq!(mails(&member, "New task"), 0);
    let since_midnight = i64::from(app.app.clock.now().num_seconds_from_midnight());
    let to_eight = (8 * 3600 - since_midnight).rem_euclid(24 * 3600) + 30;
    app.app.clock.advance(TimeDelta::seconds(to_eight));
    let mail = app.mail(&member.email, "since the last time").await;
    assert!(mail.text.contains("New task: Wash") && mail.text.contains("New task: Fold"), "{}", mail.text);
    assert!(!mail.text.contains("New task: Dry"), "{}", mail.text);
    // The next morning there is nothing left to tell.
    app.app.clock.advance(TimeDelta::hours(24));
    let hour_ago = (app.app.clock.now() - TimeDelta::hours(1)).to_rfc3339();
    let again = format!(
        "select count(*) from platform.schedules where name = 'notification-digest' \
         and last_run_at > '{hour_ago}' and last_finished_at >= last_run_at"
    );
    within(10, "the schedule ran again", || async { app.number(&again).await == 1 }).await;
    team.settled().await;
    assert_eq!(mails(&member, "since the last time"), 1);
}

/// A number that nobody else uses.
fn number() -> String {
    format!("+65{:010}", Uuid::now_v7().as_u128() % 10_000_000_000)
}

/// The code that was sent to a number.
async fn code(number: &str) -> String {
    let digits = number.trim_start_matches('+');
    let of_codes = || {
        let all = stand_in::received(digits);
        all.into_iter().rfind(|sms| sms.field("Body").contains("code"))
    };
    within(5, "an SMS with a code", || async { of_codes().is_some() }).await;
    of_codes().unwrap().field("Body").split(' ').next().unwrap().to_owned()
}

#[tokio::test]
async fn a_number_is_confirmed_and_then_gets_sms() {
    let app = with_a_clock();
    let team = app.team().await;
    let member = team.join(Role::Member).await;
    let number = number();
    for bad in ["81234567", "+0123456789", "+65 8123 4567", "+1"] {
        let body = json!({"number": bad});
        member.client.post("/notifications/sms-number", body).await.refused(400, "VALIDATION_ERROR");
    }
    member.client.post("/notifications/sms-number", json!({"number": number})).await.expect(202);
    let code = code(&number).await;
    let settings = member.client.get("/notifications/settings").await.expect(200);
    assert_eq!(settings["sms_number_to_confirm"], number.as_str());
    assert_eq!(settings["sms_number"], json!(null));
    let wrong = if code == "000000" { "111111" } else { "000000" };
    let confirm = "/notifications/sms-number/confirm";
    member.client.post(confirm, json!({"code": wrong})).await.refused(400, "VALIDATION_ERROR");
    // Somebody else's code is nobody's.
    team.owner.post(confirm, json!({"code": code})).await.refused(400, "VALIDATION_ERROR");
    member.client.post(confirm, json!({"code": code})).await.expect(204);
    member.client.post(confirm, json!({"code": code})).await.refused(400, "VALIDATION_ERROR");
    let settings = member.client.get("/notifications/settings").await.expect(200);
    assert_eq!(settings["sms_number"], number.as_str());
    let wish = json!({"preferences": [{"kind": "task_assigned", "channel": "sms", "enabled": true}]});
    put(&member.client, "/notifications/preferences", wish).await.expect(200);
    // Twilio is away once; then it is tried again.
    stand_in::answer_next("Ring", 500);
    assign(&team, "Ring", &[&member.id]).await;
    let sent = || {
        let all = stand_in::received("Ring");
        all.into_iter().filter(|sms| sms.field("To") == number).collect::<Vec<_>>()
    };
    within(5, "the first attempt", || async { sent().len() == 1 }).await;
    within(10, "the second attempt", || async {
        app.app.clock.advance(TimeDelta::seconds(20));
        sent().len() == 2
    })
    .await;
    let sms = sent().remove(1);
    let config = &app.app.config.notifications;
    let account = config.twilio_account_sid.as_deref().unwrap();
    assert_eq!(sms.path, format!("/2010-04-01/Accounts/{account}/Messages.json"));
    let credentials = sms.header("authorization").strip_prefix("Basic ").unwrap().to_owned();
    let credentials = String::from_utf8(STANDARD.decode(credentials).unwrap()).unwrap();
    assert!(credentials.starts_with(&format!("{account}:")) && credentials.len() > account.len() + 1);
    assert_eq!(sms.field("From"), config.twilio_from.as_deref().unwrap());
    assert!(sms.field("Body").starts_with("New task: Ring: ") && sms.field("Body").contains("/tasks/"));
    // What is refused for good is not sent again.
    stand_in::answer_next("Refused", 400);
    assign(&team, "Refused", &[&member.id]).await;
    within(5, "the refusal", || async { stand_in::received("Refused").len() == 1 }).await;
    team.settled().await;
    app.app.clock.advance(TimeDelta::minutes(10));
    team.settled().await;
    assert_eq!(stand_in::received("Refused").len(), 1);
    member.client.delete("/notifications/sms-number").await.expect(204);
    let settings = member.client.get("/notifications/settings").await.expect(200);
    assert_eq!(settings["sms_number"], json!(null));
}

#[tokio::test]
async fn a_code_is_good_for_a_while_and_a_few_attempts() {
    let app = TestApp::with(|config| {
        config.auth.access_token_minutes = 100_000;
        config.limits.sms_codes = "3/h".parse().unwrap();
    });
    let team = app.team().await;
    let path = "/notifications/sms-number/confirm";
    let first = number();
    let body = json!({"number": first});
    team.owner.post("/notifications/sms-number", body.clone()).await.expect(202);
    let good = code(&first).await;
    for _ in 0..5 {
        team.owner.post(path, json!({"code": "nonsense"})).await.refused(400, "VALIDATION_ERROR");
    }
    team.owner.post(path, json!({"code": good})).await.refused(400, "VALIDATION_ERROR");
    let second = number();
    team.owner.post("/notifications/sms-number", json!({"number": second})).await.expect(202);
    let good = code(&second).await;
    app.app.clock.advance(TimeDelta::minutes(11));
    team.owner.post(path, json!({"code": good})).await.refused(400, "VALIDATION_ERROR");
    // One telephone is not pestered, whoever asks; and nobody asks without end.
    let member = team.join(Role::Member).await;
    let third = json!({"number": number()});
    for _ in 0..3 {
        member.client.post("/notifications/sms-number", third.clone()).await.expect(202);
    }
    member.client.post("/notifications/sms-number", body).await.refused(429, "RATE_LIMIT");
    let other = team.join(Role::Member).await;
    other.client.post("/notifications/sms-number", third).await.refused(429, "RATE_LIMIT");
}

/// A browser: its keys, and what it subscribes with at an endpoint of the stand-in.
struct Browser {
    key: SecretKey,
    auth: [u8; 16],
    mark: String,
    origin: String,
}

impl Browser {
    fn new() -> Self {
        let origin = format!("http://{}", crate::support::stand_in_address());
        let key = SecretKey::from_slice(&[7; 32]).unwrap();
        Self { key, auth: [9; 16], mark: Uuid::now_v7().simple().to_string(), origin }
    }

    fn subscription(&self) -> Value {
        let point = self.key.public_key().to_encoded_point(false);
        json!({
            "endpoint": format!("{}/push/{}", self.origin, self.mark),
            "expirationTime": null,
            "keys": {
                "p256dh": URL_SAFE_NO_PAD.encode(point.as_bytes()),
                "auth": URL_SAFE_NO_PAD.encode(self.auth),
            },
        })
    }
}

#[tokio::test]
async fn a_browser_that_subscribed_gets_what_only_it_can_read() {
    let app = TestApp::shared();
    let team = app.team().await;
    let member = team.join(Role::Member).await;
    let browser = Browser::new();
    let subscriptions = "/notifications/push-subscriptions";
    let made = member.client.post(subscriptions, browser.subscription()).await.expect(201);
    let again = member.client.post(subscriptions, browser.subscription()).await.expect(201);
    assert_eq!(made["id"], again["id"]);
    assign(&team, "Knock", &[&member.id]).await;
    within(5, "a push", || async { !stand_in::received(&browser.mark).is_empty() }).await;
    let push = stand_in::received(&browser.mark).remove(0);
    assert_eq!(push.header("content-encoding"), "aes128gcm");
    assert_eq!(push.header("urgency"), "normal");
    assert!(push.header("ttl").parse::<u32>().unwrap() > 0);
    let plain = decrypt(push.body.clone(), &browser.key, &Auth::from(browser.auth)).unwrap();
    let told: Value = serde_json::from_slice(&plain).unwrap();
    assert_eq!((&told["title"], &told["kind"]), (&json!("New task: Knock"), &json!("task_assigned")));
    assert!(told["url"].as_str().unwrap().contains("/tasks/"));
    // Signed as RFC 8292 says, with the key that browsers are told.
    let signed = push.header("authorization").strip_prefix("vapid t=").unwrap();
    let (token, key) = signed.split_once(", k=").unwrap();
    let told = member.client.get("/notifications/push-key").await.expect(200);
    assert_eq!(told["public_key"], key);
    let (signed, signature) = token.rsplit_once('.').unwrap();
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, URL_SAFE_NO_PAD.decode(key).unwrap())
        .verify(signed.as_bytes(), &URL_SAFE_NO_PAD.decode(signature).unwrap())
        .unwrap();
    let claims = URL_SAFE_NO_PAD.decode(signed.split('.').nth(1).unwrap()).unwrap();
    let claims: Value = serde_json::from_slice(&claims).unwrap();
    assert_eq!(claims["aud"], browser.origin.as_str());
    assert!(claims["exp"].as_i64().unwrap() > app.app.clock.now().timestamp());
    // One that is gone is forgotten.
    stand_in::answer_next(&browser.mark, 410);
    assign(&team, "Knock again", &[&member.id]).await;
    within(5, "the subscription is gone", || async {
        member.client.get(subscriptions).await.expect(200)["data"].as_array().unwrap().is_empty()
    })
    .await;
}

#[tokio::test]
async fn subscriptions_that_make_no_sense_are_refused() {
    let app = TestApp::shared();
    let team = app.team().await;
    let path = "/notifications/push-subscriptions";
    let good = Browser::new().subscription();
    let with = |pointer: &str, value: Value| {
        let mut body = good.clone();
        *body.pointer_mut(pointer).unwrap() = value;
        body
    };
    for (body, field) in [
        (with("/endpoint", json!("ftp://push.example.com/x")), "endpoint"),
        (with("/endpoint", json!("https://169.254.169.254/x")), "endpoint"),
        (with("/endpoint", json!("https://10.0.0.1/x")), "endpoint"),
        (with("/keys/p256dh", json!("AAAA")), "keys.p256dh"),
        (with("/keys/p256dh", json!(URL_SAFE_NO_PAD.encode([4u8; 65]))), "keys.p256dh"),
        (with("/keys/auth", json!("AAAA")), "keys.auth"),
    ] {
        let error = team.owner.post(path, body.clone()).await.refused(400, "VALIDATION_ERROR");
        assert_eq!(error["fields"][0]["field"], field, "{body}");
    }
    for _ in 0..10 {
        team.owner.post(path, Browser::new().subscription()).await.expect(201);
    }
    team.owner.post(path, Browser::new().subscription()).await.refused(409, "CONFLICT");
    let all = team.owner.get(path).await.expect(200)["data"].as_array().unwrap().clone();
    let first = format!("{path}/{}", all[0]["id"].as_str().unwrap());
    let other = team.join(Role::Admin).await;
    other.client.delete(&first).await.refused(404, "NOT_FOUND");
    team.owner.delete(&first).await.expect(204);
    team.owner.post(path, Browser::new().subscription()).await.expect(201);
}

#[tokio::test]
async fn somebody_who_was_removed_is_told_nothing() {
    let app = TestApp::shared();
    let team = app.team().await;
    let (leaver, other) = (team.join(Role::Member).await, team.join(Role::Member).await);
    let task = assign(&team, "Later", &[&leaver.id, &other.id]).await;
    notified(&leaver.client, "task_assigned").await;
    team.owner.delete(&team.path(&format!("/members/{}", leaver.id))).await.expect(204);
    complete(&team, &task).await;
    notified(&other.client, "task_completed").await;
    team.settled().await;
    team.add(&leaver, Role::Member).await;
    assert!(list(&leaver.client, "?kind=task_completed").await.is_empty());
    // Who may not see tasks is not told of them either.
    let path = team.path(&format!("/members/{}", leaver.id));
    team.owner.patch(&path, json!({"denials": ["tasks:read"]})).await.expect(200);
    assign(&team, "Hidden", &[&leaver.id, &other.id]).await;
    team.settled().await;
    let titles: Vec<Value> =
        list(&leaver.client, "").await.into_iter().map(|one| one["title"].clone()).collect();
    assert!(!titles.contains(&json!("New task: Hidden")), "{titles:?}");
}

#[tokio::test]
async fn a_title_is_never_a_template_nor_markup() {
    let app = TestApp::shared();
    let team = app.team().await;
    let member = team.join(Role::Member).await;
    let hostile = "{{ actor.missing.field }} {% endfor %} <b>bold</b>";
    assign(&team, hostile, &[&member.id]).await;
    assign(&team, "Harmless", &[&member.id]).await;
    team.settled().await;
    let mut titles: Vec<String> =
        list(&member.client, "").await.iter().map(|one| one["title"].as_str().unwrap().to_owned()).collect();
    titles.sort();
    assert_eq!(titles, ["New task: Harmless".to_owned(), format!("New task: {hostile}")]);
    let mail = app.mail(&member.email, "actor.missing").await;
    assert!(mail.subject.contains("{% endfor %}"), "{}", mail.subject);
    assert!(!mail.html.contains("<b>"), "{}", mail.html);
    app.mail(&member.email, "Harmless").await;
}

#[tokio::test]
async fn the_week_is_reported_once_to_those_who_answer_for_it() {
    let app = with_a_clock();
    let (team, idle) = (app.team().await, app.team().await);
    let member = team.join(Role::Member).await;
    let task = assign(&team, "Weekly", &[]).await;
    complete(&team, &task).await;
    team.settled().await;
    let now = app.app.clock.now();
    // To the first Monday, eight o'clock, that is still to come.
    let monday = now
        .date_naive()
        .iter_days()
        .filter(|day| day.weekday() == Weekday::Mon)
        .map(|day| day.and_hms_opt(8, 0, 0).unwrap().and_utc())
        .find(|monday| *monday > now)
        .unwrap();
    app.app.clock.advance(monday - now + TimeDelta::seconds(1));
    let told = notified(&team.owner, "weekly_report").await;
    let body = told["body"].as_str().unwrap();
    assert!(body.contains("1 task completed, 1 task created, 1 project created"), "{body}");
    team.settled().await;
    assert!(list(&member.client, "?kind=weekly_report").await.is_empty());
    assert!(list(&idle.owner, "").await.is_empty());
    // A second run in the same week tells nothing new.
    let again = "update platform.schedules set next_run_at = now() where name = 'weekly-reports'";
    app.sql(again).await;
    let due = "select count(*) from platform.schedules where name = 'weekly-reports' \
               and next_run_at > now() + interval '1 hour'";
    within(5, "the second run", || async { app.number(due).await == 1 }).await;
    let scheduled = "select count(*) from platform.jobs where kind = 'scheduled'";
    within(5, "the schedule is done", || async { app.number(scheduled).await == 0 }).await;
    team.settled().await;
    assert_eq!(list(&team.owner, "?kind=weekly_report").await.len(), 1);
}
