//! What happens at Services' addresses whatever the port, found in three steps. `[pure]`
//!
//! ```text
//! KUBE-ADDRESSES ─▶ KUBE-ADDR-10.96.0.0/16 ─▶ KUBE-ADDR-10.96.3.0/24 ─▶ refused, or left alone
//!       └──────────────────┴─────────────────────────┴─ none: ─▶ KUBE-EXTERNAL-SERVICES
//! ```
//!
//! A rule for each address in one chain would be walked by every new connection of the node's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Bound;

use ipnet::IpNet;
use model::name::Family;

use super::names;
use super::rules::{Context, Key, Table, Value, host, line};
use crate::plan::Undefined;

/// Addresses, and what happens there. Those where node ports are served are not here.
pub(super) type Addresses = BTreeMap<IpAddr, Undefined>;

/// Every chain.
pub(super) fn all(context: Context<'_>, addresses: &Addresses) -> Vec<(Key, Value)> {
    let mut ranges = BTreeSet::new();
    for length in lengths(context.family) {
        ranges.extend(parts(addresses, everything(context.family), length));
    }
    let mut chains = Vec::new();
    for range in ranges {
        chains.extend(chain(context, addresses, range));
    }
    chains.extend(root(context, addresses));
    chains
}

/// The chains that one address is in, and those of them that there need not be any more.
pub(super) fn around(
    context: Context<'_>,
    addresses: &Addresses,
    address: IpAddr,
) -> Vec<(Key, Option<Value>)> {
    let mut chains: Vec<(Key, Option<Value>)> = Vec::new();
    for length in lengths(context.family) {
        let range = within(address, length);
        let is_empty = parts(addresses, range, host(address).prefix_len()).is_empty();
        let found = chain(context, addresses, range).into_iter();
        chains.extend(found.map(|(key, value)| (key, (!is_empty).then_some(value))));
    }
    chains.extend(root(context, addresses).into_iter().map(|(key, value)| (key, Some(value))));
    chains
}

fn root(context: Context<'_>, addresses: &Addresses) -> Vec<(Key, Value)> {
    let [length, _] = lengths(context.family);
    let parts = parts(addresses, everything(context.family), length);
    both(names::ADDRESSES, |_| ways(&parts))
}

/// The chain of a range, in both tables.
fn chain(context: Context<'_>, addresses: &Addresses, range: IpNet) -> Vec<(Key, Value)> {
    let [_, length] = lengths(context.family);
    let name = name(range);
    if range.prefix_len() < length {
        let parts = parts(addresses, range, length);
        return both(&name, |_| ways(&parts));
    }
    both(&name, |table| {
        let mut text = String::new();
        for (address, undefined) in addresses.range(range.network()..=range.broadcast()) {
            let verdict = match (table, undefined) {
                (Table::Filter, Undefined::Reject) => context.reject(),
                _ => "RETURN",
            };
            line(&mut text, &format!("-d {} -j {verdict}", host(*address)));
        }
        text
    })
}

/// A chain with the same rules in both tables, or nearly; none of them fits: on.
fn both(name: &str, text: impl Fn(Table) -> String) -> Vec<(Key, Value)> {
    let chain = |table| {
        let mut text = text(table);
        line(&mut text, &format!("-j {}", names::EXTERNAL_SERVICES));
        (Key::Chain(table, name.into()), text.into())
    };
    vec![chain(Table::Filter), chain(Table::Nat)]
}

/// Ways to ranges. Who returns from there returns from here as well.
fn ways(parts: &[IpNet]) -> String {
    let mut text = String::new();
    for part in parts {
        line(&mut text, &format!("-d {part} -g {}", name(*part)));
    }
    text
}

fn name(range: IpNet) -> String {
    names::hashed(names::ADDRESS_RANGE, &range.to_string())
}

/// The ranges of a length that have an address, within another range.
fn parts(addresses: &Addresses, range: IpNet, length: u8) -> Vec<IpNet> {
    let mut parts = Vec::new();
    let mut from = Bound::Included(range.network());
    let last = Bound::Included(range.broadcast());
    while let Some((address, _)) = addresses.range((from, last)).next() {
        let part = within(*address, length);
        parts.push(part);
        if part.broadcast() >= range.broadcast() {
            break;
        }
        from = Bound::Excluded(part.broadcast());
    }
    parts
}

fn within(address: IpAddr, length: u8) -> IpNet {
    IpNet::new(address, length).map_or_else(|_| host(address), |range| range.trunc())
}

fn everything(family: Family) -> IpNet {
    match family {
        Family::V4 => within(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 0),
        Family::V6 => within(IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED), 0),
    }
}

const fn lengths(family: Family) -> [u8; 2] {
    match family {
        Family::V4 => [16, 24],
        Family::V6 => [112, 120],
    }
}
