//! How soon a search answers in an organization of 100,000 tasks, 20,000 comments and 20,000 messages.
//!
//! Texts are of a vocabulary of 20,000 words in which the n-th word is used as often as 1/n, so that few words are
//! in nearly everything and most are rare, as in any language.

use std::time::Duration;

use rowhouse::events::EventType;

use crate::{
    Ground,
    load::{Load, Outcome, Until},
    service::Service,
    tenants::grow,
};

const DATABASE: &str = "search";
const SETTINGS: [(&str, &str); 4] = [
    ("TENANCY_SPARE_SCHEMAS", "0"),
    ("TENANCY_SPARE_SCHEMAS_LOW", "0"),
    ("DATABASE_SECONDS_PER_MINUTE", "0"),
    ("LIMIT_CONCURRENT", "0"),
];
const WORDS: i32 = 20_000;
const TASKS: i32 = 100_000;
const OTHERS: i32 = 20_000;
const EVENTS: i32 = 1_000_000;
const WARMING: Until = Until::Elapsed(Duration::from_secs(2));
const ROUND: Until = Until::Elapsed(Duration::from_secs(4));
/// Medians in milliseconds that are to be kept under.
const SEARCH_GOAL: f64 = 10.0;
const ACTIVITY_GOAL: f64 = 20.0;

/// The n-th word: syllables for the digits of n, so that words begin alike, and are of like letters.
const WORD: &str = "(select string_agg((array['ba','con','de','ri','lan','mo','ter','pes'])[1 + (((n * 7919) >> (3 * k)) & 7)], \
     '' order by k) from generate_series(0, 4) as k)";

/// So many words, from many to few who use them.
fn text(least: i32, most: i32) -> String {
    format!(
        "array_to_string(array(select v.words[floor(power({WORDS}, random()))::int] \
         from generate_series(1, {least} + floor(random() * {})::int + 0 * i) as k), ' ')",
        most - least + 1
    )
}

/// An id as the service gives them, which grows with `i`.
fn id(of: &str) -> String {
    format!(
        "(lpad(to_hex(1767225600000 + i::bigint * 1000), 12, '0') || '7' || lpad(to_hex(i & 4095), 3, '0') || '8' \
         || substr(md5('{of}' || i), 1, 15))::uuid"
    )
}

const TIME: &str = "to_timestamp(1767225600 + i)";

pub async fn run(ground: &Ground) -> anyhow::Result<()> {
    eprintln!("making {TASKS} tasks, {OTHERS} comments, {OTHERS} messages and {EVENTS} events");
    let mut tenants = Vec::new();
    grow(ground, DATABASE, &mut tenants, 1).await?;
    let tenant = &tenants[0];
    fill(ground, &tenant.schema).await?;
    ground.client(DATABASE).await?.batch_execute("checkpoint").await?;
    let words = words(ground, &tenant.schema).await?;
    let word = |n: usize| words[n - 1].as_str();
    let (rare, common) = (word(15_000), word(3));
    let middle = word(60);
    // Two letters changed places.
    let slip = |word: &str| format!("{}{}{}{}", &word[..3], &word[4..5], &word[3..4], &word[5..]);
    let kinds = [
        ("a rare word", vec![rare.to_owned(), word(9_000).to_owned()]),
        ("a word that is in one thing of a hundred", vec![middle.to_owned(), word(90).to_owned()]),
        ("a word that is nearly everywhere", vec![common.to_owned(), word(1).to_owned()]),
        ("two words", vec![format!("{middle} {common}"), format!("{} {}", word(200), word(30))]),
        ("two letters", vec![rare[..2].to_owned(), common[..2].to_owned()]),
        ("three letters", vec![rare[..3].to_owned(), middle[..3].to_owned()]),
        ("a slip", vec![slip(rare), slip(word(500))]),
        (
            "three words, the third with a slip",
            vec![format!("{} {} {}", word(20), word(40), slip(word(200)))],
        ),
        ("a slip in a word of one thing in a hundred", vec![slip(middle), slip(word(90))]),
        ("nothing to be found", vec!["zzyzx".into(), "qqqq wwww".into()]),
    ];
    let service = Service::start(ground, DATABASE, &["--web-only"], &SETTINGS).await?;
    println!("{:<56} {:>9} {:>9}", "search, 1 connection", "p50 ms", "p99 ms");
    let mut requests = Vec::new();
    let mut worst = 0.0_f64;
    for (what, searches) in kinds {
        let of_kind: Vec<_> = searches
            .iter()
            .map(|q| tenant.ask(&format!("/api/v1/search?q={}", q.replace(' ', "%20"))))
            .collect();
        requests.extend(of_kind.clone());
        let outcome = measure(Load::new(service.address, of_kind, 1, ROUND)).await?;
        worst = worst.max(outcome.p50);
        tell(what, &outcome);
    }
    let all = measure(Load::new(service.address, requests, 1, ROUND)).await?;
    tell("all of these", &all);
    let client = ground.client(DATABASE).await?;
    let one = |column: &str, order: &str| {
        format!(
            "select {column} from {}.events where data ? 'project_id' order by id {order} limit 1",
            tenant.schema
        )
    };
    let project: String = client.query_one(&one("data ->> 'project_id'", "asc"), &[]).await?.try_get(0)?;
    let first: uuid::Uuid = client
        .query_one(&format!("select id from {}.events order by id offset 1000 limit 1", tenant.schema), &[])
        .await?
        .try_get(0)?;
    let deep = rowhouse::page::Cursor::from(first);
    println!("{:<56} {:>9} {:>9}", "activity, 1 connection", "p50 ms", "p99 ms");
    let mut slowest = 0.0_f64;
    for path in [
        "/activity?".to_owned(),
        format!("/activity?cursor={}&", deep.as_ref()),
        format!("/activity?type={}&", EventType::ProjectDeleted),
        format!("/projects/{project}/activity?"),
        format!("/projects/{project}/activity?cursor={}&", deep.as_ref()),
    ] {
        let asked = vec![tenant.ask(&format!("/api/v1{path}limit=20"))];
        let outcome = measure(Load::new(service.address, asked, 1, ROUND)).await?;
        slowest = slowest.max(outcome.p50);
        tell(path.split(['=', '?']).next().unwrap_or_default(), &outcome);
    }
    println!(
        "\nsearch, median of the mix: {:.1} ms, of the slowest kind: {worst:.1} ms; the goal is {SEARCH_GOAL} ms",
        all.p50
    );
    println!("activity, slowest median: {slowest:.1} ms; the goal is {ACTIVITY_GOAL} ms");
    Ok(())
}

