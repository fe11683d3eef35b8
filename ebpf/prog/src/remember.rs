//! What is kept with a socket, for the way back and for its next datagram.

use abi::addr::Addr;
use abi::counter::Counter;
use abi::socket::{self, FLOWS, Flow, Socket, TcpPeer, UdpPeer};
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie};
use aya_ebpf::programs::SockAddrContext;

use crate::maps::{SOCKETS, TCP_SOCKETS, UDP_PEERS, count};
use crate::peer::Peer;

/// The storage of the hook's socket, if it has any.
#[inline(always)]
pub(crate) fn known(ctx: &SockAddrContext) -> Option<*mut Socket> {
    // SAFETY: the socket of a `sock_addr` hook is alive while the hook runs.
    let socket = unsafe { SOCKETS.get_ptr_mut(ctx) };
    (!socket.is_null()).then_some(socket)
}

/// The storage of the hook's socket, made if need be; `None` when memory is short.
#[inline(always)]
pub(crate) fn make(ctx: &SockAddrContext) -> Option<*mut Socket> {
    // SAFETY: the socket of a `sock_addr` hook is alive while the hook runs.
    let socket = unsafe { SOCKETS.get_or_insert_ptr_mut(ctx, None) };
    (!socket.is_null()).then_some(socket)
}

/// What the socket used last for a frontend.
#[inline(always)]
pub(crate) fn flow_to(socket: *mut Socket, frontend: Peer) -> Option<Flow> {
    for index in 0..FLOWS {
        let flow = read(socket, index);
        if flow.frontend_port == frontend.port && flow.frontend == frontend.addr {
            return Some(flow);
        }
    }
    None
}

/// The frontend behind which the socket knows an endpoint.
#[inline(always)]
pub(crate) fn frontend_of(socket: *mut Socket, endpoint: Peer) -> Option<Peer> {
    for index in 0..FLOWS {
        let flow = read(socket, index);
        if flow.endpoint_port == endpoint.port
            && flow.endpoint == endpoint.addr
            && flow.frontend != Addr::default()
        {
            return Some(Peer { addr: flow.frontend, port: flow.frontend_port });
        }
    }
    None
}

/// Stores a flow in the place of the one to the same frontend, else in a free place, else in the
/// place that was taken up first.
#[inline(always)]
pub(crate) fn store(socket: *mut Socket, flow: Flow) {
    for index in 0..FLOWS {
        let known = read(socket, index);
        if known.frontend_port == flow.frontend_port && known.frontend == flow.frontend {
            write(socket, index, flow);
            return;
        }
    }
    // SAFETY: the verifier checked the pointer.
    let stored = unsafe { (*socket).stored };
    let index = stored as usize & (FLOWS - 1);
    if read(socket, index).frontend != Addr::default() {
        count(Counter::Forgotten);
    }
    write(socket, index, flow);
    // SAFETY: as above.
    unsafe { (*socket).stored = stored.wrapping_add(1) };
}

/// Notes a connected UDP socket: for its peer's name, and for the day its endpoint goes. Cheaper
/// than storage (measured: half), and user space can read it. Says whether there was room. `protocol` is
/// zero, or [`UdpPeer::TCP`].
#[inline(always)]
pub(crate) fn note_connected(ctx: &SockAddrContext, flow: &Flow, protocol: u32) -> bool {
    // SAFETY: the context is the hook's own.
    let netns = unsafe { bpf_get_netns_cookie(ctx.sock_addr.cast()) };
    let peer = UdpPeer {
        frontend: flow.frontend,
        endpoint: flow.endpoint,
        frontend_port: flow.frontend_port,
        endpoint_port: flow.endpoint_port,
        protocol,
        netns,
    };
    let noted = UDP_PEERS.insert(cookie(ctx), peer, 0).is_ok();
    if !noted {
        count(Counter::Unindexed);
    }
    noted
}

