//! The node's network as the kernel tells of it: that something changed, and the addresses there are.
//!
//! Who hears of a change reads everything again: an event that was lost is then no loss.

pub(crate) mod attributes;
pub(crate) mod talk;

use std::io;
use std::net::IpAddr;

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};

/// `RTMGRP_LINK` of rtnetlink(7).
pub(crate) const LINKS: u32 = 0x1;
/// `RTMGRP_IPV4_IFADDR` and `RTMGRP_IPV6_IFADDR` of rtnetlink(7).
pub(crate) const ADDRESSES: u32 = 0x10 | 0x100;

/// Hears of changes of some kinds.
pub(crate) struct Changes {
    socket: TokioSocket,
}

impl Changes {
    /// Begins to listen to [`LINKS`], [`ADDRESSES`] or both.
    ///
    /// # Errors
    /// The kernel gives no such socket.
    pub(crate) fn of(groups: u32) -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        socket.socket_mut().bind(&SocketAddr::new(0, groups))?;
        Ok(Self { socket })
    }

    /// Waits for the next.
    pub(crate) async fn next(&mut self) -> io::Result<()> {
        let mut message = Vec::with_capacity(32_768);
        match self.socket.recv(&mut message).await {
            // So much happened that the kernel dropped some of it: something changed.
            Err(error) if error.raw_os_error() == Some(nix::errno::Errno::ENOBUFS as i32) => Ok(()),
            other => other,
        }
    }
}

/// Every address that a device has, with the device's name.
///
/// # Errors
/// The kernel does not tell.
pub(crate) fn addresses() -> io::Result<impl Iterator<Item = (String, IpAddr)>> {
    Ok(nix::ifaddrs::getifaddrs()?.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
        let v6 = || address.as_sockaddr_in6().map(|v6| IpAddr::from(v6.ip()));
        Some((interface.interface_name, v4.or_else(v6)?))
    }))
}
