//! What was asked for, what the kernel holds, and the changes between. `[pure]`

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use model::name::Family;

use super::Options;
use super::desired::{Context, Marks};
use super::item::{Key, Set, Value};
use crate::delta::Op;
use crate::plan::{At, Frontend, FrontendKey, Settings, Undefined};

/// The node's dataplane.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) options: Options,
    pub(super) settings: Arc<Settings>,
    frontends: BTreeMap<FrontendKey, Arc<Frontend>>,
    owned: BTreeMap<IpAddr, Undefined>,
    /// How many frontends each address has.
    n_frontends: HashMap<IpAddr, usize>,
    /// The node's own addresses, those of Services and loopback aside.
    local: BTreeSet<IpAddr>,
    marks: Marks,
    /// What each frontend is made of.
    made: HashMap<FrontendKey, BTreeMap<Key, Value>>,
    /// What should be there, and for how many.
    desired: HashMap<Key, (Value, usize)>,
    /// What the kernel holds, as far as is known.
    held: HashMap<Key, Value>,
    /// What may have to be written.
    dirty: BTreeSet<Key>,
}

/// One thing that is to change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) key: Key,
    pub(super) before: Option<Value>,
    pub(super) after: Option<Value>,
}

impl State {
    /// Of which nothing is known but the flags.
    pub(super) fn new(options: Options) -> Self {
        Self { options, ..Self::default() }
    }

    /// Takes an operation in. Says whether the settings are others now.
    pub(super) fn take(&mut self, op: &Op) -> bool {
        match op {
            Op::Settings(settings) => {
                let is_other = self.settings != *settings;
                self.settings = Arc::clone(settings);
                if is_other {
                    self.make_all(|_| true);
                }
                return is_other;
            }
            Op::Put { key, frontend } => self.set_frontend(key, Some(frontend)),
            Op::Remove { key } => self.set_frontend(key, None),
            Op::Own { address, undefined } => self.set_owned(*address, Some(*undefined)),
            Op::Disown { address } => self.set_owned(*address, None),
        }
        false
    }

    fn set_frontend(&mut self, key: &FrontendKey, frontend: Option<&Arc<Frontend>>) {
        let before = match frontend {
            Some(frontend) => self.frontends.insert(*key, Arc::clone(frontend)),
            None => self.frontends.remove(key),
        };
        let At::Address(address) = key.at else { return self.make(key) };
        let n = self.n_frontends.entry(address).or_default();
        match (before.is_some(), frontend.is_some()) {
            (false, true) => *n += 1,
            (true, false) => *n -= 1,
            _ => {}
        }
        if *n == 0 {
            self.n_frontends.remove(&address);
        }
        if before.is_some() != frontend.is_some() {
            self.make_address(address);
            // A node port of that number stands back there.
            self.make(&FrontendKey { at: At::NodePort(Family::of(&address)), ..*key });
        }
        self.make(key);
    }

    fn set_owned(&mut self, address: IpAddr, undefined: Option<Undefined>) {
        let before = match undefined {
            Some(undefined) => self.owned.insert(address, undefined),
            None => self.owned.remove(&address),
        };
        if before == undefined {
            return;
        }
        self.make_address(address);
        if self.local.contains(&address) {
            let family = Family::of(&address);
            self.make_all(|key| key.at == At::NodePort(family));
        }
    }

    /// The node has these addresses. Says whether it had others.
    pub(super) fn set_local(&mut self, local: BTreeSet<IpAddr>) -> bool {
        if self.local == local {
            return false;
        }
        let others = std::mem::replace(&mut self.local, local);
        let changed: Vec<IpAddr> = others.symmetric_difference(&self.local).copied().collect();
        changed.into_iter().for_each(|address| self.make_address(address));
        self.make_all(|key| matches!(key.at, At::NodePort(_)));
        true
    }

    /// The node's own addresses.
    pub(super) const fn local(&self) -> &BTreeSet<IpAddr> {
        &self.local
    }

    /// The frontends asked for.
    pub(super) fn frontends(&self) -> impl Iterator<Item = &FrontendKey> {
        self.frontends.keys()
    }

    /// The addresses asked for.
    pub(super) fn owned(&self) -> impl Iterator<Item = &IpAddr> {
        self.owned.keys()
    }

    /// What the kernel was found to hold: all else is written with the next changes.
    pub(super) fn found(&mut self, held: HashMap<Key, Value>) {
        self.held = held;
        self.dirty = self.held.keys().chain(self.desired.keys()).cloned().collect();
    }

