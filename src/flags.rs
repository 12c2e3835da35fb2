//! Feature flags: what is on, for whom.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use poem_openapi::{
    Object, OpenApi,
    param::{Path, Query},
    types::Example,
};
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::{
    api::Tag,
    audit::{self, Changes},
    auth::{Can, Role, Superuser, permissions::OrganizationRead},
    billing::{Feature, Plan},
    db::{Row, Select, Tx},
    error::{Code, Error, Result},
    http::{Body, IfMatch, Json, NoContent, Single, Versioned},
    page::{ListCursor, Order, Page, Paging},
    types::{Country, EXAMPLE_ID, Slug, Text, example, example_time},
};

/// A feature and whom it is on for.
#[derive(Clone, Debug, Serialize, Object)]
#[oai(example)]
pub struct FeatureFlag {
    pub key: Slug,
    pub description: Option<Text<0, 1000>>,
    /// Off for everybody where it is not.
    pub enabled: bool,
    /// Share of organizations, in percent; an organization stays on the side where it is.
    pub rollout: f64,
    /// Only on these plans; empty is any.
    pub plans: Vec<Plan>,
    /// Only for members with these roles; empty is any.
    pub roles: Vec<Role>,
    /// Only for organizations in these countries; empty is any.
    pub countries: Vec<Country>,
    /// On for these organizations whatever share, plan, role and country say.
    pub organizations: Vec<Uuid>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
    #[serde(skip)]
    #[oai(skip)]
    pub version: i64,
}

impl Versioned for FeatureFlag {
    fn version(&self) -> i64 {
        self.version
    }
}

impl Example for FeatureFlag {
    fn example() -> Self {
        Self {
            key: example("new-board"),
            description: Some(example("The board with swim lanes")),
            enabled: true,
            rollout: 25.0,
            plans: vec![Plan::Professional, Plan::Enterprise],
            roles: Vec::new(),
            countries: vec![example("SG")],
            organizations: vec![EXAMPLE_ID],
            created_at: example_time(),
            updated_at: example_time(),
            version: 1,
        }
    }
}

/// How a flag is to be.
#[derive(Debug, Deserialize, Object)]
#[serde(deny_unknown_fields)]
#[oai(deny_unknown_fields, example)]
pub struct FeatureFlagSetting {
    pub description: Option<Text<0, 1000>>,
    pub enabled: bool,
    /// 0 to 100; 100 where it is absent.
    pub rollout: Option<f64>,
    pub plans: Option<Vec<Plan>>,
    pub roles: Option<Vec<Role>>,
    pub countries: Option<Vec<Country>>,
    /// At most 1000.
    pub organizations: Option<Vec<Uuid>>,
}

impl Example for FeatureFlagSetting {
    fn example() -> Self {
        let FeatureFlag { description, enabled, rollout, plans, .. } = FeatureFlag::example();
        Self {
            description,
            enabled,
            rollout: Some(rollout),
            plans: Some(plans),
            roles: None,
            countries: None,
            organizations: None,
        }
    }
}

/// What is on for the caller in this organization.
#[derive(Debug, Serialize, Object)]
#[oai(example)]
pub struct Features {
    /// Every feature that there is, and whether it is on.
    pub features: BTreeMap<String, Value>,
}

impl Example for Features {
    fn example() -> Self {
        Self { features: BTreeMap::from([("new-board".into(), true.into())]) }
    }
}

impl FeatureFlag {
    /// Whether the feature is on.
    fn is_on(&self, organization: Uuid, plan: Plan, role: Role, country: Option<&Country>) -> bool {
        if !self.enabled {
            return false;
        }
        if self.organizations.contains(&organization) {
            return true;
        }
        (self.plans.is_empty() || self.plans.contains(&plan))
            && (self.roles.is_empty() || self.roles.contains(&role))
            && (self.countries.is_empty() || country.is_some_and(|country| self.countries.contains(country)))
            && share(self.key.as_ref(), organization) < self.rollout
    }
}

