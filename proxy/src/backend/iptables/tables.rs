//! One family's tables: what the kernel holds, what it should, and the text between. `[pure]`

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{self, Write};
use std::net::IpAddr;
use std::sync::Arc;

use model::name::{Family, ServicePortName};

use super::addresses::{self, Addresses};
use super::fixed::{self, Charge, Extras, is_list};
use super::names;
use super::pending::Pending;
use super::read::{self, Shape};
use super::rules::{self, Context, Key, Table, Value};
use crate::plan::{Frontend, FrontendKey, Settings, Undefined};

/// One family's tables.
#[derive(Debug)]
pub(super) struct Tables {
    family: Family,
    settings: Arc<Settings>,
    charge: Charge,
    extras: Extras,
    /// What should be there, by Service port.
    ports: BTreeMap<ServicePortName, BTreeMap<FrontendKey, Arc<Frontend>>>,
    owners: HashMap<FrontendKey, ServicePortName>,
    addresses: Addresses,
    /// What each Service port is made of.
    made: HashMap<ServicePortName, Box<[Key]>>,
    /// What the kernel holds.
    held: HashMap<Key, Digest>,
    /// The addresses that it was found to know last.
    found_addresses: Vec<IpAddr>,
    /// What the next transaction changes.
    pending: Pending,
    dirty: Dirty,
    undo: Vec<Undo>,
}

/// A chain's rules, as far as it matters whether others are the same: the texts of ten thousand Services
/// are some megabytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Digest {
    hash: u64,
    n_rules: u32,
}

impl Digest {
    pub(super) fn of(value: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        value.hash(&mut hasher);
        let n_rules = u32::try_from(value.lines().count()).unwrap_or(u32::MAX);
        Self { hash: hasher.finish(), n_rules }
    }
}

/// What has to be written anew.
#[derive(Debug, Default)]
struct Dirty {
    ports: BTreeSet<ServicePortName>,
    addresses: BTreeSet<IpAddr>,
    everything: bool,
}

/// How things were before an operation.
#[derive(Debug)]
enum Undo {
    Frontend(FrontendKey, Option<Arc<Frontend>>),
    Address(IpAddr, Option<Undefined>),
    Settings(Arc<Settings>),
    Charge(Charge),
}

impl Tables {
    /// Tables of which nothing is known.
    pub(super) fn new(family: Family) -> Self {
        Self {
            family,
            settings: Arc::default(),
            charge: Charge::No,
            extras: Extras::default(),
            ports: BTreeMap::new(),
            owners: HashMap::new(),
            addresses: Addresses::new(),
            made: HashMap::new(),
            held: HashMap::new(),
            found_addresses: Vec::new(),
            pending: Pending::default(),
            dirty: Dirty::default(),
            undo: Vec::new(),
        }
    }

    /// What the kernel was found to hold: all else is written with the next transaction.
    pub(super) fn found(&mut self, held: HashMap<Key, Value>) {
        self.found_addresses =
            held.iter().flat_map(|(key, value)| read::addresses(key, value)).collect();
        self.held = held.into_iter().map(|(key, value)| (key, Digest::of(&value))).collect();
        self.pending.clear();
        self.dirty.everything = true;
    }

    /// What the kernel can.
    pub(super) const fn set_extras(&mut self, extras: Extras) {
        self.extras = extras;
    }

    pub(super) fn set_settings(&mut self, settings: &Arc<Settings>) {
        if self.settings != *settings {
            let before = std::mem::replace(&mut self.settings, Arc::clone(settings));
            self.undo.push(Undo::Settings(before));
            self.dirty.everything = true;
        }
    }

    /// Whether packets come through the chains.
    pub(super) fn set_charge(&mut self, charge: Charge) {
        self.undo.push(Undo::Charge(self.charge));
        self.charge = charge;
        self.dirty.everything = true;
    }

    /// What was taken in so far is how things are.
    pub(super) fn keep(&mut self) {
        self.undo.clear();
    }

