//! A ClusterIP Service, as pods of the node see it.

use std::{collections::BTreeMap, net::TcpStream, time::Duration};

use sandbox::{
    manifest::{Endpoint, State},
    traffic::Protocol,
};
use tests::cluster::{Cluster, answered_by, endpoints, eventually, names};

const NEW_SOCKETS: [Protocol; 3] = [Protocol::Tcp, Protocol::Http, Protocol::Udp];

#[test]
fn every_endpoint_is_reached_over_every_protocol_and_family() {
    let cluster = Cluster::new();
    let mut node = cluster.node("node-a");
    let webs = node.webs(["web-1", "web-2", "web-3"]);
    let client = node.pod("client");
    let service = cluster.service("web", &webs);
    node.start_proxy();
    for target in service.ways() {
        for protocol in NEW_SOCKETS {
            let tally = cluster.send(&client, protocol, target, 150);
            assert_eq!(tally.failures, BTreeMap::new(), "{protocol} {target}");
            assert_eq!(answered_by(&tally), names(&webs), "{protocol} {target}");
            let peers: Vec<_> = tally.peers.keys().collect();
            assert_eq!(peers, [&target.to_string()], "getpeername() shows the Service");
        }
    }
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    let cluster = Cluster::new();
    let mut node = cluster.node("node-a");
    let webs = node.webs(["web-1", "web-2"]);
    let service = cluster.service("web", &webs);
    node.start_proxy();
    for target in service.ways() {
        let tally = cluster.send(&webs[0].pod, Protocol::Tcp, target, 100);
        assert_eq!(tally.failures, BTreeMap::new(), "{target}");
        assert_eq!(answered_by(&tally), names(&webs), "{target}");
    }
}

#[test]
fn processes_of_the_node_itself_reach_the_service() {
    let cluster = Cluster::new();
    let mut node = cluster.node("node-a");
    let webs = node.webs(["web-1", "web-2"]);
    let service = cluster.service("web", &webs);
    node.start_proxy();
    for target in service.ways() {
        let target = target.to_string();
        let args = ["client", "--target", &target, "--duration-ms", "500"];
        let output = node.node().command(node.fairlead().path()).args(args).output().unwrap();
        let last = String::from_utf8(output.stdout).unwrap().lines().last().unwrap().to_owned();
        assert!(last.contains("\"failed\":0,") && last.contains("web-1"), "{target}: {last}");
    }
}

#[test]
fn a_service_without_endpoints_is_refused_at_connect() {
    let cluster = Cluster::new();
    let mut node = cluster.node("node-a");
    let client = node.pod("client");
    let service = cluster.service("web", &[]);
    node.start_proxy();
    for target in service.ways() {
        for protocol in NEW_SOCKETS {
            let tally = cluster.send(&client, protocol, target, 20);
            assert_eq!(tally.answered, 0);
            let failures: Vec<_> = tally.failures.keys().collect();
            assert_eq!(failures, ["connect: ECONNREFUSED"], "{protocol} {target}");
        }
    }
}

#[test]
fn a_service_is_refused_while_it_has_no_endpoint_and_only_then() {
    let cluster = Cluster::new();
    let mut node = cluster.node("node-a");
    let webs = node.webs(["web-1"]);
    let client = node.pod("client");
    let service = cluster.service("web", &webs);
    node.start_proxy();
    let answers = || cluster.send(&client, Protocol::Tcp, service.v4(), 5).answered;
    assert!(answers() > 0);
    cluster.set_endpoints(&service, &[]);
    eventually("it is refused", || answers() == 0);
    cluster.set_endpoints(&service, &endpoints(&webs));
    eventually("it is routed again", || answers() > 0);
}

#[test]
fn endpoints_that_are_not_ready_get_nothing_and_terminating_ones_the_rest() {
    let cluster = Cluster::new();
    let mut node = cluster.node("node-a");
    let webs = node.webs(["web-1", "web-2", "web-3"]);
    let client = node.pod("client");
    let service = cluster.service("web", &webs);
    let [ready, terminating, not_ready] =
        [0, 1, 2].map(|web_idx: usize| Endpoint::of(&webs[web_idx].pod));
    let terminating = terminating.in_state(State::Terminating);
    let not_ready = not_ready.in_state(State::NotReady);
    cluster.set_endpoints(&service, &[ready, terminating.clone(), not_ready.clone()]);
    node.start_proxy();
    let tally = cluster.send(&client, Protocol::Tcp, service.v4(), 60);
    assert_eq!(answered_by(&tally), ["web-1"].into());

    // Better one that is about to end than none.
    cluster.set_endpoints(&service, &[terminating, not_ready]);
    eventually("the terminating endpoint serves", || {
        let tally = cluster.send(&client, Protocol::Tcp, service.v4(), 20);
        answered_by(&tally) == ["web-2"].into()
    });
}

#[test]
fn sockets_outside_the_cgroup_are_led_by_their_packets() {
    let cluster = Cluster::new();
    let mut node = cluster.node("node-a");
    let webs = node.webs(["web-1"]);
    let client = node.pod("client");
    let service = cluster.service("web", &webs);
    node.start_proxy();
    let connect = || TcpStream::connect_timeout(&service.v4(), Duration::from_millis(500));
    let outside = client.netns().run(connect).unwrap();
    outside.expect("the namespace is the pod's, the cgroup is not");
    assert_eq!(cluster.send(&client, Protocol::Tcp, service.v4(), 5).failed, 0);
}

#[test]
fn each_of_two_nodes_routes_to_all_endpoints_across_the_link_between_them() {
    let cluster = Cluster::new();
    let (mut a, mut b) = (cluster.node("node-a"), cluster.node("node-b"));
    let mut webs = a.webs(["web-a1", "web-a2"]);
    webs.extend(b.webs(["web-b1", "web-b2"]));
    let clients = [a.pod("client-a"), b.pod("client-b")];
    let service = cluster.service("web", &webs);
    a.start_proxy();
    b.start_proxy();
    let sent_before = a.node().packets().unwrap().sent;
    for client in &clients {
        for target in service.ways() {
            for protocol in NEW_SOCKETS {
                let tally = cluster.send(client, protocol, target, 100);
                let way = format!("{} {protocol} {target}", client.name());
                assert_eq!(tally.failures, BTreeMap::new(), "{way}");
                assert_eq!(answered_by(&tally), names(&webs), "{way}");
            }
        }
    }
    let sent = a.node().packets().unwrap().sent - sent_before;
    assert!(sent > 500, "{sent} packets crossed the link");
}

#[test]
fn a_node_without_a_proxy_is_not_served_by_its_neighbours() {
    let cluster = Cluster::new();
    let (mut a, b) = (cluster.node("node-a"), cluster.node("node-b"));
    let webs = a.webs(["web-1"]);
    let (served, alone) = (a.pod("served"), b.pod("alone"));
    let service = cluster.service("web", &webs);
    a.start_proxy();
    assert_eq!(cluster.send(&served, Protocol::Tcp, service.v4(), 20).failed, 0);
    assert_eq!(cluster.send(&alone, Protocol::Tcp, service.v4(), 20).answered, 0);
}
