//! The sets of endpoints that frontends lead to: their numbers, and who uses them. `[pure]`
//!
//! Frontends that want the same endpoints share a set, which never changes: other endpoints are
//! another set. Where clients stay with an endpoint, a Service port has a number for what they
//! remember, and up to eight sets at a time below it.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use model::name::ServicePortName;

use super::element::{Key, Value};
use super::held::Held;

/// The bits of a number that say which set it is.
pub(super) const SET: u32 = 0xffff_f000;
/// Of those, the one that sets have whose clients stay.
const STICKY: u32 = 0x8000_0000;
/// Of those, the ones that a Service port's sets have in common.
const PORT: u32 = 0xffff_8000;

/// The sets of one table.
#[derive(Debug, Default)]
pub(super) struct Sets {
    contents: HashMap<u32, Arc<[SocketAddr]>>,
    plain: HashMap<Arc<[SocketAddr]>, u32>,
    /// How many frontends lead to a set.
    uses: HashMap<u32, u32>,
    /// How often an address is in a set.
    addresses: HashMap<IpAddr, u32>,
    /// The numbers of Service ports whose clients stay.
    ports: HashMap<ServicePortName, u32>,
    /// The numbers of endpoints, and how often each is in a set.
    endpoints: HashMap<SocketAddr, (u32, u32)>,
    /// The numbers that endpoints have.
    numbers: HashSet<u32>,
    last_set: u32,
    last_endpoint: u32,
}

impl Sets {
    /// The sets that these elements are, and the elements that are none.
    pub(super) fn adopt(held: &Held, ports: HashMap<ServicePortName, u32>) -> (Self, Vec<Key>) {
        let mut sets = Self { ports, ..Self::default() };
        let mut found: HashMap<u32, Vec<(u16, SocketAddr)>> = HashMap::new();
        for (key, value) in held.iter() {
            let (Key::Endpoint(set, idx) | Key::Choice(set, idx), Value::Number(number)) =
                (key, value)
            else {
                continue;
            };
            if let Some(Value::Socket(socket)) = held.get(&Key::Target(number)) {
                found.entry(set).or_default().push((idx, socket));
                sets.endpoints.entry(socket).or_insert((number, 0));
                sets.numbers.insert(number);
            }
        }
        for (set, mut endpoints) in found {
            endpoints.sort_unstable();
            if endpoints.iter().zip(0..).all(|((idx, _), at)| *idx == at) {
                sets.insert(set, endpoints.into_iter().map(|(_, socket)| socket).collect());
            }
        }
        sets.endpoints.retain(|_, (_, uses)| *uses > 0);
        sets.numbers = sets.endpoints.values().map(|(number, _)| *number).collect();
        let members = sets.members();
        let is_stray = |key: &Key| match key {
            Key::Endpoint(set, idx) => *set & STICKY != 0 || !sets.has(*set, *idx),
            Key::Choice(set, idx) => *set & STICKY == 0 || !sets.has(*set, *idx),
            Key::Member(set, number) => !members.contains(&(*set, *number)),
            Key::Target(number) => !sets.numbers.contains(number),
            Key::Hairpin(ip) => !sets.addresses.contains_key(ip),
            _ => false,
        };
        let strays = held.iter().map(|(key, _)| key).filter(is_stray).collect();
        (sets, strays)
    }

    /// Whether a set has so many endpoints.
    fn has(&self, set: u32, idx: u16) -> bool {
        self.contents.get(&set).is_some_and(|endpoints| usize::from(idx) < endpoints.len())
    }

    /// The endpoints that clients may stay with, by set and number.
    fn members(&self) -> HashSet<(u32, u32)> {
        let sticky = self.contents.iter().filter(|(set, _)| *set & STICKY != 0);
        let of_set = |(set, endpoints): (&u32, &Arc<[SocketAddr]>)| {
            let numbers = endpoints.iter().filter_map(|at| Some(self.endpoints.get(at)?.0));
            numbers.map(|number| (*set, number)).collect::<Vec<_>>()
        };
        sticky.flat_map(of_set).collect()
    }

    /// What is known of Service ports.
    pub(super) fn into_ports(self) -> HashMap<ServicePortName, u32> {
        self.ports
    }

    /// The set of these endpoints, and whether it is new; `None` if there is no number left.
    pub(super) fn plain(&mut self, endpoints: &Arc<[SocketAddr]>) -> Option<(u32, bool)> {
        if let Some(set) = self.plain.get(endpoints) {
            return Some((*set, false));
        }
        let set = self.unused(|set| set & STICKY == 0, 1 << 12)?;
        self.insert(set, Arc::clone(endpoints));
        Some((set, true))
    }

    /// The set of these endpoints that a Service port's clients stay with, and whether it is new.
    /// `current` is the set that the frontend leads to so far.
    pub(super) fn sticky(
        &mut self,
        service: &ServicePortName,
        current: Option<u32>,
        endpoints: &Arc<[SocketAddr]>,
    ) -> Option<(u32, bool)> {
        let port = self.port(service, current)?;
        let slots = (0..8).map(|slot| port | slot << 12);
        let same = |set: &u32| self.contents.get(set) == Some(endpoints);
        if let Some(set) = slots.clone().find(same) {
            return Some((set, false));
        }
        let set = slots.clone().find(|set| !self.contents.contains_key(set))?;
        self.insert(set, Arc::clone(endpoints));
        Some((set, true))
    }

