//! IPVS: the plan in virtual services, for whom scheduling matters.
//!
//! ```text
//!  ops ─▶ state (what changes) ─┬─▶ virtual services, by generic netlink
//!                               ├─▶ addresses of kube-ipvs0, by rtnetlink
//!   all is read back at the     └─▶ entries of sets, by `ipset`
//!   start and at each audit         settings ─▶ a few rules that ask the sets, by `iptables-restore`
//! ```
//!
//! Read `item` and `desired` first. `docs/design/ipvs.md` has the ways of a packet.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use model::name::Family;
use netlink_sys::protocols::NETLINK_ROUTE;
use thiserror::Error;
use tracing::{info, warn};

mod desired;
mod device;
mod item;
mod kernel;
mod look;
mod message;
mod options;
mod rules;
mod sets;
mod state;
mod sysctls;

pub use options::{Options, SCHEDULERS};

use item::{Key, Set, Value, Virtual, VirtualKey};
use kernel::Kernel;
use rules::{Context, Found};
use state::{Change, State};

use crate::backend::iptables::{Charge, PATIENCE, Programs, Variant};
use crate::backend::program::ProgramError;
use crate::backend::{
    ActivateError, Applied, ApplyError, ApplyErrorClass, Backend, DrainError, Drained, Effect,
    Holds, PrepareError, ReadError, RetireError, Unsupported,
};
use crate::delta::{Actual, Held, Op};
use crate::netlink::talk::Talk;
use crate::plan::{Frontend, FrontendKey};

/// How long to wait first before what failed is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// The IPVS dataplane of one node.
#[derive(Debug)]
pub struct Ipvs {
    node: Arc<Mutex<Node>>,
}

/// What is programmed. Besides the backend, whoever follows the node's addresses has it.
#[derive(Debug)]
pub struct Node {
    kernel: Option<Kernel>,
    variant: Variant,
    families: &'static [Family],
    state: State,
    charge: Charge,
    /// It is not known what the kernel holds.
    is_lost: bool,
    /// The settings are others than those that the rules were written for.
    has_old_rules: bool,
}

/// The kernel could not be told, or asked.
#[derive(Debug, Error)]
enum KernelError {
    /// A program.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// The kernel itself.
    #[error("cannot {doing}")]
    Netlink {
        /// What was being done.
        doing: String,
        /// Why.
        source: io::Error,
    },
}

/// The kernel has no IPVS.
#[derive(Debug, Error)]
#[error(
    "the kernel has no IPVS: load the module ip_vs and the scheduler's (modprobe ip_vs ip_vs_{0}), \
     or choose another --proxy-mode"
)]
struct NoIpvs(String);

fn netlink<T>(doing: impl Into<String>, result: io::Result<T>) -> Result<T, KernelError> {
    result.map_err(|source| KernelError::Netlink { doing: doing.into(), source })
}

impl Ipvs {
    /// A dataplane that knows of nothing.
    pub fn new(options: Options) -> Self {
        Self {
            node: Arc::new(Mutex::new(Node {
                kernel: None,
                variant: Variant::Plain,
                families: &Family::ALL,
                state: State::new(options),
                charge: Charge::No,
                is_lost: false,
                has_old_rules: true,
            })),
        }
    }

    /// Whether it can do what a frontend asks: what IPVS cannot it does otherwise.
    ///
    /// # Errors
    /// None so far.
    pub const fn can(_: &Frontend) -> Result<(), Unsupported> {
        Ok(())
    }

    /// For whoever follows the node's addresses.
    pub fn node(&self) -> Arc<Mutex<Node>> {
        Arc::clone(&self.node)
    }

    /// Whether there is anything of this mode's, or of kube-proxy's.
    pub fn is_there() -> bool {
        let has_rules = |variant: Variant| {
            Family::ALL.into_iter().any(|family| {
                let text = Programs::of(variant, family).save();
                text.is_ok_and(|text| !Found::parse(&text).is_empty())
            })
        };
        device::is_there()
            || [Variant::Legacy, Variant::Nft].into_iter().any(has_rules)
            || sets::are_there()
    }

