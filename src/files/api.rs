//! Files over HTTP: up and down in pieces.

use std::time::{Duration, Instant};

use bytes::Bytes;
use chrono::TimeDelta;
use futures_util::{Stream, StreamExt, stream};
use poem_openapi::{
    Object, OpenApi,
    param::{Header, Path, Query},
    types::Example,
};
use serde::Deserialize;
use uuid::Uuid;

use super::{
    COLUMNS, File, FileLink, Kind, Loose, MakeThumbnail, PICTURES, Purpose, Stored, Thumbnail, UNNAMED,
    clean_name, find, from_row, insert, key, link, links, remove, thumbnail_key, thumbnails, type_of,
};
use crate::{
    api::Tag,
    app::App,
    audit::{self, Actor, Changes},
    auth::{
        Can, Member, Permission, Public,
        permissions::{FilesRead, FilesWriteOwn},
        standing::{self, Standing},
    },
    billing::{Resource, limits},
    db::{Select, TenantTx},
    error::{Code, Error, Result},
    events::{self, EventType},
    exchange,
    http::{
        Body, Created, Download, IfMatch, Json, NoContent, Outgoing, Part, Single, Upload, payload::too_large,
    },
    jobs,
    page::{Cursor, CursorPage, Stretch},
    tenancy::fleet,
};

/// What a small picture has at most.
const MOST_OF_A_THUMBNAIL: usize = 2 * 1024 * 1024;
/// How long a link is good at most that somebody makes who only reads.
const LONGEST_OF_A_READER: TimeDelta = TimeDelta::days(1);
/// Who took longer to send a file is asked again whether they may.
const LONG: Duration = Duration::from_secs(10);

/// A link that is wanted.
#[derive(Debug, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(deny_unknown_fields, example)]
pub struct NewFileLink {
    /// Seconds that it is good for, from 1 to 604800 (7 days), or 86400 (a day) for who may not upload files; 15 minutes
    /// where it is absent.
    pub expires_in_seconds: Option<u32>,
    /// Whether browsers may show it instead of saving it; for PNG, JPEG, GIF, WebP and BMP.
    pub inline: Option<bool>,
}

impl Example for NewFileLink {
    fn example() -> Self {
        Self { expires_in_seconds: Some(3600), inline: None }
    }
}

pub struct FilesApi;

#[OpenApi(tag = "Tag::Files")]
impl FilesApi {
    /// Upload a file.
    ///
    /// As a form with the one part `file`, or as the body, in any other type, with `name`. Name it where it
    /// belongs after that: it is removed after a day otherwise. What it is, is told by its content. An
    /// `Idempotency-Key` takes a `Content-Length`, and the same key with that length is the same request:
    /// compare `sha256`.
    #[oai(path = "/files", method = "post", operation_id = "upload_file")]
    async fn upload(
        &self,
        who: Can<FilesWriteOwn>,
        /// How the file is called; where it is absent, as the form says.
        name: Query<Option<String>>,
        file: Upload,
    ) -> Result<Created<File>> {
        let name = name.0.or_else(|| file.name().map(str::to_owned)).ok_or_else(|| {
            Error::field(Code::Validation, "name", "required", "Say how the file is called: ?name=report.pdf")
        })?;
        let file = receive(&who, &clean_name(&name)?, file).await?;
        Ok(Created { location: format!("/api/v1/files/{}", file.id), value: file })
    }

    /// List files, newest first.
    ///
    /// Those that are in use, and one's own uploads. Who may write all files sees all of them.
    #[oai(path = "/files", method = "get", operation_id = "list_files")]
    async fn list(
        &self,
        who: Can<FilesRead>,
        kind: Query<Option<Kind>>,
        purpose: Query<Option<Purpose>>,
        cursor: Query<Option<Cursor>>,
        limit: Query<Option<u32>>,
    ) -> Result<Json<CursorPage<File>>> {
        let stretch = Stretch::new(cursor.0, limit.0)?;
        let now = who.app.clock.now();
        let tx = who.begin().await?;
        let readable = exchange::readable(&who);
        let mut select = Select::new(COLUMNS, "files")
            .and("(expires_at is null or expires_at > ?)", &now)
            .and_if("kind = ?", &kind.0)
            .and_if("purpose = ?", &purpose.0);
        if !who.may(Permission::FilesWrite) {
            let shown = "(uploaded_by = ? or expires_at is null and purpose in ('upload', 'logo'))";
            select = select.and(shown, &who.user_id);
        }
        let readable_exports =
            "not exists (select 1 from exports e where e.file_id = files.id and e.resource <> all (?))";
        let rows = select.and(readable_exports, &readable).newest(&tx, &stretch).await?;
        let files = rows.iter().map(from_row).collect::<Result<_>>()?;
        Ok(Json(stretch.answer(files, |file: &File| file.id)))
    }

