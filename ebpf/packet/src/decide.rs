//! What becomes of a packet that arrives, and of one that leaves.
//!
//! ```text
//!  arrives   known connection ─▶ DNAT                 leaves   known, to the endpoint ─▶ SNAT
//!            to a reserved port ─▶ un-SNAT                     known, from it ─▶ un-DNAT
//!            to a frontend ─▶ opened, DNAT                     made here, to a frontend ─▶ opened,
//!            else untouched                                      DNAT, another way out
//! ```
//!
//! Between the two, the kernel forwards: it sees client and endpoint, in both directions.

use abi::addr::Addr;
use abi::counter::Counter;
use abi::flow::{SNAT_FIRST, Seen, Tuple, flag};

use crate::flow::{self, Found};
use crate::live::From;
use crate::packet::Packet;
use crate::parse::{Fragment, ICMP, ICMP_V6, Parsed, SCTP, TCP, UDP};
use crate::quick;
use crate::rewrite::End;
use crate::tables::{Choice, Found as Destination, Stage, Tables};

/// No frontend's.
const NO_SLOT: u32 = u32::MAX;

/// What to do with a packet: one word, as functions of a program return it.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict(pub u32);

impl Verdict {
    /// Let it go on, rewritten or not.
    pub const PASS: Self = Self(0);
    /// Send it back where it came from: it has become the answer.
    pub const ANSWER: Self = Self(1);
    /// Send it on by another way than the one that was chosen for its former destination.
    pub const REROUTE: Self = Self(2);
    /// No connection that is known: [`to_frontend`] decides.
    pub const UNKNOWN: Self = Self(3);
    /// Nothing stands against it: what follows decides.
    pub const ON: Self = Self(4);
    const DROP: u32 = 16;

    /// Drop it, for that reason, which is not counted yet.
    #[inline(always)]
    pub const fn drop(reason: Counter) -> Self {
        Self(Self::DROP + reason as u32)
    }

    /// The same of a packet whose way is still to be found.
    #[inline(always)]
    pub const fn before_routing(self) -> Self {
        if self.0 == Self::REROUTE.0 { Self::PASS } else { self }
    }

    /// The index of the reason's counter, if it is to be dropped.
    #[inline(always)]
    pub const fn reason(self) -> Option<u32> {
        self.0.checked_sub(Self::DROP)
    }
}

/// Decides on a packet that arrives on a device.
#[inline(always)]
pub fn arrives<T: Tables>(packet: &mut impl Packet, tables: &T, parsed: &mut Parsed) -> Verdict {
    match quick::arrives(packet, tables, parsed) {
        Verdict::UNKNOWN => arrives_rarely(packet, tables, parsed),
        verdict => verdict,
    }
}

/// The same of one that [`quick`] did not know.
#[inline(always)]
pub fn arrives_rarely<T: Tables>(
    packet: &mut impl Packet,
    tables: &T,
    parsed: &mut Parsed,
) -> Verdict {
    if parsed.src.is_loopback() || parsed.dst.is_loopback() {
        return Verdict::drop(Counter::DroppedMartian);
    }
    if matches!(parsed.protocol, ICMP | ICMP_V6) {
        return packet.icmp(tables, parsed, true);
    }
    if !matches!(parsed.protocol, TCP | UDP | SCTP) {
        return Verdict::PASS;
    }
    if parsed.fragment != Fragment::Whole {
        match packet.fragment(tables, parsed, false) {
            Verdict::ON => {}
            verdict => return verdict,
        }
    }
    match packet.known_arrives(tables, parsed) {
        Verdict::UNKNOWN => packet.to_frontend(tables, parsed, false),
        verdict => verdict,
    }
    .before_routing()
}

/// Decides on a packet that leaves by a device; `made_here` by a process of this node, not
/// forwarded.
#[inline(always)]
pub fn leaves<T: Tables>(
    packet: &mut impl Packet,
    tables: &T,
    parsed: &mut Parsed,
    made_here: bool,
) -> Verdict {
    match quick::leaves(packet, tables, parsed) {
        Verdict::UNKNOWN => leaves_rarely(packet, tables, parsed, made_here),
        verdict => verdict,
    }
}

/// The same of one that [`quick`] did not know.
#[inline(always)]
pub fn leaves_rarely<T: Tables>(
    packet: &mut impl Packet,
    tables: &T,
    parsed: &mut Parsed,
    made_here: bool,
) -> Verdict {
    if matches!(parsed.protocol, ICMP | ICMP_V6) {
        return packet.icmp(tables, parsed, false);
    }
    if !matches!(parsed.protocol, TCP | UDP | SCTP) {
        return Verdict::PASS;
    }
    if parsed.fragment != Fragment::Whole {
        match packet.fragment(tables, parsed, true) {
            Verdict::ON => {}
            verdict => return verdict,
        }
    }
    match packet.known_leaves(tables, parsed, made_here) {
        Verdict::UNKNOWN => packet.to_frontend(tables, parsed, true),
        verdict => verdict,
    }
}

