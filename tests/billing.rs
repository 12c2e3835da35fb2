//! Paying: what Stripe tells, in whatever order and however often, and what an organization has of it.

use std::{process::Command, sync::LazyLock, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::join_all;
use reqwest::Method;
use rowhouse::{auth::Role, billing, config::Config};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{
    Answer, Client, Team, TestApp, on_the_servers_runtime,
    stripe::{Fault, SECRET_KEY, Seen, Stripe, WEBHOOK_SECRET, deliver, sign},
    within,
};

/// The server and the account at Stripe that most of these tests share; organizations keep them apart.
/// Whoever makes a request fail here names an id in its path.
static SHARED: LazyLock<(TestApp, Stripe)> = LazyLock::new(|| pair(|_| {}));

/// A server and an account at Stripe that a test has to itself.
fn pair(change: impl FnOnce(&mut Config) + Send) -> (TestApp, Stripe) {
    let stripe = Stripe::start();
    let app = TestApp::with(|config| {
        stripe.configure(config);
        change(config);
    });
    // Whoever compares with Stripe here says so.
    on_the_servers_runtime(app.sql(
        "insert into platform.schedules (name, cron, next_run_at) \
         values ('stripe-reconciliation', '15 * * * *', '2999-01-01') \
         on conflict (name) do update set next_run_at = excluded.next_run_at",
    ));
    (app, stripe)
}

/// The same for tests that move the clock by days: nobody has to log in again.
fn pair_with_a_clock() -> (TestApp, Stripe) {
    let (app, stripe) = pair(|config| {
        config.auth.access_token_minutes = 60 * 24 * 60;
        config.auth.refresh_token_days = 60;
    });
    stripe.follow(&app.app.clock);
    (app, stripe)
}

/// An organization, and the account at Stripe where it may pay.
struct Payer {
    app: TestApp,
    stripe: Stripe,
    team: Team,
}

impl Payer {
    /// On the plan free, at the server that most tests share.
    async fn new() -> Self {
        let (app, stripe) = &*SHARED;
        // A client belongs to the runtime of the test that uses it.
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(300)).build().unwrap();
        Self::of(&TestApp { http, ..app.clone() }, stripe).await
    }

    /// On the plan free.
    async fn of(app: &TestApp, stripe: &Stripe) -> Self {
        let team = app.team().await;
        team.plan("free").await;
        Self { app: app.clone(), stripe: stripe.clone(), team }
    }

    /// As if the trial had been long ago, so that a checkout begins with a payment.
    async fn after_a_trial(self) -> Self {
        self.app
            .sql(&format!(
                "insert into platform.subscriptions \
                 (organization_id, trial_started_at, trial_ends_at, updated_at) \
                 values ('{}', now() - interval '60 days', now() - interval '46 days', now()) \
                 on conflict (organization_id) do update set trial_started_at = excluded.trial_started_at, \
                 trial_ends_at = excluded.trial_ends_at",
                self.team.id
            ))
            .await;
        self
    }

    /// With an active subscription, whose id is answered.
    async fn paying(self, plan: &str) -> (Self, String) {
        let payer = self.after_a_trial().await;
        payer.checkout(plan).await.expect(200);
        let subscription = payer.pay();
        payer.hear().await;
        let current = payer.current().await;
        assert_eq!((&current["state"], &current["plan"]), (&json!("active"), &json!(plan)), "{current}");
        (payer, subscription)
    }

    async fn post(&self, what: &str, body: Value) -> Answer {
        self.team.owner.post(&format!("/subscriptions/{what}"), body).await
    }

    async fn checkout(&self, plan: &str) -> Answer {
        self.post("checkout", json!({"plan": plan})).await
    }

    /// Somebody pays on the page that was opened last; answers the subscription's id.
    fn pay(&self) -> String {
        self.stripe.complete_checkout(&text(&self.session(), "id"))
    }

    /// The pages that were opened, oldest first.
    fn sessions(&self) -> Vec<Value> {
        let ours = |session: &Value| session["client_reference_id"] == self.team.id.as_str();
        self.stripe.sessions().into_iter().filter(ours).collect()
    }

    fn session(&self) -> Value {
        self.sessions().pop().expect("a page was opened")
    }

    /// Those that stand for the organization at Stripe.
    fn customers(&self) -> Vec<Value> {
        let ours = |customer: &Value| customer["metadata"]["organization_id"] == self.team.id.as_str();
        self.stripe.customers().into_iter().filter(ours).collect()
    }

    /// The one for which a page was opened last.
    fn customer(&self) -> String {
        text(&self.session(), "customer")
    }

    /// What Stripe has to tell of the organization, oldest first. Of disputes all: they name no customer.
    fn events(&self) -> Vec<Value> {
        let customer = self.customer();
        let ours = |event: &Value| {
            let object = &event["data"]["object"];
            object["customer"] == customer.as_str()
                || object["id"] == customer.as_str()
                || object["object"] == "dispute"
        };
        self.stripe.events().into_iter().filter(ours).collect()
    }

    /// Those of a type.
    fn events_of(&self, kind: &str) -> Vec<Value> {
        self.events().into_iter().filter(|event| event["type"] == kind).collect()
    }

    /// How often a subscription was told to cost this.
    fn changes_to(&self, price: &str) -> usize {
        let price_of = |event: &Value| event["data"]["object"]["items"]["data"][0]["price"]["id"].clone();
        let prices: Vec<Value> =
            self.events_of("customer.subscription.updated").iter().map(price_of).collect();
        prices.iter().filter(|known| **known == price).count()
    }

    /// Stripe tells everything that it has to tell, also what it told before.
    async fn hear(&self) {
        self.hear_of(&self.events()).await;
    }

    async fn hear_of(&self, events: &[Value]) {
        for event in events {
            deliver(&self.app, event).await.expect(200);
        }
        handled(&self.app, events).await;
    }

    async fn current(&self) -> Value {
        self.team.owner.get("/subscriptions/current").await.expect(200)
    }

    /// The plan in force, as everybody sees it.
    async fn plan(&self) -> String {
        text(&self.team.owner.get(&self.team.path("")).await.expect(200), "plan")
    }

    /// The organization's events of a type, newest first.
    async fn told(&self, kind: &str) -> Vec<Value> {
        let page = self.team.owner.get(&format!("/events?type={kind}&limit=100")).await.expect(200);
        list(&page)
    }

    async fn notified(&self, kind: &str) -> usize {
        let path = format!("/notifications?kind={kind}");
        list(&self.team.owner.get(&path).await.expect(200)).len()
    }

    /// What the product asked Stripe about this path, in its order.
    fn asked(&self, method: &str, path: &str) -> Vec<Seen> {
        let seen = self.stripe.requests().into_iter();
        seen.filter(|seen| seen.method == method && seen.path.starts_with(path)).collect()
    }

    /// The fields with which the last page was opened.
    fn asked_for_a_page(&self) -> Seen {
        let ours = |seen: &Seen| field(seen, "client_reference_id") == Some(self.team.id.as_str());
        self.asked("POST", "/v1/checkout/sessions").into_iter().rfind(ours).expect("a page was asked for")
    }

    /// A program of the organization.
    async fn program(&self, scopes: &[&str]) -> (Client, String) {
        let key = self.team.owner.post("/api-keys", json!({"name": "P", "scopes": scopes})).await.expect(201);
        (self.app.anonymous().header("x-api-key", &text(&key, "key")), text(&key, "id"))
    }

    async fn create_project(&self) -> Answer {
        self.team.owner.post("/projects", json!({"name": "Project"})).await
    }
}

#[track_caller]
fn text(object: &Value, field: &str) -> String {
    object[field].as_str().unwrap_or_else(|| panic!("{field} of {object}")).to_owned()
}

fn list(page: &Value) -> Vec<Value> {
    page["data"].as_array().unwrap().clone()
}

fn time(value: &Value) -> DateTime<Utc> {
    value.as_str().unwrap_or_else(|| panic!("no time: {value}")).parse().unwrap()
}

fn field<'a>(seen: &'a Seen, name: &str) -> Option<&'a str> {
    seen.form.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

fn money(amount: &str, currency: &str) -> Value {
    json!({"amount": amount, "currency": currency})
}

/// The event told once more, under another id.
fn again(event: &Value) -> Value {
    let mut event = event.clone();
    event["id"] = json!(format!("evt_{}", Uuid::now_v7().simple()));
    event
}

/// Every job that these events gave is done.
async fn handled(app: &TestApp, events: &[Value]) {
    let ids: Vec<String> = events.iter().map(|event| format!("'{}'", text(event, "id"))).collect();
    let sql = format!(
        "select count(*) from platform.stripe_events where state = 'received' \
         and id = any (array[{}]::text[])",
        ids.join(", ")
    );
    within(30, "the events are handled", || async { app.number(&sql).await == 0 }).await;
}

/// Puts the price of another plan into a subscription, as its owner could at Stripe.
fn reprice(subscription: &mut Value, price: &str, amount: i64) {
    let known = &mut subscription["items"]["data"][0]["price"];
    known["id"] = json!(price);
    known["unit_amount"] = json!(amount);
    known["unit_amount_decimal"] = json!(amount.to_string());
}

/// Time in which something would have come that must not.
async fn a_while() {
    tokio::time::sleep(Duration::from_millis(1500)).await;
}

fn look_at_trials(app: &TestApp) {
    let app = app.app.clone();
    on_the_servers_runtime(async move { billing::look_at_trials(&app).await.unwrap() });
}

// Checkout.

#[tokio::test]
async fn whoever_pays_at_stripe_has_the_plan_as_soon_as_stripe_tells() {
    let payer = Payer::new().await;
    let page = payer.checkout("starter").await.expect(200);
    let session = payer.session();
    assert_eq!(page["url"], session["url"]);
    assert_eq!(time(&page["expires_at"]).timestamp(), session["expires_at"].as_i64().unwrap());
    let asked = payer.asked_for_a_page();
    for (name, value) in [
        ("mode", "subscription"),
        ("line_items[0][price]", "price_starter"),
        ("line_items[0][quantity]", "1"),
        ("subscription_data[metadata][organization_id]", payer.team.id.as_str()),
        ("subscription_data[trial_period_days]", "14"),
    ] {
        assert_eq!(field(&asked, name), Some(value), "{name}: {asked:?}");
    }
    assert_eq!(payer.customers().len(), 1);
    assert_eq!(payer.customers()[0]["email"], payer.team.founder.email.as_str());
    assert_eq!((payer.current().await["state"].clone(), payer.plan().await), (json!("free"), "free".into()));
    let subscription = payer.pay();
    payer.hear().await;
    assert_eq!(payer.plan().await, "starter");
    let current = payer.current().await;
    assert_eq!((&current["state"], &current["plan"]), (&json!("trialing"), &json!("starter")));
    assert_eq!((&current["access"], &current["price"]), (&json!("full"), &money("49.00", "SGD")));
    assert_eq!((&current["can_start_trial"], &current["read_only_from"]), (&json!(false), &Value::Null));
    let there = payer.stripe.subscription(&subscription);
    assert_eq!(Some(time(&current["trial_ends_at"]).timestamp()), there["trial_end"].as_i64());
    let limits = list(&json!({"data": current["limits"]}));
    let limited: Vec<&str> = limits.iter().map(|known| known["resource"].as_str().unwrap()).collect();
    assert_eq!(limited, ["users", "projects", "api_calls", "storage", "workflows"]);
    // The plan free allows one.
    payer.create_project().await.expect(201);
    payer.create_project().await.expect(201);
    payer.stripe.set_status(&subscription, "active");
    payer.hear().await;
    assert_eq!(payer.current().await["state"], "active");
    let told = payer.told("subscription.updated").await;
    assert_eq!((&told[0]["data"]["state"], &told[0]["actor_kind"]), (&json!("active"), &json!("system")));
    assert_eq!(told[0]["changes"]["state"], json!({"before": "trialing", "after": "active"}));
    assert_eq!(told[1]["data"]["state"], "trialing");
    let told = payer.told("organization.plan_changed").await;
    assert_eq!(told.len(), 1);
    assert_eq!(told[0]["data"]["plan"], "starter");
    let log = list(&payer.team.owner.get("/audit-log?action=subscription.updated").await.expect(200));
    assert_eq!(log.len(), 2);
    assert_eq!(log[0]["changes"]["state"]["after"], "active");
}

#[tokio::test]
async fn an_open_page_is_answered_again_and_closed_for_another_plan() {
    let payer = Payer::new().await;
    let first = payer.checkout("starter").await.expect(200);
    let again = payer.checkout("starter").await.expect(200);
    assert_eq!(first, again);
    assert_eq!(payer.sessions().len(), 1);
    let other = payer.checkout("professional").await.expect(200);
    assert_ne!(first["url"], other["url"]);
    let statuses: Vec<String> = payer.sessions().iter().map(|session| text(session, "status")).collect();
    assert_eq!(statuses, ["expired", "open"]);
    assert_eq!(payer.customers().len(), 1);
    // Nobody has paid: nothing has changed.
    assert_eq!((payer.current().await["state"].clone(), payer.plan().await), (json!("free"), "free".into()));
    assert!(payer.told("subscription.updated").await.is_empty());
    assert!(payer.told("organization.plan_changed").await.is_empty());
    // Somebody pays. Before Stripe tells, whoever wants to pay again is told that it is done.
    payer.pay();
    payer.checkout("professional").await.refused(409, "CONFLICT");
    assert_eq!(payer.plan().await, "professional");
    payer.hear().await;
    payer.checkout("starter").await.refused(409, "CONFLICT");
    assert_eq!(payer.sessions().len(), 2);
    assert_eq!(payer.stripe.subscriptions_of(&payer.customer()).len(), 1);
}

