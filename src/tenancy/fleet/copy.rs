//! Rows from one schema into another, or into a file and back.
//!
//! A row travels as a JSON object in which every value is the text that Postgres writes for it, or
//! null. That is exact for every type: numbers keep their digits, times their microseconds, JSON that is
//! `null` stays apart from no value. Columns that are computed from others are left to be computed.

use std::collections::BTreeSet;

use uuid::Uuid;

use crate::{
    db::{Row, TenantTx},
    error::{Error, Result},
};

/// What is fetched at once: so many rows at most, and about so many bytes.
const MOST_ROWS: usize = 500;
const ABOUT_BYTES: usize = 1_000_000;

/// For the other part of a transaction over two servers, which waits while rows are copied in one.
pub(super) const UNHURRIED: &str = "set local idle_in_transaction_session_timeout to '15min'";

/// A table of a tenant's schema.
#[derive(Clone, Debug)]
pub(super) struct Table {
    pub(super) name: String,
    /// Without those that are computed.
    pub(super) columns: Vec<Column>,
    /// Its primary key.
    pub(super) key: Vec<String>,
}

#[derive(Clone, Debug)]
pub(super) struct Column {
    pub(super) name: String,
    /// Its type, as it is written in `create table`.
    pub(super) kind: String,
}

impl Table {
    /// The table as far as its key goes.
    pub(super) fn keys(&self) -> Self {
        let columns = self.columns.iter().filter(|column| self.key.contains(&column.name));
        Self { columns: columns.cloned().collect(), ..self.clone() }
    }

    /// The rows of a parameter that holds a JSON list of them, as `r`.
    fn given(&self) -> String {
        let columns = list(self.columns.iter().map(|column| format!("{} text", quoted(&column.name))));
        format!("json_to_recordset($1::text::json) as r ({columns})")
    }

    /// What a row is as text, as `r`.
    fn told(&self, only: Option<&str>) -> String {
        let name = |column: &Column| quoted(&column.name);
        let columns = list(self.columns.iter().map(|column| format!("t.{0}::text as {0}", name(column))));
        let condition = only.map(|only| format!(" where {only}")).unwrap_or_default();
        format!("select {columns} from {} as t{condition}", quoted(&self.name))
    }
}

/// Makes a transaction write and read values in one way whatever the server's settings are, and lets it
/// take its time. To be called once, before anything is read or inserted.
pub(super) async fn prepare(tx: &TenantTx) -> Result<()> {
    tx.command(
        "select set_config('statement_timeout', '0', true), \
         set_config('idle_in_transaction_session_timeout', '15min', true), set_config('timezone', 'UTC', true), \
         set_config('datestyle', 'ISO, YMD', true), set_config('intervalstyle', 'postgres', true), \
         set_config('extra_float_digits', '1', true), set_config('bytea_output', 'hex', true)",
    )
    .await
}

/// The tables of the transaction's schema, by name.
pub(super) async fn tables(tx: &TenantTx) -> Result<Vec<Table>> {
    let rows = tx
        .query_once(
            "select c.relname::text as name, array_agg(a.attname::text order by a.attnum) as columns, \
             array_agg(format_type(a.atttypid, a.atttypmod) order by a.attnum) as kinds, \
             (select array_agg(k.attname::text order by o.place) from pg_catalog.pg_index i \
              cross join lateral unnest(i.indkey) with ordinality as o (attnum, place) \
              join pg_catalog.pg_attribute k on k.attrelid = i.indrelid and k.attnum = o.attnum \
              where i.indrelid = c.oid and i.indisprimary) as key \
             from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
             join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped \
             and a.attgenerated = '' where n.nspname = $1 and c.relkind in ('r', 'p') \
             group by c.oid, c.relname order by c.relname",
            &[&tx.schema().to_string()],
        )
        .await?;
    rows.iter().map(table_from_row).collect()
}

fn table_from_row(row: &Row) -> Result<Table> {
    let name: String = row.try_get("name")?;
    let (names, kinds): (Vec<String>, Vec<String>) = (row.try_get("columns")?, row.try_get("kinds")?);
    let key: Option<Vec<String>> = row.try_get("key")?;
    let key = key.ok_or_else(|| Error::conflict(format!("the table {name} has no primary key")))?;
    let columns = names.into_iter().zip(kinds).map(|(name, kind)| Column { name, kind }).collect();
    Ok(Table { name, columns, key })
}

/// Every column with its type: what two schemas must have in common for a copy to be one.
pub(super) fn shapes(tables: &[Table]) -> BTreeSet<String> {
    let of = |table: &Table| -> Vec<String> {
        let columns = table.columns.iter();
        columns.map(|column| format!("{}.{} {}", table.name, column.name, column.kind)).collect()
    };
    tables.iter().flat_map(of).collect()
}

/// Reads the rows of a table, by its key; `only` is a condition on `t`.
pub(super) async fn read<'a>(tx: &'a TenantTx, table: &Table, only: Option<&str>) -> Result<Rows<'a>> {
    let cursor = quoted(&format!("copy {}", Uuid::now_v7().simple()));
    let order = list(table.key.iter().map(|column| format!("t.{}", quoted(column))));
    tx.command(&format!(
        "declare {cursor} no scroll cursor for select row_to_json(r)::text from ({} order by {order}) as r",
        table.told(only)
    ))
    .await?;
    Ok(Rows { tx, cursor, fetch: 50, over: false })
}

