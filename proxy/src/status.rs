//! What a proxy tells about itself, in a file that `fairlead status` reads.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::plan::{Frontend, ServicePlan, Target};
use crate::sync::Round;

/// Where the files are.
pub const STATE_DIR: &str = "/run/fairlead";

/// What a proxy tells about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The process.
    pub pid: u32,
    /// `--proxy-mode`.
    pub mode: String,
    /// The name of the node.
    pub node: String,
    /// It answers the cluster's names itself ([`crate::config::NodeConfig::answers_names`]).
    #[serde(default)]
    pub answers_names: bool,
    /// Where the objects come from.
    pub source: String,
    /// What is wrong with the source now, by kind.
    pub source_errors: BTreeMap<String, String>,
    /// The first full list is in the kernel.
    pub in_sync: bool,
    /// The cgroup whose sockets are translated.
    pub cgroup: PathBuf,
    /// How many Services are routed.
    pub n_services: usize,
    /// How many frontends they have.
    pub n_frontends: usize,
    /// How many endpoints those lead to, together.
    pub n_endpoints: usize,
    /// How long the last round took, from the update to the kernel, in microseconds.
    pub last_round_us: u64,
    /// How many operations of the last round failed.
    pub last_failed: usize,
    /// How many connected UDP sockets were ended because their endpoint had gone.
    pub n_sockets_destroyed: u64,
    /// How many UDP flows were removed from the kernel's conntrack for the same reason.
    #[serde(default)]
    pub n_flows_removed: u64,
    /// The pods whose sockets are left alone, by name; those whose network namespace was not found say so.
    #[serde(default)]
    pub left_alone: Vec<String>,
    /// How often somebody else had changed what was programmed, and it was repaired.
    #[serde(default)]
    pub n_repairs: u64,
    /// Everything that is left out, and why.
    pub problems: Vec<String>,
}

impl Status {
    /// Takes over what a round did.
    pub fn show(&mut self, round: &Round) {
        let plan = &round.plan;
        self.in_sync = true;
        let is_routed =
            |service: &&Arc<ServicePlan>| service.frontends.len() > service.refused.len();
        self.n_services = plan.services.values().filter(is_routed).count();
        self.n_frontends = plan.frontends.len();
        self.n_endpoints = plan.frontends.values().map(n_endpoints).sum();
        self.last_round_us = u64::try_from(round.took.as_micros()).unwrap_or(u64::MAX);
        self.last_failed = round.n_failed;
        self.n_repairs = round.n_repairs;
        self.problems = round
            .snapshot
            .problems
            .values()
            .flat_map(|problems| problems.iter())
            .chain(plan.problems())
            .chain(&round.dropped)
            .map(ToString::to_string)
            .collect();
    }

    /// Whether the process is there and is a fairlead.
    pub fn is_running(&self) -> bool {
        fs::read_to_string(format!("/proc/{}/comm", self.pid))
            .is_ok_and(|name| name.trim_end() == "fairlead")
    }

    /// Writes the file, whole.
    ///
    /// # Errors
    /// The directory cannot be made or written.
    pub fn write(&self, file: &Path) -> io::Result<()> {
        if let Some(dir) = file.parent() {
            fs::create_dir_all(dir)?;
        }
        let fresh = file.with_extension("new");
        fs::write(&fresh, serde_json::to_vec_pretty(self)?)?;
        fs::rename(fresh, file)
    }

    /// Reads the file.
    ///
    /// # Errors
    /// It is not there, or not a status.
    pub fn read(file: &Path) -> io::Result<Self> {
        Ok(serde_json::from_slice(&fs::read(file)?)?)
    }
}

/// The file of the proxy that pins under a directory.
pub fn file_of(bpffs: &Path) -> PathBuf {
    let absolute = std::path::absolute(bpffs).unwrap_or_else(|_| bpffs.to_owned());
    let name: String = absolute
        .to_string_lossy()
        .trim_matches('/')
        .chars()
        .map(|c| if c == '/' { '-' } else { c })
        .collect();
    Path::new(STATE_DIR).join(format!("{name}.json"))
}

fn n_endpoints(frontend: &Arc<Frontend>) -> usize {
    match &frontend.routes.pod.target {
        Target::Endpoints(set) => set.len(),
        Target::Drop | Target::Reject => 0,
    }
}
