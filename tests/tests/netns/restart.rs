//! A proxy that dies, is replaced or has much to change, while clients go on.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use sandbox::{Pod, fairlead::Client, manifest::State, traffic::Protocol};
use tests::cluster::{
    Cluster, Node, SOON, Service, answered_by, endpoints, eventually, names, other_ebpf_object,
};

use crate::audit::bpftool;

/// New connections of each protocol in each phase.
const N: u64 = 200;

/// Everything that may notice: new connections of both families, and sockets that go on.
fn loads(cluster: &Cluster, client: &Pod, service: &Service) -> Vec<Client> {
    [
        (Protocol::Tcp, service.v4()),
        (Protocol::Http, service.v6()),
        (Protocol::Udp, service.mapped()),
        (Protocol::UdpUnconnected, service.v4()),
        (Protocol::UdpConnected, service.v6()),
    ]
    .into_iter()
    .map(|(protocol, target)| cluster.load(client, protocol, target))
    .collect()
}

/// Lets every client go on for a while.
fn phase(loads: &[Client]) {
    let goals: Vec<_> = loads.iter().map(|load| load.tally().requests + N).collect();
    for (load, goal) in loads.iter().zip(goals) {
        eventually("requests are sent and end", || load.tally().requests >= goal);
    }
}

fn none_failed(loads: Vec<Client>) {
    for load in loads {
        let tally = load.finish().unwrap();
        assert_eq!(tally.failures, BTreeMap::new(), "of {} requests", tally.requests);
    }
}

#[test]
fn no_connection_fails_before_during_or_after_a_kill_and_restart() {
    let cluster = Cluster::new();
    let mut node = cluster.node("node-a");
    let webs = node.webs(["web-1", "web-2", "web-3"]);
    let client = node.pod("client");
    let service = cluster.service("web", &webs);
    node.start_proxy();
    let loads = loads(&cluster, &client, &service);
    for _ in 0..3 {
        phase(&loads);
        node.kill_proxy();
        phase(&loads);
        node.start_proxy();
    }
    phase(&loads);
    none_failed(loads);
}

#[test]
fn no_connection_fails_when_another_build_takes_over() {
    let cluster = Cluster::new();
    let mut node = cluster.node("node-a");
    let webs = node.webs(["web-1", "web-2", "web-3"]);
    let client = node.pod("client");
    let service = cluster.service("web", &webs);
    node.start_proxy();
    let loads = loads(&cluster, &client, &service);
    let other = other_ebpf_object();
    for more in [&["--ebpf-object", &other][..], &[]] {
        phase(&loads);
        node.stop_proxy();
        phase(&loads);
        node.start_proxy_with(more);
    }
    phase(&loads);
    none_failed(loads);
}

#[test]
fn a_restart_has_no_program_verified_again_and_another_build_has_its_own() {
    let cluster = Cluster::new();
    let mut node = cluster.node("node-a");
    let webs = node.webs(["web-1", "web-2"]);
    let client = node.pod("client");
    let service = cluster.service("web", &webs);
    node.start_proxy();
    let first = programs(&node);
    eventually("the packet programs stay, too", || {
        kept_programs(&node).iter().any(|name| name.starts_with("tc_egress_l3-"))
    });
    let kept = kept_programs(&node);
    node.kill_proxy();

    node.start_proxy();
    assert_eq!(programs(&node), first, "the same programs");
    assert_eq!(kept_programs(&node), kept, "and no others");
    let tally = cluster.send(&client, Protocol::Tcp, service.v4(), 40);
    assert_eq!(answered_by(&tally), names(&webs));

    node.kill_proxy();
    node.start_proxy_with(&["--ebpf-object", &other_ebpf_object()]);
    let others = programs(&node);
    assert_eq!(others.keys().collect::<Vec<_>>(), first.keys().collect::<Vec<_>>());
    for (hook, program) in others {
        assert_ne!(first[&hook], program, "{hook} is another object's");
    }
    assert_eq!(kept_programs(&node), BTreeSet::new(), "none of before is kept");
    let tally = cluster.send(&client, Protocol::Tcp, service.v4(), 40);
    assert_eq!(answered_by(&tally), names(&webs));
}

/// What the hooks of a node's sockets run, by their names.
fn programs(node: &Node) -> BTreeMap<String, u64> {
    let links = std::fs::read_dir(node.bpffs().join("links")).unwrap();
    let program = |path: PathBuf| {
        let told = bpftool(node, &["-j", "link", "show", "pinned", path.to_str().unwrap()]);
        let told: serde_json::Value = serde_json::from_slice(&told).unwrap();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        (name, told.get("prog_id").and_then(serde_json::Value::as_u64).unwrap())
    };
    links.map(|link| program(link.unwrap().path())).collect()
}

