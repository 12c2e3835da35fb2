//! Lists of a million tasks in one organization: every order at its first page and, by cursor, at its end,
//! with every filter; and pairs of filters. One connection, the medians count.

use std::time::Instant;

use anyhow::Context;
use rowhouse::page::ListCursor;
use serde_json::Value;

use crate::{
    Ground,
    load::median,
    service::Service,
    tenants::{Tenant, grow},
};

const LISTS: &str = "lists";
/// What a list may take, in milliseconds.
const GOAL: f64 = 20.0;
const TIMES: usize = 7;
const SETTINGS: [(&str, &str); 3] =
    [("TENANCY_SPARE_SCHEMAS", "0"), ("DATABASE_SECONDS_PER_MINUTE", "0"), ("LIMIT_CONCURRENT", "0")];
const SORTS: [&str; 8] =
    ["created_at", "updated_at", "title", "status", "impact", "position", "due_date", "completed_at"];

/// 1,000 projects of very different sizes and 50 people, one of whom has a great many tasks and one three;
/// four in ten tasks are to be done and three done, three in ten have no day, most are somebody's. Words
/// of descriptions are as frequent as in a language: the first in most texts, the last in few. Somebody who
/// left made 25,000 tasks, all among the first. The indexes are made when the rows are there.
const SEED: &str = r"
set synchronous_commit = off;
set maintenance_work_mem = '512MB';
create temp table indexes as
  select indexrelid::regclass::text as name, pg_get_indexdef(indexrelid) as made_by from pg_index
  where indrelid in ('tasks'::regclass, 'task_assignees'::regclass)
    and not exists (select from pg_constraint where conindid = indexrelid);
do $$ declare name text; begin
  for name in select i.name from indexes i loop execute 'drop index ' || name; end loop;
