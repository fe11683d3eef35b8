//! Leave for aya to copy the shapes to and from the kernel, in user space.

#![expect(unsafe_code, reason = "aya's marker trait for plain data is unsafe to implement")]

use crate::addr::Addr;
use crate::address::{AddressValue, PrefixFlags, RangeKey};
use crate::affinity::{AffinityKey, AffinityValue};
use crate::count::{EndpointCounts, ServiceCounts};
use crate::device::Device;
use crate::dns::OwnServer;
use crate::endpoint::{Endpoint, Head};
use crate::flow::{FragmentKey, Held, HeldKey, Name, Ports, Record, Tuple};
use crate::frontend::{FrontendKey, FrontendValue};
use crate::node::Node;
use crate::slot::Slot;
use crate::socket::UdpPeer;

macro_rules! pod {
    ($($shape:ty)*) => {
        $(
            // SAFETY: `repr(C)` or transparent, integers only, every bit pattern valid, no implicit
            // padding (asserted sizes).
            unsafe impl aya::Pod for $shape {}
        )*
    };
}

pod! {
    Addr AddressValue PrefixFlags RangeKey AffinityKey AffinityValue EndpointCounts ServiceCounts
    Endpoint Head FrontendKey FrontendValue Node OwnServer Slot UdpPeer
    Device FragmentKey Held HeldKey Name Ports Record Tuple
}
