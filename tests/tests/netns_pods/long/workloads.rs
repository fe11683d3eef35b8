//! Sets and jobs whose pods really run: their order, their names, their nodes, their end.

use std::collections::BTreeSet;
use std::fs;

use tests::pods::{Cluster, container, is_ready, kubectl, name};

/// Pods are ready, and end, when a file says so: their order does not hang on anybody's pace.
const SET: &str = "
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, selector: {app: db}, ports: [{port: 8080}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 3
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 300
      containers:
      - name: db
        image: fairlead/hello
        readinessProbe: {exec: {command: [test, -e, /tmp/ready]}, periodSeconds: 1, timeoutSeconds: 30}
        lifecycle: {preStop: {exec: {command: [sh, -c, 'until test -e /tmp/go; do sleep 0.1; done']}}}
";

fn names(cluster: &Cluster) -> Vec<String> {
    cluster.pods().iter().map(|pod| name(pod).to_owned()).collect()
}

fn uid(cluster: &Cluster, pod: &str) -> String {
    cluster.pod(pod)["metadata"]["uid"].as_str().unwrap().to_owned()
}

fn is_going(pod: &serde_json::Value) -> bool {
    !pod["metadata"]["deletionTimestamp"].is_null()
}

#[test]
fn a_stateful_set_starts_and_ends_in_order_and_its_pods_keep_their_names() {
    let cluster = Cluster::start("ordered", kubectl());
    cluster.apply(SET);
    let all = ["db-0", "db-1", "db-2"];
    for (n, pod) in all.iter().enumerate() {
        cluster.until_running(pod);
        // It is not ready, so the next one is not made.
        assert_eq!(names(&cluster), all[..=n], "while {pod} is not ready");
        cluster.sh(pod, "touch /tmp/ready");
        cluster.until_ready(pod);
    }

    // A container that ends is started again in the same pod.
    let before = cluster.pod("db-1");
    cluster.sh("db-1", "kill 1");
    let after = cluster.until("its container is started again", |c| {
        let pod = c.pod("db-1");
        let again = container(&pod)["restartCount"] == 1;
        (again && !container(&pod)["state"]["running"].is_null()).then_some(pod)
    });
    assert_eq!(after["metadata"]["uid"], before["metadata"]["uid"]);
    assert_eq!(after["status"]["podIP"], before["status"]["podIP"]);
    cluster.sh("db-1", "touch /tmp/ready");
    cluster.until_ready("db-1");

    // A pod that is deleted is made again: another one, of the same name.
    let before = all.map(|pod| uid(&cluster, pod));
    cluster.ok("delete pod db-1 --wait=false");
    cluster.sh("db-1", "touch /tmp/go");
    cluster.until("another db-1 runs", |c| {
        let pod = c.find("pod", "db-1")?;
        let another = pod["metadata"]["uid"] != before[1].as_str();
        (another && !container(&pod)["state"]["running"].is_null()).then_some(())
    });
    cluster.sh("db-1", "touch /tmp/ready");
    let pod = cluster.until_ready("db-1");
    assert_eq!([uid(&cluster, "db-0"), uid(&cluster, "db-2")], [&*before[0], &*before[2]]);
    assert_eq!(cluster.sh("db-1", "hostname"), "db-1");
    let ip = pod["status"]["podIP"].as_str().unwrap();
    cluster.until("its name leads to where it is now", |c| {
        c.run("exec db-0 -- getent ahostsv4 db-1.db").0.contains(ip).then_some(())
    });
    let asked = cluster.sh("db-0", "curl -s -m 5 http://db-1.db:8080/");
    assert_eq!(asked, "db-1");

    // The last goes first, and each waits for the one after it.
    cluster.ok("scale statefulset db --replicas=0");
    for n in (0..all.len()).rev() {
        cluster.until(&format!("db-{n} is asked to end"), |c| {
            let pod = c.find("pod", all[n])?;
            is_going(&pod).then_some(())
        });
        assert_eq!(names(&cluster), all[..=n]);
        for earlier in &all[..n] {
            assert!(!is_going(&cluster.pod(earlier)), "{earlier} goes before db-{n} has gone");
        }
        cluster.sh(all[n], "touch /tmp/go");
    }
    cluster.until("none is left", |c| c.pods().is_empty().then_some(()));
}

const DAEMONS: &str = "
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: each}
spec:
  selector: {matchLabels: {app: each}}
  template:
    metadata: {labels: {app: each}}
    spec: {containers: [{name: hello, image: fairlead/hello}]}
";

/// Waits until just these nodes have a pod each, and it is ready.
fn until_on(cluster: &Cluster, nodes: &[&str]) {
    let wanted: BTreeSet<&str> = nodes.iter().copied().collect();
    cluster.until(&format!("a pod is on each of {nodes:?}"), |c| {
        let pods = c.pods();
        let on: BTreeSet<&str> =
            pods.iter().filter_map(|pod| pod["spec"]["nodeName"].as_str()).collect();
        let well = pods.len() == nodes.len() && pods.iter().all(is_ready) && on == wanted;
        well.then_some(())
    });
    cluster.until("the set counts them", |c| {
        let set = c.find("daemonset", "each")?;
        let n = nodes.len();
        let counted = ["desiredNumberScheduled", "numberReady", "numberAvailable"];
        counted.iter().all(|field| set["status"][field] == n).then_some(())
    });
}