#[tokio::test]
async fn nobody_pays_twice_who_pays_in_the_moment_of_another_checkout() {
    let (app, stripe) = pair(|_| {});
    let slow = Fault::DelayAfter(Duration::from_millis(1200));
    for (path, plan) in [
        // Paid after we looked for subscriptions, and before we looked at the page.
        ("/v1/subscriptions?", "starter"),
        // Paid after we looked at the page, and before we closed it.
        ("/v1/checkout/sessions/", "professional"),
    ] {
        let payer = Payer::of(&app, &stripe).await.after_a_trial().await;
        payer.checkout("starter").await.expect(200);
        let asked = payer.asked("GET", path).len();
        stripe.fail("GET", path, slow);
        let paying = async {
            within(10, "the look", || async { payer.asked("GET", path).len() > asked }).await;
            payer.pay()
        };
        let (answer, _) = futures_util::join!(payer.checkout(plan), paying);
        assert_eq!(answer.status, 409, "{path}: {}", answer.text);
        answer.refused(409, "CONFLICT");
        assert_eq!(payer.sessions().len(), 1, "{path}: there is no second page to pay on");
    }
}

#[tokio::test]
async fn who_may_pay_and_for_what() {
    let payer = Payer::new().await;
    let team = &payer.team;
    let (admin, viewer) = (team.join(Role::Admin).await, team.join(Role::Viewer).await);
    let wanted = json!({"plan": "starter"});
    for client in [&admin.client, &viewer.client] {
        for (what, body) in [
            ("checkout", wanted.clone()),
            ("trial", wanted.clone()),
            ("upgrade", wanted.clone()),
            ("downgrade", wanted.clone()),
            ("cancel", json!({})),
            ("reactivate", json!(null)),
            ("portal", json!(null)),
        ] {
            let path = format!("/subscriptions/{what}");
            client.post(&path, body).await.refused(403, "PERMISSION_DENIED");
        }
    }
    for path in ["current", "invoices", "adjustments"] {
        admin.client.get(&format!("/subscriptions/{path}")).await.expect(200);
        viewer.client.get(&format!("/subscriptions/{path}")).await.refused(403, "PERMISSION_DENIED");
    }
    assert!(payer.customers().is_empty(), "Stripe was not asked for anything");
    payer.checkout("free").await.refused(400, "VALIDATION_ERROR");
    payer.checkout("gold").await.refused(400, "VALIDATION_ERROR");
    payer.post("checkout", json!({"plan": "starter", "price": 1})).await.refused(400, "VALIDATION_ERROR");
    payer.post("checkout", json!({})).await.refused(400, "VALIDATION_ERROR");
    payer.checkout("enterprise").await.refused(409, "CONFLICT");
    payer.post("portal", json!(null)).await.refused(409, "CONFLICT");
    let (reader, _) = payer.program(&["projects:read"]).await;
    reader.post("/subscriptions/checkout", wanted.clone()).await.refused(403, "PERMISSION_DENIED");
    let (program, _) = payer.program(&["billing:manage"]).await;
    program.get("/subscriptions/current").await.expect(200);
    let page = program.post("/subscriptions/checkout", wanted).await.expect(200);
    assert_eq!(page["url"], payer.session()["url"]);
    let portal = payer.post("portal", json!(null)).await.expect(200);
    assert!(text(&portal, "url").starts_with("https://billing.stripe.com/"));
}

// What Stripe signs.

async fn send(app: &TestApp, body: &[u8], signature: Option<&str>) -> Answer {
    let mut request = app
        .http
        .post(format!("{}/webhooks/stripe", app.base))
        .header("content-type", "application/json; charset=utf-8")
        .body(body.to_vec());
    if let Some(signature) = signature {
        request = request.header("stripe-signature", signature);
    }
    Answer::of(request).await
}

async fn rows(app: &TestApp, event: &Value) -> i64 {
    let sql = format!("select count(*) from platform.stripe_events where id = '{}'", text(event, "id"));
    app.number(&sql).await
}

#[tokio::test]
async fn what_stripe_did_not_sign_is_refused_and_not_kept() {
    let payer = Payer::new().await;
    let app = &payer.app;
    let event = payer.stripe.event("product.created", json!({"id": "prod_1", "object": "product"}));
    let body = event.to_string().into_bytes();
    let now = app.app.clock.now().timestamp();
    let right = sign(&body, WEBHOOK_SECRET, now);
    let (time, code) = right.split_once(',').unwrap();
    let mut other = code.to_owned();
    let last = other.pop().unwrap();
    other.push(if last == '0' { '1' } else { '0' });
    for (what, header) in [
        ("none", None),
        ("empty", Some(String::new())),
        ("garbage", Some("nonsense".into())),
        ("commas", Some(",,,=,=".into())),
        ("no code", Some(time.into())),
        ("no time", Some(code.into())),
        ("not a time", Some(format!("t=now,{code}"))),
        ("a time out of reach", Some(format!("t={},{code}", i64::MAX))),
        ("an empty code", Some(format!("{time},v1="))),
        ("half a code", Some(right[..right.len() - 2].into())),
        ("another code", Some(format!("{time},{other}"))),
        ("another scheme", Some(right.replace("v1=", "v0="))),
        ("another time", Some(format!("t={},{code}", now + 1))),
        ("another secret", Some(sign(&body, "whsec_other", now))),
        ("an empty secret", Some(sign(&body, "", now))),
        ("stale", Some(sign(&body, WEBHOOK_SECRET, now - 360))),
        ("from the future", Some(sign(&body, WEBHOOK_SECRET, now + 360))),
        ("of another body", Some(sign(b"{}", WEBHOOK_SECRET, now))),
    ] {
        let answer = send(app, &body, header.as_deref()).await;
        assert_eq!(answer.status, 400, "{what}: {}", answer.text);
        let error = answer.refused(400, "VALIDATION_ERROR");
        assert!(!error.to_string().contains("whsec"), "{what}: {error}");
    }
    for place in [0, body.len() / 2, body.len() - 1] {
        let mut changed = body.clone();
        changed[place] ^= 1;
        send(app, &changed, Some(&right)).await.refused(400, "VALIDATION_ERROR");
    }
    send(app, &[&body[..], b" "].concat(), Some(&right)).await.refused(400, "VALIDATION_ERROR");
    assert_eq!(rows(app, &event).await, 0);
    // Nearly too old, and with a code of a secret that is not known beside the right one.
    let header = format!("{},v1={}", sign(&body, WEBHOOK_SECRET, now - 240), "0".repeat(64));
    send(app, &body, Some(&header)).await.expect(200);
    assert_eq!(rows(app, &event).await, 1);
}

#[tokio::test]
async fn what_is_signed_and_no_event_is_refused() {
    let payer = Payer::new().await;
    let app = &payer.app;
    let event = payer.stripe.event("product.created", json!({"id": "prod_1", "object": "product"}));
    let without = |field: &str| {
        let mut event = event.clone();
        event.as_object_mut().unwrap().remove(field);
        event.to_string()
    };
    let with = |field: &str, value: Value| {
        let mut event = event.clone();
        event[field] = value;
        event.to_string()
    };
    let mut bodies = vec![String::new(), "not json".into(), "[]".into(), "null".into(), "{}".into()];
    bodies.extend(["id", "type", "created", "livemode", "data"].map(without));
    bodies.push(with("id", json!("")));
    bodies.push(with("id", json!("e".repeat(256))));
    bodies.push(with("created", json!("yesterday")));
    bodies.push(with("created", json!(i64::MAX)));
    bodies.push(with("data", json!({})));
    bodies.push(with("data", json!({"object": "cus_1"})));
    bodies.push(event.to_string()[1..].to_owned());
    for body in bodies {
        let signature = sign(body.as_bytes(), WEBHOOK_SECRET, app.app.clock.now().timestamp());
        let answer = send(app, body.as_bytes(), Some(&signature)).await;
        assert_eq!(answer.status, 400, "{body}: {}", answer.text);
        answer.refused(400, "VALIDATION_ERROR");
    }
    assert_eq!(rows(app, &event).await, 0);
}

#[tokio::test]
async fn either_secret_counts_while_one_replaces_the_other() {
    let (app, stripe) = pair(|config| config.stripe.webhook_secret = Some("whsec_old, whsec_new,".into()));
    for (secret, status) in [
        ("whsec_old", 200),
        ("whsec_new", 200),
        (WEBHOOK_SECRET, 400),
        ("", 400),
        ("whsec_old, whsec_new,", 400),
    ] {
        let event = stripe.event("product.created", json!({"id": "prod_1", "object": "product"}));
        let body = event.to_string().into_bytes();
        let signature = sign(&body, secret, app.app.clock.now().timestamp());
        assert_eq!(send(&app, &body, Some(&signature)).await.status, status, "{secret}");
        assert_eq!(rows(&app, &event).await, i64::from(status == 200), "{secret}");
    }
}

#[tokio::test]
async fn an_event_that_is_told_again_is_kept_and_handled_once() {
    let (payer, subscription) = Payer::new().await.paying("starter").await;
    payer.stripe.set_status(&subscription, "past_due");
    let event = payer.events_of("customer.subscription.updated").pop().unwrap();
    let answers = join_all((0..5).map(|_| deliver(&payer.app, &event))).await;
    assert!(answers.iter().all(|answer| answer.status == 200));
    handled(&payer.app, std::slice::from_ref(&event)).await;
    let sql =
        format!("select handled_at::text from platform.stripe_events where id = '{}'", text(&event, "id"));
    let (first, told) = (payer.app.texts(&sql).await, payer.told("subscription.updated").await.len());
    assert_eq!(first.len(), 1);
    // Told again after Stripe has moved on: it is known already, and not looked into.
    payer.stripe.change_silently(&subscription, |there| there["status"] = json!("active"));
    payer.hear_of(std::slice::from_ref(&event)).await;
    a_while().await;
    assert_eq!(payer.app.texts(&sql).await, first);
    assert_eq!(payer.told("subscription.updated").await.len(), told);
    assert_eq!(payer.current().await["state"], "past_due");
}

// What is not for us.

async fn ignored(staff: &Client, event: &Value) -> Value {
    let query = format!("state=ignored&page_size=100&type={}", text(event, "type"));
    let page = staff.get(&format!("/admin/billing/events?{query}")).await.expect(200);
    let found = list(&page).into_iter().find(|known| known["id"] == event["id"]);
    found.unwrap_or_else(|| panic!("{event} is not among the ignored"))
}

/// Events of other modes, accounts and customers, and of types that nobody looks at.
fn strange_events(payer: &Payer, subscription: &str) -> Vec<(Value, &'static str)> {
    let mut over = payer.stripe.subscription(subscription);
    over["status"] = json!("canceled");
    let event = payer.stripe.event("customer.subscription.deleted", over.clone());
    let (mut live, mut elsewhere) = (again(&event), again(&event));
    live["livemode"] = json!(true);
    elsewhere["account"] = json!("acct_other");
    let unknown = payer.stripe.event("product.created", over.clone());
    over["customer"] = json!("cus_nobody");
    let nobody = payer.stripe.event("customer.subscription.updated", over);
    let gone = payer.stripe.event("customer.deleted", json!({"id": "cus_nobody", "object": "customer"}));
    let bodiless = payer.stripe.event("customer.subscription.paused", json!({"id": "sub_1"}));
    vec![
        (live, "live"),
        (elsewhere, "acct_other"),
        (unknown, "type"),
        (nobody, "customer"),
        (gone, "customer"),
        (bodiless, "customer"),
    ]
}

#[tokio::test]
async fn what_is_not_for_us_is_kept_with_a_note_and_changes_nothing() {
    let (payer, subscription) = Payer::new().await.paying("starter").await;
    let staff = payer.app.superuser().await;
    let before = payer.current().await;
    let told = payer.told("subscription.updated").await.len();
    for (event, word) in strange_events(&payer, &subscription) {
        payer.hear_of(std::slice::from_ref(&event)).await;
        let kept = ignored(&staff.client, &event).await;
        let note = text(&kept, "note");
        assert!(note.contains(word), "{word}: {kept}");
        assert_eq!(kept["organization_id"], Value::Null);
        // Tried again it is ignored again.
        let retry = format!("/admin/billing/events/{}/retry", text(&event, "id"));
        staff.client.post(&retry, json!(null)).await.expect(202);
        handled(&payer.app, std::slice::from_ref(&event)).await;
        ignored(&staff.client, &event).await;
    }
    assert_eq!(payer.current().await, before);
    assert_eq!(payer.told("subscription.updated").await.len(), told);
    assert_eq!(payer.plan().await, "starter");
}

