//! Files, up and down, in a folder and in S3: what is stored, what is refused, and that nothing stays.

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use bytes::Bytes;
use chrono::TimeDelta;
use futures_util::stream;
use reqwest::{Method, StatusCode};
use rowhouse::{
    auth::{
        Role,
        sealing::{hex, sha256},
    },
    files,
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    imports::finished,
    support::{Answer, Client, PNG, Team, TestApp, on_the_servers_runtime, s3, within},
};

const OCTETS: &str = "application/octet-stream";
const BOUNDARY: &str = "multipart/form-data; boundary=XX";

/// A form with these parts: name, file name, content.
fn form(parts: &[(&str, &str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, file, content) in parts {
        let head = format!(
            "--XX\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"{file}\"\r\n\
             Content-Type: image/png\r\n\r\n"
        );
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(content);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"--XX--\r\n");
    body
}

/// A body whose length nobody knows beforehand.
fn streamed(pieces: usize, size: usize) -> reqwest::Body {
    let pieces = (0..pieces).map(move |n| Ok::<_, std::io::Error>(Bytes::from(vec![n as u8; size])));
    reqwest::Body::wrap_stream(stream::iter(pieces))
}

/// What lies in the store for an organization.
fn objects(root: &Path, team: &Team) -> Vec<String> {
    let entries = fs::read_dir(root.join("organizations").join(&team.id)).into_iter().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

async fn used(team: &Team) -> i64 {
    let sql =
        "select coalesce((select used from {schema}.usage_counters where resource = 'storage'), 0)::bigint";
    team.app.number(&sql.replace("{schema}", &team.schema().await)).await
}

/// Has so many bytes of storage left, on a plan with a limit.
async fn leave(team: &Team, left: i64) {
    team.plan("free").await;
    let limit = team.app.number("select storage_bytes from platform.plans where name = 'free'").await;
    let schema = team.schema().await;
    team.app
        .sql(&format!(
            "insert into {schema}.usage_counters (resource, used) values ('storage', {used}) \
             on conflict (resource) do update set used = excluded.used",
            used = limit - left
        ))
        .await;
}

/// As if something were attached to it.
async fn put_to_use(team: &Team, file: &Value) {
    let schema = team.schema().await;
    let id = file["id"].as_str().unwrap();
    team.app.sql(&format!("update {schema}.files set expires_at = null where id = '{id}'")).await;
}

async fn bytes(client: &Client, path: &str) -> Vec<u8> {
    let answer = client.request(Method::GET, path).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    answer.bytes().await.unwrap().to_vec()
}

fn path(file: &Value, rest: &str) -> String {
    format!("/files/{}{rest}", file["id"].as_str().unwrap())
}

/// Where a server without S3 has its objects.
fn folder(app: &TestApp) -> PathBuf {
    app.app.config.files.folder.clone().unwrap()
}

/// A server over each kind of store, and where the objects are.
fn stores() -> [(TestApp, PathBuf); 2] {
    let mut place = None;
    let (local, in_s3) = (TestApp::shared(), TestApp::with(|config| place = Some(s3().configure(config))));
    let folder = folder(&local);
    [(local, folder), (in_s3, place.unwrap())]
}

#[tokio::test]
async fn what_is_uploaded_is_downloaded_in_both_stores_and_both_forms() {
    for (app, root) in stores() {
        let team = app.team().await;
        // Small, and in several parts.
        for size in [10, 20_000_000] {
            let content: Vec<u8> = (0..size).map(|n: u32| (n / 7) as u8).collect();
            let as_form = form(&[("file", "Data Größe.bin", &content)]);
            let in_form = team.owner.raw(Method::POST, "/files", BOUNDARY, as_form).await;
            let location = in_form.header("location").to_owned();
            let in_form = in_form.expect(201);
            assert_eq!(location, format!("/api/v1/files/{}", in_form["id"].as_str().unwrap()));
            assert_eq!(in_form["name"], "Data Größe.bin");
            let raw = team.upload("data.bin", content.clone()).await;
            for file in [&in_form, &raw] {
                assert_eq!((&file["size"], &file["kind"]), (&size.into(), &"other".into()));
                assert_eq!(file["sha256"], hex(&sha256(&content)));
                assert_eq!(file["content_type"], OCTETS, "whatever the sender says");
                assert!(bytes(&team.owner, &path(file, "/content")).await == content);
            }
        }
        assert_eq!(used(&team).await, 2 * 20_000_010);
        assert_eq!(objects(&root, &team).len(), 4);
        let list = team.owner.get("/files?limit=3").await.expect(200);
        assert_eq!(list["data"].as_array().unwrap().len(), 3);
        let next = list["next_cursor"].as_str().unwrap();
        let rest = team.owner.get(&format!("/files?limit=3&cursor={next}")).await.expect(200);
        assert_eq!((rest["data"].as_array().unwrap().len(), &rest["next_cursor"]), (1, &Value::Null));
    }
}

#[tokio::test]
async fn nothing_that_is_uploaded_runs_in_a_browser() {
    let team = TestApp::shared().team().await;
    let cases: [(&str, &[u8], &str, &str); 8] = [
        ("photo.jpg", b"<html><script>alert(1)</script></html>", OCTETS, "other"),
        ("logo.svg", b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", OCTETS, "other"),
        ("page.html", b"hello", OCTETS, "other"),
        ("photo.jpg", b"MZ\x90\0\x03\0\0\0\x04\0\0\0\xff\xff\0\0", OCTETS, "other"),
        ("list.csv", b"id,name\n1,x\n", "text/csv", "document"),
        ("notes.exe", PNG, "image/png", "image"),
        ("data.json", b"{\"a\": 1}", "application/json", "document"),
        ("archive.zip", b"PK\x03\x04\x14\0\0\0\0\0 not unpacked", "application/zip", "other"),
    ];
    for (name, content, content_type, kind) in cases {
        let file = team.upload(name, content.to_vec()).await;
        assert_eq!((&file["content_type"], &file["kind"]), (&content_type.into(), &kind.into()), "{name}");
        for inline in [false, true] {
            let answer = team.owner.get(&path(&file, &format!("/content?inline={inline}"))).await;
            assert_eq!(answer.status, 200);
            assert_eq!(answer.header("content-type"), content_type);
            let how = if inline && kind == "image" { "inline" } else { "attachment" };
            assert_eq!(
                answer.header("content-disposition"),
                format!("{how}; filename=\"{name}\"; filename*=UTF-8''{name}")
            );
            assert_eq!(answer.header("x-content-type-options"), "nosniff");
            assert!(answer.header("content-security-policy").contains("sandbox"));
            assert_eq!(answer.header("content-length"), content.len().to_string());
        }
    }
    let file = team
        .owner
        .raw(Method::POST, "/files?name=a%22%3B%20b%E2%80%AEgpj.exe", OCTETS, "x")
        .await
        .expect(201);
    assert_eq!(file["name"], "a\"; bgpj.exe");
    let answer = team.owner.get(&path(&file, "/content")).await;
    assert_eq!(
        answer.header("content-disposition"),
        "attachment; filename=\"a__ bgpj.exe\"; filename*=UTF-8''a%22%3B%20bgpj.exe"
    );
}

#[tokio::test]
async fn bad_uploads_are_refused_with_what_would_do() {
    let team = TestApp::shared().team().await;
    let raw =
        async |path: &str, kind: &str, body: Vec<u8>| team.owner.raw(Method::POST, path, kind, body).await;
    let field = |error: Value| error["fields"][0]["field"].as_str().unwrap().to_owned();
    for name in ["", "%20", ".", "..", "..%2F", "a%2F..", "%5C", &"a".repeat(256), "%00", "%E2%80%AE"] {
        let answer = raw(&format!("/files?name={name}"), OCTETS, vec![1]).await;
        assert_eq!(field(answer.refused(400, "VALIDATION_ERROR")), "name", "{name}");
    }
    let file = raw("/files?name=..%2F..%2Fetc%2Fpasswd", OCTETS, vec![1]).await.expect(201);
    assert_eq!(file["name"], "passwd");
    assert_eq!(field(raw("/files", OCTETS, vec![1]).await.refused(400, "VALIDATION_ERROR")), "name");
    assert_eq!(field(raw("/files?name=a", OCTETS, vec![]).await.refused(400, "VALIDATION_ERROR")), "file");
    let whole = form(&[("file", "a.txt", b"x")]);
    for (body, at) in [
        (form(&[]), "file"),
        (form(&[("document", "a.txt", b"x")]), "document"),
        (form(&[("file", "a.txt", b"x"), ("file", "b.txt", b"y")]), "file"),
        (form(&[("file", "a.txt", b"x"), ("note", "b.txt", b"y")]), "file"),
        (form(&[("file", "a.txt", b"")]), "file"),
        (form(&[("file", "", b"x")]), "name"),
    ] {
        assert_eq!(field(raw("/files", BOUNDARY, body).await.refused(400, "VALIDATION_ERROR")), at);
    }
    // Broken forms: cut, without an end, of another boundary, with a head that does not end.
    for body in [whole[..whole.len() - 12].to_vec(), b"--YY\r\n\r\nx".to_vec(), b"--XX\r\n".repeat(1000)] {
        raw("/files", BOUNDARY, body).await.refused(400, "VALIDATION_ERROR");
    }
    let endless =
        [b"--XX\r\nContent-Disposition: form-data; name=\"file\"; x=\"".to_vec(), vec![b'a'; 6_000_000]]
            .concat();
    raw("/files", BOUNDARY, endless).await.refused(400, "VALIDATION_ERROR");
    for kind in ["multipart/form-data", "multipart/mixed; boundary=XX", "application/x-www-form-urlencoded"] {
        raw("/files?name=a", kind, whole.clone()).await.refused(415, "UNSUPPORTED_MEDIA_TYPE");
    }
    let left = || async { objects(&folder(&team.app), &team).len() == 1 };
    within(5, "what was refused goes", left).await;
    assert_eq!(used(&team).await, 1);
}

#[tokio::test]
async fn an_upload_that_breaks_off_leaves_nothing() {
    for (app, root) in stores() {
        let team = app.team().await;
        let request = team.owner.request(Method::POST, "/files?name=big.bin").build().unwrap();
        let header = |name: &str| request.headers()[name].to_str().unwrap().to_owned();
        let mut socket = TcpStream::connect(app.base.trim_start_matches("http://")).unwrap();
        write!(
            socket,
            "POST /api/v1/files?name=big.bin HTTP/1.1\r\nHost: localhost\r\nAuthorization: {}\r\n\
             X-Organization-Id: {}\r\nContent-Type: {OCTETS}\r\nContent-Length: 100000000\r\n\r\n",
            header("authorization"),
            header("x-organization-id"),
        )
        .unwrap();
        let sent = socket.try_clone().unwrap();
        tokio::task::spawn_blocking(move || (&sent).write_all(&vec![7; 20_000_000]).unwrap()).await.unwrap();
        drop(socket);
        // The parts of S3 are in the memory of its server until they are put together.
        within(10, "the upload to be given up", || async { objects(&root, &team).is_empty() }).await;
        let files = team.owner.get("/files").await.expect(200);
        assert_eq!((files["data"].as_array().unwrap().len(), used(&team).await), (0, 0));
    }
}

#[tokio::test]
async fn uploads_are_bounded_for_each_organization() {
    let app = TestApp::with(|config| config.files.uploads_at_once = 4);
    let (team, other) = (app.team().await, app.team().await);
    let (send, body) = tokio::sync::mpsc::channel::<Result<Bytes, std::io::Error>>(1);
    let body = stream::unfold(body, |mut body| async move { body.recv().await.map(|piece| (piece, body)) });
    let path = "/files?name=slow.bin";
    let slow = team.owner.raw(Method::POST, path, OCTETS, reqwest::Body::wrap_stream(Box::pin(body)));
    let others = async {
        send.send(Ok(Bytes::from_static(b"first"))).await.unwrap();
        // From outside one would have to ask by taking the place.
        let id = team.id.parse().unwrap();
        within(10, "the slow one has its place", || async { app.app.files.uploads().of(id).is_err() }).await;
        let told = team.owner.raw(Method::POST, "/files?name=a", OCTETS, "x").await;
        assert_eq!(told.header("retry-after"), "5");
        told.refused(429, "RATE_LIMIT");
        other.upload("a", "x").await;
        drop(send);
    };
    let (slow, ()) = tokio::join!(slow, others);
    slow.expect(201);
    team.upload("a", "x").await;
}

#[tokio::test]
async fn an_upload_that_broke_off_can_be_sent_again_with_its_key() {
    let team = TestApp::shared().team().await;
    let request = team.owner.request(Method::POST, "/files?name=a.bin").build().unwrap();
    let header = |name: &str| request.headers()[name].to_str().unwrap().to_owned();
    let mut socket = TcpStream::connect(team.app.base.trim_start_matches("http://")).unwrap();
    write!(
        socket,
        "POST /api/v1/files?name=a.bin HTTP/1.1\r\nHost: {}\r\nAuthorization: {}\r\nX-Organization-Id: {}\r\n\
         Idempotency-Key: broken\r\nContent-Type: {OCTETS}\r\nContent-Length: 1000\r\n\r\nhalf",
        team.app.base.trim_start_matches("http://"),
        header("authorization"),
        header("x-organization-id"),
    )
    .unwrap();
    socket.shutdown(std::net::Shutdown::Write).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut told = String::new();
    let read = tokio::task::spawn_blocking(move || {
        let _ = socket.read_to_string(&mut told);
        told
    });
    let _ = read.await.unwrap();
    let keyed = team.owner.header("idempotency-key", "broken");
    let again = keyed.raw(Method::POST, "/files?name=a.bin", OCTETS, vec![7; 1000]).await;
    assert!(again.headers.get("idempotent-replayed").is_none());
    again.expect(201);
}

#[tokio::test]
async fn an_organization_at_its_limit_still_gets_its_data() {
    let team = TestApp::shared().team().await;
    leave(&team, 0).await;
    let before = used(&team).await;
    let export = team.owner.post("/tasks/exports", json!({"format": "csv"})).await.expect(202);
    let done = finished(&team.owner, &format!("/exports/{}", export["id"].as_str().unwrap()), 60).await;
    assert_eq!(done["state"], "done", "{done}");
    assert_eq!(used(&team).await, before);
    team.owner.delete(&format!("/files/{}", done["file_id"].as_str().unwrap())).await.expect(204);
    assert_eq!(used(&team).await, before);
}

#[tokio::test]
async fn what_the_plan_does_not_hold_is_refused_before_and_on_the_way() {
    let team = TestApp::shared().team().await;
    leave(&team, 1_000_000).await;
    let before = used(&team).await;
    // By its length.
    let told = team.owner.raw(Method::POST, "/files?name=a", OCTETS, vec![0; 1_000_001]).await;
    let error = told.refused(402, "PLAN_LIMIT_REACHED");
    assert_eq!(error["details"]["resource"], "storage");
    // On the way.
    let told = team.owner.raw(Method::POST, "/files?name=a", OCTETS, streamed(20, 100_000)).await;
    told.refused(402, "PLAN_LIMIT_REACHED");
    assert_eq!(used(&team).await, before);
    within(5, "nothing stays", || async { objects(&folder(&team.app), &team).is_empty() }).await;
    // Of two for the last bytes one wins.
    let one = || team.owner.raw(Method::POST, "/files?name=a", OCTETS, streamed(6, 100_000));
    let (first, second) = tokio::join!(one(), one());
    let mut both = [first.status.as_u16(), second.status.as_u16()];
    both.sort();
    assert_eq!(both, [201, 402]);
    assert_eq!(used(&team).await, before + 600_000);
    within(5, "one object", || async { objects(&folder(&team.app), &team).len() == 1 }).await;
}

#[tokio::test]
async fn a_file_has_a_largest_size_and_a_place() {
    let app = TestApp::with(|config| config.files.max_bytes = 300_000);
    let team = app.team().await;
    team.upload("a", vec![1; 300_000]).await;
    let told = team.owner.raw(Method::POST, "/files?name=a", OCTETS, vec![1; 600_000]).await;
    told.refused(413, "PAYLOAD_TOO_LARGE");
    let told = team.owner.raw(Method::POST, "/files?name=a", OCTETS, streamed(4, 100_000)).await;
    told.refused(413, "PAYLOAD_TOO_LARGE");
    let nowhere = TestApp::with(|config| config.files.folder = None);
    let team = nowhere.team().await;
    let told = team.owner.raw(Method::POST, "/files?name=a", OCTETS, vec![1]).await;
    let told = told.refused(503, "SERVICE_UNAVAILABLE");
    assert!(told["message"].as_str().unwrap().contains("FILES_FOLDER"), "{told}");
}

#[tokio::test]
async fn s3_with_a_wrong_key_is_an_outage_and_tells_nothing() {
    let app = TestApp::with(|config| {
        s3().configure(config);
        config.files.s3_secret_key = Some("WRONG".into());
    });
    let team = app.team().await;
    let told = team.owner.raw(Method::POST, "/files?name=a", OCTETS, vec![1]).await;
    assert!(!told.text.contains("KEY") && !told.text.contains("127.0.0.1"), "{}", told.text);
    told.refused(503, "SERVICE_UNAVAILABLE");
    assert_eq!(used(&team).await, 0);
}

#[tokio::test]
async fn parts_of_a_file_are_sent_and_a_known_one_is_not() {
    for (app, _) in stores() {
        let team = app.team().await;
        let content: Vec<u8> = (0..100_000).map(|n: u32| (n % 251) as u8).collect();
        let file = team.upload("data.bin", content.clone()).await;
        let at = path(&file, "/content");
        let tag = format!("\"{}\"", file["sha256"].as_str().unwrap());
        let ask = async |range: &str| {
            let request = team.owner.request(Method::GET, &at).header("range", range);
            let answer = request.send().await.unwrap();
            let named = answer.headers().get("content-range").map(|value| value.to_str().unwrap().to_owned());
            (answer.status(), named, answer.bytes().await.unwrap().to_vec())
        };
        for (range, from, to) in [
            ("bytes=0-0", 0, 1),
            ("bytes=99990-", 99_990, 100_000),
            ("bytes=-5", 99_995, 100_000),
            ("bytes=10-200000", 10, 100_000),
        ] {
            let (status, named, part) = ask(range).await;
            assert_eq!(status, StatusCode::PARTIAL_CONTENT, "{range}");
            assert_eq!(named.unwrap(), format!("bytes {from}-{}/100000", to - 1));
            assert!(part == content[from..to], "{range}");
        }
        let (status, named, _) = ask("bytes=100000-").await;
        assert_eq!((status.as_u16(), named.as_deref()), (416, Some("bytes */100000")));
        let several = ask("bytes=0-1,5-6").await;
        assert!(several.0 == StatusCode::OK && several.2 == content);
        let answer = team.owner.header("range", "bytes=0-9").header("if-range", "\"other\"").get(&at).await;
        assert_eq!(answer.status, 200);
        let answer = team.owner.header("if-none-match", &tag).get(&at).await;
        assert_eq!((answer.status.as_u16(), answer.text.as_str()), (304, ""));
        let answer = Answer::of(team.owner.request(Method::HEAD, &at)).await;
        assert_eq!((answer.status.as_u16(), answer.header("etag")), (200, tag.as_str()));
        assert_eq!(answer.header("accept-ranges"), "bytes");
        let answer = team.owner.header("origin", &app.base).get(&at).await;
        let shown = answer.header("access-control-expose-headers").to_lowercase();
        for name in ["content-disposition", "content-range", "accept-ranges"] {
            assert!(shown.contains(name), "{shown}");
        }
    }
}

/// A PNG of one color in which so many pixels are promised and none is there.
fn promise(side: u32) -> Vec<u8> {
    let header = [&side.to_be_bytes()[..], &side.to_be_bytes(), &[8, 0, 0, 0, 0]].concat();
    let chunk = |kind: &[u8], data: &[u8]| {
        let named = [kind, data].concat();
        [&(data.len() as u32).to_be_bytes()[..], &named, &crc32fast::hash(&named).to_be_bytes()].concat()
    };
    [&PNG[..8], &chunk(b"IHDR", &header), &chunk(b"IDAT", b"\x78\x9c\x03\0")].concat()
}

#[tokio::test]
async fn images_get_a_small_picture_and_bombs_do_not() {
    for (app, root) in stores() {
        let team = app.team().await;
        let state = async |file: &Value| {
            let now = || async { team.owner.get(&path(file, "")).await.expect(200)["thumbnail"].clone() };
            within(20, "a thumbnail", || async { now().await != "pending" }).await;
            now().await
        };
        let picture = team.upload("dot.png", PNG).await;
        assert_eq!(picture["thumbnail"], "pending");
        assert_eq!(state(&picture).await, "ready");
        let answer = team.owner.request(Method::GET, &path(&picture, "/thumbnail")).send().await.unwrap();
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["content-type"]),
            (200, &"image/jpeg".parse().unwrap())
        );
        assert!(answer.bytes().await.unwrap().starts_with(&[0xff, 0xd8]));
        let text = team.upload("a.txt", "hello").await;
        assert_eq!(text["thumbnail"], "none");
        for content in [promise(10_000), PNG[..40].to_vec(), [PNG, b"\0\0\0\0"].concat()[..50].to_vec()] {
            let file = team.upload("bomb.png", content).await;
            assert_eq!(state(&file).await, "refused");
            team.owner.get(&path(&file, "/thumbnail")).await.refused(404, "NOT_FOUND");
        }
        team.owner.get(&path(&text, "/thumbnail")).await.refused(404, "NOT_FOUND");
        // The small picture goes with the image.
        team.owner.delete(&path(&picture, "")).await.expect(204);
        within(10, "it goes", || async { objects(&root, &team).iter().all(|name| !name.contains("thumb")) })
            .await;
    }
}

#[tokio::test]
async fn a_link_opens_one_file_for_a_while() {
    let app = TestApp::with(|_| {});
    let (team, rival) = (app.team().await, app.team().await);
    let file = team.upload("plan.txt", "the plan").await;
    let links = path(&file, "/links");
    for seconds in [0, 604_801] {
        let told = team.owner.post(&links, json!({"expires_in_seconds": seconds})).await;
        told.refused(400, "VALIDATION_ERROR");
    }
    rival.owner.post(&links, json!({})).await.refused(404, "NOT_FOUND");
    let made = team.owner.post(&links, json!({})).await.expect(201);
    let url = made["url"].as_str().unwrap().trim_start_matches("/api/v1").to_owned();
    let long = team.owner.post(&links, json!({"expires_in_seconds": 604_800})).await.expect(201);
    let long = long["url"].as_str().unwrap().trim_start_matches("/api/v1").to_owned();
    let anybody = app.anonymous();
    assert_eq!(anybody.get(&url).await.text, "the plan");
    let answer = anybody.header("range", "bytes=4-").get(&url).await;
    assert_eq!((answer.status.as_u16(), answer.text.as_str()), (206, "plan"));
    for wrong in [
        "/downloads/x".to_owned(),
        url[..url.len() - 1].to_owned(),
        format!("{url}A"),
        url.replace("/downloads/", "/downloads/A"),
    ] {
        anybody.get(&wrong).await.refused(404, "NOT_FOUND");
    }
    app.app.clock.advance(TimeDelta::minutes(16));
    anybody.get(&url).await.refused(403, "PERMISSION_DENIED");
    assert_eq!(anybody.get(&long).await.text, "the plan");
    let suspend = |status: &str| {
        format!("update platform.organizations set status = '{status}' where id = '{}'", team.id)
    };
    app.sql(&suspend("suspended")).await;
    app.app.directory.forget(team.id.parse().unwrap());
    anybody.get(&long).await.refused(403, "TENANT_SUSPENDED");
    app.sql(&suspend("active")).await;
    app.app.directory.forget(team.id.parse().unwrap());
    app.sql(&format!("delete from {}.files", team.schema().await)).await;
    anybody.get(&long).await.refused(404, "NOT_FOUND");
}

#[tokio::test]
async fn files_are_seen_and_deleted_by_those_who_may() {
    let app = TestApp::shared();
    let (team, rival) = (app.team().await, app.team().await);
    let (member, other, viewer) =
        (team.join(Role::Member).await, team.join(Role::Member).await, team.join(Role::Viewer).await);
    let raw = async |who: &Client| who.raw(Method::POST, "/files?name=a.txt", OCTETS, "x").await;
    raw(&viewer.client).await.refused(403, "PERMISSION_DENIED");
    raw(&app.anonymous().within(&team.id)).await.refused(401, "AUTH_FAILED");
    let file = raw(&member.client).await.expect(201);
    let at = path(&file, "");
    for stranger in [&other.client, &viewer.client, &rival.owner] {
        for rest in ["", "/content", "/thumbnail"] {
            stranger.get(&path(&file, rest)).await.refused(404, "NOT_FOUND");
        }
    }
    assert_eq!(other.client.get("/files").await.expect(200)["data"], json!([]));
    team.owner.get(&at).await.expect(200);
    put_to_use(&team, &file).await;
    viewer.client.get(&at).await.expect(200);
    other.client.delete(&at).await.refused(403, "PERMISSION_DENIED");
    member.client.delete(&at).await.refused(409, "CONFLICT");
    rival.owner.delete(&at).await.refused(404, "NOT_FOUND");
    // What is read in or made of data is its maker's.
    let schema = team.schema().await;
    for purpose in ["import", "export", "report"] {
        app.sql(&format!("update {schema}.files set purpose = '{purpose}'")).await;
        for rest in ["", "/content", "/thumbnail"] {
            for stranger in [&other.client, &viewer.client] {
                stranger.get(&path(&file, rest)).await.refused(404, "NOT_FOUND");
            }
        }
        other.client.post(&path(&file, "/links"), json!({})).await.refused(404, "NOT_FOUND");
        assert_eq!(other.client.get("/files").await.expect(200)["data"], json!([]));
        member.client.get(&at).await.expect(200);
        team.owner.get(&at).await.expect(200);
    }
    app.sql(&format!("update {schema}.files set purpose = 'upload'")).await;
    // Who only reads makes no link for a week; and who made one is known.
    let links = path(&file, "/links");
    let week = json!({"expires_in_seconds": 604_800});
    viewer.client.post(&links, week.clone()).await.refused(400, "VALIDATION_ERROR");
    viewer.client.post(&links, json!({"expires_in_seconds": 86_400})).await.expect(201);
    member.client.post(&links, week).await.expect(201);
    let made =
        format!("select actor_id::text from {schema}.audit_log where action = 'file.linked' order by id");
    assert_eq!(app.texts(&made).await, [viewer.id.clone(), member.id.clone()]);
    let unused = raw(&member.client).await.expect(201);
    assert_eq!(used(&team).await, 2);
    member
        .client
        .header("if-match", "\"v9\"")
        .delete(&path(&unused, ""))
        .await
        .refused(412, "PRECONDITION_FAILED");
    team.owner.delete(&path(&unused, "")).await.expect(204);
    assert_eq!(used(&team).await, 1);
    team.owner.get(&path(&unused, "")).await.refused(404, "NOT_FOUND");
    let id = unused["id"].as_str().unwrap().to_owned();
    within(10, "its bytes go", || async { !objects(&folder(&team.app), &team).contains(&id) }).await;
}

#[tokio::test]
async fn the_same_upload_with_the_same_key_is_stored_once() {
    let team = TestApp::shared().team().await;
    let keyed = team.owner.header("idempotency-key", "upload-1");
    let send = async |body: reqwest::Body| keyed.raw(Method::POST, "/files?name=a.txt", OCTETS, body).await;
    let first = send("hello".into()).await;
    let again = send("hello".into()).await;
    assert_eq!((first.status.as_u16(), &first.text), (201, &again.text));
    assert_eq!(again.header("idempotent-replayed"), "true");
    assert_eq!(used(&team).await, 5);
    send("hello!".into()).await.refused(409, "IDEMPOTENCY_CONFLICT");
    send(streamed(1, 5)).await.refused(400, "VALIDATION_ERROR");
}

#[tokio::test]
async fn what_nothing_names_and_what_no_row_tells_of_is_collected() {
    let mut place = None;
    let in_s3 = TestApp::with(|config| place = Some(s3().configure(config)));
    let folder = std::env::temp_dir().join(format!("rowhouse-test-files-{}", Uuid::now_v7().simple()));
    let local = TestApp::with(|config| config.files.folder = Some(folder.clone()));
    for (app, root) in [(local, folder.clone()), (in_s3, place.unwrap())] {
        let team = app.team().await;
        let kept = team.upload("kept.txt", "kept").await;
        put_to_use(&team, &kept).await;
        team.upload("unused.txt", "unused").await;
        let (stray, gone) = (Uuid::now_v7(), Uuid::now_v7());
        for path in [files::key(team.id.parse().unwrap(), stray), files::key(gone, stray)] {
            let store = app.app.files.clone();
            on_the_servers_runtime(async move {
                store.put(&path, stream::iter([Ok(Bytes::from_static(b"stray"))])).await.unwrap();
            });
        }
        let schema = team.schema().await;
        // Whatever happened to the counter.
        app.sql(&format!("update {schema}.usage_counters set used = 77 where resource = 'storage'")).await;
        let collect = || on_the_servers_runtime(async { files::begin_collecting(&app.app).await.unwrap() });
        collect();
        within(10, "the counter to be right", || async { used(&team).await == 10 }).await;
        assert_eq!(objects(&root, &team).len(), 3, "nothing is old yet");
        app.app.clock.advance(TimeDelta::days(8));
        collect();
        let only = vec![kept["id"].as_str().unwrap().to_owned()];
        within(10, "the rest to go", || async { objects(&root, &team) == only }).await;
        within(10, "its storage", || async { used(&team).await == 4 }).await;
        within(10, "what nobody has", || async {
            fs::read_dir(root.join("organizations").join(gone.to_string())).map_or(0, Iterator::count) == 0
        })
        .await;
        assert_eq!(app.number(&format!("select count(*) from {schema}.files")).await, 1);
    }
    fs::remove_dir_all(folder).unwrap();
}

/// `rowhouse serve` as a process, for what is told of its memory.
struct Service(Child, PathBuf);

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
        let _ = fs::remove_dir_all(&self.1);
    }
}

