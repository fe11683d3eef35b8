//! One packet or call that led nowhere, as `fairlead monitor` tells it.

use crate::addr::Addr;

/// Record of the ring buffer `DROPS`. Sampled: a program sends one only while the buffer has room,
/// and every drop is counted (`COUNTERS`) whether or not it is sent.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// When, by `CLOCK_MONOTONIC`, in nanoseconds.
    pub at: u64,
    /// Source address; all zero where a socket has none yet.
    pub src: Addr,
    /// Destination address, as the sender named it.
    pub dst: Addr,
    /// Source port, network byte order.
    pub src_port: u16,
    /// Destination port, network byte order.
    pub dst_port: u16,
    /// The reason: a [`crate::counter::Counter`].
    pub reason: u32,
    /// The device it arrived on; zero for a call.
    pub ifindex: u32,
    /// The Service port ([`crate::slot::Rules::service`]); zero if it is none's.
    pub service: u32,
    /// The IP protocol number.
    pub protocol: u8,
    /// One when the sender was told (REJECT), zero when it was not (DROP).
    pub told: u8,
    /// Zero.
    pub pad: [u8; 6],
}

const _: () = assert!(size_of::<Dropped>() == 64);
