//! What is counted about the loop, under kube-proxy's names.

pub mod kernel;
pub mod process;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use model::name::{Family, NamespacedName};
use pages::Text;
use pages::text::{Buckets, seconds};

use crate::by_family::ByFamily;
use crate::plan::Plan;

/// The counters of one loop.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// How long rounds took.
    pub rounds: ByFamily<Histogram>,
    /// Those that compared everything.
    pub full_rounds: ByFamily<Histogram>,
    /// Those that took a change alone.
    pub partial_rounds: ByFamily<Histogram>,
    /// From the change of an endpoint in the cluster until it was in the kernel.
    pub programming: ByFamily<Histogram>,
    /// The last round that left nothing undone.
    pub last_round: ByFamily<Option<Timestamp>>,
    /// The last change that the loop was told of.
    pub last_queued: Option<Timestamp>,
    /// Rounds after which something was left to be tried again.
    pub failed_rounds: ByFamily<u64>,
    /// Services that changed.
    pub services: Changes,
    /// Services whose endpoints changed.
    pub endpoints: Changes,
    /// Answers on `/healthz`, by their code.
    pub healthz: BTreeMap<u16, u64>,
    /// Answers on `/livez`, by their code.
    pub livez: BTreeMap<u16, u64>,
    /// How often somebody else had changed what was programmed, and it was repaired.
    pub n_repairs: u64,
    /// By Service, when the oldest change of its endpoints was made that the kernel lacks.
    pub(crate) triggers: ByFamily<BTreeMap<NamespacedName, Duration>>,
}

/// Changes that were told, and those of them that are not in the kernel yet.
#[derive(Clone, Copy, Debug, Default)]
pub struct Changes {
    /// All.
    pub total: u64,
    /// Those of the rounds since one left nothing undone.
    pub pending: u64,
}

impl Changes {
    /// Some more were told.
    pub(crate) const fn add(&mut self, n: u64) {
        self.total += n;
        self.pending += n;
    }
}

/// Durations by bucket.
#[derive(Clone, Debug)]
pub struct Histogram {
    /// Upper bounds in microseconds, with how many durations are in each bucket alone.
    buckets: Vec<(u64, u64)>,
    n: u64,
    sum: u64,
}

impl Histogram {
    fn new(bounds: impl IntoIterator<Item = u64>) -> Self {
        Self { buckets: bounds.into_iter().map(|bound| (bound, 0)).collect(), n: 0, sum: 0 }
    }

    /// Takes one more.
    pub fn observe(&mut self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        if let Some((_, n)) = self.buckets.iter_mut().find(|(bound, _)| micros <= *bound) {
            *n += 1;
        }
        self.n += 1;
        self.sum = self.sum.saturating_add(micros);
    }

    /// How many were taken.
    pub const fn n(&self) -> u64 {
        self.n
    }

    fn shown(&self) -> Buckets<'_> {
        Buckets { buckets: &self.buckets, unit: seconds, n: self.n, sum: self.sum }
    }
}

/// 1 ms to 16 s, each bound twice the one before.
fn of_rounds() -> Histogram {
    Histogram::new((0..15).map(|n| 1_000 << n))
}

/// 250 ms to five minutes, as kube-proxy divides them.
fn of_programming() -> Histogram {
    let seconds = (1..60).chain((60..120).step_by(5)).chain((120..=300).step_by(30));
    Histogram::new([250_000, 500_000].into_iter().chain(seconds.map(|s: u64| s * 1_000_000)))
}

impl Default for Metrics {
    fn default() -> Self {
        let rounds = || ByFamily::from_fn(|_| of_rounds());
        Self {
            rounds: rounds(),
            full_rounds: rounds(),
            partial_rounds: rounds(),
            programming: ByFamily::from_fn(|_| of_programming()),
            last_round: ByFamily::default(),
            last_queued: None,
            failed_rounds: ByFamily::default(),
            services: Changes::default(),
            endpoints: Changes::default(),
            healthz: BTreeMap::from([(200, 0), (503, 0)]),
            livez: BTreeMap::from([(200, 0), (503, 0)]),
            n_repairs: 0,
            triggers: ByFamily::default(),
        }
    }
}

impl Metrics {
    /// All of them, for a mode; `plan` is what the last round was for.
    ///
    /// # Errors
    /// None: writing to a string does not fail.
    pub fn write(&self, mode: &str, plan: Option<&Plan>, text: &mut Text) -> fmt::Result {
        self.write_rounds(mode, text)?;
        self.write_changes(text)?;
        self.write_health(text)?;
        if let Some(plan) = plan {
            write_plan(plan, text)?;
        }
        let name = "fairlead_repairs_total";
        let help = "How often somebody else had changed what was programmed, and it was repaired.";
        text.head(name, "counter", help)?;
        text.sample(name, "", self.n_repairs)
    }

