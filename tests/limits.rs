//! Rate limits: in process and through a real Redis, which goes away and comes back.

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
};

use chrono::TimeDelta;
use rowhouse::auth::Role;
use serde_json::json;

use crate::support::{Answer, PASSWORD, TestApp, unique_email, within};

/// A Redis server of the test's own.
struct Redis {
    port: u16,
    child: Child,
}

impl Redis {
    fn start(port: Option<u16>) -> Self {
        Self::start_with(port, &[])
    }

    fn start_with(port: Option<u16>, more: &[&str]) -> Self {
        let port =
            port.unwrap_or_else(|| TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port());
        let child = ["redis-server", "valkey-server"]
            .iter()
            .find_map(|program| {
                let mut command = Command::new(program);
                command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""]);
                command.args(more).stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()
            })
            .expect("`make test` installs a Redis server where it is missing");
        Self { port, child }
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn remaining(answer: &Answer, policy: &str) -> i64 {
    let header = answer.header("ratelimit");
    let entry = header.split(", ").find(|entry| entry.starts_with(&format!("\"{policy}\"")));
    let entry = entry.unwrap_or_else(|| panic!("no {policy} in {header:?}"));
    entry.split(';').find_map(|part| part.strip_prefix("r=")).unwrap().parse().unwrap()
}

#[tokio::test]
async fn users_and_organizations_are_limited_and_told_how_they_stand() {
    let app = TestApp::with(|config| {
        config.limits.user = "5/h".parse().unwrap();
        config.limits.organization = "8/h".parse().unwrap();
    });
    let team = app.team().await;
    team.plan("free").await;
    let member = team.join(Role::Viewer).await;
    let first = team.owner.get("/projects").await;
    assert_eq!(first.header("ratelimit-policy"), "\"user\";q=5;w=3600, \"organization\";q=8;w=3600");
    assert_eq!((remaining(&first, "user"), remaining(&first, "organization")), (4, 7));
    for _ in 0..4 {
        team.owner.get("/projects").await.expect(200);
    }
    let refused = team.owner.get("/projects").await;
    let seconds: i64 = refused.header("retry-after").parse().unwrap();
    assert!((600..=720).contains(&seconds), "{seconds}");
    assert_eq!(remaining(&refused, "user"), 0);
    refused.refused(429, "RATE_LIMIT");
    // The organization's is shared, and what was refused to one is not taken from all.
    for _ in 0..3 {
        member.client.get("/projects").await.expect(200);
    }
    let shared = member.client.get("/projects").await;
    shared.refused(429, "RATE_LIMIT");
    let rival = app.team().await;
    rival.owner.get("/projects").await.expect(200);
    app.app.clock.advance(TimeDelta::minutes(13));
    team.owner.get("/projects").await.expect(200);
    team.owner.get("/projects").await.refused(429, "RATE_LIMIT");
}

#[tokio::test]
async fn a_plan_raises_the_organization_s_limit() {
    let app = TestApp::with(|config| {
        config.limits.organization = "2/h".parse().unwrap();
        config.limits.organization_professional = "50/h".parse().unwrap();
    });
    let team = app.team().await;
    team.plan("free").await;
    let staff = app.superuser().await;
    team.owner.get("/projects").await.expect(200);
    let plan = format!("/admin/organizations/{}/plan", team.id);
    let body = json!({"plan": "professional"});
    let request = staff.client.request(reqwest::Method::PUT, &plan).json(&body);
    Answer::of(request).await.expect(200);
    let answer = team.owner.get("/projects").await;
    assert!(answer.header("ratelimit-policy").contains("q=50"), "{}", answer.header("ratelimit-policy"));
}

#[tokio::test]
async fn strangers_are_limited_by_address_and_cannot_choose_theirs() {
    let app = TestApp::with(|config| {
        config.limits.anonymous = "5/h".parse().unwrap();
        config.http.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
    });
    let from = |address: &str| app.anonymous().header("x-forwarded-for", address);
    let login = json!({"email": unique_email(), "password": PASSWORD});
    for _ in 0..3 {
        from("198.51.100.1").post("/auth/login", login.clone()).await.refused(401, "AUTH_FAILED");
    }
    // Wrong credentials count as well.
    let forged = from("198.51.100.1").with_token("not.a.token");
    for _ in 0..2 {
        forged.get("/auth/user").await.refused(401, "AUTH_FAILED");
    }
    from("198.51.100.1").post("/auth/login", login.clone()).await.refused(429, "RATE_LIMIT");
    forged.get("/auth/user").await.refused(429, "RATE_LIMIT");
    from("198.51.100.2").post("/auth/login", login.clone()).await.refused(401, "AUTH_FAILED");
    // What the client wrote itself stands left of what the proxy wrote.
    from("198.51.100.9, 198.51.100.1").post("/auth/login", login.clone()).await.refused(429, "RATE_LIMIT");
    // One subscriber has many addresses of the new kind.
    for n in 0..5 {
        from(&format!("2001:db8:1:1::{n}"))
            .post("/auth/login", login.clone())
            .await
            .refused(401, "AUTH_FAILED");
    }
    from("2001:db8:1:1:ffff::1").post("/auth/login", login.clone()).await.refused(429, "RATE_LIMIT");
    from("2001:db8:1:2::1").post("/auth/login", login).await.refused(401, "AUTH_FAILED");
}