    /// Adds, replaces or removes a frontend.
    pub(super) fn set_frontend(&mut self, key: &FrontendKey, frontend: Option<&Arc<Frontend>>) {
        let before = self.replace(key, frontend);
        self.undo.push(Undo::Frontend(*key, before));
    }

    fn replace(
        &mut self,
        key: &FrontendKey,
        frontend: Option<&Arc<Frontend>>,
    ) -> Option<Arc<Frontend>> {
        let before = self.owners.remove(key).and_then(|owner| {
            let frontends = self.ports.get_mut(&owner);
            let before = frontends.and_then(|frontends| frontends.remove(key));
            self.dirty.ports.insert(owner);
            before
        });
        if let Some(frontend) = frontend {
            let owner = &frontend.service;
            self.ports.entry(owner.clone()).or_default().insert(*key, Arc::clone(frontend));
            self.owners.insert(*key, owner.clone());
            self.dirty.ports.insert(owner.clone());
        }
        before
    }

    /// Says what happens at an address whatever the port.
    pub(super) fn set_address(&mut self, address: IpAddr, undefined: Option<Undefined>) {
        // Where node ports are served the address is as good as nobody's.
        let undefined = undefined.filter(|undefined| *undefined != Undefined::NodePort);
        let before = match undefined {
            Some(undefined) => self.addresses.insert(address, undefined),
            None => self.addresses.remove(&address),
        };
        if before != undefined {
            self.undo.push(Undo::Address(address, before));
            self.dirty.addresses.insert(address);
        }
    }

    /// Prepares the next transaction. Says whether there is anything to change.
    pub(super) fn prepare(&mut self) -> bool {
        self.stage();
        !self.pending.is_empty()
    }

    /// Writes the transaction that was prepared, in the parts that are each carried out at once.
    ///
    /// # Errors
    /// Whoever reads it reads no more.
    pub(super) fn write(&self, out: impl Write) -> io::Result<()> {
        if self.pending.is_empty() { Ok(()) } else { Text::new(self, out).write() }
    }

    /// The transaction was carried out.
    pub(super) fn commit(&mut self) {
        for (key, digest) in std::mem::take(&mut self.pending).into_digests() {
            match digest {
                Some(digest) => self.held.insert(key, digest),
                None => self.held.remove(&key),
            };
        }
        self.undo.clear();
    }

    /// It was not, or nobody knows: back to what was asked before. What the kernel holds has to be
    /// found again.
    pub(super) fn revert(&mut self) {
        for undo in std::mem::take(&mut self.undo).into_iter().rev() {
            match undo {
                Undo::Frontend(key, before) => drop(self.replace(&key, before.as_ref())),
                Undo::Address(address, Some(before)) => {
                    self.addresses.insert(address, before);
                }
                Undo::Address(address, None) => {
                    self.addresses.remove(&address);
                }
                Undo::Settings(before) => self.settings = before,
                Undo::Charge(before) => self.charge = before,
            }
        }
        self.ports.retain(|_, frontends| !frontends.is_empty());
        self.pending.clear();
        self.dirty.everything = true;
    }

    /// Everything goes that others do not refer to.
    pub(super) fn remove_all(&mut self, asked: &BTreeSet<(Table, Arc<str>)>) {
        *self = Self { held: std::mem::take(&mut self.held), ..Self::new(self.family) };
        let is_asked = |key: &Key| match key {
            Key::Chain(table, chain) => asked.contains(&(*table, Arc::clone(chain))),
            Key::Rule(..) => false,
        };
        for key in self.held.keys().filter(|key| !is_asked(key)) {
            self.pending.set(key.clone(), None);
        }
    }

    /// What the kernel holds.
    pub(super) const fn held(&self) -> &HashMap<Key, Digest> {
        &self.held
    }

