//! Which ids are free: of Service ports and of endpoints.

use std::collections::{BTreeSet, VecDeque};

/// Ids from 1 on; zero is nobody's.
#[derive(Debug)]
pub(super) struct Ids {
    len: u32,
    /// Every id from here on was never used.
    next: u32,
    /// Those that came back, the one that came back first in front: an id is used again as late as
    /// can be.
    free: VecDeque<u32>,
}

impl Ids {
    /// Ids below `len`, of which somebody claimed some before.
    pub(super) fn adopt(len: u32, used: &BTreeSet<u32>) -> Self {
        // What is beyond was not claimed here: somebody else wrote it.
        let next = used.range(..len).next_back().map_or(1, |last| last.saturating_add(1));
        let free = (1..next).filter(|id| !used.contains(id)).collect();
        Self { len, next, free }
    }

    /// A free id; `None` if there is none.
    pub(super) fn claim(&mut self) -> Option<u32> {
        if self.next < self.len {
            self.next += 1;
            return Some(self.next - 1);
        }
        self.free.pop_front()
    }

    /// Gives an id back.
    pub(super) fn release(&mut self, id: u32) {
        if id != 0 {
            self.free.push_back(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_come_again_as_late_as_can_be() {
        let mut ids = Ids::adopt(4, &BTreeSet::new());
        assert_eq!(ids.claim(), Some(1));
        ids.release(1);
        assert_eq!([ids.claim(), ids.claim()], [Some(2), Some(3)]);
        assert_eq!([ids.claim(), ids.claim()], [Some(1), None]);
    }

    #[test]
    fn ids_that_a_former_process_uses_are_not_claimed() {
        let mut ids = Ids::adopt(6, &BTreeSet::from([2, 4]));
        let claimed: Vec<_> = std::iter::from_fn(|| ids.claim()).collect();
        assert_eq!(claimed, [5, 1, 3]);
        ids.release(0);
        assert_eq!(ids.claim(), None, "zero is nobody's");
    }
}
