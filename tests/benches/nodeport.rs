//! What does a NodePort cost, beside DNAT and masquerade by rules of nftables written by hand?
//!
//! Three nodes with a pod each, and a client outside of them. On one `fairlead proxy` leads packets, on
//! the next nftables does, for the same Service; the third only forwards (`bare`). Arms take turns, in an
//! order that rotates; `again` is nftables once more (A/A). Everything runs on one core.
//!
//! `packets` are of 64 known UDP flows: put onto the wire before the node, counted where they come out at
//! the pod, and dropped there. `connections` are whole TCP ones, eight frames each, put onto the wires on both
//! sides of the node, 200 under way at once: what a node can take, whoever its clients and servers are.
//! `sockets` are TCP connections as sockets have them, one at a time: connect, a byte there, a byte back,
//! closed by the client: the server has forgotten each at once, or it would take a masqueraded client that
//! comes with a port of another's for that one. Most of what that takes is the sockets' own. Processor time is
//! the kernel's accounting of all who take part, its own threads included. Ratios are to nftables, with 95 %
//! intervals by bootstrap over rounds.
//!
//! `cargo xtask bench nodeport [ROUNDS]`

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a bench fails loudly"
)]

#[path = "nodeport/connections.rs"]
mod connections;
#[path = "nodeport/packets.rs"]
mod packets;
#[path = "nodeport/stage.rs"]
mod stage;
#[path = "nodeport/wire.rs"]
mod wire;

use std::env;
use std::time::Duration;

use loadtest::ratio::{Ratio, ratio};
use tests::cpu;
use tests::cycles::{self, Client, Cycle};

use crate::connections::{Connections, MOST_ROUNDS};
use crate::packets::Stream;
use crate::stage::{Arm, PORT, Stage};
use crate::wire::sink;

/// Connections of sockets in a round of an arm.
const SOCKETS: usize = 200;
/// Of nftables' rate, what is wanted.
const WANTED: f64 = 1.1;
/// The core that everything runs on.
const CORE: usize = 0;

fn main() {
    let words: Vec<String> = env::args().skip(1).filter(|word| word != "--bench").collect();
    match words.first().map(String::as_str) {
        Some("serve") => cycles::serve_to_the_end(PORT, 1).unwrap(),
        Some("obey") => cycles::obey().unwrap(),
        other => bench(other.and_then(|word| word.parse().ok()).unwrap_or(200)),
    }
}

fn bench(rounds: usize) {
    let stage = Stage::set();
    let softirqs = cpu::softirq_thread(CORE);
    println!("{rounds} rounds an arm; ratios to nftables [95 % interval]");

    let me = env::current_exe().unwrap();
    let mut client = Client::start(stage.outside.command(me).arg("obey")).unwrap();
    report("sockets", &in_turn(rounds, |arm| sockets(&mut client, stage.arms()[arm], softirqs)));

    cycles::stay_on_one_core().unwrap();
    let mut streams = stage.arms().map(|arm| Stream::open(arm, &stage.outside));
    report("packets", &in_turn(rounds, |arm| streams[arm].round(softirqs)));

    // Nor is the client to hear of connections that it has not asked for.
    sink(stage.outside.command("nft"), "outside", "tcp");
    let mut connections = stage.arms().map(|arm| Connections::open(arm, &stage.outside));
    let rounds = rounds.min(MOST_ROUNDS);
    report("connections", &in_turn(rounds, |arm| connections[arm].round(softirqs)));
}

fn sockets(client: &mut Client, arm: &Arm, softirqs: u32) -> Round {
    let pids = [client.id(), arm.server.id(), softirqs];
    let work = || pids.iter().map(|pid| cpu::of(*pid)).sum::<Duration>();
    let before = work();
    let times = client.round(Cycle::TcpLeft, arm.target, SOCKETS).unwrap();
    let took = Duration::from_secs_f64(times.iter().sum::<f64>() / 1e9);
    Round::new(times.len() as u64, took, work() - before)
}

/// One round of one arm.
pub(crate) struct Round {
    n: f64,
    nanos: f64,
    work: f64,
}

impl Round {
    #[expect(clippy::cast_precision_loss, reason = "counts and nanoseconds")]
    pub(crate) fn new(n: u64, took: Duration, work: Duration) -> Self {
        Self { n: n as f64, nanos: took.as_nanos() as f64, work: work.as_nanos() as f64 }
    }
}

/// The rounds of each arm.
#[derive(Default)]
struct Arms {
    ours: Vec<Round>,
    theirs: Vec<Round>,
    again: Vec<Round>,
    bare: Vec<Round>,
}

/// `measure` is told the place of an arm on the stage.
fn in_turn(rounds: usize, mut measure: impl FnMut(usize) -> Round) -> Arms {
    // Warm: the first of everything is slow.
    for arm in 0..3 {
        measure(arm);
    }
    let mut arms = Arms::default();
    for round in 0..rounds {
        for step in 0..4 {
            match (round + step) % 4 {
                0 => arms.theirs.push(measure(1)),
                1 => arms.ours.push(measure(0)),
                2 => arms.again.push(measure(1)),
                _ => arms.bare.push(measure(2)),
            }
        }
    }
    arms
}

fn report(what: &str, arms: &Arms) {
    println!();
    println!(
        "{what:<12} {:>21} {:>21} {:>10} {:>8} {:>8}",
        "rate", "CPU", "a second", "ns", "CPU ns"
    );
    let all = [
        ("eBPF", &arms.ours),
        ("nftables", &arms.theirs),
        ("again", &arms.again),
        ("bare", &arms.bare),
    ];
    for (name, arm) in all {
        let rates = ratio(arm, &arms.theirs, rate);
        let works = ratio(arm, &arms.theirs, work);
        let all: Vec<&Round> = arm.iter().collect();
        let (each, work) = (1e9 / rate(&all), work(&all));
        println!("{name:<12} {rates:>21} {works:>21} {:>10.0} {each:>8.0} {work:>8.0}", rate(&all));
        // A socket's connection is mostly the socket's own.
        if name == "eBPF" && what != "sockets" {
            println!("{:<12} {}", "", verdict(&rates));
        }
    }
}

fn verdict(rate: &Ratio) -> String {
    let word = if rate.low >= WANTED {
        "met"
    } else if rate.high < WANTED {
        "missed"
    } else {
        "undecided"
    };
    format!("{WANTED} of nftables' rate: {word}")
}

/// A second.
fn rate(rounds: &[&Round]) -> f64 {
    let sum = |of: fn(&Round) -> f64| rounds.iter().map(|round| of(round)).sum::<f64>();
    sum(|round| round.n) / sum(|round| round.nanos) * 1e9
}

/// Nanoseconds of processor time for each.
fn work(rounds: &[&Round]) -> f64 {
    let sum = |of: fn(&Round) -> f64| rounds.iter().map(|round| of(round)).sum::<f64>();
    sum(|round| round.work) / sum(|round| round.n)
}
