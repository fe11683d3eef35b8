//! The address plan: which node and pod has which address. `[pure]`

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Where Services of a sandbox have their cluster IPs: no namespace routes there.
pub const SERVICE_CIDR_V4: &str = "10.96.0.0/16";
/// The same for IPv6.
pub const SERVICE_CIDR_V6: &str = "fd00:10:96::/112";

/// Nodes of a sandbox, and pods of a node, at most.
const MAX: u8 = 250;

/// The prefix length of what one node's pods share, IPv4.
pub(crate) const POD_CIDR_LEN_V4: u8 = 24;
/// The same for IPv6.
pub(crate) const POD_CIDR_LEN_V6: u8 = 64;
/// The prefix length of the link between the nodes, IPv4.
pub(crate) const FABRIC_LEN_V4: u8 = 16;
/// The same for IPv6.
pub(crate) const FABRIC_LEN_V6: u8 = 64;
/// The node's end of every pod's link, as the pod sees it.
pub(crate) const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// An address of each family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Addresses {
    /// The IPv4 address.
    pub v4: Ipv4Addr,
    /// The IPv6 address.
    pub v6: Ipv6Addr,
}

impl Addresses {
    /// Both, IPv4 first.
    #[must_use]
    pub fn both(self) -> [IpAddr; 2] {
        [IpAddr::V4(self.v4), IpAddr::V6(self.v6)]
    }
}

/// The addresses of node number `node_idx`, counted from 0, on the link between the nodes.
pub(crate) fn node(node_idx: usize) -> Option<Addresses> {
    let n = number(node_idx)?;
    Some(Addresses {
        v4: Ipv4Addr::new(172, 18, 0, n),
        v6: Ipv6Addr::new(0xfd00, 0x172, 0x18, 0, 0, 0, 0, n.into()),
    })
}

/// The network part of what a node's pods share.
pub(crate) fn pod_cidr(node_idx: usize) -> Option<Addresses> {
    let n = number(node_idx)?;
    Some(Addresses {
        v4: Ipv4Addr::new(10, 244, n, 0),
        v6: Ipv6Addr::new(0xfd00, 0x10, 0x244, n.into(), 0, 0, 0, 0),
    })
}

/// The node's end of its pods' links, IPv4.
pub(crate) fn gateway_v4(node_idx: usize) -> Option<Ipv4Addr> {
    Some(Ipv4Addr::new(10, 244, number(node_idx)?, 1))
}

/// The addresses of pod number `pod_idx` of a node, both counted from 0.
pub(crate) fn pod(node_idx: usize, pod_idx: usize) -> Option<Addresses> {
    let (n, p) = (number(node_idx)?, number(pod_idx)?.checked_add(1)?);
    Some(Addresses {
        v4: Ipv4Addr::new(10, 244, n, p),
        v6: Ipv6Addr::new(0xfd00, 0x10, 0x244, n.into(), 0, 0, 0, p.into()),
    })
}

fn number(idx: usize) -> Option<u8> {
    let n = u8::try_from(idx).ok()?.checked_add(1)?;
    (n <= MAX).then_some(n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_pod_follows_its_gateway() {
        assert_eq!(gateway_v4(0).unwrap().to_string(), "10.244.1.1");
        assert_eq!(pod(0, 0).unwrap().v4.to_string(), "10.244.1.2");
        assert_eq!(pod(1, 8).unwrap().v6.to_string(), "fd00:10:244:2::a");
    }

    #[test]
    fn the_plan_ends_before_it_wraps() {
        assert_eq!(pod(249, 249).unwrap().v4.to_string(), "10.244.250.251");
        assert_eq!(node(250), None);
        assert_eq!(pod(0, 250), None);
        assert_eq!(pod(0, 300), None);
    }
}
