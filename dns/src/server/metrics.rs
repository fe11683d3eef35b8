//! What is counted, under the names that CoreDNS's dashboards ask for.
//!
//! Each worker counts for itself, in memory that no other writes; who reads them adds them up.

mod page;

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::message::{Drop, Rcode, RecordType};
use crate::respond::{Reply, Transport};

/// Every worker's counters.
#[derive(Debug, Default)]
pub struct Metrics {
    workers: Mutex<Vec<Arc<Counters>>>,
    /// Whether answers come from what an earlier process saved.
    pub(super) is_saved: AtomicU64,
    /// Changes of the cluster that answers took up.
    pub(super) views: Counter,
    /// Names that waited for their addresses to be routed.
    pub(super) held: Counter,
    /// Those that were told although their addresses were not routed.
    pub(super) overdue: Counter,
}

/// A counter with one writer.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    /// Adds. Not for two threads at a time: a plain load and store, where an atomic addition would
    /// lock the line.
    pub(super) fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What one worker counts.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Counters {
    udp: OfTransport,
    tcp: OfTransport,
    /// In the order of [`Rcode::ALL`].
    responses: [Counter; Rcode::ALL.len()],
    dnssec_ok: Counter,
    truncated: Counter,
    strangers: Counter,
    dropped_short: Counter,
    dropped_response: Counter,
    /// Questions that came before there were names, where others answer.
    pub(super) silent: Counter,
    pub(super) socket_errors: Counter,
    /// Connections that were turned away or ended for taking too much.
    pub(super) connections_refused: Counter,
    duration: Histogram<{ DURATIONS.len() }>,
}

/// What is counted for each transport.
#[derive(Debug, Default)]
struct OfTransport {
    v4: [Counter; TYPES.len() + 1],
    v6: [Counter; TYPES.len() + 1],
    request_size: Histogram<{ SIZES.len() }>,
    response_size: Histogram<{ SIZES.len() }>,
}

/// One answered query.
pub(super) struct Seen {
    pub(super) transport: Transport,
    pub(super) client: Option<IpAddr>,
    pub(super) n_query: usize,
    pub(super) allowed: bool,
    pub(super) reply: Reply,
}

/// The types that have a label of their own, as CoreDNS gives them; the rest are `other`.
const TYPES: [RecordType; 12] = [
    RecordType::A,
    RecordType::AAAA,
    RecordType::SRV,
    RecordType::PTR,
    RecordType::TXT,
    RecordType::CNAME,
    RecordType::NS,
    RecordType::SOA,
    RecordType::MX,
    RecordType::HTTPS,
    RecordType::ANY,
    RecordType(43),
];

/// Octets, as CoreDNS divides them.
const SIZES: [u64; 14] =
    [0, 100, 200, 300, 400, 511, 1023, 2047, 4095, 8291, 16_000, 32_000, 48_000, 64_000];

/// Microseconds. CoreDNS's begin at 250, when most answers here are long given.
const DURATIONS: [u64; 18] = [
    5, 50, 250, 500, 1000, 2000, 4000, 8000, 16_000, 32_000, 64_000, 128_000, 256_000, 512_000,
    1_024_000, 2_048_000, 4_096_000, 8_192_000,
];

/// Counts by bucket; what is above the last is in the sum and the total only.
#[derive(Debug)]
struct Histogram<const N: usize> {
    buckets: [Counter; N],
    total: Counter,
    sum: Counter,
}

impl<const N: usize> Default for Histogram<N> {
    fn default() -> Self {
        Self {
            buckets: std::array::from_fn(|_| Counter::default()),
            total: Counter::default(),
            sum: Counter::default(),
        }
    }
}

impl<const N: usize> Histogram<N> {
    fn observe(&self, bounds: &[u64; N], value: u64, times: u64) {
        let bucket = bounds.iter().zip(&self.buckets).find(|(bound, _)| value <= **bound);
        if let Some((_, bucket)) = bucket {
            bucket.add(times);
        }
        self.total.add(times);
        self.sum.add(value.wrapping_mul(times));
    }
}

impl Metrics {
    /// The counters of one more worker.
    pub(super) fn worker(&self) -> Arc<Counters> {
        let counters = Arc::new(Counters::default());
        self.workers.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&counters));
        counters
    }

    /// Everything, as Prometheus reads it.
    pub fn render(&self) -> String {
        let workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        page::render(&workers, self)
    }
}

impl Counters {
    pub(super) fn count(&self, seen: &Seen) {
        let of_transport = match seen.transport {
            Transport::Udp => &self.udp,
            Transport::Tcp => &self.tcp,
        };
        let of_family = match seen.client {
            Some(IpAddr::V6(_)) => &of_transport.v6,
            _ => &of_transport.v4,
        };
        let rtype = TYPES.iter().position(|known| Some(*known) == seen.reply.rtype);
        if let Some(counter) = of_family.get(rtype.unwrap_or(TYPES.len())) {
            counter.add(1);
        }
        of_transport.request_size.observe(&SIZES, seen.n_query as u64, 1);
        of_transport.response_size.observe(&SIZES, seen.reply.len as u64, 1);
        let mut by_code = Rcode::ALL.iter().zip(&self.responses);
        if let Some((_, counter)) = by_code.find(|(rcode, _)| **rcode == seen.reply.rcode) {
            counter.add(1);
        }
        if seen.reply.dnssec_ok {
            self.dnssec_ok.add(1);
        }
        if seen.reply.truncated {
            self.truncated.add(1);
        }
        if !seen.allowed {
            self.strangers.add(1);
        }
    }

    pub(super) fn count_dropped(&self, drop: Drop) {
        match drop {
            Drop::Short => self.dropped_short.add(1),
            Drop::Response => self.dropped_response.add(1),
        }
    }

    /// `n` answers took this long each.
    pub(super) fn took(&self, elapsed: Duration, n: u64) {
        let micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        self.duration.observe(&DURATIONS, micros, n);
    }
}