    /// See what is known of a file.
    #[oai(path = "/files/:file_id", method = "get", operation_id = "get_file")]
    async fn get(&self, who: Can<FilesRead>, file_id: Path<Uuid>) -> Result<Single<File>> {
        let tx = who.begin().await?;
        Ok(Single(find_shown(&tx, &who, file_id.0).await?))
    }

    /// Download a file.
    ///
    /// Parts can be asked for, one at a time. No browser runs what is in it.
    #[oai(path = "/files/:file_id/content", method = "get", operation_id = "download_file")]
    async fn content(
        &self,
        who: Can<FilesRead>,
        file_id: Path<Uuid>,
        /// Whether a browser may show it, where it is a picture, instead of saving it.
        inline: Query<Option<bool>>,
        /// `bytes=0-1023`
        #[oai(name = "Range")]
        range: Header<Option<String>>,
        /// The `ETag` that the file must still have for `Range` to count.
        #[oai(name = "If-Range")]
        if_range: Header<Option<String>>,
    ) -> Result<Download> {
        let tx = who.begin().await?;
        let file = find_shown(&tx, &who, file_id.0).await?;
        drop(tx);
        let wanted = Wanted { range: range.0, if_range: if_range.0, inline: inline.0.unwrap_or(false) };
        send(&who.app, who.tenant.id(), &file, &wanted, who.origin.request_id.as_deref()).await
    }

    /// Download the small picture of an image.
    ///
    /// 409 while it is being made, 404 where there will be none.
    #[oai(path = "/files/:file_id/thumbnail", method = "get", operation_id = "download_thumbnail")]
    async fn thumbnail(&self, who: Can<FilesRead>, file_id: Path<Uuid>) -> Result<Download> {
        let tx = who.begin().await?;
        let file = find_shown(&tx, &who, file_id.0).await?;
        drop(tx);
        match file.thumbnail {
            Thumbnail::Ready => {}
            Thumbnail::Pending => {
                return Err(
                    Error::conflict("The thumbnail is being made. Try again in a moment.").retry_after(1)
                );
            }
            Thumbnail::None | Thumbnail::Refused => return Err(Error::not_found("thumbnail")),
        }
        let path = thumbnail_key(who.tenant.id(), file.id);
        let bytes = who.app.files.get_small(&path, MOST_OF_A_THUMBNAIL).await?;
        let told = Outgoing {
            name: &file.name,
            content_type: thumbnails::type_of_picture(&bytes),
            size: bytes.len() as u64,
            etag: format!("\"{}-thumbnail\"", file.sha256),
            inline: true,
        };
        Ok(Download::new(&told, &Part::Whole, stream::iter([Ok(Bytes::from(bytes))])))
    }

    /// Make a link by which anybody can download a file.
    ///
    /// For a while, without logging in; also after whoever made it has left. Deleting the file ends it. The audit log
    /// says who made it.
    #[oai(path = "/files/:file_id/links", method = "post", operation_id = "create_file_link")]
    async fn create_link(
        &self,
        who: Can<FilesRead>,
        file_id: Path<Uuid>,
        new: Body<NewFileLink>,
    ) -> Result<Created<FileLink>> {
        let seconds = new.0.expires_in_seconds.map(|seconds| TimeDelta::seconds(seconds.into()));
        let longest = if who.may(Permission::FilesWriteOwn) { links::LONGEST } else { LONGEST_OF_A_READER };
        if seconds.is_some_and(|asked| asked < TimeDelta::seconds(1) || asked > longest) {
            let told = format!("must be from 1 to {}", longest.num_seconds());
            return Err(Error::invalid("expires_in_seconds", told));
        }
        let tx = who.begin().await?;
        let file = find_shown(&tx, &who, file_id.0).await?;
        let made = link(&who.app, who.tenant.id(), file.id, seconds, new.0.inline.unwrap_or(false))?;
        // Nobody needs to hear of it, but whoever looks for a leak must find it.
        let changes = Changes::none(&file).about("link_expires_at", &made.expires_at.to_rfc3339());
        audit::record(&tx, &who.app, &Actor::from(&*who), "file.linked", file.id, &changes).await?;
        tx.commit().await?;
        Ok(Created { location: made.url.clone(), value: made })
    }

