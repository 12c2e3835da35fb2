//! Who is in a project.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use poem_openapi::{Object, OpenApi, param::Path, types::Example};
use serde::Serialize;
use uuid::Uuid;

use super::{
    By,
    projects::{self, MOST_MEMBERS, Project, ProjectChange},
};
use crate::{
    api::Tag,
    auth::{
        Can, Role,
        permissions::{ProjectsRead, ProjectsWriteOwn},
    },
    db::TenantTx,
    error::{Code, Error, Result},
    http::{IfMatch, Json, NoContent, Single},
    organizations::members::must_be_active,
    types::{EXAMPLE_ID, example_time},
};

/// Somebody in a project: its owner or a member of it.
#[derive(Clone, Debug, Serialize, Object)]
#[oai(example)]
pub struct ProjectMember {
    pub user_id: Uuid,
    pub name: String,
    /// In the organization; null for whoever has left it.
    pub role: Option<Role>,
    pub is_owner: bool,
    pub added_at: DateTime<Utc>,
    /// Tasks of the project that are assigned to the member and not done.
    pub open_tasks: i64,
    /// Those that are done.
    pub done_tasks: i64,
}

impl Example for ProjectMember {
    fn example() -> Self {
        Self {
            user_id: EXAMPLE_ID,
            name: "Ben Lim".into(),
            role: Some(Role::Member),
            is_owner: false,
            added_at: example_time(),
            open_tasks: 3,
            done_tasks: 7,
        }
    }
}

/// All who are in a project, the owner first and then by the time they came.
#[derive(Debug, Serialize, Object)]
#[oai(example)]
pub struct ProjectMembers {
    pub data: Vec<ProjectMember>,
}

impl Example for ProjectMembers {
    fn example() -> Self {
        Self { data: vec![ProjectMember::example()] }
    }
}

pub struct ProjectMembersApi;

#[OpenApi(tag = "Tag::Projects")]
impl ProjectMembersApi {
    /// List who is in a project.
    #[oai(path = "/projects/:project_id/members", method = "get", operation_id = "list_project_members")]
    async fn list(&self, who: Can<ProjectsRead>, project_id: Path<Uuid>) -> Result<Json<ProjectMembers>> {
        let tx = who.begin().await?;
        projects::find(&tx, project_id.0).await?;
        Ok(Json(ProjectMembers { data: people(&tx, project_id.0).await? }))
    }

    /// Add a member to a project.
    ///
    /// An active member of the organization: 404 otherwise. Who is in the project already stays.
    #[oai(
        path = "/projects/:project_id/members/:user_id",
        method = "put",
        operation_id = "add_project_member"
    )]
    async fn add(
        &self,
        who: Can<ProjectsWriteOwn>,
        project_id: Path<Uuid>,
        user_id: Path<Uuid>,
        expected: IfMatch,
    ) -> Result<Single<Project>> {
        let by = By::from(&*who);
        let tx = who.begin().await?;
        let mut project = projects::find_to_change(&tx, &by, project_id.0).await?;
        expected.check(project.version)?;
        if !project.member_ids.contains(&user_id.0) {
            must_be_active(&tx, tx.organization(), &[user_id.0], "user_id").await.map_err(
                |error| match error.code() {
                    Code::Validation => Error::not_found("active member"),
                    _ => error,
                },
            )?;
            if project.member_ids.len() >= MOST_MEMBERS {
                let told = format!("A project has at most {MOST_MEMBERS} members. Remove somebody first.");
                return Err(Error::conflict(told));
            }
            let mut members = project.member_ids.clone();
            members.push(user_id.0);
            project = projects::update(&tx, &by, project, ProjectChange::members(members)).await?;
        }
        tx.commit().await?;
        Ok(Single(project))
    }

    /// Remove a member from a project.
    ///
    /// Tasks that are assigned to the member stay so.
    #[oai(
        path = "/projects/:project_id/members/:user_id",
        method = "delete",
        operation_id = "remove_project_member"
    )]
    async fn remove(
        &self,
        who: Can<ProjectsWriteOwn>,
        project_id: Path<Uuid>,
        user_id: Path<Uuid>,
        expected: IfMatch,
    ) -> Result<NoContent> {
        let by = By::from(&*who);
        let tx = who.begin().await?;
        let project = projects::find_to_change(&tx, &by, project_id.0).await?;
        expected.check(project.version)?;
        let members: Vec<Uuid> = project.member_ids.iter().filter(|id| **id != user_id.0).copied().collect();
        if members.len() == project.member_ids.len() {
            return Err(Error::not_found("member of this project"));
        }
        projects::update(&tx, &by, project, ProjectChange::members(members)).await?;
        tx.commit().await?;
        Ok(NoContent)
    }
}

/// Who is in a project, with their part of its tasks.
pub async fn people(tx: &TenantTx, project: Uuid) -> Result<Vec<ProjectMember>> {
    let rows = tx
        .query(
            "with people as ( \
               select m.user_id, m.added_at, m.user_id = p.owner_id as is_owner \
               from project_members m join projects p on p.id = m.project_id where p.id = $1 \
               union all select p.owner_id, p.created_at, true from projects p where p.id = $1 and not exists ( \
                 select 1 from project_members m where m.project_id = p.id and m.user_id = p.owner_id)), \
             parts as ( \
               select a.user_id, count(*) filter (where t.status <> 'done') as open, \
                 count(*) filter (where t.status = 'done') as done \
               from tasks t join task_assignees a on a.task_id = t.id where t.project_id = $1 group by a.user_id) \
             select e.user_id, e.added_at, e.is_owner, coalesce(s.open, 0) as open, coalesce(s.done, 0) as done \
             from people e left join parts s on s.user_id = e.user_id \
             order by e.is_owner desc, e.added_at, e.user_id",
            &[&project],
        )
        .await?;
    let ids: Vec<Uuid> = rows.iter().map(|row| row.try_get("user_id")).collect::<Result<_, _>>()?;
    let known = tx
        .query(
            "select u.id, coalesce(u.display_name, nullif(trim(u.first_name || ' ' || u.last_name), ''), u.email) \
               as name, m.role \
             from platform.users u left join platform.organization_members m on m.user_id = u.id \
               and m.organization_id = $2 where u.id = any ($1)",
            &[&ids, &tx.organization()],
        )
        .await?;
    let mut names: HashMap<Uuid, (String, Option<Role>)> = HashMap::new();
    for row in &known {
        names.insert(row.try_get("id")?, (row.try_get("name")?, row.try_get("role")?));
    }
    rows.iter()
        .map(|row| {
            let user_id = row.try_get("user_id")?;
            let (name, role) =
                names.remove(&user_id).unwrap_or_else(|| ("Somebody who is gone".into(), None));
            Ok(ProjectMember {
                user_id,
                name,
                role,
                is_owner: row.try_get("is_owner")?,
                added_at: row.try_get("added_at")?,
                open_tasks: row.try_get("open")?,
                done_tasks: row.try_get("done")?,
            })
        })
        .collect()
}
