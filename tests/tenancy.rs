//! Which organization a request is for: header, subdomain, custom domain, path.

use rowhouse::auth::Role;
use serde_json::json;

use crate::support::{TestApp, within_a_second};

#[tokio::test]
async fn an_organization_is_named_by_header_alias_subdomain_or_domain() {
    let app = TestApp::shared();
    let team = app.team().await;
    let project = team.project("Found").await;
    let domain = format!("work.{}.test", team.slug);
    app.sql(&format!(
        "insert into platform.organization_domains (id, organization_id, domain, verified_at) \
         values (gen_random_uuid(), '{}', '{domain}', now())",
        team.id
    ))
    .await;
    let person = &team.founder.client;
    let subdomain = format!("{}.localhost", team.slug);
    for (name, value) in [
        ("x-organization-id", team.id.as_str()),
        ("x-organization-id", team.slug.as_str()),
        ("x-tenant-id", team.id.as_str()),
        ("x-tenant-id", team.slug.as_str()),
        ("host", subdomain.as_str()),
        ("host", &format!("{}:8080", subdomain.to_uppercase())),
        ("host", domain.as_str()),
    ] {
        let page = person.header(name, value).get("/projects").await.expect(200);
        assert_eq!(page["data"][0]["id"], project["id"], "{name}: {value}");
    }
    let agreeing = person
        .header("x-organization-id", &team.id)
        .header("x-tenant-id", &team.slug)
        .header("host", &domain);
    agreeing.get("/projects").await.expect(200);
}

#[tokio::test]
async fn names_that_disagree_are_refused() {
    let app = TestApp::shared();
    let (team, rival) = (app.team().await, app.team().await);
    // Somebody who belongs to both, so that nothing else stands in the way.
    rival.add(&team.founder, Role::Owner).await;
    let person = &team.founder.client;
    let header = person.header("x-organization-id", &team.id);
    header.header("x-tenant-id", &rival.id).get("/projects").await.refused(400, "TENANT_MISMATCH");
    header
        .header("host", &format!("{}.localhost", rival.slug))
        .get("/projects")
        .await
        .refused(400, "TENANT_MISMATCH");
    header.get(&rival.path("/members")).await.refused(400, "TENANT_MISMATCH");
    let changed = header.patch(&rival.path(""), json!({"name": "Mixed up"})).await;
    changed.refused(400, "TENANT_MISMATCH");
    assert_eq!(rival.owner.get(&rival.path("")).await.expect(200)["name"], "Test Team");
}

#[tokio::test]
async fn no_name_and_unknown_names_have_codes_of_their_own() {
    let app = TestApp::shared();
    let person = app.person().await;
    person.client.get("/projects").await.refused(400, "TENANT_REQUIRED");
    for (name, value) in [
        ("x-organization-id", "no-such-team"),
        ("x-organization-id", "01890000-0000-7000-8000-000000000000"),
        ("x-tenant-id", "no-such-team"),
        ("x-organization-id", ""),
        ("x-organization-id", "' or 1=1 --"),
        ("host", "no-such-team.localhost"),
        ("host", "a.b.localhost"),
    ] {
        person.client.header(name, value).get("/projects").await.refused(404, "TENANT_NOT_FOUND");
    }
    // A host that is nobody's domain names nothing; the service's own names do not either.
    for host in ["elsewhere.test", "www.localhost", "api.localhost", "127.0.0.1:9"] {
        person.client.header("host", host).get("/projects").await.refused(400, "TENANT_REQUIRED");
    }
}

#[tokio::test]
async fn an_unverified_domain_names_nobody() {
    let app = TestApp::shared();
    let team = app.team().await;
    let domain = format!("claimed.{}.test", team.slug);
    app.sql(&format!(
        "insert into platform.organization_domains (id, organization_id, domain) \
         values (gen_random_uuid(), '{}', '{domain}')",
        team.id
    ))
    .await;
    team.founder.client.header("host", &domain).get("/projects").await.refused(400, "TENANT_REQUIRED");
}

