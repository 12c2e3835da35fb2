//! Importing: a new organization of an archive.

use std::{collections::HashSet, path::PathBuf, sync::Arc};

use serde_json::json;
use uuid::Uuid;

use super::super::{
    archive::{self, Checked, Ids, MemberPart},
    copy,
    operation::{Operation, Progress, Step},
    stock::{self, State},
};
use super::{COLLECTED, break_off, bring_up_to_date, forget_files, inhabit, is_there, server};
use crate::{
    app::App,
    audit::{self, Actor, Changes},
    auth::{
        Role,
        passwords::Password,
        sealing::{hex, random},
    },
    db::{TenantTx, Tx},
    error::{Error, OnConstraint, Result},
    exchange,
    files::make_pending_thumbnails,
    organizations::{self, NewOrganization},
    tenancy::RESERVED,
    types::{Email, Name, Slug},
    webhooks,
};

/// How an archive becomes an organization.
#[derive(Debug)]
pub struct Import {
    pub file: PathBuf,
    /// The one that it had where it is absent.
    pub slug: Option<Slug>,
    pub name: Option<Name>,
    /// Somebody who becomes an owner, whoever was one.
    pub owner: Option<Email>,
    /// Name of the server; the emptiest where it is absent.
    pub database: Option<String>,
    /// Whether the archive may be of another installation.
    pub unsealed: bool,
}

/// What became of it.
#[derive(Debug)]
pub struct Imported {
    pub organization: Uuid,
    pub slug: Slug,
    pub rows: u64,
    /// What is not as it was, for people.
    pub notes: Vec<String>,
}

/// Makes an organization of an archive.
pub async fn import(app: &Arc<App>, import: Import, progress: Progress<'_>) -> Result<Imported> {
    progress(Step { what: "checking the archive", done: 0, of: None });
    let archive = archive::check(app, &import.file, import.unsealed).await?;
    let slug = import.slug.clone().unwrap_or_else(|| archive.organization.slug.clone());
    if RESERVED.contains(&slug.as_ref()) {
        return Err(Error::conflict(format!("The slug {slug} is reserved. Give another one with --slug.")));
    }
    // The same id as before, so that what refers to the organization from outside still does.
    let there = is_there(app, archive.manifest.organization, &slug).await?;
    let id = if there { Uuid::now_v7() } else { archive.manifest.organization };
    let about = json!({"file": import.file, "slug": slug, "from": archive.manifest.organization});
    let operation = Operation::begin(app, "import", Some(id), about).await?;
    let outcome = import_as(app, &operation, id, slug, import, archive, progress).await;
    if outcome.is_err() {
        forget_files(app, id).await;
    }
    app.directory.forget(id);
    operation.end(outcome).await
}

