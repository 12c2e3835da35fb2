//! What plans allow: the last place goes to one, however many want it at once.

use std::{
    pin::pin,
    sync::{Arc, LazyLock},
    time::Duration,
};

use chrono::{Datelike, Days, Months, TimeDelta};
use futures_util::{StreamExt, future::join_all, stream};
use rowhouse::{
    app::App,
    auth::Role,
    billing::{Resource, limits},
    db::TenantTx,
    error::{Code, Error, Result},
    tenancy::fleet,
};
use serde_json::{Value, json};
use tokio::task::{JoinError, JoinHandle};
use uuid::Uuid;

use crate::support::{
    Answer, BUSY, Client, PASSWORD, Team, TestApp, on_the_servers_runtime, unique_email, within,
    within_a_second,
};

/// Two instances over one database, with patience for a rush; organizations keep the tests apart.
fn servers() -> [TestApp; 2] {
    static SERVERS: LazyLock<[TestApp; 2]> = LazyLock::new(|| {
        let app = TestApp::with(|config| {
            config.database.pool_size = 6;
            config.database.pool_wait_seconds = 60;
        });
        let beside = app.beside();
        [app, beside]
    });
    // A client belongs to the runtime of the test that uses it.
    SERVERS.clone().map(|app| TestApp { http: TestApp::shared().http, ..app })
}

/// A new organization on a plan.
async fn team_on(app: &TestApp, plan: &str) -> Team {
    let team = app.team().await;
    team.plan(plan).await;
    team
}

/// What is used of something, and what is allowed.
async fn there(client: &Client, resource: &str) -> (i64, Option<i64>) {
    let subscription = client.get("/subscriptions/current").await.expect(200);
    let limits = subscription["limits"].as_array().unwrap();
    let one = limits.iter().find(|one| one["resource"] == resource).unwrap();
    (one["used"].as_i64().unwrap(), one["limit"].as_i64())
}

/// Does all of it at the same time, and looks meanwhile: at no moment more is used than allowed.
async fn at_once<T>(
    team: &Team,
    resource: &str,
    all: impl IntoIterator<Item = impl Future<Output = T>>,
) -> Vec<T> {
    let mut all = pin!(join_all(all));
    loop {
        tokio::select! {
            done = &mut all => return done,
            (used, limit) = there(&team.owner, resource) => {
                assert!(limit.is_none_or(|limit| used <= limit), "{used} of {limit:?} {resource}");
            }
        }
    }
}

/// So many got through; what the others were told, who are refused by the plan and by nothing else.
#[track_caller]
fn refusals(answers: Vec<Answer>, through: usize) -> Vec<Value> {
    let statuses: Vec<u16> = answers.iter().map(|answer| answer.status.as_u16()).collect();
    let (good, bad): (Vec<_>, Vec<_>) = answers.into_iter().partition(|answer| answer.status.is_success());
    assert_eq!(good.len(), through, "{statuses:?}");
    bad.into_iter().map(|answer| answer.refused(402, "PLAN_LIMIT_REACHED")["details"].clone()).collect()
}

fn invitation() -> Value {
    json!({"email": unique_email(), "role": "viewer"})
}

/// Invites somebody at an instance.
async fn invite_at(app: &TestApp, team: &Team) -> Answer {
    team.owner.at(app).post(&team.path("/invitations"), invitation()).await
}

/// Whoever waited too long for their turn is told to ask again, and does.
async fn project_at(app: &TestApp, team: &Team, name: &str) -> Answer {
    for _ in 0..10 {
        let answer = team.owner.at(app).post("/projects", json!({"name": name})).await;
        if answer.status != 503 {
            return answer;
        }
    }
    panic!("{name} never had its turn");
}

fn path(project: &Value) -> String {
    format!("/projects/{}", project["id"].as_str().unwrap())
}

/// A transaction of an organization. To be called on the servers' runtime, where its connection lives.
async fn begin(app: &App, slug: &str) -> Result<TenantTx> {
    fleet::tenant(&app.directory, slug).await?.unwrap().begin().await
}

/// Takes so much in a transaction of its own; on the servers' runtime.
async fn take_there(app: Arc<App>, slug: String, resource: Resource, amount: i64) -> Result<()> {
    for _ in 0..10 {
        let taken = async {
            let tx = begin(&app, &slug).await?;
            limits::reserve(&tx, &app, resource, amount).await?;
            tx.commit().await
        };
        match taken.await {
            Err(error) if error.code() == Code::Unavailable => {}
            taken => return taken,
        }
    }
    panic!("it never had its turn");
}

/// Takes so much.
fn take(app: &TestApp, team: &Team, resource: Resource, amount: i64) -> Result<()> {
    on_the_servers_runtime(take_there(app.app.clone(), team.slug.clone(), resource, amount))
}

/// Begins to take so much so often, at these instances by turns.
fn taking(
    apps: &[TestApp],
    team: &Team,
    resource: Resource,
    amount: i64,
    times: usize,
) -> Vec<JoinHandle<Result<()>>> {
    on_the_servers_runtime(async {
        let by_turns = apps.iter().cycle().take(times);
        by_turns
            .map(|app| tokio::spawn(take_there(app.app.clone(), team.slug.clone(), resource, amount)))
            .collect()
    })
}

