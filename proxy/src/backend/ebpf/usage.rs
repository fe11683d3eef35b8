//! How much went where: the counts of the kernel by Service port and endpoint.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use abi::count::EndpointCounts;
use load::pinned::{Pinned, Tables};

use crate::backend::ReadError;
use crate::backend::ebpf::encode::frontend_key;
use crate::plan::FrontendKey;

/// What one Service port, of one family, was asked and served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Its frontends.
    pub frontends: Vec<FrontendKey>,
    /// What all its endpoints served, also those that are gone.
    pub served: Served,
    /// Connections and packets that were refused: there was no endpoint.
    pub refused: u64,
    /// Connections and packets that were dropped.
    pub dropped: u64,
    /// What the endpoints served that it has now.
    pub endpoints: BTreeMap<SocketAddr, Served>,
}

/// What was served. Packets of sockets that were translated pass no program, and are not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// Connections, or flows.
    pub connections: u64,
    /// Packets, in both directions.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What every Service port was asked and served, by its id; `None` where no dataplane is pinned.
///
/// # Errors
/// It is there, and cannot be read.
pub fn usage(bpffs: &Path) -> Result<Option<BTreeMap<u32, Usage>>, ReadError> {
    let tables = Pinned::under(bpffs)
        .tables()
        .map_err(|error| ReadError { doing: error.to_string(), source: None })?;
    Ok(tables.map(|tables| of_tables(&tables)))
}

fn of_tables(tables: &Tables) -> BTreeMap<u32, Usage> {
    let mut all: BTreeMap<u32, Usage> = BTreeMap::new();
    for (key, slot) in tables.frontends() {
        let slot = tables.slots.get(slot);
        let usage = all.entry(slot.rules.service()).or_default();
        usage.frontends.extend(frontend_key(&key));
        for entry in slot.heads.iter().flat_map(|head| tables.endpoints.read(*head)) {
            let counts = tables.counts.endpoint(entry.id);
            usage.endpoints.insert(entry.address, counts.into());
        }
    }
    for (id, usage) in &mut all {
        let counts = tables.counts.service(*id);
        usage.refused = counts.refused;
        usage.dropped = counts.dropped;
        usage.served = counts.gone.into();
        for served in usage.endpoints.values() {
            usage.served.add(served);
        }
        usage.frontends.sort_unstable();
    }
    all
}

impl Usage {
    /// Adds what the same Service port was asked and served in the other family.
    pub fn add(&mut self, other: Self) {
        self.frontends.extend(other.frontends);
        self.served.add(&other.served);
        self.refused += other.refused;
        self.dropped += other.dropped;
        self.endpoints.extend(other.endpoints);
    }
}

impl Served {
    /// Adds what somebody else served.
    pub const fn add(&mut self, other: &Self) {
        self.connections += other.connections;
        self.packets += other.packets;
        self.bytes += other.bytes;
    }
}

impl From<EndpointCounts> for Served {
    fn from(counts: EndpointCounts) -> Self {
        let EndpointCounts { connections, packets, bytes, .. } = counts;
        Self { connections, packets, bytes }
    }
}