#[tokio::test]
async fn what_is_ignored_has_its_time_too() {
    let (payer, subscription) = Payer::new().await.paying("starter").await;
    let staff = payer.app.superuser().await;
    for (event, word) in strange_events(&payer, &subscription) {
        payer.hear_of(std::slice::from_ref(&event)).await;
        // By this time rows are removed after a while.
        let kept = ignored(&staff.client, &event).await;
        assert!(kept["handled_at"].is_string(), "{word}: it is kept for ever: {kept}");
    }
}

#[tokio::test]
async fn staff_see_what_stripe_told_and_have_it_handled_again() {
    let (payer, _) = Payer::new().await.paying("starter").await;
    let staff = payer.app.superuser().await;
    let query = format!("organization_id={}&page_size=100", payer.team.id);
    let page = staff.client.get(&format!("/admin/billing/events?{query}")).await.expect(200);
    let kinds: Vec<String> = list(&page).iter().map(|event| text(event, "type")).collect();
    for kind in ["checkout.session.completed", "customer.subscription.created", "invoice.paid"] {
        assert!(kinds.iter().any(|known| known == kind), "{kinds:?}");
    }
    assert!(list(&page).iter().all(|event| event["state"] == "handled" && event["handled_at"].is_string()));
    let one = &list(&page)[0];
    let retry = format!("/admin/billing/events/{}/retry", text(one, "id"));
    staff.client.post(&retry, json!(null)).await.expect(202);
    handled(&payer.app, std::slice::from_ref(one)).await;
    staff.client.post("/admin/billing/events/evt_none/retry", json!(null)).await.refused(404, "NOT_FOUND");
    staff.client.get("/admin/billing/events?state=lost").await.refused(400, "VALIDATION_ERROR");
    let audited = "/admin/audit-log?action=stripe_event.retried";
    let log = list(&staff.client.get(audited).await.expect(200));
    assert!(log.iter().any(|entry| entry["actor_id"] == staff.id.as_str()));
    for path in ["/admin/billing/events", "/admin/billing/reconciliations"] {
        payer.team.owner.get(path).await.refused(403, "PERMISSION_DENIED");
    }
    payer.team.owner.post(&retry, json!(null)).await.refused(403, "PERMISSION_DENIED");
}

// Order.

fn permutations(count: usize) -> Vec<Vec<usize>> {
    if count == 0 {
        return vec![Vec::new()];
    }
    let shorter = permutations(count - 1);
    let put = |places: &Vec<usize>, at: usize| {
        let mut places = places.clone();
        places.insert(at, count - 1);
        places
    };
    shorter.iter().flat_map(|places| (0..count).map(move |at| put(places, at))).collect()
}

/// Six things that happen to a subscription, and its id: begun on trial, active, payment failed, paid, on
/// another price, canceled for the end of the period.
async fn history(app: &TestApp, stripe: &Stripe) -> (Payer, String, Vec<Value>) {
    let payer = Payer::of(app, stripe).await;
    payer.checkout("starter").await.expect(200);
    let subscription = payer.pay();
    stripe.set_status(&subscription, "active");
    let invoice = stripe.fail_payment(&subscription);
    stripe.pay(&invoice);
    stripe.change(&subscription, |there| reprice(there, "price_professional", 19900));
    stripe.change(&subscription, |there| there["cancel_at_period_end"] = json!(true));
    let updates = payer.events_of("customer.subscription.updated");
    assert_eq!(updates.len(), 5, "active, past due, active, another price, canceled");
    let mut paid = payer.events_of("invoice.paid");
    let six = vec![
        payer.events_of("customer.subscription.created").remove(0),
        updates[0].clone(),
        payer.events_of("invoice.payment_failed").remove(0),
        paid.pop().unwrap(),
        updates[3].clone(),
        updates[4].clone(),
    ];
    (payer, subscription, six)
}

const KNOWN: &str = "select concat_ws(' ', s.state, s.plan, trunc(s.amount)::bigint, s.currency, \
     extract(epoch from s.period_start)::bigint, extract(epoch from s.period_end)::bigint, \
     s.cancel_at_period_end, \
     s.past_due_since is null, s.read_only_from is null, s.stripe_subscription_id, o.plan, \
     (select string_agg(i.status, ',') from platform.invoices i where i.organization_id = o.id)) \
     from platform.subscriptions s join platform.organizations o on o.id = s.organization_id where o.id = ";

#[tokio::test]
async fn events_in_every_order_and_some_twice_end_in_the_same_state() {
    const TEAMS: usize = 24;
    let (app, stripe) = pair(|config| config.database.pool_size = 8);
    let histories = join_all((0..TEAMS).map(|_| history(&app, &stripe))).await;
    let orders = permutations(6);
    assert_eq!(orders.len(), 720);
    for round in 0..orders.len() / TEAMS {
        app.sql(
            "with links as (update platform.subscriptions set state = 'free', plan = 'free', \
               stripe_subscription_id = null, amount = null, currency = null, period_start = null, \
               period_end = null, trial_started_at = null, trial_ends_at = null, trial_reminded_at = null, \
               cancel_at_period_end = false, past_due_since = null, read_only_from = null), \
             plans as (update platform.organizations set plan = 'free') delete from platform.invoices",
        )
        .await;
        let told = histories.iter().enumerate().map(|(number, (_, _, six))| {
            let order = &orders[number * (orders.len() / TEAMS) + round];
            let app = &app;
            async move {
                for place in order {
                    let event = again(&six[*place]);
                    deliver(app, &event).await.expect(200);
                    if *place == round % 6 {
                        deliver(app, &event).await.expect(200);
                        deliver(app, &again(&event)).await.expect(200);
                    }
                }
            }
        });
        join_all(told).await;
        let open = "select count(*) from platform.stripe_events where state = 'received'";
        within(60, "the events are handled", || async { app.number(open).await == 0 }).await;
        for (number, (payer, subscription, _)) in histories.iter().enumerate() {
            let there = stripe.subscription(subscription);
            let item = &there["items"]["data"][0];
            let expected = format!(
                "active professional 199 SGD {} {} t t t {subscription} professional paid",
                item["current_period_start"], item["current_period_end"],
            );
            let known = app.texts(&format!("{KNOWN}'{}'", payer.team.id)).await;
            let order = &orders[number * (orders.len() / TEAMS) + round];
            assert_eq!(known, [expected], "told in the order {order:?}");
        }
    }
}

#[tokio::test]
async fn what_comes_late_does_not_bring_back_what_is_over() {
    let (payer, subscription) = Payer::new().await.paying("starter").await;
    let stripe = &payer.stripe;
    let mut told = Vec::new();
    for step in 0..38 {
        match step % 5 {
            0 => stripe.set_status(&subscription, "past_due"),
            1 => stripe.set_status(&subscription, "active"),
            2 => stripe.change(&subscription, |there| reprice(there, "price_professional", 19900)),
            3 => stripe.change(&subscription, |there| there["cancel_at_period_end"] = json!(true)),
            _ => stripe.change(&subscription, |there| {
                reprice(there, "price_starter", 4900);
                there["cancel_at_period_end"] = json!(false);
            }),
        }
        // One of long ago, one of a while ago; what was handled is told under another id.
        let all = payer.events();
        for place in [step * 7 % all.len(), all.len() - 1 - step % 4] {
            let late = again(&all[place]);
            deliver(&payer.app, &late).await.expect(200);
            told.push(late);
        }
    }
    handled(&payer.app, &told).await;
    let mut rest = payer.events();
    rest.reverse();
    payer.hear_of(&rest).await;
    let current = payer.current().await;
    assert_eq!(
        (&current["state"], &current["plan"]),
        (&json!("active"), &json!("professional")),
        "{current}"
    );
    assert_eq!((&current["cancel_at_period_end"], &current["past_due_since"]), (&json!(false), &Value::Null));
    assert_eq!(payer.plan().await, "professional");
}

#[tokio::test]
async fn a_look_that_took_long_does_not_overwrite_what_a_later_one_saw() {
    let (payer, subscription) = Payer::new().await.paying("starter").await;
    let path = format!("/v1/subscriptions?customer={}", payer.customer());
    payer.stripe.set_status(&subscription, "past_due");
    payer.stripe.fail("GET", &path, Fault::DelayAfter(Duration::from_millis(1200)));
    let asked = payer.asked("GET", &path).len();
    let slow = payer.events_of("customer.subscription.updated").pop().unwrap();
    deliver(&payer.app, &slow).await.expect(200);
    within(5, "the slow look has begun", || async { payer.asked("GET", &path).len() > asked }).await;
    payer.stripe.set_status(&subscription, "active");
    let fast = payer.events_of("customer.subscription.updated").pop().unwrap();
    payer.hear_of(&[fast]).await;
    assert_eq!(payer.current().await["state"], "active");
    handled(&payer.app, &[slow]).await;
    assert_eq!(payer.current().await["state"], "active");
}

// Stripe is slow, or down.

/// What goes wrong with so many attempts, and whether the third at the latest gets through.
const TROUBLES: &[(Fault, usize, bool)] = &[
    (Fault::Status(429), 1, true),
    (Fault::Status(500), 2, true),
    (Fault::Hangup, 1, true),
    (Fault::StatusAfter(500), 1, true),
    (Fault::DelayAfter(Duration::from_secs(3)), 1, true),
    (Fault::Delay(Duration::from_secs(3)), 1, true),
    (Fault::Status(429), 3, false),
    (Fault::Status(500), 3, false),
    (Fault::Hangup, 3, false),
];

/// What was sent has one key in all attempts, and no more of them than three.
#[track_caller]
fn one_key(attempts: &[Seen], trouble: &str) {
    assert!((1..=3).contains(&attempts.len()), "{trouble}: {attempts:?}");
    let key = &attempts[0].idempotency_key;
    assert!(key.is_some(), "{trouble}: {attempts:?}");
    assert!(attempts.iter().all(|seen| seen.idempotency_key == *key), "{trouble}: {attempts:?}");
}

#[track_caller]
fn try_later(answer: Answer) {
    let seconds: u32 = answer.header("retry-after").parse().expect("when to come back");
    assert!((1..=60).contains(&seconds));
    let error = answer.refused(503, "SERVICE_UNAVAILABLE");
    assert!(error["message"].as_str().unwrap().contains("Stripe"), "{error}");
}

#[tokio::test]
async fn an_upgrade_is_done_once_or_not_at_all_whatever_becomes_of_stripe() {
    let payers =
        join_all(TROUBLES.iter().map(|_| async { Payer::new().await.paying("starter").await })).await;
    join_all(payers.iter().zip(TROUBLES).map(
        |((payer, subscription), (fault, times, gets_through))| async move {
            let (trouble, path) = (format!("{fault:?} {times}"), format!("/v1/subscriptions/{subscription}"));
            for _ in 0..*times {
                payer.stripe.fail("POST", &path, *fault);
            }
            let answer = payer.post("upgrade", json!({"plan": "professional"})).await;
            one_key(&payer.asked("POST", &path), &trouble);
            if *gets_through {
                assert_eq!(answer.status, 200, "{trouble}: {}", answer.text);
                assert_eq!(answer.expect(200)["plan"], "professional", "{trouble}");
            } else {
                try_later(answer);
                assert_eq!(
                    (payer.plan().await, payer.changes_to("price_professional")),
                    ("starter".into(), 0)
                );
                let again = payer.post("upgrade", json!({"plan": "professional"})).await.expect(200);
                assert_eq!(again["plan"], "professional", "{trouble}");
            }
            assert_eq!(payer.changes_to("price_professional"), 1, "{trouble}");
            assert_eq!(payer.plan().await, "professional", "{trouble}");
            payer.hear().await;
            assert_eq!(payer.plan().await, "professional", "{trouble}");
            assert_eq!(payer.current().await["price"], money("199.00", "SGD"), "{trouble}");
        },
    ))
    .await;
}

#[tokio::test]
async fn a_cancellation_is_done_or_not_whatever_becomes_of_stripe() {
    let payers =
        join_all(TROUBLES.iter().map(|_| async { Payer::new().await.paying("starter").await })).await;
    join_all(payers.iter().zip(TROUBLES).map(
        |((payer, subscription), (fault, times, gets_through))| async move {
            let (trouble, path) = (format!("{fault:?} {times}"), format!("/v1/subscriptions/{subscription}"));
            for _ in 0..*times {
                payer.stripe.fail("POST", &path, *fault);
            }
            let answer = payer.post("cancel", json!({})).await;
            one_key(&payer.asked("POST", &path), &trouble);
            if *gets_through {
                assert_eq!(answer.status, 200, "{trouble}: {}", answer.text);
            } else {
                try_later(answer);
                assert_eq!(payer.current().await["cancel_at_period_end"], false, "{trouble}");
                payer.post("cancel", json!({})).await.expect(200);
            }
            assert_eq!(payer.stripe.subscription(subscription)["cancel_at_period_end"], true, "{trouble}");
            assert_eq!(payer.current().await["cancel_at_period_end"], true, "{trouble}");
            // And at once, where what was done is answered with an error.
            payer.stripe.fail("DELETE", &path, Fault::StatusAfter(500));
            let ended = payer.post("cancel", json!({"immediately": true})).await.expect(200);
            assert_eq!((&ended["state"], payer.plan().await), (&json!("free"), "free".into()), "{trouble}");
            assert_eq!(payer.stripe.subscription(subscription)["status"], "canceled", "{trouble}");
        },
    ))
    .await;
}

