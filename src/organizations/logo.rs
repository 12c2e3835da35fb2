//! An organization's logo: an image among its files, shown small to everybody.
//!
//! What is shown is the file's small picture, which this service has made: never the bytes that somebody sent.
//! It has one address for good, by the organization's id or slug, as it stands on the page where people log in.

use poem_openapi::{Object, OpenApi, param::Path, types::Example};
use serde::Deserialize;
use uuid::Uuid;

use super::{Organization, find, lock, told};
use crate::{
    accounts::avatar::{self, Picture},
    api::Tag,
    app::App,
    audit::Changes,
    auth::{Can, Public, permissions::SettingsManage},
    db::Tx,
    error::{Code, Error, Result},
    events::{self, EventType},
    files::{self, Purpose, Thumbnail, thumbnails},
    http::{Body, IfMatch, NoContent, Single},
    tenancy::fleet,
    types::{EXAMPLE_ID, WebUrl},
};

/// What is uploaded for a logo has at most so many bytes.
const MOST_BYTES: i64 = 5 << 20;
/// For so many seconds a logo is shown that was replaced.
const SHOWN_SECONDS: u32 = 300;

/// The file that becomes the logo.
#[derive(Debug, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(deny_unknown_fields, example)]
pub struct NewLogo {
    /// Of `POST /files`: a PNG, JPEG, GIF, WebP or BMP of at most 5 MiB that is not used anywhere yet.
    pub file_id: Uuid,
}

impl Example for NewLogo {
    fn example() -> Self {
        Self { file_id: EXAMPLE_ID }
    }
}

pub struct LogoApi;

#[OpenApi(tag = "Tag::Organizations")]
impl LogoApi {
    /// Set an organization's logo.
    ///
    /// The file is the organization's from then on; the one before it is removed.
    #[oai(path = "/organizations/:organization_id/logo", method = "put", operation_id = "set_logo")]
    async fn set(
        &self,
        who: Can<SettingsManage>,
        #[oai(name = "organization_id")] _id: Path<Uuid>,
        expected: IfMatch,
        new: Body<NewLogo>,
    ) -> Result<Single<Organization>> {
        let id = who.tenant.id();
        let tx = who.begin().await?;
        let uploaded = files::several(&tx, &[new.0.file_id]).await?.remove(&new.0.file_id);
        drop(tx);
        // Only what can be shown takes the place of what is: it is seen to now, whenever the job would.
        if uploaded.is_some_and(|file| file.thumbnail == Thumbnail::Pending && file.size <= MOST_BYTES) {
            thumbnails::make(&who.app, &who.tenant, new.0.file_id, false).await?;
        }
        let tx = who.begin().await?;
        lock(&tx, id).await?;
        let before = find(&tx, id, who.user_id).await?;
        expected.check(before.version)?;
        let file = files::take(&tx, &who, "file_id", new.0.file_id, Purpose::Logo).await?;
        if file.thumbnail != Thumbnail::Ready || file.size > MOST_BYTES {
            return Err(Error::invalid(
                "file_id",
                "must be a PNG, JPEG, GIF, WebP or BMP of at most 5 MiB and 8,192 pixels a side",
            ));
        }
        let replaced = file_of(&tx, id).await?;
        files::remove(&tx, &who.app, replaced.as_slice()).await?;
        put(&tx, &who.app, id, Some(file.id), Some(address(&who.app, id)?)).await?;
        let after = find(&tx, id, who.user_id).await?;
        let changes = Changes::between(&told(&before), &told(&after)).about("logo", &file.id.to_string());
        events::record(&tx, &who.app, &*who, EventType::OrganizationUpdated, id, changes).await?;
        tx.commit().await?;
        Ok(Single(after))
    }

    /// Remove an organization's logo.
    #[oai(path = "/organizations/:organization_id/logo", method = "delete", operation_id = "remove_logo")]
    async fn remove(
        &self,
        who: Can<SettingsManage>,
        #[oai(name = "organization_id")] _id: Path<Uuid>,
        expected: IfMatch,
    ) -> Result<NoContent> {
        let id = who.tenant.id();
        let tx = who.begin().await?;
        lock(&tx, id).await?;
        let before = find(&tx, id, who.user_id).await?;
        expected.check(before.version)?;
        if before.logo_url.is_none() {
            return Err(Error::new(Code::NotFound, "The organization has no logo."));
        }
        let removed = file_of(&tx, id).await?;
        files::remove(&tx, &who.app, removed.as_slice()).await?;
        put(&tx, &who.app, id, None, None).await?;
        let after = find(&tx, id, who.user_id).await?;
        let changes = Changes::between(&told(&before), &told(&after));
        events::record(&tx, &who.app, &*who, EventType::OrganizationUpdated, id, changes).await?;
        tx.commit().await?;
        Ok(NoContent)
    }

    /// See an organization's logo.
    ///
    /// For everybody who knows the organization's id or slug; no side has more than 256 pixels.
    #[oai(path = "/logos/:organization", method = "get", operation_id = "get_logo")]
    async fn get(&self, who: Public<false>, organization: Path<String>) -> Result<Picture> {
        avatar::limit(&who).await?;
        let none = || Error::new(Code::NotFound, "There is no such logo.");
        let tenant = fleet::tenant(&who.app.directory, &organization.0).await?;
        let tenant = tenant.filter(|tenant| !tenant.is_deleted()).ok_or_else(none)?;
        let tx = who.app.db.begin().await?;
        let file = file_of(&tx, tenant.id()).await?.ok_or_else(none)?;
        drop(tx);
        let path = files::thumbnail_key(tenant.id(), file);
        let cached = format!("public, max-age={SHOWN_SECONDS}");
        Picture::read(&who.app, &path, file, cached).await?.ok_or_else(none)
    }
}

/// Where everybody sees the logo of an organization.
pub fn address(app: &App, organization: Uuid) -> Result<WebUrl> {
    avatar::address(app, &format!("/logos/{organization}"))
}

/// The file that is the logo, where it is one.
async fn file_of(tx: &Tx, organization: Uuid) -> Result<Option<Uuid>> {
    let sql = "select logo_file_id from platform.organizations where id = $1";
    match tx.query_opt(sql, &[&organization]).await? {
        Some(row) => Ok(row.try_get("logo_file_id")?),
        None => Ok(None),
    }
}

async fn put(tx: &Tx, app: &App, organization: Uuid, file: Option<Uuid>, url: Option<WebUrl>) -> Result<()> {
    tx.execute(
        "update platform.organizations set logo_file_id = $2, logo_url = $3, version = version + 1, updated_at = $4 \
         where id = $1",
        &[&organization, &file, &url, &app.clock.now()],
    )
    .await?;
    Ok(())
}
