//! Routes: which endpoints a new connection may go to, or why to none.

use std::fmt;
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::Arc;

/// A frontend's route for each kind of source. The kinds are asked in this order, and the first
/// that fits holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routes {
    /// From a pod of this node, as [`crate::plan::settings::PodSource`] tells.
    pub pod: Route,
    /// From an address of this node: its host processes, loopback included.
    pub node: Route,
    /// From anywhere else.
    pub outside: Route,
}

impl Routes {
    /// The same route for all sources.
    pub fn same(route: &Route) -> Self {
        Self { pod: route.clone(), node: route.clone(), outside: route.clone() }
    }

    /// The route from one kind of source.
    pub const fn from(&self, source: SourceKind) -> &Route {
        match source {
            SourceKind::Pod => &self.pod,
            SourceKind::Node => &self.node,
            SourceKind::Outside => &self.outside,
        }
    }
}

/// Where a packet comes from, as far as routing cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SourceKind {
    /// A pod of this node.
    Pod,
    /// This node itself.
    Node,
    /// Anything else.
    Outside,
}

/// What becomes of a new connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where it goes.
    pub target: Target,
    /// Whether its source is rewritten.
    pub masquerade: Masquerade,
}

impl Route {
    /// A route. What goes nowhere is not masqueraded, so that equal routes are equal values.
    pub const fn new(target: Target, masquerade: Masquerade) -> Self {
        match target {
            Target::Endpoints(_) => Self { target, masquerade },
            Target::Drop | Target::Reject => Self { target, masquerade: Masquerade::Hairpin },
        }
    }
}

/// Where a new connection goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// To one of these, each as likely as its weight says.
    Endpoints(EndpointSet),
    /// Nowhere and silently: there are endpoints, but not here (a `Local` policy).
    Drop,
    /// Refused with ICMP port unreachable, TCP as well: there is no endpoint anywhere.
    Reject,
}

/// When the source of a connection is rewritten, to the address of the device it leaves by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Masquerade {
    /// Only when the endpoint chosen is the source itself, so that its reply comes back here.
    Hairpin,
    /// Always.
    Always,
}

/// The endpoints that may serve: never empty, ordered by address, shared by the frontends of a
/// Service port that use the same ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSet(Arc<[Endpoint]>);

/// One endpoint of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// Where it listens.
    pub address: SocketAddr,
    /// How often it is chosen relative to the others: 1 unless the Service asks otherwise.
    pub weight: u16,
    /// On this node.
    pub local: bool,
}

impl EndpointSet {
    /// The set of these endpoints; `None` when there are none.
    pub fn new(mut endpoints: Vec<Endpoint>) -> Option<Self> {
        endpoints.sort_unstable();
        endpoints.dedup_by_key(|endpoint| endpoint.address);
        (!endpoints.is_empty()).then(|| Self(endpoints.into()))
    }

    /// Whether every endpoint is as likely as the next.
    pub fn is_uniform(&self) -> bool {
        self.0.windows(2).all(|pair| match pair {
            [a, b] => a.weight == b.weight,
            _ => true,
        })
    }
}

impl Deref for EndpointSet {
    type Target = [Endpoint];

    fn deref(&self) -> &[Endpoint] {
        &self.0
    }
}

impl fmt::Display for SourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pod => "pod",
            Self::Node => "node",
            Self::Outside => "outside",
        })
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.target)?;
        match (&self.target, self.masquerade) {
            (Target::Endpoints(_), Masquerade::Always) => f.write_str(" masquerade"),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Endpoints(set) => write!(f, "{set}"),
            Self::Drop => f.write_str("DROP"),
            Self::Reject => f.write_str("REJECT"),
        }
    }
}

impl fmt::Display for EndpointSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let uniform = self.is_uniform();
        for (idx, endpoint) in self.0.iter().enumerate() {
            if idx > 0 {
                f.write_str(" ")?;
            }
            write!(f, "{}", endpoint.address)?;
            if !uniform {
                write!(f, "*{}", endpoint.weight)?;
            }
        }
        Ok(())
    }
}
