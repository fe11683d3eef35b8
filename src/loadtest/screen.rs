//! The live view, on a terminal only: how far it is, and what each arm did in its last slices.

use std::io::{IsTerminal, Write, stderr};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use loadtest::clock::SECOND;
use loadtest::experiment::{Arm, Observer, Round, Timetable};
use loadtest::histogram::Latencies;
use loadtest::report::{count, time};

use super::churn::Churn;
use crate::interrupt::Interrupt;

/// How often it is drawn.
const EVERY: Duration = Duration::from_millis(200);
const BAR: usize = 40;

/// What the view is drawn from.
#[derive(Debug)]
pub(super) struct Screen {
    interrupt: Interrupt,
    is_terminal: bool,
    arms: Vec<Seen>,
    begun: Instant,
    drawn: Option<Instant>,
    /// Lines on the terminal that the next drawing takes the place of.
    n_lines: usize,
}

#[derive(Debug)]
struct Seen {
    name: String,
    latencies: Latencies,
    n_answered: u64,
    n_failed: u64,
    nanos: u64,
}

impl Screen {
    pub(super) fn new(interrupt: Interrupt) -> Self {
        Self {
            interrupt,
            is_terminal: stderr().is_terminal(),
            arms: Vec::new(),
            begun: Instant::now(),
            drawn: None,
            n_lines: 0,
        }
    }

    /// What is going on just now.
    pub(super) fn say(&mut self, text: &str) {
        if self.is_terminal {
            self.draw(&[text.to_owned()]);
        }
    }

    /// From now on the arms are drawn.
    pub(super) fn begin(&mut self, arms: &[Arm], timetable: Timetable) {
        let seen = |arm: &Arm| Seen {
            name: arm.name.clone(),
            latencies: Latencies::new(),
            n_answered: 0,
            n_failed: 0,
            nanos: 0,
        };
        self.arms = arms.iter().map(seen).collect();
        self.begun = Instant::now();
        let slices = f64::from(timetable.n_rounds + timetable.n_warm) * arms.len() as f64;
        let seconds = slices * timetable.slice as f64 / SECOND as f64;
        self.say(&format!("measuring for {seconds:.0} s ..."));
    }

    /// Leaves an empty place.
    pub(super) fn clear(&mut self) {
        if self.is_terminal {
            self.draw(&[]);
        }
    }

    fn show(&mut self, arm_idx: usize, round: &Round, done: f64) {
        let tally = &round.tally;
        if let Some(seen) = self.arms.get_mut(arm_idx) {
            seen.latencies.add(&tally.latencies);
            seen.n_answered += tally.n_answered;
            seen.n_failed += tally.n_failed();
            seen.nanos += tally.end.saturating_sub(tally.begin);
        }
        if !self.is_terminal || self.drawn.is_some_and(|drawn| drawn.elapsed() < EVERY) {
            return;
        }
        self.drawn = Some(Instant::now());
        let n_filled = (0..BAR).filter(|n| (*n as f64) < done * BAR as f64).count();
        let left = self.begun.elapsed().as_secs_f64() * (1.0 - done) / done.max(1e-3);
        let bar = format!("{}{}", "#".repeat(n_filled), "-".repeat(BAR - n_filled));
        let mut lines = vec![format!("{bar} {:>3.0} %, {left:.0} s left", done * 100.0)];
        let head = ["rate/s", "p50", "p99", "max", "failed"];
        let [rate, p50, p99, max, failed] = head;
        lines.push(format!("{:<16}{rate:>10}{p50:>10}{p99:>10}{max:>10}{failed:>10}", ""));
        lines.extend(self.arms.iter().map(Seen::line));
        self.draw(&lines);
    }

    fn draw(&mut self, lines: &[String]) {
        let mut text = String::new();
        if self.n_lines > 0 {
            text.push_str(&format!("\x1b[{}F", self.n_lines));
        }
        text.push_str("\x1b[J");
        for line in lines {
            text.extend(line.chars().take(79).chain(['\n']));
        }
        self.n_lines = lines.len();
        // A terminal that cannot be written to is no reason to stop measuring.
        drop(stderr().write_all(text.as_bytes()));
    }
}

impl Seen {
    fn line(&self) -> String {
        let rate = self.n_answered as f64 / (self.nanos.max(1) as f64 / SECOND as f64);
        let [p50, p99] = [0.5, 0.99].map(|q| time(self.latencies.quantile(q) as f64));
        let (max, name) = (time(self.latencies.max() as f64), &self.name);
        let (rate, failed) = (count(rate), count(self.n_failed as f64));
        format!("{name:<16.16}{rate:>10}{p50:>10}{p99:>10}{max:>10}{failed:>10}")
    }
}

/// Looks on: draws, changes endpoints, and stops when told to.
pub(super) struct Watching<'a> {
    pub(super) screen: &'a mut Screen,
    pub(super) churn: Option<&'a mut Churn>,
}

impl Observer for Watching<'_> {
    fn before(&mut self, arm_idx: usize) {
        if let Some(churn) = &mut self.churn {
            churn.begin(arm_idx);
        }
    }

    fn after(&mut self, arm_idx: usize, round: &Round, done: f64) -> ControlFlow<()> {
        if let Some(churn) = &mut self.churn {
            churn.end(round);
        }
        self.screen.show(arm_idx, round, done);
        match self.screen.interrupt.has_come() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }
}
