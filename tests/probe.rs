//! Every operation of the API document, tried by everybody: a new endpoint cannot be forgotten.

use reqwest::Method;
use rowhouse::{
    api::DOCUMENT,
    auth::{Permission, Role},
};
use serde_json::{Value, json};

use crate::support::{
    Answer, Client, PASSWORD, PNG, Person, Team, TestApp, stand_in, stripe::Stripe, unique_email, within,
};

/// One operation as the document tells it.
struct Operation {
    id: String,
    method: Method,
    path: String,
    /// A permission, `authenticated` or `public`.
    needs: String,
    body: Option<Value>,
    headers: Vec<String>,
}

impl Operation {
    fn permission(&self) -> Option<Permission> {
        self.needs.parse().ok()
    }

    fn about_one_organization(&self) -> bool {
        ["/organizations/{", "/ws/dashboard/{", "/sse/dashboard/{"]
            .iter()
            .any(|path| self.path.starts_with(path))
    }
}

fn operations() -> Vec<Operation> {
    let mut all = Vec::new();
    for (path, methods) in DOCUMENT.value["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let schema =
                &operation["requestBody"]["content"]["application/json; charset=utf-8"]["schema"]["$ref"];
            let body = schema.as_str().map(|name| {
                let name = name.rsplit('/').next().unwrap();
                DOCUMENT.value["components"]["schemas"][name]["example"].clone()
            });
            let headers = operation["parameters"].as_array().into_iter().flatten();
            all.push(Operation {
                id: operation["operationId"].as_str().unwrap().into(),
                method: method.to_uppercase().parse().unwrap(),
                path: path.clone(),
                needs: operation["x-permission"].as_str().unwrap().into(),
                body,
                headers: headers
                    .filter(|parameter| parameter["in"] == "header")
                    .map(|parameter| parameter["name"].as_str().unwrap().to_owned())
                    .collect(),
            });
        }
    }
    assert!(all.len() > 20, "{} operations", all.len());
    all
}

