//! How much an organization used, by the hour, day or month.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Days, Months, NaiveDate, TimeDelta, Utc};
use poem_openapi::{Object, OpenApi, param::Query, types::Example};
use serde::Serialize;
use uuid::Uuid;

use super::{
    Metric,
    rollup::{self, HOURS_KEPT, SUMMED_AGAIN},
    start_of,
};
use crate::{
    api::Tag,
    app::App,
    auth::{Can, permissions::AnalyticsRead},
    billing::{
        Resource,
        limits::{self, first_of},
    },
    db::TenantTx,
    error::{Error, Result},
    http::Json,
    types::{check_year, example_time, text_enum},
};

text_enum! {
    /// How long one value lasts, in UTC.
    Grain { Hour = "hour", Day = "day", Month = "month" }
}

text_enum! {
    /// What requests are told apart by.
    Breakdown {
        /// The API key; people have none.
        Key = "key",
        /// The part of the API: the first word of the path.
        Group = "group",
    }
}

/// How much of something was used.
#[derive(Debug, Serialize, Object)]
#[oai(example)]
pub struct Usage {
    pub metric: Metric,
    pub grain: Grain,
    /// `calls`, `requests`, `users`, `projects`, `bytes` or `workflows`.
    pub unit: String,
    /// The first day.
    pub from: NaiveDate,
    /// The last day.
    pub to: NaiveDate,
    /// All values added up; null for what is measured and not counted.
    pub total: Option<i64>,
    /// The oldest first. What is counted has a value for each hour, day or month until now; what is
    /// measured has one where it was.
    pub data: Vec<UsagePoint>,
}

/// How much it was in an hour, a day or a month.
#[derive(Debug, Serialize, Object)]
pub struct UsagePoint {
    /// When it begins, in UTC.
    pub at: DateTime<Utc>,
    /// So much was counted in it; or was there at its end, or now where it has not ended.
    pub value: i64,
    /// With `by=key`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    pub key_id: Option<Uuid>,
    /// With `by=group`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    pub group: Option<String>,
}

impl Example for Usage {
    fn example() -> Self {
        let at = example_time();
        let point = |at, value| UsagePoint { at, value, key_id: None, group: Some("projects".into()) };
        Self {
            metric: Metric::ApiCalls,
            grain: Grain::Day,
            unit: Metric::ApiCalls.unit().into(),
            from: at.date_naive(),
            to: at.date_naive() + Days::new(1),
            total: Some(1290),
            data: vec![point(at, 820), point(at + TimeDelta::days(1), 470)],
        }
    }
}

/// Values in one answer at most.
const MOST_POINTS: usize = 10_000;

pub struct UsageApi;

#[OpenApi(tag = "Tag::Analytics")]
impl UsageApi {
    /// See how much was used.
    ///
    /// API calls (requests with API keys, which plans limit) and requests (of people) are counted as they
    /// happen and shown within seconds. Users, projects, storage and workflows are measured at the end of
    /// each day.
    #[oai(path = "/analytics/usage", method = "get", operation_id = "get_usage")]
    async fn get(
        &self,
        who: Can<AnalyticsRead>,
        metric: Query<Metric>,
        /// The first day (UTC); by default so that there are 7 days of hours, 30 days, or 12 months.
        from: Query<Option<NaiveDate>>,
        /// The last day (UTC), today by default.
        to: Query<Option<NaiveDate>>,
        /// `day` by default. Hours: of the last 35 days, at most 7 days at once. Days: at most 400. Months
        /// are whole ones, and at most 120. What is measured has no hours.
        grain: Query<Option<Grain>>,
        /// Tells API calls or requests apart.
        by: Query<Option<Breakdown>>,
    ) -> Result<Json<Usage>> {
        let (metric, by, now) = (metric.0, by.0, who.app.clock.now());
        let grain = grain.0.unwrap_or(Grain::Day);
        let mut range = Range::new(grain, from.0, to.0, now.date_naive())?;
        let oldest = first_of(now.date_naive()) - Months::new(who.app.config.retention.usage_months);
        if from.0.is_none() {
            range.from = range.from.max(oldest);
        }
        if range.from < oldest {
            return Err(Error::invalid("from", format!("is before {oldest}: usage is not kept for longer")));
        }
        let tx = who.begin().await?;
        let (total, data) = match metric.resource() {
            None => {
                let data = counted(&tx, metric, by, &range, now).await?;
                (Some(data.iter().map(|point| point.value).sum::<i64>()), data)
            }
            Some(_) if grain == Grain::Hour => {
                return Err(Error::invalid("grain", format!("must be day or month for {metric}")));
            }
            Some(_) if by.is_some() => {
                return Err(Error::invalid("by", "is for api_calls and requests only"));
            }
            Some(resource) => (None, measured(&tx, &who.app, metric, resource, &range, now).await?),
        };
        let Range { from, to, .. } = range;
        Ok(Json(Usage { metric, grain, unit: metric.unit().into(), from, to, total, data }))
    }
}

