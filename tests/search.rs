//! /search: what is found, in which order, by whom.

use rowhouse::auth::Role;
use serde_json::{Value, json};

use crate::support::{Client, Team, TestApp};

/// The answer to a search; `more` are parameters such as `&type=task`.
async fn search(client: &Client, q: &str, more: &str) -> Value {
    let q: String = url::form_urlencoded::byte_serialize(q.as_bytes()).collect();
    client.get(&format!("/search?q={q}{more}")).await.expect(200)
}

fn titles(found: &Value) -> Vec<&str> {
    found["data"].as_array().unwrap().iter().map(|hit| hit["title"].as_str().unwrap()).collect()
}

fn types(found: &Value) -> Vec<&str> {
    let mut types: Vec<&str> =
        found["data"].as_array().unwrap().iter().map(|hit| hit["type"].as_str().unwrap()).collect();
    types.sort();
    types
}

fn id(object: &Value) -> &str {
    object["id"].as_str().unwrap()
}

async fn task(team: &Team, project: &Value, title: &str, description: &str) -> Value {
    let new = json!({"project_id": project["id"], "title": title, "description": description});
    team.owner.post("/tasks", new).await.expect(201)
}

#[tokio::test]
async fn titles_come_before_texts_and_whole_words_before_beginnings() {
    let app = TestApp::shared();
    let team = app.team().await;
    let project = team.project("House").await;
    task(&team, &project, "In the text", "Where the harbour is").await;
    task(&team, &project, "Harbour, older", "").await;
    task(&team, &project, "Harbour, newer", "").await;
    task(&team, &project, "Begins in the text", "All the harbours").await;
    task(&team, &project, "Harbourmaster", "").await;
    let found = search(&team.owner, "harbour", "").await;
    let order = ["Harbour, newer", "Harbour, older", "Harbourmaster", "In the text", "Begins in the text"];
    assert_eq!(titles(&found), order);
    let ranks: Vec<i64> =
        found["data"].as_array().unwrap().iter().map(|hit| hit["rank"].as_i64().unwrap()).collect();
    assert_eq!(ranks, [0, 0, 1, 2, 3]);
    let first = search(&team.owner, "HARBOUR", "&limit=2").await;
    assert_eq!(titles(&first), order[..2]);
    assert_eq!(first["has_more"], true);
    assert_eq!(found["has_more"], false);
    // All of the words must be there, each may be a beginning.
    assert_eq!(titles(&search(&team.owner, "new harb", "").await), ["Harbour, newer"]);
    assert!(titles(&search(&team.owner, "harbour zeppelin", "").await).is_empty());
}

#[tokio::test]
async fn everything_that_was_written_down_is_found() {
    let app = TestApp::shared();
    let team = app.team().await;
    let project = team.project("Quokka house").await;
    let elsewhere = team.project("Elsewhere").await;
    let task = task(&team, &project, "Feed the quokka", "").await;
    let comment = json!({"body": "The quokka has eaten"});
    let comment = team.owner.post(&format!("/tasks/{}/comments", id(&task)), comment).await.expect(201);
    let message = json!({"body": "Who saw the quokka?"});
    let messages = format!("/projects/{}/messages", id(&project));
    let message = team.owner.post(&messages, message).await.expect(201);
    let found = search(&team.owner, "quokka", "").await;
    assert_eq!(types(&found), ["comment", "message", "project", "task"]);
    for hit in found["data"].as_array().unwrap() {
        assert_eq!(hit["project_id"], project["id"]);
        assert_eq!(hit["project_name"], "Quokka house");
        let path = hit["path"].as_str().unwrap().strip_prefix("/api/v1").unwrap();
        team.owner.get(path).await.expect(200);
    }
    assert_eq!(types(&search(&team.owner, "quokka", "&type=task,comment").await), ["comment", "task"]);
    let within = |project: &Value| format!("&project_id={}", id(project));
    assert_eq!(types(&search(&team.owner, "quokka", &within(&project)).await).len(), 4);
    assert!(types(&search(&team.owner, "quokka", &within(&elsewhere)).await).is_empty());
    // What is deleted is not found any more.
    team.owner.delete(&format!("/comments/{}", id(&comment))).await.expect(204);
    team.owner.delete(&format!("/messages/{}", id(&message))).await.expect(204);
    assert_eq!(types(&search(&team.owner, "quokka", "").await), ["project", "task"]);
    team.owner.delete(&format!("/projects/{}", id(&project))).await.expect(204);
    assert!(types(&search(&team.owner, "quokka", "").await).is_empty());
}

