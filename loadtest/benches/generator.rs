//! Is the load generator as fast as wrk (HTTP) and dnsperf (DNS) on as many cores?
//!
//! All of them send to the same server, which has a core of its own; whoever sends has the other, one
//! thread, and as many requests under way. They take turns, a second each. Ratios of rates, with 95 %
//! intervals by bootstrap over rounds, and CPU per answer of the sender.
//!
//! `cargo xtask bench generator [ROUNDS]`; wants wrk and dnsperf (Debian), and says what it lacks.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a bench fails loudly, and runs its competitors"
)]

use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use loadtest::clock::SECOND;
use loadtest::generator::{Generator, Hand, Slice, Threads};
use loadtest::kind::{Kind, Load};
use loadtest::ratio::ratio;
use loadtest::report::{count, time};
use loadtest::server::{Answering, Delay, Server};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

const UNDER_WAY: usize = 64;
const NAME: &str = "web.default.svc.cluster.local";

/// Answers a second, and nanoseconds of CPU for each.
#[derive(Clone, Copy)]
struct Round {
    rate: f64,
    cpu: f64,
}

fn main() {
    let words: Vec<String> = env::args().skip(1).filter(|word| word != "--bench").collect();
    match words.first().map(String::as_str) {
        Some("serve") => answer(),
        word => bench(word.and_then(|word| word.parse().ok()).unwrap_or(20)),
    }
}

/// On the second core, until killed.
fn answer() {
    let server = Server::start(&Answering {
        name: "web-1".to_owned(),
        listen: "127.0.0.1:0".parse().unwrap(),
        n_threads: 1,
        processors: vec![1],
        delay: Delay::default(),
    })
    .unwrap();
    println!("{}", server.address());
    server.wait();
}

fn bench(n_rounds: usize) {
    let (mut server, address) = serve();
    let mut generator =
        Generator::start(&Threads { n_threads: 1, processors: vec![0], netns: None }).unwrap();
    for (kind, rival) in [(Kind::Http, "wrk"), (Kind::Dns, "dnsperf")] {
        let arm = generator.prepare(&load(kind, address)).unwrap();
        let (mut own, mut other) = (Vec::new(), Vec::new());
        for round in 0..n_rounds + 1 {
            let ours = ours(&mut generator, arm);
            let theirs = match kind {
                Kind::Http => wrk(address),
                _ => dnsperf(address),
            };
            // The first warms up.
            if round > 0 {
                own.push(ours);
                other.push(theirs);
            }
        }
        let mean = |rounds: &[&Round], of: fn(&Round) -> f64| {
            rounds.iter().map(|round| of(round)).sum::<f64>() / rounds.len() as f64
        };
        let rates = ratio(&own, &other, |rounds| mean(rounds, |round| round.rate));
        let cpus = ratio(&own, &other, |rounds| mean(rounds, |round| round.cpu));
        for (name, rounds) in [("fairlead", &own), (rival, &other)] {
            let rounds: Vec<&Round> = rounds.iter().collect();
            let (rate, cpu) = (mean(&rounds, |it| it.rate), mean(&rounds, |it| it.cpu));
            println!("{kind:<5} {name:<9} {:>9}/s, {} of CPU each", count(rate), time(cpu));
        }
        println!("{kind:<5} fairlead / {rival}: rate {rates}, CPU {cpus} ({n_rounds} rounds)");
    }
    server.kill().unwrap();
    server.wait().unwrap();
}

fn serve() -> (Child, SocketAddr) {
    let me = env::current_exe().unwrap();
    let mut server = Command::new(me).arg("serve").stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (server, line.trim().parse().unwrap())
}

fn load(kind: Kind, address: SocketAddr) -> Load {
    Load {
        kind,
        targets: vec![address],
        concurrency: UNDER_WAY,
        rate: None,
        payload: 0,
        requests_per_connection: 0,
        sources: Vec::new(),
        timeout: 5 * SECOND,
        name: NAME.to_owned(),
        path: "/".to_owned(),
    }
}

fn ours(generator: &mut Generator, arm: usize) -> Round {
    let tally = generator.run(arm, Slice { nanos: SECOND, keeps_hits: false }).unwrap();
    assert_eq!(tally.n_failed(), 0, "{tally:?}");
    let n = tally.n_answered as f64;
    let seconds = (tally.end - tally.begin) as f64 / SECOND as f64;
    Round { rate: n / seconds, cpu: tally.cpu as f64 / n }
}

fn wrk(address: SocketAddr) -> Round {
    let url = format!("http://{address}/");
    let words = ["wrk", "-t1", "-c64", "-d1s", &url];
    rival(&words, "Requests/sec:")
}

fn dnsperf(address: SocketAddr) -> Round {
    let file = env::temp_dir().join(format!("bench-generator-{}", std::process::id()));
    fs::write(&file, format!("{NAME} A\n")).unwrap();
    let (ip, port) = (address.ip().to_string(), address.port().to_string());
    let (path, under_way) = (file.to_str().unwrap(), UNDER_WAY.to_string());
    // One client has one socket and one thread that sends; -q is what it has under way.
    let words =
        ["dnsperf", "-s", &ip, "-p", &port, "-d", path, "-l", "1", "-c", "1", "-T", "1", "-q"];
    let round = rival(&[&words[..], &[&under_way]].concat(), "Queries per second:");
    fs::remove_file(&file).unwrap();
    round
}

/// Runs a program on the first core; the number after `label` in what it says is its rate.
fn rival(words: &[&str], label: &str) -> Round {
    let cpu = || {
        let usage = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
        (usage.user_time() + usage.system_time()).num_nanoseconds() as f64
    };
    let before = cpu();
    let done = Command::new("taskset").args(["-c", "0"]).args(words).output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{words:?} (`cargo xtask setup --bench` installs it): {said}");
    let line = said.lines().find_map(|line| line.trim().strip_prefix(label)).unwrap();
    let rate: f64 = line.trim().parse().unwrap();
    // Both run for a second.
    Round { rate, cpu: (cpu() - before) / rate }
}