/// Gives so much back.
fn give_back(app: &TestApp, team: &Team, resource: Resource, amount: i64) {
    on_the_servers_runtime(async {
        let tx = begin(&app.app, &team.slug).await.unwrap();
        limits::release(&tx, resource, amount).await.unwrap();
        tx.commit().await.unwrap();
    });
}

/// Takes so much of each in one transaction, which stays open until it is dropped.
fn hold(app: &TestApp, team: &Team, wanted: &[(Resource, i64)]) -> TenantTx {
    on_the_servers_runtime(async {
        let tx = begin(&app.app, &team.slug).await.unwrap();
        for (resource, amount) in wanted {
            limits::reserve(&tx, &app.app, *resource, *amount).await.unwrap();
        }
        tx
    })
}

/// What somebody is told whose reservation was refused.
async fn details(error: &Error) -> Value {
    let text = error.to_response("").into_body().into_string().await.unwrap();
    let answer: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(answer["error"]["code"], "PLAN_LIMIT_REACHED", "{answer}: {error}");
    answer["error"]["details"].clone()
}

/// The same of many, of which so many got through.
async fn refused_of(outcomes: Vec<std::result::Result<Result<()>, JoinError>>, through: usize) -> Vec<Value> {
    let (good, bad): (Vec<_>, Vec<_>) = outcomes.into_iter().map(|it| it.unwrap()).partition(Result::is_ok);
    assert_eq!(good.len(), through, "{bad:?}");
    join_all(bad.iter().filter_map(|outcome| outcome.as_ref().err()).map(details)).await
}

/// What was told of a limit: the data of the events of this type about a resource.
async fn told(client: &Client, kind: &str, resource: &str) -> Vec<Value> {
    let page = client.get(&format!("/events?type={kind}&limit=100")).await.expect(200);
    let all = page["data"].as_array().unwrap().iter().map(|event| event["data"].clone());
    all.filter(|data| data["resource"] == resource).collect()
}

/// How many events and notifications there are of four fifths and of all.
async fn warnings(client: &Client, resource: &str) -> ([usize; 2], [usize; 2]) {
    let notices = async |kind: &str| {
        let page = client.get(&format!("/notifications?kind={kind}")).await.expect(200);
        page["data"].as_array().unwrap().len()
    };
    let approached =
        [told(client, "limit.approached", resource).await.len(), notices("limit_approached").await];
    let reached = [told(client, "limit.reached", resource).await.len(), notices("limit_reached").await];
    (approached, reached)
}

/// Whom a jump of the clock has logged out.
async fn log_in(team: &Team) -> Client {
    let body = json!({"email": team.founder.email, "password": PASSWORD});
    let answer = team.app.anonymous().post("/auth/login", body).await.expect(200);
    team.app.anonymous().with_token(answer["access_token"].as_str().unwrap()).within(&team.id)
}

/// Where `upgrade_at` leads.
fn billing_page(app: &TestApp) -> String {
    format!("{}/settings/billing", app.app.config.mail.app_url)
}

#[tokio::test]
async fn of_fifty_invitations_for_the_last_place_one_is_sent() {
    let apps = servers();
    let team = team_on(&apps[0], "free").await;
    for _ in 0..3 {
        invite_at(&apps[0], &team).await.expect(201);
    }
    assert_eq!(there(&team.owner, "users").await, (4, Some(5)));
    let rush = at_once(&team, "users", (0..50).map(|n| invite_at(&apps[n % 2], &team))).await;
    for details in refusals(rush, 1) {
        assert_eq!(
            details,
            json!({"resource": "users", "limit": 5, "used": 5, "plan": "free", "upgrade": "starter",
                "upgrade_at": billing_page(&apps[0])})
        );
    }
    assert_eq!(there(&team.owner, "users").await, (5, Some(5)));
    let open = team.owner.get(&team.path("/invitations")).await.expect(200);
    assert_eq!(open["total"], 4);
}

#[tokio::test]
async fn an_invitation_that_is_accepted_fifty_times_at_once_makes_one_member() {
    let apps = servers();
    let team = team_on(&apps[0], "free").await;
    let person = apps[0].person().await;
    let body = json!({"email": person.email, "role": "member"});
    team.owner.post(&team.path("/invitations"), body).await.expect(201);
    for _ in 0..3 {
        invite_at(&apps[0], &team).await.expect(201);
    }
    assert_eq!(there(&team.owner, "users").await, (5, Some(5)));
    let token = json!({"token": apps[0].mail(&person.email, "invites you").await.token()});
    let accept = |n: usize| {
        let (client, token) = (person.client.at(&apps[n % 2]), token.clone());
        async move { client.post("/invitations/accept", token).await.status.as_u16() }
    };
    let mut statuses = at_once(&team, "users", (0..50).map(accept)).await;
    statuses.sort();
    assert_eq!((statuses[0], &statuses[1..]), (200, &[404; 49][..]));
    assert_eq!(there(&team.owner, "users").await, (5, Some(5)));
    assert_eq!(team.owner.get(&team.path("/members")).await.expect(200)["total"], 2);
}

