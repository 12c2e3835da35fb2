//! A server to test, and people who use it.

pub mod dns;
pub mod receiver;
pub mod smtp;
pub mod stand_in;
pub mod stripe;

use std::{
    net::{SocketAddr, TcpListener as StdListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use reqwest::{Method, StatusCode, header::HeaderMap};
use rowhouse::{
    app::{App, Part},
    auth::Role,
    cli::postgres::{Keeping, PrivatePostgres},
    clock::Clock,
    config::Config,
    db::{Db, migrations::migrate_shared},
    http,
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, runtime::Runtime, task::AbortHandle};
use uuid::Uuid;

pub const PASSWORD: &str = "Correct-Horse-7-Battery";

/// Servers live as long as the process, longer than any one test's runtime.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
});

/// One Postgres for the process; its files go when the process does, however it ends.
static POSTGRES: LazyLock<PrivatePostgres> = LazyLock::new(|| {
    on_the_servers_runtime(async {
        let place = std::env::temp_dir().join(format!("rowhouse-test-{}", Uuid::now_v7().simple()));
        PrivatePostgres::start(&place, Keeping::Nothing)
            .await
            .expect("`make test` installs Postgres where it is missing")
    })
});

/// Where mail goes, and where domains are looked up.
static SMTP: LazyLock<SocketAddr> = LazyLock::new(|| on_the_servers_runtime(smtp::serve()));
static DNS: LazyLock<SocketAddr> = LazyLock::new(|| on_the_servers_runtime(dns::serve()));

/// What is in place of Twilio and of push services.
static STAND_IN: LazyLock<SocketAddr> = LazyLock::new(|| on_the_servers_runtime(stand_in::serve()));

/// A server on which one can pay, and what is in place of Stripe.
static PAYING: LazyLock<(TestApp, stripe::Stripe)> = LazyLock::new(|| {
    let stripe = stripe::Stripe::start();
    let configured = stripe.clone();
    (on_the_servers_runtime(TestApp::start_with(move |config| configured.configure(config))), stripe)
});

static SHARED: LazyLock<TestApp> = LazyLock::new(|| on_the_servers_runtime(TestApp::start_with(|_| {})));

/// A server that speaks S3, for the process.
static S3: LazyLock<S3Server> = LazyLock::new(S3Server::start);

/// The smallest picture there is.
pub const PNG: &[u8] = &[
    137, 80, 78, 71, 13, 10, 26, 10, 0, 0, 0, 13, 73, 72, 68, 82, 0, 0, 0, 1, 0, 0, 0, 1, 8, 2, 0, 0, 0, 144,
    119, 83, 222, 0, 0, 0, 12, 73, 68, 65, 84, 120, 156, 99, 56, 33, 32, 0, 0, 2, 140, 0, 233, 117, 95, 132,
    200, 0, 0, 0, 0, 73, 69, 78, 68, 174, 66, 96, 130,
];

/// A bucket at a real server that speaks S3 and checks signatures.
pub struct S3Server {
    pub endpoint: String,
    /// What is in the bucket, as files.
    pub bucket: PathBuf,
    /// Ends when the process does, however it ends: it waits for the end of its input.
    _child: Child,
}

/// The server that tests share.
pub fn s3() -> &'static S3Server {
    &S3
}

