//! What asks for what it cannot have, and what will not end.

use std::fs;

use serde_json::Value;

use tests::pods::{Cluster, container, is_ready, kubectl};

fn pod(name: &str, grace: u32, container: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  \
         terminationGracePeriodSeconds: {grace}\n  containers:\n  - {{name: c, {container}}}\n"
    )
}

/// Waits until an event of this reason about a pod says these words.
fn until_told(cluster: &Cluster, pod: &str, reason: &str, words: &str) {
    cluster.until(&format!("{reason} of {pod}: {words}"), |c| {
        let about = format!("get events --field-selector involvedObject.name={pod} -o json");
        let events: Value = serde_json::from_str(&c.ok(&about)).unwrap();
        let told = events["items"].as_array().unwrap().iter().any(|event| {
            event["reason"] == reason && event["message"].as_str().unwrap().contains(words)
        });
        told.then_some(())
    });
}

#[test]
fn a_probe_of_a_closed_port_says_so() {
    let cluster = Cluster::start("closed", kubectl());
    let probe = |kind: &str, probe: &str| {
        format!(
            "image: fairlead/hello, {kind}: {{{probe}: {{port: 81}}, periodSeconds: 1, \
             failureThreshold: 2, timeoutSeconds: 30}}"
        )
    };
    cluster.apply(&pod("unready", 2, &probe("readinessProbe", "tcpSocket")));
    cluster.apply(&pod("unlively", 2, &probe("livenessProbe", "httpGet")));
    let ip = |pod: &str| cluster.pod(pod)["status"]["podIP"].as_str().unwrap().to_owned();
    cluster.until_running("unready");
    let words = format!("dial tcp {}:81: connect: connection refused", ip("unready"));
    until_told(&cluster, "unready", "Unhealthy", &format!("Readiness probe failed: {words}"));
    cluster.until("unlively is restarted", |c| {
        let again = container(&c.pod("unlively"))["restartCount"].as_u64()?;
        (again > 0).then_some(())
    });
    let ip = ip("unlively");
    let words = format!("Get \"http://{ip}:81/\": dial tcp {ip}:81: connect: connection refused");
    until_told(&cluster, "unlively", "Unhealthy", &format!("Liveness probe failed: {words}"));
    let words = "Container c failed liveness probe, will be restarted";
    until_told(&cluster, "unlively", "Killing", words);
    let unready = cluster.pod("unready");
    assert!(!is_ready(&unready));
    assert_eq!(container(&unready)["restartCount"], 0, "{unready}");
}

#[test]
fn who_asks_for_more_than_the_node_has_waits_and_who_takes_more_than_it_may_ends() {
    let cluster = Cluster::start("greedy", kubectl());
    let wants = |what: &str| format!("image: fairlead/client, resources: {{{what}}}");
    cluster.apply(&pod("cores", 1, &wants("requests: {cpu: '1000'}")));
    cluster.apply(&pod("bytes", 1, &wants("limits: {memory: 1000Ti}")));
    // It may take more than there is, but does not ask for it.
    let modest = "requests: {memory: 1Mi, cpu: 1m}, limits: {memory: 1000Ti, cpu: '1000'}";
    cluster.apply(&pod("modest", 1, &wants(modest)));
    let eats = "image: fairlead/client, command: [sh, -c, 'tail /dev/zero'], resources: \
                {limits: {memory: 64Mi}}";
    cluster.apply(&pod("eats", 1, eats));
    let words = "0/1 nodes are available: 1 Insufficient";
    until_told(&cluster, "cores", "FailedScheduling", &format!("{words} cpu"));
    until_told(&cluster, "bytes", "FailedScheduling", &format!("{words} memory"));
    for name in ["cores", "bytes"] {
        let pod = cluster.pod(name);
        assert_eq!(pod["status"]["phase"], "Pending");
        let conditions = pod["status"]["conditions"].as_array().unwrap();
        let placed = conditions.iter().find(|one| one["type"] == "PodScheduled").unwrap();
        assert_eq!(placed["reason"], "Unschedulable", "{placed}");
    }
    cluster.until_ready("modest");
    let ended = cluster.until("what eats too much is killed", |c| {
        let pod = c.pod("eats");
        let last = container(&pod)["lastState"]["terminated"].clone();
        (!last.is_null()).then_some(last)
    });
    assert_eq!((&ended["reason"], &ended["exitCode"]), (&"OOMKilled".into(), &137.into()));
    // The others live on.
    assert!(is_ready(&cluster.pod("modest")));
}

#[test]
fn a_fork_bomb_gets_as_many_processes_as_a_pod_may_have() {
    let cluster = Cluster::start("bombs", kubectl());
    let bomb = "image: fairlead/client, command: [sh, -c, 'while :; do sleep 3600 & done']";
    cluster.apply(&pod("bomb", 1, bomb));
    cluster.until_running("bomb");
    let uid = cluster.pod("bomb")["metadata"]["uid"].as_str().unwrap().to_owned();
    let n_processes = || -> usize {
        let all = fs::read_dir("/proc").unwrap().flatten();
        let of_pod = all.filter(|one| {
            let cgroup = fs::read_to_string(one.path().join("cgroup")).unwrap_or_default();
            cgroup.contains(&uid)
        });
        of_pod.count()
    };
    // 1,024 is what a pod may have unless told otherwise, and its shell says what happens then.
    cluster.until("it has what it may have", |_| (n_processes() >= 1000).then_some(()));
    cluster.until("it is refused more", |c| {
        c.run("logs bomb --tail=5").0.contains("fork").then_some(())
    });
    assert!(n_processes() <= 1024);
    cluster.apply(&pod("well", 1, "image: fairlead/hello"));
    cluster.until_ready("well");
    cluster.ok("delete pod bomb --timeout=100s");
    cluster.until("nothing is left of it", |_| (n_processes() == 0).then_some(()));
}

#[test]
fn who_ignores_sigterm_is_killed_when_its_time_is_over() {
    let cluster = Cluster::start("deaf", kubectl());
    let deaf = "image: fairlead/client, command: [sh, -c, 'trap \"echo no\" TERM; touch /tmp/deaf; \
                while :; do sleep 0.1; done'], readinessProbe: {exec: {command: [test, -e, /tmp/deaf]}, \
                periodSeconds: 1, timeoutSeconds: 30}";
    cluster.apply(&pod("deleted", 3, deaf));
    cluster.apply(&format!("{}  activeDeadlineSeconds: 20\n", pod("late", 3, deaf)));
    cluster.until_ready("deleted");
    cluster.until_ready("late");
    cluster.ok("delete pod deleted --wait=false");
    cluster.until("it hears", |c| {
        let (said, well) = c.run("logs deleted");
        (said.contains("no") || !well).then_some(())
    });
    cluster.until("it is gone all the same", |c| c.find("pod", "deleted").is_none().then_some(()));
    // What is ended without being deleted says how.
    let pod = cluster.until("the other's time is over", |c| {
        let pod = c.pod("late");
        (!container(&pod)["state"]["terminated"].is_null()).then_some(pod)
    });
    assert_eq!(container(&pod)["state"]["terminated"]["exitCode"], 137, "{pod}");
    let pod = cluster.until("it has failed", |c| {
        let pod = c.pod("late");
        (pod["status"]["phase"] == "Failed").then_some(pod)
    });
    assert_eq!(pod["status"]["reason"], "DeadlineExceeded");
    assert!(cluster.ok("logs late").contains("no"));
}
