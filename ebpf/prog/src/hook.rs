//! What each kind of hook does.

use abi::addr::Addr;
use abi::counter::Counter;
use abi::dns::GENERATION;
use abi::drop::Dropped;
use abi::frontend::FrontendKey;
use abi::node::Node;
use abi::slot::{Slot, Source};
use abi::socket::{Flow, Socket};
use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::generated::{
    bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_ktime_get_ns, bpf_set_retval,
};
use aya_ebpf::programs::{SockAddrContext, SockContext};

use crate::choose::{
    Choice, Chosen, Client, Found, choose, content, find, head, is_in_ranges, is_local, rules,
    slot, still_serves,
};
use crate::dns::{asks_for, own_server};
use crate::itself::may_be_itself;
use crate::maps::{
    LEFT_ALONE, N_LEFT_ALONE, NODE, UDP_PEERS, count, count_dropped, count_endpoint, count_refused,
    tell,
};
use crate::peer::{Family, Peer};
use crate::remember::{
    connected_frontend, flow_to, forget_connected, forget_tcp, frontend_of, known, make,
    note_connected, note_ending, note_tcp, store, tcp_frontend,
};

/// What a cgroup program returns to let the call go on.
const ALLOW: i32 = 1;
/// What it returns to fail the call, with the error that was set before (EPERM if none was).
const DENY: i32 = 0;

const TCP: u8 = 6;
const UDP: u8 = 17;
/// The state of a connected socket, of UDP as well.
const TCP_ESTABLISHED: u32 = 1;

const EPERM: i32 = 1;
const EAGAIN: i32 = 11;
const ENOMEM: i32 = 12;
const EADDRINUSE: i32 = 98;
const ETIMEDOUT: i32 = 110;
const ECONNREFUSED: i32 = 111;

