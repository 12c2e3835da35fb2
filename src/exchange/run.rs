//! Carries out imports: one of an organization at a time, in the order in which they were asked for.
//!
//! The first pass checks every line and writes nothing; only a file without errors gets a second one. That
//! writes some hundred lines in a transaction, together with how far it is, so whoever goes on after a crash
//! goes on with the next line. After a while a job ends and enqueues another, so that others get a turn.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::TimeDelta;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    Import, Importer, KEPT, Line, Maker, Outcome, exports,
    imports::{self, ImportState},
    is_final, kind,
    read::{Found, Layout, Lines},
    report::{Report, SHOWN},
};
use crate::{
    app::App,
    audit::Actor,
    db::TenantTx,
    error::{Code, Error, Result},
    events::EventType,
    files,
    jobs::{self, Policy, Running, Terms, Work},
    tenancy::{Tenant, fleet},
};

/// Does the import of an organization whose turn it is.
#[derive(Serialize, Deserialize)]
pub struct RunImports {}

/// So many turns may begin one after another without getting on.
const MOST_TRIES: i32 = 6;
/// How long lines are written before others get a turn.
const TURN: Duration = Duration::from_secs(120);
/// How often it is told how far the check is.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// How often a check looks whether whoever asked for it may still do it.
const LOOK_EVERY: Duration = Duration::from_secs(60);
const SHORTLY: TimeDelta = TimeDelta::milliseconds(200);

/// How a turn ended.
enum End {
    /// The import has come to its end.
    Finished,
    /// There is more to do, or somebody else does it.
    Interrupted,
}

impl Work for RunImports {
    const KIND: &'static str = "run_imports";
    const POLICY: Policy = Policy {
        // What fails of an import is counted with it; this is for what does not even get there.
        attempts: 6,
        // A file of a million lines is checked in one go.
        limit: Duration::from_secs(3600),
        slots: 4,
        per_lane: 1,
        per_organization: 1,
        exclusive: true,
        ..Policy::DEFAULT
    };

    async fn run(self, job: &Running) -> anyhow::Result<()> {
        // Of what is gone for good nothing is left to write.
        let Some(tenant) = job.tenant().await? else { return Ok(()) };
        let app = &job.app;
        let tx = tenant.begin().await?;
        let Some(next) = imports::next(&tx).await? else { return Ok(()) };
        // What failed is left alone for a while, whoever asks for another import meanwhile.
        let mine = match next.rest(app.clock.now()) {
            Some(_) => None,
            None => imports::take_turn(&tx, next.id).await?,
        };
        tx.commit().await?;
        let end = match mine {
            Some(import) => take(app, &tenant, import).await?,
            None => End::Finished,
        };
        let tx = tenant.begin().await?;
        if let Some(next) = imports::next(&tx).await? {
            // Whoever stops leaves it to those who do not.
            let shortly = matches!(end, End::Interrupted).then_some(SHORTLY);
            Self::enqueue(&tx, app, next.rest(app.clock.now()).or(shortly)).await?;
            tx.commit().await?;
        }
        Ok(())
    }
}

/// Does what there is to do in this turn, and tells what went wrong.
async fn take(app: &Arc<App>, tenant: &Tenant, import: Import) -> Result<End> {
    let outcome = match import.tries > MOST_TRIES {
        true => Err(Error::internal("its workers died at it")),
        false => carry_out(app, tenant, import.clone()).await,
    };
    match outcome {
        Ok(end) => return Ok(end),
        Err(error) if is_final(&error) => {
            fail(app, tenant, &import, error.message().to_owned()).await?;
        }
        Err(error) => {
            tracing::warn!(import = %import.id, %error, cause = ?error.cause(), "an import failed");
            if !is_tried_again(app, tenant, &import).await? {
                let told = format!(
                    "It did not work. Ask for it again; support finds the reason under import {}.",
                    import.id
                );
                fail(app, tenant, &import, told).await?;
            }
        }
    }
    Ok(End::Finished)
}

impl RunImports {
    /// Has the organization's imports done: one job waits for all of them.
    pub async fn enqueue(tx: &TenantTx, app: &App, wait: Option<TimeDelta>) -> Result<()> {
        let organization = tx.organization();
        let terms = Terms {
            at: wait.map(|wait| app.clock.now() + wait),
            unique: Some(jobs::ONE.into()),
            lane: Some(organization),
            organization: Some(organization),
        };
        jobs::enqueue_on(tx, app, &Self {}, terms).await
    }
}

