//! A node changes its mode while connections are opened and held. None fails, none is cut.
//!
//! ```text
//!   outside ──── fabric ──── node-a: ebpf ─▶ nftables ─▶ iptables ─▶ ebpf ─▶ iptables ─▶ nftables ─▶ ebpf …
//!   node port                 client, cluster IPs of both families; a pod that is sent to itself
//! ```

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use sandbox::fairlead::Client;
use sandbox::manifest::{Endpoint, Service};
use sandbox::traffic::{Load, Protocol, Until};
use sandbox::{Pod, hello};
use tests::cluster::{Cluster, Node, endpoints, eventually};
use tests::pace::Pace;

const ROUNDS: usize = 5;
const NODE_PORT: u16 = 30_080;
/// New connections a second by each of four ways, 200 in all, on a machine of today.
const NEW: u32 = 50;
/// Connections that are held by each of four ways, 100 in all.
const HELD: u32 = 25;
/// Slow is not lost: as long as a busy machine may take.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn no_connection_is_lost_on_a_tour_through_the_modes() {
    tour(&["ebpf", "nftables", "iptables", "ebpf"]);
}

mod long {
    use super::{ROUNDS, tour};

    /// From each mode to each other one.
    #[test]
    fn no_connection_is_lost_in_five_rounds_of_all_changes_of_mode() {
        let round = ["ebpf", "nftables", "iptables", "ebpf", "iptables", "nftables"];
        tour(&[&round.repeat(ROUNDS)[..], &["ebpf"]].concat());
    }
}

/// On a kernel that has IPVS.
mod vm {
    /// To IPVS from each mode, and back.
    #[test]
    fn no_connection_is_lost_on_a_tour_to_ipvs_and_back() {
        super::tour(&["ebpf", "ipvs", "nftables", "ipvs", "iptables", "ipvs", "ebpf"]);
    }
}

fn tour(modes: &[&str]) {
    let cluster = Cluster::new();
    let mut node = cluster.node("node-a");
    let outside = cluster.node("outside");
    cluster.folder().remove("outside").unwrap();
    let client = node.pod("client");
    let webs = node.webs(["web-1", "web-2", "web-3"]);
    let service = Service::new("default", "web")
        .cluster_ip([10, 96, 0, 10])
        .cluster_ip([0xfd00, 0x10, 0x96, 0, 0, 0, 0, 10])
        .tcp("tcp", 80, hello::PORT)
        .node_port(NODE_PORT);
    cluster.folder().write_service(&service, &endpoints(&webs)).unwrap();
    let alone = node.web("alone");
    let to_itself =
        Service::new("default", "self").cluster_ip([10, 96, 0, 20]).tcp("tcp", 80, hello::PORT);
    cluster.folder().write_service(&to_itself, &[Endpoint::of(&alone.pod)]).unwrap();

    let (first, others) = modes.split_first().unwrap();
    start(&mut node, first);
    let loads = loads(&node, &client, &outside, &alone.pod);
    all_go_on(&loads);
    let mut before = *first;
    for (n, mode) in others.iter().enumerate() {
        node.stop_proxy();
        let log = node.log().len();
        start(&mut node, mode);
        all_go_on(&loads);
        left_alone(&node, before, log);
        all_go_on(&loads);
        for (way, load) in loads.iter().enumerate() {
            let failures = load.tally().failures;
            let change = format!("way {way}, by change {n} from {before} to {mode}");
            assert_eq!(failures, BTreeMap::new(), "{change}\n{}", node.log());
        }
        before = mode;
    }
    for load in loads {
        let tally = load.finish().unwrap();
        assert_eq!(tally.failures, BTreeMap::new(), "of {} requests", tally.requests);
    }
    node.stop_proxy();
    let cleaned = node.fairlead().cleanup(node.node(), node.bpffs()).unwrap();
    assert!(cleaned.status.success(), "{cleaned:?}");
    assert!(listed(&node, "nft", "list tables").lines().all(|table| !table.contains("fairlead")));
    assert!(!listed(&node, "iptables-save", "").contains("KUBE-"));
    assert!(!listed(&node, "ip", "link").contains("kube-ipvs0"));
    assert!(!has_files(node.bpffs()));
}

fn start(node: &mut Node, mode: &str) {
    node.start_proxy_with(&[&format!("--proxy-mode={mode}")]);
}

/// Waits until no new connection comes through what a mode has left, or nothing of it is there. What
/// this start has logged begins at `log`.
fn left_alone(node: &Node, mode: &str, log: usize) {
    let is_left_alone = || match mode {
        "nftables" => ["ip", "ip6"].iter().all(|family| {
            let tables = listed(node, "nft", "list ruleset");
            !tables.contains(&format!("table {family} fairlead"))
                || !tables.contains("goto arriving") && !tables.contains("goto leaving")
        }),
        "iptables" => ["iptables-save", "ip6tables-save"]
            .iter()
            .all(|program| !listed(node, program, "").contains("-j KUBE-SERVICES")),
        "ipvs" => ["iptables-save", "ip6tables-save"]
            .iter()
            .all(|program| !listed(node, program, "").contains("-j KUBE-IPVS-SERVICES")),
        _ => {
            let log = node.log().split_off(log);
            log.contains("the mode ebpf leaves new connections alone")
        }
    };
    eventually("new connections are left to the next mode", is_left_alone);
}

fn listed(node: &Node, program: &str, args: &str) -> String {
    let output = node.node().command(program).args(args.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "{program} {args}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn has_files(dir: &Path) -> bool {
    std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some())
}

/// At the socket, through packets, to itself, and over IPv6.
fn loads(node: &Node, client: &Pod, outside: &Node, alone: &Pod) -> Vec<Client> {
    let (fairlead, pace) = (node.fairlead(), Pace::of_this_machine());
    let mut loads = Vec::new();
    for (protocol, rate) in [(Protocol::Tcp, NEW), (Protocol::TcpKept, HELD)] {
        let load = |target: &str| {
            let target = target.parse().unwrap();
            let (rate, timeout) = (pace.rate(rate), pace.time(PATIENCE));
            Load { target, protocol, rate, until: Until::Told, timeout }
        };
        loads.push(fairlead.client(client, &load("10.96.0.10:80")).unwrap());
        loads.push(fairlead.client(client, &load("[fd00:10:96::a]:80")).unwrap());
        loads.push(fairlead.client(alone, &load("10.96.0.20:80")).unwrap());
        let node_port = format!("{}:{NODE_PORT}", node.node().addresses().both()[0]);
        loads.push(fairlead.client_on(outside.node(), &load(&node_port)).unwrap());
    }
    loads
}

/// Waits until everybody has sent for two more seconds.
fn all_go_on(loads: &[Client]) {
    let more = 2 * u64::from(Pace::of_this_machine().rate(HELD));
    let goals: Vec<_> = loads.iter().map(|load| load.tally().requests + more).collect();
    for (load, goal) in loads.iter().zip(goals) {
        eventually("requests are sent and end", || load.tally().requests >= goal);
    }
}
