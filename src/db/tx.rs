//! Transactions: one flush in, nothing left behind.
//!
//! Nothing is sent when a transaction is opened. Its first statement leaves together with `begin`
//! and the local settings, in one flush and one round trip; the client queues each message the
//! first time its future is polled, so `join!` keeps their order. A read is done after that: a
//! transaction that is dropped undone queues its `rollback` without waiting for it.
//!
//! What can go wrong, and what happens then:
//! - *A statement fails.* The transaction remembers it, and `commit` refuses: Postgres would answer
//!   the commit of a failed transaction with success.
//! - *A value cannot be encoded.* The `begin` is already out; the same memory and the same rollback
//!   take care of it.
//! - *The future of a request is dropped between two statements.* The rollback is queued; whoever
//!   gets the connection next is behind it.
//! - *… in the middle of a statement.* The connection stays on loan to a task that waits for the
//!   rollback's answer. If that takes long the statement is cancelled and the connection closed.
//! - *A cached plan no longer fits, because the schema was migrated.* The tenant's statements are
//!   forgotten, and if the failed statement was the first, it is done once more; a later one is
//!   answered with "try again".
//!
//! Everything in `platform` is on the first server. The transaction of a tenant on another one has a
//! companion there, opened when it is first needed, which all statements go to that name `platform.`;
//! both commit together ([`two_phase`](super::two_phase)).

use std::{
    future::Future,
    ops::Deref,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt, join};
use tokio::sync::OnceCell;
use tokio_postgres::{Client, Row, Statement, error::SqlState, types::ToSql};
use uuid::Uuid;

use super::{
    Schema,
    listen::{ACCESS, Announcer},
    pool::{Connection, ENTER, Lease, Pool},
    two_phase,
};
use crate::error::{Code, Error, Result};

/// Time that one statement may take; longer work is a job.
const STATEMENT_TIMEOUT: &str = "30s";
/// How long a dropped statement may go on before it is cancelled.
const PATIENCE: Duration = Duration::from_secs(2);

const NOTIFY: &str = "select pg_notify($1, said.payload) from unnest($2::text[]) as said (payload)";

tokio::task_local! {
    /// The idempotency key that the current request claimed. It is marked as carried out in the
    /// same commit as the request's change, so a crash between the commit and the stored answer
    /// can never lead to doing it twice. What is committed on the way, without being that change
    /// (a spare schema, a failed attempt to log in), uses `commit_aside`.
    pub static COMMIT_NOTE: Uuid;
}

type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

/// A transaction. Use it through [`TenantTx`] or [`PlatformTx`]; functions that only touch
/// `platform.*` by qualified name take `&Tx` and work in both.
pub struct Tx {
    /// Present until the transaction is dropped.
    lease: Option<Lease>,
    tenant: Uuid,
    path: String,
    organization: String,
    mode: Mode,
    /// For a tenant that is not on the server of `platform`.
    companion: Option<Companion>,
    begun: AtomicBool,
    failed: AtomicBool,
    done: AtomicBool,
    /// A statement met a plan of before a migration.
    stale: AtomicBool,
    in_flight: AtomicUsize,
    /// What is to be said once this is committed.
    announcements: AtomicU8,
    /// Whose access has changed.
    touched: Mutex<Vec<Uuid>>,
    /// Notices of a part that will be prepared, which Postgres does not let notify.
    notices: Mutex<Vec<(&'static str, Vec<String>)>>,
}

/// What a transaction sees and may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Each statement sees what is committed when it begins.
    Usual,
    /// All statements see one moment, and only read.
    Snapshot,
}

impl Mode {
    fn begin(self) -> &'static str {
        match self {
            Self::Usual => "begin",
            Self::Snapshot => "begin isolation level repeatable read read only",
        }
    }
}

/// The part of a transaction that is on the server of `platform`.
pub(super) struct Companion {
    /// The server that the tenant is on.
    server: Uuid,
    pool: Arc<Pool>,
    tx: OnceCell<Box<Tx>>,
}

impl Companion {
    pub fn on(pool: &Arc<Pool>, server: Uuid) -> Self {
        Self { server, pool: pool.clone(), tx: OnceCell::new() }
    }