async fn carry_out(app: &Arc<App>, tenant: &Tenant, import: Import) -> Result<End> {
    let kind = kind(app, &import.resource)?;
    let maker = maker(app, tenant, &import).await?;
    let turn = Turn { app, tenant, began: Instant::now(), actor: maker.actor.clone() };
    let import = match import.state {
        ImportState::Queued | ImportState::Checking => {
            match turn.check(import, (kind.importer)(maker)).await? {
                Some(import) => import,
                None => return Ok(End::Interrupted),
            }
        }
        _ => import,
    };
    match import.state {
        ImportState::Importing => {
            // The check may have taken a while.
            let maker = self::maker(app, tenant, &import).await?;
            turn.write(import, (kind.importer)(maker)).await
        }
        // The service stops in the middle of the check, which then begins anew.
        ImportState::Checking => Ok(End::Interrupted),
        _ => Ok(End::Finished),
    }
}

/// Whoever asked for it, if it may be done now.
async fn maker(app: &Arc<App>, tenant: &Tenant, import: &Import) -> Result<Maker> {
    let gone = || Error::new(Code::TenantNotFound, "The organization was deleted.");
    let tenant = fleet::tenant_by_id(&app.directory, tenant.id()).await?.ok_or_else(gone)?;
    let needed = kind(app, &import.resource)?.write;
    Maker::of(app, &tenant, import.requested_by, import.api_key_id, needed).await
}

/// What a job does with an import.
struct Turn<'a> {
    app: &'a Arc<App>,
    tenant: &'a Tenant,
    began: Instant,
    actor: Actor,
}

