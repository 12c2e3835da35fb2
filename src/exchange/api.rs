//! Imports and exports as they are watched, whatever they are of.

use poem_openapi::{
    OpenApi,
    param::{Path, Query},
};
use uuid::Uuid;

use super::{
    Export, Import, exports,
    imports::{self, ImportState},
    readable,
    run::RunImports,
};
use crate::{
    api::Tag,
    auth::{
        Can, Member, Permission,
        permissions::{FilesRead, FilesWriteOwn},
    },
    db::Select,
    error::{Error, Result},
    events::EventType,
    http::{Json, Single},
    page::{Cursor, CursorPage, Stretch},
};

pub struct ExchangeApi;

/// Whose imports and exports somebody sees: their own, or with `files:write` everybody's.
fn whose(who: &Member) -> Option<Uuid> {
    (!who.may(Permission::FilesWrite)).then_some(who.user_id)
}

fn sees(who: &Member, requested_by: Uuid) -> bool {
    whose(who).is_none_or(|user| user == requested_by)
}

#[OpenApi(tag = "Tag::Exchange")]
impl ExchangeApi {
    /// List imports.
    ///
    /// Newest first; one's own, or with `files:write` everybody's, of what one may read. They are told of for 90
    /// days.
    #[oai(path = "/imports", method = "get", operation_id = "list_imports")]
    async fn imports(
        &self,
        who: Can<FilesRead>,
        cursor: Query<Option<Cursor>>,
        limit: Query<Option<u32>>,
    ) -> Result<Json<CursorPage<Import>>> {
        let stretch = Stretch::new(cursor.0, limit.0)?;
        let tx = who.begin().await?;
        let (whose, readable) = (whose(&who), readable(&who));
        let select = Select::new(imports::COLUMNS, "imports")
            .and_if("requested_by = ?", &whose)
            .and("resource = any (?)", &readable);
        let rows = select.newest(&tx, &stretch).await?;
        let all = rows.iter().map(imports::from_row).collect::<Result<_>>()?;
        Ok(Json(stretch.answer(all, |import: &Import| import.id)))
    }

    /// See an import.
    ///
    /// `state` tells how it stands and `lines_done` how far it is, at least every other second while it is
    /// worked on; with `If-None-Match` the answer is 304 where nothing is new. Takes the permission to read what it
    /// is of as well. The events `import.completed` and
    /// `import.failed` tell that it has come to its end.
    #[oai(path = "/imports/:import_id", method = "get", operation_id = "get_import")]
    async fn import(&self, who: Can<FilesRead>, import_id: Path<Uuid>) -> Result<Single<Import>> {
        let tx = who.begin().await?;
        let import = imports::find(&tx, import_id.0).await?;
        match sees(&who, import.requested_by) && readable(&who).contains(&import.resource.as_str()) {
            true => Ok(Single(import)),
            false => Err(Error::not_found("import")),
        }
    }

    /// Cancel an import.
    ///
    /// What was written until then stays. To import the file again goes on with the rest, as long as its lines
    /// have external ids.
    #[oai(path = "/imports/:import_id/cancel", method = "post", operation_id = "cancel_import")]
    async fn cancel(&self, who: Can<FilesWriteOwn>, import_id: Path<Uuid>) -> Result<Single<Import>> {
        let tx = who.begin().await?;
        let before = imports::find_to_change(&tx, import_id.0).await?;
        if !sees(&who, before.requested_by) {
            return Err(Error::not_found("import"));
        }
        if !before.state.is_open() {
            return Err(Error::conflict("The import has come to its end already."));
        }
        let mut import = before.clone();
        (import.state, import.message) = (ImportState::Canceled, None);
        let what = EventType::ImportCanceled;
        let import = imports::finish(&tx, &who.app, &*who, what, &before, import).await?;
        if imports::next(&tx).await?.is_some() {
            // Those behind it do not depend on how it is with the job of this one.
            RunImports::enqueue(&tx, &who.app, None).await?;
        }
        tx.commit().await?;
        Ok(Single(import))
    }

    /// List exports.
    ///
    /// Newest first; one's own, or with `files:write` everybody's, of what one may read. They are told of for 90
    /// days.
    #[oai(path = "/exports", method = "get", operation_id = "list_exports")]
    async fn exports(
        &self,
        who: Can<FilesRead>,
        cursor: Query<Option<Cursor>>,
        limit: Query<Option<u32>>,
    ) -> Result<Json<CursorPage<Export>>> {
        let stretch = Stretch::new(cursor.0, limit.0)?;
        let tx = who.begin().await?;
        let (whose, readable) = (whose(&who), readable(&who));
        let select = Select::new(exports::COLUMNS, "exports")
            .and_if("requested_by = ?", &whose)
            .and("resource = any (?)", &readable);
        let rows = select.newest(&tx, &stretch).await?;
        let all = rows.iter().map(exports::from_row).collect::<Result<_>>()?;
        Ok(Json(stretch.answer(all, |export: &Export| export.id)))
    }

    /// See an export.
    ///
    /// `rows_done` tells how far it is; once `state` is `done`, `file_id` names the file, which
    /// `GET /files/{file_id}/content` gives for 7 days. Takes the permission to read what it is of as well. The events `export.completed` and `export.failed` tell
    /// that it has come to its end.
    #[oai(path = "/exports/:export_id", method = "get", operation_id = "get_export")]
    async fn export(&self, who: Can<FilesRead>, export_id: Path<Uuid>) -> Result<Single<Export>> {
        let tx = who.begin().await?;
        let export = exports::find(&tx, export_id.0).await?;
        match sees(&who, export.requested_by) && readable(&who).contains(&export.resource.as_str()) {
            true => Ok(Single(export)),
            false => Err(Error::not_found("export")),
        }
    }
}
