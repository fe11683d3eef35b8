//! The network of one node's pods: a bridge, an address of each family, routes to other nodes.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use ipnet::IpNet;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::LinkAddr;
use sandbox::link::{self, Hop, LinkError, Peer};
use sandbox::netns::Netns;

use crate::overlay::Tunnel;

/// The bridge that a node's pods meet on.
const BRIDGE: &str = "fairlead0";
/// The pod's end of its link.
pub(crate) const LINK: &str = "eth0";

/// Addresses need no probing, and a busy client may use a port again after a second.
const POD_SYSCTLS: [(&str, &str); 3] = [
    ("ipv6/conf/all/accept_dad", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv4/tcp_tw_reuse", "1"),
];

/// Why a pod has no network.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    /// The kernel refused.
    #[error("{0}: {1}")]
    Link(LinkError, String),
    /// A namespace cannot be entered or set up.
    #[error("set up the network namespace: {0}")]
    Namespace(#[from] io::Error),
    /// Every address of a range is taken.
    #[error("no address left in {0}")]
    Full(IpNet),
}

impl From<LinkError> for NetworkError {
    fn from(error: LinkError) -> Self {
        let why = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        Self::Link(error, why)
    }
}

/// The pods' network on this node.
#[derive(Debug)]
pub(crate) struct Network {
    host: Netns,
    ranges: Vec<IpNet>,
    taken: Mutex<BTreeSet<IpAddr>>,
    /// By which other nodes' pods are reached, if routes do not lead there.
    tunnel: Option<Tunnel>,
    /// The largest packet that pods may send, if it is not what everybody may.
    mtu: Option<u32>,
}

impl Network {
    /// Makes the bridge, or takes over the one that is there.
    pub(crate) fn open(ranges: Vec<IpNet>) -> Result<Self, NetworkError> {
        let host = Netns::open(Path::new("/proc/self/ns/net"))?;
        if !ranges.is_empty() {
            set_up_bridge(&host, &ranges)?;
        }
        Ok(Self { host, ranges, taken: Mutex::default(), tunnel: None, mtu: None })
    }

    /// Reaches other nodes' pods by tunnels from the first of these addresses, the node's own.
    pub(crate) fn tunnel(&mut self, addresses: &[IpAddr]) -> Result<(), NetworkError> {
        let missing = || io::Error::other("the node has no address for others to send to");
        let local = *addresses.first().ok_or_else(missing)?;
        let tunnel = Tunnel::open(&self.host, local, &self.ranges)?;
        (self.tunnel, self.mtu) = (Some(tunnel), Some(tunnel.mtu));
        Ok(())
    }

    /// The network that another process has made and gives addresses of.
    pub(crate) fn of_another(ranges: Vec<IpNet>, mtu: Option<u32>) -> Result<Self, NetworkError> {
        let host = Netns::open(Path::new("/proc/self/ns/net"))?;
        Ok(Self { host, ranges, taken: Mutex::default(), tunnel: None, mtu })
    }

    /// Where pods' addresses come from.
    pub(crate) fn ranges(&self) -> &[IpNet] {
        &self.ranges
    }

    /// The largest packet that pods may send, if it is not what everybody may.
    pub(crate) const fn mtu(&self) -> Option<u32> {
        self.mtu
    }

    /// Whether other nodes are reached by tunnels over IPv4, or over IPv6; if by tunnels at all.
    pub(crate) fn tunnels_over_ipv4(&self) -> Option<bool> {
        self.tunnel.map(|tunnel| tunnel.is_ipv4())
    }

    /// Gives a pod a link and addresses, the first range's first.
    pub(crate) fn connect(&self, uid: &str, namespace: &Path) -> Result<Vec<IpAddr>, NetworkError> {
        let addresses = self.allocate()?;
        let linked = self.link(uid, namespace, &addresses);
        if linked.is_err() {
            self.release(&addresses);
        }
        linked.map(|()| addresses)
    }

    /// Gives a pod a link with these addresses, one a range.
    pub(crate) fn link(
        &self,
        uid: &str,
        namespace: &Path,
        addresses: &[IpAddr],
    ) -> Result<(), NetworkError> {
        let pod = &Netns::open(namespace)?;
        pod.set_sysctls(&POD_SYSCTLS)?;
        let port = port(uid);
        link::configure(&self.host, async |links| {
            links.veth(&port, Peer { name: LINK, netns: pod }, Some(BRIDGE)).await?;
            match self.mtu {
                Some(mtu) => links.set_mtu(&port, mtu).await,
                None => Ok(()),
            }
        })?;
        let configured = link::configure(pod, async |links| {
            links.set_up("lo", true).await?;
            if let Some(mtu) = self.mtu {
                links.set_mtu(LINK, mtu).await?;
            }
            links.set_up(LINK, true).await?;
            for (address, range) in addresses.iter().zip(&self.ranges) {
                links.address(LINK, *address, range.prefix_len()).await?;
                let everywhere = if address.is_ipv4() {
                    IpAddr::from([0_u8; 4])
                } else {
                    IpAddr::from([0_u8; 16])
                };
                if let Some(gateway) = gateway(range) {
                    links.route(everywhere, 0, Hop::Via(gateway, LINK)).await?;
                }
            }
            Ok(())
        });
        Ok(configured?)
    }

    /// Takes a pod's link away, and with it its addresses. That there is none is fine.
    pub(crate) fn disconnect(&self, uid: &str) -> Result<(), NetworkError> {
        let port = port(uid);
        let is_there = || self.host.run(|| if_nametoindex(port.as_str()).is_ok());
        if !is_there()? {
            return Ok(());
        }
        match link::configure(&self.host, async |links| links.remove(&port).await) {
            // The kernel may be faster: it goes with the pod's namespace.
            Err(error) if is_there()? => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Takes addresses that nobody has, one a range.
    pub(crate) fn allocate(&self) -> Result<Vec<IpAddr>, NetworkError> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let mut addresses = Vec::new();
        for range in &self.ranges {
            // The first is the bridge's.
            let free = range.hosts().skip(1).find(|address| !taken.contains(address));
            addresses.push(free.ok_or(NetworkError::Full(*range))?);
        }
        taken.extend(&addresses);
        Ok(addresses)
    }

    /// Gives these addresses to nobody else.
    pub(crate) fn take(&self, addresses: &[IpAddr]) {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).extend(addresses);
    }

    /// Lets addresses be given again.
    pub(crate) fn release(&self, addresses: &[IpAddr]) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        for address in addresses {
            taken.remove(address);
        }
    }

    /// Leads what is for another node's pods to that node. That the route is there is fine.
    pub(crate) fn add_route(&self, range: IpNet, node: IpAddr) -> Result<(), NetworkError> {
        if let Some(tunnel) = &self.tunnel {
            return tunnel.lead(&self.host, &self.ranges, range, node);
        }
        let uplink = uplink(&self.host, node)?;
        let added = link::configure(&self.host, async |links| {
            links.route(range.network(), range.prefix_len(), Hop::Via(node, &uplink)).await
        });
        match added {
            Err(error) if !error.is_there_already() => Err(error.into()),
            _ => Ok(()),
        }
    }
}

