//! Desired minus actual: ordered operations. `[pure]`
//!
//! The order makes each new connection see its old outcome or its new one at every moment, never
//! a third (`stage` says how). What is needed first comes first within that: the API server, then DNS.

use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;

use crate::plan::{At, Frontend, FrontendKey, Plan, PlanChange, Settings, Undefined};

/// What the kernel holds, as far as is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Actual {
    /// The settings; `None` if they are not known.
    pub settings: Option<Arc<Settings>>,
    /// The frontends.
    pub frontends: OrdMap<FrontendKey, Held>,
    /// What happens at ports of Services' addresses that no frontend has; `None` where something
    /// is held that is not known.
    pub addresses: OrdMap<IpAddr, Option<Undefined>>,
}

/// What the kernel holds for one frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Held {
    /// This, put there by this process.
    Frontend(Arc<Frontend>),
    /// Something: found there, or left by an operation that failed. It is put again; a backend
    /// finds by itself that there is nothing to write.
    Unknown,
}

/// One operation. Each is whole: new connections see the frontend as before or as after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Takes new settings.
    Settings(Arc<Settings>),
    /// Adds a frontend, or replaces what is there.
    Put {
        /// Where.
        key: FrontendKey,
        /// What.
        frontend: Arc<Frontend>,
    },
    /// Says what happens at ports of an address that no frontend has.
    Own {
        /// The address.
        address: IpAddr,
        /// What happens there.
        undefined: Undefined,
    },
    /// No Service has the address any more.
    Disown {
        /// The address.
        address: IpAddr,
    },
    /// Removes a frontend.
    Remove {
        /// Where.
        key: FrontendKey,
    },
}

impl Actual {
    /// Takes note of an operation that succeeded.
    pub fn done(&mut self, op: &Op) {
        match op {
            Op::Settings(settings) => self.settings = Some(Arc::clone(settings)),
            Op::Put { key, frontend } => {
                self.frontends.insert(*key, Held::Frontend(Arc::clone(frontend)));
            }
            Op::Own { address, undefined } => {
                self.addresses.insert(*address, Some(*undefined));
            }
            Op::Disown { address } => {
                self.addresses.remove(address);
            }
            Op::Remove { key } => {
                self.frontends.remove(key);
            }
        }
    }

    /// Takes note of an operation that failed: what it was about is in no known state.
    pub fn failed(&mut self, op: &Op) {
        match op {
            Op::Settings(_) => self.settings = None,
            Op::Put { key, .. } | Op::Remove { key } => {
                self.frontends.insert(*key, Held::Unknown);
            }
            Op::Own { address, .. } | Op::Disown { address } => {
                self.addresses.insert(*address, None);
            }
        }
    }
}

/// What is to be done so that the kernel holds what the plan desires.
pub fn delta(actual: &Actual, desired: &Plan) -> Vec<Op> {
    let mut ops = Vec::new();
    for (key, frontend) in &desired.frontends {
        put(actual, *key, frontend, &mut ops);
    }
    for address in desired.addresses.keys() {
        own(actual, *address, desired.undefined(address), &mut ops);
    }
    for address in actual.addresses.keys().filter(|ip| !desired.addresses.contains_key(*ip)) {
        own(actual, *address, None, &mut ops);
    }
    for key in actual.frontends.keys().filter(|key| !desired.frontends.contains_key(*key)) {
        ops.push(Op::Remove { key: *key });
    }
    if actual.settings.as_ref() != Some(&desired.settings) {
        ops.push(Op::Settings(Arc::clone(&desired.settings)));
    }
    in_order(ops)
}

/// The same for a change to what was desired: costs what has changed, however much is held. What
/// an earlier failure left undone is not looked for; [`delta`] does that.
pub fn delta_of(actual: &Actual, change: &PlanChange) -> Vec<Op> {
    let mut ops = Vec::new();
    for (key, frontend) in &change.frontends {
        match frontend {
            Some(frontend) => put(actual, *key, frontend, &mut ops),
            None if actual.frontends.contains_key(key) => ops.push(Op::Remove { key: *key }),
            None => {}
        }
    }
    for (address, undefined) in &change.addresses {
        own(actual, *address, *undefined, &mut ops);
    }
    if let Some(settings) = &change.settings
        && actual.settings.as_ref() != Some(settings)
    {
        ops.push(Op::Settings(Arc::clone(settings)));
    }
    in_order(ops)
}

fn put(actual: &Actual, key: FrontendKey, frontend: &Arc<Frontend>, ops: &mut Vec<Op>) {
    let same = match actual.frontends.get(&key) {
        Some(Held::Frontend(held)) => Arc::ptr_eq(held, frontend) || held == frontend,
        Some(Held::Unknown) | None => false,
    };
    if !same {
        ops.push(Op::Put { key, frontend: Arc::clone(frontend) });
    }
}

fn own(actual: &Actual, address: IpAddr, undefined: Option<Undefined>, ops: &mut Vec<Op>) {
    let held = actual.addresses.get(&address);
    match undefined {
        Some(undefined) if held != Some(&Some(undefined)) => {
            ops.push(Op::Own { address, undefined });
        }
        None if held.is_some() => ops.push(Op::Disown { address }),
        _ => {}
    }
}

fn in_order(mut ops: Vec<Op>) -> Vec<Op> {
    ops.sort_by_key(|op| (stage(op), urgency(op)));
    ops
}

/// Add before use, remove after use. Frontends at an address hide what else happens at it, so they
/// come first and go last. Node ports show wherever no Service has the address: they change while
/// the addresses that will hide them do already, and those that hid them still do.
const fn stage(op: &Op) -> Stage {
    match op {
        Op::Settings(_) => Stage::Settings,
        Op::Put { key, .. } if is_node_port(key) => Stage::PutNodePort,
        Op::Put { .. } => Stage::PutAtAddress,
        Op::Own { undefined: Undefined::Reject | Undefined::Leave, .. } => Stage::Hide,
        Op::Remove { key } if is_node_port(key) => Stage::RemoveNodePort,
        Op::Own { undefined: Undefined::NodePort, .. } | Op::Disown { .. } => Stage::Show,
        Op::Remove { .. } => Stage::RemoveAtAddress,
    }
}

/// The order of operations.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Settings,
    PutAtAddress,
    Hide,
    PutNodePort,
    RemoveNodePort,
    Show,
    RemoveAtAddress,
}

const fn is_node_port(key: &FrontendKey) -> bool {
    matches!(key.at, At::NodePort(_))
}

/// Everything else on the node waits for the API server, and most of it for DNS.
fn urgency(op: &Op) -> u8 {
    let Op::Put { frontend, .. } = op else { return 0 };
    let service = &frontend.service.service;
    match (&*service.namespace, &*service.name) {
        ("default", "kubernetes") => 0,
        ("kube-system", "kube-dns") => 1,
        _ => 2,
    }
}
