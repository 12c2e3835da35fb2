//! What an organization uses of what its plan allows.
//!
//! [`ask`] tells, [`reserve`] takes. Whoever reserves holds a lock of this organization and this resource
//! until the transaction ends, and counts while holding it: of many who want the last place one gets it.
//! Nothing else waits for that lock. Where modules count what there is (users, projects) nobody takes it on
//! a plan without a limit; what no module counts is a row that is its own lock, on every plan.
//!
//! Calls of the API are not reserved: they are counted in memory, and refused by the gate from what was
//! known at the last flush (`crate::usage`).

use std::fmt;

use chrono::{DateTime, Datelike, Months, NaiveDate, NaiveTime, Utc};
use futures_util::{future::try_join_all, join};
use poem_openapi::Object;
use serde::Serialize;
use serde_json::json;

use super::Plan;
use crate::{
    app::App,
    audit::{Actor, Changes},
    db::{TenantTx, ToSql},
    error::{Code, Error, Result},
    events::{self, EventType},
    types::text_enum,
};

text_enum! {
    /// What plans limit.
    Resource {
        /// Members and open invitations.
        Users = "users",
        Projects = "projects",
        /// Requests with API keys in a calendar month.
        ApiCalls = "api_calls",
        /// Bytes.
        Storage = "storage",
        Workflows = "workflows",
    }
}

impl Resource {
    /// The column of `platform.plans` that limits it.
    fn column(self) -> &'static str {
        match self {
            Self::Users => "users",
            Self::Projects => "projects",
            Self::ApiCalls => "api_calls",
            Self::Storage => "storage_bytes",
            Self::Workflows => "workflows",
        }
    }

    /// An expression for what is used, of tables of `platform` or of the organization's own, never of both:
    /// they may be on two servers. `$1` is the organization, `present.now` the time.
    fn used(self, app: &App) -> &'static str {
        if let Some(count) = app.count_of(self) {
            return count;
        }
        match self {
            Self::Users => {
                "(select count(*) from platform.organization_members where organization_id = $1) \
                 + (select count(*) from platform.invitations where organization_id = $1 and accepted_at is null \
                    and revoked_at is null and expires_at > present.now)"
            }
            Self::ApiCalls => {
                "coalesce((select calls from platform.api_call_months where organization_id = $1 \
                 and month = date_trunc('month', present.now at time zone 'UTC')::date), 0)"
            }
            Self::Projects => "coalesce((select used from usage_counters where resource = 'projects'), 0)",
            Self::Storage => "coalesce((select used from usage_counters where resource = 'storage'), 0)",
            Self::Workflows => "coalesce((select used from usage_counters where resource = 'workflows'), 0)",
        }
    }

    /// Whether what is used lies in `platform`.
    fn is_of_the_platform(self) -> bool {
        matches!(self, Self::Users | Self::ApiCalls)
    }

    /// Has a statement run on the server where what is used lies: whoever gets a lock next must see there what
    /// the one before committed. `$1` is the organization.
    fn on_its_server(self) -> &'static str {
        match self.is_of_the_platform() {
            true => "from platform.organizations where id = $1",
            false => "from (select $1::uuid) as its (id)",
        }
    }

    /// Whether what is used is kept in `usage_counters` by whoever adds and removes it, because no module
    /// can count it where it lies.
    fn is_kept(self, app: &App) -> bool {
        !self.is_of_the_platform() && app.count_of(self).is_none()
    }

    /// So many of it, for people.
    fn amount(self, many: i64) -> Amount {
        Amount(self, many)
    }
}

struct Amount(Resource, i64);

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(resource, many) = self;
        match resource {
            Resource::Users => write!(f, "{many} users, open invitations included"),
            Resource::Projects => write!(f, "{many} projects"),
            Resource::ApiCalls => write!(f, "{many} API calls a month"),
            Resource::Storage => write!(f, "{many} bytes of storage"),
            Resource::Workflows => write!(f, "{many} workflows"),
        }
    }
}

/// How much of something is used, and how much of it the plan allows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Object)]
pub struct Use {
    pub resource: Resource,
    /// Storage in bytes, API calls of this calendar month (UTC), everything else by number.
    pub used: i64,
    /// Null where there is no limit.
    pub limit: Option<i64>,
}

impl Use {
    /// Whether more is used than allowed.
    pub fn is_over(&self) -> bool {
        self.limit.is_some_and(|limit| self.used > limit)
    }
}

/// Limits in which a warning is given, in percent.
const THRESHOLDS: [i64; 2] = [80, 100];

