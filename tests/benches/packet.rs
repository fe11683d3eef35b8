//! What does a packet of an established connection cost in the tc programs? At 2 to 100,000 Services.
//!
//! `BPF_PROG_TEST_RUN` hands a program its own output again, so connections are laid out in a circle:
//! each packet becomes, rewritten, the next connection's. A circle of two is as hot as it gets; a
//! circle of all Services in random order meets each connection in cold memory. In turn with these:
//! a program that does nothing, and a yardstick that goes the same circles through the same memory (the
//! one lookup, the field that leads on, the counter) and does nothing else. What a walk costs it more than
//! two connections do is what memory costs; a packet's walk ought to cost no more than that either.
//!
//! `cargo xtask bench packet [ROUNDS [SERVICES]]`; it says of each step whether it costs 80 ns over nothing at most,
//! and of each size whether memory explains what it costs more. Intervals are 95 %, by bootstrap over rounds.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a bench fails loudly")]

#[path = "packet/circle.rs"]
mod circle;

use std::env;
use std::time::Duration;

use load::test_run::Bench;
use loadtest::ratio::{Ratio, quantile, ratio};
use tests::packet::frame::frame;

use crate::circle::{Circle, WAYS, Way, shuffled};

const SIZES: [u32; 3] = [1_000, 10_000, 100_000];
/// Packets in a round of an arm, at least.
const PACKETS: u32 = 50_000;
/// What a packet of an established connection is to cost at most, in nanoseconds over nothing.
const MOST: f64 = 80.0;

fn main() {
    let words: Vec<String> = env::args().skip(1).filter(|word| word != "--bench").collect();
    let rounds = words.first().and_then(|word| word.parse().ok()).unwrap_or(31);
    let only: Option<u32> = words.get(1).and_then(|word| word.parse().ok());
    println!(
        "{rounds} rounds of {PACKETS} packets an arm, medians in ns; hot is over a program that does \
         nothing, more is over hot"
    );
    println!();
    println!(
        "| | Services | hot | 80 ns | more | memory | more to memory | A/A | memory explains it |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for way in WAYS {
        for size in SIZES.into_iter().filter(|size| only.is_none_or(|only| *size == only)) {
            report(way, size, &measure(way, size, rounds));
        }
    }
}

/// Nanoseconds a packet, in one round.
struct Round {
    nothing: f64,
    /// Two connections, with all the others in the tables.
    hot: f64,
    /// All connections, in random order.
    walk: f64,
    /// The same by the yardstick.
    near: f64,
    far: f64,
    /// Once more.
    again: f64,
}

fn measure(way: Way, size: u32, rounds: usize) -> Vec<Round> {
    let room = ["FRONTENDS", "SLOTS", "ENDPOINTS"].map(|name| (name, size + 16));
    let mut bench = Bench::open_with(&room).unwrap();
    let hot = Circle { way, first: 0, order: vec![0, 1] };
    let walk = Circle { way, first: 2, order: shuffled(size) };
    for circle in [&hot, &walk] {
        circle.lay(&mut bench);
        circle.goes_round(&mut bench);
    }
    let packets = PACKETS.max(size);
    let nothing = frame(&hot.packet());
    let [hot_packet, walk_packet] = [&hot, &walk].map(|circle| frame(&circle.packet()));
    let [hot_key, walk_key] = [&hot, &walk].map(Circle::key);
    // Twice, since each arm leaves other things in the caches: what counts is what it leaves itself.
    let mut run = |program, packet: &[u8]| {
        run(&mut bench, program, packet, packets);
        run(&mut bench, program, packet, packets)
    };
    let mut round = || Round {
        nothing: run("tc_nothing", &nothing),
        hot: run(way.program, &hot_packet),
        near: run(way.yardstick(), &hot_key),
        far: run(way.yardstick(), &walk_key),
        walk: run(way.program, &walk_packet),
        again: run(way.yardstick(), &walk_key),
    };
    // To warm up.
    round();
    (0..rounds).map(|_| round()).collect()
}

fn report(way: Way, size: u32, rounds: &[Round]) {
    let all: Vec<&Round> = rounds.iter().collect();
    let hot = median(&all, |round| round.hot) - median(&all, |round| round.nothing);
    let explained = ratio_of(rounds, more, memory);
    let noise = ratio_of(rounds, again, memory);
    println!(
        "| {} | {size} | {hot:.0} | {} | {:.0} | {:.0} | {explained} | {noise} | {} |",
        way.name,
        if hot <= MOST { "met" } else { "missed" },
        more(&all),
        memory(&all),
        verdict(&explained, &noise),
    );
}

/// No more than noise makes of the same thing twice.
fn verdict(explained: &Ratio, noise: &Ratio) -> &'static str {
    if explained.low <= noise.high.max(1.0) { "yes" } else { "no" }
}

type Statistic = fn(&[&Round]) -> f64;

fn ratio_of(rounds: &[Round], a: Statistic, b: Statistic) -> Ratio {
    let [a, b] = [a, b]
        .map(|statistic| rounds.iter().map(|round| Side { statistic, round }).collect::<Vec<_>>());
    ratio(&a, &b, |drawn| {
        let rounds: Vec<&Round> = drawn.iter().map(|side| side.round).collect();
        drawn.first().map_or(f64::NAN, |side| (side.statistic)(&rounds))
    })
}

/// A round as one side of a ratio sees it: the same rounds are drawn for both.
struct Side<'r> {
    statistic: Statistic,
    round: &'r Round,
}

fn more(rounds: &[&Round]) -> f64 {
    median(rounds, |round| round.walk) - median(rounds, |round| round.hot)
}

fn memory(rounds: &[&Round]) -> f64 {
    median(rounds, |round| round.far) - median(rounds, |round| round.near)
}

fn again(rounds: &[&Round]) -> f64 {
    median(rounds, |round| round.again) - median(rounds, |round| round.near)
}

fn median(rounds: &[&Round], of: fn(&Round) -> f64) -> f64 {
    quantile(rounds.iter().map(|round| of(round)), 0.5)
}

fn run(bench: &mut Bench, program: &str, packet: &[u8], n: u32) -> f64 {
    let ran = bench.run(program, packet, 1, n).unwrap();
    assert_eq!(ran.action, -1, "{program}");
    nanos(ran.took)
}

#[expect(clippy::cast_precision_loss, reason = "nanoseconds")]
fn nanos(took: Duration) -> f64 {
    took.as_nanos() as f64
}
