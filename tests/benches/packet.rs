//! What does a packet of an established connection cost in the tc programs? At 2 to 100,000 Services.
//!
//! `BPF_PROG_TEST_RUN` hands a program its own output again, so connections are laid out in a circle:
//! each packet becomes, rewritten, the next connection's. A circle of two is as hot as it gets; a
//! circle of all Services in random order meets each connection in cold memory. Beside it, in turn:
//! a program that does nothing, and a walk in user space over as much memory in the same steps
//! (hash bucket, entry, …), which is what the misses alone cost.
//!
//! `cargo xtask bench packet [ROUNDS]`; it says of each step whether it costs 80 ns over nothing at most.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a bench fails loudly"
)]

#[path = "packet/circle.rs"]
mod circle;
#[path = "packet/misses.rs"]
mod misses;

use std::env;
use std::time::Duration;

use load::test_run::Bench;
use loadtest::ratio::quantile;
use tests::packet::frame::frame;

use crate::circle::{Circle, WAYS, Way, shuffled};
use crate::misses::Misses;

const SIZES: [u32; 3] = [1_000, 10_000, 100_000];
/// Packets in a round of an arm, at least.
const PACKETS: u32 = 50_000;
/// What a packet of an established connection is to cost at most, in nanoseconds over nothing.
const MOST: f64 = 80.0;

fn main() {
    let words: Vec<String> = env::args().skip(1).filter(|word| word != "--bench").collect();
    let rounds = words.first().and_then(|word| word.parse().ok()).unwrap_or(31);
    println!(
        "{rounds} rounds of {PACKETS} packets an arm, medians in ns, over a program that does nothing"
    );
    println!();
    println!(
        "| | nothing | hot | 1,000 | 10,000 | 100,000 | misses: 1,000 | 10,000 | 100,000 | 80 ns |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for way in WAYS {
        let [first, second, third] = SIZES.map(|size| measure(way, size, rounds));
        let all = [&first, &second, &third];
        let hot = all.iter().map(|row| row.hot).fold(f64::INFINITY, f64::min);
        let costs = all.map(|row| format!("{:.0}", row.walk));
        let misses = all.map(|row| format!("{:.0}", row.misses));
        println!(
            "| {} | {:.0} | {hot:.0} | {} | {} | {} |",
            way.name,
            first.nothing,
            costs.join(" | "),
            misses.join(" | "),
            if hot <= MOST { "met" } else { "missed" }
        );
    }
}

/// What one way costs with that many Services: medians in nanoseconds, over nothing.
struct Row {
    nothing: f64,
    /// Two connections, with all the others in the tables.
    hot: f64,
    /// All connections, in random order.
    walk: f64,
    /// What the memory of the walk costs.
    misses: f64,
}

fn measure(way: Way, size: u32, rounds: usize) -> Row {
    let room = ["FRONTENDS", "SLOTS", "ENDPOINTS"].map(|name| (name, size + 16));
    let mut bench = Bench::open_with(&room).unwrap();
    let hot = Circle { way, first: 0, order: vec![0, 1] };
    let walk = Circle { way, first: 2, order: shuffled(size) };
    for circle in [&hot, &walk] {
        circle.lay(&mut bench);
        circle.goes_round(&mut bench);
    }
    let mut memory = [Misses::new(way.touches(), 2), Misses::new(way.touches(), size)];
    let packets = PACKETS.max(size);
    let nothing = frame(&hot.packet());
    let mut samples = [const { Vec::new() }; 5];
    for round in 0..=rounds {
        let took = [
            run(&mut bench, "tc_nothing", &nothing, packets),
            run(&mut bench, way.program, &frame(&hot.packet()), packets),
            run(&mut bench, way.program, &frame(&walk.packet()), packets),
            memory[0].walk(packets),
            memory[1].walk(packets),
        ];
        // The first is to warm up.
        if round > 0 {
            samples.iter_mut().zip(took).for_each(|(all, one)| all.push(one));
        }
    }
    let [nothing, hot, walk, near, far] = samples.map(|all| quantile(all.iter().copied(), 0.5));
    Row { nothing, hot: hot - nothing, walk: walk - nothing, misses: far - near }
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
