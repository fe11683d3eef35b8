//! `cargo xtask build`: the eBPF programs, then the binary that carries them.

use std::fs;
use std::path::Path;

use anyhow::Context as _;

use crate::platform::{self, Compiler};
use crate::setup::{self, Need, SCRUB};
use crate::step::Step;
use crate::workspace::Workspace;

const TARGET: &str = "bpfel-unknown-none";

/// Build the eBPF programs, then the binary that carries them
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub(crate) struct Build {
    /// Optimise: leaves target/release/fairlead
    #[arg(long)]
    pub(crate) release: bool,
    /// Embed the eBPF programs that log one record per hook, for debugging
    #[arg(long)]
    pub(crate) ebpf_log: bool,
}

impl Build {
    pub(crate) fn run(self, workspace: &Workspace) -> anyhow::Result<()> {
        setup::run(workspace, Need::Build)?;
        objects(workspace)?;
        let release = self.release.then_some("--release");
        let mut cargo = workspace
            .cargo("fairlead")
            .args(["build", "--package", "fairlead", "--bins"])
            .args(release);
        // The object without logging lies where the build looks by itself. Naming it would make
        // cargo build anew whenever the developer's own `cargo build` comes in between.
        if self.ebpf_log {
            cargo = cargo.env("FAIRLEAD_EBPF_OBJECT", workspace.ebpf().join("prog-log.o"));
        } else {
            cargo = cargo.without_env(&["FAIRLEAD_EBPF_OBJECT"]);
        }
        cargo.show()
    }
}

/// Builds both eBPF objects: `prog.o`, and `prog-log.o` for debugging and its tests.
pub(crate) fn objects(workspace: &Workspace) -> anyhow::Result<()> {
    let compiler = Compiler::choose();
    for (features, object) in [(&[][..], "prog.o"), (&["--features", "log"][..], "prog-log.o")] {
        ebpf_cargo(workspace, compiler, &format!("ebpf {object}"), "build")
            .args(features)
            .remedy("`cargo xtask setup` installs its compiler and linker.")
            .show()?;
        let built = workspace.ebpf().join("build").join(TARGET).join("bpf/prog");
        copy_if_changed(&built, &workspace.ebpf().join(object))?;
    }
    Ok(())
}

/// A cargo command for `ebpf/prog` and the BPF target, with the compiler that serves it.
pub(crate) fn ebpf_cargo(
    workspace: &Workspace,
    compiler: Compiler,
    label: &str,
    command: &str,
) -> Step {
    let step = match (compiler, command) {
        (Compiler::Nightly, _) => {
            Step::new(label, "rustup").args(["run", "nightly", "cargo", command])
        }
        // Cargo would find rustup's cargo-clippy before Debian's.
        (Compiler::Debian, "clippy") => Step::new(label, "/usr/bin/cargo-clippy")
            .args(["clippy"])
            .env("CARGO", "/usr/bin/cargo"),
        (Compiler::Debian, _) => Step::new(label, "/usr/bin/cargo").args([command]),
    };
    let step = step
        .args(["--package", "prog", "--profile", "bpf", "--target", TARGET])
        .dir(workspace.root())
        .without_env(SCRUB)
        .without_env(&["RUSTUP_TOOLCHAIN"])
        .env("CARGO_TARGET_DIR", workspace.ebpf().join("build"))
        .env("CARGO_ENCODED_RUSTFLAGS", rust_flags());
    match compiler {
        Compiler::Nightly => step.args(["-Z", "build-std=core"]),
        // aya-ebpf uses what only nightly allows; the core library comes prebuilt.
        Compiler::Debian => step.env("RUSTC_BOOTSTRAP", "1").env("RUSTC", "/usr/bin/rustc"),
    }
}

/// BTF for the maps, and the machine whose registers and syscalls aya-ebpf describes.
fn rust_flags() -> String {
    let mut flags = vec![
        format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH),
        "-Clink-arg=--btf".to_owned(),
    ];
    if let Some(linker) = platform::bpf_linker() {
        flags.push(format!("-Clinker={}", linker.display()));
    }
    flags.join("\x1f")
}

/// An untouched copy keeps its time, so that cargo does not embed it again.
fn copy_if_changed(from: &Path, to: &Path) -> anyhow::Result<()> {
    let new = fs::read(from).with_context(|| format!("reading {}", from.display()))?;
    if fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    fs::write(to, new).with_context(|| format!("writing {}", to.display()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::copy_if_changed;

    #[test]
    fn an_unchanged_object_keeps_its_time() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::write(&from, "one").unwrap();
        copy_if_changed(&from, &to).unwrap();
        let old = fs::File::open(&to).unwrap();
        let long_ago = fs::metadata("/proc/self/exe").unwrap().modified().unwrap();
        old.set_modified(long_ago).unwrap();
        copy_if_changed(&from, &to).unwrap();
        assert_eq!(fs::metadata(&to).unwrap().modified().unwrap(), long_ago);

        fs::write(&from, "two").unwrap();
        copy_if_changed(&from, &to).unwrap();
        assert_eq!(fs::read_to_string(&to).unwrap(), "two");
    }
}
