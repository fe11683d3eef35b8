//! UDP flows that netfilter translates keep their endpoint when the eBPF mode takes over, for as long as
//! that serves.

use std::net::SocketAddr;
use std::time::Duration;

use sandbox::fairlead::Client;
use sandbox::manifest::Service;
use sandbox::traffic::{Load, Protocol, Until};
use sandbox::{Pod, hello};
use tests::cluster::{Cluster, Node, answered_by, endpoints, eventually};

const NODE_PORT: u16 = 30_053;

#[test]
fn a_udp_flow_stays_with_iptables_when_ebpf_takes_over() {
    stays_with("iptables");
}

mod long {
    #[test]
    fn a_udp_flow_stays_with_nftables_when_ebpf_takes_over() {
        super::stays_with("nftables");
    }
}

fn stays_with(mode: &str) {
    let cluster = Cluster::new();
    let mut node = cluster.node("node-a");
    let outside = cluster.node("outside");
    cluster.folder().remove("outside").unwrap();
    let client = node.pod("client");
    let webs = node.webs(["web-1", "web-2", "web-3", "web-4"]);
    let service = Service::new("default", "web")
        .cluster_ip([10, 96, 0, 10])
        .cluster_ip([0xfd00, 0x10, 0x96, 0, 0, 0, 0, 10])
        .udp("udp", 80, hello::PORT)
        .node_port(NODE_PORT);
    cluster.folder().write_service(&service, &endpoints(&webs)).unwrap();
    node.start_proxy_with(&[&format!("--proxy-mode={mode}")]);
    let flows = flows(&node, &client, &outside);
    go_on(&flows);
    let before: Vec<String> = flows.iter().map(the_one).collect();

    node.stop_proxy();
    node.start_proxy_with(&["--proxy-mode=ebpf"]);
    go_on(&flows);
    let after: Vec<String> = flows.iter().map(the_one).collect();
    assert_eq!(after, before, "{}", node.log());

    // Who was answered by one that serves no more is answered by another one now.
    let gone = before.first().unwrap().clone();
    let left: Vec<_> = webs.into_iter().filter(|web| web.pod.name() != gone).collect();
    cluster.folder().write_endpoints(&service, &endpoints(&left)).unwrap();
    for (flow, name) in flows.iter().zip(&before) {
        if *name == gone {
            eventually("another one answers", || answered_by(&flow.tally()).len() > 1);
        }
    }
    go_on(&flows);
    for (flow, name) in flows.into_iter().zip(&before) {
        let tally = flow.finish().unwrap();
        assert_eq!(answered_by(&tally).len(), 1 + usize::from(*name == gone));
    }
}

/// One socket each, connected: from outside to the node port, from a pod to both cluster IPs.
fn flows(node: &Node, client: &Pod, outside: &Node) -> Vec<Client> {
    let fairlead = node.fairlead();
    let load = |target: SocketAddr| Load {
        target,
        protocol: Protocol::UdpConnected,
        rate: 20,
        until: Until::Told,
        // Nobody sends a datagram again that a busy machine has lost; the next one tells as much.
        timeout: Duration::from_secs(2),
    };
    let mut flows = Vec::new();
    for ip in node.node().addresses().both() {
        for _ in 0..2 {
            let target = SocketAddr::new(ip, NODE_PORT);
            flows.push(fairlead.client_on(outside.node(), &load(target)).unwrap());
        }
    }
    for target in ["10.96.0.10:80", "[fd00:10:96::a]:80"] {
        flows.push(fairlead.client(client, &load(target.parse().unwrap())).unwrap());
    }
    flows
}

/// Waits until everybody was answered some times more; for longer than a flow is new to conntrack.
fn go_on(flows: &[Client]) {
    let goals: Vec<u64> = flows.iter().map(|flow| flow.tally().answered + 60).collect();
    for (flow, goal) in flows.iter().zip(goals) {
        eventually("answers come", || flow.tally().answered >= goal);
    }
}

/// Who answers a flow.
fn the_one(flow: &Client) -> String {
    let tally = flow.tally();
    let names = answered_by(&tally);
    assert_eq!(names.len(), 1, "{names:?} answer one flow");
    names.into_iter().next().unwrap().to_owned()
}
