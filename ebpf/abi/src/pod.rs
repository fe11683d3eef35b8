//! Leave for aya to copy the shapes to and from the kernel, in user space.

#![expect(unsafe_code, reason = "aya's marker trait for plain data is unsafe to implement")]

use crate::endpoint::{Endpoint, Head};
use crate::frontend::{FrontendKey, FrontendValue};
use crate::socket::UdpPeer;

// SAFETY: `repr(C)`, integers only, every bit pattern valid, no implicit padding (asserted sizes).
unsafe impl aya::Pod for FrontendKey {}
// SAFETY: as above.
unsafe impl aya::Pod for FrontendValue {}
// SAFETY: as above.
unsafe impl aya::Pod for Endpoint {}
// SAFETY: as above.
unsafe impl aya::Pod for Head {}
// SAFETY: as above.
unsafe impl aya::Pod for UdpPeer {}