#[tokio::test]
async fn without_trusted_proxies_nobody_s_word_counts() {
    let app = TestApp::with(|config| config.limits.anonymous = "2/h".parse().unwrap());
    let login = json!({"email": unique_email(), "password": PASSWORD});
    for (n, status) in [(1, 401), (2, 401), (3, 429)] {
        let client = app.anonymous().header("x-forwarded-for", &format!("198.51.100.{n}"));
        assert_eq!(client.post("/auth/login", login.clone()).await.status, status);
    }
}

#[tokio::test]
async fn what_can_be_abused_has_limits_of_its_own() {
    let app = TestApp::with(|config| {
        config.limits.register = "2/h".parse().unwrap();
        config.limits.login = "3/5m".parse().unwrap();
        config.limits.password_reset = "3/h".parse().unwrap();
        config.limits.change_password = "2/h".parse().unwrap();
    });
    let person = app.person().await;
    app.person().await;
    let new = json!({"email": unique_email(), "password": PASSWORD});
    app.anonymous().post("/auth/register", new).await.refused(429, "RATE_LIMIT");
    let login = json!({"email": person.email, "password": PASSWORD});
    for _ in 0..3 {
        app.anonymous().post("/auth/login", login.clone()).await.expect(200);
    }
    app.anonymous().post("/auth/login", login).await.refused(429, "RATE_LIMIT");
    let told = person.client.get("/auth/security-events?type=rate_limit").await.expect(200);
    assert_eq!(told["data"].as_array().unwrap().len(), 1);
    for _ in 0..3 {
        app.anonymous().post("/auth/password/reset", json!({"email": unique_email()})).await.expect(202);
    }
    let fourth = app.anonymous().post("/auth/password/reset", json!({"email": unique_email()})).await;
    fourth.refused(429, "RATE_LIMIT");
    let change =
        json!({"current_password": "Wrong-Horse-7-Battery", "new_password": "Purple-Kettle-42-Rain"});
    for _ in 0..2 {
        let answer = person.client.post("/auth/password/change", change.clone()).await;
        answer.refused(400, "VALIDATION_ERROR");
    }
    person.client.post("/auth/password/change", change).await.refused(429, "RATE_LIMIT");
}

/// How often somebody is measured: an instance that waits too long for Redis, as on a busy machine, counts by
/// itself for a moment, which is right and not exact.
const TRIES: usize = 3;

/// Of somebody's eight requests, the instances in turn, six pass.
async fn exactly_six(app: &TestApp, there: &TestApp) {
    let mut statuses = Vec::new();
    for _ in 0..TRIES {
        for instance in [app, there] {
            within(10, "Redis is reached", || instance.shares_limits()).await;
        }
        let team = app.team().await;
        statuses.clear();
        for n in 0..8 {
            let client = if n % 2 == 0 { team.owner.clone() } else { team.owner.at(there) };
            statuses.push(client.get("/projects").await.status.as_u16());
        }
        if statuses == [200, 200, 200, 200, 200, 200, 429, 429] {
            return;
        }
    }
    panic!("{statuses:?}");
}

#[tokio::test]
async fn with_redis_instances_share_limits_and_without_it_they_go_on() {
    let redis = Redis::start(None);
    let app = TestApp::with(|config| {
        config.limits.user = "6/h".parse().unwrap();
        config.redis.url = Some(redis.url().into());
    });
    let there = app.beside();
    let gauge = format!("rowhouse_redis_up{{server=\"127.0.0.1:{}\"}} ", redis.port);
    let up = async || {
        let metrics =
            app.http.get(format!("{}/metrics", app.base)).send().await.unwrap().text().await.unwrap();
        metrics.lines().find_map(|line| line.strip_prefix(&gauge)).map(str::to_owned)
    };
    let both_share = async || app.shares_limits().await && there.shares_limits().await;
    within(5, "Redis is reached", &both_share).await;
    assert_eq!(up().await.as_deref(), Some("1"));
    // Exact over both instances.
    exactly_six(&app, &there).await;
    // Gone: each instance limits by itself, and says so.
    let port = redis.port;
    drop(redis);
    let other = app.person().await;
    let mut here = 0;
    for _ in 0..8 {
        here += u32::from(other.client.get("/auth/user").await.status == 200);
    }
    assert_eq!(here, 6, "this instance limits by itself");
    other.client.at(&there).get("/auth/user").await.expect(200);
    assert_eq!(up().await.as_deref(), Some("0"));
    // Back: exact again, without a restart.
    let redis = Redis::start(Some(port));
    within(10, "Redis is used again", &both_share).await;
    assert_eq!(up().await.as_deref(), Some("1"));
    exactly_six(&app, &there).await;
    drop(redis);
}

