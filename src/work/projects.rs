//! Projects: what a team works towards.

use chrono::{DateTime, NaiveDate, Utc};
use poem_openapi::{
    Object, OpenApi,
    param::{Path, Query},
    types::{Example, MaybeUndefined},
};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Priority;
use crate::{
    api::Tag,
    audit::Changes,
    auth::{
        Can, Member, Permission,
        permissions::{ProjectsRead, ProjectsWriteOwn},
        sealing::{hex, random},
    },
    billing::{Resource, limits},
    db::{Row, Select, TenantTx},
    error::{Error, OnConstraint, Result},
    events::{self, EventType},
    http::{Body, Created, IfMatch, Json, NoContent, Single, Versioned},
    organizations::members,
    page::{Page, Paging, Sort, SortKey, SortKeys, key, nullable_key, search_query},
    types::{
        Amount, EXAMPLE_ID, Money, Name, Prose, Slug, change, change_optional, check_year, example,
        example_time, text_enum,
    },
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
#[derive(Debug, Default, Deserialize, Object)]
#[serde(deny_unknown_fields, default)]
#[oai(deny_unknown_fields, example)]
pub struct ProjectChange {
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

/// What projects can be sorted by.
#[derive(Clone, Debug)]
pub struct ProjectKeys;

impl SortKeys for ProjectKeys {
    const KEYS: &[SortKey] = &[
        key("created_at"),
        key("updated_at"),
        key("name"),
        key("status"),
        key("progress"),
        nullable_key("start_date"),
        nullable_key("end_date"),
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
        status: Query<Option<ProjectStatus>>,
        priority: Query<Option<Priority>>,
        owner_id: Query<Option<Uuid>>,
        /// Words in name or description; each may be the beginning of one.
        search: Query<Option<String>>,
        /// `-created_at` by default.
        sort: Query<Option<Sort<ProjectKeys>>>,
    ) -> Result<Json<Page<Project>>> {
        let paging = Paging::new(page.0, page_size.0)?;
        let search = search.0.as_deref().map(search_query).transpose()?;
        let order = sort.0.as_ref().map_or("created_at desc, id desc", Sort::order);
        let tx = who.begin().await?;
        let (rows, total) = Select::new(COLUMNS, "projects")
            .and_if("status = ?", &status.0)
            .and_if("priority = ?", &priority.0)
            .and_if("owner_id = ?", &owner_id.0)
            .and_if("search @@ to_tsquery('simple', ?)", &search)
            .page(&tx, order, paging)
            .await?;
        Ok(Json(paging.answer(rows.iter().map(from_row).collect::<Result<_>>()?, total)))
    }

    /// Create a project.
    ///
    /// A member may create projects of their own; a manager also for others.
    #[oai(path = "/projects", method = "post", operation_id = "create_project")]
    async fn create(&self, who: Can<ProjectsWriteOwn>, new: Body<NewProject>) -> Result<Created<Project>> {
        let tx = who.begin().await?;
        let project = insert(&tx, &who, new.0).await?;
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
    #[oai(path = "/projects/:project_id", method = "patch", operation_id = "update_project")]
    async fn update(
        &self,
        who: Can<ProjectsWriteOwn>,
        project_id: Path<Uuid>,
        expected: IfMatch,
        to: Body<ProjectChange>,
    ) -> Result<Single<Project>> {
        let tx = who.begin().await?;
        let mut project = find_to_change(&tx, &who, project_id.0).await?;
        expected.check(project.version)?;
        let before = project.clone();
        apply(&mut project, to.0)?;
        if project.owner_id != before.owner_id {
            may_write(&who, project.owner_id)?;
        }
        check(&tx, &mut project, &[&before.member_ids[..], &[before.owner_id]].concat()).await?;
        project.updated_at = who.app.clock.now();
        project.version += 1;
        store(&tx, &project).await?;
        let changes = Changes::between(&before, &project);
        events::record(&tx, &who.app, &*who, EventType::ProjectUpdated, project.id, changes).await?;
        tx.commit().await?;
        Ok(Single(project))
    }

    /// Delete a project and its tasks.
    #[oai(path = "/projects/:project_id", method = "delete", operation_id = "delete_project")]
    async fn delete(
        &self,
        who: Can<ProjectsWriteOwn>,
        project_id: Path<Uuid>,
        expected: IfMatch,
    ) -> Result<NoContent> {
        let tx = who.begin().await?;
        may_write(&who, find(&tx, project_id.0).await?.owner_id)?;
        // Tasks before their project: the order in which changes of tasks lock. And the project as a
        // deletion will: a task that is being added holds on to it.
        tx.query("select id from tasks where project_id = $1 order by id for update", &[&project_id.0])
            .await?;
        tx.query("select id from projects where id = $1 for update", &[&project_id.0]).await?;
        let project = find_to_change(&tx, &who, project_id.0).await?;
        expected.check(project.version)?;
        tx.execute("delete from projects where id = $1", &[&project.id]).await?;
        events::record(
            &tx,
            &who.app,
            &*who,
            EventType::ProjectDeleted,
            project.id,
            Changes::deleted(&project),
        )
        .await?;
        tx.commit().await?;
        Ok(NoContent)
    }
}

/// Who may write all projects may write this one, others theirs.
fn may_write(who: &Member, owner: Uuid) -> Result<()> {
    if who.may(Permission::ProjectsWrite) || owner == who.user_id {
        return Ok(());
    }
    Err(Error::denied("This is not your project. Its owner or a manager can change it."))
}

/// How many there are.
pub const COUNT: &str = "(select count(*) from projects)";

const COLUMNS: &str = "id, name, slug, description, status, priority, owner_id, created_by, start_date, end_date, \
     budget_amount, budget_currency, progress::float8 as progress, version, created_at, updated_at, \
     array(select m.user_id from project_members m where m.project_id = projects.id order by m.user_id) as member_ids";

fn from_row(row: &Row) -> Result<Project> {
    let amount: Option<Decimal> = row.try_get("budget_amount")?;
    let budget = match amount {
        Some(amount) => {
            Some(Money { amount: Amount::from(amount), currency: row.try_get("budget_currency")? })
        }
        None => None,
    };
    Ok(Project {
        id: row.try_get("id")?,
        name: row.try_get("name")?,
        slug: row.try_get("slug")?,
        description: row.try_get("description")?,
        status: row.try_get("status")?,
        priority: row.try_get("priority")?,
        owner_id: row.try_get("owner_id")?,
        created_by: row.try_get("created_by")?,
        member_ids: row.try_get("member_ids")?,
        start_date: row.try_get("start_date")?,
        end_date: row.try_get("end_date")?,
        budget,
        progress: row.try_get("progress")?,
        version: row.try_get("version")?,
        created_at: row.try_get("created_at")?,
        updated_at: row.try_get("updated_at")?,
    })
}

/// A project that must be there.
pub async fn find(tx: &TenantTx, id: Uuid) -> Result<Project> {
    let sql = format!("select {COLUMNS} from projects where id = $1");
    from_row(&tx.query_opt(&sql, &[&id]).await?.ok_or_else(|| Error::not_found("project"))?)
}

/// A project that the caller may write, with its row locked.
async fn find_to_change(tx: &TenantTx, who: &Member, id: Uuid) -> Result<Project> {
    tx.query("select id from projects where id = $1 for no key update", &[&id]).await?;
    let project = find(tx, id).await?;
    may_write(who, project.owner_id)?;
    Ok(project)
}

/// Makes a project for a caller who may.
pub async fn insert(tx: &TenantTx, who: &Member, new: NewProject) -> Result<Project> {
    let now = who.app.clock.now();
    let given_slug = new.slug.is_some();
    let slug = match new.slug {
        Some(slug) => slug,
        None => Slug::from_name(new.name.as_ref())
            .or_else(|| Slug::from_name("project"))
            .ok_or_else(|| Error::internal("no slug"))?,
    };
    let mut project = Project {
        id: Uuid::now_v7(),
        name: new.name,
        slug,
        description: new.description,
        status: new.status.unwrap_or(ProjectStatus::Planning),
        priority: new.priority.unwrap_or(Priority::Medium),
        owner_id: new.owner_id.unwrap_or(who.user_id),
        created_by: who.user_id,
        member_ids: new.member_ids.unwrap_or_default(),
        start_date: new.start_date,
        end_date: new.end_date,
        budget: new.budget,
        progress: 0.0,
        created_at: now,
        updated_at: now,
        version: 1,
    };
    may_write(who, project.owner_id)?;
    check(tx, &mut project, &[]).await?;
    limits::reserve(tx, &who.app, Resource::Projects, 1).await?;
    let (amount, currency) = budget_columns(&project);
    loop {
        let inserted = tx
            .execute(
                "insert into projects (id, name, slug, description, status, priority, owner_id, created_by, \
                 start_date, end_date, budget_amount, budget_currency, created_at, updated_at) \
                 values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $13) \
                 on conflict on constraint projects_slug_key do nothing",
                &[
                    &project.id,
                    &project.name,
                    &project.slug,
                    &project.description,
                    &project.status,
                    &project.priority,
                    &project.owner_id,
                    &project.created_by,
                    &project.start_date,
                    &project.end_date,
                    &amount,
                    &currency,
                    &now,
                ],
            )
            .await?;
        if inserted == 1 {
            break;
        }
        if given_slug {
            return Err(slug_taken(&project.slug));
        }
        project.slug = project.slug.with_suffix(&hex(&random::<3>()?));
    }
    store_members(tx, &project).await?;
    events::record(tx, &who.app, who, EventType::ProjectCreated, project.id, Changes::created(&project))
        .await?;
    Ok(project)
}

fn slug_taken(slug: &Slug) -> Error {
    Error::taken("slug", format!("The slug {slug} is taken. Choose another."))
}

fn budget_columns(project: &Project) -> (Option<Decimal>, Option<String>) {
    project.budget.as_ref().map(|money| (money.amount.decimal(), money.currency.to_string())).unzip()
}

/// What must hold whoever writes; also puts the members into their order. Who was in the project
/// `before` may stay, also after leaving the organization.
async fn check(tx: &TenantTx, project: &mut Project, before: &[Uuid]) -> Result<()> {
    check_year("start_date", project.start_date)?;
    check_year("end_date", project.end_date)?;
    if let (Some(start), Some(end)) = (project.start_date, project.end_date)
        && end < start
    {
        return Err(Error::invalid("end_date", "must not be before start_date"));
    }
    if project.budget.as_ref().is_some_and(|money| money.amount.decimal().is_sign_negative()) {
        return Err(Error::invalid("budget.amount", "must not be negative"));
    }
    if project.member_ids.len() > 500 {
        return Err(Error::invalid("member_ids", "may name at most 500 members"));
    }
    project.member_ids.sort();
    project.member_ids.dedup();
    let new = |ids: &[Uuid]| -> Vec<Uuid> { ids.iter().filter(|id| !before.contains(id)).copied().collect() };
    members::must_be_active(tx, tx.organization(), &new(&[project.owner_id]), "owner_id").await?;
    members::must_be_active(tx, tx.organization(), &new(&project.member_ids), "member_ids").await
}

fn apply(project: &mut Project, to: ProjectChange) -> Result<()> {
    change(&mut project.name, "name", to.name)?;
    change(&mut project.slug, "slug", to.slug)?;
    change(&mut project.status, "status", to.status)?;
    change(&mut project.priority, "priority", to.priority)?;
    change(&mut project.owner_id, "owner_id", to.owner_id)?;
    change(&mut project.member_ids, "member_ids", to.member_ids)?;
    change_optional(&mut project.description, to.description);
    change_optional(&mut project.start_date, to.start_date);
    change_optional(&mut project.end_date, to.end_date);
    change_optional(&mut project.budget, to.budget);
    Ok(())
}

async fn store(tx: &TenantTx, project: &Project) -> Result<()> {
    let (amount, currency) = budget_columns(project);
    tx.execute(
        "update projects set name = $2, slug = $3, description = $4, status = $5, priority = $6, owner_id = $7, \
         start_date = $8, end_date = $9, budget_amount = $10, budget_currency = $11, version = $12, \
         updated_at = $13 where id = $1",
        &[
            &project.id,
            &project.name,
            &project.slug,
            &project.description,
            &project.status,
            &project.priority,
            &project.owner_id,
            &project.start_date,
            &project.end_date,
            &amount,
            &currency,
            &project.version,
            &project.updated_at,
        ],
    )
    .await
    .on_constraint("projects_slug_key", || slug_taken(&project.slug))?;
    store_members(tx, project).await
}

async fn store_members(tx: &TenantTx, project: &Project) -> Result<()> {
    tx.execute(
        "delete from project_members where project_id = $1 and user_id <> all ($2)",
        &[&project.id, &project.member_ids],
    )
    .await?;
    tx.execute(
        "insert into project_members (project_id, user_id, added_at) select $1, unnest($2::uuid[]), $3 \
         on conflict (project_id, user_id) do nothing",
        &[&project.id, &project.member_ids, &project.updated_at],
    )
    .await?;
    Ok(())
}

/// Brings a project's progress up to date after its tasks changed. The lock comes first and in a
/// statement of its own: the sum must see what whoever held it has committed.
pub async fn update_progress(tx: &TenantTx, id: Uuid, now: DateTime<Utc>) -> Result<()> {
    tx.query("select id from projects where id = $1 for no key update", &[&id]).await?;
    tx.execute(
        "with done as (select least(100, coalesce(sum(impact), 0)) as progress from tasks \
           where project_id = $1 and status = 'done') \
         update projects set progress = done.progress, version = version + 1, updated_at = $2 from done \
         where projects.id = $1 and projects.progress <> done.progress",
        &[&id, &now],
    )
    .await?;
    Ok(())
}