end $$;
alter table tasks drop constraint tasks_project_id_fkey;
alter table task_assignees drop constraint task_assignees_task_id_fkey;
create function pg_temp.person(n int) returns uuid language sql immutable as
  $$ select ('018f0000-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid $$;
create function pg_temp.id(at timestamptz, n bigint) returns uuid language sql immutable as
  $$ select (lpad(to_hex((extract(epoch from at) * 1000)::bigint), 12, '0') || '7' || substr(md5(n::text), 1, 3)
     || '8' || substr(md5(n::text), 4, 15))::uuid $$;
create temp table words as
  select n::int as number, 'w' || substr(md5(n::text), 1, 3 + n % 6) as word
  from generate_series(1, 20000) as n;
create temp table texts as
  select picked.number, string_agg(words.word, ' ') as words
  from (select n / 20 as number, floor(power(20000, random()))::int as word
    from generate_series(0, 399999) as n) as picked
  join words on words.number = picked.word group by picked.number;
create temp table kept as
  select n::int as number, timestamptz '2023-01-01' + n * interval '1 hour' as at,
    pg_temp.id(timestamptz '2023-01-01' + n * interval '1 hour', n) as id from generate_series(0, 999) as n;
create temp table people as select n::int as number, pg_temp.person(n::int) as id from generate_series(1, 51) as n;
analyze words, texts, kept, people;
insert into projects (id, name, slug, status, priority, owner_id, created_by, created_at, updated_at)
  select id, 'Project ' || number, 'large-' || number, 'active', 'medium', pg_temp.person(1),
    pg_temp.person(1), at, at
  from kept;
insert into tasks (id, project_id, title, description, status, priority, created_by, due_date, impact, position,
    external_id, completed_at, created_at, updated_at)
  select pg_temp.id(made.at, n), kept.id, words.word || ' ' || n % 97, texts.words, status,
    (array['low', 'medium', 'medium', 'high', 'urgent'])[1 + n % 5], people.id,
    case when random() < 0.7 then made.at::date + floor(90 * random())::int end, floor(random() * 21) * 5,
    extract(epoch from made.at) * 1000000, case when n % 5 = 0 then 'external-' || n end,
    case when status = 'done' then made.at + random() * interval '60 days' end,
    made.at, made.at + random() * interval '60 days'
  from (select n, timestamptz '2023-06-01' + n * interval '100 seconds' as at,
      floor(1000 * power(random(), 3))::int as project, (n * 7919 % 20000)::int as text,
      case when n <= 50000 and n % 2 = 0 then 51 else 1 + floor(50 * power(random(), 2))::int end as person,
      (array['todo', 'todo', 'todo', 'todo', 'in_progress', 'in_progress', 'review', 'done', 'done', 'done'])
        [1 + floor(10 * random())::int] as status
    from generate_series(1::bigint, 1000000) as n) as made
  join kept on kept.number = made.project join words on words.number = 1 + made.text
  join texts on texts.number = made.text join people on people.number = made.person
  order by n;
insert into task_assignees (task_id, user_id)
  select numbered.id, people.id
  from (select id, row_number() over (order by id) as n from tasks) as numbered
  join people on people.number =
    case when n <= 50000 and n % 2 = 0 then 51 when n % 10 = 0 then 1 else 2 + n % 47 end
  where n % 5 > 0 or n % 10 = 0;
insert into task_assignees (task_id, user_id)
  select id, pg_temp.person(50) from (select id from tasks order by id limit 3) as few;
do $$ declare made_by text; begin
  for made_by in select i.made_by from indexes i loop execute made_by; end loop;
end $$;
alter table tasks add foreign key (project_id) references projects (id) on delete cascade;
alter table task_assignees add foreign key (task_id) references tasks (id) on delete cascade;
";

pub async fn run(ground: &Ground) -> anyhow::Result<()> {
    let mut tenants = Vec::new();
    grow(ground, LISTS, &mut tenants, 1).await?;
    let tenant = tenants.first().context("an organization was made")?;
    let client = ground.client(LISTS).await?;
    println!("writing a million tasks");
    let started = Instant::now();
    client.batch_execute(&format!("set search_path to {}; {SEED}", tenant.schema)).await?;
    client.batch_execute("vacuum analyze tasks").await?;
    client.batch_execute("vacuum analyze task_assignees").await?;
    client.batch_execute("checkpoint").await?;
    println!("written in {:.0} s", started.elapsed().as_secs_f64());
    let service = Service::start(ground, LISTS, &["--web-only"], &SETTINGS).await?;
    let lister = Lister::new(&service, tenant)?;
    let filters = filters(&client).await?;
    let mut measured = Vec::new();
    for (name, filter) in &filters {
        for sort in SORTS {
            for sort in [sort.to_owned(), format!("-{sort}")] {
                lister.measure(name, filter, &sort, &mut measured).await?;
            }
        }
    }
    let singles = measured.len();
    for (at, (one, first)) in filters.iter().enumerate() {
        // Two values of one filter are none.
        let parameter = |filter: &str| filter.split('=').next().unwrap_or_default().to_owned();
        for (other, second) in
            filters[at + 1..].iter().filter(|(_, other)| parameter(other) != parameter(first))
        {
            if !first.is_empty() {
                let (name, filter) = (format!("{one}, {other}"), format!("{first}&{second}"));
                lister.measure(&name, &filter, "-created_at", &mut measured).await?;
            }
        }
    }
    tell("lists with one filter or none", &measured[..singles]);
    tell("lists with two filters, sort=-created_at", &measured[singles..]);
    Ok(())
}

/// What can be asked for, with values that are frequent and rare.
async fn filters(client: &tokio_postgres::Client) -> anyhow::Result<Vec<(String, String)>> {
    let sizes = "select project_id::text from tasks group by project_id order by count(*) desc";
    let projects = client.query(sizes, &[]).await?;
    let project = |at: usize| projects[at.min(projects.len() - 1)].try_get::<_, &str>(0);
    let words = client
        .query_one(
            "select min(word) filter (where number = 1), min(word) filter (where number = 30), \
             min(word) filter (where number = 15000) from words",
            &[],
        )
        .await?;
    let person = |n: u32| format!("018f0000-0000-7000-8000-{n:012}");
    let nobody = "00000000-0000-7000-8000-000000000000";
    let all = [
        ("everything", String::new()),
        ("the largest project", format!("project_id={}", project(0)?)),
        ("a project of the middle", format!("project_id={}", project(30)?)),
        ("a small project", format!("project_id={}", project(999)?)),
        ("an unknown project", format!("project_id={nobody}")),
        ("to be done", "status=todo".into()),
        ("in review", "status=review".into()),
        ("done", "status=done".into()),
        ("low priority", "priority=low".into()),
        ("of somebody with 100,000", format!("assigned_to={}", person(1))),
        ("of somebody with 15,000", format!("assigned_to={}", person(10))),
        ("of somebody with three", format!("assigned_to={}", person(50))),
        ("of nobody known", format!("assigned_to={nobody}")),
        ("by somebody with many", format!("created_by={}", person(1))),
        ("by somebody with few", format!("created_by={}", person(50))),
        ("by somebody who left", format!("created_by={}", person(51))),
        ("of somebody who left", format!("assigned_to={}", person(51))),
        ("due in the first days", "due_before=2023-06-10".into()),
        ("due in the first half", "due_before=2024-12-31".into()),
        ("due in the second half", "due_after=2024-12-31".into()),
        ("due in the last weeks", "due_after=2026-07-01".into()),
        ("a frequent word", format!("search={}", words.try_get::<_, &str>(0)?)),
        ("a word", format!("search={}", words.try_get::<_, &str>(1)?)),
        ("a rare word", format!("search={}", words.try_get::<_, &str>(2)?)),
        ("an unknown word", "search=zzz".into()),
        ("an external id", "external_id=external-500000".into()),
    ];
    Ok(all.map(|(name, filter)| (name.to_owned(), filter)).into())
}

/// How long one list took.
struct Measured {
    what: String,
    ms: f64,
}

fn tell(what: &str, measured: &[Measured]) {
    let mut slowest: Vec<&Measured> = measured.iter().collect();
    slowest.sort_by(|one, other| other.ms.total_cmp(&one.ms));
    let over = slowest.iter().filter(|one| one.ms > GOAL).count();
    println!("\n{what}: {} measured, {over} over {GOAL} ms", measured.len());
    println!("{:<90} {:>8.1} ms", "the median of all", median(measured.iter().map(|one| one.ms).collect()));
    for one in slowest.iter().take(over.max(10)) {
        println!("{:<90} {:>8.1} ms", one.what, one.ms);
    }
}

/// Asks for lists over one connection.
struct Lister {
    http: reqwest::Client,
    url: String,
    tenant: Vec<(String, String)>,
}

impl Lister {
    fn new(service: &Service, tenant: &Tenant) -> anyhow::Result<Self> {
        let lines = tenant.head();
        let pairs = lines.lines().filter_map(|line| line.split_once(": "));
        Ok(Self {
            http: reqwest::Client::builder().no_proxy().build()?,
            url: format!("http://{}/api/v1/tasks", service.address),
            tenant: pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        })
    }

    /// A list, and the milliseconds until all of it was there.
    async fn ask(&self, query: &str) -> anyhow::Result<(Value, f64)> {
        let mut request = self.http.get(format!("{}?{query}", self.url));
        for (name, value) in &self.tenant {
            request = request.header(name, value);
        }
        let started = Instant::now();
        let text = request.send().await?.error_for_status().context(query.to_owned())?.text().await?;
        let took = started.elapsed().as_secs_f64() * 1000.0;
        Ok((serde_json::from_str(&text)?, took))
    }

    async fn median(&self, query: &str) -> anyhow::Result<f64> {
        self.ask(query).await?;
        let mut took = Vec::new();
        for _ in 0..TIMES {
            took.push(self.ask(query).await?.1);
        }
        Ok(median(took))
    }

    /// The first page of a list, and the last rows of it by cursor.
    async fn measure(
        &self,
        name: &str,
        filter: &str,
        sort: &str,
        measured: &mut Vec<Measured>,
    ) -> anyhow::Result<()> {
        let query = format!("{filter}&sort={sort}");
        let what = |place: &str| format!("{name}, sort={sort}, {place}");
        let ms = self.median(&query).await?;
        measured.push(Measured { what: what("first page"), ms });
        // The last rows are the first ones of the opposite order.
        let opposite = |sort: &str| match sort.strip_prefix('-') {
            Some(key) => key.to_owned(),
            None => format!("-{sort}"),
        };
        let column = sort.trim_start_matches('-');
        let first = |rows: Value| rows["data"].as_array().and_then(|rows| rows.last().cloned());
        if let Some(row) = first(self.ask(&format!("{filter}&sort={}", opposite(sort))).await?.0) {
            let value = match &row[column] {
                Value::Null => None,
                // Read by id.
                _ if column == "created_at" => None,
                Value::String(text) => Some(text.clone()),
                other => Some(other.to_string()),
            };
            let id = row["id"].as_str().context("a task has an id")?;
            let cursor = ListCursor::new(sort, value.as_deref(), id);
            let ms = self.median(&format!("{query}&cursor={cursor}")).await?;
            measured.push(Measured { what: what("the end"), ms });
        }
        if matches!(column, "due_date" | "completed_at") {
            // Those without a value come last, by id, and ids are as old as their tasks.
            let by_id = if sort.starts_with('-') { "created_at" } else { "-created_at" };
            if let Some(row) = first(self.ask(&format!("{filter}&sort={by_id}")).await?.0) {
                let id = row["id"].as_str().context("a task has an id")?;
                let cursor = ListCursor::new(sort, None, id);
                let ms = self.median(&format!("{query}&cursor={cursor}")).await?;
                measured.push(Measured { what: what("the end of those without"), ms });
            }
        }
        Ok(())
    }
}
