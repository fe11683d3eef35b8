//! A packet, as far as the decision needs it.

use abi::addr::Addr;
use abi::counter::Counter;

use crate::decide::{self, Verdict};
use crate::parse::Parsed;
use crate::rewrite::{self, End};
use crate::tables::Tables;
use crate::{fragment, icmp, refuse};

/// Bytes that can be read and rewritten in place, in the kernel or in a test.
pub trait Packet: Sized {
    /// How many bytes there are, from the start of the link-layer header.
    fn len(&self) -> u32;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes at an offset; `None` if the packet ends before.
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]>;

    /// Replaces the bytes at an offset; `None` if the packet ends before. A checksum of the packet
    /// makes up for the change, so that the packet's sum as a whole stays.
    fn store<const N: usize>(&mut self, offset: u32, bytes: &[u8; N]) -> Option<()>;

    /// The same where no checksum makes up for it: a device that has summed the packet
    /// (`CHECKSUM_COMPLETE`) would be wrong.
    fn write<const N: usize>(&mut self, offset: u32, bytes: &[u8; N]) -> Option<()>;

    /// Mends the transport checksum at an offset after bytes that it covers have changed by a
    /// difference ([`crate::checksum`]).
    fn mend(&mut self, offset: u32, difference: u32, covered: Covered) -> Option<()>;

    /// The same of a change of an address, and of a port if there is one, in the packet of these
    /// headers, which have changed already.
    #[inline(always)]
    fn mend_both(
        &mut self,
        _parsed: &Parsed,
        offset: u32,
        (address, port): (u32, Option<u32>),
        optional: bool,
    ) -> Option<()> {
        if let Some(port) = port {
            self.mend(offset, port, Covered { pseudo: false, optional })?;
        }
        self.mend(offset, address, Covered { pseudo: true, optional })
    }

    /// Replaces an IPv6 address after [`Packet::mend_both`]. The kernel takes the transport checksum's
    /// change off the device's sum, as if there were a header checksum as in IPv4; the address's own
    /// change makes up for that.
    #[inline(always)]
    fn write_address(&mut self, offset: u32, address: &[u8; 16]) -> Option<()> {
        self.write(offset, address)
    }

    /// Cuts or lengthens the packet at its end; new bytes are zero.
    fn resize(&mut self, len: u32) -> Option<()>;

    /// Puts bytes between the link-layer header and what follows it, for a new network header; the
    /// bytes of the link-layer header stay in front.
    fn insert(&mut self, link: u32, n: u32) -> Option<()>;

    /// Replaces one end ([`rewrite::rewrite`]).
    #[inline(always)]
    fn rewrite(&mut self, parsed: &mut Parsed, end: End, address: &Addr, port: u16) -> Option<()> {
        rewrite::rewrite(self, parsed, end, address, port)
    }

    /// The same, as the last of what is done to it.
    #[inline(always)]
    fn rewritten(&mut self, parsed: &mut Parsed, end: End, address: &Addr, port: u16) -> Verdict {
        match self.rewrite(parsed, end, address, port) {
            Some(()) => Verdict::PASS,
            None => Verdict::drop(Counter::DroppedUnwritable),
        }
    }

    /// The same, where it is seldom wanted: the other end as well.
    #[inline(always)]
    fn rewrite_rarely(
        &mut self,
        parsed: &mut Parsed,
        end: End,
        address: &Addr,
        port: u16,
    ) -> Option<()> {
        self.rewrite(parsed, end, address, port)
    }

    /// Decides on an ICMP message ([`icmp::arrives`], [`icmp::leaves`]).
    fn icmp(&mut self, tables: &impl Tables, parsed: &mut Parsed, arrives: bool) -> Verdict {
        let mut quoted = Parsed::default();
        if arrives {
            icmp::arrives(self, tables, parsed, &mut quoted)
        } else {
            icmp::leaves(self, tables, parsed, &mut quoted)
        }
    }

    /// Sends the packet as it is now through the same program again: it arrives, or leaves, once
    /// more. What cannot be sent is lost, as on a wire.
    fn again(&mut self, leaves: bool);

    /// Finds the ports of a fragment ([`fragment::fragment`]).
    fn fragment(&mut self, tables: &impl Tables, parsed: &mut Parsed, leaves: bool) -> Verdict {
        fragment::fragment(self, tables, parsed, leaves)
    }

    /// Decides on a packet of a connection that is known ([`decide::known_arrives`]).
    #[inline(always)]
    fn known_arrives(&mut self, tables: &impl Tables, parsed: &mut Parsed) -> Verdict {
        decide::known_arrives(self, tables, parsed)
    }

    /// The same of one that leaves ([`decide::known_leaves`]).
    #[inline(always)]
    fn known_leaves(
        &mut self,
        tables: &impl Tables,
        parsed: &mut Parsed,
        made_here: bool,
    ) -> Verdict {
        decide::known_leaves(self, tables, parsed, made_here)
    }

    /// Decides on a packet of no established connection ([`decide::to_frontend`]).
    fn to_frontend(&mut self, tables: &impl Tables, parsed: &mut Parsed, here: bool) -> Verdict {
        decide::to_frontend(self, tables, parsed, here)
    }

    /// Makes the packet its refusal ([`refuse::unreachable`]).
    fn unreachable(&mut self, tables: &impl Tables, parsed: &Parsed) -> Verdict {
        refuse::unreachable(self, tables, parsed)
    }

    /// The ones' complement sum of the bytes from an offset to an end, which is at most
    /// [`crate::refuse::QUOTED`] bytes behind it.
    fn sum(&self, offset: u32, end: u32) -> Option<u32>;
}

/// What a transport checksum was told of the change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Covered {
    /// The change is of addresses, which stand in the pseudo header: a checksum that the device
    /// will complete covers nothing else as yet.
    pub pseudo: bool,
    /// Zero means that there is no checksum, and so stays zero (UDP over IPv4).
    pub optional: bool,
}
