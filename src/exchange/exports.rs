//! Exports: an organization's objects as a file.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use futures_util::join;
use poem_openapi::{Object, types::Example};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::{Exporter, Format, KEPT, Kind, Maker, is_final, kind, report::received, write::Writer};
use crate::{
    app::App,
    audit::{Actor, Changes},
    auth::Member,
    db::{Row, TenantTx},
    error::{Error, Result},
    events::{self, EventType},
    files::{self, File, Purpose},
    http::{Queued, Versioned},
    jobs::{self, Policy, Running, Work},
    tenancy::Tenant,
    types::{EXAMPLE_ID, example_time, text_enum},
};

text_enum! {
    /// How an export stands.
    ExportState {
        Queued = "queued",
        Exporting = "exporting",
        /// `file_id` is the file.
        Done = "done",
        /// `message` tells why.
        Failed = "failed",
    }
}

/// Objects of the organization that are written into a file.
#[derive(Clone, Debug, Serialize, Object)]
#[oai(example)]
pub struct Export {
    pub id: Uuid,
    /// `projects` or `tasks`.
    pub resource: String,
    pub format: Format,
    /// Which of them, as it was asked for.
    pub filters: Value,
    pub state: ExportState,
    /// Null until they are counted.
    pub rows_total: Option<i64>,
    pub rows_done: i64,
    /// The file, once it is complete; `GET /files/{file_id}/content` has it for 7 days, unless 20 later ones of
    /// the same resource and person are there.
    pub file_id: Option<Uuid>,
    /// Why it came to its end, or is tried again.
    pub message: Option<String>,
    pub requested_by: Uuid,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
    pub finished_at: Option<DateTime<Utc>>,
    #[serde(skip)]
    #[oai(skip)]
    pub api_key_id: Option<Uuid>,
    #[serde(skip)]
    #[oai(skip)]
    pub version: i64,
    /// How often it was begun; whoever began it last completes it.
    #[serde(skip)]
    #[oai(skip)]
    pub tries: i32,
}

impl Versioned for Export {
    fn version(&self) -> i64 {
        self.version
    }
}

impl Example for Export {
    fn example() -> Self {
        Self {
            id: EXAMPLE_ID,
            resource: "tasks".into(),
            format: Format::Csv,
            filters: serde_json::json!({"status": "done"}),
            state: ExportState::Done,
            rows_total: Some(240),
            rows_done: 240,
            file_id: Some(EXAMPLE_ID),
            message: None,
            requested_by: EXAMPLE_ID,
            created_at: example_time(),
            updated_at: example_time(),
            finished_at: Some(example_time()),
            api_key_id: None,
            version: 4,
            tries: 1,
        }
    }
}

/// Exports that somebody may have on their way, and files of a resource that are kept of what they exported.
const MOST_OPEN: i64 = 20;
const MOST_KEPT: i64 = 20;

/// Asks for an export of something, for a member who may read it. The filters are what the kind's exporter
/// reads.
pub async fn request_export(
    who: &Member,
    kind: &Kind,
    format: Format,
    filters: Value,
) -> Result<Queued<Export>> {
    // Before anybody counts on it.
    (kind.exporter)(&filters)?;
    let now = who.app.clock.now();
    let export = Export {
        id: Uuid::now_v7(),
        resource: kind.name.into(),
        format,
        filters,
        state: ExportState::Queued,
        rows_total: None,
        rows_done: 0,
        file_id: None,
        message: None,
        requested_by: who.user_id,
        created_at: now,
        updated_at: now,
        finished_at: None,
        api_key_id: who.key.map(|key| key.id),
        version: 1,
        tries: 0,
    };
    let tx = who.begin().await?;
    let open = "select count(*) as many from exports where requested_by = $1 and finished_at is null";
    if tx.query_one(open, &[&who.user_id]).await?.try_get::<_, i64>("many")? >= MOST_OPEN {
        return Err(Error::conflict(format!(
            "{MOST_OPEN} of your exports are on their way. Wait until one has come to its end."
        )));
    }
    tx.execute(
        "insert into exports (id, resource, format, filters, state, requested_by, api_key_id, created_at, \
         updated_at) values ($1, $2, $3, $4, $5, $6, $7, $8, $8)",
        &[
            &export.id,
            &export.resource,
            &export.format,
            &export.filters,
            &export.state,
            &export.requested_by,
            &export.api_key_id,
            &now,
        ],
    )
    .await?;
    let changes = Changes::created(&export);
    events::record(&tx, &who.app, who, EventType::ExportRequested, export.id, changes).await?;
    jobs::enqueue(&tx, &who.app, &RunExport { export_id: export.id }).await?;
    tx.commit().await?;
    Ok(Queued { location: format!("/api/v1/exports/{}", export.id), value: export })
}

pub const COLUMNS: &str = "id, resource, format, filters, state, rows_total, rows_done, file_id, message, requested_by, \
     api_key_id, tries, version, created_at, updated_at, finished_at";