    /// Whether Services' addresses are this node's.
    pub fn is_hooked() -> bool {
        device::addresses().is_ok_and(|addresses| !addresses.ours.is_empty())
    }

    /// Removes everything of this mode.
    ///
    /// # Errors
    /// Something could not be removed; the rest was.
    pub fn remove_all() -> Result<(), RetireError> {
        lock(&Self::new(Options::default()).node).remove()
    }
}

fn lock(node: &Mutex<Node>) -> MutexGuard<'_, Node> {
    node.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads the node's addresses again, and serves node ports at them.
///
/// # Errors
/// They cannot be read, or node ports cannot be served there; it is tried again with the next
/// change.
pub fn follow(node: &Mutex<Node>) -> Result<(), ReadError> {
    let failed = |error| ReadError::new("cannot follow the node's addresses", error);
    let addresses = device::addresses().map_err(failed)?;
    let mut node = lock(node);
    if node.kernel.is_some() && node.state.set_local(addresses.others) {
        info!(n = node.state.local().len(), "the node's addresses");
        node.transact()
            .map_err(|error| ReadError::new("cannot serve node ports at the node's", error))?;
    }
    Ok(())
}

impl Node {
    fn kernel(&self) -> Result<&Kernel, KernelError> {
        let missing = || io::Error::from(io::ErrorKind::NotConnected);
        self.kernel.as_ref().ok_or_else(|| KernelError::Netlink {
            doing: "reach IPVS".to_owned(),
            source: missing(),
        })
    }

    fn prepare(&mut self) -> Result<Actual, PrepareError> {
        let options = self.state.options.clone();
        let found = Kernel::find()
            .map_err(|error| PrepareError::new("cannot ask the kernel for IPVS", error))?;
        let none = || PrepareError::new("IPVS does not work here", NoIpvs(options.scheduler));
        let kernel = found.ok_or_else(none)?;
        kernel
            .set_timeouts(options.timeouts)
            .map_err(|error| PrepareError::new("cannot set the timeouts of IPVS", error))?;
        self.kernel = Some(kernel);
        sysctls::set(options.strict_arp)
            .map_err(|error| PrepareError::new("cannot set up the node for IPVS", error))?;
        let cannot = |error| PrepareError::new("cannot set up the sets and rules", error);
        self.variant = Variant::detect().map_err(cannot)?;
        info!(variant = %self.variant, "IPVS, with iptables");
        if let Err(error) = Programs::of(self.variant, Family::V6).save() {
            warn!("IPv6 is not routed: {error}");
            self.families = &[Family::V4];
        }
        sets::create(self.families).map_err(cannot)?;
        let device = |error| {
            PrepareError::new(
                format!("cannot make the device {} (the kernel's module dummy)", device::NAME),
                error,
            )
        };
        device::create().map_err(device)?;
        let found = Programs::of(self.variant, Family::V4).save().map_err(cannot)?;
        self.charge = Found::parse(&found).charge();
        let read = |error| PrepareError::new("cannot read what the kernel holds", error);
        let held = self.read().map_err(read)?;
        self.state.found(held);
        Ok(self.actual())
    }

    /// What the kernel holds of ours.
    fn read(&mut self) -> Result<HashMap<Key, Value>, KernelError> {
        let mut held = sets::read()?;
        let addresses = netlink("read the node's addresses", device::addresses())?;
        let virtuals = netlink("read virtual services", self.kernel()?.virtuals())?;
        let marks: HashSet<u32> = held.values().filter_map(Value::mark).collect();
        let is_ours = |key: &VirtualKey| {
            let is_known = self.state.held().contains_key(&Key::Virtual(*key));
            is_known
                || match key {
                    VirtualKey::At(at, protocol) => {
                        let excluded = &self.state.options.exclude_cidrs;
                        addresses.ours.contains(&at.ip())
                            && !excluded.iter().any(|range| range.contains(&at.ip()))
                            || Set::of_frontends(*at, *protocol).any(|it| held.contains_key(&it))
                    }
                    VirtualKey::Mark(_, mark) => marks.contains(mark),
                }
        };
        let ours: Vec<(VirtualKey, Virtual)> =
            virtuals.into_iter().filter(|(key, _)| is_ours(key)).collect();
        let ours = ours.into_iter();
        held.extend(ours.map(|(key, virt)| (Key::Virtual(key), Value::Virtual(virt))));
        held.extend(addresses.ours.iter().map(|it| (Key::Address(*it), Value::There)));
        self.state.set_local(addresses.others);
        Ok(held)
    }

