//! What the kernel holds for a frontend, in the plan's words, and where that is not what it should.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;

use crate::backend::Holds;
use crate::plan::{Frontend, SourceKind, Target};

/// What the kernel holds for a frontend: where each kind of source is led that this dataplane sees.
/// Empty when it holds nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// In the order of the kinds.
    pub routes: Vec<(SourceKind, HeldTarget)>,
}

/// Where the kernel leads new connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeldTarget {
    /// To one of these.
    Endpoints(BTreeSet<SocketAddr>),
    /// Nowhere and silently.
    Drop,
    /// Refused.
    Reject,
}

impl Held {
    /// The same for several kinds of source.
    pub fn same(kinds: &[SourceKind], target: &HeldTarget) -> Self {
        Self { routes: kinds.iter().map(|kind| (*kind, target.clone())).collect() }
    }

    /// Whether the kernel holds nothing.
    pub const fn is_empty(&self) -> bool {
        self.routes.is_empty()
    }

    /// Where a kind of source is led; `None` if this dataplane does not see it.
    pub fn from(&self, source: SourceKind) -> Option<&HeldTarget> {
        self.routes.iter().find(|(kind, _)| *kind == source).map(|(_, target)| target)
    }

    /// Whether that is what a frontend asks for; if not, the first difference.
    pub fn compare(&self, desired: &Frontend) -> Holds {
        if self.is_empty() {
            return Holds::Nothing;
        }
        let difference = self.routes.iter().find_map(|(kind, held)| {
            let difference = held.difference(&desired.routes.from(*kind).target)?;
            Some(format!("from a source that is {}, {difference}", words(*kind)))
        });
        difference.map_or(Holds::Same, Holds::Different)
    }
}

impl HeldTarget {
    /// What is not as it should be: `the plan leads to 10.0.0.1:80, which the kernel lacks`.
    fn difference(&self, desired: &Target) -> Option<String> {
        match (self, desired) {
            (Self::Endpoints(held), Target::Endpoints(set)) => {
                let desired: BTreeSet<SocketAddr> =
                    set.iter().map(|endpoint| endpoint.address).collect();
                let lacks = desired.difference(held).next();
                let too_much = held.difference(&desired).next();
                match (lacks, too_much) {
                    (Some(lacks), _) => Some(format!("the kernel lacks endpoint {lacks}")),
                    (None, Some(more)) => {
                        Some(format!("the kernel has endpoint {more}, which the plan has not"))
                    }
                    (None, None) => None,
                }
            }
            (Self::Drop, Target::Drop) | (Self::Reject, Target::Reject) => None,
            (held, desired) => Some(format!("the kernel has {held}, the plan {desired}")),
        }
    }
}

/// As a sentence wants it.
const fn words(kind: SourceKind) -> &'static str {
    match kind {
        SourceKind::Pod => "a pod of this node",
        SourceKind::Node => "this node",
        SourceKind::Outside => "outside",
    }
}

impl fmt::Display for Held {
    /// Kinds that are led to the same place are told together.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((_, first)) = self.routes.first() else { return f.write_str("nothing") };
        if self.routes.iter().all(|(_, target)| target == first) {
            return write!(f, "{first}");
        }
        for (idx, (kind, target)) in self.routes.iter().enumerate() {
            let between = if idx == 0 { "" } else { "; " };
            write!(f, "{between}{kind}: {target}")?;
        }
        Ok(())
    }
}

impl fmt::Display for HeldTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Endpoints(set) => {
                let endpoints: Vec<String> = set.iter().map(SocketAddr::to_string).collect();
                f.write_str(&endpoints.join(" "))
            }
            Self::Drop => f.write_str("DROP"),
            Self::Reject => f.write_str("REJECT"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use model::name::{NamespacedName, Protocol, ServicePortName};

    use super::{Held, HeldTarget, SourceKind};
    use crate::backend::Holds;
    use crate::plan::{
        Endpoint, EndpointSet, Frontend, FrontendKind, Masquerade, Route, Routes, Target,
    };

    const BOTH: [SourceKind; 2] = [SourceKind::Pod, SourceKind::Node];

    fn endpoints(addresses: &[&str]) -> HeldTarget {
        HeldTarget::Endpoints(addresses.iter().map(|text| text.parse().unwrap()).collect())
    }

    fn to(addresses: &[&str]) -> Target {
        let endpoint =
            |text: &&str| Endpoint { address: text.parse().unwrap(), weight: 1, local: false };
        EndpointSet::new(addresses.iter().map(endpoint).collect())
            .map_or(Target::Reject, Target::Endpoints)
    }

    fn frontend(pod: Target, node: Target) -> Frontend {
        let route = |target| Route::new(target, Masquerade::Hairpin);
        let routes = Routes { pod: route(pod), node: route(node), outside: route(Target::Reject) };
        let service = ServicePortName {
            service: NamespacedName::new("shop", "web"),
            port: "".into(),
            protocol: Protocol::Tcp,
        };
        let kind = FrontendKind::ClusterIp;
        let serving = Arc::default();
        Frontend { service, kind, routes, source_ranges: None, affinity: None, serving }
    }

    #[test]
    fn what_is_held_for_every_kind_that_is_seen_is_the_same() {
        let held = Held::same(&BOTH, &endpoints(&["10.0.0.2:80", "10.0.0.1:80"]));
        let both = to(&["10.0.0.1:80", "10.0.0.2:80"]);
        assert_eq!(held.compare(&frontend(both.clone(), both)), Holds::Same);
        assert_eq!(held.to_string(), "10.0.0.1:80 10.0.0.2:80");
        assert_eq!(held.from(SourceKind::Outside), None);
    }

    #[test]
    fn the_first_difference_is_told() {
        let one = to(&["10.0.0.1:80"]);
        let told = |held: &HeldTarget, desired: Target| {
            let held = Held { routes: vec![(SourceKind::Node, held.clone())] };
            match held.compare(&frontend(one.clone(), desired)) {
                Holds::Different(told) => told,
                other => panic!("{other:?}"),
            }
        };
        for (held, desired, expected) in [
            (endpoints(&[]), one.clone(), "the kernel lacks endpoint 10.0.0.1:80"),
            (
                endpoints(&["10.0.0.1:80", "10.0.0.9:80"]),
                one.clone(),
                "the kernel has endpoint 10.0.0.9:80, which the plan has not",
            ),
            (HeldTarget::Drop, one.clone(), "the kernel has DROP, the plan 10.0.0.1:80"),
            (HeldTarget::Reject, Target::Drop, "the kernel has REJECT, the plan DROP"),
        ] {
            let expected = format!("from a source that is this node, {expected}");
            assert_eq!(told(&held, desired), expected);
        }
    }

    #[test]
    fn nothing_is_nothing_and_kinds_that_differ_are_told_apart() {
        let empty = Held::default();
        assert_eq!(empty.compare(&frontend(Target::Drop, Target::Drop)), Holds::Nothing);
        assert_eq!(empty.to_string(), "nothing");
        let routes = vec![
            (SourceKind::Pod, endpoints(&["10.0.0.1:80"])),
            (SourceKind::Node, HeldTarget::Drop),
        ];
        let held = Held { routes };
        assert_eq!(held.to_string(), "pod: 10.0.0.1:80; node: DROP");
        assert_eq!(held.compare(&frontend(to(&["10.0.0.1:80"]), Target::Drop)), Holds::Same);
    }
}
