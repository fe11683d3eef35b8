//! The Services of a view, found by the two labels that name them: one hash and two places in
//! memory, however many there are.
//!
//! A fixed number of small hash tables, each behind a pointer of its own, so that views share the
//! tables that did not change. A persistent tree does the same, but a query walks its levels, and
//! at ten thousand Services each is a cache miss.

use std::hash::BuildHasher;
use std::sync::Arc;

use foldhash::fast::RandomState;
use smallvec::SmallVec;

use super::service::{FrontKey, ServiceView};
use crate::query::Key;

/// Tables of an index: a change copies one table and this many pointers, so both stay small up to
/// a hundred thousand Services.
const N_TABLES: usize = 256;

/// A set of Services, cheap to clone, changed without touching its clones.
#[derive(Clone)]
pub(super) struct Index {
    hasher: RandomState,
    tables: Arc<[Table]>,
    n_services: usize,
}

/// An open-addressed hash table, probed linearly, at most half full: its length is a power of
/// two, or nothing.
type Table = Arc<[Option<Slot>]>;

#[derive(Clone)]
struct Slot {
    hash: u64,
    service: Arc<ServiceView>,
}

impl Index {
    pub(super) fn get(&self, key: Key<'_>) -> Option<&Arc<ServiceView>> {
        let hash = self.hash(key);
        let table = self.tables.get(which_table(hash))?;
        probe(table, hash).find(|slot| slot.holds(hash, key)).map(|slot| &slot.service)
    }

    /// Brings what [`Index::get`] reads into the cache: the misses of keys that are looked up one
    /// right after another pass together, where they would be waited for one by one if each were
    /// answered for in between.
    pub(super) fn touch<const N: usize>(&self, keys: impl Iterator<Item = FrontKey>) {
        // Hashed apart, so that the processor sees many look-ups at once.
        let hashes: SmallVec<[u64; N]> = keys.map(|key| self.hash(Key(&key))).collect();
        for hash in hashes {
            let table = self.tables.get(which_table(hash)).map_or(&[][..], |table| table);
            let found = probe(table, hash).find(|slot| slot.hash == hash);
            std::hint::black_box(
                found.map(|slot| (slot.service.key().0.first(), slot.service.first_address())),
            );
        }
    }

    /// Puts a Service in the place of the one that has its key.
    pub(super) fn insert(&mut self, service: Arc<ServiceView>) {
        let hash = self.hash(service.key());
        let Some(table) = Arc::make_mut(&mut self.tables).get_mut(which_table(hash)) else {
            return;
        };
        let slots = Arc::make_mut(table);
        if let Some(slot) = slots.iter_mut().flatten().find(|slot| slot.holds(hash, service.key()))
        {
            slot.service = service;
            return;
        }
        self.n_services += 1;
        let n_after = slots.iter().flatten().count() + 1;
        if n_after * 2 > slots.len() {
            *table = filled(2 * n_after.next_power_of_two(), table.iter().flatten().cloned());
        }
        place(Arc::make_mut(table), Slot { hash, service });
    }

    pub(super) fn remove(&mut self, key: Key<'_>) {
        if self.get(key).is_none() {
            return;
        }
        let hash = self.hash(key);
        let Some(table) = Arc::make_mut(&mut self.tables).get_mut(which_table(hash)) else {
            return;
        };
        let others = table.iter().flatten().filter(|slot| !slot.holds(hash, key)).cloned();
        *table = filled(table.len(), others);
        self.n_services -= 1;
    }

    pub(super) fn len(&self) -> usize {
        self.n_services
    }

    /// Every Service, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<ServiceView>> {
        self.tables.iter().flat_map(|table| table.iter()).flatten().map(|slot| &slot.service)
    }

    fn hash(&self, key: Key<'_>) -> u64 {
        self.hasher.hash_one(key.0)
    }
}

impl Default for Index {
    fn default() -> Self {
        Self {
            hasher: RandomState::default(),
            tables: vec![Table::default(); N_TABLES].into(),
            n_services: 0,
        }
    }
}

impl PartialEq for Index {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len()
            && self.iter().all(|service| other.get(service.key()) == Some(service))
    }
}

impl Slot {
    fn holds(&self, hash: u64, key: Key<'_>) -> bool {
        self.hash == hash && self.service.key() == key
    }
}

/// By the upper half of a hash; the lower half finds the slot.
fn which_table(hash: u64) -> usize {
    low_bits(hash >> 32, N_TABLES)
}

fn first_slot(hash: u64, n_slots: usize) -> usize {
    low_bits(hash, n_slots)
}

/// A number below `n`, which is a power of two or zero.
fn low_bits(hash: u64, n: usize) -> usize {
    #[expect(clippy::cast_possible_truncation, reason = "the mask keeps fewer bits yet")]
    let bits = hash as usize;
    bits & n.saturating_sub(1)
}

/// The slots that may hold a hash: from its first slot on and around, up to an empty one.
fn probe(table: &[Option<Slot>], hash: u64) -> impl Iterator<Item = &Slot> {
    let (before, from) = table.split_at(first_slot(hash, table.len()));
    from.iter().chain(before).map_while(Option::as_ref)
}

fn filled(n_slots: usize, slots: impl Iterator<Item = Slot>) -> Table {
    let mut table = vec![None; n_slots];
    for slot in slots {
        place(&mut table, slot);
    }
    table.into()
}

/// Puts a slot of a new key into the first empty place; tables are never full.
fn place(table: &mut [Option<Slot>], slot: Slot) {
    let (before, from) = table.split_at_mut(first_slot(slot.hash, table.len()));
    if let Some(empty) = from.iter_mut().chain(before).find(|slot| slot.is_none()) {
        *empty = Some(slot);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use model::cluster::ServiceState;
    use model::name::NamespacedName;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::super::service;
    use super::super::tests::service as cluster_service;
    use super::*;
    use crate::config::Options;

    fn view(name: &str, dual: bool) -> Arc<ServiceView> {
        let service = Some(Arc::new(cluster_service(name, 0, dual)));
        let state = ServiceState { service, endpoints: Arc::default() };
        Arc::new(ServiceView::build(&Options::default(), &state).unwrap())
    }

    proptest! {
        #[test]
        fn an_index_holds_what_was_put_in_and_its_clones_what_they_held(
            steps in vec((0..4_000_u16, 0..4_u8), 0..600),
        ) {
            let (mut index, mut expected) = (Index::default(), BTreeMap::new());
            let mut earlier = Vec::new();
            for (n, (number, what)) in steps.into_iter().enumerate() {
                // Half of the steps come back to few names, so that removals hit.
                let name = format!("s{}", if n % 2 == 0 { number } else { number % 16 });
                match what {
                    0 => {
                        index.remove(Key(&service::key(&NamespacedName::new("shop", &*name))));
                        expected.remove(&name);
                    }
                    _ => {
                        let service = view(&name, what == 1);
                        index.insert(Arc::clone(&service));
                        expected.insert(name, service);
                    }
                }
                if n % 97 == 0 {
                    earlier.push((index.clone(), expected.clone()));
                }
            }
            earlier.push((index, expected));
            for (index, expected) in earlier {
                prop_assert_eq!(index.len(), expected.len());
                let mut held: Vec<_> = index.iter().collect();
                held.sort_by_key(|service| &*service.name().name);
                prop_assert!(held.into_iter().eq(expected.values()));
                for service in expected.values() {
                    prop_assert_eq!(index.get(service.key()), Some(service));
                }
                let absent = service::key(&NamespacedName::new("shop", "absent"));
                prop_assert_eq!(index.get(Key(&absent)), None);
            }
        }
    }
}
