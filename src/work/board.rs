//! The board: tasks of a project in columns by status, each in an order that people give it.
//!
//! A place is a number. A new task takes the time in microseconds since 1970, which is the end of every
//! column without a look at the others; a task that is put between two takes the middle. Where the middle has too
//! many digits, some tasks of the column are laid out anew. Whoever puts a task beside another holds the tree, so
//! that of two at one place each sees the other.

use chrono::{DateTime, Utc};
use poem_openapi::{Object, OpenApi, param::Path, types::Example};
use serde::Deserialize;
use uuid::Uuid;

use super::{
    By, projects,
    tasks::{self, Draft, Reach, Task, TaskStatus},
    tree,
};
use crate::{
    api::Tag,
    auth::{Can, permissions::TasksWriteOwn},
    db::TenantTx,
    error::{Error, Result},
    http::{Body, Single},
};

/// So many tasks are laid out anew; more where those stand too close together.
const LAID_OUT: [i64; 3] = [200, 2_000, 20_000];

/// Where a task goes; what is absent stays.
#[derive(Debug, Default, Deserialize, Object)]
#[serde(deny_unknown_fields, default)]
#[oai(deny_unknown_fields, example)]
pub struct MoveTask {
    /// With all that is under the task.
    pub project_id: Option<Uuid>,
    /// The column.
    pub status: Option<TaskStatus>,
    /// The task of that column that it comes right after; at the end where neither is given.
    pub after_id: Option<Uuid>,
    /// The task of that column that it comes right before.
    pub before_id: Option<Uuid>,
}

impl Example for MoveTask {
    fn example() -> Self {
        Self { status: Some(TaskStatus::Review), ..Self::default() }
    }
}

/// Which task of a column is beside the place.
#[derive(Clone, Copy, Debug)]
enum Beside {
    After(Uuid),
    Before(Uuid),
}

/// A project and a status.
type Column = (Uuid, TaskStatus);

/// A place between two tasks.
struct Place {
    position: String,
    /// There is no room for it before what comes after this task is laid out anew.
    crowded_after: Option<Uuid>,
}

/// Tasks of a column that are laid out anew, and between what.
struct Window {
    /// The task before them.
    after: Uuid,
    ids: Vec<Uuid>,
    /// The place of the next one; `None` at the end of the column.
    end: Option<String>,
}

pub struct BoardApi;

#[OpenApi(tag = "Tag::Tasks")]
impl BoardApi {
    /// Move a task on the board.
    ///
    /// To another place in its column, to another column, or to another project. Members may move the tasks that
    /// they may change, to projects that they may add to. The same rules hold as for a change of the task.
    #[oai(path = "/tasks/:task_id/move", method = "post", operation_id = "move_task")]
    async fn move_task(
        &self,
        who: Can<TasksWriteOwn>,
        task_id: Path<Uuid>,
        to: Body<MoveTask>,
    ) -> Result<Single<Task>> {
        let tx = who.begin().await?;
        let task = put(&tx, &By::from(&*who), task_id.0, to.0).await?;
        tx.commit().await?;
        Ok(Single(task))
    }
}

async fn put(tx: &TenantTx, by: &By<'_>, id: Uuid, to: MoveTask) -> Result<Task> {
    let (beside, field) = match (to.after_id, to.before_id) {
        (Some(_), Some(_)) => {
            return Err(Error::invalid("before_id", "give after_id or before_id, not both"));
        }
        (Some(other), None) => (Some(Beside::After(other)), "after_id"),
        (None, Some(other)) => (Some(Beside::Before(other)), "before_id"),
        (None, None) => (None, ""),
    };
    let now = by.app.clock.now();
    let reach = Reach { completes: to.status == Some(TaskStatus::Done), moves: to.project_id.is_some() };
    if reach.moves || beside.is_some() {
        tree::hold(tx).await?;
    }
    let column = |task: &Task| (to.project_id.unwrap_or(task.project_id), to.status.unwrap_or(task.status));
    // Looked at before anything is locked, as all that is touched is locked at once.
    let seen = tasks::find(tx, id).await?;
    let crowded = match beside {
        Some(beside) => {
            place(tx, id, column(&seen), beside, now).await?.and_then(|place| place.crowded_after)
        }
        None => None,
    };
    let window = match crowded {
        Some(after) => {
            // Who may not move it makes nobody wait.
            let home = projects::standings(tx, by, &[seen.project_id]).await?.pop();
            tasks::may_write(by, &seen, &home.ok_or_else(|| Error::not_found("task"))?)?;
            Some(window(tx, id, column(&seen), after).await?)
        }
        None => None,
    };
    let others = window.as_ref().map_or(&[][..], |window| &window.ids[..]);
    let target = Vec::from_iter(to.project_id);
    let beside_it = tasks::Beside { tasks: others, projects: &target };
    let before = tasks::hold_with(tx, by, &[id], reach, beside_it).await?.task(by, id)?;
    let mut after = before.clone();
    (after.project_id, after.status) = column(&before);
    if let Some(window) = &window {
        lay_out(tx, column(&seen), window, now).await?;
    }
    after.position = match beside {
        None => tasks::end(now, 0),
        Some(beside) => match place(tx, id, column(&before), beside, now).await? {
            Some(place) => place.position,
            None => return Err(Error::invalid(field, "is not another task of that project and status")),
        },
    };
    let moved = tasks::carry_out(tx, by, vec![Draft { before, after }], &|_| None).await?;
    moved.into_iter().next().ok_or_else(|| Error::internal("a move without a task"))
}