#[tokio::test]
async fn one_customer_is_made_and_one_subscription_whatever_becomes_of_stripe() {
    let (app, stripe) = pair(|_| {});
    for (method, path, fault, times, gets_through) in [
        ("POST", "/v1/customers", Fault::StatusAfter(500), 1, false),
        ("POST", "/v1/customers", Fault::DelayAfter(Duration::from_secs(3)), 1, true),
        ("POST", "/v1/customers", Fault::Status(429), 1, true),
        ("GET", "/v1/customers", Fault::Hangup, 3, false),
        ("POST", "/v1/checkout/sessions", Fault::StatusAfter(500), 1, false),
        ("POST", "/v1/checkout/sessions", Fault::Delay(Duration::from_secs(3)), 1, true),
        ("POST", "/v1/checkout/sessions", Fault::Status(500), 3, false),
    ] {
        let trouble = format!("{method} {path} {fault:?} {times}");
        let payer = Payer::of(&app, &stripe).await.after_a_trial().await;
        let asked = stripe.requests().len();
        for _ in 0..times {
            stripe.fail(method, path, fault);
        }
        let answer = payer.checkout("starter").await;
        let attempts = stripe.requests().split_off(asked).into_iter();
        let attempts: Vec<Seen> =
            attempts.filter(|seen| seen.method == method && seen.path.starts_with(path)).collect();
        one_key(&attempts, &trouble);
        if gets_through {
            assert_eq!(answer.status, 200, "{trouble}: {}", answer.text);
        } else {
            try_later(answer);
            payer.checkout("starter").await.expect(200);
        }
        assert_eq!(payer.customers().len(), 1, "{trouble}");
        payer.pay();
        payer.hear().await;
        assert_eq!(payer.plan().await, "starter", "{trouble}");
        assert_eq!(stripe.subscriptions_of(&payer.customer()).len(), 1, "{trouble}");
    }
}

#[tokio::test]
async fn what_nobody_could_say_is_found_out_when_stripe_is_back() {
    let (app, stripe) = pair_with_a_clock();
    let (payer, subscription) = Payer::of(&app, &stripe).await.paying("starter").await;
    stripe.fail("POST", &format!("/v1/subscriptions/{subscription}"), Fault::StatusAfter(500));
    for _ in 0..3 {
        stripe.fail("GET", "/v1/subscriptions?", Fault::Hangup);
    }
    try_later(payer.post("upgrade", json!({"plan": "professional"})).await);
    assert_eq!((payer.plan().await, payer.changes_to("price_professional")), ("starter".into(), 1));
    // Its event got lost, too.
    app.app.clock.advance(TimeDelta::minutes(3));
    within(10, "the plan that is paid", || async { payer.plan().await == "professional" }).await;
    payer.post("upgrade", json!({"plan": "professional"})).await.refused(409, "CONFLICT");
}

#[tokio::test]
async fn an_event_is_handled_when_stripe_answers_again() {
    let (app, stripe) = pair_with_a_clock();
    let (payer, subscription) = Payer::of(&app, &stripe).await.paying("starter").await;
    for _ in 0..3 {
        stripe.fail("GET", "/v1/subscriptions?", Fault::Status(500));
    }
    stripe.set_status(&subscription, "past_due");
    let event = payer.events_of("customer.subscription.updated").pop().unwrap();
    // Stripe is told at once that we have it.
    deliver(&app, &event).await.expect(200);
    within(10, "three attempts", || async {
        payer.asked("GET", "/v1/subscriptions?").iter().filter(|seen| seen.status == 500).count() == 3
    })
    .await;
    assert_eq!(payer.current().await["state"], "active");
    within(15, "the next try", || async {
        app.app.clock.advance(TimeDelta::seconds(5));
        payer.current().await["state"] == "past_due"
    })
    .await;
}

// Changing plans.

#[tokio::test]
async fn a_larger_plan_is_paid_and_in_force_at_once() {
    let (payer, subscription) = Payer::new().await.paying("starter").await;
    let upgraded = payer.post("upgrade", json!({"plan": "professional"})).await.expect(200);
    assert_eq!((&upgraded["plan"], &upgraded["price"]), (&json!("professional"), &money("199.00", "SGD")));
    assert_eq!(payer.plan().await, "professional");
    let asked = payer.asked("POST", &format!("/v1/subscriptions/{subscription}")).remove(0);
    assert_eq!(field(&asked, "proration_behavior"), Some("always_invoice"));
    assert_eq!(field(&asked, "payment_behavior"), Some("error_if_incomplete"));
    let there = payer.stripe.subscription(&subscription);
    assert_eq!(there["items"]["data"].as_array().unwrap().len(), 1, "the price is changed, not added");
    assert_eq!(there["items"]["data"][0]["price"]["id"], "price_professional");
    let changed = payer.told("organization.plan_changed").await;
    assert_eq!(
        (&changed[0]["data"]["plan"], &changed[0]["actor_kind"]),
        (&json!("professional"), &json!("user"))
    );
    assert_eq!(changed[0]["actor_id"], payer.team.founder.id.as_str());
    payer.hear().await;
    assert_eq!(payer.told("organization.plan_changed").await.len(), changed.len(), "told once");
    let invoices = list(&payer.team.owner.get("/subscriptions/invoices").await.expect(200));
    assert!(invoices.iter().any(|invoice| invoice["total"] == money("150.00", "SGD")), "{invoices:?}");
}

#[tokio::test]
async fn what_makes_no_sense_of_a_plan_is_refused() {
    let payer = Payer::new().await;
    payer.post("upgrade", json!({"plan": "professional"})).await.refused(409, "CONFLICT");
    payer.post("downgrade", json!({"plan": "starter"})).await.refused(409, "CONFLICT");
    payer.post("cancel", json!({})).await.refused(409, "CONFLICT");
    payer.post("cancel", json!({"immediately": true})).await.refused(409, "CONFLICT");
    payer.post("reactivate", json!(null)).await.refused(409, "CONFLICT");
    let (payer, subscription) = payer.paying("professional").await;
    payer.post("upgrade", json!({"plan": "professional"})).await.refused(409, "CONFLICT");
    payer.post("downgrade", json!({"plan": "professional"})).await.refused(409, "CONFLICT");
    payer.post("upgrade", json!({"plan": "starter"})).await.refused(400, "VALIDATION_ERROR");
    payer.post("downgrade", json!({"plan": "enterprise"})).await.refused(400, "VALIDATION_ERROR");
    payer.post("downgrade", json!({"plan": "free"})).await.refused(400, "VALIDATION_ERROR");
    payer.post("upgrade", json!({"plan": "gold"})).await.refused(400, "VALIDATION_ERROR");
    payer.post("upgrade", json!({"plan": "enterprise"})).await.refused(409, "CONFLICT");
    payer.post("cancel", json!({"immediately": "yes"})).await.refused(400, "VALIDATION_ERROR");
    payer.stripe.fail_payment(&subscription);
    payer.hear().await;
    payer.post("upgrade", json!({"plan": "enterprise"})).await.refused(409, "CONFLICT");
    payer.post("downgrade", json!({"plan": "starter"})).await.refused(409, "CONFLICT");
    assert!(payer.asked("POST", &format!("/v1/subscriptions/{subscription}")).is_empty());
}

#[tokio::test]
async fn a_smaller_plan_waits_until_what_is_used_fits() {
    let (payer, subscription) = Payer::new().await.paying("professional").await;
    let team = &payer.team;
    let mut projects = Vec::new();
    for number in 0..6 {
        projects.push(team.project(&format!("Project {number}")).await);
    }
    let members = join_all((0..10).map(|_| team.join(Role::Viewer))).await;
    let refused = payer.post("downgrade", json!({"plan": "starter"})).await.refused(409, "CONFLICT");
    assert_eq!(
        refused["details"]["over"],
        json!([
            {"resource": "users", "used": 11, "limit": 10},
            {"resource": "projects", "used": 6, "limit": 5},
        ])
    );
    assert_eq!(payer.changes_to("price_starter"), 0, "Stripe was not asked");
    assert_eq!(payer.plan().await, "professional");
    let path = format!("/projects/{}", text(&projects[0], "id"));
    team.owner.delete(&path).await.expect(204);
    let refused = payer.post("downgrade", json!({"plan": "starter"})).await.refused(409, "CONFLICT");
    assert_eq!(refused["details"]["over"][0]["resource"], "users");
    members[0].client.post(&team.path("/leave"), json!(null)).await.expect(204);
    let smaller = payer.post("downgrade", json!({"plan": "starter"})).await.expect(200);
    assert_eq!((&smaller["plan"], &smaller["price"]), (&json!("starter"), &money("49.00", "SGD")));
    let asked = payer.asked("POST", &format!("/v1/subscriptions/{subscription}")).remove(0);
    assert_eq!(field(&asked, "proration_behavior"), Some("create_prorations"));
    payer.create_project().await.refused(402, "PLAN_LIMIT_REACHED");
}

#[tokio::test]
async fn of_two_upgrades_at_once_one_is_done() {
    let (payer, _) = Payer::new().await.paying("starter").await;
    let wanted = json!({"plan": "professional"});
    let mut both = join_all((0..2).map(|_| payer.post("upgrade", wanted.clone()))).await;
    both.sort_by_key(|answer| answer.status);
    both.pop().unwrap().refused(409, "CONFLICT");
    assert_eq!(both.pop().unwrap().expect(200)["plan"], "professional");
    assert_eq!(payer.changes_to("price_professional"), 1);
    // The way is free again.
    payer.post("downgrade", json!({"plan": "starter"})).await.expect(200);
}

#[tokio::test]
async fn a_card_that_is_declined_changes_nothing() {
    let (app, stripe) = pair(|_| {});
    let (payer, subscription) = Payer::of(&app, &stripe).await.paying("starter").await;
    let (before, told) = (payer.current().await, payer.told("subscription.updated").await.len());
    stripe.decline_next_payment();
    let refused =
        payer.post("upgrade", json!({"plan": "professional"})).await.refused(402, "PAYMENT_REQUIRED");
    assert!(refused["message"].as_str().unwrap().contains("declined"), "{refused}");
    assert_eq!(payer.asked("POST", &format!("/v1/subscriptions/{subscription}")).len(), 1, "tried once");
    assert_eq!(payer.current().await, before);
    assert_eq!(
        (payer.plan().await, payer.told("subscription.updated").await.len()),
        ("starter".into(), told)
    );
    payer.post("upgrade", json!({"plan": "professional"})).await.expect(200);
}

#[tokio::test]
async fn a_trial_without_stripe_goes_to_other_plans_without_stripe() {
    let payer = Payer::new().await;
    payer.post("trial", json!({"plan": "starter"})).await.expect(200);
    let upgraded = payer.post("upgrade", json!({"plan": "professional"})).await.expect(200);
    assert_eq!((&upgraded["plan"], &upgraded["state"]), (&json!("professional"), &json!("trialing")));
    assert_eq!(payer.plan().await, "professional");
    payer.post("upgrade", json!({"plan": "enterprise"})).await.refused(409, "CONFLICT");
    payer.post("downgrade", json!({"plan": "starter"})).await.expect(200);
    assert_eq!(payer.plan().await, "starter");
    let ended = payer.post("cancel", json!({})).await.expect(200);
    assert_eq!((&ended["state"], &ended["can_start_trial"]), (&json!("free"), &json!(false)));
    assert_eq!(payer.plan().await, "free");
    assert!(payer.customers().is_empty());
}

// Ending.

#[tokio::test]
async fn a_canceled_subscription_lasts_as_long_as_it_is_paid() {
    let (payer, subscription) = Payer::new().await.paying("starter").await;
    let canceled = payer.post("cancel", json!({})).await.expect(200);
    assert_eq!((&canceled["cancel_at_period_end"], &canceled["plan"]), (&json!(true), &json!("starter")));
    assert_eq!(payer.plan().await, "starter");
    payer.post("cancel", json!({})).await.refused(409, "CONFLICT");
    let back = payer.post("reactivate", json!(null)).await.expect(200);
    assert_eq!((&back["cancel_at_period_end"], &back["state"]), (&json!(false), &json!("active")));
    assert_eq!(payer.stripe.subscription(&subscription)["cancel_at_period_end"], false);
    payer.post("reactivate", json!(null)).await.refused(409, "CONFLICT");
    payer.post("cancel", json!({"immediately": false})).await.expect(200);
    payer.stripe.renew(&subscription);
    payer.hear().await;
    let current = payer.current().await;
    assert_eq!((&current["state"], &current["plan"]), (&json!("free"), &json!("free")));
    assert_eq!((&current["price"], &current["period_end"]), (&Value::Null, &Value::Null));
    assert_eq!((&current["cancel_at_period_end"], &current["access"]), (&json!(false), &json!("full")));
    assert_eq!(payer.told("organization.plan_changed").await[0]["data"]["plan"], "free");
    payer.post("reactivate", json!(null)).await.refused(409, "CONFLICT");
    // And begins again, without a second trial.
    payer.checkout("professional").await.expect(200);
    assert_eq!(field(&payer.asked_for_a_page(), "subscription_data[trial_period_days]"), None);
    payer.pay();
    payer.hear().await;
    assert_eq!((payer.plan().await, payer.customers().len()), ("professional".into(), 1));
}

