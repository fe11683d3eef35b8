//! Which endpoints of a Service port may serve: policies, topology, terminating fallback. `[pure]`
//!
//! Two sets come out, chosen independently of each other (KEP-1669): what traffic under a
//! `Cluster` policy may use, and what traffic under a `Local` policy may.

use std::sync::Arc;

use model::slices::MergedEndpoint;

/// What selection depends on besides the endpoints.
#[derive(Clone, Debug)]
pub struct Policies {
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// The port has a node port, a load balancer's VIP or an external IP.
    pub externally_accessible: bool,
}

/// Where this node is, for topology.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The node's name.
    pub node: &'a str,
    /// Its zone, when it is labelled with one.
    pub zone: Option<&'a str>,
}

/// The endpoints that may serve one Service port, of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection<'a> {
    /// For traffic under a `Cluster` policy; empty when no traffic is.
    pub cluster: Vec<&'a MergedEndpoint>,
    /// For traffic under a `Local` policy; empty when no traffic is.
    pub local: Vec<&'a MergedEndpoint>,
    /// Some endpoint could serve, though maybe not here: DROP rather than REJECT.
    pub has_any: bool,
    /// How `cluster` was narrowed.
    pub topology: Topology,
    /// `cluster` are terminating endpoints, as none is ready.
    pub cluster_fallback: bool,
    /// `local` are terminating endpoints, as none here is ready.
    pub local_fallback: bool,
}

/// How the `Cluster` set is narrowed, by the slices' hints alone (KEP-2433, KEP-3015).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Topology {
    /// To the endpoints hinted for this node.
    SameNode,
    /// To the endpoints hinted for this node's zone.
    SameZone,
    /// Not at all.
    Off,
}

impl Policies {
    /// Whether some traffic is under a `Cluster` policy. A Service with frontends for the outside
    /// has some even under `externalTrafficPolicy: Local`: what its own pods and node send.
    pub const fn use_cluster(&self) -> bool {
        !self.internal_local || self.externally_accessible
    }

    /// Whether some traffic is under a `Local` policy.
    pub const fn use_local(&self) -> bool {
        self.internal_local || (self.external_local && self.externally_accessible)
    }
}

/// Selects among the endpoints of one Service port, of one family.
pub fn select<'a>(
    endpoints: &[&'a MergedEndpoint],
    policies: &Policies,
    place: Place<'_>,
) -> Selection<'a> {
    let mut selection = Selection {
        cluster: Vec::new(),
        local: Vec::new(),
        has_any: false,
        topology: Topology::Off,
        cluster_fallback: false,
        local_fallback: false,
    };
    if policies.use_cluster() {
        selection.topology = topology(endpoints, place);
        selection.cluster = only(endpoints, |endpoint| {
            endpoint.conditions.ready && available(endpoint, selection.topology, place)
        });
        if selection.cluster.is_empty() {
            selection.cluster = only(endpoints, draining);
            selection.cluster_fallback = !selection.cluster.is_empty();
        }
        selection.has_any = !selection.cluster.is_empty();
    }
    if policies.use_local() {
        selection.local = only(endpoints, |endpoint| endpoint.local && endpoint.conditions.ready);
        if selection.local.is_empty() {
            selection.local = only(endpoints, |endpoint| endpoint.local && draining(endpoint));
            selection.local_fallback = !selection.local.is_empty();
        }
        selection.has_any |=
            endpoints.iter().any(|endpoint| endpoint.conditions.ready || draining(endpoint));
    }
    selection
}

/// Terminating, but still serving: better than nothing (KEP-1669).
const fn draining(endpoint: &MergedEndpoint) -> bool {
    endpoint.conditions.serving && endpoint.conditions.terminating
}