/// The place beside another task of a column; `None` where that is not there. Whatever already lies at the
/// place of the moved task does not count.
async fn place(
    tx: &TenantTx,
    task: Uuid,
    (project, status): Column,
    beside: Beside,
    now: DateTime<Utc>,
) -> Result<Option<Place>> {
    let (other, neighbour, edge) = match beside {
        Beside::After(other) => (
            other,
            "(t.position, t.id) > (a.position, a.id) order by t.position, t.id",
            "greatest($5::text::numeric, a.position + 1)",
        ),
        Beside::Before(other) => (
            other,
            "(t.position, t.id) < (a.position, a.id) order by t.position desc, t.id desc",
            "least($5::text::numeric, a.position - 1000000)",
        ),
    };
    let lower = if matches!(beside, Beside::After(_)) { "a.id" } else { "n.id" };
    // Whole numbers for as long as there are some in between: each digit behind the point makes the next longer.
    let sql = format!(
        "select coalesce(m.middle, {edge})::text as position, \
         case when n.position = a.position or scale(m.middle) > 14 then {lower} end as crowded_after \
         from tasks a left join lateral ( \
           select t.position, t.id from tasks t where t.project_id = $2 and t.status = $3 and t.id <> $4 \
           and {neighbour} limit 1) n on true \
         cross join lateral (select case when abs(n.position - a.position) >= 2 \
           then round((a.position + n.position) * 0.5) else trim_scale((a.position + n.position) * 0.5) end as middle) m \
         where a.id = $1 and a.project_id = $2 and a.status = $3 and a.id <> $4"
    );
    let row = tx.query_opt(&sql, &[&other, &project, &status, &task, &tasks::end(now, 0)]).await?;
    row.map(|row| {
        Ok(Place { position: row.try_get("position")?, crowded_after: row.try_get("crowded_after")? })
    })
    .transpose()
}

/// What is laid out to make room after a task of a column; the moved one does not count.
async fn window(tx: &TenantTx, task: Uuid, (project, status): Column, after: Uuid) -> Result<Window> {
    let mut window = Window { after, ids: Vec::new(), end: None };
    for many in LAID_OUT {
        let rows = tx
            .query(
                "select t.id, t.position::text as place, t.position - a.position > $5::bigint * 4 as is_wide \
                 from tasks a cross join lateral ( \
                   select t.id, t.position from tasks t where t.project_id = $2 and t.status = $3 and t.id <> $4 \
                   and (t.position, t.id) > (a.position, a.id) order by t.position, t.id limit $5::bigint + 1) t \
                 where a.id = $1 order by t.position, t.id",
                &[&after, &project, &status, &task, &many],
            )
            .await?;
        window.ids = rows.iter().map(|row| row.try_get("id")).collect::<Result<_, _>>()?;
        window.end = None;
        let Some(next) = rows.get(many as usize) else { break };
        window.ids.pop();
        window.end = Some(next.try_get("place")?);
        if next.try_get("is_wide")? {
            break;
        }
    }
    Ok(window)
}

/// Spreads tasks, whose rows are locked, evenly between what is before and after them, in the order in which
/// they stand; those at the end up to now.
async fn lay_out(
    tx: &TenantTx,
    (project, status): Column,
    window: &Window,
    now: DateTime<Utc>,
) -> Result<()> {
    tx.execute(
        "with inside as ( \
           select id, row_number() over (order by position, id) as n, count(*) over () + 1 as parts from tasks \
           where id = any ($4) and project_id = $1 and status = $2), \
         spread as ( \
           select i.id, a.position as beginning, i.n, i.parts, \
             coalesce($5::text::numeric, greatest($6::text::numeric, a.position + i.parts * 4)) - a.position as room \
           from inside i cross join tasks a where a.id = $3), \
         placed as ( \
           select id, case when room >= parts then round(beginning + room * n / parts) \
             else beginning + room * n / parts end as place from spread) \
         update tasks set position = placed.place from placed where tasks.id = placed.id",
        &[&project, &status, &window.after, &window.ids, &window.end, &tasks::end(now, 0)],
    )
    .await?;
    Ok(())
}
