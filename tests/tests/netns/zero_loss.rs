//! Nobody loses a connection while the proxy is killed again and again and endpoints come and go.
//!
//! ```text
//!   outside ──── fabric ──── node-a (proxy) ──── node-b
//!   NodePort                  client, ClusterIP
//!                             half of the endpoints      the other half
//! ```
//!
//! Which connection could a ready endpoint have served? Every one: at any time one is ready, and half of
//! the others are.
//! One that leaves does so as a pod of Kubernetes does: it terminates, is gone from its slice, and goes
//! on accepting while it has grace, here until a process that was started after it had gone is in sync,
//! and a second longer. Then its port is closed: whoever is still led there is refused, and has lost.
//! It opens again and is ready again. Connections that an endpoint has accepted it keeps whatever
//! becomes of it, so none of them may ever be cut.

#[path = "zero_loss/flap.rs"]
mod flap;
#[path = "zero_loss/kills.rs"]
mod kills;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use sandbox::fairlead::Client;
use sandbox::manifest::{Endpoint, Service};
use sandbox::traffic::{Load, Protocol, Until};
use sandbox::{Pod, hello, wait};
use tests::cluster::{Cluster, Node, eventually, soon};
use tests::pace::Pace;

use flap::Flapping;
use kills::{Lives, STEP, killed};

const PORT: u16 = 80;
const NODE_PORT: u16 = 30_080;
/// New connections a second by each of four ways, 500 in all, on a machine of today.
const NEW: u32 = 125;
/// Connections that are kept by each of four ways, 200 in all.
const KEPT: u32 = 50;
/// Slow is not lost: as long as a busy machine may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// The ports of the client outside: few, so that each is used again and again, also for an endpoint
/// that has gone since.
const FEW_PORTS: [(&str, &str); 2] =
    [("ipv4/ip_local_port_range", "32768 40959"), ("ipv4/tcp_tw_reuse", "1")];

#[test]
fn no_connection_is_lost_to_kills_and_flapping_endpoints() {
    println!("{}", nothing_is_lost(6, 32));
}

mod long {
    /// Fifty kills take about a minute, in which 600 endpoints go and come.
    #[test]
    fn no_connection_is_lost_to_fifty_kills_and_ten_flapping_endpoints_a_second() {
        println!("{}", super::nothing_is_lost(50, 120));
    }
}

/// Says what went on.
fn nothing_is_lost(n_kills: u64, n_endpoints: usize) -> String {
    let cluster = Cluster::new();
    let mut node = cluster.node("node-a");
    let other = cluster.node("node-b");
    let outside = cluster.node("outside");
    cluster.folder().remove("outside").unwrap();
    outside.node().netns().set_sysctls(&FEW_PORTS).unwrap();
    let client = node.pod("client");
    let service = Service::new("default", "web")
        .cluster_ip([10, 96, 0, 10])
        .cluster_ip([0xfd00, 0x10, 0x96, 0, 0, 0, 0, 10])
        .tcp("tcp", PORT, hello::PORT)
        .node_port(NODE_PORT);
    let pods = (0..n_endpoints).map(|n| {
        let on = if n % 2 == 0 { &node } else { &other };
        on.pod(&format!("web-{n}"))
    });
    let steady = node.web("steady");
    let mut flapping = Flapping::new(&cluster, &service, Endpoint::of(&steady.pod), pods.collect());
    cluster.folder().write("web-service", &service.yaml()).unwrap();
    node.start_proxy();

    let pace = Pace::of_this_machine();
    let (new, kept) = (pace.rate(NEW), pace.rate(KEPT));
    let loads = loads(&node, &client, &outside, [(Protocol::Tcp, new), (Protocol::TcpKept, kept)]);
    all_go_on(&loads, kept);
    let lives = Lives::default();
    let n_flaps = killed(&mut node, n_kills, &lives, pace, || flapping.step(&lives));
    // Those that went last are to come yet.
    let comes = |flapping: &mut Flapping<'_>| {
        flapping.step(&lives);
        wait::until(pace.time(STEP), || flapping.n_came() >= n_kills)
    };
    let come = wait::until(soon(), || comes(&mut flapping));
    assert!(come, "endpoints come again: {} of {n_kills}", flapping.n_came());
    let n_came = flapping.n_came();
    all_go_on(&loads, kept);
    format!(
        "{n_kills} kills, {n_flaps} endpoints went and {n_came} came, {} new connections a second \
         and {} kept\n{}",
        4 * new,
        4 * kept,
        none_lost(loads)
    )
}

/// Each way in: a Service's address from a pod, and a node port from elsewhere, over both families.
fn loads(node: &Node, client: &Pod, outside: &Node, rates: [(Protocol, u32); 2]) -> Vec<Client> {
    let fairlead = node.fairlead();
    let mut loads = Vec::new();
    for (protocol, rate) in rates {
        let (until, timeout) = (Until::Told, Pace::of_this_machine().time(PATIENCE));
        let load = |target| Load { target, protocol, rate, until, timeout };
        for target in ["10.96.0.10:80", "[fd00:10:96::a]:80"] {
            loads.push(fairlead.client(client, &load(target.parse().unwrap())).unwrap());
        }
        for ip in node.node().addresses().both() {
            let load = load((ip, NODE_PORT).into());
            loads.push(fairlead.client_on(outside.node(), &load).unwrap());
        }
    }
    loads
}

/// Waits until everybody has sent again.
fn all_go_on(loads: &[Client], n: u32) {
    let goals: Vec<_> = loads.iter().map(|load| load.tally().requests + u64::from(n)).collect();
    for (load, goal) in loads.iter().zip(goals) {
        eventually("requests are sent and end", || load.tally().requests >= goal);
    }
}

/// Says how long they took.
fn none_lost(loads: Vec<Client>) -> String {
    let tallies: Vec<_> = loads.into_iter().map(|load| load.finish().unwrap()).collect();
    let mut told = String::new();
    for tally in &tallies {
        assert_eq!(tally.failures, BTreeMap::new(), "of {} requests", tally.requests);
        let (n, slowest) = (tally.requests, tally.slowest_us / 1000);
        writeln!(told, "{n} requests, the slowest answered after {slowest} ms").unwrap();
    }
    told
}
