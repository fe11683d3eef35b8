//! iptables: the plan in kube-proxy's chains, for whom tools and habits are made.
//!
//! ```text
//!  ops ─▶ tables (what changes) ─▶ text ─▶ iptables-restore --noflush, a run for each family
//!                    ▲
//!  iptables-save ────┘ at the start, and whenever it is not known what a run did
//! ```
//!
//! Only chains and rules that differ are written. `docs/design/iptables.md` has the chains.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use model::name::Family;
use tracing::{info, warn};

mod addresses;
mod fixed;
mod names;
mod pending;
mod read;
mod rules;
mod tables;
mod variant;

pub(in crate::backend) use fixed::Charge;
use fixed::Extras;
use read::Found;
pub(in crate::backend) use read::target;
use rules::{Key, Table};
use tables::Tables;
pub(in crate::backend) use variant::{PATIENCE, Programs, Variant};

use crate::backend::program::ProgramError;
use crate::backend::{
    ActivateError, Applied, ApplyError, ApplyErrorClass, Backend, DrainError, Drained, Effect,
    Holds, PrepareError, ReadError, RetireError, Unsupported,
};
use crate::by_family::ByFamily;
use crate::delta::{Actual, Held, Op};
use crate::plan::{Frontend, FrontendKey, Settings, Target};

/// How long to wait first before what failed is tried again.
const RETRY: Duration = Duration::from_millis(500);
/// What lets node ports on loopback addresses out, and back in.
const ROUTE_LOCALNET: &str = "/proc/sys/net/ipv4/conf/all/route_localnet";

/// The iptables dataplane of one node.
#[derive(Debug)]
pub struct Iptables {
    variant: Option<Variant>,
    tables: ByFamily<Tables>,
    settings: Arc<Settings>,
    /// It is not known what the last run did.
    lost: bool,
    /// The node has no IPv6.
    v4_only: bool,
}

impl Iptables {
    /// A dataplane that knows of nothing.
    pub fn new() -> Self {
        Self {
            variant: None,
            tables: ByFamily::from_fn(Tables::new),
            settings: Arc::default(),
            lost: false,
            v4_only: false,
        }
    }

    /// Whether it can do what a frontend asks: all of it.
    ///
    /// # Errors
    /// None so far.
    pub const fn can(_: &Frontend) -> Result<(), Unsupported> {
        Ok(())
    }

    /// Whether new connections come through the chains; needs nothing prepared.
    pub fn is_hooked() -> bool {
        let Ok(variant) = Variant::detect() else { return false };
        let found = Programs::of(variant, Family::V4).find();
        found.is_ok_and(|found| charge_of(&found) == Charge::Full)
    }

    /// Whether the programs may be used here.
    pub fn is_usable() -> bool {
        Variant::detect().is_ok_and(|variant| Programs::of(variant, Family::V4).find().is_ok())
    }

    /// Whether there is anything of a service proxy's, in either variant.
    pub fn is_there() -> bool {
        [Variant::Legacy, Variant::Nft].into_iter().any(Variant::has_some_of_ours)
    }

    /// Removes everything of a service proxy's, from both variants.
    ///
    /// # Errors
    /// Something could not be removed; the rest was.
    pub fn remove_all() -> Result<(), RetireError> {
        let mut result = Ok(());
        for variant in [Variant::Legacy, Variant::Nft] {
            let mut backend = Self { variant: Some(variant), ..Self::new() };
            for family in Family::ALL {
                if let Ok(found) = Programs::of(variant, family).find()
                    && !found.held.is_empty()
                {
                    let removed = backend.remove(family, found);
                    result = result.and(removed);
                }
            }
        }
        result
    }

    fn programs(&self, family: Family) -> Programs {
        Programs::of(self.variant.unwrap_or(Variant::Plain), family)
    }

