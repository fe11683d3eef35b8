//! Bytes to [`Parsed`].

use core::mem::offset_of;

use abi::addr::Addr;
use abi::flow::{Seen, Tuple, is_behind};

use crate::packet::Packet;
use crate::words;

/// TCP's number.
pub const TCP: u8 = 6;
/// UDP's number.
pub const UDP: u8 = 17;
/// SCTP's number.
pub const SCTP: u8 = 132;
/// ICMP's number.
pub const ICMP: u8 = 1;
/// `ICMPv6`'s number.
pub const ICMP_V6: u8 = 58;

/// The flags of a TCP segment.
pub mod tcp {
    /// No more from here.
    pub const FIN: u8 = 1;
    /// A first segment.
    pub const SYN: u8 = 2;
    /// Broken off.
    pub const RST: u8 = 4;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 16;
}

/// SCTP's first chunk: an association is asked for.
const SCTP_INIT: u8 = 1;
/// SCTP's chunks that end an association: ABORT, and SHUTDOWN COMPLETE.
const SCTP_ABORT: u8 = 6;
const SCTP_SHUTDOWN_COMPLETE: u8 = 14;

/// Extension headers that are walked over before a packet is left alone.
const MAX_EXTENSIONS: u32 = 6;

/// How a packet is a part of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// It is the whole of it.
    Whole,
    /// The beginning, with the transport header.
    First(u32),
    /// Another part of the datagram of that id, without it.
    Later(u32),
}

/// What the transport header says, in the words of TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// [`tcp`] flags; SCTP's chunks are translated to them, and everything else is an ACK.
    pub flags: u8,
    /// The sequence number.
    pub sequence: u32,
    /// The acknowledgement number.
    pub acknowledges: u32,
}

/// The headers of a packet. It begins as a [`Tuple`] does, so that it serves as a key where it lies.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// Source port, network byte order; zero in later fragments. ICMP: type and code as they stand.
    pub src_port: u16,
    /// Destination port, network byte order; as above.
    pub dst_port: u16,
    /// The protocol behind all extension headers.
    pub protocol: u8,
    seen: u8,
    pad: u16,
    /// Where the network header is.
    pub l3: u32,
    /// Where the transport header is.
    pub l4: u32,
    /// Where the packet ends, without the link's padding.
    pub end: u32,
    /// IPv6.
    pub v6: bool,
    /// Which part of a datagram it is.
    pub fragment: Fragment,
    /// The IPv4 header's checksum, as it stands.
    pub check: u16,
    /// The transport header.
    pub segment: Segment,
    /// A UDP datagram without a checksum.
    pub is_unsummed: bool,
    name: Tuple,
}

impl Default for Parsed {
    fn default() -> Self {
        Self {
            src: Addr::ANY_V6,
            dst: Addr::ANY_V6,
            src_port: 0,
            dst_port: 0,
            protocol: 0,
            seen: Seen::Sent as u8,
            pad: 0,
            l3: 0,
            l4: 0,
            end: 0,
            v6: false,
            fragment: Fragment::Whole,
            check: 0,
            segment: NO_SEGMENT,
            is_unsummed: false,
            name: Tuple::default(),
        }
    }
}

const _: () = assert!(offset_of!(Parsed, src) == offset_of!(Tuple, src));
const _: () = assert!(offset_of!(Parsed, dst) == offset_of!(Tuple, dst));
const _: () = assert!(offset_of!(Parsed, src_port) == offset_of!(Tuple, src_port));
const _: () = assert!(offset_of!(Parsed, dst_port) == offset_of!(Tuple, dst_port));
const _: () = assert!(offset_of!(Parsed, protocol) == offset_of!(Tuple, protocol));
const _: () = assert!(offset_of!(Parsed, seen) == offset_of!(Tuple, seen));
const _: () = assert!(offset_of!(Parsed, pad) == offset_of!(Tuple, pad));
const _: () = assert!(align_of::<Parsed>() >= align_of::<Tuple>());