/// The organization is full with those who are invited: they get in, nobody else is invited.
#[tokio::test]
async fn the_places_of_the_invited_are_theirs_in_a_rush() {
    let apps = servers();
    let team = team_on(&apps[0], "professional").await;
    let people = join_all((0..49).map(|n| apps[n % 2].person())).await;
    let invitations = people.iter().map(|person| {
        let body = json!({"email": person.email, "role": "viewer"});
        async { team.owner.post(&team.path("/invitations"), body).await }
    });
    assert_eq!(refusals(join_all(invitations).await, 49), [] as [Value; 0]);
    assert_eq!(there(&team.owner, "users").await, (50, Some(50)));
    // As if all mail had been read.
    apps[0]
        .sql(&format!(
            "update platform.invitations set token_hash = sha256(convert_to('rhi_' || email::text, 'UTF8')) \
             where organization_id = '{}'",
            team.id
        ))
        .await;
    let accept = people.iter().enumerate().map(|(n, person)| {
        let token = json!({"token": format!("rhi_{}", person.email)});
        let client = person.client.at(&apps[n % 2]);
        async move { client.post("/invitations/accept", token).await }
    });
    let invite = (0..20).map(|n| invite_at(&apps[n % 2], &team));
    let (accepted, invited) = tokio::join!(at_once(&team, "users", accept), join_all(invite));
    assert_eq!(refusals(accepted, 49), [] as [Value; 0]);
    for details in refusals(invited, 0) {
        assert_eq!((&details["used"], &details["upgrade"]), (&json!(50), &json!("enterprise")));
    }
    assert_eq!(there(&team.owner, "users").await, (50, Some(50)));
    assert_eq!(team.owner.get(&team.path("/members")).await.expect(200)["total"], 50);
}

#[tokio::test]
async fn of_fifty_projects_for_the_last_place_one_is_made() {
    let apps = servers();
    let team = team_on(&apps[0], "starter").await;
    for n in 0..4 {
        team.project(&format!("Old {n}")).await;
    }
    let rush = (0..50).map(|n| {
        let (app, team) = (&apps[n % 2], &team);
        async move { project_at(app, team, &format!("New {n}")).await }
    });
    for details in refusals(at_once(&team, "projects", rush).await, 1) {
        assert_eq!(
            details,
            json!({"resource": "projects", "limit": 5, "used": 5, "plan": "starter",
                "upgrade": "professional", "upgrade_at": billing_page(&apps[0])})
        );
    }
    assert_eq!(there(&team.owner, "projects").await, (5, Some(5)));
    let all = team.owner.get("/projects").await.expect(200);
    assert_eq!(all["total"], 5);
    // One that goes makes room for one, not for two.
    team.owner.delete(&path(&all["data"][0])).await.expect(204);
    let again = (0..10).map(|n| {
        let (app, team) = (&apps[n % 2], &team);
        async move { project_at(app, team, &format!("Newer {n}")).await }
    });
    refusals(at_once(&team, "projects", again).await, 1);
    assert_eq!(there(&team.owner, "projects").await, (5, Some(5)));
}

#[tokio::test]
async fn of_fifty_reservations_for_the_last_of_storage_or_workflows_one_gets_through() {
    let apps = servers();
    let team = team_on(&apps[0], "free").await;
    for (resource, limit, amount) in
        [(Resource::Storage, 1_000_000_000, 100_000_000), (Resource::Workflows, 10, 1)]
    {
        take(&apps[0], &team, resource, limit - amount).unwrap();
        let name = resource.to_string();
        let outcomes = at_once(&team, &name, taking(&apps, &team, resource, amount, 50)).await;
        for details in refused_of(outcomes, 1).await {
            assert_eq!(
                details,
                json!({"resource": name, "limit": limit, "used": limit, "plan": "free", "upgrade": "starter",
                    "upgrade_at": billing_page(&apps[0])})
            );
        }
        assert_eq!(there(&team.owner, &name).await, (limit, Some(limit)));
        // What is given back can be taken again, once.
        give_back(&apps[0], &team, resource, amount);
        let outcomes = at_once(&team, &name, taking(&apps, &team, resource, amount, 10)).await;
        refused_of(outcomes, 1).await;
        assert_eq!(there(&team.owner, &name).await, (limit, Some(limit)));
        give_back(&apps[0], &team, resource, limit);
        assert_eq!(there(&team.owner, &name).await, (0, Some(limit)));
    }
}

