//! Fragments: only the first of a datagram has its ports. The others are held for it if they come
//! before it.
//!
//! ```text
//!  first    ─▶ its ports are noted ─┬─▶ nobody waits: it goes on
//!                                   └─▶ it comes again, and behind it those that were held
//!  another  ─┬─▶ the ports are known: it goes on
//!            └─▶ not yet, but it may be ours: it is copied, and dropped
//! ```
//!
//! A fragment that comes again passes the same program, and finds the ports.

use abi::counter::Counter;
use abi::flow::{DATAGRAM_SECONDS, FragmentKey, HELD_BYTES, HELD_LEN, HELD_PLACES, HeldKey, Ports};

use crate::decide::Verdict;
use crate::flow::same;
use crate::packet::Packet;
use crate::parse::{Fragment, Parsed};
use crate::tables::{Added, Tables};

/// Finds the ports of a fragment: [`Verdict::ON`] with them, or what becomes of it without.
#[inline(always)]
pub fn fragment<T: Tables>(
    packet: &mut impl Packet,
    tables: &T,
    parsed: &mut Parsed,
    leaves: bool,
) -> Verdict {
    let (id, first) = match parsed.fragment {
        Fragment::Whole => return Verdict::ON,
        Fragment::First(id) => (id, true),
        Fragment::Later(id) => (id, false),
    };
    let key = FragmentKey {
        src: parsed.src,
        dst: parsed.dst,
        id,
        protocol: parsed.protocol,
        leaves: u8::from(leaves),
        pad: 0,
    };
    if first {
        let is_new = ports(tables, &key).is_none();
        let ports = u32::from(parsed.src_port) | u32::from(parsed.dst_port) << 16;
        tables.note_ports(&key, &Ports { ports, at: tables.seconds() });
        if is_new && is_held(tables, &HeldKey { datagram: key, place: 0 }) {
            return release(packet, tables, parsed.l3, key, leaves);
        }
        return Verdict::ON;
    }
    if let Some(ports) = ports(tables, &key) {
        return with_ports(parsed, ports);
    }
    if !is_awaited(tables, parsed, leaves) {
        return Verdict::PASS;
    }
    let Some(held) = hold(packet, tables, parsed, key) else {
        if !leaves && tables.is_cluster_ip(&parsed.dst) {
            return Verdict::drop(Counter::DroppedFragment);
        }
        tables.count(Counter::FragmentNotHeld);
        return Verdict::PASS;
    };
    // The first may have come, on another processor, and have found nobody waiting.
    if let Some(ports) = ports(tables, &key) {
        tables.let_go(&held);
        return with_ports(parsed, ports);
    }
    Verdict::drop(Counter::FragmentHeld)
}

/// The ports of a datagram, if its first fragment has come.
#[inline(always)]
fn ports(tables: &impl Tables, key: &FragmentKey) -> Option<u32> {
    let noted = tables.ports(key)?;
    is_fresh(tables, noted.at).then_some(noted.ports)
}

#[inline(always)]
fn is_fresh(tables: &impl Tables, at: u32) -> bool {
    tables.seconds().wrapping_sub(at) <= DATAGRAM_SECONDS
}

#[inline(always)]
fn is_held(tables: &impl Tables, key: &HeldKey) -> bool {
    tables.held(key).is_some_and(|(at, _)| is_fresh(tables, at))
}

#[inline(always)]
fn with_ports(parsed: &mut Parsed, ports: u32) -> Verdict {
    let [a, b, c, d] = ports.to_le_bytes();
    parsed.src_port = u16::from_le_bytes([a, b]);
    parsed.dst_port = u16::from_le_bytes([c, d]);
    Verdict::ON
}

/// Whether the first fragment may turn out to be translated. What arrives may be for a frontend, or
/// an answer to a masqueraded source. What leaves for a pod of this node, or comes from one, may be
/// an endpoint's answer.
#[inline(always)]
fn is_awaited(tables: &impl Tables, parsed: &Parsed, leaves: bool) -> bool {
    if leaves {
        return tables.is_pod(&parsed.dst) || tables.is_pod(&parsed.src);
    }
    tables.is_ours(&parsed.dst)
        || tables.device(parsed.v6).is_some_and(|own| same(&own, &parsed.dst))
}

/// Copies a fragment; where, if there is room.
#[inline(always)]
fn hold<T: Tables>(
    packet: &mut impl Packet,
    tables: &T,
    parsed: &Parsed,
    datagram: FragmentKey,
) -> Option<HeldKey> {
    let len = parsed.end.wrapping_sub(parsed.l3);
    if len as usize > HELD_LEN {
        return None;
    }
    let mut key = HeldKey { datagram, place: 0 };
    let (mut room, mut place) = (HELD_BYTES, 0);
    while place < HELD_PLACES {
        key.place = place;
        match tables.held(&key) {
            Some((at, taken)) if is_fresh(tables, at) => room = room.saturating_sub(taken),
            old => {
                if old.is_some() {
                    tables.let_go(&key);
                }
                if len > room {
                    return None;
                }
                match tables.hold(packet, &key, parsed.l3, len) {
                    Added::Fresh => return Some(key),
                    // Another processor was quicker.
                    Added::Taken => {}
                    Added::Full => return None,
                }
            }
        }
        place += 1;
    }
    None
}

/// Lets the first fragment come again, and after it those that were held, in the order in which they
/// came. The packet becomes one after the other; it is not needed any more in the end.
#[inline(always)]
fn release<T: Tables>(
    packet: &mut impl Packet,
    tables: &T,
    l3: u32,
    datagram: FragmentKey,
    leaves: bool,
) -> Verdict {
    packet.again(leaves);
    let mut key = HeldKey { datagram, place: 0 };
    let mut place = 0;
    while place < HELD_PLACES {
        key.place = place;
        if is_held(tables, &key) && tables.become_held(packet, &key, l3).is_some() {
            packet.again(leaves);
        }
        tables.let_go(&key);
        place += 1;
    }
    Verdict::drop(Counter::FragmentsReleased)
}