    fn families(&self) -> &'static [Family] {
        if self.v4_only { &[Family::V4] } else { &Family::ALL }
    }

    /// Reads what the kernel holds of one family.
    fn read(&mut self, family: Family) -> Result<Found, ProgramError> {
        let mut found = self.programs(family).find()?;
        self.tables.get_mut(family).found(std::mem::take(&mut found.held));
        Ok(found)
    }

    fn actual(&self) -> Actual {
        let mut actual = Actual::default();
        for family in Family::ALL {
            let tables = self.tables.get(family);
            let frontends = tables.held().keys().filter_map(|key| read::frontend(key, family));
            actual.frontends.extend(frontends.map(|key| (key, Held::Unknown)));
            // All are told again: what nobody asks for goes.
            actual.addresses.extend(tables.known_addresses().map(|address| (address, None)));
        }
        actual
    }

    fn stage(&mut self, op: &Op) {
        match op {
            Op::Settings(settings) => {
                self.settings = Arc::clone(settings);
                for family in Family::ALL {
                    self.tables.get_mut(family).set_settings(settings);
                }
            }
            Op::Put { key, frontend } => {
                self.tables.get_mut(key.at.family()).set_frontend(key, Some(frontend));
            }
            Op::Remove { key } => self.tables.get_mut(key.at.family()).set_frontend(key, None),
            Op::Own { address, undefined } => {
                let tables = self.tables.get_mut(Family::of(address));
                tables.set_address(*address, Some(*undefined));
            }
            Op::Disown { address } => {
                self.tables.get_mut(Family::of(address)).set_address(*address, None);
            }
        }
    }

    /// Carries out what was taken in. Says whether that wrote anything.
    fn transact(&mut self) -> Result<bool, ProgramError> {
        if self.lost {
            for family in self.families() {
                self.read(*family)?;
            }
            self.lost = false;
        }
        let mut written = false;
        let mut result = Ok(());
        for family in self.families() {
            if self.tables.get_mut(*family).prepare() {
                let tables = self.tables.get(*family);
                let programs = self.programs(*family);
                result = result.and_then(|()| programs.restore_by(|pipe| tables.write(pipe)));
                written = true;
            }
        }
        for family in Family::ALL {
            match result {
                Ok(()) => self.tables.get_mut(family).commit(),
                // Of several tables some may have been changed.
                Err(_) => self.tables.get_mut(family).revert(),
            }
        }
        self.lost = result.is_err();
        result.map(|()| written)
    }

    fn set_charge(&mut self, charge: Charge) -> Result<(), ProgramError> {
        for family in Family::ALL {
            self.tables.get_mut(family).set_charge(charge);
        }
        self.transact().map(drop)
    }

    /// Lets loopback addresses out of the node, where they serve node ports.
    fn route_loopback(&self) {
        let is_needed = !self.settings.node_ports.v4.loopback_within.is_empty();
        let is_set = || fs::read_to_string(ROUTE_LOCALNET).is_ok_and(|text| text.trim() == "1");
        if is_needed
            && !is_set()
            && let Err(error) = fs::write(ROUTE_LOCALNET, "1")
        {
            warn!(
                "node ports are not served on 127.0.0.1: cannot write {ROUTE_LOCALNET}: {error}; \
                 let the proxy write it, or give --iptables-localhost-nodeports=false"
            );
        }
    }

    fn remove(&mut self, family: Family, found: Found) -> Result<(), RetireError> {
        let programs = self.programs(family);
        // The jumps first, one by one: whatever happens next, no packet comes through any more.
        let single = programs.single();
        for key in found.held.keys() {
            if let Key::Rule(table, chain, rule) = key
                && !names::is_ours(chain)
            {
                single.delete(table.name(), chain, rule).map_err(|error| {
                    let doing = format!("cannot remove the rule {rule:?} from {chain}: {error}");
                    RetireError { doing, source: None }
                })?;
            }
        }
        let tables = self.tables.get_mut(family);
        let asked: BTreeSet<(Table, Arc<str>)> = found.asked;
        let is_ours = |key: &Key| match key {
            Key::Chain(..) => true,
            Key::Rule(_, chain, _) => names::is_ours(chain),
        };
        tables.found(found.held.into_iter().filter(|(key, _)| is_ours(key)).collect());
        tables.remove_all(&asked);
        let removed = match tables.prepare() {
            true => programs.restore_by(|pipe| tables.write(pipe)),
            false => Ok(()),
        };
        tables.commit();
        removed.map_err(|error| RetireError::new("cannot remove the chains KUBE-*", error))
    }

    /// What the kernel can besides the usual.
    fn probe(&self, family: Family) -> Extras {
        let single = self.programs(family).single();
        let chain = format!("{}PROBE", names::ADDRESS_RANGE);
        let rule = format!("-m bpf --bytecode \"{}\" -j RETURN", fixed::is_itself(family));
        let tried =
            single.new_chain("nat", &chain).and_then(|()| single.append("nat", &chain, &rule));
        for result in [single.flush_chain("nat", &chain), single.delete_chain("nat", &chain)] {
            if let Err(error) = result {
                tracing::debug!("{chain}: {error}");
            }
        }
        Extras { bpf: tried.is_ok() }
    }
}

impl Default for Iptables {
    fn default() -> Self {
        Self::new()
    }
}

