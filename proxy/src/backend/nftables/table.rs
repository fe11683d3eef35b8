//! One family's table: what the kernel holds, what it should, and the transaction between. `[pure]`
//!
//! A set of endpoints has a number. Frontends lead to numbers, so that replacing one number by
//! another is what publishes a set; the old set stays until whoever read its number is done.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use model::name::{Family, Protocol, ServicePortName};

use super::element::{Key, Value};
use super::held::Held;
use super::rules::{Class, KINDS, create, family_name, n_rules};
use super::sets::{SET, Sets};
use super::{REST, TABLE};
use crate::backend::{ApplyError, ApplyErrorClass};
use crate::plan::{At, Frontend, FrontendKey, Masquerade, Route, SourceKind, Target, Undefined};

/// What happens at a port of an address that no frontend has, as a class.
const REJECT: u32 = 1;
/// The same for one that is left alone.
const LEAVE: u32 = 2;

/// One family's table.
#[derive(Debug)]
pub(super) struct Table {
    family: Family,
    /// What the kernel holds.
    held: Held,
    /// What the next transaction changes; `None` removes.
    pending: BTreeMap<Key, Option<Value>>,
    /// Chains that the next transaction makes.
    chains: String,
    classes: HashMap<Class, u16>,
    sets: Sets,
    /// For whom frontends are that are not for everyone.
    allowed: HashMap<(SocketAddr, Protocol), Vec<IpNet>>,
    /// Sets that no frontend leads to any more, and since when.
    resting: VecDeque<(Duration, u32)>,
    /// Sets that the next transaction leaves without a frontend.
    left: Vec<u32>,
    /// Elements that are part of nothing.
    strays: Vec<Key>,
}

impl Table {
    /// A table that holds these elements. `ports` are numbers of Service ports known before.
    pub(super) fn adopt(family: Family, held: Held, ports: HashMap<ServicePortName, u32>) -> Self {
        let (mut sets, strays) = Sets::adopt(&held, ports);
        let mut classes = HashMap::new();
        let mut allowed: HashMap<_, Vec<IpNet>> = HashMap::new();
        for (key, value) in held.iter() {
            match (key, value) {
                (Key::Class(number), Value::Chain(chain)) => {
                    classes.extend(Class::parse(&chain).map(|class| (class, number)));
                }
                (Key::Frontend(..) | Key::NodePort(..), Value::Number(number)) => {
                    sets.acquire(number & SET);
                }
                (Key::Allowed(socket, protocol, range), _) => {
                    allowed.entry((socket, protocol)).or_default().push(range);
                }
                _ => {}
            }
        }
        allowed.values_mut().for_each(|ranges| ranges.sort_unstable());
        let resting = sets.unused_sets().into_iter().map(|set| (Duration::ZERO, set)).collect();
        let mut table = Self {
            family,
            held,
            pending: BTreeMap::new(),
            chains: String::new(),
            classes,
            sets,
            allowed,
            resting,
            left: Vec::new(),
            strays,
        };
        for (class, number) in [(Class::Drop, 0), (Class::Reject, 1), (Class::Leave, 2)] {
            table.classes.insert(class, number);
            table.set(Key::Class(number), Some(Value::Chain(class.chain().into())));
        }
        table
    }

    /// Back to what the kernel holds, or to what it was found to hold.
    pub(super) fn revert(&mut self, found: Option<Held>) {
        let held = found.unwrap_or_else(|| std::mem::take(&mut self.held));
        let ports = std::mem::take(&mut self.sets).into_ports();
        *self = Self::adopt(self.family, held, ports);
    }

    /// The frontends that it holds.
    pub(super) fn frontends(&self) -> impl Iterator<Item = FrontendKey> {
        self.held.iter().filter_map(|(key, _)| match key {
            Key::Frontend(SourceKind::Pod, socket, protocol) => {
                Some(FrontendKey { at: At::Address(socket.ip()), port: socket.port(), protocol })
            }
            Key::NodePort(SourceKind::Pod, protocol, port) => {
                Some(FrontendKey { at: At::NodePort(self.family), port, protocol })
            }
            _ => None,
        })
    }

    /// The addresses that it holds, and what happens there.
    pub(super) fn addresses(&self) -> impl Iterator<Item = (IpAddr, Undefined)> {
        self.held.iter().filter_map(|(key, value)| match (key, value) {
            (Key::Address(ip), Value::Number(LEAVE)) => Some((ip, Undefined::Leave)),
            (Key::Address(ip), _) => Some((ip, Undefined::Reject)),
            _ => None,
        })
    }

