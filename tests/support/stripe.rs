//! A stand-in for Stripe: keeps customers, subscriptions, invoices and the like in memory, answers the
//! calls that the product makes, and refuses what it does not know, so that no parameter is ignored
//! unseen. Events are written down; nothing is sent until a test delivers it.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, LazyLock, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, Months};
use hmac::{Hmac, Mac};
use rowhouse::{clock::Clock, config::Config};
use serde_json::{Map, Value, json};
use sha2::Sha256;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};
use uuid::Uuid;

use super::{Answer, Running, TestApp, on_the_servers_runtime};

pub const SECRET_KEY: &str = "sk_test_stand_in";
pub const WEBHOOK_SECRET: &str = "whsec_stand_in_secret";

/// The version that async-stripe asks for.
const API_VERSION: &str = "2026-09-30.endive";

const DAY: i64 = 86_400;

/// One Stripe account, which a test has to itself.
#[derive(Clone)]
pub struct Stripe {
    address: SocketAddr,
    desk: Arc<Mutex<Desk>>,
    /// Dropped with the last clone.
    #[allow(dead_code)]
    running: Arc<Running>,
}

/// What goes wrong with one request.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// Answers this and does nothing.
    Status(u16),
    /// Does the work, and answers this.
    StatusAfter(u16),
    /// Does the work later.
    Delay(Duration),
    /// Does the work, and answers later.
    DelayAfter(Duration),
    /// Closes the connection unanswered, with nothing done.
    Hangup,
}

/// A request, and what became of it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    /// With the query.
    pub path: String,
    pub form: Vec<(String, String)>,
    pub idempotency_key: Option<String>,
    /// The status that was answered; 0 is none.
    pub status: u16,
}

impl Stripe {
    /// An empty account with three prices. Not from within the servers' runtime.
    pub fn start() -> Self {
        let desk = Arc::new(Mutex::new(Desk::new()));
        let at = desk.clone();
        let (address, server) = on_the_servers_runtime(async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let server = tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(session(stream, at.clone()));
                }
            });
            (address, server.abort_handle())
        });
        Self { address, desk, running: Arc::new(Running(vec![server])) }
    }

    pub fn base_url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// Makes a server use this account.
    pub fn configure(&self, config: &mut Config) {
        config.stripe.secret_key = Some(SECRET_KEY.into());
        config.stripe.webhook_secret = Some(WEBHOOK_SECRET.into());
        config.stripe.base_url = self.base_url();
        config.stripe.timeout_seconds = 2;
        config.stripe.price_starter = Some("price_starter".into());
        config.stripe.price_professional = Some("price_professional".into());
        config.stripe.price_enterprise = None;
    }

    /// From now on the time here is that of this clock.
    pub fn follow(&self, clock: &Clock) {
        self.desk().clock = clock.clone();
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap()
    }
}

/// What the product asked, and how it is answered.
impl Stripe {
    /// The next request of this method whose path begins so goes wrong. Of several faults each comes once,
    /// in this order.
    pub fn fail(&self, method: &str, path_prefix: &str, fault: Fault) {
        self.desk().faults.push((method.into(), path_prefix.into(), fault));
    }

    /// The next change of price that is to be paid at once is declined.
    pub fn decline_next_payment(&self) {
        self.desk().declines = true;
    }

    /// Everything so far, oldest first.
    pub fn requests(&self) -> Vec<Seen> {
        self.desk().requests.clone()
    }

    pub fn subscription(&self, id: &str) -> Value {
        self.desk().must("subscription", id).clone()
    }

    /// Those that were not deleted, oldest first.
    pub fn customers(&self) -> Vec<Value> {
        self.desk().all("customer", |customer| customer["deleted"] != true)
    }

    /// Oldest first, with those that are canceled.
    pub fn subscriptions_of(&self, customer: &str) -> Vec<Value> {
        self.desk().all("subscription", |subscription| subscription["customer"] == customer)
    }

    /// Checkout sessions, oldest first.
    pub fn sessions(&self) -> Vec<Value> {
        self.desk().all("checkout.session", |_| true)
    }
}

/// What happens at Stripe without the product.
impl Stripe {
    /// The customer pays; answers the subscription's id.
    pub fn complete_checkout(&self, session_id: &str) -> String {
        self.desk().complete_checkout(session_id)
    }

    /// One event: `.paused`, `.resumed` from paused to active, `.deleted` for canceled, else `.updated`.
    pub fn set_status(&self, subscription: &str, status: &str) {
        self.desk().set_status(subscription, status);
    }

    /// Any other change.
    pub fn change(&self, subscription: &str, change: impl FnOnce(&mut Value)) {
        let mut desk = self.desk();
        change(desk.must("subscription", subscription));
        desk.tell("customer.subscription.updated", "subscription", subscription);
    }

    /// A change whose event was lost.
    pub fn change_silently(&self, subscription: &str, change: impl FnOnce(&mut Value)) {
        change(self.desk().must("subscription", subscription));
    }

    /// The next period begins and its payment fails; answers the invoice's id.
    pub fn fail_payment(&self, subscription: &str) -> String {
        self.desk().fail_payment(subscription)
    }

    /// The customer pays an open invoice.
    pub fn pay(&self, invoice: &str) {
        self.desk().pay(invoice);
    }

    /// The next period begins and is paid. A subscription that was to end with its period ends.
    pub fn renew(&self, subscription: &str) {
        self.desk().renew(subscription);
    }

    pub fn trial_will_end(&self, subscription: &str) {
        self.desk().tell("customer.subscription.trial_will_end", "subscription", subscription);
    }

    /// Gives back so much of the last invoice that was paid, or all of a charge of just that; answers the
    /// charge's id.
    pub fn refund(&self, customer: &str, amount_minor: i64, currency: &str) -> String {
        self.desk().refund(customer, amount_minor, currency)
    }

    /// The customer's bank disputes a charge; answers the dispute's id.
    pub fn dispute(&self, customer: &str, amount_minor: i64, currency: &str) -> String {
        self.desk().dispute(customer, amount_minor, currency)
    }

    /// Ends the customer's subscriptions too.
    pub fn delete_customer(&self, customer: &str) {
        self.desk().delete_customer(customer);
    }

    pub fn update_customer(&self, customer: &str, change: impl FnOnce(&mut Value)) {
        let mut desk = self.desk();
        change(desk.must("customer", customer));
        desk.tell("customer.updated", "customer", customer);
    }
}

/// Events.
impl Stripe {
    /// All so far, oldest first.
    pub fn events(&self) -> Vec<Value> {
        self.desk().events.clone()
    }

    /// All so far, oldest first, to be forgotten here.
    pub fn take_events(&self) -> Vec<Value> {
        std::mem::take(&mut self.desk().events)
    }

    /// One that Stripe knows nothing of, with a new id.
    pub fn event(&self, kind: &str, object: Value) -> Value {
        self.desk().event(kind, object)
    }
}

/// The header as Stripe makes it. With other code than the product's, so that both cannot be wrong alike.
pub fn sign(body: &[u8], secret: &str, timestamp: i64) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(format!("{timestamp}.").as_bytes());
    mac.update(body);
    let hex: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("t={timestamp},v1={hex}")
}

/// Posts an event to a server, signed for now.
pub async fn deliver(app: &TestApp, event: &Value) -> Answer {
    let body = event.to_string();
    let signature = sign(body.as_bytes(), WEBHOOK_SECRET, app.app.clock.now().timestamp());
    let request = app
        .http
        .post(format!("{}/webhooks/stripe", app.base))
        .header("content-type", "application/json; charset=utf-8")
        .header("stripe-signature", signature)
        .body(body);
    Answer::of(request).await
}

/// Counts up from somewhere, so that no two tests over one database share an id.
fn new_id(prefix: &str) -> String {
    static NEXT: LazyLock<AtomicU64> =
        LazyLock::new(|| AtomicU64::new((Uuid::now_v7().as_u128() as u64) >> 20));
    format!("{prefix}_{:014x}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The parameters of a request: names may have brackets.
type Fields = [(String, String)];

type Outcome<T = Value> = Result<T, Refusal>;

fn field<'a>(fields: &'a Fields, name: &str) -> Option<&'a str> {
    fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

fn required<'a>(fields: &'a Fields, name: &str) -> Outcome<&'a str> {
    field(fields, name).filter(|value| !value.is_empty()).ok_or_else(|| {
        Refusal::invalid("parameter_missing", &format!("Missing required param: {name}.")).about(name)
    })
}