/// The programs that are pinned for the next start.
fn kept_programs(node: &Node) -> BTreeSet<String> {
    let pins = std::fs::read_dir(node.bpffs().join("programs")).into_iter().flatten();
    pins.map(|pin| pin.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn no_connection_fails_while_endpoints_come_and_go() {
    let cluster = Cluster::new();
    let mut node = cluster.node("node-a");
    let webs = node.webs(["web-1", "web-2", "web-3", "web-4"]);
    let client = node.pod("client");
    let (cut, drained) = (cluster.service("cut", &webs), cluster.service("drained", &webs));
    node.start_proxy();
    let loads: Vec<_> = [
        (Protocol::Tcp, cut.v4()),
        (Protocol::Http, cut.v6()),
        (Protocol::UdpUnconnected, cut.v4()),
        // A question under way to an endpoint that is gone is cut short by design; one to an
        // endpoint that terminates is answered.
        (Protocol::Udp, drained.v4()),
        (Protocol::Udp, drained.mapped()),
    ]
    .into_iter()
    .map(|(protocol, target)| cluster.load(&client, protocol, target))
    .collect();
    for round in 0..60 {
        // One to three of the four stay, each time others.
        let mut endpoints = endpoints(&webs);
        endpoints.rotate_left(round % webs.len());
        let leaving = endpoints.split_off(1 + round % 3);
        cluster.set_endpoints(&cut, &endpoints);
        endpoints.extend(leaving.into_iter().map(|leaves| leaves.in_state(State::Terminating)));
        cluster.set_endpoints(&drained, &endpoints);
        assert!(loads[0].after(8, SOON), "{:?}", loads[0].tally());
    }
    none_failed(loads);
}

#[test]
fn what_changed_while_no_proxy_ran_is_in_force_after_the_start() {
    let cluster = Cluster::new();
    let mut node = cluster.node("node-a");
    let webs = node.webs(["web-1", "web-2", "web-3"]);
    let client = node.pod("client");
    let service = cluster.service("web", &webs);
    let gone = cluster.service("gone", &webs);
    node.start_proxy();
    assert_eq!(cluster.send(&client, Protocol::Tcp, gone.v4(), 5).failed, 0);

    node.kill_proxy();
    cluster.set_endpoints(&service, &endpoints(&webs[1..]));
    let added = cluster.service("added", &webs[..1]);
    cluster.folder().remove("gone-service").unwrap();
    let tally = cluster.send(&client, Protocol::Tcp, service.v4(), 100);
    assert_eq!(answered_by(&tally), names(&webs), "what was programmed goes on");

    node.start_proxy();
    let tally = cluster.send(&client, Protocol::Tcp, service.v4(), 100);
    assert_eq!(answered_by(&tally), names(&webs[1..]));
    assert_eq!(cluster.send(&client, Protocol::Tcp, added.v4(), 5).failed, 0);
    assert_eq!(cluster.send(&client, Protocol::Tcp, gone.v4(), 5).answered, 0);
}

#[test]
fn a_socket_that_was_opened_before_a_restart_is_watched_after_it() {
    let cluster = Cluster::new();
    let mut node = cluster.node("node-a");
    let webs = node.webs(["web-1", "web-2"]);
    let client = node.pod("client");
    let service = cluster.service("web", &webs);
    node.start_proxy();
    let load = cluster.load(&client, Protocol::UdpConnected, service.v4());
    assert!(load.after(20, SOON));
    let first = load.tally().answers.keys().next().unwrap().clone();
    node.kill_proxy();
    let staying: Vec<_> =
        endpoints(&webs).into_iter().filter(|endpoint| endpoint.pod() != first).collect();
    cluster.set_endpoints(&service, &staying);
    node.start_proxy();
    eventually("it reconnects to the other", || load.tally().answers.len() == 2);
    assert_eq!(load.finish().unwrap().failed, 1);
}

#[test]
fn cleanup_leaves_nothing_of_a_proxy_that_was_killed() {
    let cluster = Cluster::new();
    let mut node = cluster.node("node-a");
    let webs = node.webs(["web-1"]);
    let client = node.pod("client");
    let service = cluster.service("web", &webs);
    node.start_proxy();
    let refused = node.fairlead().cleanup(node.node(), node.bpffs()).unwrap();
    assert!(!refused.status.success(), "a running proxy is not cleaned up");
    assert_eq!(cluster.send(&client, Protocol::Tcp, service.v4(), 5).failed, 0);
    node.kill_proxy();
    let cleaned = node.fairlead().cleanup(node.node(), node.bpffs()).unwrap();
    assert!(cleaned.status.success(), "{cleaned:?}");
    assert_eq!(cluster.send(&client, Protocol::Tcp, service.v4(), 5).answered, 0);
    let left = std::fs::read_dir(node.bpffs()).map_or(0, Iterator::count);
    assert_eq!(left, 0, "nothing is pinned any more");
}
