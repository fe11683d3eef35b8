//! Latencies in an `HdrHistogram`: 1 ns to 10 minutes, to a thousandth of their value. `[pure]`

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

const HIGHEST: u64 = 600_000_000_000;
const SIGNIFICANT_DIGITS: u8 = 3;

/// How often each latency occurred.
#[derive(Debug, Clone)]
pub struct Latencies {
    histogram: Histogram<u64>,
}

/// The same as a list of the values that occurred, for a wire or a file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sparse(pub Vec<(u64, u64)>);

impl Latencies {
    /// None yet.
    #[must_use]
    #[expect(clippy::missing_panics_doc, reason = "the bounds are constant")]
    pub fn new() -> Self {
        let histogram = Histogram::new_with_bounds(1, HIGHEST, SIGNIFICANT_DIGITS)
            .expect("1 is less than half of the highest, and 3 digits are allowed");
        Self { histogram }
    }

    /// Adds one, in nanoseconds.
    pub fn record(&mut self, nanos: u64) {
        self.histogram.saturating_record(nanos.max(1));
    }

    /// Adds all of another.
    pub fn add(&mut self, other: &Sparse) {
        for (value, count) in &other.0 {
            self.histogram.saturating_record_n(*value, *count);
        }
    }

    /// The value that a share `q` of them does not exceed; 0 when there are none.
    #[must_use]
    pub fn quantile(&self, q: f64) -> u64 {
        self.histogram.value_at_quantile(q)
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// The highest.
    #[must_use]
    pub fn max(&self) -> u64 {
        self.histogram.max()
    }

    /// Their mean.
    #[must_use]
    pub fn mean(&self) -> f64 {
        self.histogram.mean()
    }

    /// Forgets them all.
    pub fn clear(&mut self) {
        self.histogram.clear();
    }

    /// Those that occurred.
    #[must_use]
    pub fn sparse(&self) -> Sparse {
        let recorded = self.histogram.iter_recorded();
        Sparse(recorded.map(|it| (it.value_iterated_to(), it.count_at_value())).collect())
    }
}

impl Default for Latencies {
    fn default() -> Self {
        Self::new()
    }
}

impl FromIterator<u64> for Latencies {
    fn from_iter<T: IntoIterator<Item = u64>>(nanos: T) -> Self {
        let mut latencies = Self::new();
        nanos.into_iter().for_each(|nanos| latencies.record(nanos));
        latencies
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "positive and far from the bounds"
    )]
    fn nanos(value: f64) -> u64 {
        value.round() as u64
    }

    /// Uniform numbers, the same at every run.
    fn uniform(n: u32) -> impl Iterator<Item = f64> {
        (0..n).map(move |i| (f64::from(i) + 0.5) / f64::from(n))
    }

    #[test]
    fn percentiles_of_a_known_distribution_are_right_within_two_percent() {
        // An exponential delay of 3 ms on average: its quantile q is -mean · ln(1 - q).
        let mean = 3e6;
        let latencies: Latencies =
            uniform(200_000).map(|u| nanos(-mean * (1.0 - u).ln())).collect();
        for q in [0.1, 0.5, 0.9, 0.99, 0.999] {
            let (is, ought) = (latencies.quantile(q) as f64, -mean * (1.0_f64 - q).ln());
            assert!((is / ought - 1.0).abs() < 0.02, "p{}: {is} and not {ought}", q * 100.0);
        }
    }

    #[test]
    fn what_went_over_the_wire_is_what_was_recorded() {
        let latencies: Latencies = uniform(1000).map(|u| nanos(u * 1e9)).collect();
        let mut again = Latencies::new();
        again.add(&latencies.sparse());
        assert_eq!(again.sparse(), latencies.sparse());
        assert_eq!(again.quantile(0.999), latencies.quantile(0.999));
    }

    #[test]
    fn nothing_and_too_much_are_taken() {
        let mut latencies = Latencies::new();
        assert_eq!((latencies.quantile(0.5), latencies.count()), (0, 0));
        latencies.record(0);
        latencies.record(u64::MAX);
        assert_eq!(latencies.count(), 2);
        assert!(latencies.max() >= HIGHEST);
    }
}