#[tokio::test]
async fn a_subscription_ends_now_if_its_owner_wants() {
    let (payer, subscription) = Payer::new().await.paying("professional").await;
    payer.post("cancel", json!({})).await.expect(200);
    let ended = payer.post("cancel", json!({"immediately": true})).await.expect(200);
    assert_eq!((&ended["state"], &ended["plan"]), (&json!("free"), &json!("free")));
    assert_eq!(payer.stripe.subscription(&subscription)["status"], "canceled");
    assert_eq!(payer.plan().await, "free");
    payer.hear().await;
    assert_eq!(payer.current().await["state"], "free");
    payer.post("cancel", json!({"immediately": true})).await.refused(409, "CONFLICT");
}

#[tokio::test]
async fn what_ended_at_stripe_is_not_told_to_go_on() {
    let (payer, subscription) = Payer::new().await.paying("starter").await;
    payer.post("cancel", json!({})).await.expect(200);
    payer.stripe.change_silently(&subscription, |there| there["status"] = json!("canceled"));
    payer.post("reactivate", json!(null)).await.refused(409, "CONFLICT");
    assert_eq!(payer.current().await["state"], "free", "now it is known");
    // To cancel what ended already is to have what one wanted.
    let (payer, subscription) = Payer::new().await.paying("starter").await;
    payer.stripe.change_silently(&subscription, |there| there["status"] = json!("canceled"));
    assert_eq!(payer.post("cancel", json!({})).await.expect(200)["state"], "free");
}

// Trials.

#[tokio::test]
async fn a_trial_needs_nothing_to_pay_with_reminds_once_and_ends() {
    let (app, stripe) = pair_with_a_clock();
    let payer = Payer::of(&app, &stripe).await;
    assert_eq!(payer.current().await["can_start_trial"], true);
    for plan in ["free", "enterprise", "gold"] {
        payer.post("trial", json!({"plan": plan})).await.refused(400, "VALIDATION_ERROR");
    }
    let begun = payer.post("trial", json!({"plan": "starter"})).await.expect(200);
    assert_eq!((&begun["state"], &begun["plan"]), (&json!("trialing"), &json!("starter")));
    let length = time(&begun["trial_ends_at"]) - time(&begun["trial_started_at"]);
    assert_eq!((length, &begun["can_start_trial"]), (TimeDelta::days(14), &json!(false)));
    assert_eq!(payer.plan().await, "starter");
    assert_eq!(payer.told("organization.plan_changed").await.len(), 1);
    payer.post("trial", json!({"plan": "professional"})).await.refused(409, "CONFLICT");
    assert!(stripe.requests().is_empty(), "{:?}", stripe.requests());
    app.app.clock.advance(TimeDelta::days(10));
    look_at_trials(&app);
    a_while().await;
    assert!(payer.told("subscription.trial_ending").await.is_empty(), "four days are left");
    app.app.clock.advance(TimeDelta::days(1) + TimeDelta::minutes(1));
    within(10, "the reminder", || async { payer.told("subscription.trial_ending").await.len() == 1 }).await;
    within(10, "the notification", || async { payer.notified("trial_ending").await == 1 }).await;
    for _ in 0..2 {
        look_at_trials(&app);
        a_while().await;
    }
    assert_eq!(payer.told("subscription.trial_ending").await.len(), 1);
    assert_eq!(payer.told("subscription.trial_ending").await[0]["data"]["plan"], "starter");
    assert_eq!(payer.plan().await, "starter");
    app.app.clock.advance(TimeDelta::days(3));
    within(10, "the end", || async { payer.current().await["state"] == "free" }).await;
    assert_eq!(payer.plan().await, "free");
    assert_eq!(payer.told("organization.plan_changed").await[0]["data"]["plan"], "free");
    assert_eq!(payer.notified("trial_ending").await, 1);
    payer.post("trial", json!({"plan": "starter"})).await.refused(409, "CONFLICT");
    // The hourly comparison looks; nobody asks for anything.
    assert!(stripe.requests().iter().all(|seen| seen.method == "GET"));
    // Whoever had a trial pays from the first day.
    payer.checkout("starter").await.expect(200);
    let asked = payer.asked_for_a_page();
    assert_eq!(field(&asked, "subscription_data[trial_period_days]"), None);
    assert_eq!(field(&asked, "subscription_data[trial_end]"), None);
}

#[tokio::test]
async fn a_trial_that_nobody_looked_at_in_its_time_ends_at_the_daily_look() {
    let (app, stripe) = pair_with_a_clock();
    let payer = Payer::of(&app, &stripe).await;
    payer.post("trial", json!({"plan": "starter"})).await.expect(200);
    // Its job got lost.
    app.sql("delete from platform.jobs where kind = 'look_at_trial'").await;
    app.app.clock.advance(TimeDelta::days(14) + TimeDelta::minutes(1));
    look_at_trials(&app);
    within(10, "the end", || async { payer.plan().await == "free" }).await;
}

#[tokio::test]
async fn whoever_pays_during_a_trial_has_it_to_its_end() {
    let (app, stripe) = pair_with_a_clock();
    let (early, late) = (Payer::of(&app, &stripe).await, Payer::of(&app, &stripe).await);
    let begun = early.post("trial", json!({"plan": "starter"})).await.expect(200);
    late.post("trial", json!({"plan": "starter"})).await.expect(200);
    let end = time(&begun["trial_ends_at"]).timestamp();
    app.app.clock.advance(TimeDelta::days(5));
    early.checkout("professional").await.expect(200);
    let asked = early.asked_for_a_page();
    assert_eq!(field(&asked, "subscription_data[trial_end]"), Some(end.to_string().as_str()));
    assert_eq!(field(&asked, "subscription_data[trial_period_days]"), None);
    assert_eq!(early.plan().await, "starter", "until it is paid");
    let subscription = early.pay();
    early.hear().await;
    let current = early.current().await;
    assert_eq!((&current["state"], &current["plan"]), (&json!("trialing"), &json!("professional")));
    assert_eq!(time(&current["trial_ends_at"]).timestamp(), end);
    assert_eq!(current["trial_started_at"], begun["trial_started_at"]);
    // Stripe takes no end that is nearer than two days.
    app.app.clock.advance(TimeDelta::days(7) + TimeDelta::hours(1));
    late.checkout("starter").await.expect(200);
    let asked = late.asked_for_a_page();
    assert_eq!(field(&asked, "subscription_data[trial_end]"), None);
    assert_eq!(field(&asked, "subscription_data[trial_period_days]"), None);
    late.pay();
    late.hear().await;
    assert_eq!(late.current().await["state"], "active");
    // After the end of the trial the one who paid goes on, and the state is what Stripe says.
    app.app.clock.advance(TimeDelta::days(2));
    stripe.set_status(&subscription, "active");
    early.hear().await;
    look_at_trials(&app);
    a_while().await;
    assert_eq!((early.plan().await, late.plan().await), ("professional".into(), "starter".into()));
}

#[tokio::test]
async fn nobody_is_reminded_twice_of_one_trial() {
    let (app, stripe) = pair_with_a_clock();
    let (here, there) = (Payer::of(&app, &stripe).await, Payer::of(&app, &stripe).await);
    here.post("trial", json!({"plan": "starter"})).await.expect(200);
    there.checkout("starter").await.expect(200);
    let subscription = there.pay();
    there.hear().await;
    app.app.clock.advance(TimeDelta::days(11) + TimeDelta::minutes(5));
    stripe.trial_will_end(&subscription);
    for payer in [&here, &there] {
        let what = "the reminder";
        within(10, what, || async { !payer.told("subscription.trial_ending").await.is_empty() }).await;
    }
    // Who pays now goes on with the same trial.
    here.checkout("starter").await.expect(200);
    here.pay();
    for payer in [&here, &there] {
        payer.hear().await;
        assert_eq!(payer.current().await["state"], "trialing");
    }
    look_at_trials(&app);
    a_while().await;
    a_while().await;
    for payer in [&here, &there] {
        let told = payer.told("subscription.trial_ending").await;
        assert_eq!(told.len(), 1, "{told:?}");
    }
}

// A payment is owed.

#[tokio::test]
async fn whoever_owes_reads_only_after_seven_days_until_it_is_paid() {
    let (app, stripe) = pair_with_a_clock();
    let (payer, subscription) = Payer::of(&app, &stripe).await.paying("starter").await;
    let team = &payer.team;
    let (program, key) = payer.program(&["projects:read", "projects:write"]).await;
    let member = team.join(Role::Member).await;
    let project = team.project("Before").await;
    let invoice = stripe.fail_payment(&subscription);
    payer.hear().await;
    let current = payer.current().await;
    assert_eq!((&current["state"], &current["access"]), (&json!("past_due"), &json!("full")));
    let (since, from) = (time(&current["past_due_since"]), time(&current["read_only_from"]));
    assert_eq!(from - since, TimeDelta::days(7));
    let failed = payer.told("invoice.payment_failed").await;
    assert_eq!(failed.len(), 1);
    assert_eq!(failed[0]["data"]["amount_due"], money("49.00", "SGD"));
    assert!(!failed[0].to_string().contains("https://"), "nothing by which somebody could open it");
    within(10, "the notification", || async { payer.notified("payment_failed").await == 1 }).await;
    app.app.clock.advance(TimeDelta::days(7) - TimeDelta::minutes(2));
    payer.create_project().await.expect(201);
    program.post("/projects", json!({"name": "By a program"})).await.expect(201);
    app.app.clock.advance(TimeDelta::minutes(3));
    let refused = payer.create_project().await.refused(402, "PAYMENT_REQUIRED");
    within(10, "it is told", || async { payer.notified("read_only").await == 1 }).await;
    let changes = &payer.told("subscription.updated").await[0]["changes"];
    assert_eq!(changes["access"], json!({"before": "full", "after": "read_only"}));
    assert_eq!(time(&refused["details"]["read_only_from"]), from);
    assert!(refused["details"]["pay_at"].as_str().unwrap().ends_with("/settings/billing"), "{refused}");
    program.post("/projects", json!({"name": "x"})).await.refused(402, "PAYMENT_REQUIRED");
    let path = format!("/projects/{}", text(&project, "id"));
    team.owner.patch(&path, json!({"name": "After"})).await.refused(402, "PAYMENT_REQUIRED");
    team.owner.delete(&path).await.refused(402, "PAYMENT_REQUIRED");
    team.owner.patch(&team.path(""), json!({"name": "After"})).await.refused(402, "PAYMENT_REQUIRED");
    let new_key = json!({"name": "P", "scopes": ["projects:read"]});
    team.owner.post("/api-keys", new_key).await.refused(402, "PAYMENT_REQUIRED");
    member.client.post("/projects", json!({"name": "x"})).await.refused(402, "PAYMENT_REQUIRED");
    // One can see everything, pay, shut others out, and go.
    assert_eq!(payer.current().await["access"], "read_only");
    let overview = team.path("");
    for path in
        [path.as_str(), "/projects", "/events", "/audit-log", "/subscriptions/invoices", overview.as_str()]
    {
        team.owner.get(path).await.expect(200);
    }
    program.get("/projects").await.expect(200);
    payer.post("portal", json!(null)).await.expect(200);
    payer.post("checkout", json!({"plan": "starter"})).await.refused(409, "CONFLICT");
    team.owner.post("/notifications/read-all", json!(null)).await.expect(204);
    team.owner.delete(&format!("/api-keys/{key}")).await.expect(204);
    program.get("/projects").await.refused(401, "AUTH_FAILED");
    member.client.post(&team.path("/leave"), json!(null)).await.expect(204);
    stripe.pay(&invoice);
    payer.hear().await;
    payer.create_project().await.expect(201);
    let current = payer.current().await;
    assert_eq!((&current["state"], &current["access"]), (&json!("active"), &json!("full")));
    assert_eq!((&current["past_due_since"], &current["read_only_from"]), (&Value::Null, &Value::Null));
    let paid = payer.told("invoice.paid").await;
    assert!(paid.iter().any(|event| event["data"]["invoice_id"] == invoice.as_str()));
    assert_eq!(payer.told("invoice.payment_failed").await.len(), 1);
}

#[tokio::test]
async fn an_unpaid_subscription_has_no_new_grace_and_owes_nothing_when_canceled() {
    let (app, stripe) = pair_with_a_clock();
    let (payer, subscription) = Payer::of(&app, &stripe).await.paying("starter").await;
    stripe.set_status(&subscription, "past_due");
    payer.hear().await;
    let from = payer.current().await["read_only_from"].clone();
    app.app.clock.advance(TimeDelta::days(3));
    stripe.set_status(&subscription, "unpaid");
    payer.hear().await;
    let current = payer.current().await;
    assert_eq!((&current["state"], &current["read_only_from"]), (&json!("past_due"), &from), "no new grace");
    payer.create_project().await.expect(201);
    app.app.clock.advance(TimeDelta::days(4) + TimeDelta::minutes(1));
    payer.create_project().await.refused(402, "PAYMENT_REQUIRED");
    // Whoever gives up paying is on the plan free, which owes nothing.
    payer.post("cancel", json!({"immediately": true})).await.expect(200);
    assert_eq!(payer.plan().await, "free");
    payer.team.owner.patch(&payer.team.path(""), json!({"name": "Free"})).await.expect(200);
}

