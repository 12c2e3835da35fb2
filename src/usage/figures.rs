//! How an organization is doing, in figures.
//!
//! The platform knows members and usage; each module adds what it knows ([`ModuleFigures`]). They are
//! worked out at most every five minutes for an organization, at each instance.

use std::{
    collections::{BTreeMap, HashSet},
    num::NonZeroUsize,
    sync::{Mutex, MutexGuard},
};

use chrono::{DateTime, Months, TimeDelta, Utc};
use futures_util::{future::BoxFuture, join};
use lru::LruCache;
use poem_openapi::{Object, OpenApi, param::Path, types::Example};
use serde::Serialize;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    api::Tag,
    app::App,
    auth::{Can, permissions::AnalyticsRead},
    billing::{Resource, limits},
    db::{TenantTx, ToSql},
    error::Result,
    http::Json,
    types::example_time,
};

/// What a module knows of an organization in figures, for everybody who may see analytics.
pub struct ModuleFigures {
    pub module: &'static str,
    pub read: for<'a> fn(&'a TenantTx, DateTime<Utc>) -> BoxFuture<'a, Result<Value>>,
}

/// How an organization is doing.
#[derive(Clone, Debug, Serialize, Object)]
#[oai(example)]
pub struct OrganizationAnalytics {
    /// Since when the figures stand; they are worked out anew after five minutes.
    pub computed_at: DateTime<Utc>,
    pub members: MemberFigures,
    pub usage: UsageFigures,
    /// By module, what it has to tell: `work` of projects and tasks.
    pub modules: BTreeMap<String, Value>,
}

/// Members in figures.
#[derive(Clone, Debug, Serialize, Object)]
pub struct MemberFigures {
    /// Who can use the organization.
    pub active: i64,
    /// Who of them changed something in the last seven days.
    pub active_last_7_days: i64,
    /// Invitations that can still be accepted.
    pub pending_invitations: i64,
}

/// Usage in figures.
#[derive(Clone, Debug, Serialize, Object)]
pub struct UsageFigures {
    /// Requests with API keys in this calendar month (UTC)...
    pub api_calls_this_month: i64,
    /// ... and in the one before.
    pub api_calls_last_month: i64,
    pub storage_bytes: i64,
}

impl Example for OrganizationAnalytics {
    fn example() -> Self {
        let work = json!({
            "projects": {"total": 4, "by_status": {"planning": 1, "active": 2, "completed": 1, "archived": 0}},
            "tasks": {"total": 120, "open": 45, "done": 75, "overdue": 3, "completion_rate": 62.5,
                "average_days_to_complete": 4.2, "completed_by_week": [{"week": "2025-12-29", "completed": 9}]},
        });
        Self {
            computed_at: example_time(),
            members: MemberFigures { active: 12, active_last_7_days: 9, pending_invitations: 2 },
            usage: UsageFigures {
                api_calls_this_month: 4210,
                api_calls_last_month: 8800,
                storage_bytes: 734_003_200,
            },
            modules: BTreeMap::from([("work".into(), work)]),
        }
    }
}

/// Organizations whose figures are kept.
const KEPT: NonZeroUsize = NonZeroUsize::new(1_000).expect("not zero");
/// How long they are shown.
const FRESH: TimeDelta = TimeDelta::minutes(5);

/// The figures of the organizations that asked last.
pub struct FigureCache(Mutex<LruCache<Uuid, OrganizationAnalytics>>);

impl Default for FigureCache {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(KEPT)))
    }
}

impl FigureCache {
    fn get(&self, organization: Uuid, now: DateTime<Utc>) -> Option<OrganizationAnalytics> {
        self.kept().get(&organization).filter(|known| now - known.computed_at < FRESH).cloned()
    }

    fn put(&self, organization: Uuid, figures: OrganizationAnalytics) {
        self.kept().put(organization, figures);
    }

    fn kept(&self) -> MutexGuard<'_, LruCache<Uuid, OrganizationAnalytics>> {
        self.0.lock().expect("nothing panics with the lock held")
    }
}

pub struct AnalyticsApi;

#[OpenApi(tag = "Tag::Analytics")]
impl AnalyticsApi {
    /// See how an organization is doing.
    #[oai(
        path = "/organizations/:organization_id/analytics",
        method = "get",
        operation_id = "get_organization_analytics"
    )]
    async fn get(
        &self,
        who: Can<AnalyticsRead>,
        #[oai(name = "organization_id")] _id: Path<Uuid>,
    ) -> Result<Json<OrganizationAnalytics>> {
        let (app, organization) = (&*who.app, who.tenant.id());
        if let Some(known) = app.figure_cache.get(organization, app.clock.now()) {
            return Ok(Json(known));
        }
        let tx = who.begin().await?;
        let figures = read(&tx, app).await?;
        app.figure_cache.put(organization, figures.clone());
        Ok(Json(figures))
    }
}

async fn read(tx: &TenantTx, app: &App) -> Result<OrganizationAnalytics> {
    let now = app.clock.now();
    let mut modules = BTreeMap::new();
    for source in app.module_figures() {
        modules.insert(source.module.to_owned(), (source.read)(tx, now).await?);
    }
    Ok(OrganizationAnalytics {
        computed_at: now,
        members: members(tx, now).await?,
        usage: usage(tx, app, now).await?,
        modules,
    })
}

async fn members(tx: &TenantTx, now: DateTime<Utc>) -> Result<MemberFigures> {
    let (organization, since) = (tx.organization(), now - TimeDelta::days(7));
    let members: [&(dyn ToSql + Sync); 2] = [&organization, &now];
    let actors: [&(dyn ToSql + Sync); 1] = [&since];
    let (row, lately) = join!(
        tx.query_one(
            "select array(select user_id from platform.organization_members \
               where organization_id = $1 and is_active) as active, \
             (select count(*) from platform.invitations where organization_id = $1 and accepted_at is null \
               and revoked_at is null and expires_at > $2) as pending",
            &members,
        ),
        tx.query(
            "select distinct actor_id from events where occurred_at >= $1 and actor_kind = 'user' \
             and actor_id is not null",
            &actors,
        ),
    );
    let row = row?;
    let active: HashSet<Uuid> = row.try_get::<_, Vec<Uuid>>("active")?.into_iter().collect();
    let lately = lately?.iter().map(|row| row.try_get(0)).collect::<Result<Vec<Uuid>, _>>()?;
    Ok(MemberFigures {
        active: active.len() as i64,
        active_last_7_days: lately.iter().filter(|actor| active.contains(actor)).count() as i64,
        pending_invitations: row.try_get("pending")?,
    })
}

async fn usage(tx: &TenantTx, app: &App, now: DateTime<Utc>) -> Result<UsageFigures> {
    let this_month = limits::month(now);
    let row = tx
        .query_one(
            "select coalesce(sum(calls) filter (where month = $2), 0)::bigint as this_month, \
             coalesce(sum(calls) filter (where month = $3), 0)::bigint as last_month \
             from platform.api_call_months where organization_id = $1 and month in ($2, $3)",
            &[&tx.organization(), &this_month, &(this_month - Months::new(1))],
        )
        .await?;
    Ok(UsageFigures {
        api_calls_this_month: row.try_get("this_month")?,
        api_calls_last_month: row.try_get("last_month")?,
        storage_bytes: limits::ask(tx, app, Resource::Storage).await?.used,
    })
}
