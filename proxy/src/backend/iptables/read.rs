//! Reads back what `iptables-save` prints. `[pure]`

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use model::name::{Family, Protocol};

use super::fixed::is_list;
use super::names;
use super::rules::{Key, Table, Value};
use crate::plan::{At, FrontendKey};

/// How many rules each chain has; of the kernel's own, how many that lead to ours.
pub(super) type Shape = BTreeMap<(Table, Arc<str>), usize>;

/// What stands in the tables of one family, of ours.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Chains and rules.
    pub(super) held: HashMap<Key, Value>,
    /// How many rules.
    pub(super) shape: Shape,
    /// How many rules others have.
    pub(super) n_others: usize,
    /// Chains of ours that rules of others lead to.
    pub(super) asked: BTreeSet<(Table, Arc<str>)>,
    /// The kubelet has chains there.
    pub(super) has_hint: bool,
}

/// Reads all tables.
pub(super) fn parse(text: &str) -> Found {
    let mut found = Found::default();
    let mut chains: HashMap<(Table, Arc<str>), String> = HashMap::new();
    let mut table = None;
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = Table::parse(name);
        } else if let Some(chain) = line.strip_prefix(':') {
            let name = chain.split(' ').next().unwrap_or_default();
            found.has_hint |= HINTS.contains(&name);
            if let Some(table) = table.filter(|_| names::is_ours(name)) {
                let name: Arc<str> = name.into();
                found.shape.insert((table, Arc::clone(&name)), 0);
                chains.insert((table, name), String::new());
            }
        } else if let Some((chain, rule)) =
            line.strip_prefix("-A ").and_then(|it| it.split_once(' '))
        {
            match table {
                Some(table) => found.rule(table, chain, rule, &mut chains),
                None => found.n_others += 1,
            }
        }
    }
    let chains = chains.into_iter();
    found.held.extend(chains.map(|((table, name), text)| (Key::Chain(table, name), text.into())));
    found
}

impl Found {
    fn rule(
        &mut self,
        table: Table,
        chain: &str,
        rule: &str,
        chains: &mut HashMap<(Table, Arc<str>), String>,
    ) {
        let is_of_ours = names::is_ours(chain);
        let ours = target(rule).filter(|target| names::is_ours(target));
        if !is_of_ours && (ours.is_none() || !KERNELS.contains(&chain)) {
            self.n_others += 1;
            self.asked.extend(ours.map(|chain| (table, chain.into())));
            return;
        }
        let chain: Arc<str> = chain.into();
        *self.shape.entry((table, Arc::clone(&chain))).or_default() += 1;
        let stands_alone =
            !is_of_ours || is_list(table, &chain) && target(rule) != Some(names::ADDRESSES);
        if stands_alone {
            self.held.insert(Key::Rule(table, chain, rule.into()), Value::default());
        } else {
            let text = chains.entry((table, chain)).or_default();
            text.push_str(rule);
            text.push('\n');
        }
    }
}

/// The frontend that a rule is about.
pub(super) fn frontend(key: &Key, family: Family) -> Option<FrontendKey> {
    let Key::Rule(_, chain, rule) = key else { return None };
    let at = match &**chain {
        names::NODE_PORTS => At::NodePort(family),
        names::SERVICES | names::PROXY_FIREWALL => {
            At::Address(after(rule, "-d")?.parse::<IpNet>().ok()?.addr())
        }
        _ => return None,
    };
    let protocol = match after(rule, "-p")? {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        _ => return None,
    };
    Some(FrontendKey { at, port: after(rule, "--dport")?.parse().ok()?, protocol })
}

/// The addresses that a chain is about.
pub(super) fn addresses(key: &Key, value: &Value) -> Vec<IpAddr> {
    match key {
        Key::Chain(Table::Filter, name) if name.starts_with(names::ADDRESS_RANGE) => {}
        _ => return Vec::new(),
    }
    let address = |rule: &str| {
        target(rule).filter(|target| matches!(*target, "REJECT" | "RETURN"))?;
        Some(after(rule, "-d")?.parse::<IpNet>().ok()?.addr())
    };
    value.lines().filter_map(address).collect()
}

/// Where a rule leads.
pub(in crate::backend) fn target(rule: &str) -> Option<&str> {
    after(rule, "-j").or_else(|| after(rule, "-g"))
}

/// The word behind another one.
pub(super) fn after<'r>(rule: &'r str, word: &str) -> Option<&'r str> {
    let mut words = rule.split(' ');
    words.find(|other| *other == word)?;
    words.next()
}

/// The kernel's own chains.
const KERNELS: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
/// The kubelet's chains, by which the variant is known that a node uses.
const HINTS: [&str; 2] = ["KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"];
