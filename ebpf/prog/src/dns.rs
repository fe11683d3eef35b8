//! Questions to the cluster's DNS: to this node's own server while it lives.
//!
//! ```text
//!  socket   names the Service ─▶ asks the server itself
//!  packet   to the Service ─▶ to the server's port for packets; its answers from there ─▶ from the
//!           Service; to the server, which is dead ─▶ as if to the Service
//! ```

use core::ffi::c_void;

use abi::addr::Addr;
use abi::counter::Counter;
use abi::dns::{OwnServer, family_index};
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::helpers::generated::{bpf_map_lookup_elem, bpf_sk_release};
use packet::decide::{Verdict, tuple};
use packet::flow;
use packet::packet::Packet;
use packet::parse::{Fragment, Parsed, TCP, UDP};
use packet::rewrite::End;
use packet::tables::{Stage, Tables};

use crate::maps::{DNS, DNS_ALIVE, DNS_CLIENTS, count};
use crate::peer::Peer;
use crate::skb::Skb;
use crate::tables::Kernel;

/// Where the server of this node answers what is sent to this address. `None` for every other
/// address, and when the server is dead: then the Service's endpoints are asked.
#[inline(always)]
pub(crate) fn own_server(asked: Peer) -> Option<Peer> {
    let own = own(asked.addr)?;
    if own.service_port != asked.port || own.service != asked.addr || asked.port == 0 {
        return None;
    }
    let server = Peer { addr: own.server, port: own.server_port };
    if !is_alive() {
        return None;
    }
    count(Counter::OwnDns);
    Some(server)
}

/// The Service whose questions are led to an address.
#[inline(always)]
pub(crate) fn asks_for(server: Peer) -> Option<Peer> {
    let own = own(server.addr)?;
    (own.server_port == server.port && own.server == server.addr)
        .then_some(Peer { addr: own.service, port: own.service_port })
}

/// Whether [`arrives`] is to be asked: by the port alone, for all packets pass here.
#[inline(always)]
pub(crate) fn may_ask(parsed: &Parsed) -> bool {
    own(parsed.dst).is_some_and(|own| {
        own.service_port != 0
            && (parsed.dst_port == own.service_port || parsed.dst_port == own.server_port)
    })
}

/// Whether [`leaves`] is to be asked.
#[inline(always)]
pub(crate) fn may_answer(parsed: &Parsed) -> bool {
    own(parsed.src).is_some_and(|own| own.packet_port != 0 && parsed.src_port == own.packet_port)
}

/// Decides on a packet that arrives; [`Verdict::UNKNOWN`] if it is no question of this node's to the
/// cluster's DNS, or nobody here would answer it.
#[inline(always)]
pub(crate) fn arrives(skb: Skb, parsed: &mut Parsed) -> Verdict {
    if !matches!(parsed.protocol, TCP | UDP) || parsed.fragment != Fragment::Whole {
        return Verdict::UNKNOWN;
    }
    let Some(own) = own(parsed.dst).filter(|own| own.service_port != 0) else {
        return Verdict::UNKNOWN;
    };
    let to_server = parsed.dst_port == own.server_port && parsed.dst == own.server;
    let to_service = parsed.dst_port == own.service_port && parsed.dst == own.service;
    if !(to_server || to_service && own.packet_port != 0) {
        if parsed.protocol == UDP && parsed.dst_port == own.service_port {
            asks_directly(skb, parsed);
        }
        return Verdict::UNKNOWN;
    }
    if !is_alive() || parsed.protocol == TCP && is_known(skb, parsed) {
        return Verdict::UNKNOWN;
    }
    if to_server {
        return Verdict::PASS;
    }
    if DNS_CLIENTS.get(&Key::new(Addr::BITS, parsed.src)).is_none() {
        return Verdict::UNKNOWN;
    }
    count(Counter::OwnDns);
    rewritten(Skb(skb.0).rewrite(parsed, End::Destination, &own.server, own.packet_port))
}

/// Gives an answer of this node's server to a question that was led to it by [`arrives`] the address
/// that was asked; [`Verdict::UNKNOWN`] if it is none.
#[inline(always)]
pub(crate) fn leaves(skb: Skb, parsed: &mut Parsed) -> Verdict {
    if !matches!(parsed.protocol, TCP | UDP) || parsed.fragment != Fragment::Whole {
        return Verdict::UNKNOWN;
    }
    let Some(own) = own(parsed.src) else { return Verdict::UNKNOWN };
    if own.packet_port == 0 || parsed.src_port != own.packet_port || parsed.src != own.server {
        return Verdict::UNKNOWN;
    }
    rewritten(Skb(skb.0).rewrite(parsed, End::Source, &own.service, own.service_port))
}

/// The Service for which an address stands: that of this node's server, which is dead.
#[inline(always)]
pub(crate) fn stands_for(address: &Addr, port: u16) -> Option<&'static OwnServer> {
    let own = own(*address)?;
    let is_servers = own.fails_over != 0 && own.server_port == port && own.server == *address;
    (is_servers && !is_alive()).then_some(own)
}

#[inline(always)]
fn own(address: Addr) -> Option<&'static OwnServer> {
    // SAFETY: the verifier checked the pointer. User space changes an element only while the
    // server counts as dead; a packet that meets half of a change is sent again.
    DNS.get_ptr(family_index(address)).map(|own| unsafe { &*own })
}

/// A socket that was led to an endpoint of the Service asks it by itself. If an earlier socket of
/// that port was led there packet by packet, while the server was dead, that is over: the answers
/// would be given the server's address.
#[inline(always)]
fn asks_directly(skb: Skb, parsed: &Parsed) {
    let (tables, asked) = (Kernel(skb), tuple(parsed));
    let mut sent = asked;
    if let Some(found) = flow::by_name(&tables, &asked.leaving(), &mut sent) {
        tables.forget(found.stage, found.live, &sent);
    }
}

/// A connection that was led to an endpoint while the server was dead stays there.
#[inline(always)]
fn is_known(skb: Skb, parsed: &Parsed) -> bool {
    let (tables, sent) = (Kernel(skb), tuple(parsed));
    tables.flow(Stage::Established, &sent).is_some() || tables.flow(Stage::New, &sent).is_some()
}

#[inline(always)]
const fn rewritten(done: Option<()>) -> Verdict {
    match done {
        Some(()) => Verdict::PASS,
        None => Verdict::drop(Counter::DroppedUnwritable),
    }
}

/// Whether the server lives: the kernel takes a socket out of the map when it is closed, however
/// its process ends.
#[inline(always)]
fn is_alive() -> bool {
    let key = 0_u32;
    // SAFETY: a map of this object, and a key on the stack of the size it wants.
    let socket = unsafe {
        bpf_map_lookup_elem((&raw const DNS_ALIVE).cast_mut().cast(), (&raw const key).cast())
    };
    if socket.is_null() {
        return false;
    }
    // SAFETY: the socket that the lookup took hold of.
    unsafe { bpf_sk_release(socket.cast::<c_void>()) };
    true
}