#[tokio::test]
async fn a_paused_subscription_reads_only_until_it_goes_on() {
    let (payer, subscription) = Payer::new().await.paying("starter").await;
    payer.stripe.set_status(&subscription, "paused");
    payer.hear().await;
    let current = payer.current().await;
    assert_eq!((&current["state"], &current["access"]), (&json!("paused"), &json!("read_only")));
    payer.create_project().await.refused(402, "PAYMENT_REQUIRED");
    payer.team.owner.get("/projects").await.expect(200);
    payer.post("portal", json!(null)).await.expect(200);
    within(10, "it is told", || async { payer.notified("read_only").await == 1 }).await;
    a_while().await;
    assert_eq!(payer.notified("read_only").await, 1);
    payer.stripe.set_status(&subscription, "active");
    assert_eq!(payer.events_of("customer.subscription.resumed").len(), 1);
    payer.hear().await;
    payer.create_project().await.expect(201);
    assert_eq!(payer.current().await["state"], "active");
}

#[tokio::test]
async fn every_instance_knows_that_a_payment_is_owed() {
    let (app, stripe) = pair(|_| {});
    let (payer, subscription) = Payer::of(&app, &stripe).await.paying("starter").await;
    let there = app.beside();
    let (elsewhere, path) = (payer.team.owner.at(&there), payer.team.path(""));
    let change = async || elsewhere.patch(&path, json!({"name": "Changed"})).await.status.as_u16();
    assert_eq!(change().await, 200);
    stripe.set_status(&subscription, "paused");
    payer.hear().await;
    within(2, "refused everywhere", || async { change().await == 402 }).await;
    stripe.set_status(&subscription, "active");
    payer.hear().await;
    within(2, "open everywhere", || async { change().await == 200 }).await;
}

// Invoices, and money that went back.

#[tokio::test]
async fn invoices_are_those_of_stripe_with_links_that_work() {
    let (payer, subscription) = Payer::new().await.paying("starter").await;
    let (rival, _) = Payer::new().await.paying("starter").await;
    let owner = &payer.team.owner;
    payer.stripe.renew(&subscription);
    payer.hear().await;
    let page = owner.get("/subscriptions/invoices").await.expect(200);
    assert_eq!(page["total"], 2);
    let invoice = list(&page).remove(0);
    for sum in ["total", "amount_paid", "amount_due"] {
        assert_eq!(invoice[sum], money("49.00", "SGD"), "{sum}");
    }
    assert_eq!(invoice["status"], "paid");
    assert!(invoice["number"].is_string() && invoice["paid_at"].is_string(), "{invoice}");
    let id = text(&invoice, "id");
    let path = format!("/subscriptions/invoices/{id}");
    let asked = payer.asked("GET", &format!("/v1/invoices/{id}")).len();
    let single = owner.get(&path).await.expect(200);
    assert_eq!(single, invoice);
    assert!(text(&single, "hosted_url").starts_with("https://invoice.stripe.com/"));
    assert!(text(&single, "pdf_url").starts_with("https://pay.stripe.com/"));
    assert_eq!(payer.asked("GET", &format!("/v1/invoices/{id}")).len(), asked + 1, "the links are fresh");
    rival.team.owner.get(&path).await.refused(404, "NOT_FOUND");
    owner.get("/subscriptions/invoices/in_none").await.refused(404, "NOT_FOUND");
    owner.get("/subscriptions/invoices?page_size=0").await.refused(400, "VALIDATION_ERROR");
    let theirs = rival.team.owner.get("/subscriptions/invoices").await.expect(200);
    assert_eq!(theirs["total"], 1);
    // Each was told once, however often Stripe tells.
    let retold: Vec<Value> = payer.events().iter().map(again).collect();
    payer.hear_of(&retold).await;
    assert_eq!(payer.told("invoice.paid").await.len(), 2);
    assert_eq!(payer.told("invoice.finalized").await.len(), 2);
    assert!(payer.told("invoice.payment_failed").await.is_empty());
}

#[tokio::test]
async fn what_goes_back_or_is_contested_is_told_once() {
    let (payer, _) = Payer::new().await.paying("starter").await;
    let (stripe, customer) = (&payer.stripe, payer.customer());
    let part = stripe.refund(&customer, 1000, "sgd");
    let whole = stripe.refund(&customer, 4900, "sgd");
    let dispute = stripe.dispute(&customer, 500, "jpy");
    for _ in 0..3 {
        let told: Vec<Value> = payer
            .events()
            .iter()
            .filter(|event| event["type"].as_str().is_some_and(|kind| kind.starts_with("charge.")))
            .filter(|event| {
                let id = &event["data"]["object"]["id"];
                [&part, &whole, &dispute].iter().any(|ours| *id == ours.as_str())
            })
            .map(again)
            .collect();
        assert_eq!(told.len(), 3);
        payer.hear_of(&told).await;
    }
    let page = payer.team.owner.get("/subscriptions/adjustments").await.expect(200);
    assert_eq!(page["total"], 3, "{page}");
    let find = |id: &str| list(&page).into_iter().find(|known| known["id"] == id).unwrap();
    let seen = |id: &str| {
        let one = find(id);
        (text(&one, "kind"), one["amount"].clone(), text(&one, "status"))
    };
    assert_eq!(seen(&part), ("refund".into(), money("10.00", "SGD"), "partial".into()));
    assert_eq!(seen(&whole), ("refund".into(), money("49.00", "SGD"), "full".into()));
    assert_eq!(seen(&dispute), ("dispute".into(), money("500.00", "JPY"), "needs_response".into()));
    assert_eq!(find(&dispute)["reason"], "fraudulent");
    assert_eq!(payer.told("payment.refunded").await.len(), 2);
    let disputed = payer.told("payment.disputed").await;
    assert_eq!((disputed.len(), &disputed[0]["data"]["amount"]), (1, &money("500.00", "JPY")));
    within(10, "the notification", || async { payer.notified("payment_disputed").await == 1 }).await;
    // It is no reason to take the plan away.
    assert_eq!(payer.plan().await, "starter");
    let (rival, _) = Payer::new().await.paying("starter").await;
    assert_eq!(rival.team.owner.get("/subscriptions/adjustments").await.expect(200)["total"], 0);
}

// Customers.

#[tokio::test]
async fn a_customer_that_is_deleted_is_made_anew_at_the_next_checkout() {
    let (payer, _) = Payer::new().await.paying("starter").await;
    let first = payer.customer();
    payer.stripe.update_customer(&first, |customer| customer["name"] = json!("Another Name"));
    payer.hear().await;
    assert_eq!(payer.plan().await, "starter");
    payer.stripe.delete_customer(&first);
    payer.hear().await;
    let current = payer.current().await;
    assert_eq!((&current["state"], payer.plan().await), (&json!("free"), "free".into()));
    payer.post("portal", json!(null)).await.refused(409, "CONFLICT");
    payer.checkout("professional").await.expect(200);
    assert_ne!(payer.customer(), first);
    payer.pay();
    payer.hear().await;
    assert_eq!(payer.plan().await, "professional");
    // What Stripe still has to tell of the first is over.
    let old =
        payer.stripe.events().into_iter().rfind(|event| event["data"]["object"]["id"] == first.as_str());
    payer.hear_of(&[again(&old.unwrap())]).await;
    assert_eq!(payer.plan().await, "professional");
}

#[tokio::test]
async fn a_subscription_that_stripe_ends_is_over() {
    let (payer, subscription) = Payer::new().await.paying("professional").await;
    payer.stripe.set_status(&subscription, "canceled");
    payer.hear().await;
    assert_eq!((payer.current().await["state"].clone(), payer.plan().await), (json!("free"), "free".into()));
    let told = payer.told("subscription.updated").await;
    assert_eq!(told[0]["changes"]["state"], json!({"before": "active", "after": "free"}));
}

#[tokio::test]
async fn who_paid_before_we_wrote_down_whom_is_known_by_what_stripe_has() {
    let payer = Payer::new().await.after_a_trial().await;
    payer.checkout("starter").await.expect(200);
    let unlink = "update platform.subscriptions set stripe_customer_id = null, checkout_session_id = null";
    payer.app.sql(&format!("{unlink} where organization_id = '{}'", payer.team.id)).await;
    payer.pay();
    let events = payer.events();
    join_all(events.iter().map(|event| deliver(&payer.app, event))).await;
    handled(&payer.app, &events).await;
    assert_eq!(payer.plan().await, "starter");
    // All four events were told at once, and each is ours.
    let invoices = payer.team.owner.get("/subscriptions/invoices").await.expect(200);
    assert_eq!(invoices["total"], 1);
    let ignored = "select count(*) from platform.stripe_events where state = 'ignored' \
         and payload -> 'data' -> 'object' ->> 'customer' = ";
    assert_eq!(payer.app.number(&format!("{ignored}'{}'", payer.customer())).await, 0);
}

// The comparison with Stripe.

/// Compares now; answers what came of it.
async fn reconcile(app: &TestApp, staff: &Client) -> Value {
    let path = "/admin/billing/reconciliations";
    let before = staff.get(path).await.expect(200)["total"].as_i64().unwrap();
    staff.post(path, json!(null)).await.expect(202);
    let done = "select count(*) from platform.reconciliations where finished_at is not null";
    within(20, "the comparison", || async { app.number(done).await > before }).await;
    list(&staff.get(path).await.expect(200)).remove(0)
}

fn findings(report: &Value) -> String {
    report["findings"].to_string()
}

/// Asks Stripe without the product; answers what came back.
async fn at_stripe(app: &TestApp, stripe: &Stripe, path: &str, form: &[(&str, &str)]) -> Value {
    let url = format!("{}{path}", stripe.base_url());
    Answer::of(app.http.post(url).bearer_auth(SECRET_KEY).form(form)).await.expect(200)
}

/// Somebody subscribes without the product; answers the subscription's id.
async fn subscribe_at_stripe(app: &TestApp, stripe: &Stripe, customer: &str, price: &str) -> String {
    let form = [
        ("mode", "subscription"),
        ("customer", customer),
        ("line_items[0][price]", price),
        ("line_items[0][quantity]", "1"),
        ("success_url", "https://example.com/"),
    ];
    let session = at_stripe(app, stripe, "v1/checkout/sessions", &form).await;
    stripe.complete_checkout(&text(&session, "id"))
}

#[tokio::test]
async fn what_got_lost_is_made_good_and_told() {
    let (app, stripe) = pair(|_| {});
    let staff = app.superuser().await;
    let (payer, subscription) = Payer::of(&app, &stripe).await.paying("starter").await;
    let (other, _) = Payer::of(&app, &stripe).await.paying("professional").await;
    let report = reconcile(&app, &staff.client).await;
    assert_eq!((&report["checked"], &report["repaired"]), (&json!(2), &json!(0)), "{report}");
    assert_eq!((&report["findings"], &report["error"]), (&json!([]), &Value::Null));
    let untouched = other.current().await;
    stripe.change_silently(&subscription, |there| there["status"] = json!("past_due"));
    let report = reconcile(&app, &staff.client).await;
    assert_eq!(report["repaired"], 1, "{report}");
    assert_eq!(report["findings"][0]["organization_id"], payer.team.id.as_str());
    assert!(findings(&report).contains("past_due"), "{report}");
    assert_eq!(payer.current().await["state"], "past_due");
    stripe.change_silently(&subscription, |there| {
        there["status"] = json!("active");
        reprice(there, "price_professional", 19900);
    });
    assert_eq!(reconcile(&app, &staff.client).await["repaired"], 1);
    assert_eq!(payer.plan().await, "professional");
    let mut end = 0;
    stripe.change_silently(&subscription, |there| {
        let period = &mut there["items"]["data"][0]["current_period_end"];
        end = period.as_i64().unwrap() + 86_400;
        *period = json!(end);
    });
    assert_eq!(reconcile(&app, &staff.client).await["repaired"], 1);
    assert_eq!(time(&payer.current().await["period_end"]).timestamp(), end);
    stripe.change_silently(&subscription, |there| there["status"] = json!("canceled"));
    assert_eq!(reconcile(&app, &staff.client).await["repaired"], 1);
    assert_eq!(payer.plan().await, "free");
    assert_eq!(reconcile(&app, &staff.client).await["repaired"], 0);
    assert_eq!(other.current().await, untouched);
    let path = "/admin/billing/reconciliations";
    payer.team.owner.post(path, json!(null)).await.refused(403, "PERMISSION_DENIED");
}

