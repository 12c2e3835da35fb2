//! Pictures of people, and logos of organizations.

use std::io::Cursor;

use image::{DynamicImage, GrayImage, ImageFormat, Rgb, RgbImage};
use reqwest::{Method, StatusCode};
use rowhouse::auth::Role;
use serde_json::{Value, json};

use crate::support::{Client, TestApp, within};

const AVATAR: &str = "/auth/user/avatar";

fn png(image: DynamicImage) -> Vec<u8> {
    let mut bytes = Vec::new();
    image.write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png).unwrap();
    bytes
}

fn picture(width: u32, height: u32) -> Vec<u8> {
    png(DynamicImage::ImageRgb8(RgbImage::from_fn(width, height, |x, y| Rgb([x as u8, y as u8, 90]))))
}

/// What somebody without a login gets at the address of an object of the API.
async fn shown(app: &TestApp, url: &Value) -> (StatusCode, reqwest::header::HeaderMap, Vec<u8>) {
    let url = url.as_str().unwrap();
    let path = &url[url.find("/api/v1/").unwrap()..];
    let response = app.http.get(format!("{}{path}", app.base)).send().await.unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    (status, headers, response.bytes().await.unwrap().to_vec())
}

#[tokio::test]
async fn a_picture_is_made_small_and_shown_to_everybody() {
    let app = TestApp::shared();
    let person = app.person().await;
    let set = person.client.raw(Method::PUT, AVATAR, "image/png", picture(1_600, 800)).await;
    let profile = set.expect(200);
    assert_eq!(person.client.get("/auth/user").await.expect(200), profile);
    let (status, headers, bytes) = shown(&app, &profile["avatar_url"]).await;
    assert_eq!(status, 200);
    assert_eq!(headers["content-type"], "image/jpeg");
    assert_eq!(headers["x-content-type-options"], "nosniff");
    assert!(headers["cache-control"].to_str().unwrap().contains("immutable"));
    let small = image::load_from_memory(&bytes).unwrap();
    assert_eq!((small.width(), small.height()), (512, 256));
    // Another one has another address, and the first is gone.
    let first = profile["avatar_url"].clone();
    let mut form =
        b"--cut\r\ncontent-disposition: form-data; name=\"file\"; filename=\"me.png\"\r\n\r\n".to_vec();
    form.extend(picture(10, 10));
    form.extend(b"\r\n--cut--\r\n");
    let again = person.client.raw(Method::PUT, AVATAR, "multipart/form-data; boundary=cut", form).await;
    let second = again.expect(200)["avatar_url"].clone();
    assert_ne!(first, second);
    assert_eq!(shown(&app, &first).await.0, 404);
    assert_eq!(shown(&app, &second).await.0, 200);
    person.client.delete(AVATAR).await.expect(204);
    assert_eq!(person.client.get("/auth/user").await.expect(200)["avatar_url"], Value::Null);
    assert_eq!(shown(&app, &second).await.0, 404);
    person.client.delete(AVATAR).await.refused(404, "NOT_FOUND");
    let folder = app.app.config.files.folder.clone().unwrap().join("users").join(&person.id);
    let left = || std::fs::read_dir(&folder).map_or(0, Iterator::count);
    within(10, "nothing of it is left", || async { left() == 0 }).await;
}

#[tokio::test]
async fn a_picture_can_still_be_elsewhere() {
    let app = TestApp::shared();
    let person = app.person().await;
    let set = person.client.raw(Method::PUT, AVATAR, "image/png", picture(20, 20)).await.expect(200);
    // What is sent back unchanged changes nothing.
    let same = json!({"avatar_url": set["avatar_url"], "bio": "Same"});
    person.client.patch("/auth/user", same).await.expect(200);
    assert_eq!(shown(&app, &set["avatar_url"]).await.0, 200);
    let other = json!({"avatar_url": "https://pictures.example.com/me.png"});
    let profile = person.client.patch("/auth/user", other.clone()).await.expect(200);
    assert_eq!(profile["avatar_url"], other["avatar_url"]);
    assert_eq!(shown(&app, &set["avatar_url"]).await.0, 404);
    person.client.delete(AVATAR).await.expect(204);
}

#[tokio::test]
async fn a_picture_goes_with_its_account() {
    let app = TestApp::shared();
    let (person, staff) = (app.person().await, app.superuser().await);
    let set = person.client.raw(Method::PUT, AVATAR, "image/png", picture(20, 20)).await.expect(200);
    staff.client.delete(&format!("/admin/users/{}", person.id)).await.expect(204);
    assert_eq!(shown(&app, &set["avatar_url"]).await.0, 404);
    let folder = app.app.config.files.folder.clone().unwrap().join("users").join(&person.id);
    let left = || std::fs::read_dir(&folder).map_or(0, Iterator::count);
    within(10, "nothing of it is left", || async { left() == 0 }).await;
}

#[tokio::test]
async fn pictures_are_taken_for_a_while_only() {
    let app = TestApp::shared();
    let person = app.person().await;
    let send = async || person.client.raw(Method::PUT, AVATAR, "image/png", picture(2, 2)).await;
    for _ in 0..20 {
        send().await.expect(200);
    }
    // One more is allowed after some minutes, which twenty may take.
    let mut last = send().await;
    for _ in 0..3 {
        if last.status == 200 {
            last = send().await;
        }
    }
    last.refused(429, "RATE_LIMIT");
}

