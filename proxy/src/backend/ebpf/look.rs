//! What the eBPF maps hold for a frontend: decoded in one place, for the writer and for whoever
//! only looks.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use abi::endpoint::Head;
use abi::slot::Source;
use ipnet::IpNet;
use load::endpoints::Endpoints;
use load::pinned::{Pinned, Tables};
use load::slots::Slots;

use crate::backend::ReadError;
use crate::backend::ebpf::encode::abi_key;
use crate::backend::ebpf::node;
use crate::backend::held::{Held, HeldRules, HeldTarget};
use crate::plan::{FrontendKey, SourceKind};

/// Every kind of source. Where no packet is translated, the last is not seen.
const KINDS: [SourceKind; 3] = [SourceKind::Pod, SourceKind::Node, SourceKind::Outside];

/// So often a set is read again that was replaced meanwhile.
const TRIES: usize = 8;

/// A look at the dataplane that is pinned somewhere, beside the process that writes it.
#[derive(Debug)]
pub struct Look {
    tables: Tables,
    pinned: Pinned,
}

impl Look {
    /// At what is pinned under a directory; `None` if that is no dataplane.
    ///
    /// # Errors
    /// It is there, and cannot be read.
    pub fn at(bpffs: &Path) -> Result<Option<Self>, ReadError> {
        let pinned = Pinned::under(bpffs);
        let tables = pinned
            .tables()
            .map_err(|error| ReadError { doing: error.to_string(), source: None })?;
        Ok(tables.map(|tables| Self { tables, pinned }))
    }

    /// What the kernel holds for a frontend.
    pub fn held(&self, key: &FrontendKey) -> Held {
        let key = abi_key(key);
        let packets_too = self.pinned.has_devices();
        let seen = if packets_too { &KINDS[..] } else { &KINDS[..2] };
        let slot = self.tables.slot(&key);
        if slot.is_some() {
            let ranges = |slot| node::ranges_of(self.tables.source_ranges(slot));
            let mut held = held(&self.tables.slots, &self.tables.endpoints, slot, ranges);
            held.routes.retain(|(kind, _)| seen.contains(kind));
            return held;
        }
        if self.tables.refuses_undefined(&key.addr) {
            Held::same(seen, &HeldTarget::Reject)
        } else if packets_too && self.tables.drops_unallocated(&key.addr) {
            Held::same(seen, &HeldTarget::Drop)
        } else {
            Held::default()
        }
    }

    /// How many of the programs are attached, and how many there are.
    pub fn attached(&self) -> (usize, usize) {
        (self.pinned.n_attached(), self.pinned.n_programs())
    }
}

/// What stands in a slot; nothing where there is none. `ranges` has the source ranges of slots.
pub(super) fn held(
    slots: &Slots,
    endpoints: &Endpoints,
    slot: Option<u32>,
    ranges: impl FnOnce(u32) -> BTreeSet<IpNet>,
) -> Held {
    let Some(slot) = slot else { return Held::default() };
    let mut held = Held::default();
    let mut read = slots.get(slot);
    for _ in 0..TRIES {
        let heads =
            KINDS.map(|kind| (kind, read.heads.get(index(kind)).copied().unwrap_or_default()));
        held.routes = heads.iter().map(|(kind, head)| (*kind, target(endpoints, *head))).collect();
        let masqueraded = heads.iter().filter(|(_, head)| head.masquerade());
        held.masqueraded = Some(masqueraded.map(|(kind, _)| *kind).collect());
        // Another head by now: what was read may be half of the set after it.
        let now = slots.get(slot);
        if read == now {
            break;
        }
        read = now;
    }
    let affinity = read.rules.affinity();
    held.rules = Some(HeldRules {
        source_ranges: read.rules.has_ranges().then(|| ranges(slot)),
        affinity: (affinity > 0).then(|| Duration::from_secs(affinity.into())),
    });
    held
}

/// Where the head of a kind of source stands in a slot.
pub(super) const fn index(source: SourceKind) -> usize {
    match source {
        SourceKind::Pod => Source::Pod as usize,
        SourceKind::Node => Source::Node as usize,
        SourceKind::Outside => Source::Outside as usize,
    }
}

fn target(endpoints: &Endpoints, head: Head) -> HeldTarget {
    match head {
        Head::REJECT => HeldTarget::Reject,
        Head::DROP => HeldTarget::Drop,
        head => HeldTarget::Endpoints(endpoints.read(head).map(|entry| entry.address).collect()),
    }
}
