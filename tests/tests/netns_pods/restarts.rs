//! Agents come and go; pods stay.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use tests::pods::{Cluster, is_ready, kubectl};

/// The ids of the containers' first processes, whichever runtime's cgroups they are in.
fn programs(cluster: &Cluster) -> BTreeSet<String> {
    let cgroup = cluster.node.cgroup().to_owned();
    let mut found = BTreeSet::new();
    let pods = fs::read_dir(cgroup).unwrap().flatten();
    for agent in pods.filter(|one| one.file_name().to_string_lossy().starts_with("fairlead-")) {
        for pod in fs::read_dir(agent.path()).unwrap().flatten() {
            let Ok(containers) = fs::read_dir(pod.path()) else { continue };
            for container in containers.flatten() {
                let procs = container.path().join("cgroup.procs");
                let text = fs::read_to_string(procs).unwrap_or_default();
                found.extend(text.lines().filter(|id| says_hello(id)).map(ToOwned::to_owned));
            }
        }
    }
    found
}

fn says_hello(process: &str) -> bool {
    let line = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
    line == b"/fairlead\0hello\0"
}

#[test]
fn an_agent_killed_twenty_times_loses_no_pod() {
    let mut cluster = Cluster::start("kills", kubectl());
    cluster.ok("create deployment hello --image=fairlead/hello --replicas=3");
    let all_ready =
        |c: &Cluster| Some(c.pods()).filter(|pods| pods.len() == 3 && pods.iter().all(is_ready));
    let pods = cluster.until("three pods are ready", all_ready);
    let before = programs(&cluster);
    assert_eq!(before.len(), 3);
    let url = format!("http://{}:8080/", pods[0]["status"]["podIP"].as_str().unwrap());
    for _ in 0..20 {
        cluster.kill_agent();
        let answer = cluster.on_node(&["curl", "-s", "-m", "5", &url]);
        assert_eq!(answer, pods[0]["metadata"]["name"].as_str().unwrap());
        cluster.start_agent();
    }
    // The last agent is in charge: it replaces what is deleted.
    let name = pods[0]["metadata"]["name"].as_str().unwrap();
    cluster.ok(&format!("delete pod {name}"));
    cluster.until("the deleted one is replaced", all_ready);
    let after = programs(&cluster);
    assert_eq!(before.intersection(&after).count(), 2, "{before:?} {after:?}");
    for pod in cluster.pods() {
        assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0, "{pod}");
    }
}

/// What a pod has of its own.
const NAMESPACES: [&str; 3] = ["net", "ipc", "uts"];

/// What pods leave on a node, by kind.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Traces {
    veths: usize,
    /// Of pods, and of their logs.
    dirs: [usize; 2],
    /// In each hierarchy.
    cgroups: usize,
    mounts: usize,
    /// Network, IPC and host name namespaces that pods are in or the agent holds.
    namespaces: usize,
    processes: usize,
}

/// Counts what a cluster's pods have left on its first node.
pub(crate) fn traces(cluster: &Cluster) -> Traces {
    let node = cluster.node.name();
    let links = cluster.on_node(&["ip", "-o", "link"]);
    let root = cluster.root_of(node);
    let count = |dir: &str| fs::read_dir(root.join(dir)).map(Iterator::count).unwrap_or_default();
    let name = format!("fairlead-{node}");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let all = fs::read_dir("/proc").unwrap().flatten().map(|one| one.path());
    let is_pods = |process: &PathBuf| {
        let cgroup = fs::read_to_string(process.join("cgroup")).unwrap_or_default();
        cgroup.contains(&format!("/{name}/"))
    };
    let processes: Vec<PathBuf> = all.filter(is_pods).collect();
    let of_pods = processes
        .iter()
        .flat_map(|process| NAMESPACES.map(|kind| process.join("ns").join(kind)))
        .filter_map(|link| fs::read_link(link).ok());
    let descriptors = fs::read_dir(format!("/proc/{}/fd", cluster.agent_id())).unwrap().flatten();
    let held = descriptors.filter_map(|one| fs::read_link(one.path()).ok()).filter(|link| {
        NAMESPACES.iter().any(|kind| link.to_string_lossy().starts_with(&format!("{kind}:[")))
    });
    let namespaces: BTreeSet<PathBuf> = of_pods.chain(held).collect();
    Traces {
        veths: links.lines().filter(|line| line.contains("fairlead0 state")).count(),
        dirs: ["pods", "logs"].map(count),
        cgroups: hierarchies(cluster, &name).iter().map(|dir| directories(dir)).sum(),
        mounts: mounts.lines().filter(|one| one.contains(&*root.to_string_lossy())).count(),
        namespaces: namespaces.len(),
        processes: processes.len(),
    }
}

/// Where the pods' cgroups are: of v2, and of each controller on v1.
fn hierarchies(cluster: &Cluster, name: &str) -> Vec<PathBuf> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    let v1 = ["cpu", "memory", "pids"].into_iter().filter_map(|controller| {
        let inside = own.lines().find_map(|line| {
            line.split_once(':')?.1.strip_prefix(controller)?.strip_prefix(":/")
        })?;
        Some(Path::new("/sys/fs/cgroup").join(controller).join(inside).join(name))
    });
    std::iter::once(cluster.node.cgroup().join(name)).chain(v1).collect()
}

fn directories(dir: &Path) -> usize {
    let Ok(all) = fs::read_dir(dir) else { return 0 };
    all.flatten().filter(|one| one.path().is_dir()).count()
}

#[test]
fn pods_that_go_leave_nothing() {
    let cluster = Cluster::start("leaks", kubectl());
    let nothing = traces(&cluster);
    for _ in 0..3 {
        cluster.ok("create deployment many --image=fairlead/pause --replicas=10");
        cluster.until("ten pods are ready", |c| {
            (c.pods().iter().filter(|pod| is_ready(pod)).count() == 10).then_some(())
        });
        let some = traces(&cluster);
        assert_eq!((some.veths, some.dirs), (10, [10, 10]));
        assert!(some.cgroups >= 10 && some.processes >= 20, "{some:?}");
        assert!(some.namespaces >= nothing.namespaces + 30, "{some:?}");
        cluster.ok("delete deployment many");
        cluster.until("nothing of them is left", |c| (traces(c) == nothing).then_some(()));
    }
}