#[tokio::test]
async fn a_rush_for_everything_at_once_fills_each_limit_exactly() {
    let apps = servers();
    let team = team_on(&apps[0], "starter").await;
    let storage = taking(&apps, &team, Resource::Storage, 3_000_000_000, 20);
    let workflows = taking(&apps, &team, Resource::Workflows, 10, 20);
    let (invited, made, stored, automated) = tokio::join!(
        at_once(&team, "users", (0..20).map(|n| invite_at(&apps[n % 2], &team))),
        at_once(
            &team,
            "projects",
            (0..20).map(|n| {
                let (app, team) = (&apps[(n + 1) % 2], &team);
                async move { project_at(app, team, &format!("Rush {n}")).await }
            })
        ),
        at_once(&team, "storage", storage),
        at_once(&team, "workflows", workflows),
    );
    refusals(invited, 9);
    refusals(made, 5);
    refused_of(stored, 3).await;
    refused_of(automated, 5).await;
    assert_eq!(there(&team.owner, "users").await, (10, Some(10)));
    assert_eq!(there(&team.owner, "projects").await, (5, Some(5)));
    assert_eq!(there(&team.owner, "storage").await, (9_000_000_000, Some(10_000_000_000)));
    assert_eq!(there(&team.owner, "workflows").await, (50, Some(50)));
}

/// A file that replaces another gives back and takes in one transaction.
#[tokio::test]
async fn who_replaces_and_who_adds_at_the_same_time_wait_for_each_other_and_go_on() {
    let app = TestApp::shared();
    for (plan, resource) in [("free", Resource::Storage), ("enterprise", Resource::Workflows)] {
        let team = team_on(&app, plan).await;
        take(&app, &team, resource, 100).unwrap();
        let outcome = on_the_servers_runtime(async {
            let replacing = begin(&app.app, &team.slug).await?;
            limits::release(&replacing, resource, 60).await?;
            let adding = tokio::spawn(take_there(app.app.clone(), team.slug.clone(), resource, 10));
            // Until it waits for what the other holds.
            tokio::time::sleep(Duration::from_millis(300)).await;
            limits::reserve(&replacing, &app.app, resource, 70).await?;
            replacing.commit().await?;
            adding.await.unwrap()
        });
        assert!(outcome.is_ok(), "{plan}: {outcome:?}");
        assert_eq!(there(&team.owner, resource.name()).await.0, 120, "{plan}");
    }
}

#[tokio::test]
async fn accepting_takes_the_place_that_was_kept_and_an_expired_invitation_keeps_none() {
    let app = TestApp::shared();
    let team = team_on(&app, "free").await;
    let invitations = team.path("/invitations");
    let one = |made: &Value| team.path(&format!("/invitations/{}", made["id"].as_str().unwrap()));
    let used = async || there(&team.owner, "users").await;
    let person = app.person().await;
    team.owner.post(&invitations, json!({"email": person.email, "role": "viewer"})).await.expect(201);
    let mut made = Vec::new();
    for _ in 0..3 {
        made.push(team.owner.post(&invitations, invitation()).await.expect(201));
    }
    assert_eq!(used().await, (5, Some(5)));
    team.owner.post(&invitations, invitation()).await.refused(402, "PLAN_LIMIT_REACHED");
    // Whoever comes in was counted before.
    let token = json!({"token": app.mail(&person.email, "invites you").await.token()});
    person.client.post("/invitations/accept", token).await.expect(200);
    assert_eq!(used().await, (5, Some(5)));
    team.owner.post(&invitations, invitation()).await.refused(402, "PLAN_LIMIT_REACHED");
    // What is revoked makes room.
    team.owner.delete(&one(&made[0])).await.expect(204);
    assert_eq!(used().await, (4, Some(5)));
    team.owner.post(&invitations, invitation()).await.expect(201);
    team.owner.post(&invitations, invitation()).await.refused(402, "PLAN_LIMIT_REACHED");
    // As if seven days had gone by.
    app.sql(&format!(
        "update platform.invitations set sent_at = now() - interval '8 days', \
         expires_at = now() - interval '1 day' \
         where organization_id = '{}' and accepted_at is null and revoked_at is null",
        team.id
    ))
    .await;
    assert_eq!(used().await, (2, Some(5)));
    for _ in 0..3 {
        team.owner.post(&invitations, invitation()).await.expect(201);
    }
    // One that has expired takes a place when it is sent again.
    let resend = format!("{}/resend", one(&made[1]));
    let refused = team.owner.post(&resend, json!(null)).await.refused(402, "PLAN_LIMIT_REACHED");
    assert_eq!((&refused["details"]["used"], &refused["details"]["limit"]), (&json!(5), &json!(5)));
    // Who is removed makes room.
    team.owner.delete(&team.path(&format!("/members/{}", person.id))).await.expect(204);
    assert_eq!(used().await, (4, Some(5)));
    team.owner.post(&resend, json!(null)).await.expect(200);
    assert_eq!(used().await, (5, Some(5)));
    team.owner.post(&invitations, invitation()).await.refused(402, "PLAN_LIMIT_REACHED");
}

#[tokio::test]
async fn a_plan_without_a_limit_makes_nobody_wait() {
    let apps = servers();
    let team = team_on(&apps[0], "enterprise").await;
    let rush = stream::iter(0..500_usize)
        .map(|n| {
            let (app, team) = (&apps[n % 2], &team);
            async move { project_at(app, team, &format!("Project {n}")).await.status.as_u16() }
        })
        .buffer_unordered(20);
    let statuses: Vec<u16> = rush.collect().await;
    assert!(statuses.len() == 500 && statuses.iter().all(|status| *status == 201), "{statuses:?}");
    assert_eq!(there(&team.owner, "projects").await, (500, None));
    assert_eq!(warnings(&team.owner, "projects").await, ([0, 0], [0, 0]));
    // Somebody else's reservation that stays open is in nobody's way.
    let held = hold(&apps[0], &team, &[(Resource::Users, 1), (Resource::Projects, 1)]);
    let others = async {
        team.project("Beside").await;
        invite_at(&apps[1], &team).await.expect(201);
    };
    tokio::time::timeout(BUSY * Duration::from_secs(5), others).await.expect("nobody waits");
    drop(held);
}