/// A packet that arrives, of a connection that is known; else [`Verdict::UNKNOWN`].
#[inline(always)]
pub fn known_arrives<T: Tables>(
    packet: &mut impl Packet,
    tables: &T,
    parsed: &mut Parsed,
) -> Verdict {
    let sent = tuple(parsed);
    // Node ports and ports of Services are seldom among those of masqueraded connections.
    if u16::from_be(parsed.dst_port) >= SNAT_FIRST
        && let Some(verdict) = returns(packet, tables, parsed, &sent)
    {
        return verdict;
    }
    if let Some(live) = tables.flow(Stage::Established, &sent) {
        let found = Found { live, stage: Stage::Established };
        if !flow::is_over(tables, found, parsed) {
            return to_endpoint(packet, tables, parsed, found, &sent);
        }
        end(tables, found, &sent);
    }
    Verdict::UNKNOWN
}

/// A packet that leaves, of a connection that is known; else [`Verdict::UNKNOWN`].
#[inline(always)]
pub fn known_leaves<T: Tables>(
    packet: &mut impl Packet,
    tables: &T,
    parsed: &mut Parsed,
    made_here: bool,
) -> Verdict {
    let seen = tuple(parsed);
    let (name, mut sent) = (seen.leaving(), seen);
    if let Some(found) = flow::by_name(tables, &name, &mut sent)
        && let Some(to_endpoint) = flow::is_to_endpoint(found.live, &sent, &seen)
    {
        let verdict = if to_endpoint {
            masquerade(packet, tables, parsed, found, &sent)
        } else {
            from_endpoint(packet, tables, parsed, found, &sent)
        };
        if found.stage == Stage::Established {
            tables.compare(found.live, &name, &sent);
        }
        return verdict;
    }
    if !made_here {
        return Verdict::PASS;
    }
    if let Some(live) = tables.flow(Stage::Established, &seen) {
        let found = Found { live, stage: Stage::Established };
        if !flow::is_over(tables, found, parsed) {
            return to_endpoint(packet, tables, parsed, found, &seen);
        }
        end(tables, found, &seen);
    }
    Verdict::UNKNOWN
}

/// Ends a connection whose packet is to open another.
#[inline(always)]
fn end(tables: &impl Tables, found: Found, sent: &Tuple) {
    if sent.protocol == UDP {
        tables.count(Counter::FlowStale);
    }
    tables.forget(found.stage, found.live, sent);
}

/// The packet's tuple, as the key of a record.
#[inline(always)]
pub fn tuple(parsed: &Parsed) -> Tuple {
    Tuple {
        src: parsed.src,
        dst: parsed.dst,
        src_port: parsed.src_port,
        dst_port: parsed.dst_port,
        protocol: parsed.protocol,
        seen: Seen::Sent as u8,
        pad: 0,
    }
}

/// DNAT.
#[inline(always)]
fn to_endpoint<T: Tables>(
    packet: &mut impl Packet,
    tables: &T,
    parsed: &mut Parsed,
    found: Found,
    sent: &Tuple,
) -> Verdict {
    let live = found.live;
    let is_first = live.forward_packets() == 0;
    live.note(From::Client, parsed, tables.seconds());
    if live.has(flag::NETFILTER) {
        return Verdict::PASS;
    }
    if !is_translatable(parsed) {
        return Verdict::drop(Counter::DroppedSctpFragment);
    }
    let (endpoint, port, client_port) = (live.endpoint(), live.endpoint_port(), live.client_port());
    let is_host = live.is_host();
    if found.stage == Stage::New {
        if live.is_proved_by(parsed.protocol, &parsed.segment) {
            tables.establish(live, sent);
        } else if is_first {
            // Whoever has opened it has just named it.
            flow::mark(tables, live, sent);
        } else {
            tables.renew(live, sent);
        }
    }
    if client_port != sent.src_port
        && packet.rewrite_rarely(parsed, End::Source, &sent.src, client_port).is_none()
    {
        return Verdict::drop(Counter::DroppedUnwritable);
    }
    let rewritten = packet.rewrite(parsed, End::Destination, &endpoint, port);
    match (rewritten, is_host) {
        (None, _) => Verdict::drop(Counter::DroppedUnwritable),
        (Some(()), false) => Verdict::PASS,
        (Some(()), true) => Verdict::REROUTE,
    }
}

/// Un-SNAT, and for the node's own connections un-DNAT as well; `None` if it is no reply.
#[inline(always)]
fn returns<T: Tables>(
    packet: &mut impl Packet,
    tables: &T,
    parsed: &mut Parsed,
    seen: &Tuple,
) -> Option<Verdict> {
    let (name, mut sent) = (seen.at(Seen::Returning), *seen);
    let found = flow::by_name(tables, &name, &mut sent)?;
    let live = found.live;
    if !flow::same(&live.endpoint(), &seen.src)
        || live.endpoint_port() != seen.src_port
        || live.snat_port() != seen.dst_port
    {
        return None;
    }
    if !is_translatable(parsed) {
        return Some(Verdict::drop(Counter::DroppedSctpFragment));
    }
    let mut port = live.client_port();
    if live.is_host() {
        live.note(From::Endpoint, parsed, tables.seconds());
        port = sent.src_port;
        if packet.rewrite_rarely(parsed, End::Source, &sent.dst, sent.dst_port).is_none() {
            return Some(Verdict::drop(Counter::DroppedUnwritable));
        }
    }
    if found.stage == Stage::Established {
        tables.compare(live, &name, &sent);
    }
    Some(packet.rewritten(parsed, End::Destination, &sent.src, port))
}

