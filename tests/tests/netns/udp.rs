//! UDP sockets that outlive one question: resolvers, games, loggers.

use std::collections::BTreeMap;

use sandbox::traffic::Protocol;
use tests::cluster::{Cluster, SOON, answered_by, endpoints, eventually};

#[test]
fn an_unconnected_socket_keeps_its_endpoint_and_hears_the_service() {
    let cluster = Cluster::new();
    let mut node = cluster.node("node-a");
    let webs = node.webs(["web-1", "web-2", "web-3"]);
    let client = node.pod("client");
    let service = cluster.service("web", &webs);
    node.start_proxy();
    for target in service.ways() {
        let tally = cluster.send(&client, Protocol::UdpUnconnected, target, 200);
        assert_eq!(tally.failures, BTreeMap::new(), "{target}");
        assert_eq!(answered_by(&tally).len(), 1, "{target}: {:?}", tally.answers);
        let peers: Vec<_> = tally.peers.keys().collect();
        assert_eq!(peers, [&target.to_string()], "recvfrom() shows the Service");
    }
}

#[test]
fn an_unconnected_socket_moves_when_its_endpoint_goes() {
    let cluster = Cluster::new();
    let mut node = cluster.node("node-a");
    let webs = node.webs(["web-1", "web-2"]);
    let client = node.pod("client");
    let service = cluster.service("web", &webs);
    node.start_proxy();
    for target in service.ways() {
        cluster.set_endpoints(&service, &endpoints(&webs));
        let load = cluster.load(&client, Protocol::UdpUnconnected, target);
        assert!(load.after(50, SOON), "{target}: {:?}", load.tally());
        let first = only_answer(&load.tally().answers);
        let staying: Vec<_> =
            endpoints(&webs).into_iter().filter(|endpoint| endpoint.pod() != first).collect();
        cluster.set_endpoints(&service, &staying);
        eventually("another endpoint answers", || load.tally().answers.len() == 2);
        let tally = load.finish().unwrap();
        assert_eq!(tally.failures, BTreeMap::new(), "{target}");
    }
}

#[test]
fn a_connected_socket_whose_endpoint_is_gone_gets_an_error_and_reconnects() {
    let cluster = Cluster::new();
    let mut node = cluster.node("node-a");
    let mut webs = node.webs(["web-1", "web-2", "web-3"]);
    let client = node.pod("client");
    let service = cluster.service("web", &webs);
    node.start_proxy();
    for target in [service.v4(), service.mapped()] {
        let load = cluster.load(&client, Protocol::UdpConnected, target);
        assert!(load.after(50, SOON), "{target}: {:?}", load.tally());
        let first = only_answer(&load.tally().answers);
        let leaving = webs.iter().position(|web| web.pod.name() == first).unwrap();
        let leaving = webs.remove(leaving);
        // Nobody says that it is gone: without the error, the socket would wait for ever.
        leaving.server.freeze().unwrap();
        cluster.set_endpoints(&service, &endpoints(&webs));
        eventually("another endpoint answers", || load.tally().answers.len() == 2);
        let tally = load.finish().unwrap();
        let failures: Vec<_> = tally.failures.keys().map(String::as_str).collect();
        assert!(
            failures
                .iter()
                .all(|failure| ["recv: ECONNABORTED", "send: EDESTADDRREQ"].contains(failure)),
            "{target}: {failures:?}"
        );
        assert_eq!(tally.failed, 1, "{target}: one error tells it to reconnect: {failures:?}");
    }
}

#[test]
fn a_connected_ipv6_socket_reconnects_too() {
    let cluster = Cluster::new();
    let mut node = cluster.node("node-a");
    let webs = node.webs(["web-1", "web-2"]);
    let client = node.pod("client");
    let service = cluster.service("web", &webs);
    node.start_proxy();
    let load = cluster.load(&client, Protocol::UdpConnected, service.v6());
    assert!(load.after(50, SOON), "{:?}", load.tally());
    let first = only_answer(&load.tally().answers);
    let staying: Vec<_> =
        endpoints(&webs).into_iter().filter(|endpoint| endpoint.pod() != first).collect();
    // The server runs on: it is the Service that has let go of it.
    cluster.set_endpoints(&service, &staying);
    eventually("another endpoint answers", || load.tally().answers.len() == 2);
    let tally = load.finish().unwrap();
    assert_eq!(tally.failed, 1, "{:?}", tally.failures);
}

#[test]
fn connected_sockets_of_other_endpoints_are_left_alone() {
    let cluster = Cluster::new();
    let mut node = cluster.node("node-a");
    let webs = node.webs(["web-1", "web-2"]);
    let client = node.pod("client");
    let (web, other) = (cluster.service("web", &webs), cluster.service("other", &webs[1..]));
    node.start_proxy();
    let loads = [
        cluster.load(&client, Protocol::UdpConnected, other.v4()),
        // Past the Service, to the endpoint that leaves it.
        cluster.load(&client, Protocol::UdpConnected, (webs[0].pod.addresses().v4, 8080).into()),
    ];
    assert!(loads.iter().all(|load| load.after(20, SOON)));
    let mover = cluster.load(&client, Protocol::UdpConnected, web.v4());
    assert!(mover.after(20, SOON));
    cluster.set_endpoints(&web, &[]);
    eventually("the Service's own socket ends", || mover.tally().failed > 0);
    for load in loads {
        assert!(load.after(20, SOON));
        assert_eq!(load.finish().unwrap().failures, BTreeMap::new());
    }
}

fn only_answer(answers: &BTreeMap<String, u64>) -> String {
    assert_eq!(answers.len(), 1, "a kept socket keeps its endpoint: {answers:?}");
    answers.keys().next().unwrap().clone()
}
