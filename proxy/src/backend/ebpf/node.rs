//! What holds for the whole node (`NODE`, `PREFIXES`), and which sources may use a slot (`RANGES`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use abi::addr::Addr;
use abi::address::{PrefixFlags, RangeKey};
use abi::node::Node;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use load::{Dataplane, OpenError, TrieKey as Key};

use super::encode::{self, Prefix};
use super::{doing, is_absent, retry};
use crate::backend::{ApplyError, ApplyErrorClass};
use crate::plan::Settings;

/// The node's own maps.
#[derive(Debug)]
pub(super) struct NodeMaps {
    /// The cookie of this process's network namespace: the node's.
    netns: u64,
    /// The flags of [`Node`] that the command line gives.
    flags: u64,
    /// [`Node::LEAVES_NEW`], which outlives a process.
    leaves_new: bool,
    /// What was written last.
    written: Option<(Node, BTreeMap<Prefix, u32>)>,
}

impl NodeMaps {
    /// For the node whose network namespace bears that cookie.
    pub(super) fn adopt(
        dataplane: &mut Dataplane,
        netns: u64,
        flags: u64,
    ) -> Result<Self, OpenError> {
        let failed = |source| OpenError::Map { name: "NODE", source };
        let held = dataplane.node()?.get(&0, 0).map_err(failed)?;
        // Nobody was in charge of maps that nobody wrote.
        let leaves_new = held.netns == 0 || held.flags & Node::LEAVES_NEW != 0;
        Ok(Self { netns, flags, leaves_new, written: None })
    }

    /// Whether new connections are left to others.
    pub(super) const fn leaves_new(&self) -> bool {
        self.leaves_new
    }

    /// Leaves new connections to others from now on, or leads them.
    pub(super) fn leave_new(
        &mut self,
        dataplane: &mut Dataplane,
        leaves_new: bool,
    ) -> Result<(), OpenError> {
        let failed = |source| OpenError::Map { name: "NODE", source };
        let mut map = dataplane.node()?;
        let mut node = map.get(&0, 0).map_err(failed)?;
        node.flags &= !Node::LEAVES_NEW;
        node.flags |= flag(leaves_new);
        map.set(0, node, 0).map_err(failed)?;
        self.leaves_new = leaves_new;
        if let Some((written, _)) = &mut self.written {
            written.flags = node.flags;
        }
        Ok(())
    }

    /// Makes the maps say what the settings say. Says whether they said something else.
    pub(super) fn write(
        &mut self,
        dataplane: &mut Dataplane,
        settings: &Settings,
    ) -> Result<bool, ApplyError> {
        let ranges = encode::prefixes(settings);
        let node = encode::node(settings, self.netns, self.flags | flag(self.leaves_new));
        self.written = None;
        let prefixes = write_prefixes(dataplane, &ranges)?;
        let written = write_node(dataplane, node)?;
        self.written = Some((node, ranges));
        Ok(written || prefixes)
    }

    /// Marks what was written last. Says whether any of it was not marked.
    pub(super) fn mark(&self, dataplane: &Dataplane) -> bool {
        self.written.as_ref().is_some_and(|(_, prefixes)| mark_prefixes(dataplane, prefixes))
    }

    /// Whether the maps say what was written last.
    pub(super) fn are_whole(&self, dataplane: &mut Dataplane) -> Result<bool, OpenError> {
        let Some((node, prefixes)) = &self.written else { return Ok(true) };
        if !dataplane.node()?.get(&0, 0).is_ok_and(|held| held == *node) {
            return Ok(false);
        }
        let map = dataplane.prefixes()?;
        let held = held_prefixes(map.iter())
            .map_err(|source| OpenError::Map { name: "PREFIXES", source })?;
        Ok(held == *prefixes)
    }
}

const fn flag(leaves_new: bool) -> u64 {
    if leaves_new { Node::LEAVES_NEW } else { 0 }
}

fn write_node(dataplane: &mut Dataplane, node: Node) -> Result<bool, ApplyError> {
    const WHAT: &str = "cannot write the node's settings";
    let mut map = dataplane.node().map_err(|error| doing(WHAT, &error))?;
    if map.get(&0, 0).is_ok_and(|held| held == node) {
        return Ok(false);
    }
    map.set(0, node, 0).map(|()| true).map_err(|error| doing(WHAT, &error))
}

