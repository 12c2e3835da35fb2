//! Imports: what was asked for, and how far it is.

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};
use poem_openapi::{Object, types::Example};
use serde::{Deserialize, Serialize};
use tokio_postgres::types::Json as Jsonb;
use uuid::Uuid;

use super::{Format, KEPT, Kind, LineError, read::unknown, run::RunImports};
use crate::{
    app::App,
    audit::{Actor, Changes},
    auth::{Member, Permission},
    db::{Row, TenantTx},
    error::{Error, Result},
    events::{self, EventType},
    files::{self, Purpose},
    http::{Queued, Versioned},
    types::{EXAMPLE_ID, example_time, text_enum},
};

text_enum! {
    /// How an import stands.
    ImportState {
        /// Imports of an organization are done one after another.
        Queued = "queued",
        /// Every line is read and checked; nothing is written yet.
        Checking = "checking",
        /// The lines are written, some hundred at a time.
        Importing = "importing",
        /// All of it was done, or found to be right where it is a dry run.
        Done = "done",
        /// There are errors, or `message` tells why it came to its end, and how much was written before.
        Failed = "failed",
        /// Somebody ended it; what was written until then stays.
        Canceled = "canceled",
    }
}

impl ImportState {
    pub fn is_open(self) -> bool {
        matches!(self, Self::Queued | Self::Checking | Self::Importing)
    }
}

/// A file whose lines are made into objects of the organization.
#[derive(Clone, Debug, Serialize, Object)]
#[oai(example)]
pub struct Import {
    pub id: Uuid,
    /// `projects` or `tasks`.
    pub resource: String,
    pub format: Format,
    pub file_id: Uuid,
    /// Only checks, and writes nothing.
    pub dry_run: bool,
    pub state: ImportState,
    /// Objects in the file; null until they are counted.
    pub lines_total: Option<i64>,
    /// Those that are checked, or written, depending on the state.
    pub lines_done: i64,
    /// Lines by what became of them; of a dry run, and as long as they are checked, by what would.
    pub created: i64,
    pub updated: i64,
    pub unchanged: i64,
    /// Lines with errors.
    pub failed: i64,
    /// The first 100.
    pub errors: Vec<LineError>,
    /// Where there are more: a file with the first 10,000 as CSV, kept for 7 days.
    pub error_report_id: Option<Uuid>,
    /// Why it came to its end, or is tried again.
    pub message: Option<String>,
    pub requested_by: Uuid,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
    pub finished_at: Option<DateTime<Utc>>,
    /// Which columns stand for which fields.
    #[serde(skip)]
    #[oai(skip)]
    pub columns: HashMap<String, String>,
    #[serde(skip)]
    #[oai(skip)]
    pub api_key_id: Option<Uuid>,
    #[serde(skip)]
    #[oai(skip)]
    pub version: i64,
    /// Of those who work on it only the one whose turn it is writes.
    #[serde(skip)]
    #[oai(skip)]
    pub turn: i64,
    /// Turns that began since the last one that got on.
    #[serde(skip)]
    #[oai(skip)]
    pub tries: i32,
}

impl Import {
    /// How long it is still left alone, after a turn that did not get on.
    pub fn rest(&self, now: DateTime<Utc>) -> Option<TimeDelta> {
        let wait = match self.tries {
            0 => return None,
            1 => TimeDelta::seconds(10),
            2 => TimeDelta::seconds(40),
            _ => TimeDelta::seconds(160),
        };
        Some(self.updated_at + wait - now).filter(|rest| *rest > TimeDelta::zero())
    }
}

impl Versioned for Import {
    fn version(&self) -> i64 {
        self.version
    }
}

impl Example for Import {
    fn example() -> Self {
        Self {
            id: EXAMPLE_ID,
            resource: "tasks".into(),
            format: Format::Csv,
            file_id: EXAMPLE_ID,
            dry_run: true,
            state: ImportState::Failed,
            lines_total: Some(240),
            lines_done: 240,
            created: 230,
            updated: 9,
            unchanged: 0,
            failed: 1,
            errors: vec![LineError::of(17, "due_date", "invalid", "must be a date such as 2026-03-31")],
            error_report_id: None,
            message: None,
            requested_by: EXAMPLE_ID,
            created_at: example_time(),
            updated_at: example_time(),
            finished_at: Some(example_time()),
            columns: HashMap::new(),
            api_key_id: None,
            version: 3,
            turn: 1,
            tries: 0,
        }
    }
}

/// An import to be made.
#[derive(Debug, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(deny_unknown_fields, example)]
pub struct NewImport {
    /// A file that was uploaded with `POST /files`. It stays for 7 days after the import, so that what was
    /// tried can be done without another upload.
    pub file_id: Uuid,
    /// By the file's type or the ending of its name where it is absent.
    pub format: Option<Format>,
    /// Only checks every line and tells what is wrong; false where it is absent.
    pub dry_run: Option<bool>,
    /// Which field a column stands for, where its name does not say it: `{"Subject": "title"}`. An empty text
    /// leaves the column out.
    pub columns: Option<HashMap<String, String>>,
}

