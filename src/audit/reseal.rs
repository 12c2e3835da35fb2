//! Sealing anew: a log that came with a copy becomes the organization's own.

use uuid::Uuid;

use super::{
    api::{ENTRY_COLUMNS, entry_from_row},
    seal::{entry_seal, head_seal},
};
use crate::{
    app::App,
    db::{Row, TenantTx},
    error::{Error, Result},
};

/// Entries sealed at once.
const BATCH: i64 = 500;

/// Gives every entry a place and a seal of this organization, in the order that they had. To be called in the
/// transaction that makes the log the organization's; what the chain was before is forgotten.
pub async fn reseal(app: &App, tx: &TenantTx) -> Result<()> {
    let organization = tx.organization();
    if tx.query_opt("select 1 from audit_log where sequence < 1 limit 1", &[]).await?.is_some() {
        return Err(Error::conflict("The audit log was changed: an entry has a place before the first."));
    }
    // Out of the way of the new places.
    tx.execute("update audit_log set sequence = -sequence, seal = null where sequence is not null", &[])
        .await?;
    let mut chain = Chain { app, tx, sequence: 0, last: Vec::new() };
    let sealed = format!(
        "select {ENTRY_COLUMNS} from audit_log where sequence < $1 order by sequence desc limit {BATCH}"
    );
    let mut before: i64 = 0;
    while let Some(last) = chain.extend(&tx.query(&sealed, &[&before]).await?).await? {
        before = last;
    }
    let waiting =
        format!("select {ENTRY_COLUMNS} from audit_log where sequence is null order by id limit {BATCH}");
    while chain.extend(&tx.query(&waiting, &[]).await?).await?.is_some() {}
    let head = head_seal(&app.sealer, organization, chain.sequence, &chain.last);
    tx.execute("delete from platform.audit_unsealed where organization_id = $1", &[&organization]).await?;
    tx.execute(
        "insert into platform.audit_heads (organization_id, sequence, seal) values ($1, $2, $3) \
         on conflict (organization_id) do update set sequence = excluded.sequence, seal = excluded.seal",
        &[&organization, &chain.sequence, &head],
    )
    .await?;
    Ok(())
}

/// The chain as far as it goes.
struct Chain<'a> {
    app: &'a App,
    tx: &'a TenantTx,
    sequence: i64,
    last: Vec<u8>,
}

impl Chain<'_> {
    /// Adds these entries, and answers the place that the last of them had; `None` where there are none.
    async fn extend(&mut self, rows: &[Row]) -> Result<Option<i64>> {
        let (mut ids, mut places, mut seals) = (Vec::<Uuid>::new(), Vec::new(), Vec::new());
        let mut had = None;
        for row in rows {
            let entry = entry_from_row(row)?;
            self.sequence += 1;
            let organization = self.tx.organization();
            self.last = entry_seal(&self.app.sealer, organization, self.sequence, &self.last, &entry);
            had = Some(entry.sequence.unwrap_or_default());
            ids.push(entry.id);
            places.push(self.sequence);
            seals.push(self.last.clone());
        }
        self.tx
            .execute(
                "update audit_log set sequence = sealed.sequence, seal = sealed.seal \
                 from unnest($1::uuid[], $2::bigint[], $3::bytea[]) as sealed (id, sequence, seal) \
                 where audit_log.id = sealed.id",
                &[&ids, &places, &seals],
            )
            .await?;
        Ok(had)
    }
}
