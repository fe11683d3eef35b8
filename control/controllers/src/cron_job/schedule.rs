//! Cron's five fields, and the names for common ones: pure.

use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};

/// The minutes at which something is to happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Schedule {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// Both days are restricted: then either suffices.
    either_day: bool,
}

const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

impl Schedule {
    /// Parses a schedule, or says what is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let text = match text.trim() {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            other => other,
        };
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [minutes, hours, days, months, weekdays] = fields.as_slice() else {
            return Err(format!("expected exactly 5 fields, found {}: {text}", fields.len()));
        };
        let weekdays_set = field(weekdays, 0, 7, &WEEKDAYS)?;
        Ok(Self {
            minutes: field(minutes, 0, 59, &[])?,
            hours: field(hours, 0, 23, &[])?,
            days: field(days, 1, 31, &[])?,
            months: field(months, 1, 12, &MONTHS)?,
            // Sunday is 0 and 7.
            weekdays: weekdays_set | (weekdays_set >> 7),
            either_day: !is_any(days) && !is_any(weekdays),
        })
    }

    /// The first time after another, if there is one within five years.
    pub(super) fn after(&self, zone: &TimeZone, time: Timestamp) -> Option<Timestamp> {
        let start = zone.to_datetime(time).with().second(0).subsec_nanosecond(0).build().ok()?;
        let start = start.checked_add(Span::new().minutes(1)).ok()?;
        let mut date = start.date();
        for _ in 0..(366 * 5) {
            if self.has_day(date) {
                let from = if date == start.date() { start } else { date.at(0, 0, 0, 0) };
                if let Some(found) = self.first_on(from) {
                    // A time that daylight saving leaves out happens as the clock goes on.
                    let zoned = zone.to_ambiguous_timestamp(found).compatible().ok()?;
                    if zoned > time {
                        return Some(zoned);
                    }
                }
            }
            date = date.tomorrow().ok()?;
        }
        None
    }

    fn has_day(&self, date: Date) -> bool {
        let month = has(self.months, date.month());
        let day = has(self.days, date.day());
        let weekday = has(self.weekdays, date.weekday().to_sunday_zero_offset());
        month && if self.either_day { day || weekday } else { day && weekday }
    }

    fn first_on(&self, from: DateTime) -> Option<DateTime> {
        let hours = (from.hour()..24).filter(|hour| has(self.hours, *hour));
        hours.into_iter().find_map(|hour| {
            let first = if hour == from.hour() { from.minute() } else { 0 };
            let minute = (first..60).find(|minute| has(self.minutes, *minute))?;
            Some(from.date().at(hour, minute, 0, 0))
        })
    }
}

fn has(set: u64, n: i8) -> bool {
    u32::try_from(n).is_ok_and(|n| set >> n & 1 == 1)
}

fn is_any(field: &str) -> bool {
    matches!(field, "*" | "?")
}

/// A field as a set of bits: `*`, `a`, `a-b`, each with `/step`, joined by commas.
fn field(text: &str, low: u32, high: u32, names: &[&str]) -> Result<u64, String> {
    let mut set = 0_u64;
    for part in text.split(',') {
        let bad = || format!("cannot read {part:?} in {text:?}");
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => {
                (range, step.parse::<u32>().ok().filter(|step| *step > 0).ok_or_else(bad)?)
            }
            None => (part, 1),
        };
        let number = |text: &str| -> Option<u32> {
            let lower = text.to_ascii_lowercase();
            let named = names.iter().position(|name| *name == lower);
            // Months are counted from 1, weekdays from 0.
            let named =
                named.and_then(|i| u32::try_from(i).ok()).map(|i| i + u32::from(high == 12));
            named.or_else(|| text.parse().ok()).filter(|n| (low..=high).contains(n))
        };
        let (from, to) = if is_any(range) {
            (low, if high == 7 { 6 } else { high })
        } else if let Some((from, to)) = range.split_once('-') {
            (number(from).ok_or_else(bad)?, number(to).ok_or_else(bad)?)
        } else {
            let from = number(range).ok_or_else(bad)?;
            (from, if part.contains('/') { high } else { from })
        };
        if from > to {
            return Err(bad());
        }
        for n in (from..=to).step_by(usize::try_from(step).unwrap_or(1)) {
            set |= 1 << n;
        }
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(schedule: &str, after: &str) -> String {
        let schedule = Schedule::parse(schedule).unwrap();
        schedule.after(&TimeZone::UTC, after.parse().unwrap()).unwrap().to_string()
    }

    #[test]
    fn the_next_time_is_found() {
        for (schedule, after, expected) in [
            ("* * * * *", "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z"),
            ("*/15 * * * *", "2026-01-01T00:16:30Z", "2026-01-01T00:30:00Z"),
            ("0 0 * * *", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"),
            ("30 8-10/2 * * *", "2026-01-01T08:30:00Z", "2026-01-01T10:30:00Z"),
            ("0 0 31 * *", "2026-01-31T00:00:00Z", "2026-03-31T00:00:00Z"),
            ("0 0 29 2 *", "2026-01-01T00:00:00Z", "2028-02-29T00:00:00Z"),
            ("0 12 * * mon", "2026-01-01T00:00:00Z", "2026-01-05T12:00:00Z"),
            ("0 12 * * 7", "2026-01-01T00:00:00Z", "2026-01-04T12:00:00Z"),
            ("0 0 13 * fri", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"),
            ("@hourly", "2026-01-01T00:59:59Z", "2026-01-01T01:00:00Z"),
            ("0 0 1 jan *", "2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z"),
        ] {
            assert_eq!(next(schedule, after), expected, "{schedule} after {after}");
        }
    }

    #[test]
    fn what_is_no_schedule_is_refused() {
        for text in
            ["", "* * * *", "60 * * * *", "* 24 * * *", "a * * * *", "5-1 * * * *", "*/0 * * * *"]
        {
            assert!(Schedule::parse(text).is_err(), "{text}");
        }
    }
}
