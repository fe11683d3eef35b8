//! What heals by itself: containers, pods, nodes, endpoints; and updates that nobody notices.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use sandbox::fairlead::{Client, Fairlead};
use sandbox::traffic::{Load, Protocol, Until};
use serde_json::Value;

use tests::pods::{ASKS, Cluster, SOON, container, is_ready, kubectl, name, probed};

/// Where a Service leads, at its own address.
pub(super) fn vip(cluster: &Cluster, service: &str) -> SocketAddr {
    let ip = cluster.ok(&format!("get service {service} -o jsonpath={{.spec.clusterIP}}"));
    (ip.parse::<IpAddr>().unwrap(), 80).into()
}

/// Asks a Service again and again, from a pod beside the agent's own.
pub(super) fn ask(cluster: &Cluster, target: SocketAddr, rate: u32) -> Client {
    let pod = cluster.node.pod("asks").unwrap();
    let timeout = Duration::from_secs(20);
    let load = Load { target, protocol: Protocol::Http, rate, until: Until::Told, timeout };
    Fairlead::at(tests::binary::fairlead()).client(&pod, &load).unwrap()
}

/// The pods that a Service leads to.
fn endpoints(cluster: &Cluster, service: &str) -> BTreeSet<String> {
    let slices =
        cluster.ok(&format!("get endpointslices -l kubernetes.io/service-name={service} -o json"));
    let slices: Value = serde_json::from_str(&slices).unwrap();
    let slices = slices["items"].as_array().unwrap();
    let all = slices.iter().flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten());
    let ready = all.filter(|one| one["conditions"]["ready"] == true);
    ready.map(|one| one["targetRef"]["name"].as_str().unwrap().to_owned()).collect()
}

pub(super) fn until_ready_pods(cluster: &Cluster, n: usize) -> Vec<Value> {
    cluster.until(&format!("{n} pods are ready"), |c| {
        Some(c.pods()).filter(|pods| pods.len() == n && pods.iter().all(is_ready))
    })
}

/// Ends a container as the kernel would, when memory runs out: nobody asks it.
fn kill(cluster: &Cluster, pod: &Value) {
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    let node = cluster.node.name();
    let cgroup = cluster.node.cgroup().join(format!("fairlead-{node}"));
    let dirs = fs::read_dir(cgroup).unwrap().flatten();
    let dir = dirs.map(|dir| dir.path()).find(|dir| dir.display().to_string().contains(uid));
    // Named as the agent calls it, or as containerd does.
    let name = pod["spec"]["containers"][0]["name"].as_str().unwrap();
    let id = container(pod)["containerID"].as_str().unwrap().rsplit('/').next().unwrap();
    let leaves = [name, id].map(|leaf| dir.as_ref().unwrap().join(leaf).join("cgroup.kill"));
    let kill = leaves.iter().find(|file| file.exists()).unwrap();
    fs::write(kill, "1").unwrap();
}

fn seconds_between(earlier: &Value, later: &Value) -> i64 {
    let time = |time: &Value| time.as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    time(later).duration_since(time(earlier)).as_secs()
}

#[test]
fn a_container_that_is_killed_again_and_again_waits_longer_and_longer() {
    let cluster = Cluster::start("backoff", kubectl());
    cluster.ok("run victim --image=fairlead/hello");
    for n in 1..=3 {
        let pod = cluster.until_ready("victim");
        kill(&cluster, &pod);
        // The first time it comes back at once, as upstream's does.
        if n > 1 {
            cluster.until("it waits", |c| {
                let waiting = container(&c.pod("victim"))["state"]["waiting"].clone();
                (waiting["reason"] == "CrashLoopBackOff").then_some(())
            });
        }
        let pod = cluster.until("it is started again", |c| {
            let pod = c.pod("victim");
            let again = container(&pod)["restartCount"] == n;
            (again && !container(&pod)["state"]["running"].is_null()).then_some(pod)
        });
        let ended = &container(&pod)["lastState"]["terminated"];
        assert_eq!(ended["exitCode"], 137, "{ended}");
        let began = &container(&pod)["state"]["running"]["startedAt"];
        let waited = seconds_between(&ended["finishedAt"], began);
        // 0, 10 and 20 seconds; times are told in whole ones.
        let least = [0, 9, 19][n - 1];
        assert!(waited >= least, "started again after {waited} s, not {least}");
    }
    cluster.until("it is told", |c| {
        c.ok("get events").contains("Back-off restarting failed container").then_some(())
    });
}

