//! Who gets the next free slot: fair among tenants, and where possible a slot that knows the tenant.
//!
//! Each tenant has an account of the time for which it has held connections of late: half of it is
//! forgotten each second. Of the tenants that wait, one that has had less than half of what another has
//! had goes first, so whoever asks now and then never stands behind the queue of one that asks all the
//! time. What somebody left unused is not saved up. No tenant holds more than half of the slots, and the
//! last free one goes to nobody who has one already.
//!
//! Among tenants that have had about the same, the one goes first that ranks the free slot high; who
//! has waited for some milliseconds takes any slot, the longest waiting first. (Smaller differences must
//! not count: among two hundred tenants that ask at random, whoever asked twice in a row would wait for
//! all the others.) The platform's own statements (nil) are short and
//! on everybody's behalf: they go before all, though they do not get every slot.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use uuid::Uuid;

/// Whoever has had less of late is like one that has had nothing, in seconds.
const LITTLE: f64 = 0.05;
/// Slots that a tenant would rather have than others.
const FAVOURITES: usize = 2;
/// Who has waited so long takes any slot.
const CHOOSY_FOR: Duration = Duration::from_millis(3);
/// Accounts of tenants that are away are cleared once there are so many.
const ACCOUNTS: usize = 10_000;

/// `C` is a connection, `H` the way to hand it to whoever waits.
pub(super) struct Desk<C, H> {
    /// One entry for each slot that nobody uses now: its number, and its connection if it has one.
    idle: Vec<(usize, Option<C>)>,
    size: usize,
    accounts: HashMap<Uuid, Account<H>>,
    /// Tenants with somebody waiting.
    waiting: Vec<Uuid>,
    /// Of the time that a tenant owes, so much is forgiven each second.
    forgiven: f64,
}

struct Account<H> {
    /// Seconds had of late, as of `had_at`.
    had: f64,
    had_at: Instant,
    held: usize,
    queue: VecDeque<(Instant, H)>,
    /// Time had of late, as of `owed_at`; forgiven with time.
    owed: Duration,
    owed_at: Instant,
}

impl<H> Account<H> {
    fn had(&self, now: Instant) -> f64 {
        self.had * (-now.saturating_duration_since(self.had_at).as_secs_f64()).exp2()
    }

    /// The same as a number that grows by one where it doubles.
    fn weight(&self, now: Instant) -> u32 {
        (self.had(now) / LITTLE).max(1.0).log2() as u32
    }

    fn settle(&mut self, forgiven: f64, now: Instant) {
        let past = now.saturating_duration_since(self.owed_at).mul_f64(forgiven);
        self.owed = self.owed.saturating_sub(past);
        self.owed_at = self.owed_at.max(now);
    }
}

/// Somebody's turn.
pub(super) struct Turn<C, H> {
    pub tenant: Uuid,
    pub slot: usize,
    pub connection: Option<C>,
    pub to: H,
}

impl<C, H> Desk<C, H> {
    pub fn new(size: usize, forgiven: f64) -> Self {
        let idle = (0..size).map(|slot| (slot, None)).collect();
        Self { idle, size, accounts: HashMap::new(), waiting: Vec::new(), forgiven }
    }

    /// Puts somebody into their tenant's queue.
    pub fn wait(&mut self, tenant: Uuid, to: H, now: Instant) {
        if self.accounts.len() >= ACCOUNTS {
            self.accounts.retain(|_, account| {
                account.settle(self.forgiven, now);
                account.held > 0 || !account.queue.is_empty() || account.owed > Duration::ZERO
            });
        }
        let account = self.accounts.entry(tenant).or_insert_with(|| Account {
            had: 0.0,
            had_at: now,
            held: 0,
            queue: VecDeque::new(),
            owed: Duration::ZERO,
            owed_at: now,
        });
        if account.queue.is_empty() {
            self.waiting.push(tenant);
        }
        account.queue.push_back((now, to));
    }

