//! Projects by the line.
//!
//! There are few of them, and plans limit how many, so each is written by itself as a request would.

use std::{
    collections::{BTreeSet, HashMap},
    hash::{BuildHasher, RandomState},
};

use chrono::{DateTime, NaiveDate, Utc};
use futures_util::future::BoxFuture;
use poem_openapi::types::MaybeUndefined::{self, Null, Undefined, Value as Given};
use rust_decimal::Decimal;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Filters, People, address, addresses, by, called, everybody, kept, new_name};
use crate::{
    audit::Changes,
    auth::Permission,
    billing::{Resource, limits},
    db::TenantTx,
    error::{Code, Result},
    exchange::{Exporter, Field, Importer, Kind, Line, LineError, Maker, Outcome, Reading},
    types::{Amount, Currency, Money, Slug},
    work::{
        ExternalId,
        projects::{self, NewProject, Project, ProjectChange},
    },
};

pub const PROJECTS: Kind = Kind {
    name: "projects",
    fields: FIELDS,
    read: Permission::ProjectsRead,
    write: Permission::ProjectsWrite,
    importer: |maker| {
        let (seen, hashes) = (HashMap::new(), RandomState::new());
        Box::new(ProjectImporter { maker, seen, hashes, made: 0, room: None })
    },
    exporter: |filters| Ok(Box::new(ProjectExporter { filters: Filters::of(filters)?, after: Uuid::nil() })),
};

const FIELDS: &[Field] = &[
    Field::one("id"),
    Field::one("external_id"),
    Field::one("name"),
    Field::one("slug"),
    Field::one("description"),
    Field::one("status"),
    Field::one("priority"),
    Field::one("owner"),
    Field::many("members"),
    Field::one("start_date"),
    Field::one("end_date"),
    Field::one("budget_amount"),
    Field::one("budget_currency"),
    Field::told("progress"),
    Field::told("created_at"),
    Field::told("updated_at"),
];

// Their places.
const ID: usize = 0;
const EXTERNAL_ID: usize = 1;
const NAME: usize = 2;
const SLUG: usize = 3;
const DESCRIPTION: usize = 4;
const STATUS: usize = 5;
const PRIORITY: usize = 6;
const OWNER: usize = 7;
const MEMBERS: usize = 8;
const START_DATE: usize = 9;
const END_DATE: usize = 10;
const BUDGET_AMOUNT: usize = 11;
const BUDGET_CURRENCY: usize = 12;

/// What a line says.
struct Wanted<'a> {
    line: &'a Line,
    id: Option<&'a str>,
    external_id: Option<ExternalId>,
    owner: Option<&'a str>,
    members: Option<Vec<String>>,
    amount: MaybeUndefined<Amount>,
    currency: MaybeUndefined<Currency>,
    change: ProjectChange,
}

/// What a line comes to.
enum Step {
    Make(Box<NewProject>),
    Change(Box<Project>, Box<ProjectChange>),
}

struct ProjectImporter {
    maker: Maker,
    /// What the lines so far name, by a hash of it, and where. There may be a million of them.
    seen: HashMap<u64, u32>,
    hashes: RandomState,
    /// How many they make, of how many that the plan has room for.
    made: i64,
    room: Option<i64>,
}

