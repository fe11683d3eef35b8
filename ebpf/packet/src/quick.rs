//! Most packets of established connections: one lookup, one end rewritten. Whatever else there is to do
//! is left to [`crate::decide`].

use abi::flow::{SNAT_FIRST, Seen};

use crate::decide::Verdict;
use crate::flow::same;
use crate::live::{From, LiveName};
use crate::packet::Packet;
use crate::parse::{Fragment, Parsed, TCP, UDP, tcp};
use crate::rewrite::End;
use crate::tables::{Stage, Tables};

/// A packet that arrives: DNAT or un-SNAT; [`Verdict::UNKNOWN`] if there is more to do.
#[inline(always)]
pub fn arrives<T: Tables>(packet: &mut impl Packet, tables: &T, parsed: &mut Parsed) -> Verdict {
    if !is_plain(parsed) {
        return Verdict::UNKNOWN;
    }
    if u16::from_be(parsed.dst_port) >= SNAT_FIRST
        && let Some(known) = tables.named(parsed.key(Seen::Returning))
    {
        return returns(packet, tables, parsed, known);
    }
    let sent = parsed.key(Seen::Sent);
    let Some(live) = tables.flow(Stage::Established, sent) else { return Verdict::UNKNOWN };
    if parsed.protocol == UDP && tables.generation(live.slot()) != live.generation()
        || live.is_host()
        || live.client_port() != parsed.src_port
        || parsed.src.is_loopback()
        || parsed.dst.is_loopback()
    {
        return Verdict::UNKNOWN;
    }
    live.note(From::Client, parsed, tables.seconds());
    let (endpoint, port) = (live.endpoint(), live.endpoint_port());
    packet.rewritten(parsed, End::Destination, &endpoint, port)
}

/// A packet that leaves: SNAT or un-DNAT; [`Verdict::UNKNOWN`] as above.
#[inline(always)]
pub fn leaves<T: Tables>(packet: &mut impl Packet, tables: &T, parsed: &mut Parsed) -> Verdict {
    if !is_plain(parsed) {
        return Verdict::UNKNOWN;
    }
    let Some(known) = tables.named(parsed.name()) else { return Verdict::UNKNOWN };
    if !known.is_plain(tables.seconds()) {
        return Verdict::UNKNOWN;
    }
    let (client, port) = (known.client(), known.client_port());
    if parsed.src_port == port && same(&parsed.src(), &client) {
        if !known.is_masqueraded() {
            return Verdict::PASS;
        }
        return packet.rewritten(parsed, End::Source, &known.snat(), known.snat_port());
    }
    // The end of a connection is noted in its record.
    if parsed.dst_port != port
        || !same(&parsed.dst(), &client)
        || parsed.protocol == TCP && parsed.segment.flags & (tcp::FIN | tcp::RST) != 0
    {
        return Verdict::UNKNOWN;
    }
    known.note(parsed);
    packet.rewritten(parsed, End::Source, &known.frontend(), known.frontend_port())
}

/// Un-SNAT.
#[inline(always)]
fn returns<T: Tables>(
    packet: &mut impl Packet,
    tables: &T,
    parsed: &mut Parsed,
    known: LiveName,
) -> Verdict {
    if !known.is_plain(tables.seconds())
        || known.snat_port() != parsed.dst_port
        || parsed.src.is_loopback()
        || parsed.dst.is_loopback()
    {
        return Verdict::UNKNOWN;
    }
    packet.rewritten(parsed, End::Destination, &known.client(), known.client_port())
}

/// What opens a connection belongs to none that is established, so nothing is looked up for it here.
#[inline(always)]
fn is_plain(parsed: &Parsed) -> bool {
    matches!(parsed.fragment, Fragment::Whole)
        && match parsed.protocol {
            TCP => parsed.segment.flags & tcp::SYN == 0,
            protocol => protocol == UDP,
        }
}

#[cfg(test)]
#[cfg(feature = "memory")]
mod tests;
