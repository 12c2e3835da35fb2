//! The statement behind a list: columns, conditions that depend on the request, order, page.

use futures_util::join;
use poem_openapi::types::{self, Example, ParseFromJSON, ToJSON};
use tokio_postgres::{Row, types::ToSql};

use super::Tx;
use crate::{
    error::{Error, Result},
    page::{COUNTED, ListCursor, Order, Page, Paging, Stretch},
};

/// So many rows that meet the conditions are gathered at once.
const FEW: i64 = 3_000;
/// So many that meet one, if the first of them are not near: gathering them takes as long as going far.
const MANY: i64 = 50_000;
/// What is near: so many rows of the table, in the order asked for.
const NEAR: i64 = 5_000;

type Value<'a> = &'a (dyn ToSql + Sync);

/// A `select` that is put together from fixed text in code and values from the request; values
/// only ever travel as parameters.
pub struct Select<'a> {
    columns: &'static str,
    from: &'static str,
    conditions: Vec<String>,
    values: Vec<Value<'a>>,
    /// The selection of ids that a condition is about, and which of the values it is by.
    among: Option<(&'static str, usize)>,
    /// Columns that have a value in all rows that are left, or in none.
    known: Vec<(&'static str, bool)>,
    spread: Option<Spread>,
}

impl<'a> Select<'a> {
    /// `columns` and `from` as they stand in the statement.
    pub fn new(columns: &'static str, from: &'static str) -> Self {
        let (conditions, values, known) = (Vec::new(), Vec::new(), Vec::new());
        Self { columns, from, conditions, values, among: None, known, spread: None }
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

    /// Adds, where the request gives a value, that the row's id is among those that `ids` selects by it: each
    /// of them once, and none that is not in the table.
    pub fn among_if<T: ToSql + Sync>(self, id: &str, ids: &'static str, value: &'a Option<T>) -> Self {
        let Some(value) = value else { return self };
        let mut with = self.and(&format!("{id} in ({ids})"), value);
        with.among = Some((ids, with.values.len() - 1));
        with
    }

    /// Tells, where the conditions say so much, whether a column that can be null has a value in all rows
    /// that are left.
    pub fn knowing(mut self, column: &'static str, has_value: Option<bool>) -> Self {
        self.known.extend(has_value.map(|has_value| (column, has_value)));
        self
    }

    /// Tells that conditions may leave a range of this column, such as one of days, and that there are indexes
    /// by it and the id, and by it, each of these other columns and the id: of such a range the first rows in
    /// such an order are looked for under each of its values.
    pub fn spread_over(mut self, column: &'static str, orders: &'static [&'static str]) -> Self {
        self.spread = Some(Spread { column, orders });
        self
    }

    /// The `where` clause, if there is one.
    fn filter(&self) -> String {
        clause(&self.conditions)
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

    /// One page in this order, how many rows there are in all (counted as far as [`COUNTED`]), and where
    /// to go on. Errors: a cursor of another order, or a forged one.
    ///
    /// Without conditions, rows and count leave in one flush. With them the count comes first, as it says
    /// how the rows are best found: a few are gathered and sorted, of many the first ones are met soon by
    /// going along the order's index. What Postgres knows does not tell it whether rows with one property
    /// are also the last in some order; gone along in vain, an index of a million rows takes a second. So
    /// it goes no further than the next rows at first, and gathers if the page is not among them.
    ///
    /// Ids are picked before anything else is read: an index that holds all that the conditions are about
    /// is then enough, and Postgres has no reason to prefer another.
    pub async fn page<T>(
        &self,
        tx: &Tx,
        order: &Order,
        paging: &Paging,
        from_row: impl Fn(&Row) -> Result<T>,
    ) -> Result<Page<T>>
    where
        T: ParseFromJSON + ToJSON + types::Type + Example,
    {
        let wanted = self.wanted(order, paging)?;
        let tx = tx.part_for(self.from).await?;
        let (found, counted) = match self.conditions.is_empty() {
            true => self.all(tx, &wanted).await,
            false => self.some(tx, &wanted).await,
        }
        .map_err(|error| match wanted.behind.is_some() && is_bad_value(&error) {
            true => ListCursor::forged(),
            false => error,
        })?;
        let more = found.len() > paging.page_size();
        let shown = &found[..found.len().min(paging.page_size())];
        let next_cursor = match shown.last().filter(|_| more) {
            Some(last) => Some(order.cursor(last.try_get("page_value")?, last.try_get("page_id")?)),
            None => None,
        };
        Ok(paging.answer(shown.iter().map(from_row).collect::<Result<_>>()?, counted, next_cursor))
    }

    fn wanted<'b>(&self, order: &'b Order, paging: &'b Paging) -> Result<Wanted<'b>> {
        let behind = paging.cursor().map(|cursor| cursor.behind(order)).transpose()?;
        // One row more than is shown tells whether there is more.
        let (rows, offset) = (paging.page_size() as i64 + 1, paging.offset());
        // Of two columns with the same name the output's would win, which may be of another type.
        let column = match order.column.contains('.') {
            true => order.column.to_owned(),
            false => format!("{}.{}", self.from, order.column),
        };
        let is = |comparison: &str| {
            let begins = format!("{} {comparison} $", order.column);
            self.conditions.iter().any(|condition| condition.starts_with(&begins))
        };
        let has_value = self.known.iter().find(|(column, _)| *column == order.column).map(|known| known.1);
        let has_value = match order.nullable {
            true => has_value.or((is("=") || is("<=") || is(">=")).then_some(true)),
            false => Some(true),
        };
        let (by_ids, in_range) = (order.by_id || is("="), is("<=") || is(">="));
        Ok(Wanted { order, column, by_ids, in_range, has_value, behind, rows, offset })
    }

    /// A page of everything.
    async fn all(&self, tx: &Tx, wanted: &Wanted<'_>) -> Result<(Vec<Row>, i64)> {
        let (count, anywhere) = (self.count(COUNTED), Within::default());
        let read =
            || async { join!(self.along(tx, wanted, &anywhere, None), tx.query_one(&count, &self.values)) };
        let first = !tx.has_begun();
        let (mut rows, mut counted) = read().await;
        if first && tx.restarts_after_stale_plan().await? {
            (rows, counted) = read().await;
        }
        let rows = self.with_rest(tx, wanted, &anywhere, rows?).await?;
        Ok((rows, counted?.try_get(0)?))
    }

    /// A page of what meets the conditions.
    async fn some(&self, tx: &Tx, wanted: &Wanted<'_>) -> Result<(Vec<Row>, i64)> {
        let count = self.count(COUNTED);
        // One value is in half of the rows, another in three: each has its own best plan.
        // And rows that are selected by ids are looked up, not met by going along everything.
        let plan = match self.among {
            Some(_) => {
                "select set_config('plan_cache_mode', 'force_custom_plan', true), \
                        set_config('enable_hashjoin', 'off', true)"
            }
            None => "set local plan_cache_mode = force_custom_plan",
        };
        let read = || async { join!(tx.command(plan), tx.query_one(&count, &self.values)) };
        let first = !tx.has_begun();
        let (mut set, mut counted) = read().await;
        if first && tx.restarts_after_stale_plan().await? {
            (set, counted) = read().await;
        }
        let counted: i64 = set.and(counted)?.try_get(0)?;
        let (single, range) = (self.conditions.len() == 1, self.range());
        let searches = self.conditions.iter().any(|condition| condition.contains("@@"));
        // Whether the index of a condition has the ids in the order asked for.
        let leads = wanted.by_ids && !searches && range.is_none() && (single || self.among.is_none());
        // No index of an order says whether a row has a word: looking for those near takes longest.
        let gathered = if single && searches { COUNTED } else { FEW };
        let rows = match counted {
            0 => Vec::new(),
            few if few <= gathered => self.gathered(tx, wanted, &Within::default()).await?,
            _ if leads => {
                let anywhere = Within::default();
                let found = self.along(tx, wanted, &anywhere, None).await?;
                self.with_rest(tx, wanted, &anywhere, found).await?
            }
            _ => match range.as_ref().filter(|_| wanted.by_ids) {
                Some(range) => self.under_each(tx, wanted, range, None).await?,
                None => self.near_or_gathered(tx, wanted, counted).await?,
            },
        };
        Ok((rows, counted))
    }

    /// The range that rows can be looked for under each value of, if the conditions leave one.
    fn range(&self) -> Option<Range> {
        let column = self.spread.as_ref().filter(|_| self.among.is_none())?.column;
        let begins = [format!("{column} <= "), format!("{column} >= ")];
        let is_of_it = |condition: &&String| begins.iter().any(|begin| condition.starts_with(begin));
        let range: Vec<&str> = self.conditions.iter().filter(is_of_it).map(String::as_str).collect();
        let alone = range.len() == self.conditions.len();
        (!range.is_empty()).then(|| Range { column, conditions: range.join(" and "), alone })
    }

    /// The statement that counts, to one more than this. It selects nothing, so that Postgres need not look
    /// at the rows where an index knows enough.
    fn count(&self, most: i64) -> String {
        let (limit, from) = (most + 1, self.from);
        match (&self.among, self.conditions.len()) {
            (Some((among, _)), 1) => {
                format!("select count(*) from ({} limit {limit}) as counted", among.replace('?', "$1"))
            }
            _ => {
                format!("select count(*) from (select from {from}{} limit {limit}) as counted", self.filter())
            }
        }
    }

    /// What a list shows, and what its cursors are made of.
    fn columns(&self, wanted: &Wanted<'_>) -> String {
        let id = wanted.order.id;
        let value = match wanted.order.by_id {
            true => "null",
            false => wanted.column.as_str(),
        };
        format!("{}, ({value})::text as page_value, ({id})::text as page_id", self.columns)
    }

    /// The statement that shows the rows whose ids these `with` clauses pick.
    fn show(&self, wanted: &Wanted<'_>, picked: &str, by: &str) -> String {
        format!(
            "with {picked} select {} from {} where {} in (select page_id from picked) order by {by}",
            self.columns(wanted),
            self.from,
            wanted.order.id
        )
    }

    /// The first rows behind the cursor or offset, by the order's index, as far as the border: all, or those
    /// with a value where some may have none.
    async fn along(
        &self,
        tx: &Tx,
        wanted: &Wanted<'_>,
        within: &Within,
        border: Option<&Border>,
    ) -> Result<Vec<Row>> {
        if wanted.has_value == Some(false) || wanted.is_in_the_rest() {
            return Ok(Vec::new());
        }
        let Wanted { order, column, by_ids, behind, rows, offset, .. } = wanted;
        let mut values = self.values.clone();
        // What is selected by one of its properties elsewhere has its ids there, in order.
        let (from, id, mut conditions) = match self.among {
            Some((among, _)) if *by_ids && self.conditions.len() == 1 => {
                (format!("({}) as among (page_id)", among.replace('?', "$1")), "page_id", Vec::new())
            }
            _ => (self.from.to_owned(), order.id, self.conditions.clone()),
        };
        // Also where it is known: an index may hold no others.
        if order.nullable {
            conditions.push(format!("{column} is not null"));
        }
        let (direction, beyond) = order.direction();
        if let Some((value, last)) = behind {
            wanted.compare(id, beyond, (value, last), &mut conditions, &mut values);
        }
        within.confine(order, &mut conditions, &mut values);
        if let Some(Border { value, id: last }) = border {
            let until = if order.descending { ">=" } else { "<=" };
            wanted.compare(id, until, (value, last), &mut conditions, &mut values);
        }
        values.extend([rows as Value<'_>, offset]);
        let by = wanted.by(order.id);
        let limits = format!("limit ${} offset ${}", values.len() - 1, values.len());
        let filter = clause(&conditions);
        let sql = match self.conditions.is_empty() {
            true => format!("select {} from {from}{filter} order by {by} {limits}", self.columns(wanted)),
            false => {
                // What all rows have in common orders nothing.
                let by_picked = if *by_ids { format!("{id} {direction}") } else { by.clone() };
                let picked = format!(
                    "picked as materialized (select {id} as page_id from {from}{filter} \
                     order by {by_picked} {limits})"
                );
                self.show(wanted, &picked, &by)
            }
        };
        tx.query(&sql, &values).await
    }

    /// The row that is [`NEAR`] rows further in the order of the whole table; none if its end is nearer, or
    /// if conditions leave a range of the order's column, which is then where to begin.
    async fn border(&self, tx: &Tx, wanted: &Wanted<'_>) -> Result<Option<Border>> {
        if wanted.in_range || wanted.has_value == Some(false) || wanted.is_in_the_rest() {
            return Ok(None);
        }
        let Wanted { order, column, by_ids, behind, .. } = wanted;
        let (mut conditions, mut values) = (Vec::new(), Vec::<Value<'_>>::new());
        if order.nullable {
            conditions.push(format!("{column} is not null"));
        }
        if let Some((value, last)) = behind {
            wanted.compare(order.id, order.direction().1, (value, last), &mut conditions, &mut values);
        }
        let value = if *by_ids { "null" } else { column.as_str() };
        let sql = format!(
            "select ({value})::text as border_value, ({})::text as border_id from {}{} \
             order by {} offset {NEAR} limit 1",
            order.id,
            self.from,
            clause(&conditions),
            wanted.by(order.id)
        );
        let Some(row) = tx.query_opt(&sql, &values).await? else { return Ok(None) };
        Ok(Some(Border { value: row.try_get("border_value")?, id: row.try_get("border_id")? }))
    }

    /// The page out of rows that no index has in this order: the near ones if they fill it, or else all that
    /// meet the conditions, or if those are too many as far as it takes.
    async fn near_or_gathered(&self, tx: &Tx, wanted: &Wanted<'_>, counted: i64) -> Result<Vec<Row>> {
        let (order, within) = (wanted.order, self.within(tx, wanted).await?);
        if let Some(border) = self.border(tx, wanted).await? {
            let near = self.along(tx, wanted, &within, Some(&border)).await?;
            if near.len() as i64 == wanted.rows {
                return Ok(near);
            }
            // Other conditions would be looked at in the rows of each value, which may be all there are.
            let spread = self.range().filter(|range| range.alone).zip(self.spread.as_ref());
            if let Some((range, _)) = spread.filter(|(_, spread)| spread.orders.contains(&order.column)) {
                let found = self.under_each(tx, wanted, &range, None).await?;
                return self.with_rest(tx, wanted, &within, found).await;
            }
            let counted = match self.conditions.len() {
                1 if counted > COUNTED => {
                    tx.query_one(&self.count(MANY), &self.values).await?.try_get::<_, i64>(0)?
                }
                _ => counted,
            };
            // Of several conditions each alone may be met by many rows, which are then looked at.
            let most = if self.conditions.len() == 1 { MANY } else { COUNTED };
            if counted <= most {
                return self.gathered(tx, wanted, &within).await;
            }
        }
        let found = self.along(tx, wanted, &within, None).await?;
        self.with_rest(tx, wanted, &within, found).await
    }

    /// The first rows behind the cursor or offset out of a range of another column: of each of its values the
    /// first row says whether it has a part in the page at all. `rest`: of the rows without a value, which are
    /// read by id, so many behind so many.
    async fn under_each(
        &self,
        tx: &Tx,
        wanted: &Wanted<'_>,
        range: &Range,
        rest: Option<(i64, i64)>,
    ) -> Result<Vec<Row>> {
        let Wanted { order, column, behind, .. } = wanted;
        let (id, from, (direction, beyond)) = (order.id, self.from, order.direction());
        let (mut conditions, mut values) = (self.conditions.clone(), self.values.clone());
        let by_ids = wanted.by_ids || rest.is_some();
        let (rows, offset) = rest.unwrap_or((wanted.rows, wanted.offset));
        match rest {
            None if wanted.has_value == Some(false) || wanted.is_in_the_rest() => return Ok(Vec::new()),
            None => conditions.extend(order.nullable.then(|| format!("{column} is not null"))),
            Some(_) => conditions.push(format!("{column} is null")),
        }
        match (behind, rest) {
            (Some((value, last)), None) => {
                wanted.compare(id, beyond, (value, last), &mut conditions, &mut values);
            }
            (Some((None, last)), Some(_)) => {
                conditions.push(format!("{id} {beyond} ${}::text::{}", values.len() + 1, order.id_of));
                values.push(last);
            }
            _ => {}
        }
        let first = rows + offset;
        values.extend([&rows as Value<'_>, &offset, &first]);
        let (limit, skipped, first) = (values.len() - 2, values.len() - 1, values.len());
        let Range { column: each, conditions: within, .. } = range;
        conditions.push(format!("{each} = each_value"));
        let filter = clause(&conditions);
        let (key, by, by_key) = match by_ids {
            true => ("null", format!("{id} {direction}"), String::new()),
            false => (
                column.as_str(),
                format!("{column} {direction}, {id} {direction}"),
                format!("page_key {direction}, "),
            ),
        };
        let by_key = format!("{by_key}page_id {direction}");
        let select = format!("select {key} as page_key, {id} as page_id from {from}{filter} order by {by}");
        let picked = format!(
            "recursive found as ((select {each} as each_value from {from} where {within} \
             order by {each} limit 1) \
             union all select (select {each} from {from} where {each} > each_value and {within} \
             order by {each} limit 1) from found where each_value is not null), \
             chosen as materialized (select each_value from found cross join lateral ({select} limit 1) as first \
             where each_value is not null order by {by_key} limit ${first}), \
             picked as materialized (select page_id from chosen cross join lateral ({select} limit ${first}) \
             as under order by {by_key} limit ${limit} offset ${skipped})"
        );
        tx.query(&self.show(wanted, &picked, &by), &values).await
    }

    /// The same page when these of its rows have a value: the rest come after them, by id.
    async fn with_rest(
        &self,
        tx: &Tx,
        wanted: &Wanted<'_>,
        within: &Within,
        mut found: Vec<Row>,
    ) -> Result<Vec<Row>> {
        let missing = wanted.rows - found.len() as i64;
        if wanted.has_value == Some(true) || missing == 0 {
            return Ok(found);
        }
        let Wanted { order, column, has_value, behind, offset, .. } = wanted;
        let (id, n) = (order.id, self.values.len());
        let (direction, beyond) = order.direction();
        let mut offset = if found.is_empty() { *offset } else { 0 };
        if offset > 0 && has_value.is_none() {
            let mut conditions = self.conditions.clone();
            conditions.push(format!("{column} is not null"));
            let filter = clause(&conditions);
            let sql = format!(
                "select count(*) from (select from {}{filter} limit ${}) as counted",
                self.from,
                n + 1
            );
            let mut values = self.values.clone();
            values.push(&offset);
            let before: i64 = tx.query_one(&sql, &values).await?.try_get(0)?;
            offset -= before;
        }
        if let Some(range) = self.range() {
            found.extend(self.under_each(tx, wanted, &range, Some((missing, offset))).await?);
            return Ok(found);
        }
        let (mut conditions, mut values) = (self.conditions.clone(), self.values.clone());
        conditions.push(format!("{column} is null"));
        if let Some((None, last)) = behind {
            conditions.push(format!("{id} {beyond} ${}::text::{}", n + 1, order.id_of));
            values.push(last);
        }
        within.confine(order, &mut conditions, &mut values);
        values.extend([&missing as Value<'_>, &offset]);
        let by = format!("{id} {direction}");
        let picked = format!(
            "picked as materialized (select {id} as page_id from {}{} order by {by} limit ${} offset ${})",
            self.from,
            clause(&conditions),
            values.len() - 1,
            values.len()
        );
        let sql = self.show(wanted, &picked, &by);
        found.extend(tx.query(&sql, &values).await?);
        Ok(found)
    }

    /// The least and the greatest id, where an index tells. What one person or one project has to do with is
    /// often of one time, and far from the beginning of an order: what is not between these ids is passed
    /// without a further look, and rows are gathered by reading an index by id from one to the other.
    async fn within(&self, tx: &Tx, wanted: &Wanted<'_>) -> Result<Within> {
        let Wanted { order, .. } = wanted;
        let led =
            self.conditions.len() == 1 && self.conditions.iter().all(|condition| condition.contains(" = $"));
        let (ids, value) = match self.among {
            Some((among, by)) => {
                (format!("({}) as among (page_id)", among.replace('?', "$1")), self.values[by])
            }
            None if led => {
                let ids = format!("(select {} from {}{})", order.id, self.from, self.filter());
                (format!("{ids} as among (page_id)"), self.values[0])
            }
            None => return Ok(Within::default()),
        };
        let end = |direction: &str| {
            // The bare name would be that of the text.
            format!("(select page_id::text from {ids} order by among.page_id {direction} limit 1)")
        };
        let sql = format!("select {} as least, {} as greatest", end("asc"), end("desc"));
        let row = tx.query_one(&sql, &[value]).await?;
        Ok(Within(row.try_get::<_, Option<String>>("least")?.zip(row.try_get("greatest")?)))
    }

    /// The page out of all rows that meet the conditions, which are not many. All their ids are `within`.
    async fn gathered(&self, tx: &Tx, wanted: &Wanted<'_>, within: &Within) -> Result<Vec<Row>> {
        let Wanted { order, column, by_ids, behind, rows, offset, .. } = wanted;
        let id = order.id;
        let (direction, beyond) = order.direction();
        let mut values = self.values.clone();
        let mut conditions = self.conditions.clone();
        within.confine(order, &mut conditions, &mut values);
        let n = values.len();
        let value = behind.and_then(|(value, _)| value);
        let seek = match behind {
            None => String::new(),
            Some((_, last)) => {
                values.push(last);
                let last = format!("${}::text::{}", n + 1, order.id_of);
                match value {
                    _ if *by_ids => format!(" where page_id {beyond} {last}"),
                    None => format!(" where page_key is null and page_id {beyond} {last}"),
                    Some(_) => {
                        let value = format!("${}::text::{}", n + 2, order.of);
                        format!(" where (page_key, page_id) {beyond} ({value}, {last}) or page_key is null")
                    }
                }
            }
        };
        if let Some(value) = value.as_ref().filter(|_| !by_ids) {
            values.push(value);
        }
        values.extend([rows as Value<'_>, offset]);
        let (key, by_key, by) = match by_ids {
            true => (String::new(), String::new(), wanted.by(id)),
            false => (
                format!(", {column} as page_key"),
                format!("page_key {direction} nulls last, "),
                format!("{column} {direction} nulls last, {id} {direction}"),
            ),
        };
        let picked = format!(
            "matching as materialized (select {id} as page_id{key} from {}{}), \
             picked as (select page_id from matching{seek} \
             order by {by_key}page_id {direction} limit ${} offset ${})",
            self.from,
            clause(&conditions),
            values.len() - 1,
            values.len()
        );
        tx.query(&self.show(wanted, &picked, &by), &values).await
    }
}

/// What [`Select::spread_over`] tells.
struct Spread {
    column: &'static str,
    orders: &'static [&'static str],
}

/// A range of a column with not too many values.
struct Range {
    column: &'static str,
    conditions: String,
    /// There is no other condition.
    alone: bool,
}

/// Which rows a page shows.
struct Wanted<'a> {
    order: &'a Order,
    /// The order's column, by its full name.
    column: String,
    /// The order is that of the ids: its column grows with them, or the conditions leave one value of it.
    by_ids: bool,
    /// The conditions leave a range of the column.
    in_range: bool,
    /// What is known of all rows that meet the conditions.
    has_value: Option<bool>,
    /// The value and id of the row that the page begins behind.
    behind: Option<(Option<&'a str>, &'a str)>,
    rows: i64,
    offset: i64,
}

/// The least and the greatest id of all rows that meet the conditions, if they are known.
#[derive(Default)]
struct Within(Option<(String, String)>);

impl Within {
    fn confine<'a>(&'a self, order: &Order, conditions: &mut Vec<String>, values: &mut Vec<Value<'a>>) {
        let Some((least, greatest)) = &self.0 else { return };
        let (id, of, n) = (order.id, order.id_of, values.len());
        conditions.push(format!("{id} between ${}::text::{of} and ${}::text::{of}", n + 1, n + 2));
        values.extend([least as Value<'_>, greatest]);
    }
}

/// A row that is not passed.
struct Border {
    value: Option<String>,
    id: String,
}

impl Wanted<'_> {
    /// Whether the page begins among the rows without a value.
    fn is_in_the_rest(&self) -> bool {
        !self.order.by_id && self.behind.is_some_and(|(value, _)| value.is_none())
    }

    /// The order of rows that have a value, by this id.
    fn by(&self, id: &str) -> String {
        let (column, direction) = (&self.column, self.order.direction().0);
        match self.by_ids {
            true => format!("{id} {direction}"),
            false => format!("{column} {direction}, {id} {direction}"),
        }
    }

    /// Adds the condition that compares rows with another, of which these are value and id. The id's parameter
    /// comes first; where the order is that of the ids, there is none of the value.
    fn compare<'b>(
        &self,
        id: &str,
        comparison: &str,
        (value, last): (Value<'b>, Value<'b>),
        conditions: &mut Vec<String>,
        values: &mut Vec<Value<'b>>,
    ) {
        let (column, order, n) = (&self.column, self.order, values.len() + 1);
        let last_id = format!("${n}::text::{}", order.id_of);
        values.push(last);
        if self.by_ids {
            conditions.push(format!("{id} {comparison} {last_id}"));
            return;
        }
        values.push(value);
        conditions.push(format!("({column}, {id}) {comparison} (${}::text::{}, {last_id})", n + 1, order.of));
    }
}

fn clause(conditions: &[String]) -> String {
    match conditions.is_empty() {
        true => String::new(),
        false => format!(" where {}", conditions.join(" and ")),
    }
}

/// Whether Postgres could not read a value (class 22, data exception).
fn is_bad_value(error: &Error) -> bool {
    error.sql_state().is_some_and(|state| state.starts_with("22"))
}
