//! Organizations on several Postgres servers, and on their way from one to another.

use std::{
    collections::BTreeMap,
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use reqwest::Method;
use rowhouse::{
    cli::postgres::{Keeping, PrivatePostgres},
    db::{Db, migrations::all_sets},
    tenancy::{
        databases::{self, Change},
        fleet,
    },
};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::sleep};
use uuid::Uuid;

use crate::support::{
    Answer, Client, Team, TestApp, configuration, on_the_servers_runtime, receiver::Receiver, unique_email,
    within,
};

/// The second server; its files go when the process does.
static SECOND: LazyLock<PrivatePostgres> = LazyLock::new(|| on_the_servers_runtime(another_postgres()));

async fn another_postgres() -> PrivatePostgres {
    let place = std::env::temp_dir().join(format!("rowhouse-test-{}", Uuid::now_v7().simple()));
    PrivatePostgres::start(&place, Keeping::Nothing).await.unwrap()
}

/// An empty database there.
async fn database_on(server: &PrivatePostgres) -> SecretString {
    let url = server.url(&format!("tenants_{}", Uuid::now_v7().simple()));
    let mut config = configuration("unused").database;
    config.url = url.clone();
    Db::create_database_if_missing(&config).await.unwrap();
    url
}

/// A service with two servers.
struct Fleet {
    app: TestApp,
    /// Where the databases are, by name.
    urls: BTreeMap<&'static str, String>,
}

impl Fleet {
    fn start() -> Self {
        let app = TestApp::with(|config| config.database.pool_size = 6);
        let url = {
            let second = &*SECOND;
            let service = app.app.clone();
            on_the_servers_runtime(async move {
                let url = database_on(second).await;
                databases::add(&service, &"second".parse().unwrap(), &url, 1000).await.unwrap();
                url
            })
        };
        let urls = [("primary", app.database()), ("second", url.expose_secret().to_owned())];
        Self { app, urls: urls.into() }
    }

    /// An organization on this server.
    async fn team_on(&self, server: &str) -> Team {
        for name in self.urls.keys() {
            self.accepts(name, *name == server);
        }
        let team = self.app.team().await;
        self.urls.keys().for_each(|name| self.accepts(name, true));
        assert_eq!(self.server_of(&team).await, server);
        team
    }

    fn accepts(&self, server: &str, accepts: bool) {
        let service = self.app.app.clone();
        let change = Change { accepts: Some(accepts), ..Change::default() };
        on_the_servers_runtime(async move { databases::change(&service, server, &change).await.unwrap() });
    }

    /// What the platform says of where an organization is.
    async fn server_of(&self, team: &Team) -> String {
        let of = format!(
            "select d.name from platform.organizations o join platform.tenant_schemas s on s.id = o.schema_id \
             join platform.databases d on d.id = s.database_id where o.id = '{}'",
            team.id
        );
        self.app.texts(&of).await.remove(0)
    }

    /// What a statement in the organization's schema answers, asked past the service where it is now.
    async fn rows(&self, team: &Team, sql: &str) -> Vec<String> {
        let schema = self
            .app
            .texts(&format!(
                "select 'tenant_' || replace(schema_id::text, '-', '') from platform.organizations where id = '{}'",
                team.id
            ))
            .await
            .remove(0);
        let server = self.server_of(team).await;
        self.ask(&server, &format!("set search_path to {schema}"), sql).await
    }

    async fn number(&self, team: &Team, sql: &str) -> i64 {
        self.rows(team, &format!("select ({sql})::text")).await[0].parse().unwrap()
    }

