//! Tasks as rows of a file.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use chrono::{DateTime, NaiveDate, Utc};
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    db::{TenantTx, ToSql},
    error::Result,
    exchange::Exporter,
    work::exchange::{Filters, address, addresses},
};

pub(super) struct TaskExporter {
    filters: Filters,
    /// The last of those that were read in the order of the ids.
    after: Uuid,
    /// Those that were told before it is their turn, as others are under them. Few: most are older than what is
    /// under them.
    early: HashSet<Uuid>,
}

/// A task as it is told.
struct Row {
    parent: Option<Uuid>,
    cells: Vec<Value>,
}

/// The same for counting and for reading.
const FILTER: &str = "($1::uuid is null or t.project_id = $1) and ($2::text is null or t.status = $2)";

impl TaskExporter {
    pub(super) fn new(filters: Filters) -> Self {
        Self { filters, after: Uuid::nil(), early: HashSet::new() }
    }

    /// The next so many, and, of those that come later, what these are under.
    async fn together(&mut self, tx: &TenantTx, limit: i64) -> Result<Option<BTreeMap<Uuid, Row>>> {
        let mut rows = self.read(tx, "t.id > $3 order by t.id limit $4", &[&self.after, &limit]).await?;
        let Some(last) = rows.keys().next_back().copied() else { return Ok(None) };
        self.after = last;
        rows.retain(|id, _| !self.early.remove(id));
        let later = |(id, row): (&Uuid, &Row)| row.parent.filter(|parent| parent > id);
        let parents: Vec<Uuid> = rows.iter().filter_map(later).collect();
        if parents.is_empty() {
            return Ok(Some(rows));
        }
        let above = "t.id > $3 and t.id in (with recursive above (id, parent_id) as ( \
               select u.id, u.parent_id from tasks u where u.id = any ($4) \
               union select u.id, u.parent_id from tasks u join above a on u.id = a.parent_id) \
             select id from above)";
        let mut above = self.read(tx, above, &[&last, &parents]).await?;
        above.retain(|id, _| !self.early.contains(id));
        self.early.extend(above.keys());
        rows.append(&mut above);
        Ok(Some(rows))
    }

    async fn read(
        &self,
        tx: &TenantTx,
        which: &str,
        more: &[&(dyn ToSql + Sync); 2],
    ) -> Result<BTreeMap<Uuid, Row>> {
        // A parent that the filters leave out is in no file.
        let sql = format!(
            "select t.id, t.external_id, coalesce(p.external_id, p.slug) as project, t.parent_id, \
             case when $2::text is null or a.status = $2 then coalesce(a.external_id, t.parent_id::text) end as parent, \
             t.title, t.description, t.status, t.priority, \
             t.due_date, t.estimated_hours::float8 as estimated_hours, t.actual_hours::float8 as actual_hours, \
             t.impact::float8 as impact, t.completed_at, t.created_at, t.updated_at, \
             array(select s.user_id from task_assignees s where s.task_id = t.id order by s.user_id) as assignees \
             from tasks t join projects p on p.id = t.project_id left join tasks a on a.id = t.parent_id \
             where {FILTER} and {which}"
        );
        let rows =
            tx.query(&sql, &[&self.filters.project_id, &self.filters.status, more[0], more[1]]).await?;
        let mut people = BTreeSet::new();
        for row in &rows {
            people.extend(row.try_get::<_, Vec<Uuid>>("assignees")?);
        }
        let people: Vec<Uuid> = people.into_iter().collect();
        let known = addresses(tx, &people).await?;
        let mut told = BTreeMap::new();
        for row in &rows {
            let id: Uuid = row.try_get("id")?;
            let text = |column: &str| row.try_get::<_, Option<String>>(column);
            let number = |column: &str| row.try_get::<_, Option<f64>>(column);
            let time = |column: &str| row.try_get::<_, Option<DateTime<Utc>>>(column);
            let assignees: Vec<Uuid> = row.try_get("assignees")?;
            let assignees: Vec<Value> = assignees.into_iter().map(|user| address(&known, user)).collect();
            let cells = vec![
                json!(id),
                json!(text("external_id")?),
                json!(text("project")?),
                json!(text("parent")?),
                json!(text("title")?),
                json!(text("description")?),
                json!(text("status")?),
                json!(text("priority")?),
                json!(assignees),
                json!(row.try_get::<_, Option<NaiveDate>>("due_date")?),
                json!(number("estimated_hours")?),
                json!(number("actual_hours")?),
                json!(number("impact")?),
                json!(time("completed_at")?),
                json!(time("created_at")?),
                json!(time("updated_at")?),
            ];
            told.insert(id, Row { parent: row.try_get("parent_id")?, cells });
        }
        Ok(told)
    }
}

/// Rows in the order of their ids, but each after the one that it is under.
fn parents_first(mut rows: BTreeMap<Uuid, Row>) -> Vec<Vec<Value>> {
    let mut ordered = Vec::with_capacity(rows.len());
    while let Some((_, row)) = rows.pop_first() {
        let mut line = vec![row];
        while let Some(above) = line.last().and_then(|row| row.parent).and_then(|id| rows.remove(&id)) {
            line.push(above);
        }
        ordered.extend(line.into_iter().rev().map(|row| row.cells));
    }
    ordered
}

impl Exporter for TaskExporter {
    fn count<'a>(&'a self, tx: &'a TenantTx) -> BoxFuture<'a, Result<i64>> {
        Box::pin(async move {
            let sql = format!("select count(*) as many from tasks t where {FILTER}");
            let values: [&(dyn ToSql + Sync); 2] = [&self.filters.project_id, &self.filters.status];
            Ok(tx.query_one(&sql, &values).await?.try_get("many")?)
        })
    }

    fn rows<'a>(
        &'a mut self,
        tx: &'a TenantTx,
        limit: i64,
    ) -> BoxFuture<'a, Result<Option<Vec<Vec<Value>>>>> {
        Box::pin(async move { Ok(self.together(tx, limit).await?.map(parents_first)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_above_comes_first() {
        let id = |n: u128| Uuid::from_u128(n);
        let row = |n: u128, parent: Option<u128>| {
            (id(n), Row { parent: parent.map(id), cells: vec![json!(n as u64)] })
        };
        // 1 is under 9, which is under 5; 2 is under one that is not here.
        let rows = BTreeMap::from([
            row(1, Some(9)),
            row(2, Some(77)),
            row(3, Some(1)),
            row(5, None),
            row(9, Some(5)),
        ]);
        let ordered: Vec<u64> = parents_first(rows).iter().map(|cells| cells[0].as_u64().unwrap()).collect();
        assert_eq!(ordered, [5, 9, 1, 2, 3]);
    }
}
