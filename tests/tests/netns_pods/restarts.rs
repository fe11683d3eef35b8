//! Agents come and go; pods stay.

use std::collections::BTreeSet;
use std::fs;

use crate::agent::{Cluster, is_ready, kubectl};

/// The ids of the containers' first processes.
fn programs(cluster: &Cluster) -> BTreeSet<String> {
    let cgroup = cluster.node.cgroup().to_owned();
    let mut found = BTreeSet::new();
    let pods = fs::read_dir(cgroup).unwrap().flatten();
    for agent in pods.filter(|one| one.file_name().to_string_lossy().starts_with("fairlead-")) {
        for pod in fs::read_dir(agent.path()).unwrap().flatten() {
            let procs = pod.path().join("hello/cgroup.procs");
            let text = fs::read_to_string(procs).unwrap_or_default();
            found.extend(text.lines().map(ToOwned::to_owned));
        }
    }
    found
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

#[test]
fn pods_that_go_leave_nothing() {
    let cluster = Cluster::start("leaks", kubectl());
    let root = cluster.dir.path().join("pods");
    let traces = |c: &Cluster| {
        let links = c.on_node(&["ip", "-o", "link"]);
        let veths = links.lines().filter(|line| line.contains("fairlead0 state")).count();
        let dirs = ["pods", "logs"]
            .map(|dir| fs::read_dir(root.join(dir)).map(Iterator::count).unwrap_or_default());
        let cgroup = c.node.cgroup().join("fairlead-leaks");
        let cgroups = fs::read_dir(cgroup).unwrap().flatten();
        let cgroups = cgroups.filter(|one| one.path().is_dir()).count();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mounts = mounts.lines().filter(|one| one.contains(&*root.to_string_lossy())).count();
        let processes = fs::read_dir("/proc").unwrap().flatten().filter(|one| {
            let cgroup = fs::read_to_string(one.path().join("cgroup")).unwrap_or_default();
            cgroup.contains("/fairlead-leaks/")
        });
        (veths, dirs, cgroups, mounts, processes.count())
    };
    for _ in 0..3 {
        cluster.ok("create deployment many --image=fairlead/pause --replicas=10");
        cluster.until("ten pods are ready", |c| {
            (c.pods().iter().filter(|pod| is_ready(pod)).count() == 10).then_some(())
        });
        assert_eq!(traces(&cluster).1, [10, 10]);
        cluster.ok("delete deployment many");
        cluster.until("nothing of them is left", |c| {
            (traces(c) == (0, [0, 0], 0, 0, 0)).then_some(())
        });
    }
}