/// What the operation acts on, fresh and owned by the one who tries.
async fn target(
    (team, stripe): (&Team, &Stripe),
    operation: &Operation,
    who: &Person,
) -> (String, Option<Value>) {
    let mut path = operation.path.replace("{organization_id}", &team.id);
    let mut body = operation.body.clone();
    let needs_project = path.contains("{project_id}")
        || path.contains("{task_id}")
        || ["create_task", "bulk_update_tasks"].contains(&operation.id.as_str());
    if needs_project {
        let project = json!({"name": "Target", "owner_id": who.id});
        let project = team.owner.post("/projects", project).await.expect(201);
        path = path.replace("{project_id}", project["id"].as_str().unwrap());
        if path.contains("{task_id}") {
            let task = team.task(&project, "Target").await;
            path = path.replace("{task_id}", task["id"].as_str().unwrap());
        }
        if path.contains("{other_task_id}") {
            let other = team.task(&project, "Other").await;
            path = path.replace("{other_task_id}", other["id"].as_str().unwrap());
            if operation.id == "remove_task_dependency" {
                Answer::of(team.owner.request(Method::PUT, &path)).await.expect(200);
            }
        }
        if operation.id == "unarchive_project" {
            team.owner.post(&path.replace("unarchive", "archive"), json!({})).await.expect(200);
        }
        if operation.id == "bulk_update_tasks" {
            let task = team.task(&project, "Target").await;
            body.as_mut().unwrap()["ids"] = json!([task["id"]]);
        }
        if let Some(id) = body.as_mut().and_then(|body| body.get_mut("project_id")) {
            *id = project["id"].clone();
        }
    }
    if path.contains("{module}") {
        path = path.replace("{module}", "operations");
    }
    // What is not there cannot be removed.
    let removed = (operation.id == "remove_module").then_some("operations");
    if let Some(module) = operation.permission().and_then(Permission::module).or(removed) {
        team.enable(module).await;
    }
    if path.contains("{update_id}") {
        let update = json!({"title": "Target", "body": "Target"});
        let update = team.owner.post("/updates", update).await.expect(201);
        path = path.replace("{update_id}", update["id"].as_str().unwrap());
    }
    if path.contains("{user_id}") || operation.id == "transfer_organization" {
        let other = team.join(Role::Viewer).await.id;
        path = path.replace("{user_id}", &other);
        if let Some(user) = body.as_mut().and_then(|body| body.get_mut("user_id")) {
            *user = other.into();
        }
    }
    if operation.id == "remove_project_member" {
        Answer::of(team.owner.request(Method::PUT, &path)).await.expect(200);
    }
    if operation.id == "update_member" {
        // What anybody who manages members may do to a viewer.
        body = Some(json!({"is_active": false}));
    }
    if path.contains("{key_id}") {
        let new = json!({"name": "Target", "scopes": ["projects:read"]});
        let key = team.owner.post("/api-keys", new).await.expect(201);
        path = path.replace("{key_id}", key["id"].as_str().unwrap());
    }
    if operation.id == "create_invitation" || path.contains("{invitation_id}") {
        body = body.map(|_| json!({"email": unique_email(), "role": "viewer"}));
    }
    if path.contains("{invitation_id}") {
        let new = json!({"email": unique_email(), "role": "viewer"});
        let made = team.owner.post(&team.path("/invitations"), new).await.expect(201);
        let id = made["id"].as_str().unwrap();
        let earlier = format!(
            "update platform.invitations set sent_at = sent_at - interval '1 hour' where id = '{id}'"
        );
        team.app.sql(&earlier).await;
        path = path.replace("{invitation_id}", id);
    }
    let paid = match operation.id.as_str() {
        "upgrade_subscription" | "open_billing_portal" | "get_invoice" => Some("starter"),
        "downgrade_subscription" | "cancel_subscription" | "reactivate_subscription" => Some("professional"),
        _ => None,
    };
    if let Some(plan) = paid {
        team.subscribe(stripe, plan).await;
    }
    match operation.id.as_str() {
        "downgrade_subscription" => body = Some(json!({"plan": "starter"})),
        "reactivate_subscription" => {
            team.owner.post("/subscriptions/cancel", json!({})).await;
        }
        _ => {}
    }
    if path.contains("{invoice_id}") {
        let first =
            || async { team.owner.get("/subscriptions/invoices").await.expect(200)["data"][0].clone() };
        within(10, "an invoice", || async { first().await.is_object() }).await;
        path = path.replace("{invoice_id}", first().await["id"].as_str().unwrap());
    }
    path = path.replace("{plan}", "starter");
    if path.contains("{event_id}") {
        let id = format!("evt_{}", uuid::Uuid::now_v7().simple());
        let made = "insert into platform.stripe_events (id, type, created_at, livemode, payload, state, received_at)";
        team.app.sql(&format!("{made} values ('{id}', 'x', now(), false, '{{}}', 'ignored', now())")).await;
        path = path.replace("{event_id}", &id);
    }
    if operation.id == "search" {
        path += "?q=target";
    }
    if operation.id == "upload_file" {
        path += "?name=probe.png";
    }
    if path.contains("{file_id}") || path.contains("{token}") {
        let own = who.client.within(&team.id);
        let mut made = own.raw(Method::POST, "/files?name=target.png", "image/png", PNG).await;
        if made.status != 201 {
            made = team.owner.raw(Method::POST, "/files?name=target.png", "image/png", PNG).await;
        }
        let file = made.expect(201);
        let id = file["id"].as_str().unwrap();
        if operation.id != "delete_file" {
            // As if it were attached to something.
            let schema = team.schema().await;
            let used = format!("update {schema}.files set expires_at = null where id = '{id}'");
            team.app.sql(&used).await;
        }
        path = path.replace("{file_id}", id);
        if path.contains("{token}") {
            let link = team.owner.post(&format!("/files/{id}/links"), json!({})).await.expect(201);
            path = path.replace("{token}", link["url"].as_str().unwrap().rsplit('/').next().unwrap());
        }
    }
    if operation.id == "get_usage" {
        path += "?metric=api_calls";
    }
    if operation.id == "add_domain" {
        body = Some(json!({"domain": format!("d{}.example.com", uuid::Uuid::now_v7().simple())}));
    }
    if path.contains("{domain_id}") {
        let domain = format!("d{}.example.com", uuid::Uuid::now_v7().simple());
        let made = team.owner.post(&team.path("/domains"), json!({"domain": domain})).await.expect(201);
        path = path.replace("{domain_id}", made["id"].as_str().unwrap());
    }
    if path.contains("{webhook_id}") {
        let new = json!({"name": "Target", "url": "http://127.0.0.1:9/", "events": ["project.created"]});
        let made = team.owner.post("/webhooks", new).await.expect(201);
        let id = made["id"].as_str().unwrap();
        path = path.replace("{webhook_id}", id);
        if path.contains("{delivery_id}") {
            let test = team.owner.post(&format!("/webhooks/{id}/test"), json!({})).await.expect(202);
            path = path.replace("{delivery_id}", test["id"].as_str().unwrap());
        }
    }
    if operation.id == "create_webhook" {
        body = Some(json!({"name": "Probe", "url": "http://127.0.0.1:9/", "events": ["webhook.updated"]}));
    }
    if operation.id == "update_webhook" {
        body = Some(json!({"name": "Renamed", "events": ["webhook.updated"]}));
    }
    if path.contains("{job_id}") {
        let id = uuid::Uuid::now_v7();
        let made = "insert into platform.jobs (id, kind, lane, sealed_payload, state, run_at, created_at, failed_at)";
        team.app
            .sql(&format!("{made} values ('{id}', 'nothing', '{id}', '', 'dead', now(), now(), now())"))
            .await;
        path = path.replace("{job_id}", &id.to_string());
    }
    if path.contains("{flag_key}") {
        let key = format!("flag-{}", uuid::Uuid::now_v7().simple());
        let made = "insert into platform.feature_flags (key, enabled, rollout, created_at, updated_at)";
        team.app.sql(&format!("{made} values ('{key}', true, 100, now(), now())")).await;
        path = path.replace("{flag_key}", &key);
    }
    if path.contains("{session_id}") {
        let login = json!({"email": who.email, "password": PASSWORD});
        let other = team.app.anonymous().post("/auth/login", login).await.expect(200);
        let client = team.app.anonymous().with_token(other["access_token"].as_str().unwrap());
        let sessions = client.get("/auth/sessions").await.expect(200);
        let own = sessions["data"].as_array().unwrap().iter().find(|session| session["current"] == true);
        path = path.replace("{session_id}", own.unwrap()["id"].as_str().unwrap());
    }
    let own = who.client.within(&team.id);
    let speaks = ["{comment_id}", "{message_id}", "{mention_id}"].iter().any(|part| path.contains(part));
    if speaks || operation.id == "read_messages" {
        let project = match path.split('/').nth(2).filter(|_| operation.id == "read_messages") {
            Some(id) => json!({"id": id}),
            None => {
                let project = json!({"name": "Target", "owner_id": who.id});
                team.owner.post("/projects", project).await.expect(201)
            }
        };
        let messages = format!("/projects/{}/messages", project["id"].as_str().unwrap());
        let task = team.task(&project, "Target").await;
        let comments = format!("/tasks/{}/comments", task["id"].as_str().unwrap());
        // Only its author edits something; what those who may not speak read is another's.
        let (mut said, mut ids) = (json!({"body": "Target"}), Vec::new());
        for place in [&messages, &comments] {
            let answer = own.post(place, said.clone()).await;
            let made = if answer.status == 403 { team.owner.post(place, said.clone()).await } else { answer };
            ids.push(made.expect(201)["id"].as_str().unwrap().to_owned());
        }
        path = path.replace("{message_id}", &ids[0]).replace("{comment_id}", &ids[1]);
        if let Some(up_to) = body.as_mut().and_then(|body| body.get_mut("up_to")) {
            *up_to = ids[0].clone().into();
        }
        if path.contains("{mention_id}") {
            said["mention_ids"] = json!([who.id]);
            team.owner.post(&messages, said).await.expect(201);
            let mentions = own.get("/me/mentions").await.expect(200);
            path = path.replace("{mention_id}", mentions["data"][0]["id"].as_str().unwrap());
        }
    }
    if path.contains("{attachment_id}") {
        let task = team.task(&team.project("Target").await, "Target").await;
        let file = team.upload("target.png", PNG).await;
        let path_of = format!("/tasks/{}/attachments", task["id"].as_str().unwrap());
        let made = team.owner.post(&path_of, json!({"file_id": file["id"]})).await.expect(201);
        // As if it were the caller's own.
        let (schema, id) = (team.schema().await, made["id"].as_str().unwrap());
        let owned = format!("update {schema}.attachments set created_by = '{}' where id = '{id}'", who.id);
        team.app.sql(&owned).await;
        path = path.replace("{attachment_id}", id);
    }
    if ["create_attachment", "set_logo"].contains(&operation.id.as_str()) {
        let file = team.upload("target.png", PNG).await;
        let (schema, id) = (team.schema().await, file["id"].as_str().unwrap());
        let owned = format!("update {schema}.files set uploaded_by = '{}' where id = '{id}'", who.id);
        team.app.sql(&owned).await;
        body = Some(json!({"file_id": id}));
    }
    if operation.id == "remove_logo" {
        let file = team.upload("target.png", PNG).await;
        let set = team.owner.request(Method::PUT, &path).json(&json!({"file_id": file["id"]}));
        Answer::of(set).await.expect(200);
    }
    path = path.replace("{organization}", &team.slug).replace("{avatar_id}", &team.id);
    if ["import_projects", "import_tasks"].contains(&operation.id.as_str()) {
        let file = team.upload("probe.csv", "title,project\n").await;
        body = Some(json!({"file_id": file["id"], "format": "csv", "dry_run": true}));
    }
    if path.contains("{import_id}") {
        // One that waits, and nobody works on.
        let id = uuid::Uuid::now_v7().to_string();
        let schema = team.schema().await;
        let made = "(id, resource, format, file_id, dry_run, columns, state, errors, requested_by, created_at, updated_at)";
        let row = format!(
            "('{id}', 'tasks', 'csv', '{id}', true, '{{}}', 'queued', '[]', '{}', now(), now())",
            who.id
        );
        team.app.sql(&format!("insert into {schema}.imports {made} values {row}")).await;
        path = path.replace("{import_id}", &id);
    }
    if path.contains("{export_id}") {
        let made = own.post("/tasks/exports", json!({"format": "csv"})).await;
        let made = if made.status == 202 {
            made
        } else {
            team.owner.post("/tasks/exports", json!({"format": "csv"})).await
        };
        path = path.replace("{export_id}", made.expect(202)["id"].as_str().unwrap());
    }
    if path.contains("{notification_id}") {
        let schema = team
            .app
            .texts(&format!(
                "select 'tenant_' || replace(schema_id::text, '-', '') from platform.organizations where id = '{}'",
                team.id
            ))
            .await
            .remove(0);
        let id = uuid::Uuid::now_v7().to_string();
        team.app
            .sql(&format!(
                "insert into {schema}.notifications (id, user_id, kind, event_id, title, body, path, awaits_digest, \
                 created_at) values ('{id}', '{}', 'task_assigned', '{id}', 'Target', 'Target', '/', false, now())",
                who.id
            ))
            .await;
        path = path.replace("{notification_id}", &id);
    }
    if path.contains("{subscription_id}") {
        let mut new = DOCUMENT.value["components"]["schemas"]["NewPushSubscription"]["example"].clone();
        new["endpoint"] = format!("https://push.example.com/{}", uuid::Uuid::now_v7()).into();
        let made = own.post("/notifications/push-subscriptions", new).await.expect(201);
        path = path.replace("{subscription_id}", made["id"].as_str().unwrap());
    }
    if ["set_sms_number", "confirm_sms_number"].contains(&operation.id.as_str()) {
        let digits = format!("65{:010}", uuid::Uuid::now_v7().as_u128() % 10_000_000_000);
        let number = json!({"number": format!("+{digits}")});
        body = Some(number.clone());
        if operation.id == "confirm_sms_number" {
            own.post("/notifications/sms-number", number).await.expect(202);
            let sent = || stand_in::received(&digits).pop();
            within(5, "a code", || async { sent().is_some() }).await;
            let text = sent().unwrap().field("Body");
            body = Some(json!({"code": text.split(' ').next().unwrap()}));
        }
    }
    assert!(!path.contains('{'), "the probe does not know how to fill {path}");
    (path, body)
}

