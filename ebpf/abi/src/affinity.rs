//! Which endpoint a client had before (`sessionAffinity: ClientIP`).

use crate::addr::Addr;

/// Key of `AFFINITY`, an LRU hash.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AffinityKey {
    /// The client: the source of its packets before any masquerade. A socket has none yet when it
    /// connects, so its client is its network namespace ([`Addr::of_namespace`]): the pod, or the
    /// node.
    pub client: Addr,
    /// The Service port ([`crate::slot::Rules::service`]).
    pub service: u32,
    /// Zero.
    pub pad: u32,
}

/// Value of `AFFINITY`. It holds only while the endpoint is in the set in use.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AffinityValue {
    /// The endpoint's address.
    pub addr: Addr,
    /// Its port, network byte order.
    pub port: u16,
    /// Zero.
    pub pad: u16,
    /// Its place in the set of that generation, where it is looked for first.
    pub index: u32,
    /// When its client last made a connection, by `CLOCK_MONOTONIC`, in nanoseconds.
    pub used: u64,
}

impl AffinityKey {
    /// A key.
    #[inline(always)]
    pub const fn new(client: Addr, service: u32) -> Self {
        Self { client, service, pad: 0 }
    }
}

const _: () = assert!(size_of::<AffinityKey>() == 24);
const _: () = assert!(size_of::<AffinityValue>() == 32);
