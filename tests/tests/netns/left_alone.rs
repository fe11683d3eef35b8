//! Pods whose sockets are left alone: their packets name the Service, and are led to its endpoints all the same.

use std::collections::BTreeMap;

use sandbox::traffic::Protocol;
use sandbox::{Pod, Process, hello};
use tests::cluster::{Cluster, Node, SOON, Service, eventually, names};

const OFF: &str = "fairlead.dev/socket-lb: \"off\"";
const ON: &str = "fairlead.dev/socket-lb: \"on\"";
const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::UdpConnected, Protocol::UdpUnconnected];

/// A pod with the process by which its namespace is found, as every runtime's pods have one.
fn pods<const N: usize>(node: &Node, names: [&str; N]) -> [(Pod, Process); N] {
    names.map(|name| {
        let pod = node.pod(name);
        let pause = pod.command("sleep").arg("1000").spawn().unwrap();
        (pod, pause)
    })
}

/// Says of a pod what the API would.
fn tell_of(cluster: &Cluster, pod: &Pod, annotations: &str, spec: &str) {
    let (name, addresses) = (pod.name(), pod.addresses());
    let yaml = format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  uid: of-{name}\n  \
         annotations: {{{annotations}}}\nspec: {{nodeName: node-a, containers: []{spec}}}\n\
         status:\n  phase: Running\n  podIPs: [{{ip: {}}}, {{ip: \"{}\"}}]\n",
        addresses.v4, addresses.v6
    );
    cluster.folder().write(&format!("pod-{name}"), &yaml).unwrap();
}

fn tell_of_namespace(cluster: &Cluster, annotations: &str) {
    let yaml = format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: default, annotations: {{{annotations}}}}}\n"
    );
    cluster.folder().write("namespace", &yaml).unwrap();
}

