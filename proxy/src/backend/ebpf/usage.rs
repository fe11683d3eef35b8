//! How much went where: the counts of the kernel by Service port and endpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;

use abi::count::EndpointCounts;
use abi::flow::Record;
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
    let pinned = Pinned::under(bpffs);
    let tables =
        pinned.tables().map_err(|error| ReadError { doing: error.to_string(), source: None })?;
    Ok(tables.map(|tables| of_tables(&tables, &pinned.flows())))
}

fn of_tables(tables: &Tables, flows: &[Record]) -> BTreeMap<u32, Usage> {
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
    }
    // A connection counts its packets itself, until it ends.
    for flow in flows {
        let id = tables.slots.get(flow.slot).rules.service();
        let Some(usage) = all.get_mut(&id) else { continue };
        let packets = Served { connections: 0, packets: flow.packets(), bytes: flow.bytes() };
        usage.endpoints.get_mut(&endpoint(flow)).unwrap_or(&mut usage.served).add(&packets);
    }
    for usage in all.values_mut() {
        for served in usage.endpoints.values() {
            usage.served.add(served);
        }
        usage.frontends.sort_unstable();
    }
    all
}

/// Adds the packets of connections that have ended to what their endpoints served.
#[derive(Debug)]
pub(super) struct Ended<'a> {
    tables: &'a Tables,
    /// By slot, the ids of the endpoints that its Service port has now.
    endpoints: BTreeMap<u32, BTreeSet<u32>>,
}

impl<'a> Ended<'a> {
    pub(super) const fn new(tables: &'a Tables) -> Self {
        Self { tables, endpoints: BTreeMap::new() }
    }

    /// An id is given to others once its endpoint has gone, so it is looked up.
    pub(super) fn add(&mut self, flow: &Record) {
        let tables = self.tables;
        let slot = tables.slots.get(flow.slot);
        let ids = self.endpoints.entry(flow.slot).or_insert_with(|| {
            let entries = slot.heads.iter().flat_map(|head| tables.endpoints.read(*head));
            entries.map(|entry| entry.id).collect()
        });
        let (packets, bytes) = (flow.packets(), flow.bytes());
        if ids.contains(&flow.id) {
            tables.counts.endpoint_served(flow.id, packets, bytes);
        } else {
            tables.counts.gone_served(slot.rules.service(), packets, bytes);
        }
    }
}

fn endpoint(flow: &Record) -> SocketAddr {
    SocketAddr::new(flow.endpoint.into(), u16::from_be(flow.endpoint_port))
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