    /// What the kernel holds.
    pub(super) const fn held(&self) -> &HashMap<Key, Value> {
        &self.held
    }

    /// The kernel holds this now.
    pub(super) fn hold(&mut self, key: Key, value: Option<Value>) {
        match value {
            Some(value) => self.held.insert(key, value),
            None => self.held.remove(&key),
        };
    }

    /// What is to be written: what is of sets only while something else is in charge, so that no
    /// packet goes another way.
    pub(super) fn changes(&mut self, is_in_charge: bool) -> Vec<Change> {
        let mut changes = Vec::new();
        let (now, later): (BTreeSet<Key>, BTreeSet<Key>) = std::mem::take(&mut self.dirty)
            .into_iter()
            .partition(|key| is_in_charge || matches!(key, Key::Entry(..)));
        self.dirty = later;
        for key in now {
            let after = self.desired.get(&key).map(|(value, _)| value.clone());
            let before = self.held.get(&key).cloned();
            if before != after {
                changes.push(Change { key, before, after });
            }
        }
        changes
    }

    fn make_all(&mut self, which: impl Fn(&FrontendKey) -> bool) {
        let keys: Vec<FrontendKey> =
            self.frontends.keys().filter(|key| which(key)).copied().collect();
        keys.iter().for_each(|key| self.make(key));
    }

    /// Makes anew what a frontend is made of.
    fn make(&mut self, key: &FrontendKey) {
        let made = match self.frontends.get(key) {
            Some(frontend) => {
                let addresses = self.addresses(key);
                let mut context = Context {
                    options: &self.options,
                    settings: &self.settings,
                    marks: &mut self.marks,
                };
                context.make(key, frontend, &addresses)
            }
            None => BTreeMap::new(),
        };
        let before = self.made.remove(key).unwrap_or_default();
        for (item, value) in &made {
            self.want(item, value);
        }
        before.keys().for_each(|item| self.unwant(item));
        if !made.is_empty() {
            self.made.insert(*key, made);
        }
    }

    /// Where a frontend is.
    fn addresses(&self, key: &FrontendKey) -> Vec<IpAddr> {
        let family = match key.at {
            At::Address(address) => return vec![address],
            At::NodePort(family) => family,
        };
        let node_ports = self.settings.node_ports.get(family);
        let is_served = |address: &&IpAddr| {
            let at = FrontendKey { at: At::Address(**address), ..*key };
            Family::of(address) == family
                && node_ports.serve(address)
                && !self.frontends.contains_key(&at)
                && self.owned.get(*address).is_none_or(|it| *it == Undefined::NodePort)
        };
        self.local.iter().filter(is_served).copied().collect()
    }

    /// A Service's address becomes the node's where it has a frontend, unless it is already.
    fn make_address(&mut self, address: IpAddr) {
        let family = Family::of(&address);
        let entry = |set| Key::Entry(set, family, address.to_string());
        let has_frontend = self.n_frontends.contains_key(&address);
        let undefined = self.owned.get(&address).copied();
        let is_nodes = undefined == Some(Undefined::NodePort);
        let is_left = undefined == Some(Undefined::Leave) && !has_frontend;
        let is_rejected = undefined == Some(Undefined::Reject);
        // Whoever listens at an address that the node has anyway is not ours to refuse.
        let has_node = is_nodes || self.local.contains(&address) && !is_rejected;
        let is_ours = (has_frontend || is_rejected) && !has_node;
        for (item, is_there) in [
            (Key::Address(address), is_ours),
            (entry(Set::Addresses), is_ours),
            (entry(Set::Left), is_left),
        ] {
            let was_there = self.desired.contains_key(&item);
            match (was_there, is_there) {
                (false, true) => self.want(&item, &Value::There),
                (true, false) => self.unwant(&item),
                _ => {}
            }
        }
    }

    fn want(&mut self, key: &Key, value: &Value) {
        let n = self.desired.get(key).map_or(0, |(_, n)| *n);
        self.desired.insert(key.clone(), (value.clone(), n + 1));
        self.dirty.insert(key.clone());
    }

    fn unwant(&mut self, key: &Key) {
        if let Some((_, n)) = self.desired.get_mut(key) {
            *n -= 1;
            if *n == 0 {
                self.desired.remove(key);
            }
        }
        self.dirty.insert(key.clone());
    }
}

#[cfg(test)]
mod tests;
