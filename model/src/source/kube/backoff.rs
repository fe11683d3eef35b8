//! How long to wait before the next attempt.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(30);

/// Doubles with every failure. Half of each delay is chance, so that a thousand nodes do not come
/// back to a restarted API server in one moment.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    n_failures: u32,
}

impl Backoff {
    pub(super) const fn reset(&mut self) {
        self.n_failures = 0;
    }

    pub(super) fn next(&mut self) -> Duration {
        let chance = RandomState::new().build_hasher().finish();
        self.next_with(chance)
    }

    fn next_with(&mut self, chance: u64) -> Duration {
        let doubled = FIRST.saturating_mul(1 << self.n_failures.min(16));
        self.n_failures = self.n_failures.saturating_add(1);
        let half = doubled.min(LONGEST) / 2;
        let part = u32::try_from(chance % 1024).unwrap_or(0);
        half + half * part / 1024
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_longest_and_start_over() {
        let mut backoff = Backoff::default();
        let least: Vec<_> = (0..10).map(|_| backoff.next_with(0).as_millis()).collect();
        assert_eq!(least, [100, 200, 400, 800, 1600, 3200, 6400, 12800, 15000, 15000]);
        backoff.reset();
        assert!(backoff.next_with(u64::MAX) < FIRST);
        assert!((0..1000).all(|_| backoff.next() <= LONGEST));
    }
}
