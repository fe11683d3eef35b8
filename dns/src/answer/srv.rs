//! SRV records: a row for each address and port, a record for each host and port.

use std::net::IpAddr;

use model::name::Protocol;
use model::slices::MergedEndpoint;

use super::find::{address, turned};
use super::record::{Data, NameRef, Record};
use super::{Go, ttl};
use crate::config::Zone;
use crate::zone::ZoneView;
use crate::zone::service::{Host, Kind, PortEndpoints, ServiceView};

/// The SRV records at one name.
#[derive(Clone, Copy, Debug)]
pub struct Srv<'v> {
    service: &'v ServiceView,
    select: Select<'v>,
}

/// Of which ports and endpoints.
#[derive(Clone, Copy, Debug)]
enum Select<'v> {
    All,
    Port(&'v str, Protocol),
    Host(Host<'v>),
}

impl<'v> Srv<'v> {
    /// Those at `SVC.NS.svc`: every port, also an unnamed one, as upstream has it.
    pub(super) const fn of_service(service: &'v ServiceView) -> Self {
        Self { service, select: Select::All }
    }

    /// Those at `_P._tcp.SVC.NS.svc`.
    pub(super) const fn of_port(service: &'v ServiceView, name: &'v str, of: Protocol) -> Self {
        Self { service, select: Select::Port(name, of) }
    }

    /// Those at `HOST.SVC.NS.svc`: every port of that host.
    pub(super) const fn of_host(service: &'v ServiceView, host: Host<'v>) -> Self {
        Self { service, select: Select::Host(host) }
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        if self.is_of_endpoints() {
            !self
                .lists()
                .any(|list| self.of_list(list).any(|endpoint| endpoint.address.port() != 0))
        } else {
            self.n_rows() == 0
        }
    }

    /// Visits the records, endpoints from number `turn` on.
    pub(super) fn records(
        &self,
        zone: &'v Zone,
        turn: usize,
        visit: &mut impl FnMut(Data<'v>) -> Go,
    ) -> Go {
        // All rows share a hundred; a host and port that is there several times counts as often.
        let weight = u16::try_from(100 / self.n_rows().max(1)).unwrap_or(u16::MAX).max(1);
        if self.is_of_endpoints() {
            return self.targets(turn, &mut |endpoint| {
                let target = NameRef::Endpoint(zone, self.service, endpoint);
                visit(Data::Srv { weight, port: endpoint.address.port(), target })
            });
        }
        let target = NameRef::Service(zone, self.service);
        self.ports().try_for_each(|port| visit(Data::Srv { weight, port, target }))
    }

    /// Visits the addresses of the hosts in the records, in the same order.
    pub(super) fn additionals(
        &self,
        view: &'v ZoneView,
        zone: &'v Zone,
        turn: usize,
        visit: &mut impl FnMut(Record<'v>) -> Go,
    ) -> Go {
        let ttl = ttl(view);
        if self.is_of_endpoints() {
            return self.lists().enumerate().try_for_each(|(n_before, list)| {
                turned(self.of_list(list), turn).try_for_each(|endpoint| {
                    let ip = endpoint.address.ip();
                    let label = self.service.own_label(endpoint);
                    let same = |list: PortEndpoints<'v>| {
                        list.ready_at(ip).find(|other| self.service.own_label(other) == label)
                    };
                    let is_told = same(list).is_some_and(|first| first.address != endpoint.address)
                        || self.lists().take(n_before).any(|before| same(before).is_some());
                    if endpoint.address.port() == 0 || is_told {
                        return Go::Continue(());
                    }
                    let owner = NameRef::Endpoint(zone, self.service, endpoint);
                    visit(Record { owner, ttl, data: address(ip) })
                })
            });
        }
        let owner = NameRef::Service(zone, self.service);
        let v4 = self.service.v4().iter().map(|&v4| IpAddr::V4(v4));
        let v6 = self.service.v6().iter().map(|&v6| IpAddr::V6(v6));
        v4.chain(v6).try_for_each(|ip| visit(Record { owner, ttl, data: address(ip) }))
    }

    /// Whether the hosts are endpoints, and not the Service.
    fn is_of_endpoints(&self) -> bool {
        matches!(self.service.kind(), Kind::Headless) || matches!(self.select, Select::Host(_))
    }

    /// The distinct port numbers of a Service with its own addresses.
    fn ports(&self) -> impl Iterator<Item = u16> {
        let numbers = self.port_numbers();
        numbers.clone().enumerate().filter_map(move |(n_before, port)| {
            (!numbers.clone().take(n_before).any(|before| before == port)).then_some(port)
        })
    }

    fn port_numbers(&self) -> impl Iterator<Item = u16> + Clone {
        let select = self.select;
        self.service
            .service()
            .ports
            .iter()
            .filter(move |port| match select {
                Select::Port(name, protocol) => *port.name == *name && port.protocol == protocol,
                Select::All | Select::Host(_) => true,
            })
            .map(|port| port.port)
    }

    fn n_rows(&self) -> usize {
        if self.is_of_endpoints() {
            return self.lists().map(|list| self.of_list(list).count()).sum();
        }
        self.port_numbers().count() * (self.service.v4().len() + self.service.v6().len())
    }

    /// The endpoints of each port selected.
    fn lists(&self) -> impl Iterator<Item = PortEndpoints<'v>> + Clone + use<'v> {
        match self.select {
            Select::Port(name, protocol) => {
                self.service.endpoints(Some(name.as_bytes()), Some(protocol))
            }
            Select::All | Select::Host(_) => self.service.endpoints(None, None),
        }
    }

    /// Those of a list that are selected.
    fn of_list(
        &self,
        list: PortEndpoints<'v>,
    ) -> impl Iterator<Item = &'v MergedEndpoint> + Clone + use<'v> {
        let (all, host) = match self.select {
            Select::Host(host) => (None, Some(host)),
            Select::All | Select::Port(..) => (Some(list.ready()), None),
        };
        let of_host = host.into_iter().flat_map(Host::addresses);
        all.into_iter().flatten().chain(of_host.flat_map(move |ip| list.ready_at(ip)))
    }

    /// Visits one endpoint for each host and port.
    fn targets(&self, turn: usize, visit: &mut impl FnMut(&'v MergedEndpoint) -> Go) -> Go {
        self.lists().enumerate().try_for_each(|(n_before, list)| {
            turned(self.of_list(list), turn).try_for_each(|endpoint| {
                let told = || self.is_told_before(endpoint, list, n_before);
                if endpoint.address.port() == 0 || told() {
                    return Go::Continue(());
                }
                visit(endpoint)
            })
        })
    }

    /// Whether a record for this host and port precedes: another address of the same name in the
    /// list, or the same name in an earlier list.
    fn is_told_before(
        &self,
        endpoint: &MergedEndpoint,
        list: PortEndpoints<'v>,
        n_before: usize,
    ) -> bool {
        let port = endpoint.address.port();
        let ip = endpoint.address.ip();
        let serves = |list: PortEndpoints<'v>, ip| {
            list.ready_at(ip).any(|other| other.address.port() == port)
        };
        self.service.namesakes(endpoint).any(|namesake| namesake < ip && serves(list, namesake))
            || self.lists().take(n_before).any(|before| {
                serves(before, ip)
                    || self.service.namesakes(endpoint).any(|namesake| serves(before, namesake))
            })
    }
}