#[tokio::test]
async fn a_suspended_organization_is_closed_on_every_instance_within_a_second() {
    let app = TestApp::shared();
    let other = app.beside();
    let team = app.team().await;
    let stranger = app.person().await;
    let there = team.owner.at(&other);
    there.get("/projects").await.expect(200);
    let set = async |status: &str| {
        app.sql(&format!(
            "with changed as (update platform.organizations set status = '{status}' where id = '{}' returning id) \
             select pg_notify('rowhouse_directory', id::text) from changed",
            team.id
        ))
        .await
    };
    set("suspended").await;
    within_a_second("suspended", || async { there.get("/projects").await.status == 403 }).await;
    there.get("/projects").await.refused(403, "TENANT_SUSPENDED");
    stranger.client.at(&other).within(&team.id).get("/projects").await.refused(404, "TENANT_NOT_FOUND");
    set("active").await;
    within_a_second("active again", || async { there.get("/projects").await.status == 200 }).await;
}

#[tokio::test]
async fn to_a_stranger_an_organization_does_not_exist() {
    let app = TestApp::shared();
    let (team, rival) = (app.team().await, app.team().await);
    let (project, task) = {
        let project = team.project("Secret").await;
        let task = team.task(&project, "Secret").await;
        (project, task)
    };
    let stranger = &rival.founder.client;
    stranger.within(&team.id).get("/projects").await.refused(404, "TENANT_NOT_FOUND");
    stranger.get(&team.path("")).await.refused(404, "TENANT_NOT_FOUND");
    let unknown = stranger.get("/organizations/01890000-0000-7000-8000-000000000000").await;
    unknown.refused(404, "TENANT_NOT_FOUND");
    // Under their own organization the other's objects are not there.
    for path in [
        format!("/projects/{}", project["id"].as_str().unwrap()),
        format!("/tasks/{}", task["id"].as_str().unwrap()),
    ] {
        rival.owner.get(&path).await.refused(404, "NOT_FOUND");
        rival.owner.patch(&path, json!({})).await.refused(404, "NOT_FOUND");
        rival.owner.delete(&path).await.refused(404, "NOT_FOUND");
    }
    assert_eq!(team.owner.get("/projects").await.expect(200)["data"], json!([project]));
}

#[tokio::test]
async fn names_tell_a_stranger_nothing() {
    let app = TestApp::shared();
    let (team, rival) = (app.team().await, app.team().await);
    for name in [team.slug.as_str(), "no-such-team", &"x".repeat(5_000)] {
        app.anonymous().within(name).get("/projects").await.refused(401, "AUTH_FAILED");
        let own_host = rival.founder.client.header("host", &format!("{}.localhost", rival.slug));
        own_host.within(name).get("/projects").await.refused(400, "TENANT_MISMATCH");
    }
}

/// Anybody can make origins up; the database is not asked for all of them.
#[tokio::test]
async fn made_up_origins_are_limited() {
    let app = TestApp::with(|config| {
        config.limits.anonymous = "3/h".parse().unwrap();
        config.http.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
    });
    let team = app.team().await;
    let domain = format!("pages.{}.test", team.slug);
    app.sql(&format!(
        "insert into platform.organization_domains (id, organization_id, domain, verified_at) \
         values (gen_random_uuid(), '{}', '{domain}', now())",
        team.id
    ))
    .await;
    let from = |address: &str, origin: &str| {
        let origin = format!("https://{origin}");
        team.owner.header("x-forwarded-for", address).header("origin", &origin)
    };
    for n in 0..3 {
        let page = from("198.51.100.1", &format!("made-up-{n}.test"));
        page.get("/projects").await.refused(403, "PERMISSION_DENIED");
    }
    from("198.51.100.1", &domain).get("/projects").await.refused(403, "PERMISSION_DENIED");
    from("198.51.100.2", &domain).get("/projects").await.expect(200);
    // Known by now, to everybody.
    from("198.51.100.1", &domain).get("/projects").await.expect(200);
}

#[tokio::test]
async fn pages_of_an_organization_s_own_domain_may_call() {
    let app = TestApp::shared();
    let team = app.team().await;
    let domain = format!("pages.{}.test", team.slug);
    let page = team.owner.header("origin", &format!("https://{domain}"));
    page.get("/projects").await.refused(403, "PERMISSION_DENIED");
    app.sql(&format!(
        "with made as (insert into platform.organization_domains (id, organization_id, domain, verified_at) \
         values (gen_random_uuid(), '{}', '{domain}', now()) returning organization_id) \
         select pg_notify('rowhouse_directory', organization_id::text) from made",
        team.id
    ))
    .await;
    within_a_second("its own domain", || async { page.get("/projects").await.status == 200 }).await;
}
