//! What can go wrong while a sandbox is built, and while a process is started in it.

use std::{io, path::PathBuf};

use crate::{cgroup::FindCgroupError, link::LinkError};

/// Why a sandbox, or a node or pod in it, could not be built or taken down.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The caller is not root.
    #[error("network namespaces and cgroups need root: run it again as root, or with sudo")]
    NotRoot,
    /// A name that Kubernetes would not accept for a node or pod.
    #[error(
        "{name:?} is no name for a {kind}: use 1 to 40 lower-case letters, digits and hyphens, \
         with a letter or digit at both ends"
    )]
    Name {
        /// What was to be named.
        kind: &'static str,
        /// The name that was asked for.
        name: String,
    },
    /// A node or pod of that name exists.
    #[error("there is a node or pod called {name} already")]
    Exists {
        /// The name.
        name: String,
    },
    /// The address plan has no address left.
    #[error("no address left for {kind} {name}: a sandbox holds 250 nodes of 250 pods each")]
    Full {
        /// What found no address.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// Another process runs a sandbox of that name.
    #[error("a sandbox called {name} is running in process {pid}: end that process first")]
    Running {
        /// The sandbox.
        name: String,
        /// The process that owns it.
        pid: String,
    },
    /// No usable cgroup v2.
    #[error(transparent)]
    Cgroup(#[from] FindCgroupError),
    /// A file or directory could not be made, read or removed.
    #[error("{doing} {}", path.display())]
    File {
        /// What was being done.
        doing: &'static str,
        /// To which path.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A network namespace could not be made or entered.
    #[error("{doing} the network namespace of {name}: this needs CAP_SYS_ADMIN and CAP_NET_ADMIN")]
    Namespace {
        /// What was being done.
        doing: &'static str,
        /// Whose namespace.
        name: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A link, address or route could not be set.
    #[error("setting up the network of {name}")]
    Network {
        /// Whose network.
        name: String,
        /// What the kernel said.
        source: LinkError,
    },
}

/// Why a process could not be started in a node or pod.
#[derive(Debug, thiserror::Error)]
#[error("starting {program} in {place}")]
pub struct SpawnError {
    /// The program.
    pub program: String,
    /// The node or pod.
    pub place: String,
    /// The kernel's answer.
    pub source: io::Error,
}
