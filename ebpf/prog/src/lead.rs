//! From a packet's destination to a frontend, and from a frontend to an endpoint for its source.

use core::ffi::c_void;

use abi::addr::Addr;
use abi::address::{AddressValue, PrefixFlags, RangeKey};
use abi::affinity::{AffinityKey, AffinityValue};
use abi::device::Device;
use abi::endpoint::{Endpoint, Head, pick};
use abi::frontend::FrontendKey;
use abi::node::Node;
use abi::slot::{N_HEADS, Rules, SERVING, Slot, Source};
use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_coarse_ns, bpf_loop};
use packet::tables::{Choice, Chosen, Found};

use crate::choose;
use crate::dns::stands_for;
use crate::maps::{
    ADDRESSES, AFFINITY, DEVICES, ENDPOINTS, FRONTENDS, NODE, PREFIXES, RANGES, SLOTS,
};

/// How often a set, or an element of a hash map, is looked at before giving up.
const LOOKS: u32 = 3;

const SECOND: u64 = 1_000_000_000;

/// What a destination is, in the order of `proxy::plan`: a frontend of its own, a Service's address
/// at another port, a node port, an address that no Service has.
#[inline(always)]
pub(crate) fn find(address: &Addr, port: u16, protocol: u8) -> Found {
    if *address == Addr::ANY_V4 || *address == Addr::ANY_V6 {
        // Nobody's, and where node ports stand.
        return Found::Stranger;
    }
    let (address, port) = match stands_for(address, port) {
        Some(own) => (&own.service, own.service_port),
        None => (address, port),
    };
    if let Some(slot) = slot(FrontendKey::new(*address, port, protocol)) {
        return Found::Frontend(slot);
    }
    let flags = flags_of(address);
    if flags & AddressValue::REJECT != 0 {
        return Found::Undefined;
    }
    if flags & AddressValue::LEAVE != 0 {
        return Found::Stranger;
    }
    if flags & AddressValue::NODE_PORTS != 0
        && let Some(slot) = slot(FrontendKey::node_port(address, port, protocol))
    {
        return Found::Frontend(slot);
    }
    if prefix_flags(address) & PrefixFlags::SERVICE != 0 {
        return Found::Unallocated;
    }
    Found::Stranger
}

#[inline(always)]
fn slot(key: FrontendKey) -> Option<u32> {
    // The element may be given to another key between the two looks at it; the check word tells.
    for _ in 0..LOOKS {
        let value = FRONTENDS.get_ptr(key)?;
        // SAFETY: the verifier checked the pointer; one aligned word.
        let value = unsafe { value.read_volatile() };
        if let Some(slot) = value.slot(&key) {
            return Some(slot);
        }
    }
    None
}

/// Whether frontends may stand at an address.
#[inline(always)]
pub(crate) fn is_ours(address: &Addr) -> bool {
    const OURS: u32 = AddressValue::REJECT | AddressValue::LEAVE | AddressValue::NODE_PORTS;
    flags_of(address) & OURS != 0
}

/// What is known of an address.
#[inline(always)]
pub(crate) fn flags_of(address: &Addr) -> u32 {
    for _ in 0..LOOKS {
        let Some(value) = ADDRESSES.get_ptr(address) else { return 0 };
        // SAFETY: the verifier checked the pointer; one aligned word.
        let value: AddressValue = unsafe { value.read_volatile() };
        if let Some(flags) = value.flags(address) {
            return flags;
        }
    }
    0
}

#[inline(always)]
fn prefix_flags(address: &Addr) -> u32 {
    match PREFIXES.get(&Key::new(Addr::BITS, *address)) {
        Some(flags) => flags.0,
        None => 0,
    }
}

/// The Service port of a slot; zero if there is none.
#[inline(always)]
pub(crate) fn service(slot: u32) -> u32 {
    choose::content(slot).map_or(0, |content| choose::rules(content).service())
}

/// A [`Choice`] without its endpoint.
#[repr(u32)]
#[derive(Clone, Copy)]
pub(crate) enum Outcome {
    Unsettled = 0,
    Chosen = 1,
    Nobody = 2,
    Nowhere = 3,
    NotAllowed = 4,
}

