//! The endpoint sets of each Service port: who has an id, who shares a range.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use abi::endpoint::Head;
use abi::slot::{N_HEADS, Slot};
use load::Dataplane;
use load::endpoints::Entry;
use model::name::{Family, ServicePortName};

use super::REST;
use super::ids::Ids;
use super::ranges::Ranges;
use crate::plan::EndpointSet;

/// Every Service port that has a frontend, with its sets.
#[derive(Debug)]
pub(super) struct Sets {
    by_name: BTreeMap<(ServicePortName, Family), u32>,
    by_id: BTreeMap<u32, Service>,
    service_ids: Ids,
    endpoint_ids: Ids,
    ranges: Ranges,
    generation: u32,
}

/// One Service port of one family.
#[derive(Debug, Default)]
struct Service {
    /// `None` until the plan first speaks of what a former process left.
    name: Option<(ServicePortName, Family)>,
    n_frontends: u32,
    sets: Vec<Set>,
    /// By address: an id, and how many sets have it.
    endpoints: BTreeMap<SocketAddr, (u32, u32)>,
}

/// A range of `ENDPOINTS`, and how many heads show it.
#[derive(Clone, Copy, Debug)]
struct Set {
    head: Head,
    n_heads: u32,
    /// Of what was written there.
    digest: u64,
}

impl Set {
    fn new(dataplane: &Dataplane, head: Head, n_heads: u32) -> Self {
        Self { head, n_heads, digest: digest(dataplane, head) }
    }
}

fn digest(dataplane: &Dataplane, head: Head) -> u64 {
    let mut hasher = DefaultHasher::new();
    for Entry { address, id, local } in dataplane.endpoints.read(head) {
        (address, id, local).hash(&mut hasher);
    }
    hasher.finish()
}

