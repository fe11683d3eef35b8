//! `FILTER`: marks of all addresses that packets of ours have, so that others cost nothing.
//!
//! ```text
//!  begin ─▶ mark what stands in the other maps ─▶ trust ─▶ a round every few seconds
//!           what comes is marked before it stands there
//! ```

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use abi::addr::Addr;
use abi::filter::{self, FLOW_BYTES, N_ROUNDS, SERVICE_BITS, V4_BLOCK_BITS, V6_BLOCK_BITS};
use abi::flow::{Record, Tuple};

use crate::mapped::MappedWords;
use crate::sys;

/// In front of the marks.
const HEADER: usize = 2 * size_of::<u64>();
const SERVICES: usize = SERVICE_BITS / 8;

/// Ranges of more blocks mark everything.
const MOST_BLOCKS: u32 = 4096;

/// The marks, for whoever writes what packets are looked up in.
#[derive(Clone, Debug)]
pub struct Filter(Arc<MappedWords>);

impl Filter {
    pub(crate) fn new(map: impl AsFd) -> io::Result<Self> {
        let n_words = size_of::<filter::Filter>() / size_of::<u64>();
        MappedWords::new(map, n_words).map(|words| Self(Arc::new(words)))
    }

    /// From here on no program trusts what is marked. What a former process marked is forgotten, but for
    /// connections, whose marks end with the rounds.
    pub(crate) fn begin(&self) {
        self.distrust();
        // A program that still trusts must not miss any.
        if sys::wait_for_programs().is_ok() {
            self.forget_services();
        }
    }

    fn distrust(&self) {
        if let Some([trusted, round]) = self.header() {
            trusted.store(0, Ordering::SeqCst);
            if round.load(Ordering::SeqCst) == 0 {
                round.store(1, Ordering::SeqCst);
            }
        }
    }

    fn forget_services(&self) {
        self.services().iter().for_each(|byte| byte.store(0, Ordering::Relaxed));
    }

    /// Forgets all marks where no program runs, and nobody trusts them any more.
    pub fn forget(&self) {
        self.distrust();
        self.forget_services();
        self.flows().iter().for_each(|byte| byte.store(0, Ordering::Relaxed));
    }

    /// From here on what is not marked is nobody's: all that stands in the other maps is marked.
    pub fn trust(&self) {
        if let Some([trusted, _]) = self.header() {
            trusted.store(1, Ordering::SeqCst);
        }
    }

    /// Marks an address of Services or of the node. Says whether it was not.
    pub fn mark_service(&self, addr: &Addr) -> bool {
        self.set(filter::address(addr))
    }

    /// Marks the blocks in which a range is, of which `bits` bits of an address count. Says whether one
    /// was not.
    pub fn mark_range(&self, bits: u32, addr: &Addr) -> bool {
        let block_bits = if addr.is_v4() { 96 + V4_BLOCK_BITS } else { V6_BLOCK_BITS };
        let n_blocks = 1_u32.checked_shl(block_bits.saturating_sub(bits)).unwrap_or(u32::MAX);
        if n_blocks > MOST_BLOCKS {
            return self.mark_everything();
        }
        let first = u128::from_be_bytes(addr.bytes());
        let news = (0..n_blocks).filter(|block| {
            let addr = first.wrapping_add(u128::from(*block) << (Addr::BITS - block_bits));
            self.set(filter::block(&Addr::from_bytes(addr.to_be_bytes())))
        });
        news.count() > 0
    }

    fn mark_everything(&self) -> bool {
        let news =
            self.services().iter().filter(|byte| byte.swap(u8::MAX, Ordering::SeqCst) != u8::MAX);
        news.count() > 0
    }

    fn set(&self, place: filter::Place) -> bool {
        let (byte, bit) = place.service();
        let Some(byte) = self.services().get(byte) else { return false };
        byte.fetch_or(1 << bit, Ordering::SeqCst) >> bit & 1 == 0
    }

    /// Begins a round: marks are of it from here on.
    pub(crate) fn begin_round(&self) {
        if let Some([_, round]) = self.header() {
            round.store((self.round() % N_ROUNDS + 1).into(), Ordering::SeqCst);
        }
    }

    /// Marks the addresses of a connection.
    pub fn mark_flow(&self, sent: &Tuple, record: &Record) {
        let snat = (record.snat_port != 0).then_some(&record.snat);
        for addr in [&sent.dst, &record.endpoint].into_iter().chain(snat) {
            if let Some(byte) = self.flows().get(filter::address(addr).flow()) {
                byte.store(self.round(), Ordering::SeqCst);
            }
        }
    }

    /// Ends a round in which all connections were marked: takes the marks away that are of the round
    /// before the last. Those of the last may be of a connection that was opened behind the back of
    /// who marked them.
    pub(crate) fn end_round(&self) {
        let oldest = self.round() % N_ROUNDS + 1;
        for byte in self.flows() {
            if byte.load(Ordering::Relaxed) == oldest {
                // A program may mark it at this moment.
                _ = byte.compare_exchange(oldest, 0, Ordering::SeqCst, Ordering::Relaxed);
            }
        }
    }

