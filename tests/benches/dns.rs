//! What does a question cost? Beside knot, unbound and a responder that knows one answer.
//!
//! Every server has one core, the client the other. In each round every arm is asked in turn, in an
//! order that rotates: by a window of questions, a tenth of them for names that do not exist; and
//! one question at a time. The figure to trust is CPU per answer, as the kernel accounts it; answers
//! a second are limited by the client as well. `bare` receives and sends by the batch and does
//! nothing between, so that it is what the kernel costs; `fairlead` is asked for known names and
//! for unknown ones alone as well. Ratios are to `bare`, with 95 % intervals by bootstrap.
//!
//! `cargo xtask bench dns [ROUNDS]`; wants knot, unbound and dnsperf (Debian) and says what it lacks.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a bench fails loudly, and runs its competitors"
)]

#[path = "dns/bare.rs"]
mod bare;
#[path = "dns/change.rs"]
mod change;
#[path = "dns/client.rs"]
mod client;

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use client::{Load, Questions};
use loadtest::ratio::{quantile, ratio};
use tests::{binary, cpu, population};

const SERVICES: u32 = 10_000;
const ENDPOINTS: u32 = 3;
/// How long one arm is asked in one round.
const SLICE: Duration = Duration::from_millis(400);
/// Questions one at a time, in one round.
const SINGLE: usize = 2000;
const SOON: Duration = Duration::from_secs(60);

fn main() {
    let words: Vec<String> = env::args().skip(1).filter(|word| word != "--bench").collect();
    match words.first().map(String::as_str) {
        Some("bare") => bare::serve(words.get(1).unwrap().parse().unwrap()),
        other => bench(other.and_then(|word| word.parse().ok()).unwrap_or(20)),
    }
}

fn bench(rounds: usize) {
    let dir = tempfile::tempdir().unwrap();
    let mut arms = arms(dir.path());
    let mixed = Questions::new(9, 1);
    for arm in &mut arms {
        arm.wait(&mixed);
    }
    // Nobody else uses the client's core while a round runs, as far as it is ours to say.
    pin(std::process::id(), 1);
    for round in 0..rounds {
        for idx in 0..arms.len() {
            let at = (idx + round) % arms.len();
            let Some(arm) = arms.get_mut(at) else { continue };
            let load = arm.ask(&mixed);
            arm.mixed.push(load);
            arm.single.push(client::one_at_a_time(arm.address, &mixed, SINGLE));
            if matches!(arm.name, "fairlead" | "bare") {
                let known = arm.ask(&Questions::new(1, 0));
                arm.known.push(known);
                let unknown = arm.ask(&Questions::new(0, 1));
                arm.unknown.push(unknown);
            }
        }
    }
    report(&arms, rounds);
    if let Some(fairlead) = arms.iter().find(|arm| arm.name == "fairlead") {
        let objects = dir.path().join("objects");
        let [p50, p99] = change::seen_after(fairlead.address, &objects, dir.path());
        println!("a changed endpoint is answered after {p50:.0} µs, p99 {p99:.0} µs");
    }
    dnsperf(dir.path(), &arms);
}

/// One server under test.
struct Arm {
    name: &'static str,
    address: SocketAddr,
    child: Child,
    mixed: Vec<Load>,
    known: Vec<Load>,
    unknown: Vec<Load>,
    /// Quantiles of one question at a time, in microseconds: the median and the 99th.
    single: Vec<[f64; 2]>,
}

impl Drop for Arm {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Arm {
    fn start(name: &'static str, port: u16, command: &mut Command) -> Self {
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        pin(child.id(), 0);
        Self {
            name,
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            child,
            mixed: Vec::new(),
            known: Vec::new(),
            unknown: Vec::new(),
            single: Vec::new(),
        }
    }

    /// Waits until a name that exists is answered with an address.
    fn wait(&mut self, questions: &Questions) {
        let deadline = Instant::now() + SOON;
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        socket.connect(self.address).unwrap();
        let mut answer = [0; 1500];
        loop {
            assert!(Instant::now() < deadline, "{} does not answer", self.name);
            // A refusal while nobody listens yet comes back as an error of either call.
            let asked = socket.send(questions.known()).and_then(|_| socket.recv(&mut answer));
            if asked.is_ok() && answer.get(7) == Some(&1) {
                break;
            }
        }
        // Every thread that serves has been started by now.
        pin(self.child.id(), 0);
    }

