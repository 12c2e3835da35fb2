//! Exchange: what an organization has comes in and goes out as files, CSV or JSON.
//!
//! A module declares what it exchanges, a [`Kind`] for each resource, and how a batch of lines is checked and
//! written ([`Importer`]) or read ([`Exporter`]). Everything else is here: files are read and written as
//! streams, line by line, and never held whole; jobs do the work and tell how far they are ([`imports`],
//! [`exports`]); every error is told with its line.

mod api;
mod delimited;
mod exports;
mod imports;
mod line;
mod read;
mod report;
mod run;
mod write;

use std::sync::Arc;

use chrono::TimeDelta;
use futures_util::future::BoxFuture;
use serde_json::Value;
use uuid::Uuid;

pub use api::ExchangeApi;
pub use exports::{Export, RunExport, request_export};
pub use imports::{Import, NewImport, request_import};
pub use line::{Cell, Line, LineError, Reading};
pub use run::{RunImports, TrimExchange, begin_trimming, end_what_was_open};

use crate::{
    app::App,
    audit::{Actor, ActorKind},
    auth::{Member, Origin, Permission, PermissionSet, Role, permissions::known},
    billing::check_writable,
    db::TenantTx,
    error::{Code, Error, Result},
    tenancy::Tenant,
    types::text_enum,
};

text_enum! {
    /// How a file is laid out.
    Format {
        /// A line of headers, then a line for each object; separated by commas, semicolons or tabs.
        Csv = "csv",
        /// One array of objects, or an object on each line.
        Json = "json",
    }
}

/// One column of a file, one key of an object.
pub struct Field {
    pub name: &'static str,
    /// Whether it holds several values: in CSV separated by commas or semicolons.
    pub many: bool,
    /// Whether an import takes it. The others are there for people to read, and passed over.
    pub taken: bool,
}

impl Field {
    pub const fn one(name: &'static str) -> Self {
        Self { name, many: false, taken: true }
    }

    pub const fn many(name: &'static str) -> Self {
        Self { name, many: true, taken: true }
    }

    pub const fn told(name: &'static str) -> Self {
        Self { name, many: false, taken: false }
    }
}

/// A resource that can be exchanged, as its module declares it.
pub struct Kind {
    /// As in the paths of the API.
    pub name: &'static str,
    pub fields: &'static [Field],
    /// What exporting and importing take.
    pub read: Permission,
    pub write: Permission,
    pub importer: fn(Maker) -> Box<dyn Importer>,
    /// Reads what these filters leave.
    pub exporter: fn(&Value) -> Result<Box<dyn Exporter>>,
}

/// Brings lines into an organization. One is made for each pass over a file.
pub trait Importer: Send {
    /// Says what would become of these lines, after those before them, without writing anything.
    fn check<'a>(&'a mut self, tx: &'a TenantTx, lines: &'a [Line]) -> BoxFuture<'a, Result<Outcome>>;

    /// Writes these lines, with an event for each change. What is wrong with a line now, although it was not
    /// when the file was checked, leaves out that line.
    fn write<'a>(&'a mut self, tx: &'a TenantTx, lines: &'a [Line]) -> BoxFuture<'a, Result<Outcome>>;
}

/// Reads what is exported. One is made for each export.
pub trait Exporter: Send + Sync {
    /// How many rows there are now.
    fn count<'a>(&'a self, tx: &'a TenantTx) -> BoxFuture<'a, Result<i64>>;

    /// About so many of the rows that follow, each with a cell for every field of the kind and after those that
    /// it names; `None` at the end.
    fn rows<'a>(&'a mut self, tx: &'a TenantTx, limit: i64)
    -> BoxFuture<'a, Result<Option<Vec<Vec<Value>>>>>;
}

/// What became of some lines.
#[derive(Debug, Default)]
pub struct Outcome {
    pub created: i64,
    pub updated: i64,
    pub unchanged: i64,
    pub errors: Vec<LineError>,
}

/// Who has something imported or exported: a member who may, at the time when it is done.
#[derive(Clone)]
pub struct Maker {
    pub app: Arc<App>,
    pub user: Uuid,
    pub actor: Actor,
    pub permissions: PermissionSet,
}