impl S3Server {
    fn start() -> Self {
        let own = Path::new(env!("CARGO_MANIFEST_DIR")).join(".ci/tools/bin/rclone");
        let program = if own.is_file() { own } else { "rclone".into() };
        let port = StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let root = std::env::temp_dir().join(format!("rowhouse-test-s3-{}", Uuid::now_v7().simple()));
        let bucket = root.join("files");
        std::fs::create_dir_all(&bucket).unwrap();
        let script = "\"$0\" serve s3 --config \"$1/rclone.conf\" --auth-key KEY,SECRETSECRET --addr \"$2\" \"$1\" & \
             child=$!; cat >/dev/null; kill $child; wait $child; rm -rf \"$1\"";
        let child = Command::new("sh")
            .arg("-c")
            .arg(script)
            .args([program.as_os_str(), root.as_os_str()])
            .arg(format!("127.0.0.1:{port}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let began = std::time::Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(
                began.elapsed() < Duration::from_secs(120),
                "`make test` installs rclone where it is missing"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        Self { endpoint: format!("http://127.0.0.1:{port}"), bucket, _child: child }
    }

    /// Has a server keep its files here, below a folder of its own in the bucket.
    pub fn configure(&self, config: &mut Config) -> PathBuf {
        let prefix = Uuid::now_v7().to_string();
        let files = &mut config.files;
        files.folder = None;
        (files.s3_bucket, files.s3_endpoint) = (Some("files".into()), Some(self.endpoint.clone()));
        (files.s3_access_key, files.s3_secret_key) = (Some("KEY".into()), Some("SECRETSECRET".into()));
        files.s3_prefix = prefix.clone();
        self.bucket.join(prefix)
    }
}

/// Starts what every server needs; not from within the runtime that it is started on.
fn ready() {
    LazyLock::force(&POSTGRES);
    LazyLock::force(&SMTP);
    LazyLock::force(&DNS);
    LazyLock::force(&STAND_IN);
}

/// Runs something that other tests' servers may go on with.
pub fn on_the_servers_runtime<T: Send>(work: impl Future<Output = T> + Send) -> T {
    std::thread::scope(|scope| scope.spawn(|| RUNTIME.block_on(work)).join().expect("starting the server"))
}

/// A running server.
#[derive(Clone)]
pub struct TestApp {
    pub app: Arc<App>,
    /// `http://127.0.0.1:port`
    pub base: String,
    pub http: reqwest::Client,
    /// Dropped with the last clone.
    #[allow(dead_code)]
    pub running: Arc<Running>,
}

/// Ends a server when nobody uses it any more.
pub struct Running(Vec<AbortHandle>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}

impl TestApp {
    /// The server that most tests share; organizations keep them apart.
    pub fn shared() -> Self {
        ready();
        // A client belongs to the runtime of the test that uses it.
        Self { http: client(), ..SHARED.clone() }
    }

    /// The server that tests share on which one can pay, and its Stripe.
    pub fn paying() -> (Self, stripe::Stripe) {
        ready();
        let (app, stripe) = PAYING.clone();
        (Self { http: client(), ..app }, stripe)
    }

    /// A server with a database and a configuration of its own.
    pub fn with(change: impl FnOnce(&mut Config) + Send) -> Self {
        ready();
        Self { http: client(), ..on_the_servers_runtime(Self::start_with(change)) }
    }

    /// The address of a new, empty database.
    pub fn fresh_database() -> String {
        let name = format!("test_{}", Uuid::now_v7().simple());
        ready();
        let config = configuration(&name);
        on_the_servers_runtime(async { Db::create_database_if_missing(&config.database).await.unwrap() });
        database_url(&name)
    }

    /// A second instance over the same database.
    pub fn beside(&self) -> Self {
        self.beside_with(|_| {})
    }

    /// One that is configured otherwise.
    pub fn beside_with(&self, change: impl FnOnce(&mut Config) + Send) -> Self {
        let mut config = self.app.config.clone();
        change(&mut config);
        on_the_servers_runtime(Self::serve(config))
    }

    async fn start_with(change: impl FnOnce(&mut Config) + Send) -> Self {
        let mut config = configuration(&format!("test_{}", Uuid::now_v7().simple()));
        change(&mut config);
        Db::create_database_if_missing(&config.database).await.unwrap();
        let app = App::new(config.clone(), Clock::default()).unwrap();
        migrate_shared(&app.db).await.unwrap();
        Self::serve(config).await
    }

    async fn serve(config: Config) -> Self {
        let app = App::new(config, Clock::default()).unwrap();
        let background = RUNTIME.spawn(app.start(Part::All).await.unwrap().forever());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let server = RUNTIME.spawn(http::serve(app.clone(), listener, std::future::pending()));
        let running = Arc::new(Running(vec![background.abort_handle(), server.abort_handle()]));
        Self { app, base, http: client(), running }
    }

    /// Somebody without credentials.
    pub fn anonymous(&self) -> Client {
        Client { app: self.clone(), token: None, organization: None, headers: HeaderMap::new() }
    }

    /// A new account.
    pub async fn person(&self) -> Person {
        self.register(json!({})).await
    }

    async fn register(&self, more: Value) -> Person {
        let mut body = json!({"email": unique_email(), "password": PASSWORD});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let answer = self.anonymous().post("/auth/register", body).await.expect(201);
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        Person {
            id: text(&answer["user"]["id"]),
            email: text(&answer["user"]["email"]),
            access_token: text(&answer["access_token"]),
            refresh_token: text(&answer["refresh_token"]),
            client: self.anonymous().with_token(answer["access_token"].as_str().unwrap()),
            organization: answer["organization"].clone(),
        }
    }

    /// A new account of the platform's staff.
    pub async fn superuser(&self) -> Person {
        let person = self.person().await;
        let raise = "update platform.users set is_superuser = true, mfa_enabled_at = now() where id";
        self.sql(&format!("{raise} = '{}'", person.id)).await;
        person
    }

    /// A new organization with its owner, whose address is verified.
    pub async fn team(&self) -> Team {
        let owner = self.register(json!({"organization_name": "Test Team"})).await;
        self.verify(&owner).await;
        let (id, slug) =
            (owner.organization["id"].as_str().unwrap(), owner.organization["slug"].as_str().unwrap());
        let team = Team {
            app: self.clone(),
            id: id.into(),
            slug: slug.into(),
            owner: owner.client.within(id),
            founder: owner,
        };
        // Limits are in the way of few tests only; those ask for a plan.
        team.plan("enterprise").await;
        team
    }

    /// As if the mail had been answered.
    pub async fn verify(&self, person: &Person) {
        let sql = format!("update platform.users set email_verified_at = now() where id = '{}'", person.id);
        self.sql(&sql).await;
    }

    /// The first mail of this kind to somebody, waiting for it.
    pub async fn mail(&self, to: &str, subject: &str) -> smtp::Mail {
        let find = || smtp::sent_to(to).into_iter().rfind(|mail| mail.subject.contains(subject));
        within(5, &format!("mail to {to}: {subject}"), || async { find().is_some() }).await;
        find().unwrap()
    }

    /// Whether this instance counts requests together with others now.
    pub async fn shares_limits(&self) -> bool {
        let app = self.app.clone();
        // The connection lives on the runtime that it was made on.
        RUNTIME.spawn(async move { app.limits.is_shared().await }).await.unwrap()
    }

    /// Runs a statement on the platform tables.
    pub async fn sql(&self, sql: &str) {
        let app = self.app.clone();
        let sql = sql.to_owned();
        let run = async move {
            let tx = app.db.begin().await.unwrap();
            tx.command("set local statement_timeout to 0").await.unwrap();
            tx.execute(&sql, &[]).await.unwrap();
            tx.commit().await.unwrap();
            // Past the service, which would have said whose access it is about.
            app.db.access().all_changed();
        };
        RUNTIME.spawn(run).await.unwrap();
    }

    /// The texts that a statement on the platform tables answers.
    pub async fn texts(&self, sql: &str) -> Vec<String> {
        let app = self.app.clone();
        let sql = sql.to_owned();
        let run = async move {
            let tx = app.db.begin().await.unwrap();
            let rows = tx.query(&sql, &[]).await.unwrap();
            rows.iter().map(|row| row.try_get(0).unwrap()).collect()
        };
        RUNTIME.spawn(run).await.unwrap()
    }

    /// Waits until so many statements wait for a lock of somebody else's.
    pub async fn held_up(&self, count: i64) {
        let sql = "select count(*) from pg_stat_activity where datname = current_database() \
                   and wait_event_type = 'Lock'";
        within(5, "waiting for a lock", || async { self.number(sql).await >= count }).await;
    }

    /// The address of this server's database.
    pub fn database(&self) -> String {
        use secrecy::ExposeSecret;
        self.app.config.database.url.expose_secret().to_owned()
    }

    /// The one number that a statement on the platform tables answers.
    pub async fn number(&self, sql: &str) -> i64 {
        let app = self.app.clone();
        let sql = sql.to_owned();
        let run = async move {
            let tx = app.db.begin().await.unwrap();
            tx.query_one(&sql, &[]).await.unwrap().try_get(0).unwrap()
        };
        RUNTIME.spawn(run).await.unwrap()
    }
}

fn client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(300)).build().unwrap()
}