    /// The part of this transaction, opened when it is first needed.
    async fn part(&self, of: &Tx) -> Result<&Tx> {
        let open = || async {
            let lease = self.pool.get(of.tenant).await?;
            let mut tx = Tx::new(lease, Uuid::nil(), String::new(), of.organization.clone());
            tx.mode = of.mode;
            Ok::<_, Error>(Box::new(tx))
        };
        Ok(self.tx.get_or_try_init(open).await?)
    }
}

/// A transaction inside one tenant's schema.
pub struct TenantTx {
    tx: Tx,
    organization: Uuid,
}

/// A transaction outside every tenant's schema.
pub struct PlatformTx(Tx);

impl TenantTx {
    pub(super) fn new(
        lease: Lease,
        schema: Schema,
        organization: Uuid,
        mode: Mode,
        companion: Option<Companion>,
    ) -> Self {
        let mut tx = Tx::new(lease, schema.id(), path(schema), organization.to_string());
        (tx.mode, tx.companion) = (mode, companion);
        Self { tx, organization }
    }

    /// The organization whose schema this is.
    pub fn organization(&self) -> Uuid {
        self.organization
    }

    /// The schema that this transaction is in.
    pub fn schema(&self) -> Schema {
        Schema::new(self.tx.tenant)
    }

    pub async fn commit(self) -> Result<()> {
        self.tx.finish(true).await
    }

    /// Commits something that is not the change that the request is about; see [`COMMIT_NOTE`].
    pub async fn commit_aside(self) -> Result<()> {
        self.tx.finish(false).await
    }
}

impl PlatformTx {
    pub(super) fn new(lease: Lease, companion: Option<Companion>) -> Self {
        let mut tx = Tx::new(lease, Uuid::nil(), String::new(), String::new());
        tx.companion = companion;
        Self(tx)
    }

    pub async fn commit(self) -> Result<()> {
        self.0.finish(true).await
    }

    /// Commits something that is not the change that the request is about; see [`COMMIT_NOTE`].
    pub async fn commit_aside(self) -> Result<()> {
        self.0.finish(false).await
    }

    /// Goes on inside a tenant's schema on another server, with what was begun here as its companion.
    pub(super) fn accompany(
        mut self,
        lease: Lease,
        server: Uuid,
        schema: Schema,
        organization: Uuid,
    ) -> TenantTx {
        self.0.organization = organization.to_string();
        let pool = self.0.lease().pool().clone();
        let companion = Companion { server, pool, tx: OnceCell::new_with(Some(Box::new(self.0))) };
        TenantTx::new(lease, schema, organization, Mode::Usual, Some(companion))
    }

    /// Goes on inside a tenant's schema on this server.
    pub(super) async fn enter(self, schema: Schema, organization: Uuid) -> Result<TenantTx> {
        let mut tx = self.0;
        (tx.path, tx.organization) = (path(schema), organization.to_string());
        if tx.begun.load(Ordering::Relaxed) {
            let settings: Params<'_> = &[&tx.path, &STATEMENT_TIMEOUT, &tx.organization];
            tx.query(ENTER, settings).await?;
        }
        tx.tenant = schema.id();
        Ok(TenantTx { tx, organization })
    }
}

/// What a transaction in a tenant's schema sees.
fn path(schema: Schema) -> String {
    format!("{schema}, extensions")
}

impl Deref for TenantTx {
    type Target = Tx;

    fn deref(&self) -> &Tx {
        &self.tx
    }
}

impl Deref for PlatformTx {
    type Target = Tx;

    fn deref(&self) -> &Tx {
        &self.0
    }
}

impl Tx {
    fn new(lease: Lease, tenant: Uuid, path: String, organization: String) -> Self {
        Self {
            lease: Some(lease),
            tenant,
            path,
            organization,
            mode: Mode::Usual,
            companion: None,
            begun: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            done: AtomicBool::new(false),
            stale: AtomicBool::new(false),
            in_flight: AtomicUsize::new(0),
            announcements: AtomicU8::new(0),
            touched: Mutex::default(),
            notices: Mutex::default(),
        }
    }

    /// All rows of a statement.
    pub async fn query(&self, sql: &str, params: Params<'_>) -> Result<Vec<Row>> {
        self.run(sql, |client, statement| async move { client.query(&statement, params).await }).await
    }