impl ProjectImporter {
    async fn plan(
        &mut self,
        tx: &TenantTx,
        lines: &[Line],
        writes: bool,
        outcome: &mut Outcome,
    ) -> Result<Vec<(i64, Step)>> {
        let wanted: Vec<Wanted<'_>> =
            lines.iter().filter_map(|line| read(line, &mut outcome.errors)).collect();
        let found = known(tx, &wanted).await?;
        let mut names: BTreeSet<String> = BTreeSet::new();
        for one in &wanted {
            names.extend(one.owner.iter().map(|name| called(name)));
            names.extend(one.members.iter().flatten().map(|name| called(name)));
        }
        let people = People::of(tx, names).await?;
        if !writes && self.room.is_none() {
            let there = limits::ask(tx, &self.maker.app, Resource::Projects).await?;
            self.room = Some(there.limit.map_or(i64::MAX, |limit| (limit - there.used).max(0)));
        }
        let ids: BTreeSet<Uuid> = wanted.iter().filter_map(|one| named(one, &found)).collect();
        let ids: Vec<Uuid> = ids.into_iter().collect();
        if writes {
            // As whoever changes one: what archives it, or names it otherwise, waits for those who add to it.
            tx.query("select id from projects where id = any ($1) order by id for update", &[&ids]).await?;
        }
        let there = projects::several(tx, &ids).await?;
        let there: HashMap<Uuid, Project> = there.into_iter().map(|project| (project.id, project)).collect();
        let mut steps = Vec::new();
        for one in wanted {
            let number = one.line.number;
            // Of two lines about one project the second is refused in any case.
            let id = named(&one, &found);
            let project = id.and_then(|id| there.get(&id).cloned());
            let mut said = Reading::new(one.line, FIELDS, &mut outcome.errors);
            let step = match project {
                Some(project) => self.changed(&mut said, one, project, &found, &people),
                None => self.made(&mut said, one, &found, &people, writes),
            };
            match step {
                Some(Step::Change(project, change)) if is_same(&project, &change) => outcome.unchanged += 1,
                Some(step) => steps.push((number, step)),
                None => {}
            }
        }
        Ok(steps)
    }

    /// Whether an earlier line names one of these; they are kept in mind otherwise.
    fn is_named_again(&mut self, said: &mut Reading<'_, '_>, line: i64, names: &[(&str, String)]) -> bool {
        for (field, name) in names {
            if let Some(earlier) = self.seen.get(&self.hashes.hash_one(name)) {
                said.fail(field, "taken", format!("Line {earlier} has the same {field}."));
                return true;
            }
        }
        for (_, name) in names {
            self.seen.insert(self.hashes.hash_one(name), line as u32);
        }
        false
    }

    fn changed(
        &mut self,
        said: &mut Reading<'_, '_>,
        one: Wanted<'_>,
        project: Project,
        found: &Found,
        people: &People,
    ) -> Option<Step> {
        let mut names = vec![("id", format!("id {}", project.id))];
        names.extend(one.external_id.as_ref().map(|id| ("external_id", format!("external {id}"))));
        if let Given(slug) = &one.change.slug
            && slug.as_ref() != project.slug.as_ref()
        {
            names.push(("slug", format!("slug {slug}")));
            if found.slugs.get(slug.as_ref()).is_some_and(|id| *id != project.id) {
                said.fail("slug", "taken", format!("The slug {slug} is taken. Choose another."));
            }
        }
        if self.is_named_again(said, one.line.number, &names) {
            return None;
        }
        let mut change = one.change;
        if matches!(change.description, Null)
            && project.description.as_ref().is_some_and(|text| text.as_ref().is_empty())
        {
            // Nothing and an empty text look the same in a file.
            change.description = Undefined;
        }
        if let Some(external_id) = one.external_id {
            change.external_id = Given(external_id);
        }
        let before = [&project.member_ids[..], &[project.owner_id]].concat();
        if let Some(owner) = one.owner {
            match people.find(owner, &before) {
                Ok(id) => change.owner_id = Given(id),
                Err(told) => said.fail("owner", "unknown", told),
            }
        }
        if let Some(names) = one.members {
            change.member_ids = Given(everybody(said, "members", &names, &before, people));
        }
        change.budget = match (one.amount, one.currency, &project.budget) {
            (Undefined, Undefined, _) => Undefined,
            (Given(amount), Given(currency), _) => Given(Money { amount, currency }),
            (Given(amount), _, Some(known)) => Given(Money { amount, currency: known.currency.clone() }),
            (Undefined, Given(currency), Some(known)) => {
                Given(Money { amount: known.amount.clone(), currency })
            }
            (Null, _, _) | (Undefined, Null, _) => Null,
            (Given(_), _, None) => {
                said.fail("budget_currency", "required", "A budget needs a currency.");
                Undefined
            }
            (Undefined, Given(_), None) => Undefined,
        };
        let mut after = project.clone();
        if let Err(error) =
            projects::apply(&mut after, change.clone()).and_then(|()| projects::check_values(&mut after))
        {
            said.refuse(&error);
        }
        said.is_sound().then(|| Step::Change(Box::new(project), Box::new(change)))
    }

