//! `ENDPOINTS`: the ranges of which are sets.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};

use abi::addr::Addr;
use abi::endpoint::Head;

use crate::mapped::MappedWords;

/// Words of one `abi::endpoint::Endpoint`.
const WORDS: usize = size_of::<abi::endpoint::Endpoint>() / size_of::<u64>();

/// The entries of all sets.
#[derive(Debug)]
pub struct Endpoints(MappedWords);

impl Endpoints {
    pub(crate) fn new(map: impl AsFd, n_endpoints: u32) -> io::Result<Self> {
        MappedWords::new(map, n_endpoints as usize * WORDS).map(Self)
    }

    /// How many entries there are.
    pub fn len(&self) -> u32 {
        u32::try_from(self.0.words().len() / WORDS).unwrap_or(u32::MAX)
    }

    /// Whether there are none, which no loaded dataplane has.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes a set to its range, which no head shows any more or yet. An entry bears no generation
    /// while it is being written, so that a program which still looks here notices.
    pub fn write(&self, head: Head, set: impl IntoIterator<Item = SocketAddr>) {
        for (address, index) in set.into_iter().take(head.length() as usize).zip(head.base()..) {
            let Some([first, second, third, fourth]) = self.entry(index) else { return };
            let [a, b, c, d] = Addr::from(address.ip()).words;
            let port = u64::from(address.port().to_be());
            third.store(port, Ordering::Release);
            first.store(pair(a, b), Ordering::Release);
            second.store(pair(c, d), Ordering::Release);
            fourth.store(0, Ordering::Release);
            third.store(port | u64::from(head.generation()) << 32, Ordering::Release);
        }
    }

    /// Reads a set back; entries that do not bear its generation are missing.
    pub fn read(&self, head: Head) -> Vec<SocketAddr> {
        (head.base()..head.base().saturating_add(head.length()))
            .filter_map(|index| {
                let [first, second, third, _] =
                    self.entry(index)?.each_ref().map(|word| word.load(Ordering::Acquire));
                if third >> 32 != u64::from(head.generation()) {
                    return None;
                }
                let ((a, b), (c, d)) = (unpair(first), unpair(second));
                #[expect(clippy::cast_possible_truncation, reason = "the low half of the word")]
                let port = u16::from_be(third as u16);
                Some(SocketAddr::new(Addr { words: [a, b, c, d] }.into(), port))
            })
            .collect()
    }

    fn entry(&self, index: u32) -> Option<&[AtomicU64; WORDS]> {
        let first = index as usize * WORDS;
        self.0.words().get(first..first + WORDS)?.first_chunk()
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
