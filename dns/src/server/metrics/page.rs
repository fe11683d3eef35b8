//! The counters of all workers as one page of Prometheus's text format.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use pages::text::{Buckets, Text, seconds};

use super::{Counter, Counters, DURATIONS, Histogram, Metrics, OfTransport, SIZES, TYPES};
use crate::message::Rcode;

/// The labels that every sample of CoreDNS carries.
const SERVER: &str = "server=\"dns://:53\",zone=\".\",view=\"\"";

pub(super) fn render(workers: &[Arc<Counters>], metrics: &Metrics) -> String {
    let mut page = Page { text: Text::default(), workers };
    let written = page.write(metrics);
    page.text.finish(written)
}

struct Page<'p> {
    text: Text,
    workers: &'p [Arc<Counters>],
}

impl Page<'_> {
    fn write(&mut self, metrics: &Metrics) -> fmt::Result {
        self.head("coredns_build_info", "gauge", "What answers.")?;
        let version = env!("CARGO_PKG_VERSION");
        let labels = format!("goversion=\"\",revision=\"\",version=\"fairlead-{version}\"");
        self.sample("coredns_build_info", &labels, 1)?;
        self.requests()?;
        self.responses()?;
        let help = "Questions with the DO bit.";
        self.counter("coredns_dns_do_requests_total", SERVER, help, |it| &it.dnssec_ok)?;
        let help = "Octets of questions.";
        self.sizes("coredns_dns_request_size_bytes", help, |it| &it.request_size)?;
        let help = "Octets of answers.";
        self.sizes("coredns_dns_response_size_bytes", help, |it| &it.response_size)?;
        self.durations()?;
        self.ours(metrics)
    }

    /// What CoreDNS has no name for.
    fn ours(&mut self, metrics: &Metrics) -> fmt::Result {
        let help = "Answers cut to what the client takes.";
        self.counter("fairlead_dns_truncated_total", "", help, |it| &it.truncated)?;
        let help = "Questions from clients that may not ask here, refused.";
        self.counter("fairlead_dns_strangers_total", "", help, |it| &it.strangers)?;
        let help =
            "Datagrams that could not be received, and answers that the kernel did not take.";
        self.counter("fairlead_dns_socket_errors_total", "", help, |it| &it.socket_errors)?;
        let help = "TCP connections turned away, because there are too many.";
        self.counter("fairlead_dns_connections_refused_total", "", help, |it| {
            &it.connections_refused
        })?;
        let name = "fairlead_dns_dropped_total";
        self.head(name, "counter", "Packets that get no answer, as answering would be wrong.")?;
        let short = self.sum(|it| &it.dropped_short);
        self.sample(name, "reason=\"short\"", short)?;
        let responses = self.sum(|it| &it.dropped_response);
        self.sample(name, "reason=\"response\"", responses)?;
        let early = self.sum(|it| &it.silent);
        self.sample(name, "reason=\"early\"", early)?;
        let name = "fairlead_dns_views_total";
        self.head(name, "counter", "Changes of the cluster that answers took up.")?;
        self.sample(name, "", metrics.views.get())?;
        let name = "fairlead_dns_names_held_total";
        self.head(name, "counter", "Names that waited until their addresses were routed.")?;
        self.sample(name, "", metrics.held.get())?;
        let name = "fairlead_dns_names_overdue_total";
        let help = "Names that were told after a second, with their addresses not routed.";
        self.head(name, "counter", help)?;
        self.sample(name, "", metrics.overdue.get())?;
        let name = "fairlead_dns_saved_snapshot";
        self.head(name, "gauge", "1 while answers come from what an earlier process saved.")?;
        self.sample(name, "", metrics.is_saved.load(Ordering::Relaxed))
    }

    fn requests(&mut self) -> fmt::Result {
        let name = "coredns_dns_requests_total";
        self.head(name, "counter", "Questions by transport, family and type.")?;
        for (proto, of_transport) in TRANSPORTS {
            for (family, of_family) in [("1", of_v4 as OfFamily), ("2", of_v6)] {
                let counters = |idx| self.sum(|it| of_family(of_transport(it), idx));
                let sums: Vec<u64> = (0..=TYPES.len()).map(counters).collect();
                for (idx, n) in sums.into_iter().enumerate().filter(|(_, n)| *n > 0) {
                    let rtype =
                        TYPES.get(idx).map_or_else(|| "other".to_owned(), ToString::to_string);
                    let labels =
                        format!("{SERVER},proto=\"{proto}\",family=\"{family}\",type=\"{rtype}\"");
                    self.sample(name, &labels, n)?;
                }
            }
        }
        Ok(())
    }

    fn responses(&mut self) -> fmt::Result {
        let name = "coredns_dns_responses_total";
        self.head(name, "counter", "Answers by code.")?;
        for (idx, rcode) in Rcode::ALL.iter().enumerate() {
            let n = self.sum(|it| it.responses.get(idx).unwrap_or(&ZERO));
            let labels = format!("{SERVER},rcode=\"{}\",plugin=\"kubernetes\"", rcode.name());
            self.sample(name, &labels, n)?;
        }
        Ok(())
    }

    fn sizes(
        &mut self,
        name: &str,
        help: &str,
        of: impl Fn(&OfTransport) -> &Histogram<{ SIZES.len() }>,
    ) -> fmt::Result {
        self.head(name, "histogram", help)?;
        for (proto, of_transport) in TRANSPORTS {
            let labels = format!("{SERVER},proto=\"{proto}\"");
            let total = Total::of(self.workers, |it| of(of_transport(it)));
            self.histogram((name, &labels), (&SIZES, |octets| octets.to_string()), &total)?;
        }
        Ok(())
    }

    fn durations(&mut self) -> fmt::Result {
        let name = "coredns_dns_request_duration_seconds";
        let help = "From questions read to answers sent. One batch in sixteen is timed, and stands \
                    for those before it.";
        self.head(name, "histogram", help)?;
        let total = Total::of(self.workers, |it| &it.duration);
        self.histogram((name, SERVER), (&DURATIONS, seconds), &total)
    }

    fn histogram<const N: usize>(
        &mut self,
        (name, labels): (&str, &str),
        (bounds, unit): (&[u64; N], fn(u64) -> String),
        total: &Total<N>,
    ) -> fmt::Result {
        let buckets: Vec<(u64, u64)> = bounds.iter().copied().zip(total.buckets).collect();
        let of = Buckets { buckets: &buckets, unit, n: total.n, sum: total.sum };
        self.text.histogram(name, labels, of)
    }

    fn counter(
        &mut self,
        name: &str,
        labels: &str,
        help: &str,
        of: impl Fn(&Counters) -> &Counter,
    ) -> fmt::Result {
        self.head(name, "counter", help)?;
        let n = self.sum(of);
        self.sample(name, labels, n)
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) -> fmt::Result {
        self.text.head(name, kind, help)
    }

    fn sample(&mut self, name: &str, labels: &str, value: u64) -> fmt::Result {
        self.text.sample(name, labels, value)
    }

    fn sum(&self, of: impl Fn(&Counters) -> &Counter) -> u64 {
        self.workers.iter().map(|counters| of(counters).get()).sum()
    }
}

