//! Lists: pages, cursors that meet every row once, and totals that say how far they were counted.

use std::collections::BTreeSet;

use rowhouse::page::ListCursor;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{Client, Team, TestApp};

const SORTS: [&str; 8] =
    ["created_at", "updated_at", "title", "status", "impact", "position", "due_date", "completed_at"];

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

fn ids(page: &Value) -> Vec<String> {
    page["data"].as_array().unwrap().iter().map(|row| text(&row["id"]).to_owned()).collect()
}

/// All ids of a list, going from page to page by cursor.
async fn walk(client: &Client, list: &str) -> Vec<String> {
    let (mut found, mut path) = (Vec::new(), list.to_owned());
    loop {
        let page = client.get(&path).await.expect(200);
        found.extend(ids(&page));
        let Some(next) = page["next_cursor"].as_str() else { return found };
        assert!(!ids(&page).is_empty() && found.len() < 1000, "it goes on and on: {path}");
        path = format!("{list}&cursor={next}");
    }
}

/// The name of an organization's schema.
async fn schema(team: &Team) -> String {
    let sql = format!(
        "select 'tenant_' || replace(schema_id::text, '-', '') from platform.organizations where id = '{}'",
        team.id
    );
    team.app.texts(&sql).await.remove(0)
}

/// Tasks with many ties and many without a value, written past the service. Ids are made of the time.
async fn many_tasks(team: &Team, count: u32) -> Value {
    let project = team.project("Large").await;
    let sql = format!(
        "insert into {}.tasks (id, project_id, title, status, priority, created_by, due_date, impact, position, \
         completed_at, created_at, updated_at) \
         select (lpad(to_hex((extract(epoch from at) * 1000)::bigint), 12, '0') || '7' \
         || substr(md5(n::text), 1, 3) || '8' || substr(md5(n::text), 4, 15))::uuid, \
         '{}', 'Title ' || n % 3, case when n % 4 = 0 then 'done' else 'todo' end, \
         case when n % 5 = 0 then 'low' else 'high' end, '{}', \
         case when n % 3 > 0 then date '2026-03-01' + n % 5 end, n % 7 + 0.25, n % 6 + 0.5, \
         case when n % 4 = 0 then timestamptz '2026-02-01 00:00:00.123451' + n % 8 * interval '1 microsecond' end, \
         at, now() from (select n, timestamptz '2026-01-01' + n % 9 * interval '1.5 seconds' as at \
         from generate_series(1, {count}) as n) as made",
        schema(team).await,
        text(&project["id"]),
        team.founder.id
    );
    team.app.sql(&sql).await;
    project
}

#[tokio::test]
async fn a_walk_by_cursor_meets_every_row_once_in_every_order() {
    let app = TestApp::shared();
    let team = app.team().await;
    let project = many_tasks(&team, 60).await;
    let project = text(&project["id"]);
    // With conditions and without they are read in different ways.
    for filter in [String::new(), format!("&project_id={project}")] {
        for sort in SORTS {
            for sort in [sort.to_owned(), format!("-{sort}")] {
                let at_once = team.owner.get(&format!("/tasks?page_size=100&sort={sort}{filter}")).await;
                let at_once = at_once.expect(200);
                let expected = ids(&at_once);
                assert_eq!((expected.len(), &at_once["next_cursor"]), (60, &Value::Null), "{sort}");
                for page_size in [1, 7, 59, 60] {
                    let list = format!("/tasks?page_size={page_size}&sort={sort}{filter}");
                    assert_eq!(walk(&team.owner, &list).await, expected, "{list}");
                }
                let mut by_page = Vec::new();
                for page in 1..=9 {
                    let list = format!("/tasks?page={page}&page_size=7&sort={sort}{filter}");
                    by_page.extend(ids(&team.owner.get(&list).await.expect(200)));
                }
                assert_eq!(by_page, expected, "{sort} by page");
                let column = sort.trim_start_matches('-');
                let values: Vec<&Value> =
                    at_once["data"].as_array().unwrap().iter().map(|task| &task[column]).collect();
                let first_without = values.iter().position(|value| value.is_null()).unwrap_or(values.len());
                assert!(values[first_without..].iter().all(|value| value.is_null()), "{sort}: {values:?}");
                let in_order = values[..first_without].windows(2).all(|two| {
                    let (one, other) = (two[0], two[1]);
                    let smaller = match (one.as_f64(), other.as_f64()) {
                        (Some(one), Some(other)) => one <= other,
                        _ => format!("{one}") <= format!("{other}"),
                    };
                    smaller != sort.starts_with('-') || one == other
                });
                assert!(in_order, "{sort}: {values:?}");
            }
        }
    }
}

