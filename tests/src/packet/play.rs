//! Plays case files of packets, without a kernel and in it.

use std::path::{Path, PathBuf};

use abi::counter::Counter;
use load::test_run::Bench;
use packet::decide::Verdict;
use packet::memory::{Frame, Memory, Way};

use crate::packet::frame::frame;
use crate::packet::given::{Given, parse};
use crate::packet::kernel;
use crate::packet::show::show;

/// What plays: the same code in two places.
#[expect(missing_debug_implementations, reason = "it holds a loaded program")]
pub enum Arm {
    /// Without a kernel.
    Host(Box<Memory<Given>>),
    /// In the kernel; the devices have summed their packets or have not.
    Kernel(Box<Bench>, bool),
}

impl Arm {
    #[expect(clippy::unwrap_used, reason = "a test fails loudly")]
    fn give(&mut self, given: &Given) {
        match self {
            Self::Host(memory) => memory.services = given.clone(),
            Self::Kernel(bench, _) => kernel::give(bench, given).unwrap(),
        }
    }

    #[expect(clippy::unwrap_used, reason = "a test fails loudly")]
    fn reset(&mut self) {
        match self {
            Self::Host(memory) => **memory = Memory::new(Given::default()),
            Self::Kernel(bench, _) => kernel::reset(bench).unwrap(),
        }
    }

    /// What becomes of a frame, as text.
    #[expect(clippy::unwrap_used, reason = "a test fails loudly")]
    fn run(&mut self, bytes: &[u8], way: Way, partial: bool, expected: &str) -> String {
        match self {
            Self::Host(memory) => {
                let mut frame = Frame { partial, ..Frame::new(bytes) };
                let verdict = memory.run(&mut frame, way);
                outcome(verdict, bytes, &frame.bytes, partial)
            }
            Self::Kernel(bench, summed) => {
                let before = counts(bench);
                // The kernel forgets the sum of a packet that is cut.
                let is_cut = expected.starts_with("answer") || expected == "fragments_released";
                let summed = *summed && !is_cut;
                let ran = kernel::run(bench, bytes, way, summed).unwrap();
                let Some((action, after)) = ran else { return "WRONG-SUM".to_owned() };
                let reason = counts(bench)
                    .iter()
                    .zip(before)
                    .position(|(after, before)| *after > before)
                    .and_then(|index| Counter::at(u32::try_from(index).ok()?));
                let verdict = match (action, way) {
                    (-1, _) => Verdict::PASS,
                    (7, Way::MadeHere) if is_translated(bytes, &after) => Verdict::REROUTE,
                    (7, _) => Verdict::ANSWER,
                    // There is no route to anywhere where the programs are run by hand.
                    _ if reason == Some(Counter::DroppedNoRoute) => Verdict::REROUTE,
                    _ => Verdict::drop(reason.unwrap()),
                };
                outcome(verdict, bytes, &after, partial)
            }
        }
    }
}

/// Whether an IP header is not whole.
pub(crate) fn is_headless(frame: &[u8]) -> bool {
    frame.len() < 14 + if frame.get(12) == Some(&0x86) { 40 } else { 20 }
}

/// Whether a packet still is what it was, to somebody else: an answer is not.
fn is_translated(before: &[u8], after: &[u8]) -> bool {
    before.len() == after.len()
}

/// The counters of drops, by index; others are zero.
#[expect(clippy::unwrap_used, reason = "a test fails loudly")]
fn counts(bench: &mut Bench) -> Vec<u64> {
    let all = bench.counters().unwrap();
    Counter::ALL.iter().zip(all).map(|(counter, n)| if is_drop(*counter) { n } else { 0 }).collect()
}

fn is_drop(counter: Counter) -> bool {
    const OTHERS: [Counter; 3] =
        [Counter::PacketRefused, Counter::FragmentHeld, Counter::FragmentsReleased];
    counter.name().starts_with("drop_") || OTHERS.contains(&counter)
}