/// `connect()`: one endpoint for the life of the connection.
#[inline(always)]
pub(crate) fn connect(ctx: &SockAddrContext, family: Family) -> i32 {
    let Some(protocol) = protocol(ctx) else { return ALLOW };
    if is_left_alone(ctx) {
        return elsewhere(ctx, protocol);
    }
    let frontend = Peer::read(ctx, family);
    if let Some(server) = own_server(frontend) {
        forget_if_udp(ctx, protocol);
        return ask(ctx, family, frontend, server);
    }
    let call = Call { family, frontend, protocol };
    let (slot, client) = match led(ctx, &call) {
        Led::To(slot, client) => (slot, client),
        Led::Refused => return call.refuse(0),
        Led::Elsewhere => return elsewhere(ctx, protocol),
        Led::Nowhere(reason, service) => {
            forget_if_udp(ctx, protocol);
            return call.lead_nowhere(ctx, reason, service);
        }
    };
    let chosen = match choose(slot, client) {
        Choice::Endpoint(chosen) => chosen,
        Choice::Nobody => return call.refuse(rules(slot).service()),
        Choice::Nowhere => return call.lead_nowhere(ctx, Counter::Dropped, rules(slot).service()),
        Choice::Unsettled => return deny(EAGAIN),
    };
    let flow = flow(frontend, &chosen);
    if protocol == UDP && note_connected(ctx, &flow, 0) {
        count_endpoint(chosen.id);
        return translate(ctx, family, flow);
    }
    if protocol == TCP && rules(slot).ends_connections() {
        note_ending(ctx, &flow);
    }
    if protocol == TCP && note_tcp(ctx, &flow) {
        count_endpoint(chosen.id);
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
    count_endpoint(chosen.id);
    translate(ctx, family, flow)
}

/// `sendto()` and `sendmsg()` with an address, on UDP: the endpoint that the socket used last for
/// this frontend while that still serves, else another.
#[inline(always)]
pub(crate) fn sendmsg(ctx: &SockAddrContext, family: Family) -> i32 {
    if is_left_alone(ctx) {
        return ALLOW;
    }
    let frontend = Peer::read(ctx, family);
    if let Some(server) = own_server(frontend) {
        return ask(ctx, family, frontend, server);
    }
    let call = Call { family, frontend, protocol: UDP };
    let (slot, client) = match led(ctx, &call) {
        Led::To(slot, client) => (slot, client),
        Led::Refused => return call.refuse(0),
        Led::Elsewhere => return ALLOW,
        Led::Nowhere(reason, service) => return call.lead_nowhere(ctx, reason, service),
    };
    let Some(socket) = make(ctx) else {
        count(Counter::NoMemory);
        return deny(ENOMEM);
    };
    if let Some(last) = flow_to(socket, frontend) {
        let endpoint = Peer { addr: last.endpoint, port: last.endpoint_port };
        if let Some(generation) = still_serves(head(slot, client.source), endpoint, last.generation)
        {
            if generation != last.generation {
                store(socket, Flow { generation, ..last });
            }
            return translate(ctx, family, last);
        }
    }
    let chosen = match choose(slot, client) {
        Choice::Endpoint(chosen) => chosen,
        Choice::Nobody => return call.refuse(rules(slot).service()),
        Choice::Nowhere => return call.lead_nowhere(ctx, Counter::Dropped, rules(slot).service()),
        Choice::Unsettled => return deny(EAGAIN),
    };
    let flow = flow(frontend, &chosen);
    store(socket, flow);
    count_endpoint(chosen.id);
    translate(ctx, family, flow)
}

/// Leads a question to this node's own DNS server. It is kept with the socket, not in `UDP_PEERS`:
/// user space would end a socket whose endpoint is none of the Service's. An endpoint that the socket
/// asked before stays in its place, for the answer may be on its way; [`kept`] knows the server by itself.
#[inline(always)]
fn ask(ctx: &SockAddrContext, family: Family, frontend: Peer, server: Peer) -> i32 {
    let Some(socket) = make(ctx) else {
        count(Counter::NoMemory);
        return deny(ENOMEM);
    };
    let flow = Flow {
        frontend: frontend.addr,
        endpoint: server.addr,
        frontend_port: frontend.port,
        endpoint_port: server.port,
        generation: GENERATION,
    };
    if flow_to(socket, frontend).is_none() {
        store(socket, flow);
    }
    translate(ctx, family, flow)
}

/// `recvfrom()`, `recvmsg()` and `getpeername()`: the program is told the address that it named.
#[inline(always)]
pub(crate) fn reverse(ctx: &SockAddrContext, family: Family) -> i32 {
    let endpoint = Peer::read(ctx, family);
    if protocol(ctx) == Some(TCP)
        && let Some(frontend) = tcp_frontend(ctx, endpoint)
    {
        frontend.write(ctx, family);
    } else if let Some(socket) = known(ctx)
        && let Some(frontend) = kept(socket, endpoint)
    {
        frontend.write(ctx, family);
    } else if is_connected_udp(ctx)
        && let Some(frontend) = connected_frontend(ctx, endpoint)
    {
        frontend.write(ctx, family);
    }
    ALLOW
}

/// What a socket with storage is told of an endpoint.
#[inline(always)]
fn kept(socket: *mut Socket, endpoint: Peer) -> Option<Peer> {
    frontend_of(socket, endpoint).or_else(|| {
        // An answer may come after the question was asked elsewhere.
        asks_for(endpoint).filter(|service| flow_to(socket, *service).is_some())
    })
}

/// `bind()`: a node port is kept for its Service if the node was told so.
#[inline(always)]
pub(crate) fn bind(ctx: &SockAddrContext, family: Family) -> i32 {
    let Some(node) = node() else { return ALLOW };
    if node.flags & Node::PROTECT_NODE_PORTS == 0 || netns(ctx) != node.netns {
        return ALLOW;
    }
    let Some(protocol) = protocol(ctx) else { return ALLOW };
    let Peer { addr, port } = Peer::read(ctx, family);
    // A socket bound to `::` may hear IPv4 as well.
    let is_taken = port != 0
        && (slot(&FrontendKey::node_port(&addr, port, protocol)).is_some()
            || addr == Addr::ANY_V6
                && slot(&FrontendKey::node_port(&Addr::ANY_V4, port, protocol)).is_some());
    if is_taken {
        count(Counter::BindRefused);
        return deny(EADDRINUSE);
    }
    ALLOW
}

/// `close()`.
#[inline(always)]
pub(crate) fn release(ctx: &SockContext) -> i32 {
    let sock: *mut bpf_sock = ctx.sock;
    // SAFETY: the context is the hook's own.
    let cookie = unsafe { bpf_get_socket_cookie(sock.cast()) };
    // SAFETY: as above.
    if unsafe { (&raw const (*sock).protocol).read_volatile() } == u32::from(TCP) {
        forget_tcp(cookie);
    } else {
        // Most sockets have no entry.
        _ = UDP_PEERS.remove(cookie);
    }
    ALLOW
}

/// Where a call leads.
enum Led {
    /// To the endpoints of this slot.
    To(*const Slot, Client),
    /// Nowhere, and the caller is told.
    Refused,
    /// Nowhere, for that reason and on account of that Service port.
    Nowhere(Counter, u32),
    /// To what is none of ours, or what the packet programs look after.
    Elsewhere,
}

/// A call that names an address.
struct Call {
    family: Family,
    frontend: Peer,
    protocol: u8,
}

/// Where a call leads, by what is named and who asks.
#[inline(always)]
fn led(ctx: &SockAddrContext, call: &Call) -> Led {
    let Some(node) = node() else { return Led::Elsewhere };
    let netns = netns(ctx);
    let here = netns == node.netns;
    if node.flags & if here { Node::SOCKETS_NODE } else { Node::SOCKETS_PODS } == 0 {
        return Led::Elsewhere;
    }
    let slot = match find(call.frontend, call.protocol, here) {
        Found::Frontend(slot) => slot,
        Found::Undefined => return Led::Refused,
        Found::Stranger => return Led::Elsewhere,
    };
    let Some(entry) = content(slot) else { return Led::Elsewhere };
    let source = if here {
        Source::Node
    } else if node.tells_pods(&call.frontend.addr) {
        Source::Pod
    } else {
        Source::Outside
    };
    let rules = rules(entry);
    if here {
        // The node's own packets get a source of the node's for whatever endpoint, so nothing is
        // left to be rewritten.
        let ip = node.ip(&call.frontend.addr);
        if rules.has_ranges() && !is_in_ranges(slot, ip) {
            return Led::Nowhere(Counter::OutsideRanges, rules.service());
        }
    } else if needs_packet(ctx, call, node, entry, source) {
        count(Counter::LeftToPackets);
        return Led::Elsewhere;
    }
    Led::To(entry, Client { source, name: Addr::of_namespace(netns) })
}

/// Whether what becomes of a pod's call shows only once there is a packet: its source is compared, or
/// is rewritten, or decides who serves.
#[inline(always)]
fn needs_packet(
    ctx: &SockAddrContext,
    call: &Call,
    node: &Node,
    slot: *const Slot,
    source: Source,
) -> bool {
    let head_of = |source| head(slot, source).with_masquerade(false);
    let head = head(slot, source);
    // Which pods are this node's the packet tells, by its address or by where it arrives.
    let depends = head_of(Source::Pod) != head_of(Source::Outside);
    rules(slot).has_ranges()
        || head.masquerade()
        || source == Source::Pod && depends
        || node.flags & Node::PACKETS != 0 && may_be_itself(ctx, call.family, call.protocol, head)
}

/// Whether the caller's pod asks to be left alone: then what looks at its sockets and packets finds the
/// address that was named, and the packets are translated on their way. On most nodes none does.
#[inline(always)]
fn is_left_alone(ctx: &SockAddrContext) -> bool {
    let Some(n) = N_LEFT_ALONE.get_ptr(0) else { return false };
    // SAFETY: the verifier checked the pointer; one aligned word.
    if unsafe { n.read_volatile() } == 0 || LEFT_ALONE.get_ptr(netns(ctx)).is_none() {
        return false;
    }
    count(Counter::LeftAlone);
    true
}

/// What holds for the node.
#[inline(always)]
fn node() -> Option<&'static Node> {
    // SAFETY: the verifier checked the pointer. User space writes it whole when the node's own
    // settings change; a call that meets half of a change is as good as one before or after it.
    NODE.get_ptr(0).map(|node| unsafe { &*node })
}