#[tokio::test]
async fn filters_that_leave_one_value_or_none_of_what_is_sorted_by_change_nothing() {
    let app = TestApp::shared();
    let team = app.team().await;
    many_tasks(&team, 60).await;
    for (filter, rows) in
        [("status=done", 15), ("status=todo", 45), ("due_after=2026-03-03", 24), ("due_before=2020-01-01", 0)]
    {
        for sort in SORTS {
            for sort in [sort.to_owned(), format!("-{sort}")] {
                let list = format!("/tasks?{filter}&page_size=4&sort={sort}");
                let found = walk(&team.owner, &list).await;
                let different: BTreeSet<&String> = found.iter().collect();
                assert_eq!((found.len(), different.len()), (rows, rows), "{list}");
            }
        }
    }
}

#[tokio::test]
async fn many_rows_that_are_the_last_in_some_order_are_listed_as_the_order_says() {
    let app = TestApp::shared();
    let team = app.team().await;
    many_tasks(&team, 16_200).await;
    let schema = schema(&team).await;
    // The oldest are urgent, were changed first and were due before the others.
    let sql = format!(
        "update {schema}.tasks set priority = 'urgent', updated_at = created_at, \
         due_date = date '2025-01-01' + (impact * 4)::int, \
         title = case when title = 'Title 0' then 'Last' else title end \
         where id in (select id from {schema}.tasks order by id limit 10500)"
    );
    app.sql(&sql).await;
    app.sql(&format!(
        "insert into {schema}.task_assignees (task_id, user_id) select id, '{}' from {schema}.tasks \
         where priority = 'urgent'",
        team.founder.id
    ))
    .await;
    let by = format!("created_by={}", team.founder.id);
    let of = format!("assigned_to={}", team.founder.id);
    let of_and_by = format!("{of}&{by}");
    let soon = "due_before=2025-02-01";
    let soon_and_urgent = format!("{soon}&priority=urgent");
    let from_a_day = "due_after=2025-01-10&due_before=2026-03-03";
    let (urgent, due) = ("priority = 'urgent'", "due_date <= '2025-02-01'");
    for (filter, condition) in [
        ("priority=urgent", urgent),
        (by.as_str(), "true"),
        (of.as_str(), urgent),
        (of_and_by.as_str(), urgent),
        ("search=titl", "title like 'Title%'"),
        (soon, due),
        (soon_and_urgent.as_str(), due),
        (from_a_day, "due_date between '2025-01-10' and '2026-03-03'"),
    ] {
        for sort in SORTS {
            for (sort, direction) in [(sort.to_owned(), "asc"), (format!("-{sort}"), "desc")] {
                let column = sort.trim_start_matches('-');
                let expected = app
                    .texts(&format!(
                        "select id::text from {schema}.tasks where {condition} \
                         order by {column} {direction} nulls last, tasks.id {direction} limit 4600"
                    ))
                    .await;
                let list = format!("/tasks?{filter}&sort={sort}&page_size=100");
                let first = team.owner.get(&list).await.expect(200);
                assert_eq!(ids(&first), expected[..100], "{list}");
                let path = format!("{list}&cursor={}", text(&first["next_cursor"]));
                assert_eq!(ids(&team.owner.get(&path).await.expect(200)), expected[100..200], "{path}");
                let path = format!("/tasks?{filter}&sort={sort}&page_size=50&page=5");
                assert_eq!(ids(&team.owner.get(&path).await.expect(200)), expected[200..250], "{path}");
                if !["due_date", "completed_at"].contains(&column) {
                    continue;
                }
                // Among those without a value, or about where they begin.
                for page in [53, 54, 90] {
                    let path = format!("/tasks?{filter}&sort={sort}&page_size=50&page={page}");
                    let found = team.owner.get(&path).await.expect(200);
                    assert_eq!(ids(&found), expected[page * 50 - 50..page * 50], "{path}");
                    let path = format!("{list}&cursor={}", text(&found["next_cursor"]));
                    let found = team.owner.get(&path).await.expect(200);
                    assert_eq!(ids(&found), expected[page * 50..page * 50 + 100], "{path}");
                }
            }
        }
    }
}

