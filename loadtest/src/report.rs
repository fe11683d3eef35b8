//! What an experiment says, as a value: for a terminal, for a machine, for a browser. `[pure]`

pub mod html;
mod plot;
pub mod table;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{
    change::Effect,
    clock::SECOND,
    experiment::{Arm, Role, Round},
    fairness::{self, Fairness, Part},
    histogram::{Latencies, Sparse},
    ratio::{Pool, Ratio, quantile_ratio, ratio},
};

/// As many points over time as a plot can show.
const MOST_POINTS: usize = 120;
/// The quantiles of the curve.
const CURVE: [f64; 16] = [
    0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.975, 0.99, 0.995, 0.999, 0.9995, 0.9999, 0.99995,
    0.99999, 1.0,
];

/// All of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What was tested.
    pub target: String,
    /// The command, as typed.
    pub command: String,
    /// The version of the program.
    pub version: String,
    /// When it began, as RFC 3339.
    pub started: String,
    /// The kernel and the number of processors.
    pub machine: String,
    /// What was sent, in words.
    pub settings: Vec<(String, String)>,
    /// What was measured.
    pub arms: Vec<ArmReport>,
    /// What clients noticed of endpoints that came and went.
    pub changes: Vec<Effect>,
    /// When the changes were, in seconds from the begin.
    pub marks: Vec<(f64, String)>,
    /// What speaks against the numbers.
    pub doubts: Vec<String>,
}

/// One arm.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ArmReport {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// Requests that were answered.
    pub n_answered: u64,
    /// Those that were not, by what went wrong.
    pub errors: BTreeMap<String, u64>,
    /// Answered requests a second, of the time that slices took.
    pub rate: f64,
    /// Latencies in nanoseconds.
    pub latency: Latency,
    /// Latency by quantile.
    pub curve: Vec<(f64, u64)>,
    /// In the course of time.
    pub course: Vec<Point>,
    /// Compared with the baseline, if there is one.
    pub ratio: Option<Ratios>,
    /// How connections spread over endpoints; empty when answers name none.
    pub spread: Vec<Part>,
    /// Whether that is what was meant; nothing when nobody says what was meant.
    pub fairness: Option<Fairness>,
    /// Segments sent again on kept connections.
    pub retransmitted: u64,
    /// Segments sent again in the client's network namespace.
    pub retransmitted_around: u64,
    /// Nanoseconds of a processor for each request.
    pub cpu: Cpu,
    /// Rounds that were measured.
    pub n_rounds: usize,
}

/// Latencies in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// The mean.
    pub mean: f64,
    /// The median.
    pub p50: u64,
    /// 90 %.
    pub p90: u64,
    /// 99 %.
    pub p99: u64,
    /// 99.9 %.
    pub p999: u64,
    /// The highest.
    pub max: u64,
}

/// Ratios to the baseline.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Ratios {
    /// Of the rates.
    pub rate: Ratio,
    /// Of the medians.
    pub p50: Ratio,
    /// Of the 99th percentiles.
    pub p99: Ratio,
}

/// Nanoseconds of a processor for each request, as far as the kernel tells.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Cpu {
    /// The client's, with what the kernel does in its calls.
    pub client: f64,
    /// The servers', likewise; nothing when they are elsewhere.
    pub server: Option<f64>,
    /// All softirqs of the machine meanwhile.
    pub softirq: f64,
}

/// A moment.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Seconds from the begin.
    pub at: f64,
    /// Answered requests a second.
    pub rate: f64,
    /// The median of its latencies.
    pub p50: u64,
    /// Their 99th percentile.
    pub p99: u64,
    /// The highest.
    pub max: u64,
    /// Requests that failed.
    pub n_failed: u64,
}

/// What is made of the rounds of each arm.
#[must_use]
pub fn arms(arms: &[Arm], rounds: &[Vec<Round>]) -> Vec<ArmReport> {
    let begin = rounds.iter().flatten().map(|it| it.tally.begin).min().unwrap_or_default();
    let baseline = arms.iter().zip(rounds).find(|(arm, _)| arm.role == Role::Baseline);
    let baseline = baseline.map(|(_, rounds)| rounds.as_slice());
    arms.iter().zip(rounds).map(|(arm, rounds)| arm_report(arm, rounds, baseline, begin)).collect()
}

fn arm_report(arm: &Arm, rounds: &[Round], baseline: Option<&[Round]>, begin: u64) -> ArmReport {
    let latencies = merged(rounds.iter().map(|round| &round.tally.latencies));
    let sum = |of: &dyn Fn(&Round) -> u64| rounds.iter().map(of).sum::<u64>();
    let n_answered = sum(&|round| round.tally.n_answered);
    let mut errors = BTreeMap::new();
    for (error, n) in rounds.iter().flat_map(|round| &round.tally.errors) {
        *errors.entry(error.clone()).or_default() += n;
    }
    let each = |nanos: u64| nanos as f64 / n_answered.max(1) as f64;
    let cpu = Cpu {
        client: each(sum(&|round| round.tally.cpu)),
        server: (!arm.servers.is_empty()).then(|| each(sum(&|round| round.server_cpu))),
        softirq: each(sum(&|round| round.softirq)),
    };
    let is_other = arm.role != Role::Baseline;
    let spread = spread(arm, rounds);
    let fairness = (!arm.weights.is_empty() && !spread.is_empty()).then(|| fairness::test(&spread));
    ArmReport {
        name: arm.name.clone(),
        role: arm.role,
        n_answered,
        errors,
        rate: rate(&rounds.iter().collect::<Vec<_>>()),
        latency: Latency {
            mean: latencies.mean(),
            p50: latencies.quantile(0.5),
            p90: latencies.quantile(0.9),
            p99: latencies.quantile(0.99),
            p999: latencies.quantile(0.999),
            max: latencies.max(),
        },
        curve: curve(&latencies),
        course: course(rounds, begin),
        ratio: baseline.filter(|_| is_other).map(|baseline| ratios(rounds, baseline)),
        spread,
        fairness,
        retransmitted: sum(&|round| round.tally.retransmitted),
        retransmitted_around: sum(&|round| round.tally.retransmitted_around),
        cpu,
        n_rounds: rounds.len(),
    }
}