/// A configuration for a database of this name on the process's Postgres.
pub fn configuration(database: &str) -> Config {
    use confique::Config as _;
    let text = format!(
        "[database]\nurl = {:?}\npool_size = 4\npool_wait_seconds = 30\nseconds_per_minute = 0\n[auth]\nsecret_key = \"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\"\n\
         lockout_attempts = 1000\n\
         [limits]\nconcurrent = 0\nanonymous = \"off\"\nuser = \"off\"\norganization = \"off\"\nregister = \"off\"\nlogin = \"off\"\n\
         change_password = \"off\"\npassword_reset = \"off\"\ninvitations = \"off\"\nmail = \"off\"\nsms_codes = \"off\"\nsms = \"off\"\nsms_organization = \"off\"\n\
         [mail]\nsmtp_url = \"smtp://{}\"\n\
         [notifications]\ntwilio_base_url = \"http://{}\"\ntwilio_account_sid = \"AC0123456789abcdef0123456789abcdef\"\n\
         twilio_auth_token = \"twilio-secret\"\ntwilio_from = \"+6580000000\"\n\
         vapid_private_key = \"65bE-ck0Yh1K28TIrGYN9tdGYunlVtQm9zIvfLRwN0E\"\nvapid_subject = \"mailto:ops@example.com\"\n\
         [webhooks]\nallow_loopback = true\nper_second = 10000\n\
         [tenancy]\nspare_schemas = 2\ndns_server = \"{}\"\n\
         [backups]\nfolder = {:?}\n[files]\nfolder = {:?}\n",
        database_url(database),
        *SMTP,
        *STAND_IN,
        *DNS,
        std::env::temp_dir().join(format!("rowhouse-test-backups-{}", std::process::id())),
        files_of(database),
    );
    let layer: <Config as confique::Config>::Layer = toml::from_str(&text).unwrap();
    Config::builder().preloaded(layer).load().unwrap()
}

