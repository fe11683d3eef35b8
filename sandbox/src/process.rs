//! A process in a node or pod: its network namespace and its cgroup from its first instruction on.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Output, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{error::SpawnError, netns::Netns, wait};

/// Moves itself, before the program runs: a socket belongs to the cgroup it was opened in.
const JOIN: &str = r#"echo 0 > "$0" && exec "$@""#;

/// A program about to be started. Standard input is empty unless said otherwise.
#[derive(Debug)]
pub struct Launch {
    command: Command,
    program: OsString,
    place: String,
    netns: Netns,
}

impl Launch {
    pub(crate) fn new(program: &OsStr, place: &str, netns: &Netns, cgroup: &Path) -> Self {
        #[expect(
            clippy::disallowed_methods,
            reason = "starting programs is what a sandbox is for; a shell joins the cgroup, \
                      because doing so between fork and exec takes unsafe code"
        )]
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(JOIN).arg(cgroup.join("cgroup.procs")).arg(program);
        // Ctrl-C on the terminal is the owner's to handle, in its order.
        command.stdin(Stdio::null()).process_group(0);
        Self { command, program: program.to_owned(), place: place.to_owned(), netns: netns.clone() }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Says where its input comes from.
    #[must_use]
    pub fn stdin(mut self, stdin: impl Into<Stdio>) -> Self {
        self.command.stdin(stdin);
        self
    }

    /// Says where its output goes.
    #[must_use]
    pub fn stdout(mut self, stdout: impl Into<Stdio>) -> Self {
        self.command.stdout(stdout);
        self
    }

    /// Says where its errors go.
    #[must_use]
    pub fn stderr(mut self, stderr: impl Into<Stdio>) -> Self {
        self.command.stderr(stderr);
        self
    }

    /// Keeps it in the caller's process group, so that it may read from the terminal.
    #[must_use]
    pub fn in_foreground(mut self) -> Self {
        self.command.process_group(nix::unistd::getpgrp().as_raw());
        self
    }

    /// Starts it.
    ///
    /// # Errors
    /// When the namespace cannot be entered or no process can be made. A program that cannot be
    /// run ends with status 126 or 127 and the shell's words, as in a shell.
    pub fn spawn(mut self) -> Result<Process, SpawnError> {
        // A child begins in the network namespace of the thread that starts it.
        let spawned = self.netns.run(|| self.command.spawn()).and_then(|spawned| spawned);
        match spawned {
            Ok(child) => Ok(Process { child }),
            Err(source) => Err(SpawnError {
                program: self.program.to_string_lossy().into_owned(),
                place: self.place,
                source,
            }),
        }
    }

    /// Runs it to its end, and returns what it said.
    ///
    /// # Errors
    /// As for [`Launch::spawn`].
    pub fn output(mut self) -> Result<Output, SpawnError> {
        let output = self.netns.run(|| self.command.output()).and_then(|output| output);
        output.map_err(|source| SpawnError {
            program: self.program.to_string_lossy().into_owned(),
            place: self.place,
            source,
        })
    }
}

/// A running process. It is killed when this is dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its input, if piped and not yet taken.
    pub fn stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// Its output, if piped and not yet taken.
    pub fn stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Its exit status, if it has ended.
    ///
    /// # Errors
    /// When the kernel cannot say.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Waits for its end, but not for ever.
    ///
    /// # Errors
    /// When it has not ended in time.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<ExitStatus> {
        wait::value(timeout, || self.child.try_wait().transpose())
            .unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Asks it to end (SIGTERM), and kills it if it has not after `grace`.
    ///
    /// # Errors
    /// When it cannot be signalled or waited for.
    pub fn terminate(&mut self, grace: Duration) -> io::Result<ExitStatus> {
        if let Some(ended) = self.child.try_wait()? {
            return Ok(ended);
        }
        self.signal(Signal::SIGTERM)?;
        match self.wait(grace) {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => self.kill(),
            ended => ended,
        }
    }

    /// Kills it (SIGKILL), and waits for its end.
    ///
    /// # Errors
    /// When it cannot be signalled or waited for.
    pub fn kill(&mut self) -> io::Result<ExitStatus> {
        self.child.kill()?;
        self.child.wait()
    }

    /// Stops it where it is (SIGSTOP): its sockets stay open, and nobody answers on them.
    ///
    /// # Errors
    /// When it cannot be signalled.
    pub fn freeze(&self) -> io::Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Lets it go on after [`Process::freeze`].
    ///
    /// # Errors
    /// When it cannot be signalled.
    pub fn thaw(&self) -> io::Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// Sends a signal. The process is not yet waited for, so its id is its own.
    fn signal(&self, signal: Signal) -> io::Result<()> {
        let pid = i32::try_from(self.child.id()).map_err(io::Error::other)?;
        Ok(kill(Pid::from_raw(pid), signal)?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            tracing::debug!(pid = self.child.id(), %error, "killing a process failed");
        }
    }
}