fn merged<'r>(all: impl Iterator<Item = &'r Sparse>) -> Latencies {
    let mut latencies = Latencies::new();
    all.for_each(|sparse| latencies.add(sparse));
    latencies
}

/// Answered requests a second.
fn rate(rounds: &[&Round]) -> f64 {
    let (n, nanos) = rounds.iter().map(|round| &round.tally).fold((0, 0), |(n, nanos), tally| {
        (n + tally.n_answered, nanos + tally.end.saturating_sub(tally.begin))
    });
    n as f64 / (nanos.max(1) as f64 / SECOND as f64)
}

/// The quantiles that so many latencies can tell.
fn curve(latencies: &Latencies) -> Vec<(f64, u64)> {
    let n = latencies.count() as f64;
    let told = |q: &f64| *q == 1.0 || n * (1.0 - q) >= 1.0;
    CURVE.into_iter().filter(told).map(|q| (q, latencies.quantile(q))).collect()
}

fn course(rounds: &[Round], begin: u64) -> Vec<Point> {
    let n_each = rounds.len().div_ceil(MOST_POINTS).max(1);
    let point = |rounds: &[Round]| {
        let latencies = merged(rounds.iter().map(|round| &round.tally.latencies));
        let first = rounds.first().map_or(begin, |round| round.tally.begin);
        Point {
            at: first.saturating_sub(begin) as f64 / SECOND as f64,
            rate: rate(&rounds.iter().collect::<Vec<_>>()),
            p50: latencies.quantile(0.5),
            p99: latencies.quantile(0.99),
            max: latencies.max(),
            n_failed: rounds.iter().map(|round| round.tally.n_failed()).sum(),
        }
    };
    rounds.chunks(n_each).map(point).collect()
}

fn ratios(rounds: &[Round], baseline: &[Round]) -> Ratios {
    let pool = |rounds: &[Round]| {
        let all: Vec<&Sparse> = rounds.iter().map(|round| &round.tally.latencies).collect();
        Pool::new(all)
    };
    let (own, base) = (pool(rounds), pool(baseline));
    Ratios {
        rate: ratio(rounds, baseline, rate),
        p50: quantile_ratio(&own, &base, 0.5),
        p99: quantile_ratio(&own, &base, 0.99),
    }
}

/// Every endpoint that answered or ought to have.
fn spread(arm: &Arm, rounds: &[Round]) -> Vec<Part> {
    let mut hits: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for (name, it) in rounds.iter().flat_map(|round| &round.tally.endpoints) {
        let sum = hits.entry(name).or_default();
        *sum = (sum.0 + it.n_connections, sum.1 + it.n_requests);
    }
    if hits.is_empty() {
        return Vec::new();
    }
    let total: u32 = arm.weights.iter().map(|(_, weight)| weight).sum();
    let names: BTreeSet<&str> =
        arm.weights.iter().map(|(name, _)| name.as_str()).chain(hits.keys().copied()).collect();
    let intended = |name: &str| {
        let weight = arm.weights.iter().find(|(it, _)| it == name).map_or(0, |(_, weight)| *weight);
        f64::from(weight) / f64::from(total.max(1))
    };
    let part = |name: &str| {
        let (n_connections, n_requests) = hits.get(name).copied().unwrap_or_default();
        Part { name: name.to_owned(), n_connections, n_requests, intended: intended(name) }
    };
    names.into_iter().map(part).collect()
}

/// Nanoseconds in three digits and a unit.
#[must_use]
pub fn time(nanos: f64) -> String {
    match nanos {
        n if n < 1e3 => format!("{n:.0} ns"),
        n if n < 1e6 => digits(n / 1e3, "µs"),
        n if n < 1e9 => digits(n / 1e6, "ms"),
        n => digits(n / 1e9, "s"),
    }
}

fn digits(n: f64, unit: &str) -> String {
    match n {
        n if n < 9.995 => format!("{n:.2} {unit}"),
        n if n < 99.95 => format!("{n:.1} {unit}"),
        n => format!("{n:.0} {unit}"),
    }
}

/// Thousands apart, as in 12,345.
#[must_use]
pub fn count(n: f64) -> String {
    let text = format!("{n:.0}");
    let mut out = String::new();
    for (idx, digit) in text.chars().enumerate() {
        if idx > 0 && (text.len() - idx).is_multiple_of(3) && !out.ends_with('-') {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests;
