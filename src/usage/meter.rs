//! The meter: counts requests in memory, and writes what it counted in batches.
//!
//! To count is to lock one of a few shards for two look-ups; nothing is allocated but at the first sight
//! of an organization, key and group in an hour. Every [`EVERY`] all of it is written in one transaction:
//! the hours of `platform.usage_records`, and the month's calls of `platform.api_call_months`, whose
//! totals come back and hold what other instances wrote. A crash loses what was counted since the last
//! flush, and the limit on calls is enforced to within one flush on each instance.
//!
//! What could not be written stays with the meter and goes with the next batch. Only a batch whose commit
//! was not answered keeps its id and is written again as it is: if it had been committed after all, its
//! row in `platform.usage_batches` is there, and nothing is counted twice.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use chrono::{DateTime, NaiveDate, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Metric, partitions};
use crate::{
    app::App,
    billing::{
        Resource,
        limits::{self, month},
    },
    db::Tx,
    error::Result,
    jobs::{self, Running, Terms, Work},
};

/// How often what was counted is written.
pub const EVERY: Duration = Duration::from_secs(2);

/// Organizations are spread over so many locks.
const SHARDS: usize = 16;
/// Lines in one statement at most.
const AT_ONCE: usize = 5_000;

/// Counts requests.
#[derive(Default)]
pub struct Meter {
    /// Locked for moments only, never across an await.
    shards: [Mutex<Shard>; SHARDS],
    /// Held by whoever writes, which is one at a time. To count does not take it.
    unwritten: tokio::sync::Mutex<Unwritten>,
}

/// Organization, key (nil: people) and hour.
type Caller = (Uuid, Uuid, i64);

#[derive(Default)]
struct Shard {
    /// How often each group was asked for since it was collected.
    hours: HashMap<Caller, Vec<(Arc<str>, i64)>>,
    /// By organization: the calls of its newest month.
    months: HashMap<Uuid, Month>,
}

/// An organization's calls with API keys in a month.
struct Month {
    first_day: NaiveDate,
    /// The total at the last flush, over all instances; `None` before there was one.
    written: Option<i64>,
    /// What this process counted and has not seen written.
    counted: i64,
}

/// What was collected, and is not known to be written.
#[derive(Default)]
struct Unwritten {
    /// The oldest first; all but the last are in doubt, so there are two at most.
    batches: Vec<Batch>,
    /// Months that have a partition.
    partitions: HashSet<NaiveDate>,
}

/// What is written in one transaction.
struct Batch {
    id: Uuid,
    /// Ordered alike in every process: two that write at the same time do not deadlock.
    lines: BTreeMap<Line, i64>,
    /// It may have been committed, so nothing is added to it any more.
    in_doubt: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Line {
    organization: Uuid,
    key: Uuid,
    /// Since 1970.
    hour: i64,
    group: Arc<str>,
}

/// Calls by organization and month.
type Calls = BTreeMap<(Uuid, NaiveDate), i64>;

/// What an organization's calls in a month have come to, over all instances.
struct Total {
    organization: Uuid,
    month: NaiveDate,
    calls: i64,
    /// What its plan allows.
    limit: Option<i64>,
}

impl Meter {
    /// Counts one request of an organization, by an API key or by a person. The group is a word of the
    /// API's own, not of the caller's: there are few of them.
    pub fn count(&self, organization: Uuid, key: Option<Uuid>, group: &str, now: DateTime<Utc>) {
        let mut shard = self.shard(organization);
        let line = (organization, key.unwrap_or_default(), hour_of(now));
        let groups = shard.hours.entry(line).or_default();
        match groups.iter_mut().find(|(known, _)| **known == *group) {
            Some((_, count)) => *count += 1,
            None => groups.push((group.into(), 1)),
        }
        if key.is_some() {
            let first_day = month(now);
            let new = Month { first_day, written: None, counted: 0 };
            let known = shard.months.entry(organization).or_insert(new);
            if known.first_day < first_day {
                *known = Month { first_day, written: None, counted: 0 };
            }
            // One that began in the month before and ends here is in its hour all the same.
            if known.first_day == first_day {
                known.counted += 1;
            }
        }
    }

    /// An organization's calls with API keys this month, as this process knows them: the total at the
    /// last flush and what came since. `None` before the first flush.
    pub fn calls(&self, organization: Uuid, now: DateTime<Utc>) -> Option<i64> {
        let shard = self.shard(organization);
        let known = shard.months.get(&organization).filter(|known| known.first_day == month(now))?;
        Some(known.written? + known.counted)
    }

