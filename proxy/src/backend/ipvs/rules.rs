//! The few rules beside the virtual services. They do not depend on Services: sets do. `[pure]`
//!
//! ```text
//!  mangle  PREROUTING, OUTPUT         ─▶ KUBE-IPVS-SOURCES      restricted, dropped, led by mark
//!  nat     PREROUTING, OUTPUT         ─▶ KUBE-IPVS-SERVICES     marked to be masqueraded
//!  filter  INPUT, FORWARD, OUTPUT     ─▶ KUBE-IPVS-FILTER       ports that no Service has
//!  filter  FORWARD                    ─▶ KUBE-IPVS-FORWARD      what belongs to connections
//!  mangle  POSTROUTING                ─▶ KUBE-IPVS-UNMARK       the marks are ours alone
//!  nat     POSTROUTING                ─▶ KUBE-IPVS-POSTROUTING  masqueraded
//! ```

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use model::name::Family;

use super::desired::MARKS;
use super::item::Set;
use crate::backend::iptables::{Charge, target};
use crate::plan::Settings;
use crate::plan::settings::PodSource;
use crate::reserved::NETFILTER_PORTS;

/// What all of the chains' names begin with.
const PREFIX: &str = "KUBE-IPVS-";
const SOURCES: &str = "KUBE-IPVS-SOURCES";
const SERVICES: &str = "KUBE-IPVS-SERVICES";
const MARK_MASQ: &str = "KUBE-IPVS-MARK-MASQ";
const POSTROUTING: &str = "KUBE-IPVS-POSTROUTING";
const UNMARK: &str = "KUBE-IPVS-UNMARK";
const FORWARD: &str = "KUBE-IPVS-FORWARD";
const FILTER: &str = "KUBE-IPVS-FILTER";

/// The bit of a connection's mark that has it masqueraded; of a packet's it is kube-proxy's. A
/// packet's own mark is what IPVS looks at.
const MASQUERADED: &str = "0x4000/0x4000";

const TABLES: [&str; 3] = ["mangle", "nat", "filter"];

/// What the rules of one family depend on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Context<'a> {
    pub(super) family: Family,
    pub(super) settings: &'a Settings,
    pub(super) masquerade_all: bool,
}

/// A table and one of its chains.
type Place = (String, String);

/// What stands in the tables of one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// How many rules each of our chains has.
    chains: BTreeMap<Place, usize>,
    /// The rules that lead from others to ours.
    jumps: BTreeSet<(Place, String)>,
}

impl Found {
    /// Reads what `iptables-save` prints.
    pub(super) fn parse(text: &str) -> Self {
        let mut found = Self::default();
        let mut table = String::new();
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('*') {
                name.clone_into(&mut table);
            } else if let Some(chain) = line.strip_prefix(':') {
                let name = chain.split(' ').next().unwrap_or_default();
                if name.starts_with(PREFIX) {
                    found.chains.insert((table.clone(), name.to_owned()), 0);
                }
            } else if let Some((chain, rule)) =
                line.strip_prefix("-A ").and_then(|it| it.split_once(' '))
            {
                let place = (table.clone(), chain.to_owned());
                if let Some(n) = found.chains.get_mut(&place) {
                    *n += 1;
                } else if target(rule).is_some_and(|target| target.starts_with(PREFIX)) {
                    found.jumps.insert((place, rule.to_owned()));
                }
            }
        }
        found
    }

    /// Whether there is nothing of ours.
    pub(super) fn is_empty(&self) -> bool {
        self.chains.is_empty() && self.jumps.is_empty()
    }

    /// How far a former process was in charge.
    pub(super) fn charge(&self) -> Charge {
        let leads_from = |chain: &str| self.jumps.iter().any(|((_, from), _)| from == chain);
        match (leads_from("PREROUTING"), leads_from("POSTROUTING")) {
            (true, _) => Charge::Full,
            (_, true) => Charge::Draining,
            _ => Charge::No,
        }
    }

    /// Whether this is what should be there.
    pub(super) fn is_whole(&self, context: Context<'_>, charge: Charge) -> bool {
        let chains: BTreeMap<Place, usize> =
            chains(context).into_iter().map(|(place, rules)| (place, rules.len())).collect();
        self.chains == chains && self.jumps == jumps(charge)
    }

    /// The transaction that makes it what should be there.
    pub(super) fn replace(&self, context: Context<'_>, charge: Charge) -> String {
        self.transaction(&chains(context), &jumps(charge))
    }

    /// The transaction that removes everything.
    pub(super) fn remove(&self) -> String {
        self.transaction(&BTreeMap::new(), &BTreeSet::new())
    }

    fn transaction(
        &self,
        chains: &BTreeMap<Place, Vec<String>>,
        jumps: &BTreeSet<(Place, String)>,
    ) -> String {
        let mut text = Vec::new();
        for table in TABLES {
            let is_in = |(of, _): &&Place| of == table;
            let names: BTreeSet<&Place> =
                chains.keys().chain(self.chains.keys()).filter(is_in).collect();
            text.push(format!("*{table}"));
            text.extend(names.iter().map(|(_, chain)| format!(":{chain} - [0:0]")));
            for ((of, chain), rules) in chains {
                let rules = rules.iter().filter(|_| of == table);
                text.extend(rules.map(|rule| format!("-A {chain} {rule}")));
            }
            for ((of, chain), rule) in self.jumps.difference(jumps) {
                text.extend((of == table).then(|| format!("-D {chain} {rule}")));
            }
            for ((of, chain), rule) in jumps.difference(&self.jumps) {
                text.extend((of == table).then(|| format!("-I {chain} {rule}")));
            }
            let gone = names.iter().filter(|name| !chains.contains_key(**name));
            text.extend(gone.map(|(_, chain)| format!("-X {chain}")));
            text.push("COMMIT".to_owned());
        }
        text.push(String::new());
        text.join("\n")
    }
}

