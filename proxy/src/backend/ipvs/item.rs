//! What the kernel is given: virtual services, entries of sets, addresses. `[pure]`

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use model::name::{Family, Protocol};

/// What one thing in the kernel is known by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Key {
    /// An entry of a set, as `ipset` spells it.
    Entry(Set, Family, String),
    /// A virtual service.
    Virtual(VirtualKey),
    /// An address of the device [`super::device::NAME`].
    Address(IpAddr),
}

/// What it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// There; more is not said about it.
    There,
    /// The mark that packets get.
    Mark(u32),
    /// A virtual service's scheduling and destinations.
    Virtual(Virtual),
}

impl Value {
    /// The mark that packets get, if that is it.
    pub(super) const fn mark(&self) -> Option<u32> {
        match self {
            Self::Mark(mark) => Some(*mark),
            Self::There | Self::Virtual(_) => None,
        }
    }
}

/// What IPVS looks a packet up by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum VirtualKey {
    /// By its destination.
    At(SocketAddr, Protocol),
    /// By its mark, which is asked first.
    Mark(Family, u32),
}

/// A virtual service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Virtual {
    /// How it chooses.
    pub(super) head: Head,
    /// Where to, and how often. What has no weight takes no new connections.
    pub(super) destinations: BTreeMap<SocketAddr, u32>,
}

/// How a virtual service chooses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// The scheduler.
    pub(super) scheduler: String,
    /// `IP_VS_SVC_F_…`.
    pub(super) flags: u32,
    /// For how long a client is remembered, in seconds; 0: it is not.
    pub(super) timeout: u32,
}

/// `IP_VS_SVC_F_PERSISTENT`: clients are remembered.
pub(super) const PERSISTENT: u32 = 0x1;
/// `IP_VS_SVC_F_SCHED1` of `sh`: a destination that takes nothing is passed over.
pub(super) const SH_FALLBACK: u32 = 0x8;
/// `IP_VS_SVC_F_SCHED2` of `mh`: the client's port counts as well.
pub(super) const MH_PORT: u32 = 0x10;
/// The flags above; the kernel has more of its own.
pub(super) const FLAGS: u32 = PERSISTENT | SH_FALLBACK | MH_PORT;

impl VirtualKey {
    /// The family.
    pub(super) const fn family(&self) -> Family {
        match self {
            Self::At(at, _) => match at {
                SocketAddr::V4(_) => Family::V4,
                SocketAddr::V6(_) => Family::V6,
            },
            Self::Mark(family, _) => *family,
        }
    }
}

impl fmt::Display for VirtualKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(at, protocol) => write!(f, "{at}/{}", protocol_name(*protocol)),
            Self::Mark(_, mark) => write!(f, "mark {mark:#x}"),
        }
    }
}

/// A set of `ipset`. kube-proxy's have its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Set {
    /// Cluster IPs.
    ClusterIp,
    /// Load balancers' VIPs.
    LoadBalancer,
    /// Those of them whose clients' addresses are kept.
    LoadBalancerLocal,
    /// External IPs.
    ExternalIp,
    /// As [`Set::LoadBalancerLocal`].
    ExternalIpLocal,
    /// Node ports.
    NodePort,
    /// As [`Set::LoadBalancerLocal`].
    NodePortLocal,
    /// Endpoints, each as the source of its own connections: also those whose node is not known.
    LoopBack,
    /// VIPs that not everybody may use.
    Firewall,
    /// Who may.
    SourceCidr,
    /// What is dropped from pods.
    DropPod,
    /// What is dropped from this node.
    DropNode,
    /// What is dropped from elsewhere.
    DropOutside,
    /// What leads pods elsewhere than others.
    RoutePod,
    /// What leads this node elsewhere than others.
    RouteNode,
    /// What leads others by a mark.
    RouteOutside,
    /// Services' addresses.
    Addresses,
    /// Addresses that are none of ours, in the ranges that cluster IPs come from.
    Left,
}