#[tokio::test]
async fn rows_that_come_meanwhile_do_not_disturb_a_walk() {
    let app = TestApp::shared();
    let team = app.team().await;
    let project = many_tasks(&team, 30).await;
    let list = "/tasks?page_size=10&sort=-created_at";
    let first = team.owner.get(list).await.expect(200);
    for n in 0..5 {
        team.task(&project, &format!("New {n}")).await;
    }
    let path = format!("{list}&cursor={}", text(&first["next_cursor"]));
    let second = team.owner.get(&path).await.expect(200);
    assert_eq!(
        (&second["page"], &second["page_size"], &second["total"]),
        (&Value::Null, &json!(10), &json!(35))
    );
    // By page, those that came have moved the others on.
    let by_page = team.owner.get(&format!("{list}&page=2")).await.expect(200);
    assert!(ids(&by_page).iter().any(|id| ids(&first).contains(id)));
    assert!(!ids(&second).iter().any(|id| ids(&first).contains(id)));
    let third = team.owner.get(&format!("{list}&cursor={}", text(&second["next_cursor"]))).await.expect(200);
    assert_eq!((ids(&third).len(), &third["next_cursor"]), (10, &Value::Null));
}

#[tokio::test]
async fn the_row_that_a_cursor_was_made_from_may_be_gone() {
    let app = TestApp::shared();
    let team = app.team().await;
    let project = team.project("One").await;
    let mut tasks = Vec::new();
    for title in ["a", "b", "c", "d"] {
        tasks.push(team.task(&project, title).await);
    }
    let list = "/tasks?page_size=2&sort=title";
    let first = team.owner.get(list).await.expect(200);
    team.owner.delete(&format!("/tasks/{}", text(&tasks[1]["id"]))).await.expect(204);
    let second = team.owner.get(&format!("{list}&cursor={}", text(&first["next_cursor"]))).await.expect(200);
    assert_eq!(ids(&second), [text(&tasks[2]["id"]), text(&tasks[3]["id"])]);
}

#[tokio::test]
async fn a_cursor_that_does_not_belong_here_is_refused() {
    let app = TestApp::shared();
    let team = app.team().await;
    many_tasks(&team, 10).await;
    let refused = async |query: String| {
        let error = team.owner.get(&format!("/tasks?{query}")).await.refused(400, "VALIDATION_ERROR");
        assert_eq!(error["fields"][0]["field"], "cursor", "{query}: {error}");
    };
    let page = team.owner.get("/tasks?page_size=2&sort=title").await.expect(200);
    let cursor = text(&page["next_cursor"]);
    refused(format!("sort=title&page=1&cursor={cursor}")).await;
    for sort in ["-title", "status", "due_date"] {
        refused(format!("sort={sort}&cursor={cursor}")).await;
    }
    refused(format!("cursor={cursor}")).await;
    let id = Uuid::now_v7().to_string();
    let id = id.as_str();
    // Of a filtered list they are read in another way.
    for filter in ["", "&priority=high"] {
        for (sort, value, id) in [
            ("created_at", Some("soon"), id),
            ("created_at", Some("2026-99-01"), id),
            ("created_at", Some("999999-01-01"), id),
            ("created_at", None, "x"),
            ("due_date", Some("x"), id),
            ("due_date", Some("2026-03-01"), "x"),
            ("due_date", None, "x"),
            ("impact", Some("ten"), id),
            ("impact", Some("1e999999"), id),
            ("title", Some("a"), ""),
            ("title", Some("a\0"), id),
        ] {
            let cursor = ListCursor::new(sort, value, id);
            refused(format!("sort={sort}{filter}&cursor={cursor}")).await;
        }
    }
    for cursor in ["", "x", "%00", "e30", "bnVsbA", "WzEsMiwzXQ"] {
        refused(format!("sort=title&cursor={cursor}")).await;
    }
}

