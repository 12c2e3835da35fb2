//! When sessions and API keys were last used: kept in memory, written in batches.
//!
//! At most [`EVERY`] of it is lost by a crash. Nothing is decided by it.

use std::{collections::HashMap, sync::Mutex, time::Duration};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::Origin;
use crate::{app::App, error::Result};

/// How often what was seen is written.
pub const EVERY: Duration = Duration::from_secs(5);

/// What was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Seen {
    Session(Uuid),
    Key(Uuid),
}

/// What was used since the last writing, when and from where.
#[derive(Default)]
pub struct Activity(Mutex<HashMap<Seen, Use>>);

/// When, and from where.
type Use = (DateTime<Utc>, Option<String>);

impl Activity {
    pub fn saw(&self, what: Seen, origin: &Origin, now: DateTime<Utc>) {
        let mut seen = self.0.lock().expect("nothing panics with the lock held");
        seen.insert(what, (now, origin.address_text()));
    }

    /// Writes what was seen.
    pub async fn flush(&self, app: &App) -> Result<()> {
        let seen = std::mem::take(&mut *self.0.lock().expect("nothing panics with the lock held"));
        if seen.is_empty() {
            return Ok(());
        }
        let (sessions, keys): (Vec<_>, Vec<_>) =
            seen.into_iter().partition(|(what, _)| matches!(what, Seen::Session(_)));
        let tx = app.db.begin().await?;
        for (of, sql) in [
            (
                sessions,
                "update platform.sessions s set last_seen_at = greatest(s.last_seen_at, seen.at), last_address = seen.address \
                 from unnest($1::uuid[], $2::timestamptz[], $3::text[]) as seen (id, at, address) where s.id = seen.id",
            ),
            (
                keys,
                "update platform.api_keys k set last_used_at = greatest(k.last_used_at, seen.at), last_used_address = seen.address \
                 from unnest($1::uuid[], $2::timestamptz[], $3::text[]) as seen (id, at, address) where k.id = seen.id",
            ),
        ] {
            // In one order everywhere, so that two instances do not wait for each other in a circle.
            let mut rows: Vec<(Uuid, DateTime<Utc>, Option<String>)> = of
                .into_iter()
                .map(|(what, (at, address))| match what {
                    Seen::Session(id) | Seen::Key(id) => (id, at, address),
                })
                .collect();
            rows.sort();
            let ids: Vec<Uuid> = rows.iter().map(|row| row.0).collect();
            let times: Vec<DateTime<Utc>> = rows.iter().map(|row| row.1).collect();
            let addresses: Vec<Option<&str>> = rows.iter().map(|row| row.2.as_deref()).collect();
            if !ids.is_empty() {
                tx.execute(sql, &[&ids, &times, &addresses]).await?;
            }
        }
        tx.commit().await
    }
}