    /// Writes what was counted; what could not be written is kept for the next time.
    pub async fn flush(&self, app: &App) -> Result<()> {
        let mut unwritten = self.unwritten.lock().await;
        let Unwritten { batches, partitions } = &mut *unwritten;
        add(batches, self.collect(app.clock.now()));
        while let Some(batch) = batches.first_mut() {
            let calls = batch.calls();
            let written = write(app, batch, &calls, partitions).await;
            if written.is_err() {
                // It may be for want of one.
                partitions.clear();
            }
            let totals = written?;
            batches.remove(0);
            self.settle(&calls, &totals);
        }
        Ok(())
    }

    /// What was counted since the last time. What belongs to an hour that is over is not counted on.
    fn collect(&self, now: DateTime<Utc>) -> Vec<(Line, i64)> {
        let (hour, first_day) = (hour_of(now), month(now));
        let mut counted = Vec::new();
        for shard in &self.shards {
            let mut shard = locked(shard);
            shard.hours.retain(|(organization, key, at), groups| {
                for (group, count) in groups.iter_mut().filter(|(_, count)| *count > 0) {
                    let (organization, key, hour) = (*organization, *key, *at);
                    let line = Line { organization, key, hour, group: group.clone() };
                    counted.push((line, std::mem::take(count)));
                }
                *at >= hour
            });
            shard.months.retain(|_, known| known.first_day >= first_day);
        }
        counted
    }

    /// Takes over what the database says now that these calls are in it.
    fn settle(&self, calls: &Calls, totals: &[Total]) {
        for total in totals {
            let mut shard = self.shard(total.organization);
            let known = shard.months.get_mut(&total.organization);
            if let Some(known) = known.filter(|known| known.first_day == total.month) {
                known.written = Some(total.calls);
                known.counted -= calls.get(&(total.organization, total.month)).copied().unwrap_or_default();
            }
        }
    }

    fn shard(&self, organization: Uuid) -> MutexGuard<'_, Shard> {
        // The end of an id is random.
        locked(&self.shards[organization.as_u128() as usize % SHARDS])
    }
}

fn locked(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().expect("nothing panics with the lock held")
}

fn hour_of(at: DateTime<Utc>) -> i64 {
    at.timestamp().div_euclid(3600)
}

fn start_of_hour(hour: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(hour * 3600, 0).unwrap_or_default()
}

/// Adds what was counted to the last batch, or to a new one where that is in doubt.
fn add(batches: &mut Vec<Batch>, counted: Vec<(Line, i64)>) {
    if counted.is_empty() {
        return;
    }
    if batches.last().is_none_or(|last| last.in_doubt) {
        batches.push(Batch { id: Uuid::now_v7(), lines: BTreeMap::new(), in_doubt: false });
    }
    if let Some(last) = batches.last_mut() {
        for (line, count) in counted {
            *last.lines.entry(line).or_default() += count;
        }
    }
}

impl Batch {
    /// What it adds to the months of organizations.
    fn calls(&self) -> Calls {
        let mut calls = Calls::new();
        for (line, count) in self.lines.iter().filter(|(line, _)| !line.key.is_nil()) {
            *calls.entry((line.organization, month(start_of_hour(line.hour)))).or_default() += count;
        }
        calls
    }

    fn months(&self) -> BTreeSet<NaiveDate> {
        self.lines.keys().map(|line| month(start_of_hour(line.hour))).collect()
    }
}

/// Writes a batch, unless it was written already, and answers the totals of whoever is in it.
async fn write(
    app: &App,
    batch: &mut Batch,
    calls: &Calls,
    partitions: &mut HashSet<NaiveDate>,
) -> Result<Vec<Total>> {
    for month in batch.months() {
        if !partitions.contains(&month) {
            partitions::ensure(app, month).await?;
            partitions.insert(month);
        }
    }
    let tx = app.db.begin().await?;
    let new = tx
        .execute(
            "insert into platform.usage_batches (id, written_at) values ($1, $2) on conflict (id) do nothing",
            &[&batch.id, &app.clock.now()],
        )
        .await?;
    if new == 1 {
        add_hours(&tx, &batch.lines).await?;
        add_calls(&tx, calls).await?;
    }
    let totals = totals(&tx, calls).await?;
    if new == 1 {
        enqueue_warnings(&tx, app, calls, &totals).await?;
    }
    // Also where nobody waits for the answer any more.
    batch.in_doubt = true;
    tx.commit().await?;
    Ok(totals)
}