/// A parameter that is a number.
fn number(fields: &Fields, name: &str) -> Outcome<Option<i64>> {
    let Some(text) = field(fields, name) else { return Ok(None) };
    let refusal = || Refusal::invalid("parameter_invalid_integer", &format!("Invalid integer: {text}"));
    text.parse().map(Some).map_err(|_| refusal().about(name))
}

/// Whether a parameter is absent or is this value.
fn fits(fields: &Fields, name: &str, value: &Value) -> bool {
    field(fields, name).is_none_or(|wanted| *value == wanted)
}

/// Refuses parameters that nobody looks at.
fn only(fields: &Fields, known: &[&str]) -> Outcome<()> {
    let stranger = fields.iter().find(|(name, _)| !known.contains(&root(name)));
    stranger.map_or(Ok(()), |(name, _)| Err(Refusal::unknown(name)))
}

/// Refuses what nobody looks at among the parameters of a group: its known names begin so.
fn only_within(fields: &Fields, group: &str, known: &[&str]) -> Outcome<()> {
    let known: Vec<String> = known.iter().map(|rest| format!("{group}{rest}")).collect();
    let strange = |name: &str| root(name) == group && !known.iter().any(|known| name.starts_with(known));
    let stranger = fields.iter().find(|(name, _)| strange(name));
    stranger.map_or(Ok(()), |(name, _)| Err(Refusal::unknown(name)))
}

/// `items` of `items[0][price]`.
fn root(name: &str) -> &str {
    name.split('[').next().unwrap_or_default()
}

/// Sets what `<name>[<key>]` says; an empty value removes.
fn merge(fields: &Fields, name: &str, into: &mut Map<String, Value>) {
    for (known, value) in fields {
        let rest = known.strip_prefix(name).and_then(|rest| rest.strip_prefix('[')?.strip_suffix(']'));
        match rest {
            Some(key) if value.is_empty() => drop(into.remove(key)),
            Some(key) => drop(into.insert(key.into(), json!(value))),
            None => {}
        }
    }
}

fn metadata(fields: &Fields, name: &str) -> Map<String, Value> {
    let mut metadata = Map::new();
    merge(fields, name, &mut metadata);
    metadata
}

/// Adds fields: `json!` takes some forty at once.
fn plus(mut object: Value, more: Value) -> Value {
    if let (Value::Object(fields), Value::Object(more)) = (&mut object, more) {
        fields.extend(more);
    }
    object
}

/// Adds fields without a value.
fn with_nulls(mut object: Value, names: &str) -> Value {
    for name in names.split(' ') {
        object[name] = Value::Null;
    }
    object
}

fn text<'a>(object: &'a Value, key: &str) -> &'a str {
    object[key].as_str().unwrap_or_default()
}

fn whole(object: &Value, key: &str) -> i64 {
    object[key].as_i64().unwrap_or_default()
}

/// An error, as Stripe words them.
#[derive(Clone, Debug)]
struct Refusal {
    status: u16,
    kind: &'static str,
    code: Option<&'static str>,
    message: String,
    param: Option<String>,
}

impl Refusal {
    fn new(status: u16, kind: &'static str, code: Option<&'static str>, message: &str) -> Self {
        Self { status, kind, code, message: message.into(), param: None }
    }

    fn invalid(code: &'static str, message: &str) -> Self {
        Self::new(400, "invalid_request_error", Some(code), message)
    }

    /// Nothing has this id, which is in the path.
    fn missing(kind: &str, id: &str) -> Self {
        Self { status: 404, ..Self::invalid("resource_missing", &format!("No such {kind}: '{id}'")) }
    }

    /// Nothing has this id, which is a parameter.
    fn missing_in(param: &str, kind: &str, id: &str) -> Self {
        Self { status: 400, ..Self::missing(kind, id) }.about(param)
    }

    fn about(self, param: &str) -> Self {
        Self { param: Some(param.into()), ..self }
    }

    /// Stripe does not know this parameter, or the stand-in does not.
    fn unknown(name: &str) -> Self {
        Self::invalid("parameter_unknown", &format!("Received unknown parameter: {name}")).about(name)
    }

    fn declined() -> Self {
        Self::new(402, "card_error", Some("card_declined"), "Your card was declined.")
    }

    /// As if for some reason of Stripe's own.
    fn faked(status: u16) -> Self {
        let (kind, code, message) = match status {
            401 => ("invalid_request_error", None, "Invalid API Key provided: sk_test_********_in"),
            402 => return Self::declined(),
            404 => ("invalid_request_error", Some("resource_missing"), "No such object."),
            409 => (
                "invalid_request_error",
                Some("lock_timeout"),
                "This object cannot be accessed right now because another API request is accessing it.",
            ),
            429 => ("invalid_request_error", Some("rate_limit"), "Request rate limit exceeded."),
            500.. => ("api_error", None, "An unknown error occurred."),
            _ => ("invalid_request_error", None, "Invalid request."),
        };
        Self::new(status, kind, code, message)
    }
}

#[derive(Clone, Debug)]
struct Reply {
    status: u16,
    body: Value,
    /// Whether this is what an idempotency key was answered before.
    replayed: bool,
}

impl From<Outcome> for Reply {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Ok(body) => Self { status: 200, body, replayed: false },
            Err(refusal) => refusal.into(),
        }
    }
}

impl From<Refusal> for Reply {
    fn from(refusal: Refusal) -> Self {
        let Refusal { status, kind, code, message, param } = refusal;
        let decline_code = (kind == "card_error").then_some("generic_decline");
        let error = json!({
            "type": kind, "code": code, "decline_code": decline_code, "message": message, "param": param,
        });
        Self { status, body: json!({"error": error}), replayed: false }
    }
}

/// A request as it came.
struct Request {
    method: String,
    /// With the query.
    path: String,
    headers: HashMap<String, String>,
    /// The body's fields.
    form: Vec<(String, String)>,
}