impl Set {
    /// All of them.
    pub(super) const ALL: [Self; 18] = [
        Self::ClusterIp,
        Self::LoadBalancer,
        Self::LoadBalancerLocal,
        Self::ExternalIp,
        Self::ExternalIpLocal,
        Self::NodePort,
        Self::NodePortLocal,
        Self::LoopBack,
        Self::Firewall,
        Self::SourceCidr,
        Self::DropPod,
        Self::DropNode,
        Self::DropOutside,
        Self::RoutePod,
        Self::RouteNode,
        Self::RouteOutside,
        Self::Addresses,
        Self::Left,
    ];

    /// What the sets of frontends have of one.
    pub(super) fn of_frontends(at: SocketAddr, protocol: Protocol) -> impl Iterator<Item = Key> {
        let sets = [Self::ClusterIp, Self::LoadBalancer, Self::ExternalIp, Self::NodePort];
        let text = self::at(at, protocol);
        let family = Family::of(&at.ip());
        sets.into_iter().map(move |set| Key::Entry(set, family, text.clone()))
    }

    /// Its name. The kernel keeps 31 characters.
    pub(super) fn name(self, family: Family) -> String {
        let prefix = match family {
            Family::V4 => "KUBE-",
            Family::V6 => "KUBE-6-",
        };
        let name = match self {
            Self::ClusterIp => "CLUSTER-IP",
            Self::LoadBalancer => "LOAD-BALANCER",
            Self::LoadBalancerLocal => "LOAD-BALANCER-LOCAL",
            Self::ExternalIp => "EXTERNAL-IP",
            Self::ExternalIpLocal => "EXTERNAL-IP-LOCAL",
            Self::NodePort => "NODE-PORT",
            Self::NodePortLocal => "NODE-PORT-LOCAL",
            Self::LoopBack => "IPVS-LOOP-BACK",
            Self::Firewall => "LOAD-BALANCER-FW",
            Self::SourceCidr => "LOAD-BALANCER-SOURCE-CIDR",
            Self::DropPod => "DROP-POD",
            Self::DropNode => "DROP-NODE",
            Self::DropOutside => "DROP-OUTSIDE",
            Self::RoutePod => "ROUTE-POD",
            Self::RouteNode => "ROUTE-NODE",
            Self::RouteOutside => "ROUTE-OUTSIDE",
            Self::Addresses => "IPVS-IPS",
            Self::Left => "IPVS-LEFT",
        };
        prefix.chars().chain(name.chars()).take(31).collect()
    }

    /// Its type, as `ipset create` takes it.
    pub(super) const fn kind(self) -> &'static str {
        match self {
            Self::LoopBack => "hash:ip,port,ip",
            Self::SourceCidr => "hash:ip,port,net",
            Self::Addresses | Self::Left => "hash:ip",
            _ => "hash:ip,port",
        }
    }

    /// What `ipset create` takes besides. Who takes over from kube-proxy finds its sets as it made
    /// them.
    pub(super) const fn options(self) -> &'static str {
        match self {
            Self::LoopBack => " maxelem 1048576",
            _ if self.has_marks() => " skbinfo",
            _ => "",
        }
    }

    /// Whether its entries have a mark each.
    pub(super) const fn has_marks(self) -> bool {
        matches!(self, Self::RoutePod | Self::RouteNode | Self::RouteOutside)
    }
}

/// The protocol as `ipset` and iptables spell it.
pub(super) const fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

/// An address and port as an entry of a set.
pub(super) fn at(address: SocketAddr, protocol: Protocol) -> String {
    format!("{},{}:{}", address.ip(), protocol_name(protocol), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_kube_proxys_and_fit_the_kernel() {
        assert_eq!(Set::ClusterIp.name(Family::V4), "KUBE-CLUSTER-IP");
        assert_eq!(Set::SourceCidr.name(Family::V6), "KUBE-6-LOAD-BALANCER-SOURCE-CID");
        let mut names: Vec<String> = Vec::new();
        for family in Family::ALL {
            names.extend(Set::ALL.map(|set| set.name(family)));
        }
        assert!(names.iter().all(|name| name.len() <= 31), "{names:?}");
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), 2 * Set::ALL.len());
    }
}
