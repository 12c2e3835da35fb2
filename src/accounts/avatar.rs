//! A person's picture, and how pictures are shown to everybody.
//!
//! What is uploaded is made small and encoded anew at once, and only that is kept: no metadata, nothing that a
//! browser could run. Who knows its address sees it, without logging in; the address cannot be guessed, and is
//! another one for each picture.

use bytes::Bytes;
use futures_util::{TryStreamExt, stream};
use poem::{
    IntoResponse, Response,
    http::{HeaderValue, header},
};
use poem_openapi::{
    ApiResponse, OpenApi,
    param::Path,
    registry::{MetaMediaType, MetaResponse, MetaResponses, MetaSchema, MetaSchemaRef, Registry},
};
use uuid::Uuid;

use super::profile::{self, Profile};
use crate::{
    api::Tag,
    app::App,
    auth::{Public, User},
    db::Tx,
    error::{Code, Error, Result},
    files::{Loose, RemoveObjects, thumbnails},
    http::{IfMatch, NoContent, Single, Upload, payload},
    jobs,
    limits::{Ask, Rate},
    types::WebUrl,
};

/// What is uploaded has at most so many bytes.
const MOST_BYTES: u64 = 5 << 20;
/// The longer side of what is kept, in pixels.
const SIDE: u32 = 512;
/// Small pictures are at most so large.
const MOST_SHOWN: usize = 2 << 20;
/// Pictures that somebody may send: one is made small at a time, for everybody.
const SENT_AN_HOUR: u32 = 20;
/// Pictures that one address may ask for: a list of people has many.
const SHOWN_AN_HOUR: u32 = 10_000;

pub struct AvatarApi;

#[OpenApi(tag = "Tag::Accounts")]
impl AvatarApi {
    /// Set one's picture.
    ///
    /// A PNG, JPEG, GIF, WebP or BMP of at most 5 MiB, in a form with the one part `file` or as it is. `avatar_url`
    /// leads to it then.
    #[oai(path = "/auth/user/avatar", method = "put", operation_id = "set_avatar")]
    async fn set(&self, who: User, expected: IfMatch, picture: Upload) -> Result<Single<Profile>> {
        let app = &*who.app;
        let rate = Rate::per_hour(SENT_AN_HOUR);
        who.origin.limit(app, &[Ask { policy: "avatars", key: who.id.to_string(), rate }]).await?;
        // Before anything is read for nothing.
        app.files.must_be_there()?;
        let tx = app.db.begin().await?;
        expected.check(profile::find(&tx, who.id).await?.version)?;
        drop(tx);
        let small = thumbnails::shrink(read(picture).await?, SIDE).await?;
        let id = Uuid::now_v7();
        let loose = Loose::new(&app.files, key(who.id, id));
        app.files.put(loose.path(), stream::iter([Ok(Bytes::from(small.bytes))])).await?;
        let tx = app.db.begin().await?;
        let before = lock(&tx, who.id).await?;
        expected.check(profile::find(&tx, who.id).await?.version)?;
        let url = address(app, &format!("/avatars/{id}"))?;
        store(&tx, app, who.id, Some(id), Some(&url)).await?;
        remove(&tx, app, who.id, before).await?;
        let profile = profile::find(&tx, who.id).await?;
        loose.keep();
        tx.commit().await?;
        Ok(Single(profile))
    }

    /// Remove one's picture.
    #[oai(path = "/auth/user/avatar", method = "delete", operation_id = "remove_avatar")]
    async fn remove(&self, who: User, expected: IfMatch) -> Result<NoContent> {
        let app = &*who.app;
        let tx = app.db.begin().await?;
        let before = lock(&tx, who.id).await?;
        let profile = profile::find(&tx, who.id).await?;
        expected.check(profile.version)?;
        if profile.avatar_url.is_none() {
            return Err(Error::new(Code::NotFound, "You have no picture."));
        }
        store(&tx, app, who.id, None, None).await?;
        remove(&tx, app, who.id, before).await?;
        tx.commit().await?;
        Ok(NoContent)
    }

    /// See a person's picture.
    ///
    /// For everybody who knows its address, which is somebody's `avatar_url`.
    #[oai(path = "/avatars/:avatar_id", method = "get", operation_id = "get_avatar")]
    async fn get(&self, who: Public<false>, avatar_id: Path<Uuid>) -> Result<Picture> {
        limit(&who).await?;
        let none = || Error::new(Code::NotFound, "There is no such picture.");
        let tx = who.app.db.begin().await?;
        let sql = "select id from platform.users where avatar_id = $1 and is_active";
        let user: Uuid = tx.query_opt(sql, &[&avatar_id.0]).await?.ok_or_else(none)?.try_get("id")?;
        drop(tx);
        // Another picture has another address. One that was removed is not shown for long.
        let cached = "private, max-age=3600, immutable".to_owned();
        let path = key(user, avatar_id.0);
        Picture::read(&who.app, &path, avatar_id.0, cached).await?.ok_or_else(none)
    }
}

