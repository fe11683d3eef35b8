//! The process runtime: a container is a process in its own mount and PID namespace, with its
//! pod's network, host name and IPC. Nothing needs to be installed.
//!
//! Read [`entry`] for the processes, `files` for what is kept about them.

pub(crate) mod entry;
mod exec;
pub(crate) mod files;
mod image;
mod init;
mod pause;
mod rights;
mod rootfs;
mod shim;

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use nix::sys::stat::Mode;
use rustix::process::Signal;
use tokio::io::AsyncReadExt;

use crate::cgroups::Cgroups;
use crate::identity::Identity;
use crate::network::Network;
use crate::runtime::{
    ContainerId, ContainerSpec, Ended, Exec, Found, FoundPod, FoundState, ImageError, Limits,
    Runtime, RuntimeError, Said, Sandbox, SandboxSpec, Session,
};
use files::{Files, Launch, Started};
use image::Image;

/// The leaf in which a pod's shims and its pause process are.
const OVERHEAD: &str = "fairlead";

/// As much of each of a command's outputs as is kept.
const MAX_SAID: u64 = 10 * 1024;

/// Pods as processes.
#[derive(Debug)]
pub(crate) struct Processes {
    files: Files,
    images: PathBuf,
    cgroups: Cgroups,
    network: Arc<Network>,
}

impl Processes {
    /// A runtime that keeps everything below `root`, and its pods' cgroups below `above`.
    pub(crate) fn open(
        root: &Path,
        above: &Path,
        node: &str,
        network: Arc<Network>,
    ) -> Result<Self, RuntimeError> {
        let files = Files::below(root);
        fs::create_dir_all(root.join("pods"))
            .map_err(RuntimeError::at(format!("make {}", root.display())))?;
        let cgroups = Cgroups::find(above, node)
            .map_err(RuntimeError::at(format!("make cgroups below {}", above.display())))?;
        let runtime = Self { files, images: root.join("images"), cgroups, network };
        // Addresses that pods have are not given again.
        for uid in runtime.files.uids().map_err(RuntimeError::at("list the pods' directories"))? {
            runtime.network.take(&runtime.addresses(&uid).unwrap_or_default());
        }
        Ok(runtime)
    }

    fn sandbox(&self, uid: &str) -> io::Result<Option<Sandbox>> {
        let dir = self.files.pod(uid);
        let pause: Option<Identity> = files::read(&dir.join(pause::FILE))?;
        if !pause.is_some_and(Identity::is_alive) {
            return Ok(None);
        }
        let addresses: Option<Vec<_>> = files::read(&dir.join("network.json"))?;
        Ok(addresses.map(|addresses| Sandbox { addresses }))
    }

    fn addresses(&self, uid: &str) -> io::Result<Vec<IpAddr>> {
        Ok(files::read(&self.files.pod(uid).join("network.json"))?.unwrap_or_default())
    }

    fn spawn_pause(&self, dir: &Path, joins: Vec<PathBuf>) -> io::Result<Identity> {
        let mut command = own("pause", dir);
        let mut child = joining(&mut command, joins).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        if let Some(out) = child.stdout.take() {
            BufReader::new(out).read_line(&mut line)?;
        }
        reap(child)?;
        let pause: Option<Identity> = files::read(&dir.join(pause::FILE))?;
        match pause {
            Some(pause) if line == "ready\n" => Ok(pause),
            _ => Err(io::Error::other("the sandbox's process died")),
        }
    }

    fn make_sandbox(&self, spec: &SandboxSpec) -> io::Result<Sandbox> {
        self.take_down(&spec.uid)?;
        let dir = self.files.pod(&spec.uid);
        fs::create_dir_all(&dir)?;
        files::write(&dir.join("sandbox.json"), spec)?;
        self.cgroups.create_pod(&spec.uid, spec.max_pids)?;
        let joins = self.cgroups.create_container(&spec.uid, OVERHEAD, &Limits::default())?;
        let pause = self.spawn_pause(&dir, joins)?;
        let addresses = if spec.host_network {
            Vec::new()
        } else {
            let namespace = PathBuf::from(format!("/proc/{}/ns/net", pause.pid));
            self.network.connect(&spec.uid, &namespace).map_err(io::Error::other)?
        };
        files::write(&dir.join("network.json"), &addresses)?;
        Ok(Sandbox { addresses })
    }

