//! The programs that the process runtime runs in pods: this binary, started again.
//!
//! ```text
//! agent ─▶ pause            holds the pod's namespaces
//!       ─▶ shim             outlives the agent: waits, writes the log and the end
//!            └▶ init        first process of a container: mounts, drops rights, becomes it
//!       ─▶ exec             a command in a container that runs
//! ```

use std::path::PathBuf;
use std::process::ExitCode;

use super::{exec, init, pause, shim};

/// What a process that the runtime has started is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// Hold a pod's namespaces, as its directory says.
    Pause {
        /// The pod's directory.
        dir: PathBuf,
        /// The files by which it joins its cgroups.
        join: Vec<PathBuf>,
    },
    /// Run a container, as its directory says.
    Shim {
        /// The container's directory.
        dir: PathBuf,
        /// The files by which it joins its cgroups.
        join: Vec<PathBuf>,
    },
    /// Become a container.
    Init(PathBuf),
    /// Wait for SIGTERM: a container that does nothing.
    Idle,
    /// Run a command in a container.
    Exec {
        /// The container's directory.
        dir: PathBuf,
        /// Whether standard input is a terminal of its own.
        tty: bool,
        /// The command.
        command: Vec<String>,
    },
}

/// Runs one of the runtime's own programs, to its end.
///
/// # Errors
/// What it is told cannot be read, or the kernel refuses.
pub fn enter(role: &Role) -> std::io::Result<ExitCode> {
    if let Role::Pause { join, .. } | Role::Shim { join, .. } = role {
        for file in join {
            std::fs::write(file, "0")?;
        }
    }
    match role {
        Role::Pause { dir, .. } => pause::run(dir),
        Role::Shim { dir, .. } => shim::run(dir),
        Role::Init(dir) => init::run(dir),
        Role::Idle => pause::idle(),
        Role::Exec { dir, tty, command } => exec::run(dir, *tty, command),
    }
}