#[tokio::test]
async fn what_is_no_picture_is_refused() {
    let app = TestApp::shared();
    let person = app.person().await;
    let bomb = png(DynamicImage::ImageLuma8(GrayImage::new(10_000, 10_000)));
    let svg = b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>".to_vec();
    let cut = picture(100, 100)[..200].to_vec();
    for (kind, bytes) in [
        ("image/png", bomb),
        ("image/svg+xml", svg.clone()),
        ("image/png", svg),
        ("image/png", cut),
        ("image/png", b"<html><script>alert(1)</script>".to_vec()),
        ("image/png", Vec::new()),
    ] {
        let error =
            person.client.raw(Method::PUT, AVATAR, kind, bytes).await.refused(400, "VALIDATION_ERROR");
        assert_eq!(error["fields"][0]["field"], "file", "{error}");
    }
    let large = vec![0; (5 << 20) + 1];
    person.client.raw(Method::PUT, AVATAR, "image/png", large).await.refused(413, "PAYLOAD_TOO_LARGE");
    app.anonymous().raw(Method::PUT, AVATAR, "image/png", picture(9, 9)).await.refused(401, "AUTH_FAILED");
    assert_eq!(person.client.get("/auth/user").await.expect(200)["avatar_url"], Value::Null);
    let stale = person.client.header("if-match", "\"v99\"");
    stale.raw(Method::PUT, AVATAR, "image/png", picture(9, 9)).await.refused(412, "PRECONDITION_FAILED");
    let nobody = "/avatars/01890000-0000-7000-8000-000000000000";
    app.anonymous().get(nobody).await.refused(404, "NOT_FOUND");
}

async fn upload(client: &Client, name: &str, bytes: Vec<u8>) -> Value {
    let path = format!("/files?name={name}");
    client.raw(Method::POST, &path, "application/octet-stream", bytes).await.expect(201)
}

async fn put(client: &Client, path: &str, body: Value) -> crate::support::Answer {
    crate::support::Answer::of(client.request(Method::PUT, path).json(&body)).await
}

#[tokio::test]
async fn a_logo_stands_where_people_log_in() {
    let app = TestApp::shared();
    let team = app.team().await;
    let path = team.path("/logo");
    let file = upload(&team.owner, "logo.png", picture(600, 300)).await;
    let organization = put(&team.owner, &path, json!({"file_id": file["id"]})).await.expect(200);
    let url = organization["logo_url"].clone();
    assert_eq!(team.owner.get(&team.path("")).await.expect(200)["logo_url"], url);
    within(20, "its small picture", || async { shown(&app, &url).await.0 == 200 }).await;
    let (_, headers, bytes) = shown(&app, &url).await;
    assert_eq!(headers["content-type"], "image/jpeg");
    assert_eq!(image::load_from_memory(&bytes).unwrap().width(), 256);
    // By its slug as well; and it is the same address for the next one.
    let by_slug = json!(format!("http://x/api/v1/logos/{}", team.slug));
    assert_eq!(shown(&app, &by_slug).await.2, bytes);
    let second = upload(&team.owner, "new.png", picture(40, 40)).await;
    let organization = put(&team.owner, &path, json!({"file_id": second["id"]})).await.expect(200);
    assert_eq!(organization["logo_url"], url);
    let gone = format!("/files/{}", file["id"].as_str().unwrap());
    team.owner.get(&gone).await.refused(404, "NOT_FOUND");
    let kept = team.owner.get(&format!("/files/{}", second["id"].as_str().unwrap())).await.expect(200);
    assert_eq!((&kept["purpose"], &kept["expires_at"]), (&json!("logo"), &Value::Null));
    team.owner.delete(&path).await.expect(204);
    team.owner.delete(&path).await.refused(404, "NOT_FOUND");
    assert_eq!(shown(&app, &url).await.0, 404);
    assert_eq!(team.owner.get(&team.path("")).await.expect(200)["logo_url"], Value::Null);
}

#[tokio::test]
async fn a_logo_is_a_picture_that_is_not_used_elsewhere() {
    let app = TestApp::shared();
    let (team, rival) = (app.team().await, app.team().await);
    let path = team.path("/logo");
    let text = upload(&team.owner, "logo.png", b"No picture at all, in truth".to_vec()).await;
    let svg = upload(&team.owner, "logo.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>".to_vec()).await;
    let foreign = upload(&rival.owner, "logo.png", picture(30, 30)).await;
    for file in [&text, &svg, &foreign] {
        let error = put(&team.owner, &path, json!({"file_id": file["id"]})).await;
        assert_eq!(error.refused(400, "VALIDATION_ERROR")["fields"][0]["field"], "file_id");
    }
    // What was refused is not used up.
    let again = team.owner.get(&format!("/files/{}", text["id"].as_str().unwrap())).await.expect(200);
    assert_eq!(again["purpose"], "upload");
    // What cannot be shown takes the place of nothing, however fast it is named.
    let good = upload(&team.owner, "logo.png", picture(30, 30)).await;
    let url = put(&team.owner, &path, json!({"file_id": good["id"]})).await.expect(200)["logo_url"].clone();
    assert_eq!(shown(&app, &url).await.0, 200);
    let large = png(DynamicImage::ImageLuma8(GrayImage::new(10_000, 10)));
    let large = upload(&team.owner, "logo.png", large).await;
    let told = put(&team.owner, &path, json!({"file_id": large["id"]})).await;
    assert_eq!(told.refused(400, "VALIDATION_ERROR")["fields"][0]["field"], "file_id");
    assert_eq!(shown(&app, &url).await.0, 200);
    let manager = team.join(Role::Manager).await;
    let own = upload(&manager.client, "logo.png", picture(30, 30)).await;
    put(&manager.client, &path, json!({"file_id": own["id"]})).await.refused(403, "PERMISSION_DENIED");
    app.anonymous().get("/logos/nobody-at-all").await.refused(404, "NOT_FOUND");
    app.anonymous().get(&format!("/logos/{}", rival.slug)).await.refused(404, "NOT_FOUND");
}
