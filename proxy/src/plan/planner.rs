//! The planner: plans Services one at a time and settles who wins what several of them claim.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use model::cluster::{Dirty, Snapshot};
use model::host_port;
use model::name::NamespacedName;
use model::problem::Problem;

use crate::backend::Unsupported;
use crate::config::NodeConfig;
use crate::plan::build::Context;
use crate::plan::{
    AddressClaim, Frontend, FrontendKey, FrontendKind, LeftAlone, Plan, PlanChange, ServicePlan,
    Settings,
};

/// Plans from nothing, for a backend that can do everything.
pub fn plan(snapshot: &Snapshot, config: &NodeConfig) -> Plan {
    let mut planner = Planner::new(config.clone());
    planner.replan(snapshot, &Dirty::everything());
    planner.into_plan()
}

/// What a backend can do; see [`crate::backend::Backend::supports`].
pub type Supports = Arc<dyn Fn(&Frontend) -> Result<(), Unsupported> + Send + Sync>;

/// Keeps a plan up to date. A change to one Service costs that Service, however many there are.
pub struct Planner {
    config: Arc<NodeConfig>,
    supports: Supports,
    plan: Plan,
    /// Who claims a frontend, ordered: the first one wins it.
    claims: BTreeMap<FrontendKey, Vec<Claim>>,
}

/// One Service's claim to a frontend. The order decides who wins: the kind, then the age, then the
/// name; it is the same on every node and after every restart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    kind: FrontendKind,
    created: i64,
    service: NamespacedName,
}

impl Planner {
    /// A planner that has seen nothing yet, for a backend that can do everything.
    pub fn new(config: NodeConfig) -> Self {
        Self {
            config: Arc::new(config),
            supports: Arc::new(|_| Ok(())),
            plan: Plan::default(),
            claims: BTreeMap::new(),
        }
    }

    /// For a backend that can do only so much: what it cannot do is left out as a Problem.
    #[must_use]
    pub fn supporting(mut self, supports: Supports) -> Self {
        self.supports = supports;
        self
    }

    /// The plan as of the last snapshot.
    pub const fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The plan as of the last snapshot, for keeps.
    pub fn into_plan(self) -> Plan {
        self.plan
    }

    /// The configuration it plans with.
    pub fn config(&self) -> &NodeConfig {
        &self.config
    }

    /// Changes the configuration. The next [`Planner::replan`] must say that everything differs.
    pub fn set_config(&mut self, config: NodeConfig) {
        self.config = Arc::new(config);
    }

    /// Brings the plan up to a snapshot, of which `dirty` says what differs from the last one.
    /// The result is the one that planning from nothing gives.
    pub fn replan(&mut self, snapshot: &Snapshot, dirty: &Dirty) -> PlanChange {
        let mut change = PlanChange::default();
        if dirty.all {
            self.set_settings(snapshot, &mut change);
        }
        if (dirty.all || dirty.pods) && self.config.at_sockets {
            self.set_left_alone(snapshot, &mut change);
        }
        let settings = Arc::clone(&self.plan.settings);
        let config = Arc::clone(&self.config);
        let supports = Arc::clone(&self.supports);
        let context = Context {
            config: &config,
            settings: &settings,
            node: snapshot.node.as_deref(),
            supports: &*supports,
        };
        if dirty.all {
            let gone: Vec<_> = self
                .plan
                .services
                .keys()
                .filter(|name| !snapshot.services.contains_key(*name))
                .cloned()
                .collect();
            for name in &gone {
                self.replace(name, None, &mut change);
            }
            for (name, state) in &snapshot.services {
                self.replace(name, context.service(state), &mut change);
            }
        } else {
            for name in &dirty.services {
                let planned = snapshot.services.get(name).and_then(|state| context.service(state));
                self.replace(name, planned, &mut change);
            }
        }
        change
    }

    fn set_settings(&mut self, snapshot: &Snapshot, change: &mut PlanChange) {
        let settings = Settings::build(&self.config, snapshot.node.as_deref());
        if *self.plan.settings != settings {
            self.plan.settings = Arc::new(settings);
            change.settings = Some(Arc::clone(&self.plan.settings));
        }
    }

    fn set_left_alone(&mut self, snapshot: &Snapshot, change: &mut PlanChange) {
        let left_alone = LeftAlone::of(snapshot);
        if *self.plan.left_alone != left_alone {
            change.problems |= self.plan.left_alone.problems != left_alone.problems;
            self.plan.left_alone = Arc::new(left_alone);
            change.left_alone = Some(Arc::clone(&self.plan.left_alone));
        }
    }

