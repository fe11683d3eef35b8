//! The addresses that this node has, followed as they come and go.
//!
//! From state, never from events: whatever the kernel tells of, all addresses are read again.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use model::name::Family;
use tracing::{info, warn};

use crate::backend::ebpf::Addresses;
use crate::netlink::{self, Changes};
use crate::plan::settings::NodePorts;

/// How long to wait after something went wrong.
const PAUSE: Duration = Duration::from_secs(1);

/// Hears of every address that comes or goes.
pub struct Follower {
    changes: Changes,
}

impl Follower {
    /// Begins to listen.
    ///
    /// # Errors
    /// The kernel gives no such socket.
    pub fn new() -> io::Result<Self> {
        Ok(Self { changes: Changes::of(netlink::ADDRESSES)? })
    }

    /// Keeps `ADDRESSES` at what the node has, for ever. First of all it reads what the node has
    /// now.
    pub async fn follow(self, addresses: &Arc<Mutex<Addresses>>) {
        self.follow_with(|| write(addresses)).await;
    }

    /// Has something written with each change, for ever, and first of all.
    pub async fn follow_with(mut self, mut write: impl FnMut() -> io::Result<()>) {
        loop {
            if let Err(error) = write() {
                warn!("cannot follow the node's addresses: {error}");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            if let Err(error) = self.changes.next().await {
                warn!("cannot hear of the node's addresses: {error}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

impl std::fmt::Debug for Follower {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Follower").finish_non_exhaustive()
    }
}

/// Makes `ADDRESSES` say what the node has now.
///
/// # Errors
/// The addresses cannot be read, or the map cannot be written.
pub fn write(addresses: &Arc<Mutex<Addresses>>) -> io::Result<()> {
    let local = of_this_node()?;
    let n = local.len();
    let mut addresses = addresses.lock().unwrap_or_else(PoisonError::into_inner);
    let written = addresses.node_has(local).map_err(io::Error::other)?;
    if written > 0 {
        info!(n, changed = written, "the node's addresses");
    }
    Ok(())
}

/// The addresses of one family that this node has, of those that serve node ports.
///
/// # Errors
/// The addresses cannot be read.
pub fn serving(family: Family, node_ports: &NodePorts) -> io::Result<BTreeSet<IpAddr>> {
    let all = netlink::addresses()?.map(|(_, address)| address);
    let serves = |address: &IpAddr| Family::of(address) == family && node_ports.serve(address);
    Ok(all.filter(serves).collect())
}

/// Every address of every interface, but the loopback ones: those need not be looked up.
fn of_this_node() -> io::Result<BTreeSet<IpAddr>> {
    let all = netlink::addresses()?.map(|(_, address)| address);
    Ok(all.filter(|address| !address.is_loopback()).collect())
}
