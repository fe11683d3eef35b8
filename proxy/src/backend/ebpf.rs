//! eBPF: frontends, slots and endpoints in maps, read by programs at sockets and at packets.
//!
//! ```text
//!  Op::Put ─▶ write each set to a free range ─▶ store the heads in the frontend's slot ─▶ old range
//!             of ENDPOINTS, unless it stands     (the publication)                         rests, then
//!             there already                      └─ new frontend: its key to FRONTENDS      is free
//! ```
//!
//! A frontend keeps its slot as long as its rules are the same, so the hash map that leads to slots
//! is written only when a frontend appears, goes, or is another's. What a former process left is
//! taken over: its slots and ranges stay where they are, and a put of what is there writes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use abi::endpoint::Head;
use abi::frontend::{FrontendKey as Key, FrontendValue};
use abi::node::Node;
use abi::slot::{N_HEADS, Rules, SERVING, Slot};
use ipnet::IpNet;
use load::Dataplane;
use load::pinned::Pinned;

mod addresses;
mod audit;
mod can;
mod encode;
mod ids;
mod known;
mod look;
mod node;
mod packets;
mod ranges;
mod sets;
mod slots;
mod takeover;
pub mod usage;

pub use addresses::Addresses;
use encode::{abi_key, frontend_key};
use known::Known;
pub use look::Look;
use node::NodeMaps;
pub use packets::Packets;
use sets::{Members, NoSet, Sets};
use slots::Slots;

use crate::backend::{
    ActivateError, Applied, ApplyError, ApplyErrorClass, Backend, DrainError, Drained, Effect,
    Holds, PrepareError, ReadError, RetireError, Unsupported,
};
use crate::delta::{Actual, Held, Op};
use crate::plan::{Frontend, FrontendKey, Masquerade, Route, SourceKind, Target, Undefined};

/// How long a range or a slot rests before it is used again. A program that read a head before the
/// change is done with it microseconds later.
const REST: Duration = Duration::from_secs(1);

/// The eBPF dataplane of one node.
#[derive(Debug)]
pub struct Ebpf {
    config: load::Config,
    sockets: Sockets,
    opened: Option<Opened>,
}

/// What is done at sockets.
#[derive(Clone, Copy, Debug)]
pub struct Sockets {
    /// Whose connections are translated there; packets of others are translated on their way.
    pub translated: Translated,
    /// Whether the node's own sockets are refused a node port to be bound to.
    pub protect_node_ports: bool,
}

/// `--socket-lb`: whose connections are translated at the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Translated {
    /// Those of pods and of the node.
    All,
    /// Those of the node.
    Host,
    /// Nobody's.
    Off,
}

/// The dataplane, and what is known of it.
#[derive(Debug)]
struct Opened {
    dataplane: Dataplane,
    /// By key, the slot.
    programmed: BTreeMap<Key, u32>,
    /// By slot to which a key leads, what it shows.
    shown: BTreeMap<u32, Slot>,
    slots: Slots,
    sets: Sets,
    /// By slot, what `RANGES` has for it; also for slots that were let go.
    source_ranges: BTreeMap<u32, BTreeSet<IpNet>>,
    addresses: Arc<Mutex<Addresses>>,
    packets: Arc<Mutex<Packets>>,
    node: NodeMaps,
    started: Instant,
}

impl Ebpf {
    /// A dataplane that is not opened yet.
    pub const fn new(config: load::Config) -> Self {
        let sockets = Sockets { translated: Translated::All, protect_node_ports: false };
        Self { config, sockets, opened: None }
    }

    /// The same with something else done at sockets; before [`Backend::prepare`].
    #[must_use]
    pub fn with_sockets(self, sockets: Sockets) -> Self {
        Self { sockets, ..self }
    }

    /// The loaded dataplane, after [`Backend::prepare`].
    pub fn dataplane(&mut self) -> Option<&mut Dataplane> {
        self.opened.as_mut().map(|opened| &mut opened.dataplane)
    }

    /// The addresses of the node, for whoever follows them; after [`Backend::prepare`].
    pub fn addresses(&self) -> Option<Arc<Mutex<Addresses>>> {
        self.opened.as_ref().map(|opened| Arc::clone(&opened.addresses))
    }

