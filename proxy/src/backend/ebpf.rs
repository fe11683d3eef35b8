//! eBPF: frontends, heads and endpoints in maps, read by programs at the socket.
//!
//! ```text
//!  Op::Put ─▶ write the set to a free range ─▶ store its head in the frontend's slot ─▶ old range
//!             of ENDPOINTS                     (the publication)                        rests, then
//!                                              └─ new frontend: its key to FRONTENDS    is free
//! ```
//!
//! Every frontend has one slot for as long as it exists, so the hash map that leads to slots is
//! written only when a frontend appears or goes. What a former process left is taken over: its
//! slots and ranges stay where they are, and a put of what is there writes nothing.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use abi::endpoint::Head;
use abi::frontend::{FrontendKey as Key, FrontendValue};
use load::Dataplane;
use model::name::Protocol;

mod look;
mod ranges;
mod slots;

pub use look::Look;
use ranges::Ranges;
use slots::Slots;

use crate::backend::{
    ActivateError, Applied, ApplyError, ApplyErrorClass, Backend, DrainError, Drained, Effect,
    Holds, PrepareError, ReadError, RetireError, Unsupported,
};
use crate::delta::{Actual, Held, Op};
use crate::plan::{At, EndpointSet, Frontend, FrontendKey, FrontendKind, Masquerade, Target};

/// How long a range or a slot rests before it is used again. A program that read a head before the
/// change is done with it microseconds later.
const REST: Duration = Duration::from_secs(1);

/// The eBPF dataplane of one node.
#[derive(Debug)]
pub struct Ebpf {
    config: load::Config,
    opened: Option<Opened>,
}

/// The dataplane, and what is known of it.
#[derive(Debug)]
struct Opened {
    dataplane: Dataplane,
    programmed: BTreeMap<Key, Programmed>,
    ranges: Ranges,
    slots: Slots,
    generation: u32,
    started: Instant,
}

/// What stands in the maps for one frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Programmed {
    slot: u32,
    head: Head,
}

impl Ebpf {
    /// A dataplane that is not opened yet.
    pub const fn new(config: load::Config) -> Self {
        Self { config, opened: None }
    }

    /// The loaded dataplane, after [`Backend::prepare`].
    pub fn dataplane(&mut self) -> Option<&mut Dataplane> {
        self.opened.as_mut().map(|opened| &mut opened.dataplane)
    }

    /// Whether it can do what a frontend asks; needs no opened dataplane.
    ///
    /// # Errors
    /// What it cannot do, naming the Service's field.
    pub fn can(frontend: &Frontend) -> Result<(), Unsupported> {
        let refuse = |field: &str, reason: &str| {
            Err(Unsupported { field: field.to_owned(), reason: reason.to_owned() })
        };
        if frontend.kind != FrontendKind::ClusterIp {
            return refuse(
                frontend.kind.field(),
                "the eBPF mode routes cluster IPs only; node ports, load balancer and external \
                 addresses are left to another proxy",
            );
        }
        if frontend.service.protocol == Protocol::Sctp {
            return refuse("spec.ports[].protocol", "the eBPF mode routes TCP and UDP only");
        }
        if frontend.affinity.is_some() {
            return refuse(
                "spec.sessionAffinity",
                "the eBPF mode has no ClientIP affinity; set it to None",
            );
        }
        if frontend.routes.pod.masquerade == Masquerade::Always {
            return refuse(
                "--masquerade-all",
                "the eBPF mode keeps the source of pods; start without this flag",
            );
        }
        if let Target::Endpoints(set) = &frontend.routes.pod.target {
            if !set.is_uniform() {
                return refuse(
                    "metadata.annotations[fairlead.dev/weight]",
                    "the eBPF mode chooses among endpoints with equal weight; remove it",
                );
            }
            if set.len() > Head::MAX_LENGTH as usize {
                return refuse(
                    "endpoints",
                    "more than 262,143 endpoints of one Service; split the Service",
                );
            }
        }
        Ok(())
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
        let opened = Opened::adopt(dataplane)?;
        let frontends = opened
            .programmed
            .keys()
            .filter_map(|key| Some((frontend_key(key)?, Held::Unknown)))
            .collect();
        self.opened = Some(opened);
        Ok(Actual { frontends, ..Actual::default() })
    }

