//! Do the node's pods run below the cgroup whose sockets are translated?
//!
//! A container started with a cgroup namespace of its own sees its own cgroup as the root, and would
//! translate its own connections only. So before the dataplane takes charge, the pods that the
//! cluster places on this node are looked up by their addresses among the machine's processes, and
//! their cgroups compared with the one that was named.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use crate::links;
use crate::namespaces;
use crate::plan::{Plan, Target};

/// One process of a pod, and where it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodProcess {
    /// The pod's address.
    pub address: IpAddr,
    /// The process.
    pub pid: u32,
    /// Its cgroup, as this process sees it; `/../…` when it is above this one's namespace.
    pub cgroup: PathBuf,
}

/// The addresses of endpoints on this node. `[pure]`
pub fn local_addresses(plan: &Plan) -> BTreeSet<IpAddr> {
    plan.frontends
        .values()
        .filter_map(|frontend| match &frontend.routes.pod.target {
            Target::Endpoints(set) => Some(set),
            Target::Drop | Target::Reject => None,
        })
        .flat_map(|set| set.iter())
        .filter(|endpoint| endpoint.local)
        .map(|endpoint| endpoint.address.ip())
        .collect()
}

/// Checks the pods of this node that can be found. A node without any, or a process that may not
/// see others (no `hostPID`), passes.
///
/// # Errors
/// None of the pods that were found is below the cgroup: the message says where they are and what
/// to do.
pub fn check(plan: &Plan, cgroup: &Path) -> Result<(), String> {
    let local = local_addresses(plan);
    if local.is_empty() {
        return Ok(());
    }
    let Some(root) = load::cgroup2_mount() else { return Ok(()) };
    let named = fs::canonicalize(cgroup).unwrap_or_else(|_| cgroup.to_owned());
    let Ok(below) = named.strip_prefix(&root) else { return Ok(()) };
    let below = Path::new("/").join(below);

    let pods = pods(&local);
    warn_of_bypasses(&pods);
    let (inside, outside): (Vec<_>, Vec<_>) =
        pods.into_iter().partition(|pod| pod.cgroup.starts_with(&below));
    for pod in &outside {
        tracing::warn!(
            address = %pod.address,
            pid = pod.pid,
            cgroup = %pod.cgroup.display(),
            "this pod is not below --cgroup: its connections are not translated"
        );
    }
    match outside.first() {
        Some(pod) if inside.is_empty() => Err(refusal(cgroup, &root, pod)),
        _ => Ok(()),
    }
}

/// Names the pods whose packets no program meets: only what sockets can do is done for them.
fn warn_of_bypasses(pods: &[PodProcess]) {
    for pod in pods {
        // A process that has ended meanwhile is none of a pod's.
        let Ok(Some((device, kind))) = links::bypass(pod.pid) else { continue };
        tracing::warn!(
            address = %pod.address,
            device,
            "a pod is behind a {kind} device, whose packets do not pass this node: what is done at \
             its sockets works, that is TCP and UDP to cluster IPs of Services that do not lead to \
             the pod itself; node ports, load balancer and external addresses, SCTP and \
             --masquerade-all do not; connect the pod by a veth if it needs those"
        );
    }
}

fn refusal(cgroup: &Path, root: &Path, pod: &PodProcess) -> String {
    format!(
        "--cgroup {}: no pod of this node is below it; pod {} (process {}) is in cgroup {}; \
         name a cgroup above every pod, such as {} (in a container: mount the host's cgroup v2 \
         hierarchy and name that)",
        cgroup.display(),
        pod.address,
        pod.pid,
        pod.cgroup.display(),
        root.display(),
    )
}

/// One process for each pod address that a process of another network namespace has.
fn pods(addresses: &BTreeSet<IpAddr>) -> Vec<PodProcess> {
    let own = network_namespace("self");
    let mut of_namespace: BTreeMap<PathBuf, u32> = BTreeMap::new();
    for pid in processes() {
        if let Some(namespace) = network_namespace(&pid.to_string())
            && Some(&namespace) != own.as_ref()
        {
            of_namespace.entry(namespace).or_insert(pid);
        }
    }
    of_namespace
        .into_values()
        .filter_map(|pid| {
            let address = namespaces::addresses(Path::new(&format!("/proc/{pid}/net")))
                .intersection(addresses)
                .next()
                .copied()?;
            let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
            Some(PodProcess { address, pid, cgroup: cgroup2_path(&cgroup)? })
        })
        .collect()
}

fn processes() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

fn network_namespace(pid: &str) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/net")).ok()
}

/// The cgroup v2 line of `/proc/PID/cgroup`: `0::/kubepods/pod1`.
fn cgroup2_path(text: &str) -> Option<PathBuf> {
    text.lines().find_map(|line| line.strip_prefix("0::")).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup2_line_is_found_among_those_of_v1() {
        let text = "12:pids:/a\n1:name=systemd:/b\n0::/kubepods/pod1\n";
        assert_eq!(cgroup2_path(text), Some(PathBuf::from("/kubepods/pod1")));
        assert_eq!(cgroup2_path("12:pids:/a\n"), None);
    }
}
