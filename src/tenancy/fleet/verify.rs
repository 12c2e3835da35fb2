//! Whether every schema is what its migrations made of it.
//!
//! What is expected is read from a schema that the same migrations make on the same server, in a
//! transaction that is rolled back: no description of a schema is kept beside the migrations.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, hash_map::Entry};

use futures_util::{StreamExt, stream};
use serde::Serialize;
use uuid::Uuid;

use super::migrate::schemas_of;
use crate::{
    app::App,
    db::{Place, Schema, Server, TenantTx, migrations::Set},
    error::{Error, Result},
};

/// Schemas that are looked at at the same time.
const JOBS: usize = 4;

/// What [`verify`] found.
#[derive(Debug, Default, Serialize)]
pub struct Verification {
    /// Schemas that were compared.
    pub checked: usize,
    pub drifted: Vec<Drift>,
    /// Schemas that somebody dropped.
    pub missing: Vec<SchemaName>,
    /// Schemas that nobody knows of, by server.
    pub extra: Vec<Extra>,
    /// Schemas that could not be compared, and why.
    pub unverified: Vec<Unverified>,
}

impl Verification {
    /// Whether every schema that could be compared is as it should be.
    pub fn is_clean(&self) -> bool {
        self.drifted.is_empty() && self.missing.is_empty() && self.extra.is_empty()
    }
}

/// A schema and whose it is.
#[derive(Clone, Debug, Serialize)]
pub struct SchemaName {
    pub schema: String,
    /// The slug; absent for a spare.
    pub organization: Option<String>,
}

/// A schema that is not what its migrations make.
#[derive(Debug, Serialize)]
pub struct Drift {
    #[serde(flatten)]
    pub of: SchemaName,
    /// By object: `- ` and what is expected, `+ ` and what is there, `! ` and what else is wrong.
    pub lines: Vec<String>,
}

/// A schema without a row in `platform`.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Extra {
    pub database_id: Uuid,
    pub schema: String,
}

/// A schema that was not compared.
#[derive(Debug, Serialize)]
pub struct Unverified {
    #[serde(flatten)]
    pub of: SchemaName,
    pub because: String,
}

/// Objects of a schema and what they are.
pub(super) type Catalog = BTreeMap<String, String>;

/// Which migrations led to a schema: its modules with their versions.
type Combination = BTreeMap<String, i64>;

/// A schema as it is recorded.
struct Recorded {
    place: Place,
    state: String,
    slug: Option<String>,
    modules: Combination,
    /// By module, where they are kept.
    checksums: BTreeMap<String, String>,
}

impl Recorded {
    fn named(&self) -> SchemaName {
        SchemaName { schema: self.namespace(), organization: self.slug.clone() }
    }

    fn namespace(&self) -> String {
        match self.state.as_str() {
            "retired" => self.place.schema.retired_name(),
            _ => self.place.schema.to_string(),
        }
    }

    fn unverified(&self, because: String) -> Look {
        Look::Unverified(Unverified { of: self.named(), because })
    }

    fn is_living(&self) -> bool {
        ["spare", "taken"].contains(&self.state.as_str())
    }

    /// Why there is nothing to compare it with, if there is nothing.
    fn beyond(&self, sets: &[Set]) -> Option<String> {
        self.modules.iter().find_map(|(module, version)| match sets.iter().find(|set| set.module == module) {
            None => Some(format!("this program does not know module {module}")),
            Some(set) if *version > set.latest() => {
                Some(format!("module {module} is at version {version}, this program knows {}", set.latest()))
            }
            Some(_) => None,
        })
    }
}

