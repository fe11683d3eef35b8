//! Addresses and tuples read and written by words of eight bytes, where they lie at a multiple of eight.
//!
//! A processor that reads eight bytes right after they were written in two halves has to wait until both
//! have reached its cache; and the compiler, who knows addresses to be made of words of four, writes so.

use core::mem::offset_of;

use abi::addr::Addr;
use abi::flow::Tuple;

/// Where a tuple's ports are, in words.
const PORTS: usize = 4;

const _: () = assert!(offset_of!(Tuple, src_port) == PORTS * size_of::<u64>());
const _: () = assert!(align_of::<Tuple>() == align_of::<u64>());

/// Reads an address.
///
/// # Safety
/// One is there, at a multiple of eight.
#[inline(always)]
pub(crate) unsafe fn read(from: *const Addr) -> Addr {
    let halves = from.cast::<u64>();
    debug_assert!(halves.is_aligned());
    // SAFETY: by the caller's promise; plain data.
    let high = unsafe { halves.read_volatile() };
    // SAFETY: as above.
    let low = unsafe { halves.wrapping_add(1).read_volatile() };
    Addr::from_halves(in_memory(high), in_memory(low))
}

/// Writes an address by its halves ([`Addr::high`], [`Addr::low`]).
///
/// # Safety
/// There is room for one, at a multiple of eight.
#[inline(always)]
pub(crate) unsafe fn write(to: *mut Addr, high: u64, low: u64) {
    let halves = to.cast::<u64>();
    debug_assert!(halves.is_aligned());
    // SAFETY: by the caller's promise.
    unsafe { halves.write_volatile(in_memory(high)) };
    // SAFETY: as above.
    unsafe { halves.wrapping_add(1).write_volatile(in_memory(low)) };
}

/// A half as it lies in memory, or the other way round: the first word is the lower one.
#[inline(always)]
const fn in_memory(half: u64) -> u64 {
    if cfg!(target_endian = "little") { half } else { half.rotate_left(32) }
}

/// Writes what follows the addresses of a tuple.
///
/// # Safety
/// There is room for a tuple.
#[inline(always)]
pub(crate) unsafe fn write_ports(to: *mut Tuple, (src, dst): (u16, u16), protocol: u8, seen: u8) {
    let ([a, b], [c, d]) = (src.to_ne_bytes(), dst.to_ne_bytes());
    let word = u64::from_ne_bytes([a, b, c, d, protocol, seen, 0, 0]);
    let ports = to.cast::<u64>().wrapping_add(PORTS);
    // SAFETY: by the caller's promise, within the tuple.
    unsafe { ports.write_volatile(word) };
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use abi::addr::Addr;
    use abi::flow::{Seen, Tuple};

    use super::{read, write, write_ports};

    #[test]
    fn what_is_written_by_words_is_what_was_meant() {
        let [src, dst] = ["10.96.0.10", "fd00:1:2:3:4:5:6:7"]
            .map(|text| Addr::from(text.parse::<IpAddr>().unwrap()));
        let (src_port, dst_port, protocol) = (4711_u16.to_be(), 80_u16.to_be(), 6);
        let seen = Seen::Leaving as u8;
        let meant = Tuple { src, dst, src_port, dst_port, protocol, seen, pad: 0 };
        let mut tuple = Tuple { pad: 7, ..Tuple::default() };
        // SAFETY: a tuple's addresses lie at its start and sixteen bytes behind it.
        unsafe { write(&raw mut tuple.src, src.high(), src.low()) };
        // SAFETY: as above.
        unsafe { write(&raw mut tuple.dst, dst.high(), dst.low()) };
        // SAFETY: a tuple.
        unsafe { write_ports(&raw mut tuple, (src_port, dst_port), protocol, seen) };
        assert_eq!(tuple, meant);
        // SAFETY: as above.
        assert_eq!(unsafe { read(&raw const tuple.src) }, src);
        // SAFETY: as above.
        assert_eq!(unsafe { read(&raw const tuple.dst) }, dst);
    }
}