    /// The one row that a statement must have.
    pub async fn query_one(&self, sql: &str, params: Params<'_>) -> Result<Row> {
        self.query_opt(sql, params).await?.ok_or_else(|| Error::internal(format!("no row from: {sql}")))
    }

    /// The row of a statement that has one or none.
    pub async fn query_opt(&self, sql: &str, params: Params<'_>) -> Result<Option<Row>> {
        Ok(self.query(sql, params).await?.into_iter().next())
    }

    /// How many rows a statement changed.
    pub async fn execute(&self, sql: &str, params: Params<'_>) -> Result<u64> {
        self.run(sql, |client, statement| async move { client.execute(&statement, params).await }).await
    }

    /// All rows of a statement that will hardly be run in this schema again: nothing of it is kept.
    pub async fn query_once(&self, sql: &str, params: Params<'_>) -> Result<Vec<Row>> {
        if let Some(companion) = self.companion_for(sql) {
            return Box::pin(async move { companion.part(self).await?.query_once(sql, params).await }).await;
        }
        let flight = Flight::start(&self.in_flight);
        let (opened, result) = join!(self.open(), self.lease().client.query(sql, params));
        flight.land();
        self.note(opened.and(result))
    }

    /// A statement that takes no parameters and is not worth preparing: `create`, `drop`, `set`.
    pub async fn command(&self, sql: &str) -> Result<()> {
        if let Some(companion) = self.companion_for(sql) {
            return Box::pin(async move { companion.part(self).await?.command(sql).await }).await;
        }
        let flight = Flight::start(&self.in_flight);
        let (opened, result) = join!(self.open(), self.lease().client.batch_execute(sql));
        flight.land();
        self.note(opened.and(result))
    }

    /// The same on both servers, where this is a transaction on two.
    pub async fn command_everywhere(&self, sql: &str) -> Result<()> {
        if let Some(companion) = &self.companion {
            companion.part(self).await?.command(sql).await?;
        }
        self.command(sql).await
    }

    /// Says on this channel, once and without a payload, that something was committed.
    pub fn announce(&self, channel: &str) {
        self.announcements.fetch_or(Announcer::bit(channel), Ordering::Relaxed);
    }

    /// The organization whose transaction this is; `None` outside every organization.
    pub fn organization_id(&self) -> Option<Uuid> {
        self.organization.parse().ok().filter(|id: &Uuid| !id.is_nil())
    }

    /// Commits. An error means that nothing of the transaction happened, except where the
    /// connection broke while the commit was under way.
    async fn finish(mut self, noted: bool) -> Result<()> {
        let other = self.companion.as_ref().and_then(|companion| companion.tx.get());
        if noted && (self.has_begun() || other.is_some_and(|other| other.has_begun())) {
            self.mark_claim().await?;
        }
        let Some(Companion { server, pool, tx }) = self.companion.take() else {
            return self.commit().await;
        };
        match tx.into_inner() {
            None => {
                self.commit().await?;
                // What is committed is committed, whether or not it can be told now.
                if self.has_notices()
                    && let Ok(lease) = pool.get(Uuid::nil()).await
                {
                    self.give_notices(&lease).await;
                }
                Ok(())
            }
            Some(companion) if !self.has_begun() => {
                companion.commit().await?;
                self.say_with(&companion).await;
                Ok(())
            }
            // A request that is dropped in the middle of it must not leave it to be settled later.
            Some(companion) => {
                let both = Box::pin(two_phase::commit(self, *companion, server));
                tokio::spawn(both).await.map_err(Error::internal)?
            }
        }
    }

    /// Writes into the commit that what the request's idempotency key stands for is done.
    async fn mark_claim(&self) -> Result<()> {
        let Ok(claim) = COMMIT_NOTE.try_with(|claim| *claim) else { return Ok(()) };
        self.is_sound()?;
        let sql = "update platform.idempotency_keys set committed = true where id = $1";
        if self.execute(sql, &[&claim]).await? != 1 {
            return Err(Error::new(
                Code::IdempotencyConflict,
                "This took so long that another request with the same Idempotency-Key went ahead.",
            ));
        }
        Ok(())
    }

