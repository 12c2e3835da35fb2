//! The statement behind a list: columns, conditions that depend on the request, order, page.

use tokio_postgres::{Row, types::ToSql};

use super::Tx;
use crate::{
    error::Result,
    page::{Paging, Stretch},
};

type Value<'a> = &'a (dyn ToSql + Sync);

/// A `select` that is put together from fixed text in code and values from the request; values
/// only ever travel as parameters.
pub struct Select<'a> {
    columns: &'static str,
    from: &'static str,
    conditions: Vec<String>,
    values: Vec<Value<'a>>,
}

impl<'a> Select<'a> {
    /// `columns` and `from` as they stand in the statement.
    pub fn new(columns: &'static str, from: &'static str) -> Self {
        Self { columns, from, conditions: Vec::new(), values: Vec::new() }
    }

    /// Adds a condition; `?` in it stands for the value.
    pub fn and(mut self, condition: &str, value: Value<'a>) -> Self {
        self.values.push(value);
        self.conditions.push(condition.replace('?', &format!("${}", self.values.len())));
        self
    }

    /// Adds a condition without a value.
    pub fn only(mut self, condition: &str) -> Self {
        self.conditions.push(condition.to_owned());
        self
    }

    /// Adds a condition where the request gives a value for it.
    pub fn and_if<T: ToSql + Sync>(self, condition: &str, value: &'a Option<T>) -> Self {
        match value {
            Some(value) => self.and(condition, value),
            None => self,
        }
    }

    /// The `where` clause, if there is one.
    fn filter(&self) -> String {
        match self.conditions.is_empty() {
            true => String::new(),
            false => format!(" where {}", self.conditions.join(" and ")),
        }
    }

    /// The first rows in this order, which is text from code.
    pub async fn first(&self, tx: &Tx, order: &str, limit: i64) -> Result<Vec<Row>> {
        let (filter, n) = (self.filter(), self.values.len() + 1);
        let sql = format!("select {} from {}{filter} order by {order} limit ${n}", self.columns, self.from);
        let mut values = self.values.clone();
        values.push(&limit);
        tx.query(&sql, &values).await
    }

    /// The rows of one stretch of a growing list, by id, which grows with time, newest first.
    pub async fn newest(mut self, tx: &Tx, stretch: &'a Stretch) -> Result<Vec<Row>> {
        let (below, rows) = (stretch.below(), stretch.rows());
        let n = self.values.len();
        if below.is_some() {
            self.conditions.push(format!("id < ${}", n + 1));
        }
        let filter = self.filter();
        let limit = n + 1 + usize::from(below.is_some());
        let sql =
            format!("select {} from {}{filter} order by id desc limit ${limit}", self.columns, self.from);
        let mut values: Vec<Value<'_>> = self.values.clone();
        if let Some(below) = &below {
            values.push(below);
        }
        values.push(&rows);
        tx.query(&sql, &values).await
    }

    /// The rows of one page in this order, and how many rows there are in all. Both leave in one
    /// flush. `order` is text from an allow-list in code, never from the request.
    pub async fn page(&self, tx: &Tx, order: &str, paging: Paging) -> Result<(Vec<Row>, i64)> {
        let filter = self.filter();
        let count = format!("select count(*) from {}{filter}", self.from);
        let n = self.values.len();
        let rows = format!(
            "select {} from {}{filter} order by {order} limit ${} offset ${}",
            self.columns,
            self.from,
            n + 1,
            n + 2
        );
        let (limit, offset) = (paging.limit(), paging.offset());
        let mut page_values = self.values.clone();
        page_values.extend([&limit as Value<'_>, &offset]);
        let read = || async {
            futures_util::join!(tx.query(&rows, &page_values), tx.query_one(&count, &self.values))
        };
        let tx = tx.part_for(self.from).await?;
        let first = !tx.has_begun();
        let (mut rows, mut total) = read().await;
        if first && tx.restarts_after_stale_plan().await? {
            (rows, total) = read().await;
        }
        Ok((rows?, total?.try_get(0)?))
    }
}
