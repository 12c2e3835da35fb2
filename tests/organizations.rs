//! /organizations: create, list, get, change, delete, restore, settings.

use chrono::TimeDelta;
use rowhouse::auth::Role;
use serde_json::json;

use crate::support::{TestApp, within, within_a_second};

#[tokio::test]
async fn an_organization_is_usable_the_moment_it_is_made() {
    let app = TestApp::shared();
    let person = app.person().await;
    let new = json!({"name": "Kopi House", "description": "Beans", "industry": "Food", "size_range": "1-10",
        "country_code": "SG", "timezone": "Asia/Kuala_Lumpur"});
    let answer = person.client.post("/organizations", new.clone()).await;
    let location = answer.header("location").to_owned();
    let made = answer.expect(201);
    for (field, value) in new.as_object().unwrap() {
        assert_eq!(&made[field], value);
    }
    assert!(made["slug"].as_str().unwrap().starts_with("kopi-house"));
    assert_eq!(person.client.get(location.strip_prefix("/api/v1").unwrap()).await.expect(200), made);
    let inside = person.client.within(made["slug"].as_str().unwrap());
    assert_eq!(inside.get("/projects").await.expect(200)["total"], 0);
    assert_eq!(person.client.get("/organizations").await.expect(200)["data"], json!([made]));
}

#[tokio::test]
async fn organizations_are_made_on_the_spot_when_no_spare_is_left() {
    let app = TestApp::with(|config| config.tenancy.spare_schemas = 0);
    let person = app.person().await;
    let client = &person.client;
    let made = futures_util::future::join_all((0..6).map(|n| {
        client.post("/organizations", json!({"name": format!("Rush {n}"), "slug": format!("rush-{n}")}))
    }))
    .await;
    for answer in made {
        answer.expect(201);
    }
    assert_eq!(app.number("select count(distinct schema_id) from platform.organizations").await, 6);
}

#[tokio::test]
async fn spares_are_taken_and_replaced() {
    let app = TestApp::with(|config| config.tenancy.spare_schemas = 3);
    let spares = "select count(*) from platform.tenant_schemas where state = 'spare'";
    let person = app.person().await;
    for n in 0..3 {
        let stocked = app.clone();
        within(10, "three spares in stock", || async { stocked.number(spares).await >= 3 }).await;
        person.client.post("/organizations", json!({"name": format!("Taker {n}")})).await.expect(201);
    }
}

#[tokio::test]
async fn slugs_are_checked_reserved_and_unique() {
    let app = TestApp::shared();
    let person = app.person().await;
    let make = |slug: &str| {
        let body = json!({"name": "Any", "slug": slug});
        let client = person.client.clone();
        async move { client.post("/organizations", body).await }
    };
    for slug in ["ab", "-abc", "abc-", "Abc", "a b c", "a.b.c", "ünicode", &"a".repeat(64)] {
        let error = make(slug).await.refused(400, "VALIDATION_ERROR");
        assert_eq!(error["fields"][0]["field"], "slug", "{slug}");
    }
    for slug in ["www", "api", "admin", "docs"] {
        let error = make(slug).await.refused(400, "VALIDATION_ERROR");
        assert_eq!(error["fields"][0]["code"], "reserved");
    }
    let slug = format!("taken-{}", person.id.split('-').next_back().unwrap());
    make(&slug).await.expect(201);
    let error = make(&slug).await.refused(409, "CONFLICT");
    assert_eq!(
        (&error["fields"][0]["field"], &error["fields"][0]["code"]),
        (&json!("slug"), &json!("taken"))
    );
    assert_eq!(person.client.get("/organizations").await.expect(200)["total"], 1);
}

#[tokio::test]
async fn an_organization_whose_name_is_taken_or_reserved_gets_a_slug_of_its_own() {
    let app = TestApp::shared();
    let person = app.person().await;
    let mut slugs = Vec::new();
    for name in ["Api", "Same Name", "Same Name", "公司"] {
        let made = person.client.post("/organizations", json!({"name": name})).await.expect(201);
        slugs.push(made["slug"].as_str().unwrap().to_owned());
    }
    slugs.dedup();
    assert_eq!(slugs.len(), 4);
    assert!(slugs[0].starts_with("api-"));
}

