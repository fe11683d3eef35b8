//! A pod that somebody else runs on a node: entered, and neither made nor ended here.

use std::{
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    error::BuildError,
    netns::Netns,
    node::Node,
    process::Launch,
    record::{self, at},
};

/// A pod that an agent runs on a [`Node`].
#[derive(Debug)]
pub struct Guest {
    name: String,
    process: i32,
    netns: Netns,
    cgroup: PathBuf,
}

impl Guest {
    /// Enters the pod one of whose containers runs in `cgroup`; `name` is what the sandbox calls it.
    ///
    /// # Errors
    /// When nothing runs there, or the name is taken.
    pub fn enter(name: &str, node: &Node, cgroup: &Path) -> Result<Self, BuildError> {
        let procs = cgroup.join("cgroup.procs");
        let text = fs::read_to_string(&procs).map_err(at("reading", &procs))?;
        let first = text.lines().find_map(|line| line.parse().ok());
        let process: i32 = first
            .ok_or_else(|| io::ErrorKind::NotFound.into())
            .map_err(at("looking for a process in", cgroup))?;
        let namespace = PathBuf::from(format!("/proc/{process}/ns/net"));
        let netns = Netns::open(&namespace).map_err(at("opening", &namespace))?;
        record::add_place(node.sandbox_dir(), name, &netns, cgroup)?;
        Ok(Self { name: name.to_owned(), process, netns, cgroup: cgroup.to_owned() })
    }

    /// What the sandbox calls it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A program of this machine's to start in the pod's network and cgroup.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Launch {
        Launch::new(program.as_ref(), &self.name, &self.netns, &self.cgroup)
    }

    /// A program that is among the container's own files, which it sees as the container does.
    pub fn command_inside(&self, program: impl AsRef<OsStr>) -> Launch {
        let enter = ["--mount", "--root", "--wd=/", "--target", &self.process.to_string()];
        self.command("nsenter").args(enter).arg(program)
    }
}
