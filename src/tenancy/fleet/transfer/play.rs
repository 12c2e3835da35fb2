//! Cloning: a copy of an organization to play with, from which nothing goes out.

use std::sync::Arc;

use serde_json::json;
use uuid::Uuid;

use super::super::{
    archive::{self, Ids},
    copy,
    operation::{Operation, Progress, Step},
    stock::{self, State},
};
use super::{break_off, bring_up_to_date, forget_files, inhabit, is_there, living, sets_of};
use crate::{
    app::App,
    audit::{Actor, Changes},
    billing,
    db::TenantTx,
    error::{Error, Result},
    exchange, files,
    organizations::{self, NewOrganization},
    tenancy::{RESERVED, Tenant},
    types::Slug,
    webhooks,
};

/// What a copy to play with begins without.
const NOT_CLONED: [&str; 7] = [
    "audit_log",
    "events",
    "webhook_deliveries",
    "webhook_attempts",
    "notifications",
    "push_subscriptions",
    "limit_warnings",
];

/// A copy of an organization to play with: nothing of it goes out.
pub async fn clone(app: &Arc<App>, tenant: &Tenant, slug: Slug, progress: Progress<'_>) -> Result<Uuid> {
    if RESERVED.contains(&slug.as_ref()) {
        return Err(Error::conflict(format!("The slug {slug} is reserved. Choose another.")));
    }
    if tenant.is_deleted() {
        return Err(Error::conflict("The organization is deleted; there is nothing to copy."));
    }
    is_there(app, Uuid::nil(), &slug).await?;
    let about = json!({"slug": slug});
    let operation = Operation::begin(app, "clone", Some(tenant.id()), about).await?;
    let id = Uuid::now_v7();
    let outcome = clone_as(app, &operation, (tenant.id(), id), slug, progress).await;
    if outcome.is_err() {
        forget_files(app, id).await;
    }
    operation.end(outcome).await
}

async fn clone_as(
    app: &Arc<App>,
    operation: &Operation,
    (source, id): (Uuid, Uuid),
    slug: Slug,
    progress: Progress<'_>,
) -> Result<Uuid> {
    let old = living(app, source).await?;
    let sets = sets_of(app, &old).await?;
    let new = stock::build(&app.directory, &old.server, &sets, State::Building(operation.id)).await?;
    let mut ids = Ids::default();
    ids.add(source, id);
    let from = app.directory.door.begin_snapshot(&old, source).await?;
    let to = app.directory.door.begin(&new, id).await?;
    copy::prepare(&from).await?;
    copy::prepare(&to).await?;
    let foreign_keys = copy::without_foreign_keys(&to).await?;
    let tables = copy::tables(&to).await?;
    if copy::shapes(&tables) != copy::shapes(&copy::tables(&from).await?) {
        return Err(Error::conflict(
            "The schema is not as it was built for the copy, maybe as it was migrated meanwhile. Try again; if that \
             does not help, see `rowhouse migrate verify`.",
        ));
    }
    copy::clear(&to, &tables).await?;
    for table in tables.iter().filter(|table| !NOT_CLONED.contains(&table.name.as_str())) {
        let (mut rows, mut done) = (copy::read(&from, table, None).await?, 0);
        while let Some(batch) = rows.next().await? {
            let batch: Vec<String> = batch.into_iter().map(|row| ids.replace(row)).collect();
            done += copy::insert(&to, table, &batch).await?;
            progress(Step { what: &table.name, done, of: None });
        }
    }
    let recorded = archive::recorded_files(&from).await?;
    drop(from);
    for statement in &foreign_keys {
        to.command(statement).await?;
    }
    to.commit().await?;
    bring_up_to_date(app, &new).await?;
    for missing in archive::copy_files(app, &recorded, (source, id), progress).await? {
        tracing::warn!(organization = %source, missing, "a copy is without a file");
    }
    let tx = app.directory.door.begin(&new, id).await?;
    webhooks::quiet(app, &tx, "this is a copy").await?;
    break_off(app, &tx).await?;
    make_clone(app, &tx, source, slug).await?;
    files::make_pending_thumbnails(&tx, app).await?;
    exchange::end_what_was_open(&tx, app).await?;
    inhabit(&tx, &new).await?;
    operation.done(&tx, &Changes::created(&json!({"clone": id, "of": source}))).await?;
    tx.commit().await?;
    app.directory.forget(id);
    Ok(id)
}

async fn make_clone(app: &App, tx: &TenantTx, source: Uuid, slug: Slug) -> Result<()> {
    let id = tx.organization();
    let row = tx
        .query_one(
            "select o.name, o.description, o.industry, o.size_range, o.country_code, o.timezone, o.plan, \
             (select m.user_id from platform.organization_members m join platform.users u on u.id = m.user_id \
              where m.organization_id = o.id and m.role = 'owner' and m.is_active and u.is_active \
              order by m.joined_at, m.user_id limit 1) as owner from platform.organizations o where o.id = $1",
            &[&source],
        )
        .await?;
    let owner: Option<Uuid> = row.try_get("owner")?;
    let owner = owner.ok_or_else(|| Error::conflict("The organization has no active owner."))?;
    let new = NewOrganization {
        name: row.try_get("name")?,
        slug: Some(slug),
        description: row.try_get("description")?,
        industry: row.try_get("industry")?,
        size_range: row.try_get("size_range")?,
        country_code: row.try_get("country_code")?,
        timezone: row.try_get("timezone")?,
    };
    organizations::insert(tx, app, &Actor { id: Some(owner), ..Actor::system() }, new).await?;
    tx.execute(
        "update platform.organizations c set sandbox = true, require_mfa = o.require_mfa, status = o.status, \
         suspended_because = o.suspended_because, logo_file_id = o.logo_file_id, \
         logo_url = case when o.logo_file_id is null then o.logo_url else $3 end \
         from platform.organizations o where c.id = $1 and o.id = $2",
        &[&id, &source, &organizations::logo::address(app, id)?],
    )
    .await?;
    tx.execute(
        "insert into platform.organization_members (organization_id, user_id, role, grants, denials, is_active, \
         joined_at, updated_at) select $1, user_id, role, grants, denials, is_active, joined_at, updated_at \
         from platform.organization_members where organization_id = $2 on conflict (organization_id, user_id) do nothing",
        &[&id, &source],
    )
    .await?;
    // The same limits as the original's, and nothing to pay.
    billing::override_plan(tx, app, &Actor::system(), Some(row.try_get("plan")?)).await
}
