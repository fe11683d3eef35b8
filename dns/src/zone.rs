//! Every name of the cluster, ready to be answered for: built from a snapshot, changed by what
//! changed, never in place.
//!
//! A view holds no records. It holds for each Service what its records are made of, found by one
//! hash of the two labels that name the Service; an endpoint's names are computed from the
//! endpoint. So a view is little more than an index over the model, and a changed Service costs
//! that Service.

mod index;
mod reverse;
pub mod service;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdSet;
use imbl::ordmap::DiffItem;
use ipnet::IpNet;
use model::cluster::{Dirty, ServiceState, Snapshot};
use model::name::NamespacedName;

use crate::config::Options;
use crate::query::Key;
use index::Index;
use reverse::Reverse;
use service::{KeyBuf, ServiceView};

/// The names of one cluster at one moment.
#[derive(Clone)]
pub struct ZoneView {
    options: Arc<Options>,
    services: Index,
    reverse: Reverse,
    /// Services whose addresses are not told yet.
    held: OrdSet<KeyBuf>,
    snapshot: Snapshot,
    serial: u32,
    origin: Origin,
}

/// Where a view's knowledge comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nowhere: no list has been completed, so nothing can be said to exist or not.
    Nothing,
    /// What an earlier process saved. Answers hold for a few seconds only.
    Saved,
    /// The watch.
    Watch,
}

impl ZoneView {
    /// The view of a server that has seen nothing yet: everything is SERVFAIL.
    pub fn empty(options: Arc<Options>) -> Self {
        Self {
            options,
            services: Index::default(),
            reverse: Reverse::default(),
            held: OrdSet::new(),
            snapshot: Snapshot::default(),
            serial: 0,
            origin: Origin::Nothing,
        }
    }

    /// The view of a snapshot, made at a time in seconds since the epoch.
    pub fn build(options: Arc<Options>, snapshot: &Snapshot, origin: Origin, now: u32) -> Self {
        let dirty = Dirty::everything();
        Self::empty(options).update(snapshot, &dirty, origin, now)
    }

    /// The view of a later snapshot, which differs from this one's by `dirty`. Shares with this
    /// view whatever did not change.
    #[must_use]
    pub fn update(&self, snapshot: &Snapshot, dirty: &Dirty, origin: Origin, now: u32) -> Self {
        let mut next = self.clone();
        let mut changed = origin != self.origin || !dirty.namespaces.is_empty();
        if dirty.all {
            for difference in self.snapshot.services.diff(&snapshot.services) {
                let (name, state) = match difference {
                    DiffItem::Add(name, state) | DiffItem::Update { new: (name, state), .. } => {
                        (name, Some(state))
                    }
                    DiffItem::Remove(name, _) => (name, None),
                };
                changed |= next.set(name, state);
            }
        } else {
            for name in &dirty.services {
                changed |= next.set(name, snapshot.services.get(name));
            }
        }
        // The serial counts what a secondary could see, and never goes back.
        if changed {
            next.serial = now.max(self.serial);
        }
        next.snapshot = snapshot.clone();
        next.origin = origin;
        next
    }