    /// The packet side, for whoever follows the node's devices; after [`Backend::prepare`].
    pub fn packets(&self) -> Option<Arc<Mutex<Packets>>> {
        self.opened.as_ref().map(|opened| Arc::clone(&opened.packets))
    }

    /// Whether this can do what a frontend asks; needs no opened dataplane.
    ///
    /// # Errors
    /// What it cannot do, naming the Service's field.
    pub fn can(frontend: &Frontend) -> Result<(), Unsupported> {
        can::in_maps(frontend)
    }
}

impl Sockets {
    const fn flags(self) -> u64 {
        let translated = match self.translated {
            Translated::All => Node::SOCKETS_NODE | Node::SOCKETS_PODS,
            Translated::Host => Node::SOCKETS_NODE,
            Translated::Off => 0,
        };
        translated | if self.protect_node_ports { Node::PROTECT_NODE_PORTS } else { 0 }
    }
}

impl Backend for Ebpf {
    fn name(&self) -> &'static str {
        "ebpf"
    }

    fn supports(&self, frontend: &Frontend) -> Result<(), Unsupported> {
        Self::can(frontend)
    }

    fn prepare(&mut self) -> Result<Actual, PrepareError> {
        let dataplane = Dataplane::open(&self.config)
            .map_err(|error| PrepareError { doing: error.to_string(), source: None })?;
        let opened = Opened::adopt(dataplane, self.sockets.flags() | Node::PACKETS)?;
        Ok(self.opened.insert(opened).actual())
    }

    fn apply(&mut self, ops: &[Op]) -> Applied {
        let results = match &mut self.opened {
            Some(opened) => ops.iter().map(|op| opened.apply(op)).collect(),
            None => ops.iter().map(|_| Err(not_prepared())).collect(),
        };
        Applied { results }
    }

    fn activate(&mut self) -> Result<(), ActivateError> {
        const WHAT: &str = "cannot take charge of new connections";
        let Some(opened) = &mut self.opened else {
            return Err(ActivateError { doing: NOT_PREPARED.to_owned(), source: None });
        };
        opened.dataplane.activate().map_err(|error| ActivateError::new(WHAT, error))?;
        if !opened.packets().is_in_charge() {
            let failed = |error| ActivateError::new(WHAT, error);
            let devices = opened.dataplane.devices().map_err(failed)?;
            let flows = opened.dataplane.flows().map_err(failed)?;
            let tables = Pinned::under(&self.config.bpffs).tables();
            let tables = tables.map_err(|error| ActivateError::new(WHAT, error))?;
            opened.packets().take_charge(devices, flows, tables);
        }
        opened.lead().map_err(|error| ActivateError::new(WHAT, error))
    }

    fn drain(&mut self) -> Result<Drained, DrainError> {
        const WHAT: &str = "cannot leave new connections alone";
        if let Some(opened) = &mut self.opened {
            opened.dataplane.drain().map_err(|error| DrainError::new(WHAT, error))?;
            opened
                .node
                .leave_new(&mut opened.dataplane, true)
                .map_err(|error| DrainError::new(WHAT, error))?;
        }
        // The kernel does not tell how many sockets hold storage.
        Ok(Drained { flows: None })
    }

    fn retire(&mut self) -> Result<(), RetireError> {
        match self.opened.take() {
            Some(opened) => opened.dataplane.retire().map_err(|error| {
                RetireError::new(
                    format_args!("cannot remove all of {}", self.config.bpffs.display()),
                    error,
                )
            }),
            None => Ok(()),
        }
    }

    fn audit(&mut self) -> Result<Option<Actual>, ReadError> {
        let Some(opened) = &mut self.opened else { return Ok(None) };
        Ok(opened.audit()?.then(|| opened.actual()))
    }

    fn holds(&mut self, key: &FrontendKey, desired: &Frontend) -> Result<Holds, ReadError> {
        let Some(opened) = &self.opened else {
            return Err(ReadError { doing: NOT_PREPARED.to_owned(), source: None });
        };
        Ok(opened.holds(key, desired))
    }
}

