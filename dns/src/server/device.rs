//! The addresses at which a node asks itself.
//!
//! An address on the loopback device is this node's own, reachable from its pods by their default
//! route, and announced to nobody. It outlives the process, so that the next one answers at once, and
//! the death of one is no change of routes.

use std::net::IpAddr;

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use rtnetlink::packet_route::address::AddressHeaderFlags;
use rtnetlink::{Handle, new_connection};
use thiserror::Error;

/// Where the addresses are.
const DEVICE: &str = "lo";

/// An address cannot be added or removed.
#[derive(Debug, Error)]
#[error("cannot {doing} {addresses} at the device {DEVICE}; it takes CAP_NET_ADMIN: {reason}")]
pub struct DeviceError {
    doing: &'static str,
    addresses: String,
    reason: String,
}

/// Makes sure that the node has these addresses; says which of them it had not. Needs a tokio
/// runtime.
///
/// # Errors
/// The kernel refuses.
pub async fn ensure(addresses: &[IpAddr]) -> Result<Vec<IpAddr>, DeviceError> {
    let error = |reason: String| DeviceError { doing: "add", addresses: list(addresses), reason };
    let (connection, handle, _) = new_connection().map_err(|source| error(source.to_string()))?;
    tokio::select! {
        () = connection => Err(error("netlink ended".to_owned())),
        made = make(&handle, addresses) => made.map_err(error),
    }
}

/// Takes these addresses from the node again, if it has them. Needs a tokio runtime.
///
/// # Errors
/// The kernel refuses.
pub async fn remove(addresses: &[IpAddr]) -> Result<(), DeviceError> {
    let error =
        |reason: String| DeviceError { doing: "remove", addresses: list(addresses), reason };
    let (connection, handle, _) = new_connection().map_err(|source| error(source.to_string()))?;
    tokio::select! {
        () = connection => Err(error("netlink ended".to_owned())),
        done = unmake(&handle, addresses) => done.map_err(error),
    }
}

async fn unmake(handle: &Handle, addresses: &[IpAddr]) -> Result<(), String> {
    let index = if_nametoindex(DEVICE).map_err(|error| error.to_string())?;
    for &address in addresses {
        // The same message takes it away again.
        let message = handle.address().add(index, address, whole(address)).message_mut().clone();
        done_unless(handle.address().del(message).execute().await, Errno::EADDRNOTAVAIL)?;
    }
    Ok(())
}

async fn make(handle: &Handle, addresses: &[IpAddr]) -> Result<Vec<IpAddr>, String> {
    let index = if_nametoindex(DEVICE).map_err(|error| error.to_string())?;
    let mut added = Vec::new();
    for &address in addresses {
        let mut add = handle.address().add(index, address, whole(address));
        if address.is_ipv6() {
            // Nobody else is there to have it.
            add.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        }
        if done_unless(add.execute().await, Errno::EEXIST)? {
            added.push(address);
        }
    }
    Ok(added)
}

const fn whole(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// Whether it was done; not if it was so already, which that error says.
fn done_unless(result: Result<(), rtnetlink::Error>, already: Errno) -> Result<bool, String> {
    match result {
        Err(rtnetlink::Error::NetlinkError(message))
            if message.to_io().raw_os_error() == Some(already as i32) =>
        {
            Ok(false)
        }
        other => other.map(|()| true).map_err(|error| error.to_string()),
    }
}

fn list(addresses: &[IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
}