/// Rows that are being read.
pub(super) struct Rows<'a> {
    tx: &'a TenantTx,
    cursor: String,
    /// How many are fetched next.
    fetch: usize,
    over: bool,
}

impl Rows<'_> {
    /// The next rows, some at a time; `None` when there are no more.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<String>>> {
        if self.over {
            return Ok(None);
        }
        let rows = self.tx.query_once(&format!("fetch {} from {}", self.fetch, self.cursor), &[]).await?;
        self.over = rows.len() < self.fetch;
        if self.over {
            self.tx.command(&format!("close {}", self.cursor)).await?;
        }
        if rows.is_empty() {
            return Ok(None);
        }
        let texts = rows.iter().map(|row| Ok(row.try_get(0)?)).collect::<Result<Vec<String>>>()?;
        let bytes: usize = texts.iter().map(String::len).sum();
        self.fetch = (ABOUT_BYTES * texts.len() / bytes.max(1)).clamp(1, MOST_ROWS);
        Ok(Some(texts))
    }
}

/// Adds rows that were read from a table of the same name and columns.
pub(super) async fn insert(tx: &TenantTx, table: &Table, rows: &[String]) -> Result<u64> {
    tx.execute(&insertion(table), &[&joined(rows)]).await
}

/// The same where some may be there already: those become as they were read.
pub(super) async fn upsert(tx: &TenantTx, table: &Table, rows: &[String]) -> Result<u64> {
    let key = list(table.key.iter().map(|column| quoted(column)));
    let others = table.columns.iter().filter(|column| !table.key.contains(&column.name));
    let changes = list(others.map(|column| format!("{0} = excluded.{0}", quoted(&column.name))));
    let then = if changes.is_empty() { "nothing".into() } else { format!("update set {changes}") };
    let sql = format!("{} on conflict ({key}) do {then}", insertion(table));
    tx.execute(&sql, &[&joined(rows)]).await
}

fn insertion(table: &Table) -> String {
    let columns = list(table.columns.iter().map(|column| quoted(&column.name)));
    let values =
        list(table.columns.iter().map(|column| format!("r.{}::{}", quoted(&column.name), column.kind)));
    format!("insert into {} ({columns}) select {values} from {}", quoted(&table.name), table.given())
}

/// Removes the rows that have the keys of these; they were read from the table or from its
/// [`keys`](Table::keys).
pub(super) async fn delete(tx: &TenantTx, table: &Table, rows: &[String]) -> Result<u64> {
    let keys = table.keys();
    let same =
        keys.columns.iter().map(|Column { name, kind }| format!("t.{0} = r.{0}::{kind}", quoted(name)));
    let same = same.collect::<Vec<_>>().join(" and ");
    let sql = format!("delete from {} as t using {} where {same}", quoted(&table.name), keys.given());
    tx.execute(&sql, &[&joined(rows)]).await
}

/// Drops the foreign keys of the schema, so that rows may come in any order, and answers the statements
/// that put them back.
pub(super) async fn without_foreign_keys(tx: &TenantTx) -> Result<Vec<String>> {
    let rows = tx
        .query_once(
            "select c.relname::text as table_name, k.conname::text as name, \
             pg_catalog.pg_get_constraintdef(k.oid) as definition from pg_catalog.pg_constraint k \
             join pg_catalog.pg_class c on c.oid = k.conrelid join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
             where n.nspname = $1 and k.contype = 'f' order by c.relname, k.conname",
            &[&tx.schema().to_string()],
        )
        .await?;
    let mut back = Vec::new();
    for row in &rows {
        let (table, name): (String, String) = (row.try_get("table_name")?, row.try_get("name")?);
        let definition: String = row.try_get("definition")?;
        let (table, name) = (quoted(&table), quoted(&name));
        tx.command(&format!("alter table {table} drop constraint {name}")).await?;
        back.push(format!("alter table {table} add constraint {name} {definition}"));
    }
    Ok(back)
}

/// Empties tables: migrations put rows into some.
pub(super) async fn clear<'a>(tx: &TenantTx, tables: impl IntoIterator<Item = &'a Table>) -> Result<()> {
    for table in tables {
        tx.command(&format!("delete from {}", quoted(&table.name))).await?;
    }
    Ok(())
}

/// How many rows a table has, and a digest of them that does not depend on their order.
pub(super) async fn fingerprint(tx: &TenantTx, table: &Table) -> Result<(i64, String)> {
    let half =
        |from: usize| format!("coalesce(sum(('x' || substr(h, {from}, 16))::bit(64)::bigint::numeric), 0)");
    let sql = format!(
        "select count(*) as rows, {} || ' ' || {} as digest \
         from (select md5(row_to_json(r)::text) as h from ({}) as r) as hashes",
        half(1),
        half(17),
        table.told(None)
    );
    let rows = tx.query_once(&sql, &[]).await?;
    let row = rows.first().ok_or_else(|| Error::internal("no fingerprint"))?;
    Ok((row.try_get("rows")?, row.try_get("digest")?))
}

fn joined(rows: &[String]) -> String {
    format!("[{}]", rows.join(","))
}

fn list(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join(", ")
}

/// A name as an identifier.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
