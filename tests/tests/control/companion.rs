//! A companion of a test's own, and a stand-in for the nodes that it has none of.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use http::Request;
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};
use tests::relay::Relay;

/// A `fairlead control` that ends with the test.
pub(crate) struct Companion {
    child: Child,
    dir: PathBuf,
    flags: Vec<String>,
    _keep: tempfile::TempDir,
}

/// How long anything may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

impl Companion {
    pub(crate) async fn start(flags: &[&str]) -> Self {
        let keep = tempfile::tempdir().unwrap();
        let dir = keep.path().to_owned();
        let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let child = spawn(&dir, &flags, "127.0.0.1:0");
        let mut companion = Self { child, dir, flags, _keep: keep };
        companion.wait_until_ready().await;
        companion
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Memory in use, in bytes.
    pub(crate) fn rss(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
    }

    /// `127.0.0.1:PORT`.
    pub(crate) fn address(&self) -> String {
        let text = std::fs::read_to_string(self.kubeconfig()).unwrap();
        let line = text.lines().find(|line| line.contains("server:")).unwrap();
        line.rsplit('/').next().unwrap().trim().to_owned()
    }

    pub(crate) async fn client(&self) -> Client {
        Self::connect(Kubeconfig::read_from(self.kubeconfig()).unwrap()).await
    }

    /// A client that goes through a relay.
    pub(crate) async fn client_by(&self, relay: &Relay) -> Client {
        let mut kubeconfig = Kubeconfig::read_from(self.kubeconfig()).unwrap();
        let cluster = kubeconfig.clusters[0].cluster.as_mut().unwrap();
        cluster.server = Some(format!("http://{}", relay.address()));
        Self::connect(kubeconfig).await
    }

    async fn connect(kubeconfig: Kubeconfig) -> Client {
        let options = KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
        Client::try_from(config).unwrap()
    }

    /// SIGKILL: nothing is told, nothing is saved.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts again with the same data on the same port.
    pub(crate) async fn restart(&mut self) {
        let address = self.address();
        self.child = spawn(&self.dir, &self.flags, &address);
        self.wait_until_ready().await;
    }

    async fn wait_until_ready(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the companion ended: {status}");
            }
            if self.kubeconfig().is_file() {
                let client = self.client().await;
                if get(&client, "/api/v1/namespaces/default").await.is_ok() {
                    return;
                }
            }
            assert!(Instant::now() < deadline, "the companion does not answer");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Companion {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

fn spawn(dir: &Path, flags: &[String], listen: &str) -> Child {
    Command::new(tests::binary::fairlead())
        .arg("control")
        .arg("--data")
        .arg(dir.join("data"))
        .args(["--listen", listen, "--kubeconfig-out"])
        .arg(dir.join("kubeconfig"))
        .args(flags)
        .stdin(Stdio::null())
        .stderr(std::fs::File::create(dir.join("log")).unwrap())
        .spawn()
        .unwrap()
}

pub(crate) async fn get(client: &Client, path: &str) -> kube::Result<Value> {
    client.request(Request::get(path).body(Vec::new()).unwrap()).await
}

pub(crate) async fn post(client: &Client, path: &str, body: &Value) -> kube::Result<Value> {
    send(client, Request::post(path), body, "application/json").await
}

pub(crate) async fn merge(client: &Client, path: &str, body: &Value) -> kube::Result<Value> {
    send(client, Request::patch(path), body, "application/merge-patch+json").await
}

pub(crate) async fn put(client: &Client, path: &str, body: &Value) -> kube::Result<Value> {
    send(client, Request::put(path), body, "application/json").await
}

/// Deletes, with `DeleteOptions` that say more.
pub(crate) async fn delete(client: &Client, path: &str, options: &Value) -> kube::Result<Value> {
    let mut body = json!({"apiVersion": "v1", "kind": "DeleteOptions"});
    body.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
    send(client, Request::delete(path), &body, "application/json").await
}

/// The items of a list.
pub(crate) async fn items(client: &Client, path: &str) -> Vec<Value> {
    get(client, path).await.unwrap()["items"].as_array().unwrap().clone()
}

/// The code with which a request was refused.
pub(crate) fn code<T: std::fmt::Debug>(result: kube::Result<T>) -> u16 {
    match result.unwrap_err() {
        kube::Error::Api(status) => status.code,
        error => panic!("{error}"),
    }
}

async fn send(
    client: &Client,
    request: http::request::Builder,
    body: &Value,
    content_type: &str,
) -> kube::Result<Value> {
    let request = request.header("content-type", content_type);
    client.request(request.body(body.to_string().into_bytes()).unwrap()).await
}

/// Waits until something is so.
pub(crate) async fn eventually<F: Future<Output = Option<T>>, T>(
    what: &str,
    check: impl Fn() -> F,
) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}

pub(crate) fn revision(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

pub(crate) fn config_map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "b"}})
}

