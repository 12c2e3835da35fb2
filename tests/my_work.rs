//! /me/tasks.

use chrono::{Days, NaiveDate, Utc};
use rowhouse::auth::Role;
use serde_json::{Value, json};

use crate::support::{Client, TestApp};

async fn mine(client: &Client, query: &str) -> Value {
    client.get(&format!("/me/tasks{query}")).await.expect(200)
}

fn titles(page: &Value) -> Vec<&str> {
    page["data"].as_array().unwrap().iter().map(|task| task["title"].as_str().unwrap()).collect()
}

/// In a zone without surprises, as the day must not change while a test runs in another.
async fn today(client: &Client) -> NaiveDate {
    client.patch("/auth/user", json!({"timezone": "UTC"})).await.expect(200);
    mine(client, "").await["today"].as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn one_s_tasks_are_told_by_what_presses() {
    let app = TestApp::shared();
    let team = app.team().await;
    let member = team.join(Role::Member).await;
    let today = today(&member.client).await;
    let project = team.project("Home").await;
    let day = |n: u64| Some(today + Days::new(n));
    for (title, due, priority, status) in [
        ("Late", Some(today - Days::new(1)), "low", "todo"),
        ("Today", day(0), "medium", "in_progress"),
        ("Soon", day(7), "medium", "todo"),
        ("Soon and urgent", day(7), "urgent", "review"),
        ("Some day", None, "urgent", "todo"),
        ("Next month", day(30), "low", "todo"),
        ("Done late", Some(today - Days::new(9)), "low", "done"),
    ] {
        let body = json!({"project_id": project["id"], "title": title, "due_date": due, "priority": priority,
            "status": status, "assignee_ids": [member.id]});
        team.owner.post("/tasks", body).await.expect(201);
    }
    team.task(&project, "Somebody else's").await;
    let open = mine(&member.client, "").await;
    let expected = ["Late", "Today", "Soon and urgent", "Soon", "Next month", "Some day"];
    assert_eq!(titles(&open), expected);
    assert_eq!(open["counts"], json!({"open": 6, "due": 3, "overdue": 1}));
    assert_eq!((&open["total"], &open["page"], &open["page_size"]), (&json!(6), &json!(1), &json!(20)));
    assert_eq!(open["data"][0]["project_name"], "Home");
    assert_eq!(
        (&open["data"][0]["is_overdue"], &open["data"][1]["is_overdue"]),
        (&json!(true), &json!(false))
    );
    assert_eq!(titles(&mine(&member.client, "?state=due").await), ["Today", "Soon and urgent", "Soon"]);
    assert_eq!(titles(&mine(&member.client, "?state=due&within_days=0").await), ["Today"]);
    assert_eq!(titles(&mine(&member.client, "?state=overdue").await), ["Late"]);
    let done = mine(&member.client, "?state=done").await;
    assert_eq!((titles(&done), &done["total"]), (vec!["Done late"], &json!(1)));
    assert_eq!(done["counts"], open["counts"]);
    let second = mine(&member.client, "?page=2&page_size=4").await;
    assert_eq!((titles(&second), &second["total"]), (vec!["Next month", "Some day"], &json!(6)));
    let beyond = mine(&member.client, "?page=9").await;
    assert_eq!((titles(&beyond).len(), &beyond["counts"]["open"]), (0, &json!(6)));
}

#[tokio::test]
async fn the_day_is_the_one_where_somebody_lives() {
    let app = TestApp::shared();
    let team = app.team().await;
    for (zone, hours) in [("Pacific/Kiritimati", 14), ("Etc/GMT+12", -12)] {
        team.founder.client.patch("/auth/user", json!({"timezone": zone})).await.expect(200);
        let there = |now: chrono::DateTime<Utc>| json!((now + chrono::TimeDelta::hours(hours)).date_naive());
        let before = there(Utc::now());
        let told = mine(&team.owner, "").await["today"].clone();
        assert!(told == before || told == there(Utc::now()), "{zone}: {told}");
    }
}

#[tokio::test]
async fn nobody_sees_another_s_plate_and_bad_questions_are_refused() {
    let app = TestApp::shared();
    let team = app.team().await;
    let empty = mine(&team.owner, "").await;
    assert_eq!(empty["data"], json!([]));
    assert_eq!(empty["counts"], json!({"open": 0, "due": 0, "overdue": 0}));
    for bad in ["state=late", "within_days=366", "within_days=-1", "page=0", "page_size=101", "user_id=1"] {
        team.owner.get(&format!("/me/tasks?{bad}")).await.refused(400, "VALIDATION_ERROR");
    }
    let error = team.owner.get("/me/tasks?page=501").await.refused(400, "VALIDATION_ERROR");
    assert!(error["fields"][0]["message"].as_str().unwrap().contains("GET /tasks"), "{error}");
}
