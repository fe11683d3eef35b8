//! From addresses to the Services that own them, by cluster IP or by endpoint.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use imbl::{OrdMap, OrdSet};
use ipnet::IpNet;
use model::name::NamespacedName;
use smallvec::SmallVec;

/// Addresses outnumber Services by far, so that a Service is a number here: eight octets for an
/// IPv4 address and its owner, where the name alone would be four times that.
#[derive(Clone, Default)]
pub(super) struct Reverse {
    v4: OrdSet<(Ipv4Addr, Number)>,
    v6: OrdSet<(Ipv6Addr, Number)>,
    names: OrdMap<Number, NamespacedName>,
    numbers: OrdMap<NamespacedName, Number>,
    /// Never given twice.
    next: Number,
}

type Number = u32;

impl Reverse {
    /// Changes what a Service owns from one set to another.
    pub(super) fn set(
        &mut self,
        name: &NamespacedName,
        before: &BTreeSet<IpAddr>,
        after: &BTreeSet<IpAddr>,
    ) {
        if before == after {
            return;
        }
        let number = self.number(name);
        for gone in before.difference(after) {
            match gone {
                IpAddr::V4(v4) => drop(self.v4.remove(&(*v4, number))),
                IpAddr::V6(v6) => drop(self.v6.remove(&(*v6, number))),
            }
        }
        for new in after.difference(before) {
            match new {
                IpAddr::V4(v4) => drop(self.v4.insert((*v4, number))),
                IpAddr::V6(v6) => drop(self.v6.insert((*v6, number))),
            }
        }
        if after.is_empty() {
            self.names.remove(&number);
            self.numbers.remove(name);
        }
    }

    fn number(&mut self, name: &NamespacedName) -> Number {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        let number = self.next;
        self.next = number.wrapping_add(1);
        self.names.insert(number, name.clone());
        self.numbers.insert(name.clone(), number);
        number
    }

    /// The Services that own an address, ordered by name.
    pub(super) fn owners(&self, address: IpAddr) -> SmallVec<[&NamespacedName; 2]> {
        let mut owners: SmallVec<[&NamespacedName; 2]> = match address {
            IpAddr::V4(v4) => self
                .v4
                .range((v4, Number::MIN)..=(v4, Number::MAX))
                .filter_map(|(_, number)| self.names.get(number))
                .collect(),
            IpAddr::V6(v6) => self
                .v6
                .range((v6, Number::MIN)..=(v6, Number::MAX))
                .filter_map(|(_, number)| self.names.get(number))
                .collect(),
        };
        owners.sort_unstable();
        owners
    }

    /// Whether anybody owns an address of the range.
    pub(super) fn holds_any_of(&self, range: IpNet) -> bool {
        match range {
            IpNet::V4(v4) => self
                .v4
                .range((v4.network(), Number::MIN)..=(v4.broadcast(), Number::MAX))
                .next()
                .is_some(),
            IpNet::V6(v6) => self
                .v6
                .range((v6.network(), Number::MIN)..=(v6.broadcast(), Number::MAX))
                .next()
                .is_some(),
        }
    }

    /// Every address with its owners, in order; numbers are nobody's business.
    fn all(&self) -> impl Iterator<Item = (IpAddr, SmallVec<[&NamespacedName; 2]>)> {
        let v4 = self.v4.iter().map(|(v4, _)| IpAddr::V4(*v4));
        let mut all: Vec<IpAddr> =
            v4.chain(self.v6.iter().map(|(v6, _)| IpAddr::V6(*v6))).collect();
        all.dedup();
        all.into_iter().map(|address| (address, self.owners(address)))
    }
}

impl PartialEq for Reverse {
    fn eq(&self, other: &Self) -> bool {
        self.all().eq(other.all())
    }
}

impl fmt::Debug for Reverse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.all()).finish()
    }
}