/// The days that somebody asks about, and in which steps.
#[derive(Debug)]
struct Range {
    grain: Grain,
    from: NaiveDate,
    to: NaiveDate,
}

impl Range {
    fn new(grain: Grain, from: Option<NaiveDate>, to: Option<NaiveDate>, today: NaiveDate) -> Result<Self> {
        check_year("from", from)?;
        check_year("to", to)?;
        let mut to = to.unwrap_or(today);
        // Where somebody is it may be tomorrow already.
        if to > today + Days::new(1) {
            return Err(Error::invalid("to", "must not be in the future"));
        }
        let mut from = from.unwrap_or(match grain {
            Grain::Hour => to - Days::new(6),
            Grain::Day => to - Days::new(29),
            Grain::Month => first_of(to) - Months::new(11),
        });
        if from > to {
            return Err(Error::invalid("from", "must not be after to"));
        }
        let days = (to - from).num_days() + 1;
        match grain {
            Grain::Hour if days > 7 => return Err(Error::invalid("from", "hours: at most 7 days at once")),
            Grain::Hour if from < today - HOURS_KEPT => {
                return Err(Error::invalid("from", "hours are there for the last 35 days"));
            }
            Grain::Day if days > 400 => return Err(Error::invalid("from", "days: at most 400 at once")),
            Grain::Month => {
                (from, to) = (first_of(from), first_of(to) + Months::new(1) - Days::new(1));
                if from + Months::new(120) <= to {
                    return Err(Error::invalid("from", "months: at most 120 at once"));
                }
            }
            _ => {}
        }
        Ok(Self { grain, from, to })
    }

    fn start(&self) -> DateTime<Utc> {
        start_of(self.from)
    }

    /// What comes after it.
    fn end(&self) -> DateTime<Utc> {
        start_of(self.to + Days::new(1))
    }

    /// The hours, days or months that have begun.
    fn steps(&self, now: DateTime<Utc>) -> Vec<DateTime<Utc>> {
        let (mut steps, mut at) = (Vec::new(), self.start());
        while at < self.end() && at <= now {
            steps.push(at);
            at = match self.grain {
                Grain::Hour => at + TimeDelta::hours(1),
                Grain::Day => at + TimeDelta::days(1),
                Grain::Month => start_of(at.date_naive() + Months::new(1)),
            };
        }
        steps
    }

    /// The day or month that is not over, where it is asked for.
    fn present(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        self.steps(now).pop().filter(|_| now < self.end())
    }
}

/// A step in time, and whose or of what.
type Place = (DateTime<Utc>, Option<Uuid>, Option<String>);

/// What was counted: of days that are summed for good from the days, of the others from their hours.
async fn counted(
    tx: &TenantTx,
    metric: Metric,
    by: Option<Breakdown>,
    range: &Range,
    now: DateTime<Utc>,
) -> Result<Vec<UsagePoint>> {
    let hours_from = match range.grain {
        Grain::Hour => range.start(),
        Grain::Day | Grain::Month => {
            let again = start_of(now.date_naive() - SUMMED_AGAIN);
            // Where the night's job did not run, from where it ended.
            let last = rollup::last_summed(tx).await?.map(|last| start_of(last + Days::new(1)));
            last.map_or(DateTime::UNIX_EPOCH, |last| last.min(again))
        }
    };
    let rows = tx
        .query(
            "with used as ( \
               select bucket, key_id, route_group, quantity from platform.usage_records \
               where organization_id = $1 and metric = $2 and grain = 'day' \
               and bucket >= $3::timestamptz and bucket < least($4::timestamptz, $5::timestamptz) \
               union all \
               select bucket, key_id, route_group, quantity from platform.usage_records \
               where organization_id = $1 and metric = $2 and grain = 'hour' \
               and bucket >= greatest($3::timestamptz, $5::timestamptz) and bucket < $4::timestamptz) \
             select date_trunc($6::text, bucket, 'UTC') as at, case when $7::boolean then key_id end as key_id, \
             case when $8::boolean then route_group end as route_group, sum(quantity)::bigint as value \
             from used group by 1, 2, 3 limit $9",
            &[
                &tx.organization(),
                &metric,
                &range.start(),
                &range.end(),
                &hours_from,
                &range.grain,
                &(by == Some(Breakdown::Key)),
                &(by == Some(Breakdown::Group)),
                &(MOST_POINTS as i64 + 1),
            ],
        )
        .await?;
    let mut values: BTreeMap<Place, i64> = BTreeMap::new();
    let mut told_apart: BTreeSet<(Option<Uuid>, Option<String>)> = BTreeSet::new();
    if by.is_none() {
        told_apart.insert((None, None));
    }
    for row in &rows {
        let key: Option<Uuid> = row.try_get("key_id")?;
        let (key, group): (_, Option<String>) = (key.filter(|id| !id.is_nil()), row.try_get("route_group")?);
        values.insert((row.try_get("at")?, key, group.clone()), row.try_get("value")?);
        told_apart.insert((key, group));
    }
    let steps = range.steps(now);
    if steps.len() * told_apart.len() > MOST_POINTS {
        let told = format!("would be more than {MOST_POINTS} values; ask for less time or longer steps");
        return Err(Error::invalid("from", told));
    }
    for at in steps {
        for (key, group) in &told_apart {
            values.entry((at, *key, group.clone())).or_insert(0);
        }
    }
    let point = |((at, key_id, group), value)| UsagePoint { at, value, key_id, group };
    Ok(values.into_iter().map(point).collect())
}