    /// Adds or replaces a frontend. Says whether that changes anything.
    ///
    /// # Errors
    /// There is no room for it.
    pub(super) fn put(
        &mut self,
        key: &FrontendKey,
        frontend: &Frontend,
    ) -> Result<bool, ApplyError> {
        let mut numbers = Vec::with_capacity(KINDS.len());
        for (kind, _) in KINDS {
            let at = place(kind, key);
            numbers.push((self.number(&at, frontend, frontend.routes.from(kind))?, at));
        }
        let mut changed = self.restrict(key, frontend.source_ranges.as_deref());
        for (number, at) in numbers {
            changed |= self.lead(at, Some(number));
        }
        Ok(changed)
    }

    /// Removes a frontend. Says whether that changes anything.
    pub(super) fn remove(&mut self, key: &FrontendKey) -> bool {
        let mut changed = false;
        for (kind, _) in KINDS {
            changed |= self.lead(place(kind, key), None);
        }
        changed | self.restrict(key, None)
    }

    /// Says what happens at ports of an address that no frontend has, or that nothing does.
    pub(super) fn own(&mut self, address: IpAddr, undefined: Option<Undefined>) -> bool {
        let value = match undefined {
            Some(Undefined::Reject) => Some(Value::Number(REJECT)),
            Some(Undefined::Leave) => Some(Value::Number(LEAVE)),
            // As if the address were nobody's: node ports are served there.
            Some(Undefined::NodePort) | None => None,
        };
        self.set(Key::Address(address), value)
    }

    /// The transaction's text; empty if there is nothing to change.
    pub(super) fn render(&mut self, now: Duration) -> String {
        if self.pending.is_empty() && self.chains.is_empty() {
            return String::new();
        }
        self.sweep(now);
        let mut deleted: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        let mut added: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for (key, value) in &self.pending {
            if self.held.has(key) {
                deleted.entry(key.holder()).or_default().push(key.to_string());
            }
            if let Some(value) = value {
                added.entry(key.holder()).or_default().push(format!("{key}{value}"));
            }
        }
        let mut text = self.chains.clone();
        for (verb, elements) in [("delete", deleted), ("add", added)] {
            for (holder, elements) in elements {
                let (ip, elements) = (family_name(self.family), elements.join(", "));
                let line = format!("{verb} element {ip} {TABLE} {holder} {{ {elements} }}\n");
                text.push_str(&line);
            }
        }
        text
    }

    /// The transaction was carried out.
    pub(super) fn commit(&mut self, now: Duration) {
        self.chains.clear();
        for (key, value) in std::mem::take(&mut self.pending) {
            match value {
                Some(value) => self.held.insert(key, value),
                None => self.held.remove(&key),
            };
        }
        let left = std::mem::take(&mut self.left);
        self.resting.extend(left.into_iter().map(|set| (now, set)));
    }

    /// Whether the kernel holds just what it should.
    pub(super) fn holds(&self, found: &Held) -> bool {
        self.held == *found
    }

    /// How many rules its chains have, those of the hooks and the settings aside.
    pub(super) fn n_rules(&self) -> usize {
        let classes = self.classes.keys().map(|class| class.create(self.family));
        classes.map(|text| n_rules(&text)).sum::<usize>() + n_rules(&create(self.family))
    }

    /// Whether it holds a frontend.
    pub(super) fn has(&self, key: &FrontendKey) -> bool {
        self.held.has(&place(SourceKind::Pod, key))
    }

    /// What it holds for a frontend, in words.
    pub(super) fn shown(&self, key: &FrontendKey) -> String {
        let shown = KINDS.map(|(kind, name)| match self.held.get(&place(kind, key)) {
            Some(value) => format!("from {name}{value}"),
            None => format!("from {name}: nothing"),
        });
        shown.join(", ")
    }

    /// Sets that have rested long enough go with the next transaction.
    fn sweep(&mut self, now: Duration) {
        let mut gone = std::mem::take(&mut self.strays);
        while let Some((since, set)) = self.resting.front().copied()
            && (since.is_zero() || since + REST <= now)
        {
            self.resting.pop_front();
            gone.extend(self.sets.forget(set));
        }
        for key in gone {
            if self.held.has(&key) {
                self.pending.entry(key).or_insert(None);
            }
        }
    }