    pub(super) fn is_sound(&self) -> Result<()> {
        // One that was dropped may have failed without anybody having seen it.
        match self.failed.load(Ordering::Relaxed) || self.in_flight.load(Ordering::Relaxed) > 0 {
            true => Err(Error::internal("commit of a transaction in which a statement failed")),
            false => Ok(()),
        }
    }

    pub(super) async fn commit(&self) -> Result<()> {
        if self.has_begun() {
            self.is_sound()?;
            self.end("commit").await?;
            self.say();
        }
        Ok(())
    }

    /// Ends the transaction by this command.
    pub(super) async fn end(&self, command: &str) -> Result<()> {
        let flight = Flight::start(&self.in_flight);
        let ended = self.lease().client.batch_execute(command).await;
        flight.land();
        self.note(ended)?;
        self.done.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// A command of its own after the transaction has ended, on the same connection.
    pub(super) async fn afterwards(&self, command: &str) -> Result<()> {
        Ok(self.lease().client.batch_execute(command).await?)
    }

    /// Tells what was to be told once this is committed.
    fn say(&self) {
        let touched = std::mem::take(&mut *self.touched.lock().expect("nothing panics with the lock held"));
        self.lease().announce(self.announcements.load(Ordering::Relaxed), &touched);
    }

    /// The same for both parts of a transaction on two servers, with the notices that had to wait.
    pub(super) async fn say_with(&self, platform: &Tx) {
        self.say();
        platform.say();
        self.give_notices(platform.lease()).await;
    }

    fn has_notices(&self) -> bool {
        !self.notices.lock().expect("nothing panics with the lock held").is_empty()
    }

    /// Gives the notices that had to wait, by a connection to the first server.
    async fn give_notices(&self, lease: &Lease) {
        let notices = std::mem::take(&mut *self.notices.lock().expect("nothing panics with the lock held"));
        for (channel, payloads) in notices {
            let said = lease.client.query(NOTIFY, &[&channel, &payloads]).await;
            if let Err(error) = said {
                tracing::warn!(%error, channel, "a notice could not be given");
            }
        }
    }

    /// Says something on a channel; heard by all instances once this is committed.
    pub async fn notify(&self, channel: &'static str, payloads: Vec<String>) -> Result<()> {
        if self.companion.is_some() {
            self.notices.lock().expect("nothing panics with the lock held").push((channel, payloads));
            return Ok(());
        }
        self.query(NOTIFY, &[&channel, &payloads]).await?;
        Ok(())
    }

    /// Says that whoever this is the id of (a user, a session, a key) may do less or more than before: here
    /// with the commit, at other instances in the moment that the notice takes.
    pub async fn access_changed(&self, id: Uuid) -> Result<()> {
        self.touched.lock().expect("nothing panics with the lock held").push(id);
        self.notify(ACCESS, vec![id.to_string()]).await
    }

    /// The part of this transaction that statements on this table run on.
    pub(super) async fn part_for(&self, from: &str) -> Result<&Tx> {
        match self.companion_for(from) {
            Some(companion) => companion.part(self).await,
            None => Ok(self),
        }
    }

    /// The companion, where a statement is for it.
    fn companion_for(&self, sql: &str) -> Option<&Companion> {
        self.companion.as_ref().filter(|_| sql.contains("platform."))
    }

    /// After reads that were the first of this transaction: begins it anew where one of them met a
    /// plan of before a migration, and says whether it did, so that they can be done once more.
    pub(super) async fn restarts_after_stale_plan(&self) -> Result<bool> {
        if !self.stale.load(Ordering::Relaxed) {
            return Ok(false);
        }
        self.lease().client.batch_execute("rollback").await?;
        for flag in [&self.begun, &self.failed, &self.stale] {
            flag.store(false, Ordering::Relaxed);
        }
        Ok(true)
    }

    pub(super) fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Relaxed)
    }

    async fn run<'a, T, F, Fut>(&'a self, sql: &str, act: F) -> Result<T>
    where
        F: Fn(&'a Client, Statement) -> Fut,
        Fut: Future<Output = Result<T, tokio_postgres::Error>>,
    {
        match self.companion_for(sql) {
            None => self.run_here(sql, act).await,
            // Boxed, as it is rare: the futures of all statements would be twice as large.
            Some(companion) => {
                Box::pin(async move { companion.part(self).await?.run_here(sql, act).await }).await
            }
        }
    }

    async fn run_here<'a, T, F, Fut>(&'a self, sql: &str, act: F) -> Result<T>
    where
        F: Fn(&'a Client, Statement) -> Fut,
        Fut: Future<Output = Result<T, tokio_postgres::Error>>,
    {
        let flight = Flight::start(&self.in_flight);
        let first = !self.begun.load(Ordering::Relaxed);
        let mut result = self.attempt(sql, &act).await;
        if result.as_ref().is_err_and(is_stale_plan) {
            self.lease().forget(self.tenant);
            self.stale.store(true, Ordering::Relaxed);
            let alone = self.in_flight.load(Ordering::Relaxed) == 1;
            if first && alone && self.lease().client.batch_execute("rollback").await.is_ok() {
                self.begun.store(false, Ordering::Relaxed);
                self.stale.store(false, Ordering::Relaxed);
                result = self.attempt(sql, &act).await;
            }
        }
        flight.land();
        self.note(result)
    }

    async fn attempt<'a, T, F, Fut>(&'a self, sql: &str, act: &F) -> Result<T, tokio_postgres::Error>
    where
        F: Fn(&'a Client, Statement) -> Fut,
        Fut: Future<Output = Result<T, tokio_postgres::Error>>,
    {
        let lease = self.lease();
        if let Some(statement) = lease.cached(self.tenant, sql) {
            let (opened, result) = join!(self.open(), act(&lease.client, statement));
            opened?;
            return result;
        }
        // A plan remembers the path it was made under, so it is made inside the transaction.
        let (opened, prepared) = join!(self.open(), lease.client.prepare(sql));
        opened?;
        let statement = prepared?;
        lease.cache(self.tenant, sql, statement.clone());
        act(&lease.client, statement).await
    }

    /// Queues `begin` and the local settings, once.
    async fn open(&self) -> Result<(), tokio_postgres::Error> {
        if self.begun.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        let Connection { client, enter, .. } = &**self.lease();
        let settings: Params<'_> = &[&self.path, &STATEMENT_TIMEOUT, &self.organization];
        let (begun, entered) = join!(client.batch_execute(self.mode.begin()), client.query(enter, settings));
        begun?;
        entered?;
        Ok(())
    }

    fn note<T>(&self, result: Result<T, tokio_postgres::Error>) -> Result<T> {
        result.map_err(|error| {
            self.failed.store(true, Ordering::Relaxed);
            let gone = error.code().is_some_and(|code| *code == SqlState::UNDEFINED_TABLE);
            match gone && !self.tenant.is_nil() {
                // Another schema has taken its place meanwhile.
                true => Error::unavailable("The organization's data is moving. Try again in a moment.", 1)
                    .caused_by(error),
                false => error.into(),
            }
        })
    }

    fn lease(&self) -> &Lease {
        self.lease.as_ref().expect("present until the transaction is dropped")
    }
}

