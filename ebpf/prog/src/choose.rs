//! From the address named to the endpoint used.

use core::ffi::c_void;

use abi::counter::Counter;
use abi::endpoint::{Head, pick};
use abi::frontend::FrontendKey;
use abi::slot::Source;
use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_loop};

use crate::maps::{ENDPOINTS, FRONTENDS, SLOTS, count};
use crate::peer::Peer;

/// How often a set is looked at before giving up. Between two looks the set must have been replaced
/// *and* its place reused, which user space delays by a second: more than two never happens.
const LOOKS: u32 = 3;

/// What a set offers.
pub(crate) enum Choice {
    /// This endpoint, of a set of this generation.
    Endpoint(Peer, u32),
    /// There is none: refuse.
    Nobody,
    /// There is none that may serve here: leave the address as it is, which leads nowhere.
    Nowhere,
    /// The set changed at every look: try again.
    Unsettled,
}

/// The slot of an address, if it is a Service's.
#[inline(always)]
pub(crate) fn slot(peer: Peer, protocol: u8) -> Option<u32> {
    let key = FrontendKey::new(peer.addr, peer.port, protocol);
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

/// One endpoint of the slot's set, at random.
#[inline(always)]
pub(crate) fn choose(slot: u32) -> Choice {
    for look in 0..LOOKS {
        let Some(head) = head(slot) else { return Choice::Nobody };
        if head.length() == 0 {
            return if head == Head::DROP { Choice::Nowhere } else { Choice::Nobody };
        }
        // SAFETY: takes nothing, returns a number.
        let random = unsafe { bpf_get_prandom_u32() };
        if let Some(peer) = endpoint(head, pick(random, head.length())) {
            if look > 0 {
                count(Counter::Retried);
            }
            return Choice::Endpoint(peer, head.generation());
        }
    }
    count(Counter::Unsettled);
    Choice::Unsettled
}

/// Whether an endpoint that was taken from a set of that generation is in the set now; returns the
/// generation now.
#[inline(always)]
pub(crate) fn still_serves(slot: u32, endpoint_then: Peer, generation_then: u32) -> Option<u32> {
    let head = head(slot)?;
    if head.generation() == generation_then {
        return Some(generation_then);
    }
    let mut search = Search { head, wanted: endpoint_then, found: 0 };
    // SAFETY: the callback has the form that bpf_loop wants, and its context outlives the call.
    unsafe {
        bpf_loop(head.length(), look_at as *mut c_void, (&raw mut search).cast(), 0);
    }
    (search.found == 1).then_some(head.generation())
}

/// A search through a set: the verifier checks its body once, however long the set.
struct Search {
    head: Head,
    wanted: Peer,
    found: u32,
}

/// Returns 1 to end the loop.
#[inline(never)]
extern "C" fn look_at(index: u32, search: *mut Search) -> i64 {
    // SAFETY: `bpf_loop` passes the context that it was given.
    let search = unsafe { &mut *search };
    match endpoint(search.head, index) {
        Some(now) if now.port == search.wanted.port && now.addr == search.wanted.addr => {
            search.found = 1;
            1
        }
        _ => 0,
    }
}

#[inline(always)]
fn head(slot: u32) -> Option<Head> {
    let slot = SLOTS.get_ptr(slot)?;
    // SAFETY: the verifier checked the pointer; one aligned word, stored whole by user space.
    Some(unsafe {
        (&raw const (*slot).heads).cast::<Head>().add(Source::Pod as usize).read_volatile()
    })
}

/// The endpoint at that place of the set, unless the place belongs to another set by now.
#[inline(always)]
fn endpoint(head: Head, index: u32) -> Option<Peer> {
    let entry = ENDPOINTS.get_ptr(head.base() + index)?;
    // SAFETY: the verifier checked the pointer. User space clears the generation before it writes
    // an entry and sets it after, so an entry that bears the right one on both sides is whole.
    let before = unsafe { (&raw const (*entry).generation).read_volatile() };
    // SAFETY: as above.
    let addr = unsafe { (&raw const (*entry).addr).read_volatile() };
    // SAFETY: as above.
    let port = unsafe { (&raw const (*entry).port).read_volatile() };
    // SAFETY: as above.
    let after = unsafe { (&raw const (*entry).generation).read_volatile() };
    (before == head.generation() && after == before).then_some(Peer { addr, port })
}