#[test]
fn a_daemon_set_follows_nodes_that_join_and_leave() {
    let mut cluster = Cluster::start_many("daemons", kubectl(), &["daemon-a", "daemon-b"]);
    cluster.apply(DAEMONS);
    until_on(&cluster, &["daemon-a", "daemon-b"]);

    cluster.join("daemon-c");
    until_on(&cluster, &["daemon-a", "daemon-b", "daemon-c"]);
    // Nodes reach each other's pods.
    for pod in cluster.pods() {
        for ip in pod["status"]["podIPs"].as_array().unwrap() {
            let ip = ip["ip"].as_str().unwrap();
            let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
            let answer = cluster.until(&format!("{ip} is reached"), |c| {
                let answer = c.on_node(&["curl", "-s", "-m", "5", &format!("http://{host}:8080/")]);
                Some(answer).filter(|answer| !answer.is_empty())
            });
            assert_eq!(answer, name(&pod));
        }
    }

    cluster.kill_agent_of("daemon-c");
    cluster.ok("delete node daemon-c");
    until_on(&cluster, &["daemon-a", "daemon-b"]);

    // It comes back with what it left running, which nobody asks for any more.
    cluster.join("daemon-c");
    until_on(&cluster, &["daemon-a", "daemon-b", "daemon-c"]);
    let pods = cluster.pods();
    let here = pods.iter().find(|pod| pod["spec"]["nodeName"] == "daemon-c").unwrap();
    let dir = cluster.root_of("daemon-c").join("pods");
    cluster.until("only the new pod is on it", |_| {
        let found: Vec<_> = fs::read_dir(&dir).unwrap().flatten().collect();
        let alone =
            found.len() == 1 && found[0].file_name().to_str() == here["metadata"]["uid"].as_str();
        alone.then_some(())
    });
}

const JOB: &str = "
apiVersion: batch/v1
kind: Job
metadata: {name: work}
spec:
  template:
    spec:
      restartPolicy: Never
      initContainers:
      - name: side
        image: fairlead/client
        restartPolicy: Always
        command: [sh, -c, 'trap \"test -e /shared/done && echo after; exit 0\" TERM; touch /shared/up;
          while :; do sleep 0.1; done']
        startupProbe: {exec: {command: [test, -e, /shared/up]}, periodSeconds: 1, timeoutSeconds: 30}
        volumeMounts: [{name: shared, mountPath: /shared}]
      containers:
      - name: main
        image: fairlead/client
        command: [sh, -c, 'test -e /shared/up && touch /shared/done']
        volumeMounts: [{name: shared, mountPath: /shared}]
      volumes: [{name: shared, emptyDir: {}}]
";

#[test]
fn a_job_ends_whose_sidecar_would_run_for_ever() {
    let cluster = Cluster::start("jobs", kubectl());
    cluster.apply(JOB);
    cluster.until("the job is complete", |c| {
        let job = c.find("job", "work")?;
        let conditions = job["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|one| one["type"] == "Complete").then_some(())
    });
    let pods = cluster.pods();
    assert_eq!(pods.len(), 1, "the sidecar was there when the container began: {pods:?}");
    assert_eq!(pods[0]["status"]["phase"], "Succeeded");
    let side = &pods[0]["status"]["initContainerStatuses"][0];
    assert_eq!(side["state"]["terminated"]["exitCode"], 0, "{side}");
    assert_eq!(side["restartCount"], 0, "{side}");
    // The sidecar was asked to end when the container had ended.
    let said = cluster.ok(&format!("logs {} -c side", name(&pods[0])));
    assert_eq!(said.trim(), "after");
}

const WAITS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: app}
spec:
  terminationGracePeriodSeconds: 1
  initContainers:
  - {name: init-service, image: fairlead/client, command: [sh, -c, 'until nslookup service; do sleep 0.5; done']}
  - {name: init-db, image: fairlead/client, command: [sh, -c, 'until nslookup db; do sleep 0.5; done']}
  containers: [{name: app, image: fairlead/client}]
";

#[test]
fn a_pod_waits_for_two_services_one_after_the_other() {
    let cluster = Cluster::start("waits", kubectl());
    cluster.apply(WAITS);
    let shows = |status: &str| {
        cluster.until(&format!("kubectl shows {status}"), |c| {
            let (text, _) = c.run("get pod app --no-headers");
            (text.split_whitespace().nth(2) == Some(status)).then_some(())
        });
    };
    cluster.until("the first asks", |c| {
        c.run("logs app -c init-service").0.contains("can't find service").then_some(())
    });
    shows("Init:0/2");
    // The second is not what the first waits for.
    cluster.ok("create service clusterip service --tcp=80:9376");
    cluster.until("the second asks", |c| {
        c.run("logs app -c init-db").0.contains("can't find db").then_some(())
    });
    shows("Init:1/2");
    assert!(!is_ready(&cluster.pod("app")));
    cluster.ok("create service clusterip db --tcp=80:9377");
    cluster.until_ready("app");
    shows("Running");
}
