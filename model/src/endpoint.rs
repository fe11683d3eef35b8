//! Endpoints, as one `EndpointSlice` lists them.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::name::{Family, NamespacedName, Protocol};

/// One `discovery.k8s.io/v1` `EndpointSlice`, stripped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// `metadata.namespace` and `metadata.name`.
    pub name: NamespacedName,
    /// The Service it belongs to: the label `kubernetes.io/service-name`, same namespace.
    pub service: NamespacedName,
    /// `addressType`: the family of every address in it.
    pub family: Family,
    /// `ports`, without those whose name or number is absent.
    pub ports: Vec<EndpointPort>,
    /// `endpoints`, without those that have no address.
    pub endpoints: Vec<Endpoint>,
    /// Written by core/v1 `Endpoints`, which count only while no real slice exists.
    pub mirrored: bool,
    /// The annotation `fairlead.dev/weight`: how much of the Service's traffic each endpoint of
    /// this slice takes, relative to the others; `None` when absent.
    pub weight: Option<u16>,
    /// The label `service.kubernetes.io/headless` is present: names are made of it, but no cluster
    /// IP leads to it.
    pub headless: bool,
    /// The annotation `endpoints.kubernetes.io/last-change-trigger-time`, since the epoch.
    pub last_change_trigger: Option<Duration>,
}

/// One entry of an `EndpointSlice`'s `ports`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointPort {
    /// `name`; joins the Service's port of the same name and protocol.
    pub name: Arc<str>,
    /// `protocol`.
    pub protocol: Protocol,
    /// `port`, 1 to 65535.
    pub port: u16,
}

/// One entry of an `EndpointSlice`'s `endpoints`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `addresses[0]`; further ones are ignored, as upstream does.
    pub address: IpAddr,
    /// `conditions`.
    pub conditions: Conditions,
    /// `nodeName`; an endpoint without one counts as remote.
    pub node_name: Option<Arc<str>>,
    /// `zone`.
    pub zone: Option<Arc<str>>,
    /// `hints`; `None` when there are none, which is the rule.
    pub hints: Option<Box<Hints>>,
    /// `hostname`: the endpoint's own DNS label.
    pub hostname: Option<Arc<str>>,
    /// `targetRef.name` of a Pod.
    pub pod: Option<Arc<str>>,
}

/// `endpoints[].conditions`, absent values replaced by their defaults: ready and serving `true`,
/// terminating `false`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Conditions {
    /// Takes new connections. The one condition that routing asks first.
    pub ready: bool,
    /// Would be ready if it were not terminating.
    pub serving: bool,
    /// Its pod is being deleted.
    pub terminating: bool,
}

impl Default for Conditions {
    fn default() -> Self {
        Self { ready: true, serving: true, terminating: false }
    }
}

/// `endpoints[].hints`: where the endpoint should be preferred (KEP-2433, KEP-3015).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// `forZones[].name`, sorted.
    pub for_zones: Vec<Arc<str>>,
    /// `forNodes[].name`, sorted.
    pub for_nodes: Vec<Arc<str>>,
}
