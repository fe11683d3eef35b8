//! The proxy's configuration as meant: validated, free of the flags and files it came from.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

mod flags;

pub use flags::{ConfigError, NodeFlags};

use crate::by_family::ByFamily;

/// What the plan of a node depends on besides the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    /// The name of this node's Node object.
    pub node_name: Arc<str>,
    /// `--bind-address`, when it is a real address: replaces the Node's own of its family.
    pub bind_address: Option<IpAddr>,
    /// `--detect-local-mode` with its argument: which sources are this node's pods.
    pub detect_local: DetectLocal,
    /// `--masquerade-all`: masquerade everything that is sent to a cluster IP.
    pub masquerade_all: bool,
    /// `--nodeport-addresses`; empty means all addresses.
    pub node_port_addresses: Vec<NodePortAddress>,
    /// Whether the backend in use can serve node ports on loopback addresses.
    pub localhost_node_ports: ByFamily<LocalhostNodePorts>,
    /// Which of a Service's `externalIPs` are honoured.
    pub external_ips: ExternalIps,
    /// TCP ports of this node's own addresses that no Service may take away by an external IP
    /// (CVE-2020-8554): the kubelet's and the API server's.
    pub protected_ports: BTreeSet<u16>,
    /// The ranges that cluster IPs come from. What is not allocated in them is dropped.
    pub service_cidrs: Vec<IpNet>,
    /// This node answers the cluster's names itself: of Service kube-system/kube-dns it asks the
    /// endpoints of other nodes, since its own are dead whenever it asks any.
    pub answers_names: bool,
    /// Whether the backend in use works at sockets: it ends connections whose endpoint serves no more,
    /// where a Service asks for it, and leaves those of pods alone that ask for that.
    pub at_sockets: bool,
    /// Who leads ports of the node to the pods that ask for them.
    pub host_ports: HostPorts,
}

/// Who leads ports of the node to the pods that ask for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostPorts {
    /// The proxy.
    Led,
    /// Whoever gives pods their network (CNI).
    Left,
}

impl NodeConfig {
    /// kube-proxy's defaults for the node of that name, with everything that eBPF can do.
    pub fn new(node_name: impl Into<Arc<str>>) -> Self {
        Self {
            node_name: node_name.into(),
            bind_address: None,
            detect_local: DetectLocal::default(),
            masquerade_all: false,
            node_port_addresses: Vec::new(),
            localhost_node_ports: ByFamily {
                v4: LocalhostNodePorts::Covered,
                v6: LocalhostNodePorts::Covered,
            },
            external_ips: ExternalIps::Any,
            protected_ports: BTreeSet::from([6443, 10250]),
            service_cidrs: Vec::new(),
            answers_names: false,
            at_sockets: true,
            host_ports: HostPorts::Left,
        }
    }
}

/// How a packet is known to come from a pod of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DetectLocal {
    /// Its source is in `--cluster-cidr`. Only the first range of each family counts; a family
    /// without one has no detector.
    ClusterCidr(Vec<IpNet>),
    /// Its source is in the Node's `spec.podCIDRs`.
    NodeCidr,
    /// It arrived on `--pod-bridge-interface`.
    BridgeInterface(Arc<str>),
    /// It arrived on an interface whose name begins with `--pod-interface-name-prefix`.
    InterfaceNamePrefix(Arc<str>),
}

impl Default for DetectLocal {
    fn default() -> Self {
        Self::ClusterCidr(Vec::new())
    }
}

/// One entry of `--nodeport-addresses`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodePortAddress {
    /// `primary`: the Node object's first address of each family.
    Primary,
    /// `localhost`: 127.0.0.0/8 and `::1/128`.
    Localhost,
    /// `all`: 0.0.0.0/0 and `::/0`.
    All,
    /// A range.
    Cidr(IpNet),
}

/// When node ports are served on loopback addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LocalhostNodePorts {
    /// Never: the backend cannot, or `--iptables-localhost-nodeports=false`.
    #[default]
    Never,
    /// When `--nodeport-addresses` names a loopback range itself; `all` does not (KEP-6032).
    Named,
    /// When `--nodeport-addresses` covers loopback, be it by `all`.
    Covered,
}

/// Which of a Service's `externalIPs` are honoured (KEP-5707, CVE-2020-8554).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ExternalIps {
    /// All of them: the feature gate `AllowServiceExternalIPs`, on by default.
    #[default]
    Any,
    /// None of them: the gate is off.
    Off,
    /// Those in these ranges. Being listed here, they may also take a protected port.
    Within(Vec<IpNet>),
}

/// `--proxy-mode`: which backend programs the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProxyMode {
    /// `ebpf`, and the default.
    #[default]
    Ebpf,
    /// `nftables`.
    Nftables,
    /// `iptables`.
    Iptables,
    /// `ipvs`.
    Ipvs,
}

impl ProxyMode {
    /// The mode that is spelled so.
    pub fn parse(name: &str) -> Option<Self> {
        let all = [Self::Ebpf, Self::Nftables, Self::Iptables, Self::Ipvs];
        all.into_iter().find(|mode| mode.name() == name)
    }

    /// How it is spelled.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ebpf => "ebpf",
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
            Self::Ipvs => "ipvs",
        }
    }
}
