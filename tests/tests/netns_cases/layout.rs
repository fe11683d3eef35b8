//! How the pods of the stage are connected: as one network plugin or another has it.

use std::net::IpAddr;

use ipnet::IpNet;
use sandbox::{Node, Pod};

use crate::stage::run;

/// How pods are connected to their node and to those of other nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// A link each, and routes between the nodes: as the sandbox has them.
    Routed,
    /// The pods of node-a are ports of a bridge, and reach each other without a router.
    Bridge,
    /// Packets between the nodes' pods go through a tunnel with Ethernet header.
    Vxlan,
    /// As routed, and the plugin has netfilter masquerade what pods send beyond the pods' network.
    Masquerade,
}

/// Where pods are.
const PODS: [&str; 2] = ["10.244.0.0/16", "fd00:10:244::/48"];

impl Layout {
    /// Connects them so, and not as the sandbox has them.
    pub(crate) fn arrange(self, node: &Node, far: &Node, pods: &[Pod]) {
        match self {
            Self::Routed => {}
            Self::Bridge => bridge(node, pods),
            Self::Vxlan => {
                tunnel(node, 1, 2);
                tunnel(far, 2, 1);
            }
            Self::Masquerade => masquerade(node),
        }
    }

    /// Whether netfilter of node-a masquerades what one of its pods sends there.
    pub(crate) fn masquerades(self, from: IpAddr, to: IpAddr) -> bool {
        let is_pod = |address: &IpAddr| {
            PODS.iter().any(|range| range.parse::<IpNet>().unwrap().contains(address))
        };
        self == Self::Masquerade && is_pod(&from) && !is_pod(&to)
    }
}

fn bridge(node: &Node, pods: &[Pod]) {
    let ip = |command: &str| run(node.command("ip"), command);
    ip("link add cni0 type bridge forward_delay 0");
    ip("link set cni0 up");
    ip("address add 10.244.1.1/24 dev cni0");
    ip("-6 address add fe80::1/64 dev cni0 nodad");
    ip("-6 address add fd00:10:244:1::1/64 dev cni0 nodad");
    let own = pods.iter().filter(|pod| pod.node().name() == node.name());
    for (idx, pod) in own.enumerate() {
        // The addresses go, and with them their routes, but for those to the pod.
        ip(&format!("address flush dev veth{idx}"));
        ip(&format!("-4 route flush {}/32", pod.addresses().v4));
        ip(&format!("-6 route flush {}/128", pod.addresses().v6));
        ip(&format!("link set veth{idx} master cni0"));
        run(pod.command("ip"), "route add 10.244.1.0/24 dev eth0 scope link");
        run(pod.command("ip"), "-6 route add fd00:10:244:1::/64 dev eth0");
    }
}

fn tunnel(node: &Node, own: u8, other: u8) {
    let ip = |command: &str| run(node.command("ip"), command);
    ip(&format!(
        "link add flannel.1 type vxlan id 1 dev eth0 dstport 8472 local 172.18.0.{own} remote \
         172.18.0.{other}"
    ));
    ip(&format!("address add 10.244.{own}.0/32 dev flannel.1"));
    ip(&format!("-6 address add fd00:10:244:{own}::1/128 dev flannel.1 nodad"));
    ip("link set flannel.1 up");
    ip(&format!("route replace 10.244.{other}.0/24 via 10.244.{other}.0 dev flannel.1 onlink"));
    ip(&format!("-6 route add fd00:10:244:{other}::1/128 dev flannel.1"));
    ip(&format!(
        "-6 route replace fd00:10:244:{other}::/64 via fd00:10:244:{other}::1 dev flannel.1"
    ));
}

fn masquerade(node: &Node) {
    for (family, range) in [("ip", PODS[0]), ("ip6", PODS[1])] {
        let nft = |command: &str| run(node.command("nft"), command);
        nft(&format!("add table {family} plugin"));
        nft(&format!(
            "add chain {family} plugin leaving {{ type nat hook postrouting priority 100; }}"
        ));
        nft(&format!(
            "add rule {family} plugin leaving {family} saddr {range} {family} daddr != {range} masquerade"
        ));
    }
}
