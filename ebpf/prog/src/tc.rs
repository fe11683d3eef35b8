//! What the tc programs do with a packet once it is decided.

use abi::counter::Counter;
use aya_ebpf::bindings::{__sk_buff, BPF_F_INGRESS, bpf_fib_lookup as FibLookup};
use aya_ebpf::helpers::generated::{bpf_fib_lookup, bpf_redirect, bpf_redirect_neigh};
use packet::decide::Verdict;
use packet::parse::Parsed;

use crate::maps::{SCRATCH, count, count_at};
use crate::skb::Skb;
use crate::steps;

/// Let other programs and the kernel go on: `TCX_NEXT`, and `TC_ACT_UNSPEC` for clsact.
pub(crate) const NEXT: i32 = -1;
/// `TC_ACT_SHOT`.
pub(crate) const DROP: i32 = 2;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// The route is there, but the neighbour is not known yet: `BPF_FIB_LKUP_RET_NO_NEIGH`.
const NO_NEIGHBOUR: i64 = 7;

/// A packet that arrives, with its network header at `l3`.
#[inline(always)]
pub(crate) fn ingress(ctx: *mut __sk_buff, l3: u32) -> i32 {
    let skb = Skb(ctx);
    match steps::arrives(skb, l3) {
        Verdict::ANSWER => redirect(skb.device(), 0),
        verdict => go(skb, verdict),
    }
}

/// A packet that leaves.
#[inline(always)]
pub(crate) fn egress(ctx: *mut __sk_buff, l3: u32) -> i32 {
    let skb = Skb(ctx);
    match steps::leaves(skb, l3) {
        Verdict::ANSWER => redirect(skb.device(), u64::from(BPF_F_INGRESS)),
        Verdict::REROUTE => steps::reroute(skb),
        verdict => go(skb, verdict),
    }
}

/// Where the headers of the packet at hand are kept: a program has 512 bytes of stack for all its
/// functions together.
#[inline(always)]
pub(crate) fn scratch() -> Option<&'static mut Parsed> {
    let parsed = SCRATCH.get_ptr_mut(0)?;
    // SAFETY: a per-CPU value; the verifier checked the pointer. No other packet is decided on this
    // processor before the program has returned.
    Some(unsafe { &mut *parsed })
}

/// Where the headers are kept that an ICMP error quotes.
#[inline(always)]
pub(crate) fn quoted() -> Option<&'static mut Parsed> {
    let parsed = SCRATCH.get_ptr_mut(1)?;
    // SAFETY: as above.
    Some(unsafe { &mut *parsed })
}

#[inline(always)]
fn go(skb: Skb, verdict: Verdict) -> i32 {
    match verdict.reason() {
        Some(reason) => {
            count_at(reason);
            steps::dropped(skb, reason);
            DROP
        }
        None => NEXT,
    }
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "an action")]
fn redirect(device: u32, flags: u64) -> i32 {
    // SAFETY: takes numbers only.
    unsafe { bpf_redirect(device, flags) as i32 }
}

/// Sends a packet by the device that leads to its new destination. It passes the program there,
/// which masquerades it.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the size of a struct, and an action")]
#[expect(clippy::cast_possible_wrap, reason = "the size of a struct")]
pub(crate) fn reroute(skb: Skb, parsed: &Parsed) -> i32 {
    // SAFETY: integers only; zero is a valid value of each.
    let mut lookup: FibLookup = unsafe { core::mem::zeroed() };
    lookup.ifindex = skb.device();
    if parsed.v6 {
        lookup.family = AF_INET6;
        lookup.__bindgen_anon_3.ipv6_src = parsed.src.words;
        lookup.__bindgen_anon_4.ipv6_dst = parsed.dst.words;
    } else {
        lookup.family = AF_INET;
        let ([_, _, _, src], [_, _, _, dst]) = (parsed.src.words, parsed.dst.words);
        lookup.__bindgen_anon_3.ipv4_src = src;
        lookup.__bindgen_anon_4.ipv4_dst = dst;
    }
    // SAFETY: `lookup` is what the helper reads and writes.
    let found =
        unsafe { bpf_fib_lookup(skb.0.cast(), &raw mut lookup, size_of::<FibLookup>() as i32, 0) };
    if found != 0 && found != NO_NEIGHBOUR {
        count(Counter::DroppedNoRoute);
        return DROP;
    }
    // SAFETY: no next hop is given, so the kernel looks it up.
    unsafe { bpf_redirect_neigh(lookup.ifindex, core::ptr::null_mut(), 0, 0) as i32 }
}