impl Backend for Iptables {
    fn name(&self) -> &'static str {
        "iptables"
    }

    fn supports(&self, frontend: &Frontend) -> Result<(), Unsupported> {
        Self::can(frontend)
    }

    fn prepare(&mut self) -> Result<Actual, PrepareError> {
        let cannot = |error| PrepareError::new("cannot read the tables of iptables", error);
        let variant = Variant::detect().map_err(cannot)?;
        self.variant = Some(variant);
        info!(%variant, "iptables");
        for family in Family::ALL {
            match self.read(family) {
                Ok(found) => {
                    let extras = self.probe(family);
                    let tables = self.tables.get_mut(family);
                    tables.set_extras(extras);
                    tables.set_charge(charge_of(&found));
                    tables.keep();
                }
                Err(error) if family == Family::V6 => {
                    warn!("IPv6 is not routed: {error}");
                    self.v4_only = true;
                }
                Err(error) => return Err(cannot(error)),
            }
        }
        Ok(self.actual())
    }

    fn apply(&mut self, ops: &[Op]) -> Applied {
        ops.iter().for_each(|op| self.stage(op));
        let result = self.transact();
        self.route_loopback();
        let of_op = |_: &Op| match &result {
            Ok(true) => Ok(Effect::Written),
            Ok(false) => Ok(Effect::Unchanged),
            Err(error) => Err(failed(error)),
        };
        Applied { results: ops.iter().map(of_op).collect() }
    }

    fn activate(&mut self) -> Result<(), ActivateError> {
        self.set_charge(Charge::Full)
            .map_err(|error| ActivateError::new("cannot hook the chains into the kernel", error))
    }

    fn drain(&mut self) -> Result<Drained, DrainError> {
        let found = self.variant;
        for variant in [Variant::Legacy, Variant::Nft, Variant::Plain] {
            if found == Some(variant) || variant.has_some_of_ours() {
                self.variant = Some(variant);
                self.lost = true;
                self.set_charge(Charge::Draining).map_err(|error| {
                    DrainError::new("cannot leave new connections alone", error)
                })?;
            }
        }
        self.variant = found;
        Ok(Drained { flows: None })
    }

    fn retire(&mut self) -> Result<(), RetireError> {
        Self::remove_all()?;
        *self = Self::new();
        Ok(())
    }

    fn audit(&mut self) -> Result<Option<Actual>, ReadError> {
        let mut is_whole = true;
        for family in self.families() {
            let found = self
                .programs(*family)
                .find()
                .map_err(|error| ReadError::new("cannot read the tables of iptables", error))?;
            let tables = self.tables.get_mut(*family);
            if tables.shape() != found.shape {
                is_whole = false;
                tables.found(found.held);
            }
        }
        Ok((!is_whole).then(|| self.actual()))
    }

    fn holds(&mut self, key: &FrontendKey, desired: &Frontend) -> Result<Holds, ReadError> {
        let family = key.at.family();
        if self.variant.is_none() {
            self.variant = Variant::detect().ok();
        }
        let found = self
            .programs(family)
            .find()
            .map_err(|error| ReadError::new("cannot read what the kernel holds", error))?;
        let rules = found.held.keys().filter(|held| read::frontend(held, family) == Some(*key));
        let rules: Vec<&Key> = rules.collect();
        if rules.is_empty() {
            return Ok(Holds::Nothing);
        }
        let leads_to = endpoints(&found, &rules);
        let routes = &desired.routes;
        let desired: BTreeSet<SocketAddr> = [&routes.pod, &routes.node, &routes.outside]
            .into_iter()
            .flat_map(|route| match &route.target {
                Target::Endpoints(set) => set.iter().map(|endpoint| endpoint.address).collect(),
                Target::Drop | Target::Reject => Vec::new(),
            })
            .collect();
        if leads_to == desired {
            return Ok(Holds::Same);
        }
        let shown: Vec<String> = leads_to.iter().map(ToString::to_string).collect();
        Ok(Holds::Different(format!("endpoints {}", shown.join(" "))))
    }
}

/// The endpoints that rules lead to, through chains.
fn endpoints(found: &Found, rules: &[&Key]) -> BTreeSet<SocketAddr> {
    let rule = |key: &&Key| match key {
        Key::Rule(Table::Nat, _, rule) => Some(rule.to_string()),
        _ => None,
    };
    let mut open: Vec<String> = rules.iter().filter_map(rule).collect();
    let mut seen = BTreeSet::new();
    let mut endpoints = BTreeSet::new();
    while let Some(rule) = open.pop() {
        let endpoint = read::after(&rule, "--to-destination");
        endpoints.extend(endpoint.and_then(|text| text.parse::<SocketAddr>().ok()));
        let Some(target) = target(&rule) else { continue };
        if seen.insert(target.to_owned())
            && let Some(chain) = found.held.get(&Key::Chain(Table::Nat, target.into()))
        {
            open.extend(chain.lines().map(str::to_owned));
        }
    }
    endpoints
}

/// How far a former process was in charge.
fn charge_of(found: &Found) -> Charge {
    let n_jumps = |chain: &str| found.shape.get(&(Table::Nat, chain.into())).copied();
    match (n_jumps("PREROUTING"), n_jumps("POSTROUTING")) {
        (Some(1..), _) => Charge::Full,
        (_, Some(1..)) => Charge::Draining,
        _ => Charge::No,
    }
}

fn failed(error: &ProgramError) -> ApplyError {
    let is_locked = matches!(error, ProgramError::Refused { words, .. } if words.contains("lock"));
    ApplyError {
        doing: error.to_string(),
        // Whoever has it may go on for a while.
        class: ApplyErrorClass::Retry { after: if is_locked { PATIENCE / 5 } else { RETRY } },
        source: std::error::Error::source(error).map(|source| source.to_string().into()),
    }
}
