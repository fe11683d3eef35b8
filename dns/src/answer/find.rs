//! What a view holds at a name.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use model::name::{Family, Protocol};

use super::record::{Data, NameRef, Record};
use super::{Go, Srv, ttl};
use crate::config::{PodMode, Zone};
use crate::message::RecordType;
use crate::name::WireName;
use crate::query::{Asked, Key, What};
use crate::zone::ZoneView;
use crate::zone::service::{Host, Kind, PortEndpoints, ServiceView};

/// The schema of names that this follows, and how long that is true for.
const SCHEMA: (&str, u32) = ("1.1.0", 28_800);

/// What is at a name.
#[derive(Clone, Debug)]
pub(super) enum Found<'v> {
    /// No such name.
    Absent,
    /// The name exists; records of the type asked for may not.
    Here(Body<'v>),
    /// The name exists, and its addresses are not routed yet.
    Held,
    /// Another name.
    Alias(&'v WireName),
}

/// Records of one type at one name.
#[derive(Clone, Debug)]
pub enum Body<'v> {
    /// None.
    Nothing,
    /// The aliases that led here are the answer.
    Alias,
    /// IPv4 addresses.
    V4(&'v [Ipv4Addr]),
    /// IPv6 addresses.
    V6(&'v [Ipv6Addr]),
    /// The addresses of one family of the endpoints that share a name.
    Host(Host<'v>, Family),
    /// The addresses of one family of the ready endpoints of one port.
    Port(Port<'v>, Family),
    /// The one address that the name spells.
    Address(IpAddr),
    /// Where this server is reached, of one family.
    Server(Family),
    /// Where a service listens.
    Srv(Srv<'v>),
    /// The names of an address.
    Ptr(IpAddr),
    /// The schema.
    Version,
    /// The start of authority.
    Soa,
    /// The name servers of the zone.
    NameServers,
}

/// One named port of a headless Service.
#[derive(Clone, Copy, Debug)]
pub struct Port<'v> {
    service: &'v ServiceView,
    name: &'v str,
    protocol: Protocol,
}

impl<'v> Found<'v> {
    pub(super) fn by(view: &'v ZoneView, asked: &Asked<'v, '_>, rtype: RecordType) -> Self {
        let exists = |exists: bool| if exists { Self::Here(Body::Nothing) } else { Self::Absent };
        match asked.what {
            What::Service(key) => service(view, key, rtype),
            What::Endpoint(key, label) => endpoint(view, key, label, rtype),
            What::Port(key, protocol, port) => match protocol.known() {
                Some(protocol) => named_port(view, key, (port, protocol), rtype),
                None => Self::Absent,
            },
            What::Protocol(key, protocol) => {
                exists(protocol.known().is_some_and(|known| has_ports(view, key, known)))
            }
            What::Pod { namespace, address } => pod(view, namespace, address, rtype),
            What::Address(address) => {
                let has_name = owners(view, address).next().is_some();
                match rtype {
                    RecordType::PTR if has_name => Self::Here(Body::Ptr(address)),
                    _ => exists(has_name),
                }
            }
            What::Range(range) => exists(view.owns_any_of(range)),
            What::Namespace(namespace) => exists(view.has_namespace(namespace)),
            What::Apex => Self::Here(match rtype {
                RecordType::SOA => Body::Soa,
                RecordType::NS => Body::NameServers,
                _ => Body::Nothing,
            }),
            What::Version if rtype == RecordType::TXT => Self::Here(Body::Version),
            What::NameServer => Self::Here(server(view, rtype)),
            What::Version | What::Root => Self::Here(Body::Nothing),
            What::Nothing => Self::Absent,
        }
    }
}

fn service<'v>(view: &'v ZoneView, key: Key<'_>, rtype: RecordType) -> Found<'v> {
    let Some(service) = view.service(key) else { return Found::Absent };
    if let Kind::ExternalName(target) = service.kind() {
        // Types other than these would be asked of the target for nothing: it is told apart only
        // by its addresses and its alias, as upstream has it.
        return match rtype {
            RecordType::A | RecordType::AAAA | RecordType::TXT | RecordType::CNAME => {
                Found::Alias(target)
            }
            _ => Found::Here(Body::Nothing),
        };
    }
    if view.holds(service) {
        return Found::Held;
    }
    Found::Here(match rtype {
        RecordType::SRV => srv(Srv::of_service(service)),
        _ => addresses(service, rtype),
    })
}

fn addresses(service: &ServiceView, rtype: RecordType) -> Body<'_> {
    match rtype {
        RecordType::A if !service.v4().is_empty() => Body::V4(service.v4()),
        RecordType::AAAA if !service.v6().is_empty() => Body::V6(service.v6()),
        _ => Body::Nothing,
    }
}

fn srv(srv: Srv<'_>) -> Body<'_> {
    if srv.is_empty() { Body::Nothing } else { Body::Srv(srv) }
}

fn family(rtype: RecordType) -> Option<Family> {
    match rtype {
        RecordType::A => Some(Family::V4),
        RecordType::AAAA => Some(Family::V6),
        _ => None,
    }
}

fn endpoint<'v>(view: &'v ZoneView, key: Key<'_>, label: &[u8], rtype: RecordType) -> Found<'v> {
    let Some(service) = view.service(key) else { return Found::Absent };
    let Some(host) = service.host(label) else { return Found::Absent };
    Found::Here(match family(rtype) {
        Some(family) if host.addresses().any(|ip| Family::of(&ip) == family) => {
            Body::Host(host, family)
        }
        None if rtype == RecordType::SRV => srv(Srv::of_host(service, host)),
        _ => Body::Nothing,
    })
}

fn named_port<'v>(
    view: &'v ZoneView,
    key: Key<'_>,
    (label, protocol): (&[u8], Protocol),
    rtype: RecordType,
) -> Found<'v> {
    let Some(service) = view.service(key) else { return Found::Absent };
    let Some(name) = port_name(service, label, protocol) else { return Found::Absent };
    if view.holds(service) {
        return Found::Held;
    }
    Found::Here(match (rtype, family(rtype), service.kind()) {
        (RecordType::SRV, ..) => srv(Srv::of_port(service, name, protocol)),
        (_, Some(family), Kind::Headless) => {
            let port = Port { service, name, protocol };
            if port.addresses(family).next().is_some() {
                Body::Port(port, family)
            } else {
                Body::Nothing
            }
        }
        _ => addresses(service, rtype),
    })
}

/// A port of that name and protocol, which a client could connect to.
fn port_name<'v>(service: &'v ServiceView, label: &[u8], protocol: Protocol) -> Option<&'v str> {
    let matches = |name: &str| !name.is_empty() && label.eq_ignore_ascii_case(name.as_bytes());
    match service.kind() {
        Kind::ClusterIp => service
            .service()
            .ports
            .iter()
            .find(|port| port.protocol == protocol && matches(&port.name))
            .map(|port| &*port.name),
        Kind::Headless => service
            .named_ports()
            .find(|(name, of, list)| {
                *of == protocol && matches(name) && list.ready().next().is_some()
            })
            .map(|(name, ..)| name),
        Kind::ExternalName(_) => None,
    }
}

