//! The chains that do not depend on Services, and the jumps that lead to them. `[pure]`

use ipnet::IpNet;
use model::name::Family;

use super::names;
use super::rules::{Context, Key, Table, Value, line};
use crate::reserved::NETFILTER_PORTS;

/// The bit of a packet's mark that has it masqueraded, kube-proxy's.
const MARK: &str = "0x4000/0x4000";

/// What the kernel can besides the usual.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Extras {
    /// It runs a program on a packet, as a match.
    pub(super) bpf: bool,
}

/// How far a dataplane is in charge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::backend) enum Charge {
    /// Packets do not come through its chains.
    #[default]
    No,
    /// They do.
    Full,
    /// Only those of established connections.
    Draining,
}

/// The chains.
pub(super) fn chains(context: Context<'_>, extras: Extras) -> Vec<(Key, Value)> {
    let chain = |table, name: &str, text: String| (Key::Chain(table, name.into()), text.into());
    let addresses = || format!("-j {}\n", names::ADDRESSES);
    vec![
        chain(Table::Filter, names::CANARY, String::new()),
        chain(Table::Mangle, names::CANARY, String::new()),
        chain(Table::Nat, names::CANARY, String::new()),
        chain(Table::Filter, names::SERVICES, addresses()),
        chain(Table::Filter, names::NODE_PORTS, String::new()),
        chain(Table::Filter, names::PROXY_FIREWALL, String::new()),
        chain(Table::Filter, names::EXTERNAL_SERVICES, external(context, Table::Filter)),
        chain(Table::Filter, names::FORWARD, forward()),
        chain(Table::Filter, names::LOOPBACK, guard(context.family)),
        chain(Table::Nat, names::SERVICES, addresses()),
        chain(Table::Nat, names::NODE_PORTS, String::new()),
        chain(Table::Nat, names::EXTERNAL_SERVICES, external(context, Table::Nat)),
        chain(Table::Nat, names::MARK_MASQ, format!("-j MARK --set-xmark {MARK}\n")),
        chain(Table::Nat, names::POSTROUTING, postrouting(context.family, extras)),
    ]
}

/// Whether a chain has rules that come and go by themselves; what it has as a chain comes last.
pub(super) fn is_list(table: Table, chain: &str) -> bool {
    match table {
        Table::Filter => {
            [names::SERVICES, names::NODE_PORTS, names::PROXY_FIREWALL].contains(&chain)
        }
        Table::Nat => [names::SERVICES, names::NODE_PORTS].contains(&chain),
        Table::Mangle => false,
    }
}

/// The jumps from the kernel's own chains.
pub(super) fn jumps(charge: Charge) -> Vec<Key> {
    let portals = "-m comment --comment \"kubernetes service portals\"";
    let new = "-m conntrack --ctstate NEW";
    let services = |new: &str| format!("{new}{portals} -j {}", names::SERVICES);
    let firewall = format!(
        "{new} -m comment --comment \"kubernetes load balancer firewall\" -j {}",
        names::PROXY_FIREWALL
    );
    let jump = |table, chain: &str, rule: &str| Key::Rule(table, chain.into(), rule.into());
    let mut jumps = Vec::new();
    if charge == Charge::Full {
        for chain in ["PREROUTING", "OUTPUT"] {
            jumps.push(jump(Table::Nat, chain, &services("")));
        }
        for chain in ["INPUT", "FORWARD", "OUTPUT"] {
            jumps.push(jump(Table::Filter, chain, &firewall));
            jumps.push(jump(Table::Filter, chain, &services(&format!("{new} "))));
        }
        let guard = format!("-m comment --comment \"loopback stays here\" -j {}", names::LOOPBACK);
        jumps.push(jump(Table::Filter, "INPUT", &guard));
    }
    if charge != Charge::No {
        let forward =
            format!("-m comment --comment \"kubernetes forwarding rules\" -j {}", names::FORWARD);
        let postrouting = format!(
            "-m comment --comment \"kubernetes postrouting rules\" -j {}",
            names::POSTROUTING
        );
        jumps.push(jump(Table::Filter, "FORWARD", &forward));
        jumps.push(jump(Table::Nat, "POSTROUTING", &postrouting));
    }
    jumps
}

