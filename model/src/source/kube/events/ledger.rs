//! What was told, what is to be told, and when. Knows the time only by what it is given.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::notice::Notice;

/// So many may be told at once; after them, one in [`PACE`].
const BURST: u32 = 25;
const PACE: Duration = Duration::from_secs(1);
/// A problem that goes and comes back is told again after this long, not sooner.
const AGAIN_AFTER: Duration = Duration::from_secs(300);
/// API servers keep an Event for an hour; one that is still true is told again before.
const STILL_AFTER: Duration = Duration::from_secs(1800);
/// What has gone is forgotten after this long.
const FORGET_AFTER: Duration = Duration::from_secs(3600);
/// Of one object, so many are told until some are forgotten.
const OF_ONE_OBJECT: usize = 8;

/// What was told, and what is to be told.
#[derive(Debug)]
pub(super) struct Ledger {
    wanted: Arc<BTreeSet<Notice>>,
    told: BTreeMap<Notice, Told>,
    /// When the next may be told if all that may be told at once had been told.
    paced: Instant,
    /// Nothing is told before.
    held: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Told {
    at: Instant,
    count: u32,
    state: State,
}

/// What became of a problem since it was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Still,
    Gone,
    Back,
}

impl Ledger {
    pub(super) fn new(now: Instant) -> Self {
        Self { wanted: Arc::default(), told: BTreeMap::new(), paced: now, held: now }
    }

    /// These are all the problems there are.
    pub(super) fn set(&mut self, wanted: Arc<BTreeSet<Notice>>, now: Instant) {
        self.told.retain(|notice, told| {
            told.state = match (wanted.contains(notice), told.state) {
                (false, _) => State::Gone,
                (true, State::Gone) => State::Back,
                (true, state) => state,
            };
            told.state != State::Gone || now < told.at + FORGET_AFTER
        });
        self.wanted = wanted;
    }

    /// What is told next, when, and how often it will have been told then.
    pub(super) fn next(&self) -> Option<(Instant, Notice, u32)> {
        let free = (self.paced.checked_sub(PACE * (BURST - 1))).unwrap_or(self.paced);
        let free = free.max(self.held);
        let due = |notice: &Notice| match self.told.get(notice) {
            None => (self.of_object(notice) < OF_ONE_OBJECT).then_some((free, 1)),
            Some(told) => {
                let after = if told.state == State::Back { AGAIN_AFTER } else { STILL_AFTER };
                Some((free.max(told.at + after), told.count.saturating_add(1)))
            }
        };
        let dues = self.wanted.iter().filter_map(|notice| Some((due(notice)?, notice)));
        let ((at, count), notice) = dues.min_by_key(|((at, _), _)| *at)?;
        Some((at, notice.clone(), count))
    }

    /// How many problems of the same object were told.
    fn of_object(&self, notice: &Notice) -> usize {
        self.told.keys().filter(|told| told.problem.object == notice.problem.object).count()
    }

    /// It was told.
    pub(super) fn told(&mut self, notice: Notice, now: Instant) {
        self.paced = self.paced.max(now) + PACE;
        let count = self.told.get(&notice).map_or(0, |told| told.count).saturating_add(1);
        let state = if self.wanted.contains(&notice) { State::Still } else { State::Gone };
        self.told.insert(notice, Told { at: now, count, state });
    }

    /// Nothing can be told before then.
    pub(super) const fn hold(&mut self, until: Instant) {
        self.held = until;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notice::Reason;
    use crate::problem::Problem;

    fn notice(object: &str, what: &str) -> Notice {
        Notice { problem: Problem::new(object, "spec", what), reason: Reason::FailedToProxy }
    }

    fn set(notices: &[&Notice]) -> Arc<BTreeSet<Notice>> {
        Arc::new(notices.iter().map(|notice| (*notice).clone()).collect())
    }

    /// Tells what is due until `end`: how long after `start` each was told, and the count.
    fn tell(ledger: &mut Ledger, start: Instant, end: Instant) -> Vec<(u64, String, u32)> {
        let mut said = Vec::new();
        let mut now = start;
        while let Some((at, notice, count)) = ledger.next().filter(|(at, ..)| *at <= end) {
            now = now.max(at);
            said.push(((now - start).as_secs(), notice.problem.reason.to_string(), count));
            ledger.told(notice, now);
        }
        said
    }

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_problem_is_told_once_and_again_only_while_it_lasts() {
        let start = Instant::now();
        let mut ledger = Ledger::new(start);
        let a = notice("Service shop/a", "bad");
        ledger.set(set(&[&a]), start);
        let said = tell(&mut ledger, start, start + 61 * MINUTE);
        let expected = [(0, 1), (30 * 60, 2), (60 * 60, 3)].map(|(s, n)| (s, "bad".to_owned(), n));
        assert_eq!(said, expected);
        ledger.set(set(&[]), start + 62 * MINUTE);
        assert!(ledger.next().is_none());
    }

    #[test]
    fn one_that_flaps_is_told_every_five_minutes_at_most() {
        let start = Instant::now();
        let mut ledger = Ledger::new(start);
        let a = notice("Service shop/a", "bad");
        let mut said = 0;
        for second in 0..900 {
            let now = start + Duration::from_secs(second);
            let there: &[&Notice] = if second % 2 == 0 { &[&a] } else { &[] };
            ledger.set(set(there), now);
            if let Some((_, notice, _)) = ledger.next().filter(|(at, ..)| *at <= now) {
                ledger.told(notice, now);
                said += 1;
            }
        }
        assert_eq!(said, 3);
        ledger.set(set(&[]), start + Duration::from_secs(900));
        ledger.set(set(&[]), start + Duration::from_secs(900) + FORGET_AFTER);
        assert!(ledger.told.is_empty());
    }

    #[test]
    fn many_at_once_are_told_at_a_pace() {
        let start = Instant::now();
        let mut ledger = Ledger::new(start);
        let many: Vec<Notice> =
            (0..100).map(|idx| notice(&format!("Service shop/{idx}"), "bad")).collect();
        ledger.set(set(&many.iter().collect::<Vec<_>>()), start);
        let said = tell(&mut ledger, start, start + 2 * MINUTE);
        assert_eq!(said.len(), 100);
        assert_eq!(said.iter().filter(|(second, ..)| *second == 0).count(), 25);
        assert_eq!(said.last().map(|(second, ..)| *second), Some(75));
    }

    #[test]
    fn one_object_does_not_crowd_the_others_out() {
        let start = Instant::now();
        let mut ledger = Ledger::new(start);
        let mut many: Vec<Notice> =
            (0..20).map(|idx| notice("Service shop/a", &format!("bad {idx}"))).collect();
        many.push(notice("Service shop/b", "other"));
        ledger.set(set(&many.iter().collect::<Vec<_>>()), start);
        let said = tell(&mut ledger, start, start + MINUTE);
        assert_eq!(said.len(), OF_ONE_OBJECT + 1);
        assert!(said.iter().any(|(_, what, _)| what == "other"));
    }

    #[test]
    fn what_cannot_be_told_waits() {
        let start = Instant::now();
        let mut ledger = Ledger::new(start);
        ledger.set(set(&[&notice("Service shop/a", "bad")]), start);
        ledger.hold(start + MINUTE);
        assert_eq!(ledger.next().map(|(at, ..)| at), Some(start + MINUTE));
    }
}
