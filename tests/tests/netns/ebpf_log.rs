//! A build with `--ebpf-log` writes one record from each hook; a normal one writes none.

use sandbox::traffic::Protocol;
use tests::cluster::{Cluster, eventually, other_ebpf_object};

const HOOKS: [&str; 9] = [
    "connect4",
    "connect6",
    "sendmsg4",
    "sendmsg6",
    "recvmsg4",
    "recvmsg6",
    "getpeername4",
    "getpeername6",
    "sock_release",
];

#[test]
fn each_hook_writes_a_record_in_a_build_with_a_log() {
    let cluster = Cluster::new();
    let mut node = cluster.node("node-a");
    let webs = node.webs(["web-1"]);
    let service = cluster.service("web", &webs);
    let client = node.pod("client");
    node.start_proxy_with(&["--ebpf-object", &other_ebpf_object()]);
    for protocol in [Protocol::Tcp, Protocol::UdpConnected, Protocol::UdpUnconnected] {
        for target in [service.v4(), service.v6()] {
            cluster.send(&client, protocol, target, 3);
        }
    }
    for hook in HOOKS {
        let recorded = || node.log().lines().any(|line| line.ends_with(&format!(" {hook}")));
        eventually(&format!("a record from {hook}"), recorded);
    }
}

#[test]
fn a_normal_build_writes_no_record() {
    let cluster = Cluster::new();
    let mut node = cluster.node("node-a");
    let webs = node.webs(["web-1"]);
    let service = cluster.service("web", &webs);
    let client = node.pod("client");
    node.start_proxy();
    let tally = cluster.send(&client, Protocol::Tcp, service.v4(), 3);
    assert_eq!(tally.answered, 3, "{:?}", tally.failures);
    node.stop_proxy();
    let log = node.log();
    assert!(!HOOKS.iter().any(|hook| log.contains(hook)), "{log}");
}
