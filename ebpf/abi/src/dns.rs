//! Questions to the cluster's DNS that this node's own server answers.

use crate::addr::Addr;

/// Value of `DNS`, one for each family: whose questions the server of this node answers, and where.
///
/// ```text
///  0          16        32             34            36            38
///  │ service  │ server  │ service_port │ server_port │ packet_port │ fails_over │
/// ```
///
/// Changed only while `DNS_ALIVE` is empty. All zero is none.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnServer {
    /// The cluster IP that programs name.
    pub service: Addr,
    /// Where the server of this node listens.
    pub server: Addr,
    /// The port that programs name, network byte order.
    pub service_port: u16,
    /// The server's port, network byte order.
    pub server_port: u16,
    /// The server's port for what packet programs lead to it, network byte order: its answers from
    /// there get the Service's address back, and need no memory of who asked. Zero is none.
    pub packet_port: u16,
    /// Not zero if the server's address is asked by nobody but this node: packets to it go to the
    /// Service's endpoints while the server is dead.
    pub fails_over: u16,
}

/// How many elements `DNS` has.
pub const N_FAMILIES: usize = 2;

/// The element of `DNS` that an address belongs to: 0 for IPv4, mapped as well, 1 for IPv6.
#[inline(always)]
pub const fn family_index(addr: Addr) -> u32 {
    if addr.is_v4() { 0 } else { 1 }
}

/// The generation of a flow to the server of this node: no set has it, so that such a flow is never
/// taken for one that still serves.
pub const GENERATION: u32 = u32::MAX;

const _: () = assert!(size_of::<OwnServer>() == 40);
const _: () = assert!(GENERATION > crate::endpoint::Head::MAX_GENERATION);

#[cfg(test)]
mod tests {
    use super::family_index;
    use crate::addr::Addr;

    #[test]
    fn mapped_addresses_are_ipv4() {
        let index = |text: &str| {
            let address: core::net::IpAddr = text.parse().unwrap();
            family_index(Addr::from(address))
        };
        assert_eq!(index("10.96.0.10"), 0);
        assert_eq!(index("::ffff:10.96.0.10"), 0);
        assert_eq!((index("fd00::10"), index("::1")), (1, 1));
    }
}
