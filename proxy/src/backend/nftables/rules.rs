//! The rules, as text for `nft`: the same few for any number of Services. `[pure]`
//!
//! ```text
//! prerouting ─▶ arriving ─┬─▶ from-pod ─────┐
//! output ─────▶ leaving ──┼─▶ from-node ────┼─▶ decide ─▶ pick-3, stick-3-10800s-0, refuse, …
//!                         └─▶ from-outside ─┘   by class   then postrouting masquerades
//! ```
//!
//! What is found about a connection is carried from rule to rule in its first packet's priority,
//! which is zero again when the packet leaves; a mark is changed by the masquerade bit alone.

use std::time::Duration;

use ipnet::IpNet;
use model::name::Family;

use super::{MASQUERADE_BIT, TABLE};
use crate::plan::settings::{NodePorts, PodSource};
use crate::plan::{Settings, SourceKind};
use crate::reserved::NETFILTER_PORTS;

/// A table of another schema is replaced as a whole.
pub(super) const SCHEMA: &str = "schema-2";

/// The kinds of sources, and what chains and maps of theirs end with.
pub(super) const KINDS: [(SourceKind, &str); 3] =
    [(SourceKind::Pod, "pod"), (SourceKind::Node, "node"), (SourceKind::Outside, "outside")];

/// How an endpoint is chosen, and what is done to the packet besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Class {
    /// Dropped.
    Drop,
    /// Refused.
    Reject,
    /// None of ours.
    Leave,
    /// One of so many, each as likely.
    Pick {
        /// How many.
        n: u16,
        /// The source is rewritten.
        masquerade: bool,
    },
    /// The same again for that time, else one of so many.
    Stick {
        /// How many.
        n: u16,
        /// For how long.
        timeout: Duration,
        /// Which of the sets that its clients' endpoints are numbered for.
        slot: u8,
        /// The source is rewritten.
        masquerade: bool,
    },
}

impl Class {
    /// The chain that does it.
    pub(super) fn chain(&self) -> String {
        let suffix = |masquerade| if masquerade { "-masquerade" } else { "" };
        match self {
            Self::Drop => "ignore".to_owned(),
            Self::Reject => "refuse".to_owned(),
            Self::Leave => "leave".to_owned(),
            Self::Pick { n, masquerade } => format!("pick-{n}{}", suffix(*masquerade)),
            Self::Stick { n, timeout, slot, masquerade } => {
                format!("stick-{n}-{}s-{slot}{}", timeout.as_secs(), suffix(*masquerade))
            }
        }
    }

    /// What a chain of that name does.
    pub(super) fn parse(chain: &str) -> Option<Self> {
        let (chain, masquerade) = match chain.strip_suffix("-masquerade") {
            Some(chain) => (chain, true),
            None => (chain, false),
        };
        let mut parts = chain.split('-');
        Some(match parts.next()? {
            "ignore" => Self::Drop,
            "refuse" => Self::Reject,
            "leave" => Self::Leave,
            "pick" => Self::Pick { n: parts.next()?.parse().ok()?, masquerade },
            "stick" => Self::Stick {
                n: parts.next()?.parse().ok()?,
                timeout: Duration::from_secs(parts.next()?.strip_suffix('s')?.parse().ok()?),
                slot: parts.next()?.parse().ok()?,
                masquerade,
            },
            _ => return None,
        })
    }

    /// The chain's rules, where it has any of its own.
    pub(super) fn create(&self, family: Family) -> String {
        let (n, masquerade) = match self {
            Self::Drop | Self::Reject | Self::Leave => return String::new(),
            Self::Pick { n, masquerade } | Self::Stick { n, masquerade, .. } => (*n, *masquerade),
        };
        let Words { ip, .. } = Words::of(family);
        let mark = format!("meta mark set meta mark | {MASQUERADE_BIT:#x}");
        let mark = if masquerade { mark.as_str() } else { "" };
        let translate =
            format!("meta l4proto {{ tcp, udp, sctp }} dnat {ip} to meta priority map @targets");
        let mut text = String::new();
        let rules = match self {
            Self::Stick { timeout, slot, .. } => {
                let timeout = timeout.as_secs();
                let of_port = "meta priority set meta priority & 0xffff8000".to_owned();
                let of_set =
                    format!("meta priority set meta priority | {:#x}", u32::from(*slot) << 12);
                let recall = format!("meta mark set meta priority . {ip} saddr map @affinity");
                let remember = format!(
                    "update @affinity {{ meta priority . {ip} saddr timeout {timeout}s : meta mark }}"
                );
                let choose =
                    format!("meta mark set meta priority . numgen random mod {n} map @choices");
                // Of several first connections at a time all go where the first one is recorded.
                text = chain(
                    ip,
                    &format!("choose-{}", self.chain()),
                    "",
                    &[
                        of_port.clone(),
                        format!(
                            "meta mark != 0 delete @affinity {{ meta priority . {ip} saddr : meta mark }}"
                        ),
                        of_set.clone(),
                        choose.clone(),
                        of_port.clone(),
                        remember.clone(),
                        recall.clone(),
                        of_set.clone(),
                        format!("meta priority . meta mark != @members {choose}"),
                    ],
                );
                vec![
                    format!(
                        "meta mark != 0 update @marks \
                         {{ meta l4proto . th sport . {ip} saddr timeout 5s : meta mark }}"
                    ),
                    of_port.clone(),
                    "meta mark set 0".to_owned(),
                    recall,
                    of_set.clone(),
                    format!("meta priority . meta mark != @members jump choose-{}", self.chain()),
                    // What is there already is kept, for as long again.
                    of_port,
                    remember,
                    of_set,
                    "meta priority set meta priority . meta mark map @members".to_owned(),
                    "meta mark set 0".to_owned(),
                    format!("meta mark set meta l4proto . th sport . {ip} saddr map @marks"),
                    mark.to_owned(),
                    translate,
                ]
            }
            _ => vec![
                mark.to_owned(),
                "meta priority set meta priority & 0xfffff000".to_owned(),
                format!("meta priority set meta priority . numgen random mod {n} map @endpoints"),
                translate,
            ],
        };
        text.push_str(&chain(ip, &self.chain(), "", &rules));
        text
    }
}

