//! How an organization wants things; the one row of `settings` in its schema.

use poem_openapi::{
    Object, OpenApi,
    param::Path,
    types::{Example, MaybeUndefined},
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    api::Tag,
    audit::Changes,
    auth::{
        Can,
        permissions::{OrganizationRead, SettingsManage},
    },
    db::TenantTx,
    error::Result,
    events::{self, EventType},
    http::{Body, IfMatch, Single, Versioned},
    types::{Currency, change, example, text_enum},
};

text_enum! {
    /// The first day of a week in calendars.
    WeekStart { Monday = "monday", Saturday = "saturday", Sunday = "sunday" }
}

text_enum! {
    /// How dates are written for people: 2026-01-31, 31/01/2026 or 01/31/2026.
    DateFormat { Iso = "iso", Dmy = "dmy", Mdy = "mdy" }
}

/// Settings of an organization.
#[derive(Clone, Debug, Serialize, Object)]
#[oai(example)]
pub struct Settings {
    pub default_currency: Currency,
    pub week_starts_on: WeekStart,
    pub date_format: DateFormat,
    #[serde(skip)]
    #[oai(skip)]
    pub version: i64,
}

impl Versioned for Settings {
    fn version(&self) -> i64 {
        self.version
    }
}

impl Example for Settings {
    fn example() -> Self {
        Self {
            default_currency: example("SGD"),
            week_starts_on: WeekStart::Monday,
            date_format: DateFormat::Iso,
            version: 1,
        }
    }
}

/// What changes; what is absent stays.
#[derive(Debug, Default, Deserialize, Object)]
#[serde(deny_unknown_fields, default)]
#[oai(deny_unknown_fields, example)]
pub struct SettingsChange {
    pub default_currency: MaybeUndefined<Currency>,
    pub week_starts_on: MaybeUndefined<WeekStart>,
    pub date_format: MaybeUndefined<DateFormat>,
}

impl Example for SettingsChange {
    fn example() -> Self {
        Self { default_currency: MaybeUndefined::Value(example("MYR")), ..Self::default() }
    }
}

pub struct SettingsApi;

#[OpenApi(tag = "Tag::Organizations")]
impl SettingsApi {
    /// See an organization's settings.
    #[oai(path = "/organizations/:organization_id/settings", method = "get", operation_id = "get_settings")]
    async fn get(
        &self,
        who: Can<OrganizationRead>,
        #[oai(name = "organization_id")] _id: Path<Uuid>,
    ) -> Result<Single<Settings>> {
        let tx = who.begin().await?;
        Ok(Single(find(&tx, false).await?))
    }

    /// Change an organization's settings.
    #[oai(
        path = "/organizations/:organization_id/settings",
        method = "patch",
        operation_id = "update_settings"
    )]
    async fn update(
        &self,
        who: Can<SettingsManage>,
        #[oai(name = "organization_id")] _id: Path<Uuid>,
        expected: IfMatch,
        to: Body<SettingsChange>,
    ) -> Result<Single<Settings>> {
        let tx = who.begin().await?;
        let mut settings = find(&tx, true).await?;
        expected.check(settings.version)?;
        let before = settings.clone();
        change(&mut settings.default_currency, "default_currency", to.0.default_currency)?;
        change(&mut settings.week_starts_on, "week_starts_on", to.0.week_starts_on)?;
        change(&mut settings.date_format, "date_format", to.0.date_format)?;
        settings.version += 1;
        tx.execute(
            "update settings set default_currency = $1, week_starts_on = $2, date_format = $3, version = $4, \
             updated_at = $5 where id = 1",
            &[
                &settings.default_currency,
                &settings.week_starts_on,
                &settings.date_format,
                &settings.version,
                &who.app.clock.now(),
            ],
        )
        .await?;
        let changes = Changes::between(&before, &settings);
        events::record(&tx, &who.app, &*who, EventType::SettingsUpdated, who.tenant.id(), changes).await?;
        tx.commit().await?;
        Ok(Single(settings))
    }
}

/// The settings, with their row locked where they are about to change.
pub async fn find(tx: &TenantTx, to_change: bool) -> Result<Settings> {
    let lock = if to_change { " for update" } else { "" };
    let sql = format!(
        "select default_currency, week_starts_on, date_format, version from settings where id = 1{lock}"
    );
    let row = tx.query_one(&sql, &[]).await?;
    Ok(Settings {
        default_currency: row.try_get("default_currency")?,
        week_starts_on: row.try_get("week_starts_on")?,
        date_format: row.try_get("date_format")?,
        version: row.try_get("version")?,
    })
}
