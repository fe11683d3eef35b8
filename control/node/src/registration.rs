//! The Node object: what this node is and has, and that it lives.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Secret};
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::DynamicObject;
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::agent::Config;
use crate::api::Cluster;

/// Why a node cannot be registered.
#[derive(Debug)]
pub(crate) struct RegisterError {
    pub(crate) node: String,
    pub(crate) why: String,
}

/// Upstream's periods: the lease is renewed every ten seconds and good for forty.
const LEASE_PERIOD: Duration = Duration::from_secs(10);
const LEASE_SECONDS: i32 = 40;
/// The status is written at least so often, in lease periods.
const STATUS_EVERY: u32 = 6;
/// How long the first contact with the API may take until its failure is worth a word.
const AGAIN: Duration = Duration::from_secs(1);

/// This node's word about itself.
#[derive(Debug)]
pub(crate) struct Registration {
    config: Config,
    cluster: Cluster,
    pub(crate) port: u16,
    pub(crate) runtime: String,
    /// By which the API server shows that it may read logs and run commands.
    pub(crate) key: String,
    ready_since: Option<Timestamp>,
}

impl Registration {
    pub(crate) fn new(config: &Config, cluster: &Cluster) -> Self {
        Self {
            config: config.clone(),
            cluster: cluster.clone(),
            port: 0,
            runtime: String::new(),
            key: String::new(),
            ready_since: None,
        }
    }

    fn client(&self) -> Client {
        self.cluster.client()
    }

    fn error(&self, why: &impl ToString) -> RegisterError {
        RegisterError { node: self.config.node_name.clone(), why: why.to_string() }
    }

    pub(crate) fn cpu_milli(&self) -> u64 {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        u64::try_from(cores).unwrap_or(1) * 1000
    }

    /// The machine's memory, in bytes.
    pub(crate) fn memory(&self) -> u64 {
        parse_memory(&fs::read_to_string("/proc/meminfo").unwrap_or_default()).unwrap_or(0)
    }

    /// Makes the Node object or takes over the one that is there; gives the pods' ranges.
    pub(crate) async fn register(&self) -> Result<Vec<IpNet>, RegisterError> {
        let api: Api<Node> = Api::all(self.client());
        let mut said = false;
        let node = loop {
            match api.create(&PostParams::default(), &self.object()).await {
                Ok(node) => break node,
                Err(kube::Error::Api(status)) if status.code == 409 => {
                    break self.take_over(&api).await?;
                }
                // Refused: saying it again does not help.
                Err(kube::Error::Api(status)) if status.code < 500 => {
                    return Err(self.error(&status.message));
                }
                Err(error) => {
                    if !std::mem::replace(&mut said, true) {
                        tracing::warn!(%error, "waiting for the API server");
                    }
                    tokio::time::sleep(AGAIN).await;
                }
            }
        };
        self.ranges(&api, node).await
    }

    fn object(&self) -> Node {
        let mut labels: BTreeMap<String, String> = self.config.labels.iter().cloned().collect();
        for (key, value) in [
            ("kubernetes.io/hostname", self.config.node_name.as_str()),
            ("kubernetes.io/os", "linux"),
            ("kubernetes.io/arch", architecture()),
        ] {
            labels.entry(key.into()).or_insert_with(|| value.into());
        }
        let mut node = Node::default();
        node.metadata.name = Some(self.config.node_name.clone());
        node.metadata.labels = Some(labels);
        if let Some(first) = self.config.pod_cidrs.first() {
            node.spec = Some(k8s_openapi::api::core::v1::NodeSpec {
                pod_cidr: Some(first.to_string()),
                pod_cidrs: Some(self.config.pod_cidrs.iter().map(ToString::to_string).collect()),
                ..Default::default()
            });
        }
        node
    }

    async fn take_over(&self, api: &Api<Node>) -> Result<Node, RegisterError> {
        let own = self.object();
        let known = api.get(&self.config.node_name).await.map_err(|error| self.error(&error))?;
        let has_ranges = known.spec.as_ref().is_some_and(|spec| spec.pod_cidr.is_some());
        let labels = json!({"labels": own.metadata.labels});
        let patch = match own.spec {
            Some(spec) if !has_ranges => json!({"metadata": labels, "spec": spec}),
            _ => json!({"metadata": labels}),
        };
        let (name, params) = (&self.config.node_name, PatchParams::default());
        let patched = api.patch(name, &params, &Patch::Merge(patch)).await;
        patched.map_err(|error| self.error(&error))
    }

    /// The ranges that the Node object has; waits until somebody gives it some.
    async fn ranges(&self, api: &Api<Node>, node: Node) -> Result<Vec<IpNet>, RegisterError> {
        let mut node = node;
        let mut said = false;
        loop {
            let spec = node.spec.clone().unwrap_or_default();
            let ranges: Vec<String> =
                spec.pod_cidrs.or_else(|| spec.pod_cidr.map(|one| vec![one])).unwrap_or_default();
            if !ranges.is_empty() {
                let parse = |range: &String| {
                    range
                        .parse()
                        .map_err(|error| self.error(&format!("spec.podCIDRs: {range:?}: {error}")))
                };
                return ranges.iter().map(parse).collect();
            }
            if !std::mem::replace(&mut said, true) {
                tracing::info!("waiting for spec.podCIDRs; or give some with --pod-cidr");
            }
            tokio::time::sleep(AGAIN).await;
            if let Ok(fresh) = api.get(&self.config.node_name).await {
                node = fresh;
            }
        }
    }

