//! Projects and tasks as files: what their columns are, and how lines become what is kept.
//!
//! The rules are those of `projects` and `tasks`; what differs is that they are asked of many lines at once.

mod projects;
mod tasks;

use std::collections::{BTreeSet, HashMap};

use poem_openapi::{
    Object, OpenApi,
    types::{Example, MaybeUndefined},
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use projects::PROJECTS;
pub use tasks::TASKS;

use super::{By, ExternalId, projects::ProjectStatus, tasks::TaskStatus};
use crate::{
    api::Tag,
    auth::{
        Can,
        permissions::{ProjectsRead, ProjectsWrite, TasksRead, TasksWrite},
    },
    db::TenantTx,
    error::{Error, Result},
    exchange::{Export, Format, Import, Maker, NewImport, Reading, request_export, request_import},
    http::{Body, Queued},
};

/// Which projects are exported, and how.
#[derive(Debug, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(deny_unknown_fields, example)]
pub struct NewProjectExport {
    pub format: Format,
    /// Those of every status where it is absent.
    pub status: Option<ProjectStatus>,
}

impl Example for NewProjectExport {
    fn example() -> Self {
        Self { format: Format::Csv, status: Some(ProjectStatus::Active) }
    }
}

/// Which tasks are exported, and how.
#[derive(Debug, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(deny_unknown_fields, example)]
pub struct NewTaskExport {
    pub format: Format,
    /// Those of every project where it is absent.
    pub project_id: Option<Uuid>,
    /// Those of every status where it is absent.
    pub status: Option<TaskStatus>,
}

impl Example for NewTaskExport {
    fn example() -> Self {
        Self { format: Format::Csv, project_id: None, status: Some(TaskStatus::Done) }
    }
}

/// What is kept of it with an export.
#[derive(Serialize, Deserialize, Default)]
struct Filters {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    project_id: Option<Uuid>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    status: Option<String>,
}

impl Filters {
    fn of(kept: &serde_json::Value) -> Result<Self> {
        Self::deserialize(kept).map_err(Error::internal)
    }

    fn kept(&self) -> Result<serde_json::Value> {
        serde_json::to_value(self).map_err(Error::internal)
    }
}

pub struct WorkExchangeApi;

#[OpenApi(tag = "Tag::Exchange")]
impl WorkExchangeApi {
    /// Import projects.
    ///
    /// Columns are `id`, `external_id`, `name`, `slug`, `description`, `status`, `priority`, `owner`, `members`,
    /// `start_date`, `end_date`, `budget_amount` and `budget_currency`; people are named by their address. A line
    /// whose `external_id` (or else `id`) is known changes that project in the columns that the file has, every
    /// other line makes one: importing a file twice changes nothing. Every line is checked before the first one
    /// is written, and where one is wrong nothing is. Follow `Location` to see how far it is, which takes
    /// `files:read` and `projects:read`.
    #[oai(path = "/projects/imports", method = "post", operation_id = "import_projects")]
    async fn import_projects(&self, who: Can<ProjectsWrite>, new: Body<NewImport>) -> Result<Queued<Import>> {
        request_import(&who, &PROJECTS, new.0).await
    }

    /// Import tasks.
    ///
    /// Columns are `id`, `external_id`, `project`, `parent`, `title`, `description`, `status`, `priority`,
    /// `assignees`, `due_date`, `estimated_hours`, `actual_hours` and `impact`. `project` is an external id, a slug
    /// or an id, `parent` an external id or an id, of a task that there is or that stands on an earlier line;
    /// assignees are named by their address. A line whose `external_id` (or else `id`) is known changes that task
    /// in the columns that the file has, every other line makes one: importing a file twice changes nothing.
    /// Every line is checked before the first one is written, and where one is wrong nothing is. Follow
    /// `Location` to see how far it is, which takes `files:read` and `tasks:read`.
    #[oai(path = "/tasks/imports", method = "post", operation_id = "import_tasks")]
    async fn import_tasks(&self, who: Can<TasksWrite>, new: Body<NewImport>) -> Result<Queued<Import>> {
        request_import(&who, &TASKS, new.0).await
    }

    /// Export projects.
    ///
    /// As a file that can be imported again, here or elsewhere. People who are not there, and their columns, can be
    /// left out by `columns` of the import. Follow `Location` to see how far it is, which takes `files:read`.
    #[oai(path = "/projects/exports", method = "post", operation_id = "export_projects")]
    async fn export_projects(
        &self,
        who: Can<ProjectsRead>,
        new: Body<NewProjectExport>,
    ) -> Result<Queued<Export>> {
        let status = new.0.status.map(|status| status.name().to_owned());
        let filters = Filters { project_id: None, status };
        request_export(&who, &PROJECTS, new.0.format, filters.kept()?).await
    }

    /// Export tasks.
    ///
    /// As a file that can be imported again, here or elsewhere: parents come before what is under them, and a parent
    /// that the filters leave out is not named. Archived projects take tasks only where they are imported without
    /// their status first. Follow `Location` to see how far it is, which takes `files:read`.
    #[oai(path = "/tasks/exports", method = "post", operation_id = "export_tasks")]
    async fn export_tasks(&self, who: Can<TasksRead>, new: Body<NewTaskExport>) -> Result<Queued<Export>> {
        let NewTaskExport { format, project_id, status } = new.0;
        if let Some(project) = project_id {
            let tx = who.begin().await?;
            let there = tx.query_opt("select id from projects where id = $1", &[&project]).await?;
            there.ok_or_else(|| {
                Error::invalid("project_id", "There is no such project in this organization.")
            })?;
        }
        let filters = Filters { project_id, status: status.map(|status| status.name().to_owned()) };
        request_export(&who, &TASKS, format, filters.kept()?).await
    }
}

fn by(maker: &Maker) -> By<'_> {
    By { app: &maker.app, actor: maker.actor.clone(), user: maker.user, permissions: maker.permissions }
}

