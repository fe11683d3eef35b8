//! Pods that cannot run, will not end or fall ill: the status says so, and the node is unharmed.

use serde_json::Value;

use tests::pods::{Cluster, is_ready, kubectl};

fn pod(name: &str, container: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  \
         terminationGracePeriodSeconds: 3\n  containers:\n  - {{name: c, {container}}}\n"
    )
}

fn state(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]["state"]
}

/// Events are told after the fact.
fn until_told(cluster: &Cluster, words: &[&str]) {
    cluster.until(&format!("{words:?} are told"), |c| {
        let events = c.ok("get events");
        words.iter().all(|word| events.contains(word)).then_some(())
    });
}

#[test]
fn what_is_wrong_with_a_pod_is_said() {
    let cluster = Cluster::start("trouble", kubectl());
    cluster.apply(&pod("image", "image: 'nosuch:1'"));
    cluster.apply(&pod("command", "image: fairlead/client, command: [nosuch]"));
    cluster.apply(&pod("key", "image: fairlead/client, envFrom: [{configMapRef: {name: q}}]"));
    cluster.apply(&pod("crash", "image: fairlead/client, command: [sh, -c, 'exit 3']"));
    let waits = |name: &str, reason: &str| {
        cluster.until(&format!("{name} waits for {reason}"), |c| {
            (state(&c.pod(name))["waiting"]["reason"] == reason).then_some(())
        });
    };
    waits("image", "ErrImagePull");
    waits("image", "ImagePullBackOff");
    waits("command", "CrashLoopBackOff");
    let last = cluster.pod("command")["status"]["containerStatuses"][0]["lastState"].clone();
    assert_eq!(last["terminated"]["reason"], "StartError", "{last}");
    assert_eq!(last["terminated"]["exitCode"], 128);
    waits("key", "CreateContainerConfigError");
    waits("crash", "CrashLoopBackOff");
    let crash = cluster.pod("crash")["status"]["containerStatuses"][0].clone();
    assert_eq!(crash["lastState"]["terminated"]["exitCode"], 3, "{crash}");
    until_told(&cluster, &["BackOff", "Failed", "nosuch", "configmap \"q\" not found"]);
    // What was missing comes, and the pod runs.
    cluster.ok("create configmap q --from-literal=a=b");
    cluster.until_ready("key");
    for name in ["image", "command", "key", "crash"] {
        cluster.ok(&format!("delete pod {name} --grace-period=1"));
    }
}

#[test]
fn pods_that_fall_ill_are_restarted_or_left_out() {
    let cluster = Cluster::start("ill", kubectl());
    let liveness = "image: fairlead/client, command: [sh, -c, 'touch /tmp/well; exec sleep 600'], \
                    livenessProbe: {exec: {command: [cat, /tmp/well]}, periodSeconds: 1, \
                    failureThreshold: 1}, readinessProbe: {exec: {command: [test, -e, \
                    /tmp/ready]}, periodSeconds: 1, failureThreshold: 1}";
    cluster.apply(&pod("ill", liveness));
    let restarts = |c: &Cluster| {
        c.pod("ill")["status"]["containerStatuses"][0]["restartCount"].as_u64().unwrap_or(0)
    };
    cluster.until("it runs", |c| (!state(&c.pod("ill"))["running"].is_null()).then_some(()));
    assert!(!is_ready(&cluster.pod("ill")));
    cluster.ok("exec ill -- touch /tmp/ready");
    cluster.until_ready("ill");
    cluster.ok("exec ill -- rm /tmp/ready");
    cluster.until("it is not ready", |c| (!is_ready(&c.pod("ill"))).then_some(()));
    assert_eq!(restarts(&cluster), 0);
    cluster.ok("exec ill -- rm /tmp/well");
    // sleep does not hear SIGTERM as the first process: it is killed after its grace period.
    cluster.until("it is restarted", |c| (restarts(c) == 1).then_some(()));
    until_told(&cluster, &["Unhealthy", "Liveness probe failed", "Killing"]);
}

#[test]
fn a_fork_bomb_stays_within_its_limit() {
    let cluster = Cluster::start("limits", kubectl());
    let bomb = "image: fairlead/client, command: [sh, -c, 'while :; do sleep 600 & done']";
    cluster.apply(&pod("bomb", bomb));
    // The node goes on, and the bomb can be removed.
    cluster.apply(&pod("well", "image: fairlead/hello"));
    cluster.until_ready("well");
    cluster.ok("delete pod bomb --grace-period=1");
    assert!(!cluster.run("get pod bomb").1);
}