#[tokio::test]
async fn a_total_is_counted_to_ten_thousand_and_pages_end_there() {
    let app = TestApp::shared();
    let team = app.team().await;
    many_tasks(&team, 10_050).await;
    for filter in ["", "&created_by=", "&status=todo", "&priority=low"] {
        let filter = filter.replace("created_by=", &format!("created_by={}", team.founder.id));
        let list = format!("/tasks?page_size=100&sort=due_date{filter}");
        let page = team.owner.get(&list).await.expect(200);
        let expected = match filter.as_str() {
            "&status=todo" => (7538, true),
            "&priority=low" => (2010, true),
            _ => (10_000, false),
        };
        assert_eq!(
            (&page["total"], &page["total_is_exact"]),
            (&json!(expected.0), &json!(expected.1)),
            "{filter}"
        );
        // A third has no day and comes last; the border is on a page.
        let (mut by_page, mut rows_of_pages) = (BTreeSet::new(), 0);
        for number in [66, 67, 68, 100] {
            let page = team.owner.get(&format!("{list}&page={number}")).await.expect(200);
            let rows = (expected.0 - (number - 1) * 100).clamp(0, 100) as usize;
            assert_eq!(ids(&page).len(), rows, "{filter} {number}");
            by_page.extend(ids(&page));
            rows_of_pages += rows;
        }
        assert_eq!(by_page.len(), rows_of_pages, "{filter}: a row is on two pages");
    }
    let last = team.owner.get("/tasks?page_size=100&page=100").await.expect(200);
    let beyond = format!("/tasks?page_size=100&cursor={}", text(&last["next_cursor"]));
    assert_eq!(ids(&team.owner.get(&beyond).await.expect(200)).len(), 50);
    for query in ["page_size=100&page=101", "page=501", "page=4294967295", "page_size=1&page=10001"] {
        let error = team.owner.get(&format!("/tasks?{query}")).await.refused(400, "VALIDATION_ERROR");
        assert_eq!(error["fields"][0]["field"], "page", "{query}");
    }
}

#[tokio::test]
async fn lists_in_one_order_have_cursors_too() {
    let app = TestApp::shared();
    let team = app.team().await;
    team.enable("operations").await;
    for n in 0..5 {
        let body = json!({"name": format!("Key {n}"), "scopes": ["projects:read"]});
        team.owner.post("/api-keys", body).await.expect(201);
        let body = json!({"title": format!("Update {n}"), "body": "Read this"});
        team.owner.post("/updates", body).await.expect(201);
        team.join(rowhouse::auth::Role::Viewer).await;
    }
    let members = team.path("/members?role=viewer");
    for list in ["/api-keys?ended=false", "/updates?type=info", "/updates?sort=expires_at", &members] {
        let all = team.owner.get(&format!("{list}&page_size=100")).await.expect(200);
        let key = if list == members { "user_id" } else { "id" };
        let of = |page: &Value| -> Vec<Value> {
            page["data"].as_array().unwrap().iter().map(|row| row[key].clone()).collect()
        };
        let (mut found, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = team.owner.get(&format!("{list}&page_size=2{cursor}")).await.expect(200);
            found.extend(of(&page));
            let Some(next) = page["next_cursor"].as_str() else { break };
            cursor = format!("&cursor={next}");
        }
        assert_eq!((found.len(), &found), (5, &of(&all)), "{list}");
    }
}
