//! The report in 80 columns. `[pure]`

use std::fmt::Write as _;

use super::{ArmReport, Report, count, time};
use crate::experiment::Role;
use crate::fairness::{self, Fairness, Verdict};

/// Names are cut to this.
const NAME: usize = 12;
/// Endpoints that are listed by name; of more, the extremes are.
const MOST_ENDPOINTS: usize = 4;

/// The report as text.
#[must_use]
pub fn render(report: &Report) -> String {
    let mut out = String::new();
    // Writing to a String does not fail.
    let mut line = |text: String| _ = writeln!(out, "{}", text.trim_end());
    let has_baseline = report.arms.iter().any(|arm| arm.ratio.is_some());
    let ratio_head = if has_baseline { "rate to direct [95 %]" } else { "" };
    line(format!(
        "{:<NAME$} {:>8} {:>22} {:>8} {:>8} {:>8} {:>7}",
        "", "rate/s", ratio_head, "p50", "p99", "p99.9", "failed"
    ));
    for arm in &report.arms {
        line(row(arm));
    }
    for arm in report.arms.iter().filter(|arm| arm.role == Role::Candidate) {
        line(String::new());
        details(arm).into_iter().for_each(&mut line);
    }
    if !report.changes.is_empty() {
        line(String::new());
        changes(report).into_iter().for_each(&mut line);
    }
    for doubt in &report.doubts {
        line(format!("\nNote: {doubt}."));
    }
    out
}

fn row(arm: &ArmReport) -> String {
    let n_failed: u64 = arm.errors.values().sum();
    let ratio = arm.ratio.map_or_else(String::new, |ratios| ratios.rate.to_string());
    format!(
        "{:<NAME$.NAME$} {:>8} {ratio:>22} {:>8} {:>8} {:>8} {:>7}",
        arm.name,
        count(arm.rate),
        time(arm.latency.p50 as f64),
        time(arm.latency.p99 as f64),
        time(arm.latency.p999 as f64),
        count(n_failed as f64),
    )
}

fn details(arm: &ArmReport) -> Vec<String> {
    let mut lines = Vec::new();
    let mut say = |what: &str, text: String| {
        let name = if lines.is_empty() { arm.name.as_str() } else { "" };
        lines.push(format!("{name:<NAME$.NAME$} {what:<11} {text}"));
    };
    if let Some(ratios) = arm.ratio {
        say("latency", format!("p50 × {}, p99 × {}", ratios.p50, ratios.p99));
    }
    let cpu = arm.cpu;
    let server = cpu.server.map_or_else(String::new, |it| format!("server {}, ", time(it)));
    let (client, softirq) = (time(cpu.client), time(cpu.softirq));
    say("CPU each", format!("client {client}, {server}softirq {softirq}"));
    if !arm.spread.is_empty() {
        say("spread", spread(arm));
    }
    if let Some(fairness) = arm.fairness {
        say("", verdict(fairness));
    }
    for (error, n) in &arm.errors {
        say("failed", format!("{} × {error}", count(*n as f64)));
    }
    if arm.retransmitted_around > 0 {
        say("sent again", format!("{} segments", count(arm.retransmitted_around as f64)));
    }
    lines
}

fn spread(arm: &ArmReport) -> String {
    let (shares, of) = fairness::shares(&arm.spread);
    let of = if of == "connections" { String::new() } else { format!(" of {of}") };
    let percent = |share: f64| 100.0 * share;
    if arm.spread.len() <= MOST_ENDPOINTS {
        let parts = arm.spread.iter().zip(shares);
        let parts = parts.map(|(it, share)| format!("{} {:.1} %", it.name, percent(share)));
        return parts.collect::<Vec<_>>().join(", ") + &of;
    }
    let (least, most) =
        shares.iter().fold((1.0, 0.0), |(least, most), share| (share.min(least), share.max(most)));
    let n = arm.spread.len();
    format!("{n} endpoints, from {:.1} to {:.1} % each{of}", percent(least), percent(most))
}

/// What the test says, in words.
pub(super) fn verdict(fairness: Fairness) -> String {
    let Fairness { statistic, n_degrees, p, verdict } = fairness;
    let numbers = format!("chi-square {statistic:.1} of {n_degrees}, p = {p:.2}");
    match verdict {
        Verdict::Fair => format!("as intended ({numbers})"),
        Verdict::Unfair => {
            format!("UNFAIR (chi-square {statistic:.0} of {n_degrees}, p < 0.0001)")
        }
        Verdict::TooFew => "too few connections to judge the spread".to_owned(),
    }
}

fn changes(report: &Report) -> Vec<String> {
    let of = |is_added: bool| {
        let effects = report.changes.iter().filter(|it| it.change.is_added == is_added);
        let mut took: Vec<u64> = effects.clone().filter_map(|effect| effect.took).collect();
        took.sort_unstable();
        let n_missed = effects.filter(|effect| effect.took.is_none()).count();
        let middle = took.get(took.len() / 2).copied().unwrap_or_default();
        (took.len(), middle, took.last().copied().unwrap_or_default(), n_missed)
    };
    let mut lines = Vec::new();
    for (is_added, what) in [(false, "removed: no request after"), (true, "added: one within")] {
        let (n, middle, most, n_missed) = of(is_added);
        if n + n_missed == 0 {
            continue;
        }
        let times = format!("{} (median), {} at most", time(middle as f64), time(most as f64));
        let missed = match n_missed {
            0 => String::new(),
            n => format!("; {n} got none"),
        };
        lines.push(format!("{n} endpoints {what} {times}{missed}"));
    }
    lines
}