impl Opened {
    /// Takes over what a former process left, which may be nothing.
    fn adopt(mut dataplane: Dataplane, flags: u64) -> Result<Self, PrepareError> {
        let Known { programmed, shown, slots, sets, source_ranges } =
            Known::read(&mut dataplane)
                .map_err(|error| PrepareError { doing: error.doing, source: error.source })?;
        let addresses = dataplane
            .addresses()
            .map_err(|error| PrepareError::new("cannot read the addresses in the kernel", error))?;
        let addresses = Addresses::adopt(addresses, dataplane.filter.clone())
            .map_err(|error| PrepareError::new("cannot read the addresses in the kernel", error))?;
        let netns = UnixDatagram::unbound()
            .and_then(load::netns_cookie)
            .map_err(|error| PrepareError::new("cannot tell this network namespace", error))?;
        let node = NodeMaps::adopt(&mut dataplane, netns, flags)
            .map_err(|error| PrepareError::new("cannot read the node's settings", error))?;
        Ok(Self {
            dataplane,
            programmed,
            shown,
            slots,
            sets,
            source_ranges,
            addresses: Arc::new(Mutex::new(addresses)),
            packets: Arc::default(),
            node,
            started: Instant::now(),
        })
    }

    /// What the kernel holds, as far as is known.
    fn actual(&self) -> Actual {
        let frontends = self
            .programmed
            .keys()
            .filter_map(|key| Some((frontend_key(key)?, Held::Unknown)))
            .collect();
        let addresses = self.addresses().owned().map(|address| (address, None)).collect();
        Actual { frontends, addresses, settings: None }
    }

    fn packets(&self) -> MutexGuard<'_, Packets> {
        // As below.
        self.packets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn addresses(&self) -> MutexGuard<'_, Addresses> {
        // Whoever panicked while it held the lock left at worst an entry that is written again.
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply(&mut self, op: &Op) -> Result<Effect, ApplyError> {
        let now = self.started.elapsed();
        match op {
            Op::Put { key, frontend } => self.put(key, frontend, now),
            Op::Remove { key } => self.remove(key, now),
            Op::Settings(settings) => {
                let written = self.node.write(&mut self.dataplane, settings)?;
                self.packets().set_pods(&settings.pods);
                let node_ports = settings.node_ports.clone();
                let served = self.addresses().serve_node_ports(node_ports);
                served
                    .map(|served| effect(written || served))
                    .map_err(|error| doing("cannot write the node's addresses", &error))
            }
            Op::Own { address, undefined } => self.own(*address, Some(*undefined)),
            Op::Disown { address } => self.own(*address, None),
        }
    }

    fn own(
        &self,
        address: std::net::IpAddr,
        undefined: Option<Undefined>,
    ) -> Result<Effect, ApplyError> {
        self.addresses()
            .own(address, undefined)
            .map(effect)
            .map_err(|error| doing(format_args!("cannot write address {address}"), &error))
    }

    fn put(
        &mut self,
        name: &FrontendKey,
        frontend: &Frontend,
        now: Duration,
    ) -> Result<Effect, ApplyError> {
        let key = abi_key(name);
        let known = self.programmed.get(&key).map(|slot| (*slot, self.dataplane.slots.get(*slot)));
        let service_name = (frontend.service.clone(), name.at.family());
        let known_service = known.map(|(_, slot)| slot.rules.service());
        let Some(service) = self.sets.service(&self.dataplane, &service_name, known_service) else {
            let doing = format!("no room for the Service port of {name}: all ids are in use");
            return Err(no_room(doing, false));
        };
        let outcome = self.content(name, frontend, service, now).and_then(|content| match known {
            Some((slot, before)) if self.keeps_slot(slot, &before, &content, frontend) => {
                Ok(self.replace(slot, &before, &content))
            }
            _ => self.move_to_new_slot(name, frontend, &content, now),
        });
        // Sets that nobody shows: those before, or, if it failed, those that were to come.
        for service in known_service.into_iter().chain([service]) {
            self.sets.sweep(&self.dataplane, service, now);
            self.sets.forget_if_unused(service);
        }
        outcome
    }

