//! `fairlead dig` and `fairlead dns` as programs: what is said on a terminal, and what the manifest
//! in `deploy/` starts.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test runs programs, and fails loudly"
)]

use std::fs;
use std::io::Write as _;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use sandbox::wait;
use serde_json::Value;
use tests::binary::fairlead;
use tests::crowd::{question, read};

const SOON: Duration = Duration::from_secs(30);

const OBJECTS: &str = "apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.0.10
  ports: [{name: http, port: 80}]
";

fn objects() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("web.yaml"), OBJECTS).unwrap();
    dir
}

/// What `fairlead dig` prints, and whether it succeeds.
fn dig(words: &[&str]) -> String {
    let objects = objects();
    let output = Command::new(fairlead())
        .arg("dig")
        .args(words)
        .arg("--objects")
        .arg(objects.path())
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn dig_says_what_is_answered_and_why() {
    let text = dig(&["web.shop.svc.cluster.local"]);
    assert!(text.contains("10.96.0.10") && text.contains("shop/web"), "{text}");
    let told: Value =
        serde_json::from_str(&dig(&["no.shop.svc.cluster.local", "-o", "json"])).unwrap();
    assert!(told.to_string().contains("NXDOMAIN"), "{told}");
    // Through a pod's search list: its own namespace first.
    let text = dig(&["web", "--from-pod", "shop/client"]);
    assert!(text.contains("web.shop.svc.cluster.local") && text.contains("10.96.0.10"), "{text}");
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn get(port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").ok()?;
    std::io::read_to_string(stream).ok()
}

/// What a server on a port says of `web.shop`.
fn ask(port: u16) -> Option<String> {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    socket.send_to(&question(7, "web.shop.svc.cluster.local", true), ("127.0.0.1", port)).ok()?;
    let mut buffer = [0; 1500];
    let n = socket.recv(&mut buffer).ok()?;
    read(buffer.get(..n)?, 7)
}

/// A Corefile's pages and lameduck: told to end, it is unready at once, healthy and answering for the
/// time that it was given, and then gone.
#[test]
fn a_server_that_is_told_to_end_answers_for_the_time_of_its_lameduck() {
    let objects = objects();
    let [dns, health, ready, metrics] = [(); 4].map(|()| free_port());
    let corefile = objects.path().join("Corefile");
    let text = format!(
        ".:{dns} {{\n health 127.0.0.1:{health} {{\n lameduck 2s\n }}\n ready 127.0.0.1:{ready}\n \
         prometheus 127.0.0.1:{metrics}\n kubernetes cluster.local\n}}\n"
    );
    fs::write(&corefile, text).unwrap();
    let mut command = Command::new(fairlead());
    command.arg("dns").arg("--objects").arg(objects.path()).arg("--corefile").arg(&corefile);
    let mut server = Server(command.stderr(Stdio::null()).spawn().unwrap());
    let is = |port, path, what: &str| get(port, path).is_some_and(|page| page.contains(what));
    assert!(wait::until(SOON, || is(ready, "/ready", " 200 ")), "it is ready");
    assert_eq!(ask(dns).as_deref(), Some("NOERROR 10.96.0.10"));
    assert!(is(health, "/health", "OK"));
    assert!(is(metrics, "/metrics", "coredns_dns_requests_total"));

    let pid = nix::unistd::Pid::from_raw(server.0.id().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(wait::until(SOON, || is(ready, "/ready", " 503 ")), "it is unready");
    assert_eq!(ask(dns).as_deref(), Some("NOERROR 10.96.0.10"), "it answers still");
    assert!(is(health, "/health", "OK"), "it lives still");
    assert!(wait::until(SOON, || server.0.try_wait().unwrap().is_some()), "it ends");
    assert_eq!(ask(dns), None);
}

/// What is in `deploy/` is what the program takes: its arguments, its Corefile, its ports.
#[test]
fn the_manifest_starts_what_there_is() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/dns-deployment.yaml");
    let text = fs::read_to_string(file).unwrap();
    let documents: Vec<Value> =
        text.split("\n---\n").map(|one| serde_saphyr::from_str(one).unwrap()).collect();
    let of_kind = |kind: &str| documents.iter().find(|one| one["kind"] == kind).unwrap();
    let deployment = of_kind("Deployment");
    let read: k8s_openapi::api::apps::v1::Deployment =
        serde_json::from_value(deployment.clone()).unwrap();
    assert_eq!(read.metadata.name.as_deref(), Some("fairlead-dns"));
    let args = deployment["spec"]["template"]["spec"]["containers"][0]["args"].clone();
    let args: Vec<String> = serde_json::from_value(args).unwrap();
    let output = Command::new(fairlead()).args(&args).arg("--help").output().unwrap();
    assert!(output.status.success(), "{args:?}: {output:?}");

    let corefile = of_kind("ConfigMap")["data"]["Corefile"].as_str().unwrap();
    let corefile = dns::corefile::Corefile::parse(corefile).unwrap();
    assert!(corefile.problems.is_empty(), "{:?}", corefile.problems);
    assert_eq!((corefile.port, corefile.lameduck), (53, Duration::from_secs(5)));
    let ports = [corefile.health, corefile.ready, corefile.metrics].map(|at| at.unwrap().port());
    assert_eq!(ports, [8080, 8181, 9153]);
    let service = of_kind("Service");
    assert_eq!(
        service["spec"]["selector"],
        of_kind("Deployment")["spec"]["selector"]["matchLabels"]
    );
    // What it watches, it may.
    let rules = of_kind("ClusterRole")["rules"].to_string();
    for resource in ["services", "nodes", "namespaces", "endpointslices"] {
        assert!(rules.contains(resource), "{rules}");
    }
}
