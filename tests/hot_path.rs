//! The way of a request to its rows: what is kept in memory is never out of date, connections are
//! given up in time, and one organization does not take up what others need.

use std::{collections::HashSet, time::Duration};

use futures_util::future::join_all;
use reqwest::{Method, StatusCode};
use rowhouse::{
    auth::Role,
    tenancy::{Tenant, fleet},
};
use serde_json::json;

use crate::support::{Client, Team, TestApp, within_a_second};

async fn tenant(team: &Team) -> Tenant {
    fleet::tenant(&team.app.app.directory, &team.slug).await.unwrap().unwrap()
}

async fn status(client: &Client) -> u16 {
    client.get("/projects").await.status.as_u16()
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_loses_access_loses_it_at_once_here_and_in_a_moment_elsewhere() {
    let app = TestApp::with(|_| {});
    let other = app.beside();
    let team = app.team().await;
    let member = team.join(Role::Member).await;
    let elsewhere = member.client.at(&other);
    for client in [&member.client, &elsewhere, &member.client, &elsewhere] {
        assert_eq!(status(client).await, 200);
    }
    // A smaller role.
    let path = team.path(&format!("/members/{}", member.id));
    team.owner.patch(&path, json!({"role": "viewer"})).await.expect(200);
    let write = |client: &Client| {
        let client = client.clone();
        async move { client.post("/projects", json!({"name": "Mine"})).await.status }
    };
    assert_eq!(write(&member.client).await, StatusCode::FORBIDDEN);
    within_a_second("the role is known elsewhere", || async {
        write(&elsewhere).await == StatusCode::FORBIDDEN
    })
    .await;
    // No membership.
    assert_eq!(status(&elsewhere).await, 200);
    team.owner.delete(&path).await.expect(204);
    assert_eq!(status(&member.client).await, 404);
    within_a_second("the removal is known elsewhere", || async { status(&elsewhere).await == 404 }).await;
    // No session.
    let (owner, owner_elsewhere) = (team.owner.clone(), team.owner.at(&other));
    assert_eq!((status(&owner).await, status(&owner_elsewhere).await), (200, 200));
    owner.post("/auth/logout", json!({})).await.expect(204);
    assert_eq!(status(&owner).await, 401);
    within_a_second("the logout is known elsewhere", || async { status(&owner_elsewhere).await == 401 })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_revoked_or_expires_is_worth_nothing_any_more() {
    let app = TestApp::with(|_| {});
    let other = app.beside();
    let team = app.team().await;
    let made = team
        .owner
        .post("/api-keys", json!({"name": "Program", "scopes": ["projects:read"]}))
        .await
        .expect(201);
    let here = app.anonymous().header("x-api-key", made["key"].as_str().unwrap());
    let there = here.at(&other);
    assert_eq!((status(&here).await, status(&there).await), (200, 200));
    team.owner.delete(&format!("/api-keys/{}", made["id"].as_str().unwrap())).await.expect(204);
    assert_eq!(status(&here).await, 401);
    within_a_second("the end of the key is known elsewhere", || async { status(&there).await == 401 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_connection_keeps_is_bounded_and_worn_out_ones_are_replaced() {
    let app = TestApp::with(|config| {
        config.database.pool_size = 1;
        config.database.statements_per_connection = 3;
        config.database.schemas_per_connection = 4;
    });
    let mut tenants = Vec::new();
    for _ in 0..6 {
        tenants.push(tenant(&app.team().await).await);
    }
    let mut backends = HashSet::new();
    for _ in 0..3 {
        for tenant in &tenants {
            let tx = tenant.begin().await.unwrap();
            for table in ["projects", "tasks", "settings", "events"] {
                tx.query(&format!("select count(*) from {table}"), &[]).await.unwrap();
            }
            let sql = "select pg_backend_pid(), (select count(*) from pg_prepared_statements)";
            let row = tx.query_one(sql, &[]).await.unwrap();
            backends.insert(row.try_get::<_, i32>(0).unwrap());
            // Three, the one that enters a schema, and one that is about to be given up.
            assert!(row.try_get::<_, i64>(1).unwrap() <= 5);
        }
    }
    assert!(backends.len() >= 4, "eighteen visits by six tenants on {} connections", backends.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_organization_does_not_make_the_others_wait() {
    let app = TestApp::with(|config| config.database.pool_size = 2);
    let (heavy, light) = (tenant(&app.team().await).await, tenant(&app.team().await).await);
    let ask =
        async || light.begin().await.unwrap().query("select count(*) from projects", &[]).await.unwrap();
    ask().await;
    let load = (0..150).map(|_| {
        let heavy = heavy.clone();
        tokio::spawn(async move {
            let tx = heavy.begin().await.unwrap();
            tx.query("select pg_sleep(0.1)", &[]).await.unwrap();
        })
    });
    let load: Vec<_> = load.collect();
    tokio::time::sleep(Duration::from_millis(50)).await;
    // Whoever queues behind all of them is answered when they are done. How many
    // are, and not how long it took, as this machine may be at other things.
    for _ in 0..3 {
        ask().await;
    }
    let done = load.iter().filter(|task| task.is_finished()).count();
    assert!(done < 100, "waited behind {done} of somebody else's 150");
    load.iter().for_each(|task| task.abort());
}

#[tokio::test(flavor = "multi_thread")]
async fn only_so_many_requests_of_an_organization_are_under_way() {
    let app = TestApp::with(|config| {
        config.limits.concurrent = 3;
        config.database.pool_size = 8;
    });
    let (busy, other) = (app.team().await, app.team().await);
    let lock = tenant(&busy).await.begin().await.unwrap();
    lock.command("lock table projects in access exclusive mode").await.unwrap();
    let (client, three) = (busy.owner.clone(), 0..3);
    let held = tokio::spawn(async move { join_all(three.map(|_| client.get("/projects"))).await });
    busy.app.held_up(3).await;
    let refused = busy.owner.get("/projects").await;
    assert_eq!(refused.headers["retry-after"], "1");
    assert!(refused.expect(429)["error"]["message"].as_str().unwrap().contains("under way"));
    other.owner.get("/projects").await.expect(200);
    drop(lock);
    for answer in held.await.unwrap() {
        answer.expect(200);
    }
    busy.owner.get("/projects").await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_so_much_of_the_database_s_time_is_one_organization_s() {
    let app = TestApp::with(|config| config.database.seconds_per_minute = 1);
    let (busy, other) = (app.team().await, app.team().await);
    busy.owner.get("/projects").await.expect(200);
    tenant(&busy).await.begin().await.unwrap().query("select pg_sleep(2)", &[]).await.unwrap();
    let refused = busy.owner.request(Method::GET, "/projects").send().await.unwrap();
    assert_eq!(refused.status(), 429);
    let wait: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=60).contains(&wait), "{wait}");
    other.owner.get("/projects").await.expect(200);
}