fn set_up_bridge(host: &Netns, ranges: &[IpNet]) -> Result<(), NetworkError> {
    host.set_sysctls(&[("ipv4/ip_forward", "1")])?;
    if ranges.iter().any(|range| range.addr().is_ipv6()) {
        host.set_sysctls(&[("ipv6/conf/all/forwarding", "1")])?;
    }
    link::configure(host, async |links| {
        if if_nametoindex(BRIDGE).is_err() {
            links.bridge(BRIDGE).await?;
        }
        links.set_up(BRIDGE, true).await?;
        for range in ranges {
            let Some(gateway) = gateway(range) else { continue };
            match links.address(BRIDGE, gateway, range.prefix_len()).await {
                Err(error) if !error.is_there_already() => return Err(error),
                _ => {}
            }
        }
        Ok(())
    })?;
    Ok(())
}

/// The node's own address among its pods': the first.
pub(crate) fn gateway(range: &IpNet) -> Option<IpAddr> {
    range.hosts().next()
}

/// The node's end of a pod's link: 15 bytes at most.
fn port(uid: &str) -> String {
    let digits = uid.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("veth{:011x}", digits & 0xfff_ffff_ffff)
}

/// The link on which a node is a neighbour: where its own address's network is.
fn uplink(host: &Netns, node: IpAddr) -> Result<String, NetworkError> {
    let found = host.run(|| {
        nix::ifaddrs::getifaddrs().ok()?.find_map(|one| {
            let own = address_of(one.address.as_ref()?)?;
            let mask = address_of(one.netmask.as_ref()?)?;
            let range = IpNet::with_netmask(own, mask).ok()?;
            range.contains(&node).then_some(one.interface_name)
        })
    })?;
    found.ok_or_else(|| {
        let why = format!("node {node} is no neighbour: no link has an address in its network");
        NetworkError::Namespace(io::Error::other(why))
    })
}

/// The name of the device that has an address.
pub(crate) fn device_name(address: IpAddr) -> io::Result<String> {
    let mut all = nix::ifaddrs::getifaddrs()?;
    let found = all.find(|one| one.address.as_ref().and_then(address_of) == Some(address));
    let missing = || io::Error::other(format!("no device has address {address}"));
    found.map(|one| one.interface_name).ok_or_else(missing)
}

/// The device that has an address, as packets that are for its whole link name it.
pub(crate) fn device_of(address: IpAddr) -> io::Result<LinkAddr> {
    let name = device_name(address)?;
    let mut ends = nix::ifaddrs::getifaddrs()?.filter(|one| one.interface_name == name);
    let link = ends.find_map(|one| one.address?.as_link_addr().copied());
    link.ok_or_else(|| io::Error::other(format!("the device {name} has no address on its link")))
}

/// An address out of the system's own form.
fn address_of(address: &nix::sys::socket::SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|one| IpAddr::from(one.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|one| IpAddr::from(one.ip())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_named_after_its_pod_in_fifteen_bytes() {
        let names: BTreeSet<String> = (0..1000).map(|n| port(&format!("uid-{n}"))).collect();
        assert_eq!(names.len(), 1000);
        assert!(names.iter().all(|name| name.len() == 15));
    }

    #[test]
    fn the_first_address_of_a_range_is_the_node_s() {
        let range: IpNet = "10.244.3.0/24".parse().unwrap();
        assert_eq!(gateway(&range), Some("10.244.3.1".parse().unwrap()));
        let range: IpNet = "fd00:10:244:3::/64".parse().unwrap();
        assert!(gateway(&range).is_some_and(|address| range.contains(&address)));
    }
}
