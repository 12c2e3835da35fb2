//! The table of plans: limits, features and prices, edited by staff.

use chrono::{DateTime, Utc};
use poem_openapi::{
    Object, OpenApi,
    param::Path,
    types::{Example, MaybeUndefined},
};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{limits::page, money::to_minor, state::TRIAL};
use crate::{
    api::Tag,
    audit::{self, Changes},
    auth::{Member, Public, Superuser},
    config::LimitsConfig,
    db::{Row, Tx},
    error::{Code, Error, Result},
    http::{Body, IfMatch, Json, Single, Versioned},
    limits::Rate,
    tenancy,
    types::{Amount, Money, Text, change, change_optional, example, example_time, text_enum},
};

text_enum! {
    /// What an organization has bound itself to, from the smallest up.
    Plan { Free = "free", Starter = "starter", Professional = "professional", Enterprise = "enterprise" }
}

impl Plan {
    /// Requests that all members and keys together may send.
    pub fn rate(self, limits: &LimitsConfig) -> Rate {
        match self {
            Plan::Free | Plan::Starter => limits.organization,
            Plan::Professional => limits.organization_professional,
            Plan::Enterprise => limits.organization_enterprise,
        }
    }

    /// Whether one can try it before paying.
    pub fn has_trial(self) -> bool {
        matches!(self, Plan::Starter | Plan::Professional)
    }
}

text_enum! {
    /// What a plan brings beside its limits.
    Feature {
        /// The organization's own domain in place of a subdomain.
        CustomDomains = "custom-domains",
        /// The audit log as a file.
        AuditExport = "audit-export",
        /// Notifications by SMS.
        Sms = "sms",
    }
}

/// What a plan allows at most; null is no limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Object)]
pub struct PlanLimits {
    /// Members and open invitations.
    pub users: Option<i64>,
    pub projects: Option<i64>,
    /// Requests with API keys in a calendar month (UTC).
    pub api_calls: Option<i64>,
    pub storage_bytes: Option<i64>,
    pub workflows: Option<i64>,
}

/// A plan.
#[derive(Clone, Debug, Serialize, Object)]
#[oai(rename = "Plan", example)]
pub struct Offer {
    pub name: Plan,
    pub title: Text<1, 100>,
    pub limits: PlanLimits,
    /// For a month; null where it is agreed with each customer.
    pub price: Option<Money>,
    pub features: Vec<Feature>,
    /// Days to try it before paying; 0 where there is no trial.
    pub trial_days: i64,
    pub updated_at: DateTime<Utc>,
    #[serde(skip)]
    #[oai(skip)]
    pub version: i64,
}

impl Versioned for Offer {
    fn version(&self) -> i64 {
        self.version
    }
}

impl Example for Offer {
    fn example() -> Self {
        Self {
            name: Plan::Starter,
            title: example("Starter"),
            limits: PlanLimits {
                users: Some(10),
                projects: Some(5),
                api_calls: Some(10_000),
                storage_bytes: Some(10_000_000_000),
                workflows: Some(50),
            },
            price: Some(Money { amount: example("49.00"), currency: example("SGD") }),
            features: vec![Feature::CustomDomains],
            trial_days: TRIAL.num_days(),
            updated_at: example_time(),
            version: 1,
        }
    }
}

/// The plans that there are.
#[derive(Debug, Serialize, Object)]
#[oai(example)]
pub struct Offers {
    /// From the smallest up.
    pub data: Vec<Offer>,
}

impl Example for Offers {
    fn example() -> Self {
        Self { data: vec![Offer::example()] }
    }
}

/// What changes about a plan; what is absent stays. Null is no limit, and no public price.
#[derive(Debug, Default, Deserialize, Object)]
#[serde(deny_unknown_fields, default)]
#[oai(deny_unknown_fields, example)]
pub struct PlanChange {
    pub title: MaybeUndefined<Text<1, 100>>,
    pub users: MaybeUndefined<i64>,
    pub projects: MaybeUndefined<i64>,
    pub api_calls: MaybeUndefined<i64>,
    pub storage_bytes: MaybeUndefined<i64>,
    pub workflows: MaybeUndefined<i64>,
    /// What is shown. What is charged is the price at Stripe; `rowhouse doctor` compares them.
    pub price: MaybeUndefined<Money>,
    pub features: MaybeUndefined<Vec<Feature>>,
}

impl Example for PlanChange {
    fn example() -> Self {
        Self { users: MaybeUndefined::Value(12), ..Self::default() }
    }
}

pub struct PlansApi;

#[OpenApi(tag = "Tag::Billing")]
impl PlansApi {
    /// List the plans.
    #[oai(path = "/plans", method = "get", operation_id = "list_plans")]
    async fn list(&self, who: Public) -> Result<Json<Offers>> {
        let tx = who.app.db.begin().await?;
        Ok(Json(Offers { data: all(&tx).await? }))
    }
}

pub struct AdminPlansApi;

#[OpenApi(tag = "Tag::Admin")]
impl AdminPlansApi {
    /// See a plan.
    #[oai(path = "/admin/plans/:plan", method = "get", operation_id = "admin_get_plan")]
    async fn get(&self, who: Superuser, plan: Path<Plan>) -> Result<Single<Offer>> {
        let tx = who.0.app.db.begin().await?;
        Ok(Single(find(&tx, plan.0).await?))
    }

