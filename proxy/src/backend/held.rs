//! What the kernel holds for a frontend, in the plan's words, and where that is not what it should.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::backend::Holds;
use crate::plan::{Frontend, Masquerade, Route, SourceKind, Target};

/// What the kernel holds for a frontend: where each kind of source is led that this dataplane sees.
/// Empty when it holds nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// In the order of the kinds.
    pub routes: Vec<(SourceKind, HeldTarget)>,
    /// From which of them the source is rewritten, whatever the endpoint; `None` where that is not told.
    pub masqueraded: Option<Vec<SourceKind>>,
    /// What holds for all of them; `None` where that is not told.
    pub rules: Option<HeldRules>,
}

/// What the kernel holds for a frontend whatever the source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeldRules {
    /// Who may use it, if not everybody may.
    pub source_ranges: Option<BTreeSet<IpNet>>,
    /// For how long a client keeps its endpoint.
    pub affinity: Option<Duration>,
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
        let routes = kinds.iter().map(|kind| (*kind, target.clone())).collect();
        Self { routes, ..Self::default() }
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
        let of_a_kind = |(kind, held): &(SourceKind, HeldTarget)| {
            let route = desired.routes.from(*kind);
            let difference = held.difference(&route.target).or_else(|| {
                let masqueraded = self.masqueraded.as_ref()?;
                masquerading(masqueraded.contains(kind), route)
            })?;
            Some(format!("from a source that is {}, {difference}", words(*kind)))
        };
        let difference = self.routes.iter().find_map(of_a_kind);
        let difference = difference.or_else(|| self.rules.as_ref()?.difference(desired));
        difference.map_or(Holds::Same, Holds::Different)
    }
}

impl HeldRules {
    /// What is not as it should be, whatever the source.
    fn difference(&self, desired: &Frontend) -> Option<String> {
        let desired_ranges = desired.source_ranges.as_ref();
        let ranges = desired_ranges.map(|all| all.iter().map(IpNet::trunc).collect());
        if self.source_ranges != ranges {
            let [held, desired] =
                [&self.source_ranges, &ranges].map(|ranges| allowed(ranges.as_ref()));
            return Some(format!("the kernel lets {held} use it, the plan {desired}"));
        }
        if self.affinity != desired.affinity {
            let [held, desired] = [self.affinity, desired.affinity].map(kept);
            return Some(format!(
                "in the kernel a client keeps its endpoint {held}, in the plan {desired}"
            ));
        }
        None
    }
}

/// Whether the source is rewritten otherwise than it should be.
fn masquerading(is_masqueraded: bool, desired: &Route) -> Option<String> {
    match (is_masqueraded, desired.masquerade) {
        (true, Masquerade::Hairpin) => Some("the kernel masquerades, the plan does not".to_owned()),
        (false, Masquerade::Always) => Some("the plan masquerades, the kernel does not".to_owned()),
        (true, Masquerade::Always) | (false, Masquerade::Hairpin) => None,
    }
}

/// As a sentence wants it.
fn allowed(ranges: Option<&BTreeSet<IpNet>>) -> String {
    let Some(ranges) = ranges else { return "everybody".to_owned() };
    let ranges: Vec<String> = ranges.iter().map(IpNet::to_string).collect();
    if ranges.is_empty() { "nobody".to_owned() } else { format!("only {}", ranges.join(" ")) }
}

/// As above.
fn kept(affinity: Option<Duration>) -> String {
    affinity.map_or_else(
        || "for one connection".to_owned(),
        |timeout| format!("until {} s after its last connection", timeout.as_secs()),
    )
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
            write!(f, "{first}")?;
        } else {
            for (idx, (kind, target)) in self.routes.iter().enumerate() {
                let between = if idx == 0 { "" } else { "; " };
                write!(f, "{between}{kind}: {target}")?;
            }
        }
        let Some(HeldRules { source_ranges, affinity }) = &self.rules else { return Ok(()) };
        if source_ranges.is_some() {
            write!(f, " ({})", allowed(source_ranges.as_ref()))?;
        }
        if affinity.is_some() {
            write!(f, " (kept {})", kept(*affinity))?;
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
    use std::collections::BTreeSet;
    use std::sync::Arc;
    use std::time::Duration;

    use model::name::{NamespacedName, Protocol, ServicePortName};

    use super::{Held, HeldRules, HeldTarget, SourceKind};
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
        let (source_ranges, affinity, ends_connections) = (None, None, false);
        Frontend { service, kind, routes, source_ranges, affinity, ends_connections, serving }
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
            let held = Held::same(&[SourceKind::Node], held);
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
    fn what_holds_beside_the_endpoints_is_compared_too() {
        let one = to(&["10.0.0.1:80"]);
        let mut desired = frontend(one.clone(), one);
        desired.affinity = Some(Duration::from_secs(60));
        desired.source_ranges = Some(["192.0.2.0/24".parse().unwrap()].into());
        desired.routes.node.masquerade = Masquerade::Always;
        let rules = HeldRules {
            source_ranges: Some(BTreeSet::from(["192.0.2.0/24".parse().unwrap()])),
            affinity: Some(Duration::from_secs(60)),
        };
        let held = Held {
            masqueraded: Some(vec![SourceKind::Node]),
            rules: Some(rules.clone()),
            ..Held::same(&BOTH, &endpoints(&["10.0.0.1:80"]))
        };
        assert_eq!(held.compare(&desired), Holds::Same);
        let forever = HeldRules { affinity: None, ..rules.clone() };
        let open = HeldRules { source_ranges: None, ..rules };
        for (held, expected) in [
            (
                Held { masqueraded: Some(Vec::new()), ..held.clone() },
                "from a source that is this node, the plan masquerades, the kernel does not",
            ),
            (
                Held { masqueraded: Some(BOTH.to_vec()), ..held.clone() },
                "from a source that is a pod of this node, the kernel masquerades, the plan does not",
            ),
            (
                Held { rules: Some(forever), ..held.clone() },
                "in the kernel a client keeps its endpoint for one connection, in the plan until \
                 60 s after its last connection",
            ),
            (
                Held { rules: Some(open), ..held },
                "the kernel lets everybody use it, the plan only 192.0.2.0/24",
            ),
        ] {
            assert_eq!(held.compare(&desired), Holds::Different(expected.to_owned()));
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
        let held = Held { routes, ..Held::default() };
        assert_eq!(held.to_string(), "pod: 10.0.0.1:80; node: DROP");
        assert_eq!(held.compare(&frontend(to(&["10.0.0.1:80"]), Target::Drop)), Holds::Same);
    }
}