/// A team on a plan without limits.
async fn big_team(app: &TestApp) -> Team {
    let team = app.team().await;
    team.plan("enterprise").await;
    team
}

/// Somebody whom the operation lets in.
async fn insider(team: &Team, operation: &Operation) -> Client {
    match operation.needs.as_str() {
        "superuser" => team.app.superuser().await.client,
        _ => team.owner.clone(),
    }
}

async fn send(client: &Client, operation: &Operation, path: &str, body: &Option<Value>) -> Answer {
    let request = client.request(operation.method.clone(), path);
    if path.starts_with("/ws/") || path.starts_with("/sse/") {
        return opened(request).await;
    }
    if ["upload_file", "set_avatar"].contains(&operation.id.as_str()) {
        return Answer::of(request.header("content-type", "image/png").body(PNG)).await;
    }
    Answer::of(match body {
        Some(body) => request.json(body),
        None => request,
    })
    .await
}

/// The answer of a stream, which has no end: that it began is all of it.
async fn opened(request: reqwest::RequestBuilder) -> Answer {
    let handshake = [
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    let request = handshake.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    if status.is_success() || status == 101 {
        return Answer { status: reqwest::StatusCode::OK, headers, text: String::new() };
    }
    Answer { status, headers, text: response.text().await.unwrap() }
}

#[tokio::test]
async fn anonymous_callers_get_in_nowhere_but_where_it_says_public() {
    let (app, stripe) = TestApp::paying();
    let team = big_team(&app).await;
    for operation in operations() {
        let (path, body) = target((&team, &stripe), &operation, &team.founder).await;
        let client = if operation.about_one_organization() {
            app.anonymous()
        } else {
            app.anonymous().within(&team.id)
        };
        let answer = send(&client, &operation, &path, &body).await;
        if operation.needs == "public" {
            assert!(!answer.status.is_server_error(), "{}: {}", operation.id, answer.text);
        } else {
            answer.refused(401, "AUTH_FAILED");
        }
    }
}

#[tokio::test]
async fn each_role_may_do_what_its_permissions_say_and_nothing_else() {
    let (app, stripe) = TestApp::paying();
    for operation in operations() {
        let Some(permission) = operation.permission() else { continue };
        let team = big_team(&app).await;
        // The owner comes last: some operations end the organization.
        for role in [Role::Viewer, Role::Member, Role::Manager, Role::Admin, Role::Owner] {
            let person = team.join(role).await;
            let (path, body) = target((&team, &stripe), &operation, &person).await;
            let answer = send(&person.client, &operation, &path, &body).await;
            let (status, id) = (answer.status.as_u16(), &operation.id);
            if role.permissions().contains(permission) {
                assert!((200..300).contains(&status) || status == 409, "{id} as {role}: {}", answer.text);
            } else {
                assert_eq!(status, 403, "{id} as {role}");
                let error = answer.refused(403, "PERMISSION_DENIED");
                assert!(error["message"].as_str().unwrap().contains(permission.name()));
            }
        }
    }
}

#[tokio::test]
async fn nobody_reaches_into_another_organization() {
    let (app, stripe) = TestApp::paying();
    let (team, rival) = (big_team(&app).await, big_team(&app).await);
    for operation in operations().iter().filter(|operation| operation.permission().is_some()) {
        let (path, body) = target((&team, &stripe), operation, &team.founder).await;
        let id = &operation.id;
        if let Some(module) = operation.permission().and_then(Permission::module) {
            rival.enable(module).await;
        }
        // With the other's name: it does not exist.
        let inside = rival.founder.client.within(&team.id);
        assert_eq!(send(&inside, operation, &path, &body).await.status, 404, "{id} under the other's name");
        // With one's own name and the other's objects.
        let answer = send(&rival.owner, operation, &path, &body).await;
        if operation.about_one_organization() {
            answer.refused(400, "TENANT_MISMATCH");
            // One's own organization, the other's members and objects in it. A module is nobody's.
            if operation.path.matches('{').count() > 1 && !operation.path.contains("{module}") {
                let path = path.replace(&team.id, &rival.id);
                send(&rival.owner, operation, &path, &body).await.refused(404, "NOT_FOUND");
            }
        } else if operation.path.contains('{') {
            answer.refused(404, "NOT_FOUND");
        } else if ["create_task", "bulk_update_tasks"].contains(&operation.id.as_str()) {
            answer.refused(400, "VALIDATION_ERROR");
        }
    }
    assert_eq!(team.owner.get(&team.path("/members")).await.expect(200)["data"][0]["role"], "owner");
}

#[tokio::test]
async fn every_change_of_one_object_honours_if_match() {
    let (app, stripe) = TestApp::paying();
    for operation in operations() {
        let changes = [Method::PUT, Method::PATCH, Method::DELETE].contains(&operation.method);
        let documented = operation.headers.iter().any(|name| name == "If-Match");
        assert_eq!(changes, documented, "{}", operation.id);
        if changes {
            let team = big_team(&app).await;
            let (path, body) = target((&team, &stripe), &operation, &team.founder).await;
            let client = insider(&team, &operation).await.header("if-match", "\"v999\"");
            let answer = send(&client, &operation, &path, &body).await;
            answer.refused(412, "PRECONDITION_FAILED");
        }
    }
}

#[tokio::test]
async fn every_post_honours_an_idempotency_key() {
    let (app, stripe) = TestApp::paying();
    for operation in operations() {
        let documented = operation.headers.iter().any(|name| name == "Idempotency-Key");
        assert_eq!(operation.method == Method::POST, documented, "{}", operation.id);
        // Whoever has logged out is not told again that they have.
        let shuts_out =
            ["logout", "logout_everywhere", "transfer_organization"].contains(&operation.id.as_str());
        if documented && operation.needs != "public" && !shuts_out {
            let team = big_team(&app).await;
            let (path, body) = target((&team, &stripe), &operation, &team.founder).await;
            let client = insider(&team, &operation).await.header("idempotency-key", "probe");
            let first = send(&client, &operation, &path, &body).await;
            let second = send(&client, &operation, &path, &body).await;
            assert_eq!((first.status, &first.text), (second.status, &second.text), "{}", operation.id);
            assert_eq!(second.header("idempotent-replayed"), "true", "{}", operation.id);
        }
    }
}

#[tokio::test]
async fn only_staff_with_a_second_factor_administrate() {
    let (app, stripe) = TestApp::paying();
    let staff = app.superuser().await;
    let unguarded = app.superuser().await;
    app.sql(&format!("update platform.users set mfa_enabled_at = null where id = '{}'", unguarded.id)).await;
    let mut tried = 0;
    for operation in operations().iter().filter(|operation| operation.needs == "superuser") {
        tried += 1;
        let team = big_team(&app).await;
        let (path, body) = target((&team, &stripe), operation, &team.founder).await;
        send(&team.owner, operation, &path, &body).await.refused(403, "PERMISSION_DENIED");
        send(&unguarded.client, operation, &path, &body).await.refused(401, "MFA_REQUIRED");
        let answer = send(&staff.client, operation, &path, &body).await;
        let status = answer.status.as_u16();
        assert!((200..300).contains(&status) || status == 409, "{}: {}", operation.id, answer.text);
    }
    assert!(tried > 10, "{tried}");
}

/// A key with one scope does what the scope says, and nothing else.
#[tokio::test]
async fn each_scope_of_an_api_key_opens_what_it_says() {
    let (app, stripe) = TestApp::paying();
    for scope in Permission::ALL.iter().filter(|permission| permission.is_scope()) {
        let team = big_team(&app).await;
        let new = json!({"name": "Probe", "scopes": [scope]});
        let key = team.owner.post("/api-keys", new).await.expect(201)["key"].as_str().unwrap().to_owned();
        let client = app.anonymous().header("x-api-key", &key);
        // Whoever watches an import or export may also read what it is of.
        let both = json!({"name": "Probe", "scopes": ["files:read", "tasks:read"]});
        let both = team.owner.post("/api-keys", both).await.expect(201)["key"].as_str().unwrap().to_owned();
        let both = app.anonymous().header("x-api-key", &both);
        for operation in operations() {
            let Some(permission) = operation.permission() else { continue };
            // One organization for each scope: what a scope opens may use the target up.
            let opened = permission == *scope
                || (scope.name().ends_with(":write") && permission.name() == format!("{scope}_own"))
                || (*scope == Permission::BillingManage && permission == Permission::BillingRead);
            if opened {
                let (path, body) = target((&team, &stripe), &operation, &team.founder).await;
                let watches = ["get_import", "get_export"].contains(&operation.id.as_str());
                let client = if watches { &both } else { &client };
                let answer = send(client, &operation, &path, &body).await;
                let status = answer.status.as_u16();
                assert!(
                    (200..300).contains(&status) || status == 409,
                    "{} by {scope}: {}",
                    operation.id,
                    answer.text
                );
            } else {
                let nobody = "01890000-0000-7000-8000-000000000000";
                let path = operation.path.replace("{organization_id}", &team.id);
                let path = path.split('/').map(|part| if part.starts_with('{') { nobody } else { part });
                let path = path.collect::<Vec<_>>().join("/");
                let answer = send(&client, &operation, &path, &operation.body).await;
                assert_eq!(answer.status, 403, "{} by {scope}: {}", operation.id, answer.text);
            }
        }
    }
    for permission in Permission::ALL.iter().filter(|permission| !permission.is_scope()) {
        let team = big_team(&app).await;
        let new = json!({"name": "Probe", "scopes": [permission]});
        team.owner.post("/api-keys", new).await.refused(400, "VALIDATION_ERROR");
    }
}

/// Every operation that changes an organization is in its audit log, and tells of it in a form that the
/// catalogue describes.
#[tokio::test]
async fn every_change_of_an_organization_is_told() {
    // They change what is the caller's own and nobody else's.
    let personal = |operation: &Operation| {
        operation.permission() == Some(Permission::NotificationsRead)
            // They open a page elsewhere; what happens there is told when it happens.
            // How far one has read is nobody else's news.
            || operation.id == "read_messages"
            || ["start_checkout", "open_billing_portal", "create_file_link"].contains(&operation.id.as_str())
    };
    let (app, stripe) = TestApp::paying();
    let catalogue = app.anonymous().get("/webhook-events").await.expect(200);
    let mut seen = std::collections::BTreeSet::new();
    let mut wrong = Vec::new();
    let mut tried = 0;
    for operation in operations() {
        if operation.method == Method::GET || operation.permission().is_none() || personal(&operation) {
            continue;
        }
        tried += 1;
        let team = big_team(&app).await;
        let (path, body) = target((&team, &stripe), &operation, &team.founder).await;
        let schema = app
            .texts(&format!(
                "select 'tenant_' || replace(schema_id::text, '-', '') from platform.organizations where id = '{}'",
                team.id
            ))
            .await
            .remove(0);
        let recorded = format!(
            "select json_build_object('type', type, 'data', data)::text from {schema}.events order by id"
        );
        let before = app.texts(&recorded).await.len();
        let entries = format!("select count(*) from {schema}.audit_log");
        let entries_before = app.number(&entries).await;
        let answer = send(&team.owner, &operation, &path, &body).await;
        if answer.status == 409 {
            // What needs the outside world, such as the proof of a domain, has tests of its own.
            assert!(
                ["verify_domain", "leave_organization", "restore_organization", "replay_webhook_delivery"]
                    .contains(&operation.id.as_str()),
                "{}: {}",
                operation.id,
                answer.text
            );
            continue;
        }
        assert!(answer.status.is_success(), "{}: {}", operation.id, answer.text);
        let after = app.texts(&recorded).await;
        if after.len() == before {
            wrong.push(format!("{} tells nothing", operation.id));
        }
        if app.number(&entries).await == entries_before {
            wrong.push(format!("{} is not in the audit log", operation.id));
        }
        for event in &after {
            let event: Value = serde_json::from_str(event).unwrap();
            let kind = event["type"].as_str().unwrap();
            seen.insert(kind.to_owned());
            let known = catalogue["data"].as_array().unwrap().iter().find(|known| known["type"] == kind);
            let example =
                &known.unwrap_or_else(|| panic!("{kind} is not in the catalogue"))["payload_example"];
            let names =
                |value: &Value| -> Vec<String> { value.as_object().unwrap().keys().cloned().collect() };
            if names(&example["data"]) != names(&event["data"]) {
                wrong.push(format!("{kind}: the example is not like {:?}", names(&event["data"])));
            }
        }
    }
    wrong.sort();
    wrong.dedup();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(tried > 25 && seen.len() > 25, "{tried} operations, {} types", seen.len());
}

/// What changes an account is among its owner's security events.
#[tokio::test]
async fn every_change_of_an_account_is_recorded() {
    // Of its own: what others change at the same time would be taken for what is looked for.
    let stripe = Stripe::start();
    let app = TestApp::with(|config| stripe.configure(config));
    let mut silent = Vec::new();
    for operation in operations() {
        if operation.method == Method::GET || operation.needs != "authenticated" {
            continue;
        }
        let team = big_team(&app).await;
        let (path, body) = target((&team, &stripe), &operation, &team.founder).await;
        let count = format!(
            "select (select count(*) from platform.security_events) + (select count(*) from platform.outbox) \
             + coalesce((select sum(position) from platform.event_heads), 0)::bigint \
             + (select count(*) from platform.platform_audit) where '{}' <> ''",
            team.id
        );
        let before = app.number(&count).await;
        let answer = send(&team.founder.client, &operation, &path, &body).await;
        if answer.status.is_success() && app.number(&count).await == before {
            silent.push(operation.id);
        }
    }
    // A profile is its owner's own affair; a mail that asks for something changes nothing yet.
    let known = ["resend_verification", "request_email_change", "update_user", "set_avatar", "remove_avatar"];
    silent.retain(|id| !known.contains(&id.as_str()));
    assert_eq!(silent, Vec::<String>::new());
}

/// In an organization that owes a payment for too long nothing is changed but what its document promises.
#[tokio::test]
async fn whoever_owes_reads_and_shuts_out_and_changes_nothing_else() {
    let (app, stripe) = TestApp::paying();
    let mut went_through = Vec::new();
    for operation in operations() {
        let Some(permission) = operation.permission() else { continue };
        let team = big_team(&app).await;
        let (path, body) = target((&team, &stripe), &operation, &team.founder).await;
        let owes = "update platform.subscriptions set plan_override = null, read_only_from = now() - interval '1 day'";
        app.sql(&format!("{owes} where organization_id = '{}'", team.id)).await;
        app.app.directory.forget(team.id.parse().unwrap());
        let answer = send(&team.owner, &operation, &path, &body).await;
        if operation.method == Method::GET {
            assert_ne!(answer.status, 402, "{}: {}", operation.id, answer.text);
        } else if answer.status != 402 {
            went_through.push(format!("{} {}", permission, operation.id));
        } else {
            let error = answer.refused(402, "PAYMENT_REQUIRED");
            assert!(error["details"]["pay_at"].is_string(), "{error}");
        }
    }
    went_through.sort();
    assert_eq!(went_through, MAY_GO_ON);
}

/// What is changed all the same: to pay, to go, to shut out, and what is one's own.
const MAY_GO_ON: &[&str] = &[
    "api_keys:manage revoke_api_key",
    "billing:manage cancel_subscription",
    "billing:manage downgrade_subscription",
    "billing:manage open_billing_portal",
    "billing:manage reactivate_subscription",
    "billing:manage start_checkout",
    "billing:manage start_trial",
    "billing:manage upgrade_subscription",
    "files:read create_file_link",
    "members:invite revoke_invitation",
    "members:manage remove_member",
    "members:manage update_member",
    "messages:read read_messages",
    "notifications:read confirm_sms_number",
    "notifications:read create_push_subscription",
    "notifications:read create_realtime_ticket",
    "notifications:read delete_notification",
    "notifications:read delete_push_subscription",
    "notifications:read read_all_mentions",
    "notifications:read read_all_notifications",
    "notifications:read read_mention",
    "notifications:read read_notification",
    "notifications:read remove_sms_number",
    "notifications:read set_notification_preferences",
    "notifications:read update_notification_settings",
    "organization:delete delete_organization",
    "organization:delete restore_organization",
    "organization:leave leave_organization",
    "organization:transfer transfer_organization",
    "projects:read export_projects",
    "settings:manage remove_domain",
    "settings:manage remove_logo",
    "settings:manage remove_module",
    "tasks:read export_tasks",
    "webhooks:manage delete_webhook",
];