/// Compares schemas with what their migrations make: those of the organizations named by slug or id,
/// or all, with a look for schemas that should not be there. Says after each schema how many are done
/// of how many.
pub async fn verify(
    app: &App,
    sets: &[Set],
    only: &[String],
    progress: &(dyn Fn(usize, usize) + Sync),
) -> Result<Verification> {
    let tx = app.db.begin().await?;
    let only = schemas_of(&tx, only).await?;
    drop(tx);
    let mut found = Verification::default();
    let mut living = recorded(app, None).await?;
    living
        .retain(|schema| schema.is_living() && (only.is_empty() || only.contains(&schema.place.schema.id())));
    let (beyond, comparable): (Vec<_>, Vec<_>) =
        living.into_iter().partition(|schema| schema.beyond(sets).is_some());
    for schema in beyond {
        let because = schema.beyond(sets).unwrap_or_default();
        found.unverified.push(Unverified { of: schema.named(), because });
    }
    let references = references(app, sets, &comparable).await;
    let (total, mut done) = (comparable.len(), 0);
    let references = &references;
    let mut looks = stream::iter(comparable)
        .map(|schema| async move {
            let look = compare(app, sets, &schema, references).await;
            look.unwrap_or_else(|error| schema.unverified(reason(&error)))
        })
        .buffer_unordered(JOBS.clamp(1, app.db.connections()));
    while let Some(look) = looks.next().await {
        done += 1;
        match look {
            Look::Same => found.checked += 1,
            Look::Missing(named) => found.missing.push(named),
            Look::Unverified(unverified) => found.unverified.push(unverified),
            Look::Different(drift) => {
                found.checked += 1;
                found.drifted.push(drift);
            }
        }
        progress(done, total);
    }
    if only.is_empty() {
        found.extra = extra(app).await?.into_iter().collect();
    }
    Ok(found)
}

/// What is recorded of all schemas, or of one.
async fn recorded(app: &App, one: Option<Uuid>) -> Result<Vec<Recorded>> {
    let tx = app.db.begin().await?;
    let rows = tx
        .query(
            "select s.id, s.database_id, s.state, m.module, m.version, m.checksum, \
             (select o.slug from platform.organizations o where o.schema_id = s.id) as slug \
             from platform.tenant_schemas s left join platform.tenant_schema_modules m on m.schema_id = s.id \
             where $1::uuid is null or s.id = $1 order by s.id",
            &[&one],
        )
        .await?;
    drop(tx);
    let servers: HashMap<Uuid, Server> =
        app.directory.servers().await?.into_iter().map(|server| (server.id(), server)).collect();
    let mut all: Vec<Recorded> = Vec::new();
    for row in &rows {
        let id: Uuid = row.try_get("id")?;
        if all.last().is_none_or(|last| last.place.schema.id() != id) {
            let database: Uuid = row.try_get("database_id")?;
            let server = servers.get(&database).cloned();
            let server = server.ok_or_else(|| Error::internal(format!("there is no database {database}")))?;
            all.push(Recorded {
                place: Place { server, schema: Schema::new(id) },
                state: row.try_get("state")?,
                slug: row.try_get("slug")?,
                modules: Combination::new(),
                checksums: BTreeMap::new(),
            });
        }
        let module: Option<String> = row.try_get("module")?;
        if let (Some(schema), Some(module)) = (all.last_mut(), module) {
            if let Some(checksum) = row.try_get("checksum")? {
                schema.checksums.insert(module.clone(), checksum);
            }
            schema.modules.insert(module, row.try_get("version")?);
        }
    }
    Ok(all)
}

/// Or why it could not be made.
type References = HashMap<(Uuid, Combination), Result<Catalog, String>>;

/// What is expected, for every combination of versions that there is on each server.
async fn references(app: &App, sets: &[Set], schemas: &[Recorded]) -> References {
    let mut references = References::new();
    for schema in schemas {
        let key = (schema.place.server.id(), schema.modules.clone());
        if let Entry::Vacant(new) = references.entry(key) {
            let made = reference(app, sets, schema).await;
            new.insert(made.map_err(|error| reason(&error)));
        }
    }
    references
}

/// Why something could not be compared; the server may not answer.
fn reason(error: &Error) -> String {
    error.cause().unwrap_or_else(|| error.to_string())
}

/// What the same migrations make on the same server; nothing of it stays.
async fn reference(app: &App, sets: &[Set], like: &Recorded) -> Result<Catalog> {
    let schema = Schema::new(Uuid::now_v7());
    let place = Place { server: like.place.server.clone(), schema };
    let tx = app.directory.door.begin(&place, Uuid::nil()).await?;
    tx.command(&format!("create schema {schema}")).await?;
    for set in sets {
        if let Some(version) = like.modules.get(set.module) {
            set.upto(*version).apply(&tx, 0).await?;
        }
    }
    catalog(&tx, schema).await
}

/// What comparing a schema showed.
enum Look {
    Same,
    Different(Drift),
    Missing(SchemaName),
    /// Its server does not answer, or it was migrated meanwhile.
    Unverified(Unverified),
}

