//! `HEADS`: where each slot's set lies. A store here is the publication.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use abi::endpoint::Head;

use crate::mapped::MappedWords;

/// The heads of all slots.
#[derive(Debug)]
pub struct Heads(MappedWords);

impl Heads {
    pub(crate) fn new(map: impl AsFd, n_slots: u32) -> io::Result<Self> {
        MappedWords::new(map, n_slots as usize).map(Self)
    }

    /// How many slots there are.
    pub fn len(&self) -> u32 {
        u32::try_from(self.0.words().len()).unwrap_or(u32::MAX)
    }

    /// Whether there are none, which no loaded dataplane has.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What a slot shows; an empty head for a slot that does not exist.
    pub fn get(&self, slot: u32) -> Head {
        self.0
            .words()
            .get(slot as usize)
            .map_or_else(Head::default, |word| Head(word.load(Ordering::Acquire)))
    }

    /// Publishes: from here on, calls see this set. Everything written to `ENDPOINTS` before is
    /// visible to whoever sees the head.
    pub fn publish(&self, slot: u32, head: Head) {
        if let Some(word) = self.0.words().get(slot as usize) {
            word.store(head.0, Ordering::Release);
        }
    }
}
