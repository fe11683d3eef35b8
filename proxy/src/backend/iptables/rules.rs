//! The rules, as `iptables-save` prints them, so that what is read can be compared. `[pure]`
//!
//! ```text
//! KUBE-SERVICES ─▶ KUBE-FW-… ─▶ KUBE-EXT-… ─▶ KUBE-SVC-…, KUBE-SVL-… ─▶ KUBE-SEP-… ─▶ DNAT
//! KUBE-NODEPORTS ──────────────▶ by source     one of the endpoints       where needed
//! ```

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use model::name::{Family, ServicePortName};

use super::names;
use crate::plan::settings::PodSource;
use crate::plan::{
    At, EndpointSet, Frontend, FrontendKey, FrontendKind, Masquerade, Route, Routes, Settings,
    SourceKind, Target,
};

/// A table of iptables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Table {
    /// Refuses and drops.
    Filter,
    /// Has a canary only.
    Mangle,
    /// Translates.
    Nat,
}

/// What stands in a table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Key {
    /// A chain of our own, with rules in an order.
    Chain(Table, Arc<str>),
    /// A rule in a chain whose other rules do not matter to it.
    Rule(Table, Arc<str>, Arc<str>),
}

/// A chain's rules, a line each; empty for a rule that stands by itself.
pub(super) type Value = Arc<str>;

impl Table {
    /// Its name.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Mangle => "mangle",
            Self::Nat => "nat",
        }
    }

    /// The table of that name.
    pub(super) fn parse(name: &str) -> Option<Self> {
        [Self::Filter, Self::Mangle, Self::Nat].into_iter().find(|table| table.name() == name)
    }
}

/// What the rules of a family depend on besides the frontends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Context<'a> {
    /// The family.
    pub(super) family: Family,
    /// The settings.
    pub(super) settings: &'a Settings,
}

/// All that the frontends of one Service port are made of. They are ordered.
pub(super) fn of_port(
    context: Context<'_>,
    name: &ServicePortName,
    frontends: &[(FrontendKey, Arc<Frontend>)],
) -> Vec<(Key, Value)> {
    let mut port = Port { context, name, sets: Vec::new(), out: Vec::new() };
    for (key, frontend) in frontends {
        port.frontend(key, frontend);
    }
    port.endpoints(frontends);
    port.out
}

/// A Service port's chains and rules, being written.
struct Port<'a> {
    context: Context<'a>,
    name: &'a ServicePortName,
    /// Its sets of endpoints, and the chains that choose one of them.
    sets: Vec<(&'a EndpointSet, String)>,
    out: Vec<(Key, Value)>,
}

/// A route for one kind of source.
type From<'a> = (SourceKind, &'a Route);

impl<'a> Port<'a> {
    fn frontend(&mut self, key: &FrontendKey, frontend: &'a Frontend) {
        let routes = self.context.asked(&frontend.routes);
        let lost: Vec<From<'_>> =
            routes.iter().filter(|(_, route)| endpoints_of(route).is_none()).copied().collect();
        if lost.len() < routes.len() {
            let mut to = self.target(frontend, &routes);
            if let Some(ranges) = &frontend.source_ranges {
                to = self.firewall(ranges, &to);
            }
            self.rule(Table::Nat, key, kind_name(frontend.kind), &to);
        } else if frontend.kind != FrontendKind::ClusterIp {
            // Nor is a node port of that number served there.
            self.rule(Table::Nat, key, " has no endpoints", "ACCEPT");
        }
        match &frontend.source_ranges {
            Some(ranges) => self.restrict(key, ranges, &lost),
            None => self.refuse(key, &lost),
        }
    }