async fn import_as(
    app: &Arc<App>,
    operation: &Operation,
    id: Uuid,
    slug: Slug,
    import: Import,
    archive: Checked,
    progress: Progress<'_>,
) -> Result<Imported> {
    let server = server(app, import.database.as_deref()).await?;
    let people = People::find(app, &archive, import.owner.as_ref()).await?;
    let mut ids = Ids::default();
    ids.add(archive.manifest.organization, id);
    people.all.iter().for_each(|person| ids.add(person.part.user, person.id));
    let place =
        stock::build(&app.directory, &server, &archive.sets()?, State::Building(operation.id)).await?;
    let tx = app.directory.door.begin(&place, id).await?;
    archive::load(&tx, &archive, &ids, progress).await?;
    tx.commit().await?;
    bring_up_to_date(app, &place).await?;
    let tx = app.directory.door.begin(&place, id).await?;
    let recorded = archive::recorded_files(&tx).await?;
    drop(tx);
    let files = archive::put_files(app, &archive, id, &recorded, progress).await?;

    let tx = app.directory.door.begin(&place, id).await?;
    copy::prepare(&tx).await?;
    tx.command_everywhere(copy::UNHURRIED).await?;
    tx.command("delete from push_subscriptions").await?;
    tx.command(COLLECTED).await?;
    break_off(app, &tx).await?;
    webhooks::quiet(app, &tx, "the organization was imported").await?;
    make_pending_thumbnails(&tx, app).await?;
    exchange::end_what_was_open(&tx, app).await?;
    place_events(&tx).await?;
    audit::reseal(app, &tx).await?;
    people.make_accounts(app, &tx).await?;
    let owner = people.owner;
    let part = &archive.organization;
    let new = NewOrganization {
        name: import.name.unwrap_or_else(|| part.name.clone()),
        slug: Some(slug.clone()),
        description: part.description.clone(),
        industry: part.industry.clone(),
        size_range: part.size_range.clone(),
        country_code: part.country_code.clone(),
        timezone: Some(part.timezone.clone()),
    };
    let maker = Actor { id: Some(owner), ..Actor::system() };
    organizations::insert(&tx, app, &maker, new).await?;
    let logo_url = match part.logo_file_id {
        Some(_) => Some(organizations::logo::address(app, id)?),
        None => part.logo_url.clone(),
    };
    tx.execute(
        "update platform.organizations set logo_url = $2, require_mfa = $3, created_at = $4, status = $5, \
         logo_file_id = $6 where id = $1",
        &[&id, &logo_url, &part.require_mfa, &part.created_at, &part.status, &part.logo_file_id],
    )
    .await?;
    people.join(app, &tx).await?;
    let told = json!({
        "archive_of": archive.manifest.organization,
        "taken_at": archive.manifest.taken_at,
        "sealed_here": archive.is_own,
        "audit_problems": archive.manifest.audit_problems,
        "slug": slug,
        "rows": archive.rows(),
        "files": files.files,
        "missing": files.missing,
    });
    let changes = Changes::created(&told);
    audit::record(&tx, app, &Actor::system(), "organization.imported", id, &changes).await?;
    inhabit(&tx, &place).await?;
    operation.done(&tx, &changes).await?;
    tx.commit().await?;
    let mut notes = people.notes();
    notes.push("webhooks are switched off; their owners switch on those that are still wanted".into());
    notes.push("API keys, open invitations and the subscription do not come with an archive".into());
    if !part.domains.is_empty() {
        notes.push(format!("domains are to be added and proved again: {}", part.domains.join(", ")));
    }
    notes.extend(files.missing.iter().map(|missing| format!("without {missing}")));
    notes.extend(archive.manifest.audit_problems.iter().map(|problem| format!("audit log: {problem}")));
    Ok(Imported { organization: id, slug, rows: archive.rows(), notes })
}

/// The members of an archive, and who they are here.
struct People {
    all: Vec<Person>,
    /// An active owner who is let in.
    owner: Uuid,
    /// Who was named to be one.
    brought: Option<Uuid>,
}

struct Person {
    part: MemberPart,
    id: Uuid,
    standing: Standing,
    /// Whether the account may be used.
    is_active: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// There is an account, and it is this person's.
    Known,
    /// There is an account with the address, which nobody has proved: it may be anybody's.
    Unproved,
    /// There is none.
    New,
}

impl People {
    async fn find(app: &App, archive: &Checked, owner: Option<&Email>) -> Result<Self> {
        let tx = app.db.begin().await?;
        let mut all = Vec::new();
        for part in &archive.members {
            let rows = tx
                .query(
                    "select id, is_active, email = $2 as same_email, email_verified_at is not null as proved \
                     from platform.users where id = $1 or email = $2 order by $3 and id = $1 desc, email = $2 desc",
                    &[&part.user, &part.email, &archive.is_own],
                )
                .await?;
            let (mut id, mut standing, mut is_active, mut id_is_free) =
                (part.user, Standing::New, true, true);
            for row in &rows {
                let account: Uuid = row.try_get("id")?;
                let same = account == part.user;
                id_is_free &= !same;
                if standing != Standing::New {
                    continue;
                }
                // Whoever had the same id where the archive was written is the same person, if that was here.
                let known = same && (archive.is_own || row.try_get("same_email")?);
                if known || row.try_get("same_email")? {
                    let proved = known || row.try_get("proved")?;
                    (id, is_active) = (account, row.try_get("is_active")?);
                    standing = if proved { Standing::Known } else { Standing::Unproved };
                }
            }
            if standing == Standing::New && !id_is_free {
                id = Uuid::now_v7();
            }
            all.push(Person { part: part.clone(), id, standing, is_active });
        }
        let brought = match owner {
            None => None,
            Some(email) => {
                let sql = "select id from platform.users where email = $1 and is_active";
                let row = tx.query_opt(sql, &[email]).await?;
                let row =
                    row.ok_or_else(|| Error::conflict(format!("There is no active account {email}.")))?;
                Some(row.try_get("id")?)
            }
        };
        let owns =
            |person: &&Person| person.part.role == Role::Owner && person.is_active && person.is_let_in();
        let owner = brought.or_else(|| all.iter().find(owns).map(|person| person.id));
        let owner = owner.ok_or_else(|| {
            Error::conflict("No owner in the archive has a proved account here. Name one with --owner.")
        })?;
        Ok(Self { all, owner, brought })
    }