impl Drop for Tx {
    fn drop(&mut self) {
        let Some(lease) = self.lease.take() else { return };
        if !self.begun.load(Ordering::Relaxed) || self.done.load(Ordering::Relaxed) {
            return;
        }
        if self.in_flight.load(Ordering::Relaxed) == 0 {
            // Everything sent has been answered: polling once queues the rollback, ahead of
            // whatever the next user of the connection sends.
            if let Some(Err(_)) = lease.client.batch_execute("rollback").now_or_never() {
                lease.mark_broken();
            }
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            lease.mark_broken();
            return;
        };
        runtime.spawn(async move {
            let rolled_back = tokio::time::timeout(PATIENCE, lease.client.batch_execute("rollback")).await;
            if !matches!(rolled_back, Ok(Ok(()))) {
                lease.cancel_and_close().await;
            }
        });
    }
}

/// Counts a statement as under way until its future is finished. A future that is dropped before
/// leaves the count standing: the transaction can tell.
struct Flight<'a> {
    count: &'a AtomicUsize,
}

impl<'a> Flight<'a> {
    fn start(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self { count }
    }

    fn land(self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

fn is_stale_plan(error: &tokio_postgres::Error) -> bool {
    error.as_db_error().is_some_and(|database| {
        *database.code() == SqlState::FEATURE_NOT_SUPPORTED && database.message().starts_with("cached plan")
    })
}
