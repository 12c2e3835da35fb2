//! Streams: told at once, to nobody else, and ended when access ends.

use std::time::{Duration, Instant};

use chrono::TimeDelta;
use futures_util::{SinkExt, StreamExt};
use rowhouse::auth::Role;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{self, Message, client::IntoClientRequest, protocol::frame::coding::CloseCode},
};

use crate::support::{BUSY, Person, Team, TestApp, within};

/// An open socket.
struct Socket(WebSocketStream<TcpStream>);

impl Socket {
    /// Opens a socket at a path below the API; refused with the status that the server answers.
    async fn open(app: &TestApp, path: &str, headers: &[(&'static str, &str)]) -> Result<Self, u16> {
        let address = app.base.trim_start_matches("http://");
        let mut request = format!("ws://{address}{path}").into_client_request().unwrap();
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        let stream = TcpStream::connect(address).await.unwrap();
        match client_async(request, stream).await {
            Ok((socket, _)) => Ok(Self(socket)),
            Err(tungstenite::Error::Http(answer)) => Err(answer.status().as_u16()),
            Err(error) => panic!("{error}"),
        }
    }

    async fn dashboard(app: &TestApp, team: &Team, person: &Person, query: &str) -> Self {
        let path = format!("/ws/dashboard/{}{query}", team.id);
        let bearer = format!("Bearer {}", person.access_token);
        Self::open(app, &path, &[("authorization", &bearer)]).await.unwrap()
    }

    /// The next frame.
    async fn frame(&mut self) -> Value {
        match self.next(5).await {
            Message::Text(text) => serde_json::from_str(&text).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    async fn next(&mut self, seconds: u64) -> Message {
        loop {
            let next = tokio::time::timeout(BUSY * Duration::from_secs(seconds), self.0.next());
            match next.await.expect("something within the time").expect("the connection is there").unwrap() {
                Message::Ping(_) | Message::Pong(_) => {}
                message => return message,
            }
        }
    }

    /// The next frame of this type.
    async fn frame_of(&mut self, kind: &str) -> Value {
        loop {
            let frame = self.frame().await;
            if frame["type"] == kind {
                return frame;
            }
        }
    }

    /// So many are unread, which is told again whenever an instance begins to listen anew.
    async fn unread(&mut self, count: u64) {
        let told = json!({"type": "notifications.unread", "id": null, "payload": {"unread": count}});
        while self.frame().await != told {}
    }

    /// The frames of the next events, by type.
    async fn types(&mut self, count: usize) -> Vec<String> {
        let mut types = Vec::new();
        for _ in 0..count {
            types.push(self.frame().await["type"].as_str().unwrap().to_owned());
        }
        types
    }

    /// Nothing comes for a while.
    async fn is_quiet(&mut self) {
        let told = async {
            let mut anew = 0;
            loop {
                match self.0.next().await {
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                    // Told again when an instance begins to listen anew.
                    Some(Ok(Message::Text(text))) if anew == 0 && text.contains("\"unread\":0") => anew += 1,
                    other => return other,
                }
            }
        };
        let next = tokio::time::timeout(Duration::from_millis(700), told).await;
        assert!(next.is_err(), "{next:?}");
    }

    /// The server closes it within a second, for this reason.
    async fn closes(&mut self, code: CloseCode) {
        let started = Instant::now();
        loop {
            match self.next(3).await {
                Message::Close(Some(frame)) => {
                    assert_eq!(frame.code, code);
                    break;
                }
                Message::Text(_) => {}
                other => panic!("{other:?}"),
            }
        }
        assert!(started.elapsed() < BUSY * Duration::from_secs(1), "{:?}", started.elapsed());
    }
}

/// Waits until what happened so far is told.
async fn all_told(app: &TestApp, team: &Team) {
    let waiting = format!("select count(*) from platform.outbox where organization_id = '{}'", team.id);
    within(5, "everything before is told", || async { app.number(&waiting).await == 0 }).await;
}

#[tokio::test]
async fn a_dashboard_tells_of_changes_within_a_second_and_in_order() {
    let app = TestApp::shared();
    let team = app.team().await;
    all_told(&app, &team).await;
    let mut socket = Socket::dashboard(&app, &team, &team.founder, "").await;
    assert_eq!(socket.frame().await["type"], "stream.ready");
    let started = Instant::now();
    let project = team.project("Told").await;
    let frame = socket.frame().await;
    assert!(started.elapsed() < BUSY * Duration::from_secs(1), "{:?}", started.elapsed());
    assert_eq!(
        (&frame["type"], &frame["payload"]["data"]["id"]),
        (&json!("project.created"), &project["id"])
    );
    assert_eq!(frame["id"], frame["payload"]["position"].to_string());
    for n in 0..20 {
        team.task(&project, &format!("T{n}")).await;
    }
    let first = frame["payload"]["position"].as_i64().unwrap();
    for n in 0..20 {
        let frame = socket.frame().await;
        assert_eq!(frame["payload"]["data"]["title"], format!("T{n}"));
        assert_eq!(frame["payload"]["position"], first + 1 + n);
    }
}

#[tokio::test]
async fn whoever_reconnects_is_told_what_they_missed_and_nothing_twice() {
    let app = TestApp::shared();
    let team = app.team().await;
    let project = team.project("First").await;
    let mut socket = Socket::dashboard(&app, &team, &team.founder, "").await;
    socket.frame().await;
    team.task(&project, "Seen").await;
    // The project may still be on its way when the socket opens.
    let mut seen = socket.frame().await;
    while seen["type"] != "task.created" {
        seen = socket.frame().await;
    }
    drop(socket);
    for n in 0..30 {
        team.task(&project, &format!("Missed {n}")).await;
    }
    let query = format!("?last_event_id={}", seen["id"].as_str().unwrap());
    let mut socket = Socket::dashboard(&app, &team, &team.founder, &query).await;
    team.task(&project, "Live").await;
    let mut titles = Vec::new();
    while titles.len() < 31 {
        let frame = socket.frame().await;
        if frame["type"] == "task.created" {
            titles.push(frame["payload"]["data"]["title"].as_str().unwrap().to_owned());
        }
    }
    let expected: Vec<String> = (0..30).map(|n| format!("Missed {n}")).chain(["Live".into()]).collect();
    assert_eq!(titles, expected);
    let bearer = format!("Bearer {}", team.founder.access_token);
    for wrong in ["x", "-1"] {
        let path = format!("/ws/dashboard/{}?last_event_id={wrong}", team.id);
        assert_eq!(Socket::open(&app, &path, &[("authorization", &bearer)]).await.err(), Some(400));
    }
    let mut ahead = Socket::dashboard(&app, &team, &team.founder, "?last_event_id=999999").await;
    assert_eq!(ahead.types(2).await, ["stream.reset", "stream.ready"]);
}

#[tokio::test]
async fn everybody_hears_what_they_may_see_and_nobody_another_organization() {
    let app = TestApp::shared();
    let (team, rival) = (app.team().await, app.team().await);
    let viewer = team.join(Role::Viewer).await;
    for team in [&team, &rival] {
        all_told(&app, team).await;
    }
    let mut owners = Socket::dashboard(&app, &team, &team.founder, "").await;
    let mut viewers = Socket::dashboard(&app, &team, &viewer, "").await;
    let mut rivals = Socket::dashboard(&app, &rival, &rival.founder, "").await;
    for socket in [&mut owners, &mut viewers, &mut rivals] {
        assert_eq!(socket.frame().await["type"], "stream.ready");
    }
    // What was told on the way.
    all_told(&app, &team).await;
    team.owner.post("/api-keys", json!({"name": "Key", "scopes": ["projects:read"]})).await.expect(201);
    team.project("Seen by all").await;
    let mut heard = owners.types(2).await;
    heard.retain(|kind| !kind.starts_with("organization"));
    assert!(heard.contains(&"api_key.created".to_owned()), "{heard:?}");
    let frame = viewers.frame().await;
    assert!(
        ["project.created", "organization.created"].contains(&frame["type"].as_str().unwrap()),
        "{frame}"
    );
    rivals.is_quiet().await;
    let bearer = format!("Bearer {}", rival.founder.access_token);
    let path = format!("/ws/dashboard/{}", team.id);
    assert_eq!(Socket::open(&app, &path, &[("authorization", &bearer)]).await.err(), Some(404));
    assert_eq!(Socket::open(&app, &path, &[]).await.err(), Some(401));
}

#[tokio::test]
async fn a_ticket_opens_one_stream_once() {
    let app = TestApp::with(|_| {});
    let (team, rival) = (app.team().await, app.team().await);
    let ticket = |team: &Team| {
        let client = team.owner.clone();
        async move {
            let ticket = client.post("/realtime/tickets", json!({})).await.expect(200);
            ticket["ticket"].as_str().unwrap().to_owned()
        }
    };
    let path = |ticket: &str| format!("/api/v1/ws/dashboard/{}?ticket={ticket}", team.id);
    let good = ticket(&team).await;
    let mut socket = Socket::open(&app, &path(&good), &[]).await.unwrap();
    assert_eq!(socket.frame().await["type"], "stream.ready");
    assert_eq!(Socket::open(&app, &path(&good), &[]).await.err(), Some(401), "used");
    assert_eq!(Socket::open(&app, &path("rht_made_up"), &[]).await.err(), Some(401), "made up");
    let other = ticket(&rival).await;
    assert_eq!(Socket::open(&app, &path(&other), &[]).await.err(), Some(400), "another organization's");
    let old = ticket(&team).await;
    app.app.clock.advance(TimeDelta::seconds(31));
    assert_eq!(Socket::open(&app, &path(&old), &[]).await.err(), Some(401), "expired");
    // Anywhere else a ticket is nothing.
    let fresh = ticket(&team).await;
    app.anonymous()
        .within(&team.id)
        .get(&format!("/projects?ticket={fresh}"))
        .await
        .refused(400, "VALIDATION_ERROR");
    let key = team
        .owner
        .post("/api-keys", json!({"name": "Key", "scopes": ["organization:read"]}))
        .await
        .expect(201);
    let key = key["key"].as_str().unwrap();
    let program = app.anonymous().header("x-api-key", key);
    program.post("/realtime/tickets", json!({})).await.refused(403, "PERMISSION_DENIED");
    let path = format!("/ws/dashboard/{}", team.id);
    let mut socket = Socket::open(&app, &path, &[("x-api-key", key)]).await.unwrap();
    assert_eq!(socket.frame().await["type"], "stream.ready");
}

/// However access ends, the socket does within a second.
#[tokio::test]
async fn a_socket_does_not_outlive_the_access_that_opened_it() {
    let app = TestApp::shared();
    let team = app.team().await;
    let other = app.beside();
    let member = |path: &str, id: &str| team.path(&format!("/members/{id}{path}"));
    let opened = async |person: &Person| {
        let mut socket = Socket::dashboard(&other, &team, person, "").await;
        assert_eq!(socket.frame().await["type"], "stream.ready");
        socket
    };
    let removed = team.join(Role::Member).await;
    let mut socket = opened(&removed).await;
    team.owner.delete(&member("", &removed.id)).await.expect(204);
    socket.closes(CloseCode::Policy).await;

    let deactivated = team.join(Role::Member).await;
    let mut socket = opened(&deactivated).await;
    team.owner.patch(&member("", &deactivated.id), json!({"is_active": false})).await.expect(200);
    socket.closes(CloseCode::Policy).await;

    let denied = team.join(Role::Member).await;
    let mut socket = opened(&denied).await;
    let denial = json!({"denials": ["organization:read"]});
    team.owner.patch(&member("", &denied.id), denial).await.expect(200);
    socket.closes(CloseCode::Policy).await;

    let leaver = team.join(Role::Member).await;
    let mut socket = opened(&leaver).await;
    leaver.client.post(&team.path("/leave"), json!({})).await.expect(204);
    socket.closes(CloseCode::Policy).await;

    let logged_out = team.join(Role::Member).await;
    let mut socket = opened(&logged_out).await;
    logged_out.client.post("/auth/logout", json!({})).await.expect(204);
    socket.closes(CloseCode::Policy).await;

    let everywhere = team.join(Role::Member).await;
    let mut socket = opened(&everywhere).await;
    everywhere.client.post("/auth/logout-all", json!({})).await.expect(204);
    socket.closes(CloseCode::Policy).await;

    let ended = team.join(Role::Member).await;
    let mut socket = opened(&ended).await;
    let sessions = ended.client.get("/auth/sessions").await.expect(200);
    let session = format!("/auth/sessions/{}", sessions["data"][0]["id"].as_str().unwrap());
    ended.client.delete(&session).await.expect(204);
    socket.closes(CloseCode::Policy).await;

    let staff = app.superuser().await;
    let deleted = team.join(Role::Member).await;
    let mut socket = opened(&deleted).await;
    let off = json!({"is_active": false});
    staff.client.patch(&format!("/admin/users/{}", deleted.id), off).await.expect(200);
    socket.closes(CloseCode::Policy).await;

    let new = json!({"name": "Rotated", "scopes": ["organization:read"]});
    let key = team.owner.post("/api-keys", new).await.expect(201);
    let path = format!("/ws/dashboard/{}", team.id);
    let mut socket = Socket::open(&app, &path, &[("x-api-key", key["key"].as_str().unwrap())]).await.unwrap();
    let rotate = format!("/api-keys/{}/rotate", key["id"].as_str().unwrap());
    team.owner.post(&rotate, json!({"overlap_hours": 0})).await.expect(201);
    socket.closes(CloseCode::Policy).await;

    let new = json!({"name": "Narrowed", "scopes": ["organization:read"]});
    let key = team.owner.post("/api-keys", new).await.expect(201);
    let mut socket = Socket::open(&app, &path, &[("x-api-key", key["key"].as_str().unwrap())]).await.unwrap();
    let narrow = json!({"allowed_ips": ["198.51.100.0/24"]});
    team.owner.patch(&format!("/api-keys/{}", key["id"].as_str().unwrap()), narrow).await.expect(200);
    socket.closes(CloseCode::Policy).await;

    let new = json!({"name": "Key", "scopes": ["organization:read"]});
    let key = team.owner.post("/api-keys", new).await.expect(201);
    let mut socket = Socket::open(&app, &path, &[("x-api-key", key["key"].as_str().unwrap())]).await.unwrap();
    team.owner.delete(&format!("/api-keys/{}", key["id"].as_str().unwrap())).await.expect(204);
    socket.closes(CloseCode::Policy).await;

    let mut socket = opened(&team.founder).await;
    let suspend = format!("/admin/organizations/{}/suspend", team.id);
    staff.client.post(&suspend, json!({"reason": "Test"})).await.expect(200);
    socket.closes(CloseCode::Policy).await;
}

/// Somebody whose permissions shrink goes on hearing what they may still see, and no more.
#[tokio::test]
async fn a_smaller_role_hears_less_at_once() {
    let app = TestApp::shared();
    let team = app.team().await;
    let admin = team.join(Role::Admin).await;
    let mut socket = Socket::dashboard(&app, &team, &admin, "").await;
    let make_key = async || {
        team.owner.post("/api-keys", json!({"name": "K", "scopes": ["projects:read"]})).await.expect(201);
    };
    make_key().await;
    let mut frame = socket.frame().await;
    while frame["type"] != "api_key.created" {
        frame = socket.frame().await;
    }
    let path = team.path(&format!("/members/{}", admin.id));
    team.owner.patch(&path, json!({"role": "viewer"})).await.expect(200);
    assert_eq!(socket.types(1).await, ["member.updated"]);
    make_key().await;
    team.project("Still seen").await;
    assert_eq!(socket.types(1).await, ["project.created"]);
}

#[tokio::test]
async fn server_sent_events_tell_the_same() {
    let app = TestApp::shared();
    let team = app.team().await;
    let path = format!("/sse/dashboard/{}", team.id);
    let answer = team.founder.client.request(reqwest::Method::GET, &path).send().await.unwrap();
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    let mut pieces = answer.bytes_stream();
    let project = team.project("Told").await;
    let mut text = String::new();
    let reading = async {
        while !text.contains("project.created") {
            text += std::str::from_utf8(&pieces.next().await.unwrap().unwrap()).unwrap();
        }
    };
    tokio::time::timeout(BUSY * Duration::from_secs(3), reading).await.expect("it is told");
    let event = text.split("\n\n").find(|event| event.contains("project.created")).unwrap();
    let (id, data) = event.split_once("\ndata: ").unwrap();
    let frame: Value = serde_json::from_str(data).unwrap();
    assert_eq!(frame["payload"]["data"]["id"], project["id"]);
    let id = id.trim_start_matches("id: ");
    assert_eq!(frame["id"], id);
    drop(pieces);
    team.project("Missed").await;
    all_told(&app, &team).await;
    let client = team.founder.client.header("last-event-id", id);
    let mut pieces = client.request(reqwest::Method::GET, &path).send().await.unwrap().bytes_stream();
    let first = pieces.next().await.unwrap().unwrap();
    assert!(std::str::from_utf8(&first).unwrap().contains("Missed"), "{first:?}");
    // It ends with the access.
    team.founder.client.post("/auth/logout", json!({})).await.expect(204);
    let ending = async { while pieces.next().await.is_some_and(|piece| piece.is_ok()) {} };
    tokio::time::timeout(BUSY * Duration::from_secs(1), ending).await.expect("the stream ends");
}

/// A client that does not read is dropped, however much there is to tell.
#[tokio::test]
async fn a_slow_client_is_dropped_and_holds_up_nobody() {
    let app = TestApp::with(|config| config.database.pool_size = 6);
    let team = app.team().await;
    let mut slow = Socket::dashboard(&app, &team, &team.founder, "").await;
    let mut quick = Socket::dashboard(&app, &team, &team.founder, "").await;
    let project = team.project("Big").await;
    let path = format!("/projects/{}", project["id"].as_str().unwrap());
    let reader = tokio::spawn(async move {
        let mut told = 0;
        while told < 700 {
            if quick.frame().await["type"] == "project.updated" {
                told += 1;
            }
        }
    });
    let writers = (0..4).map(|writer| {
        let (client, path) = (team.owner.clone(), path.clone());
        async move {
            for n in 0..175 {
                let description = format!("{writer} {n} {}", "x".repeat(18_000));
                client.patch(&path, json!({"description": description})).await.expect(200);
            }
        }
    });
    futures_util::future::join_all(writers).await;
    tokio::time::timeout(BUSY * Duration::from_secs(20), reader)
        .await
        .expect("the other is told all")
        .unwrap();
    // Longer than somebody may stay behind.
    tokio::time::sleep(Duration::from_secs(12)).await;
    // What was in the network's buffers, and then the end.
    let reading = async {
        while let Some(Ok(Message::Text(_) | Message::Ping(_) | Message::Pong(_))) = slow.0.next().await {}
    };
    tokio::time::timeout(BUSY * Duration::from_secs(25), reading).await.expect("the slow one is shown out");
}

/// The word travels over a connection that can break.
#[tokio::test]
async fn a_broken_listening_connection_loses_nothing() {
    let app = TestApp::with(|_| {});
    let team = app.team().await;
    let mut socket = Socket::dashboard(&app, &team, &team.founder, "").await;
    assert_eq!(socket.frame().await["type"], "stream.ready");
    for n in 0..3 {
        let listening = "datname = current_database() and application_name = 'rowhouse listening'";
        let count = format!("select count(*) from pg_stat_activity where {listening}");
        within(5, "it is listening", || async { app.number(&count).await == 1 }).await;
        app.sql(&format!("select pg_terminate_backend(pid) from pg_stat_activity where {listening}")).await;
        team.project(&format!("P{n}")).await;
        let mut frame = socket.frame().await;
        while frame["type"] != "project.created" {
            frame = socket.frame().await;
        }
        assert_eq!(frame["payload"]["data"]["name"], format!("P{n}"));
    }
}

#[tokio::test]
async fn one_user_has_so_many_connections_and_no_more() {
    let app = TestApp::with(|config| config.realtime.connections_per_user = 3);
    let team = app.team().await;
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(Socket::dashboard(&app, &team, &team.founder, "").await);
    }
    let bearer = format!("Bearer {}", team.founder.access_token);
    let path = format!("/ws/dashboard/{}", team.id);
    assert_eq!(Socket::open(&app, &path, &[("authorization", &bearer)]).await.err(), Some(429));
    let mut closed = open.pop().unwrap();
    closed.0.close(None).await.unwrap();
    drop(closed);
    within(2, "the place is free again", || async {
        Socket::open(&app, &path, &[("authorization", &bearer)]).await.is_ok()
    })
    .await;
    // Somebody who talks nonsense is shown out without harm.
    let mut talker = open.pop().unwrap();
    let _ = talker.0.send(Message::Binary(vec![7; 100_000].into())).await;
    let reading = async { while talker.0.next().await.is_some_and(|message| message.is_ok()) {} };
    tokio::time::timeout(BUSY * Duration::from_secs(3), reading).await.expect("it ends");
}

#[tokio::test]
async fn notifications_are_told_with_how_many_are_unread() {
    let app = TestApp::shared();
    let there = app.beside();
    let team = app.team().await;
    let (member, other) = (team.join(Role::Member).await, team.join(Role::Member).await);
    let open = async |person: &Person, query: &str| {
        let bearer = format!("Bearer {}", person.access_token);
        let headers = [("authorization", bearer.as_str()), ("x-organization-id", &team.id)];
        Socket::open(&there, &format!("/ws/notifications{query}"), &headers).await.unwrap()
    };
    let mut socket = open(&member, "").await;
    let mut others = open(&other, "").await;
    for socket in [&mut socket, &mut others] {
        assert_eq!(socket.frame().await["payload"], json!({"unread": 0}));
    }
    let project = team.project("Home").await;
    let assign = async |title: &str| {
        let task = json!({"project_id": project["id"], "title": title, "assignee_ids": [member.id]});
        team.owner.post("/tasks", task).await.expect(201);
    };
    assign("First").await;
    let told = socket.frame_of("notification.created").await;
    assert_eq!(told["payload"]["kind"], "task_assigned");
    socket.unread(1).await;
    let path = format!("/notifications/{}/read", told["id"].as_str().unwrap());
    member.client.post(&path, json!({})).await.expect(200);
    socket.unread(0).await;
    others.is_quiet().await;
    drop(socket);
    assign("Second").await;
    within(5, "the second is there", || async {
        member.client.get("/notifications/unread-count").await.expect(200)["unread"] == 1
    })
    .await;
    let mut socket = open(&member, &format!("?last_event_id={}", told["id"].as_str().unwrap())).await;
    assert!(socket.frame().await["payload"]["title"].as_str().unwrap().contains("Second"));
    assert_eq!(socket.frame().await["payload"], json!({"unread": 1}));
}

/// Clients of a service that stops are told to come back, and come back to another instance.
#[tokio::test]
async fn a_service_that_stops_says_goodbye() {
    let app = TestApp::with(|_| {});
    let team = app.team().await;
    let mut socket = Socket::dashboard(&app, &team, &team.founder, "").await;
    assert_eq!(socket.frame().await["type"], "stream.ready");
    let sse = team.founder.client.request(reqwest::Method::GET, "/sse/notifications");
    let mut stream = sse.header("x-organization-id", &team.id).send().await.unwrap().bytes_stream();
    app.app.request_stop();
    socket.closes(CloseCode::Away).await;
    let ending = async { while stream.next().await.is_some_and(|piece| piece.is_ok()) {} };
    tokio::time::timeout(BUSY * Duration::from_secs(2), ending).await.expect("the stream ends");
}
