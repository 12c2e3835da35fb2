//! The command line, run as a person runs it.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use rowhouse::db::migrations::all_sets;
use serde_json::{Value, json};

use crate::support::{PASSWORD, TestApp, within};

const SECRET_KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

/// Runs a command against a database; the environment is only what is given here.
pub fn rowhouse(database: &str, args: &[&str]) -> Output {
    command(database, args).output().unwrap()
}

pub fn command(database: &str, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rowhouse"));
    command.args(args).env_clear().env("PATH", std::env::var_os("PATH").unwrap());
    command
        .env("DATABASE_URL", database)
        .env("ROWHOUSE_SECRET_KEY", SECRET_KEY)
        .env("HTTP_LISTEN", "127.0.0.1:0");
    command.current_dir(std::env::temp_dir());
    command
}

/// Sends a signal to a process, or to a group of them with a minus before its id.
pub fn signal(name: &str, id: &str) {
    let sent = Command::new("sh").args(["-c", "kill -s \"$0\" -- \"$1\"", name, id]).status().unwrap();
    assert!(sent.success(), "{name} to {id}");
}

#[track_caller]
pub fn works(output: Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    out.into_owned()
}

#[track_caller]
pub fn fails(output: Output) -> String {
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn help_teaches() {
    let help = works(rowhouse("", &["--help"]));
    for word in ["serve", "dev", "migrate", "tenant", "user", "openapi", "doctor", "config", "rowhouse dev"] {
        assert!(help.contains(word), "{word} is missing: {help}");
    }
    for command in ["serve", "dev", "migrate", "tenant", "user", "openapi", "doctor", "config"] {
        works(rowhouse("", &[command, "--help"]));
    }
}

#[test]
fn an_empty_database_becomes_an_installation_step_by_step() {
    let database = TestApp::fresh_database();
    let said = fails(rowhouse(&database, &["doctor"]));
    assert!(said.contains("run `rowhouse migrate`"), "{said}");
    let said = fails(rowhouse(&database, &["serve"]));
    assert!(said.contains("run `rowhouse migrate` first"), "{said}");
    let said = works(rowhouse(&database, &["migrate"]));
    assert!(said.contains("platform: from version 0 to"), "{said}");
    let said = works(rowhouse(&database, &["migrate"]));
    assert!(said.contains("platform: current"), "{said}");
    assert!(works(rowhouse(&database, &["doctor"])).contains("Everything is in order."));

    let said =
        fails(rowhouse(&database, &["tenant", "create", "--name", "Initech", "--owner", "boss@example.com"]));
    assert!(said.contains("there is no active account boss@example.com"), "{said}");
    let mut child = command(&database, &["user", "create-superuser", "--email", "boss@example.com"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(format!("{PASSWORD}\n").as_bytes()).unwrap();
    assert!(works(child.wait_with_output().unwrap()).contains("made superuser boss@example.com"));
    let raise = ["user", "create-superuser", "--email", "boss@example.com", "--existing"];
    let again = works(rowhouse(&database, &raise));
    assert!(again.contains("is a superuser now"), "{again}");
    let create = ["tenant", "create", "--name", "Initech", "--owner", "boss@example.com"];
    let said = works(rowhouse(&database, &create));
    assert!(said.contains("made initech") && said.contains("in schema tenant_"), "{said}");
    let said = fails(rowhouse(
        &database,
        &["tenant", "create", "--name", "X", "--slug", "initech", "--owner", "boss@example.com"],
    ));
    assert!(said.contains("taken"), "{said}");
    let said = works(rowhouse(&database, &["tenant", "list"]));
    assert!(said.contains("initech") && said.contains("1 organizations"), "{said}");
    let said = works(rowhouse(&database, &["tenant", "show", "initech"]));
    assert!(said.contains("boss@example.com as owner") && said.contains("work at version"), "{said}");
    let said = fails(rowhouse(&database, &["tenant", "show", "hooli"]));
    assert!(said.contains("rowhouse tenant list"), "{said}");
}

#[test]
fn two_migrations_at_once_do_no_harm() {
    let database = TestApp::fresh_database();
    let children: Vec<Child> = (0..4)
        .map(|_| {
            command(&database, &["migrate"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for child in children {
        works(child.wait_with_output().unwrap());
    }
    works(rowhouse(&database, &["doctor"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_migrations_of_the_same_tenants_share_the_work() {
    let app = TestApp::with(|config| config.tenancy.spare_schemas = 12);
    let team = app.team().await;
    within(20, "the stock is full", || async {
        app.number("select count(*) from platform.tenant_schemas where state = 'spare'").await >= 12
    })
    .await;
    // As before the first migration of module work.
    let work = all_sets().into_iter().find(|set| set.module == "work").unwrap();
    let schemas = app
        .texts("select 'tenant_' || replace(id::text, '-', '') from platform.tenant_schemas order by id")
        .await;
    for schema in &schemas {
        let tables: Vec<String> = work.tables().iter().map(|name| format!("{schema}.{name}")).collect();
        app.sql(&format!("drop table {} cascade", tables.join(", "))).await;
    }
    app.sql("update platform.tenant_schema_modules set version = 0, checksum = '' where module = 'work'")
        .await;
    let database = app.database();
    // Somebody holds on to a table of one tenant for longer than a migration waits for a lock.
    let children: Vec<Child> = (0..2)
        .map(|_| {
            let mut run = command(&database, &["migrate", "--jobs", "50"]);
            run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for child in children {
        works(child.wait_with_output().unwrap());
    }
    let behind = format!(
        "select count(*) from platform.tenant_schema_modules where module = 'work' \
         and (version < {} or last_error is not null)",
        work.latest()
    );
    assert_eq!(app.number(&behind).await, 0);
    let project = team.project("After").await;
    team.task(&project, "After").await;
}

#[test]
fn looking_for_trouble_changes_nothing() {
    let database = TestApp::fresh_database();
    works(rowhouse(&database, &["migrate"]));
    let mut doctor = command(&database, &["doctor"]);
    doctor.env("ROWHOUSE_SECRET_KEY", "HxwdHBsaGRgXFhUUExIREA8ODQwLCgkIBwYFBAMCAQA=");
    works(doctor.output().unwrap());
    // A key made under that other secret would keep this one from starting.
    let mut serve = command(&database, &["serve"]);
    let mut child = serve.env("HTTP_LISTEN", "127.0.0.1:0").stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_secs(2));
    assert!(child.try_wait().unwrap().is_none(), "the service runs");
    child.kill().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_else_s_account_is_not_raised_by_mistake() {
    let app = TestApp::with(|_| {});
    let squatter = app.person().await;
    let said = fails(rowhouse(&app.database(), &["user", "create-superuser", "--email", &squatter.email]));
    assert!(said.contains("--existing"), "{said}");
    assert_eq!(squatter.client.get("/auth/user").await.expect(200)["is_superuser"], false);
    works(rowhouse(&app.database(), &["user", "create-superuser", "--email", &squatter.email, "--existing"]));
    assert_eq!(squatter.client.get("/auth/user").await.expect(200)["is_superuser"], true);
}

#[test]
fn mistakes_in_the_configuration_are_named() {
    let mut missing = command("", &["migrate"]);
    missing.env_remove("DATABASE_URL");
    let said = fails(missing.output().unwrap());
    assert!(said.contains("database.url") && said.contains("DATABASE_URL"), "{said}");
    let mut short = command("postgres://a@127.0.0.1:1/b", &["config"]);
    let said = fails(short.env("ROWHOUSE_SECRET_KEY", "short").output().unwrap());
    assert!(said.contains("openssl rand -base64 32"), "{said}");
    let mut wrong = command("postgres://a@127.0.0.1:1/b", &["config"]);
    let said = fails(wrong.env("DATABASE_POOL_SIZE", "many").output().unwrap());
    assert!(said.contains("DATABASE_POOL_SIZE"), "{said}");
    let said = fails(rowhouse("not an address", &["migrate"]));
    assert!(said.contains("DATABASE_URL"), "{said}");
    let said = fails(rowhouse("postgres://nobody:hidden-word@127.0.0.1:1/none", &["doctor"]));
    assert!(said.contains("cannot be reached") && !said.contains("hidden-word"), "{said}");
}

#[test]
fn the_configuration_is_shown_without_secrets() {
    let said = works(rowhouse("postgres://someone:hidden-word@db.example.com/rows", &["config"]));
    assert!(said.contains("db.example.com:5432/rows as someone"), "{said}");
    assert!(!said.contains("hidden-word") && !said.contains(SECRET_KEY), "{said}");
    let template = works(rowhouse("", &["config", "--template"]));
    assert!(template.contains("openssl rand -base64 32") && template.contains("[tenancy]"), "{template}");
}

#[test]
fn the_document_is_written_and_checked() {
    let dir = std::env::temp_dir().join(format!("rowhouse-openapi-{}", std::process::id()));
    let path = dir.to_str().unwrap();
    works(rowhouse("", &["openapi", "--dir", path]));
    works(rowhouse("", &["openapi", "--check", "--dir", path]));
    let file = dir.join("openapi.json");
    let changed = fs::read_to_string(&file).unwrap().replace("List projects.", "List things.");
    fs::write(&file, changed).unwrap();
    let said = fails(rowhouse("", &["openapi", "--check", "--dir", path]));
    assert!(said.contains("run `rowhouse openapi`"), "{said}");
    fs::remove_dir_all(dir).unwrap();
}

/// A folder for `rowhouse dev`, empty.
pub fn home(name: &str) -> PathBuf {
    let home = std::env::temp_dir().join(format!("rowhouse-dev-{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&home);
    home
}

/// A running `rowhouse dev`.
pub struct Dev {
    child: Child,
    home: PathBuf,
    pub port: u16,
    lines: mpsc::Receiver<String>,
}

impl Dev {
    fn start(home: &Path, args: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rowhouse"));
        command.arg("dev").arg("--home").arg(home).args(["--port", "18080"]).args(args);
        Self::follow(command, home)
    }

    /// As the README says it.
    pub fn make(home: &Path) -> Self {
        let mut command = Command::new("make");
        command.current_dir(env!("CARGO_MANIFEST_DIR")).arg("dev");
        command.arg(format!("ARGS=--home {} --port 18080", home.display()));
        // A newcomer's shell has nothing of what cargo tells a test; some crates are built anew where it differs.
        let told = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
        for (name, _) in std::env::vars().filter(|(name, _)| told(name)) {
            command.env_remove(name);
        }
        Self::follow(command, home)
    }

    fn follow(mut command: Command, home: &Path) -> Self {
        use std::os::unix::process::CommandExt;
        // A group of its own, so that a signal can be sent as a terminal sends it.
        let mut child = command.process_group(0).stdout(Stdio::piped()).spawn().unwrap();
        let (line, lines) = mpsc::channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            output.lines().map_while(Result::ok).for_each(|text| drop(line.send(text)))
        });
        let mut dev = Self { child, home: home.to_owned(), port: 0, lines };
        let address = dev.wait_for("  API ");
        dev.port = address.rsplit("localhost:").next().unwrap().split('/').next().unwrap().parse().unwrap();
        dev.wait_for("Ctrl-C");
        dev
    }

    fn wait_for(&self, text: &str) -> String {
        let mut seen = String::new();
        let started = Instant::now();
        while let Ok(line) =
            self.lines.recv_timeout(Duration::from_secs(900).saturating_sub(started.elapsed()))
        {
            if line.contains(text) {
                return line;
            }
            seen = format!("{seen}\n{line}");
        }
        panic!("{text:?} was never printed: {seen}");
    }

    /// Tells it and what it started.
    fn signal(&self, name: &str) {
        signal(name, &format!("-{}", self.child.id()));
    }

    /// Asks it to stop, and checks that nothing is left running.
    pub fn stop(mut self) {
        self.signal("TERM");
        self.wait_for("Stopped.");
        self.child.wait().unwrap();
        self.nothing_runs();
        let _ = fs::remove_dir_all(&self.home);
    }

    /// Postgres removes its note when it has stopped.
    fn nothing_runs(&self) {
        let started = Instant::now();
        let note = self.home.join("postgres/data/postmaster.pid");
        while note.exists() {
            assert!(started.elapsed() < Duration::from_secs(15), "Postgres still runs: {}", note.display());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn projects(&self) -> i64 {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let api = format!("http://127.0.0.1:{}/api/v1", self.port);
            let client = reqwest::Client::builder().no_proxy().build().unwrap();
            let body = json!({"email": "olivia@acme.example", "password": PASSWORD});
            let request = client.post(format!("{api}/auth/login")).json(&body);
            let login: Value = request.send().await.unwrap().json().await.unwrap();
            let acme = |request: reqwest::RequestBuilder| {
                request.bearer_auth(login["access_token"].as_str().unwrap()).header("host", "acme.localhost")
            };
            let made = acme(client.post(format!("{api}/projects"))).json(&json!({"name": "Another"}));
            assert_eq!(made.send().await.unwrap().status(), 201);
            let list: Value =
                acme(client.get(format!("{api}/projects"))).send().await.unwrap().json().await.unwrap();
            list["total"].as_i64().unwrap()
        })
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // With what `make` started, also where a test failed.
        if let Ok(None) = self.child.try_wait() {
            self.signal("TERM");
        }
    }
}

#[test]
fn dev_starts_stops_goes_on_recovers_and_starts_over() {
    let home = home("life");
    let dev = Dev::start(&home, &[]);
    assert_eq!(dev.projects(), 4);
    // A second one in the same folder is refused; other commands find the database.
    let second =
        Command::new(env!("CARGO_BIN_EXE_rowhouse")).args(["dev", "--home"]).arg(&home).output().unwrap();
    assert!(fails(second).contains("already runs"));
    let config = home.join("rowhouse.toml");
    let mut list = command("", &["tenant", "list"]);
    list.env_remove("DATABASE_URL").env_remove("ROWHOUSE_SECRET_KEY").env("ROWHOUSE_CONFIG", &config);
    let said = works(list.output().unwrap());
    assert!(said.contains("acme") && said.contains("globex"), "{said}");
    // Ctrl-C, as a terminal sends it to the whole group.
    let mut dev = dev;
    dev.signal("INT");
    dev.wait_for("Stopped.");
    assert!(dev.child.wait().unwrap().success());
    dev.nothing_runs();

    // The data is there again; then the process is killed without a chance to clean up.
    let mut dev = Dev::start(&home, &[]);
    assert_eq!(dev.projects(), 5);
    dev.child.kill().unwrap();
    dev.child.wait().unwrap();
    let dev = Dev::start(&home, &[]);
    assert_eq!(dev.projects(), 6);
    let mut dev = dev;
    dev.signal("KILL");
    dev.child.wait().unwrap();

    let dev = Dev::start(&home, &["--reset"]);
    assert_eq!(dev.projects(), 4);
    dev.stop();
}
