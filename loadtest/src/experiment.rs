//! Arms in turn: short slices of each, in an order that rotates, so that what disturbs the machine
//! disturbs all of them alike.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use crate::{
    clock::{self, MILLISECOND, SECOND},
    generator::{GenerateError, Hand, Slice},
    kernel,
    kind::Load,
    tally::Tally,
};

/// The wall's clock has jumped when it leaves the monotonic one by this much.
const JUMP: u64 = SECOND / 10;
/// The generator has stood still when one of its threads did so for this long.
const PAUSE: u64 = 200 * MILLISECOND;

/// What an arm is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// What the others are compared with: the endpoints themselves, no Service between.
    Baseline,
    /// The baseline again, which says how much of a ratio is noise.
    Again,
    /// What is tested.
    Candidate,
}

/// One thing that is measured.
#[derive(Debug, Clone)]
pub struct Arm {
    /// Its name in the report.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// Which of the hands sends.
    pub hand: usize,
    /// What it sends.
    pub load: Load,
    /// The processes that serve, as far as they are on this machine.
    pub servers: Vec<u32>,
    /// The endpoints and the weights that they ought to have; none when nobody knows.
    pub weights: Vec<(String, u32)>,
}

/// How long, and how often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timetable {
    /// Rounds; each has a slice of every arm.
    pub n_rounds: u32,
    /// Rounds before them that do not count.
    pub n_warm: u32,
    /// Nanoseconds in which requests of a slice begin.
    pub slice: u64,
    /// Whether to keep when each endpoint was hit.
    pub keeps_hits: bool,
}

/// A slice of an arm, and what it cost.
#[derive(Debug, Clone, Default)]
pub struct Round {
    /// What came of it.
    pub tally: Tally,
    /// Nanoseconds that the servers spent on a processor.
    pub server_cpu: u64,
    /// Nanoseconds that all processors spent in softirq.
    pub softirq: u64,
}

/// Who looks on, and may stop it.
pub trait Observer {
    /// A slice of that arm is about to begin.
    fn before(&mut self, _arm_idx: usize) {}

    /// A slice has ended; `done` is the share of all that is done.
    fn after(&mut self, arm_idx: usize, round: &Round, done: f64) -> ControlFlow<()>;
}

/// Why an experiment broke off.
#[derive(Debug, thiserror::Error)]
pub enum ExperimentError {
    /// An arm could not be sent.
    #[error("{arm}: {source}")]
    Arm {
        /// Its name.
        arm: String,
        /// Why.
        source: GenerateError,
    },
    /// Nothing answers.
    #[error("{arm}: nothing answers at {target}: {error}")]
    Silent {
        /// Its name.
        arm: String,
        /// Where to.
        target: String,
        /// What happens in the place of an answer.
        error: String,
    },
    /// An arm has no such hand.
    #[error("{0}: nobody sends")]
    NoHand(String),
}

/// What came of an experiment.
#[derive(Debug)]
pub struct Measured {
    /// The rounds of each arm.
    pub rounds: Vec<Vec<Round>>,
    /// What speaks against the numbers.
    pub doubts: Vec<String>,
    /// Whether it was stopped before its end.
    pub is_cut_short: bool,
}

/// Prepares all arms, sees that each is answered, then runs them in turn.
///
/// # Errors
/// When an arm cannot be sent, or nothing answers it.
pub fn run(
    hands: &mut [Box<dyn Hand + '_>],
    arms: &[Arm],
    timetable: Timetable,
    observer: &mut dyn Observer,
) -> Result<Measured, ExperimentError> {
    let numbers = arms
        .iter()
        .map(|arm| {
            knock(hands, arm)?;
            prepare(hands, arm, &arm.load)
        })
        .collect::<Result<Vec<_>, _>>()?;
    let drift = || clock::wall().wrapping_sub(clock::now()).cast_signed();
    let drift_before = drift();
    let n_slices = f64::from(timetable.n_warm + timetable.n_rounds) * arms.len() as f64;
    let mut rounds: Vec<Vec<Round>> = vec![Vec::new(); arms.len()];
    let (mut n_done, mut is_cut_short) = (0_u32, false);
    'all: for round_idx in 0..timetable.n_warm + timetable.n_rounds {
        for step in 0..arms.len() {
            let arm_idx = (round_idx as usize + step) % arms.len();
            let (Some(arm), Some(number)) = (arms.get(arm_idx), numbers.get(arm_idx)) else {
                continue;
            };
            observer.before(arm_idx);
            let round = slice(hands, arm, *number, timetable)?;
            n_done += 1;
            let flow = observer.after(arm_idx, &round, f64::from(n_done) / n_slices);
            if round_idx >= timetable.n_warm
                && let Some(rounds) = rounds.get_mut(arm_idx)
            {
                rounds.push(round);
            }
            if flow.is_break() {
                is_cut_short = true;
                break 'all;
            }
        }
    }
    let jumped = drift() - drift_before;
    let doubts = doubts(&rounds, jumped);
    Ok(Measured { rounds, doubts, is_cut_short })
}

