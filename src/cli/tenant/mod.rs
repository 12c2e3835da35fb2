//! `rowhouse tenant …`.

mod relocate;
mod whole;

use anyhow::Context;
use uuid::Uuid;

use super::{app, plain};
use crate::{
    app::App,
    audit::{self, Actor, ActorKind, Changes},
    auth::Origin,
    organizations::{self, NewOrganization},
    tenancy::{Tenant, fleet},
    types::{Email, Name, Slug},
};

#[derive(clap::Subcommand)]
pub enum Command {
    /// List organizations with their schemas.
    List,
    /// Make an organization for an account that exists.
    Create {
        /// Its name.
        #[arg(long)]
        name: Name,
        /// Its subdomain; made from the name where absent.
        #[arg(long)]
        slug: Option<Slug>,
        /// Address of the account that becomes its owner.
        #[arg(long)]
        owner: Email,
    },
    /// Check that no entry of an organization's audit log was changed or removed.
    AuditVerify {
        /// Slug or id; all organizations where absent.
        organization: Option<String>,
    },
    /// Show one organization: schema, modules, members, size.
    Show {
        /// Slug or id.
        organization: String,
    },
    /// Write one organization into an archive: everything that is its own, as it is at one moment.
    ///
    /// The organization goes on meanwhile. Passwords, API keys, open invitations and the subscription stay
    /// out. The archive is sealed with ROWHOUSE_SECRET_KEY, so that a change of it is seen; it is not
    /// encrypted. Repeat the command if it was interrupted: a file is there as a whole or not at all.
    Export(whole::ExportArgs),
    /// Make an organization of an archive.
    ///
    /// It keeps its id where that is free. Members who have an account here keep it; others get one, for
    /// which they set a password by "forgot password". Webhooks come switched off. An archive of an older
    /// version is brought up to this one. Nothing is there before all of it is.
    Import(whole::ImportArgs),
    /// Put one organization back to what it was.
    ///
    /// What it was is built beside what it is and takes its place in a moment. The audit log and the log of
    /// events go on, with what is done here in them. What it is now is kept for some days: `--to previous`
    /// changes the two again.
    Restore(whole::RestoreArgs),
    /// Make a copy of one organization to play with.
    ///
    /// It has the same members and data, and begins with empty logs. Nothing of it goes out: no mail, no SMS,
    /// no webhooks, no payments.
    Clone(whole::CloneArgs),
    /// Move one organization to another database server while it is used.
    ///
    /// Its schema is built there and filled while everybody works; at the end requests wait for a moment. Whatever
    /// goes wrong, nothing is changed; if it is interrupted, repeat it. The old schema is kept for some days.
    Move(relocate::Move),
    /// Remove an organization for good, and print a certificate of what was removed.
    ///
    /// It is closed and its payments are ended first. Then its schema, its rows, its backups and what is
    /// remembered of it go. Accounts of people stay, and so does what operators did. If it is interrupted,
    /// repeat it: it goes on, and prints the certificate also if all was done.
    Erase(whole::EraseArgs),
    /// Let nobody into an organization; nothing of it is lost.
    Suspend(whole::SuspendArgs),
    /// Let the members of a suspended organization in again.
    Resume(whole::ResumeArgs),
}

pub async fn run(command: Command) -> anyhow::Result<()> {
    let app = app().await?;
    match command {
        Command::List => list(&app).await,
        Command::Create { name, slug, owner } => create(&app, name, slug, owner).await,
        Command::AuditVerify { organization } => audit_verify(&app, organization).await,
        Command::Show { organization } => show(&app, &organization).await,
        Command::Export(args) => whole::export(&app, args).await,
        Command::Import(args) => whole::import(&app, args).await,
        Command::Restore(args) => whole::restore(&app, args).await,
        Command::Clone(args) => whole::clone(&app, args).await,
        Command::Move(args) => relocate::relocate(&app, args).await,
        Command::Erase(args) => whole::erase(&app, args).await,
        Command::Suspend(args) => whole::suspend(&app, args).await,
        Command::Resume(args) => whole::resume(&app, args).await,
    }
    .map_err(|error| error.context("tenant command failed"))
}

async fn find(app: &App, name: &str) -> anyhow::Result<Tenant> {
    fleet::tenant(&app.directory, name)
        .await
        .map_err(plain)?
        .with_context(|| format!("there is no organization {name:?}; `rowhouse tenant list` shows all"))
}

async fn list(app: &App) -> anyhow::Result<()> {
    let tx = app.db.begin().await.map_err(plain)?;
    let rows = tx
        .query(
            "select o.slug, o.name, o.plan, case when o.deleted_at is null then o.status else 'deleted' end as state, \
             o.schema_id, (select count(*) from platform.organization_members m where m.organization_id = o.id) as members \
             from platform.organizations o order by o.slug",
            &[],
        )
        .await
        .map_err(plain)?;
    println!("{:<24} {:<10} {:<10} {:>7}  {:<39} NAME", "SLUG", "PLAN", "STATE", "MEMBERS", "SCHEMA");
    for row in &rows {
        println!(
            "{:<24} {:<10} {:<10} {:>7}  tenant_{} {}",
            row.try_get::<_, String>("slug")?,
            row.try_get::<_, String>("plan")?,
            row.try_get::<_, String>("state")?,
            row.try_get::<_, i64>("members")?,
            row.try_get::<_, Uuid>("schema_id")?.simple(),
            row.try_get::<_, String>("name")?,
        );
    }
    let spares = tx
        .query_one("select count(*) from platform.tenant_schemas where state = 'spare'", &[])
        .await
        .map_err(plain)?;
    println!("{} organizations, {} spare schemas", rows.len(), spares.try_get::<_, i64>(0)?);
    Ok(())
}

