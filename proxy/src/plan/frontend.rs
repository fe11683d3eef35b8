//! A frontend: what a client sends to, and what becomes of it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use model::name::{Family, Protocol, ServicePortName};

use crate::plan::route::Routes;

/// What a packet's destination is looked up by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrontendKey {
    /// The address.
    pub at: At,
    /// The port: the Service's `port`, or its `nodePort`.
    pub port: u16,
    /// The transport protocol.
    pub protocol: Protocol,
}

/// Where a frontend listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum At {
    /// On one address: a cluster IP, a load balancer's VIP or an external IP. Looked up first.
    Address(IpAddr),
    /// On every node port address of a family ([`crate::plan::settings::NodePorts`]).
    NodePort(Family),
}

impl At {
    /// The family of the packets that it matches.
    pub const fn family(&self) -> Family {
        match self {
            Self::Address(address) => Family::of(address),
            Self::NodePort(family) => *family,
        }
    }
}

/// Which field of a Service a frontend comes from. In the order in which they win an address that
/// several Services claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FrontendKind {
    /// `spec.clusterIPs`.
    ClusterIp,
    /// `status.loadBalancer.ingress[].ip`.
    LoadBalancer,
    /// `spec.externalIPs`.
    ExternalIp,
    /// `spec.ports[].nodePort`.
    NodePort,
}

impl FrontendKind {
    /// Its name in `fairlead explain` and `fairlead plan`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ClusterIp => "cluster-ip",
            Self::LoadBalancer => "load-balancer",
            Self::ExternalIp => "external-ip",
            Self::NodePort => "node-port",
        }
    }

    /// The Service's field.
    pub const fn field(self) -> &'static str {
        match self {
            Self::ClusterIp => "spec.clusterIPs",
            Self::LoadBalancer => "status.loadBalancer.ingress",
            Self::ExternalIp => "spec.externalIPs",
            Self::NodePort => "spec.ports[].nodePort",
        }
    }
}

/// What becomes of new connections to a [`FrontendKey`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// The Service's port. Session affinity is kept per Service port, whatever the frontend.
    pub service: ServicePortName,
    /// The field it comes from.
    pub kind: FrontendKind,
    /// Where to, for each kind of source.
    pub routes: Routes,
    /// When present, sources outside of these ranges are dropped before anything else. Ordered,
    /// never empty. Only on [`FrontendKind::LoadBalancer`].
    pub source_ranges: Option<Arc<[IpNet]>>,
    /// `sessionAffinity: ClientIP`: how long after its last new connection a client is remembered.
    pub affinity: Option<Duration>,
    /// TCP connections of sockets are ended once their endpoint serves no more. Only of TCP.
    pub ends_connections: bool,
    /// Every endpoint of the family that is serving, ordered, whatever the policies: a UDP flow
    /// to any other endpoint is stale, also when this is empty.
    pub serving: Arc<[SocketAddr]>,
}

impl fmt::Display for FrontendKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.at {
            At::Address(address) => write!(f, "{}", SocketAddr::new(address, self.port))?,
            At::NodePort(Family::V4) => write!(f, "*:{}", self.port)?,
            At::NodePort(Family::V6) => write!(f, "[*]:{}", self.port)?,
        }
        f.write_str(match self.protocol {
            Protocol::Tcp => "/tcp",
            Protocol::Udp => "/udp",
            Protocol::Sctp => "/sctp",
        })
    }
}
