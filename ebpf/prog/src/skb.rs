//! A packet in the kernel: `packet::packet::Packet` over `__sk_buff`.

use core::arch::asm;
use core::hint::black_box;
use core::mem::MaybeUninit;

use abi::addr::Addr;
use abi::flow::HELD_LEN;
use aya_ebpf::bindings::{
    __sk_buff, BPF_F_INGRESS, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM,
    bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
};
use aya_ebpf::helpers::generated::{
    bpf_clone_redirect, bpf_csum_update, bpf_l4_csum_replace, bpf_skb_adjust_room,
    bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_store_bytes,
};
use packet::checksum::{self, addresses_sum, both, fold16, mended};
use packet::decide::Verdict;
use packet::packet::{Covered, Packet};
use packet::parse::Parsed;
use packet::refuse::QUOTED;
use packet::rewrite::{self, End};
use packet::tables::Tables;

use crate::{plain, steps};

/// How far the headers of a packet reach that are read and written in place. What lies behind is left
/// to the kernel's helpers.
const REACH: u32 = 511;

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

    /// Where the bytes at an offset lie in memory, if they do: a driver may have left them on pages.
    #[inline(always)]
    pub(crate) fn at<const N: usize>(self, offset: u32) -> Option<*mut u8> {
        if offset > REACH {
            return None;
        }
        // SAFETY: fields of the context, which the verifier checks.
        let (data, end) = unsafe {
            (
                (&raw const (*self.0).data).read_volatile() as usize,
                (&raw const (*self.0).data_end).read_volatile() as usize,
            )
        };
        let at: *mut u8;
        // SAFETY: adds two registers. The compiler must not see how, or it compares one sum with the
        // end and reads at another, and the verifier knows no sum but the one that was compared.
        unsafe {
            asm!(
                "{offset} &= 511",
                "{at} += {offset}",
                at = inlateout(reg) data => at,
                offset = inlateout(reg) u64::from(offset) => _,
                options(pure, nomem, nostack),
            );
        }
        (at.wrapping_add(N).addr() <= end).then_some(at)
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

/// The same for the steps that packets of known connections take, in which nothing that they all pass is
/// a function of its own: a call costs as much as twenty instructions. It is read and written in place,
/// as far as its headers are not on pages of a driver's. Other packets are told by a verdict.
pub(crate) struct Hot {
    pub(crate) skb: Skb,
    /// Where its network header is, if it may be plain; what is done to any other packet is seldom done, and
    /// a function of its own.
    plain: Option<u32>,
    /// Of a fragment: its ports were found.
    has_ports: bool,
}

impl Hot {
    /// A packet that may be a plain one: TCP or UDP in one piece, without options or extension headers.
    #[inline(always)]
    pub(crate) const fn plain(skb: Skb, l3: u32) -> Self {
        Self { skb, plain: Some(l3), has_ports: false }
    }

    /// Any other.
    #[inline(always)]
    pub(crate) const fn rare(skb: Skb, has_ports: bool) -> Self {
        Self { skb, plain: None, has_ports }
    }
}

/// A fragment whose ports are yet to be found.
pub(crate) const FRAGMENT: Verdict = Verdict(6);

/// A packet of a masqueraded connection that has no source yet.
pub(crate) const SOURCE: Verdict = Verdict(7);

/// An ICMP message, which is yet to be decided on; else it is [`Verdict::UNKNOWN`] to a frontend.
pub(crate) const ICMP: Verdict = Verdict(5);

impl Packet for Hot {
    #[inline(always)]
    fn len(&self) -> u32 {
        self.skb.len()
    }

    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.skb.at::<N>(offset).map(read)
    }

    #[inline(always)]
    fn store<const N: usize>(&mut self, offset: u32, bytes: &[u8; N]) -> Option<()> {
        if let Some(at) = self.skb.at::<N>(offset) {
            write(at, bytes);
            return Some(());
        }
        self.skb.store(offset, bytes)
    }

    #[inline(always)]
    fn write<const N: usize>(&mut self, offset: u32, bytes: &[u8; N]) -> Option<()> {
        self.skb.write(offset, bytes)
    }

    #[inline(always)]
    fn mend(&mut self, offset: u32, difference: u32, covered: Covered) -> Option<()> {
        self.skb.mend(offset, difference, covered)
    }

    /// In place, if a device has not yet to complete the checksum. One that it has is the sum of the
    /// pseudo header, or what it makes of it would be wrong; one that is that sum by chance is left
    /// to the kernel's helpers, too, which know.
    #[inline(always)]
    fn mend_both(
        &mut self,
        parsed: &Parsed,
        offset: u32,
        (address, port): (u32, Option<u32>),
        optional: bool,
    ) -> Option<()> {
        let Some(old) = self.load(offset) else {
            return steps::mend(self.skb, offset, (address, port), optional, parsed.v6);
        };
        let old = u16::from_ne_bytes(old);
        if optional && old == 0 || fold16(both(u32::from(old), address)) == pseudo(parsed) {
            return steps::mend(self.skb, offset, (address, port), optional, parsed.v6);
        }
        let difference = port.map_or(address, |port| both(address, port));
        let new = mended(old, difference);
        let new = if optional && new == 0 { 0xffff } else { new };
        self.store(offset, &new.to_ne_bytes())?;
        // IPv4's header sums up to the same as before, so the transport's checksum has changed the sum
        // of the whole packet; over IPv6 the address makes up for it.
        if !parsed.v6 {
            update_sum(self.skb, !address);
        }
        Some(())
    }

    #[inline(always)]
    fn write_address(&mut self, offset: u32, address: &[u8; 16]) -> Option<()> {
        self.store(offset, address)
    }

    #[inline(always)]
    fn again(&mut self, leaves: bool) {
        self.skb.again(leaves);
    }

    #[inline(always)]
    fn fragment(&mut self, _tables: &impl Tables, _parsed: &mut Parsed, _leaves: bool) -> Verdict {
        if self.has_ports { Verdict::ON } else { FRAGMENT }
    }

    #[inline(always)]
    fn resize(&mut self, len: u32) -> Option<()> {
        self.skb.resize(len)
    }

    #[inline(always)]
    fn insert(&mut self, link: u32, n: u32) -> Option<()> {
        self.skb.insert(link, n)
    }

    #[inline(always)]
    fn rewrite(&mut self, parsed: &mut Parsed, end: End, address: &Addr, port: u16) -> Option<()> {
        match self.plain {
            Some(l3) if !parsed.v6 => plain::rewrite(self.skb, l3, parsed, end, (address, port)),
            Some(_) => rewrite::rewrite(self, parsed, end, address, port),
            None => steps::rewrite(self.skb, end, address, port),
        }
    }

    #[inline(always)]
    fn rewrite_rarely(
        &mut self,
        _parsed: &mut Parsed,
        end: End,
        address: &Addr,
        port: u16,
    ) -> Option<()> {
        steps::rewrite(self.skb, end, address, port)
    }

    #[inline(always)]
    fn icmp(&mut self, _tables: &impl Tables, _parsed: &mut Parsed, _arrives: bool) -> Verdict {
        ICMP
    }

    #[inline(always)]
    fn to_frontend(&mut self, _tables: &impl Tables, _parsed: &mut Parsed, _here: bool) -> Verdict {
        Verdict::UNKNOWN
    }

    #[inline(always)]
    fn unreachable(&mut self, tables: &impl Tables, parsed: &Parsed) -> Verdict {
        self.skb.unreachable(tables, parsed)
    }

    #[inline(always)]
    fn sum(&self, offset: u32, end: u32) -> Option<u32> {
        self.skb.sum(offset, end)
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
        let mut bytes = MaybeUninit::<[u8; N]>::uninit();
        // SAFETY: `bytes` has room for the N bytes.
        let result = unsafe {
            bpf_skb_load_bytes(self.0.cast(), offset, bytes.as_mut_ptr().cast(), N as u32)
        };
        // SAFETY: the helper has written all of them, be it zeros.
        (result == 0).then(|| unsafe { bytes.assume_init() })
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

/// Mends a checksum that a device may have yet to complete, by the kernel's helpers: if it has, the
/// port is not in it. The address is yet to be written, where nothing makes up for it.
#[inline(always)]
pub(crate) fn mend_slowly(
    mut skb: Skb,
    offset: u32,
    (address, port): (u32, Option<u32>),
    optional: bool,
    v6: bool,
) -> Option<()> {
    if let Some(port) = port {
        skb.mend(offset, port, Covered { pseudo: false, optional })?;
    }
    skb.mend(offset, address, Covered { pseudo: true, optional })?;
    if v6 {
        // The helper takes it for IPv4's, whose header has a checksum of its own.
        update_sum(skb, address);
    }
    Some(())
}

/// Adds to the sum of the whole packet that the device has made, if it has.
#[inline(always)]
pub(crate) fn update_sum(skb: Skb, difference: u32) {
    // SAFETY: takes numbers only. It fails where there is no such sum.
    _ = unsafe { bpf_csum_update(skb.0, difference) };
}

/// What stands in a checksum's place while a device has yet to complete it, as the headers are now.
#[inline(always)]
fn pseudo(parsed: &Parsed) -> u16 {
    let addresses = addresses_sum(&parsed.src, &parsed.dst);
    checksum::pseudo(addresses, parsed.protocol, parsed.end.wrapping_sub(parsed.l4))
}

/// Reads bytes of a packet, in words as far as they go: they lie at no boundary, which the processor
/// does not mind, and the compiler would.
#[inline(always)]
pub(crate) fn read<const N: usize>(from: *mut u8) -> [u8; N] {
    let mut bytes = [0; N];
    let mut done = 0;
    macro_rules! word {
        ($type:ty, $load:literal) => {
            while let Some(chunk) =
                bytes.get_mut(done..).and_then(<[u8]>::first_chunk_mut::<{ size_of::<$type>() }>)
            {
                let word: u64;
                // SAFETY: the caller has found the bytes to be there, and the verifier has seen it.
                unsafe {
                    asm!(
                        $load,
                        word = lateout(reg) word,
                        at = in(reg) from.wrapping_add(done),
                        options(readonly, nostack),
                    );
                }
                // A register holds a shorter word's bytes first.
                for (byte, from) in chunk.iter_mut().zip(word.to_le_bytes()) {
                    *byte = from;
                }
                done += size_of::<$type>();
            }
        };
    }
    word!(u64, "{word} = *(u64 *)({at} + 0)");
    word!(u32, "{word} = *(u32 *)({at} + 0)");
    word!(u16, "{word} = *(u16 *)({at} + 0)");
    word!(u8, "{word} = *(u8 *)({at} + 0)");
    bytes
}

/// Writes bytes of a packet, as above.
#[inline(always)]
pub(crate) fn write<const N: usize>(to: *mut u8, bytes: &[u8; N]) {
    let mut done = 0;
    macro_rules! word {
        ($type:ty, $store:literal) => {
            while let Some(chunk) = bytes.get(done..).and_then(<[u8]>::first_chunk) {
                let word = u64::from(<$type>::from_ne_bytes(*chunk));
                // SAFETY: as above.
                unsafe {
                    asm!(
                        $store,
                        word = in(reg) word,
                        at = in(reg) to.wrapping_add(done),
                        options(nostack),
                    );
                }
                done += size_of::<$type>();
            }
        };
    }
    word!(u64, "*(u64 *)({at} + 0) = {word}");
    word!(u32, "*(u32 *)({at} + 0) = {word}");
    word!(u16, "*(u16 *)({at} + 0) = {word}");
    word!(u8, "*(u8 *)({at} + 0) = {word}");
}