/// The table without hooks: no packet comes through it. Creating it again changes nothing.
pub(super) fn create(family: Family) -> String {
    let Words { ip, icmp, address, .. } = Words::of(family);
    let mut text = format!("add table {ip} {TABLE}\n");
    let mut add = |line: String| text.push_str(&format!("{line}\n"));
    let frontend = format!("{address} . inet_proto . inet_service");
    for (_, kind) in KINDS {
        add(format!("add map {ip} {TABLE} frontends-{kind} {{ type {frontend} : classid; }}"));
        add(format!(
            "add map {ip} {TABLE} node-ports-{kind} \
             {{ type inet_proto . inet_service : classid; }}"
        ));
    }
    let numbered = "meta priority . numgen random mod 2";
    for (holder, content) in [
        ("map", "classes { type classid : verdict; }".to_owned()),
        ("map", format!("addresses {{ type {address} : classid; }}")),
        ("map", format!("endpoints {{ typeof {numbered} : meta priority; }}")),
        ("map", format!("choices {{ typeof {numbered} : meta mark; }}")),
        ("map", "members { type classid . mark : classid; }".to_owned()),
        ("map", format!("targets {{ type classid : {address} . inet_service; }}")),
        ("set", format!("hairpin {{ type {address} . {address}; }}")),
        ("set", format!("restricted {{ type {frontend}; }}")),
        ("set", format!("allowed {{ type {frontend} . {address}; flags interval; }}")),
        (
            "map",
            format!(
                "affinity {{ type classid . {address} : mark; \
                 flags dynamic,timeout; size 1048576; }}"
            ),
        ),
        (
            "map",
            format!(
                "marks {{ type inet_proto . inet_service . {address} : mark; \
                 flags dynamic,timeout; size 65536; }}"
            ),
        ),
    ] {
        add(format!("add {holder} {ip} {TABLE} {content}"));
    }
    add(format!("add chain {ip} {TABLE} {SCHEMA}"));
    text += &chain(ip, "ignore", "", &["drop".to_owned()]);
    text += &chain(ip, "refuse", "", &[format!("reject with {icmp} port-unreachable")]);
    text += &chain(ip, "leave", "", &["meta priority set 0 accept".to_owned()]);
    text += &chain(ip, "decide", "", &["meta priority & 0xfff vmap @classes".to_owned()]);
    text
}

/// The rules that follow from the settings.
pub(super) fn settings(family: Family, settings: &Settings) -> String {
    let words = Words::of(family);
    let ip = words.ip;
    let cidrs: Vec<IpNet> = settings
        .service_cidrs
        .iter()
        .filter(|range| Family::of(&range.addr()) == family)
        .copied()
        .collect();
    let frontend = format!("{ip} daddr . meta l4proto . th dport");
    let mut text = String::new();
    for (_, kind) in KINDS {
        let mut rules = vec![
            format!("{frontend} @restricted {frontend} . {ip} saddr != @allowed drop"),
            format!("meta priority set {frontend} map @frontends-{kind} goto decide"),
            format!("meta priority set {ip} daddr map @addresses goto decide"),
        ];
        for ranges in node_port_ranges(&words, settings.node_ports.get(family)) {
            rules.push(format!(
                "{ranges} fib daddr type local \
                 meta priority set meta l4proto . th dport map @node-ports-{kind} goto decide"
            ));
        }
        if !cidrs.is_empty() {
            rules.push(format!("{ip} daddr {} drop", listed(&cidrs)));
        }
        text += &chain(ip, &format!("from-{kind}"), "", &rules);
    }
    let pods = settings.pods.get(family).as_ref().map(|pods| pod_match(ip, pods));
    let pods = pods.map(|pods| format!("{pods} goto from-pod"));
    let is_by_interface = !matches!(settings.pods.get(family), Some(PodSource::Cidr(_)));
    let mut arriving: Vec<String> = pods.iter().cloned().collect();
    arriving.push("fib saddr type local goto from-node".to_owned());
    arriving.push("goto from-outside".to_owned());
    let mut leaving: Vec<String> = pods.into_iter().filter(|_| !is_by_interface).collect();
    leaving.push("goto from-node".to_owned());
    text += &chain(ip, "arriving", "", &arriving);
    text += &chain(ip, "leaving", "", &leaving);
    text
}

