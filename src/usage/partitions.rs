//! The months of `platform.usage_records`, each a table of its own: a month that has had its time is
//! dropped, not deleted row by row.

use chrono::{Datelike, Months, NaiveDate};

use crate::{app::App, db::Tx, error::Result};

/// Instances that make a partition at the same time wait for each other here.
const LOCK: i64 = 726_570;

/// Makes the partition of a month where there is none yet.
pub(super) async fn ensure(app: &App, month: NaiveDate) -> Result<()> {
    let (name, until) = (name(month), month + Months::new(1));
    let tx = app.db.begin().await?;
    if exists(&tx, &name).await? {
        return Ok(());
    }
    tx.command("set local lock_timeout to '5s'").await?;
    tx.query("select pg_advisory_xact_lock($1)", &[&LOCK]).await?;
    if exists(&tx, &name).await? {
        return Ok(());
    }
    // Made beside the others and attached, which locks nobody out who reads or writes them.
    tx.command(&format!(
        // Rows are updated again and again: with room on their page, no index has to know.
        "create table platform.{name} (like platform.usage_records including defaults including constraints) \
         with (fillfactor = 50)"
    ))
    .await?;
    tx.command(&format!(
        "alter table platform.usage_records attach partition platform.{name} \
         for values from ('{month} 00:00:00+00') to ('{until} 00:00:00+00')"
    ))
    .await?;
    tx.commit().await
}

/// Drops the partitions of the months before this one.
pub(super) async fn drop_before(app: &App, month: NaiveDate) -> Result<()> {
    let tx = app.db.begin().await?;
    let rows = tx
        .query(
            "select c.relname::text as name from pg_inherits i join pg_class c on c.oid = i.inhrelid \
             where i.inhparent = 'platform.usage_records'::regclass and c.relname::text collate \"C\" < $1 \
             order by 1",
            &[&name(month)],
        )
        .await?;
    drop(tx);
    for row in &rows {
        let name: &str = row.try_get("name")?;
        // While it waits for its lock everybody waits behind it: not for long, and tomorrow is another day.
        if let Err(error) = drop_one(app, name).await {
            tracing::warn!(%error, name, "a month of usage that has had its time could not be dropped");
        }
    }
    Ok(())
}

async fn drop_one(app: &App, name: &str) -> Result<()> {
    let tx = app.db.begin().await?;
    tx.command("set local lock_timeout to '200ms'").await?;
    tx.command(&format!("drop table platform.{name}")).await?;
    tx.commit().await
}

fn name(month: NaiveDate) -> String {
    format!("usage_records_{:04}_{:02}", month.year(), month.month())
}

async fn exists(tx: &Tx, name: &str) -> Result<bool> {
    let sql = "select exists (select 1 from pg_inherits i join pg_class c on c.oid = i.inhrelid \
         where i.inhparent = 'platform.usage_records'::regclass and c.relname = $1::text)";
    Ok(tx.query_one(sql, &[&name]).await?.try_get(0)?)
}
