//! What others than the writer may look at: maps by their pins, without the lock.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use abi::addr::Addr;
use abi::address::{AddressValue, PrefixFlags, RangeKey};
use abi::counter::Counter;
use abi::flow::{Name, Record, Tuple};
use abi::frontend::{FrontendKey, FrontendValue};
use abi::socket::UdpPeer;
use aya::Pod;
use aya::maps::{HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray};
use thiserror::Error;

use crate::TrieKey;
use crate::activate;
use crate::batch;
use crate::counts::Counts;
use crate::drops::Drops;
use crate::endpoints::Endpoints;
use crate::pins::Pins;
use crate::slots::Slots;

/// The maps and links that are pinned under a directory.
#[derive(Debug)]
pub struct Pinned {
    pins: Pins,
}

/// The connected sockets that the programs noted.
#[derive(Debug)]
pub struct PinnedPeers(HashMap<MapData, u64, UdpPeer>);

/// The maps that say where frontends lead, to be looked at while somebody else writes them.
#[derive(Debug)]
pub struct Tables {
    frontends: HashMap<MapData, FrontendKey, FrontendValue>,
    addresses: HashMap<MapData, Addr, AddressValue>,
    prefixes: LpmTrie<MapData, Addr, PrefixFlags>,
    ranges: LpmTrie<MapData, RangeKey, u32>,
    /// `SLOTS`.
    pub slots: Slots,
    /// `ENDPOINTS`.
    pub endpoints: Endpoints,
    /// `ENDPOINT_COUNTS` and `SERVICE_COUNTS`.
    pub counts: Counts,
}

/// Pinned maps are there, and cannot be read.
#[derive(Debug, Error)]
#[error("cannot read {}: {reason}", path.display())]
pub struct ReadTablesError {
    path: PathBuf,
    reason: String,
}

impl Pinned {
    /// What stands under a directory, which may be nothing.
    pub fn under(bpffs: &Path) -> Self {
        Self { pins: Pins::new(bpffs) }
    }

    /// The maps that say where frontends lead; `None` where no dataplane of this schema is pinned.
    ///
    /// # Errors
    /// They are there, and this process may not read them.
    pub fn tables(&self) -> Result<Option<Tables>, ReadTablesError> {
        let path = self.pins.map("FRONTENDS");
        match path.try_exists() {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(error) => return Err(ReadTablesError { path, reason: error.to_string() }),
        }
        let frontends = Map::HashMap(self.open("FRONTENDS")?)
            .try_into()
            .map_err(|error: MapError| ReadTablesError { path, reason: error.to_string() })?;
        let path = self.pins.map("ADDRESSES");
        let addresses = Map::HashMap(self.open("ADDRESSES")?)
            .try_into()
            .map_err(|error: MapError| ReadTablesError { path, reason: error.to_string() })?;
        let path = self.pins.map("PREFIXES");
        let prefixes = Map::LpmTrie(self.open("PREFIXES")?)
            .try_into()
            .map_err(|error: MapError| ReadTablesError { path, reason: error.to_string() })?;
        let path = self.pins.map("RANGES");
        let ranges = Map::LpmTrie(self.open("RANGES")?)
            .try_into()
            .map_err(|error: MapError| ReadTablesError { path, reason: error.to_string() })?;
        Ok(Some(Tables {
            frontends,
            addresses,
            prefixes,
            ranges,
            slots: self.mapped("SLOTS", |map, n| Slots::new(map.fd().as_fd(), n))?,
            endpoints: self.mapped("ENDPOINTS", |map, n| Endpoints::new(map.fd().as_fd(), n))?,
            counts: self.mapped("ENDPOINT_COUNTS", |endpoints, n| {
                let services = MapData::from_pin(self.pins.map("SERVICE_COUNTS"));
                let services = services.map_err(io::Error::other)?;
                let n_services = services.info().map_err(io::Error::other)?.max_entries();
                Counts::new((endpoints.fd().as_fd(), n), (services.fd().as_fd(), n_services))
            })?,
        }))
    }

    fn open(&self, name: &str) -> Result<MapData, ReadTablesError> {
        let path = self.pins.map(name);
        MapData::from_pin(&path).map_err(|error| ReadTablesError { path, reason: chain(&error) })
    }

    fn mapped<T>(
        &self,
        name: &str,
        map: impl FnOnce(&MapData, u32) -> io::Result<T>,
    ) -> Result<T, ReadTablesError> {
        let data = self.open(name)?;
        let path = self.pins.map(name);
        let entries = data.info().map(|info| info.max_entries());
        let entries = entries
            .map_err(|error| ReadTablesError { path: path.clone(), reason: chain(&error) })?;
        map(&data, entries).map_err(|error| ReadTablesError { path, reason: error.to_string() })
    }

    /// How many of the programs that translate and translate back are attached.
    pub fn n_attached(&self) -> usize {
        activate::programs()
            .filter(|name| activate::pinned_program(&self.pins, name).is_some())
            .count()
    }

    /// Whether packets are translated at any device.
    pub fn has_devices(&self) -> bool {
        !self.pins.devices().is_empty()
    }

