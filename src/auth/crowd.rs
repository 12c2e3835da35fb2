//! How many requests of each organization are under way in this process.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
};

use uuid::Uuid;

/// Requests under way, by organization.
#[derive(Clone, Default)]
pub struct Crowd(Arc<Mutex<HashMap<Uuid, usize>>>);

/// One of them; it is over when this is dropped.
pub struct Inside {
    crowd: Crowd,
    organization: Uuid,
}

impl Crowd {
    /// Lets one more in, unless `most` are there (0: any number).
    pub fn enter(&self, organization: Uuid, most: usize) -> Option<Inside> {
        let mut there = self.there();
        let count = there.entry(organization).or_default();
        if most > 0 && *count >= most {
            return None;
        }
        *count += 1;
        Some(Inside { crowd: self.clone(), organization })
    }

    fn there(&self) -> MutexGuard<'_, HashMap<Uuid, usize>> {
        self.0.lock().expect("nothing panics with the lock held")
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        let mut there = self.crowd.there();
        if let Some(count) = there.get_mut(&self.organization) {
            *count -= 1;
            if *count == 0 {
                there.remove(&self.organization);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_organization_that_is_full_leaves_the_others_alone() {
        let (crowd, a, b) = (Crowd::default(), Uuid::from_u128(1), Uuid::from_u128(2));
        let inside = [crowd.enter(a, 2), crowd.enter(a, 2)];
        assert!(inside.iter().all(Option::is_some) && crowd.enter(a, 2).is_none());
        assert!(crowd.enter(b, 2).is_some());
        drop(inside);
        assert!(crowd.enter(a, 2).is_some());
        assert!(crowd.there().is_empty(), "nothing is kept of whoever is gone");
    }
}