    /// The round, from 1 to [`N_ROUNDS`].
    fn round(&self) -> u8 {
        let round = self.header().map_or(1, |[_, round]| round.load(Ordering::SeqCst));
        u8::try_from(round).unwrap_or(1).clamp(1, N_ROUNDS)
    }

    fn header(&self) -> Option<&[AtomicU64; 2]> {
        self.0.words().first_chunk()
    }

    fn services(&self) -> &[AtomicU8] {
        self.0.bytes().get(HEADER..HEADER + SERVICES).unwrap_or_default()
    }

    fn flows(&self) -> &[AtomicU8] {
        const FIRST: usize = HEADER + SERVICES;
        self.0.bytes().get(FIRST..FIRST + FLOW_BYTES).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::net::IpAddr;

    use nix::sys::memfd::{MFdFlags, memfd_create};

    use super::*;

    /// Marks in memory that is no map.
    fn filter() -> Filter {
        let file = File::from(memfd_create("filter", MFdFlags::empty()).unwrap());
        file.set_len(size_of::<filter::Filter>() as u64).unwrap();
        let filter = Filter::new(&file).unwrap();
        filter.forget();
        filter
    }

    fn addr(text: &str) -> Addr {
        text.parse::<IpAddr>().unwrap().into()
    }

    fn is_set(filter: &Filter, place: filter::Place) -> bool {
        let (byte, bit) = place.service();
        filter.services()[byte].load(Ordering::SeqCst) >> bit & 1 != 0
    }

    fn mark_of(filter: &Filter, addr: &Addr) -> u8 {
        filter.flows()[filter::address(addr).flow()].load(Ordering::SeqCst)
    }

    #[test]
    fn an_address_is_marked_once_and_forgotten_at_the_next_begin() {
        let filter = filter();
        let (vip, other) = (addr("10.96.0.10"), addr("10.96.0.11"));
        assert!(filter.mark_service(&vip) && !filter.mark_service(&vip));
        assert!(is_set(&filter, filter::address(&vip)));
        assert!(!is_set(&filter, filter::address(&other)));
        filter.trust();
        filter.begin();
        assert!(filter.mark_service(&vip));
    }

    #[test]
    fn a_range_marks_every_block_that_it_touches() {
        for (bits, first, within, beyond) in [
            (96 + 24, "10.96.3.0", ["10.96.0.1", "10.96.255.1"], "10.97.0.1"),
            (96 + 12, "10.96.0.0", ["10.96.0.1", "10.111.255.1"], "10.112.0.1"),
            (108, "fd00:10:96::", ["fd00:10:96::1", "fd00:10:96:0:f::1"], "fd00:10:96:1::1"),
            (56, "fd00:1::", ["fd00:1::1", "fd00:1:0:ff::1"], "fd00:1:0:100::1"),
        ] {
            let filter = filter();
            assert!(filter.mark_range(bits, &addr(first)));
            assert!(!filter.mark_range(bits, &addr(first)));
            for address in within {
                assert!(is_set(&filter, filter::block(&addr(address))), "{first} {address}");
            }
            assert!(!is_set(&filter, filter::block(&addr(beyond))), "{first} {beyond}");
        }
    }

    #[test]
    fn a_range_of_too_many_blocks_marks_everything() {
        for (bits, first) in [(96, "0.0.0.0"), (32, "fd00::"), (0, "::")] {
            let filter = filter();
            assert!(filter.mark_range(bits, &addr(first)));
            assert!(is_set(&filter, filter::address(&addr("192.0.2.1"))));
            assert!(!filter.mark_range(bits, &addr(first)));
        }
    }

    #[test]
    fn marks_of_a_connection_last_as_long_as_it_and_a_round_more() {
        let filter = filter();
        let (vip, endpoint, snat) = (addr("10.96.0.10"), addr("10.0.0.2"), addr("192.0.2.1"));
        let sent = Tuple { dst: vip, ..Tuple::default() };
        let record = Record { endpoint, snat, snat_port: 1, ..Record::default() };
        let marked = || [vip, endpoint, snat].map(|addr| mark_of(&filter, &addr) != 0);
        filter.mark_flow(&sent, &record);
        for _ in 0..5 {
            filter.begin_round();
            filter.mark_flow(&sent, &record);
            filter.end_round();
            assert_eq!(marked(), [true; 3]);
        }
        // It has ended.
        filter.begin_round();
        filter.end_round();
        assert_eq!(marked(), [true; 3]);
        filter.begin_round();
        filter.end_round();
        assert_eq!(marked(), [false; 3]);
    }

    #[test]
    fn a_connection_without_a_masquerade_marks_no_source() {
        let filter = filter();
        let endpoint = addr("10.0.0.2");
        filter.mark_flow(&Tuple::default(), &Record { endpoint, ..Record::default() });
        assert_eq!(mark_of(&filter, &endpoint), 1);
        assert_eq!(mark_of(&filter, &Addr::from_v4(0)), 0);
    }
}
