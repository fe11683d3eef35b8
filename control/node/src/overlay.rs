//! Tunnels to the other nodes, for pods whose addresses nobody between the nodes knows.

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use sandbox::link::{self, Behind, Links, Vxlan};
use sandbox::netns::Netns;

use crate::network::{NetworkError, device_name, gateway};

/// What leads to other nodes' pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overlay {
    /// Routes through nodes that are neighbours on one link.
    #[default]
    Routes,
    /// VXLAN, over whatever is between the nodes.
    Vxlan,
}

/// The tunnels' end on a node.
const DEVICE: &str = "fairlead.vxlan";
/// The tunnels' own network, and the port that IANA gave them.
const ID: u32 = 1;
const PORT: u16 = 4789;

/// This node's end of its tunnels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tunnel {
    /// Where other nodes send to.
    local: IpAddr,
    /// The largest packet that fits in.
    pub(crate) mtu: u32,
}

impl Tunnel {
    /// Makes the device, or takes over the one that is there.
    pub(crate) fn open(
        host: &Netns,
        local: IpAddr,
        ranges: &[IpNet],
    ) -> Result<Self, NetworkError> {
        let outer = host.run(|| device_name(local))??;
        let mut mtu = 0;
        link::configure(host, async |links| {
            mtu = links.mtu(&outer).await?.saturating_sub(overhead(local));
            let device = Vxlan { id: ID, port: PORT, local, mac: mac(local), mtu };
            links.vxlan(DEVICE, &device).await?;
            for range in ranges {
                own_address(links, range).await?;
            }
            Ok(())
        })?;
        Ok(Self { local, mtu })
    }

    /// Whether nodes find each other by addresses of IPv4.
    pub(crate) const fn is_ipv4(&self) -> bool {
        self.local.is_ipv4()
    }

    /// Leads what is for another node's pods to that node; `own` are this node's ranges.
    pub(crate) fn lead(
        &self,
        host: &Netns,
        own: &[IpNet],
        range: IpNet,
        node: IpAddr,
    ) -> Result<(), NetworkError> {
        let is_alike = |one: &&IpNet| one.addr().is_ipv4() == range.addr().is_ipv4();
        let source = own.iter().find(is_alike).and_then(gateway);
        let missing = || io::Error::other(format!("no address of this node's for {range}"));
        let (source, router) = source.zip(gateway(&range)).ok_or_else(missing)?;
        let behind = Behind {
            network: range.network(),
            prefix_len: range.prefix_len(),
            router,
            mac: mac(node),
            node,
            source,
        };
        Ok(link::configure(host, async |links| links.lead_through(DEVICE, &behind).await)?)
    }
}

/// The node's address among its pods is the device's as well: answers find their way back through it.
async fn own_address(links: &Links, range: &IpNet) -> Result<(), link::LinkError> {
    let Some(own) = gateway(range) else { return Ok(()) };
    match links.address(DEVICE, own, if own.is_ipv4() { 32 } else { 128 }).await {
        Err(error) if !error.is_there_already() => Err(error),
        _ => Ok(()),
    }
}

/// What a tunnel adds to a packet: Ethernet, VXLAN, UDP and IP.
const fn overhead(local: IpAddr) -> u32 {
    14 + 8 + 8 + if local.is_ipv4() { 20 } else { 40 }
}

/// What a node's device is called by everybody, so that nobody needs to be told.
fn mac(node: IpAddr) -> [u8; 6] {
    match node {
        IpAddr::V4(ip) => {
            let [a, b, c, d] = ip.octets();
            [0x0a, 0x58, a, b, c, d]
        }
        IpAddr::V6(ip) => {
            let hash = ip.octets().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
            });
            let [a, b, c, d, e, ..] = hash.to_be_bytes();
            [0x0a, a, b, c, d, e]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_called_after_its_node_and_by_nobody_else_s_name() {
        let v4 = "172.18.0.7".parse().unwrap();
        assert_eq!(mac(v4), [0x0a, 0x58, 172, 18, 0, 7]);
        let macs = ["fd00::1", "fd00::2"].map(|one| mac(one.parse().unwrap()));
        assert_ne!(macs[0], macs[1]);
        for mac in macs {
            assert_eq!(mac[0] & 3, 2, "of one device, and given by hand");
        }
    }

    #[test]
    fn a_tunnel_takes_fifty_bytes_of_a_packet_or_seventy() {
        assert_eq!(overhead("172.18.0.7".parse().unwrap()), 50);
        assert_eq!(overhead("fd00::1".parse().unwrap()), 70);
    }
}
