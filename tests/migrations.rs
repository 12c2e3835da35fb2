//! Migrations of the fleet: what they do to schemas, to those who use them, and to each other.

use std::{
    fs,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use rowhouse::{
    app::App,
    clock::Clock,
    db::{
        Db,
        migrations::{Failure, Set, all_sets, migrate_shared, migrate_shared_to, shared_set},
    },
    error::Result,
    tenancy::fleet::{self, Options, Report},
};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::{
    commands::{command, fails, rowhouse, works},
    support::{TestApp, configuration, within},
};

const ADDED: &str = "alter table projects add column colour text;";

/// An installation without a service.
struct Fleet {
    app: Arc<App>,
    /// The schemas of its organizations, which are called org-1, org-2 and so on.
    schemas: Vec<String>,
}

impl Fleet {
    async fn of(many: usize) -> Self {
        let config = configuration(&format!("test_{}", Uuid::now_v7().simple()));
        Db::create_database_if_missing(&config.database).await.unwrap();
        let app = App::new(config, Clock::default()).unwrap();
        migrate_shared(&app.db).await.unwrap();
        fleet::stock_up(&app, &app.db.primary(), many).await.unwrap();
        let mut fleet = Self { app, schemas: Vec::new() };
        fleet
            .sql(
                "insert into platform.organizations (id, slug, name, schema_id, created_by, created_at, updated_at) \
                 select gen_random_uuid(), 'org-' || row_number() over (order by id), 'Org', id, gen_random_uuid(), \
                 now(), now() from platform.tenant_schemas",
            )
            .await;
        fleet.sql("update platform.tenant_schemas set state = 'taken'").await;
        fleet.schemas = fleet
            .texts("select 'tenant_' || replace(schema_id::text, '-', '') from platform.organizations order by schema_id")
            .await;
        fleet
    }

    /// Another process over the same database.
    fn beside(&self) -> Self {
        let app = App::new(self.app.config.clone(), Clock::default()).unwrap();
        Self { app, schemas: self.schemas.clone() }
    }

    fn database(&self) -> String {
        self.app.config.database.url.expose_secret().to_owned()
    }

    async fn sql(&self, sql: &str) {
        let tx = self.app.db.begin().await.unwrap();
        tx.execute(sql, &[]).await.unwrap();
        tx.commit().await.unwrap();
    }

    async fn texts(&self, sql: &str) -> Vec<String> {
        let tx = self.app.db.begin().await.unwrap();
        let rows = tx.query(sql, &[]).await.unwrap();
        rows.iter().map(|row| row.try_get(0).unwrap()).collect()
    }

    async fn number(&self, sql: &str) -> i64 {
        let tx = self.app.db.begin().await.unwrap();
        tx.query_one(sql, &[]).await.unwrap().try_get(0).unwrap()
    }

    /// How many schemas have the column that `ADDED` adds.
    async fn coloured(&self) -> i64 {
        self.number(
            "select count(*) from pg_catalog.pg_attribute a join pg_catalog.pg_class c on c.oid = a.attrelid \
             where c.relname = 'projects' and a.attname = 'colour' and not a.attisdropped",
        )
        .await
    }

    /// Everything that is recorded of schemas and runs.
    async fn records(&self) -> Vec<String> {
        self.texts(
            "select m::text from platform.tenant_schema_modules m union all select r::text from platform.migration_runs r \
             union all select s::text from platform.tenant_schemas s order by 1",
        )
        .await
    }

    async fn migrate(&self, sets: &[Set], options: &Options) -> Result<Report> {
        fleet::migrate(&self.app, sets, options, &|_| {}).await
    }

    async fn run(&self, sets: &[Set]) -> Report {
        self.migrate(sets, &Options::default()).await.unwrap()
    }

    /// As before the first migration of module work.
    async fn without_work(&self) {
        for schema in &self.schemas {
            let tables: Vec<String> = work().tables().iter().map(|name| format!("{schema}.{name}")).collect();
            self.sql(&format!("drop table {} cascade", tables.join(", "))).await;
        }
        self.sql(
            "update platform.tenant_schema_modules set version = 0, checksum = '' where module = 'work'",
        )
        .await;
    }

    /// How many schemas are where this program wants module work.
    async fn with_work(&self) -> i64 {
        let there = "select count(*) from platform.tenant_schema_modules where module = 'work'";
        self.number(&format!("{there} and version = {}", work().latest())).await
    }
}

fn work() -> Set {
    all_sets().into_iter().find(|set| set.module == "work").unwrap()
}

/// The sets of a version to come: module work has one more migration.
fn next(sql: &str) -> Vec<Set> {
    after(all_sets(), "work", sql)
}

fn after(sets: Vec<Set>, module: &str, sql: &str) -> Vec<Set> {
    let more = |set: Set| match set.module == module {
        true => {
            let version = set.latest() + 1;
            set.with(version, "next", sql)
        }
        false => set,
    };
    sets.into_iter().map(more).collect()
}

fn named(slugs: &[&str]) -> Vec<String> {
    slugs.iter().map(|slug| (*slug).to_owned()).collect()
}

#[tokio::test]
async fn every_schema_gets_what_a_new_version_adds_and_none_is_opened_again() {
    let fleet = Fleet::of(5).await;
    let report = fleet.run(&next(ADDED)).await;
    assert_eq!((report.total, report.migrated, report.current, report.failed), (5, 5, 0, 0));
    assert_eq!(fleet.coloured().await, 5);
    assert_eq!(report.versions["work"], work().latest() + 1);
    let report = fleet.run(&next(ADDED)).await;
    assert_eq!((report.migrated, report.current), (0, 5));
    let runs = "select concat_ws(' ', outcome, total, migrated, current, failed) from platform.migration_runs order by id";
    assert_eq!(fleet.texts(runs).await, ["done 5 5 0 0", "done 5 0 5 0"]);
}

#[tokio::test]
async fn a_schema_that_fails_leaves_the_others_alone_and_is_tried_again_once_it_is_mended() {
    let fleet = Fleet::of(5).await;
    let third = &fleet.schemas[2];
    fleet.sql(&format!("create table {third}.colours (id uuid primary key)")).await;
    let sets = next(&format!("{ADDED}\ncreate table colours (id uuid primary key);"));
    let report = fleet.run(&sets).await;
    assert_eq!((report.migrated, report.failed, report.pending), (4, 1, 0));
    let failure = &report.failures[0];
    assert_eq!((failure.schema.as_str(), failure.module, failure.tries), (third.as_str(), "work", 1));
    assert!(failure.error.contains("__next of module work"), "{}", failure.error);
    assert!(failure.error.contains("already exists"), "{}", failure.error);
    assert_eq!(fleet.coloured().await, 4, "what came before in the same migration is undone");
    let noted = "select concat_ws(' ', version, attempts, failed_at is not null) \
         from platform.tenant_schema_modules where last_error is not null";
    assert_eq!(fleet.texts(noted).await, [format!("{} 1 t", work().latest())]);
    let failing = fleet::failing(&fleet.app, 10).await.unwrap();
    assert_eq!(failing.len(), 1);
    assert!(failing[0].organization.as_ref().unwrap().starts_with("org-"));

    let again = Options { failed_only: true, ..Options::default() };
    assert_eq!(fleet.migrate(&sets, &again).await.unwrap().failed, 1);
    assert_eq!(fleet.texts(noted).await, [format!("{} 2 t", work().latest())]);
    fleet.sql(&format!("drop table {third}.colours")).await;
    let report = fleet.migrate(&sets, &again).await.unwrap();
    assert_eq!((report.total, report.migrated, report.failed), (1, 1, 0));
    assert_eq!(fleet.texts(noted).await, [""; 0]);
    assert_eq!(fleet.coloured().await, 5);
}

#[tokio::test]
async fn a_retry_leaves_alone_what_did_not_fail() {
    let fleet = Fleet::of(3).await;
    let options = Options { failed_only: true, ..Options::default() };
    let report = fleet.migrate(&next(ADDED), &options).await.unwrap();
    assert_eq!((report.total, report.migrated), (0, 0));
    assert_eq!(fleet.coloured().await, 0);
}

#[tokio::test]
async fn as_many_failures_as_may_be_end_the_run() {
    let fleet = Fleet::of(6).await;
    let options = Options { jobs: 1, max_failures: 2, ..Options::default() };
    let report = fleet.migrate(&next("alter table nowhere add column a text;"), &options).await.unwrap();
    assert_eq!((report.failed, report.migrated, report.pending), (2, 0, 4));
    assert!(report.stopped_because.is_some());
    assert_eq!(fleet.texts("select outcome from platform.migration_runs").await, ["failed"]);
}

#[tokio::test]
async fn a_canary_that_fails_protects_everybody_else() {
    let fleet = Fleet::of(4).await;
    let canary = &fleet.schemas[1];
    fleet.sql(&format!("alter table {canary}.projects add column colour text")).await;
    let options = Options { canaries: named(&["org-2"]), max_failures: 100, ..Options::default() };
    let report = fleet.migrate(&next(ADDED), &options).await.unwrap();
    assert_eq!((report.failed, report.migrated, report.pending), (1, 0, 3));
    assert_eq!(report.stopped_because, Some("canary org-2 failed".into()));
    assert_eq!(fleet.coloured().await, 1);
    // One that is well lets the others go.
    fleet.sql(&format!("alter table {canary}.projects drop column colour")).await;
    let report = fleet.migrate(&next(ADDED), &options).await.unwrap();
    assert_eq!((report.failed, report.migrated), (0, 4));
}

#[tokio::test]
async fn only_those_who_are_named_are_touched() {
    let fleet = Fleet::of(4).await;
    let options = |only: &[&str], canaries: &[&str]| Options {
        only: named(only),
        canaries: named(canaries),
        ..Options::default()
    };
    let report = fleet.migrate(&next(ADDED), &options(&["org-2"], &["org-3"])).await.unwrap();
    assert_eq!((report.total, report.migrated), (2, 2));
    assert_eq!(fleet.coloured().await, 2);
    let report = fleet.migrate(&next(ADDED), &options(&["org-2"], &[])).await.unwrap();
    assert_eq!((report.total, report.migrated, report.current), (1, 0, 1));
    let before = fleet.records().await;
    let refused = fleet.migrate(&next(ADDED), &options(&["org-2", "org-9"], &[])).await.unwrap_err();
    assert!(refused.to_string().contains("org-9"), "{refused}");
    assert_eq!(fleet.records().await, before);
}

#[tokio::test]
async fn a_dry_run_tells_and_changes_nothing() {
    let fleet = Fleet::of(3).await;
    // From before checksums were kept: even that is not made good.
    fleet.sql("update platform.tenant_schema_modules set checksum = null where module = 'core'").await;
    let before = fleet.records().await;
    let options = Options { dry_run: true, ..Options::default() };
    let report = fleet.migrate(&next(ADDED), &options).await.unwrap();
    assert_eq!((report.pending, report.migrated, report.current), (3, 0, 0));
    let steps: Vec<_> = report.planned.iter().map(|step| (step.module, step.from, step.to)).collect();
    assert_eq!(steps, [("work", work().latest(), work().latest() + 1); 3]);
    assert_eq!(fleet.records().await, before);
    assert_eq!(fleet.coloured().await, 0);
}

#[tokio::test]
async fn a_busy_tenant_is_stalled_for_moments_only_and_brought_along_when_it_has_time() {
    let fleet = Fleet::of(5).await;
    let busy = fleet.schemas[0].clone();
    let holder = fleet.beside();
    let held = holder.app.db.begin().await.unwrap();
    held.command(&format!("lock table {busy}.projects in access share mode")).await.unwrap();
    let reading = Arc::new(AtomicBool::new(true));
    let reads = Arc::new(AtomicUsize::new(0));
    let reader = tokio::spawn({
        let (reader, reading, reads, busy) = (fleet.beside(), reading.clone(), reads.clone(), busy.clone());
        async move {
            let mut longest = Duration::ZERO;
            while reading.load(Ordering::Relaxed) {
                let began = Instant::now();
                reader.number(&format!("select count(*) from {busy}.projects")).await;
                longest = longest.max(began.elapsed());
                reads.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            longest
        }
    });
    let release = async {
        within(10, "the others", || async { fleet.coloured().await == 4 }).await;
        let before = reads.load(Ordering::Relaxed);
        // Behind a migration that does not give way nobody reads any more.
        within(4, "reading goes on", || async { reads.load(Ordering::Relaxed) > before + 20 }).await;
        drop(held);
    };
    let (migrator, sets) = (fleet.beside(), next(ADDED));
    let (report, ()) = tokio::join!(migrator.run(&sets), release);
    assert_eq!((report.migrated, report.failed), (5, 0), "{:?}", report.failures);
    reading.store(false, Ordering::Relaxed);
    let longest = reader.await.unwrap();
    assert!(longest < Duration::from_secs(10), "somebody waited {longest:?} behind the migration");
}

#[tokio::test]
async fn a_tenant_that_is_busy_all_the_time_is_left_as_it_was() {
    let fleet = Fleet::of(2).await;
    let busy = &fleet.schemas[0];
    let holder = fleet.beside();
    let held = holder.app.db.begin().await.unwrap();
    held.command(&format!("lock table {busy}.projects in access share mode")).await.unwrap();
    let report = fleet.run(&next(ADDED)).await;
    assert_eq!((report.migrated, report.failed), (1, 1));
    assert_eq!((report.failures[0].schema.as_str(), report.failures[0].tries), (busy.as_str(), 5));
    assert!(report.failures[0].error.contains("lock timeout"), "{}", report.failures[0].error);
    drop(held);
    assert_eq!(fleet.run(&next(ADDED)).await.migrated, 1);
}

/// Gives a schema so many projects that nobody should wait for an index of them.
async fn fill(fleet: &Fleet, schema: &str) {
    fleet
        .sql(&format!(
            "insert into {schema}.projects (id, name, slug, status, priority, owner_id, created_by, created_at, \
             updated_at) select gen_random_uuid(), 'Project ' || n % 30000, 'project-' || n, 'active', 'low', \
             gen_random_uuid(), gen_random_uuid(), now(), now() from generate_series(1, 60000) as n"
        ))
        .await;
    let size = format!("select pg_relation_size('{schema}.projects')");
    assert!(fleet.number(&size).await > 8 * 1024 * 1024);
}

/// Where module work is, and the names of the indexes of projects that are good and not, in each schema.
async fn built(fleet: &Fleet, index: &str) -> Vec<String> {
    fleet
        .texts(&format!(
            "select concat_ws(' ', m.version, i.indisvalid::text) from platform.tenant_schema_modules m \
             left join pg_catalog.pg_index i on i.indexrelid = \
               to_regclass('tenant_' || replace(m.schema_id::text, '-', '') || '.{index}') \
             where m.module = 'work' order by m.schema_id"
        ))
        .await
}

#[tokio::test]
async fn indexes_of_large_tables_are_built_while_people_write() {
    let fleet = Fleet::of(2).await;
    let large = fleet.schemas[0].clone();
    fill(&fleet, &large).await;
    let writer = fleet.beside();
    let write = format!("update {large}.projects set priority = 'high' where slug = 'project-1'");
    let held = writer.app.db.begin().await.unwrap();
    held.execute(&write, &[]).await.unwrap();
    let sets = next("create index concurrently projects_urgent on projects (priority, id);");
    let done = work().latest() + 1;
    let meanwhile = async {
        let building = [format!("{} false", done - 1), format!("{done} true")];
        within(20, "the index is begun", || async { built(&fleet, "projects_urgent").await == building })
            .await;
        let tx = writer.app.db.begin().await.unwrap();
        tx.command("set local lock_timeout to '1s'").await.unwrap();
        tx.execute(&write.replace("project-1", "project-2"), &[]).await.unwrap();
        tx.commit().await.unwrap();
        held.commit().await.unwrap();
    };
    // Two runs share the work, and neither waits for the other where Postgres could not see it.
    let (one, other) = (fleet.beside(), fleet.beside());
    let (first, second, ()) = tokio::join!(one.run(&sets), other.run(&sets), meanwhile);
    assert_eq!((first.failed, second.failed), (0, 0), "{:?} {:?}", first.failures, second.failures);
    assert_eq!((first.migrated + second.migrated, first.current + second.current), (2, 2));
    assert_eq!(built(&fleet, "projects_urgent").await, [format!("{done} true"), format!("{done} true")]);
}

#[tokio::test]
async fn an_index_that_was_left_half_built_is_built_anew() {
    let fleet = Fleet::of(1).await;
    let schema = &fleet.schemas[0];
    fill(&fleet, schema).await;
    let unique = "create unique index concurrently projects_name_key on projects (name);";
    let sets =
        after(after(next(ADDED), "work", unique), "work", "alter table projects add column size text;");
    let before = work().latest();
    let report = fleet.run(&sets).await;
    assert_eq!((report.migrated, report.failed), (0, 1));
    assert!(
        report.failures[0].error.contains("could not create unique index"),
        "{}",
        report.failures[0].error
    );
    // What is before it is done.
    assert_eq!(built(&fleet, "projects_name_key").await, [format!("{} false", before + 1)]);
    assert_eq!(fleet.coloured().await, 1);
    fleet.sql(&format!("update {schema}.projects set name = slug")).await;
    assert_eq!(fleet.run(&sets).await.migrated, 1);
    assert_eq!(built(&fleet, "projects_name_key").await, [format!("{} true", before + 3)]);
}

#[tokio::test]
async fn a_migration_that_was_edited_after_it_ran_is_refused_until_it_is_put_back() {
    let fleet = Fleet::of(3).await;
    fleet.run(&next(ADDED)).await;
    let edited = next("alter table projects add column colour text not null;");
    for sets in [edited.clone(), after(edited, "work", "alter table projects add column size text;")] {
        let report = fleet.run(&sets).await;
        assert_eq!((report.migrated, report.failed), (0, 3));
        let told = &report.failures[0].error;
        let edited = format!("migration {} of module work was edited after it ran", work().latest() + 1);
        assert!(told.starts_with(&edited), "{told}");
    }
    let options = Options { dry_run: true, ..Options::default() };
    let told = fleet.migrate(&next("select 1;"), &options).await.unwrap();
    assert!(told.planned.iter().all(|step| step.objection.is_some()));
    let report = fleet.run(&next(ADDED)).await;
    assert_eq!((report.current, report.failed), (3, 0));
    assert!(fleet::failing(&fleet.app, 10).await.unwrap().is_empty(), "what was put back is forgotten");
}

#[tokio::test]
async fn a_migration_that_is_missing_in_the_middle_is_noticed_before_anything_happens() {
    let fleet = Fleet::of(2).await;
    let before = fleet.records().await;
    let sets = all_sets().into_iter().map(|set| {
        let beyond = set.latest() + 2;
        set.with(beyond, "beyond", "select 1;")
    });
    let refused = fleet.migrate(&sets.collect::<Vec<_>>(), &Options::default()).await.unwrap_err();
    assert!(refused.to_string().contains("of module core is missing; nothing was done"), "{refused}");
    assert_eq!(fleet.records().await, before);
}

#[tokio::test]
async fn the_shared_migrations_are_held_to_the_same() {
    let fleet = Fleet::of(0).await;
    let beyond = shared_set().latest() + 2;
    let holed = shared_set().with(beyond, "beyond", "select 1;");
    let refused = migrate_shared_to(&fleet.app.db, &holed, &|_| {}).await.unwrap_err();
    assert!(refused.to_string().contains("of module shared is missing; nothing was done"), "{refused}");
    fleet.sql("delete from platform.shared_migrations where version = 3").await;
    let refused = migrate_shared(&fleet.app.db).await.unwrap_err();
    assert!(refused.to_string().contains("migration 3 of module shared came later"), "{refused}");
    fleet.sql("update platform.shared_migrations set checksum = repeat('0', 16) where version = 2").await;
    let refused = migrate_shared(&fleet.app.db).await.unwrap_err();
    assert!(refused.to_string().contains("migration 2 of module shared was edited"), "{refused}");
}

#[tokio::test]
async fn a_shared_migration_gives_way_to_whoever_is_at_a_table_and_is_tried_again() {
    let fleet = Fleet::of(0).await;
    let holder = fleet.beside();
    let held = holder.app.db.begin().await.unwrap();
    held.command("lock table platform.organizations in access share mode").await.unwrap();
    let version = shared_set().latest() + 1;
    let set =
        shared_set().with(version, "next", "alter table platform.organizations add column colour text;");
    let times = AtomicUsize::new(0);
    let told = |_: &Failure| {
        times.fetch_add(1, Ordering::Relaxed);
    };
    let release = async {
        within(10, "it gives way", || async { times.load(Ordering::Relaxed) > 0 }).await;
        drop(held);
    };
    let (report, ()) = tokio::join!(migrate_shared_to(&fleet.app.db, &set, &told), release);
    assert_eq!(report.unwrap().to, version);
    let made = "select count(*) from pg_catalog.pg_attribute \
         where attrelid = 'platform.organizations'::regclass and attname = 'colour'";
    assert_eq!(fleet.number(made).await, 1);
}

#[tokio::test]
async fn schemas_ahead_of_the_program_are_left_alone_and_told() {
    let fleet = Fleet::of(2).await;
    fleet.run(&next(ADDED)).await;
    let before = fleet.texts("select m::text from platform.tenant_schema_modules m order by 1").await;
    let report = fleet.run(&all_sets()).await;
    assert_eq!((report.newer, report.migrated, report.current, report.failed), (2, 0, 0, 0));
    assert_eq!(fleet.texts("select m::text from platform.tenant_schema_modules m order by 1").await, before);
    let found = fleet::verify(&fleet.app, &all_sets(), &[], &|_, _| {}).await.unwrap();
    assert_eq!((found.checked, found.unverified.len()), (0, 2));
}

#[tokio::test]
async fn a_schema_that_was_dropped_by_hand_is_told_and_nothing_is_made_elsewhere() {
    let fleet = Fleet::of(3).await;
    fleet::stock_up(&fleet.app, &fleet.app.db.primary(), 1).await.unwrap();
    let spare =
        fleet.texts("select id::text from platform.tenant_schemas where state = 'spare'").await.remove(0);
    fleet.sql(&format!("drop schema tenant_{} cascade", spare.replace('-', ""))).await;
    let lost = &fleet.schemas[1];
    fleet.sql(&format!("drop schema {lost} cascade")).await;
    let report = fleet.run(&next("create table colours (id uuid primary key);")).await;
    assert_eq!((report.migrated, report.failed), (2, 1));
    let told = &report.failures[0].error;
    assert!(
        told.contains(&format!("schema {lost} is gone")) && told.contains("tenant restore org-"),
        "{told}"
    );
    let made = "select count(*) from pg_catalog.pg_class where relname = 'colours'";
    assert_eq!(fleet.number(made).await, 2, "not in the next schema of the path");
    let spares = "select count(*) from platform.tenant_schemas where state = 'spare'";
    assert_eq!(fleet.number(spares).await, 0, "nobody is given a spare that is gone");
}

#[tokio::test]
async fn what_takes_too_long_is_ended() {
    let fleet = Fleet::of(2).await;
    let began = Instant::now();
    let options = Options { timeout: Some(Duration::from_secs(1)), ..Options::default() };
    let report = fleet.migrate(&next("select pg_sleep(120);"), &options).await.unwrap();
    assert_eq!(report.failed, 2);
    assert_eq!(report.failures[0].tries, 1, "it would take as long the next time");
    assert!(began.elapsed() < Duration::from_secs(100), "{:?}", began.elapsed());
}

#[tokio::test]
async fn runs_at_the_same_time_share_the_work() {
    let fleet = Fleet::of(12).await;
    let (one, other, third) = (fleet.beside(), fleet.beside(), fleet.beside());
    // What is done twice would fail: there is that column already.
    let sets = next(ADDED);
    let (one, other, third) = tokio::join!(one.run(&sets), other.run(&sets), third.run(&sets));
    for report in [one, other, third] {
        assert_eq!(report.failed, 0, "{:?}", report.failures);
    }
    assert_eq!(fleet.coloured().await, 12);
}

#[tokio::test]
async fn checksums_of_schemas_from_before_they_were_kept_are_noted() {
    let fleet = Fleet::of(2).await;
    fleet.sql("update platform.tenant_schema_modules set checksum = null").await;
    let report = fleet.run(&all_sets()).await;
    assert_eq!((report.current, report.migrated), (2, 0));
    let without = "select count(*) from platform.tenant_schema_modules where checksum is null";
    assert_eq!(fleet.number(without).await, 0);
}

#[tokio::test]
async fn an_optional_module_is_brought_along_only_where_it_is() {
    let fleet = Fleet::of(3).await;
    let operations = all_sets().into_iter().find(|set| set.module == "operations").unwrap();
    let id = "(select schema_id from platform.organizations where slug = 'org-2')";
    let (version, checksum) = (operations.latest(), operations.checksum(operations.latest()));
    fleet
        .sql(&format!(
            "insert into platform.tenant_schema_modules (schema_id, module, version, checksum) \
             values ({id}, 'operations', {version}, '{checksum}')"
        ))
        .await;
    let sets = after(all_sets(), "operations", "create table extra_notes (id uuid primary key);");
    let report = fleet.run(&sets).await;
    assert_eq!((report.total, report.migrated, report.current), (3, 1, 2));
    let made = "select count(*) from pg_catalog.pg_class where relname = 'extra_notes'";
    assert_eq!(fleet.number(made).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_go_on_while_a_column_is_added_on_old_and_on_new_schemas() {
    let app = TestApp::with(|config| (config.tenancy.spare_schemas, config.database.pool_size) = (0, 6));
    let mut teams = Vec::new();
    for _ in 0..6 {
        teams.push(app.team().await);
    }
    let (going, answered) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
    let mut people = JoinSet::new();
    for team in teams.clone() {
        let (going, answered) = (going.clone(), answered.clone());
        people.spawn(async move {
            while going.load(Ordering::Relaxed) {
                let project = team.project("P").await;
                team.task(&project, "T").await;
                let path = format!("/projects/{}", project["id"].as_str().unwrap());
                assert_eq!(team.owner.get(&path).await.expect(200)["name"], project["name"]);
                team.owner.get("/tasks?page_size=5").await.expect(200);
                answered.fetch_add(4, Ordering::Relaxed);
            }
        });
    }
    // Each panics at the first answer that is not as it should be.
    let go_on = || async {
        let before = answered.load(Ordering::Relaxed);
        within(10, "they go on", || async { answered.load(Ordering::Relaxed) > before + 24 }).await;
    };
    go_on().await;
    let migrator = App::new(app.app.config.clone(), Clock::default()).unwrap();
    let first = next("alter table projects add column colour text default 'red';");
    let second =
        after(first.clone(), "work", "alter table tasks add column size integer not null default 1;");
    for sets in [first, second] {
        let report = fleet::migrate(&migrator, &sets, &Options::default(), &|_| {}).await.unwrap();
        assert_eq!((report.migrated, report.failed), (6, 0), "{:?}", report.failures);
        go_on().await;
    }
    going.store(false, Ordering::Relaxed);
    people.join_all().await;
    // A new organization is made at the service's own version meanwhile.
    app.team().await.project("New").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_in_the_middle_it_goes_on_where_it_was() {
    let fleet = Fleet::of(8).await;
    fleet.without_work().await;
    // It gets as far as the fourth, whose files somebody writes to.
    let held = fleet.app.db.begin().await.unwrap();
    held.command("set local idle_in_transaction_session_timeout to 0").await.unwrap();
    for schema in &fleet.schemas[3..] {
        held.command(&format!("lock table {schema}.files in row exclusive mode")).await.unwrap();
    }
    let mut run = command(&fleet.database(), &["migrate", "--jobs", "1"]);
    let mut child = run.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let other = fleet.beside();
    within(20, "the first three", || async { other.with_work().await == 3 }).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(other.with_work().await, 3);
    let said = works(rowhouse(&fleet.database(), &["migrate", "status"]));
    assert!(said.contains("5 schemas behind, 0 failed") && said.contains("running"), "{said}");
    drop(held);
    let said = works(rowhouse(&fleet.database(), &["migrate"]));
    assert!(said.contains("tenants: 5 migrated, 3 current, 0 failed"), "{said}");
    assert_eq!(other.with_work().await, 8);
    let said = works(rowhouse(&fleet.database(), &["migrate", "verify"]));
    assert!(said.contains("8 compared, 0 differ"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_code_report_and_status_tell_what_happened() {
    let fleet = Fleet::of(3).await;
    let database = fleet.database();
    fleet.without_work().await;
    let broken = &fleet.schemas[1];
    fleet.sql(&format!("create table {broken}.tasks (id uuid primary key)")).await;
    let file = std::env::temp_dir().join(format!("rowhouse-report-{}.json", Uuid::now_v7()));
    let path = file.to_str().unwrap();

    let output = rowhouse(&database, &["migrate", "--dry-run"]);
    assert!(works(output).contains("3 to migrate, 0 current; nothing was changed"));
    let output = rowhouse(&database, &["migrate", "--report", path]);
    assert_eq!(output.status.code(), Some(1));
    let said = fails(output);
    assert!(said.contains("2 migrated, 0 current, 1 failed") && said.contains("migrate retry"), "{said}");
    let report: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!((&report["migrated"], &report["failed"]), (&json!(2), &json!(1)));
    assert_eq!(report["failures"][0]["schema"], broken.as_str());
    assert_eq!(report["versions"]["work"], work().latest());
    fs::remove_file(&file).unwrap();

    let said = works(rowhouse(&database, &["migrate", "status"]));
    assert!(said.contains("1 schemas behind, 1 failed") && said.contains("already exists"), "{said}");
    let status: Value =
        serde_json::from_str(&works(rowhouse(&database, &["migrate", "status", "--json"]))).unwrap();
    assert_eq!(status["standing"]["failed"], 1);
    assert_eq!(status["standing"]["last_run"]["state"], "failed");
    assert_eq!(status["failing"][0]["schema"], broken.as_str());

    fleet.sql(&format!("drop table {broken}.tasks")).await;
    let said = works(rowhouse(&database, &["migrate", "retry"]));
    assert!(said.contains("1 migrated, 0 current, 0 failed"), "{said}");
    for wrong in [["--jobs", "0"], ["--max-failures", "none"], ["--timeout", "-1"]] {
        let output = rowhouse(&database, &["migrate", wrong[0], wrong[1]]);
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
    }
    let said = fails(rowhouse(&database, &["migrate", "--canary", "nobody"]));
    assert!(said.contains("there is no organization \"nobody\""), "{said}");
    let said = fails(rowhouse(&database, &["migrate", "--report", "/nowhere/report.json"]));
    assert!(said.contains("--report"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_is_whole_or_not_there_and_a_dry_run_tells_what_would_be_refused() {
    let fleet = Fleet::of(2).await;
    let database = fleet.database();
    let folder = std::env::temp_dir().join(format!("rowhouse-reports-{}", Uuid::now_v7()));
    fs::create_dir(&folder).unwrap();
    let file = folder.join("report.json");
    let path = file.to_str().unwrap();
    fails(rowhouse(&database, &["migrate", "--canary", "nobody", "--report", path]));
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    fleet
        .sql(
            "update platform.tenant_schema_modules set checksum = repeat('0', 8) || right(checksum, -8) \
             where module = 'work'",
        )
        .await;
    let said = fails(rowhouse(&database, &["migrate", "--dry-run", "--report", path]));
    assert!(said.contains("2 would be refused"), "{said}");
    let report: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!(report["planned"].as_array().unwrap().len(), 2, "{report}");
    assert_eq!(report["platform"]["to"], shared_set().latest());
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    fs::remove_dir_all(&folder).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_of_an_empty_database_leaves_it_empty() {
    let database = TestApp::fresh_database();
    for _ in 0..2 {
        let said = works(rowhouse(&database, &["migrate", "--dry-run"]));
        assert!(said.contains("platform: would go from version 0"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_changed_by_hand_is_found_and_shown() {
    let fleet = Fleet::of(4).await;
    let database = fleet.database();
    works(rowhouse(&database, &["migrate", "verify"]));
    let [first, second, third, _] = &fleet.schemas[..] else { panic!("four schemas") };
    fleet.sql(&format!("alter table {first}.projects add column by_hand text")).await;
    fleet.sql(&format!("alter table {first}.projects alter column status drop not null")).await;
    fleet.sql(&format!("alter table {first}.task_assignees set unlogged")).await;
    fleet.sql(&format!("alter table {first}.task_assignees disable trigger all")).await;
    fleet.sql(&format!("drop index {second}.tasks_title")).await;
    fleet.sql(&format!("alter table {second}.tasks drop constraint tasks_impact")).await;
    fleet.sql(&format!("drop schema {third} cascade")).await;
    fleet.sql("create schema tenant_00000000000000000000000000000001").await;
    let said = fails(rowhouse(&database, &["migrate", "verify"]));
    for line in [
        "  + column projects.by_hand: text",
        "  - column projects.status: text not null",
        "  + column projects.status: text",
        "  + table task_assignees: unlogged, foreign keys disabled",
        "  - index tasks_title: CREATE INDEX tasks_title ON tasks USING btree (title, id)",
        "  - constraint tasks.tasks_impact: CHECK",
        &format!("{third} (org-3) is gone"),
        "tenant_00000000000000000000000000000001 on database",
        "3 compared, 2 differ, 1 gone, 1 unknown, 0 not compared",
    ] {
        assert!(said.contains(line), "{line} is missing: {said}");
    }
    let said = works(rowhouse(&database, &["migrate", "verify", "org-4"]));
    assert!(said.contains("1 compared, 0 differ"), "{said}");
    let output = rowhouse(&database, &["migrate", "verify", "--json", "org-2"]);
    assert_eq!(output.status.code(), Some(1));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["drifted"][0]["organization"], "org-2");
    assert_eq!(found["drifted"][0]["lines"].as_array().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn staff_and_metrics_see_where_the_fleet_is() {
    let app = TestApp::with(|config| config.tenancy.spare_schemas = 0);
    let staff = app.superuser().await.client;
    let (team, other) = (app.team().await, app.team().await);
    let of = |team: &str| format!("(select schema_id from platform.organizations where id = '{team}')");
    app.sql(&format!(
        "update platform.tenant_schema_modules set version = 1 where module = 'work' and schema_id = {}",
        of(&team.id)
    ))
    .await;
    app.sql(&format!(
        "update platform.tenant_schema_modules set last_error = 'no luck', failed_at = now(), attempts = 2 \
         where module = 'core' and schema_id = {}",
        of(&other.id)
    ))
    .await;
    let standing = staff.get("/admin/fleet").await.expect(200);
    assert_eq!((&standing["behind"], &standing["failed"]), (&json!(1), &json!(1)), "{standing}");
    assert_eq!(standing["last_run"], Value::Null);
    assert_eq!(standing["databases"][0]["name"], "primary");
    let work =
        standing["modules"].as_array().unwrap().iter().find(|module| module["module"] == "work").unwrap();
    assert_eq!(work["versions"].as_array().unwrap().len(), 2, "{standing}");
    let list = |filter: &'static str| {
        let staff = staff.clone();
        async move { staff.get(&format!("/admin/fleet/schemas?{filter}")).await.expect(200) }
    };
    let (behind, failed) = (list("state=behind").await, list("state=failed").await);
    assert_eq!((&behind["total"], &behind["data"][0]["organization_id"]), (&json!(1), &json!(team.id)));
    assert_eq!(behind["data"][0]["state"], "behind");
    assert_eq!((&failed["total"], &failed["data"][0]["slug"]), (&json!(1), &json!(other.slug)));
    assert_eq!(failed["data"][0]["modules"][0]["last_error"], "no luck");
    assert_eq!(list("state=current").await["total"], 0);
    assert_eq!(list("state=retired").await["total"], 0);
    assert_eq!(list("page_size=1").await["total"], 2);
    app.sql(
        "insert into platform.fleet_operations (id, kind, state, about, started_at, beat_at, finished_at) \
         values (gen_random_uuid(), 'export', 'done', '{\"to\": \"x\"}', now(), now(), now())",
    )
    .await;
    let operations = staff.get("/admin/fleet/operations?state=done").await.expect(200);
    assert_eq!((&operations["total"], &operations["data"][0]["about"]["to"]), (&json!(1), &json!("x")));
    team.owner.get("/admin/fleet").await.refused(403, "PERMISSION_DENIED");
    within(5, "the gauges", || async {
        let metrics =
            app.http.get(format!("{}/metrics", app.base)).send().await.unwrap().text().await.unwrap();
        metrics.contains("rowhouse_schemas_behind") && metrics.contains("rowhouse_schemas{state=\"taken\"}")
    })
    .await;
}
