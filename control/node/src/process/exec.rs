//! A command in a container that runs: enters it, drops the same rights, and starts the command.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use nix::sched::{CloneFlags, setns};
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, setsid};

use super::files::{self, Launch, Started};
use super::{init, rights};

/// Runs `command` in the container that `dir` describes, and ends as it does.
pub(super) fn run(dir: &Path, tty: bool, command: &[String]) -> io::Result<ExitCode> {
    let launch: Launch = files::read(&dir.join("launch.json"))?.ok_or(io::ErrorKind::NotFound)?;
    let started: Started =
        files::read(&dir.join("started.json"))?.ok_or(io::ErrorKind::NotFound)?;
    if tty {
        // The terminal becomes the one that this session is controlled by.
        setsid()?;
        let terminal = File::options().read(true).write(true).open("/proc/self/fd/0")?;
        rustix::process::ioctl_tiocsctty(terminal.as_fd())?;
        dup2_stdin(&terminal)?;
        dup2_stdout(&terminal)?;
        dup2_stderr(&terminal)?;
    }
    for join in &launch.cgroups {
        fs::write(join, "0")?;
    }
    enter(started)?;
    std::env::set_current_dir(match launch.spec.working_dir.as_str() {
        "" => "/",
        cwd => cwd,
    })?;
    rights::drop_to(&launch.spec.security)?;
    // Whoever enters a PID namespace is not in it, but its children are.
    let mut env = launch.spec.env.clone();
    if tty {
        env.entry("TERM".into()).or_insert_with(|| "xterm".into());
    }
    let pairs: Vec<(&String, &String)> = env.iter().collect();
    let (program, args) = match init::find(command, &pairs) {
        Ok(found) => found,
        Err(error) => return complain(&error),
    };
    #[expect(clippy::disallowed_methods, reason = "the command is to be run")]
    let mut child = Command::new(program);
    if let Some(name) = command.first() {
        child.arg0(name);
    }
    child.args(args).env_clear().envs(pairs).stdin(Stdio::inherit());
    match child.status() {
        Err(error) => complain(&error),
        Ok(status) => {
            let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
            Ok(ExitCode::from(u8::try_from(code.unwrap_or(255)).unwrap_or(255)))
        }
    }
}

/// As a shell: 126 for what cannot be run, 127 for what is not there.
fn complain(error: &io::Error) -> io::Result<ExitCode> {
    use std::io::Write;
    writeln!(io::stderr(), "{error}")?;
    Ok(ExitCode::from(if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 }))
}

fn enter(started: Started) -> io::Result<()> {
    let namespaces = PathBuf::from(format!("/proc/{}/ns", started.container.pid));
    let opened = [
        ("ipc", CloneFlags::CLONE_NEWIPC),
        ("uts", CloneFlags::CLONE_NEWUTS),
        ("net", CloneFlags::CLONE_NEWNET),
        ("pid", CloneFlags::CLONE_NEWPID),
        ("mnt", CloneFlags::CLONE_NEWNS),
    ]
    .map(|(name, flag)| (File::open(namespaces.join(name)), flag));
    // Opened first, looked at then: the descriptors are the container's or nobody's.
    if !started.container.is_alive() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the container has ended"));
    }
    for (file, flag) in opened {
        setns(file?.as_fd(), flag)?;
    }
    Ok(())
}