    fn made(
        &mut self,
        said: &mut Reading<'_, '_>,
        one: Wanted<'_>,
        found: &Found,
        people: &People,
        writes: bool,
    ) -> Option<Step> {
        let number = one.line.number;
        let external_id = new_name(said, one.external_id, one.id);
        let owner_id = one.owner.and_then(|owner| match people.find(owner, &[]) {
            Ok(id) => Some(id),
            Err(told) => {
                said.fail("owner", "unknown", told);
                None
            }
        });
        let member_ids = one.members.map(|names| everybody(said, "members", &names, &[], people));
        let budget = match (one.amount, one.currency) {
            (Given(amount), Given(currency)) => Some(Money { amount, currency }),
            (Given(_), _) => {
                said.fail("budget_currency", "required", "A budget needs a currency.");
                None
            }
            _ => None,
        };
        let change = one.change;
        let Given(name) = change.name else {
            said.fail("name", "required", "A new project needs a name.");
            return None;
        };
        let slug = value(change.slug);
        let mut names: Vec<(&str, String)> = Vec::new();
        names.extend(external_id.as_ref().map(|id| ("external_id", format!("external {id}"))));
        names.extend(slug.as_ref().map(|slug: &Slug| ("slug", format!("slug {slug}"))));
        if self.is_named_again(said, number, &names) {
            return None;
        }
        if let Some(slug) = slug.as_ref().filter(|slug| found.slugs.contains_key(slug.as_ref())) {
            said.fail("slug", "taken", format!("The slug {slug} is taken. Choose another."));
        }
        let new = NewProject {
            external_id,
            name,
            slug,
            description: value(change.description),
            status: value(change.status),
            priority: value(change.priority),
            owner_id,
            member_ids,
            start_date: value(change.start_date),
            end_date: value(change.end_date),
            budget,
        };
        let draft = projects::draft(&by(&self.maker), &new).and_then(|mut draft| {
            projects::check_values(&mut draft)?;
            Ok(draft)
        });
        match draft {
            // Whoever wants it after this one comes too late. One without a slug evades those that are taken.
            Ok(draft) => {
                let slug = self.hashes.hash_one(format!("slug {}", draft.slug));
                self.seen.entry(slug).or_insert(number as u32);
            }
            Err(error) => said.refuse(&error),
        }
        if !said.is_sound() {
            return None;
        }
        self.made += 1;
        if !writes && self.room.is_some_and(|room| self.made > room) {
            let room = self.room.unwrap_or_default();
            said.fail("name", "limit", format!("The plan has room for {room} more projects."));
            return None;
        }
        Some(Step::Make(Box::new(new)))
    }
}

/// Whether a change leaves a project as it is.
fn is_same(project: &Project, change: &ProjectChange) -> bool {
    let mut after = project.clone();
    let applied =
        projects::apply(&mut after, change.clone()).and_then(|()| projects::check_values(&mut after));
    applied.is_ok()
        && Changes::between(project, &after).fields().as_object().is_some_and(|fields| fields.is_empty())
}

fn value<T>(said: MaybeUndefined<T>) -> Option<T> {
    match said {
        Given(value) => Some(value),
        _ => None,
    }
}

