//! From the address named to the endpoint used.

use core::ffi::c_void;

use abi::addr::Addr;
use abi::address::{AddressValue, PrefixFlags, RangeKey};
use abi::affinity::{AffinityKey, AffinityValue};
use abi::counter::Counter;
use abi::endpoint::{Head, pick};
use abi::frontend::FrontendKey;
use abi::slot::{N_HEADS, Rules, Slot, Source};
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_ns, bpf_loop};

use crate::maps::{ADDRESSES, AFFINITY, ENDPOINTS, FRONTENDS, PREFIXES, RANGES, SLOTS, count};
use crate::peer::Peer;

/// How often a set is looked at before giving up. Between two looks the set must have been replaced
/// *and* its place reused, which user space delays by a second: more than two never happens.
const LOOKS: u32 = 3;

const SECOND: u64 = 1_000_000_000;

/// Whose an address and port are.
pub(crate) enum Found {
    /// A frontend's, in this slot.
    Frontend(u32),
    /// A cluster IP's that has no such port.
    Undefined,
    /// Nobody's that we know.
    Stranger,
}

/// What a set offers.
pub(crate) enum Choice {
    /// This endpoint.
    Endpoint(Chosen),
    /// There is none: refuse.
    Nobody,
    /// There is none that may serve here: leave the address as it is, which leads nowhere.
    Nowhere,
    /// The set changed at every look: try again.
    Unsettled,
}

/// An endpoint of a set.
#[derive(Clone, Copy)]
pub(crate) struct Chosen {
    pub(crate) peer: Peer,
    /// What it is counted by.
    pub(crate) id: u32,
    /// Of its set.
    pub(crate) generation: u32,
}

/// Who chooses.
#[derive(Clone, Copy)]
pub(crate) struct Client {
    /// What kind of source.
    pub(crate) source: Source,
    /// What affinity knows it by.
    pub(crate) name: Addr,
}

/// Whose an address and port are; `here` if the node itself asks. A cluster IP costs one look.
#[inline(always)]
pub(crate) fn find(peer: Peer, protocol: u8, here: bool) -> Found {
    if let Some(slot) = slot(&FrontendKey::new(peer.addr, peer.port, protocol)) {
        return Found::Frontend(slot);
    }
    let flags = if peer.addr.is_loopback() {
        // A pod's loopback is its own.
        if here { loopback_flags(&peer.addr) } else { 0 }
    } else {
        flags(&peer.addr)
    };
    if flags & AddressValue::REJECT != 0 {
        return Found::Undefined;
    }
    if flags & (AddressValue::NODE_PORTS | AddressValue::LEAVE) != AddressValue::NODE_PORTS {
        return Found::Stranger;
    }
    match slot(&FrontendKey::node_port(&peer.addr, peer.port, protocol)) {
        Some(slot) => Found::Frontend(slot),
        None => Found::Stranger,
    }
}

/// The slot of a frontend, if it is one.
#[inline(always)]
pub(crate) fn slot(key: &FrontendKey) -> Option<u32> {
    // The element may be given to another key between the two looks at it; the check word tells.
    for _ in 0..LOOKS {
        let value = FRONTENDS.get_ptr(key)?;
        // SAFETY: the verifier checked the pointer; one aligned word.
        let value = unsafe { value.read_volatile() };
        if let Some(slot) = value.slot(key) {
            return Some(slot);
        }
    }
    None
}

/// Whether an address is the node's.
#[inline(always)]
pub(crate) fn is_local(addr: &Addr) -> bool {
    addr.is_loopback() || flags(addr) & AddressValue::LOCAL != 0
}

#[inline(always)]
fn flags(addr: &Addr) -> u32 {
    for _ in 0..LOOKS {
        let Some(value) = ADDRESSES.get_ptr(addr) else { return 0 };
        // SAFETY: the verifier checked the pointer; one aligned word.
        let value = unsafe { value.read_volatile() };
        if let Some(flags) = value.flags(addr) {
            return flags;
        }
    }
    0
}

#[inline(always)]
fn loopback_flags(addr: &Addr) -> u32 {
    match PREFIXES.get(&Key::new(Addr::BITS, *addr)) {
        Some(flags) if flags.0 & PrefixFlags::NODE_PORTS != 0 => AddressValue::NODE_PORTS,
        _ => 0,
    }
}

/// What else holds for a slot.
#[inline(always)]
pub(crate) fn rules(slot: *const Slot) -> Rules {
    // SAFETY: the verifier checked the pointer; one aligned word, stored whole by user space.
    unsafe { (&raw const (*slot).rules).read_volatile() }
}

/// The content of a slot.
#[inline(always)]
pub(crate) fn content(slot: u32) -> Option<*const Slot> {
    SLOTS.get_ptr(slot)
}

/// Whether a source may use a slot that asks.
#[inline(always)]
pub(crate) fn is_in_ranges(slot: u32, source: Addr) -> bool {
    RANGES.get(&Key::new(RangeKey::BITS, RangeKey { slot, addr: source })).is_some()
}

/// Where a slot leads one kind of source.
#[inline(always)]
pub(crate) fn head(slot: *const Slot, source: Source) -> Head {
    let index = source as usize & (N_HEADS - 1);
    // SAFETY: the verifier checked the pointer, and the index is below N_HEADS; one aligned word,
    // stored whole by user space.
    unsafe { (&raw const (*slot).heads).cast::<Head>().add(index).read_volatile() }
}

