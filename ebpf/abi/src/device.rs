//! What is known of a network device that the packet programs are attached to.

use crate::addr::Addr;

/// Value of `DEVICES`, by the device's index.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// What masqueraded IPv4 packets that leave by it have as their source, mapped; all zero if
    /// there is none.
    pub v4: Addr,
    /// The same of IPv6.
    pub v6: Addr,
    /// [`Device::PODS_V4`] and [`Device::PODS_V6`].
    pub flags: u32,
    /// Zero.
    pub pad: u32,
}

impl Device {
    /// What arrives by it over IPv4 is from this node's pods.
    pub const PODS_V4: u32 = 1;
    /// The same of IPv6.
    pub const PODS_V6: u32 = 1 << 1;
}

const _: () = assert!(size_of::<Device>() == 40);
