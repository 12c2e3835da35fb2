//! Modules of an organization: parts of the service that it can have beyond those that all have.
//!
//! Enabling one puts its tables into the organization's schema; removing it writes what they hold into
//! an archive and drops them. Both are asked for here and done by a job ([`ChangeModule`]). What the
//! schema holds is what the organization has; a row of `platform.organization_modules` says what was
//! asked for and how that stands.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use poem_openapi::{
    Object, OpenApi,
    param::{Path, Query},
    types::Example,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use crate::{
    api::Tag,
    app::App,
    audit::{Actor, Changes},
    auth::{
        Can, Member,
        permissions::{OrganizationRead, SettingsManage},
    },
    db::{
        Row, TenantTx, Tx,
        migrations::{self, Set, all_sets},
    },
    error::{Code, Error, Result},
    events::{self, EventType},
    http::{IfMatch, Json, Queued, Single, Versioned},
    jobs::{self, Policy, Running, Terms, Work},
    page::{Page, Paging},
    tenancy::{
        self, Tenant,
        fleet::{
            archive, backups,
            operation::{self, Operation},
        },
    },
    types::{EXAMPLE_ID, example_time, text_enum},
};

text_enum! {
    /// How a module stands in an organization.
    ModuleState {
        /// The organization does not have it.
        Disabled = "disabled",
        /// It is being put in.
        Enabling = "enabling",
        /// The organization has it.
        Enabled = "enabled",
        /// What it holds is being exported, and then removed.
        Removing = "removing",
        /// What was asked for could not be done; `error` tells. Ask for it again, or for the opposite.
        Failed = "failed",
    }
}

/// A module, and how it stands in an organization.
#[derive(Clone, Debug, Serialize, Object)]
#[oai(example)]
pub struct OrganizationModule {
    pub name: String,
    pub state: ModuleState,
    /// Whether an organization may be without it.
    pub optional: bool,
    /// Where its content is: what is exported and dropped when it is removed.
    pub tables: Vec<String>,
    /// Where its content goes, or went, when it is removed.
    pub archive: Option<ModuleArchive>,
    /// Why what was asked for is not done.
    pub error: Option<String>,
    /// Who asked last.
    pub requested_by: Option<Uuid>,
    pub updated_at: Option<DateTime<Utc>>,
    #[serde(skip)]
    #[oai(skip)]
    pub version: i64,
}

/// The file with what a removed module held. The platform's staff hand it out.
#[derive(Clone, Debug, Serialize, Object)]
pub struct ModuleArchive {
    /// Its name in the service's folder of backups.
    pub file: String,
    /// The digest of the file; known once it is written, and told by the event `module.removed`.
    pub sha256: Option<String>,
}

impl ModuleArchive {
    fn of(organization: Uuid, module: &str, now: DateTime<Utc>) -> Self {
        let time = now.format("%Y%m%dT%H%M%SZ");
        Self { file: format!("{organization}/modules/{module}-{time}.tar.gz"), sha256: None }
    }
}

impl Versioned for OrganizationModule {
    fn version(&self) -> i64 {
        self.version
    }
}

impl Example for OrganizationModule {
    fn example() -> Self {
        Self {
            name: "operations".into(),
            state: ModuleState::Enabled,
            optional: true,
            tables: vec!["updates".into()],
            archive: None,
            error: None,
            requested_by: Some(EXAMPLE_ID),
            updated_at: Some(example_time()),
            version: 2,
        }
    }
}

pub struct ModulesApi;

#[OpenApi(tag = "Tag::Organizations")]
impl ModulesApi {
    /// List modules.
    ///
    /// Those that the organization has, and those that it could have.
    #[oai(path = "/organizations/:organization_id/modules", method = "get", operation_id = "list_modules")]
    async fn list(
        &self,
        who: Can<OrganizationRead>,
        #[oai(name = "organization_id")] _id: Path<Uuid>,
        page: Query<Option<u32>>,
        page_size: Query<Option<u32>>,
    ) -> Result<Json<Page<OrganizationModule>>> {
        let paging = Paging::new(page.0, page_size.0, None)?;
        let tx = who.begin().await?;
        let all = read(&tx, who.tenant.id(), &all_sets()).await?;
        Ok(Json(paging.of(all)))
    }

