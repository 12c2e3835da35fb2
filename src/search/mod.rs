//! Search: one question over everything that an organization has written down.
//!
//! Modules say what can be searched ([`Source`]); what the caller may not read is left out. Each source is a
//! table with a `tsvector` column `search` of its text and, where its rows have a title, a GIN index on the words
//! of that. Words that are everywhere are not read everywhere: each statement reads so many rows at most, the
//! newest first where more would be found. The order in which things are asked for is fixed here and not left to
//! estimates: `to_tsquery` stands in a subselect, so a plan is the same whatever the words are.
//!
//! Misspelled words need no dictionary beside the data: of the words that are one slip away, the index knows which
//! there are, and of two slips in a long word, which words begin like it.

mod words;

use std::collections::{BTreeSet, HashMap, HashSet};

use chrono::{DateTime, Utc};
use futures_util::{
    future::{BoxFuture, join_all},
    join,
};
use poem_openapi::{Object, OpenApi, param::Query, types::Example};
use serde::Serialize;
use uuid::Uuid;

use self::words::{Near, Words};
use crate::{
    api::Tag,
    auth::{Can, Member, Permission, permissions::OrganizationRead},
    db::{Row, TenantTx, ToSql},
    error::{Error, Result},
    http::Json,
    types::{EXAMPLE_ID, example_time},
};

/// A kind of thing that can be searched for: what a module declares, in `SEARCHES` in `src/app.rs`.
pub struct Source {
    /// The word for it in the API.
    pub kind: &'static str,
    /// Without it nothing of this is found.
    pub permission: Permission,
    /// With `id`, which grows with time, and a `tsvector` column `search` with a GIN index.
    pub table: &'static str,
    /// The column of its title, with a GIN index on its words; see [`named`].
    pub title: Option<&'static str>,
    /// All of its text, as an expression.
    pub text: &'static str,
    /// That it belongs to a project, as a condition; `?` stands for the project's id.
    pub project: &'static str,
    /// An order, newest first, in which an index has the rows of one project; `None` without such an index.
    pub newest: Option<&'static str>,
    /// What is shown of the rows with `id = any ($1)`: id, title, body, project_id, project_name, updated_at.
    pub shown: &'static str,
    /// Without it the title is not shown.
    pub title_permission: Permission,
    /// Without it the name of the project is not shown.
    pub project_permission: Permission,
    /// Where the API has it; the id follows.
    pub path: &'static str,
}

/// Rows that are looked at before an index is asked, which is slow for words that are everywhere.
const FIRST_LOOK: i64 = 200;
/// Where so many of these have the words, the newest are found sooner by going on along them than by an index.
const OFTEN: usize = 3;
/// Rows with the words in their title that are read at most to find the newest.
const NAMED: i64 = 2_000;
/// Of so many of the newest rows titles are looked at where more have the words.
const TITLES_LOOK: i64 = 10_000;
/// Rows with the words anywhere that are read at most.
const FOUND: i64 = 1_000;
/// Of so many of the newest rows texts are looked at where more have the words, or an index is of no use.
const SECOND_LOOK: i64 = 2_000;
/// Where fewer things were found, words that are in fewer things are taken for misspelled ones.
const FEW: i64 = 3;
/// Rows that are looked at for words that begin like one with two slips.
const ALIKE_LOOK: i64 = 300;

/// How well something fits; the smaller the better.
const TITLE: i32 = 0;
const TITLE_BEGINS: i32 = 1;
const TEXT: i32 = 2;
const TEXT_BEGINS: i32 = 3;
const MEANT_IN_TITLE: i32 = 4;
const MEANT: i32 = 5;

/// Something that was found.
#[derive(Clone, Debug, Serialize, Object)]
#[oai(example)]
pub struct SearchHit {
    /// `project`, `task`, `comment`, `message`, or what other modules have.
    #[serde(rename = "type")]
    #[oai(rename = "type")]
    pub kind: String,
    pub id: Uuid,
    /// Its name or title; of a comment that of its task, of a message that of its project, and empty where the
    /// caller may not read that.
    pub title: String,
    /// The title as HTML: everything is escaped, and the words that were found are in `<mark>`.
    pub highlighted_title: String,
    /// The part of its text that the words are in, as HTML in the same way. Null where it has no text.
    pub excerpt: Option<String>,
    pub project_id: Option<Uuid>,
    /// Null where the caller may not read projects.
    pub project_name: Option<String>,
    /// Where the API has it.
    pub path: String,
    /// 0: the words are in the title, 1: words in the title begin so, 2: the words are in the text, 3: words in the
    /// text begin so, 4 and 5: words like these are in the title or the text.
    pub rank: i32,
    pub updated_at: DateTime<Utc>,
}

