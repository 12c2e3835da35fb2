//! Archives: an organization, or one module of it, as one file.
//!
//! It is a compressed tar. Rows are in `data/<module>/<table>/<n>.jsonl`, one JSON object for each
//! ([`copy`] says how values are written), in parts that fit into memory. What `platform` knows of the
//! organization is in `platform/*.json`. What its files hold is in `files/`, behind the rows that tell of them
//! ([`files`]). Behind everything that it lists come `manifest.json`, with versions,
//! sizes and SHA-256, and its seal: a MAC that only an installation with the same key can make. So an archive that
//! was cut off has no manifest, and one that was changed does not fit it.
//!
//! Reading trusts nothing: an archive is read to its end and judged ([`check`]) before a row of it is used,
//! names in it are compared and never opened, and what is used is compared with the manifest again.

mod files;
mod ids;
mod read;
mod write;

use std::{
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use chrono::{DateTime, Utc};
use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub(super) use files::{agree, copy as copy_files, put as put_files, recorded as recorded_files};
pub(super) use ids::Ids;
pub(super) use read::{Checked, check, load};
use write::Writer;

use super::{copy, operation::Progress, transfer};
use crate::{
    app::App,
    audit,
    auth::{Role, sealing::hex},
    db::{
        Place, TenantTx, Tx,
        migrations::{Set, all_sets},
    },
    error::{Error, Result},
    organizations::OrganizationStatus,
    tenancy::Tenant,
    types::{Country, Email, Locale, Name, Prose, Slug, Text, Timezone, Username, WebUrl},
};

/// How archives of this program are laid out.
const FORMAT: u64 = 1;
const MANIFEST: &str = "manifest.json";
const SEAL: &str = "manifest.seal";
const ORGANIZATION: &str = "platform/organization.json";
const MEMBERS: &str = "platform/members.json";
/// What manifests are sealed for.
const PURPOSE: &str = "archive manifest";
/// Parts in an archive at most: rows by the 8 MiB, and each file.
const MOST_ENTRIES: usize = 500_000;

/// What an archive says of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    format: u64,
    /// The version of the program that wrote it.
    program: String,
    pub(super) organization: Uuid,
    /// The moment that everything in it is of.
    pub(super) taken_at: DateTime<Utc>,
    /// Present where it holds no more than this module.
    only_module: Option<String>,
    pub(super) modules: Vec<Module>,
    entries: Vec<Entry>,
    /// What was wrong with the audit log already.
    pub(super) audit_problems: Vec<String>,
    /// What is not in it.
    left_out: Vec<String>,
}

/// A module, and the migrations that its tables have behind them.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Module {
    pub(super) name: String,
    pub(super) version: i64,
    checksum: String,
}

/// One of the files in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    path: String,
    /// Lines, where it holds rows.
    rows: u64,
    bytes: u64,
    sha256: String,
}

/// What `platform` knows of the organization.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OrganizationPart {
    pub(super) slug: Slug,
    pub(super) name: Name,
    pub(super) description: Option<Prose>,
    pub(super) industry: Option<Text<1, 100>>,
    pub(super) size_range: Option<Text<1, 50>>,
    pub(super) country_code: Option<Country>,
    pub(super) timezone: Timezone,
    pub(super) logo_url: Option<WebUrl>,
    /// The file that is the logo.
    #[serde(default)]
    pub(super) logo_file_id: Option<Uuid>,
    pub(super) require_mfa: bool,
    pub(super) status: OrganizationStatus,
    pub(super) created_by: Uuid,
    pub(super) created_at: DateTime<Utc>,
    /// Those that it had proved to be its own.
    pub(super) domains: Vec<String>,
}