/// Where an organization stands between 0 and 100 for a flag: the same each time, and for each flag
/// anew.
fn share(key: &str, organization: Uuid) -> f64 {
    let hash = digest(&SHA256, format!("{key} {organization}").as_bytes());
    let bytes: [u8; 4] = hash.as_ref()[..4].try_into().expect("a digest has more than four bytes");
    f64::from(u32::from_be_bytes(bytes)) / (f64::from(u32::MAX) + 1.0) * 100.0
}

pub struct FlagsApi;

#[OpenApi(tag = "Tag::Features")]
impl FlagsApi {
    /// See which features are on.
    #[oai(path = "/features", method = "get", operation_id = "list_features")]
    async fn features(&self, who: Can<OrganizationRead>) -> Result<Json<Features>> {
        let tx = who.begin().await?;
        let sql = "select country_code from platform.organizations where id = $1";
        let country: Option<Country> =
            tx.query_one(sql, &[&who.tenant.id()]).await?.try_get("country_code")?;
        let rows =
            tx.query(&format!("select {COLUMNS} from platform.feature_flags order by key"), &[]).await?;
        let mut features = BTreeMap::new();
        for row in &rows {
            let flag = from_row(row)?;
            let on = flag.is_on(who.tenant.id(), who.tenant.plan(), who.role, country.as_ref());
            features.insert(flag.key.to_string(), on.into());
        }
        // What the plan brings; no flag takes it away.
        for feature in Feature::ALL {
            features.insert(feature.to_string(), who.tenant.has(*feature).into());
        }
        Ok(Json(Features { features }))
    }

    /// List feature flags.
    #[oai(path = "/admin/flags", method = "get", operation_id = "admin_list_flags")]
    async fn list(
        &self,
        who: Superuser,
        page: Query<Option<u32>>,
        page_size: Query<Option<u32>>,
        cursor: Query<Option<ListCursor>>,
    ) -> Result<Json<Page<FeatureFlag>>> {
        let paging = Paging::new(page.0, page_size.0, cursor.0)?;
        let tx = who.0.app.db.begin().await?;
        let select = Select::new(COLUMNS, "platform.feature_flags");
        let page =
            select.page(&tx, &Order::up("key", "text", "key").with_text_id(), &paging, from_row).await?;
        Ok(Json(page))
    }

    /// Make or change a feature flag.
    #[oai(path = "/admin/flags/:flag_key", method = "put", operation_id = "admin_set_flag")]
    async fn set(
        &self,
        who: Superuser,
        flag_key: Path<Slug>,
        expected: IfMatch,
        to: Body<FeatureFlagSetting>,
    ) -> Result<Single<FeatureFlag>> {
        let app = &*who.0.app;
        let (to, now) = (to.0, app.clock.now());
        if flag_key.0.as_ref().parse::<Feature>().is_ok() {
            return Err(Error::invalid("flag_key", "is a feature that plans bring; change the plans"));
        }
        let rollout = to.rollout.unwrap_or(100.0);
        if !(0.0..=100.0).contains(&rollout) {
            return Err(Error::invalid("rollout", "must be from 0 to 100"));
        }
        let organizations = to.organizations.unwrap_or_default();
        if organizations.len() > 1000 {
            return Err(Error::invalid("organizations", "may name at most 1000"));
        }
        let tx = app.db.begin().await?;
        tx.query("select key from platform.feature_flags where key = $1 for update", &[&flag_key.0]).await?;
        let before = find(&tx, &flag_key.0).await?;
        expected.check(before.as_ref().map_or(0, |flag| flag.version))?;
        let names = |list: &[Plan]| -> Vec<&'static str> { list.iter().map(|plan| plan.name()).collect() };
        let plans = names(&to.plans.unwrap_or_default());
        let roles: Vec<&str> = to.roles.unwrap_or_default().iter().map(|role| role.name()).collect();
        let countries: Vec<String> =
            to.countries.unwrap_or_default().iter().map(ToString::to_string).collect();
        tx.execute(
            "insert into platform.feature_flags as f (key, description, enabled, rollout, plans, roles, countries, \
             organizations, created_at, updated_at) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9) \
             on conflict (key) do update set description = excluded.description, enabled = excluded.enabled, \
             rollout = excluded.rollout, plans = excluded.plans, roles = excluded.roles, \
             countries = excluded.countries, organizations = excluded.organizations, \
             updated_at = excluded.updated_at, version = f.version + 1",
            &[
                &flag_key.0,
                &to.description,
                &to.enabled,
                &rollout,
                &plans,
                &roles,
                &countries,
                &organizations,
                &now,
            ],
        )
        .await?;
        let flag =
            find(&tx, &flag_key.0).await?.ok_or_else(|| Error::internal("a flag that was just written"))?;
        let changes = Changes::between(&before, &flag).about("key", flag_key.0.as_ref());
        audit::record_platform(&tx, app, &who, "flag.set", None, None, &changes).await?;
        tx.commit().await?;
        Ok(Single(flag))
    }