#[tokio::test]
async fn simultaneous_requests_get_exactly_what_there_is() {
    let redis = Redis::start(None);
    for url in [None, Some(redis.url())] {
        let app = TestApp::with(|config| {
            config.limits.user = "10/h".parse().unwrap();
            config.redis.url = url.map(Into::into);
            config.database.pool_size = 8;
        });
        let shares = app.app.config.redis.url.is_some();
        let mut allowed = 0;
        for _ in 0..if shares { TRIES } else { 1 } {
            if shares {
                within(5, "Redis is reached", || app.shares_limits()).await;
            }
            let person = app.person().await;
            let requests = (0..30).map(|_| person.client.get("/auth/user"));
            let answers = futures_util::future::join_all(requests).await;
            allowed = answers.iter().filter(|answer| answer.status == 200).count();
            if allowed == 10 {
                break;
            }
        }
        assert_eq!(allowed, 10);
    }
}

#[tokio::test]
async fn a_cluster_counts_like_one_server() {
    let home = |name: &str| {
        std::env::temp_dir().join(format!("rowhouse-{name}-{}.conf", uuid::Uuid::now_v7().simple()))
    };
    let files = [home("one"), home("two")];
    let start = |file: &std::path::Path| {
        let file = file.file_name().unwrap().to_str().unwrap();
        let dir = std::env::temp_dir();
        Redis::start_with(
            None,
            &["--cluster-enabled", "yes", "--cluster-config-file", file, "--dir", dir.to_str().unwrap()],
        )
    };
    let nodes = [start(&files[0]), start(&files[1])];
    let ask = async |node: &Redis, arguments: &[&str]| -> redis::RedisResult<redis::Value> {
        let client = redis::Client::open(node.url())?;
        let mut connection = client.get_multiplexed_async_connection().await?;
        redis::cmd("CLUSTER").arg(arguments).query_async(&mut connection).await
    };
    within(5, "both nodes answer", || async {
        ask(&nodes[0], &["INFO"]).await.is_ok() && ask(&nodes[1], &["INFO"]).await.is_ok()
    })
    .await;
    ask(&nodes[0], &["ADDSLOTSRANGE", "0", "8191"]).await.unwrap();
    ask(&nodes[1], &["ADDSLOTSRANGE", "8192", "16383"]).await.unwrap();
    ask(&nodes[0], &["MEET", "127.0.0.1", &nodes[1].port.to_string()]).await.unwrap();
    within(20, "the cluster is whole", || async {
        let told = format!("{:?}", ask(&nodes[0], &["INFO"]).await)
            + &format!("{:?}", ask(&nodes[1], &["INFO"]).await);
        told.matches("cluster_state:ok").count() == 2
    })
    .await;
    let app = TestApp::with(|config| {
        config.limits.user = "6/h".parse().unwrap();
        config.limits.organization = "1000/h".parse().unwrap();
        config.redis.url = Some(format!("{},{}", nodes[0].url(), nodes[1].url()).into());
    });
    let there = app.beside();
    for instance in [&app, &there] {
        within(10, "the cluster is reached", || instance.shares_limits()).await;
    }
    // Users and organizations live on either node.
    for _ in 0..6 {
        exactly_six(&app, &there).await;
    }
    for file in files {
        let _ = std::fs::remove_file(file);
    }
}

/// Whoever has nothing left does not use up what they share with others, nor does a stranger to it.
#[tokio::test]
async fn one_caller_cannot_starve_an_organization() {
    let redis = Redis::start(None);
    for url in [None, Some(redis.url())] {
        let app = TestApp::with(|config| {
            config.limits.user = "60/h".parse().unwrap();
            config.limits.organization = "30/h".parse().unwrap();
            config.redis.url = url.map(Into::into);
        });
        let team = app.team().await;
        let out = team.join(Role::Viewer).await;
        let body = json!({"name": "Slow", "scopes": ["projects:read"], "rate_per_hour": 2});
        let key = team.owner.post("/api-keys", body).await.expect(201);
        let program = app.anonymous().header("x-api-key", key["key"].as_str().unwrap());
        for _ in 0..40 {
            program.get("/projects").await;
        }
        let member = team.path(&format!("/members/{}", out.id));
        team.owner.patch(&member, json!({"is_active": false})).await.expect(200);
        for _ in 0..40 {
            out.client.get("/projects").await.refused(403, "PERMISSION_DENIED");
        }
        let answer = team.owner.get("/projects").await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        assert!(remaining(&answer, "organization") >= 24, "{}", answer.header("ratelimit"));
    }
}

/// Requests that come to nothing count as well.
#[tokio::test]
async fn asking_for_what_is_not_there_is_limited_too() {
    let app = TestApp::with(|config| config.limits.user = "5/h".parse().unwrap());
    let person = app.person().await;
    for n in 0..5 {
        let client = person.client.within(&format!("no-such-team-{n}"));
        client.get("/projects").await.refused(404, "TENANT_NOT_FOUND");
    }
    person.client.within("no-such-team").get("/projects").await.refused(429, "RATE_LIMIT");
}