#[tokio::test]
async fn who_does_something_else_does_not_wait_for_a_reservation() {
    let apps = servers();
    let team = team_on(&apps[0], "starter").await;
    let rival = team_on(&apps[0], "starter").await;
    let project = team.project("Home").await;
    let wanted =
        [(Resource::Users, 1), (Resource::Projects, 1), (Resource::Storage, 1000), (Resource::Workflows, 1)];
    let held = hold(&apps[0], &team, &wanted);
    let others = async {
        team.task(&project, "Go on").await;
        let task = json!({"project_id": project["id"], "title": "Go on there"});
        team.owner.at(&apps[1]).post("/tasks", task).await.expect(201);
        team.owner.patch(&path(&project), json!({"name": "Home office"})).await.expect(200);
        rival.project("Elsewhere").await;
        assert_eq!(there(&team.owner, "projects").await, (1, Some(5)), "what is not committed is not used");
    };
    tokio::time::timeout(BUSY * Duration::from_secs(5), others).await.expect("nobody waits");
    // Only who wants of the same waits, and has it when the other is gone without it.
    let (there_too, same) = (apps[0].clone(), team.clone());
    let waiting = tokio::spawn(async move { project_at(&there_too, &same, "Next").await });
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!waiting.is_finished(), "two count at the same time");
    drop(held);
    waiting.await.unwrap().expect(201);
    for (resource, expected) in [("users", 1), ("projects", 2), ("storage", 0), ("workflows", 0)] {
        assert_eq!(there(&team.owner, resource).await.0, expected, "{resource}");
    }
}

#[tokio::test]
async fn a_reservation_that_comes_to_nothing_leaves_nothing() {
    let app = TestApp::shared();
    let team = team_on(&app, "starter").await;
    // What is undone was not reached either: nothing is told of it, and the next time it is.
    drop(hold(&app, &team, &[(Resource::Workflows, 50), (Resource::Storage, 10_000_000_000)]));
    for resource in ["workflows", "storage"] {
        assert_eq!(there(&team.owner, resource).await.0, 0, "{resource}");
    }
    take(&app, &team, Resource::Workflows, 50).unwrap();
    within(10, "it is told", || async { warnings(&team.owner, "workflows").await == ([0, 0], [1, 1]) }).await;
    assert_eq!(told(&team.owner, "limit.reached", "storage").await, [] as [Value; 0]);
    // Refused after the place was taken: for the slug, by a limit of something else.
    let body = json!({"name": "Home", "slug": "home"});
    team.owner.post("/projects", body.clone()).await.expect(201);
    for _ in 0..10 {
        team.owner.post("/projects", body.clone()).await.refused(409, "CONFLICT");
    }
    assert_eq!(there(&team.owner, "projects").await, (1, Some(5)));
    let outcome = on_the_servers_runtime(async {
        let tx = begin(&app.app, &team.slug).await?;
        limits::reserve(&tx, &app.app, Resource::Storage, 500).await?;
        limits::reserve(&tx, &app.app, Resource::Workflows, 1).await?;
        tx.commit().await
    });
    assert_eq!(details(&outcome.unwrap_err()).await["resource"], "workflows");
    assert_eq!(there(&team.owner, "storage").await.0, 0);
}

#[tokio::test]
async fn the_upgrade_that_is_named_is_one_that_fits() {
    const GB: i64 = 1_000_000_000;
    let app = TestApp::shared();
    for (plan, limit, amount, upgrade) in [
        ("free", 1, 2, json!("starter")),
        ("free", 1, 20, json!("professional")),
        ("free", 1, 200, json!("enterprise")),
        ("free", 1, 2000, json!(null)),
        ("professional", 100, 101, json!("enterprise")),
        ("enterprise", 1000, 1001, json!(null)),
    ] {
        let team = team_on(&app, plan).await;
        let refused = take(&app, &team, Resource::Storage, amount * GB).unwrap_err();
        assert_eq!(
            details(&refused).await,
            json!({"resource": "storage", "limit": limit * GB, "used": 0, "plan": plan, "upgrade": upgrade,
                "upgrade_at": billing_page(&app)})
        );
        assert_eq!(there(&team.owner, "storage").await, (0, Some(limit * GB)));
    }
    // Where the smaller one would do again, it is named again.
    let team = team_on(&app, "free").await;
    team.project("Only").await;
    let refused = project_at(&app, &team, "Second").await.refused(402, "PLAN_LIMIT_REACHED");
    assert_eq!(refused["details"]["upgrade"], "starter");
    let said = refused["message"].as_str().unwrap();
    assert!(said.contains("free") && said.contains("starter"), "{said}");
    team.plan("starter").await;
    project_at(&app, &team, "Second").await.expect(201);
}