#[inline(always)]
fn netns(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the context is the hook's own.
    unsafe { bpf_get_netns_cookie(ctx.sock_addr.cast()) }
}

/// A connect to what is not led to an endpoint: a UDP socket may have been connected to one before.
#[inline(always)]
fn elsewhere(ctx: &SockAddrContext, protocol: u8) -> i32 {
    forget_if_udp(ctx, protocol);
    ALLOW
}

#[inline(always)]
fn forget_if_udp(ctx: &SockAddrContext, protocol: u8) {
    if protocol == UDP {
        forget_connected(ctx);
    }
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
fn flow(frontend: Peer, chosen: &Chosen) -> Flow {
    Flow {
        frontend: frontend.addr,
        endpoint: chosen.peer.addr,
        frontend_port: frontend.port,
        endpoint_port: chosen.peer.port,
        generation: chosen.generation,
    }
}

#[inline(always)]
fn translate(ctx: &SockAddrContext, family: Family, flow: Flow) -> i32 {
    Peer { addr: flow.endpoint, port: flow.endpoint_port }.write(ctx, family);
    count(Counter::Translated);
    ALLOW
}

impl Call {
    #[inline(always)]
    fn refuse(&self, service: u32) -> i32 {
        count(Counter::Refused);
        count_refused(service);
        self.tell(Counter::Refused, service, 1);
        deny(ECONNREFUSED)
    }

    /// What leaves for a frontend's address is dropped on its way. What the node sends to an address
    /// of its own does not leave: its caller hears at once what it would hear in the end, and of UDP
    /// what netfilter tells of a packet that it drops.
    #[inline(always)]
    fn lead_nowhere(&self, ctx: &SockAddrContext, reason: Counter, service: u32) -> i32 {
        count(reason);
        count_dropped(service);
        self.tell(reason, service, 0);
        let here = node().is_some_and(|node| node.netns == netns(ctx));
        if here && is_local(&self.frontend.addr) {
            return deny(if self.protocol == TCP { ETIMEDOUT } else { EPERM });
        }
        ALLOW
    }

    #[inline(always)]
    fn tell(&self, reason: Counter, service: u32, told: u8) {
        tell(Dropped {
            // SAFETY: takes nothing, returns a number.
            at: unsafe { bpf_ktime_get_ns() },
            dst: self.frontend.addr,
            dst_port: self.frontend.port,
            reason: reason as u32,
            service,
            protocol: self.protocol,
            told,
            ..Dropped::default()
        });
    }
}

#[inline(always)]
fn deny(errno: i32) -> i32 {
    // SAFETY: takes a number. Kernels 5.18 and newer have it for these hooks.
    unsafe { bpf_set_retval(-errno) };
    DENY
}
