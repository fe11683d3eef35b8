//! From changes to snapshots.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};

use crate::endpoint::EndpointSlice;
use crate::host_port;
use crate::name::NamespacedName;
use crate::node::Node;
use crate::pod::{Namespace, Pod, SocketLb};
use crate::problem::Problem;
use crate::service::{Service, ServiceType};
use crate::slices::{MergedEndpoints, merge};

/// One thing that a source says. Objects arrive stripped and validated; what could not be
/// validated arrives as [`Change::Problems`].
#[derive(Clone, Debug)]
pub enum Change {
    /// A kind's list begins: what is not listed before its [`Change::ListDone`] is gone.
    ListBegins(Kind),
    /// A kind's list is complete. Once every kind's is, the cluster is in sync.
    ListDone(Kind),
    /// A Service appeared or changed.
    Service(Arc<Service>),
    /// A Service is gone, or no longer matches what the source selects.
    ServiceGone(NamespacedName),
    /// A slice appeared or changed.
    Slice(Arc<EndpointSlice>),
    /// A slice is gone.
    SliceGone(NamespacedName),
    /// A pod of this node appeared or changed.
    Pod(Arc<Pod>),
    /// It has ended, or is gone.
    PodGone(NamespacedName),
    /// This node appeared or changed.
    Node(Arc<Node>),
    /// This node's object is gone.
    NodeGone,
    /// A Namespace exists, or changed.
    Namespace(Namespace),
    /// A Namespace is gone.
    NamespaceGone(Arc<str>),
    /// What is wrong with one origin (an object, or a file) now; an empty list clears it.
    Problems {
        /// The object's kind and name, or the file.
        origin: Arc<str>,
        /// All that is wrong with it.
        problems: Vec<Problem>,
    },
}

/// The kinds that are listed and watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// core/v1 Service.
    Service,
    /// discovery.k8s.io/v1 `EndpointSlice` (and core/v1 Endpoints, from files).
    EndpointSlice,
    /// core/v1 Node, this one only.
    Node,
    /// core/v1 Namespace.
    Namespace,
    /// core/v1 Pod, this node's only.
    Pod,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Service, Self::EndpointSlice, Self::Node, Self::Namespace, Self::Pod];
}

/// The cluster at one moment. Never changes; cloning copies a few pointers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Every Service that exists or that has slices.
    pub services: OrdMap<NamespacedName, Arc<ServiceState>>,
    /// This node, when its object has been seen.
    pub node: Option<Arc<Node>>,
    /// Every Namespace.
    pub namespaces: OrdSet<Arc<str>>,
    /// What Namespaces say of their pods' sockets, of those that say anything.
    pub socket_lb: OrdMap<Arc<str>, SocketLb>,
    /// The pods of this node that have not ended.
    pub pods: OrdMap<NamespacedName, Arc<Pod>>,
    /// What could not be taken, ordered.
    pub problems: OrdMap<Arc<str>, Arc<[Problem]>>,
}

/// One Service and its endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceState {
    /// `None` while only slices have arrived: nothing is routed then.
    pub service: Option<Arc<Service>>,
    /// What its slices say together.
    pub endpoints: Arc<MergedEndpoints>,
}

/// What differs between two snapshots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dirty {
    /// Everything may differ: a full list arrived, or the node changed.
    pub all: bool,
    /// Services that appeared, changed or went, by themselves or in their endpoints.
    pub services: BTreeSet<NamespacedName>,
    /// Namespaces that appeared or went.
    pub namespaces: BTreeSet<Arc<str>>,
    /// Pods of this node appeared, changed or went, or a Namespace says something else of their sockets.
    pub pods: bool,
    /// The list of problems differs.
    pub problems: bool,
}

impl Dirty {
    /// Everything.
    pub fn everything() -> Self {
        Self { all: true, pods: true, problems: true, ..Self::default() }
    }

    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Adds what a later change made differ.
    pub fn merge(&mut self, later: Self) {
        self.all |= later.all;
        self.pods |= later.pods;
        self.problems |= later.problems;
        self.services.extend(later.services);
        self.namespaces.extend(later.namespaces);
    }
}