impl Request {
    async fn read(from: &mut BufReader<TcpStream>) -> Option<Self> {
        let mut line = String::new();
        from.read_line(&mut line).await.ok()?;
        let mut words = line.split(' ');
        let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
        let mut headers = HashMap::new();
        loop {
            line.clear();
            from.read_line(&mut line).await.ok()?;
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        let mut body = vec![0; length];
        from.read_exact(&mut body).await.ok()?;
        let form = url::form_urlencoded::parse(&body).into_owned().collect();
        Some(Self { method, path, headers, form })
    }

    /// Those of the query and those of the body.
    fn fields(&self) -> Vec<(String, String)> {
        let query = self.path.split_once('?').map_or("", |(_, query)| query);
        let query = url::form_urlencoded::parse(query.as_bytes()).into_owned();
        query.chain(self.form.iter().cloned()).collect()
    }

    fn header(&self, name: &str) -> Option<String> {
        self.headers.get(name).cloned()
    }

    fn seen(self, status: u16) -> Seen {
        let idempotency_key = self.header("idempotency-key");
        Seen { method: self.method, path: self.path, form: self.form, idempotency_key, status }
    }
}

/// One request for each connection.
async fn session(stream: TcpStream, desk: Arc<Mutex<Desk>>) -> Option<()> {
    let mut stream = BufReader::new(stream);
    let request = Request::read(&mut stream).await?;
    let fault = desk.lock().unwrap().fault(&request);
    if let Some(Fault::Delay(wait)) = fault {
        tokio::time::sleep(wait).await;
    }
    let reply = {
        let mut desk = desk.lock().unwrap();
        let reply = match fault {
            Some(Fault::Hangup) => None,
            Some(Fault::Status(status)) => Some(Refusal::faked(status).into()),
            Some(Fault::StatusAfter(status)) => Some(desk.work(&request, Some(status))),
            Some(Fault::Delay(_) | Fault::DelayAfter(_)) | None => Some(desk.work(&request, None)),
        };
        let status = reply.as_ref().map_or(0, |reply| reply.status);
        desk.requests.push(request.seen(status));
        reply
    };
    let Reply { status, body, replayed } = reply?;
    if let Some(Fault::DelayAfter(wait)) = fault {
        tokio::time::sleep(wait).await;
    }
    let (body, id) = (body.to_string(), new_id("req"));
    let answer = format!(
        "HTTP/1.1 {status} Test\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         request-id: {id}\r\nidempotent-replayed: {replayed}\r\nconnection: close\r\n\r\n{body}",
        body.len(),
    );
    stream.write_all(answer.as_bytes()).await.ok()?;
    stream.shutdown().await.ok()
}

/// The account.
struct Desk {
    clock: Clock,
    requests: Vec<Seen>,
    faults: Vec<(String, String, Fault)>,
    declines: bool,
    /// What idempotency keys stand for.
    kept: HashMap<String, Kept>,
    /// Objects of every kind, in the order in which they were made.
    objects: Vec<Value>,
    /// What checkout sessions are to make, by their id.
    asked: HashMap<String, Asked>,
    events: Vec<Value>,
    /// The request that events come from, as they say it.
    cause: Value,
}

/// A request with an idempotency key.
struct Kept {
    path: String,
    /// Sorted, for metadata comes in any order.
    form: Vec<(String, String)>,
    reply: Reply,
}

/// The subscription that a checkout session is for.
#[derive(Clone)]
struct Asked {
    price: Value,
    quantity: i64,
    metadata: Map<String, Value>,
    trial_days: Option<i64>,
    trial_end: Option<i64>,
    /// What becomes of it when the trial ends and there is no card.
    without_card: String,
}

/// Answering.
impl Desk {
    fn new() -> Self {
        let mut desk = Self {
            clock: Clock::default(),
            requests: Vec::new(),
            faults: Vec::new(),
            declines: false,
            kept: HashMap::new(),
            objects: Vec::new(),
            asked: HashMap::new(),
            events: Vec::new(),
            cause: nobody(),
        };
        let now = desk.now();
        for (name, amount, lookup_key) in [
            ("starter", 4900, Some("rowhouse_starter")),
            ("professional", 19900, None),
            ("other", 1000, None),
        ] {
            let product = format!("prod_{name}");
            desk.objects.push(product_object(&product, name, now));
            let recurring = json!({"interval": "month", "interval_count": 1});
            let mut price = price_object(&product, "sgd", amount, recurring, lookup_key, now);
            price["id"] = json!(format!("price_{name}"));
            desk.objects.push(price);
        }
        desk
    }

    fn now(&self) -> i64 {
        self.clock.now().timestamp()
    }

    /// The fault that is meant for this request.
    fn fault(&mut self, request: &Request) -> Option<Fault> {
        let meant = |(method, prefix, _): &(String, String, Fault)| {
            *method == request.method && request.path.starts_with(prefix)
        };
        let place = self.faults.iter().position(meant)?;
        Some(self.faults.remove(place).2)
    }

    /// Does what a request asks, and answers it, or this instead.
    fn work(&mut self, request: &Request, instead: Option<u16>) -> Reply {
        let key = format!("Bearer {SECRET_KEY}");
        if request.header("authorization").is_none_or(|header| header != key) {
            return Refusal::faked(401).into();
        }
        let key = request.header("idempotency-key").filter(|_| request.method == "POST");
        let mut form = request.form.clone();
        form.sort();
        if let Some(kept) = key.as_ref().and_then(|key| self.kept.get(key)) {
            if kept.path == request.path && kept.form == form {
                return Reply { replayed: true, ..kept.reply.clone() };
            }
            let message = "Keys for idempotent requests can only be used with the same parameters they were \
                           first used with.";
            return Refusal::new(400, "idempotency_error", None, message).into();
        }
        self.cause = json!({"id": new_id("req"), "idempotency_key": key});
        let done = self.route(request);
        self.cause = nobody();
        let reply = match instead {
            Some(status) => Refusal::faked(status).into(),
            None => Reply::from(done),
        };
        // Stripe does not keep what is to be tried again.
        if let Some(key) = key.filter(|_| !matches!(reply.status, 409 | 429)) {
            self.kept.insert(key, Kept { path: request.path.clone(), form, reply: reply.clone() });
        }
        reply
    }

    fn route(&mut self, request: &Request) -> Outcome {
        let fields = request.fields();
        let path = request.path.split('?').next().unwrap_or_default();
        let places: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        match (request.method.as_str(), &places[..]) {
            ("GET", ["v1", "customers"]) => self.list("customer", path, &fields, &["email"], |customer| {
                customer["deleted"] != true && fits(&fields, "email", &customer["email"])
            }),
            ("POST", ["v1", "customers"]) => self.create_customer(&fields),
            ("GET", ["v1", "customers", id]) => self.read("customer", id, &fields),
            ("POST", ["v1", "customers", id]) => self.update_customer(id, &fields),
            ("DELETE", ["v1", "customers", id]) => {
                only(&fields, &[])?;
                self.living_customer(id).ok_or_else(|| Refusal::missing("customer", id))?;
                Ok(self.delete_customer(id))
            }
            ("POST", ["v1", "checkout", "sessions"]) => self.create_session(&fields),
            ("GET", ["v1", "checkout", "sessions"]) => {
                let known = ["customer", "status", "subscription"];
                self.list("checkout.session", path, &fields, &known, |session| {
                    known.iter().all(|name| fits(&fields, name, &session[name]))
                })
            }
            ("GET", ["v1", "checkout", "sessions", id]) => self.read("checkout.session", id, &fields),
            ("POST", ["v1", "checkout", "sessions", id, "expire"]) => self.expire_session(id, &fields),
            ("POST", ["v1", "billing_portal", "sessions"]) => self.create_portal_session(&fields),
            ("GET", ["v1", "subscriptions"]) => {
                self.list("subscription", path, &fields, &["customer", "status"], |subscription| {
                    let status = text(subscription, "status");
                    let wanted = match field(&fields, "status") {
                        None => status != "canceled",
                        Some("all") => true,
                        Some("ended") => matches!(status, "canceled" | "incomplete_expired"),
                        Some(wanted) => status == wanted,
                    };
                    wanted && fits(&fields, "customer", &subscription["customer"])
                })
            }
            ("GET", ["v1", "subscriptions", id]) => self.read("subscription", id, &fields),
            ("POST", ["v1", "subscriptions", id]) => self.update_subscription(id, &fields),
            ("DELETE", ["v1", "subscriptions", id]) => self.cancel_subscription(id, &fields),
            ("GET", ["v1", "invoices"]) => self.list(
                "invoice",
                path,
                &fields,
                &["created", "customer", "status", "subscription"],
                |invoice| {
                    let since = field(&fields, "created[gte]").and_then(|since| since.parse::<i64>().ok());
                    if since.is_some_and(|since| invoice["created"].as_i64() < Some(since)) {
                        return false;
                    }
                    let subscription = &invoice["parent"]["subscription_details"]["subscription"];
                    ["customer", "status"].iter().all(|name| fits(&fields, name, &invoice[name]))
                        && fits(&fields, "subscription", subscription)
                },
            ),
            ("GET", ["v1", "invoices", id]) => self.read("invoice", id, &fields),
            ("GET", ["v1", "charges", id]) => self.read("charge", id, &fields),
            ("GET", ["v1", "disputes", id]) => self.read("dispute", id, &fields),
            ("POST", ["v1", "products"]) => self.create_product(&fields),
            ("GET", ["v1", "products", id]) => self.read("product", id, &fields),
            ("POST", ["v1", "prices"]) => self.create_price(&fields),
            ("GET", ["v1", "prices"]) => {
                let known = ["active", "currency", "lookup_keys", "product", "type"];
                self.list("price", path, &fields, &known, |price| {
                    let active = field(&fields, "active").map(|active| active == "true");
                    let mut keys = fields.iter().filter(|(name, _)| root(name) == "lookup_keys").peekable();
                    active.is_none_or(|active| price["active"] == active)
                        && (keys.peek().is_none() || keys.any(|(_, key)| price["lookup_key"] == key.as_str()))
                        && fits(&fields, "currency", &price["currency"])
                        && fits(&fields, "product", &price["product"])
                        && fits(&fields, "type", &price["type"])
                })
            }
            ("GET", ["v1", "prices", id]) => self.read("price", id, &fields),
            (method, _) => {
                let message = format!("Unrecognized request URL ({method}: {path}).");
                Err(Refusal::new(404, "invalid_request_error", None, &message))
            }
        }
    }
}

/// Keeping objects.
impl Desk {
    fn keep(&mut self, object: Value) -> Value {
        self.objects.push(object.clone());
        object
    }