/// The endpoints of a set as they stand in the kernel.
#[derive(Clone, Copy, Debug)]
pub(super) enum Members<'a> {
    /// Those that may be chosen.
    Chosen(&'a EndpointSet),
    /// Those that serve.
    Serving(&'a [SocketAddr]),
}

/// A set cannot be written.
#[derive(Debug)]
pub(super) enum NoSet {
    /// There is no range for that many endpoints.
    NoRange { wanted: u32, used: u32, len: u32, resting: bool },
    /// The kernel does not let the range be written.
    Unreachable(io::Error),
}

impl Sets {
    /// Takes over what the slots of a former process show.
    pub(super) fn adopt(dataplane: &Dataplane, slots: impl IntoIterator<Item = Slot>) -> Self {
        let mut ranges = Ranges::new(dataplane.endpoints.len());
        let mut by_id: BTreeMap<u32, Service> = BTreeMap::new();
        let mut generation = 0;
        for slot in slots {
            let service = by_id.entry(slot.rules.service()).or_default();
            service.n_frontends += 1;
            for head in shown(&slot.heads) {
                generation = generation.max(head.generation());
                if service.show(head) {
                    continue;
                }
                ranges.take(head.base(), head.length());
                for entry in distinct(dataplane.endpoints.read(head)) {
                    service.endpoints.entry(entry.address).or_insert((entry.id, 0)).1 += 1;
                }
                service.sets.push(Set::new(dataplane, head, 1));
            }
        }
        let services = by_id.keys().copied().collect();
        let endpoints: BTreeSet<u32> = by_id
            .values()
            .flat_map(|service| service.endpoints.values().map(|(id, _)| *id))
            .collect();
        Self {
            by_name: BTreeMap::new(),
            by_id,
            service_ids: Ids::adopt(dataplane.slots.len(), &services),
            endpoint_ids: Ids::adopt(dataplane.endpoints.len(), &endpoints),
            ranges,
            generation,
        }
    }

    /// Whether every set stands as it was written.
    pub(super) fn are_whole(&self, dataplane: &Dataplane) -> bool {
        let mut sets = self.by_id.values().flat_map(|service| &service.sets);
        sets.all(|set| digest(dataplane, set.head) == set.digest)
    }

    /// Takes the place of what was known before somebody else changed the maps: no set gets a
    /// generation that one had before, and endpoints that are in no set any more begin anew.
    pub(super) fn succeed(&mut self, former: &Self, dataplane: &Dataplane) {
        self.generation = self.generation.max(former.generation);
        for (id, service) in &former.by_id {
            for (address, (endpoint, _)) in &service.endpoints {
                let now = self.by_id.get(id).and_then(|service| service.endpoints.get(address));
                if now.is_none_or(|(known, _)| known != endpoint) {
                    dataplane.counts.endpoint_gone(*endpoint, *id);
                }
            }
        }
    }

    /// The id of a Service port; `known` is the one that its frontend bears in the kernel. `None` if
    /// there is no room for another.
    pub(super) fn service(
        &mut self,
        dataplane: &Dataplane,
        name: &(ServicePortName, Family),
        known: Option<u32>,
    ) -> Option<u32> {
        if let Some(id) = self.by_name.get(name) {
            return Some(*id);
        }
        let unnamed = known.filter(|id| self.by_id.get(id).is_some_and(|s| s.name.is_none()));
        let id = match unnamed {
            Some(id) => id,
            None => {
                let id = self.service_ids.claim()?;
                dataplane.counts.clear_service(id);
                id
            }
        };
        self.by_id.entry(id).or_default().name = Some(name.clone());
        self.by_name.insert(name.clone(), id);
        Some(id)
    }

    /// A frontend of a Service port was added.
    pub(super) fn add_frontend(&mut self, service: u32) {
        if let Some(service) = self.by_id.get_mut(&service) {
            service.n_frontends += 1;
        }
    }

    /// A frontend of a Service port went.
    pub(super) fn remove_frontend(&mut self, service: u32) {
        if let Some(service) = self.by_id.get_mut(&service) {
            service.n_frontends = service.n_frontends.saturating_sub(1);
        }
    }

    /// Forgets a Service port that has no frontend, or none yet.
    pub(super) fn forget_if_unused(&mut self, id: u32) {
        if self.by_id.get(&id).is_none_or(|service| service.n_frontends > 0) {
            return;
        }
        if let Some(name) = self.by_id.remove(&id).and_then(|service| service.name) {
            self.by_name.remove(&name);
        }
        self.service_ids.release(id);
    }

    /// The head of a set, which is written where nobody looks unless it is there already. Nobody
    /// shows it yet: [`Sets::show`] or [`Sets::sweep`] comes next.
    pub(super) fn head(
        &mut self,
        dataplane: &Dataplane,
        service: u32,
        members: Members<'_>,
        now: Duration,
    ) -> Result<Head, NoSet> {
        let Some(service) = self.by_id.get_mut(&service) else { return Ok(Head::REJECT) };
        if let Some(set) = service.sets.iter().find(|set| members.stand_at(dataplane, set.head)) {
            return Ok(set.head);
        }
        let length = members.len();
        let Some(base) = self.ranges.claim(length, now) else {
            return Err(NoSet::NoRange {
                wanted: length,
                used: self.ranges.used(),
                len: self.ranges.len(),
                resting: self.ranges.resting(),
            });
        };
        if let Err(error) = dataplane.endpoints.reach(base, length) {
            self.ranges.rest(base, length, now);
            return Err(NoSet::Unreachable(error));
        }
        self.generation =
            if self.generation >= Head::MAX_GENERATION { 1 } else { self.generation + 1 };
        let local = members.iter().any(|(_, local)| local);
        let head = Head::new(base, length, self.generation).with_local(local);
        let mut last = None;
        let ids = &mut self.endpoint_ids;
        let entries = members.iter().map(|(address, local)| {
            let known = service
                .endpoints
                .entry(address)
                // One that gets no id is counted nowhere.
                .or_insert_with(|| (ids.claim().unwrap_or(0), 0));
            if known.1 == 0 {
                dataplane.counts.clear_endpoint(known.0);
            }
            if last.replace(address) != Some(address) {
                known.1 += 1;
            }
            Entry { address, id: known.0, local }
        });
        dataplane.endpoints.write(head, entries);
        service.sets.push(Set::new(dataplane, head, 0));
        Ok(head)
    }

    /// A slot shows these heads from now on.
    pub(super) fn show(&mut self, service: u32, heads: &[Head; N_HEADS]) {
        let Some(service) = self.by_id.get_mut(&service) else { return };
        for head in shown(heads) {
            service.show(head);
        }
    }

    /// A slot shows these heads no more.
    pub(super) fn hide(&mut self, service: u32, heads: &[Head; N_HEADS]) {
        let Some(service) = self.by_id.get_mut(&service) else { return };
        for head in shown(heads) {
            if let Some(set) = service.sets.iter_mut().find(|set| set.head == head) {
                set.n_heads = set.n_heads.saturating_sub(1);
            }
        }
    }

    /// Lets the sets of a Service port go that no head shows, and the ids of endpoints that are in
    /// none any more.
    pub(super) fn sweep(&mut self, dataplane: &Dataplane, id: u32, now: Duration) {
        let Some(service) = self.by_id.get_mut(&id) else { return };
        let gone: Vec<Head> =
            service.sets.iter().filter(|set| set.n_heads == 0).map(|set| set.head).collect();
        service.sets.retain(|set| set.n_heads > 0);
        for head in gone {
            for entry in distinct(dataplane.endpoints.read(head)) {
                let Some((endpoint, n_sets)) = service.endpoints.get_mut(&entry.address) else {
                    continue;
                };
                *n_sets = n_sets.saturating_sub(1);
                if *n_sets == 0 {
                    dataplane.counts.endpoint_gone(*endpoint, id);
                    self.endpoint_ids.release(*endpoint);
                    service.endpoints.remove(&entry.address);
                }
            }
            self.ranges.rest(head.base(), head.length(), now + REST);
        }
    }
}

impl Service {
    /// One more head shows a set; whether there is such a set.
    fn show(&mut self, head: Head) -> bool {
        let set = self.sets.iter_mut().find(|set| set.head == head);
        set.map(|set| set.n_heads += 1).is_some()
    }
}

impl Members<'_> {
    /// How many entries they take: more than there are endpoints if their weights differ.
    pub(super) fn len(&self) -> u32 {
        u32::try_from(self.iter().count()).unwrap_or(u32::MAX)
    }

    /// Each as often as its weight says, with whether it is on this node.
    pub(super) fn iter(&self) -> impl Iterator<Item = (SocketAddr, bool)> {
        let (set, serving) = match *self {
            Self::Chosen(set) => (Some(set), None),
            Self::Serving(serving) => (None, Some(serving)),
        };
        let share = set.map_or(1, |set| {
            set.iter().map(|endpoint| endpoint.weight).fold(0, greatest_common_divisor).max(1)
        });
        let chosen = set.into_iter().flat_map(move |set| {
            set.iter().flat_map(move |endpoint| {
                let times = usize::from(endpoint.weight / share);
                std::iter::repeat_n((endpoint.address, endpoint.local), times)
            })
        });
        let serving = serving.into_iter().flatten().map(|address| (*address, false));
        chosen.chain(serving)
    }

    /// Whether they are what stands in the range of a head.
    fn stand_at(&self, dataplane: &Dataplane, head: Head) -> bool {
        let standing = dataplane.endpoints.read(head);
        match self {
            Self::Chosen(_) => standing.map(|entry| (entry.address, entry.local)).eq(self.iter()),
            // Any set of the same endpoints does; how often each stands there does not matter.
            Self::Serving(serving) => {
                distinct(standing).map(|entry| entry.address).eq(serving.iter().copied())
            }
        }
    }
}

