//! Files: one mechanism for attachments, avatars, logos, imports and exports.
//!
//! The bytes lie in one [`Store`], a folder or S3; the row in the organization's `files` tells of them. They
//! are written before the row and deleted by a job after it ([`RemoveObjects`]), so that a crash leaves at
//! worst an object without a row, which the nightly collection removes ([`begin_collecting`]). No transaction
//! is open while bytes come or go.
//!
//! A file is uploaded first and named where it belongs after that ([`take`]). One that nothing names is
//! removed after a day.

mod api;
mod collect;
mod content;
mod links;
mod store;
pub mod thumbnails;
mod uploads;

use std::collections::HashMap;

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use futures_util::{Stream, stream::BoxStream};
use poem_openapi::{Object, types::Example};
use serde::Serialize;
use uuid::Uuid;

pub use api::FilesApi;
pub use collect::{CollectFiles, CollectStrays, RemoveObjects, begin_collecting};
pub use content::{PICTURES, clean_name, type_of};
pub use links::{FileLink, link};
pub use store::{Store, Stored};
pub use thumbnails::MakeThumbnail;

use crate::{
    app::App,
    auth::{Member, Permission},
    billing::{Resource, limits},
    db::{Row, TenantTx},
    error::{Error, Result},
    http::Versioned,
    jobs::{self, Terms},
    tenancy::Tenant,
    types::{EXAMPLE_ID, example_time, text_enum},
};

/// How long an upload waits to be named somewhere.
const UNNAMED: TimeDelta = TimeDelta::hours(24);
/// Objects that one job removes at most.
const REMOVED_BY_ONE_JOB: usize = 200;

text_enum! {
    /// What a file is for its users.
    Kind { Image = "image", Video = "video", Document = "document", Other = "other" }
}

text_enum! {
    /// What a file is there for.
    Purpose {
        /// To be attached to something.
        Upload = "upload",
        /// The organization's.
        Logo = "logo",
        /// To be read into the organization.
        Import = "import",
        /// Made of the organization's data.
        Export = "export",
        /// Says how an import went.
        Report = "report",
    }
}

impl Purpose {
    /// Whether it counts as storage. What jobs make for a while does not: an organization that is at its limit
    /// takes its data along, and reads what was wrong with an import.
    fn counts(self) -> bool {
        !matches!(self, Self::Export | Self::Report)
    }
}

text_enum! {
    /// Whether there is a small picture of an image.
    Thumbnail {
        /// It is no image that one is made of.
        None = "none",
        /// It is being made.
        Pending = "pending",
        Ready = "ready",
        /// The image is too large, or is not what it says.
        Refused = "refused",
    }
}

/// A file.
#[derive(Clone, Debug, Serialize, Object)]
#[oai(example)]
pub struct File {
    pub id: Uuid,
    pub name: String,
    /// Bytes.
    pub size: i64,
    /// Of the content, in hexadecimal digits.
    pub sha256: String,
    /// What the content is, whatever the name or the sender says. What a browser could run is
    /// `application/octet-stream`.
    pub content_type: String,
    pub kind: Kind,
    pub purpose: Purpose,
    pub uploaded_by: Uuid,
    pub thumbnail: Thumbnail,
    /// When it is removed: an upload that nothing names, or an export. Null where it is in use.
    pub expires_at: Option<DateTime<Utc>>,
    pub created_at: DateTime<Utc>,
}

impl Versioned for File {
    /// What is uploaded does not change.
    fn version(&self) -> i64 {
        1
    }
}

impl Example for File {
    fn example() -> Self {
        Self {
            id: EXAMPLE_ID,
            name: "floor-plan.png".into(),
            size: 48_213,
            sha256: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855".into(),
            content_type: "image/png".into(),
            kind: Kind::Image,
            purpose: Purpose::Upload,
            uploaded_by: EXAMPLE_ID,
            thumbnail: Thumbnail::Ready,
            expires_at: None,
            created_at: example_time(),
        }
    }
}