    /// See a module.
    #[oai(
        path = "/organizations/:organization_id/modules/:module",
        method = "get",
        operation_id = "get_module"
    )]
    async fn get(
        &self,
        who: Can<OrganizationRead>,
        #[oai(name = "organization_id")] _id: Path<Uuid>,
        module: Path<String>,
    ) -> Result<Single<OrganizationModule>> {
        let tx = who.begin().await?;
        Ok(Single(find(&tx, who.tenant.id(), &set(&module.0)?).await?))
    }

    /// Enable a module.
    ///
    /// A job puts it in; the module tells how that stands. Nothing happens where it is enabled already.
    #[oai(
        path = "/organizations/:organization_id/modules/:module",
        method = "put",
        operation_id = "enable_module"
    )]
    async fn enable(
        &self,
        who: Can<SettingsManage>,
        #[oai(name = "organization_id")] _id: Path<Uuid>,
        module: Path<String>,
        expected: IfMatch,
    ) -> Result<Queued<OrganizationModule>> {
        let tx = who.begin().await?;
        let before = find_to_change(&tx, &set(&module.0)?).await?;
        expected.check(before.version)?;
        match before.state {
            ModuleState::Enabled => return Ok(queued(&who, before)),
            ModuleState::Removing if is_at_it(&tx, &who.app, &before).await? => {
                return Err(Error::conflict(
                    "The module is being removed. Enable it again when that is done; it will be empty.",
                ));
            }
            ModuleState::Disabled | ModuleState::Failed | ModuleState::Enabling | ModuleState::Removing => {}
        }
        let after = ask(&tx, &who, before, ModuleState::Enabling).await?;
        tx.commit().await?;
        Ok(queued(&who, after))
    }

    /// Remove a module with its content.
    ///
    /// A job writes the content of `tables` into the file that `archive` names, then drops it. The event
    /// `module.removed` tells when that is done.
    #[oai(
        path = "/organizations/:organization_id/modules/:module",
        method = "delete",
        operation_id = "remove_module"
    )]
    async fn remove(
        &self,
        who: Can<SettingsManage>,
        #[oai(name = "organization_id")] _id: Path<Uuid>,
        module: Path<String>,
        expected: IfMatch,
    ) -> Result<Queued<OrganizationModule>> {
        let tx = who.begin().await?;
        let before = find_to_change(&tx, &set(&module.0)?).await?;
        expected.check(before.version)?;
        if !before.optional {
            let told = format!("Every organization has the module {}; it cannot be removed.", before.name);
            return Err(Error::conflict(told));
        }
        match before.state {
            ModuleState::Disabled => {
                return Err(Error::new(Code::NotFound, "This organization does not have the module."));
            }
            ModuleState::Enabling if is_at_it(&tx, &who.app, &before).await? => {
                return Err(Error::conflict("The module is being enabled. Remove it when that is done."));
            }
            ModuleState::Enabled | ModuleState::Failed | ModuleState::Removing | ModuleState::Enabling => {}
        }
        // Before anybody counts on it.
        backups::required(&who.app)?;
        let after = ask(&tx, &who, before, ModuleState::Removing).await?;
        tx.commit().await?;
        Ok(queued(&who, after))
    }
}

fn queued(who: &Member, module: OrganizationModule) -> Queued<OrganizationModule> {
    let location = format!("/api/v1/organizations/{}/modules/{}", who.tenant.id(), module.name);
    Queued { location, value: module }
}

/// The migrations of a module that this version of the service has.
fn set(name: &str) -> Result<Set> {
    all_sets().into_iter().find(|set| set.module == name).ok_or_else(|| {
        Error::new(
            Code::NotFound,
            "There is no such module; the organization's `/modules` lists what there is.",
        )
    })
}

/// How each of these modules stands in an organization.
async fn read(tx: &Tx, organization: Uuid, sets: &[Set]) -> Result<Vec<OrganizationModule>> {
    let names: Vec<&str> = sets.iter().map(|set| set.module).collect();
    let rows = tx
        .query(
            "select s.version is not null as held, m.state, m.error, m.archive, m.requested_by, m.updated_at, \
             coalesce(m.version, 0) as version from platform.organizations o \
             cross join unnest($2::text[]) with ordinality as k (module, place) \
             left join platform.tenant_schema_modules s on s.schema_id = o.schema_id and s.module = k.module \
             left join platform.organization_modules m on m.organization_id = o.id and m.module = k.module \
             where o.id = $1 order by k.place",
            &[&organization, &names],
        )
        .await?;
    sets.iter().zip(&rows).map(|(set, row)| from_row(set, row)).collect()
}