impl Turn<'_> {
    async fn lines(&self, import: &Import) -> Result<Lines> {
        let layout = Layout {
            kind: kind(self.app, &import.resource)?,
            format: import.format,
            columns: import.columns.clone(),
        };
        Lines::of(self.app, self.tenant.id(), import.file_id, layout).await
    }

    async fn is_stopping(&self) -> bool {
        self.app.stopping().requested_within(Duration::ZERO).await
    }

    /// Reads every line and writes nothing. Answers the import as it goes on; `None` where it is not ours any
    /// more, or somebody canceled it.
    async fn check(&self, mut import: Import, mut importer: Box<dyn Importer>) -> Result<Option<Import>> {
        let asked = import.clone();
        import.state = ImportState::Checking;
        (import.lines_total, import.message) = (None, None);
        clear(&mut import);
        if !self.tell(&mut import).await? {
            return Ok(None);
        }
        let mut lines = self.lines(&import).await?;
        let mut report = Report::new(self.app, self.tenant, &import);
        let (mut told, mut looked) = (Instant::now(), Instant::now());
        while let Some(found) = lines.next().await? {
            let (good, broken) = sorted(found);
            let tx = self.tenant.begin().await?;
            let outcome = importer.check(&tx, &good).await?;
            drop(tx);
            let errors = count(&mut import, good.len(), outcome, broken);
            report.add(errors).await?;
            if told.elapsed() > TELL_EVERY {
                import.errors = report.shown().to_vec();
                let stops = self.is_stopping().await;
                if stops {
                    // That it is begun anew is not its fault.
                    import.tries = 0;
                }
                if !self.tell(&mut import).await? {
                    return Ok(None);
                }
                if stops {
                    return Ok(Some(import));
                }
                told = Instant::now();
                if looked.elapsed() > LOOK_EVERY {
                    maker(self.app, self.tenant, &import).await?;
                    looked = Instant::now();
                }
            }
        }
        let (errors, file) = report.end().await?;
        (import.errors, import.error_report_id) = (errors, file);
        import.lines_total = Some(import.lines_done);
        let sound = import.errors.is_empty();
        if sound && !import.dry_run {
            import.state = ImportState::Importing;
            import.tries = 0;
            clear(&mut import);
            return Ok(self.tell(&mut import).await?.then_some(import));
        }
        let what = match sound {
            true => {
                import.state = ImportState::Done;
                EventType::ImportCompleted
            }
            false => {
                import.state = ImportState::Failed;
                import.message = Some("There are errors. Nothing was imported.".into());
                EventType::ImportFailed
            }
        };
        let tx = self.tenant.begin().await?;
        if imports::find_mine(&tx, &import).await?.is_none() {
            return Ok(None);
        }
        let import = imports::finish(&tx, self.app, self.actor.clone(), what, &asked, import).await?;
        tx.commit().await?;
        Ok(Some(import))
    }

    /// Writes the lines from where it is.
    async fn write(&self, import: Import, mut importer: Box<dyn Importer>) -> Result<End> {
        let mut lines = self.lines(&import).await?;
        let mut skipped = 0;
        while let Some(found) = lines.next().await? {
            let done = import.lines_done;
            let (mut good, broken) = sorted(found);
            // A checked file has no broken lines, so lines can be counted without looking at them.
            if !broken.is_empty() {
                return Err(Error::internal("the file is not what was checked"));
            }
            if skipped < done {
                let known = good.len().min((done - skipped) as usize);
                good.drain(..known);
                skipped += known as i64;
            }
            if good.is_empty() {
                continue;
            }
            let tx = self.tenant.begin().await?;
            // Whoever cancels or goes on with it waits for this lock, or is seen: no line is written twice.
            let Some(before) = imports::find_mine(&tx, &import).await? else {
                return Ok(End::Interrupted);
            };
            let mut now = before.clone();
            let outcome = importer.write(&tx, &good).await?;
            let errors = count(&mut now, good.len(), outcome, Vec::new());
            let room = SHOWN.saturating_sub(now.errors.len());
            now.errors.extend(errors.into_iter().take(room));
            now.message = None;
            now.tries = 0;
            now.updated_at = self.app.clock.now();
            if now.errors.len() >= SHOWN {
                // Something has changed for all of them: better an early end than one without most lines.
                let (done, total) = (now.lines_done, now.lines_total.unwrap_or_default());
                now.state = ImportState::Failed;
                now.message = Some(format!(
                    "Too many lines had to be left out, as things have changed since they were checked. It ended \
                     after {done} of {total} lines."
                ));
                let what = EventType::ImportFailed;
                imports::finish(&tx, self.app, self.actor.clone(), what, &before, now).await?;
                tx.commit().await?;
                return Ok(End::Finished);
            }
            imports::store(&tx, &mut now).await?;
            tx.commit().await?;
            if self.began.elapsed() > TURN || self.is_stopping().await {
                return Ok(End::Interrupted);
            }
        }
        let tx = self.tenant.begin().await?;
        let Some(before) = imports::find_mine(&tx, &import).await? else { return Ok(End::Interrupted) };
        let mut import = before.clone();
        let what = match before.failed {
            0 => {
                (import.state, import.message) = (ImportState::Done, None);
                EventType::ImportCompleted
            }
            many => {
                import.state = ImportState::Failed;
                import.message = Some(format!(
                    "{many} lines were left out, as things have changed since they were checked. The others were \
                     imported."
                ));
                EventType::ImportFailed
            }
        };
        imports::finish(&tx, self.app, self.actor.clone(), what, &before, import).await?;
        tx.commit().await?;
        Ok(End::Finished)
    }

    /// Writes down how far it is; says whether it goes on.
    async fn tell(&self, import: &mut Import) -> Result<bool> {
        let tx = self.tenant.begin().await?;
        let Some(there) = imports::find_mine(&tx, import).await? else { return Ok(false) };
        import.updated_at = self.app.clock.now();
        import.version = there.version;
        imports::store(&tx, import).await?;
        tx.commit().await?;
        Ok(true)
    }
}

fn clear(import: &mut Import) {
    (import.lines_done, import.created, import.updated) = (0, 0, 0);
    (import.unchanged, import.failed) = (0, 0);
    import.errors.clear();
}

fn sorted(found: Vec<Found>) -> (Vec<Line>, Vec<super::LineError>) {
    let (mut good, mut broken) = (Vec::with_capacity(found.len()), Vec::new());
    for found in found {
        match found {
            Found::Line(line) => good.push(line),
            Found::Broken(error) => broken.push(error),
        }
    }
    (good, broken)
}

