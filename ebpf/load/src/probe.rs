//! What must be so before anything is touched. Each error says what is missing and what to do.

use std::path::{Path, PathBuf};

use nix::sys::statfs::{self, FsType};
use thiserror::Error;

/// `CGROUP2_SUPER_MAGIC`.
const CGROUP2: FsType = FsType(0x6367_7270);
/// `BPF_FS_MAGIC`.
const BPFFS: FsType = FsType(0xcafe_4a11);

/// The oldest kernel whose `connect` hooks may set the error that the caller sees
/// (`bpf_set_retval`, 5.18); what is tested is 6.1 and newer.
const KERNEL: (u32, u32) = (5, 18);

/// The capabilities that loading and attaching need, with their numbers (capability.h).
const CAPABILITIES: [(&str, u32); 3] =
    [("CAP_BPF", 39), ("CAP_PERFMON", 38), ("CAP_NET_ADMIN", 12)];
/// Stands for the first two on any kernel.
const CAP_SYS_ADMIN: u32 = 21;

/// What is missing.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// The process may not load programs.
    #[error("missing privilege: {missing}; run as root, or grant the container these capabilities")]
    Capability {
        /// Their names.
        missing: String,
    },
    /// The kernel is too old.
    #[error(
        "kernel {release} is too old for eBPF mode, which needs 6.1 or newer; \
         choose another --proxy-mode"
    )]
    Kernel {
        /// `uname -r`.
        release: String,
    },
    /// `--cgroup` names something else.
    #[error(
        "--cgroup {path}: not a cgroup v2 directory; \
         mount one (mount -t cgroup2 none DIR) and name a directory in it",
        path = path.display()
    )]
    NotCgroup2 {
        /// What was named.
        path: PathBuf,
    },
    /// Nothing was named, and none was found.
    #[error(
        "no cgroup v2 hierarchy is mounted; \
         mount one (mount -t cgroup2 none /sys/fs/cgroup/unified) or name it with --cgroup"
    )]
    NoCgroup2,
    /// `--bpffs` names something else.
    #[error(
        "--bpffs {path}: not on a BPF file system; \
         mount one (mount -t bpf bpf /sys/fs/bpf) and name a directory in it",
        path = path.display()
    )]
    NotBpffs {
        /// What was named.
        path: PathBuf,
    },
}

/// Checks privilege and kernel.
///
/// # Errors
/// What is missing.
pub fn privilege_and_kernel() -> Result<(), ProbeError> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let missing = missing_capabilities(&status);
    if !missing.is_empty() {
        return Err(ProbeError::Capability { missing: missing.join(", ") });
    }
    let release = nix::sys::utsname::uname()
        .map(|name| name.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    match version(&release) {
        Some(version) if version < KERNEL => Err(ProbeError::Kernel { release }),
        _ => Ok(()),
    }
}

/// Checks that a directory exists and is in a cgroup v2 hierarchy.
///
/// # Errors
/// It does not, or is not.
pub fn cgroup2(path: &Path) -> Result<(), ProbeError> {
    if is_on(path, CGROUP2) && path.is_dir() {
        Ok(())
    } else {
        Err(ProbeError::NotCgroup2 { path: path.to_owned() })
    }
}

/// Checks that a directory, or the nearest one above it that exists, is on bpffs.
///
/// # Errors
/// It is not.
pub fn bpffs(path: &Path) -> Result<(), ProbeError> {
    let existing = path.ancestors().find(|path| path.exists());
    if existing.is_some_and(|path| is_on(path, BPFFS)) {
        Ok(())
    } else {
        Err(ProbeError::NotBpffs { path: path.to_owned() })
    }
}

/// Whether programs can be attached to devices by links (tcx).
pub fn has_tcx() -> bool {
    const TCX: (u32, u32) = (6, 6);
    nix::sys::utsname::uname()
        .is_ok_and(|name| version(&name.release().to_string_lossy()).is_some_and(|v| v >= TCX))
}

fn is_on(path: &Path, file_system: FsType) -> bool {
    statfs::statfs(path).is_ok_and(|found| found.filesystem_type() == file_system)
}

fn missing_capabilities(status: &str) -> Vec<&'static str> {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    let has = |bit: u32| effective >> bit & 1 == 1;
    CAPABILITIES
        .into_iter()
        .filter(|(name, bit)| !has(*bit) && (*name == "CAP_NET_ADMIN" || !has(CAP_SYS_ADMIN)))
        .map(|(name, _)| name)
        .collect()
}

/// Major and minor of `6.1.0-37-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_capabilities_are_named() {
        assert!(missing_capabilities("CapEff:\t000001ffffffffff").is_empty());
        assert_eq!(
            missing_capabilities("CapEff:\t0000000000000000"),
            ["CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN"]
        );
        // CAP_SYS_ADMIN stands for the first two, not for CAP_NET_ADMIN.
        assert_eq!(missing_capabilities("CapEff:\t0000000000200000"), ["CAP_NET_ADMIN"]);
    }

    #[test]
    fn kernel_releases_are_compared_by_number() {
        assert_eq!(version("6.1.0-37-amd64"), Some((6, 1)));
        assert!(version("5.4.0").is_some_and(|v| v < KERNEL));
        assert!(version("6.18.44-fc-v595").is_some_and(|v| v >= KERNEL));
        assert_eq!(version("strange"), None);
    }

    #[test]
    fn a_plain_directory_is_neither_cgroup2_nor_bpffs() {
        let path = Path::new("/proc");
        assert!(matches!(cgroup2(path), Err(ProbeError::NotCgroup2 { .. })));
        assert!(matches!(bpffs(path), Err(ProbeError::NotBpffs { .. })));
    }
}
