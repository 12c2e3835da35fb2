//! Times by the clock on somebody's wall: quiet hours, and when a digest is due.

use chrono::{DateTime, Datelike, NaiveDateTime, NaiveTime, TimeDelta, TimeZone, Utc, Weekday};
use chrono_tz::Tz;

/// Digests are sent at this hour.
const DIGEST_HOUR: u32 = 8;

/// Hours in which nothing is sent. They may go over midnight; both ends are never the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quiet {
    pub from: NaiveTime,
    pub to: NaiveTime,
}

/// The end of the quiet hours that it is in now; `None` outside of them.
pub fn quiet_until(now: DateTime<Utc>, zone: Tz, quiet: Quiet) -> Option<DateTime<Utc>> {
    let local = now.with_timezone(&zone).naive_local();
    let time = local.time();
    let over_midnight = quiet.from > quiet.to;
    let within = match over_midnight {
        true => time >= quiet.from || time < quiet.to,
        false => time >= quiet.from && time < quiet.to,
    };
    if !within {
        return None;
    }
    let tomorrow = over_midnight && time >= quiet.from;
    let day = if tomorrow { local.date().succ_opt()? } else { local.date() };
    moment(day.and_time(quiet.to), zone, now)
}

/// The first time after another at which digests are sent: eight in the morning, on Mondays only
/// where they are weekly.
pub fn next_digest(after: DateTime<Utc>, zone: Tz, weekly: bool) -> DateTime<Utc> {
    let days = after.with_timezone(&zone).date_naive().iter_days().take(9);
    days.filter(|day| !weekly || day.weekday() == Weekday::Mon)
        .find_map(|day| moment(day.and_hms_opt(DIGEST_HOUR, 0, 0)?, zone, after))
        .unwrap_or(after + TimeDelta::days(7))
}

/// When the clock on the wall shows a time; `None` if that is not after `after`. Where the clock is
/// set forward past it, the first moment after that; where it shows the time twice, the first of
/// them that is still to come.
fn moment(local: NaiveDateTime, zone: Tz, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
    // The longest jump there was is a day, at the date line.
    let there = (0..=1500)
        .map(|minutes| zone.from_local_datetime(&(local + TimeDelta::minutes(minutes))))
        .map(|there| there.map(|at| at.to_utc()))
        .find(|there| there.earliest().is_some())?;
    there.earliest().filter(|at| *at > after).or(there.latest()).filter(|at| *at > after)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    fn quiet(from: &str, to: &str) -> Quiet {
        let time = |text: &str| NaiveTime::parse_from_str(text, "%H:%M").unwrap();
        Quiet { from: time(from), to: time(to) }
    }

    #[test]
    fn quiet_hours_end_by_the_clock_of_the_zone() {
        let night = quiet("22:00", "07:00");
        let until = |now: &str| quiet_until(at(now), Tz::Asia__Singapore, night);
        // 21:59, 22:00, 23:30, 06:59 and 07:00 in Singapore.
        assert_eq!(until("2026-01-05T13:59:59Z"), None);
        assert_eq!(until("2026-01-05T14:00:00Z"), Some(at("2026-01-05T23:00:00Z")));
        assert_eq!(until("2026-01-05T15:30:00Z"), Some(at("2026-01-05T23:00:00Z")));
        assert_eq!(until("2026-01-05T22:59:59Z"), Some(at("2026-01-05T23:00:00Z")));
        assert_eq!(until("2026-01-05T23:00:00Z"), None);
        let lunch = quiet("12:00", "13:00");
        let until = |now: &str| quiet_until(at(now), Tz::UTC, lunch);
        assert_eq!(until("2026-01-05T11:59:00Z"), None);
        assert_eq!(until("2026-01-05T12:30:00Z"), Some(at("2026-01-05T13:00:00Z")));
        assert_eq!(until("2026-01-05T13:00:00Z"), None);
    }

    #[test]
    fn quiet_hours_end_although_the_clock_is_set() {
        // On 8 March 2026 New York goes from 02:00 to 03:00.
        let until = |now: &str, to: &str| quiet_until(at(now), Tz::America__New_York, quiet("22:00", to));
        assert_eq!(until("2026-03-08T05:00:00Z", "02:30"), Some(at("2026-03-08T07:00:00Z")));
        assert_eq!(until("2026-03-08T05:00:00Z", "07:00"), Some(at("2026-03-08T11:00:00Z")));
        // On 1 November 2026 it goes from 02:00 back to 01:00.
        assert_eq!(until("2026-11-01T05:00:00Z", "01:30"), Some(at("2026-11-01T05:30:00Z")));
        assert_eq!(until("2026-11-01T06:10:00Z", "01:30"), Some(at("2026-11-01T06:30:00Z")));
    }

    #[test]
    fn digests_are_due_in_the_morning() {
        let next = |after: &str, weekly| next_digest(at(after), Tz::Asia__Singapore, weekly);
        // 07:59 and 08:00 on Monday, 5 January 2026, in Singapore.
        assert_eq!(next("2026-01-04T23:59:00Z", false), at("2026-01-05T00:00:00Z"));
        assert_eq!(next("2026-01-05T00:00:00Z", false), at("2026-01-06T00:00:00Z"));
        assert_eq!(next("2026-01-04T23:59:00Z", true), at("2026-01-05T00:00:00Z"));
        assert_eq!(next("2026-01-05T00:00:00Z", true), at("2026-01-12T00:00:00Z"));
        let next = next_digest(at("2026-01-05T09:00:00Z"), Tz::Asia__Kolkata, false);
        assert_eq!(next, at("2026-01-06T02:30:00Z"));
    }
}
