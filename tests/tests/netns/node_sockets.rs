//! What sockets of the node and of pods name besides cluster IPs, and who is led where.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};

use abi::counter::Counter;
use sandbox::traffic::Protocol;
use tests::cluster::{Cluster, Node, Service, Web, answered_by, endpoints, eventually, names};

const NODE_PORT: u16 = 30_080;
const UDP_NODE_PORT: u16 = 30_081;

/// Asks for more in a Service that the cluster has.
fn edit(cluster: &Cluster, name: &str, spec: &str, edits: &[(&str, &str)]) {
    let file = format!("{name}-service");
    let yaml = fs::read_to_string(cluster.folder().path().join(format!("{file}.yaml"))).unwrap();
    let yaml = edits.iter().fold(yaml, |yaml, (from, to)| yaml.replace(from, to));
    cluster.folder().write(&file, &(yaml + spec)).unwrap();
}

/// Makes a Service one with a node port for each of its two ports.
fn with_node_ports(cluster: &Cluster, name: &str) {
    let (tcp, udp) = (
        format!("protocol: TCP\n    nodePort: {NODE_PORT}\n"),
        format!("protocol: UDP\n    nodePort: {UDP_NODE_PORT}\n"),
    );
    edit(
        cluster,
        name,
        "",
        &[
            ("type: ClusterIP", "type: NodePort"),
            ("protocol: TCP\n", &tcp),
            ("protocol: UDP\n", &udp),
        ],
    );
}

/// Who answers a process of the node, and how many requests failed.
fn from_node(node: &Node, protocol: Protocol, target: SocketAddr) -> (BTreeSet<String>, u64) {
    let (target, protocol) = (target.to_string(), protocol.to_string());
    let args = ["client", "--target", &target, "--protocol", &protocol];
    let more = ["--duration-ms", "300", "--timeout-ms", "300"];
    let output =
        node.node().command(node.fairlead().path()).args(args).args(more).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let tally: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    let answers = tally.get("answers").and_then(|answers| answers.as_object()).unwrap();
    let failed = tally.get("failed").and_then(serde_json::Value::as_u64).unwrap();
    (answers.keys().cloned().collect(), failed)
}

fn all(webs: &[Web]) -> BTreeSet<String> {
    names(webs).into_iter().map(str::to_owned).collect()
}