#[tokio::test]
async fn a_new_slug_is_in_force_on_every_instance_within_a_second() {
    let app = TestApp::shared();
    let other = app.beside();
    let team = app.team().await;
    let there = team.owner.at(&other);
    there.within(&team.slug).get("/projects").await.expect(200);
    let new = format!("{}-new", team.slug);
    there.within(&new).get("/projects").await.refused(404, "TENANT_NOT_FOUND");
    team.owner.patch(&team.path(""), json!({"slug": new})).await.expect(200);
    within_a_second("the new slug is known", || async {
        there.within(&new).get("/projects").await.status == 200
    })
    .await;
    within_a_second("the old slug is unknown", || async {
        there.within(&team.slug).get("/projects").await.status == 404
    })
    .await;
}

#[tokio::test]
async fn a_deleted_organization_is_gone_until_its_owner_restores_it() {
    let app = TestApp::with(|_| {});
    let team = app.team().await;
    let admin = team.join(Role::Admin).await;
    let project = team.project("Kept").await;
    admin.client.delete(&team.path("")).await.refused(403, "PERMISSION_DENIED");
    team.owner.delete(&team.path("")).await.expect(204);
    let other = app.beside();
    for client in [&team.owner, &admin.client, &team.owner.at(&other)] {
        client.get("/projects").await.refused(404, "TENANT_NOT_FOUND");
        client.get(&team.path("")).await.refused(404, "TENANT_NOT_FOUND");
    }
    assert_eq!(team.owner.get("/organizations").await.expect(200)["total"], 0);
    let deleted = team.owner.get("/organizations?deleted=true").await.expect(200);
    assert_eq!(deleted["data"][0]["id"], team.id);
    admin.client.post(&team.path("/restore"), json!(null)).await.refused(403, "PERMISSION_DENIED");
    app.person()
        .await
        .client
        .post(&team.path("/restore"), json!(null))
        .await
        .refused(404, "TENANT_NOT_FOUND");
    let restored = team.owner.post(&team.path("/restore"), json!(null)).await.expect(200);
    assert_eq!(restored["deleted_at"], json!(null));
    let path = format!("/projects/{}", project["id"].as_str().unwrap());
    assert_eq!(team.owner.get(&path).await.expect(200), project);
    team.owner.post(&team.path("/restore"), json!(null)).await.refused(409, "CONFLICT");
}

#[tokio::test]
async fn after_30_days_a_deleted_organization_cannot_be_restored() {
    let app = TestApp::with(|config| config.auth.access_token_minutes = 60 * 24 * 60);
    let team = app.team().await;
    team.owner.delete(&team.path("")).await.expect(204);
    app.app.clock.advance(TimeDelta::days(31));
    team.owner.post(&team.path("/restore"), json!(null)).await.refused(404, "TENANT_NOT_FOUND");
}

#[tokio::test]
async fn settings_have_defaults_and_are_changed_by_those_who_manage_them() {
    let app = TestApp::shared();
    let team = app.team().await;
    let viewer = team.join(Role::Viewer).await;
    let settings = viewer.client.get(&team.path("/settings")).await.expect(200);
    assert_eq!(
        settings,
        json!({"default_currency": "SGD", "week_starts_on": "monday", "date_format": "iso"})
    );
    let change = json!({"default_currency": "MYR", "week_starts_on": "sunday"});
    viewer.client.patch(&team.path("/settings"), change.clone()).await.refused(403, "PERMISSION_DENIED");
    let changed = team.owner.patch(&team.path("/settings"), change).await.expect(200);
    assert_eq!(changed, json!({"default_currency": "MYR", "week_starts_on": "sunday", "date_format": "iso"}));
    team.owner
        .patch(&team.path("/settings"), json!({"default_currency": "XXX"}))
        .await
        .refused(400, "VALIDATION_ERROR");
    // Another organization keeps its own.
    let rival = app.team().await;
    assert_eq!(rival.owner.get(&rival.path("/settings")).await.expect(200), settings);
}
