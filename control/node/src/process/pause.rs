//! The process that holds a pod's network, UTS and IPC namespaces, and does nothing else.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{sethostname, setsid};

use super::files;
use crate::identity::Identity;
use crate::runtime::SandboxSpec;

/// The file that names it.
pub(super) const FILE: &str = "pause.json";

/// Makes the namespaces, says so on standard output, and waits for SIGTERM.
pub(super) fn run(dir: &Path) -> io::Result<ExitCode> {
    let spec: SandboxSpec =
        files::read(&dir.join("sandbox.json"))?.ok_or(io::ErrorKind::NotFound)?;
    setsid()?;
    let mut namespaces = CloneFlags::empty();
    if !spec.host_network {
        namespaces |= CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUTS;
    }
    if !spec.host_ipc {
        namespaces |= CloneFlags::CLONE_NEWIPC;
    }
    unshare(namespaces)?;
    if !spec.host_network {
        sethostname(&spec.hostname)?;
    }
    let signals = block_termination()?;
    files::write(&dir.join(FILE), &Identity::own()?)?;
    io::stdout().write_all(b"ready\n")?;
    // The agent that started it may go, and take the pipe along.
    nix::unistd::dup2_stdout(fs::File::open("/dev/null")?)?;
    signals.wait()?;
    Ok(ExitCode::SUCCESS)
}

/// Waits for SIGTERM or SIGINT.
pub(super) fn idle() -> io::Result<ExitCode> {
    block_termination()?.wait()?;
    Ok(ExitCode::SUCCESS)
}

/// The first process of a PID namespace hears only signals that it waits for.
fn block_termination() -> io::Result<SigSet> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block()?;
    Ok(signals)
}
