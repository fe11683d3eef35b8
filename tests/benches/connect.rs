//! What does a VIP cost a connection? Beside the endpoint itself, at 1 and at 10,000 Services.
//!
//! Five arms in turn, a hundred cycles each, in an order that rotates: the VIP; the endpoint
//! directly (`direct`); the same again (`A/A`, so that the noise is known); the endpoint from a
//! process outside of the hooked cgroup (`unhooked`: what the hooks cost those who use no Service);
//! and that again. Ratios are to `direct`, with 95 % intervals by bootstrap over rounds.
//!
//! `cargo xtask bench connect [ROUNDS]`

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a bench fails loudly")]

use std::env;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use loadtest::ratio::{Ratio, quantile, ratio};
use sandbox::fairlead::{Fairlead, Proxy, ProxyOptions};
use sandbox::manifest::{Endpoint, Folder, Service, node_yaml};
use sandbox::{Node, Sandbox};
use tests::cycles::{self, Client, Cycle};
use tests::{binary, population};

const CYCLES: usize = 100;
const ENDPOINTS: u32 = 10;
const PORT: u16 = 8080;

fn main() {
    let words: Vec<String> = env::args().skip(1).filter(|word| word != "--bench").collect();
    match words.first().map(String::as_str) {
        Some("serve") => cycles::serve(PORT, 1).unwrap(),
        Some("obey") => cycles::obey().unwrap(),
        other => bench(other.and_then(|word| word.parse().ok()).unwrap_or(200)),
    }
}

fn bench(rounds: usize) {
    let cluster = Sandbox::create("bench-connect").unwrap();
    let node = cluster.node("node-a").unwrap();
    let (client, server) = (node.pod("client").unwrap(), node.pod("server").unwrap());
    let me = env::current_exe().unwrap();
    let _server = Client::start(server.command(&me).arg("serve")).expect("the server comes up");
    let vip: IpAddr = "10.96.0.10".parse().unwrap();
    let service =
        Service::new("bench", "target").cluster_ip(vip).tcp("tcp", 80, PORT).udp("udp", 80, PORT);
    let objects = Folder::create(&cluster.dir().join("objects")).unwrap();
    objects.write("node", &node_yaml(&node)).unwrap();
    objects.write_service(&service, &[Endpoint::of(&server)]).unwrap();

    let options = ProxyOptions {
        objects: objects.path().to_owned(),
        cgroup: node.cgroup().to_owned(),
        bpffs: node.bpffs().unwrap(),
        names: false,
        more: Vec::new(),
    };
    let fairlead = Fairlead::at(binary::fairlead());
    let mut proxy = fairlead.proxy(&node, &options, &cluster.dir().join("proxy.log")).unwrap();

    let [endpoint, _] = server.addresses().both().map(|ip| SocketAddr::new(ip, PORT));
    let mut asked = Question {
        hooked: Client::start(client.command(&me).arg("obey")).unwrap(),
        unhooked: Client::start(client.command_outside_cgroup(&me).arg("obey")).unwrap(),
        endpoint,
        vip: SocketAddr::new(vip, 80),
    };

    println!("{rounds} rounds of {CYCLES} cycles an arm; ratios to direct [95 % interval]");
    for services in [1, 10_000] {
        if services > 1 {
            let yaml: String =
                (1..services).map(|number| population::yaml(number, ENDPOINTS)).collect();
            objects.write("population", &yaml).unwrap();
        }
        proxy.wait_in_sync(&fairlead, &node, &options.bpffs, Duration::from_secs(60)).unwrap();
        wait_for_frontends(&fairlead, &proxy, &node, &options.bpffs, services as usize + 1);
        for cycle in [Cycle::Tcp, Cycle::Udp, Cycle::UdpUnconnected] {
            report(services, cycle, &measure(&mut asked, cycle, rounds));
        }
    }
}

/// Waits until the kernel holds them.
fn wait_for_frontends(fairlead: &Fairlead, proxy: &Proxy, node: &Node, bpffs: &Path, n: usize) {
    let wanted = format!(" {n} frontends");
    let held = sandbox::wait::until(Duration::from_secs(60), || {
        fairlead
            .status(node, bpffs)
            .is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(&wanted))
    });
    assert!(held, "the proxy does not hold {n} frontends; its log:\n{}", proxy.log());
}

/// The rounds of each arm.
struct Arms {
    direct: Vec<Vec<f64>>,
    again: Vec<Vec<f64>>,
    vip: Vec<Vec<f64>>,
    unhooked: Vec<Vec<f64>>,
}

/// Who asks, and whom.
struct Question {
    hooked: Client,
    unhooked: Client,
    endpoint: SocketAddr,
    vip: SocketAddr,
}

fn measure(asked: &mut Question, cycle: Cycle, rounds: usize) -> Arms {
    let Question { hooked, unhooked, endpoint, vip } = asked;
    let (endpoint, vip) = (*endpoint, *vip);
    let mut arms =
        Arms { direct: Vec::new(), again: Vec::new(), vip: Vec::new(), unhooked: Vec::new() };
    // Warm: the first connections of a process are slow.
    for target in [endpoint, vip] {
        hooked.round(cycle, target, CYCLES).unwrap();
    }
    unhooked.round(cycle, endpoint, CYCLES).unwrap();
    for round in 0..rounds {
        for step in 0..4 {
            match (round + step) % 4 {
                0 => arms.direct.push(hooked.round(cycle, endpoint, CYCLES).unwrap()),
                1 => arms.vip.push(hooked.round(cycle, vip, CYCLES).unwrap()),
                2 => arms.again.push(hooked.round(cycle, endpoint, CYCLES).unwrap()),
                _ => arms.unhooked.push(unhooked.round(cycle, endpoint, CYCLES).unwrap()),
            }
        }
    }
    arms
}

fn report(services: u32, cycle: Cycle, arms: &Arms) {
    println!();
    println!("{} at {services} Services", cycle.name());
    println!("{:<10} {:>21} {:>21} {:>21} {:>8}", "arm", "rate", "p50", "p99", "p50 µs");
    for (name, arm) in [("vip", &arms.vip), ("A/A", &arms.again), ("unhooked", &arms.unhooked)] {
        let rate = ratio(arm, &arms.direct, rate);
        let p50 = of_quantile(arm, &arms.direct, 0.5);
        let p99 = of_quantile(arm, &arms.direct, 0.99);
        let micros = quantile(arm.iter().flatten().copied(), 0.5) / 1000.0;
        println!("{name:<10} {rate:>21} {p50:>21} {p99:>21} {micros:>8.1}");
    }
}

/// Cycles per nanosecond.
#[expect(clippy::cast_precision_loss, reason = "a count of cycles")]
fn rate(rounds: &[&Vec<f64>]) -> f64 {
    let (n, took) = rounds
        .iter()
        .fold((0, 0.0), |(n, took), round| (n + round.len(), took + round.iter().sum::<f64>()));
    n as f64 / took
}

fn of_quantile(arm: &[Vec<f64>], direct: &[Vec<f64>], q: f64) -> Ratio {
    // The median over rounds of each round's own quantile would hide what happens between rounds.
    ratio(arm, direct, |rounds| quantile(rounds.iter().flat_map(|round| round.iter().copied()), q))
}
