//! A container's shim: outlives the agent, keeps the log, and writes down how it ended.

use std::fs::{self, File};
use std::io::{self, PipeReader, Read};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use jiff::Timestamp;
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::setsid;

use super::files::{self, Launch, Started};
use crate::identity::Identity;
use crate::log::{Log, Stream};
use crate::runtime::Ended;

/// Starts the container that `dir` describes, and stays until it has ended.
pub(super) fn run(dir: &Path) -> io::Result<ExitCode> {
    let launch: Launch = files::read(&dir.join("launch.json"))?.ok_or(io::ErrorKind::NotFound)?;
    setsid()?;
    let outcome = begin(dir, &launch);
    let ended = match outcome {
        Ok(running) => running.finish(&launch)?,
        Err(refused) => refused.into_end(),
    };
    files::write(&dir.join("ended.json"), &ended)?;
    Ok(ExitCode::SUCCESS)
}

/// Why a container does not run.
struct Refused(String);

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self(error.to_string())
    }
}

impl From<nix::Error> for Refused {
    fn from(error: nix::Error) -> Self {
        Self(error.to_string())
    }
}

impl Refused {
    /// As containerd says it: exit code 128, `StartError`.
    fn into_end(self) -> Ended {
        Ended {
            exit_code: 128,
            signal: None,
            reason: "StartError".into(),
            message: format!("failed to start container: {}", self.0),
            started_at: None,
            finished_at: Timestamp::now(),
        }
    }
}

struct Running {
    child: Child,
    at: Timestamp,
    pumps: Vec<thread::JoinHandle<()>>,
}

fn begin(dir: &Path, launch: &Launch) -> Result<Running, Refused> {
    let log = Arc::new(Mutex::new(Log::open(&launch.spec.log)?));
    let (out, out_end) = io::pipe()?;
    let (err, err_end) = io::pipe()?;
    // First, because who has left its PID namespace's children behind can make no threads.
    let pumps = vec![pump(out, Stream::Out, Arc::clone(&log))?, pump(err, Stream::Err, log)?];
    enter_namespaces(launch)?;
    let (mut status, report) = io::pipe()?;
    #[expect(clippy::disallowed_methods, reason = "a shim is there to start a container")]
    let mut command = Command::new("/proc/self/exe");
    command.args(["pod-process", "init"]).arg(dir).stdin(Stdio::from(report));
    let mut child = command.stdout(out_end).stderr(err_end).spawn()?;
    // The command holds copies of the pipes' ends, which would never close.
    drop(command);
    let mut said = String::new();
    status.read_to_string(&mut said)?;
    let at = Timestamp::now();
    if !said.is_empty() {
        child.wait()?;
        return Err(Refused(said));
    }
    // One that has ended already may be reaped by nobody else: it is still there.
    let container = Identity::of(child.id().cast_signed())?;
    files::write(&dir.join("started.json"), &Started { container, shim: Identity::own()?, at })?;
    Ok(Running { child, at, pumps })
}

/// The pod's network, host name and IPC; a PID namespace of the container's own, or another's.
fn enter_namespaces(launch: &Launch) -> Result<(), Refused> {
    let pause = PathBuf::from(format!("/proc/{}/ns", launch.pause));
    for (name, flag) in [
        ("net", CloneFlags::CLONE_NEWNET),
        ("uts", CloneFlags::CLONE_NEWUTS),
        ("ipc", CloneFlags::CLONE_NEWIPC),
    ] {
        setns(File::open(pause.join(name))?.as_fd(), flag)?;
    }
    match launch.target {
        None => unshare(CloneFlags::CLONE_NEWPID)?,
        Some(target) => {
            let processes = File::open(format!("/proc/{}/ns/pid", target.pid))?;
            // Opened first, looked at then: the descriptor is the container's or nobody's.
            if !target.is_alive() {
                return Err(Refused("the container to look into has ended".into()));
            }
            setns(processes.as_fd(), CloneFlags::CLONE_NEWPID)?;
        }
    }
    Ok(())
}

fn pump(
    from: PipeReader,
    stream: Stream,
    log: Arc<Mutex<Log>>,
) -> io::Result<thread::JoinHandle<()>> {
    thread::Builder::new().name("log".to_owned()).spawn(move || {
        if let Err(error) = crate::log::copy(from, stream, &log) {
            tracing::warn!(%error, "writing a container's log failed");
        }
    })
}

impl Running {
    fn finish(mut self, launch: &Launch) -> io::Result<Ended> {
        let status = self.child.wait()?;
        if launch.target.is_some() {
            end_the_rest(&launch.cgroups)?;
        }
        // With its first process, everything in the container's PID namespace is gone, and with
        // that the pipes' other ends.
        for pump in self.pumps.drain(..) {
            if pump.join().is_err() {
                tracing::warn!("a log's thread died");
            }
        }
        let oom = n_oom_kills(&launch.cgroups) > 0;
        let message = last_words(&launch.spec.last_words.source);
        Ok(end(status, oom, message, self.at))
    }
}

/// In another container's PID namespace nothing ends with its first process.
fn end_the_rest(joins: &[PathBuf]) -> io::Result<()> {
    let dirs = joins.iter().filter_map(|join| join.parent());
    // v1 knows no such file, and lets nobody make one.
    let mut v2 = dirs.filter(|dir| dir.join("cgroup.kill").exists());
    v2.try_for_each(sandbox::cgroup::kill)
}

/// The kernel's count of processes that it killed for their memory, beside where they join.
fn n_oom_kills(joins: &[PathBuf]) -> u64 {
    let count = |join: &PathBuf| {
        let dir = join.parent()?;
        ["memory.events", "memory.oom_control"].into_iter().find_map(|file| {
            let text = fs::read_to_string(dir.join(file)).ok()?;
            let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "))?;
            line.trim().parse::<u64>().ok()
        })
    };
    joins.iter().filter_map(count).sum()
}

fn end(status: ExitStatus, oom: bool, message: String, at: Timestamp) -> Ended {
    let exit_code =
        status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(255);
    let reason = match exit_code {
        137 if oom => "OOMKilled",
        0 => "Completed",
        _ => "Error",
    };
    Ended {
        exit_code,
        signal: None,
        reason: reason.into(),
        message,
        started_at: Some(at),
        finished_at: Timestamp::now(),
    }
}

/// What the container wrote to its termination log, 4 KiB at most.
fn last_words(file: &Path) -> String {
    let mut words = Vec::new();
    match File::open(file).and_then(|file| file.take(4096).read_to_end(&mut words)) {
        Ok(_) => String::from_utf8_lossy(&words).into_owned(),
        Err(_) => String::new(),
    }
}
