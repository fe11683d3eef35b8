//! Leads this node's questions to the cluster's DNS to the server that runs here.
//!
//! ```text
//!  question to the Service's address ─▶ hook, packet program or rule ─▶ alive? ─┬─▶ the server here
//!                                                                               └─▶ the endpoints
//! ```
//!
//! The server is alive while a socket of this process is open. The kernel knows when it is not, so
//! that no question is lost to a process that was killed but those that were under way.

mod by;

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::Context;
use dns::server::{Names, device};
use dns::zone::Origin;
use load::dns::OwnDns;
use model::cluster::Snapshot;
use model::feed::FeedReader;
use model::name::{Family, NamespacedName};
use nix::net::if_::if_nametoindex;
use proxy::backend::nftables::{self, OwnDnsRules, OwnServer};
use tracing::{info, warn};

use self::by::By;
use crate::dns::Dns;

/// The port of DNS.
const PORT: u16 = 53;
/// The device of `NodeLocal DNSCache`, as its manifest names it.
const NODE_LOCAL: &str = "nodelocaldns";

/// Who leads, and how the kernel knows that it lives. Dropped, questions go to the endpoints.
pub(super) struct Lead {
    by: By,
    names: Names,
    servers: Vec<Server>,
    /// What is led, once that is known.
    led: Option<Vec<Led>>,
    rules: Option<OwnDnsRules>,
}

/// Where this process answers, in one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Server {
    address: SocketAddr,
    packet_port: u16,
    /// Nobody but this node asks it, so that what comes while it is dead may go elsewhere.
    fails_over: bool,
}

/// A cluster IP whose questions a server answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Led {
    service: SocketAddr,
    server: Server,
}

