//! Is the spread over endpoints the one that was meant? Pearson's chi-square. `[pure]`
//!
//! What is counted are connections and not requests: requests on one connection go where it goes,
//! and so say nothing more about the choice.

use serde::{Deserialize, Serialize};

/// Below this probability the spread is called unfair. A fair balancer is called so once in ten
/// thousand runs.
const UNFAIR_BELOW: f64 = 1e-4;
/// The test needs as many expected at each endpoint, by the usual rule.
const LEAST_EXPECTED: f64 = 5.0;

/// One endpoint's part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// Its name, as it answers.
    pub name: String,
    /// Connections that it got.
    pub n_connections: u64,
    /// Requests that it answered.
    pub n_requests: u64,
    /// The share of connections that it ought to get.
    pub intended: f64,
}

/// The shares that endpoints got, in the order of their parts, and of what: of connections; of requests
/// where all connections had been there before.
#[must_use]
pub fn shares(parts: &[Part]) -> (Vec<f64>, &'static str) {
    let share_of = |count: fn(&Part) -> u64| {
        let total: u64 = parts.iter().map(count).sum();
        parts.iter().map(|part| count(part) as f64 / total.max(1) as f64).collect()
    };
    if parts.iter().any(|part| part.n_connections > 0) {
        return (share_of(|part| part.n_connections), "connections");
    }
    (share_of(|part| part.n_requests), "requests")
}

/// What the test says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Nothing speaks against the intended shares.
    Fair,
    /// The intended shares do not give such a spread.
    Unfair,
    /// Too few connections, or one endpoint only.
    TooFew,
}

/// The spread of an arm.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Fairness {
    /// Chi-square.
    pub statistic: f64,
    /// Its degrees of freedom.
    pub n_degrees: u32,
    /// How probable a spread at least as uneven is when the shares are the intended ones.
    pub p: f64,
    /// What follows.
    pub verdict: Verdict,
}

/// Tests the parts against the shares they were meant to have.
#[must_use]
pub fn test(parts: &[Part]) -> Fairness {
    let total: u64 = parts.iter().map(|part| part.n_connections).sum();
    let total = total as f64;
    let n_degrees = u32::try_from(parts.len().saturating_sub(1)).unwrap_or(u32::MAX);
    let statistic: f64 = parts
        .iter()
        .map(|part| {
            let (is, expected) = (part.n_connections as f64, total * part.intended);
            match expected > 0.0 {
                true => (is - expected).powi(2) / expected,
                false if is > 0.0 => f64::INFINITY,
                false => 0.0,
            }
        })
        .sum();
    let too_few = n_degrees == 0
        || parts.iter().any(|it| it.intended > 0.0 && total * it.intended < LEAST_EXPECTED);
    let p = if too_few { 1.0 } else { probability_above(statistic, n_degrees) };
    let verdict = match (too_few, p < UNFAIR_BELOW) {
        (true, _) => Verdict::TooFew,
        (false, true) => Verdict::Unfair,
        (false, false) => Verdict::Fair,
    };
    Fairness { statistic, n_degrees, p, verdict }
}

/// The probability that chi-square with that many degrees of freedom exceeds `x`.
fn probability_above(x: f64, n_degrees: u32) -> f64 {
    if !x.is_finite() {
        return 0.0;
    }
    upper_gamma(f64::from(n_degrees) / 2.0, x / 2.0)
}

/// The regularised upper incomplete gamma function: by its series where that converges fast, and by
/// its continued fraction (Lentz) elsewhere.
fn upper_gamma(a: f64, x: f64) -> f64 {
    const STEPS: u32 = 10_000;
    const ENOUGH: f64 = 1e-14;
    if x <= 0.0 {
        return 1.0;
    }
    let scale = (a * x.ln() - x - ln_gamma(a)).exp();
    if x < a + 1.0 {
        let (mut term, mut sum) = (1.0 / a, 1.0 / a);
        for n in 1..STEPS {
            term *= x / (a + f64::from(n));
            sum += term;
            if term < sum * ENOUGH {
                break;
            }
        }
        return (1.0 - scale * sum).clamp(0.0, 1.0);
    }
    let mut b = x + 1.0 - a;
    let mut c = 1.0 / f64::MIN_POSITIVE;
    let mut d = 1.0 / b;
    let mut fraction = d;
    for n in 1..STEPS {
        let an = -f64::from(n) * (f64::from(n) - a);
        b += 2.0;
        d = 1.0 / (an * d + b);
        c = b + an / c;
        fraction *= c * d;
        if (c * d - 1.0).abs() < ENOUGH {
            break;
        }
    }
    (scale * fraction).clamp(0.0, 1.0)
}