/// Adds before it removes: an address that is in a range before and after never is in none.
fn write_prefixes(
    dataplane: &mut Dataplane,
    desired: &BTreeMap<Prefix, u32>,
) -> Result<bool, ApplyError> {
    const WHAT: &str = "cannot write the node's ranges";
    let failed = |error: &dyn std::fmt::Display| doing(WHAT, &error);
    mark_prefixes(dataplane, desired);
    let mut map = dataplane.prefixes().map_err(|error| failed(&error))?;
    let held = held_prefixes(map.iter()).map_err(|error| failed(&error))?;
    for ((bits, addr), flags) in desired.iter().filter(|(key, flags)| held.get(key) != Some(flags))
    {
        map.insert(&Key::new(*bits, *addr), PrefixFlags(*flags), 0)
            .map_err(|error| failed(&error))?;
    }
    for (bits, addr) in held.keys().filter(|key| !desired.contains_key(key)) {
        match map.remove(&Key::new(*bits, *addr)) {
            Err(error) if !is_absent(&error) => return Err(failed(&error)),
            _ => {}
        }
    }
    Ok(held != *desired)
}

/// Marks the ranges of Services. Says whether one was not.
fn mark_prefixes(dataplane: &Dataplane, prefixes: &BTreeMap<Prefix, u32>) -> bool {
    let of_services = prefixes.iter().filter(|(_, flags)| *flags & PrefixFlags::SERVICE != 0);
    of_services
        .fold(false, |news, ((bits, addr), _)| dataplane.filter.mark_range(*bits, addr) || news)
}

fn held_prefixes(
    entries: impl Iterator<Item = Result<(Key<Addr>, PrefixFlags), load::MapError>>,
) -> Result<BTreeMap<Prefix, u32>, load::MapError> {
    entries
        .map(|entry| entry.map(|(key, flags)| ((key.prefix_len(), key.data()), flags.0)))
        .collect()
}

/// What `RANGES` has, by slot.
pub(super) fn source_ranges(
    dataplane: &mut Dataplane,
) -> Result<BTreeMap<u32, BTreeSet<IpNet>>, OpenError> {
    let mut found: BTreeMap<u32, BTreeSet<IpNet>> = BTreeMap::new();
    for key in dataplane.ranges()?.keys().filter_map(Result::ok) {
        let RangeKey { slot, addr } = key.data();
        let bits = key.prefix_len().saturating_sub(32);
        found.entry(slot).or_default().extend(range(bits, addr));
    }
    Ok(found)
}

/// The ranges of those entries of `RANGES`, which are of one slot.
pub(super) fn ranges_of(keys: impl Iterator<Item = (u32, Addr)>) -> BTreeSet<IpNet> {
    keys.filter_map(|(bits, addr)| range(bits, addr)).collect()
}

/// Makes `RANGES` have these for a slot; `known` is what it has, and is kept up to date.
pub(super) fn write_source_ranges(
    dataplane: &mut Dataplane,
    slot: u32,
    known: &mut BTreeSet<IpNet>,
    desired: &[IpNet],
) -> Result<(), ApplyError> {
    if known.is_empty() && desired.is_empty() {
        return Ok(());
    }
    let mut map = dataplane.ranges().map_err(|error| retry(&error))?;
    for range in desired {
        if !known.contains(range) {
            map.insert(&range_key(slot, range), 1, 0).map_err(|error| ApplyError {
                doing: format!("cannot write source range {range}: {error}"),
                class: ApplyErrorClass::Drop,
                source: None,
            })?;
            known.insert(*range);
        }
    }
    let stale: Vec<IpNet> =
        known.iter().filter(|range| !desired.contains(range)).copied().collect();
    for range in stale {
        match map.remove(&range_key(slot, &range)) {
            Err(error) if !is_absent(&error) => return Err(retry(&error)),
            _ => known.remove(&range),
        };
    }
    Ok(())
}

fn range_key(slot: u32, range: &IpNet) -> Key<RangeKey> {
    let (bits, addr) = encode::prefix(range);
    Key::new(32 + bits, RangeKey { slot, addr })
}

/// The range that a trie has so.
fn range(bits: u32, addr: Addr) -> Option<IpNet> {
    let above = if addr.is_v4() && bits >= Addr::BITS - 32 { Addr::BITS - 32 } else { 0 };
    let bits = u8::try_from(bits.checked_sub(above)?).ok()?;
    match IpAddr::from(addr) {
        IpAddr::V4(v4) => Ipv4Net::new(v4, bits).ok().map(IpNet::V4),
        IpAddr::V6(v6) => Ipv6Net::new(v6, bits).ok().map(IpNet::V6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_survive_the_round_trip() {
        for text in
            ["10.0.0.0/8", "0.0.0.0/0", "192.0.2.1/32", "fd00::/8", "::/0", "2001:db8::1/128"]
        {
            let expected: IpNet = text.parse().unwrap();
            let (bits, addr) = encode::prefix(&expected);
            assert_eq!(range(bits, addr), Some(expected));
        }
    }
}