    fn place(&self, kind: &str, id: &str) -> Option<usize> {
        self.objects.iter().position(|object| object["object"] == kind && object["id"] == id)
    }

    fn find(&mut self, kind: &str, id: &str) -> Outcome<&mut Value> {
        let place = self.place(kind, id).ok_or_else(|| Refusal::missing(kind, id))?;
        Ok(&mut self.objects[place])
    }

    /// What a test knows to be there.
    fn must(&mut self, kind: &str, id: &str) -> &mut Value {
        self.find(kind, id).unwrap_or_else(|refusal| panic!("{}", refusal.message))
    }

    fn all(&self, kind: &str, wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
        self.objects.iter().filter(|object| object["object"] == kind && wanted(object)).cloned().collect()
    }

    fn read(&mut self, kind: &str, id: &str, fields: &Fields) -> Outcome {
        only(fields, &[])?;
        self.find(kind, id).cloned()
    }

    /// A page, newest first.
    fn list(
        &self,
        kind: &str,
        url: &str,
        fields: &Fields,
        filters: &[&str],
        wanted: impl Fn(&Value) -> bool,
    ) -> Outcome {
        only(fields, &[filters, &["limit", "starting_after"]].concat())?;
        if let Some(customer) = field(fields, "customer").filter(|id| self.place("customer", id).is_none()) {
            return Err(Refusal::missing_in("customer", "customer", customer));
        }
        let limit = number(fields, "limit")?.unwrap_or(10);
        if !(1..=100).contains(&limit) {
            let message = format!("Invalid integer: {limit}: it must be from 1 to 100");
            return Err(Refusal::invalid("parameter_invalid_integer", &message).about("limit"));
        }
        let end = match field(fields, "starting_after") {
            None => self.objects.len(),
            Some(id) => {
                self.place(kind, id).ok_or_else(|| Refusal::missing_in("starting_after", kind, id))?
            }
        };
        let older = self.objects[..end].iter().rev();
        let mut found: Vec<&Value> = older
            .filter(|object| object["object"] == kind && wanted(object))
            .take(limit as usize + 1)
            .collect();
        let has_more = found.len() > limit as usize;
        found.truncate(limit as usize);
        Ok(json!({"object": "list", "url": url, "has_more": has_more, "data": found}))
    }

    fn event(&self, kind: &str, object: Value) -> Value {
        json!({
            "id": new_id("evt"),
            "object": "event",
            "api_version": API_VERSION,
            "created": self.now(),
            "data": {"object": object},
            "livemode": false,
            "pending_webhooks": 1,
            "request": self.cause,
            "type": kind,
        })
    }

    /// Writes an event down, with the object as it is now.
    fn tell(&mut self, event: &str, kind: &str, id: &str) {
        let object = self.must(kind, id).clone();
        let event = self.event(event, object);
        self.events.push(event);
    }
}

/// Customers, and what they see.
impl Desk {
    fn living_customer(&self, id: &str) -> Option<&Value> {
        let customer = self.place("customer", id).map(|place| &self.objects[place]);
        customer.filter(|customer| customer["deleted"] != true)
    }

    /// The customer that a parameter names.
    fn customer_in(&self, fields: &Fields) -> Outcome<&Value> {
        let id = required(fields, "customer")?;
        self.living_customer(id).ok_or_else(|| Refusal::missing_in("customer", "customer", id))
    }

    fn create_customer(&mut self, fields: &Fields) -> Outcome {
        only(fields, &["name", "email", "phone", "description", "metadata"])?;
        let id = new_id("cus");
        let prefix = id[id.len() - 8..].to_ascii_uppercase();
        Ok(self.keep(json!({
            "id": id,
            "object": "customer",
            "address": null,
            "balance": 0,
            "created": self.now(),
            "currency": null,
            "default_source": null,
            "delinquent": false,
            "description": field(fields, "description"),
            "discount": null,
            "email": field(fields, "email"),
            "invoice_prefix": prefix,
            "invoice_settings": {
                "custom_fields": null,
                "default_payment_method": null,
                "footer": null,
                "rendering_options": null,
            },
            "livemode": false,
            "metadata": metadata(fields, "metadata"),
            "name": field(fields, "name"),
            "next_invoice_sequence": 1,
            "phone": field(fields, "phone"),
            "preferred_locales": [],
            "shipping": null,
            "tax_exempt": "none",
            "test_clock": null,
        })))
    }

    fn update_customer(&mut self, id: &str, fields: &Fields) -> Outcome {
        only(fields, &["name", "email", "phone", "description", "metadata"])?;
        self.living_customer(id).ok_or_else(|| Refusal::missing("customer", id))?;
        let customer = self.find("customer", id)?;
        for name in ["name", "email", "phone", "description"] {
            if let Some(value) = field(fields, name) {
                customer[name] = if value.is_empty() { Value::Null } else { json!(value) };
            }
        }
        merge(fields, "metadata", customer["metadata"].as_object_mut().unwrap());
        let customer = customer.clone();
        self.tell("customer.updated", "customer", id);
        Ok(customer)
    }

    /// Answers what is left of the customer.
    fn delete_customer(&mut self, id: &str) -> Value {
        let alive = |subscription: &Value| {
            subscription["customer"] == id
                && !matches!(text(subscription, "status"), "canceled" | "incomplete_expired")
        };
        for subscription in self.all("subscription", alive) {
            self.end(text(&subscription, "id"));
        }
        self.tell("customer.deleted", "customer", id);
        let left = json!({"id": id, "object": "customer", "deleted": true});
        *self.must("customer", id) = left.clone();
        left
    }

    fn create_session(&mut self, fields: &Fields) -> Outcome {
        let active = [
            "mode",
            "customer",
            "client_reference_id",
            "line_items",
            "success_url",
            "cancel_url",
            "subscription_data",
            "payment_method_collection",
            "metadata",
            "expires_at",
        ];
        // What changes only the look of the page.
        let idle = [
            "allow_promotion_codes",
            "automatic_tax",
            "billing_address_collection",
            "customer_update",
            "locale",
            "tax_id_collection",
        ];
        only(fields, &[&active[..], &idle[..]].concat())?;
        only_within(fields, "line_items", &["[0][price]", "[0][quantity]"])?;
        let end_behavior = "[trial_settings][end_behavior][missing_payment_method]";
        let within = ["[metadata]", "[trial_end]", "[trial_period_days]", end_behavior];
        only_within(fields, "subscription_data", &within)?;
        if required(fields, "mode")? != "subscription" {
            let message = "The stand-in knows only `subscription`.";
            return Err(Refusal::invalid("parameter_unknown", message).about("mode"));
        }
        let success_url = required(fields, "success_url")?;
        for name in ["success_url", "cancel_url"] {
            if field(fields, name).is_some_and(|url| !url.starts_with("http")) {
                return Err(Refusal::invalid("url_invalid", "Not a valid URL").about(name));
            }
        }
        let now = self.now();
        let customer = text(self.customer_in(fields)?, "id").to_owned();
        let price =
            self.recurring_price(required(fields, "line_items[0][price]")?, "line_items[0][price]")?;
        required(fields, "line_items[0][quantity]")?;
        let quantity = number(fields, "line_items[0][quantity]")?.unwrap_or(1);
        let trial_days = number(fields, "subscription_data[trial_period_days]")?;
        let trial_end = number(fields, "subscription_data[trial_end]")?;
        if trial_days.is_some_and(|days| days < 1) {
            let message = "The minimum number of trial period days is 1.";
            let param = "subscription_data[trial_period_days]";
            return Err(Refusal::new(400, "invalid_request_error", None, message).about(param));
        }
        if trial_end.is_some_and(|end| end < now + 2 * DAY) {
            let message = "The `trial_end` date has to be at least 2 days in the future.";
            let param = "subscription_data[trial_end]";
            return Err(Refusal::new(400, "invalid_request_error", None, message).about(param));
        }
        if trial_end.is_some() && trial_days.is_some() {
            let message = "You may only specify one of these parameters: trial_end, trial_period_days.";
            return Err(Refusal::new(400, "invalid_request_error", None, message));
        }
        let trialing = trial_end.is_some() || trial_days.is_some();
        let amount = if trialing { 0 } else { whole(&price, "unit_amount") * quantity };
        let id = new_id("cs_test");
        let session = json!({
            "id": id,
            "object": "checkout.session",
            "amount_subtotal": amount,
            "amount_total": amount,
            "automatic_tax": {"enabled": false, "liability": null, "provider": null, "status": null},
            "cancel_url": field(fields, "cancel_url"),
            "client_reference_id": field(fields, "client_reference_id"),
            "created": now,
            "currency": price["currency"],
            "custom_fields": [],
            "custom_text": {
                "after_submit": null,
                "shipping_address": null,
                "submit": null,
                "terms_of_service_acceptance": null,
            },
            "customer": customer,
            "customer_details": null,
            "customer_email": null,
            "expires_at": number(fields, "expires_at")?.unwrap_or(now + DAY),
            "invoice": null,
            "livemode": false,
            "metadata": metadata(fields, "metadata"),
            "mode": "subscription",
            "payment_intent": null,
            "payment_method_collection": field(fields, "payment_method_collection").unwrap_or("always"),
            "payment_method_types": ["card"],
            "payment_status": "unpaid",
            "shipping_options": [],
            "status": "open",
            "subscription": null,
            "success_url": success_url,
            "total_details": {"amount_discount": 0, "amount_shipping": 0, "amount_tax": 0},
            "ui_mode": "hosted_page",
            "url": format!("https://checkout.stripe.com/c/pay/{id}"),
        });
        let without_card = field(fields, &format!("subscription_data{end_behavior}"));
        let asked = Asked {
            price,
            quantity,
            metadata: metadata(fields, "subscription_data[metadata]"),
            trial_days,
            trial_end,
            without_card: without_card.unwrap_or("create_invoice").into(),
        };
        self.asked.insert(id, asked);
        Ok(self.keep(session))
    }