/// A member, and who that is.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MemberPart {
    pub(super) user: Uuid,
    pub(super) email: Email,
    pub(super) username: Option<Username>,
    pub(super) first_name: Text<0, 150>,
    pub(super) last_name: Text<0, 150>,
    pub(super) display_name: Option<Text<1, 255>>,
    pub(super) locale: Locale,
    pub(super) timezone: Timezone,
    pub(super) role: Role,
    pub(super) grants: Vec<String>,
    pub(super) denials: Vec<String>,
    pub(super) is_active: bool,
    pub(super) joined_at: DateTime<Utc>,
}

/// Where an archive is written.
#[derive(Clone, Debug)]
pub enum Target {
    File(PathBuf),
    Stdout,
}

/// What was written.
#[derive(Clone, Debug, Serialize)]
pub struct Exported {
    /// Absent for standard output.
    pub file: Option<PathBuf>,
    /// Of the file as a whole.
    pub sha256: String,
    pub rows: u64,
    /// Files of the organization that are in it...
    pub files: u64,
    /// ... and which are not, and why.
    pub missing: Vec<String>,
    /// Of the file.
    pub bytes: u64,
    /// What was wrong with the audit log.
    pub audit_problems: Vec<String>,
}

/// Writes what an organization is at one moment.
pub(super) async fn export(
    app: &Arc<App>,
    tenant: &Tenant,
    place: &Place,
    target: Target,
    with_files: bool,
    progress: Progress<'_>,
) -> Result<Exported> {
    let audit_problems = audit::verify(app, tenant).await?.problems;
    let tx = app.directory.door.begin_snapshot(place, tenant.id()).await?;
    copy::prepare(&tx).await?;
    let mut writer = Writer::begin(target, app.clock.now());
    writer.add_json(ORGANIZATION, &organization(&tx, tenant.id()).await?).await?;
    writer.add_json(MEMBERS, &members(&tx, tenant.id()).await?).await?;
    let modules = modules(&tx, place).await?;
    let mut left_out: Vec<String> = [
        "accounts' passwords and second factors",
        "API keys, open invitations and proofs of domains",
        "subscriptions and invoices",
    ]
    .map(String::from)
    .into();
    for table in copy::tables(&tx).await? {
        match modules.iter().find(|(_, set)| set.tables().contains(&table.name)) {
            Some((module, _)) => writer.add_table(&tx, &module.name, &table, progress).await?,
            None => left_out.push(format!("the table {}, which no module knows", table.name)),
        }
    }
    let recorded = files::recorded(&tx).await?;
    drop(tx);
    let missing = match with_files {
        true => files::add(app, tenant.id(), &mut writer, &recorded, progress).await?,
        false if recorded.is_empty() => Vec::new(),
        false => vec![format!("{} files, as was asked for", recorded.len())],
    };
    left_out.extend_from_slice(&missing);
    let manifest = Manifest {
        only_module: None,
        modules: modules.into_iter().map(|(module, _)| module).collect(),
        audit_problems,
        left_out,
        ..writer.manifest(tenant.id())
    };
    Ok(Exported { missing, ..writer.finish(app, manifest).await? })
}

/// Writes the tables of one module of an organization, at one moment.
pub async fn export_module(app: &Arc<App>, tenant: &Tenant, module: &str, path: &Path) -> Result<Exported> {
    let place = transfer::living(app, tenant.id()).await?;
    let tx = app.directory.door.begin_snapshot(&place, tenant.id()).await?;
    copy::prepare(&tx).await?;
    let (known, set) = modules(&tx, &place)
        .await?
        .into_iter()
        .find(|(known, _)| known.name == module)
        .ok_or_else(|| Error::conflict(format!("The organization has no module {module}.")))?;
    let mut writer = Writer::begin(Target::File(path.to_owned()), app.clock.now());
    let own = set.tables();
    for table in copy::tables(&tx).await?.iter().filter(|table| own.contains(&table.name)) {
        writer.add_table(&tx, module, table, &|_| {}).await?;
    }
    drop(tx);
    let manifest = Manifest {
        only_module: Some(module.to_owned()),
        modules: vec![known],
        ..writer.manifest(tenant.id())
    };
    writer.finish(app, manifest).await
}

