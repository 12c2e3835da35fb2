//! When sessions and API keys were last used: kept in memory, written in batches.
//!
//! At most [`EVERY`] of it is lost by a crash. Nothing is decided by it.

use std::{collections::HashMap, net::IpAddr, sync::Mutex, time::Duration};

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
type Use = (DateTime<Utc>, Option<IpAddr>);

impl Activity {
    pub fn saw(&self, what: Seen, origin: &Origin, now: DateTime<Utc>) {
        let mut seen = self.0.lock().expect("nothing panics with the lock held");
        seen.insert(what, (now, origin.address));
    }

    /// Writes what was seen; what could not be written is kept for the next time.
    pub async fn flush(&self, app: &App) -> Result<()> {
        let seen = std::mem::take(&mut *self.0.lock().expect("nothing panics with the lock held"));
        let written = write(app, &seen).await;
        if written.is_err() {
            let mut newer = self.0.lock().expect("nothing panics with the lock held");
            for (what, used) in seen {
                newer.entry(what).or_insert(used);
            }
        }
        written
    }
}

async fn write(app: &App, seen: &HashMap<Seen, Use>) -> Result<()> {
    let (mut sessions, mut keys) = (Vec::new(), Vec::new());
    for (what, (at, address)) in seen {
        match what {
            Seen::Session(id) => sessions.push((*id, *at, *address)),
            Seen::Key(id) => keys.push((*id, *at, *address)),
        }
    }
    for (mut rows, sql) in [
        (
            sessions,
            "update platform.sessions s set last_seen_at = greatest(s.last_seen_at, seen.at), \
             last_address = seen.address \
             from unnest($1::uuid[], $2::timestamptz[], $3::text[]) as seen (id, at, address) where s.id = seen.id",
        ),
        (
            keys,
            "update platform.api_keys k set last_used_at = greatest(k.last_used_at, seen.at), \
             last_used_address = seen.address \
             from unnest($1::uuid[], $2::timestamptz[], $3::text[]) as seen (id, at, address) where k.id = seen.id",
        ),
    ] {
        if rows.is_empty() {
            continue;
        }
        rows.sort();
        let ids: Vec<Uuid> = rows.iter().map(|row| row.0).collect();
        let times: Vec<DateTime<Utc>> = rows.iter().map(|row| row.1).collect();
        let addresses: Vec<Option<String>> = rows.iter().map(|row| row.2.map(|ip| ip.to_string())).collect();
        let tx = app.db.begin().await?;
        tx.execute(sql, &[&ids, &times, &addresses]).await?;
        tx.commit().await?;
    }
    Ok(())
}
