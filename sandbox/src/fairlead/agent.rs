//! The companion and a node agent: the Kubernetes API of a machine, and pods that really run.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use super::{
    Fairlead,
    proxy::{Proxy, open_log},
};
use crate::{
    address::{SERVICE_CIDR_V4, SERVICE_CIDR_V6},
    error::SpawnError,
    node::Node,
    process::Process,
};

/// What a node agent is told, which is the node's proxy and answers its names as well.
#[derive(Debug, Clone)]
pub struct AgentOptions {
    /// How it reaches the API.
    pub kubeconfig: PathBuf,
    /// Its directory on a bpffs.
    pub bpffs: PathBuf,
    /// Where pods and what else it knows are kept.
    pub dir: PathBuf,
    /// More arguments.
    pub more: Vec<String>,
}

impl Fairlead {
    /// Starts a companion on `node`, which keeps everything in `dir` and serves on the node's
    /// loopback alone. It writes `kubeconfig` once it listens.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub fn companion(
        &self,
        node: &Node,
        dir: &Path,
        kubeconfig: &Path,
    ) -> Result<Process, SpawnError> {
        let ranges = format!("--service-cluster-ip-range={SERVICE_CIDR_V4},{SERVICE_CIDR_V6}");
        node.command(self.path())
            .args(["control", "--listen", "127.0.0.1:6443", &ranges])
            .arg("--data")
            .arg(dir)
            .arg("--kubeconfig-out")
            .arg(kubeconfig)
            .stdout(Stdio::null())
            .stderr(open_log(node, &dir.with_extension("log"))?)
            .spawn()
    }

    /// Starts an agent on `node`, with its log in `log`. Its pods live on without it.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub fn agent(
        &self,
        node: &Node,
        options: &AgentOptions,
        log: &Path,
    ) -> Result<Proxy, SpawnError> {
        let AgentOptions { kubeconfig, bpffs, dir, more } = options;
        let process = node
            .command(self.path())
            .args(["node", "--run-pods", "--hostname-override", node.name()])
            .arg(format!("--pod-cidr={}", node.pod_cidrs().join(",")))
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .arg("--cgroup")
            .arg(node.cgroup())
            .arg("--bpffs")
            .arg(bpffs)
            .arg("--root-dir")
            .arg(dir.join("pods"))
            .arg("--snapshot")
            .arg(dir.join("names"))
            .args(more)
            .stdout(Stdio::null())
            .stderr(open_log(node, log)?)
            .spawn()?;
        Ok(Proxy::of(process, log.to_owned()))
    }
}