    /// The elements that a set is made of.
    pub(super) fn elements(&self, set: u32) -> Vec<(Key, Value)> {
        let mut elements = Vec::new();
        for (endpoint, idx) in
            self.contents.get(&set).into_iter().flat_map(|all| all.iter()).zip(0..)
        {
            let Some((number, _)) = self.endpoints.get(endpoint) else { continue };
            let value = Value::Number(*number);
            elements.push((Key::Hairpin(endpoint.ip()), Value::Present));
            elements.push((Key::Target(*number), Value::Socket(*endpoint)));
            if set & STICKY == 0 {
                elements.push((Key::Endpoint(set, idx), value));
            } else {
                elements.push((Key::Choice(set, idx), value.clone()));
                elements.push((Key::Member(set, *number), value));
            }
        }
        elements
    }

    /// A frontend leads to it.
    pub(super) fn acquire(&mut self, set: u32) {
        *self.uses.entry(set).or_default() += 1;
    }

    /// A frontend leads to it no more. Says whether none does.
    pub(super) fn release(&mut self, set: u32) -> bool {
        let Some(uses) = self.uses.get_mut(&set) else { return false };
        *uses = uses.saturating_sub(1);
        *uses == 0 && self.contents.contains_key(&set)
    }

    /// Sets that no frontend leads to.
    pub(super) fn unused_sets(&self) -> Vec<u32> {
        self.contents.keys().copied().filter(|set| !self.is_used(*set)).collect()
    }

    /// Forgets a set, if no frontend leads to it again: the elements to remove.
    pub(super) fn forget(&mut self, set: u32) -> Vec<Key> {
        if self.is_used(set) {
            return Vec::new();
        }
        let elements = self.elements(set);
        let Some(endpoints) = self.contents.remove(&set) else { return Vec::new() };
        self.uses.remove(&set);
        if self.plain.get(&endpoints) == Some(&set) {
            self.plain.remove(&endpoints);
        }
        let mut gone = HashSet::new();
        for endpoint in endpoints.iter() {
            if less(self.addresses.get_mut(&endpoint.ip())) {
                self.addresses.remove(&endpoint.ip());
                gone.insert(Key::Hairpin(endpoint.ip()));
            }
            if less(self.endpoints.get_mut(endpoint).map(|(_, uses)| uses))
                && let Some((number, _)) = self.endpoints.remove(endpoint)
            {
                self.numbers.remove(&number);
                gone.insert(Key::Target(number));
            }
        }
        let is_gone = |key: &Key| match key {
            Key::Hairpin(_) | Key::Target(_) => gone.contains(key),
            _ => true,
        };
        elements.into_iter().map(|(key, _)| key).filter(is_gone).collect()
    }

    fn is_used(&self, set: u32) -> bool {
        self.uses.get(&set).is_some_and(|uses| *uses > 0)
    }

    fn insert(&mut self, set: u32, endpoints: Arc<[SocketAddr]>) {
        for endpoint in endpoints.iter() {
            *self.addresses.entry(endpoint.ip()).or_default() += 1;
            let (_, uses) = match self.endpoints.get_mut(endpoint) {
                Some(known) => known,
                None => {
                    let number = self.new_number();
                    self.endpoints.entry(*endpoint).or_insert((number, 0))
                }
            };
            *uses += 1;
        }
        if set & STICKY == 0 {
            self.plain.insert(Arc::clone(&endpoints), set);
        }
        self.contents.insert(set, endpoints);
    }

    /// The number of a Service port: what its clients remember is kept by it.
    fn port(&mut self, service: &ServicePortName, current: Option<u32>) -> Option<u32> {
        if let Some(port) = self.ports.get(service) {
            return Some(*port);
        }
        let left = current.filter(|set| set & STICKY != 0).map(|set| set & PORT);
        let known: HashSet<u32> = self.ports.values().copied().collect();
        let port = match left.filter(|port| !known.contains(port)) {
            Some(port) => port,
            None => {
                let taken: HashSet<u32> = self.contents.keys().map(|set| set & PORT).collect();
                (STICKY..=u32::MAX)
                    .step_by(1 << 15)
                    .find(|port| !known.contains(port) && !taken.contains(port))?
            }
        };
        self.ports.insert(service.clone(), port);
        Some(port)
    }

    /// A number that no endpoint has, nor had a short while ago.
    fn new_number(&mut self) -> u32 {
        loop {
            self.last_endpoint = self.last_endpoint.checked_add(1).unwrap_or(1);
            if self.numbers.insert(self.last_endpoint) {
                return self.last_endpoint;
            }
        }
    }

    fn unused(&mut self, fits: impl Fn(u32) -> bool, step: u32) -> Option<u32> {
        for _ in 0..=(STICKY / step) {
            let next = self.last_set.wrapping_add(step);
            self.last_set = if fits(next) { next } else { step };
            if !self.contents.contains_key(&self.last_set) {
                return Some(self.last_set);
            }
        }
        None
    }
}

/// Counts one less; says whether none is left.
fn less(count: Option<&mut u32>) -> bool {
    count.is_some_and(|count| {
        *count = count.saturating_sub(1);
        *count == 0
    })
}
