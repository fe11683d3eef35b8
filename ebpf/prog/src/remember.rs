//! What is kept with a socket, for the way back and for its next datagram.

use abi::addr::Addr;
use abi::counter::Counter;
use abi::socket::{FLOWS, Flow, Socket, UdpPeer};
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie};
use aya_ebpf::programs::SockAddrContext;

use crate::maps::{SOCKETS, TCP_PEERS, UDP_PEERS, count};
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

/// Notes a TCP socket for its peer's name. Says whether there was room.
#[inline(always)]
pub(crate) fn note_tcp(ctx: &SockAddrContext, flow: &Flow) -> bool {
    TCP_PEERS.insert(cookie(ctx), flow, 0).is_ok()
}

/// The frontend to which a TCP socket is connected, if this is the endpoint that it got.
#[inline(always)]
pub(crate) fn tcp_frontend(ctx: &SockAddrContext, endpoint: Peer) -> Option<Peer> {
    let flow = TCP_PEERS.get_ptr(cookie(ctx))?;
    // SAFETY: the verifier checked the pointer; only this socket's own hooks write the entry.
    let flow = unsafe { &*flow };
    (flow.endpoint_port == endpoint.port && flow.endpoint == endpoint.addr)
        .then_some(Peer { addr: flow.frontend, port: flow.frontend_port })
}

/// Forgets a socket that is closed. Most have no entry, and to look is cheaper than to remove.
#[inline(always)]
pub(crate) fn forget(cookie: u64) {
    if TCP_PEERS.get_ptr(cookie).is_some() {
        _ = TCP_PEERS.remove(cookie);
    }
    if UDP_PEERS.get_ptr(cookie).is_some() {
        _ = UDP_PEERS.remove(cookie);
    }
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
