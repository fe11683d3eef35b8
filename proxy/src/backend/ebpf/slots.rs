//! Which slots of `HEADS` are free.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

/// Slots of one array: those never used, those taken over or given back, those resting.
#[derive(Debug)]
pub(super) struct Slots {
    len: u32,
    /// Every slot from here on was never used.
    next: u32,
    /// Slots below `next` that are free.
    free: BTreeSet<u32>,
    resting: VecDeque<(Duration, u32)>,
}

impl Slots {
    /// All free.
    pub(super) const fn new(len: u32) -> Self {
        Self { len, next: 0, free: BTreeSet::new(), resting: VecDeque::new() }
    }

    /// How many there are.
    pub(super) const fn len(&self) -> u32 {
        self.len
    }

    /// Whether waiting would free one.
    pub(super) fn resting(&self) -> bool {
        !self.resting.is_empty()
    }

    /// Marks a slot as used that somebody else claimed.
    pub(super) fn take(&mut self, slot: u32) {
        if slot < self.next {
            self.free.remove(&slot);
            return;
        }
        self.free.extend(self.next..slot);
        self.next = slot.saturating_add(1);
    }

    /// Slots that somebody else knew and this does not use rest, as long as they would have, or until
    /// then.
    pub(super) fn heed(&mut self, former: &Self, used: impl Iterator<Item = u32>, until: Duration) {
        let resting = former.resting.iter().map(|(_, slot)| *slot);
        let known: BTreeSet<u32> = used.chain(resting).collect();
        for slot in known {
            if slot >= self.next {
                self.take(slot);
                self.rest(slot, until);
            } else if self.free.remove(&slot) {
                self.rest(slot, until);
            }
        }
    }

    /// A free slot; `None` if there is none.
    pub(super) fn claim(&mut self, now: Duration) -> Option<u32> {
        while let Some(&(until, slot)) = self.resting.front() {
            if until > now {
                break;
            }
            self.resting.pop_front();
            self.free.insert(slot);
        }
        self.free.pop_first().or_else(|| {
            let slot = self.next;
            (slot < self.len).then(|| {
                self.next += 1;
                slot
            })
        })
    }

    /// Lets a slot go; it is free from `until` on.
    pub(super) fn rest(&mut self, slot: u32, until: Duration) {
        self.resting.push_back((until, slot));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(10);
    const LATER: Duration = Duration::from_secs(11);

    #[test]
    fn slots_are_claimed_once_and_rest_before_they_come_again() {
        let mut slots = Slots::new(2);
        assert_eq!(slots.claim(NOW), Some(0));
        assert_eq!(slots.claim(NOW), Some(1));
        assert_eq!(slots.claim(NOW), None);
        slots.rest(0, LATER);
        assert_eq!(slots.claim(NOW), None);
        assert_eq!(slots.claim(LATER), Some(0));
    }

    #[test]
    fn slots_that_a_former_process_uses_are_not_claimed() {
        let mut slots = Slots::new(5);
        slots.take(3);
        slots.take(1);
        let claimed: Vec<_> = std::iter::from_fn(|| slots.claim(NOW)).collect();
        assert_eq!(claimed, [0, 2, 4]);
    }
}
