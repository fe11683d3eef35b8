//! The oracle: what becomes of one new connection, and why. `[pure]`

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use model::cluster::Snapshot;
use model::name::{Family, Protocol, ServicePortName};

mod why;

use crate::config::NodeConfig;
use crate::plan::{
    At, EndpointSet, Frontend, FrontendKey, FrontendKind, Masquerade, Plan, Route, SourceKind,
    Target, Undefined,
};

/// The first packet of a connection, as it is sent or arrives at the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Where it comes from.
    pub source: IpAddr,
    /// The interface it arrives on; `None` when it is not known, or made on this node.
    pub interface: Option<Arc<str>>,
    /// Where it is sent to; of the source's family.
    pub destination: SocketAddr,
    /// Its transport protocol.
    pub protocol: Protocol,
}

/// What a packet is traced through.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The plan, made of the two below.
    pub plan: &'a Plan,
    /// The cluster, for the reasons.
    pub snapshot: &'a Snapshot,
    /// The node's configuration, for the reasons.
    pub config: &'a NodeConfig,
    /// The addresses of the node's interfaces; loopback ones need not be listed.
    pub host: &'a BTreeSet<IpAddr>,
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The outcome.
    pub verdict: Verdict,
    /// Whether its source is rewritten.
    pub masquerade: Masquerading,
    /// The kind of source that it counts as.
    pub source: SourceKind,
    /// The frontend that decides, and where it was found.
    pub frontend: Option<(FrontendKey, Arc<Frontend>)>,
    /// The way to the outcome, line by line.
    pub why: Vec<String>,
}

/// The outcome for a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes to one of these.
    Endpoints(EndpointSet),
    /// It is dropped without an answer.
    Drop,
    /// It is refused with ICMP port unreachable.
    Reject,
    /// It is none of the proxy's business, and goes where it would go without one.
    NotOurs,
}

/// Whether the source of a connection is rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Masquerading {
    /// It is not.
    No,
    /// It is.
    Yes,
    /// Only if the endpoint chosen is the source itself; there are others.
    IfItself,
}

impl Decision {
    /// The Service's port that decides.
    pub fn service(&self) -> Option<&ServicePortName> {
        self.frontend.as_ref().map(|(_, frontend)| &frontend.service)
    }

    /// The kind of frontend that decides.
    pub fn kind(&self) -> Option<FrontendKind> {
        self.frontend.as_ref().map(|(_, frontend)| frontend.kind)
    }
}

/// What becomes of a packet, and why.
pub fn trace(view: &View<'_>, packet: &Packet) -> Decision {
    let source = source_kind(view, packet);
    let step = lookup(view, packet, source);
    let (verdict, masquerade) = outcome(&step, packet, source);
    let why = why::lines(view, packet, source, &step);
    let frontend = match step {
        Step::Outside(key, frontend) | Step::Route(key, frontend) => Some((key, frontend)),
        _ => None,
    };
    Decision { verdict, masquerade, source, frontend, why }
}

/// Where in the order of lookups (see [`crate::plan`]) a packet is decided.
#[derive(Clone, Debug)]
enum Step {
    /// To loopback, from elsewhere.
    Martian,
    /// A frontend whose source ranges leave the source out.
    Outside(FrontendKey, Arc<Frontend>),
    /// A frontend.
    Route(FrontendKey, Arc<Frontend>),
    /// A Service's address, at a port that no frontend has.
    Undefined(Undefined),
    /// In a Service CIDR, but no Service's.
    Unallocated,
    /// Nothing knows it.
    NotOurs,
}

fn source_kind(view: &View<'_>, packet: &Packet) -> SourceKind {
    let pods = view.plan.settings.pods.get(Family::of(&packet.source)).as_ref();
    if pods.is_some_and(|pods| pods.matches(packet.source, packet.interface.as_deref())) {
        SourceKind::Pod
    } else if is_host(view, &packet.source) {
        SourceKind::Node
    } else {
        SourceKind::Outside
    }
}

fn is_host(view: &View<'_>, address: &IpAddr) -> bool {
    address.is_loopback() || view.host.contains(address)
}

fn lookup(view: &View<'_>, packet: &Packet, source: SourceKind) -> Step {
    let plan = view.plan;
    let address = packet.destination.ip();
    if address.is_loopback() && source != SourceKind::Node {
        return Step::Martian;
    }
    if let Some((key, frontend)) = find(plan, At::Address(address), packet) {
        return if is_outside(&frontend, packet) {
            Step::Outside(key, frontend)
        } else {
            Step::Route(key, frontend)
        };
    }
    match plan.undefined(&address) {
        Some(Undefined::NodePort) | None => {}
        Some(undefined) => return Step::Undefined(undefined),
    }
    let family = Family::of(&address);
    if is_host(view, &address)
        && plan.settings.node_ports.get(family).serve(&address)
        && let Some((key, frontend)) = find(plan, At::NodePort(family), packet)
    {
        return Step::Route(key, frontend);
    }
    if plan.settings.service_cidrs.iter().any(|range| range.contains(&address)) {
        return Step::Unallocated;
    }
    Step::NotOurs
}

fn find(plan: &Plan, at: At, packet: &Packet) -> Option<(FrontendKey, Arc<Frontend>)> {
    let key = FrontendKey { at, port: packet.destination.port(), protocol: packet.protocol };
    plan.frontends.get(&key).map(|frontend| (key, Arc::clone(frontend)))
}

fn is_outside(frontend: &Frontend, packet: &Packet) -> bool {
    frontend
        .source_ranges
        .as_ref()
        .is_some_and(|ranges| !ranges.iter().any(|range| range.contains(&packet.source)))
}

fn outcome(step: &Step, packet: &Packet, source: SourceKind) -> (Verdict, Masquerading) {
    match step {
        Step::Martian | Step::Outside(..) | Step::Unallocated => (Verdict::Drop, Masquerading::No),
        Step::Undefined(Undefined::Reject) => (Verdict::Reject, Masquerading::No),
        Step::Undefined(_) | Step::NotOurs => (Verdict::NotOurs, Masquerading::No),
        Step::Route(_, frontend) => {
            let route = frontend.routes.from(source);
            match &route.target {
                Target::Endpoints(set) => {
                    (Verdict::Endpoints(set.clone()), masquerading(route, set, packet))
                }
                Target::Drop => (Verdict::Drop, Masquerading::No),
                Target::Reject => (Verdict::Reject, Masquerading::No),
            }
        }
    }
}

fn masquerading(route: &Route, set: &EndpointSet, packet: &Packet) -> Masquerading {
    let is_itself = |address: SocketAddr| address.ip() == packet.source;
    if route.masquerade == Masquerade::Always
        || set.iter().all(|endpoint| is_itself(endpoint.address))
    {
        Masquerading::Yes
    } else if set.iter().any(|endpoint| is_itself(endpoint.address)) {
        Masquerading::IfItself
    } else {
        Masquerading::No
    }
}
