//! The `EndpointSlices` of one Service, merged and deduplicated.
//!
//! Slices of one Service may overlap: a pod is in two of them while it moves, or two controllers
//! disagree. Upstream lets the order of a hash map decide; here the same slices give the same
//! result whatever their order: a local copy wins, then the more usable one, and hints are united.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::endpoint::{Conditions, Endpoint, EndpointSlice, Hints};
use crate::name::{Family, Protocol};

/// What all slices of one Service say together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MergedEndpoints {
    /// For each port name and protocol, the endpoints of both families, ordered by address.
    pub ports: ByPort,
    /// The endpoints of slices that list no port, as those of a headless Service without ports
    /// are; ordered by address, the port number 0.
    pub portless: Arc<[MergedEndpoint]>,
    /// The latest `endpoints.kubernetes.io/last-change-trigger-time` of all slices, since the epoch.
    pub last_change_trigger: Option<Duration>,
}

impl MergedEndpoints {
    /// The endpoints that serve a port, of one family, ordered by address.
    pub fn of(
        &self,
        port: &Arc<str>,
        protocol: Protocol,
        family: Family,
    ) -> impl Iterator<Item = &MergedEndpoint> {
        self.ports
            .get(&(Arc::clone(port), protocol))
            .into_iter()
            .flat_map(|endpoints| endpoints.iter())
            .filter(move |endpoint| Family::of(&endpoint.address.ip()) == family)
    }
}

/// What a Service's endpoints are found by: a port's name and protocol.
pub type PortKey = (Arc<str>, Protocol);

/// Endpoints by port, ordered. Most Services have one port, for which a node of a tree is ten times too large.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ByPort(Box<[(PortKey, Arc<[MergedEndpoint]>)]>);

impl ByPort {
    /// The endpoints of a port, of both families.
    pub fn get(&self, key: &PortKey) -> Option<&Arc<[MergedEndpoint]>> {
        let idx = self.0.binary_search_by(|(other, _)| other.cmp(key)).ok()?;
        self.0.get(idx).map(|(_, endpoints)| endpoints)
    }

    /// Every port with its endpoints.
    pub fn iter(&self) -> impl Iterator<Item = (&PortKey, &Arc<[MergedEndpoint]>)> + Clone {
        self.0.iter().map(|(key, endpoints)| (key, endpoints))
    }

    /// The endpoints of every port.
    pub fn values(&self) -> impl Iterator<Item = &Arc<[MergedEndpoint]>> + Clone {
        self.0.iter().map(|(_, endpoints)| endpoints)
    }
}

impl FromIterator<(PortKey, Arc<[MergedEndpoint]>)> for ByPort {
    /// Of several with one key the last one counts.
    fn from_iter<I: IntoIterator<Item = (PortKey, Arc<[MergedEndpoint]>)>>(ports: I) -> Self {
        let ports: BTreeMap<_, _> = ports.into_iter().collect();
        Self(ports.into_iter().collect())
    }
}

/// One address and port that serves one port of one Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MergedEndpoint {
    /// Where it listens.
    pub address: SocketAddr,
    /// Whether it may be used.
    pub conditions: Conditions,
    /// On this node: its `nodeName` is this node's. An endpoint without `nodeName` is remote.
    pub local: bool,
    /// `zone`.
    pub zone: Option<Arc<str>>,
    /// The hints of all its copies together.
    pub hints: Option<Box<Hints>>,
    /// `hostname`, its own DNS label.
    pub hostname: Option<Arc<str>>,
    /// The Pod behind it.
    pub pod: Option<Arc<str>>,
    /// Its share, relative to the others; `None` counts as 1 among weighted ones.
    pub weight: Option<u16>,
}

/// Merges the slices of one Service, as seen from the node of that name. Slices made from core/v1
/// `Endpoints` count only while there is no other.
pub fn merge<'a>(
    node_name: &str,
    slices: impl IntoIterator<Item = &'a Arc<EndpointSlice>>,
) -> MergedEndpoints {
    let (mirrored, real): (Vec<_>, Vec<_>) = slices.into_iter().partition(|slice| slice.mirrored);
    let counted = if real.is_empty() { mirrored } else { real };

    let mut ports: BTreeMap<PortKey, ByAddress> = BTreeMap::new();
    let mut portless = ByAddress::new();
    let mut last_change_trigger = None;
    for slice in counted {
        last_change_trigger = last_change_trigger.max(slice.last_change_trigger);
        if slice.ports.is_empty() {
            add(&mut portless, node_name, slice, 0);
        }
        for port in &slice.ports {
            let of_port = ports.entry((Arc::clone(&port.name), port.protocol)).or_default();
            add(of_port, node_name, slice, port.port);
        }
    }
    MergedEndpoints {
        ports: ports
            .into_iter()
            .map(|(port, endpoints)| (port, endpoints.into_values().collect()))
            .collect(),
        // What is empty is everybody's, and takes no room.
        portless: match portless.is_empty() {
            true => Arc::default(),
            false => portless.into_values().collect(),
        },
        last_change_trigger,
    }
}

type ByAddress = BTreeMap<SocketAddr, MergedEndpoint>;

fn add(to: &mut ByAddress, node_name: &str, slice: &EndpointSlice, port: u16) {
    for endpoint in &slice.endpoints {
        let copy = merged_endpoint(node_name, endpoint, port, slice.weight);
        match to.entry(copy.address) {
            Entry::Vacant(free) => {
                free.insert(copy);
            }
            Entry::Occupied(mut other) => other.get_mut().unite(copy),
        }
    }
}

fn merged_endpoint(
    node_name: &str,
    endpoint: &Endpoint,
    port: u16,
    weight: Option<u16>,
) -> MergedEndpoint {
    MergedEndpoint {
        address: socket(endpoint.address, port),
        conditions: endpoint.conditions,
        local: endpoint.node_name.as_deref() == Some(node_name),
        zone: endpoint.zone.clone(),
        hints: endpoint.hints.clone(),
        hostname: endpoint.hostname.clone(),
        pod: endpoint.pod.clone(),
        weight,
    }
}

const fn socket(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}

impl MergedEndpoint {
    /// Takes the better of two copies of one endpoint, and the hints of both. Commutative and
    /// associative, so that the order of slices does not matter.
    fn unite(&mut self, other: Self) {
        let hints = union(self.hints.take(), other.hints.clone());
        if other.rank() > self.rank() {
            *self = other;
        }
        self.hints = hints;
    }

    /// Local first, then ready, then serving while terminating; what is left breaks ties.
    fn rank(&self) -> impl Ord + use<> {
        let Conditions { ready, serving, terminating } = self.conditions;
        (
            self.local,
            ready,
            serving && terminating,
            serving,
            !terminating,
            self.weight,
            self.zone.clone(),
            self.hostname.clone(),
            self.pod.clone(),
        )
    }
}

fn union(a: Option<Box<Hints>>, b: Option<Box<Hints>>) -> Option<Box<Hints>> {
    match (a, b) {
        (Some(mut a), Some(b)) => {
            a.for_zones.extend(b.for_zones);
            a.for_zones.sort();
            a.for_zones.dedup();
            a.for_nodes.extend(b.for_nodes);
            a.for_nodes.sort();
            a.for_nodes.dedup();
            Some(a)
        }
        (one, other) => one.or(other),
    }
}