impl Parsed {
    /// The packet's tuple as it is seen somewhere: a key without a copy.
    #[inline(always)]
    pub fn key(&mut self, seen: Seen) -> &Tuple {
        let (ports, protocol) = ((self.src_port, self.dst_port), self.protocol);
        let tuple = (&raw mut *self).cast::<Tuple>();
        // SAFETY: it begins with the fields of a tuple, at the same places, as asserted above.
        unsafe { words::write_ports(tuple, ports, protocol, seen as u8) };
        // SAFETY: as above.
        unsafe { &*tuple }
    }

    /// The name of both directions ([`Seen::Leaving`]): a key that is kept here, for a program has
    /// little stack.
    #[inline(always)]
    pub fn name(&mut self) -> &Tuple {
        let (src, dst) = (self.src(), self.dst());
        let (src_port, dst_port) = (self.src_port, self.dst_port);
        let src_end = (src.high(), src.low(), src_port);
        let dst_end = (dst.high(), dst.low(), dst_port);
        let (first, second) = if is_behind(&src, src_port, &dst, dst_port) {
            (dst_end, src_end)
        } else {
            (src_end, dst_end)
        };
        // SAFETY: the address at the start of a tuple.
        unsafe { words::write(&raw mut self.name.src, first.0, first.1) };
        // SAFETY: the address behind that.
        unsafe { words::write(&raw mut self.name.dst, second.0, second.1) };
        let (ports, seen) = ((first.2, second.2), Seen::Leaving as u8);
        // SAFETY: a tuple.
        unsafe { words::write_ports(&raw mut self.name, ports, self.protocol, seen) };
        &self.name
    }

    /// Where the packet comes from.
    #[inline(always)]
    pub fn src(&self) -> Addr {
        // SAFETY: the address at the start of a tuple.
        unsafe { words::read(&raw const self.src) }
    }

    /// Where it goes.
    #[inline(always)]
    pub fn dst(&self) -> Addr {
        // SAFETY: the address behind that.
        unsafe { words::read(&raw const self.dst) }
    }

    /// Notes where it comes from and where it goes.
    #[inline(always)]
    fn set_ends(&mut self, src: &Addr, dst: &Addr) {
        // SAFETY: the address at the start of a tuple.
        unsafe { words::write(&raw mut self.src, src.high(), src.low()) };
        // SAFETY: the address behind that.
        unsafe { words::write(&raw mut self.dst, dst.high(), dst.low()) };
    }
}

/// Reads the headers of a packet whose network header is at `l3`; `None` if it is no IP packet, or
/// one whose headers make no sense: the kernel's to drop and to count.
#[inline(always)]
pub fn parse(packet: &impl Packet, l3: u32, ethertype: u16, parsed: &mut Parsed) -> Option<()> {
    if ethertype == 0x0800u16.to_be() {
        parse_v4(packet, l3, packet.len(), parsed)?;
    } else if ethertype == 0x86ddu16.to_be() {
        parse_v6(packet, l3, packet.len(), parsed, true)?;
    } else {
        return None;
    }
    parse_transport(packet, parsed)
}

/// The same of a plain packet: TCP or UDP, in one piece, without options or extension headers; `None`
/// for any other.
#[inline(always)]
pub fn parse_plain(
    packet: &impl Packet,
    l3: u32,
    ethertype: u16,
    parsed: &mut Parsed,
) -> Option<()> {
    if ethertype == 0x0800u16.to_be() {
        parse_v4(packet, l3, packet.len(), parsed)?;
        if parsed.l4 != l3 + 20 {
            return None;
        }
    } else if ethertype == 0x86ddu16.to_be() {
        parse_v6(packet, l3, packet.len(), parsed, false)?;
    } else {
        return None;
    }
    if !matches!(parsed.fragment, Fragment::Whole) || !matches!(parsed.protocol, TCP | UDP) {
        return None;
    }
    parse_transport(packet, parsed)
}