async fn measure(load: Load) -> anyhow::Result<Outcome> {
    load.until(WARMING).run().await?;
    load.run().await
}

fn tell(what: &str, outcome: &Outcome) {
    println!("  {what:<54} {:>9.2} {:>9.2}", outcome.p50, outcome.p99);
}

/// The vocabulary, the most used word first.
async fn words(ground: &Ground, schema: &str) -> anyhow::Result<Vec<String>> {
    let client = ground.client(DATABASE).await?;
    let sql = format!("select array_agg(word order by n) from {schema}.bench_words");
    Ok(client.query_one(&sql, &[]).await?.try_get(0)?)
}

/// Fills the organization past the service, which would take hours.
async fn fill(ground: &Ground, schema: &str) -> anyhow::Result<()> {
    let client = ground.client(DATABASE).await?;
    let of_project = "(select array_agg(id) as ids from projects) as p, \
         (select array_agg(word order by n) as words from bench_words) as v";
    let project = "p.ids[1 + i % array_length(p.ids, 1)]";
    let statements = [
        format!("set search_path to {schema}, extensions"),
        format!(
            "create table bench_words as select n, {WORD} || case when n % 3 = 0 then '' else 'er' end as word \
             from generate_series(1, {WORDS}) as n"
        ),
        format!(
            "insert into tasks (id, project_id, title, description, status, priority, created_by, created_at, updated_at) \
             select {}, {project}, {}, {}, 'todo', 'medium', {project}, {TIME}, {TIME} \
             from generate_series(1, {TASKS}) as i, {of_project}",
            id("task"),
            text(3, 8),
            text(25, 35)
        ),
        format!(
            "insert into comments (id, task_id, author_id, body, created_at, updated_at) \
             select {}, t.ids[i], t.ids[i], {}, {TIME}, {TIME} from generate_series(1, {OTHERS}) as i, \
             (select array_agg(id) as ids from tasks) as t, \
             (select array_agg(word order by n) as words from bench_words) as v",
            id("comment"),
            text(15, 30)
        ),
        format!(
            "insert into messages (id, project_id, number, author_id, body, created_at, updated_at) \
             select {}, {project}, i, {project}, {}, {TIME}, {TIME} \
             from generate_series(1, {OTHERS}) as i, {of_project}",
            id("message"),
            text(15, 30)
        ),
        format!(
            "insert into events (id, position, occurred_at, type, schema_version, actor_kind, resource_id, data, \
             changes) select {}, 1000000 + i, {TIME}, \
             (array['task.created', 'task.updated', 'task.completed', 'comment.created', 'message.created'])[1 + i % 5], \
             1, 'system', md5((i % 100000)::text)::uuid, \
             jsonb_build_object('project_id', {project}, 'title', 'Task ' || i, 'description', repeat('word ', 20)), \
             jsonb_build_object('status', jsonb_build_object('before', 'todo', 'after', 'done')) \
             from generate_series(1, {EVENTS}) as i, {of_project}",
            id("event")
        ),
        "vacuum analyze projects, tasks, comments, messages, events".into(),
    ];
    for statement in statements {
        client.batch_execute(&statement).await?;
    }
    Ok(())
}
