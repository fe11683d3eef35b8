//! `ADDRESSES`: what is known of single addresses. Two have a say: the plan, which knows the
//! addresses of Services, and whoever follows those of the node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use abi::addr::Addr;
use abi::address::AddressValue;
use load::filter::Filter;
use model::name::Family;

use super::is_absent;
use crate::by_family::ByFamily;
use crate::plan::Undefined;
use crate::plan::settings::NodePorts;

/// The addresses of Services and of the node, and what the kernel holds of them.
#[derive(Debug)]
pub struct Addresses {
    map: load::Addresses,
    filter: Filter,
    known: Known,
    /// By address, the flags in the kernel.
    held: BTreeMap<IpAddr, u32>,
}

/// What is known of addresses.
#[derive(Debug, Default)]
struct Known {
    owned: BTreeMap<IpAddr, Undefined>,
    local: BTreeSet<IpAddr>,
    /// `None` before the first plan: what serves node ports goes on.
    node_ports: Option<ByFamily<NodePorts>>,
}

impl Addresses {
    /// Takes over what a former process left.
    pub(super) fn adopt(map: load::Addresses, filter: Filter) -> Result<Self, load::MapError> {
        let mut known = Known::default();
        let mut held = BTreeMap::new();
        for entry in map.iter() {
            let (addr, value) = entry?;
            let address = IpAddr::from(addr);
            let flags = value.flags(&addr).unwrap_or_default();
            if flags & AddressValue::REJECT != 0 {
                known.owned.insert(address, Undefined::Reject);
            } else if flags & AddressValue::LEAVE != 0 {
                known.owned.insert(address, Undefined::Leave);
            }
            if flags & AddressValue::LOCAL != 0 {
                known.local.insert(address);
            }
            held.insert(address, flags);
        }
        Ok(Self { map, filter, known, held })
    }

    /// The addresses that a Service owns, as far as the kernel knows.
    pub(super) fn owned(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.known.owned.keys().copied()
    }

    /// A Service owns an address, or none does. Says whether that was news to the kernel.
    pub(super) fn own(
        &mut self,
        address: IpAddr,
        undefined: Option<Undefined>,
    ) -> Result<bool, load::MapError> {
        match undefined {
            Some(undefined) => self.known.owned.insert(address, undefined),
            None => self.known.owned.remove(&address),
        };
        self.write(address)
    }

    /// Other addresses of the node serve node ports. Says whether that was news to the kernel.
    pub(super) fn serve_node_ports(
        &mut self,
        node_ports: ByFamily<NodePorts>,
    ) -> Result<bool, load::MapError> {
        self.known.node_ports = Some(node_ports);
        let mut written = false;
        for address in self.known.local.clone() {
            written |= self.write(address)?;
        }
        Ok(written)
    }

    /// The node has these addresses, all of them. Says how many entries changed.
    ///
    /// # Errors
    /// The map cannot be written; the next call tries again.
    pub fn node_has(&mut self, local: BTreeSet<IpAddr>) -> Result<usize, load::MapError> {
        let before = std::mem::replace(&mut self.known.local, local);
        let mut written = 0;
        let all: Vec<IpAddr> = self.known.local.union(&before).copied().collect();
        for address in all {
            written += usize::from(self.write(address)?);
        }
        Ok(written)
    }

    /// Makes good what somebody else did to the map. Says whether anybody did.
    ///
    /// # Errors
    /// The map cannot be read or written; the next call tries again.
    pub(super) fn repair(&mut self) -> Result<bool, load::MapError> {
        let mut found = BTreeMap::new();
        for entry in self.map.iter() {
            let (addr, value) = entry?;
            found.insert(IpAddr::from(addr), value.flags(&addr).unwrap_or_default());
        }
        if found == self.held {
            return Ok(false);
        }
        let before = std::mem::replace(&mut self.held, found);
        let all: BTreeSet<IpAddr> = before.keys().chain(self.held.keys()).copied().collect();
        for address in all {
            self.write(address)?;
        }
        Ok(true)
    }

    /// Marks them. Says whether one was not marked.
    pub(super) fn mark(&self) -> bool {
        let serving = self.held.iter().filter(|(_, flags)| **flags != AddressValue::LOCAL);
        serving.fold(false, |news, (address, _)| {
            self.filter.mark_service(&Addr::from(*address)) || news
        })
    }

    fn write(&mut self, address: IpAddr) -> Result<bool, load::MapError> {
        let held = self.held.get(&address).copied().unwrap_or_default();
        let flags = self.known.flags(&address, held);
        if held == flags {
            return Ok(false);
        }
        let addr = Addr::from(address);
        if flags == 0 {
            match self.map.remove(&addr) {
                Err(error) if !is_absent(&error) => return Err(error),
                _ => {}
            }
            self.held.remove(&address);
        } else {
            if flags != AddressValue::LOCAL {
                self.filter.mark_service(&addr);
            }
            self.map.insert(addr, AddressValue::new(&addr, flags), 0)?;
            self.held.insert(address, flags);
        }
        Ok(true)
    }
}

impl Known {
    /// What the kernel has to hold of an address, of which it holds that.
    fn flags(&self, address: &IpAddr, held: u32) -> u32 {
        let owned = match self.owned.get(address) {
            Some(Undefined::Reject) => AddressValue::REJECT,
            Some(Undefined::Leave) => AddressValue::LEAVE,
            Some(Undefined::NodePort) | None => 0,
        };
        if !self.local.contains(address) {
            return owned;
        }
        let node_ports = match &self.node_ports {
            Some(served) if served.get(Family::of(address)).serve(address) => {
                AddressValue::NODE_PORTS
            }
            Some(_) => 0,
            None => held & AddressValue::NODE_PORTS,
        };
        owned | AddressValue::LOCAL | node_ports
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_says_whose_it_is_and_what_it_serves() {
        let (vip, own, both): (IpAddr, IpAddr, IpAddr) =
            ([10, 96, 0, 1].into(), [192, 0, 2, 1].into(), [192, 0, 2, 2].into());
        let within = vec!["192.0.2.1/32".parse().unwrap()];
        let node_ports = ByFamily {
            v4: NodePorts { within, loopback_within: vec![] },
            v6: NodePorts::default(),
        };
        let known = Known {
            owned: BTreeMap::from([(vip, Undefined::Reject), (both, Undefined::Leave)]),
            local: BTreeSet::from([own, both]),
            node_ports: Some(node_ports),
        };
        let flags = |address| known.flags(address, AddressValue::NODE_PORTS);
        assert_eq!(flags(&vip), AddressValue::REJECT);
        assert_eq!(flags(&own), AddressValue::LOCAL | AddressValue::NODE_PORTS);
        assert_eq!(flags(&both), AddressValue::LEAVE | AddressValue::LOCAL);
        assert_eq!(flags(&[192, 0, 2, 3].into()), 0);
    }

    /// A process that has just started knows the node's addresses before it has a plan.
    #[test]
    fn what_served_node_ports_goes_on_until_there_is_a_plan() {
        let (own, other): (IpAddr, IpAddr) = ([192, 0, 2, 1].into(), [192, 0, 2, 2].into());
        let mut known = Known { local: BTreeSet::from([own, other]), ..Known::default() };
        let serving = AddressValue::LOCAL | AddressValue::NODE_PORTS;
        assert_eq!(known.flags(&own, serving), serving);
        assert_eq!(known.flags(&other, 0), AddressValue::LOCAL);
        known.local.remove(&own);
        assert_eq!(known.flags(&own, serving), 0);
    }
}