/// Nodes that say they are ready, and whose pods are what `fate` makes of them as soon as they
/// are placed: the part of a node agent that controllers see.
pub(crate) struct Nodes(tokio::task::JoinHandle<()>);

impl Nodes {
    pub(crate) async fn start(client: &Client, names: &[&str], fate: fn(&Value) -> Value) -> Self {
        for name in names {
            let now = jiff::Timestamp::now().to_string();
            let node = json!({
                "apiVersion": "v1", "kind": "Node",
                "metadata": {"name": name, "labels": {
                    "kubernetes.io/hostname": name, "topology.kubernetes.io/zone": format!("zone-{name}"),
                }},
                "status": {
                    "allocatable": {"cpu": "8", "memory": "8Gi", "pods": "400"},
                    "conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": now}],
                },
            });
            post(client, "/api/v1/nodes", &node).await.unwrap();
        }
        let client = client.clone();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        Self(tokio::spawn(async move {
            let mut next_ip = 1_u32;
            let mut beat = tokio::time::interval(Duration::from_secs(10));
            loop {
                if futures::FutureExt::now_or_never(beat.tick()).is_some() {
                    heartbeat(&client, &names).await;
                }
                if let Ok(pods) = get(&client, "/api/v1/pods").await {
                    for pod in pods["items"].as_array().into_iter().flatten() {
                        tend(&client, pod, fate, &mut next_ip).await;
                    }
                }
                tokio::time::sleep(Duration::from_millis(25)).await;
            }
        }))
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn heartbeat(client: &Client, nodes: &[String]) {
    let now = jiff::Timestamp::now().to_string();
    for name in nodes {
        let ready = json!([{"type": "Ready", "status": "True", "lastHeartbeatTime": now}]);
        let status = json!({"status": {"conditions": ready}});
        _ = merge(client, &format!("/api/v1/nodes/{name}/status"), &status).await;
    }
}

async fn tend(client: &Client, pod: &Value, fate: fn(&Value) -> Value, next_ip: &mut u32) {
    let metadata = &pod["metadata"];
    let path = format!(
        "/api/v1/namespaces/{}/pods/{}",
        metadata["namespace"].as_str().unwrap(),
        metadata["name"].as_str().unwrap()
    );
    if pod["spec"]["nodeName"].is_null() {
        return;
    }
    if !metadata["deletionTimestamp"].is_null() {
        _ = delete(client, &path, &json!({"gracePeriodSeconds": 0})).await;
    } else if pod["status"]["phase"] == "Pending" {
        let mut status = fate(pod);
        let ip = format!("10.9.{}.{}", *next_ip / 250, *next_ip % 250 + 1);
        *next_ip += 1;
        status["podIP"] = json!(ip);
        status["podIPs"] = json!([{"ip": ip}]);
        _ = merge(client, &format!("{path}/status"), &json!({"status": status})).await;
    }
}

/// A pod that runs and is ready.
pub(crate) fn ready(_pod: &Value) -> Value {
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    json!({"phase": "Running", "conditions": [
        {"type": "Ready", "status": "True", "lastTransitionTime": now},
    ]})
}

/// A pod that is done at once.
pub(crate) fn succeeded(_pod: &Value) -> Value {
    json!({"phase": "Succeeded"})
}

/// A pod that fails at once.
pub(crate) fn failed(_pod: &Value) -> Value {
    json!({"phase": "Failed"})
}