    /// Change what a plan allows.
    ///
    /// In force at once for every organization on it. Who has more than a smaller limit keeps it, and
    /// cannot add to it.
    #[oai(path = "/admin/plans/:plan", method = "patch", operation_id = "admin_update_plan")]
    async fn update(
        &self,
        who: Superuser,
        plan: Path<Plan>,
        expected: IfMatch,
        to: Body<PlanChange>,
    ) -> Result<Single<Offer>> {
        let app = &*who.0.app;
        let tx = app.db.begin().await?;
        tx.query("select name from platform.plans where name = $1 for no key update", &[&plan.0]).await?;
        let before = find(&tx, plan.0).await?;
        expected.check(before.version)?;
        let mut offer = before.clone();
        apply(&mut offer, to.0)?;
        (offer.version, offer.updated_at) = (offer.version + 1, app.clock.now());
        store(&tx, &offer).await?;
        let changes = Changes::between(&before, &offer).about("plan", plan.0.name());
        audit::record_platform(&tx, app, &who, "plan.updated", None, None, &changes).await?;
        tenancy::all_changed(&tx).await?;
        tx.commit().await?;
        app.directory.forget_all();
        Ok(Single(offer))
    }
}

fn apply(offer: &mut Offer, to: PlanChange) -> Result<()> {
    change(&mut offer.title, "title", to.title)?;
    change(&mut offer.features, "features", to.features)?;
    let limits = &mut offer.limits;
    for (field, name, to) in [
        (&mut limits.users, "users", to.users),
        (&mut limits.projects, "projects", to.projects),
        (&mut limits.api_calls, "api_calls", to.api_calls),
        (&mut limits.storage_bytes, "storage_bytes", to.storage_bytes),
        (&mut limits.workflows, "workflows", to.workflows),
    ] {
        if matches!(to, MaybeUndefined::Value(limit) if limit < 0) {
            return Err(Error::invalid(name, "must be 0 or more, or null for no limit"));
        }
        change_optional(field, to);
    }
    change_optional(&mut offer.price, to.price);
    if let Some(price) = &offer.price
        && to_minor(price).is_none_or(|units| units < 0)
    {
        return Err(Error::invalid("price", "must be 0 or more, in whole units of what can be paid"));
    }
    offer.features.sort();
    offer.features.dedup();
    Ok(())
}

const COLUMNS: &str = "name, title, users, projects, api_calls, storage_bytes, workflows, price_amount, price_currency, \
     features, version, updated_at";

fn from_row(row: &Row) -> Result<Offer> {
    let name: Plan = row.try_get("name")?;
    let amount: Option<Decimal> = row.try_get("price_amount")?;
    let price = match amount {
        Some(amount) => {
            Some(Money { amount: Amount::from(amount), currency: row.try_get("price_currency")? })
        }
        None => None,
    };
    Ok(Offer {
        name,
        title: row.try_get("title")?,
        limits: PlanLimits {
            users: row.try_get("users")?,
            projects: row.try_get("projects")?,
            api_calls: row.try_get("api_calls")?,
            storage_bytes: row.try_get("storage_bytes")?,
            workflows: row.try_get("workflows")?,
        },
        price,
        features: features(&row.try_get::<_, Vec<String>>("features")?),
        trial_days: if name.has_trial() { TRIAL.num_days() } else { 0 },
        updated_at: row.try_get("updated_at")?,
        version: row.try_get("version")?,
    })
}

/// The features of these names; what this version does not know (any more) is nothing.
pub fn features(names: &[String]) -> Vec<Feature> {
    names.iter().filter_map(|name| name.parse().ok()).collect()
}

/// Refuses with 402 where the organization's plan does not bring a feature.
pub async fn require(who: &Member, feature: Feature) -> Result<()> {
    if who.tenant.has(feature) {
        return Ok(());
    }
    let tx = who.app.db.begin().await?;
    let sql = "select name from platform.plans where $1 = any (features) order by rank limit 1";
    let row = tx.query_opt(sql, &[&feature]).await?;
    let upgrade: Option<Plan> = row.map(|row| row.try_get("name")).transpose()?;
    let plan = who.tenant.plan();
    let told = match upgrade {
        Some(upgrade) => format!("The plan {plan} does not bring this; {upgrade} does."),
        None => "No plan brings this.".into(),
    };
    Err(Error::new(Code::PlanLimit, told).with_details(json!({
        "feature": feature, "plan": plan, "upgrade": upgrade, "upgrade_at": page(&who.app),
    })))
}

/// Every plan, from the smallest up.
pub async fn all(tx: &Tx) -> Result<Vec<Offer>> {
    let rows = tx.query(&format!("select {COLUMNS} from platform.plans order by rank"), &[]).await?;
    rows.iter().map(from_row).collect()
}

/// A plan.
pub async fn find(tx: &Tx, plan: Plan) -> Result<Offer> {
    let sql = format!("select {COLUMNS} from platform.plans where name = $1");
    let missing = || Error::new(Code::NotFound, "There is no such plan.");
    from_row(&tx.query_opt(&sql, &[&plan]).await?.ok_or_else(missing)?)
}

async fn store(tx: &Tx, offer: &Offer) -> Result<()> {
    let features: Vec<&str> = offer.features.iter().map(|feature| feature.name()).collect();
    tx.execute(
        "update platform.plans set title = $2, users = $3, projects = $4, api_calls = $5, storage_bytes = $6, \
         workflows = $7, price_amount = $8, price_currency = coalesce($9, price_currency), features = $10, \
         version = $11, updated_at = $12 where name = $1",
        &[
            &offer.name,
            &offer.title,
            &offer.limits.users,
            &offer.limits.projects,
            &offer.limits.api_calls,
            &offer.limits.storage_bytes,
            &offer.limits.workflows,
            &offer.price.as_ref().map(|price| price.amount.decimal()),
            &offer.price.as_ref().map(|price| price.currency.to_string()),
            &features,
            &offer.version,
            &offer.updated_at,
        ],
    )
    .await?;
    Ok(())
}