/// Where a person's picture lies.
fn key(user: Uuid, avatar: Uuid) -> String {
    format!("users/{user}/{avatar}")
}

/// All of an upload, which is small.
async fn read(upload: Upload) -> Result<Vec<u8>> {
    if upload.announced().is_some_and(|bytes| bytes > MOST_BYTES) {
        return Err(payload::too_large(MOST_BYTES));
    }
    let (mut pieces, mut bytes) = (upload.into_bytes(), Vec::new());
    while let Some(piece) = pieces.try_next().await? {
        if (bytes.len() + piece.len()) as u64 > MOST_BYTES {
            return Err(payload::too_large(MOST_BYTES));
        }
        bytes.extend_from_slice(&piece);
    }
    match bytes.is_empty() {
        true => Err(Error::field(Code::Validation, "file", "required", "Send a picture: the body is empty.")),
        false => Ok(bytes),
    }
}

/// The picture that an account has, with the account's row locked.
async fn lock(tx: &Tx, user: Uuid) -> Result<Option<Uuid>> {
    let sql = "select avatar_id from platform.users where id = $1 for update";
    Ok(tx.query_one(sql, &[&user]).await?.try_get("avatar_id")?)
}

async fn store(tx: &Tx, app: &App, user: Uuid, avatar: Option<Uuid>, url: Option<&WebUrl>) -> Result<()> {
    tx.execute(
        "update platform.users set avatar_id = $2, avatar_url = $3, version = version + 1, updated_at = $4 \
         where id = $1",
        &[&user, &avatar, &url, &app.clock.now()],
    )
    .await?;
    Ok(())
}

/// Deletes a picture that is not shown any more.
async fn remove(tx: &Tx, app: &App, user: Uuid, avatar: Option<Uuid>) -> Result<()> {
    match avatar {
        Some(avatar) => jobs::enqueue(tx, app, &RemoveObjects { paths: vec![key(user, avatar)] }).await,
        None => Ok(()),
    }
}

/// Gives up an account's own picture, where `avatar_url` leads elsewhere or nowhere from now on. The account's row
/// is locked.
pub async fn give_up(tx: &Tx, app: &App, user: Uuid) -> Result<()> {
    let avatar = lock(tx, user).await?;
    if avatar.is_some() {
        tx.execute("update platform.users set avatar_id = null where id = $1", &[&user]).await?;
    }
    remove(tx, app, user, avatar).await
}

/// Where something of the API is for everybody.
pub fn address(app: &App, path: &str) -> Result<WebUrl> {
    let base = app.config.http.public_url.as_ref().unwrap_or(&app.config.mail.app_url);
    let address = format!("{}/api/v1{path}", base.trim_end_matches('/'));
    address.parse::<WebUrl>().map_err(|told| {
        Error::internal(format!(
            "http.public_url (HTTP_PUBLIC_URL) or mail.app_url (APP_URL) {told}: {address}"
        ))
    })
}

/// Counts somebody who looks at pictures.
pub async fn limit(who: &Public<false>) -> Result<()> {
    who.limit("pictures", Rate::per_hour(SHOWN_AN_HOUR)).await
}

/// 200 with a small picture that this service has made.
pub struct Picture {
    bytes: Vec<u8>,
    content_type: &'static str,
    /// Of which content it is.
    id: Uuid,
    cached: String,
}

impl Picture {
    /// The picture at a path of the store, if it is there. `id` changes with it; `cached` is for how long it may be
    /// shown without asking again.
    pub async fn read(app: &App, path: &str, id: Uuid, cached: String) -> Result<Option<Self>> {
        match app.files.get_small(path, MOST_SHOWN).await {
            Ok(bytes) => {
                Ok(Some(Self { content_type: thumbnails::type_of_picture(&bytes), bytes, id, cached }))
            }
            Err(error) if error.code() == Code::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl IntoResponse for Picture {
    fn into_response(self) -> Response {
        let mut response = Response::builder()
            .header(header::CONTENT_TYPE, self.content_type)
            .header(header::CONTENT_LENGTH, self.bytes.len())
            .header(header::ETAG, format!("\"{}\"", self.id))
            .body(self.bytes);
        if let Ok(value) = HeaderValue::from_str(&self.cached) {
            response.headers_mut().insert(header::CACHE_CONTROL, value);
        }
        response
    }
}

impl ApiResponse for Picture {
    fn meta() -> MetaResponses {
        let bytes = || MetaSchema {
            format: Some("binary"),
            example: Some("(the bytes of the picture)".into()),
            ..MetaSchema::new("string")
        };
        let of =
            |content_type| MetaMediaType { content_type, schema: MetaSchemaRef::Inline(Box::new(bytes())) };
        MetaResponses {
            responses: vec![MetaResponse {
                description: "The picture",
                status: Some(200),
                status_range: None,
                content: vec![of("image/png"), of("image/jpeg")],
                headers: Vec::new(),
            }],
        }
    }

    fn register(_registry: &mut Registry) {}
}