#[tokio::test]
async fn a_misspelled_word_is_found_if_one_slip_away() {
    let app = TestApp::shared();
    let team = app.team().await;
    let project = team.project("Words").await;
    task(&team, &project, "Write the landing page", "").await;
    task(&team, &project, "Another", "A page for the landing").await;
    for typed in ["lanidng", "landinng", "lading page", "landimg"] {
        let found = search(&team.owner, typed, "").await;
        assert_eq!(titles(&found), ["Write the landing page", "Another"], "{typed}");
        assert_eq!(found["meant"], json!(["landing"]));
        let first = &found["data"][0];
        assert_eq!(first["highlighted_title"].as_str().unwrap().matches("<mark>landing</mark>").count(), 1);
        assert_eq!(first["rank"], 4);
    }
    // While the word is still being typed.
    let found = search(&team.owner, "lanidn", "").await;
    assert_eq!((titles(&found).len(), &found["meant"]), (2, &json!(["landing"])));
    // What is there as it was typed comes first, and does not hide what may have been meant.
    task(&team, &project, "Lading of ships", "").await;
    let found = search(&team.owner, "lading", "").await;
    assert_eq!(titles(&found), ["Lading of ships", "Write the landing page", "Another"]);
    assert_eq!(found["meant"], json!(["landing"]));
    assert!(titles(&search(&team.owner, "lqndimg", "").await).is_empty());
}

#[tokio::test]
async fn every_word_that_nothing_has_is_corrected() {
    let app = TestApp::shared();
    let team = app.team().await;
    let project = team.project("More words").await;
    for n in 0..3 {
        task(&team, &project, &format!("Write the landing page {n}"), "").await;
    }
    let found = search(&team.owner, "write the landing pgae", "").await;
    assert_eq!((titles(&found).len(), &found["meant"]), (3, &json!(["page"])));
    let found = search(&team.owner, "wriet the lanidng pgae", "").await;
    assert_eq!((titles(&found).len(), &found["meant"]), (3, &json!(["landing", "page", "write"])));
    // Words that many things have are not taken for others.
    let found = search(&team.owner, "landing zeppelin", "").await;
    assert_eq!((titles(&found).len(), &found["meant"]), (0, &json!([])));
}

#[tokio::test]
async fn two_slips_are_forgiven_in_a_long_word() {
    let app = TestApp::shared();
    let team = app.team().await;
    let project = team.project("Long words").await;
    task(&team, &project, "Maintenance", "Book the accommodation").await;
    for (typed, meant) in [("maintainance", "maintenance"), ("accomodaton", "accommodation")] {
        let found = search(&team.owner, typed, "").await;
        assert_eq!((titles(&found), &found["meant"]), (vec!["Maintenance"], &json!([meant])));
    }
}

/// Tasks that are older than all that the service made.
async fn older_tasks(team: &Team, project: &Value, many: usize) {
    let (schema, project, person) = (team.schema().await, id(project), &team.founder.id);
    let sql = format!(
        "insert into {schema}.tasks (id, project_id, title, status, priority, created_by, created_at, updated_at) \
         select ('00000000-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid, '{project}', 'Invoice ' || n, 'todo', \
             'medium', '{person}', '2020-01-01'::timestamptz + n * interval '1 second', '2020-01-01' \
         from generate_series(1, {many}) as n"
    );
    team.app.sql(&sql).await;
}

