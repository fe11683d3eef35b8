//! A proxy on a node, and whether it is in sync.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{ExitStatus, Output, Stdio},
    time::Duration,
};

use super::Fairlead;
use crate::{error::SpawnError, node::Node, process::Process, wait};

/// What a proxy is told.
#[derive(Debug, Clone)]
pub struct ProxyOptions {
    /// The folder of objects.
    pub objects: PathBuf,
    /// The cgroup whose sockets it routes.
    pub cgroup: PathBuf,
    /// Its directory on a bpffs.
    pub bpffs: PathBuf,
    /// Answer the node's names as well: `fairlead node` in the place of `fairlead proxy`.
    pub names: bool,
    /// More arguments.
    pub more: Vec<OsString>,
}

/// A running proxy, killed when this is dropped. What it wrote into the kernel stays.
#[derive(Debug)]
pub struct Proxy {
    process: Process,
    log: PathBuf,
}

impl Fairlead {
    /// Starts a proxy on `node`, with its log in `log`.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub fn proxy(
        &self,
        node: &Node,
        options: &ProxyOptions,
        log: &Path,
    ) -> Result<Proxy, SpawnError> {
        let process = self.proxy_command(node, options).stderr(open_log(node, log)?).spawn()?;
        Ok(Proxy::of(process, log.to_owned()))
    }

    /// Runs a proxy that is expected to refuse, and returns what it said.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub fn proxy_output(&self, node: &Node, options: &ProxyOptions) -> Result<Output, SpawnError> {
        self.proxy_command(node, options).output()
    }

    fn proxy_command(&self, node: &Node, options: &ProxyOptions) -> crate::Launch {
        node.command(self.path())
            .arg(if options.names { "node" } else { "proxy" })
            .arg("--objects")
            .arg(&options.objects)
            .arg("--cgroup")
            .arg(&options.cgroup)
            .arg("--bpffs")
            .arg(&options.bpffs)
            .args(["--hostname-override", node.name()])
            .args(&options.more)
            .stdout(Stdio::null())
    }

    /// Whether what is in the kernel is what the cluster wants: `fairlead status`.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub fn is_in_sync(&self, node: &Node, bpffs: &Path) -> Result<bool, SpawnError> {
        Ok(self.status(node, bpffs)?.status.success())
    }

    /// What `fairlead status` says.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub fn status(&self, node: &Node, bpffs: &Path) -> Result<Output, SpawnError> {
        node.command(self.path()).arg("status").arg("--bpffs").arg(bpffs).output()
    }

    /// Removes what a proxy left in the kernel: `fairlead cleanup`.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub fn cleanup(&self, node: &Node, bpffs: &Path) -> Result<Output, SpawnError> {
        node.command(self.path()).arg("cleanup").arg("--bpffs").arg(bpffs).output()
    }
}

/// What a program on `node` says goes to the end of `log`.
pub(super) fn open_log(node: &Node, log: &Path) -> Result<File, SpawnError> {
    File::options().create(true).append(true).open(log).map_err(|source| SpawnError {
        program: format!("what logs to {}", log.display()),
        place: node.name().to_owned(),
        source,
    })
}

impl Proxy {
    pub(super) const fn of(process: Process, log: PathBuf) -> Self {
        Self { process, log }
    }

    /// Kills it, as `kill -9` does.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn kill(mut self) -> io::Result<ExitStatus> {
        self.process.kill()
    }

    /// Asks it to end.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn terminate(mut self, grace: Duration) -> io::Result<ExitStatus> {
        self.process.terminate(grace)
    }

    /// Whether it has ended by itself.
    ///
    /// # Errors
    /// When the kernel cannot say.
    pub fn has_ended(&mut self) -> io::Result<bool> {
        Ok(self.process.try_wait()?.is_some())
    }

    /// Waits until `fairlead status` says that it is in sync. False if it ends or takes too long.
    ///
    /// # Errors
    /// When a process cannot be started.
    pub fn wait_in_sync(
        &mut self,
        fairlead: &Fairlead,
        node: &Node,
        bpffs: &Path,
        timeout: Duration,
    ) -> Result<bool, SpawnError> {
        let looked = wait::value(timeout, || match fairlead.is_in_sync(node, bpffs) {
            Ok(false) if !self.has_ended().unwrap_or(true) => None,
            settled => Some(settled),
        });
        looked.unwrap_or(Ok(false))
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// All that it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}