/// What a line says, where all of it can be read.
fn read<'a>(line: &'a Line, errors: &mut Vec<LineError>) -> Option<Wanted<'a>> {
    let mut said = Reading::new(line, FIELDS, errors);
    let name = said.value(NAME);
    if matches!(name, Null) {
        said.fail("name", "required", "must not be empty");
    }
    let wanted = Wanted {
        line,
        id: value(said.text(ID)).map(str::trim),
        external_id: value(said.value(EXTERNAL_ID)),
        owner: value(said.text(OWNER)).map(str::trim),
        members: said.many(MEMBERS, projects::MOST_MEMBERS),
        amount: said.value(BUDGET_AMOUNT),
        currency: said.value(BUDGET_CURRENCY),
        change: ProjectChange {
            name,
            slug: kept(said.value(SLUG)),
            description: said.value(DESCRIPTION),
            status: kept(said.word(STATUS)),
            priority: kept(said.word(PRIORITY)),
            start_date: said.date(START_DATE),
            end_date: said.date(END_DATE),
            ..ProjectChange::default()
        },
    };
    said.is_sound().then_some(wanted)
}

/// Projects that lines name.
struct Found {
    by_external: HashMap<String, Uuid>,
    by_id: BTreeSet<Uuid>,
    slugs: HashMap<String, Uuid>,
}

fn named(one: &Wanted<'_>, found: &Found) -> Option<Uuid> {
    let external = one.external_id.as_ref().and_then(|id| found.by_external.get(id.as_ref()).copied());
    let by_id = |id: &str| {
        let known = id.parse::<Uuid>().ok().filter(|id| found.by_id.contains(id));
        found.by_external.get(id).copied().or(known)
    };
    external.or_else(|| one.id.and_then(by_id))
}

async fn known(tx: &TenantTx, wanted: &[Wanted<'_>]) -> Result<Found> {
    let (mut names, mut slugs): (BTreeSet<&str>, Vec<&str>) = (BTreeSet::new(), Vec::new());
    for one in wanted {
        if let Some(id) = &one.external_id {
            names.insert(id.as_ref());
        }
        if let Some(id) = one.id {
            names.insert(id);
        }
        if let Given(slug) = &one.change.slug {
            slugs.push(slug.as_ref());
        }
    }
    let ids: Vec<Uuid> = names.iter().filter_map(|name| name.parse().ok()).collect();
    let names: Vec<&str> = names.into_iter().collect();
    let rows = tx
        .query(
            "select id, external_id, slug from projects where external_id = any ($1) or id = any ($2) \
             or slug = any ($3)",
            &[&names, &ids, &slugs],
        )
        .await?;
    let mut found = Found { by_external: HashMap::new(), by_id: BTreeSet::new(), slugs: HashMap::new() };
    for row in &rows {
        let id: Uuid = row.try_get("id")?;
        if let Some(external) = row.try_get::<_, Option<String>>("external_id")? {
            found.by_external.insert(external, id);
        }
        found.by_id.insert(id);
        found.slugs.insert(row.try_get("slug")?, id);
    }
    Ok(found)
}

impl Importer for ProjectImporter {
    fn check<'a>(&'a mut self, tx: &'a TenantTx, lines: &'a [Line]) -> BoxFuture<'a, Result<Outcome>> {
        Box::pin(async move {
            let mut outcome = Outcome::default();
            for (_, step) in self.plan(tx, lines, false, &mut outcome).await? {
                match step {
                    Step::Make(_) => outcome.created += 1,
                    Step::Change(..) => outcome.updated += 1,
                }
            }
            Ok(outcome)
        })
    }

    fn write<'a>(&'a mut self, tx: &'a TenantTx, lines: &'a [Line]) -> BoxFuture<'a, Result<Outcome>> {
        Box::pin(async move {
            let mut outcome = Outcome::default();
            let steps = self.plan(tx, lines, true, &mut outcome).await?;
            self.seen.clear();
            let by = by(&self.maker);
            for (number, step) in steps {
                let (count, written) = match step {
                    Step::Make(new) => (&mut outcome.created, projects::insert(tx, &by, *new).await),
                    Step::Change(project, change) => {
                        (&mut outcome.updated, projects::update(tx, &by, *project, *change).await)
                    }
                };
                match written {
                    Ok(_) => *count += 1,
                    // A rule that the line breaks by now. What the database refused has ended the transaction,
                    // and finds its line when it is tried again.
                    Err(error)
                        if matches!(error.code(), Code::Validation | Code::Conflict)
                            && error.cause().is_none()
                            && !error.fields().is_empty()
                            && error.fields().iter().all(|field| field.field != "external_id") =>
                    {
                        outcome.errors.push(LineError::from_error(number, &error));
                    }
                    Err(error) => return Err(error),
                }
            }
            Ok(outcome)
        })
    }
}