async fn compare(app: &App, sets: &[Set], schema: &Recorded, references: &References) -> Result<Look> {
    let key = (schema.place.server.id(), schema.modules.clone());
    let expected = references.get(&key).ok_or_else(|| Error::internal("a combination was not built"))?;
    let expected = match expected {
        Ok(expected) => expected,
        Err(because) => return Ok(schema.unverified(because.clone())),
    };
    let tx = app.directory.door.begin(&schema.place, Uuid::nil()).await?;
    let there = catalog(&tx, schema.place.schema).await?;
    drop(tx);
    let mut lines = differences(expected, &there);
    lines.extend(objections(sets, schema).map(|objection| format!("! {objection}")));
    if lines.is_empty() {
        return Ok(Look::Same);
    }
    // A migration, or whoever removed the schema in good order, may have been faster.
    let again = recorded(app, Some(schema.place.schema.id())).await?.pop();
    match again {
        Some(again) if again.is_living() && again.modules == schema.modules => {}
        _ => return Ok(schema.unverified("it was changed meanwhile; verify it again".into())),
    }
    Ok(match there.contains_key(SCHEMA) {
        true => Look::Different(Drift { of: schema.named(), lines }),
        false => Look::Missing(schema.named()),
    })
}

/// What is wrong with the migrations that ran.
fn objections<'a>(sets: &'a [Set], schema: &'a Recorded) -> impl Iterator<Item = String> + 'a {
    sets.iter().filter_map(|set| {
        let version = schema.modules.get(set.module)?;
        set.objection(*version, schema.checksums.get(set.module).map(String::as_str))
    })
}

/// By object, what is expected and what is there in place of it.
pub(super) fn differences(expected: &Catalog, there: &Catalog) -> Vec<String> {
    let objects: BTreeSet<&String> = expected.keys().chain(there.keys()).collect();
    let mut lines = Vec::new();
    for object in objects {
        let (wanted, found) = (expected.get(object), there.get(object));
        if wanted != found {
            lines.extend(wanted.map(|definition| line('-', object, definition)));
            lines.extend(found.map(|definition| line('+', object, definition)));
        }
    }
    lines
}

fn line(mark: char, object: &str, definition: &str) -> String {
    match definition.is_empty() {
        true => format!("{mark} {object}"),
        false => format!("{mark} {object}: {definition}"),
    }
}

/// The object that stands for the schema itself.
const SCHEMA: &str = "schema";

/// Tables, views, columns, constraints, indexes, triggers and functions of a schema; names within it stand
/// without its name.
pub(super) async fn catalog(tx: &TenantTx, schema: Schema) -> Result<Catalog> {
    let name = schema.to_string();
    let prefix = format!("{name}.");
    let rows = tx.query_once(CATALOG, &[&name]).await?;
    rows.iter()
        .map(|row| {
            let (object, definition): (String, String) = (row.try_get(0)?, row.try_get(1)?);
            Ok((object, definition.replace(&prefix, "")))
        })
        .collect()
}

