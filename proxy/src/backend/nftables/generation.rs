//! The number of the kernel's ruleset, which every transaction of anybody counts up.

use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

/// Netlink header (length, type `NFT_MSG_GETGEN`, flags `NLM_F_REQUEST`, sequence, port), then
/// family, version and id.
const GET: [u8; 20] = {
    let [l0, l1, l2, l3] = 20_u32.to_ne_bytes();
    let [t0, t1] = 0x0a10_u16.to_ne_bytes();
    let [f0, f1] = 1_u16.to_ne_bytes();
    [l0, l1, l2, l3, t0, t1, f0, f1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
};

/// Asks for it.
pub(super) fn read() -> io::Result<u32> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&GET, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    // Behind the headers the first attribute is the number.
    let number = answer.get(24..28).and_then(|bytes| bytes.try_into().ok());
    number.map(u32::from_be_bytes).ok_or_else(|| io::ErrorKind::InvalidData.into())
}
