//! Two organizations, two connections, thousands of transactions that succeed, fail or are dropped
//! anywhere: no row of one is ever seen by the other, nothing is half written, nothing stays open.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use reqwest::Method;
use rowhouse::{
    app::App,
    db::TenantTx,
    error::Result,
    tenancy::{Tenant, fleet},
};
use serde_json::json;
use uuid::Uuid;

use crate::support::{TestApp, within_a_second};

/// A small generator: the test must be random, and the same at each run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

async fn insert(tx: &TenantTx, mark: &str) -> Result<Uuid> {
    let id = Uuid::now_v7();
    tx.execute(
        "insert into projects (id, name, slug, status, priority, owner_id, created_by, created_at, updated_at) \
         values ($1, $2, $3, 'active', 'low', $1, $1, now(), now())",
        &[&id, &mark, &format!("p{}", id.simple())],
    )
    .await?;
    Ok(id)
}

/// One transaction of the tenant whose rows all bear `mark`; tells when it holds a connection.
async fn act(tenant: &Tenant, mark: &str, what: u64, inside: &AtomicBool) -> Result<()> {
    let tx = tenant.begin().await?;
    inside.store(true, Ordering::Relaxed);
    match what {
        // Read everything there is.
        0..3 => {
            for row in tx.query("select name from projects", &[]).await? {
                assert_eq!(row.try_get::<_, &str>(0)?, mark, "a row of another organization");
            }
        }
        // Two rows that belong together.
        3..6 => {
            let project = insert(&tx, mark).await?;
            tx.execute(
                "insert into tasks (id, project_id, title, status, priority, created_by, created_at, updated_at) \
                 values ($1, $1, $2, 'todo', 'low', $1, now(), now())",
                &[&project, &mark],
            )
            .await?;
            tx.commit().await?;
        }
        // A statement that fails after one that worked, and a commit that must not pretend.
        6 => {
            insert(&tx, mark).await?;
            assert!(tx.query("select 1 / (select 0)", &[]).await.is_err());
            assert!(tx.commit().await.is_err());
        }
        // A first statement that fails; a value that cannot be encoded.
        7 => assert!(tx.query("select nothing from nowhere", &[]).await.is_err()),
        8 => {
            assert!(tx.query("select id from projects where id = $1", &[&"not a uuid"]).await.is_err());
            assert!(tx.commit().await.is_err());
        }
        // Something slow, to be dropped in the middle of.
        _ => {
            insert(&tx, mark).await?;
            tx.query("select pg_sleep(0.02)", &[]).await?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_two_organizations_never_meet_on_two_connections() {
    never_meet(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_two_organizations_never_meet_on_five_connections() {
    never_meet(5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_two_organizations_never_meet_on_eight_connections() {
    never_meet(8).await;
}

async fn never_meet(connections: usize) {
    let app = TestApp::with(|config| {
        config.database.pool_size = connections;
        config.database.pool_wait_seconds = 30;
        // Statements are given up all the time, while others of the connection are under way.
        config.database.statements_per_connection = 3;
    });
    let (red, blue) = (app.team().await, app.team().await);
    let mut tenants = Vec::new();
    for team in [&red, &blue] {
        tenants.push(fleet::tenant(&app.app.directory, &team.slug).await.unwrap().unwrap());
    }
    // The pool hands its work to the runtime that drops it.
    let tenants = Arc::new(tenants);
    let workers = (0..8).map(|worker| {
        let tenants = tenants.clone();
        tokio::spawn(async move {
            let mut dice = Dice(0x9E37_79B9 + worker);
            let mut dropped = 0;
            for _ in 0..500 {
                let which = dice.roll(2) as usize;
                let inside = AtomicBool::new(false);
                let work = act(&tenants[which], ["red", "blue"][which], dice.roll(10), &inside);
                // Half are dropped if they are still there, some time after it has got its connection.
                let patience = (dice.roll(2) == 0).then(|| Duration::from_micros(dice.roll(1500)));
                let dropping = async {
                    let Some(patience) = patience else { return std::future::pending().await };
                    while !inside.load(Ordering::Relaxed) {
                        tokio::time::sleep(Duration::from_micros(100)).await;
                    }
                    tokio::time::sleep(patience).await;
                };
                tokio::select! {
                    biased;
                    done = work => done.unwrap(),
                    () = dropping => dropped += 1,
                }
            }
            dropped
        })
    });
    let mut dropped = 0;
    for worker in workers.collect::<Vec<_>>() {
        dropped += worker.await.unwrap();
    }
    assert!(dropped > 100, "only {dropped} transactions were dropped midway");
    for (tenant, mark) in tenants.iter().zip(["red", "blue"]) {
        let tx = tenant.begin().await.unwrap();
        let row = tx
            .query_one(
                "select count(*) filter (where p.name <> $1), count(*) filter (where t.id is null), count(*) \
                 from projects p left join tasks t on t.project_id = p.id",
                &[&mark],
            )
            .await
            .unwrap();
        let (foreign, halves, all): (i64, i64, i64) =
            (row.try_get(0).unwrap(), row.try_get(1).unwrap(), row.try_get(2).unwrap());
        assert_eq!((foreign, halves), (0, 0));
        assert!(all > 100, "{all} rows were written");
    }
    nothing_is_left_open(&app.app).await;
}

/// No transaction stays open, and no connection has kept a path.
async fn nothing_is_left_open(app: &App) {
    within_a_second("every transaction is over", || async {
        let tx = app.db.begin().await.unwrap();
        let open = tx
            .query_one(
                "select count(*) from pg_stat_activity where datname = current_database() \
                 and pid <> pg_backend_pid() and state like 'idle in transaction%'",
                &[],
            )
            .await
            .unwrap();
        open.try_get::<_, i64>(0).unwrap() == 0
    })
    .await;
    for _ in 0..20 {
        let tx = app.db.begin().await.unwrap();
        // Past the transaction's own settings, to those of the session.
        tx.command("rollback").await.unwrap();
        let row = tx
            .query_one(
                "select current_setting('search_path'), current_setting('rowhouse.organization_id', true)",
                &[],
            )
            .await
            .unwrap();
        assert_eq!(row.try_get::<_, &str>(0).unwrap(), "");
        assert_eq!(row.try_get::<_, Option<&str>>(1).unwrap().unwrap_or_default(), "");
        assert!(
            tx.query("select name from projects", &[]).await.is_err(),
            "a tenant's table outside a tenant"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropped_http_requests_leave_nothing_behind() {
    let app = TestApp::with(|config| {
        config.database.pool_size = 2;
        config.database.pool_wait_seconds = 30;
    });
    let (red, blue) = (app.team().await, app.team().await);
    let workers = (0..6u64).map(|worker| {
        let teams = [red.clone(), blue.clone()];
        tokio::spawn(async move {
            let mut dice = Dice(0xC0FFEE + worker);
            for _ in 0..80 {
                let which = dice.roll(2) as usize;
                let (team, mark) = (&teams[which], ["red", "blue"][which]);
                let request = match dice.roll(4) {
                    0 => team.owner.request(Method::POST, "/projects").json(&json!({"name": mark})),
                    1 => team
                        .owner
                        .request(Method::POST, "/projects")
                        .json(&json!({"name": mark, "slug": "same"})),
                    _ => team.owner.request(Method::GET, "/projects?page_size=100"),
                };
                let patience =
                    Duration::from_micros(if dice.roll(2) == 0 { dice.roll(8000) } else { 30_000_000 });
                let Ok(Ok(response)) = tokio::time::timeout(patience, request.send()).await else { continue };
                let Ok(body) = response.json::<serde_json::Value>().await else { continue };
                for project in body["data"].as_array().into_iter().flatten() {
                    assert_eq!(project["name"], mark);
                }
            }
        })
    });
    for worker in workers.collect::<Vec<_>>() {
        worker.await.unwrap();
    }
    nothing_is_left_open(&app.app).await;
}

#[tokio::test]
async fn a_schema_that_changes_under_cached_statements_is_read_anew() {
    let app = TestApp::with(|config| config.database.pool_size = 1);
    let team = app.team().await;
    let tenant = fleet::tenant(&app.app.directory, &team.slug).await.unwrap().unwrap();
    insert(&tenant.begin().await.unwrap(), "never committed").await.unwrap();
    let read = async || {
        let tx = tenant.begin().await?;
        tx.query("select default_currency from settings", &[]).await
    };
    read().await.unwrap();
    let tx = tenant.begin().await.unwrap();
    tx.command("alter table settings alter column default_currency type varchar(3)").await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(read().await.unwrap().len(), 1);
    // A list is two statements in one flush.
    assert_eq!(team.owner.get("/projects").await.expect(200)["total"], 0);
    let tx = tenant.begin().await.unwrap();
    tx.command("alter table projects alter column priority type varchar(10)").await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(team.owner.get("/projects").await.expect(200)["total"], 0);
}
