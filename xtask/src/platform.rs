//! What the platform must have, and how to see whether it has it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::step::Step;
use crate::workspace::{cargo, which};

/// The LLVM that the eBPF compiler and bpf-linker must share.
pub(crate) const LLVM: u32 = 22;
/// The bpf-linker that was tried with it.
pub(crate) const BPF_LINKER: &str = "0.13.0";
/// The cargo-nextest that is installed where there is none.
pub(crate) const NEXTEST: &str = "0.9.143";

/// The compiler for the eBPF programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compiler {
    /// rustup's nightly with rust-src, when its LLVM is the one bpf-linker was built with.
    Nightly,
    /// Debian's rustc-web, cargo-web and libstd-rust-web-dev-bpf.
    Debian,
}

impl Compiler {
    /// Nightly where it can serve, else what the Debian packages bring.
    pub(crate) fn choose() -> Self {
        if nightly_serves() { Self::Nightly } else { Self::Debian }
    }

    /// Whether it is here, in the version that bpf-linker understands.
    pub(crate) fn is_here(self) -> bool {
        match self {
            Self::Nightly => true,
            Self::Debian => Step::new("rustc", "/usr/bin/rustc")
                .args(["-vV"])
                .without_env(&["LD_LIBRARY_PATH"])
                .text()
                .is_some_and(|version| llvm_of(&version) == Some(LLVM)),
        }
    }

    /// The Debian packages that bring it.
    pub(crate) fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Nightly => &[],
            Self::Debian => &["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"],
        }
    }

    /// The Debian packages that bring its clippy.
    pub(crate) fn clippy_packages(self) -> &'static [&'static str] {
        match self {
            Self::Nightly => &[],
            Self::Debian => &["rust-web-clippy"],
        }
    }
}

fn nightly_serves() -> bool {
    if which("rustup").is_none() {
        return false;
    }
    let rustc = |args: &[&str]| {
        let words = ["run", "nightly", "rustc"].iter().chain(args);
        Step::new("nightly", "rustup").args(words).without_env(&["RUSTUP_TOOLCHAIN"]).text()
    };
    let Some(sysroot) = rustc(&["--print", "sysroot"]) else { return false };
    let core = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/Cargo.toml");
    core.is_file() && rustc(&["-vV"]).is_some_and(|version| llvm_of(&version) == Some(LLVM))
}

/// The major version in rustc's line `LLVM version: 22.1.2`.
fn llvm_of(version: &str) -> Option<u32> {
    let line = version.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    line.split('.').next()?.parse().ok()
}

/// The bpf-linker of the right version, if it is installed.
pub(crate) fn bpf_linker() -> Option<PathBuf> {
    let linker = which("bpf-linker")?;
    let version = Step::new("bpf-linker", &linker).args(["--version"]).text()?;
    version.split_whitespace().any(|word| word == BPF_LINKER).then_some(linker)
}

/// Bytes that may still be written where `dir` lies; `None` where df does not say.
pub(crate) fn free_bytes(dir: &Path) -> Option<u64> {
    let df = Step::new("df", "df").args(["--block-size=1", "--output=avail"]).arg(dir);
    df.text()?.lines().nth(1)?.trim().parse().ok()
}

/// Whether `cargo NAME` runs.
pub(crate) fn has_cargo(name: &str) -> bool {
    Step::new(name, cargo()).args([name, "--version"]).text().is_some()
}

/// Whether Python can download wheels.
pub(crate) fn has_pip() -> bool {
    Step::new("pip", "python3").args(["-m", "pip", "--version"]).text().is_some()
}

/// Those of the Debian packages that are not installed; all of them where dpkg is not.
pub(crate) fn missing_packages(wanted: &BTreeSet<&'static str>) -> Vec<&'static str> {
    let answer = Step::new("dpkg", "dpkg-query")
        .args(["--show", "--showformat", "${Package} ${db:Status-Status}\\n"])
        .args(wanted)
        .text_anyway();
    not_installed(wanted, &answer)
}

fn not_installed(wanted: &BTreeSet<&'static str>, answer: &str) -> Vec<&'static str> {
    let installed: BTreeSet<&str> =
        answer.lines().filter_map(|line| line.strip_suffix(" installed")).collect();
    wanted.iter().copied().filter(|package| !installed.contains(package)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{llvm_of, not_installed};

    #[test]
    fn removed_and_unknown_packages_are_missing() {
        let answer = "cargo-web installed\ncurl config-files\nrustc-web installed\n";
        let wanted = BTreeSet::from(["cargo-web", "curl", "rustc-web", "unheard-of"]);
        assert_eq!(not_installed(&wanted, answer), ["curl", "unheard-of"]);
    }

    #[test]
    fn llvm_version_is_read_from_rustc() {
        assert_eq!(llvm_of("rustc 1.97.0-nightly\nhost: x\nLLVM version: 22.1.2\n"), Some(22));
        assert_eq!(llvm_of("rustc 1.63.0\n"), None);
    }
}
