//! The plan: what the kernel must do, as one ordered, printable value. `[pure]`
//!
//! ```text
//!  Snapshot + NodeConfig ─▶ build (one Service at a time) ─▶ planner (who wins what) ─▶ Plan
//!                                                              └─ replan: only what differs ─▶ PlanChange
//! ```
//!
//! A packet is looked up in this order, and a dataplane must keep it:
//!
//! 1. To loopback, but not from this node: dropped (CVE-2020-8558).
//! 2. A frontend at its destination address, port and protocol: that frontend.
//! 3. A destination in [`Plan::addresses`]: what [`Undefined`] says.
//! 4. A destination that is this node's and serves node ports ([`settings::NodePorts`]): the
//!    frontend at [`At::NodePort`], if there is one.
//! 5. A destination in a Service CIDR: dropped.
//! 6. Anything else is not ours.
//!
//! In a frontend: first the source ranges, then the route for the kind of source (pod, node,
//! outside; the first that fits). Only new connections are asked; established ones stay where
//! they are.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;
use model::name::NamespacedName;
use model::problem::Problem;

mod build;
pub mod frontend;
pub mod left_alone;
pub mod planner;
pub mod print;
pub mod route;
pub mod settings;
pub mod trace;

pub use frontend::{At, Frontend, FrontendKey, FrontendKind};
pub use left_alone::LeftAlone;
pub use planner::{Planner, plan};
pub use route::{Endpoint, EndpointSet, Masquerade, Route, Routes, SourceKind, Target};
pub use settings::Settings;

use crate::by_family::ByFamily;

/// What the kernel must do. Equal inputs give equal plans; cloning copies a few pointers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// What holds for all frontends.
    pub settings: Arc<Settings>,
    /// Every frontend that is served, by what a packet is looked up by.
    pub frontends: OrdMap<FrontendKey, Arc<Frontend>>,
    /// Every address that Services claim, with all who claim it, ordered; never nobody. The first
    /// claim decides what happens at a port that no frontend has.
    pub addresses: OrdMap<IpAddr, Arc<[AddressClaim]>>,
    /// Health check node ports, by the Service they tell about.
    pub health_checks: OrdMap<NamespacedName, HealthCheck>,
    /// Per Service, what it asks for by itself, whether or not it wins it.
    pub services: OrdMap<NamespacedName, Arc<ServicePlan>>,
    /// Per frontend and Service that lost it to another, why.
    pub conflicts: OrdMap<(FrontendKey, NamespacedName), Problem>,
    /// Whose sockets are not translated, where sockets are.
    pub left_alone: Arc<LeftAlone>,
}

impl Plan {
    /// What happens at a port of this address that no frontend has; `None` if no Service has it.
    pub fn undefined(&self, address: &IpAddr) -> Option<Undefined> {
        self.addresses.get(address)?.first().map(|claim| claim.undefined)
    }

    /// Everything that was left out, ordered.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.services
            .values()
            .flat_map(|service| service.problems.iter())
            .chain(self.conflicts.values())
            .chain(&self.left_alone.problems)
    }
}

/// One Service's claim to an address. Ordered by who decides.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressClaim {
    /// What the claim means for ports that no frontend has.
    pub undefined: Undefined,
    /// Who claims it.
    pub service: NamespacedName,
}

/// What happens to a packet for an address that Services own, at a port that none of them has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Undefined {
    /// A cluster IP: rejected. It is nobody else's.
    Reject,
    /// A load balancer's VIP or an external IP, or the cluster IP of a Service that somebody else
    /// routes: left alone, and no node port is served there.
    Leave,
    /// An address that is also the node's own: left alone, and node ports are served there.
    NodePort,
}

/// The health check node port of one Service (`type: LoadBalancer` with
/// `externalTrafficPolicy: Local`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// `spec.healthCheckNodePort`.
    pub port: u16,
    /// Distinct addresses of ready endpoints on this node, over all ports of the Service. Those
    /// that terminate do not count, even while they carry traffic.
    pub local_endpoints: ByFamily<usize>,
}

/// What one Service asks for by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServicePlan {
    /// `metadata.creationTimestamp`: the older Service wins a conflict.
    pub created: i64,
    /// Its frontends, ordered by key.
    pub frontends: Vec<(FrontendKey, Arc<Frontend>)>,
    /// Those of them that the backend cannot do. It keeps its claim to them, so that the backend of
    /// a node does not decide who has an address; nobody serves them here.
    pub refused: BTreeSet<FrontendKey>,
    /// Its addresses, ordered, and what happens at other ports of them.
    pub addresses: Vec<(IpAddr, Undefined)>,
    /// Its health check node port.
    pub health_check: Option<HealthCheck>,
    /// Its ports that have endpoints, though none on this node as its policy demands.
    pub no_local_endpoints: NoLocalEndpoints,
    /// What of it is left out, and why.
    pub problems: Vec<Problem>,
}

impl ServicePlan {
    /// The frontend it asks for at a key.
    pub fn frontend(&self, key: &FrontendKey) -> Option<&Arc<Frontend>> {
        let idx = self.frontends.binary_search_by(|(other, _)| other.cmp(key)).ok()?;
        self.frontends.get(idx).map(|(_, frontend)| frontend)
    }
}

/// How many Service ports, per family, have endpoints but none on this node, which a `Local`
/// policy demands (`kubeproxy_sync_proxy_rules_no_local_endpoints_total`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoLocalEndpoints {
    /// Under `internalTrafficPolicy: Local`.
    pub internal: ByFamily<usize>,
    /// Under `externalTrafficPolicy: Local`.
    pub external: ByFamily<usize>,
}

/// What differs between two plans: after them, the value; `None` for what is gone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlanChange {
    /// The settings, if they differ.
    pub settings: Option<Arc<Settings>>,
    /// Frontends that differ.
    pub frontends: BTreeMap<FrontendKey, Option<Arc<Frontend>>>,
    /// Addresses whose [`Undefined`] differs.
    pub addresses: BTreeMap<IpAddr, Option<Undefined>>,
    /// Health check node ports that differ.
    pub health_checks: BTreeMap<NamespacedName, Option<HealthCheck>>,
    /// Whose sockets are not translated, if that differs.
    pub left_alone: Option<Arc<LeftAlone>>,
    /// Some problem appeared or went.
    pub problems: bool,
}

impl PlanChange {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests;