#[tokio::test]
async fn a_changed_plan_is_in_force_at_once_and_takes_nothing_away() {
    let app = TestApp::with(|_| {});
    let there_too = app.beside();
    let staff = app.superuser().await;
    let change = async |body: Value| staff.client.patch("/admin/plans/free", body).await.expect(200);
    let team = team_on(&app, "free").await;
    let first = team.project("First").await;
    project_at(&there_too, &team, "Second").await.refused(402, "PLAN_LIMIT_REACHED");
    // More, at another instance without a moment's delay.
    assert_eq!(change(json!({"projects": 2})).await["limits"]["projects"], 2);
    let second = project_at(&there_too, &team, "Second").await.expect(201);
    let refused = project_at(&there_too, &team, "Third").await.refused(402, "PLAN_LIMIT_REACHED");
    assert_eq!((&refused["details"]["limit"], &refused["details"]["used"]), (&json!(2), &json!(2)));
    let offers = app.anonymous().at(&there_too).get("/plans").await.expect(200);
    assert_eq!(offers["data"][0]["limits"]["projects"], 2);
    // Less than there is: all of it stays and can be worked on, and nothing comes to it.
    change(json!({"projects": 1})).await;
    let refused = project_at(&there_too, &team, "Third").await.refused(402, "PLAN_LIMIT_REACHED");
    assert_eq!((&refused["details"]["limit"], &refused["details"]["used"]), (&json!(1), &json!(2)));
    assert_eq!(there(&team.owner, "projects").await, (2, Some(1)));
    assert_eq!(team.owner.get("/projects").await.expect(200)["total"], 2);
    team.owner.patch(&path(&second), json!({"name": "Still here"})).await.expect(200);
    team.task(&second, "Go on").await;
    team.owner.delete(&path(&first)).await.expect(204);
    project_at(&app, &team, "Third").await.refused(402, "PLAN_LIMIT_REACHED");
    team.owner.delete(&path(&second)).await.expect(204);
    let third = project_at(&app, &team, "Third").await.expect(201);
    // None at all, and none but what one has.
    change(json!({"projects": 0})).await;
    let refused = project_at(&app, &team, "Fourth").await.refused(402, "PLAN_LIMIT_REACHED");
    assert_eq!((&refused["details"]["limit"], &refused["details"]["used"]), (&json!(0), &json!(1)));
    assert_eq!(team.owner.get(&path(&third)).await.expect(200)["name"], "Third");
    change(json!({"projects": null})).await;
    for n in 0..5 {
        project_at(&there_too, &team, &format!("More {n}")).await.expect(201);
    }
    assert_eq!(there(&team.owner, "projects").await, (6, None));
    // Users alike, with those who are invited.
    for _ in 0..3 {
        invite_at(&app, &team).await.expect(201);
    }
    change(json!({"users": 2})).await;
    let refused = invite_at(&there_too, &team).await.refused(402, "PLAN_LIMIT_REACHED");
    assert_eq!((&refused["details"]["limit"], &refused["details"]["used"]), (&json!(2), &json!(4)));
    let open = team.owner.get(&team.path("/invitations")).await.expect(200);
    assert_eq!(open["total"], 3);
    // Storage and workflows alike.
    take(&app, &team, Resource::Workflows, 10).unwrap();
    assert!(take(&there_too, &team, Resource::Workflows, 1).is_err());
    change(json!({"workflows": 11, "storage_bytes": 5})).await;
    take(&there_too, &team, Resource::Workflows, 1).unwrap();
    assert!(take(&there_too, &team, Resource::Storage, 6).is_err());
    take(&there_too, &team, Resource::Storage, 5).unwrap();
    // And features, as fast as instances hear of it.
    let on = async |app: &TestApp| {
        team.owner.at(app).get("/features").await.expect(200)["features"]["audit-export"].clone()
    };
    assert_eq!((on(&app).await, on(&there_too).await), (json!(false), json!(false)));
    change(json!({"features": ["audit-export"]})).await;
    assert_eq!(on(&app).await, true);
    within_a_second("known everywhere", || async { on(&there_too).await == true }).await;
    assert_eq!(team.owner.get("/audit-log/export").await.status, 200);
    // Who is on another plan sees nothing of it.
    let other = team_on(&app, "starter").await;
    assert_eq!(there(&other.owner, "projects").await, (0, Some(5)));
}