/// Applies changes and keeps the newest snapshot.
#[derive(Debug)]
pub struct Cluster {
    node_name: Arc<str>,
    snapshot: Snapshot,
    slices: BTreeMap<NamespacedName, Arc<EndpointSlice>>,
    /// Service and slice; one set, since most Services have one slice and a set each would cost more
    /// than the slice.
    slices_of: BTreeSet<(NamespacedName, NamespacedName)>,
    /// Services whose slices changed and are not merged yet; empty between calls.
    stale: BTreeSet<NamespacedName>,
    /// Per kind being listed: what existed before and has not been listed again yet.
    unlisted: BTreeMap<Kind, Unlisted>,
    listed: BTreeSet<Kind>,
}

#[derive(Debug, Default)]
struct Unlisted {
    objects: BTreeSet<NamespacedName>,
    namespaces: BTreeSet<Arc<str>>,
    node: bool,
}

impl Cluster {
    /// An empty cluster as seen from the node of that name.
    pub fn new(node_name: impl Into<Arc<str>>) -> Self {
        Self {
            node_name: node_name.into(),
            snapshot: Snapshot::default(),
            slices: BTreeMap::new(),
            slices_of: BTreeSet::new(),
            stale: BTreeSet::new(),
            unlisted: BTreeMap::new(),
            listed: BTreeSet::new(),
        }
    }

    /// Whether every kind has been listed once. Before, nothing may act on a snapshot.
    pub fn in_sync(&self) -> bool {
        Kind::ALL.iter().all(|kind| self.listed.contains(kind))
    }

    /// The cluster as of the last change.
    pub fn snapshot(&self) -> Snapshot {
        self.snapshot.clone()
    }

    /// Applies one change and says what it made differ. Applying a change twice changes nothing.
    pub fn apply(&mut self, change: Change) -> Dirty {
        self.apply_all([change])
    }

    /// Applies changes in their order and says what they made differ together. The slices of a
    /// Service are merged once for all of them, so that a Service of a thousand slices costs a
    /// list of it a thousand steps and not a million.
    pub fn apply_all(&mut self, changes: impl IntoIterator<Item = Change>) -> Dirty {
        let mut dirty = Dirty::default();
        for change in changes {
            self.record(change, &mut dirty);
        }
        for service in std::mem::take(&mut self.stale) {
            self.remerge(&service, &mut dirty);
        }
        dirty
    }

    fn record(&mut self, change: Change, dirty: &mut Dirty) {
        match change {
            Change::ListBegins(kind) => self.list_begins(kind),
            Change::ListDone(kind) => self.list_done(kind, dirty),
            Change::Service(service) => self.service(service, dirty),
            Change::ServiceGone(name) => self.service_gone(&name, dirty),
            Change::Slice(slice) => self.slice(slice),
            Change::SliceGone(name) => self.slice_gone(&name),
            Change::Pod(pod) => self.pod(pod, dirty),
            Change::PodGone(name) => self.pod_gone(&name, dirty),
            Change::Node(node) => {
                self.seen(Kind::Node, |unlisted| unlisted.node = false);
                self.set_node(Some(node), dirty);
            }
            Change::NodeGone => self.set_node(None, dirty),
            Change::Namespace(namespace) => self.namespace(namespace, dirty),
            Change::NamespaceGone(name) => self.namespace_gone(name, dirty),
            Change::Problems { origin, problems } => {
                self.problems(origin, problems, dirty);
            }
        }
    }

