//! How large and how quick is the companion? At 10,000 Services of 10 endpoints.
//!
//! A server of its own, durable as always, with its controllers and without; the client makes
//! Services and their slices over 32 connections' worth of requests, lists them, and then changes
//! slices at 500 writes a second while a watcher takes the time: from the moment at which a write
//! is sent to the moment at which the watcher has read its event.
//!
//! `cargo xtask bench control [SECONDS]`

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a bench fails loudly, prints, and owns its processes"
)]

use std::collections::HashMap;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::{AsyncBufReadExt, StreamExt};
use http::Request;
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use loadtest::ratio::quantile;
use serde_json::{Value, json};
use tests::binary;
use tokio::sync::Semaphore;

const SERVICES: usize = 10_000;
const ENDPOINTS: usize = 10;
const IN_FLIGHT: usize = 32;
const RATE: usize = 500;
const EVERY: Duration = Duration::from_millis(2);

const SERVICES_PATH: &str = "/api/v1/namespaces/default/services";
const SLICES_PATH: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";

fn main() {
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    let seconds = words.next().map_or(20, |word| word.parse().unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    println!(
        "{SERVICES} Services of {ENDPOINTS} endpoints; {RATE} writes a second for {seconds} s"
    );
    println!();
    println!(
        "{:<20} {:>8} {:>9} {:>9} {:>8} {:>8} {:>8} {:>8} {:>8}",
        "", "create s", "list ms", "list MiB", "p50 ms", "p99 ms", "max ms", "RSS MiB", "peak MiB"
    );
    runtime.block_on(async {
        measure("with controllers", &[], seconds).await;
        measure("without", &["--no-controllers"], seconds).await;
    });
}

async fn measure(label: &str, flags: &[&str], seconds: usize) {
    let dir = tempfile::tempdir().unwrap();
    let kubeconfig = dir.path().join("kubeconfig");
    let child = Command::new(binary::fairlead())
        .args(["control", "--listen", "127.0.0.1:0", "--kubeconfig-out"])
        .arg(&kubeconfig)
        .arg("--data")
        .arg(dir.path().join("data"))
        .args(flags)
        .stdin(Stdio::null())
        .stderr(std::fs::File::create(dir.path().join("log")).unwrap())
        .spawn()
        .unwrap();
    let server = Server(child);
    let client = connect(&kubeconfig).await;

    let created = create_all(&client).await;
    let listing = Instant::now();
    let bytes = list(&client, SERVICES_PATH).await + list(&client, SLICES_PATH).await;
    let listed = listing.elapsed();
    let latencies = churn(&client, seconds).await;
    let [p50, p99, max] =
        [0.5, 0.99, 1.0].map(|q| quantile(latencies.iter().map(Duration::as_secs_f64), q) * 1e3);
    println!(
        "{label:<20} {:>8.1} {:>9.0} {:>9} {p50:>8.2} {p99:>8.2} {max:>8.2} {:>8} {:>8}",
        created.as_secs_f64(),
        listed.as_secs_f64() * 1e3,
        bytes >> 20,
        server.memory("VmRSS:"),
        server.memory("VmHWM:"),
    );
}

/// Ends with the bench.
struct Server(Child);

impl Server {
    /// A line of `/proc/PID/status`, in MiB.
    fn memory(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

async fn connect(kubeconfig: &std::path::Path) -> Client {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Ok(text) = Kubeconfig::read_from(kubeconfig) {
            let options = KubeConfigOptions::default();
            let config = kube::Config::from_custom_kubeconfig(text, &options).await.unwrap();
            let client = Client::try_from(config).unwrap();
            let version = Request::get("/version").body(Vec::new()).unwrap();
            if client.request::<Value>(version).await.is_ok() {
                return client;
            }
        }
        assert!(Instant::now() < deadline, "the server does not answer");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn create_all(client: &Client) -> Duration {
    let started = Instant::now();
    let room = Arc::new(Semaphore::new(IN_FLIGHT));
    let mut writes = tokio::task::JoinSet::new();
    for number in 0..SERVICES {
        let (client, permit) = (client.clone(), Arc::clone(&room).acquire_owned().await.unwrap());
        writes.spawn(async move {
            send(&client, Request::post(SERVICES_PATH), &service(number)).await;
            send(&client, Request::post(SLICES_PATH), &slice(number, 0)).await;
            drop(permit);
        });
    }
    while let Some(written) = writes.join_next().await {
        written.unwrap();
    }
    started.elapsed()
}

async fn send(client: &Client, request: http::request::Builder, body: &Value) -> Value {
    let request = request.header("content-type", "application/json");
    client.request(request.body(body.to_string().into_bytes()).unwrap()).await.unwrap()
}

/// Reads a whole list; its size.
async fn list(client: &Client, path: &str) -> usize {
    let text = client.request_text(Request::get(path).body(Vec::new()).unwrap()).await.unwrap();
    assert!(text.matches("\"uid\"").count() >= SERVICES);
    text.len()
}

/// When the write of a generation of a slice was sent.
type Sent = Arc<Mutex<HashMap<(usize, usize), Instant>>>;

async fn churn(client: &Client, seconds: usize) -> Vec<Duration> {
    let head = client
        .request::<Value>(Request::get(format!("{SLICES_PATH}?limit=1")).body(Vec::new()).unwrap())
        .await
        .unwrap();
    let revision = head["metadata"]["resourceVersion"].as_str().unwrap();
    let path = format!("{SLICES_PATH}?watch=1&resourceVersion={revision}");
    let watch = client.request_stream(Request::get(path).body(Vec::new()).unwrap()).await.unwrap();
    let (sent, n) = (Sent::default(), RATE * seconds);
    let watching = tokio::spawn(follow(watch, Arc::clone(&sent), n));
    let mut tick = tokio::time::interval(EVERY);
    let mut writes = tokio::task::JoinSet::new();
    for generation in 1..=n {
        tick.tick().await;
        let number = (generation * 7) % SERVICES;
        let (client, sent) = (client.clone(), Arc::clone(&sent));
        writes.spawn(async move {
            let body = slice(number, generation);
            sent.lock().unwrap().insert((number, generation), Instant::now());
            send(&client, Request::put(format!("{SLICES_PATH}/s{number}-x")), &body).await;
        });
        while writes.try_join_next().is_some_and(|written| written.is_ok()) {}
    }
    watching.await.unwrap()
}

async fn follow(watch: impl futures::AsyncBufRead + Unpin, sent: Sent, n: usize) -> Vec<Duration> {
    let mut lines = watch.lines();
    let mut latencies = Vec::new();
    while latencies.len() < n {
        let line = lines.next().await.unwrap().unwrap();
        let now = Instant::now();
        let event: Value = serde_json::from_str(&line).unwrap();
        let metadata = &event["object"]["metadata"];
        let mark = metadata["annotations"]["generation"].as_str().unwrap().parse().unwrap();
        let name = metadata["name"].as_str().unwrap();
        let number = name.trim_start_matches('s').trim_end_matches("-x").parse().unwrap();
        let since = sent.lock().unwrap().remove(&(number, mark)).unwrap();
        latencies.push(now.duration_since(since));
    }
    latencies
}

fn service(number: usize) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("s{number}")},
        "spec": {"ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
    })
}

fn slice(number: usize, generation: usize) -> Value {
    let endpoints: Vec<Value> = (0..ENDPOINTS)
        .map(|i| {
            let (a, b) = (number * ENDPOINTS + i, (generation + i) % 4);
            let address = format!("10.{}.{}.{}", 128 + a / 65_536, a / 256 % 256, a % 256);
            json!({
                "addresses": [address], "conditions": {"ready": b > 0}, "zone": format!("zone-{b}"),
                "nodeName": format!("node-{}", a % 100),
                "targetRef": {"kind": "Pod", "namespace": "default", "name": format!("pod-{a}")},
            })
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "name": format!("s{number}-x"),
            "labels": {
                "kubernetes.io/service-name": format!("s{number}"),
                "endpointslice.kubernetes.io/managed-by": "bench",
            },
            "annotations": {"generation": generation.to_string()},
        },
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints,
    })
}
