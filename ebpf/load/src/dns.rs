//! This node's own DNS server, as the programs see it.

use std::fmt;
use std::net::IpAddr;
use std::os::fd::AsRawFd;

pub use abi::addr::Addr;
pub use abi::dns::{N_FAMILIES, OwnServer, family_index};
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, Map, MapData, MapError, SockMap};

use crate::filter::Filter;

/// `DNS`, `DNS_CLIENTS` and `DNS_ALIVE`.
pub struct OwnDns {
    servers: Array<MapData, OwnServer>,
    clients: LpmTrie<MapData, Addr, u32>,
    alive: SockMap<MapData>,
    filter: Filter,
}

impl OwnDns {
    pub(crate) fn new(
        servers: MapData,
        clients: MapData,
        alive: MapData,
        filter: Filter,
    ) -> Result<Self, MapError> {
        let servers = Map::Array(servers).try_into()?;
        let clients = Map::LpmTrie(clients).try_into()?;
        Ok(Self { servers, clients, alive: Map::SockMap(alive).try_into()?, filter })
    }

    /// Where questions go while the server lives: what this or a former process said.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn servers(&self) -> Result<[OwnServer; N_FAMILIES], MapError> {
        let mut servers = [OwnServer::default(); N_FAMILIES];
        for (idx, server) in (0..).zip(&mut servers) {
            *server = self.servers.get(&idx, 0)?;
        }
        Ok(servers)
    }

    /// Says where questions go. Only while the server counts as dead.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn set_servers(&mut self, servers: [OwnServer; N_FAMILIES]) -> Result<(), MapError> {
        (0..).zip(servers).try_for_each(|(idx, server)| {
            self.filter.mark_service(&server.service);
            self.filter.mark_service(&server.server);
            self.servers.set(idx, server, 0)
        })
    }

    /// Says whose packets are led there: those from these ranges, each an address and how many of its
    /// bits count.
    ///
    /// # Errors
    /// The map cannot be read or written.
    pub fn set_clients(&mut self, ranges: &[(IpAddr, u8)]) -> Result<(), MapError> {
        let key = |(ip, bits): &(IpAddr, u8)| {
            let above = if ip.is_ipv4() { Addr::BITS - 32 } else { 0 };
            Key::new(above + u32::from(*bits), Addr::from(*ip))
        };
        let desired: Vec<Key<Addr>> = ranges.iter().map(key).collect();
        let is_same =
            |a: &Key<Addr>, b: &Key<Addr>| a.prefix_len() == b.prefix_len() && a.data() == b.data();
        let held: Vec<Key<Addr>> = self.clients.keys().collect::<Result<_, _>>()?;
        for key in desired.iter().filter(|key| !held.iter().any(|other| is_same(key, other))) {
            self.clients.insert(key, 1, 0)?;
        }
        for key in held.iter().filter(|key| !desired.iter().any(|other| is_same(key, other))) {
            self.clients.remove(key)?;
        }
        Ok(())
    }

    /// From now on the server lives: until this UDP socket is closed, however that happens.
    ///
    /// # Errors
    /// The kernel does not take the socket.
    pub fn alive(&mut self, socket: &impl AsRawFd) -> Result<(), MapError> {
        self.alive.set(0, socket, 0)
    }

    /// From now on it is dead: questions go to the endpoints of the Service.
    pub fn dead(&mut self) {
        // Says that there was nothing, if there was nothing.
        _ = self.alive.clear_index(&0);
    }
}

impl fmt::Debug for OwnDns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnDns").field("servers", &self.servers().ok()).finish_non_exhaustive()
    }
}