/// The headers of a packet that an ICMP error quotes: it may be cut off behind the ports.
#[inline(always)]
pub fn parse_quoted(packet: &impl Packet, l3: u32, v6: bool, parsed: &mut Parsed) -> Option<()> {
    if v6 {
        parse_v6(packet, l3, u32::MAX, parsed, true)?;
    } else {
        parse_v4(packet, l3, u32::MAX, parsed)?;
    }
    if !matches!(parsed.protocol, TCP | UDP | SCTP) || is_later(parsed.fragment) {
        return None;
    }
    (parsed.src_port, parsed.dst_port) = ports(packet, parsed.l4)?;
    Some(())
}

const fn is_later(fragment: Fragment) -> bool {
    matches!(fragment, Fragment::Later(_))
}

#[inline(always)]
fn parse_v4(packet: &impl Packet, l3: u32, len: u32, parsed: &mut Parsed) -> Option<()> {
    let header: [u8; 20] = packet.load(l3)?;
    let [
        version,
        _,
        len_hi,
        len_lo,
        id_hi,
        id_lo,
        off_hi,
        off_lo,
        _,
        protocol,
        check_0,
        check_1,
        s0,
        s1,
        s2,
        s3,
        d0,
        d1,
        d2,
        d3,
    ] = header;
    let header_len = u32::from(version & 0x0f) << 2;
    let total = u32::from(u16::from_be_bytes([len_hi, len_lo]));
    if version >> 4 != 4 || header_len < 20 || total < header_len || total > len.wrapping_sub(l3) {
        return None;
    }
    let offset = u16::from_be_bytes([off_hi, off_lo]);
    let id = u32::from(u16::from_be_bytes([id_hi, id_lo]));
    parsed.l3 = l3;
    parsed.l4 = l3 + header_len;
    parsed.end = l3.wrapping_add(total);
    parsed.v6 = false;
    parsed.protocol = protocol;
    parsed.set_ends(
        &Addr::from_v4(u32::from_ne_bytes([s0, s1, s2, s3])),
        &Addr::from_v4(u32::from_ne_bytes([d0, d1, d2, d3])),
    );
    parsed.src_port = 0;
    parsed.dst_port = 0;
    parsed.fragment = fragment(offset & 0x1fff, offset & 0x2000 != 0, id);
    parsed.check = u16::from_ne_bytes([check_0, check_1]);
    // Field by field: a whole one would be copied from memory.
    parsed.segment.flags = NO_SEGMENT.flags;
    parsed.segment.sequence = NO_SEGMENT.sequence;
    parsed.segment.acknowledges = NO_SEGMENT.acknowledges;
    parsed.is_unsummed = false;
    Some(())
}

const NO_SEGMENT: Segment = Segment { flags: tcp::ACK, sequence: 0, acknowledges: 0 };

const fn fragment(offset: u16, more: bool, id: u32) -> Fragment {
    match (offset, more) {
        (0, false) => Fragment::Whole,
        (0, true) => Fragment::First(id),
        _ => Fragment::Later(id),
    }
}

#[inline(always)]
fn parse_v6(
    packet: &impl Packet,
    l3: u32,
    len: u32,
    parsed: &mut Parsed,
    walk: bool,
) -> Option<()> {
    let head: [u8; 8] = packet.load(l3)?;
    let [version, _, _, _, len_hi, len_lo, next, _] = head;
    let total = 40 + u32::from(u16::from_be_bytes([len_hi, len_lo]));
    if version >> 4 != 6 || total > len.wrapping_sub(l3) {
        return None;
    }
    let src = Addr::from_bytes(packet.load(l3 + 8)?);
    let dst = Addr::from_bytes(packet.load(l3 + 24)?);
    // A mapped address has no business on the wire, and would pass for an IPv4 one.
    if src.is_v4() || dst.is_v4() {
        return None;
    }
    // Without a walk an extension header is a protocol that is not known.
    let (l4, protocol, fragment) =
        if walk { extensions(packet, l3 + 40, next)? } else { (l3 + 40, next, Fragment::Whole) };
    parsed.l3 = l3;
    parsed.l4 = l4;
    parsed.end = l3.wrapping_add(total);
    parsed.v6 = true;
    parsed.protocol = protocol;
    parsed.set_ends(&src, &dst);
    parsed.src_port = 0;
    parsed.dst_port = 0;
    parsed.fragment = fragment;
    parsed.check = 0;
    // Field by field: a whole one would be copied from memory.
    parsed.segment.flags = NO_SEGMENT.flags;
    parsed.segment.sequence = NO_SEGMENT.sequence;
    parsed.segment.acknowledges = NO_SEGMENT.acknowledges;
    parsed.is_unsummed = false;
    Some(())
}

