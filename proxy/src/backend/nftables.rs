//! nftables: the plan in maps of two tables of our own, `ip fairlead` and `ip6 fairlead`.
//!
//! ```text
//!  ops ─▶ tables (what changes) ─▶ text ─▶ nft -f - : one transaction, or nothing
//!                    ▲
//!  nft -j list ──────┘ at the start, and whenever it is not known what a transaction did
//! ```
//!
//! There is no chain for a Service or an endpoint, only elements of maps, so a change costs what
//! changes, however much there is. `docs/design/nftables.md` has the tables.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::name::Family;

mod element;
mod generation;
mod held;
mod own_dns;
mod program;
mod read;
mod rules;
mod sets;
mod table;

use held::Held as Elements;
pub use own_dns::{OwnDnsRules, OwnDnsRulesError, OwnServer};
use program::NftError;
use table::Table;

use crate::backend::{
    ActivateError, Applied, ApplyError, ApplyErrorClass, Backend, DrainError, Drained, Effect,
    Holds, PrepareError, ReadError, RetireError, Unsupported,
};
use crate::by_family::ByFamily;
use crate::delta::{Actual, Held, Op};
use crate::plan::{EndpointSet, Frontend, FrontendKey, Settings, Target};

/// The tables' name.
const TABLE: &str = "fairlead";
/// The bit of a packet's mark that has it masqueraded, kube-proxy's.
const MASQUERADE_BIT: u32 = 1 << 14;
/// How long a set stays after the last frontend that led to it. A packet is done with it
/// microseconds later.
const REST: Duration = Duration::from_secs(1);
/// How many operations one transaction carries out: the kernel holds a lock meanwhile.
const CHUNK: usize = 512;
/// How many endpoints a set may have, each as often as its weight says.
const MOST_SLOTS: usize = 16_384;
/// How long to wait first before what failed is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// The nftables dataplane of one node.
#[derive(Debug)]
pub struct Nftables {
    tables: ByFamily<Table>,
    started: Instant,
    /// The tables are not there, or are another schema's: the first transaction makes them.
    missing: ByFamily<Missing>,
    settings: Arc<Settings>,
    active: bool,
    /// It is not known what the last transaction did.
    lost: bool,
    /// The number of the ruleset when it was known to hold all that was applied.
    generation: Option<u32>,
}

/// What a family lacks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Missing {
    /// Nothing.
    #[default]
    Nothing,
    /// The table.
    Table,
    /// A table of this schema: the other one goes.
    Schema,
}

impl Nftables {
    /// A dataplane that knows of nothing.
    pub fn new() -> Self {
        Self {
            tables: ByFamily::from_fn(|family| {
                Table::adopt(family, Elements::default(), HashMap::new())
            }),
            started: Instant::now(),
            missing: ByFamily { v4: Missing::Table, v6: Missing::Table },
            settings: Arc::default(),
            active: false,
            lost: false,
            generation: None,
        }
    }

    /// Whether it can do what a frontend asks; needs no kernel.
    ///
    /// # Errors
    /// What it cannot do, naming the Service's field.
    pub fn can(frontend: &Frontend) -> Result<(), Unsupported> {
        let routes = &frontend.routes;
        for route in [&routes.pod, &routes.node, &routes.outside] {
            if let Target::Endpoints(set) = &route.target
                && slots(set).len() > MOST_SLOTS
            {
                return Err(Unsupported {
                    field: "endpoints".to_owned(),
                    reason: format!(
                        "more than {MOST_SLOTS} endpoints of one Service, each counted as often \
                         as its weight says; split the Service, or let weights have a common \
                         divisor"
                    ),
                });
            }
        }
        Ok(())
    }

    /// Reads what the kernel holds of one family.
    fn read(&mut self, family: Family) -> Result<(), NftError> {
        let listed = read::table(family)?;
        let (missing, held) = match listed {
            None => (Missing::Table, Elements::default()),
            Some(listed) if !listed.is_ours => (Missing::Schema, Elements::default()),
            Some(listed) => {
                self.active |= listed.is_active;
                (Missing::Nothing, listed.elements)
            }
        };
        *self.missing.get_mut(family) = missing;
        self.tables.get_mut(family).revert(Some(held));
        Ok(())
    }

    fn actual(&self) -> Actual {
        let mut actual = Actual::default();
        for family in Family::ALL {
            let table = self.tables.get(family);
            actual.frontends.extend(table.frontends().map(|key| (key, Held::Unknown)));
            let addresses = table.addresses();
            actual.addresses.extend(addresses.map(|(ip, undefined)| (ip, Some(undefined))));
        }
        actual
    }