    fn expire_session(&mut self, id: &str, fields: &Fields) -> Outcome {
        only(fields, &[])?;
        let session = self.find("checkout.session", id)?;
        if session["status"] != "open" {
            let message = format!(
                "Only Checkout Sessions with a status in [\"open\"] can be expired. This one is {}.",
                session["status"]
            );
            return Err(Refusal::new(400, "invalid_request_error", None, &message));
        }
        session["status"] = json!("expired");
        session["url"] = Value::Null;
        Ok(session.clone())
    }

    fn complete_checkout(&mut self, id: &str) -> String {
        let session = self.must("checkout.session", id).clone();
        assert_eq!(session["status"], "open", "only an open session can be paid: {session}");
        let asked = self.asked[id].clone();
        let customer =
            self.living_customer(text(&session, "customer")).expect("the customer is there").clone();
        let trial_end = asked.trial_end.or(asked.trial_days.map(|days| self.now() + days * DAY));
        let subscription = self.create_subscription(text(&customer, "id"), asked, trial_end);
        let total = whole(&session, "amount_total");
        let invoice = self.create_invoice(&subscription, "subscription_create", total);
        self.settle(&invoice);
        let free = trial_end.is_some() && session["payment_method_collection"] == "if_required";
        let session = self.must("checkout.session", id);
        session["status"] = json!("complete");
        session["payment_status"] = json!(if free { "no_payment_required" } else { "paid" });
        session["subscription"] = json!(subscription);
        session["invoice"] = json!(invoice);
        session["url"] = Value::Null;
        session["customer_details"] = json!({
            "address": null, "email": customer["email"], "name": customer["name"], "phone": null,
            "tax_exempt": "none", "tax_ids": [],
        });
        self.tell("checkout.session.completed", "checkout.session", id);
        self.tell("customer.subscription.created", "subscription", &subscription);
        self.tell("invoice.finalized", "invoice", &invoice);
        self.tell("invoice.paid", "invoice", &invoice);
        subscription
    }

    fn create_portal_session(&self, fields: &Fields) -> Outcome {
        only(fields, &["customer", "return_url", "configuration", "locale"])?;
        let id = new_id("bps");
        Ok(json!({
            "id": id,
            "object": "billing_portal.session",
            "configuration": field(fields, "configuration").unwrap_or("bpc_stand_in"),
            "created": self.now(),
            "customer": self.customer_in(fields)?["id"],
            "flow": null,
            "livemode": false,
            "locale": field(fields, "locale"),
            "on_behalf_of": null,
            "return_url": field(fields, "return_url"),
            "url": format!("https://billing.stripe.com/p/session/{id}"),
        }))
    }
}

/// Subscriptions.
impl Desk {
    fn create_subscription(&mut self, customer: &str, asked: Asked, trial_end: Option<i64>) -> String {
        let (id, now) = (new_id("sub"), self.now());
        let period = (now, trial_end.unwrap_or_else(|| later(now, &asked.price)));
        let item = subscription_item(&id, &asked.price, asked.quantity, period, now);
        let subscription = json!({
            "id": id,
            "object": "subscription",
            "automatic_tax": {"disabled_reason": null, "enabled": false, "liability": null},
            "billing_cycle_anchor": trial_end.unwrap_or(now),
            "billing_mode": {"flexible": null, "type": "classic"},
            "billing_schedules": [],
            "cancel_at_period_end": false,
            "cancellation_details": {"comment": null, "feedback": null, "reason": null},
            "collection_method": "charge_automatically",
            "created": now,
            "currency": asked.price["currency"],
            "customer": customer,
            "default_tax_rates": [],
            "discounts": [],
            "invoice_settings": {"account_tax_ids": null, "issuer": {"type": "self"}},
            "items": {
                "object": "list",
                "data": [item],
                "has_more": false,
                "total_count": 1,
                "url": format!("/v1/subscription_items?subscription={id}"),
            },
            "livemode": false,
            "metadata": asked.metadata,
            "payment_settings": {
                "payment_method_options": null,
                "payment_method_types": null,
                "save_default_payment_method": "off",
            },
            "start_date": now,
            "status": if trial_end.is_some() { "trialing" } else { "active" },
            "trial_end": trial_end,
            "trial_settings": {"end_behavior": {"missing_payment_method": asked.without_card}},
            "trial_start": trial_end.map(|_| now),
        });
        let nulls = "application application_fee_percent billing_cycle_anchor_config billing_thresholds \
                     cancel_at canceled_at days_until_due default_payment_method default_source description \
                     ended_at latest_invoice next_pending_invoice_item_invoice on_behalf_of pause_collection \
                     pending_invoice_item_interval pending_setup_intent pending_update schedule \
                     status_details test_clock transfer_data";
        self.objects.push(with_nulls(subscription, nulls));
        self.must("customer", customer)["currency"] = asked.price["currency"].clone();
        id
    }