fn place(table: &str, chain: &str) -> Place {
    (table.to_owned(), chain.to_owned())
}

/// The rules that lead to our chains.
fn jumps(charge: Charge) -> BTreeSet<(Place, String)> {
    let mut jumps = BTreeSet::new();
    let mut jump = |table, chain, matches: &str, to| {
        jumps.insert((place(table, chain), format!("{matches}-j {to}")));
    };
    let new = "-m conntrack --ctstate NEW ";
    if charge == Charge::Full {
        for chain in ["PREROUTING", "OUTPUT"] {
            jump("mangle", chain, new, SOURCES);
            jump("nat", chain, "", SERVICES);
        }
        for chain in ["INPUT", "FORWARD", "OUTPUT"] {
            jump("filter", chain, new, FILTER);
        }
    }
    if charge != Charge::No {
        jump("filter", "FORWARD", "", FORWARD);
        jump("mangle", "POSTROUTING", "", UNMARK);
        jump("nat", "POSTROUTING", "", POSTROUTING);
    }
    jumps
}

/// Our chains.
fn chains(context: Context<'_>) -> BTreeMap<Place, Vec<String>> {
    let unmark = format!("-m ipvs --ipvs -j MARK --set-xmark 0x0/{MARKS:#x}");
    let related = "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT".to_owned();
    let marked = format!("-m connmark --mark {MASQUERADED} -j ACCEPT");
    BTreeMap::from([
        (place("mangle", SOURCES), context.sources()),
        (place("mangle", UNMARK), vec![unmark]),
        (place("nat", SERVICES), context.services()),
        (place("nat", MARK_MASQ), vec![format!("-j CONNMARK --set-xmark {MASQUERADED}")]),
        (place("nat", POSTROUTING), context.postrouting()),
        (place("filter", FORWARD), vec![marked, related]),
        (place("filter", FILTER), context.filter()),
    ])
}

/// A packet from this node.
const FROM_NODE: &str = "-m addrtype --src-type LOCAL ";

