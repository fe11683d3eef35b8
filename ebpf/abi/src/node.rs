//! What holds for the whole node.

use crate::addr::Addr;

/// The one value of `NODE`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// [`Node::PODS_V4`] and the others.
    pub flags: u64,
    /// The cookie of the node's network namespace (`SO_NETNS_COOKIE`).
    pub netns: u64,
    /// The node's own IPv4 address, mapped; all zero if there is none.
    pub ip_v4: Addr,
    /// The node's own IPv6 address; all zero if there is none.
    pub ip_v6: Addr,
    /// Zero.
    pub pad: [u64; 2],
}

impl Node {
    /// Pods are told from other sources, IPv4. Without this nothing is a pod.
    pub const PODS_V4: u64 = 1;
    /// The same of IPv6.
    pub const PODS_V6: u64 = 1 << 1;
    /// IPv4 pods are told by the device that their packets arrive on, not by their addresses.
    pub const PODS_BY_DEVICE_V4: u64 = 1 << 2;
    /// The same of IPv6.
    pub const PODS_BY_DEVICE_V6: u64 = 1 << 3;
    /// The node's own sockets are translated.
    pub const SOCKETS_NODE: u64 = 1 << 4;
    /// Pods' sockets are translated.
    pub const SOCKETS_PODS: u64 = 1 << 5;
    /// The node's own sockets may not be bound to node ports.
    pub const PROTECT_NODE_PORTS: u64 = 1 << 6;
    /// Packets are translated at the node's devices.
    pub const PACKETS: u64 = 1 << 7;
    /// New connections are left to others at the node's devices: not in charge yet, or not any more.
    /// Those that are known go on.
    pub const LEAVES_NEW: u64 = 1 << 8;

    /// Whether pods are told from other sources in the family of an address.
    #[inline(always)]
    pub const fn tells_pods(&self, of: &Addr) -> bool {
        self.flags & if of.is_v4() { Self::PODS_V4 } else { Self::PODS_V6 } != 0
    }

    /// The node's own address in the family of another.
    #[inline(always)]
    pub const fn ip(&self, of: &Addr) -> Addr {
        if of.is_v4() { self.ip_v4 } else { self.ip_v6 }
    }
}

const _: () = assert!(size_of::<Node>() == 64);
