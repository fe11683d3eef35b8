//! How long a cluster of 10,000 Services with 10 endpoints each takes from a folder of YAML to the
//! first snapshot, how much memory stays, and how long one edited file takes to arrive.
//!
//! ```text
//! cargo bench -p model --bench folder [-- N_SERVICES [N_FILES]]
//! ```

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a program for people to run")]

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use model::watch;
use tokio::task::JoinSet;

const ENDPOINTS_EACH: usize = 10;
const EDITS: usize = 200;

fn main() {
    let mut numbers = std::env::args().filter_map(|arg| arg.parse().ok());
    let n_services: usize = numbers.next().unwrap_or(10_000);
    let n_files: usize = numbers.next().unwrap_or(100).max(1);
    let dir = tempfile::tempdir().unwrap();
    let n_bytes = generate(dir.path(), n_services, n_files);
    let before = memory("VmRSS");
    println!(
        "{n_services} Services, {} endpoints, {n_files} files, {} MiB of YAML",
        n_services * ENDPOINTS_EACH,
        n_bytes >> 20
    );
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(measure(dir.path(), before));
}

async fn measure(dir: &Path, before: u64) {
    let cpu_before = cpu_ticks();
    let started = Instant::now();
    let mut watch = watch::files(dir, "node-1").unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(watch.task);
    let first = watch.feed.next().await.unwrap();
    let (wall, cpu) = (started.elapsed(), cpu_ticks() - cpu_before);
    println!("first snapshot after {wall:?}, {} ms of them on a processor", cpu * 10);
    println!(
        "  {} Services, {} problems",
        first.snapshot.services.len(),
        first.snapshot.problems.len()
    );
    println!(
        "resident: {} KiB before, {} KiB after, {} KiB at most",
        before,
        memory("VmRSS"),
        memory("VmHWM")
    );
    let mut took = Vec::new();
    for edit in 0..EDITS {
        let text = service(edit % 250, 0);
        let edited = Instant::now();
        fs::write(dir.join("zz-edited.yaml"), text.replace("svc-0", "edited")).unwrap();
        watch.feed.next().await.unwrap();
        took.push(edited.elapsed());
    }
    took.sort();
    let at = |percent: usize| took.get(took.len() * percent / 100).copied().unwrap_or_default();
    let (median, high): (Duration, Duration) = (at(50), at(99));
    println!("an edited file arrives after {median:?} (median), {high:?} (99th percentile)");
}

fn generate(dir: &Path, n_services: usize, n_files: usize) -> usize {
    let each = n_services.div_ceil(n_files);
    let mut n_bytes = 0;
    for file in 0..n_files {
        let mut text = String::new();
        for idx in file * each..n_services.min((file + 1) * each) {
            text.push_str(&service(idx, idx));
            text.push_str("---\n");
            text.push_str(&slice(idx));
            text.push_str("---\n");
        }
        n_bytes += text.len();
        fs::write(dir.join(format!("objects-{file:05}.yaml")), text).unwrap();
    }
    n_bytes
}

fn service(ip: usize, idx: usize) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata:
  name: svc-{idx}
  namespace: ns-{}
  labels:
    app.kubernetes.io/name: svc-{idx}
spec:
  clusterIP: 10.{}.{}.{}
  selector:
    app.kubernetes.io/name: svc-{idx}
  ports:
  - name: http
    port: 80
    protocol: TCP
    targetPort: 8080
",
        idx % 100,
        96 + (ip >> 16),
        (ip >> 8) & 255,
        ip & 255
    )
}

fn slice(idx: usize) -> String {
    let mut text = format!(
        "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: svc-{idx}-x7k2p
  namespace: ns-{}
  labels:
    kubernetes.io/service-name: svc-{idx}
addressType: IPv4
ports:
- name: http
  port: 8080
  protocol: TCP
endpoints:
",
        idx % 100
    );
    for endpoint in 0..ENDPOINTS_EACH {
        let n = idx * ENDPOINTS_EACH + endpoint;
        write!(
            text,
            "- addresses:
  - 10.{}.{}.{}
  conditions:
    ready: true
    serving: true
    terminating: false
  nodeName: node-{}
  targetRef:
    kind: Pod
    name: svc-{idx}-7d4b9c6f5-{endpoint:05}
    namespace: ns-{}
  zone: zone-{}
",
            128 + (n >> 16),
            (n >> 8) & 255,
            n & 255,
            n % 200,
            idx % 100,
            n % 3
        )
        .unwrap();
    }
    text
}

/// What the process has used so far, in hundredths of a second: noise of others is not in it.
fn cpu_ticks() -> u64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
    fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum()
}

/// A line of `/proc/self/status`, in KiB.
fn memory(key: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(key)).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap_or(0)
}