    fn update_subscription(&mut self, id: &str, fields: &Fields) -> Outcome {
        let known = [
            "items",
            "proration_behavior",
            "payment_behavior",
            "cancel_at",
            "cancel_at_period_end",
            "cancellation_details",
            "trial_end",
            "metadata",
        ];
        only(fields, &known)?;
        let now = self.now();
        let before = self.find("subscription", id)?.clone();
        let mut after = before.clone();
        let to_details = |name: &str| matches!(root(name), "metadata" | "cancellation_details");
        if before["status"] == "canceled" && !fields.iter().all(|(name, _)| to_details(name)) {
            let message = "A canceled subscription can only update its cancellation_details and metadata.";
            return Err(Refusal::invalid("resource_missing", message));
        }
        self.change_items(&mut after, fields)?;
        let repriced = prices(&before) != prices(&after);
        let at_once = field(fields, "payment_behavior") == Some("error_if_incomplete");
        if repriced && at_once && std::mem::take(&mut self.declines) {
            return Err(Refusal::declined());
        }
        match field(fields, "cancel_at_period_end") {
            Some("true") => {
                after["cancel_at_period_end"] = json!(true);
                after["cancel_at"] = after["items"]["data"][0]["current_period_end"].clone();
                after["canceled_at"] = json!(now);
                after["cancellation_details"]["reason"] = json!("cancellation_requested");
            }
            Some(_) if before["cancel_at_period_end"] == true => {
                after["cancel_at_period_end"] = json!(false);
                after["cancel_at"] = Value::Null;
                after["canceled_at"] = Value::Null;
                after["cancellation_details"]["reason"] = Value::Null;
            }
            Some(_) | None => {}
        }
        if field(fields, "cancel_at") == Some("") {
            after["cancel_at"] = Value::Null;
            after["canceled_at"] = Value::Null;
        }
        merge(fields, "cancellation_details", after["cancellation_details"].as_object_mut().unwrap());
        let trial_ends = field(fields, "trial_end") == Some("now") && before["status"] == "trialing";
        if trial_ends {
            after["status"] = json!("active");
            after["trial_end"] = json!(now);
            after["billing_cycle_anchor"] = json!(now);
            begin_period(&mut after, now);
        } else if field(fields, "trial_end").is_some_and(|end| end != "now") {
            let end = number(fields, "trial_end")?.unwrap_or_default();
            if end <= now {
                let message = "The `trial_end` date has to be in the future.";
                return Err(Refusal::new(400, "invalid_request_error", None, message).about("trial_end"));
            }
            if after["trial_start"].is_null() {
                after["trial_start"] = json!(now);
            }
            after["status"] = json!("trialing");
            after["trial_end"] = json!(end);
            after["billing_cycle_anchor"] = json!(end);
            set_period(&mut after, now, end);
        }
        merge(fields, "metadata", after["metadata"].as_object_mut().unwrap());
        if after == before {
            return Ok(after);
        }
        let invoiced = match field(fields, "proration_behavior") {
            _ if trial_ends => Some(amount(&after)),
            Some("always_invoice") if repriced && after["status"] != "trialing" => {
                Some(amount(&after) - amount(&before))
            }
            _ => None,
        };
        *self.find("subscription", id)? = after;
        let invoice = invoiced.map(|total| self.create_invoice(id, "subscription_update", total));
        self.tell("customer.subscription.updated", "subscription", id);
        if let Some(invoice) = invoice {
            self.settle(&invoice);
            self.tell("invoice.finalized", "invoice", &invoice);
            self.tell("invoice.paid", "invoice", &invoice);
        }
        self.find("subscription", id).cloned()
    }

    /// What `items[…]` says. As at Stripe, one without an id is another item.
    fn change_items(&self, subscription: &mut Value, fields: &Fields) -> Outcome<()> {
        let id = text(subscription, "id").to_owned();
        for place in 0.. {
            let prefix = format!("items[{place}]");
            let names = ["id", "price", "quantity"].map(|name| format!("{prefix}[{name}]"));
            let said: Vec<&String> =
                fields.iter().map(|(name, _)| name).filter(|name| name.starts_with(&prefix)).collect();
            if said.is_empty() {
                break;
            }
            if let Some(stranger) = said.iter().find(|name| !names.contains(name)) {
                return Err(Refusal::unknown(stranger));
            }
            let [item, price, quantity] = &names;
            let quantity = number(fields, quantity)?;
            let new_price =
                field(fields, price).map(|wanted| self.recurring_price(wanted, price)).transpose()?;
            let period = period(subscription);
            let items = subscription["items"]["data"].as_array_mut().unwrap();
            let Some(wanted) = field(fields, item) else {
                let message = format!("Missing required param: {price}.");
                let missing = || Refusal::invalid("parameter_missing", &message).about(price);
                let new_price = new_price.ok_or_else(missing)?;
                items.push(subscription_item(&id, &new_price, quantity.unwrap_or(1), period, self.now()));
                continue;
            };
            let Some(found) = items.iter_mut().find(|known| known["id"] == wanted) else {
                return Err(Refusal::missing_in(item, "subscription item", wanted));
            };
            if let Some(price) = new_price {
                found["plan"] = plan_object(&price);
                found["price"] = price;
            }
            if let Some(quantity) = quantity {
                found["quantity"] = json!(quantity);
            }
        }
        Ok(())
    }

    fn cancel_subscription(&mut self, id: &str, fields: &Fields) -> Outcome {
        only(fields, &["cancellation_details", "invoice_now", "prorate"])?;
        let subscription = self.find("subscription", id)?;
        if subscription["status"] == "canceled" {
            return Err(Refusal::missing("subscription", id));
        }
        let details = subscription["cancellation_details"].as_object_mut().unwrap();
        merge(fields, "cancellation_details", details);
        self.end(id);
        self.find("subscription", id).cloned()
    }

    /// Ends it now.
    fn end(&mut self, id: &str) {
        let now = self.now();
        let subscription = self.must("subscription", id);
        subscription["status"] = json!("canceled");
        subscription["status_details"] = Value::Null;
        subscription["ended_at"] = json!(now);
        if subscription["canceled_at"].is_null() {
            subscription["canceled_at"] = json!(now);
        }
        subscription["cancellation_details"]["reason"] = json!("cancellation_requested");
        self.tell("customer.subscription.deleted", "subscription", id);
    }

    fn set_status(&mut self, id: &str, status: &str) {
        if status == "canceled" {
            return self.end(id);
        }
        let now = self.now();
        let subscription = self.must("subscription", id);
        let was = std::mem::replace(&mut subscription["status"], json!(status));
        subscription["status_details"] = match status {
            "paused" => json!({"paused": {
                "subscription": {"type": "trial_end_without_payment_method"},
                "transitioned_at": now,
                "type": "subscription",
            }}),
            _ => Value::Null,
        };
        let event = match (was.as_str(), status) {
            (_, "paused") => "customer.subscription.paused",
            (Some("paused"), "active") => "customer.subscription.resumed",
            _ => "customer.subscription.updated",
        };
        self.tell(event, "subscription", id);
    }

    fn renew(&mut self, id: &str) {
        let subscription = self.must("subscription", id);
        assert_ne!(subscription["status"], "canceled", "a canceled subscription is not renewed");
        if subscription["cancel_at_period_end"] == true {
            return self.end(id);
        }
        let invoice = self.begin_next_period(id, "active");
        self.settle(&invoice);
        self.tell("invoice.finalized", "invoice", &invoice);
        self.tell("invoice.paid", "invoice", &invoice);
        self.tell("customer.subscription.updated", "subscription", id);
    }

    fn fail_payment(&mut self, id: &str) -> String {
        let next_attempt = self.now() + 3 * DAY;
        let id_of_invoice = self.begin_next_period(id, "past_due");
        let invoice = self.must("invoice", &id_of_invoice);
        invoice["attempted"] = json!(true);
        invoice["attempt_count"] = json!(1);
        invoice["next_payment_attempt"] = json!(next_attempt);
        self.tell("invoice.finalized", "invoice", &id_of_invoice);
        self.tell("invoice.payment_failed", "invoice", &id_of_invoice);
        self.tell("customer.subscription.updated", "subscription", id);
        id_of_invoice
    }

    /// Moves the period on, and answers the open invoice for it.
    fn begin_next_period(&mut self, id: &str, status: &str) -> String {
        let subscription = self.must("subscription", id);
        let (start, end) = period(subscription);
        subscription["status"] = json!(status);
        begin_period(subscription, end);
        let total = amount(subscription);
        let id_of_invoice = self.create_invoice(id, "subscription_cycle", total);
        // An invoice's own period is the one that is over; its lines have the one that is paid for.
        let invoice = self.must("invoice", &id_of_invoice);
        invoice["period_start"] = json!(start);
        invoice["period_end"] = json!(end);
        id_of_invoice
    }