    fn apply(&mut self, ops: &[Op]) -> Applied {
        let results = match &mut self.opened {
            Some(opened) => ops.iter().map(|op| opened.apply(op)).collect(),
            None => ops.iter().map(|_| Err(not_prepared())).collect(),
        };
        Applied { results }
    }

    fn activate(&mut self) -> Result<(), ActivateError> {
        let Some(opened) = &mut self.opened else {
            return Err(ActivateError { doing: NOT_PREPARED.to_owned(), source: None });
        };
        opened
            .dataplane
            .activate()
            .map_err(|error| ActivateError::new("cannot take charge of new connections", error))
    }

    fn drain(&mut self) -> Result<Drained, DrainError> {
        if let Some(opened) = &mut self.opened {
            opened
                .dataplane
                .drain()
                .map_err(|error| DrainError::new("cannot leave new connections alone", error))?;
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

    fn holds(&mut self, key: &FrontendKey, desired: &Frontend) -> Result<Holds, ReadError> {
        let Some(opened) = &self.opened else {
            return Err(ReadError { doing: NOT_PREPARED.to_owned(), source: None });
        };
        Ok(opened.holds(key, desired))
    }
}

impl Opened {
    /// Takes over what a former process left, which may be nothing.
    fn adopt(mut dataplane: Dataplane) -> Result<Self, PrepareError> {
        let entries = dataplane
            .frontends()
            .map_err(|error| PrepareError::new("cannot read the frontends in the kernel", error))?
            .iter()
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| PrepareError::new("cannot read the frontends in the kernel", error))?;
        let mut ranges = Ranges::new(dataplane.endpoints.len());
        let mut slots = Slots::new(dataplane.heads.len());
        let mut programmed = BTreeMap::new();
        let mut generation = 0;
        for (key, value) in entries {
            let Some(slot) = value.slot(&key) else { continue };
            let head = dataplane.heads.get(slot);
            slots.take(slot);
            ranges.take(head.base(), head.length());
            generation = generation.max(head.generation());
            programmed.insert(key, Programmed { slot, head });
        }
        Ok(Self { dataplane, programmed, ranges, slots, generation, started: Instant::now() })
    }

    fn apply(&mut self, op: &Op) -> Result<Effect, ApplyError> {
        let now = self.started.elapsed();
        match op {
            Op::Put { key, frontend } => match abi_key(key) {
                Some(kernel_key) => self.put(kernel_key, key, &Wanted::from(&**frontend), now),
                None => Ok(Effect::Unchanged),
            },
            Op::Remove { key } => match abi_key(key) {
                Some(kernel_key) => self.remove(kernel_key, key, now),
                None => Ok(Effect::Unchanged),
            },
            // They matter to packets, which this dataplane does not see: sockets that name a port
            // that no Service has are left alone.
            Op::Settings(_) | Op::Own { .. } | Op::Disown { .. } => Ok(Effect::Unchanged),
        }
    }

    fn put(
        &mut self,
        key: Key,
        name: &FrontendKey,
        wanted: &Wanted<'_>,
        now: Duration,
    ) -> Result<Effect, ApplyError> {
        let known = self.programmed.get(&key).copied();
        if known.is_some_and(|known| self.shows(known.head, wanted)) {
            return Ok(Effect::Unchanged);
        }
        let head = self.write_set(name, wanted, now)?;
        match known {
            Some(Programmed { slot, head: before }) => {
                self.dataplane.heads.publish(slot, head);
                self.ranges.rest(before.base(), before.length(), now + REST);
                self.programmed.insert(key, Programmed { slot, head });
            }
            None => {
                let slot = self.new_frontend(key, name, head, now).inspect_err(|_| {
                    self.ranges.rest(head.base(), head.length(), now);
                })?;
                self.programmed.insert(key, Programmed { slot, head });
            }
        }
        Ok(Effect::Written)
    }

    fn new_frontend(
        &mut self,
        key: Key,
        name: &FrontendKey,
        head: Head,
        now: Duration,
    ) -> Result<u32, ApplyError> {
        let Some(slot) = self.slots.claim(now) else {
            return Err(no_room(
                format!("no room for frontend {name}: all {} are in use", self.slots.len()),
                self.slots.resting(),
            ));
        };
        self.dataplane.heads.publish(slot, head);
        let written = match self.dataplane.frontends() {
            Ok(mut map) => {
                map.insert(key, FrontendValue::new(&key, slot), 0).map_err(|error| retry(&error))
            }
            Err(error) => Err(retry(&error)),
        };
        written.map(|()| slot).map_err(|mut error| {
            self.slots.rest(slot, now);
            error.doing = format!("cannot add frontend {name}: {}", error.doing);
            error
        })
    }

    fn remove(
        &mut self,
        key: Key,
        name: &FrontendKey,
        now: Duration,
    ) -> Result<Effect, ApplyError> {
        let Some(Programmed { slot, head }) = self.programmed.get(&key).copied() else {
            return Ok(Effect::Unchanged);
        };
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
        self.slots.rest(slot, now + REST);
        self.ranges.rest(head.base(), head.length(), now + REST);
        Ok(Effect::Written)
    }

    /// Writes a set where nobody looks; it shows once its head is published.
    fn write_set(
        &mut self,
        name: &FrontendKey,
        wanted: &Wanted<'_>,
        now: Duration,
    ) -> Result<Head, ApplyError> {
        let Wanted::Endpoints(set) = wanted else { return Ok(wanted.empty_head()) };
        let length = u32::try_from(set.len()).unwrap_or(u32::MAX);
        let Some(base) = self.ranges.claim(length, now) else {
            return Err(no_room(
                format!(
                    "no room for the {length} endpoints of frontend {name}: {} of {} are in use",
                    self.ranges.used(),
                    self.ranges.len(),
                ),
                self.ranges.resting(),
            ));
        };
        self.generation =
            if self.generation >= Head::MAX_GENERATION { 1 } else { self.generation + 1 };
        let head = Head::new(base, length, self.generation);
        self.dataplane.endpoints.write(head, set.iter().map(|endpoint| endpoint.address));
        Ok(head)
    }

    /// Whether a head shows just what is wanted.
    fn shows(&self, head: Head, wanted: &Wanted<'_>) -> bool {
        match wanted {
            Wanted::Endpoints(set) => {
                head.length() as usize == set.len()
                    && self
                        .dataplane
                        .endpoints
                        .read(head)
                        .iter()
                        .eq(set.iter().map(|endpoint| &endpoint.address))
            }
            Wanted::Reject | Wanted::Drop => head == wanted.empty_head(),
        }
    }

    fn holds(&self, key: &FrontendKey, desired: &Frontend) -> Holds {
        let slot = abi_key(key).and_then(|key| self.programmed.get(&key)).map(|known| known.slot);
        look::held(&self.dataplane.heads, &self.dataplane.endpoints, slot).compare(desired)
    }
}

/// What the maps can express.
#[derive(Debug)]
enum Wanted<'a> {
    Endpoints(&'a EndpointSet),
    Reject,
    Drop,
}

impl<'a> From<&'a Frontend> for Wanted<'a> {
    /// Sockets of this node are its pods' and its own: for a cluster IP both have the same route.
    fn from(frontend: &'a Frontend) -> Self {
        match &frontend.routes.pod.target {
            Target::Endpoints(set) => Self::Endpoints(set),
            Target::Reject => Self::Reject,
            Target::Drop => Self::Drop,
        }
    }
}

impl Wanted<'_> {
    const fn empty_head(&self) -> Head {
        match self {
            Self::Drop => Head::DROP,
            Self::Endpoints(_) | Self::Reject => Head::REJECT,
        }
    }
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

fn is_absent(error: &load::MapError) -> bool {
    matches!(error, load::MapError::KeyNotFound)
        || matches!(error, load::MapError::SyscallError(error)
            if error.io_error.kind() == std::io::ErrorKind::NotFound)
}

/// The key in the map; node ports have none in this dataplane.
fn abi_key(key: &FrontendKey) -> Option<Key> {
    match key.at {
        At::Address(address) => {
            Some(Key::new(address.into(), key.port.to_be(), key.protocol.number()))
        }
        At::NodePort(_) => None,
    }
}

/// The key in the plan.
fn frontend_key(key: &Key) -> Option<FrontendKey> {
    let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
        .into_iter()
        .find(|protocol| protocol.number() == key.protocol)?;
    Some(FrontendKey { at: At::Address(key.addr.into()), port: u16::from_be(key.port), protocol })
}
