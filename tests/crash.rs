//! The service is killed again and again: what was committed is told all the same, to the right
//! receivers and in order.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use standardwebhooks::Webhook;
use tokio::{task::JoinSet, time::sleep};
use uuid::Uuid;

use crate::support::{
    PASSWORD, TestApp,
    receiver::{Received, Receiver},
    unique_email, within,
};

const CHANGES: usize = 5_000;
const ORGANIZATIONS: usize = 3;
const WRITERS: usize = 8;
/// Times that nobody foresees; the seed is printed.
struct Chance(u64);

impl Chance {
    fn new() -> Self {
        let seed = Uuid::now_v7().as_u64_pair().1 | 1;
        println!("seed {seed}");
        Self(seed)
    }

    /// From 0.5 to 4 s: it takes a moment to start.
    fn pause(&mut self) -> Duration {
        Duration::from_millis(500 + self.below(3500))
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// A port that the system gives to nobody by chance while the service is away.
fn quiet_port(chance: &mut Chance) -> u16 {
    let mut ports = std::iter::repeat_with(|| 20_000 + chance.below(10_000) as u16);
    ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).unwrap()
}

/// `rowhouse serve` as a process.
struct Service {
    database: String,
    port: u16,
    folder: PathBuf,
    child: Child,
}

impl Service {
    fn start(database: &str, port: u16, folder: &Path) -> Self {
        let migrated = command(database, port, folder, "migrate").status().unwrap();
        assert!(migrated.success());
        let child = command(database, port, folder, "serve").spawn().unwrap();
        Self { database: database.into(), port, folder: folder.into(), child }
    }