    /// Takes an operation into the next transaction. Says whether it changes anything.
    fn stage(&mut self, op: &Op) -> Result<bool, ApplyError> {
        Ok(match op {
            Op::Settings(settings) => {
                self.settings = Arc::clone(settings);
                true
            }
            Op::Put { key, frontend } => self.tables.get_mut(key.at.family()).put(key, frontend)?,
            Op::Remove { key } => self.tables.get_mut(key.at.family()).remove(key),
            Op::Own { address, undefined } => {
                self.tables.get_mut(Family::of(address)).own(*address, Some(*undefined))
            }
            Op::Disown { address } => self.tables.get_mut(Family::of(address)).own(*address, None),
        })
    }

    /// Carries out what was taken in, and `more`.
    fn transact(&mut self, with_settings: bool, more: &str) -> Result<(), NftError> {
        let now = self.started.elapsed();
        let mut text = String::new();
        for family in Family::ALL {
            match self.missing.get(family) {
                Missing::Nothing => {}
                Missing::Table => text += &rules::create(family),
                Missing::Schema => {
                    let ip = rules::family_name(family);
                    text += &format!("delete table {ip} {TABLE}\n{}", rules::create(family));
                }
            }
            let is_new = *self.missing.get(family) != Missing::Nothing;
            text += &self.tables.get_mut(family).render(now);
            if with_settings || is_new {
                text += &rules::settings(family, &self.settings);
            }
            if is_new && self.active {
                text += &rules::hooks(family);
            }
        }
        text += more;
        if text.is_empty() {
            return Ok(());
        }
        let before = generation::read().ok();
        program::transact(&text)?;
        // Unless somebody else has changed something as well, it is known what the kernel holds.
        let is_ours = before == self.generation && before.is_some();
        let after = generation::read().ok().filter(|after| before.map(|n| n + 1) == Some(*after));
        self.generation = after.filter(|_| is_ours);
        for family in Family::ALL {
            self.tables.get_mut(family).commit(now);
            *self.missing.get_mut(family) = Missing::Nothing;
        }
        Ok(())
    }

    /// Carries out some operations in one transaction; where that is refused, each half by itself,
    /// down to the one that cannot be done.
    fn carry_out(&mut self, ops: &[Op], results: &mut Vec<Result<Effect, ApplyError>>) {
        let mut staged = Vec::with_capacity(ops.len());
        for op in ops {
            staged.push(self.stage(op).map(|written| match written {
                true => Effect::Written,
                false => Effect::Unchanged,
            }));
        }
        let with_settings = ops.iter().any(|op| matches!(op, Op::Settings(_)));
        match self.transact(with_settings, "") {
            Ok(()) => results.extend(staged),
            Err(NftError::Refused { words, .. }) if ops.len() > 1 && !is_about_us(&words) => {
                self.recover(false);
                let (first, second) = ops.split_at(ops.len() / 2);
                self.carry_out(first, results);
                self.carry_out(second, results);
            }
            Err(error) => {
                self.recover(!matches!(error, NftError::Refused { .. }));
                results.extend(staged.into_iter().map(|staged| {
                    staged.and_then(|effect| match effect {
                        Effect::Unchanged => Ok(effect),
                        Effect::Written => Err(failed(&error)),
                    })
                }));
            }
        }
    }

    /// Goes back to what the kernel holds: as before, unless that is not known.
    fn recover(&mut self, lost: bool) {
        self.lost |= lost;
        for family in Family::ALL {
            self.tables.get_mut(family).revert(None);
        }
    }
}

impl Default for Nftables {
    fn default() -> Self {
        Self::new()
    }
}