pub fn from_row(row: &Row) -> Result<Export> {
    Ok(Export {
        id: row.try_get("id")?,
        resource: row.try_get("resource")?,
        format: row.try_get("format")?,
        filters: row.try_get("filters")?,
        state: row.try_get("state")?,
        rows_total: row.try_get("rows_total")?,
        rows_done: row.try_get("rows_done")?,
        file_id: row.try_get("file_id")?,
        message: row.try_get("message")?,
        requested_by: row.try_get("requested_by")?,
        created_at: row.try_get("created_at")?,
        updated_at: row.try_get("updated_at")?,
        finished_at: row.try_get("finished_at")?,
        api_key_id: row.try_get("api_key_id")?,
        version: row.try_get("version")?,
        tries: row.try_get("tries")?,
    })
}

pub async fn find(tx: &TenantTx, id: Uuid) -> Result<Export> {
    let sql = format!("select {COLUMNS} from exports where id = $1");
    from_row(&tx.query_opt(&sql, &[&id]).await?.ok_or_else(|| Error::not_found("export"))?)
}

/// An export with its row locked, for whoever began it last; `None` where it is not open, or somebody else's.
async fn find_mine(tx: &TenantTx, export: &Export) -> Result<Option<Export>> {
    Ok(find_open(tx, export.id).await?.filter(|there| there.tries == export.tries))
}

async fn find_open(tx: &TenantTx, id: Uuid) -> Result<Option<Export>> {
    let sql = format!("select {COLUMNS} from exports where id = $1 and finished_at is null for update");
    tx.query_opt(&sql, &[&id]).await?.as_ref().map(from_row).transpose()
}

/// Has exports done that came to a stand, as their jobs are gone.
pub async fn go_on(tx: &TenantTx, app: &App) -> Result<()> {
    let sql = "select id from exports where finished_at is null and updated_at < $1 order by id limit 100";
    for row in tx.query(sql, &[&(app.clock.now() - TimeDelta::days(1))]).await? {
        jobs::enqueue(tx, app, &RunExport { export_id: row.try_get("id")? }).await?;
    }
    Ok(())
}

/// Writes an export's file.
#[derive(Serialize, Deserialize)]
pub struct RunExport {
    export_id: Uuid,
}

const ATTEMPTS: i32 = 4;
/// Those included whose worker died.
const MOST_TRIES: i32 = 8;
/// Rows that are read at a time. Rows that change meanwhile come as they are when it is their turn.
const TOGETHER: i64 = 1_000;
/// How often it is told how far an export is.
const TELL_EVERY: Duration = Duration::from_secs(1);

impl Work for RunExport {
    const KIND: &'static str = "run_export";
    const POLICY: Policy = Policy {
        attempts: ATTEMPTS,
        limit: Duration::from_secs(3600),
        slots: 4,
        per_lane: 1,
        per_organization: 1,
        ..Policy::DEFAULT
    };

    async fn run(self, job: &Running) -> anyhow::Result<()> {
        // Of what is gone for good nothing is left to read.
        let Some(tenant) = job.tenant().await? else { return Ok(()) };
        let tx = tenant.begin().await?;
        // It is done otherwise, or had its time.
        let Some(mut export) = find_open(&tx, self.export_id).await? else { return Ok(()) };
        export.tries += 1;
        let sql = "update exports set tries = $2 where id = $1";
        tx.execute(sql, &[&export.id, &export.tries]).await?;
        tx.commit().await?;
        let outcome = match export.tries > MOST_TRIES {
            true => Err(Error::internal("its workers died at it")),
            false => carry_out(&job.app, &tenant, &export).await,
        };
        let Err(error) = outcome else { return Ok(()) };
        if is_final(&error) {
            fail(&job.app, &tenant, &export, error.message().to_owned()).await?;
            return Ok(());
        }
        if job.attempt >= ATTEMPTS || export.tries >= MOST_TRIES {
            let told =
                format!("It did not work. Ask for it again; support finds the reason under job {}.", job.id);
            fail(&job.app, &tenant, &export, told).await?;
        } else {
            let told = "It did not work and is tried again.".to_owned();
            tell(&tenant, &job.app, &export, None, 0, Some(told)).await?;
        }
        Err(error.into())
    }
}

async fn carry_out(app: &Arc<App>, tenant: &Tenant, export: &Export) -> Result<()> {
    let kind = kind(app, &export.resource)?;
    let maker = Maker::of(app, tenant, export.requested_by, export.api_key_id, kind.read).await?;
    let mut exporter = (kind.exporter)(&export.filters)?;
    let (sender, receiver) = mpsc::channel(4);
    let name = format!("{}-{}.{}", kind.name, export.created_at.format("%Y%m%d-%H%M%S"), export.format);
    let content_type = match export.format {
        Format::Csv => "text/csv",
        Format::Json => "application/json",
    };
    let (file, read) = join!(
        files::make(
            app,
            tenant,
            export.requested_by,
            &name,
            content_type,
            Purpose::Export,
            Some(KEPT),
            received(receiver),
        ),
        pour(app, tenant, export, kind, &mut *exporter, sender),
    );
    // Where reading failed, that is why the file is not whole.
    let rows = match read {
        Ok(rows) => rows,
        Err(error) => return Err(error),
    };
    complete(app, tenant, maker.actor, export, file?, rows).await
}