#[tokio::test]
async fn of_very_many_titles_the_newest_come_first() {
    let app = TestApp::shared();
    let team = app.team().await;
    let project = team.project("Paid").await;
    older_tasks(&team, &project, 600).await;
    task(&team, &project, "Invoice newest", "").await;
    let within = format!("&project_id={}", id(&project));
    for more in ["", &within] {
        let found = search(&team.owner, "invoice", more).await;
        assert_eq!(titles(&found)[..3], ["Invoice newest", "Invoice 600", "Invoice 599"]);
        assert_eq!(found["data"][0]["rank"], 0);
    }
}

#[tokio::test]
async fn of_more_titles_than_are_read_the_newest_come_first() {
    let app = TestApp::shared();
    let team = app.team().await;
    let project = team.project("Paid").await;
    older_tasks(&team, &project, 2_500).await;
    task(&team, &project, "Invoice newest", "").await;
    let (schema, within) = (team.schema().await, format!("&project_id={}", id(&project)));
    // The newest without the word, but for a few and then but for one, so that the first look does not find enough.
    for (but, seen) in [
        ("right(id::text, 12)::bigint % 40 = 0", ["Invoice 2480", "Invoice 2440", "Invoice 2400"]),
        ("false", ["Invoice 2300", "Invoice 2299", "Invoice 2298"]),
    ] {
        let sql = format!(
            "update {schema}.tasks set title = 'Other ' || right(id::text, 12) \
             where id > '00000000-0000-7000-8000-000000002300' and title <> 'Invoice newest' and not ({but})"
        );
        team.app.sql(&sql).await;
        for more in ["", &within] {
            let found = search(&team.owner, "invoice", more).await;
            assert_eq!(titles(&found)[0], "Invoice newest");
            assert_eq!(titles(&found)[1..4], seen);
        }
    }
}

#[tokio::test]
async fn titles_are_shown_to_who_may_read_them() {
    let app = TestApp::shared();
    let team = app.team().await;
    let project = team.project("Okapi house").await;
    let task = task(&team, &project, "Okapi task", "").await;
    let comments = format!("/tasks/{}/comments", id(&task));
    team.owner.post(&comments, json!({"body": "Okapi"})).await.expect(201);
    let person = team.join(Role::Viewer).await;
    let hit = async || search(&person.client, "okapi", "&type=comment").await["data"][0].clone();
    let seen = hit().await;
    assert_eq!((&seen["title"], &seen["project_name"]), (&json!("Okapi task"), &json!("Okapi house")));
    let denied = json!({"denials": ["tasks:read", "projects:read"]});
    team.owner.patch(&team.path(&format!("/members/{}", person.id)), denied).await.expect(200);
    let seen = hit().await;
    assert_eq!((&seen["title"], &seen["highlighted_title"]), (&json!(""), &json!("")));
    assert_eq!((&seen["project_name"], &seen["excerpt"]), (&Value::Null, &json!("<mark>Okapi</mark>")));
}

#[tokio::test]
async fn highlights_are_safe_to_show_as_html() {
    let app = TestApp::shared();
    let team = app.team().await;
    let project = team.project("Safe").await;
    let title = "<script>alert(1)</script> & <b>walrus</b>";
    let text = format!("{}<img src=x onerror=alert('walrus')>", "before ".repeat(60));
    task(&team, &project, title, &text).await;
    let found = search(&team.owner, "walrus", "").await;
    let hit = &found["data"][0];
    assert_eq!(hit["title"], title);
    assert_eq!(
        hit["highlighted_title"],
        "&lt;script&gt;alert(1)&lt;/script&gt; &amp; &lt;b&gt;<mark>walrus</mark>&lt;/b&gt;"
    );
    let excerpt = hit["excerpt"].as_str().unwrap();
    assert!(
        excerpt.starts_with('…') && excerpt.ends_with("alert(&#39;<mark>walrus</mark>&#39;)&gt;"),
        "{excerpt}"
    );
    let found = search(&team.owner, "<script>", "").await;
    assert!(
        found["data"][0]["highlighted_title"].as_str().unwrap().starts_with("&lt;<mark>script</mark>&gt;")
    );
}