    fn write_rounds(&self, mode: &str, text: &mut Text) -> fmt::Result {
        let histogram = |text: &mut Text, name: &str, help: &str, of: &ByFamily<Histogram>| {
            let name = format!("kubeproxy_{name}_seconds");
            text.head(&name, "histogram", help)?;
            each_family(|family, labels| text.histogram(&name, labels, of.get(family).shown()))
        };
        let help = "How long a round of programming took.";
        histogram(text, "sync_proxy_rules_duration", help, &self.rounds)?;
        if matches!(mode, "iptables" | "nftables") {
            let help = "How long a round took that compared everything.";
            histogram(text, "sync_full_proxy_rules_duration", help, &self.full_rounds)?;
            let help = "How long a round took that took a change alone.";
            histogram(text, "sync_partial_proxy_rules_duration", help, &self.partial_rounds)?;
        }
        let help = "From the change of an endpoint until it was programmed.";
        histogram(text, "network_programming_duration", help, &self.programming)?;

        let name = "kubeproxy_sync_proxy_rules_last_timestamp_seconds";
        text.head(name, "gauge", "When a round last left nothing undone.")?;
        each_family(|family, labels| {
            text.sample(name, labels, time(*self.last_round.get(family)))
        })?;
        let name = "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds";
        text.head(name, "gauge", "When the loop was last told of a change.")?;
        each_family(|_, labels| text.sample(name, labels, time(self.last_queued)))?;

        let upstream = match mode {
            "nftables" => "kubeproxy_sync_proxy_rules_nftables_sync_failures_total",
            "iptables" | "ipvs" => "kubeproxy_sync_proxy_rules_iptables_restore_failures_total",
            _ => "fairlead_failed_rounds_total",
        };
        text.head(upstream, "counter", "Rounds that left something to be tried again.")?;
        each_family(|family, labels| text.sample(upstream, labels, self.failed_rounds.get(family)))
    }

    fn write_changes(&self, text: &mut Text) -> fmt::Result {
        for (of, changes) in [("service", self.services), ("endpoint", self.endpoints)] {
            let name = format!("kubeproxy_sync_proxy_rules_{of}_changes_pending");
            text.head(&name, "gauge", "Changes that are not programmed yet.")?;
            text.sample(&name, "", changes.pending)?;
            let name = format!("kubeproxy_sync_proxy_rules_{of}_changes_total");
            text.head(&name, "counter", "Changes that the loop was told of.")?;
            text.sample(&name, "", changes.total)?;
        }
        Ok(())
    }

    fn write_health(&self, text: &mut Text) -> fmt::Result {
        for (page, answers) in [("healthz", &self.healthz), ("livez", &self.livez)] {
            let name = format!("kubeproxy_proxy_{page}_total");
            text.head(&name, "counter", "Answers by their code.")?;
            for (code, n) in answers {
                text.sample(&name, &format!("code=\"{code}\""), n)?;
            }
        }
        Ok(())
    }
}

/// What the plan counts by itself.
fn write_plan(plan: &Plan, text: &mut Text) -> fmt::Result {
    let mut internal = ByFamily::<usize>::default();
    let mut external = ByFamily::<usize>::default();
    for service in plan.services.values() {
        for family in Family::ALL {
            *internal.get_mut(family) += service.no_local_endpoints.internal.get(family);
            *external.get_mut(family) += service.no_local_endpoints.external.get(family);
        }
    }
    let name = "kubeproxy_sync_proxy_rules_no_local_endpoints_total";
    let help = "Service ports with endpoints, but none on this node as their policy demands.";
    text.head(name, "gauge", help)?;
    for (policy, n) in [("internal", internal), ("external", external)] {
        each_family(|family, labels| {
            text.sample(name, &format!("{labels},traffic_policy=\"{policy}\""), n.get(family))
        })?;
    }
    let name = "fairlead_frontends";
    text.head(name, "gauge", "Frontends (an address, port and protocol) that are planned.")?;
    text.sample(name, "", plan.frontends.len())?;
    let name = "fairlead_services";
    text.head(name, "gauge", "Services that are planned.")?;
    text.sample(name, "", plan.services.len())?;
    let name = "fairlead_problems";
    text.head(name, "gauge", "What of the Services is left out.")?;
    text.sample(name, "", plan.problems().count())
}

fn each_family(mut write: impl FnMut(Family, &str) -> fmt::Result) -> fmt::Result {
    Family::ALL.into_iter().try_for_each(|family| {
        let labels = format!("ip_family=\"{family}\"");
        write(family, &labels)
    })
}

/// A time that never was is zero.
fn time(time: Option<Timestamp>) -> String {
    let micros = time.map_or(0, |time| u64::try_from(time.as_microsecond()).unwrap_or(0));
    seconds(micros)
}