    fn pay(&mut self, invoice: &str) {
        let found = self.must("invoice", invoice);
        assert_eq!(found["status"], "open", "only an open invoice can be paid");
        let id = text(&found["parent"]["subscription_details"], "subscription").to_owned();
        self.settle(invoice);
        self.tell("invoice.paid", "invoice", invoice);
        let subscription = self.must("subscription", &id);
        if subscription["status"] != "canceled" {
            subscription["status"] = json!("active");
            self.tell("customer.subscription.updated", "subscription", &id);
        }
    }
}

/// Invoices, charges and disputes.
impl Desk {
    /// An open invoice for the present period of a subscription.
    fn create_invoice(&mut self, subscription: &str, reason: &str, total: i64) -> String {
        let (id, now) = (new_id("in"), self.now());
        let subscription = self.must("subscription", subscription);
        subscription["latest_invoice"] = json!(id);
        let subscription = subscription.clone();
        let item = &subscription["items"]["data"][0];
        let (start, end) = period(&subscription);
        let customer = self.must("customer", text(&subscription, "customer"));
        let sequence = whole(customer, "next_invoice_sequence");
        customer["next_invoice_sequence"] = json!(sequence + 1);
        // What is less than nothing stays with the customer as credit.
        let due = total.max(0);
        let line = json!({
            "id": new_id("il"),
            "object": "line_item",
            "amount": total,
            "currency": subscription["currency"],
            "description": "1 × Subscription",
            "discount_amounts": [],
            "discountable": true,
            "discounts": [],
            "invoice": id,
            "livemode": false,
            "metadata": subscription["metadata"],
            "parent": {
                "invoice_item_details": null,
                "subscription_item_details": {
                    "invoice_item": null,
                    "proration": reason == "subscription_update",
                    "proration_details": {"credited_items": null},
                    "subscription": subscription["id"],
                    "subscription_item": item["id"],
                },
                "type": "subscription_item_details",
            },
            "period": {"start": start, "end": end},
            "pretax_credit_amounts": [],
            "pricing": {
                "price_details": {"price": item["price"]["id"], "product": item["price"]["product"]},
                "type": "price_details",
                "unit_amount_decimal": item["price"]["unit_amount_decimal"],
            },
            "quantity": item["quantity"],
            "subtotal": total,
            "taxes": [],
        });
        let invoice = json!({
            "id": id,
            "object": "invoice",
            "account_country": "SG",
            "account_name": "Rowhouse",
            "attempt_count": 0,
            "attempted": false,
            "auto_advance": true,
            "automatic_tax": {
                "disabled_reason": null,
                "enabled": false,
                "liability": null,
                "provider": null,
                "status": null,
            },
            "billing_reason": reason,
            "collection_method": "charge_automatically",
            "created": now,
            "currency": subscription["currency"],
            "customer": subscription["customer"],
            "customer_email": customer["email"],
            "customer_name": customer["name"],
            "customer_tax_exempt": "none",
            "effective_at": now,
            "hosted_invoice_url": format!("https://invoice.stripe.com/i/{id}"),
            "invoice_pdf": format!("https://pay.stripe.com/invoice/{id}/pdf"),
            "issuer": {"type": "self"},
            "lines": {
                "object": "list",
                "data": [line],
                "has_more": false,
                "total_count": 1,
                "url": format!("/v1/invoices/{id}/lines"),
            },
            "livemode": false,
            "metadata": {},
            "number": format!("{}-{sequence:04}", text(customer, "invoice_prefix")),
            "parent": {
                "quote_details": null,
                "subscription_details": {
                    "metadata": subscription["metadata"],
                    "subscription": subscription["id"],
                },
                "type": "subscription_details",
            },
            "payment_settings": {
                "default_mandate": null, "payment_method_options": null, "payment_method_types": null,
            },
            "period_end": now,
            "period_start": now,
            "status": "open",
            "status_transitions": {
                "finalized_at": now, "marked_uncollectible_at": null, "paid_at": null, "voided_at": null,
            },
        });
        let amounts = json!({
            "amount_due": due,
            "amount_overpaid": 0,
            "amount_paid": 0,
            "amount_remaining": due,
            "amount_shipping": 0,
            "ending_balance": 0,
            "post_payment_credit_notes_amount": 0,
            "pre_payment_credit_notes_amount": 0,
            "starting_balance": 0,
            "subtotal": total,
            "subtotal_excluding_tax": total,
            "total": total,
            "total_discount_amounts": [],
            "total_excluding_tax": total,
            "total_pretax_credit_amounts": [],
            "total_taxes": [],
            "default_tax_rates": [],
            "discounts": [],
            "customer_tax_ids": [],
        });
        let nulls = "account_tax_ids application automatically_finalizes_at custom_fields customer_address \
                     customer_phone customer_shipping default_payment_method default_source description \
                     due_date footer from_invoice last_finalization_error latest_revision \
                     next_payment_attempt on_behalf_of receipt_number rendering shipping_cost \
                     shipping_details statement_descriptor test_clock webhooks_delivered_at";
        self.objects.push(with_nulls(plus(invoice, amounts), nulls));
        id
    }

    /// Marks an invoice as paid.
    fn settle(&mut self, invoice: &str) {
        let now = self.now();
        let invoice = self.must("invoice", invoice);
        invoice["status"] = json!("paid");
        invoice["amount_paid"] = invoice["amount_due"].clone();
        invoice["amount_remaining"] = json!(0);
        invoice["attempted"] = json!(true);
        invoice["attempt_count"] = json!(whole(invoice, "attempt_count") + 1);
        invoice["auto_advance"] = json!(false);
        invoice["next_payment_attempt"] = Value::Null;
        invoice["status_transitions"]["paid_at"] = json!(now);
    }

    /// A charge that succeeded; answers its id.
    fn create_charge(&mut self, customer: &str, amount: i64, currency: &str) -> String {
        let (id, now) = (new_id("ch"), self.now());
        let customer = self.must("customer", customer).clone();
        let charge = json!({
            "id": id,
            "object": "charge",
            "amount": amount,
            "amount_captured": amount,
            "amount_refunded": 0,
            "billing_details": {
                "address": null,
                "email": customer["email"],
                "name": customer["name"],
                "phone": null,
                "tax_id": null,
            },
            "calculated_statement_descriptor": "ROWHOUSE",
            "captured": true,
            "created": now,
            "currency": currency.to_ascii_lowercase(),
            "customer": customer["id"],
            "description": "Subscription update",
            "disputed": false,
            "livemode": false,
            "metadata": {},
            "paid": true,
            "payment_intent": new_id("pi"),
            "payment_method": new_id("pm"),
            "receipt_url": format!("https://pay.stripe.com/receipts/{id}"),
            "refunded": false,
            "status": "succeeded",
        });
        let nulls = "application application_fee application_fee_amount balance_transaction \
                     failure_balance_transaction failure_code failure_message on_behalf_of outcome \
                     payment_method_details receipt_email receipt_number review shipping source \
                     source_transfer statement_descriptor statement_descriptor_suffix transfer_data \
                     transfer_group";
        self.objects.push(with_nulls(charge, nulls));
        id
    }

    fn refund(&mut self, customer: &str, amount: i64, currency: &str) -> String {
        let currency = currency.to_ascii_lowercase();
        let paid = self.all("invoice", |invoice| {
            invoice["customer"] == customer
                && invoice["status"] == "paid"
                && invoice["currency"] == currency
                && whole(invoice, "amount_paid") >= amount
        });
        let charged = paid.last().map_or(amount, |invoice| whole(invoice, "amount_paid"));
        let id = self.create_charge(customer, charged, &currency);
        let charge = self.must("charge", &id);
        charge["amount_refunded"] = json!(amount);
        charge["refunded"] = json!(amount == charged);
        self.tell("charge.refunded", "charge", &id);
        id
    }

