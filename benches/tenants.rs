//! Organizations to measure with: each with an owner who is logged in and a page of projects.

use std::time::{Duration, Instant};

use anyhow::ensure;
use futures_util::{StreamExt, TryStreamExt, stream};
use rowhouse::{
    accounts::{self, NewUser, sessions},
    app::App,
    audit::Actor,
    auth::{Origin, passwords::Password},
    organizations::{self, NewOrganization},
    tenancy::fleet,
    types::{Email, Name},
};
use serde_json::json;
use tokio::time::sleep;
use uuid::Uuid;

use crate::{
    Ground,
    load::{NUMBER, Request},
};

pub const PASSWORD: &str = "Correct-Horse-7-Battery";
/// As many as a page shows.
pub const PROJECTS: i32 = 20;
/// Made at the same time.
const AT_ONCE: usize = 4;

/// An organization, and how to speak for it.
pub struct Tenant {
    pub organization: Uuid,
    pub schema: String,
    project: Uuid,
    email: String,
    token: String,
}

impl Tenant {
    /// A page of projects with their number.
    pub fn list(&self) -> Request {
        Request::get("localhost", "/api/v1/projects", &self.head())
    }

    /// A read of this path.
    pub fn ask(&self, path: &str) -> Request {
        Request::get("localhost", path, &self.head())
    }

    pub fn get(&self) -> Request {
        Request::get("localhost", &format!("/api/v1/projects/{}", self.project), &self.head())
    }

    pub fn create(&self) -> Request {
        let new = json!({"name": format!("Made {NUMBER}"), "description": "One of many"});
        Request::post("localhost", "/api/v1/projects", &self.head(), &new)
    }

    pub fn log_in(&self) -> Request {
        let credentials = json!({"email": self.email, "password": PASSWORD});
        Request::post("localhost", "/api/v1/auth/login", "", &credentials)
    }

    pub fn head(&self) -> String {
        format!("authorization: Bearer {}\r\nx-organization-id: {}\r\n", self.token, self.organization)
    }
}

/// Makes organizations until there are `count` in the database, and tells how long that took.
pub async fn grow(
    ground: &Ground,
    database: &str,
    tenants: &mut Vec<Tenant>,
    count: usize,
) -> anyhow::Result<Duration> {
    let app = ground.app(database).await?;
    app.keys.load(app.clock.now()).await?;
    let tx = app.db.begin().await?;
    tx.execute("update platform.databases set capacity = 100000", &[]).await?;
    tx.commit().await?;
    let hash = app.passwords.hash(&PASSWORD.parse::<Password>().map_err(anyhow::Error::msg)?).await?;
    let started = Instant::now();
    let (app, hash) = (&*app, hash.as_str());
    let making = (tenants.len()..count).map(|number| make(app, hash, number));
    let made: Vec<Tenant> = stream::iter(making).buffer_unordered(AT_ONCE).try_collect().await?;
    tenants.extend(made);
    Ok(started.elapsed())
}

async fn make(app: &App, hash: &str, number: usize) -> anyhow::Result<Tenant> {
    let (tx, tenant) = fleet::begin_new_tenant(&app.db, &app.directory).await?;
    let email = format!("owner{number}@example.com");
    let address: Email = email.parse().map_err(anyhow::Error::msg)?;
    let new =
        NewUser { email: &address, username: None, hash: hash.to_owned(), first_name: None, last_name: None };
    let user = accounts::insert(&tx, app, new).await?;
    let name: Name = format!("Tenant {number}").parse().map_err(anyhow::Error::msg)?;
    let owner = Actor::user(user, Origin::default());
    organizations::insert(&tx, app, &owner, NewOrganization::named(name)).await?;
    let unlimited = "update platform.organizations set plan = 'enterprise' where id = $1";
    tx.execute(unlimited, &[&tenant.id()]).await?;
    tx.execute(
        "insert into projects (id, name, slug, description, status, priority, owner_id, created_by, \
         budget_amount, budget_currency, created_at, updated_at) \
         select gen_random_uuid(), 'Project ' || n, 'project-' || n, 'One of twenty', 'active', 'medium', $1, $1, \
         1500, 'SGD', now() - n * interval '1 minute', now() from generate_series(1, $2) as n",
        &[&user, &PROJECTS],
    )
    .await?;
    tx.execute(
        "insert into project_members (project_id, user_id, added_at) select id, $1, now() from projects",
        &[&user],
    )
    .await?;
    let project = tx.query_one("select id from projects order by slug limit 1", &[]).await?.try_get("id")?;
    let token = sessions::begin(&tx, app, user, &Origin::default()).await?.access_token;
    let schema = tx.schema().to_string();
    tx.commit().await?;
    Ok(Tenant { organization: tenant.id(), schema, project, email, token })
}

/// Waits until nothing is left to be told or sealed, and what was written is on the disk: none of that
/// is to go on while something else is measured.
pub async fn settle(ground: &Ground, database: &str) -> anyhow::Result<()> {
    let client = ground.client(database).await?;
    let started = Instant::now();
    let sql = "select exists (select from platform.outbox) or exists (select from platform.audit_unsealed)";
    while client.query_one(sql, &[]).await?.try_get::<_, bool>(0)? {
        ensure!(started.elapsed() < Duration::from_secs(60), "events are not told, or entries not sealed");
        sleep(Duration::from_millis(100)).await;
    }
    client.batch_execute("checkpoint").await?;
    Ok(())
}