impl Example for NewImport {
    fn example() -> Self {
        Self { file_id: EXAMPLE_ID, format: Some(Format::Csv), dry_run: Some(true), columns: None }
    }
}

/// Columns that may be told what they stand for.
const MOST_COLUMNS: usize = 100;

/// Asks for an import of something, for a member who may write it.
pub async fn request_import(who: &Member, kind: &Kind, new: NewImport) -> Result<Queued<Import>> {
    let columns: HashMap<String, String> = new
        .columns
        .unwrap_or_default()
        .into_iter()
        .map(|(column, field)| (column.trim().to_owned(), field.trim().to_owned()))
        .collect();
    if columns.len() > MOST_COLUMNS {
        return Err(Error::invalid("columns", format!("may name at most {MOST_COLUMNS} columns")));
    }
    for (column, field) in &columns {
        if column.contains('\0') {
            return Err(Error::invalid("columns", "must not contain the character U+0000"));
        }
        if !field.is_empty() && !kind.fields.iter().any(|known| known.name == field) {
            return Err(Error::invalid(format!("columns.{column}"), unknown(kind.fields, field)));
        }
    }
    let tx = who.begin().await?;
    let file = take(&tx, who, new.file_id).await?;
    let format = match new.format {
        Some(format) => format,
        None => format_of(file.name.as_ref(), file.content_type.as_ref()).ok_or_else(|| {
            Error::invalid("format", "must be csv or json: the file's name and type do not tell which")
        })?,
    };
    let now = who.app.clock.now();
    let import = Import {
        id: Uuid::now_v7(),
        resource: kind.name.into(),
        format,
        file_id: file.id,
        dry_run: new.dry_run.unwrap_or_default(),
        state: ImportState::Queued,
        lines_total: None,
        lines_done: 0,
        created: 0,
        updated: 0,
        unchanged: 0,
        failed: 0,
        errors: Vec::new(),
        error_report_id: None,
        message: None,
        requested_by: who.user_id,
        created_at: now,
        updated_at: now,
        finished_at: None,
        columns,
        api_key_id: who.key.map(|key| key.id),
        version: 1,
        turn: 0,
        tries: 0,
    };
    tx.execute(
        "insert into imports (id, resource, format, file_id, dry_run, columns, state, errors, requested_by, \
         api_key_id, created_at, updated_at) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $11)",
        &[
            &import.id,
            &import.resource,
            &import.format,
            &import.file_id,
            &import.dry_run,
            &Jsonb(&import.columns),
            &import.state,
            &Jsonb(&import.errors),
            &import.requested_by,
            &import.api_key_id,
            &now,
        ],
    )
    .await?;
    let changes = Changes::created(&import);
    events::record(&tx, &who.app, who, EventType::ImportRequested, import.id, changes).await?;
    RunImports::enqueue(&tx, &who.app, None).await?;
    tx.commit().await?;
    Ok(Queued { location: format!("/api/v1/imports/{}", import.id), value: import })
}

/// The uploaded file, which may have been imported or tried before by whoever uploaded it.
async fn take(tx: &TenantTx, who: &Member, id: Uuid) -> Result<files::File> {
    let sql = "select 1 from imports where file_id = $1 limit 1";
    if tx.query_opt(sql, &[&id]).await?.is_none() {
        return files::take(tx, who, "file_id", id, Purpose::Import).await;
    }
    tx.query("select id from files where id = $1 for update", &[&id]).await?;
    let gone = || Error::invalid("file_id", "There is no such file any more. Upload it again.");
    let file = files::find(tx, id).await.map_err(|_| gone())?;
    if file.uploaded_by != who.user_id && !who.may(Permission::FilesWrite) {
        return Err(gone());
    }
    tx.execute("update files set expires_at = null where id = $1", &[&id]).await?;
    Ok(file)
}

/// Lets go of a file, unless another import needs it still.
pub async fn let_go(tx: &TenantTx, app: &App, file: Uuid) -> Result<()> {
    tx.execute(
        "update files set expires_at = $2 where id = $1 and not exists (select 1 from imports i \
         where i.file_id = $1 and i.finished_at is null)",
        &[&file, &(app.clock.now() + KEPT)],
    )
    .await?;
    Ok(())
}

fn format_of(name: &str, content_type: &str) -> Option<Format> {
    let ending = name.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase());
    match (ending.as_deref(), content_type.split(';').next().unwrap_or_default().trim()) {
        (Some("csv" | "tsv"), _) => Some(Format::Csv),
        (Some("json" | "jsonl" | "ndjson"), _) => Some(Format::Json),
        (_, "text/csv" | "text/tab-separated-values") => Some(Format::Csv),
        (_, "application/json" | "application/x-ndjson" | "application/jsonl") => Some(Format::Json),
        _ => None,
    }
}