const COLUMNS: &str =
    "id, name, size, sha256, content_type, kind, purpose, uploaded_by, thumbnail, expires_at, created_at";

fn from_row(row: &Row) -> Result<File> {
    Ok(File {
        id: row.try_get("id")?,
        name: row.try_get("name")?,
        size: row.try_get("size")?,
        sha256: row.try_get("sha256")?,
        content_type: row.try_get("content_type")?,
        kind: row.try_get("kind")?,
        purpose: row.try_get("purpose")?,
        uploaded_by: row.try_get("uploaded_by")?,
        thumbnail: row.try_get("thumbnail")?,
        expires_at: row.try_get("expires_at")?,
        created_at: row.try_get("created_at")?,
    })
}

/// Where everything of an organization lies.
pub fn folder(organization: Uuid) -> String {
    format!("organizations/{organization}")
}

/// Where a file's bytes lie.
pub fn key(organization: Uuid, file: Uuid) -> String {
    format!("{}/{file}", folder(organization))
}

/// Where the small picture of an image lies.
pub fn thumbnail_key(organization: Uuid, file: Uuid) -> String {
    format!("{}.thumbnail", key(organization, file))
}

/// A file of the organization.
pub async fn find(tx: &TenantTx, id: Uuid) -> Result<File> {
    let sql = format!("select {COLUMNS} from files where id = $1");
    from_row(&tx.query_opt(&sql, &[&id]).await?.ok_or_else(|| Error::not_found("file"))?)
}

/// Those of these files that are there, by id.
pub async fn several(tx: &TenantTx, ids: &[Uuid]) -> Result<HashMap<Uuid, File>> {
    let sql = format!("select {COLUMNS} from files where id = any ($1)");
    let rows = tx.query(&sql, &[&ids]).await?;
    rows.iter().map(|row| from_row(row).map(|file| (file.id, file))).collect()
}

/// Takes an upload into use: one of the caller's own, or of anybody's for who may write all files, that
/// nothing names yet. `field` is where the caller named it.
pub async fn take(tx: &TenantTx, who: &Member, field: &str, id: Uuid, purpose: Purpose) -> Result<File> {
    let sql = format!("select {COLUMNS} from files where id = $1 for update");
    let found = tx.query_opt(&sql, &[&id]).await?.map(|row| from_row(&row)).transpose()?;
    let mut file =
        found.filter(|file| file.uploaded_by == who.user_id || who.may(Permission::FilesWrite)).ok_or_else(
            || Error::invalid(field, "There is no such file of yours. Upload it first: POST /files."),
        )?;
    let now = who.app.clock.now();
    if file.purpose != Purpose::Upload || file.expires_at.is_none() {
        return Err(Error::invalid(field, "This file is in use already. Upload it once more."));
    }
    if file.expires_at.is_some_and(|end| end <= now) {
        return Err(Error::invalid(
            field,
            "This file was uploaded more than a day ago. Upload it once more.",
        ));
    }
    tx.execute("update files set purpose = $2, expires_at = null where id = $1", &[&id, &purpose]).await?;
    (file.purpose, file.expires_at) = (purpose, None);
    Ok(file)
}

/// Removes files for good: their rows now, their bytes by a job after the commit.
pub async fn remove(tx: &TenantTx, app: &App, ids: &[Uuid]) -> Result<()> {
    let sql = "delete from files where id = any ($1) returning id, size, purpose, thumbnail";
    let rows = tx.query(sql, &[&ids]).await?;
    let (mut size, mut paths) = (0, Vec::new());
    for row in &rows {
        let id = row.try_get("id")?;
        if row.try_get::<_, Purpose>("purpose")?.counts() {
            size += row.try_get::<_, i64>("size")?;
        }
        paths.push(key(tx.organization(), id));
        if row.try_get::<_, Thumbnail>("thumbnail")? != Thumbnail::None {
            paths.push(thumbnail_key(tx.organization(), id));
        }
    }
    if size > 0 {
        limits::release(tx, Resource::Storage, size).await?;
    }
    for paths in paths.chunks(REMOVED_BY_ONE_JOB) {
        jobs::enqueue(tx, app, &RemoveObjects { paths: paths.to_vec() }).await?;
    }
    Ok(())
}

