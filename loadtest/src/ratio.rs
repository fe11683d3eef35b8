//! Ratios between two ways of doing the same, measured in turn, with their uncertainty. `[pure]`

use serde::{Deserialize, Serialize};

use crate::histogram::Sparse;

/// A ratio with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// The estimate.
    pub value: f64,
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

impl std::fmt::Display for Ratio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.3} [{:.3}, {:.3}]", self.value, self.low, self.high)
    }
}

/// How often the rounds are drawn anew for an interval.
const DRAWS: usize = 1000;

/// The ratio of a statistic of all rounds of `a` to that of all rounds of `b`. The interval comes
/// from drawing whole rounds anew (bootstrap), the same ones of both, because rounds and not single
/// requests are independent of each other: what disturbs one request disturbs its neighbours.
#[must_use]
pub fn ratio<R>(a: &[R], b: &[R], statistic: impl Fn(&[&R]) -> f64) -> Ratio {
    let pick = |rounds: &[R], draw: &[usize]| {
        let drawn: Vec<&R> = draw.iter().filter_map(|idx| rounds.get(*idx)).collect();
        statistic(&drawn)
    };
    interval(a.len().min(b.len()), |draw| pick(a, draw) / pick(b, draw))
}

/// The ratio of a quantile of all latencies of `a` to that of `b`, its interval by the same draws.
#[must_use]
pub fn quantile_ratio(a: &Pool, b: &Pool, q: f64) -> Ratio {
    interval(a.rounds.len().min(b.rounds.len()), |draw| a.quantile(draw, q) / b.quantile(draw, q))
}

/// An estimate over all `n` rounds, and its interval over rounds drawn anew.
fn interval(n: usize, of: impl Fn(&[usize]) -> f64) -> Ratio {
    let all: Vec<usize> = (0..n).collect();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut drawn: Vec<f64> = (0..DRAWS)
        .map(|_| {
            let draw: Vec<usize> = (0..n).map(|_| below(&mut random, n)).collect();
            of(&draw)
        })
        .collect();
    drawn.sort_by(f64::total_cmp);
    Ratio {
        value: of(&all),
        low: quantile_sorted(&drawn, 0.025),
        high: quantile_sorted(&drawn, 0.975),
    }
}

/// The latencies of many rounds, laid out so that quantiles of any choice of rounds are quick.
#[derive(Debug, Clone)]
pub struct Pool {
    values: Vec<u64>,
    /// For each round, the index of a value and how often it occurred.
    rounds: Vec<Vec<(usize, u64)>>,
}

impl Pool {
    /// All of them.
    #[must_use]
    pub fn new<'r>(rounds: impl IntoIterator<Item = &'r Sparse> + Clone) -> Self {
        let all = rounds.clone().into_iter().flat_map(|round| &round.0);
        let mut values: Vec<u64> = all.map(|(value, _)| *value).collect();
        values.sort_unstable();
        values.dedup();
        let place = |value: &u64| values.binary_search(value).unwrap_or_else(|place| place);
        let indexed = |round: &Sparse| round.0.iter().map(|(v, n)| (place(v), *n)).collect();
        let rounds = rounds.into_iter().map(indexed).collect();
        Self { values, rounds }
    }

    fn quantile(&self, draw: &[usize], q: f64) -> f64 {
        let mut counts = vec![0_u64; self.values.len()];
        for (value_idx, n) in draw.iter().filter_map(|idx| self.rounds.get(*idx)).flatten() {
            if let Some(count) = counts.get_mut(*value_idx) {
                *count += n;
            }
        }
        let wanted = (counts.iter().sum::<u64>() as f64 * q).ceil().max(1.0);
        let mut seen = 0;
        for (value, count) in self.values.iter().zip(counts) {
            seen += count;
            if seen as f64 >= wanted {
                return *value as f64;
            }
        }
        f64::NAN
    }
}

/// A quantile of unsorted values.
#[must_use]
pub fn quantile(values: impl IntoIterator<Item = f64>, q: f64) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    quantile_sorted(&values, q)
}

/// The value below which the share `q` lies; not a number when there is none.
fn quantile_sorted(values: &[f64], q: f64) -> f64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index into the values"
    )]
    let idx = ((values.len().saturating_sub(1)) as f64 * q).round() as usize;
    values.get(idx).copied().unwrap_or(f64::NAN)
}

/// xorshift64: good enough to draw rounds, and the same at every run.
fn below(random: &mut u64, n: usize) -> usize {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    usize::try_from(*random % n.max(1) as u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean(rounds: &[&f64]) -> f64 {
        rounds.iter().copied().sum::<f64>() / rounds.len() as f64
    }

    #[test]
    fn the_ratio_of_equal_rounds_is_one() {
        let rounds: Vec<f64> = (1..=100).map(f64::from).collect();
        let ratio = ratio(&rounds, &rounds, mean);
        assert_eq!((ratio.value, ratio.low, ratio.high), (1.0, 1.0, 1.0));
    }

    #[test]
    fn a_constant_factor_is_found_with_a_tight_interval() {
        let b: Vec<f64> = (0..200).map(|i| 100.0 + f64::from(i % 7)).collect();
        let a: Vec<f64> = (0..200).map(|i| 1.2 * (100.0 + f64::from((i + 3) % 7))).collect();
        let ratio = ratio(&a, &b, mean);
        assert!((ratio.value - 1.2).abs() < 0.01, "{ratio}");
        assert!(ratio.low < 1.2 && 1.2 < ratio.high && ratio.high - ratio.low < 0.02, "{ratio}");
    }

    #[test]
    fn quantiles_of_pooled_rounds_are_those_of_all_latencies() {
        let rounds: Vec<Sparse> =
            (0..50).map(|i| Sparse(vec![(100, 90), (200, 9), (1000 + i, 1)])).collect();
        let slower: Vec<Sparse> = rounds
            .iter()
            .map(|round| Sparse(round.0.iter().map(|(v, n)| (v * 3 / 2, *n)).collect()))
            .collect();
        let (pool, slow) = (Pool::new(&rounds), Pool::new(&slower));
        let all: Vec<usize> = (0..50).collect();
        assert_eq!([0.5, 0.9, 0.91].map(|q| pool.quantile(&all, q)), [100.0, 100.0, 200.0]);
        assert_eq!(pool.quantile(&all, 1.0), 1049.0);
        assert_eq!(quantile_ratio(&slow, &pool, 0.5).value, 1.5);
        assert!(Pool::new(&[]).quantile(&[], 0.5).is_nan());
    }

    #[test]
    fn quantiles_are_values_that_occur() {
        assert_eq!(quantile([3.0, 1.0, 2.0], 0.5), 2.0);
        assert_eq!(quantile([3.0, 1.0, 2.0], 0.99), 3.0);
        assert!(quantile([], 0.5).is_nan());
    }
}
