//! One Service's part of a zone view.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use model::cluster::ServiceState;
use model::name::{NamespacedName, Protocol};
use model::service::{Service, ServiceType};
use model::slices::{MergedEndpoint, MergedEndpoints};
use smallvec::SmallVec;

use crate::config::Options;
use crate::name::{MAX_LABEL, WireName};
use crate::query::{self, Key};

/// A Service that has names, and what its records are made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceView {
    key: KeyBuf,
    kind: Kind,
    v4: SmallVec<[Ipv4Addr; 4]>,
    v6: SmallVec<[Ipv6Addr; 1]>,
    /// Ready endpoints that have a label of their own, ordered by label, then address.
    named: Box<[Named]>,
    service: Arc<Service>,
    endpoints: Arc<MergedEndpoints>,
    pod_names: bool,
}

/// Which records a Service has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Its own addresses.
    ClusterIp,
    /// Its endpoints' addresses.
    Headless,
    /// An alias.
    ExternalName(WireName),
}

/// An endpoint's own label, lower-cased for comparison.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Named {
    label: Arc<str>,
    address: IpAddr,
}

/// The endpoints of one Service that share a label.
#[derive(Clone, Copy, Debug)]
pub struct Host<'v> {
    named: &'v [Named],
    spelled: Option<IpAddr>,
}

/// A Service's two labels on the wire.
pub(crate) type KeyBuf = SmallVec<[u8; 40]>;

/// The same of any question: there is room for the longest, so that none of them allocates.
pub(crate) type FrontKey = SmallVec<[u8; LONGEST_KEY]>;

/// Two labels with their lengths.
const LONGEST_KEY: usize = 2 * (1 + MAX_LABEL);

/// The endpoints of one port; port 0 stands for none.
#[derive(Clone, Copy, Debug)]
pub struct PortEndpoints<'v> {
    /// The endpoints, ordered by address, ready or not.
    pub all: &'v [MergedEndpoint],
}

impl ServiceView {
    /// `None` for what has no name: a headless Service without ready endpoints, an alias that is
    /// none, slices without their Service.
    pub(crate) fn build(options: &Options, state: &ServiceState) -> Option<Self> {
        let service = state.service.as_ref()?;
        if !has_labels(&service.name) {
            return None;
        }
        let kind = kind(service)?;
        let endpoints = if options.endpoints && !matches!(kind, Kind::ExternalName(_)) {
            Arc::clone(&state.endpoints)
        } else {
            Arc::default()
        };
        let mut view = Self {
            key: key(&service.name),
            kind,
            v4: SmallVec::new(),
            v6: SmallVec::new(),
            named: Box::default(),
            service: Arc::clone(service),
            endpoints,
            pod_names: options.endpoint_pod_names,
        };
        let ready = ready_addresses(&view.endpoints);
        match view.kind {
            Kind::ClusterIp if options.ignore_empty_service && ready.is_empty() => return None,
            Kind::ClusterIp => view.add(service.cluster_ips.iter().copied()),
            Kind::Headless if ready.is_empty() => return None,
            Kind::Headless => view.add(ready),
            Kind::ExternalName(_) => {}
        }
        view.named = view.build_named();
        Some(view)
    }

    fn add(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        for address in addresses {
            match address {
                IpAddr::V4(v4) if !self.v4.contains_last(&v4) => self.v4.push(v4),
                IpAddr::V6(v6) if !self.v6.contains_last(&v6) => self.v6.push(v6),
                IpAddr::V4(_) | IpAddr::V6(_) => {}
            }
        }
        self.v4.shrink_to_fit();
        self.v6.shrink_to_fit();
    }

    fn build_named(&self) -> Box<[Named]> {
        let mut named: Vec<Named> = self
            .lists()
            .flat_map(PortEndpoints::ready)
            .filter_map(|endpoint| {
                let label = lower(self.own_label(endpoint)?);
                Some(Named { label, address: endpoint.address.ip() })
            })
            .collect();
        named.sort();
        named.dedup();
        named.into()
    }

    /// The name of the object.
    pub fn name(&self) -> &NamespacedName {
        &self.service.name
    }

