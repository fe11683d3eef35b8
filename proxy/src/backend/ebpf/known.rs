//! What the maps hold, read back: what a former process left, or somebody else changed.

use std::collections::{BTreeMap, BTreeSet};

use abi::frontend::FrontendKey as Key;
use abi::slot::Slot;
use ipnet::IpNet;
use load::Dataplane;

use super::node;
use super::sets::Sets;
use super::slots::Slots;
use crate::backend::ReadError;

/// What the maps of the plan hold.
pub(super) struct Known {
    pub(super) programmed: BTreeMap<Key, u32>,
    pub(super) shown: BTreeMap<u32, Slot>,
    pub(super) slots: Slots,
    pub(super) sets: Sets,
    pub(super) source_ranges: BTreeMap<u32, BTreeSet<IpNet>>,
}

impl Known {
    pub(super) fn read(dataplane: &mut Dataplane) -> Result<Self, ReadError> {
        let programmed = frontends(dataplane)?;
        let mut slots = Slots::new(dataplane.slots.len());
        for slot in programmed.values() {
            slots.take(*slot);
        }
        let contents = |slot: &u32| (*slot, dataplane.slots.get(*slot));
        let shown: BTreeMap<u32, Slot> = programmed.values().map(contents).collect();
        let sets =
            Sets::adopt(dataplane, programmed.values().filter_map(|it| shown.get(it).copied()));
        let source_ranges = node::source_ranges(dataplane).map_err(|error| {
            ReadError::new("cannot read the source ranges in the kernel", error)
        })?;
        Ok(Self { programmed, shown, slots, sets, source_ranges })
    }
}

/// Every frontend that a program finds, with its slot.
pub(super) fn frontends(dataplane: &mut Dataplane) -> Result<BTreeMap<Key, u32>, ReadError> {
    const WHAT: &str = "cannot read the frontends in the kernel";
    let len = dataplane.slots.len();
    let map = dataplane.frontends().map_err(|error| ReadError::new(WHAT, error))?;
    let mut found = BTreeMap::new();
    for entry in map.iter() {
        let (key, value) = entry.map_err(|error| ReadError::new(WHAT, error))?;
        found.extend(value.slot(&key).filter(|slot| *slot < len).map(|slot| (key, slot)));
    }
    Ok(found)
}
