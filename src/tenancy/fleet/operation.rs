//! Operations: what is done to an organization as a whole, one thing at a time.
//!
//! An operation is a row, and a sign of life in it every two seconds. Whoever is silent for 15 s is
//! dead, and the next one takes its place. One that was only slow finds that out in [`done`], which is
//! part of the transaction that completes it: nothing is completed twice, or by two.
//!
//! [`done`]: Operation::done

use std::{convert::Infallible, sync::Arc, time::Duration};

use serde_json::Value;
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::{
    app::App,
    audit::{self, Actor, Changes},
    db::Tx,
    error::{Error, Result},
};

/// Hears how far something is.
pub type Progress<'a> = &'a (dyn Fn(Step<'_>) + Send + Sync);

/// How far something is.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// What is being done.
    pub what: &'a str,
    /// Rows, or files, that are done...
    pub done: u64,
    /// ... of so many, where that is known.
    pub of: Option<u64>,
}

const BEAT: Duration = Duration::from_secs(2);
/// Without a sign of life for so long, an operation is taken to be dead.
pub(super) const SILENCE: &str = "15 seconds";

/// Something that is being done to an organization as a whole.
pub struct Operation {
    pub id: Uuid,
    app: Arc<App>,
    kind: &'static str,
    organization: Option<Uuid>,
    /// Ends the signs of life when it is dropped.
    _life: oneshot::Sender<Infallible>,
}

impl Operation {
    /// Begins one, unless another is under way in the organization.
    pub async fn begin(
        app: &Arc<App>,
        kind: &'static str,
        organization: Option<Uuid>,
        about: Value,
    ) -> Result<Self> {
        let id = Uuid::now_v7();
        let tx = app.db.begin().await?;
        tx.execute(
            &format!(
                "update platform.fleet_operations set state = 'failed', error = 'it was killed', finished_at = now() \
                 where organization_id = $1 and state = 'running' and beat_at < now() - interval '{SILENCE}'"
            ),
            &[&organization],
        )
        .await?;
        let begun = tx
            .execute(
                "insert into platform.fleet_operations (id, kind, organization_id, state, about, started_at, beat_at) \
                 values ($1, $2, $3, 'running', $4, now(), now()) \
                 on conflict (organization_id) where state = 'running' do nothing",
                &[&id, &kind, &organization, &about],
            )
            .await?;
        if begun == 0 {
            return Err(under_way(&tx, organization).await?);
        }
        tx.commit().await?;
        let (life, ended) = oneshot::channel();
        tokio::spawn(beat(app.clone(), id, ended));
        Ok(Self { id, app: app.clone(), kind, organization, _life: life })
    }

    /// Writes down that it is done, and an entry `tenant.<kind>` in the platform's log, in the transaction
    /// that completes it. Fails where somebody else has taken its place.
    pub async fn done(&self, tx: &Tx, changes: &Changes) -> Result<()> {
        let ours = tx
            .execute(
                "update platform.fleet_operations set state = 'done', finished_at = now() \
                 where id = $1 and state = 'running'",
                &[&self.id],
            )
            .await?;
        if ours != 1 {
            return Err(Error::conflict(
                "This gave no sign of life for so long that it was taken to be dead; nothing was changed. Try again.",
            ));
        }
        let what = format!("tenant.{}", self.kind);
        audit::record_platform(
            tx,
            &self.app,
            Actor::system(),
            &what,
            Some(self.id),
            self.organization,
            changes,
        )
        .await
    }

    /// Hands the outcome on; a failure is written down.
    pub async fn end<T>(self, outcome: Result<T>) -> Result<T> {
        if let Err(error) = &outcome
            && let Err(unwritten) = fail(&self.app, self.id, &error.to_string()).await
        {
            tracing::warn!(error = %unwritten, operation = %self.id, "a failure could not be written down");
        }
        outcome
    }
}

/// Gives signs of life. Where the operation is left without a word, it says so.
async fn beat(app: Arc<App>, id: Uuid, mut ended: oneshot::Receiver<Infallible>) {
    while tokio::time::timeout(BEAT, &mut ended).await.is_err() {
        if let Err(error) = sign(&app, id).await {
            tracing::warn!(%error, operation = %id, "an operation could not give a sign of life");
        }
    }
    let _ = fail(&app, id, "it was interrupted").await;
}

async fn sign(app: &App, id: Uuid) -> Result<()> {
    let tx = app.db.begin().await?;
    let sql = "update platform.fleet_operations set beat_at = now() where id = $1 and state = 'running'";
    tx.execute(sql, &[&id]).await?;
    tx.commit().await
}

/// Nothing where it is done.
async fn fail(app: &App, id: Uuid, error: &str) -> Result<()> {
    let tx = app.db.begin().await?;
    tx.execute(
        "update platform.fleet_operations set state = 'failed', error = $2, finished_at = now() \
         where id = $1 and state = 'running'",
        &[&id, &error.replace('\0', "")],
    )
    .await?;
    tx.commit().await
}

/// The kind of what is being done to an organization, by somebody who gives signs of life.
pub async fn current(tx: &Tx, organization: Uuid) -> Result<Option<String>> {
    let sql = format!(
        "select kind from platform.fleet_operations where organization_id = $1 and state = 'running' \
         and beat_at > now() - interval '{SILENCE}'"
    );
    tx.query_opt(&sql, &[&organization]).await?.map(|row| Ok(row.try_get("kind")?)).transpose()
}

async fn under_way(tx: &Tx, organization: Option<Uuid>) -> Result<Error> {
    let row = tx
        .query_opt(
            "select kind, extract(epoch from now() - beat_at)::bigint as silent from platform.fleet_operations \
             where organization_id = $1 and state = 'running'",
            &[&organization],
        )
        .await?;
    let (kind, silent): (String, i64) = match &row {
        Some(row) => (row.try_get("kind")?, row.try_get("silent")?),
        None => ("other operation".into(), 0),
    };
    Ok(Error::conflict(format!(
        "Something else is being done to this organization ({kind}); its last sign of life was {silent} s ago. \
         If it was killed, try again after {SILENCE}."
    )))
}
