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

use std::{
    future::Future,
    ops::Deref,
    sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering},
    time::Duration,
};

use futures_util::{FutureExt, join};
use tokio_postgres::{Client, Row, Statement, error::SqlState, types::ToSql};
use uuid::Uuid;

use super::{
    Schema,
    listen::Announcer,
    pool::{Connection, ENTER, Lease},
};
use crate::error::{Code, Error, Result};

/// Time that one statement may take; longer work is a job.
const STATEMENT_TIMEOUT: &str = "30s";
/// How long a dropped statement may go on before it is cancelled.
const PATIENCE: Duration = Duration::from_secs(2);

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
    begun: AtomicBool,
    failed: AtomicBool,
    done: AtomicBool,
    /// A statement met a plan of before a migration.
    stale: AtomicBool,
    in_flight: AtomicUsize,
    /// What is to be said once this is committed.
    announcements: AtomicU8,
}

/// A transaction inside one tenant's schema.
pub struct TenantTx {
    tx: Tx,
    organization: Uuid,
}

/// A transaction outside every tenant's schema.
pub struct PlatformTx(Tx);

impl TenantTx {
    pub(super) fn new(lease: Lease, schema: Schema, organization: Uuid) -> Self {
        let tx = Tx::new(lease, schema.id(), path(schema), organization.to_string());
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
        self.tx.commit(true).await
    }

    /// Commits something that is not the change that the request is about; see [`COMMIT_NOTE`].
    pub async fn commit_aside(self) -> Result<()> {
        self.tx.commit(false).await
    }
}

impl PlatformTx {
    pub(super) fn new(lease: Lease) -> Self {
        Self(Tx::new(lease, Uuid::nil(), String::new(), String::new()))
    }

    pub async fn commit(self) -> Result<()> {
        self.0.commit(true).await
    }

    /// Commits something that is not the change that the request is about; see [`COMMIT_NOTE`].
    pub async fn commit_aside(self) -> Result<()> {
        self.0.commit(false).await
    }

    /// Goes on inside a tenant's schema.
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
            begun: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            done: AtomicBool::new(false),
            stale: AtomicBool::new(false),
            in_flight: AtomicUsize::new(0),
            announcements: AtomicU8::new(0),
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

    /// A statement that takes no parameters and is not worth preparing: `create`, `drop`, `set`.
    pub async fn command(&self, sql: &str) -> Result<()> {
        let flight = Flight::start(&self.in_flight);
        let (opened, result) = join!(self.open(), self.lease().client.batch_execute(sql));
        flight.land();
        self.note(opened.and(result))
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
    async fn commit(&self, noted: bool) -> Result<()> {
        if !self.begun.load(Ordering::Relaxed) {
            return Ok(());
        }
        if self.failed.load(Ordering::Relaxed) {
            return Err(Error::internal("commit of a transaction in which a statement failed"));
        }
        if noted && let Ok(claim) = COMMIT_NOTE.try_with(|claim| *claim) {
            let ours = self
                .execute("update platform.idempotency_keys set committed = true where id = $1", &[&claim])
                .await?;
            if ours != 1 {
                return Err(Error::new(
                    Code::IdempotencyConflict,
                    "This took so long that another request with the same Idempotency-Key went ahead.",
                ));
            }
        }
        let flight = Flight::start(&self.in_flight);
        let committed = self.lease().client.batch_execute("commit").await;
        flight.land();
        self.note(committed)?;
        self.done.store(true, Ordering::Relaxed);
        self.lease().announce(self.announcements.load(Ordering::Relaxed));
        Ok(())
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
        let (begun, entered) = join!(client.batch_execute("begin"), client.query(enter, settings));
        begun?;
        entered?;
        Ok(())
    }

    fn note<T>(&self, result: Result<T, tokio_postgres::Error>) -> Result<T> {
        result.map_err(|error| {
            self.failed.store(true, Ordering::Relaxed);
            error.into()
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