    fn ask(&mut self, questions: &Questions) -> Load {
        let before = cpu::of(self.child.id());
        let mut load = client::window(self.address, questions, SLICE);
        load.cpu = cpu::of(self.child.id()) - before;
        load
    }

    fn rss(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

fn pin(pid: u32, core: u32) {
    let pid = pid.to_string();
    let status = Command::new("taskset")
        .args(["--all-tasks", "--pid", "--cpu-list", &core.to_string(), &pid])
        .stdout(Stdio::null())
        .status();
    assert!(status.unwrap().success(), "taskset -p {pid}");
}

fn has(program: &str) -> bool {
    let found = ["/usr/sbin", "/usr/bin"].iter().any(|dir| Path::new(dir).join(program).is_file());
    if !found {
        println!("{program} is not installed: `cargo xtask setup --bench` does that");
    }
    found
}

fn arms(dir: &Path) -> Vec<Arm> {
    let me = env::current_exe().unwrap();
    let mut arms =
        vec![Arm::start("bare", 5301, Command::new(&me).args(["bare", "5301"])), fairlead(dir)];
    if has("knotd") {
        let config = knot(dir);
        arms.push(Arm::start("knot", 5303, Command::new("knotd").arg("-c").arg(config)));
    }
    if has("unbound") {
        let config = unbound(dir);
        arms.push(Arm::start(
            "unbound",
            5304,
            Command::new("unbound").arg("-d").arg("-c").arg(config),
        ));
    }
    // The same once more, so that the noise is known.
    arms.push(Arm::start("bare again", 5305, Command::new(&me).args(["bare", "5305"])));
    arms
}

fn fairlead(dir: &Path) -> Arm {
    let objects = dir.join("objects");
    fs::create_dir(&objects).unwrap();
    for thousand in 0..SERVICES / 1000 {
        let numbers = thousand * 1000..thousand * 1000 + 1000;
        let yaml: String = numbers.map(|number| population::yaml(number, ENDPOINTS)).collect();
        fs::write(objects.join(format!("{thousand}.yaml")), yaml).unwrap();
    }
    let mut command = Command::new(binary::fairlead());
    command.arg("dns").arg("--objects").arg(objects).args([
        "--listen=127.0.0.1:5302",
        "--threads=1",
        "--health-address=",
        "--ready-address=",
        "--metrics-address=",
    ]);
    Arm::start("fairlead", 5302, &mut command)
}

fn records() -> impl Iterator<Item = (String, Ipv4Addr)> {
    let first = Ipv4Addr::new(10, 112, 0, 1).to_bits();
    (0..SERVICES).map(move |number| {
        (format!("s{number}.bench.svc.cluster.local."), Ipv4Addr::from_bits(first + number))
    })
}

const SOA: &str =
    "cluster.local. 5 IN SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5";

fn knot(dir: &Path) -> PathBuf {
    let mut zone = format!("{SOA}\ncluster.local. 5 IN NS ns.dns.cluster.local.\n");
    for (name, address) in records() {
        writeln!(zone, "{name} 5 IN A {address}").unwrap();
    }
    fs::write(dir.join("zone"), zone).unwrap();
    let at = dir.display();
    let config = format!(
        "server:\n  listen: 127.0.0.1@5303\n  rundir: {at}/knot\n  udp-workers: 1\n  tcp-workers: 1\n  \
         background-workers: 1\ndatabase:\n  storage: {at}/knot\nzone:\n  - domain: cluster.local\n    \
         file: {at}/zone\n    zonefile-sync: -1\n    journal-content: none\n"
    );
    fs::create_dir(dir.join("knot")).unwrap();
    fs::write(dir.join("knot.conf"), config).unwrap();
    dir.join("knot.conf")
}

fn unbound(dir: &Path) -> PathBuf {
    let at = dir.display();
    let mut config = format!(
        "server:\n  interface: 127.0.0.1@5304\n  num-threads: 1\n  username: \"\"\n  chroot: \"\"\n  \
         directory: {at}\n  pidfile: {at}/unbound.pid\n  do-daemonize: no\n  use-syslog: no\n  \
         logfile: \"\"\n  access-control: 127.0.0.0/8 allow\n  local-zone: cluster.local. static\n  \
         local-data: \"{SOA}\"\n"
    );
    for (name, address) in records() {
        writeln!(config, "  local-data: \"{name} 5 IN A {address}\"").unwrap();
    }
    config.push_str("remote-control:\n  control-enable: no\n");
    fs::write(dir.join("unbound.conf"), config).unwrap();
    dir.join("unbound.conf")
}

fn report(arms: &[Arm], rounds: usize) {
    println!(
        "{SERVICES} Services, {} endpoints; {rounds} rounds; a tenth of the names unknown",
        SERVICES * ENDPOINTS
    );
    println!(
        "{:<12} {:>9} {:>22} {:>10} {:>8} {:>8} {:>20} {:>9} {:>6}",
        "", "CPU µs", "to bare", "answers/s", "p50 µs", "p99 µs", "p99 to bare", "RSS KiB", "lost"
    );
    let Some(bare) = arms.first() else { return };
    for arm in arms {
        let answers = quantile(arm.mixed.iter().map(Load::rate), 0.5);
        let p50 = quantile(arm.single.iter().map(|[p50, _]| *p50), 0.5);
        let p99 = quantile(arm.single.iter().map(|[_, p99]| *p99), 0.5);
        let p99_ratio = ratio(&arm.single, &bare.single, |rounds| {
            quantile(rounds.iter().map(|[_, p99]| *p99), 0.5)
        });
        let lost: usize = arm.mixed.iter().map(|load| load.n_lost).sum();
        println!(
            "{:<12} {:>9.2} {:>22} {answers:>10.0} {p50:>8.1} {p99:>8.1} {:>20} {:>9} {lost:>6}",
            arm.name,
            cost(&arm.mixed.iter().collect::<Vec<_>>()),
            ratio(&arm.mixed, &bare.mixed, cost).to_string(),
            p99_ratio.to_string(),
            arm.rss(),
        );
    }
    for arm in arms.iter().filter(|arm| !arm.known.is_empty()) {
        let known = ratio(&arm.known, &bare.known, cost);
        let unknown = ratio(&arm.unknown, &bare.unknown, cost);
        println!("{}: known names alone {known} to bare, unknown names alone {unknown}", arm.name);
    }
}

/// Processor time for each answer, in microseconds.
fn cost(rounds: &[&Load]) -> f64 {
    let cpu: Duration = rounds.iter().map(|load| load.cpu).sum();
    let n: usize = rounds.iter().map(|load| load.n_answers).sum();
    cpu.as_secs_f64() * 1e6 / n as f64
}

/// The same questions from a client that is not ours.
fn dnsperf(dir: &Path, arms: &[Arm]) {
    if !has("dnsperf") {
        return;
    }
    let mut questions = String::new();
    for (number, (name, _)) in records().enumerate() {
        let prefix = if number % 10 == 9 { "no-" } else { "" };
        writeln!(questions, "{prefix}{name} A").unwrap();
    }
    let file = dir.join("questions");
    fs::write(&file, questions).unwrap();
    for arm in arms {
        let before = cpu::of(arm.child.id());
        let output = Command::new("taskset")
            .args(["-c", "1", "dnsperf", "-s", "127.0.0.1", "-p", &arm.address.port().to_string()])
            .args(["-c", "4", "-T", "1", "-q", "100", "-l", "3", "-d"])
            .arg(&file)
            .output()
            .unwrap();
        let used = cpu::of(arm.child.id()) - before;
        let text = String::from_utf8_lossy(&output.stdout);
        let figure = |label: &str| -> f64 {
            let line = text.lines().find(|line| line.contains(label)).unwrap_or_default();
            let value = line.rsplit(':').next().unwrap_or_default().split_whitespace().next();
            value.and_then(|value| value.parse().ok()).unwrap_or(f64::NAN)
        };
        let per_answer = used.as_secs_f64() * 1e6 / figure("Queries completed");
        let rate = figure("Queries per second");
        println!("dnsperf {:<12} {rate:>9.0} answers/s, {per_answer:.2} µs of CPU each", arm.name);
    }
}