    fn list_begins(&mut self, kind: Kind) {
        let unlisted = match kind {
            Kind::Service => Unlisted {
                objects: self
                    .snapshot
                    .services
                    .iter()
                    .filter(|(_, state)| state.service.as_deref().is_some_and(is_object))
                    .map(|(name, _)| name.clone())
                    .collect(),
                ..Unlisted::default()
            },
            Kind::Pod => Unlisted {
                objects: self.snapshot.pods.keys().cloned().collect(),
                ..Unlisted::default()
            },
            Kind::EndpointSlice => {
                Unlisted { objects: self.slices.keys().cloned().collect(), ..Unlisted::default() }
            }
            Kind::Node => Unlisted { node: self.snapshot.node.is_some(), ..Unlisted::default() },
            Kind::Namespace => Unlisted {
                namespaces: self.snapshot.namespaces.iter().cloned().collect(),
                ..Unlisted::default()
            },
        };
        self.unlisted.insert(kind, unlisted);
    }

    fn list_done(&mut self, kind: Kind, dirty: &mut Dirty) {
        let gone = self.unlisted.remove(&kind).unwrap_or_default();
        for name in gone.objects {
            match kind {
                Kind::EndpointSlice => self.slice_gone(&name),
                Kind::Pod => self.pod_gone(&name, dirty),
                Kind::Service | Kind::Node | Kind::Namespace => self.service_gone(&name, dirty),
            }
        }
        for name in gone.namespaces {
            self.namespace_gone(name, dirty);
        }
        if gone.node {
            self.set_node(None, dirty);
        }
        self.listed.insert(kind);
    }

    fn seen(&mut self, kind: Kind, mark: impl FnOnce(&mut Unlisted)) {
        if let Some(unlisted) = self.unlisted.get_mut(&kind) {
            mark(unlisted);
        }
    }

    fn service(&mut self, service: Arc<Service>, dirty: &mut Dirty) {
        let name = service.name.clone();
        self.seen(Kind::Service, |unlisted| {
            unlisted.objects.remove(&name);
        });
        self.set_service(name, Some(service), dirty);
    }

    fn service_gone(&mut self, name: &NamespacedName, dirty: &mut Dirty) {
        self.set_service(name.clone(), None, dirty);
    }

    fn pod(&mut self, pod: Arc<Pod>, dirty: &mut Dirty) {
        self.seen(Kind::Pod, |unlisted| {
            unlisted.objects.remove(&pod.name);
        });
        if self.snapshot.pods.get(&pod.name) == Some(&pod) {
            return;
        }
        dirty.pods = true;
        let led = pod.host_ports.as_ref().map(|ports| ServiceState {
            service: Some(Arc::clone(&ports.service)),
            endpoints: Arc::new(merge(&self.node_name, &ports.slices)),
        });
        let service = host_port::name(&pod.name);
        self.update(service, dirty, |state| *state = led.unwrap_or_default());
        self.snapshot.pods.insert(pod.name.clone(), pod);
    }

    fn pod_gone(&mut self, name: &NamespacedName, dirty: &mut Dirty) {
        if self.snapshot.pods.remove(name).is_some() {
            dirty.pods = true;
            let service = host_port::name(name);
            self.update(service, dirty, |state| *state = ServiceState::default());
        }
    }

    fn set_service(
        &mut self,
        name: NamespacedName,
        service: Option<Arc<Service>>,
        dirty: &mut Dirty,
    ) {
        let excluded = self.excludes_headless_slices(&name);
        self.update(name.clone(), dirty, |state| state.service = service);
        if self.excludes_headless_slices(&name) != excluded {
            self.stale.insert(name);
        }
    }

    /// A Service with a cluster IP is not served by slices labelled headless, as upstream's
    /// watch leaves them out.
    fn excludes_headless_slices(&self, name: &NamespacedName) -> bool {
        self.snapshot
            .services
            .get(name)
            .and_then(|state| state.service.as_ref())
            .is_some_and(|service| !service.cluster_ips.is_empty())
    }

    fn slice(&mut self, slice: Arc<EndpointSlice>) {
        let name = slice.name.clone();
        self.seen(Kind::EndpointSlice, |unlisted| {
            unlisted.objects.remove(&name);
        });
        // Listed again and the same: the copy that is held shares its names with what was made of it.
        if self.slices.get(&name) == Some(&slice) {
            return;
        }
        let service = slice.service.clone();
        let before = self.slices.insert(name.clone(), slice);
        self.slices_of.insert((service.clone(), name.clone()));
        // A slice whose label changed moves from one Service to another.
        if let Some(before) = before
            && before.service != service
        {
            self.forget_slice_of(&before.service, &name);
        }
        self.stale.insert(service);
    }