/// What of a resource is used and allowed.
pub async fn ask(tx: &TenantTx, app: &App, resource: Resource) -> Result<Use> {
    let sql = format!(
        "select {} as used from (select $1::uuid, $2::timestamptz) as present (organization, now)",
        resource.used(app)
    );
    let (organization, now) = (tx.organization(), app.clock.now());
    let of: [&(dyn ToSql + Sync); 2] = [&organization, &now];
    let (used, limit) = join!(tx.query_one(&sql, &of), limit(tx, resource));
    Ok(Use { resource, used: used?.try_get("used")?, limit: limit? })
}

/// What the plan allows; `None` is no limit.
async fn limit(tx: &TenantTx, resource: Resource) -> Result<Option<i64>> {
    let sql = format!(
        "select p.{} as \"limit\" from platform.organizations o join platform.plans p on p.name = o.plan \
         where o.id = $1",
        resource.column()
    );
    Ok(tx.query_one(&sql, &[&tx.organization()]).await?.try_get("limit")?)
}

/// What of every resource is used and allowed.
pub async fn ask_all(tx: &TenantTx, app: &App) -> Result<Vec<Use>> {
    try_join_all(Resource::ALL.iter().map(|resource| ask(tx, app, *resource))).await
}

/// What of every resource is more than another plan allows.
pub async fn over(tx: &TenantTx, app: &App, plan: Plan) -> Result<Vec<Use>> {
    let mut over = Vec::new();
    for resource in Resource::ALL {
        let sql = format!("select {} as \"limit\" from platform.plans where name = $1", resource.column());
        let limit = tx.query_one(&sql, &[&plan]).await?.try_get("limit")?;
        let there = Use { limit, ..ask(tx, app, *resource).await? };
        // The calls of a month that is under way are no reason to stay: they are over with it.
        if there.is_over() && *resource != Resource::ApiCalls {
            over.push(there);
        }
    }
    Ok(over)
}

/// Takes so much of a resource, or refuses with 402 because the plan does not allow it. Whoever takes
/// several takes them in the order of [`Resource`]: others wait for the end of the transaction.
pub async fn reserve(tx: &TenantTx, app: &App, resource: Resource, amount: i64) -> Result<()> {
    positive(amount)?;
    if resource.is_kept(app) {
        add(tx, resource, amount).await?;
        let then = ask(tx, app, resource).await?;
        let there = Use { used: then.used - amount, ..then.clone() };
        return match then.is_over() {
            // The transaction may go on without it.
            true => {
                add(tx, resource, -amount).await?;
                Err(refused(tx, app, &there, amount).await?)
            }
            false => warn(tx, app, there.used, &then).await,
        };
    }
    if limit(tx, resource).await?.is_none() {
        return Ok(());
    }
    lock(tx, resource).await?;
    // In a statement of its own: it sees what the one before in the queue committed.
    let there = ask(tx, app, resource).await?;
    let then = Use { used: there.used.saturating_add(amount), ..there.clone() };
    match then.is_over() {
        true => Err(refused(tx, app, &there, amount).await?),
        false => warn(tx, app, there.used, &then).await,
    }
}

/// Gives back what was reserved of what no module counts. What is counted where it lies needs no giving
/// back.
pub async fn release(tx: &TenantTx, resource: Resource, amount: i64) -> Result<()> {
    positive(amount)?;
    add(tx, resource, -amount).await
}

fn positive(amount: i64) -> Result<()> {
    if amount < 0 { Err(Error::internal(format!("{amount} of a resource"))) } else { Ok(()) }
}

/// The row is the lock.
async fn add(tx: &TenantTx, resource: Resource, amount: i64) -> Result<()> {
    impatient(tx, resource).await?;
    tx.execute(
        "insert into usage_counters as known (resource, used) values ($1, greatest($2::bigint, 0)) \
         on conflict (resource) do update set used = greatest(known.used + $2, 0)",
        &[&resource, &amount],
    )
    .await?;
    patient(tx, resource).await
}

/// Makes others who reserve of the same wait for the end of this transaction.
async fn lock(tx: &TenantTx, resource: Resource) -> Result<()> {
    impatient(tx, resource).await?;
    let name = format!("limit {resource} {}", tx.organization());
    let sql = format!("select pg_advisory_xact_lock(hashtextextended($2, 0)) {}", resource.on_its_server());
    tx.query(&sql, &[&tx.organization(), &name]).await?;
    patient(tx, resource).await
}

/// Whoever waits for long holds a connection that others need.
async fn impatient(tx: &TenantTx, resource: Resource) -> Result<()> {
    let sql = format!("select set_config('lock_timeout', '3s', true) {}", resource.on_its_server());
    tx.query(&sql, &[&tx.organization()]).await?;
    Ok(())
}