fn from_row(set: &Set, row: &Row) -> Result<OrganizationModule> {
    let asked: Option<ModuleState> = row.try_get("state")?;
    let state = match asked {
        Some(open @ (ModuleState::Enabling | ModuleState::Removing | ModuleState::Failed)) => open,
        _ if row.try_get("held")? => ModuleState::Enabled,
        _ => ModuleState::Disabled,
    };
    let file: Option<String> = row.try_get("archive")?;
    Ok(OrganizationModule {
        name: set.module.to_owned(),
        state,
        optional: set.optional,
        tables: set.tables(),
        archive: file.map(|file| ModuleArchive { file, sha256: None }),
        error: row.try_get("error")?,
        requested_by: row.try_get("requested_by")?,
        updated_at: row.try_get("updated_at")?,
        version: row.try_get("version")?,
    })
}

async fn find(tx: &Tx, organization: Uuid, set: &Set) -> Result<OrganizationModule> {
    let found = read(tx, organization, std::slice::from_ref(set)).await?;
    found.into_iter().next().ok_or_else(tenancy::unknown)
}

/// A module of which the organization can be told one thing at a time.
async fn find_to_change(tx: &TenantTx, set: &Set) -> Result<OrganizationModule> {
    super::lock(tx, tx.organization()).await?;
    find(tx, tx.organization(), set).await
}

/// After so long, what was asked for is taken to have died with its last attempt.
const FORGOTTEN_AFTER: TimeDelta = TimeDelta::minutes(10);

/// Whether somebody does, or will do, what was asked for.
async fn is_at_it(tx: &TenantTx, app: &App, module: &OrganizationModule) -> Result<bool> {
    if module.updated_at.is_none_or(|at| app.clock.now() - at < FORGOTTEN_AFTER) {
        return Ok(true);
    }
    let unique = jobs::unique_key(tx.organization_id(), &module.name);
    let sql = "select 1 from platform.jobs where kind = $1 and unique_key = $2 and state <> 'dead' limit 1";
    let waits = tx.query_opt(sql, &[&ChangeModule::KIND, &unique]).await?.is_some();
    Ok(waits || operation::current(tx, tx.organization()).await?.is_some())
}

/// Writes down what is asked for and has it done. Where it is asked for again, the job is too: the first
/// one may have been lost, and the second finds nothing to do otherwise.
async fn ask(
    tx: &TenantTx,
    who: &Member,
    before: OrganizationModule,
    state: ModuleState,
) -> Result<OrganizationModule> {
    let (app, organization, now) = (&*who.app, tx.organization(), who.app.clock.now());
    let mut module = before.clone();
    if before.state != state {
        module.state = state;
        module.archive = match state {
            ModuleState::Removing => Some(ModuleArchive::of(organization, &module.name, now)),
            _ => None,
        };
        module.error = None;
        module.requested_by = Some(who.user_id);
        module.updated_at = Some(now);
        module.version += 1;
        tx.execute(
            "insert into platform.organization_modules (organization_id, module, state, archive, requested_by, \
             version, created_at, updated_at) values ($1, $2, $3, $4, $5, $6, $7, $7) \
             on conflict (organization_id, module) do update set state = excluded.state, error = null, \
             archive = excluded.archive, requested_by = excluded.requested_by, version = excluded.version, \
             updated_at = excluded.updated_at",
            &[
                &organization,
                &module.name,
                &module.state,
                &module.archive.as_ref().map(|archive| &archive.file),
                &who.user_id,
                &module.version,
                &now,
            ],
        )
        .await?;
        let changes = Changes::between(&before, &module);
        events::record(tx, app, who, EventType::ModuleRequested, organization, changes).await?;
    }
    let work = ChangeModule { module: module.name.clone() };
    jobs::enqueue_on(tx, app, &work, work.terms(organization, None)).await?;
    Ok(module)
}

/// Puts a module into an organization's schema, or takes it out: what was asked for last.
#[derive(Serialize, Deserialize)]
pub struct ChangeModule {
    module: String,
}

const ATTEMPTS: i32 = 4;
/// While something else is done to the organization as a whole, the job looks again after so long.
const WAIT_FOR_OTHERS: TimeDelta = TimeDelta::seconds(2);