    /// Puts one Service's new plan in the place of its old one, and settles what either claims.
    fn replace(
        &mut self,
        name: &NamespacedName,
        planned: Option<ServicePlan>,
        change: &mut PlanChange,
    ) {
        let before = self.plan.services.get(name).cloned();
        if before.as_deref() == planned.as_ref() {
            return;
        }
        let after = planned.map(Arc::new);
        match &after {
            Some(after) => {
                self.plan.services.insert(name.clone(), Arc::clone(after));
            }
            None => {
                self.plan.services.remove(name);
            }
        }
        let nothing = ServicePlan::default();
        let old = before.as_deref().unwrap_or(&nothing);
        let new = after.as_deref().unwrap_or(&nothing);
        change.problems |= old.problems != new.problems;
        self.replace_health_check(name, old, new, change);
        self.replace_addresses(name, old, new, change);
        for (key, _) in &old.frontends {
            self.retract(key, name);
        }
        for (key, frontend) in &new.frontends {
            let claim = Claim { kind: frontend.kind, created: new.created, service: name.clone() };
            // Nearly every frontend has one claim; to grow makes room for four.
            let claims = self.claims.entry(*key).or_insert_with(|| Vec::with_capacity(1));
            let idx = claims.partition_point(|other| *other < claim);
            claims.insert(idx, claim);
        }
        for (key, _) in &old.frontends {
            self.settle(key, name, change);
        }
        for (key, _) in new.frontends.iter().filter(|(key, _)| old.frontend(key).is_none()) {
            self.settle(key, name, change);
        }
    }

    fn retract(&mut self, key: &FrontendKey, name: &NamespacedName) {
        if let Some(claims) = self.claims.get_mut(key) {
            claims.retain(|claim| claim.service != *name);
            if claims.is_empty() {
                self.claims.remove(key);
            }
        }
    }

    /// Gives a frontend to whoever has the first claim, and tells the others, after the claim of
    /// the Service of that name changed.
    fn settle(&mut self, key: &FrontendKey, name: &NamespacedName, change: &mut PlanChange) {
        let claims = self.claims.get(key).map(Vec::as_slice).unwrap_or_default();
        let first = claims.first().and_then(|claim| {
            let service = self.plan.services.get(&claim.service)?;
            Some((service.frontend(key).cloned()?, service.refused.contains(key)))
        });
        let winner =
            first.as_ref().filter(|(_, refused)| !refused).map(|(first, _)| Arc::clone(first));
        let before = self.plan.frontends.get(key);
        let same_winner = winner.as_ref().zip(before).is_some_and(|(winner, before)| {
            (&winner.service.service, winner.kind) == (&before.service.service, before.kind)
        });
        if winner.as_ref() != before {
            change.frontends.insert(*key, winner.clone());
            match &winner {
                Some(frontend) => self.plan.frontends.insert(*key, Arc::clone(frontend)),
                None => self.plan.frontends.remove(key),
            };
        }
        // Only a new winner, or one by another field, changes what the other losers are told.
        let told =
            claims.iter().enumerate().filter(|(_, claim)| !same_winner || claim.service == *name);
        let mut conflicts: BTreeMap<_, _> = BTreeMap::from([(name.clone(), None)]);
        for (idx, claim) in told {
            let first = first.as_ref().filter(|_| idx > 0);
            let lost = first.map(|(first, _)| conflict(key, claim, first));
            conflicts.insert(claim.service.clone(), lost);
        }
        for (service, conflict) in conflicts {
            let at = (*key, service);
            if self.plan.conflicts.get(&at) == conflict.as_ref() {
                continue;
            }
            change.problems = true;
            match conflict {
                Some(problem) => self.plan.conflicts.insert(at, problem),
                None => self.plan.conflicts.remove(&at),
            };
        }
    }

    fn replace_health_check(
        &mut self,
        name: &NamespacedName,
        old: &ServicePlan,
        new: &ServicePlan,
        change: &mut PlanChange,
    ) {
        if old.health_check == new.health_check {
            return;
        }
        match new.health_check {
            Some(health_check) => {
                self.plan.health_checks.insert(name.clone(), health_check);
            }
            None => {
                self.plan.health_checks.remove(name);
            }
        }
        change.health_checks.insert(name.clone(), new.health_check);
    }

    fn replace_addresses(
        &mut self,
        name: &NamespacedName,
        old: &ServicePlan,
        new: &ServicePlan,
        change: &mut PlanChange,
    ) {
        let gone = old.addresses.iter().filter(|claim| !new.addresses.contains(claim));
        let come = new.addresses.iter().filter(|claim| !old.addresses.contains(claim));
        let moves = gone.map(|claim| (claim, false)).chain(come.map(|claim| (claim, true)));
        for (&(address, undefined), add) in moves {
            let before = self.plan.undefined(&address);
            let claim = AddressClaim { undefined, service: name.clone() };
            let known = self.plan.addresses.get(&address).map(|claims| &**claims);
            let mut claims: BTreeSet<AddressClaim> = known.into_iter().flatten().cloned().collect();
            if add {
                claims.insert(claim);
            } else {
                claims.remove(&claim);
            }
            if claims.is_empty() {
                self.plan.addresses.remove(&address);
            } else {
                self.plan.addresses.insert(address, claims.into_iter().collect());
            }
            let after = self.plan.undefined(&address);
            if before != after {
                change.addresses.insert(address, after);
            }
        }
    }
}

impl fmt::Debug for Planner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Planner").field("plan", &self.plan).finish_non_exhaustive()
    }
}

/// What the loser of a frontend is told.
fn conflict(key: &FrontendKey, loser: &Claim, winner: &Frontend) -> Problem {
    Problem::new(
        host_port::title(&loser.service),
        loser.kind.field(),
        format_args!(
            "{key} is already served for {} ({}); remove it from one of the two",
            host_port::title(&winner.service.service),
            winner.kind.name(),
        ),
    )
}
