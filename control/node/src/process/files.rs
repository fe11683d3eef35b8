//! Where the process runtime keeps what it knows, so that a restarted agent finds it.
//!
//! ```text
//! ROOT/pods/UID/sandbox.json             the sandbox as asked for
//!               network.json             its addresses, once it has them
//!               pause.json               the process that holds its namespaces
//!               containers/NAME/ATTEMPT/launch.json    what is to run
//!                                       started.json   the processes, once it runs
//!                                       ended.json     how it ended
//!                                       root, upper, work, stdin
//! ```

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::identity::Identity;
use crate::runtime::{ContainerId, ContainerSpec};

/// The files of one node's pods.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    pods: PathBuf,
}

/// What a container's shim is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Launch {
    pub(super) spec: ContainerSpec,
    pub(super) root: Root,
    /// The program and its arguments.
    pub(super) argv: Vec<String>,
    pub(super) pause: i32,
    /// The container whose processes it sees, if not only its own.
    #[serde(default)]
    pub(super) target: Option<Identity>,
    pub(super) host_network: bool,
    /// The files by which the container's processes join their cgroups.
    pub(super) cgroups: Vec<PathBuf>,
}

/// What a container sees as `/`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Root {
    /// A directory, with the container's changes beside it.
    Dir(PathBuf),
    /// This program, and the host's programs to look around with.
    BuiltIn,
}

/// What a shim tells of a container that runs.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Started {
    pub(super) container: Identity,
    pub(super) shim: Identity,
    pub(super) at: Timestamp,
}

impl Files {
    pub(super) fn below(root: &Path) -> Self {
        Self { pods: root.join("pods") }
    }

    pub(super) fn pod(&self, uid: &str) -> PathBuf {
        self.pods.join(uid)
    }

    pub(super) fn container(&self, id: &ContainerId) -> PathBuf {
        self.pod(&id.pod_uid).join("containers").join(&id.name).join(id.attempt.to_string())
    }

    pub(super) fn uids(&self) -> io::Result<Vec<String>> {
        names(&self.pods)
    }

    /// Every attempt of every container of a pod that is still known.
    pub(super) fn containers(&self, uid: &str) -> io::Result<Vec<ContainerId>> {
        let dir = self.pod(uid).join("containers");
        let mut found = Vec::new();
        for name in names(&dir)? {
            for attempt in names(&dir.join(&name))? {
                if let Ok(attempt) = attempt.parse() {
                    found.push(ContainerId { pod_uid: uid.into(), name: name.clone(), attempt });
                }
            }
        }
        found.sort();
        Ok(found)
    }
}

fn names(dir: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

/// Reads what `write` wrote; nothing, if it did not.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        bytes => Ok(Some(serde_json::from_slice(&bytes?)?)),
    }
}

/// Writes a file that is there whole or not at all, whoever is killed.
pub(crate) fn write(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = fs::File::create(&new)?;
    file.write_all(&serde_json::to_vec(value)?)?;
    drop(file);
    fs::rename(new, path)
}