    /// What a slot has to show; its sets are written.
    fn content(
        &mut self,
        name: &FrontendKey,
        frontend: &Frontend,
        service: u32,
        now: Duration,
    ) -> Result<Slot, ApplyError> {
        let mut heads = [Head::REJECT; N_HEADS];
        for source in [SourceKind::Pod, SourceKind::Node, SourceKind::Outside] {
            let route = frontend.routes.from(source);
            let head = match &route.target {
                Target::Endpoints(set) => self
                    .head(name, service, Members::Chosen(set), now)?
                    .with_masquerade(masquerades(route)),
                Target::Reject => Head::REJECT,
                Target::Drop => Head::DROP,
            };
            if let Some(place) = heads.get_mut(look::index(source)) {
                *place = head;
            }
        }
        if !frontend.serving.is_empty() {
            heads[SERVING] = self.head(name, service, Members::Serving(&frontend.serving), now)?;
        }
        let affinity = frontend.affinity.map_or(0, |timeout| timeout.as_secs());
        let rules = Rules::new(
            service,
            u32::try_from(affinity).unwrap_or(u32::MAX),
            encode::kind(frontend.kind),
            frontend.source_ranges.is_some(),
        )
        .with_ends(frontend.ends_connections);
        Ok(Slot { heads, rules, pad: [0; 3] })
    }

    fn head(
        &mut self,
        name: &FrontendKey,
        service: u32,
        members: Members<'_>,
        now: Duration,
    ) -> Result<Head, ApplyError> {
        self.sets.head(&self.dataplane, service, members, now).map_err(|error| match error {
            NoSet::NoRange { wanted, used, len, resting } => no_room(
                format!(
                    "no room for the {wanted} endpoints of frontend {name}: {used} of {len} are in \
                     use"
                ),
                resting,
            ),
            NoSet::Unreachable(error) => {
                doing(format_args!("cannot write the endpoints of frontend {name}"), &error)
            }
        })
    }

    /// Whether the rules are the same but for the time of the affinity.
    fn keeps_slot(&self, slot: u32, before: &Slot, content: &Slot, frontend: &Frontend) -> bool {
        let (is, will_be) = (before.rules, content.rules);
        let same_ranges = match (&frontend.source_ranges, self.source_ranges.get(&slot)) {
            (Some(ranges), Some(known)) => known.iter().eq(ranges.iter()),
            (Some(_), None) => false,
            (None, _) => true,
        };
        same_ranges
            && Rules::new(is.service(), will_be.affinity(), is.kind(), is.has_ranges())
                .with_ends(is.ends_connections())
                == will_be
    }

    /// Shows something else in a slot that is in use.
    fn replace(&mut self, slot: u32, before: &Slot, content: &Slot) -> Effect {
        if before == content {
            return Effect::Unchanged;
        }
        if before.rules != content.rules {
            self.dataplane.slots.set_rules(slot, content.rules);
        }
        for (index, (is, will_be)) in before.heads.iter().zip(content.heads).enumerate() {
            if *is != will_be {
                self.dataplane.slots.publish(slot, index, will_be);
            }
        }
        self.shown.insert(slot, *content);
        self.sets.show(content.rules.service(), &content.heads);
        self.sets.hide(before.rules.service(), &before.heads);
        Effect::Written
    }

    /// Fills another slot whole, then leads the key there.
    fn move_to_new_slot(
        &mut self,
        name: &FrontendKey,
        frontend: &Frontend,
        content: &Slot,
        now: Duration,
    ) -> Result<Effect, ApplyError> {
        let key = abi_key(name);
        let Some(slot) = self.slots.claim(now) else {
            return Err(no_room(
                format!("no room for frontend {name}: all {} are in use", self.slots.len()),
                self.slots.resting(),
            ));
        };
        if let Err(error) = self.dataplane.slots.reach(slot) {
            self.slots.rest(slot, now);
            return Err(doing(format_args!("cannot add frontend {name}"), &error));
        }
        self.dataplane.slots.fill(slot, content);
        let ranges = frontend.source_ranges.as_deref().unwrap_or_default();
        self.dataplane.filter.mark_service(&key.addr);
        let led = self.write_ranges(slot, ranges).and_then(|()| {
            let written = match self.dataplane.frontends() {
                Ok(mut map) => map.insert(key, FrontendValue::new(&key, slot), 0),
                Err(error) => return Err(retry(&error)),
            };
            written.map_err(|error| retry(&error))
        });
        led.map_err(|mut error| {
            self.dataplane.slots.let_go(slot);
            self.slots.rest(slot, now);
            error.doing = format!("cannot add frontend {name}: {}", error.doing);
            error
        })?;
        self.shown.insert(slot, *content);
        self.sets.show(content.rules.service(), &content.heads);
        self.sets.add_frontend(content.rules.service());
        if let Some(before) = self.programmed.insert(key, slot) {
            self.let_go(before, now);
        }
        Ok(Effect::Written)
    }