    /// Ends it with SIGKILL and starts it again at once.
    fn crash(&mut self) {
        assert!(
            self.child.try_wait().unwrap().is_none(),
            "it ended by itself; see {}",
            self.folder.display()
        );
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = command(&self.database, self.port, &self.folder, "serve").spawn().unwrap();
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(database: &str, port: u16, folder: &Path, what: &str) -> Command {
    let log = fs::File::options().create(true).append(true).open(folder.join("log")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_rowhouse"));
    command.arg(what).env_clear().env("PATH", std::env::var_os("PATH").unwrap());
    command.current_dir(folder).stdout(Stdio::null()).stderr(log);
    command
        .env("DATABASE_URL", database)
        .env("DATABASE_POOL_SIZE", "6")
        .env("DATABASE_SECONDS_PER_MINUTE", "0")
        .env("ROWHOUSE_SECRET_KEY", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=")
        .env("HTTP_LISTEN", format!("127.0.0.1:{port}"))
        // A key whose request died with the process is free again after twice this time.
        .env("HTTP_REQUEST_TIMEOUT_SECONDS", "3")
        .env("WEBHOOKS_ALLOW_LOOPBACK", "true")
        .env("WEBHOOKS_PER_SECOND", "100000")
        .env("MAIL_FOLDER", folder.join("mail"))
        .env("LOG_LEVEL", "warn");
    for limit in [
        "ANONYMOUS",
        "USER",
        "ORGANIZATION",
        "ORGANIZATION_PROFESSIONAL",
        "ORGANIZATION_ENTERPRISE",
        "REGISTER",
        "LOGIN",
        "CHANGE_PASSWORD",
        "PASSWORD_RESET",
        "INVITATIONS",
        "MAIL",
    ] {
        command.env(format!("LIMIT_{limit}"), "off");
    }
    command
}

/// An organization with a webhook for everything.
struct House {
    base: String,
    http: reqwest::Client,
    id: String,
    token: String,
    secret: String,
    /// Where its receiver listens.
    path: String,
}

/// What became of a change.
enum Outcome {
    /// Committed; its id, where the answer was not lost.
    Done(Option<String>),
    /// Nobody knows yet: to be sent again with the same key.
    Unknown,
}

impl House {
    async fn open(base: &str, http: &reqwest::Client, receiver: &Receiver, n: usize) -> Self {
        // While the service prepares schemas, a request may take longer than it is given here.
        let made: Value = loop {
            let organization = format!("House {n}");
            let body =
                json!({"email": unique_email(), "password": PASSWORD, "organization_name": organization});
            let answer = http.post(format!("{base}/auth/register")).json(&body).send().await.unwrap();
            if answer.status() == 201 {
                break answer.json().await.unwrap();
            }
            assert!(answer.status().is_server_error(), "{}", answer.text().await.unwrap());
            sleep(Duration::from_millis(200)).await;
        };
        let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("{made}")).to_owned();
        let (token, id) = (text(&made["access_token"]), text(&made["organization"]["id"]));
        let mut house = Self {
            base: base.into(),
            http: http.clone(),
            id,
            token,
            secret: String::new(),
            path: format!("/house/{n}"),
        };
        let body = json!({"name": "All", "url": receiver.at(&house.path), "events": ["*"]});
        let made: Value = loop {
            let request = house.post("/webhooks").header("idempotency-key", "webhook").json(&body);
            let answer = request.send().await.unwrap();
            match answer.status().as_u16() {
                201 => break answer.json().await.unwrap(),
                // The time for a request is short here.
                500.. => sleep(Duration::from_millis(200)).await,
                _ => panic!("{}", answer.text().await.unwrap()),
            }
        };
        house.secret = made["secret"].as_str().unwrap().to_owned();
        house
    }

    fn post(&self, path: &str) -> reqwest::RequestBuilder {
        let request = self.http.post(format!("{}{path}", self.base));
        request.bearer_auth(&self.token).header("x-organization-id", &self.id)
    }

    /// Makes a project that nobody else makes.
    async fn change(&self, n: usize) -> Outcome {
        let request = self.post("/projects").header("idempotency-key", format!("change-{n}"));
        let Ok(answer) = request.json(&json!({"name": name(n)})).send().await else {
            return Outcome::Unknown;
        };
        let status = answer.status().as_u16();
        let Ok(text) = answer.text().await else { return Outcome::Unknown };
        match status {
            201 => {
                let made: Value = serde_json::from_str(&text).unwrap();
                Outcome::Done(Some(made["id"].as_str().unwrap().to_owned()))
            }
            // The process died after the commit and before the answer was stored.
            409 if text.contains("was carried out") => Outcome::Done(None),
            409 if text.contains("IDEMPOTENCY_CONFLICT") => Outcome::Unknown,
            408 | 500.. => Outcome::Unknown,
            _ => panic!("{status}: {text}"),
        }
    }

    /// Every event that was told after a position.
    async fn events(&self, mut after: i64) -> Vec<Value> {
        let mut all = Vec::new();
        loop {
            let url = format!("{}/events?after={after}&limit=100", self.base);
            let request = self.http.get(url).bearer_auth(&self.token).header("x-organization-id", &self.id);
            let answer = request.send().await.unwrap();
            if answer.status().is_server_error() {
                sleep(Duration::from_millis(200)).await;
                continue;
            }
            let page: Value = answer.json().await.unwrap();
            let page = page["data"].as_array().unwrap_or_else(|| panic!("{page}")).clone();
            let Some(last) = page.last() else { return all };
            after = position(last);
            all.extend(page);
        }
    }
}

fn name(n: usize) -> String {
    format!("Change {n}")
}

fn position(event: &Value) -> i64 {
    event["position"].as_i64().unwrap()
}

fn of_changes(events: &[Value]) -> impl Iterator<Item = &Value> {
    events.iter().filter(|event| event["type"] == "project.created")
}

/// What is left to do, and what is done: the ids of the projects.
struct Work {
    waiting: Mutex<VecDeque<usize>>,
    done: Mutex<BTreeMap<usize, Option<String>>>,
}

/// Does changes until all are done, whatever comes between.
async fn write(work: Arc<Work>, houses: Arc<Vec<House>>) {
    loop {
        let next = work.waiting.lock().unwrap().pop_front();
        let Some(n) = next else {
            if work.done.lock().unwrap().len() == CHANGES {
                return;
            }
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        match houses[n % ORGANIZATIONS].change(n).await {
            Outcome::Done(id) => {
                work.done.lock().unwrap().insert(n, id);
            }
            Outcome::Unknown => {
                work.waiting.lock().unwrap().push_back(n);
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// The ids of the events that came to a path.
fn arrived(log: &[Received], path: &str) -> BTreeSet<String> {
    let at_path = log.iter().filter(|request| request.path == path);
    at_path.map(|request| request.header("webhook-id").to_owned()).collect()
}

fn is_signed(request: &Received, secret: &str) -> bool {
    let timestamp = request.header("webhook-timestamp").parse().unwrap();
    let id = request.header("webhook-id");
    let expected = Webhook::new(secret).unwrap().sign(id, timestamp, &request.body).unwrap();
    request.header("webhook-signature") == expected
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_committed_is_told_however_often_the_service_dies() {
    let began = Instant::now();
    let mut chance = Chance::new();
    let port = quiet_port(&mut chance);
    let folder = std::env::temp_dir().join(format!("rowhouse-crash-{}", Uuid::now_v7().simple()));
    fs::create_dir_all(&folder).unwrap();
    let database = TestApp::fresh_database();
    let mut service = Service::start(&database, port, &folder);
    let _ = rustls::crypto::ring::default_provider().install_default();
    let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(15)).build().unwrap();
    let base = format!("http://127.0.0.1:{port}/api/v1");
    let answers = || async {
        let ready = http.get(format!("http://127.0.0.1:{port}/ready")).send().await;
        ready.is_ok_and(|answer| answer.status() == 200)
    };
    within(20, "the service answers", answers).await;
    // Each change is a project, and there are thousands.
    let (sql, connection) = tokio_postgres::connect(&database, tokio_postgres::NoTls).await.unwrap();
    let connection = tokio::spawn(connection);
    sql.batch_execute("update platform.plans set projects = null").await.unwrap();
    drop(sql);
    connection.await.unwrap().unwrap();
    let receiver = Receiver::start().await;
    let mut houses = Vec::new();
    for n in 0..ORGANIZATIONS {
        houses.push(House::open(&base, &http, &receiver, n).await);
    }
    let houses = Arc::new(houses);

    let work =
        Arc::new(Work { waiting: Mutex::new((0..CHANGES).collect()), done: Mutex::new(BTreeMap::new()) });
    let mut writers = JoinSet::new();
    for _ in 0..WRITERS {
        writers.spawn(write(work.clone(), houses.clone()));
    }
    // Killed while there is something to write, and then while it is being delivered.
    let mut kills = 0;
    while work.done.lock().unwrap().len() < CHANGES {
        sleep(chance.pause()).await;
        // On a machine that is slow to start it, it must get somewhere in the end.
        if kills < 16 {
            service.crash();
            kills += 1;
        }
    }
    let (done, came) = (work.done.lock().unwrap().len(), receiver.count());
    println!("{:.1?}: killed {kills} times; {done} changes, {came} requests", began.elapsed());
    assert!(kills >= 3, "{kills}");
    let before = receiver.count();
    within(60, "what the dead left is taken over", || async {
        receiver.count() > before + 200 || receiver.count() >= CHANGES
    })
    .await;
    for _ in 0..2 {
        sleep(chance.pause() / 4).await;
        service.crash();
    }
    println!("{:.1?}: killed twice more; {} requests", began.elapsed(), receiver.count());
    while let Some(writer) = writers.join_next().await {
        writer.unwrap();
    }
    println!("{:.1?}: all changes are made", began.elapsed());
    within(20, "the service answers", answers).await;

    // Everything is told...
    let done = work.done.lock().unwrap().clone();
    let mut told: Vec<Vec<Value>> = vec![Vec::new(); ORGANIZATIONS];
    let patience = Instant::now();
    for (n, house) in houses.iter().enumerate() {
        let expected: BTreeSet<String> = (n..CHANGES).step_by(ORGANIZATIONS).map(name).collect();
        while of_changes(&told[n]).count() < expected.len() {
            assert!(patience.elapsed() < Duration::from_secs(300), "{} events are told", told[n].len());
            let after = told[n].last().map_or(0, position);
            told[n].extend(house.events(after).await);
            sleep(Duration::from_millis(100)).await;
        }
        // ... once, without a gap, and whatever was answered is among it.
        assert_eq!(of_changes(&told[n]).count(), expected.len(), "each change is committed once");
        let names: BTreeSet<String> =
            of_changes(&told[n]).map(|event| event["data"]["name"].as_str().unwrap().to_owned()).collect();
        assert_eq!(names, expected);
        let positions: Vec<i64> = told[n].iter().map(position).collect();
        assert_eq!(positions, (1..=positions.len() as i64).collect::<Vec<i64>>());
        let made: BTreeSet<&str> =
            of_changes(&told[n]).map(|event| event["resource_id"].as_str().unwrap()).collect();
        let answered = done.iter().filter(|(change, _)| *change % ORGANIZATIONS == n);
        assert!(answered.filter_map(|(_, id)| id.as_deref()).all(|id| made.contains(id)));
    }

    // ... and arrives,
    let (mut seen, mut since) = (0, Instant::now());
    for (house, told) in houses.iter().zip(&told) {
        let wanted: BTreeSet<String> =
            of_changes(told).map(|event| event["id"].as_str().unwrap().to_owned()).collect();
        loop {
            let missing = receiver.look(|log| &wanted - &arrived(log, &house.path));
            if missing.is_empty() {
                break;
            }
            if receiver.count() > seen {
                (seen, since) = (receiver.count(), Instant::now());
            }
            let patient = since.elapsed() < Duration::from_secs(120) && receiver.count() < 20 * CHANGES;
            assert!(patient, "{} of {} never came; see {}", missing.len(), wanted.len(), folder.display());
            sleep(Duration::from_millis(250)).await;
        }
    }
    // at the right place, signed, for the first time in its order.
    let log = receiver.received();
    let mut duplicates = 0;
    for house in houses.iter() {
        let (mut met, mut last) = (BTreeSet::new(), 0);
        for request in log.iter().filter(|request| request.path == house.path) {
            let event = request.json();
            assert_eq!(event["organization_id"], house.id.as_str());
            assert_eq!(event["id"], request.header("webhook-id"));
            assert!(is_signed(request, &house.secret));
            if met.insert(event["id"].to_string()) {
                assert!(position(&event) > last, "{} came after {last}", position(&event));
                last = position(&event);
            } else {
                duplicates += 1;
            }
        }
    }
    println!("{:.1?}: {} requests, {duplicates} of them again", began.elapsed(), log.len());
    drop(service);
    fs::remove_dir_all(folder).unwrap();
}

/// Requests and jobs in processes of their own.
#[tokio::test]
async fn the_web_answers_and_a_worker_does_the_work() {
    let mut chance = Chance::new();
    let port = quiet_port(&mut chance);
    let folder = std::env::temp_dir().join(format!("rowhouse-split-{}", Uuid::now_v7().simple()));
    fs::create_dir_all(&folder).unwrap();
    let database = TestApp::fresh_database();
    assert!(command(&database, port, &folder, "migrate").status().unwrap().success());
    let start = |child| Service { database: database.clone(), port, folder: folder.clone(), child };
    let _web = start(command(&database, port, &folder, "serve").arg("--web-only").spawn().unwrap());
    let _ = rustls::crypto::ring::default_provider().install_default();
    let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(15)).build().unwrap();
    within(20, "the service answers", || async {
        let ready = http.get(format!("http://127.0.0.1:{port}/ready")).send().await;
        ready.is_ok_and(|answer| answer.status() == 200)
    })
    .await;
    let receiver = Receiver::start().await;
    let house = House::open(&format!("http://127.0.0.1:{port}/api/v1"), &http, &receiver, 0).await;
    while !matches!(house.change(0).await, Outcome::Done(_)) {
        sleep(Duration::from_millis(200)).await;
    }
    sleep(Duration::from_secs(2)).await;
    assert_eq!(receiver.count(), 0, "nobody does jobs yet");
    let _worker = start(command(&database, port, &folder, "worker").spawn().unwrap());
    within(10, "the worker does them", || async {
        receiver.received().iter().any(|request| request.json()["type"] == "project.created")
    })
    .await;
    let schedules = command(&database, port, &folder, "schedule").arg("list").stdout(Stdio::piped()).output();
    let schedules = String::from_utf8(schedules.unwrap().stdout).unwrap();
    for name in ["expired-sessions", "weekly-reports", "notification-digest", "trim-logs", "sweep"] {
        assert!(schedules.lines().any(|line| line.starts_with(name)), "{schedules}");
    }
    fs::remove_dir_all(&folder).unwrap();
}