    /// Reads it, and before that makes what addresses and entries are kept in, should it be gone: without the
    /// device no change could be written, and nothing could be found missing while a change is not.
    fn read_again(&mut self) -> Result<HashMap<Key, Value>, KernelError> {
        netlink("make the device again", device::create())?;
        sets::create(self.families)?;
        self.read()
    }

    /// All is told again: what nobody asks for goes.
    fn actual(&self) -> Actual {
        let mut actual = Actual::default();
        actual.frontends.extend(self.state.frontends().map(|key| (*key, Held::Unknown)));
        actual.addresses.extend(self.state.owned().map(|address| (*address, None)));
        actual
    }

    /// Writes what was taken in. Says whether there was anything to write.
    fn transact(&mut self) -> Result<bool, KernelError> {
        if self.is_lost {
            let held = self.read_again()?;
            self.state.found(held);
        }
        self.is_lost = true;
        let mut written = false;
        if self.has_old_rules {
            written |= self.write_rules()?;
            self.has_old_rules = false;
        }
        let changes = self.state.changes(self.charge == Charge::Full);
        written |= self.write(changes)?;
        self.is_lost = false;
        Ok(written)
    }

    /// Makes the rules what they should be.
    fn write_rules(&self) -> Result<bool, KernelError> {
        let mut written = false;
        for family in self.families {
            let programs = Programs::of(self.variant, *family);
            let found = Found::parse(&programs.save()?);
            let context = self.context(*family);
            // What a rule says besides its target is not compared.
            if !self.has_old_rules && found.is_whole(context, self.charge) {
                continue;
            }
            programs.restore(&found.replace(context, self.charge))?;
            written = true;
        }
        Ok(written)
    }