    /// Gives a slot that no key leads to these source ranges, and none of those it had before.
    fn write_ranges(&mut self, slot: u32, ranges: &[IpNet]) -> Result<(), ApplyError> {
        let known = self.source_ranges.entry(slot).or_default();
        let written = node::write_source_ranges(&mut self.dataplane, slot, known, ranges);
        if known.is_empty() {
            self.source_ranges.remove(&slot);
        }
        written
    }

    fn remove(&mut self, name: &FrontendKey, now: Duration) -> Result<Effect, ApplyError> {
        let key = abi_key(name);
        let Some(slot) = self.programmed.get(&key).copied() else { return Ok(Effect::Unchanged) };
        let removed = match self.dataplane.frontends() {
            Ok(mut map) => match map.remove(&key) {
                Err(error) if !is_absent(&error) => Err(retry(&error)),
                _ => Ok(()),
            },
            Err(error) => Err(retry(&error)),
        };
        removed.map_err(|mut error| {
            error.doing = format!("cannot remove frontend {name}: {}", error.doing);
            error
        })?;
        self.programmed.remove(&key);
        let service = self.let_go(slot, now);
        self.sets.sweep(&self.dataplane, service, now);
        self.sets.forget_if_unused(service);
        Ok(Effect::Written)
    }

    /// A slot to which no key leads any more; returns its Service port.
    fn let_go(&mut self, slot: u32, now: Duration) -> u32 {
        let before = self.dataplane.slots.get(slot);
        let service = before.rules.service();
        self.dataplane.slots.let_go(slot);
        self.shown.remove(&slot);
        self.slots.rest(slot, now + REST);
        self.sets.hide(service, &before.heads);
        self.sets.remove_frontend(service);
        service
    }

    fn holds(&self, key: &FrontendKey, desired: &Frontend) -> Holds {
        let slot = self.programmed.get(&abi_key(key)).copied();
        let ranges = |slot| self.source_ranges.get(&slot).cloned().unwrap_or_default();
        let (slots, endpoints) = (&self.dataplane.slots, &self.dataplane.endpoints);
        look::held(slots, endpoints, slot, ranges).compare(desired)
    }
}

fn masquerades(route: &Route) -> bool {
    route.masquerade == Masquerade::Always
}

const fn effect(written: bool) -> Effect {
    if written { Effect::Written } else { Effect::Unchanged }
}

const NOT_PREPARED: &str = "the eBPF dataplane was not prepared";

fn not_prepared() -> ApplyError {
    ApplyError { doing: NOT_PREPARED.to_owned(), class: ApplyErrorClass::Fatal, source: None }
}

/// Something is full: wait for what rests, or leave it out.
fn no_room(doing: String, resting: bool) -> ApplyError {
    let class =
        if resting { ApplyErrorClass::Retry { after: REST } } else { ApplyErrorClass::Drop };
    ApplyError { doing, class, source: None }
}

fn retry(error: &impl std::fmt::Display) -> ApplyError {
    ApplyError {
        doing: error.to_string(),
        class: ApplyErrorClass::Retry { after: REST },
        source: None,
    }
}

/// The same, naming what was being done.
fn doing(what: impl std::fmt::Display, error: &impl std::fmt::Display) -> ApplyError {
    ApplyError { doing: format!("{what}: {error}"), ..retry(error) }
}

fn is_absent(error: &load::MapError) -> bool {
    matches!(error, load::MapError::KeyNotFound)
        || matches!(error, load::MapError::SyscallError(error)
            if error.io_error.kind() == std::io::ErrorKind::NotFound)
}