/// The modules of a schema, and the migrations that led to where they are.
async fn modules(tx: &TenantTx, place: &Place) -> Result<Vec<(Module, Set)>> {
    let rows = tx
        .query_once(
            "select module, version, checksum from platform.tenant_schema_modules where schema_id = $1 order by module",
            &[&place.schema.id()],
        )
        .await?;
    let mut modules = Vec::new();
    for row in &rows {
        let (name, version): (String, i64) = (row.try_get("module")?, row.try_get("version")?);
        let led: Option<String> = row.try_get("checksum")?;
        let set = all_sets().into_iter().find(|set| set.module == name && set.latest() >= version);
        let set = set.ok_or_else(|| {
            Error::conflict(format!(
                "module {name} is at version {version}, which only a newer program knows"
            ))
        })?;
        if let Some(objection) = set.objection(version, led.as_deref()) {
            return Err(Error::conflict(objection));
        }
        modules.push((Module { name, version, checksum: set.checksum(version) }, set.upto(version)));
    }
    Ok(modules)
}

async fn organization(tx: &Tx, id: Uuid) -> Result<OrganizationPart> {
    let sql = "select slug, name, description, industry, size_range, country_code, timezone, logo_url, logo_file_id, \
         require_mfa, status, created_by, created_at, array(select d.domain from platform.organization_domains d \
         where d.organization_id = o.id and d.verified_at is not null order by d.domain) as domains \
         from platform.organizations o where id = $1";
    let row = tx.query_one(sql, &[&id]).await?;
    Ok(OrganizationPart {
        slug: row.try_get("slug")?,
        name: row.try_get("name")?,
        description: row.try_get("description")?,
        industry: row.try_get("industry")?,
        size_range: row.try_get("size_range")?,
        country_code: row.try_get("country_code")?,
        timezone: row.try_get("timezone")?,
        logo_url: row.try_get("logo_url")?,
        logo_file_id: row.try_get("logo_file_id")?,
        require_mfa: row.try_get("require_mfa")?,
        status: row.try_get("status")?,
        created_by: row.try_get("created_by")?,
        created_at: row.try_get("created_at")?,
        domains: row.try_get("domains")?,
    })
}

async fn members(tx: &Tx, organization: Uuid) -> Result<Vec<MemberPart>> {
    let sql = "select u.id, u.email, u.username, u.first_name, u.last_name, u.display_name, u.locale, u.timezone, \
         m.role, m.grants, m.denials, m.is_active, m.joined_at from platform.organization_members m \
         join platform.users u on u.id = m.user_id where m.organization_id = $1 order by m.joined_at, u.id";
    let rows = tx.query(sql, &[&organization]).await?;
    rows.iter()
        .map(|row| {
            Ok(MemberPart {
                user: row.try_get("id")?,
                email: row.try_get("email")?,
                username: row.try_get("username")?,
                first_name: row.try_get("first_name")?,
                last_name: row.try_get("last_name")?,
                display_name: row.try_get("display_name")?,
                locale: row.try_get("locale")?,
                timezone: row.try_get("timezone")?,
                role: row.try_get("role")?,
                grants: row.try_get("grants")?,
                denials: row.try_get("denials")?,
                is_active: row.try_get("is_active")?,
                joined_at: row.try_get("joined_at")?,
            })
        })
        .collect()
}

/// Hands on what is written or read, and takes its digest.
struct Hashing<T> {
    inner: T,
    digest: Context,
    bytes: u64,
}

impl<T> Hashing<T> {
    fn new(inner: T) -> Self {
        Self { inner, digest: Context::new(&SHA256), bytes: 0 }
    }

    fn told(self) -> (String, u64) {
        (hex(self.digest.finish().as_ref()), self.bytes)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.digest.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.digest.update(&buffer[..read]);
        self.bytes += read as u64;
        Ok(read)
    }
}
