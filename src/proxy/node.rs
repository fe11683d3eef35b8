//! What a proxy in eBPF mode follows and keeps of the node itself: its addresses, and the ports that
//! its own sockets must not get.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use clap::ValueEnum;
use proxy::backend::ebpf::{Addresses, Ebpf, Packets, Sockets, Translated};
use proxy::backend::ipvs;
use proxy::links;
use proxy::local::{self, Follower};
use proxy::plan::planner::Supports;
use proxy::sync::Round;
use proxy::{names, reserved};
use tokio::sync::watch;
use tracing::warn;

/// How often names and reserved ports are looked at, at most.
const PERIOD: Duration = Duration::from_secs(1);

/// What is done at sockets.
#[derive(Debug, clap::Args)]
pub(crate) struct SocketArgs {
    /// Whose connections to translate at the socket: of pods and of the node, of the node, or
    /// nobody's. All others are translated packet by packet.
    #[arg(long, value_enum, value_name = "WHOSE", default_value_t = SocketLb::All)]
    socket_lb: SocketLb,
    /// Refuse the node's own sockets to be bound to a node port, where nobody would reach them.
    #[arg(long)]
    protect_node_ports: bool,
}

/// `--socket-lb`.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum SocketLb {
    All,
    Host,
    Off,
}

impl SocketArgs {
    /// What they mean.
    pub(crate) const fn meant(&self) -> Sockets {
        let translated = match self.socket_lb {
            SocketLb::All => Translated::All,
            SocketLb::Host => Translated::Host,
            SocketLb::Off => Translated::Off,
        };
        Sockets { translated, protect_node_ports: self.protect_node_ports }
    }
}

/// What is served, by whether packets are translated.
pub(crate) fn supports() -> Supports {
    Arc::new(Ebpf::can)
}

/// Writes the node's addresses, then follows them for ever; a dataplane that looks them up by itself
/// has no such list.
///
/// # Errors
/// They cannot be read or written to begin with.
pub(crate) fn follow_addresses(
    addresses: Option<Arc<Mutex<Addresses>>>,
) -> anyhow::Result<impl Future<Output = ()>> {
    let follower = match addresses {
        Some(addresses) => {
            let follower = Follower::new().context("cannot hear of the node's addresses")?;
            local::write(&addresses).context("cannot follow the node's addresses")?;
            Some((follower, addresses))
        }
        None => None,
    };
    Ok(async move {
        match follower {
            Some((follower, addresses)) => follower.follow(&addresses).await,
            None => std::future::pending().await,
        }
    })
}

/// Serves node ports at the node's addresses in IPVS mode, as they come and go, for ever.
///
/// # Errors
/// The kernel does not tell of them.
pub(crate) fn follow_ipvs(
    node: Option<Arc<Mutex<ipvs::Node>>>,
) -> anyhow::Result<impl Future<Output = ()>> {
    let follower = Follower::new().context("cannot hear of the node's addresses")?;
    Ok(async move {
        match node {
            Some(node) => {
                let write = || ipvs::follow(&node).map_err(std::io::Error::other);
                follower.follow_with(write).await;
            }
            None => std::future::pending().await,
        }
    })
}

/// Keeps the file that says which Service port each frontend belongs to.
pub(crate) async fn keep_names(status: &Path, mut seen: watch::Receiver<Option<Arc<Round>>>) {
    let file = names::file_of(status);
    let mut known = None;
    while seen.changed().await.is_ok() {
        let Some(round) = seen.borrow_and_update().clone() else { continue };
        let text = names::print(&round.plan);
        // `fairlead status` falls back to addresses while the file cannot be written.
        if known.as_ref() != Some(&text) && fs::write(&file, &text).is_ok() {
            known = Some(text);
        }
        tokio::time::sleep(PERIOD).await;
    }
    std::future::pending::<()>().await;
}

/// Keeps the packet programs at the node's devices, for ever.
///
/// # Errors
/// The kernel does not tell of them.
pub(crate) fn follow_links(
    packets: Option<Arc<Mutex<Packets>>>,
) -> anyhow::Result<impl Future<Output = ()>> {
    let follower = links::Follower::new().context("cannot hear of the node's devices")?;
    Ok(async move {
        match packets {
            Some(packets) => follower.follow(&packets).await,
            None => std::future::pending().await,
        }
    })
}

/// Keeps node ports, and those of masqueraded connections, from the sockets of this node that ask
/// for any port.
pub(crate) async fn reserve_ports(status: &Path, mut seen: watch::Receiver<Option<Arc<Round>>>) {
    let file = reserved::file_of(status);
    let mut known: Option<BTreeSet<u16>> = None;
    let mut warned = false;
    while seen.changed().await.is_ok() {
        let Some(round) = seen.borrow_and_update().clone() else { continue };
        let mut ports = reserved::node_ports(&round.plan);
        ports.extend(reserved::masquerade_ports());
        if known.as_ref() == Some(&ports) {
            continue;
        }
        match reserved::reserve(&file, &ports) {
            Ok(_) => known = Some(ports),
            Err(error) if !warned => {
                warned = true;
                warn!(
                    "cannot reserve the node ports, which the node's own connections may take: \
                     {error}; let the proxy write net.ipv4.ip_local_reserved_ports"
                );
            }
            Err(_) => {}
        }
        tokio::time::sleep(PERIOD).await;
    }
    std::future::pending::<()>().await;
}