impl Example for SearchHit {
    fn example() -> Self {
        Self {
            kind: "task".into(),
            id: EXAMPLE_ID,
            title: "Write the landing page".into(),
            highlighted_title: "Write the <mark>landing</mark> page".into(),
            excerpt: Some("Words &amp; pictures of the <mark>landing</mark> page".into()),
            project_id: Some(EXAMPLE_ID),
            project_name: Some("Website relaunch".into()),
            path: format!("/api/v1/tasks/{EXAMPLE_ID}"),
            rank: TITLE,
            updated_at: example_time(),
        }
    }
}

/// What a search has found.
#[derive(Clone, Debug, Serialize, Object)]
#[oai(example)]
pub struct SearchResults {
    /// The best first, and the newest of what fits equally well.
    pub data: Vec<SearchHit>,
    /// Whether more was found than is shown: narrow the search to see it, by more words, `type` or `project_id`.
    pub has_more: bool,
    /// Words of what was found that are like those that were typed, because hardly anything has those.
    pub meant: Vec<String>,
}

impl Example for SearchResults {
    fn example() -> Self {
        Self { data: vec![SearchHit::example()], has_more: false, meant: Vec::new() }
    }
}

pub struct SearchApi;

#[OpenApi(tag = "Tag::Search")]
impl SearchApi {
    /// Search projects, tasks, comments and messages.
    ///
    /// Finds what has all of the words; each may be the beginning of one. Case does not matter. What is in titles
    /// comes before what is in texts, whole words before beginnings, newer before older. Where fewer than three
    /// things have the words, those of the words that hardly anything has may be misspelled: one letter in each
    /// may be wrong, missing, too much, or have changed places with the next one, in up to five words of four
    /// letters and more. Where that finds nothing, two such slips are forgiven behind the first three letters of
    /// words of eight letters and more, as far as the word is in the first 300 things of a type with a word that
    /// begins so. Of words that are in more than 2,000 titles the newest of the newest 10,000 of the type are shown
    /// first; of words that are in more than 1,000 texts those of the newest 2,000. With `project_id` this holds
    /// for tasks and messages. Text in scripts without spaces is found by how a run of characters begins and, in
    /// the newest 2,000 of each type, by what is inside one.
    ///
    /// What the caller may not read is left out.
    #[oai(path = "/search", method = "get", operation_id = "search")]
    async fn search(
        &self,
        who: Can<OrganizationRead>,
        /// 1 to 200 characters, at most 10 words.
        q: Query<String>,
        /// Only these types, separated by commas: `project`, `task`, `comment`, `message`.
        #[oai(name = "type")]
        kinds: Query<Option<String>>,
        /// Only what belongs to this project.
        project_id: Query<Option<Uuid>>,
        /// 1 to 50, 20 by default.
        limit: Query<Option<u32>>,
    ) -> Result<Json<SearchResults>> {
        let limit = limit.0.unwrap_or(20);
        if !(1..=50).contains(&limit) {
            return Err(Error::invalid("limit", "must be from 1 to 50"));
        }
        let words = Words::parse(&q.0)?;
        let mut sources = asked_for(who.app.searches(), kinds.0.as_deref())?;
        let there = |permission: Permission| permission.module().is_none_or(|m| who.tenant.has_module(m));
        sources.retain(|source| who.may(source.permission) && there(source.permission));
        let tx = who.begin().await?;
        let search = Search { tx: &tx, who: &who, words, project: project_id.0, wanted: limit as usize + 1 };
        Ok(Json(search.run(&sources, limit as usize).await?))
    }
}