impl Maker {
    /// The member who asked for it, in person or by a key, if they may still do it and the organization may
    /// still be written, where that is what it takes.
    async fn of(
        app: &Arc<App>,
        tenant: &Tenant,
        user: Uuid,
        key: Option<Uuid>,
        needed: Permission,
    ) -> Result<Self> {
        if tenant.is_deleted() {
            return Err(Error::new(Code::TenantNotFound, "The organization was deleted."));
        }
        if tenant.is_suspended() {
            return Err(Error::new(Code::TenantSuspended, "The organization is suspended."));
        }
        if !needed.as_ref().ends_with(":read") {
            check_writable(app, tenant)?;
        }
        let permissions = may(app, tenant.id(), user, key).await?;
        if !permissions.is_some_and(|permissions| permissions.contains(needed)) {
            return Err(Error::denied(format!(
                "Whoever asked for it does not have the permission {needed} any more."
            )));
        }
        let kind = if key.is_some() { ActorKind::ApiKey } else { ActorKind::User };
        let actor = Actor { id: Some(user), kind, key, origin: Origin::default() };
        Ok(Self { app: app.clone(), user, actor, permissions: permissions.unwrap_or_default() })
    }

    pub fn may(&self, permission: Permission) -> bool {
        self.permissions.contains(permission)
    }
}

/// What a member may do now, in person or by a key of theirs; `None` for who is out. A session that ended
/// meanwhile takes nothing back that was asked for while it lasted.
async fn may(app: &App, organization: Uuid, user: Uuid, key: Option<Uuid>) -> Result<Option<PermissionSet>> {
    let tx = app.db.begin().await?;
    let row = tx
        .query_opt(
            "select m.role, m.grants, m.denials, k.scopes from platform.organization_members m \
             join platform.users u on u.id = m.user_id and u.is_active \
             left join platform.api_keys k on k.id = $3 and k.created_by = u.id and k.revoked_at is null \
               and (k.expires_at is null or k.expires_at > $4) \
             where m.organization_id = $1 and m.user_id = $2 and m.is_active and ($3::uuid is null or k.id is not null)",
            &[&organization, &user, &key, &app.clock.now()],
        )
        .await?;
    let Some(row) = row else { return Ok(None) };
    let role: Role = row.try_get("role")?;
    let (grants, denials): (Vec<String>, Vec<String>) = (row.try_get("grants")?, row.try_get("denials")?);
    let own = PermissionSet::effective(role, &known(&grants), &known(&denials));
    let scopes: Option<Vec<String>> = row.try_get("scopes")?;
    Ok(Some(scopes.map_or(own, |scopes| own.intersection(PermissionSet::of_key(&known(&scopes))))))
}

/// The kind of this name, where this version of the service has it.
fn kind(app: &App, name: &str) -> Result<&'static Kind> {
    app.exchanges()
        .iter()
        .find(|kind| kind.name == name)
        .ok_or_else(|| Error::internal(format!("nobody exchanges {name}")))
}

/// The resources whose exports somebody may see: those that they may read themselves. A key has the exports of
/// its maker, and may do less.
pub fn readable(who: &Member) -> Vec<&'static str> {
    let kinds = who.app.exchanges().iter();
    kinds.filter(|kind| who.may(kind.read)).map(|kind| kind.name).collect()
}

/// Whether a file is no export or report of a resource that somebody may not read.
pub async fn may_see_file(tx: &TenantTx, who: &Member, file: Uuid) -> Result<bool> {
    let sql = "select 1 from exports where file_id = $1 and resource <> all ($2) \
         union all select 1 from imports where error_report_id = $1 and resource <> all ($2) limit 1";
    Ok(tx.query_opt(sql, &[&file, &readable(who)]).await?.is_none())
}

/// Whether trying again is of no use, so that whoever waits is told why.
fn is_final(error: &Error) -> bool {
    matches!(
        error.code(),
        Code::PlanLimit
            | Code::PaymentRequired
            | Code::PermissionDenied
            | Code::TenantSuspended
            | Code::TenantNotFound
            | Code::NotFound
            | Code::Validation
            | Code::ModuleNotEnabled
    )
}

/// How long files that were made here stay, and those that were read.
const KEPT: TimeDelta = TimeDelta::days(7);