fn outcome(verdict: Verdict, before: &[u8], after: &[u8], partial: bool) -> String {
    if let Some(counter) = verdict.reason().and_then(Counter::at) {
        return counter.name().replacen("drop_", "drop ", 1);
    }
    if verdict == Verdict::PASS && before == after {
        return "untouched".to_owned();
    }
    let shown = show(after, partial);
    match verdict {
        Verdict::ANSWER => format!("answer {shown}"),
        Verdict::REROUTE => format!("reroute {shown}"),
        _ => format!("pass {shown}"),
    }
}

/// Plays all files; gives the number of packets, and what is not as expected.
///
/// # Panics
/// A file makes no sense.
#[expect(clippy::unwrap_used, reason = "a test fails loudly")]
pub fn play(arm: &mut Arm) -> (usize, Vec<String>) {
    let (mut n, mut failures) = (0, Vec::new());
    for path in files() {
        let text = std::fs::read_to_string(&path).unwrap();
        let mut rewritten = Vec::new();
        let (mut given, mut section) = (Given::default(), "");
        arm.reset();
        for (number, line) in text.lines().enumerate() {
            let mut becomes = line.to_owned();
            let trimmed = line.trim();
            if trimmed.is_empty() || trimmed.starts_with('#') {
                rewritten.push(becomes);
                continue;
            }
            if let Some(name) = trimmed.strip_prefix("-- ").and_then(|t| t.strip_suffix(" --")) {
                section = if name == "tables" { "tables" } else { "packets" };
                if section == "tables" {
                    given = Given::default();
                    arm.reset();
                } else {
                    let slots = u32::try_from(given.frontends.len()).unwrap();
                    given.generations = (0..=slots).map(|slot| slot + 1).collect();
                    arm.give(&given);
                }
            } else if section == "tables" {
                given.line(trimmed);
            } else if let Some(change) = trimmed.strip_prefix("serving ") {
                serve(&mut given, change);
                arm.give(&given);
            } else if matches!(trimmed, "hands over" | "takes over") {
                given.leaves_new = trimmed == "hands over";
                arm.give(&given);
            } else {
                n += 1;
                let (packet, expected) = trimmed.split_once(" = ").unwrap_or((trimmed, ""));
                let (way, packet) = packet.split_once(' ').unwrap();
                let way = match way {
                    "arrives" => Way::Arrives,
                    "leaves" => Way::Leaves,
                    _ => Way::MadeHere,
                };
                let partial = packet.split_whitespace().any(|word| word == "partial");
                let by_hand = matches!(arm, Arm::Kernel(..));
                if by_hand && (partial || is_headless(&frame(packet))) {
                    // The test run has no device that completes checksums, and takes no
                    // packet without a whole IP header.
                    n -= 1;
                    continue;
                }
                let got = arm.run(&frame(packet), way, partial, expected);
                if got != expected {
                    let file = path.file_name().unwrap().to_string_lossy().into_owned();
                    failures.push(format!(
                        "{file}:{}: {packet}\n  expected {expected}\n  got      {got}",
                        number + 1
                    ));
                    let (head, _) = line.split_once(" = ").unwrap_or((line, ""));
                    becomes = format!("{head} = {got}");
                }
            }
            rewritten.push(becomes);
        }
        if std::env::var_os("UPDATE_EXPECT").is_some() && matches!(arm, Arm::Host(_)) {
            std::fs::write(&path, rewritten.join("\n") + "\n").unwrap();
        }
    }
    (n, failures)
}

/// `serving 1 10.0.0.1:80,10.0.0.2:80`: other endpoints serve in a slot from now on.
pub(crate) fn serve(given: &mut Given, change: &str) {
    let (slot, endpoints) = change.split_once(' ').unwrap_or((change, ""));
    let slot: usize = parse(slot);
    if let Some(frontend) = slot.checked_sub(1).and_then(|idx| given.frontends.get_mut(idx)) {
        frontend.serving = endpoints.split(',').filter(|e| !e.is_empty()).map(parse).collect();
        for route in &mut frontend.routes {
            route.endpoints.clone_from(&frontend.serving);
        }
    }
    if let Some(generation) = given.generations.get_mut(slot) {
        *generation += 1000;
    }
}

#[expect(clippy::unwrap_used, reason = "a test fails loudly")]
fn files() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases/packet");
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    files.sort();
    files
}
