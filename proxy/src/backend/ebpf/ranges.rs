//! Which ranges of `ENDPOINTS` are free, used, or resting before they may be used again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// Ranges of one array. The smallest one that fits is claimed; neighbours that are free grow
/// together again.
#[derive(Debug)]
pub(super) struct Ranges {
    len: u32,
    used: u32,
    /// Free ranges by base.
    free: BTreeMap<u32, u32>,
    /// The same by length, then base.
    by_length: BTreeSet<(u32, u32)>,
    /// (free from then on, base, length), in the order in which they were let go.
    resting: VecDeque<(Duration, u32, u32)>,
}

impl Ranges {
    /// All free.
    pub(super) fn new(len: u32) -> Self {
        let mut ranges = Self {
            len,
            used: 0,
            free: BTreeMap::new(),
            by_length: BTreeSet::new(),
            resting: VecDeque::new(),
        };
        ranges.insert(0, len);
        ranges
    }

    /// How many entries there are.
    pub(super) const fn len(&self) -> u32 {
        self.len
    }

    /// How many are used or resting.
    pub(super) const fn used(&self) -> u32 {
        self.used
    }

    /// Whether waiting would free something.
    pub(super) fn resting(&self) -> bool {
        !self.resting.is_empty()
    }

    /// Marks a range as used that somebody else claimed. What is not free is left as it is.
    pub(super) fn take(&mut self, base: u32, length: u32) {
        let Some((&from, &free)) = self.free.range(..=base).next_back() else { return };
        let (end, free_end) = (base.saturating_add(length), from + free);
        if length == 0 || end > free_end {
            return;
        }
        self.remove(from, free);
        self.insert(from, base - from);
        self.insert(end, free_end - end);
        self.used += length;
    }

    /// A free range of that length; `None` if there is none.
    pub(super) fn claim(&mut self, length: u32, now: Duration) -> Option<u32> {
        self.wake(now);
        let &(free, base) = self.by_length.range((length, 0)..).next()?;
        self.remove(base, free);
        self.insert(base + length, free - length);
        self.used += length;
        Some(base)
    }

    /// Lets a range go; it is free from `until` on.
    pub(super) fn rest(&mut self, base: u32, length: u32, until: Duration) {
        if length > 0 {
            self.resting.push_back((until, base, length));
        }
    }

    fn wake(&mut self, now: Duration) {
        while let Some(&(until, base, length)) = self.resting.front() {
            if until > now {
                return;
            }
            self.resting.pop_front();
            self.used = self.used.saturating_sub(length);
            self.give_back(base, length);
        }
    }

    fn give_back(&mut self, mut base: u32, mut length: u32) {
        if let Some((&before, &free)) = self.free.range(..base).next_back()
            && before + free == base
        {
            self.remove(before, free);
            (base, length) = (before, free + length);
        }
        if let Some(&free) = self.free.get(&(base + length)) {
            self.remove(base + length, free);
            length += free;
        }
        self.insert(base, length);
    }

    fn insert(&mut self, base: u32, length: u32) {
        if length > 0 {
            self.free.insert(base, length);
            self.by_length.insert((length, base));
        }
    }

    fn remove(&mut self, base: u32, length: u32) {
        self.free.remove(&base);
        self.by_length.remove(&(length, base));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(10);
    const LATER: Duration = Duration::from_secs(11);

    #[test]
    fn a_range_that_was_let_go_rests_before_it_is_claimed_again() {
        let mut ranges = Ranges::new(10);
        assert_eq!(ranges.claim(10, NOW), Some(0));
        ranges.rest(0, 10, LATER);
        assert_eq!(ranges.claim(1, NOW), None);
        assert!(ranges.resting());
        assert_eq!(ranges.claim(1, LATER), Some(0));
    }

    #[test]
    fn free_neighbours_grow_together() {
        let mut ranges = Ranges::new(9);
        for base in [0, 3, 6] {
            assert_eq!(ranges.claim(3, NOW), Some(base));
        }
        for base in [0, 6, 3] {
            ranges.rest(base, 3, NOW);
        }
        assert_eq!(ranges.claim(9, NOW), Some(0));
        assert_eq!(ranges.used(), 9);
    }

    #[test]
    fn the_smallest_range_that_fits_is_claimed() {
        let mut ranges = Ranges::new(20);
        ranges.take(4, 1);
        ranges.take(7, 3);
        // Free: 0..4, 5..7, 10..20.
        assert_eq!(ranges.claim(2, NOW), Some(5));
        assert_eq!(ranges.claim(3, NOW), Some(0));
        assert_eq!(ranges.claim(10, NOW), Some(10));
        assert_eq!(ranges.claim(2, NOW), None);
    }

    #[test]
    fn a_range_outside_of_the_array_or_taken_twice_is_ignored() {
        let mut ranges = Ranges::new(4);
        ranges.take(2, 5);
        ranges.take(0, 2);
        ranges.take(0, 2);
        assert_eq!(ranges.used(), 2);
        assert_eq!(ranges.claim(2, NOW), Some(2));
    }
}