#[tokio::test]
async fn nobody_finds_what_they_may_not_read() {
    let app = TestApp::shared();
    let (team, rival) = (app.team().await, app.team().await);
    let project = team.project("Okapi").await;
    let task = task(&team, &project, "Okapi", "").await;
    let comments = format!("/tasks/{}/comments", id(&task));
    team.owner.post(&comments, json!({"body": "Okapi"})).await.expect(201);
    let person = team.join(Role::Viewer).await;
    assert_eq!(types(&search(&person.client, "okapi", "").await), ["comment", "project", "task"]);
    let denied = json!({"denials": ["comments:read"]});
    team.owner.patch(&team.path(&format!("/members/{}", person.id)), denied).await.expect(200);
    assert_eq!(types(&search(&person.client, "okapi", "").await), ["project", "task"]);
    assert!(types(&search(&person.client, "okapi", "&type=comment").await).is_empty());
    assert!(types(&search(&rival.owner, "okapi", "").await).is_empty());
    assert!(types(&search(&rival.owner, "okapy", "").await).is_empty());
    let theirs = format!("&project_id={}", id(&project));
    assert!(types(&search(&rival.owner, "okapi", &theirs).await).is_empty());
}

#[tokio::test]
async fn whatever_is_typed_is_only_words() {
    let app = TestApp::shared();
    let team = app.team().await;
    team.project("Plain words, 100%").await;
    for typed in [
        "words' or 1=1 --",
        "words:*|!a",
        "'; drop table tasks; --",
        "\\words\\",
        "(words",
        "a & b | !c",
        "$1 %s %x",
    ] {
        search(&team.owner, typed, "").await;
    }
    assert_eq!(titles(&search(&team.owner, "'words' & \"plain\":*", "").await), ["Plain words, 100%"]);
    assert_eq!(titles(&search(&team.owner, "100%", "").await), ["Plain words, 100%"]);
    let refused = async |query: &str, field: &str| {
        let error = team.owner.get(&format!("/search?{query}")).await.refused(400, "VALIDATION_ERROR");
        assert_eq!(error["fields"][0]["field"], field, "{query}");
    };
    refused("", "q").await;
    refused("q=", "q").await;
    refused("q=%21%21", "q").await;
    refused("q=%00", "q").await;
    refused(&format!("q={}", "a".repeat(201)), "q").await;
    refused("q=a+b+c+d+e+f+g+h+i+j+k", "q").await;
    refused("q=a&type=secret", "type").await;
    refused("q=a&limit=0", "limit").await;
    refused("q=a&limit=51", "limit").await;
    refused("q=a&project_id=x", "project_id").await;
}

#[tokio::test]
async fn words_of_every_script_are_found() {
    let app = TestApp::shared();
    let team = app.team().await;
    let project = team.project("Languages").await;
    task(&team, &project, "设计新的着陆页", "").await;
    task(&team, &project, "பக்கம் எழுது", "").await;
    task(&team, &project, "Décorer l’entrée", "").await;
    assert_eq!(titles(&search(&team.owner, "设计", "").await), ["设计新的着陆页"]);
    let found = search(&team.owner, "着陆页", "").await;
    assert_eq!(found["data"][0]["highlighted_title"], "设计新的<mark>着陆页</mark>");
    assert_eq!(titles(&search(&team.owner, "பக்கம்", "").await), ["பக்கம் எழுது"]);
    assert_eq!(titles(&search(&team.owner, "பக்", "").await), ["பக்கம் எழுது"]);
    assert_eq!(titles(&search(&team.owner, "DÉCORER", "").await), ["Décorer l’entrée"]);
}

#[tokio::test]
async fn of_words_that_are_everywhere_the_newest_are_found_and_titles_first() {
    let app = TestApp::shared();
    let team = app.team().await;
    let project = team.project("Many").await;
    task(&team, &project, "Gnu", "").await;
    for n in 0..30 {
        task(&team, &project, &format!("Number {n}"), "The gnus again").await;
    }
    let found = search(&team.owner, "gnu", "&limit=3").await;
    assert_eq!(titles(&found), ["Gnu", "Number 29", "Number 28"]);
    assert_eq!(found["has_more"], true);
}