/// The sources that a list of kinds names; all of them where there is none.
fn asked_for(sources: &'static [Source], kinds: Option<&str>) -> Result<Vec<&'static Source>> {
    let Some(kinds) = kinds else { return Ok(sources.iter().collect()) };
    let kinds: HashSet<&str> = kinds.split(',').map(str::trim).collect();
    if let Some(unknown) = kinds.iter().find(|kind| sources.iter().all(|source| source.kind != **kind)) {
        let known: Vec<&str> = sources.iter().map(|source| source.kind).collect();
        let told = format!("has {unknown:?}; must be some of: {}", known.join(", "));
        return Err(Error::invalid("type", told));
    }
    Ok(sources.iter().filter(|source| kinds.contains(source.kind)).collect())
}

/// The words of a column, as the indexes on titles have them.
fn named(column: &str) -> String {
    format!(
        "to_tsvector('simple'::regconfig, translate({column}, '!\"#$%&''()*+,-./:;<=>?@[\\]^_`{{|}}~', repeat(' ', 32)))"
    )
}

/// Where words are looked for.
#[derive(Clone, Copy)]
enum Within {
    Title,
    /// All of its text, of which the title is a part.
    Text,
}

/// What was found of one source: how well each row fits.
type Found = HashMap<Uuid, i32>;

fn add(found: &mut Found, id: Uuid, rank: i32) {
    found.entry(id).and_modify(|there| *there = rank.min(*there)).or_insert(rank);
}

/// One search.
struct Search<'a> {
    tx: &'a TenantTx,
    who: &'a Member,
    words: Words,
    project: Option<Uuid>,
    /// One more than is shown.
    wanted: usize,
}

