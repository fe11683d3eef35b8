//! How soon are pods ready, and how soon does a slice know of it? A hundred on one node.
//!
//! A companion and a node of its own, durable as always, with the process runtime. First a
//! Deployment of a hundred pods with an HTTP readiness probe: the time from the moment at which the
//! first is scheduled to the moment at which a watcher has read that the last is ready. Then
//! pods whose readiness probe asks a server of this bench: it notes when it answers otherwise than
//! before, and a watcher of slices when it reads of that. The difference is what there is beyond the
//! probe: agent, API server, controller, API server, watcher.
//!
//! `cargo xtask bench pods [CHANGES]`

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a bench fails loudly, and prints"
)]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use futures::{AsyncBufReadExt, StreamExt};
use http::Request;
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use loadtest::ratio::quantile;
use serde_json::Value;
use tests::pods::{ASKS, Cluster, is_ready, kubectl, name, probed};

const PODS: usize = 100;
const ROUNDS: usize = 3;
/// Where the probes of the second part ask, on the node.
const ASKED: &str = "172.18.0.1:9999";
/// How long any one thing may take.
const PATIENCE: Duration = Duration::from_secs(120);

fn main() {
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    let n_changes = words.next().map_or(40, |word| word.parse().unwrap());
    let cluster = Cluster::start("bench-pods", kubectl());
    println!(
        "{PODS} pods of one node, from the first one's scheduling to the last one's readiness"
    );
    for _ in 0..ROUNDS {
        let took = ready(&cluster);
        println!("{:>8.1} s", took.as_secs_f64());
    }
    println!();
    println!("{n_changes} changes of readiness, from a probe's answer to a watcher of slices");
    let latencies = changes(&cluster, n_changes);
    let [p50, p99, max] =
        [0.5, 0.99, 1.0].map(|q| quantile(latencies.iter().map(Duration::as_secs_f64), q) * 1e3);
    println!("p50 {p50:.1} ms, p99 {p99:.1} ms, max {max:.1} ms");
}

/// Makes the pods, waits until they are ready, and removes them.
fn ready(cluster: &Cluster) -> Duration {
    cluster.apply(&probed("many", 0, ASKS, ""));
    let seen = watch(cluster, "/api/v1/namespaces/default/pods");
    cluster.ok(&format!("scale deployment many --replicas={PODS}"));
    let (mut scheduled, mut ready) = (None, BTreeSet::new());
    let took = loop {
        let (at, event) = seen.recv_timeout(PATIENCE).unwrap();
        let pod = &event["object"];
        if !pod["spec"]["nodeName"].is_null() {
            scheduled.get_or_insert(at);
        }
        if is_ready(pod) {
            ready.insert(name(pod).to_owned());
        }
        if ready.len() == PODS {
            break at - scheduled.unwrap();
        }
    };
    cluster.ok("delete deployment many");
    cluster.until("they are gone", |c| c.pods().is_empty().then_some(()));
    took
}

/// Events of a collection from now on, each with the moment at which it was read.
fn watch(cluster: &Cluster, path: &str) -> Receiver<(Instant, Value)> {
    let (sender, receiver) = mpsc::channel();
    let (begun, begins) = mpsc::channel();
    let (node, path) = (cluster.node.clone(), path.to_owned());
    let kubeconfig = Kubeconfig::read_from(cluster.dir.path().join("kubeconfig")).unwrap();
    thread::spawn(move || {
        let follow = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let options = KubeConfigOptions::default();
                let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await;
                let client = Client::try_from(config.unwrap()).unwrap();
                let list = Request::get(&path).body(Vec::new()).unwrap();
                let list: Value = client.request(list).await.unwrap();
                let version = list["metadata"]["resourceVersion"].as_str().unwrap();
                let path = format!("{path}?watch=true&resourceVersion={version}");
                let request = Request::get(path).body(Vec::new()).unwrap();
                let mut lines = client.request_stream(request).await.unwrap().lines();
                begun.send(()).unwrap();
                // The server ends with the bench.
                while let Some(Ok(line)) = lines.next().await {
                    let event = serde_json::from_str(&line).unwrap();
                    // Whoever listened has heard enough.
                    if sender.send((Instant::now(), event)).is_err() {
                        return;
                    }
                }
            });
        };
        node.netns().run(follow).unwrap();
    });
    begins.recv_timeout(PATIENCE).unwrap();
    receiver
}

const ASKING: &str = "
apiVersion: v1
kind: Pod
metadata: {name: asking, labels: {app: asking}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: hello
    image: fairlead/hello
    readinessProbe: {httpGet: {host: 172.18.0.1, port: 9999}, periodSeconds: 1, failureThreshold: 1}
---
apiVersion: v1
kind: Service
metadata: {name: asking}
spec: {selector: {app: asking}, ports: [{port: 80, targetPort: 8080}]}
";

/// Changes a pod's readiness so often, and says how long after the probe's answer it was told.
fn changes(cluster: &Cluster, n: usize) -> Vec<Duration> {
    let well = Arc::new(Mutex::new(true));
    let answers = serve(cluster, &well);
    cluster.apply(ASKING);
    cluster.until_ready("asking");
    let seen = watch(cluster, "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices");
    let mut latencies = Vec::new();
    for change in 0..n {
        let now_well = change % 2 == 1;
        while answers.try_recv().is_ok() {}
        *well.lock().unwrap() = now_well;
        let answered = loop {
            let (at, said) = answers.recv_timeout(PATIENCE).unwrap();
            if said == now_well {
                break at;
            }
        };
        let told = loop {
            let (at, event) = seen.recv_timeout(PATIENCE).unwrap();
            let slice = &event["object"];
            let of_service = slice["metadata"]["labels"]["kubernetes.io/service-name"] == "asking";
            if of_service && slice["endpoints"][0]["conditions"]["ready"] == now_well {
                break at;
            }
        };
        latencies.push(told - answered);
    }
    cluster.ok("delete pod asking");
    latencies
}

/// Answers probes on the node as `well` says, and says when it did.
fn serve(cluster: &Cluster, well: &Arc<Mutex<bool>>) -> Receiver<(Instant, bool)> {
    let (sender, receiver) = mpsc::channel();
    let listener = cluster.node.netns().run(|| TcpListener::bind(ASKED)).unwrap().unwrap();
    let well = Arc::clone(well);
    thread::spawn(move || {
        for stream in listener.incoming() {
            answer(&stream.unwrap(), &well, &sender);
        }
    });
    receiver
}

fn answer(mut stream: &TcpStream, well: &Mutex<bool>, sender: &Sender<(Instant, bool)>) {
    let mut lines = BufReader::new(stream).lines();
    while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
    let well = *well.lock().unwrap();
    let status = if well { "200 OK" } else { "503 Service Unavailable" };
    let text = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    let at = Instant::now();
    // The agent asks on when the bench has heard enough.
    drop(stream.write_all(text.as_bytes()).map(|()| sender.send((at, well))));
}