    /// What finds it in a view.
    pub fn key(&self) -> Key<'_> {
        Key(&self.key)
    }

    /// What most are asked for.
    pub(super) fn first_address(&self) -> Option<IpAddr> {
        let v4 = self.v4.first().copied().map(IpAddr::V4);
        v4.or_else(|| self.v6.first().copied().map(IpAddr::V6))
    }

    /// Which records it has.
    pub fn kind(&self) -> &Kind {
        &self.kind
    }

    /// Its IPv4 addresses: its own, or those of its ready endpoints when headless.
    pub fn v4(&self) -> &[Ipv4Addr] {
        &self.v4
    }

    /// Its IPv6 addresses, likewise.
    pub fn v6(&self) -> &[Ipv6Addr] {
        &self.v6
    }

    /// The object.
    pub fn service(&self) -> &Service {
        &self.service
    }

    /// The endpoints of every port whose name and protocol match; `None` matches any. Asked for
    /// any, those of slices without ports are among them.
    pub fn endpoints(
        &self,
        port: Option<&[u8]>,
        protocol: Option<Protocol>,
    ) -> impl Iterator<Item = PortEndpoints<'_>> + Clone {
        let any = port.is_none() && protocol.is_none();
        self.endpoints
            .ports
            .iter()
            .filter(move |((name, of), _)| {
                port.is_none_or(|port| {
                    !name.is_empty() && port.eq_ignore_ascii_case(name.as_bytes())
                }) && protocol.is_none_or(|protocol| protocol == *of)
            })
            .map(|(_, all)| PortEndpoints { all })
            .chain(any.then_some(PortEndpoints { all: &self.endpoints.portless }))
    }

    /// The ports that endpoints name, with their endpoints.
    pub fn named_ports(&self) -> impl Iterator<Item = (&str, Protocol, PortEndpoints<'_>)> {
        let named = self.endpoints.ports.iter().filter(|((name, _), _)| !name.is_empty());
        named.map(|((name, protocol), all)| (&**name, *protocol, PortEndpoints { all }))
    }

    /// One ready endpoint of each name that an address has here.
    pub fn endpoints_at(&self, address: IpAddr) -> impl Iterator<Item = &MergedEndpoint> {
        let mut before: Option<Option<&Arc<str>>> = None;
        self.lists().flat_map(move |list| list.ready_at(address)).filter(move |endpoint| {
            let label = self.own_label(endpoint);
            before.replace(label) != Some(label)
        })
    }

    fn lists(&self) -> impl Iterator<Item = PortEndpoints<'_>> + Clone {
        self.endpoints(None, None)
    }

    /// The label that an endpoint has of its own; without one it is named for its address.
    pub fn own_label<'e>(&self, endpoint: &'e MergedEndpoint) -> Option<&'e Arc<str>> {
        let pod = || endpoint.pod.as_ref().filter(|pod| self.pod_names && pod.len() <= MAX_LABEL);
        endpoint.hostname.as_ref().filter(|hostname| is_label(hostname)).or_else(pod)
    }

    /// The ready endpoints with this label, lower-case; none is no such name.
    pub fn host(&self, label: &[u8]) -> Option<Host<'_>> {
        let named = self.named_as(label);
        // `10-0-0-1`, in that spelling only, names an endpoint that has no label of its own.
        let spelled = query::dashed_address(label)
            .filter(|&address| dashed(address).as_bytes() == label)
            .filter(|&address| {
                let mut at = self.lists().flat_map(|list| list.ready_at(address));
                at.any(|endpoint| self.own_label(endpoint).is_none())
            });
        (!named.is_empty() || spelled.is_some()).then_some(Host { named, spelled })
    }

    fn named_as(&self, label: &[u8]) -> &[Named] {
        let from = self.named.partition_point(|named| named.label.as_bytes() < label);
        let rest = self.named.get(from..).unwrap_or_default();
        let n = rest.partition_point(|named| named.label.as_bytes() == label);
        rest.get(..n).unwrap_or_default()
    }

    /// The addresses of all endpoints that share an endpoint's own label, in order.
    pub(crate) fn namesakes(
        &self,
        endpoint: &MergedEndpoint,
    ) -> impl Iterator<Item = IpAddr> + use<'_> {
        let label = self.own_label(endpoint).map(lower);
        let named = label.map(|label| self.named_as(label.as_bytes())).unwrap_or_default();
        named.iter().map(|named| named.address)
    }

    /// Every address that a PTR record leads from to this Service.
    pub(crate) fn addresses(&self) -> BTreeSet<IpAddr> {
        let mut addresses = ready_addresses(&self.endpoints);
        addresses.extend(self.service.cluster_ips.iter().copied());
        addresses
    }
}