    /// The chain that new connections go to.
    fn target(&mut self, frontend: &'a Frontend, routes: &[From<'a>]) -> String {
        match (the_set(routes), marking(routes), frontend.kind) {
            (Some(set), Marking::Nothing, _)
            // Which connections to a cluster IP are masqueraded is said where the endpoints are.
            | (Some(set), Marking::All | Marking::AllButPods, FrontendKind::ClusterIp) => {
                self.set(set, frontend)
            }
            _ => self.dispatch(frontend, routes),
        }
    }

    /// A chain that tells sources from each other.
    fn dispatch(&mut self, frontend: &'a Frontend, routes: &[From<'a>]) -> String {
        let mut text = String::new();
        for (idx, (kind, route)) in routes.iter().enumerate() {
            let rest = routes.get(idx + 1..).unwrap_or_default();
            if !rest.is_empty() && rest.iter().all(|(_, other)| other == route) {
                continue;
            }
            let source = self.context.source(*kind);
            match endpoints_of(route) {
                Some(set) => {
                    if route.masquerade == Masquerade::Always {
                        line(&mut text, &format!("{source}-j {}", names::MARK_MASQ));
                    }
                    let set = self.set(set, frontend);
                    line(&mut text, &format!("{source}-j {set}"));
                }
                // The table `filter` does the rest.
                None => line(&mut text, &format!("{source}-j ACCEPT")),
            }
        }
        self.chain(Table::Nat, names::EXTERNAL, text)
    }

    /// A chain that lets in who is allowed.
    fn firewall(&mut self, ranges: &[IpNet], to: &str) -> String {
        let mut text = String::new();
        for range in ranges {
            line(&mut text, &format!("-s {range} -j {to}"));
        }
        line(&mut text, "-j ACCEPT");
        self.chain(Table::Nat, names::FIREWALL, text)
    }

    /// Drops what was not let in; refuses what was, if that is what becomes of it.
    fn restrict(&mut self, key: &FrontendKey, ranges: &[IpNet], lost: &[From<'_>]) {
        let refused: Vec<_> =
            lost.iter().filter(|(_, route)| route.target == Target::Reject).collect();
        if refused.is_empty() {
            return self.filter(names::PROXY_FIREWALL, key, " loadbalancer IP", "DROP");
        }
        let mut text = String::new();
        for range in ranges {
            line(&mut text, &format!("-s {range} -j {}", self.context.reject()));
        }
        line(&mut text, "-j DROP");
        let chain = self.chain(Table::Filter, names::FIREWALL, text);
        self.filter(names::PROXY_FIREWALL, key, " loadbalancer IP", &chain);
    }

    /// Refuses or drops what goes to no endpoint: nothing else comes as far as that table.
    fn refuse(&mut self, key: &FrontendKey, lost: &[From<'_>]) {
        let Some((_, first)) = lost.first() else { return };
        let (why, verdict) = match first.target {
            Target::Reject => (" has no endpoints", self.context.reject()),
            _ => (" has no local endpoints", "DROP"),
        };
        self.rule(Table::Filter, key, why, verdict);
    }

    /// The chain that chooses one of these endpoints.
    fn set(&mut self, set: &'a EndpointSet, frontend: &Frontend) -> String {
        if let Some((_, chain)) = self.sets.iter().find(|(other, _)| *other == set) {
            return chain.clone();
        }
        let is_local = set.iter().all(|endpoint| endpoint.local);
        let is_part = set.len() < frontend.serving.len();
        let prefix = if is_local && is_part { names::LOCAL } else { names::CLUSTER };
        let same = self.sets.iter().filter(|(_, chain)| chain.starts_with(prefix));
        let chain = names::of_port(prefix, self.name, same.count());
        self.sets.push((set, chain.clone()));
        chain
    }

    /// The chains that choose endpoints, and those of endpoints.
    fn endpoints(&mut self, frontends: &[(FrontendKey, Arc<Frontend>)]) {
        let affinity = frontends.first().and_then(|(_, frontend)| frontend.affinity);
        let mut written = BTreeSet::new();
        for (set, chain) in std::mem::take(&mut self.sets) {
            let mut text = String::new();
            for (key, frontend) in frontends {
                self.mark(key, frontend, set, &mut text);
            }
            for endpoint in set.iter().filter(|_| affinity.is_some()) {
                let name = self.endpoint_chain(&endpoint.address);
                let (recent, seconds) =
                    (self.recent(&name), affinity.unwrap_or_default().as_secs());
                line(
                    &mut text,
                    &format!("-m recent --rcheck --seconds {seconds} --reap {recent} -j {name}"),
                );
            }
            let mut left: u64 = set.iter().map(|endpoint| u64::from(endpoint.weight.max(1))).sum();
            for endpoint in set.iter() {
                let weight = u64::from(endpoint.weight.max(1));
                let chance = chance(weight, left);
                left -= weight;
                if affinity.is_none() && !endpoint.local {
                    let (protocol, address) = (self.protocol(), endpoint.address);
                    line(
                        &mut text,
                        &format!("-p {protocol} {chance}-j DNAT --to-destination {address}"),
                    );
                    continue;
                }
                let name = self.endpoint_chain(&endpoint.address);
                line(&mut text, &format!("{chance}-j {name}"));
                if written.insert(endpoint.address) {
                    self.endpoint(&name, &endpoint.address, affinity);
                }
            }
            self.out.push((Key::Chain(Table::Nat, chain.into()), text.into()));
        }
    }

    /// Which connections to a cluster IP are masqueraded.
    fn mark(&self, key: &FrontendKey, frontend: &Frontend, set: &EndpointSet, text: &mut String) {
        let (FrontendKind::ClusterIp, At::Address(ip)) = (frontend.kind, key.at) else { return };
        let routes = self.context.asked(&frontend.routes);
        if the_set(&routes) != Some(set) {
            return;
        }
        let port = format!("-p {0} -m {0} --dport {1}", self.protocol(), key.port);
        let (to, mark) = (host(ip), names::MARK_MASQ);
        let pods = self.context.settings.pods.get(self.context.family).as_ref();
        match (marking(&routes), pods) {
            (Marking::All, _) => line(text, &format!("-d {to} {port} -j {mark}")),
            (Marking::AllButPods, Some(PodSource::Cidr(range))) => {
                line(text, &format!("! -s {range} -d {to} {port} -j {mark}"));
            }
            (Marking::AllButPods, Some(pods)) => {
                line(text, &format!("-d {to} ! -i {} {port} -j {mark}", interface(pods)));
            }
            _ => {}
        }
    }

    fn endpoint(&mut self, name: &str, address: &SocketAddr, affinity: Option<Duration>) {
        let mut text = String::new();
        line(&mut text, &format!("-s {} -j {}", host(address.ip()), names::MARK_MASQ));
        let recent = match affinity {
            Some(_) => format!("-m recent --set {} ", self.recent(name)),
            None => String::new(),
        };
        let protocol = self.protocol();
        line(&mut text, &format!("-p {protocol} {recent}-j DNAT --to-destination {address}"));
        self.out.push((Key::Chain(Table::Nat, name.into()), text.into()));
    }

    fn endpoint_chain(&self, address: &SocketAddr) -> String {
        names::of_endpoint(self.name, &address.to_string())
    }

    fn recent(&self, name: &str) -> String {
        let mask = match self.context.family {
            Family::V4 => "255.255.255.255",
            Family::V6 => "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        };
        format!("--name {name} --mask {mask} --rsource")
    }

    const fn protocol(&self) -> &'static str {
        names::protocol(self.name.protocol)
    }

    /// A chain of this Service port with that content.
    fn chain(&mut self, table: Table, prefix: &str, text: String) -> String {
        let mut n = 0;
        for (key, value) in &self.out {
            if let Key::Chain(of, name) = key
                && *of == table
                && name.starts_with(prefix)
            {
                if **value == text {
                    return name.to_string();
                }
                n += 1;
            }
        }
        let name = names::of_port(prefix, self.name, n);
        self.out.push((Key::Chain(table, name.as_str().into()), text.into()));
        name
    }

    /// A rule for what is sent to a frontend.
    fn rule(&mut self, table: Table, key: &FrontendKey, comment: &str, to: &str) {
        let chain = match key.at {
            At::Address(_) => names::SERVICES,
            At::NodePort(_) => names::NODE_PORTS,
        };
        self.rule_in((table, chain), key, comment, to);
    }

    fn filter(&mut self, chain: &str, key: &FrontendKey, comment: &str, to: &str) {
        self.rule_in((Table::Filter, chain), key, comment, to);
    }

    fn rule_in(
        &mut self,
        (table, chain): (Table, &str),
        key: &FrontendKey,
        comment: &str,
        to: &str,
    ) {
        let destination = match key.at {
            At::Address(ip) => format!("-d {} ", host(ip)),
            At::NodePort(_) => String::new(),
        };
        let (name, protocol, port) = (self.name, self.protocol(), key.port);
        let rule = format!(
            "{destination}-p {protocol} -m comment --comment \"{name}{comment}\" -m {protocol} \
             --dport {port} -j {to}"
        );
        self.out.push((Key::Rule(table, chain.into(), rule.into()), Value::default()));
    }
}

impl<'a> Context<'a> {
    /// The routes of those kinds of sources that there are.
    fn asked<'r>(&self, routes: &'r Routes) -> Vec<From<'r>> {
        let has_pods = self.settings.pods.get(self.family).is_some();
        let pod = has_pods.then_some((SourceKind::Pod, &routes.pod));
        let others = [(SourceKind::Node, &routes.node), (SourceKind::Outside, &routes.outside)];
        pod.into_iter().chain(others).collect()
    }

    /// What a packet matches that comes from that kind of source, and from none before it.
    fn source(&self, kind: SourceKind) -> String {
        match (kind, self.settings.pods.get(self.family)) {
            (SourceKind::Pod, Some(PodSource::Cidr(range))) => format!("-s {range} "),
            (SourceKind::Pod, Some(pods)) => format!("-i {} ", interface(pods)),
            (SourceKind::Node, _) => "-m addrtype --src-type LOCAL ".to_owned(),
            (SourceKind::Pod | SourceKind::Outside, _) => String::new(),
        }
    }

    /// How a packet is refused.
    pub(super) const fn reject(&self) -> &'static str {
        match self.family {
            Family::V4 => "REJECT --reject-with icmp-port-unreachable",
            Family::V6 => "REJECT --reject-with icmp6-port-unreachable",
        }
    }
}