#[tokio::test]
async fn an_invoice_whose_event_got_lost_is_found() {
    let (app, stripe) = pair_with_a_clock();
    let staff = app.superuser().await;
    let (payer, subscription) = Payer::of(&app, &stripe).await.paying("starter").await;
    let invoice = stripe.fail_payment(&subscription);
    stripe.take_events();
    // Of what was made a moment ago the event may be on its way.
    app.app.clock.advance(TimeDelta::hours(1));
    // The subscription and the invoice.
    assert_eq!(reconcile(&app, &staff.client).await["repaired"], 2);
    let failed = payer.told("invoice.payment_failed").await;
    assert_eq!((failed.len(), &failed[0]["data"]["invoice_id"]), (1, &json!(invoice)));
}

#[tokio::test]
async fn what_a_person_must_look_at_is_reported() {
    let (app, stripe) = pair(|_| {});
    let staff = app.superuser().await;
    let (payer, first) = Payer::of(&app, &stripe).await.paying("starter").await;
    // A customer of whom nobody here knows, and two subscriptions of one.
    let stranger = at_stripe(&app, &stripe, "v1/customers", &[("name", "Stranger")]).await;
    let strange = subscribe_at_stripe(&app, &stripe, &text(&stranger, "id"), "price_starter").await;
    let second = subscribe_at_stripe(&app, &stripe, &payer.customer(), "price_professional").await;
    payer.hear().await;
    let report = reconcile(&app, &staff.client).await;
    let told = findings(&report);
    assert!(told.contains(&strange) && told.contains("no organization"), "{told}");
    assert!(told.contains("2 subscriptions") && told.contains(&first) && told.contains(&second), "{told}");
    assert_eq!((payer.plan().await, &report["repaired"]), ("professional".into(), &json!(0)));
    // When the larger ends the other counts.
    stripe.set_status(&second, "canceled");
    payer.hear().await;
    assert_eq!(payer.plan().await, "starter");
    // A price that is no plan's.
    stripe.change(&first, |there| reprice(there, "price_other", 1000));
    payer.hear().await;
    assert_eq!(payer.plan().await, "starter", "what was paid for goes on");
    let report = reconcile(&app, &staff.client).await;
    assert!(findings(&report).contains("price_other"), "{report}");
}

#[tokio::test]
async fn an_event_whose_job_never_ran_is_handled_an_hour_later() {
    let (app, stripe) = pair(|_| {});
    let staff = app.superuser().await;
    let (payer, subscription) = Payer::of(&app, &stripe).await.paying("starter").await;
    // One that only its event tells: the comparison looks at subscriptions.
    let charge = stripe.refund(&payer.customer(), 1000, "sgd");
    let event = payer.events_of("charge.refunded").pop().unwrap();
    let payload = event.to_string().replace('\'', "''");
    app.sql(&format!(
        "insert into platform.stripe_events (id, type, created_at, livemode, payload, received_at) \
         values ('{}', 'charge.refunded', now(), false, '{payload}', now() - interval '1 hour')",
        text(&event, "id")
    ))
    .await;
    let report = reconcile(&app, &staff.client).await;
    assert!(findings(&report).contains("waited"), "{report}");
    handled(&app, &[event]).await;
    let page = payer.team.owner.get("/subscriptions/adjustments").await.expect(200);
    assert_eq!(page["data"][0]["id"], charge.as_str());
    assert_eq!(stripe.subscription(&subscription)["status"], "active");
}

#[tokio::test]
async fn a_comparison_that_stripe_does_not_answer_says_so() {
    let (app, stripe) = pair(|_| {});
    let staff = app.superuser().await;
    let (payer, _) = Payer::of(&app, &stripe).await.paying("starter").await;
    for _ in 0..3 {
        stripe.fail("GET", "/v1/subscriptions?", Fault::Status(500));
    }
    let report = reconcile(&app, &staff.client).await;
    assert!(report["error"].is_string() && report["finished_at"].is_string(), "{report}");
    assert_eq!(payer.plan().await, "starter", "nothing is taken away because nobody answers");
}

// Without Stripe, and what nobody must see.

#[tokio::test]
async fn without_stripe_everything_works_but_to_pay() {
    let app = TestApp::shared();
    let team = app.team().await;
    team.plan("free").await;
    for (what, body) in [("checkout", json!({"plan": "starter"})), ("portal", json!(null))] {
        let answer = team.owner.post(&format!("/subscriptions/{what}"), body).await;
        let error = answer.refused(503, "SERVICE_UNAVAILABLE");
        assert!(error["message"].as_str().unwrap().contains("STRIPE_SECRET_KEY"), "{error}");
    }
    let error = send(&app, b"{}", Some("t=1,v1=00")).await.refused(503, "SERVICE_UNAVAILABLE");
    assert!(error["message"].as_str().unwrap().contains("STRIPE_SECRET_KEY"), "{error}");
    let staff = app.superuser().await;
    let path = "/admin/billing/reconciliations";
    staff.client.post(path, json!(null)).await.refused(503, "SERVICE_UNAVAILABLE");
    let current = team.owner.get("/subscriptions/current").await.expect(200);
    assert_eq!((&current["state"], &current["plan"]), (&json!("free"), &json!("free")));
    let begun = team.owner.post("/subscriptions/trial", json!({"plan": "starter"})).await.expect(200);
    assert_eq!(begun["state"], "trialing");
    let body = json!({"plan": "professional"});
    team.owner.post("/subscriptions/upgrade", body).await.expect(200);
    let ended = team.owner.post("/subscriptions/cancel", json!({})).await.expect(200);
    assert_eq!(ended["state"], "free");
    let plans = list(&app.anonymous().get("/plans").await.expect(200));
    let names: Vec<String> = plans.iter().map(|plan| text(plan, "name")).collect();
    assert_eq!(names, ["free", "starter", "professional", "enterprise"]);
    assert_eq!((&plans[1]["trial_days"], &plans[3]["trial_days"]), (&json!(14), &json!(0)));
    assert_eq!((&plans[3]["price"], &plans[3]["limits"]["users"]), (&Value::Null, &Value::Null));
}

#[tokio::test]
async fn without_a_webhook_secret_no_event_is_taken() {
    let (app, stripe) = pair(|config| config.stripe.webhook_secret = None);
    let event = stripe.event("product.created", json!({"id": "prod_1", "object": "product"}));
    let error = deliver(&app, &event).await.refused(503, "SERVICE_UNAVAILABLE");
    assert!(error["message"].as_str().unwrap().contains("STRIPE_WEBHOOK_SECRET"), "{error}");
    assert_eq!(rows(&app, &event).await, 0);
    // Nor is one signed with nothing where the secret is nothing.
    let (app, _) = pair(|config| config.stripe.webhook_secret = Some(" , ".into()));
    let body = event.to_string().into_bytes();
    let signature = sign(&body, "", app.app.clock.now().timestamp());
    assert_ne!(send(&app, &body, Some(&signature)).await.status, 200);
    assert_eq!(rows(&app, &event).await, 0);
}

#[tokio::test]
async fn no_answer_has_a_secret() {
    let (payer, subscription) = Payer::new().await.paying("starter").await;
    payer.stripe.fail_payment(&subscription);
    payer.hear().await;
    let staff = payer.app.superuser().await;
    let mut answers = Vec::new();
    for path in [
        "/plans",
        "/subscriptions/current",
        "/subscriptions/invoices",
        "/subscriptions/adjustments",
        "/events?limit=100",
        "/audit-log?limit=100",
        "/webhook-events",
        "/notifications",
        "/openapi.json",
        "/health",
        "/ready",
    ] {
        answers.push((path, payer.team.owner.get(path).await));
    }
    for path in [
        "/admin/plans/starter",
        "/admin/billing/events?page_size=100",
        "/admin/billing/reconciliations",
        "/admin/audit-log",
        "/admin/jobs",
    ] {
        answers.push((path, staff.client.get(path).await));
    }
    answers.push(("portal", payer.post("portal", json!(null)).await));
    answers.push(("checkout", payer.checkout("starter").await));
    answers.push(("a lost signature", send(&payer.app, b"{}", None).await));
    for (path, answer) in answers {
        let said = format!("{:?} {}", answer.headers, answer.text);
        assert!(!said.contains(SECRET_KEY) && !said.contains(WEBHOOK_SECRET), "{path}: {said}");
    }
    let customer = payer.customer();
    let member = payer.team.join(Role::Viewer).await;
    let seen = member.client.get("/events?limit=100").await;
    assert!(!seen.text.contains("invoice.") && !seen.text.contains(&customer), "{}", seen.text);
}

#[test]
fn the_command_line_shows_no_key_of_stripe() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rowhouse"));
    command.arg("config").env_clear().env("PATH", std::env::var_os("PATH").unwrap());
    command
        .env("DATABASE_URL", "postgres://someone:word@db.example.com/rows")
        .env("ROWHOUSE_SECRET_KEY", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=")
        .env("STRIPE_SECRET_KEY", "sk_test_not_to_be_seen")
        .env("STRIPE_WEBHOOK_SECRET", "whsec_not_to_be_seen")
        .env("STRIPE_PRICE_STARTER", "price_to_be_seen")
        .current_dir(std::env::temp_dir());
    let output = command.output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("price_to_be_seen") && !said.contains("not_to_be_seen"), "{said}");
}

// Staff.

async fn put(client: &Client, path: &str, body: Value) -> Answer {
    Answer::of(client.request(Method::PUT, path).json(&body)).await
}

#[tokio::test]
async fn a_plan_that_staff_give_wins_until_they_take_it_back() {
    let (payer, subscription) = Payer::new().await.paying("starter").await;
    let staff = payer.app.superuser().await;
    let path = format!("/admin/organizations/{}/plan", payer.team.id);
    let given = put(&staff.client, &path, json!({"plan": "enterprise"})).await.expect(200);
    assert_eq!(given["plan"], "enterprise");
    let current = payer.current().await;
    assert_eq!((&current["plan"], &current["state"]), (&json!("enterprise"), &json!("active")));
    assert_eq!(payer.plan().await, "enterprise");
    let told = payer.told("organization.plan_changed").await;
    assert_eq!(
        (&told[0]["data"]["plan"], &told[0]["actor_kind"]),
        (&json!("enterprise"), &json!("superuser"))
    );
    // Whatever happens to what is paid.
    payer.stripe.change(&subscription, |there| reprice(there, "price_professional", 19900));
    payer.hear().await;
    assert_eq!(payer.plan().await, "enterprise");
    payer.stripe.set_status(&subscription, "canceled");
    payer.hear().await;
    assert_eq!(
        (payer.plan().await, payer.current().await["state"].clone()),
        ("enterprise".into(), json!("free"))
    );
    payer.checkout("professional").await.expect(200);
    payer.pay();
    payer.hear().await;
    assert_eq!(payer.plan().await, "enterprise");
    let back = put(&staff.client, &path, json!({"plan": null})).await.expect(200);
    assert_eq!((&back["plan"], payer.plan().await), (&json!("professional"), "professional".into()));
    payer.create_project().await.expect(201);
    put(&staff.client, &path, json!({"plan": "gold"})).await.refused(400, "VALIDATION_ERROR");
    put(&payer.team.owner, &path, json!({"plan": "enterprise"})).await.refused(403, "PERMISSION_DENIED");
    let query = format!("/admin/audit-log?organization_id={}&action=organization.plan_set", payer.team.id);
    assert_eq!(list(&staff.client.get(&query).await.expect(200)).len(), 2);
}

#[tokio::test]
async fn what_staff_change_about_a_plan_is_in_force_at_once() {
    let app = TestApp::with(|_| {});
    let there = app.beside();
    let (staff, team) = (app.superuser().await, app.team().await);
    team.plan("free").await;
    let path = "/admin/plans/free";
    team.project("First").await;
    let new = json!({"name": "Second"});
    team.owner.post("/projects", new.clone()).await.refused(402, "PLAN_LIMIT_REACHED");
    let seen = staff.client.get(path).await;
    let current = staff.client.header("if-match", seen.header("etag"));
    let before = seen.expect(200);
    assert_eq!((&before["limits"]["projects"], &before["price"]), (&json!(1), &money("0.00", "SGD")));
    current.patch(path, json!({"projects": 2})).await.expect(200);
    current.patch(path, json!({"projects": 9})).await.refused(412, "PRECONDITION_FAILED");
    team.owner.at(&there).post("/projects", new.clone()).await.expect(201);
    team.owner.post("/projects", new.clone()).await.refused(402, "PLAN_LIMIT_REACHED");
    // Who has more than is allowed keeps it.
    staff.client.patch(path, json!({"projects": 0})).await.expect(200);
    assert_eq!(list(&team.owner.get("/projects").await.expect(200)).len(), 2);
    team.owner.post("/projects", new.clone()).await.refused(402, "PLAN_LIMIT_REACHED");
    let unlimited = staff.client.patch(path, json!({"projects": null})).await.expect(200);
    assert_eq!((&unlimited["limits"]["projects"], &unlimited["limits"]["users"]), (&Value::Null, &json!(5)));
    team.owner.post("/projects", new).await.expect(201);
    for wrong in [
        json!({"projects": -1}),
        json!({"storage_bytes": -1}),
        json!({"users": 1.5}),
        json!({"users": "ten"}),
        json!({"price": money("-1", "SGD")}),
        json!({"price": money("1.005", "SGD")}),
        json!({"price": money("1.50", "JPY")}),
        json!({"price": {"amount": 49, "currency": "SGD"}}),
        json!({"price": money("49", "Dollars")}),
        json!({"features": ["flying"]}),
        json!({"title": ""}),
        json!({"rank": 9}),
        json!({"features": null}),
    ] {
        staff.client.patch(path, wrong.clone()).await.refused(400, "VALIDATION_ERROR");
    }
    let offers = list(&app.anonymous().get("/plans").await.expect(200));
    assert_eq!(
        (&offers[0]["limits"]["projects"], &offers[0]["price"]),
        (&Value::Null, &money("0.00", "SGD"))
    );
    // A feature, here and on the other instance.
    let export = async |client: &Client| client.get("/audit-log/export").await.status.as_u16();
    assert_eq!(export(&team.owner).await, 402);
    staff.client.patch(path, json!({"features": ["audit-export", "audit-export"]})).await.expect(200);
    assert_ne!(export(&team.owner).await, 402);
    within(2, "everywhere", || async { export(&team.owner.at(&there)).await != 402 }).await;
    let log = list(&staff.client.get("/admin/audit-log?action=plan.updated").await.expect(200));
    assert_eq!((log.len(), &log[0]["actor_id"]), (4, &json!(staff.id)));
    team.owner.patch(path, json!({"users": 1000})).await.refused(403, "PERMISSION_DENIED");
}