    /// The set and class that a route is, with its set written if it is not there yet.
    fn number(&mut self, at: &Key, frontend: &Frontend, route: &Route) -> Result<u32, ApplyError> {
        let endpoints = match &route.target {
            Target::Drop => return Ok(0),
            Target::Reject => return Ok(REJECT),
            Target::Endpoints(endpoints) => super::slots(endpoints),
        };
        let masquerade = route.masquerade == Masquerade::Always;
        let n = u16::try_from(endpoints.len()).unwrap_or(u16::MAX);
        let found = match frontend.affinity {
            None => self.sets.plain(&endpoints),
            Some(_) => {
                let current = match self.current(at) {
                    Some(Value::Number(number)) => Some(number & SET),
                    _ => None,
                };
                self.sets.sticky(&frontend.service, current, &endpoints)
            }
        };
        let (set, is_new) =
            found.ok_or_else(|| no_room("no number for another set of endpoints"))?;
        if is_new {
            for (key, value) in self.sets.elements(set) {
                self.set(key, Some(value));
            }
        }
        let class = match frontend.affinity {
            None => Class::Pick { n, masquerade },
            Some(timeout) => {
                let slot = u8::try_from(set >> 12 & 7).unwrap_or_default();
                Class::Stick { n, timeout, slot, masquerade }
            }
        };
        Ok(set | u32::from(self.class(class)?))
    }

    /// The number of a class, with its chain made if it is not there yet.
    fn class(&mut self, class: Class) -> Result<u16, ApplyError> {
        if let Some(number) = self.classes.get(&class) {
            return Ok(*number);
        }
        let taken: HashSet<u16> = self.classes.values().copied().collect();
        let number = (0..=0xfff)
            .find(|number| !taken.contains(number))
            .ok_or_else(|| no_room("no number for another way to choose an endpoint"))?;
        self.chains += &class.create(self.family);
        self.set(Key::Class(number), Some(Value::Chain(class.chain().into())));
        self.classes.insert(class, number);
        Ok(number)
    }

    /// Lets a place lead to a set and class, or nowhere.
    fn lead(&mut self, at: Key, number: Option<u32>) -> bool {
        let before = match self.current(&at) {
            Some(Value::Number(before)) => Some(before),
            _ => None,
        };
        if before == number {
            return false;
        }
        if let Some(number) = number {
            self.sets.acquire(number & SET);
        }
        if let Some(before) = before
            && self.sets.release(before & SET)
        {
            self.left.push(before & SET);
        }
        self.set(at, number.map(Value::Number))
    }

    fn restrict(&mut self, key: &FrontendKey, ranges: Option<&[IpNet]>) -> bool {
        let At::Address(ip) = key.at else { return false };
        let (socket, protocol) = (SocketAddr::new(ip, key.port), key.protocol);
        let mut ranges = ranges.map(|ranges| IpNet::aggregate(&ranges.to_vec()));
        if let Some(ranges) = &mut ranges {
            ranges.sort_unstable();
        }
        let before = self.allowed.get(&(socket, protocol));
        if before == ranges.as_ref() {
            return false;
        }
        for range in before.cloned().unwrap_or_default() {
            if !ranges.as_ref().is_some_and(|ranges| ranges.contains(&range)) {
                self.set(Key::Allowed(socket, protocol, range), None);
            }
        }
        for range in ranges.iter().flatten() {
            self.set(Key::Allowed(socket, protocol, *range), Some(Value::Present));
        }
        let restricted = ranges.as_ref().map(|_| Value::Present);
        self.set(Key::Restricted(socket, protocol), restricted);
        match ranges {
            Some(ranges) => self.allowed.insert((socket, protocol), ranges),
            None => self.allowed.remove(&(socket, protocol)),
        };
        true
    }

    fn current(&self, key: &Key) -> Option<Value> {
        match self.pending.get(key) {
            Some(pending) => pending.clone(),
            None => self.held.get(key),
        }
    }

    /// Says whether it changes anything.
    fn set(&mut self, key: Key, value: Option<Value>) -> bool {
        if self.current(&key) == value {
            return false;
        }
        self.pending.insert(key, value);
        true
    }
}

/// Where a packet from a kind of source finds a frontend.
const fn place(kind: SourceKind, key: &FrontendKey) -> Key {
    match key.at {
        At::Address(ip) => Key::Frontend(kind, SocketAddr::new(ip, key.port), key.protocol),
        At::NodePort(_) => Key::NodePort(kind, key.protocol, key.port),
    }
}

fn no_room(doing: &str) -> ApplyError {
    ApplyError { doing: doing.to_owned(), class: ApplyErrorClass::Drop, source: None }
}

#[cfg(test)]
mod tests;
