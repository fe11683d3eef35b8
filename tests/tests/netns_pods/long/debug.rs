//! `kubectl debug`: a container that is put into a pod that runs.

use serde_json::Value;
use tests::pods::{Cluster, container, is_ready, kubectl};

/// The status of a pod's ephemeral container.
fn status(cluster: &Cluster, name: &str) -> Value {
    let all = cluster.pod("web")["status"]["ephemeralContainerStatuses"].clone();
    let all = all.as_array().cloned().unwrap_or_default();
    all.into_iter().find(|one| one["name"] == name).unwrap_or_default()
}

#[test]
fn a_debug_container_looks_into_a_pod_that_runs() {
    let cluster = Cluster::start("debugs", kubectl());
    cluster.ok("run web --image=fairlead/hello");
    let before = cluster.until_ready("web");
    let debug = |name: &str, command: &str| {
        let container = format!("--container={name}");
        let words = ["debug", "web", "--image=fairlead/client", &container, "--", "sh", "-c"];
        let (said, well) = cluster.run_words(&[&words[..], &[command]].concat());
        assert!(well, "{said}");
    };
    debug(
        "looks",
        "curl -s http://localhost:8080/; trap 'exit 3' TERM; while :; do sleep 0.1; done",
    );
    cluster.until("it runs", |c| (!status(c, "looks")["state"]["running"].is_null()).then_some(()));
    // It has the pod's network and names.
    cluster.until("it asks the pod's own server", |c| {
        (c.run("logs web -c looks").0.trim() == "web").then_some(())
    });
    assert_eq!(cluster.ok("exec web -c looks -- hostname").trim(), "web");

    // It is not started again, whatever the pod's policy is, and the pod goes on.
    cluster.until("it ends", |c| {
        c.run("exec web -c looks -- kill 1");
        (status(c, "looks")["state"]["terminated"]["exitCode"] == 3).then_some(())
    });
    debug("again", "echo hello");
    cluster.until("another one ends", |c| {
        (status(c, "again")["state"]["terminated"]["exitCode"] == 0).then_some(())
    });
    assert_eq!(cluster.ok("logs web -c again").trim(), "hello");
    assert_eq!(status(&cluster, "looks")["restartCount"], 0);
    let after = cluster.pod("web");
    assert!(is_ready(&after));
    assert_eq!(container(&after)["containerID"], container(&before)["containerID"]);

    // With a target it sees that container's processes, and leaves none of its own.
    let command = "tr '\\0' ' ' < /proc/1/cmdline; sleep 1000 & echo";
    let (said, well) = cluster.run_words(&[
        "debug",
        "web",
        "--image=fairlead/client",
        "--container=into",
        "--target=web",
        "--",
        "sh",
        "-c",
        command,
    ]);
    assert!(well, "{said}");
    cluster.until("it ends", |c| {
        (status(c, "into")["state"]["terminated"]["exitCode"] == 0).then_some(())
    });
    assert_eq!(cluster.ok("logs web -c into").trim(), "/fairlead hello");
    let (said, well) = cluster.run("debug web --image=fairlead/client --target=none -- true");
    assert!(!well && said.contains("targetContainerName"), "{said}");

    // There is no other way in, and none out.
    let other = r#"{"spec":{"ephemeralContainers":[{"name":"x","image":"fairlead/client"}]}}"#;
    let (said, well) = cluster.run_words(&["patch", "pod", "web", "-p", other]);
    assert!(!well && said.contains("pod updates may not change fields"), "{said}");
    cluster.ok("delete pod web --grace-period=1");
}