fn prepare(
    hands: &mut [Box<dyn Hand + '_>],
    arm: &Arm,
    load: &Load,
) -> Result<usize, ExperimentError> {
    let hand = hands.get_mut(arm.hand).ok_or_else(|| ExperimentError::NoHand(arm.name.clone()))?;
    hand.prepare(load).map_err(|source| ExperimentError::Arm { arm: arm.name.clone(), source })
}

fn slice(
    hands: &mut [Box<dyn Hand + '_>],
    arm: &Arm,
    number: usize,
    timetable: Timetable,
) -> Result<Round, ExperimentError> {
    let hand = hands.get_mut(arm.hand).ok_or_else(|| ExperimentError::NoHand(arm.name.clone()))?;
    let server_cpu = || arm.servers.iter().filter_map(|pid| clock::cpu_of(*pid)).sum::<u64>();
    let (cpu_before, softirq_before) = (server_cpu(), kernel::softirq());
    let slice = Slice { nanos: timetable.slice, keeps_hits: timetable.keeps_hits };
    let tally = hand
        .run(number, slice)
        .map_err(|source| ExperimentError::Arm { arm: arm.name.clone(), source })?;
    Ok(Round {
        tally,
        server_cpu: server_cpu().saturating_sub(cpu_before),
        softirq: kernel::softirq().saturating_sub(softirq_before),
    })
}

/// A request to each target: what is wrong altogether is said before anything is measured.
fn knock(hands: &mut [Box<dyn Hand + '_>], arm: &Arm) -> Result<(), ExperimentError> {
    for target in &arm.load.targets {
        let load = Load {
            targets: vec![*target],
            concurrency: 1,
            rate: None,
            requests_per_connection: 1,
            ..arm.load.clone()
        };
        let number = prepare(hands, arm, &load)?;
        let timetable = Timetable { n_rounds: 1, n_warm: 0, slice: MILLISECOND, keeps_hits: false };
        let mut tally = slice(hands, arm, number, timetable)?.tally;
        if tally.n_answered + tally.n_failed() == 0 {
            // A busy machine has let the millisecond pass.
            let timetable = Timetable { slice: SECOND / 2, ..timetable };
            tally = slice(hands, arm, number, timetable)?.tally;
        }
        if tally.n_answered == 0 {
            let error = tally.errors.into_keys().next();
            return Err(ExperimentError::Silent {
                arm: arm.name.clone(),
                target: target.to_string(),
                error: error.unwrap_or_else(|| "not a request was sent".to_owned()),
            });
        }
    }
    Ok(())
}

/// What the reader of the numbers ought to know.
fn doubts(rounds: &[Vec<Round>], jumped: i64) -> Vec<String> {
    let tallies = || rounds.iter().flatten().map(|round| &round.tally);
    let mut doubts = Vec::new();
    if jumped.unsigned_abs() >= JUMP {
        doubts.push(format!(
            "the wall clock jumped by {:+.1} s during the run; times are from the monotonic clock \
             and not affected",
            jumped as f64 / SECOND as f64
        ));
    }
    let pause = tallies().map(|tally| tally.longest_pause).max().unwrap_or_default();
    if pause >= PAUSE {
        doubts.push(format!(
            "the generator itself stood still for {:.1} s: the machine was busy or suspended, and \
             latencies of that time are not the Service's",
            pause as f64 / SECOND as f64
        ));
    }
    let latest = tallies().map(|tally| tally.latest).max().unwrap_or_default();
    if latest >= 10 * MILLISECOND {
        doubts.push(format!(
            "the generator sent up to {} ms late with nothing under way: lower --rate, or give it \
             more processors",
            latest / MILLISECOND
        ));
    }
    doubts
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::kind::Kind;

    /// Answers at once: its number of requests is the arm's number.
    #[derive(Default)]
    struct Fake {
        loads: Vec<Load>,
        ran: Vec<usize>,
        refuses: bool,
    }

    impl Hand for &mut Fake {
        fn prepare(&mut self, load: &Load) -> Result<usize, GenerateError> {
            self.loads.push(load.clone());
            Ok(self.loads.len() - 1)
        }

        fn run(&mut self, arm: usize, _: Slice) -> Result<Tally, GenerateError> {
            self.ran.push(arm);
            let mut tally = Tally { n_answered: arm as u64 + 1, ..Tally::default() };
            if self.refuses {
                tally.n_answered = 0;
                tally.errors.insert("connection refused".to_owned(), 1);
            }
            Ok(tally)
        }
    }

    struct Until(u32);

    impl Observer for Until {
        fn after(&mut self, _: usize, _: &Round, done: f64) -> ControlFlow<()> {
            assert!((0.0..=1.0).contains(&done));
            self.0 = self.0.saturating_sub(1);
            if self.0 == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        }
    }

    fn arm(name: &str) -> Arm {
        let target: SocketAddr = "10.0.0.1:80".parse().unwrap();
        let load = Load {
            kind: Kind::Tcp,
            targets: vec![target],
            concurrency: 8,
            rate: None,
            payload: 0,
            requests_per_connection: 0,
            sources: Vec::new(),
            timeout: SECOND,
            name: String::new(),
            path: "/".to_owned(),
        };
        let (servers, weights) = (Vec::new(), Vec::new());
        Arm { name: name.to_owned(), role: Role::Candidate, hand: 0, load, servers, weights }
    }

    const TIMETABLE: Timetable = Timetable { n_rounds: 3, n_warm: 1, slice: 1, keeps_hits: false };

    #[test]
    fn arms_take_turns_in_an_order_that_rotates() {
        let mut fake = Fake::default();
        let mut hands: Vec<Box<dyn Hand>> = vec![Box::new(&mut fake)];
        let arms = ["a", "b", "c"].map(arm);
        let measured = run(&mut hands, &arms, TIMETABLE, &mut Until(100)).unwrap();
        drop(hands);
        assert_eq!(measured.rounds.iter().map(Vec::len).collect::<Vec<_>>(), [3, 3, 3]);
        // Each arm was knocked for and then prepared: 0 and 1, 2 and 3, 4 and 5.
        let (knocks, slices) = fake.ran.split_at(3);
        assert_eq!(knocks, [0, 2, 4]);
        assert_eq!(slices, [1, 3, 5, 3, 5, 1, 5, 1, 3, 1, 3, 5]);
        assert!(fake.loads.iter().step_by(2).all(|load| load.concurrency == 1));
        assert!(fake.loads.iter().skip(1).step_by(2).all(|load| load.concurrency == 8));
    }

    #[test]
    fn who_looks_on_may_stop_it() {
        let mut fake = Fake::default();
        let mut hands: Vec<Box<dyn Hand>> = vec![Box::new(&mut fake)];
        let measured = run(&mut hands, &[arm("a")], TIMETABLE, &mut Until(2)).unwrap();
        assert!(measured.is_cut_short);
        assert_eq!(measured.rounds[0].len(), 1);
    }

    #[test]
    fn nothing_is_measured_where_nothing_answers() {
        let mut fake = Fake { refuses: true, ..Fake::default() };
        let mut hands: Vec<Box<dyn Hand>> = vec![Box::new(&mut fake)];
        let error = run(&mut hands, &[arm("vip")], TIMETABLE, &mut Until(9)).unwrap_err();
        let expected = "vip: nothing answers at 10.0.0.1:80: connection refused";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn what_speaks_against_the_numbers_is_said() {
        let tally = Tally { longest_pause: 2 * SECOND, ..Tally::default() };
        let rounds = [vec![Round { tally, ..Round::default() }]];
        let doubts = doubts(&rounds, -3_600_000_000_000);
        assert!(doubts[0].contains("-3600.0 s"), "{doubts:?}");
        assert!(doubts[1].contains("2.0 s"), "{doubts:?}");
        assert!(super::doubts(&[], 1000).is_empty());
    }
}
