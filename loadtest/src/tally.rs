//! What came of a slice of load: latencies, errors by kind, who answered. `[pure]`

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use crate::histogram::{Latencies, Sparse};

/// The grain of [`Tally::hits`], in nanoseconds.
pub const GRAIN: u64 = 100_000;

/// What came of a slice.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// When the slice began, on the monotonic clock.
    pub begin: u64,
    /// When its last request had ended.
    pub end: u64,
    /// Requests that were answered.
    pub n_answered: u64,
    /// The latencies of those, and of those whose time was over, with the time they were given.
    pub latencies: Sparse,
    /// The others, by what went wrong.
    pub errors: BTreeMap<String, u64>,
    /// Who answered.
    pub endpoints: BTreeMap<String, Hits>,
    /// When requests began that an endpoint answered, and how many: by the grain, if asked for.
    pub hits: Vec<(u64, String, u64)>,
    /// Segments sent again on connections that are kept (`TCP_INFO`).
    pub retransmitted: u64,
    /// Segments sent again in the whole network namespace meanwhile.
    pub retransmitted_around: u64,
    /// The latest that a request was sent after it was due although there was a free place.
    pub latest: u64,
    /// The longest that a thread of the generator stood still.
    pub longest_pause: u64,
    /// Nanoseconds that the generator spent on a processor, without [`Tally::awake`].
    pub cpu: u64,
    /// Nanoseconds that it spent there waiting for answers.
    pub awake: u64,
}

/// What an endpoint got.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hits {
    /// Connections (for UDP, sockets) whose first answer it gave.
    pub n_connections: u64,
    /// Requests that it answered.
    pub n_requests: u64,
}

impl Tally {
    /// How many went wrong.
    #[must_use]
    pub fn n_failed(&self) -> u64 {
        self.errors.values().sum()
    }

    /// Adds what another thread has done in the same slice.
    pub fn add(&mut self, other: Self) {
        self.begin = if self.begin == 0 { other.begin } else { self.begin.min(other.begin) };
        self.end = self.end.max(other.end);
        self.n_answered += other.n_answered;
        let mut latencies = Latencies::new();
        latencies.add(&self.latencies);
        latencies.add(&other.latencies);
        self.latencies = latencies.sparse();
        for (error, n) in other.errors {
            *self.errors.entry(error).or_default() += n;
        }
        for (name, hits) in other.endpoints {
            let sum = self.endpoints.entry(name).or_default();
            sum.n_connections += hits.n_connections;
            sum.n_requests += hits.n_requests;
        }
        self.hits.extend(other.hits);
        self.retransmitted += other.retransmitted;
        self.retransmitted_around += other.retransmitted_around;
        self.latest = self.latest.max(other.latest);
        self.longest_pause = self.longest_pause.max(other.longest_pause);
        self.cpu += other.cpu;
        self.awake += other.awake;
    }
}

/// Counts while a slice runs.
#[derive(Debug, Default)]
pub(crate) struct Counter {
    latencies: Latencies,
    n_answered: u64,
    errors: BTreeMap<String, u64>,
    names: Names,
    hits: Option<BTreeMap<(u64, usize), u64>>,
    pub(crate) retransmitted: u64,
    pub(crate) latest: u64,
    pub(crate) longest_pause: u64,
    pub(crate) awake: u64,
}

/// Endpoints by number, because a name is looked up for every request.
#[derive(Debug, Default)]
struct Names {
    numbers: HashMap<Vec<u8>, usize>,
    hits: Vec<Hits>,
}

impl Counter {
    /// Forgets everything, and keeps the times of hits if asked to.
    pub(crate) fn clear(&mut self, keeps_hits: bool) {
        self.latencies.clear();
        self.n_answered = 0;
        self.errors.clear();
        self.names.hits.fill(Hits::default());
        self.hits = keeps_hits.then(BTreeMap::new);
        (self.retransmitted, self.latest) = (0, 0);
        (self.longest_pause, self.awake) = (0, 0);
    }

    /// An answer, from whom, and whether it is the connection's first.
    pub(crate) fn answered(&mut self, took: u64, began: u64, name: Option<&[u8]>, is_first: bool) {
        self.latencies.record(took);
        self.n_answered += 1;
        let Some(number) = name.map(|name| self.names.number(name)) else { return };
        if let Some(hits) = self.names.hits.get_mut(number) {
            hits.n_requests += 1;
            hits.n_connections += u64::from(is_first);
        }
        if let Some(hits) = &mut self.hits {
            *hits.entry((began / GRAIN * GRAIN, number)).or_default() += 1;
        }
    }

    /// A request that went wrong.
    pub(crate) fn failed(&mut self, error: String) {
        *self.errors.entry(error).or_default() += 1;
    }

    /// A request whose time was over, which is a latency as well: of at least this.
    pub(crate) fn timed_out(&mut self, took: u64) {
        self.latencies.record(took);
        self.failed("timed out".to_owned());
    }

    /// What there is, for the slice from `begin` to `end`.
    pub(crate) fn tally(&self, begin: u64, end: u64) -> Tally {
        let name_of: HashMap<usize, String> = self
            .names
            .numbers
            .iter()
            .map(|(name, number)| (*number, String::from_utf8_lossy(name).into_owned()))
            .collect();
        let named = |number: &usize| name_of.get(number).cloned().unwrap_or_default();
        let endpoints = self.names.hits.iter().enumerate().filter(|(_, it)| it.n_requests > 0);
        let hits = self.hits.iter().flatten();
        Tally {
            begin,
            end,
            n_answered: self.n_answered,
            latencies: self.latencies.sparse(),
            errors: self.errors.clone(),
            endpoints: endpoints.map(|(number, hits)| (named(&number), *hits)).collect(),
            hits: hits.map(|((at, number), n)| (*at, named(number), *n)).collect(),
            retransmitted: self.retransmitted,
            latest: self.latest,
            longest_pause: self.longest_pause,
            awake: self.awake,
            ..Tally::default()
        }
    }
}

impl Names {
    fn number(&mut self, name: &[u8]) -> usize {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        let number = self.hits.len();
        self.numbers.insert(name.to_owned(), number);
        self.hits.push(Hits::default());
        number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_add_up() {
        let mut counter = Counter::default();
        counter.clear(true);
        counter.answered(1_000, 250_000, Some(b"web-1"), true);
        counter.answered(2_000, 290_000, Some(b"web-1"), false);
        counter.answered(3_000, 310_000, None, true);
        counter.timed_out(5_000_000);
        let mut sum = counter.tally(10, 20);
        sum.add(counter.tally(5, 15));
        assert_eq!((sum.begin, sum.end, sum.n_answered, sum.n_failed()), (5, 20, 6, 2));
        assert_eq!(sum.endpoints["web-1"], Hits { n_connections: 2, n_requests: 4 });
        assert_eq!(sum.hits[0], (200_000, "web-1".to_owned(), 2));
        assert_eq!(sum.latencies.0.iter().map(|(_, n)| n).sum::<u64>(), 8);
        counter.clear(false);
        assert_eq!(counter.tally(0, 0), Tally::default());
    }
}