/// Where servers over a database keep files, unless a test says otherwise. What none of its organizations
/// has is cleared away from there in time, so others have theirs elsewhere.
fn files_of(database: &str) -> PathBuf {
    std::env::temp_dir().join(format!("rowhouse-test-files-{}", std::process::id())).join(database)
}

/// The address of a database of this name on the process's Postgres.
pub fn database_url(database: &str) -> String {
    use secrecy::ExposeSecret;
    POSTGRES.url(database).expose_secret().to_owned()
}

pub fn unique_email() -> String {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    format!("p{}-{}@example.com", COUNT.fetch_add(1, Ordering::Relaxed), Uuid::now_v7().simple())
}

/// Where the stand-in for other people's servers is.
pub fn stand_in_address() -> SocketAddr {
    *STAND_IN
}

/// An account and its first session.
#[derive(Clone)]
pub struct Person {
    pub id: String,
    pub email: String,
    pub access_token: String,
    pub refresh_token: String,
    pub client: Client,
    pub organization: Value,
}

/// An organization and its owner.
#[derive(Clone)]
pub struct Team {
    pub app: TestApp,
    pub id: String,
    pub slug: String,
    /// The owner's client, within the organization.
    pub owner: Client,
    pub founder: Person,
}

impl Team {
    /// A new account that joins in this role; its client is within the organization.
    pub async fn join(&self, role: Role) -> Person {
        let mut person = self.app.person().await;
        self.app.verify(&person).await;
        self.add(&person, role).await;
        person.client = person.client.within(&self.id);
        person
    }