    /// How many programs there are when all is well.
    pub fn n_programs(&self) -> usize {
        activate::programs().count()
    }

    /// How many frontends the kernel holds.
    ///
    /// # Errors
    /// The map is not pinned there, or cannot be read.
    pub fn n_frontends(&self) -> Result<usize, MapError> {
        let data = MapData::from_pin(self.pins.map("FRONTENDS"))?;
        let map: HashMap<_, FrontendKey, FrontendValue> = Map::HashMap(data).try_into()?;
        Ok(map.keys().filter(Result::is_ok).count())
    }

    /// What the programs counted, summed over the CPUs.
    ///
    /// # Errors
    /// The map is not pinned there, or cannot be read.
    pub fn counters(&self) -> Result<Vec<(Counter, u64)>, MapError> {
        let data = MapData::from_pin(self.pins.map("COUNTERS"))?;
        let map: PerCpuArray<_, u64> = Map::PerCpuArray(data).try_into()?;
        Counter::ALL
            .into_iter()
            .map(|counter| Ok((counter, map.get(&(counter as u32), 0)?.iter().sum())))
            .collect()
    }

    /// The connections that the packet programs translate and whose clients have proved that they
    /// exist, as they are while others write to them; none where no packets are translated.
    pub fn flows(&self) -> Vec<Record> {
        // Connections come and go meanwhile; one that is missed is there at the next look.
        let mut flows = BTreeMap::<Tuple, Record>::new();
        self.each("FLOWS", |sent, record| {
            flows.insert(sent, record);
        });
        self.each("NAMES", |_, name: Name| {
            if let Some(flow) = flows.get_mut(&name.sent) {
                flow.add(&name);
            }
        });
        flows.into_values().collect()
    }

    fn each<V: Pod + Default>(&self, map: &str, show: impl FnMut(Tuple, V)) {
        let map = MapData::from_pin(self.pins.map(map));
        let map = map.and_then(|data| HashMap::<_, Tuple, V>::try_from(Map::HashMap(data)));
        // What is not there has no entries, and what broke off has those that were shown.
        _ = map.and_then(|map| batch::each(&map, show));
    }

    /// Samples of what was dropped.
    ///
    /// # Errors
    /// The map is not pinned there.
    pub fn drops(&self) -> Result<Drops, MapError> {
        let data = MapData::from_pin(self.pins.map("DROPS"))?;
        Map::RingBuf(data).try_into().map(Drops::new)
    }

    /// The connected UDP sockets.
    ///
    /// # Errors
    /// The map is not pinned there.
    pub fn udp_peers(&self) -> Result<PinnedPeers, MapError> {
        let data = MapData::from_pin(self.pins.map("UDP_PEERS"))?;
        Ok(PinnedPeers(Map::HashMap(data).try_into()?))
    }
}

impl Tables {
    /// The slot of a frontend, if it is there.
    pub fn slot(&self, key: &FrontendKey) -> Option<u32> {
        self.frontends.get(key, 0).ok()?.slot(key)
    }

    /// Every frontend with its slot.
    pub fn frontends(&self) -> impl Iterator<Item = (FrontendKey, u32)> + '_ {
        self.frontends.iter().filter_map(|entry| {
            let (key, value) = entry.ok()?;
            Some((key, value.slot(&key)?))
        })
    }

    /// The source ranges of a slot: how many bits of which address.
    pub fn source_ranges(&self, slot: u32) -> impl Iterator<Item = (u32, Addr)> + '_ {
        let keys = self.ranges.keys().filter_map(Result::ok);
        keys.filter(move |key| key.data().slot == slot).map(|key| {
            (key.prefix_len().saturating_sub(RangeKey::BITS - Addr::BITS), key.data().addr)
        })
    }

    /// Whether ports of an address that no frontend has are refused.
    pub fn refuses_undefined(&self, addr: &Addr) -> bool {
        self.has_flag(addr, AddressValue::REJECT)
    }

    /// Whether an address is none that a Service has, in a range where only Services have any.
    pub fn drops_unallocated(&self, addr: &Addr) -> bool {
        let key = TrieKey::new(Addr::BITS, *addr);
        let flags = self.prefixes.get(&key, 0).map_or(0, |flags| flags.0);
        flags & PrefixFlags::SERVICE != 0 && !self.has_flag(addr, AddressValue::LEAVE)
    }

    /// Whether an address is known to be the node's.
    pub fn is_local(&self, addr: &Addr) -> bool {
        self.has_flag(addr, AddressValue::LOCAL)
    }

    fn has_flag(&self, addr: &Addr, flag: u32) -> bool {
        let flags = self.addresses.get(addr, 0).ok().and_then(|value| value.flags(addr));
        flags.is_some_and(|flags| flags & flag != 0)
    }
}

impl PinnedPeers {
    /// Every socket's cookie and peer, as they are while sockets come and go.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn all(&self) -> Result<Vec<(u64, UdpPeer)>, MapError> {
        let mut all = Vec::new();
        batch::each(&self.0, |cookie, peer| all.push((cookie, peer)))?;
        Ok(all)
    }
}

/// An error with its sources, each said once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        source = error.source();
    }
    text
}
