//! A packet in the kernel: `packet::packet::Packet` over `__sk_buff`.

use core::hint::black_box;

use abi::addr::Addr;
use abi::flow::HELD_LEN;
use aya_ebpf::bindings::{
    __sk_buff, BPF_F_INGRESS, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM,
    bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
};
use aya_ebpf::helpers::generated::{
    bpf_clone_redirect, bpf_l4_csum_replace, bpf_skb_adjust_room, bpf_skb_change_tail,
    bpf_skb_load_bytes, bpf_skb_store_bytes,
};
use packet::checksum::both;
use packet::decide::Verdict;
use packet::packet::{Covered, Packet};
use packet::parse::Parsed;
use packet::refuse::QUOTED;
use packet::rewrite::End;
use packet::tables::Tables;

use crate::steps;

/// The packet that a tc program was run for.
#[derive(Clone, Copy)]
pub(crate) struct Skb(pub(crate) *mut __sk_buff);

impl Skb {
    /// The `EtherType`, as it stands in the frame.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the kernel keeps it in 16 bits")]
    pub(crate) fn ethertype(self) -> u16 {
        // SAFETY: a field of the context, which the verifier checks.
        unsafe { (&raw const (*self.0).protocol).read_volatile() as u16 }
    }

    /// The device that it is on.
    #[inline(always)]
    pub(crate) fn device(self) -> u32 {
        // SAFETY: as above.
        unsafe { (&raw const (*self.0).ifindex).read_volatile() }
    }

    /// Whether it was made on this node: it has arrived by no device.
    #[inline(always)]
    pub(crate) fn is_made_here(self) -> bool {
        // SAFETY: as above.
        unsafe { (&raw const (*self.0).ingress_ifindex).read_volatile() == 0 }
    }
}

impl Skb {
    /// Copies `len` bytes from an offset on.
    #[inline(always)]
    pub(crate) fn load_into(self, offset: u32, len: u32, to: *mut [u8; HELD_LEN]) -> bool {
        let Some(len) = bounded(len) else { return false };
        // SAFETY: there is room for so many bytes.
        unsafe { bpf_skb_load_bytes(self.0.cast(), offset, to.cast(), len) == 0 }
    }

    /// Replaces `len` bytes from an offset on.
    #[inline(always)]
    pub(crate) fn store_from(self, offset: u32, len: u32, from: *const [u8; HELD_LEN]) -> bool {
        let Some(len) = bounded(len) else { return false };
        // SAFETY: there are so many bytes.
        unsafe {
            let flags = u64::from(BPF_F_RECOMPUTE_CSUM);
            bpf_skb_store_bytes(self.0, offset, from.cast(), len, flags) == 0
        }
    }
}

