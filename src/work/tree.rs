//! Tasks under tasks.

use uuid::Uuid;

use crate::{
    db::TenantTx,
    error::{Error, Result},
};

/// Tasks from the top of a tree to its lowest leaf.
pub const MOST_LEVELS: i32 = 5;
/// Tasks in one tree.
pub const MOST_TASKS: i64 = 500;

/// Keeps others from changing what is under what, and what waits for what, until the transaction ends. It
/// is taken before any task is locked: what is found out after it stays true.
pub async fn hold(tx: &TenantTx) -> Result<()> {
    tx.query("select id from settings where id = 1 for no key update", &[]).await?;
    Ok(())
}

/// Whether a task may be under that one, in this project; `task` is `None` for one that is being made. The
/// tree is held.
pub async fn check(tx: &TenantTx, task: Option<Uuid>, parent: Uuid, project: Uuid) -> Result<()> {
    let refused = |told: String| Err(Error::invalid("parent_id", told));
    // The lock is the one that the new row's reference takes: a parent that is going is gone after it.
    let row = tx.query_opt("select project_id from tasks where id = $1 for key share", &[&parent]).await?;
    let Some(row) = row else {
        return refused("There is no such task in this organization.".into());
    };
    if row.try_get::<_, Uuid>("project_id")? != project {
        return refused("A subtask is in the project of its parent; this parent is in another.".into());
    }
    let above = tx
        .query(
            "with recursive above (id, parent_id, level) as ( \
               select id, parent_id, 1 from tasks where id = $1 \
               union all select t.id, t.parent_id, a.level + 1 from tasks t join above a on t.id = a.parent_id) \
             select id from above order by level",
            &[&parent],
        )
        .await?;
    let above: Vec<Uuid> = above.iter().map(|row| row.try_get("id")).collect::<Result<_, _>>()?;
    if task.is_some_and(|task| above.contains(&task)) {
        return refused("A task cannot be under itself or one of its subtasks.".into());
    }
    let top = above.last().copied().unwrap_or(parent);
    let size = "with recursive below (id, level) as ( \
           select id, 1 from tasks where id = $1 \
           union all select t.id, b.level + 1 from tasks t join below b on t.parent_id = b.id) \
         select count(*) as many, coalesce(max(level), 1) as levels from below";
    let (many, levels): (i64, i32) = match task {
        None => (1, 1),
        Some(task) => {
            let row = tx.query_one(size, &[&task]).await?;
            (row.try_get("many")?, row.try_get("levels")?)
        }
    };
    if above.len() as i32 + levels > MOST_LEVELS {
        return refused(format!("Tasks go {MOST_LEVELS} levels deep at most; choose a parent further up."));
    }
    let there: i64 = tx.query_one(size, &[&top]).await?.try_get("many")?;
    if there + many > MOST_TASKS {
        return refused(format!("A task has at most {MOST_TASKS} under it, subtasks of subtasks included."));
    }
    Ok(())
}

/// All tasks under these, these excepted. While the tree is held, none is added.
pub async fn below(tx: &TenantTx, ids: &[Uuid]) -> Result<Vec<Uuid>> {
    let rows = tx
        .query(
            "with recursive below (id) as ( \
               select id from tasks where parent_id = any ($1) \
               union select t.id from tasks t join below b on t.parent_id = b.id) \
             select id from below where id <> all ($1) order by id",
            &[&ids],
        )
        .await?;
    rows.iter().map(|row| Ok(row.try_get("id")?)).collect()
}