fn nft(pod: &Pod, args: &[&str]) -> String {
    let output = pod.command("nft").args(args).output().unwrap();
    assert!(output.status.success(), "nft {args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Counts what leaves a pod for a Service's port, and for an endpoint's, before anybody else meets it.
fn count_packets(cluster: &Cluster, pods: &[&Pod]) {
    let rules = format!(
        "table inet seen {{\n  counter named {{ }}\n  counter led {{ }}\n  chain out {{\n    \
         type filter hook output priority 0;\n    meta l4proto {{ tcp, udp }} th dport 80 counter name \
         named\n    meta l4proto {{ tcp, udp }} th dport {} counter name led\n  }}\n}}\n",
        hello::PORT
    );
    let file = cluster.dir().join("seen.nft");
    std::fs::write(&file, rules).unwrap();
    for pod in pods {
        nft(pod, &["-f", file.to_str().unwrap()]);
    }
}

/// What a pod's packets name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Names {
    /// The Service: its sockets are left alone.
    Service,
    /// Endpoints: its sockets are translated.
    Endpoints,
}

/// What the packets name that a pod sends now, over one way.
fn sent(cluster: &Cluster, pod: &Pod, protocol: Protocol, target: std::net::SocketAddr) -> Names {
    let counted = |counter| {
        let text = nft(pod, &["reset", "counter", "inet", "seen", counter]);
        let after = text.split_once("packets ").unwrap().1;
        after.split(' ').next().unwrap().parse::<u64>().unwrap()
    };
    // What was counted before is nobody's now.
    let _before = (counted("named"), counted("led"));
    let tally = cluster.send(pod, protocol, target, 20);
    let way = format!("{} by {protocol} to {target}", pod.name());
    assert_eq!(tally.failures, BTreeMap::new(), "{way}");
    let peers: Vec<_> = tally.peers.keys().collect();
    assert_eq!(peers, [&target.to_string()], "{way}: a program hears whom it named");
    let (named, led) = (counted("named"), counted("led"));
    assert!((named == 0) != (led == 0), "{way}: {named} and {led} packets");
    if led == 0 { Names::Service } else { Names::Endpoints }
}

/// The same over every way, which must agree.
fn all_ways(cluster: &Cluster, pod: &Pod, service: &Service, expected: Names) {
    for target in service.ways() {
        for protocol in PROTOCOLS {
            let found = sent(cluster, pod, protocol, target);
            assert_eq!(found, expected, "{} by {protocol} to {target}", pod.name());
        }
    }
}

/// The same over two of them.
fn two_ways(cluster: &Cluster, pod: &Pod, service: &Service, expected: Names) {
    for (protocol, target) in
        [(Protocol::Tcp, service.v6()), (Protocol::UdpUnconnected, service.v4())]
    {
        let found = sent(cluster, pod, protocol, target);
        assert_eq!(found, expected, "{} by {protocol} to {target}", pod.name());
    }
}

/// Waits until a pod is left alone, or is not, and looks at what it sends.
fn eventually_names(cluster: &Cluster, node: &Node, pod: &Pod, service: &Service, expected: Names) {
    let line = format!("Pod default/{}\n", pod.name());
    let is_told = || status(node).contains(&line) == (expected == Names::Service);
    eventually("the proxy knows it", is_told);
    two_ways(cluster, pod, service, expected);
}

fn status(node: &Node) -> String {
    let command = node.node().command(node.fairlead().path());
    let output = command.args(["status", "--bpffs"]).args([node.bpffs()]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_pod_that_asks_for_it_is_left_alone_and_led_by_its_packets() {
    let cluster = Cluster::new();
    let mut node = cluster.node("node-a");
    let webs = node.webs(["web-1", "web-2"]);
    let [(meshed, _one), (neighbour, _other)] = pods(&node, ["meshed", "neighbour"]);
    let service = cluster.service("web", &webs);
    tell_of(&cluster, &meshed, OFF, "");
    tell_of(&cluster, &neighbour, "", "");
    count_packets(&cluster, &[&meshed, &neighbour]);
    // Of these it cannot be done.
    let [agent, odd, gone] = ["agent", "odd", "gone"].map(|name| node.pod(name));
    tell_of(&cluster, &agent, OFF, ", hostNetwork: true");
    tell_of(&cluster, &odd, "fairlead.dev/socket-lb: never", "");
    tell_of(&cluster, &gone, OFF, "");
    gone.remove().unwrap();

    node.start_proxy();
    // From the first call on.
    all_ways(&cluster, &meshed, &service, Names::Service);
    all_ways(&cluster, &neighbour, &service, Names::Endpoints);
    let tally = cluster.send(&meshed, Protocol::Tcp, service.v4(), 100);
    assert_eq!(tests::cluster::answered_by(&tally), names(&webs), "every endpoint serves it");
    let told = [
        "Pod default/meshed\n",
        "left alone  Pod default/gone (no network namespace of this node is its)\n",
        "Pod default/agent: metadata.annotations[fairlead.dev/socket-lb]: it says \"off\", but with \
         hostNetwork its sockets are the node's",
        "Pod default/odd: metadata.annotations[fairlead.dev/socket-lb]: \"never\" is neither on nor off",
    ];
    eventually("all of it is told", || {
        let status = status(&node);
        told.iter().all(|line| status.contains(line))
    });

    // So it is after a restart, and after another mode.
    node.kill_proxy();
    two_ways(&cluster, &meshed, &service, Names::Service);
    node.start_proxy();
    two_ways(&cluster, &meshed, &service, Names::Service);
    node.stop_proxy();
    node.start_proxy_with(&["--proxy-mode=nftables"]);
    eventually("no socket is translated", || {
        node.log().contains("the mode ebpf leaves new connections alone")
    });
    two_ways(&cluster, &neighbour, &service, Names::Service);
    tell_of(&cluster, &meshed, "", "");
    tell_of(&cluster, &neighbour, OFF, "");
    node.stop_proxy();
    node.start_proxy();
    two_ways(&cluster, &neighbour, &service, Names::Service);
    // One socket: others might get ports of connections that were closed a moment ago.
    let one = sent(&cluster, &meshed, Protocol::UdpUnconnected, service.v6());
    assert_eq!(one, Names::Endpoints);
}

#[test]
fn a_namespace_asks_for_its_pods_and_its_pods_differ_and_what_is_open_goes_on() {
    let cluster = Cluster::new();
    let mut node = cluster.node("node-a");
    let webs = node.webs(["web-1", "web-2"]);
    let [(plain, _one), (other, _other)] = pods(&node, ["plain", "other"]);
    let service = cluster.service("web", &webs);
    tell_of(&cluster, &plain, "", "");
    tell_of(&cluster, &other, ON, "");
    count_packets(&cluster, &[&plain, &other]);
    node.start_proxy();
    two_ways(&cluster, &plain, &service, Names::Endpoints);
    let protocols = [Protocol::TcpKept, Protocol::UdpConnected, Protocol::UdpUnconnected];
    let open = protocols.map(|protocol| cluster.load(&plain, protocol, service.v4()));
    assert!(open.iter().all(|load| load.after(20, SOON)));

    tell_of_namespace(&cluster, OFF);
    eventually("it is told of", || status(&node).contains("left alone  Pod default/plain\n"));
    // What is open sends, too: by itself it says nothing of new calls.
    assert!(open.iter().all(|load| load.after(20, SOON)));
    for load in open {
        let tally = load.finish().unwrap();
        assert_eq!(tally.failures, BTreeMap::new());
        assert_eq!(tally.peers.keys().collect::<Vec<_>>(), [&service.v4().to_string()]);
    }
    two_ways(&cluster, &plain, &service, Names::Service);
    two_ways(&cluster, &other, &service, Names::Endpoints);

    tell_of_namespace(&cluster, "");
    eventually_names(&cluster, &node, &plain, &service, Names::Endpoints);
    tell_of(&cluster, &plain, OFF, "");
    eventually_names(&cluster, &node, &plain, &service, Names::Service);
    cluster.folder().remove("pod-plain").unwrap();
    eventually_names(&cluster, &node, &plain, &service, Names::Endpoints);
}
