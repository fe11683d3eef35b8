//! The chains' names, as kube-proxy has them: tools know them. `[pure]`

use data_encoding::BASE32;
use model::name::{Protocol, ServicePortName};
use ring::digest::{SHA256, digest};

/// Where a packet looks for a frontend.
pub(super) const SERVICES: &str = "KUBE-SERVICES";
/// The frontends of node ports.
pub(super) const NODE_PORTS: &str = "KUBE-NODEPORTS";
/// What follows where no Service has the address.
pub(super) const EXTERNAL_SERVICES: &str = "KUBE-EXTERNAL-SERVICES";
/// Who may not use a load balancer's address.
pub(super) const PROXY_FIREWALL: &str = "KUBE-PROXY-FIREWALL";
/// The bit that has a connection masqueraded.
pub(super) const MARK_MASQ: &str = "KUBE-MARK-MASQ";
/// Masquerades.
pub(super) const POSTROUTING: &str = "KUBE-POSTROUTING";
/// What is forwarded.
pub(super) const FORWARD: &str = "KUBE-FORWARD";
/// There as long as nobody flushes the tables.
pub(super) const CANARY: &str = "KUBE-PROXY-CANARY";
/// Services' addresses, whatever the port; not kube-proxy's.
pub(super) const ADDRESSES: &str = "KUBE-ADDRESSES";
/// Keeps loopback addresses from the network; not kube-proxy's.
pub(super) const LOOPBACK: &str = "KUBE-LOOPBACK";
/// The addresses of one range; not kube-proxy's.
pub(super) const ADDRESS_RANGE: &str = "KUBE-ADDR-";

/// Endpoints anywhere.
pub(super) const CLUSTER: &str = "KUBE-SVC-";
/// Endpoints of this node.
pub(super) const LOCAL: &str = "KUBE-SVL-";
/// Who comes from where.
pub(super) const EXTERNAL: &str = "KUBE-EXT-";
/// Who is let in.
pub(super) const FIREWALL: &str = "KUBE-FW-";
/// One endpoint.
pub(super) const ENDPOINT: &str = "KUBE-SEP-";

const CHAINS: [&str; 10] = [
    SERVICES,
    NODE_PORTS,
    EXTERNAL_SERVICES,
    PROXY_FIREWALL,
    MARK_MASQ,
    POSTROUTING,
    FORWARD,
    CANARY,
    ADDRESSES,
    LOOPBACK,
];
const PREFIXES: [&str; 6] = [CLUSTER, LOCAL, EXTERNAL, FIREWALL, ENDPOINT, ADDRESS_RANGE];

/// Whether a chain is of a service proxy's. The kubelet's are not.
pub(super) fn is_ours(chain: &str) -> bool {
    CHAINS.contains(&chain) || PREFIXES.iter().any(|prefix| chain.starts_with(prefix))
}

/// The chain of a Service port with such a prefix; kube-proxy has one of each, numbered 0.
pub(super) fn of_port(prefix: &str, port: &ServicePortName, number: usize) -> String {
    let number = if number == 0 { String::new() } else { format!("#{number}") };
    hashed(prefix, &format!("{port}{}{number}", protocol(port.protocol)))
}

/// The chain of one endpoint of a Service port.
pub(super) fn of_endpoint(port: &ServicePortName, endpoint: &str) -> String {
    hashed(ENDPOINT, &format!("{port}{}{endpoint}", protocol(port.protocol)))
}

/// The protocol as iptables spells it.
pub(super) const fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

/// A prefix and what makes the name unique, in sixteen characters.
pub(super) fn hashed(prefix: &str, text: &str) -> String {
    let hash = BASE32.encode(digest(&SHA256, text.as_bytes()).as_ref());
    prefix.chars().chain(hash.chars().take(16)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_kube_proxys() {
        // As kube-proxy's own tests have them.
        let name = model::name::NamespacedName::new("ns1", "svc1");
        let port = ServicePortName { service: name, port: "p80".into(), protocol: Protocol::Tcp };
        assert_eq!(of_port(CLUSTER, &port, 0), "KUBE-SVC-XPGD46QRK7WJZT7O");
        assert_eq!(of_port(EXTERNAL, &port, 0), "KUBE-EXT-XPGD46QRK7WJZT7O");
        assert_eq!(of_endpoint(&port, "10.180.0.1:80"), "KUBE-SEP-SXIVWICOYRO3J4NJ");
        assert_ne!(of_port(CLUSTER, &port, 1), of_port(CLUSTER, &port, 0));
    }

    #[test]
    fn the_kubelets_chains_are_not_ours() {
        for chain in ["KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY", "KUBE-FIREWALL", "FORWARD"] {
            assert!(!is_ours(chain), "{chain}");
        }
        assert!(is_ours("KUBE-SERVICES") && is_ours("KUBE-SEP-SXIVWICOYRO3J4NJ"));
    }
}