/// Adds up what became of some lines; answers the errors in the order of the lines.
fn count(
    import: &mut Import,
    good: usize,
    outcome: Outcome,
    mut broken: Vec<super::LineError>,
) -> Vec<super::LineError> {
    let mut lines: Vec<i64> = broken.iter().map(|error| error.line).collect();
    lines.dedup();
    import.lines_done += (good + lines.len()) as i64;
    import.created += outcome.created;
    import.updated += outcome.updated;
    import.unchanged += outcome.unchanged;
    let mut errors = outcome.errors;
    errors.append(&mut broken);
    errors.sort_by_key(|error| error.line);
    let mut lines: Vec<i64> = errors.iter().map(|error| error.line).collect();
    lines.dedup();
    import.failed += lines.len() as i64;
    errors
}

async fn fail(app: &App, tenant: &Tenant, import: &Import, mut message: String) -> Result<()> {
    let tx = tenant.begin().await?;
    let Some(before) = imports::find_mine(&tx, import).await? else { return Ok(()) };
    if before.state == ImportState::Importing {
        let (done, total) = (before.lines_done, before.lines_total.unwrap_or_default());
        message += &format!(" {done} of {total} lines were written before.");
    }
    let mut import = before.clone();
    (import.state, import.message) = (ImportState::Failed, Some(message));
    imports::finish(&tx, app, Actor::system(), EventType::ImportFailed, &before, import).await?;
    tx.commit().await
}

/// Leaves an import for another turn; says whether it gets one.
async fn is_tried_again(app: &App, tenant: &Tenant, import: &Import) -> Result<bool> {
    let tx = tenant.begin().await?;
    let Some(mut there) = imports::find_mine(&tx, import).await? else { return Ok(true) };
    if there.tries >= MOST_TRIES {
        return Ok(false);
    }
    there.tries = there.tries.max(1);
    there.message = Some("It did not work and is tried again.".into());
    there.updated_at = app.clock.now();
    imports::store(&tx, &mut there).await?;
    tx.commit().await?;
    Ok(true)
}

/// Ends what is open in an organization that came from a backup or from elsewhere: the jobs did not come along,
/// and what was begun before must not go on unasked.
pub async fn end_what_was_open(tx: &TenantTx, app: &App) -> Result<()> {
    let now = app.clock.now();
    for table in ["imports", "exports"] {
        let sql = format!(
            "update {table} set state = 'failed', message = 'The organization was restored. Ask for it again.', \
             version = version + 1, updated_at = $1, finished_at = $1 where finished_at is null"
        );
        tx.execute(&sql, &[&now]).await?;
    }
    let sql = "update files set expires_at = $1 where purpose = 'import' and expires_at is null";
    tx.execute(sql, &[&(now + KEPT)]).await?;
    Ok(())
}

/// How long it is told what was imported and exported.
const TOLD: TimeDelta = TimeDelta::days(90);
const TRIMMED_AT_ONCE: i64 = 500;

/// Has what was imported and exported long ago forgotten in every organization.
pub async fn begin_trimming(app: &App) -> anyhow::Result<()> {
    Ok(jobs::enqueue_everywhere(app, None, &TrimExchange {}).await?)
}

/// Forgets what was imported and exported long ago, with what is left of its files, and goes on with what came
/// to a stand.
#[derive(Serialize, Deserialize)]
pub struct TrimExchange {}

impl Work for TrimExchange {
    const KIND: &'static str = "trim_exchange";

    async fn run(self, job: &Running) -> anyhow::Result<()> {
        let Some(tenant) = job.tenant().await? else { return Ok(()) };
        // What lost its job, with a worker that died at it again and again, goes on or comes to its end.
        let tx = tenant.begin().await?;
        if imports::next(&tx).await?.is_some() {
            RunImports::enqueue(&tx, &job.app, None).await?;
        }
        exports::go_on(&tx, &job.app).await?;
        tx.commit().await?;
        let before = job.app.clock.now() - TOLD;
        for sql in [
            "delete from imports where id in (select id from imports where finished_at < $1 limit $2) \
             returning error_report_id as file",
            "delete from exports where id in (select id from exports where finished_at < $1 limit $2) \
             returning file_id as file",
        ] {
            loop {
                let tx = tenant.begin().await?;
                let rows = tx.query(sql, &[&before, &TRIMMED_AT_ONCE]).await?;
                let mut gone: Vec<Uuid> = Vec::new();
                for row in &rows {
                    gone.extend(row.try_get::<_, Option<Uuid>>("file")?);
                }
                files::remove(&tx, &job.app, &gone).await?;
                tx.commit().await?;
                if rows.len() < TRIMMED_AT_ONCE as usize {
                    break;
                }
            }
        }
        Ok(())
    }
}