    fn slice_gone(&mut self, name: &NamespacedName) {
        if let Some(slice) = self.slices.remove(name) {
            self.forget_slice_of(&slice.service, name);
        }
    }

    fn forget_slice_of(&mut self, service: &NamespacedName, slice: &NamespacedName) {
        self.slices_of.remove(&(service.clone(), slice.clone()));
        self.stale.insert(service.clone());
    }

    fn remerge(&mut self, service: &NamespacedName, dirty: &mut Dirty) {
        let no_headless = self.excludes_headless_slices(service);
        let slices = self
            .slices_of
            .range((service.clone(), NamespacedName::new("", ""))..)
            .take_while(|(of, _)| of == service)
            .filter_map(|(_, name)| self.slices.get(name))
            .filter(|slice| !(no_headless && slice.headless));
        let merged = merge(&self.node_name, slices);
        self.update(service.clone(), dirty, |state| {
            if *state.endpoints != merged {
                state.endpoints = Arc::new(merged);
            }
        });
    }

    /// Changes one Service's state; an empty state is no entry at all.
    fn update(
        &mut self,
        name: NamespacedName,
        dirty: &mut Dirty,
        change: impl FnOnce(&mut ServiceState),
    ) {
        let before = self.snapshot.services.get(&name);
        let mut after = before.map(|state| ServiceState::clone(state)).unwrap_or_default();
        change(&mut after);
        if before.is_some_and(|before| **before == after) {
            return;
        }
        if after == ServiceState::default() {
            if self.snapshot.services.remove(&name).is_some() {
                dirty.services.insert(name);
            }
            return;
        }
        self.snapshot.services.insert(name.clone(), Arc::new(after));
        dirty.services.insert(name);
    }

    fn set_node(&mut self, node: Option<Arc<Node>>, dirty: &mut Dirty) {
        if self.snapshot.node != node {
            self.snapshot.node = node;
            dirty.all = true;
        }
    }

    fn namespace(&mut self, namespace: Namespace, dirty: &mut Dirty) {
        let Namespace { name, socket_lb } = namespace;
        self.seen(Kind::Namespace, |unlisted| {
            unlisted.namespaces.remove(&name);
        });
        self.say_of_sockets(&name, socket_lb, dirty);
        if self.snapshot.namespaces.insert(Arc::clone(&name)).is_none() {
            dirty.namespaces.insert(name);
        }
    }

    fn say_of_sockets(&mut self, of: &Arc<str>, said: Option<SocketLb>, dirty: &mut Dirty) {
        let all = &mut self.snapshot.socket_lb;
        if all.get(of).copied() == said {
            return;
        }
        dirty.pods = true;
        match said {
            Some(said) => all.insert(Arc::clone(of), said),
            None => all.remove(of),
        };
    }

    fn namespace_gone(&mut self, name: Arc<str>, dirty: &mut Dirty) {
        self.say_of_sockets(&name, None, dirty);
        if self.snapshot.namespaces.remove(&name).is_some() {
            dirty.namespaces.insert(name);
        }
    }

    fn problems(&mut self, origin: Arc<str>, problems: Vec<Problem>, dirty: &mut Dirty) {
        if problems.is_empty() {
            dirty.problems |= self.snapshot.problems.remove(&origin).is_some();
            return;
        }
        if self.snapshot.problems.get(&origin).is_none_or(|known| **known != *problems) {
            self.snapshot.problems.insert(origin, problems.into());
            dirty.problems = true;
        }
    }
}

/// Whether it is made of an object of its own, and not of a pod's host ports.
const fn is_object(service: &Service) -> bool {
    !matches!(service.service_type, ServiceType::HostPort(_))
}