#[tokio::test]
async fn four_fifths_and_all_of_a_limit_are_told_once_a_month_each() {
    let app = TestApp::with(|_| {});
    // To the middle of the next month, so that no month ends during the first half.
    let now = app.app.clock.now();
    let first = now.date_naive().with_day(1).unwrap();
    let noon = (first + Months::new(1) + Days::new(14)).and_hms_opt(12, 0, 0).unwrap().and_utc();
    app.app.clock.advance(noon - now);
    let team = team_on(&app, "starter").await;
    let project =
        async |client: &Client, name: &str| client.post("/projects", json!({"name": name})).await.expect(201);
    for name in ["One", "Two", "Three"] {
        project(&team.owner, name).await;
    }
    team.settled().await;
    assert_eq!(warnings(&team.owner, "projects").await, ([0, 0], [0, 0]));
    let fourth = project(&team.owner, "Four").await;
    let counts = async || warnings(&team.owner, "projects").await;
    within(10, "four fifths are told", || async { counts().await == ([1, 1], [0, 0]) }).await;
    assert_eq!(
        told(&team.owner, "limit.approached", "projects").await,
        [json!({"resource": "projects", "used": 4, "limit": 5, "plan": "starter", "percent": 80})]
    );
    let notices = team.owner.get("/notifications?kind=limit_approached").await.expect(200);
    let notice = &notices["data"][0];
    assert!(notice["body"].as_str().unwrap().contains("4 of 5 projects"), "{notice}");
    assert_eq!(notice["path"], "/settings/billing");
    let fifth = project(&team.owner, "Five").await;
    within(10, "the end is told", || async { counts().await == ([1, 1], [1, 1]) }).await;
    assert_eq!(
        told(&team.owner, "limit.reached", "projects").await,
        [json!({"resource": "projects", "used": 5, "limit": 5, "plan": "starter", "percent": 100})]
    );
    // To want more, to remove some and to make them anew tells nothing new.
    team.owner.post("/projects", json!({"name": "Six"})).await.refused(402, "PLAN_LIMIT_REACHED");
    for gone in [&fourth, &fifth] {
        team.owner.delete(&path(gone)).await.expect(204);
    }
    let again = [project(&team.owner, "Four").await, project(&team.owner, "Five").await];
    team.settled().await;
    assert_eq!(counts().await, ([1, 1], [1, 1]));
    // In the next month it is news again.
    app.app.clock.advance(TimeDelta::days(31));
    let owner = log_in(&team).await;
    team.settled().await;
    assert_eq!(warnings(&owner, "projects").await, ([1, 1], [1, 1]), "a month that begins tells nothing");
    for gone in &again {
        owner.delete(&path(gone)).await.expect(204);
    }
    project(&owner, "Four").await;
    within(10, "told again", || async { warnings(&owner, "projects").await == ([2, 2], [1, 1]) }).await;
    project(&owner, "Five").await;
    within(10, "told again", || async { warnings(&owner, "projects").await == ([2, 2], [2, 2]) }).await;
    team.settled().await;
    assert_eq!(warnings(&owner, "projects").await, ([2, 2], [2, 2]));
}

#[tokio::test]
async fn limits_are_told_to_those_who_see_bills_and_the_highest_says_it_all() {
    let app = TestApp::shared();
    let team = team_on(&app, "starter").await;
    let (admin, member) = (team.join(Role::Admin).await, team.join(Role::Member).await);
    // From nothing to everything.
    take(&app, &team, Resource::Workflows, 50).unwrap();
    within(10, "it is told", || async { warnings(&team.owner, "workflows").await == ([0, 0], [1, 1]) }).await;
    // Step by step, invitation by invitation.
    for _ in 0..4 {
        invite_at(&app, &team).await.expect(201);
    }
    team.settled().await;
    assert_eq!(told(&team.owner, "limit.approached", "users").await, [] as [Value; 0]);
    invite_at(&app, &team).await.expect(201);
    within(10, "told", || async { told(&team.owner, "limit.approached", "users").await.len() == 1 }).await;
    for _ in 0..2 {
        invite_at(&app, &team).await.expect(201);
    }
    within(10, "told", || async { told(&team.owner, "limit.reached", "users").await.len() == 1 }).await;
    team.settled().await;
    // Two that were reached, one that was approached.
    assert_eq!(warnings(&team.owner, "users").await, ([1, 1], [1, 2]));
    assert_eq!(warnings(&admin.client, "users").await, ([1, 1], [1, 2]));
    assert_eq!(warnings(&member.client, "users").await, ([0, 0], [0, 0]));
    member.client.get("/subscriptions/current").await.refused(403, "PERMISSION_DENIED");
}