    /// Download a file by a link.
    #[oai(path = "/downloads/:token", method = "get", operation_id = "download_by_link")]
    async fn download(
        &self,
        caller: Public<false>,
        token: Path<String>,
        /// `bytes=0-1023`
        #[oai(name = "Range")]
        range: Header<Option<String>>,
        /// The `ETag` that the file must still have for `Range` to count.
        #[oai(name = "If-Range")]
        if_range: Header<Option<String>>,
    ) -> Result<Download> {
        let app = &caller.app;
        let Some(linked) = links::open(app, &token.0) else {
            // Who guesses is a stranger; who has a link was let in by somebody.
            caller.origin.limit_stranger(app).await?;
            return Err(Error::new(Code::NotFound, "There is no such link. Check that it is complete."));
        };
        if linked.expires_at <= app.clock.now() {
            return Err(links::expired());
        }
        let gone = || Error::new(Code::NotFound, "This file is not there any more.");
        let tenant = fleet::tenant_by_id(&app.directory, linked.organization).await?;
        let tenant = tenant.filter(|tenant| !tenant.is_deleted()).ok_or_else(gone)?;
        if tenant.is_suspended() {
            return Err(Error::new(Code::TenantSuspended, "The organization of this file is suspended."));
        }
        let tx = tenant.begin().await?;
        let file = find(&tx, linked.file).await.map_err(|error| match error.code() {
            Code::NotFound => gone(),
            _ => error,
        })?;
        drop(tx);
        if has_had_its_time(app, &file) {
            return Err(gone());
        }
        let wanted = Wanted { range: range.0, if_range: if_range.0, inline: linked.inline };
        send(app, tenant.id(), &file, &wanted, caller.origin.request_id.as_deref()).await
    }

    /// Delete a file that is not in use.
    ///
    /// What is attached somewhere goes with what it is attached to.
    #[oai(path = "/files/:file_id", method = "delete", operation_id = "delete_file")]
    async fn delete(
        &self,
        who: Can<FilesWriteOwn>,
        file_id: Path<Uuid>,
        expected: IfMatch,
    ) -> Result<NoContent> {
        let tx = who.begin().await?;
        tx.query("select id from files where id = $1 for update", &[&file_id.0]).await?;
        let file = find_shown(&tx, &who, file_id.0).await?;
        expected.check(1)?;
        if file.uploaded_by != who.user_id && !who.may(Permission::FilesWrite) {
            return Err(Error::denied("This file is somebody else's."));
        }
        if file.expires_at.is_none() {
            return Err(Error::conflict(
                "This file is in use. Remove what it is attached to, and it goes too.",
            ));
        }
        remove(&tx, &who.app, &[file.id]).await?;
        let changes = Changes::deleted(&file);
        events::record(&tx, &who.app, &*who, EventType::FileDeleted, file.id, changes).await?;
        tx.commit().await?;
        Ok(NoContent)
    }
}

/// A file that the caller may see: what is in use, one's own, and everything for who may write all files.
async fn find_shown(tx: &TenantTx, who: &Member, id: Uuid) -> Result<File> {
    let file = find(tx, id).await?;
    let in_use = file.expires_at.is_none() && matches!(file.purpose, Purpose::Upload | Purpose::Logo);
    let may_see = in_use || file.uploaded_by == who.user_id || who.may(Permission::FilesWrite);
    // A key has the files of its maker, and may read less.
    let may_see = may_see
        && (!matches!(file.purpose, Purpose::Export | Purpose::Report)
            || exchange::may_see_file(tx, who, id).await?);
    match may_see && !has_had_its_time(&who.app, &file) {
        true => Ok(file),
        false => Err(Error::not_found("file")),
    }
}

/// Whether it is only there until the next collection.
fn has_had_its_time(app: &App, file: &File) -> bool {
    file.expires_at.is_some_and(|end| end <= app.clock.now())
}

/// What a caller says about the form of the answer.
struct Wanted {
    range: Option<String>,
    if_range: Option<String>,
    inline: bool,
}

async fn send(
    app: &App,
    organization: Uuid,
    file: &File,
    wanted: &Wanted,
    request_id: Option<&str>,
) -> Result<Download> {
    let told = Outgoing {
        name: &file.name,
        content_type: &file.content_type,
        size: file.size as u64,
        etag: format!("\"{}\"", file.sha256),
        inline: wanted.inline && PICTURES.contains(&file.content_type.as_str()),
    };
    let part = Part::of(wanted.range.as_deref(), wanted.if_range.as_deref(), told.size, &told.etag);
    let path = key(organization, file.id);
    let bytes = match &part {
        Part::Whole => app.files.get(&path).await?,
        Part::Bytes(range) => app.files.get_range(&path, range.clone()).await?,
        Part::Nowhere => return Ok(Download::nowhere(told.size, request_id.unwrap_or_default())),
    };
    Ok(Download::new(&told, &part, bytes))
}

