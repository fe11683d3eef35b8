//! `SLOTS`: what becomes of new connections to each frontend. A store of a head is the publication.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};

use abi::endpoint::Head;
use abi::slot::{N_HEADS, Rules, SERVING, Slot};

use crate::mapped::MappedEntries;

/// Words of one [`Slot`].
const WORDS: usize = size_of::<Slot>() / size_of::<u64>();

/// All slots.
#[derive(Debug)]
pub struct Slots(MappedEntries<WORDS>);

impl Slots {
    pub(crate) fn new(map: impl AsFd, n_slots: u32) -> io::Result<Self> {
        MappedEntries::new(map, n_slots).map(Self)
    }

    /// How many slots there are.
    pub const fn len(&self) -> u32 {
        self.0.len()
    }

    /// Whether there are none, which no loaded dataplane has.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Makes sure that a slot can be filled.
    ///
    /// # Errors
    /// There is no such slot, or the kernel does not map it.
    pub fn reach(&self, slot: u32) -> io::Result<()> {
        self.0.reach(slot).map(drop)
    }

    /// What a slot shows; an empty one where there is no such slot.
    pub fn get(&self, slot: u32) -> Slot {
        let Some(words) = self.words(slot) else { return Slot::default() };
        let [a, b, c, d, rules, ..] = words.each_ref().map(|word| word.load(Ordering::Acquire));
        Slot { heads: [a, b, c, d].map(Head), rules: Rules(rules), pad: [0; 3] }
    }

    /// Shows another route or set: from here on, calls and packets see it. Everything written to
    /// `ENDPOINTS` before is visible to whoever sees the head. `index` is below [`N_HEADS`].
    pub fn publish(&self, slot: u32, index: usize, head: Head) {
        if let Some(word) = self.words(slot).and_then(|words| words.get(..N_HEADS)?.get(index)) {
            word.store(head.0, Ordering::Release);
        }
    }

    /// Gives a slot that is in use the same rules with another affinity.
    pub fn set_rules(&self, slot: u32, rules: Rules) {
        if let Some([.., word, _, _, _]) = self.words(slot) {
            word.store(rules.0, Ordering::Release);
        }
    }

    /// Fills a slot to which no key leads yet, or any more.
    pub fn fill(&self, slot: u32, content: &Slot) {
        for (index, head) in content.heads.into_iter().enumerate() {
            self.publish(slot, index, head);
        }
        self.set_rules(slot, content.rules);
    }

    /// Lets a slot go: from here on none of its UDP flows is good. Those who make new connections
    /// may still be reading the rest.
    pub fn let_go(&self, slot: u32) {
        self.publish(slot, SERVING, Head::REJECT);
    }

    fn words(&self, slot: u32) -> Option<&[AtomicU64; WORDS]> {
        self.0.get(slot)
    }
}