    /// The same view, but for the addresses of these Services, and no others, it says SERVFAIL: they
    /// are not routed yet.
    #[must_use]
    pub fn holding<'n>(&self, names: impl IntoIterator<Item = &'n NamespacedName>) -> Self {
        Self { held: names.into_iter().map(service::key).collect(), ..self.clone() }
    }

    /// Whether a Service's addresses are not told yet.
    pub fn holds(&self, service: &ServiceView) -> bool {
        !self.held.is_empty() && self.held.contains(service.key().0)
    }

    /// Puts a Service in the place of what this view had under its name. Whether that changed
    /// anything.
    fn set(&mut self, name: &NamespacedName, state: Option<&Arc<ServiceState>>) -> bool {
        let after = state
            .filter(|_| self.exposes(&name.namespace))
            .and_then(|state| ServiceView::build(&self.options, state));
        let key = service::key(name);
        let before = self.services.get(Key(&key));
        if before.map(Arc::as_ref) == after.as_ref() {
            return false;
        }
        let owned_before = before.map(|before| before.addresses()).unwrap_or_default();
        let owned_after = after.as_ref().map(ServiceView::addresses).unwrap_or_default();
        self.reverse.set(name, &owned_before, &owned_after);
        match after {
            Some(after) => self.services.insert(Arc::new(after)),
            None => self.services.remove(Key(&key)),
        }
        true
    }

    fn exposes(&self, namespace: &str) -> bool {
        self.options.namespaces.as_ref().is_none_or(|exposed| exposed.contains(namespace))
    }

    /// What this view answers for, and how.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// When something last changed, in seconds since the epoch; the SOA's serial.
    pub fn serial(&self) -> u32 {
        self.serial
    }

    /// Where its knowledge comes from.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// The snapshot that this is a view of.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// How many Services have names.
    pub fn n_services(&self) -> usize {
        self.services.len()
    }

    /// A Service that has names.
    pub fn service(&self, key: Key<'_>) -> Option<&ServiceView> {
        self.services.get(key).map(Arc::as_ref)
    }

    /// Prepares to be asked about many names: each in lower case or not, uncompressed, and most of
    /// them a Service's. Changes no answer, only how soon it is there.
    pub(crate) fn look_ahead<'q, const N: usize>(&self, names: impl Iterator<Item = &'q [u8]>) {
        self.services.touch::<N>(names.filter_map(service::key_in_front));
    }

    /// Whether a Namespace exists: it is listed, or a Service is in it.
    pub fn has_namespace(&self, label: &[u8]) -> bool {
        let Ok(namespace) = std::str::from_utf8(label) else { return false };
        self.exposes(namespace)
            && (self.snapshot.namespaces.contains(namespace) || self.holds_service(namespace))
    }

    fn holds_service(&self, namespace: &str) -> bool {
        let first = NamespacedName::new(namespace, "");
        self.snapshot
            .services
            .range(first..)
            .take_while(|(name, _)| &*name.namespace == namespace)
            .any(|(_, state)| state.service.is_some())
    }

    /// The Services that own an address, ordered by name.
    pub fn owners(&self, address: IpAddr) -> impl Iterator<Item = &ServiceView> {
        self.reverse
            .owners(address)
            .into_iter()
            .filter_map(|owner| self.service(Key(&service::key(owner))))
    }

    /// Whether anything owns an address of a range: then the range's name exists, as the parent
    /// of that address's name.
    pub fn owns_any_of(&self, range: IpNet) -> bool {
        self.reverse.holds_any_of(range)
    }

    /// Whether a pod of this namespace and address serves a Service, ready or not.
    pub fn has_pod(&self, namespace: &[u8], address: IpAddr) -> bool {
        let Ok(namespace) = std::str::from_utf8(namespace) else { return false };
        self.snapshot
            .services
            .range(NamespacedName::new(namespace, "")..)
            .take_while(|(name, _)| &*name.namespace == namespace)
            .any(|(_, state)| service::holds_pod(&state.endpoints, address))
    }

    /// Whether an address is this node's own, or one of its pods' (`spec.podCIDRs`).
    pub fn is_of_node(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.snapshot.node.as_ref().is_some_and(|node| {
            node.addresses.contains(&address)
                || node.pod_cidrs.iter().any(|range| range.contains(&address))
        })
    }

    /// Where this server is reached.
    pub fn server_addresses(&self) -> impl Iterator<Item = IpAddr> + Clone {
        self.options.addresses.iter().copied()
    }
}

/// Prints every name's substance in the order of names, so that equal views print equally.
impl fmt::Debug for ZoneView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut services: Vec<&ServiceView> = self.services.iter().map(Arc::as_ref).collect();
        services.sort_by_key(|service| service.name());
        f.debug_struct("ZoneView")
            .field("options", &self.options)
            .field("services", &services)
            .field("reverse", &self.reverse)
            .field("held", &self.held)
            .field("serial", &self.serial)
            .field("origin", &self.origin)
            .finish_non_exhaustive()
    }
}

/// Equal views answer equally.
impl PartialEq for ZoneView {
    fn eq(&self, other: &Self) -> bool {
        self.options == other.options
            && self.services == other.services
            && self.reverse == other.reverse
            && self.held == other.held
            && self.snapshot.namespaces == other.snapshot.namespaces
            && self.origin == other.origin
    }
}

#[cfg(test)]
pub(crate) mod tests;