impl Search<'_> {
    async fn run(&self, sources: &[&'static Source], limit: usize) -> Result<SearchResults> {
        let (exactly, beginnings) = (self.words.exactly(), self.words.beginnings());
        // A plan that was made while a table was small is kept when it has grown.
        let settled = self.tx.command("set local enable_seqscan to off");
        let looked = each(sources, |source| Box::pin(self.newest(source, &exactly, &beginnings)));
        let (settled, looked) = join!(settled, looked);
        settled?;
        let mut found: Vec<Found> = looked?;
        let more = join_all(
            sources
                .iter()
                .copied()
                .zip(&found)
                .map(|(source, found)| self.index(source, found, &exactly, &beginnings)),
        );
        let more: Vec<Found> = more.await.into_iter().collect::<Result<_>>()?;
        merge(&mut found, more);
        if let Some(inside) = self.words.inside().filter(|_| is_few(&found, self.wanted)) {
            let more = each(sources, |source| Box::pin(self.inside(source, inside))).await?;
            merge(&mut found, more);
        }
        let mut near = Near::default();
        if is_few(&found, FEW as usize)
            && let Some((query, words)) = self.correct(sources, found.iter().all(HashMap::is_empty)).await?
        {
            let more = each(sources, |source| Box::pin(self.meant(source, query.clone()))).await?;
            merge(&mut found, more);
            near = words;
        }
        let mut best: Vec<(i32, Uuid, usize)> = found
            .iter()
            .enumerate()
            .flat_map(|(source, found)| found.iter().map(move |(id, rank)| (*rank, *id, source)))
            .collect();
        best.sort_by_key(|(rank, id, _)| (*rank, std::cmp::Reverse(*id)));
        let has_more = best.len() > limit;
        best.truncate(limit);
        let mut meant = BTreeSet::new();
        let data = self.show(sources, &best, &near, &mut meant).await?;
        Ok(SearchResults { data, has_more, meant: meant.into_iter().collect() })
    }

    /// What is looked for further where the newest rows are not enough.
    async fn index(
        &self,
        source: &'static Source,
        looked: &Found,
        exactly: &str,
        beginnings: &str,
    ) -> Result<Found> {
        let asked = [
            (TITLE, Within::Title, exactly),
            (TITLE_BEGINS, Within::Title, beginnings),
            (TEXT, Within::Text, exactly),
            (TEXT_BEGINS, Within::Text, beginnings),
        ];
        // Words that were meant are not asked for as beginnings too.
        let asked =
            asked.into_iter().filter(|(rank, ..)| exactly != beginnings || [TITLE, TEXT].contains(rank));
        let asked = asked.map(|(rank, within, query)| async move {
            let many = looked.values().filter(|of_row| **of_row <= rank).count();
            // The newest rows that fit so well come before all others that do.
            let found = match many >= self.wanted {
                true => Vec::new(),
                false => self.further(source, within, query, many).await?,
            };
            Ok::<_, Error>((rank, found))
        });
        let mut found = Found::new();
        for asked in join_all(asked).await {
            let (rank, ids) = asked?;
            ids.into_iter().for_each(|id| add(&mut found, id, rank));
        }
        Ok(found)
    }

    /// Columns of so many of the newest rows, of the project that was asked for, as a part of a statement; `None`
    /// where those would have to be looked for. The project is the parameter that is numbered.
    fn latest(&self, source: &Source, columns: &str, rows: i64, project: usize) -> Option<String> {
        let (within, order) = match self.project {
            None => (String::new(), "id desc"),
            Some(_) => {
                (format!(" where {}", source.project.replace('?', &format!("${project}"))), source.newest?)
            }
        };
        Some(format!("(select {columns} from {}{within} order by {order} limit {rows})", source.table))
    }

    /// Those of the newest rows that have the words.
    async fn newest(&self, source: &'static Source, exactly: &str, beginnings: &str) -> Result<Found> {
        let (columns, words) = match source.title {
            Some(title) => (format!("id, search, {title}"), named(title)),
            None => ("id, search".into(), "''::tsvector".into()),
        };
        let Some(latest) = self.latest(source, &columns, FIRST_LOOK, 3) else { return Ok(Found::new()) };
        // `offset 0`: the words of a title are made once, and of rows that have the words only.
        let sql = format!(
            "select id, case when named @@ (select to_tsquery('simple', $2)) then {TITLE} \
                 when named @@ (select to_tsquery('simple', $1)) then {TITLE_BEGINS} \
                 when search @@ (select to_tsquery('simple', $2)) then {TEXT} else {TEXT_BEGINS} end as rank \
             from (select id, search, {words} as named from {latest} as newest \
                 where search @@ (select to_tsquery('simple', $1)) offset 0) as found"
        );
        let mut values: Vec<&(dyn ToSql + Sync)> = vec![&beginnings, &exactly];
        values.extend(self.project.as_ref().map(|project| project as &(dyn ToSql + Sync)));
        let rows = self.tx.query(&sql, &values).await?;
        rows.iter().map(|row| Ok((row.try_get("id")?, row.try_get("rank")?))).collect()
    }

    /// The newest rows with these words, which so many of the first ones have. Of words that more have than are
    /// read at most they are looked for among the newest rows.
    async fn further(
        &self,
        source: &'static Source,
        within: Within,
        query: &str,
        many: usize,
    ) -> Result<Vec<Uuid>> {
        let has = |words: &str| format!("{words} @@ (select to_tsquery('simple', $1))");
        let (columns, condition, most, look) = match (within, source.title) {
            (Within::Text, _) => ("id, search".into(), has("search"), FOUND, SECOND_LOOK),
            (Within::Title, Some(title)) => {
                (format!("id, search, {title}"), has(&named(title)), NAMED, TITLES_LOOK)
            }
            (Within::Title, None) => return Ok(Vec::new()),
        };
        let newest = async |rows: i64| {
            let Some(latest) = self.latest(source, &columns, rows, 3) else { return Ok(Vec::new()) };
            // The words of a title are made of those rows only that have them somewhere.
            let condition = match within {
                Within::Title => format!("{} and {condition}", has("search")),
                Within::Text => condition.clone(),
            };
            let sql = format!("select id from {latest} as newest where {condition} limit $2");
            let wanted = self.wanted as i64;
            let mut values: Vec<&(dyn ToSql + Sync)> = vec![&query, &wanted];
            values.extend(self.project.as_ref().map(|project| project as &(dyn ToSql + Sync)));
            ids(&self.tx.query(&sql, &values).await?)
        };
        // As far as they are enough if they are everywhere as often, as words of the last hour are not. A power of
        // two: each number is another statement.
        let reach = match many {
            OFTEN.. => {
                let expected = FIRST_LOOK as usize * self.wanted / many;
                look.min((2 * expected).next_power_of_two() as i64)
            }
            _ => 0,
        };
        let mut found = if reach > 0 { newest(reach).await? } else { Vec::new() };
        if found.len() < self.wanted {
            let any = self.rows(source, &condition, query, most).await?;
            if any.len() as i64 == most && reach < look {
                found = newest(look).await?;
            }
            found.extend(any);
        }
        Ok(found)
    }

    /// Those of the newest rows that have the words within others.
    async fn inside(&self, source: &'static Source, inside: &[String]) -> Result<Found> {
        let project = match self.project {
            Some(_) => format!(" and {}", source.project.replace('?', "$3")),
            None => String::new(),
        };
        let sql = format!(
            "select id from {0} where id = any (array(select id from {0} order by id desc limit $2)){project} \
             and (select bool_and(position(word in {1}) > 0) from unnest($1::text[]) as word)",
            source.table, source.text
        );
        let mut values: Vec<&(dyn ToSql + Sync)> = vec![&inside, &SECOND_LOOK];
        if let Some(project) = &self.project {
            values.push(project);
        }
        let rows = self.tx.query(&sql, &values).await?;
        rows.iter().map(|row| Ok((row.try_get("id")?, TEXT_BEGINS))).collect()
    }

    /// The search with the words that may have been meant, of those that there are; `None` without any. Two slips
    /// are forgiven where `nothing` was found yet.
    async fn correct(&self, sources: &[&'static Source], nothing: bool) -> Result<Option<(String, Near)>> {
        // Of words that are everywhere an index reads a part; below that it reads all.
        let part = self.tx.command("set local gin_fuzzy_search_limit to 1000");
        let (part, unknown) = join!(part, self.unknown(sources));
        part?;
        let unknown = unknown?;
        let mut near = self.words.one_slip(&unknown);
        near.retain_only(&self.existing(sources, near.queries()).await?);
        if near.is_empty() && nothing {
            near = self.words.two_slips(&unknown, &self.alike(sources, &unknown).await?);
        }
        self.tx.command("set local gin_fuzzy_search_limit to 0").await?;
        Ok((!near.is_empty()).then(|| (self.words.corrected_by(&near), near)))
    }

    /// Words that hardly anything has, not even as a beginning, by their numbers.
    async fn unknown(&self, sources: &[&'static Source]) -> Result<Vec<usize>> {
        let (exactly, beginnings) = self.words.each();
        if exactly.is_empty() {
            return Ok(Vec::new());
        }
        let asked = sources.iter().map(|source| {
            let (exactly, beginnings) = (&exactly, &beginnings);
            async move {
                // What is there as a whole is not asked for as a beginning, which reads more.
                let many = |word: &str| {
                    format!(
                        "(select count(*) from (select from {} where search @@ {word}::tsquery limit {FEW}) as those)",
                        source.table
                    )
                };
                let sql = format!(
                    "select case when whole < {FEW} then {} else whole end as many \
                     from (select n, begun, {} as whole \
                         from unnest($1::text[], $2::text[]) with ordinality as typed (word, begun, n) offset 0) as typed \
                     order by n",
                    many("begun"),
                    many("word")
                );
                self.tx.query(&sql, &[exactly, beginnings]).await
            }
        });
        let mut many = vec![0; exactly.len()];
        for rows in join_all(asked).await {
            for (sum, row) in many.iter_mut().zip(&rows?) {
                *sum += row.try_get::<_, i64>("many")?;
            }
        }
        Ok((0..many.len()).filter(|n| many[*n] < FEW).collect())
    }

    /// Those of these words that there are.
    async fn existing(&self, sources: &[&'static Source], words: Vec<String>) -> Result<HashSet<String>> {
        if words.is_empty() {
            return Ok(HashSet::new());
        }
        let asked = sources.iter().map(|source| {
            let words = &words;
            async move {
                let sql = format!(
                    "select word from unnest($1::text[]) as word \
                     where exists (select from {} where search @@ word::tsquery)",
                    source.table
                );
                self.tx.query(&sql, &[words]).await
            }
        });
        let mut existing = HashSet::new();
        for rows in join_all(asked).await {
            for row in rows? {
                existing.insert(row.try_get("word")?);
            }
        }
        Ok(existing)
    }

    /// Words that begin like the long ones of the unknown.
    async fn alike(&self, sources: &[&'static Source], unknown: &[usize]) -> Result<HashSet<String>> {
        let beginnings = self.words.long_beginnings(unknown);
        if beginnings.is_empty() {
            return Ok(HashSet::new());
        }
        let asked = sources.iter().map(|source| {
            let beginnings = &beginnings;
            async move {
                let sql = format!(
                    "select distinct word from unnest($1::text[]) as begun, \
                         lateral (select search from {} \
                             where search @@ (quote_literal(begun) || ':*')::tsquery limit {ALIKE_LOOK}) as those, \
                         unnest(tsvector_to_array(those.search)) as word \
                     where word ^@ begun",
                    source.table
                );
                self.tx.query(&sql, &[beginnings]).await
            }
        });
        let mut alike = HashSet::new();
        for rows in join_all(asked).await {
            for row in rows? {
                alike.insert(row.try_get("word")?);
            }
        }
        Ok(alike)
    }

    /// Rows with words that were meant.
    async fn meant(&self, source: &'static Source, query: String) -> Result<Found> {
        let mut found = self.newest(source, &query, &query).await?;
        for (id, rank) in self.index(source, &found, &query, &query).await? {
            add(&mut found, id, rank);
        }
        let meant = |rank| if rank == TITLE { MEANT_IN_TITLE } else { MEANT };
        Ok(found.into_iter().map(|(id, rank)| (id, meant(rank))).collect())
    }

    /// So many rows of a source by an index, within the project that was asked for.
    async fn rows(
        &self,
        source: &'static Source,
        condition: &str,
        query: &str,
        most: i64,
    ) -> Result<Vec<Uuid>> {
        let mut values: Vec<&(dyn ToSql + Sync)> = vec![&query, &most];
        let mut sql = format!("select id from {} where {condition}", source.table);
        if let Some(project) = &self.project {
            values.push(project);
            sql += &format!(" and {}", source.project.replace('?', "$3"));
        }
        sql += " limit $2";
        ids(&self.tx.query(&sql, &values).await?)
    }

    /// What is shown of the best, in their order.
    async fn show(
        &self,
        sources: &[&'static Source],
        best: &[(i32, Uuid, usize)],
        near: &Near,
        meant: &mut BTreeSet<String>,
    ) -> Result<Vec<SearchHit>> {
        let reads = sources.iter().enumerate().map(|(number, source)| async move {
            let ids: Vec<Uuid> =
                best.iter().filter(|(_, _, of)| *of == number).map(|(_, id, _)| *id).collect();
            match ids.is_empty() {
                true => Ok(Vec::new()),
                false => self.tx.query(source.shown, &[&ids]).await,
            }
        });
        let mut shown = HashMap::new();
        for (source, rows) in sources.iter().zip(join_all(reads).await) {
            for row in rows? {
                let hit = self.hit(source, &row, near, meant)?;
                shown.insert(hit.id, hit);
            }
        }
        // What was deleted a moment ago is not among them.
        let ranked =
            best.iter().filter_map(|(rank, id, _)| Some(SearchHit { rank: *rank, ..shown.remove(id)? }));
        Ok(ranked.collect())
    }

    fn hit(
        &self,
        source: &Source,
        row: &Row,
        near: &Near,
        meant: &mut BTreeSet<String>,
    ) -> Result<SearchHit> {
        let id: Uuid = row.try_get("id")?;
        let title: String = match self.who.may(source.title_permission) {
            true => row.try_get("title")?,
            false => String::new(),
        };
        let project_name = match self.who.may(source.project_permission) {
            true => row.try_get("project_name")?,
            false => None,
        };
        let body: Option<String> = row.try_get("body")?;
        for text in [Some(&title), body.as_ref()].into_iter().flatten() {
            near.note(text, meant);
        }
        Ok(SearchHit {
            kind: source.kind.into(),
            id,
            highlighted_title: self.words.mark(&title, near),
            title,
            excerpt: body.map(|body| self.words.excerpt(&body, near)),
            project_id: row.try_get("project_id")?,
            project_name,
            path: format!("{}{id}", source.path),
            rank: MEANT,
            updated_at: row.try_get("updated_at")?,
        })
    }
}

fn ids(rows: &[Row]) -> Result<Vec<Uuid>> {
    rows.iter().map(|row| Ok(row.try_get("id")?)).collect()
}

/// Asks all sources in one flush.
async fn each<'a>(
    sources: &[&'static Source],
    ask: impl Fn(&'static Source) -> BoxFuture<'a, Result<Found>>,
) -> Result<Vec<Found>> {
    join_all(sources.iter().copied().map(ask)).await.into_iter().collect()
}

fn merge(found: &mut [Found], more: Vec<Found>) {
    for (found, more) in found.iter_mut().zip(more) {
        more.into_iter().for_each(|(id, rank)| add(found, id, rank));
    }
}

fn is_few(found: &[Found], wanted: usize) -> bool {
    found.iter().map(HashMap::len).sum::<usize>() < wanted
}
