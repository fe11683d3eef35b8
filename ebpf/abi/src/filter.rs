//! Which addresses packets have that may concern us.

use crate::addr::Addr;

/// How many bits there are for addresses of Services.
pub const SERVICE_BITS: usize = 1 << SERVICE_INDEX;
/// How many bytes there are for addresses of connections.
pub const FLOW_BYTES: usize = 1 << FLOW_INDEX;

const SERVICE_INDEX: u32 = 22;
const FLOW_INDEX: u32 = 19;

/// How many rounds a mark of a connection can tell apart.
pub const N_ROUNDS: u8 = 3;

/// The one value of `FILTER`: what is marked is an address's hash, so others may have the same. A packet
/// none of whose addresses is marked is nobody's.
///
/// Bits of Services are set by user space before their entries in other maps are, and stay until a process
/// starts. Bytes of connections are set by programs, too, to the round in which they are; user space begins
/// rounds, renews the marks of the connections that there are and then takes away those of the round
/// before the last. No mark depends on what stood there before, so none is lost.
#[repr(C)]
#[derive(Debug)]
pub struct Filter {
    /// Not zero if no mark is missing.
    pub trusted: u64,
    /// The round, from 1 to [`N_ROUNDS`].
    pub round: u64,
    /// Addresses of Services, of the node where node ports are served, of its own DNS server; and the
    /// blocks in which Service CIDRs are ([`block`]).
    pub services: [u8; SERVICE_BITS / 8],
    /// Where connections in the packet path lead, and what they are masqueraded with.
    pub flows: [u8; FLOW_BYTES],
}

/// Where a mark stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place(u64);

impl Place {
    /// The byte of [`Filter::services`], and the bit in it.
    #[inline(always)]
    pub const fn service(self) -> (usize, u32) {
        let index = self.0 >> (u64::BITS - SERVICE_INDEX);
        ((index >> 3) as usize, index as u32 & 7)
    }

    /// The byte of [`Filter::flows`].
    #[inline(always)]
    pub const fn flow(self) -> usize {
        (self.0 >> (u64::BITS - FLOW_INDEX)) as usize
    }
}

/// The mark of an address. The best bits of a product are its upper ones.
#[inline(always)]
pub const fn address(addr: &Addr) -> Place {
    let high = addr.high().wrapping_mul(0xff51_afd7_ed55_8ccd);
    Place((high ^ addr.low()).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// The mark of the block that an address is in.
#[inline(always)]
pub const fn block(addr: &Addr) -> Place {
    let block = if addr.is_v4() { addr.low() & V4_BLOCK } else { addr.high() };
    Place((block ^ 1).wrapping_mul(0xc4ce_b9fe_1a85_ec53))
}

/// How many bits of an IPv4 address are its block's.
pub const V4_BLOCK_BITS: u32 = 16;
/// How many bits of an IPv6 address are its block's.
pub const V6_BLOCK_BITS: u32 = 64;

/// Its block's bits in the lower half of an IPv4 address, and that it is one.
const V4_BLOCK: u64 = Addr::from_v4(0xffff_0000_u32.to_be()).low();

const _: () = assert!(size_of::<Filter>().is_multiple_of(size_of::<u64>()));

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use super::{FLOW_BYTES, SERVICE_BITS, address, block};
    use crate::addr::Addr;

    fn addr(text: &str) -> Addr {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn a_block_is_what_addresses_begin_with() {
        for (one, other, alike) in [
            ("10.96.0.1", "10.96.255.254", true),
            ("10.96.0.1", "10.97.0.1", false),
            ("10.96.0.1", "11.96.0.1", false),
            ("fd00:1:2:3::1", "fd00:1:2:3:4:5:6:7", true),
            ("fd00:1:2:3::1", "fd00:1:2:4::1", false),
        ] {
            assert_eq!(block(&addr(one)) == block(&addr(other)), alike, "{one} {other}");
        }
        assert_ne!(block(&addr("10.96.0.0")), address(&addr("10.96.0.0")));
    }

    /// A cluster's addresses have most bits in common.
    #[test]
    fn neighbours_have_places_of_their_own() {
        let mut seen = [false; 4096];
        let mut alike = 0;
        for idx in 0..4096_u32 {
            let place = address(&Addr::from_v4((0x0a60_0000 + idx).to_be()));
            let ((byte, bit), flow) = (place.service(), place.flow());
            assert!(byte < SERVICE_BITS / 8 && bit < 8 && flow < FLOW_BYTES);
            let seen = &mut seen[flow * 4096 / FLOW_BYTES];
            alike += usize::from(*seen);
            *seen = true;
        }
        // By chance it would be 1,507 of them (4,096 / e).
        assert!(alike < 2000, "{alike}");
    }
}