type InWorker = fn(&Counters) -> &OfTransport;
type OfFamily = fn(&OfTransport, usize) -> &Counter;

const TRANSPORTS: [(&str, InWorker); 2] = [("udp", |it| &it.udp), ("tcp", |it| &it.tcp)];

fn of_v4(of: &OfTransport, idx: usize) -> &Counter {
    of.v4.get(idx).unwrap_or(&ZERO)
}

fn of_v6(of: &OfTransport, idx: usize) -> &Counter {
    of.v6.get(idx).unwrap_or(&ZERO)
}

static ZERO: Counter = Counter(std::sync::atomic::AtomicU64::new(0));

/// A histogram of all workers.
struct Total<const N: usize> {
    buckets: [u64; N],
    n: u64,
    sum: u64,
}

impl<const N: usize> Total<N> {
    fn of(workers: &[Arc<Counters>], of: impl Fn(&Counters) -> &Histogram<N>) -> Self {
        let mut total = Self { buckets: [0; N], n: 0, sum: 0 };
        for histogram in workers.iter().map(|worker| of(worker)) {
            for (sum, bucket) in total.buckets.iter_mut().zip(&histogram.buckets) {
                *sum += bucket.get();
            }
            total.n += histogram.total.get();
            total.sum += histogram.sum.get();
        }
        total
    }
}