    /// Everything that follows from what was done so far is done, but for what waits for its time.
    pub async fn settled(&self) {
        let sql = format!(
            "select (select count(*) from platform.outbox where organization_id = '{0}') \
             + (select count(*) from platform.jobs where organization_id = '{0}' \
             and (state <> 'waiting' or attempts > 0))",
            self.id
        );
        within(15, "every job is done", || async { self.app.number(&sql).await == 0 }).await;
    }

    pub async fn add(&self, person: &Person, role: Role) {
        self.app
            .sql(&format!(
                "insert into platform.organization_members (organization_id, user_id, role, joined_at, updated_at) \
                 values ('{}', '{}', '{role}', now(), now())",
                self.id, person.id
            ))
            .await;
    }

    /// Puts the organization on a plan as staff do; on free as it was at first.
    pub async fn plan(&self, plan: &str) {
        let (id, given) = (&self.id, if plan == "free" { "null".into() } else { format!("'{plan}'") });
        self.app
            .sql(&format!(
                "with given as (insert into platform.subscriptions (organization_id, plan_override, updated_at) \
                   values ('{id}', {given}, now()) \
                   on conflict (organization_id) do update set plan_override = excluded.plan_override), \
                 changed as (update platform.organizations set plan = '{plan}' where id = '{id}' returning id) \
                 select pg_notify('rowhouse_directory', id::text) from changed"
            ))
            .await;
        self.app.app.directory.forget(id.parse().unwrap());
    }

    /// Pays for a plan at Stripe, unless there is a subscription already.
    pub async fn subscribe(&self, stripe: &stripe::Stripe, plan: &str) {
        let current = || async { self.owner.get("/subscriptions/current").await.expect(200) };
        if current().await["state"] != "free" {
            return;
        }
        let page = self.owner.post("/subscriptions/checkout", json!({"plan": plan})).await.expect(200);
        stripe.complete_checkout(page["url"].as_str().unwrap().rsplit('/').next().unwrap());
        let sql = format!(
            "select stripe_customer_id from platform.subscriptions where organization_id = '{}'",
            self.id
        );
        let customer = self.app.texts(&sql).await.remove(0);
        for event in stripe.events() {
            if event.to_string().contains(&customer) {
                stripe::deliver(&self.app, &event).await.expect(200);
            }
        }
        within(10, "the subscription", || async { current().await["state"] != "free" }).await;
    }

    /// Has a module enabled, and waits until it is.
    pub async fn enable(&self, module: &str) {
        let path = self.path(&format!("/modules/{module}"));
        // It may be in the middle of being removed.
        within(30, &format!("the wish for {module}"), || async {
            Answer::of(self.owner.request(Method::PUT, &path)).await.status == 202
        })
        .await;
        let state = || async { self.owner.get(&path).await.expect(200)["state"].clone() };
        within(30, &format!("the module {module}"), || async { state().await == "enabled" }).await;
        // Whoever did the job has told everybody by and by.
        self.app.app.directory.forget(self.id.parse().unwrap());
    }

    pub async fn project(&self, name: &str) -> Value {
        self.owner.post("/projects", json!({"name": name})).await.expect(201)
    }

    pub async fn task(&self, project: &Value, title: &str) -> Value {
        self.owner.post("/tasks", json!({"project_id": project["id"], "title": title})).await.expect(201)
    }

    /// The name of its schema.
    pub async fn schema(&self) -> String {
        let sql = format!(
            "select 'tenant_' || replace(schema_id::text, '-', '') from platform.organizations where id = '{}'",
            self.id
        );
        self.app.texts(&sql).await.remove(0)
    }

    /// Uploads a file as the owner.
    pub async fn upload(&self, name: &str, content: impl Into<reqwest::Body>) -> Value {
        let path = format!("/files?name={name}");
        self.owner.raw(Method::POST, &path, "application/octet-stream", content).await.expect(201)
    }

