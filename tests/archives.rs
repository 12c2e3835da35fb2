//! What is done to one organization as a whole: by the real command line, interrupted wherever it may be.

use std::{
    fs::{self, File},
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use chrono::{SecondsFormat, Utc};
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use rowhouse::{
    auth::{
        Role,
        sealing::{hex, sha256},
    },
    db::migrations::base_sets,
    tenancy::fleet::{
        self, backups,
        erase::{self, KEPT, REMOVED},
    },
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::commands::signal;
use crate::support::{
    Answer, Client, PASSWORD, Team, TestApp, on_the_servers_runtime, receiver::Receiver, smtp, within,
};

const SECRET_KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const OTHER_KEY: &str = "HxwdHBsaGRgXFhUUExIREA8ODQwLCgkIBwYFBAMCAQA=";

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("rowhouse-archives-{}", Uuid::now_v7().simple()));
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    fn at(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn command(database: &str, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rowhouse"));
    command.args(args).env_clear().env("PATH", std::env::var_os("PATH").unwrap());
    command.env("DATABASE_URL", database).env("ROWHOUSE_SECRET_KEY", SECRET_KEY);
    command.current_dir(std::env::temp_dir()).stdin(Stdio::null());
    command
}

fn rowhouse(app: &TestApp, args: &[&str]) -> Output {
    output(app, &mut command(&app.database(), args))
}

/// Runs a command to its end. What it changed the service hears in a moment, which may be a while on a busy
/// machine.
fn output(app: &TestApp, command: &mut Command) -> Output {
    let output = command.output().unwrap();
    app.app.directory.forget_all();
    output
}

fn begin(app: &TestApp, args: &[&str]) -> Child {
    command(&app.database(), args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[track_caller]
fn works(output: Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    format!("{out}{err}")
}

#[track_caller]
fn fails(output: Output, because: &str) {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(!output.status.success(), "{out}{err}");
    assert!(err.contains(because), "{because:?} is not in: {out}{err}");
    assert!(!err.contains("panicked"), "{err}");
}

async fn schema(app: &TestApp, organization: &str) -> String {
    let sql = format!(
        "select 'tenant_' || replace(schema_id::text, '-', '') from platform.organizations where id = '{organization}'"
    );
    app.texts(&sql).await.remove(0)
}

/// The id of the organization that has a slug now.
async fn id_of(app: &TestApp, slug: &str) -> String {
    let sql = format!("select id::text from platform.organizations where slug = '{slug}'");
    app.texts(&sql).await.remove(0)
}

/// Every row of every table but some, as text.
async fn rows(app: &TestApp, schema: &str, but: &[&str]) -> Vec<String> {
    let tables = app
        .texts(&format!("select tablename::text from pg_tables where schemaname = '{schema}' order by 1"))
        .await;
    let mut all = Vec::new();
    for table in tables.iter().filter(|table| !but.contains(&table.as_str())) {
        let sql = format!("select '{table} ' || t::text from {schema}.{table} as t order by 1");
        all.extend(app.texts(&sql).await);
    }
    all
}

/// An organization with a value of every kind that is hard to write down.
async fn odd_team(app: &TestApp) -> Team {
    let team = app.team().await;
    let (schema, user) = (schema(app, &team.id).await, &team.founder.id);
    let project = team.project("Plain").await;
    let text = r#"a "quote", a 'quote', a \ and \\n, a	tab, $1 {} 日本語 👩‍👩‍👧 null"#;
    let text =
        format!("E'{}\\nnext line\\r\\n \\u0001 \\ufeff'", text.replace('\\', "\\\\").replace('\'', "''"));
    app.sql(&format!(
        "insert into {schema}.projects (id, name, slug, description, status, priority, owner_id, created_by, start_date, \
         end_date, budget_amount, budget_currency, progress, created_at, updated_at) values \
         (gen_random_uuid(), {text}, 'odd', {text}, 'active', 'low', '{user}', '{user}', '0001-01-01', '9999-12-31', \
          999999999999999.9999, 'SGD', 33.33, '2026-01-05 09:00:00.000001+00', '1969-12-31 23:59:59.999999+08'), \
         (gen_random_uuid(), '', 'empty', null, 'active', 'low', '{user}', '{user}', null, null, 1.5000, 'SGD', 0, \
          'infinity', '-infinity')"
    ))
    .await;
    app.sql(&format!(
        "insert into {schema}.webhooks (id, name, url, events, sealed_secret, is_active, created_by, created_at, updated_at) \
         values (gen_random_uuid(), 'odd', 'https://example.com', array['a,b', 'c\"d', '\\', 'NULL', '', '{{}}', null], \
         '\\x00ff0a5c7800', false, '{user}', now(), now())"
    ))
    .await;
    app.sql(&format!(
        "insert into {schema}.events (id, position, occurred_at, type, schema_version, actor_kind, resource_id, data, changes) \
         values (gen_random_uuid(), 0, now(), 'odd', 1, 'system', gen_random_uuid(), 'null', \
         '{{\"a\": [1, 1.50, 1e400, null, \"\\u00e9\\\\\", {{}}]}}')"
    ))
    .await;
    app.sql(&format!(
        "insert into {schema}.notification_settings (user_id, quiet_from, quiet_to, digest, sms_code_mac, version, updated_at) \
         values ('{user}', '22:00:00.000001', '24:00', 'off', '\\x', 1, now())"
    ))
    .await;
    app.sql(&format!(
        "insert into {schema}.usage_counters (resource, used) values ('storage', 9223372036854775807)"
    ))
    .await;
    team.task(&project, "Do it").await;
    team
}

async fn settled(app: &TestApp, team: &Team) {
    within(10, "events are told and entries sealed", || async {
        let waits =
            |table| format!("select count(*) from platform.{table} where organization_id = '{}'", team.id);
        app.number(&waits("outbox")).await + app.number(&waits("audit_unsealed")).await == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_comes_back_exactly() {
    let (app, folder) = (TestApp::with(|_| {}), Folder::new());
    let team = odd_team(&app).await;
    settled(&app, &team).await;
    let logs = ["audit_log", "events"];
    let living = schema(&app, &team.id).await;
    let (before, told) = (rows(&app, &living, &logs).await, rows(&app, &living, &[]).await);
    let file = folder.at("odd.tar.gz");
    let said = works(rowhouse(&app, &["tenant", "export", &team.slug, "--to", &file]));
    assert!(said.contains("sha256"), "{said}");
    assert_eq!(folder.names(), ["odd.tar.gz"]);

    for table in ["tasks", "projects", "webhooks", "notification_settings", "usage_counters"] {
        app.sql(&format!("delete from {living}.{table}")).await;
    }
    team.project("Written after it").await;
    let position = app
        .number(&format!("select position from platform.event_heads where organization_id = '{}'", team.id))
        .await;
    works(rowhouse(&app, &["tenant", "restore", &team.slug, "--to", &file]));
    let now = schema(&app, &team.id).await;
    assert_ne!(now, living);
    assert_eq!(rows(&app, &now, &logs).await, before);
    // The logs went on: all that was in them is, as it was.
    let after = rows(&app, &now, &[]).await;
    for entry in told.iter().filter(|row| logs.iter().any(|log| row.starts_with(log))) {
        assert!(after.contains(entry), "{entry}");
    }
    works(rowhouse(&app, &["tenant", "audit-verify", &team.slug]));
    let heads = format!("select position from platform.event_heads where organization_id = '{}'", team.id);
    assert!(app.number(&heads).await >= position);
    // It works as before, and its events go on.
    team.project("Goes on").await;
    settled(&app, &team).await;
    assert!(app.number(&heads).await > position);
    works(rowhouse(&app, &["tenant", "audit-verify", &team.slug]));
    // Gone again, and back.
    works(rowhouse(&app, &["tenant", "restore", &team.slug, "--to", "previous"]));
    assert_eq!(schema(&app, &team.id).await, living);
    let names = team.owner.get("/projects").await.expect(200).to_string();
    assert!(names.contains("Written after it") && !names.contains("Goes on"), "{names}");
    works(rowhouse(&app, &["tenant", "audit-verify", &team.slug]));
    let audit = format!(
        "select action from platform.platform_audit where organization_id = '{}' order by id",
        team.id
    );
    assert_eq!(app.texts(&audit).await, ["tenant.export", "tenant.restore", "tenant.restore"]);
}

/// The entries of an archive.
fn unpack(file: &str) -> Vec<(String, Vec<u8>)> {
    let mut archive = tar::Archive::new(GzDecoder::new(File::open(file).unwrap()));
    let mut entries = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let (path, mut bytes) = (entry.path().unwrap().display().to_string(), Vec::new());
        entry.read_to_end(&mut bytes).unwrap();
        entries.push((path, bytes));
    }
    entries
}

fn pack(file: &str, entries: &[(String, Vec<u8>)]) {
    let mut tar = tar::Builder::new(GzEncoder::new(File::create(file).unwrap(), Compression::fast()));
    for (path, bytes) in entries {
        let mut header = tar::Header::new_gnu();
        // By hand, as the library refuses what leads outside.
        header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        header.set_cksum();
        tar.append(&header, bytes.as_slice()).unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap();
}

fn lines(entries: &[(String, Vec<u8>)], table: &str) -> usize {
    let of = entries.iter().filter(|(path, _)| path.contains(&format!("/{table}/")));
    of.map(|(_, bytes)| bytes.iter().filter(|byte| **byte == b'\n').count()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_is_of_one_moment() {
    let (app, folder) = (TestApp::with(|_| {}), Folder::new());
    let team = app.team().await;
    let (schema, user) = (schema(&app, &team.id).await, team.founder.id.clone());
    let add = |many| {
        format!(
            "with made as (insert into {schema}.projects (id, name, slug, status, priority, owner_id, created_by, created_at, updated_at) \
             select gen_random_uuid(), 'P', gen_random_uuid()::text, 'active', 'low', '{user}', '{user}', now(), now() \
             from generate_series(1, {many}) returning id) \
             insert into {schema}.project_members (project_id, user_id, added_at) select id, '{user}', now() from made"
        )
    };
    app.sql(&add(20_000)).await;
    let writer = tokio::spawn({
        let (app, one) = (app.clone(), add(1));
        async move {
            loop {
                app.sql(&one).await;
            }
        }
    });
    let file = folder.at("moment.tar.gz");
    works(rowhouse(&app, &["tenant", "export", &team.slug, "--to", &file]));
    writer.abort();
    let entries = unpack(&file);
    assert!(lines(&entries, "projects") >= 20_000);
    assert_eq!(lines(&entries, "projects"), lines(&entries, "project_members"));
    let largest = entries.iter().map(|(_, bytes)| bytes.len()).max().unwrap();
    assert!(largest < 9 << 20, "{largest}");
}

/// What an archive holds, by name.
type Entries = Vec<(String, Vec<u8>)>;

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_was_changed_is_refused() {
    let (app, folder) = (TestApp::with(|_| {}), Folder::new());
    let team = odd_team(&app).await;
    let whole = folder.at("whole.tar.gz");
    works(rowhouse(&app, &["tenant", "export", &team.slug, "--to", &whole]));
    let entries = unpack(&whole);
    let organizations = app.number("select count(*) from platform.organizations").await;
    let schemas = app.number("select count(*) from platform.tenant_schemas where state = 'building'").await;
    let file = folder.at("changed.tar.gz");
    let refused = |because: &str| {
        for args in [&["--slug", "changed"][..], &["--slug", "changed", "--unsealed"]] {
            let import = ["tenant", "import", file.as_str()];
            fails(rowhouse(&app, &[&import[..], args].concat()), because);
        }
        fails(rowhouse(&app, &["tenant", "restore", &team.slug, "--to", &file]), because);
    };
    let changed = |change: &dyn Fn(&mut Entries)| {
        let mut entries = entries.clone();
        change(&mut entries);
        pack(&file, &entries);
    };
    let place = |name: &str| entries.iter().position(|(path, _)| path.contains(name)).unwrap();
    let manifest = place("manifest.json");
    let data = place("/projects/");

    changed(&|entries| entries[data].1[10] ^= 1);
    refused("is not what its manifest says");
    changed(&|entries| drop(entries.remove(data)));
    refused("should be");
    changed(&|entries| entries.insert(data, ("data/work/projects/0.jsonl".into(), b"{}\n".to_vec())));
    refused("should be");
    changed(&|entries| entries.insert(manifest, ("data/work/tasks/99.jsonl".into(), b"{}\n".to_vec())));
    refused("does not list");
    changed(&|entries| entries.insert(data, ("../../../tmp/outside".into(), b"x".to_vec())));
    refused("which archives do not");
    changed(&|entries| entries[manifest + 1].1 = vec![b'0'; 2000]);
    refused("more than archives do");
    changed(&|entries| entries.push(("after".into(), Vec::new())));
    refused("behind its seal");
    changed(&|entries| entries.truncate(manifest));
    refused("cut off");
    // Whoever has no key cannot seal what they changed; what they say is judged all the same.
    let judged = |because: &str| {
        let import = ["tenant", "import", file.as_str(), "--slug", "changed"];
        fails(rowhouse(&app, &import), "--unsealed");
        fails(rowhouse(&app, &[&import[..], &["--unsealed"]].concat()), because);
    };
    changed(&|entries| entries[manifest].1 = b"not JSON".to_vec());
    judged("manifest");
    let rewritten = |change: &dyn Fn(&mut Value)| {
        changed(&|entries| {
            let mut said: Value = serde_json::from_slice(&entries[manifest].1).unwrap();
            change(&mut said);
            entries[manifest].1 = serde_json::to_vec(&said).unwrap();
        });
    };
    rewritten(&|said| said["taken_at"] = json!("2020-01-01T00:00:00Z"));
    fails(rowhouse(&app, &["tenant", "import", &file, "--slug", "changed"]), "--unsealed");
    rewritten(&|said| said["format"] = json!(2));
    judged("format 2");
    rewritten(&|said| said["modules"][1]["version"] = json!(1000));
    judged("newer");
    rewritten(&|said| said["modules"][1]["name"] = json!("magic"));
    judged("unknown here");
    rewritten(&|said| said["modules"][1]["checksum"] = json!("00000000"));
    judged("were others");
    // Cut at any place, or with a bit that is another.
    let bytes = fs::read(&whole).unwrap();
    for end in [0, 1, 20, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&file, &bytes[..end]).unwrap();
        refused("");
    }
    for at in [3, bytes.len() / 3, bytes.len() - 5] {
        let mut bytes = bytes.clone();
        bytes[at] ^= 4;
        fs::write(&file, &bytes).unwrap();
        let output = rowhouse(&app, &["tenant", "import", &file, "--slug", &format!("bit-{at}")]);
        // Some bits of the frame say nothing about the content.
        assert!(at == 3 || !output.status.success(), "{at}");
        assert!(!String::from_utf8_lossy(&output.stderr).contains("panicked"));
    }
    let mut longer = bytes.clone();
    longer.extend_from_slice(b"more");
    fs::write(&file, longer).unwrap();
    refused("goes on behind its end");
    fs::write(&file, "no archive").unwrap();
    refused("is no archive");
    fails(rowhouse(&app, &["tenant", "import", &folder.at("missing")]), "cannot be read");

    assert!(app.number("select count(*) from platform.organizations").await <= organizations + 1);
    assert_eq!(
        app.number("select count(*) from platform.tenant_schemas where state = 'building'").await,
        schemas
    );
    assert!(!Path::new("/tmp/outside").exists());
    works(rowhouse(&app, &["tenant", "audit-verify", &team.slug]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_of_an_older_version_is_brought_up_to_this_one() {
    let (app, folder) = (TestApp::with(|_| {}), Folder::new());
    let team = app.team().await;
    team.project("Old").await;
    let schema = schema(&app, &team.id).await;
    let set = base_sets().into_iter().find(|set| set.module == "work").unwrap();
    let first = set.upto(1).tables();
    let later = set.tables().into_iter().filter(|table| !first.contains(table));
    let later: Vec<String> = later.map(|table| format!("{schema}.{table}")).collect();
    app.sql(&format!("drop table {} cascade", later.join(", "))).await;
    app.sql(&format!(
        "update platform.tenant_schema_modules set version = 1, checksum = '{}' where module = 'work' \
         and schema_id = (select schema_id from platform.organizations where id = '{}')",
        set.checksum(1),
        team.id
    ))
    .await;
    let file = folder.at("old.tar.gz");
    works(rowhouse(&app, &["tenant", "export", &team.slug, "--to", &file]));
    works(rowhouse(&app, &["tenant", "import", &file, "--slug", "was-old"]));
    let id = id_of(&app, "was-old").await;
    let owner = team.founder.client.within(&id);
    let projects = owner.get("/projects").await.expect(200);
    assert_eq!(projects["data"][0]["name"], "Old");
    owner.post("/tasks", json!({"project_id": projects["data"][0]["id"], "title": "New"})).await.expect(201);
    works(rowhouse(&app, &["tenant", "audit-verify", "was-old"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_of_another_installation_is_taken_when_it_is_trusted() {
    let (there, here, folder) = (TestApp::with(|_| {}), TestApp::with(|_| {}), Folder::new());
    let team = odd_team(&there).await;
    let known = there.person().await;
    team.add(&known, Role::Admin).await;
    let squatted = there.person().await;
    team.add(&squatted, Role::Admin).await;
    let file = folder.at("foreign.tar.gz");
    let mut export = command(&there.database(), &["tenant", "export", &team.slug, "--to", &file]);
    // Under another key the log is not what was sealed, which does not keep it from being written.
    works(export.env("ROWHOUSE_SECRET_KEY", OTHER_KEY).output().unwrap());
    fails(rowhouse(&here, &["tenant", "import", &file]), "--unsealed");
    // One of them has an account here, and somebody has taken the address of the other.
    for person in [&known, &squatted] {
        let body = json!({"email": person.email, "password": PASSWORD});
        here.anonymous().post("/auth/register", body).await.expect(201);
    }
    here.sql(&format!("update platform.users set email_verified_at = now() where email = '{}'", known.email))
        .await;
    let said = works(rowhouse(&here, &["tenant", "import", &file, "--unsealed"]));
    assert!(said.contains("1 accounts were made") || said.contains("owner"), "{said}");
    assert!(said.contains(&squatted.email), "{said}");
    let id = id_of(&here, &team.slug).await;
    assert_eq!(id, team.id, "the id was free");
    let members = here
        .texts(&format!(
            "select u.email || ' ' || m.role || ' ' || m.is_active || ' ' || (u.id::text = any (array['{}', '{}', '{}'])) \
             from platform.organization_members m join platform.users u on u.id = m.user_id \
             where m.organization_id = '{id}' order by m.joined_at, u.email",
            team.founder.id, known.id, squatted.id
        ))
        .await;
    assert!(members.contains(&format!("{} owner true true", team.founder.email)), "{members:?}");
    assert!(members.contains(&format!("{} admin true false", known.email)), "{members:?}");
    assert!(members.contains(&format!("{} admin false false", squatted.email)), "{members:?}");
    // Nobody can log in to an account that was made before they have set a password.
    let login = json!({"email": team.founder.email, "password": PASSWORD});
    here.anonymous().post("/auth/login", login).await.refused(401, "AUTH_FAILED");
    works(rowhouse(&here, &["tenant", "audit-verify", &team.slug]));
    let schema = schema(&here, &id).await;
    assert_eq!(here.number(&format!("select count(*) from {schema}.webhooks where is_active")).await, 0);
    assert_eq!(here.number(&format!("select count(*) from {schema}.projects")).await, 3);
    // That of the import itself is told by the worker.
    within(10, "every event has its place", || async {
        here.number(&format!("select count(*) from {schema}.events where position is null")).await == 0
    })
    .await;
}

/// Enough rows that there is time to kill what works on them.
async fn large_team(app: &TestApp) -> Team {
    let team = app.team().await;
    let project = team.project("Large").await;
    let schema = schema(app, &team.id).await;
    app.sql(&format!(
        "insert into {schema}.tasks (id, project_id, title, description, status, priority, created_by, created_at, updated_at) \
         select gen_random_uuid(), '{}', 'Task ' || n, repeat(md5(n::text) || ' ', 20), 'todo', 'low', '{}', now(), now() \
         from generate_series(1, 30000) as n",
        project["id"].as_str().unwrap(),
        team.founder.id
    ))
    .await;
    team
}

/// As if the time had passed after which a silent operation is dead.
async fn buried(app: &TestApp) {
    app.sql(
        "update platform.fleet_operations set beat_at = now() - interval '1 hour', started_at = now() - interval '2 hours' \
         where state = 'running'",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_killed_changed_nothing_and_is_done_by_the_same_command() {
    let (app, folder) = (TestApp::with(|_| {}), Folder::new());
    let team = large_team(&app).await;
    settled(&app, &team).await;
    let (file, copy) = (folder.at("large.tar.gz"), folder.at("copy.tar.gz"));
    let living = schema(&app, &team.id).await;
    let before = rows(&app, &living, &["audit_log", "events"]).await;
    works(rowhouse(&app, &["tenant", "export", &team.slug, "--to", &file]));
    let commands: [&[&str]; 3] = [
        &["tenant", "export", &team.slug, "--force", "--to", &copy],
        &["tenant", "import", &file, "--slug", "brought-in"],
        &["tenant", "restore", &team.slug, "--to", &file],
    ];
    for args in commands {
        for millis in [150, 400, 900, 1600, 2500] {
            let mut child = begin(&app, args);
            tokio::time::sleep(Duration::from_millis(millis)).await;
            let was_running = child.try_wait().unwrap().is_none();
            child.kill().unwrap();
            child.wait().unwrap();
            if !was_running {
                break;
            }
            // It may be killed in the moment between the archive's end and its own.
            if Path::new(&copy).exists() {
                assert_eq!(unpack(&copy).last().unwrap().0, "manifest.seal", "half an archive");
            }
            // ... or its commit and its own.
            if args[1] == "import"
                && app.number("select count(*) from platform.organizations where slug = 'brought-in'").await
                    == 1
            {
                break;
            }
            team.owner.get("/projects").await.expect(200);
            buried(&app).await;
        }
        if args[1] != "import"
            || app.number("select count(*) from platform.organizations where slug = 'brought-in'").await == 0
        {
            works(rowhouse(&app, args));
        }
    }
    let id = id_of(&app, "brought-in").await;
    let there = schema(&app, &id).await;
    assert_eq!(app.number(&format!("select count(*) from {there}.tasks")).await, 30_000);
    let now = schema(&app, &team.id).await;
    assert_eq!(rows(&app, &now, &["audit_log", "events"]).await, before);
    for slug in [team.slug.as_str(), "brought-in"] {
        works(rowhouse(&app, &["tenant", "audit-verify", slug]));
    }
    // What was built and left is cleared away.
    buried(&app).await;
    app.sql(
        "update platform.tenant_schemas set created_at = now() - interval '1 hour' where state = 'building'",
    )
    .await;
    on_the_servers_runtime(fleet::clear_away(&app.app)).unwrap();
    let strays = "select count(*) from pg_namespace n where n.nspname like 'tenant\\_%' and not exists \
         (select 1 from platform.tenant_schemas s where 'tenant_' || replace(s.id::text, '-', '') = n.nspname)";
    assert_eq!(app.number(strays).await, 0);
    assert_eq!(app.number("select count(*) from platform.tenant_schemas where state = 'building'").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_thing_is_done_to_an_organization_at_a_time() {
    let (app, folder) = (TestApp::with(|_| {}), Folder::new());
    let team = large_team(&app).await;
    let children: Vec<Child> = (0..3)
        .map(|n| begin(&app, &["tenant", "export", &team.slug, "--to", &folder.at(&format!("{n}.tar.gz"))]))
        .collect();
    let outputs: Vec<Output> = children.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
    assert!(outputs.iter().any(|output| output.status.success()));
    for output in outputs.into_iter().filter(|output| !output.status.success()) {
        fails(output, "Something else is being done");
    }
    // Killed a moment ago: whoever comes is told to wait.
    let mut child = begin(&app, &["tenant", "export", &team.slug, "--to", &folder.at("late.tar.gz")]);
    tokio::time::sleep(Duration::from_millis(500)).await;
    child.kill().unwrap();
    child.wait().unwrap();
    if app.number("select count(*) from platform.fleet_operations where state = 'running'").await > 0 {
        let args = ["tenant", "clone", &team.slug, "--slug", "too-early"];
        fails(rowhouse(&app, &args), "try again after 15 seconds");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_leaves_no_half_archive() {
    let (app, folder) = (TestApp::with(|_| {}), Folder::new());
    let team = large_team(&app).await;
    let mut export = command(&app.database(), &["tenant", "export", &team.slug, "--to", "-"]);
    let full = File::options().write(true).open("/dev/full").unwrap();
    fails(export.stdout(full).stderr(Stdio::piped()).output().unwrap(), "No space left on device");
    fails(
        rowhouse(&app, &["tenant", "export", &team.slug, "--to", &folder.at("no/such/folder/x")]),
        "could not be written",
    );
    assert!(folder.names().is_empty());
    // What is there already is not written over.
    fs::write(folder.0.join("mine"), "mine").unwrap();
    fails(rowhouse(&app, &["tenant", "export", &team.slug, "--to", &folder.at("mine")]), "--force");
    assert_eq!(fs::read_to_string(folder.0.join("mine")).unwrap(), "mine");
    // Standard output works as well.
    let output = rowhouse(&app, &["tenant", "export", &team.slug, "--to", "-"]);
    assert!(output.status.success());
    let file = folder.at("piped.tar.gz");
    File::create(&file).unwrap().write_all(&output.stdout).unwrap();
    works(rowhouse(&app, &["tenant", "import", &file, "--slug", "piped"]));
    let failures =
        "select count(*) from platform.fleet_operations where state = 'failed' and error like '%No space%'";
    assert_eq!(app.number(failures).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn backups_bring_an_organization_back_to_a_time() {
    let folder = Folder::new();
    let place = folder.0.clone();
    let app = TestApp::with(move |config| config.backups.folder = Some(place));
    let team = app.team().await;
    team.project("First").await;
    // Also of one that is suspended; what has had its time goes, and halves of those who died long ago.
    works(rowhouse(&app, &["tenant", "suspend", &team.slug]));
    let own = folder.0.join(&team.id);
    fs::create_dir(&own).unwrap();
    for name in ["20200101T010000Z.tar.gz", "20200102T010000Z.tar.gz", "old.part", "new.part"] {
        fs::write(own.join(name), "").unwrap();
    }
    let long_ago = std::time::SystemTime::now() - Duration::from_secs(7 * 3600);
    File::options().write(true).open(own.join("old.part")).unwrap().set_modified(long_ago).unwrap();
    on_the_servers_runtime(backups::begin(&app.app)).unwrap();
    let saved = || {
        let entries = fs::read_dir(&own).into_iter().flatten();
        let names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.into_iter().filter(|name| name.ends_with(".tar.gz")).collect::<Vec<_>>()
    };
    let is_new = |name: &String| !name.starts_with("2020");
    within(20, "a backup", || async { saved().len() == 1 && saved().iter().all(is_new) }).await;
    assert!(own.join("new.part").exists() && !own.join("old.part").exists());
    works(rowhouse(&app, &["tenant", "resume", &team.slug]));
    within(2, "it is let in", || async { team.owner.get("/projects").await.status == 200 }).await;
    settled(&app, &team).await;
    let project = team.project("Second").await;
    let restore = |to: &str| {
        let mut command = command(&app.database(), &["tenant", "restore", &team.slug, "--to", to]);
        output(&app, command.env("BACKUPS_FOLDER", &folder.0))
    };
    fails(restore("2020-01-01"), "the oldest is of");
    fails(restore("2020-01-01 10:00"), "those look like");
    fails(restore("2999-01-01T00:00:00Z"), "has not come yet");
    let now = || Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true);
    works(restore(&now()));
    let names = team.owner.get("/projects").await.expect(200).to_string();
    assert!(names.contains("First") && !names.contains("Second"), "{names}");
    // Somebody dropped the schema by hand: what the backup has is what there is.
    let living = schema(&app, &team.id).await;
    app.sql(&format!("drop schema {living} cascade")).await;
    works(restore(&now()));
    works(rowhouse(&app, &["tenant", "audit-verify", &team.slug]));
    team.project("After").await;
    settled(&app, &team).await;
    works(rowhouse(&app, &["tenant", "audit-verify", &team.slug]));
    team.owner.get(&format!("/projects/{}", project["id"].as_str().unwrap())).await.refused(404, "NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_goes_out_of_a_copy() {
    let app = TestApp::with(|_| {});
    let receiver = Receiver::start().await;
    let team = app.team().await;
    let colleague = team.join(Role::Admin).await;
    let body = json!({"name": "All", "url": receiver.at("/copy"), "events": ["*"]});
    let webhook = team.owner.post("/webhooks", body).await.expect(201);
    let project = team.project("Copied").await;
    settled(&app, &team).await;
    within(10, "the original's webhooks", || async { receiver.count() > 0 }).await;
    works(rowhouse(&app, &["tenant", "clone", &team.slug, "--slug", "play-ground"]));
    let id = id_of(&app, "play-ground").await;
    let sent = receiver.count();
    let owner = team.founder.client.within(&id);
    assert_eq!(owner.get("/projects").await.expect(200)["data"][0]["id"], project["id"]);
    let told = owner.get("/audit-log").await.expect(200);
    assert!(
        told["data"].as_array().unwrap().iter().all(|entry| entry["action"] != "project.created"),
        "{told}"
    );
    // Also where somebody switches them on, tests them, assigns tasks and invites.
    let webhook = format!("/webhooks/{}", webhook["id"].as_str().unwrap());
    let current = owner.get(&webhook).await;
    let tag = current.header("etag").to_owned();
    let on = owner
        .request(reqwest::Method::PATCH, &webhook)
        .header("if-match", tag)
        .json(&json!({"is_active": true}));
    Answer::of(on).await.expect(200);
    owner.post(&format!("{webhook}/test"), json!({})).await;
    let task = json!({"project_id": project["id"], "title": "T", "assignee_ids": [colleague.id]});
    owner.post("/tasks", task).await.expect(201);
    let invitation = json!({"email": "somebody-else@example.com", "role": "member"});
    owner.post(&format!("/organizations/{id}/invitations"), invitation).await.refused(409, "CONFLICT");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(receiver.count(), sent);
    assert!(smtp::sent_to("somebody-else@example.com").is_empty());
    assert!(smtp::sent_to(&colleague.email).iter().all(|mail| !mail.subject.contains("New task")));
    works(rowhouse(&app, &["tenant", "audit-verify", "play-ground"]));
    works(rowhouse(&app, &["tenant", "audit-verify", &team.slug]));
    // The original is as it was.
    team.project("Goes on").await;
    within(10, "the original's webhooks go on", || async { receiver.count() > sent }).await;
    let args = ["tenant", "clone", &team.slug, "--slug", "play-ground"];
    fails(rowhouse(&app, &args), "taken");
    fails(rowhouse(&app, &["tenant", "clone", &team.slug, "--slug", "admin"]), "reserved");
}

/// Tables of the platform in which a text occurs, whatever the column.
async fn traces(app: &TestApp, text: &str) -> Vec<String> {
    let tables = "select c.relname::text from pg_class c join pg_namespace n on n.oid = c.relnamespace \
         where n.nspname = 'platform' and c.relkind = 'r' order by 1";
    let mut found = Vec::new();
    for table in app.texts(tables).await {
        let sql = format!("select count(*) from platform.{table} as t where strpos(t::text, '{text}') > 0");
        if app.number(&sql).await > 0 {
            found.push(table);
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn an_organization_is_erased_without_a_trace() {
    let folder = Folder::new();
    let place = folder.0.clone();
    let app = TestApp::with(move |config| config.backups.folder = Some(place));
    let (team, other) = (odd_team(&app).await, odd_team(&app).await);
    let key = json!({"name": "Key", "scopes": ["projects:read"]});
    team.owner.post("/api-keys", key).await.expect(201);
    let invitation = json!({"email": "invited@example.com", "role": "member"});
    team.owner.post(&team.path("/invitations"), invitation).await.expect(201);
    app.sql(&format!(
        "insert into platform.feature_flags (key, enabled, rollout, organizations, created_at, updated_at) \
         values ('some-flag', true, 0, array['{}', '{}']::uuid[], now(), now())",
        team.id, other.id
    ))
    .await;
    app.sql(&format!(
        "insert into platform.stripe_events (id, type, created_at, livemode, payload, received_at) \
         values ('evt_1', 'x', now(), false, '{{\"organization\": \"{}\"}}', now())",
        team.id
    ))
    .await;
    on_the_servers_runtime(backups::begin(&app.app)).unwrap();
    let own = folder.0.join(&team.id);
    within(60, "a backup", || async { fs::read_dir(&own).is_ok_and(|mut entries| entries.next().is_some()) })
        .await;
    let file = folder.at("kept.tar.gz");
    within(60, "the backup is done", || async {
        rowhouse(&app, &["tenant", "export", &team.slug, "--to", &file]).status.success()
    })
    .await;
    works(rowhouse(&app, &["tenant", "restore", &team.slug, "--to", &file]));
    let erased = |confirm: &str, more: &[&str]| {
        let mut command = command(&app.database(), &["tenant", "erase", &team.slug, "--confirm", confirm]);
        output(&app, command.args(more).env("BACKUPS_FOLDER", &folder.0))
    };
    fails(erased("another", &[]), "nothing was erased");
    team.owner.get(&team.path("")).await.expect(200);
    // Killed on the way.
    for millis in [200, 600, 1200] {
        let mut child = begin(&app, &["tenant", "erase", &team.slug, "--confirm", &team.slug]);
        tokio::time::sleep(Duration::from_millis(millis)).await;
        child.kill().unwrap();
        child.wait().unwrap();
        buried(&app).await;
    }
    let certificate = folder.at("certificate.json");
    works(erased(&team.slug, &["--certificate", &certificate]));
    let said: Value = serde_json::from_slice(&fs::read(&certificate).unwrap()).unwrap();
    assert_eq!(said["organization"]["id"], team.id.as_str());
    assert!(said["rows"]["organization_members"].as_u64() >= Some(1), "{said}");
    assert!(
        said["kept"].as_array().is_some_and(|kept| !kept.is_empty()) && said["seal"].is_string(),
        "{said}"
    );
    // A moment later nothing has come back either.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let mut expected: Vec<&str> = KEPT.iter().map(|(table, _)| *table).collect();
    expected.sort_unstable();
    assert_eq!(traces(&app, &team.id).await, expected);
    assert!(!own.exists(), "backups are there");
    let strays = "select count(*) from pg_namespace n where (n.nspname like 'tenant\\_%' or n.nspname like 'retired\\_%') \
         and not exists (select 1 from platform.tenant_schemas s where n.nspname like '%' || replace(s.id::text, '-', ''))";
    assert_eq!(app.number(strays).await, 0);
    team.owner.get(&team.path("")).await.refused(404, "TENANT_NOT_FOUND");
    // Done already: the certificate is printed once more.
    assert!(works(erased(&team.slug, &[])).contains(said["certificate"].as_str().unwrap()));
    // Nobody else lost anything, and an archive brings it back, as the same.
    other.owner.get(&other.path("")).await.expect(200);
    works(rowhouse(&app, &["tenant", "audit-verify", &other.slug]));
    works(rowhouse(&app, &["tenant", "import", &file]));
    within(10, "that is known", || async { team.owner.get(&team.path("")).await.status == 200 }).await;
    works(rowhouse(&app, &["tenant", "audit-verify", &team.slug]));
    // The name alone does not say any more who is meant.
    fails(erased(&team.slug, &[]), "by its id");
    team.owner.get(&team.path("")).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_organization_that_is_opened_again_meanwhile_is_not_erased() {
    let app = TestApp::with(|_| {});
    let team = app.team().await;
    let child = begin(&app, &["tenant", "erase", &team.slug, "--confirm", &team.slug]);
    let pid = child.id().to_string();
    let closed = format!(
        "select count(*) from platform.organizations where id = '{}' and deleted_at is not null",
        team.id
    );
    within(10, "it is closed", || async { app.number(&closed).await == 1 }).await;
    // It looks once more after some seconds, of which this takes some.
    signal("STOP", &pid);
    within(2, "that is known", || async { team.owner.get(&team.path("")).await.status == 404 }).await;
    let told = team.owner.post(&team.path("/restore"), json!({})).await.refused(409, "CONFLICT");
    assert!(told["message"].as_str().unwrap().contains("being erased"), "{told}");
    // By whoever can past that.
    app.sql(&format!("update platform.organizations set deleted_at = null where id = '{}'", team.id)).await;
    signal("CONT", &pid);
    fails(child.wait_with_output().unwrap(), "restored meanwhile");
    app.app.directory.forget(team.id.parse().unwrap());
    team.owner.get(&team.path("")).await.expect(200);
    let audit = format!("select action from platform.platform_audit where organization_id = '{}'", team.id);
    assert_eq!(app.texts(&audit).await, ["tenant.erase_begun"]);
    works(rowhouse(&app, &["tenant", "audit-verify", &team.slug]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_tells_of_copies_and_of_halves_and_whether_it_was_changed() {
    let app = TestApp::with(|_| {});
    let team = app.team().await;
    works(rowhouse(&app, &["tenant", "clone", &team.slug, "--slug", "first-copy"]));
    works(rowhouse(&app, &["tenant", "clone", "first-copy", "--slug", "second-copy"]));
    // Of a clone that was killed.
    let (operation, half) = (Uuid::now_v7(), Uuid::now_v7());
    app.sql(&format!(
        "insert into platform.fleet_operations (id, kind, organization_id, state, about, started_at, beat_at) \
         values ('{operation}', 'clone', '{}', 'failed', '{{}}', now(), now())",
        team.id
    ))
    .await;
    app.sql(&format!(
        "insert into platform.tenant_schemas (id, state, operation_id) values ('{half}', 'building', '{operation}')"
    ))
    .await;
    let name = format!("tenant_{}", half.simple());
    app.sql(&format!("create schema {name}")).await;
    let erase = ["tenant", "erase", &team.slug, "--confirm", &team.slug];
    let said = works(rowhouse(&app, &erase));
    assert!(said.contains("lives on: first-copy") && said.contains("lives on: second-copy"), "{said}");
    assert!(said.contains(&name) && said.contains("no folder of backups"), "{said}");
    assert_eq!(app.number(&format!("select count(*) from pg_namespace where nspname = '{name}'")).await, 0);
    let again = works(rowhouse(&app, &erase));
    assert!(!again.contains("seal is wrong"), "{again}");
    app.sql("update platform.erasures set certificate = jsonb_set(certificate, '{copies}', '[]')").await;
    assert!(works(rowhouse(&app, &erase)).contains("seal is wrong"));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_erased_pays_nothing_from_then_on() {
    let (app, stripe) = TestApp::paying();
    let team = app.team().await;
    team.plan("free").await;
    team.owner.post("/subscriptions/checkout", json!({"plan": "starter"})).await.expect(200);
    let ours = |session: &Value| session["client_reference_id"] == team.id.as_str();
    let session = stripe.sessions().into_iter().rfind(ours).unwrap();
    let subscription = stripe.complete_checkout(session["id"].as_str().unwrap());
    assert_ne!(stripe.subscription(&subscription)["status"], "canceled");
    on_the_servers_runtime(async {
        let tenant = fleet::tenant(&app.app.directory, &team.slug).await.unwrap().unwrap();
        erase::erase(&app.app, &tenant, &|_| {}).await.unwrap();
    });
    assert_eq!(stripe.subscription(&subscription)["status"], "canceled");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_was_forged_does_not_take_the_place_of_the_real_one() {
    let (app, folder) = (TestApp::with(|_| {}), Folder::new());
    let team = app.team().await;
    team.project("Real").await;
    settled(&app, &team).await;
    let (file, forged) = (folder.at("real.tar.gz"), folder.at("forged.tar.gz"));
    works(rowhouse(&app, &["tenant", "export", &team.slug, "--to", &file]));
    let mut entries = unpack(&file);
    let place = |name: &str| unpack(&file).iter().position(|(path, _)| path.contains(name)).unwrap();
    let (log, manifest) = (place("/audit_log/"), place("manifest.json"));
    let text = String::from_utf8(entries[log].1.clone()).unwrap();
    assert!(text.contains("project.created"));
    entries[log].1 = text.replace("project.created", "project.forgery").into_bytes();
    let mut said: Value = serde_json::from_slice(&entries[manifest].1).unwrap();
    said["entries"][log]["sha256"] = json!(hex(&sha256(&entries[log].1)));
    entries[manifest].1 = serde_json::to_vec(&said).unwrap();
    pack(&forged, &entries);
    let before = rows(&app, &schema(&app, &team.id).await, &[]).await;
    fails(rowhouse(&app, &["tenant", "restore", &team.slug, "--to", &forged]), "--unsealed");
    works(rowhouse(&app, &["tenant", "restore", &team.slug, "--to", &forged, "--unsealed"]));
    works(rowhouse(&app, &["tenant", "audit-verify", &team.slug]));
    let after = rows(&app, &schema(&app, &team.id).await, &[]).await;
    assert!(before.iter().filter(|row| row.starts_with("audit_log")).all(|row| after.contains(row)));
    assert!(!after.iter().any(|row| row.contains("project.forgery")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_mailed_together_is_not_mailed_again() {
    let (app, folder) = (TestApp::with(|_| {}), Folder::new());
    let team = app.team().await;
    let file = folder.at("digest.tar.gz");
    let living = schema(&app, &team.id).await;
    app.sql(&format!(
        "insert into {living}.notifications (id, user_id, kind, event_id, title, body, path, awaits_digest, created_at) \
         values (gen_random_uuid(), '{}', 'task_assigned', gen_random_uuid(), 'T', 'B', '/', true, now())",
        team.founder.id
    ))
    .await;
    works(rowhouse(&app, &["tenant", "export", &team.slug, "--to", &file]));
    works(rowhouse(&app, &["tenant", "restore", &team.slug, "--to", &file]));
    works(rowhouse(&app, &["tenant", "import", &file, "--slug", "came-in"]));
    for organization in [team.id.clone(), id_of(&app, "came-in").await] {
        let schema = schema(&app, &organization).await;
        let told = format!("select awaits_digest::text from {schema}.notifications");
        assert_eq!(app.texts(&told).await, ["false"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_that_is_not_as_it_was_built_is_not_cloned_in_part() {
    let app = TestApp::with(|_| {});
    let team = app.team().await;
    let living = schema(&app, &team.id).await;
    app.sql(&format!("alter table {living}.projects add column lost text")).await;
    let args = ["tenant", "clone", &team.slug, "--slug", "in-part"];
    fails(rowhouse(&app, &args), "migrate verify");
    app.sql(&format!("alter table {living}.projects drop column lost")).await;
    team.owner.delete(&team.path("")).await.expect(204);
    fails(rowhouse(&app, &args), "is deleted");
    team.owner.post(&team.path("/restore"), json!({})).await.expect(200);
    works(rowhouse(&app, &args));
}

/// A server that has a place for files.
fn with_files(folder: &Folder) -> TestApp {
    let place = folder.0.join("files");
    TestApp::with(move |config| config.files.folder = Some(place))
}

/// The command line of that server.
fn with_the_files(app: &TestApp, folder: &Folder, args: &[&str]) -> Output {
    output(app, command(&app.database(), args).env("FILES_FOLDER", folder.0.join("files")))
}

/// Where a file's bytes are.
fn object(folder: &Folder, organization: &str, file: &Value) -> PathBuf {
    folder.0.join("files/organizations").join(organization).join(file["id"].as_str().unwrap())
}

/// A file that hangs on a task.
async fn attached(team: &Team, task: &Value, name: &str, bytes: Vec<u8>) -> Value {
    let path = format!("/files?name={name}");
    let upload = team.owner.raw(reqwest::Method::POST, &path, "text/plain", bytes);
    let file = upload.await.expect(201);
    let path = format!("/tasks/{}/attachments", task["id"].as_str().unwrap());
    team.owner.post(&path, json!({"file_id": file["id"]})).await.expect(201)["file"].clone()
}

fn picture() -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image::RgbImage::new(400, 300).write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// What is read of a file; `None` where it cannot be.
async fn read(client: &Client, file: &Value) -> Option<Vec<u8>> {
    let path = format!("/files/{}/content", file["id"].as_str().unwrap());
    let response = client.request(reqwest::Method::GET, &path).send().await.unwrap();
    match response.status().as_u16() {
        200 => Some(response.bytes().await.unwrap().to_vec()),
        404 => None,
        other => panic!("{other}: {}", response.text().await.unwrap()),
    }
}

async fn has_thumbnail(team: &Team, file: &Value) {
    let path = format!("/files/{}", file["id"].as_str().unwrap());
    within(20, "a small picture", || async { team.owner.get(&path).await.json()["thumbnail"] == "ready" })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_go_out_with_an_archive_and_come_back_with_it() {
    let folder = Folder::new();
    let app = with_files(&folder);
    let team = app.team().await;
    let task = team.task(&team.project("Home").await, "Paint").await;
    let long: Vec<u8> = (0..9_000_000_u32).map(|n| (n % 251) as u8).collect();
    let (text, image) = (
        attached(&team, &task, "long.txt", long.clone()).await,
        attached(&team, &task, "a.png", picture()).await,
    );
    has_thumbnail(&team, &image).await;
    let archive = folder.at("with-files.tar.gz");
    let rowhouse = |args: &[&str]| with_the_files(&app, &folder, args);
    let said = works(rowhouse(&["tenant", "export", &team.slug, "--to", &archive]));
    assert!(said.contains("2 files") && !said.contains("without"), "{said}");
    let entries = unpack(&archive);
    let of = |file: &Value, end: &str| {
        let path = format!("files/{}{end}", file["id"].as_str().unwrap());
        entries.iter().find(|(name, _)| *name == path).map(|(_, bytes)| bytes.clone())
    };
    assert_eq!(of(&text, ""), Some(long.clone()));
    assert_eq!(of(&image, ""), Some(picture()));
    assert!(of(&image, ".thumbnail").is_some() && of(&text, ".thumbnail").is_none());

    // Removed for good, and put back.
    team.owner.delete(&format!("/tasks/{}", task["id"].as_str().unwrap())).await.expect(204);
    within(10, "they are deleted", || async {
        !object(&folder, &team.id, &text).exists() && !object(&folder, &team.id, &image).exists()
    })
    .await;
    works(rowhouse(&["tenant", "restore", &team.slug, "--to", &archive]));
    assert_eq!(read(&team.owner, &text).await, Some(long.clone()));
    assert_eq!(read(&team.owner, &image).await, Some(picture()));
    let small = format!("/files/{}/thumbnail", image["id"].as_str().unwrap());
    assert_eq!(team.owner.get(&small).await.status, 200);

    // Another organization of it has files of its own.
    works(rowhouse(&["tenant", "import", &archive, "--slug", "with-files"]));
    let other = id_of(&app, "with-files").await;
    let owner = team.founder.client.within(&other);
    assert_eq!(read(&owner, &text).await, Some(long.clone()));
    assert_eq!(owner.get(&small).await.status, 200);
    let certificate = works(rowhouse(&["tenant", "erase", &team.slug, "--confirm", &team.slug]));
    assert!(certificate.contains("\"objects\": 3"), "{certificate}");
    let left = fs::read_dir(folder.0.join("files/organizations").join(&team.id));
    assert!(left.map_or(0, Iterator::count) == 0);
    assert_eq!(read(&owner, &text).await, Some(long.clone()));
    // And once more under the old name.
    works(rowhouse(&["tenant", "import", &archive]));
    assert_eq!(read(&team.owner, &text).await, Some(long));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_has_files_of_its_own() {
    let folder = Folder::new();
    let app = with_files(&folder);
    let team = app.team().await;
    let task = team.task(&team.project("Home").await, "Paint").await;
    let file = attached(&team, &task, "a.png", picture()).await;
    has_thumbnail(&team, &file).await;
    let upload = team.owner.raw(reqwest::Method::POST, "/files?name=logo.png", "image/png", picture());
    let logo = json!({"file_id": upload.await.expect(201)["id"]});
    Answer::of(team.owner.request(reqwest::Method::PUT, &team.path("/logo")).json(&logo)).await.expect(200);
    let at = |slug: &str| {
        let (client, path) = (app.anonymous(), format!("/logos/{slug}"));
        async move { client.get(&path).await.status == 200 }
    };
    within(20, "the logo", || at(&team.slug)).await;
    works(with_the_files(&app, &folder, &["tenant", "clone", &team.slug, "--slug", "copy-of-files"]));
    let owner = team.founder.client.within(&id_of(&app, "copy-of-files").await);
    team.owner.delete(&format!("/tasks/{}", task["id"].as_str().unwrap())).await.expect(204);
    within(10, "the original is deleted", || async { !object(&folder, &team.id, &file).exists() }).await;
    assert_eq!(read(&owner, &file).await, Some(picture()));
    assert_eq!(owner.get(&format!("/files/{}/thumbnail", file["id"].as_str().unwrap())).await.status, 200);
    assert!(at("copy-of-files").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_an_archive_are_judged_like_everything_in_it() {
    let folder = Folder::new();
    let app = with_files(&folder);
    let team = app.team().await;
    let task = team.task(&team.project("Home").await, "Paint").await;
    let file = attached(&team, &task, "a.txt", b"What was uploaded".to_vec()).await;
    let (whole, changed) = (folder.at("whole.tar.gz"), folder.at("changed.tar.gz"));
    let rowhouse = |args: &[&str]| with_the_files(&app, &folder, args);
    works(rowhouse(&["tenant", "export", &team.slug, "--to", &whole]));
    let entries = unpack(&whole);
    let place = entries.iter().position(|(path, _)| path.starts_with("files/")).unwrap();
    let manifest = entries.iter().position(|(path, _)| path == "manifest.json").unwrap();
    let import = |because: &str| {
        fails(rowhouse(&["tenant", "import", &changed, "--slug", "judged", "--unsealed"]), because);
    };
    let pack_with = |change: &dyn Fn(&mut Entries)| {
        let mut entries = entries.clone();
        change(&mut entries);
        pack(&changed, &entries);
    };
    pack_with(&|entries| entries[place].1[0] ^= 1);
    import("is not what its manifest says");
    pack_with(&|entries| drop(entries.remove(place)));
    import("The archive lacks");
    pack_with(&|entries| entries[place].0 = "files/../../outside".into());
    import("which archives do not");
    let stranger = format!("files/{}", Uuid::now_v7());
    pack_with(&|entries| entries.insert(place, (stranger.clone(), b"x".to_vec())));
    import("should be");
    // Whoever rewrites the manifest too cannot bring what no row tells of, or something else than it tells.
    let rewritten = |change: &dyn Fn(&mut Entries, &mut Value)| {
        pack_with(&|entries| {
            let mut said: Value = serde_json::from_slice(&entries[manifest].1).unwrap();
            change(entries, &mut said);
            let at = entries.iter().position(|(path, _)| path == "manifest.json").unwrap();
            entries[at].1 = serde_json::to_vec(&said).unwrap();
        });
    };
    rewritten(&|entries, said| {
        entries[place].0 = stranger.clone();
        said["entries"][place]["path"] = json!(stranger);
    });
    import("which no row of it tells of");
    assert_eq!(app.number("select count(*) from platform.organizations where slug = 'judged'").await, 0);
    rewritten(&|entries, said| {
        entries[place].1 = b"What was smuggled".to_vec();
        said["entries"][place]["sha256"] = json!(hex(&sha256(b"What was smuggled")));
    });
    let said = works(rowhouse(&["tenant", "import", &changed, "--slug", "judged", "--unsealed"]));
    assert!(said.contains("neither in the archive nor in the store"), "{said}");
    let owner = team.founder.client.within(&id_of(&app, "judged").await);
    assert_eq!(read(&owner, &file).await, None);
    assert_eq!(read(&team.owner, &file).await, Some(b"What was uploaded".to_vec()));
    // What is there is what it was, whatever an archive says of it.
    let sha = |content: &[u8]| hex(&sha256(content));
    rewritten(&|entries, said| {
        let table =
            entries.iter().position(|(path, _)| path.contains("/files/") && path.starts_with("data/"));
        let table = table.unwrap();
        let rows = String::from_utf8(entries[table].1.clone()).unwrap();
        let rows = rows.replace(&sha(b"What was uploaded"), &sha(b"What was smuggled"));
        entries[table].1 = rows.into_bytes();
        said["entries"][table]["sha256"] = json!(sha(&entries[table].1));
    });
    let restore = ["tenant", "restore", &team.slug, "--to", &changed, "--unsealed"];
    fails(rowhouse(&restore), "is another one here than in the archive");
    assert_eq!(read(&team.owner, &file).await, Some(b"What was uploaded".to_vec()));
    // Nowhere to put them.
    let nowhere = self::rowhouse(&app, &["tenant", "import", &whole, "--slug", "no-place"]);
    fails(nowhere, "there is no place for them here");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_store_has_lost_is_told_and_keeps_nothing_from_being_saved() {
    let folder = Folder::new();
    let app = with_files(&folder);
    let team = app.team().await;
    let task = team.task(&team.project("Home").await, "Paint").await;
    let (lost, cut, there) = (
        attached(&team, &task, "lost.txt", b"Lost".to_vec()).await,
        attached(&team, &task, "cut.txt", b"Cut off".to_vec()).await,
        attached(&team, &task, "there.txt", b"There".to_vec()).await,
    );
    let archive = folder.at("lost.tar.gz");
    let rowhouse = |args: &[&str]| with_the_files(&app, &folder, args);
    // Without what they hold, they are there as long as the store has them.
    works(rowhouse(&["tenant", "export", &team.slug, "--to", &archive, "--without-files"]));
    assert!(unpack(&archive).iter().all(|(path, _)| !path.starts_with("files/")));
    let said = works(rowhouse(&["tenant", "restore", &team.slug, "--to", &archive]));
    assert!(!said.contains("without"), "{said}");
    assert_eq!(read(&team.owner, &lost).await, Some(b"Lost".to_vec()));

    fs::remove_file(object(&folder, &team.id, &lost)).unwrap();
    fs::write(object(&folder, &team.id, &cut), "Cut").unwrap();
    let said = works(rowhouse(&["tenant", "restore", &team.slug, "--to", &archive]));
    assert!(
        said.contains(lost["id"].as_str().unwrap()) && said.contains(cut["id"].as_str().unwrap()),
        "{said}"
    );
    let said = works(rowhouse(&["tenant", "export", &team.slug, "--to", &archive, "--force"]));
    assert!(said.contains("1 files") && said.contains("which is not in the store"), "{said}");
    assert!(said.contains("another size"), "{said}");
    let entries = unpack(&archive);
    let manifest = entries.iter().find(|(path, _)| path == "manifest.json").unwrap();
    assert!(String::from_utf8_lossy(&manifest.1).contains("which is not in the store"));
    works(rowhouse(&["tenant", "import", &archive, "--slug", "lost-some"]));
    let owner = team.founder.client.within(&id_of(&app, "lost-some").await);
    assert_eq!(read(&owner, &there).await, Some(b"There".to_vec()));
    assert_eq!(read(&owner, &lost).await, None);
    // Where no place for files is set, everything else is saved.
    let said = works(self::rowhouse(&app, &["tenant", "export", &team.slug, "--to", &archive, "--force"]));
    assert!(said.contains("3 files: no place for files is configured here"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_deleted_after_a_restore_is_there_for_what_was_before() {
    let folder = Folder::new();
    let app = with_files(&folder);
    let team = app.team().await;
    let task = team.task(&team.project("Home").await, "Paint").await;
    let file = attached(&team, &task, "kept.txt", b"Kept".to_vec()).await;
    let archive = folder.at("kept.tar.gz");
    let rowhouse = |args: &[&str]| with_the_files(&app, &folder, args);
    works(rowhouse(&["tenant", "export", &team.slug, "--to", &archive]));
    works(rowhouse(&["tenant", "restore", &team.slug, "--to", &archive]));
    team.owner.delete(&format!("/tasks/{}", task["id"].as_str().unwrap())).await.expect(204);
    let jobs = format!(
        "select count(*) from platform.jobs where kind = 'remove_objects' and organization_id = '{}'",
        team.id
    );
    within(10, "the job is done", || async { app.number(&jobs).await == 0 }).await;
    assert_eq!(read(&team.owner, &file).await, None);
    works(rowhouse(&["tenant", "restore", &team.slug, "--to", "previous"]));
    assert_eq!(read(&team.owner, &file).await, Some(b"Kept".to_vec()));
}

#[tokio::test(flavor = "multi_thread")]
async fn small_pictures_that_were_not_made_yet_are_made_where_the_files_come() {
    let folder = Folder::new();
    let app = with_files(&folder);
    let team = app.team().await;
    let task = team.task(&team.project("Home").await, "Paint").await;
    let image = attached(&team, &task, "a.png", picture()).await;
    has_thumbnail(&team, &image).await;
    // As if the job had not come to it.
    let living = schema(&app, &team.id).await;
    app.sql(&format!("update {living}.files set thumbnail = 'pending'")).await;
    let archive = folder.at("pending.tar.gz");
    let rowhouse = |args: &[&str]| with_the_files(&app, &folder, args);
    works(rowhouse(&["tenant", "export", &team.slug, "--to", &archive]));
    works(rowhouse(&["tenant", "restore", &team.slug, "--to", &archive]));
    has_thumbnail(&team, &image).await;
    app.sql(&format!("update {}.files set thumbnail = 'pending'", schema(&app, &team.id).await)).await;
    works(rowhouse(&["tenant", "import", &archive, "--slug", "pending-in"]));
    works(rowhouse(&["tenant", "clone", &team.slug, "--slug", "pending-too"]));
    for slug in ["pending-in", "pending-too"] {
        let owner = team.founder.client.within(&id_of(&app, slug).await);
        let path = format!("/files/{}", image["id"].as_str().unwrap());
        within(20, slug, || async { owner.get(&path).await.json()["thumbnail"] == "ready" }).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logo_of_another_time_is_nobodys_after_a_restore() {
    let folder = Folder::new();
    let app = with_files(&folder);
    let team = app.team().await;
    let set = async || {
        let file = team.owner.raw(reqwest::Method::POST, "/files?name=logo.png", "image/png", picture());
        let file = file.await.expect(201);
        let logo = team.owner.request(reqwest::Method::PUT, &team.path("/logo"));
        Answer::of(logo.json(&json!({"file_id": file["id"]}))).await.expect(200);
        file
    };
    let old = set().await;
    let archive = folder.at("logo.tar.gz");
    let rowhouse = |args: &[&str]| with_the_files(&app, &folder, args);
    works(rowhouse(&["tenant", "export", &team.slug, "--to", &archive]));
    let new = set().await;
    works(rowhouse(&["tenant", "restore", &team.slug, "--to", &archive]));
    let path = |file: &Value| format!("/files/{}", file["id"].as_str().unwrap());
    team.owner.get(&path(&old)).await.refused(404, "NOT_FOUND");
    let kept = team.owner.get(&path(&new)).await.expect(200);
    assert_eq!((&kept["purpose"], &kept["expires_at"]), (&json!("logo"), &Value::Null));
    assert_eq!(app.anonymous().get(&format!("/logos/{}", team.slug)).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_there_before_a_restore_still_has_its_files() {
    let folder = Folder::new();
    let app = with_files(&folder);
    let team = app.team().await;
    let task = team.task(&team.project("Home").await, "Paint").await;
    let archive = folder.at("before.tar.gz");
    let rowhouse = |args: &[&str]| with_the_files(&app, &folder, args);
    works(rowhouse(&["tenant", "export", &team.slug, "--to", &archive]));
    let file = attached(&team, &task, "after.txt", b"After it".to_vec()).await;
    works(rowhouse(&["tenant", "restore", &team.slug, "--to", &archive]));
    assert_eq!(read(&team.owner, &file).await, None);
    works(rowhouse(&["tenant", "restore", &team.slug, "--to", "previous"]));
    assert_eq!(read(&team.owner, &file).await, Some(b"After it".to_vec()));
}

/// A table that is added to `platform` must say what becomes of it.
#[tokio::test(flavor = "multi_thread")]
async fn no_table_is_forgotten_when_an_organization_is_erased() {
    let app = TestApp::with(|_| {});
    let columns = app
        .texts(
            "select distinct c.relname::text from pg_attribute a join pg_class c on c.oid = a.attrelid \
             join pg_namespace n on n.oid = c.relnamespace where n.nspname = 'platform' and c.relkind in ('r', 'p') \
             and not c.relispartition and a.attname in ('organization_id', 'organizations') order by 1",
        )
        .await;
    for table in columns {
        let known = REMOVED.iter().map(|(table, _)| table).chain(KEPT.iter().map(|(table, _)| table));
        assert!(
            known.into_iter().any(|known| *known == table),
            "src/tenancy/fleet/erase.rs does not know {table}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn organizations_that_were_deleted_long_ago_are_erased() {
    let app = TestApp::with(|_| {});
    let (old, recent) = (app.team().await, app.team().await);
    for (team, days) in [(&old, 31), (&recent, 29)] {
        let sql = "update platform.organizations set deleted_at = now() - interval";
        app.sql(&format!("{sql} '{days} days' where id = '{}'", team.id)).await;
        app.app.directory.forget(team.id.parse().unwrap());
    }
    on_the_servers_runtime(erase::begin(&app.app)).unwrap();
    let left = |team: &Team| format!("select count(*) from platform.organizations where id = '{}'", team.id);
    within(20, "it is erased", || async { app.number(&left(&old)).await == 0 }).await;
    assert_eq!(app.number(&left(&recent)).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_organization_is_suspended_and_let_in_again() {
    let app = TestApp::with(|_| {});
    let team = app.team().await;
    // The service hears of it by itself.
    let by_itself = |args: &[&str]| command(&app.database(), args).output().unwrap();
    let said = works(by_itself(&["tenant", "suspend", &team.slug, "--because", "unpaid"]));
    assert!(said.contains("suspended now"), "{said}");
    within(2, "that is known", || async { team.owner.get("/projects").await.status == 403 }).await;
    team.owner.get("/projects").await.refused(403, "TENANT_SUSPENDED");
    let said = works(rowhouse(&app, &["tenant", "suspend", &team.slug]));
    assert!(said.contains("already"), "{said}");
    // So is a copy of it, whichever way it is made.
    let folder = Folder::new();
    let file = folder.at("suspended.tar.gz");
    works(rowhouse(&app, &["tenant", "export", &team.slug, "--to", &file]));
    works(rowhouse(&app, &["tenant", "import", &file, "--slug", "suspended-too"]));
    works(rowhouse(&app, &["tenant", "clone", &team.slug, "--slug", "suspended-as-well"]));
    let copies = "select status from platform.organizations where slug like 'suspended-%'";
    assert_eq!(app.texts(copies).await, ["suspended", "suspended"]);
    works(by_itself(&["tenant", "resume", &team.slug]));
    within(2, "it is let in", || async { team.owner.get("/projects").await.status == 200 }).await;
    let audit = format!(
        "select action from platform.platform_audit where organization_id = '{}' order by id",
        team.id
    );
    let done = ["organization.suspended", "tenant.export", "tenant.clone", "organization.resumed"];
    assert_eq!(app.texts(&audit).await, done);
    works(rowhouse(&app, &["tenant", "audit-verify", &team.slug]));
    fails(rowhouse(&app, &["tenant", "suspend", "nobody-at-all"]), "rowhouse tenant list");
}
