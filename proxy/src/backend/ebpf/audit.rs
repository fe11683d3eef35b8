//! Looks whether somebody else changed the maps, pins or links, and learns anew what is there.
//!
//! What can be made good at once is (addresses of the node, devices); the rest is taken over as a former
//! process's would be, and put again.

use std::sync::PoisonError;

use tracing::warn;

use super::known::{Known, frontends};
use super::{Opened, REST, node};
use crate::backend::ReadError;

impl Opened {
    /// Whether the kernel holds something else than was written. Then what it holds is known.
    pub(super) fn audit(&mut self) -> Result<bool, ReadError> {
        let failed = |error| ReadError::new("cannot read what the kernel holds", error);
        let mut damage = Vec::new();
        if self.addresses().repair().map_err(failed)? {
            damage.push("addresses".to_owned());
        }
        damage.extend(self.packets.lock().unwrap_or_else(PoisonError::into_inner).repair());
        damage.extend(self.dataplane.damage());
        if self.mark() {
            damage.push("the map FILTER".to_owned());
        }
        if let Some(map) = self.changed_map()? {
            damage.push(format!("the map {map}"));
            self.learn()?;
        }
        for what in &damage {
            warn!("somebody else changed {what}");
        }
        Ok(!damage.is_empty())
    }

    /// Marks all that packets are looked up in. Says whether any of it was not marked.
    fn mark(&self) -> bool {
        let filter = &self.dataplane.filter;
        let frontends = self.programmed.keys().filter(|key| filter.mark_service(&key.addr)).count();
        self.addresses().mark() | self.node.mark(&self.dataplane) | (frontends > 0)
    }

    /// A map of the plan that says something else than was written.
    fn changed_map(&mut self) -> Result<Option<&'static str>, ReadError> {
        if frontends(&mut self.dataplane)? != self.programmed {
            return Ok(Some("FRONTENDS"));
        }
        let slots = &self.dataplane.slots;
        if self.shown.iter().any(|(slot, content)| slots.get(*slot) != *content) {
            return Ok(Some("SLOTS"));
        }
        if !self.sets.are_whole(&self.dataplane) {
            return Ok(Some("ENDPOINTS"));
        }
        let failed = |error| ReadError::new("cannot read the node's maps", error);
        if node::source_ranges(&mut self.dataplane).map_err(failed)? != self.source_ranges {
            return Ok(Some("RANGES"));
        }
        let whole = self.node.are_whole(&mut self.dataplane).map_err(failed)?;
        Ok((!whole).then_some("NODE or PREFIXES"))
    }

    /// Takes over what is there now. Slots and generations that programs may have just read are not
    /// used again at once.
    fn learn(&mut self) -> Result<(), ReadError> {
        let known = Known::read(&mut self.dataplane)?;
        let former = std::mem::replace(&mut self.programmed, known.programmed);
        let former_slots = std::mem::replace(&mut self.slots, known.slots);
        let until = self.started.elapsed() + REST;
        self.slots.heed(&former_slots, former.into_values(), until);
        let former_sets = std::mem::replace(&mut self.sets, known.sets);
        self.sets.succeed(&former_sets, &self.dataplane);
        self.shown = known.shown;
        self.source_ranges = known.source_ranges;
        Ok(())
    }
}
