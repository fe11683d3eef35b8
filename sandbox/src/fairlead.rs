//! The programs of the `fairlead` binary in a sandbox: servers, clients, proxies.

mod agent;
mod client;
mod proxy;

use std::{
    env,
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
    process::{self, Stdio},
};

use crate::{error::SpawnError, pod::Pod, process::Process};

pub use agent::AgentOptions;
pub use client::{Client, ClientError};
pub use proxy::{Proxy, ProxyOptions};

/// The binary.
#[derive(Debug, Clone)]
pub struct Fairlead {
    path: PathBuf,
}

/// Why a server does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// It could not be started.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// It ended, or cannot be heard.
    #[error("the server in {pod} did not come up: run it by hand to see why")]
    Silent {
        /// Where.
        pod: String,
    },
}

impl Fairlead {
    /// The binary at `path`.
    #[must_use]
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The running program itself, even if its file has gone since.
    #[must_use]
    pub fn this() -> Self {
        let by_name = env::current_exe().ok().filter(|path| path.exists());
        Self::at(by_name.unwrap_or_else(|| format!("/proc/{}/exe", process::id()).into()))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Starts the server that answers with its pod's name, and returns once it listens. It ends
    /// with this process, however that ends.
    ///
    /// # Errors
    /// When it cannot be started, or does not come up.
    pub fn hello(&self, pod: &Pod) -> Result<Process, ServeError> {
        let launch = pod.command(&self.path).args(["hello", "--until-eof", "--name", pod.name()]);
        let mut server = launch.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        match server.stdout().map(first_line) {
            Some(Ok(line)) if !line.is_empty() => Ok(server),
            _ => Err(ServeError::Silent { pod: pod.name().to_owned() }),
        }
    }
}

fn first_line(stdout: impl io::Read) -> io::Result<String> {
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    Ok(line)
}
