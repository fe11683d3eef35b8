//! A backend of tables in memory, whose operations can be made to fail.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::backend::{
    ActivateError, Applied, ApplyError, ApplyErrorClass, Backend, DrainError, Drained, Effect,
    Holds, PrepareError, ReadError, RetireError, Unsupported,
};
use crate::delta::{Actual, Held, Op};
use crate::plan::{Frontend, FrontendKey, Settings, Undefined};

/// What stands in for the kernel: survives the [`Fake`] that filled it, as pinned maps do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// The settings.
    pub settings: Option<Arc<Settings>>,
    /// The frontends.
    pub frontends: BTreeMap<FrontendKey, Arc<Frontend>>,
    /// What happens at other ports of Services' addresses.
    pub addresses: BTreeMap<IpAddr, Undefined>,
    /// Whether packets go this way.
    pub active: bool,
}

/// A backend of tables in memory.
#[derive(Debug, Default)]
pub struct Fake {
    tables: Tables,
    /// Operations that fail, counted from the first one applied, and how.
    faults: BTreeMap<usize, Fault>,
    refused: BTreeSet<&'static str>,
    n_applied: usize,
    n_written: usize,
    /// Somebody else changed the tables, and that was not noticed yet.
    changed: bool,
    n_interferences: usize,
}

/// How an operation fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What its error says about itself.
    pub class: ApplyErrorClass,
    /// Whether the operation was carried out nevertheless, and only its answer was lost.
    pub carried_out: bool,
}

impl Fault {
    /// It fails, and works when tried again.
    pub const RETRY: Self = Self {
        class: ApplyErrorClass::Retry { after: Duration::from_millis(100) },
        carried_out: false,
    };
}

impl Fake {
    /// A backend that finds what a former one left.
    pub fn with_tables(tables: Tables) -> Self {
        Self { tables, ..Self::default() }
    }

    /// Makes the operation of that number fail, counted from the first one applied.
    pub fn fail(&mut self, op_idx: usize, fault: Fault) {
        self.faults.insert(op_idx, fault);
    }

    /// Refuses what needs a feature: `weight`, `affinity`, `source-ranges`.
    pub fn refuse(&mut self, feature: &'static str) {
        self.refused.insert(feature);
    }

    /// Empties the tables as somebody else would, and does so again as often as told when they are
    /// activated, which fails then.
    pub fn empty(&mut self, n_again: usize) {
        self.tables = Tables::default();
        self.changed = true;
        self.n_interferences = n_again;
    }

    /// What the tables hold now.
    pub const fn tables(&self) -> &Tables {
        &self.tables
    }

    /// How many operations were handed to it.
    pub const fn n_applied(&self) -> usize {
        self.n_applied
    }

    /// How many operations wrote something.
    pub const fn n_written(&self) -> usize {
        self.n_written
    }

    fn carry_out(&mut self, op: &Op) -> Effect {
        let changed = match op {
            Op::Settings(settings) => {
                self.tables.settings.replace(Arc::clone(settings)).as_ref() != Some(settings)
            }
            Op::Put { key, frontend } => {
                self.tables.frontends.insert(*key, Arc::clone(frontend)).as_ref() != Some(frontend)
            }
            Op::Own { address, undefined } => {
                self.tables.addresses.insert(*address, *undefined) != Some(*undefined)
            }
            Op::Disown { address } => self.tables.addresses.remove(address).is_some(),
            Op::Remove { key } => self.tables.frontends.remove(key).is_some(),
        };
        if changed {
            self.n_written += 1;
            Effect::Written
        } else {
            Effect::Unchanged
        }
    }
}

impl Backend for Fake {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn supports(&self, frontend: &Frontend) -> Result<(), Unsupported> {
        let weighted = [&frontend.routes.pod, &frontend.routes.node, &frontend.routes.outside]
            .into_iter()
            .any(|route| matches!(&route.target, crate::plan::Target::Endpoints(set) if !set.is_uniform()));
        let asked = [
            ("weight", weighted, "metadata.annotations[fairlead.dev/weight]"),
            ("affinity", frontend.affinity.is_some(), "spec.sessionAffinity"),
            ("source-ranges", frontend.source_ranges.is_some(), "spec.loadBalancerSourceRanges"),
        ];
        match asked.iter().find(|(feature, asked, _)| *asked && self.refused.contains(feature)) {
            Some((feature, _, field)) => Err(Unsupported {
                field: (*field).to_owned(),
                reason: format!("this backend knows no {feature}; use another one"),
            }),
            None => Ok(()),
        }
    }

    fn prepare(&mut self) -> Result<Actual, PrepareError> {
        Ok(Actual {
            settings: self.tables.settings.clone(),
            frontends: self.tables.frontends.keys().map(|key| (*key, Held::Unknown)).collect(),
            addresses: self
                .tables
                .addresses
                .iter()
                .map(|(address, undefined)| (*address, Some(*undefined)))
                .collect(),
        })
    }

    fn apply(&mut self, ops: &[Op]) -> Applied {
        let mut applied = Applied::default();
        for op in ops {
            let fault = self.faults.get(&self.n_applied).copied();
            self.n_applied += 1;
            applied.results.push(match fault {
                None => Ok(self.carry_out(op)),
                Some(fault) => {
                    if fault.carried_out {
                        self.carry_out(op);
                    }
                    Err(ApplyError {
                        doing: format!("carry out {op:?}"),
                        class: fault.class,
                        source: None,
                    })
                }
            });
        }
        applied
    }

    fn activate(&mut self) -> Result<(), ActivateError> {
        if let Some(left) = self.n_interferences.checked_sub(1) {
            self.empty(left);
            return Err(ActivateError::new(
                "cannot activate",
                std::io::Error::from(std::io::ErrorKind::NotFound),
            ));
        }
        self.tables.active = true;
        Ok(())
    }

    fn drain(&mut self) -> Result<Drained, DrainError> {
        self.tables.active = false;
        Ok(Drained { flows: Some(0) })
    }

    fn retire(&mut self) -> Result<(), RetireError> {
        self.tables = Tables::default();
        Ok(())
    }

    fn audit(&mut self) -> Result<Option<Actual>, ReadError> {
        if !std::mem::take(&mut self.changed) {
            return Ok(None);
        }
        self.prepare().map(Some).map_err(|error| ReadError::new("cannot audit", error))
    }

    fn holds(&mut self, key: &FrontendKey, desired: &Frontend) -> Result<Holds, ReadError> {
        Ok(match self.tables.frontends.get(key) {
            None => Holds::Nothing,
            Some(held) if **held == *desired => Holds::Same,
            Some(held) => Holds::Different(format!(
                "pod {} · node {} · outside {}",
                held.routes.pod, held.routes.node, held.routes.outside
            )),
        })
    }
}
