//! `ENDPOINTS`: the ranges of which are sets.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};

use abi::addr::Addr;
use abi::endpoint::{Endpoint, Head};

use crate::mapped::MappedEntries;

/// Words of one `abi::endpoint::Endpoint`.
const WORDS: usize = size_of::<Endpoint>() / size_of::<u64>();

/// The entries of all sets.
#[derive(Debug)]
pub struct Endpoints(MappedEntries<WORDS>);

/// One endpoint of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Where it listens.
    pub address: SocketAddr,
    /// What it is counted by.
    pub id: u32,
    /// Whether it is on this node.
    pub local: bool,
}

impl Endpoints {
    pub(crate) fn new(map: impl AsFd, n_endpoints: u32) -> io::Result<Self> {
        MappedEntries::new(map, n_endpoints).map(Self)
    }

    /// How many entries there are.
    pub const fn len(&self) -> u32 {
        self.0.len()
    }

    /// Whether there are none, which no loaded dataplane has.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Makes sure that a range can be written.
    ///
    /// # Errors
    /// It is not in the map, or the kernel does not map it.
    pub fn reach(&self, base: u32, length: u32) -> io::Result<()> {
        (base..base.saturating_add(length)).try_for_each(|index| self.0.reach(index).map(drop))
    }

    /// Writes a set to its range, which no head shows any more or yet. An entry bears no generation
    /// while it is being written, so that a program which still looks here notices.
    pub fn write(&self, head: Head, set: impl IntoIterator<Item = Entry>) {
        for (entry, index) in set.into_iter().take(head.length() as usize).zip(head.base()..) {
            let Some([first, second, third, fourth]) = self.words(index) else { return };
            let [a, b, c, d] = Addr::from(entry.address.ip()).words;
            let port = u64::from(entry.address.port().to_be());
            let flags = if entry.local { Endpoint::LOCAL } else { 0 };
            third.store(port, Ordering::Release);
            first.store(pair(a, b), Ordering::Release);
            second.store(pair(c, d), Ordering::Release);
            fourth.store(pair(entry.id, flags), Ordering::Release);
            third.store(port | u64::from(head.generation()) << 32, Ordering::Release);
        }
    }

    /// Reads a set back; entries that do not bear its generation are missing.
    pub fn read(&self, head: Head) -> impl Iterator<Item = Entry> + '_ {
        (head.base()..head.base().saturating_add(head.length())).filter_map(move |index| {
            let [first, second, third, fourth] =
                self.words(index)?.each_ref().map(|word| word.load(Ordering::Acquire));
            if third >> 32 != u64::from(head.generation()) {
                return None;
            }
            let ((a, b), (c, d)) = (unpair(first), unpair(second));
            let (id, flags) = unpair(fourth);
            #[expect(clippy::cast_possible_truncation, reason = "the low half of the word")]
            let port = u16::from_be(third as u16);
            let address = SocketAddr::new(Addr { words: [a, b, c, d] }.into(), port);
            Some(Entry { address, id, local: flags & Endpoint::LOCAL != 0 })
        })
    }

    fn words(&self, index: u32) -> Option<&[AtomicU64; WORDS]> {
        self.0.get(index)
    }
}

/// Two words as they stand in memory, on a little-endian machine (the only kind that
/// `bpfel-unknown-none` serves).
fn pair(first: u32, second: u32) -> u64 {
    u64::from(first) | u64::from(second) << 32
}

#[expect(clippy::cast_possible_truncation, reason = "the two halves of the word")]
fn unpair(word: u64) -> (u32, u32) {
    (word as u32, (word >> 32) as u32)
}

#[cfg(not(target_endian = "little"))]
compile_error!("the eBPF object is little-endian");