/// Takes a file in: bytes first, with no transaction open, and then the row that tells of them.
async fn receive(who: &Member, name: &str, upload: Upload) -> Result<File> {
    let (app, began) = (&*who.app, Instant::now());
    app.files.must_be_there()?;
    let _place = app.files.uploads().of(who.tenant.id())?;
    let room = room(who, upload.announced()).await?;
    let id = Uuid::now_v7();
    let loose = Loose::new(&app.files, key(who.tenant.id(), id));
    let bytes = bounded(upload.into_bytes(), app.config.files.max_bytes, room);
    let stored = match app.files.put(loose.path(), bytes).await {
        Err(error) if error.code() == Code::PlanLimit => return Err(refusal(who, room).await),
        stored => stored?,
    };
    if stored.size == 0 {
        return Err(Error::invalid("file", "is empty: it has no bytes"));
    }
    if began.elapsed() > LONG {
        must_still_be_allowed(who).await?;
    }
    let file = described(app, id, name, who.user_id, stored);
    let tx = who.begin().await?;
    insert(&tx, app, &file).await?;
    if file.thumbnail == Thumbnail::Pending {
        jobs::enqueue(&tx, app, &MakeThumbnail { file_id: id }).await?;
    }
    events::record(&tx, app, who, EventType::FileUploaded, id, Changes::created(&file)).await?;
    loose.keep();
    tx.commit().await?;
    Ok(file)
}

fn described(app: &App, id: Uuid, name: &str, uploaded_by: Uuid, stored: Stored) -> File {
    let (content_type, kind) = type_of(name, &stored.head);
    let now = app.clock.now();
    let is_picture = PICTURES.contains(&content_type);
    File {
        id,
        name: name.to_owned(),
        size: stored.size as i64,
        sha256: stored.sha256,
        content_type: content_type.to_owned(),
        kind,
        purpose: Purpose::Upload,
        uploaded_by,
        thumbnail: if is_picture { Thumbnail::Pending } else { Thumbnail::None },
        expires_at: Some(now + UNNAMED),
        created_at: now,
    }
}

/// Bytes that the plan leaves; refuses at once what will not fit. Others may be faster: it is taken for sure
/// with the row.
async fn room(who: &Member, announced: Option<u64>) -> Result<Option<u64>> {
    let tx = who.begin().await?;
    let there = limits::ask(&tx, &who.app, Resource::Storage).await?;
    let Some(limit) = there.limit else { return Ok(None) };
    let room = (limit - there.used).max(0) as u64;
    if let Some(more) = announced.filter(|more| *more > room) {
        // For its refusal only: nothing of this is committed.
        limits::reserve(&tx, &who.app, Resource::Storage, i64::try_from(more).unwrap_or(i64::MAX)).await?;
    }
    Ok(Some(room))
}

/// The answer to a file that was found not to fit on its way.
async fn refusal(who: &Member, room: Option<u64>) -> Error {
    let ask = async {
        let tx = who.begin().await?;
        let more = i64::try_from(room.unwrap_or_default()).unwrap_or(i64::MAX).saturating_add(1);
        limits::reserve(&tx, &who.app, Resource::Storage, more).await
    };
    match ask.await {
        Err(error) => error,
        Ok(()) => Error::unavailable("There was no room for this file, and now there is. Send it again.", 1),
    }
}

/// The bytes of a file as long as they are not too many.
fn bounded(
    bytes: impl Stream<Item = Result<Bytes>> + Send + 'static,
    most: u64,
    room: Option<u64>,
) -> impl Stream<Item = Result<Bytes>> + Send + Unpin {
    let mut size = 0;
    let counted = bytes.map(move |piece| {
        let piece = piece?;
        size += piece.len() as u64;
        if size > most {
            return Err(too_large(most));
        }
        if room.is_some_and(|room| size > room) {
            return Err(Error::new(Code::PlanLimit, "The plan has no room for this file."));
        }
        Ok(piece)
    });
    Box::pin(counted)
}

/// Somebody may have been shut out while their file came.
async fn must_still_be_allowed(who: &Member) -> Result<()> {
    let standing = Standing {
        user: who.user_id,
        organization: who.tenant.id(),
        session: who.session,
        key: who.key.map(|key| key.id),
        address: who.origin.address,
    };
    let now = standing::now(&who.app, &[standing]).await?;
    match now.first().copied().flatten().is_some_and(|may| may.contains(Permission::FilesWriteOwn)) {
        true => Ok(()),
        false => Err(Error::denied("You may not upload files here any more.")),
    }
}
