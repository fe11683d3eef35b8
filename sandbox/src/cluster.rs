//! The cluster: the link between its nodes, and everything's end.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use nix::unistd::geteuid;

use crate::{
    error::BuildError,
    link,
    netns::Netns,
    node::{Bpffs, Node},
    process::Launch,
    record::{self, Record},
};

/// The bridge that the nodes' links meet on.
const BRIDGE: &str = "br0";

/// A simulated cluster. It ends, with all that runs in it, when this is dropped.
#[derive(Debug)]
pub struct Sandbox {
    // First, because fields are dropped in this order: processes end before their network.
    record: Record,
    name: String,
    fabric: Netns,
    bpffs: Arc<Bpffs>,
    nodes: Mutex<Vec<Node>>,
}

impl Sandbox {
    /// An empty cluster, after sweeping what sandboxes left whose owner was killed.
    ///
    /// # Errors
    /// Without root or cgroup v2, or when a sandbox of that name is running.
    pub fn create(name: &str) -> Result<Self, BuildError> {
        check_name("sandbox", name)?;
        if !geteuid().is_root() {
            return Err(BuildError::NotRoot);
        }
        let record = Record::claim(name)?;
        let fabric = Netns::create().map_err(|source| BuildError::Namespace {
            doing: "making",
            name: name.to_owned(),
            source,
        })?;
        let made = link::configure(&fabric, async |links| {
            links.set_up("lo", true).await?;
            links.bridge(BRIDGE).await
        });
        made.map_err(|source| BuildError::Network { name: name.to_owned(), source })?;
        let bpffs = Arc::new(Bpffs::below(record.dir()));
        Ok(Self { record, name: name.to_owned(), fabric, bpffs, nodes: Mutex::default() })
    }

    /// Adds a node, with a link and routes to those before it.
    ///
    /// # Errors
    /// When the name is taken or no name, or the kernel refuses.
    pub fn node(&self, name: &str) -> Result<Node, BuildError> {
        check_name("node", name)?;
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        let node = Node::create(name, nodes.len(), self)?;
        for other in nodes.iter() {
            node.add_route_to(other)?;
            other.add_route_to(&node)?;
        }
        nodes.push(node.clone());
        Ok(node)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A directory that goes with the sandbox, for files that belong to it.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.record.dir()
    }

    /// The cgroup above all nodes.
    #[must_use]
    pub fn cgroup(&self) -> &Path {
        self.record.cgroup()
    }

    /// Lets another cgroup, one of v1 that something in here makes for itself, go with the sandbox.
    ///
    /// # Errors
    /// When it cannot be noted.
    pub fn take_along(&self, cgroup: &Path) -> Result<(), BuildError> {
        self.record.add_cgroup(cgroup)
    }

    /// Ends everything now, and returns when it is gone.
    pub fn remove(self) {
        drop(self);
    }

    /// Sweeps what sandboxes left whose owner was killed.
    ///
    /// # Errors
    /// When the directory of records cannot be locked.
    pub fn sweep() -> Result<(), BuildError> {
        record::sweep()
    }

    /// The process that runs the sandbox `name`, if one does.
    #[must_use]
    pub fn owner(name: &str) -> Option<i32> {
        record::owner(name)
    }

    /// The directory of the sandbox `name`, whoever runs it.
    #[must_use]
    pub fn dir_of(name: &str) -> PathBuf {
        record::dir_of(name)
    }

    /// A program to start in a node or pod of the sandbox `name`, whoever runs it.
    ///
    /// # Errors
    /// When there is no such sandbox, node or pod.
    pub fn command_in(
        name: &str,
        place: &str,
        program: impl AsRef<OsStr>,
    ) -> Result<Launch, BuildError> {
        check_name("node or pod", place)?;
        let (netns, cgroup) = record::open_place(&record::dir_of(name), place)?;
        Ok(Launch::new(program.as_ref(), place, &netns, &cgroup))
    }

    pub(crate) fn fabric(&self) -> &Netns {
        &self.fabric
    }

    pub(crate) fn bridge(&self) -> &'static str {
        BRIDGE
    }

    pub(crate) fn bpffs(&self) -> Arc<Bpffs> {
        Arc::clone(&self.bpffs)
    }
}

/// Names become directories, links and host names, so they are what Kubernetes lets them be.
pub(crate) fn check_name(kind: &'static str, name: &str) -> Result<(), BuildError> {
    let is_alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let is_label = (1..=40).contains(&name.len())
        && name.chars().all(|c| is_alphanumeric(c) || c == '-')
        && name.starts_with(is_alphanumeric)
        && name.ends_with(is_alphanumeric);
    if is_label { Ok(()) } else { Err(BuildError::Name { kind, name: name.to_owned() }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_label() {
        for good in ["a", "web-1", "0", "node-a"] {
            assert!(check_name("pod", good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "../x", "a/b", &"x".repeat(41)] {
            assert!(check_name("pod", bad).is_err(), "{bad}");
        }
    }
}