/// Finds a source for the masqueraded connection of a packet that leaves ([`flow::masquerade`]), and says
/// which.
///
/// # Errors
/// Why the packet must be dropped.
#[inline(always)]
pub fn find_source(tables: &impl Tables, parsed: &Parsed) -> Result<(Addr, u16), Verdict> {
    let name = tuple(parsed).leaving();
    let mut sent = name;
    // It may have ended meanwhile.
    let found = flow::by_name(tables, &name, &mut sent);
    let found = found.ok_or(Verdict::drop(Counter::DroppedNoPort))?;
    if found.live.snat_port() == 0 {
        flow::masquerade(tables, found, &sent)?;
    }
    Ok((found.live.snat(), found.live.snat_port()))
}

/// SNAT.
#[inline(always)]
fn masquerade<T: Tables>(
    packet: &mut impl Packet,
    tables: &T,
    parsed: &mut Parsed,
    found: Found,
    sent: &Tuple,
) -> Verdict {
    if !found.live.has(flag::MASQUERADE) {
        return Verdict::PASS;
    }
    if found.live.snat_port() == 0
        && let Err(verdict) = tables.masquerade(found, sent)
    {
        return verdict;
    }
    let (address, port) = (found.live.snat(), found.live.snat_port());
    packet.rewritten(parsed, End::Source, &address, port)
}

/// Un-DNAT.
#[inline(always)]
fn from_endpoint<T: Tables>(
    packet: &mut impl Packet,
    tables: &T,
    parsed: &mut Parsed,
    found: Found,
    sent: &Tuple,
) -> Verdict {
    if !is_translatable(parsed) {
        return Verdict::drop(Counter::DroppedSctpFragment);
    }
    found.live.note(From::Endpoint, parsed, tables.seconds());
    if parsed.dst_port != sent.src_port
        && packet.rewrite_rarely(parsed, End::Destination, &sent.src, sent.src_port).is_none()
    {
        return Verdict::drop(Counter::DroppedUnwritable);
    }
    packet.rewritten(parsed, End::Source, &sent.dst, sent.dst_port)
}

/// The checksum of an SCTP packet spans all its fragments.
fn is_translatable(parsed: &Parsed) -> bool {
    parsed.protocol != SCTP || parsed.fragment == Fragment::Whole
}

/// A packet of no established connection: a frontend's, or none of ours.
#[inline(always)]
pub fn to_frontend<T: Tables>(
    packet: &mut impl Packet,
    tables: &T,
    parsed: &mut Parsed,
    here: bool,
) -> Verdict {
    let sent = &tuple(parsed);
    let slot = match tables.find(&sent.dst, sent.dst_port, sent.protocol) {
        Destination::Stranger => return Verdict::PASS,
        Destination::Frontend(slot) => slot,
        // Others are in charge of what is new.
        _ if !tables.leads() => return Verdict::PASS,
        Destination::Unallocated => return Verdict::drop(Counter::DroppedUnallocated),
        Destination::Undefined => {
            tables.turned_away(NO_SLOT, true);
            return packet.unreachable(tables, parsed);
        }
    };
    if let Some(found) = flow::by_key(tables, sent) {
        if !flow::is_over(tables, found, parsed) {
            return to_endpoint(packet, tables, parsed, found, sent);
        }
        end(tables, found, sent);
    }
    if !tables.leads() {
        return Verdict::PASS;
    }
    if !flow::opens(parsed) {
        // The middle of a connection that was opened before this began: netfilter may know it.
        return if here { Verdict::drop(Counter::DroppedStray) } else { Verdict::PASS };
    }
    let opened = match tables.choose(slot, &sent.src, here) {
        Choice::Endpoint(chosen) => tables.open(sent, slot, &chosen, here),
        Choice::Nobody => {
            tables.turned_away(slot, true);
            return packet.unreachable(tables, parsed);
        }
        Choice::Nowhere => Err(Verdict::drop(Counter::DroppedNoLocal)),
        Choice::NotAllowed => Err(Verdict::drop(Counter::DroppedNotAllowed)),
        Choice::Unsettled => Err(Verdict::drop(Counter::DroppedUnsettled)),
    };
    if let Err(verdict) = opened {
        tables.turned_away(slot, false);
        return verdict;
    }
    match flow::opened(tables, sent) {
        Some(found) => to_endpoint(packet, tables, parsed, found, sent),
        // Displaced at once: there are more new connections than there is room for.
        None => Verdict::drop(Counter::DroppedNoRoom),
    }
}
