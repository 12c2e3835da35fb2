//! Projects: what a team works towards.

mod store;

use chrono::{DateTime, NaiveDate, Utc};
use poem_openapi::{
    Object, OpenApi,
    param::{Path, Query},
    types::{Example, MaybeUndefined},
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use store::{COLUMNS, from_row, may_write};
pub use store::{
    COUNT, MOST_MEMBERS, Standing, apply, check, check_values, draft, find, find_to_change, hold_one_open,
    hold_open, insert, may_contribute, several, standings, update, update_progress,
};

use super::{
    By, ExternalId, Priority,
    attachments::{self, Under},
    tasks::Going,
    tree,
};
use crate::{
    api::Tag,
    audit::Changes,
    auth::{
        Can,
        permissions::{ProjectsRead, ProjectsWriteOwn},
    },
    db::Select,
    error::Result,
    events::{self, EventType},
    http::{Body, Created, IfMatch, Json, NoContent, Single, Versioned},
    page::{ListCursor, Page, Paging, Sort, SortKey, SortKeys, key, nullable_key, search_query},
    types::{EXAMPLE_ID, Money, Name, Prose, Slug, example, example_time, text_enum},
};

text_enum! {
    /// Where a project stands.
    ProjectStatus { Planning = "planning", Active = "active", Completed = "completed", Archived = "archived" }
}

/// A project.
#[derive(Clone, Debug, Serialize, Object)]
#[oai(example)]
pub struct Project {
    pub id: Uuid,
    /// What it is called where it came from; unique in the organization.
    pub external_id: Option<ExternalId>,
    pub name: Name,
    /// Unique in the organization.
    pub slug: Slug,
    pub description: Option<Prose>,
    pub status: ProjectStatus,
    pub priority: Priority,
    pub owner_id: Uuid,
    pub created_by: Uuid,
    pub member_ids: Vec<Uuid>,
    pub start_date: Option<NaiveDate>,
    pub end_date: Option<NaiveDate>,
    pub budget: Option<Money>,
    /// The impact of the done tasks added up, at most 100.
    pub progress: f64,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
    #[serde(skip)]
    #[oai(skip)]
    pub version: i64,
}

impl Versioned for Project {
    fn version(&self) -> i64 {
        self.version
    }
}

impl Example for Project {
    fn example() -> Self {
        Self {
            id: EXAMPLE_ID,
            external_id: None,
            name: example("Website relaunch"),
            slug: example("website-relaunch"),
            description: Some(example("New look, same promises")),
            status: ProjectStatus::Active,
            priority: Priority::High,
            owner_id: EXAMPLE_ID,
            created_by: EXAMPLE_ID,
            member_ids: Vec::new(),
            start_date: NaiveDate::from_ymd_opt(2026, 1, 5),
            end_date: NaiveDate::from_ymd_opt(2026, 6, 30),
            budget: Some(Money { amount: example("25000.00"), currency: example("SGD") }),
            progress: 35.0,
            created_at: example_time(),
            updated_at: example_time(),
            version: 1,
        }
    }
}

/// A project to be made.
#[derive(Debug, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(deny_unknown_fields, example)]
pub struct NewProject {
    /// What it is called where it comes from; unique in the organization.
    pub external_id: Option<ExternalId>,
    pub name: Name,
    /// Made from the name where it is absent.
    pub slug: Option<Slug>,
    pub description: Option<Prose>,
    /// `planning` where it is absent.
    pub status: Option<ProjectStatus>,
    /// `medium` where it is absent.
    pub priority: Option<Priority>,
    /// The caller where it is absent.
    pub owner_id: Option<Uuid>,
    /// Active members of the organization.
    pub member_ids: Option<Vec<Uuid>>,
    pub start_date: Option<NaiveDate>,
    pub end_date: Option<NaiveDate>,
    pub budget: Option<Money>,
}

impl Example for NewProject {
    fn example() -> Self {
        Self {
            external_id: None,
            name: example("Website relaunch"),
            slug: None,
            description: Some(example("New look, same promises")),
            status: Some(ProjectStatus::Active),
            priority: Some(Priority::High),
            owner_id: None,
            member_ids: None,
            start_date: NaiveDate::from_ymd_opt(2026, 1, 5),
            end_date: NaiveDate::from_ymd_opt(2026, 6, 30),
            budget: Some(Money { amount: example("25000.00"), currency: example("SGD") }),
        }
    }
}

/// What changes; what is absent stays, null empties.
#[derive(Clone, Debug, Default, Deserialize, Object)]
#[serde(deny_unknown_fields, default)]
#[oai(deny_unknown_fields, example)]
pub struct ProjectChange {
    pub external_id: MaybeUndefined<ExternalId>,
    pub name: MaybeUndefined<Name>,
    pub slug: MaybeUndefined<Slug>,
    pub description: MaybeUndefined<Prose>,
    pub status: MaybeUndefined<ProjectStatus>,
    pub priority: MaybeUndefined<Priority>,
    pub owner_id: MaybeUndefined<Uuid>,
    pub member_ids: MaybeUndefined<Vec<Uuid>>,
    pub start_date: MaybeUndefined<NaiveDate>,
    pub end_date: MaybeUndefined<NaiveDate>,
    pub budget: MaybeUndefined<Money>,
}

impl Example for ProjectChange {
    fn example() -> Self {
        Self { status: MaybeUndefined::Value(ProjectStatus::Completed), ..Self::default() }
    }
}

impl ProjectChange {
    /// Nothing but the status.
    fn status(to: ProjectStatus) -> Self {
        Self { status: MaybeUndefined::Value(to), ..Self::default() }
    }

    /// Nothing but the members.
    pub fn members(ids: Vec<Uuid>) -> Self {
        Self { member_ids: MaybeUndefined::Value(ids), ..Self::default() }
    }
}

/// What projects can be sorted by.
#[derive(Clone, Debug)]
pub struct ProjectKeys;

impl SortKeys for ProjectKeys {
    const KEYS: &[SortKey] = &[
        key("created_at", "timestamptz"),
        key("updated_at", "timestamptz"),
        key("name", "text"),
        key("status", "text"),
        key("progress", "numeric"),
        nullable_key("start_date", "date"),
        nullable_key("end_date", "date"),
    ];
}

pub struct ProjectsApi;

#[OpenApi(tag = "Tag::Projects")]
impl ProjectsApi {
    /// List projects.
    #[oai(path = "/projects", method = "get", operation_id = "list_projects")]
    #[allow(clippy::too_many_arguments)]
    async fn list(
        &self,
        who: Can<ProjectsRead>,
        page: Query<Option<u32>>,
        page_size: Query<Option<u32>>,
        /// `next_cursor` of the page before, in place of `page`.
        cursor: Query<Option<ListCursor>>,
        status: Query<Option<ProjectStatus>>,
        priority: Query<Option<Priority>>,
        owner_id: Query<Option<Uuid>>,
        external_id: Query<Option<ExternalId>>,
        /// Words in name or description; each may be the beginning of one.
        search: Query<Option<String>>,
        /// `-created_at` by default.
        sort: Query<Option<Sort<ProjectKeys>>>,
    ) -> Result<Json<Page<Project>>> {
        let paging = Paging::new(page.0, page_size.0, cursor.0)?;
        let search = search.0.as_deref().map(search_query).transpose()?;
        let order = Sort::or(sort.0, "-created_at");
        let tx = who.begin().await?;
        let page = Select::new(COLUMNS, "projects")
            .and_if("status = ?", &status.0)
            .and_if("priority = ?", &priority.0)
            .and_if("owner_id = ?", &owner_id.0)
            .and_if("external_id = ?", &external_id.0)
            .and_if("search @@ to_tsquery('simple', ?)", &search)
            .page(&tx, &order, &paging, from_row)
            .await?;
        Ok(Json(page))
    }

    /// Create a project.
    ///
    /// A member may create projects of their own; a manager also for others.
    #[oai(path = "/projects", method = "post", operation_id = "create_project")]
    async fn create(&self, who: Can<ProjectsWriteOwn>, new: Body<NewProject>) -> Result<Created<Project>> {
        let tx = who.begin().await?;
        let project = insert(&tx, &By::from(&*who), new.0).await?;
        tx.commit().await?;
        Ok(Created { location: format!("/api/v1/projects/{}", project.id), value: project })
    }

    /// See a project.
    #[oai(path = "/projects/:project_id", method = "get", operation_id = "get_project")]
    async fn get(&self, who: Can<ProjectsRead>, project_id: Path<Uuid>) -> Result<Single<Project>> {
        let tx = who.begin().await?;
        Ok(Single(find(&tx, project_id.0).await?))
    }

    /// Change a project.
    ///
    /// With the status `archived` it takes nothing new, and neither its tasks nor what was said in it can be
    /// changed.
    #[oai(path = "/projects/:project_id", method = "patch", operation_id = "update_project")]
    async fn update(
        &self,
        who: Can<ProjectsWriteOwn>,
        project_id: Path<Uuid>,
        expected: IfMatch,
        to: Body<ProjectChange>,
    ) -> Result<Single<Project>> {
        let by = By::from(&*who);
        let tx = who.begin().await?;
        let project = find_to_change(&tx, &by, project_id.0).await?;
        expected.check(project.version)?;
        let project = update(&tx, &by, project, to.0).await?;
        tx.commit().await?;
        Ok(Single(project))
    }

    /// Archive a project.
    ///
    /// It can still be read, but it takes nothing new, and neither its tasks nor what was said in it can be
    /// changed: 409. Comments, messages and attachments can be deleted. It counts among the projects that the plan
    /// allows. One that is archived stays as it is.
    #[oai(path = "/projects/:project_id/archive", method = "post", operation_id = "archive_project")]
    async fn archive(&self, who: Can<ProjectsWriteOwn>, project_id: Path<Uuid>) -> Result<Single<Project>> {
        let by = By::from(&*who);
        let tx = who.begin().await?;
        let mut project = find_to_change(&tx, &by, project_id.0).await?;
        if project.status != ProjectStatus::Archived {
            project = update(&tx, &by, project, ProjectChange::status(ProjectStatus::Archived)).await?;
        }
        tx.commit().await?;
        Ok(Single(project))
    }

    /// Unarchive a project.
    ///
    /// It is `active` again. One that is not archived stays as it is.
    #[oai(path = "/projects/:project_id/unarchive", method = "post", operation_id = "unarchive_project")]
    async fn unarchive(&self, who: Can<ProjectsWriteOwn>, project_id: Path<Uuid>) -> Result<Single<Project>> {
        let by = By::from(&*who);
        let tx = who.begin().await?;
        let mut project = find_to_change(&tx, &by, project_id.0).await?;
        if project.status == ProjectStatus::Archived {
            project = update(&tx, &by, project, ProjectChange::status(ProjectStatus::Active)).await?;
        }
        tx.commit().await?;
        Ok(Single(project))
    }

    /// Delete a project and its tasks.
    ///
    /// Tasks of other projects that waited for one of them wait no longer. All of it goes in one transaction: of
    /// more than some 100,000 tasks, delete most before.
    #[oai(path = "/projects/:project_id", method = "delete", operation_id = "delete_project")]
    async fn delete(
        &self,
        who: Can<ProjectsWriteOwn>,
        project_id: Path<Uuid>,
        expected: IfMatch,
    ) -> Result<NoContent> {
        let by = By::from(&*who);
        let tx = who.begin().await?;
        may_write(&by, find(&tx, project_id.0).await?.owner_id)?;
        // The order in which changes of tasks lock: the tree, tasks, projects.
        tree::hold(&tx).await?;
        let going = Going::of_project(&tx, project_id.0).await?;
        let project = find_to_change(&tx, &by, project_id.0).await?;
        expected.check(project.version)?;
        attachments::remove_under(&tx, &who.app, Under::Project(project.id)).await?;
        // Before the project, which takes along only what was added since: one statement for all is too long.
        going.delete(&tx, &by).await?;
        tx.execute("delete from projects where id = $1", &[&project.id]).await?;
        let changes = Changes::deleted(&project);
        events::record(&tx, &who.app, &*who, EventType::ProjectDeleted, project.id, changes).await?;
        tx.commit().await?;
        Ok(NoContent)
    }
}