impl Lead {
    /// Leads nothing yet, unless a former process did so to the same server, and names can be told.
    /// `None` where there is no address to lead to. `own` is the eBPF mode's way.
    pub(super) fn new(own: Option<OwnDns>, dns: &Dns) -> anyhow::Result<Option<Self>> {
        let servers = servers(dns);
        if servers.is_empty() {
            return Ok(None);
        }
        if if_nametoindex(NODE_LOCAL).is_ok() {
            warn!(
                "NodeLocal DNSCache (device {NODE_LOCAL}) serves this node: questions to the \
                 cluster's DNS are not led here; remove it, or annotate Service \
                 kube-system/kube-dns with fairlead.dev/capture=false to leave them to it"
            );
            return Ok(None);
        }
        let mut by = By::new(own)?;
        let names = dns.names();
        if names.view().origin() != Origin::Nothing {
            by.resume(&servers)?;
        }
        Ok(Some(Self { by, names, servers, led: None, rules: None }))
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
            if let Err(error) = self.lead(&services, &update.snapshot) {
                warn!("questions to the cluster's DNS go to its endpoints: {error:#}");
            }
        }
    }

    fn lead(&mut self, services: &[IpAddr], snapshot: &Snapshot) -> anyhow::Result<()> {
        let led = led(services, &self.servers);
        let clients = clients(snapshot);
        if self.led.as_ref() != Some(&led) {
            for Led { service, server } in &led {
                info!(
                    "questions to {} are answered by {}; an egress policy that allows the DNS pods \
                     only has to allow that as well",
                    service.ip(),
                    server.address
                );
            }
        }
        self.by.lead(&led, &clients)?;
        self.led = Some(led);
        self.keep_rules(clients)
    }

    /// Without the rules questions are led in the eBPF mode all the same.
    fn keep_rules(&mut self, clients: Vec<ipnet::IpNet>) -> anyhow::Result<()> {
        let led = self.led.iter().flatten();
        let servers = self.servers.iter().map(|server| OwnServer {
            server: server.address,
            packet_port: server.packet_port,
            service: led
                .clone()
                .find(|led| led.server == *server)
                .map(|led| led.service)
                .filter(|_| self.by.needs_rules()),
        });
        let rules = OwnDnsRules { servers: servers.collect(), clients };
        if self.rules.as_ref() == Some(&rules) {
            return Ok(());
        }
        let applied = rules.apply();
        // Tried again when there is something new to say.
        self.rules = Some(rules);
        match applied {
            Err(error) if self.by.needs_rules() => Err(error.into()),
            Err(error) => {
                warn!(
                    "questions to this node's DNS server are tracked by netfilter, and its port \
                     refuses while it is dead: {error}"
                );
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }
}

/// Leads until the feed ends.
pub(super) async fn follow(lead: &mut Option<Lead>, feed: FeedReader, cluster_dns: &[IpAddr]) {
    match lead {
        Some(lead) => lead.follow(feed, cluster_dns).await,
        None => std::future::pending().await,
    }
}

/// The file in which is noted which addresses the node was given, beside a status file.
fn note_of(status: &Path) -> PathBuf {
    status.with_extension("addresses")
}

/// Notes which addresses the node was given, for [`forget`].
///
/// # Errors
/// The note cannot be written.
pub(super) fn note(status: &Path, addresses: &[IpAddr]) -> anyhow::Result<()> {
    let file = note_of(status);
    let mut noted = noted(&file);
    noted.extend(addresses);
    if noted.is_empty() {
        return Ok(());
    }
    let text: Vec<String> = noted.iter().map(ToString::to_string).collect();
    if let Some(dir) = file.parent() {
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    }
    fs::write(&file, text.join("\n")).with_context(|| format!("writing {}", file.display()))
}

fn noted(file: &Path) -> BTreeSet<IpAddr> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// Takes the addresses from the node that it was given, and the rules about them.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn forget(status: &Path) -> anyhow::Result<()> {
    let file = note_of(status);
    let noted: Vec<IpAddr> = noted(&file).into_iter().collect();
    if nftables::is_installed() {
        OwnDnsRules::remove()?;
    }
    if noted.is_empty() {
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(device::remove(&noted))?;
    Ok(fs::remove_file(file)?)
}

/// One server of each family that pods reach: neither at loopback, nor at an address of which nobody
/// knows which it is; best one that nobody else asks.
fn servers(dns: &Dns) -> Vec<Server> {
    let is_reachable = |ip: &IpAddr| !ip.is_loopback() && !ip.is_unspecified();
    let mut reachable: Vec<&SocketAddr> =
        dns.addresses().iter().filter(|address| is_reachable(&address.ip())).collect();
    reachable.sort_by_key(|address| !dns.link_local().contains(&address.ip()));
    let mut servers: Vec<Server> = Vec::new();
    for address in reachable {
        if servers.iter().any(|known| known.address.is_ipv4() == address.is_ipv4()) {
            continue;
        }
        let for_packets = dns.packet_ports().iter().find(|other| other.ip() == address.ip());
        servers.push(Server {
            address: *address,
            packet_port: for_packets.map_or(0, SocketAddr::port),
            fails_over: dns.link_local().contains(&address.ip()),
        });
    }
    servers
}

fn of_kube_dns(snapshot: &Snapshot) -> Vec<IpAddr> {
    let name = NamespacedName::new("kube-system", "kube-dns");
    let service = snapshot.services.get(&name).and_then(|state| state.service.as_ref());
    let routed = service.filter(|service| service.is_routed());
    routed.map(|service| service.cluster_ips.clone()).unwrap_or_default()
}

/// Who may ask this node's server: as the server itself has it.
fn clients(snapshot: &Snapshot) -> Vec<ipnet::IpNet> {
    let node = snapshot.node.iter();
    node.flat_map(|node| {
        let own = node.addresses.iter().map(|ip| ipnet::IpNet::from(*ip));
        own.chain(node.pod_cidrs.iter().map(ipnet::IpNet::trunc))
    })
    .collect()
}

/// For each family, whose questions are led where.
fn led(services: &[IpAddr], servers: &[Server]) -> Vec<Led> {
    let of_family = |server: &Server| {
        let family = Family::of(&server.address.ip());
        let service = services.iter().find(|ip| Family::of(ip) == family)?;
        Some(Led { service: SocketAddr::new(*service, PORT), server: *server })
    };
    servers.iter().filter_map(of_family).collect()
}

#[cfg(test)]
mod tests {
    use super::{Server, led};

    #[test]
    fn each_family_is_led_to_a_server_of_its_own() {
        let services = ["10.96.0.10".parse().unwrap(), "fd00::10".parse().unwrap()];
        let server = Server {
            address: "169.254.20.53:53".parse().unwrap(),
            packet_port: 4000,
            fails_over: true,
        };
        let found = led(&services, &[server]);
        assert_eq!(found.len(), 1, "nobody listens on IPv6");
        assert_eq!(found[0].service, "10.96.0.10:53".parse().unwrap());
        assert_eq!(led(&[], &[server]), []);
    }
}
