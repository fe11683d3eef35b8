//! The network devices by which packets enter and leave this node, followed as they come and go.
//!
//! From state, never from events: whatever the kernel tells of, all devices are read again.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use load::devices::Port;
use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkLayerType, LinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::sched::{CloneFlags, setns};
use tracing::warn;

use crate::backend::ebpf::Packets;
use crate::netlink::{self, Changes};

/// How long to wait after something went wrong.
const PAUSE: Duration = Duration::from_secs(1);

/// How often connections that have ended are collected.
const COLLECTION: Duration = Duration::from_secs(10);

/// Hears of every device that comes or goes.
pub struct Follower {
    changes: Changes,
}

impl Follower {
    /// Begins to listen.
    ///
    /// # Errors
    /// The kernel gives no such socket.
    pub fn new() -> io::Result<Self> {
        Ok(Self { changes: Changes::of(netlink::LINKS | netlink::ADDRESSES)? })
    }

    /// Keeps the programs at the devices that the node has, and collects connections, for ever.
    pub async fn follow(mut self, packets: &Arc<Mutex<Packets>>) {
        let mut collection = tokio::time::interval(COLLECTION);
        loop {
            let changed = tokio::select! {
                changed = self.changes.next() => changed,
                _ = collection.tick() => {
                    lock(packets).collect();
                    Ok(())
                }
            };
            if let Err(error) = changed {
                warn!("cannot hear of the node's devices: {error}");
                tokio::time::sleep(PAUSE).await;
            }
            lock(packets).refresh();
        }
    }
}

impl std::fmt::Debug for Follower {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Follower").finish_non_exhaustive()
    }
}

fn lock(packets: &Arc<Mutex<Packets>>) -> std::sync::MutexGuard<'_, Packets> {
    packets.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A device as the kernel tells of it.
#[derive(Clone, Debug)]
struct Link {
    index: u32,
    name: String,
    /// The bridge or bond that it is a port of.
    controller: Option<u32>,
    kind: Option<InfoKind>,
    layer: LinkLayerType,
}

/// The devices at which packets are translated: all by which they enter or leave, once each.
///
/// Not at loopback: what is sent there has no other way in, and its reply would come from an address
/// of this node, which the kernel takes for forged on any device. Not at a bridge, whose ports see
/// the same packets, nor at the ports of a bond or team, which sees them all.
///
/// # Errors
/// The kernel does not tell.
pub fn ports() -> io::Result<Vec<(Port, Option<String>)>> {
    let links = links()?;
    let mut addresses: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
    for (device, address) in netlink::addresses()?.filter(|(_, address)| is_usable(address)) {
        addresses.entry(device).or_default().push(address);
    }
    Ok(links
        .values()
        .filter(|link| is_port(link, &links))
        .map(|link| {
            let controller = link.controller.and_then(|index| links.get(&index));
            let own = addresses.get(&link.name);
            let above = || controller.and_then(|above| addresses.get(&above.name));
            let port = Port {
                index: link.index,
                name: link.name.clone(),
                ethernet: link.layer == LinkLayerType::Ether,
                addresses: own.or_else(above).cloned().unwrap_or_default(),
                pods: [false; 2],
            };
            (port, controller.map(|above| above.name.clone()))
        })
        .collect())
}

/// Whether others may answer to it.
fn is_usable(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
    }
}

fn is_port(link: &Link, links: &BTreeMap<u32, Link>) -> bool {
    let controller = link.controller.and_then(|index| links.get(&index));
    let below_bond =
        controller.is_some_and(|above| matches!(above.kind, Some(InfoKind::Bond | InfoKind::Team)));
    let untouched = matches!(
        link.kind,
        Some(InfoKind::Bridge | InfoKind::Dummy | InfoKind::Ifb | InfoKind::Vrf | InfoKind::Nlmon)
    );
    let carries_ip = matches!(
        link.layer,
        LinkLayerType::Ether
            | LinkLayerType::None
            | LinkLayerType::Tunnel
            | LinkLayerType::Tunnel6
            | LinkLayerType::Sit
            | LinkLayerType::Ipgre
            | LinkLayerType::Ppp
            | LinkLayerType::Rawip
    );
    carries_ip && !below_bond && !untouched
}

/// The name and kind of a device, in the network namespace of a process, that hands packets to the
/// device below it without passing the node: no program meets them.
///
/// # Errors
/// The process has ended, or this one may not look into its namespace.
pub fn bypass(pid: u32) -> io::Result<Option<(String, String)>> {
    let enter = || {
        setns(File::open(format!("/proc/{pid}/ns/net"))?, CloneFlags::CLONE_NEWNET)?;
        links()
    };
    // Entering a namespace is for the life of a thread.
    let links = thread::scope(|scope| scope.spawn(enter).join())
        .unwrap_or_else(|_panic| Err(io::Error::other("the thread that looks has panicked")))?;
    let mut kinds = links.into_values().filter_map(|link| Some((link.name, link.kind?)));
    let found = kinds.find(|(_, kind)| {
        matches!(kind, InfoKind::MacVlan | InfoKind::MacVtap | InfoKind::IpVlan | InfoKind::IpVtap)
    });
    Ok(found.map(|(name, kind)| (name, kind.to_string())))
}

fn links() -> io::Result<BTreeMap<u32, Link>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let payload = NetlinkPayload::from(RouteNetlinkMessage::GetLink(LinkMessage::default()));
    let mut message = NetlinkMessage::new(header, payload);
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;
    let mut links = BTreeMap::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = datagram.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                .map_err(io::Error::other)?;
            match message.payload {
                NetlinkPayload::Done(_) => return Ok(links),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(message)) => {
                    let link = link(message);
                    links.insert(link.index, link);
                }
                _ => {}
            }
            // Each is padded to four bytes.
            let length = (message.header.length as usize).next_multiple_of(4);
            rest = rest.get(length.max(4)..).unwrap_or_default();
        }
    }
}

fn link(message: LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        controller: None,
        kind: None,
        layer: message.header.link_layer_type,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Controller(index) => link.controller = Some(index),
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.into_iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    link
}