async fn add_hours(tx: &Tx, lines: &BTreeMap<Line, i64>) -> Result<()> {
    let lines: Vec<(&Line, i64)> = lines.iter().map(|(line, count)| (line, *count)).collect();
    for lines in lines.chunks(AT_ONCE) {
        let organizations: Vec<Uuid> = lines.iter().map(|(line, _)| line.organization).collect();
        let metrics: Vec<Metric> = lines
            .iter()
            .map(|(line, _)| if line.key.is_nil() { Metric::Requests } else { Metric::ApiCalls })
            .collect();
        let hours: Vec<DateTime<Utc>> = lines.iter().map(|(line, _)| start_of_hour(line.hour)).collect();
        let keys: Vec<Uuid> = lines.iter().map(|(line, _)| line.key).collect();
        let groups: Vec<&str> = lines.iter().map(|(line, _)| &*line.group).collect();
        let counts: Vec<i64> = lines.iter().map(|(_, count)| *count).collect();
        tx.execute(
            "insert into platform.usage_records as known (organization_id, metric, grain, bucket, key_id, route_group, \
             quantity) select new.organization_id, new.metric, 'hour', new.bucket, new.key_id, new.route_group, \
             new.quantity from unnest($1::uuid[], $2::text[], $3::timestamptz[], $4::uuid[], $5::text[], $6::bigint[]) \
             as new (organization_id, metric, bucket, key_id, route_group, quantity) \
             on conflict (organization_id, metric, grain, bucket, key_id, route_group) \
             do update set quantity = known.quantity + excluded.quantity",
            &[&organizations, &metrics, &hours, &keys, &groups, &counts],
        )
        .await?;
    }
    Ok(())
}

async fn add_calls(tx: &Tx, calls: &Calls) -> Result<()> {
    let (organizations, months) = names(calls);
    let counts: Vec<i64> = calls.values().copied().collect();
    tx.execute(
        "insert into platform.api_call_months as known (organization_id, month, calls) \
         select new.organization_id, new.month, new.calls \
         from unnest($1::uuid[], $2::date[], $3::bigint[]) as new (organization_id, month, calls) \
         on conflict (organization_id, month) do update set calls = known.calls + excluded.calls",
        &[&organizations, &months, &counts],
    )
    .await?;
    Ok(())
}

async fn totals(tx: &Tx, calls: &Calls) -> Result<Vec<Total>> {
    if calls.is_empty() {
        return Ok(Vec::new());
    }
    let (organizations, months) = names(calls);
    let rows = tx
        .query(
            "select m.organization_id, m.month, m.calls, p.api_calls as \"limit\" \
             from unnest($1::uuid[], $2::date[]) as asked (organization_id, month) \
             join platform.api_call_months m on m.organization_id = asked.organization_id and m.month = asked.month \
             left join platform.organizations o on o.id = m.organization_id \
             left join platform.plans p on p.name = o.plan order by m.organization_id, m.month",
            &[&organizations, &months],
        )
        .await?;
    rows.iter()
        .map(|row| {
            Ok(Total {
                organization: row.try_get("organization_id")?,
                month: row.try_get("month")?,
                calls: row.try_get("calls")?,
                limit: row.try_get("limit")?,
            })
        })
        .collect()
}

fn names(calls: &Calls) -> (Vec<Uuid>, Vec<NaiveDate>) {
    calls.keys().copied().unzip()
}

/// Where most or all of what the plan allows has been used up, has it told.
async fn enqueue_warnings(tx: &Tx, app: &App, calls: &Calls, totals: &[Total]) -> Result<()> {
    let this_month = month(app.clock.now());
    for total in totals.iter().filter(|total| total.month == this_month) {
        let added = calls.get(&(total.organization, total.month)).copied().unwrap_or_default();
        let before = total.calls - added;
        if !total.limit.is_some_and(|limit| crosses(before, total.calls, limit)) {
            continue;
        }
        // One that waits already knows of an earlier time before.
        let unique = Some(jobs::ONE.into());
        let organization = Some(total.organization);
        let terms = Terms { unique, organization, ..Terms::default() };
        jobs::enqueue_on(tx, app, &WarnApiCalls { before }, terms).await?;
    }
    Ok(())
}

/// Whether [`limits::warn`] may have something to say, which is for it to decide.
fn crosses(before: i64, after: i64, limit: i64) -> bool {
    let reaches = |used: i64, percent: i128| i128::from(used) * 100 >= i128::from(limit) * percent;
    [80, 100].into_iter().any(|percent| !reaches(before, percent) && reaches(after, percent))
}

/// Tells an organization how much of its calls is used up.
#[derive(Serialize, Deserialize)]
pub struct WarnApiCalls {
    /// How many there had been before.
    before: i64,
}

impl Work for WarnApiCalls {
    const KIND: &'static str = "warn_api_calls";