    fn take_down(&self, uid: &str) -> io::Result<()> {
        self.cgroups.remove_pod(uid)?;
        self.network.disconnect(uid).map_err(io::Error::other)?;
        self.network.release(&self.addresses(uid)?);
        let dir = self.files.pod(uid);
        for file in ["network.json", pause::FILE] {
            match fs::remove_file(dir.join(file)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    fn launch(&self, spec: &ContainerSpec) -> io::Result<FoundState> {
        let uid = &spec.id.pod_uid;
        let pod: SandboxSpec = files::read(&self.files.pod(uid).join("sandbox.json"))?
            .ok_or_else(|| io::Error::other("the pod has no sandbox"))?;
        let pause: Identity = files::read(&self.files.pod(uid).join(pause::FILE))?
            .ok_or_else(|| io::Error::other("the pod has no sandbox"))?;
        let image =
            Image::find(&spec.image, "IfNotPresent", &self.images).map_err(io::Error::other)?;
        let cgroups = self.cgroups.create_container(uid, &spec.id.name, &spec.limits)?;
        let overhead = self.cgroups.create_container(uid, OVERHEAD, &Limits::default())?;
        let dir = self.files.container(&spec.id);
        fs::create_dir_all(&dir)?;
        if spec.stdin {
            nix::unistd::mkfifo(&dir.join("stdin"), Mode::S_IRUSR | Mode::S_IWUSR)?;
        }
        let launch = Launch {
            spec: spec.clone(),
            argv: image.argv(&spec.command, &spec.args),
            root: image.root,
            pause: pause.pid,
            target: spec.target.as_ref().map(|target| self.running(target)).transpose()?,
            host_network: pod.host_network,
            cgroups,
        };
        files::write(&dir.join("launch.json"), &launch)?;
        let mut command = own("shim", &dir);
        let mut child = joining(&mut command, overhead).spawn()?;
        loop {
            if let Some(state) = self.state(&spec.id)? {
                reap(child)?;
                return Ok(state);
            }
            if child.try_wait()?.is_some() {
                return self.state(&spec.id)?.ok_or_else(|| io::Error::other("its shim died"));
            }
            std::thread::park_timeout(std::time::Duration::from_millis(2));
        }
    }

    /// What its shim has written down.
    fn state(&self, id: &ContainerId) -> io::Result<Option<FoundState>> {
        let dir = self.files.container(id);
        if let Some(ended) = files::read(&dir.join("ended.json"))? {
            return Ok(Some(FoundState::Ended(ended)));
        }
        let started: Option<Started> = files::read(&dir.join("started.json"))?;
        Ok(started.map(|started| FoundState::Running { since: started.at }))
    }

    /// As an agent that starts finds it: without its shim, a container has ended, nobody knows how.
    fn found(&self, id: ContainerId) -> io::Result<Found> {
        let dir = self.files.container(&id);
        let state = match self.state(&id)? {
            Some(FoundState::Running { since }) => {
                let started: Option<Started> = files::read(&dir.join("started.json"))?;
                if started.is_some_and(|started| started.shim.is_alive()) {
                    FoundState::Running { since }
                } else {
                    self.state(&id)?
                        .filter(|state| matches!(state, FoundState::Ended(_)))
                        .unwrap_or_else(|| FoundState::Ended(Ended::lost(Some(since))))
                }
            }
            Some(ended) => ended,
            None => FoundState::Ended(Ended::lost(None)),
        };
        Ok(Found { id, state })
    }

    fn started(&self, id: &ContainerId) -> io::Result<Option<Started>> {
        files::read(&self.files.container(id).join("started.json"))
    }

    /// The first process of a container that runs.
    fn running(&self, id: &ContainerId) -> io::Result<Identity> {
        let process = self.started(id)?.map(|started| started.container);
        let absent = || io::Error::other(format!("container {:?} is not running", id.name));
        process.filter(|process| process.is_alive()).ok_or_else(absent)
    }

    fn signal(&self, id: &ContainerId, signal: Signal) -> io::Result<()> {
        if let Some(started) = self.started(id)? {
            started.container.signal(signal)?;
        }
        Ok(())
    }
}

/// This program again, in another role.
fn own(role: &str, dir: &Path) -> Command {
    #[expect(clippy::disallowed_methods, reason = "pods are processes, and these are theirs")]
    let mut command = Command::new("/proc/self/exe");
    command.args(["pod-process", role]).arg(dir).stdin(Stdio::null());
    command
}

/// Lets a process join cgroups before it does anything else.
fn joining(command: &mut Command, joins: Vec<PathBuf>) -> &mut Command {
    for join in joins {
        command.arg("--join").arg(join);
    }
    command
}

/// Waits for a child's end on a thread of its own: nobody else needs to hear of it.
fn reap(mut child: std::process::Child) -> io::Result<()> {
    let wait = move || {
        if let Err(error) = child.wait() {
            tracing::debug!(%error, "waiting for a child failed");
        }
    };
    std::thread::Builder::new().name("reap".to_owned()).stack_size(64 << 10).spawn(wait)?;
    Ok(())
}

impl Runtime for Processes {
    fn name(&self) -> &'static str {
        "process"
    }

    fn version(&self) -> String {
        format!("process://{}", env!("CARGO_PKG_VERSION"))
    }

    fn list(&self) -> Result<Vec<FoundPod>, RuntimeError> {
        let list = || -> io::Result<Vec<FoundPod>> {
            let mut pods = Vec::new();
            for uid in self.files.uids()? {
                let sandbox = self.sandbox(&uid)?;
                let mut containers = Vec::new();
                for id in self.files.containers(&uid)? {
                    containers.push(self.found(id)?);
                }
                pods.push(FoundPod { uid, sandbox, containers });
            }
            Ok(pods)
        };
        list().map_err(RuntimeError::at("list what runs"))
    }

    fn create_sandbox(&self, spec: &SandboxSpec) -> Result<Sandbox, RuntimeError> {
        self.make_sandbox(spec).map_err(RuntimeError::at("failed to create pod sandbox"))
    }

    fn sandbox_ended(&self, uid: &str) -> BoxFuture<'static, ()> {
        let file = self.files.pod(uid).join(pause::FILE);
        async move {
            if let Ok(Some(pause)) = files::read::<Identity>(&file)
                && let Err(error) = pause.ended().await
            {
                tracing::warn!(%error, "watching a sandbox failed");
                std::future::pending::<()>().await;
            }
        }
        .boxed()
    }

    fn remove_sandbox(&self, uid: &str) -> Result<(), RuntimeError> {
        self.take_down(uid).map_err(RuntimeError::at("remove the pod's sandbox"))
    }

    fn forget(&self, uid: &str) -> Result<(), RuntimeError> {
        self.remove_sandbox(uid)?;
        match fs::remove_dir_all(self.files.pod(uid)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(RuntimeError::at("remove the pod's directory")(error))
            }
            _ => Ok(()),
        }
    }