impl Work for ChangeModule {
    const KIND: &'static str = "change_module";
    const POLICY: Policy = Policy {
        attempts: ATTEMPTS,
        wait: |attempt| Duration::from_secs(attempt.clamp(1, ATTEMPTS) as u64),
        limit: Duration::from_secs(3600),
        // A removal holds two connections.
        slots: 2,
        per_lane: 1,
        per_organization: 1,
        ..Policy::DEFAULT
    };

    async fn run(self, job: &Running) -> anyhow::Result<()> {
        let app = &job.app;
        // Of what is gone for good nothing is left to change.
        let Some(tenant) = job.tenant().await? else { return Ok(()) };
        let organization = tenant.id();
        let about = match self.asked(app, organization).await?.state {
            asked @ (ModuleState::Enabling | ModuleState::Removing) => {
                json!({"module": self.module, "state": asked})
            }
            _ => return Ok(()),
        };
        let operation = match Operation::begin(app, Self::KIND, Some(organization), about).await {
            Err(error) if error.code() == Code::Conflict => {
                return Ok(self.come_again(app, organization).await?);
            }
            begun => begun?,
        };
        // What was done to the organization before may have put it into another schema.
        app.directory.forget(organization);
        let outcome = self.change(job, &operation).await;
        let outcome = operation.end(outcome).await;
        app.directory.forget(organization);
        if outcome.is_err() {
            self.tell_failure(job, organization).await?;
        }
        Ok(outcome?)
    }
}

impl ChangeModule {
    fn terms(&self, organization: Uuid, at: Option<DateTime<Utc>>) -> Terms {
        let unique = Some(self.module.clone());
        Terms { at, unique, lane: Some(organization), organization: Some(organization) }
    }

    async fn asked(&self, app: &App, organization: Uuid) -> Result<OrganizationModule> {
        let tx = app.db.begin().await?;
        find(&tx, organization, &set(&self.module)?).await
    }

    async fn come_again(&self, app: &App, organization: Uuid) -> Result<()> {
        let tx = app.db.begin().await?;
        let at = Some(app.clock.now() + WAIT_FOR_OTHERS);
        jobs::enqueue_on(&tx, app, self, self.terms(organization, at)).await?;
        tx.commit().await
    }

    /// Nothing of `platform` is locked before the end: a removal may take its time.
    async fn change(&self, job: &Running, operation: &Operation) -> Result<()> {
        let Some(tenant) = job.tenant().await? else { return Ok(()) };
        let (app, set) = (&job.app, set(&self.module)?);
        let before = self.asked(app, tenant.id()).await?;
        let held = Held::of(app, tenant.id(), &set).await?;
        match before.state {
            ModuleState::Enabling => enable(app, &tenant, operation, &set, held, before).await,
            ModuleState::Removing => remove(app, &tenant, operation, &set, held, before).await,
            _ => Ok(()),
        }
    }

    /// Says in the module's state that it is tried again, or given up. The log has the reason.
    async fn tell_failure(&self, job: &Running, organization: Uuid) -> Result<()> {
        let (state, told) = match job.attempt >= ATTEMPTS {
            false => (None, "It did not work and is tried again.".to_owned()),
            true => (
                Some(ModuleState::Failed),
                format!("It did not work. Ask for it again; support finds the reason under job {}.", job.id),
            ),
        };
        let tx = job.app.db.begin().await?;
        tx.execute(
            "update platform.organization_modules set state = coalesce($3, state), error = $4, version = version + 1, \
             updated_at = $5 where organization_id = $1 and module = $2 and state in ('enabling', 'removing')",
            &[&organization, &self.module, &state, &told, &job.app.clock.now()],
        )
        .await?;
        tx.commit().await
    }
}

/// What a schema holds of a module.
struct Held {
    version: i64,
    checksum: Option<String>,
}

impl Held {
    async fn of(app: &App, organization: Uuid, set: &Set) -> Result<Option<Self>> {
        let tx = app.db.begin().await?;
        let row = tx
            .query_opt(
                "select s.version, s.checksum from platform.organizations o \
                 join platform.tenant_schema_modules s on s.schema_id = o.schema_id \
                 where o.id = $1 and s.module = $2",
                &[&organization, &set.module],
            )
            .await?;
        row.map(|row| Ok(Self { version: row.try_get("version")?, checksum: row.try_get("checksum")? }))
            .transpose()
    }
}

