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

/// An address cannot be added.
#[derive(Debug, Error)]
#[error("cannot add {addresses} to the device {DEVICE}; it takes CAP_NET_ADMIN: {reason}")]
pub struct DeviceError {
    addresses: String,
    reason: String,
}

/// Makes sure that the node has these addresses. Needs a tokio runtime.
///
/// # Errors
/// The kernel refuses.
pub async fn ensure(addresses: &[IpAddr]) -> Result<(), DeviceError> {
    let error = |reason: String| DeviceError { addresses: list(addresses), reason };
    let (connection, handle, _) = new_connection().map_err(|source| error(source.to_string()))?;
    tokio::select! {
        () = connection => Err(error("netlink ended".to_owned())),
        made = make(&handle, addresses) => made.map_err(error),
    }
}

async fn make(handle: &Handle, addresses: &[IpAddr]) -> Result<(), String> {
    let index = if_nametoindex(DEVICE).map_err(|error| error.to_string())?;
    for &address in addresses {
        let whole = if address.is_ipv4() { 32 } else { 128 };
        let mut add = handle.address().add(index, address, whole);
        if address.is_ipv6() {
            // Nobody else is there to have it.
            add.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        }
        unless_there(add.execute().await)?;
    }
    Ok(())
}

fn unless_there(result: Result<(), rtnetlink::Error>) -> Result<(), String> {
    match result {
        Err(rtnetlink::Error::NetlinkError(message))
            if message.to_io().raw_os_error() == Some(Errno::EEXIST as i32) =>
        {
            Ok(())
        }
        other => other.map_err(|error| error.to_string()),
    }
}

fn list(addresses: &[IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
}
