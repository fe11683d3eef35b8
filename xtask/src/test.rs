//! `cargo xtask test`: every tier of tests that this machine can run.

use anyhow::bail;

use crate::build;
use crate::setup::{self, Need};
use crate::vm::Vm;
use crate::workspace::{Workspace, is_root, which};

/// Run the tests: set up, build, then doctests, unit tests, the companion and kernel tests
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub(crate) struct Test {
    /// Leave out the kernel tests, which need root
    #[arg(long)]
    unprivileged: bool,
    /// Also what takes minutes of the companion's and the kernel tests, and boot Debian's 6.1 and 6.12 kernels
    /// under qemu, as `cargo xtask vm` does
    #[arg(long, conflicts_with = "unprivileged")]
    all: bool,
    /// Instead of everything else: the pods' tests once more, in containerd; installs it
    #[arg(long, conflicts_with_all = ["unprivileged", "all"])]
    containerd: bool,
}

impl Test {
    pub(crate) fn run(self, workspace: &Workspace) -> anyhow::Result<()> {
        if !self.unprivileged && !is_root() {
            bail!(
                "the kernel tests load eBPF programs and make network namespaces, which needs \
                 root:\n  sudo env \"PATH=$PATH\" cargo xtask test\nor leave them out:\n  \
                 cargo xtask test --unprivileged"
            );
        }
        setup::run(workspace, Need::Test)?;
        if self.containerd {
            setup::run(workspace, Need::Image)?;
        }
        build::objects(workspace)?;
        binaries(workspace)?;
        if self.containerd {
            for line in nextest(workspace, "pods-containerd")? {
                eprintln!("{line}");
            }
            return Ok(());
        }
        doctests(workspace)?;
        if self.all {
            Vm::default().run(workspace)?;
        }
        let mut profiles = vec!["default", "control"];
        // Large, so only `cargo xtask ci` and `cargo xtask setup` install it.
        if which("chromium").is_some() {
            profiles.push("browser");
        }
        if !self.unprivileged {
            profiles.push("kernel");
        }
        if self.all {
            profiles.extend(["control-long", "kernel-long"]);
        }
        let mut summary = Vec::new();
        for profile in &profiles {
            summary.extend(nextest(workspace, profile)?);
        }
        eprintln!("── tests passed: {}", profiles.join(", "));
        for line in summary {
            eprintln!("{line}");
        }
        Ok(())
    }
}

/// The tests and the binary that they run, in one go: built apart, their dependencies would have
/// other features and be built twice.
fn binaries(workspace: &Workspace) -> anyhow::Result<()> {
    workspace
        .cargo("fairlead and its tests")
        .args(["build", "--workspace", "--exclude", "prog", "--bins", "--tests"])
        .without_env(&["FAIRLEAD_EBPF_OBJECT"])
        .show()
}

/// Nextest leaves these out.
fn doctests(workspace: &Workspace) -> anyhow::Result<()> {
    workspace
        .cargo("doctests")
        .args(["test", "--doc", "--workspace", "--exclude", "prog", "--quiet"])
        .show()
}

/// Runs one profile of `.config/nextest.toml`, and returns nextest's summary.
fn nextest(workspace: &Workspace, profile: &str) -> anyhow::Result<Vec<String>> {
    workspace
        .cargo(&format!("tests, profile {profile}"))
        .args(["nextest", "run", "--workspace", "--exclude", "prog", "--profile", profile])
        .remedy(format!("One of them again: cargo nextest run --profile {profile} NAME"))
        .show_keeping(|line| line.contains("Summary ["))
}
