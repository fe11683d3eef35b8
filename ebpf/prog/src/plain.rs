//! One end of a plain TCP or UDP packet over IPv4, replaced where it lies: what `packet::rewrite` does to any
//! packet, here with every field at a place that is known beforehand, so that the packet is looked for once.

use abi::addr::Addr;
use packet::checksum::{self, both, mended, port_difference, word_difference};
use packet::parse::{Fragment, Parsed, TCP, UDP};
use packet::rewrite::End;

use crate::skb::{Skb, read, update_sum, write};
use crate::steps;

/// A network header without options.
const HEADER: u32 = 20;
/// Behind its start: its checksum, its addresses, and the ports that follow it.
const HEADER_CHECK: usize = 10;
const SRC: usize = 12;
const DST: usize = 16;
const SRC_PORT: usize = 20;
const DST_PORT: usize = 22;
/// The same of the transport's checksum.
const TCP_CHECK: usize = 36;
const UDP_CHECK: usize = 26;

/// Replaces one end of the packet that has these headers, the network header at `l3`. The headers are left
/// as they were.
#[inline(always)]
pub(crate) fn rewrite(
    skb: Skb,
    l3: u32,
    parsed: &Parsed,
    end: End,
    (address, port): (&Addr, u16),
) -> Option<()> {
    // Behind options the ports are not where they are looked for here.
    if parsed.l4 != l3 + HEADER {
        return steps::rewrite(skb, end, address, port);
    }
    match Change::new(parsed, end, address, port).write_any(skb, l3, parsed) {
        Some(()) => Some(()),
        None => steps::rewrite(skb, end, address, port),
    }
}

/// The same of a packet that may be any, whose headers are kept right. `None` if nothing was done: it is not
/// plain, or does not lie in place.
#[inline(always)]
pub(crate) fn rewrite_parsed(
    skb: Skb,
    parsed: &mut Parsed,
    end: End,
    (address, port): (&Addr, u16),
) -> Option<()> {
    let is_plain = !parsed.v6
        && parsed.l4 == parsed.l3.wrapping_add(HEADER)
        && matches!(parsed.fragment, Fragment::Whole)
        && matches!(parsed.protocol, TCP | UDP);
    if !is_plain {
        return None;
    }
    let change = Change::new(parsed, end, address, port);
    change.write_any(skb, parsed.l3, parsed)?;
    parsed.check = mended(parsed.check, change.of_address);
    match end {
        End::Source => (parsed.src, parsed.src_port) = (*address, port),
        End::Destination => (parsed.dst, parsed.dst_port) = (*address, port),
    }
    Some(())
}

/// What changes, and what that does to sums.
struct Change {
    end: End,
    address: u32,
    port: Option<u16>,
    /// The difference of the addresses.
    of_address: u32,
    /// Of the ports.
    of_port: Option<u32>,
}

impl Change {
    #[inline(always)]
    fn new(parsed: &Parsed, end: End, address: &Addr, port: u16) -> Self {
        let (old, old_port) = match end {
            End::Source => (&parsed.src, parsed.src_port),
            End::Destination => (&parsed.dst, parsed.dst_port),
        };
        let address = word(address);
        let has_port = old_port != port;
        Self {
            end,
            address,
            port: has_port.then_some(port),
            of_address: word_difference(word(old), address),
            of_port: has_port.then(|| port_difference(old_port, port)),
        }
    }

    /// `None` if nothing was done: the packet does not lie in place, or has no checksum.
    #[inline(always)]
    fn write_any(&self, skb: Skb, l3: u32, parsed: &Parsed) -> Option<()> {
        if parsed.protocol == TCP {
            self.write::<TCP_CHECK, { TCP_CHECK + 2 }>(skb, l3, parsed)
        } else {
            self.write::<UDP_CHECK, { UDP_CHECK + 2 }>(skb, l3, parsed)
        }
    }

    #[inline(always)]
    fn write<const CHECK: usize, const END: usize>(
        &self,
        skb: Skb,
        l3: u32,
        parsed: &Parsed,
    ) -> Option<()> {
        let at = skb.at::<END>(l3)?;
        let old = u16::from_ne_bytes(read(at.wrapping_add(CHECK)));
        if old == 0 {
            return None;
        }
        if old == pseudo(parsed) {
            return self.write_slowly::<CHECK>(skb, l3, parsed);
        }
        let difference = self.of_port.map_or(self.of_address, |port| both(self.of_address, port));
        let new = mended(old, difference);
        // Of UDP, zero would be none.
        let new = if CHECK == UDP_CHECK && new == 0 { 0xffff } else { new };
        write(at.wrapping_add(CHECK), &new.to_ne_bytes());
        self.write_end(at, parsed);
        // The header sums up to the same as before, so the transport's checksum has changed the sum of
        // the whole packet.
        update_sum(skb, !self.of_address);
        Some(())
    }

    /// Where a device has yet to complete the checksum, or it looks so by chance: the kernel knows.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "a header")]
    fn write_slowly<const CHECK: usize>(&self, skb: Skb, l3: u32, parsed: &Parsed) -> Option<()> {
        let check = l3 + CHECK as u32;
        steps::mend(skb, check, (self.of_address, self.of_port), CHECK == UDP_CHECK, false)?;
        self.write_end(skb.at::<{ DST_PORT + 2 }>(l3)?, parsed);
        Some(())
    }

    #[inline(always)]
    fn write_end(&self, at: *mut u8, parsed: &Parsed) {
        let (to_address, to_port) = match self.end {
            End::Source => (SRC, SRC_PORT),
            End::Destination => (DST, DST_PORT),
        };
        let check = mended(parsed.check, self.of_address);
        write(at.wrapping_add(HEADER_CHECK), &check.to_ne_bytes());
        write(at.wrapping_add(to_address), &self.address.to_ne_bytes());
        if let Some(port) = self.port {
            write(at.wrapping_add(to_port), &port.to_ne_bytes());
        }
    }
}

/// The word of an IPv4 address.
#[inline(always)]
const fn word(address: &Addr) -> u32 {
    let [_, _, _, word] = address.words;
    word
}

/// What stands in the checksum's place while a device has yet to complete it.
#[inline(always)]
fn pseudo(parsed: &Parsed) -> u16 {
    let addresses = u64::from(word(&parsed.src)) + u64::from(word(&parsed.dst));
    checksum::pseudo(addresses, parsed.protocol, parsed.end.wrapping_sub(parsed.l4))
}
