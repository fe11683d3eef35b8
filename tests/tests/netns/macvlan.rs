//! Pods whose packets do not pass their node.

use sandbox::Pod;
use sandbox::hello;
use sandbox::traffic::Protocol;
use tests::cluster::{Cluster, Node, answered_by, eventually};

/// Puts a pod on the link between the nodes, by a macvlan instead of its own link. A process that
/// runs there tells the kernel where that is.
fn put_behind_macvlan(node: &Node, pod: &Pod, process: u32, address: &str) {
    let of_node = |command: &str| run(node.node().command("ip"), command);
    of_node("link add mv0 link eth0 type macvlan mode bridge");
    of_node(&format!("link set mv0 netns {process}"));
    let of_pod = |command: &str| run(pod.command("ip"), command);
    of_pod("link del eth0");
    of_pod(&format!("address add {address}/16 dev mv0"));
    of_pod("link set mv0 up");
    of_pod("route add default via 172.18.0.1 dev mv0");
}

fn run(ip: sandbox::Launch, command: &str) {
    let output = ip.args(command.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {command}: {output:?}");
}

/// A Service with an endpoint at an address of its own.
fn behind(address: &str) -> String {
    let port = hello::PORT;
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{namespace: default, name: web}}\nspec:\n  \
         clusterIP: 10.96.0.10\n  ports: [{{name: t, port: 80}}, {{name: u, port: 80, protocol: \
         UDP}}]\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{namespace: \
         default, name: web-1, labels: {{kubernetes.io/service-name: web}}}}\naddressType: IPv4\n\
         ports: [{{name: t, port: {port}}}, {{name: u, port: {port}, protocol: UDP}}]\nendpoints: \
         [{{addresses: [{address}], nodeName: node-a}}]\n"
    )
}

#[test]
fn a_pod_behind_a_macvlan_reaches_cluster_ips_and_is_told_of() {
    let cluster = Cluster::new();
    let mut node = cluster.node("node-a");
    let web = node.web("web-1");
    let client = node.pod("client");
    let sleeper = client.command("sleep").args(["60"]).spawn().unwrap();
    put_behind_macvlan(&node, &web.pod, web.server.id(), "172.18.7.1");
    put_behind_macvlan(&node, &client, sleeper.id(), "172.18.7.2");
    cluster.folder().write("web", &behind("172.18.7.1")).unwrap();
    node.start_proxy();
    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::UdpUnconnected] {
        let tally = cluster.send(&client, protocol, "10.96.0.10:80".parse().unwrap(), 50);
        assert_eq!(tally.failed, 0, "{protocol}: {tally:?}");
        assert_eq!(answered_by(&tally).into_iter().collect::<Vec<_>>(), ["web-1"]);
    }
    eventually("it is warned of", || {
        let log = node.log();
        log.contains("behind a macvlan device") && log.contains("172.18.7.1")
    });
}
