//! Projects in the database, and the rules that hold whoever writes them.

use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use uuid::Uuid;

use super::{NewProject, Project, ProjectChange, ProjectStatus};
use crate::{
    audit::Changes,
    auth::{
        Member, Permission,
        sealing::{hex, random},
    },
    billing::{Resource, limits},
    db::{Row, TenantTx},
    error::{Error, OnConstraint, Result},
    events::{self, EventType},
    organizations::members,
    types::{Amount, Money, Slug, change, change_optional, check_year},
    work::{By, ExternalId, Priority},
};

/// Members that a project may have.
pub const MOST_MEMBERS: usize = 500;

/// How many there are.
pub const COUNT: &str = "(select count(*) from projects)";

pub(super) const COLUMNS: &str = "id, external_id, name, slug, description, status, priority, owner_id, created_by, \
     start_date, end_date, budget_amount, budget_currency, progress::float8 as percent, version, created_at, updated_at, \
     array(select m.user_id from project_members m where m.project_id = projects.id order by m.user_id) as member_ids";

pub(super) fn from_row(row: &Row) -> Result<Project> {
    let amount: Option<Decimal> = row.try_get("budget_amount")?;
    let budget = match amount {
        Some(amount) => {
            Some(Money { amount: Amount::from(amount), currency: row.try_get("budget_currency")? })
        }
        None => None,
    };
    Ok(Project {
        id: row.try_get("id")?,
        external_id: row.try_get("external_id")?,
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
        progress: row.try_get("percent")?,
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

/// Those of these projects that there are, by id.
pub async fn several(tx: &TenantTx, ids: &[Uuid]) -> Result<Vec<Project>> {
    let sql = format!("select {COLUMNS} from projects where id = any ($1) order by id");
    tx.query(&sql, &[&ids]).await?.iter().map(from_row).collect()
}

/// Who may write all projects may write this one, others theirs.
pub(super) fn may_write(by: &By<'_>, owner: Uuid) -> Result<()> {
    if by.may(Permission::ProjectsWrite) || owner == by.user {
        return Ok(());
    }
    Err(Error::denied("This is not your project. Its owner or a manager can change it."))
}

/// A project that the caller may write, with its row locked: against those too who hold it open. Of one
/// that is archived they must see that; and a change of its names takes this lock in any case, which then must
/// not come after a weaker one.
pub async fn find_to_change(tx: &TenantTx, by: &By<'_>, id: Uuid) -> Result<Project> {
    // Who may not write it makes nobody wait.
    may_write(by, find(tx, id).await?.owner_id)?;
    tx.query("select id from projects where id = $1 for update", &[&id]).await?;
    let project = find(tx, id).await?;
    may_write(by, project.owner_id)?;
    Ok(project)
}

/// How a project stands to somebody who wants to write in it.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    pub id: Uuid,
    is_archived: bool,
    pub is_owner: bool,
    is_member: bool,
}

impl Standing {
    /// An archived project takes nothing new, and neither its tasks nor what was said in it change. What was said
    /// or attached can still be taken away.
    pub fn must_be_open(&self) -> Result<()> {
        match self.is_archived {
            true => Err(Error::conflict(
                "The project is archived. Unarchive it first: POST /projects/{project_id}/unarchive.",
            )),
            false => Ok(()),
        }
    }

    /// Whoever may write all tasks may add to it, and who is in it.
    pub fn must_take_from(&self, by: &By<'_>) -> Result<()> {
        if by.may(Permission::TasksWrite) || self.is_owner || self.is_member {
            return Ok(());
        }
        Err(Error::denied("You are not in this project. Ask its owner to add you."))
    }
}

const STANDING: &str = "select id, status, owner_id = $2 as is_owner, \
     exists (select 1 from project_members m where m.project_id = projects.id and m.user_id = $2) as is_member \
     from projects where id = any ($1) order by id";

/// How these projects stand to the caller, of those that there are.
pub async fn standings(tx: &TenantTx, by: &By<'_>, ids: &[Uuid]) -> Result<Vec<Standing>> {
    tx.query(STANDING, &[&ids, &by.user]).await?.iter().map(standing).collect()
}

/// The same, and none of them is archived or deleted until the transaction ends. Whoever locks tasks as well locks them first.
pub async fn hold_open(tx: &TenantTx, by: &By<'_>, ids: &[Uuid]) -> Result<Vec<Standing>> {
    let rows = tx.query(&format!("{STANDING} for key share"), &[&ids, &by.user]).await?;
    rows.iter().map(standing).collect()
}

fn standing(row: &Row) -> Result<Standing> {
    let status: ProjectStatus = row.try_get("status")?;
    Ok(Standing {
        id: row.try_get("id")?,
        is_archived: status == ProjectStatus::Archived,
        is_owner: row.try_get("is_owner")?,
        is_member: row.try_get("is_member")?,
    })
}

/// The same of one, which must be there.
pub async fn hold_one_open(tx: &TenantTx, by: &By<'_>, id: Uuid) -> Result<Standing> {
    hold_open(tx, by, &[id]).await?.pop().ok_or_else(|| Error::not_found("project"))
}

/// Whether the caller may add something to a project: 404, 403 or, of an archived one, 409 where not. It is not
/// archived or deleted until the transaction ends.
pub async fn may_contribute(tx: &TenantTx, who: &Member, project: Uuid) -> Result<()> {
    let by = By::from(who);
    let standing = hold_one_open(tx, &by, project).await?;
    standing.must_take_from(&by)?;
    standing.must_be_open()
}

/// A project as it would be made.
pub fn draft(by: &By<'_>, new: &NewProject) -> Result<Project> {
    let now = by.app.clock.now();
    let slug = match &new.slug {
        Some(slug) => slug.clone(),
        None => Slug::from_name(new.name.as_ref())
            .or_else(|| Slug::from_name("project"))
            .ok_or_else(|| Error::internal("no slug"))?,
    };
    Ok(Project {
        id: Uuid::now_v7(),
        external_id: new.external_id.clone(),
        name: new.name.clone(),
        slug,
        description: new.description.clone(),
        status: new.status.unwrap_or(ProjectStatus::Planning),
        priority: new.priority.unwrap_or(Priority::Medium),
        owner_id: new.owner_id.unwrap_or(by.user),
        created_by: by.user,
        member_ids: new.member_ids.clone().unwrap_or_default(),
        start_date: new.start_date,
        end_date: new.end_date,
        budget: new.budget.clone(),
        progress: 0.0,
        created_at: now,
        updated_at: now,
        version: 1,
    })
}

/// Makes a project for a caller who may.
pub async fn insert(tx: &TenantTx, by: &By<'_>, new: NewProject) -> Result<Project> {
    let given_slug = new.slug.is_some();
    let mut project = draft(by, &new)?;
    may_write(by, project.owner_id)?;
    check(tx, &mut project, &[]).await?;
    limits::reserve(tx, by.app, Resource::Projects, 1).await?;
    let (amount, currency) = budget_columns(&project);
    loop {
        let inserted = tx
            .execute(
                "insert into projects (id, external_id, name, slug, description, status, priority, owner_id, \
                 created_by, start_date, end_date, budget_amount, budget_currency, created_at, updated_at) \
                 values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $14) \
                 on conflict on constraint projects_slug_key do nothing",
                &[
                    &project.id,
                    &project.external_id,
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
                    &project.created_at,
                ],
            )
            .await
            .on_constraint("projects_external_id_key", || external_id_taken(&project.external_id))?;
        if inserted == 1 {
            break;
        }
        if given_slug {
            return Err(slug_taken(&project.slug));
        }
        project.slug = project.slug.with_suffix(&hex(&random::<3>()?));
    }
    store_members(tx, &project).await?;
    let changes = Changes::created(&project);
    events::record(tx, by.app, by.actor.clone(), EventType::ProjectCreated, project.id, changes).await?;
    Ok(project)
}

/// Changes a project whose row is locked, and tells of it.
pub async fn update(tx: &TenantTx, by: &By<'_>, mut project: Project, to: ProjectChange) -> Result<Project> {
    let before = project.clone();
    apply(&mut project, to)?;
    if project.owner_id != before.owner_id {
        may_write(by, project.owner_id)?;
    }
    check(tx, &mut project, &[&before.member_ids[..], &[before.owner_id]].concat()).await?;
    project.updated_at = by.app.clock.now();
    project.version += 1;
    store(tx, &project).await?;
    let changes = Changes::between(&before, &project);
    events::record(tx, by.app, by.actor.clone(), EventType::ProjectUpdated, project.id, changes).await?;
    Ok(project)
}

fn slug_taken(slug: &Slug) -> Error {
    Error::taken("slug", format!("The slug {slug} is taken. Choose another."))
}

fn external_id_taken(id: &Option<ExternalId>) -> Error {
    let id = id.as_ref().map_or("", AsRef::as_ref);
    Error::taken("external_id", format!("Another project has the external id {id}. Change that one instead."))
}

fn budget_columns(project: &Project) -> (Option<Decimal>, Option<String>) {
    project.budget.as_ref().map(|money| (money.amount.decimal(), money.currency.to_string())).unzip()
}

/// What must hold whoever writes; also puts the members into their order. Who was in the project
/// `before` may stay, also after leaving the organization.
pub async fn check(tx: &TenantTx, project: &mut Project, before: &[Uuid]) -> Result<()> {
    check_values(project)?;
    let new = |ids: &[Uuid]| -> Vec<Uuid> { ids.iter().filter(|id| !before.contains(id)).copied().collect() };
    members::must_be_active(tx, tx.organization(), &new(&[project.owner_id]), "owner_id").await?;
    members::must_be_active(tx, tx.organization(), &new(&project.member_ids), "member_ids").await
}

/// The part of it that takes no look at the database.
pub fn check_values(project: &mut Project) -> Result<()> {
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
    if project.member_ids.len() > MOST_MEMBERS {
        return Err(Error::invalid("member_ids", format!("may name at most {MOST_MEMBERS} members")));
    }
    project.member_ids.sort();
    project.member_ids.dedup();
    Ok(())
}

pub fn apply(project: &mut Project, to: ProjectChange) -> Result<()> {
    change(&mut project.name, "name", to.name)?;
    change(&mut project.slug, "slug", to.slug)?;
    change(&mut project.status, "status", to.status)?;
    change(&mut project.priority, "priority", to.priority)?;
    change(&mut project.owner_id, "owner_id", to.owner_id)?;
    change(&mut project.member_ids, "member_ids", to.member_ids)?;
    change_optional(&mut project.external_id, to.external_id);
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
         start_date = $8, end_date = $9, budget_amount = $10, budget_currency = $11, external_id = $12, \
         version = $13, updated_at = $14 where id = $1",
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
            &project.external_id,
            &project.version,
            &project.updated_at,
        ],
    )
    .await
    .on_constraint("projects_slug_key", || slug_taken(&project.slug))
    .on_constraint("projects_external_id_key", || external_id_taken(&project.external_id))?;
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
/// statement of its own: the sum must see what whoever held it has committed. Of several projects,
/// in the order of their ids.
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