/// Notes a TCP socket for its peer's name. Says whether there was room. Storage costs three times as much, and
/// a hash map a miss of the cache for each look.
#[inline(always)]
pub(crate) fn note_tcp(ctx: &SockAddrContext, flow: &Flow) -> bool {
    let cookie = cookie(ctx);
    let Some(peer) = tcp(cookie) else { return false };
    // SAFETY: the verifier checked the pointer. Two sockets that take the place at one moment, 65,536 cookies
    // apart, may leave an endpoint of the one beside the cookie of the other, whose peer keeps its own name then.
    unsafe {
        let holder = (&raw const (*peer).cookie).read_volatile();
        if holder != 0 && holder != cookie {
            return false;
        }
        (&raw mut (*peer).frontend).write_volatile(flow.frontend);
        (&raw mut (*peer).endpoint).write_volatile(flow.endpoint);
        (&raw mut (*peer).frontend_port).write_volatile(flow.frontend_port);
        (&raw mut (*peer).endpoint_port).write_volatile(flow.endpoint_port);
        (&raw mut (*peer).cookie).write_volatile(cookie);
    }
    true
}

/// Notes a TCP socket for the day its endpoint goes. One that finds no room is counted, and not ended.
#[inline(always)]
pub(crate) fn note_ending(ctx: &SockAddrContext, flow: &Flow) {
    if note_connected(ctx, flow, UdpPeer::TCP)
        && let Some(peer) = tcp(cookie(ctx))
    {
        // SAFETY: the verifier checked the pointer; nobody writes anything else there.
        unsafe { (&raw mut (*peer).noted).write_volatile(1) };
    }
}

/// The frontend to which a TCP socket is connected, if this is the endpoint that it got.
#[inline(always)]
pub(crate) fn tcp_frontend(ctx: &SockAddrContext, endpoint: Peer) -> Option<Peer> {
    let cookie = cookie(ctx);
    let peer = tcp(cookie)?;
    // SAFETY: the verifier checked the pointer; what bears this socket's cookie only its own hooks write.
    let peer = unsafe { peer.read_volatile() };
    let is_its = peer.cookie == cookie
        && peer.endpoint_port == endpoint.port
        && peer.endpoint == endpoint.addr;
    is_its.then_some(Peer { addr: peer.frontend, port: peer.frontend_port })
}

/// Forgets a TCP socket that is closed.
#[inline(always)]
pub(crate) fn forget_tcp(cookie: u64) {
    let Some(peer) = tcp(cookie) else { return };
    // SAFETY: as above.
    let noted = unsafe {
        if (&raw const (*peer).cookie).read_volatile() == cookie {
            (&raw mut (*peer).cookie).write_volatile(0);
        }
        (&raw const (*peer).noted).read_volatile()
    };
    if noted != 0 {
        _ = UDP_PEERS.remove(cookie);
    }
}

/// The place of a socket.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the lower bits")]
fn tcp(cookie: u64) -> Option<*mut TcpPeer> {
    TCP_SOCKETS.get_ptr_mut(cookie as u32 & (socket::TCP_SOCKETS as u32 - 1))
}

/// Takes back [`note_connected`], for a socket that is connected to something else now.
#[inline(always)]
pub(crate) fn forget_connected(ctx: &SockAddrContext) {
    // Most sockets have no entry, which is what is wanted.
    _ = UDP_PEERS.remove(cookie(ctx));
}

/// The frontend to which a UDP socket is connected, if this is the endpoint that it got.
#[inline(always)]
pub(crate) fn connected_frontend(ctx: &SockAddrContext, endpoint: Peer) -> Option<Peer> {
    let peer = UDP_PEERS.get_ptr(cookie(ctx))?;
    // SAFETY: the verifier checked the pointer; only this socket's own hooks write the entry.
    let peer = unsafe { &*peer };
    (peer.endpoint_port == endpoint.port && peer.endpoint == endpoint.addr)
        .then_some(Peer { addr: peer.frontend, port: peer.frontend_port })
}

#[inline(always)]
fn cookie(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the context is the hook's own.
    unsafe { bpf_get_socket_cookie(ctx.sock_addr.cast()) }
}

#[inline(always)]
fn read(socket: *mut Socket, index: usize) -> Flow {
    // SAFETY: the index is below FLOWS, and the verifier checked the pointer.
    unsafe { (&raw const (*socket).flows).cast::<Flow>().add(index & (FLOWS - 1)).read() }
}

#[inline(always)]
fn write(socket: *mut Socket, index: usize, flow: Flow) {
    // SAFETY: as above.
    unsafe { (&raw mut (*socket).flows).cast::<Flow>().add(index & (FLOWS - 1)).write(flow) };
}

const _: () = assert!(FLOWS.is_power_of_two());
