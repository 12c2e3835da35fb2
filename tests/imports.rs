//! /projects/imports, /tasks/imports: files whose lines become what is kept.

use std::fmt::Write;

use rowhouse::auth::Role;
use serde_json::{Value, json};

use crate::support::{Client, Team, TestApp, within};

fn id(object: &Value) -> &str {
    object["id"].as_str().unwrap()
}

/// Imports a file and waits for the end.
pub async fn import(team: &Team, resource: &str, name: &str, content: impl Into<reqwest::Body>) -> Value {
    import_with(team, resource, name, content, json!({})).await
}

pub async fn import_with(
    team: &Team,
    resource: &str,
    name: &str,
    content: impl Into<reqwest::Body>,
    more: Value,
) -> Value {
    let file = team.upload(name, content).await;
    let mut body = json!({"file_id": file["id"]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let answer = team.owner.post(&format!("/{resource}/imports"), body).await;
    let place = answer.header("location").trim_start_matches("/api/v1").to_owned();
    let queued = answer.expect(202);
    assert_eq!(place, format!("/imports/{}", id(&queued)));
    finished(&team.owner, &place, 120).await
}

/// How an import or export stands once it has come to its end.
pub async fn finished(client: &Client, place: &str, seconds: u64) -> Value {
    let state = || async { client.get(place).await.expect(200) };
    within(seconds, &format!("the end of {place}"), || async { !state().await["finished_at"].is_null() })
        .await;
    state().await
}

fn counts(import: &Value) -> [i64; 4] {
    ["created", "updated", "unchanged", "failed"].map(|name| import[name].as_i64().unwrap())
}

/// Lines, fields and codes of the errors.
fn errors(import: &Value) -> Vec<(i64, String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let errors = import["errors"].as_array().unwrap();
    errors.iter().map(|e| (e["line"].as_i64().unwrap(), text(&e["field"]), text(&e["code"]))).collect()
}

async fn tasks(team: &Team, query: &str) -> Vec<Value> {
    let page = team.owner.get(&format!("/tasks?page_size=100&sort=created_at&{query}")).await.expect(200);
    page["data"].as_array().unwrap().clone()
}

#[tokio::test]
async fn lines_become_tasks_with_all_they_say() {
    let app = TestApp::shared();
    let team = app.team().await;
    let ben = team.join(Role::Member).await;
    let project = team.project("Relaunch of all").await;
    let file = format!(
        "\u{feff}External ID;Project;Parent;Title;Description;Status;Priority;Assignees;Due date;Estimated hours;Impact\r\n\
         T-1;relaunch-of-all;;\"Write; and \"\"read\"\"\";\"two\nlines\";In progress;high;{};2026-12-01;6.5;12.5\r\n\
         T-2;{};T-1;Below;;done;;\"{}, {}\";;;30\r\n",
        ben.email,
        id(&project),
        ben.email,
        team.founder.id,
    );
    let done = import(&team, "tasks", "tasks.csv", file).await;
    assert_eq!((done["state"].as_str(), counts(&done)), (Some("done"), [2, 0, 0, 0]), "{done}");
    assert_eq!((&done["lines_total"], &done["lines_done"]), (&json!(2), &json!(2)));
    let made = tasks(&team, "").await;
    assert_eq!(made.len(), 2);
    let (one, two) = (&made[0], &made[1]);
    for (field, value) in [
        ("title", json!("Write; and \"read\"")),
        ("description", json!("two\nlines")),
        ("status", json!("in_progress")),
        ("priority", json!("high")),
        ("assignee_ids", json!([ben.id])),
        ("due_date", json!("2026-12-01")),
        ("estimated_hours", json!(6.5)),
        ("impact", json!(12.5)),
        ("external_id", json!("T-1")),
        ("created_by", json!(team.founder.id)),
    ] {
        assert_eq!(one[field], value, "{field}");
    }
    assert_eq!((&two["parent_id"], &two["status"]), (&one["id"], &json!("done")));
    assert_eq!(two["assignee_ids"].as_array().unwrap().len(), 2);
    let path = format!("/projects/{}", id(&project));
    assert_eq!(team.owner.get(&path).await.expect(200)["progress"], 30.0);
    // Told as if they were made by hand.
    let events = team.owner.get("/events?type=task.created").await.expect(200);
    let told: Vec<&Value> =
        events["data"].as_array().unwrap().iter().map(|event| &event["data"]["id"]).collect();
    assert!(told.contains(&&one["id"]) && told.contains(&&two["id"]), "{events}");
    let log = team.owner.get("/audit-log?action=task.created").await.expect(200);
    assert_eq!(log["data"].as_array().unwrap().len(), 2, "{log}");
}

#[tokio::test]
async fn a_second_import_of_a_file_changes_nothing_and_a_changed_line_one_task() {
    let app = TestApp::shared();
    let team = app.team().await;
    team.project("Home").await;
    let file = "external_id,project,title,impact\nA,home,One,10\nB,home,Two,20\nC,home,Three,30\n";
    assert_eq!(counts(&import(&team, "tasks", "a.csv", file).await), [3, 0, 0, 0]);
    let before = tasks(&team, "").await;
    assert_eq!(counts(&import(&team, "tasks", "a.csv", file).await), [0, 0, 3, 0]);
    assert_eq!(tasks(&team, "").await, before);
    // Only the columns that the file has are changed.
    let file = "external_id,status,title\nB,done,Two\n,,\nC,,Third\n";
    let done = import(&team, "tasks", "b.csv", file).await;
    assert_eq!(errors(&done), [(3, "title".into(), "required".into())], "{done}");
    let file = "external_id,status,title\nB,done,Two\nC,,Third\n";
    assert_eq!(counts(&import(&team, "tasks", "b.csv", file).await), [0, 2, 0, 0]);
    let after = tasks(&team, "").await;
    assert_eq!(
        (&after[0], &after[1]["status"], &after[1]["impact"]),
        (&before[0], &json!("done"), &json!(20.0))
    );
    assert_eq!(after[2]["title"], "Third");
    let events = team.owner.get("/events?type=task.completed").await.expect(200);
    assert_eq!(events["data"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_dry_run_tells_every_error_by_line_and_writes_nothing() {
    let app = TestApp::shared();
    let team = app.team().await;
    team.project("Home").await;
    let archived = team.project("Old house").await;
    let path = format!("/projects/{}", id(&archived));
    team.owner.patch(&path, json!({"status": "archived"})).await.expect(200);
    let stranger = app.person().await;
    let file = format!(
        "external_id,project,title,status,assignees,due_date,impact,parent\n\
         1,home,,,,,,\n\
         2,nowhere,Two,,,,,\n\
         3,home,Three,someday,,31.12.2026,many,\n\
         4,home,Four,,{},,,\n\
         5,home,Five,,,,101,\n\
         6,old-house,Six,,,,,\n\
         7,home,Seven,,,,,nobody\n\
         8,home,Eight\n\
         9,home,Nine,,,,,\n\
         9,home,Nine again,,,,,\n",
        stranger.email
    );
    let dry = import_with(&team, "tasks", "bad.csv", file.clone(), json!({"dry_run": true})).await;
    assert_eq!((dry["state"].as_str(), counts(&dry)), (Some("failed"), [1, 0, 0, 9]), "{dry}");
    let expected: Vec<(i64, String, String)> = [
        (2, "title", "required"),
        (3, "project", "unknown"),
        (4, "status", "invalid"),
        (4, "due_date", "invalid"),
        (4, "impact", "invalid"),
        (5, "assignees", "unknown"),
        (6, "impact", "invalid"),
        (7, "", "invalid"),
        (8, "parent", "unknown"),
        (9, "", "malformed"),
        (11, "external_id", "taken"),
    ]
    .map(|(line, field, code)| (line, field.to_owned(), code.to_owned()))
    .into();
    assert_eq!(errors(&dry), expected, "{dry}");
    // In earnest, it is the same.
    let failed = import(&team, "tasks", "bad.csv", file).await;
    assert_eq!((failed["state"].as_str(), errors(&failed)), (Some("failed"), expected));
    assert!(tasks(&team, "").await.is_empty());
}

#[tokio::test]
async fn what_was_tried_can_be_done_without_another_upload() {
    let app = TestApp::shared();
    let team = app.team().await;
    team.project("Home").await;
    let file = team.upload("t.csv", "project,title\nhome,One\n").await;
    for (dry_run, many) in [(true, 0), (false, 1)] {
        let body = json!({"file_id": file["id"], "dry_run": dry_run});
        let queued = team.owner.post("/tasks/imports", body).await.expect(202);
        let done = finished(&team.owner, &format!("/imports/{}", id(&queued)), 30).await;
        assert_eq!((done["state"].as_str(), counts(&done)), (Some("done"), [1, 0, 0, 0]));
        assert_eq!(tasks(&team, "").await.len(), many);
    }
    // Others cannot use the file, and it is let go of after a while.
    let kept = team.owner.get(&format!("/files/{}", id(&file))).await.expect(200);
    assert!(kept["expires_at"].is_string(), "{kept}");
    let rival = app.team().await;
    rival.owner.post("/tasks/imports", json!({"file_id": file["id"]})).await.refused(400, "VALIDATION_ERROR");
}

#[tokio::test]
async fn what_is_no_csv_is_told_with_its_line() {
    let app = TestApp::shared();
    let team = app.team().await;
    team.project("Home").await;
    let latin = [b"project,title\nhome,Caf".as_slice(), b"\xe9", b"\nhome,Fine\n"].concat();
    let long = format!("project,title\nhome,\"{}", "x".repeat(300_000));
    let cases: [(&str, Vec<u8>, i64); 11] = [
        ("empty", Vec::new(), 1),
        ("unclosed", b"project,title\nhome,One\nhome,\"Two\nhome,Three\n".to_vec(), 3),
        ("in the middle", b"project,title\nhome,5\" pipe\n".to_vec(), 2),
        ("after the end", b"project,title\nhome,\"Two\" and\n".to_vec(), 2),
        ("too few", b"project,title\nhome\n".to_vec(), 2),
        ("too many", b"project,title\nhome,One,Two\n".to_vec(), 2),
        ("unknown", b"project,subject\nhome,One\n".to_vec(), 1),
        ("twice", b"title,project,Title\nOne,home,Two\n".to_vec(), 1),
        ("latin", latin, 2),
        ("nul", b"project,title\nhome,O\0ne\n".to_vec(), 2),
        ("utf-16", b"\xff\xfep\0r\0o\0".to_vec(), 1),
    ];
    for (name, bytes, line) in cases {
        let body = json!({"format": "csv"});
        let file = match bytes.is_empty() {
            // Of nothing there is no upload.
            true => b"\n".to_vec(),
            false => bytes,
        };
        let failed = import_with(&team, "tasks", "t.csv", file, body).await;
        assert_eq!(failed["state"], "failed", "{name}: {failed}");
        assert_eq!(failed["errors"][0]["line"], line, "{name}: {failed}");
    }
    let failed = import_with(&team, "tasks", "t.csv", long, json!({})).await;
    assert_eq!((failed["state"].as_str(), &failed["errors"][0]["line"]), (Some("failed"), &json!(2)));
    assert!(tasks(&team, "").await.is_empty());
    let failed = import(&team, "tasks", "t.csv", "project,subject\nhome,One\n").await;
    assert!(
        failed["errors"][0]["message"].as_str().unwrap().contains("title"),
        "what there is is named: {failed}"
    );
}

#[tokio::test]
async fn columns_can_be_told_what_they_stand_for() {
    let app = TestApp::shared();
    let team = app.team().await;
    team.project("Home").await;
    let file = "Subject\tWhere\tNotes\nPaint\thome\tnobody reads this\n";
    let columns = json!({"columns": {"Subject": "title", "Where": "project", "Notes": ""}});
    let done = import_with(&team, "tasks", "t.tsv", file, columns).await;
    assert_eq!(counts(&done), [1, 0, 0, 0], "{done}");
    assert_eq!(tasks(&team, "").await[0]["title"], "Paint");
    let upload = team.upload("t.csv", "a\nb\n").await;
    let body = json!({"file_id": upload["id"], "columns": {"a": "no_such_field"}});
    let error = team.owner.post("/tasks/imports", body).await.refused(400, "VALIDATION_ERROR");
    assert_eq!(error["fields"][0]["field"], "columns.a");
    let upload = team.upload("what-is-this", "a\nb\n").await;
    let error = team
        .owner
        .post("/tasks/imports", json!({"file_id": upload["id"]}))
        .await
        .refused(400, "VALIDATION_ERROR");
    assert_eq!(error["fields"][0]["field"], "format");
}

#[tokio::test]
async fn json_comes_as_an_array_or_line_by_line() {
    let app = TestApp::shared();
    let team = app.team().await;
    let project = team.project("Home").await;
    let array = json!([
        {"external_id": "J1", "project": "home", "title": "One", "assignees": [team.founder.email], "impact": 5},
        {"external_id": "J2", "project": project["id"], "title": "Two", "description": null, "parent": "J1"},
    ]);
    let done = import(&team, "tasks", "t.json", format!("\u{feff} {array} ")).await;
    assert_eq!(counts(&done), [2, 0, 0, 0], "{done}");
    let lines = "{\"external_id\": \"J1\", \"status\": \"done\"}\n\n{\"external_id\": \"J2\", \"title\": \"Second\"}\n";
    let done = import(&team, "tasks", "t.jsonl", lines).await;
    assert_eq!(counts(&done), [0, 2, 0, 0], "{done}");
    let made = tasks(&team, "").await;
    assert_eq!((&made[0]["assignee_ids"], &made[0]["status"]), (&json!([team.founder.id]), &json!("done")));
    assert_eq!((&made[1]["parent_id"], &made[1]["title"]), (&made[0]["id"], &json!("Second")));
    for (bad, line) in [
        ("[{\"title\": \"One\", \"project\": \"home\"}, {\"title\": ", 2),
        ("[{\"title\": \"One\", \"project\": \"home\"}] more", 2),
        ("[1]", 1),
        ("{\"title\": {\"en\": \"One\"}, \"project\": \"home\"}", 1),
        ("{\"subject\": \"One\", \"project\": \"home\"}", 1),
        ("{\"title\": \"One\", \"Title\": \"Two\", \"project\": \"home\"}", 1),
        ("{\"title\": \"O\\u0000ne\", \"project\": \"home\"}", 1),
        ("[{\"ti\\u0000tle\": \"One\", \"project\": \"home\"}]", 1),
    ] {
        let failed = import(&team, "tasks", "t.json", bad).await;
        assert_eq!(failed["state"], "failed", "{bad}: {failed}");
        assert_eq!(failed["errors"][0]["line"], line, "{bad}: {failed}");
    }
    let long = format!("[{{\"project\": \"home\", \"title\": \"{}\"}}]", "x".repeat(300_000));
    assert_eq!(import(&team, "tasks", "t.json", long).await["state"], "failed");
    assert_eq!(tasks(&team, "").await.len(), 2);
}

#[tokio::test]
async fn tasks_are_finished_in_the_order_of_what_they_wait_for() {
    let app = TestApp::shared();
    let team = app.team().await;
    let project = team.project("Home").await;
    let (first, then) = (team.task(&project, "First").await, team.task(&project, "Then").await);
    let path = format!("/tasks/{}/dependencies/{}", id(&then), id(&first));
    team.owner.raw(reqwest::Method::PUT, &path, "application/json", "{}").await.expect(200);
    let wrong = format!("id,status\n{},done\n{},done\n", id(&then), id(&first));
    let failed = import(&team, "tasks", "t.csv", wrong).await;
    assert_eq!(errors(&failed), [(2, "status".into(), "invalid".into())], "{failed}");
    let right = format!("id,status\n{},done\n{},done\n", id(&first), id(&then));
    assert_eq!(counts(&import(&team, "tasks", "t.csv", right).await), [0, 2, 0, 0]);
    let reopened = format!("id,status\n{},todo\n", id(&first));
    assert_eq!(import(&team, "tasks", "t.csv", reopened).await["state"], "failed");
}

#[tokio::test]
async fn subtasks_go_five_levels_deep_and_stay_in_their_project() {
    let app = TestApp::shared();
    let team = app.team().await;
    team.project("Home").await;
    team.project("Garden").await;
    let file =
        "external_id,parent,project,title\n1,,home,a\n2,1,home,b\n3,2,home,c\n4,3,home,d\n5,4,home,e\n";
    assert_eq!(counts(&import(&team, "tasks", "t.csv", file).await), [5, 0, 0, 0]);
    let file = "external_id,parent,project,title\n6,5,home,f\n7,1,garden,g\n8,9,home,h\n9,,home,i\n";
    let failed = import(&team, "tasks", "t.csv", file).await;
    let lines: Vec<i64> = errors(&failed).iter().map(|error| error.0).collect();
    assert_eq!(lines, [2, 3, 4], "{failed}");
    // What is known is not moved about.
    let file = "external_id,parent,project\n2,1,garden\n3,1,home\n";
    assert_eq!(errors(&import(&team, "tasks", "t.csv", file).await).len(), 2);
}

#[tokio::test]
async fn projects_come_with_their_people_and_budget() {
    let app = TestApp::shared();
    let team = app.team().await;
    let ben = team.join(Role::Manager).await;
    let file = format!(
        "external_id,name,slug,status,owner,members,start_date,end_date,budget_amount,budget_currency\n\
         P1,First,first-one,active,{},\"{}\",2026-01-01,2026-12-31,1200.50,SGD\n\
         P2,Second,,,,,,,,\n",
        ben.email, team.founder.email
    );
    let done = import(&team, "projects", "p.csv", file.clone()).await;
    assert_eq!(counts(&done), [2, 0, 0, 0], "{done}");
    assert_eq!(counts(&import(&team, "projects", "p.csv", file).await), [0, 0, 2, 0]);
    let found = team.owner.get("/projects?sort=name").await.expect(200)["data"][0].clone();
    for (field, value) in [
        ("slug", json!("first-one")),
        ("status", json!("active")),
        ("owner_id", json!(ben.id)),
        ("member_ids", json!([team.founder.id])),
        ("budget", json!({"amount": "1200.50", "currency": "SGD"})),
    ] {
        assert_eq!(found[field], value, "{field}");
    }
    let file = "name,slug,start_date,end_date,budget_amount,owner\nX,first-one,,,,\nY,yy-yy,2026-02-01,2026-01-01,,\n\
         Z,,,,5,\nW,,,,,nobody@example.com\nV,yy-yy,,,,\n";
    let failed = import(&team, "projects", "p.csv", file).await;
    let lines: Vec<i64> = errors(&failed).iter().map(|error| error.0).collect();
    assert_eq!(lines, [2, 3, 4, 5, 6], "{failed}");
    assert_eq!(team.owner.get("/projects").await.expect(200)["total"], 2);
}

#[tokio::test]
async fn the_plan_s_limit_of_projects_is_an_error_of_the_lines_beyond_it() {
    let app = TestApp::shared();
    let team = app.team().await;
    team.plan("starter").await;
    let mut file = "external_id,name\n".to_owned();
    (1..=7).for_each(|n| writeln!(file, "P{n},Project {n}").unwrap());
    let failed = import(&team, "projects", "p.csv", file).await;
    let limit = |line: i64| (line, "name".to_owned(), "limit".to_owned());
    assert_eq!(errors(&failed), [limit(7), limit(8)], "{failed}");
    assert_eq!(team.owner.get("/projects").await.expect(200)["total"], 0);
}

#[tokio::test]
async fn who_may_not_write_all_tasks_imports_none_and_sees_no_one_else_s_import() {
    let app = TestApp::shared();
    let team = app.team().await;
    let (manager, member) = (team.join(Role::Manager).await, team.join(Role::Member).await);
    team.project("Home").await;
    let file = team.upload("t.csv", "project,title\nhome,One\n").await;
    let body = json!({"file_id": file["id"]});
    member.client.post("/tasks/imports", body.clone()).await.refused(403, "PERMISSION_DENIED");
    member.client.post("/projects/imports", body.clone()).await.refused(403, "PERMISSION_DENIED");
    // A manager may use what others uploaded.
    let queued = manager.client.post("/tasks/imports", body).await.expect(202);
    let place = format!("/imports/{}", id(&queued));
    finished(&manager.client, &place, 30).await;
    team.owner.get(&place).await.expect(200);
    member.client.get(&place).await.refused(404, "NOT_FOUND");
    assert_eq!(member.client.get("/imports").await.expect(200)["data"], json!([]));
    assert_eq!(team.owner.get("/imports").await.expect(200)["data"][0]["id"], queued["id"]);
    let rival = app.team().await;
    rival.owner.get(&place).await.refused(404, "NOT_FOUND");
    team.owner.post(&format!("{place}/cancel"), json!({})).await.refused(409, "CONFLICT");
    let unchanged = team.owner.get(&place).await;
    let watched = team.owner.header("if-none-match", unchanged.header("etag")).get(&place).await;
    assert_eq!(watched.status, 304, "who watches hears nothing where nothing is new");
}

#[tokio::test]
async fn whoever_lost_the_right_meanwhile_has_nothing_more_imported() {
    let app = TestApp::shared();
    let team = app.team().await;
    let manager = team.join(Role::Manager).await;
    team.project("Home").await;
    let first = import(&team, "tasks", "o.csv", "project,title\nhome,One\n").await;
    // Imports wait for each other: as long as one rests after it went wrong, the next one is not begun.
    let first = format!(
        "update {}.imports set updated_at = now(), tries = @ where id = '{}'",
        team.schema().await,
        id(&first)
    );
    let rests = "3, state = 'checking', finished_at = null";
    app.sql(&first.replace('@', rests)).await;
    let second = json!({"file_id": team.upload("t.csv", "project,title\nhome,Never\n").await["id"]});
    let queued = manager.client.post("/tasks/imports", second).await.expect(202);
    let lose = "update platform.organization_members set role = 'viewer' where user_id";
    app.sql(&format!("{lose} = '{}'", manager.id)).await;
    app.sql(&first.replace('@', "0")).await;
    // Whoever asks for another one wakes the job.
    import(&team, "tasks", "l.csv", "project,title\nhome,Last\n").await;
    let ended = finished(&team.owner, &format!("/imports/{}", id(&queued)), 60).await;
    assert_eq!((ended["state"].as_str(), counts(&ended)), (Some("failed"), [0, 0, 0, 0]), "{ended}");
    assert!(ended["message"].as_str().unwrap().contains("tasks:write"), "{ended}");
}

#[tokio::test]
async fn every_error_is_in_a_file_where_there_are_many() {
    let app = TestApp::shared();
    let team = app.team().await;
    let mut file = "project,title\n".to_owned();
    (0..2_500).for_each(|n| writeln!(file, "=nowhere,Task {n}").unwrap());
    let failed = import_with(&team, "tasks", "t.csv", file, json!({"dry_run": true})).await;
    assert_eq!((&failed["failed"], failed["errors"].as_array().unwrap().len()), (&json!(2_500), 100));
    let report = failed["error_report_id"].as_str().expect("a report");
    let text = team.owner.get(&format!("/files/{report}/content")).await.text;
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2_501);
    assert!(lines[0].starts_with("line,field,code,message"), "{}", lines[0]);
    assert!(lines[1].starts_with("2,project,unknown,") && lines[2_500].starts_with("2501,project,unknown,"));
}

#[tokio::test]
async fn a_hundred_thousand_lines_are_imported_while_somebody_watches() {
    // What follows from so many changes is no other test's business.
    let app = TestApp::with(|_| {});
    let team = app.team().await;
    team.project("Large").await;
    let mut file = "external_id,project,title,status,impact\n".to_owned();
    for n in 0..100_000 {
        writeln!(file, "L{n},large,Task number {n},{},0.01", if n % 2 == 0 { "done" } else { "todo" })
            .unwrap();
    }
    let upload = team.upload("large.csv", file.clone()).await;
    let queued = team.owner.post("/tasks/imports", json!({"file_id": upload["id"]})).await.expect(202);
    let place = format!("/imports/{}", id(&queued));
    let seen = std::sync::Mutex::new(Vec::new());
    within(300, "the end of the import", || async {
        let now = team.owner.get(&place).await.expect(200);
        seen.lock().unwrap().push((now["state"].clone(), now["lines_done"].as_i64().unwrap()));
        !now["finished_at"].is_null()
    })
    .await;
    let seen = seen.into_inner().unwrap();
    let done = team.owner.get(&place).await.expect(200);
    assert_eq!((done["state"].as_str(), counts(&done)), (Some("done"), [100_000, 0, 0, 0]), "{done}");
    let written: Vec<i64> =
        seen.iter().filter(|(state, _)| state == "importing").map(|(_, lines)| *lines).collect();
    assert!(written.windows(2).all(|pair| pair[0] <= pair[1]) && written.len() > 3, "{written:?}");
    let found = team.owner.get("/projects").await.expect(200)["data"][0].clone();
    assert_eq!(found["progress"], 100.0);
    let again = import_with(&team, "tasks", "large.csv", file, json!({"dry_run": true})).await;
    assert_eq!(counts(&again), [0, 0, 100_000, 0]);
}

#[tokio::test]
async fn what_is_canceled_stops_and_can_be_gone_on_with() {
    let app = TestApp::shared();
    let team = app.team().await;
    team.project("Large").await;
    let mut file = "external_id,project,title\n".to_owned();
    (0..20_000).for_each(|n| writeln!(file, "C{n},large,Task {n}").unwrap());
    let upload = team.upload("c.csv", file.clone()).await;
    let queued = team.owner.post("/tasks/imports", json!({"file_id": upload["id"]})).await.expect(202);
    let place = format!("/imports/{}", id(&queued));
    within(60, "lines that are written", || async {
        let now = team.owner.get(&place).await.expect(200);
        now["state"] == "importing" && now["created"].as_i64().unwrap() > 0
    })
    .await;
    let canceled = team.owner.post(&format!("{place}/cancel"), json!({})).await.expect(200);
    assert_eq!(canceled["state"], "canceled");
    let many = canceled["created"].as_i64().unwrap();
    let rest = import(&team, "tasks", "c.csv", file).await;
    assert_eq!(counts(&rest), [20_000 - many, 0, many, 0], "{rest}");
}

#[tokio::test]
async fn imports_of_one_organization_wait_for_each_other() {
    let app = TestApp::shared();
    let team = app.team().await;
    team.project("Home").await;
    let mut file = "external_id,project,title\n".to_owned();
    (0..3_000).for_each(|n| writeln!(file, "W{n},home,Task {n}").unwrap());
    let all =
        futures_util::future::join_all((0..4).map(|_| import(&team, "tasks", "w.csv", file.clone()))).await;
    let made: i64 = all.iter().map(|done| counts(done)[0]).sum();
    let known: i64 = all.iter().map(|done| counts(done)[2]).sum();
    assert_eq!((made, known), (3_000, 9_000));
}

#[tokio::test]
async fn whoever_comes_back_late_writes_no_line_twice() {
    let app = TestApp::shared();
    let team = app.team().await;
    team.project("Large").await;
    let mut file = "project,title\n".to_owned();
    (0..20_000).for_each(|n| writeln!(file, "large,Task {n}").unwrap());
    let upload = team.upload("l.csv", file).await;
    let queued = team.owner.post("/tasks/imports", json!({"file_id": upload["id"]})).await.expect(202);
    let place = format!("/imports/{}", id(&queued));
    within(60, "lines that are written", || async {
        let now = team.owner.get(&place).await.expect(200);
        now["state"] == "importing" && now["created"].as_i64().unwrap() > 0
    })
    .await;
    // As if another worker had begun a turn.
    let schema = team.schema().await;
    let sql = format!("update {schema}.imports set turn = turn + 1 where id = '{}'", id(&queued));
    app.sql(&sql).await;
    let done = finished(&team.owner, &place, 120).await;
    assert_eq!((done["state"].as_str(), counts(&done)), (Some("done"), [20_000, 0, 0, 0]), "{done}");
    assert_eq!(app.number(&format!("select count(*) from {schema}.tasks")).await, 20_000);
    let turns = format!("select turn from {schema}.imports where id = '{}'", id(&queued));
    assert!(app.number(&turns).await > 2, "another turn went on with the rest");
}

#[tokio::test]
async fn what_was_interrupted_goes_on_with_the_next_line() {
    let app = TestApp::shared();
    let team = app.team().await;
    team.project("Home").await;
    let mut file = "project,title\n".to_owned();
    (0..1_500).for_each(|n| writeln!(file, "home,Task {n}").unwrap());
    let tried = import_with(&team, "tasks", "t.csv", file, json!({"dry_run": true})).await;
    // As if it were no dry run, and its worker had died.
    let schema = team.schema().await;
    let interrupted = format!(
        "update {schema}.imports set state = 'importing', dry_run = false, lines_done = 700, created = 700, \
         finished_at = null where id = '{}'",
        id(&tried)
    );
    app.sql(&interrupted).await;
    import(&team, "tasks", "o.csv", "project,title\nhome,Other\n").await;
    let done = team.owner.get(&format!("/imports/{}", id(&tried))).await.expect(200);
    assert_eq!((done["state"].as_str(), counts(&done)), (Some("done"), [1_500, 0, 0, 0]), "{done}");
    let titles = app.texts(&format!("select title from {schema}.tasks order by id")).await;
    assert_eq!((titles.len(), titles[0].as_str(), titles[799].as_str()), (801, "Task 700", "Task 1499"));
}

#[tokio::test]
async fn an_import_that_kills_its_workers_ends_and_those_behind_it_are_done() {
    let app = TestApp::shared();
    let team = app.team().await;
    team.project("Home").await;
    let tried =
        import_with(&team, "tasks", "t.csv", "project,title\nhome,One\n", json!({"dry_run": true})).await;
    let schema = team.schema().await;
    let stuck = format!(
        "update {schema}.imports set state = 'checking', tries = 6, finished_at = null, \
         updated_at = now() - interval '1 hour' where id = '{}'",
        id(&tried)
    );
    app.sql(&stuck).await;
    let behind = import(&team, "tasks", "o.csv", "project,title\nhome,Other\n").await;
    assert_eq!(behind["state"], "done", "{behind}");
    let ended = team.owner.get(&format!("/imports/{}", id(&tried))).await.expect(200);
    assert_eq!(ended["state"], "failed", "{ended}");
    assert!(ended["message"].as_str().unwrap().contains("did not work"), "{ended}");
}

#[tokio::test]
async fn errors_are_short_however_long_what_they_quote_is() {
    let app = TestApp::shared();
    let team = app.team().await;
    team.project("Home").await;
    let long = "n".repeat(200_000);
    let many = "a,".repeat(60_000);
    let file = format!("project,title,assignees\nhome,One,{long}\nhome,Two,\"{many}\"\n");
    let failed = import(&team, "tasks", "t.csv", file).await;
    let expected = [(2, "assignees".into(), "unknown".into()), (3, "assignees".into(), "limit".into())];
    assert_eq!(errors(&failed), expected);
    let failed = import(&team, "tasks", "t.json", format!("[{{\"{long}\": 1}}]")).await;
    assert_eq!(failed["errors"][0]["field"].as_str().unwrap().len(), 100);
    assert!(failed["errors"][0]["message"].as_str().unwrap().len() <= 1_000);
}

#[tokio::test]
async fn a_check_of_projects_finds_what_writing_them_would() {
    let app = TestApp::shared();
    let team = app.team().await;
    let known = [team.project("One").await, team.project("Two").await];
    let dry = json!({"dry_run": true});
    let file = "name,slug,start_date\nX,,0000-01-01\nFirst one,,\nAnother,first-one,\nFirst one,,\n";
    let failed = import_with(&team, "projects", "p.csv", file, dry.clone()).await;
    let found: Vec<(i64, String)> =
        errors(&failed).into_iter().map(|(line, field, _)| (line, field)).collect();
    assert_eq!(found, [(2, "start_date".to_owned()), (4, "slug".to_owned())], "{failed}");
    let file = format!("id,external_id\n{},E\n{},E\n", id(&known[0]), id(&known[1]));
    let failed = import_with(&team, "projects", "p.csv", file, dry).await;
    assert_eq!(errors(&failed), [(3, "external_id".into(), "taken".into())], "{failed}");
    let file = format!("id,status\n{},archived\n{},active\n", id(&known[0]), id(&known[1]));
    assert_eq!(counts(&import(&team, "projects", "p.csv", file).await), [0, 2, 0, 0]);
}