    /// Accounts that nobody can log in to before they have reset their password by mail.
    async fn make_accounts(&self, app: &App, tx: &Tx) -> Result<()> {
        let new: Vec<&Person> = self.all.iter().filter(|person| person.standing == Standing::New).collect();
        if new.is_empty() {
            return Ok(());
        }
        let nobody_knows: Password = hex(&random::<32>()?).parse().map_err(Error::internal)?;
        let hash = app.passwords.hash(&nobody_knows).await?;
        for Person { id, part, .. } in new {
            tx.execute(
                "insert into platform.users (id, email, username, password_hash, first_name, last_name, display_name, \
                 locale, timezone, created_at, updated_at) select $1::uuid, $2::text, u.name, $4::text, $5::text, \
                 $6::text, $7::text, $8::text, $9::text, $10::timestamptz, $10::timestamptz \
                 from (select case when exists (select 1 from platform.users where lower(username) = lower($3::text)) \
                 then null else $3::text end as name) as u",
                &[
                    id,
                    &part.email,
                    &part.username,
                    &hash,
                    &part.first_name,
                    &part.last_name,
                    &part.display_name,
                    &part.locale,
                    &part.timezone,
                    &app.clock.now(),
                ],
            )
            .await
            .on_constraint("users_email_key", || {
                Error::conflict(format!("Somebody has just registered as {}. Try again.", part.email))
            })?;
        }
        Ok(())
    }

    /// Makes them members, as they were.
    async fn join(&self, app: &App, tx: &TenantTx) -> Result<()> {
        let mut joined = HashSet::new();
        for person in &self.all {
            if Some(person.id) == self.brought || !joined.insert(person.id) {
                continue;
            }
            let part = &person.part;
            tx.execute(
                "insert into platform.organization_members (organization_id, user_id, role, grants, denials, is_active, \
                 joined_at, updated_at) values ($1, $2, $3, $4, $5, $6, $7, $8) \
                 on conflict (organization_id, user_id) do update set role = excluded.role, grants = excluded.grants, \
                 denials = excluded.denials, is_active = excluded.is_active, joined_at = excluded.joined_at",
                &[
                    &tx.organization(),
                    &person.id,
                    &part.role,
                    &part.grants,
                    &part.denials,
                    &person.is_let_in(),
                    &part.joined_at,
                    &app.clock.now(),
                ],
            )
            .await?;
        }
        Ok(())
    }

    fn notes(&self) -> Vec<String> {
        let of = |standing| {
            let those = self.all.iter().filter(move |person| person.standing == standing);
            those.map(|person| person.part.email.to_string()).collect::<Vec<_>>()
        };
        let (new, unproved) = (of(Standing::New), of(Standing::Unproved));
        let mut notes = Vec::new();
        if !new.is_empty() {
            let many = new.len();
            notes.push(format!(
                "{many} accounts were made; their owners set a password by \"forgot password\""
            ));
        }
        if !unproved.is_empty() {
            notes.push(format!(
                "deactivated, as nobody has proved these addresses here: {}; an owner can activate them",
                unproved.join(", ")
            ));
        }
        notes
    }
}

impl Person {
    /// An account that anybody may have made with this address is not let in.
    fn is_let_in(&self) -> bool {
        self.part.is_active && self.standing != Standing::Unproved
    }
}

/// Gives events that had not been told yet their positions. Whoever was to hear of them did where they
/// happened.
async fn place_events(tx: &TenantTx) -> Result<()> {
    let sql = "select coalesce(max(position), 0) as last, count(*) filter (where position is null) as more from events";
    let row = tx.query_one(sql, &[]).await?;
    let (last, more): (i64, i64) = (row.try_get("last")?, row.try_get("more")?);
    tx.execute(
        "with placed as (select id, row_number() over (order by id) as n from events where position is null) \
         update events set position = $1::bigint + placed.n from placed where events.id = placed.id",
        &[&last],
    )
    .await?;
    tx.execute(
        "insert into platform.event_heads (organization_id, position) values ($1, $2) \
         on conflict (organization_id) do update set position = greatest(event_heads.position, excluded.position)",
        &[&tx.organization(), &(last + more)],
    )
    .await?;
    Ok(())
}