/// What was measured at the end of days, and of what is not over yet, what there is now.
async fn measured(
    tx: &TenantTx,
    app: &App,
    metric: Metric,
    resource: Resource,
    range: &Range,
    now: DateTime<Utc>,
) -> Result<Vec<UsagePoint>> {
    let rows = tx
        .query(
            "select distinct on (date_trunc($5::text, bucket, 'UTC')) date_trunc($5::text, bucket, 'UTC') as at, \
             quantity from platform.usage_records where organization_id = $1 and metric = $2 and grain = 'day' \
             and bucket >= $3 and bucket < $4 order by date_trunc($5::text, bucket, 'UTC'), bucket desc",
            &[&tx.organization(), &metric, &range.start(), &range.end(), &range.grain],
        )
        .await?;
    let mut values: BTreeMap<DateTime<Utc>, i64> = BTreeMap::new();
    for row in &rows {
        values.insert(row.try_get("at")?, row.try_get("quantity")?);
    }
    if let Some(at) = range.present(now) {
        values.insert(at, limits::ask(tx, app, resource).await?.used);
    }
    let point = |(at, value)| UsagePoint { at, value, key_id: None, group: None };
    Ok(values.into_iter().map(point).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn day(text: &str) -> NaiveDate {
        text.parse().unwrap()
    }

    fn range(grain: Grain, from: &str, to: &str) -> Result<Range> {
        let given = |text: &str| (!text.is_empty()).then(|| day(text));
        Range::new(grain, given(from), given(to), day("2026-11-15"))
    }

    fn days(grain: Grain, from: &str, to: &str) -> (String, String) {
        let range = range(grain, from, to).unwrap();
        (range.from.to_string(), range.to.to_string())
    }

    #[test]
    fn what_is_not_said_is_the_time_up_to_now() {
        let told = |from: &str, to: &str| (from.to_owned(), to.to_owned());
        assert_eq!(days(Grain::Hour, "", ""), told("2026-11-09", "2026-11-15"));
        assert_eq!(days(Grain::Day, "", ""), told("2026-10-17", "2026-11-15"));
        assert_eq!(days(Grain::Month, "", ""), told("2025-12-01", "2026-11-30"));
        assert_eq!(days(Grain::Month, "2026-02-10", "2026-02-11"), told("2026-02-01", "2026-02-28"));
    }

    #[test]
    fn ranges_that_make_no_sense_are_refused() {
        for (grain, from, to) in [
            (Grain::Day, "2026-11-02", "2026-11-01"),
            (Grain::Day, "2026-11-02", "2026-11-17"),
            (Grain::Day, "2025-10-01", "2026-11-15"),
            (Grain::Hour, "2026-11-01", "2026-11-08"),
            (Grain::Hour, "2026-10-10", "2026-10-11"),
            (Grain::Month, "2016-11-30", "2026-11-01"),
            (Grain::Month, "0001-01-01", ""),
            (Grain::Day, "-0001-01-01", "-0001-01-02"),
        ] {
            assert!(range(grain, from, to).is_err(), "{grain} {from} {to}");
        }
        assert!(range(Grain::Day, "2026-11-16", "2026-11-16").is_ok(), "it may be tomorrow somewhere");
        assert!(range(Grain::Hour, "2026-10-11", "2026-10-17").is_ok());
        assert!(range(Grain::Day, "2025-10-12", "2026-11-15").is_ok());
        assert!(range(Grain::Month, "2016-12-01", "2026-11-01").is_ok());
    }

    #[test]
    fn steps_end_with_the_present_one() {
        let now: DateTime<Utc> = "2026-11-15T02:30:00Z".parse().unwrap();
        let steps = |grain, from, to| range(grain, from, to).unwrap().steps(now).len();
        assert_eq!(steps(Grain::Hour, "2026-11-15", "2026-11-15"), 3);
        assert_eq!(steps(Grain::Hour, "2026-11-14", "2026-11-14"), 24);
        assert_eq!(steps(Grain::Day, "2026-11-14", "2026-11-16"), 2);
        assert_eq!(steps(Grain::Day, "2026-11-16", "2026-11-16"), 0);
        assert_eq!(steps(Grain::Month, "2026-09-20", ""), 3);
        let present = |grain, from, to| range(grain, from, to).unwrap().present(now);
        assert_eq!(present(Grain::Month, "", ""), Some(start_of(day("2026-11-01"))));
        assert_eq!(present(Grain::Day, "", ""), Some(start_of(day("2026-11-15"))));
        assert_eq!(present(Grain::Day, "", "2026-11-14"), None);
        assert_eq!(present(Grain::Day, "2026-11-16", "2026-11-16"), None);
    }
}