async fn create(app: &App, name: Name, slug: Option<Slug>, owner: Email) -> anyhow::Result<()> {
    let (tx, _) = fleet::begin_new_tenant(&app.db, &app.directory).await.map_err(plain)?;
    let schema = tx.schema();
    let user = tx
        .query_opt("select id from platform.users where email = $1 and is_active", &[&owner])
        .await
        .map_err(plain)?
        .with_context(|| format!("there is no active account {owner}; it must register first"))?
        .try_get("id")?;
    let new = NewOrganization { slug, ..NewOrganization::named(name) };
    let operator = Actor { kind: ActorKind::System, ..Actor::user(user, Origin::default()) };
    let made = organizations::insert(&tx, app, &operator, new).await.map_err(plain)?;
    let (action, id, changes) = ("organization.created", Some(made.id), Changes::created(&made));
    audit::record_platform(&tx, app, Actor::system(), action, id, id, &changes).await.map_err(plain)?;
    tx.commit().await.map_err(plain)?;
    println!("made {} ({}) in schema {schema}, owned by {owner}", made.slug, made.id);
    Ok(())
}

async fn audit_verify(app: &App, name: Option<String>) -> anyhow::Result<()> {
    let names = match name {
        Some(name) => vec![name],
        None => {
            let tx = app.db.begin().await.map_err(plain)?;
            let rows = tx.query("select slug from platform.organizations order by slug", &[]).await;
            rows.map_err(plain)?.iter().map(|row| Ok(row.try_get("slug")?)).collect::<anyhow::Result<_>>()?
        }
    };
    // What was written in the last moments waits for its seal.
    audit::seal_pending(app).await.map_err(plain)?;
    let mut broken = 0;
    for name in &names {
        let tenant = find(app, name).await?;
        let found = audit::verify(app, &tenant).await.map_err(plain)?;
        match found.problems.is_empty() {
            true => {
                println!("  ok    {name}: {} entries, the last seal begins with {}", found.sealed, found.head)
            }
            false => broken += 1,
        }
        for problem in found.problems {
            println!("  FAIL  {name}: {problem}");
        }
    }
    anyhow::ensure!(broken == 0, "{broken} of {} audit logs are not what was written", names.len());
    Ok(())
}

async fn show(app: &App, name: &str) -> anyhow::Result<()> {
    let tenant = find(app, name).await?;
    let tx = app.db.begin().await.map_err(plain)?;
    let row = tx
        .query_one(
            "select o.name, o.slug, o.plan, o.schema_id, o.created_at::text as created_at, d.name as database \
             from platform.organizations o join platform.tenant_schemas h on h.id = o.schema_id \
             join platform.databases d on d.id = h.database_id where o.id = $1",
            &[&tenant.id()],
        )
        .await
        .map_err(plain)?;
    // Its tables are where it is.
    let inside = tenant.begin().await.map_err(plain)?;
    let measured = inside
        .query_one(
            "select count(*) as tables, pg_size_pretty(coalesce(sum(pg_total_relation_size(c.oid)), 0)) as size \
             from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
             where n.nspname = current_schema() and c.relkind = 'r'",
            &[],
        )
        .await
        .map_err(plain)?;
    drop(inside);
    let schema_id: Uuid = row.try_get("schema_id")?;
    let state = match (tenant.is_deleted(), tenant.is_suspended()) {
        (true, _) => "deleted",
        (_, true) => "suspended",
        _ => "active",
    };
    println!("{} ({})", row.try_get::<_, String>("name")?, row.try_get::<_, String>("slug")?);
    println!("  id       {}", tenant.id());
    println!("  state    {state}, plan {}", row.try_get::<_, String>("plan")?);
    println!("  made     {}", row.try_get::<_, String>("created_at")?);
    let (tables, size): (i64, String) = (measured.try_get("tables")?, measured.try_get("size")?);
    let database: String = row.try_get("database")?;
    println!("  schema   tenant_{}: {tables} tables, {size}, on server {database}", schema_id.simple());
    for module in tx
        .query(
            "select module, version, last_error from platform.tenant_schema_modules where schema_id = $1 order by module",
            &[&schema_id],
        )
        .await
        .map_err(plain)?
    {
        let error: Option<String> = module.try_get("last_error")?;
        println!(
            "  module   {} at version {}{}",
            module.try_get::<_, String>("module")?,
            module.try_get::<_, i64>("version")?,
            error.map(|error| format!(", last attempt failed: {error}")).unwrap_or_default()
        );
    }
    for member in tx
        .query(
            "select u.email, m.role, m.is_active from platform.organization_members m \
             join platform.users u on u.id = m.user_id where m.organization_id = $1 order by m.joined_at, u.email",
            &[&tenant.id()],
        )
        .await
        .map_err(plain)?
    {
        let inactive = if member.try_get("is_active")? { "" } else { " (deactivated)" };
        let (email, role): (String, String) = (member.try_get("email")?, member.try_get("role")?);
        println!("  member   {email} as {role}{inactive}");
    }
    Ok(())
}
