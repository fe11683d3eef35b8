//! Connected UDP sockets whose endpoint has gone are destroyed, so that their programs connect
//! anew instead of talking to nobody for ever. TCP sockets are where their Service asks for that.
//!
//! The kernel runs no hook when a connected socket sends, so the programs note each such socket
//! (`UDP_PEERS`, by cookie), and here the list is compared with the plan: a socket whose endpoint no
//! longer serves its frontend is ended by `SOCK_DESTROY` (its program sees ECONNABORTED, then
//! EDESTADDRREQ). From state, never from events: what a restart or a failure left is found again.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use abi::socket::UdpPeer;
use model::name::{Family, Protocol};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_packet_sock_diag::{SOCK_DESTROY, SockDiagMessage};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr as NetlinkAddr};
use nix::sched::{CloneFlags, setns};
use tracing::{debug, warn};

use crate::namespaces;
use crate::plan::{At, FrontendKey, Plan};

/// How many threads look for sockets at once, at most: it is done in an instant, beside others' work.
const MOST_THREADS: usize = 4;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Stale sockets by their cookies, by the cookie of their network namespace.
pub type Stale = BTreeMap<u64, BTreeMap<u64, Peer>>;

/// What a stale socket is connected to. One that is connected to something else by now is let alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// UDP or TCP.
    pub protocol: Protocol,
    /// The endpoint.
    pub endpoint: SocketAddr,
}

/// Which of the noted sockets talk to an endpoint that no longer serves their frontend. `[pure]`
pub fn stale(peers: impl IntoIterator<Item = (u64, UdpPeer)>, plan: &Plan) -> Stale {
    let mut stale = Stale::new();
    for (cookie, noted) in peers {
        let peer = Peer::of(&noted);
        if !peer.serves(&noted, plan) {
            stale.entry(noted.netns).or_default().insert(cookie, peer);
        }
    }
    stale
}

impl Peer {
    fn of(noted: &UdpPeer) -> Self {
        let protocol = if noted.protocol == UdpPeer::TCP { Protocol::Tcp } else { Protocol::Udp };
        let endpoint = SocketAddr::new(noted.endpoint.into(), u16::from_be(noted.endpoint_port));
        Self { protocol, endpoint }
    }

    fn serves(&self, noted: &UdpPeer, plan: &Plan) -> bool {
        let address = IpAddr::from(noted.frontend);
        let frontend = |at| {
            let port = u16::from_be(noted.frontend_port);
            plan.frontends.get(&FrontendKey { at, port, protocol: self.protocol })
        };
        // What is no Service's address was one of the node's, which serves node ports.
        frontend(At::Address(address))
            .or_else(|| frontend(At::NodePort(Family::of(&address))))
            .is_some_and(|frontend| {
                frontend.serving.binary_search(&self.endpoint).is_ok()
                    || self.protocol == Protocol::Tcp && !frontend.ends_connections
            })
    }

    /// Whether a socket is still connected to it.
    fn is_of(&self, id: &SocketId) -> bool {
        let address = id.destination_address.to_canonical();
        SocketAddr::new(address, id.destination_port) == self.endpoint
    }
}

/// Destroys sockets, each in its network namespace. Says how many; a socket that its program closed
/// first is none. What cannot be reached is logged, and found again at the next look.
pub fn destroy(stale: Stale) -> usize {
    if stale.is_empty() {
        return 0;
    }
    // Entering a namespace is for the life of a thread.
    let thread = thread::Builder::new()
        .name("sock-destroy".to_owned())
        .spawn(move || destroy_everywhere(&stale));
    match thread.map(thread::JoinHandle::join) {
        Ok(Ok(destroyed)) => destroyed,
        Ok(Err(_)) | Err(_) => {
            warn!("cannot end sockets whose endpoint has gone; trying again at the next change");
            0
        }
    }
}

fn destroy_everywhere(stale: &Stale) -> usize {
    let namespaces = namespaces::all();
    let n_threads = thread::available_parallelism().map_or(1, NonZero::get).min(MOST_THREADS);
    let share = namespaces.len().div_ceil(n_threads).max(1);
    // Namespaces that were not met yet.
    let n_left = AtomicUsize::new(stale.len());
    let destroyed = thread::scope(|scope| {
        let threads: Vec<_> = namespaces
            .chunks(share)
            .map(|share| scope.spawn(|| destroy_in_each(share, stale, &n_left)))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_default()).sum()
    });
    let left = n_left.load(Ordering::Relaxed);
    if left > 0 {
        debug!(left, "namespaces without a process, whose sockets were not found");
    }
    destroyed
}