fn ip(node: &Node, args: &str) {
    let output = node.node().command("ip").args(args.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {args}: {output:?}");
}

#[test]
fn the_node_reaches_node_ports_at_each_of_its_addresses_and_at_loopback() {
    let cluster = Cluster::new();
    let mut node = cluster.node("node-a");
    let webs = node.webs(["web-1", "web-2"]);
    cluster.service("web", &webs);
    with_node_ports(&cluster, "web");
    node.start_proxy();
    let own = node.node().addresses();
    let addresses: [IpAddr; 5] = [
        own.v4.into(),
        own.v6.into(),
        [127, 0, 0, 1].into(),
        std::net::Ipv6Addr::LOCALHOST.into(),
        own.v4.to_ipv6_mapped().into(),
    ];
    for address in addresses {
        for (protocol, port) in [
            (Protocol::Tcp, NODE_PORT),
            (Protocol::UdpConnected, UDP_NODE_PORT),
            (Protocol::Udp, UDP_NODE_PORT),
        ] {
            let (answers, failed) = from_node(&node, protocol, (address, port).into());
            assert_eq!(failed, 0, "{protocol} to {address}");
            assert!(!answers.is_empty() && answers.is_subset(&all(&webs)), "{answers:?}");
        }
    }
    let (_, failed) = from_node(&node, Protocol::Tcp, (own.v4, 30_082).into());
    assert!(failed > 0, "a port that no Service has");
}

#[test]
fn an_address_serves_node_ports_as_long_as_the_node_has_it() {
    let cluster = Cluster::new();
    let mut node = cluster.node("node-a");
    let webs = node.webs(["web-1"]);
    cluster.service("web", &webs);
    with_node_ports(&cluster, "web");
    node.start_proxy();
    for (address, prefix) in [("192.0.2.7", "32"), ("2001:db8::7", "128")] {
        let target = SocketAddr::new(address.parse().unwrap(), NODE_PORT);
        ip(&node, &format!("addr add {address}/{prefix} dev lo"));
        eventually("the new address serves", || {
            from_node(&node, Protocol::Tcp, target).0 == all(&webs)
        });
        ip(&node, &format!("addr del {address}/{prefix} dev lo"));
        eventually("the old address does not", || {
            from_node(&node, Protocol::Tcp, target).0.is_empty()
        });
    }
}

#[test]
fn a_pods_loopback_is_its_own() {
    let cluster = Cluster::new();
    let mut node = cluster.node("node-a");
    let webs = node.webs(["web-1"]);
    let client = node.pod("client");
    cluster.service("web", &webs);
    with_node_ports(&cluster, "web");
    node.start_proxy();
    let own: [IpAddr; 2] = [[127, 0, 0, 1].into(), std::net::Ipv6Addr::LOCALHOST.into()];
    for address in own {
        let tally = cluster.send(&client, Protocol::Tcp, (address, NODE_PORT).into(), 50);
        assert_eq!(tally.answered, 0, "{address}");
    }
}

#[test]
fn a_client_keeps_its_endpoint_while_that_is_there() {
    let cluster = Cluster::new();
    let mut node = cluster.node("node-a");
    let webs = node.webs(["web-1", "web-2", "web-3", "web-4"]);
    let client = node.pod("client");
    let service = cluster.service("web", &webs);
    edit(&cluster, "web", "  sessionAffinity: ClientIP\n", &[]);
    node.start_proxy();
    let met = |service: &Service, protocol| {
        let target = service.v4();
        let tally = cluster.send(&client, protocol, target, 50);
        let met = answered_by(&tally);
        assert_eq!((tally.failed, met.len()), (0, 1), "{met:?}");
        (*met.first().unwrap()).to_owned()
    };
    let first = met(&service, Protocol::Tcp);
    assert_eq!(met(&service, Protocol::Tcp), first);
    met(&service, Protocol::Udp);
    let v6 = cluster.send(&client, Protocol::Tcp, service.v6(), 50);
    assert_eq!(answered_by(&v6).len(), 1, "of IPv6 by itself");

    let staying: Vec<_> =
        endpoints(&webs).into_iter().filter(|endpoint| endpoint.pod() != first).collect();
    cluster.set_endpoints(&service, &staying);
    eventually("its endpoint is gone", || {
        let tally = cluster.send(&client, Protocol::Tcp, service.v4(), 50);
        !answered_by(&tally).contains(&*first)
    });
    let second = met(&service, Protocol::Tcp);
    node.kill_proxy();
    cluster.set_endpoints(&service, &endpoints(&webs));
    node.start_proxy();
    assert_eq!(met(&service, Protocol::Tcp), second, "also after a restart");
    edit(&cluster, "web", "", &[("  sessionAffinity: ClientIP\n", "")]);
    eventually("it may go to others", || {
        answered_by(&cluster.send(&client, Protocol::Tcp, service.v4(), 50)) == names(&webs)
    });
}

/// How many calls were led to an endpoint.
fn n_translated(node: &Node) -> u64 {
    let pinned = load::pinned::Pinned::under(node.bpffs());
    let counters = pinned.counters().unwrap();
    counters.into_iter().find(|(counter, _)| *counter == Counter::Translated).unwrap().1
}

#[test]
fn only_those_sockets_are_translated_that_ought_to_be() {
    let cluster = Cluster::new();
    let mut node = cluster.node("node-a");
    let webs = node.webs(["web-1"]);
    let client = node.pod("client");
    let service = cluster.service("web", &webs);
    for (whose, pods, own) in
        [("all", true, true), ("host", false, true), ("off", false, false), ("all", true, true)]
    {
        node.start_proxy_with(&["--socket-lb", whose]);
        let before = n_translated(&node);
        cluster.send(&client, Protocol::Tcp, service.v4(), 50);
        let between = n_translated(&node);
        from_node(&node, Protocol::Tcp, service.v6());
        let after = n_translated(&node);
        assert_eq!((between > before, after > between), (pods, own), "--socket-lb={whose}");
        node.stop_proxy();
    }
}

/// The ports that sockets of the node do not get unless they ask for them.
fn reserved(node: &Node) -> String {
    let file = "/proc/sys/net/ipv4/ip_local_reserved_ports";
    let output = node.node().command("cat").args([file]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn a_node_port_is_kept_from_other_sockets_of_the_node() {
    let cluster = Cluster::new();
    let mut node = cluster.node("node-a");
    let webs = node.webs(["web-1"]);
    cluster.service("web", &webs);
    with_node_ports(&cluster, "web");
    node.start_proxy_with(&["--protect-node-ports"]);
    eventually("node ports and those of masqueraded connections are reserved", || {
        reserved(&node) == "30080-30081,49152-65535"
    });
    for listen in ["0.0.0.0:30080", "[::]:30080"] {
        let path = node.fairlead().path().to_str().unwrap();
        let args = ["1", path, "hello", "--name", "x", "--listen", listen];
        let output = node.node().command("timeout").args(args).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("in use"), "{listen}: {said}");
    }
    node.kill_proxy();
    assert!(node.fairlead().cleanup(node.node(), node.bpffs()).unwrap().status.success());
    assert_eq!(reserved(&node), "", "nothing is reserved any more");
}

#[test]
fn a_port_that_a_cluster_ip_has_not_is_refused_at_once() {
    let cluster = Cluster::new();
    let mut node = cluster.node("node-a");
    let webs = node.webs(["web-1"]);
    let client = node.pod("client");
    let service = cluster.service("web", &webs);
    node.start_proxy();
    for target in service.ways() {
        let target = SocketAddr::new(target.ip(), 81);
        for protocol in [Protocol::Tcp, Protocol::UdpUnconnected] {
            let tally = cluster.send(&client, protocol, target, 50);
            let refused = tally.failures.keys().all(|reason| reason.contains("ECONNREFUSED"));
            assert!(tally.answered == 0 && tally.failed > 0 && refused, "{target}: {tally:?}");
        }
    }
}

#[test]
fn connections_are_counted_by_service_and_endpoint_and_refusals_are_told() {
    let cluster = Cluster::new();
    let mut node = cluster.node("node-a");
    let webs = node.webs(["web-1", "web-2"]);
    let client = node.pod("client");
    let service = cluster.service("web", &webs);
    let empty = cluster.service("empty", &[]);
    node.start_proxy();
    let sent = cluster.send(&client, Protocol::Tcp, service.v4(), 20).answered
        + cluster.send(&client, Protocol::Tcp, service.v6(), 20).answered;
    let bpffs = node.bpffs().to_str().unwrap();
    let said = |args: &[&str]| {
        let command = node.node().command(node.fairlead().path());
        String::from_utf8(command.args(args).output().unwrap().stdout).unwrap()
    };
    let line = format!("default/web:tcp: {sent} connections");
    eventually("all are counted, by name", || {
        said(&["status", "--services", "--bpffs", bpffs]).contains(&line)
    });
    // An endpoint that goes takes nothing with it.
    cluster.set_endpoints(&service, &endpoints(&webs[..1]));
    eventually("one endpoint is left", || {
        let status = said(&["status", "--services", "--bpffs", bpffs]);
        status.contains(&line)
            && !status.contains(&webs.last().unwrap().pod.addresses().v4.to_string())
    });

    let path = node.fairlead().path().to_owned();
    let monitor = node.node().command(&path);
    let monitor = monitor.args(["monitor", "--count", "1", "--bpffs", bpffs]);
    let told = std::thread::scope(|scope| {
        let told = scope.spawn(|| monitor.output().unwrap());
        eventually("it tells of a refusal", || {
            cluster.send(&client, Protocol::Tcp, empty.v4(), 50);
            told.is_finished()
        });
        told.join().unwrap()
    });
    let told = String::from_utf8(told.stdout).unwrap();
    let expected = format!("a socket → {}/tcp (Service default/empty:tcp): refused", empty.v4());
    assert!(told.contains(&expected), "{told}");
}