fn has_ports(view: &ZoneView, key: Key<'_>, protocol: Protocol) -> bool {
    let Some(service) = view.service(key) else { return false };
    match service.kind() {
        Kind::ClusterIp => {
            let mut ports = service.service().ports.iter();
            ports.any(|port| port.protocol == protocol && !port.name.is_empty())
        }
        Kind::Headless => service.named_ports().any(|(name, of, list)| {
            of == protocol && !name.is_empty() && list.ready().next().is_some()
        }),
        Kind::ExternalName(_) => false,
    }
}

fn pod<'v>(
    view: &'v ZoneView,
    namespace: &[u8],
    address: Option<IpAddr>,
    rtype: RecordType,
) -> Found<'v> {
    let Some(address) = address.filter(|_| view.has_namespace(namespace)) else {
        return Found::Absent;
    };
    match view.options().pods {
        PodMode::Insecure => {}
        PodMode::Verified if view.has_pod(namespace, address) => {}
        PodMode::Verified | PodMode::Disabled => return Found::Absent,
    }
    Found::Here(match family(rtype) {
        Some(family) if family == Family::of(&address) => Body::Address(address),
        _ => Body::Nothing,
    })
}

fn server(view: &ZoneView, rtype: RecordType) -> Body<'_> {
    match family(rtype) {
        Some(family) if view.server_addresses().any(|ip| Family::of(&ip) == family) => {
            Body::Server(family)
        }
        _ => Body::Nothing,
    }
}

/// The names of an address: that of the Service whose cluster IP it is, or else those of all
/// ready endpoints that have it.
fn owners(view: &ZoneView, address: IpAddr) -> impl Iterator<Item = Owner<'_>> {
    let service = view.owners(address).find(|service| {
        matches!(service.kind(), Kind::ClusterIp)
            && service.service().cluster_ips.contains(&address)
    });
    let endpoints =
        view.owners(address).take_while(move |_| service.is_none()).flat_map(move |service| {
            service.endpoints_at(address).map(move |it| Owner(service, Some(it)))
        });
    service.map(|service| Owner(service, None)).into_iter().chain(endpoints)
}

/// A Service, or one of its endpoints.
#[derive(Clone, Copy)]
struct Owner<'v>(&'v ServiceView, Option<&'v model::slices::MergedEndpoint>);

impl<'v> Owner<'v> {
    fn name(self, zone: &'v Zone) -> NameRef<'v> {
        match self.1 {
            Some(endpoint) => NameRef::Endpoint(zone, self.0, endpoint),
            None => NameRef::Service(zone, self.0),
        }
    }
}

impl<'v> Port<'v> {
    fn addresses(self, family: Family) -> impl Iterator<Item = IpAddr> + Clone + use<'v> {
        let mut before = None;
        self.service
            .endpoints(Some(self.name.as_bytes()), Some(self.protocol))
            .flat_map(PortEndpoints::ready)
            .map(|endpoint| endpoint.address.ip())
            .filter(move |ip| Family::of(ip) == family && before.replace(*ip) != Some(*ip))
    }
}