    fn context(&self, family: Family) -> Context<'_> {
        let masquerade_all = self.state.options.masquerade_all;
        Context { family, settings: &self.state.settings, masquerade_all }
    }

    /// Add before use, remove after use.
    fn write(&mut self, changes: Vec<Change>) -> Result<bool, KernelError> {
        let changes: Vec<Change> = changes.into_iter().filter(|it| self.is_routed(it)).collect();
        if changes.is_empty() {
            return Ok(false);
        }
        let mut written = false;
        let is_marked = |key: &Key| matches!(key, Key::Virtual(VirtualKey::Mark(..)));
        for change in changes.iter().filter(|it| is_marked(&it.key)) {
            written |= self.put_virtual(change)?;
        }
        let added = changes.iter().filter_map(|it| Some((&it.key, it.after.as_ref()?)));
        let added: Vec<(&Key, &Value)> =
            added.filter(|(key, _)| matches!(key, Key::Entry(..))).collect();
        let gone: Vec<&Key> = changes
            .iter()
            .filter(|it| it.after.is_none() && matches!(it.key, Key::Entry(..)))
            .map(|it| &it.key)
            .collect();
        written |= !added.is_empty() || !gone.is_empty();
        sets::add(added.iter().copied())?;
        for change in changes.iter().filter(|it| !is_marked(&it.key)) {
            written |= self.put_virtual(change)?;
        }
        written |= self.write_addresses(&changes)?;
        for change in &changes {
            if let (Key::Virtual(key), None) = (&change.key, &change.after) {
                netlink(format!("remove {key}"), self.kernel()?.delete(key))?;
                written = true;
            }
        }
        // By these it is known which virtual services are ours.
        sets::remove(gone.iter().copied())?;
        for change in changes {
            // What a virtual service has is known better by now.
            if change.after.is_none() || !matches!(change.key, Key::Virtual(_)) {
                self.state.hold(change.key, change.after);
            }
        }
        Ok(written)
    }

    /// Whether the node has the family at all.
    fn is_routed(&self, change: &Change) -> bool {
        let family = match &change.key {
            Key::Entry(_, family, _) => *family,
            Key::Virtual(key) => key.family(),
            Key::Address(address) => Family::of(address),
        };
        self.families.contains(&family)
    }

    fn put_virtual(&mut self, change: &Change) -> Result<bool, KernelError> {
        let (Key::Virtual(key), Some(Value::Virtual(after))) = (&change.key, &change.after) else {
            return Ok(false);
        };
        let before = match &change.before {
            Some(Value::Virtual(before)) => Some(before),
            _ => None,
        };
        let now = netlink(format!("write {key}"), self.kernel()?.put(key, before, after))?;
        let written = before != Some(&now);
        self.state.hold(change.key.clone(), Some(Value::Virtual(now)));
        Ok(written)
    }

    fn write_addresses(&self, changes: &[Change]) -> Result<bool, KernelError> {
        let mut of_device =
            changes.iter().filter(|it| matches!(it.key, Key::Address(_))).peekable();
        if of_device.peek().is_none() {
            return Ok(false);
        }
        let talk = netlink("reach the node's network", Talk::with(NETLINK_ROUTE))?;
        let mut of_device: Vec<&Change> = of_device.collect();
        of_device.sort_by_key(|it| it.after.is_none());
        for change in of_device {
            if let Key::Address(address) = change.key {
                let doing = format!("give or take {address} to or from {}", device::NAME);
                netlink(doing, device::set(&talk, address, change.after.is_some()))?;
            }
        }
        Ok(true)
    }

    fn set_charge(&mut self, charge: Charge) -> Result<(), KernelError> {
        if self.charge != charge {
            self.charge = charge;
            self.has_old_rules = true;
        }
        self.transact().map(drop)
    }

    /// Destinations that are left for their connections only.
    fn leaving(&self) -> Vec<(VirtualKey, std::net::SocketAddr)> {
        let mut leaving = Vec::new();
        for (key, value) in self.state.held() {
            if let (Key::Virtual(key), Value::Virtual(virt)) = (key, value) {
                let of_it = virt.destinations.iter().filter(|(_, weight)| **weight == 0);
                leaving.extend(of_it.map(|(at, _)| (*key, *at)));
            }
        }
        leaving
    }

    /// Removes destinations whose last connection has ended.
    fn collect(&mut self) -> Result<(), KernelError> {
        for (key, at) in self.leaving() {
            let collected = self.kernel()?.collect(&key, at);
            if !netlink(format!("remove {at} from {key}"), collected)? {
                continue;
            }
            let of = Key::Virtual(key);
            if let Some(Value::Virtual(virt)) = self.state.held().get(&of) {
                let mut now = virt.clone();
                now.destinations.remove(&at);
                self.state.hold(of, Some(Value::Virtual(now)));
            }
        }
        Ok(())
    }

    fn audit(&mut self) -> Result<Option<Actual>, KernelError> {
        if self.is_lost || self.kernel.is_none() {
            return Ok(None);
        }
        self.collect()?;
        let held = self.read_again()?;
        let mut is_whole = held == *self.state.held();
        for family in self.families {
            let found = Found::parse(&Programs::of(self.variant, *family).save()?);
            is_whole &= found.is_whole(self.context(*family), self.charge);
        }
        if is_whole {
            return Ok(None);
        }
        self.state.found(held);
        self.has_old_rules = true;
        Ok(Some(self.actual()))
    }

    /// How many connections there are.
    fn n_connections(&self) -> Result<u64, KernelError> {
        let kernel = self.kernel()?;
        let mut n = 0;
        for key in self.state.held().keys() {
            if let Key::Virtual(key) = key {
                let destinations = netlink("count connections", kernel.destinations(key))?;
                n += destinations.iter().map(|it| it.n_connections).sum::<u64>();
            }
        }
        Ok(n)
    }

    fn remove(&mut self) -> Result<(), RetireError> {
        let mut result = Ok(());
        for variant in [Variant::Legacy, Variant::Nft] {
            for family in Family::ALL {
                let removed = remove_rules(Programs::of(variant, family));
                result = result.and(removed);
            }
        }
        if let Ok(Some(kernel)) = Kernel::find() {
            self.kernel = Some(kernel);
            let removed = self.remove_virtuals();
            let removed =
                removed.map_err(|error| RetireError::new("cannot remove virtual services", error));
            result = result.and(removed);
        }
        let removed =
            device::remove().map_err(|error| RetireError::new("cannot remove kube-ipvs0", error));
        result = result.and(removed);
        if sets::are_there() {
            let removed = sets::destroy()
                .map_err(|error| RetireError::new("cannot remove the sets KUBE-*", error));
            result = result.and(removed);
        }
        result
    }

    fn remove_virtuals(&mut self) -> Result<(), KernelError> {
        let held = self.read().unwrap_or_default();
        for key in held.keys() {
            if let Key::Virtual(key) = key {
                netlink(format!("remove {key}"), self.kernel()?.delete(key))?;
            }
        }
        Ok(())
    }
}