pub const COLUMNS: &str = "id, resource, format, file_id, dry_run, columns, state, lines_total, lines_done, created, \
     updated, unchanged, failed, errors, error_report_id, message, requested_by, api_key_id, turn, tries, version, \
     created_at, updated_at, finished_at";

pub fn from_row(row: &Row) -> Result<Import> {
    Ok(Import {
        id: row.try_get("id")?,
        resource: row.try_get("resource")?,
        format: row.try_get("format")?,
        file_id: row.try_get("file_id")?,
        dry_run: row.try_get("dry_run")?,
        state: row.try_get("state")?,
        lines_total: row.try_get("lines_total")?,
        lines_done: row.try_get("lines_done")?,
        created: row.try_get("created")?,
        updated: row.try_get("updated")?,
        unchanged: row.try_get("unchanged")?,
        failed: row.try_get("failed")?,
        errors: row.try_get::<_, Jsonb<_>>("errors")?.0,
        error_report_id: row.try_get("error_report_id")?,
        message: row.try_get("message")?,
        requested_by: row.try_get("requested_by")?,
        created_at: row.try_get("created_at")?,
        updated_at: row.try_get("updated_at")?,
        finished_at: row.try_get("finished_at")?,
        columns: row.try_get::<_, Jsonb<_>>("columns")?.0,
        api_key_id: row.try_get("api_key_id")?,
        version: row.try_get("version")?,
        turn: row.try_get("turn")?,
        tries: row.try_get("tries")?,
    })
}

pub async fn find(tx: &TenantTx, id: Uuid) -> Result<Import> {
    let sql = format!("select {COLUMNS} from imports where id = $1");
    from_row(&tx.query_opt(&sql, &[&id]).await?.ok_or_else(|| Error::not_found("import"))?)
}

/// An import with its row locked: whoever writes its lines does not go on meanwhile.
pub async fn find_to_change(tx: &TenantTx, id: Uuid) -> Result<Import> {
    tx.query("select id from imports where id = $1 for update", &[&id]).await?;
    find(tx, id).await
}

/// The same for whoever has this turn; `None` where it has come to its end, or somebody else has gone on with it.
pub async fn find_mine(tx: &TenantTx, import: &Import) -> Result<Option<Import>> {
    let there = find_to_change(tx, import.id).await?;
    Ok(Some(there).filter(|there| there.state.is_open() && there.turn == import.turn))
}

/// Begins a turn: whoever had one before, and is only slow, writes no more. `None` where it has come to its end.
pub async fn take_turn(tx: &TenantTx, id: Uuid) -> Result<Option<Import>> {
    let mut import = find_to_change(tx, id).await?;
    if !import.state.is_open() {
        return Ok(None);
    }
    import.turn += 1;
    import.tries += 1;
    let sql = "update imports set turn = $2, tries = $3 where id = $1";
    tx.execute(sql, &[&id, &import.turn, &import.tries]).await?;
    Ok(Some(import))
}

/// The one that is next.
pub async fn next(tx: &TenantTx) -> Result<Option<Import>> {
    let sql = format!("select {COLUMNS} from imports where finished_at is null order by id limit 1");
    tx.query_opt(&sql, &[]).await?.as_ref().map(from_row).transpose()
}

/// Ends an import as it stands in the object, and tells.
pub async fn finish(
    tx: &TenantTx,
    app: &App,
    who: impl Into<Actor>,
    what: EventType,
    before: &Import,
    mut import: Import,
) -> Result<Import> {
    let now = app.clock.now();
    import.finished_at = Some(now);
    import.updated_at = now;
    if !import.dry_run && matches!(before.state, ImportState::Queued | ImportState::Checking) {
        // What would have become of the lines did not.
        (import.created, import.updated, import.unchanged) = (0, 0, 0);
    }
    store(tx, &mut import).await?;
    let_go(tx, app, import.file_id).await?;
    events::record(tx, app, who, what, import.id, Changes::between(before, &import)).await?;
    Ok(import)
}

/// Writes down how an import stands.
pub async fn store(tx: &TenantTx, import: &mut Import) -> Result<()> {
    import.version += 1;
    tx.execute(
        "update imports set state = $2, lines_total = $3, lines_done = $4, created = $5, updated = $6, \
         unchanged = $7, failed = $8, errors = $9, error_report_id = $10, message = $11, version = $12, \
         updated_at = $13, finished_at = $14, tries = $15 where id = $1",
        &[
            &import.id,
            &import.state,
            &import.lines_total,
            &import.lines_done,
            &import.created,
            &import.updated,
            &import.unchanged,
            &import.failed,
            &Jsonb(&import.errors),
            &import.error_report_id,
            &import.message,
            &import.version,
            &import.updated_at,
            &import.finished_at,
            &import.tries,
        ],
    )
    .await?;
    Ok(())
}
