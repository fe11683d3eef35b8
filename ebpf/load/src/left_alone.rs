//! Network namespaces whose sockets the programs leave alone.

use std::collections::BTreeSet;
use std::fmt;

use aya::maps::{Array, HashMap, Map, MapData, MapError};

/// `LEFT_ALONE` and `N_LEFT_ALONE`. What a former process wrote is in force.
pub struct LeftAlone {
    cookies: HashMap<MapData, u64, u32>,
    n: Array<MapData, u64>,
}

impl LeftAlone {
    pub(crate) fn new(cookies: MapData, n: MapData) -> Result<Self, MapError> {
        Ok(Self { cookies: Map::HashMap(cookies).try_into()?, n: Map::Array(n).try_into()? })
    }

    /// Leaves just these namespaces alone, by their cookies (`SO_NETNS_COOKIE`).
    ///
    /// # Errors
    /// A map cannot be read or written, or has no more room: those that fit are left alone.
    pub fn set(&mut self, desired: &BTreeSet<u64>) -> Result<(), MapError> {
        let held: BTreeSet<u64> = self.cookies.keys().collect::<Result<_, _>>()?;
        for gone in held.difference(desired) {
            self.cookies.remove(gone)?;
        }
        // The programs look only where there is something.
        self.n.set(0, desired.len() as u64, 0)?;
        desired.difference(&held).try_for_each(|cookie| self.cookies.insert(cookie, 1, 0))
    }
}

impl fmt::Debug for LeftAlone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeftAlone").field("n", &self.n.get(&0, 0).ok()).finish_non_exhaustive()
    }
}
