//! What has changed since somebody looked: so that what was read can be kept until it changes.
//!
//! Of each id a counter tells how often it has changed; ids share counters, which only costs a look too
//! many. Whoever keeps something takes a [`Mark`] *before* reading it, and asks before each use whether
//! the mark is still good. A commit counts here at once, and everywhere else when its notice arrives,
//! within milliseconds. While the process does not hear (start, broken connection) no mark is good.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use uuid::Uuid;

const COUNTERS: usize = 4096;

/// Counts changes by id.
pub struct Fresh {
    hearing: AtomicBool,
    changes: AtomicU64,
    all: AtomicU64,
    counters: Box<[AtomicU64]>,
}

/// How often something had changed at a moment; `None` where that could not be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(Option<[u64; 3]>);

impl Default for Fresh {
    fn default() -> Self {
        let counters = (0..COUNTERS).map(|_| AtomicU64::new(0)).collect();
        Self { hearing: AtomicBool::new(false), changes: AtomicU64::new(0), all: AtomicU64::new(0), counters }
    }
}

impl Fresh {
    /// For something that depends on these two.
    pub fn mark(&self, first: Uuid, second: Uuid) -> Mark {
        let count = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        let counts = [count(&self.all), count(self.counter(first)), count(self.counter(second))];
        Mark(self.hearing.load(Ordering::SeqCst).then_some(counts))
    }

    /// Whether nothing has changed since the mark was taken.
    pub fn is_good(&self, mark: Mark, first: Uuid, second: Uuid) -> bool {
        mark.0.is_some() && mark == self.mark(first, second)
    }

    /// Changes of anything: for who learns only by reading what a mark would be about.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::SeqCst)
    }

    /// Something about this id has changed.
    pub fn changed(&self, id: Uuid) {
        self.changes.fetch_add(1, Ordering::SeqCst);
        self.counter(id).fetch_add(1, Ordering::SeqCst);
    }

    /// Anything may have changed.
    pub fn all_changed(&self) {
        self.changes.fetch_add(1, Ordering::SeqCst);
        self.all.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn set_hearing(&self, hearing: bool) {
        self.all_changed();
        self.hearing.store(hearing, Ordering::SeqCst);
    }

    fn counter(&self, id: Uuid) -> &AtomicU64 {
        // The last bits of an id of version 7 are random.
        &self.counters[id.as_u128() as usize % COUNTERS]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_good_until_one_of_its_two_changes() {
        let (fresh, a, b) = (Fresh::default(), Uuid::from_u128(1), Uuid::from_u128(2));
        assert!(!fresh.is_good(fresh.mark(a, b), a, b), "nothing is heard yet");
        fresh.set_hearing(true);
        let mark = fresh.mark(a, b);
        fresh.changed(Uuid::from_u128(3));
        assert!(fresh.is_good(mark, a, b));
        fresh.changed(b);
        assert!(!fresh.is_good(mark, a, b));
        let mark = fresh.mark(a, b);
        fresh.set_hearing(false);
        fresh.set_hearing(true);
        assert!(!fresh.is_good(mark, a, b), "something may have been missed");
    }
}