/// The same in some namespaces, one after the other.
fn destroy_in_each(namespaces: &[PathBuf], stale: &Stale, n_left: &AtomicUsize) -> usize {
    let mut destroyed = 0;
    for namespace in namespaces {
        if n_left.load(Ordering::Relaxed) == 0 {
            break;
        }
        match destroy_in(namespace, stale, n_left) {
            Ok(n) => destroyed += n,
            // A namespace may vanish while it is being looked at.
            Err(error) => debug!("cannot look into {}: {error}", namespace.display()),
        }
    }
    destroyed
}

fn destroy_in(namespace: &Path, stale: &Stale, n_left: &AtomicUsize) -> io::Result<usize> {
    setns(File::open(namespace)?, CloneFlags::CLONE_NEWNET)?;
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    let Some(peers) = stale.get(&load::netns_cookie(&socket)?) else { return Ok(0) };
    n_left.fetch_sub(1, Ordering::Relaxed);
    socket.bind_auto()?;
    socket.connect(&NetlinkAddr::new(0, 0))?;
    let mut destroyed = 0;
    for protocol in [Protocol::Udp, Protocol::Tcp] {
        let mut left = peers.values().filter(|peer| peer.protocol == protocol).count();
        for family in [AF_INET, AF_INET6] {
            // A look at the sockets of a family goes through those of all namespaces.
            if left == 0 {
                break;
            }
            let of = Of { protocol, family };
            for id in connected(&socket, of)? {
                let peer = peers.get(&u64::from_ne_bytes(id.cookie));
                if peer.is_some_and(|peer| peer.protocol == protocol && peer.is_of(&id)) {
                    left = left.saturating_sub(1);
                    destroyed += usize::from(destroy_one(&socket, of, id)?);
                }
            }
        }
    }
    Ok(destroyed)
}

/// Which sockets are asked for.
#[derive(Clone, Copy)]
struct Of {
    protocol: Protocol,
    family: u8,
}

/// The connected ones of them in this namespace.
fn connected(socket: &Socket, of: Of) -> io::Result<Vec<SocketId>> {
    let any = if of.family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() };
    send(socket, of.request(any), NLM_F_REQUEST | NLM_F_DUMP, None)?;
    let mut found = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        for message in messages(&datagram)? {
            match message.payload {
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                    found.push(response.header.socket_id);
                }
                NetlinkPayload::Done(_) => return Ok(found),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                _ => {}
            }
        }
    }
}

/// Whether the socket was there to be destroyed.
fn destroy_one(socket: &Socket, of: Of, id: SocketId) -> io::Result<bool> {
    send(socket, of.request(id), NLM_F_REQUEST | NLM_F_ACK, Some(SOCK_DESTROY))?;
    let (datagram, _) = socket.recv_from_full()?;
    for message in messages(&datagram)? {
        if let NetlinkPayload::Error(error) = message.payload {
            return match error.code {
                None => Ok(true),
                Some(_) if error.to_io().kind() == io::ErrorKind::NotFound => Ok(false),
                Some(_) => Err(error.to_io()),
            };
        }
    }
    Ok(false)
}

impl Of {
    fn request(self, socket_id: SocketId) -> InetRequest {
        // A connection may be dead before it is made, or while it is ended.
        let states = match self.protocol {
            Protocol::Tcp => StateFlags::all() - StateFlags::LISTEN - StateFlags::TIME_WAIT,
            Protocol::Udp | Protocol::Sctp => StateFlags::ESTABLISHED,
        };
        InetRequest {
            family: self.family,
            protocol: self.protocol.number(),
            extensions: ExtensionFlags::empty(),
            states,
            socket_id,
        }
    }
}

/// Sends a request; `SOCK_DESTROY` takes the same one as the dump, under another type.
fn send(socket: &Socket, request: InetRequest, flags: u16, kind: Option<u16>) -> io::Result<()> {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    if let Some(kind) = kind {
        message.header.message_type = kind;
    }
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0).map(drop)
}

fn messages(datagram: &[u8]) -> io::Result<Vec<NetlinkMessage<SockDiagMessage>>> {
    let mut rest = datagram;
    let mut found = Vec::new();
    while !rest.is_empty() {
        let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
        // Messages are aligned to four bytes (NLMSG_ALIGN).
        let length = usize::try_from(message.header.length).unwrap_or(usize::MAX);
        let aligned = length.saturating_add(3) & !3;
        if length == 0 {
            break;
        }
        rest = rest.get(aligned..).unwrap_or_default();
        found.push(message);
    }
    Ok(found)
}