#[tokio::test]
async fn a_plan_that_staff_give_lifts_what_is_owed() {
    let (app, stripe) = pair_with_a_clock();
    let (payer, subscription) = Payer::of(&app, &stripe).await.paying("starter").await;
    let staff = app.superuser().await;
    stripe.fail_payment(&subscription);
    payer.hear().await;
    app.app.clock.advance(TimeDelta::days(8));
    payer.create_project().await.refused(402, "PAYMENT_REQUIRED");
    let path = format!("/admin/organizations/{}/plan", payer.team.id);
    put(&staff.client, &path, json!({"plan": "enterprise"})).await.expect(200);
    payer.create_project().await.expect(201);
    let current = payer.current().await;
    assert_eq!((&current["access"], &current["state"]), (&json!("full"), &json!("past_due")));
    // What was owed is owed again, from the day of the failed payment.
    put(&staff.client, &path, json!({"plan": null})).await.expect(200);
    payer.create_project().await.refused(402, "PAYMENT_REQUIRED");
}

#[tokio::test]
async fn nothing_more_is_charged_for_an_organization_that_was_deleted() {
    let (payer, subscription) = Payer::new().await.paying("starter").await;
    let other = Payer::new().await.after_a_trial().await;
    other.checkout("starter").await.expect(200);
    for payer in [&payer, &other] {
        payer.team.owner.delete(&payer.team.path("")).await.expect(204);
    }
    let ends = || async { payer.stripe.subscription(&subscription)["cancel_at_period_end"] == true };
    within(10, "the subscription ends with what is paid", ends).await;
    within(10, "nobody can pay any more", || async { other.session()["status"] == "expired" }).await;
    let known = format!(
        "select count(*) from platform.subscriptions where organization_id = '{}' and cancel_at_period_end",
        payer.team.id
    );
    within(10, "that is known", || async { payer.app.number(&known).await == 1 }).await;
    // Whoever restores it goes on.
    payer.team.owner.post(&payer.team.path("/restore"), json!(null)).await.expect(200);
    let current = payer.post("reactivate", json!(null)).await.expect(200);
    assert_eq!((&current["state"], &current["cancel_at_period_end"]), (&json!("active"), &json!(false)));
}

#[tokio::test]
async fn whoever_pays_for_what_was_deleted_pays_once() {
    let payer = Payer::new().await.after_a_trial().await;
    payer.checkout("starter").await.expect(200);
    // Somebody is paying while somebody else deletes.
    let subscription = payer.pay();
    payer.team.owner.delete(&payer.team.path("")).await.expect(204);
    for event in payer.events() {
        deliver(&payer.app, &event).await.expect(200);
    }
    let ends = || async { payer.stripe.subscription(&subscription)["cancel_at_period_end"] == true };
    within(10, "the subscription ends with what is paid", ends).await;
}

#[tokio::test]
async fn a_price_that_is_not_sold_any_more_is_still_that_plan_s() {
    let (app, stripe) =
        pair(|config| config.stripe.price_starter = Some("price_other, price_starter".into()));
    let (payer, subscription) = Payer::of(&app, &stripe).await.paying("starter").await;
    assert_eq!(payer.current().await["price"], money("10.00", "SGD"));
    stripe.change(&subscription, |there| reprice(there, "price_starter", 4900));
    payer.hear().await;
    assert_eq!(payer.plan().await, "starter");
    assert_eq!(payer.current().await["price"], money("49.00", "SGD"));
    payer.post("upgrade", json!({"plan": "professional"})).await.expect(200);
    payer.post("downgrade", json!({"plan": "starter"})).await.expect(200);
    assert_eq!(payer.current().await["price"], money("10.00", "SGD"));
}

#[tokio::test]
async fn an_owner_tries_one_organization_at_a_time() {
    let payer = Payer::new().await;
    let made = payer.team.founder.client.post("/organizations", json!({"name": "Second"})).await.expect(201);
    let second = payer.team.founder.client.within(&text(&made, "id"));
    payer.post("trial", json!({"plan": "starter"})).await.expect(200);
    let trial = |client: Client| async move {
        client.post("/subscriptions/trial", json!({"plan": "professional"})).await
    };
    trial(second.clone()).await.refused(409, "CONFLICT");
    payer.post("cancel", json!({})).await.expect(200);
    trial(second).await.expect(200);
}

#[tokio::test]
async fn whom_stripe_does_not_know_keeps_what_is_known() {
    let (app, stripe) = pair(|_| {});
    let (payer, subscription) = Payer::of(&app, &stripe).await.paying("starter").await;
    // As with the key of another account.
    stripe.fail("GET", "/v1/subscriptions", Fault::Status(404));
    stripe.fail("GET", "/v1/customers/", Fault::Status(404));
    stripe.change(&subscription, |there| reprice(there, "price_professional", 19900));
    deliver(&app, &payer.events().pop().unwrap()).await.expect(200);
    a_while().await;
    assert_eq!(
        (payer.plan().await, payer.current().await["state"].clone()),
        ("starter".into(), json!("active"))
    );
    // When it does, it is looked at again.
    payer.hear_of(&payer.events().iter().map(again).collect::<Vec<_>>()).await;
    assert_eq!(payer.plan().await, "professional");
}

#[tokio::test]
async fn whoever_was_declined_tries_again_with_the_same_key() {
    let (app, stripe) = pair(|_| {});
    let (payer, _) = Payer::of(&app, &stripe).await.paying("starter").await;
    let client = payer.team.owner.header("idempotency-key", "upgrade-1");
    let upgrade = || async { client.post("/subscriptions/upgrade", json!({"plan": "professional"})).await };
    stripe.decline_next_payment();
    let declined = upgrade().await.refused(402, "PAYMENT_REQUIRED");
    assert!(declined["details"]["portal"].is_string(), "{declined}");
    assert_eq!(upgrade().await.expect(200)["plan"], "professional");
    assert_eq!(upgrade().await.header("idempotent-replayed"), "true");
}

#[tokio::test]
async fn a_cancellation_in_the_portal_is_one_and_can_be_taken_back() {
    let (payer, subscription) = Payer::new().await.paying("starter").await;
    // As the portal does it: by a time.
    payer.stripe.change(&subscription, |there| {
        there["cancel_at"] = there["items"]["data"][0]["current_period_end"].clone();
    });
    payer.hear().await;
    assert_eq!(payer.current().await["cancel_at_period_end"], true);
    let current = payer.post("reactivate", json!(null)).await.expect(200);
    assert_eq!(current["cancel_at_period_end"], false);
    assert_eq!(payer.stripe.subscription(&subscription)["cancel_at"], Value::Null);
    // An end that is far away is none yet: it is charged until then, and can be canceled before.
    payer.stripe.change(&subscription, |there| there["cancel_at"] = json!(4_000_000_000_i64));
    payer.hear().await;
    assert_eq!(payer.current().await["cancel_at_period_end"], false);
    assert_eq!(payer.post("cancel", json!({})).await.expect(200)["cancel_at_period_end"], true);
}

#[tokio::test]
async fn all_that_is_paid_for_a_deleted_organization_ends() {
    let (payer, first) = Payer::new().await.paying("starter").await;
    let second =
        subscribe_at_stripe(&payer.app, &payer.stripe, &payer.customer(), "price_professional").await;
    payer.team.owner.delete(&payer.team.path("")).await.expect(204);
    let ends = |id: &str| payer.stripe.subscription(id)["cancel_at_period_end"] == true;
    within(10, "both end", || async { ends(&first) && ends(&second) }).await;
}

#[tokio::test]
async fn what_has_no_trial_is_paid_from_the_first_day() {
    let (app, stripe) = pair(|config| config.stripe.price_enterprise = Some("price_other".into()));
    let payer = Payer::of(&app, &stripe).await;
    payer.post("trial", json!({"plan": "starter"})).await.expect(200);
    payer.checkout("enterprise").await.expect(200);
    let asked = payer.asked_for_a_page();
    assert_eq!(field(&asked, "subscription_data[trial_end]"), None);
    assert_eq!(field(&asked, "subscription_data[trial_period_days]"), None);
    let other = Payer::of(&app, &stripe).await;
    other.checkout("starter").await.expect(200);
    other.pay();
    other.hear().await;
    assert_eq!(other.current().await["state"], "trialing");
    let current = other.post("upgrade", json!({"plan": "enterprise"})).await.expect(200);
    assert_eq!((&current["plan"], &current["state"]), (&json!("enterprise"), &json!("active")));
}

#[tokio::test]
async fn a_webhook_of_any_length_is_not_read_to_its_end() {
    let (app, _) = &*SHARED;
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let pieces = (0..64).map(|_| Ok::<_, std::io::Error>(vec![b' '; 65_536]));
    let body = reqwest::Body::wrap_stream(futures_util::stream::iter(pieces));
    let request = http.post(format!("{}/webhooks/stripe", app.base)).header("stripe-signature", "t=1,v1=00");
    Answer::of(request.header("content-type", "text/plain").body(body))
        .await
        .refused(413, "PAYLOAD_TOO_LARGE");
}

#[tokio::test]
async fn prices_are_made_at_stripe_once_and_compared_with_the_plans() {
    let (app, stripe) = pair(|_| {});
    let run = |what: &str, prices: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rowhouse"));
        command.args(["stripe", what]).env_clear().env("DATABASE_URL", app.database());
        command.env("ROWHOUSE_SECRET_KEY", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=");
        command.env("STRIPE_SECRET_KEY", SECRET_KEY).env("STRIPE_WEBHOOK_SECRET", WEBHOOK_SECRET);
        command.env("STRIPE_BASE_URL", stripe.base_url()).env("LOG_LEVEL", "off");
        for line in prices.lines() {
            let (name, value) = line.split('#').next().unwrap().split_once('=').unwrap();
            command.env(name, value.trim());
        }
        let output = command.output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(said).unwrap())
    };
    let (made, prices) = run("setup", "");
    assert!(made && prices.contains("STRIPE_PRICE_STARTER=price_"), "{prices}");
    assert!(prices.contains("# SGD 49.00 a month") && prices.lines().count() == 2, "{prices}");
    assert_eq!(run("setup", ""), (true, prices.clone()), "what is there is found again");
    let (agrees, said) = run("check", &prices);
    assert!(agrees && said.contains("Stripe charges what the plans show."), "{said}");
    app.sql("update platform.plans set price_amount = 59 where name = 'starter'").await;
    let (agrees, said) = run("check", &prices);
    assert!(
        !agrees && said.contains("Stripe charges SGD 49.00 for starter, the plan shows SGD 59.00"),
        "{said}"
    );
    let (made, dearer) = run("setup", "");
    assert!(made && dearer.contains("# SGD 59.00 a month"), "{dearer}");
    assert_eq!(prices.lines().nth(1), dearer.lines().nth(1), "the other price is as it was");
    assert!(run("check", &dearer).0);
    let (agrees, said) = run("check", "");
    assert!(!agrees && said.contains("STRIPE_PRICE_PROFESSIONAL is missing: nobody can buy"), "{said}");
}

#[tokio::test]
async fn a_customer_that_stripe_does_not_know_is_forgotten_by_a_command() {
    let (app, stripe) = pair(|_| {});
    let (payer, _) = Payer::of(&app, &stripe).await.paying("starter").await;
    let mut command = Command::new(env!("CARGO_BIN_EXE_rowhouse"));
    command.args(["stripe", "unlink", &payer.team.slug]).env_clear().env("DATABASE_URL", app.database());
    command.env("ROWHOUSE_SECRET_KEY", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=");
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains(&payer.customer()), "{said}");
    within(5, "the plan is known", || async { payer.plan().await == "free" }).await;
    payer.create_project().await.expect(201);
    payer.post("portal", json!(null)).await.refused(409, "CONFLICT");
}