    async fn run(self, job: &Running) -> anyhow::Result<()> {
        let Some(tenant) = job.tenant().await?.filter(|tenant| !tenant.is_deleted()) else { return Ok(()) };
        let tx = tenant.begin().await?;
        let now = limits::ask(&tx, &job.app, Resource::ApiCalls).await?;
        limits::warn(&tx, &job.app, self.before, &now).await?;
        Ok(tx.commit().await?)
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    /// As a flush does that nothing goes wrong with, with `others` written by other instances.
    fn flushed(meter: &Meter, now: DateTime<Utc>, before: i64) -> Vec<(Line, i64)> {
        let mut batches = Vec::new();
        add(&mut batches, meter.collect(now));
        let Some(batch) = batches.pop() else { return Vec::new() };
        let calls = batch.calls();
        let total = |((organization, month), added): (&(Uuid, NaiveDate), &i64)| Total {
            organization: *organization,
            month: *month,
            calls: before + added,
            limit: None,
        };
        meter.settle(&calls, &calls.iter().map(total).collect::<Vec<_>>());
        batch.lines.into_iter().collect()
    }

    #[test]
    fn what_is_counted_is_collected_once_by_key_group_and_hour() {
        let (meter, organization, key) = (Meter::default(), Uuid::now_v7(), Uuid::now_v7());
        let now = at("2026-11-30T23:59:58Z");
        for group in ["projects", "projects", "tasks"] {
            meter.count(organization, Some(key), group, now);
        }
        meter.count(organization, None, "projects", now);
        meter.count(organization, None, "projects", now + TimeDelta::seconds(2));
        let lines: Vec<(bool, String, String, i64)> = flushed(&meter, now, 0)
            .into_iter()
            .map(|(line, n)| {
                (line.key == key, line.group.to_string(), start_of_hour(line.hour).to_rfc3339(), n)
            })
            .collect();
        let line =
            |by_key, group: &str, hour: &str, n| (by_key, group.to_owned(), format!("{hour}+00:00"), n);
        assert_eq!(
            lines,
            [
                line(false, "projects", "2026-11-30T23:00:00", 1),
                line(false, "projects", "2026-12-01T00:00:00", 1),
                line(true, "projects", "2026-11-30T23:00:00", 2),
                line(true, "tasks", "2026-11-30T23:00:00", 1),
            ]
        );
        assert!(flushed(&meter, now, 0).is_empty());
    }

    #[test]
    fn the_calls_of_a_month_are_what_was_written_and_what_came_since() {
        let (meter, organization) = (Meter::default(), Uuid::now_v7());
        let now = at("2026-11-30T12:00:00Z");
        let call = |now| meter.count(organization, Some(Uuid::from_u128(1)), "projects", now);
        assert_eq!(meter.calls(organization, now), None);
        call(now);
        meter.count(organization, None, "projects", now);
        assert_eq!(meter.calls(organization, now), None, "nobody knows what others have counted");
        flushed(&meter, now, 40);
        assert_eq!(meter.calls(organization, now), Some(41));
        call(now);
        assert_eq!(meter.calls(organization, now), Some(42));
        assert_eq!(meter.calls(Uuid::now_v7(), now), None);
        // The next month begins anew, and one that is late does not count for it.
        let next = now + TimeDelta::days(1);
        assert_eq!(meter.calls(organization, next), None);
        call(next);
        call(now);
        flushed(&meter, next, 0);
        assert_eq!(meter.calls(organization, next), Some(1));
    }

    #[test]
    fn what_could_not_be_written_is_added_to_unless_it_may_have_been() {
        let mut batches = Vec::new();
        let line =
            Line { organization: Uuid::nil(), key: Uuid::nil(), hour: 1, group: Arc::from("projects") };
        add(&mut batches, Vec::new());
        assert!(batches.is_empty());
        add(&mut batches, vec![(line.clone(), 1)]);
        add(&mut batches, vec![(line.clone(), 2)]);
        assert_eq!((batches.len(), batches[0].lines[&line]), (1, 3));
        batches[0].in_doubt = true;
        add(&mut batches, vec![(line.clone(), 4)]);
        add(&mut batches, vec![(line.clone(), 5)]);
        assert_eq!((batches.len(), batches[0].lines[&line], batches[1].lines[&line]), (2, 3, 9));
        assert_ne!(batches[0].id, batches[1].id);
    }

    #[test]
    fn a_warning_is_due_where_a_threshold_is_crossed() {
        assert!(crosses(79, 80, 100) && crosses(99, 100, 100) && crosses(0, 500, 100));
        assert!(!crosses(80, 99, 100) && !crosses(100, 101, 100) && !crosses(0, 79, 100));
        assert!(crosses(3, 4, 5) && crosses(4, 5, 5) && !crosses(2, 3, 5));
        assert!(!crosses(0, 1, 0), "nothing can be crossed where nothing is allowed");
        assert!(!crosses(i64::MAX - 1, i64::MAX, 10));
    }
}