/// Lanczos' approximation, right to 15 digits for positive numbers.
fn ln_gamma(x: f64) -> f64 {
    const COEFFICIENTS: [f64; 8] = [
        676.520_368_121_885_1,
        -1_259.139_216_722_402_8,
        771.323_428_777_653_1,
        -176.615_029_162_140_6,
        12.507_343_278_686_905,
        -0.138_571_095_265_720_12,
        9.984_369_578_019_572e-6,
        1.505_632_735_149_311_6e-7,
    ];
    const G: f64 = 7.0;
    let x = x - 1.0;
    let sum = COEFFICIENTS
        .iter()
        .zip(1_u32..)
        .fold(0.999_999_999_999_809_9, |sum, (c, n)| sum + c / (x + f64::from(n)));
    let t = x + G + 0.5;
    0.5 * (2.0 * std::f64::consts::PI).ln() + (x + 0.5) * t.ln() - t + sum.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(counts: &[u64], weights: &[u32]) -> Vec<Part> {
        let sum: u32 = weights.iter().sum();
        counts
            .iter()
            .zip(weights)
            .enumerate()
            .map(|(idx, (count, weight))| Part {
                name: format!("web-{idx}"),
                n_connections: *count,
                n_requests: *count,
                intended: f64::from(*weight) / f64::from(sum),
            })
            .collect()
    }

    #[test]
    fn probabilities_are_those_of_the_tables() {
        // The 5 % and 0.1 % points of any table of chi-square.
        for (x, n_degrees, p) in [
            (3.841, 1, 0.05),
            (5.991, 2, 0.05),
            (18.307, 10, 0.05),
            (124.342, 100, 0.05),
            (10.828, 1, 0.001),
            (29.588, 10, 0.001),
        ] {
            let is = probability_above(x, n_degrees);
            assert!((is / p - 1.0).abs() < 0.005, "{x} of {n_degrees}: {is}");
        }
        assert_eq!(probability_above(0.0, 3), 1.0);
    }

    #[test]
    fn a_random_choice_is_fair() {
        // xorshift over three endpoints.
        let (mut counts, mut random) = ([0_u64; 3], 88_172_645_463_325_252_u64);
        for _ in 0..30_000 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            counts[(random % 3) as usize] += 1;
        }
        assert_eq!(test(&parts(&counts, &[1, 1, 1])).verdict, Verdict::Fair);
        assert_eq!(test(&parts(&counts, &[3, 1, 1])).verdict, Verdict::Unfair);
    }

    #[test]
    fn three_to_one_is_fair_where_it_was_meant_and_only_there() {
        assert_eq!(test(&parts(&[3_020, 980], &[3, 1])).verdict, Verdict::Fair);
        assert_eq!(test(&parts(&[3_020, 980], &[1, 1])).verdict, Verdict::Unfair);
        assert_eq!(test(&parts(&[2_000, 2_000], &[3, 1])).verdict, Verdict::Unfair);
    }

    #[test]
    fn always_the_first_is_unfair() {
        let fairness = test(&parts(&[300, 0, 0], &[1, 1, 1]));
        assert_eq!(fairness.verdict, Verdict::Unfair);
        assert!(fairness.p < 1e-12, "{}", fairness.p);
    }

    #[test]
    fn an_endpoint_that_should_get_nothing_and_gets_something_is_unfair() {
        assert_eq!(test(&parts(&[500, 500, 1], &[1, 1, 0])).verdict, Verdict::Unfair);
        assert_eq!(test(&parts(&[500, 500, 0], &[1, 1, 0])).verdict, Verdict::Fair);
    }

    #[test]
    fn few_connections_prove_nothing() {
        assert_eq!(test(&parts(&[4, 0], &[1, 1])).verdict, Verdict::TooFew);
        assert_eq!(test(&parts(&[4_000], &[1])).verdict, Verdict::TooFew);
        assert_eq!(test(&[]).verdict, Verdict::TooFew);
    }
}