/// The sets that heads show, whatever they say about the source.
fn shown(heads: &[Head; N_HEADS]) -> impl Iterator<Item = Head> {
    heads.iter().map(|head| head.with_masquerade(false)).filter(|head| head.length() > 0)
}

/// The entries of a set without repetitions, which stand side by side.
fn distinct(entries: impl Iterator<Item = Entry>) -> impl Iterator<Item = Entry> {
    let mut last = None;
    entries.filter(move |entry| last.replace(entry.address) != Some(entry.address))
}

const fn greatest_common_divisor(mut a: u16, mut b: u16) -> u16 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Endpoint;

    fn set(weights: &[u16]) -> EndpointSet {
        let endpoint = |(last, weight): (u8, &u16)| Endpoint {
            address: SocketAddr::from(([10, 0, 0, last], 80)),
            weight: *weight,
            local: last == 1,
        };
        EndpointSet::new((1..).zip(weights).map(endpoint).collect()).unwrap()
    }

    /// The last digit of each address.
    fn lasts(members: Members<'_>) -> String {
        let texts = members.iter().map(|(address, _)| address.ip().to_string());
        texts.filter_map(|text| text.chars().last()).collect()
    }

    #[test]
    fn an_endpoint_stands_as_often_as_its_weight_says() {
        for (weights, expected) in
            [(&[1, 1, 1][..], "123"), (&[5, 5], "12"), (&[4, 2, 6], "112333"), (&[3], "1")]
        {
            let set = set(weights);
            assert_eq!(lasts(Members::Chosen(&set)), expected);
            assert_eq!(Members::Chosen(&set).len() as usize, expected.len());
        }
        let local: Vec<bool> = Members::Chosen(&set(&[1, 1])).iter().map(|(_, l)| l).collect();
        assert_eq!(local, [true, false]);
    }
}
