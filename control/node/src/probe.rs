//! Probes: asking a container how it is, again and again.

pub(crate) mod ask;
mod threshold;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Probe};
use tokio::sync::mpsc;

use crate::runtime::{ContainerId, Runtime};
use threshold::Threshold;

/// What a probe is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Purpose {
    Startup,
    Readiness,
    Liveness,
}

impl Purpose {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Readiness => "Readiness",
            Self::Liveness => "Liveness",
        }
    }

    pub(crate) fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            Self::Startup => container.startup_probe.as_ref(),
            Self::Readiness => container.readiness_probe.as_ref(),
            Self::Liveness => container.liveness_probe.as_ref(),
        }
    }
}

/// What a probe has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    /// One failure, for the record.
    Failed(String),
    /// Enough of one kind in a row.
    Verdict { healthy: bool, why: String },
}

/// A container to probe.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) id: ContainerId,
    pub(crate) container: Container,
    pub(crate) address: Option<IpAddr>,
    pub(crate) since: Timestamp,
    pub(crate) runtime: Arc<dyn Runtime>,
}

/// Probes until nobody listens any more.
pub(crate) async fn run(
    target: Target,
    purpose: Purpose,
    found: mpsc::Sender<(ContainerId, Purpose, Finding)>,
) {
    let Some(probe) = purpose.of(&target.container).cloned() else { return };
    let seconds = |value: Option<i32>, default: u64| {
        Duration::from_secs(value.and_then(|value| u64::try_from(value).ok()).unwrap_or(default))
    };
    let period = seconds(probe.period_seconds, 10).max(Duration::from_secs(1));
    let timeout = seconds(probe.timeout_seconds, 1).max(Duration::from_secs(1));
    let delay = seconds(probe.initial_delay_seconds, 0);
    let age = Timestamp::now().duration_since(target.since);
    let left = delay.saturating_sub(age.unsigned_abs());
    tokio::time::sleep(left).await;
    let count = |value: Option<i32>, default| value.filter(|value| *value > 0).unwrap_or(default);
    let mut threshold = Threshold::new(
        purpose != Purpose::Liveness,
        count(probe.success_threshold, 1).unsigned_abs(),
        count(probe.failure_threshold, 3).unsigned_abs(),
    );
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let answer = ask::once(&target, &probe, timeout).await;
        let why = answer.as_ref().err().cloned().unwrap_or_default();
        if answer.is_err() {
            let failed = Finding::Failed(why.clone());
            if found.send((target.id.clone(), purpose, failed)).await.is_err() {
                return;
            }
        }
        if let Some(healthy) = threshold.count(answer.is_ok()) {
            let verdict = Finding::Verdict { healthy, why };
            if found.send((target.id.clone(), purpose, verdict)).await.is_err() {
                return;
            }
        }
    }
}
