//! Hosts of an organization's own.

use serde_json::json;
use uuid::Uuid;

use crate::support::{TestApp, dns, within_a_second};

fn unique_domain() -> String {
    format!("tasks.d{}.test", Uuid::now_v7().simple())
}

#[tokio::test]
async fn a_domain_leads_to_the_organization_once_the_dns_proves_it() {
    let app = TestApp::shared();
    let there = app.beside();
    let team = app.team().await;
    let domain = unique_domain();
    let add = json!({"domain": domain.to_uppercase()});
    let added = team.owner.post(&team.path("/domains"), add.clone()).await.expect(201);
    assert_eq!((&added["domain"], &added["verified_at"]), (&json!(domain), &json!(null)));
    let record = added["record_name"].as_str().unwrap();
    assert_eq!(record, format!("_rowhouse-challenge.{domain}"));
    team.owner.post(&team.path("/domains"), add).await.refused(409, "CONFLICT");
    let path = team.path(&format!("/domains/{}", added["id"].as_str().unwrap()));
    let verify = format!("{path}/verify");
    let visitor = team.founder.client.header("host", &domain).header("origin", &format!("https://{domain}"));
    // No record, then a wrong one, then others beside the right one.
    team.owner.post(&verify, json!(null)).await.refused(409, "CONFLICT");
    dns::set(record, &["something-else"]);
    let told = team.owner.post(&verify, json!(null)).await.refused(409, "CONFLICT");
    assert_eq!(told["details"]["found"], json!(["something-else"]));
    visitor.at(&there).get("/projects").await.refused(400, "TENANT_REQUIRED");
    dns::set(record, &["v=spf1 -all", added["record_value"].as_str().unwrap()]);
    let verified = team.owner.post(&verify, json!(null)).await.expect(200);
    assert!(verified["verified_at"].is_string());
    visitor.get("/projects").await.expect(200);
    within_a_second("known everywhere", || async { visitor.at(&there).get("/projects").await.status == 200 })
        .await;
    team.owner.post(&verify, json!(null)).await.expect(200);
    // It leads there as long as the plan brings it.
    team.plan("free").await;
    visitor.get("/projects").await.refused(400, "TENANT_REQUIRED");
    team.plan("starter").await;
    visitor.get("/projects").await.expect(200);
    team.owner.delete(&path).await.expect(204);
    visitor.get("/projects").await.refused(400, "TENANT_REQUIRED");
    within_a_second("gone everywhere", || async { visitor.at(&there).get("/projects").await.status == 400 })
        .await;
}

#[tokio::test]
async fn a_proved_domain_is_one_organization_s() {
    let app = TestApp::shared();
    let (team, rival) = (app.team().await, app.team().await);
    let domain = unique_domain();
    let mut verify = Vec::new();
    let mut values = Vec::new();
    for side in [&team, &rival] {
        let added = side.owner.post(&side.path("/domains"), json!({"domain": domain})).await.expect(201);
        values.push(added["record_value"].as_str().unwrap().to_owned());
        verify.push(side.path(&format!("/domains/{}/verify", added["id"].as_str().unwrap())));
    }
    dns::set(&format!("_rowhouse-challenge.{domain}"), &[&values[0], &values[1]]);
    let (a, b) =
        tokio::join!(team.owner.post(&verify[0], json!(null)), rival.owner.post(&verify[1], json!(null)));
    let mut statuses = [a.status.as_u16(), b.status.as_u16()];
    statuses.sort();
    assert_eq!(statuses, [200, 409]);
    // It is free again when its organization is deleted.
    let (holder, waiting, again) =
        if a.status == 200 { (&team, &rival, &verify[1]) } else { (&rival, &team, &verify[0]) };
    holder.owner.delete(&holder.path("")).await.expect(204);
    waiting.owner.post(again, json!(null)).await.expect(200);
}

#[tokio::test]
async fn names_that_are_no_hosts_or_the_service_s_own_are_refused() {
    let app = TestApp::shared();
    let team = app.team().await;
    for bad in [
        "localhost",
        "acme.localhost",
        "nodots",
        "a..b.test",
        "-a.test",
        "192.0.2.1",
        "a b.test",
        "тест.test",
        "a.test/path",
        "",
        &format!("{}.test", "a".repeat(64)),
    ] {
        let answer = team.owner.post(&team.path("/domains"), json!({"domain": bad})).await;
        answer.refused(400, "VALIDATION_ERROR");
    }
}

#[tokio::test]
async fn a_dns_that_does_not_answer_is_said_to_be_away() {
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    let app = TestApp::with(|config| config.tenancy.dns_server = Some(address));
    let team = app.team().await;
    let added = team.owner.post(&team.path("/domains"), json!({"domain": unique_domain()})).await.expect(201);
    let verify = team.path(&format!("/domains/{}/verify", added["id"].as_str().unwrap()));
    team.owner.post(&verify, json!(null)).await.refused(503, "SERVICE_UNAVAILABLE");
}
