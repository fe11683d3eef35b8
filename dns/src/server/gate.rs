//! Names that wait until this node routes their addresses.
//!
//! ```text
//!  new Service ─▶ waiting ──── routed ────▶ told
//!                    │                       ▲
//!                    └─── a second later ────┘ (counted)
//! ```
//!
//! A client that learns an address before the kernel knows it is refused, or worse, connected to
//! nobody. So a name that is new, or has a new address, is SERVFAIL until then, never NXDOMAIN,
//! which clients would believe. A proxy that is stuck delays a name by a second and no more.

use std::collections::BTreeMap;
use std::time::Duration;

use imbl::ordmap::DiffItem;
use model::applied::Applied;
use model::cluster::{Dirty, ServiceState, Snapshot};
use model::name::NamespacedName;
use tokio::time::Instant;

/// A name waits this long at most.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);

/// The names that wait, each until when at most.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    until: BTreeMap<NamespacedName, Instant>,
}

/// How the wait of some names ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Settled {
    /// Names that wait no longer.
    pub(super) n: usize,
    /// Those among them whose time was up.
    pub(super) n_overdue: usize,
}

impl Waiting {
    /// Names whose addresses an update brought begin to wait, unless they are routed. How many.
    pub(super) fn add(
        &mut self,
        before: &Snapshot,
        (after, dirty): (&Snapshot, &Dirty),
        applied: &Applied,
        now: Instant,
    ) -> usize {
        let mut n = 0;
        let mut look = |name: &NamespacedName, state: Option<&ServiceState>| {
            let Some(service) = state.and_then(|state| state.service.as_ref()) else { return };
            let known = before.services.get(name).and_then(|state| state.service.as_ref());
            let is_new = known.is_none_or(|known| known.cluster_ips != service.cluster_ips);
            if is_new && !applied.routes(service) {
                self.until.insert(name.clone(), now + PATIENCE);
                n += 1;
            }
        };
        if dirty.all {
            for difference in before.services.diff(&after.services) {
                if let DiffItem::Add(name, state) | DiffItem::Update { new: (name, state), .. } =
                    difference
                {
                    look(name, Some(state));
                }
            }
        } else {
            for name in &dirty.services {
                look(name, after.services.get(name).map(AsRef::as_ref));
            }
        }
        n
    }

    /// Ends the wait of those that are routed, gone, or due.
    pub(super) fn settle(
        &mut self,
        snapshot: &Snapshot,
        applied: &Applied,
        now: Instant,
    ) -> Settled {
        let before = self.until.len();
        let mut n_overdue = 0;
        self.until.retain(|name, until| {
            let state = snapshot.services.get(name);
            let waits = state
                .and_then(|state| state.service.as_ref())
                .is_some_and(|service| !applied.routes(service));
            let is_due = *until <= now;
            n_overdue += usize::from(waits && is_due);
            waits && !is_due
        });
        Settled { n: before - self.until.len(), n_overdue }
    }

    /// The names.
    pub(super) fn names(&self) -> impl Iterator<Item = &NamespacedName> {
        self.until.keys()
    }

    /// When the first wait is over, whatever happens.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.until.values().min().copied()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use model::applied::Routed;
    use model::cluster::{Change, Cluster};
    use model::name::Protocol;
    use model::service::{Service, ServicePort, ServiceType, TrafficPolicy};

    use super::*;

    fn service(name: &str, address: &str) -> Change {
        Change::Service(Arc::new(Service {
            name: NamespacedName::new("shop", name),
            created: 0,
            service_type: ServiceType::ClusterIp,
            cluster_ips: vec![address.parse().unwrap()],
            headless: false,
            ports: vec![ServicePort {
                name: "http".into(),
                protocol: Protocol::Tcp,
                port: 80,
                node_port: 0,
            }],
            external_ips: Vec::new(),
            load_balancer_vips: Vec::new(),
            load_balancer_source_ranges: Vec::new(),
            external_traffic_policy: TrafficPolicy::Cluster,
            internal_traffic_policy: TrafficPolicy::Cluster,
            session_affinity: None,
            health_check_node_port: 0,
            foreign_proxy: false,
            capture: true,
            ends_connections: false,
        }))
    }

    fn routing(addresses: &[&str]) -> Applied {
        let routed = |address: &&str| Routed {
            address: address.parse().unwrap(),
            port: 80,
            protocol: Protocol::Tcp,
        };
        Applied { routed: addresses.iter().map(routed).collect() }
    }

    fn snapshot(changes: impl IntoIterator<Item = Change>) -> (Snapshot, Dirty) {
        let mut cluster = Cluster::new("a");
        let dirty = cluster.apply_all(changes);
        (cluster.snapshot(), dirty)
    }

    fn names(waiting: &Waiting) -> Vec<&str> {
        waiting.names().map(|name| &*name.name).collect()
    }

    #[test]
    fn what_is_new_waits_until_it_is_routed() {
        let now = Instant::now();
        let (after, dirty) = snapshot([service("a", "10.0.0.1"), service("b", "10.0.0.2")]);
        for dirty in [dirty, Dirty::everything()] {
            let mut waiting = Waiting::default();
            let n =
                waiting.add(&Snapshot::default(), (&after, &dirty), &routing(&["10.0.0.1"]), now);
            assert_eq!((n, names(&waiting)), (1, vec!["b"]));
            let settled = waiting.settle(&after, &routing(&["10.0.0.2"]), now);
            assert_eq!(settled, Settled { n: 1, n_overdue: 0 });
            assert_eq!(waiting.deadline(), None);
        }
    }

    #[test]
    fn a_known_name_is_told_through_every_change_but_that_of_its_address() {
        let now = Instant::now();
        let (before, _) = snapshot([service("a", "10.0.0.1")]);
        let mut waiting = Waiting::default();
        let everything = Dirty::everything();
        let mut changed = |to: Change| {
            let (after, _) = snapshot([to]);
            waiting.add(&before, (&after, &everything), &Applied::default(), now)
        };
        assert_eq!(changed(service("a", "10.0.0.1")), 0);
        assert_eq!(changed(service("a", "10.0.0.9")), 1);
    }

    #[test]
    fn nothing_waits_longer_than_a_second() {
        let now = Instant::now();
        let (after, dirty) = snapshot([service("a", "10.0.0.1")]);
        let mut waiting = Waiting::default();
        let nothing = Applied::default();
        waiting.add(&Snapshot::default(), (&after, &dirty), &nothing, now);
        assert_eq!(waiting.deadline(), Some(now + PATIENCE));
        assert_eq!(waiting.settle(&after, &nothing, now).n, 0);
        let settled = waiting.settle(&after, &nothing, now + PATIENCE);
        assert_eq!(settled, Settled { n: 1, n_overdue: 1 });
    }
}