/// The choice whose outcome is that word.
#[inline(always)]
pub(crate) fn choice(outcome: u32, chosen: Chosen) -> Choice {
    match outcome {
        1 => Choice::Endpoint(chosen),
        2 => Choice::Nobody,
        3 => Choice::Nowhere,
        4 => Choice::NotAllowed,
        _ => Choice::Unsettled,
    }
}

/// An endpoint for a new connection from a client that arrived on a device.
#[inline(always)]
pub(crate) fn try_choose(
    slot: u32,
    client: &Addr,
    device: u32,
    here: bool,
    chosen: &mut Chosen,
) -> Outcome {
    let Some(entry) = SLOTS.get_ptr(slot) else { return Outcome::Unsettled };
    // SAFETY: the verifier checked the pointer; one aligned word, which does not change in a slot.
    let rules: Rules = unsafe { (&raw const (*entry).rules).read_volatile() };
    if rules.has_ranges() && !is_in_ranges(slot, client) {
        return Outcome::NotAllowed;
    }
    let source = if here { Source::Node } else { source(client, device) };
    let mut look = 0;
    while look < LOOKS {
        let head = head_of(entry, source as usize);
        if head.length() == 0 {
            return if head == Head::DROP { Outcome::Nowhere } else { Outcome::Nobody };
        }
        if let Some(found) = from_set(head, client, rules) {
            *chosen = found;
            return Outcome::Chosen;
        }
        look += 1;
    }
    Outcome::Unsettled
}

#[inline(always)]
fn is_in_ranges(slot: u32, client: &Addr) -> bool {
    RANGES.get(&Key::new(RangeKey::BITS, RangeKey { slot, addr: *client })).is_some()
}

/// What kind of source a client is: the order is `proxy::plan::trace`'s.
#[inline(always)]
fn source(client: &Addr, device: u32) -> Source {
    if is_pod(client, device) {
        return Source::Pod;
    }
    if flags_of(client) & AddressValue::LOCAL != 0 { Source::Node } else { Source::Outside }
}

/// The flags of [`Node`].
#[inline(always)]
fn node_flags() -> u64 {
    match NODE.get_ptr(0) {
        // SAFETY: the verifier checked the pointer; one aligned word.
        Some(node) => unsafe { (&raw const (*node).flags).read_volatile() },
        None => 0,
    }
}

/// Whether new connections are led; not in place, lest its key be on the stack of whoever asks.
#[inline(never)]
pub(crate) fn leads() -> bool {
    node_flags() & Node::LEAVES_NEW == 0
}

/// Whether an address behind a device is a pod's of this node.
#[inline(always)]
pub(crate) fn is_pod(client: &Addr, device: u32) -> bool {
    let (tells, by_device) = if client.is_v4() {
        (Node::PODS_V4, Node::PODS_BY_DEVICE_V4)
    } else {
        (Node::PODS_V6, Node::PODS_BY_DEVICE_V6)
    };
    let flags = node_flags();
    if flags & tells == 0 {
        false
    } else if flags & by_device != 0 {
        is_pods_device(device, client.is_v4())
    } else {
        prefix_flags(client) & PrefixFlags::POD != 0
    }
}

#[inline(always)]
fn is_pods_device(device: u32, v4: bool) -> bool {
    let Some(device) = DEVICES.get_ptr(device) else { return false };
    // SAFETY: the verifier checked the pointer; one aligned word.
    let flags = unsafe { (&raw const (*device).flags).read_volatile() };
    flags & if v4 { Device::PODS_V4 } else { Device::PODS_V6 } != 0
}

/// The client's endpoint of old if it is in the set and affinity asks for it, else one at random.
#[inline(always)]
fn from_set(head: Head, client: &Addr, rules: Rules) -> Option<Chosen> {
    let affinity = rules.affinity();
    if affinity == 0 {
        return at(head, random_index(head));
    }
    let key = AffinityKey::new(*client, rules.service());
    // SAFETY: takes nothing, returns a number.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    if let Some(index) = remembered(head, &key, now, u64::from(affinity) * SECOND)
        && let Some(chosen) = at(head, index)
    {
        remember(&key, &chosen, index, now);
        return Some(chosen);
    }
    let index = random_index(head);
    let chosen = at(head, index)?;
    remember(&key, &chosen, index, now);
    Some(chosen)
}

#[inline(always)]
fn random_index(head: Head) -> u32 {
    // SAFETY: takes nothing, returns a number.
    pick(unsafe { bpf_get_prandom_u32() }, head.length())
}