/// What of the connections to a frontend is masqueraded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Marking {
    Nothing,
    All,
    AllButPods,
    Other,
}

fn marking(routes: &[From<'_>]) -> Marking {
    let is_marked = |(_, route): &From<'_>| route.masquerade == Masquerade::Always;
    let is_pod = |(kind, _): &From<'_>| *kind == SourceKind::Pod;
    if !routes.iter().any(is_marked) {
        Marking::Nothing
    } else if routes.iter().all(is_marked) {
        Marking::All
    } else if routes.iter().all(|route| is_marked(route) != is_pod(route)) {
        Marking::AllButPods
    } else {
        Marking::Other
    }
}

const fn endpoints_of(route: &Route) -> Option<&EndpointSet> {
    match &route.target {
        Target::Endpoints(set) => Some(set),
        Target::Drop | Target::Reject => None,
    }
}

/// The endpoints that all go to, if they do.
fn the_set<'r>(routes: &[From<'r>]) -> Option<&'r EndpointSet> {
    let (_, first) = routes.first()?;
    let set = endpoints_of(first)?;
    routes.iter().all(|(_, route)| route.target == first.target).then_some(set)
}

/// A probability as the kernel keeps it, in 31 bits; nothing if it is certain.
fn chance(weight: u64, of: u64) -> String {
    if weight >= of {
        return String::new();
    }
    const ONE: u64 = 1 << 31;
    let kept = (ONE * weight + of / 2) / of;
    // Eleven digits, in whole numbers.
    let digits = (u128::from(kept) * 100_000_000_000 + u128::from(ONE / 2)) / u128::from(ONE);
    format!("-m statistic --mode random --probability 0.{digits:011} ")
}

const fn kind_name(kind: FrontendKind) -> &'static str {
    match kind {
        FrontendKind::ClusterIp => " cluster IP",
        FrontendKind::LoadBalancer => " loadbalancer IP",
        FrontendKind::ExternalIp => " external IP",
        FrontendKind::NodePort => "",
    }
}

fn interface(pods: &PodSource) -> String {
    match pods {
        PodSource::Cidr(range) => range.to_string(),
        PodSource::Interface(name) => name.to_string(),
        PodSource::InterfacePrefix(prefix) => format!("{prefix}+"),
    }
}

/// An address as a range of one.
pub(super) fn host(ip: IpAddr) -> IpNet {
    IpNet::from(ip)
}

/// Adds a rule.
pub(super) fn line(text: &mut String, rule: &str) {
    // Writing to a string does not fail.
    _ = writeln!(text, "{rule}");
}