/// A Deployment whose pods leave a node that is dead at once.
pub(super) const SPREAD: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 4
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 5
      tolerations:
      - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 0}
      - {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 0}
      containers: [{name: hello, image: fairlead/hello}]
";

#[test]
fn a_dead_nodes_pods_move_and_its_endpoints_leave() {
    let mut cluster = Cluster::start_many("deadly", kubectl(), &["lives", "dies"]);
    cluster.apply(SPREAD);
    cluster.ok("expose deployment web --port=80 --target-port=8080");
    let on = |pods: &[Value], node: &str| {
        pods.iter().filter(|pod| pod["spec"]["nodeName"] == node).count()
    };
    let pods = until_ready_pods(&cluster, 4);
    assert_eq!((on(&pods, "lives"), on(&pods, "dies")), (2, 2));
    cluster.until("all are in the slice", |c| (endpoints(c, "web").len() == 4).then_some(()));
    let lost: BTreeSet<String> = pods
        .iter()
        .filter(|pod| pod["spec"]["nodeName"] == "dies")
        .map(|pod| name(pod).to_owned())
        .collect();

    cluster.switch_off("dies");

    cluster.until("others take their places", |c| {
        let serving = endpoints(c, "web");
        (serving.len() == 4 && serving.is_disjoint(&lost)).then_some(())
    });
    let (nodes, _) = cluster.run("get nodes --no-headers");
    let dead = nodes.lines().find(|line| line.starts_with("dies")).unwrap();
    assert!(dead.contains("NotReady"), "{nodes}");
    let load = ask(&cluster, vip(&cluster, "web"), 100);
    assert!(load.after(300, SOON));
    let tally = load.finish().unwrap();
    assert_eq!(tally.failed, 0, "{tally:?}");
    let serving = endpoints(&cluster, "web");
    let answered: BTreeSet<String> = tally.answers.keys().cloned().collect();
    assert_eq!(answered, serving);

    // It comes back, and ends what was taken from it.
    cluster.node_of("dies").set_connected(true).unwrap();
    cluster.join("dies");
    let pods = until_ready_pods(&cluster, 4);
    assert_eq!(on(&pods, "lives"), 4, "what moved stays");
    let dir = cluster.root_of("dies").join("pods");
    cluster.until("nothing is left on it", |_| {
        (fs::read_dir(&dir).unwrap().count() == 0).then_some(())
    });
}

/// Ready while there is no such file.
const SWITCHED: &str = "{exec: {command: [test, '!', -e, /tmp/ill]}, periodSeconds: 1, failureThreshold: 1, timeoutSeconds: 30}";

#[test]
fn who_is_not_ready_is_asked_by_nobody_until_it_is_again() {
    let cluster = Cluster::start("switched", kubectl());
    cluster.apply(&probed("web", 2, SWITCHED, ""));
    cluster.ok("expose deployment web --port=80 --target-port=8080");
    let pods = until_ready_pods(&cluster, 2);
    let (first, second) = (name(&pods[0]), name(&pods[1]));
    let both = BTreeSet::from([first.to_owned(), second.to_owned()]);
    let one = BTreeSet::from([second.to_owned()]);
    let until_serving = |wanted: &BTreeSet<String>| {
        cluster.until(&format!("{wanted:?} serve"), |c| {
            (endpoints(c, "web") == *wanted).then_some(())
        });
    };
    let target = vip(&cluster, "web");
    let curl = || {
        let url = format!("http://{target}/");
        cluster.on_node(&["curl", "-s", "-m", "20", &url])
    };
    // The node's kernel follows the slice; who answers says that it has.
    let until_answer = |wanted: &BTreeSet<String>| {
        cluster.until(&format!("{wanted:?} answer"), |_| {
            let answered: BTreeSet<String> = (0..20).map(|_| curl()).collect();
            (answered == *wanted).then_some(())
        });
    };
    let load = ask(&cluster, target, 100);
    until_serving(&both);
    until_answer(&both);
    for _ in 0..3 {
        cluster.sh(first, "touch /tmp/ill");
        until_serving(&one);
        until_answer(&one);
        cluster.sh(first, "rm /tmp/ill");
        until_serving(&both);
        until_answer(&both);
    }
    let tally = load.finish().unwrap();
    assert_eq!(tally.failed, 0, "{tally:?}");
    for pod in until_ready_pods(&cluster, 2) {
        assert_eq!(container(&pod)["restartCount"], 0);
    }
}