struct ProjectExporter {
    filters: Filters,
    after: Uuid,
}

/// The same for counting and for reading.
const FILTER: &str = "($1::text is null or p.status = $1)";

impl Exporter for ProjectExporter {
    fn count<'a>(&'a self, tx: &'a TenantTx) -> BoxFuture<'a, Result<i64>> {
        Box::pin(async move {
            let sql = format!("select count(*) as many from projects p where {FILTER}");
            Ok(tx.query_one(&sql, &[&self.filters.status]).await?.try_get("many")?)
        })
    }

    fn rows<'a>(
        &'a mut self,
        tx: &'a TenantTx,
        limit: i64,
    ) -> BoxFuture<'a, Result<Option<Vec<Vec<Value>>>>> {
        Box::pin(async move {
            let sql = format!(
                "select p.id, p.external_id, p.name, p.slug, p.description, p.status, p.priority, p.owner_id, \
                 p.start_date, p.end_date, p.budget_amount, p.budget_currency, p.progress::float8 as progress, \
                 p.created_at, p.updated_at, \
                 array(select m.user_id from project_members m where m.project_id = p.id order by m.user_id) as members \
                 from projects p where {FILTER} and p.id > $2 order by p.id limit $3"
            );
            let rows = tx.query(&sql, &[&self.filters.status, &self.after, &limit]).await?;
            let Some(last) = rows.last() else { return Ok(None) };
            self.after = last.try_get("id")?;
            let mut people = BTreeSet::new();
            for row in &rows {
                people.insert(row.try_get::<_, Uuid>("owner_id")?);
                people.extend(row.try_get::<_, Vec<Uuid>>("members")?);
            }
            let people: Vec<Uuid> = people.into_iter().collect();
            let known = addresses(tx, &people).await?;
            let mut told = Vec::with_capacity(rows.len());
            for row in &rows {
                let id: Uuid = row.try_get("id")?;
                let text = |column: &str| row.try_get::<_, Option<String>>(column);
                let date = |column: &str| row.try_get::<_, Option<NaiveDate>>(column);
                let time = |column: &str| row.try_get::<_, Option<DateTime<Utc>>>(column);
                let members: Vec<Uuid> = row.try_get("members")?;
                let members: Vec<Value> = members.into_iter().map(|user| address(&known, user)).collect();
                let amount: Option<Decimal> = row.try_get("budget_amount")?;
                told.push(vec![
                    json!(id),
                    json!(text("external_id")?),
                    json!(text("name")?),
                    json!(text("slug")?),
                    json!(text("description")?),
                    json!(text("status")?),
                    json!(text("priority")?),
                    address(&known, row.try_get("owner_id")?),
                    json!(members),
                    json!(date("start_date")?),
                    json!(date("end_date")?),
                    json!(amount.map(Amount::from)),
                    json!(text("budget_currency")?),
                    json!(row.try_get::<_, f64>("progress")?),
                    json!(time("created_at")?),
                    json!(time("updated_at")?),
                ]);
            }
            Ok(Some(told))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_those_of_the_fields() {
        let named = [
            (ID, "id"),
            (EXTERNAL_ID, "external_id"),
            (NAME, "name"),
            (SLUG, "slug"),
            (DESCRIPTION, "description"),
            (STATUS, "status"),
            (PRIORITY, "priority"),
            (OWNER, "owner"),
            (MEMBERS, "members"),
            (START_DATE, "start_date"),
            (END_DATE, "end_date"),
            (BUDGET_AMOUNT, "budget_amount"),
            (BUDGET_CURRENCY, "budget_currency"),
        ];
        for (place, name) in named {
            assert_eq!(FIELDS[place].name, name);
        }
    }
}
