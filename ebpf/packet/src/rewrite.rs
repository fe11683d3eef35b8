//! One end of a packet replaced by another: address, port, and every checksum over them.

use abi::addr::Addr;

use crate::checksum::{
    address_difference, both, mended, port_difference, sctp_difference, word_difference,
};
use crate::packet::{Covered, Packet};
use crate::parse::{Fragment, ICMP_V6, Parsed, SCTP, TCP, UDP};

/// Which end of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Where it comes from.
    Source,
    /// Where it goes.
    Destination,
}

/// Replaces one end. A later fragment has no ports and no transport checksum; its datagram's are
/// mended in the first.
#[inline(always)]
pub fn rewrite(
    packet: &mut impl Packet,
    parsed: &mut Parsed,
    end: End,
    address: &Addr,
    port: u16,
) -> Option<()> {
    let old_port = match end {
        End::Source => parsed.src_port,
        End::Destination => parsed.dst_port,
    };
    let difference = if has_ports(parsed) && old_port != port {
        rewrite_port(packet, parsed, end, port)?;
        let is_summed = parsed.protocol != SCTP && !parsed.is_unsummed;
        is_summed.then(|| port_difference(old_port, port))
    } else {
        None
    };
    rewrite_end(packet, parsed, end, address, difference)
}

/// Replaces one address.
#[inline(always)]
pub fn rewrite_address(
    packet: &mut impl Packet,
    parsed: &mut Parsed,
    end: End,
    address: &Addr,
) -> Option<()> {
    rewrite_end(packet, parsed, end, address, None)
}

/// Replaces one address, and mends the transport checksum for it and for a port that was replaced.
#[inline(always)]
fn rewrite_end(
    packet: &mut impl Packet,
    parsed: &mut Parsed,
    end: End,
    address: &Addr,
    port: Option<u32>,
) -> Option<()> {
    let old = match end {
        End::Source => parsed.src,
        End::Destination => parsed.dst,
    };
    let difference = address_difference(&old, address);
    match end {
        End::Source => parsed.src = *address,
        End::Destination => parsed.dst = *address,
    }
    let checksum =
        if matches!(parsed.fragment, Fragment::Later(_)) { None } else { checksum_at(parsed) };
    if let Some((offset, optional)) = checksum {
        packet.mend_both(parsed, offset, (difference, port), optional)?;
    }
    if parsed.v6 {
        let at = parsed.l3 + if end == End::Source { 8 } else { 24 };
        let bytes = address.bytes();
        return match checksum {
            Some(_) => packet.write_address(at, &bytes),
            None => packet.write(at, &bytes),
        };
    }
    parsed.check = mended(parsed.check, difference);
    // Checksum, source and destination lie side by side.
    let [c0, c1] = parsed.check.to_ne_bytes();
    let ([_, _, _, src], [_, _, _, dst]) = (parsed.src.words, parsed.dst.words);
    let ([s0, s1, s2, s3], [d0, d1, d2, d3]) = (src.to_ne_bytes(), dst.to_ne_bytes());
    packet.store(parsed.l3 + 10, &[c0, c1, s0, s1, s2, s3, d0, d1, d2, d3])
}

/// Replaces one port. The checksum is not mended yet, but for SCTP's, which covers no address.
#[inline(always)]
fn rewrite_port(packet: &mut impl Packet, parsed: &mut Parsed, end: End, new: u16) -> Option<()> {
    let before = both_ports(parsed);
    let at = match end {
        End::Source => {
            parsed.src_port = new;
            parsed.l4
        }
        End::Destination => {
            parsed.dst_port = new;
            parsed.l4 + 2
        }
    };
    if parsed.protocol == SCTP {
        packet.write(at, &new.to_ne_bytes())?;
        return mend_sctp(packet, parsed, before);
    }
    if parsed.is_unsummed {
        return packet.write(at, &new.to_ne_bytes());
    }
    packet.store(at, &new.to_ne_bytes())
}

/// Mends SCTP's checksum. Zero is one that the device will fill in: it must stay zero.
#[inline(always)]
fn mend_sctp(packet: &mut impl Packet, parsed: &Parsed, before: u32) -> Option<()> {
    let offset = parsed.l4 + 8;
    let crc = u32::from_le_bytes(packet.load(offset)?);
    if crc == 0 {
        return Some(());
    }
    let len = parsed.end.wrapping_sub(parsed.l4);
    let difference = sctp_difference(before, both_ports(parsed), len);
    packet.write(offset, &(crc ^ difference).to_le_bytes())
}

/// Both ports as they stand in memory.
const fn both_ports(parsed: &Parsed) -> u32 {
    let ([a, b], [c, d]) = (parsed.src_port.to_ne_bytes(), parsed.dst_port.to_ne_bytes());
    u32::from_ne_bytes([a, b, c, d])
}

const fn has_ports(parsed: &Parsed) -> bool {
    matches!(parsed.protocol, TCP | UDP | SCTP) && !matches!(parsed.fragment, Fragment::Later(_))
}

/// Where the checksum is that covers addresses, and whether zero means none.
#[inline(always)]
const fn checksum_at(parsed: &Parsed) -> Option<(u32, bool)> {
    match parsed.protocol {
        TCP => Some((parsed.l4 + 16, false)),
        UDP => Some((parsed.l4 + 6, true)),
        ICMP_V6 => Some((parsed.l4 + 2, false)),
        _ => None,
    }
}

/// Replaces one end of the packet that an ICMP error quotes, and mends the error's checksum. The
/// quoted transport checksum is left as it is: nobody checks it, and most quotes end before it.
#[inline(always)]
pub fn rewrite_quoted(
    packet: &mut impl Packet,
    error: &Parsed,
    quoted: &mut Parsed,
    end: End,
    (address, port): (&Addr, u16),
) -> Option<()> {
    let (old, old_port, at) = match end {
        End::Source => (quoted.src, quoted.src_port, 0),
        End::Destination => (quoted.dst, quoted.dst_port, 1),
    };
    let mut difference = port_difference(old_port, port);
    packet.store(quoted.l4 + 2 * at, &port.to_ne_bytes())?;
    let addresses = address_difference(&old, address);
    if quoted.v6 {
        packet.store(quoted.l3 + 8 + 16 * at, &address.bytes())?;
        difference = both(difference, addresses);
    } else {
        let [_, _, _, word] = address.words;
        packet.store(quoted.l3 + 12 + 4 * at, &word.to_ne_bytes())?;
        // The quoted header's own checksum takes back what the address adds to the error's.
        quoted.check = mended(quoted.check, addresses);
        packet.store(quoted.l3 + 10, &quoted.check.to_ne_bytes())?;
    }
    match end {
        End::Source => (quoted.src, quoted.src_port) = (*address, port),
        End::Destination => (quoted.dst, quoted.dst_port) = (*address, port),
    }
    let covered = Covered { pseudo: false, optional: false };
    packet.mend(error.l4 + 2, difference, covered)
}

/// Replaces the type of an ICMP message.
#[inline(always)]
pub fn rewrite_type(packet: &mut impl Packet, parsed: &Parsed, to: u8) -> Option<()> {
    let [old, code] = parsed.src_port.to_ne_bytes();
    packet.store(parsed.l4, &[to])?;
    let difference = word_difference(
        u32::from(u16::from_ne_bytes([old, code])),
        u32::from(u16::from_ne_bytes([to, code])),
    );
    let covered = Covered { pseudo: false, optional: false };
    packet.mend(parsed.l4 + 2, difference, covered)
}
