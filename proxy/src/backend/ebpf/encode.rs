//! The plan's values as the maps have them. `[pure]`

use std::collections::BTreeMap;
use std::net::IpAddr;

use abi::addr::Addr;
use abi::address::PrefixFlags;
use abi::frontend::FrontendKey as Key;
use abi::node::Node;
use abi::slot::Kind;
use ipnet::IpNet;
use model::name::{Family, Protocol};

use crate::plan::settings::PodSource;
use crate::plan::{At, FrontendKey, FrontendKind, Settings};

/// A range as a trie has it: how many bits of which address.
pub(super) type Prefix = (u32, Addr);

/// The key in the map: a node port stands at the unspecified address of its family.
pub(super) fn abi_key(key: &FrontendKey) -> Key {
    let addr = match key.at {
        At::Address(address) => address.into(),
        At::NodePort(Family::V4) => Addr::ANY_V4,
        At::NodePort(Family::V6) => Addr::ANY_V6,
    };
    Key::new(addr, key.port.to_be(), key.protocol.number())
}

/// The key in the plan.
pub(super) fn frontend_key(key: &Key) -> Option<FrontendKey> {
    let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
        .into_iter()
        .find(|protocol| protocol.number() == key.protocol)?;
    let at = match key.addr {
        Addr::ANY_V4 => At::NodePort(Family::V4),
        Addr::ANY_V6 => At::NodePort(Family::V6),
        addr => At::Address(addr.into()),
    };
    Some(FrontendKey { at, port: u16::from_be(key.port), protocol })
}

pub(super) const fn kind(kind: FrontendKind) -> Kind {
    match kind {
        FrontendKind::ClusterIp => Kind::ClusterIp,
        FrontendKind::LoadBalancer => Kind::LoadBalancer,
        FrontendKind::ExternalIp => Kind::ExternalIp,
        FrontendKind::NodePort => Kind::NodePort,
    }
}

/// A range as a trie has it.
pub(super) fn prefix(range: &IpNet) -> Prefix {
    let above = match range {
        IpNet::V4(_) => Addr::BITS - 32,
        IpNet::V6(_) => 0,
    };
    (above + u32::from(range.prefix_len()), range.network().into())
}

/// Every range that means something to packets or sockets. Each bears the flags of those around it.
pub(super) fn prefixes(settings: &Settings) -> BTreeMap<Prefix, u32> {
    let pods = [&settings.pods.v4, &settings.pods.v6].into_iter().filter_map(|pods| match pods {
        Some(PodSource::Cidr(range)) => Some((*range, PrefixFlags::POD)),
        Some(PodSource::Interface(_) | PodSource::InterfacePrefix(_)) | None => None,
    });
    let services = settings.service_cidrs.iter().map(|range| (*range, PrefixFlags::SERVICE));
    let loopback = [&settings.node_ports.v4, &settings.node_ports.v6]
        .into_iter()
        .flat_map(|ports| &ports.loopback_within)
        .map(|range| (*range, PrefixFlags::NODE_PORTS));
    let all: Vec<(IpNet, u32)> = pods.chain(services).chain(loopback).collect();
    all.iter()
        .map(|(range, _)| {
            let around = all.iter().filter(|(other, _)| contains(other, range));
            (prefix(range), around.fold(0, |flags, (_, flag)| flags | flag))
        })
        .collect()
}

/// What holds for the node, without the flags that the command line gives.
pub(super) fn node(settings: &Settings, netns: u64, flags: u64) -> Node {
    let ip = |ip: &Option<IpAddr>| ip.map_or_else(Addr::default, Addr::from);
    let pods = |source: &Option<PodSource>, tells: u64, by_device: u64| match source {
        None => 0,
        Some(PodSource::Cidr(_)) => tells,
        Some(PodSource::Interface(_) | PodSource::InterfacePrefix(_)) => tells | by_device,
    };
    Node {
        flags: flags
            | pods(&settings.pods.v4, Node::PODS_V4, Node::PODS_BY_DEVICE_V4)
            | pods(&settings.pods.v6, Node::PODS_V6, Node::PODS_BY_DEVICE_V6),
        netns,
        ip_v4: ip(&settings.node_ips.v4),
        ip_v6: ip(&settings.node_ips.v6),
        pad: [0; 2],
    }
}

fn contains(outer: &IpNet, inner: &IpNet) -> bool {
    match (outer, inner) {
        (IpNet::V4(outer), IpNet::V4(inner)) => outer.contains(inner),
        (IpNet::V6(outer), IpNet::V6(inner)) => outer.contains(inner),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::by_family::ByFamily;
    use crate::plan::settings::NodePorts;

    fn range(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn keys_survive_the_round_trip() {
        for at in [
            At::Address("10.96.0.10".parse().unwrap()),
            At::Address("fd00::10".parse().unwrap()),
            At::NodePort(Family::V4),
            At::NodePort(Family::V6),
        ] {
            let key = FrontendKey { at, port: 30_080, protocol: Protocol::Udp };
            assert_eq!(frontend_key(&abi_key(&key)), Some(key));
        }
    }

    #[test]
    fn a_range_inside_of_another_bears_the_flags_of_both() {
        let settings = Settings {
            pods: ByFamily { v4: Some(PodSource::Cidr(range("10.0.0.0/8"))), v6: None },
            service_cidrs: vec![range("10.96.0.0/16"), range("fd00::/112")],
            node_ports: ByFamily {
                v4: NodePorts { within: vec![], loopback_within: vec![range("127.0.0.0/8")] },
                v6: NodePorts::default(),
            },
            ..Settings::default()
        };
        let expected = BTreeMap::from([
            (prefix(&range("10.0.0.0/8")), PrefixFlags::POD),
            (prefix(&range("10.96.0.0/16")), PrefixFlags::POD | PrefixFlags::SERVICE),
            (prefix(&range("fd00::/112")), PrefixFlags::SERVICE),
            (prefix(&range("127.0.0.0/8")), PrefixFlags::NODE_PORTS),
        ]);
        assert_eq!(prefixes(&settings), expected);
        assert_eq!(prefix(&range("10.0.0.0/8")).0, 104);
        assert_eq!(node(&settings, 7, 0).flags, Node::PODS_V4);
    }
}
