//! What the memory of connections costs whoever looks at it: from one to the next, by the marks and the lookup
//! that a packet of an established connection looks at, and nothing else. The yardstick of `cargo xtask
//! bench packet`; never attached.
//!
//! ```text
//!  0       1                                       2             16    56
//!  │ field │ 0: the source changes, 1: destination │ 1: it leaves │ key │
//! ```
//!
//! The packet is the key of a connection, and becomes the key of the one that it leads to.

use abi::addr::Addr;
use abi::flow::{Name, Record, Tuple};
use abi::slot::SERVING;
use packet::tables::Tables as _;

use crate::lead;
use crate::maps::{FLOWS, NAMES};
use crate::skb::Skb;
use crate::tables::Kernel;
use crate::tc::{DROP, NEXT};

/// Where the key lies.
const KEY: usize = 16;
/// Where it ends.
const END: usize = KEY + size_of::<Tuple>();

/// By the record that the packet is the key of; by its Service's slot as well if `field` is one.
#[inline(always)]
pub(crate) fn flows(skb: Skb) -> i32 {
    let Some(packet) = skb.at::<END>(0) else { return DROP };
    let key = packet.wrapping_add(KEY).cast::<Tuple>();
    // SAFETY: the verifier checked that the packet is so long; the kernel reads the key.
    let tuple = unsafe { &*key };
    // SAFETY: as above.
    if !unsafe { is_marked(skb, packet, tuple) } {
        return DROP;
    }
    let Some(record) = FLOWS.get_ptr_mut(tuple) else { return DROP };
    // SAFETY: as above.
    if unsafe { packet.read_volatile() } == 1 && !is_current(record) {
        return DROP;
    }
    // SAFETY: an element of the map is a record as long as the program runs; the packet as above.
    unsafe {
        let packets = &raw mut (*record).forward_packets;
        packets.write_volatile(packets.read_volatile().wrapping_add(1));
        let next = (&raw const (*record).endpoint).read_volatile();
        (&raw mut (*key).dst).write_volatile(next);
    }
    NEXT
}

/// By the name that the packet is the key of: to its source (`field` 0), its client (1) or its frontend
/// (2), whose packets are counted.
#[inline(always)]
pub(crate) fn names(skb: Skb) -> i32 {
    let Some(packet) = skb.at::<END>(0) else { return DROP };
    let key = packet.wrapping_add(KEY).cast::<Tuple>();
    // SAFETY: as above.
    let tuple = unsafe { &*key };
    // SAFETY: as above.
    if !unsafe { is_marked(skb, packet, tuple) } {
        return DROP;
    }
    let Some(name) = NAMES.get_ptr_mut(tuple) else { return DROP };
    // SAFETY: as above.
    let (field, is_destination) =
        unsafe { (packet.read_volatile(), packet.wrapping_add(1).read_volatile() == 1) };
    // Whether a name is to be believed stands at its end.
    // SAFETY: as above.
    if unsafe { (&raw const (*name).compared).read_volatile() } == u32::MAX {
        return DROP;
    }
    let next = field_of(name, field);
    // SAFETY: as above.
    unsafe {
        if is_destination {
            (&raw mut (*key).dst).write_volatile(next);
        } else {
            (&raw mut (*key).src).write_volatile(next);
        }
    }
    NEXT
}

/// Whether packets with those ends are told from others. The end that changes is where a packet that arrives
/// goes to, and where one that leaves comes from.
///
/// # Safety
/// The packet is as long as its first three bytes.
#[inline(always)]
unsafe fn is_marked(skb: Skb, packet: *const u8, tuple: &Tuple) -> bool {
    // SAFETY: by the caller's promise.
    let (is_destination, leaves) = unsafe {
        (packet.wrapping_add(1).read_volatile() == 1, packet.wrapping_add(2).read_volatile() == 1)
    };
    let (changes, stays) =
        if is_destination { (tuple.dst, tuple.src) } else { (tuple.src, tuple.dst) };
    if leaves {
        Kernel(skb).may_leave(&changes, &stays, false)
    } else {
        Kernel(skb).may_arrive(&changes)
    }
}

#[inline(always)]
fn field_of(name: *mut Name, field: u8) -> Addr {
    // SAFETY: an element of the map is a name as long as the program runs.
    unsafe {
        match field {
            0 => (&raw const (*name).snat).read_volatile(),
            1 => (&raw const (*name).sent.src).read_volatile(),
            _ => {
                let packets = &raw mut (*name).packets;
                packets.write_volatile(packets.read_volatile().wrapping_add(1));
                (&raw const (*name).sent.dst).read_volatile()
            }
        }
    }
}

/// Whether the endpoint was found among those that serve now.
#[inline(always)]
fn is_current(record: *mut Record) -> bool {
    // SAFETY: as above.
    let (slot, generation) = unsafe {
        (
            (&raw const (*record).slot).read_volatile(),
            (&raw const (*record).generation).read_volatile(),
        )
    };
    lead::head(slot, SERVING).is_some_and(|head| head.generation() == generation)
}
