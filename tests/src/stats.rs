//! Ratios between two ways of doing the same, measured in turn, with their uncertainty. `[pure]`

/// A ratio with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq)]
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
pub fn ratio<R>(a: &[R], b: &[R], statistic: impl Fn(&[&R]) -> f64) -> Ratio {
    let n = a.len().min(b.len());
    let all: Vec<usize> = (0..n).collect();
    let of = |draw: &[usize]| {
        let pick = |rounds: &[R], statistic: &dyn Fn(&[&R]) -> f64| {
            let drawn: Vec<&R> = draw.iter().filter_map(|idx| rounds.get(*idx)).collect();
            statistic(&drawn)
        };
        pick(a, &statistic) / pick(b, &statistic)
    };
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

/// A quantile of unsorted values.
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
        clippy::cast_precision_loss,
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
    fn quantiles_are_values_that_occur() {
        assert_eq!(quantile([3.0, 1.0, 2.0], 0.5), 2.0);
        assert_eq!(quantile([3.0, 1.0, 2.0], 0.99), 3.0);
        assert!(quantile([], 0.5).is_nan());
    }
}
