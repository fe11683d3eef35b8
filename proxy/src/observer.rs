//! What the loop tells those who ask how it does: `/healthz`, `/livez` and `/metrics`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use model::cluster::{Dirty, Snapshot};
use model::feed::Update;
use model::name::{Family, NamespacedName};
use pages::Text;

use crate::by_family::ByFamily;
use crate::health::check::CheckReport;
use crate::health::{Health, Moment, Report};
use crate::metrics::Metrics;
use crate::plan::Plan;
use crate::sync::Round;

/// The loop's end and the askers' end of it; cloning it gives another end.
#[derive(Clone, Debug, Default)]
pub struct Observer(Arc<Mutex<Observed>>);

#[derive(Debug, Default)]
struct Observed {
    health: Health,
    metrics: Metrics,
    /// The last that the loop was told of.
    snapshot: Snapshot,
    /// The last that it was brought to, or not.
    plan: Option<Plan>,
    /// What of a change was made before this cannot have been heard of in time.
    began: Option<Duration>,
}

/// How a round found out what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compared {
    /// By comparing all that is planned with all that is held.
    Everything,
    /// By what an update changed.
    Change,
}

impl Observer {
    /// The loop is told of an update.
    pub(crate) fn told(&self, update: &Update) {
        let now = Moment::now();
        let mut observed = self.lock();
        let began = *observed.began.get_or_insert_with(|| since_epoch(now));
        let before = std::mem::replace(&mut observed.snapshot, update.snapshot.clone());
        let metrics = &mut observed.metrics;
        for name in changed(&update.dirty, &before, &update.snapshot) {
            let (old, new) = (before.services.get(name), update.snapshot.services.get(name));
            if old.map(|state| &state.service) != new.map(|state| &state.service) {
                metrics.services.add(1);
            }
            if old.map(|state| &state.endpoints) == new.map(|state| &state.endpoints) {
                continue;
            }
            metrics.endpoints.add(1);
            let trigger = new.and_then(|state| state.endpoints.last_change_trigger);
            let known = old.and_then(|state| state.endpoints.last_change_trigger);
            let Some(trigger) = trigger.filter(|it| *it >= began && known != Some(*it)) else {
                continue;
            };
            let service = new.and_then(|state| state.service.as_ref());
            for family in Family::ALL {
                if service.is_some_and(|service| service.cluster_ip(family).is_some()) {
                    let triggers = metrics.triggers.get_mut(family);
                    triggers.entry(name.clone()).or_insert(trigger);
                }
            }
        }
        metrics.last_queued = Some(now.time);
        observed.health.queued(now.instant);
    }

    /// Something that was in the kernel is missing there.
    pub(crate) fn lost(&self) {
        self.lock().health.queued(Moment::now().instant);
    }

    /// A round has ended.
    pub(crate) fn ended(&self, round: &Round, compared: Compared) {
        let now = Moment::now();
        let mut observed = self.lock();
        let Observed { health, metrics, plan, .. } = &mut *observed;
        *plan = Some(round.plan.clone());
        metrics.n_repairs = round.n_repairs;
        for family in Family::ALL {
            metrics.rounds.get_mut(family).observe(round.took);
            let by_kind = match compared {
                Compared::Everything => &mut metrics.full_rounds,
                Compared::Change => &mut metrics.partial_rounds,
            };
            by_kind.get_mut(family).observe(round.took);
            if *round.unfinished.get(family) {
                *metrics.failed_rounds.get_mut(family) += 1;
                // It may have been a former change that could not be made.
                health.queued_of(family, now.instant);
                continue;
            }
            health.updated(family, now.time);
            *metrics.last_round.get_mut(family) = Some(now.time);
            let programming = metrics.programming.get_mut(family);
            for (_, trigger) in std::mem::take(metrics.triggers.get_mut(family)) {
                programming.observe(since_epoch(now).saturating_sub(trigger));
            }
        }
        if round.unfinished == ByFamily::default() {
            metrics.services.pending = 0;
            metrics.endpoints.pending = 0;
        }
    }

    /// What `/healthz` says: whether a load balancer may send connections to this node. `longest` is how
    /// long the kernel may be behind.
    pub fn healthz(&self, now: Moment, longest: Duration) -> Report {
        let mut observed = self.lock();
        let node = observed.snapshot.node.clone();
        let report = observed.health.report(now, longest).of_node(node.as_deref());
        count(&mut observed.metrics.healthz, &report);
        report
    }

    /// What `/livez` says: whether the proxy keeps up.
    pub fn livez(&self, now: Moment, longest: Duration) -> Report {
        let mut observed = self.lock();
        let report = observed.health.report(now, longest);
        count(&mut observed.metrics.livez, &report);
        report
    }

    /// What a health check node port says: whether this node has endpoints of a Service in a family.
    pub fn check(
        &self,
        service: &NamespacedName,
        family: Family,
        now: Moment,
        longest: Duration,
    ) -> CheckReport {
        let observed = self.lock();
        let plan = observed.plan.as_ref();
        let check = plan.and_then(|plan| plan.health_checks.get(service));
        let n = check.map_or(0, |check| *check.local_endpoints.get(family));
        CheckReport::new(service, n, observed.health.report(now, longest).is_good())
    }

    /// The plan of the last round, when there was one.
    pub fn plan(&self) -> Option<Plan> {
        self.lock().plan.clone()
    }

    /// Writes the metrics of the loop, for a mode.
    ///
    /// # Errors
    /// None: writing to a string does not fail.
    pub fn write(&self, mode: &str, text: &mut Text) -> std::fmt::Result {
        let (metrics, plan) = {
            let observed = self.lock();
            (observed.metrics.clone(), observed.plan.clone())
        };
        metrics.write(mode, plan.as_ref(), text)
    }

    fn lock(&self) -> MutexGuard<'_, Observed> {
        // Whoever panicked while it held the lock left at worst a number too small.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The Services that may differ.
fn changed<'s>(
    dirty: &'s Dirty,
    before: &'s Snapshot,
    after: &'s Snapshot,
) -> Box<dyn Iterator<Item = &'s NamespacedName> + 's> {
    if !dirty.all {
        return Box::new(dirty.services.iter());
    }
    let gone = before.services.keys().filter(|name| !after.services.contains_key(*name));
    Box::new(after.services.keys().chain(gone))
}

fn since_epoch(now: Moment) -> Duration {
    Duration::try_from(now.time.duration_since(jiff::Timestamp::UNIX_EPOCH)).unwrap_or_default()
}

fn count(answers: &mut BTreeMap<u16, u64>, report: &Report) {
    *answers.entry(report.status()).or_default() += 1;
}