    /// The next turn, if a slot is free and somebody waits who may have one.
    pub fn next(&mut self, now: Instant) -> Option<Turn<C, H>> {
        if self.idle.is_empty() || self.waiting.is_empty() {
            return None;
        }
        let (share, last) = (self.size.div_ceil(2), self.idle.len() == 1);
        let (place, slot) = self
            .waiting
            .iter()
            .enumerate()
            .filter_map(|(place, tenant)| {
                let account = &self.accounts[tenant];
                if last && account.held > 0 {
                    return None;
                }
                if tenant.is_nil() {
                    return Some(((0, 0, account.queue[0].0), place, self.best_slot(*tenant).0));
                }
                if account.held >= share {
                    return None;
                }
                let (slot, favourite) = self.best_slot(*tenant);
                let since = account.queue[0].0;
                let chooses = !favourite && now.saturating_duration_since(since) < CHOOSY_FOR;
                Some(((1 + account.weight(now), u8::from(chooses), since), place, slot))
            })
            .min_by_key(|(order, ..)| *order)
            .map(|(_, place, slot)| (place, slot))?;
        let tenant = self.waiting[place];
        let account = self.accounts.get_mut(&tenant)?;
        let (_, to) = account.queue.pop_front()?;
        account.held += 1;
        if account.queue.is_empty() {
            self.waiting.swap_remove(place);
        }
        let (slot, connection) = self.idle.swap_remove(slot);
        Some(Turn { tenant, slot, connection, to })
    }

    /// Takes a slot back from a tenant that held it for so long.
    pub fn put_back(
        &mut self,
        tenant: Uuid,
        slot: usize,
        connection: Option<C>,
        held: Duration,
        now: Instant,
    ) {
        self.idle.push((slot, connection));
        if let Some(account) = self.accounts.get_mut(&tenant) {
            account.held = account.held.saturating_sub(1);
            account.had = account.had(now) + held.as_secs_f64();
            account.had_at = now;
            account.settle(self.forgiven, now);
            account.owed += held;
        }
    }

    /// Time that a tenant has had of late.
    pub fn debt(&mut self, tenant: Uuid, now: Instant) -> Duration {
        let Some(account) = self.accounts.get_mut(&tenant) else { return Duration::ZERO };
        account.settle(self.forgiven, now);
        account.owed
    }

    /// Where in `idle` the slot is that this tenant ranks first, and whether it is one of its favourites
    /// among all.
    fn best_slot(&self, tenant: Uuid) -> (usize, bool) {
        let rank_at = |place: usize| rank(tenant, self.idle[place].0);
        let place = (0..self.idle.len()).max_by_key(|place| rank_at(*place)).unwrap_or_default();
        let best = rank_at(place);
        let better = (0..self.size).filter(|slot| rank(tenant, *slot) > best).count();
        (place, better < FAVOURITES)
    }
}