/// A level holds only if every ready endpoint is hinted on it and one of them for this place: an
/// endpoint without a hint means that the hints are not to be trusted.
fn topology(endpoints: &[&MergedEndpoint], place: Place<'_>) -> Topology {
    let holds = |hints: fn(&MergedEndpoint) -> &[Arc<str>], here: &str| {
        let mut ready = endpoints.iter().filter(|endpoint| endpoint.conditions.ready);
        ready.clone().all(|endpoint| !hints(endpoint).is_empty())
            && ready.any(|endpoint| names(hints(endpoint), here))
    };
    if holds(node_hints, place.node) {
        Topology::SameNode
    } else if place.zone.is_some_and(|zone| holds(zone_hints, zone)) {
        Topology::SameZone
    } else {
        Topology::Off
    }
}

/// Whether topology leaves an endpoint to this place.
pub fn available(endpoint: &MergedEndpoint, topology: Topology, place: Place<'_>) -> bool {
    match topology {
        Topology::SameNode => names(node_hints(endpoint), place.node),
        Topology::SameZone => place.zone.is_some_and(|zone| names(zone_hints(endpoint), zone)),
        Topology::Off => true,
    }
}

fn node_hints(endpoint: &MergedEndpoint) -> &[Arc<str>] {
    endpoint.hints.as_ref().map(|hints| hints.for_nodes.as_slice()).unwrap_or_default()
}

fn zone_hints(endpoint: &MergedEndpoint) -> &[Arc<str>] {
    endpoint.hints.as_ref().map(|hints| hints.for_zones.as_slice()).unwrap_or_default()
}

fn names(hints: &[Arc<str>], here: &str) -> bool {
    hints.iter().any(|hint| **hint == *here)
}

fn only<'a>(
    endpoints: &[&'a MergedEndpoint],
    usable: impl Fn(&MergedEndpoint) -> bool,
) -> Vec<&'a MergedEndpoint> {
    endpoints.iter().copied().filter(|endpoint| usable(endpoint)).collect()
}

#[cfg(test)]
mod tests {
    //! What the cases cannot see: a set that no traffic uses is not made, and a fallback says so.

    use model::endpoint::Conditions;

    use super::*;

    const HERE: Place<'_> = Place { node: "node-a", zone: None };

    fn endpoint(last: u8, local: bool, conditions: Conditions) -> MergedEndpoint {
        MergedEndpoint {
            address: ([10, 0, 0, last], 80).into(),
            conditions,
            local,
            zone: None,
            hints: None,
            hostname: None,
            pod: None,
            weight: None,
        }
    }

    fn policies(internal_local: bool, external_local: bool, accessible: bool) -> Policies {
        Policies { internal_local, external_local, externally_accessible: accessible }
    }

    #[test]
    fn a_set_that_no_traffic_uses_is_empty() {
        let here = endpoint(1, true, Conditions::default());
        let sizes = |policies| {
            let selection = select(&[&here], &policies, HERE);
            (selection.cluster.len(), selection.local.len(), selection.has_any)
        };
        assert_eq!(sizes(policies(false, false, false)), (1, 0, true));
        assert_eq!(sizes(policies(false, false, true)), (1, 0, true));
        assert_eq!(sizes(policies(false, true, false)), (1, 0, true));
        assert_eq!(sizes(policies(false, true, true)), (1, 1, true));
        assert_eq!(sizes(policies(true, false, false)), (0, 1, true));
        assert_eq!(sizes(policies(true, false, true)), (1, 1, true));
    }

    #[test]
    fn a_fallback_says_so_for_each_set_by_itself() {
        let draining = Conditions { ready: false, serving: true, terminating: true };
        let unready = Conditions { ready: false, serving: true, terminating: false };
        let fell_back = |here, there| {
            let (here, there) = (endpoint(1, true, here), endpoint(2, false, there));
            let selection = select(&[&here, &there], &policies(false, true, true), HERE);
            (selection.cluster_fallback, selection.local_fallback)
        };
        assert_eq!(fell_back(Conditions::default(), Conditions::default()), (false, false));
        assert_eq!(fell_back(draining, Conditions::default()), (false, true));
        assert_eq!(fell_back(draining, draining), (true, true));
        assert_eq!(fell_back(unready, draining), (true, false));
        assert_eq!(fell_back(unready, unready), (false, false));
    }
}
