//! `cargo xtask ci`: everything a change must pass, cheapest first.

use anyhow::ensure;

use crate::build::{self, ebpf_cargo};
use crate::platform::{self, Compiler};
use crate::setup::{self, Need};
use crate::test::Test;
use crate::tidy;
use crate::workspace::Workspace;

/// Check everything that a change must pass: format, tidy, clippy, docs, tests
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Ci {
    /// Leave out the tests, which `cargo xtask test` runs
    #[arg(long)]
    no_tests: bool,
}

impl Ci {
    pub(crate) fn run(self, workspace: &Workspace) -> anyhow::Result<()> {
        for component in ["fmt", "clippy"] {
            ensure!(
                platform::has_cargo(component),
                "cargo {component} is not here: rustup component add rustfmt clippy"
            );
        }
        format(workspace)?;
        tidy::run(workspace)?;
        setup::run(workspace, Need::Ci)?;
        build::objects(workspace)?;
        clippy(workspace)?;
        docs(workspace)?;
        deny(workspace)?;
        if self.no_tests { Ok(()) } else { Test::default().run(workspace) }
    }
}

fn format(workspace: &Workspace) -> anyhow::Result<()> {
    workspace
        .cargo("format")
        .args(["fmt", "--all", "--check"])
        .remedy("`cargo fmt --all` formats.")
        .show()
}

/// Once for the machine, and once for the BPF target.
fn clippy(workspace: &Workspace) -> anyhow::Result<()> {
    workspace
        .cargo("clippy")
        .args(["clippy", "--workspace", "--exclude", "prog", "--all-targets"])
        .args(["--", "--deny", "warnings"])
        .show()?;
    for features in [&[][..], &["--features", "log"][..]] {
        ebpf_cargo(workspace, Compiler::choose(), "clippy for BPF", "clippy")
            .args(features)
            .args(["--", "--deny", "warnings"])
            .show()?;
    }
    Ok(())
}

fn docs(workspace: &Workspace) -> anyhow::Result<()> {
    workspace
        .cargo("docs")
        .args(["doc", "--workspace", "--exclude", "prog", "--no-deps"])
        .env("RUSTDOCFLAGS", "--deny warnings")
        .show()
}

/// Licences, duplicates and sources; optional, because it takes minutes to build.
fn deny(workspace: &Workspace) -> anyhow::Result<()> {
    if !platform::has_cargo("deny") {
        eprintln!("── deny: left out, cargo-deny is not installed (cargo install cargo-deny)");
        return Ok(());
    }
    workspace
        .cargo("deny")
        .args(["deny", "--offline", "check", "bans", "licenses", "sources"])
        .show()
}