/// Where no Service has the address: node ports, and what is nobody's.
fn external(context: Context<'_>, table: Table) -> String {
    let node_ports = context.settings.node_ports.get(context.family);
    let mut text = String::new();
    for range in &node_ports.loopback_within {
        // What comes from elsewhere is dropped later on.
        line(
            &mut text,
            &format!(
                "-d {range} -m addrtype --src-type LOCAL --dst-type LOCAL -j {}",
                names::NODE_PORTS
            ),
        );
    }
    line(&mut text, &format!("-d {} -j RETURN", loopback(context.family)));
    for range in &node_ports.within {
        let within = match range.prefix_len() {
            0 => String::new(),
            _ => format!("-d {range} "),
        };
        line(&mut text, &format!("{within}-m addrtype --dst-type LOCAL -j {}", names::NODE_PORTS));
    }
    if table == Table::Filter {
        let is_of_family = |range: &&IpNet| Family::of(&range.addr()) == context.family;
        for range in context.settings.service_cidrs.iter().filter(is_of_family) {
            line(&mut text, &format!("-d {range} -j DROP"));
        }
    }
    text
}

fn forward() -> String {
    let mut text = String::new();
    line(&mut text, "-m conntrack --ctstate INVALID -j DROP");
    line(&mut text, &format!("-m mark --mark {MARK} -j ACCEPT"));
    line(&mut text, "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT");
    text
}

/// CVE-2020-8558: `route_localnet` would let the network reach what listens on loopback.
fn guard(family: Family) -> String {
    let (loopback, known) = (loopback(family), "! --ctstate RELATED,ESTABLISHED");
    format!("-d {loopback} ! -i lo -m conntrack {known} -j DROP\n")
}

fn postrouting(family: Family, extras: Extras) -> String {
    let mut text = String::new();
    if extras.bpf {
        // Whoever was led to itself. Endpoints of this node are marked before, for kernels that
        // do not have the match.
        let led_to_itself = format!(
            "-m conntrack --ctstate DNAT -m mark ! --mark {MARK} -m bpf --bytecode \"{}\"",
            is_itself(family)
        );
        masquerade(&mut text, &led_to_itself);
    }
    line(&mut text, &format!("-m mark ! --mark {MARK} -j RETURN"));
    // Whoever encapsulates the packet must not see it.
    line(&mut text, "-j MARK --set-xmark 0x4000/0x0");
    let comment = "-m comment --comment \"kubernetes service traffic requiring SNAT\"";
    masquerade(&mut text, comment);
    // Who else marks packets may mark others.
    line(&mut text, &format!("{comment} -j MASQUERADE --random-fully"));
    text
}

/// Rules that masquerade what matches, a rule for each protocol that has ports.
fn masquerade(text: &mut String, what: &str) {
    let (first, last) = (NETFILTER_PORTS.start(), NETFILTER_PORTS.end());
    for protocol in ["tcp", "udp", "sctp"] {
        let ports = format!("--to-ports {first}-{last} --random-fully");
        line(text, &format!("-p {protocol} {what} -j MASQUERADE {ports}"));
    }
}

/// A program that tells whether source and destination are the same, as `-m bpf` takes it.
pub(super) const fn is_itself(family: Family) -> &'static str {
    match family {
        Family::V4 => "6,32 0 0 12,7 0 0 0,32 0 0 16,29 0 1 0,6 0 0 65535,6 0 0 0",
        Family::V6 => {
            "18,32 0 0 8,7 0 0 0,32 0 0 24,29 0 13 0,32 0 0 12,7 0 0 0,32 0 0 28,29 0 9 0,\
             32 0 0 16,7 0 0 0,32 0 0 32,29 0 5 0,32 0 0 20,7 0 0 0,32 0 0 36,29 0 1 0,\
             6 0 0 65535,6 0 0 0"
        }
    }
}

const fn loopback(family: Family) -> &'static str {
    match family {
        Family::V4 => "127.0.0.0/8",
        Family::V6 => "::1/128",
    }
}