impl Context<'_> {
    fn is_in(&self, set: Set, by: &str) -> String {
        format!("-m set --match-set {} {by} ", set.name(self.family))
    }

    /// A packet from a pod of this node.
    fn of_pods(&self) -> Option<String> {
        Some(match self.settings.pods.get(self.family).as_ref()? {
            PodSource::Cidr(range) => format!("-s {range} "),
            PodSource::Interface(name) => format!("-i {name} "),
            PodSource::InterfacePrefix(prefix) => format!("-i {prefix}+ "),
        })
    }

    fn sources(&self) -> Vec<String> {
        let allowed = Set::SourceCidr.name(self.family);
        let restricted = self.is_in(Set::Firewall, "dst,dst");
        let mut rules =
            vec![format!("{restricted}-m set ! --match-set {allowed} dst,dst,src -j DROP")];
        let mut from = |source: &str, drop: Set, lead: Set| {
            let lead = lead.name(self.family);
            rules.push(format!("{source}{}-j DROP", self.is_in(drop, "dst,dst")));
            rules.push(format!("{source}-j SET --map-set {lead} dst,dst --map-mark"));
            if !source.is_empty() {
                rules.push(format!("{source}-j RETURN"));
            }
        };
        if let Some(pods) = self.of_pods() {
            from(&pods, Set::DropPod, Set::RoutePod);
        }
        from(FROM_NODE, Set::DropNode, Set::RouteNode);
        from("", Set::DropOutside, Set::RouteOutside);
        rules
    }

    fn services(&self) -> Vec<String> {
        let cluster_ip = self.is_in(Set::ClusterIp, "dst,dst");
        let others = match self.settings.pods.get(self.family) {
            _ if self.masquerade_all => String::new(),
            Some(PodSource::Cidr(range)) => format!("! -s {range} "),
            Some(PodSource::Interface(name)) => format!("! -i {name} "),
            Some(PodSource::InterfacePrefix(prefix)) => format!("! -i {prefix}+ "),
            // Who does not choose an address sends to one of this node's from the same one.
            None => self.is_in(Set::Addresses, "src"),
        };
        let mut rules = vec![format!("{others}{cluster_ip}-j {MARK_MASQ}")];
        for (all, local) in [
            (Set::LoadBalancer, Set::LoadBalancerLocal),
            (Set::ExternalIp, Set::ExternalIpLocal),
            (Set::NodePort, Set::NodePortLocal),
        ] {
            let (all, local) = (self.is_in(all, "dst,dst"), self.is_in(local, "dst,dst"));
            // The clients' addresses are kept, but for the node's own.
            rules.extend(self.of_pods().map(|pods| format!("{pods}{local}-j RETURN")));
            rules.push(format!("{local}-m addrtype ! --src-type LOCAL -j RETURN"));
            rules.push(format!("{all}-j {MARK_MASQ}"));
        }
        rules
    }

    fn postrouting(&self) -> Vec<String> {
        let led_to_itself = self.is_in(Set::LoopBack, "dst,dst,src");
        let marked = format!("-m connmark --mark {MASQUERADED} ");
        // None of the ports that the packet programs take.
        let ports = format!("{}-{}", NETFILTER_PORTS.start(), NETFILTER_PORTS.end());
        let rule = |what: &str, protocol: &str| {
            format!("-p {protocol} {what}-j MASQUERADE --to-ports {ports} --random-fully")
        };
        [led_to_itself, marked]
            .iter()
            .flat_map(|what| ["tcp", "udp", "sctp"].map(|protocol| rule(what, protocol)))
            .collect()
    }

    fn filter(&self) -> Vec<String> {
        let (icmp, reject) = match self.family {
            Family::V4 => ("icmp", "icmp-port-unreachable"),
            Family::V6 => ("ipv6-icmp", "icmp6-port-unreachable"),
        };
        // CVE-2020-8558.
        let loopback = match self.family {
            Family::V4 => "127.0.0.0/8",
            Family::V6 => "::1/128",
        };
        let mut rules = vec![
            format!("-d {loopback} -m addrtype ! --src-type LOCAL -j DROP"),
            format!("-p {icmp} -j RETURN"),
        ];
        for set in [Set::ClusterIp, Set::LoadBalancer, Set::ExternalIp] {
            rules.push(format!("{}-j RETURN", self.is_in(set, "dst,dst")));
        }
        let addresses = self.is_in(Set::Addresses, "dst");
        rules.push(format!("{addresses}-j REJECT --reject-with {reject}"));
        rules.push(format!("{}-j RETURN", self.is_in(Set::Left, "dst")));
        let is_of_family = |range: &&IpNet| Family::of(&range.addr()) == self.family;
        for range in self.settings.service_cidrs.iter().filter(is_of_family) {
            rules.push(format!("-d {range} -j DROP"));
        }
        rules
    }
}

#[cfg(test)]
mod tests;
