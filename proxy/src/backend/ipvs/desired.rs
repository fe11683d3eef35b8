//! From frontends to what the kernel is given. `[pure]`
//!
//! ```text
//!  frontend ─▶ where it is ─▶ a virtual service there: endpoints for sources from outside
//!              (each of the ─▶ another, by mark, for pods or the node where theirs are others
//!              node's own)
//!                           ─▶ entries of the sets: masqueraded, restricted, dropped, led by mark
//! ```

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use model::name::{Family, Protocol, ServicePortName};

use super::Options;
use super::item::{
    self, Head, Key, MH_PORT, PERSISTENT, SH_FALLBACK, Set, Value, Virtual, VirtualKey,
};
use crate::plan::{
    EndpointSet, Frontend, FrontendKey, FrontendKind, Masquerade, Route, Settings, SourceKind,
    Target,
};

/// Of a mark, what is of ours. Among the rest are bits that others ask for: 0x4000 has a packet
/// masqueraded, 0x8000 has the kubelet drop it.
pub(super) const MARKS: u32 = 0x00ff_3fff;
/// Of that, what is set for TCP.
pub(super) const OF_TCP: u32 = 0x1;
/// And what tells virtual services apart.
const NUMBERS: u32 = MARKS & !OF_TCP;
/// The marks given so far.
#[derive(Debug, Default)]
pub(super) struct Marks {
    given: HashMap<Marked, u32>,
    taken: HashSet<u32>,
}

/// What has a mark of its own: of a Service port one kind of frontend, for one kind of source.
type Marked = (ServicePortName, Family, (FrontendKind, SourceKind));

impl Marks {
    /// The mark of that; the same as long as the process lives, and most likely after it.
    fn of(&mut self, marked: Marked) -> u32 {
        if let Some(mark) = self.given.get(&marked) {
            return *mark;
        }
        let (name, family, part) = &marked;
        let text = format!("{name}{:?}{family:?}{part:?}", name.protocol);
        let mut mark = fnv(&text) & NUMBERS;
        while mark == 0 || !self.taken.insert(mark) {
            // A carry passes the bits that are not used.
            mark = (mark | !NUMBERS).wrapping_add(1) & NUMBERS;
        }
        if name.protocol == Protocol::Tcp {
            mark |= OF_TCP;
        }
        self.given.insert(marked, mark);
        mark
    }
}

/// FNV-1a.
fn fnv(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// What frontends are made into.
#[derive(Debug)]
pub(super) struct Context<'a> {
    /// The flags.
    pub(super) options: &'a Options,
    /// The settings.
    pub(super) settings: &'a Settings,
    /// The marks.
    pub(super) marks: &'a mut Marks,
}

