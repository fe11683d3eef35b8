//! What each kind of hook does.

use abi::counter::Counter;
use abi::socket::Flow;
use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::generated::{bpf_get_socket_cookie, bpf_set_retval};
use aya_ebpf::programs::{SockAddrContext, SockContext};

use crate::choose::{Choice, choose, slot, still_serves};
use crate::maps::{UDP_PEERS, count};
use crate::peer::{Family, Peer};
use crate::remember::{
    connected_frontend, flow_to, forget_connected, frontend_of, known, make, note_connected, store,
};

/// What a cgroup program returns to let the call go on.
const ALLOW: i32 = 1;
/// What it returns to fail the call, with the error that was set before (EPERM if none was).
const DENY: i32 = 0;

const TCP: u8 = 6;
const UDP: u8 = 17;
const SOCK_DGRAM: u32 = 2;
/// The state of a connected socket, of UDP as well.
const TCP_ESTABLISHED: u32 = 1;

const EAGAIN: i32 = 11;
const ENOMEM: i32 = 12;
const ECONNREFUSED: i32 = 111;

/// `connect()`: one endpoint for the life of the connection.
#[inline(always)]
pub(crate) fn connect(ctx: &SockAddrContext, family: Family) -> i32 {
    let Some(protocol) = protocol(ctx) else { return ALLOW };
    let frontend = Peer::read(ctx, family);
    let Some(slot) = slot(frontend, protocol) else { return elsewhere(ctx, protocol) };
    let flow = match choose(slot) {
        Choice::Endpoint(endpoint, generation) => flow(frontend, endpoint, generation),
        Choice::Nobody => return refuse(),
        Choice::Nowhere => return lead_nowhere(),
        Choice::Unsettled => return deny(EAGAIN),
    };
    if protocol == UDP && note_connected(ctx, &flow) {
        return translate(ctx, family, flow);
    }
    match make(ctx) {
        Some(socket) => store(socket, flow),
        // A TCP connection works all the same; an answer to a UDP socket would come from an
        // address that the program never named.
        None if protocol == TCP => count(Counter::Unremembered),
        None => {
            count(Counter::NoMemory);
            return deny(ENOMEM);
        }
    }
    translate(ctx, family, flow)
}

/// `sendto()` and `sendmsg()` with an address, on UDP: the endpoint that the socket used last for
/// this frontend while that still serves, else one at random.
#[inline(always)]
pub(crate) fn sendmsg(ctx: &SockAddrContext, family: Family) -> i32 {
    let frontend = Peer::read(ctx, family);
    let Some(slot) = slot(frontend, UDP) else { return ALLOW };
    let Some(socket) = make(ctx) else {
        count(Counter::NoMemory);
        return deny(ENOMEM);
    };
    if let Some(last) = flow_to(socket, frontend) {
        let endpoint = Peer { addr: last.endpoint, port: last.endpoint_port };
        if let Some(generation) = still_serves(slot, endpoint, last.generation) {
            if generation != last.generation {
                store(socket, Flow { generation, ..last });
            }
            return translate(ctx, family, last);
        }
    }
    let flow = match choose(slot) {
        Choice::Endpoint(endpoint, generation) => flow(frontend, endpoint, generation),
        Choice::Nobody => return refuse(),
        Choice::Nowhere => return lead_nowhere(),
        Choice::Unsettled => return deny(EAGAIN),
    };
    store(socket, flow);
    translate(ctx, family, flow)
}

/// `recvfrom()`, `recvmsg()` and `getpeername()`: the program is told the address that it named.
#[inline(always)]
pub(crate) fn reverse(ctx: &SockAddrContext, family: Family) -> i32 {
    let endpoint = Peer::read(ctx, family);
    if let Some(socket) = known(ctx)
        && let Some(frontend) = frontend_of(socket, endpoint)
    {
        frontend.write(ctx, family);
    } else if is_connected_udp(ctx)
        && let Some(frontend) = connected_frontend(ctx, endpoint)
    {
        frontend.write(ctx, family);
    }
    ALLOW
}

/// `close()`.
#[inline(always)]
pub(crate) fn release(ctx: &SockContext) -> i32 {
    let sock: *mut bpf_sock = ctx.sock;
    // SAFETY: a field of the context, which the verifier checks.
    if unsafe { (&raw const (*sock).type_).read_volatile() } == SOCK_DGRAM {
        // SAFETY: the context is the hook's own.
        let cookie = unsafe { bpf_get_socket_cookie(sock.cast()) };
        // Most sockets have no entry.
        _ = UDP_PEERS.remove(cookie);
    }
    ALLOW
}

/// A connect to what is no Service: a UDP socket may have been connected to one before.
#[inline(always)]
fn elsewhere(ctx: &SockAddrContext, protocol: u8) -> i32 {
    if protocol == UDP {
        forget_connected(ctx);
    }
    ALLOW
}

/// Whether the hook's socket can have an entry in `UDP_PEERS`.
#[inline(always)]
fn is_connected_udp(ctx: &SockAddrContext) -> bool {
    // SAFETY: a field of the context, which the verifier checks.
    let sk = unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk };
    // SAFETY: checked for null first; the verifier knows the socket's fields.
    protocol(ctx) == Some(UDP)
        && !sk.is_null()
        && unsafe { (&raw const (*sk).state).read_volatile() } == TCP_ESTABLISHED
}

#[inline(always)]
fn protocol(ctx: &SockAddrContext) -> Option<u8> {
    // SAFETY: a field of the context, which the verifier checks.
    match unsafe { (&raw const (*ctx.sock_addr).protocol).read_volatile() } {
        6 => Some(TCP),
        17 => Some(UDP),
        _ => None,
    }
}

#[inline(always)]
fn flow(frontend: Peer, endpoint: Peer, generation: u32) -> Flow {
    Flow {
        frontend: frontend.addr,
        endpoint: endpoint.addr,
        frontend_port: frontend.port,
        endpoint_port: endpoint.port,
        generation,
    }
}

#[inline(always)]
fn translate(ctx: &SockAddrContext, family: Family, flow: Flow) -> i32 {
    Peer { addr: flow.endpoint, port: flow.endpoint_port }.write(ctx, family);
    count(Counter::Translated);
    ALLOW
}

#[inline(always)]
fn refuse() -> i32 {
    count(Counter::Refused);
    deny(ECONNREFUSED)
}

/// What leaves for a cluster IP is answered by nobody: the caller times out, as it would if its
/// packets were dropped.
#[inline(always)]
fn lead_nowhere() -> i32 {
    count(Counter::Dropped);
    ALLOW
}

#[inline(always)]
fn deny(errno: i32) -> i32 {
    // SAFETY: takes a number. Kernels 5.18 and newer have it for these hooks.
    unsafe { bpf_set_retval(-errno) };
    DENY
}