/// One endpoint of the slot's set: the one that the client had if affinity asks for it, else any.
#[inline(always)]
pub(crate) fn choose(slot: *const Slot, client: Client) -> Choice {
    let rules = rules(slot);
    for look in 0..LOOKS {
        let head = head(slot, client.source);
        if head.length() == 0 {
            return if head == Head::DROP { Choice::Nowhere } else { Choice::Nobody };
        }
        let chosen = if rules.affinity() == 0 {
            endpoint(head, any(head))
        } else {
            faithful(head, &AffinityKey::new(client.name, rules.service()), rules.affinity())
        };
        if let Some(chosen) = chosen {
            if look > 0 {
                count(Counter::Retried);
            }
            return Choice::Endpoint(chosen);
        }
    }
    count(Counter::Unsettled);
    Choice::Unsettled
}

/// Whether an endpoint that was taken from a set of that generation is in the set now; returns the
/// generation now.
#[inline(always)]
pub(crate) fn still_serves(head: Head, endpoint_then: Peer, generation_then: u32) -> Option<u32> {
    if head.generation() == generation_then {
        return Some(generation_then);
    }
    place(head, endpoint_then).map(|_| head.generation())
}

/// The endpoint that a client had within `seconds`, if it is in the set; else any, which it has
/// from now on.
#[inline(always)]
fn faithful(head: Head, key: &AffinityKey, seconds: u32) -> Option<Chosen> {
    // SAFETY: takes nothing, returns a number.
    let now = unsafe { bpf_ktime_get_ns() };
    let index = match remembered(head, key, now, seconds) {
        Some(index) => index,
        None => any(head),
    };
    let chosen = endpoint(head, index)?;
    let Peer { addr, port } = chosen.peer;
    // An LRU map has room as long as the machine has memory.
    _ = AFFINITY.insert(key, AffinityValue { addr, port, pad: 0, index, used: now }, 0);
    Some(chosen)
}

#[inline(always)]
fn remembered(head: Head, key: &AffinityKey, now: u64, seconds: u32) -> Option<u32> {
    let value = AFFINITY.get_ptr(key)?;
    // SAFETY: the verifier checked the pointer. Another socket of the same client may write it
    // meanwhile; what is read is compared with the set.
    let last = unsafe { value.read() };
    if now.wrapping_sub(last.used) > u64::from(seconds) * SECOND {
        return None;
    }
    let had = Peer { addr: last.addr, port: last.port };
    // Mostly it stands where it stood.
    if last.index < head.length()
        && let Some(now) = endpoint(head, last.index)
        && now.peer.port == had.port
        && now.peer.addr == had.addr
    {
        return Some(last.index);
    }
    place(head, had)
}

#[inline(always)]
pub(crate) fn any(head: Head) -> u32 {
    // SAFETY: takes nothing, returns a number.
    pick(unsafe { bpf_get_prandom_u32() }, head.length())
}

/// A search through a set: the verifier checks its body once, however long the set.
struct Search {
    head: Head,
    wanted: Peer,
    /// The place, plus one.
    found: u32,
}

/// The place of an endpoint in a set.
#[inline(always)]
fn place(head: Head, wanted: Peer) -> Option<u32> {
    let mut search = Search { head, wanted, found: 0 };
    // SAFETY: the callback has the form that bpf_loop wants, and its context outlives the call.
    unsafe { bpf_loop(head.length(), look_at as *mut c_void, (&raw mut search).cast(), 0) };
    // SAFETY: written behind the compiler's back.
    let found = unsafe { (&raw const search.found).read_volatile() };
    found.checked_sub(1)
}

/// Returns 1 to end the loop.
#[inline(never)]
extern "C" fn look_at(index: u32, search: *mut Search) -> i64 {
    // SAFETY: `bpf_loop` passes the context that it was given.
    let search = unsafe { &mut *search };
    match endpoint(search.head, index) {
        Some(Chosen { peer, .. })
            if peer.port == search.wanted.port && peer.addr == search.wanted.addr =>
        {
            search.found = index + 1;
            1
        }
        _ => 0,
    }
}

/// Whether an endpoint of a set has that address, at whatever port.
#[inline(always)]
pub(crate) fn has_address(head: Head, addr: Addr) -> bool {
    let mut search = Search { head, wanted: Peer { addr, port: 0 }, found: 0 };
    // SAFETY: as above.
    unsafe { bpf_loop(head.length(), look_at_address as *mut c_void, (&raw mut search).cast(), 0) };
    // SAFETY: as above.
    unsafe { (&raw const search.found).read_volatile() != 0 }
}

/// As [`look_at`], whatever the port.
#[inline(never)]
extern "C" fn look_at_address(index: u32, search: *mut Search) -> i64 {
    // SAFETY: as above.
    let search = unsafe { &mut *search };
    match endpoint(search.head, index) {
        Some(Chosen { peer, .. }) if peer.addr == search.wanted.addr => {
            search.found = index + 1;
            1
        }
        _ => 0,
    }
}

/// The endpoint at that place of the set, unless the place belongs to another set by now.
#[inline(always)]
pub(crate) fn endpoint(head: Head, index: u32) -> Option<Chosen> {
    let entry = ENDPOINTS.get_ptr(head.base() + index)?;
    // SAFETY: the verifier checked the pointer. User space clears the generation before it writes
    // an entry and sets it after, so an entry that bears the right one on both sides is whole.
    let before = unsafe { (&raw const (*entry).generation).read_volatile() };
    // SAFETY: as above.
    let addr = unsafe { (&raw const (*entry).addr).read_volatile() };
    // SAFETY: as above.
    let port = unsafe { (&raw const (*entry).port).read_volatile() };
    // SAFETY: as above.
    let id = unsafe { (&raw const (*entry).id).read_volatile() };
    // SAFETY: as above.
    let after = unsafe { (&raw const (*entry).generation).read_volatile() };
    let chosen = Chosen { peer: Peer { addr, port }, id, generation: before };
    (before == head.generation() && after == before).then_some(chosen)
}