/// The hooks: packets come through the table.
pub(super) fn hooks(family: Family) -> String {
    let Words { ip, loopback, .. } = Words::of(family);
    let nat = |hook, priority| format!("{{ type nat hook {hook} priority {priority}; }}");
    // Only these three protocols are translated.
    let masquerade = format!(
        "meta l4proto {{ tcp, udp, sctp }} masquerade to :{}-{} fully-random",
        NETFILTER_PORTS.start(),
        NETFILTER_PORTS.end()
    );
    let guard = "{ type filter hook prerouting priority -300; }";
    let mut text = chain(
        ip,
        "guard",
        guard,
        &[format!("iifname != \"lo\" {ip} daddr {loopback} counter drop")],
    );
    text += &chain(
        ip,
        "postrouting",
        &nat("postrouting", 100),
        &[
            "ct status & dnat == 0 return".to_owned(),
            "meta priority set 0".to_owned(),
            format!(
                "meta mark & {MASQUERADE_BIT:#x} == {MASQUERADE_BIT:#x} \
                 meta mark set meta mark & {:#x} {masquerade}",
                !MASQUERADE_BIT
            ),
            format!("{ip} saddr . {ip} daddr @hairpin {masquerade}"),
        ],
    );
    text += &chain(ip, "prerouting", &nat("prerouting", -100), &["goto arriving".to_owned()]);
    text += &chain(ip, "output", &nat("output", -100), &["goto leaving".to_owned()]);
    text
}

/// New connections pass by; those that were translated still are, since the hooks stay.
pub(super) fn drain(family: Family) -> String {
    let Words { ip, .. } = Words::of(family);
    format!("flush chain {ip} {TABLE} prerouting\nflush chain {ip} {TABLE} output\n")
}

/// How many rules a text adds.
pub(super) fn n_rules(text: &str) -> usize {
    text.lines().filter(|line| line.starts_with("add rule ")).count()
}

/// The table's family, as `nft` spells it.
pub(super) const fn family_name(family: Family) -> &'static str {
    Words::of(family).ip
}

/// What differs between the families.
struct Words {
    ip: &'static str,
    icmp: &'static str,
    address: &'static str,
    loopback: &'static str,
}

impl Words {
    const fn of(family: Family) -> Self {
        match family {
            Family::V4 => {
                Self { ip: "ip", icmp: "icmp", address: "ipv4_addr", loopback: "127.0.0.0/8" }
            }
            Family::V6 => Self { ip: "ip6", icmp: "icmpv6", address: "ipv6_addr", loopback: "::1" },
        }
    }
}

/// A chain with just these rules.
fn chain(ip: &str, name: &str, hook: &str, rules: &[String]) -> String {
    let mut text = String::new();
    text.push_str(&format!("add chain {ip} {TABLE} {name} {hook}\n"));
    text.push_str(&format!("flush chain {ip} {TABLE} {name}\n"));
    for rule in rules.iter().filter(|rule| !rule.is_empty()) {
        text.push_str(&format!("add rule {ip} {TABLE} {name} {rule}\n"));
    }
    text
}

fn pod_match(ip: &str, pods: &PodSource) -> String {
    match pods {
        PodSource::Cidr(range) => format!("{ip} saddr {range}"),
        PodSource::Interface(name) => format!("iifname \"{name}\""),
        PodSource::InterfacePrefix(prefix) => format!("iifname \"{prefix}*\""),
    }
}

/// What a destination must match to serve node ports, one of these.
fn node_port_ranges(words: &Words, node_ports: &NodePorts) -> Vec<String> {
    let Words { ip, loopback, .. } = words;
    let mut matches = Vec::new();
    if node_ports.within.iter().any(|range| range.prefix_len() == 0) {
        matches.push(format!("{ip} daddr != {loopback}"));
    } else if !node_ports.within.is_empty() {
        let within = listed(&node_ports.within);
        matches.push(format!("{ip} daddr != {loopback} {ip} daddr {within}"));
    }
    if !node_ports.loopback_within.is_empty() {
        matches.push(format!("{ip} daddr {}", listed(&node_ports.loopback_within)));
    }
    matches
}

/// An anonymous set; ranges in it do not overlap.
fn listed(ranges: &[IpNet]) -> String {
    let ranges = IpNet::aggregate(&ranges.to_vec());
    let ranges: Vec<String> = ranges.iter().map(ToString::to_string).collect();
    format!("{{ {} }}", ranges.join(", "))
}
