//! Whether the proxy keeps up with what it is told: what `/healthz` and `/livez` say.
//!
//! ```text
//!            told of a change            all of it is in the kernel
//!  keeps up ─────────────────▶ behind ──────────────────────────────▶ keeps up
//!                                │ for longer than twice the sync period
//!                                ▼
//!                            unhealthy ──────────────────────────────▶ keeps up
//! ```

pub mod check;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use model::name::Family;
use model::node::Node;
use serde::Serialize;

use crate::by_family::ByFamily;

/// How far each family is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Health {
    families: ByFamily<Progress>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    /// The oldest change that is not in the kernel.
    behind_since: Option<Instant>,
    /// When all changes were last in the kernel.
    updated: Option<Timestamp>,
}

/// One moment, by the clock that never jumps and by the one on the wall.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// For durations.
    pub instant: Instant,
    /// To be told.
    pub time: Timestamp,
}

impl Moment {
    /// This one.
    pub fn now() -> Self {
        Self { instant: Instant::now(), time: Timestamp::now() }
    }
}

/// What is said, as kube-proxy says it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    last_updated: String,
    current_time: String,
    /// For `/healthz` only: a load balancer may send connections here.
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    status: BTreeMap<String, FamilyReport>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyReport {
    last_updated: String,
    healthy: bool,
}

impl Health {
    /// Something has changed that the kernel does not hold yet.
    pub fn queued(&mut self, now: Instant) {
        for family in Family::ALL {
            self.queued_of(family, now);
        }
    }

    /// The same of one family.
    pub fn queued_of(&mut self, family: Family, now: Instant) {
        self.families.get_mut(family).behind_since.get_or_insert(now);
    }

    /// The kernel holds everything of a family.
    pub const fn updated(&mut self, family: Family, time: Timestamp) {
        *self.families.get_mut(family) = Progress { behind_since: None, updated: Some(time) };
    }

    /// What is said of it; `longest` is how long the kernel may be behind.
    pub fn report(&self, now: Moment, longest: Duration) -> Report {
        let mut status = BTreeMap::new();
        for family in Family::ALL {
            let progress = self.families.get(family);
            let since = progress.behind_since;
            let healthy =
                since.is_none_or(|since| now.instant.saturating_duration_since(since) < longest);
            let last_updated = shown(if healthy { Some(now.time) } else { progress.updated });
            status.insert(family.to_string(), FamilyReport { last_updated, healthy });
        }
        let healthy = status.values().all(|family| family.healthy);
        let updated =
            Family::ALL.into_iter().filter_map(|family| self.families.get(family).updated);
        let last_updated = if healthy { Some(now.time) } else { updated.max() };
        Report {
            last_updated: shown(last_updated),
            current_time: now.time.to_string(),
            node_eligible: None,
            healthy,
            status,
        }
    }
}

impl Report {
    /// The same about the node, too: one that is being deleted, or that nobody has seen, gets no
    /// connections from load balancers (KEP-3836).
    #[must_use]
    pub fn of_node(self, node: Option<&Node>) -> Self {
        let eligible = node.is_some_and(|node| !node.deleting && !node.to_be_deleted);
        Self { node_eligible: Some(eligible), ..self }
    }

    /// Whether all is well.
    pub fn is_good(&self) -> bool {
        self.healthy && self.node_eligible != Some(false)
    }

    /// The status code that says so.
    pub fn status(&self) -> u16 {
        if self.is_good() { 200 } else { 503 }
    }

    /// As JSON.
    pub fn json(&self) -> String {
        // Maps with names as their keys and nothing that fails.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// A time that never was is Go's zero.
fn shown(time: Option<Timestamp>) -> String {
    time.map_or_else(|| "0001-01-01T00:00:00Z".to_owned(), |time| time.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_secs(60);

    fn moment(start: Instant, seconds: u64) -> Moment {
        let time = Timestamp::from_second(1_700_000_000 + seconds.cast_signed()).unwrap();
        Moment { instant: start + Duration::from_secs(seconds), time }
    }

    fn node(deleting: bool, to_be_deleted: bool) -> Node {
        Node {
            name: "node-a".into(),
            zone: None,
            addresses: Vec::new(),
            pod_cidrs: Vec::new(),
            deleting,
            to_be_deleted,
        }
    }

    #[test]
    fn before_anything_was_queued_all_is_well() {
        let start = Instant::now();
        let report = Health::default().report(moment(start, 1000), LONGEST);
        assert!(report.is_good());
        assert_eq!(
            report.of_node(Some(&node(false, false))).json(),
            "{\"lastUpdated\":\"2023-11-14T22:30:00Z\",\"currentTime\":\"2023-11-14T22:30:00Z\",\
             \"nodeEligible\":true,\"healthy\":true,\"status\":{\
             \"IPv4\":{\"lastUpdated\":\"2023-11-14T22:30:00Z\",\"healthy\":true},\
             \"IPv6\":{\"lastUpdated\":\"2023-11-14T22:30:00Z\",\"healthy\":true}}}"
        );
    }

    #[test]
    fn who_is_behind_for_twice_the_sync_period_is_unhealthy_until_it_is_not() {
        let start = Instant::now();
        let mut health = Health::default();
        health.queued(start);
        health.updated(Family::V4, moment(start, 1).time);
        // Younger ones do not make the oldest any younger.
        health.queued(start + Duration::from_secs(50));
        health.updated(Family::V4, moment(start, 51).time);
        assert!(health.report(moment(start, 59), LONGEST).is_good());
        let report = health.report(moment(start, 60), LONGEST);
        assert!(!report.is_good());
        assert_eq!(
            report.json(),
            "{\"lastUpdated\":\"2023-11-14T22:14:11Z\",\"currentTime\":\"2023-11-14T22:14:20Z\",\
             \"healthy\":false,\"status\":{\
             \"IPv4\":{\"lastUpdated\":\"2023-11-14T22:14:20Z\",\"healthy\":true},\
             \"IPv6\":{\"lastUpdated\":\"0001-01-01T00:00:00Z\",\"healthy\":false}}}"
        );
        health.updated(Family::V6, moment(start, 70).time);
        assert!(health.report(moment(start, 1000), LONGEST).is_good());
    }

    #[test]
    fn a_node_that_goes_is_alive_and_gets_no_connections() {
        let report = Health::default().report(moment(Instant::now(), 0), LONGEST);
        for (node, eligible) in [
            (Some(node(false, false)), true),
            (Some(node(true, false)), false),
            (Some(node(false, true)), false),
            (None, false),
        ] {
            assert_eq!(report.clone().of_node(node.as_ref()).is_good(), eligible, "{node:?}");
            assert!(report.is_good(), "livez does not ask");
        }
    }
}