/// Each probe leaves a mark whenever it asks.
const PROBED: &str = "
apiVersion: v1
kind: Pod
metadata: {name: slow}
spec:
  terminationGracePeriodSeconds: 2
  containers:
  - name: slow
    image: fairlead/client
    command: [sh, -c, 'touch /tmp/well; exec sleep 3600']
    startupProbe: {exec: {command: [sh, -c, 'echo >> /tmp/startup; test -e /tmp/started']}, periodSeconds: 1, failureThreshold: 1000, timeoutSeconds: 30}
    readinessProbe: {exec: {command: [sh, -c, 'echo >> /tmp/readiness']}, periodSeconds: 1, timeoutSeconds: 30}
    livenessProbe: {exec: {command: [sh, -c, 'echo >> /tmp/liveness; test -e /tmp/well']}, periodSeconds: 1, failureThreshold: 1, timeoutSeconds: 30}
";

#[test]
fn the_startup_probe_holds_the_others_back_and_liveness_restarts() {
    let cluster = Cluster::start("probed", kubectl());
    cluster.apply(PROBED);
    cluster.until_running("slow");
    let asked = |probe: &str| -> usize {
        let words = format!("cat /tmp/{probe} 2>/dev/null | wc -l");
        cluster.sh("slow", &words).parse().unwrap()
    };
    cluster.until("the startup probe asks", |_| (asked("startup") >= 5).then_some(()));
    assert_eq!((asked("readiness"), asked("liveness")), (0, 0));
    assert!(!is_ready(&cluster.pod("slow")));
    assert_eq!(container(&cluster.pod("slow"))["started"], false);
    cluster.sh("slow", "touch /tmp/started");
    cluster.until_ready("slow");
    cluster.until("both others ask", |_| {
        (asked("readiness") > 0 && asked("liveness") > 0).then_some(())
    });
    let before = asked("startup");
    assert_eq!(container(&cluster.pod("slow"))["restartCount"], 0);
    assert_eq!(asked("startup"), before, "once is enough");
    cluster.sh("slow", "rm /tmp/well");
    let again = cluster.until("it is restarted", |c| {
        let pod = c.pod("slow");
        (container(&pod)["restartCount"] == 1).then_some(pod)
    });
    assert!(!is_ready(&again), "the new one has not started yet");
}

/// What upstream recommends: who goes is no endpoint any more before it stops to listen.
const GOES_LATER: &str = "lifecycle: {preStop: {sleep: {seconds: 5}}}";

#[test]
fn a_rolling_update_fails_no_request() {
    let cluster = Cluster::start("rolled", kubectl());
    cluster.apply(&probed("web", 4, ASKS, GOES_LATER));
    cluster.ok("expose deployment web --port=80 --target-port=8080");
    until_ready_pods(&cluster, 4);
    cluster.until("all serve", |c| (endpoints(c, "web").len() == 4).then_some(()));
    let load = ask(&cluster, vip(&cluster, "web"), 100);
    assert!(load.after(100, SOON));
    let mut generations = vec![endpoints(&cluster, "web")];
    for round in 0..2 {
        cluster.ok(&format!("set env deployment/web ROUND={round}"));
        cluster.ok("rollout status deployment/web --timeout=120s");
        until_ready_pods(&cluster, 4);
        generations.push(endpoints(&cluster, "web"));
    }
    assert!(load.after(100, SOON));
    let tally = load.finish().unwrap();
    assert_eq!(tally.failed, 0, "{tally:?}");
    for pods in &generations {
        let n = pods.iter().filter(|pod| tally.answers.contains_key(*pod)).count();
        assert_eq!(n, 4, "{pods:?}: {tally:?}");
    }
    for (earlier, later) in generations.iter().zip(generations.iter().skip(1)) {
        assert!(earlier.is_disjoint(later), "every pod is replaced");
    }
}
