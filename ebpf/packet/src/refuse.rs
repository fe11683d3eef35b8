//! A packet turned into its refusal: ICMP port unreachable, for TCP as well (kube-proxy's way).

use abi::counter::Counter;

use crate::checksum::{both, finish};
use crate::decide::Verdict;
use crate::packet::Packet;
use crate::parse::{Fragment, ICMP, ICMP_V6, Parsed};
use crate::tables::Tables;

/// How much of a refused packet is quoted at most: its headers, and more than the eight bytes that
/// everybody needs (RFC 792, RFC 4443 §3.1).
pub const QUOTED: u32 = 128;

/// The lifetime of an answer.
const TTL: u8 = 64;

/// Makes the packet into its refusal.
#[inline(always)]
pub fn unreachable<T: Tables>(packet: &mut impl Packet, tables: &T, parsed: &Parsed) -> Verdict {
    // One refusal for a datagram, and none for what nobody has sent.
    if matches!(parsed.fragment, Fragment::Later(_)) || is_nobody(parsed) {
        return Verdict::drop(Counter::PacketRefused);
    }
    if !tables.may_answer() {
        return Verdict::drop(Counter::AnswerLimited);
    }
    let room = parsed.end.wrapping_sub(parsed.l3);
    let n = if room < QUOTED { room } else { QUOTED };
    let written = if parsed.v6 { write_v6(packet, parsed, n) } else { write_v4(packet, parsed, n) };
    match written.and_then(|()| turn_link(packet, parsed.l3)) {
        Some(()) => {
            tables.count(Counter::PacketRefused);
            Verdict::ANSWER
        }
        None => Verdict::drop(Counter::DroppedUnwritable),
    }
}

/// Whether the source is no host's own address (RFC 1122 §3.2.2, RFC 4443 §2.4).
fn is_nobody(parsed: &Parsed) -> bool {
    let [first, _, _, _] = match parsed.src.words {
        [_, _, _, word] if !parsed.v6 => word.to_ne_bytes(),
        [word, _, _, _] => word.to_ne_bytes(),
    };
    if parsed.v6 {
        first == 0xff || (parsed.src.low() == 0 && parsed.src.high() == 0)
    } else {
        first == 0 || first >= 224
    }
}

fn write_v4(packet: &mut impl Packet, parsed: &Parsed, n: u32) -> Option<()> {
    const HEADERS: u32 = 28;
    let l3 = parsed.l3;
    packet.resize(l3 + n)?;
    packet.insert(l3, HEADERS)?;
    let [_, _, _, src] = parsed.dst.words;
    let [_, _, _, dst] = parsed.src.words;
    let ([s0, s1, s2, s3], [d0, d1, d2, d3]) = (src.to_ne_bytes(), dst.to_ne_bytes());
    #[expect(clippy::cast_possible_truncation, reason = "at most 156")]
    let [len_hi, len_lo] = ((n + HEADERS) as u16).to_be_bytes();
    // No options, no fragments, TOS as ICMP errors have it (RFC 1812 §4.3.2.5).
    let mut sum = word(0x45, 0xc0, len_hi, len_lo);
    sum = both(sum, word(TTL, ICMP, 0, 0));
    sum = both(both(sum, src), dst);
    let [c0, c1] = finish(sum).to_ne_bytes();
    packet.write(
        l3,
        &[
            0x45, 0xc0, len_hi, len_lo, 0, 0, 0, 0, TTL, ICMP, c0, c1, s0, s1, s2, s3, d0, d1, d2,
            d3,
        ],
    )?;
    // Destination unreachable, port.
    let quoted = packet.sum(l3 + HEADERS, l3 + HEADERS + n)?;
    let [c0, c1] = finish(both(word(3, 3, 0, 0), quoted)).to_ne_bytes();
    packet.write(l3 + 20, &[3, 3, c0, c1, 0, 0, 0, 0])
}

fn write_v6(packet: &mut impl Packet, parsed: &Parsed, n: u32) -> Option<()> {
    const HEADERS: u32 = 48;
    let l3 = parsed.l3;
    packet.resize(l3 + n)?;
    packet.insert(l3, HEADERS)?;
    #[expect(clippy::cast_possible_truncation, reason = "at most 136")]
    let [len_hi, len_lo] = ((n + 8) as u16).to_be_bytes();
    packet.write(l3, &[0x60, 0, 0, 0, len_hi, len_lo, ICMP_V6, TTL])?;
    packet.write(l3 + 8, &parsed.dst.bytes())?;
    packet.write(l3 + 24, &parsed.src.bytes())?;
    // Destination unreachable, port; the pseudo header is part of the sum.
    let mut sum = both(word(1, 4, 0, 0), word(0, 0, len_hi, len_lo));
    sum = both(sum, word(0, 0, 0, ICMP_V6));
    sum = both(sum, packet.sum(l3 + 8, l3 + 40)?);
    sum = both(sum, packet.sum(l3 + HEADERS, l3 + HEADERS + n)?);
    let [c0, c1] = finish(sum).to_ne_bytes();
    packet.write(l3 + 40, &[1, 4, c0, c1, 0, 0, 0, 0])
}

const fn word(a: u8, b: u8, c: u8, d: u8) -> u32 {
    u32::from_ne_bytes([a, b, c, d])
}

/// Sends the frame back to who sent it; a device without a link layer has nothing to turn.
#[inline(always)]
pub(crate) fn turn_link(packet: &mut impl Packet, l3: u32) -> Option<()> {
    if l3 < 14 {
        return Some(());
    }
    let [a, b, c, d, e, f, g, h, i, j, k, l]: [u8; 12] = packet.load(l3 - 14)?;
    packet.store(l3 - 14, &[g, h, i, j, k, l, a, b, c, d, e, f])
}