    /// The addresses of which the kernel may know.
    pub(super) fn known_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.found_addresses.iter().chain(self.addresses.keys()).copied()
    }

    /// How many rules there ought to be.
    pub(super) fn shape(&self) -> Shape {
        let mut shape = Shape::new();
        for (key, digest) in &self.held {
            let (table, chain, n) = match key {
                Key::Chain(table, chain) => (table, chain, digest.n_rules as usize),
                Key::Rule(table, chain, _) => (table, chain, 1),
            };
            *shape.entry((*table, Arc::clone(chain))).or_default() += n;
        }
        shape
    }

    fn context(&self) -> Context<'_> {
        Context { family: self.family, settings: &self.settings }
    }

    fn stage(&mut self) {
        let dirty = std::mem::take(&mut self.dirty);
        if dirty.everything {
            return self.stage_everything();
        }
        for port in dirty.ports {
            let made = self.of_port(&port);
            let now: HashSet<&Key> = made.iter().map(|(key, _)| key).collect();
            let before = self.made.remove(&port).unwrap_or_default();
            let gone: Vec<Key> = before.into_iter().filter(|key| !now.contains(key)).collect();
            if !made.is_empty() {
                let keys = made.iter().map(|(key, _)| key.clone()).collect();
                self.made.insert(port, keys);
            }
            gone.into_iter().for_each(|key| self.set(key, None));
            made.into_iter().for_each(|(key, value)| self.set(key, Some(&value)));
        }
        for address in dirty.addresses {
            for (key, value) in addresses::around(self.context(), &self.addresses, address) {
                self.set(key, value.as_deref());
            }
        }
    }

    fn stage_everything(&mut self) {
        self.pending.clear();
        let mut desired: HashSet<Key> = HashSet::new();
        let mut shared = fixed::chains(self.context(), self.extras);
        shared.extend(addresses::all(self.context(), &self.addresses));
        shared.extend(fixed::jumps(self.charge).into_iter().map(|jump| (jump, Value::default())));
        for (key, value) in shared {
            desired.insert(key.clone());
            self.set(key, Some(&value));
        }
        let ports: Vec<ServicePortName> = self.ports.keys().cloned().collect();
        self.made.clear();
        for port in ports {
            // The texts of one Service port at a time: those of all are many times what is kept.
            let made = self.of_port(&port);
            let keys: Box<[Key]> = made.iter().map(|(key, _)| key.clone()).collect();
            desired.extend(keys.iter().cloned());
            self.made.insert(port, keys);
            made.into_iter().for_each(|(key, value)| self.set(key, Some(&value)));
        }
        let gone: Vec<Key> =
            self.held.keys().filter(|key| !desired.contains(key)).cloned().collect();
        gone.into_iter().for_each(|key| self.set(key, None));
    }

    fn of_port(&mut self, port: &ServicePortName) -> Vec<(Key, Value)> {
        let Some(frontends) = self.ports.get(port) else { return Vec::new() };
        if frontends.is_empty() {
            self.ports.remove(port);
            return Vec::new();
        }
        let frontends: Vec<_> =
            frontends.iter().map(|(key, frontend)| (*key, Arc::clone(frontend))).collect();
        rules::of_port(self.context(), port, &frontends)
    }

    fn set(&mut self, key: Key, value: Option<&str>) {
        let digest = value.map(Digest::of);
        if self.held.get(&key).copied() == digest {
            self.pending.unset(&key);
        } else {
            self.pending.set(key, value.zip(digest));
        }
    }
}

/// A transaction, being written.
struct Text<'a, W> {
    tables: &'a Tables,
    /// Lists that are written anew, with all their rules.
    lists: BTreeMap<(Table, &'a str), Vec<&'a str>>,
    out: W,
}

/// Which changes are written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// What adds to the rest.
    Added,
    /// What takes from it, or puts something in its place.
    Taken,
    /// All.
    Whole,
}

