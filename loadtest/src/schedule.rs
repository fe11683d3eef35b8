//! When requests begin: as soon as the one before has ended, or at a constant rate. `[pure]`
//!
//! At a constant rate a request has the time at which it was *due*, however late it begins: while a
//! server stands still requests fall due all the same, and their latency counts from there. Taking
//! the time of the sending in its place would leave out just those that had to wait (coordinated
//! omission).

use crate::clock::SECOND;

/// The requests of one reactor in one slice of time.
#[derive(Debug, Clone)]
pub struct Schedule {
    begin: u64,
    end: u64,
    pace: Pace,
}

#[derive(Debug, Clone)]
enum Pace {
    /// Whenever there is a free place.
    Closed,
    /// Arrival number `next`, and then every `stride`th.
    Open { rate: u64, next: u64, stride: u64 },
}

impl Schedule {
    /// A request whenever there is a free place, from `begin` to `end`.
    #[must_use]
    pub fn closed(begin: u64, end: u64) -> Self {
        Self { begin, end, pace: Pace::Closed }
    }

    /// `rate` a second, shared out to `n_reactors` in turn; this is the part of one of them.
    #[must_use]
    pub fn open((begin, end): (u64, u64), rate: u64, reactor_idx: u64, n_reactors: u64) -> Self {
        Self { begin, end, pace: Pace::Open { rate, next: reactor_idx, stride: n_reactors } }
    }

    /// When the next request is due; nothing when there is none left.
    #[must_use]
    pub fn next_due(&self) -> Option<u64> {
        let due = match self.pace {
            Pace::Closed => self.begin,
            Pace::Open { rate, next, .. } => self.begin + due_after(next, rate),
        };
        (due < self.end).then_some(due)
    }

    /// Takes a request that is due at `now`, and says since when it is.
    pub fn take(&mut self, now: u64) -> Option<u64> {
        match &mut self.pace {
            Pace::Closed => (self.begin <= now && now < self.end).then_some(now),
            Pace::Open { rate, next, stride } => {
                let due = self.begin + due_after(*next, *rate);
                if due >= self.end || due > now {
                    return None;
                }
                *next += *stride;
                Some(due)
            }
        }
    }

    /// Whether no request is left, neither due nor to come.
    #[must_use]
    pub fn is_over(&self, now: u64) -> bool {
        match self.pace {
            Pace::Closed => now >= self.end,
            Pace::Open { .. } => self.next_due().is_none(),
        }
    }
}

fn due_after(n: u64, rate: u64) -> u64 {
    let nanos = u128::from(n) * u128::from(SECOND) / u128::from(rate.max(1));
    u64::try_from(nanos).unwrap_or(u64::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::MILLISECOND;
    use crate::histogram::Latencies;

    /// A client with `n_places` against a server that takes `takes` from when it begins, and that
    /// stands still from `stall.0` to `stall.1`. Time is simulated: each step goes to the next event.
    fn latencies(
        mut schedule: Schedule,
        n_places: usize,
        takes: u64,
        stall: (u64, u64),
    ) -> Latencies {
        let (mut now, mut latencies) = (0, Latencies::new());
        let mut busy: Vec<(u64, u64)> = Vec::new();
        loop {
            busy.retain(|(end, since)| {
                if *end <= now {
                    latencies.record(now - since);
                }
                *end > now
            });
            while busy.len() < n_places
                && let Some(since) = schedule.take(now)
            {
                let stalled = stall.0 <= now && now < stall.1;
                busy.push(((if stalled { stall.1 } else { now }) + takes, since));
            }
            let ends = busy.iter().map(|(end, _)| *end);
            let due = schedule.next_due().filter(|due| *due > now && busy.len() < n_places);
            match ends.chain(due).min() {
                Some(next) => now = next,
                None => return latencies,
            }
        }
    }

    const STALL: (u64, u64) = (3 * SECOND, 4 * SECOND);

    #[test]
    fn a_stalled_second_shows_in_the_tail_of_an_open_loop() {
        let open = Schedule::open((0, 10 * SECOND), 1000, 0, 1);
        let latencies = latencies(open, 1, 100_000, STALL);
        assert_eq!(latencies.count(), 10_000);
        // A tenth of the requests fell due while nothing moved, a thousand of them evenly.
        let p999 = latencies.quantile(0.999) as f64;
        assert!((0.97..1.02).contains(&(p999 / SECOND as f64)), "{p999}");
        let p95 = latencies.quantile(0.95) as f64;
        assert!((0.40..0.65).contains(&(p95 / SECOND as f64)), "{p95}");
    }

    #[test]
    fn the_same_second_is_one_request_of_a_closed_loop() {
        let closed = latencies(Schedule::closed(0, 10 * SECOND), 1, 100_000, STALL);
        assert!(closed.quantile(0.999) < MILLISECOND);
        assert!(closed.max() > 990 * MILLISECOND);
    }

    #[test]
    fn reactors_share_the_arrivals_evenly() {
        let mut all: Vec<u64> = (0..3)
            .flat_map(|idx| {
                let mut schedule = Schedule::open((SECOND, 2 * SECOND), 1000, idx, 3);
                std::iter::from_fn(move || schedule.take(u64::MAX)).collect::<Vec<_>>()
            })
            .collect();
        all.sort_unstable();
        let expected: Vec<u64> = (0..1000).map(|n| SECOND + n * MILLISECOND).collect();
        assert_eq!(all, expected);
    }

    #[test]
    fn nothing_begins_before_it_is_due() {
        let mut schedule = Schedule::open((SECOND, 2 * SECOND), 10, 0, 1);
        assert_eq!(schedule.take(SECOND - 1), None);
        assert_eq!(schedule.take(SECOND), Some(SECOND));
        assert_eq!(schedule.take(SECOND), None);
        assert_eq!(schedule.next_due(), Some(SECOND + SECOND / 10));
        assert!(!schedule.is_over(5 * SECOND));
    }
}