/// A schema that was restored or imported may hold the module already; its content stays.
async fn enable(
    app: &App,
    tenant: &Tenant,
    operation: &Operation,
    set: &Set,
    held: Option<Held>,
    before: OrganizationModule,
) -> Result<()> {
    let Held { version, checksum } = held.unwrap_or(Held { version: 0, checksum: None });
    if let Some(objection) = set.objection(version.min(set.latest()), checksum.as_deref()) {
        return Err(Error::internal(objection));
    }
    let tx = tenant.begin().await?;
    if version < set.latest() {
        set.apply(&tx, version).await?;
        migrations::record(&tx, tx.schema().id(), set).await?;
    }
    let now = app.clock.now();
    let after = OrganizationModule {
        state: ModuleState::Enabled,
        error: None,
        updated_at: Some(now),
        version: before.version + 1,
        ..before.clone()
    };
    tx.execute(
        "update platform.organization_modules set state = 'enabled', error = null, version = $3, updated_at = $4 \
         where organization_id = $1 and module = $2",
        &[&tenant.id(), &set.module, &after.version, &now],
    )
    .await?;
    complete(&tx, app, operation, EventType::ModuleEnabled, &before, &after).await?;
    tx.commit().await
}

async fn remove(
    app: &Arc<App>,
    tenant: &Tenant,
    operation: &Operation,
    set: &Set,
    held: Option<Held>,
    before: OrganizationModule,
) -> Result<()> {
    let now = app.clock.now();
    let tx = tenant.begin().await?;
    let mut after = OrganizationModule {
        state: ModuleState::Disabled,
        archive: None,
        error: None,
        updated_at: Some(now),
        version: 0,
        ..before.clone()
    };
    // What could not be enabled is not there.
    if let Some(Held { version, .. }) = held {
        let named = before.archive.clone();
        let planned = named.unwrap_or_else(|| ModuleArchive::of(tenant.id(), set.module, now));
        after.archive = export_and_drop(app, tenant, &tx, set, version, planned).await?;
        let forgotten = tx
            .execute(
                "delete from platform.tenant_schema_modules where schema_id = $1 and module = $2 and version = $3",
                &[&tx.schema().id(), &set.module, &version],
            )
            .await?;
        if forgotten != 1 {
            return Err(Error::conflict("The module was migrated while it was exported."));
        }
    }
    tx.execute(
        "delete from platform.organization_modules where organization_id = $1 and module = $2",
        &[&tenant.id(), &set.module],
    )
    .await?;
    complete(&tx, app, operation, EventType::ModuleRemoved, &before, &after).await?;
    tx.commit().await
}

/// Writes what the tables hold into the archive, and drops them. From the export on nobody else writes
/// them, so nothing is lost in between; readers go on until the drop.
async fn export_and_drop(
    app: &Arc<App>,
    tenant: &Tenant,
    tx: &TenantTx,
    set: &Set,
    version: i64,
    planned: ModuleArchive,
) -> Result<Option<ModuleArchive>> {
    if version > set.latest() {
        let newer = format!("the schema holds version {version} of {}, which is newer than ours", set.module);
        return Err(Error::internal(newer));
    }
    let tables = set.upto(version).tables().join(", ");
    if tables.is_empty() {
        return Ok(None);
    }
    tx.command_everywhere("set local idle_in_transaction_session_timeout to 0").await?;
    tx.command("set local lock_timeout to '5s'").await?;
    tx.command(&format!("lock table {tables} in exclusive mode")).await?;
    let file = backups::required(app)?.join(&planned.file);
    if let Some(above) = file.parent() {
        tokio::fs::create_dir_all(above).await.map_err(Error::internal)?;
    }
    let written = archive::export_module(app, tenant, set.module, &file).await?;
    tx.command(&format!("drop table {tables}")).await?;
    Ok(Some(ModuleArchive { sha256: Some(written.sha256), ..planned }))
}

/// Tells that it is done, and has every instance look at the organization anew.
async fn complete(
    tx: &TenantTx,
    app: &App,
    operation: &Operation,
    what: EventType,
    before: &OrganizationModule,
    after: &OrganizationModule,
) -> Result<()> {
    let (organization, changes) = (tx.organization(), Changes::between(before, after));
    operation.done(tx, &changes).await?;
    tenancy::changed(tx, organization).await?;
    events::record(tx, app, Actor::system(), what, organization, changes).await?;
    Ok(())
}