    /// The texts that a statement answers on a server.
    async fn ask(&self, server: &str, before: &str, sql: &str) -> Vec<String> {
        let (client, connection) =
            tokio_postgres::connect(&self.urls[server], tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client.batch_execute(before).await.unwrap();
        let messages = client.simple_query(sql).await.unwrap();
        messages
            .iter()
            .filter_map(|message| match message {
                tokio_postgres::SimpleQueryMessage::Row(row) => {
                    Some(row.get(0).unwrap_or_default().to_owned())
                }
                _ => None,
            })
            .collect()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rowhouse"));
        command.args(arguments).env_clear().env("PATH", std::env::var_os("PATH").unwrap());
        command.env("DATABASE_URL", &self.urls["primary"]).env("LOG_LEVEL", "warn");
        command.env("ROWHOUSE_SECRET_KEY", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=");
        command.current_dir(std::env::temp_dir()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs a command to its end while everything else goes on.
    async fn run(&self, arguments: &[&str]) -> Output {
        let mut command = self.command(arguments);
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    fn begin_move(&self, team: &Team, to: &str) -> Child {
        self.command(&["tenant", "move", &team.slug, "--database", to]).spawn().unwrap()
    }

    /// Moves it, and says for how many milliseconds it was paused.
    async fn moves(&self, team: &Team, to: &str) -> u64 {
        let said = works(self.run(&["tenant", "move", &team.slug, "--database", to, "--pause", "60"]).await);
        assert_eq!(self.server_of(team).await, to, "{said}");
        let paused = said.split("paused for ").nth(1).unwrap_or_else(|| panic!("{said}"));
        paused.split(' ').next().unwrap().parse().unwrap()
    }

    /// As if nobody had heard of whoever was killed for an hour.
    async fn an_hour_passes(&self) {
        let long_ago = "now() - interval '1 hour'";
        for sql in [
            format!("update platform.fleet_operations set beat_at = {long_ago} where state = 'running'"),
            format!("update platform.tenant_schemas set created_at = {long_ago} where state = 'building'"),
        ] {
            self.app.sql(&sql).await;
        }
    }

    /// Everything that was written is told, once, in an order without gaps; the log is as it was sealed.
    async fn is_whole(&self, team: &Team) {
        within(30, "everything is told", || async {
            self.number(team, "select count(*) from events where position is null").await == 0
        })
        .await;
        let gaps = self.number(team, "select max(position) - count(*) from events").await;
        assert_eq!(gaps, 0, "positions have no gaps");
        let twice =
            "select count(*) - count(distinct resource_id) from events where type = 'project.created'";
        assert_eq!(self.number(team, twice).await, 0);
        let said = works(self.run(&["tenant", "audit-verify", &team.slug]).await);
        assert!(said.contains("ok"), "{said}");
        let without_seal =
            format!("select count(*) from platform.audit_unsealed where organization_id = '{}'", team.id);
        within(10, "every entry is sealed", || async { self.app.number(&without_seal).await == 0 }).await;
    }
}

#[track_caller]
fn works(output: Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    out.into_owned()
}

#[track_caller]
fn fails(output: Output) -> String {
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{said}");
    said
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_organization_on_another_server_is_like_any() {
    let fleet = Fleet::start();
    let (team, here) = (fleet.team_on("second").await, fleet.team_on("primary").await);
    let receiver = Receiver::start().await;
    let hook = json!({"name": "All", "url": receiver.at("/all"), "events": ["*"]});
    team.owner.post("/webhooks", hook).await.expect(201);
    let project = team.project("Far away").await;
    let task = team.task(&project, "Carried").await;
    let path = format!("/tasks/{}", task["id"].as_str().unwrap());
    team.owner.patch(&path, json!({"status": "done"})).await.expect(200);
    assert_eq!(team.owner.get("/projects?search=far").await.status, 200);
    here.owner.get(&path).await.refused(404, "NOT_FOUND");

    // Done once for one key, also when it is asked for many times at once.
    let keyed = team.owner.header("idempotency-key", "once");
    let many = (0..6).map(|_| keyed.post("/projects", json!({"name": "Once"})));
    let made = join_all(many).await.into_iter().filter(|answer| answer.status == 201).count();
    assert!(made >= 1);
    assert_eq!(fleet.number(&team, "select count(*) from projects where name = 'Once'").await, 1);

    // Also where nothing but the tenant's tables is changed; and whoever listens hears of it.
    let read = team.owner.header("idempotency-key", "all-read");
    for _ in 0..2 {
        read.post("/notifications/read-all", json!(null)).await.expect(204);
    }

    // Told, delivered, in figures.
    within(20, "the webhook", || async {
        receiver.received().iter().any(|one| one.mentions("task.updated"))
    })
    .await;
    let figures = team.owner.get(&team.path("/analytics")).await.expect(200);
    assert_eq!(figures["members"]["active"], 1);
    within(10, "who did something", || async {
        fleet.number(&team, "select count(*) from events where actor_kind = 'user'").await > 3
    })
    .await;
    fleet.is_whole(&team).await;

    // The last place goes to one, on whichever server that is counted.
    team.plan("free").await;
    let invitation = || json!({"email": unique_email(), "role": "member"});
    let path = team.path("/invitations");
    let invited = join_all((0..12).map(|_| team.owner.post(&path, invitation()))).await;
    assert_eq!(of_status(&invited, 201), 4, "five users, the owner among them");
    let refused = team.owner.post("/projects", json!({"name": "One more"})).await;
    refused.refused(402, "PLAN_LIMIT_REACHED");

    // Nothing of it is on the first server.
    let schema = "select count(*)::text from pg_namespace where nspname like 'tenant_%' and nspname = \
         (select 'tenant_' || replace(schema_id::text, '-', '') from platform.organizations where id = '";
    let there = fleet.ask("primary", "select 1", &format!("{schema}{}')", team.id)).await;
    assert_eq!(there, ["0"]);
}

fn of_status(answers: &[Answer], status: u16) -> usize {
    answers.iter().filter(|answer| answer.status == status).count()
}

/// What writers were told: each project that is there, with its description.
#[derive(Default)]
struct Written {
    there: Mutex<BTreeMap<String, String>>,
    made: Mutex<usize>,
    longest: Mutex<Duration>,
    stop: AtomicBool,
}

/// Sends it until it is done; the answer to a key stays the same.
async fn insist(written: &Written, client: &Client, method: Method, path: &str, body: Value) -> Answer {
    let keyed = client.header("idempotency-key", &Uuid::now_v7().to_string());
    loop {
        let began = Instant::now();
        let answer = Answer::of(keyed.request(method.clone(), path).json(&body)).await;
        {
            let mut longest = written.longest.lock().unwrap();
            *longest = (*longest).max(began.elapsed());
        }
        match answer.status.as_u16() {
            503 => sleep(Duration::from_millis(20)).await,
            409 if answer.text.contains("IDEMPOTENCY_CONFLICT") => sleep(Duration::from_millis(20)).await,
            _ => return answer,
        }
    }
}

/// Makes, changes and removes projects as fast as it can.
async fn write(written: Arc<Written>, client: Client, name: usize) {
    let mut mine: Vec<String> = Vec::new();
    for n in 0.. {
        if written.stop.load(Ordering::SeqCst) {
            return;
        }
        let described = format!("{name}-{n}");
        match n % 4 {
            0 | 1 => {
                let body = json!({"name": described, "description": described});
                let made = insist(&written, &client, Method::POST, "/projects", body).await.expect(201);
                let id = made["id"].as_str().unwrap().to_owned();
                written.there.lock().unwrap().insert(id.clone(), described);
                *written.made.lock().unwrap() += 1;
                mine.push(id);
            }
            2 => {
                let id = &mine[n / 2 % mine.len()];
                let body = json!({"description": described});
                insist(&written, &client, Method::PATCH, &format!("/projects/{id}"), body).await.expect(200);
                written.there.lock().unwrap().insert(id.clone(), described);
            }
            _ => {
                let id = mine.remove(n % mine.len());
                let gone =
                    insist(&written, &client, Method::DELETE, &format!("/projects/{id}"), json!({})).await;
                assert!([204, 404].contains(&gone.status.as_u16()), "{}", gone.text);
                written.there.lock().unwrap().remove(&id);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_moves_there_and_back_while_it_is_written_to_at_full_speed() {
    let fleet = Fleet::start();
    let team = fleet.team_on("primary").await;
    let project = team.project("Kept").await;
    for n in 0..20 {
        team.task(&project, &format!("Task {n}")).await;
    }
    let keys = "select count(*) from pg_constraint c join pg_namespace n on n.oid = c.connamespace \
         where n.nspname = current_schema() and c.contype = 'f' and c.convalidated";
    let rules = fleet.number(&team, keys).await;
    let written = Arc::new(Written::default());
    let mut writers = JoinSet::new();
    for name in 0..6 {
        writers.spawn(write(written.clone(), team.owner.clone(), name));
    }
    sleep(Duration::from_secs(1)).await;
    let mut shortest = u64::MAX;
    for to in ["second", "primary", "second"] {
        *written.longest.lock().unwrap() = Duration::ZERO;
        let paused = fleet.moves(&team, to).await;
        let (made, longest) = (*written.made.lock().unwrap(), *written.longest.lock().unwrap());
        println!(
            "to {to}: paused for {paused} ms, the slowest request took {longest:.0?}; {made} projects so far"
        );
        shortest = shortest.min(paused);
        sleep(Duration::from_secs(1)).await;
    }
    // A machine that does other things may add to one or the other.
    assert!(shortest < 5_000, "{shortest} ms");
    written.stop.store(true, Ordering::SeqCst);
    while let Some(done) = writers.join_next().await {
        done.unwrap();
    }
    // What was acknowledged is there, as it was last, and nothing else.
    let found =
        fleet.rows(&team, "select id::text || ' ' || description from projects where name <> 'Kept'").await;
    let found: BTreeMap<String, String> = found
        .iter()
        .map(|row| row.split_once(' ').unwrap())
        .map(|(id, description)| (id.to_owned(), description.to_owned()))
        .collect();
    assert_eq!(found, *written.there.lock().unwrap());
    let told = fleet.number(&team, "select count(*) from events where type = 'project.created'").await;
    assert_eq!(told as usize, *written.made.lock().unwrap() + 1, "each is made once");
    assert_eq!(fleet.number(&team, "select count(*) from tasks").await, 20);
    assert_eq!(fleet.number(&team, keys).await, rules, "the copy's rules are those of the original");
    fleet.is_whole(&team).await;
    let entries =
        fleet.app.number("select count(*) from platform.platform_audit where action = 'tenant.move'").await;
    assert_eq!(entries, 3);
    let again = works(fleet.run(&["tenant", "move", &team.slug, "--database", "second"]).await);
    assert!(again.contains("is on second already"), "{again}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_move_changes_nothing_and_can_be_repeated() {
    const ROWS: i64 = 20_000;
    let fleet = Fleet::start();
    let team = fleet.team_on("primary").await;
    let many = format!(
        "insert into projects (id, name, slug, status, priority, owner_id, created_by, created_at, updated_at) \
         select gen_random_uuid(), 'Bulk', 'bulk-' || n, 'active', 'low', '{0}', '{0}', now(), now() \
         from generate_series(1, {ROWS}) as n",
        team.founder.id
    );
    fleet.rows(&team, &many).await;
    let mut added = 0;
    for wait in [100, 400, 800, 1200, 1600, 2000, 2600] {
        let to = if fleet.server_of(&team).await == "primary" { "second" } else { "primary" };
        let mut mover = fleet.begin_move(&team, to);
        sleep(Duration::from_millis(wait)).await;
        let finished = mover.try_wait().unwrap().is_some();
        let _ = mover.kill();
        mover.wait().unwrap();
        println!("killed after {wait} ms{}", if finished { ", which was too late" } else { "" });
        // The pause ends by itself.
        within(30, "it can be written to", || async {
            team.owner.post("/projects", json!({"name": "After"})).await.status == 201
        })
        .await;
        added += 1;
        fleet.an_hour_passes().await;
    }
    let to = if fleet.server_of(&team).await == "primary" { "second" } else { "primary" };
    fleet.moves(&team, to).await;
    let there = fleet.number(&team, "select count(*) from projects where name = 'Bulk'").await;
    assert_eq!(there, ROWS);
    let there = fleet.number(&team, "select count(*) from projects where name = 'After'").await;
    assert!(there >= added, "{there} of {added}");
    fleet.is_whole(&team).await;
    // Halves are cleared away, on both servers.
    within(60, "halves are cleared away", || async {
        fleet.an_hour_passes().await;
        let service = fleet.app.app.clone();
        on_the_servers_runtime(async move { fleet::clear_away(&service).await.unwrap() });
        fleet.app.number("select count(*) from platform.tenant_schemas where state = 'building'").await == 0
    })
    .await;
    for server in ["primary", "second"] {
        let count =
            "select count(*)::text from pg_namespace where nspname ~ '^(tenant|retired)_[0-9a-f]{32}$'";
        let of = format!(
            "select count(*) from platform.tenant_schemas s join platform.databases d on d.id = s.database_id \
             where d.name = '{server}'"
        );
        within(10, "each schema has its row", || async {
            fleet.ask(server, "select 1", count).await == [fleet.app.number(&of).await.to_string()]
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_movers_one_moves() {
    let fleet = Fleet::start();
    let team = fleet.team_on("primary").await;
    let project = team.project("One of them").await;
    let arguments = ["tenant", "move", &team.slug, "--database", "second"];
    let outcomes = tokio::join!(fleet.run(&arguments), fleet.run(&arguments), fleet.run(&arguments));
    let outcomes = [outcomes.0, outcomes.1, outcomes.2];
    assert!(outcomes.iter().any(|outcome| outcome.status.success()));
    for outcome in outcomes.into_iter().filter(|outcome| !outcome.status.success()) {
        let said = fails(outcome);
        assert!(said.contains("is being done") || said.contains("already"), "{said}");
    }
    assert_eq!(fleet.server_of(&team).await, "second");
    let path = format!("/projects/{}", project["id"].as_str().unwrap());
    assert_eq!(team.owner.get(&path).await.expect(200)["name"], "One of them");
    let moves =
        fleet.app.number("select count(*) from platform.platform_audit where action = 'tenant.move'").await;
    assert_eq!(moves, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_takes_nothing_with_it() {
    let fleet = Fleet::start();
    let team = fleet.team_on("primary").await;
    let many = format!(
        "insert into projects (id, name, slug, status, priority, owner_id, created_by, created_at, updated_at) \
         select gen_random_uuid(), 'Bulk', 'bulk-' || n, 'active', 'low', '{0}', '{0}', now(), now() \
         from generate_series(1, 20000) as n",
        team.founder.id
    );
    fleet.rows(&team, &many).await;
    let service = fleet.app.app.clone();
    let third = on_the_servers_runtime(async move {
        let third = another_postgres().await;
        let url = database_on(&third).await;
        databases::add(&service, &"third".parse().unwrap(), &url, 1000).await.unwrap();
        third
    });
    let mover = fleet.begin_move(&team, "third");
    sleep(Duration::from_millis(700)).await;
    tokio::task::spawn_blocking(move || third.stop()).await.unwrap();
    let said = fails(tokio::task::spawn_blocking(move || mover.wait_with_output().unwrap()).await.unwrap());
    println!("{said}");
    within(30, "it can be written to", || async {
        team.owner.post("/projects", json!({"name": "After"})).await.status == 201
    })
    .await;
    assert_eq!(fleet.server_of(&team).await, "primary");
    assert_eq!(fleet.number(&team, "select count(*) from projects where name = 'Bulk'").await, 20_000);
    // The others go on: sign-ups go elsewhere, and what is said of the dead one is true.
    fleet.app.team().await;
    let said = fails(fleet.run(&["database", "check"]).await);
    assert!(said.contains("FAIL  third"), "{said}");
    assert!(said.contains("ok    second"), "{said}");
    // So do migrations.
    fleet
        .app
        .sql(
            "insert into platform.tenant_schemas (id, state, database_id) select gen_random_uuid(), 'spare', d.id \
             from platform.databases d cross join generate_series(1, 2) where d.name = 'third'",
        )
        .await;
    let output = fleet.run(&["migrate"]).await;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    let said = fails(output);
    assert!(said.contains("0 migrated") && said.contains("1 failed"), "{said}");
    assert!(told.contains("its server does not answer") && told.contains("1 more are on servers"), "{told}");
    let said = fails(fleet.run(&["migrate", "verify"]).await);
    assert!(said.contains("schemas could not be compared") && said.contains(" 0 differ"), "{said}");
}

/// A process that dies between the two steps of a commit on two servers leaves a prepared part.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_left_in_the_middle_of_a_commit_is_settled_as_it_was_decided() {
    let fleet = Fleet::start();
    let team = fleet.team_on("second").await;
    let server =
        fleet.app.texts("select id::text from platform.databases where name = 'second'").await.remove(0);
    let leave = async |name: &str| {
        let id = Uuid::now_v7();
        let sql = format!(
            "begin; insert into projects (id, name, slug, status, priority, owner_id, created_by, created_at, updated_at) \
             values (gen_random_uuid(), '{name}', '{name}', 'active', 'low', '{0}', '{0}', now(), now()); \
             prepare transaction 'rowhouse {id} {server} tenant'",
            team.founder.id
        );
        fleet.rows(&team, &sql).await;
        id
    };
    let decided = leave("decided").await;
    let decision = "insert into platform.decisions (id, commits, decided_at) values";
    fleet.app.sql(&format!("{decision} ('{decided}', true, now())")).await;
    leave("undecided").await;
    within(30, "both are settled", || async {
        let left = "select count(*) from pg_prepared_xacts where database = current_database()";
        fleet.number(&team, left).await == 0
    })
    .await;
    let there = fleet.rows(&team, "select name from projects order by name").await;
    assert_eq!(there, ["decided"]);
    assert_eq!(team.project("undecided").await["name"], "undecided");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spares_and_migrations_are_on_every_server() {
    let fleet = Fleet::start();
    within(30, "spares on both", || async {
        let servers = "select count(distinct database_id) from platform.tenant_schemas where state = 'spare'";
        fleet.app.number(servers).await == 2
    })
    .await;
    let said = works(fleet.run(&["migrate"]).await);
    assert!(said.contains("platform: current"), "{said}");
    // A schema of another server that is behind is brought along.
    let team = fleet.team_on("second").await;
    let work = all_sets().into_iter().find(|set| set.module == "work").unwrap();
    fleet.rows(&team, &format!("drop table {} cascade", work.tables().join(", "))).await;
    fleet
        .app
        .sql(&format!(
            "update platform.tenant_schema_modules m set version = 0, checksum = null \
             from platform.organizations o where o.id = '{}' and m.schema_id = o.schema_id and m.module = 'work'",
            team.id
        ))
        .await;
    works(fleet.run(&["migrate"]).await);
    let tables = "select count(*) from pg_tables where schemaname = current_schema() \
         and tablename in ('projects', 'tasks')";
    assert_eq!(fleet.number(&team, tables).await, 2);
    let said = works(fleet.run(&["database", "list"]).await);
    assert!(said.contains("primary") && said.contains("second"), "{said}");
    works(fleet.run(&["database", "check"]).await);
    let listed =
        works(fleet.run(&["tenant", "move", &team.slug, "--database", "primary", "--dry-run"]).await);
    assert!(listed.contains("nothing was done"), "{listed}");
    assert_eq!(fleet.server_of(&team).await, "second");
    // A schema that is not what its migrations make is not carried anywhere.
    fleet.rows(&team, "create index by_hand on projects (name)").await;
    let said = fails(fleet.run(&["tenant", "move", &team.slug, "--database", "primary"]).await);
    assert!(said.contains("+ index by_hand"), "{said}");
    fleet.rows(&team, "drop index by_hand").await;
    fleet.rows(&team, "alter table projects add column by_hand integer").await;
    let said = fails(fleet.run(&["tenant", "move", &team.slug, "--database", "primary"]).await);
    assert!(said.contains("migrate verify"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_database_of_its_own_can_be_added() {
    let fleet = Fleet::start();
    let refused =
        async |name: &str, url: &str| fails(fleet.run(&["database", "add", name, "--url", url]).await);
    let (primary, second) = (&fleet.urls["primary"], &fleet.urls["second"]);
    let said = refused("again", primary).await;
    assert!(said.contains("holds a schema platform"), "{said}");
    let said = refused("again", second).await;
    assert!(said.contains("already"), "{said}");
    let said = refused("second", second).await;
    assert!(said.contains("There is a database second already"), "{said}");
    let said = refused("nowhere", "postgres://nobody@127.0.0.1:1/none").await;
    assert!(said.contains("cannot be reached"), "{said}");
    let said = refused("nonsense", "https://example.com").await;
    assert!(said.contains("not a Postgres address"), "{said}");
    let said = fails(fleet.run(&["database", "set", "second", "--url", primary]).await);
    assert!(said.contains("another database"), "{said}");
    works(fleet.run(&["database", "set", "second", "--url", second]).await);
    let said = fails(fleet.run(&["tenant", "move", "nobody", "--database", "second"]).await);
    assert!(said.contains("there is no organization"), "{said}");
    // The address is nowhere to be read.
    let stored = "select count(*) from platform.databases where position('postgres' in encode(sealed_url, 'escape')) > 0";
    assert_eq!(fleet.app.number(stored).await, 0);
}
