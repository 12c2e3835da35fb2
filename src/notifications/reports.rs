//! The weekly report: how much was done, for those who answer for it.

use std::collections::HashMap;

use chrono::{DateTime, Datelike, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    insert,
    notices::{NoticeKind, write},
    open_tenant,
    people::{self, Person, Wishes},
};
use crate::{
    app::App,
    auth::{Permission, Role, sealing::sha256},
    events::EventType,
    jobs::{self, Running, Work},
    mail::one_line,
};

/// What is counted, as one and as many.
const COUNTED: [(EventType, &str, &str); 4] = [
    (EventType::TaskCompleted, "task completed", "tasks completed"),
    (EventType::TaskCreated, "task created", "tasks created"),
    (EventType::ProjectCreated, "project created", "projects created"),
    (EventType::MemberJoined, "new member", "new members"),
];

/// Begins the reports of the week that ends now.
pub async fn begin_weekly_reports(app: &App) -> anyhow::Result<()> {
    let until = app.clock.now();
    let week = until.date_naive().iso_week();
    let report = WeeklyReport { week: format!("{}-W{:02}", week.year(), week.week()), until };
    Ok(jobs::enqueue_everywhere(app, None, &report).await?)
}

/// Reports to one organization; nothing if nothing happened.
#[derive(Serialize, Deserialize)]
pub struct WeeklyReport {
    /// ISO 8601: 2026-W02.
    week: String,
    until: DateTime<Utc>,
}

impl Work for WeeklyReport {
    const KIND: &'static str = "weekly_report";

    async fn run(self, job: &Running) -> anyhow::Result<()> {
        let app = &*job.app;
        let Some(tenant) = open_tenant(job).await? else { return Ok(()) };
        let tx = tenant.begin().await?;
        let names: Vec<&str> = COUNTED.iter().map(|(kind, ..)| kind.name()).collect();
        let rows = tx
            .query(
                "select type, count(*) as many from events where occurred_at >= $1 and occurred_at < $2 \
                 and type = any ($3) group by type",
                &[&(self.until - TimeDelta::days(7)), &self.until, &names],
            )
            .await?;
        let mut counts: HashMap<EventType, i64> = HashMap::new();
        for row in &rows {
            counts.insert(row.try_get("type")?, row.try_get("many")?);
        }
        let summary = summary(&counts);
        if summary.is_empty() {
            return Ok(());
        }
        let people = people::find(&tx, None).await?;
        let to: Vec<&Person> = people
            .iter()
            .filter(|person| matches!(person.role, Role::Owner | Role::Admin))
            .filter(|person| person.permissions.contains(Permission::AnalyticsRead))
            .collect();
        let users: Vec<Uuid> = to.iter().map(|person| person.id).collect();
        let wishes = Wishes::of(&tx, &users).await?;
        let organization = people::organization(&tx).await?;
        let fields = HashMap::from([
            ("organization".to_owned(), one_line(&organization)),
            ("summary".to_owned(), summary),
        ]);
        let kind = NoticeKind::WeeklyReport;
        let text = write(kind, &fields)?;
        insert(app, &tx, &wishes, &to, kind, cause(tenant.id(), &self.week), &text).await?;
        Ok(tx.commit().await?)
    }
}

fn summary(counts: &HashMap<EventType, i64>) -> String {
    let parts = COUNTED.iter().filter_map(|(kind, one, many)| match counts.get(kind) {
        None | Some(0) => None,
        Some(1) => Some(format!("1 {one}")),
        Some(count) => Some(format!("{count} {many}")),
    });
    parts.collect::<Vec<_>>().join(", ")
}

/// Stands for the event that there is none of: the same for the same week, so that it is told once.
fn cause(organization: Uuid, week: &str) -> Uuid {
    let hash = sha256(format!("weekly-report {organization} {week}").as_bytes());
    hash.first_chunk::<16>().map_or(Uuid::nil(), |bytes| Uuid::from_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_names_what_there_was() {
        let counts = HashMap::from([
            (EventType::TaskCompleted, 12),
            (EventType::ProjectCreated, 1),
            (EventType::TaskCreated, 0),
        ]);
        assert_eq!(summary(&counts), "12 tasks completed, 1 project created");
        assert_eq!(summary(&HashMap::new()), "");
    }

    #[test]
    fn a_week_is_told_once() {
        let organization = Uuid::now_v7();
        assert_eq!(cause(organization, "2026-W02"), cause(organization, "2026-W02"));
        assert_ne!(cause(organization, "2026-W02"), cause(organization, "2026-W03"));
        assert_ne!(cause(organization, "2026-W02"), cause(Uuid::now_v7(), "2026-W02"));
    }
}