impl Packet for Skb {
    #[inline(always)]
    fn len(&self) -> u32 {
        // SAFETY: a field of the context, which the verifier checks.
        unsafe { (&raw const (*self.0).len).read_volatile() }
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "a header")]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        // SAFETY: `bytes` has room for the N bytes.
        let result = unsafe {
            bpf_skb_load_bytes(self.0.cast(), offset, bytes.as_mut_ptr().cast(), N as u32)
        };
        (result == 0).then_some(bytes)
    }

    #[inline(always)]
    fn store<const N: usize>(&mut self, offset: u32, bytes: &[u8; N]) -> Option<()> {
        store(*self, offset, bytes, 0)
    }

    #[inline(always)]
    fn write<const N: usize>(&mut self, offset: u32, bytes: &[u8; N]) -> Option<()> {
        store(*self, offset, bytes, u64::from(BPF_F_RECOMPUTE_CSUM))
    }

    #[inline(always)]
    fn mend(&mut self, offset: u32, difference: u32, covered: Covered) -> Option<()> {
        let mut flags = 0;
        if covered.pseudo {
            flags |= u64::from(BPF_F_PSEUDO_HDR);
        }
        if covered.optional {
            flags |= u64::from(BPF_F_MARK_MANGLED_0);
        }
        // SAFETY: takes numbers only.
        let result =
            unsafe { bpf_l4_csum_replace(self.0, offset, 0, u64::from(difference), flags) };
        (result == 0).then_some(())
    }

    #[inline(always)]
    fn resize(&mut self, len: u32) -> Option<()> {
        // SAFETY: takes numbers only.
        (unsafe { bpf_skb_change_tail(self.0, len, 0) } == 0).then_some(())
    }

    #[inline(always)]
    fn insert(&mut self, _link: u32, n: u32) -> Option<()> {
        // SAFETY: takes numbers only.
        let result = unsafe { bpf_skb_adjust_room(self.0, n.cast_signed(), BPF_ADJ_ROOM_MAC, 0) };
        (result == 0).then_some(())
    }

    #[inline(always)]
    fn rewrite(&mut self, _parsed: &mut Parsed, end: End, address: &Addr, port: u16) -> Option<()> {
        steps::rewrite(*self, end, address, port)
    }

    #[inline(always)]
    fn icmp(&mut self, _tables: &impl Tables, _parsed: &mut Parsed, arrives: bool) -> Verdict {
        steps::icmp(*self, arrives)
    }

    #[inline(always)]
    fn again(&mut self, leaves: bool) {
        let flags = if leaves { 0 } else { u64::from(BPF_F_INGRESS) };
        // SAFETY: takes numbers only. A device that is going down sends nothing.
        _ = unsafe { bpf_clone_redirect(self.0, self.device(), flags) };
    }

    #[inline(always)]
    fn fragment(&mut self, _tables: &impl Tables, _parsed: &mut Parsed, leaves: bool) -> Verdict {
        steps::fragment(*self, leaves)
    }

    #[inline(always)]
    fn known_arrives(&mut self, _tables: &impl Tables, _parsed: &mut Parsed) -> Verdict {
        steps::known_arrives(*self)
    }

    #[inline(always)]
    fn known_leaves(
        &mut self,
        _tables: &impl Tables,
        _parsed: &mut Parsed,
        made_here: bool,
    ) -> Verdict {
        steps::known_leaves(*self, made_here)
    }

    #[inline(always)]
    fn to_frontend(&mut self, _tables: &impl Tables, _parsed: &mut Parsed, here: bool) -> Verdict {
        steps::to_frontend(*self, here)
    }

    #[inline(always)]
    fn unreachable(&mut self, _tables: &impl Tables, _parsed: &Parsed) -> Verdict {
        steps::unreachable(*self)
    }

    #[inline(always)]
    fn sum(&self, offset: u32, end: u32) -> Option<u32> {
        let mut sum = 0;
        let mut at = offset;
        for _ in 0..QUOTED / 4 {
            if at >= end {
                break;
            }
            let word: [u8; 4] = if end - at >= 4 {
                self.load(at)?
            } else {
                let mut word = [0; 4];
                for (i, byte) in (0..3).zip(word.iter_mut()) {
                    if at + i < end {
                        [*byte] = self.load(at + i)?;
                    }
                }
                word
            };
            sum = both(sum, u32::from_ne_bytes(word));
            at += 4;
        }
        Some(sum)
    }
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "a header")]
fn store<const N: usize>(skb: Skb, offset: u32, bytes: &[u8; N], flags: u64) -> Option<()> {
    // SAFETY: `bytes` are the N bytes.
    let result =
        unsafe { bpf_skb_store_bytes(skb.0, offset, bytes.as_ptr().cast(), N as u32, flags) };
    (result == 0).then_some(())
}

/// A length that the verifier sees to be one. The compiler would leave out a comparison that it knows
/// the result of.
#[inline(always)]
fn bounded(len: u32) -> Option<u32> {
    let less_one = black_box(len.wrapping_sub(1));
    ((less_one as usize) < HELD_LEN).then(|| less_one + 1)
}