/// Removes our rules, if there are any.
fn remove_rules(programs: Programs) -> Result<(), RetireError> {
    let found = Found::parse(&programs.save().unwrap_or_default());
    if found.is_empty() {
        return Ok(());
    }
    let removed = programs.restore(&found.remove());
    removed.map_err(|error| RetireError::new("cannot remove the chains KUBE-IPVS-*", error))
}

impl Backend for Ipvs {
    fn name(&self) -> &'static str {
        "ipvs"
    }

    fn supports(&self, frontend: &Frontend) -> Result<(), Unsupported> {
        Self::can(frontend)
    }

    fn prepare(&mut self) -> Result<Actual, PrepareError> {
        lock(&self.node).prepare()
    }

    fn apply(&mut self, ops: &[Op]) -> Applied {
        let mut node = lock(&self.node);
        for op in ops {
            let has_new_settings = node.state.take(op);
            node.has_old_rules |= has_new_settings;
        }
        let result = node.transact();
        let of_op = |_: &Op| match &result {
            Ok(true) => Ok(Effect::Written),
            Ok(false) => Ok(Effect::Unchanged),
            Err(error) => Err(failed(error)),
        };
        Applied { results: ops.iter().map(of_op).collect() }
    }

    fn activate(&mut self) -> Result<(), ActivateError> {
        let activated = lock(&self.node).set_charge(Charge::Full);
        activated.map_err(|error| ActivateError::new("cannot make Services' addresses ours", error))
    }

    fn drain(&mut self) -> Result<Drained, DrainError> {
        let mut node = lock(&self.node);
        let failed = |error| DrainError::new("cannot leave new connections alone", error);
        node.charge = Charge::Draining;
        node.has_old_rules = true;
        node.write_rules().map_err(failed)?;
        node.has_old_rules = false;
        let flows = node.n_connections().map_err(failed)?;
        Ok(Drained { flows: Some(flows) })
    }

    fn retire(&mut self) -> Result<(), RetireError> {
        lock(&self.node).remove()
    }

    fn audit(&mut self) -> Result<Option<Actual>, ReadError> {
        let audited = lock(&self.node).audit();
        audited.map_err(|error| ReadError::new("cannot read what the kernel holds", error))
    }

    fn holds(&mut self, key: &FrontendKey, desired: &Frontend) -> Result<Holds, ReadError> {
        let held = look::held(key);
        held.map(|held| held.compare(desired))
            .map_err(|error| ReadError::new("cannot read what the kernel holds", error))
    }
}

fn failed(error: &KernelError) -> ApplyError {
    let is_locked = matches!(
        error,
        KernelError::Program(ProgramError::Refused { words, .. }) if words.contains("lock")
    );
    ApplyError {
        doing: error.to_string(),
        // Whoever has it may go on for a while.
        class: ApplyErrorClass::Retry { after: if is_locked { PATIENCE / 5 } else { RETRY } },
        source: std::error::Error::source(error).map(|source| source.to_string().into()),
    }
}