impl Context<'_> {
    /// All that a frontend is made of, at each of these addresses.
    pub(super) fn make(
        &mut self,
        key: &FrontendKey,
        frontend: &Frontend,
        addresses: &[IpAddr],
    ) -> BTreeMap<Key, Value> {
        let mut made = BTreeMap::new();
        for address in addresses {
            let at = SocketAddr::new(*address, key.port);
            self.at(at, key.protocol, frontend, &mut made);
        }
        made
    }

    fn at(
        &mut self,
        at: SocketAddr,
        protocol: Protocol,
        frontend: &Frontend,
        made: &mut BTreeMap<Key, Value>,
    ) {
        let family = Family::of(&at.ip());
        let text = item::at(at, protocol);
        let mut add = |set: Set, text: String, value| {
            made.insert(Key::Entry(set, family, text), value);
        };
        let (set, local) = sets(frontend.kind);
        add(set, text.clone(), Value::There);
        let routes = &frontend.routes;
        if let Some(local) = local.filter(|_| routes.outside.masquerade == Masquerade::Hairpin) {
            add(local, text.clone(), Value::There);
        }
        if let Some(ranges) = &frontend.source_ranges {
            add(Set::Firewall, text.clone(), Value::There);
            for range in ranges.iter() {
                let range = if range.prefix_len() == range.max_prefix_len() {
                    range.addr().to_string()
                } else {
                    range.to_string()
                };
                add(Set::SourceCidr, format!("{text},{range}"), Value::There);
            }
        }
        let has_pods = self.settings.pods.get(family).is_some();
        let pod = has_pods.then_some((SourceKind::Pod, &routes.pod));
        let inner: Vec<(SourceKind, &Route)> =
            pod.into_iter().chain([(SourceKind::Node, &routes.node)]).collect();
        let outside = (SourceKind::Outside, &routes.outside);
        // What is dropped comes no further: the way of others may stand in its place.
        let base = std::iter::once(&outside).chain(&inner).find_map(|(_, route)| endpoints(route));
        let mut virtuals = vec![(VirtualKey::At(at, protocol), base)];
        for (kind, route) in inner.into_iter().chain([outside]) {
            let (drop, lead) = by_source(kind);
            if route.target == Target::Drop {
                add(drop, text.clone(), Value::There);
                continue;
            }
            let endpoints = endpoints(route);
            // Where IPVS remembers clients, a virtual service by mark keeps the port that was asked.
            if endpoints == base || frontend.affinity.is_some() {
                continue;
            }
            let part = (frontend.kind, kind);
            let mark = self.marks.of((frontend.service.clone(), family, part));
            add(lead, text.clone(), Value::Mark(mark));
            virtuals.push((VirtualKey::Mark(family, mark), endpoints));
        }
        for (key, set) in virtuals {
            for endpoint in set.into_iter().flat_map(|set| set.iter()) {
                let endpoint = endpoint.address;
                let text = format!("{},{}", item::at(endpoint, protocol), endpoint.ip());
                made.insert(Key::Entry(Set::LoopBack, family, text), Value::There);
            }
            made.insert(Key::Virtual(key), Value::Virtual(self.virtual_of(frontend, set)));
        }
    }

    fn virtual_of(&self, frontend: &Frontend, set: Option<&EndpointSet>) -> Virtual {
        let is_uniform = set.is_none_or(EndpointSet::is_uniform);
        let scheduler = match &*self.options.scheduler {
            // Those that know of weights.
            "rr" if !is_uniform => "wrr",
            "lc" if !is_uniform => "wlc",
            other => other,
        };
        let mut flags = match scheduler {
            "mh" => MH_PORT,
            "sh" => SH_FALLBACK,
            _ => 0,
        };
        let mut timeout = 0;
        if let Some(affinity) = frontend.affinity {
            flags |= PERSISTENT;
            timeout = u32::try_from(affinity.as_secs()).unwrap_or(u32::MAX);
        }
        let destinations = set
            .into_iter()
            .flat_map(|set| set.iter())
            .map(|endpoint| (endpoint.address, u32::from(endpoint.weight.max(1))))
            .collect();
        Virtual { head: Head { scheduler: scheduler.to_owned(), flags, timeout }, destinations }
    }
}

/// The set of all frontends of a kind, and that of those whose clients' addresses are kept.
const fn sets(kind: FrontendKind) -> (Set, Option<Set>) {
    match kind {
        FrontendKind::ClusterIp => (Set::ClusterIp, None),
        FrontendKind::LoadBalancer => (Set::LoadBalancer, Some(Set::LoadBalancerLocal)),
        FrontendKind::ExternalIp => (Set::ExternalIp, Some(Set::ExternalIpLocal)),
        FrontendKind::NodePort => (Set::NodePort, Some(Set::NodePortLocal)),
    }
}

/// The set of what is dropped from such a source, and that of what is led by a mark.
const fn by_source(kind: SourceKind) -> (Set, Set) {
    match kind {
        SourceKind::Pod => (Set::DropPod, Set::RoutePod),
        SourceKind::Node => (Set::DropNode, Set::RouteNode),
        SourceKind::Outside => (Set::DropOutside, Set::RouteOutside),
    }
}

const fn endpoints(route: &Route) -> Option<&EndpointSet> {
    match &route.target {
        Target::Endpoints(set) => Some(set),
        Target::Drop | Target::Reject => None,
    }
}
