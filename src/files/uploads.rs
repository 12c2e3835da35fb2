//! How many uploads are under way: each may hold up to 18 MiB of memory for as long as it lasts.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use uuid::Uuid;

use crate::error::{Code, Error, Result};

/// How long an upload waits for others to end before it is turned away.
const PATIENCE: Duration = Duration::from_secs(5);
/// One organization has at most this share of all.
const SHARE: usize = 4;

/// Uploads of this process.
#[derive(Debug)]
pub struct Uploads {
    places: Arc<Semaphore>,
    of_one: usize,
    by_organization: Mutex<HashMap<Uuid, usize>>,
}

impl Default for Uploads {
    fn default() -> Self {
        Self::new(1)
    }
}

impl Uploads {
    /// So many at once.
    pub fn new(most: usize) -> Self {
        let places = Arc::new(Semaphore::new(most.max(1)));
        Self { places, of_one: (most / SHARE).max(1), by_organization: Mutex::default() }
    }

    /// A place for an upload, which it gives back when it is dropped; 503 where all are taken.
    pub async fn begin(&self) -> Result<OwnedSemaphorePermit> {
        let busy = || Error::unavailable("Too many files are being uploaded. Try again in a moment.", 5);
        let place = tokio::time::timeout(PATIENCE, self.places.clone().acquire_owned()).await;
        place.map_err(|_| busy())?.map_err(Error::internal)
    }

    /// One of the places that an organization may have; 429 where it has them.
    pub fn of(&self, organization: Uuid) -> Result<OfOne<'_>> {
        let mut counted = self.counted();
        let there = counted.entry(organization).or_default();
        if *there >= self.of_one {
            let told = format!(
                "The organization uploads {there} files already. Send this one when one of them is done."
            );
            return Err(Error::new(Code::RateLimit, told).retry_after(5));
        }
        *there += 1;
        Ok(OfOne { uploads: self, organization })
    }

    fn counted(&self) -> MutexGuard<'_, HashMap<Uuid, usize>> {
        self.by_organization.lock().expect("nothing panics with the lock held")
    }
}

/// An upload of an organization that is under way.
#[derive(Debug)]
pub struct OfOne<'a> {
    uploads: &'a Uploads,
    organization: Uuid,
}

impl Drop for OfOne<'_> {
    fn drop(&mut self) {
        let mut counted = self.uploads.counted();
        if let Some(there) = counted.get_mut(&self.organization) {
            *there -= 1;
            if *there == 0 {
                counted.remove(&self.organization);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_organization_does_not_take_all_places() {
        let (uploads, one, other) = (Uploads::new(8), Uuid::now_v7(), Uuid::now_v7());
        let (first, second) = (uploads.of(one).unwrap(), uploads.of(one).unwrap());
        assert_eq!(uploads.of(one).unwrap_err().code(), Code::RateLimit);
        assert!(uploads.of(other).is_ok());
        drop(first);
        assert!(uploads.of(one).is_ok());
        drop(second);
        assert!(uploads.counted().is_empty());
    }

    #[tokio::test]
    async fn who_finds_no_place_waits_for_a_moment() {
        let uploads = Uploads::new(1);
        let first = uploads.begin().await.unwrap();
        assert_eq!(uploads.begin().await.unwrap_err().code(), Code::Unavailable);
        drop(first);
        assert!(uploads.begin().await.is_ok());
    }
}
