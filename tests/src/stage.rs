//! The stage on which the cases play: two nodes with pods, and clients outside of the cluster. Its
//! addresses are those that the sandbox gives, so that a case plays with real packets as it is.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use model::name::Family;

/// The node that a case is seen from.
pub const NODE: &str = "node-a";

/// The flags that every case begins with.
pub const FLAGS: [&str; 3] = [
    "--hostname-override=node-a",
    "--cluster-cidr=10.244.0.0/16,fd00:10:244::/48",
    "--service-cidrs=10.96.0.0/16,fd00:10:96::/112",
];

/// This node's object, where a case has none of its own.
pub const NODE_OBJECT: &str = "\
apiVersion: v1
kind: Node
metadata: {name: node-a, labels: {topology.kubernetes.io/zone: zone-a}}
spec: {podCIDRs: [10.244.1.0/24, 'fd00:10:244:1::/64']}
status:
  addresses:
  - {type: InternalIP, address: 172.18.0.1}
  - {type: InternalIP, address: 'fd00:172:18::1'}
";

/// Who there is.
const CAST: [Actor; 11] = [
    Actor::new("a1", Place::Pod(1, 2)),
    Actor::new("a2", Place::Pod(1, 3)),
    Actor::new("a3", Place::Pod(1, 4)),
    Actor::new("b1", Place::Pod(2, 2)),
    Actor::new("b2", Place::Pod(2, 3)),
    Actor::new("b3", Place::Pod(2, 4)),
    Actor::new("node", Place::Fabric(1)),
    Actor::new("far", Place::Fabric(2)),
    Actor::new("client", Place::Fabric(3)),
    Actor::new("stranger", Place::Fabric(4)),
    Actor::new("localhost", Place::Loopback),
];

struct Actor {
    name: &'static str,
    place: Place,
}

#[derive(Clone, Copy)]
enum Place {
    /// Node number, then the last part of the pod's address.
    Pod(u8, u8),
    /// On the link between the nodes: the last part of the address.
    Fabric(u8),
    Loopback,
}

impl Actor {
    const fn new(name: &'static str, place: Place) -> Self {
        Self { name, place }
    }

    fn address(&self, family: Family) -> IpAddr {
        match (self.place, family) {
            (Place::Pod(node, pod), Family::V4) => Ipv4Addr::new(10, 244, node, pod).into(),
            (Place::Pod(node, pod), Family::V6) => {
                Ipv6Addr::new(0xfd00, 0x10, 0x244, node.into(), 0, 0, 0, pod.into()).into()
            }
            (Place::Fabric(host), Family::V4) => Ipv4Addr::new(172, 18, 0, host).into(),
            (Place::Fabric(host), Family::V6) => {
                Ipv6Addr::new(0xfd00, 0x172, 0x18, 0, 0, 0, 0, host.into()).into()
            }
            (Place::Loopback, Family::V4) => Ipv4Addr::LOCALHOST.into(),
            (Place::Loopback, Family::V6) => Ipv6Addr::LOCALHOST.into(),
        }
    }
}

/// The address of a name in one family, or the address that the text is.
pub fn address(text: &str, family: Family) -> Option<IpAddr> {
    let actor = CAST.iter().find(|actor| actor.name == text);
    actor.map(|actor| actor.address(family)).or_else(|| text.parse().ok())
}

/// The socket of a text: `a1:80` in IPv4, `[a1]:80` in IPv6.
pub fn socket(text: &str) -> Option<SocketAddr> {
    let (host, port) = text.rsplit_once(':')?;
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let address = match bracketed {
        Some(host) => address(host, Family::V6)?,
        None => address(host, Family::V4)?,
    };
    Some(SocketAddr::new(address, port.parse().ok()?))
}

/// A socket as the cases write it: with its name, if it has one.
pub fn shown(socket: SocketAddr) -> String {
    let family = Family::of(&socket.ip());
    match (CAST.iter().find(|actor| actor.address(family) == socket.ip()), family) {
        (Some(actor), Family::V4) => format!("{}:{}", actor.name, socket.port()),
        (Some(actor), Family::V6) => format!("[{}]:{}", actor.name, socket.port()),
        (None, _) => socket.to_string(),
    }
}

/// The addresses of this node's interfaces.
pub fn host() -> impl Iterator<Item = IpAddr> {
    Family::ALL.into_iter().filter_map(|family| address("node", family))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_an_address_of_the_family_that_it_is_written_for() {
        for (text, expected) in [
            ("a1:80", "10.244.1.2:80"),
            ("[b2]:80", "[fd00:10:244:2::3]:80"),
            ("node:443", "172.18.0.1:443"),
            ("10.96.0.10:53", "10.96.0.10:53"),
        ] {
            let socket = socket(text).unwrap();
            assert_eq!(socket.to_string(), expected);
            assert_eq!(shown(socket), text);
        }
        assert_eq!(socket("nobody:80"), None);
    }
}