impl<'v> Body<'v> {
    /// Visits the records, which belong to `owner`, beginning with number `turn` where their order
    /// means nothing.
    pub(super) fn records(
        &self,
        view: &'v ZoneView,
        zone: &'v Zone,
        (owner, turn): (NameRef<'v>, usize),
        visit: &mut impl FnMut(Record<'v>) -> Go,
    ) -> Go {
        let ttl = ttl(view);
        let mut of_owner = |data| visit(Record { owner, ttl, data });
        match self {
            Self::Nothing | Self::Alias => Go::Continue(()),
            Self::V4(all) => rotated(all, turn).try_for_each(|ip| of_owner(Data::A(*ip))),
            Self::V6(all) => rotated(all, turn).try_for_each(|ip| of_owner(Data::Aaaa(*ip))),
            Self::Host(host, family) => {
                let mut all = host.addresses().filter(|ip| Family::of(ip) == *family);
                all.try_for_each(|ip| of_owner(address(ip)))
            }
            Self::Port(port, family) => {
                turned(port.addresses(*family), turn).try_for_each(|ip| of_owner(address(ip)))
            }
            Self::Address(ip) => of_owner(address(*ip)),
            Self::Server(family) => {
                let mut all = view.server_addresses().filter(|ip| Family::of(ip) == *family);
                all.try_for_each(|ip| of_owner(address(ip)))
            }
            Self::Srv(srv) => srv.records(zone, turn, &mut of_owner),
            Self::Ptr(ip) => {
                let Some(primary) = view.options().zones.first() else { return Go::Continue(()) };
                owners(view, *ip).try_for_each(|owner| of_owner(Data::Ptr(owner.name(primary))))
            }
            Self::Version => visit(Record { owner, ttl: SCHEMA.1, data: Data::Txt(SCHEMA.0) }),
            Self::Soa => visit(Record { owner, ..super::soa(view, zone) }),
            Self::NameServers => name_servers(view, zone, &mut |name, _| of_owner(Data::Ns(name))),
        }
    }
}

/// A slice from `turn` on, and then its beginning.
fn rotated<T>(all: &[T], turn: usize) -> impl Iterator<Item = &T> {
    let (front, back) = all.split_at(turn.checked_rem(all.len()).unwrap_or(0));
    back.iter().chain(front)
}

/// As [`rotated`], of what can only be walked.
pub(super) fn turned<T>(
    all: impl Iterator<Item = T> + Clone,
    turn: usize,
) -> impl Iterator<Item = T> {
    let n = all.clone().count();
    let from = turn.checked_rem(n).unwrap_or(0);
    all.clone().skip(from).chain(all.take(from))
}

pub(super) const fn address<'v>(ip: IpAddr) -> Data<'v> {
    match ip {
        IpAddr::V4(v4) => Data::A(v4),
        IpAddr::V6(v6) => Data::Aaaa(v6),
    }
}

/// Visits the zone's name servers, each with an address: the Services that this server is an
/// endpoint of, or else `ns.dns` at the addresses of the server, which it has in any case.
fn name_servers<'v>(
    view: &'v ZoneView,
    zone: &'v Zone,
    visit: &mut impl FnMut(NameRef<'v>, Option<IpAddr>) -> Go,
) -> Go {
    let mut before: Option<&ServiceView> = None;
    for server in view.server_addresses() {
        for service in view.owners(server) {
            if before.is_some_and(|before| before.key() == service.key()) {
                continue;
            }
            before = Some(service);
            if let Kind::Headless = service.kind() {
                for endpoint in service.endpoints_at(server) {
                    visit(NameRef::Endpoint(zone, service, endpoint), Some(server))?;
                }
            } else {
                visit(
                    NameRef::Service(zone, service),
                    service.service().cluster_ips.first().copied(),
                )?;
            }
        }
    }
    match before {
        Some(_) => Go::Continue(()),
        None => visit(NameRef::NameServer(zone), None),
    }
}

/// Visits the addresses of the name servers.
pub(super) fn glue<'v>(
    view: &'v ZoneView,
    zone: &'v Zone,
    visit: &mut impl FnMut(Record<'v>) -> Go,
) -> Go {
    let ttl = ttl(view);
    name_servers(view, zone, &mut |owner, of_endpoint| {
        let mut one = |ip| visit(Record { owner, ttl, data: address(ip) });
        match owner {
            NameRef::NameServer(_) => view.server_addresses().try_for_each(one),
            NameRef::Service(_, service) => {
                service.service().cluster_ips.iter().copied().try_for_each(one)
            }
            _ => of_endpoint.map_or(Go::Continue(()), &mut one),
        }
    })
}