    /// A path below the organization.
    pub fn path(&self, rest: &str) -> String {
        format!("/organizations/{}{rest}", self.id)
    }
}

/// Sends requests as somebody, for some organization.
#[derive(Clone)]
pub struct Client {
    pub app: TestApp,
    token: Option<String>,
    organization: Option<String>,
    headers: HeaderMap,
}

impl Client {
    pub fn with_token(&self, token: &str) -> Self {
        Self { token: Some(token.into()), ..self.clone() }
    }

    pub fn within(&self, organization: &str) -> Self {
        Self { organization: Some(organization.into()), ..self.clone() }
    }

    pub fn header(&self, name: &'static str, value: &str) -> Self {
        let mut client = self.clone();
        client.headers.insert(name, value.parse().unwrap());
        client
    }

    /// The same person at another instance.
    pub fn at(&self, app: &TestApp) -> Self {
        Self { app: app.clone(), ..self.clone() }
    }

    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let url = match path.starts_with("/health")
            || path.starts_with("/ready")
            || path.starts_with("/openapi")
            || path.starts_with("/docs")
            || path.starts_with("/.well-known")
        {
            true => format!("{}{path}", self.app.base),
            false => format!("{}/api/v1{path}", self.app.base),
        };
        let mut request = self.app.http.request(method, url).headers(self.headers.clone());
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if let Some(organization) = &self.organization {
            request = request.header("x-organization-id", organization);
        }
        request
    }

    pub async fn get(&self, path: &str) -> Answer {
        Answer::of(self.request(Method::GET, path)).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        Answer::of(self.request(Method::POST, path).json(&body)).await
    }

    pub async fn patch(&self, path: &str, body: Value) -> Answer {
        Answer::of(self.request(Method::PATCH, path).json(&body)).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        Answer::of(self.request(Method::DELETE, path)).await
    }

    /// A body that is sent as it is.
    pub async fn raw(
        &self,
        method: Method,
        path: &str,
        kind: &str,
        body: impl Into<reqwest::Body>,
    ) -> Answer {
        Answer::of(self.request(method, path).header("content-type", kind).body(body)).await
    }
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    pub async fn of(request: reqwest::RequestBuilder) -> Self {
        let response = request.send().await.expect("the server answers");
        let (status, headers) = (response.status(), response.headers().clone());
        Self { status, headers, text: response.text().await.expect("the answer is text") }
    }

    /// The body, if the status is this one.
    #[track_caller]
    pub fn expect(self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        if self.text.is_empty() { Value::Null } else { self.json() }
    }

    /// Checks the status and the code of an error, and that it has the one shape.
    #[track_caller]
    pub fn refused(self, status: u16, code: &str) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        assert_eq!(self.headers["content-type"], "application/json; charset=utf-8");
        let body = self.json();
        let error = &body["error"];
        assert_eq!(body["success"], false, "{body}");
        assert_eq!(error["code"], code, "{body}");
        assert!(error["message"].as_str().is_some_and(|text| !text.is_empty()), "{body}");
        assert!(error["fields"].is_array() && error.get("details").is_some(), "{body}");
        assert_eq!(error["request_id"].as_str(), self.headers["x-request-id"].to_str().ok(), "{body}");
        error.clone()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }
}

/// Asks again until the answer satisfies, for at most a second.
pub async fn within_a_second<F, Fut>(what: &str, ask: F)
where
    F: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    within(1, what, ask).await;
}

/// How many times as long as it should a machine may take that does other things too, as those do that
/// run all tests at once.
pub const BUSY: u32 = 10;

/// Asks again until the answer satisfies, for as many seconds as that takes at most where nothing else
/// runs; a busy machine is given more.
pub async fn within<F, Fut>(seconds: u64, what: &str, mut ask: F)
where
    F: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    let started = std::time::Instant::now();
    while !ask().await {
        let waited = started.elapsed();
        assert!(waited < BUSY * Duration::from_secs(seconds), "not within {waited:.1?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
