//! `cargo xtask demo`: from a fresh checkout to a Service on the screen.

use std::ffi::OsString;

use anyhow::bail;

use crate::build::Build;
use crate::step::Step;
use crate::workspace::{Workspace, is_root};

/// Show a Service routed by eBPF on this machine: set up, build, run `fairlead demo`
#[derive(Debug, clap::Args)]
pub(crate) struct Demo {
    /// Passed on to `fairlead demo`; `--help` among them lists what it takes
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

impl Demo {
    pub(crate) fn run(&self, workspace: &Workspace) -> anyhow::Result<()> {
        if !is_root() {
            bail!(
                "the demo makes network namespaces and loads eBPF programs, which needs root:\n  \
                 sudo env \"PATH=$PATH\" cargo xtask demo"
            );
        }
        Build::default().run(workspace)?;
        let binary = workspace.target().join("debug/fairlead");
        // It replaces us: Ctrl-C is the demo's own business, and its exit code is ours.
        Step::new("demo", binary).args(["demo"]).args(&self.args).replace()
    }
}