/// Walks over extension headers (RFC 8200 §4) to the transport header.
#[inline(always)]
fn extensions(packet: &impl Packet, mut at: u32, mut next: u8) -> Option<(u32, u8, Fragment)> {
    let mut part = Fragment::Whole;
    let mut walked = 0;
    while walked < MAX_EXTENSIONS {
        match next {
            // Hop-by-hop options, routing, destination options, mobility.
            0 | 43 | 60 | 135 => {
                let [following, len] = packet.load(at)?;
                next = following;
                at += (u32::from(len) + 1) << 3;
            }
            // Authentication.
            51 => {
                let [following, len] = packet.load(at)?;
                next = following;
                at += (u32::from(len) + 2) << 2;
            }
            44 => {
                let [following, _, hi, lo, a, b, c, d]: [u8; 8] = packet.load(at)?;
                next = following;
                at += 8;
                let offset = u16::from_be_bytes([hi, lo]);
                part = fragment(offset >> 3, offset & 1 != 0, u32::from_be_bytes([a, b, c, d]));
                if is_later(part) {
                    return Some((at, next, part));
                }
            }
            _ => return Some((at, next, part)),
        }
        walked += 1;
    }
    None
}

#[inline(always)]
const fn first([byte]: [u8; 1]) -> u8 {
    byte
}

#[inline(always)]
fn ports(packet: &impl Packet, l4: u32) -> Option<(u16, u16)> {
    let [a, b, c, d] = packet.load(l4)?;
    Some((u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d])))
}

/// Reads the ports and what else the decision needs of the transport header.
#[inline(always)]
fn parse_transport(packet: &impl Packet, parsed: &mut Parsed) -> Option<()> {
    if is_later(parsed.fragment) {
        return Some(());
    }
    let room = parsed.end.wrapping_sub(parsed.l4);
    match parsed.protocol {
        TCP => {
            if parsed.end < parsed.l4 || room < 20 {
                return None;
            }
            let [a, b, c, d, s0, s1, s2, s3, a0, a1, a2, a3, _, flags, _, _]: [u8; 16] =
                packet.load(parsed.l4)?;
            parsed.src_port = u16::from_ne_bytes([a, b]);
            parsed.dst_port = u16::from_ne_bytes([c, d]);
            parsed.segment = Segment {
                flags,
                sequence: u32::from_be_bytes([s0, s1, s2, s3]),
                acknowledges: u32::from_be_bytes([a0, a1, a2, a3]),
            };
        }
        UDP | ICMP | ICMP_V6 => {
            if parsed.end < parsed.l4 || room < 8 {
                return None;
            }
            let [a, b, c, d, _, _, check_0, check_1]: [u8; 8] = packet.load(parsed.l4)?;
            parsed.src_port = u16::from_ne_bytes([a, b]);
            parsed.dst_port = u16::from_ne_bytes([c, d]);
            parsed.is_unsummed = parsed.protocol == UDP && check_0 | check_1 == 0;
        }
        SCTP => {
            if parsed.end < parsed.l4 || room < 12 {
                return None;
            }
            (parsed.src_port, parsed.dst_port) = ports(packet, parsed.l4)?;
            // A packet without a chunk is none that opens anything.
            let chunk = if room < 16 { 0 } else { first(packet.load(parsed.l4 + 12)?) };
            parsed.segment.flags = match chunk {
                SCTP_INIT => tcp::SYN,
                SCTP_ABORT | SCTP_SHUTDOWN_COMPLETE => tcp::RST,
                _ => tcp::ACK,
            };
        }
        _ => {}
    }
    Some(())
}