impl<'a, W: Write> Text<'a, W> {
    fn new(tables: &'a Tables, out: W) -> Self {
        let mut lists = BTreeMap::new();
        for (key, value) in tables.pending.iter() {
            if let (Key::Chain(table, chain), Some(_)) = (key, value)
                && is_list(*table, chain)
            {
                lists.insert((*table, &**chain), Vec::new());
            }
        }
        if !lists.is_empty() {
            let stays = |key: &&Key| !tables.pending.removes(key);
            let held = tables.held.keys().filter(stays);
            let fresh = tables.pending.iter().filter(|(_, value)| value.is_some());
            let fresh = fresh.map(|(key, _)| key).filter(|key| !tables.held.contains_key(key));
            for key in held.chain(fresh) {
                if let Key::Rule(table, chain, rule) = key
                    && let Some(list) = lists.get_mut(&(*table, &**chain))
                {
                    list.push(&**rule);
                }
            }
        }
        Self { tables, lists, out }
    }

    /// Refusals are there before the translation goes, and go after it is there: whoever is
    /// translated never meets them.
    fn write(mut self) -> io::Result<()> {
        self.section(Table::Mangle, Part::Whole)?;
        self.section(Table::Filter, Part::Added)?;
        self.section(Table::Nat, Part::Whole)?;
        self.section(Table::Filter, Part::Taken)?;
        self.out.flush()
    }

    fn section(&mut self, table: Table, part: Part) -> io::Result<()> {
        let tables = self.tables;
        let changes: Vec<(&'a Key, Option<&'a str>)> = tables
            .pending
            .iter()
            .filter(|(key, value)| self.is_in(key, value.is_some(), table, part))
            .collect();
        if changes.is_empty() {
            return Ok(());
        }
        self.line(&["*", table.name()])?;
        for (key, _) in &changes {
            if let Key::Chain(_, chain) = key {
                self.line(&[":", chain, " - [0:0]"])?;
            }
        }
        for (key, value) in &changes {
            match (key, value) {
                (Key::Chain(_, chain), Some(value)) => {
                    for rule in self.lists.remove(&(table, &**chain)).unwrap_or_default() {
                        self.line(&["-A ", chain, " ", rule])?;
                    }
                    for rule in value.lines() {
                        self.line(&["-A ", chain, " ", rule])?;
                    }
                }
                (Key::Rule(_, chain, rule), None) => self.line(&["-D ", chain, " ", rule])?,
                (Key::Rule(_, chain, rule), Some(_)) => self.line(&["-I ", chain, " ", rule])?,
                (Key::Chain(..), None) => {}
            }
        }
        for (key, value) in &changes {
            if let (Key::Chain(_, chain), None) = (key, value) {
                self.line(&["-X ", chain])?;
            }
        }
        self.line(&["COMMIT"])
    }

    fn is_in(&self, key: &Key, is_added: bool, table: Table, part: Part) -> bool {
        let (of, chain) = match key {
            Key::Chain(of, chain) | Key::Rule(of, chain, _) => (*of, chain),
        };
        if of != table {
            return false;
        }
        let adds = match key {
            Key::Chain(..) => is_added && !self.tables.held.contains_key(key),
            // They are written with their list, or go with it.
            Key::Rule(..) if self.is_rewritten(table, chain) => return false,
            // Refusals are hooked in after the translation, and out before it.
            Key::Rule(..) if !names::is_ours(chain) => !is_added,
            Key::Rule(..) => is_added,
        };
        match part {
            Part::Whole => true,
            Part::Added => adds,
            Part::Taken => !adds,
        }
    }

    /// Whether a chain is emptied anyway.
    fn is_rewritten(&self, table: Table, chain: &Arc<str>) -> bool {
        is_list(table, chain) && self.tables.pending.has(&Key::Chain(table, Arc::clone(chain)))
    }

    fn line(&mut self, words: &[&str]) -> io::Result<()> {
        words.iter().try_for_each(|word| self.out.write_all(word.as_bytes()))?;
        self.out.write_all(b"\n")
    }
}

#[cfg(test)]
mod tests;