/// The place in the set of the endpoint that the client had, unless it was too long ago.
#[inline(always)]
fn remembered(head: Head, key: &AffinityKey, now: u64, for_ns: u64) -> Option<u32> {
    let value = AFFINITY.get_ptr(key)?;
    // SAFETY: the verifier checked the pointer. Another packet of the same client may write it
    // meanwhile; what is read is checked against the set.
    let last: AffinityValue = unsafe { value.read() };
    if now.wrapping_sub(last.used) > for_ns {
        return None;
    }
    place(head, last.addr, last.port)
}

#[inline(always)]
fn remember(key: &AffinityKey, chosen: &Chosen, index: u32, now: u64) {
    let value = AffinityValue { addr: chosen.address, port: chosen.port, pad: 0, index, used: now };
    // An LRU map has room as long as the machine has memory.
    _ = AFFINITY.insert(key, value, u64::from(BPF_ANY));
}

/// The endpoint at a place of a set, unless the place belongs to another set by now.
#[inline(always)]
fn at(head: Head, index: u32) -> Option<Chosen> {
    let entry = ENDPOINTS.get_ptr(head.base() + index)?;
    let (address, port, id) = whole(entry, head.generation())?;
    Some(Chosen { address, port, masquerade: u16::from(head.masquerade()), id })
}

/// An endpoint, if it bears that generation before and after it was read.
#[inline(always)]
fn whole(entry: *const Endpoint, generation: u32) -> Option<(Addr, u16, u32)> {
    // SAFETY: the verifier checked the pointer. User space clears the generation before it writes
    // an entry and sets it after, so an entry that bears the right one on both sides is whole.
    let before = unsafe { (&raw const (*entry).generation).read_volatile() };
    // SAFETY: as above.
    let address = unsafe { (&raw const (*entry).addr).read_volatile() };
    // SAFETY: as above.
    let port = unsafe { (&raw const (*entry).port).read_volatile() };
    // SAFETY: as above.
    let id = unsafe { (&raw const (*entry).id).read_volatile() };
    // SAFETY: as above.
    let after = unsafe { (&raw const (*entry).generation).read_volatile() };
    (before == generation && after == generation).then_some((address, port, id))
}

/// One head of a slot.
#[inline(always)]
pub(crate) fn head(slot: u32, index: usize) -> Option<Head> {
    SLOTS.get_ptr(slot).map(|entry| head_of(entry, index))
}

#[inline(always)]
fn head_of(entry: *const Slot, index: usize) -> Head {
    // SAFETY: the verifier checked the pointer, and the index is below N_HEADS; one aligned word,
    // stored whole by user space.
    unsafe { (&raw const (*entry).heads).cast::<Head>().add(index & (N_HEADS - 1)).read_volatile() }
}

/// Whether an endpoint serves in a slot; gives the generation of the serving ones.
#[inline(always)]
pub(crate) fn serves(slot: u32, address: &Addr, port: u16) -> Option<u32> {
    let head = head(slot, SERVING)?;
    place(head, *address, port).map(|_| head.generation())
}

/// A search through a set: the verifier checks its body once, however long the set.
struct Search {
    head: Head,
    address: Addr,
    port: u16,
    found: u32,
}

const NOT_FOUND: u32 = u32::MAX;

#[inline(always)]
fn place(head: Head, address: Addr, port: u16) -> Option<u32> {
    let mut search = Search { head, address, port, found: NOT_FOUND };
    // SAFETY: the callback has the form that bpf_loop wants, and its context outlives the call.
    unsafe { bpf_loop(head.length(), look_at as *mut c_void, (&raw mut search).cast(), 0) };
    // SAFETY: the callback has written it behind the compiler's back.
    let found = unsafe { (&raw const search.found).read_volatile() };
    (found != NOT_FOUND).then_some(found)
}

/// Returns 1 to end the loop.
#[inline(never)]
extern "C" fn look_at(index: u32, search: *mut Search) -> i64 {
    // SAFETY: `bpf_loop` passes the context that it was given.
    let search = unsafe { &mut *search };
    let Some(entry) = ENDPOINTS.get_ptr(search.head.base() + index) else { return 1 };
    match whole(entry, search.head.generation()) {
        Some((address, port, _)) if port == search.port && address == search.address => {
            search.found = index;
            1
        }
        _ => 0,
    }
}
