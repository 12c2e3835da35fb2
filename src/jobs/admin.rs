//! Jobs, as platform staff see them.

use chrono::{DateTime, Utc};
use poem_openapi::{
    Object, OpenApi,
    param::{Path, Query},
    types::Example,
};
use serde::Serialize;
use uuid::Uuid;

use crate::{
    api::Tag,
    audit::{self, Changes},
    auth::Superuser,
    db::{JOBS, Row, Select, Tx},
    error::{Error, OnConstraint, Result},
    http::{IfMatch, Json, NoContent, Single, Versioned},
    page::{Cursor, CursorPage, Stretch},
    types::{EXAMPLE_ID, example_time, text_enum},
};

text_enum! {
    /// Where a job stands.
    JobState {
        /// For its time.
        Waiting = "waiting",
        /// To be begun as soon as there is room.
        Ready = "ready",
        Running = "running",
        /// It failed for good.
        Dead = "dead",
    }
}

/// Work that the service has to do. What it is about is sealed.
#[derive(Clone, Debug, Serialize, Object)]
#[oai(example)]
pub struct JobView {
    pub id: Uuid,
    pub kind: String,
    pub organization_id: Option<Uuid>,
    pub state: JobState,
    /// How often it was tried.
    pub attempts: i32,
    /// Ready since then, or not before then.
    pub run_at: DateTime<Utc>,
    /// What the last attempt failed with.
    pub last_error: Option<String>,
    pub created_at: DateTime<Utc>,
    pub failed_at: Option<DateTime<Utc>>,
}

impl Versioned for JobView {
    /// Each attempt is another version.
    fn version(&self) -> i64 {
        self.attempts.into()
    }
}

impl Example for JobView {
    fn example() -> Self {
        Self {
            id: EXAMPLE_ID,
            kind: "send_mail".into(),
            organization_id: Some(EXAMPLE_ID),
            state: JobState::Dead,
            attempts: 4,
            run_at: example_time(),
            last_error: Some("connection refused".into()),
            created_at: example_time(),
            failed_at: Some(example_time()),
        }
    }
}

pub struct AdminJobsApi;

#[OpenApi(tag = "Tag::Admin")]
impl AdminJobsApi {
    /// List jobs that are not done, newest first.
    #[oai(path = "/admin/jobs", method = "get", operation_id = "admin_list_jobs")]
    #[allow(clippy::too_many_arguments)]
    async fn list(
        &self,
        who: Superuser,
        state: Query<Option<JobState>>,
        kind: Query<Option<String>>,
        organization_id: Query<Option<Uuid>>,
        cursor: Query<Option<Cursor>>,
        limit: Query<Option<u32>>,
    ) -> Result<Json<CursorPage<JobView>>> {
        let stretch = Stretch::new(cursor.0, limit.0)?;
        let tx = who.0.app.db.begin().await?;
        let rows = Select::new(COLUMNS, "platform.jobs")
            .and_if("state = ?", &state.0)
            .and_if("kind = ?", &kind.0)
            .and_if("organization_id = ?", &organization_id.0)
            .newest(&tx, &stretch)
            .await?;
        Ok(Json(stretch.answer(rows.iter().map(from_row).collect::<Result<_>>()?, |job| job.id)))
    }

    /// See a job.
    #[oai(path = "/admin/jobs/:job_id", method = "get", operation_id = "admin_get_job")]
    async fn get(&self, who: Superuser, job_id: Path<Uuid>) -> Result<Single<JobView>> {
        let tx = who.0.app.db.begin().await?;
        Ok(Single(find(&tx, job_id.0).await?))
    }

    /// Try a dead job again, from its first attempt.
    #[oai(path = "/admin/jobs/:job_id/retry", method = "post", operation_id = "admin_retry_job")]
    async fn retry(&self, who: Superuser, job_id: Path<Uuid>) -> Result<Json<JobView>> {
        let app = &*who.0.app;
        let tx = app.db.begin().await?;
        let before = dead(&tx, job_id.0).await?;
        tx.execute(
            "update platform.jobs set state = 'ready', attempts = 0, run_at = $2, failed_at = null where id = $1",
            &[&before.id, &app.clock.now()],
        )
        .await
        .on_constraint("jobs_unique", || {
            Error::conflict("A job that does the same waits already. Discard this one.")
        })?;
        tx.announce(JOBS);
        let after = find(&tx, before.id).await?;
        let changes = Changes::between(&before, &after);
        let organization = before.organization_id;
        audit::record_platform(&tx, app, &who, "job.retried", Some(before.id), organization, &changes)
            .await?;
        tx.commit().await?;
        Ok(Json(after))
    }

    /// Discard a dead job.
    #[oai(path = "/admin/jobs/:job_id", method = "delete", operation_id = "admin_discard_job")]
    async fn discard(&self, who: Superuser, job_id: Path<Uuid>, expected: IfMatch) -> Result<NoContent> {
        let app = &*who.0.app;
        let tx = app.db.begin().await?;
        let job = dead(&tx, job_id.0).await?;
        expected.check(job.version())?;
        tx.execute("delete from platform.jobs where id = $1", &[&job.id]).await?;
        let (organization, changes) = (job.organization_id, Changes::deleted(&job));
        audit::record_platform(&tx, app, &who, "job.discarded", Some(job.id), organization, &changes).await?;
        tx.commit().await?;
        Ok(NoContent)
    }
}

const COLUMNS: &str = "id, kind, organization_id, state, attempts, run_at, last_error, created_at, failed_at";

fn from_row(row: &Row) -> Result<JobView> {
    Ok(JobView {
        id: row.try_get("id")?,
        kind: row.try_get("kind")?,
        organization_id: row.try_get("organization_id")?,
        state: row.try_get("state")?,
        attempts: row.try_get("attempts")?,
        run_at: row.try_get("run_at")?,
        last_error: row.try_get("last_error")?,
        created_at: row.try_get("created_at")?,
        failed_at: row.try_get("failed_at")?,
    })
}

async fn find(tx: &Tx, id: Uuid) -> Result<JobView> {
    let sql = format!("select {COLUMNS} from platform.jobs where id = $1");
    let missing = || Error::not_found("job");
    from_row(&tx.query_opt(&sql, &[&id]).await?.ok_or_else(missing)?)
}

/// A job that failed for good, locked.
async fn dead(tx: &Tx, id: Uuid) -> Result<JobView> {
    tx.query("select id from platform.jobs where id = $1 for update", &[&id]).await?;
    let job = find(tx, id).await?;
    match job.state {
        JobState::Dead => Ok(job),
        state => {
            Err(Error::conflict(format!("The job is {state}; only dead ones are retried or discarded.")))
        }
    }
}
