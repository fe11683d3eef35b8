//! What others than the writer may look at: maps by their pins, without the lock.

use std::path::Path;

use abi::counter::Counter;
use abi::frontend::{FrontendKey, FrontendValue};
use abi::socket::UdpPeer;
use aya::maps::{HashMap, Map, MapData, MapError, PerCpuArray};

use crate::activate;
use crate::pins::Pins;

/// The maps and links that are pinned under a directory.
#[derive(Debug)]
pub struct Pinned {
    pins: Pins,
}

/// The connected UDP sockets that the programs noted.
#[derive(Debug)]
pub struct PinnedPeers(HashMap<MapData, u64, UdpPeer>);

impl Pinned {
    /// What stands under a directory, which may be nothing.
    pub fn under(bpffs: &Path) -> Self {
        Self { pins: Pins::new(bpffs) }
    }

    /// How many of the programs that translate and translate back are attached.
    pub fn n_attached(&self) -> usize {
        activate::programs()
            .filter(|name| activate::pinned_program(&self.pins, name).is_some())
            .count()
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

    /// The connected UDP sockets.
    ///
    /// # Errors
    /// The map is not pinned there.
    pub fn udp_peers(&self) -> Result<PinnedPeers, MapError> {
        let data = MapData::from_pin(self.pins.map("UDP_PEERS"))?;
        Ok(PinnedPeers(Map::HashMap(data).try_into()?))
    }
}

impl PinnedPeers {
    /// Every socket's cookie and peer. Sockets come and go meanwhile, so one may be missing; it is
    /// there at the next look.
    pub fn iter(&self) -> impl Iterator<Item = (u64, UdpPeer)> + '_ {
        self.0.iter().filter_map(Result::ok)
    }
}
