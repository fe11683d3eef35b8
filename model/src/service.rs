//! A Service: the fields of the API object that routing and names depend on.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::name::{Family, NamespacedName, Protocol};

/// A Service as routed. Headless and `ExternalName` Services are kept as well: DNS answers for
/// them, and a Service may turn into one while it lives.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a field of the object")]
pub struct Service {
    /// `metadata.namespace` and `metadata.name`.
    pub name: NamespacedName,
    /// `metadata.creationTimestamp` in seconds since the epoch; decides who wins an address.
    pub created: i64,
    /// Which kind of Service this is.
    pub service_type: ServiceType,
    /// `spec.clusterIPs`, at most one a family, in the API's order; empty when headless or
    /// `ExternalName`.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.clusterIP: None`.
    pub headless: bool,
    /// `spec.ports`, in the API's order.
    pub ports: Vec<ServicePort>,
    /// `spec.externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress[].ip` whose `ipMode` is `VIP` or absent (KEP-1860).
    pub load_balancer_vips: Vec<IpAddr>,
    /// `spec.loadBalancerSourceRanges`, spaces trimmed.
    pub load_balancer_source_ranges: Vec<IpNet>,
    /// `spec.externalTrafficPolicy: Local`.
    pub external_traffic_policy: TrafficPolicy,
    /// `spec.internalTrafficPolicy: Local`.
    pub internal_traffic_policy: TrafficPolicy,
    /// `spec.sessionAffinity: ClientIP` with its timeout; `None` when off.
    pub session_affinity: Option<Duration>,
    /// `spec.healthCheckNodePort`; 0 is none.
    pub health_check_node_port: u16,
    /// The label `service.kubernetes.io/service-proxy-name` is present: another proxy's Service.
    /// DNS still answers for it.
    pub foreign_proxy: bool,
    /// The annotation `fairlead.dev/capture: "false"`: the VIP is left to somebody else.
    pub capture: bool,
    /// The annotation `fairlead.dev/end-connections: "true"`: TCP connections of sockets are ended, too,
    /// once their endpoint serves no more.
    pub ends_connections: bool,
}

impl Service {
    /// The cluster IP of one family, if the Service has one.
    pub fn cluster_ip(&self, family: Family) -> Option<IpAddr> {
        self.cluster_ips.iter().copied().find(|ip| Family::of(ip) == family)
    }

    /// Whether this proxy routes it at all: it has a cluster IP and no other proxy claims it.
    pub fn is_routed(&self) -> bool {
        !self.cluster_ips.is_empty() && !self.foreign_proxy && self.capture
    }
}

/// `spec.type`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceType {
    /// `ClusterIP`.
    ClusterIp,
    /// `NodePort`.
    NodePort,
    /// `LoadBalancer`.
    LoadBalancer,
    /// `ExternalName`, with the name.
    ExternalName(Arc<str>),
    /// No Service at all: a pod's host ports. At which of the node's addresses each port is served, in
    /// the ports' order; `None` is all.
    HostPort(Arc<[Option<IpAddr>]>),
}

/// One entry of `spec.ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// `name`; empty for the one unnamed port.
    pub name: Arc<str>,
    /// `protocol`.
    pub protocol: Protocol,
    /// `port`, 1 to 65535.
    pub port: u16,
    /// `nodePort`; 0 is none.
    pub node_port: u16,
}

/// `spec.externalTrafficPolicy` or `spec.internalTrafficPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TrafficPolicy {
    /// Every endpoint of the cluster may serve.
    #[default]
    Cluster,
    /// Only endpoints on this node may.
    Local,
}