    fn pull(&self, image: &str, policy: &str) -> Result<String, ImageError> {
        Image::find(image, policy, &self.images).map(|image| image.id)
    }

    fn start(&self, spec: &ContainerSpec) -> Result<FoundState, RuntimeError> {
        self.launch(spec).map_err(RuntimeError::at("failed to create containerd task"))
    }

    fn ended(&self, id: &ContainerId) -> BoxFuture<'static, Ended> {
        let dir = self.files.container(id);
        async move {
            let started: Option<Started> = files::read(&dir.join("started.json")).unwrap_or(None);
            let end = || files::read::<Ended>(&dir.join("ended.json")).unwrap_or(None);
            let since = started.map(|started| started.at);
            if let Some(ended) = end() {
                return ended;
            }
            if let Some(started) = started
                && let Err(error) = started.shim.ended().await
            {
                tracing::warn!(%error, "watching a container failed");
            }
            end().unwrap_or_else(|| Ended::lost(since))
        }
        .boxed()
    }

    fn terminate(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        self.signal(id, Signal::TERM).map_err(RuntimeError::at("terminate a container"))
    }

    fn kill(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        self.signal(id, Signal::KILL)
            .and_then(|()| self.cgroups.kill_container(&id.pod_uid, &id.name))
            .map_err(RuntimeError::at("kill a container"))
    }

    fn remove(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        match fs::remove_dir_all(self.files.container(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(RuntimeError::at("remove a container")(error))
            }
            _ => Ok(()),
        }
    }

    fn run(
        &self,
        id: &ContainerId,
        command: &[String],
    ) -> BoxFuture<'static, Result<Said, RuntimeError>> {
        let exec = Exec { command: command.to_vec(), stdin: false, tty: false };
        let session = self.exec(id, &exec);
        async move { hear(session?).await.map_err(RuntimeError::at("run a command")) }.boxed()
    }

    fn exec(&self, id: &ContainerId, exec: &Exec) -> Result<Session, RuntimeError> {
        let at = || RuntimeError::at("run a command in a container");
        let mut command = own("exec", &self.files.container(id));
        if exec.tty {
            command.arg("--tty");
        }
        command.arg("--").args(&exec.command);
        let mut command = tokio::process::Command::from(command);
        // A session that is given up ends with all that it started.
        command.kill_on_drop(true).process_group(0);
        let terminal = if exec.tty {
            let (terminal, other) = terminal().map_err(at())?;
            let copy = || other.try_clone();
            let copies = copy().and_then(|a| Ok((a, copy()?))).map_err(at())?;
            command.stdin(copies.0).stdout(copies.1).stderr(other);
            Some(terminal)
        } else {
            command.stdin(if exec.stdin { Stdio::piped() } else { Stdio::null() });
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            None
        };
        let child = command.spawn().map_err(at())?;
        Ok(Session { child, terminal })
    }

    fn network_namespace(&self, uid: &str) -> Option<PathBuf> {
        let pause: Identity = files::read(&self.files.pod(uid).join(pause::FILE)).ok()??;
        pause.is_alive().then(|| format!("/proc/{}/ns/net", pause.pid).into())
    }

    fn input(&self, id: &ContainerId) -> PathBuf {
        self.files.container(id).join("stdin")
    }
}

/// What a command says, a little of it, and how it ends.
async fn hear(mut session: Session) -> io::Result<Said> {
    let mut text = Vec::new();
    if let (Some(out), Some(err)) = (session.child.stdout.take(), session.child.stderr.take()) {
        let mut more = Vec::new();
        let (mut out, mut err) = (out.take(MAX_SAID), err.take(MAX_SAID));
        let (a, b) = tokio::join!(out.read_to_end(&mut text), err.read_to_end(&mut more));
        a.and(b)?;
        text.extend(more);
    }
    let status = session.child.wait().await?;
    Ok(Said { exit_code: status.code().unwrap_or(137), text })
}

/// A new terminal: the side that we hold, and the side that a program has.
fn terminal() -> io::Result<(OwnedFd, OwnedFd)> {
    use rustix::fs::{Mode, OFlags, open};
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    let name = ptsname(&ours, Vec::new())?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let theirs = open(name.as_c_str(), flags, Mode::empty())?;
    Ok((ours, theirs))
}