impl<'v> Host<'v> {
    /// Their addresses.
    pub fn addresses(self) -> impl Iterator<Item = IpAddr> + Clone + use<'v> {
        self.named.iter().map(|named| named.address).chain(self.spelled)
    }
}

impl<'v> PortEndpoints<'v> {
    /// Those that are ready.
    pub fn ready(self) -> impl Iterator<Item = &'v MergedEndpoint> + Clone {
        self.all.iter().filter(|endpoint| endpoint.conditions.ready)
    }

    /// Those that are ready at one address: several when slices disagree about the port.
    pub fn ready_at(self, address: IpAddr) -> impl Iterator<Item = &'v MergedEndpoint> + Clone {
        let from = self.all.partition_point(|endpoint| endpoint.address.ip() < address);
        self.all
            .get(from..)
            .unwrap_or_default()
            .iter()
            .take_while(move |endpoint| endpoint.address.ip() == address)
            .filter(|endpoint| endpoint.conditions.ready)
    }
}

trait ContainsLast<T> {
    /// Whether what comes in order is there already.
    fn contains_last(&self, value: &T) -> bool;
}

impl<A: smallvec::Array<Item: PartialEq>> ContainsLast<A::Item> for SmallVec<A> {
    fn contains_last(&self, value: &A::Item) -> bool {
        self.last() == Some(value)
    }
}

fn kind(service: &Service) -> Option<Kind> {
    match &service.service_type {
        // What parses as an address is no alias, as upstream has it.
        ServiceType::ExternalName(name) if name.parse::<IpAddr>().is_ok() => None,
        ServiceType::ExternalName(name) => WireName::parse(name).ok().map(Kind::ExternalName),
        ServiceType::HostPort(_) => None,
        _ if service.headless => Some(Kind::Headless),
        ServiceType::ClusterIp | ServiceType::NodePort | ServiceType::LoadBalancer => {
            Some(Kind::ClusterIp)
        }
    }
}

/// The key of a Service of that name.
pub(crate) fn key(name: &NamespacedName) -> KeyBuf {
    let mut key = KeyBuf::new();
    for label in [&name.name, &name.namespace] {
        key.push(u8::try_from(label.len()).unwrap_or(u8::MAX));
        key.extend(label.bytes().map(|octet| octet.to_ascii_lowercase()));
    }
    key
}

/// The key of a Service whose name on the wire begins here, if labels can be so long.
pub(crate) fn key_in_front(name: &[u8]) -> Option<FrontKey> {
    let n_first = 1 + usize::from(*name.first()?);
    let n_both = n_first + 1 + usize::from(*name.get(n_first)?);
    let labels = name.get(..n_both).filter(|labels| labels.len() <= LONGEST_KEY)?;
    let mut key = FrontKey::from_slice(labels);
    // Length octets are no letters.
    key.make_ascii_lowercase();
    Some(key)
}

fn has_labels(name: &NamespacedName) -> bool {
    is_label(&name.name) && is_label(&name.namespace)
}

fn is_label(text: &str) -> bool {
    (1..=MAX_LABEL).contains(&text.len()) && !text.contains('.')
}

fn lower(label: &Arc<str>) -> Arc<str> {
    if label.bytes().any(|octet| octet.is_ascii_uppercase()) {
        label.to_ascii_lowercase().into()
    } else {
        Arc::clone(label)
    }
}

fn ready_addresses(endpoints: &MergedEndpoints) -> BTreeSet<IpAddr> {
    endpoints
        .ports
        .values()
        .chain([&endpoints.portless])
        .flat_map(|all| PortEndpoints { all }.ready())
        .map(|endpoint| endpoint.address.ip())
        .collect()
}

/// Whether a pod of that address is among the endpoints, ready or not.
pub(crate) fn holds_pod(endpoints: &MergedEndpoints, address: IpAddr) -> bool {
    endpoints.ports.values().chain([&endpoints.portless]).any(|all| {
        let from = all.partition_point(|endpoint| endpoint.address.ip() < address);
        all.get(from..)
            .unwrap_or_default()
            .iter()
            .take_while(|endpoint| endpoint.address.ip() == address)
            .any(|endpoint| endpoint.pod.is_some())
    })
}

/// An address as a label: dots and colons become dashes, and a label may not end in one.
pub fn dashed(address: IpAddr) -> String {
    let mut label = match address {
        IpAddr::V4(v4) => v4.to_string().replace('.', "-"),
        IpAddr::V6(v6) => v6.to_string().replace([':', '.'], "-"),
    };
    if label.ends_with('-') {
        label.push('0');
    }
    label
}