    /// Remove a feature flag.
    #[oai(path = "/admin/flags/:flag_key", method = "delete", operation_id = "admin_delete_flag")]
    async fn delete(&self, who: Superuser, flag_key: Path<Slug>, expected: IfMatch) -> Result<NoContent> {
        let app = &*who.0.app;
        let tx = app.db.begin().await?;
        tx.query("select key from platform.feature_flags where key = $1 for update", &[&flag_key.0]).await?;
        let flag = find(&tx, &flag_key.0)
            .await?
            .ok_or_else(|| Error::new(Code::NotFound, "There is no such flag."))?;
        expected.check(flag.version)?;
        tx.execute("delete from platform.feature_flags where key = $1", &[&flag_key.0]).await?;
        let changes = Changes::deleted(&flag);
        audit::record_platform(&tx, app, &who, "flag.deleted", None, None, &changes).await?;
        tx.commit().await?;
        Ok(NoContent)
    }
}

const COLUMNS: &str = "key, description, enabled, rollout, plans, roles, countries, organizations, created_at, \
     updated_at, version";

fn from_row(row: &Row) -> Result<FeatureFlag> {
    Ok(FeatureFlag {
        key: row.try_get("key")?,
        description: row.try_get("description")?,
        enabled: row.try_get("enabled")?,
        rollout: row.try_get("rollout")?,
        plans: row.try_get("plans")?,
        roles: row.try_get("roles")?,
        countries: row.try_get("countries")?,
        organizations: row.try_get("organizations")?,
        created_at: row.try_get("created_at")?,
        updated_at: row.try_get("updated_at")?,
        version: row.try_get("version")?,
    })
}

async fn find(tx: &Tx, key: &Slug) -> Result<Option<FeatureFlag>> {
    let sql = format!("select {COLUMNS} from platform.feature_flags where key = $1");
    tx.query_opt(&sql, &[&key]).await?.as_ref().map(from_row).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_is_on_for_whom_it_says() {
        let acme = Uuid::now_v7();
        let singapore: Country = example("SG");
        let mut flag = FeatureFlag { rollout: 100.0, organizations: Vec::new(), ..FeatureFlag::example() };
        let on = |flag: &FeatureFlag, plan| flag.is_on(acme, plan, Role::Member, Some(&singapore));
        assert!(on(&flag, Plan::Enterprise) && !on(&flag, Plan::Free));
        assert!(!flag.is_on(acme, Plan::Enterprise, Role::Member, None));
        flag.roles = vec![Role::Owner];
        assert!(!on(&flag, Plan::Enterprise));
        flag.organizations = vec![acme];
        assert!(on(&flag, Plan::Free));
        flag.enabled = false;
        assert!(!on(&flag, Plan::Enterprise));
    }

    #[test]
    fn a_share_is_stable_and_even() {
        let organizations: Vec<Uuid> = (0..4000).map(|_| Uuid::now_v7()).collect();
        let within = |key, most| organizations.iter().filter(|id| share(key, **id) < most).count();
        assert!((900..1100).contains(&within("new-board", 25.0)));
        assert_eq!((within("new-board", 0.0), within("new-board", 100.0)), (0, 4000));
        // Who has it at 25 % keeps it at 50 %, and another flag reaches others.
        let both =
            organizations.iter().filter(|id| share("a", **id) < 25.0 && share("b", **id) < 25.0).count();
        assert!((150..350).contains(&both), "{both}");
    }
}