/// Has the small pictures made that are still to be made: the jobs of rows that came from elsewhere did not come
/// along.
pub async fn make_pending_thumbnails(tx: &TenantTx, app: &App) -> Result<()> {
    for row in tx.query("select id from files where thumbnail = 'pending' order by id", &[]).await? {
        let file_id: Uuid = row.try_get("id")?;
        let terms = Terms { unique: Some(file_id.to_string()), ..Terms::default() };
        jobs::enqueue_on(tx, app, &MakeThumbnail { file_id }, terms).await?;
    }
    Ok(())
}

/// Makes a file of what a job has to tell; it is there for as long as `keep` says.
#[allow(clippy::too_many_arguments)]
pub async fn make(
    app: &App,
    tenant: &Tenant,
    uploaded_by: Uuid,
    name: &str,
    content_type: &str,
    purpose: Purpose,
    keep: Option<TimeDelta>,
    bytes: impl Stream<Item = Result<Bytes>> + Send + Unpin,
) -> Result<File> {
    let id = Uuid::now_v7();
    let loose = Loose::new(&app.files, key(tenant.id(), id));
    let stored = app.files.put(&loose.path, bytes).await?;
    let now = app.clock.now();
    let file = File {
        id,
        name: clean_name(name)?,
        size: stored.size as i64,
        sha256: stored.sha256,
        content_type: content_type.into(),
        kind: content::kind_of(content_type),
        purpose,
        uploaded_by,
        thumbnail: Thumbnail::None,
        expires_at: keep.map(|keep| now + keep),
        created_at: now,
    };
    let tx = tenant.begin().await?;
    insert(&tx, app, &file).await?;
    loose.keep();
    tx.commit().await?;
    Ok(file)
}

/// Takes the storage that it counts as, and writes the row.
async fn insert(tx: &TenantTx, app: &App, file: &File) -> Result<()> {
    if file.purpose.counts() {
        limits::reserve(tx, app, Resource::Storage, file.size).await?;
    }
    tx.execute(
        "insert into files (id, name, size, sha256, content_type, kind, purpose, uploaded_by, thumbnail, expires_at, \
         created_at) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        &[
            &file.id,
            &file.name,
            &file.size,
            &file.sha256,
            &file.content_type,
            &file.kind,
            &file.purpose,
            &file.uploaded_by,
            &file.thumbnail,
            &file.expires_at,
            &file.created_at,
        ],
    )
    .await?;
    Ok(())
}

/// Reads a file in pieces.
pub async fn read(app: &App, organization: Uuid, file: Uuid) -> Result<BoxStream<'static, Result<Bytes>>> {
    app.files.get(&key(organization, file)).await
}

/// An object that no row tells of yet: it goes again with this, unless it is kept.
pub struct Loose {
    store: Store,
    path: String,
    kept: bool,
}

impl Loose {
    pub fn new(store: &Store, path: String) -> Self {
        Self { store: store.clone(), path, kept: false }
    }

    pub fn path(&self) -> &str {
        &self.path
    }

    /// To be said before the commit that tells of it: a commit whose answer is lost may have happened, and an
    /// object too many is collected, while one too few is lost.
    pub fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Loose {
    fn drop(&mut self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if self.kept || !self.store.is_there() {
            return;
        }
        let (store, path) = (self.store.clone(), std::mem::take(&mut self.path));
        runtime.spawn(async move {
            if let Err(error) = store.delete(&path).await {
                tracing::warn!(%error, path, "an object without a row stays until it is collected");
            }
        });
    }
}