/// People by what a file calls them: an address or an id.
struct People(HashMap<String, (Uuid, bool)>);

impl People {
    async fn of(tx: &TenantTx, names: BTreeSet<String>) -> Result<Self> {
        if names.is_empty() {
            return Ok(Self(HashMap::new()));
        }
        let ids: Vec<Uuid> = names.iter().filter_map(|name| name.parse().ok()).collect();
        let names: Vec<String> = names.into_iter().collect();
        let rows = tx
            .query(
                "select u.id, u.email, coalesce(m.is_active and u.is_active, false) as active from platform.users u \
                 left join platform.organization_members m on m.user_id = u.id and m.organization_id = $1 \
                 where u.email = any ($2) or u.id = any ($3)",
                &[&tx.organization(), &names, &ids],
            )
            .await?;
        let mut known = HashMap::new();
        for row in &rows {
            let found: (Uuid, bool) = (row.try_get("id")?, row.try_get("active")?);
            known.insert(row.try_get::<_, String>("email")?.to_lowercase(), found);
            known.insert(found.0.to_string(), found);
        }
        Ok(Self(known))
    }

    /// An active member, or somebody who was there `before`. Whether others have an account is told to nobody.
    fn find(&self, name: &str, before: &[Uuid]) -> Result<Uuid, String> {
        match self.0.get(&called(name)) {
            Some((id, active)) if *active || before.contains(id) => Ok(*id),
            _ => {
                let name: String = name.chars().take(100).collect();
                Err(format!("{name} is not an active member of this organization."))
            }
        }
    }
}

/// The people whom a field names. Of those who are nobody's the first is told.
fn everybody(
    said: &mut Reading<'_, '_>,
    field: &str,
    names: &[String],
    before: &[Uuid],
    people: &People,
) -> Vec<Uuid> {
    match names.iter().map(|name| people.find(name, before)).collect::<Result<Vec<Uuid>, String>>() {
        Ok(ids) => ids,
        Err(told) => {
            said.fail(field, "unknown", told);
            Vec::new()
        }
    }
}

/// What something new is called from now on: as the line says, or else by the id that it has where it comes from.
fn new_name(
    said: &mut Reading<'_, '_>,
    external_id: Option<ExternalId>,
    id: Option<&str>,
) -> Option<ExternalId> {
    let Some(id) = id.filter(|_| external_id.is_none()) else { return external_id };
    match id.parse::<ExternalId>() {
        Ok(id) => Some(id),
        Err(told) => {
            said.fail("id", "invalid", told);
            None
        }
    }
}

/// Without a value a field of this kind stays as it is.
fn kept<T>(said: MaybeUndefined<T>) -> MaybeUndefined<T> {
    match said {
        MaybeUndefined::Null => MaybeUndefined::Undefined,
        other => other,
    }
}

fn called(name: &str) -> String {
    name.trim().to_lowercase()
}

/// The addresses of these people; ids where there is none.
async fn addresses(tx: &TenantTx, ids: &[Uuid]) -> Result<HashMap<Uuid, String>> {
    let sql = "select id, email from platform.users where id = any ($1)";
    let rows = tx.query(sql, &[&ids]).await?;
    rows.iter().map(|row| Ok((row.try_get("id")?, row.try_get("email")?))).collect()
}

fn address(known: &HashMap<Uuid, String>, id: Uuid) -> serde_json::Value {
    known.get(&id).cloned().unwrap_or_else(|| id.to_string()).into()
}