const CATALOG: &str = "with here as (select oid from pg_catalog.pg_namespace where nspname = $1::text) \
     select 'schema' as object, '' as definition from here \
     union all \
     select case c.relkind when 'r' then 'table ' when 'p' then 'partitioned table ' when 'v' then 'view ' \
       when 'm' then 'materialized view ' when 'S' then 'sequence ' else 'relation ' end || c.relname::text, \
       concat_ws(', ', case c.relpersistence when 'u' then 'unlogged' end, \
         case when c.relrowsecurity then 'row level security' end, \
         case when c.relforcerowsecurity then 'row level security for its owner' end, \
         array_to_string(c.reloptions, ', '), \
         case when exists (select 1 from pg_catalog.pg_trigger t where t.tgrelid = c.oid and t.tgisinternal \
           and t.tgenabled <> 'O') then 'foreign keys disabled' end, \
         case when c.relkind in ('v', 'm') then regexp_replace(pg_catalog.pg_get_viewdef(c.oid), '\\s+', ' ', 'g') end) \
     from pg_catalog.pg_class c join here on c.relnamespace = here.oid where c.relkind not in ('i', 'I', 't', 'c') \
     union all \
     select 'column ' || c.relname::text || '.' || a.attname::text, \
       pg_catalog.format_type(a.atttypid, a.atttypmod) \
       || coalesce((select ' collate ' || l.collname::text from pg_catalog.pg_type y \
          join pg_catalog.pg_collation l on l.oid = a.attcollation and l.oid <> y.typcollation \
          where y.oid = a.atttypid), '') \
       || case when a.attnotnull then ' not null' else '' end \
       || case a.attidentity when 'a' then ' generated always as identity' \
          when 'd' then ' generated by default as identity' else '' end \
       || case when d.adbin is null then '' when a.attgenerated = 's' \
          then ' generated always as (' || pg_catalog.pg_get_expr(d.adbin, d.adrelid) || ') stored' \
          else ' default ' || pg_catalog.pg_get_expr(d.adbin, d.adrelid) end \
     from pg_catalog.pg_attribute a join pg_catalog.pg_class c on c.oid = a.attrelid \
     join here on c.relnamespace = here.oid \
     left join pg_catalog.pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum \
     where a.attnum > 0 and not a.attisdropped and c.relkind in ('r', 'p', 'v', 'm', 'f') \
     union all \
     select 'constraint ' || c.relname::text || '.' || k.conname::text, pg_catalog.pg_get_constraintdef(k.oid) \
     from pg_catalog.pg_constraint k join pg_catalog.pg_class c on c.oid = k.conrelid \
     join here on c.relnamespace = here.oid where k.contype <> 'n' \
     union all \
     select 'index ' || i.relname::text, pg_catalog.pg_get_indexdef(x.indexrelid) \
       || case when x.indisvalid then '' else ' (invalid)' end \
     from pg_catalog.pg_index x join pg_catalog.pg_class i on i.oid = x.indexrelid \
     join here on i.relnamespace = here.oid \
     union all \
     select 'trigger ' || c.relname::text || '.' || t.tgname::text, pg_catalog.pg_get_triggerdef(t.oid) \
       || case t.tgenabled when 'O' then '' when 'D' then ' (disabled)' else ' (for replicas)' end \
     from pg_catalog.pg_trigger t join pg_catalog.pg_class c on c.oid = t.tgrelid \
     join here on c.relnamespace = here.oid where not t.tgisinternal \
     union all \
     select 'function ' || p.proname::text || '(' || pg_catalog.pg_get_function_identity_arguments(p.oid) || ')', \
       case when p.prokind = 'a' then '' else regexp_replace(pg_catalog.pg_get_functiondef(p.oid), '\\s+', ' ', 'g') end \
     from pg_catalog.pg_proc p join here on p.pronamespace = here.oid";

/// Schemas with the name of a tenant's that no row tells of. Rows and schemas come and go together, but
/// are read one after the other, so what looks odd is looked at twice.
async fn extra(app: &App) -> Result<BTreeSet<Extra>> {
    let first = unknown_namespaces(app).await?;
    if first.is_empty() {
        return Ok(first);
    }
    let second = unknown_namespaces(app).await?;
    Ok(first.into_iter().filter(|schema| second.contains(schema)).collect())
}

async fn unknown_namespaces(app: &App) -> Result<BTreeSet<Extra>> {
    let mut there = Vec::new();
    for server in app.directory.servers().await? {
        match namespaces(app, &server).await {
            Ok(names) => there.extend(names.into_iter().map(|name| (server.id(), name))),
            // Those that are known to be on it were not compared, which is told.
            Err(error) => tracing::warn!(%error, server = %server.id(), "a server was not looked through"),
        }
    }
    let known: HashSet<(Uuid, String)> = recorded(app, None)
        .await?
        .iter()
        .map(|schema| (schema.place.server.id(), schema.namespace()))
        .collect();
    let unknown = there.into_iter().filter(|schema| !known.contains(schema));
    Ok(unknown.map(|(database_id, schema)| Extra { database_id, schema }).collect())
}

async fn namespaces(app: &App, server: &Server) -> Result<Vec<String>> {
    let tx = app.directory.door.begin_outside(server).await?;
    let sql =
        "select nspname::text from pg_catalog.pg_namespace where nspname ~ '^(tenant|retired)_[0-9a-f]{32}$'";
    tx.query_once(sql, &[]).await?.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_told_by_object() {
        let catalog = |objects: &[(&str, &str)]| -> Catalog {
            objects.iter().map(|(object, definition)| ((*object).into(), (*definition).into())).collect()
        };
        let expected = catalog(&[("column a.b", "text not null"), ("index c", "x"), ("table a", "")]);
        let there = catalog(&[("column a.b", "text"), ("table a", ""), ("table d", "")]);
        assert_eq!(
            differences(&expected, &there),
            ["- column a.b: text not null", "+ column a.b: text", "- index c: x", "+ table d"]
        );
        assert!(differences(&expected, &expected).is_empty());
    }
}
