//! Packets that are nobody's of ours, told by their addresses: most packets there are, and none of them
//! costs a lookup in a hash map.
//!
//! ```text
//!  arrives   for a Service, or what connections are masqueraded with?          ─▶ decided on
//!  leaves    from or to an endpoint; made here: for a Service, or from our own ─▶ decided on
//!            neither                                                           ─▶ untouched
//! ```
//!
//! Whatever is not plain (fragments, options, ICMP, what claims to be loopback) is decided on.

use abi::addr::Addr;

use crate::packet::Packet;
use crate::parse::{TCP, UDP};
use crate::tables::Tables;

/// Whether a packet that arrives, with its network header at `l3`, may be one to decide on.
#[inline(always)]
pub fn may_arrive(packet: &impl Packet, tables: &impl Tables, l3: u32, ethertype: u16) -> bool {
    is_of_ends(packet, l3, ethertype, |src, dst| {
        src.is_loopback() || dst.is_loopback() || tables.may_arrive(dst)
    })
}

/// The same of one that leaves.
#[inline(always)]
pub fn may_leave(
    packet: &impl Packet,
    tables: &impl Tables,
    l3: u32,
    ethertype: u16,
    made_here: bool,
) -> bool {
    is_of_ends(packet, l3, ethertype, |src, dst| tables.may_leave(src, dst, made_here))
}

/// Whether it holds of the ends of a whole TCP or UDP packet without options or extension headers; of
/// any other packet it does. Each family has its own copy of the question, in which an address is as
/// long as it is.
#[inline(always)]
fn is_of_ends(
    packet: &impl Packet,
    l3: u32,
    ethertype: u16,
    holds: impl Fn(&Addr, &Addr) -> bool,
) -> bool {
    if ethertype == 0x0800u16.to_be() {
        let ends = packet.load(l3).and_then(|header| addresses_v4(&header));
        ends.is_none_or(|(src, dst)| holds(&src, &dst))
    } else if ethertype == 0x86ddu16.to_be() {
        let ends = packet.load(l3).and_then(|header| addresses_v6(&header));
        ends.is_none_or(|(src, dst)| holds(&src, &dst))
    } else {
        true
    }
}

#[inline(always)]
fn addresses_v4(header: &[u8; 20]) -> Option<(Addr, Addr)> {
    const NO_OPTIONS: u8 = 0x45;
    /// Everything but "don't fragment".
    const FRAGMENT: u8 = 0xbf;
    let [
        version,
        _,
        _,
        _,
        _,
        _,
        offset_high,
        offset_low,
        _,
        protocol,
        _,
        _,
        src @ ..,
        d0,
        d1,
        d2,
        d3,
    ] = *header;
    let is_plain = version == NO_OPTIONS
        && offset_high & FRAGMENT == 0
        && offset_low == 0
        && matches!(protocol, TCP | UDP);
    let dst = [d0, d1, d2, d3];
    is_plain.then(|| (v4(src), v4(dst)))
}

#[inline(always)]
fn addresses_v6(header: &[u8; 40]) -> Option<(Addr, Addr)> {
    let ([version, _, _, _, _, _, next, _], addresses) = header.split_first_chunk()?;
    let (src, dst) = addresses.split_first_chunk()?;
    let is_plain = version >> 4 == 6 && matches!(*next, TCP | UDP);
    Some((Addr::from_bytes(*src), Addr::from_bytes(*dst.first_chunk()?))).filter(|_| is_plain)
}

#[inline(always)]
const fn v4(bytes: [u8; 4]) -> Addr {
    Addr::from_v4(u32::from_ne_bytes(bytes))
}