/// Reads everything into the file; answers how many rows there were.
async fn pour(
    app: &App,
    tenant: &Tenant,
    export: &Export,
    kind: &Kind,
    exporter: &mut dyn Exporter,
    sender: mpsc::Sender<Result<Bytes>>,
) -> Result<i64> {
    let mut writer = Writer::new(kind, export.format);
    let outcome = async {
        let tx = tenant.begin().await?;
        let total = exporter.count(&tx).await?;
        drop(tx);
        tell(tenant, app, export, Some(total), 0, None).await?;
        let (mut done, mut told) = (0, Instant::now());
        loop {
            let tx = tenant.begin().await?;
            let rows = exporter.rows(&tx, TOGETHER).await?;
            drop(tx);
            let Some(rows) = rows else { break };
            done += rows.len() as i64;
            for cells in &rows {
                writer.row(cells)?;
            }
            if sender.send(Ok(writer.take())).await.is_err() {
                // The store takes no more, and says why.
                return Ok(done);
            }
            if told.elapsed() > TELL_EVERY {
                tell(tenant, app, export, Some(total.max(done)), done, None).await?;
                told = Instant::now();
            }
        }
        let _ = sender.send(Ok(writer.end()?)).await;
        Ok(done)
    }
    .await;
    if outcome.is_err() {
        // A file that ends here must not be taken for a whole one.
        let _ = sender.send(Err(Error::internal("the rows could not be read to their end"))).await;
    }
    outcome
}

async fn tell(
    tenant: &Tenant,
    app: &App,
    export: &Export,
    total: Option<i64>,
    done: i64,
    message: Option<String>,
) -> Result<()> {
    let tx = tenant.begin().await?;
    tx.execute(
        "update exports set state = 'exporting', rows_total = coalesce($2, rows_total), rows_done = $3, message = $4, \
         version = version + 1, updated_at = $5 where id = $1 and finished_at is null and tries = $6",
        &[&export.id, &total, &done, &message, &app.clock.now(), &export.tries],
    )
    .await?;
    tx.commit().await
}

async fn complete(
    app: &App,
    tenant: &Tenant,
    who: Actor,
    before: &Export,
    file: File,
    rows: i64,
) -> Result<()> {
    let tx = tenant.begin().await?;
    let Some(mut export) = find_mine(&tx, before).await? else {
        // Whoever goes on with it makes a file of their own, or has made one.
        files::remove(&tx, app, &[file.id]).await?;
        return tx.commit().await;
    };
    (export.state, export.file_id, export.message) = (ExportState::Done, Some(file.id), None);
    (export.rows_total, export.rows_done) = (Some(rows), rows);
    finish(&tx, app, who, EventType::ExportCompleted, before, export).await?;
    // They are as large as the organization, and whoever may read it may make them.
    let rows = tx
        .query(
            "select file_id from exports where requested_by = $1 and resource = $2 and file_id is not null \
             order by id desc offset $3",
            &[&before.requested_by, &before.resource, &MOST_KEPT],
        )
        .await?;
    let older = rows.iter().map(|row| Ok(row.try_get("file_id")?)).collect::<Result<Vec<Uuid>>>()?;
    files::remove(&tx, app, &older).await?;
    tx.commit().await
}

async fn fail(app: &App, tenant: &Tenant, before: &Export, message: String) -> Result<()> {
    let tx = tenant.begin().await?;
    let Some(mut export) = find_mine(&tx, before).await? else { return Ok(()) };
    (export.state, export.message) = (ExportState::Failed, Some(message));
    finish(&tx, app, Actor::system(), EventType::ExportFailed, before, export).await?;
    tx.commit().await
}

async fn finish(
    tx: &TenantTx,
    app: &App,
    who: Actor,
    what: EventType,
    before: &Export,
    mut export: Export,
) -> Result<()> {
    let now = app.clock.now();
    (export.finished_at, export.updated_at) = (Some(now), now);
    tx.execute(
        "update exports set state = $2, rows_total = $3, rows_done = $4, file_id = $5, message = $6, \
         version = version + 1, updated_at = $7, finished_at = $7 where id = $1",
        &[
            &export.id,
            &export.state,
            &export.rows_total,
            &export.rows_done,
            &export.file_id,
            &export.message,
            &now,
        ],
    )
    .await?;
    events::record(tx, app, who, what, export.id, Changes::between(before, &export)).await?;
    Ok(())
}