    /// Renews the lease and the status for ever.
    pub(crate) async fn keep(&mut self) {
        let mut period = tokio::time::interval(LEASE_PERIOD);
        let mut n = 0_u32;
        let mut told = false;
        loop {
            period.tick().await;
            if let Err(error) = self.renew().await {
                tracing::debug!(%error, "the lease will be renewed again");
            }
            if !std::mem::replace(&mut told, true)
                && let Err(error) = self.tell_key().await
            {
                told = false;
                tracing::debug!(%error, "the key will be told again");
            }
            if n.is_multiple_of(STATUS_EVERY)
                && let Err(error) = self.write_status().await
            {
                tracing::debug!(%error, "the node's status will be written again");
                n = 0;
                continue;
            }
            n = n.wrapping_add(1);
        }
    }

    /// Puts the key where the API server finds it, and who may read Secrets of the system.
    async fn tell_key(&self) -> Result<(), kube::Error> {
        let api: Api<Secret> = Api::namespaced(self.client(), "kube-system");
        let name = format!("fairlead-node-{}", self.config.node_name);
        let patch = Patch::Merge(json!({"stringData": {"key": self.key}}));
        match api.patch(&name, &PatchParams::default(), &patch).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {
                let mut secret = Secret::default();
                secret.metadata.name = Some(name);
                secret.string_data = Some([("key".to_owned(), self.key.clone())].into());
                api.create(&PostParams::default(), &secret).await.map(|_| ())
            }
            told => told.map(|_| ()),
        }
    }

    async fn renew(&self) -> Result<(), kube::Error> {
        let kind = kube::core::ApiResource::from_gvk(&kube::core::GroupVersionKind::gvk(
            "coordination.k8s.io",
            "v1",
            "Lease",
        ));
        let api: Api<DynamicObject> = Api::namespaced_with(self.client(), "kube-node-lease", &kind);
        let name = &self.config.node_name;
        let now = format!("{:.6}", Timestamp::now());
        let spec = json!({
            "holderIdentity": name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": now,
        });
        let patch = Patch::Merge(json!({"spec": spec}));
        match api.patch(name, &PatchParams::default(), &patch).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {
                let mut lease = DynamicObject::new(name, &kind);
                lease.data = json!({"spec": spec});
                api.create(&PostParams::default(), &lease).await.map(|_| ())
            }
            patched => patched.map(|_| ()),
        }
    }

    async fn write_status(&mut self) -> Result<(), kube::Error> {
        let api: Api<Node> = Api::all(self.client());
        let now = Timestamp::now();
        let since = *self.ready_since.get_or_insert(now);
        let status = self.status(since, now);
        let patch = Patch::Merge(json!({"status": status}));
        let name = &self.config.node_name;
        match api.patch_status(name, &PatchParams::default(), &patch).await {
            // Somebody deleted it: it is registered again.
            Err(kube::Error::Api(status)) if status.code == 404 => {
                api.create(&PostParams::default(), &self.object()).await?;
                api.patch_status(name, &PatchParams::default(), &patch).await.map(|_| ())
            }
            written => written.map(|_| ()),
        }
    }

    fn status(&self, since: Timestamp, now: Timestamp) -> Value {
        let time = |time: Timestamp| time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let condition = |form: &str, holds: bool, reason: &str, message: &str| {
            json!({
                "type": form, "status": if holds { "True" } else { "False" }, "reason": reason,
                "message": message, "lastHeartbeatTime": time(now),
                "lastTransitionTime": time(since),
            })
        };
        let mut addresses: Vec<Value> = self
            .config
            .addresses
            .iter()
            .map(|ip| json!({"type": "InternalIP", "address": ip.to_string()}))
            .collect();
        addresses.push(json!({"type": "Hostname", "address": self.config.node_name}));
        let resources = json!({
            "cpu": (self.cpu_milli() / 1000).to_string(),
            "memory": format!("{}Ki", self.memory() / 1024),
            "pods": self.config.max_pods.to_string(),
        });
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        json!({
            "addresses": addresses,
            "capacity": resources,
            "allocatable": resources,
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self.port}},
            "conditions": [
                condition("MemoryPressure", false, "KubeletHasSufficientMemory",
                    "kubelet has sufficient memory available"),
                condition("DiskPressure", false, "KubeletHasNoDiskPressure",
                    "kubelet has no disk pressure"),
                condition("PIDPressure", false, "KubeletHasSufficientPID",
                    "kubelet has sufficient PID available"),
                condition("Ready", true, "KubeletReady", "kubelet is posting ready status"),
            ],
            "nodeInfo": {
                "architecture": architecture(),
                "operatingSystem": "linux",
                "kernelVersion": read("/proc/sys/kernel/osrelease"),
                "osImage": os_image(&read("/etc/os-release")),
                "machineID": read("/etc/machine-id"),
                "systemUUID": "",
                "bootID": read("/proc/sys/kernel/random/boot_id"),
                "containerRuntimeVersion": self.runtime,
                "kubeletVersion": format!("v{}-fairlead", env!("CARGO_PKG_VERSION")),
                "kubeProxyVersion": "",
            },
        })
    }
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// `MemTotal` of `/proc/meminfo`, in bytes.
fn parse_memory(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// `PRETTY_NAME` of `/etc/os-release`.
fn os_image(text: &str) -> String {
    let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.unwrap_or("Linux").trim_matches('"').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_described_from_its_files() {
        assert_eq!(parse_memory("MemTotal:   2048 kB\nMemFree: 1 kB\n"), Some(2 << 20));
        assert_eq!(os_image("ID=debian\nPRETTY_NAME=\"Debian 12\"\n"), "Debian 12");
        assert_eq!(os_image(""), "Linux");
    }
}