/// Rendezvous hashing: how much a tenant wants a slot. Any good mixer does; this is splitmix64. The halves
/// of the id go into it together, so that an id with all its bits turned ranks as the id does.
fn rank(tenant: Uuid, slot: usize) -> u64 {
    let (high, low) = tenant.as_u64_pair();
    let mut x = high ^ low.rotate_left(32) ^ (slot as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn desk(size: usize) -> Desk<(), &'static str> {
        Desk::new(size, 2.0)
    }

    #[test]
    fn a_tenant_ranks_slots_the_same_way_every_time_and_tenants_spread() {
        let favourite = |tenant| (0..8).max_by_key(|&slot| rank(tenant, slot)).unwrap();
        let mut hits = [0; 8];
        for _ in 0..800 {
            let tenant = Uuid::now_v7();
            assert_eq!(favourite(tenant), favourite(tenant));
            hits[favourite(tenant)] += 1;
        }
        assert!(hits.iter().all(|&n| n > 40), "{hits:?}");
    }

    #[test]
    fn a_tenant_gets_its_favourite_slot_while_that_is_free() {
        let (mut desk, tenant, now) = (desk(8), Uuid::now_v7(), Instant::now());
        let mut slots = Vec::new();
        for _ in 0..3 {
            desk.wait(tenant, "it", now);
            let turn = desk.next(now).unwrap();
            slots.push(turn.slot);
            desk.put_back(tenant, turn.slot, None, Duration::from_millis(1), now);
        }
        assert!(slots.windows(2).all(|pair| pair[0] == pair[1]), "{slots:?}");
    }

    #[test]
    fn nobody_holds_more_than_half() {
        let (mut desk, heavy, light, now) = (desk(4), Uuid::now_v7(), Uuid::now_v7(), Instant::now());
        (0..4).for_each(|_| desk.wait(heavy, "heavy", now));
        assert!(desk.next(now).is_some() && desk.next(now).is_some());
        assert!(desk.next(now).is_none(), "a third of four");
        desk.wait(light, "light", now);
        assert_eq!(desk.next(now).unwrap().to, "light");
        desk.wait(Uuid::nil(), "platform", now);
        assert_eq!(desk.next(now).unwrap().to, "platform");
    }

    #[test]
    fn whoever_has_had_less_goes_first_and_nothing_is_saved_up() {
        let (mut desk, heavy, light, mut now) = (desk(1), Uuid::now_v7(), Uuid::now_v7(), Instant::now());
        (0..20).for_each(|_| desk.wait(heavy, "heavy", now));
        for _ in 0..5 {
            let turn = desk.next(now).unwrap();
            now += Duration::from_millis(50);
            desk.put_back(turn.tenant, turn.slot, None, Duration::from_millis(50), now);
        }
        // Behind fifteen of the other's.
        desk.wait(light, "light", now);
        assert_eq!(desk.next(now).unwrap().to, "light");
        desk.put_back(light, 0, None, Duration::from_millis(50), now);
        // It had asked for nothing for long, which does not make it go first for as long.
        (0..5).for_each(|_| desk.wait(light, "light", now));
        let mut order = Vec::new();
        for _ in 0..6 {
            let turn = desk.next(now).unwrap();
            order.push(turn.to);
            desk.put_back(turn.tenant, turn.slot, None, Duration::from_millis(50), now);
        }
        assert!(order.iter().filter(|who| **who == "heavy").count() >= 2, "{order:?}");
    }

    #[test]
    fn among_many_who_ask_at_random_nobody_waits_for_all_the_others() {
        let (mut desk, mut now, mut dice) = (Desk::<(), usize>::new(8, 2.0), Instant::now(), 0x9E37_79B9_u64);
        let tenants: Vec<Uuid> = (0..200).map(|_| Uuid::now_v7()).collect();
        let mut asked = [now; 32];
        let mut roll = || {
            dice ^= dice << 13;
            dice ^= dice >> 7;
            dice ^= dice << 17;
            tenants[dice as usize % 200]
        };
        (0..32).for_each(|client| desk.wait(roll(), client, now));
        let mut waits = Vec::new();
        for _ in 0..2_000 {
            let turns: Vec<_> = std::iter::from_fn(|| desk.next(now)).collect();
            now += Duration::from_millis(1);
            for turn in turns {
                waits.push(now - asked[turn.to]);
                desk.put_back(turn.tenant, turn.slot, None, Duration::from_millis(1), now);
                asked[turn.to] = now;
                desk.wait(roll(), turn.to, now);
            }
        }
        waits.sort();
        let p99 = waits[waits.len() * 99 / 100];
        assert!(p99 <= Duration::from_millis(9), "four are fair, {p99:?} is the 99th of a hundred");
    }

    #[test]
    fn debts_are_forgiven_with_time() {
        let (mut desk, tenant, now) = (desk(1), Uuid::now_v7(), Instant::now());
        desk.wait(tenant, "it", now);
        let turn = desk.next(now).unwrap();
        let after = now + Duration::from_secs(4);
        desk.put_back(tenant, turn.slot, None, Duration::from_secs(4), after);
        assert_eq!(desk.debt(tenant, after), Duration::from_secs(4));
        assert_eq!(desk.debt(tenant, after + Duration::from_secs(1)), Duration::from_secs(2));
        assert_eq!(desk.debt(tenant, after + Duration::from_secs(9)), Duration::ZERO);
        assert_eq!(desk.debt(Uuid::now_v7(), after), Duration::ZERO);
    }
}
