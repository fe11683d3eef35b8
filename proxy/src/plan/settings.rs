//! Settings: what holds for every frontend of the node.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use model::name::Family;
use model::node::Node;

use crate::by_family::ByFamily;
use crate::config::{DetectLocal, LocalhostNodePorts, NodeConfig, NodePortAddress};
use crate::plan::print::listed;

/// What holds for every frontend of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// How this node's pods are told from other sources; `None` where nothing is configured:
    /// then nothing is a pod of this node.
    pub pods: ByFamily<Option<PodSource>>,
    /// The node's own address of each family: its Node object's first, unless configured.
    pub node_ips: ByFamily<Option<IpAddr>>,
    /// Which of the node's addresses serve node ports.
    pub node_ports: ByFamily<NodePorts>,
    /// What is not allocated in these ranges is dropped instead of leaking to the default route.
    pub service_cidrs: Vec<IpNet>,
}

/// How a packet is known to come from a pod of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodSource {
    /// Its source is in this range.
    Cidr(IpNet),
    /// It arrived on this interface.
    Interface(Arc<str>),
    /// It arrived on an interface whose name begins so.
    InterfacePrefix(Arc<str>),
}

impl PodSource {
    /// Whether a packet from that address, arrived on that interface (`None` when made on this
    /// node), is a pod's.
    pub fn matches(&self, source: IpAddr, interface: Option<&str>) -> bool {
        match self {
            Self::Cidr(range) => range.contains(&source),
            Self::Interface(name) => interface == Some(&**name),
            Self::InterfacePrefix(prefix) => {
                interface.is_some_and(|name| name.starts_with(&**prefix))
            }
        }
    }
}

/// Which addresses of the node serve the node ports of one family. The addresses that the node
/// has change by themselves, so they are not part of a plan: a backend follows them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodePorts {
    /// Those in one of these ranges, loopback aside. Empty: none.
    pub within: Vec<IpNet>,
    /// The loopback ones in these ranges. Empty: none.
    pub loopback_within: Vec<IpNet>,
}

impl NodePorts {
    /// Whether an address, which must be this node's, serves node ports.
    pub fn serve(&self, address: &IpAddr) -> bool {
        let ranges = if address.is_loopback() { &self.loopback_within } else { &self.within };
        ranges.iter().any(|range| range.contains(address))
    }
}

impl fmt::Display for PodSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cidr(range) => write!(f, "from {range}"),
            Self::Interface(name) => write!(f, "by interface {name}"),
            Self::InterfacePrefix(prefix) => write!(f, "by interface {prefix}*"),
        }
    }
}

impl fmt::Display for NodePorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let within = listed(&self.within);
        let loopback = listed(&self.loopback_within);
        match (within.is_empty(), loopback.is_empty()) {
            (true, true) => f.write_str("none"),
            (false, true) => write!(f, "in {within}, except loopback"),
            (_, false) => write!(f, "in {within}, of loopback in {loopback}"),
        }
    }
}

impl Settings {
    /// The settings that follow from the configuration and the Node object.
    pub fn build(config: &NodeConfig, node: Option<&Node>) -> Self {
        let node_ips = ByFamily::from_fn(|family| node_ip(config, node, family));
        Self {
            pods: ByFamily::from_fn(|family| pod_source(config, node, family)),
            node_ports: ByFamily::from_fn(|family| {
                node_ports(config, *node_ips.get(family), family)
            }),
            node_ips,
            service_cidrs: sorted(config.service_cidrs.iter().map(IpNet::trunc)),
        }
    }
}

fn node_ip(config: &NodeConfig, node: Option<&Node>, family: Family) -> Option<IpAddr> {
    let addresses = node.map(|node| node.addresses.as_slice()).unwrap_or_default();
    config
        .bind_address
        .iter()
        .filter(|address| !address.is_unspecified())
        .chain(addresses)
        .copied()
        .find(|address| Family::of(address) == family)
}

fn pod_source(config: &NodeConfig, node: Option<&Node>, family: Family) -> Option<PodSource> {
    let first = |ranges: &[IpNet]| {
        ranges
            .iter()
            .find(|range| Family::of(&range.addr()) == family)
            .map(|range| PodSource::Cidr(range.trunc()))
    };
    match &config.detect_local {
        DetectLocal::ClusterCidr(ranges) => first(ranges),
        DetectLocal::NodeCidr => first(node.map(|node| &*node.pod_cidrs).unwrap_or_default()),
        DetectLocal::BridgeInterface(name) => Some(PodSource::Interface(Arc::clone(name))),
        DetectLocal::InterfaceNamePrefix(prefix) => {
            Some(PodSource::InterfacePrefix(Arc::clone(prefix)))
        }
    }
}

fn node_ports(config: &NodeConfig, node_ip: Option<IpAddr>, family: Family) -> NodePorts {
    let (any, loopback) = match family {
        Family::V4 => (NET_V4, LOOPBACK_V4),
        Family::V6 => (NET_V6, LOOPBACK_V6),
    };
    let ranges: Vec<IpNet> = config
        .node_port_addresses
        .iter()
        .filter_map(|entry| match entry {
            // A node without an address of this family has nothing to serve its node ports on;
            // a loopback address is no primary one.
            NodePortAddress::Primary => node_ip.filter(|ip| !ip.is_loopback()).map(IpNet::from),
            NodePortAddress::Localhost => Some(loopback),
            NodePortAddress::All => Some(any),
            NodePortAddress::Cidr(range) => {
                (Family::of(&range.addr()) == family).then(|| range.trunc())
            }
        })
        .collect();
    let names_family = config.node_port_addresses.iter().any(|entry| match entry {
        NodePortAddress::Cidr(range) => Family::of(&range.addr()) == family,
        NodePortAddress::Primary | NodePortAddress::Localhost | NodePortAddress::All => true,
    });
    let within = if names_family { sorted(ranges) } else { vec![any] };
    let loopback_within = match config.localhost_node_ports.get(family) {
        LocalhostNodePorts::Never => Vec::new(),
        LocalhostNodePorts::Named => {
            within.iter().copied().filter(|range| loopback.contains(range)).collect()
        }
        LocalhostNodePorts::Covered => within
            .iter()
            .filter_map(|range| {
                if loopback.contains(range) {
                    Some(*range)
                } else {
                    range.contains(&loopback).then_some(loopback)
                }
            })
            .collect(),
    };
    NodePorts { within, loopback_within: sorted(loopback_within) }
}

fn sorted(ranges: impl IntoIterator<Item = IpNet>) -> Vec<IpNet> {
    let mut ranges: Vec<IpNet> = ranges.into_iter().collect();
    ranges.sort_unstable();
    ranges.dedup();
    ranges
}

const NET_V4: IpNet = IpNet::V4(ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::UNSPECIFIED, 0));
const NET_V6: IpNet = IpNet::V6(ipnet::Ipv6Net::new_assert(std::net::Ipv6Addr::UNSPECIFIED, 0));
const LOOPBACK_V4: IpNet =
    IpNet::V4(ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::new(127, 0, 0, 0), 8));
const LOOPBACK_V6: IpNet =
    IpNet::V6(ipnet::Ipv6Net::new_assert(std::net::Ipv6Addr::LOCALHOST, 128));