/// A line of `/proc/<pid>/status`, in kB.
#[cfg(target_os = "linux")]
fn memory(service: &Service, what: &str) -> i64 {
    let status = fs::read_to_string(format!("/proc/{}/status", service.0.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with(what)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_gigabyte_is_stored_in_less_than_fifty_megabytes() {
    const PIECE: usize = 256 * 1024;
    const PIECES: usize = 4096;
    let folder = std::env::temp_dir().join(format!("rowhouse-test-{}", Uuid::now_v7().simple()));
    fs::create_dir_all(&folder).unwrap();
    for in_s3 in [false, true] {
        let app = TestApp::with(|_| {});
        let team = app.team().await;
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = Command::new(env!("CARGO_BIN_EXE_rowhouse"));
        command.arg("serve").env_clear().env("PATH", std::env::var_os("PATH").unwrap()).current_dir(&folder);
        command
            .env("DATABASE_URL", app.database())
            .env("ROWHOUSE_SECRET_KEY", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=")
            .env("HTTP_LISTEN", format!("127.0.0.1:{port}"))
            .env("LOG_LEVEL", "warn");
        if in_s3 {
            command.env("FILES_S3_BUCKET", "files").env("FILES_S3_ENDPOINT", &s3().endpoint);
            command.env("FILES_S3_ACCESS_KEY", "KEY").env("FILES_S3_SECRET_KEY", "SECRETSECRET");
        } else {
            command.env("FILES_FOLDER", folder.join("files"));
        }
        let child = command.stdout(Stdio::null()).spawn().unwrap();
        let service = Service(child, folder.join("files"));
        let there = TestApp { base: format!("http://127.0.0.1:{port}"), ..app.clone() };
        let owner = team.owner.at(&there);
        within(20, "the service", || async { TcpStream::connect(("127.0.0.1", port)).is_ok() }).await;
        // Everything that is made once is made.
        owner.raw(Method::POST, "/files?name=first", OCTETS, streamed(80, PIECE)).await.expect(201);
        let before = memory(&service, "VmRSS:");
        // From here on the peak is counted anew.
        fs::write(format!("/proc/{}/clear_refs", service.0.id()), "5").unwrap();
        let request = owner.request(Method::POST, "/files?name=big.bin").header("content-type", OCTETS);
        let request = request.timeout(Duration::from_secs(300)).body(streamed(PIECES, PIECE));
        let file = Answer::of(request).await.expect(201);
        assert_eq!(file["size"], PIECE * PIECES);
        let more = memory(&service, "VmHWM:") - before;
        println!("{more} kB more, in S3: {in_s3}");
        assert!(more < 50_000, "{more} kB");
        // And out again, in pieces.
        let mut answer = owner
            .request(Method::GET, &path(&file, "/content"))
            .timeout(Duration::from_secs(300))
            .send()
            .await
            .unwrap();
        let mut read = 0;
        while let Some(piece) = answer.chunk().await.unwrap() {
            read += piece.len();
        }
        assert_eq!(read, PIECE * PIECES);
        let more = memory(&service, "VmHWM:") - before;
        assert!(more < 50_000, "{more} kB");
        for name in [&file] {
            owner.delete(&path(name, "")).await.expect(204);
        }
    }
    let _ = fs::remove_dir_all(folder);
}

#[tokio::test]
async fn an_upload_is_answered_before_it_is_sent_where_the_sender_waits_for_word() {
    let team = TestApp::shared().team().await;
    let viewer = team.join(Role::Viewer).await;
    let request = viewer.client.request(Method::POST, "/files?name=a").build().unwrap();
    let header = |name: &str| request.headers()[name].to_str().unwrap().to_owned();
    let mut socket = TcpStream::connect(team.app.base.trim_start_matches("http://")).unwrap();
    write!(
        socket,
        "POST /api/v1/files?name=a HTTP/1.1\r\nHost: localhost\r\nAuthorization: {}\r\nX-Organization-Id: {}\r\n\
         Content-Type: {OCTETS}\r\nContent-Length: 1000000000\r\nExpect: 100-continue\r\n\r\n",
        header("authorization"),
        header("x-organization-id"),
    )
    .unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(25))).unwrap();
    let told = tokio::task::spawn_blocking(move || {
        let mut first = [0; 12];
        socket.read_exact(&mut first).map(|()| first)
    });
    assert_eq!(&told.await.unwrap().unwrap(), b"HTTP/1.1 403");
}
