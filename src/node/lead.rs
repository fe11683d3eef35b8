//! Leads this node's questions to the cluster's DNS to the server that runs here.
//!
//! ```text
//!  program ─▶ connect or send to the Service's address ─▶ hook ─▶ alive? ─┬─▶ the server here
//!                                                                         └─▶ the Service's endpoints
//! ```
//!
//! The server is alive while a socket of this process is open. The kernel knows when it is not, so
//! that no question is lost to a process that was killed but those that were under way.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use anyhow::Context;
use dns::server::Names;
use dns::zone::Origin;
use load::MapError;
use load::dns::{Addr, N_FAMILIES, OwnDns, OwnServer, family_index};
use model::cluster::Snapshot;
use model::feed::FeedReader;
use model::name::NamespacedName;
use nix::net::if_::if_nametoindex;
use tracing::{info, warn};

/// The port of DNS.
const PORT: u16 = 53;
/// The device of `NodeLocal DNSCache`, as its manifest names it.
const NODE_LOCAL: &str = "nodelocaldns";

/// Who leads, and how the kernel knows that it lives. Dropped, questions go to the endpoints.
pub(super) struct Lead {
    own: OwnDns,
    names: Names,
    servers: Vec<SocketAddr>,
    alive: UdpSocket,
}

impl Lead {
    /// Leads nothing yet, unless a former process did so to the same server, and names can be told.
    /// `None` where there is no address to lead to.
    pub(super) fn new(
        own: Option<OwnDns>,
        names: Names,
        listen: &[SocketAddr],
    ) -> anyhow::Result<Option<Self>> {
        let servers: Vec<SocketAddr> = listen.iter().copied().filter(reachable).collect();
        let Some(own) = own.filter(|_| !servers.is_empty()) else { return Ok(None) };
        if if_nametoindex(NODE_LOCAL).is_ok() {
            warn!(
                "NodeLocal DNSCache (device {NODE_LOCAL}) serves this node: questions to the \
                 cluster's DNS are not led here; remove it, or annotate Service \
                 kube-system/kube-dns with fairlead.dev/capture=false to leave them to it"
            );
            return Ok(None);
        }
        let alive = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("opening a socket")?;
        let mut lead = Self { own, names, servers, alive };
        let before = lead.own.servers()?;
        let is_same = before.iter().any(|it| lead.servers.contains(&address(it)));
        if is_same && lead.names.view().origin() != Origin::Nothing {
            lead.own.alive(&lead.alive)?;
        }
        Ok(Some(lead))
    }

    async fn follow(&mut self, mut feed: FeedReader, cluster_dns: &[IpAddr]) {
        while let Some(update) = feed.next().await {
            // The same update is about to reach the names.
            while !self.names.is_synced() {
                tokio::task::yield_now().await;
            }
            let services = match cluster_dns {
                [] => of_kube_dns(&update.snapshot),
                given => given.to_vec(),
            };
            if let Err(error) = self.lead(&services) {
                warn!("questions to the cluster's DNS go to its endpoints: {error}");
            }
        }
    }

    fn lead(&mut self, services: &[IpAddr]) -> Result<(), MapError> {
        let desired = desired(services, &self.servers);
        if self.own.servers()? != desired {
            self.own.dead();
            self.own.set_servers(desired)?;
            for it in desired.iter().filter(|it| it.service_port != 0) {
                info!(
                    "questions to {} are answered by {}; an egress policy that allows the DNS pods \
                     only has to allow that as well",
                    IpAddr::from(it.service),
                    address(it)
                );
            }
        }
        if services.is_empty() {
            self.own.dead();
            return Ok(());
        }
        self.own.alive(&self.alive)
    }
}

/// Leads until the feed ends.
pub(super) async fn follow(lead: &mut Option<Lead>, feed: FeedReader, cluster_dns: &[IpAddr]) {
    match lead {
        Some(lead) => lead.follow(feed, cluster_dns).await,
        None => std::future::pending().await,
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        self.own.dead();
    }
}

/// Pods reach it: neither loopback, nor an address of which nobody knows which it is.
fn reachable(server: &SocketAddr) -> bool {
    !server.ip().is_loopback() && !server.ip().is_unspecified()
}

fn of_kube_dns(snapshot: &Snapshot) -> Vec<IpAddr> {
    let name = NamespacedName::new("kube-system", "kube-dns");
    let service = snapshot.services.get(&name).and_then(|state| state.service.as_ref());
    let routed = service.filter(|service| service.is_routed());
    routed.map(|service| service.cluster_ips.clone()).unwrap_or_default()
}

/// For each family, whose questions are led where; the first server of a family is as good as the
/// others.
fn desired(services: &[IpAddr], servers: &[SocketAddr]) -> [OwnServer; N_FAMILIES] {
    let mut desired = [OwnServer::default(); N_FAMILIES];
    for (idx, element) in (0..).zip(&mut desired) {
        let service = services.iter().find(|ip| family_index(Addr::from(**ip)) == idx);
        let server = servers.iter().find(|server| family_index(Addr::from(server.ip())) == idx);
        if let (Some(service), Some(server)) = (service, server) {
            *element = OwnServer {
                service: Addr::from(*service),
                server: Addr::from(server.ip()),
                service_port: PORT.to_be(),
                server_port: server.port().to_be(),
                pad: 0,
            };
        }
    }
    desired
}

fn address(own: &OwnServer) -> SocketAddr {
    SocketAddr::new(own.server.into(), u16::from_be(own.server_port))
}

#[cfg(test)]
mod tests {
    use super::{address, desired};

    #[test]
    fn each_family_is_led_to_a_server_of_its_own() {
        let services = ["10.96.0.10".parse().unwrap(), "fd00::10".parse().unwrap()];
        let server = "169.254.20.53:53".parse().unwrap();
        let [v4, v6] = desired(&services, &[server]);
        assert_eq!((address(&v4), v4.service_port), (server, 53_u16.to_be()));
        assert_eq!(v6.service_port, 0, "nobody listens on IPv6");
        assert_eq!(desired(&[], &[server])[0].service_port, 0);
    }
}