impl Backend for Nftables {
    fn name(&self) -> &'static str {
        "nftables"
    }

    fn supports(&self, frontend: &Frontend) -> Result<(), Unsupported> {
        Self::can(frontend)
    }

    fn prepare(&mut self) -> Result<Actual, PrepareError> {
        for family in Family::ALL {
            self.read(family).map_err(|error| {
                PrepareError::new(
                    format_args!("cannot read the table {} {TABLE}", rules::family_name(family)),
                    error,
                )
            })?;
        }
        Ok(self.actual())
    }

    fn apply(&mut self, ops: &[Op]) -> Applied {
        let mut results = Vec::with_capacity(ops.len());
        if self.lost {
            if let Err(error) = Family::ALL.into_iter().try_for_each(|family| self.read(family)) {
                results.extend(ops.iter().map(|_| Err(failed(&error))));
                return Applied { results };
            }
            self.lost = false;
        }
        // A table that packets come through is replaced as a whole.
        let is_replaced = Family::ALL.iter().any(|f| *self.missing.get(*f) != Missing::Nothing);
        let n = if is_replaced && self.active { ops.len().max(1) } else { CHUNK };
        for ops in ops.chunks(n) {
            self.carry_out(ops, &mut results);
        }
        Applied { results }
    }

    fn activate(&mut self) -> Result<(), ActivateError> {
        let hooks = Family::ALL.map(rules::hooks).concat();
        self.transact(true, &hooks)
            .map_err(|error| ActivateError::new("cannot hook the tables into the kernel", error))?;
        self.active = true;
        Ok(())
    }

    fn drain(&mut self) -> Result<Drained, DrainError> {
        if self.active {
            program::transact(&Family::ALL.map(rules::drain).concat())
                .map_err(|error| DrainError::new("cannot leave new connections alone", error))?;
            self.active = false;
        }
        Ok(Drained { flows: None })
    }

    fn retire(&mut self) -> Result<(), RetireError> {
        for family in Family::ALL {
            let ip = rules::family_name(family);
            let text = format!("add table {ip} {TABLE}\ndelete table {ip} {TABLE}\n");
            program::transact(&text).map_err(|error| {
                RetireError::new(format_args!("cannot remove the table {ip} {TABLE}"), error)
            })?;
        }
        *self = Self::new();
        Ok(())
    }

    fn audit(&mut self) -> Result<Option<Actual>, ReadError> {
        let generation = generation::read().ok();
        if generation.is_some() && generation == self.generation {
            return Ok(None);
        }
        let mut is_whole = true;
        for family in Family::ALL {
            let ip = rules::family_name(family);
            let listed = read::table(family).map_err(|error| {
                ReadError::new(format_args!("cannot read the table {ip} {TABLE}"), error)
            })?;
            let table = self.tables.get_mut(family);
            let settings = rules::settings(family, &self.settings);
            let hooks = if self.active { rules::hooks(family) } else { String::new() };
            let n_rules = table.n_rules() + rules::n_rules(&settings) + rules::n_rules(&hooks);
            let missing = match &listed {
                None => Missing::Table,
                Some(listed) if !listed.is_ours || listed.n_rules != n_rules => Missing::Schema,
                Some(listed) if table.holds(&listed.elements) => continue,
                Some(_) => Missing::Nothing,
            };
            is_whole = false;
            *self.missing.get_mut(family) = missing;
            let found = listed.filter(|_| missing == Missing::Nothing);
            table.revert(Some(found.map(|listed| listed.elements).unwrap_or_default()));
        }
        // Read before the tables were: what changed meanwhile is found the next time.
        self.generation = generation.filter(|_| is_whole);
        Ok((!is_whole).then(|| self.actual()))
    }

    fn holds(&mut self, key: &FrontendKey, desired: &Frontend) -> Result<Holds, ReadError> {
        let family = key.at.family();
        self.read(family)
            .map_err(|error| ReadError::new("cannot read what the kernel holds", error))?;
        let table = self.tables.get_mut(family);
        if !table.has(key) {
            return Ok(Holds::Nothing);
        }
        let differs = table
            .put(key, desired)
            .map_err(|error| ReadError { doing: error.to_string(), source: None })?;
        let shown = table.shown(key);
        table.revert(None);
        Ok(if differs { Holds::Different(shown) } else { Holds::Same })
    }
}

/// Whether there is a program `nft`. Without it there is nothing of ours in nftables either.
pub fn is_installed() -> bool {
    program::version().is_ok()
}

/// Whether `nft` may be used here.
pub fn is_usable() -> bool {
    program::has("ip", TABLE).is_ok()
}

/// Whether there is a table of ours.
pub fn is_there() -> bool {
    let is_there = |family| matches!(program::has(rules::family_name(family), TABLE), Ok(true));
    Family::ALL.into_iter().any(is_there)
}

/// Whether new connections come through the tables.
pub fn is_hooked() -> bool {
    Family::ALL.into_iter().all(|family| {
        program::list_chain(rules::family_name(family), TABLE, "prerouting")
            .is_ok_and(|chain| chain.windows(4).any(|word| word == b"goto"))
    })
}

/// The endpoints of a set, each as often as its weight says.
fn slots(set: &EndpointSet) -> Arc<[SocketAddr]> {
    let divisor = set.iter().fold(0, |divisor, endpoint| gcd(divisor, endpoint.weight)).max(1);
    set.iter()
        .flat_map(|endpoint| {
            std::iter::repeat_n(endpoint.address, usize::from(endpoint.weight / divisor).max(1))
        })
        .collect()
}

const fn gcd(a: u16, b: u16) -> u16 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Whether no operation can be done, whichever it is.
fn is_about_us(words: &str) -> bool {
    words.contains("Operation not permitted") || words.contains("No buffer space")
}

fn failed(error: &NftError) -> ApplyError {
    ApplyError {
        doing: error.to_string(),
        class: ApplyErrorClass::Retry { after: RETRY },
        source: std::error::Error::source(error).map(|source| source.to_string().into()),
    }
}
