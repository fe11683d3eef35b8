//! How long an answer is held back, so that a measurement can be checked against what is known. `[pure]`

use std::str::FromStr;
use std::time::Duration;

/// When answers leave.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Delay {
    /// Delays that requests take in turn.
    pub in_turn: Vec<Duration>,
    /// Since the first request: from when, and for how long, nothing is answered at all.
    pub stall: Option<(Duration, Duration)>,
}

/// Not a delay.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no list of milliseconds such as 5,5,20")]
pub struct DelayError(String);

impl Delay {
    /// When the answer to the request number `n`, which came `since` the first, may leave.
    #[must_use]
    pub fn leaves(&self, n: usize, since: Duration) -> Duration {
        let turn = n.checked_rem(self.in_turn.len()).and_then(|idx| self.in_turn.get(idx));
        let leaves = since + turn.copied().unwrap_or_default();
        match self.stall {
            Some((from, length)) if from <= leaves && leaves < from + length => from + length,
            _ => leaves,
        }
    }
}

impl FromStr for Delay {
    type Err = DelayError;

    fn from_str(text: &str) -> Result<Self, DelayError> {
        let millis = text.split(',').map(|it| it.trim().parse::<f64>());
        let in_turn = millis
            .map(|it| it.ok().and_then(|ms| Duration::try_from_secs_f64(ms / 1000.0).ok()))
            .collect::<Option<_>>()
            .ok_or_else(|| DelayError(text.to_owned()))?;
        Ok(Self { in_turn, stall: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn delays_are_taken_in_turn_and_nothing_leaves_in_a_stall() {
        let mut delay: Delay = "5, 5,20".parse().unwrap();
        let leaves: Vec<_> = (0..4).map(|n| delay.leaves(n, ms(100))).collect();
        assert_eq!(leaves, [ms(105), ms(105), ms(120), ms(105)]);
        delay.stall = Some((ms(110), ms(1000)));
        assert_eq!([0, 2].map(|n| delay.leaves(n, ms(100))), [ms(105), ms(1110)]);
        assert_eq!(delay.leaves(0, ms(1110)), ms(1115));
        assert_eq!(Delay::default().leaves(7, ms(1)), ms(1));
    }

    #[test]
    fn what_is_no_number_is_refused() {
        "5,x".parse::<Delay>().unwrap_err();
        "-1".parse::<Delay>().unwrap_err();
    }
}
