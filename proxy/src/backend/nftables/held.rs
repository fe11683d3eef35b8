//! What the maps and sets of one table hold. `[pure]`
//!
//! Ten endpoints of a Service are thirty elements and more, so those of frontends and sets are kept by what they
//! have in common: as keys and values of one map they would take more room than all else that is known of a cluster.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use model::name::Protocol;

use super::element::{Key, Value};
use super::rules::KINDS;
use crate::plan::SourceKind;

/// The elements of one table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    /// Where each kind of source is led.
    frontends: HashMap<(SocketAddr, Protocol), [Option<u32>; KINDS.len()]>,
    /// By set, the numbers of its endpoints, of which the last one is there.
    endpoints: HashMap<u32, Vec<Option<u32>>>,
    /// Where an endpoint is, by its number.
    targets: HashMap<u32, SocketAddr>,
    hairpin: HashSet<IpAddr>,
    /// All else, of which there is little.
    others: HashMap<Key, Value>,
}

impl Held {
    /// What an element leads to.
    pub(super) fn get(&self, key: &Key) -> Option<Value> {
        match key {
            Key::Frontend(kind, socket, protocol) => {
                let led = self.frontends.get(&(*socket, *protocol))?;
                led.get(index(*kind)).copied().flatten().map(Value::Number)
            }
            Key::Endpoint(set, idx) => {
                let numbers = self.endpoints.get(set)?;
                numbers.get(usize::from(*idx)).copied().flatten().map(Value::Number)
            }
            Key::Target(number) => self.targets.get(number).copied().map(Value::Socket),
            Key::Hairpin(ip) => self.hairpin.contains(ip).then_some(Value::Present),
            other => self.others.get(other).cloned(),
        }
    }

    /// Whether there is such an element.
    pub(super) fn has(&self, key: &Key) -> bool {
        self.get(key).is_some()
    }

    /// Adds an element, or replaces it.
    pub(super) fn insert(&mut self, key: Key, value: Value) {
        match (key, value) {
            (Key::Frontend(kind, socket, protocol), Value::Number(number)) => {
                let led = self.frontends.entry((socket, protocol)).or_default();
                if let Some(place) = led.get_mut(index(kind)) {
                    *place = Some(number);
                }
            }
            (Key::Endpoint(set, idx), Value::Number(number)) => {
                let numbers = self.endpoints.entry(set).or_default();
                let idx = usize::from(idx);
                if numbers.len() <= idx {
                    numbers.resize(idx + 1, None);
                }
                if let Some(place) = numbers.get_mut(idx) {
                    *place = Some(number);
                }
            }
            (Key::Target(number), Value::Socket(socket)) => {
                self.targets.insert(number, socket);
            }
            (Key::Hairpin(ip), Value::Present) => {
                self.hairpin.insert(ip);
            }
            (other, value) => {
                self.others.insert(other, value);
            }
        }
    }

    /// Removes an element.
    pub(super) fn remove(&mut self, key: &Key) {
        match key {
            Key::Frontend(kind, socket, protocol) => {
                let at = (*socket, *protocol);
                let Some(led) = self.frontends.get_mut(&at) else { return };
                if let Some(place) = led.get_mut(index(*kind)) {
                    *place = None;
                }
                if led.iter().all(Option::is_none) {
                    self.frontends.remove(&at);
                }
            }
            Key::Endpoint(set, idx) => {
                let Some(numbers) = self.endpoints.get_mut(set) else { return };
                if let Some(place) = numbers.get_mut(usize::from(*idx)) {
                    *place = None;
                }
                let n = numbers.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
                numbers.truncate(n);
                if numbers.is_empty() {
                    self.endpoints.remove(set);
                }
            }
            Key::Target(number) => drop(self.targets.remove(number)),
            Key::Hairpin(ip) => _ = self.hairpin.remove(ip),
            other => drop(self.others.remove(other)),
        }
    }

    /// Every element.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Key, Value)> {
        let led = self.frontends.iter().flat_map(|((socket, protocol), led)| {
            KINDS.into_iter().filter_map(|(kind, _)| {
                let number = led.get(index(kind)).copied().flatten()?;
                Some((Key::Frontend(kind, *socket, *protocol), Value::Number(number)))
            })
        });
        let endpoints = self.endpoints.iter().flat_map(|(set, numbers)| {
            (0..).zip(numbers).filter_map(|(idx, number)| {
                Some((Key::Endpoint(*set, idx), Value::Number((*number)?)))
            })
        });
        let targets = self.targets.iter();
        let targets = targets.map(|(number, at)| (Key::Target(*number), Value::Socket(*at)));
        let hairpin = self.hairpin.iter().map(|ip| (Key::Hairpin(*ip), Value::Present));
        let others = self.others.iter().map(|(key, value)| (key.clone(), value.clone()));
        led.chain(endpoints).chain(targets).chain(hairpin).chain(others)
    }
}

impl FromIterator<(Key, Value)> for Held {
    fn from_iter<I: IntoIterator<Item = (Key, Value)>>(elements: I) -> Self {
        let mut held = Self::default();
        elements.into_iter().for_each(|(key, value)| held.insert(key, value));
        held
    }
}

/// Where a kind of source stands among the kinds.
const fn index(kind: SourceKind) -> usize {
    match kind {
        SourceKind::Pod => 0,
        SourceKind::Node => 1,
        SourceKind::Outside => 2,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn element() -> impl Strategy<Value = (Key, Value)> {
        let socket = |last: u8| SocketAddr::from(([10, 0, 0, last], 80));
        (0..7_u8, 0..4_u8, 0..4_u16, 0..9_u32).prop_map(move |(which, small, idx, number)| {
            let kind = KINDS[usize::from(small) % KINDS.len()].0;
            match which {
                0 => (Key::Frontend(kind, socket(small), Protocol::Tcp), Value::Number(number)),
                1 => (Key::Endpoint(small.into(), idx), Value::Number(number)),
                2 => (Key::Target(small.into()), Value::Socket(socket(9))),
                3 => (Key::Hairpin(socket(small).ip()), Value::Present),
                4 => (Key::NodePort(kind, Protocol::Udp, idx), Value::Number(number)),
                5 => (Key::Choice(small.into(), idx), Value::Number(number)),
                _ => (Key::Restricted(socket(small), Protocol::Tcp), Value::Present),
            }
        })
    }

    proptest! {
        #[test]
        fn it_is_a_map_of_elements(steps in prop::collection::vec((element(), any::<bool>()), 0..80)) {
            let (mut held, mut plain) = (Held::default(), BTreeMap::new());
            for ((key, value), adds) in steps {
                if adds {
                    held.insert(key.clone(), value.clone());
                    plain.insert(key.clone(), value);
                } else {
                    held.remove(&key);
                    plain.remove(&key);
                }
                prop_assert_eq!(held.get(&key), plain.get(&key).cloned());
                prop_assert_eq!(held.has(&key), plain.contains_key(&key));
            }
            prop_assert_eq!(held.iter().collect::<BTreeMap<_, _>>(), plain.clone());
            // What came and went leaves nothing that would tell two of them apart.
            prop_assert_eq!(held, plain.into_iter().collect::<Held>());
        }
    }
}