/// What comes after waits as ever.
async fn patient(tx: &TenantTx, resource: Resource) -> Result<()> {
    let sql = format!("select set_config('lock_timeout', '0', true) {}", resource.on_its_server());
    tx.query(&sql, &[&tx.organization()]).await?;
    Ok(())
}

async fn refused(tx: &TenantTx, app: &App, there: &Use, amount: i64) -> Result<Error> {
    let resource = there.resource;
    let limit = there.limit.unwrap_or_default();
    let sql = format!(
        "select p.name as plan, (select m.name from platform.plans m where m.rank > p.rank \
         and (m.{column} is null or m.{column} >= $2) order by m.rank limit 1) as upgrade \
         from platform.organizations o join platform.plans p on p.name = o.plan where o.id = $1",
        column = resource.column()
    );
    let needed = there.used.saturating_add(amount);
    let row = tx.query_one(&sql, &[&tx.organization(), &needed]).await?;
    Ok(reached(app, there, limit, row.try_get("plan")?, row.try_get("upgrade")?))
}

/// The answer to whoever wants more than the plan allows.
pub fn reached(app: &App, there: &Use, limit: i64, plan: Plan, upgrade: Option<Plan>) -> Error {
    let monthly = there.resource == Resource::ApiCalls;
    let told = match upgrade {
        Some(plan) => format!("Upgrade to {plan} for more."),
        None if monthly => "They begin anew with the next month.".into(),
        None => "Remove some, or ask for a plan that fits.".into(),
    };
    let (allowed, used) = (there.resource.amount(limit), there.used);
    let mut details = json!({
        "resource": there.resource, "limit": limit, "used": used, "plan": plan, "upgrade": upgrade,
        "upgrade_at": page(app),
    });
    if monthly {
        let next = month(app.clock.now()) + Months::new(1);
        details["resets_at"] = json!(next.and_time(NaiveTime::MIN).and_utc());
    }
    Error::new(Code::PlanLimit, format!("The plan {plan} allows {allowed}; {used} are used. {told}"))
        .with_details(details)
}

/// Where people see and change what they pay for.
pub fn page(app: &App) -> String {
    format!("{}/settings/billing", app.config.mail.app_url.trim_end_matches('/'))
}

/// Tells, once a month for each limit, that most or all of it is used. `before` is what was used before.
pub async fn warn(tx: &TenantTx, app: &App, before: i64, now: &Use) -> Result<()> {
    let Some(limit) = now.limit.filter(|limit| *limit > 0) else { return Ok(()) };
    let share = |used: i64| i128::from(used) * 100 / i128::from(limit);
    let crossed = |threshold: &&i64| {
        share(before) < i128::from(**threshold) && share(now.used) >= i128::from(**threshold)
    };
    // The highest says it all.
    let Some(threshold) = THRESHOLDS.iter().rev().find(crossed) else { return Ok(()) };
    let said: Vec<i32> =
        THRESHOLDS.iter().filter(|said| *said <= threshold).map(|said| *said as i32).collect();
    let new = tx
        .query(
            "insert into limit_warnings (resource, threshold, month, \"limit\") \
             select $1, said, $3, $4 from unnest($2::integer[]) as said on conflict do nothing returning threshold",
            &[&now.resource, &said, &month(app.clock.now()), &limit],
        )
        .await?;
    let news = new.iter().any(|row| row.try_get::<_, i32>(0).is_ok_and(|said| i64::from(said) == *threshold));
    if !news {
        return Ok(());
    }
    let organization = tx.organization();
    let sql = "select plan from platform.organizations where id = $1";
    let plan: Plan = tx.query_one(sql, &[&organization]).await?.try_get("plan")?;
    let what = if *threshold == 100 { EventType::LimitReached } else { EventType::LimitApproached };
    let told = json!({"resource": now.resource, "used": now.used, "limit": limit, "plan": plan,
        "percent": threshold});
    events::emit(tx, app, &Actor::system(), what, organization, &Changes::none(&told)).await?;
    Ok(())
}

/// Tells what is used up by the measure of a plan that is in force now.
pub async fn warn_of_all(tx: &TenantTx, app: &App) -> Result<()> {
    for there in ask_all(tx, app).await? {
        warn(tx, app, 0, &there).await?;
    }
    Ok(())
}

/// The first day of the month that limits count in.
pub fn month(now: DateTime<Utc>) -> NaiveDate {
    first_of(now.date_naive())
}

/// The first day of a day's month.
pub fn first_of(day: NaiveDate) -> NaiveDate {
    day.with_day(1).unwrap_or(day)
}
