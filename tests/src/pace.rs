//! How fast things happen in a test that is played on machines of very different speed.

use std::env;
use std::time::Duration;

/// By what everything is slower than on a machine of today: rates are so many times lower, and times so
/// many times longer. What must hold is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace(u32);

impl Pace {
    /// What the environment's `TEST_PACE` says; without it, a machine of today.
    ///
    /// # Panics
    /// It is no number from one on.
    pub fn of_this_machine() -> Self {
        let slower = env::var("TEST_PACE").map_or(1, |text| text.parse().unwrap_or(0));
        assert!(slower > 0, "TEST_PACE is by how many times this machine is slower: 1, 2, …");
        Self(slower)
    }

    /// That many a second, as far as this machine goes.
    pub fn rate(self, full: u32) -> u32 {
        (full / self.0).max(1)
    }

    /// What takes that long, where this machine takes longer.
    pub fn time(self, short: Duration) -> Duration {
        short * self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_machine_does_less_and_takes_longer() {
        assert_eq!(Pace(1).rate(125), 125);
        assert_eq!(Pace(8).rate(125), 15);
        assert_eq!(Pace(200).rate(125), 1);
        assert_eq!(Pace(8).time(Duration::from_millis(100)), Duration::from_millis(800));
    }
}
