//! What does a Service cost in each proxy mode, beside its endpoints? At 1 to 30,000 Services.
//!
//! `fairlead loadtest` at each size: connections one after another, each asking once (`tcp`), client
//! and servers on one core, so that the base is as small as it gets. Every mode has its own node;
//! `direct` and `direct again` (the A/A arm) are nodes without a proxy. Ratios to `direct`, with
//! 95 % intervals by bootstrap over rounds.
//!
//! `cargo xtask bench modes [MODES [SECONDS]]` prints rows for docs/benchmarks.md; `cargo xtask bench
//! modes check` runs two sizes and fails when eBPF costs more than it should beyond noise.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a bench fails loudly, and runs the program"
)]

use std::env;
use std::fs;
use std::process::Command;

use loadtest::report::{ArmReport, Report, count};
use tests::binary;

const SIZES: [u32; 4] = [1, 1_000, 10_000, 30_000];
const CHECKED: [u32; 2] = [1, 1_000];
/// What a Service may cost: the rate beside its endpoints'.
const LEAST_RATIO: f64 = 0.96;

fn main() {
    let words: Vec<String> = env::args().skip(1).filter(|word| word != "--bench").collect();
    match words.first().map(String::as_str) {
        Some("check") => check(),
        modes => bench(modes.unwrap_or("ebpf"), words.get(1).map_or("4", String::as_str)),
    }
}

fn bench(modes: &str, seconds: &str) {
    println!("| Services | mode | connections/s | ratio | p50 | p99 |");
    println!("|---|---|---|---|---|---|");
    for services in SIZES {
        for arm in measure(modes, services, seconds).arms {
            println!("{}", row(services, &arm));
        }
    }
}

fn row(services: u32, arm: &ArmReport) -> String {
    let ratios = arm.ratio.map(|ratios| [ratios.rate, ratios.p50, ratios.p99]);
    let [rate, p50, p99] = match ratios {
        Some(ratios) => ratios.map(|ratio| ratio.to_string()),
        None => ["1", "1", "1"].map(str::to_owned),
    };
    let services = count(services.into());
    format!("| {services} | {} | {} | {rate} | {p50} | {p99} |", arm.name, count(arm.rate))
}

fn check() {
    for services in CHECKED {
        let report = measure("ebpf", services, "2");
        let ebpf = report.arms.iter().find(|arm| arm.name == "ebpf").unwrap();
        println!("{}", row(services, ebpf));
        let rate = ebpf.ratio.unwrap().rate;
        assert!(
            rate.high >= LEAST_RATIO,
            "at {services} Services a connection costs more than it should: {rate} of direct's rate"
        );
    }
}

fn measure(modes: &str, services: u32, seconds: &str) -> Report {
    let json = env::temp_dir().join(format!("bench-modes-{}.json", std::process::id()));
    let done = Command::new(binary::fairlead())
        .args(["loadtest", "--compare", modes, "--services", &services.to_string()])
        .args(["--kind", "tcp", "--concurrency", "1", "--threads", "1", "--processors", "0"])
        .args(["--duration", seconds, "--rounds", "200", "--sandbox", "bench-modes"])
        .arg("--json")
        .arg(&json)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}");
    let report: Report = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    fs::remove_file(&json).unwrap();
    for doubt in &report.doubts {
        println!("{services} Services: {doubt}");
    }
    report
}