    fn dispute(&mut self, customer: &str, amount: i64, currency: &str) -> String {
        let currency = currency.to_ascii_lowercase();
        let charge = self.create_charge(customer, amount, &currency);
        let disputed = self.must("charge", &charge);
        disputed["disputed"] = json!(true);
        let payment_intent = disputed["payment_intent"].clone();
        let (id, now, fee) = (new_id("du"), self.now(), 1500);
        self.objects.push(json!({
            "id": id,
            "object": "dispute",
            "amount": amount,
            "balance_transactions": [{
                "id": new_id("txn"),
                "object": "balance_transaction",
                "amount": -amount,
                "available_on": now,
                "balance_type": "payments",
                "created": now,
                "currency": currency,
                "description": "Chargeback withdrawal",
                "exchange_rate": null,
                "fee": fee,
                "fee_details": [{
                    "amount": fee, "application": null, "currency": currency, "description": "Dispute fee",
                    "type": "stripe_fee",
                }],
                "net": -amount - fee,
                "reporting_category": "dispute",
                "source": null,
                "status": "available",
                "type": "adjustment",
            }],
            "charge": charge,
            "created": now,
            "currency": currency,
            "enhanced_eligibility_types": [],
            "evidence": {"enhanced_evidence": {}},
            "evidence_details": {
                "due_by": now + 7 * DAY,
                "enhanced_eligibility": {},
                "has_evidence": false,
                "past_due": false,
                "submission_count": 0,
            },
            "is_charge_refundable": false,
            "livemode": false,
            "metadata": {},
            "network_reason_code": "10.4",
            "payment_intent": payment_intent,
            "payment_method_details": null,
            "reason": "fraudulent",
            "status": "needs_response",
        }));
        self.tell("charge.dispute.created", "dispute", &id);
        id
    }
}

/// Products and prices.
impl Desk {
    fn create_product(&mut self, fields: &Fields) -> Outcome {
        only(fields, &["id", "name", "description", "metadata"])?;
        let id = field(fields, "id").map_or_else(|| new_id("prod"), str::to_owned);
        if self.place("product", &id).is_some() {
            return Err(Refusal::invalid("resource_already_exists", "Product already exists."));
        }
        let mut product = product_object(&id, required(fields, "name")?, self.now());
        product["description"] = json!(field(fields, "description"));
        product["metadata"] = Value::Object(metadata(fields, "metadata"));
        Ok(self.keep(product))
    }

    fn create_price(&mut self, fields: &Fields) -> Outcome {
        let known = [
            "product",
            "currency",
            "unit_amount",
            "recurring",
            "lookup_key",
            "transfer_lookup_key",
            "nickname",
            "metadata",
        ];
        only(fields, &known)?;
        only_within(fields, "recurring", &["[interval]", "[interval_count]"])?;
        let product = required(fields, "product")?;
        if self.place("product", product).is_none() {
            return Err(Refusal::missing_in("product", "product", product));
        }
        let currency = required(fields, "currency")?.to_ascii_lowercase();
        required(fields, "unit_amount")?;
        let amount = number(fields, "unit_amount")?.unwrap_or_default();
        let recurring = match field(fields, "recurring[interval]") {
            Some(interval) => json!({
                "interval": interval,
                "interval_count": number(fields, "recurring[interval_count]")?.unwrap_or(1),
            }),
            None => Value::Null,
        };
        let lookup_key = field(fields, "lookup_key");
        let holds_key = |object: &&mut Value| {
            object["object"] == "price" && lookup_key.is_some_and(|key| object["lookup_key"] == key)
        };
        if let Some(holder) = self.objects.iter_mut().find(holds_key) {
            if field(fields, "transfer_lookup_key") != Some("true") {
                let message = format!("A price (`{}`) already uses that lookup key.", text(holder, "id"));
                return Err(Refusal::new(400, "invalid_request_error", None, &message).about("lookup_key"));
            }
            holder["lookup_key"] = Value::Null;
        }
        let mut price = price_object(product, &currency, amount, recurring, lookup_key, self.now());
        price["nickname"] = json!(field(fields, "nickname"));
        price["metadata"] = Value::Object(metadata(fields, "metadata"));
        Ok(self.keep(price))
    }

    /// The price that a parameter names, if one can subscribe to it.
    fn recurring_price(&self, id: &str, param: &str) -> Outcome {
        let place = self.place("price", id).ok_or_else(|| Refusal::missing_in(param, "price", id))?;
        let price = &self.objects[place];
        if price["type"] != "recurring" {
            let message = "You must provide at least one recurring price in `subscription` mode.";
            return Err(Refusal::new(400, "invalid_request_error", None, message).about(param));
        }
        Ok(price.clone())
    }
}

/// What an event says that no request led to.
fn nobody() -> Value {
    json!({"id": null, "idempotency_key": null})
}

fn product_object(id: &str, name: &str, now: i64) -> Value {
    json!({
        "id": id,
        "object": "product",
        "active": true,
        "created": now,
        "default_price": null,
        "description": null,
        "images": [],
        "livemode": false,
        "marketing_features": [],
        "metadata": {},
        "name": name,
        "package_dimensions": null,
        "shippable": null,
        "statement_descriptor": null,
        "tax_code": null,
        "type": "service",
        "unit_label": null,
        "updated": now,
        "url": null,
    })
}

/// `recurring` has an interval and its count, or is null.
fn price_object(
    product: &str,
    currency: &str,
    amount: i64,
    recurring: Value,
    lookup_key: Option<&str>,
    now: i64,
) -> Value {
    let kind = if recurring.is_null() { "one_time" } else { "recurring" };
    let mut price = json!({
        "id": new_id("price"),
        "object": "price",
        "active": true,
        "billing_scheme": "per_unit",
        "created": now,
        "currency": currency,
        "custom_unit_amount": null,
        "livemode": false,
        "lookup_key": lookup_key,
        "metadata": {},
        "nickname": null,
        "product": product,
        "recurring": recurring,
        "tax_behavior": "unspecified",
        "tiers_mode": null,
        "transform_quantity": null,
        "type": kind,
        "unit_amount": amount,
        "unit_amount_decimal": amount.to_string(),
    });
    if let Some(recurring) = price["recurring"].as_object_mut() {
        recurring.insert("meter".into(), Value::Null);
        recurring.insert("trial_period_days".into(), Value::Null);
        recurring.insert("usage_type".into(), json!("licensed"));
    }
    price
}

/// A price in the words of before.
fn plan_object(price: &Value) -> Value {
    json!({
        "id": price["id"],
        "object": "plan",
        "active": price["active"],
        "amount": price["unit_amount"],
        "amount_decimal": price["unit_amount_decimal"],
        "billing_scheme": "per_unit",
        "created": price["created"],
        "currency": price["currency"],
        "interval": price["recurring"]["interval"],
        "interval_count": price["recurring"]["interval_count"],
        "livemode": false,
        "metadata": {},
        "meter": null,
        "nickname": price["nickname"],
        "product": price["product"],
        "tiers_mode": null,
        "transform_usage": null,
        "trial_period_days": null,
        "usage_type": "licensed",
    })
}

fn subscription_item(
    subscription: &str,
    price: &Value,
    quantity: i64,
    (start, end): (i64, i64),
    now: i64,
) -> Value {
    json!({
        "id": new_id("si"),
        "object": "subscription_item",
        "billing_thresholds": null,
        "created": now,
        "current_period_end": end,
        "current_period_start": start,
        "discounts": [],
        "metadata": {},
        "plan": plan_object(price),
        "price": price,
        "quantity": quantity,
        "subscription": subscription,
        "tax_rates": [],
    })
}

fn items(subscription: &Value) -> impl Iterator<Item = &Value> {
    subscription["items"]["data"].as_array().into_iter().flatten()
}

/// What is to be paid for a period.
fn amount(subscription: &Value) -> i64 {
    items(subscription).map(|item| whole(&item["price"], "unit_amount") * whole(item, "quantity")).sum()
}

fn prices(subscription: &Value) -> Vec<&str> {
    items(subscription).map(|item| text(&item["price"], "id")).collect()
}

/// When the present period began, and when it ends.
fn period(subscription: &Value) -> (i64, i64) {
    let item = &subscription["items"]["data"][0];
    (whole(item, "current_period_start"), whole(item, "current_period_end"))
}

fn set_period(subscription: &mut Value, start: i64, end: i64) {
    for item in subscription["items"]["data"].as_array_mut().unwrap() {
        item["current_period_start"] = json!(start);
        item["current_period_end"] = json!(end);
    }
}

/// A period begins then; how long it is the price says.
fn begin_period(subscription: &mut Value, start: i64) {
    let end = later(start, &subscription["items"]["data"][0]["price"]);
    set_period(subscription, start, end);
}

/// One period of the price later.
fn later(at: i64, price: &Value) -> i64 {
    let recurring = &price["recurring"];
    let count = whole(recurring, "interval_count");
    let months = match text(recurring, "interval") {
        "day" => return at + count * DAY,
        "week" => return at + count * 7 * DAY,
        "year" => count * 12,
        _ => count,
    };
    let at = DateTime::from_timestamp(at, 0).unwrap();
    at.checked_add_months(Months::new(months as u32)).unwrap().timestamp()
}
