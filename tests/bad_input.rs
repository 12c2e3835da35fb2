//! Input that makes no sense, everywhere: a clear error, and nothing changes.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Answer, TestApp};

#[tokio::test]
async fn bodies_that_are_not_what_they_should_be_are_refused_with_the_place() {
    let app = TestApp::shared();
    let team = app.team().await;
    for (body, message) in [
        (&b"{\"name\": \"x\""[..], "not JSON"),
        (b"", "not JSON"),
        (b"{\"name\": \"x\"} trailing", "not JSON"),
        (b"name=x", "not JSON"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b"{\"name\": \"\xff\"}", "not UTF-8"),
        (b"{\"name\": \"\\ud800\"}", "hex escape"),
        (b"[1, 2]", "expected"),
        (b"null", "expected"),
        (b"\"text\"", "expected"),
        (b"{\"name\": \"a\", \"name\": \"b\"}", "duplicate"),
    ] {
        let answer = team.owner.raw(Method::POST, "/projects", "application/json", body.to_vec()).await;
        let error = answer.refused(400, "VALIDATION_ERROR");
        let told = error["message"].as_str().unwrap();
        assert!(told.contains(message), "{}: {told}", String::from_utf8_lossy(body));
    }
    let deep = "[".repeat(10_000);
    team.owner
        .raw(Method::POST, "/projects", "application/json", deep)
        .await
        .refused(400, "VALIDATION_ERROR");
    assert_eq!(team.owner.get("/projects").await.expect(200)["total"], 0);
}

#[tokio::test]
async fn registrations_that_make_no_sense_are_refused() {
    let app = TestApp::shared();
    let good = json!({"email": "someone@example.com", "password": "Correct-Horse-7-Battery"});
    for (change, field) in [
        (json!({"email": "not an address"}), "email"),
        (json!({"email": format!("{}@example.com", "a".repeat(300))}), "email"),
        (json!({"email": null}), "email"),
        (json!({"password": null}), "password"),
        (json!({"password": 123456789012u64}), "password"),
        (json!({"password": "Aa1!".repeat(400)}), "password"),
        (json!({"username": "no spaces"}), "username"),
        (json!({"organization_name": ""}), "organization_name"),
        (json!({"organization_name": "x".repeat(256)}), "organization_name"),
        (json!({"is_superuser": true}), "is_superuser"),
    ] {
        let mut body = good.clone();
        body.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let error = app.anonymous().post("/auth/register", body).await.refused(400, "VALIDATION_ERROR");
        assert_eq!(error["fields"][0]["field"], field, "{error}");
    }
    app.anonymous().post("/auth/login", good).await.refused(401, "AUTH_FAILED");
}

#[tokio::test]
async fn odd_requests_get_answers_in_the_one_shape() {
    let app = TestApp::shared();
    let team = app.team().await;
    for path in
        ["/projects/", "/projects//", "/projects/%00", "/projects/..%2f..", "/%ff", "/projects?page=%ff"]
    {
        let answer = team.owner.get(path).await;
        assert!(answer.status.is_client_error(), "{path}: {}", answer.status);
        let body: Value = answer.json();
        assert_eq!(body["success"], false, "{path}");
    }
    for scheme in ["Basic abc", "Bearer", "Bearer ", "bearer a.b.c", "Token x"] {
        app.anonymous().header("authorization", scheme).get("/auth/user").await.refused(401, "AUTH_FAILED");
    }
    Answer::of(team.owner.request(Method::from_bytes(b"BREW").unwrap(), "/projects"))
        .await
        .refused(405, "METHOD_NOT_ALLOWED");
    // A query that the endpoint does not know is a mistake, not a wish to be ignored.
    let error = team.owner.get("/projects?stauts=active").await.refused(400, "VALIDATION_ERROR");
    assert_eq!(error["fields"][0]["field"], "stauts");
}