#[tokio::test]
async fn features_come_with_the_plan() {
    let app = TestApp::shared();
    let team = app.team().await;
    let domain = || json!({"domain": format!("tasks.d{}.test", Uuid::now_v7().simple())});
    let number = || json!({"number": format!("+65{:010}", Uuid::now_v7().as_u128() % 10_000_000_000)});
    let lacks = |answer: Answer, feature: &str, plan: &str, upgrade: &str| {
        let details = answer.refused(402, "PLAN_LIMIT_REACHED")["details"].clone();
        let page = billing_page(&app);
        let expected = json!({"feature": feature, "plan": plan, "upgrade": upgrade, "upgrade_at": page});
        assert_eq!(details, expected);
    };
    let mut added = None;
    for (plan, domains, export, sms) in [
        ("free", false, false, false),
        ("starter", true, false, false),
        ("professional", true, true, true),
        ("enterprise", true, true, true),
    ] {
        team.plan(plan).await;
        let features = team.owner.get("/features").await.expect(200)["features"].clone();
        let shown = ["custom-domains", "audit-export", "sms"].map(|name| features[name].clone());
        assert_eq!(shown, [json!(domains), json!(export), json!(sms)], "{plan}");
        let answer = team.owner.post(&team.path("/domains"), domain()).await;
        match domains {
            true => added = Some(answer.expect(201)),
            false => lacks(answer, "custom-domains", plan, "starter"),
        }
        let answer = team.owner.get("/audit-log/export").await;
        match export {
            true => assert_eq!((answer.status.as_u16(), answer.text.is_empty()), (200, false)),
            false => lacks(answer, "audit-export", plan, "professional"),
        }
        // What is exported can be read all the same.
        team.owner.get("/audit-log").await.expect(200);
        let answer = team.owner.post("/notifications/sms-number", number()).await;
        match sms {
            true => drop(answer.expect(202)),
            false => lacks(answer, "sms", plan, "professional"),
        }
    }
    // Back on a smaller plan, what is there can be seen and removed.
    team.plan("free").await;
    let kept = team.owner.get(&team.path("/domains")).await.expect(200);
    assert_eq!(kept["total"], 3);
    let id = added.unwrap()["id"].as_str().unwrap().to_owned();
    team.owner.delete(&team.path(&format!("/domains/{id}"))).await.expect(204);
    team.owner.delete("/notifications/sms-number").await.expect(204);
    let answer = team.owner.post(&team.path("/domains"), domain()).await;
    lacks(answer, "custom-domains", "free", "starter");
    // A program is told the same.
    let scopes = json!(["audit:read"]);
    let key = team.owner.post("/api-keys", json!({"name": "Exporter", "scopes": scopes})).await.expect(201);
    let program = app.anonymous().header("x-api-key", key["key"].as_str().unwrap());
    lacks(program.get("/audit-log/export").await, "audit-export", "free", "professional");
    // Who may not do it at all is told that.
    let viewer = team.join(Role::Viewer).await;
    viewer.client.get("/audit-log/export").await.refused(403, "PERMISSION_DENIED");
}

#[tokio::test]
async fn the_subscription_shows_what_is_used_and_allowed_of_everything() {
    let app = TestApp::shared();
    let team = team_on(&app, "free").await;
    let limits = async || team.owner.get("/subscriptions/current").await.expect(200)["limits"].clone();
    let table = |used: [i64; 5], limits: [Option<i64>; 5]| -> Value {
        let names = ["users", "projects", "api_calls", "storage", "workflows"];
        let lines = (0..5).map(|n| json!({"resource": names[n], "used": used[n], "limit": limits[n]}));
        lines.collect()
    };
    let free = [Some(5), Some(1), Some(1000), Some(1_000_000_000), Some(10)];
    assert_eq!(limits().await, table([1, 0, 0, 0, 0], free));
    team.project("Home").await;
    team.join(Role::Viewer).await;
    invite_at(&app, &team).await.expect(201);
    take(&app, &team, Resource::Storage, 1234).unwrap();
    take(&app, &team, Resource::Workflows, 3).unwrap();
    let new = json!({"name": "Program", "scopes": ["projects:read"]});
    let key = team.owner.post("/api-keys", new).await.expect(201);
    let program = app.anonymous().header("x-api-key", key["key"].as_str().unwrap());
    for _ in 0..2 {
        program.get("/projects").await.expect(200);
    }
    within(10, "calls are counted", || async { there(&team.owner, "api_calls").await.0 == 2 }).await;
    assert_eq!(limits().await, table([3, 1, 2, 1234, 3], free));
    team.plan("enterprise").await;
    let enterprise = [None, None, None, Some(1_000_000_000_000), None];
    assert_eq!(limits().await, table([3, 1, 2, 1234, 3], enterprise));
    // Nothing of it is another organization's.
    let rival = team_on(&app, "free").await;
    assert_eq!(there(&rival.owner, "storage").await, (0, Some(1_000_000_000)));
    rival.owner.within(&team.id).get("/subscriptions/current").await.refused(404, "TENANT_NOT_FOUND");
}

#[tokio::test]
async fn anybody_can_see_the_plans() {
    let app = TestApp::shared();
    let offers = app.anonymous().get("/plans").await.expect(200);
    let lines: Vec<Value> = offers["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|plan| {
            let limits = &plan["limits"];
            json!([
                plan["name"],
                plan["title"],
                limits["users"],
                limits["projects"],
                limits["api_calls"],
                limits["storage_bytes"],
                limits["workflows"],
                plan["price"],
                plan["features"],
                plan["trial_days"],
            ])
        })
        .collect();
    let (gb, sgd) = (1_000_000_000_i64, |amount: &str| json!({"amount": amount, "currency": "SGD"}));
    let all = json!(["custom-domains", "audit-export", "sms"]);
    assert_eq!(
        lines,
        [
            json!(["free", "Free", 5, 1, 1000, gb, 10, sgd("0.00"), [], 0]),
            json!(["starter", "Starter", 10, 5, 10_000, 10 * gb, 50, sgd("49.00"), ["custom-domains"], 14]),
            json!(["professional", "Professional", 50, 20, 100_000, 100 * gb, 200, sgd("199.00"), all, 14]),
            json!(["enterprise", "Enterprise", null, null, null, 1000 * gb, null, null, all, 0]),
        ]
    );
}
